"""Decode: carry out the chunk jobs of a read, straight into the caller's memory.

The steps of one job: fetch its payloads, check them, decompress, decode. Jobs are independent; threads share nothing.
"""

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from mzstore.container import Reader
from mzstore.documents import TensorEntry
from mzstore.encodings import chunk_path, read_chunk
from mzstore.errors import CorruptError
from mzstore.grid import Piece, pieces
from mzstore.narrow import widen
from mzstore.selection import Span
from mzstore.workspace import buffer

# Of values. Threads take turns in Python between the steps of a job, which in small jobs is most of the time.
BATCH_NBYTES = 1 << 20
BATCH_JOBS = 64  # a document may claim any number of chunks of a byte
BATCHES_AHEAD = 4  # for each thread: enough that a slow one stops none of them


@dataclass(frozen=True, slots=True)
class Job:
    """One piece of a tensor and where its words go. ``entry`` is a stored tensor, never a reference."""

    entry: TensorEntry
    piece: Piece
    out: np.ndarray  # of the whole read; the piece's target is cut from it

    @property
    def nbytes(self) -> int:
        """Bytes of the words that it fills."""
        words: int = math.prod(cut.stop - cut.start for cut in self.piece.target)
        return words * self.out.itemsize


def jobs(entry: TensorEntry, spans: tuple[Span, ...], out: np.ndarray) -> Iterator[Job]:
    """What has to be done to fill ``out`` (words, one axis for each of ``spans``) from ``entry``."""
    assert entry.part is not None
    for piece in pieces(entry.part.grid, spans):
        yield Job(entry, piece, out)


def missing_chunk(key: str, *, where: str) -> CorruptError:
    return CorruptError(f"the chunk {key!r} is missing; restore the file from a copy", where=where, clause="payload-4")


def run(reader: Reader, todo: Iterable[Job], threads: int, done: Callable[[int], None] | None = None) -> None:
    """Carry out all jobs; ``done`` is told the bytes of each batch when it is finished. The first error ends the rest."""
    batches = _batches(todo)
    first = list(itertools.islice(batches, 2))
    batches = itertools.chain(first, batches)
    if threads == 1 or len(first) < 2:  # starting threads takes as long as decoding a small tensor
        for batch, nbytes in batches:
            _decode_all(reader, batch)
            if done:
                done(nbytes)
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="mzstore-decode")
    pending: deque[tuple[Future[None], int]] = deque()

    def finish(most: int) -> None:
        while len(pending) > most:
            future, nbytes = pending.popleft()
            future.result()
            if done:
                done(nbytes)

    try:
        for batch, nbytes in batches:  # not all at once: there may be millions
            pending.append((pool.submit(_decode_all, reader, batch), nbytes))
            finish(BATCHES_AHEAD * threads)
        finish(0)
    finally:
        pool.shutdown(cancel_futures=True)


def _batches(todo: Iterable[Job]) -> Iterator[tuple[list[Job], int]]:
    """Jobs in groups that are worth handing to a thread, with the bytes of each."""
    batch: list[Job] = []
    nbytes = 0
    for job in todo:
        batch.append(job)
        nbytes += job.nbytes
        if nbytes >= BATCH_NBYTES or len(batch) == BATCH_JOBS:
            yield batch, nbytes
            batch, nbytes = [], 0
    if batch:
        yield batch, nbytes


def _decode_all(reader: Reader, batch: list[Job]) -> None:
    for job in batch:
        _decode(reader, job)


def _decode(reader: Reader, job: Job) -> None:
    entry, piece = job.entry, job.piece
    part = entry.part
    assert part is not None
    index: tuple[Any, ...] = (*piece.target, ...)
    target: np.ndarray = job.out[index]  # the dots keep a 0-d array an array
    where = f"{reader.url}, tensor {entry.spec.name!r}, chunk {piece.chunk}"

    def read(i: int) -> np.ndarray:
        component = part.components[i]
        key = f"{entry.node}/{chunk_path(part, component, piece.chunk)}"
        payload = reader.read_chunk(key, component.name)
        if payload is None:
            raise missing_chunk(key, where=where)
        return read_chunk(component, payload, where=where)

    stepped = any(cut.step != 1 for cut in piece.source)
    narrower = part.dtype != entry.spec.dtype
    gapped = target.ndim > 0 and target.shape[-1] > 1 and target.strides[-1] != target.itemsize
    if not (stepped or narrower or gapped or any(s < 0 or s % target.itemsize for s in target.strides)):
        part.decode(read, piece.source, target, where)
        return
    source = tuple(slice(cut.start, cut.stop) for cut in piece.source)
    shape = tuple(cut.stop - cut.start for cut in source)
    whole = (
        buffer("piece", int(np.prod(shape, dtype=np.int64)) * part.dtype.word.itemsize)
        .view(part.dtype.word)
        .reshape(shape)
    )
    part.decode(read, source, whole, where)
    taken = whole[tuple(slice(None, None, cut.step) for cut in piece.source)]
    if narrower:
        widen(taken, part.dtype, target)
    else:
        target[...] = taken

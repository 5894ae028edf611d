"""Decode: carry out the chunk jobs of a read, straight into the caller's memory.

The steps of one job: fetch its payloads, check them, decompress, decode. Jobs are independent; threads share nothing.
"""

import itertools
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

JOBS_AHEAD = 16  # for each thread: enough that a slow chunk stops none of them


@dataclass(frozen=True, slots=True)
class Job:
    """One piece of a tensor and where its words go. ``entry`` is a stored tensor, never a reference."""

    entry: TensorEntry
    piece: Piece
    out: np.ndarray  # of the whole read; the piece's target is cut from it


def jobs(entry: TensorEntry, spans: tuple[Span, ...], out: np.ndarray) -> Iterator[Job]:
    """What has to be done to fill ``out`` (words, one axis for each of ``spans``) from ``entry``."""
    assert entry.part is not None
    for piece in pieces(entry.part.grid, spans):
        yield Job(entry, piece, out)


def missing_chunk(key: str, *, where: str) -> CorruptError:
    return CorruptError(f"the chunk {key!r} is missing; restore the file from a copy", where=where, clause="payload-4")


def run(reader: Reader, todo: Iterable[Job], threads: int, done: Callable[[int], None] | None = None) -> None:
    """Carry out all jobs; ``done`` is told the bytes of each when it is finished. The first error ends the rest."""
    todo = iter(todo)
    first = list(itertools.islice(todo, 2))
    todo = itertools.chain(first, todo)
    if threads == 1 or len(first) < 2:  # starting threads takes as long as decoding a small tensor
        for job in todo:
            nbytes = _decode(reader, job)
            if done:
                done(nbytes)
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="mzstore-decode")
    pending: deque[Future[int]] = deque()

    def finish(most: int) -> None:
        while len(pending) > most:
            nbytes = pending.popleft().result()
            if done:
                done(nbytes)

    try:
        for job in todo:  # not all at once: there may be millions
            pending.append(pool.submit(_decode, reader, job))
            finish(JOBS_AHEAD * threads)
        finish(0)
    finally:
        pool.shutdown(cancel_futures=True)


def _decode(reader: Reader, job: Job) -> int:
    """Carry out one job; returns the bytes filled."""
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
        return target.nbytes
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
    return target.nbytes

"""Decode: carry out the chunk jobs of a read, straight into the caller's memory.

The steps of one job: fetch its payloads, check them, decompress, decode. Jobs are independent; threads share nothing.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np

from mzstore import fetch
from mzstore.container import Reader
from mzstore.documents import TensorEntry
from mzstore.dtypes import DType
from mzstore.encodings import read_chunk
from mzstore.encodings.combined import base_of
from mzstore.errors import CorruptError
from mzstore.narrow import convert
from mzstore.plan import Batch, Job, Unit, batches_for, missing_chunk
from mzstore.workspace import buffer

# Of values. Threads take turns in Python between the steps of a job, which in small jobs is most of the time.
BATCH_NBYTES = 1 << 20
BATCH_JOBS = 64  # a document may claim any number of chunks of a byte
BATCHES_AHEAD = 4  # for each thread: enough that a slow one stops none of them

Read = Callable[[str, str], memoryview | None]  # (key, slot) -> payload, valid until the next call with that slot


def bound(entry: TensorEntry, dtype: DType) -> TensorEntry:
    """``entry`` as a read in ``dtype`` sees it.

    The part gives values of ``dtype`` itself if it can (quantized ones are rounded but once); others are cast from what they are.
    """
    if entry.spec.dtype is dtype:
        return entry
    part = entry.part and (entry.part.into(dtype) or entry.part)
    return replace(entry, spec=replace(entry.spec, dtype=dtype), part=part)


def run(reader: Reader, todo: Iterable[Job], threads: int, done: Callable[[int], None] | None = None) -> None:
    """Carry out all jobs; ``done`` is told the bytes of those that are finished. The first error ends the rest."""
    if reader.local:
        _run_local(reader, todo, threads, done)
    else:
        _run_remote(reader, todo, threads, done)


def _run_remote(reader: Reader, todo: Iterable[Job], threads: int, done: Callable[[int], None] | None) -> None:
    def consume(batch: Batch, units: Sequence[Unit], answers: fetch.Answers) -> None:
        for unit in units:
            for job in unit.jobs:
                decode(job, lambda key, _: batch.payload(key, answers), reader.url)
        if done:
            done(sum(job.nbytes for unit in units for job in unit.jobs))

    planned = batches_for(todo, reader.extent, reader.url)
    if planned:
        operation = reader.start()
        try:
            fetch.run(planned, reader.fetch, consume, operation, threads, reader.stats)
        except CorruptError:
            reader.check_unchanged(reader.start())  # parts of two objects are no sign of damage
            raise
        reader.check_unchanged(operation)


def _run_local(reader: Reader, todo: Iterable[Job], threads: int, done: Callable[[int], None] | None) -> None:
    if threads > 1:
        batches = _batches(todo)
        first = list(itertools.islice(batches, 2))
        if len(first) == 2:
            _run_threads(reader, itertools.chain(first, batches), threads, done)
            return
        todo = [job for batch, _ in first for job in batch]  # starting threads takes as long as decoding these
    for job in todo:
        decode(job, reader.read_chunk, reader.url)
        if done:
            done(job.nbytes)


def _run_threads(
    reader: Reader, batches: Iterator[tuple[list[Job], int]], threads: int, done: Callable[[int], None] | None
) -> None:
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
        decode(job, reader.read_chunk, reader.url)


def decode(job: Job, read_payload: Read, url: str) -> None:
    """Fill what ``job`` is about, from payloads that ``read_payload`` gives; ``url`` is for errors."""
    entry, piece = job.entry, job.piece
    part = entry.part
    assert part is not None
    index: tuple[Any, ...] = (*piece.target, ...)
    target: np.ndarray = job.out[index]  # the dots keep a 0-d array an array
    where = f"{url}, tensor {entry.spec.name!r}, chunk {piece.chunk}"
    keys = job.keys

    def read(i: int) -> np.ndarray:
        component = part.components[i]
        payload = read_payload(keys[i], component.name)
        if payload is None:
            raise missing_chunk(keys[i], where=where)
        return read_chunk(component, payload, where=where)

    other = part.dtype != entry.spec.dtype
    if not other and _has_rows(target) and all(cut.step == 1 for cut in piece.source):
        part.decode(read, piece.source, target, where)
        return
    source = tuple(slice(cut.start, cut.stop) for cut in piece.source)
    shape = tuple(cut.stop - cut.start for cut in source)
    whole = (
        buffer("piece", int(np.prod(shape, dtype=np.int64)) * part.dtype.word.itemsize)
        .view(part.dtype.word)
        .reshape(shape)
    )
    taken = whole[tuple(slice(None, None, cut.step) for cut in piece.source)]
    if base_of(part):  # what is there are the values of the base
        assert not other
        taken[...] = target
    part.decode(read, source, whole, where)
    if other:
        convert(taken, part.dtype, entry.spec.dtype, target)
    else:
        target[...] = taken


def _has_rows(target: np.ndarray) -> bool:
    """Whether the words along the last axis of ``target`` lie side by side, and whole words lie between those before."""
    size = target.itemsize
    return target.flags.c_contiguous or (
        (target.shape[-1] == 1 or target.strides[-1] == size) and all(s >= 0 and not s % size for s in target.strides)
    )

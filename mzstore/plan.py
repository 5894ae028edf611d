"""Plan: which bytes a read needs, joined into requests. A value, made without I/O.

A job is one piece of one tensor. Its payloads lie at extents, which the container knows. Extents that lie side by side,
or nearly so, become one request; a batch is the requests whose answers are decoded together.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from mzstore.documents import TensorEntry
from mzstore.encodings import chunk_path
from mzstore.errors import CorruptError
from mzstore.extents import Extent, Request
from mzstore.grid import Piece, pieces
from mzstore.selection import Span
from mzstore.text import count, size

REQUEST_NBYTES = 8 << 20  # at most: some in flight fill any link, and decoding starts when the first is there
GAP_NBYTES = 64 << 10  # read and thrown away rather than asked for twice; at 1 Gb/s, half a millisecond
IN_FLIGHT_NBYTES = 64 << 20  # asked for, and not yet decoded


@dataclass(frozen=True, slots=True)
class Job:
    """One piece of a tensor and where its words go. ``entry`` is a stored tensor, never a reference."""

    entry: TensorEntry
    piece: Piece
    out: np.ndarray = field(compare=False)  # of the whole read; the piece's target is cut from it

    @property
    def nbytes(self) -> int:
        """Bytes of the words that it fills."""
        words: int = math.prod(cut.stop - cut.start for cut in self.piece.target)
        return words * self.out.itemsize

    @property
    def keys(self) -> tuple[str, ...]:
        """Of its payloads, one for each component."""
        part = self.entry.part
        assert part is not None
        return tuple(f"{self.entry.node}/{chunk_path(part, c, self.piece.chunk)}" for c in part.components)


def jobs(entry: TensorEntry, spans: tuple[Span, ...], out: np.ndarray) -> Iterator[Job]:
    """What has to be done to fill ``out`` (words, one axis for each of ``spans``) from ``entry``."""
    assert entry.part is not None
    for piece in pieces(entry.part.grid, spans):
        yield Job(entry, piece, out)


@dataclass(frozen=True, slots=True)
class Unit:
    """Jobs of the same payloads. They can be done when the bytes up to ``stop`` are there, of the object they lie in."""

    stop: int
    jobs: tuple[Job, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """What is fetched together: one request, but where payloads are larger or lie apart."""

    requests: tuple[Request, ...]
    extents: dict[str, Extent]  # by key
    units: tuple[Unit, ...]  # in the order in which they arrive
    nbytes: int  # that its answers take in memory; where an object's size is not known, what it has at most

    def payload(self, key: str, answers: dict[Request, memoryview]) -> memoryview:
        """The payload of ``key`` out of the answers to ``requests``."""
        extent = self.extents[key]
        if extent.stop is None:
            return answers[Request(extent.object, 0, None)]
        found = []
        for request, answer in answers.items():
            if request.object == extent.object and request.stop is not None:
                start, stop = max(request.start, extent.start), min(request.stop, extent.stop)
                if start < stop:
                    found.append((start, answer[start - request.start : stop - request.start]))
        found.sort(key=lambda piece: piece[0])
        return found[0][1] if len(found) == 1 else memoryview(b"".join(piece for _, piece in found))


@dataclass(frozen=True, slots=True)
class Plan:
    """What a read will do. Sizes are in bytes; None where only the answers will tell (the objects of a tree)."""

    batches: tuple[Batch, ...]
    result_nbytes: int
    wanted_nbytes: int | None = field(init=False)  # of the payloads
    fetched_nbytes: int | None = field(init=False)  # of them and of what lies between them in one request
    n_requests: int = field(init=False)
    memory_nbytes: int = field(init=False)  # at most, at any time: results, answers, and what one thread decodes

    def __post_init__(self) -> None:
        extents = {key: extent for batch in self.batches for key, extent in batch.extents.items()}.values()
        requests = [request for batch in self.batches for request in batch.requests if not request.held]
        chunk = max((_scratch_nbytes(unit.jobs[0]) for batch in self.batches for unit in batch.units), default=0)
        largest = max((batch.nbytes for batch in self.batches), default=0)
        flight = min(sum(batch.nbytes for batch in self.batches), max(IN_FLIGHT_NBYTES, largest))
        for name, value in (
            ("wanted_nbytes", _total(extents)),
            ("fetched_nbytes", _total(requests)),
            ("n_requests", len(requests)),
            ("memory_nbytes", self.result_nbytes + flight + chunk),
        ):
            object.__setattr__(self, name, value)

    def to_json(self) -> dict[str, int | None]:
        return {
            "result_nbytes": self.result_nbytes,
            "wanted_nbytes": self.wanted_nbytes,
            "fetched_nbytes": self.fetched_nbytes,
            "requests": self.n_requests,
            "memory_nbytes": self.memory_nbytes,
        }

    def lines(self) -> Iterator[str]:
        """For people."""
        chunks = sum(len(batch.extents) for batch in self.batches)
        unknown = "as much as the objects have"
        wanted = unknown if self.wanted_nbytes is None else size(self.wanted_nbytes)
        fetched = unknown if self.fetched_nbytes is None else size(self.fetched_nbytes)
        held = any(extent.held for batch in self.batches for extent in batch.extents.values())
        yield f"result   {size(self.result_nbytes)}"
        yield f"wanted   {wanted}, {count(chunks, 'chunk')}{', some of which came with the documents' if held else ''}"
        yield f"fetched  {fetched}, {count(self.n_requests, 'request')}"
        yield f"memory   {size(self.memory_nbytes)} at most"


def make(todo: Iterable[Job], locate: Callable[[str], Extent | None], result_nbytes: int, url: str) -> Plan:
    """The plan for ``todo``. Raises CorruptError, which names ``url``, for a chunk that is not there."""
    groups: dict[tuple[str, ...], list[Job]] = {}
    for job in todo:
        groups.setdefault(job.keys, []).append(job)
    units = []
    for keys, group in groups.items():
        extents = {}
        for key in keys:
            extent = locate(key)
            if extent is None:
                first = group[0]
                raise missing_chunk(key, where=f"{url}, tensor {first.entry.spec.name!r}, chunk {first.piece.chunk}")
            extents[key] = extent
        units.append((extents, group))
    units.sort(key=lambda unit: min((extent.object, extent.start) for extent in unit[0].values()))
    batches: list[Batch] = []
    open_: list[tuple[dict[str, Extent], list[Job]]] = []
    span: Request | None = None  # of the open ones
    for extents, group in units:
        ranges = _joined(extents.values())
        wider = _joined([span, *ranges]) if span else ranges
        if len(wider) > 1 or wider[0].stop is None or wider[0].stop - wider[0].start > REQUEST_NBYTES:
            if open_:
                batches.append(_batch(open_))
            open_, wider = [], ranges
        open_.append((extents, group))
        span = wider[0] if len(wider) == 1 else None
        if span is None:
            batches.append(_batch(open_))
            open_ = []
    if open_:
        batches.append(_batch(open_))
    return Plan(tuple(batches), result_nbytes)


def _batch(members: list[tuple[dict[str, Extent], list[Job]]]) -> Batch:
    extents = {key: extent for unit, _ in members for key, extent in unit.items()}
    units = [Unit(max(extent.stop or 0 for extent in unit.values()), tuple(group)) for unit, group in members]
    units.sort(key=lambda unit: unit.stop)
    requests: list[Request] = []
    nbytes = 0
    for span in _joined(extents.values()):
        if span.stop is None:
            requests.append(span)
            continue
        length = span.stop - span.start
        nbytes += length
        step = -(-length // max(1, -(-length // REQUEST_NBYTES)))
        requests += (
            Request(span.object, start, min(start + step, span.stop), span.held)
            # One also for no byte, which a damaged container may claim to be a payload.
            for start in range(span.start, max(span.stop, span.start + 1), max(1, step))
        )
    if any(extent.stop is None for extent in extents.values()):
        nbytes += sum(_scratch_nbytes(job) for unit in units for job in unit.jobs)
    return Batch(tuple(requests), extents, tuple(units), nbytes)


def _joined(extents: "Iterable[Extent | Request]") -> list[Request]:
    """The fewest requests for ``extents``, of any size."""
    found: list[Request] = []
    for extent in sorted(extents, key=lambda e: (e.object, e.start)):
        last = found[-1] if found else None
        if (
            last is None
            or last.stop is None
            or extent.stop is None
            or (last.object, last.held) != (extent.object, extent.held)
        ):
            near = False
        else:
            near = extent.start - last.stop <= GAP_NBYTES
        if last and last.stop is not None and extent.stop is not None and near:
            found[-1] = Request(last.object, last.start, max(last.stop, extent.stop), last.held)
        else:
            found.append(Request(extent.object, extent.start, extent.stop, extent.held))
    return found


def _total(ranges: "Iterable[Extent | Request]") -> int | None:
    sizes = [None if r.stop is None else r.stop - r.start for r in ranges]
    return None if None in sizes else sum(size for size in sizes if size is not None)


def _scratch_nbytes(job: Job) -> int:
    """Bytes that decoding ``job`` needs at most: its chunks, and their top fields."""
    assert job.entry.part is not None
    return 2 * sum(component.array.chunk_nbytes for component in job.entry.part.components)


def missing_chunk(key: str, *, where: str) -> CorruptError:
    return CorruptError(f"the chunk {key!r} is missing; restore the file from a copy", where=where, clause="payload-4")

"""Plan: which bytes a read needs, joined into requests. A value, made without I/O.

A job is one piece of one tensor. Its payloads lie at extents, which the container knows. Extents that lie side by side,
or nearly so, become one request; a batch is the requests whose answers are decoded together.
"""

import math
import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mzstore import garbage
from mzstore.documents import TensorEntry
from mzstore.encodings import chunk_path
from mzstore.errors import CorruptError
from mzstore.extents import Extent, Request
from mzstore.grid import Piece, pieces
from mzstore.payload import payload_limit
from mzstore.selection import Span
from mzstore.text import count, shown, size

REQUEST_NBYTES = 8 << 20  # at most: some in flight fill any link, and decoding starts when the first is there
GAP_NBYTES = 64 << 10  # read and thrown away rather than asked for twice; at 1 Gb/s, half a millisecond
IN_FLIGHT_NBYTES = 64 << 20  # asked for, and not yet decoded
_PLACE = operator.attrgetter("object", "start")
MAX_OBJECTS = 1 << 18  # of a tree, in one read: a terabyte in chunks of 4 MiB


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
        node, chunk = self.entry.node, self.piece.chunk
        return tuple([f"{node}/{chunk_path(part, component, chunk)}" for component in part.components])


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
            return answers[Request(extent.object, 0, None, limit=extent.limit)]
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
    """What a read will do. Sizes are in bytes; None where only the answers will tell (the objects of a tree).

    bases        (url, plan) of the models whose values are read first; sizes and requests are those of all together
    held_nbytes  of values that are read in another dtype before they are what is wanted
    """

    batches: tuple[Batch, ...]
    result_nbytes: int
    bases: "tuple[tuple[str, Plan], ...]" = ()
    held_nbytes: int = 0
    wanted_nbytes: int | None = field(init=False)  # of the payloads
    fetched_nbytes: int | None = field(init=False)  # of them and of what lies between them in one request
    n_requests: int = field(init=False)
    memory_nbytes: int = field(init=False)  # at most, at any time: results, answers, and what one thread decodes

    def __post_init__(self) -> None:
        extents = [extent for batch in self.batches for extent in batch.extents.values()]
        requests = [request for batch in self.batches for request in batch.requests if not request.held]
        entries = {id(unit.jobs[0].entry): unit.jobs[0].entry for batch in self.batches for unit in batch.units}
        chunk = max((_scratch_nbytes(entry) for entry in entries.values()), default=0)
        largest = max((batch.nbytes for batch in self.batches), default=0)
        flight = min(sum(batch.nbytes for batch in self.batches), max(IN_FLIGHT_NBYTES, largest))
        plans = [plan for _, plan in self.bases]
        for name, value in (
            ("wanted_nbytes", _sum([_total(extents), *(plan.wanted_nbytes for plan in plans)])),
            ("fetched_nbytes", _sum([_total(requests), *(plan.fetched_nbytes for plan in plans)])),
            ("n_requests", len(requests) + sum(plan.n_requests for plan in plans)),
            # One after the other, into the same results.
            (
                "memory_nbytes",
                self.result_nbytes + self.held_nbytes + max([flight + chunk, *(plan.memory_nbytes for plan in plans)]),
            ),
        ):
            object.__setattr__(self, name, value)

    def to_json(self) -> dict[str, Any]:
        doc: dict[str, Any] = {
            "result_nbytes": self.result_nbytes,
            "wanted_nbytes": self.wanted_nbytes,
            "fetched_nbytes": self.fetched_nbytes,
            "requests": self.n_requests,
            "memory_nbytes": self.memory_nbytes,
        }
        return doc | ({"bases": [{"url": url, **plan.to_json()} for url, plan in self.bases]} if self.bases else {})

    def lines(self) -> Iterator[str]:
        """For people."""
        unknown = "as much as the objects have"
        wanted = unknown if self.wanted_nbytes is None else size(self.wanted_nbytes)
        fetched = unknown if self.fetched_nbytes is None else size(self.fetched_nbytes)
        extents = list(self._extents())
        chunks, held = len(extents), any(extent.held for extent in extents)
        yield f"result   {size(self.result_nbytes)}"
        yield f"wanted   {wanted}, {count(chunks, 'chunk')}{', some of which came with the documents' if held else ''}"
        yield f"fetched  {fetched}, {count(self.n_requests, 'request')}"
        yield f"memory   {size(self.memory_nbytes)} at most"
        for url, plan in self.bases:
            part = "unknown" if plan.fetched_nbytes is None else size(plan.fetched_nbytes)
            yield f"  of which base {shown(url)}: {part}, {count(plan.n_requests, 'request')}"

    def _extents(self) -> Iterator[Extent]:
        """Of all payloads, also those of bases."""
        for batch in self.batches:
            yield from batch.extents.values()
        for _, plan in self.bases:
            yield from plan._extents()


def make(todo: Iterable[Job], locate: Callable[[str, int], Extent | None], result_nbytes: int, url: str) -> Plan:
    """The plan for ``todo``. ``locate`` is told a key and how many bytes its payload has at most.

    Raises what ``batches_for`` does.
    """
    return Plan(batches_for(todo, locate, url), result_nbytes)


def batches_for(todo: Iterable[Job], locate: Callable[[str, int], Extent | None], url: str) -> tuple[Batch, ...]:
    """The batches of the plan for ``todo``, which are all that is needed to carry it out.

    Raises CorruptError, which names ``url``, for a chunk that is not there, and ValueError for too many objects: a
    document may claim any number of chunks, and of a tree nobody knows which are there.
    """
    with garbage.ignored():
        return tuple(_batches(_located(todo, locate, url)))


@dataclass(slots=True)
class _Member:
    """Jobs of the same payloads, and where these lie."""

    keys: tuple[str, ...]
    extents: list[Extent]
    jobs: list[Job]

    @property
    def place(self) -> tuple[str, int]:
        place: tuple[str, int] = min(map(_PLACE, self.extents))
        return place

    @property
    def stop(self) -> int:
        return max([extent.stop or 0 for extent in self.extents])


@dataclass(slots=True)
class _Run:
    """Members that lie side by side, or nearly so."""

    span: Request
    stop: int  # up to where they reach by now
    members: list[_Member]

    def add(self, member: _Member) -> bool:
        """Whether ``member``, which does not begin before the others, can be fetched with them by one request."""
        stop, span = self.stop, self.span
        for extent in sorted(member.extents, key=_PLACE):
            if (
                extent.stop is None
                or extent.start - stop > GAP_NBYTES
                or extent.object != span.object
                or extent.held != span.held
            ):
                return False
            stop = max(stop, extent.stop)
        if stop - span.start > REQUEST_NBYTES:
            return False
        self.stop = stop
        self.members.append(member)
        return True

    def batch(self) -> Batch:
        return _batch(self.members, [Request(self.span.object, self.span.start, self.stop, self.span.held)])


def _located(todo: Iterable[Job], locate: Callable[[str, int], Extent | None], url: str) -> list[_Member]:
    """The jobs, those of the same payloads together. Each payload is looked up when it first occurs."""
    found: dict[tuple[str, ...], _Member] = {}
    n_objects = 0
    for job in todo:
        keys = job.keys
        member = found.get(keys)
        if member:
            member.jobs.append(job)
            continue
        assert job.entry.part is not None
        extents = []
        for key, component in zip(keys, job.entry.part.components, strict=True):
            extent = locate(key, payload_limit(component.array.chunk_nbytes))
            if extent is None:
                where = f"{url}, tensor {job.entry.spec.name!r}, chunk {job.piece.chunk}"
                raise missing_chunk(key, where=where)
            n_objects += extent.stop is None
            extents.append(extent)
        if n_objects > MAX_OBJECTS:
            raise ValueError(
                f"{url!r} is a tree, of which at most {MAX_OBJECTS:,} objects can be read at once; read fewer tensors, "
                "or parts of them, at a time"
            )
        found[keys] = _Member(keys, extents, [job])
    return list(found.values())


def _batches(members: list[_Member]) -> Iterator[Batch]:
    members.sort(key=lambda member: member.place)
    run: _Run | None = None
    for member in members:
        if run and run.add(member):
            continue
        if run:
            yield run.batch()
            run = None
        ranges = _joined(member.extents)
        if len(ranges) == 1 and ranges[0].stop is not None:
            run = _Run(ranges[0], ranges[0].stop, [member])
        else:
            yield _batch([member], ranges)
    if run:
        yield run.batch()


def _batch(members: list[_Member], ranges: list[Request]) -> Batch:
    """``ranges`` are those of all ``members``."""
    extents = {key: extent for member in members for key, extent in zip(member.keys, member.extents, strict=True)}
    units = [Unit(member.stop, tuple(member.jobs)) for member in members]
    units.sort(key=lambda unit: unit.stop)
    requests: list[Request] = []
    nbytes = 0
    for span in ranges:
        if span.stop is None:
            requests.append(span)
            nbytes += span.limit or 0
            continue
        length = span.stop - span.start
        nbytes += length
        step = -(-length // max(1, -(-length // REQUEST_NBYTES)))
        requests += (
            Request(span.object, start, min(start + step, span.stop), span.held)
            # One also for no byte, which a damaged container may claim to be a payload.
            for start in range(span.start, max(span.stop, span.start + 1), max(1, step))
        )
    return Batch(tuple(requests), extents, tuple(units), nbytes)


def _joined(extents: list[Extent]) -> list[Request]:
    """The fewest requests for ``extents``, of any size."""
    found: list[Request] = []
    for extent in sorted(extents, key=_PLACE):
        last = found[-1] if found else None
        if (
            last is None
            or last.stop is None
            or extent.stop is None
            or extent.start - last.stop > GAP_NBYTES
            or (last.object, last.held) != (extent.object, extent.held)
        ):
            found.append(Request(extent.object, extent.start, extent.stop, extent.held, extent.limit))
        elif extent.stop > last.stop:
            found[-1] = Request(last.object, last.start, extent.stop, last.held)
    return found


def _total(ranges: "Iterable[Extent | Request]") -> int | None:
    return _sum([None if r.stop is None else r.stop - r.start for r in ranges])


def _sum(sizes: list[int | None]) -> int | None:
    return None if None in sizes else sum(size for size in sizes if size is not None)


def _scratch_nbytes(entry: TensorEntry) -> int:
    """Bytes that decoding a chunk of ``entry`` needs at most: its components' chunks, what its part makes of them, and its
    values, twice where they are cast, before they are put where they belong.
    """
    part = entry.part
    assert part is not None
    words = math.prod(min(c, n) for c, n in zip(part.grid.chunk_shape, part.grid.shape, strict=True))
    itemsize = part.dtype.word.itemsize
    if part.dtype is not entry.spec.dtype:
        itemsize += entry.spec.dtype.word.itemsize
    return sum(component.array.chunk_nbytes for component in part.components) + part.scratch_nbytes + words * itemsize


def missing_chunk(key: str, *, where: str) -> CorruptError:
    return CorruptError(f"the chunk {key!r} is missing; restore the file from a copy", where=where, clause="payload-4")

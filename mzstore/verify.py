"""Verify: check everything that a container holds, and go on behind what is broken.

Values are decoded just as a read decodes them, by row blocks, and thrown away. Where that fails, every
component of the chunk is looked at on its own, so that the report names all that is broken.
"""

import contextlib
import hashlib
import json
import math
import os
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mzstore import composite, kernels
from mzstore.archive import STORED, ArchiveReader
from mzstore.bases import BaseLocations, Bases, Family, OpenModel, Place, Wanted, fill_bases, locate
from mzstore.container import Reader, open_reader, read_model
from mzstore.decode import decode
from mzstore.documents import DOCUMENT, MAX_DOCUMENT_NBYTES, Asset, Layout, ModelDocument, TensorEntry, load
from mzstore.encodings import chunk_path, read_chunk
from mzstore.encodings.combined import base_of
from mzstore.encodings.raw import Raw
from mzstore.errors import CorruptError, FormatError, MzError, StorageError
from mzstore.formats.layouts import MAX_LAYOUT_NBYTES, mismatch, parse
from mzstore.formats.spliced import FORMAT as SPLICED
from mzstore.frameworks import check_memory
from mzstore.grid import Grid, whole_piece
from mzstore.manifest import ArchiveRef
from mzstore.model import asset_blocks, check_threads
from mzstore.payload import unseal
from mzstore.plan import Job
from mzstore.progress import progress
from mzstore.selection import Span
from mzstore.sources import LayoutSource
from mzstore.stats import Stats
from mzstore.storage import BLOCK_NBYTES, Folder, Location, Operation, Options, open_location

DIGEST_NBYTES = 64 << 20  # of an archive at a time: remote storage is asked for many parts of it at once


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is broken.

    kind    ``container`` (directory, headers), ``document``, ``missing`` (chunk), ``chunk``, ``tensor`` (its digest),
            ``base`` (a model that this one refers to: missing, another one, or broken itself), ``asset``, ``layout``, ``stray`` (stored, and nothing asks for it)
    key     in the container; empty for the container itself. Of a manifest, it begins with the path of the archive
    clause  the rule of FORMAT.md that is broken
    """

    kind: str
    text: str
    key: str = ""
    tensor: str | None = None  # "" is a name
    chunk: tuple[int, ...] | None = None
    clause: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "text": self.text,
            "key": self.key or None,
            "tensor": self.tensor,
            "chunk": None if self.chunk is None else list(self.chunk),
            "clause": self.clause or None,
        }

    def __str__(self) -> str:
        place = [repr(self.key)] if self.key else []
        if self.tensor is not None:
            place = [f"tensor {self.tensor!r}"]
            place += [f"chunk {list(self.chunk)}"] if self.chunk is not None else []
        where = f"{', '.join(place)}: " if place else ""
        return f"{where}{self.text}" + (f" (FORMAT.md {self.clause})" if self.clause else "")


@dataclass(frozen=True, slots=True)
class Report:
    """What ``verify`` found: every problem, and how much was checked."""

    location: str
    problems: tuple[Problem, ...]
    tensors: int = 0
    chunks: int = 0
    nbytes: int = 0  # of values, decoded
    assets: int = 0

    @property
    def ok(self) -> bool:
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """What ``mzstore verify --json`` prints. Members may be added, and none changes its meaning."""
        return {
            "location": self.location,
            "ok": self.ok,
            "tensors": self.tensors,
            "chunks": self.chunks,
            "nbytes": self.nbytes,
            "assets": self.assets,
            "problems": [problem.to_json() for problem in self.problems],
        }


def verify(
    location: Location,
    *,
    threads: int | None = None,
    show_progress: bool | None = None,
    storage_options: Options = None,
    bases: BaseLocations | None = None,
) -> Report:
    """Check all of an archive or a tree: every header, checksum, document, chunk, digest, and that nothing is
    missing or too much; of a manifest all of its archives, and that they are those that it was made of. Of the models that it refers to, the values that it begins with are read; ``bases``: see ``open``.

    What is broken becomes a ``Problem`` of the report. Raises only where the question cannot be answered: StorageError
    if reading fails, UnsupportedError if the model needs a newer mzstore.
    """
    if composite.is_manifest(location):
        (report,) = verify_manifests(
            [location], threads=threads, show_progress=show_progress, storage_options=storage_options, bases=bases
        )
        return report
    with contextlib.closing(Family(None, Stats(), bases)) as family:
        return _container(location, storage_options, family, check_threads(threads), show_progress)


def _container(
    location: Location, options: Options, family: Family, threads: int, show_progress: bool | None
) -> Report:
    try:
        reader = open_reader(location, options)
    except (FormatError, CorruptError) as error:
        name = "<memory>" if isinstance(location, (bytes, bytearray, memoryview)) else str(location)
        return Report(name, (_problem("container", error),))
    with contextlib.closing(reader):
        return _Verifier(reader, Bases(Place.of(location, options), family), threads, show_progress).report()


def verify_manifests(
    locations: Sequence[Location],
    *,
    threads: int | None = None,
    show_progress: bool | None = None,
    storage_options: Options = None,
    bases: BaseLocations | None = None,
) -> list[Report]:
    """As ``verify`` of each, but an archive that several of them name is checked once. Of one that others change, values are read
    again for each of these."""
    with contextlib.closing(_Manifests(check_threads(threads), show_progress, storage_options, bases)) as run:
        return [run.report(location) for location in locations]


class _Manifests:
    def __init__(self, threads: int, show_progress: bool | None, options: Options, bases: BaseLocations | None) -> None:
        self._threads, self._show_progress, self._options, self._bases = threads, show_progress, options, bases
        self._family = Family(None, Stats(), bases)
        self._checked: dict[object, tuple[list[Problem], Report | None]] = {}  # archives, by place, size and digest

    def close(self) -> None:
        self._family.close()

    def report(self, location: Location) -> Report:
        name = os.fspath(location) if isinstance(location, os.PathLike) else str(location)
        try:
            manifest = composite.read_manifest(location, self._options)
        except (FormatError, CorruptError) as error:
            return Report(name, (_problem("document", error),))
        place = Place.of(location, self._options)
        problems: list[Problem] = []
        reports = []
        for ref in manifest.archives:
            found, report = self._archive(ref, place)
            problems += [replace(each, key=f"{ref.path}/{each.key}" if each.key else ref.path) for each in found]
            if report:
                reports.append(report)
        archives = composite.Archives(manifest, place, self._family)
        for tensor in manifest.tensors.values():
            for piece in tensor.pieces:
                try:
                    archives.stored(piece, tensor.spec.dtype)
                except (FormatError, CorruptError) as error:
                    problems.append(_problem("tensor", error, archives.path(piece), tensor.spec.name))
                except StorageError:
                    pass  # it is among the problems
        return Report(
            name,
            tuple(problems),
            len(manifest.tensors),
            sum(report.chunks for report in reports),
            sum(report.nbytes for report in reports),
            sum(report.assets for report in reports),
        )

    def _archive(self, ref: ArchiveRef, beside: Place) -> tuple[list[Problem], Report | None]:
        """What is wrong with an archive, and what was checked of it."""
        try:
            there = locate(ref.path, beside)
        except ValueError as error:
            return [Problem("missing", str(error), clause="manifest-4")], None
        key = there.identity, ref.nbytes, ref.sha256
        if key not in self._checked:
            self._checked[key] = self._check(ref, there)
        return self._checked[key]

    def _check(self, ref: ArchiveRef, there: Place) -> tuple[list[Problem], Report | None]:
        assert there.location is not None
        found: list[Problem] = []
        try:
            if problem := _whole(ref, there):
                found.append(problem)
                if problem.kind == "missing":
                    return found, None
            with contextlib.closing(Family(None, Stats(), self._bases)) as family:
                report = _container(there.location, there.options, family, self._threads, self._show_progress)
        except StorageError as error:  # the others may be whole
            return [*found, _problem("missing", error)], None
        return [*found, *report.problems], report


def _whole(ref: ArchiveRef, place: Place) -> Problem | None:
    """What is wrong with an archive as a whole: another size or digest than ``ref`` says."""
    assert place.location is not None
    blob = open_location(place.location, place.options)
    if isinstance(blob, Folder):
        return Problem("missing", "there is no such archive", clause="manifest-4")
    with contextlib.closing(blob):
        if blob.nbytes != ref.nbytes:
            text = f"it has {blob.nbytes} bytes, and was written with {ref.nbytes}"
            return Problem("container", text, clause="manifest-4")
        digest, operation = hashlib.sha256(), blob.start()
        for start in range(0, blob.nbytes, DIGEST_NBYTES):
            digest.update(blob.read(start, min(start + DIGEST_NBYTES, blob.nbytes), operation=operation))
    if digest.hexdigest() != ref.sha256:
        return Problem(
            "container", "it does not have the digest (sha256) that the manifest states", clause="manifest-4"
        )
    return None


def _problem(
    kind: str, error: MzError, key: str = "", tensor: str | None = None, chunk: tuple[int, ...] | None = None
) -> Problem:
    return Problem(kind, error.problem, key, tensor, chunk, error.clause)


class _CheckedReader:
    """A reader that also checks what no ordinary read looks at: local headers, and the CRC-32 of chunks."""

    def __init__(self, reader: Reader) -> None:
        self._reader, self.url = reader, reader.url
        self._archive = reader if isinstance(reader, ArchiveReader) else None
        self.touched: set[str] = set()
        self.broken_headers: dict[str, Problem] = {}

    @property
    def is_archive(self) -> bool:
        return self._archive is not None

    def start(self) -> Operation:
        return self._reader.start()

    def nbytes(self, key: str, operation: Operation | None = None) -> int | None:
        return self._reader.nbytes(key, operation)

    def read_chunk(self, key: str, slot: str) -> memoryview | None:
        entry = self._archive.entries.get(key) if self._archive else None
        self.touched.add(key)
        if not self._archive or entry is None or entry.method != STORED:
            return self._reader.read_chunk(key, slot)
        # Header and content in one request: over a network, a second one would cost as much again.
        data = self._archive.blob.read(entry.header, entry.start + entry.stored_nbytes, slot)
        split = entry.start - entry.header
        self._check_header(key, bytes(data[:split]))
        payload = data[split:]
        if zlib.crc32(payload) != entry.crc32:
            unseal(payload, where=self.url)  # where the chunk's own checksum fails too, that is what to report
            raise CorruptError("the CRC-32 of the entry does not hold", where=self.url, clause="zip-7")
        return payload

    def read_document(self, key: str, limit: int, operation: Operation | None = None) -> bytes | None:
        self._touch(key)
        return self._reader.read_document(key, limit, operation)

    def read_blocks(self, key: str, block_nbytes: int, operation: Operation) -> Iterator[memoryview]:
        self._touch(key)
        return self._reader.read_blocks(key, block_nbytes, operation)

    def keys(self) -> Iterator[str]:
        return self._reader.keys()

    def sizes(self) -> dict[str, int]:
        return self._reader.sizes()

    def close(self) -> None:
        self._reader.close()

    def check_entry(self, key: str) -> None:
        """Read an entry of which nothing is known, for its CRC-32. A tree has no such checksums."""
        if not self._archive:
            return
        if self._archive.entries[key].method == STORED:
            for _ in self.read_blocks(key, BLOCK_NBYTES, self.start()):
                pass
        else:
            self.read_document(key, MAX_DOCUMENT_NBYTES)

    def _touch(self, key: str) -> None:
        entry = self._archive.entries.get(key) if self._archive else None
        if self._archive and entry and key not in self.touched:
            self._check_header(key, bytes(self._archive.blob.read(entry.header, entry.start)))
        self.touched.add(key)

    def _check_header(self, key: str, data: bytes) -> None:
        assert self._archive is not None
        try:
            self._archive.check_local_header(self._archive.entries[key], data)
        except CorruptError as error:
            self.broken_headers[key] = _problem("container", error, key)


@dataclass(slots=True)
class _Findings:
    """Of one tensor."""

    problems: list[Problem] = field(default_factory=list)
    chunks: int = 0
    nbytes: int = 0


class _Verifier:
    def __init__(self, reader: Reader, bases: Bases, threads: int, show_progress: bool | None) -> None:
        self._original, self._bases = reader, bases
        self._lost: dict[int, MzError] = {}  # bases that nobody need look for again
        self._reader, self._threads, self._show_progress = _CheckedReader(reader), threads, show_progress
        self._stored: dict[str, None] = {}
        self._not_walked: set[str] = set()  # nodes whose chunks were not all asked for
        self._stop = threading.Event()

    def report(self) -> Report:
        problems: list[Problem] = []
        found: list[_Findings] = []
        model = None
        try:
            model = read_model(self._reader)
        except (FormatError, CorruptError) as error:
            problems.append(_problem("document", error, DOCUMENT))
            if not self._reader.is_archive:  # any directory is a tree without a root; do not walk all of a disk
                return Report(self._reader.url, tuple(problems))
        self._stored = dict.fromkeys(self._reader.keys())
        if model:
            problems += self._documents()
            opened = OpenModel(self._original, model, self._bases)
            self._bases.family.add(opened)
            found = self._tensors(opened)
            problems += [problem for findings in found for problem in findings.problems]
            problems += [problem for asset in model.assets for problem in self._asset(asset)]
            problems += [problem for layout in model.layouts for problem in self._layout(layout, model)]
        problems += self._rest(model)
        headers = [self._reader.broken_headers[key] for key in self._stored if key in self._reader.broken_headers]
        return Report(
            self._reader.url,
            (*headers, *problems),
            len(found),
            sum(findings.chunks for findings in found),
            sum(findings.nbytes for findings in found),
            len(model.assets) if model else 0,
        )

    def _documents(self) -> Iterator[Problem]:
        """Every node's own document is the same as its copy in the root document."""
        for node, copy in self._copies().items():
            key = f"{node}/{DOCUMENT}"
            try:
                data = self._reader.read_document(key, MAX_DOCUMENT_NBYTES)
                if data is None:
                    yield Problem("document", "the document is missing", key, clause="document-4")
                elif _canonical(load(data, where=key)) != _canonical(copy):
                    yield Problem("document", "the document and its copy in the root differ", key, clause="document-4")
            except (FormatError, CorruptError) as error:
                yield _problem("document", error, key)

    def _copies(self) -> dict[str, object]:
        data = self._reader.read_document(DOCUMENT, MAX_DOCUMENT_NBYTES)
        assert data is not None, "read_model has read it"
        copies: dict[str, object] = load(data, where=DOCUMENT)["consolidated_metadata"]["metadata"]
        return copies

    def _tensors(self, model: OpenModel) -> list[_Findings]:
        entries = list(model.document.tensors.values())
        total = sum(entry.spec.nbytes for entry in entries if entry.part)
        kernels.expect(total)
        with progress("verify", total, self._show_progress) as done:
            if self._threads == 1:
                return [self._tensor(model, entry, done) for entry in entries]
            pool = ThreadPoolExecutor(self._threads, thread_name_prefix="mzstore-verify")
            try:
                return list(pool.map(lambda entry: self._tensor(model, entry, done), entries))
            finally:
                self._stop.set()
                pool.shutdown(cancel_futures=True)

    def _tensor(self, model: OpenModel, entry: TensorEntry, done: Callable[[int], None]) -> _Findings:
        findings = _Findings()
        part = entry.part
        if part is None:  # parsing has compared it with the tensor that it refers to
            return findings
        constant = isinstance(part, Raw) and part.constant
        findings.chunks = entry.n_chunks
        if findings.chunks > len(self._stored):  # do not walk a grid that somebody made up
            text = f"it has {findings.chunks} chunks, the container holds only {len(self._stored)} objects"
            findings.problems.append(Problem("missing", text, entry.node, entry.spec.name, clause="payload-4"))
            self._not_walked.add(entry.node)
            return findings
        digest = hashlib.sha256()
        for _, shape, chunks in part.grid.row_blocks():
            if self._stop.is_set():
                return findings
            check_memory(math.prod(shape) * entry.spec.dtype.word.itemsize)
            block = np.empty(shape, entry.spec.dtype.word)
            if problem := self._base(model, entry, part.grid, chunks, block):
                findings.problems.append(problem)
                self._not_walked.add(entry.node)
                return findings
            for chunk in chunks if part.components else ():
                job = Job(entry, whole_piece(part.grid, chunk), block)
                try:
                    decode(job, self._reader.read_chunk, self._reader.url)
                except (FormatError, CorruptError) as error:
                    findings.problems += self._chunk(entry, chunk, error)
                    if constant:  # the one chunk that there is
                        return findings
            digest.update(block.reshape(-1).view(np.uint8).data)
            findings.nbytes += block.nbytes
            done(block.nbytes)
        if not findings.problems and digest.hexdigest() != entry.sha256:
            text = "the values do not have the digest (sha256) that the document states"
            findings.problems.append(Problem("tensor", text, entry.node, entry.spec.name, clause="digest-2"))
        return findings

    def _base(
        self, model: OpenModel, entry: TensorEntry, grid: Grid, chunks: list[tuple[int, ...]], block: np.ndarray
    ) -> Problem | None:
        """Fill ``block``, in which ``chunks`` lie, with what the tensor begins with, if that is in another model."""
        part = base_of(entry.part) if entry.part else None
        if part is None:
            return None
        first, last = grid.box(chunks[0]), grid.box(chunks[-1])
        spans = tuple(Span(a.start, b.stop - a.start) for a, b in zip(first, last, strict=True))
        try:
            if part.base in self._lost:
                raise self._lost[part.base]
            fill_bases(model, [Wanted(entry, spans, block)])
        except MzError as error:
            if isinstance(error, StorageError):
                self._lost[part.base] = error
            return Problem("base", str(error), entry.node, entry.spec.name, clause=error.clause)
        return None

    def _chunk(self, entry: TensorEntry, chunk: tuple[int, ...], error: MzError) -> list[Problem]:
        """What is wrong with a chunk that could not be decoded."""
        assert entry.part is not None
        found = []
        for component in entry.part.components:
            key, name = f"{entry.node}/{chunk_path(entry.part, component, chunk)}", entry.spec.name
            try:
                payload = self._reader.read_chunk(key, component.name)
                if payload is None:
                    text = f"the chunk {key!r} is missing"
                    found.append(Problem("missing", text, key, name, chunk, "payload-4"))
                else:
                    read_chunk(component, payload, where=key)
            except (FormatError, CorruptError) as own:
                found.append(_problem("chunk", own, key, name, chunk))
        return found or [_problem("chunk", error, entry.node, entry.spec.name, chunk)]

    def _asset(self, asset: Asset) -> Iterator[Problem]:
        try:
            for _ in asset_blocks(self._reader, asset):
                pass
        except (FormatError, CorruptError) as error:
            yield _problem("asset", error, asset.key)

    def _layout(self, layout: Layout, model: ModelDocument) -> Iterator[Problem]:
        try:
            raw = self._reader.read_document(layout.key, MAX_LAYOUT_NBYTES)
            if raw is None:
                yield Problem("layout", f"the layout of {layout.path!r} is missing", layout.key, clause="layout-1")
                return
            source = LayoutSource(layout.path, raw, layout.prefix, layout.format, layout.kind)
            name = mismatch(parse(source, where=layout.key), {name: e.spec for name, e in model.tensors.items()})
        except (FormatError, CorruptError) as error:
            problem = _problem("layout", error, layout.key)
            yield problem if problem.clause else replace(problem, clause="layout-2")
            return
        if name is not None:
            text = f"the layout of {layout.path!r} has a tensor {name!r} that the model has not, or not so"
            yield Problem("layout", text, layout.key, clause="layout-3" if layout.format == SPLICED else "layout-2")

    def _rest(self, model: ModelDocument | None) -> Iterator[Problem]:
        """What is stored and was not read: nothing asks for it, or the documents cannot be read."""
        files = {asset.key for asset in model.assets} | {layout.key for layout in model.layouts} if model else set()
        for key in self._stored:
            if key in self._reader.touched:
                continue
            if model and key not in files and key.partition("/")[0] not in self._not_walked:
                yield Problem("stray", "nothing in the model asks for it", key, clause="key-3")
            try:
                self._reader.check_entry(key)
            except (FormatError, CorruptError) as error:
                yield _problem("container", error, key)


def _canonical(doc: object) -> str:
    """The same text for documents that mean the same, and for no others (1, 1.0 and true differ)."""
    return json.dumps(doc, sort_keys=True)

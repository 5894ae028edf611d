"""Composite: the archives of a manifest as one model (FORMAT.md section 10).

A read of a tensor becomes reads of the pieces that it touches. The jobs of all pieces, in whatever archives they lie, are
carried out by one plan; an archive is opened when a piece of it is read for the first time.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mzstore.archive import ArchiveReader
from mzstore.bases import Family, Opened, Place, Wanted, locate
from mzstore.decode import bound
from mzstore.documents import ModelDocument, TensorEntry
from mzstore.dtypes import DType
from mzstore.encodings import Component
from mzstore.errors import CorruptError, FormatError, StorageError
from mzstore.extents import Extent, Request
from mzstore.grid import Grid, choose_chunk_shape
from mzstore.manifest import MAX_NBYTES, SUFFIX, Manifest, Piece
from mzstore.selection import Span
from mzstore.stats import Stats
from mzstore.storage import Folder, Location, OnBytes, Operation, Options, Retry, open_location, without_secrets
from mzstore.tensors import TensorSpec

AT_A_TIME = 16  # archives that are being opened
AHEAD_NBYTES = 1 << 20  # of a manifest, read at once


@dataclass(frozen=True, slots=True)
class Tiled:
    """What stands for the part of a tensor whose values lie in archives. It has no document, and no chunk of its own.

    spec   of all of the tensor
    dtype  that the read asks for
    """

    spec: TensorSpec
    dtype: DType
    grid: Grid  # of the row blocks in which all of it is best read
    pieces: tuple[Piece, ...]
    components: tuple[Component, ...] = ()

    @property
    def encoding(self) -> str:
        return "pieces"

    @property
    def scratch_nbytes(self) -> int:
        return 0

    @property
    def whole(self) -> Piece | None:
        """The piece that is all of the tensor, if it is one."""
        return self.pieces[0] if len(self.pieces) == 1 and self.pieces[0].shape == self.spec.shape else None

    def component_chunk(self, component: Component, chunk: tuple[int, ...]) -> tuple[int, ...]:
        raise ValueError("a tensor that is made of pieces has no components")

    def into(self, dtype: DType) -> "Tiled":
        """What each piece can give by itself is asked of it when it is read."""
        return replace(self, dtype=dtype)

    def decode(self, read: Callable[[int], np.ndarray], source: tuple[slice, ...], out: np.ndarray, where: str) -> None:
        raise ValueError("a tensor that is made of pieces has no chunks")


def is_manifest(location: Location) -> bool:
    """Whether what lies at ``location`` is taken for a manifest: by its name."""
    return not isinstance(location, (bytes, bytearray, memoryview)) and str(location).endswith(SUFFIX)


def read_manifest(
    location: Location, options: Options = None, operation: Operation | None = None, stats: Stats | None = None
) -> Manifest:
    """The manifest at ``location``. Raises FormatError, UnsupportedError, CorruptError or StorageError."""
    found = open_location(location, options, operation=operation, stats=stats, ahead=AHEAD_NBYTES)
    if isinstance(found, Folder):
        raise FormatError("not a manifest: there is no such file", where=found.url, clause="manifest-1")
    try:
        if found.nbytes > MAX_NBYTES:
            raise FormatError(
                f"a manifest of {found.nbytes} bytes, at most {MAX_NBYTES} are allowed",
                where=found.url,
                clause="manifest-1",
            )
        return Manifest.parse(bytes(found.read(0, found.nbytes, operation=operation)), where=found.url)
    finally:
        found.close()


class CompositeReader:
    """The chunks of all archives: the key of one begins with the index of its archive."""

    def __init__(self, place: Place, stats: Stats, retry: Retry, archive: Callable[[int], ArchiveReader]) -> None:
        self.url, self.local, self.stats = without_secrets(str(place.location)), place.local, stats
        self._retry, self._archive = retry, archive
        self._operations: weakref.WeakSet[Operation] = weakref.WeakSet()

    def start(self) -> Operation:
        operation = self._retry.start()
        self._operations.add(operation)
        return operation

    def extent(self, key: str, limit: int) -> Extent | None:
        index, inner = _split(key)
        found = self._archive(index).extent(inner, limit)
        return replace(found, object=str(index)) if found else None

    def fetch(self, request: Request, operation: Operation, on_bytes: OnBytes | None = None) -> memoryview:
        return self._archive(int(request.object)).fetch(replace(request, object=""), operation, on_bytes)

    def nbytes(self, key: str, operation: Operation | None = None) -> int | None:
        index, inner = _split(key)
        return self._archive(index).nbytes(inner, operation)

    def read_chunk(self, key: str, slot: str) -> memoryview | None:
        index, inner = _split(key)
        return self._archive(index).read_chunk(inner, slot)

    def read_document(self, key: str, limit: int, operation: Operation | None = None) -> bytes | None:
        index, inner = _split(key)
        return self._archive(index).read_document(inner, limit, operation)

    def read_blocks(self, key: str, block_nbytes: int, operation: Operation) -> Iterator[memoryview]:
        index, inner = _split(key)
        return self._archive(index).read_blocks(inner, block_nbytes, operation)

    def keys(self) -> Iterator[str]:
        return iter(())

    def sizes(self) -> dict[str, int]:
        return {}

    def check_unchanged(self, operation: Operation) -> None:
        """Archives are immutable, and checked by the family that has them open."""

    def close(self) -> None:
        """Ends what other threads still wait for."""
        for operation in list(self._operations):
            operation.stop()


class Archives:
    """The archives of ``manifest``, which lies at ``place``. ``family`` opens and closes them."""

    def __init__(self, manifest: Manifest, place: Place, family: Family) -> None:
        self.manifest, self._place, self._family = manifest, place, family
        self._open: dict[int, Opened] = {}

    def open(self, index: int) -> Opened:
        """Raises StorageError for one that is not there, CorruptError for one that is not what the manifest says."""
        if index not in self._open:
            ref = self.manifest.archives[index]
            where = f"{self._place.location}, archive {index}"
            try:
                opened = self._family.get(locate(ref.path, self._place), None)
            except ValueError as error:
                raise StorageError(f"cannot open the archive {ref.path!r}: {error}", where=where) from error
            except FormatError as error:
                if error.clause != "root-1":
                    raise
                # Where there is nothing at a URL, there is a folder without documents.
                raise StorageError(f"the archive {ref.path!r} is not there", where=where) from error
            if not isinstance(opened.reader, ArchiveReader):
                raise FormatError(f"{ref.path!r} is no archive", where=where, clause="manifest-4")
            if opened.reader.blob.nbytes != ref.nbytes:
                raise CorruptError(
                    f"the archive {ref.path!r} has {opened.reader.blob.nbytes} bytes, and was written with {ref.nbytes}; "
                    "restore it from a copy",
                    where=where,
                    clause="manifest-4",
                )
            self._open[index] = opened
        return self._open[index]

    def reader(self, index: int) -> ArchiveReader:
        reader = self.open(index).reader
        assert isinstance(reader, ArchiveReader), "open has seen to it"
        return reader

    def open_all(self, indices: set[int]) -> None:
        """Several at a time, where opening one costs a request."""
        missing = sorted(indices - self._open.keys())
        if len(missing) > 1 and not self._place.local:
            with ThreadPoolExecutor(min(AT_A_TIME, len(missing)), "mzstore-open") as pool:
                for _ in pool.map(self.open, missing):
                    pass
        else:
            for index in missing:
                self.open(index)

    def path(self, piece: Piece) -> str:
        """The archive that ``piece`` lies in, as the manifest has it."""
        return self.manifest.archives[piece.archive].path

    def stored(self, piece: Piece, dtype: DType) -> tuple[Opened, TensorEntry]:
        """The archive of ``piece``, and the tensor there that has its values. Raises CorruptError if it is another one."""
        opened = self.open(piece.archive)
        found = opened.document.tensors.get(piece.name)
        if found is None or (found.spec.dtype, found.spec.shape) != (dtype, piece.shape):
            now = f"is {found.spec.dtype.name} {list(found.spec.shape)}" if found else "is not there"
            raise CorruptError(
                f"tensor {piece.name!r} of the archive {self.path(piece)!r} {now}, and was "
                f"{dtype.name} {list(piece.shape)}",
                where=str(self._place.location),
                clause="manifest-5",
            )
        if piece.sha256 and found.sha256 != piece.sha256:
            raise CorruptError(
                f"tensor {piece.name!r} of the archive {self.path(piece)!r} has other values than those that were meant; restore the "
                "archive from a copy",
                where=str(self._place.location),
                clause="manifest-5",
            )
        return opened, opened.document.stored(found)

    def spread(self, wanted: Sequence[Wanted]) -> list[Wanted]:
        """For words of tensors, those of the pieces that they lie in. Opens the archives that these are in."""
        cuts = [cut for each in wanted for cut in _cuts(each)]
        self.open_all({cut.piece.archive for cut in cuts})
        return [self._wanted(cut) for cut in cuts]

    def _wanted(self, cut: "_Cut") -> Wanted:
        spec, index = cut.of.entry.spec, cut.piece.archive
        opened, entry = self.stored(cut.piece, cut.dtype)
        named = replace(entry, node=f"{index}/{entry.node}", spec=replace(entry.spec, name=spec.name))
        target: tuple[Any, ...] = (*cut.target, ...)
        return Wanted(bound(named, spec.dtype), cut.spans, cut.of.out[target], opened)


def document(manifest: Manifest) -> ModelDocument:
    """The tensors of ``manifest`` as those of one model. Without I/O."""
    entries = {}
    for name, tensor in manifest.tensors.items():
        spec, shape = tensor.spec, tensor.spec.word_shape
        grid = Grid(shape, choose_chunk_shape(shape, spec.dtype.word.itemsize))
        entries[name] = TensorEntry(spec, name, "", Tiled(spec, spec.dtype, grid, tensor.pieces))
    assets = tuple(replace(asset, key=f"{archive}/{asset.key}") for archive, asset in manifest.assets)
    layouts = tuple(replace(layout, key=f"{archive}/{layout.key}") for archive, layout in manifest.layouts)
    return ModelDocument(entries, manifest.metadata, assets, layouts, manifest.writer)


@dataclass(frozen=True, slots=True)
class _Cut:
    """What lies in one piece of what is wanted: where in the piece, and where in ``of.out``. ``dtype``: of the piece."""

    of: Wanted
    piece: Piece
    dtype: DType
    spans: tuple[Span, ...]
    target: tuple[slice, ...]


def _cuts(wanted: Wanted) -> Iterator[_Cut]:
    tiled = wanted.entry.part
    assert isinstance(tiled, Tiled)
    for piece in tiled.pieces:
        spans, target = [], []
        for span, (start, stop) in zip(
            wanted.spans, word_box(piece.offsets, piece.shape, tiled.spec.dtype), strict=True
        ):
            first = max(0, -(-(start - span.start) // span.step))
            last = min(span.count, -(-(stop - span.start) // span.step))
            if first >= last:
                break
            spans.append(Span(span.start + first * span.step - start, last - first, span.step))
            target.append(slice(first, last))
        else:
            yield _Cut(wanted, piece, tiled.spec.dtype, tuple(spans), tuple(target))


def word_box(offsets: tuple[int, ...], shape: tuple[int, ...], dtype: DType) -> tuple[tuple[int, int], ...]:
    """(first, one past the last) word on each axis, of the values from ``offsets`` on, of ``shape``."""
    box = [(start, start + n) for start, n in zip(offsets, shape, strict=True)]
    if dtype.parts == 2:
        box.append((0, 2))
    if dtype.packed and box:
        start, stop = box[-1]
        box[-1] = start // 2, (stop + 1) // 2
    return tuple(box)


def _split(key: str) -> tuple[int, str]:
    index, _, inner = key.partition("/")
    return int(index), inner

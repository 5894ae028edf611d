"""Files of any format, made again byte for byte: the tensors, and between them the bytes that no tensor has.

A layout (FORMAT.md 6.6) holds those bytes, and where in the file the words of the tensors lie.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from mzstore import documents
from mzstore.arrays import integers
from mzstore.dtypes import DTYPES
from mzstore.errors import FormatError, UnsupportedError
from mzstore.formats.files import PlainTensor
from mzstore.ggml import TYPES, BlockType
from mzstore.packed import block_runs
from mzstore.sources import LayoutSource, PackedSource, TensorSource, block_type_of, blocks
from mzstore.storage import BLOCK_NBYTES, Blob, Sink
from mzstore.tensors import TensorSpec

FORMAT = "spliced"
LITERAL = "literal"  # form of a tensor whose bytes in the file are not its words, and stay among the literals
MAX_LAYOUT_NBYTES = 100_000_008
LARGEST_PART = 16


class PlacedTensor(TensorSource, Protocol):
    """A tensor whose bytes begin at ``start`` of an open file."""

    @property
    def start(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Place:
    """Bytes ``[start, stop)`` of a file, which are those of a tensor of the model: its words, or blocks of ``form``."""

    spec: TensorSpec
    start: int
    form: BlockType | None = None

    def __post_init__(self) -> None:
        if self.form and (
            self.spec.dtype.name != "float32" or not self.spec.shape or self.spec.shape[-1] % self.form.size
        ):
            raise ValueError(
                f"tensor {self.spec.name!r} of {self.spec.dtype.name} {self.spec.shape} is no {self.form.name}"
            )

    @property
    def nbytes(self) -> int:
        return self.form.row_nbytes(self.spec.size) if self.form else self.spec.nbytes

    @property
    def stop(self) -> int:
        return self.start + self.nbytes


@dataclass(frozen=True, slots=True)
class Layout:
    """``places`` in the order of the file; where some lie upon each other, the first one's bytes are those of the file.

    others  tensors of form ``literal``: of the model, but nothing of them is put into the file
    """

    nbytes: int
    places: Sequence[Place]
    literals: memoryview
    others: Sequence[TensorSpec] = ()

    @property
    def tensors(self) -> Mapping[str, TensorSpec]:
        return {spec.name: spec for spec in (*(place.spec for place in self.places), *self.others)}

    @property
    def forms(self) -> Mapping[str, BlockType]:
        return {place.spec.name: place.form for place in self.places if place.form}

    def write(self, sink: Sink, tensors: Mapping[str, TensorSource], done: Callable[[int], None]) -> None:
        """The whole file, front to back."""
        at, taken = 0, 0  # in the file, of the literals
        for place in self.places:
            if place.start > at:
                sink.write(self.literals[taken : taken + place.start - at])
                taken, at = taken + place.start - at, place.start
            skip = at - place.start
            if place.nbytes <= skip:
                continue
            for block, nbytes in _bytes_of(place, tensors[place.spec.name]):
                data = block.data
                sink.write(data[min(skip, len(data)) :])
                skip -= min(skip, len(data))
                done(nbytes)
            at = place.stop
        sink.write(self.literals[taken:])


def _bytes_of(place: Place, source: TensorSource) -> Iterator[tuple[np.ndarray, int]]:
    """(bytes as they stand in the file, how many of values these are), piece by piece."""
    if place.form is None:
        for block in blocks(source):
            yield block.view(np.uint8), block.nbytes
        return
    assert isinstance(source, PackedSource)
    for run in block_runs(source):
        yield run.reshape(-1), 4 * place.form.size * len(run)


def parse(raw: bytes, prefix: str = "", *, where: str) -> Layout:
    """The layout in the object ``raw``; the model's names have ``prefix`` in front. Raises FormatError or UnsupportedError for what FORMAT.md forbids."""

    def refuse(problem: str, clause: str = "layout-3") -> FormatError:
        return FormatError(problem, where=where, clause=clause)

    length = int.from_bytes(raw[:8], "little")
    if len(raw) < 8 + length or len(raw) < 8:
        raise refuse(f"a layout of {len(raw)} bytes is cut short")
    doc = documents.load(raw[8 : 8 + length], where=where)
    nbytes, entries = doc.get("nbytes"), doc.get("tensors")
    if type(nbytes) is not int or nbytes < 0 or not isinstance(entries, dict):
        raise refuse("no size, or no tensors")
    places, others = [], []
    for name, entry in entries.items():
        found = _entry(prefix + name, entry, nbytes, where=where)
        if isinstance(found, Place):
            places.append(found)
        else:
            others.append(found)
    at, gaps = 0, 0
    for before, place in zip([None, *places], places, strict=False):
        if before and place.start < before.start:
            raise refuse(f"tensor {place.spec.name!r} is not in the order of the file", "layout-4")
        gaps += max(0, place.start - at)
        at = max(at, place.stop)
    literals = memoryview(raw)[8 + length :]
    if len(literals) != gaps + nbytes - at:
        raise refuse(f"{len(literals)} bytes beside the tensors, where {gaps + nbytes - at} are missing", "layout-4")
    return Layout(nbytes, places, literals, others)


def _entry(name: str, entry: Any, nbytes: int, *, where: str) -> Place | TensorSpec:
    """A tensor that lies in the file as it is, or as blocks; or one of form ``literal``."""

    def refuse(problem: str, clause: str = "layout-3") -> FormatError:
        return FormatError(f"tensor {name[:200]!r} {problem}", where=where, clause=clause)

    if not isinstance(entry, dict):
        raise refuse("has no entry")
    form = TYPES.get(str(entry.get("form")))
    if "form" in entry and entry["form"] != LITERAL and form is None:
        text = f"tensor {name[:200]!r} lies there in the form {entry['form']!r:.100}, which is unknown; upgrade mzstore"
        raise UnsupportedError(text, where=where, clause="layout-3")
    dtype = entry.get("dtype")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise UnsupportedError(f"dtype {dtype!r:.200} is unknown; upgrade mzstore", where=where, clause="tensor-2")
    try:
        spec = TensorSpec(name, DTYPES[dtype], integers(entry.get("shape")))
        if entry.get("form") == LITERAL:
            return spec
        if type(entry.get("offset")) is not int or entry["offset"] < 0:
            raise refuse("has no offset")
        place = Place(spec, entry["offset"], form)
    except ValueError as error:
        raise FormatError(str(error), where=where, clause="layout-3") from error
    if place.stop > nbytes:
        raise refuse(f"ends at {place.stop}, the file at {nbytes}", "layout-4")
    return place


def layout(
    blob: Blob, path: str, kind: str, tensors: Iterable[PlacedTensor], others: Iterable[TensorSpec] = ()
) -> LayoutSource | None:
    """How an open file is laid out, which ``path`` shall name. None if too much of it is not of ``tensors``.

    ``others`` are tensors whose bytes in the file are not their words: compressed, encoded, in another order. These bytes
    are kept beside the tensors of the model.
    """
    places = sorted((Place(t.spec, t.start, block_type_of(t)) for t in tensors), key=lambda place: place.start)
    gaps, at = [], 0
    for place in places:
        if place.start > at:
            gaps.append((at, place.start))
        at = max(at, place.stop)
    gaps.append((at, blob.nbytes))
    entries: dict[str, Any] = {
        place.spec.name: _about(place.spec, place.form) | {"offset": place.start} for place in places
    }
    entries |= {spec.name: _about(spec) | {"form": LITERAL} for spec in others}
    doc = documents.dump({"nbytes": blob.nbytes, "tensors": entries})
    if 8 + len(doc) + sum(stop - start for start, stop in gaps) > MAX_LAYOUT_NBYTES:
        return None
    raw = bytearray(len(doc).to_bytes(8, "little") + doc)
    for first, last in gaps:
        for start in range(first, last, BLOCK_NBYTES):
            raw += blob.read(start, min(start + BLOCK_NBYTES, last))
    return LayoutSource(path, bytes(raw), format=FORMAT, kind=kind)


def keep(blob: Blob, path: str, kind: str, tensors: Sequence[TensorSource]) -> tuple[list[LayoutSource], list[str]]:
    """The layout of a file, if it has one, and what is to be said if it has none.

    Tensors that lie in the file in another way than PlainTensors do may take a sixteenth of it: what they are in the file is kept
    as well as their values.
    """
    plain = [tensor for tensor in tensors if isinstance(tensor, PlainTensor) and tensor.blob is blob]
    others = [tensor.spec for tensor in tensors if not (isinstance(tensor, PlainTensor) and tensor.blob is blob)]
    if sum(spec.nbytes for spec in others) > blob.nbytes // LARGEST_PART:
        text = "not all tensors lie in the file as they are: it comes back with equal tensors, and not byte for byte"
        return [], [text]
    found = layout(blob, path, kind, plain, others)
    if found is None:
        return [], ["too much of the file is no tensor: it comes back with equal tensors, and not byte for byte"]
    return [found], []


def _about(spec: TensorSpec, form: BlockType | None = None) -> dict[str, Any]:
    return {"dtype": spec.dtype.name, "shape": list(spec.shape)} | ({"form": form.name} if form else {})

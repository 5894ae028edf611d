"""Components: the arrays that a tensor is stored as, for kernels that take codes and scales and need no values."""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from mzstore import frameworks
from mzstore.arrays import Array
from mzstore.documents import TensorEntry, parts_of
from mzstore.dtypes import DTYPES, DType
from mzstore.encodings import Component, Part
from mzstore.encodings.codes import Codes, Factors
from mzstore.encodings.combined import component_name
from mzstore.encodings.ggml import Ggml, Numbers
from mzstore.encodings.lowrank import LowRank
from mzstore.encodings.nested import Nested
from mzstore.encodings.quantized import Blocked, Quantized, scale_name
from mzstore.encodings.raw import Raw
from mzstore.encodings.sparse import Sparse
from mzstore.encodings.tucker import Tucker
from mzstore.frameworks import Framework
from mzstore.grid import Grid
from mzstore.selection import Index
from mzstore.tensors import TensorSpec


class Values(Protocol):
    """An array, or what reads the part of one that it is asked for."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    def __getitem__(self, index: Any) -> Any: ...


AT_ONCE_NBYTES = 16 << 20  # of what is stored

_NONE = np.empty(0, np.uint8)

Open = Callable[[TensorEntry], Values]  # reads what is stored as this entry says


class ComponentView:
    """One array that a tensor is stored as. Nothing of it is read before it is indexed or converted.

    block  how many values of the tensor, on each axis, an entry stands for; None where it has no such place
    """

    def __init__(
        self, name: str, values: Callable[[], Values], block: tuple[int, ...] | None, framework: Framework
    ) -> None:
        self.name, self.block = name, block
        self._open, self._framework = values, framework

    @functools.cached_property
    def _values(self) -> Values:
        return self._open()

    @property
    def shape(self) -> tuple[int, ...]:
        return self._values.shape

    @property
    def dtype(self) -> np.dtype:
        return self._values.dtype

    def __getitem__(self, index: Index) -> Any:
        """As NumPy's basic indexing; only the chunks that hold such entries are read."""
        found = self._values[index]
        return found if self._framework == "numpy" else frameworks.to_torch(np.asarray(found))

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("a stored array cannot become one in memory without a copy")
        values = np.array(self._values[...])
        return values if dtype is None else values.astype(dtype, copy=False)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of an array without dimensions")
        return self.shape[0]

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"<mzstore component {self.name!r}{'' if self.block is None else f' of blocks {list(self.block)}'}>"


def components(entry: TensorEntry, open_: Open, framework: Framework) -> Mapping[str, ComponentView]:
    """By name, see ``Tensor.components``. ``entry`` is a stored tensor, never a reference."""
    assert entry.part is not None
    return {
        component_name(i, name): ComponentView(component_name(i, name), values, block, framework)
        for i, part in enumerate(parts_of(entry.part))
        for name, values, block in _members(part, _arrays_of(entry, i, part, open_))
    }


def elements(entry: TensorEntry, open_: Open) -> "Elements":
    """Those of the first part of ``entry``, which is sparse. Raises CorruptError or StorageError."""
    assert entry.part is not None
    part, *_ = parts_of(entry.part)
    assert isinstance(part, Sparse)
    return _Elements(part, _arrays_of(entry, 0, part, open_)).read()


@dataclass(frozen=True, slots=True)
class Elements:
    """What a sparse part stores, by place in the tensor. Blocks of which the first value lies beyond the tensor's edges are left out.

    corners  int64 [n], ascending: the position, in row-major order of the words, of the first value of each
    values   [n, rows, columns], in the dtype in which they are stored
    shape    of the words
    """

    corners: np.ndarray
    values: np.ndarray
    shape: tuple[int, ...]

    def flat(self) -> tuple[np.ndarray, np.ndarray]:
        """(int64: the position of each value, ascending; the values), without those beyond the tensor's edges."""
        _, height, across = self.values.shape
        if height == across == 1:
            return self.corners, self.values.reshape(-1)
        *_, rows, cols = (1, *self.shape)
        row, column = np.divmod(self.corners, cols)
        inside = (row[:, None] % rows + np.arange(height) < rows)[:, :, None]
        inside = inside & (column[:, None] + np.arange(across) < cols)[:, None, :]
        positions = self.corners[:, None, None] + (np.arange(height) * cols)[:, None] + np.arange(across)
        positions, values = positions[inside], self.values[inside]
        if height > 1:  # else the next block is to the right of all of this one
            order = np.argsort(positions)
            positions, values = positions[order], values[order]
        return positions, values


Opened = Callable[[], Values]
Members = Iterable[tuple[str, Opened, tuple[int, ...] | None]]  # (name, what opens it, block)


@dataclass(frozen=True, slots=True)
class _Arrays:
    """The arrays of one part. ``stored`` has them under the names that they would have if there were no other part."""

    entry: TensorEntry
    stored: Mapping[str, Component]
    reader: Open

    def open(self, name: str, dtype: DType) -> Opened:
        """What opens an array as it is stored."""
        array = self.stored[name].array
        return self._opened((name,), dtype, array.shape, Raw(dtype, array.shape, array))

    def open_factors(self, name: str, dtype: DType) -> Opened:
        """The same for scales and codebooks."""
        array = self.stored[name].array
        return self._opened((name,), dtype, array.shape, Factors(dtype, array.shape, array))

    def open_nested(self, nested: Nested) -> Opened:
        """The values of a part inside of another one."""
        stored = tuple(self.stored[component.name] for component in nested.components)
        names, dtype = tuple(component.name for component in nested.components), plain(nested.dtype)
        own = nested if dtype is nested.dtype else Nested(nested.name, replace(nested.part, dtype=dtype))  # type: ignore[type-var]
        return self._opened(names, dtype, nested.grid.shape, own.renamed(stored))

    def inside(self, nested: Nested) -> "_Arrays":
        """The arrays of a part inside of this one."""
        pairs = zip(nested.part.components, nested.components, strict=True)
        return replace(self, stored={own.name: self.stored[outer.name] for own, outer in pairs})

    @property
    def where(self) -> str:
        return f"tensor {self.entry.spec.name!r}"

    def open_codes(self, part: Quantized) -> Opened:
        names = ("codes", "low") if part.low_bits else ("codes",)
        codes = Codes(part, tuple(self.stored[name] for name in names))
        return self._opened(names, codes.dtype, codes.grid.shape, codes)

    def open_part(self, part: Part) -> Opened:
        """What opens the values of a part over the same components as this tensor's only one."""
        return self._opened(tuple(self.stored), part.dtype, part.grid.shape, part)

    def _opened(self, names: tuple[str, ...], dtype: DType, shape: tuple[int, ...], part: Part) -> Opened:
        """As a tensor of its own, whose node is that of its array, or that above its several arrays."""
        assert self.entry.part is not None
        below = len(names) == 1 < len(self.entry.part.components)
        node = f"{self.entry.node}/{self.stored[names[0]].name}" if below else self.entry.node
        return functools.partial(
            self.reader, TensorEntry(TensorSpec(self.entry.spec.name, dtype, shape), node, "", part)
        )


def _arrays_of(entry: TensorEntry, i: int, part: Part, open_: Open) -> _Arrays:
    return _Arrays(entry, {c.name: Component(component_name(i, c.name), c.array) for c in part.components}, open_)


def _members(part: Part, arrays: _Arrays) -> Members:
    if isinstance(part, Quantized):
        return _of_quantized(part, arrays)
    if isinstance(part, Ggml):
        return _of_ggml(part, arrays)
    if isinstance(part, Sparse):
        return _of_sparse(part, arrays)
    if isinstance(part, LowRank):
        return _of_lowrank(part, arrays)
    if isinstance(part, Tucker):
        return _of_tucker(part, arrays)
    return [(name, arrays.open(name, _dtype(part, c.array)), None) for name, c in arrays.stored.items()]


def _dtype(part: Part, array: Array) -> DType:
    """Of what ``raw`` stores, the dtype of the values; of others, and where a word is no value, that of the array."""
    return plain(part.dtype) if isinstance(part, Raw) else DTYPES[array.data_type]


def _of_quantized(part: Quantized, arrays: _Arrays) -> Members:
    shape = part.grid.shape
    ones = (1,) * len(shape)

    def blocks(name: str, numbers: Blocked | float, dtype: str) -> tuple[str, Opened, tuple[int, ...]]:
        if isinstance(numbers, Blocked):
            opened = (arrays.open if name == "zero_point" else arrays.open_factors)(name, DTYPES[numbers.dtype])
            return name, opened, numbers.block
        return name, lambda: np.full(ones, numbers, dtype), shape

    yield "codes", arrays.open_codes(part), (*ones[:-1], part.dimension)
    for i, scale in enumerate(part.scales):
        yield blocks(scale_name(i), scale, "float32")
    if isinstance(part.codebook, Array):
        yield "codebook", arrays.open_factors("codebook", DTYPES["float32"]), None
    elif part.codebook is not None:
        yield "codebook", part.codebook.copy, None
    else:
        yield blocks("zero_point", part.zero_point, "int32")


def _of_ggml(part: Ggml, arrays: _Arrays) -> Members:
    ones = (1,) * (len(part.grid.shape) - 1)
    for field in part.kind.fields:
        block = None if part.kind.size % field.count else (*ones, part.kind.size // field.count)
        yield field.name, arrays.open_part(Numbers(part, field)), block
    yield "blocks", arrays.open_part(Numbers(part, None)), None


def _of_nested(nested: Nested, arrays: _Arrays) -> Members:
    """What is below a nested part, if that is no array of the values themselves."""
    if not isinstance(nested.part, Raw):
        for name, values, block in _members(nested.part, arrays.inside(nested)):
            yield f"{nested.name}.{name}", values, block


def _of_lowrank(part: LowRank, arrays: _Arrays) -> Members:
    *lead, _ = (1,) * len(part.grid.shape)
    yield "left", arrays.open_nested(part.left), (*lead, part.grid.shape[-1])
    yield "right", arrays.open_nested(part.right), (*part.grid.shape[:-1], 1)
    yield "scale", lambda: np.full((1,) * len(part.grid.shape), part.scale, np.float32), part.grid.shape
    yield from _of_nested(part.left, arrays)
    yield from _of_nested(part.right, arrays)


def _of_tucker(part: Tucker, arrays: _Arrays) -> Members:
    for nested in part.nested:
        yield nested.name, arrays.open_nested(nested), None
        yield from _of_nested(nested, arrays)


def _of_sparse(part: Sparse, arrays: _Arrays) -> Members:
    read = _Elements(part, arrays).read
    yield "positions", lambda: read(values=False).flat()[0], None
    yield "values", lambda: read().flat()[1], None
    yield from _of_nested(part.values, arrays)


@dataclass(frozen=True, slots=True)
class _Elements:
    """Reads the elements of ``part``, some chunks at a time, of which each is checked as a read of the values checks it."""

    part: Sparse
    arrays: _Arrays

    def read(self, *, values: bool = True) -> Elements:
        """All of them; without ``values`` these are of no use."""
        part, arrays = self.part, self.arrays
        steps = arrays.open("positions", DTYPES["uint8"])()
        low = arrays.open("low", DTYPES["uint8"])() if part.low else None
        stored = arrays.open_nested(part.values)() if values else None
        dtype = plain(part.values.dtype) if values else DTYPES["uint8"]
        corners, found = [np.empty(0, np.int64)], [np.empty((0, *part.block), dtype.word)]
        for some in self._some():
            own_steps, own_low = np.asarray(steps[some]), None if low is None else np.asarray(low[some])
            # NumPy joins no types of ml_dtypes.
            words = None if stored is None else np.asarray(stored[some]).view(dtype.word)
            for i, last in enumerate(range(some[-1].start, some[-1].stop)):
                chunk = (*some[:-1], last)
                places = part.places(
                    own_steps[i], _NONE if own_low is None else own_low[i], f"{arrays.where}, chunk {chunk}"
                )
                at, inside = self._in_tensor(chunk, places)
                corners.append(at)
                if words is not None:
                    own = words[i, : places.size * math.prod(part.block)].reshape(-1, *part.block)
                    found.append(own[inside])
        at = np.concatenate(corners)
        elements = np.concatenate(found) if values else np.empty((at.size, *part.block), dtype.word)
        if (at[1:] < at[:-1]).any():  # chunks beside each other share rows
            order = np.argsort(at)
            at, elements = at[order], elements[order] if values else elements
        return Elements(at, elements.view(dtype.numpy), part.grid.shape)

    def _some(self) -> Iterator[tuple[Any, ...]]:
        """Indices of chunks side by side, so many that what is stored for them is not large."""
        part = self.part
        if 0 in part.grid.shape:
            return
        nbytes = part.positions.chunk_nbytes + part.values.grid.chunk_size * part.values.dtype.word.itemsize
        step = max(1, AT_ONCE_NBYTES // nbytes)
        *lead, last = part.grid.counts
        for place in Grid(tuple(lead), (1,) * len(lead)).chunks():
            for first in range(0, last, step):
                yield (*place, slice(first, min(first + step, last)))

    def _in_tensor(self, chunk: tuple[int, ...], places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(positions in the tensor of the first values of elements; which of ``places`` these are: those inside of it)."""
        part = self.part
        *_, cols = chunk_shape = part.grid.chunk_shape
        height, across = part.block
        row, column = np.divmod(places.astype(np.int64), cols // across)
        index = np.unravel_index(row * (height * cols) + column * across, chunk_shape)
        index = tuple(at + i * extent for at, i, extent in zip(index, chunk, chunk_shape, strict=True))
        inside = np.ones(places.size, bool)
        for at, extent in zip(index, part.grid.shape, strict=True):
            inside &= at < extent
        return np.ravel_multi_index(tuple(at[inside] for at in index), part.grid.shape), inside


def plain(dtype: DType) -> DType:
    """``dtype``; where a word is no value, that of the array which holds the words."""
    return DTYPES[dtype.disk] if dtype.packed or dtype.parts == 2 else dtype

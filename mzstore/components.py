"""Components: the arrays that a tensor is stored as, for kernels that take codes and scales and need no values."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from mzstore import frameworks
from mzstore.arrays import Array
from mzstore.documents import TensorEntry, parts_of
from mzstore.dtypes import DTYPES, DType
from mzstore.encodings import Component, Part
from mzstore.encodings.codes import Codes, Factors
from mzstore.encodings.combined import component_name
from mzstore.encodings.nested import Nested
from mzstore.encodings.quantized import Blocked, Quantized, scale_name
from mzstore.encodings.raw import Raw
from mzstore.encodings.sparse import Sparse
from mzstore.frameworks import Framework
from mzstore.selection import Index
from mzstore.tensors import TensorSpec


class Values(Protocol):
    """An array, or what reads the part of one that it is asked for."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    def __getitem__(self, index: Any) -> Any: ...


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
    found: dict[str, ComponentView] = {}
    for i, part in enumerate(parts_of(entry.part)):
        arrays = _Arrays(entry, {c.name: Component(component_name(i, c.name), c.array) for c in part.components}, open_)
        if isinstance(part, Quantized):
            members = _of_quantized(part, arrays)
        elif isinstance(part, Sparse):
            number = f"-{i}" if i > 1 else ""  # as scales have it
            members = ((f"{name}{number}", values, None) for name, values in _of_sparse(part, arrays))
        else:
            members = ((name, arrays.open(name, _dtype(part, c.array)), None) for name, c in arrays.stored.items())
        found |= {name: ComponentView(name, values, block, framework) for name, values, block in members}
    return found


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
        names = tuple(component.name for component in nested.components)
        return self._opened(names, nested.dtype, nested.grid.shape, nested.renamed(stored))

    def open_codes(self, part: Quantized) -> Opened:
        names = ("codes", "low") if part.low_bits else ("codes",)
        codes = Codes(part, tuple(self.stored[name] for name in names))
        return self._opened(names, codes.dtype, codes.grid.shape, codes)

    def _opened(self, names: tuple[str, ...], dtype: DType, shape: tuple[int, ...], part: Part) -> Opened:
        """As a tensor of its own, whose node is that of its array, or that above its several arrays."""
        assert self.entry.part is not None
        below = len(names) == 1 < len(self.entry.part.components)
        node = f"{self.entry.node}/{self.stored[names[0]].name}" if below else self.entry.node
        return functools.partial(
            self.reader, TensorEntry(TensorSpec(self.entry.spec.name, dtype, shape), node, "", part)
        )


def _dtype(part: Part, array: Array) -> DType:
    """Of what ``raw`` stores, the dtype of the values; of others, and where a word is no value, that of the array."""
    values = isinstance(part, Raw) and not part.dtype.packed and part.dtype.parts == 1
    return part.dtype if values else DTYPES[array.data_type]


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


def _of_sparse(part: Sparse, arrays: _Arrays) -> Iterator[tuple[str, Opened]]:
    where = f"tensor {arrays.entry.spec.name!r}"
    steps = arrays.open("positions", DTYPES["uint8"])
    low = arrays.open("low", DTYPES["uint8"]) if part.low else None
    values = arrays.open_nested(part.values)

    def elements() -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
        """(chunk, places of its elements)."""
        stored = np.asarray(steps()[...])
        lows = None if low is None else np.asarray(low()[...])
        none = np.empty(0, np.uint8)
        for chunk in part.grid.chunks():
            own = none if lows is None else lows[chunk]
            yield chunk, part.places(stored[chunk], own, f"{where}, chunk {chunk}")

    def positions() -> np.ndarray:
        flat = [_in_tensor(part, chunk, places)[0] for chunk, places in elements()]
        return np.sort(np.concatenate([np.empty(0, np.int64), *flat]))

    def ordered() -> np.ndarray:
        dtype = part.values.dtype
        words = np.asarray(values()[...]).view(dtype.word)  # NumPy joins no types of ml_dtypes
        flat, found = [np.empty(0, np.int64)], [np.empty(0, dtype.word)]
        for chunk, places in elements():
            own, which = _in_tensor(part, chunk, places)
            flat.append(own)
            found.append(words[(*chunk, which)])
        return np.concatenate(found)[np.argsort(np.concatenate(flat))].view(dtype.numpy)

    yield "positions", positions
    yield "values", ordered


def _in_tensor(part: Sparse, chunk: tuple[int, ...], places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(positions in the tensor, in row-major order; which of the chunk's values stand there), of what lies inside of it."""
    own = part.positions_of(places)
    corner = np.multiply(chunk, part.grid.chunk_shape)
    index = np.array(np.unravel_index(own, part.grid.chunk_shape)) + corner[:, None]
    inside = (index < np.array(part.grid.shape)[:, None]).all(axis=0)
    return np.ravel_multi_index(tuple(index[:, inside]), part.grid.shape), np.flatnonzero(inside)

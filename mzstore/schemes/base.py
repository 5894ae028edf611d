"""What schemes have in common: what one is, and a weight whose values are computed where they are read.

A checkpoint that is quantized by another tool has several tensors for one weight: codes, scales, zero points. They are stored as they
are, as any tensors. What is here makes values of them, those that the tool's own code makes: in float32, rounded once.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from mzstore import dtypes, frameworks
from mzstore.dtypes import DType
from mzstore.errors import FormatError
from mzstore.selection import Index, Selection, Span, resolve

PIECE = 1 << 22  # values that are computed at a time, in float32
TILE = 64  # rows and columns that are turned at a time, within the cache
FLOATS = ("float16", "bfloat16", "float32")  # what scales are

Box = tuple[slice, ...]  # of a start and a stop on each axis, within the shape


class Stored(Protocol):
    """A tensor as it is stored, of which parts are read."""

    @property
    def dtype(self) -> np.dtype: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, index: Any) -> Any:
        """The values in a Box, or all for ``...``."""


Tensors = Mapping[str, Stored]


@dataclass(frozen=True, slots=True)
class Scheme:
    """How a weight is quantized.

    method      as ``quant_method`` of the checkpoint's configuration has it: gptq, awq, compressed-tensors, bitsandbytes, fp8, mxfp4
    format      of that method: gptq, gptq_v2, gemm, pack-quantized, nf4 ...
    bits        of a code
    kind        what codes are: int, float, or the numbers of a codebook
    block       how many values share a scale, on each of the last axes of the weight, None: all on this axis; one number: of values
                that follow each other in row-major order
    symmetric   whether there are no zero points
    act_order   whether groups are of columns in the order of their activations, as the configuration says
    nested      whether scales are quantized as well
    """

    method: str
    format: str
    bits: int
    kind: str
    block: tuple[int | None, ...]
    symmetric: bool = True
    act_order: bool = False
    nested: bool = False

    @property
    def group(self) -> str:
        """What has a scale, for people."""
        if self.block == (None, None):
            return "one scale"
        if self.block == (1, None):
            return "a scale for each row"
        extents = [n for n in self.block if n != 1]
        if len(extents) == 1:
            return f"groups of {extents[0]}"
        return f"blocks of {'x'.join('all' if n is None else str(n) for n in extents)}" if extents else "single values"

    def __str__(self) -> str:
        name = self.method if self.format == self.method else f"{self.method} {self.format}"
        words = [f"{name}: {self.kind} of {self.bits} bits", self.group]
        words += [] if self.symmetric else ["zero points"]
        words += ["act-order"] if self.act_order else []
        return ", ".join([*words, "scales quantized"] if self.nested else words)

    def to_json(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "format": self.format,
            "bits": self.bits,
            "kind": self.kind,
            "block": list(self.block),
            "symmetric": self.symmetric,
            "act_order": self.act_order,
            "nested": self.nested,
        }


class Weight(ABC):
    """One quantized weight. Nothing of it is read before it is indexed or read.

    name     that the plain weight has
    shape    of the plain weight
    scheme   how it is quantized
    members  the tensors that it is made of, and those that belong to it and that no plain weight needs
    """

    split_axis = 0  # on which it is computed in pieces

    def __init__(self, name: str, shape: Sequence[int], dtype: DType, scheme: Scheme, members: Tensors) -> None:
        self.name, self.shape, self.scheme, self.members = name, tuple(shape), scheme, members
        self._dtype = dtype

    @abstractmethod
    def compute(self, box: Box) -> np.ndarray:
        """The values in ``box``, in float32. ``box`` is within the shape and not empty."""

    @property
    def dtype(self) -> np.dtype:
        """In which the tool's own code gives the values."""
        return self._dtype.numpy

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the values in ``dtype``."""
        return self.size * self._dtype.numpy.itemsize

    @property
    def members_nbytes(self) -> int:
        """Bytes of all members, as they are before compression."""
        return sum(math.prod(each.shape) * each.dtype.itemsize for each in self.members.values())

    def __getitem__(self, index: Index) -> Any:
        """The values that ``index`` takes, as NumPy's basic indexing does. Reads only those parts of the members that matter."""
        selection = resolve(index, self.shape)
        values = self._read(selection, self._dtype)
        has_ellipsis = index is Ellipsis or (isinstance(index, tuple) and any(item is Ellipsis for item in index))
        return values[()] if not selection.shape and not has_ellipsis else values

    def read(self, out: np.ndarray | None = None, *, index: Index = ..., dtype: Any = None) -> np.ndarray:
        """The values: a new array, or ``out`` filled, which has the same shape and any float dtype.

        index  what to take, as ``weight[index]`` has it
        dtype  of what is returned: float32, to which values are computed, or another float, to which they are rounded once; None: that of
               ``out``, or the weight's own

        Raises ValueError if ``out`` or ``dtype`` does not fit, and FormatError for members that contradict each other.
        """
        selection = resolve(index, self.shape)
        wanted = self._dtype if dtype is None else dtypes.of(dtype)
        if not wanted.is_float:
            raise ValueError(f"tensor {self.name!r}: values are read as floats, not as {wanted.name}")
        if out is None:
            return self._read(selection, wanted)
        if not isinstance(out, np.ndarray) or out.shape != selection.shape:
            raise ValueError(f"tensor {self.name!r}: 'out' is to be an array of shape {list(selection.shape)}")
        found = dtypes.of_array(out)
        if not found.is_float or (dtype is not None and wanted is not found):
            raise ValueError(f"tensor {self.name!r}: 'out' has dtype {out.dtype}, not {wanted.name}")
        out[...] = self._read(selection, found)
        return out

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("a stored tensor cannot become an array without a copy")
        values = self._read(resolve(..., self.shape), self._dtype)
        return values if dtype is None else values.astype(dtype, copy=False)

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"<mzstore.schemes.Weight {self.name!r}: {self._dtype.name} {list(self.shape)}, {self.scheme}>"

    def _read(self, selection: Selection, dtype: DType) -> np.ndarray:
        frameworks.check_memory(math.prod(selection.counts) * dtype.numpy.itemsize)
        out = np.empty(selection.counts, dtype.numpy)
        if out.size:
            for spans, place in self._pieces(selection.spans):
                values = self.compute(tuple(slice(span.start, span.stop) for span in spans))
                steps = tuple(slice(None, None, span.step) for span in spans)
                with np.errstate(over="ignore", invalid="ignore", under="ignore"):
                    fill(out[place], values[steps])
        found: np.ndarray = out[selection.flips].reshape(selection.shape)
        return found

    def _pieces(self, spans: tuple[Span, ...]) -> Iterator[tuple[tuple[Span, ...], tuple[slice, ...]]]:
        """(what to compute, where it stands in the selection), each of about PIECE values, in parts of one axis."""
        axis = self.split_axis
        span = spans[axis]
        across = math.prod(other.stop - other.start for i, other in enumerate(spans) if i != axis)
        most = max(1, PIECE // (across * span.step))
        for first in range(0, span.count, most):
            n = min(most, span.count - first)
            part = Span(span.start + first * span.step, n, span.step)
            place = (*(slice(None),) * axis, slice(first, first + n))
            yield (*spans[:axis], part, *spans[axis + 1 :]), place


def fill(out: np.ndarray, values: np.ndarray) -> None:
    """``out[...] = values``, rounded to its dtype; by tiles where the last two axes lie in memory the other way round."""
    if values.ndim < 2 or values.strides[-1] <= values.strides[-2]:
        out[...] = values
        return
    lines = values.swapaxes(-1, -2).astype(out.dtype)
    for row in range(0, out.shape[-2], TILE):
        for column in range(0, out.shape[-1], TILE):
            tile = lines[..., column : column + TILE, row : row + TILE]
            out[..., row : row + TILE, column : column + TILE] = tile.swapaxes(-1, -2)


def spread(scales: Stored, block: Sequence[int | None], box: Box) -> np.ndarray:
    """The scale of each value in ``box``, in float32; of one entry on axes on which all values in it have the same.

    ``scales`` has an entry for each ``block`` of the values; the caller has checked its shape.
    """
    first = [0 if extent is None else at.start // extent for extent, at in zip(block, box, strict=True)]
    last = [0 if extent is None else (at.stop - 1) // extent for extent, at in zip(block, box, strict=True)]
    found = as_float(scales[tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))])
    for axis, (extent, at) in enumerate(zip(block, box, strict=True)):
        if extent is not None and extent > 1 and first[axis] < last[axis]:
            found = np.take(found, np.arange(at.start, at.stop) // extent - first[axis], axis)
    return found


def blocks_shape(shape: Sequence[int], block: Sequence[int | None]) -> tuple[int, ...]:
    """How many blocks there are on each axis; smaller ones at the far edges count."""
    return tuple(1 if extent is None else -(-n // extent) for n, extent in zip(shape, block, strict=True))


def as_float(values: np.ndarray) -> np.ndarray:
    """In float32; a uint8 is a power of 2, its exponent biased by 127 (E8M0 of the OCP microscaling formats)."""
    if values.dtype == np.uint8:
        with np.errstate(over="ignore"):
            exponents: np.ndarray = np.exp2(values.astype(np.float32) - np.float32(127))
            return exponents
    found: np.ndarray = values.astype(np.float32)
    return found


def refuse(name: str, problem: str) -> FormatError:
    return FormatError(f"tensor {name!r}: {problem}")


def member(tensors: Tensors, name: str, of: str) -> Stored:
    """Raises FormatError if it is not there. ``of``: the weight that needs it."""
    if name not in tensors:
        raise FormatError(f"weight {of!r} cannot be read without tensor {name!r}, which is missing")
    return tensors[name]


def check_shape(name: str, stored: Stored, shape: Sequence[int], why: str) -> None:
    if stored.shape != tuple(shape):
        raise refuse(name, f"its shape is {list(stored.shape)}, and {why} makes it {list(shape)}")


def matrix(name: str, stored: Stored) -> Stored:
    """``stored``. Raises FormatError unless it has two axes."""
    if len(stored.shape) != 2:
        raise refuse(name, f"its shape is {list(stored.shape)}, not that of a matrix")
    return stored


def check_dtype(name: str, stored: Stored, allowed: Sequence[str]) -> DType:
    """The element type. Raises FormatError for one that is not in ``allowed``."""
    found = dtypes.BY_NUMPY[stored.dtype.newbyteorder("<")]
    if found.name not in allowed:
        raise refuse(name, f"its dtype is {found.name}, not {' or '.join(allowed)}")
    return found

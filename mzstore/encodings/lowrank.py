"""Encoding ``lowrank``: the product of two narrow matrices (FORMAT.md section 8.6).

A tensor is a matrix here: its last axis is the columns, all others are rows.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mzstore import kernels
from mzstore.arrays import Array, integers
from mzstore.dtypes import DTYPES, DType
from mzstore.encodings import Component
from mzstore.encodings.nested import Nested, Parse, own_arrays
from mzstore.grid import MAX_CHUNK_NBYTES, Grid
from mzstore.workspace import buffer

MAX_RANK = 1 << 16
MAX_FLOAT32 = float(np.finfo(np.float32).max)
FLOATS = ("float16", "bfloat16", "float32")  # that a factor may have: float32 holds them exactly


@dataclass(frozen=True, slots=True)
class LowRank:
    """``lowrank`` bound to a tensor of floats. One that exists is valid; ValueError otherwise.

    left   over [*lead, rank], in chunks of [*chunk_lead, rank]
    right  over [rank, cols], in chunks of [rank, chunk_cols]
    scale  what products are multiplied with: a number of float32
    """

    dtype: DType
    grid: Grid
    left: Nested
    right: Nested
    scale: float = 1.0
    components: tuple[Component, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.dtype.is_float or self.dtype.bits < 16:
            raise ValueError(f"a tensor of {self.dtype.name} is no product of floats")
        if len(self.grid.shape) < 2 or 0 in self.grid.shape:
            raise ValueError(f"a tensor of shape {self.grid.shape} is no product of matrices")
        if self.grid.chunk_size * max(4, self.dtype.word.itemsize) > MAX_CHUNK_NBYTES:
            raise ValueError(f"chunks of {self.grid.chunk_shape} values take more than {MAX_CHUNK_NBYTES} bytes")
        if not 1 <= self.rank <= MAX_RANK:
            raise ValueError(f"rank {self.rank}, where 1 to {MAX_RANK} will do")
        if not abs(self.scale) <= MAX_FLOAT32 or float(np.float32(self.scale)) != self.scale:
            raise ValueError(f"scale {self.scale!r:.100} is not a number of float32")
        for factor, grid in (
            (self.left, left_grid(self.grid, self.rank)),
            (self.right, right_grid(self.grid, self.rank)),
        ):
            if factor.dtype.name not in FLOATS:
                raise ValueError(f"{factor.name!r} is {factor.dtype.name}, not one of {', '.join(FLOATS)}")
            if math.prod(grid.chunk_shape) * 4 > MAX_CHUNK_NBYTES:
                raise ValueError(f"chunks of {factor.name!r} take more than {MAX_CHUNK_NBYTES} bytes")
            factor.check_grid(grid)
        object.__setattr__(self, "components", (*self.left.components, *self.right.components))

    @property
    def rank(self) -> int:
        return self.right.part.grid.shape[0] if self.right.part.grid.shape else 0

    @property
    def encoding(self) -> str:
        return "lowrank"

    def component_chunk(self, component: Component, chunk: tuple[int, ...]) -> tuple[int, ...]:
        if component in self.left.components:
            return self.left.component_chunk(component, (*chunk[:-1], 0))
        return self.right.component_chunk(component, (0, chunk[-1]))

    def to_json(self) -> dict[str, object]:
        doc: dict[str, object] = {
            "encoding": self.encoding,
            "chunk_shape": list(self.grid.chunk_shape),
            "rank": self.rank,
            "left": self.left.to_json(DTYPES["float32"]),
            "right": self.right.to_json(DTYPES["float32"]),
        }
        return doc if self.scale == 1 else doc | {"scale": self.scale}

    @classmethod
    def from_json(
        cls, doc: dict[str, Any], dtype: DType, shape: tuple[int, ...], arrays: dict[str, Array], parse: Parse
    ) -> "LowRank":
        """The part of ``doc`` over values of ``shape``; ``arrays`` are the arrays of its components."""
        rest = dict(arrays)
        (rank,) = integers([doc.get("rank")])
        grid = Grid(shape, integers(doc.get("chunk_shape")))
        if len(shape) < 2:
            raise ValueError(f"a tensor of shape {shape} is no product of matrices")

        def factor(name: str, own: Grid) -> Nested:
            return Nested(name, parse(doc.get(name), DTYPES["float32"], own.shape, own_arrays(name, rest)))

        left, right = factor("left", left_grid(grid, rank)), factor("right", right_grid(grid, rank))
        if rest:
            raise ValueError(f"array {min(rest)!r} is none of its components")
        scale = doc.get("scale", 1.0)
        if type(scale) not in (int, float):
            raise ValueError(f"scale {scale!r:.100} is no number")
        return cls(dtype, grid, left, right, scale)

    def into(self, dtype: DType) -> "LowRank | None":
        if not dtype.is_float or dtype.bits < 16 or self.grid.chunk_size * dtype.word.itemsize > MAX_CHUNK_NBYTES:
            return None
        return replace(self, dtype=dtype)

    @property
    def scratch_nbytes(self) -> int:
        """Factors, also in float32; the sums, and what NumPy adds to them."""
        factors = sum(
            f.scratch_nbytes + (0 if f.dtype is DTYPES["float32"] else 8 * f.part.grid.chunk_size)
            for f in (self.left, self.right)
        )
        return factors + 8 * self.grid.chunk_size

    def decode(self, read: Callable[[int], np.ndarray], source: tuple[slice, ...], out: np.ndarray, where: str) -> None:
        float32 = DTYPES["float32"]
        *lead, cols = source
        every = slice(0, self.rank)
        left = self.left.read(read, (*lead, every), float32, where).view(np.float32).reshape(-1, self.rank)
        n = len(self.left.components)
        right = self.right.read(lambda i: read(n + i), (every, cols), float32, where).view(np.float32)
        shape = (left.shape[0], right.shape[1])
        products = buffer("products", 4 * math.prod(shape)).view(np.float32).reshape(shape)
        multiply(left, right, np.float32(self.scale), products)
        with np.errstate(over="ignore", invalid="ignore"):
            out.view(self.dtype.numpy)[...] = products.reshape(out.shape)


def multiply(left: np.ndarray, right: np.ndarray, scale: np.float32, out: np.ndarray) -> None:
    """Fill ``out`` [rows, cols] with the products of ``left`` [rows, rank] and ``right`` [rank, cols], times ``scale``.

    All are float32. Products are summed from left to right, each operation rounded, so that any part of the result has
    the same bits; a BLAS would give others.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        if kernels.pays(4 * out.size * left.shape[1]):
            kernels.load_lowrank().multiply(np.ascontiguousarray(left), np.ascontiguousarray(right), scale, out)
            return
        np.multiply(left[:, :1], right[:1], out=out)
        for k in range(1, left.shape[1]):
            out += left[:, k : k + 1] * right[k : k + 1]
        out *= scale


def left_grid(grid: Grid, rank: int) -> Grid:
    """The grid of the left factor of a part over ``grid``."""
    return Grid((*grid.shape[:-1], rank), (*grid.chunk_shape[:-1], rank))


def right_grid(grid: Grid, rank: int) -> Grid:
    """The grid of the right factor of a part over ``grid``."""
    return Grid((rank, grid.shape[-1]), (rank, grid.chunk_shape[-1]))

"""Encoding ``tucker``: a core and a factor for each axis, or factors alone (FORMAT.md section 8.7).

With a core, the decomposition of Tucker: every axis of the core is multiplied with a factor. Without one, the canonical
decomposition (CP): a sum of outer products, one of each factor's columns.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mzstore.arrays import Array, integers
from mzstore.dtypes import DTYPES, DType
from mzstore.encodings import Component
from mzstore.encodings.lowrank import FLOATS, MAX_RANK, multiply
from mzstore.encodings.nested import Nested, Parse, own_arrays
from mzstore.grid import MAX_CHUNK_NBYTES, Grid

MAX_NUMBERS = MAX_CHUNK_NBYTES // 4  # float32, at any step


@dataclass(frozen=True, slots=True)
class Tucker:
    """``tucker`` bound to a tensor of floats. One that exists is valid; ValueError otherwise.

    ranks    one for each axis
    factors  over [extent, rank], in chunks of [chunk extent, rank]; None for an axis that is the core's own
    core     over the ranks, in one chunk; None: all ranks are one, and values are sums of outer products
    """

    dtype: DType
    grid: Grid
    ranks: tuple[int, ...]
    factors: tuple[Nested | None, ...]
    core: Nested | None = None
    components: tuple[Component, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        shape, chunk_shape = self.grid.shape, self.grid.chunk_shape
        if not self.dtype.is_float or self.dtype.bits < 16:
            raise ValueError(f"a tensor of {self.dtype.name} is no product of floats")
        if len(shape) < 2 or 0 in shape:
            raise ValueError(f"a tensor of shape {shape} has no factors")
        if self.grid.chunk_size * max(4, self.dtype.word.itemsize) > MAX_CHUNK_NBYTES:
            raise ValueError(f"chunks of {chunk_shape} values take more than {MAX_CHUNK_NBYTES} bytes")
        if len(self.ranks) != len(shape) or len(self.factors) != len(shape):
            raise ValueError(f"ranks {self.ranks} and {len(self.factors)} factors of a tensor of {len(shape)} axes")
        if not all(1 <= rank <= MAX_RANK for rank in self.ranks):
            raise ValueError(f"ranks {self.ranks}, where 1 to {MAX_RANK} will do")
        if self.core is None and len(set(self.ranks)) > 1:
            raise ValueError(f"ranks {self.ranks} without a core")
        if not any(self.factors):
            raise ValueError("a core without factors")
        if self.core is not None:
            self.core.check_grid(Grid(self.ranks, self.ranks))
        for axis, factor in enumerate(self.factors):
            own = factor_grid(self.grid, axis, self.ranks[axis])
            if factor is not None:
                factor.check_grid(own)
            elif self.core is None or not self.ranks[axis] == shape[axis] == chunk_shape[axis]:
                raise ValueError(f"no factor for axis {axis}, whose extent and rank and chunks are not the same")
        for nested in self.nested:
            if nested.dtype.name not in FLOATS:
                raise ValueError(f"{nested.name!r} is {nested.dtype.name}, not one of {', '.join(FLOATS)}")
            if math.prod(nested.grid.chunk_shape) > MAX_NUMBERS:
                raise ValueError(f"{nested.name!r} has chunks of more than {MAX_NUMBERS} numbers")
        if any(math.prod(step) > MAX_NUMBERS for step in self._steps()):
            raise ValueError(f"products of more than {MAX_NUMBERS} numbers")
        object.__setattr__(self, "components", tuple(c for nested in self.nested for c in nested.components))

    @property
    def nested(self) -> tuple[Nested, ...]:
        """The factors, and the core behind them."""
        return tuple(nested for nested in (*self.factors, self.core) if nested is not None)

    def _steps(self) -> list[tuple[int, ...]]:
        """Shapes of what is computed on the way."""
        chunk = self.grid.chunk_shape
        if self.core is None:
            return [(self.ranks[0], *chunk[1 : axis + 1]) for axis in range(1, len(chunk))]
        return [(*chunk[:axis], *self.ranks[axis:]) for axis in range(len(chunk) + 1)]

    @property
    def encoding(self) -> str:
        return "tucker"

    def component_chunk(self, component: Component, chunk: tuple[int, ...]) -> tuple[int, ...]:
        for axis, factor in enumerate(self.factors):
            if factor is not None and component in factor.components:
                return factor.component_chunk(component, (chunk[axis], 0))
        assert self.core is not None
        return self.core.component_chunk(component, (0,) * len(chunk))

    def to_json(self) -> dict[str, object]:
        default = DTYPES["float32"]
        doc: dict[str, object] = {
            "encoding": self.encoding,
            "chunk_shape": list(self.grid.chunk_shape),
            "ranks": list(self.ranks),
            "factors": [None if factor is None else factor.to_json(default) for factor in self.factors],
        }
        return doc if self.core is None else doc | {"core": self.core.to_json(default)}

    @classmethod
    def from_json(
        cls, doc: dict[str, Any], dtype: DType, shape: tuple[int, ...], arrays: dict[str, Array], parse: Parse
    ) -> "Tucker":
        """The part of ``doc`` over values of ``shape``; ``arrays`` are the arrays of its components."""
        rest, float32 = dict(arrays), DTYPES["float32"]
        ranks, grid, docs = (
            integers(doc.get("ranks")),
            Grid(shape, integers(doc.get("chunk_shape"))),
            doc.get("factors"),
        )
        if not isinstance(docs, list) or len(docs) != len(shape) or len(ranks) != len(shape):
            raise ValueError(f"'factors' or 'ranks' is no list with one for each of {len(shape)} axes")
        factors: list[Nested | None] = []
        for axis, own in enumerate(docs):
            if own is None:
                factors.append(None)
                continue
            name, over = factor_name(axis), factor_grid(grid, axis, ranks[axis])
            factors.append(Nested(name, parse(own, float32, over.shape, own_arrays(name, rest))))
        core = None
        if "core" in doc:
            core = Nested("core", parse(doc["core"], float32, ranks, own_arrays("core", rest)))
        if rest:
            raise ValueError(f"array {min(rest)!r} is none of its components")
        return cls(dtype, grid, ranks, tuple(factors), core)

    def into(self, dtype: DType) -> "Tucker | None":
        if not dtype.is_float or dtype.bits < 16 or self.grid.chunk_size * dtype.word.itemsize > MAX_CHUNK_NBYTES:
            return None
        return replace(self, dtype=dtype)

    @property
    def scratch_nbytes(self) -> int:
        """Factors and core, also in float32, and two steps, each also with its axes in another order."""
        float32 = DTYPES["float32"]
        numbers = sum((4 if each.dtype is float32 else 12) * each.grid.chunk_size for each in self.nested)
        nested = sum(each.scratch_nbytes for each in self.nested)
        return nested + numbers + 16 * max(map(math.prod, self._steps())) + 8 * self.grid.chunk_size

    def decode(self, read: Callable[[int], np.ndarray], source: tuple[slice, ...], out: np.ndarray, where: str) -> None:
        float32 = DTYPES["float32"]
        first, found = 0, []

        def numbers(nested: Nested, cuts: tuple[slice, ...]) -> np.ndarray:
            nonlocal first
            start, first = first, first + len(nested.components)
            return nested.read(lambda i: read(start + i), cuts, float32, where).view(np.float32)

        for cut, rank, factor in zip(source, self.ranks, self.factors, strict=True):
            found.append(None if factor is None else numbers(factor, (cut, slice(0, rank))))
        if self.core is None:
            values = canonical([factor for factor in found if factor is not None])
        else:
            cuts = tuple(
                slice(0, rank) if factor is not None else cut
                for cut, rank, factor in zip(source, self.ranks, self.factors, strict=True)
            )
            values = expand(numbers(self.core, cuts), found)
        with np.errstate(over="ignore", invalid="ignore"):
            out.view(self.dtype.numpy)[...] = values


def expand(core: np.ndarray, factors: list[np.ndarray | None]) -> np.ndarray:
    """The tensor (float32) of ``core`` (float32 [ranks]) and factors (float32 [extent, rank]), one axis after the other.

    Each number is a sum of products from left to right, each operation rounded, so that any part has the same bits.
    """
    values = core
    for axis, factor in enumerate(factors):
        if factor is None:
            continue
        moved = np.moveaxis(values, axis, 0)
        right = np.ascontiguousarray(moved).reshape(factor.shape[1], -1)
        product = np.empty((factor.shape[0], right.shape[1]), np.float32)
        multiply(factor, right, np.float32(1), product)
        values = np.moveaxis(product.reshape(factor.shape[0], *moved.shape[1:]), 0, axis)
    return values


def canonical(factors: list[np.ndarray]) -> np.ndarray:
    """The sum (float32) of outer products of the columns of ``factors`` (float32 [extent, rank], two or more)."""
    first, *others = factors

    def outer(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        product: np.ndarray = left[..., None, :] * right
        return product

    with np.errstate(over="ignore", invalid="ignore"):
        products = functools.reduce(outer, others)  # [extents of all axes but the first, rank]
    rank = first.shape[1]
    right = np.ascontiguousarray(products.reshape(-1, rank).T)
    values = np.empty((first.shape[0], right.shape[1]), np.float32)
    multiply(first, right, np.float32(1), values)
    return values.reshape(first.shape[0], *(factor.shape[0] for factor in others))


def factor_name(axis: int) -> str:
    """Name of the component of the factor of ``axis``."""
    return f"factor-{axis + 1}"


def factor_grid(grid: Grid, axis: int, rank: int) -> Grid:
    """The grid of the factor of ``axis`` of a part over ``grid``."""
    return Grid((grid.shape[axis], rank), (grid.chunk_shape[axis], rank))

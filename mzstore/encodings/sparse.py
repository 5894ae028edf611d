"""Encoding ``sparse``: values at some positions, which replace those of the parts before it (FORMAT.md section 8.5).

The positions of a chunk, in row-major order, are gaps, a byte each: b below 255 passes b values, and at the next one
stands an element; 255 passes 255 values. What is left of the array is filled with 255.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mzstore.arrays import Array, integers
from mzstore.dtypes import DType, cast
from mzstore.encodings import Coding, Component
from mzstore.errors import CorruptError
from mzstore.grid import MAX_CHUNK_NBYTES, Grid
from mzstore.payload import compress

NO_ELEMENT = 255
BLOCK = 1 << 16


@dataclass(frozen=True, slots=True)
class Sparse:
    """``sparse`` bound to a tensor of words. One that exists is valid; ValueError otherwise."""

    dtype: DType
    grid: Grid
    positions: Array
    values: Array
    wanted: DType | None = None  # what a read asks for instead of ``dtype``
    components: tuple[Component, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        n = self.grid.chunk_size
        if not self.grid.shape or n * self.dtype.word.itemsize > MAX_CHUNK_NBYTES:
            raise ValueError(
                f"chunks of {self.grid.chunk_shape} in {self.grid.shape}: one axis or more, and at most "
                f"{MAX_CHUNK_NBYTES} bytes of values"
            )
        for name, array, data_type in (
            ("positions", self.positions, "uint8"),
            ("values", self.values, self.dtype.disk),
        ):
            room = array.shape[-1] if array.shape else 0
            if not 1 <= room <= n:
                raise ValueError(f"{name!r} has room for {room} in each chunk of {n} values")
            expected = _array(self.grid, room, data_type)
            if (array.data_type, array.shape, array.chunk_shape) != (data_type, expected.shape, expected.chunk_shape):
                raise ValueError(
                    f"{name!r} is {array.data_type} {array.shape} in chunks of {array.chunk_shape}, "
                    f"not {data_type} {expected.shape} of {expected.chunk_shape}"
                )
        components = (Component("positions", self.positions), Component("values", self.values))
        object.__setattr__(self, "components", components)

    @classmethod
    def new(cls, dtype: DType, grid: Grid, n_positions: int, n_values: int) -> "Sparse":
        """The part that a writer makes, with room for so many bytes of positions and so many values in each chunk."""
        return cls(dtype, grid, _array(grid, n_positions, "uint8"), _array(grid, n_values, dtype.disk))

    @property
    def encoding(self) -> str:
        return "sparse"

    def component_chunk(self, component: Component, chunk: tuple[int, ...]) -> tuple[int, ...]:
        return (*chunk, 0)

    def to_json(self) -> dict[str, object]:
        return {"encoding": self.encoding, "chunk_shape": list(self.grid.chunk_shape)}

    @classmethod
    def from_json(cls, doc: dict[str, Any], dtype: DType, shape: tuple[int, ...], arrays: dict[str, Array]) -> "Sparse":
        """The part of ``doc`` over words of ``shape``; ``arrays`` are the arrays of its components."""
        if arrays.keys() != {"positions", "values"}:
            raise ValueError(f"the components are {', '.join(arrays)}, not positions and values")
        return cls(dtype, Grid(shape, integers(doc.get("chunk_shape"))), arrays["positions"], arrays["values"])

    def encode(self, positions: np.ndarray, values: np.ndarray, coding: Coding) -> list[bytes | memoryview]:
        """The bodies of a chunk with ``values`` (words) at ``positions`` of it, ascending."""
        steps = gaps(positions)
        steps = np.concatenate([steps, np.full(self.positions.shape[-1] - steps.size, NO_ELEMENT, np.uint8)])
        words = np.zeros(self.values.shape[-1], self.dtype.word)
        words[: values.size] = values
        return [
            compress([plane], coder=coding.coder, block_nbytes=coding.block_nbytes)
            for plane in (steps, words.view(np.uint8))
        ]

    def into(self, dtype: DType) -> "Sparse":
        return replace(self, wanted=dtype)

    @property
    def scratch_nbytes(self) -> int:
        """The values in another dtype; of a block of gaps the positions, up to eight numbers of 8 bytes and one for each axis."""
        positions = min(BLOCK, self.positions.shape[-1])
        return 16 * self.values.shape[-1] + 8 * (8 + 2 * len(self.grid.shape)) * positions

    def decode(self, read: Callable[[int], np.ndarray], source: tuple[slice, ...], out: np.ndarray, where: str) -> None:
        """Put the values into ``out``, which holds those of the parts before."""
        steps, words = read(0), read(1).view(self.dtype.word)
        if self.wanted:
            words = cast(words, self.dtype, self.wanted)
        for positions, which in self.elements(steps, where):
            self._place(positions, words[which], source, out)

    def elements(self, steps: np.ndarray, where: str) -> Iterator[tuple[np.ndarray, slice]]:
        """(positions in the chunk, ascending; which of its values stand there) of all elements, some at a time.

        ``steps`` is the chunk of ``positions``. Raises CorruptError for what lies behind the end.
        """
        passed = count = 0  # values of the chunk, elements
        for first in range(0, steps.size, BLOCK):  # positions take eight times the memory of their gaps
            block = steps[first : first + BLOCK]
            here = block < NO_ELEMENT
            ends = passed + np.cumsum(block + here, dtype=np.int64)
            positions = ends[here] - 1
            if count + positions.size > self.values.shape[-1] or (
                positions.size and positions[-1] >= self.grid.chunk_size
            ):
                raise CorruptError(
                    f"{count + positions.size} positions up to {positions[-1]}, in a chunk of {self.grid.chunk_size} "
                    f"values with room for {self.values.shape[-1]}",
                    where=where,
                    clause="sparse-3",
                )
            yield positions, slice(count, count + positions.size)
            passed, count = int(ends[-1]), count + positions.size

    def _place(self, positions: np.ndarray, words: np.ndarray, source: tuple[slice, ...], out: np.ndarray) -> None:
        inside, index = within(positions, self.grid.chunk_shape, source)
        out[index] = words[inside]


def within(
    positions: np.ndarray, shape: tuple[int, ...], box: tuple[slice, ...]
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """(which of ``positions``, in row-major order of ``shape``, lie in ``box``; the indices that these have in it)."""
    index = np.unravel_index(positions, shape)
    inside = np.ones(positions.size, bool)
    for at, cut in zip(index, box, strict=True):
        inside &= (at >= cut.start) & (at < cut.stop)
    return inside, tuple(at[inside] - cut.start for at, cut in zip(index, box, strict=True))


def gaps(positions: np.ndarray) -> np.ndarray:
    """uint8: ascending ``positions`` as bytes; see the head of this module."""
    passed = np.diff(positions, prepend=-1) - 1
    ends = np.cumsum(passed // NO_ELEMENT + 1)
    steps = np.full(int(ends[-1]) if ends.size else 0, NO_ELEMENT, np.uint8)
    steps[ends - 1] = passed % NO_ELEMENT
    return steps


def _array(grid: Grid, room: int, data_type: str) -> Array:
    return Array((*grid.counts, room), (*(1 for _ in grid.counts), room), data_type, zstd=True)

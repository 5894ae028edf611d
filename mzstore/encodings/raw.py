"""Encoding ``raw``: the words as they are, in one array (FORMAT.md section 8.1)."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from mzstore.arrays import Array
from mzstore.dtypes import DType
from mzstore.encodings import Coding, Component
from mzstore.grid import Grid, choose_chunk_shape
from mzstore.payload import compress


@dataclass(frozen=True, slots=True)
class Raw:
    """One array of ``shape``; or of one single word, which then stands at every position of ``shape``.

    A Raw that exists is valid; ValueError otherwise.
    """

    dtype: DType
    shape: tuple[int, ...]  # of the words
    array: Array
    components: tuple[Component, ...] = field(init=False, repr=False, compare=False)
    grid: Grid = field(init=False, repr=False, compare=False)
    constant: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.array.data_type != self.dtype.disk:
            raise ValueError(
                f"values of {self.dtype.name} are stored as {self.dtype.disk}, not as {self.array.data_type}"
            )
        constant = self.array.shape == (1,) * len(self.shape) != self.shape and 0 not in self.shape
        if self.array.shape != self.shape and not constant:
            raise ValueError(f"an array of {self.array.shape} does not hold the words of shape {self.shape}")
        # The grid of a constant is what a read fills at a time; the one stored chunk serves all of it.
        grid = Grid(self.shape, choose_chunk_shape(self.shape, self.array.itemsize)) if constant else self.array.grid
        for name, value in (("constant", constant), ("grid", grid), ("components", (Component("values", self.array),))):
            object.__setattr__(self, name, value)

    @property
    def encoding(self) -> str:
        return "raw"

    def to_json(self) -> dict[str, object]:
        return {"encoding": self.encoding}

    def component_chunk(self, component: Component, chunk: tuple[int, ...]) -> tuple[int, ...]:
        return (0,) * len(chunk) if self.constant else chunk

    def encode(self, words: np.ndarray, coding: Coding) -> list[bytes | memoryview]:
        body = np.ascontiguousarray(words).reshape(-1).view(np.uint8)
        if not self.array.zstd:
            return [body.data]
        return [compress([body], coder=coding.coder, block_nbytes=coding.block_nbytes)]

    def into(self, dtype: DType) -> None:
        return None

    @property
    def scratch_nbytes(self) -> int:
        return 0

    def decode(self, read: Callable[[int], np.ndarray], source: tuple[slice, ...], out: np.ndarray, where: str) -> None:
        words = read(0).view(self.array.word)
        if self.constant:
            out[...] = words[0]
        else:
            out[...] = words.reshape(self.array.chunk_shape)[source]


def constant_array(dtype: DType, shape: tuple[int, ...]) -> Array:
    """The array that says: every word of ``shape`` is the same."""
    ones = (1,) * len(shape)
    return Array(ones, ones, dtype.disk, zstd=False)

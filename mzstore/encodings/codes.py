"""Codes: those of a quantized part, a number each, and its scales, as the values of tensors of their own.

Only readers have these; nothing is stored like this.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from mzstore.dtypes import DTYPES, DType
from mzstore.encodings import Component
from mzstore.encodings.quantized import Quantized
from mzstore.encodings.raw import Raw
from mzstore.errors import CorruptError
from mzstore.grid import Grid
from mzstore.quantizers.packing import digits, per_byte
from mzstore.text import count


@dataclass(frozen=True, slots=True)
class Codes:
    """Reads the codes of ``part``, of which there is one for ``part.dimension`` values of the last axis."""

    part: Quantized
    components: tuple[Component, ...]  # ``codes``, and ``low`` if there are low bits; named as they are stored
    grid: Grid = field(init=False)

    def __post_init__(self) -> None:
        d = self.part.dimension
        shape, chunk_shape = (
            (*extents[:-1], -(-extents[-1] // d)) for extents in (self.part.grid.shape, self.part.grid.chunk_shape)
        )
        object.__setattr__(self, "grid", Grid(shape, chunk_shape))

    @property
    def encoding(self) -> str:
        return "codes"

    @property
    def dtype(self) -> DType:
        return DTYPES["uint8" if self.part.levels <= 256 else "uint16"]

    def component_chunk(self, component: Component, chunk: tuple[int, ...]) -> tuple[int, ...]:
        return chunk

    def into(self, dtype: DType) -> None:
        return None

    @property
    def scratch_nbytes(self) -> int:
        """Codes, of which each has a byte or two, and their low bits twice, before and after they are cut."""
        return (6 if self.part.low_bits else 2) * self.grid.chunk_size

    def decode(self, read: Callable[[int], np.ndarray], source: tuple[slice, ...], out: np.ndarray, where: str) -> None:
        """See ``Part.decode``; refuses what a read of the values refuses."""
        part, body = self.part, read(0)
        if part.low_bits:
            whole = tuple(slice(0, n) for n in self.grid.chunk_shape)
            low = _cut(read(1), per_byte(1 << part.low_bits), whole, self.grid)
            codes = _cut(body, 1, whole, self.grid).astype(np.uint16) << np.uint16(part.low_bits)
            codes |= low & np.uint8((1 << part.low_bits) - 1)
            largest, codes = int(codes.max()), codes[source]
        else:
            largest, codes = int(body.max()), _cut(body, part.per_byte, source, self.grid)
        if largest >= part.levels**part.per_byte:
            raise CorruptError(
                f"{largest} in the chunk is no {count(part.per_byte, 'code')} of {part.levels} levels",
                where=where,
                clause="quantized-5",
            )
        out[...] = codes


def _cut(body: np.ndarray, n: int, source: tuple[slice, ...], grid: Grid) -> np.ndarray:
    """What ``source`` cuts from a chunk of ``grid`` with ``n`` codes in a byte."""
    *lead, last = source
    packed = body.reshape(*grid.chunk_shape[:-1], -1)[(*lead, slice(last.start // n, -(-last.stop // n)))]
    if n == 1:
        return packed
    first = last.start % n
    codes: np.ndarray = digits(n)[packed].reshape(*packed.shape[:-1], -1)
    return codes[..., first : first + last.stop - last.start]


@dataclass(frozen=True, slots=True)
class Factors(Raw):
    """Scales, or a codebook: floats that have to be finite."""

    @property
    def scratch_nbytes(self) -> int:
        return 5 * self.grid.chunk_size  # in float32, and whether each is finite

    def decode(self, read: Callable[[int], np.ndarray], source: tuple[slice, ...], out: np.ndarray, where: str) -> None:
        body = read(0)
        if not np.isfinite(body.view(self.dtype.numpy).astype(np.float32)).all():
            raise CorruptError("scales or a codebook with NaN or infinity", where=where, clause="quantized-7")
        Raw.decode(self, lambda _: body, source, out, where)

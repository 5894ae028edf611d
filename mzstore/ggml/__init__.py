"""ggml: the block types of llama.cpp, and the numbers in their blocks.

A row of a tensor is cut into blocks of ``size`` values, of ``nbytes`` each, with no padding. What the bits of a block mean
is a table here (``TYPES``), which FORMAT.md has as well: fields of numbers, such as codes, and from which bits of which
bytes each number is put together. Structures are those of ggml-common.h (https://github.com/ggml-org/llama.cpp, MIT).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from mzstore import kernels

# Bits of a number -> bits of its planes, the most significant first. A number of 5 bits is cut in 4, of which two share a
# byte and shrink, and 1, which does not; so a Huffman coder has symbols of two codes, and bytes that fit.
PLANES = MappingProxyType(
    {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 8: (8,), 16: (8, 8), 32: (8, 8, 8, 8)}
)


NUMPY_COST = 8  # a number costs as much with NumPy as joining so many bytes (see kernels.pays)


class Run(NamedTuple):
    """``bits`` bits from ``shift`` on of ``n`` bytes of a block are the bits from ``target`` on of as many numbers.

    The bytes are ``offset``, ``offset + stride``, ...; the numbers ``first``, ``first + step``, ...
    """

    first: int
    n: int
    offset: int
    shift: int = 0
    bits: int = 8
    target: int = 0
    step: int = 1
    stride: int = 1

    @property
    def numbers(self) -> slice:
        return slice(self.first, self.first + self.step * self.n, self.step)

    @property
    def bytes(self) -> slice:
        return slice(self.offset, self.offset + self.stride * self.n, self.stride)


@dataclass(frozen=True, slots=True)
class Field:
    """``count`` numbers of ``width`` bits in each block; all their bits are in ``runs``. ``read_as``: what they are; unsigned if empty."""

    name: str
    count: int
    width: int
    runs: tuple[Run, ...]
    read_as: str = ""

    @property
    def dtype(self) -> np.dtype:
        """In which numbers are extracted."""
        return np.dtype(f"<u{max(8, self.width) // 8}")

    @property
    def table(self) -> np.ndarray:
        """The runs, int64[runs, 8]."""
        return np.array(self.runs, np.int64)

    @property
    def planes(self) -> tuple[int, ...]:
        """Bits of each plane, the most significant first."""
        return PLANES[self.width]

    @property
    def nbytes(self) -> int:
        """In a block."""
        return self.count * self.width // 8


@dataclass(frozen=True, slots=True, eq=False)  # there is one object for each type: TYPES
class BlockType:
    """``number`` is that of ``ggml_type``. The fields are in the order in which they are stored here (FORMAT.md)."""

    name: str
    number: int
    size: int
    nbytes: int
    fields: tuple[Field, ...]

    @property
    def bits(self) -> float:
        """For each value, in the file."""
        return 8 * self.nbytes / self.size

    def field(self, name: str) -> Field:
        return next(field for field in self.fields if field.name == name)

    def row_nbytes(self, cols: int) -> int:
        """Of ``cols`` values, which are whole blocks."""
        return cols // self.size * self.nbytes

    def __reduce__(self) -> tuple[object, ...]:
        return (_by_name, (self.name,))


def extract(blocks: np.ndarray, field: Field) -> np.ndarray:
    """The numbers of ``field`` in uint8[n, bytes of a block]: unsigned [n, count]."""
    numbers = np.zeros((blocks.shape[0], field.count), field.dtype)
    if kernels.pays(NUMPY_COST * numbers.size):
        kernels.load_ggml().extract(np.ascontiguousarray(blocks), field.table, numbers)
        return numbers
    for run in field.runs:
        part = blocks[:, run.bytes]
        if run.bits < 8:
            part = part >> np.uint8(run.shift) & np.uint8((1 << run.bits) - 1)
        numbers[:, run.numbers] |= part.astype(field.dtype, copy=False) << field.dtype.type(run.target)
    return numbers


def insert(blocks: np.ndarray, field: Field, numbers: np.ndarray) -> None:
    """The inverse of ``extract``, into blocks that are 0 there."""
    if kernels.pays(NUMPY_COST * numbers.size):
        kernels.load_ggml().insert(np.ascontiguousarray(numbers), field.table, blocks)
        return
    for run in field.runs:
        part = numbers[:, run.numbers] >> field.dtype.type(run.target) & field.dtype.type((1 << run.bits) - 1)
        blocks[:, run.bytes] |= part.astype(np.uint8) << np.uint8(run.shift)


def _bytes(name: str, count: int, offset: int, read_as: str = "") -> Field:
    return Field(name, count, 8, (Run(0, count, offset),), read_as)


def _words(name: str, count: int, offset: int, width: int, stride: int = 0, read_as: str = "") -> Field:
    """Little-endian numbers of 16 or 32 bits, ``stride`` bytes apart; 0: side by side."""
    stride = stride or width // 8
    runs = (Run(0, count, offset + i, target=8 * i, stride=stride) for i in range(width // 8))
    return Field(name, count, width, tuple(runs), read_as)


def _half(name: str, offset: int) -> Field:
    return _words(name, 1, offset, 16, read_as="float16")


def _pairs(count: int, group: int, offset: int) -> tuple[Run, ...]:
    """4 bits: of every ``group`` numbers the first half is in the low bits of bytes, the second in the high bits."""
    half = group // 2
    return tuple(
        Run(start + half * high, half, offset + start // 2, 4 * high, 4)
        for start in range(0, count, group)
        for high in (0, 1)
    )


def _quarters(offset: int, target: int = 0) -> tuple[Run, ...]:
    """2 bits of 256 numbers: of every 128, each 32 have two bits of the same 32 bytes."""
    return tuple(
        Run(128 * half + 32 * i, 32, offset + 32 * half, 2 * i, 2, target) for half in (0, 1) for i in range(4)
    )


def _bits(count: int, offset: int, target: int = 0) -> tuple[Run, ...]:
    """1 bit: number ``i`` is bit ``i % 8`` of byte ``i // 8``."""
    return tuple(Run(i, count // 8, offset, i, 1, target, step=8) for i in range(8))


def _bits_by_byte(offset: int, target: int) -> tuple[Run, ...]:
    """1 bit of 256 numbers: number ``i`` is bit ``i // 32`` of byte ``i % 32``."""
    return tuple(Run(32 * i, 32, offset, i, 1, target) for i in range(8))


def _k_scales(offset: int) -> tuple[Field, ...]:
    """8 scales and 8 minimums of 6 bits in 12 bytes, as Q4_K and Q5_K have them."""
    return tuple(
        Field(
            name,
            8,
            6,
            (
                Run(0, 4, low, bits=6),
                Run(4, 4, offset + 8, shift, 4),
                Run(4, 4, low, 6, 2, target=4),
            ),
        )
        for name, low, shift in (("scales", offset, 0), ("minimums", offset + 4, 4))
    )


def _types() -> Mapping[str, BlockType]:
    scale = _half("scale", 0)
    both = (scale, _half("minimum", 2))
    rows = (
        BlockType("Q4_0", 2, 32, 18, (scale, Field("codes", 32, 4, _pairs(32, 32, 2)))),
        BlockType("Q4_1", 3, 32, 20, (*both, Field("codes", 32, 4, _pairs(32, 32, 4)))),
        BlockType("Q5_0", 6, 32, 22, (scale, Field("codes", 32, 5, _pairs(32, 32, 6) + _bits(32, 2, 4)))),
        BlockType("Q5_1", 7, 32, 24, (*both, Field("codes", 32, 5, _pairs(32, 32, 8) + _bits(32, 4, 4)))),
        BlockType("Q8_0", 8, 32, 34, (scale, _bytes("codes", 32, 2, "int8"))),
        BlockType("Q8_1", 9, 32, 36, (scale, _half("sum", 2), _bytes("codes", 32, 4, "int8"))),
        BlockType(
            "Q2_K", 10, 256, 84,
            (_half("scale", 80), _half("minimum", 82), _bytes("scales", 16, 0), Field("codes", 256, 2, _quarters(16))),
        ),
        BlockType(
            "Q3_K", 11, 256, 110,
            (
                _half("scale", 108),
                Field(
                    "scales", 16, 6,
                    (Run(0, 8, 96, 0, 4), Run(8, 8, 96, 4, 4), *(Run(4 * i, 4, 104, 2 * i, 2, 4) for i in range(4))),
                ),
                Field("codes", 256, 3, _quarters(32) + _bits_by_byte(0, 2)),
            ),
        ),
        BlockType("Q4_K", 12, 256, 144, (*both, *_k_scales(4), Field("codes", 256, 4, _pairs(256, 64, 16)))),
        BlockType(
            "Q5_K", 13, 256, 176,
            (*both, *_k_scales(4), Field("codes", 256, 5, _pairs(256, 64, 48) + _bits_by_byte(16, 4))),
        ),
        BlockType(
            "Q6_K", 14, 256, 210,
            (
                _half("scale", 208),
                _bytes("scales", 16, 192, "int8"),
                Field("codes", 256, 6, _pairs(256, 128, 0) + _quarters(128, 4)),
            ),
        ),
        BlockType("Q8_K", 15, 256, 292, (_words("scale", 1, 0, 32, read_as="float32"), _words("sums", 16, 260, 16, read_as="int16"), _bytes("codes", 256, 4, "int8"))),
        BlockType(
            "IQ2_XXS", 16, 256, 66,
            (
                scale,
                _words("signs", 8, 6, 32, stride=8),
                Field("entries", 32, 8, tuple(Run(4 * i, 4, 2 + 8 * i) for i in range(8))),
            ),
        ),
        BlockType("IQ2_XS", 17, 256, 74, (scale, _bytes("scales", 8, 66), _words("entries", 32, 2, 16))),
        BlockType("IQ3_XXS", 18, 256, 98, (scale, _words("signs", 8, 66, 32), _bytes("entries", 64, 2))),
        BlockType("IQ1_S", 19, 256, 50, (scale, _words("high", 8, 34, 16), _bytes("entries", 32, 2))),
        BlockType("IQ4_NL", 20, 32, 18, (scale, Field("codes", 32, 4, _pairs(32, 32, 2)))),
        BlockType(
            "IQ3_S", 21, 256, 110,
            (scale, _bytes("scales", 4, 106), _bytes("high", 8, 66), _bytes("entries", 64, 2), _bytes("signs", 32, 74)),
        ),
        BlockType(
            "IQ2_S", 22, 256, 82,
            (scale, _bytes("scales", 8, 74), _bytes("high", 8, 66), _bytes("entries", 32, 2), _bytes("signs", 32, 34)),
        ),
        BlockType(
            "IQ4_XS", 23, 256, 136,
            (
                scale,
                Field(
                    "scales", 8, 6,
                    (
                        *(Run(i, 4, 4, 4 * i, 4, step=2) for i in (0, 1)),
                        *(Run(i, 2, 2, 2 * i, 2, 4, step=4) for i in range(4)),
                    ),
                ),
                Field("codes", 256, 4, _pairs(256, 32, 8)),
            ),
        ),
        BlockType("IQ1_M", 29, 256, 56, (_words("scales", 4, 48, 16), _bytes("high", 16, 32), _bytes("entries", 32, 0))),
        BlockType("TQ1_0", 34, 256, 54, (_half("scale", 52), _bytes("trits", 52, 0))),
        BlockType("TQ2_0", 35, 256, 66, (_half("scale", 64), Field("codes", 256, 2, _quarters(0)))),
        BlockType("MXFP4", 39, 32, 17, (_bytes("scale", 1, 0), Field("codes", 32, 4, _pairs(32, 32, 1)))),
        BlockType("NVFP4", 40, 64, 36, (_bytes("scale", 4, 0), Field("codes", 64, 4, _pairs(64, 16, 4)))),
        BlockType("Q1_0", 41, 128, 18, (scale, Field("codes", 128, 1, _bits(128, 2)))),
    )  # fmt: skip
    return MappingProxyType({row.name: row for row in rows})


TYPES = _types()
BY_NUMBER = MappingProxyType({kind.number: kind for kind in TYPES.values()})


def _by_name(name: str) -> BlockType:
    return TYPES[name]

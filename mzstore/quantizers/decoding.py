"""Decoding: packed codes to values, straight into the caller's memory.

A Decoder is made once for a tensor and an output dtype; it holds the tables. Where one scale holds for the whole tensor, a
byte is looked up and all its values are stored at once (``expand``), or a code is scaled in vectors; anything else goes by
row blocks that stay in the cache through codes -> float32 -> each scale -> the dtype. NumPy does it where Numba does not pay.
"""

import functools
from dataclasses import dataclass, field

import numpy as np

from mzstore import kernels
from mzstore.dtypes import DTYPES
from mzstore.quantizers import Scheme, Shape, ZeroPoint, dequantize
from mzstore.quantizers.packing import BASES, digits, packed_cols
from mzstore.workspace import buffer

BLOCK = 1 << 15  # values of float32 that stay in the second-level cache between the steps over them
NUMPY_COST = 8  # decoding a value with NumPy costs as much as joining so many bytes (see kernels.pays)
MAX_EXPANDED_NBYTES = 16  # of the words of one byte: the kernel stores them at once, or in two pieces
_NO_TAIL = np.zeros(0, np.uint64)
DTYPES_OUT = ("float32", "float16", "bfloat16", "float64")


# See ``word_tables``.
Tables = tuple[np.ndarray, np.ndarray, np.ndarray, int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Local:
    """Scales and zero points over the rows of a chunk, in its first row's order: the values of ``Codes``.

    For a scale that is one for the whole matrix, or one for each column, they are those of the scheme. ``scales`` may be
    empty where all are, for then the decoder has them.
    """

    scales: tuple[np.ndarray, ...] = ()
    zero_points: np.ndarray | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Decoder:
    """``n`` codes of ``scheme`` to a byte (1: codes are uint8 or uint16), into ``dtype``."""

    scheme: Scheme
    n: int
    dtype: str
    _is_table: bool = field(
        init=False, repr=False
    )  # whether a code alone decides the value, of a word of 16 or 32 bits
    # Made when they are needed, with the scales in them: the word of each code, and those of each byte.
    _words: np.ndarray | None = field(init=False, repr=False)
    _tables: Tables | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES_OUT:
            raise ValueError(f"values cannot be decoded to {self.dtype}: one of {', '.join(DTYPES_OUT)}")
        if self.n not in BASES or (self.n > 1 and self.scheme.levels > BASES[self.n]):
            raise ValueError(f"{self.n} codes of {self.scheme.levels} levels do not share a byte")
        if self.n > 1 and self.scheme.dimension > 1:
            raise ValueError("codes of several weights do not share a byte")
        scheme = self.scheme
        is_table = (
            scheme.dimension == 1
            and not isinstance(scheme.zero_point, ZeroPoint)
            and self.dtype != "float64"
            and all(scale.values is not None and scale.values.size == 1 for scale in scheme.scales)
        )
        for name, value in (("_is_table", is_table), ("_words", None), ("_tables", None)):
            object.__setattr__(self, name, value)

    def _word_of_codes(self) -> np.ndarray:
        """The word of each code, where ``_is_table``."""
        if self._words is None:
            codes = np.arange(self.scheme.levels)[None]
            with np.errstate(over="ignore", invalid="ignore"):
                words = _to_words(dequantize(codes, self.scheme, self._scales(Local())), self.dtype)[0]
            object.__setattr__(self, "_words", words)
        assert self._words is not None
        return self._words

    def _word_tables(self) -> Tables:
        """``word_tables`` of these."""
        if self._tables is None:
            object.__setattr__(self, "_tables", word_tables(self._word_of_codes(), self.n))
        assert self._tables is not None
        return self._tables

    @property
    def _expands(self) -> bool:
        """Whether the values of a byte are stored at once."""
        return self._is_table and self.n > 1 and self.n * DTYPES[self.dtype].word.itemsize <= MAX_EXPANDED_NBYTES

    def decode(self, packed: np.ndarray, rows: slice, cols: slice, local: Local, out: np.ndarray) -> None:
        """Fill ``out`` from the codes of a chunk.

        packed  uint8 or uint16 [rows of the chunk, bytes or codes of a row], contiguous along the last axis
        rows    start and stop in the chunk
        cols    start and stop in values, anywhere
        out     words of ``dtype`` [rows, cols], contiguous along the last axis, rows in ascending memory

        Raises ValueError if a byte of ``packed`` is no code of the scheme, or there are not as many scales and zero points
        as the rows of the chunk need; nothing is written then.
        """
        self._check(packed)
        self._check_local(packed.shape[0], local)
        if not out.size:
            return
        if not kernels.pays(NUMPY_COST * out.size):
            with np.errstate(over="ignore", invalid="ignore"):
                self._decode_numpy(packed, rows, cols, local, out)
        elif self._expands:
            self._expand(packed, rows, cols, out)
        elif self._is_table and self.n == 1:
            self._by_code(packed, rows, cols, out)
        else:
            with np.errstate(over="ignore", invalid="ignore"):  # what is too large for the dtype becomes infinity
                self._by_blocks(packed, rows, cols, local, out)

    def _check(self, packed: np.ndarray) -> None:
        """The kernels look every code up in a table of ``levels`` entries."""
        levels = self.scheme.levels
        if self.n == 1:
            if levels < 256**packed.itemsize and packed.size and int(packed.max()) >= levels:
                raise ValueError(f"code {int(packed.max())}, where there are {levels} levels")
            return
        if not self._expands and packed.size:  # tables have 256 entries whatever the levels
            most = int(packed.max())
            if most >= BASES[self.n] ** self.n:
                raise ValueError(f"byte {most} holds no {self.n} codes")

    def _check_local(self, rows: int, local: Local) -> None:
        """The kernels index scales and zero points by row and column, whatever there is."""
        if self._is_table:
            return
        scheme = self.scheme
        scales = self._scales(local)
        if len(scales) != len(scheme.scales):
            raise ValueError(f"{len(scales)} arrays of scales, where there are {len(scheme.scales)}")
        needed = [("scales", scale.block, own) for scale, own in zip(scheme.scales, scales, strict=True)]
        if isinstance(scheme.zero_point, ZeroPoint):
            if local.zero_points is None:
                raise ValueError("no zero points, where each block has one")
            needed.append(("zero points", scheme.zero_point.block, local.zero_points))
        for name, block, own in needed:
            grid = (-(-rows // block[0]), -(-scheme.shape[1] // block[1]))
            if own.shape != grid:
                raise ValueError(f"{name} of shape {own.shape}, where blocks of {block} need {grid}")

    def _expand(self, packed: np.ndarray, rows: slice, cols: slice, out: np.ndarray) -> None:
        table, head, tail, head_nbytes, tail_nbytes = self._word_tables()
        first, skip = divmod(cols.start, self.n)
        memory, row = _bytes(out)
        source, start, source_row = _flat(packed, rows.start, first)
        kernels.load_quantized().expand(
            source, start, source_row, out.shape[0], out.shape[1], self.n, skip, table, head, tail,
            head_nbytes, tail_nbytes, memory, 0, row,
        )  # fmt: skip

    def _by_code(self, packed: np.ndarray, rows: slice, cols: slice, out: np.ndarray) -> None:
        kernel = kernels.load_quantized()
        memory, row = _words(out)
        source = (*_flat(packed, rows.start, cols.start), *out.shape)
        scheme = self.scheme
        if scheme.codebook is not None or len(scheme.scales) != 1 or self.dtype == "float16":
            kernel.look_up(*source, self._word_of_codes(), memory, 0, row)
            return
        (values,) = self._scales(Local())
        zero, scale = np.int32(scheme.zero_point), values[0, 0]  # type: ignore[arg-type]
        if self.dtype == "float32":
            kernel.scale_codes(*source, zero, scale, memory.view(np.float32), 0, row)
        else:
            kernel.scale_codes_bf16(*source, zero, scale, memory, 0, row)

    def _by_blocks(self, packed: np.ndarray, rows: slice, cols: slice, local: Local, out: np.ndarray) -> None:
        kernel = kernels.load_quantized()
        width = out.shape[1]
        high = max(1, BLOCK // width)
        for i in range(0, out.shape[0], high):
            n = min(high, out.shape[0] - i)
            first = rows.start + i
            values = buffer("quantized values", 4 * n * width).view(np.float32).reshape(n, width)
            self._table_values(kernel, packed, first, cols, local, values)
            for scale, own in zip(self.scheme.scales, self._scales(local), strict=True):
                target = (values.reshape(-1), 0, width, n, width)
                if own.shape[0] == 1 and scale.block[1] == 1:
                    kernel.multiply_columns(*target, own[0, cols])
                else:
                    block_rows = scale.block[0] if own.shape[0] > 1 else 1 << 62
                    kernel.multiply(*target, own, first, block_rows, cols.start, scale.block[1])
            self._store(kernel, values, out[i : i + n])

    def _table_values(
        self, kernel: object, packed: np.ndarray, first: int, cols: slice, local: Local, values: np.ndarray
    ) -> None:
        """Code - zero point, or the codebook's entry, for a block of rows."""
        n, width = values.shape
        scheme = self.scheme
        start = cols.start
        if self.n > 1:
            codes = buffer("quantized codes", n * width).reshape(n, width)
            at, skip = divmod(start, self.n)
            table, head, tail, *sizes = _digit_tables(self.n)
            kernel.expand(  # type: ignore[attr-defined]
                *_flat(packed, first, at),
                n,
                width,
                self.n,
                skip,
                table,
                head,
                tail,
                *sizes,
                codes.reshape(-1),
                0,
                width,
            )
            if codes.size and scheme.levels < BASES[self.n] and int(codes.max()) >= scheme.levels:
                raise ValueError(f"code {int(codes.max())}, where there are {scheme.levels} levels")
            source = (codes.reshape(-1), 0, width)
        elif scheme.dimension > 1:
            d = scheme.dimension
            own = packed[first : first + n, start // d : -(-cols.stop // d)]
            assert scheme.codebook is not None
            values[...] = scheme.codebook[own].reshape(n, -1)[:, start % d : start % d + width]
            return
        else:
            source = _flat(packed, first, start)
        target = (values.reshape(-1), 0, width)
        if scheme.codebook is not None:
            kernel.look_up(*source, n, width, scheme.codebook, *target)  # type: ignore[attr-defined]
        elif isinstance(scheme.zero_point, ZeroPoint):
            assert local.zero_points is not None
            block = scheme.zero_point.block
            block_rows = block[0] if local.zero_points.shape[0] > 1 else 1 << 62
            kernel.subtract(*source, n, width, local.zero_points, first, block_rows, start, block[1], values)  # type: ignore[attr-defined]
        else:
            kernel.scale_codes(*source, n, width, np.int32(scheme.zero_point), np.float32(1), *target)  # type: ignore[attr-defined]

    def _scales(self, local: Local) -> tuple[np.ndarray, ...]:
        return local.scales or tuple(scale.values for scale in self.scheme.scales if scale.values is not None)

    def _store(self, kernel: object, values: np.ndarray, out: np.ndarray) -> None:
        if self.dtype == "bfloat16":
            memory, row = _words(out)
            kernel.round_bf16(values.view(np.uint32), *values.shape, memory, 0, row)  # type: ignore[attr-defined]
        else:
            out.view(DTYPES[self.dtype].numpy)[...] = values

    def _decode_numpy(self, packed: np.ndarray, rows: slice, cols: slice, local: Local, out: np.ndarray) -> None:
        """By row blocks, as the kernels do; the same bits."""
        d = self.scheme.dimension
        width = out.shape[1]
        high = max(1, BLOCK // width)
        for i in range(0, out.shape[0], high):
            n = min(high, out.shape[0] - i)
            own = packed[rows.start + i : rows.start + i + n]
            if self.n > 1:
                first, skip = divmod(cols.start, self.n)
                own = digits(self.n)[own[:, first : packed_cols(cols.stop, self.n)]].reshape(n, -1)[
                    :, skip : skip + width
                ]
                if int(own.max()) >= self.scheme.levels:
                    raise ValueError(f"code {int(own.max())}, where there are {self.scheme.levels} levels")
            else:
                own = own[:, cols.start // d : -(-cols.stop // d)]
            if self._is_table:
                out[i : i + n] = self._word_of_codes()[own]
                continue
            out[i : i + n] = _to_words(self._values(own, rows.start + i, cols, local), self.dtype)

    def _values(self, codes: np.ndarray, first: int, cols: slice, local: Local) -> np.ndarray:
        scheme = self.scheme
        width, rows = cols.stop - cols.start, slice(first, first + codes.shape[0])
        values: np.ndarray
        if scheme.codebook is not None:
            at = cols.start % scheme.dimension
            values = scheme.codebook[codes].reshape(codes.shape[0], -1)[:, at : at + width]
        else:
            zero = scheme.zero_point
            if isinstance(zero, ZeroPoint):
                assert local.zero_points is not None
                values = (codes.astype(np.int32) - _over(local.zero_points, zero.block, rows, cols)).astype(np.float32)
            else:
                values = (codes.astype(np.int32) - np.int32(zero)).astype(np.float32)
        for scale, own in zip(scheme.scales, self._scales(local), strict=True):
            values = values * _over(own, scale.block, rows, cols)
        return values


def _over(values: np.ndarray, block: Shape, rows: slice, cols: slice) -> np.ndarray:
    """``values`` of a grid of blocks, so that they broadcast over these rows and columns; no more than these are spread."""
    for axis, cut in enumerate((rows, cols)):
        if values.shape[axis] > 1:
            first, skip = divmod(cut.start, block[axis])
            own = values.take(range(first, -(-cut.stop // block[axis])), axis=axis)
            own = np.repeat(own, block[axis], axis=axis)
            values = own.take(range(skip, skip + cut.stop - cut.start), axis=axis)
    return values


@functools.cache
def _digit_tables(n: int) -> Tables:
    """``word_tables`` of the codes themselves."""
    return word_tables(np.arange(BASES[n], dtype=np.uint8), n)


def word_tables(words: np.ndarray, n: int) -> Tables:
    """(table, head, tail, head bytes, tail bytes) of ``kernels.quantized.expand`` for the word of each code.

    A digit that is no code (levels below the base of the packing) gives the word of the last code: every byte has values.
    """
    table = words[_digits_below(n, words.size)]
    size = n * words.itemsize
    head_nbytes = 4 if size <= 4 else 8
    if size == head_nbytes:
        head = table.view(f"<u{size}").reshape(256)
        return table, head, _NO_TAIL, head_nbytes, 0
    tail_nbytes = next(nbytes for nbytes in (0, 2, 4, 8) if head_nbytes + nbytes >= size)
    raw = np.zeros((256, head_nbytes + max(tail_nbytes, 8)), np.uint8)
    raw[:, :size] = table.view(np.uint8).reshape(256, size)
    head = raw[:, :head_nbytes].copy().view(f"<u{head_nbytes}").reshape(256)
    tail = raw[:, head_nbytes : head_nbytes + (tail_nbytes or 8)].copy().view(f"<u{tail_nbytes or 8}").reshape(256)
    return table, head, tail, head_nbytes, tail_nbytes


@functools.cache
def _digits_below(n: int, levels: int) -> np.ndarray:
    """int64[256, n]: ``digits``, none of them beyond the last of ``levels``."""
    return np.minimum(digits(n).astype(np.int64), levels - 1)


def _to_words(values: np.ndarray, dtype: str) -> np.ndarray:
    """The words of float32 ``values``, rounded to ``dtype`` to nearest even."""
    with np.errstate(over="ignore"):
        return values.astype(DTYPES[dtype].numpy).view(DTYPES[dtype].word)


def _flat(array: np.ndarray, row: int, col: int) -> tuple[np.ndarray, int, int]:
    """(memory in one dimension, where ``array[row, col]`` is in it, entries between rows)."""
    if array.flags.c_contiguous:  # as_strided takes longer than decoding some thousand values
        return array.reshape(-1), row * array.shape[1] + col, array.shape[1]
    stride = array.strides[0] // array.itemsize
    span = (array.shape[0] - 1) * stride + array.shape[1]
    flat = np.lib.stride_tricks.as_strided(array, (span,), (array.itemsize,))
    return flat, row * stride + col, stride


def _words(out: np.ndarray) -> tuple[np.ndarray, int]:
    """The memory of ``out`` in one dimension, gaps included, and the entries between rows."""
    flat, _, stride = _flat(out, 0, 0)
    return flat, stride


def _bytes(out: np.ndarray) -> tuple[np.ndarray, int]:
    flat, _, stride = _flat(out, 0, 0)
    return flat.view(np.uint8), stride * out.itemsize

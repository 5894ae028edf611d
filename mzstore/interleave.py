"""Words to byte planes and back: in NumPy, or in the Numba kernels where they pay. Both give the same bytes.

A word is rotated left by one bit where its dtype has a sign (which so comes to stand last), then cut, from the
most significant bit down, into a *top field* and low planes of 8 bits or less (FORMAT.md section 8.2).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mzstore import kernels
from mzstore.workspace import buffer

BLOCK = 1 << 16  # words in one NumPy step: temporaries stay in the second-level cache


@dataclass(frozen=True, slots=True)
class Fields:
    """How a word of ``word_bits`` is cut: ``top_bits`` first, then the planes of ``low_bits``."""

    word_bits: int
    top_bits: int
    rotate: bool

    def __post_init__(self) -> None:
        if self.word_bits not in (8, 16, 32, 64) or not 1 <= self.top_bits <= min(16, self.word_bits):
            raise ValueError(f"a top field of {self.top_bits} bits does not fit a word of {self.word_bits}")

    @property
    def low_bits(self) -> tuple[int, ...]:
        """Bits in each low plane: the odd ones come first, so that all others are whole bytes."""
        rest = self.word_bits - self.top_bits
        return ((rest % 8,) if rest % 8 else ()) + (8,) * (rest // 8)

    @property
    def low_shifts(self) -> tuple[int, ...]:
        return tuple(sum(self.low_bits[k + 1 :]) for k in range(len(self.low_bits)))

    @property
    def top_shift(self) -> int:
        return self.word_bits - self.top_bits

    @property
    def word(self) -> np.dtype:
        return np.dtype(f"<u{self.word_bits // 8}")


def tops(words: np.ndarray, fields: Fields) -> np.ndarray:
    """The top fields of ``words``, as uint16."""
    top: np.ndarray = _rotated_left(words, fields) >> fields.word.type(fields.top_shift)
    return top.astype(np.uint16)


def split(words: np.ndarray, fields: Fields, ranks: np.ndarray | None, planes: np.ndarray) -> None:
    """Fill ``planes`` (uint8[1 + low planes, n], contiguous) from ``words`` (n, contiguous).

    ``ranks`` (uint8[2 ** top_bits]) is what stands for each top field; None: the field itself, of 8 bits.
    """
    if ranks is None and fields.rotate and fields.word_bits in (16, 32) and kernels.pays(words.nbytes):
        kernel = kernels.load()
        (kernel.split2 if fields.word_bits == 16 else kernel.split4)(words, planes)
        return
    for start in range(0, words.size, BLOCK):
        part = slice(start, start + BLOCK)
        r = _rotated_left(words[part], fields)
        top = r >> fields.word.type(fields.top_shift)
        planes[0, part] = top if ranks is None else ranks[top]
        for k, (bits, shift) in enumerate(zip(fields.low_bits, fields.low_shifts, strict=True), 1):
            planes[k, part] = (r >> fields.word.type(shift)) & fields.word.type((1 << bits) - 1)


def join(
    top: np.ndarray,
    low: np.ndarray,
    source: tuple[slice, ...],
    fields: Fields,
    table: np.ndarray | None,
    out: np.ndarray,
) -> None:
    """Fill ``out`` with the words whose planes stand at ``source`` of a chunk; the inverse of ``split``.

    top    uint8[*chunk], contiguous; its values are below len(table) (the caller has checked)
    low    uint8[low planes, *chunk], contiguous
    table  the top field for each value in ``top``, of the word type; None: the value itself, of 8 bits
    out    words, of the shape that ``source`` (step 1) cuts; contiguous along its last axis
    """
    step = _join_compiled if kernels.pays(out.nbytes) else _join_numpy
    planes = (top.reshape(-1), low.reshape(len(low), top.size), fields, table, _flat(out))
    if out.size == top.size and out.flags.c_contiguous:  # a whole chunk into a place of its own: one row
        step(*planes, _Walk(0, 0, 1, top.size, top.size, top.size))
        return
    strides = [s // out.itemsize for s in out.strides]
    first = sum(cut.start * stride for cut, stride in zip(source, top.strides, strict=True))
    for start, out_start, *rest in _rows(list(out.shape), list(top.strides), strides):
        step(*planes, _Walk(first + start, out_start, *rest))


def expand_ranks(ranks: np.ndarray, table: np.ndarray, out: np.ndarray) -> None:
    """Fill ``out`` (uint8[*chunk]) with table[rank], two ranks of 4 bits to a byte of ``ranks``, low one first."""
    cols = out.shape[-1] if out.ndim else 1
    if cols % 2 == 0:  # then rows go on without a gap, and are one
        cols = out.size
    out2, ranks2 = out.reshape(-1, cols), ranks.reshape(-1, (cols + 1) // 2)
    if kernels.pays(out.size):
        kernels.load().expand_ranks(ranks2, table, out2)
        return
    pairs = np.empty((256, 2), np.uint8)
    pairs[:, 0], pairs[:, 1] = table[np.arange(256) & 15], table[np.arange(256) >> 4]
    for row, target in zip(ranks2, out2, strict=True):
        for j in range(0, row.size, BLOCK):
            part = pairs[row[j : j + BLOCK]].reshape(-1)
            target[2 * j : 2 * (j + BLOCK)] = part[: cols - 2 * j]


def pack_ranks(ranks: np.ndarray) -> np.ndarray:
    """Two ranks (uint8[*chunk], below 16) to a byte along the last axis; the inverse of ``expand_ranks``."""
    if ranks.shape[-1] % 2:
        ranks = np.concatenate([ranks, np.zeros((*ranks.shape[:-1], 1), np.uint8)], axis=-1)
    packed: np.ndarray = ranks[..., 0::2] | (ranks[..., 1::2] << 4)
    return packed


def _rotated_left(words: np.ndarray, fields: Fields) -> np.ndarray:
    if not fields.rotate:
        return words
    one, turn = fields.word.type(1), fields.word.type(fields.word_bits - 1)
    rotated: np.ndarray = (words << one) | (words >> turn)
    return rotated


@dataclass(frozen=True, slots=True)
class _Walk:
    """Rows in a source and a target: ``rows`` of ``cols`` entries, from ``start``, ``row`` entries apart."""

    start: int
    out_start: int
    rows: int
    row: int
    out_row: int
    cols: int


def _rows(shape: list[int], a: list[int], b: list[int]) -> Iterator[tuple[int, ...]]:
    """Walk two arrays of one shape, with strides ``a`` and ``b`` in entries, as few runs of rows.

    Yields (start in a, start in b, rows, row stride of a, row stride of b, columns).
    """
    long = [axis for axis, n in enumerate(shape) if n > 1]  # the stride of another axis means nothing
    shape, a, b = ([values[axis] for axis in long] for values in (shape, a, b))
    if not long or a[-1] != 1 or b[-1] != 1:  # the last axis, on which entries lie side by side, was not long
        for values in (shape, a, b):
            values.append(1)
    for axis in reversed(range(len(shape) - 1)):  # merge an axis with the next where both arrays go on without a jump
        size = shape[axis + 1]
        if a[axis] == size * a[axis + 1] and b[axis] == size * b[axis + 1]:
            shape[axis : axis + 2] = [shape[axis] * size]
            del a[axis], b[axis]
    while len(shape) < 2:
        for sizes, neutral in ((shape, 1), (a, 0), (b, 0)):
            sizes.insert(0, neutral)
    for index in np.ndindex(*shape[:-2]):
        starts = (sum(i * stride for i, stride in zip(index, strides, strict=False)) for strides in (a, b))
        yield *starts, shape[-2], a[-2], b[-2], shape[-1]


def _flat(out: np.ndarray) -> np.ndarray:
    """The memory from the first entry of ``out`` to its last, gaps included, as one dimension."""
    if out.flags.c_contiguous:
        return out.reshape(-1)
    span = 1 + sum((n - 1) * (s // out.itemsize) for n, s in zip(out.shape, out.strides, strict=True))
    return np.lib.stride_tricks.as_strided(out, (span,), (out.itemsize,))


def _join_compiled(
    top: np.ndarray, low: np.ndarray, fields: Fields, table: np.ndarray | None, out: np.ndarray, walk: _Walk
) -> None:
    kernel = kernels.load()
    source = (top, walk.start, walk.row, low.reshape(-1), walk.start, walk.row, top.size)
    target = (out, walk.out_start, walk.out_row, walk.rows, walk.cols)
    if table is None and fields.rotate and fields.word_bits == 16:
        kernel.join2(*source, *target)
    elif table is None and fields.rotate and fields.word_bits == 32:
        kernel.join4(*source, *target)
    else:
        factors = np.array([1 << shift for shift in fields.low_shifts], fields.word)
        masks = np.array([(1 << bits) - 1 for bits in fields.low_bits], np.uint8)
        turn = fields.word_bits - 1 if fields.rotate else 0
        kernel.join_any(*source, *target, _shifted(fields, table), factors, masks, turn)


def _join_numpy(
    top: np.ndarray, low: np.ndarray, fields: Fields, table: np.ndarray | None, out: np.ndarray, walk: _Walk
) -> None:
    word = fields.word.type
    shifted = None if table is None else _shifted(fields, table)

    def rows_of(array: np.ndarray, start: int, row: int) -> np.ndarray:
        return np.lib.stride_tricks.as_strided(
            array[start:], (walk.rows, walk.cols), (row * array.itemsize, array.itemsize)
        )

    tops = rows_of(top, walk.start, walk.row)
    lows = [
        (rows_of(plane, walk.start, walk.row), bits, shift)
        for plane, bits, shift in zip(low, fields.low_bits, fields.low_shifts, strict=True)
    ]
    target = rows_of(out, walk.out_start, walk.out_row)
    high, wide = min(walk.rows, max(1, BLOCK // walk.cols)), min(walk.cols, BLOCK)
    scratch = buffer("join", 2 * high * wide * out.itemsize).view(fields.word).reshape(2, high, wide)
    for i in range(0, walk.rows, high):
        for j in range(0, walk.cols, wide):
            part = (slice(i, i + high), slice(j, j + wide))
            r, field = scratch[:, : min(high, walk.rows - i), : min(wide, walk.cols - j)]
            if shifted is None:
                np.copyto(r, tops[part])
                np.left_shift(r, word(fields.top_shift), out=r)
            else:
                np.copyto(r, shifted[tops[part]])
            for plane, bits, shift in lows:
                np.copyto(field, plane[part])
                if bits < 8:
                    np.bitwise_and(field, word((1 << bits) - 1), out=field)
                if shift:
                    np.left_shift(field, word(shift), out=field)
                np.bitwise_or(r, field, out=r)
            if fields.rotate:
                np.left_shift(r, word(fields.word_bits - 1), out=field)
                np.right_shift(r, word(1), out=r)
                np.bitwise_or(r, field, out=target[part])
            else:
                np.copyto(target[part], r)


def _shifted(fields: Fields, table: np.ndarray | None) -> np.ndarray:
    """The table of top fields with 256 entries, shifted to where they stand in a word."""
    full = np.zeros(256, fields.word)
    values = np.arange(1 << min(8, fields.top_bits), dtype=fields.word) if table is None else table
    full[: values.size] = values.astype(fields.word) << fields.word.type(fields.top_shift)
    return full

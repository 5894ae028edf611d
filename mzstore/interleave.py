"""Words to byte planes and back: in NumPy, or in the Numba kernels where they pay. Both give the same bytes.

A word is rotated left by one bit where its dtype has a sign (which so comes to stand last), then cut, from the
most significant bit down, into a *top field* and low planes of 8 bits or less (FORMAT.md section 8.2).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mzstore import kernels
from mzstore.workspace import buffer

N_RANKS = 16
MIDDLE_RANK = 8  # stands where there is an escape
SMALL_BLOCK = 256  # words that are searched one by one if there is an escape among them
NO_ESCAPE = 0xFFFF_FFFF  # fills the rest of a chunk's escapes
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


def count_beyond(words: np.ndarray, fields: Fields, first: int) -> int:
    """How many of ``words`` have a top field that has no rank if rank 0 is ``first``."""
    word = fields.word.type
    # A sign that is shifted out instead of rotated to the end changes no top field.
    shift, least, span = word(fields.rotate), word(first << fields.top_shift), word(N_RANKS << fields.top_shift)
    if kernels.pays(words.nbytes):
        return int(kernels.load().count_beyond(*_as_rows(words), shift, least, span))
    found = 0
    for block in _blocks(words):
        r = block << shift
        r -= least
        found += int(np.count_nonzero(r >= span))
    return found


def split(words: np.ndarray, fields: Fields, symbols: np.ndarray | None, planes: np.ndarray) -> None:
    """Fill ``planes`` (uint8[1 + low planes, n], contiguous) from the n ``words``.

    ``words`` are contiguous along their last axis. ``symbols`` (uint8[2 ** top_bits]) is what stands for each top
    field; None: the field itself, of 8 bits.
    """
    if symbols is None and fields.rotate and fields.word_bits in (16, 32) and kernels.pays(words.nbytes):
        kernel = kernels.load()
        step = kernel.split2 if fields.word_bits == 16 else kernel.split4
        step(*_as_rows(words), planes)
        return
    start = 0
    for block in _blocks(words):
        r = _rotated_left(block, fields).reshape(-1)
        part = slice(start, start + r.size)
        start = part.stop
        top = r >> fields.word.type(fields.top_shift)
        planes[0, part] = top if symbols is None else symbols[top]
        for k, (bits, shift) in enumerate(zip(fields.low_bits, fields.low_shifts, strict=True), 1):
            planes[k, part] = (r >> fields.word.type(shift)) & fields.word.type((1 << bits) - 1)


def _as_rows(words: np.ndarray) -> tuple[np.ndarray, int, int, int, int]:
    """``words``, contiguous along their last axis, as kernels take them: (memory, start, row stride, rows, columns)."""
    if words.flags.c_contiguous:
        return words.reshape(-1), 0, 0, 1, words.size
    rows = words.reshape(-1, words.shape[-1])  # a copy if the rows are not evenly apart
    return _flat(rows), 0, rows.strides[0] // words.itemsize, *rows.shape


def _blocks(words: np.ndarray) -> Iterator[np.ndarray]:
    """``words`` one after the other in pieces that stay in the cache."""
    if words.flags.c_contiguous:
        flat = words.reshape(-1)
        yield from (flat[start : start + BLOCK] for start in range(0, flat.size, BLOCK))
    else:
        rows = words.reshape(-1, words.shape[-1])
        step = max(1, BLOCK // rows.shape[1])
        yield from (rows[start : start + step] for start in range(0, len(rows), step))


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
    if out.shape[-1] == out.size and out.flags.c_contiguous:  # a run of one row, as of the values of a sparse part
        first = sum(cut.start * stride for cut, stride in zip(source, top.strides, strict=True))
        step(*planes, _Walk(first, 0, 1, out.size, out.size, out.size))
        return
    if out.ndim == 2 and out.shape[1] > 1 and top.shape[1] > 1:  # rows of a matrix: the rule among those that are left
        start = source[0].start * top.shape[1] + source[1].start
        step(*planes, _Walk(start, 0, out.shape[0], top.shape[1], out.strides[0] // out.itemsize, out.shape[1]))
        return
    strides = [s // out.itemsize for s in out.strides]
    first = sum(cut.start * stride for cut, stride in zip(source, top.strides, strict=True))
    for start, out_start, *rest in _rows(list(out.shape), list(top.strides), strides):
        step(*planes, _Walk(first + start, out_start, *rest))


def expand_ranks(packed: np.ndarray, first: int, escapes: np.ndarray, out: np.ndarray) -> bool:
    """Fill ``out`` (uint8[n]) with top fields: the inverse of ``pack_ranks``. Whether ``escapes`` were as they have to be.

    packed   uint8[ceil(n / 2)]; each rank stands for the top field ``first + rank``
    escapes  uint32: position * 256 + top field, ascending, then NO_ESCAPE
    """
    if kernels.pays(out.size):
        valid: bool = kernels.load().expand_ranks(packed, first, escapes, NO_ESCAPE, out)
        return valid
    for start in range(0, packed.size, BLOCK):
        part = packed[start : start + BLOCK]
        pairs = buffer("ranks", 2 * part.size).view("<u2")  # a pair of bytes at a time
        np.multiply(part, np.uint16(1 << 4), out=pairs)
        np.bitwise_or(pairs, part, out=pairs)
        np.bitwise_and(pairs, 0x0F0F, out=pairs)
        target = out[2 * start : 2 * (start + BLOCK)]
        np.add(pairs.view(np.uint8)[: target.size], np.uint8(first), out=target)
    used = escapes[: np.count_nonzero(escapes != NO_ESCAPE)]
    at = used >> 8
    if used.size and (
        int(at[-1]) >= out.size or (at[1:] <= at[:-1]).any()
    ):  # a NO_ESCAPE among them breaks one of the two
        return False
    out[at] = used & 255
    return True


def pack_ranks(top: np.ndarray, first: int) -> tuple[np.ndarray, np.ndarray]:
    """Top fields (uint8[n]) as ranks from ``first`` on, two of 4 bits to a byte, the first one low; and those that have
    no rank as escapes (uint32: position * 256 + top field), for which the rank MIDDLE_RANK stands.
    """
    packed = np.empty((top.size + 1) // 2, np.uint8)
    if kernels.pays(top.size):
        escapes, ranks = np.empty(top.size, "<u4"), buffer("ranks", SMALL_BLOCK)
        n_escapes = kernels.load().pack_ranks(top, first, MIDDLE_RANK, ranks, ranks.view("<u2"), packed, escapes)
        return packed, escapes[:n_escapes]
    found = [np.empty(0, "<u4")]
    for start in range(0, top.size, BLOCK):
        part = top[start : start + BLOCK]
        even = part.size + part.size % 2
        ranks, pairs = buffer("ranks", even), buffer("pairs", even).view("<u2")
        ranks[-1] = 0
        np.subtract(part, np.uint8(first), out=ranks[: part.size])
        if ranks.max() >= N_RANKS:
            at = np.flatnonzero(ranks >= N_RANKS)
            found.append(((start + at) * 256 + part[at]).astype("<u4"))
            ranks[at] = MIDDLE_RANK
        np.right_shift(ranks.view("<u2"), 4, out=pairs)
        np.bitwise_or(pairs, ranks.view("<u2"), out=pairs)
        np.copyto(packed[start // 2 : (start + even) // 2], pairs, casting="unsafe")  # the lower byte of each
    return packed, np.concatenate(found)


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
        size = array.itemsize  # this is ten times as fast as as_strided
        return np.ndarray((walk.rows, walk.cols), array.dtype, array, start * size, (row * size, size))

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
            # NumPy multiplies twice as fast as it shifts to the left.
            if shifted is None:
                np.multiply(tops[part], word(1 << fields.top_shift), out=r)
            else:
                np.copyto(r, shifted[tops[part]])
            for plane, bits, shift in lows:
                source = plane[part]
                if bits < 8:
                    source = np.bitwise_and(source, word((1 << bits) - 1), out=field)
                if shift:
                    source = np.multiply(source, word(1 << shift), out=field)
                np.bitwise_or(r, source, out=r)
            if fields.rotate:
                np.multiply(r, word(1 << (fields.word_bits - 1)), out=field)
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

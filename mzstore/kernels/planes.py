"""Kernels of the encoding ``planes``: words to planes and back.

Sources and targets are one-dimensional; a row is ``cols`` entries side by side, and row ``i`` of array ``x``
begins at ``x_start + i * x_row``. The planes below the first lie ``low_plane`` bytes apart in ``low``.
"""

import numba
import numpy as np

OPTIONS = {"nogil": True, "boundscheck": False, "fastmath": False, "error_model": "numpy"}
BLOCK = 4096  # entries; a block of 64-bit words stays in the first-level cache between the passes over it


def jit(function):
    try:
        return numba.njit(cache=True, **OPTIONS)(function)
    except RuntimeError:  # neither the package nor the user's cache directory can be written: compile in every process
        return numba.njit(cache=False, **OPTIONS)(function)


# Offsets are made unsigned first: a signed index may be negative, and LLVM does not vectorize the test for it.


@jit
def join2(top, top_start, top_row, low, low_start, low_row, low_plane, out, out_start, out_row, rows, cols):
    """16-bit words from two planes of 8 bits, rotated right by one."""
    n = np.uint64(cols)
    for i in range(rows):
        t = np.uint64(top_start + i * top_row)
        a = np.uint64(low_start + i * low_row)
        o = np.uint64(out_start + i * out_row)
        for j in range(n):
            r = np.uint16((np.uint16(top[t + j]) << 8) | low[a + j])
            out[o + j] = (r >> 1) | (r << 15)


@jit
def join4(top, top_start, top_row, low, low_start, low_row, low_plane, out, out_start, out_row, rows, cols):
    """32-bit words from four planes of 8 bits, rotated right by one."""
    n = np.uint64(cols)
    for i in range(rows):
        t = np.uint64(top_start + i * top_row)
        a = np.uint64(low_start + i * low_row)
        b = np.uint64(low_start + i * low_row + low_plane)
        c = np.uint64(low_start + i * low_row + 2 * low_plane)
        o = np.uint64(out_start + i * out_row)
        for j in range(n):
            r = np.uint32(
                (np.uint32(top[t + j]) << 24)
                | (np.uint32(low[a + j]) << 16)
                | (np.uint32(low[b + j]) << 8)
                | low[c + j]
            )
            out[o + j] = (r >> 1) | (r << 31)


@jit
def join_any(
    top, top_start, top_row, low, low_start, low_row, low_plane, out, out_start, out_row, rows, cols,
    table, factors, masks, turn,
):  # fmt: skip
    """Words of any size: table[top] + sum of (low plane & mask) * factor, rotated right by one if ``turn``.

    table    of the word type, 256 entries, already shifted into place
    factors  of the word type, one for each low plane: a power of two. A multiplication, because LLVM narrows
             it to the word type and vectorizes, which it does not do with a shift by a variable
    masks    uint8, one for each low plane
    turn     0, or the number of bits of a word less one
    """
    for i in range(rows):
        for begin in range(0, cols, BLOCK):
            n = np.uint64(min(BLOCK, cols - begin))
            t = np.uint64(top_start + i * top_row + begin)
            o = np.uint64(out_start + i * out_row + begin)
            for j in range(n):
                out[o + j] = table[top[t + j]]
            for k in range(factors.shape[0]):
                a = np.uint64(low_start + i * low_row + k * low_plane + begin)
                factor = factors[k]
                mask = masks[k]
                for j in range(n):
                    out[o + j] += (low[a + j] & mask) * factor
            if turn:
                for j in range(n):
                    out[o + j] = (out[o + j] >> 1) | (out[o + j] << turn)


@jit
def split2(words, start, row, rows, cols, planes):
    """16-bit words, rotated left by one, into planes[2, rows * cols]."""
    n = np.uint64(cols)
    for i in range(rows):
        a = np.uint64(start + i * row)
        o = np.uint64(i * cols)
        for j in range(n):
            r = (words[a + j] << 1) | (words[a + j] >> 15)
            planes[0, o + j] = (r >> 8) & 0xFF
            planes[1, o + j] = r & 0xFF


@jit
def split4(words, start, row, rows, cols, planes):
    """32-bit words, rotated left by one, into planes[4, rows * cols]."""
    n = np.uint64(cols)
    for i in range(rows):
        a = np.uint64(start + i * row)
        o = np.uint64(i * cols)
        for j in range(n):
            r = (words[a + j] << 1) | (words[a + j] >> 31)
            planes[0, o + j] = (r >> 24) & 0xFF
            planes[1, o + j] = (r >> 16) & 0xFF
            planes[2, o + j] = (r >> 8) & 0xFF
            planes[3, o + j] = r & 0xFF


@jit
def count_beyond(words, start, row, rows, cols, shift, least, span):
    """How many words, shifted left by ``shift`` and less ``least`` (which wraps around), are not below ``span``.

    All three are of the word type.
    """
    found = 0
    for i in range(rows):
        a = np.uint64(start + i * row)
        for begin in range(0, cols, BLOCK):
            n = np.uint64(min(BLOCK, cols - begin))
            some = np.uint16(0)  # as narrow as the words, or a vector would hold fewer of them
            for j in range(n):
                some += np.uint16(words.dtype.type((words[a + j] << shift) - least) >= span)
            found += some
            a += n
    return found


@jit
def pack_ranks(top, first, middle, ranks, pairs, packed, escapes):
    """packed[i] = rank of top[2 i] | rank of top[2 i + 1] << 4, where a rank is top - first; the last may lack the second.

    Where that is beyond 15, ``middle`` stands for it, and position * 256 + top field is put into ``escapes``, whose number
    is returned. ``ranks`` (uint8) is room for a block of any even size, ``pairs`` the same memory in words of 16 bits.
    """
    less, found, size = np.uint8(first), 0, top.shape[0]
    for begin in range(0, size, ranks.shape[0]):
        n, o, h = min(ranks.shape[0], size - begin), np.uint64(begin), np.uint64(begin // 2)
        for i in range(np.uint64(n)):
            ranks[i] = top[o + i] - less
        most = np.uint8(0)
        for i in range(np.uint64(n)):
            most = max(most, ranks[i])
        if most > 15:
            for i in range(n):
                if ranks[i] > 15:
                    ranks[i] = middle
                    escapes[found] = (begin + i) * 256 + top[begin + i]
                    found += 1
        if n % 2:
            ranks[n] = 0
        for i in range(np.uint64((n + 1) // 2)):
            packed[h + i] = pairs[i] | (pairs[i] >> 4)
    return found


@jit
def expand_ranks(packed, first, escapes, none, out):
    """out[2 i], out[2 i + 1] = first + low 4 bits of packed[i], first + high 4 bits; then out[e >> 8] = e & 255 for
    each of ``escapes`` in front of the first ``none``. False if their positions do not ascend below the size of ``out``,
    or if anything but ``none`` follows."""
    add = np.uint8(first)
    for i in range(np.uint64(out.shape[0] // 2)):
        out[2 * i] = add + (packed[i] & 15)
        out[2 * i + 1] = add + (packed[i] >> 4)
    if out.shape[0] % 2:
        out[out.shape[0] - 1] = add + (packed[out.shape[0] // 2] & 15)
    least, open_ = 0, True
    for e in escapes:
        if e == none:
            open_ = False
            continue
        at = np.int64(e) >> 8
        if at < least or at >= out.shape[0] or not open_:
            return False
        out[at] = e & 255
        least = at + 1
    return True


@jit
def count_tops(words, rotate, word_bits, shift, counts):
    """counts[top] += 1 for the top field of each word: its bits from ``shift`` up, after a rotation by one if ``rotate``.

    words   of one word type of ``word_bits``
    counts  int64[2 ** top bits]
    """
    # All unsigned and 64 bits wide: of a signed and an unsigned integer Numba would make a float.
    one, down, turn = np.uint64(1), np.uint64(shift), np.uint64(word_bits - 1)
    mask = np.uint64(0xFFFF_FFFF_FFFF_FFFF) >> np.uint64(64 - word_bits)
    for i in range(words.shape[0]):
        r = np.uint64(words[i])
        if rotate:
            r = ((r << one) & mask) | (r >> turn)
        counts[r >> down] += 1


_JOIN = "void uint8[] int64 int64 uint8[] int64 int64 int64 {} int64 int64 int64 int64"

# Of what decoding needs, see mzstore.kernels.machine_code.
SIGNATURES = {
    "join2": [_JOIN.format("uint16[]")],
    "join4": [_JOIN.format("uint32[]")],
    "join_any": [
        f"{_JOIN.format(word)} {word} {word} uint8[] int64" for word in ("uint8[]", "uint16[]", "uint32[]", "uint64[]")
    ],
    "expand_ranks": ["bool uint8[] int64 uint32[] int64 uint8[]"],
}


def first_calls():
    """Call what decoding needs. Numba takes as long for a first call as for its own import, and threads that decode would
    wait for it, together with all that is in flight.
    """
    few = np.zeros(8, np.uint8)
    join2(few, 0, 0, few, 0, 0, 2, np.zeros(2, np.uint16), 0, 0, 1, 2)
    join4(few, 0, 0, few, 0, 0, 2, np.zeros(2, np.uint32), 0, 0, 1, 2)
    expand_ranks(few[:1], 0, np.zeros(0, np.uint32), 0xFFFF_FFFF, np.zeros(2, np.uint8))

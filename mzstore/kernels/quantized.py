"""Kernels of quantized tensors: values to codes, codes to packed bytes, and both back in the caller's memory.

Sources and targets are as in ``mzstore.kernels.planes``: one-dimensional, row ``i`` begins at ``start + i * row``.
Arithmetic is float32 with one rounding per operation, so that NumPy gives the same bits.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from mzstore.kernels.planes import jit


@intrinsic
def put(typingctx, target, at, value):
    """target[at :] = the bytes of ``value``, at any alignment. ``target`` is uint8, one-dimensional and contiguous."""

    def generate(context, builder, signature, arguments):
        array = cgutils.create_struct_proxy(signature.args[0])(context, builder, arguments[0])
        place = builder.gep(array.data, [arguments[1]])
        pointer = builder.bitcast(place, ir.PointerType(arguments[2].type))
        builder.store(arguments[2], pointer, align=1)
        return context.get_dummy_value()

    return types.void(target, at, value), generate


@intrinsic
def bits_of(typingctx, value):
    """The word (uint32) of a float32."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.uint32(types.float32), generate


@jit
def quantize_uniform(values, start, row, rows, cols, inverse, slope, shift, limit, low, high, codes):
    """codes[i, j] = k - low, where k = trunc(min(|value * inverse| * slope + shift, limit)) with the value's sign, in low..high.

    values                         float32
    inverse, slope, shift, limit   float32
    low, high                      int32
    codes                          uint8 or uint16 [rows, cols]
    """
    n = np.uint64(cols)
    for i in range(rows):
        a = np.uint64(start + i * row)
        for j in range(n):
            value = values[a + j] * inverse
            k = np.int32(min(abs(value) * slope + shift, limit))
            k = -k if value < 0 else k
            codes[i, j] = min(max(k, low), high) - low


@jit
def add_errors(before, after, squares, errors, worst):
    """Sums over two arrays of float32, in float64 and in lanes: value i belongs to lane i % lanes, in ascending order.

    before, after    float32, as long as each other, a multiple of the lanes
    squares, errors  float64[lanes]: before ** 2 and (after - before) ** 2 are added
    worst            float64[lanes]: the greatest |after - before|, if it is above what is there
    """
    lanes = np.uint64(squares.size)
    for i in range(np.uint64(before.size) // lanes):
        at = np.uint64(i) * lanes
        for j in range(lanes):
            value = np.float64(before[at + j])
            error = np.float64(after[at + j]) - value
            squares[j] += value * value
            errors[j] += error * error
            error = abs(error)
            worst[j] = error if error > worst[j] else worst[j]


@jit
def pack(codes, n, base, out):
    """out[i, j] = sum over d of codes[i, n * j + d] * base ** d; ``out`` (uint8) is 0 before.

    codes  uint8[rows, cols], each below ``base``; base ** n <= 256
    out    uint8[rows, ceil(cols / n)]
    """
    rows, cols = codes.shape
    whole = cols // n
    for i in range(rows):
        if n == 2:
            for j in range(np.uint64(whole)):
                out[i, j] = codes[i, 2 * j] | (codes[i, 2 * j + 1] << 4)
        elif n == 3:
            for j in range(np.uint64(whole)):
                out[i, j] = codes[i, 3 * j] + codes[i, 3 * j + 1] * np.uint8(6) + codes[i, 3 * j + 2] * np.uint8(36)
        else:
            for j in range(whole):
                factor, total = 1, 0
                for d in range(n):
                    total += codes[i, n * j + d] * factor
                    factor *= base
                out[i, j] = total
        factor = 1
        for d in range(cols - n * whole):
            out[i, whole] += codes[i, n * whole + d] * factor
            factor *= base


@jit
def with_low(codes, low, n, low_bits, out):
    """out[i, j] = codes[i, j] << low_bits | the low bits of code j, which are digit j % n of byte j // n of row i of ``low``.

    codes  uint8[rows, cols]
    low    uint8[rows, ceil(cols / n)]; n is 1, 2, 4 or 8, and a digit has 8 / n bits, of which ``low_bits`` count
    out    uint16[rows, cols]
    """
    rows, cols = codes.shape
    width, mask = np.uint8(8 // n), np.uint8((1 << low_bits) - 1)
    shift = np.uint16(low_bits)
    for i in range(rows):
        for digit in range(n):  # all first digits, then all second ones: so the inner loop has no division
            down = np.uint8(digit * width)
            for b in range((cols - digit + n - 1) // n):
                j = b * n + digit
                out[i, j] = (np.uint16(codes[i, j]) << shift) | ((low[i, b] >> down) & mask)


@jit
def expand(
    packed, start, row, rows, cols, n, skip, table, head, tail, head_nbytes, tail_nbytes, out, out_start, out_row
):
    """The values of packed codes, ``n`` to a byte, into ``out`` seen as bytes.

    cols         values in a row; the first byte lacks its first ``skip`` values
    table        uint8, uint16 or uint32 [256, n]: the words of the values of each byte
    head, tail   the same words, as unsigned integers [256] of ``head_nbytes`` and ``tail_nbytes`` (0: no tail, a table of
                 no use); a head may be longer than what belongs to it, the rest is written over. See ``word_tables``
    out          uint8, contiguous; out_start and out_row count bytes
    """
    size = table.itemsize
    one, two, three, four = np.uint64(1), np.uint64(2), np.uint64(3), np.uint64(4)
    step = np.uint64(n * size)
    # All rows alike: the values of the first byte, the bytes that are stored at once, the values after them.
    partial = min(n - skip, cols) if skip else 0
    left = cols - partial
    safe = left // n
    if head_nbytes > n * size:  # such a head must not write behind the last value of the row
        safe = max(0, min(safe, (left * size - head_nbytes) // (n * size) + 1))
    left -= safe * n
    for i in range(rows):
        at = np.uint64(start + i * row)
        o = np.uint64(out_start + i * out_row)
        if skip:
            for d in range(skip, skip + partial):
                put(out, o, table[packed[at], d])
                o += np.uint64(size)
            at += np.uint64(1)
        if tail_nbytes:
            for j in range(np.uint64(safe)):
                byte = packed[at + j]
                put(out, o, head[byte])
                put(out, o + np.uint64(head_nbytes), tail[byte])
                o += step
        else:
            # Four at a time, loads before stores: a tenth faster, as LLVM must suppose that ``out`` overlaps the tables.
            for j in range(np.uint64(safe // 4)):
                a = at + four * j
                first, second = head[packed[a]], head[packed[a + one]]
                third, fourth = head[packed[a + two]], head[packed[a + three]]
                put(out, o, first)
                put(out, o + step, second)
                put(out, o + two * step, third)
                put(out, o + three * step, fourth)
                o += four * step
            for j in range(np.uint64(safe // 4 * 4), np.uint64(safe)):
                put(out, o, head[packed[at + j]])
                o += step
        at += np.uint64(safe)
        d = 0
        for _ in range(left):
            put(out, o, table[packed[at], d])
            o += np.uint64(size)
            d += 1
            if d == n:
                d = 0
                at += np.uint64(1)


@jit
def scale_codes(codes, start, row, rows, cols, zero, scale, out, out_start, out_row):
    """out = (code - zero) * scale for one code per value; ``out`` is float32, ``zero`` int32, ``scale`` float32."""
    n = np.uint64(cols)
    for i in range(rows):
        a = np.uint64(start + i * row)
        o = np.uint64(out_start + i * out_row)
        for j in range(n):
            out[o + j] = np.float32(np.int32(codes[a + j]) - zero) * scale


@jit
def scale_codes_bf16(codes, start, row, rows, cols, zero, scale, out, out_start, out_row):
    """``scale_codes`` into words (uint16) of bfloat16, rounded to nearest even."""
    n = np.uint64(cols)
    for i in range(rows):
        a = np.uint64(start + i * row)
        o = np.uint64(out_start + i * out_row)
        for j in range(n):
            out[o + j] = _bf16(bits_of(np.float32(np.int32(codes[a + j]) - zero) * scale))


@jit
def _bf16(word):
    """The word of bfloat16 nearest to that of a finite float32."""
    return np.uint16((word + np.uint32(0x7FFF) + ((word >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@jit
def look_up(codes, start, row, rows, cols, table, out, out_start, out_row):
    """out = table[code], of any type; code below the size of the table."""
    n = np.uint64(cols)
    for i in range(rows):
        a = np.uint64(start + i * row)
        o = np.uint64(out_start + i * out_row)
        for j in range(n):
            out[o + j] = table[codes[a + j]]


@jit
def multiply(values, start, row, rows, cols, scales, first_row, block_rows, first_col, block_cols):
    """values *= scale of its block, in place; the first value of ``values`` is at (first_row, first_col) of the grid of blocks.

    values  float32
    scales  float32, two-dimensional, one for each block
    """
    for i in range(rows):
        across = scales[(first_row + i) // block_rows]
        at = np.uint64(start + i * row)
        j, block = 0, first_col // block_cols
        while j < cols:
            n = min(cols - j, (block + 1) * block_cols - first_col - j)
            scale = across[block]
            for c in range(np.uint64(n)):
                values[at + c] *= scale
            at += np.uint64(n)
            j += n
            block += 1


@jit
def multiply_columns(values, start, row, rows, cols, scales):
    """values[i, j] *= scales[j], in place; both float32, scales of ``cols``."""
    n = np.uint64(cols)
    for i in range(rows):
        a = np.uint64(start + i * row)
        for j in range(n):
            values[a + j] *= scales[j]


@jit
def subtract(codes, start, row, rows, cols, zeros, first_row, block_rows, first_col, block_cols, out):
    """out[i, j] = code - zero point of its block, as float32; positions as in ``multiply``.

    zeros  int32, two-dimensional
    out    float32[rows, cols]
    """
    for i in range(rows):
        across = zeros[(first_row + i) // block_rows]
        at = np.uint64(start + i * row)
        j, block = 0, first_col // block_cols
        while j < cols:
            n = min(cols - j, (block + 1) * block_cols - first_col - j)
            zero, o = across[block], np.uint64(j)
            for c in range(np.uint64(n)):
                out[i, o + c] = np.float32(np.int32(codes[at + c]) - zero)
            at += np.uint64(n)
            j += n
            block += 1


@jit
def round_bf16(words, rows, cols, out, out_start, out_row):
    """out = words of bfloat16 for ``words`` (uint32[rows, cols]) of finite float32, to nearest even."""
    n = np.uint64(cols)
    for i in range(rows):
        o = np.uint64(out_start + i * out_row)
        for j in range(n):
            out[o + j] = _bf16(words[i, j])


_CODES = "void {} int64 int64 int64 int64"

# Of what decoding needs most, see mzstore.kernels.machine_code: codes of a byte each, or several to a byte, to bfloat16 and float32.
SIGNATURES = {
    "expand": [
        f"{_CODES.format('uint8[]')} int64 int64 {table}[,] {head}[] {tail}[] int64 int64 uint8[] int64 int64"
        for table, head, tail in (
            ("uint16", "uint32", "uint64"),
            ("uint16", "uint64", "uint64"),
            ("uint16", "uint64", "uint16"),
            ("uint32", "uint64", "uint64"),
            ("uint32", "uint64", "uint32"),
        )
    ],
    "look_up": [
        f"{_CODES.format('uint8[]')} {word} {word} int64 int64" for word in ("uint16[]", "uint32[]", "float32[]")
    ],
    "scale_codes": [f"{_CODES.format(codes)} int32 float32 float32[] int64 int64" for codes in ("uint8[]", "uint16[]")],
    "scale_codes_bf16": [
        f"{_CODES.format(codes)} int32 float32 uint16[] int64 int64" for codes in ("uint8[]", "uint16[]")
    ],
    "multiply": ["void float32[] int64 int64 int64 int64 float32[,] int64 int64 int64 int64"],
    "multiply_columns": ["void float32[] int64 int64 int64 int64 float32[]"],
    "round_bf16": ["void uint32[,] int64 int64 uint16[] int64 int64"],
}

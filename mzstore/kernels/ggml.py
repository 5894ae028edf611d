"""Kernels of ggml's blocks: codes to values. One scale, and one offset, is that of ``sub`` codes side by side.

Arithmetic is float32 with one rounding per operation, so that NumPy gives the same bits.
"""

import numpy as np

from mzstore.kernels.planes import jit


@jit
def uniform(codes, scales, sub, zero, out):
    """out = (code - zero) * scale

    codes   uint8, as many as ``scales`` * ``sub``
    scales  float32
    zero    int32
    out     float32, as many
    """
    n = np.uint64(sub)
    for i in range(np.uint64(scales.size)):
        at, scale = np.uint64(i) * n, scales[i]
        for j in range(n):
            out[at + j] = np.float32(np.int32(codes[at + j]) - zero) * scale


@jit
def look_up(codes, scales, sub, table, out):
    """out = table[code] * scale; ``table`` is float32, with an entry for every code that occurs."""
    n = np.uint64(sub)
    for i in range(np.uint64(scales.size)):
        at, scale = np.uint64(i) * n, scales[i]
        for j in range(n):
            out[at + j] = table[codes[at + j]] * scale


@jit
def affine(codes, scales, sub, offsets, out):
    """out = code * scale + offset, each product rounded (it is exact where it matters)."""
    n = np.uint64(sub)
    for i in range(np.uint64(scales.size)):
        at, scale, offset = np.uint64(i) * n, scales[i], offsets[i]
        for j in range(n):
            out[at + j] = np.float32(np.int32(codes[at + j])) * scale + offset


@jit
def extract(blocks, runs, out):
    """Numbers of a field out of blocks; see ``mzstore.ggml.Run``.

    blocks  uint8[n, bytes of a block]
    runs    int64[runs, 8], all of whose bytes and numbers there are
    out     unsigned[n, numbers], 0 before
    """
    for i in range(blocks.shape[0]):
        for r in range(runs.shape[0]):
            mask, down, up = np.uint32((1 << runs[r, 4]) - 1), np.uint32(runs[r, 3]), np.uint32(runs[r, 5])
            to, n, at = np.uint64(runs[r, 0]), np.uint64(runs[r, 1]), np.uint64(runs[r, 2])
            step, stride = np.uint64(runs[r, 6]), np.uint64(runs[r, 7])
            if step == 1 and stride == 1:  # in vectors
                for k in range(n):
                    out[i, to + k] |= ((np.uint32(blocks[i, at + k]) >> down) & mask) << up
            else:
                for k in range(n):
                    taken = (np.uint32(blocks[i, at + k * stride]) >> down) & mask
                    out[i, to + k * step] |= taken << up


@jit
def insert(numbers, runs, blocks):
    """The inverse of ``extract``, into blocks that are 0 there."""
    for i in range(blocks.shape[0]):
        for r in range(runs.shape[0]):
            mask, up, down = np.uint32((1 << runs[r, 4]) - 1), np.uint32(runs[r, 3]), np.uint32(runs[r, 5])
            at, n, to = np.uint64(runs[r, 0]), np.uint64(runs[r, 1]), np.uint64(runs[r, 2])
            step, stride = np.uint64(runs[r, 6]), np.uint64(runs[r, 7])
            if step == 1 and stride == 1:
                for k in range(n):
                    blocks[i, to + k] |= np.uint8(((np.uint32(numbers[i, at + k]) >> down) & mask) << up)
            else:
                for k in range(n):
                    taken = (np.uint32(numbers[i, at + k * step]) >> down) & mask
                    blocks[i, to + k * stride] |= np.uint8(taken << up)


@jit
def split(numbers, left, bits, out):
    """A plane of numbers: ``bits`` bits of each, from ``left`` on, the first number in the lowest bits of a byte.

    numbers  unsigned, one dimension, whole bytes of them
    bits     1, 2, 4 or 8
    out      uint8
    """
    mask, down = np.uint32((1 << bits) - 1), np.uint32(left)
    if bits == 8:
        for i in range(np.uint64(out.size)):
            out[i] = np.uint8((np.uint32(numbers[i]) >> down) & mask)
    elif bits == 4:
        for i in range(np.uint64(out.size)):
            j = np.uint64(i) * np.uint64(2)
            low, high = np.uint32(numbers[j]) >> down, np.uint32(numbers[j + np.uint64(1)]) >> down
            out[i] = np.uint8((low & mask) | (high & mask) << np.uint32(4))
    else:
        per = 8 // bits
        for i in range(out.size):
            byte = np.uint32(0)
            for j in range(per):
                byte |= ((np.uint32(numbers[i * per + j]) >> down) & mask) << np.uint32(bits * j)
            out[i] = np.uint8(byte)


@jit
def join(plane, bits, out):
    """out = out << bits | the number in ``plane``: the inverse of ``split``, plane by plane."""
    mask, up = np.uint32((1 << bits) - 1), np.uint32(bits)
    if bits == 8:
        for i in range(np.uint64(plane.size)):
            out[i] = np.uint32(out[i]) << up | np.uint32(plane[i])
    elif bits == 4:
        for i in range(np.uint64(plane.size)):
            j = np.uint64(i) * np.uint64(2)
            byte = np.uint32(plane[i])
            out[j] = np.uint32(out[j]) << up | (byte & mask)
            out[j + np.uint64(1)] = np.uint32(out[j + np.uint64(1)]) << up | byte >> np.uint32(4)
    else:
        per = np.uint64(8 // bits)
        for i in range(np.uint64(plane.size)):
            byte, j = np.uint32(plane[i]), np.uint64(i) * per
            for d in range(per):
                out[j + d] = np.uint32(out[j + d]) << up | (byte >> (np.uint32(bits) * np.uint32(d)) & mask)


@jit
def shift_codes(codes, centres, sub, mask, out):
    """out = (code + centre) & mask, all uint8; ``sub`` codes side by side have a centre."""
    n = np.uint64(sub)
    for i in range(np.uint64(centres.size)):
        at, centre = np.uint64(i) * n, centres[i]
        for j in range(n):
            out[at + j] = (codes[at + j] + centre) & mask


# See mzstore.kernels.machine_code.
SIGNATURES = {
    "uniform": ["void uint8[] float32[] int64 int32 float32[]"],
    "look_up": ["void uint8[] float32[] int64 float32[] float32[]"],
    "affine": ["void uint8[] float32[] int64 float32[] float32[]"],
    "extract": [f"void uint8[,] int64[,] {word}[,]" for word in ("uint8", "uint16", "uint32")],
    "insert": [f"void {word}[,] int64[,] uint8[,]" for word in ("uint8", "uint16", "uint32")],
    "split": [f"void {word}[] int64 int64 uint8[]" for word in ("uint8", "uint16", "uint32")],
    "join": [f"void uint8[] int64 {word}[]" for word in ("uint8", "uint16", "uint32")],
    "shift_codes": ["void uint8[] uint8[] int64 uint8 uint8[]"],
}

"""Packing: several codes of a small alphabet share a byte (FORMAT.md, packing).

zstd's Huffman coder then decodes several weights per symbol, and a symbol may cost less than one bit per weight.
The codes are digits of one byte in base BASES[n], the first code the least significant digit. Each row begins a byte;
the digits behind the last code of a row are 0.
"""

import functools
from types import MappingProxyType

import numpy as np

from mzstore import kernels
from mzstore.quantizers.lengths import coded_bits

# Codes per byte -> base. base ** codes <= 256, and no base between these fits more codes.
BASES = MappingProxyType({8: 2, 5: 3, 4: 4, 3: 6, 2: 16, 1: 256})


def per_byte(levels: int) -> int:
    """How many codes below ``levels`` (1..256) share a byte at most."""
    if not 1 <= levels <= 256:
        raise ValueError(f"{levels} levels do not fit a byte: 1 to 256 do")
    return next(n for n, base in BASES.items() if levels <= base)


def packed_cols(cols: int, n: int) -> int:
    """Bytes in a row of ``cols`` codes, ``n`` to a byte."""
    return -(-cols // n)


def pack(codes: np.ndarray, n: int) -> np.ndarray:
    """uint8[rows, packed_cols(cols, n)] of ``codes`` (uint8[rows, cols], each below BASES[n]).

    Raises ValueError if ``n`` is no key of BASES, or a code is too large.
    """
    base = _base(n)
    if codes.dtype != np.uint8 or codes.ndim != 2:
        raise ValueError(f"codes of {codes.dtype} and shape {codes.shape}, where uint8 [rows, cols] is packed")
    if codes.size and int(codes.max()) >= base:
        raise ValueError(f"code {int(codes.max())} in a packing of {n} codes to a byte, which holds codes below {base}")
    if n == 1:
        return codes
    rows, cols = codes.shape
    out = np.zeros((rows, packed_cols(cols, n)), np.uint8)
    if kernels.pays(codes.size):
        kernels.load_quantized().pack(np.ascontiguousarray(codes), n, base, out)
        return out
    for digit in range(n):
        share = codes[:, digit::n]
        out[:, : share.shape[1]] += share * np.uint8(base**digit)
    return out


def with_low(codes: np.ndarray, low: np.ndarray, low_bits: int) -> np.ndarray:
    """uint16[rows, cols]: ``codes`` (uint8[rows, cols]), and below them the ``low_bits`` (1..8) packed in ``low``."""
    n = per_byte(1 << low_bits)
    if low.shape != (codes.shape[0], packed_cols(codes.shape[1], n)):
        raise ValueError(f"low bits of shape {low.shape} for codes of {codes.shape}, {n} to a byte")
    if kernels.pays(codes.size):
        out = np.empty(codes.shape, np.uint16)
        kernels.load_quantized().with_low(codes, low, n, low_bits, out)
        return out
    own = digits(n)[low].reshape(low.shape[0], -1)[:, : codes.shape[1]]
    whole = codes.astype(np.uint16)
    whole <<= low_bits
    whole |= own & np.uint8((1 << low_bits) - 1)
    return whole


@functools.cache
def digits(n: int) -> np.ndarray:
    """uint8[256, n]: the codes in each byte; of a byte that no codes make, the last digit exceeds the base less one."""
    base = _base(n)
    values = np.arange(256)
    table = np.stack([values // base**i % base for i in range(n)], axis=1)
    table[:, -1] = values // base ** (n - 1)
    out = table.astype(np.uint8)
    out.setflags(write=False)
    return out


def packed_counts(counts: np.ndarray, n: int) -> np.ndarray:
    """float64[256]: how often each byte is expected where codes occur ``counts`` [levels] times, each on its own."""
    base = _base(n)
    shares = np.zeros(base)
    shares[: counts.size] = counts / max(1, counts.sum())
    joint = np.ones(1)
    for _ in range(n):  # the digit that comes last is the most significant
        joint = np.multiply.outer(shares, joint).reshape(-1)
    out = np.zeros(256)
    out[: joint.size] = joint * (counts.sum() / n)
    return out


def counted_bits(counts: np.ndarray) -> float:
    """Bits of the zstd frames over codes that occur ``counts`` [levels] times, as many to a byte as fit.

    Up to 256 levels share bytes; with more, the low bits that are left of a byte are stored as they are.
    """
    if counts.size <= 256:
        return coded_bits(packed_counts(counts, per_byte(counts.size)))
    low_bits = int(counts.size - 1).bit_length() - 8
    top = np.add.reduceat(counts, np.arange(0, counts.size, 1 << low_bits))
    return coded_bits(top) + low_bits * float(counts.sum())


def _base(n: int) -> int:
    if n not in BASES:
        raise ValueError(f"{n} codes to a byte: one of {', '.join(map(str, sorted(BASES)))}")
    return BASES[n]

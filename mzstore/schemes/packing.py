"""Codes of a few bits in words of 32: one after the other from the lowest bit on, across the ends of words."""

import numpy as np


def words_of(bits: int, start: int, stop: int) -> slice:
    """The words in which codes ``[start, stop)`` lie."""
    return slice(start * bits // 32, -(-stop * bits // 32))


def n_words(bits: int, count: int) -> int:
    return -(-count * bits // 32)


def unpack(words: np.ndarray, bits: int, start: int, stop: int, axis: int) -> np.ndarray:
    """Codes ``[start, stop)`` on ``axis``, in uint8; ``words`` (int32 or uint32) are those of ``words_of``."""
    lines = np.moveaxis(words.view("<u4"), axis, 0)
    mask = np.uint32((1 << bits) - 1)
    if 32 % bits == 0:
        each = 32 // bits
        codes = np.empty((lines.shape[0], each, *lines.shape[1:]), np.uint8)
        for i in range(each):
            codes[:, i] = (lines >> np.uint32(i * bits)) & mask
        codes = codes.reshape(-1, *lines.shape[1:])[start % each :][: stop - start]
    else:
        at = np.arange(start, stop, dtype=np.int64) * bits - 32 * (start * bits // 32)
        word, shift = at // 32, (at % 32).astype(np.uint64).reshape(-1, *(1,) * (lines.ndim - 1))
        following = np.minimum(word + 1, lines.shape[0] - 1)  # of the last one nothing is taken
        both = lines[word].astype(np.uint64) | (lines[following].astype(np.uint64) << np.uint64(32))
        codes = ((both >> shift) & np.uint64(mask)).astype(np.uint8)
    return np.moveaxis(codes, 0, axis)


def nibbles(packed: np.ndarray) -> np.ndarray:
    """The two codes in each byte, the lower one first, side by side on the last axis."""
    pairs = np.empty((*packed.shape, 2), np.uint8)
    np.bitwise_and(packed, 15, out=pairs[..., 0])
    np.right_shift(packed, 4, out=pairs[..., 1])
    return pairs.reshape(*packed.shape[:-1], 2 * packed.shape[-1])

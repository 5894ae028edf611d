"""Lengths: what zstd's Huffman coder will spend on each symbol, counted without coding.

Huffman, "A method for the construction of minimum-redundancy codes", 1952. zstd gives a literal at most 11 bits
(RFC 8878 section 4.2.1), and starts a new table every 128 KiB.
"""

import numpy as np

MAX_BITS = 11
BLOCK_NBYTES = 128 << 10
TABLE_BITS = 3.0  # a table costs about so many bits for each symbol in it, measured with libzstd 1.5


def huffman(counts: np.ndarray) -> np.ndarray:
    """int64[n]: bits of each symbol's code word for ``counts`` [n] (non-negative); 0 where the count is 0.

    No length exceeds MAX_BITS: the excess is taken from the rarest symbols, as zstd does. One symbol alone has 0 bits.
    """
    lengths = np.zeros(counts.size, np.int64)
    present = np.flatnonzero(counts)
    if present.size < 2:
        return lengths
    order = present[np.argsort(counts[present], kind="stable")]
    lengths[order] = _limited(_depths(counts[order].tolist()), counts[order])
    return lengths


def coded_bits(counts: np.ndarray) -> float:
    """Bits of the zstd frames over bytes that occur ``counts`` [256] times, all 128 KiB blocks alike."""
    n = int(counts.sum())
    if n == 0:
        return 0.0
    used = int(np.count_nonzero(counts))
    blocks = -(-n // BLOCK_NBYTES)
    payload = float((counts * huffman(counts)).sum()) if used > 1 else 0.0
    return min(payload + blocks * (24 + TABLE_BITS * used), 8.0 * n + 24 * blocks)


def _depths(counts: list[int]) -> np.ndarray:
    """Depths in the Huffman tree of leaves whose ``counts`` ascend; leaves and sums are two queues, each in order."""
    n = len(counts)
    weights = counts + [0] * (n - 1)
    parent = [0] * (2 * n - 1)
    leaf, inner = 0, n
    for new in range(n, 2 * n - 1):
        total = 0
        for _ in range(2):
            if leaf < n and (inner >= new or weights[leaf] <= weights[inner]):
                chosen, leaf = leaf, leaf + 1
            else:
                chosen, inner = inner, inner + 1
            parent[chosen] = new
            total += weights[chosen]
        weights[new] = total
    depth = [0] * (2 * n - 1)
    for node in range(2 * n - 3, -1, -1):
        depth[node] = depth[parent[node]] + 1
    return np.array(depth[:n], np.int64)


def _limited(depths: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """``depths`` (rarest first) with none above MAX_BITS and the sum of 2 ** -depth at most 1.

    A symbol one bit longer frees half of its share of the codes: the one that pays least for it is taken each time.
    """
    if depths[0] <= MAX_BITS:
        return depths
    limited = np.minimum(depths, MAX_BITS)
    excess = int((1 << (MAX_BITS - limited)).sum()) - (1 << MAX_BITS)
    while excess > 0:
        freed = (1 << (MAX_BITS - limited)) // 2  # 0 where it has grown as far as it may
        price = np.where(freed > 0, counts / np.minimum(np.maximum(freed, 1), excess), np.inf)
        chosen = int(np.argmin(price))
        limited[chosen] += 1
        excess -= int(freed[chosen])
    for i in range(limited.size - 1, -1, -1):  # what was freed too much goes to the most frequent
        while (1 << (MAX_BITS - int(limited[i]))) <= -excess:
            excess += 1 << (MAX_BITS - int(limited[i]))
            limited[i] -= 1
    out: np.ndarray = limited
    return out

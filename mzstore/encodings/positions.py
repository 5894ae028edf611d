"""Positions: which places of a chunk hold elements, told in few bytes (FORMAT.md section 8.5).

A chunk has ``n`` places, in row-major order. Three ways to tell which of them are taken, each near the entropy for other models:

gaps     a byte for each element: how many places are passed before it. For few elements, wherever they are
bitmap   a bit for each place. For many elements
pattern  n of every m places: the rank of the combination, several to a byte
"""

import functools
import itertools
import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from mzstore import kernels
from mzstore.errors import CorruptError
from mzstore.workspace import buffer

Kind = Literal["gaps", "bitmap", "pattern"]
NO_ELEMENT = 255
LOW_BITS = (
    0,
    8,
)  # of a gap that stand apart; with 8, few gaps are beyond a byte where elements are hundreds of places apart
MAX_GROUP = 8  # places of a pattern's group; a rank fits a byte
SLACK = 8  # bits of a byte: the kernel writes a place for each, and goes on behind those that are taken
BLOCK = 1 << 16  # places, or bytes of gaps, that NumPy takes at a time: positions take eight times the memory of gaps


@dataclass(frozen=True, slots=True)
class Index:
    """How positions are told. One that exists is valid; ValueError otherwise.

    low_bits  of ``gaps``: how many low bits of each stand in an array of their own
    pattern   (n, m): of every m places n are taken; for ``pattern`` alone
    """

    kind: Kind = "gaps"
    low_bits: int = 0
    pattern: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"index {self.kind!r:.100} is none of {', '.join(get_args(Kind))}")
        if self.low_bits not in LOW_BITS or (self.low_bits and self.kind != "gaps"):
            raise ValueError(f"{self.low_bits} low bits of {self.kind}")
        if (self.kind == "pattern") != (self.pattern is not None):
            raise ValueError(f"pattern {self.pattern} with index {self.kind!r}")
        if self.pattern is not None:
            taken, group = self.pattern
            if not 1 <= taken < group <= MAX_GROUP:
                raise ValueError(f"pattern {list(self.pattern)}: n of m places, n < m, and m is at most {MAX_GROUP}")

    def check_room(self, n: int, n_bytes: int, n_elements: int) -> None:
        """Raises ValueError unless a chunk of ``n`` places has its positions in so many bytes."""
        if not 1 <= n_elements <= n:
            raise ValueError(f"room for {n_elements} elements in each chunk of {n} places")
        if self.kind == "gaps":
            if not 1 <= n_bytes <= n:
                raise ValueError(f"{n_bytes} bytes of positions for {n} places")
            return
        if self.pattern is not None and (n % self.pattern[1] or n_elements != n // self.pattern[1] * self.pattern[0]):
            raise ValueError(f"{n_elements} elements in {n} places with the pattern {list(self.pattern)}")
        if n_bytes != self.exact_nbytes(n):
            raise ValueError(f"{n_bytes} bytes of positions for {n} places, where {self.exact_nbytes(n)} are needed")

    def exact_nbytes(self, n: int) -> int:
        """Bytes of a chunk's positions; those of gaps depend on where elements are."""
        assert self.kind != "gaps"
        return -(-n // 8) if self.pattern is None else -(-(n // self.pattern[1]) // per_byte(self.pattern))

    def scratch_nbytes(self, room: int) -> int:
        """Memory that ``decode`` takes at most, besides what NumPy makes of BLOCK places."""
        return 4 * (room + SLACK)

    def encode(self, positions: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
        """(bytes, low bits: both uint8) that tell the ascending ``positions`` among ``n`` places."""
        none = np.empty(0, np.uint8)
        if self.kind == "bitmap":
            bits = np.zeros(n, np.uint8)
            bits[positions] = 1
            return np.packbits(bits, bitorder="little"), none
        if self.pattern is not None:
            return _ranks(positions, self.pattern), none
        return gaps(positions, self.low_bits)

    def decode(self, body: np.ndarray, low: np.ndarray, n: int, room: int, where: str) -> np.ndarray:
        """int32: the positions, ascending and below ``n``, at most ``room`` of them; this thread's, until the next call.

        Raises CorruptError for anything else.
        """
        out = buffer("positions of a chunk", 4 * (room + SLACK)).view(np.int32)
        if self.pattern is not None:
            return self._decode_pattern(body, out[:room], where)
        if self.kind == "bitmap":
            count, last = self._decode_bitmap(body, room, out)
        elif kernels.pays(4 * room):
            found = np.empty(2, np.int64)
            kernels.load_sparse().gap_positions(body, low, self.low_bits, out[:room], found)
            count, last = found.tolist()
        else:
            count, last = self._decode_gaps(body, low, out[:room])
        if count > room or last >= n:
            raise CorruptError(
                f"{count} positions up to {last}, in a chunk of {n} places with room for {room}",
                where=where,
                clause="sparse-3",
            )
        return out[:count]

    def _decode_gaps(self, body: np.ndarray, low: np.ndarray, out: np.ndarray) -> tuple[int, int]:
        """(how many positions there are, the last one). Fills ``out``, and stops when it is full or they are beyond int32."""
        passed, count, last = 0, 0, -1
        for first in range(0, body.size, BLOCK):
            block = body[first : first + BLOCK]
            here = block < NO_ELEMENT
            more = int(np.count_nonzero(here))
            if count + more > out.size:
                return count + more, last
            steps = block.astype(np.int64) << self.low_bits
            if self.low_bits:
                steps[here] += low[count : count + more]
            ends = passed + np.cumsum(steps + here)
            if more:
                last = int(ends[here][-1]) - 1
                if last > np.iinfo(np.int32).max:
                    return count + more, last
                out[count : count + more] = ends[here] - 1
            passed, count = int(ends[-1]), count + more
        return count, last

    def _decode_bitmap(self, body: np.ndarray, room: int, out: np.ndarray) -> tuple[int, int]:
        """As ``_decode_gaps``; ``out`` has SLACK more than ``room``."""
        if kernels.pays(4 * room):
            count = int(kernels.load_sparse().bitmap_positions(body, *_bits(), room, out))
            return count, int(out[count - 1]) if count else -1
        count, last = 0, -1
        for first in range(0, body.size, BLOCK // 8):
            found = np.flatnonzero(np.unpackbits(body[first : first + BLOCK // 8], bitorder="little"))
            if found.size:
                last = 8 * first + int(found[-1])
            if count + found.size > room:
                return count + found.size, last
            out[count : count + found.size] = found + 8 * first
            count += found.size
        return count, last

    def _decode_pattern(self, body: np.ndarray, out: np.ndarray, where: str) -> np.ndarray:
        """Fills ``out``, which has room for as many as the pattern has in a chunk."""
        assert self.pattern is not None
        table, ranks = _bytes(self.pattern), per_byte(self.pattern)
        if int(body.max()) >= len(table):
            raise CorruptError(
                f"{int(body.max())} in the chunk is no {ranks} combinations of {len(combinations(self.pattern))}",
                where=where,
                clause="sparse-3",
            )
        places, taken = ranks * self.pattern[1], table.shape[1]
        if kernels.pays(4 * out.size):
            kernels.load_sparse().pattern_positions(body, table, places, out)
            return out
        step = BLOCK // places
        for first in range(0, body.size, step):
            some = body[first : first + step]
            corner = np.arange(first, first + some.size, dtype=np.int32) * places
            found = (table[some] + corner[:, None]).reshape(-1)
            own = out[first * taken : first * taken + found.size]  # the last byte may have ranks of no group
            own[...] = found[: own.size]
        return out


def gaps(positions: np.ndarray, low_bits: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(gaps, their low bits): ascending ``positions`` as bytes, see the head of this module."""
    passed = np.diff(positions, prepend=-1) - 1
    low = (passed & ((1 << low_bits) - 1)).astype(np.uint8) if low_bits else np.empty(0, np.uint8)
    passed = passed >> low_bits
    ends = np.cumsum(passed // NO_ELEMENT + 1)
    steps = np.full(int(ends[-1]) if ends.size else 0, NO_ELEMENT, np.uint8)
    steps[ends - 1] = passed % NO_ELEMENT
    return steps, low


@functools.cache
def combinations(pattern: tuple[int, int]) -> np.ndarray:
    """int32[combinations, n]: the places that each rank stands for; combinations ascend as the numbers whose bits they are."""
    taken, group = pattern
    every = sorted(itertools.combinations(range(group), taken), key=lambda places: sum(1 << place for place in places))
    table = np.array(every, np.int32)
    table.setflags(write=False)
    return table


def per_byte(pattern: tuple[int, int]) -> int:
    """How many ranks share a byte."""
    base = math.comb(pattern[1], pattern[0])
    return max(k for k in range(1, 9) if base**k <= 256)


@functools.cache
def _bytes(pattern: tuple[int, int]) -> np.ndarray:
    """uint8[bytes, n]: which places are taken, of those that a byte of a pattern tells of."""
    table, count = combinations(pattern), per_byte(pattern)
    ranks = np.arange(len(table) ** count)[:, None] // len(table) ** np.arange(count) % len(table)
    places = table[ranks] + pattern[1] * np.arange(count)[:, None]
    found = places.reshape(len(ranks), -1).astype(np.uint8)
    found.setflags(write=False)
    return found


@functools.cache
def _bits() -> tuple[np.ndarray, np.ndarray]:
    """(uint8[256, 8]: which bits are set in each byte, ascending, then zeros; uint8[256]: how many)."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    counts = bits.sum(axis=1, dtype=np.uint8)
    table = np.zeros((256, SLACK), np.uint8)
    table[np.arange(SLACK) < counts[:, None]] = np.nonzero(bits)[1]
    return table, counts


def _ranks(positions: np.ndarray, pattern: tuple[int, int]) -> np.ndarray:
    taken, group = pattern
    masks = (1 << (positions % group).reshape(-1, taken)).sum(axis=1)
    of_mask = np.zeros(1 << group, np.int64)
    table = combinations(pattern)
    of_mask[(1 << table).sum(axis=1)] = np.arange(table.shape[0])
    base, count = table.shape[0], per_byte(pattern)
    ranks = np.zeros(-(-masks.size // count) * count, np.int64)
    ranks[: masks.size] = of_mask[masks]
    packed: np.ndarray = (ranks.reshape(-1, count) * base ** np.arange(count)).sum(axis=1)
    return packed.astype(np.uint8)

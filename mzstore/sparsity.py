"""Sparsity: how the elements of a tensor that is mostly zeros are told: which blocks, and by which index, by counted bits."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from mzstore.dtypes import DType
from mzstore.encodings.planes import Planes
from mzstore.encodings.positions import LOW_BITS, Index, gaps
from mzstore.encodings.raw import Raw
from mzstore.encodings.sparse import Sparse, blocks_of, raw_values, taken_places, values_grid
from mzstore.grid import Grid, choose_chunk_shape
from mzstore.interleave import Fields
from mzstore.quantizers.lengths import coded_bits

# Rows and columns; 0 is all that a chunk has.
BLOCKS = ((1, 1), (1, 4), (1, 8), (1, 16), (1, 32), (4, 1), (4, 4), (8, 8), (16, 16), (32, 32), (1, 0), (0, 1))
GROUPS = (2, 4, 8)
VALUE_SHARE = 2 / 3  # of the bits of a word: about what a value takes
LEAST_ELEMENTS = 1 << 16  # of a chunk: a table takes some 100 bytes, and decoding, besides its elements, some 100 µs
JOINED_NBYTES = 16 << 20  # of words, at most
LEAST_FULL = 0.5  # of a block's values that are not zero: where fewer are, single values are stored


@dataclass(frozen=True, slots=True)
class Structure:
    """What an element is, and how a chunk tells where its elements are."""

    block: tuple[int, int] = (1, 1)
    index: Index = Index()  # noqa: RUF009  a frozen value

    def places(self, present: np.ndarray) -> np.ndarray:
        """int64: the places, ascending, where a chunk has elements if it has values where ``present`` is true."""
        return taken_places(present, self.block, self.index.pattern)

    def covered(self, places: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """bool, of the chunk's ``shape``: which values belong to the elements at ``places``."""
        height, width = self.block
        taken = np.zeros(self.n_places(math.prod(shape)), bool)
        taken[places] = True
        rows = taken.reshape(-1, shape[-1] // width).repeat(height, axis=0)
        found: np.ndarray = rows.repeat(width, axis=1).reshape(shape)
        return found

    def n_places(self, chunk_size: int) -> int:
        return chunk_size // (self.block[0] * self.block[1])


@dataclass(frozen=True, slots=True)
class Room:
    """What the chunk of a tensor that takes most has."""

    n_bytes: int  # of the index
    n_elements: int


def find(present: np.ndarray, word_bits: int, *, exact: bool = False) -> Structure:
    """The structure in which a chunk takes the fewest bits, counted.

    present    bool, of the chunk's shape: which values are not zero
    word_bits  of a value
    exact      whether no other value may be stored than those that are present
    """
    *_, height, width = (1, *present.shape)
    count = int(np.count_nonzero(present))
    best, least = Structure(), math.inf
    for rows, cols in BLOCKS:
        block = (rows or height, cols or width)
        if height % block[0] or width % block[1]:
            continue
        taken = present.reshape(-1) if block == (1, 1) else np.asarray(blocks_of(present, block).any(axis=(1, 2)))
        stored = int(np.count_nonzero(taken)) * block[0] * block[1]
        if block != (1, 1) and (not count or count < (1 if exact else LEAST_FULL) * stored):
            continue
        for index, bits in _indexes(taken, VALUE_SHARE * word_bits * block[0] * block[1], exact=exact):
            if bits < least:
                best, least = Structure(block, index), bits
    return best


def chunks_for(shape: tuple[int, ...], itemsize: int, density: float) -> tuple[int, ...]:
    """Extents of the chunks for a tensor of which so many words are stored: as for a dense one, but that chunks of few
    elements, each with a Huffman table and entries of its own, are joined, along the last axis first."""
    chunk = list(choose_chunk_shape(shape, itemsize))
    for axis in reversed(range(len(shape))):
        while chunk[axis] < shape[axis] and math.prod(chunk) * density < LEAST_ELEMENTS:
            if 2 * math.prod(chunk) * itemsize > JOINED_NBYTES:
                return tuple(chunk)
            chunk[axis] = min(2 * chunk[axis], shape[axis])
    return tuple(chunk)


def room(places: Iterable[np.ndarray], structure: Structure, chunk_size: int) -> Room:
    """What is needed for the fullest chunk, where the ``places`` of each are taken."""
    n_bytes = 1 if structure.index.kind == "gaps" else structure.index.exact_nbytes(structure.n_places(chunk_size))
    n_elements = 1
    for taken in places:
        n_elements = max(n_elements, taken.size)
        if structure.index.kind == "gaps":
            n_bytes = max(n_bytes, gaps(taken, structure.index.low_bits)[0].size)
    return Room(n_bytes, n_elements)


def lossless(dtype: DType, grid: Grid, structure: Structure, room: Room, *, planes: bool) -> Sparse:
    """The part that stores values as they are: in planes, or as words."""
    n_values = room.n_elements * structure.block[0] * structure.block[1]
    values: Raw | Planes = raw_values(dtype, grid, n_values)
    if planes:
        fields = Fields(dtype.word_bits, 8, rotate=dtype.exponent_bits > 0)
        values = Planes.new(dtype, values_grid(grid, n_values), fields)
    return Sparse.new(dtype, grid, structure.index, room.n_bytes, values, structure.block)


def _indexes(taken: np.ndarray, element_bits: float, *, exact: bool) -> Iterator[tuple[Index, float]]:
    """(index, bits that it and the values take) for the places that are ``taken``, or, unless ``exact``, for more of them."""
    places = np.flatnonzero(taken)
    for low_bits in LOW_BITS:
        steps, low = gaps(places, low_bits)
        bits = coded_bits(np.bincount(steps, minlength=256)) + 8 * low.size
        yield Index("gaps", low_bits), bits + element_bits * places.size
    bits = coded_bits(np.bincount(np.packbits(taken), minlength=256))
    yield Index("bitmap"), bits + element_bits * places.size
    for group in GROUPS:
        if taken.size % group:
            continue
        most = int(taken.reshape(-1, group).sum(axis=1).max())
        n_groups = taken.size // group
        if 1 <= most < group and not (exact and places.size < n_groups * most):
            bits = n_groups * math.log2(math.comb(group, most))
            yield Index("pattern", 0, (most, group)), bits + element_bits * n_groups * most

"""Differences: a tensor as what it is different by from another one, bit for bit; and whether that is smaller than itself.

Words are combined by exclusive or, or by a difference without carry beyond the word (FORMAT.md tensor-7). The first is small where
exponents stay and mantissas change, the second where values move by a few units in the last place; which one it is is measured.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from mzstore import sparsity
from mzstore.arrays import Array
from mzstore.dtypes import DType
from mzstore.encode import Choice, ChunkShape, Level, choose
from mzstore.encodings import Coding
from mzstore.encodings.planes import MAX_SYMBOLS, Planes
from mzstore.encodings.raw import Raw
from mzstore.encodings.sparse import Sparse
from mzstore.grid import Grid, choose_chunk_shape
from mzstore.interleave import Fields
from mzstore.narrow import narrow
from mzstore.sources import TensorSource, blocks
from mzstore.sparsity import Structure
from mzstore.tensors import TensorSpec

How = Literal["xor", "plus"]
WHOLE_NBYTES = 16 << 20  # so many are read at once rather than in runs, of which each may decode whole chunks
HOWS: tuple[How, ...] = get_args(How)
RUNS, RUN_WORDS = 8, 1 << 12  # of a tensor: on them is measured; rows of an embedding differ, so it is not one place
MOST_TOP_BITS = 16
LEAST_ZEROS = 0.5  # of the words: with fewer, no coder finds runs that are worth its time


@dataclass(frozen=True, slots=True)
class DifferenceSource:
    """The words that make those of ``tuned`` out of those of ``base``, which have the same dtype and shape."""

    tuned: TensorSource
    base: TensorSource
    how: How

    @property
    def spec(self) -> TensorSpec:
        return self.tuned.spec

    def read(self, start: int, stop: int) -> np.ndarray:
        return combine(self.tuned.read(start, stop), self.base.read(start, stop), self.how)


@dataclass(frozen=True, slots=True)
class Difference:
    """How a tensor is stored that is not equal to its base: as ``words``, combined with it. ``how`` is None for itself, whole."""

    how: How | None
    words: TensorSource
    choice: Choice


def choose_difference(
    tuned: TensorSource, base: TensorSource, level: Level, chunks: ChunkShape = choose_chunk_shape
) -> Difference:
    """The smaller of both differences, or the tensor itself if that is smaller still, by the bytes that a sample takes.

    Reads little of both tensors, unless all of a difference has to be known to store it. ``chunks``: how it is cut.
    """
    spec = tuned.spec
    whole = choose(tuned, level, chunks)
    if isinstance(whole.part, Raw) and whole.part.constant:
        return Difference(None, tuned, whole)
    grid = Grid(spec.word_shape, chunks(spec.word_shape, spec.dtype.word.itemsize))
    samples = _sample(tuned), _sample(base)
    best, least = Difference(None, tuned, whole), _nbytes(whole, samples[0], spec.dtype)
    for how in HOWS:
        source = DifferenceSource(tuned, base, how)
        words = combine(*samples, how)
        sparse = bool(np.count_nonzero(words) < (1 - LEAST_ZEROS) * words.size)
        for choice in _candidates(spec.dtype, grid, sparse):
            if (nbytes := _nbytes(choice, words, spec.dtype)) < least:
                best, least = Difference(how, source, choice), nbytes
        if not any(
            _nbytes(choice, words, spec.dtype) < least for choice in _with_symbols(spec.dtype, grid, [words], sparse)
        ):
            continue
        # Words that are not in the sample take symbols as well: perhaps too many.
        for choice in _with_symbols(spec.dtype, grid, blocks(source), sparse):
            if (nbytes := _nbytes(choice, words, spec.dtype)) < least:
                best, least = Difference(how, source, choice), nbytes
    return best


def combine(tuned: np.ndarray, base: np.ndarray, how: How) -> np.ndarray:
    words: np.ndarray = tuned ^ base if how == "xor" else tuned - base
    return words


def _candidates(dtype: DType, grid: Grid, sparse: bool) -> Iterator[Choice]:
    if dtype.word_bits == 8:
        yield from _coded(Raw(dtype, grid.shape, Array(grid.shape, grid.chunk_shape, dtype.disk, zstd=True)), sparse)
        return
    for rotate in (False, True):
        yield from _coded(Planes.new(dtype, grid, Fields(dtype.word_bits, 8, rotate=rotate)), sparse)


def _with_symbols(dtype: DType, grid: Grid, differences: Iterable[np.ndarray], sparse: bool) -> Iterator[Choice]:
    """As many first bits in one symbol as there are symbols for in all ``differences``: the sign of a small one, and its size."""
    if dtype.word_bits == 8:
        return
    top_bits = min(dtype.word_bits, MOST_TOP_BITS)
    present: np.ndarray = np.zeros(1 << top_bits, bool)
    for words in differences:
        present[words >> words.dtype.type(dtype.word_bits - top_bits)] = True
    while top_bits > 8 and present.sum() > MAX_SYMBOLS:
        present, top_bits = present[::2] | present[1::2], top_bits - 1
    if top_bits > 8:
        yield from _coded(
            Planes.new(dtype, grid, Fields(dtype.word_bits, top_bits, rotate=False), present=present), sparse
        )


def _coded(part: Raw | Planes, sparse: bool) -> Iterator[Choice]:
    yield Choice(part, Coding())
    if sparse:
        yield Choice(part, Coding("matches"))


def _sample(source: TensorSource) -> np.ndarray:
    """Words of all parts of the tensor, in one dimension."""
    size = math.prod(source.spec.word_shape)
    if size <= RUNS * RUN_WORDS:
        return source.read(0, size)
    starts = [i * (size - RUN_WORDS) // (RUNS - 1) for i in range(RUNS)]
    if source.spec.nbytes <= WHOLE_NBYTES:
        words = source.read(0, size)
        return np.concatenate([words[start : start + RUN_WORDS] for start in starts])
    return np.concatenate([source.read(start, start + RUN_WORDS) for start in starts])


def _nbytes(choice: Choice, sample: np.ndarray, dtype: DType) -> float:
    """Bytes that ``sample``, of ``dtype`` and one dimension, takes."""
    part = choice.part
    words = sample if part.dtype == dtype else narrow(sample, part.dtype)
    grid = Grid(words.shape, words.shape)
    if isinstance(
        part, Sparse
    ):  # its blocks have no meaning here; this is what it takes without them, or a little more
        structure = Structure()
        room = sparsity.room([structure.places(words != 0)], structure, words.size)
        part = sparsity.lossless(part.dtype, grid, structure, room, planes=isinstance(part.values.part, Planes))
    elif isinstance(part, Raw):
        part = replace(part, shape=words.shape, array=replace(part.array, shape=words.shape, chunk_shape=words.shape))
    elif part.ranks is not None:
        part = Planes.new(part.dtype, grid, part.fields, ranks=part.ranks, escapes=words.size)
    else:
        part = part.over(grid)
    return sum(len(body) for body in part.encode(words, choice.coding))

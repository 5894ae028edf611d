"""Differences: a tensor as what it is different by from another one, bit for bit; and whether that is smaller than itself.

Words are combined by exclusive or, or by a difference without carry beyond the word (FORMAT.md tensor-7). The first is small where
exponents stay and mantissas change, the second where values move by a few units in the last place; which one it is is measured.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from mzstore.arrays import Array
from mzstore.dtypes import DType
from mzstore.encode import Choice, Level, choose, payloads
from mzstore.encodings import Coding
from mzstore.encodings.planes import MAX_SYMBOLS, Planes
from mzstore.encodings.raw import Raw
from mzstore.grid import Grid, choose_chunk_shape
from mzstore.interleave import Fields
from mzstore.sources import TensorSource
from mzstore.tensors import TensorSpec

How = Literal["xor", "plus"]
MEASURED_CHUNKS = 3  # of a tensor, in full
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
        tuned, base = self.tuned.read(start, stop), self.base.read(start, stop)
        words: np.ndarray = tuned ^ base if self.how == "xor" else tuned - base
        return words


@dataclass(frozen=True, slots=True)
class Difference:
    """How a tensor is stored that is not equal to its base: as ``words``, combined with it. ``how`` is None for itself, whole."""

    how: How | None
    words: TensorSource
    choice: Choice


@dataclass(slots=True)
class _Words:
    """What is known of some words when all have been looked at."""

    top_bits: int
    zeros: int = 0
    present: np.ndarray = field(init=False)  # which of the first MOST_TOP_BITS bits occur

    def __post_init__(self) -> None:
        self.present = np.zeros(1 << self.top_bits, bool)

    def add(self, words: np.ndarray) -> None:
        self.zeros += words.size - int(np.count_nonzero(words))
        self.present[words >> words.dtype.type(8 * words.itemsize - self.top_bits)] = True


def choose_difference(tuned: TensorSource, base: TensorSource, level: Level) -> Difference:
    """The smaller of both differences, or the tensor itself if that is smaller still; by the bytes that some chunks take.

    Reads both tensors once, and some chunks again.
    """
    whole = choose(tuned, level)
    spec = tuned.spec
    best, least = Difference(None, tuned, whole), _nbytes(tuned, whole)
    if isinstance(whole.part, Raw) and whole.part.constant:
        return best
    sources = {how: DifferenceSource(tuned, base, how) for how in ("xor", "plus")}
    found = {how: _Words(min(spec.dtype.word_bits, MOST_TOP_BITS)) for how in sources}
    grid = Grid(spec.word_shape, choose_chunk_shape(spec.word_shape, spec.dtype.word.itemsize))
    for start, shape, _ in grid.row_blocks():
        words = [source.read(start, start + math.prod(shape)) for source in (tuned, base)]
        found["xor"].add(words[0] ^ words[1])
        found["plus"].add(words[0] - words[1])
    size = math.prod(spec.word_shape)
    for how, source in sources.items():
        sparse = found[how].zeros > LEAST_ZEROS * size
        for choice in _candidates(spec.dtype, grid, found[how].present, sparse):
            nbytes = _nbytes(source, choice)
            if nbytes < least:
                best, least = Difference(source.how, source, choice), nbytes
    return best


def _candidates(dtype: DType, grid: Grid, present: np.ndarray, sparse: bool) -> Iterator[Choice]:
    parts: list[Raw | Planes] = []
    if dtype.word_bits == 8:
        array = Array(grid.shape, grid.chunk_shape, dtype.disk, zstd=True)
        parts.append(Raw(dtype, grid.shape, array))
    else:
        parts += [Planes.new(dtype, grid, Fields(dtype.word_bits, 8, rotate=rotate)) for rotate in (False, True)]
        parts += _with_symbols(dtype, grid, present)
    for part in parts:
        yield Choice(part, Coding())
        if sparse:
            yield Choice(part, Coding("matches"))


def _with_symbols(dtype: DType, grid: Grid, present: np.ndarray) -> Iterable[Planes]:
    """As many first bits in one symbol as there are symbols for: the sign of a small difference, and its size."""
    top_bits = int(math.log2(present.size))
    while top_bits > 8:
        if present.sum() <= MAX_SYMBOLS:
            return [Planes.new(dtype, grid, Fields(dtype.word_bits, top_bits, rotate=False), present=present)]
        present, top_bits = present[::2] | present[1::2], top_bits - 1
    return []


def _nbytes(source: TensorSource, choice: Choice) -> float:
    """Bytes that ``source`` takes, from those of some of its chunks."""
    grid, dtype = choice.part.grid, source.spec.dtype
    blocks = list(grid.row_blocks())
    step = max(1, len(blocks) // MEASURED_CHUNKS)
    stored = count = 0
    for start, shape, chunks in blocks[step // 2 :: step][:MEASURED_CHUNKS]:
        block = source.read(start, start + math.prod(shape)).reshape(shape)
        stored += sum(len(payload.data) for payload in payloads(choice, block, chunks[len(chunks) // 2], dtype))
        count += 1
    return stored / count * grid.n_chunks if count else 0.0

"""Encode: choose how a tensor is stored, by measuring on a part of it, and make the payloads of its chunks."""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np

from mzstore import kernels, sparsity
from mzstore.arrays import Array
from mzstore.documents import dump
from mzstore.dtypes import DTYPES, DType
from mzstore.encodings import Coding, chunk_path
from mzstore.encodings.planes import MAX_RANKED_WORDS, MAX_SYMBOLS, Planes
from mzstore.encodings.raw import Raw, constant_array
from mzstore.encodings.sparse import Sparse
from mzstore.grid import Grid, choose_chunk_shape
from mzstore.interleave import N_RANKS, Fields, count_beyond, tops
from mzstore.narrow import NARROWER, fits, narrow
from mzstore.payload import seal
from mzstore.sources import TensorSource

Level = Literal["fast", "balanced", "max"]

SAMPLE_WORDS = 1 << 19  # of one chunk; choices are measured on it
SMALL_NBYTES = 64 << 10  # below this, how fast a tensor decodes does not matter, and any gain is taken
QUICK_SAMPLE_WORDS = 1 << 14  # of a tensor of one chunk, where a larger sample costs as much as the encoding itself
# Decoding costs time: below these gains (parts of the raw size) a tensor stays raw.
LEAST_GAIN = {"fast": 0.03, "balanced": 0.02, "max": 0.0}
# What is tried on from the best candidate, each with the least gain that is worth it: the coders that find all
# there is to find run at some 20 and 2 MB/s.
BLOCKS: tuple[tuple[dict[str, Any], float], ...] = (({"block_nbytes": 64 << 10}, 0), ({"block_nbytes": 32 << 10}, 0))
FURTHER: dict[str, tuple[tuple[dict[str, Any], float], ...]] = {
    "fast": (),
    "balanced": BLOCKS,
    "max": (
        ({"coder": "huffman-all"}, 0.001),
        ({"coder": "matches"}, 0),
        ({"coder": "matches-all"}, 0.001),
        *BLOCKS,
    ),
}
RANKED_WORDS = 1 << 14  # in smaller chunks, the Huffman table over pairs costs more than ranks save
RANKED = Coding(block_nbytes=64 << 10)  # as many weights as in the largest block of plain planes
MANTISSA_BITS = (1, 2, 3, 4)  # how many bits of the mantissa may join the exponent in a symbol
LEAST_ZEROS = 0.2  # of the words: with fewer, a dense tensor is smaller
MOST_ESCAPES = 1 / 512  # of the words of a chunk: 0.06 bits each


@dataclass(frozen=True, slots=True)
class Choice:
    """How a tensor is to be stored."""

    part: Raw | Planes | Sparse
    coding: Coding


def check_level(level: str) -> None:
    if level not in get_args(Level):
        raise ValueError(f"level {level!r} is none of {', '.join(get_args(Level))}")


ChunkShape = Callable[[tuple[int, ...], int], tuple[int, ...]]  # of (shape in words, bytes of a word)


def choose(source: TensorSource, level: Level, chunks: ChunkShape = choose_chunk_shape) -> Choice:
    """The smallest encoding of ``source`` that serves ``level``, as far as a sample shows. ``chunks``: how it is cut.

    Reads the first words; all of the tensor only where the answer depends on every value (is it constant, is
    it narrow, which top fields occur).
    """
    spec, shape = source.spec, source.spec.word_shape
    if spec.nbytes == 0 or shape == (1,) * len(shape):
        return Choice(Raw(spec.dtype, shape, _raw_array(spec.dtype, shape, chunks)), Coding())
    survey = _Survey(source)
    if survey.is_constant():
        return Choice(Raw(spec.dtype, shape, constant_array(spec.dtype, shape)), Coding())
    dtype = next((DTYPES[name] for name in NARROWER.get(spec.dtype.name, ()) if survey.fits(DTYPES[name])), spec.dtype)

    array = _raw_array(dtype, shape, chunks)
    grid, raw = array.grid, Raw(dtype, shape, array)
    thorough = level == "max" or grid.n_chunks > 1
    sample = survey.sample(grid, dtype, SAMPLE_WORDS if thorough else QUICK_SAMPLE_WORDS)
    whole = math.prod(grid.chunk_shape)

    def cost(choice: Choice) -> float:
        """Bytes of the tensor, from what the sample takes."""
        part = choice.part if sample.shape == grid.shape else _resized(choice.part, sample)
        stored = sum(len(body) for body in part.encode(sample, choice.coding)) * whole / max(sample.size, 1)
        return stored * grid.n_chunks + len(dump(choice.part.to_json()))

    best = Choice(raw, Coding())
    least = float(array.chunk_nbytes * grid.n_chunks + len(dump(raw.to_json())))
    limit = least * (1 - (LEAST_GAIN[level] if spec.nbytes > SMALL_NBYTES else 0))
    zeros = sample.size - int(np.count_nonzero(sample))
    sparse = survey.sparse(dtype, grid, sample) if zeros > LEAST_ZEROS * sample.size and sample.size > 1 else ()
    candidates: Iterator[Choice] = itertools.chain(sparse, _candidates(survey, raw, grid, sample, level))
    for choice in candidates:
        if choice.coding == RANKED and level != "max" and best.part is raw:
            return choice  # with two exponents to a byte it is smaller before any coder has seen it
        found = cost(choice)
        if found < min(least, limit):
            best, least = choice, found
    if best.part is raw or isinstance(best.part, Sparse) or not thorough:
        return best
    for change, least_gain in FURTHER[level]:  # search on from what is best
        if change.get("coder") == "matches-all" and best.coding.coder != "matches":
            continue
        choice = replace(best, coding=replace(best.coding, **change))
        found = cost(choice)
        if found < least * (1 - least_gain):
            best, least = choice, found
    return best


def _candidates(survey: "_Survey", raw: Raw, grid: Grid, sample: np.ndarray, level: Level) -> Iterator[Choice]:
    dtype = raw.dtype
    if dtype.word_bits == 8 or not dtype.exponent_bits:
        compressed = replace(raw, array=replace(raw.array, zstd=True))
        yield Choice(compressed, Coding())
        yield Choice(compressed, Coding("matches"))
    if dtype.word_bits == 8:
        return
    fields = Fields(dtype.word_bits, 8, rotate=dtype.exponent_bits > 0)
    plain = Planes.new(dtype, grid, fields)
    if not dtype.exponent_bits:
        yield Choice(plain, Coding())
        yield Choice(plain, Coding("matches"))
        return
    ranked = survey.ranked(dtype, grid, fields, sample)
    if ranked is not None:
        yield Choice(ranked, RANKED)
    yield Choice(plain, Coding())
    if level == "max":
        finest = Fields(dtype.word_bits, min(16, dtype.exponent_bits + MANTISSA_BITS[-1]), rotate=True)
        present: np.ndarray = np.zeros(1 << finest.top_bits, bool)
        for counts in survey.counts(dtype, grid, finest):
            np.logical_or(present, counts, out=present)
        for bits in MANTISSA_BITS:
            top_bits = dtype.exponent_bits + bits
            if top_bits > finest.top_bits:
                break
            merged: np.ndarray = present.reshape(1 << top_bits, -1).max(axis=1)
            if merged.sum() <= MAX_SYMBOLS:
                symbols = Fields(dtype.word_bits, top_bits, rotate=True)
                yield Choice(Planes.new(dtype, grid, symbols, present=merged), Coding())


def is_constant(source: TensorSource) -> bool:
    """Whether all words of ``source`` are the same; False if there are none, or only one."""
    return math.prod(source.spec.word_shape) > 1 and _Survey(source).is_constant()


class _Survey:
    """What has to be known of a tensor's values; reads it as little as the answers allow."""

    def __init__(self, source: TensorSource) -> None:
        self._source = source
        self._shape = source.spec.word_shape
        self._grid = Grid(self._shape, choose_chunk_shape(self._shape, source.spec.dtype.word.itemsize))

    def _blocks(self) -> Iterator[np.ndarray]:
        for start, shape, _ in self._grid.row_blocks():
            yield self._source.read(start, start + math.prod(shape))

    def is_constant(self) -> bool:
        first = self._source.read(0, 1)[0]
        return bool(self._source.read(1, 2)[0] == first) and all((block == first).all() for block in self._blocks())

    def fits(self, dtype: DType) -> bool:
        head = self._source.read(0, min(4096, math.prod(self._shape)))
        return fits(head, dtype) and all(fits(block, dtype) for block in self._blocks())

    def sample(self, grid: Grid, dtype: DType, most: int) -> np.ndarray:
        """Words of the chunk in the middle of the tensor; whole, or as many rows of it as ``most`` words are."""
        blocks = list(grid.row_blocks()) if grid.n_chunks < 1 << 12 else [next(iter(grid.row_blocks()))]
        start, shape, chunks = blocks[len(blocks) // 2]
        block = self._source.read(start, start + math.prod(shape)).reshape(shape)
        chunk = cut(block, chunks[len(chunks) // 2], grid, self._source.spec.dtype, dtype)
        if chunk.size <= most:
            return chunk
        rows = chunk.reshape(-1, chunk.shape[-1])
        return rows[: max(1, most // rows.shape[1]), :most]

    def counts(self, dtype: DType, grid: Grid, fields: Fields) -> Iterator[np.ndarray]:
        """For every chunk, or all of a row block, how often each top field occurs (int64[2 ** top_bits])."""
        for words in self._row_blocks_or_chunks(grid, dtype):
            if kernels.pays(words.nbytes):
                found = np.zeros(1 << fields.top_bits, np.int64)
                flat = words.reshape(-1)
                kernels.load().count_tops(flat, fields.rotate, fields.word_bits, fields.top_shift, found)
            else:
                found = np.bincount(tops(words.reshape(-1), fields), minlength=1 << fields.top_bits)
            yield found

    def ranked(self, dtype: DType, grid: Grid, fields: Fields, sample: np.ndarray) -> Planes | None:
        """``planes`` with 16 frequent top fields as ranks; None if too many others occur."""
        if not RANKED_WORDS <= grid.chunk_size <= MAX_RANKED_WORDS:
            return None
        counts = np.bincount(tops(sample.reshape(-1), fields), minlength=256)
        sums = np.convolve(counts, np.ones(N_RANKS, np.int64), mode="valid")
        first = int(sums.argmax())
        if sample.size - int(sums[first]) > sample.size * MOST_ESCAPES:
            return None
        longest = 0
        for words in self._row_blocks_or_chunks(grid, dtype):
            found = count_beyond(words, fields, first)
            if found > words.size * MOST_ESCAPES:
                return None
            longest = max(longest, found)
        return Planes.new(dtype, grid, fields, ranks=first, escapes=longest)

    def sparse(self, dtype: DType, grid: Grid, sample: np.ndarray) -> Iterator[Choice]:
        """``sparse``, in the structure that the sample has, unless the rest of the tensor has it not."""
        density = np.count_nonzero(sample) / sample.size
        grid = Grid(grid.shape, sparsity.chunks_for(grid.shape, dtype.word.itemsize, density))
        structure = sparsity.find(sample != 0, dtype.word_bits)
        if grid.chunk_shape[-1] % structure.block[1] or (1, *grid.chunk_shape)[-2] % structure.block[0]:
            structure = sparsity.Structure()  # rows that are cut off the sample
        try:
            room = self._room(dtype, grid, structure)
        except ValueError:  # a pattern that the other chunks do not have
            structure = sparsity.Structure()
            room = self._room(dtype, grid, structure)
        for planes in (True, False) if dtype.word_bits > 8 else (False,):
            yield Choice(sparsity.lossless(dtype, grid, structure, room, planes=planes), Coding())

    def _room(self, dtype: DType, grid: Grid, structure: sparsity.Structure) -> sparsity.Room:
        places = (structure.places(present) for present in self._present(dtype, grid))
        return sparsity.room(places, structure, grid.chunk_size)

    def _present(self, dtype: DType, grid: Grid) -> Iterator[np.ndarray]:
        """For every chunk, which of its words are not 0."""
        for start, shape, chunks in grid.row_blocks():
            block = self._source.read(start, start + math.prod(shape)).reshape(shape)
            for chunk in chunks:
                yield cut(block, chunk, grid, self._source.spec.dtype, dtype, zeros=True) != 0

    def _row_blocks_or_chunks(self, grid: Grid, dtype: DType) -> Iterator[np.ndarray]:
        """The words of every chunk, many of them at once where no edge is padded."""
        for start, shape, chunks in grid.row_blocks():
            block = self._source.read(start, start + math.prod(shape)).reshape(shape)
            if all(n % extent == 0 for n, extent in zip(shape, grid.chunk_shape, strict=True)):
                yield block if dtype == self._source.spec.dtype else narrow(block, dtype)
            else:
                yield from (cut(block, chunk, grid, self._source.spec.dtype, dtype) for chunk in chunks)


def cut(
    block: np.ndarray, chunk: tuple[int, ...], grid: Grid, dtype: DType, stored: DType, *, zeros: bool = False
) -> np.ndarray:
    """The words of ``chunk``, of full size, from its row block (a view where that will do); as ``stored`` has them.

    Beyond the far edges the last values go on, which adds no value that the tensor does not have; or there are ``zeros``.
    """
    part = block[grid.box_in_block(chunk)] if grid.shape else block
    if stored != dtype:
        part = narrow(np.ascontiguousarray(part), stored)
    if part.shape != grid.chunk_shape:
        missing = [(0, full - n) for full, n in zip(grid.chunk_shape, part.shape, strict=True)]
        part = np.pad(part, missing, mode="constant" if zeros else "edge")
    return part


@dataclass(frozen=True, slots=True)
class Payload:
    """What is stored under ``path`` below the tensor's node; ``plain`` if it is not compressed."""

    path: str
    data: bytes
    plain: bool


def payloads(choice: Choice, block: np.ndarray, chunk: tuple[int, ...], dtype: DType) -> list[Payload]:
    """The payloads of all components of ``chunk``, which lies in ``block``."""
    part = choice.part
    constant = isinstance(part, Raw) and part.constant  # then the block is the one word
    words = block if constant else cut(block, chunk, part.grid, dtype, part.dtype, zeros=isinstance(part, Sparse))
    bodies = part.encode(words, choice.coding)
    return [
        Payload(chunk_path(part, component, chunk), seal(body), not component.array.zstd)
        for component, body in zip(part.components, bodies, strict=True)
    ]


def _raw_array(dtype: DType, shape: tuple[int, ...], chunks: ChunkShape) -> Array:
    return Array(shape, chunks(shape, dtype.word.itemsize), dtype.disk, zstd=False)


def _resized(part: Raw | Planes | Sparse, sample: np.ndarray) -> Raw | Planes | Sparse:
    """``part`` for one chunk, ``sample``."""
    shape = sample.shape
    grid = Grid(shape, shape)
    if isinstance(part, Sparse):
        structure = sparsity.Structure(part.block, part.index)
        planes = isinstance(part.values.part, Planes)
        room = sparsity.room([structure.places(sample != 0)], structure, sample.size)
        return sparsity.lossless(part.dtype, grid, structure, room, planes=planes)
    if isinstance(part, Raw):
        return replace(part, shape=shape, array=replace(part.array, shape=shape, chunk_shape=shape))
    return part.over(grid)

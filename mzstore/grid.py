"""Grid: how an array of words is cut into chunks (FORMAT.md section 7.1). Pure."""

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from mzstore.selection import Span

MAX_CHUNK_NBYTES = 64 << 20  # decoded; bounds what one damaged or hostile chunk can make a reader allocate

# A tensor below this is one chunk. A matrix of so much or more is cut in 8 on both axes, so that tensor-parallel slices of
# 2, 4 and 8 ranks on either axis read just about their share; then on, until chunk and row block are bounded.
SINGLE_CHUNK_NBYTES = 4 << 20
RANKS = 8
RESHARDED = (24, 12, 6, 3)  # for ranks of other numbers
LEAST_CHUNK_NBYTES = 24 << 10  # of these
KEPT = 1 << 12  # combinations of positions on the inner axes
FEW = 64  # chunks of a tensor, whose pieces are kept for the next read
ROW_BLOCK_NBYTES = 64 << 20  # a writer has one or two of them in memory


@dataclass(frozen=True, slots=True)
class Grid:
    """A regular grid over an array of ``shape``; chunks at the far edges reach beyond it and are stored full size."""

    shape: tuple[int, ...]
    chunk_shape: tuple[int, ...]  # same length, every extent >= 1

    def __post_init__(self) -> None:
        if len(self.shape) != len(self.chunk_shape) or any(c < 1 for c in self.chunk_shape):
            raise ValueError(f"chunks of {self.chunk_shape} do not fit an array of {self.shape}")

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of chunks on each axis; a 0 for an axis of length 0."""
        return tuple(-(-n // c) for n, c in zip(self.shape, self.chunk_shape, strict=True))

    @property
    def n_chunks(self) -> int:
        return math.prod(self.counts)

    @property
    def chunk_size(self) -> int:
        """Words in a chunk."""
        return math.prod(self.chunk_shape)

    @property
    def block_axis(self) -> int:
        """The first axis on which chunks are longer than 1; the last axis if there is none."""
        return next((axis for axis, extent in enumerate(self.chunk_shape) if extent > 1), len(self.shape) - 1)

    @property
    def row_block_shape(self) -> tuple[int, ...]:
        """The largest row block: the words, contiguous in row-major order, that chunks side by side lie in."""
        axis = self.block_axis
        return (*self.chunk_shape[: axis + 1], *self.shape[axis + 1 :]) if self.shape else ()

    def row_blocks(self) -> Iterator[tuple[int, tuple[int, ...], list[tuple[int, ...]]]]:
        """(first word, shape, chunks) of every row block, in order; the chunks in row-major order."""
        if 0 in self.shape:
            return
        axis = self.block_axis
        below = math.prod(self.shape[axis + 1 :])
        for block in _positions(self.counts[: axis + 1]):
            box = self.box((*block, *[0] * (len(self.shape) - len(block))))
            start = 0
            for cut, length in zip(box[: axis + 1], self.shape[: axis + 1], strict=True):
                start = start * length + cut.start
            shape = (*(cut.stop - cut.start for cut in box[: axis + 1]), *self.shape[axis + 1 :])
            chunks = [(*block, *rest) for rest in _positions(self.counts[axis + 1 :])]
            yield start * below, shape, chunks

    def chunks(self) -> Iterator[tuple[int, ...]]:
        """All chunk positions, in row-major order."""
        return _positions(self.counts)

    def box(self, chunk: tuple[int, ...]) -> tuple[slice, ...]:
        """The part of the array that lies in ``chunk``: full size, or less at the far edges."""
        return tuple(
            slice(i * c, min((i + 1) * c, n)) for i, c, n in zip(chunk, self.chunk_shape, self.shape, strict=True)
        )

    def box_in_block(self, chunk: tuple[int, ...]) -> tuple[slice, ...]:
        """``box`` in the row block that ``chunk`` lies in."""
        axis = self.block_axis
        box = self.box(chunk)
        return (*(slice(0, cut.stop - cut.start) for cut in box[: axis + 1]), *box[axis + 1 :])


def _positions(counts: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """As itertools.product, which would first make lists of the ranges, however long they are."""
    if not counts:
        yield ()
        return
    for i in range(counts[0]):
        for rest in _positions(counts[1:]):
            yield (i, *rest)


class Piece(NamedTuple):  # one is made for every chunk that is read
    """What a read takes from one chunk: ``source`` cut from the chunk goes to ``target`` of the result."""

    chunk: tuple[int, ...]
    source: tuple[slice, ...]
    target: tuple[slice, ...]


def whole_piece(grid: Grid, chunk: tuple[int, ...]) -> Piece:
    """All of ``chunk``, into its place in the row block that it lies in."""
    source = tuple(slice(0, cut.stop - cut.start, 1) for cut in grid.box(chunk))
    return Piece(chunk, source, grid.box_in_block(chunk))


def pieces(grid: Grid, spans: tuple[Span, ...]) -> Iterator[Piece]:
    """The chunks that hold a position of ``spans``, and no other, in row-major order."""
    return iter(_few_pieces(grid, spans)) if grid.n_chunks <= FEW else _pieces(grid, spans)


@functools.lru_cache(256)
def _few_pieces(grid: Grid, spans: tuple[Span, ...]) -> tuple[Piece, ...]:
    """``pieces``; most tensors of a model are cut as another one of it is."""
    return tuple(_pieces(grid, spans))


def _pieces(grid: Grid, spans: tuple[Span, ...]) -> Iterator[Piece]:
    # One after the other, because documents may claim a number of chunks that no list could hold.
    for cuts in _combinations(tuple(zip(spans, grid.chunk_shape, strict=True))):
        yield Piece(*zip(*cuts, strict=True)) if cuts else Piece((), (), ())


def _combinations(axes: tuple[tuple[Span, int], ...]) -> Iterator[tuple[tuple[int, slice, slice], ...]]:
    if not axes:
        yield ()
        return
    # What is kept is made once, and its slices are there once, however many pieces have them.
    kept = list(itertools.islice(_combinations(axes[1:]), KEPT + 1))
    for cut in _axis_pieces(*axes[0]):
        for rest in kept if len(kept) <= KEPT else _combinations(axes[1:]):
            yield (cut, *rest)


def _axis_pieces(span: Span, extent: int) -> Iterator[tuple[int, slice, slice]]:
    done = 0
    while done < span.count:
        position = span.start + done * span.step
        index = position // extent
        first = position - index * extent
        count = min(-(-(extent - first) // span.step), span.count - done)
        yield index, slice(first, first + (count - 1) * span.step + 1, span.step), slice(done, done + count)
        done += count


def choose_chunk_shape(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Extents of the chunks for an array of ``shape`` with words of ``itemsize`` bytes (informative in FORMAT.md).

    The two longest axes are cut in 8, then the others where it has to be, then the foremost axes down to 1, until
    a chunk has at most SINGLE_CHUNK_NBYTES and a row block at most ROW_BLOCK_NBYTES.
    """
    chunk = [max(n, 1) for n in shape]
    if math.prod(chunk) * itemsize < SINGLE_CHUNK_NBYTES:
        return tuple(chunk)
    by_length = sorted(range(len(shape)), key=lambda axis: (-shape[axis], axis))
    for axis in by_length[:2]:
        chunk[axis] = max(1, -(-shape[axis] // RANKS))
    for axis in sorted(by_length[2:]):
        if _is_large(chunk, shape, itemsize):
            chunk[axis] = max(1, -(-shape[axis] // RANKS))
    return _bounded(chunk, shape, itemsize)


def _bounded(chunk: list[int], shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """``chunk``, cut on until it and its row block are of the size that is allowed."""
    while _is_large(chunk, shape, itemsize):
        # Equal parts of a chunk keep the slices of 8 ranks on chunk boundaries; only the foremost make row blocks smaller.
        longer = [axis for axis, extent in enumerate(chunk) if extent > 1]
        candidates = longer[:1] if _row_block_is_large(chunk, shape, itemsize) else longer
        axis = next((axis for axis in candidates if _parts(chunk[axis])), longer[0])
        chunk[axis] = -(-chunk[axis] // (_parts(chunk[axis]) or 2))
    return tuple(chunk)


def _is_large(chunk: list[int], shape: tuple[int, ...], itemsize: int) -> bool:
    return math.prod(chunk) * itemsize > SINGLE_CHUNK_NBYTES or _row_block_is_large(chunk, shape, itemsize)


def _row_block_is_large(chunk: list[int], shape: tuple[int, ...], itemsize: int) -> bool:
    return math.prod(Grid(shape, tuple(chunk)).row_block_shape) * itemsize > ROW_BLOCK_NBYTES


def choose_resharded_chunk_shape(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """As ``choose_chunk_shape``, for what other numbers of ranks than the writer's will read, each about its share.

    The two longest axes are cut in 24, or in 12, 6 or 3 where chunks would become too small, so that halves, thirds and quarters of a
    tensor, and of halves and thirds of it, begin where chunks do.
    """
    chunk = [max(n, 1) for n in shape]
    by_length = sorted(range(len(shape)), key=lambda axis: (-shape[axis], axis))[:2]
    for parts in RESHARDED:
        cut = list(chunk)
        for axis in by_length:
            cut[axis] = -(-chunk[axis] // parts)
        if math.prod(cut) * itemsize >= LEAST_CHUNK_NBYTES:
            return _bounded(cut, shape, itemsize)
    return _bounded(chunk, shape, itemsize)


def _parts(extent: int) -> int:
    """The least number of equal parts, of a few, that ``extent`` can be cut in; 0 if it cannot."""
    return next((n for n in (2, 3, 5, 7) if extent % n == 0), 0)

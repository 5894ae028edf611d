"""Grids cover their array, and chunk shapes suit the slices of tensor-parallel ranks."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mzstore.grid import RANKS, ROW_BLOCK_NBYTES, SINGLE_CHUNK_NBYTES, Grid, choose_chunk_shape, pieces
from mzstore.selection import resolve


@st.composite
def grids(draw):
    shape = tuple(draw(st.lists(st.integers(0, 12), max_size=4)))
    return Grid(shape, tuple(draw(st.integers(1, 14)) for _ in shape))


@given(grids())
def test_boxes_cover_the_array_once(grid):
    covered = np.zeros(grid.shape, int)
    chunks = list(grid.chunks())
    assert len(chunks) == grid.n_chunks
    assert chunks == sorted(chunks)
    for chunk in chunks:
        box = covered[(*grid.box(chunk), ...)]
        assert box.size
        box += 1
    assert (covered == 1).all()


@given(grids())
def test_row_blocks_are_contiguous_and_hold_their_chunks(grid):
    array = np.arange(math.prod(grid.shape)).reshape(grid.shape)
    end, seen = 0, []
    for start, shape, chunks in grid.row_blocks():
        assert start == end, "no word is left out, none comes twice"
        end = start + math.prod(shape)
        assert all(n <= most for n, most in zip(shape, grid.row_block_shape, strict=True))
        block = array.reshape(-1)[start:end]
        found = np.concatenate([array[grid.box(chunk)].reshape(-1) for chunk in chunks])
        np.testing.assert_array_equal(np.sort(found), block)
        seen += chunks
    assert end == array.size
    assert seen == list(grid.chunks())


SHAPES = st.lists(st.integers(1, 60_000), min_size=1, max_size=5).map(tuple)


@settings(max_examples=300)
@given(SHAPES, st.sampled_from([1, 2, 4, 8]))
def test_chunks_and_row_blocks_are_bounded(shape, itemsize):
    grid = Grid(shape, choose_chunk_shape(shape, itemsize))
    assert grid.chunk_size * itemsize <= SINGLE_CHUNK_NBYTES
    assert math.prod(grid.row_block_shape) * itemsize <= ROW_BLOCK_NBYTES
    if math.prod(shape) * itemsize < SINGLE_CHUNK_NBYTES:
        assert grid.n_chunks == 1


@pytest.mark.parametrize(
    "shape", [(2048, 1024), (4096, 4096), (14336, 4096), (4096, 14336), (32000, 4096), (128256, 8192), (8192, 8192)]
)
@pytest.mark.parametrize("itemsize", [2, 4])
def test_slices_of_ranks_read_their_share(shape, itemsize):
    grid = Grid(shape, choose_chunk_shape(shape, itemsize))
    chunk_nbytes = grid.chunk_size * itemsize
    least = min(SINGLE_CHUNK_NBYTES // 16, math.prod(shape) * itemsize // RANKS**2)
    assert chunk_nbytes >= least, "not so small that requests cost more than bytes"
    for ranks in (2, 4, RANKS):
        for axis in (0, 1):
            share = shape[axis] // ranks
            index = [slice(None)] * 2
            index[axis] = slice(share, 2 * share)
            read = sum(1 for _ in pieces(grid, resolve(tuple(index), shape).spans))
            assert read * ranks <= 1.01 * grid.n_chunks


@pytest.mark.parametrize(
    "shape", [(2**62,), (2**31, 2**31), (1,) * 30 + (2**30, 2**20), (3, 2**60), (2**60, 3), (0, 2**62)]
)
def test_shapes_that_a_document_can_claim(shape):
    grid = Grid(shape, choose_chunk_shape(shape, 1))
    assert grid.chunk_size <= SINGLE_CHUNK_NBYTES


@pytest.mark.parametrize(("shape", "chunk_shape"), [((3,), ()), ((3,), (0,)), ((3, 3), (3, -1)), ((), (1,))])
def test_chunks_that_do_not_fit(shape, chunk_shape):
    with pytest.raises(ValueError, match="do not fit an array of"):
        Grid(shape, chunk_shape)


def test_chunks_come_one_after_the_other():
    grid = Grid((2**60, 2**60), (1, 1))
    assert next(grid.chunks()) == (0, 0)
    constant = Grid((2**60,), choose_chunk_shape((2**60,), 1))
    assert next(constant.row_blocks()) == (0, (SINGLE_CHUNK_NBYTES,), [(0,)])


def test_a_scalar_is_one_chunk():
    grid = Grid((), ())
    assert (grid.n_chunks, list(grid.chunks()), grid.box(())) == (1, [()], ())
    assert list(grid.row_blocks()) == [(0, (), [()])]


def test_an_empty_array_has_no_chunks():
    grid = Grid((5, 0), (2, 1))
    assert (grid.n_chunks, list(grid.chunks()), list(grid.row_blocks())) == (0, [], [])

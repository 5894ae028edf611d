"""Selections are NumPy's basic indexing, and pieces cover them exactly."""

from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from mzstore.grid import Grid, pieces
from mzstore.selection import Span, resolve

SHAPES = npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9)


@st.composite
def shapes_and_indices(draw):
    shape = draw(SHAPES)
    ends = st.none() | st.integers(-12, 12)
    axis = st.builds(slice, ends, ends, st.none() | st.integers(1, 5) | st.integers(-5, -1))
    items = draw(st.lists(axis | st.integers(-10, 10), max_size=len(shape)))
    if draw(st.booleans()):
        items.insert(draw(st.integers(0, len(items))), ...)
    index = tuple(items)
    if len(index) == 1 and draw(st.booleans()):
        index = index[0]
    return shape, index


def select(array: np.ndarray, index) -> np.ndarray:
    """What a reader does with a selection."""
    selection = resolve(index, array.shape)
    box = tuple(slice(span.start, span.stop, span.step) for span in selection.spans)
    taken = array[box]
    assert taken.shape == selection.counts
    assert selection.size == taken.size
    return taken[selection.flips].reshape(selection.shape)


@given(shapes_and_indices())
def test_selects_what_numpy_selects(case):
    shape, index = case
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    try:
        expected = array[index]
    except IndexError:
        with pytest.raises(IndexError):
            resolve(index, shape)
        return
    np.testing.assert_array_equal(select(array, index), expected, strict=True)


@given(npst.basic_indices((5, 0, 3), allow_newaxis=False))
def test_an_axis_of_length_0(index):
    array = np.empty((5, 0, 3))
    assert select(array, index).shape == array[index].shape


@given(shapes_and_indices(), st.data())
def test_pieces_are_the_selection_and_nothing_else(case, data):
    shape, index = case
    chunk_shape = tuple(data.draw(st.integers(1, 10)) for _ in shape)
    grid = Grid(shape, chunk_shape)
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    try:
        selection = resolve(index, shape)
    except IndexError:
        return
    padded = np.full([n * c for n, c in zip(grid.counts, chunk_shape, strict=True)], -1)
    padded[tuple(slice(0, n) for n in shape)] = array
    out = np.full(selection.counts, -2)
    touched = []
    for piece in pieces(grid, selection.spans):
        chunk = padded[tuple(slice(i * c, (i + 1) * c) for i, c in zip(piece.chunk, chunk_shape, strict=True))]
        assert (out[piece.target] == -2).all(), "no value is read twice"
        out[piece.target] = chunk[piece.source]
        assert out[piece.target].size, "no chunk is touched for nothing"
        touched.append(piece.chunk)
    expected = array[tuple(slice(span.start, span.stop, span.step) for span in selection.spans)]
    np.testing.assert_array_equal(out, expected)
    assert touched == sorted(set(touched))


def test_pieces_of_a_scalar():
    (piece,) = pieces(Grid((), ()), ())
    assert (piece.chunk, piece.source, piece.target) == ((), (), ())


def test_a_step_over_whole_chunks():
    found = [piece.chunk for piece in pieces(Grid((100,), (7,)), (Span(3, 4, 30),))]
    assert found == [(0,), (4,), (9,), (13,)]


def test_pieces_come_one_after_the_other():
    """A document can claim 2**60 chunks."""
    first = next(pieces(Grid((2**60, 2**60), (1, 1)), (Span(0, 2**60), Span(5, 2**59))))
    assert first.chunk == (0, 5)


def test_no_positions():
    span = resolve(slice(7, 3), (10,)).spans[0]
    assert (span.count, span.stop) == (0, span.start)


@pytest.mark.parametrize("index", [(0, 0, 0), (..., 0, 0, 0), (slice(None),) * 3, (0, 0, 0, ...)])
def test_too_many_indices(index):
    with pytest.raises(IndexError, match="too many indices: the tensor has 2 dimensions, 3 were indexed"):
        resolve(index, (2, 2))


def test_two_ellipses():
    with pytest.raises(IndexError, match="single ellipsis"):
        resolve((..., ...), (2, 2))


@pytest.mark.parametrize("position", [3, -4, 2**70, -(2**70)])
def test_out_of_bounds(position):
    with pytest.raises(IndexError, match=f"index {position} is out of bounds for axis 1 with size 3"):
        resolve((0, position), (2, 3))


@pytest.mark.parametrize(
    "index",
    [None, 1.0, "0", [0, 1], True, np.True_, np.array([0, 1]), np.array([True, False]), np.float32(1), {}, Mock()],
    ids=lambda index: f"{type(index).__name__}",
)
def test_what_is_not_basic_indexing(index):
    with pytest.raises(TypeError):
        resolve(index, (2, 3))
    with pytest.raises(TypeError):
        resolve((0, index), (2, 3))


def test_slices_of_floats():
    with pytest.raises(TypeError):
        resolve(slice(0.0, 2), (3,))


def test_a_step_of_0():
    with pytest.raises(ValueError, match="zero"):
        resolve(slice(None, None, 0), (3,))


@pytest.mark.parametrize("one", [np.int64(1), np.uint8(1), np.array(1)], ids=lambda one: type(one).__name__)
def test_integers_of_numpy(one):
    assert resolve(one, (3, 4)) == resolve(1, (3, 4))


def test_slices_far_beyond_the_end():
    assert resolve(slice(-(2**80), 2**80), (5,)).counts == (5,)

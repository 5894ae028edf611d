"""Shards: every position of an axis belongs to one rank, and patterns say which axis that is."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from mzstore.grid import RANKS, Grid, choose_chunk_shape, pieces
from mzstore.selection import Span
from mzstore.shards import axis_of, bounds, parse_axis, parse_shard, shard_slices

LENGTHS = st.integers(0, 100)
COUNTS = st.integers(1, 40)


@given(LENGTHS, COUNTS)
def test_every_position_is_in_one_shard(length, count):
    shards = [range(*bounds(length, index, count)) for index in range(count)]
    assert [position for shard in shards for position in shard] == list(range(length))


@given(LENGTHS.filter(bool), COUNTS)
def test_shards_are_the_chunks_of_torch(length, count):
    chunks = torch.arange(length).chunk(count)
    for index in range(count):
        expected = chunks[index].tolist() if index < len(chunks) else []
        assert list(range(*bounds(length, index, count))) == expected


@pytest.mark.parametrize(
    ("length", "count", "lengths"),
    [(10, 4, [3, 3, 3, 1]), (9, 4, [3, 3, 3, 0]), (3, 5, [1, 1, 1, 0, 0]), (0, 2, [0, 0]), (7, 1, [7])],
)
def test_the_last_shards_may_be_short_or_empty(length, count, lengths):
    ends = [bounds(length, index, count) for index in range(count)]
    assert [stop - start for start, stop in ends] == lengths


def test_shards_of_a_length_that_no_list_could_hold():
    assert bounds(2**62, 7, 8) == (7 * 2**59, 2**62)


@pytest.mark.parametrize(
    ("index", "count", "problem"),
    [
        (8, 8, "shard 8 of 8; shards are counted from 0 to 7"),
        (-1, 8, "shard -1 of 8; shards are counted from 0 to 7"),
        (0, 0, "0 shards; at least 1 is needed"),
        (0, -3, "-3 shards; at least 1 is needed"),
    ],
)
@pytest.mark.parametrize("axis", [0, None])
def test_shards_that_cannot_be(index, count, problem, axis):
    with pytest.raises(ValueError, match=re.escape(problem)):
        bounds(100, index, count)
    with pytest.raises(ValueError, match=re.escape(problem)):
        shard_slices((100,), axis, index, count)


@given(npst.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=9), st.data())
def test_shards_put_together_are_the_array(shape, data):
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    count = data.draw(COUNTS)
    shards = [array[shard_slices(shape, axis, index, count)] for index in range(count)]
    np.testing.assert_array_equal(np.concatenate(shards, axis), array, strict=True)


def test_without_an_axis_a_shard_is_everything():
    assert shard_slices((3, 5), None, 2, 4) == (slice(0, 3), slice(0, 5))
    assert shard_slices((), None, 2, 4) == ()


@pytest.mark.parametrize(("shape", "axis"), [((3, 5), 2), ((3, 5), -3), ((), 0)])
def test_an_axis_that_is_not_there(shape, axis):
    with pytest.raises(IndexError, match=re.escape(f"a tensor of shape {shape} has no axis {axis}")):
        shard_slices(shape, axis, 0, 2)


@pytest.mark.parametrize(
    "shape",
    [
        (2048, 1024),
        (4096, 14336),
        (49152, 576),
        (30522, 384),
        (8, 4096, 14336),
        (50257, 1600),
        (250002, 1024),
        (32001, 4096),
    ],
)
@pytest.mark.parametrize("axis", [-1, -2])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_eight_shards_of_a_matrix_share_no_chunk(shape, axis, itemsize):
    grid = Grid(shape, choose_chunk_shape(shape, itemsize))
    read = []
    for index in range(RANKS):
        cut = shard_slices(shape, axis, index, RANKS)
        read += [piece.chunk for piece in pieces(grid, tuple(Span(s.start, s.stop - s.start) for s in cut))]
    assert sorted(read) == sorted(grid.chunks())


# Which axis


@pytest.mark.parametrize(
    ("axis", "shape", "expected"),
    [
        (0, (4, 6), 0),
        (1, (4, 6), 1),
        (-1, (4, 6), 1),
        (-2, (4, 6), 0),
        (1, (4,), None),
        (-2, (4,), None),
        (0, (), None),
        (-1, (), None),
        (np.int64(1), (4, 6), 1),
    ],
)
def test_an_integer_is_for_the_tensors_that_have_the_axis(axis, shape, expected):
    assert axis_of(axis, "w", shape) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("layers.0.down.weight", 1),
        ("layers.0.up.weight", 0),
        ("layers.0.norm.weight", None),
        ("head", None),
        ("LAYERS.0.up.weight", None),
    ],
)
def test_the_first_pattern_that_matches_decides(name, expected):
    axes = {"*.down.weight": -1, "*.norm.*": None, "layers.*.weight": 0}
    assert axis_of(axes, name, (4, 6)) == expected


def test_a_function_is_asked():
    asked = []

    def axis(name, shape):
        asked.append((name, shape))
        return -1 if len(shape) == 2 else None

    assert axis_of(axis, "w", (4, 6)) == 1
    assert axis_of(axis, "b", (4,)) is None
    assert asked == [("w", (4, 6)), ("b", (4,))]


@pytest.mark.parametrize("axis", [{"*": 2}, {"*": -3}, lambda name, shape: 2], ids=["mapping", "negative", "function"])
def test_an_axis_for_one_tensor_must_be_there(axis):
    with pytest.raises(IndexError, match=r"tensor 'layers\.0\.w' of shape \(4, 6\) has no axis (2|-3)"):
        axis_of(axis, "layers.0.w", (4, 6))


@pytest.mark.parametrize("axis", ["0", 1.0, True, {"*": "0"}, {"*": False}, lambda name, shape: 0.0])
def test_what_is_no_axis(axis):
    with pytest.raises(TypeError, match="an axis is an integer"):
        axis_of(axis, "w", (4, 6))


# From a command line


@pytest.mark.parametrize(("text", "expected"), [("0/1", (0, 1)), ("3/8", (3, 8)), ("07/10", (7, 10))])
def test_parse_shard(text, expected):
    assert parse_shard(text) == expected


@pytest.mark.parametrize(
    "text", ["8/8", "0/0", "-1/8", "3", "3/", "/8", "3/8/2", "3 / 8", "a/b", "", "²/8", "1/" + "9" * 10]
)
def test_what_is_no_shard(text):
    with pytest.raises(ValueError, match=f"{re.escape(repr(text))} is no shard: INDEX/COUNT, .* counts from 0"):
        parse_shard(text)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["0"], 0),
        (["-1"], -1),
        (["*.down.weight=1"], {"*.down.weight": 1}),
        (["*.down.*=-1", "*norm*=none", "*=0"], {"*.down.*": -1, "*norm*": None, "*": 0}),
        (["a=b=0"], {"a=b": 0}),
    ],
)
def test_parse_axis(texts, expected):
    found = parse_axis(texts)
    assert found == expected
    if isinstance(expected, dict):
        assert list(found) == list(expected)


@pytest.mark.parametrize("texts", [["0", "1"], ["x"], ["w="], ["=0"], ["w=x"], ["w=0", "1"], ["w=None"], [""], ["1.0"]])
def test_what_is_no_axis_on_a_command_line(texts):
    with pytest.raises(ValueError, match=r"is no axis: an integer alone, or GLOB=AXIS"):
        parse_axis(texts)


def test_a_pattern_has_one_axis():
    with pytest.raises(ValueError, match=re.escape("two axes for '*.w'")):
        parse_axis(["*.w=0", "*.b=0", "*.w=1"])
    with pytest.raises(ValueError, match="no axis is given"):
        parse_axis([])

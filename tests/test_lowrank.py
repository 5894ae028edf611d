"""Products of factors: the same bits whatever computes them, and for any part of them."""

import struct
from unittest.mock import patch

import numpy as np
import pytest
from forge import forged, written
from hypothesis import given, settings
from hypothesis import strategies as st
from parts import Random

import mzstore
from mzstore import kernels
from mzstore.arrays import Array
from mzstore.dtypes import DTYPES
from mzstore.encodings.lowrank import LowRank, left_grid, multiply, right_grid
from mzstore.encodings.nested import Nested
from mzstore.encodings.raw import Raw
from mzstore.grid import Grid

F32, BF16 = DTYPES["float32"], DTYPES["bfloat16"]


def single(value: float) -> float:
    return struct.unpack("<f", struct.pack("<f", value))[0]


def by_the_page(left: np.ndarray, right: np.ndarray, scale: float) -> list[list[float]]:
    """Each operation in binary64, which holds a product of two numbers of binary32, then rounded to binary32."""
    found = []
    for row in left.tolist():
        found.append([])
        for column in right.T.tolist():
            total = single(row[0] * column[0])
            for a, b in zip(row[1:], column[1:], strict=True):
                total = single(total + single(a * b))
            found[-1].append(single(total * scale))
    return found


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("rank", [1, 2, 3, 4, 5, 6, 9, 64])
def test_products_are_summed_as_the_page_says(rank, fast, monkeypatch):
    """The kernel takes four at a time, and what is left one by one."""
    monkeypatch.setattr(kernels, "pays", lambda nbytes: fast)
    random = np.random.default_rng(rank)
    left = (random.normal(size=(7, rank)) * 2.0 ** random.integers(-20, 20, (7, rank))).astype(np.float32)
    right = (random.normal(size=(rank, 11)) * 2.0 ** random.integers(-20, 20, (rank, 11))).astype(np.float32)
    left[0] = 1e-30  # subnormal products
    right[:, 0] = 1e-12
    out = np.empty((7, 11), np.float32)
    multiply(left, right, np.float32(1 / 3), out)
    assert out.tolist() == by_the_page(left, right, single(1 / 3))


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 20), st.integers(1, 12), st.integers(1, 1100), st.integers(0, 1 << 32))
def test_kernel_and_numpy_give_the_same_bits(rows, rank, cols, seed):
    """Of any numbers but those that are not finite; columns are taken 512 at a time."""
    random = np.random.default_rng(seed)

    def numbers(*shape: int) -> np.ndarray:
        found = random.integers(0, 1 << 32, shape, dtype=np.uint32).view(np.float32)
        return np.where(np.abs(found) < 1e18, found, np.float32(0.1))  # NaN is not below

    left, right, scale = numbers(rows, rank), numbers(rank, cols), np.float32(random.normal())
    found = []
    for fast in (False, True):
        out = np.full((rows, cols), np.nan, np.float32)
        with patch.object(kernels, "pays", lambda nbytes, fast=fast: fast):
            multiply(left, right, scale, out)
        found.append(out.tobytes())
    assert found[0] == found[1]


@pytest.mark.parametrize("fast", [False, True])
def test_factors_that_are_not_finite_do_no_harm(fast, monkeypatch, recwarn):
    """What they give is not defined, but for that it is given."""
    monkeypatch.setattr(kernels, "pays", lambda nbytes: fast)
    grid = Grid((2, 4), (2, 4))
    made = Random(0).lowrank(DTYPES["float16"], grid, 2)
    made.bodies["left"][0, 0] = np.array([[np.nan, np.inf], [3e38, -np.inf]], np.float32).tobytes()
    made.bodies["right"][0, 0] = np.full((2, 4), 1e30, np.float32).tobytes()
    _, words = written(made, grid.shape)
    assert words.shape == (2, 4)
    assert not [w for w in recwarn if issubclass(w.category, RuntimeWarning)]


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_slices_are_those_of_the_whole(dtype, fast, monkeypatch):
    monkeypatch.setattr(kernels, "pays", lambda nbytes: fast)
    own, grid = DTYPES[dtype], Grid((3, 40, 50), (2, 16, 20))
    model, words = forged(
        Random(2).lowrank(own, grid, 7, "groups", "raw", ("float32", "float16"), 0.25), own, grid.shape
    )
    values = words.view(own.numpy)
    with mzstore.open(model.archive()) as opened:
        for index in np.s_[1], np.s_[:, 15:17, 19:21], np.s_[::2, ::-3, 7], np.s_[2, 39, 49], np.s_[:, :, ::11]:
            assert opened["w"][index].tobytes() == values[index].tobytes(), index
            near = opened["w"].read(index=index, dtype="float32")
            with np.errstate(over="ignore"):
                assert near.astype(own.numpy).tobytes() == values[index].tobytes(), index


def factors(rank: int = 2, dtype: str = "float32", grid: Grid | None = None) -> tuple[Grid, Nested, Nested]:
    grid = grid or Grid((4, 6), (4, 6))
    own = DTYPES[dtype]

    def raw(over: Grid) -> Raw:
        return Raw(own, over.shape, Array(over.shape, over.chunk_shape, own.disk, zstd=True))

    return grid, Nested("left", raw(left_grid(grid, rank))), Nested("right", raw(right_grid(grid, rank)))


def test_what_is_no_product_is_refused():
    grid, left, right = factors()
    LowRank(BF16, grid, left, right)
    with pytest.raises(ValueError, match="a tensor of int16 is no product"):
        LowRank(DTYPES["int16"], grid, left, right)
    with pytest.raises(ValueError, match="a tensor of float8_e5m2 is no product"):
        LowRank(DTYPES["float8_e5m2"], grid, left, right)
    with pytest.raises(ValueError, match="is no product of matrices"):
        LowRank(BF16, Grid((4,), (4,)), left, right)
    for scale in (float("nan"), float("inf"), 0.1, 1e39, (1 << 60) + 1, 10**400):
        with pytest.raises(ValueError, match="is not a number of float32"):
            LowRank(BF16, grid, left, right, scale)
    with pytest.raises(ValueError, match="'left' has the shape"):
        LowRank(BF16, grid, factors(3)[1], right)
    with pytest.raises(ValueError, match="'left' is float64, not one of"):
        LowRank(BF16, grid, *factors(dtype="float64")[1:])
    wide = Grid((4, 1 << 24), (4, 1 << 23))
    with pytest.raises(ValueError, match="values take more than 67108864 bytes"):
        LowRank(BF16, wide, *factors(1, grid=wide)[1:])

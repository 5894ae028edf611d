"""Narrow storage is used for values that come back bit for bit, and for no others."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mzstore.dtypes import DTYPES
from mzstore.narrow import convert, fits, narrow

BFLOAT16, FLOAT16, FLOAT32 = DTYPES["bfloat16"], DTYPES["float16"], DTYPES["float32"]


def as_float32(words: np.ndarray, dtype) -> np.ndarray:
    """Words of float32 for all 65,536 words of a narrow dtype, as ``ml_dtypes`` and NumPy convert them."""
    with np.errstate(invalid="ignore"):
        return words.view(dtype.numpy).astype(np.float32).view(np.uint32)


ALL = np.arange(1 << 16, dtype=np.uint16)


def test_every_bfloat16_fits_and_comes_back():
    words = ALL.astype(np.uint32) << 16
    assert fits(words, BFLOAT16)
    np.testing.assert_array_equal(narrow(words, BFLOAT16), ALL)
    out = np.empty_like(words)
    convert(ALL, BFLOAT16, FLOAT32, out)
    np.testing.assert_array_equal(out, words)


def test_every_float16_but_nan_fits_and_comes_back():
    halves = ALL[~np.isnan(ALL.view(np.float16))]
    words = as_float32(halves, FLOAT16)
    assert fits(words, FLOAT16)
    np.testing.assert_array_equal(narrow(words, FLOAT16), halves)
    out = np.empty_like(words)
    convert(halves, FLOAT16, FLOAT32, out)
    np.testing.assert_array_equal(out, words)


@pytest.mark.parametrize("nan", [0x7FC00000, 0x7F800001, 0xFFC00000, 0x7FFFFFFF])
def test_no_nan_fits_float16(nan):
    assert not fits(np.array([0x3F800000, nan], np.uint32), FLOAT16)


@pytest.mark.parametrize(
    ("value", "in_bfloat16", "in_float16"),
    [
        (0.0, True, True),
        (-0.0, True, True),
        (np.inf, True, True),
        (-np.inf, True, True),
        (65504.0, False, True),
        (65536.0, True, False),
        (2.0**-24, True, True),
        (2.0**-25, True, False),
        (3 * 2.0**-25, True, False),
        (1e38, False, False),
        (2.0**127, True, False),
        (2.0**-149, False, False),
        (0.1, False, False),
        (1 + 2.0**-10, False, True),
        (1 + 2.0**-7, True, True),
    ],
)
def test_which_values_fit(value, in_bfloat16, in_float16):
    words = np.array([value], np.float32).view(np.uint32)
    assert fits(words, BFLOAT16) == in_bfloat16
    assert fits(words, FLOAT16) == in_float16


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=20), st.sampled_from([BFLOAT16, FLOAT16]))
def test_what_fits_comes_back(words, dtype):
    words = np.array(words, np.uint32)
    if fits(words, dtype):
        out = np.empty_like(words)
        convert(narrow(words, dtype), dtype, FLOAT32, out)
        np.testing.assert_array_equal(out, words)


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16], ids=lambda dtype: dtype.name)
def test_widens_into_strided_memory(dtype):
    words = np.arange(0, 60, dtype=np.uint16).reshape(6, 10)
    memory = np.zeros((12, 30), np.uint32)
    convert(words[::2, 1::3], dtype, FLOAT32, memory[1:7:2, ::12])
    np.testing.assert_array_equal(memory[1:7:2, ::12], as_float32(words[::2, 1::3].copy(), dtype))
    memory[1:7:2, ::12] = 0
    assert not memory.any()

"""Quantizers decode to what they promise, whatever the values; two decoders give the same bits."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mzstore import kernels
from mzstore.dtypes import DTYPES
from mzstore.quantizers import ArrayMatrix, Codes, Scale, Scheme, ZeroPoint, decoding, dequantize, round_to, spread
from mzstore.quantizers import ecsq as ecsq_module
from mzstore.quantizers.codebooks import FP4, NF4, Lloyd, Table, Vectors, fp4, nf4
from mzstore.quantizers.columns import ColumnScaled
from mzstore.quantizers.decoding import DTYPES_OUT, Decoder, Local, word_tables
from mzstore.quantizers.ecsq import Target, Uniform, quantize
from mzstore.quantizers.floats import ELEMENTS, Floats, codebook, mxfp4, mxfp8, nvfp4
from mzstore.quantizers.integers import Integers
from mzstore.quantizers.lengths import MAX_BITS, coded_bits, huffman
from mzstore.quantizers.packing import (
    BASES,
    counted_bits,
    digits,
    pack,
    packed_cols,
    packed_counts,
    per_byte,
    with_low,
)
from mzstore.quantizers.ranges import block_shape
from mzstore.quantizers.sample import collect


def weights_like(shape, seed=0, scale=0.03):
    """Values like those of a model: a heavier tail than normal ones, rows of different size."""
    rng = np.random.default_rng(seed)
    rows = np.exp(rng.normal(0, 0.2, (shape[0], 1)))
    return (rng.standard_t(8, shape) * rows * scale).astype(np.float32)


VALUES = weights_like((96, 192))


def whole(quantizer, values, importance=None, block_rows=1 << 30):
    """(fitted, codes, decoded) of all of ``values``, read and encoded by row blocks."""
    matrix = ArrayMatrix(values, block_rows)
    weights = ArrayMatrix(importance, block_rows) if importance is not None and importance.ndim == 2 else importance
    fitted = quantizer.fit(matrix, weights)
    parts = []
    for first, block in matrix.blocks():
        own = importance[first : first + block.shape[0]] if isinstance(weights, ArrayMatrix) else importance
        parts.append(fitted.encode(block, first, own))
    return fitted, joined(parts, fitted.scheme), np.concatenate([decoded(part, fitted.scheme) for part in parts])


def joined(parts, scheme):
    """The codes of all row blocks as those of one."""
    scales = [
        np.concatenate([part.scales[i] for part in parts]) if scheme.local(scale.block) else parts[0].scales[i]
        for i, scale in enumerate(scheme.scales)
    ]
    zeros = parts[0].zero_points
    if isinstance(scheme.zero_point, ZeroPoint) and scheme.local(scheme.zero_point.block):
        zeros = np.concatenate([part.zero_points for part in parts])
    return Codes(np.concatenate([part.codes for part in parts]), tuple(scales), zeros)


def decoded(codes, scheme):
    return dequantize(codes.codes, scheme, codes.scales, codes.zero_points)


def entropy(counts):
    """Bits per symbol of an ideal coder."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


def unpack(packed, n, cols):
    """The inverse of ``pack``."""
    return digits(n)[packed].reshape(packed.shape[0], n * packed.shape[1])[:, :cols]


def restored(fitted, block, first_row=0):
    """What a reader has: the decoded values, the outliers put in place."""
    codes = fitted.encode(block, first_row)
    values = dequantize(codes.codes, fitted.scheme, codes.scales, codes.zero_points)
    if codes.outliers is not None:
        at = codes.outliers.positions - first_row * block.shape[1]
        values.reshape(-1)[at] = block.reshape(-1)[at]
    return values


def nmse(values, other, weights=1.0):
    values = values.astype(np.float64)
    return float((weights * (values - other) ** 2).sum() / (weights * values**2).sum())


QUANTIZERS = {
    "uniform step": Uniform(step=0.004),
    "uniform nmse": Uniform(target=Target(nmse=5e-3)),
    "uniform 6 levels": Uniform(target=Target(snr_db=10), levels=6),
    "symmetric 4 tensor": Integers(4),
    "symmetric 8 row": Integers(8, "row", scale_dtype="float16"),
    "symmetric 3 column": Integers(3, "column"),
    "symmetric 12 row": Integers(12, "row"),
    "affine 4 group": Integers(4, 32, affine=True, scale_dtype="float16"),
    "affine 5 column": Integers(5, "column", affine=True, clip="mse"),
    "affine 2 tensor": Integers(2, affine=True, clip="mse"),
    "symmetric 4 row*column": ColumnScaled(Integers(4, "row"), "float16"),
    "symmetric 4 tiles": Integers(4, (32, 40), clip="mse", scale_dtype="bfloat16"),
    "affine 16 row": Integers(16, "row", affine=True),
    "static": Integers(6, 16, static=(-0.1, 0.12), affine=True),
    "nf4": nf4(64),
    "fp4": fp4(32, scale_dtype="float16"),
    "table for the tensor": Table(NF4, "tensor"),
    "lloyd 8": Lloyd(8),
    "lloyd 300": Lloyd(300),
    "vectors 2": Vectors(64, 2),
    "vectors 8": Vectors(300, 8),
    "e4m3 row": Floats("float8_e4m3fn", "row"),
    "e5m2 tensor": Floats("float8_e5m2", "tensor", search=True),
    "mxfp4": mxfp4(),
    "mxfp8": mxfp8(),
    "nvfp4": nvfp4(search=True),
}


@pytest.mark.parametrize("name", QUANTIZERS)
def test_codes_fit_their_scheme(name):
    fitted, codes, _ = whole(QUANTIZERS[name], VALUES, block_rows=32)
    scheme = fitted.scheme
    assert scheme.shape == VALUES.shape
    assert codes.codes.dtype == scheme.code_dtype
    assert codes.codes.shape == (96, 192 // scheme.dimension)
    assert int(codes.codes.max()) < scheme.levels
    for scale, own in zip(scheme.scales, codes.scales, strict=True):
        assert own.shape == scale.grid(*VALUES.shape)
        assert own.dtype == np.float32
        assert (own > 0).all()
        np.testing.assert_array_equal(round_to(own, scale.dtype), own)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_row_blocks_do_not_matter(name):
    _, one, _ = whole(QUANTIZERS[name], VALUES)
    _, many, _ = whole(QUANTIZERS[name], VALUES, block_rows=32)
    np.testing.assert_array_equal(one.codes, many.codes)
    for a, b in zip(one.scales, many.scales, strict=True):
        np.testing.assert_array_equal(a, b)
    if one.zero_points is not None:
        np.testing.assert_array_equal(one.zero_points, many.zero_points)


def digest():
    """Of what all quantizers make of some values, with and without importance."""
    found = hashlib.sha256()
    values = weights_like((300, 192))
    weights = np.exp(np.random.default_rng(1).normal(0, 1, values.shape)).astype(np.float32)
    for quantizer in QUANTIZERS.values():
        for importance in (None, weights[0], weights):
            fitted, codes, got = whole(quantizer, values, importance)
            design = getattr(fitted, "design", None)
            found.update(repr(design and (design.step, design.slope, design.shift, design.reach)).encode())
            for array in (codes.codes, *codes.scales, codes.zero_points, got):
                found.update(b"" if array is None else array.tobytes())
    return found.hexdigest()


def test_other_processors_make_the_same_codes():
    """BLAS adds in another order on each: what it finds must not show."""
    command = "import test_quantizers; print(test_quantizers.digest())"
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    found = {
        subprocess.run(
            [sys.executable, "-c", command],
            env={**os.environ, "OPENBLAS_CORETYPE": core, "PYTHONPATH": paths},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for core in ("Haswell", "Prescott")
    }
    assert len(found) == 1


@pytest.mark.parametrize("per", ["column", "element"])
@pytest.mark.parametrize("snr", [9, 20, 30])
def test_the_error_that_is_asked_for_is_that_without_importance(per, snr):
    values = weights_like((300, 192))
    shape = 192 if per == "column" else values.shape
    importance = np.exp(np.random.default_rng(1).normal(0, 1.5, shape)).astype(np.float32)
    fitted, _, _ = whole(Uniform(target=Target(snr_db=snr)), values, importance)
    error = nmse(values, _with_outliers(fitted, values, importance))
    assert -10 * np.log10(error) == pytest.approx(snr, abs=0.08)
    assert fitted.design.nmse == pytest.approx(error, rel=0.02)


# What a quantizer of the same rate is expected to do on such values, with some room.
@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("uniform nmse", 5.1e-3),
        ("symmetric 4 tensor", 0.2),
        ("symmetric 8 row", 2e-4),
        ("symmetric 12 row", 1e-6),
        ("affine 4 group", 8e-3),
        ("affine 16 row", 1e-8),
        ("symmetric 4 tiles", 3e-2),
        ("affine 2 tensor", 0.3),
        ("nf4", 1.2e-2),
        ("fp4", 2.5e-2),
        ("lloyd 8", 5.5e-2),
        ("lloyd 300", 1e-4),
        ("vectors 2", 5e-2),
        ("e4m3 row", 1e-3),
        ("e5m2 tensor", 4e-3),
        ("mxfp4", 2e-2),
        ("mxfp8", 1e-3),
        ("nvfp4", 1e-2),
    ],
)
def test_error_is_what_the_rate_allows(name, most):
    fitted, _, values = whole(QUANTIZERS[name], VALUES)
    if name.startswith("uniform"):
        values = restored(fitted, VALUES)
    assert nmse(VALUES, values) < most


@pytest.mark.parametrize("name", QUANTIZERS)
def test_decoded_values_get_the_same_codes_again(name):
    """With the same scheme, local scales and zero points are found anew: so only where they are global, or a table's."""
    fitted, codes, values = whole(QUANTIZERS[name], VALUES)
    if any(scale.values is None for scale in fitted.scheme.scales):
        pytest.skip("its scales come from the values")
    again = fitted.encode(values, 0)
    if fitted.scheme.codebook is None:
        np.testing.assert_array_equal(again.codes, codes.codes)
    np.testing.assert_array_equal(dequantize(again.codes, fitted.scheme, again.scales, again.zero_points), values)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("snr", [8, 12, 16, 22, 30])
def test_rounded_decoded_values_get_the_same_codes_again(dtype, snr):
    fitted, codes, values = whole(Uniform(target=Target(snr_db=snr)), VALUES)
    np.testing.assert_array_equal(fitted.encode(round_to(values, dtype), 0).codes, codes.codes)


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused(name, bad):
    values = VALUES.copy()
    values[17, 33] = bad
    with pytest.raises(ValueError, match="NaN" if np.isnan(bad) else "infinity"):
        whole(QUANTIZERS[name], values)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_tensor_of_zeros(name):
    zeros = np.zeros((8, 192), np.float32)
    quantizer = QUANTIZERS[name]
    _, _, values = whole(quantizer, zeros)
    if name == "uniform step" or quantizer.__class__ is not Integers or quantizer.static is None:
        np.testing.assert_array_equal(values, zeros)


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_values_far_from_1(name, size):
    values = (VALUES * size).astype(np.float32)
    quantizer = QUANTIZERS[name]
    fixed = getattr(quantizer, "step", None) or getattr(quantizer, "static", None)
    if fixed or getattr(quantizer, "scale_dtype", "float32") == "float16":
        pytest.skip("a step, a range or float16 scales are for values of one size")
    _, near, _ = whole(quantizer, VALUES)
    _, far, got = whole(quantizer, values)
    assert np.isfinite(got).all()
    assert nmse(values / size, got / np.float32(size)) < 0.4
    assert (near.codes != far.codes).mean() < 0.9 or isinstance(quantizer, Floats)


@pytest.mark.parametrize("shape", [(0, 192), (1, 192), (3, 0)])
@pytest.mark.parametrize(
    "name", ["uniform nmse", "uniform step", "symmetric 8 row", "affine 5 column", "lloyd 8", "nf4", "nvfp4"]
)
def test_few_rows_or_none(name, shape):
    values = np.full(shape, 0.01, np.float32)
    quantizer = QUANTIZERS[name]
    if shape[1] == 0 and getattr(quantizer, "granularity", None) in (16, 64):
        pytest.skip("groups of no columns")
    fitted = quantizer.fit(ArrayMatrix(values))
    if values.size:
        np.testing.assert_allclose(restored(fitted, values), values, rtol=0.2)
    else:
        assert fitted.scheme.shape == shape


# --- uniform steps


@pytest.mark.parametrize("snr", [6, 10.4, 16.3, 22.8, 34.8, 45.1])
def test_the_error_that_is_asked_for_is_reached(snr):
    fitted = Uniform(target=Target(snr_db=snr)).fit(ArrayMatrix(VALUES))
    assert -10 * np.log10(nmse(VALUES, restored(fitted, VALUES))) == pytest.approx(snr, abs=0.05)


@pytest.mark.parametrize("bits", [1.2, 2, 3, 3.5, 4, 5, 8.5, 11])
def test_the_bits_that_are_asked_for_are_expected(bits):
    values = weights_like((600, 400))
    overhead = 0.01 * values.size
    fitted = Uniform(target=Target(bits=bits, overhead_bits=overhead)).fit(ArrayMatrix(values))
    assert fitted.design.bits + 0.01 == pytest.approx(bits, abs=0.02)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("max_error", [0.05, 0.01, 0.002])
def test_the_greatest_error_is_a_guarantee(dtype, max_error):
    values = round_to(VALUES, dtype)
    fitted = Uniform(target=Target(max_error=max_error), dtype=dtype).fit(ArrayMatrix(values))
    error = np.abs(round_to(restored(fitted, values), dtype).astype(np.float64) - values)
    assert error.max() <= max_error
    assert error.max() > max_error / 3, "it could have been had with fewer bits"


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=60),
    st.floats(1e-2, 1e4),
    st.sampled_from(["float32", "bfloat16", "float16"]),
)
def test_the_greatest_error_of_any_values(values, max_error, dtype):
    values = round_to(np.array([values], np.float32), dtype)
    try:
        fitted = Uniform(target=Target(max_error=max_error), dtype=dtype).fit(ArrayMatrix(values))
    except ValueError as error:
        assert "max_error" in str(error)  # noqa: PT017  # both outcomes are checked
        return
    back = round_to(restored(fitted, values), dtype).astype(np.float64)
    assert np.abs(back - values).max() <= max_error


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=2, max_size=80),
    st.floats(0.1, 100),
    st.sampled_from([None, 2, 3, 6, 15, 16, 256]),
)
def test_any_values_at_any_step(values, step, levels):
    values = np.array([values], np.float32)
    fitted = Uniform(step=step, levels=levels).fit(ArrayMatrix(values))
    codes = fitted.encode(values, 0)
    assert levels is None or fitted.scheme.levels <= levels
    got = restored(fitted, values)
    # rounding to the nearest, at most half a step of dead zone, and a reach beyond the alphabet
    assert np.abs(got - values).max() <= fitted.design.step * (1 + min(fitted.design.reach, 3)) + 1e-3
    own = dequantize(codes.codes, fitted.scheme, codes.scales)
    np.testing.assert_array_equal(fitted.encode(own, 0).codes, codes.codes)


def test_outliers_are_exact_ascending_and_in_place():
    values = VALUES.copy()
    values[50, 7], values[50, 9], values[3, 100] = 4.0, -5.0, 6.0
    fitted = Uniform(step=0.02, levels=16).fit(ArrayMatrix(values))
    outliers = fitted.encode(values[32:], 32).outliers
    assert outliers.positions.dtype == np.int64
    assert (np.diff(outliers.positions) > 0).all()
    assert {50 * 192 + 7, 50 * 192 + 9} <= set(outliers.positions.tolist())
    np.testing.assert_array_equal(restored(fitted, values)[values > 2], values[values > 2])
    assert fitted.may_have_outliers
    assert fitted.encode(VALUES[:1] * 0, 0).outliers is None
    assert not Uniform(step=0.02).fit(ArrayMatrix(VALUES)).may_have_outliers


def test_thresholds_save_bits_at_low_rate():
    sample = collect(ArrayMatrix(weights_like((600, 400))))
    plain, better = (
        Uniform(target=Target(snr_db=9), lagrangian=lagrangian).design(sample)
        for lagrangian in (0.0, ecsq_module.LAGRANGIAN)
    )
    assert entropy(better.counts) < entropy(plain.counts) - 0.04


def test_points_are_kept_where_they_pay():
    sample = collect(ArrayMatrix(weights_like((3000, 400))))
    assert Uniform(target=Target(snr_db=8), levels=6).design(sample).points is not None
    assert Uniform(target=Target(snr_db=22)).design(sample).points is None


def test_points_lie_in_their_cells():
    values = weights_like((3000, 400))
    fitted = Uniform(target=Target(snr_db=8), levels=6).fit(ArrayMatrix(values))
    book = fitted.scheme.codebook
    assert (np.diff(book) > 0).all()
    step = fitted.scheme.scales[0].values[0, 0]
    np.testing.assert_array_equal(fitted.encode(np.resize(book * step, values.shape), 0).codes[0, :6], np.arange(6))


def test_a_few_great_values_do_not_decide_the_alphabet():
    values = weights_like((3000, 400))
    values[::97, 5] = 3.0
    design = Uniform(target=Target(snr_db=32)).fit(ArrayMatrix(values)).design
    assert design.levels <= 256
    assert 0 < design.outlier_share < 0.01


def test_one_enormous_value_leaves_the_others_their_bits():
    values = weights_like((600, 400), scale=1.0)
    values[7, 7] = 1e6
    fitted = Uniform(target=Target(bits=4)).fit(ArrayMatrix(values))
    got = restored(fitted, values)
    assert got[7, 7] == values[7, 7]
    values[7, 7] = got[7, 7] = 0
    assert nmse(values, got) < 0.01


@pytest.mark.parametrize("values", [np.full((30, 40), 0.3), np.eye(40), np.resize([1.0, -1.0], (30, 40))])
@pytest.mark.parametrize("target", [Target(bits=4), Target(nmse=1e-4), Target(snr_db=20)])
def test_what_needs_fewer_bits_takes_fewer(values, target):
    values = values.astype(np.float32)
    fitted = Uniform(target=target).fit(ArrayMatrix(values))
    assert fitted.design.bits <= 4.01
    assert nmse(values, restored(fitted, values)) < 1.002e-2


def test_values_far_from_zero():
    values = (weights_like((50, 64)) + 1).astype(np.float32)
    fitted = Uniform(step=0.01).fit(ArrayMatrix(values))
    assert fitted.scheme.levels < 100
    assert fitted.scheme.zero_point < 0
    assert np.abs(restored(fitted, values) - values).max() < 0.0051


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Uniform(), "either a step or a target"),
        (lambda: Uniform(step=0.0), "a step of 0"),
        (lambda: Uniform(step=1.0, levels=1), "1 levels"),
        (lambda: Target(), "not none"),
        (lambda: Target(bits=3, nmse=0.1), "not bits, nmse"),
        (lambda: Target(nmse=1.5), "cannot be reached"),
        (lambda: Target(bits=float("nan")), "cannot be reached"),
        (lambda: Integers(0), "integers of 0 bits"),
        (lambda: Integers(17), "integers of 17 bits"),
        (lambda: Integers(1), "take affine ones"),
        (lambda: Integers(4, clip="best"), "'none' or 'mse'"),
        (lambda: Integers(4, static=(1.0, 1.0)), "is empty"),
        (lambda: Floats("float6"), "one of float8_e4m3fn"),
        (lambda: Floats("float4_e2m1fn", 32, "power of two"), "kept in bfloat16"),
        (lambda: Lloyd(0), "0 levels"),
        (lambda: Vectors(16, 9), "vectors of 9"),
        (lambda: Table(np.zeros(4, np.float32)), "not all 0"),
        (lambda: Scale((1, 1), "float8"), "scales in float8"),
        (lambda: Scheme((2, 3), 1 << 17), "levels: 1 to"),
        (lambda: Scheme((2, 3), 4, 0, np.zeros((4, 2), np.float32)), "not divided by 2"),
    ],
)
def test_what_will_not_do_is_said(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("quantizer", "message"),
    [
        (Integers(4, 50), "groups of 50 do not divide 192 columns"),
        (nf4(128), "groups of 128 do not divide"),
        (Vectors(16, 5), "vectors of 5 weights do not divide"),
        (Uniform(step=1e-9), "levels"),
        (Uniform(target=Target(max_error=1e-9)), "needs more than 65536 levels|below the spacing"),
        (Uniform(target=Target(max_error=1e-6), dtype="bfloat16"), "below the spacing of bfloat16"),
        (Uniform(target=Target(nmse=1e-14)), "cannot be reached"),
        (Uniform(target=Target(bits=2, overhead_bits=1e9)), "spent besides the codes"),
    ],
)
def test_what_a_matrix_does_not_allow_is_said(quantizer, message):
    with pytest.raises(ValueError, match=message):
        quantizer.fit(ArrayMatrix(VALUES))


def test_row_blocks_that_cut_tiles_are_refused():
    fitted = Integers(4, (32, 64)).fit(ArrayMatrix(VALUES))
    with pytest.raises(ValueError, match="multiples of 32 rows"):
        fitted.encode(VALUES[:16], 0)
    with pytest.raises(ValueError, match="does not lie in"):
        fitted.encode(VALUES, 32)


@pytest.mark.parametrize(
    ("granularity", "block"),
    [("tensor", (96, 192)), ("row", (1, 192)), ("column", (96, 1)), (64, (1, 64)), ((128, 128), (96, 128))],
)
def test_blocks_of_a_granularity(granularity, block):
    assert block_shape(granularity, (96, 192)) == block


# --- integers, floats and tables against their definitions


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 16),
    st.booleans(),
    st.sampled_from(["tensor", "row", "column", 4, (2, 3)]),
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=40, max_size=40),
    st.sampled_from(["float32", "bfloat16"]),
)
def test_integers_are_within_half_a_step(bits, affine, granularity, values, scale_dtype):
    values = np.array(values, np.float32).reshape(5, 8)
    affine = affine or bits == 1
    fitted, codes, got = whole(Integers(bits, granularity, affine=affine, scale_dtype=scale_dtype), values)
    steps = spread(codes.scales[0], fitted.scheme.scales[0].block, values.shape)
    rounding = {"float32": 1e-6, "bfloat16": 2.0**-8}[scale_dtype] * fitted.scheme.levels
    room = 0.5 + rounding + (0.51 if affine else 0)  # an affine zero point is rounded: the ends may saturate
    assert (np.abs(got - values) <= steps * room).all()
    assert (got[values == 0] == 0).all()


def test_symmetric_integers_are_those_of_the_definition():
    values = np.array([[-7.0, 3.49, 3.51, 0, 7]], np.float32)
    _, codes, got = whole(Integers(4, "row"), values)
    assert codes.scales[0] == 1
    np.testing.assert_array_equal(codes.codes, [[0, 10, 11, 7, 14]])
    np.testing.assert_array_equal(got, [[-7, 3, 4, 0, 7]])


@pytest.mark.parametrize(
    "quantizer", [Integers(3), Integers(3, affine=True), Integers(3, "row"), Integers(2, 16, affine=True)]
)
def test_a_searched_clip_is_no_worse(quantizer):
    values = weights_like((64, 128), seed=3)
    searched = Integers(quantizer.bits, quantizer.granularity, affine=quantizer.affine, clip="mse")
    assert nmse(values, whole(searched, values)[2]) < nmse(values, whole(quantizer, values)[2])


@pytest.mark.parametrize("element", ELEMENTS)
def test_narrow_floats_round_to_the_nearest(element):
    book = codebook(element)
    values = np.linspace(-ELEMENTS[element][1], ELEMENTS[element][1], 4001, dtype=np.float32)[None]
    _, codes, got = whole(Floats(element), values)
    assert codes.scales[0] == 1
    nearest = np.abs(values[0][:, None].astype(np.float64) - book[None]).min(axis=1)
    np.testing.assert_allclose(np.abs(got - values)[0], nearest, atol=1e-6)


def test_mx_scales_are_those_of_the_specification():
    """OCP MX v1.0, section 6.3: 2 ** (floor(log2(greatest)) - 2) for e2m1."""
    values = np.zeros((1, 64), np.float32)
    values[0, 3], values[0, 40] = -7.9, 0.75
    _, codes, got = whole(mxfp4(), values)
    np.testing.assert_array_equal(codes.scales[0], [[1.0, 0.125]])
    assert got[0, 3] == -6
    assert got[0, 40] == 0.75


def test_nvfp4_scales_are_exact_in_float8():
    fitted, codes, _ = whole(nvfp4(), VALUES)
    own = codes.scales[0]
    np.testing.assert_array_equal(own.astype(DTYPES["float8_e4m3fn"].numpy).astype(np.float32), own)
    assert fitted.scheme.scales[1].values[0, 0] == np.float32(np.abs(VALUES).max() / (6 * 448))
    assert own.max() == 448


@pytest.mark.parametrize("table", [NF4, FP4])
def test_a_table_takes_the_nearest(table):
    _, codes, got = whole(Table(table, 64), VALUES)
    scaled = VALUES.reshape(-1, 64) / np.abs(VALUES).reshape(-1, 64).max(axis=1, keepdims=True)
    least = np.abs(scaled[..., None] - table / np.abs(table).max()).min(axis=-1)
    np.testing.assert_allclose(
        np.abs(got / codes.scales[0].reshape(96, 3).repeat(64, axis=1) - scaled.reshape(96, 192)),
        least.reshape(96, 192),
        atol=1e-6,
    )


def test_lloyd_finds_what_is_there():
    values = np.resize(np.array([-3, -1, 0.5, 8], np.float32), (4, 40))
    fitted, _, got = whole(Lloyd(16), values)
    np.testing.assert_array_equal(fitted.scheme.codebook, [-3, -1, 0.5, 8])
    np.testing.assert_array_equal(got, values)


def test_lloyd_is_near_the_best_for_a_normal_distribution():
    """Max (1960): 0.1175 at 4 levels, 0.03454 at 8, 0.009497 at 16."""
    values = np.random.default_rng(0).standard_normal((256, 512)).astype(np.float32)
    for levels, best in ((4, 0.1175), (8, 0.03454), (16, 0.009497)):
        assert nmse(values, whole(Lloyd(levels), values)[2]) == pytest.approx(best, rel=0.03)


def test_vectors_beat_scalars_of_the_same_rate():
    """Neighbours that depend on each other: 2 bits per weight either way."""
    rng = np.random.default_rng(0)
    base = rng.standard_normal((128, 64))
    values = (
        np.stack([base, base + 0.3 * rng.standard_normal(base.shape)], axis=-1).reshape(128, 128).astype(np.float32)
    )
    assert nmse(values, whole(Vectors(16, 2), values)[2]) < 0.7 * nmse(values, whole(Lloyd(4), values)[2])


# --- importance


@pytest.mark.parametrize(
    "quantizer",
    [
        Uniform(target=Target(bits=2.5)),
        Integers(3, clip="mse"),
        Integers(3, "row", affine=True, clip="mse"),
        Integers(2, (32, 48), affine=True, clip="mse"),
        Lloyd(6),
        Vectors(32, 4),
        nf4(64),
        Table(NF4, "tensor"),
        Table(NF4, "column"),
        Floats("float4_e2m1fn", "row", search=True),
        Floats("float4_e2m1fn", search=True),
        nvfp4(search=True),
    ],
    ids=repr,
)
@pytest.mark.parametrize("per", ["column", "element"])
def test_importance_lowers_the_weighted_error(quantizer, per):
    values = weights_like((128, 192), seed=5)
    rng = np.random.default_rng(1)
    importance = np.exp(rng.normal(0, 1.5, 192 if per == "column" else values.shape)).astype(np.float32)
    if per == "element":
        importance *= 1 + 10 * (np.abs(values) < 0.02)
    plain, _, _ = whole(quantizer, values)
    heavy, _, _ = whole(quantizer, values, importance)
    with_it = nmse(values, _with_outliers(heavy, values, importance), importance)
    without = nmse(values, _with_outliers(plain, values, None), importance)
    one_choice = getattr(quantizer, "granularity", None) == "tensor"  # of few scales: both may lead to the same
    assert with_it < without or (one_choice and with_it == without)


def _with_outliers(fitted, values, importance):
    codes = fitted.encode(values, 0, importance)
    got = dequantize(codes.codes, fitted.scheme, codes.scales, codes.zero_points)
    if codes.outliers is not None:
        got.reshape(-1)[codes.outliers.positions] = values.reshape(-1)[codes.outliers.positions]
    return got


@pytest.mark.parametrize(
    ("importance", "message"),
    [
        (np.ones(5, np.float32), "for 192 columns"),
        (-np.ones(192, np.float32), "not negative"),
        (np.full(192, np.nan, np.float32), "finite"),
        (np.zeros(192, np.float32), "of every value is 0"),
        (ArrayMatrix(np.ones((96, 5), np.float32)), "importance of shape"),
        (ArrayMatrix(np.ones((96, 192), np.float32), 7), "importance comes in rows"),
    ],
)
def test_importance_that_will_not_do(importance, message):
    with pytest.raises(ValueError, match=message):
        Uniform(step=0.01).fit(ArrayMatrix(VALUES), importance)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_importance_that_will_not_do_is_found_before_anything_is_encoded(name):
    weights = np.ones(VALUES.shape, np.float32)
    weights[70, 3] = -1
    for bad, message in ((weights, "not negative"), (-weights[70], "not negative"), (weights[0] * np.nan, "finite")):
        with pytest.raises(ValueError, match=message):
            QUANTIZERS[name].fit(ArrayMatrix(VALUES, 32), ArrayMatrix(bad, 32) if bad.ndim == 2 else bad)


@pytest.mark.parametrize(
    "quantizer",
    [
        Integers(4, 32, scale_dtype="float16"),
        Integers(4, 32, affine=True, scale_dtype="float16", clip="mse"),
        Integers(4, (40, 32), affine=True, scale_dtype="float16"),
        nf4(32, scale_dtype="float16"),
        Floats("float4_e2m1fn", 32, search=True, scale_dtype="float16"),
    ],
    ids=repr,
)
def test_scales_that_overflow_are_found_before_anything_is_encoded(quantizer):
    values = np.ones((96, 64), np.float32)
    values[70, 40] = 1e7
    with pytest.raises(ValueError, match="too great for float16"):
        quantizer.fit(ArrayMatrix(values, 7))
    values[70, 40] = 60000
    assert np.isfinite(whole(quantizer, values)[2]).all()


def test_scales_of_blocks_that_row_blocks_cut_are_found():
    """Neither of the two rows needs a scale that is too great."""
    values = np.zeros((8, 4), np.float32)
    values[4], values[5] = 9e5, -9e5
    quantizer = Integers(4, (4, 4), affine=True, scale_dtype="float16")
    with pytest.raises(ValueError, match="too great for float16"):
        quantizer.fit(ArrayMatrix(values, 5))
    values[[3, 4]] = values[[4, 3]]  # a block each
    quantizer.fit(ArrayMatrix(values, 5))
    Integers(4, 4, affine=True, scale_dtype="float16").fit(ArrayMatrix(values))


# --- values near the greatest of their dtype

NARROW = {"float16": 65504.0, "bfloat16": 3.38e38, "float32": 3.4e38}


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("scale_dtype", NARROW)
@pytest.mark.parametrize(
    "make",
    [
        lambda scales, dtype: Integers(4, 32, scale_dtype=scales, dtype=dtype),
        lambda scales, dtype: Integers(3, "tensor", clip="mse", scale_dtype=scales, dtype=dtype),
        lambda scales, dtype: Integers(4, 32, affine=True, scale_dtype=scales, dtype=dtype),
        lambda scales, dtype: Integers(2, "row", affine=True, scale_dtype=scales, dtype=dtype),
        lambda scales, dtype: Table(NF4, 32, scales, dtype),
        lambda scales, dtype: Table(FP4, "tensor", scales, dtype),
        lambda scales, dtype: Floats("float8_e4m3fn", "row", scale_dtype=scales, dtype=dtype),
        lambda scales, dtype: Floats("float4_e2m1fn", 32, search=True, scale_dtype=scales, dtype=dtype),
        lambda scales, dtype: mxfp4(search=True, dtype=dtype),
        lambda scales, dtype: nvfp4(search=True, dtype=dtype),
        lambda scales, dtype: ColumnScaled(Integers(4, "row"), scales, dtype),
        lambda scales, dtype: Uniform(target=Target(snr_db=18), dtype=dtype),
    ],
)
@pytest.mark.parametrize("weighted", [False, True])
def test_nothing_is_decoded_to_infinity(make, scale_dtype, dtype, weighted):
    rng = np.random.default_rng(0)
    shares = np.concatenate(
        [rng.uniform(0.9, 1, (16, 64)) * rng.choice([-1, 1], (16, 64)), rng.uniform(-1, 1, (16, 64))]
    )
    shares[3], shares[5, :2] = -1, 1
    values = round_to((shares * NARROW[dtype]).astype(np.float32), dtype)
    importance = np.exp(rng.normal(0, 2, 64)).astype(np.float32) if weighted else None
    try:
        fitted, codes, _ = whole(make(scale_dtype, dtype), values, importance)
    except ValueError as error:
        assert dtype != "float16"
        assert "infinity" in str(error) or scale_dtype == "float16"  # noqa: PT017  # of a column that is multiplied
        return
    got = round_to(decoded(codes, fitted.scheme), dtype)
    assert np.isfinite(got).all()
    assert nmse(shares, got.astype(np.float64) / NARROW[dtype]) < 0.2


def test_a_scale_that_was_rounded_up_is_the_next_lower_one():
    values = np.full((1, 32), 65504, np.float32)
    _, codes, got = whole(Integers(4, 32, scale_dtype="float16", dtype="float16"), values)
    assert codes.scales[0] == 9352
    assert (got == 9352 * 7).all()


# --- bits and packing


@given(st.sampled_from(sorted(BASES)), st.integers(0, 9), st.integers(0, 70), st.integers(0, 2**32 - 1))
def test_unpack_is_the_inverse_of_pack(n, rows, cols, seed):
    codes = np.random.default_rng(seed).integers(0, BASES[n], (rows, cols), dtype=np.uint8)
    packed = pack(codes, n)
    assert packed.shape == (rows, packed_cols(cols, n))
    np.testing.assert_array_equal(unpack(packed, n, cols), codes)


def test_the_first_code_is_the_least_significant_digit():
    assert pack(np.array([[1, 2, 5, 3]], np.uint8), 3).tolist() == [[1 + 2 * 6 + 5 * 36, 3]]
    assert pack(np.array([[1, 0, 0, 0, 0, 0, 0, 1, 1]], np.uint8), 8).tolist() == [[0x81, 1]]
    assert digits(5)[1 + 2 * 3 + 2 * 81].tolist() == [1, 2, 0, 0, 2]


@pytest.mark.parametrize(("levels", "n"), [(2, 8), (3, 5), (4, 4), (5, 3), (6, 3), (7, 2), (16, 2), (17, 1), (256, 1)])
def test_as_many_as_fit_share_a_byte(levels, n):
    assert per_byte(levels) == n


def test_packing_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="code 6 in a packing of 3"):
        pack(np.array([[6]], np.uint8), 3)
    with pytest.raises(ValueError, match="6 codes to a byte"):
        pack(np.zeros((1, 6), np.uint8), 6)
    with pytest.raises(ValueError, match="257 levels"):
        per_byte(257)


@given(st.lists(st.integers(0, 1 << 30), min_size=2, max_size=256))
def test_huffman_lengths_make_a_code(counts):
    counts = np.array(counts)
    lengths = huffman(counts)
    present = counts > 0
    if present.sum() < 2:
        assert not lengths.any()
        return
    assert lengths.max() <= MAX_BITS
    assert (2.0 ** -lengths[present]).sum() <= 1
    assert not lengths[~present].any()
    if lengths.max() < MAX_BITS:  # not limited: within 1 bit of the entropy, and complete
        assert (2.0 ** -lengths[present]).sum() == 1
        mean = (counts * lengths).sum() / counts.sum()
        assert entropy(counts) - 1e-9 <= mean <= entropy(counts) + 1


@pytest.mark.parametrize(("levels", "scale"), [(3, 0.6), (6, 1.1), (15, 2.0), (60, 8.0), (250, 30.0)])
def test_counted_bits_are_those_of_zstd(levels, scale):
    from mzstore.payload import compress

    k = np.rint(np.random.default_rng(0).normal(0, scale, (512, 1020)) + levels // 2)
    codes = np.clip(k, 0, levels - 1).astype(np.uint8)
    packed = pack(codes, per_byte(levels)).reshape(-1)
    frame = compress([packed], coder="huffman", block_nbytes=128 << 10)
    counted = counted_bits(np.bincount(codes.reshape(-1), minlength=levels))
    assert counted == pytest.approx(8 * len(frame), rel=0.012)


def test_counts_of_packed_bytes():
    counts = packed_counts(np.array([3, 1]), 8)
    assert counts.sum() == pytest.approx(0.5)
    assert counts[0b10] == pytest.approx(0.5 * 0.25 * 0.75**7)
    assert coded_bits(np.zeros(256)) == 0


# --- kernels and the decoder


@pytest.fixture(params=["numpy", "numba"])
def engine(request, monkeypatch):
    if request.param == "numba" and kernels._never:
        pytest.skip("Numba is told not to compile")
    monkeypatch.setattr(kernels, "pays", lambda nbytes: request.param == "numba")
    return request.param


def test_kernel_and_numpy_give_the_same_codes(monkeypatch):
    if kernels._never:
        pytest.skip("Numba is told not to compile")
    fitted = Uniform(target=Target(snr_db=12)).fit(ArrayMatrix(VALUES))
    values = np.concatenate([VALUES, -VALUES * 7, np.float32(0) * VALUES, fitted.design.step * np.rint(VALUES * 99)])
    results = []
    for numba in (False, True):
        monkeypatch.setattr(kernels, "pays", lambda nbytes, numba=numba: numba)
        codes = np.full(values.shape, 255, np.uint8)
        quantize(values.astype(np.float32), fitted.design, codes)
        results.append(codes)
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("n", sorted(BASES))
@pytest.mark.parametrize("cols", [1, 2, 7, 40, 41])
def test_both_engines_pack(engine, n, cols):
    codes = np.random.default_rng(cols).integers(0, BASES[n], (5, cols), dtype=np.uint8)
    np.testing.assert_array_equal(unpack(pack(codes, n), n, cols), codes)


SLICES = [
    (slice(0, 96), slice(0, 192)),
    (slice(5, 64), slice(8, 184)),
    (slice(95, 96), slice(7, 8)),
    (slice(1, 4), slice(11, 113)),
    (slice(0, 0), slice(0, 9)),
]


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("dtype", DTYPES_OUT)
def test_the_decoder_gives_the_bits_of_the_reference(engine, name, dtype):
    fitted, codes, values = whole(QUANTIZERS[name], VALUES)
    with np.errstate(over="ignore"):
        expected = values.astype(DTYPES[dtype].numpy).view(DTYPES[dtype].word)
    packings = [1] if fitted.scheme.levels > 16 or fitted.scheme.dimension > 1 else [1, per_byte(fitted.scheme.levels)]
    for n in packings:
        decoder = Decoder(fitted.scheme, n, dtype)
        packed = pack(codes.codes, n) if n > 1 else codes.codes
        for rows, cols in SLICES:
            memory = np.full((rows.stop - rows.start, 250), 77, DTYPES[dtype].word)
            out = memory[:, 3 : 3 + cols.stop - cols.start]
            decoder.decode(packed, rows, cols, Local(codes.scales, codes.zero_points), out)
            np.testing.assert_array_equal(out, expected[rows, cols])
            out[...] = 77
            assert (memory == 77).all(), "it wrote beyond its slice"


@pytest.mark.parametrize("n", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_expanding_writes_nothing_behind_a_row(engine, n, dtype):
    """A head that is longer than its values must not be stored at the end of a row: neighbours belong to others."""
    levels = BASES[n]
    rng = np.random.default_rng(n)
    for cols in range(1, 4 * n + 2):
        codes = rng.integers(0, levels, (3, cols), dtype=np.uint8)
        scheme = Scheme(
            (3, cols), levels, levels // 2, None, (Scale((3, cols), "float32", np.full((1, 1), 0.1, np.float32)),)
        )
        expected = round_to(dequantize(codes, scheme, (scheme.scales[0].values,)), dtype)
        memory = np.full((3, cols + 5), 99, DTYPES[dtype].word)
        for first in range(min(cols, n)):
            memory[...] = 99
            out = memory[:, 2 : 2 + cols - first]
            Decoder(scheme, n, dtype).decode(pack(codes, n), slice(0, 3), slice(first, cols), Local(), out)
            np.testing.assert_array_equal(out.view(DTYPES[dtype].numpy).astype(np.float32), expected[:, first:])
            out[...] = 99
            assert (memory == 99).all()


def test_every_float32_word_rounds_to_bfloat16_as_ml_dtypes_does():
    """All the halves that are dropped, below and above, of some tops."""
    if kernels._never:
        pytest.skip("Numba is told not to compile")
    tops = np.array([0, 1, 0x3F80, 0x3F81, 0x7F7F, 0xBF80, 0xFF7E, 0x8000], np.uint32) << 16
    words = (tops[:, None] | np.arange(1 << 16, dtype=np.uint32)[None]).copy()
    out = np.empty(words.shape, np.uint16)
    kernels.load_quantized().round_bf16(words, *words.shape, out.reshape(-1), 0, 1 << 16)
    expected = words.view(np.float32).astype(DTYPES["bfloat16"].numpy).view(np.uint16)
    np.testing.assert_array_equal(out, expected)


def test_codes_beyond_the_levels_are_refused(engine):
    scheme = Scheme((2, 8), 5, 2, None, (Scale((2, 8), "float32", np.ones((1, 1), np.float32)),))
    out = np.zeros((2, 8), np.uint32)
    with pytest.raises(ValueError, match="code 5, where there are 5 levels"):
        Decoder(scheme, 1, "float32").decode(np.full((2, 8), 5, np.uint8), slice(0, 2), slice(0, 8), Local(), out)
    assert not out.any()


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (5, 2), (4, 1), (4, 3), (8,)])
@pytest.mark.parametrize("what", ["scales", "zero points"])
def test_scales_that_are_too_few_or_too_many_are_refused(engine, shape, what):
    """The kernels would read beyond them."""
    scheme = Scheme((8, 32), 16, ZeroPoint((2, 16)), None, (Scale((2, 16)),))
    scale, zero = np.ones((4, 2), np.float32), np.zeros((4, 2), np.int32)
    local = (
        Local((np.ones(shape, np.float32),), zero) if what == "scales" else Local((scale,), np.zeros(shape, np.int32))
    )
    out = np.zeros((8, 32), np.uint32)
    decoder = Decoder(scheme, 1, "float32")
    with pytest.raises(ValueError, match=rf"{what} of shape .* need \(4, 2\)"):
        decoder.decode(np.ones((8, 32), np.uint8), slice(0, 8), slice(0, 32), local, out)
    for missing, message in ((Local((), zero), "0 arrays of scales"), (Local((scale,)), "no zero points")):
        with pytest.raises(ValueError, match=message):
            decoder.decode(np.ones((8, 32), np.uint8), slice(0, 8), slice(0, 32), missing, out)
    assert not out.any()


def test_no_more_scales_are_spread_than_a_block_of_rows_needs(monkeypatch):
    monkeypatch.setattr(kernels, "pays", lambda nbytes: False)
    rows, spread_out = 1024, []
    repeat = np.repeat
    monkeypatch.setattr(np, "repeat", lambda *args, **kw: spread_out.append(repeat(*args, **kw)) or spread_out[-1])
    scheme = Scheme((rows, 256), 16, 8, None, (Scale((1, 32)),))
    out = np.empty((rows, 256), np.uint32)
    local = Local((np.ones((rows, 8), np.float32),))
    Decoder(scheme, 1, "float32").decode(np.ones((rows, 256), np.uint8), slice(0, rows), slice(0, 256), local, out)
    assert sum(array.size for array in spread_out) <= 2 * out.size


def test_tables_of_codes_are_made_once(monkeypatch):
    if kernels._never:
        pytest.skip("Numba is told not to compile")
    made = []
    monkeypatch.setattr(decoding, "word_tables", lambda *args: made.append(args) or word_tables(*args))
    monkeypatch.setattr(kernels, "pays", lambda nbytes: True)
    decoding._digit_tables.cache_clear()
    scheme = Scheme((400, 256), 16, 8, None, (Scale((1, 32)),))
    out = np.empty((400, 256), np.uint32)
    local = Local((np.ones((400, 8), np.float32),))
    Decoder(scheme, 2, "float32").decode(np.ones((400, 128), np.uint8), slice(0, 400), slice(0, 256), local, out)
    assert len(made) == 1


@pytest.mark.parametrize(
    ("n", "dtype", "message"), [(2, "int8", "decoded to int8"), (3, "float32", "do not share a byte")]
)
def test_a_decoder_that_cannot_be(n, dtype, message):
    with pytest.raises(ValueError, match=message):
        Decoder(Scheme((2, 8), 16), n, dtype)


@pytest.mark.parametrize("low_bits", range(1, 9))
@pytest.mark.parametrize("cols", [1, 7, 64, 65])
def test_low_bits_are_put_below_the_others(engine, low_bits, cols):
    codes = np.random.default_rng(low_bits).integers(0, 256 << low_bits, (5, cols)).astype(np.uint16)
    low = pack((codes & ((1 << low_bits) - 1)).astype(np.uint8), per_byte(1 << low_bits))
    np.testing.assert_array_equal(with_low((codes >> low_bits).astype(np.uint8), low, low_bits), codes)


def test_scales_of_rows_and_columns_follow_both():
    """An outer product of scales makes int8 of a matrix with great rows and great columns as good as of a plain one."""
    rng = np.random.default_rng(0)
    plain = rng.normal(size=(96, 192)).astype(np.float32)
    uneven = plain * np.exp(rng.normal(0, 2, (96, 1))) * np.exp(rng.normal(0, 2, (1, 192)))
    errors = [
        relative_errors(values.astype(np.float32), quantizer)
        for values, quantizer in (
            (plain, Integers(8, "row")),
            (uneven, ColumnScaled(Integers(8, "row"))),
            (uneven, Integers(8, "row")),
        )
    ]
    assert errors[1] < 1.5 * errors[0]
    assert errors[2] > 3 * errors[0]


def relative_errors(values, quantizer):
    """Mean of squared error / mean square over columns, each of which counts the same."""
    _, _, got = whole(quantizer, values)
    return float((((got - values) ** 2).sum(axis=0) / (values**2).sum(axis=0)).mean())

"""``diff``: what differs between two models, and by how much."""

import json
import math

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from samples import random_bits, saved, small_model, weights

import mzstore
from mzstore import model
from mzstore.diff import Difference, Measure, render
from mzstore.dtypes import DTYPES


def between(a, b, **options) -> Difference:
    return mzstore.diff(saved({"w": a}), saved({"w": b}), **options)


def measured(a, b) -> Measure:
    (tensor,) = between(a, b).tensors
    assert tensor.measure
    return tensor.measure


@pytest.mark.parametrize("threads", [1, 3])
def test_equal_models(threads, tmp_path):
    tensors = small_model()
    mzstore.save(tmp_path / "a.mz", tensors, level="fast", metadata={"a": 1, "b": [2]}, assets={"x": b"1"})
    reordered = dict(reversed(tensors.items()))
    mzstore.save(tmp_path / "b.zarr", reordered, level="max", metadata={"b": [2], "a": 1}, assets={"x": b"1"})
    difference = mzstore.diff(tmp_path / "a.mz", tmp_path / "b.zarr", threads=threads)
    assert difference.equal
    assert difference.equal_tensors == len(tensors)
    assert list(render(difference)) == ["13 of 13 common tensors equal; metadata and assets are equal"]


def test_across_formats(tmp_path):
    tensors = {name: array for name, array in small_model().items() if name not in ("four", "phase")}
    save_file(tensors, tmp_path / "m.safetensors", metadata={"format": "pt"})
    mzstore.convert(tmp_path / "m.safetensors", tmp_path / "m.mz")
    assert mzstore.diff(tmp_path / "m.safetensors", tmp_path / "m.mz").equal
    tensors["layers.0.weight"] = tensors["layers.0.weight"] + 1
    save_file(tensors, tmp_path / "m.safetensors", metadata={"format": "pt"})
    difference = mzstore.diff(tmp_path / "m.safetensors", tmp_path / "m.mz")
    assert [tensor.name for tensor in difference.tensors] == ["layers.0.weight"]


def test_what_only_one_has():
    a = saved({"both": weights((3,)), "a": weights((4,))}, metadata={"x": 1, "y": 1}, assets={"f": b"1", "g": b"1"})
    b = saved({"both": weights((3,)), "b": weights((5,))}, metadata={"x": 2, "z": 1}, assets={"f": b"2", "h": b"1"})
    difference = mzstore.diff(a, b)
    assert not difference.equal
    assert [spec.name for spec in difference.only_a] == ["a"]
    assert [spec.name for spec in difference.only_b] == ["b"]
    assert difference.tensors == ()
    for keys, expected in ((difference.metadata, "yzx"), (difference.assets, "ghf")):
        assert (keys.only_a, keys.only_b, keys.differing) == tuple((key,) for key in expected)
    assert list(render(difference)) == [
        "- a  float32 [4]",
        "+ b  float32 [5]",
        "- metadata y",
        "+ metadata z",
        "~ metadata x",
        "- asset g",
        "+ asset h",
        "~ asset f",
        "1 of 1 common tensor equal",
    ]


def test_shapes_and_dtypes():
    (tensor,) = between(weights((3, 4)), weights((4, 3))).tensors
    assert tensor.measure is None
    assert tensor.to_json() == {
        "name": "w", "dtype": ["float32", "float32"], "shape": [[3, 4], [4, 3]], "values": None,
    }  # fmt: skip
    assert next(render(between(weights((3, 4)), weights((4, 3))))) == "~ w  float32 [3, 4] -> float32 [4, 3]"
    # Of two dtypes with values that are all the same, the dtype is what differs.
    a = np.arange(5, dtype=np.int32)
    assert measured(a, a.astype(np.float32)) == Measure(5, 0, 0, 0.0, 0.0, 0.0)
    assert measured(a, (a + 0.5).astype(np.float32)) == Measure(5, 5, 0, 0.5, 0.5, 5 * 0.25 / 30)
    # Packed values and values of two parts are not words at the same places.
    (tensor,) = between(np.zeros((2, 4), ml_dtypes.int4), np.zeros((2, 4), np.int8)).tensors
    assert tensor.measure is None


def test_the_errors():
    a = np.array([1.0, 2.0, -3.0, 4.0], np.float32)
    b = np.array([1.0, 2.5, -3.0, 2.0], np.float32)
    measure = measured(a, b)
    assert (measure.size, measure.differing, measure.nonfinite) == (4, 2, 0)
    assert measure.max_abs_error == 2.0
    assert measure.rmse == pytest.approx(math.sqrt(4.25 / 4), rel=1e-12)
    assert measure.nmse == pytest.approx(4.25 / 30, rel=1e-12)
    assert list(render(between(a, b)))[1] == "    2 of 4 values differ; max error 2, RMSE 1, NMSE 0.14"


def test_nan_and_infinity_do_not_spoil_the_errors():
    nan, inf = np.nan, np.inf
    a = np.array([nan, nan, 1.0, inf, inf, 1.0], np.float32)
    b = np.array([nan, 1.0, nan, inf, -inf, 2.0], np.float32)
    assert measured(a, b) == Measure(6, 4, 3, 1.0, 1.0, 1.0)
    # A NaN of another payload is other bits, and no error.
    c = a.copy()
    c.view(np.uint32)[0] ^= 1
    assert measured(a, c) == Measure(6, 1, 1, 0.0, 0.0, 0.0)
    # Of two dtypes, a NaN is a NaN.
    assert measured(a, a.astype(np.float64)).differing == 0


def test_negative_zero_is_other_bits():
    assert measured(np.array([0.0, 1.0]), np.array([-0.0, 1.0])) == Measure(2, 1, 0, 0.0, 0.0, 0.0)


def test_nothing_to_relate_the_error_to():
    assert measured(np.zeros(4), np.ones(4)) == Measure(4, 4, 0, 1.0, 1.0, None)


def test_large_integers_are_told_apart():
    """float64 has 53 bits."""
    a = np.array([2**62, -(2**63), 2**63 - 1], np.int64)
    b = np.array([2**62 + 1, -(2**63), -(2**63)], np.int64)
    measure = measured(a, b)
    assert measure.differing == 2
    assert measure.max_abs_error == float(2**64 - 1)
    assert measured(a[:1], b[:1]).max_abs_error == 1.0


def test_an_overflow_is_no_number_of_json():
    difference = between(np.array([1e308]), np.array([-1e308]))
    values = json.loads(json.dumps(difference.to_json(), allow_nan=False))["differing"][0]["values"]
    assert values["max_abs_error"] is None
    assert values["differing"] == 1


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("shape", [(), (7,), (3, 5), (2, 3, 4)])
def test_one_value_of_every_dtype(name, shape):
    """One other value is found as one, with the error that NumPy gives."""
    a = random_bits(name, shape, 0)
    b = a.copy()
    at = (-1,) * len(shape)
    b[at] = 0 if a[at].tobytes() != np.zeros((), a.dtype).tobytes() else 1
    measure = measured(a, b)
    assert (measure.size, measure.differing) == (a.size, 1)
    wide = np.complex128 if a.dtype.kind == "c" else np.float64
    with np.errstate(all="ignore"):
        error = abs(a[at].astype(wide) - b[at].astype(wide))
    if a.dtype.itemsize < 8 and np.isfinite(error):
        assert measure.max_abs_error == error
    assert between(a, a).equal


def test_packed_rows_across_blocks():
    """Blocks of a long row, whose last word holds one value."""
    a = np.random.default_rng(0).integers(0, 16, (1, (1 << 23) + 1), np.uint8).view(ml_dtypes.uint4)
    b = a.copy()
    b.view(np.uint8)[0, [0, 1 << 22, -1]] ^= 1
    assert measured(a, b) == Measure(
        a.size, 3, 0, 1.0, pytest.approx(math.sqrt(3 / a.size)), pytest.approx(3 / (a.astype(float) ** 2).sum())
    )


def test_equal_digests_are_not_read(monkeypatch):
    a, b = saved(small_model(), level="fast"), saved(small_model(), level="max")

    def never(*_):
        raise AssertionError("values are read")

    monkeypatch.setattr(model.StoredTensor, "read", never)
    assert mzstore.diff(a, b).equal


def test_damage_is_an_error_and_no_difference(tmp_path):
    mzstore.save(tmp_path / "a.zarr", {"w": weights((30, 40))})
    (chunk,) = (tmp_path / "a.zarr" / "w" / "c").rglob("0/0/0")
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"!")
    with pytest.raises(mzstore.CorruptError, match="'w'"):
        mzstore.diff(tmp_path / "a.zarr", saved({"w": weights((30, 40), 1)}))

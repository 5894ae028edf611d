"""Products of two factors: as near to a matrix as their rank allows, and of the least rank that an error allows."""

from typing import Any

import numpy as np
import pytest
from samples import bits, saved, weights

import mzstore
from mzstore import Recipe, Rule, factorize
from mzstore.dtypes import DTYPES


def recipe(**keys: Any) -> Recipe:
    return Recipe([Rule(**keys)], defaults=False)


def matrix(rows: int, cols: int, seed: int = 0, decay: float = 0.05) -> np.ndarray:
    """float32, with singular values that fall off as those of weights do."""
    rng = np.random.default_rng(seed)
    left, right = (
        np.linalg.qr(rng.standard_normal((rows, min(rows, cols))))[0],
        np.linalg.qr(rng.standard_normal((cols, min(rows, cols))))[0],
    )
    sizes = np.exp(-decay * np.arange(min(rows, cols)))
    return np.asarray((left * sizes) @ right.T, np.float32)  # fmt: skip


def factorized(array: np.ndarray, importance: Any = None, **keys: Any) -> tuple[np.ndarray, dict[str, Any]]:
    data = saved({"w": array}, recipe=recipe(**keys), importance=None if importance is None else {"w": importance})
    assert mzstore.verify(data).problems == ()
    with mzstore.open(data) as model:
        tensor = model["w"]
        assert tensor.encoding == "lowrank"
        values = tensor[...]
        assert bits(tensor[3:-1:2, 1:]) == bits(values[3:-1:2, 1:])
        return values, tensor.quality["reached"]


def nmse(values: np.ndarray, array: np.ndarray, weights: Any = 1.0) -> float:
    before = array.astype(np.float64)
    return float((np.square(values.astype(np.float64) - before) * weights).sum() / (np.square(before) * weights).sum())


def optimum(array: np.ndarray, rank: int) -> float:
    sizes = np.square(np.linalg.svd(array.astype(np.float64).reshape(-1, array.shape[-1]), compute_uv=False))
    return float(sizes[rank:].sum() / sizes.sum())


@pytest.fixture(params=["exact", "randomized"])
def method(request, monkeypatch):
    """Matrices of the tests are small; above ``FULL`` only as many vectors are computed as are wanted."""
    if request.param == "randomized":
        pytest.importorskip("sklearn")
        monkeypatch.setattr(factorize, "FULL", 8)
        monkeypatch.setattr(factorize, "FIRST_RANK", 4)
    return request.param


@pytest.mark.parametrize("rank", [1, 7, 32])
@pytest.mark.parametrize("shape", [(160, 90), (90, 160), (128, 128)])
def test_the_nearest_of_its_rank(method, shape, rank):
    array = matrix(*shape)
    values, reached = factorized(array, rank=rank)
    assert nmse(values, array) == pytest.approx(optimum(array, rank), rel=1e-3)
    assert reached["parts"] == [{"encoding": "lowrank", "rank": rank}]
    assert reached["nmse"] == pytest.approx(nmse(values, array), rel=1e-4)
    assert np.linalg.matrix_rank(values.astype(np.float64), tol=1e-4) <= rank


@pytest.mark.parametrize(
    "keys",
    [{"energy": 0.5}, {"energy": 0.999}, {"encoding": "lowrank", "nmse": 0.1}, {"encoding": "lowrank", "nmse": 1e-3}],
    ids=str,
)
def test_the_least_rank_with_an_error(method, keys):
    array = matrix(160, 90)
    asked = keys.get("nmse", 1 - keys.get("energy", 0))
    values, reached = factorized(array, **keys)
    rank = reached["parts"][0]["rank"]
    assert nmse(values, array) <= asked
    assert optimum(array, rank - 1) > asked * (1 - 1e-3)


@pytest.mark.parametrize("quantizer", [{"bits": 4}, {"quantizer": "symmetric", "bits": 4, "scales": "row"}], ids=str)
def test_an_error_is_kept_to_with_factors_that_are_quantized(quantizer):
    """What codes add takes a higher rank, to within a sixteenth of it."""
    array = matrix(400, 300, decay=0.02)
    plain = factorized(array, encoding="lowrank", nmse=0.05)[1]["parts"][0]["rank"]
    values, reached = factorized(array, encoding="lowrank", nmse=0.05, **quantizer)
    rank = reached["parts"][0]["rank"]
    assert nmse(values, array) <= 0.05
    assert rank > plain
    assert nmse(factorized(array, rank=rank - 1 - rank // 16, **quantizer)[0], array) > 0.05


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"encoding": "lowrank", "nmse": 1e-9}, r"tensor 'w': nmse = 1e-09 cannot be reached by a product, only [0-9.]+e-06"),
        ({"encoding": "lowrank", "nmse": 1e-3, "quantizer": "symmetric", "bits": 2, "scales": "row"}, "tensor 'w': nmse = 0.001 cannot be reached"),
        ({"rank": 65}, "tensor 'w': rank = 65, and that of a matrix of 64 x 96 is 64 at most"),
        ({"rank": 8, "quantizer": "affine", "bits": 4}, "tensor 'w': rank = 8 is no multiple of groups of 128"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_out_of_reach(keys, text):
    array = weights((64, 96), 1, "bfloat16")
    with pytest.raises(ValueError, match=text):
        saved({"w": array}, recipe=recipe(**keys))
    with mzstore.open(saved({"w": array}, recipe=recipe(**keys, on_error="lossless"))) as model:
        assert bits(model["w"][...]) == bits(array)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("factor", [None, "float32", "float16", "bfloat16"])
def test_factors_of_every_dtype(dtype, factor):
    array = matrix(160, 90).astype(DTYPES[dtype].numpy)
    keys: dict[str, Any] = {"rank": 20} | ({"factor_dtype": factor} if factor else {})
    values, reached = factorized(array, **keys)
    assert nmse(values, array) == pytest.approx(optimum(array.astype(np.float32), 20), rel=1e-3)
    used = DTYPES[factor or (dtype if dtype != "float64" else "float32")]
    # Factors of one half of the size take less than half of the bits: signs and exponents are coded.
    assert reached["bits"] < (20 * 250 * used.bits + 8 * 2600) / (160 * 90)


def test_factors_that_a_dtype_cannot_hold():
    array = np.float32(3e7) * matrix(64, 96) / matrix(64, 96).max()
    array[:, 0] *= 1e6
    with pytest.raises(ValueError, match="tensor 'w': factors that float16 cannot hold: take another factor_dtype"):
        saved({"w": array}, recipe=recipe(rank=4, factor_dtype="float16"))
    assert np.isfinite(factorized(array, rank=4)[0]).all()


def test_a_product_that_the_dtype_cannot_hold():
    """Of values near the greatest, the nearest product may be greater; that is said before anything is written."""
    array = np.full((64, 96), 60000, np.float16)
    array[32:, 48:] = 30000
    with pytest.raises(ValueError, match="tensor 'w': values that float16 cannot hold come out: keep it lossless"):
        saved({"w": array}, recipe=recipe(rank=1))
    with mzstore.open(saved({"w": array}, recipe=recipe(rank=1, on_error="lossless"))) as model:
        assert bits(model["w"][...]) == bits(array)


def test_importance_of_columns(method):
    """Columns that matter are met better than without; those that do not are no nonsense either."""
    array = matrix(160, 90, decay=0.01)
    importance = np.where(np.arange(90) % 3 == 0, 1, 0.001).astype(np.float32)
    plain, weighted = factorized(array, rank=20)[0], factorized(array, importance, rank=20)[0]
    roots = np.sqrt(importance.astype(np.float64))
    assert nmse(weighted, array, importance) == pytest.approx(optimum(array * roots, 20), rel=1e-3)
    assert nmse(weighted, array, importance) < 0.7 * nmse(plain, array, importance)
    for none in (np.zeros(90), np.where(np.arange(90) < 45, 0, 1)):
        values, _ = factorized(array, none, rank=20)
        assert np.abs(values).max() < 10 * np.abs(array).max()
    # The error that is asked for is without importance.
    values, _ = factorized(array, importance, encoding="lowrank", nmse=0.3)
    assert nmse(values, array) <= 0.3
    with pytest.raises(ValueError, match="tensor 'w': importance of each value: factors take that of columns"):
        factorized(array, np.ones(array.shape), rank=20)


@pytest.mark.parametrize(
    ("array", "rank"),
    [
        (weights((1, 500)), 1),
        (weights((500, 1)), 1),
        (weights((4, 5, 60)), 6),
        (weights((2, 3, 4, 50)), 24),
        (weights((40, 60)), 40),
        (np.eye(50, dtype=np.float32), 7),
        (np.diag(np.r_[np.float32(1), np.zeros(49, np.float32)]), 3),  # of rank 1: of others only directions are left
        (weights((40, 60)) * np.float32(1e-33), 5),
    ],
    ids=lambda value: str(getattr(value, "shape", value)),
)
def test_matrices_of_every_kind(method, array, rank):
    data = saved({"w": array}, recipe=recipe(rank=rank))
    assert mzstore.verify(data).ok
    assert data == saved({"w": array}, recipe=recipe(rank=rank), threads=1)
    with mzstore.open(data) as model:
        error = nmse(model["w"][...], array)
        assert error <= optimum(array, rank) * 1.001 + 1e-6

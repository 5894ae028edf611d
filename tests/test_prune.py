"""Which values a rule keeps, against the definition, value by value; and what a pruned tensor is when it is read."""

import hashlib
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import bits, saved, weights

import mzstore
from mzstore import Recipe, Rule, prune
from mzstore.dtypes import DTYPES


def recipe(**keys: Any) -> Recipe:
    return Recipe([Rule(**keys)], defaults=False)


def pruned(array: np.ndarray, importance: Any = None, **keys: Any) -> tuple[np.ndarray, dict[str, Any], bytes]:
    """(values, what was reached, archive)."""
    data = saved({"w": array}, recipe=recipe(**keys), importance=None if importance is None else {"w": importance})
    assert mzstore.verify(data).problems == ()
    with mzstore.open(data) as model:
        tensor = model["w"]
        values = tensor[...]
        assert hashlib.sha256(values.tobytes()).hexdigest() == tensor.sha256
        assert tensor.quality["asked"] == recipe(**keys).rules[0].asked
        return values, tensor.quality["reached"], data


def by_definition(values: np.ndarray, rule: Rule, importance: Any = None) -> np.ndarray:
    """The mask, slowly, in float64: blocks by the mean of their (weighted) squares, first ones among equals."""
    matrix = values.astype(np.float64).reshape(-1, values.shape[-1])
    squares = matrix**2 * (1 if importance is None else np.asarray(importance, np.float64).reshape(-1, matrix.shape[1]))
    rows, cols = matrix.shape
    mask = np.zeros(matrix.shape, bool)
    if rule.pattern:
        n, m = map(int, rule.pattern.split(":"))
        for r in range(rows):
            for c in range(0, cols, m):
                best = sorted(range(m), key=lambda i, r=r, c=c: (-squares[r, c + i], i))[:n]
                mask[r, [c + i for i in best]] = True
        return mask.reshape(values.shape)
    h, w = (
        (rows if a == "*" else int(a)) if i == 0 else (cols if a == "*" else int(a))
        for i, a in enumerate((rule.block or "1x1").split("x"))
    )
    blocks = [(r, c) for r in range(0, rows, h) for c in range(0, cols, w)]
    means = [squares[r : r + h, c : c + w].mean() for r, c in blocks]
    if rule.threshold is not None:
        taken = [i for i, mean in enumerate(means) if mean >= rule.threshold**2 * (1 - 1e-6)]
    else:
        count = max(1, round((rule.top or 1 - (rule.sparsity or 0)) * len(blocks)))
        taken = sorted(range(len(blocks)), key=lambda i: (-means[i], i))[:count]
    for i in taken:
        r, c = blocks[i]
        mask[r : r + h, c : c + w] = True
    return (mask & (matrix != 0) if (h, w) == (1, 1) else mask).reshape(values.shape)  # fmt: skip


RULES: dict[str, dict[str, Any]] = {
    "top": {"top": 0.1},
    "sparsity": {"sparsity": 0.37},
    "all but one": {"top": 1e-9},
    "threshold": {"threshold": 0.02},
    "threshold above all": {"threshold": 1e3},
    "2:4": {"pattern": "2:4"},
    "1:4": {"pattern": "1:4"},
    "7:8": {"pattern": "7:8"},
    "4x4": {"top": 0.2, "block": "4x4"},
    "1x8": {"sparsity": 0.5, "block": "1x8"},
    "7x3": {"top": 0.3, "block": "7x3"},
    "rows": {"top": 0.25, "block": "1x*"},
    "columns": {"top": 0.25, "block": "*x1"},
    "heads": {"sparsity": 0.5, "block": "16x*"},
    "larger than it is": {"top": 0.5, "block": "1000x1000"},
    "blocks by threshold": {"threshold": 0.021, "block": "4x4"},
}
SHAPES = {
    "matrix": (52, 48),
    "cut": (51, 48),
    "line": (2400,),
    "row": (1, 2400),
    "cube": (3, 13, 64),
    "kernel": (4, 5, 3, 40),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rule", RULES)
def test_what_is_kept(rule, shape):
    array = weights(SHAPES[shape], 3, "bfloat16")
    keys = RULES[rule]
    mask = by_definition(array, Rule(**keys))
    values, reached, _ = pruned(array, **keys)
    assert bits(values) == bits(np.where(mask, array, np.zeros((), array.dtype)))
    (part,) = reached["parts"]
    assert part == {"encoding": "sparse", "kept": pytest.approx(mask.mean(), abs=1e-6)}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("each", [False, True], ids=["columns", "values"])
def test_importance(rule, each):
    array = weights((52, 48), 4)
    importance = np.random.default_rng(1).random((52, 48) if each else 48).astype(np.float32)
    importance[..., 5] = 0
    mask = by_definition(array, Rule(**RULES[rule]), importance)
    values, _, _ = pruned(array, importance, **RULES[rule])
    assert bits(values) == bits(np.where(mask, array, np.float32(0)))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("rule", ["top", "2:4", "4x4", "rows"])
def test_survivors_are_exact(rule, dtype):
    """Also subnormal numbers, negative zero and the largest there are."""
    array = weights((300, 128), 5, dtype)
    flat, info = array.reshape(-1), DTYPES[dtype].numpy
    tiny = np.array(1, DTYPES[dtype].word).view(info)
    flat[::7], flat[1::7] = -0.0, tiny
    flat[3] = 3e38 if dtype not in ("float16",) else 65504
    values, reached, _ = pruned(array, **RULES[rule])
    kept = values != 0
    assert bits(values[kept]) == bits(array[kept])
    assert values[0, 3] == array[0, 3]
    assert not values[~kept].view(DTYPES[dtype].word).any() or rule == "2:4" or rule in ("4x4", "rows")
    assert math.isfinite(reached["nmse"])


@pytest.mark.parametrize("scale", [1e-30, 1e-35, 1.0, 1e37])
def test_values_far_from_one(scale):
    """Squares of these are beyond float32; magnitudes are not."""
    array = (weights((64, 64), 6) * np.float32(scale)).astype(np.float32)
    for keys in ({"top": 0.1}, {"pattern": "2:4"}, {"top": 0.25, "block": "4x4"}):
        values, _, _ = pruned(array, **keys)
        assert bits(values) == bits(np.where(by_definition(array, Rule(**keys)), array, np.float32(0)))


def test_ties():
    """Among equals the first ones stay, and as many as were asked for."""
    array = np.ones((40, 50), np.float32)
    array[0, 0], array[-1, -1] = 2, -3
    values, _, _ = pruned(array, top=0.1)
    assert np.count_nonzero(values) == 200
    assert values[-1, -1] == -3
    assert (values.reshape(-1)[:199] != 0).all()


def test_zeros_are_not_kept():
    array = np.zeros((100, 100), np.float32)
    array[7] = np.arange(1, 101)
    values, reached, data = pruned(array, top=0.5)
    assert bits(values) == bits(array)
    assert reached["parts"] == [{"encoding": "sparse", "kept": 0.01}]
    assert reached["nmse"] == 0
    assert len(data) < 2500


def test_the_index_of_a_structure_is_its_own():
    """Rows and columns cost nothing to tell, two of four 2.6 bits for four, and blocks a bit for many."""
    array = weights((512, 512), 7, "bfloat16")
    word = 10.8  # bits that any value takes; great ones a bit less
    for keys, index in (
        ({"top": 0.5, "block": "1x*"}, 0.01),
        ({"top": 0.5, "block": "*x1"}, 0.01),
        ({"pattern": "2:4"}, math.log2(6) / 4),
        ({"top": 0.5, "block": "8x8"}, 1 / 64),
        ({"top": 0.5}, 1.0),
    ):
        _, reached, _ = pruned(array, **keys)
        assert -0.5 < reached["bits"] - (word / 2 + index) < 0.1, keys


# Values that are quantized


@pytest.mark.parametrize("shape", ["matrix", "cut", "cube"])
@pytest.mark.parametrize(
    "quantizer",
    [
        {"bits": 5},
        {"quantizer": "codebook", "bits": 3},
        {"quantizer": "affine", "bits": 4, "group": 64},
        {"quantizer": "codebook", "bits": 2, "dimension": 4},
        {"quantizer": "symmetric", "bits": 8, "scales": "row"},
    ],
    ids=str,
)
@pytest.mark.parametrize("rule", ["sparsity", "2:4", "4x4", "rows", "7x3"])
def test_what_is_pruned_stays_zero(rule, quantizer, shape):
    """Whatever codes stand for: none are stored of values that were not kept."""
    array = weights(tuple(4 * n for n in SHAPES[shape]), 8)
    values, reached, _ = pruned(array, **RULES[rule], **quantizer)
    mask = by_definition(array, Rule(**RULES[rule]))
    assert not values[~mask].any()
    error = np.square(values.astype(np.float64) - array)
    assert error[mask].sum() < 0.2 * np.square(array[mask]).sum()
    assert reached["nmse"] == pytest.approx(error.sum() / np.square(array.astype(np.float64)).sum(), rel=1e-4)


# One threshold for several tensors


def test_a_global_threshold():
    tensors = {
        "a": weights((130, 200), 1),
        "b": 3 * weights((100, 70), 2),
        "c": weights((3, 40, 64), 3, "bfloat16"),
        "d": weights((64, 64), 4),
    }
    rules = [Rule(name=["a", "b", "c"], top=0.1, scope="global"), Rule(encoding="lossless")]
    data = saved(tensors, recipe=Recipe(rules, defaults=False))
    assert data == saved(tensors, recipe=Recipe(rules, defaults=False), threads=1)
    with mzstore.open(data) as model:
        found = model.load()
        kept = {name: model[name].quality["reached"]["parts"][0]["kept"] for name in "abc"}
    every = np.sort(np.concatenate([np.abs(tensors[name].astype(np.float32)).reshape(-1) for name in "abc"]))[::-1]
    least = every[len(every) // 10]
    for name in "abc":
        away = np.abs(np.abs(tensors[name].astype(np.float32)) - least) > 1e-2 * least  # of equals in bfloat16 all stay
        mask = np.abs(tensors[name].astype(np.float32)) >= least
        assert ((found[name] != 0) == mask)[away].all()
        assert kept[name] == pytest.approx(np.count_nonzero(found[name]) / tensors[name].size, abs=1e-6)
    assert kept["b"] > 0.2 > 0.1 > kept["a"]
    assert sum(kept[name] * tensors[name].size for name in "abc") == pytest.approx(0.1 * len(every), rel=0.01)
    assert bits(found["d"]) == bits(tensors["d"])


def test_a_global_threshold_of_rows():
    """Rows of different lengths count as many values as they have."""
    tensors = {"a": weights((200, 100), 1), "b": weights((50, 1000), 2) * np.float32(1.05)}
    with mzstore.open(saved(tensors, recipe=recipe(sparsity=0.5, block="1x*", scope="global"))) as model:
        found = model.load()
    lengths = {name: np.sqrt(np.square(values).mean(axis=1)) for name, values in tensors.items()}
    order = np.concatenate([lengths["a"], lengths["b"]])
    sizes = np.repeat([100, 1000], [200, 50])
    by_length = np.argsort(-order)
    least = order[by_length[np.searchsorted(np.cumsum(sizes[by_length]), 35000)]]
    for name, values in found.items():
        rows = values.any(axis=1)
        assert np.array_equal(values, np.where(rows[:, None], tensors[name], 0))
        away = np.abs(lengths[name] - least) > 1e-3 * least
        assert (rows == (lengths[name] >= least))[away].all()


def test_a_global_threshold_among_what_cannot_be_pruned():
    nan = weights((64, 64), 1)
    nan[3, 3] = np.nan
    tensors = {"a": weights((64, 64), 2), "nan": nan, "constant": np.full((64, 64), 9, np.float32)}
    with pytest.raises(ValueError, match=r"tensor 'nan': values with NaN"):
        saved(tensors, recipe=recipe(top=0.1, scope="global"))
    with mzstore.open(saved(tensors, recipe=recipe(top=0.1, scope="global", on_error="lossless"))) as model:
        assert np.count_nonzero(model["a"][...]) == pytest.approx(410, abs=1)  # the others do not count
        assert bits(model["nan"][...]) == bits(nan)
        assert model["constant"].quality is None


def test_equal_tensors_under_different_thresholds():
    array = weights((64, 64), 1)
    tensors = {"a.w": array, "b.w": array, "b.more": 10 * weights((64, 64), 2)}
    rules = [Rule(name=f"{name}.*", top=0.1, scope="global") for name in "ab"]
    with mzstore.open(saved(tensors, recipe=Recipe(rules, defaults=False))) as model:
        assert np.count_nonzero(model["a.w"][...]) > 400
        assert np.count_nonzero(model["b.w"][...]) < 10
    with mzstore.open(saved(tensors, recipe=recipe(top=0.1))) as model:
        assert model["b.w"].encoding == "same"


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_thresholds_by_counting(data):
    """What is kept by one threshold of several matrices is the share that was asked for, but for those that are nearly equal."""
    shapes = data.draw(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=4))
    seed, share = data.draw(st.integers(0, 999)), data.draw(st.floats(0.01, 0.99))
    rng = np.random.default_rng(seed)
    matrices = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    rule, counted = Rule(top=share, scope="global"), prune.Thresholds()
    for matrix in matrices:
        counted.add(rule, matrix, None)
    (least,) = counted.found().values()
    every = np.concatenate([np.abs(matrix).reshape(-1) for matrix in matrices])
    assert np.count_nonzero(every >= least) >= share * every.size
    assert np.count_nonzero(every >= least * (1 + 2**-10)) <= math.ceil(share * every.size)
    for matrix in matrices:
        assert np.array_equal(prune.kept(matrix, rule, None, least), np.abs(matrix) >= least)


# What cannot be pruned


@pytest.mark.parametrize(
    ("array", "keys", "importance", "text"),
    [
        (np.full((64, 64), np.inf), {"top": 0.1}, None, "tensor 'w': values with NaN or infinity"),
        (weights((64, 64)).astype(np.float64) * 1e300, {"top": 0.1}, None, "tensor 'w': .* beyond float32"),
        (weights((64, 63)), {"pattern": "2:4"}, None, "tensor 'w': 63 values along the last axis are no multiple of the groups"),
        (np.arange(64), {"top": 0.1}, None, "tensor 'w': values of int64 cannot be pruned"),
        (weights((64, 64)), {"top": 0.1}, np.ones(63), r"tensor 'w': importance of shape \(63,\)"),
        (weights((64, 64)), {"top": 0.1}, -np.ones(64), "tensor 'w': importance must be finite and not negative"),
        (weights((64, 64)), {"top": 0.1}, np.full(64, np.nan), "tensor 'w': importance must be finite and not negative"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_pruned(array, keys, importance, text):
    array = np.asarray(array)
    if not np.isfinite(array).all():
        array[0, 0] = 1  # or it is a constant
    weighted = None if importance is None else {"w": importance}
    with pytest.raises(ValueError, match=text):
        saved({"w": array}, recipe=recipe(**keys), importance=weighted)
    with mzstore.open(saved({"w": array}, recipe=recipe(**keys, on_error="lossless"), importance=weighted)) as model:
        assert bits(model["w"][...]) == bits(array)

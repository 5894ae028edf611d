"""Tensors of several axes as a core and factors, or as sums of outer products: what recipes make of them."""

import io

import numpy as np
import pytest

import mzstore
from mzstore import Recipe, Rule, kernels

pytest.importorskip("tensorly")


def kernel_of_convolution(noise: float = 0.0) -> np.ndarray:
    """float32 [48, 32, 3, 3] of ranks 6, 5, 2 and 3, and noise."""
    rng = np.random.default_rng(0)
    core = rng.standard_normal((6, 5, 2, 3))
    factors = [rng.standard_normal((extent, rank)) for extent, rank in zip((48, 32, 3, 3), core.shape, strict=True)]
    values = np.einsum("abcd,ia,jb,kc,ld->ijkl", core, *factors, optimize=True)
    return (values / values.std() + noise * rng.standard_normal(values.shape)).astype(np.float32)


def stored(values: np.ndarray, **rule: object) -> bytes:
    archive = io.BytesIO()
    mzstore.save(archive, {"w": values}, recipe=Recipe([Rule(**rule)], defaults=False))
    return archive.getvalue()


def nmse(found: np.ndarray, values: np.ndarray) -> float:
    return float(np.square(found - values).sum() / np.square(values).sum())


@pytest.mark.parametrize(
    ("rule", "most"),
    [
        ({"ranks": [6, 5, 2, 3]}, 1e-10),
        ({"ranks": [6, 5, 3, 3]}, 1e-10),  # axes that keep their extent have no factor
        ({"encoding": "tucker", "nmse": 0.1}, 0.1),
        ({"encoding": "cp", "rank": 40}, 0.05),
        ({"ranks": [6, 5, 2, 3], "factor_dtype": "bfloat16"}, 1e-4),
    ],
    ids=str,
)
def test_what_is_reached_is_what_is_read(rule, most, monkeypatch):
    values = kernel_of_convolution()
    data = stored(values, **rule)
    assert mzstore.verify(data).problems == ()
    with mzstore.open(data) as model:
        tensor = model["w"]
        assert tensor.encoding == "tucker"
        found = tensor[...]
        reached = tensor.quality["reached"]
        assert nmse(found, values) <= most
        assert reached["nmse"] == pytest.approx(nmse(found, values), rel=0.01, abs=1e-14)
        (part,) = reached["parts"]
        assert part["encoding"] == rule.get("encoding", "tucker")
        assert len(part["ranks"]) == 4
        for index in (np.s_[3:40:2, 1:17, :, 1], np.s_[-1], np.s_[..., 2:0:-1], np.s_[5:6, 31:]):
            assert tensor[index].tobytes() == found[index].tobytes()
        for fast in (False, True):
            monkeypatch.setattr(kernels, "pays", lambda nbytes, fast=fast: fast)
            assert tensor[...].tobytes() == found.tobytes()


def test_noise_costs_as_much_as_there_is_of_it():
    values = kernel_of_convolution(noise=0.1)
    with mzstore.open(stored(values, ranks=[6, 5, 2, 3])) as model:
        assert 0.005 < nmse(model["w"][...], values) < 0.011


def test_with_other_parts():
    values = kernel_of_convolution(noise=0.1)
    rule = {"parts": ["tucker ranks=[6,5,2,3]", "sparse top=2%"]}
    with mzstore.open(stored(values, ranks=[6, 5, 2, 3])) as alone, mzstore.open(stored(values, **rule)) as both:
        assert both["w"].encoding == "tucker + sparse"
        assert nmse(both["w"][...], values) < 0.95 * nmse(alone["w"][...], values)
    assert mzstore.verify(stored(values, **rule)).problems == ()


def test_in_chunks():
    """A large tensor is cut, and each chunk takes the rows of the factors that are its own."""
    rng = np.random.default_rng(1)
    values = np.einsum("ar,br,cr->abc", *(rng.standard_normal((n, 3)) for n in (160, 120, 64))).astype(np.float32)
    for rule in ({"encoding": "cp", "rank": 3}, {"ranks": [3, 3, 64]}):
        with mzstore.open(stored(values, **rule)) as model:
            tensor = model["w"]
            assert tensor._stored.part.grid.n_chunks > 1
            found = tensor[...]
            assert nmse(found, values) < 1e-9
            assert tensor[3:150:2, 1:117, 5:60].tobytes() == found[3:150:2, 1:117, 5:60].tobytes()


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"ranks": [6, 5, 2]}, "tensor 'w': ranks = .6, 5, 2. for a tensor of 4 axes"),
        ({"ranks": [48, 32, 3, 3]}, "tensor 'w': ranks = .*: nothing is left out, keep it lossless"),
        ({"ranks": [49, 5, 2, 3]}, "tensor 'w': ranks = .49, 5, 2, 3. of a tensor of"),
        (
            {"ranks": [6, 5, 2, 3], "nmse": 0.1},
            'encoding = "tucker" takes one of ranks and nmse|takes one of ranks, nmse',
        ),
        ({"encoding": "cp"}, 'encoding = "cp" takes'),
    ],
)
def test_what_cannot_be(rule, message):
    with pytest.raises(ValueError, match=message):
        stored(kernel_of_convolution(), **rule)


def test_importance_is_refused():
    recipe = Recipe([Rule(ranks=[6, 5, 2, 3])], defaults=False)
    with pytest.raises(ValueError, match=r"tensor 'w': importance: .* takes none"):
        mzstore.save(io.BytesIO(), {"w": kernel_of_convolution()}, recipe=recipe, importance={"w": np.ones(3)})

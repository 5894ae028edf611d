"""Tensors that are mostly zeros are found, and stored by what is not zero: bit for bit, and smaller than as dense ones."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import bits, random_bits, saved, weights

import mzstore
from mzstore import sparsity
from mzstore.dtypes import DTYPES


def stored(array: np.ndarray, **options) -> tuple[str, int]:
    """(encoding, bytes of its chunks), of an archive that gives the same bits."""
    data = saved({"w": array}, **options)
    assert mzstore.verify(data).problems == ()
    with mzstore.open(data) as model:
        tensor = model["w"]
        assert bits(tensor[...]) == bits(array)
        if array.ndim > 1:
            assert bits(tensor[1:-1:3, ..., ::-2]) == bits(np.ascontiguousarray(array[1:-1:3, ..., ::-2]))
        assert tensor.quality is None
        return tensor.encoding, tensor.stored_nbytes


def dense_nbytes(array: np.ndarray, monkeypatch, **options) -> int:
    """Bytes of the chunks where nothing is looked for."""
    with monkeypatch.context() as patch:
        patch.setattr("mzstore.encode.LEAST_ZEROS", 2)
        encoding, nbytes = stored(array, **options)
    assert "sparse" not in encoding
    return nbytes


def masked(array: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return np.where(mask, array, np.zeros((), array.dtype))


def random_mask(shape: tuple[int, ...], density: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape) < density


@pytest.mark.parametrize("level", ["fast", "balanced", "max"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_bits_of_every_dtype(dtype, level, monkeypatch):
    """NaN payloads, negative zeros and subnormal numbers are values like others."""
    array = random_bits(dtype, (300, 200), 7)
    mask = random_mask(array.shape, 0.03)
    array = masked(array, mask)
    encoding, nbytes = stored(array, level=level)
    assert nbytes <= dense_nbytes(array, monkeypatch, level=level)
    if DTYPES[dtype].word_bits > 8:
        assert encoding == "sparse"


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64", "int16", "int64", "complex64", "uint8", "bool"])
@pytest.mark.parametrize("density", [0.001, 0.01, 0.1, 0.5, 0.79])
def test_random_positions(dtype, density, monkeypatch):
    """Never larger than dense; where few values are left, about as small as can be."""
    kind = DTYPES[dtype]
    array = weights((400, 512), 1).astype(kind.numpy) if kind.is_float else random_bits(dtype, (400, 512), 1)
    array = masked(array, random_mask(array.shape, density))
    encoding, nbytes = stored(array)
    assert nbytes <= dense_nbytes(array, monkeypatch)
    if density <= 0.1 and kind.word_bits > 8:
        assert encoding == "sparse"
    p = np.count_nonzero(array.reshape(-1).view(kind.word)) / (array.size * kind.parts)
    entropy = -p * np.log2(p) - (1 - p) * np.log2(1 - p)
    if encoding == "sparse" and density >= 0.01:
        assert nbytes <= array.size * kind.parts * (1.06 * entropy + p * (kind.word_bits + 0.1)) / 8 + 600


STRUCTURES = {
    "rows": ((1, 512), lambda shape, rng: np.repeat(rng.random((shape[0], 1)) < 0.1, shape[1], 1)),
    "columns": ((400, 1), lambda shape, rng: np.repeat(rng.random((1, shape[1])) < 0.1, shape[0], 0)),
    "1x8": ((1, 8), lambda shape, rng: (rng.random((shape[0], shape[1] // 8)) < 0.1).repeat(8, 1)),
    "4x4": ((4, 4), lambda shape, rng: (rng.random((shape[0] // 4, shape[1] // 4)) < 0.1).repeat(4, 0).repeat(4, 1)),
    "16x16": ((16, 16), lambda shape, rng: (rng.random((25, 32)) < 0.1).repeat(16, 0).repeat(16, 1)),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_structures_are_found(name):
    block, make = STRUCTURES[name]
    mask = make((400, 512), np.random.default_rng(1))
    assert sparsity.find(mask, 16) == sparsity.find(mask, 16, exact=True)
    found = sparsity.find(mask, 16)
    assert found.block == block
    assert found.index.pattern is None
    array = masked(weights((400, 512), 2, "bfloat16"), mask)
    encoding, nbytes = stored(array)
    assert encoding == "sparse"
    assert nbytes < mask.sum() * 11 / 8 + mask.size / (block[0] * block[1]) * 0.5 / 8 + 400


@pytest.mark.parametrize(("taken", "group"), [(2, 4), (1, 2), (1, 4), (3, 4), (4, 8)])
def test_patterns_are_found(taken, group):
    rng = np.random.default_rng(0)
    mask = np.argsort(rng.random((400, 512 // group, group)), axis=-1).reshape(400, 512) < taken
    found = sparsity.find(mask, 16, exact=True)
    assert found.block == (1, 1)
    assert found.index.pattern == (taken, group)
    mask[3, :group] = False  # fewer will do, but not where nothing else may be stored
    assert sparsity.find(mask, 16).index.pattern == (taken, group)
    assert sparsity.find(mask, 16, exact=True).index.pattern is None
    array = masked(weights((400, 512), 2, "bfloat16"), mask)
    assert stored(array)[0] == "sparse"


@pytest.mark.parametrize(
    "shape", [(1,), (2,), (7,), (513,), (1, 1), (1, 300), (300, 1), (3, 5, 7, 64), (5, 0, 3), (2049, 33)]
)
@pytest.mark.parametrize("density", [0.0, 0.02, 0.5])
def test_shapes(shape, density, monkeypatch):
    array = masked(weights(shape, 3), random_mask(shape, density))
    if array.size:
        array.reshape(-1)[-1] = 1
        assert stored(array)[1] <= dense_nbytes(array, monkeypatch)
    else:
        assert bits(mzstore.open(saved({"w": array}))["w"][...]) == bits(array)  # fmt: skip


@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_a_tensor_that_is_not_the_same_everywhere(where, monkeypatch):
    """A sample of zeros, a structure that other chunks do not have: right, and hardly larger than if nothing was looked for."""
    array = weights((2100, 1050), 1, "bfloat16")
    third = {"first": slice(0, 700), "middle": slice(700, 1400), "last": slice(1400, 2100)}[where]
    for mask in (
        random_mask((700, 1050), 0.01),
        np.tile([True, False, False, False], 700 * 1050)[: 700 * 1050].reshape(700, 1050),
    ):
        changed = array.copy()
        changed[third] = masked(array[third], mask)
        assert stored(changed)[1] <= 1.01 * dense_nbytes(changed, monkeypatch)  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_whatever_hypothesis_finds(data):
    dtype = data.draw(st.sampled_from(list(DTYPES)))
    shape = tuple(data.draw(st.lists(st.integers(1, 24), min_size=1, max_size=4)))
    seed, density = data.draw(st.integers(0, 99)), data.draw(st.sampled_from([0, 0.01, 0.1, 0.3, 0.6]))
    block = tuple(data.draw(st.sampled_from([1, 2, 4, 8])) for _ in shape)
    coarse = random_mask(tuple(-(-n // b) for n, b in zip(shape, block, strict=True)), density, seed)
    for axis, n in enumerate(block):
        coarse = coarse.repeat(n, axis)
    array = masked(random_bits(dtype, shape, seed), coarse[tuple(slice(0, n) for n in shape)])
    stored(array, level=data.draw(st.sampled_from(["fast", "balanced", "max"])))


def test_the_same_input_gives_the_same_bytes():
    tensors = {
        "a": masked(weights((900, 1100), 1, "bfloat16"), random_mask((900, 1100), 0.1)),
        "b": masked(weights((900, 1100), 2), random_mask((900, 1), 0.3)),
    }
    assert saved(tensors, threads=1) == saved(tensors, threads=5)


def test_float32_that_is_narrow_and_sparse():
    array = masked(weights((400, 512), 1, "bfloat16").astype(np.float32), random_mask((400, 512), 0.1))
    encoding, nbytes = stored(array)
    assert encoding == "sparse"
    assert nbytes < 1.01 * stored(array.astype(DTYPES["bfloat16"].numpy))[1]

"""Parts that combine: what is reached is what is read, each round is no worse, and a model that has them is a model like others."""

import hashlib
import json
import uuid
from typing import Any

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from samples import bits, saved, weights

import mzstore
from mzstore import Recipe, Rule
from mzstore.dtypes import DTYPES


def recipe(**keys: Any) -> Recipe:
    return Recipe([Rule(**keys)], defaults=False)


def with_outliers(shape: tuple[int, ...], seed: int = 0, name: str = "float32") -> np.ndarray:
    """Rows of different size, a part of low rank, and a few values that are far greater than the rest."""
    rng = np.random.default_rng(seed)
    rows, cols = int(np.prod(shape[:-1])), shape[-1]
    values = rng.standard_normal((rows, cols)) * np.exp(rng.standard_normal((rows, 1)) / 2)
    values += rng.standard_normal((rows, 4)) @ rng.standard_normal((4, cols))
    values[rng.random((rows, cols)) < 0.005] *= 8
    return (0.02 * values).reshape(shape).astype(DTYPES[name].numpy)


# parts, the encoding that a tensor then has, and what is said of each part
PARTS: dict[str, tuple[list[Any], str, list[str]]] = {
    "SpQR": (["quantized bits=3", "sparse top=0.5%"], "quantized + sparse", ["quantized", "sparse"]),
    "SpQR with groups": (["quantized quantizer=affine bits=3 group=32", "sparse top=1%"], "quantized + sparse", ["quantized", "sparse"]),
    "outliers in codes": (["quantized bits=2.5", "sparse top=25% bits=5"], "quantized + sparse", ["quantized", "sparse"]),
    "low rank + quantized": (["lowrank rank=6 bits=8", "quantized bits=3"], "lowrank + quantized", ["lowrank", "quantized"]),
    "low rank + codebook": (["lowrank rank=6", "quantized quantizer=nf4"], "lowrank + quantized", ["lowrank", "quantized"]),
    "low rank + sparse": (["lowrank rank=6", "sparse top=5%"], "lowrank + sparse", ["lowrank", "sparse"]),
    "low rank + sparse codes": (["lowrank energy=0.5", "sparse top=30% bits=4"], "lowrank + sparse", ["lowrank", "sparse"]),
    "sparse + low rank": (["sparse top=5%", "lowrank rank=6"], "sparse + lowrank", ["sparse", "lowrank"]),
    "sparse codes + low rank": (["sparse top=30% bits=4", "lowrank rank=6"], "sparse + lowrank", ["sparse", "lowrank"]),
    "sparse + quantized": (["sparse top=1%", "quantized bits=3"], "sparse + quantized", ["sparse", "quantized"]),
    "two of four + low rank": (["sparse pattern=2:4", "lowrank rank=6"], "sparse + lowrank", ["sparse", "lowrank"]),
    "rows + the rest": (["sparse top=20% block=1x*", "quantized bits=2"], "sparse + quantized", ["sparse", "quantized"]),
    "blocks over codes": (["quantized bits=2", "sparse top=10% block=4x4"], "quantized + sparse", ["quantized", "sparse"]),
    "three": (["lowrank rank=6 bits=8", "quantized bits=2.5", "sparse top=1%"], "lowrank + quantized + sparse", ["lowrank", "quantized", "sparse"]),
    "four": (["lowrank rank=4", "quantized bits=2", "sparse top=10% bits=4", "sparse top=1%"], "lowrank + quantized + sparse + sparse", ["lowrank", "quantized", "sparse", "sparse"]),
    "one": (["lowrank rank=6"], "lowrank", ["lowrank"]),
    "tables": ([{"encoding": "quantized", "bits": 3}, {"top": 0.005}], "quantized + sparse", ["quantized", "sparse"]),
    "rules": ([Rule(quantizer="codebook", bits=3), Rule(top=0.005)], "quantized + sparse", ["quantized", "sparse"]),
}  # fmt: skip
TENSORS = {
    "matrix": with_outliers((192, 256), 1),
    "half": with_outliers((192, 256), 2, "bfloat16"),
    "float16": with_outliers((200, 192), 3, "float16"),
    "cube": with_outliers((3, 70, 128), 4, "bfloat16"),
}
CUT = {"cut": with_outliers((521, 1088), 5, "bfloat16")}  # of several chunks
OF_CUT = ("SpQR", "rows + the rest", "low rank + sparse codes")


def tensors_of(name: str) -> dict[str, np.ndarray]:
    return TENSORS | CUT if name in OF_CUT else TENSORS


@pytest.fixture(scope="module", params=PARTS)
def case(request):
    """(name, archive) of one combination, fitted in two rounds."""
    parts, _, _ = PARTS[request.param]
    return request.param, saved(tensors_of(request.param), recipe=recipe(parts=parts, rounds=2))


def test_what_is_reached_is_what_is_read(case):
    name, data = case
    parts, encoding, said = PARTS[name]
    assert mzstore.verify(data).problems == ()
    with mzstore.open(data) as model:
        loaded = model.load(threads=3)
        for key, tensor in model.items():
            values = tensor[...]
            assert tensor.encoding == encoding
            assert hashlib.sha256(values.tobytes()).hexdigest() == tensor.sha256
            assert bits(values) == bits(loaded[key])
            asked, reached = tensor.quality["asked"], tensor.quality["reached"]
            assert asked == recipe(parts=parts, rounds=2).rules[0].asked
            assert json.loads(json.dumps(tensor.quality, allow_nan=False)) == tensor.quality
            before, after = tensors_of(name)[key].astype(np.float64), values.astype(np.float64)
            assert reached["nmse"] == pytest.approx(np.square(after - before).sum() / np.square(before).sum(), rel=1e-4)
            assert reached["max_error"] == pytest.approx(np.abs(after - before).max(), rel=1e-4)
            assert [part["encoding"] for part in reached["parts"]] == said
            for part in reached["parts"]:
                assert ("kept" in part) == (part["encoding"] == "sparse")
                assert ("rank" in part) == (part["encoding"] == "lowrank")


def test_the_bits_that_are_reached_are_all_that_is_stored(case):
    name, _ = case
    data = saved({"w": TENSORS["half"]}, recipe=recipe(parts=PARTS[name][0]))
    empty = saved({})
    with mzstore.open(data) as model:
        reached = model["w"].quality["reached"]["bits"]
    assert 8 * (len(data) - len(empty)) / TENSORS["half"].size == pytest.approx(
        reached, rel=0.02
    )  # documents deflate better together


def test_slices_are_cut_from_the_whole(case):
    _, data = case

    @settings(max_examples=20, deadline=None)
    @given(st.data())
    def check(drawn: st.DataObject) -> None:
        name = drawn.draw(st.sampled_from(list(whole)))
        index = drawn.draw(npst.basic_indices(whole[name].shape, allow_newaxis=False))
        with mzstore.open(data) as model:
            assert bits(model[name][index]) == bits(np.asarray(whole[name][index]))
            exact = model[name].read(dtype="float32")
            assert bits(model[name].read(index=index, dtype="float32")) == bits(np.asarray(exact[index]))

    with mzstore.open(data) as model:
        whole = model.load()
    check()


def test_the_same_input_gives_the_same_bytes(case):
    name, data = case
    assert saved(tensors_of(name), recipe=recipe(parts=PARTS[name][0], rounds=2), threads=1) == data


@pytest.mark.parametrize("name", PARTS)
def test_rounds_are_never_worse(name):
    errors = []
    for rounds in (1, 3):
        data = saved({"w": TENSORS["half"]}, recipe=recipe(parts=PARTS[name][0], rounds=rounds))
        with mzstore.open(data) as model:
            errors.append(model["w"].quality["reached"]["nmse"])
    assert errors[0] >= errors[1]
    if name in ("low rank + quantized", "sparse + low rank", "SpQR with groups"):
        assert errors[1] < 0.98 * errors[0]


def test_outliers_are_exact():
    """A sparse part behind all others gives the values themselves, where these are furthest off."""
    array = TENSORS["matrix"]
    with mzstore.open(saved({"w": array}, recipe=recipe(parts=["quantized bits=3", "sparse top=1%"]))) as model:
        values = model["w"][...]
    with mzstore.open(saved({"w": array}, recipe=recipe(parts=["quantized bits=3"]))) as model:
        plain = model["w"][...]
    off = np.abs(plain.astype(np.float64) - array.astype(np.float64))
    count = round(0.01 * array.size)
    furthest = off >= np.sort(off, axis=None)[-count]
    exact = (values == array) & (plain != array)
    assert exact.sum() == pytest.approx(count, rel=0.01)
    assert (values == array)[furthest].mean() > 0.99


def test_each_part_fits_what_the_others_leave():
    """A part of low rank takes what is of low rank; what is left for codes is small."""
    rng = np.random.default_rng(0)
    array = rng.standard_normal((256, 8)) @ rng.standard_normal((8, 256)) + 0.05 * rng.standard_normal((256, 256))
    array = array.astype(np.float32)
    reached = {}
    for name, parts in {"both": ["lowrank rank=8", "quantized bits=3"], "codes": ["quantized bits=3"]}.items():
        with mzstore.open(saved({"w": array}, recipe=recipe(parts=parts))) as model:
            reached[name] = model["w"].quality["reached"]["snr_db"]
    assert reached["both"] > reached["codes"] + 20


def test_importance():
    """What matters more is met better, by every part that heeds it."""
    importance = np.where(np.arange(256) < 32, 100, 1).astype(np.float32)
    for parts in (
        ["quantized bits=3", "sparse top=1%"],
        ["lowrank rank=6", "sparse top=5%"],
        ["lowrank rank=6", "quantized bits=2"],
    ):
        errors = []
        for weighted in (None, {"w": importance}):
            with mzstore.open(
                saved({"w": TENSORS["matrix"]}, recipe=recipe(parts=parts, rounds=2), importance=weighted)
            ) as model:
                errors.append(np.square(model["w"][...] - TENSORS["matrix"])[:, :32].sum())
        assert errors[1] < 0.95 * errors[0], parts  # fmt: skip


@pytest.mark.parametrize("parts", [["sparse top=5%", "lowrank rank=6"], ["lowrank rank=6", "sparse top=5%"], ["quantized bits=4", "sparse top=1%"]], ids=str)  # fmt: skip
def test_float64(parts):
    array = with_outliers((192, 256), 6, "float64")
    if parts[0].startswith("sparse"):
        with pytest.raises(
            ValueError, match="tensor 'w': of float64 no sparse part can come first where others are added"
        ):
            saved({"w": array}, recipe=recipe(parts=parts))
        return
    data = saved({"w": array}, recipe=recipe(parts=parts))
    assert mzstore.verify(data).ok
    with mzstore.open(data) as model:
        assert np.count_nonzero(model["w"][...] == array) >= 0.01 * array.size  # in all of their bits


@pytest.mark.parametrize("shape", [(1, 300), (300, 1), (2, 2), (3, 1, 50), (7, 5)])
@pytest.mark.parametrize(
    "parts", [["quantized bits=8", "sparse top=10%"], ["lowrank rank=1", "sparse top=10%"]], ids=str
)
def test_hardly_any_values(shape, parts):
    array = weights(shape, 1)
    data = saved({"w": array}, recipe=recipe(parts=parts, on_error="lossless"))
    assert mzstore.verify(data).ok
    with mzstore.open(data) as model:
        assert model["w"][...].shape == shape


def test_the_defaults_keep_small_things_lossless():
    tensors = {
        "w": weights((256, 128)),
        "norm.weight": weights((256, 128)),
        "bias": weights((30000,)),
        "small": weights((64, 64)),
    }
    for keys in (
        {"top": 0.1},
        {"rank": 4},
        {"parts": ["lowrank rank=4", "sparse top=1%"]},
        {"sparsity": 0.9, "scope": "global"},
    ):
        with mzstore.open(saved(tensors, recipe=Recipe(**keys))) as model:
            assert [name for name, tensor in model.items() if tensor.quality] == ["w"]  # fmt: skip


# From a model to another one


RULES = [
    Rule(name="pruned", top=0.1),
    Rule(name="codes", sparsity=0.5, bits=4),
    Rule(name="rank", rank=8),
    Rule(name="small rank", rank=8, quantizer="symmetric", bits=8, scales="row"),
    Rule(name="parts", parts=["lowrank rank=4", "quantized bits=3", "sparse top=1%"]),
]


@pytest.fixture
def changed(tmp_path):
    path = tmp_path / "changed.mz"
    tensors = {rule.name[0]: with_outliers((600, 256), i, "bfloat16") for i, rule in enumerate(RULES)}
    mzstore.save(path, tensors | {"plain": weights((64, 64))}, recipe=Recipe(RULES))
    return path


def test_what_a_recipe_has_changed_stays_as_it_is(changed, tmp_path):
    """Through a tree, object storage and back, byte for byte."""
    url = f"memory://{uuid.uuid4().hex}/q.mz"
    for source, target in ((changed, tmp_path / "q.zarr"), (tmp_path / "q.zarr", url), (url, tmp_path / "b.mz")):
        mzstore.convert(source, target)
    assert (tmp_path / "b.mz").read_bytes() == changed.read_bytes()
    fsspec.filesystem("memory").rm(url.rpartition("/")[0], recursive=True)


def test_pruning_what_is_changed(changed, tmp_path):
    """A recipe takes the values that are there, by one threshold for all of them if it says so, wherever they lie."""
    url = f"memory://{uuid.uuid4().hex}/q.mz"
    mzstore.convert(changed, url)
    again = Recipe(sparsity=0.95, scope="global")
    mzstore.convert(changed, tmp_path / "a.mz", recipe=again)
    mzstore.convert(url, tmp_path / "b.mz", recipe=again)
    fsspec.filesystem("memory").rm(url.rpartition("/")[0], recursive=True)
    assert (tmp_path / "a.mz").read_bytes() == (tmp_path / "b.mz").read_bytes()
    with mzstore.open(changed) as before, mzstore.open(tmp_path / "a.mz") as model:
        kept = 0
        for rule in RULES:
            values, own = model[rule.name[0]][...], before[rule.name[0]][...]
            assert np.array_equal(values[values != 0], own[values != 0])
            kept += np.count_nonzero(values)
            assert model[rule.name[0]].quality["asked"]["sparsity"] == 0.95
    assert kept == pytest.approx(0.05 * 600 * 256 * len(RULES), rel=0.02)

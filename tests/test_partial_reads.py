"""Partial reads: slices and shards of many tensors at once, planned, cached, and with no byte more than they cost."""

import os
import pickle
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from samples import bits, random_bits, weights

import mzstore
from mzstore.dtypes import BY_NUMPY, DTYPES
from mzstore.grid import RANKS
from mzstore.plan import Plan
from mzstore.shards import bounds, shard_slices

# Odd lengths, an axis shorter than the number of ranks, no axis at all, no values at all.
SHAPES = ((7, 13), (5,), (), (3, 0, 4), (2, 3, 9))
TENSORS = {
    **{f"{dtype}.{i}": random_bits(dtype, shape, i) for dtype in DTYPES for i, shape in enumerate(SHAPES)},
    "narrow": weights((33, 51), 1, "bfloat16").astype(np.float32),
    "constant": np.full((12, 10), 0.5, np.float16),
    "cut": weights((1100, 1003), 2),  # 8 by 8 chunks, those at the edges beyond it
    "deep": weights((9, 300, 501), 3, "bfloat16"),
    "packed": random_bits("int4", (3000, 2901), 4),
}
TENSORS["tied"] = TENSORS["cut"]
KINDS = ["archive", "tree"]
PLACES = ["local", "memory"]


@pytest.fixture(scope="module", params=[f"{place} {kind}" for place in PLACES for kind in KINDS])
def url(request, tmp_path_factory):
    """Where a model of ``TENSORS`` lies."""
    place, kind = request.param.split()
    base = f"memory://{uuid.uuid4().hex}" if place == "memory" else str(tmp_path_factory.mktemp("partial"))
    location = f"{base}/model.{'zarr' if kind == 'tree' else 'mz'}"
    mzstore.save(location, TENSORS)
    yield location
    if place == "memory":
        fsspec.filesystem("memory").rm(base, recursive=True)


@pytest.fixture(params=[0, 100_000, 1 << 30], ids=["no cache", "small cache", "large cache"])
def model(url, request):
    with mzstore.open(url, cache_bytes=request.param) as model:
        yield model


def same(found: Any, expected: np.ndarray) -> bool:
    """Whether an array, or a tensor of PyTorch, has the dtype, the shape and the bits of ``expected``."""
    if not isinstance(found, torch.Tensor):
        return isinstance(found, np.ndarray) and bits(found) == bits(expected)
    dtype = BY_NUMPY[expected.dtype]
    kind, shape, words = getattr(torch, dtype.torch), expected.shape, dtype.to_words(expected)
    if dtype.name in ("int4", "uint4"):  # a value to a byte
        kind, words = torch.int8 if dtype.name == "int4" else torch.uint8, np.ascontiguousarray(expected)
    elif dtype.packed:
        shape = dtype.word_shape(shape)
    found_bytes = found.reshape(-1).view(torch.uint8).numpy().tobytes()
    return (found.dtype, tuple(found.shape), found_bytes) == (kind, shape, words.tobytes())


def taken(array: np.ndarray, index: Any) -> np.ndarray:
    """``array[index]``, also of one value: a scalar of NumPy does not keep the bits of a bool."""
    index = index if isinstance(index, tuple) else (index,)
    return array[index if any(item is ... for item in index) else (*index, ...)]


# Slices of many tensors


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(["numpy", "torch"]))
def test_any_index_of_any_tensors(url, data, framework):
    names = data.draw(st.lists(st.sampled_from(list(TENSORS)), max_size=5, unique=True))
    wanted = {name: data.draw(npst.basic_indices(TENSORS[name].shape, allow_newaxis=False)) for name in names}
    with mzstore.open(url, cache_bytes=data.draw(st.sampled_from([0, 100_000]))) as model:
        found = model.load(wanted, framework=framework, threads=data.draw(st.integers(1, 3)))
    assert list(found) == names
    for name, index in wanted.items():
        assert same(found[name], taken(TENSORS[name], index)), name


@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_slices_of_every_dtype(model, framework):
    wanted = {f"{dtype}.0": np.s_[1::2, -2:3:-3] for dtype in DTYPES}
    wanted |= {f"{dtype}.4": np.s_[0, 1:, 3:8] for dtype in DTYPES}
    found = model.load(wanted, framework=framework)
    assert [name for name, index in wanted.items() if not same(found[name], TENSORS[name][index])] == []


def test_a_mapping_names_tensors_and_no_patterns(model):
    with pytest.raises(KeyError, match=r"no tensor '\*\.0'"):
        model.load({"*.0": ...})
    with pytest.raises(IndexError, match="out of bounds for axis 0 with size 1100"):
        model.load({"cut": 1100})
    with pytest.raises(ValueError, match="or give a shard"):
        model.load({"cut": 0}, shard=(0, 2))
    assert model.load({}) == {}


def test_what_is_loaded_is_the_callers_own(url):
    for framework in "numpy", "torch":
        with mzstore.open(url, cache_bytes=1 << 30) as model:
            for wanted in {"cut": np.s_[5:9], "tied": np.s_[5:9]}, ["cut", "tied"]:
                for _ in range(2):
                    found = model.load(wanted, framework=framework)
                    index = wanted["cut"] if isinstance(wanted, dict) else ...
                    assert same(found["cut"], TENSORS["cut"][index])
                    found["cut"][:] = 0
                    assert same(found["tied"], TENSORS["cut"][index])
                    found["tied"][:] = 1


# Shards


@pytest.mark.parametrize("count", [3, 8])
def test_shards_put_together_are_the_tensor(model, count):
    for name in TENSORS:
        tensor = model[name]
        for axis in range(tensor.ndim):
            shards = [tensor.shard(axis, index, count) for index in range(count)]
            lengths = [stop - start for start, stop in (bounds(tensor.shape[axis], i, count) for i in range(count))]
            assert [shard.shape[axis] for shard in shards] == lengths
            words = [shard.view(f"V{shard.itemsize}") for shard in shards]  # NumPy joins no types of ml_dtypes
            joined = np.concatenate(words, axis).view(tensor.dtype)
            assert same(joined, TENSORS[name]), (name, axis)


def test_one_shard(model):
    assert same(model["cut"].shard(-1, 7, 8), TENSORS["cut"][:, 882:])
    assert same(model["uint4.0"].shard(1, 1, 3), TENSORS["uint4.0"][:, 5:10])
    assert same(model["int8.1"].shard(0, 3, 4), TENSORS["int8.1"][5:])
    assert same(model["int8.0"].shard(None, 1, 2), TENSORS["int8.0"])
    assert same(model["int8.2"].shard(None, 1, 2), TENSORS["int8.2"])
    with pytest.raises(IndexError, match="has no axis 2"):
        model["cut"].shard(2, 0, 8)
    with pytest.raises(ValueError, match="shard 8 of 8; shards are counted from 0 to 7"):
        model["cut"].shard(0, 8, 8)


AXES = {
    "an integer": (1, lambda name, shape: 1 if len(shape) > 1 else None),
    "from the end": (-1, lambda name, shape: len(shape) - 1 if shape else None),
    "a mapping": (
        {"cut": 1, "*.0": 0, "deep": -1, "packed": 1, "*.4": 2},
        lambda name, shape: {"cut": 1, "deep": 2, "packed": 1}.get(name, {"0": 0, "4": 2}.get(name.split(".")[-1])),
    ),
    "a function": (
        lambda name, shape: int(np.argmax(shape)) if shape else None,
        lambda name, shape: int(np.argmax(shape)) if shape else None,
    ),
}


@pytest.mark.parametrize("framework", ["numpy", "torch"])
@pytest.mark.parametrize("axis", AXES)
def test_the_shard_of_a_model(model, axis, framework):
    axis, expected = AXES[axis]
    for index in 0, 2:
        found = model.load(shard=(index, 3), axis=axis, framework=framework)
        assert list(found) == list(TENSORS)
        for name, array in TENSORS.items():
            cut = shard_slices(array.shape, expected(name, array.shape), index, 3)
            assert same(found[name], taken(array, cut)), name


def test_the_shard_of_some_tensors(model):
    found = model.load(["cut", "float*.0"], shard=(1, 2), axis={"cut": 0, "float32.0": 1})
    names = [name for name in TENSORS if name.startswith("float") and name.endswith(".0")]
    assert list(found) == ["cut", *names]
    assert same(found["cut"], TENSORS["cut"][550:])
    assert same(found["float32.0"], TENSORS["float32.0"][:, 7:])
    assert same(found["float16.0"], TENSORS["float16.0"])


@pytest.mark.parametrize(("index", "kind"), [(np.s_[0, 0, 0], IndexError), (5000, IndexError), ([1], TypeError)])
def test_an_index_that_cannot_be_is_said_with_the_name_of_the_tensor(model, index, kind):
    for read in model.load, model.plan:
        with pytest.raises(kind, match=r"tensor 'cut': "):
            read({"deep": ..., "cut": index})


def test_shards_that_cannot_be(model):
    for shard in (3, 3), (-1, 2), (0, 0):
        with pytest.raises(ValueError, match="shards"):
            model.load(shard=shard)
    with pytest.raises(IndexError, match=r"tensor 'cut' of shape \(1100, 1003\) has no axis 2"):
        model.load(shard=(0, 2), axis={"*ut": 2})


# Plans

READS = {
    "everything": {},
    "patterns": {"names": ["cut", "*.0"]},
    "one tensor": {"names": "deep"},
    "slices": {"names": {"cut": np.s_[200:300], "deep": np.s_[:, :, 7], "packed": np.s_[0, 0], "int8.2": ...}},
    "rows": {"shard": (3, 8), "axis": 0},
    "columns": {"shard": (3, 8), "axis": -1},
    "nothing": {"names": []},
    "no values": {"names": {"cut": np.s_[3:3]}},
}


@pytest.mark.parametrize("read", READS)
def test_what_is_planned_is_done(url, read):
    with mzstore.open(url) as model:
        before = model.stats.snapshot()
        plan = model.plan(**READS[read])
        assert model.stats.snapshot() == before, "a plan needs no I/O"
        found = model.load(**READS[read])
        after = model.stats.snapshot()
        values = sum(DTYPES[BY_NUMPY[a.dtype].name].to_words(a).nbytes for a in found.values())
        assert values <= plan.memory_nbytes <= values + (256 << 20)
        if not url.startswith("memory:"):
            assert after["requests"] == after["fetched_nbytes"] == 0, "only remote storage is asked"
            return
        assert after["requests"] - before["requests"] == plan.n_requests
        if plan.fetched_nbytes is not None:
            assert after["fetched_nbytes"] - before["fetched_nbytes"] == plan.fetched_nbytes
        else:
            assert url.endswith(".zarr"), "an archive knows the size of everything"


def test_a_plan_of_everything_wants_everything(url):
    with mzstore.open(url) as model:
        plan = model.plan()
        stored = sum(tensor.stored_nbytes for tensor in model.values()) if url.endswith(".mz") else None
        assert plan.wanted_nbytes == stored
        assert plan == model.plan(list(model))
        assert plan == model.plan(dict.fromkeys(model, ...))


def test_a_plan_of_nothing(url):
    with mzstore.open(url) as model:
        for plan in model.plan([]), model.plan({"cut": np.s_[:0], "int8.3": ...}):
            assert (plan.wanted_nbytes, plan.fetched_nbytes, plan.n_requests, plan.memory_nbytes) == (0, 0, 0, 0)


def test_tied_tensors_are_fetched_once(url):
    with mzstore.open(url) as model:
        one, both = model.plan("cut"), model.plan(["cut", "tied"])
        assert (one.wanted_nbytes, one.n_requests) == (both.wanted_nbytes, both.n_requests)


def test_a_slice_wants_the_chunks_that_it_touches(url):
    if url.endswith(".zarr"):
        pytest.skip("a tree does not know sizes")
    with mzstore.open(url) as model:

        def wanted(index) -> int | None:
            return model.plan({"cut": index}).wanted_nbytes

        stored = model["cut"].stored_nbytes
        rows = [wanted(i) for i in range(0, 1100, 138)]  # in each row of chunks
        columns = [wanted(np.s_[:, i]) for i in range(0, 1003, 126)]
        assert sum(rows) == sum(columns) == stored
        assert wanted(np.s_[137:139]) == rows[0] + rows[1]
        assert wanted(np.s_[0, 0]) + wanted(np.s_[0, 126:]) == rows[0]


# The price of a shard


@dataclass(frozen=True)
class Matrices:
    url: str
    arrays: dict[str, np.ndarray]


@pytest.fixture(scope="module")
def matrices():
    arrays = {
        "square": weights((1024, 1024), 1),
        "wide": weights((700, 4096), 2, "bfloat16"),
        "uneven": weights((4099, 517), 3, "bfloat16"),
        "experts": weights((5, 640, 1100), 4, "bfloat16"),
        "bytes": random_bits("uint8", (2050, 2051), 5),
        "four": random_bits("uint4", (4096, 2048), 6),
        "end": random_bits("uint8", (1 << 20,), 7),  # so that no matrix comes with the documents
    }
    assert all(DTYPES[BY_NUMPY[a.dtype].name].to_words(a).nbytes >= 4 << 20 for n, a in arrays.items() if n != "end")
    location = f"memory://{uuid.uuid4().hex}/model.mz"
    mzstore.save(location, arrays)
    yield Matrices(location, arrays)
    fsspec.filesystem("memory").rm(location)


@pytest.mark.parametrize("axis", [-1, -2])
@pytest.mark.parametrize("name", ["square", "wide", "uneven", "experts", "bytes", "four"])
def test_a_shard_costs_its_share(matrices, name, axis):
    array = matrices.arrays[name]
    for index in range(RANKS):
        with mzstore.open(matrices.url) as model:
            stored, before = model[name].stored_nbytes, model.stats.snapshot()
            cut = shard_slices(array.shape, axis, index, RANKS)
            assert same(model.load(name, shard=(index, RANKS), axis=axis)[name], array[cut])
            fetched = model.stats.fetched_nbytes - before["fetched_nbytes"]
            assert 0 < fetched <= 1.15 * stored / RANKS, f"shard {index}"


@pytest.mark.parametrize("index", range(RANKS))
def test_rows_are_one_request(matrices, index):
    """Chunks side by side lie side by side."""
    with mzstore.open(matrices.url) as model:
        for name in "square", "wide", "uneven", "bytes", "four":
            assert model.plan(name, shard=(index, RANKS), axis=0).n_requests == 1, name
            assert model.plan(name, shard=(index, RANKS), axis=1).n_requests <= RANKS, name


def test_shards_together_want_the_model(matrices):
    names = [name for name in matrices.arrays if name != "end"]
    with mzstore.open(matrices.url) as model:
        for axis in -1, -2:
            plans = [model.plan(names, shard=(index, RANKS), axis=axis) for index in range(RANKS)]
            assert sum(plan.wanted_nbytes for plan in plans) == model.plan(names).wanted_nbytes


def test_a_plan_is_a_value(matrices):
    with mzstore.open(matrices.url) as model:
        plan = model.plan("square")
        assert isinstance(plan, Plan)
        assert plan == model.plan("square") != model.plan("wide")
        with pytest.raises(AttributeError):
            plan.n_requests = 0


# Memory as a budget

LAYERS = 8
LAYER_NBYTES = 300_000


@pytest.fixture(scope="module")
def layers():
    """The URL of a model whose layers are as large in storage as in memory."""
    location = f"memory://{uuid.uuid4().hex}/model.mz"
    tensors = {f"layer.{i}": random_bits("uint8", (LAYER_NBYTES,), i) for i in range(LAYERS)}
    mzstore.save(location, {**tensors, "tied": tensors["layer.0"], "end": random_bits("uint8", (1 << 20,), 99)})
    yield location
    fsspec.filesystem("memory").rm(location)


def layer(i: int) -> np.ndarray:
    return random_bits("uint8", (LAYER_NBYTES,), i)


def test_a_model_larger_than_the_budget_is_walked(layers):
    budget = 2 * LAYER_NBYTES + 1000
    with mzstore.open(layers, cache_bytes=budget) as model:
        cache, opened = model._cache, model.stats.requests
        for walk in range(2):
            for i in range(LAYERS):
                tensor = model[f"layer.{i}"]
                assert same(tensor[...], layer(i))
                before = model.stats.snapshot()
                assert same(tensor[7:99], layer(i)[7:99])
                assert same(tensor.shard(0, 3, 8), layer(i)[112_500:150_000])
                assert same(tensor.read(np.empty_like(layer(i))), layer(i))
                assert same(model.load(tensor.name)[tensor.name], layer(i))
                after = model.stats.snapshot()
                assert after == before | {"hits": before["hits"] + 4}, "it is in the cache"
                assert cache.nbytes <= budget
                assert len(cache) == min(2, walk * LAYERS + i + 1)
        stats = model.stats
        assert stats.requests - opened == 2 * LAYERS, "each was driven out before the second walk"
        assert (stats.hits, stats.misses) == (2 * LAYERS * 4, 2 * LAYERS)


def test_a_budget_for_all_reads_all_once(layers):
    with mzstore.open(layers, cache_bytes=1 << 30) as model:
        first = model.load()
        stats = model.stats.snapshot()
        second = model.load()
        assert all(same(second[name], first[name]) for name in model)
        assert model.stats.snapshot() == stats | {"hits": stats["hits"] + len(model)}
        assert (stats["hits"], stats["misses"]) == (0, LAYERS + 2), (
            "of tied tensors too, though one plan fetches them once"
        )


def test_without_a_budget_nothing_is_kept(layers):
    with mzstore.open(layers) as model:
        for n in 1, 2:
            before = model.stats.requests
            assert same(model["layer.3"][...], layer(3))
            assert model.stats.requests == before + 1, n
        assert (model._cache.nbytes, model.stats.hits) == (0, 0)


def test_a_tensor_larger_than_the_budget_is_read_without_it(layers):
    with mzstore.open(layers, cache_bytes=LAYER_NBYTES - 1) as model:
        for _ in range(2):
            before = model.stats.requests
            assert same(model["layer.3"][...], layer(3))
            assert model.stats.requests == before + 1
        assert model._cache.nbytes == 0


def test_many_threads_share_a_budget(layers):
    with mzstore.open(layers, cache_bytes=3 * LAYER_NBYTES) as model:
        opened = model.stats.requests

        def work(seed: int) -> None:
            for i in np.random.default_rng(seed).integers(0, LAYERS, 20).tolist():
                assert same(model[f"layer.{i}"][...], layer(i))
                assert model._cache.nbytes <= 3 * LAYER_NBYTES

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(work, range(6)))
        stats = model.stats
        assert stats.hits + stats.misses == 6 * 20
        assert stats.requests - opened == stats.misses


def test_a_copy_in_another_process_has_the_budget(layers):
    with mzstore.open(layers, cache_bytes=LAYER_NBYTES) as model, pickle.loads(pickle.dumps(model)) as copy:
        assert copy._cache.budget_nbytes == LAYER_NBYTES
        assert same(copy["layer.1"][...], layer(1))
        assert (len(copy._cache), len(model._cache)) == (1, 0)


def test_a_forked_process_reads_on(tmp_path):
    path = tmp_path / "model.mz"
    mzstore.save(path, {f"layer.{i}": layer(i) for i in range(3)})
    with mzstore.open(path, cache_bytes=2 * LAYER_NBYTES) as model:
        assert same(model["layer.0"][...], layer(0))
        child = os.fork()
        if child == 0:
            status = 1
            try:
                status = 0 if all(same(model[f"layer.{i}"][...], layer(i)) for i in range(3)) else 1
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert len(model._cache) == 1

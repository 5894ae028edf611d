"""Models that refer to other models: all ways of reading them, and what is refused."""

import io
import multiprocessing
import os
import pickle
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from samples import bits, small_model, weights

import mzstore
from mzstore import bases
from mzstore.bases import Place, locate, refer
from mzstore.encodings.base import Base
from mzstore.grid import Grid
from mzstore.inspect import summarize
from mzstore.prepared import Prepared
from mzstore.sources import ModelSource
from mzstore.writer import write


def tuned_of(model: dict[str, np.ndarray], seed: int = 1) -> dict[str, np.ndarray]:
    """Some tensors as they were, some changed, one more and one less."""
    rng = np.random.default_rng(seed)
    tuned = dict(model)
    for name in ("layers.0.weight", "large"):
        noise = rng.standard_normal(model[name].shape).astype(np.float32) * 3e-5
        tuned[name] = (model[name].astype(np.float32) + noise).astype(model[name].dtype)
    tuned["mask"] = ~model["mask"]
    tuned["ids"] = model["ids"] + 1
    tuned[f"head{seed}"] = weights((7, 9), seed)
    del tuned["noise"]
    return tuned


def referring(url: str, tensors: dict[str, np.ndarray], file=None, **pins) -> bytes:
    """An archive of nothing but references to ``tensors`` in the model at ``url``."""
    file = file or io.BytesIO()
    with mzstore.open(saved_bytes(tensors)) as model:
        prepared = []
        for name, entry in model.document.tensors.items():
            shape = entry.spec.word_shape
            grid = Grid(shape, tuple(max(n, 1) for n in shape))
            part = Base(entry.spec.dtype, grid, 0, pins.get("tensor", name), pins.get("sha256", entry.sha256))
            prepared.append(Prepared(entry.spec, part, entry.sha256))
    write(file, ModelSource(prepared, 0, bases=[url]))
    return file.getvalue() if isinstance(file, io.BytesIO) else b""


def saved_bytes(tensors: dict[str, np.ndarray]) -> bytes:
    file = io.BytesIO()
    mzstore.save(file, tensors)
    return file.getvalue()


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, dict[str, dict[str, np.ndarray]]]:
    """(directory, values by name of model): base.mz; tuned.mz, a delta of it; again.mz, a delta of that."""
    folder = tmp_path_factory.mktemp("models")
    base = small_model() | {"large": weights((1500, 1400), 7, "bfloat16"), "wide": weights((30, 5, 800), 8, "float16")}
    models = {"base": base, "tuned": tuned_of(base), "again": tuned_of(tuned_of(base) | {"noise": base["noise"]}, 2)}
    mzstore.save(folder / "base.mz", base, assets={"config.json": b"{}"}, metadata={"kind": "base"})
    for name, before in (("tuned", "base"), ("again", "tuned")):
        mzstore.save(folder / "full.mz", models[name], assets={"config.json": b"{}"}, metadata={"kind": "tuned"})
        mzstore.delta(folder / f"{before}.mz", folder / "full.mz", folder / f"{name}.mz")
        shutil.move(folder / "full.mz", folder / f"{name}-full.mz")
    return folder, models


@pytest.fixture
def folder(made, tmp_path) -> Path:
    """A copy of the models that a test may change."""
    for path in made[0].iterdir():
        shutil.copy(path, tmp_path)
    return tmp_path


@pytest.fixture
def values(made) -> dict[str, dict[str, np.ndarray]]:
    return made[1]


@pytest.mark.parametrize("name", ["tuned", "again"])
@pytest.mark.parametrize("threads", [1, 3])
def test_all_values_are_those_of_the_tuned_model(folder, values, name, threads):
    with mzstore.open(folder / f"{name}.mz") as model:
        found = model.load(threads=threads)
        assert list(found) == list(values[name])
        for tensor, array in values[name].items():
            assert bits(found[tensor]) == bits(array), tensor
        assert model["embed.weight"].encoding == "base"
        assert model["large"].encoding == "base + planes"
        assert model["embed.weight"].stored_nbytes == 0


INDEXES = [
    np.s_[3:9],
    np.s_[-1],
    np.s_[5, ::-3],
    np.s_[1490:3:-7, 1:1300:5],
    np.s_[..., 700:710],
    np.s_[0:0],
    np.s_[17, 1399],
    np.s_[:, 3],
]


@pytest.mark.parametrize("index", INDEXES, ids=str)
@pytest.mark.parametrize("name", ["tuned", "again"])
def test_slices(folder, values, name, index):
    array = values[name]["large"]
    with mzstore.open(folder / f"{name}.mz") as model:
        assert bits(model["large"][index]) == bits(array[index])
        for dtype in ("float32", "float16", "float64"):
            wanted = array[index].astype(dtype)
            assert bits(model["large"].read(index=index, dtype=dtype)) == bits(wanted)
        out = np.empty((*array[index].shape, 2), array.dtype)[..., 0]  # nothing lies side by side
        assert bits(model["large"].read(out, index=index)) == bits(array[index])


def test_shards_and_names_and_dtypes(folder, values):
    with mzstore.open(folder / "again.mz") as model:
        for i in range(3):
            part = model.load(["large", "wide"], shard=(i, 3), axis={"large": 1, "*": 2}, dtype="float32")
            for name, axis in (("large", 1), ("wide", 2)):
                step = -(-values["again"][name].shape[axis] // 3)
                cut = [slice(None)] * values["again"][name].ndim
                cut[axis] = slice(i * step, (i + 1) * step)
                assert bits(part[name]) == bits(values["again"][name][tuple(cut)].astype(np.float32))
        rows = model.load({"large": np.s_[4:6], "ids": np.s_[-2:]})
        assert bits(rows["large"]) == bits(values["again"]["large"][4:6])
        assert bits(rows["ids"]) == bits(values["again"]["ids"][-2:])
        everything = model.load(dtype="float64")
        assert bits(everything["large"]) == bits(values["again"]["large"].astype(np.float64))
        assert bits(everything["mask"]) == bits(values["again"]["mask"])


def test_values_that_are_cast_take_bounded_memory(folder, values, monkeypatch):
    monkeypatch.setattr(bases, "CAST_NBYTES", 1 << 16)  # every tensor in a group of its own
    with mzstore.open(folder / "tuned.mz") as model:
        found = model.load(dtype="float32", threads=2)
        for name in ("large", "wide", "embed.weight"):
            assert bits(found[name]) == bits(values["tuned"][name].astype(np.float32))


def test_in_pytorch(folder, values):
    torch = pytest.importorskip("torch")
    with mzstore.open(folder / "again.mz") as model:
        found = model.load(framework="torch")
        assert found["large"].dtype == torch.bfloat16
        array = found["large"].view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
        assert bits(array) == bits(values["again"]["large"])
        out = torch.empty(17, 3, dtype=torch.int64)
        assert model["ids"].read(out) is out
        assert bits(out.numpy()) == bits(values["again"]["ids"])


def test_the_cache_keeps_values_and_not_changes(folder, values):
    with mzstore.open(folder / "again.mz", cache_bytes=100 << 20) as model:
        for _ in range(2):
            assert bits(model["large"][...]) == bits(values["again"]["large"])
            assert bits(model["large"][3:5]) == bits(values["again"]["large"][3:5])
            assert bits(model["large"].read(dtype="float32")) == bits(values["again"]["large"].astype(np.float32))
        assert model.stats.hits >= 3


def test_a_model_is_opened_once_when_words_of_it_are_needed(folder, values, monkeypatch):
    opened = []
    original = bases.open_reader
    monkeypatch.setattr(bases, "open_reader", lambda *args: opened.append(str(args[0])) or original(*args))
    with mzstore.open(folder / "again.mz") as model:
        assert bits(model["head2"][...]) == bits(values["again"]["head2"])  # its own
        assert opened == []
        for _ in range(2):
            assert bits(model["large"][0]) == bits(values["again"]["large"][0])
            model.load(threads=2)
        assert opened == [str(folder / "tuned.mz"), str(folder / "base.mz")]


def test_closing_closes_bases(folder):
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = descriptors()
    with mzstore.open(folder / "again.mz") as model:
        model["large"][0]
        assert descriptors() == before + 3
    assert descriptors() == before


def test_in_other_processes(folder, values):
    with mzstore.open(folder / "again.mz") as model:
        assert bits(model["large"][1]) == bits(values["again"]["large"][1])
        copy = pickle.loads(pickle.dumps(model))
        assert bits(copy["large"][1]) == bits(values["again"]["large"][1])
        copy.close()
        pool = multiprocessing.get_context("fork").Pool(2)
        try:
            for found in pool.map(_row, [(model, i) for i in range(4)]):
                assert found[1] == values["again"]["large"][found[0]].tobytes()
        finally:
            pool.terminate()


def _row(job):
    model, i = job
    return i, np.asarray(model["large"][i]).tobytes()


def test_pickled_with_bases_that_lie_elsewhere(folder, values):
    shutil.move(folder / "base.mz", folder / "moved.mz")
    with mzstore.open(folder / "tuned.mz", bases={"base.mz": folder / "moved.mz"}) as model:
        copy = pickle.loads(pickle.dumps(model))
        assert bits(copy["large"][1]) == bits(values["tuned"]["large"][1])
        copy.close()


def test_plan_counts_the_reading_of_bases(folder):
    with mzstore.open(folder / "again.mz") as model:
        plan = model.plan("large")
        [(url, base)] = plan.bases
        [(deepest, last)] = base.bases
        assert (url, deepest) == (str(folder / "tuned.mz"), str(folder / "base.mz"))
        assert not last.bases
        assert plan.n_requests >= 3
        assert plan.wanted_nbytes > base.wanted_nbytes > last.wanted_nbytes
        assert plan.memory_nbytes >= plan.result_nbytes == 1500 * 1400 * 2
        assert plan.to_json()["bases"][0]["bases"][0]["url"] == deepest
        assert any("base" in line for line in plan.lines())
        cast = model.plan("large", dtype="float32")
        assert cast.held_nbytes == plan.result_nbytes
        assert cast.wanted_nbytes == plan.wanted_nbytes


def test_trees(tmp_path, values):
    mzstore.convert  # noqa: B018
    mzstore.save(tmp_path / "base.zarr", values["base"])
    mzstore.save(tmp_path / "full.mz", values["tuned"])
    mzstore.delta(tmp_path / "base.zarr", tmp_path / "full.mz", tmp_path / "sub" / ".." / "tuned.zarr")
    with mzstore.open(tmp_path / "tuned.zarr") as model:
        assert model.base_urls == ("base.zarr",)
        for name, array in values["tuned"].items():
            assert bits(model[name][...]) == bits(array)
    assert mzstore.verify(tmp_path / "tuned.zarr").ok


def test_a_path_begins_where_the_model_lies(folder, values, tmp_path, monkeypatch):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    mzstore.delta(folder / "base.mz", folder / "tuned-full.mz", tmp_path / "deep" / "er" / "tuned.mz")
    monkeypatch.chdir(tmp_path / "deep")
    model = mzstore.open("er/tuned.mz")
    assert model.base_urls == ("../../base.mz",)
    monkeypatch.chdir("/")  # what is opened later begins there as well
    with model:
        assert bits(model["large"][2]) == bits(values["tuned"]["large"][2])


# What is refused.


def test_a_base_that_is_missing(folder):
    (folder / "base.mz").unlink()
    with mzstore.open(folder / "tuned.mz") as model:
        assert model["head1"].read().shape == (7, 9)
        with pytest.raises(mzstore.StorageError) as caught:
            model["large"][0]
    text = str(caught.value)
    assert "base.mz" in text
    assert "tuned.mz" in text
    assert "No such file" in text
    assert "bases={'base.mz': ...}" in text
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_a_base_that_is_elsewhere(folder, values):
    data = (folder / "base.mz").read_bytes()
    shutil.move(folder / "base.mz", folder / "moved.mz")
    for moved in (folder / "moved.mz", str(folder / "moved.mz"), data):
        with mzstore.open(folder / "again.mz", bases={"base.mz": moved}) as model:
            assert bits(model["large"][0]) == bits(values["again"]["large"][0])
    with mzstore.open(folder / "moved.mz") as moved:
        with mzstore.open(folder / "again.mz", bases={"base.mz": moved}) as model:
            assert bits(model["large"][0]) == bits(values["again"]["large"][0])
        assert bits(moved["large"][0]) == bits(values["base"]["large"][0])  # still open
        assert mzstore.verify(folder / "tuned.mz", bases={"base.mz": moved}).ok
        assert mzstore.diff(folder / "tuned.mz", folder / "tuned-full.mz", bases={"base.mz": moved}).equal


def test_a_base_that_was_written_anew(folder, values):
    """Other chunks and another level, or the tensors in another order, are the same base."""
    anew = dict(reversed(values["base"].items()))
    mzstore.save(folder / "base.mz", anew, level="max")
    with mzstore.open(folder / "again.mz") as model:
        assert bits(model["large"][0]) == bits(values["again"]["large"][0])


def changed(base, what):
    other = dict(base)
    if what == "values":
        other["large"] = other["large"].copy()
        other["large"][3, 4] = 1
    elif what == "dtype":
        other["large"] = other["large"].view(np.uint16).view(np.int16)
    elif what == "shape":
        other["large"] = other["large"].reshape(1400, 1500)
    else:
        del other["large"]
    return other


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("values", "has other values"),
        ("dtype", r"is int16 \[1500, 1400\], and was bfloat16 \[1500, 1400\]"),
        ("shape", r"is bfloat16 \[1400, 1500\], and was"),
        ("name", "there is no tensor 'large'"),
    ],
)
def test_a_base_that_is_another_one(folder, values, what, text):
    mzstore.save(folder / "base.mz", changed(values["base"], what))
    for name in ("tuned", "again"):
        with mzstore.open(folder / f"{name}.mz") as model:
            assert bits(model["embed.weight"][...]) == bits(values[name]["embed.weight"])
            with pytest.raises(mzstore.CorruptError, match=text) as caught:
                model.load()
            assert "base.mz" in str(caught.value)
            assert "tuned.mz" in str(caught.value)
            assert "bases={'base.mz': ...}" in str(caught.value)
            assert caught.value.clause == "base-3"
    report = mzstore.verify(folder / "tuned.mz")
    assert [problem.kind for problem in report.problems] == ["base"]
    assert report.problems[0].tensor == "large"
    assert not mzstore.verify(folder / "again.mz").ok


def test_nothing_is_filled_from_a_base_that_is_another_one(folder, values):
    mzstore.save(folder / "base.mz", changed(values["base"], "values"))
    out = np.full((1500, 1400), 7, ml_dtypes.bfloat16)
    with mzstore.open(folder / "tuned.mz") as model, pytest.raises(mzstore.CorruptError):
        model["large"].read(out)
    assert (out == 7).all()


def test_a_base_that_is_no_model(folder):
    (folder / "base.mz").write_bytes(b"no model" * 100)
    with mzstore.open(folder / "tuned.mz") as model:
        with pytest.raises(mzstore.FormatError, match=r"cannot read the base 'base.mz'.*tuned.mz"):
            model["large"][0]
        assert bits(model["head1"][...])
    assert {problem.kind for problem in mzstore.verify(folder / "tuned.mz").problems} == {"base"}


def test_a_base_that_is_damaged(folder):
    data = bytearray((folder / "base.mz").read_bytes())
    with mzstore.open(folder / "base.mz") as model:
        entry = next(e for e in model.reader.entries.values() if e.key.startswith("large/"))
    data[entry.start + 1000] ^= 1
    (folder / "base.mz").write_bytes(data)
    with (
        mzstore.open(folder / "tuned.mz") as model,
        pytest.raises(mzstore.CorruptError, match=r"base\.mz, tensor 'large'"),
    ):
        model.load()
    problems = mzstore.verify(folder / "tuned.mz").problems
    assert [(problem.kind, problem.tensor) for problem in problems] == [("base", "large")]
    assert "base.mz" in problems[0].text


def test_a_missing_base_is_a_problem_of_every_tensor_that_needs_it(folder):
    (folder / "base.mz").unlink()
    report = mzstore.verify(folder / "tuned.mz")
    assert {problem.kind for problem in report.problems} == {"base"}
    assert "head1" not in {problem.tensor for problem in report.problems}
    assert all("bases=" in problem.text for problem in report.problems)


def test_a_model_that_is_its_own_base(tmp_path):
    tensors = {"w": weights((4, 5))}
    (tmp_path / "self.mz").write_bytes(referring("self.mz", tensors))
    (tmp_path / "link.mz").symlink_to(tmp_path / "self.mz")
    (tmp_path / "a.mz").write_bytes(referring("b.mz", tensors))
    (tmp_path / "b.mz").write_bytes(referring("./c.mz", tensors))
    (tmp_path / "c.mz").write_bytes(referring(f"file://{tmp_path}/a.mz", tensors))
    for name in ("self.mz", "link.mz", "a.mz", "b.mz", "c.mz"):
        with mzstore.open(tmp_path / name) as model:
            with pytest.raises(mzstore.FormatError, match="its own base"):
                model["w"][0]
            with pytest.raises(mzstore.FormatError, match="its own base"):
                model.plan()
        assert "its own base" in mzstore.verify(tmp_path / name).problems[0].text


def test_models_behind_one_another(tmp_path):
    tensors = {"w": weights((4, 5))}
    mzstore.save(tmp_path / "0.mz", tensors)
    for i in range(1, 18):
        (tmp_path / f"{i}.mz").write_bytes(referring(f"{i - 1}.mz", tensors))
    with mzstore.open(tmp_path / "16.mz") as model:
        assert bits(model["w"][...]) == bits(tensors["w"])
    with mzstore.open(tmp_path / "17.mz") as model, pytest.raises(mzstore.FormatError, match="more than 16 models"):
        model["w"][...]
    mzstore.save(tmp_path / "other.mz", {"w": tensors["w"] + 1})
    with pytest.raises(ValueError, match="16 models behind it already: merge it"):
        mzstore.delta(tmp_path / "16.mz", tmp_path / "other.mz", tmp_path / "out.mz")
    mzstore.delta(tmp_path / "15.mz", tmp_path / "other.mz", tmp_path / "out.mz")
    with mzstore.open(tmp_path / "out.mz") as model:
        assert bits(model["w"][...]) == bits(tensors["w"] + 1)


# Where a file may lead. What comes out of a file is hostile.

LOCAL, HTTP, S3 = "/models/m/tuned.mz", "https://user:pw@host.org/a/b/tuned.mz?signature=x", "s3://bucket/a/b/tuned.mz"


@pytest.mark.parametrize(
    ("beside", "url", "expected"),
    [
        (LOCAL, "base.mz", "/models/m/base.mz"),
        (LOCAL, "../base/base.mz", "/models/base/base.mz"),
        (LOCAL, "/x/base.mz", "/x/base.mz"),
        (LOCAL, "file:///x/base.mz", "/x/base.mz"),
        (LOCAL, "s3://bucket/base.mz", "s3://bucket/base.mz"),
        ("/models/tree.zarr/", "base.mz", "/models/base.mz"),
        (HTTP, "base.mz", "https://user:pw@host.org/a/b/base.mz"),
        (HTTP, "../c/./base.mz", "https://user:pw@host.org/a/c/base.mz"),
        (HTTP, "https://host.org/base.mz", "https://host.org/base.mz"),
        (S3, "../../base.mz", "s3://bucket/base.mz"),
        ("s3://bucket/tree.zarr/", "base.mz", "s3://bucket/base.mz"),
        (S3, "s3://other/base.mz", "s3://other/base.mz"),
        (S3, "s3:base.mz", "s3://bucket/a/b/s3:base.mz"),
        ("simplecache::s3://bucket/a/tuned.mz", "base.mz", "simplecache::s3://bucket/a/base.mz"),
    ],
)
def test_where_a_base_is_looked_for(beside, url, expected):
    assert locate(url, Place.of(beside)).location == expected


@pytest.mark.parametrize(
    ("beside", "url", "text"),
    [
        (S3, "/etc/passwd", "local"),
        (S3, "file:///etc/passwd", "local"),
        (HTTP, "//evil.org/base.mz", "local"),
        (HTTP, "FILE:///etc/passwd", "neither"),
        (LOCAL, "local:///etc/passwd", "none of"),
        (LOCAL, "memory://x", "none of"),
        (LOCAL, "ssh://host/x", "none of"),
        (LOCAL, "dask://host/x", "none of"),
        (LOCAL, "simplecache::s3://bucket/x", "neither"),
        (LOCAL, "s3://bucket/x::file:///etc/passwd", "inside"),
        (LOCAL, "zip://x.mz::https://host/x.zip", "none of"),
        (LOCAL, "x/s3://bucket/base.mz", "neither"),
        (LOCAL, "https://host/a b", "blanks"),
        (LOCAL, "https://host/a\r\nHost: evil", "blanks"),
        (HTTP, "a::file:///etc/passwd", "neither"),
        (HTTP, "a::b", "no path"),
        (HTTP, "a\nb", "no path"),
        (HTTP, "../../../base.mz", "leaves"),
        (S3, "../../../other/base.mz", "leaves"),
        (b"", "base.mz", "in memory"),
        (b"", "/etc/passwd", "in memory"),
        (b"", "file:///etc/passwd", "local"),
    ],
)
def test_where_no_base_is_looked_for(beside, url, text):
    with pytest.raises(ValueError, match=text):
        locate(url, Place.of(beside))


@pytest.mark.parametrize(
    ("beside", "url", "same"),
    [
        (S3, "base.mz", True),
        (S3, "s3://bucket/elsewhere/base.mz", True),
        (S3, "s3://other/base.mz", False),
        (S3, "s3a://bucket/base.mz", False),
        (S3, "https://bucket/base.mz", False),
        (HTTP, "base.mz", True),
        (HTTP, "https://host.org/base.mz", False),  # user and password are part of the place
        ("https://host.org/tuned.mz", "https://host.org/x/base.mz", True),
        ("https://host.org/tuned.mz", "https://host.org:444/base.mz", False),
        ("https://host.org/tuned.mz", "https://host.org.evil.com/base.mz", False),
        ("https://host.org/tuned.mz", "http://host.org/base.mz", False),
        (LOCAL, "s3://bucket/base.mz", False),
    ],
)
def test_options_go_to_the_same_place_only(beside, url, same):
    options = {"key": "secret"}
    assert locate(url, Place.of(beside, options)).options == (options if same else None)


def test_hostile_references_are_refused_before_anything_is_opened(tmp_path, monkeypatch):
    tensors = {"w": weights((4, 5))}
    monkeypatch.setattr(bases, "open_reader", lambda *args: pytest.fail("opened"))
    for url in ("memory://x", "simplecache::file:///etc/passwd", "a\nb://c"):
        (tmp_path / "m.mz").write_bytes(referring(url, tensors))
        with mzstore.open(tmp_path / "m.mz") as model, pytest.raises(mzstore.StorageError, match="bases="):
            model["w"][0]
    with mzstore.open(referring("/etc/passwd", tensors)) as model, pytest.raises(mzstore.StorageError, match="memory"):
        model["w"][0]


@pytest.mark.parametrize(
    ("base", "out", "expected"),
    [
        ("/a/base.mz", "/a/out.mz", "base.mz"),
        ("/a/base.mz", "/b/c/out.mz", "../../a/base.mz"),
        ("s3://bucket/a/base.mz", "/b/out.mz", "s3://bucket/a/base.mz"),
        ("s3://bucket/a/base.mz", "s3://bucket/a/out.mz", "base.mz"),
        ("s3://bucket/a/base.mz", "s3://bucket/out.mz", "s3://bucket/a/base.mz"),
        ("s3://bucket/a/base.zarr/", "s3://bucket/a/out.mz", "base.zarr"),
    ],
)
def test_what_a_model_has_for_its_base(base, out, expected):
    assert refer(base, out) == expected


@pytest.mark.parametrize(
    ("base", "out", "url", "text"),
    [
        ("/a/base.mz", "/a/../a/base.mz", None, "its own base"),
        ("/a/base.mz", "s3://bucket/out.mz", None, "local file"),
        ("https://host/base.mz?signature=x", "/a/out.mz", None, "password or a query"),
        ("https://me:secret@host/base.mz", "/a/out.mz", None, "password or a query"),
        ("sftp://host/base.mz", "/a/out.mz", None, "no reader would follow"),
        ("/a/base.mz", "/a/out.mz", "x" * 5000, "5000 characters"),
        ("/a/base.mz", "/a/out.mz", "a\0b", "characters"),
    ],
)
def test_what_no_model_has_for_its_base(base, out, url, text):
    with pytest.raises(ValueError, match=text) as caught:
        refer(base, out, url)
    assert "secret" not in str(caught.value)
    assert "signature" not in str(caught.value)


# What other tools make of such models.


def test_verify_reads_bases(folder):
    report = mzstore.verify(folder / "again.mz", threads=2)
    assert report.ok, report.problems
    assert report.nbytes > 0


def test_verify_compares_digests_of_changed_values(folder, values):
    """An archive whose own chunks are whole, and which states another digest."""
    file = io.BytesIO()
    tensors = {"embed.weight": values["base"]["embed.weight"]}
    with mzstore.open(folder / "base.mz") as model:
        entry = model.document.tensors["embed.weight"]
    grid = Grid(entry.spec.word_shape, entry.spec.word_shape)
    prepared = Prepared(entry.spec, Base(entry.spec.dtype, grid, 0, "embed.weight", entry.sha256), "0" * 64)
    write(file, ModelSource([prepared], 0, bases=["base.mz"]))
    (folder / "false.mz").write_bytes(file.getvalue())
    [problem] = mzstore.verify(folder / "false.mz").problems
    assert (problem.kind, problem.clause) == ("tensor", "digest-2")
    with mzstore.open(folder / "false.mz") as model:
        assert bits(model["embed.weight"][...]) == bits(tensors["embed.weight"])
    with pytest.raises(mzstore.CorruptError, match=r"digest.*false.mz"):
        mzstore.merge(folder / "false.mz", folder / "merged.mz")
    assert not (folder / "merged.mz").exists()


def test_inspect_shows_bases(folder):
    with mzstore.open(folder / "tuned.mz") as model:
        summary = summarize(model)
        assert model["large"].base == ("base.mz", "large")
        assert model["head1"].base is None
    assert summary.bases == ("base.mz",)
    assert summary.to_json()["bases"] == ["base.mz"]
    how = {tensor.name: tensor.how() for tensor in summary.tensors}
    assert how["embed.weight"] == "base"
    assert how["large"].startswith("base + planes")


def test_diff_and_convert_take_the_values(folder, values, tmp_path):
    assert mzstore.diff(folder / "again.mz", folder / "again-full.mz").equal
    mzstore.convert(folder / "again.mz", tmp_path / "whole.mz")
    with mzstore.open(tmp_path / "whole.mz") as model:
        assert model.base_urls == ()
        assert not any("base" in tensor.encoding for tensor in model.values())
        for name, array in values["again"].items():
            assert bits(model[name][...]) == bits(array)
        assert model.metadata == {"kind": "tuned"}
        assert model.assets["config.json"] == b"{}"


def test_components_are_those_of_the_changes(folder):
    with mzstore.open(folder / "tuned.mz") as model:
        assert set(model["large"].components()) == {"2.planes"}
        assert model["embed.weight"].components() == {}


# In remote storage.


@pytest.fixture
def remote(place, made):
    place.put_all({f"{name}.mz": (made[0] / f"{name}.mz").read_bytes() for name in ("base", "tuned", "again")})
    return place


def test_remote_models_are_read_by_one_plan_each(remote, values):
    with mzstore.open(remote.url("again.mz"), storage_options=remote.options) as model:
        found = model.load()
        for name, array in values["again"].items():
            assert bits(found[name]) == bits(array)
        plan = model.plan()
        assert model.stats.requests <= 3 + plan.n_requests + 3  # each is opened, read, and perhaps looked at again
        assert bits(model["large"][5:7, ::9]) == bits(values["again"]["large"][5:7, ::9])


def test_a_remote_base_that_is_missing(remote):
    remote.remove("base.mz")
    with mzstore.open(remote.url("tuned.mz"), storage_options=remote.options) as model:
        assert model["head1"][...].shape == (7, 9)
        with pytest.raises(mzstore.StorageError, match=r"cannot read the base 'base\.mz'.*tuned\.mz"):
            model["large"][0]


def test_a_local_model_with_a_remote_base(remote, made, tmp_path, values):
    mzstore.delta(remote.url("base.mz"), made[0] / "tuned-full.mz", tmp_path / "out.mz", storage_options=remote.options)
    with mzstore.open(tmp_path / "out.mz") as model:
        assert model.base_urls == (remote.url("base.mz"),)
    with (
        mzstore.open(remote.url("base.mz"), storage_options=remote.options) as base,
        mzstore.open(tmp_path / "out.mz", bases={remote.url("base.mz"): base}) as model,
    ):
        assert bits(model["large"][...]) == bits(values["tuned"]["large"])


def test_all_of_it_remote(remote, made, values):
    mzstore.delta(
        remote.url("base.mz"),
        made[0] / "tuned-full.mz",
        remote.url("out.mz"),
        storage_options=remote.options,
        target_options=remote.options,
    ) if remote.options else pytest.skip("nothing is written by HTTP")
    with mzstore.open(remote.url("out.mz"), storage_options=remote.options) as model:
        assert model.base_urls == ("base.mz",)
        assert bits(model["large"][...]) == bits(values["tuned"]["large"])

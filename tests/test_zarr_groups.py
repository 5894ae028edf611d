"""Groups and arrays of Zarr as sources."""

import json
import os
import shutil

import fsspec
import numcodecs
import numpy as np
import pytest
import zarr
from foreign import Runs
from samples import weights

import mzstore
from mzstore.formats import open_source


def same(path, expected: dict[str, np.ndarray]) -> None:
    with mzstore.open(path) as model:
        assert set(model) == set(expected)
        for name, values in expected.items():
            found = model[name][...]
            assert (found.dtype, found.shape) == (values.dtype.newbyteorder("<"), values.shape)
            assert (found == values).all()


VALUES = {
    "w": weights((37, 53)),
    "deep/er/v": np.arange(100, dtype=np.int64).reshape(4, 5, 5),
    "s": np.array(2.5),
    "empty": np.zeros((0, 3), np.float32),
    "mask": np.random.default_rng(0).random((9, 9)) < 0.5,
    "half": weights((20, 3), name="float16"),
}


def made(path, version: int, attributes: bool = True, **options) -> zarr.Group:
    group = zarr.open_group(path, mode="w", zarr_format=version)
    for name, values in VALUES.items():
        chunks = tuple(max(1, n // 3) for n in values.shape) if values.ndim else "auto"
        array = group.create_array(name, shape=values.shape, dtype=values.dtype, chunks=chunks, **options)
        if values.size:
            array[...] = values
    if attributes:
        group.attrs["author"] = {"name": "me"}
    return group


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("target", ["m.mz", "m.zarr"])
def test_groups(tmp_path, version, target):
    made(tmp_path / "in", version)
    found = mzstore.convert(tmp_path / "in", tmp_path / target, check=True)
    assert found.notes[0] == "an array of Zarr comes back with equal values, and not by the same chunks"
    same(tmp_path / target, VALUES)
    with mzstore.open(tmp_path / target) as model:
        assert model.metadata == {"author": {"name": "me"}}
    mzstore.convert(tmp_path / target, tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as arrays:
        assert (arrays["deep/er/v"] == VALUES["deep/er/v"]).all()


def test_shards_and_consolidated_metadata(tmp_path):
    group = zarr.open_group(tmp_path / "in", mode="w")
    array = group.create_array("w", shape=(40, 60), dtype="f4", chunks=(5, 6), shards=(20, 30))
    array[...] = VALUES["w"][0, 0] + np.arange(2400).reshape(40, 60)
    zarr.consolidate_metadata(tmp_path / "in")
    mzstore.convert(tmp_path / "in", tmp_path / "m.mz")
    same(tmp_path / "m.mz", {"w": array[...]})


@pytest.mark.parametrize("version", [2, 3])
def test_an_array_alone(tmp_path, version):
    array = zarr.create_array(tmp_path / "weights.zarr", shape=(6, 7), dtype="i4", chunks=(4, 4), zarr_format=version)
    array[...] = np.arange(42).reshape(6, 7)
    mzstore.convert(tmp_path / "weights.zarr", tmp_path / "m.mz")
    same(tmp_path / "m.mz", {"weights": array[...]})


def test_big_endian_and_fortran_order(tmp_path):
    group = zarr.open_group(tmp_path / "in", mode="w", zarr_format=2)
    values = np.arange(35, dtype=">f8").reshape(5, 7)
    group.create_array("w", data=values, chunks=(2, 3), order="F")
    mzstore.convert(tmp_path / "in", tmp_path / "m.mz")
    same(tmp_path / "m.mz", {"w": values})


def test_remote_groups(tmp_path):
    made(tmp_path / "in", 3)
    url = f"memory://{tmp_path.name}/in"
    fsspec.filesystem("memory").put(f"{tmp_path}/in", f"/{tmp_path.name}/in", recursive=True)
    mzstore.convert(f"{url}/", tmp_path / "m.mz")
    same(tmp_path / "m.mz", VALUES)


def test_models_of_mzstore_are_read_as_such(tmp_path):
    mzstore.save(tmp_path / "m.zarr", {"w": weights((20, 30), name="bfloat16")})
    with open_source(tmp_path / "m.zarr") as model:
        assert [tensor.spec.dtype.name for tensor in model.tensors] == ["bfloat16"]
    (tmp_path / "m.zarr" / "zarr.json").write_text("{")
    with pytest.raises(mzstore.FormatError, match="document-1"), open_source(tmp_path / "m.zarr"):
        pass


def test_pickled_chunks_are_refused_and_not_made(tmp_path):
    mark = tmp_path / "was here"
    group = zarr.open_group(tmp_path / "in", mode="w", zarr_format=2)
    group.create_array("w", shape=(1,), dtype="f4", chunks=(1,), compressors=None)[...] = 1
    about = json.loads((tmp_path / "in/w/.zarray").read_text())
    chunk = numcodecs.Pickle().encode(np.array([Runs(os.system, f"touch '{mark}'")], dtype=object))
    (tmp_path / "in/w/0").write_bytes(chunk)
    for change in (
        {"filters": [{"id": "pickle", "protocol": 5}]},
        {"dtype": "|O", "filters": [{"id": "pickle", "protocol": 5}]},
    ):
        (tmp_path / "in/w/.zarray").write_text(json.dumps(about | change))
        with pytest.raises(mzstore.MzError, match=r"pickle|objects"):
            mzstore.convert(tmp_path / "in", tmp_path / "x.mz")
    assert not mark.exists()
    assert not (tmp_path / "x.mz").exists()


def test_groups_that_are_none(tmp_path):
    made(tmp_path / "in", 3)
    chunk = next(path for path in (tmp_path / "in/w/c").rglob("*") if path.is_file())
    chunk.write_bytes(b"damaged")
    with pytest.raises(mzstore.CorruptError, match=r"the chunk at \(\d+, \d+\) cannot be decoded"):
        mzstore.convert(tmp_path / "in", tmp_path / "x.mz")
    shutil.rmtree(tmp_path / "in")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / ".zgroup").write_text("{")
    with pytest.raises(mzstore.FormatError, match="not a group or array of Zarr"):
        mzstore.convert(tmp_path / "in", tmp_path / "x.mz")
    group = zarr.open_group(tmp_path / "in2", mode="w")
    group.create_array("t", shape=(2,), dtype="<U3")
    group.create_array("w", shape=(2,), dtype="f4")
    with open_source(tmp_path / "in2") as model:
        assert [tensor.spec.name for tensor in model.tensors] == ["w"]
        assert "t is an array of text or dates, and left out" in model.notes

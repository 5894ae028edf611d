"""HDF5 files and Keras archives, written and read by h5py and Keras: datasets as tensors, and the same files back."""

import contextlib
import io
import json
import os
import zipfile
from pathlib import Path

import fsspec
import h5py
import ml_dtypes
import numpy as np
import pytest
from foreign import read
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import bits

import mzstore
from mzstore.errors import CorruptError, FormatError, MzError, StorageError, UnsupportedError
from mzstore.formats import hdf5, open_source
from mzstore.formats.hdf5 import slabs
from mzstore.report import Report

RNG = np.random.default_rng(3)


def there_and_back(path: Path) -> Report:
    """Through an archive, by ``check`` on the way; the file is the same then."""
    archive, back = path.with_suffix(".mz"), path.with_name(f"back{path.suffix}")
    report = mzstore.convert(path, archive, check=True)
    assert mzstore.verify(archive).ok
    mzstore.convert(archive, back, check=True)
    assert back.read_bytes() == path.read_bytes()
    return report


def every_type() -> dict[str, np.ndarray]:
    names = ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16", "?"]
    return {
        f"{name}/{list(shape)}": RNG.integers(0, 2, shape).astype(name) if name == "?" else RNG.normal(0, 50, shape).astype(name)
        for name in names
        for shape in ((3, 5), (), (0, 2), (4,))
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_type_there_and_back(tmp_path, order):
    values = every_type()
    with h5py.File(tmp_path / "m.h5", "w") as file:
        for name, value in values.items():
            file[name] = value.astype(value.dtype.newbyteorder(order))
    assert there_and_back(tmp_path / "m.h5").notes == ()
    found = read(tmp_path / "m.mz")
    assert {name: bits(value) for name, value in found.items()} == {name: bits(value) for name, value in values.items()}
    with open_source(tmp_path / "m.h5") as source:
        plain = [tensor for tensor in source.tensors if isinstance(tensor, hdf5.PlainTensor)]
    assert len(plain) == (3 * len(values) // 4 if order == "<" else 3 * 3), "all but empty ones; those of one byte"


@pytest.mark.parametrize("options", [{}, {"userblock_size": 512}, {"libver": "latest"}])
def test_how_datasets_are_stored(tmp_path, options):
    """Side by side, in chunks, compressed, within the object's header, never written: all are read, the file comes back."""
    values = (RNG.normal(0, 1, (70, 90)).astype("f4") * 16).round() / 16
    with h5py.File(tmp_path / "m.h5", "w", **options) as file:
        file["plain"] = values
        file.create_dataset("chunks", data=values, chunks=(11, 40))
        file.create_dataset("gzip", data=values, chunks=(32, 32), compression="gzip", shuffle=True)
        file.create_dataset("lzf", data=values, compression="lzf", fletcher32=True)
        file.create_dataset("unwritten", (5, 6), "f8", fillvalue=2.5)
        compact = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        compact.set_layout(h5py.h5d.COMPACT)
        space = h5py.h5s.create_simple((4,))
        h5py.h5d.create(file.id, b"compact", h5py.h5t.IEEE_F32LE, space, compact).write(space, space, np.arange(4.0))
        expected = {name: dataset[()] for name, dataset in file.items()}
    there_and_back(tmp_path / "m.h5")
    found = read(tmp_path / "m.mz")
    assert {name: bits(value) for name, value in found.items()} == {n: bits(v) for n, v in expected.items()}
    assert (tmp_path / "m.mz").stat().st_size < (tmp_path / "m.h5").stat().st_size


@given(st.lists(st.integers(0, 5), max_size=4).map(tuple), st.data())
def test_any_range_of_a_shape(shape, data):
    values = np.arange(int(np.prod(shape))).reshape(shape)
    start = data.draw(st.integers(0, values.size))
    stop = data.draw(st.integers(start, values.size))
    pieces = [np.asarray(values[slab]).reshape(-1) for slab in slabs(shape, start, stop)]
    assert np.concatenate([np.empty(0, int), *pieces]).tolist() == list(range(start, stop))
    assert len(pieces) <= 2 * max(1, len(shape))


def test_ranges_of_compressed_datasets(tmp_path):
    values = RNG.normal(0, 1, (7, 30, 11)).astype("c8")
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file.create_dataset("w", data=values, chunks=(2, 7, 5), compression="gzip")
    with open_source(tmp_path / "m.h5") as source:
        (tensor,) = source.tensors
        words = values.reshape(-1).view("<u4")
        for start, stop in np.sort(RNG.integers(0, len(words) + 1, (100, 2))):
            assert (tensor.read(start, stop) == words[start:stop]).all()


def test_what_is_not_read(tmp_path):
    """Text, references, compounds; and links, of which the values of others are not taken for the model's."""
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["w"] = np.ones(3)
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file["w"] = np.arange(3.0)
        file["text"] = ["a", "b"]
        file["bytes"] = np.array([b"ab"])
        file["pair"] = np.zeros(2, [("x", "f4"), ("y", "i4")])
        file["opaque"] = np.zeros(2, "V3")
        file["ragged"] = np.array([np.arange(2), np.arange(3)], dtype=h5py.vlen_dtype(np.int64))
        file["type"] = np.dtype("f8")
        file["null"] = h5py.Empty("f4")
        file["reference"] = file["w"].ref
        file["soft"] = h5py.SoftLink("/w")
        file["group/external"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/w")
        file["group/again"] = file["w"]
        file["group/circle"] = file["/"]
    report = there_and_back(tmp_path / "m.h5")
    (value,) = read(tmp_path / "m.mz").values()  # under one of its two names
    assert value.tolist() == [0, 1, 2]
    assert report.notes[0].startswith("7 objects that are no tensors of numbers are not read: ")
    assert report.notes[1] == "2 links are not followed: 'soft', 'group/external'"


def test_values_in_other_files_are_refused(tmp_path):
    (tmp_path / "secret").write_bytes(bytes(24))
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file.create_dataset("w", (3,), "f8", external=[(str(tmp_path / "secret"), 0, 24)])
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["w"] = np.ones(3)
    with h5py.File(tmp_path / "v.h5", "w") as file:
        layout = h5py.VirtualLayout((3,), "f8")
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "w", (3,))
        file.create_virtual_dataset("w", layout)
    for name in ("m.h5", "v.h5"):
        with pytest.raises(UnsupportedError, match="dataset 'w' has its values in other files, which are not read"):
            mzstore.convert(tmp_path / name, tmp_path / "m.mz")
    assert not (tmp_path / "m.mz").exists()


def test_bombs(tmp_path):
    with h5py.File(tmp_path / "huge.h5", "w") as file:
        file.create_dataset("w", (1 << 40,), "f8", chunks=(1 << 20,), compression="gzip")
    with pytest.raises(FormatError, match="would have 8,796,093,022,208 bytes, of which 0 are in the file"):
        mzstore.convert(tmp_path / "huge.h5", tmp_path / "m.mz")
    with h5py.File(tmp_path / "chunk.h5", "w") as file:
        file.create_dataset("w", (1 << 23,), "u1", chunks=(1 << 30,), maxshape=(None,), compression="gzip")
    with pytest.raises(UnsupportedError, match="chunks of more than 268,435,456 bytes"):
        mzstore.convert(tmp_path / "chunk.h5", tmp_path / "m.mz")


def test_damaged_chunks(tmp_path):
    with h5py.File(tmp_path / "m.h5", "w") as file:
        dataset = file.create_dataset("w", data=RNG.normal(0, 1, (50, 50)), chunks=(50, 50), fletcher32=True)
        place = dataset.id.get_chunk_info(0).byte_offset
    content = bytearray((tmp_path / "m.h5").read_bytes())
    content[place + 100] ^= 1
    (tmp_path / "m.h5").write_bytes(content)
    with pytest.raises(CorruptError, match="cannot read dataset 'w'"):
        mzstore.convert(tmp_path / "m.h5", tmp_path / "m.mz")
    assert not (tmp_path / "m.mz").exists()


def test_storage_that_fails_is_told_of(tmp_path, monkeypatch):
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file["w"] = np.ones(3)

    def fail(*_: object) -> None:
        raise StorageError("the disk is gone")

    monkeypatch.setattr(hdf5.BlobFile, "readinto", fail)
    with pytest.raises(StorageError, match="the disk is gone"):
        mzstore.convert(tmp_path / "m.h5", tmp_path / "m.mz")


def test_compressed_datasets_are_kept_twice_up_to_a_limit(tmp_path, monkeypatch):
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file.create_dataset("w", data=RNG.normal(0, 1, 1000), compression="gzip")
    monkeypatch.setattr(hdf5, "MAX_STORED_TWICE", 1000)
    report = mzstore.convert(tmp_path / "m.h5", tmp_path / "m.mz", check=True)
    assert report.notes == (
        "too much of the file is compressed, or stored in another order, to keep it beside the tensors: it cannot be made again",
    )


def test_without_h5py(tmp_path, monkeypatch):
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file["w"] = np.ones(3)
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'mzstore\[keras\]'"):
        mzstore.convert(tmp_path / "m.h5", tmp_path / "m.mz")


def test_cut_short_anywhere(tmp_path):
    with h5py.File(tmp_path / "whole.h5", "w", libver="latest") as file:
        file["w"] = np.arange(10.0)
        file.create_dataset("z", data=np.arange(10.0), compression="gzip")
    content = (tmp_path / "whole.h5").read_bytes()
    for n in [*range(0, len(content), 7), len(content) - 1]:
        (tmp_path / "m.h5").write_bytes(content[:n])
        with pytest.raises(MzError):
            read(tmp_path / "m.h5")


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_byte_changed(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "changed.h5"
    memory = io.BytesIO()
    with h5py.File(memory, "w", libver="latest") as file:
        file["w"] = np.arange(10.0)
        file.create_dataset("z", data=np.arange(10.0), compression="gzip")
    content = bytearray(memory.getvalue())
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with contextlib.suppress(MzError):
        read(path)


@pytest.fixture(scope="module")
def keras_files(tmp_path_factory) -> Path:
    """What Keras saves of a model with a layer in bfloat16 and an optimizer."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    folder = tmp_path_factory.mktemp("keras")
    layers = keras.layers
    model = keras.Sequential(
        [layers.Input((8,)), layers.Dense(4), layers.BatchNormalization(), layers.Dense(2, dtype="bfloat16")]
    )
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    model.save(folder / "m.keras")
    model.save(folder / "m.h5")
    model.save_weights(folder / "m.weights.h5")
    expected = {variable.path: keras.ops.convert_to_numpy(variable.value) for variable in model.weights}
    np.savez(folder / "expected.npz", **{name: value.astype("f4") for name, value in expected.items()})
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["m.keras", "m.h5", "m.weights.h5"])
def test_what_keras_saves(keras_files, tmp_path, name):
    (tmp_path / name).write_bytes((keras_files / name).read_bytes())
    report = there_and_back(tmp_path / name)
    assert report.notes == ()
    found = read(tmp_path / Path(name).with_suffix(".mz"))
    expected = np.load(keras_files / "expected.npz")
    of_dense = "model_weights/dense/sequential/dense/kernel" if name == "m.h5" else "layers/dense/vars/0"
    of_bfloat16 = "model_weights/dense_1/sequential/dense_1/kernel" if name == "m.h5" else "layers/dense_1/vars/0"
    assert bits(found[of_dense]) == bits(expected["sequential/dense/kernel"])
    assert found[of_bfloat16].dtype == ml_dtypes.bfloat16
    assert (found[of_bfloat16].astype("f4") == expected["sequential/dense_1/kernel"]).all()
    with mzstore.open(tmp_path / Path(name).with_suffix(".mz")) as model:
        about = model.metadata.get("keras", {})
    if name == "m.keras":
        assert about["config"]["class_name"] == "Sequential"
        assert about["metadata"]["keras_version"]
    elif name == "m.h5":
        assert about["model_config"]["class_name"] == "Sequential"
        assert about["backend"] == "torch"
    with open_source(tmp_path / name) as source:
        assert all(isinstance(tensor, hdf5.PlainTensor) for tensor in source.tensors)


@pytest.mark.slow
def test_keras_archives_that_are_compressed(keras_files, tmp_path):
    """Written anew by another program: deflated."""
    with zipfile.ZipFile(keras_files / "m.keras") as old, zipfile.ZipFile(tmp_path / "m.keras", "w", 8) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    there_and_back(tmp_path / "m.keras")
    found = read(tmp_path / "m.keras")
    assert {k: bits(v) for k, v in found.items()} == {k: bits(v) for k, v in read(keras_files / "m.keras").items()}


@pytest.mark.slow
def test_keras_on_object_storage(keras_files, tmp_path):
    url = f"memory://{tmp_path.name}"
    for name in ("m.keras", "m.h5"):
        fsspec.filesystem("memory").pipe(f"/{tmp_path.name}/{name}", (keras_files / name).read_bytes())
        mzstore.convert(f"{url}/{name}", f"{url}/{name}.mz", check=True)
        mzstore.convert(f"{url}/{name}.mz", f"{url}/back/{name}")
        assert fsspec.filesystem("memory").cat(f"/{tmp_path.name}/back/{name}") == (keras_files / name).read_bytes()


def test_archives_that_are_none_of_keras(tmp_path):
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    with pytest.raises(FormatError, match=r"no config\.json, or no model\.weights\.h5"):
        mzstore.convert(tmp_path / "m.keras", tmp_path / "m.mz")
    (tmp_path / "m.keras").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(FormatError, match="not a ZIP file that can be read"):
        mzstore.convert(tmp_path / "m.keras", tmp_path / "m.mz")
    (tmp_path / "m.h5").write_text("shopping list")
    with pytest.raises(FormatError, match="cannot open it as an HDF5 file"):
        mzstore.convert(tmp_path / "m.h5", tmp_path / "m.mz")


def test_a_configuration_that_is_not_strict_json(tmp_path):
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file["w"] = np.ones(3)
        file.attrs["model_config"] = json.dumps({"rate": float("nan")})
    mzstore.convert(tmp_path / "m.h5", tmp_path / "m.mz")
    with mzstore.open(tmp_path / "m.mz") as model:
        assert model.metadata["keras"]["model_config"] == '{"rate": NaN}'

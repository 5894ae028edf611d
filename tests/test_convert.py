"""Conversion both ways: what went in comes out, byte for byte."""

import json
import struct
import tracemalloc
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

import mzstore
import mzstore.dtypes
from mzstore.formats import open_source
from mzstore.frameworks import as_words
from mzstore.importance import open_importance
from mzstore.sources import ArraySource, blocks
from mzstore.writer import write


def tensors(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "layer.0.weight": rng.standard_normal((300, 64)).astype(ml_dtypes.bfloat16),
        "layer.0.bias": rng.standard_normal(300).astype(np.float32),
        "layer.1.weight": rng.standard_normal((70, 50)).astype(np.float16),
        "ids": np.arange(513),
        "mask": rng.random((5, 7)) < 0.5,
        "scalar": np.array(-0.0, np.float32),
        "empty": np.empty((0, 4), np.float32),
        "complex": (rng.standard_normal(9) + 1j).astype(np.complex64),
    }


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def raw_file(header: bytes, data: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + data


@pytest.mark.parametrize("target", ["m.mz", "m.zarr"])
@pytest.mark.parametrize("level", ["fast", "balanced", "max"])
def test_one_file_comes_back_byte_for_byte(tmp_path, target, level):
    source = tmp_path / "in.safetensors"
    safetensors.numpy.save_file(tensors(), source, metadata={"format": "pt", "ünï": "✓"})
    mzstore.convert(source, tmp_path / target, level=level)
    mzstore.convert(tmp_path / target, tmp_path / "out.safetensors")
    assert (tmp_path / "out.safetensors").read_bytes() == source.read_bytes()


@pytest.mark.parametrize(
    ("header", "data"),
    [
        (
            b'{"b":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"a":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}}',
            b"\1\2\3",
        ),
        (
            b'{ "a" : {"shape":[3], "dtype":"U8",  "data_offsets":[0,3]} , "__metadata__":{"z":"1","a":"2"} }      ',
            b"abc",
        ),
        (
            b'{"b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]},"\\u0061":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}',
            b"xyz",
        ),
        (b"{}", b""),
        (b'{"__metadata__":{"only":"this"}}', b""),
        (b'{"x":{"dtype":"F4","shape":[2,3],"data_offsets":[0,3]}}', b"\x21\x43\x65"),
        (b'{"x":{"dtype":"F4","shape":[4,3],"data_offsets":[0,6]}}', b"\xff\x01\x80\x7f\x12\x34"),
        (
            b'{"e":{"dtype":"F32","shape":[0,2],"data_offsets":[0,0]},"x":{"dtype":"BOOL","shape":[2],"data_offsets":[0,2]}}',
            b"\x00\x02",
        ),
    ],
    ids=["unaligned", "spaces", "out of order", "empty", "metadata only", "odd 4-bit rows", "4-bit rows", "odd bool"],
)
def test_any_legal_layout_comes_back_byte_for_byte(tmp_path, header, data):
    source = tmp_path / "in.safetensors"
    source.write_bytes(raw_file(header, data))
    mzstore.convert(source, tmp_path / "m.mz")
    mzstore.convert(tmp_path / "m.mz", tmp_path / "out.safetensors")
    assert (tmp_path / "out.safetensors").read_bytes() == source.read_bytes()


def test_every_type_of_the_library_round_trips(tmp_path):
    names = [d.torch for d in mzstore.dtypes.DTYPES.values() if d.safetensors]
    rng = np.random.default_rng(1)
    held = {
        name: torch.from_numpy(rng.integers(0, 256, 480, dtype=np.uint8)).view(getattr(torch, name)) for name in names
    }
    held["bool"] = held["bool"].view(torch.uint8).remainder(2).view(torch.bool)
    source = tmp_path / "in.safetensors"
    safetensors.torch.save_file(held, source)
    mzstore.convert(source, tmp_path / "m.mz")
    mzstore.convert(tmp_path / "m.mz", tmp_path / "out.safetensors")
    assert (tmp_path / "out.safetensors").read_bytes() == source.read_bytes()
    with mzstore.open(tmp_path / "m.mz") as model:
        loaded = model.load(framework="torch")
    for name, tensor in held.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name].view(torch.uint8), tensor.view(torch.uint8))


def test_a_saved_model_becomes_the_file_that_the_library_writes(tmp_path):
    mzstore.save(tmp_path / "m.mz", tensors(), metadata={"format": "pt"})
    mzstore.convert(tmp_path / "m.mz", tmp_path / "out.safetensors")
    safetensors.numpy.save_file(tensors(), tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    assert (tmp_path / "out.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


def hugging_face(folder: Path) -> Path:
    """A sharded model, a second model in a folder of its own with the same tensor names, and small files."""
    (folder / "2_Dense").mkdir(parents=True)
    first, second = tensors(1), {f"second.{k}": v for k, v in tensors(2).items()}
    safetensors.numpy.save_file(first, folder / "model-00001-of-00002.safetensors", metadata={"format": "pt"})
    safetensors.numpy.save_file(second, folder / "model-00002-of-00002.safetensors")
    index = {k: f"model-0000{i}-of-00002.safetensors" for i, part in ((1, first), (2, second)) for k in part}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": 1}, "weight_map": index}, indent=2)
    )
    safetensors.numpy.save_file(tensors(3), folder / "2_Dense" / "model.safetensors")
    (folder / "config.json").write_text('{"a": 1}\n')
    (folder / "2_Dense" / "config.json").write_bytes(b"")
    (folder / ".gitattributes").write_text("*.safetensors lfs\n")
    (folder / "tökenizer.json").write_bytes(bytes(range(256)) * 5000)
    return folder


@pytest.mark.parametrize("target", ["m.mz", "m.zarr"])
def test_a_hugging_face_directory_comes_back_whole(tmp_path, target):
    source = hugging_face(tmp_path / "in")
    mzstore.convert(source, tmp_path / target)
    mzstore.convert(tmp_path / target, tmp_path / "out")
    assert files(tmp_path / "out") == files(source)
    with mzstore.open(tmp_path / target) as model:
        assert model["layer.0.bias"][...].tobytes() == tensors(1)["layer.0.bias"].tobytes()
        assert model["second.ids"][3] == 3
        assert model["2_Dense/layer.0.bias"][...].tobytes() == tensors(3)["layer.0.bias"].tobytes()
        assert model.assets["config.json"] == b'{"a": 1}\n'


def test_a_sharded_model_by_its_index(tmp_path):
    source = hugging_face(tmp_path / "in")
    mzstore.convert(source / "model.safetensors.index.json", tmp_path / "m.mz")
    mzstore.convert(tmp_path / "m.mz", tmp_path / "out")
    assert files(tmp_path / "out") == {k: v for k, v in files(source).items() if k.startswith("model")}


def test_files_of_one_folder_with_the_same_names_stay_apart(tmp_path):
    (tmp_path / "in").mkdir()
    safetensors.numpy.save_file(tensors(1), tmp_path / "in" / "model.fp16.safetensors")
    safetensors.numpy.save_file(tensors(2), tmp_path / "in" / "model.safetensors")
    mzstore.convert(tmp_path / "in", tmp_path / "m.mz")
    mzstore.convert(tmp_path / "m.mz", tmp_path / "out")
    assert files(tmp_path / "out") == files(tmp_path / "in")


@pytest.mark.parametrize(
    ("index", "problem"),
    [
        ('{"weight_map": {"x": "model-00001-of-00002.safetensors"}}', "disagree about tensor"),
        ('{"weight_map": {"x": "gone.safetensors"}}', "cannot open|is missing"),
        ('{"weight_map": {"x": "../in/model-00001-of-00002.safetensors"}}', "relative path|is missing"),
        ('{"weight_map": {"x": "/etc/passwd"}}', "relative path|is missing"),
        ('{"weight_map": {"x": 5}}', "weight_map"),
        ("[]", "not a JSON object"),
    ],
)
@pytest.mark.parametrize("by_index", [True, False])
def test_an_index_that_lies_is_refused(tmp_path, index, problem, by_index):
    source = hugging_face(tmp_path / "in")
    path = source / "model.safetensors.index.json"
    path.write_text(index)
    with pytest.raises(mzstore.MzError, match=problem):
        mzstore.convert(path if by_index else source, tmp_path / "m.mz")
    assert not (tmp_path / "m.mz").exists()


def entry(**changes: object) -> bytes:
    return json.dumps({"x": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]} | changes}).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0\0",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 100) + b"{}",
        raw_file(b"[]", b""),
        raw_file(b'{"x":', b""),
        raw_file(b"\xff\xfe", b""),
        raw_file(entry() + entry(), b"abc"),
        raw_file(b'{"x":1}', b""),
        raw_file(entry(), b"ab"),
        raw_file(entry(), b"abcd"),
        raw_file(entry(shape=[-3]), b"abc"),
        raw_file(entry(shape=[2**63, 2**63]), b"abc"),
        raw_file(entry(shape=[3.0]), b"abc"),
        raw_file(entry(shape=[True, 3]), b"abc"),
        raw_file(entry(data_offsets=[3, 0]), b"abc"),
        raw_file(entry(data_offsets=[1, 4]), b"abcd"),
        raw_file(entry(data_offsets=[-3, 0]), b"abc"),
        raw_file(entry(dtype="F4"), b"abc"),
        raw_file(entry(dtype="Q9"), b"abc"),
        raw_file(entry(more=1), b"abc"),
        raw_file(b'{"__metadata__":{"a":1}}', b""),
        raw_file(
            b'{"x":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"y":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}',
            b"abc",
        ),
        raw_file(
            b'{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"x":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}',
            b"abc",
        ),
    ],
)
def test_a_malformed_safetensors_file_is_refused(tmp_path, content):
    (tmp_path / "in.safetensors").write_bytes(content)
    with pytest.raises((mzstore.FormatError, mzstore.UnsupportedError)):
        mzstore.convert(tmp_path / "in.safetensors", tmp_path / "m.mz")
    assert not list(tmp_path.glob("*m.mz*"))


def test_a_directory_without_a_model_is_refused(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "config.json").write_text("{}")
    with pytest.raises(mzstore.FormatError, match="no weights in this directory"):
        mzstore.convert(tmp_path / "in", tmp_path / "m.mz")


def test_an_existing_directory_is_not_overwritten(tmp_path):
    mzstore.convert(hugging_face(tmp_path / "in"), tmp_path / "m.mz")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(mzstore.StorageError, match="exists"):
        mzstore.convert(tmp_path / "m.mz", tmp_path / "out")
    assert files(tmp_path / "out") == {"mine.txt": b"keep"}


def test_what_safetensors_cannot_hold_is_named(tmp_path):
    mzstore.save(tmp_path / "m.mz", {"w": np.zeros(4, np.complex128)})
    with pytest.raises(ValueError, match=r"tensor 'w': safetensors has no complex128"):
        mzstore.convert(tmp_path / "m.mz", tmp_path / "out.safetensors")
    mzstore.save(tmp_path / "m.mz", {"__metadata__": np.zeros(4)})
    with pytest.raises(ValueError, match="__metadata__"):
        mzstore.convert(tmp_path / "m.mz", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_words_by_ranges(tmp_path):
    """``StoredTensor.read`` gives any range of words, across chunks and rows."""
    values = np.random.default_rng(0).standard_normal((3, 700, 1100)).astype(np.float32)
    mzstore.save(tmp_path / "m.mz", {"w": values})
    flat = values.reshape(-1).view(np.uint32)
    with open_source(tmp_path / "m.mz") as model:
        (tensor,) = model.tensors
        for start, stop in [(0, 0), (0, 1), (1, 5000), (699_999, 700_001), (123_456, 2_000_000), (0, flat.size)]:
            assert (tensor.read(start, stop) == flat[start:stop]).all()
        assert (np.concatenate(list(blocks(tensor))) == flat).all()


def test_the_new_header_sorts_as_the_library_does(tmp_path):
    held = {
        d.torch: torch.zeros(16, dtype=torch.uint8).view(getattr(torch, d.torch))
        for d in mzstore.dtypes.DTYPES.values()
        if d.safetensors
    }
    held |= {"b": torch.zeros(2), "a": torch.zeros(2)}
    safetensors.torch.save_file(held, tmp_path / "theirs.safetensors")
    mzstore.save(tmp_path / "m.mz", held)
    mzstore.convert(tmp_path / "m.mz", tmp_path / "ours.safetensors")
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


def test_a_folder_behind_a_link_travels_along(tmp_path):
    source = hugging_face(tmp_path / "in")
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "vocab.json").write_text("{}")
    (source / "tokenizer").symlink_to(tmp_path / "shared", target_is_directory=True)
    mzstore.convert(source, tmp_path / "m.mz")
    with mzstore.open(tmp_path / "m.mz") as model:
        assert model.assets["tokenizer/vocab.json"] == b"{}"
    (source / "loop").symlink_to(source, target_is_directory=True)
    with pytest.raises(mzstore.StorageError, match="a folder that it lies in"):
        mzstore.convert(source, tmp_path / "m2.mz")


def test_tensors_that_no_layout_has_are_not_lost(tmp_path):
    source = tmp_path / "in.safetensors"
    safetensors.numpy.save_file(tensors(), source)
    with open_source(source) as model:
        more = ArraySource(*as_words("more", np.arange(5)))
        write(tmp_path / "m.mz", replace(model, tensors=[*model.tensors, more]))
    mzstore.convert(tmp_path / "m.mz", tmp_path / "out.safetensors")
    assert safetensors.numpy.load_file(tmp_path / "out.safetensors").keys() == tensors().keys() | {"more"}
    with pytest.raises(ValueError, match="no layout has tensor 'more'"):
        mzstore.convert(tmp_path / "m.mz", tmp_path / "out")


# Quantized tensors


def large(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "a.weight": rng.standard_normal((300, 128)).astype(ml_dtypes.bfloat16),
        "b.weight": rng.standard_normal((300, 128)).astype(np.float32),
        "b.bias": rng.standard_normal(300).astype(np.float32),
    }


@pytest.fixture
def quantized_file(tmp_path) -> Path:
    """An archive that was quantized while it was converted."""
    safetensors.numpy.save_file(large(), tmp_path / "in.safetensors", metadata={"format": "pt"})
    mzstore.convert(tmp_path / "in.safetensors", tmp_path / "q.mz", recipe=mzstore.Recipe(bits=5))
    return tmp_path / "q.mz"


def test_a_recipe(quantized_file):
    with mzstore.open(quantized_file) as model:
        assert [name for name, tensor in model.items() if tensor.quality] == ["b.weight", "a.weight"]
        assert all(tensor.quality["reached"]["bits"] < 5.2 for tensor in model.values() if tensor.quality)
        assert model["b.bias"][...].tobytes() == large()["b.bias"].tobytes()


def test_quantized_tensors_become_values_in_other_files(quantized_file, tmp_path):
    mzstore.convert(quantized_file, tmp_path / "out.safetensors")
    found = safetensors.numpy.load_file(tmp_path / "out.safetensors")
    with mzstore.open(quantized_file) as model:
        assert {n: v.tobytes() for n, v in found.items()} == {n: v.tobytes() for n, v in model.load().items()}
    # The header is that of the file that it came from.
    n = 8 + struct.unpack("<Q", (tmp_path / "in.safetensors").read_bytes()[:8])[0]
    assert (tmp_path / "out.safetensors").read_bytes()[:n] == (tmp_path / "in.safetensors").read_bytes()[:n]
    with pytest.raises(ValueError, match="a recipe is for archives and trees, not for safetensors"):
        mzstore.convert(quantized_file, tmp_path / "x.safetensors", recipe=mzstore.Recipe(bits=4))


def test_quantized_tensors_stay_as_they_are(quantized_file, tmp_path):
    """Through a tree, object storage and back, byte for byte."""
    url = f"memory://{tmp_path.name}/q.mz"
    for source, target in ((quantized_file, tmp_path / "q.zarr"), (tmp_path / "q.zarr", url), (url, tmp_path / "b.mz")):
        mzstore.convert(source, target, level="max")
    assert mzstore.verify(tmp_path / "b.mz").ok
    with mzstore.open(quantized_file) as model, mzstore.open(tmp_path / "b.mz") as again:
        for name, tensor in model.items():
            assert (again[name].quality, again[name].encoding) == (tensor.quality, tensor.encoding)
            assert again[name][...].tobytes() == tensor[...].tobytes()
            assert tensor.quality is None or again[name].stored_nbytes == tensor.stored_nbytes
    mzstore.convert(quantized_file, tmp_path / "c.mz")
    assert (tmp_path / "c.mz").read_bytes() == quantized_file.read_bytes()


def test_quantizing_what_is_quantized(quantized_file, tmp_path):
    """The tensors that a rule is for are quantized again, the others are copied."""
    rules = mzstore.Recipe([mzstore.Rule(name="a.*", bits=3)])
    mzstore.convert(quantized_file, tmp_path / "again.mz", recipe=rules)
    with mzstore.open(quantized_file) as model, mzstore.open(tmp_path / "again.mz") as again:
        assert again["a.weight"].quality["reached"]["bits"] < 3.2
        assert again["b.weight"].quality == model["b.weight"].quality
        assert again["b.weight"].sha256 == model["b.weight"].sha256


def test_what_is_copied_is_checked(quantized_file, tmp_path):
    mzstore.convert(quantized_file, tmp_path / "q.zarr")
    chunk = next(
        path for path in (tmp_path / "q.zarr" / "a.weight").rglob("*") if path.is_file() and path.name != "zarr.json"
    )
    data = bytearray(chunk.read_bytes())
    data[5] ^= 1
    chunk.write_bytes(data)
    with pytest.raises(mzstore.CorruptError, match=r"checksum .*tensor 'a\.weight', chunk"):
        mzstore.convert(tmp_path / "q.zarr", tmp_path / "b.mz")
    chunk.unlink()
    with pytest.raises(mzstore.CorruptError, match="is missing"):
        mzstore.convert(tmp_path / "q.zarr", tmp_path / "b.mz")
    assert not (tmp_path / "b.mz").exists()


@pytest.mark.parametrize("name", ["i.npz", "i.safetensors"])
def test_importance_is_read_when_it_is_needed(name, tmp_path):
    """That of a model which does not fit in memory need not either: one tensor's at a time."""
    weights = {f"w{i}": np.full(1 << 18, i, np.float32) for i in range(16)}
    if name.endswith(".npz"):
        np.savez(tmp_path / name, **weights)
    else:
        safetensors.numpy.save_file(weights, tmp_path / name)
    tracemalloc.start()
    try:
        with open_importance(tmp_path / name) as found:
            assert all(np.asarray(found[key])[-1] == value[-1] for key, value in weights.items())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 5 << 20


def test_importance_of_a_file(quantized_file, tmp_path):
    weights = {"a.weight": np.linspace(0, 1, 128, dtype=np.float32)}
    np.savez(tmp_path / "i.npz", **weights)
    safetensors.numpy.save_file(weights, tmp_path / "i.safetensors")
    for name in ("i.npz", "i.safetensors"):
        with open_importance(tmp_path / name) as found:
            assert {k: np.asarray(v).tolist() for k, v in found.items()} == {k: v.tolist() for k, v in weights.items()}
            assert np.asarray(found["a.weight"], np.float64).dtype == np.float64
            mzstore.convert(
                tmp_path / "in.safetensors", tmp_path / f"{name}.mz", recipe=mzstore.Recipe(bits=5), importance=found
            )
    assert (tmp_path / "i.npz.mz").read_bytes() == (tmp_path / "i.safetensors.mz").read_bytes()
    assert (tmp_path / "i.npz.mz").read_bytes() != quantized_file.read_bytes()
    (tmp_path / "bad.npz").write_bytes(b"PK junk")
    with pytest.raises(ValueError, match=r"bad\.npz: no \.npz file of arrays"):
        open_importance(tmp_path / "bad.npz").__enter__()
    np.savez(tmp_path / "objects.npz", a=np.array([None]))
    with (
        open_importance(tmp_path / "objects.npz") as found,
        pytest.raises(ValueError, match=r"objects\.npz: 'a' is no array"),
    ):
        np.asarray(found["a"])
    with pytest.raises(ValueError, match="importance for 'c', and there is no tensor of this name"):
        mzstore.convert(
            tmp_path / "in.safetensors", tmp_path / "x.mz", recipe=mzstore.Recipe(bits=5), importance={"c": 1}
        )

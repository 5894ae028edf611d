"""Files of PyTorch, read and written without it, and without running anything that is in them."""

import argparse
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign import Runs, words

import mzstore
from mzstore.dtypes import DTYPES
from mzstore.formats import open_source, pickles, state_dict
from mzstore.tensors import TensorSpec


def every_dtype() -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(0)
    found = {}
    for name in sorted(d.torch for d in DTYPES.values() if d.torch and d.name not in state_dict.NOT_IN_TORCH):
        dtype = getattr(torch, name)
        found[name] = (
            torch.from_numpy(rng.integers(0, 2 if name == "bool" else 256, 96, dtype=np.uint8))
            .view(dtype)
            .reshape(3, -1)
        )
    return found


def net() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3), torch.nn.Flatten(), torch.nn.Linear(12, 4)
    )


def saved(value: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


LEGACY = {"_use_new_zipfile_serialization": False}


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
@pytest.mark.parametrize("suffix", ["pt", "pth", "bin"])
def test_a_state_dict_comes_back_byte_for_byte(tmp_path, options, suffix):
    state = net().state_dict()
    state["tied"] = state["3.weight"]
    state["part"] = state["3.weight"].view(-1)[7:20]
    state["scalar"], state["empty"] = torch.tensor(1.5), torch.zeros(0, 3)
    source = tmp_path / f"m.{suffix}"
    source.write_bytes(saved(state, **options))
    mzstore.convert(source, tmp_path / "m.mz", check=True)
    with mzstore.open(tmp_path / "m.mz") as model:
        assert list(model) == list(state)
        for name, tensor in model.load(framework="torch").items():
            assert torch.equal(tensor, state[name])
    found = mzstore.convert(tmp_path / "m.mz", tmp_path / "back.pt")
    assert (tmp_path / "back.pt").read_bytes() == source.read_bytes()
    assert found.notes == (f"byte for byte the file m.{suffix} that the model was converted from",)
    mzstore.convert(tmp_path / "m.mz", tmp_path / "out")
    assert (tmp_path / "out" / f"m.{suffix}").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("name", every_dtype())
def test_every_dtype_both_ways(tmp_path, name):
    tensor = every_dtype()[name]
    (tmp_path / "m.pt").write_bytes(saved({"w": tensor}))
    mzstore.convert(tmp_path / "m.pt", tmp_path / "m.mz")
    with mzstore.open(tmp_path / "m.mz") as model:
        found = model.load(framework="torch")["w"]
        assert found.dtype == tensor.dtype
        assert bytes_of(found) == bytes_of(tensor)
    mzstore.save(tmp_path / "n.mz", {"w": tensor})
    mzstore.convert(tmp_path / "n.mz", tmp_path / "n.pt")
    again = torch.load(tmp_path / "n.pt", weights_only=True, mmap=True)["w"]
    assert (again.dtype, again.shape) == (tensor.dtype, tensor.shape)
    assert bytes_of(again) == bytes_of(tensor)


def test_a_new_file_is_what_torch_writes(tmp_path):
    state = {f"layer.{i}.weight": torch.randn(i + 1, 7) for i in range(20)} | {
        "ünï": torch.arange(3),
        "": torch.ones(()),
    }
    mzstore.save(tmp_path / "m.mz", state, metadata={"step": 5})
    note = "a new pytorch file: equal tensors, and not the bytes of a file that they came from"
    assert mzstore.convert(tmp_path / "m.mz", tmp_path / "m.pt").notes == (note,)
    for mmap in (False, True):
        found = torch.load(tmp_path / "m.pt", weights_only=True, mmap=mmap)
        assert type(found) is OrderedDict
        assert list(found) == list(state)
        assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    with zipfile.ZipFile(tmp_path / "m.pt") as archive:
        assert archive.testzip() is None
        for entry in archive.infolist():
            n, m = struct.unpack_from("<HH", (tmp_path / "m.pt").read_bytes(), entry.header_offset + 26)
            assert (entry.header_offset + 30 + n + m) % 64 == 0
    mzstore.convert(tmp_path / "m.mz", tmp_path / "again.pt")
    assert (tmp_path / "again.pt").read_bytes() == (tmp_path / "m.pt").read_bytes()


def test_sizes_beyond_32_bits_in_a_pickle():
    """No such tensor is written here; the pickle that would be is read."""
    specs = [TensorSpec("w", DTYPES["float32"], (1 << 20, 1 << 12)), TensorSpec("b", DTYPES["float8_e5m2"], (1 << 33,))]
    storages = []

    def persistent(about: Any) -> str:
        storages.append(about[1:])
        return "storage"

    def find(name: str) -> pickles.Global:
        return pickles.Global(name, lambda *args: {} if name == "collections.OrderedDict" else args)

    found = pickles.load(io.BytesIO(state_dict.pickled(specs)), find, persistent, where="")
    assert found["w"] == ("storage", 0, (1 << 20, 1 << 12), (1 << 12, 1), False, {})
    assert found["b"][:4] == ("storage", 0, (1 << 33,), (1,))
    assert [(about[0].name, about[1], about[3]) for about in storages] == [
        ("torch.FloatStorage", "0", 1 << 32), ("torch.storage.UntypedStorage", "1", 1 << 33),
    ]  # fmt: skip


def test_a_checkpoint_of_nested_dicts(tmp_path):
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2, 4, 4)).sum().backward()
    optimizer.step()
    checkpoint = {
        "model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "loss": 0.25, "best": None,
        "args": argparse.Namespace(lr=1e-3, layers=[1, 2]), "history": [(1, 0.5), (2, 0.25)], "tensors": [torch.ones(2), torch.zeros(3)],
        "nan": float("nan"), "set": {1}, "names": ("a", "b"), "dtype": torch.float16, "parameter": torch.nn.Parameter(torch.ones(2)),
        "size": torch.Size([2, 3]), "device": torch.device("cpu"), "bytes": b"\0\1",
    }  # fmt: skip
    (tmp_path / "m.pt").write_bytes(saved(checkpoint))
    notes = mzstore.convert(tmp_path / "m.pt", tmp_path / "m.mz").notes
    assert notes == (
        "nan is not kept as metadata: nan is no number of JSON",
        "bytes is not kept as metadata: it is of type bytes",
    )
    with mzstore.open(tmp_path / "m.mz") as found:
        assert found["model.0.weight"][...].tobytes() == model[0].weight.detach().numpy().tobytes()
        assert found["optimizer.state.0.exp_avg"].shape == (3, 2, 3, 3)
        assert found["tensors.1"].shape == (3,)
        assert found.metadata["epoch"] == 3
        assert found.metadata["args"] == {"lr": 1e-3, "layers": [1, 2]}
        assert found.metadata["history"] == [[1, 0.5], [2, 0.25]]
        assert found.metadata["optimizer.param_groups"][0]["lr"] == 1e-3
        assert (found.metadata["size"], found.metadata["device"], found.metadata["dtype"]) == (
            [2, 3],
            "cpu",
            "torch.float16",
        )
    mzstore.convert(tmp_path / "m.mz", tmp_path / "back.pt")
    assert (tmp_path / "back.pt").read_bytes() == (tmp_path / "m.pt").read_bytes()


def test_a_tensor_alone(tmp_path):
    (tmp_path / "weights.pt").write_bytes(saved(torch.arange(5)))
    mzstore.convert(tmp_path / "weights.pt", tmp_path / "m.mz")
    with mzstore.open(tmp_path / "m.mz") as model:
        assert model["weights"][...].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("frozen", [False, True])
def test_torchscript(tmp_path, frozen):
    module = torch.jit.script(net().eval())
    if frozen:
        module = torch.jit.freeze(module)
    module.save(tmp_path / "m.pt")
    mzstore.convert(tmp_path / "m.pt", tmp_path / "m.mz")
    with mzstore.open(tmp_path / "m.mz") as model:
        assert dict(model.metadata) == {}
        found = {tensor[...].tobytes() for tensor in model.values()}
        assert bytes_of(net()[3].weight) in found  # freezing changes the others
        if not frozen:
            assert set(model) == set(net().state_dict())
    mzstore.convert(tmp_path / "m.mz", tmp_path / "back.pt")
    assert (tmp_path / "back.pt").read_bytes() == (tmp_path / "m.pt").read_bytes()


def test_a_quantized_and_a_sparse_tensor(tmp_path):
    state = {
        "q": torch.quantize_per_tensor(torch.linspace(-1, 1, 9), 0.1, 3, torch.qint8),
        "s": torch.eye(3).to_sparse(),
    }
    (tmp_path / "m.pt").write_bytes(saved(state))
    with open_source(tmp_path / "m.pt") as model:
        found = words(model)
        assert found["q.int_repr"] == state["q"].int_repr().numpy().tobytes()
        assert (model.metadata["q.scale"], model.metadata["q.zero_point"]) == (0.1, 3)
        assert found["s.values"] == np.ones(3, np.float32).tobytes()


STRIDED = {
    "transposed": torch.randn(40, 70).T,
    "channels last": torch.randn(5, 6, 7, 8).to(memory_format=torch.channels_last),
    "columns": torch.randn(50, 9)[:, 2:5],
    "steps": torch.arange(100)[5::3],
    "expanded": torch.randn(1, 6).expand(4, 6),
    "complex": torch.randn(4, 5, dtype=torch.complex64).T,
    "permuted": torch.randn(3, 4, 5).permute(2, 0, 1)[1:, :, ::2],
    "one row": torch.randn(1, 8).T,
    "empty": torch.zeros(0, 4).T,
}


@pytest.mark.parametrize("name", STRIDED)
def test_tensors_in_another_order(tmp_path, name, monkeypatch):
    monkeypatch.setattr("mzstore.formats.files.SLAB_NBYTES", 100)
    monkeypatch.setattr("mzstore.formats.spliced.LARGEST_PART", 1 << 40)  # however few values these are
    tensor = STRIDED[name]
    (tmp_path / "m.pt").write_bytes(saved({"a": torch.ones(3), "w": tensor}))
    with open_source(tmp_path / "m.pt") as model:
        assert words(model)["w"] == bytes_of(tensor)
        _, source = model.tensors
        size = int(np.prod(source.spec.word_shape))
        for start, stop in ((0, size), (size // 3, size // 2), (0, size // 4), (size - 1, size)):
            if start >= 0:
                assert source.read(start, stop).tobytes() == source.read(0, size)[start:stop].tobytes()
    found = mzstore.convert(tmp_path / "m.pt", tmp_path / "m.mz", check=True)
    with mzstore.open(tmp_path / "m.mz") as model:
        has_layout = bool(model.document.layouts)
    assert has_layout == (name in ("one row", "empty"))
    if has_layout:
        mzstore.convert(tmp_path / "m.mz", tmp_path / "back.pt")
        assert (tmp_path / "back.pt").read_bytes() == (tmp_path / "m.pt").read_bytes()
    else:
        assert "it comes back with equal tensors, and not byte for byte" in found.notes[0]


def test_a_few_values_in_another_order_come_back_as_they_were(tmp_path):
    (tmp_path / "m.pt").write_bytes(saved({"large": torch.randn(100, 100), "t": torch.randn(4, 5).T}))
    mzstore.convert(tmp_path / "m.pt", tmp_path / "m.mz", check=True)
    mzstore.convert(tmp_path / "m.mz", tmp_path / "back.pt")
    assert (tmp_path / "back.pt").read_bytes() == (tmp_path / "m.pt").read_bytes()


def rezipped(data: bytes, change: dict[str, bytes] | None = None, method: int = zipfile.ZIP_STORED) -> bytes:
    """The same members in a file of Python's own; ``change`` replaces some."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", method) as new:
        for name in old.namelist():
            new.writestr(name, (change or {}).get(name.partition("/")[2], old.read(name)))
    return out.getvalue()


def test_deflated_storages(tmp_path):
    state = net().state_dict() | {"zeros": torch.zeros(1000, 1000), "t": torch.randn(30, 50).T}
    (tmp_path / "m.pt").write_bytes(rezipped(saved(state), method=zipfile.ZIP_DEFLATED))
    assert torch.equal(torch.load(tmp_path / "m.pt", weights_only=True)["t"], state["t"])
    with open_source(tmp_path / "m.pt") as model:
        assert not model.layouts
        found = words(model)
        assert {name: found[name] for name in reversed(found)} == {name: bytes_of(t) for name, t in state.items()}
    data = bytearray((tmp_path / "m.pt").read_bytes())
    with zipfile.ZipFile(tmp_path / "m.pt") as archive:
        at = archive.getinfo(next(n for n in archive.namelist() if n.endswith("data/0"))).header_offset
    data[at + 60] ^= 0x40
    (tmp_path / "bad.pt").write_bytes(data)
    with open_source(tmp_path / "bad.pt") as model, pytest.raises(mzstore.CorruptError, match=r"inflated|CRC-32"):
        words(model)


def test_a_file_of_a_big_endian_machine(tmp_path, monkeypatch):
    monkeypatch.setattr("mzstore.formats.spliced.LARGEST_PART", 1 << 40)
    value = torch.arange(1, 8, dtype=torch.int32)
    swapped = torch.from_numpy(value.numpy().byteswap())
    (tmp_path / "m.pt").write_bytes(
        rezipped(saved({"w": swapped, "t": swapped[:6].view(2, 3).T}), {"byteorder": b"big"})
    )
    with open_source(tmp_path / "m.pt") as model:
        found = words(model)
        assert not model.layouts
    assert found["w"] == value.numpy().tobytes()
    assert found["t"] == bytes_of(value[:6].view(2, 3).T)


def test_a_hugging_face_directory(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    first, second = {"a.weight": torch.randn(30, 4)}, {"b.weight": torch.randn(3), "b.bias": torch.ones(1)}
    (folder / "pytorch_model-00001-of-00002.bin").write_bytes(saved(first))
    (folder / "pytorch_model-00002-of-00002.bin").write_bytes(saved(second, **LEGACY))
    index = {name: f"pytorch_model-0000{i}-of-00002.bin" for i, part in ((1, first), (2, second)) for name in part}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    (folder / "config.json").write_text("{}")
    (folder / "training_args.bin").write_bytes(saved(Path("a")))
    (folder / "notes.bin").write_bytes(b"just bytes")
    found = mzstore.convert(folder, tmp_path / "m.mz")
    assert len(found.notes) == 1
    assert "training_args.bin travels as it is: its pickle asks for 'pathlib" in found.notes[0]
    with mzstore.open(tmp_path / "m.mz") as model:
        assert set(model) == {"a.weight", "b.weight", "b.bias"}
        assert set(model.assets) == {"pytorch_model.bin.index.json", "config.json", "training_args.bin", "notes.bin"}
    mzstore.convert(tmp_path / "m.mz", tmp_path / "back")
    assert {p.name: p.read_bytes() for p in (tmp_path / "back").iterdir()} == {
        p.name: p.read_bytes() for p in folder.iterdir()
    }
    mzstore.convert(folder / "pytorch_model.bin.index.json", tmp_path / "i.mz")
    with mzstore.open(tmp_path / "i.mz") as model:
        assert set(model) == {"a.weight", "b.weight", "b.bias"}
        assert set(model.assets) == {"pytorch_model.bin.index.json"}
    (folder / "pytorch_model-00002-of-00002.bin").write_bytes(saved(first))
    with pytest.raises(mzstore.FormatError, match="disagree about tensor"):
        mzstore.convert(folder, tmp_path / "x.mz")


def test_remote_files(tmp_path):
    url = f"memory://{tmp_path.name}/m.pt"
    state = net().state_dict() | {"t": torch.randn(3, 4).T}
    import fsspec

    with fsspec.open(url, "wb") as file:
        file.write(saved(state))
    mzstore.convert(url, tmp_path / "m.mz")
    with mzstore.open(tmp_path / "m.mz") as model:
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.load(framework="torch").items())


def test_without_pytorch(tmp_path):
    state = net().state_dict()
    (tmp_path / "m.pt").write_bytes(saved(state))
    code = """
import sys
sys.modules["torch"] = None  # importing it fails
import mzstore
mzstore.convert(sys.argv[1], sys.argv[2])
mzstore.convert(sys.argv[2], sys.argv[3], exclude="0.*")
"""
    subprocess.run([sys.executable, "-c", code, tmp_path / "m.pt", tmp_path / "m.mz", tmp_path / "n.pt"], check=True)
    found = torch.load(tmp_path / "n.pt", weights_only=True, mmap=True)
    assert {name: bytes_of(tensor) for name, tensor in found.items()} == {
        name: bytes_of(tensor) for name, tensor in state.items() if not name.startswith("0.")
    }


# Files that mean harm, or are broken.


def refused(tmp_path: Path, data: bytes, match: str, error: type[mzstore.MzError] = mzstore.UnsupportedError) -> None:
    (tmp_path / "bad.pt").write_bytes(data)
    with pytest.raises(error, match=match), open_source(tmp_path / "bad.pt") as model:
        words(model)
    with pytest.raises(error):
        mzstore.convert(tmp_path / "bad.pt", tmp_path / "x.mz")
    assert not (tmp_path / "x.mz").exists()


@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_nothing_in_a_pickle_is_run(tmp_path, options, protocol):
    mark = tmp_path / "was here"
    command = f"touch '{mark}'"
    commands = [
        (os.system, command), (subprocess.check_output, ["touch", str(mark)]), (eval, f"open({str(mark)!r}, 'w')"),
        (exec, f"open({str(mark)!r}, 'w')"), (open, str(mark), "w"), (Path.touch, mark), (print, "hi"),
        (__import__, "os"), (torch.load, str(mark)), (np.zeros, 3),
    ]  # fmt: skip
    for function, *arguments in commands[:-1] if protocol == 2 else commands:
        try:
            data = saved({"w": torch.ones(2), "x": Runs(function, *arguments)}, pickle_protocol=protocol, **options)
        except pickle.PicklingError:
            continue
        refused(tmp_path, data, "refused, and nothing of it was run")
        assert not mark.exists()
    pickle.loads(pickle.dumps(Runs(os.system, command)))
    assert mark.exists(), "the pickle would do something"


def zipped(pickled: bytes, **members: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in ({"data.pkl": pickled, "byteorder": b"little", "version": b"3\n"} | members).items():
            archive.writestr(f"m/{name.replace('__', '/')}", data)
    return out.getvalue()


def tensor_pickle(
    shape: tuple[Any, ...] = (2,),
    strides: tuple[Any, ...] = (1,),
    offset: Any = 0,
    count: Any = 2,
    kind: str = "FloatStorage",
    key: str = "0",
) -> bytes:
    """A pickle of one tensor that says what it likes."""

    def item(value: Any) -> bytes:
        if isinstance(value, tuple):
            return b"(" + b"".join(map(item, value)) + b"t"
        return pickle.dumps(value, protocol=2)[2:-1]

    storage = b"(" + item("storage") + f"ctorch\n{kind}\n".encode() + item(key) + item("cpu") + item(count) + b"tQ"
    about = item(offset) + item(shape) + item(strides) + b"\x89}"
    return b"\x80\x02}" + item("w") + b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + about + b"tRs."


def test_the_forged_pickle_is_one(tmp_path):
    (tmp_path / "m.pt").write_bytes(zipped(tensor_pickle(), data__0=bytes(8)))
    with open_source(tmp_path / "m.pt") as model:
        assert words(model) == {"w": bytes(8)}


@pytest.mark.parametrize(
    ("forged", "match", "error"),
    [
        ({"offset": 1}, "ends at element 3 of a storage of 2", mzstore.FormatError),
        ({"offset": -1}, "integers >= 0", mzstore.FormatError),
        ({"offset": 1 << 70}, "integers >= 0", mzstore.FormatError),
        ({"offset": 1.0}, "integers >= 0", mzstore.FormatError),
        ({"offset": True}, "integers >= 0", mzstore.FormatError),
        ({"strides": (-1,)}, "integers >= 0", mzstore.FormatError),
        ({"strides": (2,)}, "ends at element 3", mzstore.FormatError),
        ({"strides": (1, 1)}, "integers >= 0", mzstore.FormatError),
        ({"shape": (-2,)}, "integers >= 0", mzstore.FormatError),
        ({"shape": ("2",)}, "integers >= 0", mzstore.FormatError),
        ({"shape": (1 << 61,)}, "ends at element", mzstore.FormatError),
        ({"shape": (1 << 40,), "strides": (0,)}, "repeats few values", mzstore.UnsupportedError),
        ({"shape": (1 << 61, 1 << 61), "strides": (0, 0)}, "larger than", mzstore.FormatError),
        ({"shape": (1,) * 33, "strides": (1,) * 33}, "integers >= 0", mzstore.FormatError),
        ({"count": 3}, "shorter than it should be", mzstore.FormatError),
        ({"count": -1}, "a storage of -1 elements", mzstore.FormatError),
        ({"count": 1 << 62}, "a storage of", mzstore.FormatError),
        ({"key": "1"}, "the storage 'data/1' is missing", mzstore.CorruptError),
        ({"key": "../data.pkl"}, "is missing", mzstore.CorruptError),
        ({"kind": "UntypedStorage"}, "no dtype|asks for", mzstore.MzError),
        ({"kind": "QUInt4x2Storage"}, "asks for 'torch.QUInt4x2Storage'", mzstore.UnsupportedError),
    ],
    ids=str,
)
def test_tensors_that_are_none(tmp_path, forged, match, error):
    refused(tmp_path, zipped(tensor_pickle(**forged), data__0=bytes(8)), match, error)


def nested(levels: int) -> bytes:
    return b"\x80\x02" + b"(" * levels + b"t" * levels + b"."


BOMBS = {
    "deep tuples": (nested(1 << 17), "containers in each other"),
    "deep key": (b"\x80\x02}" + b"(" * (1 << 17) + b"t" * (1 << 17) + b"Ns.", "a key is a tuple"),
    "a list in itself": (b"\x80\x02]q\0h\0a.", "containers in each other"),
    "a dict in itself": (b"\x80\x02}q\0X\1\0\0\0ah\0s.", "containers in each other"),
    "billion laughs": (
        b"\x80\x02](X\4\0\0\0abcd" + b"".join(b"](" + (b"h" + bytes([i])) * 10 + b"eq" + bytes([i + 1]) for i in range(20)).replace(b"h\0", b"N") + b"e.",
        "containers in each other|values",
    ),
    "a memo of 2 ** 31": (b"\x80\x02Nr\xff\xff\xff\x7f0.", "not a pickle|file of PyTorch|pop"),
    "a string that is cut short": (b"\x80\x02X\xff\xff\xff\x7fab.", "cuts short|not a pickle"),
    "bytes of 2 ** 62": (b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b".", "cuts short|not a pickle"),
    "a bytearray of 2 ** 40": (b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".", "cuts short|not a pickle"),
    "no end": (b"\x80\x02N", "not a pickle"),
    "nothing": (b"", "not a pickle"),
    "an empty stack": (b"\x80\x020.", "not a pickle"),
    "no mark": (b"\x80\x02t.", "not a pickle"),
    "no memo": (b"\x80\x02h\7.", "not a pickle"),
    "an unknown operation": (b"\x80\x02\xff.", "not a pickle"),
    "a number of many digits": (b"I" + b"9" * 10000 + b"\n.", "not a pickle"),
    "protocol 77": (b"\x80\x4d\x82\x01.", "operation EXT1"),
    "an extension": (b"\x80\x02\x82\x01.", "operation EXT1"),
    "a class of old": (b"(ios\nsystem\n.", "operation INST"),
    "attributes of a function": (b"\x80\x02ctorch\nFloatStorage\n}b.", "a pickle that changes a Global"),
    "a call of a string": (b"\x80\x02X\1\0\0\0a)R.", "a pickle that calls 'str'"),
    "a call of a type": (b"\x80\x02ctorch\nFloatStorage\n)R.", "a pickle that calls"),
    "a storage that is a list": (b"\x80\x02]Q.", "a storage is said to be"),
    "a storage of 2 ** 60 values": (b"\x80\x02]q\0" + b"0]q\1(h\0h\0eq\0" * 60 + b"Q.", "a storage is said to be"),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_pickles_that_are_none(tmp_path, name, monkeypatch):
    monkeypatch.setattr("mzstore.formats.pytorch.MAX_LEAVES", 100_000)
    pickled, match = BOMBS[name]
    refused(tmp_path, zipped(pickled), match, mzstore.MzError)


def test_metadata_that_would_be_too_long(tmp_path):
    text = "x" * 100_000
    (tmp_path / "m.pt").write_bytes(saved({"w": torch.ones(1), "long": [text] * 10_000, "short": "s"}))
    with open_source(tmp_path / "m.pt") as model:
        assert model.metadata == {"short": "s"}
        assert model.notes == ["long is not kept as metadata: it is nested too deep, or too long"]


def test_two_tensors_of_one_name(tmp_path):
    refused(tmp_path, saved({"a": {"b": torch.ones(1)}, "a.b": torch.ones(1)}), r"two tensors would be called 'a\.b'")


def central(data: bytes, name: bytes) -> int:
    """Where the entry of ``name`` begins in the directory."""
    return data.index(name, data.index(b"PK\x01\x02")) - 46


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda d: d[:-30], "not a ZIP file"),
        (
            lambda d: d[: central(d, b"m/data/0") + 42] + struct.pack("<I", 0) + d[central(d, b"m/data/0") + 46 :],
            "lies upon another|no header",
        ),
        (
            lambda d: (
                d[: central(d, b"m/data/0") + 20]
                + struct.pack("<II", 1 << 30, 1 << 30)
                + d[central(d, b"m/data/0") + 28 :]
            ),
            "beyond the end",
        ),
        (
            lambda d: (
                d[: central(d, b"m/data/0") + 24] + struct.pack("<I", 1 << 30) + d[central(d, b"m/data/0") + 28 :]
            ),
            "two sizes",
        ),
        (
            lambda d: d[: central(d, b"m/data/0") + 10] + struct.pack("<H", 12) + d[central(d, b"m/data/0") + 12 :],
            "method 12",
        ),
        (
            lambda d: d[: central(d, b"m/data/0") + 8] + struct.pack("<H", 1) + d[central(d, b"m/data/0") + 10 :],
            "encrypted",
        ),
    ],
)
def test_zip_files_that_are_none(tmp_path, change, match):
    data = zipped(tensor_pickle(), data__0=bytes(8))
    refused(tmp_path, change(data), match, mzstore.MzError)


def test_a_zip_bomb_is_not_unpacked(tmp_path):
    """Ten thousand times as large; nothing asks for it, or the pickle itself is bounded."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/data.pkl", bytes(pickles.MAX_NBYTES + 1))
    refused(tmp_path, out.getvalue(), r"'m/data\.pkl' has 67108865 bytes", mzstore.FormatError)


@pytest.mark.parametrize("n", [0, 3, 12, 30, 200, 400, -1])
def test_legacy_files_that_are_cut_short(tmp_path, n):
    refused(tmp_path, saved(net().state_dict(), **LEGACY)[:n], ".", mzstore.MzError)


def test_any_bytes_give_an_error_of_ours(tmp_path):
    """Of each file every 37th byte is another one, and every 211th prefix is tried."""
    for data in (saved({"w": torch.arange(4)}), saved({"w": torch.arange(4)}, **LEGACY)):
        for i in range(0, len(data), 37):
            for bad in (data[:i] + bytes([data[i] ^ 0x55]) + data[i + 1 :], *([data[:i]] if i % 211 < 37 else [])):
                (tmp_path / "m.pt").write_bytes(bad)
                try:
                    with open_source(tmp_path / "m.pt") as model:
                        words(model)
                except mzstore.MzError:
                    pass


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(tmp_path):
    """A file of 400 MB, with a transposed tensor of 100 MB; forth and back."""
    code = """
import resource, sys
import numpy as np
import torch
def save(path):
    state = {f"w{i}": torch.randn(2500, 10000) for i in range(3)} | {"t": torch.randn(2500, 10000).T}
    torch.save(state, path)
save(sys.argv[1])
"""
    subprocess.run([sys.executable, "-c", code, tmp_path / "m.pt"], check=True)
    code = """
import resource, sys
import mzstore, mzstore.convert
import numpy as np
mzstore.save(sys.argv[4], {"w": np.random.default_rng(0).standard_normal((300, 400)).astype(np.float32)})
mzstore.convert(sys.argv[4], sys.argv[4] + ".pt")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
mzstore.convert(sys.argv[1], sys.argv[2], threads=2)
mzstore.convert(sys.argv[2], sys.argv[3], threads=2)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    places = [tmp_path / name for name in ("m.pt", "m.mz", "back.pt", "small.mz")]
    done = subprocess.run([sys.executable, "-c", code, *places], check=True, capture_output=True, text=True)
    assert int(done.stdout) < 400 << 10  # two tensors that are read ahead, and what waits to be encoded
    state = torch.load(tmp_path / "m.pt", weights_only=True, mmap=True)
    again = torch.load(tmp_path / "back.pt", weights_only=True, mmap=True)
    assert all(torch.equal(again[name], tensor) for name, tensor in state.items())

"""Parameter files of MXNet as tensors, and the same files back.

tests/data/mxnet holds what MXNet 1.9.1 wrote, by the write.py beside it; older versions are made here by hand, as NDArray::LegacyLoad has them.
"""

import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from foreign import read
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import bits

import mzstore
from mzstore.errors import FormatError, MzError, UnsupportedError
from mzstore.formats.mxnet import V1, V2, V3

WRITTEN = Path(__file__).parent / "data" / "mxnet"
NAMES = ["float16", "float32", "float64", "int32", "int64", "int8", "uint8"]
WRITTEN_VALUES = {
    "dense.params": {f"arg:{name}": np.arange(6, dtype=name).reshape(2, 3) for name in NAMES}
    | {"aux:scalar": np.array([2.5], "f4"), "a layer.weight": np.arange(24, dtype="f4").reshape(1, 2, 3, 4)},
    "list.params": {"0": np.ones(2, "f4"), "1": np.zeros(3, "f4")},
    "np.params": {"scalar": np.array(2.5, "f4"), "empty": np.zeros((0, 3), "f4"), "flag": np.array([1, 0], "f4")},
}


@pytest.mark.parametrize("name", WRITTEN_VALUES)
def test_what_mxnet_wrote(tmp_path, name):
    shutil.copy(WRITTEN / name, tmp_path / name)
    mzstore.convert(tmp_path / name, tmp_path / "m.mz", check=True)
    assert mzstore.verify(tmp_path / "m.mz").ok
    with mzstore.open(tmp_path / "m.mz") as model:
        found = model.load()
    assert {k: bits(v) for k, v in found.items()} == {k: bits(v) for k, v in WRITTEN_VALUES[name].items()}
    mzstore.convert(tmp_path / "m.mz", tmp_path / "back.params")
    assert (tmp_path / "back.params").read_bytes() == (WRITTEN / name).read_bytes()


@pytest.mark.parametrize("kind", ["row_sparse", "csr"])
def test_sparse_arrays_are_refused_by_name(kind):
    with pytest.raises(UnsupportedError, match=rf"array 's' is sparse \({kind}\)"):
        read(WRITTEN / f"{kind}.params")


def params(*arrays: bytes, names: tuple[bytes, ...] = ()) -> bytes:
    head = struct.pack("<3Q", 0x112, 0, len(arrays))
    return (
        head + b"".join(arrays) + struct.pack("<Q", len(names)) + b"".join(struct.pack("<Q", len(n)) + n for n in names)
    )


def array(version: int | None, shape: tuple[int, ...] = (3,), type_: int = 0, data: bytes | None = None) -> bytes:
    if version is None:  # before versions: axes of 4 bytes
        head = struct.pack(f"<I{len(shape)}I", len(shape), *shape)
    else:
        storage = b"" if version == V1 else bytes(4)
        head = struct.pack("<I", version) + storage + struct.pack(f"<i{len(shape)}q", len(shape), *shape)
    return head + struct.pack("<3i", 1, 0, type_) + (VALUES if data is None else data)


VALUES = np.arange(3, dtype="<f4").tobytes()


@pytest.mark.parametrize("version", [None, V1, V2, V3])
def test_every_version(tmp_path, version):
    content = params(array(version), array(version, (2, 2), 12, bytes(range(8))), names=(b"arg:w", b"aux:b"))
    (tmp_path / "m.params").write_bytes(content)
    found = read(tmp_path / "m.params")
    assert found["arg:w"].tolist() == [0, 1, 2]
    assert (str(found["aux:b"].dtype), found["aux:b"].tobytes()) == ("bfloat16", bytes(range(8)))
    mzstore.convert(tmp_path / "m.params", tmp_path / "m.mz")
    mzstore.convert(tmp_path / "m.mz", tmp_path / "back.params")
    assert (tmp_path / "back.params").read_bytes() == content


def test_arrays_without_values(tmp_path):
    none = struct.pack("<Iii", V2, 0, 0)
    unknown = struct.pack("<Iiiq", V3, 0, 1, -1)
    (tmp_path / "m.params").write_bytes(params(none, array(V2), unknown, names=(b"a", b"w", b"b")))
    report = mzstore.convert(tmp_path / "m.params", tmp_path / "m.mz")
    assert report.notes == ("2 arrays have no values",)
    assert list(read(tmp_path / "m.mz")) == ["w"]


@pytest.mark.parametrize(
    ("content", "error", "text"),
    [
        (struct.pack("<3Q", 0x112, 0, 2**60), FormatError, "arrays in 24 bytes"),
        (params(array(V2, (2**62,))), FormatError, "ends at"),
        (params(array(V2, (2**40, 2**40))), FormatError, "an array of shape"),
        (params(array(V2, (2**32, 2**32))), FormatError, "an array of shape"),
        (params(struct.pack("<I", 33) + bytes(400)), FormatError, "an array of 33 axes"),
        (params(struct.pack("<I", 2**32 - 1) + bytes(400)), FormatError, "axes"),
        (params(struct.pack("<Iii", V2, 0, 2**31 - 1)), FormatError, "axes"),
        (params(struct.pack("<Ii", V2, 7) + bytes(50)), FormatError, "storage type 7"),
        (params(array(V2, type_=99)), UnsupportedError, "type 99"),
        (params(array(V2, type_=-1)), UnsupportedError, "type -1"),
        (params(array(V2), names=(b"a", b"b")), FormatError, "2 names for 1 arrays"),
        (params(array(V2), array(V2), names=(b"a", b"a")), FormatError, "occur twice"),
        (params(array(V2), names=(b"\xff",)), FormatError, "not UTF-8"),
        (params(array(V2), names=(b"x" * 5000,)), FormatError, "a name of 5,000 bytes"),
        (params(array(V2)) + b"more", FormatError, "it goes on behind byte"),
        (b"shopping list", FormatError, "does not begin as one|in the middle"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_hostile_files(tmp_path, content, error, text):
    (tmp_path / "m.params").write_bytes(content)
    with pytest.raises(error, match=text) as caught:
        mzstore.convert(tmp_path / "m.params", tmp_path / "m.mz")
    assert caught.value.where
    assert not (tmp_path / "m.mz").exists()


def test_cut_short_anywhere(tmp_path):
    content = (WRITTEN / "dense.params").read_bytes()
    for n in [*range(0, len(content), 3), len(content) - 1]:
        (tmp_path / "m.params").write_bytes(content[:n])
        with pytest.raises(FormatError):
            read(tmp_path / "m.params")


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_byte_changed(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "changed.params"
    content = bytearray((WRITTEN / data.draw(st.sampled_from(["np.params", "csr.params"]))).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        found = read(path)
    except MzError:
        return
    assert sum(value.nbytes for value in found.values()) <= len(content)

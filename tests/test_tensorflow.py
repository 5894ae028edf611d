"""Checkpoints and SavedModels of TensorFlow: variables as tensors, and the same files back.

tests/data/tensorflow holds what TensorFlow 2.21 wrote, by the write.py beside it; other files are made here by hand of its format.
"""

import shutil
import struct
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from foreign import read
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import bits

import mzstore
from mzstore.errors import CorruptError, FormatError, MzError, StorageError, UnsupportedError
from mzstore.formats.tensorflow import MAGIC, masked
from mzstore.payload import crc32c

WRITTEN = Path(__file__).parent / "data" / "tensorflow"
NAMES = [
    "bfloat16",
    "bool",
    "complex128",
    "complex64",
    "float16",
    "float32",
    "float64",
    "int16",
    "int32",
    "int64",
    "int8",
    "uint16",
    "uint32",
    "uint64",
    "uint8",
]


def test_what_tensorflow_wrote(tmp_path):
    for name in ("ckpt.index", "ckpt.data-00000-of-00001"):
        shutil.copy(WRITTEN / name, tmp_path / name)
    report = mzstore.convert(tmp_path / "ckpt.index", tmp_path / "m.mz", check=True)
    assert report.notes == ("1 entries of strings stay in the data files",)
    assert mzstore.verify(tmp_path / "m.mz").ok
    with mzstore.open(tmp_path / "m.mz") as model:
        found = model.load()
    suffix = "/.ATTRIBUTES/VARIABLE_VALUE"
    for name in NAMES:
        values = np.arange(6).reshape(2, 3) % (2 if name == "bool" else 99)
        expected = values.astype(getattr(ml_dtypes, name, name))
        assert bits(found.pop(f"m/values/{name}{suffix}")) == bits(expected)
    assert found.pop(f"m/empty{suffix}").shape == (0, 3)
    assert found.pop(f"m/scalar{suffix}") == np.float32(2.5)
    assert not found
    mzstore.convert(tmp_path / "m.mz", tmp_path / "back")
    assert {p.name: p.read_bytes() for p in (tmp_path / "back").iterdir()} == {
        p.name: p.read_bytes() for p in tmp_path.glob("ckpt.*")
    }


def varint(value: int) -> bytes:
    return bytes([value & 127 | 128]) + varint(value >> 7) if value > 127 else bytes([value])


def message(*fields: tuple[int, bytes | int]) -> bytes:
    return b"".join(
        varint(number << 3) + varint(value) if isinstance(value, int)
        else varint(number << 3 | 2) + varint(len(value)) + value
        for number, value in fields
    )  # fmt: skip


def sealed(content: bytes, compressed: int = 0) -> bytes:
    body = content + bytes([compressed])
    return body + struct.pack("<I", masked(crc32c(body)))


def block(entries: list[tuple[bytes, bytes]]) -> bytes:
    """With keys by what they share with those before; one place to begin at."""
    content, before = b"", b""
    for key, value in entries:
        shared = next(
            (i for i, (a, b) in enumerate(zip(before, key, strict=False)) if a != b), min(len(before), len(key))
        )
        content += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        before = key
    return content + struct.pack("<2I", 0, 1)


def table(*blocks: bytes, compressed: int = 0) -> bytes:
    file, handles = b"", []
    for content in blocks:
        handles.append(varint(len(file)) + varint(len(content)))
        file += sealed(content, compressed)
    index = block([(b"\xff%d" % i, handle) for i, handle in enumerate(handles)])
    at, file = len(file), file + sealed(index)
    return file + (varint(0) * 2 + varint(at) + varint(len(index))).ljust(40, b"\0") + MAGIC


def entry(value: bytes, shape=(3,), dtype=1, shard=0, offset=0, **more: int) -> bytes:
    dims = b"".join(message((2, message((1, extent)))) for extent in shape)
    numbers = (1, dtype), (2, dims), (3, shard), (4, offset), (5, more.get("size", len(value)))
    return message(*numbers) + b"\x35" + struct.pack("<I", more.get("crc", masked(crc32c(value))))


VALUES = np.arange(3, dtype="<f4").tobytes()
HEADER = (b"", message((1, 1), (3, message((1, 1)))))


def checkpoint(folder: Path, index: bytes, *data: bytes, name: str = "c") -> Path:
    (folder / f"{name}.index").write_bytes(index)
    for i, content in enumerate(data):
        (folder / f"{name}.data-{i:05d}-of-{len(data):05d}").write_bytes(content)
    return folder / f"{name}.index"


def of_entry(value: bytes, name: bytes = b"w") -> bytes:
    return table(block([HEADER, (name, value)]))


def test_several_data_files_and_blocks(tmp_path):
    """Tensors in two files, keys that share their beginnings, bytes between them that nobody knows."""
    other = np.arange(4, dtype="<i8").tobytes()
    index = table(
        block(
            [(b"", message((1, 2))), (b"layer/a", entry(VALUES, offset=5)), (b"layer/b", entry(other, (2, 2), 9, 1))]
        ),
        block([(b"layer/c", entry(VALUES, offset=17))]),
    )
    path = checkpoint(tmp_path, index, b"head!" + VALUES * 2 + b"tail", other)
    assert {name: value.tolist() for name, value in read(path).items()} == {
        "layer/a": [0, 1, 2], "layer/b": [[0, 1], [2, 3]], "layer/c": [0, 1, 2],
    }  # fmt: skip
    mzstore.convert(path, tmp_path / "m.mz", check=True)
    mzstore.convert(tmp_path / "m.mz", tmp_path / "back")
    assert {p.name: p.read_bytes() for p in (tmp_path / "back").iterdir()} == {
        p.name: p.read_bytes() for p in tmp_path.glob("c.*")
    }


def test_a_saved_model(tmp_path):
    """The directory as it is: the graph and so on are assets."""
    saved = tmp_path / "saved"
    (saved / "variables").mkdir(parents=True)
    (saved / "assets").mkdir()
    (saved / "saved_model.pb").write_bytes(b"\x08\x01 a graph")
    (saved / "assets" / "vocabulary.txt").write_text("a b c")
    checkpoint(saved / "variables", of_entry(entry(VALUES)), VALUES, name="variables")
    before = {p.relative_to(saved).as_posix(): p.read_bytes() for p in saved.rglob("*") if p.is_file()}
    mzstore.convert(saved, tmp_path / "m.mz", check=True)
    with mzstore.open(tmp_path / "m.mz") as model:
        assert model["variables/w"].read().tolist() == [0, 1, 2]
        assert sorted(model.assets) == ["assets/vocabulary.txt", "saved_model.pb"]
    mzstore.convert(tmp_path / "m.mz", tmp_path / "back")
    back = tmp_path / "back"
    assert {p.relative_to(back).as_posix(): p.read_bytes() for p in back.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("index", "error", "text"),
    [
        (of_entry(entry(VALUES, (4,))), FormatError, "has 12 bytes, and should have 16"),
        (of_entry(entry(VALUES, (2**62, 2**62))), FormatError, "larger than"),
        (of_entry(entry(VALUES, (2**64 - 1,))), FormatError, "larger than|should have"),
        (of_entry(entry(VALUES, (1,) * 40)), FormatError, "more than 32 dimensions"),
        (of_entry(entry(VALUES, offset=1)), FormatError, "ends at byte 13 of 'c.data-00000-of-00001', that at 12"),
        (of_entry(entry(VALUES, offset=2**63)), FormatError, "ends at byte"),
        (of_entry(entry(VALUES, size=2**63)), FormatError, "ends at byte"),
        (of_entry(entry(VALUES, shard=1)), FormatError, "lies in file 1 of 1"),
        (of_entry(entry(VALUES, shard=2**64 - 1)), FormatError, "lies in file"),
        (of_entry(entry(VALUES), b"\xff"), FormatError, "codec can't decode"),
        (of_entry(entry(VALUES) + message((7, b""))), UnsupportedError, "saved in slices"),
        (of_entry(b"\x2b"), FormatError, "wire type 3"),
        (table(block([(b"", message((1, 0))), (b"w", entry(VALUES))])), FormatError, "0 data files"),
        (table(block([(b"", message((1, 2**62)))])), FormatError, "data files"),
        (table(block([(b"", message((1, 1), (2, 1)))])), UnsupportedError, "big-endian"),
        (table(block([HEADER, (b"w", entry(VALUES)), (b"v", entry(VALUES))])), FormatError, "not in order"),
        (table(block([HEADER, (b"w", entry(VALUES)), (b"w", entry(VALUES))])), FormatError, "not in order"),
        (table(block([HEADER]), compressed=1), UnsupportedError, "Snappy"),
        (table(b"\0" * 3), FormatError, "cut short"),
        (table(struct.pack("<I", 2**32 - 1)), FormatError, "cut short"),
        (table(b"\x05\x01\x01wv" + struct.pack("<2I", 0, 1)), FormatError, "malformed"),
        (table(b"\x00\x7f\x01wv" + struct.pack("<2I", 0, 1)), FormatError, "malformed"),
        (table(b"\xff" * 11 + struct.pack("<2I", 0, 1)), FormatError, "does not end"),
        (bytes(40) + MAGIC, FormatError, "does not lie in its index"),
        (b"\0\0" + varint(2**62) + varint(9) + bytes(28) + MAGIC, FormatError, "does not lie in its index|no footer"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_hostile_indexes(tmp_path, index, error, text):
    path = checkpoint(tmp_path, index, VALUES)
    with pytest.raises(error, match=text) as caught:
        mzstore.convert(path, tmp_path / "m.mz")
    assert caught.value.where
    assert not (tmp_path / "m.mz").exists()


def test_damage_is_found(tmp_path):
    index = bytearray(of_entry(entry(VALUES)))
    index[3] ^= 1
    with pytest.raises(CorruptError, match="checksum of the block at byte 0"):
        mzstore.convert(checkpoint(tmp_path, bytes(index), VALUES), tmp_path / "m.mz")
    with pytest.raises(CorruptError, match="checksum of tensor 'w' does not hold"):
        mzstore.convert(checkpoint(tmp_path, of_entry(entry(VALUES)), b"\1" + VALUES[1:]), tmp_path / "m.mz")
    (tmp_path / "c.data-00000-of-00001").unlink()
    with pytest.raises(StorageError, match=r"c\.data-00000-of-00001"):
        mzstore.convert(tmp_path / "c.index", tmp_path / "m.mz")
    assert not (tmp_path / "m.mz").exists()


def test_cut_short_at_every_byte(tmp_path):
    index = of_entry(entry(VALUES))
    for n in range(len(index)):
        with pytest.raises(MzError):
            read(checkpoint(tmp_path, index[:n], VALUES))
    for n in range(len(VALUES)):
        with pytest.raises(MzError):
            read(checkpoint(tmp_path, index, VALUES[:n]))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_byte_changed(tmp_path_factory, data):
    """Where its checksum holds again, what is malformed is refused nevertheless."""
    folder = tmp_path_factory.getbasetemp() / "changed"
    folder.mkdir(exist_ok=True)
    content = bytearray(block([HEADER, (b"w", entry(VALUES))]))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = read(checkpoint(folder, table(bytes(content)), VALUES))
    except MzError:
        return
    assert all(value.nbytes <= len(VALUES) for value in found.values())


@pytest.mark.slow
def test_tensorflow_reads_what_comes_back(tmp_path):
    pytest.importorskip("tensorflow")
    done = subprocess.run(
        [sys.executable, WRITTEN / "write.py"], cwd=tmp_path, capture_output=True, check=False, text=True
    )
    assert done.returncode == 0, done.stderr
    import tensorflow as tf

    mzstore.convert(tmp_path / "saved", tmp_path / "m.mz", check=True)
    mzstore.convert(tmp_path / "m.mz", tmp_path / "back")
    model = tf.saved_model.load(tmp_path / "back")
    assert model(np.eye(3, dtype="f4")).numpy().tolist() == np.arange(12.0).reshape(3, 4).tolist()
    reader = tf.train.load_checkpoint(tmp_path / "ckpt")
    found = read(tmp_path / "ckpt.index")
    assert len(found) >= 17
    for name, value in found.items():
        assert bits(reader.get_tensor(name)) == bits(value)

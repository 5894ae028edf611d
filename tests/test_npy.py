"""Arrays of NumPy: what NumPy writes is read, and what is written NumPy reads. Nothing in them is run."""

import io
import os
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from foreign import Runs
from numpy.lib import format as npy
from samples import random_bits

import mzstore
from mzstore.dtypes import DTYPES
from mzstore.formats import open_source

NUMPYS = [name for name, dtype in DTYPES.items() if dtype.numpy.type.__module__ == "numpy"]


def arrays() -> dict[str, np.ndarray]:
    found = {name: random_bits(name, (5, 6), i) for i, name in enumerate(NUMPYS) if name != "bool"}
    found |= {
        "bool": np.array([[True, False]]),
        "scalar": np.array(1.5),
        "empty": np.zeros((0, 3)),
        "layer/0.weight": np.ones(3),
    }
    return found


def same(found: mzstore.Model, expected: dict[str, np.ndarray]) -> None:
    assert set(found) == set(expected)
    for name, values in expected.items():
        got = found[name][...]
        assert (got.dtype, got.shape) == (values.dtype.newbyteorder("<"), values.shape)
        assert got.tobytes() == values.astype(values.dtype.newbyteorder("<")).tobytes()


def test_npz_both_ways(tmp_path):
    np.savez(tmp_path / "m.npz", **arrays())
    mzstore.convert(tmp_path / "m.npz", tmp_path / "m.mz", check=True)
    with mzstore.open(tmp_path / "m.mz") as model:
        same(model, arrays())
    mzstore.convert(tmp_path / "m.mz", tmp_path / "back.npz")
    assert (tmp_path / "back.npz").read_bytes() == (tmp_path / "m.npz").read_bytes()
    mzstore.save(tmp_path / "n.mz", arrays())
    assert "a new npz file" in mzstore.convert(tmp_path / "n.mz", tmp_path / "new.npz").notes[0]
    with np.load(tmp_path / "new.npz", allow_pickle=False) as found:
        assert set(found) == set(arrays())
        assert all(found[name].tobytes() == values.tobytes() for name, values in arrays().items())
        assert all(
            found[name].dtype == values.dtype and found[name].shape == values.shape for name, values in arrays().items()
        )


@pytest.mark.parametrize("name", arrays())
def test_npy_both_ways(tmp_path, name):
    values = arrays()[name]
    np.save(tmp_path / "weights.npy", values)
    mzstore.convert(tmp_path / "weights.npy", tmp_path / "m.mz")
    with mzstore.open(tmp_path / "m.mz") as model:
        same(model, {"weights": values})
    mzstore.convert(tmp_path / "m.mz", tmp_path / "back.npy")
    assert (tmp_path / "back.npy").read_bytes() == (tmp_path / "weights.npy").read_bytes()
    mzstore.save(tmp_path / "n.mz", {"w": values})
    mzstore.convert(tmp_path / "n.mz", tmp_path / "new.npy")
    assert (tmp_path / "new.npy").read_bytes() == (tmp_path / "weights.npy").read_bytes()


OTHERS = {
    "fortran": np.asfortranarray(np.arange(24, dtype=np.int16).reshape(2, 3, 4)),
    "big": np.arange(5, dtype=">f4"),
    "big fortran": np.asfortranarray(np.arange(6, dtype=">u2").reshape(2, 3)),
    "complex fortran": np.asfortranarray((np.arange(6) + 1j).reshape(2, 3)),
    "vector": np.asfortranarray(np.arange(4)),
    "row": np.asfortranarray(np.arange(4).reshape(1, 4)),
}


@pytest.mark.parametrize("compressed", [False, True])
def test_other_orders_and_compressed_members(tmp_path, compressed):
    (np.savez_compressed if compressed else np.savez)(tmp_path / "m.npz", **OTHERS)
    notes = mzstore.convert(tmp_path / "m.npz", tmp_path / "m.mz", check=True).notes
    assert "it comes back with equal tensors, and not byte for byte" in notes[0]
    with mzstore.open(tmp_path / "m.mz") as model:
        same(model, OTHERS)
        assert not model.document.layouts
    with open_source(tmp_path / "m.npz") as model:
        for tensor in reversed(list(model.tensors)):
            n = int(np.prod(tensor.spec.word_shape))
            whole = tensor.read(0, n)
            assert [tensor.read(i, i + 1).item() for i in reversed(range(n))] == whole.tolist()[::-1]
    found = mzstore.convert(tmp_path / "m.mz", tmp_path / "back.npz")
    assert "not the bytes of a file that they came from" in found.notes[0]
    with np.load(tmp_path / "back.npz") as again:
        assert all((again[name] == values).all() for name, values in OTHERS.items())


def test_a_few_values_in_another_order_are_kept_as_they_are(tmp_path):
    expected = {"large": np.random.default_rng(0).standard_normal(10_000), "f": OTHERS["fortran"], "b": OTHERS["big"]}
    np.savez(tmp_path / "m.npz", **expected)
    mzstore.convert(tmp_path / "m.npz", tmp_path / "m.mz", check=True)
    with mzstore.open(tmp_path / "m.mz") as model:
        same(model, expected)
    mzstore.convert(tmp_path / "m.mz", tmp_path / "back.npz")
    assert (tmp_path / "back.npz").read_bytes() == (tmp_path / "m.npz").read_bytes()


def test_text_is_left_out_and_comes_back(tmp_path):
    np.savez(
        tmp_path / "m.npz",
        w=np.ones(3),
        names=np.array(["a", "bc"]),
        format=np.array(b"csr"),
        day=np.array("2026-01-01", "M8[D]"),
    )
    notes = mzstore.convert(tmp_path / "m.npz", tmp_path / "m.mz").notes
    assert [note.partition(" ")[0] for note in notes] == ["names", "format", "day"]
    mzstore.convert(tmp_path / "m.mz", tmp_path / "back.npz")
    assert (tmp_path / "back.npz").read_bytes() == (tmp_path / "m.npz").read_bytes()
    np.save(tmp_path / "t.npy", np.array(["a"]))
    with pytest.raises(mzstore.UnsupportedError, match="text or dates"):
        mzstore.convert(tmp_path / "t.npy", tmp_path / "x.mz")


def test_what_numpy_has_not(tmp_path):
    mzstore.save(tmp_path / "m.mz", {"w": np.ones(3, ml_dtypes.bfloat16), "v": np.ones(2)})
    with pytest.raises(ValueError, match="tensor 'w': NumPy has no bfloat16; cast it"):
        mzstore.convert(tmp_path / "m.mz", tmp_path / "m.npz")
    with pytest.raises(ValueError, match=r"a \.npy file holds one tensor, and there are 2"):
        mzstore.convert(tmp_path / "m.mz", tmp_path / "m.npy")
    assert not (tmp_path / "m.npz").exists()
    mzstore.convert(tmp_path / "m.mz", tmp_path / "m.npz", dtype="float32")
    mzstore.convert(tmp_path / "m.mz", tmp_path / "v.npy", include="v")
    assert np.load(tmp_path / "v.npy").tolist() == [1, 1]
    for name in ("/etc/passwd", "a/../../b", "..", "a\\..\\b"):
        mzstore.save(tmp_path / "m.mz", {name: np.ones(1)})
        with pytest.raises(ValueError, match="no member of a ZIP file may have such a name"):
            mzstore.convert(tmp_path / "m.mz", tmp_path / "x.npz")


def header(text: str, version: tuple[int, int] = (1, 0)) -> bytes:
    data = text.encode() + b"\n"
    return npy.MAGIC_PREFIX + bytes(version) + len(data).to_bytes(2 if version[0] == 1 else 4, "little") + data


GOOD = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}"


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (header(GOOD) + bytes(7), "an array of 8 bytes in a file of"),
        (header(GOOD)[:-5], "not an array of NumPy"),
        (header(GOOD, (3, 0)) + bytes(8), "version"),
        (header(GOOD, (9, 9)) + bytes(8), "version"),
        (header(GOOD.replace("(2,)", f"({1 << 62},)")), "larger than"),
        (header(GOOD.replace("(2,)", "(-2,)")), "shape|not an array"),
        (header(GOOD.replace("(2,)", "(True,)")) + bytes(8), "shape|not an array|integers"),
        (header(GOOD.replace("(2,)", "(" + "1," * 40 + ")")) + bytes(8), "40 dimensions"),
        (header(GOOD.replace("<f4", "|V2")) + bytes(8), r"an array of \|V2"),
        (header(GOOD.replace("'<f4'", "[('a', '<f4')]")) + bytes(8), "an array of"),
        (header(GOOD.replace("<f4", "<f16")) + bytes(99), "an array of float128|an array of"),
        (header(GOOD.replace("<f4", "|O")) + bytes(99), "pickled objects: refused"),
        (header("__import__('os').system('true')"), "not an array of NumPy"),
        (header("(" * 5000 + ")" * 5000), "not an array of NumPy"),
        (header(" " * 20_000 + GOOD) + bytes(8), "not an array of NumPy"),
    ],
)  # fmt: skip
def test_files_that_are_none(tmp_path, data, match):
    (tmp_path / "m.npy").write_bytes(data)
    with pytest.raises((mzstore.FormatError, mzstore.UnsupportedError), match=match):
        mzstore.convert(tmp_path / "m.npy", tmp_path / "x.mz")
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../w.npy", data)
    (tmp_path / "m.npz").write_bytes(out.getvalue())
    with pytest.raises((mzstore.FormatError, mzstore.UnsupportedError)):
        mzstore.convert(tmp_path / "m.npz", tmp_path / "x.mz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.npy", "m.npz"]


def test_objects_are_refused_and_not_made(tmp_path):
    mark = tmp_path / "was here"
    np.savez(tmp_path / "m.npz", w=np.ones(2), o=np.array([Runs(os.system, f"touch '{mark}'"), None], dtype=object))
    np.save(tmp_path / "m.npy", np.array([Runs(Path.touch, mark)], dtype=object))
    for name in ("m.npz", "m.npy"):
        with pytest.raises(mzstore.UnsupportedError, match="pickled objects: refused, and nothing of it was run"):
            mzstore.convert(tmp_path / name, tmp_path / "x.mz")
    assert not mark.exists()


def test_a_member_that_is_longer_than_it_says(tmp_path):
    """A ZIP bomb is inflated as far as its array goes."""
    np.savez_compressed(tmp_path / "m.npz", w=np.zeros(10_000))
    data = bytearray((tmp_path / "m.npz").read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at + 24 : at + 28] = (80_128 - 50_000).to_bytes(4, "little")
    (tmp_path / "m.npz").write_bytes(data)
    with pytest.raises(mzstore.MzError, match="size or CRC-32 do not hold"):
        mzstore.convert(tmp_path / "m.npz", tmp_path / "x.mz")

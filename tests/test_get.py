"""``get``: names and slices as they are typed, and what comes of them."""

import io

import ml_dtypes
import numpy as np
import pytest
from samples import bits, random_bits, saved, weights

import mzstore
from mzstore import model as model_module
from mzstore.dtypes import DTYPES
from mzstore.get import find, parse_index, preview, write_npy

VALUES = np.arange(6 * 8 * 10, dtype=np.int32).reshape(6, 8, 10)


@pytest.mark.parametrize(
    "text",
    ["0", "-1", "...", ":", "1:", ":3", "1:3", "::2", "::-1", "5:1:-2", "-3:-1", "+1", "1,2", "1,2,3", "1,", "1,...", "...,1",
     ":,1", "1:3,::2,...", " 1 : 3 , : : 2 ", "100:200", "...,", "0,...,0"],
)  # fmt: skip
def test_slices_mean_what_they_mean_in_numpy(text):
    expected = eval(f"VALUES[{text}]")
    with mzstore.open(saved({"w": VALUES})) as model:
        tensor, index = find(model, f"w[{text}]")
        assert bits(tensor[index]) == bits(expected)


@pytest.mark.parametrize(
    "text",
    ["", ",", "1,,2", "1.5", "a", "1:2:3:4", "None", "True", "[1]", "__import__('os')", "1e3", "0x1", "1_0", "٣", "(1)", "..", "1 2", "- 1", "1: :2 3",
     "9" * 5000],
)  # fmt: skip
def test_what_is_no_slice(text):
    with pytest.raises(ValueError, match="is no slice: integers, START:STOP:STEP"):
        parse_index(text)


def test_two_ellipses():
    with mzstore.open(saved({"w": VALUES})) as model:
        tensor, index = find(model, "w[...,...]")
        with pytest.raises(IndexError, match="single ellipsis"):
            tensor[index]


def test_names_with_brackets():
    tensors = {
        "w": np.arange(4),
        "w[0]": np.arange(5),
        "w[0][1:3]": np.arange(6),
        "a]": np.arange(7),
        "[": np.arange(8),
    }
    with mzstore.open(saved(tensors)) as model:
        for text, expected in (
            ("w", np.arange(4)),
            ("w[1]", np.int64(1)),
            ("w[0]", np.arange(5)),  # the tensor of this very name
            ("w[0][2:]", np.arange(2, 5)),
            ("w[0][1:3]", np.arange(6)),
            ("w[0][1:3][0]", np.int64(0)),
            ("a]", np.arange(7)),
            ("[", np.arange(8)),
            ("[[1]", np.int64(1)),
        ):
            tensor, index = find(model, text)
            assert bits(np.asarray(tensor[index])) == bits(expected)
        for text in ("x", "x[1]", "w[1", "w1]", "w [1]"):
            with pytest.raises(KeyError, match="no tensor"):
                find(model, text)


@pytest.mark.parametrize("name", DTYPES)
def test_npy_holds_every_bit(name):
    values = random_bits(name, (3, 5), 0)
    file = io.BytesIO()
    said = write_npy(file, values[:, ::-2])
    file.seek(0)
    found = np.load(file, allow_pickle=False)
    assert found.shape == (3, 3)
    if DTYPES[name].numpy.type.__module__ == "numpy":
        assert said == ""
        assert bits(found) == bits(values[:, ::-2])
    else:
        assert said == found.dtype.name == f"uint{max(8, DTYPES[name].bits)}"
        expected = np.ascontiguousarray(values[:, ::-2]).view(found.dtype)
        np.testing.assert_array_equal(found, expected & 15 if DTYPES[name].packed else expected)


def test_nothing_half_written(tmp_path, monkeypatch):
    """What was there stays until all is written."""
    target = tmp_path / "w.npy"
    target.write_bytes(b"before")

    def fail(file, *_, **__):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", fail)
    with pytest.raises(OSError, match="No space left"):
        write_npy(target, np.zeros(3))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"w.npy": b"before"}


def text_of(values, index="...") -> list[str]:
    with mzstore.open(saved({"w": values})) as model:
        return preview(*find(model, f"w[{index}]"), 80)


def test_preview_of_few_values():
    assert text_of(np.arange(6, dtype=np.int16).reshape(2, 3)) == ["int16 [2, 3]", "[[0 1 2]", " [3 4 5]]"]
    assert text_of(np.arange(6.0), "-1") == ["float64 []", "5."]
    assert text_of(np.arange(6.0), ":0") == ["float64 [0]", "[]"]
    assert text_of(np.array([1, -2], np.int8).astype(ml_dtypes.bfloat16)) == ["bfloat16 [2]", "[ 1. -2.]"]
    assert text_of(np.array([1, -2], np.int8).astype(ml_dtypes.int4)) == ["int4 [2]", "[ 1 -2]"]


@pytest.mark.parametrize("index", ["...", "::-1, ::-2", "1:, 3", "2, :, ::-3", "...,::-1"])
def test_preview_of_many_values_shows_the_first(index):
    values = np.arange(20 * 30 * 40, dtype=np.int32).reshape(20, 30, 40)
    chosen = eval(f"values[{index}]")
    leading = (1,) * max(0, chosen.ndim - 2) + (4, 6)[-min(chosen.ndim, 2) :]
    first = chosen[tuple(slice(n) for n in leading)]
    head, *shown, note = text_of(values, index)
    assert head == f"int32 {list(chosen.shape)}"
    assert "\n".join(shown) == np.array2string(first)
    assert note == f"the first {' x '.join(map(str, first.shape))} of {chosen.size} values; -o FILE.npy saves all"


def test_preview_reads_only_what_it_shows(monkeypatch):
    """Of a tensor in 64 chunks, the one that has the first values."""
    values = weights((4096, 2048), 0, "bfloat16")
    keys = []
    with mzstore.open(saved({"w": values}, level="fast")) as model:
        read = model.reader.read_chunk
        monkeypatch.setattr(model.reader, "read_chunk", lambda key, slot: (keys.append(key), read(key, slot))[1])
        preview(model["w"], ..., 80)
        assert isinstance(model["w"], model_module.Tensor)
    assert keys
    assert {key.partition("/c/")[2].removeprefix("0/0/").removeprefix("0/0") for key in keys} <= {"", "0"}

"""``inspect``: a summary without a read of a chunk, for programs and for people."""

import io
import json

import numpy as np
import pytest
from bad_inputs import nodes
from rich.cells import cell_len
from rich.console import Console
from samples import saved, small_model, weights

import mzstore
from mzstore.archive import ArchiveReader
from mzstore.inspect import Summary, render, summarize
from mzstore.text import count, ratio, shown, size
from mzstore.tree import TreeReader


def summary(location) -> Summary:
    with mzstore.open(location) as model:
        return summarize(model)


def lines(of: Summary, width: int | None = None) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=width or 1 << 16, highlight=False)
    for part in render(of, width):
        console.print(part)
    return out.getvalue().splitlines()


@pytest.fixture
def no_chunk(monkeypatch):
    def never(*_):
        raise AssertionError("a chunk is read")

    for reader in (ArchiveReader, TreeReader):
        monkeypatch.setattr(reader, "read_chunk", never)
        monkeypatch.setattr(reader, "read_blocks", never)


@pytest.mark.usefixtures("no_chunk")
def test_json(forged, tmp_path):
    """Every member that the documentation names; the same for an archive and a tree but for the container itself."""
    found = {kind: summary(place).to_json() for kind, place in
             (("archive", forged.archive()), ("tree", forged.tree(tmp_path)))}  # fmt: skip
    for kind, doc in found.items():
        assert json.loads(json.dumps(doc, allow_nan=False)) == doc
        assert doc.pop("container") == kind
        assert doc.pop("location") == ("<memory>" if kind == "archive" else str(tmp_path))
        overhead = doc.pop("container_nbytes") - doc["stored_nbytes"] - doc["assets"][0]["nbytes"]
        assert doc.pop("overhead_nbytes") == overhead > 0
    doc = found["archive"]
    assert doc == found["tree"]
    assert doc["stored_nbytes"] == sum(len(data) for key, data in forged.payloads.items() if "/c/" in key)
    assert {key: doc[key] for key in ("format", "metadata", "assets", "layouts")} == {
        "format": 1,
        "metadata": {"made": "by forge"},
        "assets": [{"path": "config.json", "nbytes": 13}],
        "layouts": [],
    }
    tensors = {tensor.pop("name"): tensor for tensor in doc["tensors"]}
    assert list(tensors) == [*forged.values]
    assert tensors["planes"] == {
        "dtype": "bfloat16",
        "shape": [4, 6],
        "encoding": "planes",
        "same_as": None,
        "details": {"chunk_shape": [2, 6], "top_bits": 8, "ranks": False},
        "nbytes": 48,
        "stored_nbytes": sum(len(data) for key, data in forged.payloads.items() if key.startswith("planes/")),
        "chunks": 2,
        "sha256": forged.tensor("planes")["sha256"],
        "quality": None,
    }
    assert doc["quantized"] is None
    assert tensors["raw"]["details"] == {"chunk_shape": [4], "zstd": False, "constant": False}
    assert tensors["zstd"]["details"]["zstd"] is True
    assert tensors["constant"]["details"]["constant"] is True
    assert tensors["constant"]["chunks"] == 1
    assert tensors["narrow"]["details"]["stored_dtype"] == "bfloat16"
    assert tensors["symbols"]["details"]["top_bits"] == 10
    assert tensors["ranked"]["details"]["ranks"] is True
    assert tensors["ranked"]["chunks"] == 2
    assert tensors["ranked"]["details"]["escapes"] == 1
    tied = tensors["tied"]
    assert (tied["encoding"], tied["same_as"], tied["stored_nbytes"], tied["chunks"]) == ("same", "constant", 0, 0)


@pytest.mark.usefixtures("no_chunk")
def test_the_encoding_in_words(forged):
    how = {tensor.name: tensor.how() for tensor in summary(forged.archive()).tensors}
    assert how.pop("symbols").startswith("planes, ")
    assert how == {
        "raw": "raw",
        "zstd": "raw, zstd",
        "constant": "constant",
        "narrow": "raw, as bfloat16",
        "planes": "planes",
        "ranked": "planes, ranks",
        "four": "raw",
        "codes": "quantized, 16 levels",
        "grouped": "quantized + sparse, 100 levels, scales of 1x2",
        "pairs": "quantized, 300 levels",
        "tied": "same as constant",
    }


def test_a_table_where_there_is_room():
    table = lines(summary(saved({"a": weights((64, 96), 0, "bfloat16"), "b": np.zeros(300)})), 80)
    assert table[2].split() == ["tensor", "dtype", "shape", "encoding", "size", "stored", "ratio"]
    assert table[4].split()[:4] == ["a", "bfloat16", "[64,", "96]"]
    assert [line.split()[0] for line in table[4:6]] == ["a", "b"]
    assert table[7].split()[:2] == ["2", "tensors"]


@pytest.mark.parametrize("width", [None, 200, 80, 60])
def test_everything_fits_and_nothing_is_cut(width):
    names = [f"model.layers.{i}.self_attn.some_projection_with_a_long_name.weight" for i in range(3)]
    tensors = {name: weights((64, 96), i) for i, name in enumerate(names)} | {"模型" * 60: np.zeros(3)}
    tensors["tied"] = tensors[names[0]]
    found = lines(summary(saved(tensors, metadata={"note": "x" * 300}, assets={"a" * 90: b""})), width)
    if width:
        assert max(map(cell_len, found)) <= width
    text = "".join(line.strip() for line in found)
    for name in (*tensors, "x" * 300, "a" * 90):
        assert name in text
    assert "…" not in text


def test_small_things_take_one_line_each():
    """Even where the terminal is narrow, sizes stand in one column."""
    found = lines(summary(saved({"layer." + "x" * 70: weights((64, 96)), "b": np.zeros(300)})), 80)
    assert found[2] == "tensor"
    ends = {len(line) for line in found if line.startswith("  ") and line.endswith(" %")}
    assert len(ends) == 1


@pytest.mark.parametrize("text", ["\x1b[31mred", "two\nlines", "\r", "\u202egnp.exe", "\x9b1A", "\ud800"])
def test_what_could_move_the_cursor_is_escaped(text):
    assert shown(text).isprintable()
    assert shown(text) != text
    if text != "\ud800":
        found = "".join(lines(summary(saved({text: np.zeros(3), f"{text}2": np.zeros(3)}, metadata={text: text})), 100))
        assert text not in found
        assert found.count(shown(text)) == 5  # two names, one of them again as what the other is tied to; metadata


def test_names_are_no_markup():
    assert any("[bold]w[/]" in line for line in lines(summary(saved({"[bold]w[/]": np.zeros(3)}))))


def test_a_model_without_tensors():
    found = summary(saved({}))
    assert found.to_json()["tensors"] == []
    assert any("0 tensors" in line for line in lines(found, 80))


@pytest.mark.usefixtures("no_chunk")
def test_a_grid_that_somebody_made_up(forged, tmp_path):
    """Chunks are counted, not listed."""
    nodes.shapes("raw", [1 << 50], [1])(forged)
    (raw,) = [tensor for tensor in summary(forged.tree(tmp_path)).tensors if tensor.name == "raw"]
    assert raw.chunks == 1 << 50


def test_the_same_sizes_as_the_model_tells():
    with mzstore.open(saved(small_model())) as model:
        found = summarize(model)
        assert found.nbytes == model.nbytes
        assert {t.name: t.stored_nbytes for t in found.tensors} == {t.name: t.stored_nbytes for t in model.values()}


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1024**2 - 1, "1.0 MiB"), (45430528, "43.3 MiB"),
     (5 * 1024**3, "5.0 GiB"), (2**62, "4.0 EiB")],
)  # fmt: skip
def test_sizes(nbytes, text):
    assert size(nbytes) == text


def test_ratios_and_counts():
    assert [ratio(2, 3), ratio(0, 0), ratio(4, 2)] == ["66.7 %", "-", "200.0 %"]
    assert [count(1, "tensor"), count(0, "tensor"), count(12345, "tensor")] == [
        "1 tensor",
        "0 tensors",
        "12,345 tensors",
    ]

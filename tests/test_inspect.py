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
def no_chunk(forged, monkeypatch):  # behind the model, which is read while it is made
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
        "gaps": "sparse, 56.2 %",
        "far": "sparse, 1.33 %",
        "bitmap": "sparse, bitmap, quantized, 68.8 %",
        "pattern": "sparse, 2:4, 50 %",
        "blocks": "sparse, blocks of 2x2, quantized, 50 %",
        "product": "lowrank, rank 2, factors quantized and raw",
        "core": "tucker, ranks 2x3x2",
        "outer": "tucker, 2 outer products",
        "sum": "quantized + lowrank + sparse, 16 levels, rank 2, factors quantized and raw",
        "xor": "planes + raw, zstd",
        "tied": "same as constant",
    }


QUANTIZED = {
    "uniform": {"step": 0.008, "levels": 20},
    "affine": {"quantizer": "affine", "bits": 4, "group": 32},
    "nf4": {"quantizer": "nf4"},
    "nvfp4": {"quantizer": "nvfp4"},
}


def quantized_model() -> bytes:
    """A tensor of each of QUANTIZED, one of them with an outlier; one that is tied, one that is lossless."""
    tensors = {name: weights((150, 192), i) for i, name in enumerate(QUANTIZED)}
    tensors["uniform"][3, 4] = 2
    tensors |= {"tied": tensors["nf4"], "lossless": weights((64, 96), 9)}
    rules = [mzstore.Rule(name=name, **keys) for name, keys in {**QUANTIZED, "tied": QUANTIZED["nf4"]}.items()]
    return saved(tensors, recipe=mzstore.Recipe(rules))


@pytest.mark.usefixtures("no_chunk")
def test_quantized_tensors():
    data = quantized_model()
    found = summary(data)
    doc = found.to_json()
    assert json.loads(json.dumps(doc, allow_nan=False)) == doc
    tensors = {tensor["name"]: tensor for tensor in doc["tensors"]}
    with mzstore.open(data) as model:
        assert {name: tensor["quality"] for name, tensor in tensors.items() if name != "tied"} == {
            name: tensor.quality for name, tensor in model.items() if name != "tied"
        }
    assert tensors["tied"]["quality"] is tensors["lossless"]["quality"] is None
    details = {name: tensor["details"] for name, tensor in tensors.items()}
    assert details["affine"] == {
        "chunk_shape": [150, 192],
        "levels": 16,
        "per_byte": 2,
        "quantizer": "affine",
        "scales": [{"block": [1, 32], "dtype": "float16"}],
        "zero_point": {"block": [1, 32]},
        "outliers": False,
    }
    assert details["nvfp4"]["codebook"] == [16]
    assert details["nvfp4"]["scales"] == [
        {"block": [1, 16], "dtype": "float16"},
        {"block": [150, 192], "dtype": "float32"},
    ]
    assert details["uniform"]["outliers"] is True
    how = {tensor.name: tensor.how() for tensor in found.tensors}
    assert how["uniform"] == f"quantized + sparse, uniform, {details['uniform']['levels']} levels"
    assert how["affine"] == "quantized, affine, 16 levels, scales of 1x32"
    assert how["nf4"] == "quantized, nf4, 16 levels, scales of 1x64"
    reached = [tensors[name]["quality"]["reached"] for name in QUANTIZED]
    assert doc["quantized"] == {
        "size": 4 * 150 * 192,
        "bits": pytest.approx(np.mean([each["bits"] for each in reached])),
        "nmse": pytest.approx(np.mean([each["nmse"] for each in reached])),
        "snr_db": pytest.approx(-10 * np.log10(np.mean([each["nmse"] for each in reached]))),
        "max_error": max(each["max_error"] for each in reached),
    }


def test_sparse_tensors_factors_and_several_parts():
    rng = np.random.default_rng(4)
    tensors = {
        name: rng.standard_normal((256, 320), np.float32)
        for name in ("pruned", "codes", "2:4", "factors", "spqr", "sum")
    }
    taken = np.kron(rng.random((8, 8)) < 0.3, np.ones((32, 32))).astype(bool)
    tensors["blocks"] = np.where(taken, rng.standard_normal((256, 256), np.float32), np.float32(0))
    rules = [
        mzstore.Rule(name="pruned", sparsity=0.9),
        mzstore.Rule(name="codes", sparsity=0.9, bits=4),
        mzstore.Rule(name="2:4", pattern="2:4"),
        mzstore.Rule(name="factors", rank=8),
        mzstore.Rule(name="spqr", parts=["quantized bits=3", "sparse top=0.5%"]),
        mzstore.Rule(name="sum", parts=["lowrank rank=8", "quantized bits=3"]),
    ]
    file = io.BytesIO()
    mzstore.save(file, tensors, recipe=mzstore.Recipe(rules, defaults=False), show_progress=False)
    found = {tensor.name: tensor for tensor in summary(file.getvalue()).tensors}
    how = {name: tensor.how() for name, tensor in found.items()}
    assert how["pruned"] == "sparse, 10 %"
    assert how["codes"] == "sparse, quantized, 10 %"
    assert how["2:4"] == "sparse, 2:4, 50 %"
    assert how["factors"] == "lowrank, rank 8, factors planes"
    assert how["blocks"].startswith("sparse, blocks of 32x32, ")
    assert " %" in how["blocks"]
    levels = found["spqr"].details["levels"]
    assert how["spqr"] == f"quantized + sparse, uniform, {levels} levels"
    assert how["sum"].startswith("lowrank + quantized, rank 8, factors planes, uniform, ")
    details = {name: json.loads(json.dumps(tensor.to_json()))["details"] for name, tensor in found.items()}
    pruned = details["pruned"]
    assert (pruned["index"], pruned["block"], pruned["kept"]) == ("gaps", [1, 1], 0.1)
    assert 0.1 <= pruned["room"] < 0.11
    assert pruned["values"]["encoding"] == "planes"
    assert pruned["values"]["dtype"] == "float32"
    assert details["codes"]["values"]["levels"] > 4
    assert details["2:4"]["pattern"] == [2, 4]
    assert details["factors"]["left"]["encoding"] == "planes"
    assert details["factors"]["scale"] == 1
    (outliers,) = details["spqr"]["parts"]
    assert (outliers["encoding"], outliers["combine"], outliers["index"]) == ("sparse", "replace", "gaps")
    assert details["spqr"]["outliers"] is True
    (residual,) = details["sum"]["parts"]
    assert (residual["combine"], residual["quantizer"]) == ("add", "uniform")
    assert found["spqr"].to_json()["quality"]["asked"]["parts"][1] == {"encoding": "sparse", "top": 0.005}


@pytest.mark.parametrize("width", [None, 60])
def test_rates_and_errors_have_columns_where_there_are_some(width):
    found = summary(quantized_model())
    text = lines(found, width)
    heads = next(line for line in text if "dtype" in line)
    assert "SNR" in " ".join(text[text.index(heads) : text.index(heads) + 2])
    reached = found.tensors[1].reached
    assert sum(f"{reached.bits:.2f}  {reached.snr_db:.1f} dB" in line for line in text) == 1
    assert f"quantized 4 tensors, 94.9 % of all values: {found.reached}" in " ".join(map(str.strip, text))
    assert str(found.reached) == f"{found.reached.bits:.2f} bits per weight, SNR {found.reached.snr_db:.1f} dB"
    assert not any("SNR" in line for line in lines(summary(saved({"w": weights((64, 96))})), width))


@pytest.mark.parametrize(
    "lossy",
    [{}, {"reached": 3}, {"reached": {"bits": "4", "nmse": 0.1, "max_error": 1}}, {"reached": {"bits": 4, "nmse": -1, "max_error": 0}},
     {"reached": {"bits": 1e308, "nmse": 1e308, "max_error": 1}}, {"asked": [], "reached": []}, {"asked": {"quantizer": 7, "codebook": {}}}],
)  # fmt: skip
def test_what_others_may_say_of_their_values(lossy, tmp_path):
    mzstore.save(tmp_path / "m.zarr", {"w": weights((150, 192))}, recipe=mzstore.Recipe(quantizer="nf4"))
    root = json.loads((tmp_path / "m.zarr" / "zarr.json").read_text())
    root["consolidated_metadata"]["metadata"]["w"]["attributes"]["mzstore"]["lossy"] = lossy
    (tmp_path / "m.zarr" / "zarr.json").write_text(json.dumps(root))
    found = summary(tmp_path / "m.zarr")
    assert found.reached is None
    assert found.tensors[0].to_json()["quality"] == lossy
    assert any("quantized, 16 levels" in line for line in lines(found))


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

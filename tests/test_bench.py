"""The benchmark runs and its result has the shape that programs rely on. What it measures is not looked at."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import mzstore
from mzstore.formats import FILE_FORMATS

ROOT = Path(__file__).parents[1]
ALWAYS = {"mzstore fast", "mzstore balanced", "mzstore max", "zstd 3", "safetensors"}
PERHAPS = {"zipnn", "lmz 1", "lmz 9"}


@pytest.fixture
def tiny(tmp_path):
    rng = np.random.default_rng(7)
    path = tmp_path / "tiny.safetensors"
    tensors = {f"layers.{i}": rng.standard_normal((64, 96), np.float32) for i in range(3)}
    save_file(tensors | {"scalar": np.array(2.5, np.float32), "ids": np.arange(11)}, path)
    return path


def bench(*arguments):
    command = [sys.executable, ROOT / "tools" / "bench.py", *arguments, "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_lossless_as_json(tiny):
    result = json.loads(bench("lossless", tiny, "--dtype", "all", "--big", "0.01", "--json"))

    assert [model["dtype"] for model in result["models"]] == ["bf16", "fp16", "fp32"]
    for model in result["models"]:
        names = {row["name"] for row in model["rows"]}
        missing = {name for name in PERHAPS if name in result["missing"]}
        assert names >= ALWAYS
        assert names & PERHAPS == PERHAPS - missing  # a peer takes part or is named as missing
        assert any(name.startswith("zarr-python (") for name in names)
        for row in model["rows"]:
            assert row["nbytes"] / model["file_nbytes"] == pytest.approx(row["ratio"])
            for operation in ("encode", "decode"):
                assert row["gb_per_s"][operation]["1"] > 0
                assert row["seconds"][operation]["1"]["best"] <= row["seconds"][operation]["1"]["median"]
        ours = next(row for row in model["rows"] if row["name"] == "mzstore balanced")
        assert ours["seconds"].keys() == {"encode", "save", "decode", "load", "open"}
        assert 0 < ours["container_share"] < 1
        assert {"mzstore balanced load", "safetensors load", "mzstore balanced save"} <= model["new_process"].keys()

    assert result["machine"]["cores"] >= 1
    assert result["machine"]["libraries"]["numpy"] == np.__version__
    assert result["commit"].keys() == {"hash", "changed"}
    assert result["conditions"]
    for goal in result["goals"]:
        assert goal.keys() == {"goal", "limit", "measured", "met"}
        assert (goal["measured"] is None) == (goal["met"] is None)
    if not result["missing"]:
        assert all(goal["met"] is not None for goal in result["goals"])
    assert result["big"]["nbytes"] == pytest.approx(0.01e9, rel=0.01)
    assert 0 < result["big"]["stored_nbytes"] < result["big"]["nbytes"]
    assert result["import"]["seconds_beyond_numpy"]["best"] > 0


@pytest.mark.slow
def test_lossless_for_people(tiny):
    text = bench("lossless", tiny)
    assert "tiny.safetensors as fp32: 5 tensors" in text
    assert "not measured" in text  # goals for bf16, and what --big tells


def test_coder_as_json(tiny):
    result = json.loads(bench("coder", tiny, "--dtype", "bf16", "--json"))
    ratios = {row["name"]: row["ratio"] for row in result["rows"]}
    assert {"level 1", "level 3", "level 19", "huffman"} <= ratios.keys()
    assert result["nbytes"] == 3 * 64 * 96 + 1
    assert ratios["huffman"] > result["entropy"]


@pytest.mark.slow
def test_load_as_json(tiny):
    pytest.importorskip("s3fs")
    result = json.loads(bench("load", tiny, "--big", "0.02", "--links", "8", "--json"))

    assert [model["dtype"] for model in result["models"]] == ["fp32", "bf16"]
    for model in result["models"]:
        rows = {row["name"]: row for row in model["rows"]}
        assert {"mzstore, s3fs", "safetensors, s3fs"} <= rows.keys()
        assert rows.keys().isdisjoint(result["missing"])
        for row in rows.values():
            least = model["file_nbytes"] if not row["compressed"] else 0.9 * model["archive_nbytes"]
            assert row["nbytes"] >= least
            assert row["requests"] >= 1
            assert row["seconds"]["best"] > 0
    assert all(row["requests"] <= 2 for row in result["open"])
    for row in result["shards"]:
        assert row["loaded"]["requests"] == row["requests"]
        assert 0 <= row["loaded"]["nbytes"] - row["fetched_nbytes"] <= 2000 * row["requests"]  # headers
        assert row["wanted_nbytes"] <= row["fetched_nbytes"]
    assert {goal["goal"].partition(" ")[0] for goal in result["goals"]} >= {"open", "memory", "8-way"}
    assert all(goal["met"] is not None for goal in result["goals"])


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(mzstore, "Recipe"), reason="this mzstore does not quantize")
def test_lossy_as_json(tmp_path):
    rng = np.random.default_rng(8)
    tensors = {f"layers.{i}": rng.standard_normal((384, 400), np.float32) for i in range(2)}
    path, plot = tmp_path / "normal.safetensors", tmp_path / "new" / "plot.png"
    save_file(tensors | {"bias": np.ones(400, np.float32)}, path)
    result = json.loads(bench("lossy", path, "--offline", "--json", "--plot", plot))

    assert (result["n_tensors"], result["n_weights"]) == (2, 2 * 384 * 400)
    rows = {row["name"]: row for row in result["rows"]}
    assert {"mzstore 2", "mzstore 4", "mzstore 8", "NF4"} <= rows.keys()
    for kind in ("Q8_0", "Q4_K", "gguf Q4_K"):  # a peer takes part or is named as missing
        assert (kind in rows) != (kind in result["missing"])
    for row in rows.values():
        assert row["above_bound"] > 0  # these weights are normal: nothing is better
        assert row["weights_per_s"]["decode_bfloat16"] > 0
        assert row["weights_per_s"]["decode_float32"] > 0
    nf4 = rows["NF4"]
    assert nf4["at_its_snr"]["bits"] == pytest.approx(nf4["bits"] * (1 - nf4["at_its_snr"]["fewer"]))
    assert nf4["at_its_size"]["bits"] <= nf4["bits"]
    assert "embeddings" in result["missing"]
    assert ("plot" in result["missing"]) == (result["plot"] is None)
    assert result["plot"] is None or plot.read_bytes().startswith(b"\x89PNG")
    for goal in result["goals"]:
        assert goal.keys() == {"goal", "limit", "measured", "met"}
        assert (goal["measured"] is None) == (goal["met"] is None)


@pytest.mark.slow
def test_convert_as_json(tiny):
    result = json.loads(bench("convert", tiny, "--json"))
    rows = {row["format"]: row for row in result["formats"]}
    assert rows.keys() == {row["format"] for row in result["memory"]} == {format_.name for format_ in FILE_FORMATS}
    assert rows["safetensors"]["missing"] is None
    for row in rows.values():
        if not row["missing"]:  # a library that is not there is named
            assert row["threads_1"]["seconds"] > 0
            assert row["back"]["peak_nbytes"] >= 0
            assert row["identical"] is True or row["format"] != "safetensors"
    assert result["throughput"]["gb_per_s"].keys() == {"encode", "save", "convert"}
    assert result["dask"]["missing"] or result["dask"]["seconds"].keys() == {"1", "2"}
    assert len(result["goals"]) == len(rows) + 4
    assert "goals" in bench("convert", tiny, "--parts", "formats")

"""The peers of the benchmark ``sparse`` are what they are said to be; it runs, and its result has a shape to rely on."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

from bench_sparse import DENSITIES, entropy, matrix
from sparse_peers import peers

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("density", DENSITIES)
def test_peers_decode_what_they_store(density):
    values = matrix(200, density)
    count = np.count_nonzero(values)
    assert count == pytest.approx(density * values.size, rel=0.3)
    found, missing = peers(values)
    assert not missing
    for peer in found:
        if not peer.decodes:
            continue
        dense = peer.decode()
        if isinstance(dense, torch.Tensor):
            dense = dense.view(torch.int16).numpy().view(np.uint16)
        assert (dense == values.view(np.uint16)).all(), peer.name
    sizes = {peer.name: peer.stored_nbytes() for peer in found if peer.stored_nbytes() is not None}
    assert sizes["int32 coo, safetensors"] == pytest.approx(10 * count, abs=200)
    assert sizes["scipy csr, npz"] == pytest.approx(6 * count + 4 * 201, abs=2000)
    assert sizes["bitmap + zstd 3"] <= values.size / 8 + 2 * count + 100


def test_entropy():
    assert entropy(0.5) == 1
    assert entropy(0.01) == pytest.approx(0.0808, abs=1e-4)
    assert entropy(0) == entropy(1) == 0


@pytest.mark.slow
def test_sparse_as_json(tmp_path):
    rng = np.random.default_rng(7)
    path = tmp_path / "tiny.safetensors"
    tensors = {f"layers.{i}": rng.standard_normal((384, 512), np.float32) for i in range(2)}
    save_file(tensors | {"bias": np.ones(20, np.float32)}, path)
    command = [sys.executable, ROOT / "tools" / "bench.py", "sparse", path, "--quick"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [row["density"] for row in result["rows"] if row["name"] == "mzstore"] == list(DENSITIES)
    for row in result["rows"]:
        if row["name"] == "mzstore":
            assert row["encoding"] == "sparse"
            assert 0.9 < row["index_to_entropy"] < 1.5
            assert row["index_bits"] + row["value_bits"] <= row["bits"]
            assert row["weights_per_s"] > 0
    assert result["pruned"]["kept"] == pytest.approx(0.1, abs=0.01)
    assert 0 < result["pruned"]["ratio"] < 0.2
    assert {row["name"] for row in result["approximations"]} >= {"quantized, 3 bits", "rank 64, bfloat16"}
    assert "embeddings" in result["missing"]
    assert result["goals"][0]["goal"].startswith("index at a density of 1%")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "H(p)" in done.stdout

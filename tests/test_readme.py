"""README is true: its Python and its shell run as written, and its file tree is the file tree."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from mzstore.checkpoints import CheckpointStore

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    found = re.findall(rf"```{language}\n(.*?)```", README, re.S)
    assert found
    return found


@pytest.fixture
def with_a_model(tmp_path, monkeypatch):
    """A directory with the files that README's examples start from."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    weights = {
        f"model.layers.{i}.mlp.up_proj.weight": rng.standard_normal((64, 512)).astype(np.float16) for i in range(2)
    }
    weights["model.norm.weight"] = np.ones(64, np.float16)
    (tmp_path / "my-model").mkdir()
    safetensors.numpy.save_file(weights, tmp_path / "my-model" / "model.safetensors")
    (tmp_path / "my-model" / "config.json").write_text("{}")
    (tmp_path / "my-awq-model").mkdir()
    codes = {
        which: rng.integers(0, 2**31, shape, np.int32) for which, shape in (("qweight", (512, 8)), ("qzeros", (4, 8)))
    }
    layer = codes | {"scales": rng.uniform(0, 0.1, (4, 64)).astype(np.float16)}
    named = {f"model.layers.0.mlp.up_proj.{which}": array for which, array in layer.items()}
    safetensors.numpy.save_file(named, tmp_path / "my-awq-model" / "model.safetensors")
    (tmp_path / "my-awq-model" / "config.json").write_text(
        '{"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"}}'
    )
    (tmp_path / "my-tuned-model").mkdir()
    tuned = {name: array + np.float16(0.001) for name, array in weights.items()}
    safetensors.numpy.save_file(tuned, tmp_path / "my-tuned-model" / "model.safetensors")
    (tmp_path / "my-adapter").mkdir()
    factors = {
        f"base_model.model.model.layers.0.mlp.up_proj.lora_{which}.weight": rng.standard_normal(shape).astype(
            np.float32
        )
        for which, shape in (("A", (4, 512)), ("B", (64, 4)))
    }
    safetensors.numpy.save_file(factors, tmp_path / "my-adapter" / "adapter_model.safetensors")
    (tmp_path / "my-adapter" / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 8}')
    with CheckpointStore(tmp_path / "run") as store:
        store.save(1, {"model": weights})
    return tmp_path


def test_python(with_a_model, s3_server, monkeypatch):
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    exec(compile("\n".join(blocks("python")), "README.md", "exec"), {})


def test_shell(with_a_model):
    lines = [line for block in blocks("shell") for line in block.splitlines() if line.startswith("mzstore ")]
    assert len(lines) >= 5
    script = "\n".join(["set -e", 'mzstore() { "$PYTHON" -m mzstore "$@"; }', *lines])
    environment = os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (with_a_model / "again" / "config.json").read_text() == "{}"


def test_the_file_tree_is_whole():
    (tree,) = re.findall(r"```text\n(.*?)```", README[README.index("## The files") :], re.S)
    listed = {line.split()[0] for line in tree.splitlines() if line.strip()}
    paths = {
        p.relative_to(ROOT).as_posix()
        for p in (ROOT / "mzstore").rglob("*.py")
        if p.name != "__init__.py" or p.parent.name == "mzstore"
    }
    paths |= {p.relative_to(ROOT).as_posix() for p in (ROOT / "tools").glob("*.py")}
    assert {name for name in listed if name.endswith(".py") and name.startswith(("mzstore/", "tools/"))} == paths
    assert all((ROOT / name).exists() for name in listed)

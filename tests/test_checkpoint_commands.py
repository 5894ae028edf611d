"""The commands of ``mzstore checkpoint``."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

import mzstore
from mzstore.checkpoints import CheckpointStore
from mzstore.cli import app


@pytest.fixture
def root(tmp_path) -> str:
    with CheckpointStore(tmp_path / "run") as store:
        for step in range(1, 6):
            store.save(step, {"w": np.arange(2000.0) * step, "step": step}, {"loss": 1 / step, "odd": float("nan")})
    return str(tmp_path / "run")


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["checkpoint", *arguments])
    assert done.exit_code == 0, done.output
    return done.output


def test_ls_and_show(root):
    lines = run("ls", root).splitlines()
    assert [line.split()[0] for line in lines] == ["1", "2", "3", "4", "5"]
    assert "loss=0.25" in lines[3]
    assert [each["step"] for each in json.loads(run("ls", root, "--json"))] == [1, 2, 3, 4, 5]
    assert "w  float64 [2000]" in run("show", root)
    assert json.loads(run("show", root, "3", "--json"))["names"] == {"w": {"dtype": "float64", "shape": [2000]}}


def test_verify(root, tmp_path):
    assert len(run("verify", root).splitlines()) == 5
    assert run("verify", root, "2").startswith("checkpoint 2: 1 tensor")
    for path in (tmp_path / "run/data").rglob("*.mz"):
        path.write_bytes(path.read_bytes()[:-1])
    assert CliRunner().invoke(app, ["checkpoint", "verify", root]).exit_code == 1


def test_prune_and_gc(root):
    assert run("prune", root, "--keep", "1", "--best", "loss", "--mode", "max", "-n").count("would delete") == 3
    assert run("prune", root, "--keep", "1", "--best", "loss", "--mode", "max").count("deleted") == 3
    assert run("gc", root) == "removed 0 objects, 0 B\n"
    assert "would remove" in run("gc", root, "--grace", "0", "--dry-run")
    run("gc", root, "--grace", "0")
    with CheckpointStore(root) as store:
        assert store.steps() == [1, 5]
        assert store.load()["step"] == 5


def test_export(root, tmp_path):
    run("export", root, str(tmp_path / "out.mz"), "--step", "4", "-q")
    with mzstore.open(tmp_path / "out.mz") as model:
        assert np.array_equal(model["w"][:], np.arange(2000.0) * 4)


@pytest.mark.parametrize("arguments", [("show", "9"), ("show", "x"), ("prune",)])
def test_what_cannot_be_done_is_one_line(root, arguments):
    done = CliRunner().invoke(app, ["checkpoint", arguments[0], root, *arguments[1:]])
    assert done.exit_code == 1
    assert len(done.output.splitlines()) == 1

"""The programs of examples/ do what they say: one is killed and ends as if it had not been, one saves and loads with Ray."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from mzstore.checkpoints import CheckpointStore

torch = pytest.importorskip("torch")

ROOT = Path(__file__).parents[1]
STEPS, EVERY, KILLS = 60, 4, 3
ENVIRON = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "examples")]), "OMP_NUM_THREADS": "1"}


def train(url: Path, lines: int | None = None) -> str:
    """What a run prints; with ``lines`` one that is killed after so many, and when there is a checkpoint."""
    command = [sys.executable, str(ROOT / "examples/train.py"), str(url), "--steps", str(STEPS), "--every", str(EVERY)]
    with subprocess.Popen(command, env=ENVIRON, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        if lines is None:
            said = process.stdout.read()
            assert process.wait() == 0
            return said
        said = ""
        for number, line in enumerate(process.stdout, 1):
            said += line
            if number >= lines and any((url / "manifests").glob("*.json")):
                break
        process.kill()
    assert process.returncode == -9, "it was not done before it was killed"
    return said


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@pytest.mark.slow
def test_a_run_that_is_killed_ends_as_one_that_is_not(tmp_path):
    whole = train(tmp_path / "whole")
    chance = random.Random()  # other moments each time; what is asked of them is the same
    said = ""
    for _ in range(KILLS):
        said += train(tmp_path / "killed", lines=chance.randint(1, 12))
    said += train(tmp_path / "killed")
    assert said.count("goes on after step") == KILLS
    assert set(whole.splitlines()) <= set(said.splitlines()), "each step has the same loss"
    with CheckpointStore(tmp_path / "whole") as one, CheckpointStore(tmp_path / "killed") as other:
        assert one.checkpoint().step == other.checkpoint().step == STEPS
        assert same(one.load(), other.load())
        assert all(report.ok for report in other.verify().values())


RAY = """
import sys
import ray
import ray_train
ray.init(num_cpus=8, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False, _temp_dir=sys.argv[2])
for workers, steps in ((2, 20), (3, 40)):
    ray_train.train(sys.argv[1], workers, steps, 10)
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_workers_of_ray_save_and_others_go_on(tmp_path, tmp_path_factory):
    pytest.importorskip("ray.train")
    command = [sys.executable, "-c", RAY, str(tmp_path / "run"), str(tmp_path_factory.mktemp("ray"))]
    done = subprocess.run(command, env=ENVIRON, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with CheckpointStore(tmp_path / "run") as store:
        assert store.steps() == [10, 20, 30, 40]
        assert all(report.ok for report in store.verify().values())
        losses = [made.metrics["loss"] for made in store.checkpoints()]
        state = store.load()
        assert [len(store._repository.manifest(step).tensors["model.0.weight"].pieces) for step in (20, 40)] == [2, 3]
    assert losses == sorted(losses, reverse=True)
    assert state["step"] == 40
    assert state["optimizer"]["state"]["0.weight"]["step"] == 40, "the workers after those went on with their optimizer"

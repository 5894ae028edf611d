"""The peers of the benchmark ``checkpoint`` give back what they save; it runs, and its result has a shape to rely on."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

from bench_checkpoint import Seat, digests
from checkpoint_peers import PEERS, Place, flat, missing
from training import FromScratch

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")


@pytest.fixture(scope="module")
def states():
    """Of a run after one step and after two, their tensors the same live ones: the second is what they hold."""
    run = FromScratch(2, width=64, layers=1, context=16)
    run.step()
    first = copy.deepcopy(run.state())
    run.step()
    return first, copy.deepcopy(run.state())


def test_a_state_has_all_that_training_needs(states):
    names = flat(states[1]).keys()
    assert {"model.head.weight", "optimizer.state.0.exp_avg", "optimizer.state.0.exp_avg_sq", "rng"} <= names
    assert digests(flat(states[0])).keys() == names
    changed = [name for name in names if not torch.equal(flat(states[0])[name], flat(states[1])[name])]
    assert len(changed) == len(names)


@pytest.mark.parametrize("name", PEERS)
def test_peers_give_back_what_they_save(tmp_path, states, name):
    if name in missing():
        pytest.skip(missing()[name])
    place = Place(tmp_path, "here", None)
    nbytes = sum(tensor.nbytes for tensor in flat(states[0]).values())
    with PEERS[name](place, None) as peer:
        seat = Seat(name, peer, place)
        for step, state in enumerate(states, 1):
            seat.turn(step, state, copy.deepcopy(state), digests(flat(state)))
    row = seat.row(nbytes)
    assert len(row["nbytes"]) == 2
    assert all(0.5 * nbytes < each < 2 * nbytes for each in row["nbytes"])  # of so little, documents are a large part
    assert row["total_nbytes"] == sum(row["nbytes"])
    assert all(stall <= save for stall, save in zip(row["seconds"]["stall"], row["seconds"]["save"], strict=True))
    assert bool(place.folder.exists() and place.sizes()) != peer.whole


def test_a_peer_that_loses_a_bit_is_found(tmp_path, states):
    state = states[0]
    place = Place(tmp_path, "here", None)
    with PEERS["torch.save"](place, None) as peer:
        expected = digests(flat(state)) | {"rng": "0" * 64}
        with pytest.raises(RuntimeError, match="checkpoint 1 does not come back"):
            Seat("torch.save", peer, place).turn(1, state, copy.deepcopy(state), expected)


@pytest.mark.slow
def test_checkpoint_as_json():
    pytest.importorskip("s3fs")
    command = [sys.executable, ROOT / "tools" / "bench.py", "checkpoint", "--quick", "--runs", "dense"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    (run,) = result["runs"]
    assert (run["name"], run["frozen"], len(run["losses"])) == ("dense", 0, result["saves"])
    assert run["losses"][-1] < run["losses"][0]
    rows = {(row["name"], row["s3"]): row for row in run["rows"]}
    assert rows.keys() == {(name, s3) for name in PEERS if name not in result["missing"] for s3 in (False, True)}
    for row in rows.values():
        assert 0.5 * run["nbytes"] < row["total_nbytes"] / result["saves"] < 1.2 * run["nbytes"]
        assert row["save_gb_per_s"] > 0
        assert row["load_gb_per_s"] >= row["slowest_load_gb_per_s"] > 0
    assert rows["mzstore", False]["total_nbytes"] < rows["mzstore, chain=0", False]["total_nbytes"]
    assert run["copy_seconds"]["new"] > run["copy_seconds"]["used"] > 0
    for goal in result["goals"]:
        assert goal.keys() == {"goal", "limit", "measured", "met"}
        assert (goal["measured"] is None) == (goal["met"] is None)
    assert result["goals"][-1]["met"] is None  # nothing was frozen

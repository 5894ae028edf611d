"""torch.distributed.checkpoint: ranks in processes of their own save to one checkpoint, and others load from it."""

import dataclasses
import json
import os
import pickle
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mzstore

torch = pytest.importorskip("torch")
dcp = pytest.importorskip("torch.distributed.checkpoint")

import ranks  # noqa: E402

from mzstore.checkpoints import CheckpointStore  # noqa: E402
from mzstore.checkpoints.archives import archives_of  # noqa: E402
from mzstore.shards import shard_slices  # noqa: E402
from mzstore.torch.dcp import MzLoadPlanner, MzReader, MzSavePlanner, MzWriter  # noqa: E402

HERE = Path(__file__).parent
SECONDS = 200
quiet = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


class Job:
    """Ranks of one task, each a process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def start(self, world: int, task: dict[str, Any], *, torchrun: bool = False) -> tuple[Path, list[subprocess.Popen]]:
        path = self._folder / f"{uuid.uuid4().hex}.json"
        path.write_text(json.dumps(task))
        script = [str(HERE / "ranks.py"), str(path)]
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)]), "OMP_NUM_THREADS": "1"}
        if torchrun:
            agent = ["-m", "torch.distributed.run", "--nproc-per-node", str(world), "--master-addr", "127.0.0.1"]
            agent += ["--master-port", "0", "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
            return path, [subprocess.Popen([sys.executable, *agent, *script], env=environ)]
        members = [{"RANK": str(rank), "WORLD_SIZE": str(world)} for rank in range(world)]
        return path, [subprocess.Popen([sys.executable, *script], env=environ | each) for each in members]

    def run(self, world: int, task: dict[str, Any], *, torchrun: bool = False) -> list[Any]:
        """What each rank returns."""
        path, processes = self.start(world, task, torchrun=torchrun)
        try:
            codes = [process.wait(SECONDS) for process in processes]
        finally:
            for process in processes:
                process.kill()
        assert not any(codes)
        return [pickle.loads(Path(f"{path}.{rank}").read_bytes()) for rank in range(world)]


@pytest.fixture
def job(tmp_path):
    return Job(tmp_path)


def check_model(url: str, *, seed: int = 0, options: Any = None) -> None:
    """A checkpoint is one model, whoever wrote it."""
    store, _, step = url.rpartition("/")
    with mzstore.open(f"{store}/manifests/{step}.json", storage_options=options) as model:
        for name in ranks.SHAPES:
            expected = ranks.full(name, seed)
            found = model.load(f"model.{name}", framework="torch")[f"model.{name}"]
            assert torch.equal(found, expected)
        assert model["empty"].shape == (0, 4)
        assert float(model["scalar"][...]) == 2.5 + seed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after", "saved", "loaded"),
    [
        (1, 3, "0", "1"),
        (2, 2, "1", "0"),
        (2, 3, "0", "0"),
        (2, 3, "1", "1"),
        (4, 1, "1", "0"),
        (4, 2, "0", "replicate"),
        (4, 3, "both", "1"),
        (2, 4, "1", "both"),
    ],
)
def test_other_ranks_load_what_some_have_saved(job, tmp_path, before, after, saved, loaded):
    url = f"{tmp_path}/store/7"
    job.run(before, {"do": "save", "url": url, "how": saved})
    check_model(url)
    job.run(after, {"do": "load", "url": url, "how": loaded})
    with CheckpointStore(tmp_path / "store") as store:
        assert store.steps() == [7]
        assert store.verify()[7].ok
        state, about = store.load(7), store.checkpoint(7)
    assert about.new_nbytes == about.stored_nbytes
    assert state["values"]["betas"] == (0.9, 0.999)
    assert torch.equal(state["model"]["uneven"], ranks.full("uneven"))
    assert state["list"][1] == {"inside": 5}


@pytest.mark.slow
def test_ranks_store_what_changed_and_others_load_it(job, tmp_path):
    url = f"{tmp_path}/store"
    for step in range(3):
        job.run(2, {"do": "save", "url": f"{url}/{step}", "drift": step, "how": "0", "chain": 8})
    job.run(3, {"do": "save", "url": f"{url}/3", "drift": 3, "how": "1", "chain": 8})  # no box is where one was
    for step in range(4):
        job.run(3, {"do": "load", "url": f"{url}/{step}", "drift": step, "how": "1"})
    with CheckpointStore(url) as store:
        made = store.checkpoints()
        assert all(report.ok for report in store.verify().values())
    assert max(made[1].new_nbytes, made[2].new_nbytes) < 0.8 * made[0].new_nbytes < made[3].new_nbytes


@pytest.mark.slow
@pytest.mark.parametrize("how", ["0", "1"])
def test_each_rank_fetches_about_its_share(job, s3_server, how):
    options = s3_server.storage_options()
    url = f"s3://{s3_server.bucket}/{uuid.uuid4().hex}/1"
    names = ["large", "larger"]
    job.run(2, {"do": "save", "url": url, "options": options, "how": "0", "names": names})
    found = job.run(3, {"do": "load", "url": url, "options": options, "how": how, "names": names})
    with CheckpointStore(url.rpartition("/")[0], storage_options=options) as store:
        about = store.checkpoint(1)
    for each in found:
        share = about.stored_nbytes * each["held"] / about.nbytes
        assert each["fetched"] <= 1.2 * share


@pytest.mark.slow
def test_on_s3_by_torchrun(job, s3_server):
    options = s3_server.storage_options()
    url = f"s3://{s3_server.bucket}/{uuid.uuid4().hex}/3"
    job.run(2, {"do": "save", "url": url, "options": options}, torchrun=True)
    check_model(url, options=options)
    job.run(3, {"do": "load", "url": url, "options": options, "how": "1"}, torchrun=True)


@pytest.mark.slow
def test_cached_plans_write_objects_of_their_own(job, tmp_path):
    job.run(2, {"do": "save often", "url": f"{tmp_path}/store"})
    with CheckpointStore(tmp_path / "store") as store:
        assert store.steps() == [0, 1, 2]
        assert all(report.ok for report in store.verify().values())
    for step in range(3):
        check_model(f"{tmp_path}/store/{step}", seed=step)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["THREAD", "PROCESS"])
def test_saves_in_the_background(job, tmp_path, kind):
    job.run(2, {"do": "save in the background", "url": f"{tmp_path}/store", "kind": kind}, torchrun=True)
    for step in range(2):
        check_model(f"{tmp_path}/store/{step}", seed=step)


@pytest.mark.slow
def test_sharded_tensors(job, tmp_path):
    job.run(3, {"do": "save sharded tensors", "url": f"{tmp_path}/store/1"})
    with mzstore.open(tmp_path / "store/manifests/1.json") as model:
        for name in model:
            assert torch.equal(model.load(name, framework="torch")[name], ranks.full(name))


@pytest.mark.slow
def test_ranks_with_nothing_to_write(job, tmp_path):
    job.run(4, {"do": "save", "url": f"{tmp_path}/store/1", "names": ["few"]})
    job.run(3, {"do": "load", "url": f"{tmp_path}/store/1", "names": ["few"], "how": "1"})
    with mzstore.open(tmp_path / "store/manifests/1.json") as model:
        assert model.archives is not None
        assert len(model.archives.manifest.archives) == 2


def state() -> dict[str, Any]:
    return ranks.state_of("plain", None)


def save(url: str, state: dict[str, Any], planner: Any = None, **settings: Any) -> None:
    dcp.save(state, storage_writer=MzWriter(url, **settings), planner=planner or MzSavePlanner(), no_dist=True)


def load(url: str, state: dict[str, Any], planner: Any = None) -> MzReader:
    reader = MzReader(url)
    dcp.load(state, storage_reader=reader, planner=planner or MzLoadPlanner(), no_dist=True)
    return reader


@quiet
def test_one_process(tmp_path):
    url = f"{tmp_path}/store/5"
    save(url, state(), metrics={"loss": 1.5})
    found = ranks.state_of("plain", None, zeros=True)
    load(url, found)
    ranks.check(found, state())
    check_model(url)
    with CheckpointStore(tmp_path / "store", best="loss") as store:
        assert store.checkpoint("best").metrics == {"loss": 1.5}


@quiet
def test_what_a_checkpoint_store_saved_is_loaded(tmp_path):
    with CheckpointStore(tmp_path / "store") as store:
        store.save(1, state())
        store.save(2, {**state(), "scalar": torch.tensor(7.0)})
    found = ranks.state_of("plain", None, zeros=True)
    load(f"{tmp_path}/store/2", found)
    ranks.check(found, {**state(), "scalar": torch.tensor(7.0)})


@quiet
def test_tensors_of_other_kinds_are_filled(tmp_path):
    save(f"{tmp_path}/store/1", {"x": torch.arange(12.0).reshape(3, 4), "bits": torch.tensor([True, False])})
    found = {"x": torch.zeros(4, 3, dtype=torch.float64).T, "bits": torch.zeros(4, dtype=torch.bool)[::2]}
    load(f"{tmp_path}/store/1", found)
    assert torch.equal(found["x"], torch.arange(12.0, dtype=torch.float64).reshape(3, 4))
    assert found["bits"].tolist() == [True, False]


@quiet
def test_packed_values(tmp_path):
    values = torch.arange(60, dtype=torch.uint8).reshape(3, 20).view(torch.float4_e2m1fn_x2)
    save(f"{tmp_path}/store/1", {"x": values})
    found = {"x": torch.zeros(3, 20, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)}
    load(f"{tmp_path}/store/1", found)
    assert torch.equal(found["x"].view(torch.uint8), values.view(torch.uint8))


@quiet
@pytest.mark.parametrize(
    ("state", "planner", "message"),
    [
        ({"a": {"b": object()}}, None, r"a\.b: an object of type builtins\.object cannot be saved"),
        ({"a": {"b": 1}}, dcp.DefaultSavePlanner(), r"'a\.b' comes pickled.*MzSavePlanner"),
        ({"a": {"b": 1}}, MzSavePlanner(flatten_state_dict=False), "flatten_state_dict=True"),
        ({"x": torch.zeros(2).to_sparse()}, None, "tensor 'x': its layout is torch.sparse_coo"),
    ],
)
def test_what_cannot_be_saved_is_named(tmp_path, state, planner, message):
    with pytest.raises(dcp.CheckpointException, match=message):
        save(f"{tmp_path}/store/1", state, planner)
    with CheckpointStore(tmp_path / "store") as store:
        assert store.steps() == []


@quiet
def test_a_step_is_saved_once(tmp_path):
    save(f"{tmp_path}/store/1", {"x": torch.zeros(3)})
    with pytest.raises(dcp.CheckpointException, match="checkpoint 1 exists already"):
        save(f"{tmp_path}/store/1", {"x": torch.ones(3)})


@quiet
def test_what_did_not_change_is_stored_once(tmp_path):
    url = f"{tmp_path}/store"
    save(f"{url}/1", state())
    save(f"{url}/2", {**state(), "scalar": torch.tensor(7.0)})
    save(f"{url}/3", {"elsewhere": state()["model"]})
    with CheckpointStore(url) as store:
        first, second, third = store.checkpoints()
        assert second.new_nbytes < first.new_nbytes / 100
        assert third.new_nbytes == 0
        store.delete(1)
        store.gc(0)
        found = ranks.state_of("plain", None, zeros=True)
        load(f"{url}/2", found)
        ranks.check(found, {**state(), "scalar": torch.tensor(7.0)})
        assert all(report.ok for report in store.verify().values())


def drifted(step: int) -> dict[str, Any]:
    """Weights that move a little from step to step."""
    values = torch.randn(600, 400, generator=torch.Generator().manual_seed(0))
    for each in range(step):
        values += 1e-4 * torch.randn(600, 400, generator=torch.Generator().manual_seed(1 + each))
    return {"w": values, "half": values.bfloat16()}


@quiet
@pytest.mark.parametrize("chain", [0, 2])
def test_changes_are_smaller_and_their_chains_are_bounded(tmp_path, chain):
    for step in range(5):
        save(f"{tmp_path}/store/{step}", drifted(step), chain=chain)
        found = {name: torch.zeros_like(value) for name, value in drifted(0).items()}
        load(f"{tmp_path}/store/{step}", found)
        ranks.check(found, drifted(step))
    with CheckpointStore(tmp_path / "store") as store:
        made = store.checkpoints()
        depths = [max(each.depth for each in archives_of(store._repository.manifest(step))) for step in range(5)]
        assert all(report.ok for report in store.verify().values())
        store.save(5, {"w": drifted(5)["w"]})  # of the same chain
        assert store.checkpoint(5).new_nbytes < (0.75 if chain else 1) * made[0].new_nbytes
        assert torch.equal(store.load(5)["w"], drifted(5)["w"])
    assert depths == ([0, 1, 2, 0, 1] if chain else [0] * 5)
    if chain:
        assert max(made[1].new_nbytes, made[2].new_nbytes) < 0.75 * made[0].new_nbytes < made[3].new_nbytes


@quiet
def test_equal_tensors_under_a_recipe_are_stored_once(tmp_path):
    for step in (1, 2):
        save(f"{tmp_path}/store/{step}", drifted(0), recipe=mzstore.Recipe(bits=4))
    with CheckpointStore(tmp_path / "store") as store:
        assert [made.new_nbytes > 0 for made in store.checkpoints()] == [True, False]


class Late(MzWriter):
    """Another job commits while this one writes."""

    def finish(self, metadata, results):
        save(str(self.checkpoint_id), {"x": torch.ones(3)})
        super().finish(metadata, results)


@quiet
def test_of_two_jobs_one_wins(tmp_path):
    with pytest.raises(dcp.CheckpointException, match="checkpoint 1 exists already, from another save"):
        dcp.save(
            {"x": torch.zeros(3)}, storage_writer=Late(f"{tmp_path}/store/1"), planner=MzSavePlanner(), no_dist=True
        )
    with CheckpointStore(tmp_path / "store") as store:
        assert torch.equal(store.load(1)["x"], torch.ones(3))
        assert store.verify()[1].ok


class Forgetful(MzWriter):
    """Loses results, as torch does when a thread of a writer fails."""

    def finish(self, metadata, results):
        super().finish(metadata, [self.changed(of_rank) for of_rank in results])

    @staticmethod
    def changed(of_rank):
        return of_rank[1:]


class Twice(Forgetful):
    @staticmethod
    def changed(of_rank):
        return [*of_rank, of_rank[0]]


@quiet
@pytest.mark.parametrize(("writer", "message"), [(Forgetful, "was not written"), (Twice, "and not planned")])
def test_what_is_not_whole_is_not_committed(tmp_path, writer, message):
    state = {"x": torch.zeros(3), "y": 5}
    with pytest.raises(dcp.CheckpointException, match=message):
        dcp.save(state, storage_writer=writer(f"{tmp_path}/store/1"), planner=MzSavePlanner(), no_dist=True)
    with CheckpointStore(tmp_path / "store") as store:
        assert store.steps() == []


class Holed(MzSavePlanner):
    """Plans half of a tensor, which torch does not notice of one rank."""

    def create_global_plan(self, all_plans):
        plans, metadata = super().create_global_plan(all_plans)
        (item,) = plans[0].items
        half = dataclasses.replace(item.tensor_data.chunk, sizes=torch.Size([2, 2]))
        data = dataclasses.replace(item.tensor_data, chunk=half)
        metadata.state_dict_metadata["x"].chunks[:] = [half]
        return [dataclasses.replace(plans[0], items=[dataclasses.replace(item, tensor_data=data)])], metadata

    def resolve_data(self, write_item):
        return super().resolve_data(write_item)[:2]


@quiet
def test_a_tensor_with_a_hole_is_not_committed(tmp_path):
    with pytest.raises(dcp.CheckpointException, match="tensor 'x': the pieces have 4 values of 8"):
        save(f"{tmp_path}/store/1", {"x": torch.zeros(4, 2)}, Holed())
    with CheckpointStore(tmp_path / "store") as store:
        assert store.steps() == []


@quiet
def test_loads_that_cannot_be(tmp_path):
    url = f"{tmp_path}/store/1"
    save(url, {"x": torch.zeros(3), "y": 5})
    with pytest.raises(dcp.CheckpointException, match="MzLoadPlanner"):
        load(url, {"y": 0}, dcp.DefaultLoadPlanner())
    with pytest.raises(dcp.CheckpointException, match="Missing key in checkpoint state_dict: z"):
        load(url, {"z": 0})
    with pytest.raises(dcp.CheckpointException, match=r"2\.json.*No such file"):
        load(f"{tmp_path}/store/2", {"y": 0})


@pytest.mark.parametrize("checkpoint_id", ["run", "s3://bucket/run", "run/x1", "run/-1", "run/1.5"])
def test_ids_that_are_none(checkpoint_id):
    with pytest.raises(ValueError, match="not the URL of a store, a slash and the step"):
        MzWriter(checkpoint_id)
    assert not MzReader.validate_checkpoint_id(checkpoint_id)


def test_each_rank_for_itself_is_refused(tmp_path):
    with pytest.raises(ValueError, match="use_collectives=False"):
        MzWriter(f"{tmp_path}/1").set_up_storage_writer(True, rank=0, use_collectives=False)


def test_chunks_serve_other_numbers_of_ranks(tmp_path):
    """Halves of a matrix on either axis, of which each third and quarter is read on either axis: what a plan says."""
    from mzstore.grid import choose_resharded_chunk_shape
    from mzstore.sources import from_arrays
    from mzstore.writer import write

    values = np.random.default_rng(0).standard_normal((2400, 1800)).astype(np.float32)
    for half in (values[:1200], values[:, :900]):
        path = tmp_path / f"{half.shape[0]}.mz"
        write(path, from_arrays({"x": half}, {}, {}), chunks=choose_resharded_chunk_shape)
        with mzstore.open(path) as model:
            for count in (2, 3, 4):
                for axis in (0, 1):
                    for rank in range(count):
                        index = shard_slices(half.shape, axis, rank, count)
                        wanted = model.plan({"x": index}).wanted_nbytes
                        assert wanted <= 1.2 * model["x"].stored_nbytes / count

"""One rank of a job that saves to, or loads from, a store of checkpoints: what test_dcp.py starts several of.

Run as ``python ranks.py TASK.json``: with ``moments`` in the task jobs of which a rank is killed, else with RANK and WORLD_SIZE in the environment (and what torchrun sets, if it is the one).
"""

import json
import os
import pickle
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import deaths
import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from mzstore.torch.dcp import MzLoadPlanner, MzReader, MzSavePlanner, MzWriter

SHAPES = {
    "even": ((48, 36), torch.float32),
    "uneven": ((37, 29), torch.float32),
    "few": ((2, 3), torch.bfloat16),  # fewer rows and columns than there may be ranks
    "complex": ((6, 5), torch.complex64),
    "large": ((1440, 960), torch.float32),
    "larger": ((3000, 1500), torch.bfloat16),
    "vector": ((7,), torch.int64),
}
VALUES: dict[str, Any] = {
    "epoch": 3,
    "rate": 1e-3,
    "name": "run",
    "nothing": None,
    "betas": (0.9, 0.999),
    "seen": b"\0\1",
    "numpy": np.random.RandomState(3).get_state()[1],
}


def full(name: str, seed: int = 0, drift: int = 0) -> torch.Tensor:
    """All of one tensor; the same on every rank. ``drift``: after so many small steps, of those that have floats."""
    shape, dtype = SHAPES[name]
    generator = torch.Generator().manual_seed(1000 * seed + list(SHAPES).index(name))
    if dtype == torch.int64:
        return torch.randint(-(2**60), 2**60, shape, generator=generator)
    values = torch.randn(*shape, 2 if dtype.is_complex else 1, generator=generator)
    for _ in range(drift):
        values += 1e-4 * torch.randn(values.shape, generator=generator)
    return torch.view_as_complex(values) if dtype.is_complex else values[..., 0].to(dtype)


def placed(value: torch.Tensor, how: str, mesh: Any) -> Any:
    """``how``: replicate, or the axis that is sharded, or both axes; ``plain`` is no DTensor."""
    if mesh is None or how == "plain":
        return value
    placements: list[Any] = [Replicate()] * mesh.ndim
    if how == "both":
        placements = [Shard(0), Shard(1) if value.ndim > 1 else Replicate()]
    elif how.isdigit():
        placements[0] = Shard(min(int(how), value.ndim - 1))
    return distribute_tensor(value, mesh, placements)


def state_of(
    how: str, mesh: Any, *, seed: int = 0, drift: int = 0, zeros: bool = False, names: list[str] | None = None
) -> dict[str, Any]:
    def make(name: str, how: str) -> Any:
        value = full(name, seed, drift)
        return placed(torch.zeros_like(value) if zeros else value, how, mesh)

    model = {name: make(name, how) for name in names or SHAPES}
    if names:
        return {"model": model}
    return {
        "model": model,
        "replicated": make("even", "replicate"),
        "plain": make("uneven", "plain"),
        "scalar": torch.tensor(0.0 if zeros else 2.5 + seed),
        "empty": torch.zeros(0, 4),
        "values": dict.fromkeys(VALUES) if zeros else dict(VALUES),
        "list": [torch.zeros(3) if zeros else torch.arange(3.0), {"inside": 0 if zeros else 5}],
    }


def local(value: Any) -> Any:
    return value.to_local() if isinstance(value, DTensor) else value


def check(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, value in expected.items():
        if isinstance(value, dict):
            check(found[name], value)
        elif isinstance(value, torch.Tensor):
            assert torch.equal(local(found[name]), local(value)), name
        elif isinstance(value, np.ndarray):
            assert np.array_equal(found[name], value), name
        elif isinstance(value, list):
            check(dict(enumerate(found[name])), dict(enumerate(value)))
        else:
            assert type(found[name]) is type(value), name
            assert found[name] == value, name


def die_at(moment: str) -> None:
    match moment:
        case "after writing":
            deaths.die(MzWriter, "write_data", after=True)
        case "before finishing":
            deaths.die(MzWriter, "finish")
        case _:
            deaths.die_at(moment)


def killed(path: str, task: dict[str, Any]) -> list[int]:
    """Jobs of two ranks, of which one is killed at a moment, one job for each; then the others are. What became of those."""
    torch.set_num_threads(1)
    with (
        warnings.catch_warnings(),
        tempfile.TemporaryDirectory() as folder,
    ):  # what is imported and compiled now, no job has to
        warnings.simplefilter("ignore")
        state = state_of("plain", None, names=task["names"])
        dcp.save(state, storage_writer=MzWriter(f"{folder}/1", threads=1), planner=MzSavePlanner(), no_dist=True)
    codes = []
    for step, (lost, moment) in enumerate(task["moments"], 1):
        job = task | {"do": "save", "url": f"{task['url']}/{step}", "drift": step, "chain": 3}
        members = [
            deaths.start(run, rank, 2, f"file://{path}.{step}", job, moment if rank == lost else "")
            for rank in range(2)
        ]
        members[lost].join()
        codes.append(members[lost].exitcode)
        for member in members:
            member.kill()
            member.join()
    return codes


def run(rank: int, world: int, meeting: str, task: dict[str, Any], moment: str = "") -> Any:
    """What ``main`` returns to one rank."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
    die_at(moment)
    result = main(task)
    dist.destroy_process_group()
    return result


def sharded_tensor(value: torch.Tensor) -> Any:
    """``value`` as a ShardedTensor of rows."""
    from torch.distributed._shard.sharded_tensor import Shard as Part
    from torch.distributed._shard.sharded_tensor import init_from_local_shards

    rank, world = dist.get_rank(), dist.get_world_size()
    rows = -(-value.shape[0] // world)
    first, last = min(rank * rows, value.shape[0]), min((rank + 1) * rows, value.shape[0])
    part = Part.from_tensor_and_offsets(value[first:last].clone(), [first, 0], rank)
    return init_from_local_shards([part], *value.shape)


def main(task: dict[str, Any]) -> Any:
    url, options, how = task["url"], task.get("options"), task.get("how", "0")
    world = dist.get_world_size()
    mesh = init_device_mesh("cpu", (2, world // 2) if how == "both" else (world,))
    names, seed, drift = task.get("names"), task.get("seed", 0), task.get("drift", 0)
    writer: dict[str, Any] = {"storage_options": options, "threads": 1, "chain": task.get("chain", 0)}
    if task["do"] == "save":
        state = state_of(how, mesh, names=names, seed=seed, drift=drift)
        dcp.save(state, storage_writer=MzWriter(url, **writer), planner=MzSavePlanner())
    elif task["do"] == "save sharded tensors":
        state = {name: sharded_tensor(full(name)) for name in ("even", "uneven", "large")}
        dcp.save(state, storage_writer=MzWriter(url, **writer), planner=MzSavePlanner())
    elif task["do"] == "save often":  # by cached plans
        made, planner = MzWriter(**writer), MzSavePlanner(enable_plan_caching=True)
        for step in range(3):
            state = state_of(how, mesh, names=names, seed=step)
            dcp.save(state, checkpoint_id=f"{url}/{step}", storage_writer=made, planner=planner)
    elif task["do"] == "save in the background":
        kind = getattr(dcp.state_dict_saver.AsyncCheckpointerType, task["kind"])
        for step in range(2):
            future = dcp.async_save(
                state_of(how, mesh, seed=step),
                checkpoint_id=f"{url}/{step}",
                storage_writer=MzWriter(**writer),
                planner=MzSavePlanner(),
                async_checkpointer_type=kind,
            )
            (future if hasattr(future, "result") else future.upload_completion).result()
    elif task["do"] == "load":
        reader = MzReader(url, storage_options=options, threads=1)
        found = state_of(how, mesh, zeros=True, names=names)
        dcp.load(found, storage_reader=reader, planner=MzLoadPlanner())
        check(found, state_of(how, mesh, names=names, seed=seed, drift=drift))
        held = sum(local(value).nbytes for value in found["model"].values())
        return {"fetched": reader.stats.fetched_nbytes, "held": held, "requests": reader.stats.requests}
    else:
        raise ValueError(task["do"])
    return None


if __name__ == "__main__":
    task = json.loads(Path(sys.argv[1]).read_text())
    if "moments" in task:
        Path(f"{sys.argv[1]}.result").write_text(json.dumps(killed(sys.argv[1], task)))
    else:
        rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        meeting = "env://" if "TORCHELASTIC_RUN_ID" in os.environ else f"file://{sys.argv[1]}.meeting"
        result = run(rank, world, meeting, task)
        Path(f"{sys.argv[1]}.{rank}").write_bytes(pickle.dumps(result))
    # A thread of Gloo may still hold a tensor, and aborts when the interpreter has gone (pytorch/pytorch#179291).
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)

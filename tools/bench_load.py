"""The benchmark ``load``: how long it takes to get a model out of an S3 server, over links of some speeds.

Three parts: ``models`` (whole models, mzstore beside its peers), ``open`` (an archive of 1000 tensors) and ``shards``
(what a rank of several fetches of matrices in the shapes of real models).
"""

import json
import math
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.numpy
from goals import load_goals
from load_peers import PEERS, Place, digests, missing
from measure import Child, Times, commit, in_new_process, machine, n_threads, take_turns
from peers import read_weights
from real_models import minilm
from servers import SeaweedFS
from shaper import Link

import mzstore
from mzstore.shards import bounds

ROUNDS = 3
SLOW_SECONDS = 5.0  # loads that took so long are not repeated
LINKS = (0.25, 1.0, 4.0)  # Gb/s
RTT_MS = 20.0
FASTEST = 100.0  # Gb/s: no limit
PARTS = ("models", "open", "shards")
OPEN_TENSORS, OPEN_GBIT = 1000, 1.0
SHARD_COUNTS = (2, 4, 8)
SHARD_SHAPES = ((4096, 14336), (49152, 576), (30522, 384), (8, 4096, 1408))
QUICK_SHARD_SHAPES = ((2048, 1024), (8, 512, 704))  # 4 MiB and more, like those
TOOLS = Path(__file__).parent

CONDITIONS = (
    "Server: SeaweedFS on loopback, its objects in the page cache. Link: a proxy with {rtt:g} ms for a round trip, another one "
    "for each new connection, and a rate for what the server sends, shared by all connections; no slow start, no losses. Server, "
    "proxy and reader share the {cores} cores of this machine.",
    "Each load is in a new process, its imports left out, client and connections included; loaders take turns, rounds: {rounds}; "
    "a figure is the best of them (loads of more than {slow:g} s ran once).",
    "requests, connections and bytes are counted at the link: all that the server sent, headers included.",
    "Every loader has given back every bit, once, before it was timed.",
    "safetensors: the file in memory, tensors are views of it, which is faster than the library's own reader; 'ranges': 16 MiB each, "
    "several at a time. zarr-python and TensorStore read the components of mzstore's tree, and NumPy makes tensors of them.",
    "Peak memory: what a load adds to the most that the process holds after its imports; above: less the size of the tensors.",
    "open: mzstore.open of an archive of {tensors} tensors, at {open_gbit:g} Gb/s.",
    "shards: 'needed' is the share of the tensor's stored bytes that the shard has of its values; the worst of all shards counts. "
    "Figures are those of Model.plan; the worst was then loaded, checked, and its requests and bytes counted at the link.",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Bench:
    """What all parts share."""

    server: SeaweedFS
    link: Link
    work: Path
    rounds: int
    quick: bool

    def place(self, prefix: str) -> Place:
        server = self.server
        return Place(self.link.endpoint, server.key, server.secret, server.region, server.bucket, prefix)

    def upload(self, path: Path, name: str) -> None:
        """A file or a directory; not by way of the link."""
        import s3fs

        fs = s3fs.S3FileSystem(**self.server.storage_options(), use_listings_cache=False)
        source, target = (f"{path}/", f"{name}/") if path.is_dir() else (str(path), name)
        fs.put(source, f"{self.server.bucket}/{target}", recursive=path.is_dir())


def load(model: Path | None, *, quick: bool, big: float, links: list[float], parts: list[str]) -> dict[str, Any]:
    """Everything measured, as JSON can hold it. ``big``: GB of the synthetic model; 0: none."""
    rounds = 1 if quick else ROUNDS
    before = machine()
    with _running(rounds, quick) as bench:
        result = {
            "benchmark": "load",
            "commit": commit(),
            "machine": before,
            "quick": quick,
            "links": [{"gbit_per_s": gbit, "rtt_ms": RTT_MS} for gbit in links],
            "conditions": [
                text.format(
                    rtt=RTT_MS,
                    cores=n_threads(),
                    rounds=rounds,
                    slow=SLOW_SECONDS,
                    tensors=OPEN_TENSORS,
                    open_gbit=OPEN_GBIT,
                )
                for text in CONDITIONS
            ],
            "missing": missing(),
            "models": list(_models(bench, model, big, links)) if "models" in parts else [],
            "open": _open(bench) if "open" in parts else [],
            "shards": _shards(bench) if "shards" in parts else [],
        }
    return result | {"goals": load_goals(result)}


@contextmanager
def _running(rounds: int, quick: bool) -> Iterator[Bench]:
    with (
        tempfile.TemporaryDirectory(prefix="mzstore-bench-") as folder,
        SeaweedFS(Path(folder) / "server") as server,
        Link(server.port) as link,
    ):
        # TensorStore has no other way to be given credentials; processes started from here inherit it.
        os.environ.update(server.environment(link.endpoint))
        work = Path(folder) / "work"
        work.mkdir()
        yield Bench(server, link, work, rounds, quick)


def _say(text: str) -> None:
    print(text, file=sys.stderr)


# Whole models


def _models(bench: Bench, model: Path | None, big: float, links: list[float]) -> Iterator[dict[str, Any]]:
    for name, dtype in ((model, None),) if model else ((minilm(), "bf16"), (minilm(), "fp32")):
        weights = read_weights(name, dtype, bench.work)
        about = {"model": weights.name, "dtype": weights.dtype}
        yield about | _compare(bench, weights.path, f"{weights.name}-{weights.dtype}", links)
    if big:
        path = bench.work / "big.safetensors"
        write_big(path, int(big * 1e9))
        yield {"model": f"synthetic, {big:g} GB", "dtype": "bf16"} | _compare(bench, path, "big", links)


def write_big(path: Path, nbytes: int) -> None:
    """A safetensors file of layers as those of a decoder of width 2048, as many as fit; its bytes depend on ``nbytes`` alone."""
    rng = np.random.default_rng(20)
    shapes = {
        "self_attn.q_proj": (2048, 2048),
        "self_attn.k_proj": (512, 2048),
        "self_attn.v_proj": (512, 2048),
        "self_attn.o_proj": (2048, 2048),
        "mlp.gate_proj": (5632, 2048),
        "mlp.up_proj": (5632, 2048),
        "mlp.down_proj": (2048, 5632),
        "input_layernorm": (2048,),
        "post_attention_layernorm": (2048,),
    }
    layer_nbytes = 2 * sum(math.prod(shape) for shape in shapes.values())
    n_layers, rest = divmod(nbytes, layer_nbytes)
    tensors = {"model.embed_tokens.weight": _normal(rng, (max(1, rest // 4096), 2048), 0.02)}
    for i in range(n_layers):
        for j, (name, shape) in enumerate(shapes.items()):
            values = _normal(rng, shape, 0.015 + 0.002 * j) if len(shape) > 1 else 1 + _normal(rng, shape, 0.1)
            tensors[f"model.layers.{i}.{name}.weight"] = values.astype(ml_dtypes.bfloat16)
    safetensors.numpy.save_file(tensors, path)


def _normal(rng: np.random.Generator, shape: tuple[int, ...], scale: float) -> np.ndarray:
    return (rng.standard_normal(shape, np.float32) * np.float32(scale)).astype(ml_dtypes.bfloat16)


def _compare(bench: Bench, path: Path, prefix: str, links: list[float]) -> dict[str, Any]:
    """Every loader at every link, with the weights in the safetensors file ``path``, which goes."""
    _say(prefix)
    archive, tree = bench.work / f"{prefix}.mz", bench.work / f"{prefix}.zarr"
    for target in (archive, tree):
        mzstore.convert(path, target, show_progress=False)
    expected = safetensors.numpy.load_file(path)
    (bench.work / "digests.json").write_text(json.dumps(digests(expected)))
    found = {
        "nbytes": sum(array.nbytes for array in expected.values()),
        "file_nbytes": path.stat().st_size,
        "archive_nbytes": archive.stat().st_size,
        "n_tensors": len(expected),
    }
    del expected
    bench.upload(path, f"{prefix}.safetensors")
    bench.upload(archive, f"{prefix}.mz")
    bench.upload(tree, f"{prefix}.zarr")
    path.unlink()
    names = [name for name in PEERS if name not in missing()]
    bench.link.set(gbit_per_s=FASTEST, rtt_ms=0)
    for name in names:
        _child(
            bench,
            name,
            prefix,
            "tensors = peer.load(); assert load_peers.digests(tensors) == json.load(open(sys.argv[4]))",
        )
    return found | {"rows": [row for gbit in links for row in _rows(bench, names, prefix, gbit, found["nbytes"])]}


def _rows(bench: Bench, names: list[str], prefix: str, gbit: float, nbytes: int) -> Iterator[dict[str, Any]]:
    _say(f"  {gbit:g} Gb/s")
    bench.link.set(gbit_per_s=gbit, rtt_ms=RTT_MS)
    runs: dict[str, list[tuple[Child, dict[str, int]]]] = {name: [] for name in names}

    def run(name: str) -> float:
        bench.link.counts()
        child = _child(bench, name, prefix, "tensors = peer.load()")
        runs[name].append((child, bench.link.counts()))
        return child.seconds

    times = take_turns({name: lambda name=name: run(name) for name in names}, bench.rounds, SLOW_SECONDS)
    for name in names:
        peak = max(child.peak for child, _ in runs[name])
        yield {
            "name": name,
            "compressed": PEERS[name].compressed,
            "gbit_per_s": gbit,
            "seconds": asdict(times[name]),
            "peak_nbytes": peak,
            "above_nbytes": peak - nbytes,
            **_largest([counts for _, counts in runs[name]]),
        }


def _child(bench: Bench, name: str, prefix: str, work: str) -> Child:
    imports = "sys.path.insert(0, sys.argv[1]); import load_peers; peer = load_peers.make(sys.argv[2], sys.argv[3])"
    return in_new_process(imports, work, TOOLS, name, bench.place(prefix).dump(), bench.work / "digests.json")


def _largest(counts: list[dict[str, int]]) -> dict[str, int]:
    return {key: max(each[key] for each in counts) for key in counts[0]}


# Opening


def _open(bench: Bench) -> list[dict[str, Any]]:
    _say(f"open {OPEN_TENSORS} tensors")
    rng = np.random.default_rng(21)
    tensors = {f"model.layers.{i // 8}.block.{i % 8}.weight": _normal(rng, (32, 64), 0.02) for i in range(OPEN_TENSORS)}
    archive = bench.work / "open.mz"
    mzstore.save(archive, tensors, show_progress=False)
    bench.upload(archive, "open.mz")
    bench.link.set(gbit_per_s=OPEN_GBIT, rtt_ms=RTT_MS)
    rows = []
    for name in (name for name in PEERS if name.startswith("mzstore") and name not in missing()):
        seconds, counts = [], []
        for _ in range(max(bench.rounds, 2)):  # the first one finds compiled bytecode missing, perhaps
            bench.link.counts()
            seconds.append(_child(bench, name, "open", f"assert peer.open() == {OPEN_TENSORS}").seconds)
            counts.append(bench.link.counts())
        rows.append(
            {
                "name": name,
                "archive_nbytes": archive.stat().st_size,
                "seconds": asdict(Times.of(seconds)),
                **_largest(counts),
            }
        )
    return rows


# Shards


def _shards(bench: Bench) -> list[dict[str, Any]]:
    _say("shards")
    rng = np.random.default_rng(22)
    shapes = QUICK_SHARD_SHAPES if bench.quick else SHARD_SHAPES
    tensors = {"x".join(map(str, shape)): _normal(rng, shape, 0.02) for shape in shapes}
    # The end of an archive comes with its opening: what lies there must not be a shard.
    last = {"last": rng.integers(0, 256, 4 << 20, np.uint8)}
    mzstore.save(bench.work / "shards.mz", tensors | last, show_progress=False)
    bench.upload(bench.work / "shards.mz", "shards.mz")
    bench.link.set(gbit_per_s=FASTEST, rtt_ms=0)
    place = bench.place("shards")
    with mzstore.open(place.url("mz"), storage_options=place.s3fs) as model:
        return [
            _shard_row(bench, model, name, array, axis, count)
            for name, array in tensors.items()
            for axis in range(array.ndim)
            for count in SHARD_COUNTS
        ]


def _shard_row(
    bench: Bench, model: mzstore.Model, name: str, array: np.ndarray, axis: int, count: int
) -> dict[str, Any]:
    length, stored = array.shape[axis], model[name].stored_nbytes
    worst: dict[str, Any] = {"ratio": 0.0}
    most_requests = 0.0
    for index in range(count):
        start, stop = bounds(length, index, count)
        plan = model.plan(name, shard=(index, count), axis=axis)
        needed = stored * (stop - start) / length
        limit = 1 + needed / (4 << 20) + 1
        most_requests = max(most_requests, plan.n_requests / limit)
        if plan.fetched_nbytes / needed > worst["ratio"]:
            worst = {
                "index": index,
                "needed_nbytes": round(needed),
                "wanted_nbytes": plan.wanted_nbytes,
                "fetched_nbytes": plan.fetched_nbytes,
                "ratio": plan.fetched_nbytes / needed,
                "requests": plan.n_requests,
                "requests_limit": limit,
                "memory_nbytes": plan.memory_nbytes,
            }
    row = {"tensor": name, "axis": axis, "count": count, **worst, "requests_of_limit": most_requests}
    return row | {"loaded": _loaded_shard(bench, model, name, array, axis, count, worst["index"])}


def _loaded_shard(
    bench: Bench, model: mzstore.Model, name: str, array: np.ndarray, axis: int, count: int, index: int
) -> dict[str, int]:
    """Load one shard, compare it, and what the link has counted. The plan says how much; headers come on top."""
    bench.link.counts()
    found = model.load(name, shard=(index, count), axis=axis, show_progress=False)[name]
    counts = bench.link.counts()
    cut = (slice(None),) * axis + (slice(*bounds(array.shape[axis], index, count)),)
    if found.tobytes() != array[cut].tobytes():
        raise RuntimeError(f"shard {index} of {count} on axis {axis} of {name!r} does not come back")
    return counts

"""Goals: what mzstore promises, and whether a result of the benchmarks ``lossless``, ``load``, ``lossy``, ``sparse``, ``convert`` and ``checkpoint`` meets it."""

import operator
from typing import Any

SIGNS = {"<=": operator.le, ">=": operator.ge, ">": operator.gt}
# By how much fewer bits a weight than a rival's, at the rival's SNR.
FEWER_BITS = {
    "Q8_0": 0.08, "Q6_K": 0.07, "Q5_K": 0.08, "Q4_K": 0.09, "IQ4_XS": 0.07, "MXFP4": 0.19, "Q3_K": 0.12, "Q2_K": 0.15, "NF4": 0.10,
}  # fmt: skip

# What cannot be known from a result (a peer is missing, a dtype was not asked for) is neither met nor not.


def goals(result: dict[str, Any]) -> list[dict[str, Any]]:
    """For each goal: what, limit, measured and met (both None where the result does not tell)."""
    by_dtype = {model["dtype"]: model for model in result["models"]}
    bf16 = by_dtype.get("bf16")
    found = [_goal("bf16 balanced: stored / file", "<=", 0.667, _of(bf16, "mzstore balanced", "ratio"))]
    for dtype in ("bf16", "fp32", "fp16"):
        found.append(_goal(f"{dtype} max: size / size of lmz", "<=", 1.0, _size_to_lmz(by_dtype.get(dtype))))
    for operation, ours, peer, factor in (
        ("decode", "decode", "zipnn", 2.0),
        ("decode", "decode", "lmz", 5.0),
        ("encode", "encode", "zipnn", 3.0),
        ("encode", "encode", "lmz", 1.0),
        ("encode", "save", "lmz", 1.0),
    ):
        title = f"bf16 balanced, 1 thread: speed of {ours} / {operation} of {peer}"
        found.append(_goal(title, ">=", factor, _speed_to(bf16, operation, ours, peer)))
    found.append(_goal("bf16: Model.load, new process / safetensors load_file", "<=", 3.0, _load_to_safetensors(bf16)))
    shares = [row["container_share"] for model in result["models"] for row in model["rows"] if "container_share" in row]
    found.append(_goal("container and documents, part of the archive, worst", "<=", 0.005, max(shares, default=None)))
    found.append(_goal("import beyond numpy, s", "<=", 0.15, result["import"]["seconds_beyond_numpy"]["best"]))
    big = result["big"]
    title = "peak memory of converting a big file, MB" + (f" ({big['nbytes'] / 1e9:.1f} GB)" if big else " (--big)")
    found.append(_goal(title, "<=", 400.0, big["peak"] / 1e6 if big else None))
    return found


def load_goals(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The same for a result of the benchmark ``load``."""
    found = []
    for model in result["models"]:
        for gbit in [link["gbit_per_s"] for link in result["links"]]:
            # Up to 1 Gb/s the link decides; above it, how fast weights are decoded beside everything else here.
            limit = 0.70 if gbit <= 1 else 1.1
            size = model["archive_nbytes"] / model["file_nbytes"]
            title = (
                f"{model['model']} as {model['dtype']} (size {size:.3f}), {gbit:g} Gb/s: time / best of uncompressed"
            )
            found.append(_goal(title, "<=", limit, _load_to_uncompressed(model, gbit)))
    opened = result["open"]
    requests, seconds = (row["requests"] for row in opened), (row["seconds"]["best"] for row in opened)
    found.append(_goal("open 1000 tensors: requests", "<=", 2, max(requests, default=None)))
    found.append(_goal("open 1000 tensors: ms, best adapter", "<=", 100, _scaled(min(seconds, default=None), 1e3)))
    above = [row["above_nbytes"] for model in result["models"] for row in _rows(model, "mzstore,")]
    found.append(_goal("memory above the weights, worst, MB", "<=", 256, _scaled(max(above, default=None), 1e-6)))
    for count in sorted({row["count"] for row in result["shards"]}):
        rows = [row for row in result["shards"] if row["count"] == count]
        found.append(_goal(f"{count}-way shards: fetched / needed, worst", "<=", 1.15, max(r["ratio"] for r in rows)))
        most = max(row["requests_of_limit"] for row in rows)
        found.append(_goal(f"{count}-way shards: requests / (1 + bytes / 4 MiB + 1), worst", "<=", 1.0, most))
    return found


def lossy_goals(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The same for a result of the benchmark ``lossy``."""
    rows = {row["name"]: row for row in result["rows"]}
    found = []
    for name, percent in FEWER_BITS.items():
        measured = rows[name]["at_its_snr"]["fewer"] if name in rows else None
        found.append(_goal(f"bits at the SNR of {name}: part that is saved", ">=", percent, measured))
    for bits, what, title, unit, limit in (
        (4, "decode_bfloat16", "decode to bf16, G weights/s", 1e-9, 1.5),
        (2, "decode_bfloat16", "decode to bf16, G weights/s", 1e-9, 2.5),
        (4, "encode", "encode, M weights/s", 1e-6, 50.0),
    ):
        measured = rows[f"mzstore {bits}"]["weights_per_s"][what] * unit
        found.append(_goal(f"{bits} bits, 1 thread: {title}", ">=", limit, measured))
    found.append(_goal("cosine of embeddings at the size of Q4_K, less Q4_K's", ">", 0.0, _closer(rows.get("Q4_K"))))
    return found


def sparse_goals(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The same for a result of the benchmark ``sparse``."""
    ours = {row["density"]: row for row in result["rows"] if row["name"] == "mzstore"}
    found = [
        _goal(f"index at a density of {density:.0%}: bits / H(p)", "<=", 1.05, ours[density]["index_to_entropy"])
        for density in (0.01, 0.05, 0.1)
    ]
    speed = ours[0.1]["weights_per_s"] * 1e-9
    found.append(_goal("90 % sparse bf16, 1 thread: decode, G weights/s", ">=", 1.5, speed))
    title = f"{result['model']} as bf16, 90 % pruned: archive / dense"
    found.append(_goal(title, "<=", 0.11, result["pruned"]["ratio"]))
    return found


def convert_goals(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The same for a result of the benchmark ``convert``."""
    memory = result["memory"] or []
    found = []
    for row in memory:
        title = f"peak memory of converting {row.get('nbytes', 0) / 1e9:.1f} GB of {row['format']}, MB"
        found.append(_goal(title, "<=", 500, _scaled(row.get("peak_nbytes"), 1e-6)))
    speeds = result["throughput"] and result["throughput"]["gb_per_s"]
    ratio = speeds["convert"]["2"] / speeds["encode"]["2"] if speeds and "2" in speeds["encode"] else None
    found.append(_goal("safetensors -> archive, 2 threads: speed / encoding alone", ">=", 0.8, ratio))
    gguf = result["gguf"] or {"missing": "", "lmz": {"nbytes": {}}}
    there, lmz = gguf["missing"] is None, gguf.get("lmz", {}).get("nbytes")
    identical = float(gguf["balanced"]["identical"] and gguf["max"]["identical"]) if there else None
    found.append(_goal("SmolLM2 Q4_1 GGUF, there and back: identical", ">=", 1, identical))
    smallest = min(gguf[level]["stored_nbytes"] for level in ("balanced", "max")) if there else None
    found.append(
        _goal("SmolLM2 Q4_1 GGUF: size / size of lmz", "<=", 1, smallest / min(lmz.values()) if there and lmz else None)
    )
    seconds = result["dask"] and result["dask"]["seconds"]
    found.append(
        _goal(
            "Dask, 2 workers instead of 1: times as fast", ">=", 1.6, seconds["1"] / seconds["2"] if seconds else None
        )
    )
    return found


def checkpoint_goals(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The same for a result of the benchmark ``checkpoint``."""
    runs = {run["name"]: run for run in result["runs"]}
    found = []
    for name in ("mzstore", "mzstore, chain=0"):
        stalls = [
            row["stall_seconds"] / run["copy_seconds"]["new"] for run in runs.values() for row in _local(run, name)
        ]
        found.append(_goal(f"{name}: stall / copy into new memory, worst", "<=", 1.5, max(stalls, default=None)))
    saves = result["saves"]
    dense = runs.get("dense")
    for peer, limit in (("torch.save", 0.75), ("moonclip", 1.0)):
        title = f"{saves} dense checkpoints: bytes / {peer}"
        found.append(_goal(title, "<=", limit, _bytes_to(dense, peer)))
    title = f"{saves} checkpoints, 90 % of the weights frozen: bytes / torch.save"
    found.append(_goal(title, "<=", 0.15, _bytes_to(runs.get("frozen"), "torch.save")))
    return found


def _local(run: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    return [row for row in run["rows"] if row["name"] == name and not row["s3"]] if run else []


def _bytes_to(run: dict[str, Any] | None, peer: str) -> float | None:
    ours, theirs = ([row["total_nbytes"] for row in _local(run, name)] for name in ("mzstore", peer))
    return ours[0] / theirs[0] if ours and theirs else None


def _closer(row: dict[str, Any] | None) -> float | None:
    """By how much our mean cosine is higher than a rival's, at no more bits."""
    if row is None or "cosine" not in row or row["at_its_size"] is None:
        return None
    return float(row["at_its_size"]["cosine"]["mean"] - row["cosine"]["mean"])


def _load_to_uncompressed(model: dict[str, Any], gbit: float) -> float | None:
    rows = [row for row in model["rows"] if row["gbit_per_s"] == gbit]
    ours = [row["seconds"]["best"] for row in rows if row["name"].startswith("mzstore,")]
    theirs = [row["seconds"]["best"] for row in rows if not row["compressed"]]
    return min(ours) / min(theirs) if ours and theirs else None


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _goal(what: str, sign: str, limit: float, measured: float | None) -> dict[str, Any]:
    met = None if measured is None else bool(SIGNS[sign](measured, limit))
    return {"goal": what, "limit": f"{sign} {limit:g}", "measured": measured, "met": met}


def _rows(model: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    """The rows of a peer: of all its levels if ``name`` is a first word."""
    return [row for row in model["rows"] if row["name"] == name or row["name"].split()[0] == name] if model else []


def _of(model: dict[str, Any] | None, name: str, key: str) -> float | None:
    return next((row[key] for row in _rows(model, name)), None)


def _size_to_lmz(model: dict[str, Any] | None) -> float | None:
    ours, theirs = _of(model, "mzstore max", "nbytes"), [row["nbytes"] for row in _rows(model, "lmz")]
    return ours / min(theirs) if ours and theirs else None


def _speed_to(model: dict[str, Any] | None, operation: str, ours: str, peer: str) -> float | None:
    """Our speed of ``ours`` by the speed of the peer's fastest level at ``operation``, both with one thread."""
    theirs = [row["gb_per_s"][operation]["1"] for row in _rows(model, peer)]
    mine = [row["gb_per_s"][ours]["1"] for row in _rows(model, "mzstore balanced")]
    return mine[0] / max(theirs) if mine and theirs else None


def _load_to_safetensors(model: dict[str, Any] | None) -> float | None:
    if model is None:
        return None
    calls = {name: call["call_seconds"]["best"] for name, call in model["new_process"].items()}
    return float(calls["mzstore balanced load"] / calls["safetensors load"])

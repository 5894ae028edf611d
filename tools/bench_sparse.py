"""The benchmark ``sparse``: bits and speed of tensors that are mostly zeros, and what pruning and factors do to a model."""

import io
import math
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from bench_lossy import Mzstore, at_size, find_embedder, say
from embeddings import COUNT, Embedder
from goals import sparse_goals
from lossy_peers import Matrices
from measure import Operation, commit, machine, take_turns
from peers import read_weights
from sparse_peers import peers

import mzstore
from mzstore import Rule, kernels

BF16 = np.dtype(ml_dtypes.bfloat16)
ROUNDS = 5
SIDE, QUICK_SIDE = 4096, 512  # of the matrix
DENSITIES = (0.5, 0.25, 0.1, 0.05, 0.01)
SPARSITY = 0.9  # to which a real model is pruned
PRUNED_AND_QUANTIZED = ((0.3, 4), (0.5, 4), (0.5, 6), (0.75, 4))  # part that becomes 0, bits of a value that stays
RANKS = (32, 64, 128, 192)
OUTLIERS = ("0.1%", "0.5%", "1%")

CONDITIONS = (
    "Matrix: {side} x {side}, normal bfloat16 values at random positions, zeros elsewhere. All in one process, with 1 thread, from "
    "memory to memory, in turns, rounds: {rounds}; a figure is the best of them (operations of more than a second run once).",
    "bits/weight: all that is stored. mzstore: chunks of the archive with their checksums; 'all' is the whole archive. scipy: an npz "
    "of a csr_array whose values are words of 16 bits (SciPy has no bfloat16), int32 indices. COO: two int32 arrays and the values, "
    "in safetensors. bitmap + zstd: a bit for each weight, and the values, each in a zstd frame of level 3.",
    "H(p): entropy of where values are, -p log2 p - (1 - p) log2(1 - p) bits a weight, p as it is in the matrix.",
    "decode: into dense bfloat16. mzstore: open the archive's bytes and read into an array that is there, checksums included. scipy: "
    "csr_array.toarray(out=) from arrays in memory. torch: to_dense() of a sparse tensor in memory, which makes a new one. "
    "bitmap + zstd: NumPy. What scipy and torch have in memory takes 3 to 6 times what mzstore reads.",
    "{model}: tensors of two axes or more are pruned by magnitude, each to a sparsity of {sparsity}, as bfloat16; the others are whole. "
    "The values that stay are compared bit for bit.",
    "cosine: mean over {sentences} sentences between the embeddings of the float32 model and of the model with these tensors (large "
    "matrices, from float32); see the benchmark lossy. 'at its size': quantized alone, with at most as many bits. Nothing is trained "
    "again afterwards, and there is no data to prune by: these are the costs of magnitude pruning and truncation alone.",
)  # fmt: skip


def sparse(model: Path, *, quick: bool) -> dict[str, Any]:
    """Everything measured, as JSON can hold it."""
    rounds = 1 if quick else ROUNDS
    before = machine()
    kernels.load()
    kernels.load_sparse()
    missing: dict[str, str] = {}
    rows = []
    for density in DENSITIES:
        say(f"  {density:.0%} of the values")
        rows += _rows(QUICK_SIDE if quick else SIDE, density, rounds, missing)
    say(f"  {model.name}")
    with tempfile.TemporaryDirectory(prefix="mzstore-bench-") as work:
        pruned = _pruned(read_weights(model, "bf16", Path(work)).tensors)
        weights = read_weights(model, "fp32", Path(work))
    matrices = Matrices.of(weights.tensors)
    embedder, why = find_embedder(model)
    if why:
        missing["embeddings"] = why
    result = {
        "benchmark": "sparse",
        "commit": commit(),
        "machine": before,
        "quick": quick,
        "model": weights.name,
        "n_weights": matrices.count,
        "conditions": [
            text.format(
                side=QUICK_SIDE if quick else SIDE,
                rounds=rounds,
                sentences=COUNT,
                model=weights.name,
                sparsity=SPARSITY,
            )
            for text in CONDITIONS
        ],
        "rows": rows,
        "pruned": pruned,
        "approximations": _approximations(matrices, embedder),
        "missing": missing,
    }
    return result | {"goals": sparse_goals(result)}


def matrix(side: int, density: float) -> np.ndarray:
    """bfloat16 [side, side]: that part of normal values, and zeros."""
    rng = np.random.default_rng(round(1 / density))
    values = rng.standard_normal((side, side), np.float32)
    values[values == 0] = 1
    return np.where(rng.random((side, side), np.float32) < density, values, np.float32(0)).astype(BF16)


def entropy(p: float) -> float:
    """Bits that it takes to tell which ones of many things, of which a part ``p`` is taken, are."""
    return -p * math.log2(p) - (1 - p) * math.log2(1 - p) if 0 < p < 1 else 0.0


def _rows(side: int, density: float, rounds: int, missing: dict[str, str]) -> list[dict[str, Any]]:
    values = matrix(side, density)
    p = np.count_nonzero(values) / values.size
    archive = _saved({"w": values})
    out = np.empty_like(values)

    def decode() -> None:
        with mzstore.open(archive) as opened:
            opened["w"].read(out, threads=1)

    decode()
    assert out.tobytes() == values.tobytes()
    with mzstore.open(archive) as opened:
        sizes, encoding = opened.reader.sizes(), opened["w"].encoding
    index = sum(nbytes for key, nbytes in sizes.items() if key.startswith(("w/positions/c", "w/low/c")))
    stored = sum(nbytes for key, nbytes in sizes.items() if key.startswith("w/") and "/c/" in key)

    def bits(nbytes: float) -> float:
        return 8 * nbytes / values.size

    rows: list[dict[str, Any]] = [
        {
            "name": "mzstore",
            "encoding": encoding,
            "index_bits": bits(index),
            "value_bits": bits(stored - index),
            "bits": bits(len(archive)),
            "index_to_entropy": bits(index) / entropy(p),
        }
    ]
    tasks: dict[str, Callable[[], float]] = {"mzstore": _timed(decode)}
    others, absent = peers(values)
    missing |= absent
    for peer in others:
        row: dict[str, Any] = {"name": peer.name}
        if (nbytes := peer.stored_nbytes()) is not None:
            row["bits"] = bits(nbytes)
        if peer.decodes:
            peer.decode()
            tasks[peer.name] = _timed(peer.decode)
        rows.append(row)
    times = take_turns(tasks, rounds)
    for row in rows:
        row |= {"density": density, "p": p, "entropy_bits": entropy(p)}
        if row["name"] in times:
            found = times[row["name"]]
            row |= {"seconds": asdict(found), "weights_per_s": values.size / found.best}
    return rows


def _timed(run: Callable[[], object]) -> Callable[[], float]:
    operation = Operation(lambda _: run())
    return lambda: operation.seconds(1)


def _saved(tensors: dict[str, np.ndarray], *rules: Rule) -> bytes:
    archive = io.BytesIO()
    recipe = mzstore.Recipe(rules, defaults=False) if rules else None
    mzstore.save(archive, tensors, recipe=recipe, threads=1, show_progress=False)
    return archive.getvalue()


def _pruned(tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """What a whole model takes whose matrices are pruned."""
    archive = _saved(tensors, Rule(ndim=[2, 3, 4], dtype="bfloat16", sparsity=SPARSITY))
    kept = whole = 0
    with mzstore.open(archive) as opened:
        for name, a in tensors.items():
            found = opened[name][...]
            stays = found.view(np.uint16) != 0 if a.dtype == BF16 else np.ones(a.shape, bool)
            assert found[stays].tobytes() == a[stays].tobytes(), name
            if a.ndim >= 2:
                kept, whole = kept + int(stays.sum()), whole + a.size
    nbytes = sum(a.nbytes for a in tensors.values())
    return {"nbytes": nbytes, "stored_nbytes": len(archive), "ratio": len(archive) / nbytes, "kept": kept / whole}


class _Approximated(Mzstore):
    """mzstore as it approximates matrices by one rule."""

    def by(self, rule: Rule) -> bytes:
        return _saved(self._matrices.tensors, rule)


def _approximations(matrices: Matrices, embedder: Embedder | None) -> list[dict[str, Any]]:
    ours = _Approximated(matrices)
    rules = {"quantized, 3 bits": Rule(bits=3)}
    for sparsity, bits in PRUNED_AND_QUANTIZED:
        rules[f"sparsity {sparsity:g}, values of {bits} bits"] = Rule(sparsity=sparsity, bits=bits)
    for rank in RANKS:
        rules[f"rank {rank}, bfloat16"] = Rule(rank=rank, factor_dtype="bfloat16")
    rules["rank 64 + quantized, 3 bits"] = Rule(parts=["lowrank rank=64 factor_dtype=bfloat16", "quantized bits=3"])
    for top in OUTLIERS:
        rules[f"quantized, 3 bits + {top} exact"] = Rule(parts=["quantized bits=3", f"sparse top={top}"])
    rows = []
    for name, rule in rules.items():
        say(f"  {name}")
        archive = ours.by(rule)
        decoded = ours.decode(archive, "float32")
        bits = 8 * len(archive) / matrices.count
        row: dict[str, Any] = {"name": name, "bits": bits, "snr_db": matrices.snr_db(decoded)}
        if embedder:
            row["cosine"] = embedder.cosine(decoded)
        if len(rows):  # the first one is quantized alone
            row["at_its_size"] = at_size(ours, matrices, bits, embedder)
        rows.append(row)
    return rows

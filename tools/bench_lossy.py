"""The benchmark ``lossy``: bits, error and speed of quantized weights beside what else there is, and embeddings."""

import io
import itertools
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from embeddings import COUNT, Embedder
from goals import lossy_goals
from lossy_peers import DTYPES, Matrices, Peer, peers
from measure import Operation, commit, machine, take_turns
from peers import read_weights

import mzstore
from mzstore import kernels

ROUNDS = 5
RATES = tuple(half / 2 for half in range(4, 18))  # bits asked for: 2 to 8.5
QUICK_RATES = (2.0, 4.0, 8.0)
DB_PER_BIT = float(20 * np.log10(2))  # the Gaussian bound; all good quantizers have this slope at high rates
NEAR_DB = 0.005  # no nearer is asked for
MOST_STEPS = 5

CONDITIONS = (
    "Weights: float tensors of two or more axes and more than 100000 values, as float32, whatever they were. All peers run in one "
    "process and take turns, with 1 thread, from memory to memory, rounds: {rounds}; a figure is the best of them (operations of "
    "more than a second run once).",
    "bits/weight: all that is stored. mzstore: the bytes of an archive that holds these tensors and nothing else, documents, index "
    "and checksums included. The others: the packed blocks alone, without a file around them.",
    "SNR: -10 log10 of (squared error / mean square), the mean over tensors weighted by their sizes; decoded as float32. "
    "Gaussian bound: SNR / {db:.4f} bits for independent normal values.",
    "mzstore encode: the whole of mzstore.save into a BytesIO. decode: mzstore.open of the archive's bytes and Tensor.read of all "
    "tensors into arrays that are there.",
    "llama.cpp: ggml's library, flat rows of 256 (it would refuse K types for rows that 256 does not divide), no weights of "
    "importance; it has no dequantization to bfloat16, so 64 Ki values at a time are dequantized and cast by its own function. "
    "gguf and NF4 are NumPy: their speeds are not what these formats allow.",
    "'at its SNR': mzstore's bits where it has the SNR of that row. All tensors are asked for one snr_db, which is found by "
    "at most {steps} encodings (secants); the bits are interpolated between the two nearest measured points around it, or, "
    "where all lie on one side, taken from the nearest with {db:.2f} dB a bit.",
    "cosine: mean over {sentences} sentences (docstrings of the standard library of this Python, chosen by their SHA-256; mean "
    "pooling, normalised) between the embeddings of the float32 model and of the model with these tensors. 'at its size': "
    "mzstore's, with at most as many bits as that row.",
)  # fmt: skip


class Mzstore:
    """mzstore as this benchmark uses it. A target is what Recipe takes: ``bits``, ``snr_db``."""

    def __init__(self, matrices: Matrices) -> None:
        self._matrices = matrices

    def encode(self, **target: float) -> bytes:
        archive = io.BytesIO()
        recipe = mzstore.Recipe(**target)
        mzstore.save(archive, self._matrices.tensors, recipe=recipe, threads=1, show_progress=False)
        return archive.getvalue()

    def decode(self, archive: bytes, dtype: str) -> dict[str, np.ndarray]:
        out = self._matrices.shaped(self._matrices.out[dtype])
        with mzstore.open(archive) as model:
            for name, array in out.items():
                model[name].read(array, dtype=dtype, threads=1)
        return out


class AtRate:
    """mzstore asked for so many bits, as a peer."""

    encodes = True

    def __init__(self, ours: Mzstore, bits: float) -> None:
        self.name, self.asked = f"mzstore {bits:g}", bits
        self._ours = ours

    def encode(self) -> None:
        self._archive = self._ours.encode(bits=self.asked)

    def stored_nbytes(self) -> int:
        return len(self._archive)

    def decode(self, dtype: str) -> dict[str, np.ndarray]:
        return self._ours.decode(self._archive, dtype)


def lossy(model: Path, *, quick: bool, fetch: bool, plot: Path) -> dict[str, Any]:
    """Everything measured, as JSON can hold it. ``fetch``: whether ggml's library may be; ``plot``: a PNG to write."""
    rounds = 1 if quick else ROUNDS
    before = machine()
    with tempfile.TemporaryDirectory(prefix="mzstore-bench-") as work:
        weights = read_weights(model, "fp32", Path(work))
    matrices = Matrices.of(weights.tensors)
    kernels.load()
    ours = Mzstore(matrices)
    rivals, missing = peers(matrices, fetch=fetch)
    embedder, why = find_embedder(model)
    if why:
        missing["embeddings"] = why
    found: list[Peer] = [*(AtRate(ours, bits) for bits in (QUICK_RATES if quick else RATES)), *rivals]
    rows = _rows(found, matrices, embedder, rounds)
    for row in rows:
        if not row["name"].startswith(("mzstore", "gguf")):
            say(f"  mzstore as good and as large as {row['name']}")
            row["at_its_snr"] = _at_snr(ours, matrices, row)
            row["at_its_size"] = at_size(ours, matrices, row["bits"], embedder)
    result = {
        "benchmark": "lossy",
        "commit": commit(),
        "machine": before,
        "quick": quick,
        "model": weights.name,
        "n_tensors": len(matrices.tensors),
        "n_weights": matrices.count,
        "conditions": [
            text.format(rounds=rounds, db=DB_PER_BIT, steps=MOST_STEPS, sentences=COUNT) for text in CONDITIONS
        ],
        "sentences_sha256": embedder.sha256 if embedder else None,
        "rows": rows,
    }
    try:
        result["plot"] = _plot(result, plot)
    except ImportError as error:
        missing["plot"] = f"{error}; pip install 'mzstore[bench]'"
        result["plot"] = None
    return result | {"missing": missing, "goals": lossy_goals(result)}


def say(text: str) -> None:
    print(text, file=sys.stderr)


def find_embedder(model: Path) -> tuple[Embedder | None, str | None]:
    """The model that embeds, or why there is none."""
    try:
        return Embedder(model), None
    except ImportError as error:
        return None, f"{error}; pip install 'mzstore[bench]'"
    except RuntimeError as error:
        return None, str(error)


def _rows(found: list[Peer], matrices: Matrices, embedder: Embedder | None, rounds: int) -> list[dict[str, Any]]:
    rows = []
    for peer in found:
        say(f"  {peer.name}")
        peer.encode()
        for dtype in DTYPES:
            decoded = peer.decode(dtype)  # for the first time: it may compile
        bits, snr_db = 8 * peer.stored_nbytes() / matrices.count, matrices.snr_db(decoded)
        row = {"name": peer.name, "bits": bits, "snr_db": snr_db, "above_bound": bits - snr_db / DB_PER_BIT}
        if isinstance(peer, AtRate):
            row["asked_bits"] = peer.asked
        if embedder and peer.encodes:
            row["cosine"] = embedder.cosine(decoded)
        rows.append(row)
    tasks: dict[tuple[str, str], Callable[[], float]] = {}
    for peer in found:
        if peer.encodes:
            tasks[peer.name, "encode"] = _timed(lambda peer=peer: peer.encode())
        for dtype in DTYPES:
            tasks[peer.name, f"decode_{dtype}"] = _timed(lambda peer=peer, dtype=dtype: peer.decode(dtype))
    say("times")
    times = take_turns(tasks, rounds)
    for row in rows:
        here = {what: t for (who, what), t in times.items() if who == row["name"]}
        row["seconds"] = {what: asdict(t) for what, t in here.items()}
        row["weights_per_s"] = {what: matrices.count / t.best for what, t in here.items()}
    return rows


def _timed(run: Callable[[], object]) -> Callable[[], float]:
    operation = Operation(lambda _: run())
    return lambda: operation.seconds(1)


def _at_snr(ours: Mzstore, matrices: Matrices, rival: dict[str, Any]) -> dict[str, Any]:
    """Our bits at the SNR of ``rival``, and the points that they come from."""
    wanted = rival["snr_db"]

    def measure(target: float) -> dict[str, float]:
        archive = ours.encode(snr_db=target)
        snr_db = matrices.snr_db(ours.decode(archive, "float32"))
        return {"asked": target, "bits": 8 * len(archive) / matrices.count, "snr_db": snr_db}

    points = search(measure, wanted)
    bits = interpolated(points, wanted)
    return {"bits": bits, "fewer": 1 - bits / rival["bits"], "points": points}


def search(measure: Callable[[float], dict[str, float]], wanted: float) -> list[dict[str, float]]:
    """Points whose ``snr_db`` comes near ``wanted``, as they were measured."""
    points = [measure(wanted)]
    while len(points) < MOST_STEPS and abs(miss := wanted - points[-1]["snr_db"]) > NEAR_DB:
        slope = 1.0
        if len(points) > 1:
            asked, reached = (points[-1][key] - points[-2][key] for key in ("asked", "snr_db"))
            if not reached:
                break  # it reaches the same for different targets: no nearer than this
            slope = min(4.0, max(0.25, asked / reached))
        points.append(measure(points[-1]["asked"] + miss * slope))
    return points


def interpolated(points: list[dict[str, float]], wanted: float) -> float:
    """Bits at the SNR ``wanted``: between the nearest points on both sides, else with the slope of the bound."""
    below = [point for point in points if point["snr_db"] <= wanted]
    above = [point for point in points if point["snr_db"] >= wanted]
    if not below or not above:
        nearest = min(points, key=lambda point: abs(point["snr_db"] - wanted))
        return nearest["bits"] + (wanted - nearest["snr_db"]) / DB_PER_BIT
    a = max(below, key=lambda point: point["snr_db"])
    b = min(above, key=lambda point: point["snr_db"])
    if a["snr_db"] == b["snr_db"]:
        return min(a["bits"], b["bits"])
    share = (wanted - a["snr_db"]) / (b["snr_db"] - a["snr_db"])
    return a["bits"] + share * (b["bits"] - a["bits"])


def at_size(ours: Mzstore, matrices: Matrices, bits: float, embedder: Embedder | None) -> dict[str, Any] | None:
    """What we make of at most ``bits`` a weight; None if even asking for less than that gives more."""
    asked = bits
    for _ in range(MOST_STEPS):
        archive = ours.encode(bits=asked)
        found = 8 * len(archive) / matrices.count
        if found <= bits:
            decoded = ours.decode(archive, "float32")
            row: dict[str, Any] = {"asked_bits": asked, "bits": found, "snr_db": matrices.snr_db(decoded)}
            return row | ({"cosine": embedder.cosine(decoded)} if embedder else {})
        asked -= 1.05 * (found - bits)
    return None


def _plot(result: dict[str, Any], path: Path) -> str:
    """SNR against bits, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.5), layout="constrained")
    axes = figure.add_subplot()
    ours = [row for row in result["rows"] if "asked_bits" in row]
    theirs = [row for row in result["rows"] if not row["name"].startswith(("mzstore", "gguf"))]
    most = max(row["bits"] for row in result["rows"])
    axes.plot(
        [1.5, most + 0.3], [1.5 * DB_PER_BIT, (most + 0.3) * DB_PER_BIT], "--", color="0.5", label="Gaussian bound"
    )
    axes.plot([row["bits"] for row in ours], [row["snr_db"] for row in ours], "o-", color="tab:blue", label="mzstore")
    # Around 4 bits they stand too close for labels beside them.
    for row, marker in zip(theirs, itertools.cycle("sDv^<>pPX*")):
        axes.plot(row["bits"], row["snr_db"], marker, label=row["name"])
    axes.set(
        xlabel="bits a weight, all included",
        ylabel="SNR, dB",
        title=f"{result['model']}: {result['n_weights']} weights",
    )
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return str(path)

"""The benchmark ``coder``: settings of zstd on the plane of the exponents."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from measure import commit, machine, take_turns
from peers import read_weights

from mzstore.interleave import Fields, tops
from mzstore.payload import CODERS

ROUNDS = 5
MOST_NBYTES = 8 << 20  # of the plane: level 19 does 2 MB/s
CHUNK_NBYTES = 1 << 20


def coder(model: Path, dtype: str | None, *, quick: bool) -> dict[str, Any]:
    """Size and speed of each setting on the first plane of ``model``, in chunks of 1 MiB, as JSON can hold it."""
    with tempfile.TemporaryDirectory() as work:
        weights = read_weights(model, dtype, Path(work))
    bits = {"bf16": 16, "fp16": 16, "fp32": 32}[weights.dtype]
    arrays = [a.reshape(-1).view(f"u{bits // 8}") for a in weights.tensors.values() if a.dtype.itemsize * 8 == bits]
    plane = tops(np.concatenate(arrays)[:MOST_NBYTES], Fields(bits, 8, rotate=True)).astype(np.uint8)
    starts = range(0, plane.size, CHUNK_NBYTES)
    chunks = [plane[start : start + CHUNK_NBYTES] for start in starts]
    out = np.zeros_like(plane)
    targets = [out[start : start + CHUNK_NBYTES] for start in starts]

    compressors = {
        name: zstandard.ZstdCompressor(compression_params=setting)
        for name, setting in {
            **{f"level {n}": zstandard.ZstdCompressionParameters.from_level(n) for n in (1, 3, 19)},
            **CODERS,
        }.items()
    }
    frames = {name: [compressor.compress(chunk) for chunk in chunks] for name, compressor in compressors.items()}
    decoder = zstandard.ZstdDecompressor()

    def compress(name: str) -> None:
        for chunk in chunks:
            compressors[name].compress(chunk)

    def decompress(name: str) -> None:
        for frame, target in zip(frames[name], targets, strict=True):
            decoder.stream_reader(frame).readinto(target)

    tasks = {(name, do): _timed(do, name) for name in compressors for do in (compress, decompress)}
    times = take_turns(tasks, 1 if quick else ROUNDS)
    return {
        "benchmark": "coder",
        "commit": commit(),
        "machine": machine(),
        "model": weights.name,
        "dtype": weights.dtype,
        "nbytes": plane.size,
        "entropy": _entropy(plane) / 8,
        "rows": [
            {
                "name": name,
                "ratio": sum(map(len, frames[name])) / plane.size,
                "compress_mb_per_s": plane.size / times[name, compress].best / 1e6,
                "decompress_mb_per_s": plane.size / times[name, decompress].best / 1e6,
            }
            for name in compressors
        ],
    }


def _timed(do: Callable[[str], None], name: str) -> Callable[[], float]:
    def seconds() -> float:
        start = time.perf_counter()
        do(name)
        return time.perf_counter() - start

    return seconds


def _entropy(plane: np.ndarray) -> float:
    """Bits a symbol."""
    counts = np.bincount(plane)
    share = counts[counts > 0] / plane.size
    return float(-(share * np.log2(share)).sum())

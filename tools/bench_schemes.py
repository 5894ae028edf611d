"""What the codes of quantized checkpoints become when they are stored losslessly: ``python tools/bench_schemes.py``.

The weights are matrices of all-MiniLM-L6-v2, each quantized by rounding to the nearest, and laid out as the schemes do. The entropy is
that of single codes, in one table for each matrix. Sizes are those of the chunks; they are the same on every machine.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
from real_models import minilm
from safetensors.numpy import load_file

import mzstore
from mzstore.schemes.awq import ORDER

GROUP, BLOCK = 128, 64
ARCHIVE_LEVELS = ("balanced", "max")
NF4 = (
    -1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.091050036, 0.0, 0.0795803, 0.1609302, 0.2461123, 0.33791524,
    0.44070983, 0.562617, 0.72295684, 1.0,
)  # fmt: skip


def entropy(codes: np.ndarray, bits: int) -> float:
    """Of one code, as a part of its bits."""
    shares = np.bincount(codes.reshape(-1), minlength=2**bits) / codes.size
    shares = shares[shares > 0]
    return float(-(shares * np.log2(shares)).sum() / bits)


def integers(values: np.ndarray, symmetric: bool) -> np.ndarray:
    """uint32 [out, in]: 4 bits in groups of GROUP."""
    groups = values.reshape(values.shape[0], -1, GROUP)
    if symmetric:
        scale, zero = 2 * np.abs(groups).max(-1, keepdims=True) / 15, np.float32(8)
    else:
        low, high = np.minimum(groups.min(-1, keepdims=True), 0), np.maximum(groups.max(-1, keepdims=True), 0)
        scale = (high - low) / 15
        zero = np.round(-low / scale)
    return np.clip(np.round(groups / scale) + zero, 0, 15).reshape(values.shape).astype(np.uint32)


def packings(values: np.ndarray) -> Iterator[tuple[str, np.ndarray, float]]:
    """(scheme, the codes as it stores them, entropy)."""
    for name, symmetric in (("with zero points", False), ("symmetric", True)):
        codes = integers(values, symmetric)
        columns = np.ascontiguousarray(codes.T)
        eights = columns.reshape(-1, 8, columns.shape[1])
        yield f"GPTQ {name}", sum(eights[:, k] << np.uint32(4 * k) for k in range(8)).view(np.int32), entropy(codes, 4)
        eights = columns.reshape(columns.shape[0], -1, 8)
        words = sum(eights[..., ORDER[k]] << np.uint32(4 * k) for k in range(8))
        yield f"AWQ {name}", np.ascontiguousarray(words).view(np.int32), entropy(codes, 4)
    blocks = values.reshape(-1, BLOCK)
    blocks = blocks / np.abs(blocks).max(-1, keepdims=True)
    levels = np.array(NF4, np.float32)
    codes = np.searchsorted((levels[1:] + levels[:-1]) / 2, blocks.reshape(-1)).astype(np.uint8)
    yield "bitsandbytes NF4", ((codes[0::2] << 4) | codes[1::2])[:, None], entropy(codes, 4)
    blocks = values.reshape(-1, 32)
    exponents = np.floor(np.log2(np.abs(blocks).max(-1, keepdims=True))) - 2
    codes = (blocks / np.exp2(exponents)).astype(ml_dtypes.float4_e2m1fn).view(np.uint8) & 15
    yield "MXFP4", codes[:, 0::2] | (codes[:, 1::2] << 4), entropy(codes, 4)
    floats = (values / np.abs(values).max() * 448).astype(ml_dtypes.float8_e4m3fn)
    yield "fp8", floats, entropy(floats.view(np.uint8), 8)


def main() -> None:
    weights = {
        k: v for k, v in load_file(minilm() / "model.safetensors").items() if v.ndim == 2 and not v.shape[1] % GROUP
    }
    schemes: dict[str, dict[str, np.ndarray]] = {}
    bits: dict[str, float] = {}
    for name, values in weights.items():
        if values.shape[0] % 8:
            continue
        for scheme, codes, least in packings(values.astype(np.float32)):
            schemes.setdefault(scheme, {})[name] = codes
            bits[scheme] = bits.get(scheme, 0) + least * codes.nbytes
    print(f"| stored / codes | entropy | {' | '.join(ARCHIVE_LEVELS)} |\n|---|---|{'---|' * len(ARCHIVE_LEVELS)}")
    for scheme, tensors in schemes.items():
        nbytes = sum(codes.nbytes for codes in tensors.values())
        stored = [stored_nbytes(tensors, level) / nbytes for level in ARCHIVE_LEVELS]
        print(
            f"| {scheme} | {bits[scheme] / nbytes:.3f} | {' | '.join(f'{each:.3f}' for each in stored)} |", flush=True
        )


def stored_nbytes(tensors: dict[str, np.ndarray], level: str) -> int:
    """Of all chunks."""
    with tempfile.TemporaryDirectory() as folder:
        mzstore.save(Path(folder) / "m.mz", tensors, level=level, show_progress=False)
        with mzstore.open(Path(folder) / "m.mz") as model:
            return sum(tensor.stored_nbytes for tensor in model.values())


if __name__ == "__main__":
    main()

"""Peers of the benchmark ``lossy``: llama.cpp's types, by ggml's library and by the package gguf, and NF4.

All quantize the same matrices, flat, with one thread, from memory to memory.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import ml_dtypes
import numpy as np
from ggml import ROW, Ggml

GGML_TYPES = ("Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q4_0", "IQ4_XS", "MXFP4", "Q3_K", "Q2_K")
MATRIX_SIZE = 100_000  # values that a tensor has to have more of
DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float32": np.dtype(np.float32)}


@dataclass(frozen=True)
class Matrices:
    """Weights to quantize: float32, at least two axes each."""

    tensors: dict[str, np.ndarray]

    @classmethod
    def of(cls, tensors: dict[str, np.ndarray]) -> "Matrices":
        """The large matrices among ``tensors``. Raises ValueError if there is none."""
        found = {
            name: np.ascontiguousarray(a)
            for name, a in tensors.items()
            if a.dtype == np.float32 and a.ndim >= 2 and a.size > MATRIX_SIZE and a.any()  # zeros have no SNR
        }
        if not found:
            raise ValueError(f"no float tensor with two axes and more than {MATRIX_SIZE} values")
        return cls(found)

    @property
    def count(self) -> int:
        return sum(a.size for a in self.tensors.values())

    @cached_property
    def flat(self) -> dict[str, np.ndarray]:
        """Each as one run of values, with zeros up to a multiple of the largest block."""
        return {
            name: np.pad(a.ravel(), (0, -a.size % ROW)) if a.size % ROW else a.ravel()
            for name, a in self.tensors.items()
        }

    @cached_property
    def out(self) -> dict[str, dict[str, np.ndarray]]:
        """Memory to decode into, by dtype: as long as ``flat``, and shared by all peers."""
        return {key: {name: np.zeros(a.size, dtype) for name, a in self.flat.items()} for key, dtype in DTYPES.items()}

    def shaped(self, flat: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: flat[name][: a.size].reshape(a.shape) for name, a in self.tensors.items()}

    def snr_db(self, decoded: dict[str, np.ndarray]) -> float:
        """-10 log10 of squared error / mean square, that quotient's mean over tensors, weighted by their sizes."""
        error = 0.0
        for name, a in self.tensors.items():
            difference = np.subtract(decoded[name], a, dtype=np.float64)
            error += np.square(difference).sum() / np.square(a, dtype=np.float64).mean()
        return float(-10 * np.log10(error / self.count))


class Peer(Protocol):
    """One quantizer at one rate."""

    name: str
    encodes: bool  # else it decodes what another one has encoded, to the same values

    def encode(self) -> None:
        """Make what is decoded and counted; called before anything else."""

    def stored_nbytes(self) -> int:
        """All that decoding needs."""

    def decode(self, dtype: str) -> dict[str, np.ndarray]:
        """All matrices, as bfloat16 or float32, in their shapes."""


class LlamaCpp:
    """One type of llama.cpp, as ggml's library makes it. Its own rows would not fit: llama.cpp wants multiples of 256."""

    encodes = True

    def __init__(self, matrices: Matrices, ggml: Ggml, kind: str) -> None:
        self.name = kind
        self._matrices, self._ggml = matrices, ggml
        self.packed = {name: np.zeros(ggml.nbytes(kind, a.size), np.uint8) for name, a in matrices.flat.items()}

    def encode(self) -> None:
        for name, values in self._matrices.flat.items():
            self._ggml.quantize(self.name, values, self.packed[name])

    def stored_nbytes(self) -> int:
        return sum(packed.nbytes for packed in self.packed.values())

    def decode(self, dtype: str) -> dict[str, np.ndarray]:
        out = self._matrices.out[dtype]
        for name, packed in self.packed.items():
            self._ggml.dequantize(self.name, packed, out[name])
        return self._matrices.shaped(out)


class GgufNumpy:
    """The same type with the NumPy code of the package gguf; of most types it can only decode."""

    def __init__(self, matrices: Matrices, source: LlamaCpp) -> None:
        import gguf

        self.name = f"gguf {source.name}"
        self._matrices, self._source, self._quants = matrices, source, gguf.quants
        self._kind = gguf.GGMLQuantizationType[source.name]
        try:
            gguf.quants.quantize(np.zeros((1, ROW), np.float32), self._kind)
            self.encodes = True
        except NotImplementedError:
            self.encodes = False

    def encode(self) -> None:
        self._packed = {
            name: self._quants.quantize(a.reshape(-1, ROW), self._kind) if self.encodes else self._source.packed[name]
            for name, a in self._matrices.flat.items()
        }

    def stored_nbytes(self) -> int:
        return sum(packed.nbytes for packed in self._packed.values())

    def decode(self, dtype: str) -> dict[str, np.ndarray]:
        flat = {name: self._quants.dequantize(packed, self._kind).ravel() for name, packed in self._packed.items()}
        return self._matrices.shaped({name: a.astype(DTYPES[dtype], copy=False) for name, a in flat.items()})


# QLoRA (Dettmers et al. 2023), appendix E.
NF4_LEVELS = np.array(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
        -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ],
    np.float32,
)  # fmt: skip
NF4_GROUP, NF4_SUPERGROUP = 64, 256  # weights to a scale, scales to a scale of scales
FLOAT8 = np.dtype(ml_dtypes.float8_e4m3fn)
FLOAT8_MAX = np.float32(448)


@dataclass(frozen=True, slots=True)
class Scales:
    """Double quantization: scales less their mean, as 8-bit floats, with a float32 for each 256 of them."""

    mean: np.float32
    codes: np.ndarray  # float8
    steps: np.ndarray  # float32

    @classmethod
    def of(cls, scales: np.ndarray) -> "Scales":
        mean = scales.mean(dtype=np.float32)
        groups = np.pad(scales - mean, (0, -scales.size % NF4_SUPERGROUP)).reshape(-1, NF4_SUPERGROUP)
        steps = np.abs(groups).max(1) / FLOAT8_MAX
        codes = (groups / np.where(steps, steps, 1)[:, None]).astype(FLOAT8).ravel()[: scales.size]
        return cls(mean, codes, steps)

    @property
    def nbytes(self) -> int:
        return self.mean.nbytes + self.codes.nbytes + self.steps.nbytes

    def decode(self) -> np.ndarray:
        return self.codes.astype(np.float32) * np.repeat(self.steps, NF4_SUPERGROUP)[: self.codes.size] + self.mean


class NF4:
    """NormalFloat4 with double quantization, as the QLoRA paper defines it, in NumPy: its speed says little."""

    name = "NF4"
    encodes = True

    def __init__(self, matrices: Matrices) -> None:
        self._matrices = matrices
        self._limits = (NF4_LEVELS[1:] + NF4_LEVELS[:-1]) / 2
        bytes_ = np.arange(256)
        self._pairs = np.stack([NF4_LEVELS[bytes_ >> 4], NF4_LEVELS[bytes_ & 15]], 1)

    def encode(self) -> None:
        self._codes, self._scales = {}, {}
        for name, values in self._matrices.flat.items():
            groups = values.reshape(-1, NF4_GROUP)
            scales = np.abs(groups).max(1)
            codes = np.searchsorted(self._limits, (groups / np.where(scales, scales, 1)[:, None]).ravel()).astype(
                np.uint8
            )
            self._codes[name] = codes[::2] << 4 | codes[1::2]
            self._scales[name] = Scales.of(scales)

    def stored_nbytes(self) -> int:
        return sum(codes.nbytes + self._scales[name].nbytes for name, codes in self._codes.items())

    def decode(self, dtype: str) -> dict[str, np.ndarray]:
        out = self._matrices.out[dtype]
        for name, codes in self._codes.items():
            groups = self._pairs[codes].reshape(-1, NF4_GROUP)
            np.multiply(
                groups, self._scales[name].decode()[:, None], out=out[name].reshape(groups.shape), casting="same_kind"
            )
        return self._matrices.shaped(out)


def peers(matrices: Matrices, *, fetch: bool) -> tuple[list[Peer], dict[str, str]]:
    """All that can run here, and why the others cannot, by name."""
    found: list[Peer] = [NF4(matrices)]
    try:
        ggml = Ggml(fetch=fetch)
    except RuntimeError as error:
        return found, {name: str(error) for kind in GGML_TYPES for name in (kind, f"gguf {kind}")}
    types = [LlamaCpp(matrices, ggml, kind) for kind in GGML_TYPES]
    missing = {}
    numpys: list[Peer] = []
    for source in types:
        try:
            numpys.append(GgufNumpy(matrices, source))
        except ImportError as error:
            missing[f"gguf {source.name}"] = f"{error}; pip install 'mzstore[bench]'"
    return [*types, *found, *numpys], missing

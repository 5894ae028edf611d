"""llama.cpp's quantization by ggml's own library, called with ctypes: Linux on x86-64 only.

The library comes out of a package on npm, unpacked into ./models. Nothing else of the package is run.
"""

import ctypes
import hashlib
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from real_models import MODELS

VERSION = "3.22.1"
PACKAGE = f"@node-llama-cpp/linux-x64@{VERSION}"
MEMBER = "package/bins/linux-x64/libggml-base.so"
SHA256 = "6c342c8aeb20cb31a18099d6f79de4de6703814d1cfd5c4d754a8643087e486e"
LIBRARY = MODELS / f"libggml-base-{VERSION}.so"

TYPES = {
    "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q2_K": 10, "Q3_K": 11, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14, "IQ2_XXS": 16,
    "IQ2_XS": 17, "IQ3_XXS": 18, "IQ1_S": 19, "IQ4_NL": 20, "IQ3_S": 21, "IQ2_S": 22, "IQ4_XS": 23, "IQ1_M": 29, "TQ1_0": 34, "TQ2_0": 35,
    "MXFP4": 39, "NVFP4": 40, "Q1_0": 41,
}  # fmt: skip
WEIGHTED = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S")
ROW = 256  # of all these types the largest block
PIECE = 256 * ROW  # decoded before it is cast: so much stays in a processor's own cache


class Ggml:
    """Raises RuntimeError if the library is not to be had. All arrays are contiguous, and multiples of ``ROW`` values."""

    def __init__(self, *, fetch: bool) -> None:
        self._lib = lib = ctypes.CDLL(str(library(fetch=fetch)))
        lib.ggml_quantize_chunk.restype = ctypes.c_size_t
        lib.ggml_quantize_chunk.argtypes = [
            ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
        ]  # fmt: skip
        lib.ggml_row_size.restype = ctypes.c_size_t
        lib.ggml_row_size.argtypes = [ctypes.c_int, ctypes.c_int64]
        lib.ggml_fp32_to_bf16_row.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
        self._dequantize = {}
        for name, number in TYPES.items():
            lib.ggml_quantize_init(number)  # tables of some types: not to be timed
            function = getattr(lib, f"dequantize_row_{name.lower().replace('_k', '_K')}")
            function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
            function.restype = None
            self._dequantize[name] = function
        self._piece = np.empty(PIECE, np.float32)
        self._ones = np.ones(ROW, np.float32)

    def nbytes(self, kind: str, count: int) -> int:
        return int(self._lib.ggml_row_size(TYPES[kind], count))

    def quantize(self, kind: str, values: np.ndarray, packed: np.ndarray) -> None:
        """float32 ``values`` into uint8 ``packed``, without weights of importance; of types that need some, all are 1."""
        weights = self._ones.ctypes.data if kind in WEIGHTED else None
        self._lib.ggml_quantize_chunk(
            TYPES[kind], values.ctypes.data, packed.ctypes.data, 0, values.size // ROW, ROW, weights
        )

    def dequantize(self, kind: str, packed: np.ndarray, out: np.ndarray) -> None:
        """Into float32 or bfloat16 ``out``; the latter piece by piece, as ggml has no other way."""
        run = self._dequantize[kind]
        if out.dtype == np.float32:
            run(packed.ctypes.data, out.ctypes.data, out.size)
            return
        source, target, piece = packed.ctypes.data, out.ctypes.data, self._piece.ctypes.data
        for start in range(0, out.size, PIECE):
            count = min(PIECE, out.size - start)
            run(source + self.nbytes(kind, start), piece, count)
            self._lib.ggml_fp32_to_bf16_row(piece, target + 2 * start, count)


def library(*, fetch: bool) -> Path:
    """Where libggml-base.so is, fetched by npm the first time. Raises RuntimeError if that fails, or is not allowed."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise RuntimeError(f"there is no ggml library for {platform.system()} on {platform.machine()} here")
    if not LIBRARY.exists():
        if not fetch:
            raise RuntimeError(f"no {str(LIBRARY)!r}, and it is not to be fetched; run without --offline")
        _fetch()
    with LIBRARY.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SHA256:
        raise RuntimeError(f"{str(LIBRARY)!r} has digest {digest}, not {SHA256}; delete it and start again")
    return LIBRARY


def _fetch() -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeError(f"npm, which fetches {PACKAGE!r}, is not installed")
    MODELS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=MODELS) as work:  # a rename stays in one file system
        done = subprocess.run([npm, "pack", "--silent", PACKAGE], cwd=work, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"npm cannot fetch {PACKAGE!r}: {done.stderr.strip()}")
        (tarball,) = Path(work).glob("*.tgz")
        with tarfile.open(tarball) as archive:
            archive.extract(MEMBER, work, filter="data")
        (Path(work) / MEMBER).rename(LIBRARY)


if __name__ == "__main__":
    try:
        print(library(fetch=True))
    except RuntimeError as error:
        sys.exit(str(error))

"""Values to store: arrays of every dtype by seed, and comparison by bits."""

import io
from typing import Any

import ml_dtypes
import numpy as np

import mzstore
from mzstore.dtypes import DTYPES

# Python for a subprocess: even root must then keep to permissions.
WITHOUT_PRIVILEGES = """
import ctypes
ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())
"""


def random_bits(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Any bit pattern that an array of dtype ``name`` can have: NaN payloads, subnormals, -0.0, bool bytes above 1."""
    dtype = DTYPES[name]
    rng = np.random.default_rng(seed)
    nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.numpy.itemsize
    flat = rng.integers(0, 256, nbytes, dtype=np.uint8)
    if dtype.packed:  # of the byte that holds one value in memory only the low half is the value
        flat &= 15
        if name == "int4":
            flat = (flat ^ 8) - 8
    return flat.view(dtype.numpy).reshape(shape)


def weights(shape: tuple[int, ...], seed: int = 0, name: str = "float32") -> np.ndarray:
    """Normal values of the size that weights have, as a float dtype."""
    values = np.random.default_rng(seed).standard_normal(shape) * 0.02
    return values.astype(DTYPES[name].numpy)


def small_model(seed: int = 0) -> dict[str, np.ndarray]:
    """A few tensors that take different ways through the code; about 200 KB."""
    rng = np.random.default_rng(seed)
    return {
        "embed.weight": weights((64, 96), seed, "bfloat16"),
        "layers.0.weight": weights((50, 70), seed + 1),
        "layers.0.bias": weights((70,), seed + 2, "float16"),
        "layers.1.weight": weights((40, 60), seed + 3, "bfloat16").astype(np.float32),  # stored narrow
        "lm_head.weight": weights((64, 96), seed, "bfloat16"),  # tied to the embedding
        "zeros": np.zeros((30, 40), np.float64),
        "mask": rng.integers(0, 2, (20, 30)).astype(bool),
        "ids": rng.integers(-5, 1000, (17, 3)),
        "noise": rng.integers(0, 256, 4000, dtype=np.uint8),
        "step": np.array(12345, np.int64),
        "empty": np.empty((0, 5), np.float32),
        "four": rng.integers(0, 16, (3, 7)).astype(np.uint8).view(ml_dtypes.uint4),
        "phase": (rng.standard_normal((8, 9)) + 1j).astype(np.complex64),
    }


def saved(tensors: dict[str, Any], **options: Any) -> bytes:
    """The archive that ``mzstore.save`` makes of ``tensors``."""
    file = io.BytesIO()
    mzstore.save(file, tensors, **options)
    return file.getvalue()


def bits(array: Any) -> tuple[str, tuple[int, ...], bytes]:
    """What must be equal for two arrays to be the same: ``==`` says nothing of NaN."""
    array = np.asarray(array)
    return str(array.dtype), array.shape, np.ascontiguousarray(array).tobytes()

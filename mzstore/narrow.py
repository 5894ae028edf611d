"""Narrow: float32 values that are exactly bfloat16 or float16, kept as such (FORMAT.md section 8.3)."""

import numpy as np

from mzstore.dtypes import DType, cast

NARROWER = {"float32": ("bfloat16", "float16")}


def fits(words: np.ndarray, narrow: DType) -> bool:
    """Whether all ``words`` of float32 can be stored as ``narrow`` and come back bit for bit.

    A NaN never fits float16: processors differ in what they make of its payload.
    """
    if narrow.name == "bfloat16":
        return not (words & np.uint32(0xFFFF)).any()
    values = words.view(np.float32)
    if np.isnan(values).any():
        return False
    with np.errstate(over="ignore"):
        back = values.astype(np.float16).astype(np.float32)
    return bool((back.view(np.uint32) == words).all())


def narrow(words: np.ndarray, dtype: DType) -> np.ndarray:
    """The words of ``dtype`` for ``words`` of float32, which ``fits`` has checked."""
    if dtype.name == "bfloat16":
        return (words >> np.uint32(16)).astype(np.uint16)
    return words.view(np.float32).astype(np.float16).view(np.uint16)


def convert(words: np.ndarray, dtype: DType, target: DType, out: np.ndarray) -> None:
    """Fill ``out`` (words of ``target``) from ``words`` of ``dtype``; for float32, the inverse of ``narrow``."""
    if (dtype.name, target.name) == ("bfloat16", "float32"):
        np.left_shift(words, np.uint32(16), out=out, dtype=np.uint32)
    else:
        out[...] = cast(words, dtype, target)

"""Quality: what quantizing did to the values of a tensor, and what the tensor takes in an archive, all included."""

import math
import zlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mzstore import kernels
from mzstore.documents import TensorEntry, dump
from mzstore.dtypes import DType
from mzstore.grid import Grid, choose_chunk_shape
from mzstore.tensors import TensorSpec

PIECE = 1 << 16  # values
LANES = 512  # a part of PIECE
NUMPY_COST = 8  # comparing two values with NumPy costs as much as decoding so many bytes does
ENTRY_NBYTES = 30 + 46  # of the headers of an entry, besides its key


@dataclass(frozen=True, slots=True)
class Errors:
    """Sums over values and what became of them; of all values, or of those of a row block."""

    count: int = 0
    square: float = 0.0  # of the values
    squared_error: float = 0.0
    greatest: float = 0.0  # error of any value
    stored_nbytes: int = 0

    @classmethod
    def between(cls, before: np.ndarray, after: np.ndarray, dtype: DType) -> "Errors":
        """Of values (words of ``dtype``) that became others: in float64, in which no square of a float32 is lost.

        Raises ValueError for values that ``dtype`` cannot hold.
        """
        before, after = (array.reshape(-1).view(dtype.numpy) for array in (before, after))
        # In lanes, whose sums are the same whatever adds them; in pieces that stay in the cache.
        squares, errors, worst = np.zeros((3, LANES))
        for start in range(0, before.size, PIECE):
            _add(before[start : start + PIECE], after[start : start + PIECE], squares, errors, worst)
        squared_error = float(np.add.reduce(errors))
        if not math.isfinite(squared_error):
            raise ValueError(f"values that {dtype.name} cannot hold come out: take other scales, or keep it lossless")
        return cls(before.size, float(np.add.reduce(squares)), squared_error, float(worst.max()))

    def __add__(self, other: "Errors") -> "Errors":
        return Errors(
            self.count + other.count,
            self.square + other.square,
            self.squared_error + other.squared_error,
            max(self.greatest, other.greatest),
            self.stored_nbytes + other.stored_nbytes,
        )

    def to_json(self, nbytes: int) -> dict[str, float]:
        """What was reached, for a tensor whose values took ``nbytes``; see ``Tensor.quality``."""
        nmse = self.squared_error / self.square if self.square else 0.0
        found = {
            "bits": 8 * self.stored_nbytes / self.count,
            "ratio": nbytes / self.stored_nbytes,
            "nmse": nmse,
            "rmse": math.sqrt(self.squared_error / self.count),
            "max_error": self.greatest,
        }
        if nmse:
            found["snr_db"] = 0.0 - 10 * math.log10(nmse)  # which is not -0.0
        return {name: float(f"{value:.6g}") for name, value in found.items()}


def _add(before: np.ndarray, after: np.ndarray, squares: np.ndarray, errors: np.ndarray, worst: np.ndarray) -> None:
    """Add what ``kernels.quantized.add_errors`` does, of any number of values (at most PIECE) of any float."""
    whole = before.size // LANES * LANES
    if before.dtype != np.float64 and kernels.pays(NUMPY_COST * whole):
        pair = (array[:whole].astype(np.float32, copy=False) for array in (before, after))
        kernels.load_quantized().add_errors(*pair, squares, errors, worst)
    elif whole:
        values, error = (array[:whole].astype(np.float64).reshape(-1, LANES) for array in (before, after))
        error -= values
        # With what is there as the first row: one sum after the other, as the kernel does.
        squares[:] = np.add.reduce(np.concatenate([squares[None], values * values]), axis=0)
        errors[:] = np.add.reduce(np.concatenate([errors[None], error * error]), axis=0)
        np.maximum(worst, np.abs(error).max(axis=0), out=worst)
    if whole < before.size:
        values, error = (array[whole:].astype(np.float64) for array in (before, after))
        error -= values
        n = error.size
        squares[:n] += values * values
        errors[:n] += error * error
        worst[:n] = np.maximum(worst[:n], np.abs(error))


def quality_of(
    entry: TensorEntry, asked: dict[str, Any], errors: Errors, kept: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    """What was asked and what was reached, for the tensor's attributes: bits with all overhead, themselves included.

    kept  what became of each part, where there is more to say than that it is quantized
    """
    nbytes, parts = entry.spec.nbytes, {} if kept is None else {"parts": kept}
    about = replace(entry, lossy={"asked": asked, "reached": errors.to_json(nbytes) | parts})
    stored = errors.stored_nbytes + _overhead_nbytes(about)
    return {"asked": asked, "reached": replace(errors, stored_nbytes=stored).to_json(nbytes) | parts}


def _overhead_nbytes(entry: TensorEntry) -> int:
    """What an archive spends on the tensor besides its payloads: headers and directory; documents, which are there twice."""
    return sum(ENTRY_NBYTES + 2 * len(key) for key in entry.chunk_keys()) + 2 * sum(
        len(zlib.compress(dump(doc))) for _, doc in entry.documents()
    )


def expected_overhead_nbytes(spec: TensorSpec) -> tuple[int, int]:
    """(about what ``_overhead_nbytes`` will be for a tensor of one array, what the two arrays of ``sparse`` add to it)."""
    n_chunks = Grid(spec.shape, choose_chunk_shape(spec.shape, spec.dtype.word.itemsize)).n_chunks
    node, chunk = 400 + 4 * len(spec.name), ENTRY_NBYTES + 2 * len(spec.name) + 20
    return 2 * node + n_chunks * chunk, 3 * node + 2 * n_chunks * (chunk + 20)

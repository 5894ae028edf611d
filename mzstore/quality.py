"""Quality: what quantizing did to the values of a tensor, and what the tensor takes in an archive, all included."""

import math
import zlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mzstore.documents import TensorEntry, dump
from mzstore.dtypes import DType
from mzstore.grid import Grid, choose_chunk_shape
from mzstore.tensors import TensorSpec

PIECE = 1 << 16  # values
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
        """Of values (words of ``dtype``) that became others: in float64, in which no square of a float32 is lost; in pieces
        that stay in the cache.

        Raises ValueError for values that ``dtype`` cannot hold.
        """
        before, after = (array.reshape(-1).view(dtype.numpy) for array in (before, after))
        square = squared_error = greatest = 0.0
        for start in range(0, before.size, PIECE):
            values = before[start : start + PIECE].astype(np.float64)
            error = after[start : start + PIECE].astype(np.float64)
            error -= values
            greatest = max(greatest, float(error.max()), -float(error.min()))
            square += float(np.add.reduce(np.multiply(values, values, out=values)))
            squared_error += float(np.add.reduce(np.multiply(error, error, out=error)))
        if not math.isfinite(squared_error):
            raise ValueError(f"values that {dtype.name} cannot hold come out: take other scales, or keep it lossless")
        return cls(before.size, square, squared_error, greatest)

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
            found["snr_db"] = -10 * math.log10(nmse)
        return {name: float(f"{value:.6g}") for name, value in found.items()}


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

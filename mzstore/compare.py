"""Compare: two tensors of the same shape, bit for bit; and by how much their values differ.

Values are compared as bits; the size of a difference is computed in float64, block by block.
"""

import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any

import numpy as np

from mzstore.grid import Grid, choose_chunk_shape
from mzstore.model import StoredTensor
from mzstore.sources import TensorSource
from mzstore.tensors import TensorSpec

STEP = 1 << 17  # values measured at a time: what is computed of them stays in the cache


@dataclass(frozen=True, slots=True)
class Measure:
    """By how much the values of two tensors of one shape differ.

    differing  values whose bits differ; of tensors of two dtypes, whose numbers differ
    nonfinite  of these, pairs of which one is NaN or infinite; the errors are those of all other pairs
    nmse       sum of squared errors / sum of squared values of A; None if A is zero throughout and B is not
    """

    size: int
    differing: int
    nonfinite: int
    max_abs_error: float
    rmse: float
    nmse: float | None

    def to_json(self) -> dict[str, Any]:
        numbers = {"max_abs_error": self.max_abs_error, "rmse": self.rmse, "nmse": self.nmse}
        return {
            "size": self.size,
            "differing": self.differing,
            "nonfinite": self.nonfinite,
            # An overflow of float64 is no number of JSON.
            **{key: n if n is not None and math.isfinite(n) else None for key, n in numbers.items()},
        }


def comparable(a: TensorSpec, b: TensorSpec) -> bool:
    """Whether words of one place hold values of one place: not where one has pairs in a byte or complex values."""
    return a.shape == b.shape and a.word_shape == b.word_shape


@dataclass(slots=True)
class Track:
    """How far the work on one tensor is, which may be walked twice; raises CancelledError once the rest is not wanted."""

    done: Callable[[int], None]
    stop: threading.Event
    at: int = 0

    def to(self, nbytes: int) -> None:
        if self.stop.is_set():
            raise CancelledError
        if nbytes > self.at:
            self.done(nbytes - self.at)
            self.at = nbytes


def _blocks(a: TensorSource, b: TensorSource, track: Track) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(first word, words of A, words of B), block by block; the blocks are those in which A would be stored."""
    shape = a.spec.word_shape
    for start, block, _ in Grid(shape, choose_chunk_shape(shape, a.spec.dtype.word.itemsize)).row_blocks():
        stop = start + math.prod(block)
        yield start, a.read(start, stop), b.read(start, stop)
        track.to(stop * a.spec.dtype.word.itemsize)


def same_digest(a: TensorSource, b: TensorSource) -> bool | None:
    """Whether the words are the same, as far as that is known without reading them; None if it is not."""
    if isinstance(a, StoredTensor) and isinstance(b, StoredTensor):
        return a.sha256 == b.sha256 if a.sha256 and b.sha256 else None
    return None


def same_bits(a: TensorSource, b: TensorSource, track: Track, *, believe: bool = True) -> bool:
    """Whether all words are the same. ``believe``: what digests say that are known already."""
    known = same_digest(a, b) if believe else None
    if known is not None:
        return known
    return all(np.array_equal(words_a, words_b) for _, words_a, words_b in _blocks(a, b, track))


def measure(a: TensorSource, b: TensorSource, track: Track) -> Measure:
    """By how much B differs from A, which ``comparable`` allows to be asked."""
    sums = _Sums(same_type=a.spec.dtype == b.spec.dtype)
    for start, *words in _blocks(a, b, track):
        values_a, values_b = (_values(side.spec, of, start) for side, of in zip((a, b), words, strict=True))
        for at in range(0, values_a.size, STEP):
            sums.add(values_a[at : at + STEP], values_b[at : at + STEP])
    return sums.measure()


def _values(spec: TensorSpec, words: np.ndarray, start: int) -> np.ndarray:
    """The values (one dimension) whose words, from ``start`` on, are whole rows or lie in one row."""
    if not spec.dtype.packed or not spec.shape:
        return spec.dtype.from_words(words, (words.size // spec.dtype.parts,))
    per_row = spec.word_shape[-1]
    columns = words.size if words.size < per_row else per_row
    odd = spec.shape[-1] % 2 and (start + words.size) % per_row == 0  # a row ends with half a word
    return spec.dtype.from_words(words.reshape(-1, columns), (words.size // columns, 2 * columns - odd)).reshape(-1)


@dataclass(slots=True)
class _Sums:
    """What has to be known of all pairs of values for a ``Measure``."""

    same_type: bool
    size: int = 0
    differing: int = 0
    nonfinite: int = 0
    largest: float = 0.0
    errors: float = 0.0  # squared
    values: float = 0.0  # of A, squared
    finite: int = 0

    def add(self, a: np.ndarray, b: np.ndarray) -> None:
        with np.errstate(all="ignore"):  # overflow and NaN are counted
            wide_a, wide_b = _widened(a), _widened(b)
            if self.same_type:
                differs = _bits(a) != _bits(b)
                differs = differs.any(axis=1)
            else:
                differs = (wide_a != wide_b) & ~(np.isnan(wide_a) & np.isnan(wide_b))
            finite = np.isfinite(wide_a) & np.isfinite(wide_b)
            if self.same_type and a.dtype.kind in "iu" and a.itemsize == 8:  # float64 cannot tell large ones apart
                error = (np.maximum(a, b).view(np.uint64) - np.minimum(a, b).view(np.uint64)).astype(np.float64)
            else:
                error = np.abs(wide_a[finite] - wide_b[finite])
            self.size += a.size
            self.differing += int(differs.sum())
            self.nonfinite += int((differs & ~finite).sum())
            self.finite += int(finite.sum())
            self.largest = max(self.largest, float(error.max(initial=0.0)))
            self.errors += float(np.square(error).sum())
            self.values += float(np.square(np.abs(wide_a[finite])).sum())

    def measure(self) -> Measure:
        rmse = math.sqrt(self.errors / self.finite) if self.finite else 0.0
        nmse = self.errors / self.values if self.values else None if self.errors else 0.0
        return Measure(self.size, self.differing, self.nonfinite, self.largest, rmse, nmse)


def _widened(values: np.ndarray) -> np.ndarray:
    return values.astype(np.complex128 if values.dtype.kind == "c" else np.float64)


def _bits(values: np.ndarray) -> np.ndarray:
    """The bytes of each value, in its row."""
    return values.view(np.uint8).reshape(values.size, -1)

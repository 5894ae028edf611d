"""Sample: what one reading of a matrix tells about its values; counts and errors of any cells in a few microseconds."""

import math
from dataclasses import dataclass

import numpy as np

from mzstore.quantizers import Importance, Matrix, check_finite, extremes, weighted_blocks

LIMIT = 1 << 16  # values: the bits per weight of a design differ by less than 0.006 from those of all values
RUN = 1 << 15  # values of float64 that stay in the second-level cache


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Values of a matrix in ascending order, and sums over them; with weights, each sum has them in it.

    count       of all values of the matrix, as are ``low``, ``high``, ``square`` (the weighted mean square) and ``power``,
                the mean square without weights, and before any factor
    values      float32[n], ascending
    relative    float32[n] or None: the weight of each over their mean
    """

    shape: tuple[int, int]
    count: int
    low: float
    high: float
    square: float
    power: float
    values: np.ndarray
    relative: np.ndarray | None
    _weight: np.ndarray  # float64[n + 1]: sums of w, w x and w x x over values[:i]
    _first: np.ndarray
    _second: np.ndarray
    _plain: tuple[np.ndarray, np.ndarray, np.ndarray] | None  # these without weights and factors, where there are any

    @property
    def weighted(self) -> bool:
        """Whether there are weights or factors: else ``plain_cells`` are the sums of ``cells``."""
        return self._plain is not None

    @property
    def weight(self) -> float:
        """The sum of the weights of the sample."""
        return float(self._weight[-1])

    def cells(self, bounds: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(counts, sums of w, of w x, of w x x) of the cells between ``bounds`` (ascending), n + 1 of them.

        Cell i holds the values from bounds[i - 1] on, below bounds[i].
        """
        ends = self._ends(bounds)
        sums = (column[ends] for column in (self._weight, self._first, self._second))
        weight, first, second = (column[1:] - column[:-1] for column in sums)
        return ends[1:] - ends[:-1], weight, first, second

    def plain_cells(self, bounds: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The sums of ``cells`` that make squared errors without weights, in the values' own size: before any factor."""
        ends = self._ends(bounds)
        sums = (column[ends] for column in self._plain or (self._weight, self._first, self._second))
        weight, first, second = (column[1:] - column[:-1] for column in sums)
        return weight, first, second

    def counts(self, bounds: np.ndarray) -> np.ndarray:
        """The first of ``cells`` alone."""
        ends = self._ends(bounds)
        found: np.ndarray = ends[1:] - ends[:-1]
        return found

    def _ends(self, bounds: np.ndarray) -> np.ndarray:
        """Where the cells end in ``values``, with a 0 in front."""
        ends = np.empty(bounds.size + 2, np.int64)
        ends[0], ends[-1] = 0, self.values.size
        ends[1:-1] = np.searchsorted(self.values, to_float32(bounds))
        return ends


def collect(
    matrix: Matrix, importance: Importance = None, *, limit: int = LIMIT, factors: np.ndarray | None = None
) -> Sample:
    """Read ``matrix`` once; ``limit`` values of it, evenly spread, make the sample.

    With ``factors`` (float32[cols]) it is a sample of value * factor, without weights: the factors stand for them. Raises ValueError for NaN, infinity, bad weights, or if all weights are 0.
    """
    rows, cols = matrix.shape
    stride = _stride(rows * cols, cols, limit)
    taken, heavy, plain = [], [], []
    low, high, square, power, total = np.inf, -np.inf, 0.0, 0.0, 0.0
    for first, block, weights in weighted_blocks(matrix, importance, finite=True):
        if not block.size:
            continue
        least, most = extremes(block)
        check_finite(least, most)
        plain_square = _sum_of_squares(block)
        power += plain_square
        start = -(first * cols) % stride
        if factors is not None:
            with np.errstate(over="ignore"):
                block, weights = block * factors, None
            plain.append(factors[np.arange(start, block.size, stride) % cols].astype(np.float64) ** -2)
            least, most = extremes(block)
            check_finite(least, most)
        low, high = min(low, least), max(high, most)
        taken.append(block.reshape(-1)[start::stride].copy())
        square += plain_square if weights is None and factors is None else _sum_of_squares(block, weights)
        if weights is None:
            total += block.size
        else:
            whole = np.broadcast_to(weights, block.shape).reshape(-1)
            total += float(whole.sum(dtype=np.float64))
            heavy.append(whole[start::stride].copy())
            plain.append(np.ones(heavy[-1].size))
    values = np.concatenate(taken) if taken else np.zeros(0, np.float32)
    if values.size and total <= 0:
        raise ValueError("the importance of every value is 0")
    weight, other = np.ones(values.size), None
    if plain:
        order = np.argsort(values, kind="stable")
        values, other = values[order], np.concatenate(plain)[order]
        if heavy:
            weight = np.concatenate(heavy).astype(np.float64)[order]
    else:
        values = np.sort(values)
    return Sample(
        (rows, cols),
        rows * cols,
        low if values.size else 0.0,
        high if values.size else 0.0,
        square / total if total else 0.0,
        power / max(1, rows * cols),
        values,
        (weight / max(weight.mean(), 1e-300)).astype(np.float32) if heavy else None,
        *_running(values, weight),
        None if other is None else _running(values, other),
    )


def _running(values: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sums of w, w x and w x x over values[:i], for each i."""
    first = weight * values
    weights, firsts, seconds = (np.concatenate([[0.0], np.cumsum(x)]) for x in (weight, first, first * values))
    return weights, firsts, seconds


def _sum_of_squares(block: np.ndarray, weights: np.ndarray | None = None) -> float:
    """In float64, and not by BLAS: whose order of sums, and so whose last digits, are those of the processor."""
    total = 0.0
    high = max(1, RUN // max(1, block.shape[1]))
    for i in range(0, block.shape[0], high):
        for j in range(0, block.shape[1], RUN):
            part = block[i : i + high, j : j + RUN].astype(np.float64)
            part *= part
            if weights is not None:
                part *= (weights if weights.shape[0] == 1 else weights[i : i + high])[:, j : j + RUN]
            total += float(part.sum())
    return total


def rounded(value: float) -> float:
    """``value`` with 14 bits: so few that what processors differ in, the last of 53, is gone."""
    fraction, exponent = math.frexp(value)
    return math.ldexp(round(fraction * 2**14), exponent - 14)


def to_float32(bounds: np.ndarray) -> np.ndarray:
    """``bounds`` in float32; what is beyond it is infinity."""
    with np.errstate(over="ignore"):
        return bounds.astype(np.float32)


def column_roots(importance: np.ndarray, *, most: float = 16.0) -> np.ndarray:
    """float32[cols]: the square roots of column weights, their mean square 1, none ``most`` times below or above that."""
    weights = np.asarray(importance, np.float64)
    if weights.size == 0 or not weights.max() > 0:
        raise ValueError("the importance of every value is 0")
    out: np.ndarray = np.clip(np.sqrt(weights / weights.mean()), 1 / most, most).astype(np.float32)
    return out


def _stride(count: int, cols: int, limit: int) -> int:
    """The step between the values that are taken: one that visits every column alike."""
    stride = max(1, -(-count // limit))
    while np.gcd(stride, max(1, cols)) != 1:
        stride += 1
    return stride

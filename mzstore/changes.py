"""Changes: what one tensor is different by from another, approximated at an error that is asked for.

An error is a part of the squared difference. Of several ways to reach it, the smallest is taken: a quantized difference; a product of
narrow matrices; and a product and the values that it misses most, which are then exact.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from mzstore import approximate
from mzstore.approximate import Approximation, Under
from mzstore.encode import Level
from mzstore.recipe import Rule
from mzstore.sources import TensorSource

TRIALS = 4  # of one way, each asked for less error than the one before
TOLERANCE = 0.005  # of the error
MOST_RANK = 64  # that is tried beside single values
SHARES = (0.0, 0.002, 0.01)  # of the values, the largest, which are no part of a product
SAMPLE = 1 << 20  # values, on which ranks are compared
OVERSAMPLES, POWER_ITERATIONS = 16, 2
LEAST_CODED = 0.6  # of the bytes of factors and values: about what coding leaves of them
POSITION_NBYTES = 1.25  # of one value of a hundred; about its entropy


def approximation(tuned: TensorSource, under: Under, rule: Rule, level: Level) -> Approximation:
    """``tuned`` as ``under`` and parts for the difference, as ``rule`` says; the smallest of some, if it says only how large the error
    may be.

    Raises ValueError, naming the tensor, for what cannot be done: for one, an error below that of rounding sums to the dtype.
    """
    error = rule.nmse if rule.snr_db is None else 10 ** (-rule.snr_db / 10)
    plain = rule.encoding == "quantized" and rule.quantizer == "uniform" and len(tuned.spec.shape) > 1
    if not plain or error is None or error >= 1:
        return approximate.prepare(tuned, rule, None, level, under=under)
    change = approximate.matrix_of(tuned, None)[0] - approximate.matrix_of(under.values, None)[0]
    total = float(np.square(change, dtype=np.float64).sum())
    if not total:  # only signs of zeros differ
        return approximate.prepare(tuned, rule, None, level, under=under)
    made: list[Approximation] = []
    refused: list[ValueError] = []
    for way, least_nbytes in _ways(change, error, tuned.spec.dtype.word.itemsize):
        if made and least_nbytes > made[0].stored_nbytes:
            continue
        try:
            made.append(_reaching(error, total, way, tuned, under, level))
        except ValueError as problem:
            refused.append(problem)
    if not made:
        raise refused[0]
    return replace(min(made, key=lambda each: each.stored_nbytes), asked=dict(rule.asked))


Way = Callable[[float], Rule]  # the rule for an error


def _ways(change: np.ndarray, error: float, itemsize: int) -> Iterator[tuple[Way, float]]:
    """(a way, the bytes that it takes at least)."""
    yield lambda error: Rule(nmse=error), 0.0
    products = [_Product(change, share, itemsize) for share in SHARES]
    rank = products[0].rank_for(error)
    yield lambda error: Rule(encoding="lowrank", nmse=error), LEAST_CODED * rank * sum(change.shape) * itemsize
    best = min(products, key=lambda product: product.beside_values(error)[0])
    yield lambda error: best.beside_values(error)[1], LEAST_CODED * best.beside_values(error)[0]


class _Product:
    """The products that come nearest to ``change`` but for its largest values."""

    def __init__(self, change: np.ndarray, share: float, itemsize: int) -> None:
        self._shape, self._itemsize, self._share = change.shape, itemsize, share
        n_large, core = int(share * change.size), change
        if n_large:
            sizes = np.abs(change)
            core = np.where(sizes > np.partition(sizes, -n_large, axis=None)[-n_large], np.float32(0), change)
        rank = min(MOST_RANK, *change.shape)
        left, right = _leading(core, rank)
        step = max(1, change.size // SAMPLE)
        rows = max(1, change.shape[0] // step)
        chosen = np.linspace(0, change.shape[0] - 1, rows).astype(int)  # whole rows
        self._ranks, self._left = [0], []
        while self._ranks[-1] < rank:
            self._ranks.append(min(max(1, 2 * self._ranks[-1]), rank))
        for r in self._ranks:
            squares = np.square(change[chosen] - left[chosen, :r] @ right[:r], dtype=np.float64)
            self._left.append(np.cumsum(np.sort(squares, axis=None)))
        self._total = float(np.square(change[chosen], dtype=np.float64).sum())

    def rank_for(self, error: float) -> int:
        """The rank that leaves ``error``, or one that is too low, of those that are tried."""
        enough = (rank for rank, left in zip(self._ranks, self._left, strict=True) if left[-1] <= error * self._total)
        return next(enough, self._ranks[-1])

    def beside_values(self, error: float) -> tuple[float, Rule]:
        """(about the bytes, the rule) of the smallest product and single values that leave ``error``."""
        found = []
        for rank, left in zip(self._ranks, self._left, strict=True):
            share = 1 - int(np.searchsorted(left, error * self._total, side="right")) / left.size
            nbytes = float(rank * sum(self._shape) * self._itemsize)
            nbytes += share * math.prod(self._shape) * (self._itemsize + POSITION_NBYTES)
            found.append((nbytes, rank, share))
        nbytes, rank, share = min(found)
        top = min(max(share, 1 / math.prod(self._shape)), 0.999)
        if not rank:
            return nbytes, Rule(top=top)
        parts = [f"lowrank rank={rank}", f"sparse top={top!r}"]
        return nbytes, Rule(parts=parts, rounds=3 if self._share else None)


def _leading(matrix: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """(left [rows, rank], right [rank, cols]): nearly the best product, by random projections, to tell what rank would do."""
    rng = np.random.default_rng(0)
    width = min(rank + OVERSAMPLES, *matrix.shape)
    basis = matrix @ rng.standard_normal((matrix.shape[1], width)).astype(np.float32)
    for _ in range(POWER_ITERATIONS):
        basis = matrix @ (matrix.T @ np.linalg.qr(basis)[0])
    basis = np.linalg.qr(basis)[0]
    left, sizes, right = np.linalg.svd(basis.T @ matrix, full_matrices=False)
    return basis @ left[:, :rank], sizes[:rank, None] * right[:rank]


def _reaching(error: float, total: float, way: Way, tuned: TensorSource, under: Under, level: Level) -> Approximation:
    """By ``way``, with at most ``error`` of ``total``, which is the squared difference: as a reader will get it."""
    asked = error
    for _ in range(TRIALS):
        found = approximate.prepare(tuned, way(asked), None, level, under=under)
        reached = _squared_error(found, tuned) / total
        if reached <= error * (1 + TOLERANCE):
            return found
        less = asked - (reached - error)  # what comes on top, such as rounding, stays as it is
        asked = less if less > 0 else asked * error / reached
        if asked < error / 20:
            break
    raise ValueError(
        f"tensor {tuned.spec.name!r}: {error:.3g} of the squared difference cannot be reached, {reached:.3g} are left, in part by "
        f"rounding to {tuned.spec.dtype.name}: ask for less, or keep it lossless"
    )


def _squared_error(found: Approximation, tuned: TensorSource) -> float:
    error = 0.0
    for start, shape, chunks in found.part.grid.row_blocks():
        words = tuned.read(start, start + math.prod(shape)).reshape(shape)
        error += found.encode(words, start, chunks).errors.squared_error
    return error

"""Factorize: a matrix as the product of two narrow ones, a tensor as a core and a factor for each axis, or factors alone.

A matrix by a truncated singular value decomposition. The product of the first singular vectors is the nearest matrix of its rank (Eckart and Young, 1936). Of large matrices only
as many are computed as are wanted, by random projections (Halko, Martinsson and Tropp, "Finding structure with randomness",
2011), as scikit-learn does it. A tensor by the decomposition of Tucker (1966) or the canonical one (CP; Harshman, 1970), as
TensorLy finds them.
"""

import warnings
from typing import Any

import numpy as np

from mzstore.recipe import Rule

STARTS = (None, 0, 1, 2)  # of the canonical decomposition: singular vectors, and seeds of random numbers
STEPS = 200  # of each
FULL = 1536  # rows or columns: up to here, all singular values are computed, which takes some seconds
OVERSAMPLES = 16
POWER_ITERATIONS = 4
FIRST_RANK = 64  # of a large matrix whose rank is to be found
LEAST_WEIGHT = 1e-8  # of the greatest: what does not matter at all may not be anything


class Decomposition:
    """Singular values and vectors of a matrix, as many as were asked for until now.

    The product of the first ``rank`` is the nearest matrix of that rank; with weights the nearest by the weighted square.
    """

    def __init__(self, matrix: np.ndarray, weights: np.ndarray | None) -> None:
        """
        matrix   float32 [rows, cols]
        weights  float32 [cols]: how much the squared error of a column matters; None: all the same
        """
        self._full = min(matrix.shape) <= FULL
        self._scaled = matrix.astype(np.float64) if self._full else matrix
        self._roots: np.ndarray | None = None
        if weights is not None and weights.any():
            self._roots = np.sqrt(np.maximum(weights, LEAST_WEIGHT * weights.max())).astype(self._scaled.dtype)
            self._scaled = self._scaled * self._roots
        self._left, self._sizes, self._right = (np.empty(0) for _ in range(3))

    def factors(self, rank: int) -> tuple[np.ndarray, np.ndarray]:
        """(left [rows, rank], right [rank, cols]), float32. Raises ImportError where scikit-learn is needed."""
        self._find(rank)
        left, sizes, right = self._left[:, :rank], self._sizes[:rank], self._right[:rank]
        # A pair of vectors may be negated: the greatest entry of the left one is positive, whichever way it was found.
        signs = np.sign(left[np.abs(left).argmax(axis=0), np.arange(rank)])
        signs[signs == 0] = 1
        half = np.sqrt(sizes) * signs
        right = half[:, None] * right
        if self._roots is not None:
            right = right / self._roots
        return (left * half).astype(np.float32), right.astype(np.float32)

    def least_rank(self, nmse: float) -> int:
        """The least rank that leaves no more than this part of the (weighted) squares."""
        total = float(np.square(self._scaled, dtype=np.float64).sum())
        most, known = min(self._scaled.shape), FIRST_RANK
        while True:
            self._find(min(known, most))
            left = total - np.cumsum(np.square(self._sizes, dtype=np.float64))
            enough = np.flatnonzero(left <= nmse * total)
            if enough.size or self._sizes.size == most:
                return int(enough[0]) + 1 if enough.size else most  # of which rounding leaves more than nothing
            known *= 2

    def _find(self, rank: int) -> None:
        if self._sizes.size >= rank:
            return
        if self._full or rank + OVERSAMPLES >= min(self._scaled.shape):
            self._left, self._sizes, self._right = np.linalg.svd(self._scaled, full_matrices=False)
        else:
            self._left, self._sizes, self._right = _randomized(self._scaled, rank)


def _randomized(matrix: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    try:
        from sklearn.utils.extmath import randomized_svd
    except ImportError as error:
        raise ImportError(
            f"factors of a matrix of {' x '.join(map(str, matrix.shape))} need scikit-learn: pip install 'mzstore[lowrank]'"
        ) from error
    found: tuple[np.ndarray, np.ndarray, np.ndarray] = randomized_svd(
        matrix, rank, n_oversamples=OVERSAMPLES, n_iter=POWER_ITERATIONS, random_state=0
    )
    return found


def tucker(values: np.ndarray, rule: Rule) -> tuple[np.ndarray, list[np.ndarray | None]]:
    """(core, a factor [extent, rank] for each axis, or None where the core keeps it), float32, for ``values`` (float32).

    The factors are orthogonal; of axes that keep their extent there are none. Raises ValueError for ranks above the
    extents, and ImportError without TensorLy.
    """
    decomposition = _tensorly()
    full = values.astype(np.float64)
    ranks = rule.ranks or _tucker_ranks(full, float(rule.nmse or 0))
    if any(rank > extent for rank, extent in zip(ranks, values.shape, strict=True)):
        raise ValueError(f"ranks = {list(ranks)} of a tensor of {values.shape}")
    modes = [axis for axis, (rank, extent) in enumerate(zip(ranks, values.shape, strict=True)) if rank < extent]
    factors: list[np.ndarray | None] = [None] * values.ndim
    if not modes:
        raise ValueError(f"ranks = {list(ranks)} of a tensor of {values.shape}: nothing is left out, keep it lossless")
    (core, found), _ = decomposition.partial_tucker(full, [ranks[axis] for axis in modes], modes=modes, init="svd")
    for axis, factor in zip(modes, found, strict=True):
        factors[axis] = np.asarray(factor, np.float32)
    return np.asarray(core, np.float32), factors


def canonical(values: np.ndarray, rank: int) -> list[np.ndarray]:
    """A factor [extent, rank], float32, for each axis of ``values``: their outer products add up to about these.

    Raises ImportError without TensorLy.
    """
    full, made = values.astype(np.float64), []
    for start in STARTS:  # alternating least squares finds a local minimum
        init, seed = ("svd", 0) if start is None else ("random", start)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of a rank above an extent
            found, errors = _tensorly().parafac(
                full, rank, n_iter_max=STEPS, init=init, random_state=seed, return_errors=True
            )
        made.append((float(errors[-1]), found))
    _, (weights, factors) = min(made, key=lambda each: each[0])
    first, *others = [np.asarray(factor, np.float64) for factor in factors]
    return [np.asarray(factor, np.float32) for factor in (first * weights, *others)]


def _tucker_ranks(values: np.ndarray, nmse: float) -> tuple[int, ...]:
    """Ranks of the axes that leave no more than this error: what is cut off each axis adds up to it at most (De Lathauwer,
    De Moor and Vandewalle, "A multilinear singular value decomposition", 2000)."""
    allowed = nmse * float(np.square(values).sum()) / values.ndim
    ranks = []
    for axis in range(values.ndim):
        unfolded = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
        sizes = np.maximum(np.linalg.eigvalsh(unfolded @ unfolded.T), 0)  # squared, ascending
        ranks.append(max(1, int(np.count_nonzero(np.cumsum(sizes) > allowed))))
    return tuple(ranks)


def _tensorly() -> Any:
    try:
        from tensorly import decomposition
    except ImportError as error:
        raise ImportError("factors of tensors need TensorLy: pip install 'mzstore[tucker]'") from error
    return decomposition

"""Factorize: a matrix as the product of two narrow ones, a tensor as a core and a factor for each axis, or factors alone.

A matrix by a truncated singular value decomposition. The product of the first singular vectors is the nearest matrix of its rank (Eckart and Young, 1936). Of large matrices only
as many are computed as are wanted, by random projections (Halko, Martinsson and Tropp, "Finding structure with randomness",
2011), as scikit-learn does it. A tensor by the decomposition of Tucker (1966) or the canonical one (CP; Harshman, 1970), as
TensorLy finds them.
"""

from typing import Any

import numpy as np

from mzstore.recipe import Rule

FULL = 1536  # rows or columns: up to here, all singular values are computed, which takes some seconds
OVERSAMPLES = 16
POWER_ITERATIONS = 4
FIRST_RANK = 64  # of a large matrix whose rank is to be found


def factors(matrix: np.ndarray, rule: Rule, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """(left [rows, rank], right [rank, cols]), float32, whose product is the nearest to ``matrix`` (float32 [rows, cols]).

    weights  float32 [cols]: how much the squared error of a column matters; None: all the same

    Raises ValueError for a rank that is no smaller than the matrix; ImportError where a large one needs scikit-learn.
    """
    rows, cols = matrix.shape
    if rule.rank is not None and rule.rank > min(rows, cols):
        raise ValueError(f"rank = {rule.rank} of a matrix of {rows} x {cols}, whose rank is {min(rows, cols)} at most")
    roots = None
    scaled = matrix.astype(np.float64)
    if weights is not None:
        roots = np.sqrt(np.maximum(weights.astype(np.float64), np.finfo(np.float32).tiny))
        scaled *= roots
    total = float(np.square(scaled).sum())
    if min(rows, cols) <= FULL:
        left, sizes, right = np.linalg.svd(scaled, full_matrices=False)
        rank = rule.rank or _rank(sizes, total, rule)
    else:
        rank = rule.rank or FIRST_RANK
        while True:
            left, sizes, right = _randomized(scaled, rank)
            if rule.rank is not None or _left(sizes, total) <= _allowed(total, rule):
                break
            if rank >= min(rows, cols):
                break
            rank = min(2 * rank, *matrix.shape)
        rank = rule.rank or _rank(sizes, total, rule)
    left, sizes, right = left[:, :rank], sizes[:rank], right[:rank]
    # A pair of vectors may be negated: the greatest entry of the left one is positive, whichever way it was found.
    signs = np.sign(left[np.abs(left).argmax(axis=0), np.arange(rank)])
    signs[signs == 0] = 1
    half = np.sqrt(sizes) * signs
    right = half[:, None] * right
    if roots is not None:
        right = right / roots
    return (left * half).astype(np.float32), right.astype(np.float32)


def _rank(sizes: np.ndarray, total: float, rule: Rule) -> int:
    """The least rank at which what is left of the squares is as little as ``rule`` asks for."""
    if total == 0:
        return 1
    left = total - np.cumsum(np.square(sizes))
    enough = np.flatnonzero(left <= _allowed(total, rule) * (1 + 1e-9) + total * 1e-15)
    if not enough.size:
        raise ValueError(f"nmse = {rule.nmse} cannot be reached by a product: leave it lossless")
    return int(enough[0]) + 1


def _left(sizes: np.ndarray, total: float) -> float:
    return total - float(np.square(sizes).sum())


def _allowed(total: float, rule: Rule) -> float:
    """The squared error that the rule allows."""
    return total * (1 - rule.energy if rule.energy is not None else float(rule.nmse or 0))


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
        return values, factors
    (core, found), _ = decomposition.partial_tucker(full, [ranks[axis] for axis in modes], modes=modes, init="svd")
    for axis, factor in zip(modes, found, strict=True):
        factors[axis] = np.asarray(factor, np.float32)
    return np.asarray(core, np.float32), factors


def canonical(values: np.ndarray, rank: int) -> list[np.ndarray]:
    """A factor [extent, rank], float32, for each axis of ``values``: their outer products add up to about these.

    Raises ImportError without TensorLy.
    """
    weights, factors = _tensorly().parafac(values.astype(np.float64), rank, init="random", random_state=0)
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

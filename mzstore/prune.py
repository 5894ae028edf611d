"""Prune: which values of a tensor are kept, and which become 0.

By magnitude (Han et al., "Learning both weights and connections for efficient neural networks", 2015), single values or blocks
of them, or a number out of every group (Mishra et al., "Accelerating sparse deep neural networks", 2021). Where importance is
given, a magnitude counts times the root of its weight: with second moments of activations that is the score of Wanda (Sun et
al., "A simple and effective pruning approach for large language models", 2023).
"""

from collections.abc import Mapping

import numpy as np

from mzstore.recipe import Rule

# Scores are float32 and not negative: their bits ascend with them. The first 20 tell them apart to within 0.05 %.
SCORE_SHIFT = 12
PIECE = 1 << 20  # values that are counted at a time


def scores(values: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """float32 [rows, cols]: the magnitudes of ``values`` (float32 [rows, cols]), times the roots of ``weights``."""
    found: np.ndarray = np.abs(values)
    if weights is not None:
        with np.errstate(over="ignore"):
            found *= np.sqrt(weights)
        np.minimum(found, np.finfo(np.float32).max, out=found)
    return found


def kept(values: np.ndarray, rule: Rule, weights: np.ndarray | None = None, least: float | None = None) -> np.ndarray:
    """bool [rows, cols]: which of ``values`` (float32 [rows, cols]) the rule keeps; of single values never one that is 0.

    weights  float32 [cols] or [rows, cols]: how much the square of a value matters; None: all the same
    least    the score from which on values are kept, of a rule for all tensors together
    """
    own = scores(values, weights)
    if rule.pattern is not None:
        return _pattern(own, rule.pattern)
    block = block_of(rule, values.shape)
    if block != (1, 1):
        own = block_scores(own, block)
    least = rule.threshold if least is None else least
    mask: np.ndarray = _greatest(own, share_kept(rule)) if least is None else own >= np.float32(least)
    if block == (1, 1):
        mask &= values != 0
        return mask
    return mask.repeat(block[0], axis=0)[: values.shape[0]].repeat(block[1], axis=1)[:, : values.shape[1]]


def share_kept(rule: Rule) -> float:
    """Which part of the values a rule keeps, if that is what it says."""
    if rule.pattern is not None:
        taken, group = map(int, rule.pattern.split(":"))
        return taken / group
    assert rule.top is not None or rule.sparsity is not None
    return rule.top if rule.top is not None else 1 - float(rule.sparsity or 0)


def block_of(rule: Rule, shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of what is kept or not as a whole, in a matrix of ``shape``."""
    if rule.block is None:
        return (1, 1)
    rows, cols = rule.block.split("x")
    return (shape[0] if rows == "*" else int(rows), shape[1] if cols == "*" else int(cols))


def block_scores(own: np.ndarray, block: tuple[int, int]) -> np.ndarray:
    """float32: the root of the mean square of the scores in each block; blocks at the far edges may be smaller."""
    greatest = own.max()
    squares = own / (greatest or 1)  # whose squares float32 has room for
    np.square(squares, out=squares)
    (height, width), (rows, cols) = block, own.shape
    sums: np.ndarray = squares
    if height > 1:
        sums = np.zeros((-(-rows // height), cols))
        for i in range(height):
            part = squares[i::height]
            sums[: part.shape[0]] += part
    starts = np.arange(0, cols, width)
    sums = np.add.reduceat(sums, starts, axis=1, dtype=np.float64)
    heights, widths = np.diff(np.arange(0, rows, height), append=rows), np.diff(starts, append=cols)
    found: np.ndarray = greatest * np.sqrt(sums / np.multiply.outer(heights, widths))
    return found.astype(np.float32)


class Thresholds:
    """Counts the scores of several tensors, to find the one from which on values are kept in all of them."""

    def __init__(self) -> None:
        self._counted: dict[int, tuple[Rule, np.ndarray]] = {}

    def add(self, rule: Rule, values: np.ndarray, weights: np.ndarray | None) -> None:
        """Count ``values`` (float32 [rows, cols]) of a tensor that ``rule`` prunes together with others."""
        own, block = scores(values, weights), block_of(rule, values.shape)
        if block != (1, 1):
            own = block_scores(own, block)
        _, counts = self._counted.setdefault(id(rule), (rule, np.zeros(1 << (32 - SCORE_SHIFT), np.int64)))
        flat = own.reshape(-1).view(np.uint32)
        for start in range(0, flat.size, PIECE):
            found = np.bincount(flat[start : start + PIECE] >> np.uint32(SCORE_SHIFT), minlength=counts.size)
            counts += found * (block[0] * block[1])  # blocks at the edges count as whole ones

    def found(self) -> Mapping[int, float]:
        """By ``id`` of a rule, the score at which it keeps its share of all values that were counted, to within a bin."""
        return {key: _least(counts, share_kept(rule)) for key, (rule, counts) in self._counted.items()}


def _least(counts: np.ndarray, share: float) -> float:
    above = np.cumsum(counts[::-1])[::-1]
    first = int(np.count_nonzero(above >= share * above[0])) - 1
    return float(np.array([first << SCORE_SHIFT], np.uint32).view(np.float32)[0])


def _greatest(own: np.ndarray, share: float) -> np.ndarray:
    """bool: the ``share`` of scores that are greatest; among equals, the first ones."""
    count = min(own.size, max(1, round(share * own.size)))
    flat = own.reshape(-1)
    if count == flat.size:
        return np.ones(own.shape, bool)
    least = np.partition(flat, flat.size - count)[flat.size - count]
    mask: np.ndarray = flat > least
    equal = np.flatnonzero(flat == least)
    mask[equal[: count - int(np.count_nonzero(mask))]] = True
    return mask.reshape(own.shape)


def _pattern(own: np.ndarray, pattern: str) -> np.ndarray:
    """bool: of every group along the last axis as many as ``pattern`` has, the greatest; among equals, the first ones."""
    taken, group = map(int, pattern.split(":"))
    groups = own.reshape(-1, group)
    mask = np.empty(groups.shape, bool)
    for i in range(group):
        ahead = np.zeros(groups.shape[0], np.uint8)
        for j in range(group):
            if j != i:
                ahead += groups[:, j] >= groups[:, i] if j < i else groups[:, j] > groups[:, i]
        np.less(ahead, taken, out=mask[:, i])
    return mask.reshape(own.shape)


def describe(mask: np.ndarray) -> dict[str, float]:
    """What was kept, for the tensor's attributes."""
    return {"kept": float(f"{np.count_nonzero(mask) / mask.size:.6g}")}

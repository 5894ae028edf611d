"""Prune: which values of a tensor are kept, and which become 0.

By magnitude (Han et al., "Learning both weights and connections for efficient neural networks", 2015), single values or blocks
of them, or a number out of every group (Mishra et al., "Accelerating sparse deep neural networks", 2021). Where importance is
given, the square of a value counts times its weight: with second moments of activations that is the score of Wanda (Sun et al.,
"A simple and effective pruning approach for large language models", 2023).
"""

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from mzstore.recipe import Recipe, Rule
from mzstore.tensors import TensorSpec

# Scores are float32 and not negative: their bits ascend with them. The first 20 tell them apart to within 0.05 %.
SCORE_SHIFT = 12


def scores(values: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """float32 [rows, cols]: how much of the weighted square each of ``values`` (float32 [rows, cols]) holds."""
    with np.errstate(over="ignore"):
        found = np.square(values)
        if weights is not None:
            found *= weights
    bounded: np.ndarray = np.minimum(found, np.float32(np.finfo(np.float32).max))
    return bounded


def kept(values: np.ndarray, rule: Rule, weights: np.ndarray | None = None, least: float | None = None) -> np.ndarray:
    """bool [rows, cols]: which of ``values`` (float32 [rows, cols]) the rule keeps.

    weights  float32 [cols] or [rows, cols]: how much the square of a value matters; None: all the same
    least    the score from which on values are kept, of a rule for all tensors together
    """
    own = scores(values, weights)
    if rule.pattern is not None:
        return _pattern(own, rule.pattern)
    block = _block(rule, values.shape)
    means = block_means(own, block) if block != (1, 1) else own
    if rule.threshold is not None:
        least = rule.threshold**2
    mask = _greatest(means, share_kept(rule)) if least is None else means >= np.float32(least)
    if block == (1, 1):
        return mask
    return mask.repeat(block[0], axis=0)[: values.shape[0]].repeat(block[1], axis=1)[:, : values.shape[1]]


def share_kept(rule: Rule) -> float:
    """Which part of the values a rule keeps."""
    assert rule.top is not None or rule.sparsity is not None
    return rule.top if rule.top is not None else 1 - float(rule.sparsity or 0)


def block_means(own: np.ndarray, block: tuple[int, int]) -> np.ndarray:
    """float32: the mean score in each block; blocks at the far edges may be smaller."""
    rows = np.add.reduceat(own, np.arange(0, own.shape[0], block[0]), axis=0, dtype=np.float64)
    sums = np.add.reduceat(rows, np.arange(0, own.shape[1], block[1]), axis=1)
    heights = np.diff(np.append(np.arange(0, own.shape[0], block[0]), own.shape[0]))
    widths = np.diff(np.append(np.arange(0, own.shape[1], block[1]), own.shape[1]))
    means: np.ndarray = (sums / np.multiply.outer(heights, widths)).astype(np.float32)
    return means


Read = Callable[[], tuple[np.ndarray, np.ndarray | None]]  # (values [rows, cols], weights) of a tensor


def thresholds(recipe: Recipe, tensors: Iterable[tuple[TensorSpec, Read]]) -> Mapping[int, float]:
    """For the rules of ``recipe`` with ``scope = "global"``, by ``id``: the score from which on values of any tensor are kept."""
    counts: dict[int, np.ndarray] = {}
    rules: dict[int, Rule] = {}
    for spec, read in tensors:
        rule = recipe.rule_for(spec)
        if rule is None or rule.scope != "global":
            continue
        values, weights = read()
        block = _block(rule, values.shape)
        own = scores(values, weights)
        means = block_means(own, block) if block != (1, 1) else own
        bins = np.ascontiguousarray(means).reshape(-1).view(np.uint32) >> np.uint32(SCORE_SHIFT)
        # Blocks at the edges count as whole ones; of blocks of other sizes, each counts as many values as it has.
        found = np.bincount(bins, minlength=1 << (32 - SCORE_SHIFT)) * (block[0] * block[1])
        counts[id(rule)] = counts.get(id(rule), 0) + found
        rules[id(rule)] = rule
    return {key: _least(found, share_kept(rules[key])) for key, found in counts.items()}


def _least(counts: np.ndarray, share: float) -> float:
    """The score above which ``share`` of the values counted lie, to within a bin."""
    above = np.cumsum(counts[::-1])[::-1]
    first = int(np.searchsorted(-above, -share * above[0], side="right")) - 1
    return float(np.array([max(first, 0) << SCORE_SHIFT], np.uint32).view(np.float32)[0])


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
    taken, group = map(int, pattern.split(":"))
    groups = own.reshape(-1, group)
    chosen = np.argsort(-groups, axis=1, kind="stable")[:, :taken]
    mask = np.zeros(groups.shape, bool)
    np.put_along_axis(mask, chosen, True, axis=1)
    return mask.reshape(own.shape)


def _block(rule: Rule, shape: tuple[int, ...]) -> tuple[int, int]:
    if rule.block is None:
        return (1, 1)
    rows, cols = rule.block.split("x")
    return (shape[0] if rows == "*" else int(rows), shape[1] if cols == "*" else int(cols))


def describe(mask: np.ndarray) -> dict[str, float]:
    """What was kept, for the tensor's attributes."""
    return {"kept": float(f"{np.count_nonzero(mask) / mask.size:.6g}")}

"""Targets: a tensor, quantized so that it has the bits or the error that a rule asks for.

The quantizer finds a step by a sample of the values. Here the tensor is encoded with it, and with others near it, until
what is stored has what was asked for.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from mzstore.documents import TensorEntry
from mzstore.encode import Level
from mzstore.quality import Errors, quality_of
from mzstore.quantize import CODINGS, Encoded, Lossy, fit
from mzstore.quantizers.ecsq import FittedUniform, Target, Uniform
from mzstore.recipe import Rule
from mzstore.rules import quantizer_for
from mzstore.sources import TensorSource

Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
TRIALS = 5  # of a step
TOLERANCE = 0.01  # in bits per weight: of the rate, or of the rate that the error is worth
MOST_OFF = 0.1  # of the bits that are asked for
TRIED_NBYTES = 64 << 20  # of words: a larger tensor would take too much memory to be tried as a whole
LOG_STEPS = 110.0  # beyond these, what steps are multiplied with leaves float32


def prepare(
    source: TensorSource, rule: Rule, importance: Any = None, level: Level = "balanced", spread: Map = map
) -> Lossy:
    """Fit the quantizer of ``rule`` to ``source``. Raises ValueError, naming the tensor, for what it cannot do.

    importance  float32[cols] or an array of the tensor's shape: how much the squared error of each value matters
    spread      ``map``, or that of an executor: row blocks are tried with it
    """
    try:
        return fitted(source, rule, importance, level, spread)
    except ValueError as error:
        raise ValueError(f"tensor {source.spec.name!r}: {error}") from error


def fitted(
    source: TensorSource,
    rule: Rule,
    importance: Any,
    level: Level,
    spread: Map,
    *,
    alone: bool = True,
    chunk_shape: tuple[int, ...] | None = None,
) -> Lossy:
    """As ``prepare``, for a tensor or for what one of several parts of it has to hold; the error names nothing.

    alone        whether outliers may have a part of their own; else codes saturate
    chunk_shape  of the words; None: what suits the codes and scales
    """
    quantizer = quantizer_for(rule, source.spec, weighted=importance is not None)
    if isinstance(quantizer, Uniform) and not alone:
        quantizer = replace(quantizer, outliers_overhead_bits=math.inf)
    lossy = fit(source, quantizer, rule.asked, importance, CODINGS[level], chunk_shape, alone=alone)
    if not isinstance(quantizer, Uniform) or quantizer.target is None or quantizer.target.max_error is not None:
        return lossy
    if source.spec.nbytes > TRIED_NBYTES:  # of so many values, what the sample shows is exact enough
        return lossy
    return _reaching(quantizer.target, lossy, source, spread)


def _reaching(target: Target, lossy: Lossy, source: TensorSource, spread: Map) -> Lossy:
    """``lossy`` with the step, of a few that are tried, that comes nearest to ``target``."""
    side = 1 if target.bits is not None else -1  # more bits are too many, but fewer ones too great an error

    def badness(off: float) -> tuple[bool, float]:
        """What misses the target is worse than all that does not."""
        return side * off > TOLERANCE, abs(off)

    points: list[tuple[float, float]] = []  # (logarithm of the step, what it is off)
    best = lossy
    while isinstance(fitted := lossy.fitted, FittedUniform):
        lossy = replace(lossy, trial=_tried(lossy, source, spread))
        points.append((math.log2(fitted.design.step), _bits_off(lossy, target)))
        if badness(points[-1][1]) <= min(badness(off) for _, off in points):
            best = lossy
        if abs(points[-1][1]) <= TOLERANCE / 2 or len(points) == TRIALS:
            break
        try:
            again = fitted.with_step(2.0 ** _next(points))
        except ValueError:  # values that need less than was asked for: a step so fine has too many levels
            break
        lossy = lossy.bound(source, again)
    off = min((off for _, off in points), key=badness)
    if target.bits is not None and off > MOST_OFF * target.bits:
        raise ValueError(
            f"{target.bits:g} bits per weight cannot be reached, only {target.bits + off:.3g}: "
            "ask for more, or keep it lossless"
        )
    return best


def _tried(lossy: Lossy, source: TensorSource, spread: Map) -> dict[int, Encoded]:
    """All row blocks of the tensor, encoded, by the word that they start at."""

    def encoded(row_block: tuple[int, tuple[int, ...], list[tuple[int, ...]]]) -> Encoded:
        start, shape, chunks = row_block
        return lossy.encode(source.read(start, start + math.prod(shape)).reshape(shape), start, chunks)

    row_blocks = list(lossy.part.grid.row_blocks())
    return {start: found for (start, _, _), found in zip(row_blocks, spread(encoded, row_blocks), strict=True)}


def _next(points: list[tuple[float, float]]) -> float:
    """The logarithm of the step to try after ``points``: between those around the target, where there are such."""
    fine = max((point for point in points if point[1] > 0), default=None)
    coarse = min((point for point in points if point[1] <= 0), default=None)
    if fine and coarse and fine[0] < coarse[0]:
        # Where another alphabet begins, bits jump: from neither side more than most of the way.
        share = min(0.9, max(0.1, fine[1] / (fine[1] - coarse[1])))
        return fine[0] + share * (coarse[0] - fine[0])
    (log_step, off), slope = points[-1], 1.0  # a bit less for each doubling
    if len(points) > 1 and points[-2][0] != log_step:
        slope = min(4.0, max(0.3, (points[-2][1] - off) / (log_step - points[-2][0])))
    return min(LOG_STEPS, max(-LOG_STEPS, log_step + off / slope))


def _bits_off(lossy: Lossy, target: Target) -> float:
    """By how many bits what was measured is above what is aimed at: a bit better than the target, so that it is kept."""
    errors = sum((encoded.errors for encoded in lossy.trial.values()), Errors())
    if target.bits is not None:
        entry = TensorEntry(lossy.spec, lossy.spec.name, "0" * 64, lossy.part)
        bits: float = quality_of(entry, lossy.asked, errors)["reached"]["bits"]
        return bits - target.bits + TOLERANCE / 2
    asked = target.relative_error
    measured = errors.squared_error / errors.square if errors.square else 0.0
    if not asked or not measured:
        return 0.0
    return 0.5 * math.log2(asked / measured) - TOLERANCE / 2  # what a lower error costs

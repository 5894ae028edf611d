"""Estimate: what a conversion would make of each tensor, and how large it would be, from a part of its rows.

The parts are written as the tensors would be, by the same writer, to nowhere.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from mzstore.edits import Edited, is_coded
from mzstore.encode import Level
from mzstore.importance import StoredImportance
from mzstore.recipe import FACTORIZED, Rule, Rules
from mzstore.report import TensorReport, of_written
from mzstore.sources import ArraySource, ModelSource, TensorSource, Walked
from mzstore.tensors import TensorSpec
from mzstore.writer import write

PLACES = 4  # that rows are taken from
PLACE_WORDS = 1 << 18
ROWS = 64  # at each place a multiple of so many, if they are not too long: blocks of rows stay whole


@dataclass(frozen=True, slots=True)
class _Sample:
    """``source``, of which only ``ranges`` of rows are there: (first, one past the last) on its first axis."""

    source: TensorSource
    ranges: tuple[tuple[int, int], ...]

    @property
    def spec(self) -> TensorSpec:
        spec = self.source.spec
        return replace(spec, shape=(sum(stop - start for start, stop in self.ranges), *spec.shape[1:]))

    def load(self) -> ArraySource:
        row = math.prod(self.source.spec.word_shape[1:])
        words = [self.source.read(start * row, stop * row) for start, stop in self.ranges]
        return ArraySource(self.spec, np.concatenate(words))

    def rows(self, importance: Any) -> Any:
        """Of an importance that has a number for each value, those of the sample."""
        values = np.asarray(importance)
        if values.shape != self.source.spec.shape:
            return values
        return np.concatenate([values[start:stop] for start, stop in self.ranges])


@dataclass(frozen=True, slots=True)
class _Chosen:
    """The rules that a recipe has for whole tensors, for samples of them."""

    rules: Sequence[Rule]
    by_name: Mapping[str, Rule | None]

    def rule_for(self, spec: TensorSpec) -> Rule | None:
        return self.by_name[spec.name]


class _Nowhere:
    def write(self, data: bytes | memoryview, /) -> int:
        return len(data)


def estimate(
    edited: Edited, rules: Rules | None, importance: Mapping[str, Any], level: Level, threads: int
) -> tuple[TensorReport, ...]:
    """What an archive would have. Sizes are those of the samples times how much larger the tensors are.

    Tensors are read whole whose factors a rule asks for, and those that are pruned together.
    """
    tensors = {tensor.spec.name: tensor for tensor in edited.source.tensors}
    chosen = {name: rules.rule_for(tensor.spec) if rules else None for name, tensor in tensors.items()}
    samples = {name: _sample(tensor, chosen[name]) for name, tensor in tensors.items()}

    def loaded() -> Iterator[TensorSource]:
        for name, tensor in tensors.items():
            sample = samples[name]
            yield sample.load() if sample else tensor

    source = ModelSource(Walked(loaded), edited.source.nbytes, bases=edited.source.bases)
    weights = {
        name: StoredImportance(partial(sample.rows, importance[name]))
        if (sample := samples[name])
        else importance[name]
        for name in importance
    }
    found = write(
        _Nowhere(),
        source,
        recipe=_Chosen(rules.rules, chosen) if rules else None,
        importance=weights,
        level=level,
        threads=threads,
        show_progress=False,
    )
    reports = []
    for each in of_written(found, tensors, edited.was):
        tensor = tensors[each.spec.name]
        larger = tensor.spec.nbytes / each.spec.nbytes if each.spec.nbytes else 1
        reports.append(
            replace(
                each, spec=tensor.spec, source=edited.was(tensor.spec), stored_nbytes=round(each.stored_nbytes * larger)
            )
        )
    return tuple(reports)


def _sample(tensor: TensorSource, rule: Rule | None) -> _Sample | None:
    """None for a tensor that is taken whole."""
    spec = tensor.spec
    if not spec.shape or spec.dtype.packed or is_coded(tensor):
        return None
    if rule and (rule.encoding in (*FACTORIZED, "parts") or rule.scope == "global"):
        return None
    row = math.prod(spec.word_shape[1:])
    rows = max(1, PLACE_WORDS // max(1, row))
    rows = rows // ROWS * ROWS or rows
    if spec.shape[0] <= PLACES * rows:
        return None
    between = (spec.shape[0] - rows) // (PLACES - 1)
    return _Sample(tensor, tuple((i * between, i * between + rows) for i in range(PLACES)))

"""Retention: which checkpoints stay."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Mode = Literal["min", "max"]


@dataclass(frozen=True, slots=True)
class Retention:
    """What ``prune`` leaves: a checkpoint stays for any of these reasons. All of them None: every one stays.

    keep   so many that have the highest steps
    every  those whose step is a multiple of it
    best   (metric, "min" or "max", how many): the best by this metric; one without it, or with NaN, is not among them
    """

    keep: int | None = None
    every: int | None = None
    best: tuple[str, Mode, int] | None = None

    def __post_init__(self) -> None:
        if (self.keep is not None and self.keep < 1) or (self.every is not None and self.every < 1):
            raise ValueError(f"keep {self.keep}, every {self.every}: at least 1, or None")
        if self.best is not None and (self.best[1] not in ("min", "max") or self.best[2] < 1):
            raise ValueError(f"best {self.best}: a metric, 'min' or 'max', and at least 1")

    @property
    def unlimited(self) -> bool:
        return self.keep is None and self.every is None

    def kept(self, steps: Sequence[int], metrics: Mapping[int, Mapping[str, float]]) -> set[int]:
        """Those of ``steps`` that stay. ``metrics`` by step, where ``best`` needs them."""
        if self.unlimited:
            return set(steps)
        kept = set(sorted(steps)[-(self.keep or 0) :] if self.keep else [])
        if self.every:
            kept |= {step for step in steps if step % self.every == 0}
        if self.best:
            name, mode, count = self.best
            kept |= set(ranked({step: metrics.get(step, {}) for step in steps}, name, mode)[:count])
        return kept


def ranked(metrics: Mapping[int, Mapping[str, float]], name: str, mode: Mode) -> list[int]:
    """Steps from the best on, by metric ``name``; of equal ones the later first. Those without it, or with NaN, are left out."""
    known = {step: each[name] for step, each in metrics.items() if name in each and each[name] == each[name]}
    sign = 1 if mode == "min" else -1
    return sorted(known, key=lambda step: (sign * known[step], -step))

"""Which checkpoints stay."""

import math

import pytest

from mzstore.checkpoints.retention import Retention, ranked

METRICS = {0: {"loss": 3.0}, 10: {"loss": 1.0}, 20: {"loss": 2.0}, 30: {}, 40: {"loss": math.nan}}
STEPS = list(METRICS)


@pytest.mark.parametrize(
    ("retention", "kept"),
    [
        (Retention(), {0, 10, 20, 30, 40}),
        (Retention(best=("loss", "min", 1)), {0, 10, 20, 30, 40}),
        (Retention(keep=2), {30, 40}),
        (Retention(keep=9), {0, 10, 20, 30, 40}),
        (Retention(every=20), {0, 20, 40}),
        (Retention(keep=1, every=20), {0, 20, 40}),
        (Retention(keep=1, best=("loss", "min", 1)), {10, 40}),
        (Retention(keep=1, best=("loss", "max", 2)), {0, 20, 40}),
        (Retention(keep=1, best=("accuracy", "max", 1)), {40}),
    ],
)
def test_what_stays(retention, kept):
    assert retention.kept(STEPS, METRICS) == kept


def test_of_equal_ones_the_later_is_better():
    assert ranked({1: {"x": 5}, 2: {"x": 5}, 3: {"x": 6}}, "x", "min") == [2, 1, 3]


@pytest.mark.parametrize("wrong", [{"keep": 0}, {"every": 0}, {"best": ("x", "least", 1)}, {"best": ("x", "min", 0)}])
def test_nonsense_is_refused(wrong):
    with pytest.raises(ValueError, match="least"):
        Retention(**wrong)

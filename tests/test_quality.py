"""What quantizing did to values is the same number whatever adds it up."""

import numpy as np
import pytest

from mzstore import kernels
from mzstore.dtypes import DTYPES
from mzstore.quality import LANES, PIECE, Errors


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16", "float64"])
@pytest.mark.parametrize("n", [1, LANES - 1, LANES, LANES + 1, PIECE, 2 * PIECE + 3 * LANES + 1])
def test_errors_are_those_of_numpy_and_the_same_with_kernels(name, n, monkeypatch):
    dtype, rng = DTYPES[name], np.random.default_rng(n)
    before = rng.standard_normal(n).astype(dtype.numpy)
    after = (before.astype(np.float64) + rng.standard_normal(n) / 8).astype(dtype.numpy)
    found = []
    for pays in (False, True):
        monkeypatch.setattr(kernels, "pays", lambda nbytes, pays=pays: pays)
        found.append(Errors.between(before.view(dtype.word), after.view(dtype.word), dtype))
    assert found[0] == found[1]
    values, error = before.astype(np.float64), after.astype(np.float64) - before.astype(np.float64)
    assert (found[0].count, found[0].greatest) == (n, np.abs(error).max())
    assert found[0].square == pytest.approx((values**2).sum(), rel=1e-12)
    assert found[0].squared_error == pytest.approx((error**2).sum(), rel=1e-12)


@pytest.mark.parametrize("at", [0, LANES, -1])
def test_values_that_became_infinite_are_refused(at):
    before = np.ones(3 * LANES + 5, np.float32)
    after = before.copy()
    after[at] = np.inf
    with pytest.raises(ValueError, match="values that float32 cannot hold come out"):
        Errors.between(before.view(np.uint32), after.view(np.uint32), DTYPES["float32"])

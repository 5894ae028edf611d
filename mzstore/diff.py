"""Diff: two models, of any supported format, tensor by tensor; and by how much their values differ.

Values are compared as bits; the size of a difference is computed in float64, block by block.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np

from mzstore import kernels
from mzstore.documents import dump
from mzstore.formats import open_source
from mzstore.model import default_threads
from mzstore.progress import progress
from mzstore.sources import FileSource, ModelSource, TensorSource
from mzstore.storage import Location, Options
from mzstore.tensors import TensorSpec


@dataclass(frozen=True, slots=True)
class Measure:
    """By how much the values of two tensors of one shape differ.

    differing  values whose bits differ; of tensors of two dtypes, whose numbers differ
    nonfinite  of these, pairs of which one is NaN or infinite; the errors are those of all other pairs
    nmse       sum of squared errors / sum of squared values of A; None if A is zero throughout and B is not
    """

    size: int
    differing: int
    nonfinite: int
    max_abs_error: float
    rmse: float
    nmse: float | None

    def to_json(self) -> dict[str, Any]:
        numbers = {"max_abs_error": self.max_abs_error, "rmse": self.rmse, "nmse": self.nmse}
        return {
            "size": self.size,
            "differing": self.differing,
            "nonfinite": self.nonfinite,
            # An overflow of float64 is no number of JSON.
            **{key: n if n is not None and math.isfinite(n) else None for key, n in numbers.items()},
        }


@dataclass(frozen=True, slots=True)
class TensorDifference:
    """A tensor that both models have, and not the same. ``measure`` is None if the shapes differ."""

    a: TensorSpec
    b: TensorSpec
    measure: Measure | None

    @property
    def name(self) -> str:
        return self.a.name

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "dtype": [self.a.dtype.name, self.b.dtype.name],
            "shape": [list(self.a.shape), list(self.b.shape)],
            "values": self.measure.to_json() if self.measure else None,
        }


@dataclass(frozen=True, slots=True)
class Keys:
    """Which members of two mappings differ."""

    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    differing: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.only_a or self.only_b or self.differing)

    @classmethod
    def of(cls, a: Mapping[str, object], b: Mapping[str, object]) -> "Keys":
        return cls(
            tuple(key for key in a if key not in b),
            tuple(key for key in b if key not in a),
            tuple(key for key in a if key in b and a[key] != b[key]),
        )

    def to_json(self) -> dict[str, Any]:
        return {"only_a": list(self.only_a), "only_b": list(self.only_b), "differing": list(self.differing)}


@dataclass(frozen=True, slots=True)
class Difference:
    """What ``diff`` found. The order of the tensors does not count."""

    only_a: tuple[TensorSpec, ...]
    only_b: tuple[TensorSpec, ...]
    tensors: tuple[TensorDifference, ...]
    equal_tensors: int
    metadata: Keys
    assets: Keys

    @property
    def equal(self) -> bool:
        return not (self.only_a or self.only_b or self.tensors or self.metadata or self.assets)

    def to_json(self) -> dict[str, Any]:
        """What ``mzstore diff --json`` prints. Members may be added, and none changes its meaning."""
        return {
            "equal": self.equal,
            "equal_tensors": self.equal_tensors,
            "only_a": [_spec_json(spec) for spec in self.only_a],
            "only_b": [_spec_json(spec) for spec in self.only_b],
            "differing": [tensor.to_json() for tensor in self.tensors],
            "metadata": self.metadata.to_json(),
            "assets": self.assets.to_json(),
        }


def _spec_json(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "dtype": spec.dtype.name, "shape": list(spec.shape)}


def diff(
    a: Location,
    b: Location,
    *,
    threads: int | None = None,
    show_progress: bool | None = None,
    storage_options: Options = None,
) -> Difference:
    """Compare two models in any format that ``convert`` reads. Equal digests are believed: ``verify`` checks them.

    Raises what ``open`` raises, and CorruptError where values that have to be compared cannot be decoded.
    """
    with open_source(a, storage_options) as source_a, open_source(b, storage_options) as source_b:
        return _diff(source_a, source_b, threads or default_threads(), show_progress)


def _diff(a: ModelSource, b: ModelSource, threads: int, show_progress: bool | None) -> Difference:
    tensors_a = {tensor.spec.name: tensor for tensor in a.tensors}
    tensors_b = {tensor.spec.name: tensor for tensor in b.tensors}
    pairs = [(tensor, tensors_b[name]) for name, tensor in tensors_a.items() if name in tensors_b]
    total = sum(pair[0].spec.nbytes for pair in pairs)
    kernels.expect(2 * total)
    with progress("compare", total, show_progress) as done:
        pool = ThreadPoolExecutor(threads, thread_name_prefix="mzstore-diff")
        try:
            found = list(pool.map(lambda pair: _compare(*pair, done), pairs))
        finally:
            pool.shutdown(cancel_futures=True)
    differences = tuple(difference for difference in found if difference)
    return Difference(
        tuple(tensor.spec for name, tensor in tensors_a.items() if name not in tensors_b),
        tuple(tensor.spec for name, tensor in tensors_b.items() if name not in tensors_a),
        differences,
        len(pairs) - len(differences),
        Keys.of(*({key: dump({"": value}) for key, value in source.metadata.items()} for source in (a, b))),
        Keys.of(*({file.path: _digest(file) for file in source.assets} for source in (a, b))),
    )


def _digest(file: FileSource) -> str:
    digest = hashlib.sha256()
    for block in file.blocks():
        digest.update(block)
    return digest.hexdigest()


def _compare(a: TensorSource, b: TensorSource, done: Callable[[int], None]) -> TensorDifference | None:
    """The difference of two tensors; None if they are equal, bit for bit."""
    measure = None
    if a.spec.shape == b.spec.shape:
        if a.spec.dtype != b.spec.dtype or not _same_bits(a, b):
            measure = _measure(a, b)
    done(a.spec.nbytes)
    if (a.spec.dtype, a.spec.shape) == (b.spec.dtype, b.spec.shape) and (measure is None or not measure.differing):
        return None
    return TensorDifference(a.spec, b.spec, measure)

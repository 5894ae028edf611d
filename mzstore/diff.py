"""Diff: two models, of any supported format, tensor by tensor; and by how much their values differ."""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from mzstore import kernels
from mzstore.bases import BaseLocations
from mzstore.compare import Measure, Track, comparable, measure, same_bits, same_digest
from mzstore.edits import Edits, Renames
from mzstore.formats import open_source
from mzstore.model import check_threads
from mzstore.progress import progress
from mzstore.sources import FileSource, ModelSource, TensorSource
from mzstore.storage import Location, Options
from mzstore.tensors import TensorSpec
from mzstore.text import count, shown


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


def render(difference: Difference) -> Iterator[str]:
    """The difference for people: ``-`` only in A, ``+`` only in B, ``~`` in both and not the same."""
    for mark, specs in (("-", difference.only_a), ("+", difference.only_b)):
        for spec in specs:
            yield f"{mark} {shown(spec.name)}  {_kind(spec)}"
    for tensor in difference.tensors:
        kinds = dict.fromkeys((_kind(tensor.a), _kind(tensor.b)))
        yield f"~ {shown(tensor.name)}  {' -> '.join(kinds)}"
        if tensor.measure:
            yield f"    {_measured(tensor.measure)}"
    for label, keys in (("metadata", difference.metadata), ("asset", difference.assets)):
        for mark, names in (("-", keys.only_a), ("+", keys.only_b), ("~", keys.differing)):
            yield from (f"{mark} {label} {shown(name)}" for name in names)
    both = difference.equal_tensors + len(difference.tensors)
    also = "" if difference.metadata or difference.assets else "; metadata and assets are equal"
    yield f"{difference.equal_tensors:,} of {count(both, 'common tensor')} equal{also}"


def _kind(spec: TensorSpec) -> str:
    return f"{spec.dtype.name} {list(spec.shape)}"


def _measured(measure: Measure) -> str:
    if not measure.differing:
        return "all values are equal"
    nonfinite = f", {measure.nonfinite:,} not finite" if measure.nonfinite else ""
    nmse = "-" if measure.nmse is None else f"{measure.nmse:.2g}"
    return (
        f"{measure.differing:,} of {count(measure.size, 'value')} differ{nonfinite}; "
        f"max error {measure.max_abs_error:.2g}, RMSE {measure.rmse:.2g}, NMSE {nmse}"
    )


def diff(
    a: Location,
    b: Location,
    *,
    rename: Renames = None,
    threads: int | None = None,
    show_progress: bool | None = None,
    storage_options: Options = None,
    bases: BaseLocations | None = None,
) -> Difference:
    """Compare two models in any format that ``convert`` reads. Equal digests are believed: ``verify`` checks them.
    ``rename``: what the tensors of A are called in B, see ``convert``; ``bases``: where to find the models that they refer to, see
    ``open``.

    Tensors of two dtypes, and those that are quantized, are compared by the numbers that they stand for. Raises what ``open`` raises, and CorruptError where values that have to be compared cannot be decoded.
    """
    edits = Edits.of(rename=rename)
    with (
        open_source(a, storage_options, bases=bases) as source_a,
        open_source(b, storage_options, bases=bases) as source_b,
    ):
        renamed = replace(source_a, tensors=edits.apply(source_a, codes=True).source.tensors)
        found = _diff(renamed, source_b, check_threads(threads), show_progress)
        source_a.check_unchanged()
        source_b.check_unchanged()
        return found


def _diff(a: ModelSource, b: ModelSource, threads: int, show_progress: bool | None) -> Difference:
    tensors_a = {tensor.spec.name: tensor for tensor in a.tensors}
    tensors_b = {tensor.spec.name: tensor for tensor in b.tensors}
    pairs = [(tensor, tensors_b[name]) for name, tensor in tensors_a.items() if name in tensors_b]
    kernels.expect(2 * sum(x.spec.nbytes for x, y in pairs if not same_digest(x, y)))
    stop = threading.Event()
    with progress("compare", sum(x.spec.nbytes for x, _ in pairs), show_progress) as done:
        pool = ThreadPoolExecutor(threads, thread_name_prefix="mzstore-diff")
        try:
            found = list(pool.map(lambda pair: _compare(pair[0], pair[1], Track(done, stop)), pairs))
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
    differences = tuple(difference for difference in found if difference)
    return Difference(
        tuple(tensor.spec for name, tensor in tensors_a.items() if name not in tensors_b),
        tuple(tensor.spec for name, tensor in tensors_b.items() if name not in tensors_a),
        differences,
        len(pairs) - len(differences),
        Keys.of(*({key: json.dumps(value, sort_keys=True) for key, value in of.metadata.items()} for of in (a, b))),
        Keys.of(*({file.path: _digest(file) for file in source.assets} for source in (a, b))),
    )


def _digest(file: FileSource) -> str:
    digest = hashlib.sha256()
    for block in file.blocks():
        digest.update(block)
    return digest.hexdigest()


def _compare(a: TensorSource, b: TensorSource, track: Track) -> TensorDifference | None:
    """The difference of two tensors; None if they are equal, bit for bit."""
    same_type = a.spec.dtype == b.spec.dtype
    both, measured = comparable(a.spec, b.spec), None
    if both and not (same_type and same_bits(a, b, track)):
        measured = measure(a, b, track)
    track.to(a.spec.nbytes)
    if same_type and both and (measured is None or not measured.differing):
        return None
    return TensorDifference(a.spec, b.spec, measured)

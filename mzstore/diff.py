"""Diff: two models, of any supported format, tensor by tensor; and by how much their values differ.

Values are compared as bits; the size of a difference is computed in float64, block by block.
"""

import hashlib
import json
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from mzstore import kernels
from mzstore.bases import BaseLocations
from mzstore.formats import open_source
from mzstore.grid import Grid, choose_chunk_shape
from mzstore.model import StoredTensor, check_threads
from mzstore.progress import progress
from mzstore.sources import FileSource, ModelSource, TensorSource
from mzstore.storage import Location, Options
from mzstore.tensors import TensorSpec
from mzstore.text import count, shown

STEP = 1 << 17  # values measured at a time: what is computed of them stays in the cache


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
    threads: int | None = None,
    show_progress: bool | None = None,
    storage_options: Options = None,
    bases: BaseLocations | None = None,
) -> Difference:
    """Compare two models in any format that ``convert`` reads. Equal digests are believed: ``verify`` checks them.
    ``bases``: where to find the models that they refer to, see ``open``.

    Raises what ``open`` raises, and CorruptError where values that have to be compared cannot be decoded.
    """
    with (
        open_source(a, storage_options, bases=bases) as source_a,
        open_source(b, storage_options, bases=bases) as source_b,
    ):
        found = _diff(source_a, source_b, check_threads(threads), show_progress)
        source_a.check_unchanged()
        source_b.check_unchanged()
        return found


def _diff(a: ModelSource, b: ModelSource, threads: int, show_progress: bool | None) -> Difference:
    tensors_a = {tensor.spec.name: tensor for tensor in a.tensors}
    tensors_b = {tensor.spec.name: tensor for tensor in b.tensors}
    pairs = [(tensor, tensors_b[name]) for name, tensor in tensors_a.items() if name in tensors_b]
    kernels.expect(2 * sum(x.spec.nbytes for x, y in pairs if not _same_digest(x, y)))
    stop = threading.Event()
    with progress("compare", sum(x.spec.nbytes for x, _ in pairs), show_progress) as done:
        pool = ThreadPoolExecutor(threads, thread_name_prefix="mzstore-diff")
        try:
            found = list(pool.map(lambda pair: _compare(pair[0], pair[1], _Track(done, stop)), pairs))
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


@dataclass(slots=True)
class _Track:
    """How far the work on one tensor is, which may be walked twice; raises CancelledError once the rest is not wanted."""

    done: Callable[[int], None]
    stop: threading.Event
    at: int = 0

    def to(self, nbytes: int) -> None:
        if self.stop.is_set():
            raise CancelledError
        if nbytes > self.at:
            self.done(nbytes - self.at)
            self.at = nbytes


def _compare(a: TensorSource, b: TensorSource, track: _Track) -> TensorDifference | None:
    """The difference of two tensors; None if they are equal, bit for bit."""
    same_type = a.spec.dtype == b.spec.dtype
    measure = None
    # Words of one shape hold the same values at the same places; only pairs in a byte and complex values do not.
    comparable = a.spec.shape == b.spec.shape and a.spec.word_shape == b.spec.word_shape
    if comparable and not (same_type and _same_bits(a, b, track)):
        measure = _measure(a, b, track)
    track.to(a.spec.nbytes)
    if same_type and comparable and (measure is None or not measure.differing):
        return None
    return TensorDifference(a.spec, b.spec, measure)


def _blocks(a: TensorSource, b: TensorSource, track: _Track) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(first word, words of A, words of B), block by block; the blocks are those in which A would be stored."""
    shape = a.spec.word_shape
    for start, block, _ in Grid(shape, choose_chunk_shape(shape, a.spec.dtype.word.itemsize)).row_blocks():
        stop = start + math.prod(block)
        yield start, a.read(start, stop), b.read(start, stop)
        track.to(stop * a.spec.dtype.word.itemsize)


def _same_digest(a: TensorSource, b: TensorSource) -> bool | None:
    """Whether the words are the same, as far as that is known without reading them; None if it is not."""
    if isinstance(a, StoredTensor) and isinstance(b, StoredTensor):
        return a.sha256 == b.sha256 if a.sha256 and b.sha256 else None
    return None


def _same_bits(a: TensorSource, b: TensorSource, track: _Track) -> bool:
    known = _same_digest(a, b)
    if known is not None:
        return known
    return all(np.array_equal(words_a, words_b) for _, words_a, words_b in _blocks(a, b, track))


def _measure(a: TensorSource, b: TensorSource, track: _Track) -> Measure:
    sums = _Sums(same_type=a.spec.dtype == b.spec.dtype)
    for start, *words in _blocks(a, b, track):
        values_a, values_b = (_values(side.spec, of, start) for side, of in zip((a, b), words, strict=True))
        for at in range(0, values_a.size, STEP):
            sums.add(values_a[at : at + STEP], values_b[at : at + STEP])
    return sums.measure()


def _values(spec: TensorSpec, words: np.ndarray, start: int) -> np.ndarray:
    """The values (one dimension) whose words, from ``start`` on, are whole rows or lie in one row."""
    if not spec.dtype.packed or not spec.shape:
        return spec.dtype.from_words(words, (words.size // spec.dtype.parts,))
    per_row = spec.word_shape[-1]
    columns = words.size if words.size < per_row else per_row
    odd = spec.shape[-1] % 2 and (start + words.size) % per_row == 0  # a row ends with half a word
    return spec.dtype.from_words(words.reshape(-1, columns), (words.size // columns, 2 * columns - odd)).reshape(-1)


@dataclass(slots=True)
class _Sums:
    """What has to be known of all pairs of values for a ``Measure``."""

    same_type: bool
    size: int = 0
    differing: int = 0
    nonfinite: int = 0
    largest: float = 0.0
    errors: float = 0.0  # squared
    values: float = 0.0  # of A, squared
    finite: int = 0

    def add(self, a: np.ndarray, b: np.ndarray) -> None:
        with np.errstate(all="ignore"):  # overflow and NaN are counted
            wide_a, wide_b = _widened(a), _widened(b)
            if self.same_type:
                differs = _bits(a) != _bits(b)
                differs = differs.any(axis=1)
            else:
                differs = (wide_a != wide_b) & ~(np.isnan(wide_a) & np.isnan(wide_b))
            finite = np.isfinite(wide_a) & np.isfinite(wide_b)
            if self.same_type and a.dtype.kind in "iu" and a.itemsize == 8:  # float64 cannot tell large ones apart
                error = (np.maximum(a, b).view(np.uint64) - np.minimum(a, b).view(np.uint64)).astype(np.float64)
            else:
                error = np.abs(wide_a[finite] - wide_b[finite])
            self.size += a.size
            self.differing += int(differs.sum())
            self.nonfinite += int((differs & ~finite).sum())
            self.finite += int(finite.sum())
            self.largest = max(self.largest, float(error.max(initial=0.0)))
            self.errors += float(np.square(error).sum())
            self.values += float(np.square(np.abs(wide_a[finite])).sum())

    def measure(self) -> Measure:
        rmse = math.sqrt(self.errors / self.finite) if self.finite else 0.0
        nmse = self.errors / self.values if self.values else None if self.errors else 0.0
        return Measure(self.size, self.differing, self.nonfinite, self.largest, rmse, nmse)


def _widened(values: np.ndarray) -> np.ndarray:
    return values.astype(np.complex128 if values.dtype.kind == "c" else np.float64)


def _bits(values: np.ndarray) -> np.ndarray:
    """The bytes of each value, in its row."""
    return values.view(np.uint8).reshape(values.size, -1)

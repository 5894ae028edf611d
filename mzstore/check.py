"""Check: a target that was converted, opened, decoded and compared with its source, tensor by tensor."""

import math
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from mzstore import kernels
from mzstore.bases import BaseLocations
from mzstore.compare import Measure, Track, comparable, measure, same_bits
from mzstore.edits import Casts, Edited, Edits, Patterns, Renames
from mzstore.errors import CorruptError
from mzstore.formats import open_source
from mzstore.model import StoredTensor, check_threads
from mzstore.progress import progress
from mzstore.report import Report, TensorReport, reached
from mzstore.sources import FileSource, ModelSource, TensorSource
from mzstore.storage import Options, Retry, without_secrets
from mzstore.tensors import TensorSpec

TOLERANCE = 1e-4  # of what is recorded, which has six digits, and sums in another order


def check(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    include: Patterns = None,
    exclude: Patterns = None,
    dtype: Casts = None,
    rename: Renames = None,
    dequantize: bool = False,
    threads: int | None = None,
    show_progress: bool | None = None,
    storage_options: Options = None,
    target_options: Options = None,
    retry: Retry | None = None,
    bases: BaseLocations | None = None,
) -> Report:
    """Decode all of ``target`` and compare it with the ``source`` that it was converted from, by the same ``include`` and so on.

    Tensors are to be the same bit for bit, or within the error that the target records; assets that the target has, and should
    have, byte for byte. What is not becomes a problem of the report (``ok`` is False then). Raises only where the question cannot be
    answered: what ``open`` raises.
    """
    start = time.monotonic()
    threads, edits = check_threads(threads), Edits.of(include, exclude, dtype, rename, dequantize)
    with (
        open_source(source, storage_options, retry=retry, bases=bases) as model,
        open_source(target, target_options, retry=retry) as found,
    ):
        others = {tensor.spec.name: tensor for tensor in found.tensors}
        edited = edits.apply(model, codes=not others or any(isinstance(each, StoredTensor) for each in others.values()))
        tensors = list(edited.source.tensors)
        kernels.expect(2 * edited.source.nbytes)
        stop = threading.Event()
        with progress("check", edited.source.nbytes, show_progress) as done:
            pool = ThreadPoolExecutor(threads, thread_name_prefix="mzstore-check")
            try:
                reports = list(pool.map(lambda tensor: _checked(tensor, others, edited, done, stop), tensors))
            finally:
                stop.set()
                pool.shutdown(cancel_futures=True)
        problems = [f"tensor {name!r} is in the target only" for name in others.keys() - {t.spec.name for t in tensors}]
        problems += _compare_assets(edited.source, found)
        model.check_unchanged()
        found.check_unchanged()
    name, made = without_secrets(os.fspath(source)), without_secrets(os.fspath(target))
    seconds = time.monotonic() - start
    return Report(name, made, "", tuple(reports), seconds, edited.notes, tuple(problems), checked=True)


def _checked(
    tensor: TensorSource,
    others: dict[str, TensorSource],
    edited: Edited,
    done: Callable[[int], None],
    stop: threading.Event,
) -> TensorReport:
    spec, was = tensor.spec, edited.was(tensor.spec)
    report = TensorReport(spec, was, 0, "", checked=True)
    other = others.get(spec.name)
    if other is None:
        done(spec.nbytes)
        return replace(report, problem="it is not in the target")
    if other.spec.dtype is not spec.dtype or not comparable(spec, other.spec):
        done(spec.nbytes)
        return replace(report, problem=f"it is {_kind(other.spec)} in the target, and should be {_kind(spec)}")
    try:
        if same_bits(tensor, other, Track(done, stop), believe=False):
            return report
        recorded = reached(other.stored.lossy) if isinstance(other, StoredTensor) else None
        found = measure(tensor, other, Track(lambda nbytes: None, stop))
    except CorruptError as problem:
        return replace(report, problem=str(problem))
    report = replace(report, error=_error(found))
    if recorded is None:
        return replace(report, problem=f"{found.differing:,} of {found.size:,} values differ, and none should")
    return replace(report, problem=_beyond(found, recorded))


def _error(found: Measure) -> dict[str, float]:
    error = {"nmse": found.nmse or 0.0, "max_error": found.max_abs_error}
    return error | ({"snr_db": -10 * math.log10(found.nmse)} if found.nmse else {})


def _beyond(found: Measure, recorded: dict[str, float]) -> str:
    """What is wrong with an error, if it is not what the target records."""
    if found.nonfinite:
        return f"{found.nonfinite:,} values are not finite in one of the two"
    for name, value in (("nmse", found.nmse or 0.0), ("max_error", found.max_abs_error)):
        if name in recorded and value > recorded[name] * (1 + TOLERANCE):
            return f"its {name} is {value:.6g}, and {recorded[name]:.6g} is recorded"
    return "" if "nmse" in recorded else "it was changed, and no error is recorded"


def _compare_assets(source: ModelSource, target: ModelSource) -> list[str]:
    """Those that the target has. A file of one format alone has none, and those are no problem."""
    if not target.assets:
        return []
    theirs = {asset.path: asset for asset in target.assets}
    problems = []
    for asset in source.assets:
        other: FileSource | None = theirs.get(asset.path)
        if other is None:
            problems.append(f"asset {asset.path!r} is not in the target")
        elif other.survey() != asset.survey():
            problems.append(f"asset {asset.path!r} is another one in the target")
    return problems


def _kind(spec: TensorSpec) -> str:
    return f"{spec.dtype.name} {list(spec.shape)}"

"""Report: what a conversion made of each tensor, how large it is, and whether it was checked."""

import math
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mzstore.model import StoredTensor
from mzstore.sources import TensorSource
from mzstore.tensors import TensorSpec
from mzstore.text import count, ratio, shown, size
from mzstore.version import __version__
from mzstore.writer import WrittenTensor

LIBRARIES = ("numpy", "ml_dtypes", "numba", "zstandard", "google-crc32c")
MEASURED = ("nmse", "snr_db", "max_error")  # of an error, as in ``Tensor.quality``


@dataclass(frozen=True, slots=True)
class TensorReport:
    """One tensor of what was written.

    source         what it was, under the name that it had
    stored_nbytes  of its chunks in an archive or a tree, 0 if its values are those of another tensor; of its values in other files
    encoding       as in ``Tensor.encoding``; in other files their format
    error          nmse, snr_db, max_error: what was reached where values were changed; None: it was stored bit for bit
    checked        whether it was compared with the source; ``problem``: what was wrong then
    """

    spec: TensorSpec
    source: TensorSpec
    stored_nbytes: int
    encoding: str
    error: Mapping[str, float] | None = None
    checked: bool = False
    problem: str = ""

    @property
    def exact(self) -> bool:
        """Whether its values are those of the source, bit for bit."""
        return self.error is None and self.spec.dtype is self.source.dtype

    def cells(self) -> tuple[str, ...]:
        """For people, as a row of a table."""
        was, now = self.source, self.spec
        names = shown(was.name) if was.name == now.name else f"{shown(was.name)} => {shown(now.name)}"
        dtypes = now.dtype.name if was.dtype is now.dtype else f"{was.dtype.name} -> {now.dtype.name}"
        error = self.error or {}
        lossy = f"SNR {error['snr_db']:.1f} dB" if "snr_db" in error else ""
        sizes = f"{size(was.nbytes)} -> {size(self.stored_nbytes)}"
        return names, dtypes, str(list(now.shape)), sizes, self.encoding, lossy

    def to_json(self) -> dict[str, Any]:
        error = self.error or {}
        return {
            "name": self.spec.name,
            "source_name": self.source.name,
            "dtype": self.spec.dtype.name,
            "source_dtype": self.source.dtype.name,
            "shape": list(self.spec.shape),
            "source_nbytes": self.source.nbytes,
            "stored_nbytes": self.stored_nbytes,
            "encoding": self.encoding,
            "exact": self.exact,
            **{key: _number(error.get(key)) for key in MEASURED},
            "checked": self.checked,
            "problem": self.problem or None,
        }


@dataclass(frozen=True, slots=True)
class Report:
    """What ``convert`` did, or with ``dry_run`` would do.

    to        ``archive``, ``tree`` and so on
    notes     what was done to the source before, and what is not kept, for people
    problems  what a check found besides what tensors say
    """

    source: str
    target: str
    to: str
    tensors: tuple[TensorReport, ...]
    seconds: float
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    checked: bool = False
    dry_run: bool = False

    @property
    def ok(self) -> bool:
        """Whether no check has found anything; also where nothing was checked."""
        return not self.problems and not any(tensor.problem for tensor in self.tensors)

    @property
    def nbytes(self) -> int:
        """Of the values of the source."""
        return sum(tensor.source.nbytes for tensor in self.tensors)

    @property
    def stored_nbytes(self) -> int:
        """Of what is stored of them, without documents and directory."""
        return sum(tensor.stored_nbytes for tensor in self.tensors)

    def all_problems(self) -> list[str]:
        return [f"tensor {t.spec.name!r}: {t.problem}" for t in self.tensors if t.problem] + list(self.problems)

    def with_check(self, found: "Report") -> "Report":
        """With what ``check`` found, in this report of a conversion."""
        by_name = {tensor.spec.name: tensor for tensor in found.tensors}
        tensors = [
            replace(
                tensor, checked=(other := by_name[tensor.spec.name]).checked, problem=other.problem, error=other.error
            )
            for tensor in self.tensors
        ]
        return replace(
            self,
            tensors=tuple(tensors),
            problems=found.problems,
            checked=True,
            seconds=self.seconds + found.seconds,
        )

    def lines(self) -> Iterator[str]:
        """For people: what each tensor becomes."""
        rows = [tensor.cells() for tensor in self.tensors]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        yield (
            f"{count(len(self.tensors), 'tensor')} as {self.to}: {'about ' if self.dry_run else ''}{size(self.stored_nbytes)}, "
            f"{ratio(self.stored_nbytes, self.nbytes)} of {size(self.nbytes)}"
        )
        yield from self.remarks()

    def remarks(self) -> Iterator[str]:
        """For people: what there is to say besides sizes."""
        yield from self.notes
        if self.checked and self.ok:
            same = sum(tensor.error is None for tensor in self.tensors)
            cast = " as they were cast" if any(t.spec.dtype is not t.source.dtype for t in self.tensors) else ""
            others = (
                f", {len(self.tensors) - same:,} within the error that is recorded" if same < len(self.tensors) else ""
            )
            yield f"{count(len(self.tensors), 'tensor')} compared with the source: {same:,} the same bit for bit{cast}{others}"

    def to_json(self) -> dict[str, Any]:
        """What ``mzstore convert --report`` writes. Members may be added, and none changes its meaning."""
        return {
            "source": self.source,
            "target": self.target,
            "to": self.to,
            "dry_run": self.dry_run,
            "ok": self.ok,
            "checked": self.checked,
            "notes": list(self.notes),
            "problems": list(self.problems),
            "seconds": self.seconds,
            "totals": {
                "tensors": len(self.tensors),
                "exact": sum(tensor.exact for tensor in self.tensors),
                "checked": sum(tensor.checked for tensor in self.tensors),
                "wrong": sum(bool(tensor.problem) for tensor in self.tensors),
                "source_nbytes": self.nbytes,
                "stored_nbytes": self.stored_nbytes,
            },
            "versions": versions(),
            "tensors": [tensor.to_json() for tensor in self.tensors],
        }


def reached(lossy: Mapping[str, Any] | None) -> dict[str, float] | None:
    """The error that a tensor's attributes state; None if its values were not changed."""
    if lossy is None or not isinstance(lossy.get("reached"), Mapping):
        return None
    return {key: float(value) for key in MEASURED if isinstance(value := lossy["reached"].get(key), (int, float))}


def of_written(
    written: Sequence[WrittenTensor], sources: Mapping[str, TensorSource], was: Callable[[TensorSpec], TensorSpec]
) -> tuple[TensorReport, ...]:
    """Of what ``write`` returns; ``sources``: what it was given, by name; ``was``: what that was in the source."""
    found = []
    for each in written:
        source = sources[each.spec.name]
        copied = isinstance(source, StoredTensor) and source.stored.lossy == each.lossy
        error = None if copied else reached(each.lossy)
        found.append(TensorReport(each.spec, was(each.spec), each.stored_nbytes, each.encoding, error))
    return tuple(found)


def versions() -> dict[str, str | None]:
    from importlib import metadata  # which imports much that no start needs

    found: dict[str, str | None] = {"mzstore": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def _number(value: float | None) -> float | None:
    """An overflow is no number of JSON."""
    return value if value is not None and math.isfinite(value) else None

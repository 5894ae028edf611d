"""Edits: which tensors of a source are taken, in what dtype and under what names, and whether those that another tool has quantized
become values. A source in, a source out; nothing is read but, of quantized checkpoints, what says how they are."""

import fnmatch
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np

from mzstore import dtypes
from mzstore.dtypes import DTYPES, DType
from mzstore.model import StoredTensor
from mzstore.prepared import Prepared
from mzstore.recipe import Rule, Rules
from mzstore.schemes.sources import dequantize
from mzstore.sources import ModelSource, Renamed, TensorSource, is_changed
from mzstore.tensors import TensorSpec

CAST = ("float16", "bfloat16", "float32", "float64")  # narrower floats have scales beside them
CAST_KEY = "mzstore.cast"  # of the metadata: name -> dtype before, of tensors that were cast
INDEX_SUFFIX = ".index.json"  # of a file that says which tensors lie in which files

Patterns = str | Sequence[str] | None
Casts = Any  # a dtype, or a mapping of glob patterns to dtypes
Renames = Mapping[str, str] | Sequence[str] | str | None


@dataclass(frozen=True, slots=True)
class _Rename:
    """``pattern`` as it was given; ``where`` and ``by`` as re.sub takes them."""

    pattern: str
    where: re.Pattern[str]
    by: str

    def __call__(self, name: str) -> str:
        return self.where.sub(self.by, name)


@dataclass(frozen=True, slots=True)
class Edits:
    """What is done to a source before it is written. One that exists is well-formed; ``of`` raises ValueError otherwise.

    All patterns are for the names that the source has. ``casts``: the first pattern that matches a tensor decides. ``renames``: one
    after the other, each on what the one before it gives.
    """

    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    casts: tuple[tuple[str, DType], ...] = ()
    renames: tuple[_Rename, ...] = ()
    dequantize: bool = False  # before all others, which are then for the plain weights

    @classmethod
    def of(
        cls,
        include: Patterns = None,
        exclude: Patterns = None,
        dtype: Casts = None,
        rename: Renames = None,
        dequantize: bool = False,
    ) -> Self:
        """As ``convert`` takes them."""
        casts = {} if dtype is None else dtype if isinstance(dtype, Mapping) else {"*": dtype}
        return cls(
            None if include is None else _patterns(include),
            () if exclude is None else _patterns(exclude),
            tuple((str(pattern), _cast_to(each)) for pattern, each in casts.items()),
            tuple(_renames(rename)),
            dequantize,
        )

    def __bool__(self) -> bool:
        return self.include is not None or bool(self.exclude or self.casts or self.renames or self.dequantize)

    def to_json(self) -> dict[str, Any]:
        """What was asked for; equal for edits that do the same."""
        return {
            "include": None if self.include is None else list(self.include),
            "exclude": list(self.exclude),
            "dtype": [[pattern, dtype.name] for pattern, dtype in self.casts],
            "rename": [[rename.pattern, rename.by] for rename in self.renames],
            "dequantize": self.dequantize,
        }

    def apply(self, source: ModelSource, *, codes: bool) -> "Edited":
        """``source`` as it is to be written. ``codes``: tensors that are quantized stay so, and are not cast.

        Raises ValueError for a pattern that matches nothing, and for two tensors that would have one name; what ``schemes.dequantized``
        raises, if that is asked for.
        """
        dequantized: list[str] = []
        if self.dequantize:
            source, dequantized = dequantize(source)
        if not self:
            return Edited(source)
        tensors = list(source.tensors)
        taken = self._taken([tensor.spec.name for tensor in tensors])
        kept = [tensor for tensor in tensors if tensor.spec.name in taken]
        cast = self._cast(kept, codes)
        names = self._named([tensor.spec.name for tensor in kept])
        edited = [
            _renamed(_Cast(tensor, cast[name]) if name in cast else tensor, names[name])
            for tensor in kept
            for name in (tensor.spec.name,)
        ]
        coded = sum(1 for tensor in kept if codes and is_coded(tensor)) if self.casts else 0
        left_out = len(tensors) - len(kept)
        renamed = sum(old != new for old, new in names.items())
        if not (left_out or renamed or cast):
            return Edited(source, notes=tuple(dequantized))
        before = {tensor.spec.name: tensor.spec.dtype.name for tensor in kept}
        metadata = dict(source.metadata)
        record = {names[k]: v for k, v in _recorded(metadata).items() if k in names}
        record |= {names[name]: record.get(names[name], before[name]) for name in cast}
        metadata.pop(CAST_KEY, None)
        notes = dequantized + [
            f"{n:,} of {len(tensors):,} tensors {what}"
            for n, what in ((left_out, "left out"), (len(cast), "cast"), (renamed, "renamed"))
            if n
        ]
        if coded:
            notes.append(f"{coded:,} quantized as they are, and not cast")
        if source.layouts:
            notes.append("its layout is not kept: the files that it came from cannot be made again byte for byte")
        return Edited(
            replace(
                source,
                tensors=edited,
                nbytes=sum(tensor.spec.nbytes for tensor in edited),
                metadata=metadata | ({CAST_KEY: record} if record else {}),
                assets=[asset for asset in source.assets if not asset.path.endswith(INDEX_SUFFIX)],
                layouts=(),
                unpacks=False,
            ),
            {names[tensor.spec.name]: tensor.spec for tensor in kept},
            tuple(notes),
        )

    def _taken(self, names: Sequence[str]) -> set[str]:
        taken = set(names) if self.include is None else _matching(self.include, names, "include")
        taken -= _matching(self.exclude, names, "exclude")
        if not taken:
            raise ValueError("no tensor is left: see what include and exclude say")
        return taken

    def _cast(self, tensors: Sequence[TensorSource], codes: bool) -> dict[str, DType]:
        """The dtype that tensors become, of those that are another one now."""
        cast: dict[str, DType] = {}
        specs = {tensor.spec.name: tensor.spec for tensor in tensors if tensor.spec.dtype.name in CAST}
        coded = {tensor.spec.name for tensor in tensors if codes and is_coded(tensor)}
        for pattern, dtype in self.casts:
            matches = _matches(pattern, specs)
            if not matches and pattern != "*":
                raise ValueError(f"dtype: no tensor of {', '.join(CAST[:-1])} or {CAST[-1]} matches {pattern!r}")
            for name in matches:
                cast.setdefault(name, dtype)
        return {name: dtype for name, dtype in cast.items() if dtype is not specs[name].dtype and name not in coded}

    def _named(self, names: Sequence[str]) -> dict[str, str]:
        """What each tensor is called then."""
        now = {name: name for name in names}
        for rename in self.renames:
            found = {old: rename(name) for old, name in now.items()}
            if not any(rename.where.search(name) for name in now.values()):
                raise ValueError(f"rename: no tensor matches {rename.pattern!r}")
            now = found
        owners: dict[str, str] = {}
        for old, new in now.items():
            if (other := owners.setdefault(new, old)) != old:
                raise ValueError(f"rename: tensors {other!r} and {old!r} would both be called {new!r}")
        return now


@dataclass(frozen=True, slots=True)
class Edited:
    """A source with edits. ``before``: what its tensors were, by the names that they have now; ``notes``: what was done, for people.

    ``before`` is empty where nothing was done.
    """

    source: ModelSource
    before: Mapping[str, TensorSpec] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def was(self, spec: TensorSpec) -> TensorSpec:
        return self.before.get(spec.name, spec)

    def rules(self, rules: Rules | None) -> Rules | None:
        """``rules`` for the names of the source, as rules for what is written."""
        return _ByFormerName(rules, self.was) if rules is not None and self.before else rules

    def by_name(self, values: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """``values`` by name of the source, as values by name of what is written. Those that were left out go."""
        if values is None or not self.before:
            return None if values is None else dict(values)
        return {new: values[old.name] for new, old in self.before.items() if old.name in values}


@dataclass(frozen=True, slots=True)
class _ByFormerName:
    of: Rules
    was: Callable[[TensorSpec], TensorSpec]

    @property
    def rules(self) -> Sequence[Rule]:
        return self.of.rules

    def rule_for(self, spec: TensorSpec) -> Rule | None:
        return self.of.rule_for(replace(spec, name=self.was(spec).name))


@dataclass(frozen=True, slots=True)
class _Cast:
    """``source`` in another dtype."""

    source: TensorSource
    dtype: DType

    @property
    def spec(self) -> TensorSpec:
        return replace(self.source.spec, dtype=self.dtype)

    def read(self, start: int, stop: int) -> np.ndarray:
        """As ``dtypes.cast`` rounds. Raises ValueError for finite values that become infinite or NaN."""
        before = self.source.spec.dtype
        words = self.source.read(start, stop)
        found = dtypes.cast(words, before, self.dtype)
        lost = ~np.isfinite(found.view(self.dtype.numpy))
        if lost.any() and (n := int((lost & np.isfinite(words.view(before.numpy))).sum())):
            raise ValueError(
                f"tensor {self.spec.name!r} has {n:,} values or more that are beyond {self.dtype.name}: leave it in "
                f"{before.name}, or choose another dtype"
            )
        return found


def is_coded(tensor: TensorSource) -> bool:
    """Whether codes, factors or the like stand for the values of ``tensor``."""
    return isinstance(tensor, Prepared) or is_changed(tensor)


def _renamed(tensor: TensorSource, name: str) -> TensorSource:
    if tensor.spec.name == name:
        return tensor
    if isinstance(tensor, StoredTensor):  # whose payloads a writer copies
        return replace(tensor, entry=replace(tensor.entry, spec=replace(tensor.entry.spec, name=name)))
    if isinstance(tensor, Prepared):
        return replace(tensor, spec=replace(tensor.spec, name=name))
    return Renamed(name, tensor)


def _recorded(metadata: Mapping[str, Any]) -> dict[str, str]:
    """What an earlier conversion says of casts; other formats have it as text."""
    found = metadata.get(CAST_KEY)
    if isinstance(found, str):
        try:
            found = json.loads(found)
        except ValueError:
            found = None
    if not isinstance(found, Mapping):
        return {}
    return {k: v for k, v in found.items() if isinstance(k, str) and isinstance(v, str)}


def _matching(patterns: Iterable[str], names: Sequence[str], what: str) -> set[str]:
    found: set[str] = set()
    for pattern in patterns:
        matches = _matches(pattern, names)
        if not matches:
            raise ValueError(f"{what}: no tensor matches {pattern!r}")
        found.update(matches)
    return found


def _matches(pattern: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name == pattern or fnmatch.fnmatchcase(name, pattern)]


def _patterns(given: str | Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(map(str, given))


def _cast_to(dtype: object) -> DType:
    found = dtypes.of(dtype)
    if not found.is_float or not found.exponent_bits:
        held = ", ".join(each.name for each in DTYPES.values() if each.is_float and each.exponent_bits)
        raise ValueError(f"dtype {found.name}: tensors are cast to floats only: {held}")
    return found


def _renames(given: Renames) -> Iterable[_Rename]:
    if given is None:
        return
    if isinstance(given, Mapping):
        pairs = list(given.items())
    else:
        pairs = []
        for text in [given] if isinstance(given, str) else given:
            pattern, arrow, by = text.partition("=>")
            if not arrow or not pattern:
                raise ValueError(f"rename {text!r}: PATTERN=>REPLACEMENT will do")
            pairs.append((pattern, by))
    for pattern, by in pairs:
        yield _regex(pattern, by) if len(pattern) > 1 and pattern[0] == pattern[-1] == "/" else _glob(pattern, by)


def _regex(pattern: str, by: str) -> _Rename:
    try:
        where = re.compile(pattern[1:-1])
        where.sub(by, "")  # which looks at the groups that ``by`` refers to, whether it matches or not
    except (re.error, IndexError) as error:
        raise ValueError(f"rename {pattern}=>{by}: {error}") from None
    return _Rename(pattern, where, by)


def _glob(pattern: str, by: str) -> _Rename:
    """Of a whole name. A star of ``by`` is what the star of the same number in ``pattern`` stands for."""
    if by.count("*") > pattern.count("*"):
        raise ValueError(f"rename {pattern}=>{by}: it has more stars than its pattern")
    between = (fnmatch.translate(text)[: -len(r"\Z")] for text in pattern.split("*"))
    first, *rest = by.replace("\\", r"\\").split("*")
    numbered = first + "".join(rf"\g<{i}>{text}" for i, text in enumerate(rest, start=1))
    return _Rename(pattern, re.compile(rf"\A{'(.*)'.join(between)}\Z", re.DOTALL), numbered)

"""Recipe: which tensors are stored lossless, which are quantized, pruned or factorized, and how. Pure.

A recipe is a list of rules, tried in order; the first one that matches a tensor decides, and a tensor that none matches
stays lossless. Before them stand the default rules (DEFAULTS), which keep lossless what quantizing would harm more than
it saves. As TOML:

    [[rule]]
    name = ["lm_head.*", "*.embed_tokens.*"]
    bits = 6

    [[rule]]
    ndim = 2
    min_size = 1_000_000
    quantizer = "affine"
    bits = 4
    group = 64
    on_error = "lossless"

    [[rule]]
    parts = ["lowrank rank=32", "quantized bits=3", "sparse top=0.5%"]
    rounds = 3
"""

import difflib
import fnmatch
import math
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from os import PathLike, fspath
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, Self

from mzstore.dtypes import DTYPES
from mzstore.quantizers import MAX_DIMENSION, MAX_LEVELS, SCALE_DTYPES
from mzstore.tensors import MAX_NDIM, TensorSpec

CONDITIONS = ("name", "dtype", "ndim", "shape", "min_size", "max_size")
TARGETS = ("bits", "nmse", "snr_db", "max_error")
KEPT = ("sparsity", "top", "threshold", "pattern")  # one of which says how many values a sparse part has
MAX_PARTS = 4
MAX_ROUNDS = 100
QUANTIZABLE = ("float16", "bfloat16", "float32", "float64")
SCALES = ("tensor", "row", "column", "row*column", "group", "tile")
FIXED_CODEBOOKS = ("nf4", "fp4")
MAX_BITS = 16
GROUPS = MappingProxyType({"mxfp8": 32, "mxfp4": 32, "nvfp4": 16})  # that are not a choice


@dataclass(frozen=True, slots=True)
class _Quantizer:
    """What a quantizer takes besides ``quantizer`` itself, and its scales where none are asked for.

    width  bits of a code, where that never changes
    """

    takes: tuple[str, ...]
    scales: str | None = None
    group: int | None = None
    width: int | None = None


# What each encoding takes besides what its quantizer does, which is for the values of ``sparse`` and the factors of ``lowrank``.
ENCODINGS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "sparse": (*KEPT, "block", "scope"),
        "lowrank": ("rank", "energy", "nmse", "factor_dtype"),
        "tucker": ("ranks", "nmse", "factor_dtype"),
        "cp": ("rank", "factor_dtype"),
        "parts": ("parts", "rounds"),
    }
)
FACTORIZED = ("lowrank", "tucker", "cp")
_SCALED = ("scales", "group", "tile", "scale_dtype")
QUANTIZERS: Mapping[str, _Quantizer] = MappingProxyType(
    {
        "uniform": _Quantizer((*TARGETS, "step", "levels", "lagrangian")),
        "symmetric": _Quantizer(("bits", *_SCALED, "search", "low", "high"), "group", 128),
        "affine": _Quantizer(("bits", *_SCALED, "search", "low", "high"), "group", 128),
        "codebook": _Quantizer(("bits", "levels", "codebook", "dimension")),  # k-means: one table for the tensor
        "nf4": _Quantizer(("bits", "levels", "codebook", "dimension", *_SCALED), "group", 64, 4),
        "fp4": _Quantizer(("bits", "levels", "codebook", "dimension", *_SCALED), "group", 64, 4),
        "float8": _Quantizer(("bits", "format", *_SCALED, "search"), "row", None, 8),
        # Their groups and the type of their scales are what the names say.
        "mxfp8": _Quantizer(("bits", "format", "search"), width=8),
        "mxfp4": _Quantizer(("bits", "search"), width=4),
        "nvfp4": _Quantizer(("bits", "search"), width=4),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Conditions, all of which must hold, and what is then done. A Rule that exists is valid; ValueError otherwise.

    Conditions; one that is not given always holds:

    name                a name or glob pattern, or several
    dtype               one or several, as in ``Tensor.dtype``
    ndim                one or several
    shape               one length for each axis; "*" is any
    min_size, max_size  number of elements, both inclusive

    What is done:

    encoding   "lossless", "quantized", "sparse", "lowrank", "tucker", "cp" or "parts"; it may be left out where what is given below says it
    on_error   "refuse" (ValueError) or "lossless": for NaN, infinity, a target that is out of reach, groups that do not fit
    quantizer  one of QUANTIZERS; "uniform" if not given
    bits       "uniform": per weight, with all overhead; others: of a code, without that of scales
    nmse       squared error / squared values;  snr_db  the same as -10 log10(nmse)
    max_error  of every value;  step  of "uniform", instead of a target
    levels     of "uniform": the size of the alphabet; of "codebook": of its entries, instead of ``bits``
    lagrangian  of "uniform": error paid per bit saved, in steps squared; 0 rounds to the nearest
    scales     one of SCALES;  group  how many values along the last axis share one;  tile  (rows, columns) that share one
    scale_dtype  what they are stored in
    search     of integers and floats: try scales nearby for the least error, which is weighted if there is importance
    low, high  of "symmetric" and "affine": the range, instead of that of the values
    codebook   "kmeans", "nf4" or "fp4";  dimension  how many neighbours along the last axis one code of "kmeans" stands for
    format     of "float8" and "mxfp8": "e4m3fn" or "e5m2"

    sparsity   of "sparse": which part of the values becomes 0, those of least magnitude;  top  which part is kept
    threshold  values of this magnitude and more are kept;  pattern  "2:4": two of every four along the last axis
    block      "4x4": blocks are kept or not, by the mean of their squares; "1x*" are rows, "*x1" columns, "64x*" heads of 64 rows
    scope      "tensor", or "global": ``sparsity`` or ``top`` of all tensors that this rule takes, by one threshold
    rank       of "lowrank": columns of the left factor; of "cp": how many outer products are added
    ranks      of "tucker": extents of the core, one for each axis
    energy     the least rank with this part of the sum of squares;  nmse  of "lowrank" and "tucker": the least with this error
    factor_dtype  of factors that are not quantized: "float32", "float16" or "bfloat16"
    parts      several encodings, as strings like "sparse top=0.5%" or tables, each for what those before it leave
    rounds     how often the parts are fitted again, each to what all others leave

    With importance, to "sparse" a magnitude is that times the root of its weight; "lowrank" takes weights of columns.
    Keys of a quantizer beside "sparse" or "lowrank" are for the values that are kept and for the factors; there ``bits`` is
    for each of these.

    What was left out has its default here: ``quantizer="nf4"`` gives ``quantizer="codebook", codebook="nf4", group=64``.
    """

    name: str | Sequence[str] | None = None
    dtype: str | Sequence[str] | None = None
    ndim: int | Sequence[int] | None = None
    shape: Sequence[int | str] | None = None
    min_size: int | None = None
    max_size: int | None = None
    encoding: str | None = None
    on_error: str = "refuse"
    quantizer: str | None = None
    bits: float | None = None
    nmse: float | None = None
    snr_db: float | None = None
    max_error: float | None = None
    step: float | None = None
    levels: int | None = None
    lagrangian: float | None = None
    scales: str | None = None
    group: int | None = None
    tile: Sequence[int] | None = None
    scale_dtype: str | None = None
    search: bool | None = None
    low: float | None = None
    high: float | None = None
    codebook: str | None = None
    dimension: int | None = None
    format: str | None = None
    sparsity: float | None = None
    top: float | None = None
    threshold: float | None = None
    pattern: str | None = None
    block: str | None = None
    scope: str | None = None
    rank: int | None = None
    ranks: Sequence[int] | None = None
    energy: float | None = None
    factor_dtype: str | None = None
    parts: "Sequence[Rule | str | Mapping[str, Any]] | None" = None
    rounds: int | None = None

    def __post_init__(self) -> None:
        for key in KEYS:
            if (value := getattr(self, key)) is not None or key == "on_error":
                self._set(**{key: _CHECKS[key](key, value)})
        if self.min_size is not None and self.max_size is not None and self.min_size > self.max_size:
            raise ValueError(f"min_size = {self.min_size} is above max_size = {self.max_size}: no tensor matches")
        if self.encoding is None and self._given():
            self._set(encoding=self._encoding())
        if self.encoding == "quantized":
            self._complete()
        elif self.encoding in ENCODINGS:
            self._complete_encoding()
        elif self._given():
            raise ValueError(f'encoding = "lossless" takes no {self._given()[0]}: leave one of the two out')
        elif self.encoding is None:
            raise ValueError('it does not say what to do: encoding = "lossless", or a target like bits = 4')

    def _encoding(self) -> str:
        """What is meant where ``encoding`` is left out."""
        given = self._given()
        found = [
            name
            for name in ("parts", "sparse", "lowrank", "tucker")
            if set(ENCODINGS[name]) - {"nmse", "factor_dtype"} & set(given)
        ]
        return found[0] if found else "quantized"

    def _complete_encoding(self) -> None:
        """Check what is said of "sparse", "lowrank" and "parts", and of the quantizer that goes with it."""
        encoding = str(self.encoding)
        own = ENCODINGS[encoding]
        rest = [key for key in self._given() if key not in own]
        for key in rest:
            if encoding == "parts" or any(key in keys for keys in ENCODINGS.values()):
                raise ValueError(f'encoding = "{encoding}" takes no {key}: leave one of the two out, or take parts')
        if encoding == "sparse":
            asked = [key for key in KEPT if getattr(self, key) is not None]
            if len(asked) != 1:
                found = " and ".join(asked) or "none of them"
                raise ValueError(f'encoding = "sparse" takes one of {", ".join(KEPT)}, not {found}')
            if self.block is not None and self.pattern is not None:
                raise ValueError("a pattern is of single values: leave block out")
            if self.scope == "global" and self.sparsity is None and self.top is None:
                raise ValueError(f'scope = "global" takes sparsity or top, not {asked[0]}')
        elif encoding in FACTORIZED:
            asked = [key for key in own[:-1] if getattr(self, key) is not None]
            if len(asked) != 1:
                found = " and ".join(asked) or "none of them"
                raise ValueError(f'encoding = "{encoding}" takes one of {", ".join(own[:-1])}, not {found}')
            if rest and self.factor_dtype is not None:
                raise ValueError("factors that are quantized have no factor_dtype: leave one of them out")
        else:
            self._complete_parts()
        _ = self.quantization  # what is wrong with it is said now

    def _complete_parts(self) -> None:
        if self.parts is None:
            raise ValueError('encoding = "parts" takes parts, like ["quantized bits=3", "sparse top=0.5%"]')
        parts = tuple(_part_rule(part) for part in self.parts)
        self._set(parts=parts)
        if not 1 <= len(parts) <= MAX_PARTS:
            raise ValueError(f"{len(parts)} parts, where 1 to {MAX_PARTS} will do")
        if sum(part.encoding == "quantized" for part in parts) > 1:
            raise ValueError("two parts that are quantized: one with a finer step does the same")
        for part in parts:
            if part.scope == "global":
                raise ValueError('scope = "global" is for a rule of its own, not for one of several parts')

    @property
    def quantization(self) -> "Rule | None":
        """How the values of "sparse" and the factors of "lowrank" are quantized; None: they are not."""
        if self.encoding not in ("sparse", *FACTORIZED):
            return None
        own = {key: getattr(self, key) for key in self._given() if key not in ENCODINGS[self.encoding]}
        return Rule(encoding="quantized", **own) if own else None

    def _complete(self) -> None:
        """Check the quantizer's parameters against each other, and set those that were left out."""
        quantizer = self.quantizer or "uniform"
        if quantizer in FIXED_CODEBOOKS and self.codebook not in (None, quantizer):
            raise ValueError(f'quantizer = "{quantizer}" with codebook = "{self.codebook}": leave one of them out')
        if quantizer == "codebook" and self.codebook in FIXED_CODEBOOKS:
            quantizer = str(self.codebook)
        kind = QUANTIZERS[quantizer]
        for key in self._given():
            if key != "quantizer" and key not in kind.takes:
                raise ValueError(_not_taken(quantizer, key))
        if kind.width is not None and self.bits not in (None, kind.width):
            raise ValueError(
                f'quantizer = "{quantizer}" has {kind.width} bits, not bits = {self.bits:g}: leave bits out'
            )
        self._set(quantizer=quantizer)
        if quantizer == "uniform":
            self._complete_uniform()
        elif quantizer in ("symmetric", "affine"):
            self._complete_integers()
        elif quantizer in FIXED_CODEBOOKS:
            self._complete_fixed_codebook()
        elif quantizer == "codebook":
            self._complete_k_means()
        elif "format" in kind.takes and self.format is None:
            self._set(format="e4m3fn")
        if kind.scales is not None:
            self._complete_scales(kind.scales, kind.group)

    def _complete_uniform(self) -> None:
        asked = [key for key in (*TARGETS, "step") if getattr(self, key) is not None]
        if len(asked) != 1:
            found = " and ".join(asked) or "none of them"
            raise ValueError(f'quantizer = "uniform" takes one of {", ".join(TARGETS)} and step, not {found}')
        if self.max_error is not None and self.lagrangian:
            raise ValueError("max_error rounds to the nearest: leave lagrangian out")

    def _complete_integers(self) -> None:
        least = 2 if self.quantizer == "symmetric" else 1
        if self.bits is None or self.bits != int(self.bits) or self.bits < least:
            found = "it is not given" if self.bits is None else f"not bits = {self.bits:g}"
            raise ValueError(
                f'quantizer = "{self.quantizer}" takes bits, an integer from {least} to {MAX_BITS}: {found}; '
                'quantizer = "uniform" takes any rate'
            )
        self._set(bits=int(self.bits))
        if (self.low is None) != (self.high is None):
            raise ValueError("low and high are given together, or neither of them for the range of the values")
        if self.low is None or self.high is None:
            return
        if self.low >= self.high:
            raise ValueError(f"low = {self.low:g} is not below high = {self.high:g}")
        if self.quantizer == "symmetric" and self.low != -self.high:
            raise ValueError(
                f'quantizer = "symmetric" from {self.low:g} to {self.high:g}: give low = -high, or quantizer = "affine"'
            )
        if self.scales not in (None, "tensor") or self.group is not None or self.tile is not None:
            raise ValueError('low and high are one range for the tensor: scales = "tensor", or leave them out')
        if self.search:
            raise ValueError("low and high are not searched: leave search out, or them")
        self._set(scales="tensor")

    def _complete_fixed_codebook(self) -> None:
        for key, fixed in (("levels", 16), ("dimension", 1)):
            if getattr(self, key) not in (None, fixed):
                raise ValueError(f'codebook = "{self.quantizer}" has {key} = {fixed}: leave {key} out')
        self._set(quantizer="codebook", codebook=self.quantizer, levels=16, dimension=1)

    def _complete_k_means(self) -> None:
        if (self.bits is None) == (self.levels is None):
            raise ValueError('codebook = "kmeans" takes one of bits and levels')
        dimension = self.dimension or 1
        if self.bits is not None:
            code = self.bits * dimension
            if code != int(code) or code > MAX_BITS:
                raise ValueError(
                    f"bits = {self.bits:g} for dimension = {dimension} makes codes of {code:g} bits: "
                    f"an integer from 1 to {MAX_BITS} will do"
                )
            self._set(levels=1 << int(code))
        self._set(codebook="kmeans", dimension=dimension)

    def _complete_scales(self, default: str, group: int | None) -> None:
        if self.group is not None and self.tile is not None:
            raise ValueError(f"group = {self.group} and tile = {list(self.tile)}: leave one of them out")
        for key in ("group", "tile"):
            if getattr(self, key) is not None and self.scales not in (None, key):
                raise ValueError(f'scales = "{self.scales}" takes no {key}: leave one out, or scales = "{key}"')
        own = "group" if self.group is not None else "tile" if self.tile is not None else default
        scales = self.scales or own
        self._set(scales=scales)
        if scales == "group" and self.group is None:
            self._set(group=group or 128)
        if scales == "tile" and self.tile is None:
            self._set(tile=(128, 128))
        if self.scale_dtype is None:
            self._set(scale_dtype="float16" if scales in ("group", "tile") else "float32")

    def _given(self) -> list[str]:
        return [key for key in ACTIONS if getattr(self, key) is not None]

    def _set(self, **values: object) -> None:
        for key, value in values.items():
            object.__setattr__(self, key, value)

    @property
    def asked(self) -> dict[str, Any]:
        """What is done, defaults included, for JSON; conditions and ``on_error`` are left out."""
        found = {key: getattr(self, key) for key in ("encoding", *self._given())}
        if self.quantization is not None:
            found |= {key: value for key, value in self.quantization.asked.items() if key != "encoding"}
        if self.parts is not None:
            found["parts"] = [part.asked for part in self.parts]  # type: ignore[union-attr]
        return {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()}

    @property
    def takes_all(self) -> bool:
        """Whether no tensor can fail its conditions."""
        return all(getattr(self, key) is None or (key == "name" and "*" in self.name) for key in CONDITIONS)  # type: ignore[operator]

    def _no_factors(self, spec: TensorSpec) -> str | None:
        if len(spec.shape) < 2:
            return "a tensor of one axis has no factors"
        if self.ranks is not None and len(self.ranks) != len(spec.shape):
            return f"ranks = {list(self.ranks)} for a tensor of {len(spec.shape)} axes"
        *lead, cols = spec.shape
        most = min(math.prod(lead), cols)
        if self.encoding == "lowrank" and self.rank is not None and self.rank > most:
            return f"rank = {self.rank}, and that of a matrix of {math.prod(lead)} x {cols} is {most} at most"
        group = 1 if self.quantization is None else self.quantization.group or 1
        if self.rank is not None and self.rank % group:
            return f'rank = {self.rank} is no multiple of groups of {group}: take another group, or scales = "row"'
        return None

    def _no_parts(self, spec: TensorSpec) -> str | None:
        parts: Sequence[Rule] = self.parts  # type: ignore[assignment]
        added = any(part.encoding != "sparse" or part.quantization is not None for part in parts[1:])
        if spec.dtype.name == "float64" and parts[0].encoding == "sparse" and added:
            return "of float64 no sparse part can come first where others are added: put it behind them"
        return next(filter(None, (part.misfit(spec) for part in parts)), None)

    @property
    def _done(self) -> str:
        return "pruned" if self.encoding == "sparse" else "factorized" if self.encoding in FACTORIZED else "quantized"

    def matches(self, spec: TensorSpec) -> bool:
        """Whether all conditions hold."""
        tests: Mapping[str, Callable[[Any], bool]] = {
            "name": lambda globs: any(spec.name == glob or fnmatch.fnmatchcase(spec.name, glob) for glob in globs),
            "dtype": lambda names: spec.dtype.name in names,
            "ndim": lambda counts: len(spec.shape) in counts,
            "shape": lambda shape: (
                len(shape) == len(spec.shape)
                and all(wanted in ("*", n) for wanted, n in zip(shape, spec.shape, strict=True))
            ),
            "min_size": lambda least: spec.size >= least,
            "max_size": lambda most: spec.size <= most,
        }
        return all((value := getattr(self, key)) is None or tests[key](value) for key in CONDITIONS)

    def misfit(self, spec: TensorSpec) -> str | None:
        """Why a tensor like this cannot be quantized by this rule, whatever its values; None if it can."""
        columns = spec.shape[-1] if spec.shape else 1
        if spec.dtype.name not in QUANTIZABLE:
            return f"values of {spec.dtype.name} cannot be {self._done}, only {', '.join(QUANTIZABLE)}"
        if self.encoding == "parts":
            return self._no_parts(spec)
        if self.encoding == "sparse":
            if self.pattern and columns % int(self.pattern.partition(":")[2]):
                return f"{columns} values along the last axis are no multiple of the groups of pattern {self.pattern!r}"
            return None
        if self.encoding in FACTORIZED:
            return self._no_factors(spec)
        group = self.group or GROUPS.get(str(self.quantizer), 1)
        if columns % group:
            return f"{columns} values along the last axis are no multiple of groups of {group}"
        if self.tile is not None and self.tile[0] > 1 and len(spec.shape) > 2:
            return f"tile = {list(self.tile)} is for matrices, and this tensor has {len(spec.shape)} axes"
        if columns % (self.dimension or 1):
            return f"{columns} values along the last axis are no multiple of dimension = {self.dimension}"
        return None


class Rules(Protocol):
    """What a writer asks of a recipe."""

    @property
    def rules(self) -> Sequence[Rule]: ...

    def rule_for(self, spec: TensorSpec) -> Rule | None: ...


@dataclass(frozen=True, init=False, slots=True)
class Recipe:
    """Rules, and whether the default rules stand before them.

    ``Recipe(bits=4)``, or any other keys of ``Rule``, is one rule; ``Recipe(rules=[...])`` takes several; ``load`` and
    ``parse`` read them from TOML. A Recipe that exists is valid; ValueError otherwise.
    """

    rules: tuple[Rule, ...]
    defaults: bool
    where: str = field(compare=False)  # the file, or ""

    def __init__(self, rules: Sequence[Rule] | None = None, *, defaults: bool = True, **keys: Any) -> None:
        _flag("defaults", defaults)
        if rules is not None and not isinstance(rules, list | tuple):
            raise ValueError(f"rules = {rules!r}: a list of Rules will do; what is asked for has a name, like bits=4")
        if rules is not None and keys:
            raise ValueError(f"a recipe takes rules or the keys of one rule, not both rules and {', '.join(keys)}")
        if rules is None and not keys:
            raise ValueError("a recipe without rules: say what is asked for, like bits=4, or rules=[...]")
        self._fill([_rule(keys)] if rules is None else list(rules), defaults, "")

    def _fill(self, rules: list[Rule], defaults: bool, where: str) -> None:
        object.__setattr__(self, "rules", tuple(rules))
        object.__setattr__(self, "defaults", defaults)
        object.__setattr__(self, "where", where)
        for number, rule in enumerate(rules, start=1):
            if not isinstance(rule, Rule):
                raise ValueError(f"{self._place(number)}: a Rule is wanted, not {rule!r}")
            if rule.takes_all and number < len(rules):
                raise ValueError(
                    f"{self._place(number + 1)} is never reached: rule {number} takes every tensor; "
                    "give that one a condition, or put it last"
                )

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """The recipe in a TOML file."""
        try:
            text = Path(path).read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{fspath(path)}: a recipe is TOML in UTF-8: {error}") from None
        return cls.parse(text, where=fspath(path))

    @classmethod
    def parse(cls, text: str, *, where: str = "") -> Self:
        """The recipe that the TOML ``text`` holds; ``where`` is the name of its file, for messages."""
        prefix = f"{where}: " if where else ""
        try:
            document = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{prefix}a recipe is TOML: {error}") from None
        try:
            tables, defaults = _tables(document)
        except ValueError as error:
            raise ValueError(f"{prefix}{error}") from None
        rules = []
        for number, table in enumerate(tables, start=1):
            try:
                rules.append(_rule(table))
            except ValueError as error:
                raise ValueError(f"{prefix}rule {number}: {error}") from None
        recipe = cls.__new__(cls)
        recipe._fill(rules, defaults, where)
        return recipe

    def rule_for(self, spec: TensorSpec) -> Rule | None:
        """The rule that changes the values of a tensor; None: it stays lossless.

        Raises ValueError, naming the tensor, if that rule cannot take it and does not say ``on_error = "lossless"``.
        """
        if not spec.size or (self.defaults and any(rule.matches(spec) for rule in DEFAULTS)):
            return None
        for number, rule in enumerate(self.rules, start=1):
            if rule.matches(spec):
                return self._fitting(rule, number, spec)
        return None

    def _fitting(self, rule: Rule, number: int, spec: TensorSpec) -> Rule | None:
        if rule.encoding == "lossless":
            return None
        problem = rule.misfit(spec)
        if problem is None:
            return rule
        if rule.on_error == "lossless":
            return None
        raise ValueError(
            f"tensor {spec.name!r}: {problem} ({self._place(number)}); "
            'keep it lossless by a rule before that one, or by on_error = "lossless"'
        )

    def _place(self, number: int) -> str:
        return f"{self.where}: rule {number}" if self.where else f"rule {number}"


def _tables(document: Mapping[str, Any]) -> tuple[list[dict[str, Any]], bool]:
    """The tables of the rules and ``defaults``, of a whole TOML document."""
    for key in document:
        if key in KEYS:
            raise ValueError(f"{key!r} stands before any rule: begin one with the line [[rule]]")
        if key not in ("rule", "defaults"):
            raise ValueError(f"unknown key {key!r}{_nearest(key, ('rule', 'defaults'))}")
    defaults = document.get("defaults", True)
    _flag("defaults", defaults)
    tables = document.get("rule", [])
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise ValueError("a recipe has one [[rule]] or more: tables that begin with that line, brackets doubled")
    return tables, defaults


def _rule(table: Mapping[str, Any]) -> Rule:
    for key in table:
        if key not in KEYS:
            raise ValueError(f"unknown key {key!r}{_nearest(key, KEYS)}")
    return Rule(**table)


def _part_rule(part: object) -> Rule:
    """The rule of one of several parts: no conditions. A string is its encoding and keys: "sparse top=0.5%"."""
    if isinstance(part, str):
        table = _parsed(part)
    elif isinstance(part, Mapping):
        table = dict(part)
    elif isinstance(part, Rule):
        if any(getattr(part, key) is not None for key in CONDITIONS) or part.on_error != "refuse":
            raise ValueError("one of several parts has conditions or on_error: they stand beside parts")
        return _checked_part(part)
    else:
        raise ValueError(f'part {part!r:.100}: a string like "sparse top=0.5%", a table or a Rule will do')
    for key in table:
        if key not in (*ACTIONS, "encoding") or key in ENCODINGS["parts"]:
            raise ValueError(f"part {part!r:.100}: unknown key {key!r}{_nearest(key, ACTIONS)}")
    try:
        return _checked_part(Rule(**table))
    except ValueError as error:
        raise ValueError(f"part {part!r:.100}: {error}") from None


def _checked_part(rule: Rule) -> Rule:
    if rule.encoding in ("lossless", "parts"):
        raise ValueError(f"{rule.encoding} is no part: one is quantized, sparse or of factors")
    return rule


def _parsed(text: str) -> dict[str, Any]:
    """The keys of a part in one line. Values are those of TOML, or percentages; words need no quotation marks."""
    encoding, *words = text.split() or [""]
    table: dict[str, Any] = {"encoding": encoding}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key.isidentifier():
            raise ValueError(f"part {text!r:.100}: {word!r} is not key=value")
        if key in table:
            raise ValueError(f"part {text!r:.100}: {key} is said twice")
        try:
            table[key] = float(value[:-1]) / 100 if value.endswith("%") else tomllib.loads(f"value = {value}")["value"]
        except (ValueError, tomllib.TOMLDecodeError):
            table[key] = value
    return table


def _not_taken(quantizer: str, key: str) -> str:
    """Why a quantizer does not take a key, and what would do."""
    if quantizer == "uniform" and key in _SCALED:
        advice = "it has one step for the tensor; symmetric and affine take scales"
    elif key in TARGETS and key != "bits":
        advice = 'its width is fixed; quantizer = "uniform" aims at targets'
    else:
        takers = [name for name, kind in QUANTIZERS.items() if key in kind.takes]
        takers += [f'encoding = "{name}"' for name, keys in ENCODINGS.items() if key in keys]
        advice = f"leave it out, or take {' or '.join(takers)}"
    return f'quantizer = "{quantizer}" takes no {key}: {advice}'


def _nearest(word: str, words: Iterable[str]) -> str:
    words = tuple(words)
    near = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    return f": did you mean {near[0]!r}?" if near else f": one of {', '.join(words)}"


def _one_of(*choices: str) -> Callable[[str, object], object]:
    def check(key: str, value: object) -> object:
        if not isinstance(value, str) or value not in choices:
            near = _nearest(value, choices) if isinstance(value, str) else f": one of {', '.join(choices)}"
            raise ValueError(f"{key} = {value!r}{near}")
        return value

    return check


def _number(range_text: str, good: Callable[[Any], bool]) -> Callable[[str, object], object]:
    def check(key: str, value: object) -> object:
        if isinstance(value, bool) or not isinstance(value, Real) or not good(value):
            raise ValueError(f"{key} = {value!r}: a number {range_text} will do")
        return float(value)

    return check


def _integer(low: int, high: int) -> Callable[[str, object], object]:
    def check(key: str, value: object) -> object:
        if isinstance(value, bool) or not isinstance(value, Integral) or not low <= int(value) <= high:
            raise ValueError(f"{key} = {value!r}: an integer from {low} to {high} will do")
        return int(value)

    return check


def _several(check: Callable[[str, object], object]) -> Callable[[str, object], object]:
    """One value or a list of them, each of which ``check`` takes; gives a tuple."""

    def check_all(key: str, value: object) -> object:
        values = value if isinstance(value, list | tuple) else [value]
        if not values:
            raise ValueError(f"{key} = []: no tensor matches; leave {key} out to match all")
        return tuple(check(key, one) for one in values)

    return check_all


def _glob(key: str, value: object) -> object:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{key} = {value!r}: a name or glob pattern, or a list of them, will do")
    return value


def _tile(key: str, value: object) -> object:
    sides = tuple(value) if isinstance(value, list | tuple) else ()
    if len(sides) != 2 or not all(type(n) is int and 1 <= n <= 1 << 31 for n in sides):
        raise ValueError(f"{key} = {value!r}: a list of two lengths, rows and columns, will do, like [128, 128]")
    return sides


def _flag(key: str, value: object) -> object:
    if type(value) is not bool:
        raise ValueError(f"{key} = {value!r}: true or false will do")
    return value


def _shape(key: str, value: object) -> object:
    lengths = tuple(value) if isinstance(value, list | tuple) else None
    if lengths is None or not all(n == "*" or (type(n) is int and n >= 0) for n in lengths):
        raise ValueError(f'{key} = {value!r}: a list with the length of each axis will do, "*" for any')
    return lengths


def _pattern(key: str, value: object) -> object:
    match = re.fullmatch(r"([1-7]):([2-8])", value) if isinstance(value, str) else None
    if match is None or int(match[1]) >= int(match[2]):
        raise ValueError(f'{key} = {value!r}: "2:4", or another number out of at most 8, will do')
    return value


def _block(key: str, value: object) -> object:
    sides = value.split("x") if isinstance(value, str) else []
    if len(sides) != 2 or not all(side == "*" or re.fullmatch(r"[1-9][0-9]{0,9}", side) for side in sides):
        raise ValueError(
            f'{key} = {value!r}: rows and columns will do, like "4x4"; "1x*" for whole rows, "*x1" for columns'
        )
    if sides == ["*", "*"]:
        raise ValueError(f"{key} = {value!r} is the whole tensor")
    return value


def _parts(key: str, value: object) -> object:
    if isinstance(value, str | Mapping) or not isinstance(value, Sequence):
        raise ValueError(f'{key} = {value!r:.100}: a list will do, like ["quantized bits=3", "sparse top=0.5%"]')
    return tuple(value)


_SHARE = _number("above 0 and below 1", lambda v: 0 < v < 1)
_SIZE = _integer(0, 1 << 62)
_FLOAT32 = "that float32 holds"
_CHECKS: Mapping[str, Callable[[str, object], object]] = MappingProxyType(
    {
        "name": _several(_glob),
        "dtype": _several(_one_of(*DTYPES)),
        "ndim": _several(_integer(0, MAX_NDIM)),
        "shape": _shape,
        "min_size": _SIZE,
        "max_size": _SIZE,
        "encoding": _one_of("lossless", "quantized", *ENCODINGS),
        "on_error": _one_of("refuse", "lossless"),
        "quantizer": _one_of(*QUANTIZERS),
        "bits": _number(f"above 0 and up to {MAX_BITS}", lambda v: 0 < v <= MAX_BITS),
        "nmse": _number("above 0 and below 1", lambda v: 0 < v < 1),
        "snr_db": _number("above 0 and up to 150", lambda v: 0 < v <= 150),
        "max_error": _number(f"above 0 {_FLOAT32}", lambda v: 1e-37 <= v <= 3e38),
        "step": _number("from 1e-36 to 1e36", lambda v: 1e-36 <= v <= 1e36),
        "levels": _integer(2, MAX_LEVELS),
        "lagrangian": _number("from 0 to 1", lambda v: 0 <= v <= 1),
        "scales": _one_of(*SCALES),
        "group": _integer(1, 1 << 31),
        "tile": _tile,
        "search": _flag,
        "scale_dtype": _one_of(*SCALE_DTYPES),
        "low": _number(_FLOAT32, lambda v: -3e38 <= v <= 3e38),
        "high": _number(_FLOAT32, lambda v: -3e38 <= v <= 3e38),
        "codebook": _one_of("kmeans", *FIXED_CODEBOOKS),
        "dimension": _integer(1, MAX_DIMENSION),
        "format": _one_of("e4m3fn", "e5m2"),
        "sparsity": _SHARE,
        "top": _SHARE,
        "threshold": _number(f"above 0 {_FLOAT32}", lambda v: 1e-37 <= v <= 3e38),
        "pattern": _pattern,
        "block": _block,
        "scope": _one_of("tensor", "global"),
        "rank": _integer(1, 1 << 16),
        "ranks": _several(_integer(1, 1 << 16)),
        "energy": _SHARE,
        "factor_dtype": _one_of("float32", "float16", "bfloat16"),
        "parts": _parts,
        "rounds": _integer(1, MAX_ROUNDS),
    }
)
KEYS = tuple(key.name for key in fields(Rule))
ACTIONS = tuple(key for key in KEYS if key not in (*CONDITIONS, "encoding", "on_error"))

# Below this a tensor in bfloat16 has 32 KiB, of which 4 bits per weight save some 12 more than lossless coding: small
# tensors (types of tokens, routers of few experts, relative positions) are a small part of a model and touch all of it.
MIN_SIZE = 16384
DEFAULTS = (
    Rule(dtype=tuple(name for name in DTYPES if name not in QUANTIZABLE), encoding="lossless"),
    Rule(ndim=(0, 1), encoding="lossless"),
    Rule(max_size=MIN_SIZE - 1, encoding="lossless"),
    # "norm1.weight", not "norm1.linear.weight", which is a large matrix in diffusion transformers.
    Rule(name=("*[nN]orm.weight", "*[nN]orm", "*[nN]orm[0-9].weight", "*[bB]ias", "*[bB]iases"), encoding="lossless"),
    # Scales and zeros of weights that are quantized already, in the formats of others.
    Rule(name=("*[._]scale", "*[._]scales", "*[._]scale_inv", "*[._]zeros"), encoding="lossless"),
    # One wrong choice of an expert costs more than the bits of all routers.
    Rule(name=("*.gate.weight", "*.router.weight"), encoding="lossless"),
    # State-space models: exponents of decay, and a filter of a few taps for each channel.
    Rule(name=("*.A_log", "*.conv1d.weight"), encoding="lossless"),
)

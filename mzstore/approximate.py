"""Approximate: bring a tensor to several parts, or to a sparse or low-rank one, as a rule of a recipe asks.

Each part is fitted to what the others leave of the values: in the first round to what those before it leave, in later rounds to
what all others do. A fitted part holds its payloads, which are then laid down chunk by chunk; the values that a reader will get,
for the digest and the errors, are decoded from these as a reader would.

A sparse part whose values are exact replaces those of the parts before it, unless another part is added behind it: then it is added as well.
Values of another model may come before all parts, which are then fitted to what the tensor is different by.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mzstore import factorize, prune, sparsity, targets
from mzstore.documents import parts_of
from mzstore.dtypes import DTYPES, DType, cast
from mzstore.encode import Choice, Level, Payload, payloads
from mzstore.encodings import Coding, Component, Part, SinglePart, chunk_path, first_of, read_chunk
from mzstore.encodings.base import Base
from mzstore.encodings.combined import Combine, Combined
from mzstore.encodings.lowrank import FLOATS, LowRank, left_grid, multiply, right_grid
from mzstore.encodings.nested import Nested
from mzstore.encodings.planes import Planes
from mzstore.encodings.quantized import Quantized
from mzstore.encodings.sparse import Sparse, blocks_of, bytes_array, values_grid
from mzstore.encodings.tucker import Tucker, canonical, expand, factor_grid, factor_name
from mzstore.grid import Grid, choose_chunk_shape
from mzstore.interleave import Fields
from mzstore.payload import seal
from mzstore.quality import Errors
from mzstore.quantize import Encoded, to_float32, weights_of
from mzstore.quantizers import checked_weights
from mzstore.recipe import FACTORIZED, GROUPS, Rule
from mzstore.sources import ArraySource, TensorSource
from mzstore.targets import Map
from mzstore.tensors import TensorSpec

FLOAT32 = DTYPES["float32"]
CODING = Coding()
LEAST_QUANTIZED = 4096  # numbers of a factor: of fewer, what is spent besides the codes is more than they save


@dataclass(frozen=True, slots=True)
class Approximation:
    """A tensor as parts that are fitted and encoded. ``encode`` is called from threads."""

    spec: TensorSpec
    part: Part
    asked: dict[str, Any]
    kept: list[dict[str, Any]]  # what became of each part
    _fitted: tuple["_Stored", ...] = field(repr=False)
    _under: TensorSource | None = field(
        repr=False, default=None
    )  # the values of another model that come before the parts

    def encode(self, words: np.ndarray, start: int, chunks: list[tuple[int, ...]]) -> Encoded:
        """The ``chunks`` of a row block: ``words``, of the block's shape, ``start`` words into the tensor."""
        decoded = np.empty(words.shape, words.dtype)
        if self._under:
            decoded[...] = self._under.read(start, start + words.size).reshape(words.shape)
        found = []
        for chunk in chunks:
            own = list(self._payloads(chunk))
            found += [payload for payload, component in own if first_of(self.part, component, chunk)]
            box = self.part.grid.box_in_block(chunk)
            source = tuple(slice(0, cut.stop - cut.start) for cut in box)

            def read(i: int, own: Sequence[tuple[Payload, Component]] = own) -> np.ndarray:
                payload, component = own[i]
                return read_chunk(component, memoryview(payload.data), where=self.spec.name)

            target = decoded[box].copy()
            self.part.decode(read, source, target, self.spec.name)
            decoded[box] = target
        errors = Errors.between(words, decoded, self.spec.dtype)
        return Encoded(found, decoded, replace(errors, stored_nbytes=sum(len(payload.data) for payload in found)))

    def _payloads(self, chunk: tuple[int, ...]) -> Iterator[tuple[Payload, Component]]:
        """Of all components for ``chunk``, in their order."""
        components = iter(self.part.components)
        parts = [part for part in parts_of(self.part) if not isinstance(part, Base)]
        for part, fitted in zip(parts, self._fitted, strict=True):
            for own, component in zip(part.components, components, strict=False):
                data = fitted.payloads[own.name, part.component_chunk(own, chunk)]
                yield Payload(chunk_path(self.part, component, chunk), data, not own.array.zstd), component

    @property
    def stored_nbytes(self) -> int:
        """Bytes of all payloads."""
        return sum(len(data) for fitted in self._fitted for data in fitted.payloads.values())


@dataclass(frozen=True, slots=True)
class Under:
    """The values of a tensor of another model, of the same dtype and shape, to which all parts are added."""

    part: Base  # over any grid
    values: TensorSource


@dataclass(frozen=True, slots=True)
class _Stored:
    """A part, with the payloads of all its chunks by component and position."""

    part: SinglePart
    payloads: Mapping[tuple[str, tuple[int, ...]], bytes] = field(repr=False)


@dataclass(slots=True)
class _Fit:
    """One of the parts while they are fitted."""

    rule: Rule
    combine: Combine | None  # None: it is the first one
    values: np.ndarray | None = None  # float32 [rows, cols]: what it adds; of one that replaces, nothing
    replaced: np.ndarray | None = None  # bool [rows, cols]: where it replaces the others
    stored: _Stored | None = None
    kept: dict[str, Any] = field(default_factory=dict)


def prepare(
    source: TensorSource,
    rule: Rule,
    importance: Any = None,
    level: Level = "balanced",
    spread: Map = map,
    least: float | None = None,
    under: Under | None = None,
) -> Approximation:
    """Fit the parts of ``rule`` to ``source``, which is read into memory. Raises ValueError, naming the tensor, for what it
    cannot do.

    importance  float32[cols] or an array of the tensor's shape: how much the squared error of each value matters
    spread      ``map``, or that of an executor
    least       the score from which on values are kept, of a rule that prunes several tensors together
    under       what comes before the parts; errors that the rule asks for are then parts of the difference from it
    """
    try:
        return _Fitting(source, rule, importance, level, spread, least, under).approximation()
    except ValueError as error:
        raise ValueError(f"tensor {source.spec.name!r}: {error}") from error


class _Fitting:
    """The parts of one tensor, fitted one after the other."""

    def __init__(
        self,
        source: TensorSource,
        rule: Rule,
        importance: Any,
        level: Level,
        spread: Map,
        least: float | None,
        under: Under | None,
    ) -> None:
        self._spec, self._rule, self._level, self._spread, self._least = source.spec, rule, level, spread, least
        self._importance = importance
        self._values, self._weights = matrix_of(source, importance)
        self._shape = self._values.shape
        self._words = source.read(0, source.spec.size).reshape(self._shape)
        rules: tuple[Rule, ...] = rule.parts if rule.parts is not None else (rule,)  # type: ignore[assignment]
        self._under = under
        self._below = matrix_of(under.values, None)[0] if under else None
        self._wanted = self._values if self._below is None else self._values - self._below  # of all parts together
        self._fits = [_Fit(own, how) for own, how in zip(rules, _combines(rules, begun=under is not None), strict=True)]
        self._grid = Grid(source.spec.shape, self._chunk_shape(rules))

    def approximation(self) -> Approximation:
        """Of all rounds, the parts with the least error. Raises ValueError if their dtype cannot hold what they give."""
        least = math.inf
        for _ in range(self._rule.rounds or 1):
            for fit in self._fits:
                self._fit(fit)
            if (error := self._error()) < least:
                least, found = error, [(fit.stored, fit.kept) for fit in self._fits]
        if least == math.inf:
            raise ValueError(f"values that {self._spec.dtype.name} cannot hold come out: keep it lossless")
        stored = tuple(stored for stored, _ in found if stored)
        part: Part = stored[0].part
        parts, kept = tuple(each.part for each in stored), [kept for _, kept in found]
        if self._under:
            parts = (replace(self._under.part, grid=self._grid), *parts)
            change = np.square(self._wanted, dtype=np.float64).mean()
            kept.insert(0, {"encoding": "base", "rms_change": float(f"{math.sqrt(change):.6g}")})
        if len(parts) > 1:
            part = Combined(parts, tuple(f.combine for f in self._fits if f.combine))
        values = self._under.values if self._under else None
        return Approximation(self._spec, part, dict(self._rule.asked), kept, stored, values)

    def _error(self) -> float:
        """The (weighted) squared error of what the parts give; infinity if that is not finite."""
        if len(self._fits) == 1 and self._fits[0].values is None:
            return 0.0  # what is kept is exact, and nothing else could be taken
        given = np.zeros(self._shape, np.float32) if self._below is None else self._below.copy()
        for fit in self._fits:
            if fit.values is not None:
                given += fit.values
        for fit in self._fits:
            if fit.replaced is not None:
                given[fit.replaced] = self._values[fit.replaced]
        with np.errstate(over="ignore", invalid="ignore"):
            error = np.square(self._rounded(given) - self._values, dtype=np.float64)
            found = float((error if self._weights is None else error * self._weights).sum())
        return found if math.isfinite(found) else math.inf

    def _rounded(self, values: np.ndarray) -> np.ndarray:
        """``values`` (float32) as the dtype of the tensor has them."""
        dtype = self._spec.dtype
        return cast(cast(values.view(np.uint32), FLOAT32, dtype), dtype, FLOAT32).view(np.float32)

    def _chunk_shape(self, rules: Sequence[Rule]) -> tuple[int, ...]:
        """Of all parts: no chunk cuts what shares a scale; those of a sparse tensor may be larger than others."""
        shape, itemsize = self._spec.shape, max(4, self._spec.dtype.word.itemsize)
        if len(rules) == 1 and rules[0].encoding == "sparse":
            (rule,) = rules
            density = 0.1 if rule.threshold is not None else prune.share_kept(rule)
            return sparsity.chunks_for(shape, itemsize, density)
        chunk = list(choose_chunk_shape(shape, itemsize))
        for rule in rules:
            if rule.encoding == "quantized":
                wide = _width(rule)
                chunk[-1] = min(shape[-1], -(-chunk[-1] // wide) * wide)
                if rule.tile is not None and len(chunk) == 2:
                    chunk[0] = min(shape[0], -(-chunk[0] // rule.tile[0]) * rule.tile[0])
        return tuple(chunk)

    def _fit(self, fit: _Fit) -> None:
        target = self._wanted
        others = [other for other in self._fits if other is not fit]
        for other in others:
            if other.values is not None:
                target = target - other.values
        for other in others:
            if other.replaced is not None:  # whatever this part gives there
                own = fit.values[other.replaced] if fit.values is not None and fit.rule.encoding in FACTORIZED else 0
                target = target.copy() if target is self._wanted else target
                target[other.replaced] = own
        if fit.rule.encoding == "quantized":
            self._quantize(fit, target)
        elif fit.rule.encoding == "sparse":
            self._prune(fit, target)
        elif fit.rule.encoding == "lowrank":
            self._factorize(fit, target)
        else:
            self._tucker(fit, target.reshape(self._spec.shape))

    def _quantize(self, fit: _Fit, target: np.ndarray) -> None:
        stored, values = self._quantized(
            target.reshape(self._spec.shape), fit.rule, self._importance, self._grid.chunk_shape
        )
        assert isinstance(stored.part, Quantized)
        fit.stored = replace(stored, part=replace(stored.part, dtype=self._spec.dtype))
        fit.values = values.reshape(self._shape)
        fit.kept = {"encoding": "quantized"}

    def _factorize(self, fit: _Fit, target: np.ndarray) -> None:
        weights = self._weights
        if weights is not None and weights.ndim == 2:
            raise ValueError("importance of each value: factors take that of columns")
        found = factorize.Decomposition(target, weights)
        if fit.rule.rank is not None:
            self._multiply(fit, *found.factors(fit.rule.rank))
            return
        nmse = float(fit.rule.nmse or 0) if fit.rule.energy is None else 1 - fit.rule.energy
        rank, most = found.least_rank(nmse), min(self._shape)
        while (error := self._multiply(fit, *found.factors(rank), target)) > nmse:  # by rounding, or by weights
            if rank == most:
                raise ValueError(f"nmse = {nmse:g} cannot be reached by a product, only {error:.3g}: keep it lossless")
            rank = min(most, rank + max(1, rank // 16))

    def _multiply(self, fit: _Fit, left: np.ndarray, right: np.ndarray, target: np.ndarray | None = None) -> float:
        """Take the product of these factors; its squared error / squared values of ``target``, if that is given."""
        rank, grid = left.shape[1], self._grid
        stored_left, left = self._nested(left.reshape(left_grid(grid, rank).shape), fit.rule, left_grid(grid, rank))
        stored_right, right = self._nested(right, fit.rule, right_grid(grid, rank))
        product = np.empty(self._shape, np.float32)
        multiply(left.reshape(-1, rank), right, np.float32(1), product)
        nested_left, nested_right = Nested("left", stored_left.part), Nested("right", stored_right.part)
        part = LowRank(self._spec.dtype, grid, nested_left, nested_right)
        fit.stored = _Stored(part, _renamed(stored_left, nested_left) | _renamed(stored_right, nested_right))
        fit.values = product
        fit.kept = {"encoding": "lowrank", "rank": rank}
        if target is None:
            return 0.0
        given = self._rounded(product) if len(self._fits) == 1 and target is self._values else product
        total = float(np.square(target, dtype=np.float64).sum())
        return float(np.square(given - target, dtype=np.float64).sum()) / total if total else 0.0

    def _tucker(self, fit: _Fit, target: np.ndarray) -> None:
        if self._weights is not None:
            raise ValueError(f'importance: encoding = "{fit.rule.encoding}" takes none')
        grid, core = self._grid, None
        factors: Sequence[np.ndarray | None]
        if fit.rule.encoding == "cp":
            factors = factorize.canonical(target, int(fit.rule.rank or 0))
            ranks = (int(fit.rule.rank or 0),) * target.ndim
        else:
            core, factors = factorize.tucker(target, fit.rule)
            ranks = core.shape
        payloads: dict[tuple[str, tuple[int, ...]], bytes] = {}

        def stored(name: str, values: np.ndarray, own: Grid) -> tuple[Nested, np.ndarray]:
            inner, given = self._nested(values, fit.rule, own)
            nested = Nested(name, inner.part)
            payloads.update(_renamed(inner, nested))
            return nested, given

        found: list[tuple[Nested, np.ndarray] | None] = []
        for axis, factor in enumerate(factors):
            own = factor_grid(grid, axis, ranks[axis])
            if factor is None and grid.chunk_shape[axis] == grid.shape[axis]:
                found.append(None)
                continue
            if factor is None:  # a chunk cannot tell which part of the core would be its own
                factor = np.eye(grid.shape[axis], dtype=np.float32)
            found.append(stored(factor_name(axis), factor, own))
        nested = tuple(None if each is None else each[0] for each in found)
        given = [None if each is None else each[1] for each in found]
        held = None if core is None else stored("core", core, Grid(ranks, ranks))
        part = Tucker(self._spec.dtype, grid, ranks, nested, None if held is None else held[0])
        values = canonical([each for each in given if each is not None]) if held is None else expand(held[1], given)
        fit.stored, fit.values = _Stored(part, payloads), values.reshape(self._shape)
        fit.kept = {"encoding": str(fit.rule.encoding), "ranks": list(ranks)}

    def _prune(self, fit: _Fit, target: np.ndarray) -> None:
        mask = prune.kept(target, fit.rule, self._weights, self._least)
        fit.kept = {"encoding": "sparse"} | prune.describe(mask)
        exact = fit.rule.quantization is None or int(np.count_nonzero(mask)) < LEAST_QUANTIZED
        if exact and (fit.combine == "replace" or target is self._values):
            words, dtype = np.where(mask, self._words, self._words.dtype.type(0)), self._spec.dtype
        else:
            words, dtype = np.where(mask, target, np.float32(0)).view(np.uint32), FLOAT32
            if exact and self._spec.dtype.name in FLOATS:
                words, dtype = cast(words, FLOAT32, self._spec.dtype), self._spec.dtype
        rule = None if exact else fit.rule.quantization
        if fit.combine == "replace":
            fit.stored, _ = self._sparse(fit, mask, words, dtype, rule)
            fit.replaced = mask
        else:
            fit.stored, fit.values = self._sparse(fit, mask, words, dtype, rule)

    def _sparse(
        self, fit: _Fit, mask: np.ndarray, words: np.ndarray, dtype: DType, rule: Rule | None
    ) -> tuple[_Stored, np.ndarray | None]:
        """(the part that has ``words`` of ``dtype`` where ``mask`` is true; what it gives: float32 [rows, cols]).

        rule  how the values are quantized; None: they are not. Of such a part alone nobody asks what it gives: None
        """
        grid, shape, chunks = self._grid, self._spec.shape, list(self._grid.chunks())
        own_mask, own_words = mask.reshape(shape), words.reshape(shape)

        def of(array: np.ndarray, chunk: tuple[int, ...]) -> np.ndarray:
            part = array[grid.box(chunk)]
            missing = [(0, full - n) for full, n in zip(grid.chunk_shape, part.shape, strict=True)]
            return np.pad(part, missing) if part.shape != grid.chunk_shape else part

        # Where a value replaces others, and where codes may not stand for 0, none may be stored that is not kept.
        exact = fit.combine == "replace" or rule is not None
        middle = of(own_mask, tuple((n - 1) // 2 for n in grid.counts))
        found = sparsity.find(middle, dtype.word_bits, exact=exact)
        unit = 1 if rule is None else _width(rule)
        for structure in dict.fromkeys((found, sparsity.Structure())):
            try:
                places = [structure.places(of(own_mask, chunk)).astype(np.int32) for chunk in chunks]
            except ValueError:  # a pattern that the other chunks do not have
                continue
            room = sparsity.room(places, structure, grid.chunk_size)
            size = math.prod(structure.block)
            step = unit // math.gcd(unit, size)
            n_elements = -(-room.n_elements // step) * step
            if structure == sparsity.Structure() or (
                (structure.index.pattern is None or n_elements == room.n_elements)
                and (not exact or self._covered(structure, places, chunks) == np.count_nonzero(mask))
            ):
                break
        held = np.zeros((len(chunks), n_elements * size), dtype.word)
        for row, chunk, taken in zip(held, chunks, places, strict=True):
            row[: taken.size * size] = blocks_of(of(own_words, chunk), structure.block)[taken].reshape(-1)
        stored, decoded = self._values_of(fit, held, values_grid(grid, held.shape[1]), dtype, rule)
        nested = Nested("values", stored.part)
        low = bytes_array(grid, n_elements) if structure.index.low_bits else None
        sparse = Sparse(
            self._spec.dtype, grid, bytes_array(grid, room.n_bytes), nested, structure.index, low, structure.block
        )
        payloads = _renamed(stored, nested)
        for chunk, taken in zip(chunks, places, strict=True):
            index = sparse.encode_index(taken, CODING)
            payloads |= {(c.name, (*chunk, 0)): seal(body) for c, body in zip(sparse.components, index, strict=False)}
        if fit.combine == "replace" or (rule is None and len(self._fits) == 1):
            return _Stored(sparse, payloads), None
        given = np.zeros(shape, np.float32)
        for row, chunk, taken in zip(decoded, chunks, places, strict=True):
            dense = np.zeros(grid.chunk_size, np.float32)
            dense[sparse.positions_of(taken)] = row[: taken.size * size]
            box = grid.box(chunk)
            given[box] = dense.reshape(grid.chunk_shape)[tuple(slice(0, s.stop - s.start) for s in box)]
        return _Stored(sparse, payloads), given.reshape(self._shape)

    def _covered(
        self, structure: sparsity.Structure, places: Sequence[np.ndarray], chunks: Sequence[tuple[int, ...]]
    ) -> int:
        """How many values of the tensor belong to elements at these places of its chunks."""
        total = 0
        for taken, chunk in zip(places, chunks, strict=True):
            inner = tuple(slice(0, s.stop - s.start) for s in self._grid.box(chunk))
            total += int(np.count_nonzero(structure.covered(taken, self._grid.chunk_shape)[inner]))
        return total

    def _values_of(
        self, fit: _Fit, held: np.ndarray, grid: Grid, dtype: DType, rule: Rule | None
    ) -> tuple[_Stored, np.ndarray]:
        """(the part that holds the words ``held`` [chunks, room] of ``dtype``; what it gives, float32 of the same shape)."""
        if rule is None:
            part = Planes.new(dtype, grid, Fields(dtype.word_bits, 8, rotate=True))
            return _lossless(held.reshape(grid.shape), part), cast(held, dtype, FLOAT32).view(np.float32)
        stored, given = self._quantized(held.view(np.float32).reshape(grid.shape), rule, None, grid.chunk_shape)
        given = given.reshape(held.shape)
        if fit.combine == "add":
            return stored, given
        assert isinstance(stored.part, Quantized)
        return replace(stored, part=replace(stored.part, dtype=self._spec.dtype)), self._rounded(given)

    def _nested(self, values: np.ndarray, rule: Rule, grid: Grid) -> tuple[_Stored, np.ndarray]:
        """(the part that holds ``values`` (float32) inside of another one, over ``grid``; what it gives, in float32)."""
        if rule.quantization is not None and values.size >= LEAST_QUANTIZED:
            return self._quantized(values, rule.quantization, None, grid.chunk_shape)
        dtype = DTYPES[rule.factor_dtype or (self._spec.dtype.name if self._spec.dtype.name in FLOATS else "float32")]
        words = cast(values.view(np.uint32), FLOAT32, dtype)
        given = cast(words, dtype, FLOAT32).view(np.float32)
        if not np.isfinite(given).all():
            raise ValueError(f"factors that {dtype.name} cannot hold: take another factor_dtype")
        part = Planes.new(dtype, grid, Fields(dtype.word_bits, 8, rotate=True))
        return _lossless(words, part), given

    def _quantized(
        self, values: np.ndarray, rule: Rule, importance: Any, chunk_shape: tuple[int, ...]
    ) -> tuple[_Stored, np.ndarray]:
        """(the quantized part of ``values`` (float32), what it gives, in float32)."""
        words = np.ascontiguousarray(values).view(np.uint32)
        source = ArraySource(TensorSpec(self._spec.name, FLOAT32, values.shape), words)
        lossy = targets.fitted(
            source, rule, importance, self._level, self._spread, alone=False, chunk_shape=chunk_shape
        )
        assert isinstance(lossy.part, Quantized)
        given = np.empty(values.size, np.float32)
        found: dict[tuple[str, tuple[int, ...]], bytes] = {}
        for start, shape, chunks in lossy.part.grid.row_blocks():
            size = math.prod(shape)
            encoded = lossy.encode(source.read(start, start + size).reshape(shape), start, chunks)
            given[start : start + size] = encoded.words.reshape(-1).view(np.float32)
            by_path = {payload.path: payload.data for payload in encoded.payloads}
            for chunk in chunks:
                for component in lossy.part.components:
                    path = chunk_path(lossy.part, component, chunk)
                    if path in by_path:
                        found[component.name, lossy.part.component_chunk(component, chunk)] = by_path[path]
        return _Stored(lossy.part, found), given.reshape(values.shape)


def _lossless(words: np.ndarray, part: Planes) -> _Stored:
    """``part`` with ``words`` in its chunks."""
    found: dict[tuple[str, tuple[int, ...]], bytes] = {}
    (component,) = part.components
    for start, shape, chunks in part.grid.row_blocks():
        block = words.reshape(-1)[start : start + math.prod(shape)].reshape(shape)
        for chunk in chunks:
            (payload,) = payloads(Choice(part, CODING), block, chunk, part.dtype)
            found[component.name, part.component_chunk(component, chunk)] = payload.data
    return _Stored(part, found)


def _renamed(stored: _Stored, nested: Nested) -> dict[tuple[str, tuple[int, ...]], bytes]:
    """The payloads of a part inside of another one, by the names that its components have there."""
    names = {own.name: outer.name for own, outer in zip(stored.part.components, nested.components, strict=True)}
    return {(names[name], chunk): data for (name, chunk), data in stored.payloads.items()}


def _combines(rules: Sequence[Rule], *, begun: bool = False) -> list[Combine | None]:
    """How each part is combined with those before it. Exact values replace, unless another part is added behind them.

    begun  whether there is something before the first one
    """
    found: list[Combine | None] = []
    for i, rule in enumerate(rules):
        exact = rule.encoding == "sparse" and rule.quantization is None
        adds_behind = any(later.encoding != "sparse" or later.quantization is not None for later in rules[i + 1 :])
        found.append(None if i == 0 and not begun else "replace" if exact and not adds_behind else "add")
    return found


def _width(rule: Rule) -> int:
    """Of how many values along the last axis a chunk of codes is a multiple."""
    group = rule.group or GROUPS.get(str(rule.quantizer), 1)
    return math.lcm(rule.dimension or 1, group, (rule.tile or (1, 1))[1])


def matrix_of(source: TensorSource, importance: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """(the values, float32 [rows, cols]; how much their squares matter, float32 [cols] or [rows, cols], or None).

    Raises ValueError for NaN and infinity, and for importance that will not do.
    """
    *lead, cols = source.spec.shape
    values = to_float32(source.read(0, source.spec.size), source.spec.dtype).reshape(math.prod(lead), cols)
    if not np.isfinite(values).all():
        raise ValueError("values with NaN or infinity, or beyond float32, are not approximated: keep it lossless")
    weights = weights_of(importance, source.spec)
    checked_weights(weights, values.shape)
    return values, weights

"""Quantize: bring a tensor to codes as a rule of a recipe asks, and measure what that does to its values.

The way of a tensor: the rule names a quantizer; it is fitted to the values and gives a scheme; the scheme becomes a part with
its arrays. Then row block by row block: codes, packed bytes, payloads; and the values that a reader will get, for the
digest and the errors.
"""

import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import numpy as np

from mzstore.arrays import Array
from mzstore.documents import TensorEntry, dump, parts_of
from mzstore.dtypes import DTYPES, DType
from mzstore.encode import Level, Payload
from mzstore.encodings import Coding, chunk_path, first_of
from mzstore.encodings.combined import Combined
from mzstore.encodings.quantized import MAX_LISTED, Blocked, Quantized, blocked_array, packed_array
from mzstore.encodings.sparse import Sparse, gaps, within
from mzstore.grid import MAX_CHUNK_NBYTES, ROW_BLOCK_NBYTES, Grid, choose_chunk_shape
from mzstore.payload import compress, seal
from mzstore.quantizers import ArrayMatrix, Codes, Fitted, Importance, Quantizer, Scheme, ZeroPoint
from mzstore.quantizers.codebooks import Lloyd, Vectors, fp4, nf4
from mzstore.quantizers.columns import ColumnScaled
from mzstore.quantizers.decoding import Decoder, Local
from mzstore.quantizers.ecsq import LAGRANGIAN, FittedUniform, Target, Uniform
from mzstore.quantizers.floats import Floats, mxfp4, mxfp8, nvfp4
from mzstore.quantizers.integers import Integers
from mzstore.quantizers.packing import BASES, pack, per_byte
from mzstore.recipe import Rule
from mzstore.sources import TensorSource
from mzstore.tensors import TensorSpec

Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
# Codes differ from row to row by more than a Huffman table costs: 48 KiB are up to 0.01 bit better, and decoded a bit slower.
CODINGS = {level: Coding(block_nbytes=(128 if level == "fast" else 48) << 10) for level in get_args(Level)}
PIECE = 1 << 16  # values
TRIALS = 5  # of a step, for a target
TOLERANCE = 0.01  # in bits per weight: of the rate, or of the rate that the error is worth
MOST_OFF = 0.1  # of the bits that are asked for
TRIED_NBYTES = 64 << 20  # of words: a larger tensor would take too much memory to be tried as a whole
LOG_STEPS = 110.0  # beyond these, what steps are multiplied with leaves float32
ENTRY_NBYTES = 30 + 46  # of the headers of an entry, besides its key


@dataclass(frozen=True, slots=True)
class Errors:
    """Sums over values and what became of them; of all values, or of those of a row block."""

    count: int = 0
    square: float = 0.0  # of the values
    squared_error: float = 0.0
    greatest: float = 0.0  # error of any value
    stored_nbytes: int = 0

    def __add__(self, other: "Errors") -> "Errors":
        return Errors(
            self.count + other.count,
            self.square + other.square,
            self.squared_error + other.squared_error,
            max(self.greatest, other.greatest),
            self.stored_nbytes + other.stored_nbytes,
        )

    def to_json(self, nbytes: int) -> dict[str, float]:
        """What was reached, for a tensor whose values took ``nbytes``; see ``Tensor.quality``."""
        nmse = self.squared_error / self.square if self.square else 0.0
        found = {
            "bits": 8 * self.stored_nbytes / self.count,
            "ratio": nbytes / self.stored_nbytes,
            "nmse": nmse,
            "rmse": math.sqrt(self.squared_error / self.count),
            "max_error": self.greatest,
        }
        if nmse:
            found["snr_db"] = -10 * math.log10(nmse)
        return {name: float(f"{value:.6g}") for name, value in found.items()}


@dataclass(frozen=True, slots=True)
class SourceMatrix:
    """A source of floats as the matrix that quantizers read: rows are all leading axes, columns the last one."""

    source: TensorSource

    @property
    def shape(self) -> tuple[int, int]:
        *lead, cols = self.source.spec.shape
        return math.prod(lead), cols

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        rows, cols = self.shape
        height = max(1, (4 << 20) // max(1, cols))
        for first in range(0, rows, height):
            words = self.source.read(first * cols, min(rows, first + height) * cols)
            yield first, to_float32(words, self.source.spec.dtype).reshape(-1, cols)


def to_float32(words: np.ndarray, dtype: DType) -> np.ndarray:
    """The values of ``words``, in float32: rounded, where they are float64."""
    with np.errstate(over="ignore"):
        return words.view(dtype.numpy).astype(np.float32, copy=False)


@dataclass(frozen=True, slots=True)
class Lossy:
    """How a tensor is to be quantized, everything global decided. ``encode`` is called from threads."""

    spec: TensorSpec
    part: Quantized | Combined
    asked: dict[str, Any]
    _fitted: Fitted = field(repr=False)
    _importance: np.ndarray | None = field(repr=False)
    _decoder: Decoder = field(repr=False)
    _coding: Coding
    # Row blocks that are done, by their start.
    _trial: Mapping[int, "Encoded"] = field(repr=False, default_factory=dict)

    def encode(self, words: np.ndarray, start: int, chunks: list[tuple[int, ...]]) -> "Encoded":
        """The ``chunks`` of a row block: ``words``, of the block's shape, ``start`` words into the tensor."""
        if start in self._trial:
            return self._trial[start]
        try:
            return self._encode(words, start, chunks)
        except ValueError as error:
            raise ValueError(f"tensor {self.spec.name!r}: {error}") from error

    def _encode(self, words: np.ndarray, start: int, chunks: list[tuple[int, ...]]) -> "Encoded":
        cols = words.shape[-1]
        first_row = start // cols
        values = to_float32(words, self.spec.dtype).reshape(-1, cols)
        codes = self._fitted.encode(values, first_row, _rows_of(self._importance, first_row, values.shape))
        found = []
        for chunk in chunks:
            bodies: list[bytes | memoryview] = []
            for part in parts_of(self.part):
                if isinstance(part, Quantized):
                    bodies += self._quantized_bodies(part, codes, words.shape, chunk)
                elif isinstance(part, Sparse):
                    bodies += self._sparse_bodies(part, codes, words, start, chunk)
            for component, body in zip(self.part.components, bodies, strict=True):
                if first_of(self.part, component, chunk):
                    found.append(Payload(chunk_path(self.part, component, chunk), seal(body), plain=False))
        decoded = self._decoded(codes, words, start)
        errors = replace(self._errors(words, decoded), stored_nbytes=sum(len(payload.data) for payload in found))
        return Encoded(found, decoded, errors)

    def _quantized_bodies(
        self, part: Quantized, codes: Codes, shape: tuple[int, ...], chunk: tuple[int, ...]
    ) -> Iterator[bytes | memoryview]:
        """Of all components for ``chunk``, out of the codes of its row block of ``shape``."""
        scheme = self._fitted.scheme
        box = part.grid.box_in_block(chunk)

        def cut(array: np.ndarray, block: tuple[int, ...], full: tuple[int, ...]) -> np.ndarray:
            """What ``chunk`` has of ``array``, one entry for ``block`` values, as a chunk of ``full`` shape."""
            own = array.reshape(tuple(-(-n // b) for n, b in zip(shape, block, strict=True)))
            taken = own[tuple(slice(s.start // b, -(-s.stop // b)) for s, b in zip(box, block, strict=True))]
            missing = [(0, n - m) for n, m in zip(full, taken.shape, strict=True)]
            return np.pad(taken, missing, mode="edge") if any(n for _, n in missing) else taken

        def packed(array: np.ndarray, n: int) -> memoryview | bytes:
            d = scheme.dimension
            *lead, cols = part.grid.chunk_shape
            own = cut(array, (*(1 for _ in lead), d), (*lead, -(-cols // d)))
            return self._compressed(pack(np.ascontiguousarray(own.reshape(-1, own.shape[-1])), n))

        def numbers(array: np.ndarray, blocked: Blocked) -> bytes | memoryview:
            block = tuple(min(b, n) for b, n in zip(blocked.block, shape, strict=True))
            own = cut(array, block, blocked.array.chunk_shape)
            return self._compressed(np.ascontiguousarray(own.astype(DTYPES[blocked.dtype].numpy)))

        if part.low_bits:
            yield packed((codes.codes >> part.low_bits).astype(np.uint8), 1)
            low = (codes.codes & ((1 << part.low_bits) - 1)).astype(np.uint8)
            yield packed(low, per_byte(1 << part.low_bits))
        else:
            yield packed(codes.codes, part.per_byte)
        for scale, values in zip(part.scales, codes.scales, strict=True):
            if isinstance(scale, Blocked):
                yield numbers(values, scale)
        if isinstance(part.zero_point, Blocked):
            assert codes.zero_points is not None
            yield numbers(codes.zero_points, part.zero_point)
        if isinstance(part.codebook, Array):
            yield self._compressed(_padded(scheme.codebook, part.levels))

    def _sparse_bodies(
        self, part: Sparse, codes: Codes, words: np.ndarray, start: int, chunk: tuple[int, ...]
    ) -> list[bytes | memoryview]:
        positions = outlier_positions(codes, part.grid, words.shape, start, chunk)
        own = words[part.grid.box_in_block(chunk)]
        index = np.unravel_index(positions, part.grid.chunk_shape)
        return part.encode(positions, own[index], self._coding)

    def _compressed(self, array: np.ndarray) -> bytes | memoryview:
        body = array.reshape(-1).view(np.uint8)
        return compress([body], coder=self._coding.coder, block_nbytes=self._coding.block_nbytes)

    def _decoded(self, codes: Codes, words: np.ndarray, start: int) -> np.ndarray:
        """The words that a reader will get for the row block."""
        out = np.empty(words.shape, self.spec.dtype.word)
        rows = out.reshape(-1, out.shape[-1])
        self._decoder.decode(
            codes.codes, slice(0, rows.shape[0]), slice(0, rows.shape[1]), Local(codes.scales, codes.zero_points), rows
        )
        if codes.outliers is not None:
            at = codes.outliers.positions - start
            out.reshape(-1)[at] = words.reshape(-1)[at]
        return out

    def _errors(self, words: np.ndarray, decoded: np.ndarray) -> Errors:
        """In float64, in which no square of a float32 is lost; in pieces that stay in the cache."""
        before, after = (array.reshape(-1).view(self.spec.dtype.numpy) for array in (words, decoded))
        square = squared_error = greatest = 0.0
        for start in range(0, before.size, PIECE):
            values = before[start : start + PIECE].astype(np.float64)
            error = after[start : start + PIECE].astype(np.float64)
            error -= values
            greatest = max(greatest, float(error.max()), -float(error.min()))
            square += float(np.add.reduce(np.multiply(values, values, out=values)))
            squared_error += float(np.add.reduce(np.multiply(error, error, out=error)))
        if not math.isfinite(squared_error):
            raise ValueError(
                f"values that {self.spec.dtype.name} cannot hold come out: take other scales, or keep it lossless"
            )
        return Errors(before.size, square, squared_error, greatest)


@dataclass(frozen=True, slots=True)
class Encoded:
    """A row block: its payloads in the order in which they are written, the words that a reader gets, and the errors."""

    payloads: list[Payload]
    words: np.ndarray
    errors: Errors


def prepare(
    source: TensorSource, rule: Rule, importance: Any = None, level: Level = "balanced", spread: Map = map
) -> Lossy:
    """Fit the quantizer of ``rule`` to ``source``. Raises ValueError, naming the tensor, for what it cannot do.

    importance  float32[cols] or an array of the tensor's shape: how much the squared error of each value matters
    spread      ``map``, or that of an executor: row blocks are tried with it
    """
    spec = source.spec
    try:
        return _prepare(source, rule, importance, CODINGS[level], spread)
    except ValueError as error:
        raise ValueError(f"tensor {spec.name!r}: {error}") from error


def _prepare(source: TensorSource, rule: Rule, importance: Any, coding: Coding, spread: Map) -> Lossy:
    matrix = SourceMatrix(source)
    weights, given = _importance(importance, source.spec, matrix.shape)
    quantizer = quantizer_for(rule, source.spec, weighted=weights is not None)
    fitted = quantizer.fit(matrix, given)
    lossy = _bound(source, rule, fitted, weights, coding)
    if not isinstance(quantizer, Uniform) or quantizer.target is None or quantizer.target.max_error is not None:
        return lossy
    if source.spec.nbytes > TRIED_NBYTES:  # of so many values, what the sample shows is exact enough
        return lossy
    side = 1 if quantizer.target.bits is not None else -1  # more bits are too many, but fewer ones too great an error

    def badness(off: float) -> tuple[bool, float]:
        """What misses the target is worse than all that does not."""
        return side * off > TOLERANCE, abs(off)

    points: list[tuple[float, float]] = []  # (logarithm of the step, what it is off)
    best = lossy
    while isinstance(fitted, FittedUniform):
        lossy = replace(lossy, _trial=_tried(lossy, source, spread))
        points.append((math.log2(fitted.design.step), _bits_off(lossy, quantizer.target)))
        if badness(points[-1][1]) <= min(badness(off) for _, off in points):
            best = lossy
        if abs(points[-1][1]) <= TOLERANCE / 2 or len(points) == TRIALS:
            break
        try:
            fitted = fitted.with_step(2.0 ** _next(points))
        except ValueError:  # values that need less than was asked for: a step so fine has too many levels
            break
        lossy = _bound(source, rule, fitted, weights, coding)
    off = min((off for _, off in points), key=badness)
    if quantizer.target.bits is not None and off > MOST_OFF * quantizer.target.bits:
        raise ValueError(
            f"{quantizer.target.bits:g} bits per weight cannot be reached, only {quantizer.target.bits + off:.3g}: "
            "ask for more, or keep it lossless"
        )
    return best


def _tried(lossy: Lossy, source: TensorSource, spread: Map) -> dict[int, "Encoded"]:
    """All row blocks of the tensor, encoded, by the word that they start at."""

    def encoded(row_block: tuple[int, tuple[int, ...], list[tuple[int, ...]]]) -> Encoded:
        start, shape, chunks = row_block
        return lossy.encode(source.read(start, start + math.prod(shape)).reshape(shape), start, chunks)

    row_blocks = list(lossy.part.grid.row_blocks())
    return {start: found for (start, _, _), found in zip(row_blocks, spread(encoded, row_blocks), strict=True)}


def quality_of(entry: TensorEntry, asked: dict[str, Any], errors: Errors) -> dict[str, Any]:
    """What was asked and what was reached, for the tensor's attributes: bits with all overhead, themselves included."""
    nbytes = entry.spec.nbytes
    about = replace(entry, lossy={"asked": asked, "reached": errors.to_json(nbytes)})
    stored = errors.stored_nbytes + _overhead_nbytes(about)
    return {"asked": asked, "reached": replace(errors, stored_nbytes=stored).to_json(nbytes)}


def _overhead_nbytes(entry: TensorEntry) -> int:
    """What an archive spends on the tensor besides its payloads: headers and directory; documents, which are there twice."""
    return sum(ENTRY_NBYTES + 2 * len(key) for key in entry.chunk_keys()) + 2 * sum(
        len(zlib.compress(dump(doc))) for _, doc in entry.documents()
    )


def _next(points: list[tuple[float, float]]) -> float:
    """The logarithm of the step to try after ``points``: between those around the target, where there are such."""
    fine = max((point for point in points if point[1] > 0), default=None)
    coarse = min((point for point in points if point[1] <= 0), default=None)
    if fine and coarse and fine[0] < coarse[0]:
        # Where another alphabet begins, bits jump: from neither side more than most of the way.
        share = min(0.9, max(0.1, fine[1] / (fine[1] - coarse[1])))
        return fine[0] + share * (coarse[0] - fine[0])
    (log_step, off), slope = points[-1], 1.0  # a bit less for each doubling
    if len(points) > 1 and points[-2][0] != log_step:
        slope = min(4.0, max(0.3, (points[-2][1] - off) / (log_step - points[-2][0])))
    return min(LOG_STEPS, max(-LOG_STEPS, log_step + off / slope))


def _bits_off(lossy: Lossy, target: Target) -> float:
    """By how many bits what was measured is above what is aimed at: a bit better than the target, so that it is kept."""
    errors = sum((encoded.errors for encoded in lossy._trial.values()), Errors())
    if target.bits is not None:
        entry = TensorEntry(lossy.spec, lossy.spec.name, "0" * 64, lossy.part)
        bits: float = quality_of(entry, lossy.asked, errors)["reached"]["bits"]
        return bits - target.bits + TOLERANCE / 2
    asked = target.relative_error
    measured = errors.squared_error / errors.square if errors.square else 0.0
    if not asked or not measured:
        return 0.0
    return 0.5 * math.log2(asked / measured) - TOLERANCE / 2  # what a lower error costs


def _bound(source: TensorSource, rule: Rule, fitted: Fitted, weights: np.ndarray | None, coding: Coding) -> Lossy:
    spec, scheme = source.spec, fitted.scheme
    n = per_byte(scheme.levels) if scheme.levels <= 256 and scheme.dimension == 1 else 1
    low_bits = max(0, (scheme.levels - 1).bit_length() - 8)
    grid = Grid(spec.shape, _chunk_shape(spec, scheme, math.lcm(n, 8 if low_bits else 1)))
    part = _part(spec, scheme, grid, n, low_bits)
    sparse = _sparse(source, fitted, grid, weights)
    decoder = Decoder(scheme, 1, spec.dtype.name)
    whole: Quantized | Combined = Combined((part, sparse)) if sparse else part
    return Lossy(spec, whole, dict(rule.asked), fitted, weights, decoder, coding)


def quantizer_for(rule: Rule, spec: TensorSpec, *, weighted: bool = False) -> Quantizer:
    """The quantizer that ``rule`` names, with its parameters; ``weighted`` if there is an importance, which a search serves."""
    if rule.scales == "row*column":
        return ColumnScaled(
            quantizer_for(replace(rule, scales="row"), spec, weighted=weighted),
            rule.scale_dtype or "float32",
            spec.dtype.name,
        )
    granularity: Any = {"group": rule.group, "tile": rule.tile}.get(rule.scales or "", rule.scales)
    search = weighted if rule.search is None else rule.search
    match rule.quantizer:
        case "uniform":
            # About what ``_overhead_nbytes`` will be: of a tensor of one array, and what the two of ``sparse`` add.
            n_chunks = Grid(spec.shape, choose_chunk_shape(spec.shape, spec.dtype.word.itemsize)).n_chunks
            node, chunk = 400 + 4 * len(spec.name), ENTRY_NBYTES + 2 * len(spec.name) + 20
            target = None
            if rule.step is None:
                overhead = 8.0 * (2 * node + n_chunks * chunk)
                target = Target(rule.bits, rule.nmse, rule.snr_db, rule.max_error, overhead)
            return Uniform(
                rule.step,
                target,
                rule.levels,
                LAGRANGIAN if rule.lagrangian is None else rule.lagrangian,
                outliers_overhead_bits=8.0 * (3 * node + 2 * n_chunks * (chunk + 20)),
                dtype=spec.dtype.name,
            )
        case "symmetric" | "affine":
            return Integers(
                int(rule.bits or 0),
                granularity,
                rule.quantizer == "affine",
                "mse" if search else "none",
                None if rule.low is None or rule.high is None else (rule.low, rule.high),
                rule.scale_dtype or "float32",
                spec.dtype.name,
            )
        case "codebook" if rule.codebook == "kmeans":
            levels, dimension = rule.levels or 0, rule.dimension or 1
            return Lloyd(levels) if dimension == 1 else Vectors(levels, dimension)
        case "codebook":
            made = nf4() if rule.codebook == "nf4" else fp4()
            return replace(
                made, granularity=granularity, scale_dtype=rule.scale_dtype or "float32", dtype=spec.dtype.name
            )
        case "float8":
            return Floats(
                f"float8_{rule.format}",
                granularity,
                search=search,
                scale_dtype=rule.scale_dtype or "float32",
                dtype=spec.dtype.name,
            )
        case "mxfp8":
            return mxfp8(f"float8_{rule.format}", search=search, dtype=spec.dtype.name)
        case "mxfp4":
            return mxfp4(search=search, dtype=spec.dtype.name)
        case "nvfp4":
            return nvfp4(search=search, dtype=spec.dtype.name)
    raise ValueError(f"quantizer {rule.quantizer!r} is unknown")


def outlier_positions(
    codes: Codes, grid: Grid, shape: tuple[int, ...], start: int, chunk: tuple[int, ...]
) -> np.ndarray:
    """int64: where in ``chunk`` (of full size, in row-major order) the outliers of its row block stand, ascending."""
    if codes.outliers is None:
        return np.empty(0, np.int64)
    _, index = within(codes.outliers.positions - start, shape, grid.box_in_block(chunk))
    positions: np.ndarray = np.ravel_multi_index(index, grid.chunk_shape)
    return positions


def _part(spec: TensorSpec, scheme: Scheme, grid: Grid, n: int, low_bits: int) -> Quantized:
    """The part of ``scheme``; levels that no code has are added where several codes share a byte."""

    def block_of(block: tuple[int, int]) -> tuple[int, ...]:
        *lead, _ = spec.shape
        if block[0] >= scheme.shape[0]:
            return (*lead, block[1])
        if len(lead) == 1:
            return block
        if block[0] > 1:
            raise ValueError(f"tiles of {block} in a tensor of {len(spec.shape)} axes")
        return (*(1 for _ in lead), block[1])

    def blocked(block: tuple[int, int], dtype: str) -> Blocked:
        extents = block_of(block)
        return Blocked(extents, dtype, blocked_array(grid, extents, "uint16" if dtype == "bfloat16" else dtype))

    scales = tuple(
        float(scale.values[0, 0])
        if scale.values is not None and scale.values.size == 1
        else blocked(scale.block, scale.dtype)
        for scale in scheme.scales
    )
    zero = scheme.zero_point
    levels = BASES[n] if n > 1 else scheme.levels
    book: np.ndarray | Array | None = None
    if scheme.codebook is not None:
        book = _padded(scheme.codebook, levels)
        if book.ndim > 1 or levels > MAX_LISTED:
            book = Array(book.shape, book.shape, "float32", zstd=True)
    return Quantized(
        spec.dtype,
        grid,
        levels,
        packed_array(grid, scheme.dimension, n),
        n,
        low_bits,
        packed_array(grid, scheme.dimension, per_byte(1 << low_bits)) if low_bits else None,
        blocked(zero.block, zero.dtype) if isinstance(zero, ZeroPoint) else zero,
        book,
        scales,
    )


def _sparse(source: TensorSource, fitted: Fitted, grid: Grid, weights: np.ndarray | None) -> Sparse | None:
    """The part for the outliers, with room for those of the chunk that has most; None if there are none."""
    if not fitted.may_have_outliers:
        return None
    most_gaps = most = 0
    for start, shape, chunks in grid.row_blocks():
        words = source.read(start, start + math.prod(shape))
        values = to_float32(words, source.spec.dtype).reshape(-1, shape[-1])
        first_row = start // shape[-1]
        codes = fitted.encode(values, first_row, _rows_of(weights, first_row, values.shape))
        if codes.outliers is None:
            continue
        for chunk in chunks:
            positions = outlier_positions(codes, grid, shape, start, chunk)
            most, most_gaps = max(most, positions.size), max(most_gaps, gaps(positions).size)
    return Sparse.new(source.spec.dtype, grid, most_gaps, most) if most else None


def _chunk_shape(spec: TensorSpec, scheme: Scheme, unit: int) -> tuple[int, ...]:
    """As for lossless tensors, but that no chunk cuts a block, a group of neighbours, or a byte."""
    chunk = list(choose_chunk_shape(spec.shape, spec.dtype.word.itemsize))
    blocks = [scale.block for scale in scheme.scales if scale.values is None or scale.values.size > 1]
    if isinstance(scheme.zero_point, ZeroPoint):
        blocks.append(scheme.zero_point.block)
    widths = [block[1] for block in blocks if block[1] < scheme.shape[1]]
    wide = math.lcm(scheme.dimension * unit, *widths)
    chunk[-1] = min(spec.shape[-1], -(-chunk[-1] // wide) * wide)
    if len(chunk) == 1 or all(n == 1 for n in chunk[:-1]):
        chunk[-1] = spec.shape[-1]  # a row block has whole rows
        if chunk[-1] * max(4, spec.dtype.word.itemsize) > MAX_CHUNK_NBYTES:
            raise ValueError(
                f"rows of {chunk[-1]} values are too long to be quantized: keep it lossless, or cut the rows"
            )
    elif len(chunk) == 2:
        heights = [block[0] for block in blocks if block[0] < scheme.shape[0]]
        high = math.lcm(1, *heights)
        chunk[0] = min(spec.shape[0], -(-chunk[0] // high) * high)
        if chunk[0] * spec.shape[1] * spec.dtype.word.itemsize > 2 * ROW_BLOCK_NBYTES:
            raise ValueError(f"tiles of {high} rows hold too much memory at a time: take lower tiles")
    return tuple(chunk)


def _importance(importance: Any, spec: TensorSpec, shape: tuple[int, int]) -> tuple[np.ndarray | None, Importance]:
    """(float32[cols] or float32[rows, cols] or None, the same as quantizers take it)."""
    if importance is None:
        return None, None
    weights = np.asarray(importance, np.float32)
    if weights.shape == shape[1:]:
        return weights, weights
    if weights.shape != spec.shape:
        raise ValueError(
            f"importance of shape {weights.shape}: one for each column or each value of {spec.shape} will do"
        )
    weights = weights.reshape(shape)
    return weights, ArrayMatrix(weights, max(1, (4 << 20) // max(1, shape[1])))


def _rows_of(weights: np.ndarray | None, first_row: int, shape: tuple[int, ...]) -> np.ndarray | None:
    return weights if weights is None or weights.ndim == 1 else weights[first_row : first_row + shape[0]]


def _padded(codebook: np.ndarray | None, levels: int) -> np.ndarray:
    assert codebook is not None
    missing = levels - codebook.shape[0]
    return np.concatenate([codebook, np.repeat(codebook[-1:], missing, axis=0)]) if missing else codebook

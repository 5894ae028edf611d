"""Quantize: bring a tensor to codes by a quantizer, and make the payloads of its chunks.

The way of a tensor: the quantizer is fitted to the values and gives a scheme; the scheme becomes a part with its arrays.
Then row block by row block: codes, packed bytes, payloads; and the values that a reader will get, for the digest and
the errors.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import numpy as np

from mzstore.arrays import Array
from mzstore.documents import parts_of
from mzstore.dtypes import DTYPES, DType
from mzstore.encode import Level, Payload
from mzstore.encodings import Coding, chunk_path, first_of
from mzstore.encodings.combined import Combined
from mzstore.encodings.positions import Index, gaps
from mzstore.encodings.quantized import MAX_LISTED, Blocked, Quantized, blocked_array, packed_array
from mzstore.encodings.sparse import Sparse, raw_values, within
from mzstore.grid import MAX_CHUNK_NBYTES, ROW_BLOCK_NBYTES, Grid, choose_chunk_shape
from mzstore.payload import compress, seal
from mzstore.quality import Errors
from mzstore.quantizers import ArrayMatrix, Codes, Fitted, Importance, Quantizer, Scheme, ZeroPoint
from mzstore.quantizers.decoding import Decoder, Local
from mzstore.quantizers.packing import BASES, pack, per_byte
from mzstore.sources import TensorSource
from mzstore.tensors import TensorSpec

# Codes differ from row to row by more than a Huffman table costs: 48 KiB are up to 0.01 bit better, and decoded a bit slower.
CODINGS = {level: Coding(block_nbytes=(128 if level == "fast" else 48) << 10) for level in get_args(Level)}


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
    fitted: Fitted = field(repr=False)
    _importance: np.ndarray | None = field(repr=False)
    _decoder: Decoder = field(repr=False)
    _coding: Coding
    _chunk_shape: tuple[int, ...] | None = None  # that is wanted
    _alone: bool = True  # whether outliers have a part of their own; else codes saturate
    # Row blocks that are done, by their start.
    trial: Mapping[int, "Encoded"] = field(repr=False, default_factory=dict)

    def bound(self, source: TensorSource, fitted: Fitted) -> "Lossy":
        """The same for other codes of ``source``."""
        return _bound(source, fitted, self.asked, self._importance, self._coding, self._chunk_shape, self._alone)

    def encode(self, words: np.ndarray, start: int, chunks: list[tuple[int, ...]]) -> "Encoded":
        """The ``chunks`` of a row block: ``words``, of the block's shape, ``start`` words into the tensor."""
        if start in self.trial:
            return self.trial[start]
        try:
            return self._encode(words, start, chunks)
        except ValueError as error:
            raise ValueError(f"tensor {self.spec.name!r}: {error}") from error

    def _encode(self, words: np.ndarray, start: int, chunks: list[tuple[int, ...]]) -> "Encoded":
        cols = words.shape[-1]
        first_row = start // cols
        values = to_float32(words, self.spec.dtype).reshape(-1, cols)
        codes = self.fitted.encode(values, first_row, _rows_of(self._importance, first_row, values.shape))
        if not self._alone:
            codes = replace(codes, outliers=None)
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
        errors = replace(
            Errors.between(words, decoded, self.spec.dtype), stored_nbytes=sum(len(payload.data) for payload in found)
        )
        return Encoded(found, decoded, errors)

    def _quantized_bodies(
        self, part: Quantized, codes: Codes, shape: tuple[int, ...], chunk: tuple[int, ...]
    ) -> Iterator[bytes | memoryview]:
        """Of all components for ``chunk``, out of the codes of its row block of ``shape``."""
        scheme = self.fitted.scheme
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
        return part.encode_elements(positions, own[index], self._coding)

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


@dataclass(frozen=True, slots=True)
class Encoded:
    """A row block: its payloads in the order in which they are written, the words that a reader gets, and the errors."""

    payloads: list[Payload]
    words: np.ndarray
    errors: Errors


def fit(
    source: TensorSource,
    quantizer: Quantizer,
    asked: Mapping[str, Any],
    importance: Any,
    coding: Coding,
    chunk_shape: tuple[int, ...] | None = None,
    *,
    alone: bool = True,
) -> Lossy:
    """``quantizer``, fitted to ``source``. Raises ValueError for what it cannot do.

    asked        what the recipe said, for the tensor's attributes
    importance   None, float32[cols] or an array of the tensor's shape: how much the squared error of each value matters
    chunk_shape  of the words; None: what suits the codes and scales
    alone        whether outliers have a part of their own; else codes saturate, and other parts may put that right
    """
    matrix = SourceMatrix(source)
    weights = weights_of(importance, source.spec)
    fitted = quantizer.fit(matrix, _importance(weights))
    return _bound(source, fitted, dict(asked), weights, coding, chunk_shape, alone)


def _bound(
    source: TensorSource,
    fitted: Fitted,
    asked: dict[str, Any],
    weights: np.ndarray | None,
    coding: Coding,
    chunk_shape: tuple[int, ...] | None,
    alone: bool,
) -> Lossy:
    spec, scheme = source.spec, fitted.scheme
    n = per_byte(scheme.levels) if scheme.levels <= 256 and scheme.dimension == 1 else 1
    low_bits = max(0, (scheme.levels - 1).bit_length() - 8)
    if chunk_shape is not None and chunk_shape[-1] < spec.shape[-1]:  # as many codes to a byte as it does not cut
        n = next(k for k in BASES if k <= n and chunk_shape[-1] % k == 0)
    unit = math.lcm(n, 8 if low_bits else 1)
    grid = Grid(spec.shape, chunk_shape or _chunk_shape(spec, scheme, unit))
    part = _part(spec, scheme, grid, n, low_bits)
    sparse = _sparse(source, fitted, grid, weights) if alone else None
    decoder = Decoder(scheme, 1, spec.dtype.name)
    whole: Quantized | Combined = Combined((part, sparse), ("replace",)) if sparse else part
    return Lossy(spec, whole, asked, fitted, weights, decoder, coding, chunk_shape, alone)


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
            most, most_gaps = max(most, positions.size), max(most_gaps, gaps(positions)[0].size)
    if not most:
        return None
    return Sparse.new(source.spec.dtype, grid, Index(), most_gaps, raw_values(source.spec.dtype, grid, most))


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


def weights_of(importance: Any, spec: TensorSpec) -> np.ndarray | None:
    """How much the squared errors of a tensor matter, as it was given for it: float32 [cols] or [rows, cols], or None."""
    if importance is None:
        return None
    *lead, cols = spec.shape
    weights = np.asarray(importance, np.float32)
    if weights.shape == (cols,):
        return weights
    if weights.shape != spec.shape:
        raise ValueError(
            f"importance of shape {weights.shape}: one for each column or each value of {spec.shape} will do"
        )
    return weights.reshape(math.prod(lead), cols)


def _importance(weights: np.ndarray | None) -> Importance:
    """``weights`` as quantizers take them."""
    if weights is None or weights.ndim == 1:
        return weights
    return ArrayMatrix(weights, max(1, (4 << 20) // max(1, weights.shape[1])))


def _rows_of(weights: np.ndarray | None, first_row: int, shape: tuple[int, ...]) -> np.ndarray | None:
    return weights if weights is None or weights.ndim == 1 else weights[first_row : first_row + shape[0]]


def _padded(codebook: np.ndarray | None, levels: int) -> np.ndarray:
    assert codebook is not None
    missing = levels - codebook.shape[0]
    return np.concatenate([codebook, np.repeat(codebook[-1:], missing, axis=0)]) if missing else codebook

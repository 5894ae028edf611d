"""Quantizers: which codes, scales, zero points and codebook stand for a tensor's values, and at what error.

A tensor is seen as a matrix: rows are all leading axes, columns the last one; one axis is one row. A quantizer works in
two stages. ``fit`` reads the matrix by row blocks and gives a frozen value that holds everything global; its ``encode``
turns any row block into codes, with the scales and zero points that belong to those rows. Memory is bounded by row blocks,
and the same input gives the same codes. Nothing here knows storage or format.

    decoded value = table(code) * scale_1 * scale_2 ...        in float32, from left to right, each product rounded

where table(code) is code - zero_point, or codebook[code]. The caller rounds that to the dtype of the tensor.

Each module holds one family: ``ecsq`` (a uniform step, entropy coded), ``integers``, ``codebooks``, ``floats``.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Protocol

import numpy as np

from mzstore.dtypes import DTYPES

MAX_LEVELS = 1 << 16
MAX_DIMENSION = 8
PIECE = 1 << 16  # values that stay in the second-level cache
# The greatest value that decoding may give, by the dtype of the tensor.
GREATEST = MappingProxyType({"float32": 3.4e38, "float64": 3.4e38, "bfloat16": 3.38e38, "float16": 65504.0})
SCALE_DTYPES = ("float32", "float16", "bfloat16")

Shape = tuple[int, int]


class Matrix(Protocol):
    """A tensor as a matrix that can be read by row blocks any number of times."""

    @property
    def shape(self) -> Shape: ...

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, float32[n, cols]), every row once, in order. A block is valid until the next one is asked for."""


Importance = (
    np.ndarray | Matrix | None
)  # float32[cols], or one weight for each element in blocks like the matrix's, or all 1


@dataclass(frozen=True, slots=True, eq=False)
class ArrayMatrix:
    """An array in memory as a Matrix; ``block_rows`` rows at a time. A one-dimensional array is one row."""

    array: np.ndarray
    block_rows: int = 1 << 30

    @property
    def shape(self) -> Shape:
        *lead, cols = self.array.shape or (1,)
        return math.prod(lead), cols

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        rows, cols = self.shape
        matrix = self.array.reshape(rows, cols)
        for first in range(0, rows, self.block_rows):
            yield first, np.ascontiguousarray(matrix[first : first + self.block_rows], np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Scale:
    """One value for each block of ``block`` (rows, columns) elements of the matrix; those at the edges may be smaller.

    values  float32[ceil(rows / block rows), ceil(cols / block cols)], each one exact in ``dtype``, the type that
            they are stored in; None where they come with the codes of each row block (see ``local``)
    """

    block: Shape
    dtype: str = "float32"
    values: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.dtype not in SCALE_DTYPES:
            raise ValueError(f"scales in {self.dtype}: one of {', '.join(SCALE_DTYPES)}")
        _check_block(self.block)

    def grid(self, rows: int, cols: int) -> Shape:
        """How many values there are for ``rows`` rows of ``cols`` columns, down and across."""
        return -(-rows // self.block[0]), -(-cols // self.block[1])


@dataclass(frozen=True, slots=True, eq=False)
class ZeroPoint:
    """Integers for each block, as in Scale; ``dtype`` is uint8 or uint16."""

    block: Shape
    dtype: str = "uint8"
    values: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.dtype not in ("uint8", "uint16"):
            raise ValueError(f"zero points in {self.dtype}: uint8 or uint16")
        _check_block(self.block)


@dataclass(frozen=True, slots=True, eq=False)
class Scheme:
    """All that decoding needs besides the codes and what is local to their rows. One that exists is valid.

    shape       rows and columns of the matrix
    levels      codes are 0 .. levels - 1
    zero_point  one integer (which may be negative), or one for each block; 0 where there is a codebook
    codebook    float32[levels], or float32[levels, d] where a code stands for d neighbours in a row; None: uniform
    scales      multiplied from left to right; may be none
    """

    shape: Shape
    levels: int
    zero_point: int | ZeroPoint = 0
    codebook: np.ndarray | None = None
    scales: tuple[Scale, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.levels <= MAX_LEVELS:
            raise ValueError(f"{self.levels} levels: 1 to {MAX_LEVELS} will do")
        if self.codebook is not None:
            if self.codebook.dtype != np.float32 or self.codebook.shape[0] != self.levels or self.codebook.ndim > 2:
                raise ValueError(f"a codebook of {self.codebook.dtype} {self.codebook.shape} for {self.levels} levels")
            if not np.isfinite(self.codebook).all():
                raise ValueError("a codebook with NaN or infinity")
            if self.zero_point != 0:
                raise ValueError("both a codebook and a zero point")
        if self.shape[1] % self.dimension:
            raise ValueError(f"{self.shape[1]} columns are not divided by {self.dimension} weights for one code")

    @property
    def dimension(self) -> int:
        """Weights for one code."""
        return 1 if self.codebook is None or self.codebook.ndim == 1 else self.codebook.shape[1]

    @property
    def code_dtype(self) -> np.dtype:
        return np.dtype(np.uint8 if self.levels <= 256 else np.uint16)

    def local(self, block: Shape) -> bool:
        """Whether values of this block shape belong to rows: then each row block brings its own."""
        return block[0] < self.shape[0]

    def row_multiple(self) -> int:
        """Row blocks that are encoded begin at multiples of this many rows, and end there or at the last row."""
        blocks = [scale.block for scale in self.scales]
        if isinstance(self.zero_point, ZeroPoint):
            blocks.append(self.zero_point.block)
        return int(np.lcm.reduce([block[0] for block in blocks if self.local(block)] or [1]))


@dataclass(frozen=True, slots=True, eq=False)
class Outliers:
    """Elements that the codes do not reach, ascending: ``positions`` int64[n] in the matrix, row * cols + column."""

    positions: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Codes:
    """A row block, encoded.

    codes        uint8 or uint16 [rows, cols / dimension], contiguous
    scales       for each scale of the scheme float32 values of its grid over these rows: all of them for a local one,
                 else those of the scheme
    zero_points  int32 values of its grid over these rows, or None where the scheme has one integer or a codebook
    outliers     None where the codes reach everything
    """

    codes: np.ndarray
    scales: tuple[np.ndarray, ...] = ()
    zero_points: np.ndarray | None = None
    outliers: Outliers | None = None


class Fitted(Protocol):
    """A quantizer, bound to one matrix."""

    @property
    def scheme(self) -> Scheme: ...

    @property
    def may_have_outliers(self) -> bool:
        """Whether ``encode`` may find elements that the codes do not reach."""

    def encode(self, block: np.ndarray, first_row: int, importance: np.ndarray | None = None) -> Codes:
        """The codes of ``block`` (float32[n, cols], rows from ``first_row`` on, a multiple of ``scheme.row_multiple()``).

        ``importance``: float32[cols], float32[n, cols] or None, as it was given to ``fit``.
        Raises ValueError for NaN, infinity and rows that do not begin a block.
        """


class Quantizer(Protocol):
    def fit(self, matrix: Matrix, importance: Importance = None) -> Fitted:
        """Read the matrix and decide everything global. Raises ValueError, saying what will not do: of what it has read,
        ``encode`` takes all."""


def dequantize(
    codes: np.ndarray, scheme: Scheme, scales: tuple[np.ndarray, ...] = (), zero_points: np.ndarray | None = None
) -> np.ndarray:
    """float32[rows, cols] for the codes of a row block: what every other decoder must give, bit for bit.

    ``scales`` and ``zero_points`` are those of ``Codes``: the values over these rows.
    """
    values: np.ndarray
    zero = scheme.zero_point
    if scheme.codebook is not None:
        values = scheme.codebook[codes].reshape(codes.shape[0], -1)
    elif isinstance(zero, ZeroPoint):
        assert zero_points is not None
        values = (codes.astype(np.int32) - spread(zero_points, zero.block, codes.shape)).astype(np.float32)
    else:
        values = (codes.astype(np.int32) - zero).astype(np.float32)
    for scale, own in zip(scheme.scales, scales, strict=True):
        values = values * spread(own, scale.block, (values.shape[0], values.shape[1]))
    return values


def without_overflow(codes: Codes, scheme: Scheme, dtype: str, block: np.ndarray) -> Codes:
    """The ``codes`` of ``block``; those that decode to infinity in ``dtype`` are moved to the next finite value towards 0."""
    # Rounding makes no value eight times as great.
    if not block.size:
        return codes
    low, high = extremes(block)
    if max(-low, high) < GREATEST[dtype] / 8:
        return codes
    own = codes.codes.copy()
    ascending = np.arange(scheme.levels) if scheme.codebook is None else np.argsort(scheme.codebook, kind="stable")
    rank = np.argsort(ascending)
    while True:
        with np.errstate(over="ignore"):
            values = dequantize(own, scheme, codes.scales, codes.zero_points)
        beyond = ~np.isfinite(round_to(values, dtype))
        if not beyond.any():
            return replace(codes, codes=own)
        own[beyond] = ascending[rank[own[beyond]] - np.sign(values[beyond]).astype(np.int64)]


def spread(values: np.ndarray, block: Shape, shape: tuple[int, ...]) -> np.ndarray:
    """``values`` of a grid of blocks, so that they broadcast over ``shape`` (rows, cols)."""
    rows, cols = shape
    if values.shape[0] > 1:
        values = np.repeat(values, block[0], axis=0)[:rows]
    if values.shape[1] > 1:
        values = np.repeat(values, block[1], axis=1)[:, :cols]
    return values


def round_to(values: np.ndarray, dtype: str) -> np.ndarray:
    """float32 ``values``, rounded to ``dtype`` to nearest even."""
    if dtype == "float32":
        return values.astype(np.float32)
    with np.errstate(over="ignore"):
        return values.astype(DTYPES[dtype].numpy).astype(np.float32)


def check_finite(low: float, high: float) -> None:
    """``low`` and ``high`` are what ``min`` and ``max`` give, which is NaN where any value is."""
    if not (np.isfinite(low) and np.isfinite(high)):
        kind = "NaN" if np.isnan(low) or np.isnan(high) else "infinity"
        raise ValueError(f"there is {kind} among the values: it cannot be quantized; keep this tensor lossless")


def extremes(values: np.ndarray) -> tuple[float, float]:
    """The least and the greatest of ``values`` (float32, not empty), NaN if there is any; read from memory but once."""
    flat = values.reshape(-1)
    pieces = [flat[i : i + PIECE] for i in range(0, flat.size, PIECE)]
    found = np.array([(piece.min(), piece.max()) for piece in pieces])
    return float(found[:, 0].min()), float(found[:, 1].max())


def checked_block(block: np.ndarray, scheme: Scheme, first_row: int) -> np.ndarray:
    """``block``, contiguous, if ``scheme`` can encode it."""
    rows, cols = scheme.shape
    if block.ndim != 2 or block.shape[1] != cols or not 0 <= first_row <= rows - block.shape[0]:
        raise ValueError(f"a block of {block.shape} from row {first_row} on does not lie in a matrix of {scheme.shape}")
    many, end = scheme.row_multiple(), first_row + block.shape[0]
    if first_row % many or (end % many and end != rows):
        raise ValueError(
            f"rows {first_row} to {end} do not begin and end at multiples of {many} rows, which share scales"
        )
    block = np.ascontiguousarray(block, np.float32)
    _check_values(block)
    return block


def checked_weights(importance: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray | None:
    """float32 ``importance`` that broadcasts over ``shape`` (rows, cols): [1, cols] or [rows, cols]."""
    if importance is None:
        return None
    weights = np.asarray(importance, np.float32)
    if weights.shape == shape[1:]:
        weights = weights[None]
    if weights.shape not in (shape, (1, *shape[1:])):
        raise ValueError(
            f"importance of shape {importance.shape} for values of {shape}: one for each column or element"
        )
    if weights.size and not (float(weights.min()) >= 0 and np.isfinite(float(weights.max()))):
        raise ValueError("importance must be finite and not negative")
    return weights


def weighted_blocks(
    matrix: Matrix, importance: Importance, *, finite: bool = False
) -> Iterator[tuple[int, np.ndarray, np.ndarray | None]]:
    """(first row, block, weights that broadcast over it or None), all checked; but values not if ``finite`` says that it is done."""
    rows, cols = matrix.shape
    if importance is None or isinstance(importance, np.ndarray):
        if importance is not None and importance.shape != (cols,):
            raise ValueError(f"importance of shape {importance.shape} for {cols} columns; elements come as a Matrix")
        for first, block in matrix.blocks():
            if not finite:
                _check_values(block)
            yield first, block, checked_weights(importance, block.shape)
        return
    if importance.shape != (rows, cols):
        raise ValueError(f"importance of shape {importance.shape} for a matrix of {(rows, cols)}")
    for (first, block), (at, weights) in zip(matrix.blocks(), importance.blocks(), strict=True):
        if at != first or weights.shape != block.shape:
            raise ValueError(
                f"importance comes in rows {at} + {weights.shape[0]}, values in {first} + {block.shape[0]}"
            )
        if not finite:
            _check_values(block)
        yield first, block, checked_weights(weights, block.shape)


def _check_values(block: np.ndarray) -> None:
    if block.size:
        check_finite(*extremes(block))


def _check_block(block: Shape) -> None:
    if min(block) < 1:
        raise ValueError(f"blocks of {block} elements")

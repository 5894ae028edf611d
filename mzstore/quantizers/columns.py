"""Columns: scales of rows and columns together, whose product holds for an element (an outer product).

The scale of a column is its root mean square, relative to that of all values: any quantizer then works on columns that are
alike. What it does to the rows of those gives the second factor.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from mzstore.quantizers import (
    Codes,
    Fitted,
    Importance,
    Matrix,
    Quantizer,
    Scale,
    Scheme,
    Shape,
    checked_weights,
    weighted_blocks,
    without_overflow,
)
from mzstore.quantizers.integers import usable_scale


@dataclass(frozen=True, slots=True)
class Multiplied:
    """``matrix`` with each column multiplied by its factor (float32[cols])."""

    matrix: Matrix
    factors: np.ndarray

    @property
    def shape(self) -> Shape:
        return self.matrix.shape

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        for first, block in self.matrix.blocks():
            with np.errstate(over="ignore"):  # infinity is refused
                scaled = block * self.factors
            yield first, scaled


@dataclass(frozen=True, slots=True)
class ColumnScaled:
    """``quantizer`` on columns that were divided by their scales, which are stored in ``scale_dtype``; decoded to ``dtype``."""

    quantizer: Quantizer
    scale_dtype: str = "float32"
    dtype: str = "float32"

    def fit(self, matrix: Matrix, importance: Importance = None) -> "FittedColumnScaled":
        rows, cols = matrix.shape
        squares = np.zeros(cols)
        for _, block, _ in weighted_blocks(matrix, None):
            squares += np.square(block, dtype=np.float64).sum(axis=0)
        mean = float(squares.mean()) if cols else 0.0
        scale = usable_scale(np.sqrt(squares / mean) if mean else squares, self.scale_dtype, 1.0)
        # The error of a column is multiplied by its scale once more.
        own: Importance = scale**2
        if isinstance(importance, np.ndarray):
            own = importance * scale**2
        elif importance is not None:
            own = Multiplied(importance, scale**2)
        fitted = self.quantizer.fit(Multiplied(matrix, 1 / scale), own)
        column = Scale((max(1, rows), 1), self.scale_dtype, scale[None])
        return FittedColumnScaled(
            replace(fitted.scheme, scales=(*fitted.scheme.scales, column)), fitted, scale, self.dtype
        )


@dataclass(frozen=True, slots=True, eq=False)
class FittedColumnScaled:
    """``scale``: float32[cols]."""

    scheme: Scheme
    fitted: Fitted
    scale: np.ndarray
    dtype: str

    @property
    def may_have_outliers(self) -> bool:
        return self.fitted.may_have_outliers

    def encode(self, block: np.ndarray, first_row: int, importance: np.ndarray | None = None) -> Codes:
        weights = checked_weights(importance, block.shape)
        own = np.broadcast_to(self.scale**2 if weights is None else weights * self.scale**2, block.shape)
        codes = self.fitted.encode(block * (1 / self.scale), first_row, own)
        whole = replace(codes, scales=(*codes.scales, self.scale[None]))
        return without_overflow(whole, self.scheme, self.dtype, np.asarray(block))

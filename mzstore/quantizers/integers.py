"""Integers of a fixed width: the classical int8 and int4, symmetric or affine, one scale for each block of values.

    symmetric   value = (code - zero) * scale, zero = 2 ** (bits - 1) - 1: codes 0 .. 2 * zero, 0 is exact
    affine      value = (code - zero of the block) * scale, codes 0 .. 2 ** bits - 1, 0 is exact (Jacob et al., 2018)

The range of a block is that of its values (dynamic), given (static), or the part of it with the least weighted squared
error (``clip="mse"``, a search over shrunken ranges as in llama.cpp and OMSE): values beyond saturate.
"""

from dataclasses import dataclass

import numpy as np

from mzstore.dtypes import DTYPES
from mzstore.quantizers import (
    GREATEST,
    Codes,
    Importance,
    Matrix,
    Scale,
    Scheme,
    Shape,
    ZeroPoint,
    check_finite,
    checked_block,
    checked_weights,
    round_to,
    spread,
    without_overflow,
)
from mzstore.quantizers.ranges import (
    Granularity,
    block_shape,
    by_block,
    check_blocks,
    extremes,
    of_least,
    summed_losses,
    weights_by_block,
)

MAX_BITS = 16
ROOM = 3.36e38  # what a scale near the greatest float32 may lead to, before the scale is rounded
GREATEST_SCALE = {"float16": 65504.0, "bfloat16": 3.38e38, "float32": 3.4e38}
SHRINKS = tuple(1 - i / 32 for i in range(20))  # of the range, in the search for the one with the least error


@dataclass(frozen=True, slots=True)
class Integers:
    """``bits`` 1..16; ``granularity`` as in ``ranges``.

    affine       the range need not be symmetric: a zero point for each block. A width of 1 needs it
    clip         "none": the range of the values; "mse": the one with the least error
    static       (lowest, highest) for all blocks: the data is not asked
    scale_dtype  scales are rounded to it before the codes are made
    dtype        of the decoded values, none of which is infinite
    """

    bits: int
    granularity: Granularity = "tensor"
    affine: bool = False
    clip: str = "none"
    static: tuple[float, float] | None = None
    scale_dtype: str = "float32"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= MAX_BITS:
            raise ValueError(f"integers of {self.bits} bits: 1 to {MAX_BITS} will do")
        if self.bits == 1 and not self.affine:
            raise ValueError("symmetric integers need 2 bits: of 1 bit only 0 is left; take affine ones")
        if self.clip not in ("none", "mse"):
            raise ValueError(f"clip = {self.clip!r}: 'none' or 'mse'")
        if self.static is not None:
            check_finite(*self.static)
            if not self.static[0] < self.static[1]:
                raise ValueError(f"a static range from {self.static[0]} to {self.static[1]} is empty")
            if self.clip == "mse":
                raise ValueError("a static range is not searched: clip is 'none'")

    @property
    def levels(self) -> int:
        return 1 << self.bits if self.affine else (1 << self.bits) - 1

    def fit(self, matrix: Matrix, importance: Importance = None) -> "FittedIntegers":
        """Scales that belong to no rows (tensor, columns) are made here, in one pass or, with a search, in two."""
        block = block_shape(self.granularity, matrix.shape)
        zero_dtype = "uint8" if self.bits <= 8 else "uint16"
        zero: int | ZeroPoint = ZeroPoint(block, zero_dtype) if self.affine else (self.levels - 1) // 2
        local = block[0] < matrix.shape[0]
        fitted = FittedIntegers(self, Scheme(matrix.shape, self.levels, zero, None, (Scale(block, self.scale_dtype),)))
        if local or self.static is not None:
            check_blocks(matrix, importance, block, self._checked_range)
        if local and self.static is None:
            return fitted
        rows, cols = matrix.shape
        if self.static is not None:
            grid = fitted.scheme.scales[0].grid(rows, cols)
            low, high = (np.full(grid, end, np.float32) for end in self.static)
        else:
            low, high = extremes(matrix, importance, block)
        scale, zeros = self.from_range(low, high)
        if self.clip == "mse":
            scale, zeros = self._search(matrix, importance, block, low, high)
        if self.affine:
            zero = ZeroPoint(block, zero_dtype, zeros)
        return FittedIntegers(
            self, Scheme(matrix.shape, self.levels, zero, None, (Scale(block, self.scale_dtype, scale),))
        )

    def from_range(self, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(scales, zero points int32) of blocks with values from ``low`` to ``high``; 0 is made to lie between them.

        A block of zeros has scale 1. Raises ValueError if a scale is too small or too great for its dtype.
        """
        low, high = np.minimum(low, 0).astype(np.float64), np.maximum(high, 0).astype(np.float64)
        if not self.affine:
            most = (self.levels - 1) // 2
            scale = usable_scale(np.maximum(-low, high) / most, self.scale_dtype, most, self.dtype)
            return scale, np.full(scale.shape, most, np.int32)
        scale = usable_scale((high - low) / (self.levels - 1), self.scale_dtype, 1.0)
        zeros = self._zero_of(low, scale)
        scale = _stepped_down(scale, self.scale_dtype, np.maximum(zeros, self.levels - 1 - zeros), self.dtype)
        return scale, self._zero_of(low, scale)

    def _zero_of(self, low: np.ndarray, scale: np.ndarray) -> np.ndarray:
        zeros: np.ndarray = np.clip(np.rint(-low / scale), 0, self.levels - 1).astype(np.int32)
        return zeros

    def _checked_range(self, low: np.ndarray, high: np.ndarray) -> None:
        if self.static is None:
            self.from_range(low, high)

    def to_codes(self, values: np.ndarray, scale: np.ndarray, zeros: np.ndarray) -> np.ndarray:
        """int32 codes of ``values``, of a shape that scales and zero points broadcast to."""
        k = np.rint(values / scale) + zeros
        out: np.ndarray = np.clip(k, 0, self.levels - 1, out=k).astype(np.int32)
        return out

    def best(
        self, values: np.ndarray, weights: np.ndarray | None, low: np.ndarray, high: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(scales, zero points) with the least error among shrunken ranges; ``values`` [..., members of the block]."""
        best_scale, best_zero = self.from_range(low, high)
        least = self._loss(values, weights, best_scale, best_zero)
        for shrink in SHRINKS[1:]:
            scale, zeros = self.from_range(low * shrink, high * shrink)
            loss = self._loss(values, weights, scale, zeros)
            better = loss < least
            least = np.where(better, loss, least)
            best_scale, best_zero = np.where(better, scale, best_scale), np.where(better, zeros, best_zero)
        return best_scale, best_zero

    def _loss(self, values: np.ndarray, weights: np.ndarray | None, scale: np.ndarray, zeros: np.ndarray) -> np.ndarray:
        scale, zeros = scale[..., None], zeros[..., None]
        error = ((self.to_codes(values, scale, zeros) - zeros) * scale - values).astype(np.float64)
        error *= error
        if weights is not None:
            error *= weights
        out: np.ndarray = error.sum(axis=-1)
        return out

    def _search(
        self, matrix: Matrix, importance: Importance, block: Shape, low: np.ndarray, high: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """``best`` for blocks that reach over all rows: the loss of each shrunken range, summed over row blocks."""
        choices = [self.from_range(low * shrink, high * shrink) for shrink in SHRINKS]
        losses = summed_losses(
            matrix,
            importance,
            block,
            choices,
            low.shape,
            lambda members, own, choice: self._loss(members, own, *choice),
        )
        scales, zero_points = zip(*choices, strict=True)
        return of_least(scales, losses), of_least(zero_points, losses)


@dataclass(frozen=True, slots=True, eq=False)
class FittedIntegers:
    quantizer: Integers
    scheme: Scheme

    @property
    def may_have_outliers(self) -> bool:
        return False

    def encode(self, block: np.ndarray, first_row: int, importance: np.ndarray | None = None) -> Codes:
        values = checked_block(block, self.scheme, first_row)
        weights = checked_weights(importance, values.shape)
        (scale,) = self.scheme.scales
        if scale.values is not None and self.scheme.local(scale.block):  # static
            first, last = first_row // scale.block[0], -(-(first_row + values.shape[0]) // scale.block[0])
            own = scale.values[first:last]
            zeros = self._zeros(first, last)
        elif scale.values is not None:
            own, zeros = scale.values, self._zeros(0, None)
        else:
            own, zeros = self._local(values, weights, scale.block)
        codes = self.quantizer.to_codes(
            values, spread(own, scale.block, values.shape), spread(zeros, scale.block, values.shape)
        )
        affine = isinstance(self.scheme.zero_point, ZeroPoint)
        found = Codes(codes.astype(self.scheme.code_dtype), (own,), zeros if affine else None)
        return without_overflow(found, self.scheme, self.quantizer.dtype, values)

    def _zeros(self, first: int, last: int | None) -> np.ndarray:
        zero = self.scheme.zero_point
        if isinstance(zero, ZeroPoint):
            assert zero.values is not None
            return zero.values[first:last]
        return np.full((1, 1), zero, np.int32)

    def _local(self, values: np.ndarray, weights: np.ndarray | None, block: Shape) -> tuple[np.ndarray, np.ndarray]:
        members = by_block(values, block)
        low, high = members.min(axis=-1), members.max(axis=-1)
        if self.quantizer.clip == "none":
            return self.quantizer.from_range(low, high)
        return self.quantizer.best(members, weights_by_block(weights, values.shape, block), low, high)


def usable_scale(wanted: np.ndarray, dtype: str, most: float, decoded: str = "float32") -> np.ndarray:
    """float32 scales, exact in ``dtype``, near ``wanted`` (>= 0); 1 where that is 0, the least positive one where it rounds
    to 0. What they multiply is at most ``most``, and stays finite in ``decoded``. Raises ValueError if a scale overflows."""
    scale = round_to(np.where(wanted > 0, np.minimum(wanted, min(GREATEST[decoded], ROOM) / most), 1), dtype)
    if not np.isfinite(scale).all():
        raise ValueError(f"a scale of {float(wanted.max()):g} is too great for {dtype}: take another scale dtype")
    least = {"float16": 2.0**-24, "bfloat16": 2.0**-126, "float32": 2.0**-126}[dtype]
    return _stepped_down(np.maximum(scale, np.float32(least)), dtype, most, decoded)


def _stepped_down(scale: np.ndarray, dtype: str, most: float | np.ndarray, decoded: str) -> np.ndarray:
    """``scale``, the next lower one of ``dtype`` where ``most`` times it is infinity in ``decoded``: it was rounded up."""
    with np.errstate(over="ignore"):
        beyond = ~np.isfinite(round_to(scale * np.float32(most), decoded))
    if not beyond.any():
        return scale
    own = DTYPES[dtype]
    lower = (scale.astype(own.numpy).view(own.word) - own.word.type(1)).view(own.numpy).astype(np.float32)
    return np.where(beyond, lower, scale)

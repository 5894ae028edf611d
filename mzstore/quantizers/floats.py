"""Narrow floats with block scales: a code is the bit pattern of the float, the codebook its values.

float8_e4m3fn, float8_e5m2   OCP 8-bit floating point specification (OFP8) v1.0; the scale takes the greatest value
                             of a block to the greatest of the float
mxfp4, mxfp8                 OCP Microscaling (MX) v1.0: groups of 32, the scale a power of two (E8M0),
                             2 ** (floor(log2(greatest)) - exponent of the greatest of the float)
nvfp4                        groups of 16 e2m1 with a scale in float8_e4m3fn, times one float32 for the tensor,
                             greatest / (6 * 448) (NVIDIA, "NVFP4", 2025)
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
    checked_block,
    checked_weights,
    spread,
    without_overflow,
)
from mzstore.quantizers.integers import GREATEST_SCALE, usable_scale
from mzstore.quantizers.ranges import (
    Granularity,
    block_shape,
    by_block,
    check_blocks,
    greatest_values,
    of_least,
    summed_losses,
    weights_by_block,
)

ELEMENTS = {  # bits of a code, greatest finite value, exponent of that
    "float8_e4m3fn": (8, 448.0, 8),
    "float8_e5m2": (8, 57344.0, 15),
    "float4_e2m1fn": (4, 6.0, 2),
}
E4M3_GREATEST = 448.0
E4M3_LEAST = 2.0**-9
MX_GROUP = 32
NV_GROUP = 16
SHRINKS = tuple(1 - i / 32 for i in range(-4, 14))  # of the scale, in the search for the one with the least error


def codebook(element: str) -> np.ndarray:
    """float32[2 ** bits]: the value of every bit pattern; 0 for the patterns of NaN and infinity, which encoding never gives."""
    bits = _element(element)[0]
    patterns = np.arange(1 << bits, dtype=np.uint8)
    with np.errstate(invalid="ignore"):
        values = patterns.view(DTYPES[element].numpy).astype(np.float32)
    return np.where(np.isfinite(values), values, np.float32(0))


@dataclass(frozen=True, slots=True)
class Floats:
    """``element`` one of ELEMENTS.

    scaling  "absmax": greatest value to greatest float; "power of two": as MX has it; "two levels": as NVFP4 has it
    search   True: of scales nearby, the one with the least weighted squared error
    dtype    of the decoded values, none of which is infinite
    """

    element: str
    granularity: Granularity = "tensor"
    scaling: str = "absmax"
    search: bool = False
    scale_dtype: str = "float32"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        _element(self.element)
        needed = {"absmax": None, "power of two": "bfloat16", "two levels": "float16"}
        if self.scaling not in needed:
            raise ValueError(f"scaling {self.scaling!r}: one of {', '.join(needed)}")
        if needed[self.scaling] not in (None, self.scale_dtype):
            raise ValueError(f"scales of {self.scaling} are kept in {needed[self.scaling]}, not {self.scale_dtype}")

    def fit(self, matrix: Matrix, importance: Importance = None) -> "FittedFloats":
        block = block_shape(self.granularity, matrix.shape)
        rows, cols = max(1, matrix.shape[0]), max(1, matrix.shape[1])
        table = codebook(self.element)
        local = block[0] < matrix.shape[0]
        own: np.ndarray | None = None
        scales: tuple[Scale, ...] = (Scale(block, self.scale_dtype),)
        if self.scaling == "two levels" or not local:
            greatest = greatest_values(matrix, importance, block if not local else (rows, cols))
            if self.scaling == "two levels":
                most = float(greatest.max(initial=0.0))
                outer = usable_scale(
                    np.full((1, 1), most / (_element(self.element)[1] * E4M3_GREATEST)),
                    "float32",
                    _element(self.element)[1] * E4M3_GREATEST,
                )
                scales = (Scale(block, self.scale_dtype), Scale((rows, cols), "float32", outer))
            if not local:
                own = self.scale_of(greatest, _outer(scales))
                if self.search:
                    own = self._search(matrix, importance, block, own, table)
                scales = (Scale(block, self.scale_dtype, own), *scales[1:])
        else:
            check_blocks(
                matrix, importance, block, lambda low, high: self.scale_of(np.maximum(-low, high), np.float32(1))
            )
        return FittedFloats(self, Scheme(matrix.shape, table.size, 0, table, scales))

    def scale_of(self, greatest: np.ndarray, outer: np.float32) -> np.ndarray:
        """float32 scales for blocks whose values reach up to ``greatest``; ``outer`` is multiplied onto them."""
        _, most, exponent = _element(self.element)
        if self.scaling == "power of two":
            with np.errstate(divide="ignore"):
                power = np.floor(np.log2(greatest.astype(np.float64))) - exponent
            out: np.ndarray = np.exp2(np.clip(np.where(greatest > 0, power, 0), -126, 127)).astype(np.float32)
            return out
        wanted = greatest.astype(np.float64) / most / outer
        return (
            _e4m3(wanted) if self.scaling == "two levels" else usable_scale(wanted, self.scale_dtype, most, self.dtype)
        )

    def to_codes(self, values: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """uint8 codes: ``values`` / ``scale``, rounded to nearest even and saturated."""
        bits, most, _ = _element(self.element)
        scaled = np.clip(values / scale, -most, most)
        codes = scaled.astype(np.float32).astype(DTYPES[self.element].numpy).view(np.uint8)
        out: np.ndarray = codes & np.uint8((1 << bits) - 1)
        return out

    def nearby(self, scale: np.ndarray, outer: np.float32) -> list[np.ndarray]:
        """The scales that a search tries, ``scale`` first."""
        if self.scaling == "power of two":
            greater = np.where(scale <= GREATEST[self.dtype] / (2 * _element(self.element)[1]), scale * 2, scale)
            return [scale, greater, np.maximum(scale / 2, np.float32(2.0**-126))]
        most = GREATEST_SCALE[self.scale_dtype]
        tried = [np.minimum(scale.astype(np.float64) * shrink, most) for shrink in SHRINKS]
        rounded = (
            _e4m3
            if self.scaling == "two levels"
            else lambda wanted: usable_scale(wanted, self.scale_dtype, _element(self.element)[1], self.dtype)
        )
        return [scale, *(rounded(wanted) for wanted in tried)]

    def loss(
        self, members: np.ndarray, weights: np.ndarray | None, scale: np.ndarray, outer: np.float32, table: np.ndarray
    ) -> np.ndarray:
        """The weighted squared error of each block; ``members`` [..., values of the block]."""
        own = scale[..., None]
        error = (table[self.to_codes(members, own * outer)] * own * outer - members).astype(np.float64)
        error *= error
        if weights is not None:
            error *= weights
        out: np.ndarray = error.sum(axis=-1)
        return out

    def _search(
        self, matrix: Matrix, importance: Importance, block: Shape, scale: np.ndarray, table: np.ndarray
    ) -> np.ndarray:
        choices = self.nearby(scale, np.float32(1))
        losses = summed_losses(
            matrix,
            importance,
            block,
            choices,
            scale.shape,
            lambda members, own, choice: self.loss(members, own, choice, np.float32(1), table),
        )
        return of_least(choices, losses)


def mxfp4(*, search: bool = False, dtype: str = "float32") -> Floats:
    return Floats("float4_e2m1fn", MX_GROUP, "power of two", search, "bfloat16", dtype)


def mxfp8(element: str = "float8_e4m3fn", *, search: bool = False, dtype: str = "float32") -> Floats:
    return Floats(element, MX_GROUP, "power of two", search, "bfloat16", dtype)


def nvfp4(*, search: bool = False, dtype: str = "float32") -> Floats:
    return Floats("float4_e2m1fn", NV_GROUP, "two levels", search, "float16", dtype)


@dataclass(frozen=True, slots=True, eq=False)
class FittedFloats:
    quantizer: Floats
    scheme: Scheme

    @property
    def may_have_outliers(self) -> bool:
        return False

    def encode(self, block: np.ndarray, first_row: int, importance: np.ndarray | None = None) -> Codes:
        values = checked_block(block, self.scheme, first_row)
        weights = checked_weights(importance, values.shape)
        scale, *others = self.scheme.scales
        outer = _outer(self.scheme.scales)
        own = scale.values if scale.values is not None else self._local(values, weights, scale.block, outer)
        codes = self.quantizer.to_codes(values, spread(own, scale.block, values.shape) * outer)
        found = Codes(codes, (own, *(other.values for other in others if other.values is not None)))
        return without_overflow(found, self.scheme, self.quantizer.dtype, values)

    def _local(self, values: np.ndarray, weights: np.ndarray | None, block: Shape, outer: np.float32) -> np.ndarray:
        members = by_block(values, block)
        quantizer, table = self.quantizer, self.scheme.codebook
        assert table is not None
        best = quantizer.scale_of(np.abs(members).max(axis=-1), outer)
        if not quantizer.search:
            return best
        own = weights_by_block(weights, values.shape, block)
        choices = quantizer.nearby(best, outer)
        return of_least(choices, np.stack([quantizer.loss(members, own, choice, outer, table) for choice in choices]))


def _element(element: str) -> tuple[int, float, int]:
    if element not in ELEMENTS:
        raise ValueError(f"a narrow float {element!r}: one of {', '.join(ELEMENTS)}")
    return ELEMENTS[element]


def _e4m3(wanted: np.ndarray) -> np.ndarray:
    """float32 ``wanted`` (>= 0), rounded to float8_e4m3fn within its positive finite values; 1 where it is 0."""
    clipped = np.clip(np.where(wanted > 0, wanted, 1), E4M3_LEAST, E4M3_GREATEST).astype(np.float32)
    return clipped.astype(DTYPES["float8_e4m3fn"].numpy).astype(np.float32)


def _outer(scales: tuple[Scale, ...]) -> np.float32:
    return np.float32(1) if len(scales) < 2 or scales[1].values is None else np.float32(scales[1].values[0, 0])

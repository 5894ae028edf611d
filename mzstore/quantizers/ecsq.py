"""ECSQ: a uniform step whose codes an entropy coder makes small, so that the rate is continuous.

At high rate it is 0.254 bit from the rate-distortion bound whatever the distribution (Gish and Pierce, 1968), which no
fixed-width format reaches. The decision thresholds minimize error + lambda * bits for the code lengths that they lead to,
iterated (entropy-constrained Lloyd: Chou, Lookabaugh and Gray, 1989; video coders call it rate-distortion-optimized
quantization). Measured on the 39 matrices of all-MiniLM-L6-v2 at equal error: thresholds save 0.004 bit at 4 bits, 0.07 at 2.
With them, optimal reconstruction points are worth 0.001 bit, except for an alphabet that saturates (0.017 at 6 levels):
they are kept where they save more than they cost. Thresholds that are a straight line over the levels, which is two
numbers and a loop without a table, are as good as free ones.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from mzstore import kernels
from mzstore.quantizers import (
    GREATEST,
    MAX_LEVELS,
    Codes,
    Importance,
    Matrix,
    Outliers,
    Scale,
    Scheme,
    checked_block,
    checked_weights,
    extremes,
    round_to,
    without_overflow,
)
from mzstore.quantizers.packing import BASES, counted_bits, per_byte
from mzstore.quantizers.sample import Sample, collect, column_roots, rounded, to_float32

# d(error) / d(bits) of a uniform quantizer at high rate, in units of step ** 2: 2 ln 2 / 12. The best one at low rate, too.
LAGRANGIAN = float(np.log(2)) / 6
OUTLIER_BITS = 48.0  # a position (coded), and a float32 that no coder shrinks much
OUTLIERS_OVERHEAD_BITS = 8.0 * 700  # documents and directory entries of the arrays that hold them
ALPHABETS = (
    3,
    4,
    6,
    16,
    32,
    64,
    128,
    256,
    512,
    1024,
    2048,
)  # the sizes that are tried besides one that reaches every value
NARROWER = 1.003  # so many times the bits are paid for codes that fit a byte
DENSER = 1.03  # so many times the bits are paid for more codes in a byte, which are decoded that much faster
NEAR_ENOUGH = 0.01  # bits per weight
MOST_POINTS = 16  # codes that share a byte are decoded by a table anyway; others are not slowed down by one
MOST_BEYOND = 0.01  # with more outliers no alphabet pays
ROUNDS = 3  # of the iteration: further ones change the bits by less than 0.001
BLOCK = 1 << 16  # values: what NumPy needs for them stays in the second-level cache
NUMPY_COST = 16  # quantizing a value with NumPy costs as much as it does to decode so many bytes
LEAST_STEP, GREATEST_STEP = 2.0**-120, 2.0**120  # float32 holds the step, its inverse, and what they make of values
MOST_STEPS = (MAX_LEVELS >> 1) - 1


@dataclass(frozen=True, slots=True)
class Target:
    """What to reach: exactly one of the first four.

    bits       per weight, at most, with ``overhead_bits`` (of the whole tensor) and outliers in it
    nmse       at most: squared error / squared values, neither of which is weighted by the importance
    snr_db     -10 log10(nmse)
    max_error  a guarantee for every value, after rounding to ``dtype`` as well
    """

    bits: float | None = None
    nmse: float | None = None
    snr_db: float | None = None
    max_error: float | None = None
    overhead_bits: float = 0.0

    def __post_init__(self) -> None:
        given = {k: v for k in ("bits", "nmse", "snr_db", "max_error") if (v := getattr(self, k)) is not None}
        if len(given) != 1:
            raise ValueError(f"one of bits, nmse, snr_db and max_error is asked for, not {', '.join(given) or 'none'}")
        ((name, value),) = given.items()
        if not np.isfinite(value) or (name != "snr_db" and value <= 0) or (name == "nmse" and value >= 1):
            raise ValueError(f"{name} = {value} cannot be reached")

    @property
    def relative_error(self) -> float | None:
        """The nmse that is asked for, if it is one."""
        return 10 ** (-self.snr_db / 10) if self.snr_db is not None else self.nmse


@dataclass(frozen=True, slots=True, eq=False)
class Design:
    """Everything about one way to quantize a sample, and what it is expected to cost.

    k = trunc(min(|value| / step * slope + shift, a large number)) with the sign of the value, within low..high;
    values further than ``reach`` steps beyond low or high are outliers.
    points         float32[levels] in steps, or None: the integers
    counts         int64[levels] in the sample
    sampled        values in the sample, of the ``count`` of the matrix
    nmse           expected, without weights
    outlier_share  of all values
    """

    step: float
    low: int
    high: int
    slope: float
    shift: float
    reach: float
    points: np.ndarray | None
    counts: np.ndarray
    sampled: int
    count: int
    nmse: float
    outlier_share: float
    outlier_bits: float

    @property
    def levels(self) -> int:
        return self.high - self.low + 1

    @property
    def bits(self) -> float:
        """Expected bits per weight, without any overhead but that of outliers. Counting them takes some time."""
        if not self.count:
            return 0.0
        coded = counted_bits(self.counts * (self.count / self.sampled))
        return coded / self.count + self.outlier_share * self.outlier_bits


@dataclass(frozen=True, slots=True)
class Uniform:
    """The quantizer. Either ``step`` or ``target`` is given.

    levels      size of the alphabet: what it does not reach saturates or is an outlier. None: by counted bits, on a sample
    lagrangian  in units of step ** 2 per bit; 0 rounds to the nearest
    outlier_bits, outliers_overhead_bits  what one outlier costs, and that there are any
    dtype       of the decoded values: what ``max_error`` allows for
    """

    step: float | None = None
    target: Target | None = None
    levels: int | None = None
    lagrangian: float = LAGRANGIAN
    outlier_bits: float = OUTLIER_BITS
    outliers_overhead_bits: float = OUTLIERS_OVERHEAD_BITS
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if (self.step is None) == (self.target is None):
            raise ValueError("either a step or a target is given")
        if self.step is not None and not LEAST_STEP <= self.step <= GREATEST_STEP:
            raise ValueError(f"a step of {self.step}: {LEAST_STEP:g} to {GREATEST_STEP:g} will do")
        if self.dtype not in GREATEST:
            raise ValueError(f"values of {self.dtype}: one of {', '.join(GREATEST)}")
        if self.levels is not None and not 2 <= self.levels <= MAX_LEVELS:
            raise ValueError(f"{self.levels} levels: 2 to {MAX_LEVELS} will do")
        if self.lagrangian < 0:
            raise ValueError(f"a Lagrangian of {self.lagrangian}")

    def fit(self, matrix: Matrix, importance: Importance = None) -> "FittedUniform":
        scale = None
        limit_error = self.target is not None and self.target.max_error is not None
        if isinstance(importance, np.ndarray) and not limit_error:
            scale = _column_scale(importance, matrix.shape[0])
        sample = collect(matrix, importance, factors=None if scale is None else np.float32(1) / scale)
        return self.fit_sample(matrix.shape, sample, scale)

    def fit_sample(
        self, shape: tuple[int, int], sample: Sample, scale: np.ndarray | None, *, search: bool = True
    ) -> "FittedUniform":
        """As ``fit``, for a matrix of ``shape``, of which everything that matters is in ``sample`` and column ``scale``.

        search  whether alphabets that do not reach every value are tried, where ``levels`` is not given
        """
        rows, cols = shape
        # With column scales it is not the levels that have to be finite in ``dtype``: ``encode`` sees to that.
        design = (self if scale is None else replace(self, dtype="float32")).design(sample, search=search)
        scales = [Scale((max(1, rows), max(1, cols)), "float32", np.full((1, 1), design.step, np.float32))]
        if scale is not None:
            scales.append(Scale((max(1, rows), 1), "float16", scale[None]))
        scheme = Scheme(
            shape,
            design.levels,
            0 if design.points is not None else -design.low,
            design.points,
            tuple(scales),
        )
        mean = sample.weight / max(1, sample.values.size)
        factors = None if scale is None else np.float32(1) / scale
        return FittedUniform(self, scheme, design, sample, scale, factors, None if sample.relative is None else mean)

    def design(self, sample: Sample, *, search: bool = True) -> Design:
        """The best way to quantize the sample; ``levels`` by counted bits unless it is given. ``search`` as in ``fit_sample``."""
        if not sample.square > 0:  # all values are 0, or there are none
            return _constant(self.step or 1.0)
        if self.target is not None and self.target.max_error is not None:
            return self._within(sample, self.target.max_error)
        if self.levels is not None:
            return self._solve(sample, self.levels)
        full = self._reaching(sample)
        if not search:
            return full
        best, cost = full, full.bits
        for levels in sorted(ALPHABETS, reverse=True):
            if levels >= full.levels or _beyond(sample, full.step, levels) > MOST_BEYOND:
                continue
            tried = self._at(sample, full.step, levels)
            new = _cost(tried, full)
            least, most = reached(tried)
            if sample.low < least or sample.high > most:  # of all values: an outlier need not be in the sample
                new += self.outliers_overhead_bits / sample.count
            faster = DENSER if _density(levels) > max(1, _density(best.levels)) else 1.0
            if best.levels > 256 >= levels:
                faster = NARROWER
            if new < cost * faster:
                best, cost = tried, min(cost, new)
        return full if best is full else self._solve(sample, best.levels)

    def _reaching(self, sample: Sample) -> Design:
        """The design that reaches every value; or with the alphabet of a byte, if a few great values make that too costly."""
        try:
            full = self._solve(sample, None)
        except ValueError:
            byte = self._solve(sample, 256)
            if byte.outlier_share > MOST_BEYOND:  # nothing would be left to the codes
                raise
            return byte
        if full.levels <= 256:
            return full
        try:
            byte = self._solve(sample, 256)
        except ValueError:
            return full
        overhead = self.outliers_overhead_bits / sample.count
        return byte if _cost(byte, full) + overhead < NARROWER * full.bits else full

    def _at(self, sample: Sample, step: float, levels: int | None, reach: float | None = None) -> Design:
        return design_for(
            sample, step, levels, self.lagrangian, self.outlier_bits, reach=reach, greatest=GREATEST[self.dtype]
        )

    def _solve(self, sample: Sample, levels: int | None) -> Design:
        """The design with ``levels`` (None: as many as reach every value) that meets the step or the target."""
        if self.step is not None:
            return self._at(sample, float(np.float32(self.step)), levels)
        assert self.target is not None
        nmse = self.target.relative_error
        overhead = self.target.overhead_bits / max(1, sample.count)
        designs: dict[float, Design] = {}

        def made(log_step: float) -> Design:
            step = rounded(min(2.0**log_step, GREATEST_STEP))
            return designs.setdefault(log_step, self._at(sample, step, levels))

        root = float(np.log2(np.sqrt(sample.square)))
        if nmse is not None:
            log_nmse = float(np.log2(nmse))
            start = min(root + 0.5 * (float(np.log2(12)) + log_nmse), root + 2)

            def above(log_step: float) -> float:  # half the logarithm of an error rises by 1 for each bit
                return 0.5 * (float(np.log2(max(made(log_step).nmse, 1e-30))) - log_nmse)
        else:
            bits = self.target.bits
            assert bits is not None
            if overhead >= bits:
                raise ValueError(
                    f"{bits} bits per weight cannot be reached: {overhead:.3f} are spent besides the codes"
                )
            start = root + 2.05 - (bits - overhead)

            def above(log_step: float) -> float:
                return bits - overhead - made(log_step).bits

        try:
            return made(root_of(above, start, better=-1 if nmse is not None else 1))
        except _NotReached as error:
            asked = f"nmse {nmse:g}" if nmse is not None else f"{self.target.bits} bits per weight"
            raise ValueError(f"{asked} cannot be reached by a uniform step: {error}") from None

    def _within(self, sample: Sample, max_error: float) -> Design:
        """No value is further than ``max_error`` from what it is decoded to, in ``dtype``."""
        most = max(abs(sample.low), abs(sample.high))
        digits = {"float64": 24, "float32": 24, "bfloat16": 8, "float16": 11}[self.dtype]
        if most + max_error >= GREATEST[self.dtype]:
            raise ValueError(f"max_error cannot be promised for {self.dtype} values as great as {most:g}")
        # What rounding the decoded value may add: half a unit in the last place of the greatest.
        rounding = 2.0 ** (np.ceil(np.log2(most + max_error)) - digits - 1)
        if self.dtype == "float16":
            rounding = max(rounding, 2.0**-25)
        room = max_error - rounding
        if room <= 0:
            raise ValueError(
                f"max_error = {max_error:g} is below the spacing of {self.dtype} near {most:g}, {2 * rounding:g}"
            )
        # |value| * inverse and k * step are rounded to float32: together less than k * 2 ** -21 steps.
        steps = most / (2 * room) + 2
        step = float(np.float32(2 * room / (1 + steps * 2.0**-20)))
        step = float(np.nextafter(np.float32(step), np.float32(0)))
        if steps > MOST_STEPS:
            raise ValueError(f"max_error = {max_error:g} needs more than {MAX_LEVELS} levels up to {most:g}")
        plain = replace(self, lagrangian=0.0)
        full = plain._at(sample, step, None, 0.5)
        best, cost = full, full.bits
        for levels in (self.levels,) if self.levels is not None else ALPHABETS:
            if levels < full.levels:
                tried = plain._at(sample, step, levels, 0.5)
                new = tried.bits + self.outliers_overhead_bits / sample.count
                if new < cost or self.levels is not None:
                    best, cost = tried, new
        return best


@dataclass(frozen=True, slots=True, eq=False)
class FittedUniform:
    """``design`` also says what is expected: bits, nmse, outliers.

    scale        float32[cols] or None: of columns
    factors      its inverse: values are multiplied by it first
    mean_weight  of the importance, where it moves the thresholds instead
    """

    quantizer: Uniform
    scheme: Scheme
    design: Design
    sample: Sample
    scale: np.ndarray | None = None
    factors: np.ndarray | None = None
    mean_weight: float | None = None

    @property
    def may_have_outliers(self) -> bool:
        return bool(np.isfinite(self.design.reach))

    def encode(self, block: np.ndarray, first_row: int, importance: np.ndarray | None = None) -> Codes:
        block = checked_block(block, self.scheme, first_row)
        weights = checked_weights(importance, block.shape) if self.mean_weight is not None else None
        values = block if self.factors is None else block * self.factors
        codes = np.empty(block.shape, self.scheme.code_dtype)
        quantize(values, self.design, codes, None if weights is None else weights / np.float32(self.mean_weight))
        scales = tuple(scale.values for scale in self.scheme.scales if scale.values is not None)
        found = Codes(codes, scales, None, self._outliers(values, block, first_row))
        return found if self.scale is None else without_overflow(found, self.scheme, self.quantizer.dtype, block)

    def with_step(self, step: float) -> "FittedUniform":
        """The same with another step: as many levels, or again as many as reach every value if as many share a byte."""

        def fitted(levels: int | None) -> FittedUniform:
            quantizer = replace(self.quantizer, step=rounded(step), target=None, levels=levels)
            return quantizer.fit_sample(self.scheme.shape, self.sample, self.scale, search=False)

        levels = self.design.levels
        if np.isfinite(self.design.reach):
            return fitted(levels)
        most = BASES[per_byte(levels)] if levels <= 256 else MAX_LEVELS
        whole = fitted(None)
        return whole if whole.design.levels <= most else fitted(most)

    def _outliers(self, values: np.ndarray, block: np.ndarray, first_row: int) -> Outliers | None:
        if not self.may_have_outliers or not block.size:
            return None
        least, most = reached(self.design)
        low, high = extremes(values)
        if low >= least and high <= most:
            return None
        flat = np.flatnonzero((values < least) | (values > most))
        return Outliers(flat + first_row * block.shape[1])


def reached(design: Design) -> tuple[np.float32, np.float32]:
    """The least and the greatest value (float32) that is no outlier."""
    ends = np.array([design.low - design.reach, design.high + design.reach]) * design.step
    least, most = to_float32(ends)
    return least, most


def quantize(values: np.ndarray, design: Design, codes: np.ndarray, weights: np.ndarray | None = None) -> None:
    """Fill ``codes`` (uint8 or uint16) from ``values`` (float32, contiguous), both [rows, cols].

    ``weights`` (float32, mean 1, of a shape that broadcasts) move each value's thresholds: the more it matters,
    the nearer to rounding to the nearest.
    """
    inverse = np.float32(1 / np.float32(design.step))
    low, high = np.int32(design.low), np.int32(design.high)
    limit = np.float32(max(abs(design.low), abs(design.high)))
    slope, shift = np.float32(design.slope), np.float32(design.shift)
    rows, cols = values.shape
    if weights is None and kernels.pays(NUMPY_COST * values.size):
        kernels.load_quantized().quantize_uniform(
            values.reshape(-1), 0, cols, rows, cols, inverse, slope, shift, limit, low, high, codes
        )
        return
    high_block = max(1, BLOCK // max(1, cols))
    for i in range(0, rows, high_block):
        part = values[i : i + high_block]
        with np.errstate(over="ignore"):  # infinity is beyond the limit, as it should be
            size = np.abs(part * inverse)
        if weights is None:
            size *= slope
            size += shift
        else:
            own = weights if weights.shape[0] == 1 else weights[i : i + high_block]
            size = _moved(size, slope, shift, own)
        k = np.minimum(size, limit, out=size).astype(np.int32)
        np.negative(k, out=k, where=part < 0)
        np.clip(k, low, high, out=k)
        k -= low
        codes[i : i + high_block] = k


def design_for(
    sample: Sample,
    step: float,
    levels: int | None,
    lagrangian: float = LAGRANGIAN,
    outlier_bits: float = OUTLIER_BITS,
    *,
    reach: float | None = None,
    greatest: float = GREATEST["float32"],
) -> Design:
    """The best thresholds and, where they pay, points for ``step`` and ``levels`` (None: as many as reach every value).

    No level is beyond ``greatest``. Raises ValueError if that needs more than MAX_LEVELS.
    """
    if not LEAST_STEP <= step <= GREATEST_STEP:
        raise ValueError(f"a step of {step:g} is too small or too great for float32")
    low, high = (int(np.copysign(np.trunc(abs(x) / step + 0.5), x)) for x in (sample.low, sample.high))
    most = int(greatest / step)
    low, high = min(max(low, -most), most), min(max(high, -most), most)
    if levels is not None and levels < high - low + 1:
        low, high = _saturated(sample, step, low, high, levels)
        if reach is None:
            reach = max(0.5, float(np.sqrt(lagrangian * outlier_bits)))
    else:
        reach = np.inf
    if high - low + 1 > MAX_LEVELS or max(abs(low), abs(high)) >= 1 << 22:
        raise ValueError(
            f"a step of {step:g} makes {high - low + 1} levels of values from {sample.low:g} to {sample.high:g}"
        )
    around_zero = low <= 0 <= high
    k = np.arange(low, high + 1)
    slope, shift = 1.0, 0.5
    if lagrangian > 0 and around_zero and high - low >= 1:
        for _ in range(ROUNDS):
            slope, shift = _line(k, _counts(sample, k, step, slope, shift, reach), lagrangian)
    counts, weight, first, second = _cells(sample, k, step, slope, shift, reach)
    plain = _error(k * step, weight, first, second)
    points = None
    if around_zero and lagrangian > 0 and np.isfinite(reach) and k.size <= MOST_POINTS:
        chosen = _points(k, step, slope, shift, weight, first)
        better = _error(chosen * step, weight, first, second)
        if 0.5 * np.log2(max(plain, 1e-300) / max(better, 1e-300)) * sample.count > 32 * k.size + 8 * 300:
            points = chosen.astype(np.float32)
    if sample.weighted:
        weight, first, second = _plain_cells(sample, k, step, slope, shift, reach)
    error = _error((k if points is None else chosen) * step, weight, first, second)
    outside = (sample.values.size - int(counts.sum())) / sample.values.size
    nmse = error / sample.values.size / sample.power
    return Design(
        step, low, high, slope, shift, float(reach), points, counts,
        sample.values.size, sample.count, nmse, outside, outlier_bits,
    )  # fmt: skip


def _cells(
    sample: Sample, k: np.ndarray, step: float, slope: float, shift: float, reach: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Counts and sums of the values that are quantized to each of ``k``, without outliers."""
    if sample.relative is not None:
        summed = sample.relative.astype(np.float64) * sample.weight / max(1, sample.values.size)
        return _cells_by_value(sample, sample.relative, summed, k, step, slope, shift, reach)
    counts, weight, first, second = (c[1:-1] for c in sample.cells(_bounds(k, step, slope, shift, reach)))
    return counts, weight, first, second


def _plain_cells(
    sample: Sample, k: np.ndarray, step: float, slope: float, shift: float, reach: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The sums of ``_cells`` without weights: those of the error that is measured."""
    if sample.relative is not None:
        ones = np.ones(sample.values.size, np.float64)
        _, weight, first, second = _cells_by_value(sample, sample.relative, ones, k, step, slope, shift, reach)
    else:
        weight, first, second = (c[1:-1] for c in sample.plain_cells(_bounds(k, step, slope, shift, reach)))
    return weight, first, second


def _counts(sample: Sample, k: np.ndarray, step: float, slope: float, shift: float, reach: float) -> np.ndarray:
    """The first of ``_cells`` alone."""
    if sample.relative is not None:
        return _cells(sample, k, step, slope, shift, reach)[0]
    return sample.counts(_bounds(k, step, slope, shift, reach))[1:-1]


def _bounds(k: np.ndarray, step: float, slope: float, shift: float, reach: float) -> np.ndarray:
    """From which value on the next of ``k`` is taken: one more than there are in ``k``, the first and last for outliers."""
    up = k[1:] > 0  # the bound between k - 1 and k belongs to k above 0, to k - 1 below
    between = np.where(up, k[1:] - shift, k[:-1] + shift) / slope
    return np.concatenate([[k[0] - reach], between, [k[-1] + reach]]) * step


def _cells_by_value(
    sample: Sample,
    relative: np.ndarray,
    summed: np.ndarray,
    k: np.ndarray,
    step: float,
    slope: float,
    shift: float,
    reach: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """``_cells`` where each value has thresholds of its own; the weights in the sums are ``summed``."""
    inside = slice(*np.searchsorted(sample.values, to_float32(np.array([k[0] - reach, k[-1] + reach]) * step)))
    values, wide = sample.values[inside], sample.values[inside].astype(np.float64)
    size = np.abs(values * np.float32(1 / np.float32(step)))
    rounded = _moved(size, np.float32(slope), np.float32(shift), relative[inside])
    at = np.clip(np.copysign(np.trunc(rounded), values), k[0], k[-1]).astype(np.int64) - k[0]
    weight = summed[inside]
    first = weight * wide
    return (
        np.bincount(at, minlength=k.size),
        np.bincount(at, weight, k.size),
        np.bincount(at, first, k.size),
        np.bincount(at, first * wide, k.size),
    )


def _moved(size: np.ndarray, slope: np.float32, shift: np.float32, weights: np.ndarray) -> np.ndarray:
    """What is truncated to the level of ``size`` = |value| / step: thresholds move by the lambda over each weight (mean 1)."""
    drop = (size * (1 - slope) + (np.float32(0.5) - shift)) / np.maximum(weights, np.float32(1e-6))
    out: np.ndarray = size + np.maximum(np.float32(0.5) - drop, np.float32(0.05))
    return out


def _line(k: np.ndarray, counts: np.ndarray, lagrangian: float) -> tuple[float, float]:
    """(slope, shift): the straight line nearest to the thresholds that these counts ask for, where they count.

    |value| goes to k rather than k - 1 from t[k] = k - 1/2 + lagrangian / 2 * (length of k - length of k - 1) on.
    """
    most = int(max(-k[0], k[-1]))
    if most == 0:
        return 1.0, 0.5
    zero, both = int(-k[0]), int(min(-k[0], k[-1]))
    sizes = np.zeros(most + 1)  # of |k|, on the average of the sides that have it
    sizes[: k[-1] + 1] = counts[zero:]
    sizes[1 : zero + 1] += counts[:zero][::-1]
    sizes[1 : both + 1] *= 0.5
    lengths = -np.log2(sizes + 0.5)
    at = np.arange(1, most + 1, dtype=np.float64)
    later = np.clip(lagrangian / 2 * (lengths[1:] - lengths[:-1]), 0, 0.45)  # than half way
    weight = np.minimum(sizes[1:], sizes[:-1]) + 1e-9
    weight /= weight.sum()
    mean_at, mean = float((weight * at).sum()), float((weight * later).sum())  # not by BLAS, see ``_sum_of_squares``
    spread = float((weight * (at - mean_at) ** 2).sum())
    rise = 1 + max(0.0, float((weight * (at - mean_at) * later).sum()) / spread) if spread > 1e-12 else 1.0
    slope = 1 / rise
    shift = min(max(mean_at - (mean_at - 0.5 + mean) / rise, 0.1), 0.5)
    # A decoded value is quantized to its own k again, even after rounding to bfloat16.
    slope = max(slope, 1 - max(0.0, shift - 0.05 - most / 256) / most)
    return float(np.ceil(slope * 2**14 - 1e-6)) / 2**14, rounded(shift)


def _points(
    k: np.ndarray, step: float, slope: float, shift: float, weight: np.ndarray, first: np.ndarray
) -> np.ndarray:
    """The mean of each cell in steps, as float32, well inside the cell; k where the cell is all but empty."""
    size = np.abs(k)
    lower = np.where(size > 0, (size - shift) / slope, 0.0)
    upper = (size + 1 - shift) / slope
    inside = (upper - lower) / 64
    mean = np.abs(np.divide(first, weight * step, out=k.astype(np.float64), where=weight > 0))
    mean = np.where(size > 0, np.clip(mean, lower + inside, np.where(size == size.max(), np.inf, upper - inside)), 0.0)
    out: np.ndarray = np.copysign(mean, k).astype(np.float32).astype(np.float64)
    return out


def _error(points: np.ndarray, weight: np.ndarray, first: np.ndarray, second: np.ndarray) -> float:
    return max(0.0, float((second - 2 * points * first + points**2 * weight).sum()))


def _saturated(sample: Sample, step: float, low: int, high: int, levels: int) -> tuple[int, int]:
    """The range of ``levels`` within low..high that holds most values; 0 is in it if it is in low..high."""
    if low <= 0 <= high:
        starts = np.arange(max(low, 1 - levels), min(0, high - levels + 1) + 1)
    else:
        starts = np.array([low, high - levels + 1])
    bounds = (starts[:, None] + np.array([-0.5, levels - 0.5])) * step
    ends = np.searchsorted(sample.values, to_float32(bounds))
    chosen = int(starts[np.argmax(ends[:, 1] - ends[:, 0])])
    return chosen, chosen + levels - 1


def _density(levels: int) -> int:
    """Codes in a byte; 0 if one needs more."""
    return per_byte(levels) if levels <= 256 else 0


def _beyond(sample: Sample, step: float, levels: int) -> float:
    """The share of values that lie clearly beyond any ``levels`` around 0."""
    ends = np.searchsorted(sample.values, to_float32(np.array([-1, 1]) * (levels // 2 + 1.5) * step))
    return 1 - float(ends[1] - ends[0]) / sample.values.size


def _cost(design: Design, other: Design) -> float:
    """Bits per weight of ``design``, were its error that of ``other``."""
    return design.bits + 0.5 * float(np.log2(max(design.nmse, 1e-30) / max(other.nmse, 1e-30)))


def _constant(step: float) -> Design:
    return Design(step, 0, 0, 1.0, 0.5, np.inf, None, np.zeros(1, np.int64), 0, 0, 0.0, 0.0, 0.0)


def _column_scale(importance: np.ndarray, rows: int) -> np.ndarray | None:
    """float32[cols], exact in float16: column scales that spread the weighted error evenly, if they pay.

    With one step for all columns the error at a rate is as their arithmetic mean, with the best steps as the geometric one.
    """
    weights = checked_weights(importance, (1, importance.size))
    assert weights is not None
    roots = column_roots(weights[0])
    squares = roots.astype(np.float64) ** 2
    gain = 0.5 * (np.log2(squares.mean()) - np.log2(squares).mean())
    return round_to(1 / roots, "float16") if gain > 16 / max(1, rows) + 0.002 else None


class _NotReached(Exception):
    pass


def root_of(above: Callable[[float], float], start: float, *, better: int, tolerance: float = 5e-4) -> float:
    """Where ``above``, which rises by about 1 for each 1, crosses 0. Where it does not, the bracket is halved.

    Where it jumps over 0 (few values make few different results), the nearest place on the side of the sign ``better``.
    """
    low, high = start - 24.0, start + 8.0
    x, best, least = start, start, np.inf
    good, margin, before = start, np.inf, np.inf
    for _ in range(40):
        try:
            y = above(x)
        except ValueError:  # too many levels: the step must be larger
            y = -np.inf
        if abs(y) < least:
            best, least = x, abs(y)
        if y * better >= 0 and abs(y) < margin:
            good, margin = x, abs(y)
        if abs(y) < tolerance:
            return x
        if y < 0:
            low = x
        else:
            high = x
        if high - low < 1e-4:
            break
        x = x - y if low < x - y < high and abs(y) < before / 2 else (low + high) / 2
        before = abs(y)
    if least <= NEAR_ENOUGH:
        return best
    if not np.isfinite(margin):
        raise _NotReached(f"the nearest is {least:.2f} bits per weight away")
    return good

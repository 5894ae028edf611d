"""Codebooks: each code stands for one value of a table, or for several neighbours at once.

    Lloyd(bits)          the table with the least weighted squared error for the values at hand: Lloyd (1957) and Max (1960),
                         that is k-means in one dimension, on the moments of a sample's cells
    nf4(), fp4()         fixed tables of QLoRA (Dettmers et al., 2023) and of bitsandbytes' FP4, scaled by the greatest
                         value of each group
    Vectors(levels, d)   k-means over d neighbours of a row (Linde, Buzo and Gray, 1980), on a sample

Everything begins with quantiles or evenly spread members, so that the same values give the same table.
"""

import math
from dataclasses import dataclass

import numpy as np

from mzstore.quantizers import (
    MAX_DIMENSION,
    MAX_LEVELS,
    Codes,
    Importance,
    Matrix,
    Scale,
    Scheme,
    Shape,
    checked_block,
    checked_weights,
    spread,
    weighted_blocks,
    without_overflow,
)
from mzstore.quantizers.integers import GREATEST_SCALE, SHRINKS, usable_scale
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
from mzstore.quantizers.sample import Sample, collect

# QLoRA, appendix E: quantiles of a normal distribution, 8 above 0 and 7 below, 0 exact.
NF4 = np.array(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
        -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ],
    np.float32,
)  # fmt: skip
# bitsandbytes, csrc/kernels.cu: a sign and {0, 0.0625, 8, 12, 4, 6, 2, 3} / 12, in the order of its codes.
FP4 = np.array([0, 0.0625, 8, 12, 4, 6, 2, 3, -0.0, -0.0625, -8, -12, -4, -6, -2, -3], np.float32) / np.float32(12)

ROUNDS = 60
ENOUGH = 1e-5  # the iteration ends when the error falls by a smaller part
VECTOR_ROUNDS = 20
VECTOR_SAMPLE = 1 << 16  # vectors, or 4 for each entry: an assignment takes vectors * entries * weights operations
ASSIGN_BLOCK = 1 << 18  # distances held at a time
AXIS_ROUNDS = 64
PLAIN_BITS, WEIGHTED_BITS = 20, 14  # of the values and weights that distances are made of


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Any fixed ``values`` (float32[levels]), times a scale that takes their greatest to the greatest of each block.

    With an importance, a scale is searched that has the least weighted error. ``dtype`` is that of the decoded values, none
    of which is infinite.
    """

    values: np.ndarray
    granularity: Granularity = 64
    scale_dtype: str = "float32"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.values.ndim != 1 or not 2 <= self.values.size <= MAX_LEVELS:
            raise ValueError(f"a table of shape {self.values.shape}: 2 to {MAX_LEVELS} values")
        if not np.isfinite(self.values).all() or not self.values.any():
            raise ValueError("a table needs finite values that are not all 0")

    def fit(self, matrix: Matrix, importance: Importance = None) -> "FittedTable":
        block = block_shape(self.granularity, matrix.shape)
        values = self.values.astype(np.float32)
        entries = Entries(values, *_ordered(values))
        scale = None
        if block[0] < matrix.shape[0]:
            check_blocks(matrix, importance, block, lambda low, high: self.scale_of(np.maximum(-low, high)))
        else:
            scale = self.scale_of(greatest_values(matrix, importance, block))
            if importance is not None:
                scale = self._search(matrix, importance, block, scale, entries)
        scheme = Scheme(matrix.shape, values.size, 0, values, (Scale(block, self.scale_dtype, scale),))
        return FittedTable(self, scheme, entries)

    def scale_of(self, greatest: np.ndarray) -> np.ndarray:
        return self._usable(greatest.astype(np.float64) / self._most)

    def weighted_scale(
        self, members: np.ndarray, weights: np.ndarray, scale: np.ndarray, entries: "Entries"
    ) -> np.ndarray:
        """The scale with the least weighted error, given the codes that ``scale`` leads to; the old one where it is no better."""
        taken = entries.nearest(members, scale)
        heavy = (weights * taken).astype(np.float64)
        above, below = (heavy * members).sum(axis=-1), (heavy * taken).sum(axis=-1)
        new = np.divide(above, below, out=scale.astype(np.float64), where=below > 0)
        new_scale = self._usable(np.minimum(np.where(new > 0, new, scale), GREATEST_SCALE[self.scale_dtype]))
        better = entries.loss(members, weights, new_scale) < entries.loss(members, weights, scale)
        return np.where(better, new_scale, scale)

    @property
    def _most(self) -> float:
        return float(np.abs(self.values).max())

    def _usable(self, wanted: np.ndarray) -> np.ndarray:
        return usable_scale(wanted, self.scale_dtype, self._most, self.dtype)

    def _search(
        self, matrix: Matrix, importance: Importance, block: Shape, scale: np.ndarray, entries: "Entries"
    ) -> np.ndarray:
        """Of shrunken scales for blocks that reach over all rows, those with the least weighted error."""
        choices = [self._usable(scale.astype(np.float64) * shrink) for shrink in SHRINKS]
        return of_least(choices, summed_losses(matrix, importance, block, choices, scale.shape, entries.loss))


@dataclass(frozen=True, slots=True, eq=False)
class Entries:
    """A table that is searched."""

    values: np.ndarray
    order: np.ndarray  # codes by ascending value
    bounds: np.ndarray  # float32, half way between them

    def nearest(self, members: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """The values of the codes of ``members`` [..., values of the block]."""
        out: np.ndarray = self.values[self.order[np.searchsorted(self.bounds, members / scale[..., None])]]
        return out

    def loss(self, members: np.ndarray, weights: np.ndarray | None, scale: np.ndarray) -> np.ndarray:
        """The weighted squared error of each block."""
        error = (self.nearest(members, scale) * scale[..., None] - members).astype(np.float64)
        out: np.ndarray = (error**2 if weights is None else weights * error**2).sum(axis=-1)
        return out


def nf4(group: int = 64, *, scale_dtype: str = "float32") -> Table:
    """NormalFloat4 of QLoRA."""
    return Table(NF4, group, scale_dtype)


def fp4(group: int = 64, *, scale_dtype: str = "float32") -> Table:
    """The FP4 of bitsandbytes. For e2m1 of the OCP, see ``floats``."""
    return Table(FP4, group, scale_dtype)


@dataclass(frozen=True, slots=True, eq=False)
class FittedTable:
    quantizer: Table
    scheme: Scheme
    _entries: Entries

    @property
    def may_have_outliers(self) -> bool:
        return False

    def encode(self, block: np.ndarray, first_row: int, importance: np.ndarray | None = None) -> Codes:
        values = checked_block(block, self.scheme, first_row)
        weights = checked_weights(importance, values.shape)
        (scale,) = self.scheme.scales
        own = scale.values
        if own is None:
            members = by_block(values, scale.block)
            own = self.quantizer.scale_of(np.abs(members).max(axis=-1))
            heavy = weights_by_block(weights, values.shape, scale.block)
            if heavy is not None:
                own = self.quantizer.weighted_scale(members, heavy, own, self._entries)
        at = np.searchsorted(self._entries.bounds, values / spread(own, scale.block, values.shape))
        codes = Codes(self._entries.order[at].astype(self.scheme.code_dtype), (own,))
        return without_overflow(codes, self.scheme, self.quantizer.dtype, values)


@dataclass(frozen=True, slots=True)
class Lloyd:
    """The best table of ``levels`` values for the whole tensor. Ascending; fewer if there are fewer different values."""

    levels: int

    def __post_init__(self) -> None:
        if not 1 <= self.levels <= MAX_LEVELS:
            raise ValueError(f"{self.levels} levels: 1 to {MAX_LEVELS} will do")

    def fit(self, matrix: Matrix, importance: Importance = None) -> "FittedLloyd":
        values = lloyd(collect(matrix, importance), self.levels)
        return FittedLloyd(Scheme(matrix.shape, values.size, 0, values), _ordered(values)[1])


@dataclass(frozen=True, slots=True, eq=False)
class FittedLloyd:
    scheme: Scheme
    _bounds: np.ndarray

    @property
    def may_have_outliers(self) -> bool:
        return False

    def encode(self, block: np.ndarray, first_row: int, importance: np.ndarray | None = None) -> Codes:
        values = checked_block(block, self.scheme, first_row)
        return Codes(np.searchsorted(self._bounds, values).astype(self.scheme.code_dtype))


def lloyd(sample: Sample, levels: int) -> np.ndarray:
    """float32[<= levels], ascending: the centroids of Lloyd's iteration, begun at the best quantiles for high rate.

    A cell without weight ends at its middle. A sample without values gives the one value 0.
    """
    if not sample.values.size:
        return np.zeros(1, np.float32)
    different = np.unique(sample.values)
    if different.size <= levels:
        return different
    centroids = _start(different, sample.values, levels)
    last = np.inf
    for _ in range(ROUNDS):
        bounds = (centroids[1:] + centroids[:-1]) / 2
        _, weight, first, second = sample.cells(bounds)
        centroids = np.divide(first, weight, out=centroids.copy(), where=weight > 0)
        error = float((second - centroids * first).sum())
        if error > last * (1 - ENOUGH):
            break
        last = error
    return np.unique(centroids.astype(np.float32))


def _start(different: np.ndarray, values: np.ndarray, levels: int) -> np.ndarray:
    """float64[levels], ascending and all different: spread as the cube root of the density (Panter and Dite, 1951)."""
    edges = np.quantile(values, np.linspace(0, 1, min(values.size, 257)))
    widths = np.maximum(np.diff(edges), 1e-30)
    share = np.concatenate([[0], np.cumsum(widths ** (2 / 3))])  # density ** (1/3) * width, where density = 1 / width
    at = np.interp((np.arange(levels) + 0.5) / levels * share[-1], share, edges)
    if np.unique(at.astype(np.float32)).size == levels:
        out: np.ndarray = at
        return out
    return different[np.linspace(0, different.size - 1, levels).astype(np.int64)].astype(np.float64)


@dataclass(frozen=True, slots=True)
class Vectors:
    """``levels`` entries of ``dimension`` weights each, for neighbours in a row; k-means with deterministic start."""

    levels: int
    dimension: int

    def __post_init__(self) -> None:
        if not 2 <= self.dimension <= MAX_DIMENSION:
            raise ValueError(f"vectors of {self.dimension} weights: 2 to {MAX_DIMENSION} will do")
        if not 1 <= self.levels <= MAX_LEVELS:
            raise ValueError(f"{self.levels} levels: 1 to {MAX_LEVELS} will do")

    def fit(self, matrix: Matrix, importance: Importance = None) -> "FittedVectors":
        cols = matrix.shape[1]
        if cols % self.dimension:
            raise ValueError(f"vectors of {self.dimension} weights do not divide {cols} columns")
        vectors, weights = self._sample(matrix, importance)
        return FittedVectors(Scheme(matrix.shape, self.levels, 0, _k_means(vectors, weights, self.levels)))

    def _sample(self, matrix: Matrix, importance: Importance) -> tuple[np.ndarray, np.ndarray | None]:
        rows, cols = matrix.shape
        across = cols // self.dimension
        limit = max(VECTOR_SAMPLE, 4 * self.levels)
        stride = max(1, -(-(rows * across) // limit))
        while np.gcd(stride, max(1, across)) != 1:
            stride += 1
        taken, heavy = [np.zeros((0, self.dimension), np.float32)], []
        for first, values, weights in weighted_blocks(matrix, importance):
            start = -(first * across) % stride
            taken.append(values.reshape(-1, self.dimension)[start::stride].copy())
            if weights is not None:
                whole = np.broadcast_to(weights, values.shape)
                heavy.append(whole.reshape(-1, self.dimension)[start::stride].copy())
        return np.concatenate(taken), np.concatenate(heavy) if heavy else None


@dataclass(frozen=True, slots=True, eq=False)
class FittedVectors:
    scheme: Scheme

    @property
    def may_have_outliers(self) -> bool:
        return False

    def encode(self, block: np.ndarray, first_row: int, importance: np.ndarray | None = None) -> Codes:
        values = checked_block(block, self.scheme, first_row)
        weights = checked_weights(importance, values.shape)
        assert self.scheme.codebook is not None
        d = self.scheme.dimension
        own = None if weights is None else np.broadcast_to(weights, values.shape).reshape(-1, d)
        codes = _nearest(values.reshape(-1, d), own, self.scheme.codebook)
        return Codes(codes.astype(self.scheme.code_dtype).reshape(values.shape[0], -1))


def _k_means(vectors: np.ndarray, weights: np.ndarray | None, levels: int) -> np.ndarray:
    """float32[levels, d]; an entry that nothing is near to is kept as it was."""
    n, d = vectors.shape
    if not n or not vectors.any():
        return np.zeros((levels, d), np.float32)
    size = _power(vectors)
    vectors = vectors / size
    # Evenly spread along the longest axis of the cloud: near to the answer, and no chance in it.
    order = np.argsort((vectors * _longest_axis(vectors)).sum(axis=1), kind="stable")
    entries = vectors[order[((np.arange(levels) + 0.5) / levels * n).astype(np.int64)]].copy()
    heavy = np.ones((n, d), np.float64) if weights is None else weights.astype(np.float64)
    before: np.ndarray | None = None
    for _ in range(VECTOR_ROUNDS):
        codes = _nearest(vectors, weights, entries)
        if before is not None and np.array_equal(codes, before):
            break
        before = codes
        for i in range(d):
            weight = np.bincount(codes, heavy[:, i], levels)
            total = np.bincount(codes, heavy[:, i] * vectors[:, i], levels)
            entries[:, i] = np.divide(total, weight, out=entries[:, i].astype(np.float64), where=weight > 0)
    scaled: np.ndarray = entries * size
    return scaled


def _longest_axis(vectors: np.ndarray) -> np.ndarray:
    """float64[d]: the direction in which ``vectors`` vary most, by power iteration on their covariances; without BLAS,
    whose last digits are those of the processor."""
    centred = vectors.astype(np.float64)
    centred -= centred.mean(axis=0)
    covariances = np.stack([(centred * centred[:, i : i + 1]).sum(axis=0) for i in range(vectors.shape[1])])
    axis: np.ndarray = covariances[np.argmax(np.diag(covariances))]
    if not axis.any():
        return np.ones(vectors.shape[1])
    for _ in range(AXIS_ROUNDS):
        axis = (covariances * axis).sum(axis=1)
        axis = axis / np.abs(axis).max()
    return axis


def _power(values: np.ndarray) -> np.float32:
    """The power of two below the greatest of ``values``: squares of what is divided by it are near 1."""
    most = float(np.abs(values).max(initial=0.0))
    return np.float32(2.0 ** min(max(math.frexp(most)[1] - 1, -126), 126)) if most > 0 else np.float32(1)


def _nearest(vectors: np.ndarray, weights: np.ndarray | None, entries: np.ndarray) -> np.ndarray:
    """int64[n]: the entry with the least (weighted) squared distance from each vector; the first of equals.

    In integers so small that float64 holds their products and sums: in whatever order BLAS takes them, it finds the same.
    """
    unit = _power(entries).astype(np.float64) / (1 << (PLAIN_BITS if weights is None else WEIGHTED_BITS))
    entries = np.rint(entries / unit)
    squares = entries * entries
    half = squares.sum(axis=1) / 2
    out = np.empty(vectors.shape[0], np.int64)
    step = max(1, ASSIGN_BLOCK // entries.shape[0])
    for i in range(0, vectors.shape[0], step):
        part = np.rint(vectors[i : i + step] / unit)
        if weights is None:
            distance = half - part @ entries.T
        else:
            own = weights[i : i + step].astype(np.float64)
            own = np.rint(own * ((1 << WEIGHTED_BITS) / np.maximum(own.max(axis=1, keepdims=True), 1e-300)))
            distance = own @ squares.T / 2 - (own * part) @ entries.T
        out[i : i + step] = np.argmin(distance, axis=1)
    return out


def _ordered(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(codes by ascending value, float32 bounds half way between them). Of equal values, as 0 and -0, the first has codes."""
    ascending, order = np.unique(values.astype(np.float64), return_index=True)
    return order, ((ascending[1:] + ascending[:-1]) / 2).astype(np.float32)

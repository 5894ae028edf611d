"""Parts with random contents, in every form that the format allows: whether a writer would choose it or not."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mzstore.arrays import Array
from mzstore.documents import parts_of
from mzstore.dtypes import DTYPES, DType
from mzstore.encodings import Part, SinglePart
from mzstore.encodings.combined import Combined, component_name
from mzstore.encodings.lowrank import LowRank, left_grid, right_grid
from mzstore.encodings.nested import Nested
from mzstore.encodings.planes import Planes
from mzstore.encodings.positions import Index
from mzstore.encodings.quantized import Blocked, Quantized, blocked_array, packed_array
from mzstore.encodings.raw import Raw
from mzstore.encodings.sparse import Sparse, values_grid
from mzstore.encodings.tucker import Tucker, factor_grid, factor_name
from mzstore.grid import Grid
from mzstore.interleave import Fields

Bodies = dict[str, dict[tuple[int, ...], bytes]]  # by component and chunk
VALUES = ("raw", "planes", "codes", "groups")  # encodings that may be inside of others; "groups" has three arrays


@dataclass(frozen=True)
class Made:
    part: Part
    bodies: Bodies


class Random:
    """``wild``: words may be any bits, NaN too; else values whose sums are finite."""

    def __init__(self, seed: int, *, wild: bool = False) -> None:
        self.rng, self.wild = np.random.default_rng(seed), wild

    def words(self, dtype: DType, count: int) -> bytes:
        if self.wild or not dtype.is_float:
            return self.rng.bytes(count * dtype.word.itemsize)
        values = self.rng.normal(size=count) * 2.0 ** self.rng.integers(-18, 8, count)
        values[self.rng.random(count) < 0.1] = 0
        return values.astype(DTYPES["float32"].numpy).astype(dtype.numpy).tobytes()

    def raw(self, dtype: DType, grid: Grid, *, zstd: bool = True) -> Made:
        array = Array(grid.shape, grid.chunk_shape, dtype.disk, zstd)
        return Made(
            Raw(dtype, grid.shape, array), {"values": {c: self.words(dtype, grid.chunk_size) for c in grid.chunks()}}
        )

    def planes(self, dtype: DType, grid: Grid) -> Made:
        part = Planes.new(dtype, grid, Fields(dtype.word_bits, 8, rotate=dtype.exponent_bits > 0))
        itemsize = dtype.word.itemsize
        own = {}
        for chunk in grid.chunks():
            words = np.frombuffer(self.words(dtype, grid.chunk_size), dtype.word)
            if part.fields.rotate:
                words = words << 1 | words >> (dtype.word_bits - 1)
            own[(0, *chunk)] = words.view(np.uint8).reshape(-1, itemsize).T[::-1].tobytes()
        return Made(part, {"planes": own})

    def codes(self, dtype: DType, grid: Grid) -> Made:
        """Four bits, two to a byte where chunks allow it."""
        n = 2 if grid.counts[-1] == 1 or grid.chunk_shape[-1] % 2 == 0 else 1
        array = packed_array(grid, 1, n)
        part = Quantized(dtype, grid, 16, array, n, zero_point=7, scales=(float(np.float32(0.3)),))
        high = 256 if n == 2 else 16
        return Made(part, {"codes": {c: self._bytes(array.chunk_nbytes, high) for c in grid.chunks()}})

    def groups(self, dtype: DType, grid: Grid) -> Made:
        """A codebook as an array, and a scale for each row."""
        block = (*(1 for _ in grid.shape[1:]), grid.shape[-1])
        scale = Blocked(block, "float16", blocked_array(grid, block, "float16"))
        codes, book = packed_array(grid, 1, 1), Array((9,), (9,), "float32", zstd=True)
        part = Quantized(dtype, grid, 9, codes, codebook=book, scales=(scale,))
        own = {"codes": {c: self._bytes(codes.chunk_nbytes, 9) for c in grid.chunks()}}
        size = scale.array.grid.chunk_size
        own["scale"] = {c: self.rng.normal(size=size).astype(np.float16).tobytes() for c in scale.array.grid.chunks()}
        own["codebook"] = {(0,): self.rng.normal(size=9).astype(np.float32).tobytes()}
        return Made(part, own)

    def values(self, kind: str, dtype: DType, grid: Grid) -> Made:
        return getattr(self, kind)(dtype, grid)

    def sparse(
        self,
        dtype: DType,
        grid: Grid,
        index: Index,
        block: tuple[int, int] = (1, 1),
        values: str = "raw",
        values_dtype: DType | None = None,
        density: float = 0.3,
    ) -> Made:
        n = grid.chunk_size // (block[0] * block[1])
        if index.pattern:
            room = n // index.pattern[1] * index.pattern[0]
            chosen = {chunk: self._pattern(index.pattern, n) for chunk in grid.chunks()}
        else:
            chosen = {chunk: np.flatnonzero(self.rng.random(n) < density) for chunk in grid.chunks()}
            room = min(n, max([1, *(places.size for places in chosen.values())]) + int(self.rng.integers(3)))
        own = values_grid(grid, room * block[0] * block[1])
        inner = self.values(values, values_dtype or dtype, own)
        encoded = {chunk: index.encode(places, n) for chunk, places in chosen.items()}
        n_bytes = max([1, *(body.size for body, _ in encoded.values())])
        part = Sparse.new(dtype, grid, index, n_bytes, inner.part, block)
        bodies: Bodies = {"positions": {}} | ({"low": {}} if index.low_bits else {})
        for chunk, (body, low) in encoded.items():
            filling = 255 if index.kind == "gaps" else 0
            bodies["positions"][*chunk, 0] = body.tobytes() + bytes([filling]) * (n_bytes - body.size)
            if index.low_bits:
                bodies["low"][*chunk, 0] = low.tobytes() + self._bytes(room - low.size, 256)
        return Made(part, bodies | _inside(part.values, inner))

    def lowrank(self, dtype: DType, grid: Grid, rank: int, left: str = "raw", right: str = "raw", kinds: Sequence[str] = ("float32", "float32"), scale: float = 1.0) -> Made:  # fmt: skip
        first = self.values(left, DTYPES[kinds[0]], left_grid(grid, rank))
        second = self.values(right, DTYPES[kinds[1]], right_grid(grid, rank))
        part = LowRank(dtype, grid, Nested("left", first.part), Nested("right", second.part), scale)
        return Made(part, _inside(part.left, first) | _inside(part.right, second))

    def tucker(self, dtype: DType, grid: Grid, ranks: Sequence[int], kinds: Sequence[str | None], core: str | None, numbers: str = "float32") -> Made:  # fmt: skip
        """``kinds``: of the factors, None where an axis has none."""
        own, bodies, factors = DTYPES[numbers], {}, []
        for axis, kind in enumerate(kinds):
            made = None if kind is None else self.values(kind, own, factor_grid(grid, axis, ranks[axis]))
            factors.append(None if made is None else Nested(factor_name(axis), made.part))
            bodies |= {} if made is None else _inside(factors[-1], made)
        if core is None:
            return Made(Tucker(dtype, grid, tuple(ranks), tuple(factors)), bodies)
        made = self.values(core, own, Grid(tuple(ranks), tuple(ranks)))
        part = Tucker(dtype, grid, tuple(ranks), tuple(factors), Nested("core", made.part))
        return Made(part, bodies | _inside(part.core, made))

    def _bytes(self, count: int, below: int) -> bytes:
        return self.rng.integers(0, below, count, dtype=np.uint8).tobytes()

    def _pattern(self, pattern: tuple[int, int], n: int) -> np.ndarray:
        taken, group = pattern
        rows = np.argsort(self.rng.random((n // group, group)), axis=1)[:, :taken]
        return np.sort((rows + np.arange(0, n, group)[:, None]).reshape(-1))


def _inside(nested: Nested, made: Made) -> Bodies:
    names = dict(zip((c.name for c in made.part.components), (c.name for c in nested.components), strict=True))
    return {names[name]: chunks for name, chunks in made.bodies.items()}


def combined(made: Sequence[Made], ways: Sequence[str]) -> Made:
    if len(made) == 1:
        return made[0]
    parts: tuple[SinglePart, ...] = tuple(part for each in made for part in parts_of(each.part))
    bodies = {component_name(i, name): chunks for i, each in enumerate(made) for name, chunks in each.bodies.items()}
    return Made(Combined(parts, tuple(ways)), bodies)  # type: ignore[arg-type]

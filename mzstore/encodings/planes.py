"""Encoding ``planes``: the bytes of each significance side by side, so that zstd's Huffman coder sees only one kind
(FORMAT.md section 8.2). Lossless for any word.

In its plain form all planes of a chunk are one zstd frame. With ``symbols``, the first plane holds numbers of top
fields instead of top fields, which lets a top field have more than 8 bits: the exponent together with the first
bits of the mantissa, which are not independent of it. With ``ranks``, these numbers are below 16 and packed in
pairs into an array of their own, for half the work of the Huffman decoder, and the rest is not compressed at all.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from mzstore.arrays import Array, integers
from mzstore.dtypes import DType
from mzstore.encodings import Coding, Component
from mzstore.errors import CorruptError
from mzstore.grid import Grid
from mzstore.interleave import Fields, expand_ranks, join, pack_ranks, split
from mzstore.payload import compress
from mzstore.workspace import buffer

DEFAULT_TOP_BITS = 8
MAX_SYMBOLS = 256
MAX_RANKS = 16
NO_ESCAPE = 0xFFFF_FFFF  # fills the rest of a chunk of ``escapes``
MAX_ESCAPED_WORDS = (1 << 24) - 1  # in a chunk: an escape is position * 256 + top field, and below NO_ESCAPE


@dataclass(frozen=True, slots=True)
class Planes:
    """``planes`` bound to a tensor of words. One that exists is valid; ValueError otherwise.

    symbols  runs (first, count) of top fields, ascending; symbol ``i`` is the i-th of all their members
    ranks    the array of packed symbols, 4 bits each
    escapes  the array of what has none of 16 symbols: per chunk, numbers position * 256 + top field
    """

    dtype: DType
    grid: Grid
    fields: Fields
    symbols: tuple[tuple[int, int], ...] | None = None
    planes: Array | None = None
    ranks: Array | None = None
    escapes: Array | None = None
    components: tuple[Component, ...] = field(init=False, repr=False, compare=False)
    table: np.ndarray | None = field(init=False, repr=False, compare=False)  # the top field of each symbol

    def __post_init__(self) -> None:
        if self.fields.word_bits != self.dtype.word_bits:
            raise ValueError(f"fields of {self.fields.word_bits}-bit words do not fit {self.dtype.name}")
        if (self.symbols is None or self.ranks) and self.fields.top_bits != 8:
            raise ValueError(f"a top field of {self.fields.top_bits} bits, where only 8 will do")
        if self.symbols is not None:
            end = 0
            for first, count in self.symbols:
                if first < end or count < 1:
                    raise ValueError(f"symbol runs {self.symbols!r:.200} are not ascending and disjoint")
                end = first + count
            total, most = sum(count for _, count in self.symbols), MAX_RANKS if self.ranks else MAX_SYMBOLS
            if end > 1 << self.fields.top_bits or not 1 <= total <= most:
                raise ValueError(
                    f"{total} symbols up to {end}: at most {most}, of {self.fields.top_bits} bits, are allowed"
                )
        if self.ranks and self.symbols is None:
            raise ValueError("ranks without symbols")
        if self.escapes and not self.ranks:
            raise ValueError("escapes without ranks")
        if self.escapes and self.grid.chunk_size > MAX_ESCAPED_WORDS:
            raise ValueError(f"escapes in chunks of {self.grid.chunk_size} words, more than {MAX_ESCAPED_WORDS}")
        for name, array, wanted in (
            ("planes", self.planes, _planes_array(self.grid, self.n_planes)),
            ("ranks", self.ranks, _ranks_array(self.grid) if self.ranks else None),
            (
                "escapes",
                self.escapes,
                _escapes_array(self.grid, self.escapes.shape[-1]) if self.escapes and self.escapes.shape else None,
            ),
        ):
            if (array is None) != (wanted is None):
                raise ValueError(f"the array {name!r} is missing, or has no place here")
            if array and wanted and array != replace(wanted, zstd=array.zstd):
                raise ValueError(
                    f"the array {name!r} has {array.shape} in chunks of {array.chunk_shape}, not {wanted.shape} of {wanted.chunk_shape}"
                )

        named = (("ranks", self.ranks), ("escapes", self.escapes), ("planes", self.planes))
        object.__setattr__(self, "components", tuple(Component(name, array) for name, array in named if array))
        runs = [np.arange(first, first + count, dtype=np.uint16) for first, count in self.symbols or ()]
        object.__setattr__(self, "table", np.concatenate(runs) if runs else None)

    @property
    def encoding(self) -> str:
        return "planes"

    def component_chunk(self, component: Component, chunk: tuple[int, ...]) -> tuple[int, ...]:
        if component.name == "planes":
            return (0, *chunk)
        return chunk if component.name == "ranks" else (*chunk, 0)

    @property
    def n_planes(self) -> int:
        return len(self.fields.low_bits) + (self.ranks is None)

    def to_json(self) -> dict[str, object]:
        doc: dict[str, object] = {"encoding": self.encoding, "rotate": self.fields.rotate}
        if self.fields.top_bits != DEFAULT_TOP_BITS:
            doc["top_bits"] = self.fields.top_bits
        if self.symbols is not None:
            doc["symbols"] = [list(run) for run in self.symbols]
        return doc

    @classmethod
    def from_json(
        cls, doc: dict[str, object], dtype: DType, shape: tuple[int, ...], arrays: dict[str, Array]
    ) -> "Planes":
        """The part of ``doc`` over words of ``shape``; ``arrays`` are the arrays found below the tensor's node."""
        top_bits, rotate, symbols = doc.get("top_bits", DEFAULT_TOP_BITS), doc.get("rotate"), doc.get("symbols")
        if type(top_bits) is not int or type(rotate) is not bool:
            raise ValueError("'top_bits' is not an integer, or 'rotate' is neither true nor false")
        unknown = arrays.keys() - {"planes", "ranks", "escapes"}
        if unknown:
            raise ValueError(f"the array {min(unknown)!r} belongs to no component of 'planes'")
        runs = None
        if "symbols" in doc:
            if not isinstance(symbols, list):
                raise ValueError(f"'symbols' is {symbols!r:.200}, not a list")
            pairs = [integers(run) for run in symbols]
            if any(len(pair) != 2 for pair in pairs):
                raise ValueError("'symbols' is not a list of pairs")
            runs = tuple((first, count) for first, count in pairs)
        if "planes" in arrays:
            chunk_shape = arrays["planes"].chunk_shape[1:]
        elif "ranks" in arrays:
            raise ValueError("the array 'planes' is missing")
        else:
            raise ValueError("the arrays 'planes' and 'ranks' are missing")
        fields = Fields(dtype.word_bits, top_bits, rotate)
        return cls(
            dtype,
            Grid(shape, chunk_shape),
            fields,
            runs,
            arrays.get("planes"),
            arrays.get("ranks"),
            arrays.get("escapes"),
        )

    @classmethod
    def new(
        cls,
        dtype: DType,
        grid: Grid,
        fields: Fields,
        present: np.ndarray | None = None,
        *,
        ranks: bool = False,
        escapes: int = 0,
    ) -> "Planes":
        """The part that a writer makes.

        present  which top fields get a symbol (bool[2 ** top_bits]); None: no symbols
        escapes  the largest number of other top fields in one chunk; only with ``ranks``
        """
        runs = None
        if present is not None:
            runs = _runs(present, MAX_RANKS if ranks else MAX_SYMBOLS)
        n_planes = len(fields.low_bits) + (not ranks)
        return cls(
            dtype, grid, fields, runs,
            _planes_array(grid, n_planes, zstd=not ranks),
            _ranks_array(grid) if ranks else None,
            _escapes_array(grid, escapes) if escapes else None,
        )  # fmt: skip

    def encode(self, words: np.ndarray, coding: Coding) -> list[bytes | memoryview]:
        flat = words.reshape(-1)
        planes = np.empty((1 + len(self.fields.low_bits), flat.size), np.uint8)
        table = self.table
        symbol = None
        if table is not None:
            symbol = np.zeros(1 << self.fields.top_bits, np.uint8)
            symbol[table] = np.arange(table.size)
        split(flat, self.fields, None if self.ranks else symbol, planes)
        if not self.ranks:
            return [compress(list(planes), coder=coding.coder, block_nbytes=coding.block_nbytes)]
        assert table is not None
        assert symbol is not None
        top = planes[0]
        packed = pack_ranks(symbol[top].reshape(words.shape)).reshape(-1)
        bodies: list[bytes | memoryview] = [compress([packed], coder=coding.coder, block_nbytes=coding.block_nbytes)]
        if self.escapes:
            escapes = np.ones(1 << self.fields.top_bits, bool)
            escapes[table] = False
            at = np.flatnonzero(escapes[top])
            numbers = np.full(self.escapes.chunk_shape[-1], NO_ESCAPE, "<u4")
            numbers[: at.size] = at * 256 + top[at]
            bodies.append(compress([numbers.view(np.uint8)], coder="matches", block_nbytes=coding.block_nbytes))
        bodies.append(planes[1:].reshape(-1).data)
        return bodies

    def decode(self, read: Callable[[int], np.ndarray], source: tuple[slice, ...], out: np.ndarray, where: str) -> None:
        chunk_shape, n = self.grid.chunk_shape, self.grid.chunk_size
        table = self.table
        if self.ranks:
            assert table is not None
            top = buffer("top", n).reshape(chunk_shape)
            full = np.full(MAX_RANKS, 0, np.uint8)
            full[: table.size] = table
            packed = read(0)
            if (
                table.size < MAX_RANKS
                and packed.size
                and int(max((packed & 15).max(), (packed >> 4).max())) >= table.size
            ):
                raise CorruptError(f"a rank is not below {table.size}", where=where, clause="planes-6")
            expand_ranks(packed, full, top)
            if self.escapes:
                self._put_escapes(read(1).view("<u4"), top.reshape(-1), where)
            low = read(len(self.components) - 1).reshape(-1, *chunk_shape)
            join(top, low, source, self.fields, None, out)
            return
        planes = read(0).reshape(-1, *chunk_shape)
        if table is not None and int(planes[0].max()) >= table.size:
            raise CorruptError(f"symbol {planes[0].max()} is not below {table.size}", where=where, clause="planes-4")
        join(planes[0], planes[1:], source, self.fields, table, out)

    def _put_escapes(self, numbers: np.ndarray, top: np.ndarray, where: str) -> None:
        count = int(np.count_nonzero(numbers != NO_ESCAPE))
        at = numbers[:count] >> 8
        if count and (
            int(at[-1]) >= top.size or (at[1:] <= at[:-1]).any()
        ):  # a NO_ESCAPE among them breaks one of the two
            raise CorruptError(
                f"the positions of the escapes do not ascend below {top.size}", where=where, clause="planes-7"
            )
        top[at] = numbers[:count] & 255


def _runs(present: np.ndarray, most: int) -> tuple[tuple[int, int], ...]:
    """Few runs that cover ``present``: gaps are taken in, the shortest first, while ``most`` symbols suffice."""
    edges = np.flatnonzero(np.diff(present.astype(np.int8), prepend=0, append=0)).tolist()
    starts, stops = edges[0::2], edges[1::2]
    spare = most - sum(stops) + sum(starts)
    for gap, stop in sorted((b - a, a) for a, b in zip(stops[:-1], starts[1:], strict=True)):
        if gap > spare:
            break
        spare -= gap
        at = stops.index(stop)
        del stops[at], starts[at + 1]
    return tuple((start, stop - start) for start, stop in zip(starts, stops, strict=True))


def _planes_array(grid: Grid, n_planes: int, *, zstd: bool = True) -> Array | None:
    if not n_planes:
        return None
    return Array((n_planes, *grid.shape), (n_planes, *grid.chunk_shape), "uint8", zstd)


def _ranks_array(grid: Grid) -> Array:
    if not grid.shape or (grid.chunk_shape[-1] % 2 and grid.counts[-1] > 1):
        raise ValueError("ranks need an even number of words in a row of a chunk")
    *shape, columns = grid.shape
    *chunk_shape, width = grid.chunk_shape
    return Array((*shape, (columns + 1) // 2), (*chunk_shape, (width + 1) // 2), "uint8", zstd=True)


def _escapes_array(grid: Grid, longest: int) -> Array:
    return Array((*grid.counts, longest), (*(1 for _ in grid.counts), longest), "uint32", zstd=True)

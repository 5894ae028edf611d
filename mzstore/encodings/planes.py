"""Encoding ``planes``: the bytes of each significance side by side, so that zstd's Huffman coder sees only one kind
(FORMAT.md section 8.2). Lossless for any word.

There are three forms of the top fields, which are what shrinks:
- plain: a byte for each;
- ranks: they are counted from the first of 16 neighbours, which leaves 4 bits, and two share a byte. That is half the
  work for the Huffman coder, and it sees pairs. The few others are escapes, listed behind the planes;
- symbols: a byte is the number of a top field, which may then have more than 8 bits: the exponent together with the
  first bits of the mantissa, which are not independent of it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from mzstore.arrays import Array, integers
from mzstore.dtypes import DType
from mzstore.encodings import Coding, Component
from mzstore.errors import CorruptError
from mzstore.grid import Grid
from mzstore.interleave import BLOCK, N_RANKS, NO_ESCAPE, Fields, expand_ranks, join, pack_ranks, split
from mzstore.payload import compress
from mzstore.workspace import buffer

DEFAULT_TOP_BITS = 8
MAX_SYMBOLS = 256
ESCAPE_NBYTES = 4
MAX_RANKED_WORDS = (1 << 24) - 1  # in a chunk: an escape is position * 256 + top field, and below NO_ESCAPE


@dataclass(frozen=True, slots=True)
class Planes:
    """``planes`` bound to a tensor of words. One that exists is valid; ValueError otherwise.

    symbols  runs (first, count) of top fields, ascending; symbol ``i`` is the i-th of all their members
    ranks    the top field of rank 0
    """

    dtype: DType
    grid: Grid
    fields: Fields
    array: Array
    symbols: tuple[tuple[int, int], ...] | None = None
    ranks: int | None = None
    components: tuple[Component, ...] = field(init=False, repr=False, compare=False)
    table: np.ndarray | None = field(init=False, repr=False, compare=False)  # the top field of each symbol
    _low_start: int = field(init=False, repr=False, compare=False)  # where the low planes begin in a chunk with ranks
    _escapes_start: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.fields.word_bits != self.dtype.word_bits:
            raise ValueError(f"fields of {self.fields.word_bits}-bit words do not fit {self.dtype.name}")
        if self.symbols is None and self.fields.top_bits != 8:
            raise ValueError(f"a top field of {self.fields.top_bits} bits, where only 8 will do")
        if self.symbols is not None:
            _check_symbols(self.symbols, self.fields.top_bits)
        low_start = (self.grid.chunk_size + 1) // 2
        object.__setattr__(self, "_low_start", low_start)
        object.__setattr__(self, "_escapes_start", low_start + self.grid.chunk_size * len(self.fields.low_bits))
        n_escapes = 0
        if self.ranks is not None:
            if self.symbols is not None:
                raise ValueError("both symbols and ranks")
            if not 0 <= self.ranks <= 256 - N_RANKS:
                raise ValueError(f"ranks from {self.ranks} on, where 0 to {256 - N_RANKS} will do")
            if self.grid.chunk_size > MAX_RANKED_WORDS:
                raise ValueError(f"ranks in chunks of {self.grid.chunk_size} words, more than {MAX_RANKED_WORDS}")
            nbytes = self.array.shape[-1] if self.array.shape else 0
            n_escapes, odd = divmod(nbytes - self._escapes_start, ESCAPE_NBYTES)
            if n_escapes < 0 or odd:
                raise ValueError(f"chunks of {nbytes} bytes, where ranks and planes take {self._escapes_start}")
        shape, chunk_shape = _shapes(self.grid, self.fields, n_escapes if self.ranks is not None else None)
        if (self.array.data_type, self.array.shape, self.array.chunk_shape) != ("uint8", shape, chunk_shape):
            raise ValueError(
                f"an array of {self.array.shape} in chunks of {self.array.chunk_shape}, not {shape} of {chunk_shape}"
            )
        object.__setattr__(self, "components", (Component("planes", self.array),))
        runs = [np.arange(first, first + count, dtype=np.uint16) for first, count in self.symbols or ()]
        object.__setattr__(self, "table", np.concatenate(runs) if runs else None)

    @property
    def encoding(self) -> str:
        return "planes"

    def component_chunk(self, component: Component, chunk: tuple[int, ...]) -> tuple[int, ...]:
        return (0, *chunk) if self.ranks is None else (*chunk, 0)

    @property
    def n_escapes(self) -> int:
        """Room for escapes in each chunk."""
        return 0 if self.ranks is None else (self.array.shape[-1] - self._escapes_start) // ESCAPE_NBYTES

    def to_json(self) -> dict[str, object]:
        doc: dict[str, object] = {"encoding": self.encoding, "rotate": self.fields.rotate}
        if self.fields.top_bits != DEFAULT_TOP_BITS:
            doc["top_bits"] = self.fields.top_bits
        if self.symbols is not None:
            doc["symbols"] = [list(run) for run in self.symbols]
        if self.ranks is not None:
            doc["ranks"] = self.ranks
            doc["chunk_shape"] = list(self.grid.chunk_shape)
        return doc

    @classmethod
    def from_json(
        cls, doc: dict[str, object], dtype: DType, shape: tuple[int, ...], arrays: dict[str, Array]
    ) -> "Planes":
        """The part of ``doc`` over words of ``shape``; ``arrays`` are the arrays found at the tensor's node."""
        top_bits, rotate = doc.get("top_bits", DEFAULT_TOP_BITS), doc.get("rotate")
        if type(top_bits) is not int or type(rotate) is not bool:
            raise ValueError("'top_bits' is not an integer, or 'rotate' is neither true nor false")
        array = arrays.get("planes")
        if array is None or len(arrays) > 1:
            raise ValueError(f"the components are {', '.join(arrays)}, not one array")
        runs, ranks, chunk_shape = None, None, array.chunk_shape[1:]
        if "symbols" in doc:
            symbols = doc["symbols"]
            if not isinstance(symbols, list):
                raise ValueError(f"'symbols' is {symbols!r:.200}, not a list")
            pairs = [integers(run) for run in symbols]
            if any(len(pair) != 2 for pair in pairs):
                raise ValueError("'symbols' is not a list of pairs")
            runs = tuple((first, count) for first, count in pairs)
        if "ranks" in doc:
            (ranks,), chunk_shape = integers([doc["ranks"]]), integers(doc.get("chunk_shape"))
        return cls(dtype, Grid(shape, chunk_shape), Fields(dtype.word_bits, top_bits, rotate), array, runs, ranks)

    @classmethod
    def new(
        cls,
        dtype: DType,
        grid: Grid,
        fields: Fields,
        *,
        present: np.ndarray | None = None,
        ranks: int | None = None,
        escapes: int = 0,
    ) -> "Planes":
        """The part that a writer makes.

        present  which top fields get a symbol (bool[2 ** top_bits]); None: no symbols
        ranks    the top field of rank 0; None: no ranks
        escapes  with ``ranks``, the largest number of top fields without a rank in one chunk
        """
        runs = None if present is None else _runs(present)
        array = _array(grid, fields, None if ranks is None else escapes)
        return cls(dtype, grid, fields, array, runs, ranks)

    def over(self, grid: Grid) -> "Planes":
        """The same for the words of another grid."""
        array = _array(grid, self.fields, None if self.ranks is None else self.n_escapes)
        return replace(self, grid=grid, array=array)

    def encode(self, words: np.ndarray, coding: Coding) -> list[bytes | memoryview]:
        planes = np.empty((1 + len(self.fields.low_bits), words.size), np.uint8)
        symbol = None
        if self.table is not None:
            symbol = np.zeros(1 << self.fields.top_bits, np.uint8)
            symbol[self.table] = np.arange(self.table.size)
        split(words, self.fields, symbol, planes)
        first, *low = planes
        escapes: tuple[np.ndarray, ...] = ()
        if self.ranks is not None:
            first, numbers = pack_ranks(first, self.ranks)
            rest = np.full(self.n_escapes - numbers.size, NO_ESCAPE, "<u4")
            escapes = (numbers.view(np.uint8), rest.view(np.uint8))
        return [compress([first, *low], coder=coding.coder, block_nbytes=coding.block_nbytes, stored=escapes)]

    def into(self, dtype: DType) -> None:
        return None

    @property
    def scratch_nbytes(self) -> int:
        step = (2 * self.dtype.word.itemsize + 2) * min(BLOCK, self.grid.chunk_size)
        return step if self.ranks is None else step + self.grid.chunk_size + ESCAPE_NBYTES * self.n_escapes

    def decode(self, read: Callable[[int], np.ndarray], source: tuple[slice, ...], out: np.ndarray, where: str) -> None:
        chunk_shape, n = self.grid.chunk_shape, self.grid.chunk_size
        body = read(0)
        if self.ranks is not None:
            top = buffer("top", n)
            escapes = body[self._escapes_start :].copy().view("<u4")  # aligned
            if not expand_ranks(body[: self._low_start], self.ranks, escapes, top):
                raise CorruptError(
                    f"the positions of the escapes do not ascend below {n}", where=where, clause="planes-6"
                )
            low = body[self._low_start : self._escapes_start]
            join(top.reshape(chunk_shape), low.reshape(-1, *chunk_shape), source, self.fields, None, out)
            return
        planes = body.reshape(-1, *chunk_shape)
        if self.table is not None and int(planes[0].max()) >= self.table.size:
            raise CorruptError(
                f"symbol {planes[0].max()} is not below {self.table.size}", where=where, clause="planes-4"
            )
        join(planes[0], planes[1:], source, self.fields, self.table, out)


def _check_symbols(symbols: tuple[tuple[int, int], ...], top_bits: int) -> None:
    end = 0
    for first, count in symbols:
        if first < end or count < 1:
            raise ValueError(f"symbol runs {symbols!r:.200} are not ascending and disjoint")
        end = first + count
    total = sum(count for _, count in symbols)
    if end > 1 << top_bits or not 1 <= total <= MAX_SYMBOLS:
        raise ValueError(f"{total} symbols up to {end}: at most {MAX_SYMBOLS}, of {top_bits} bits, are allowed")


def _runs(present: np.ndarray) -> tuple[tuple[int, int], ...]:
    """Few runs that cover ``present``: gaps are taken in, the shortest first, while MAX_SYMBOLS suffice."""
    edges = np.flatnonzero(np.diff(present.astype(np.int8), prepend=0, append=0)).tolist()
    starts, stops = edges[0::2], edges[1::2]
    spare = MAX_SYMBOLS - sum(stops) + sum(starts)
    for gap, stop in sorted((b - a, a) for a, b in zip(stops[:-1], starts[1:], strict=True)):
        if gap > spare:
            break
        spare -= gap
        at = stops.index(stop)
        del stops[at], starts[at + 1]
    return tuple((start, stop - start) for start, stop in zip(starts, stops, strict=True))


def _array(grid: Grid, fields: Fields, n_escapes: int | None) -> Array:
    return Array(*_shapes(grid, fields, n_escapes), "uint8", zstd=True)


def _shapes(grid: Grid, fields: Fields, n_escapes: int | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape and chunk shape of the array: with room for ``n_escapes`` behind ranks and planes, or without ranks (None)."""
    n_low = len(fields.low_bits)
    if n_escapes is None:
        return (1 + n_low, *grid.shape), (1 + n_low, *grid.chunk_shape)
    nbytes = (grid.chunk_size + 1) // 2 + grid.chunk_size * n_low + n_escapes * ESCAPE_NBYTES
    return (*grid.counts, nbytes), (*(1 for _ in grid.counts), nbytes)

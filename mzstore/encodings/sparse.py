"""Encoding ``sparse``: values at some positions (FORMAT.md section 8.5).

The first part of a tensor gives zeros everywhere else. A later one replaces the values of the parts before it there, or
adds to them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from mzstore import kernels
from mzstore.arrays import Array, integers
from mzstore.dtypes import DType
from mzstore.encodings import Coding, Component, SinglePart
from mzstore.encodings.nested import Nested, Parse, own_arrays
from mzstore.encodings.planes import Planes
from mzstore.encodings.positions import BLOCK, NO_ELEMENT, Index
from mzstore.encodings.raw import Raw
from mzstore.encodings.rows import Rows, n_matrices, rows_of
from mzstore.grid import MAX_CHUNK_NBYTES, Grid
from mzstore.narrow import NARROWER
from mzstore.payload import compress
from mzstore.workspace import buffer

Step = Literal["fill", "put", "add"]
LINE_NBYTES = 1 << 14  # a third of the smallest first-level cache: places and values pass through it as well
STREAMED_NBYTES = 1 << 18  # of a chunk: what they would push out of the cache is worth more than they are
MATRICES = 64  # of rows in the caller's memory: for more, searching the places of each takes longer than their indices
ADDED = ("float16", "bfloat16", "float32")  # what values that are added may be: float32 holds them exactly


@dataclass(frozen=True, slots=True)
class Sparse:
    """``sparse`` bound to a tensor of words. One that exists is valid; ValueError otherwise.

    values  over [*counts, v]: those of a chunk, in the order of their positions; block by block, each in row-major order
    index   how a chunk tells where its elements are
    low     low bits of the gaps between them, if the index has such
    block   (rows, columns): an element is so many values of the last two axes
    """

    dtype: DType
    grid: Grid
    positions: Array
    values: Nested
    index: Index = field(default_factory=Index)
    low: Array | None = None
    block: tuple[int, int] = (1, 1)
    components: tuple[Component, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        n, (height, width) = self.grid.chunk_size, self.block
        if not self.grid.shape or n * self.dtype.word.itemsize > MAX_CHUNK_NBYTES:
            raise ValueError(
                f"chunks of {self.grid.chunk_shape} in {self.grid.shape}: one axis or more, and at most "
                f"{MAX_CHUNK_NBYTES} bytes of values"
            )
        *_, rows, cols = (1, *self.grid.chunk_shape)
        if height < 1 or width < 1 or rows % height or cols % width:
            raise ValueError(f"blocks of {self.block} do not fit chunks of {self.grid.chunk_shape}")
        room = self.values.part.grid.shape[-1] if self.values.part.grid.shape else 0
        n_elements, rest = divmod(room, height * width)
        if rest or not room:
            raise ValueError(f"room for {room} values, in blocks of {self.block}")
        n_bytes = self.positions.shape[-1] if self.positions.shape else 0
        self.index.check_room(self.n_places, n_bytes, n_elements)
        self.values.check_grid(values_grid(self.grid, room))
        self._check_array("positions", self.positions, n_bytes)
        components = [Component("positions", self.positions)]
        if self.index.low_bits:
            self._check_array("low", self.low, n_elements)
            components.append(Component("low", self.low))  # type: ignore[arg-type]
        elif self.low is not None:
            raise ValueError("an array of low bits, of which there are none")
        object.__setattr__(self, "components", (*components, *self.values.components))

    def _check_array(self, name: str, array: Array | None, room: int) -> None:
        if array is None:
            raise ValueError(f"no array {name!r}")
        expected = bytes_array(self.grid, room)
        if (array.data_type, array.shape, array.chunk_shape) != ("uint8", expected.shape, expected.chunk_shape):
            raise ValueError(
                f"{name!r} is {array.data_type} {array.shape} in chunks of {array.chunk_shape}, "
                f"not uint8 {expected.shape} of {expected.chunk_shape}"
            )

    def check_values(self, *, adds: bool) -> None:
        """Raises ValueError unless the values can be what they are for."""
        name, own = self.values.dtype.name, self.dtype.name
        if name not in (ADDED if adds else (own, *NARROWER.get(own, ()))):
            raise ValueError(f"values of {name} in a tensor of {own}")

    @property
    def n_places(self) -> int:
        """Where elements of a chunk may be."""
        return self.grid.chunk_size // (self.block[0] * self.block[1])

    @property
    def n_elements(self) -> int:
        """Room for elements in each chunk."""
        return self.values.part.grid.shape[-1] // (self.block[0] * self.block[1])

    @property
    def encoding(self) -> str:
        return "sparse"

    def component_chunk(self, component: Component, chunk: tuple[int, ...]) -> tuple[int, ...]:
        if component.name in ("positions", "low"):
            return (*chunk, 0)
        return self.values.component_chunk(component, (*chunk, 0))

    def to_json(self) -> dict[str, object]:
        doc: dict[str, object] = {"encoding": self.encoding, "chunk_shape": list(self.grid.chunk_shape)}
        if self.index.kind != "gaps":
            doc["index"] = self.index.kind
        if self.index.low_bits:
            doc["low_bits"] = self.index.low_bits
        if self.index.pattern is not None:
            doc["pattern"] = list(self.index.pattern)
        if self.block != (1, 1):
            doc["block"] = list(self.block)
        values = self.values.to_json(self.dtype)
        if values == {"encoding": "raw"}:
            return doc
        return doc | {"room": self.values.part.grid.shape[-1], "values": values}

    @classmethod
    def from_json(
        cls, doc: dict[str, Any], dtype: DType, shape: tuple[int, ...], arrays: dict[str, Array], parse: Parse
    ) -> "Sparse":
        """The part of ``doc`` over words of ``shape``; ``arrays`` are the arrays of its components."""
        rest = dict(arrays)
        positions, low = rest.pop("positions", None), rest.pop("low", None)
        if positions is None:
            raise ValueError(f"no array 'positions' among {', '.join(arrays)}")
        kind, pattern, block = doc.get("index", "gaps"), doc.get("pattern"), doc.get("block", [1, 1])
        if not isinstance(kind, str):
            raise ValueError(f"index {kind!r:.100} is not a string")
        (low_bits,) = integers([doc.get("low_bits", 0)])
        pair = integers(pattern) if "pattern" in doc else None
        height, width = _pair(integers(block), "block")
        index = Index(kind, low_bits, None if pair is None else _pair(pair, "pattern"))  # type: ignore[arg-type]
        own = own_arrays("values", rest)
        if rest:
            raise ValueError(f"array {min(rest)!r} is none of its components")
        grid = Grid(shape, integers(doc.get("chunk_shape")))
        if "room" in doc:
            (room,) = integers([doc["room"]])
        elif "" in own and own[""].shape and "values" not in doc:
            room = own[""].shape[-1]
        else:
            raise ValueError("it does not say how many values there is room for")
        values = parse(doc.get("values", {"encoding": "raw"}), dtype, (*grid.counts, room), own)
        return cls(dtype, grid, positions, Nested("values", values), index, low, (height, width))

    @classmethod
    def new(
        cls,
        dtype: DType,
        grid: Grid,
        index: Index,
        n_bytes: int,
        values: SinglePart,
        block: tuple[int, int] = (1, 1),
    ) -> "Sparse":
        """The part that a writer makes, with ``n_bytes`` of positions for each chunk; see ``values_grid`` for ``values``."""
        n_elements = values.grid.shape[-1] // (block[0] * block[1])
        low = bytes_array(grid, n_elements) if index.low_bits else None
        return cls(dtype, grid, bytes_array(grid, n_bytes), Nested("values", values), index, low, block)

    def encode(self, words: np.ndarray, coding: Coding) -> list[bytes | memoryview]:
        """The bodies of a chunk that has ``words`` (of its shape): all that are not 0 are stored."""
        places = self.places_of(words != 0)
        return self.encode_elements(places, self.blocks_of(words)[places], coding)

    def encode_elements(self, places: np.ndarray, words: np.ndarray, coding: Coding) -> list[bytes | memoryview]:
        """The bodies of a chunk with ``words`` of the values [places, rows, columns] at ``places``, ascending."""
        values = self.values.part
        assert isinstance(values, Raw | Planes)
        stored = np.zeros(values.grid.shape[-1], values.dtype.word)
        stored[: words.size] = words.reshape(-1)
        return [*self.encode_index(places, coding), *values.encode(stored.reshape(values.grid.chunk_shape), coding)]

    def encode_index(self, places: np.ndarray, coding: Coding) -> list[bytes | memoryview]:
        """The bodies of the components that tell ``places``; those of the values follow them."""
        body, low = self.index.encode(places, self.n_places)
        if self.index.kind == "gaps":
            body = _filled(body, self.positions.shape[-1], NO_ELEMENT)
        planes = [body, *([_filled(low, self.n_elements, 0)] if self.low else [])]
        return [compress([plane], coder=coding.coder, block_nbytes=coding.block_nbytes) for plane in planes]

    def places_of(self, present: np.ndarray) -> np.ndarray:
        """int64: the places, ascending, that hold any of ``present`` (bool, of the chunk's shape); as many as a pattern wants."""
        return taken_places(present, self.block, self.index.pattern)

    def blocks_of(self, words: np.ndarray) -> np.ndarray:
        """[places, rows, columns]: what a chunk of ``words`` has at each of its places."""
        return blocks_of(words, self.block)

    def into(self, dtype: DType) -> "Sparse | None":
        # Of these a word of zeros is the value 0, whatever the part before it gives elsewhere.
        if any(not kind.is_float or kind.bits < 16 for kind in (self.dtype, dtype)):
            return None
        if self.grid.chunk_size * dtype.word.itemsize > MAX_CHUNK_NBYTES:
            return None
        return replace(self, dtype=dtype, values=self.values.into(dtype))

    @property
    def scratch_nbytes(self) -> int:
        """Values, also in another dtype; places; the line that is made; and what NumPy makes of some elements."""
        room = self.values.part.grid.chunk_size
        total = self.values.scratch_nbytes + LINE_NBYTES + self.index.scratch_nbytes(self.n_elements)
        if self.values.dtype is not self.dtype:
            total += 2 * self.dtype.word.itemsize * room
        some = max(BLOCK, self.block[0] * self.block[1])
        return total + (64 + 24 * len(self.grid.shape)) * min(some, self.grid.chunk_size)

    def decode(self, read: Callable[[int], np.ndarray], source: tuple[slice, ...], out: np.ndarray, where: str) -> None:
        """Fill ``out``: zeros, and the values."""
        self._place(*self._elements(read, where), source, out, "fill")

    def put(self, read: Callable[[int], np.ndarray], source: tuple[slice, ...], out: np.ndarray, where: str) -> None:
        """Put the values into ``out``, which holds those of the parts before."""
        self._place(*self._elements(read, where), source, out, "put")

    def add(self, read: Callable[[int], np.ndarray], source: tuple[slice, ...], out: np.ndarray, where: str) -> None:
        """Add the values, of a part of float32, to ``out``, the sum of those of the parts before."""
        places, words = self._elements(read, where)
        self._place(places, words.view(np.float32), source, out.view(np.float32), "add")

    def places(self, body: np.ndarray, low: np.ndarray, where: str) -> np.ndarray:
        """int32: the places of a chunk's elements, ascending, out of its bytes; this thread's until the next call.

        Raises CorruptError for what a chunk has no place or no room for.
        """
        return self.index.decode(body, low, self.n_places, self.n_elements, where)

    def positions_of(self, places: np.ndarray) -> np.ndarray:
        """int64: the positions in a chunk, in row-major order, of the values at ``places``, block by block."""
        if self.block == (1, 1):
            return places.astype(np.int64)
        height, width = self.block
        cols = self.grid.chunk_shape[-1]
        row, col = np.divmod(places.astype(np.int64), cols // width)
        corner = row * (height * cols) + col * width
        inner = np.arange(height)[:, None] * cols + np.arange(width)
        positions: np.ndarray = (corner[:, None] + inner.reshape(-1)).reshape(-1)
        return positions

    def _elements(self, read: Callable[[int], np.ndarray], where: str) -> tuple[np.ndarray, np.ndarray]:
        """(places, ascending; words [places, rows, columns] of a chunk's elements, all checked)."""
        places = self.places(read(0), read(1) if self.low else _NONE, where)
        first = 2 if self.low else 1
        n = places.size * self.block[0] * self.block[1]
        # One value at least, so that a chunk of them is refused for what is wrong with it though nothing is taken of it.
        source = (*(slice(0, 1) for _ in self.grid.shape), slice(0, max(1, n)))
        words = self.values.read(lambda i: read(first + i), source, self.dtype, where)
        return places, words.reshape(-1)[:n].reshape(-1, *self.block)

    def _place(
        self, places: np.ndarray, words: np.ndarray, source: tuple[slice, ...], out: np.ndarray, how: Step
    ) -> None:
        """Put or add ``words`` [places, rows, columns] to ``out``, which is what ``source`` cuts from the chunk."""
        shape, (height, across) = self.grid.chunk_shape, self.block
        per_row, step = shape[-1] // across, max(1, BLOCK // (height * across))
        if n_matrices(shape, out) > MATRICES:
            if how == "fill":
                out[...] = 0
            for first in range(0, places.size, step):
                inside, index = within(self.positions_of(places[first : first + step]), shape, source)
                _put(out, index, words[first : first + step].reshape(-1)[inside], adds=how == "add")
            return
        for rows in rows_of(shape, source, out):
            # Places ascend: those of the rows are side by side. Numbers of another type would make NumPy copy them all.
            last = -(-(rows.first + rows.height) // height)
            ends = np.array([rows.first // height * per_row, last * per_row], places.dtype)
            begin, end = places.searchsorted(ends).tolist()
            if kernels.pays(rows.height * out.shape[-1] * out.itemsize if how == "fill" else 4 * (end - begin)):
                _place_compiled(places[begin:end], words[begin:end], shape[-1], source[-1], rows, how)
                continue
            if how == "fill":
                rows.matrix[...] = 0
            for first in range(begin, end, step):
                some = slice(first, min(first + step, end))
                _place_numpy(places[some], words[some], shape[-1], source[-1], rows, adds=how == "add")


def _place_compiled(places: np.ndarray, words: np.ndarray, width: int, cols: slice, rows: Rows, how: Step) -> None:
    """Put or add elements of a chunk with rows of ``width`` to the ``rows`` that are wanted."""
    kernel, n = kernels.load_sparse(), cols.stop - cols.start
    window, memory = (width, rows.first, rows.height, cols.start, n), (rows.memory, rows.start, rows.row)
    if words.shape[1:] != (1, 1):
        if how == "fill":
            rows.matrix[...] = 0
        place = kernel.add_blocks if how == "add" else kernel.put_blocks
        place(places, words, *window, *memory)
        return
    values = words.reshape(-1)
    if how == "fill":
        line = buffer("line", LINE_NBYTES).view(values.dtype)
        streams = rows.height * n * values.itemsize >= STREAMED_NBYTES
        kernel.fill(places, values, *window, line, streams, *memory)
    else:
        place = kernel.add if how == "add" else kernel.put
        place(places, values, *window, *memory)


def _place_numpy(places: np.ndarray, words: np.ndarray, width: int, cols: slice, rows: Rows, *, adds: bool) -> None:
    _, height, across = words.shape
    corner, column = np.divmod(places, width // across)
    row = corner[:, None, None] * height + np.arange(height, dtype=np.int32)[:, None] - rows.first
    column = column[:, None, None] * across + np.arange(across, dtype=np.int32)
    row, column = np.broadcast_arrays(row, column)
    inside = (column >= cols.start) & (column < cols.stop) & (row >= 0) & (row < rows.height)
    _put(rows.matrix, (row[inside], column[inside] - cols.start), words[inside], adds=adds)


def _put(out: np.ndarray, index: tuple[np.ndarray, ...], values: np.ndarray, *, adds: bool) -> None:
    if adds:  # no place occurs twice
        with np.errstate(over="ignore", invalid="ignore"):
            out[index] += values
    else:
        out[index] = values


_NONE = np.empty(0, np.uint8)


def blocks_of(words: np.ndarray, block: tuple[int, int]) -> np.ndarray:
    """[places, rows, columns]: ``words`` of a chunk, block by block."""
    height, width = block
    cols = words.shape[-1]
    rows = words.size // cols
    blocks: np.ndarray = words.reshape(rows // height, height, cols // width, width).swapaxes(1, 2)
    return blocks.reshape(-1, height, width)


def taken_places(present: np.ndarray, block: tuple[int, int], pattern: tuple[int, int] | None) -> np.ndarray:
    """int64: the places, ascending, of the blocks of a chunk that have any of ``present`` (bool, of the chunk's shape).

    With a pattern as many of each group as it wants, others among them; ValueError if there are more.
    """
    taken = present.reshape(-1) if block == (1, 1) else blocks_of(present, block).any(axis=(1, 2))
    if pattern is not None:
        count, group = pattern
        own = taken.reshape(-1, group)
        missing = count - own.sum(axis=1, dtype=np.int64)
        if missing.min() < 0:
            raise ValueError(f"more than {count} of {group} places are taken")
        short = np.flatnonzero(missing)
        taken = taken.copy()
        taken.reshape(-1, group)[short] |= np.cumsum(~own[short], axis=1) <= missing[short, None]
    return np.flatnonzero(taken)


def bytes_array(grid: Grid, room: int) -> Array:
    """The array of ``room`` bytes for each chunk of ``grid``."""
    values = values_grid(grid, room)
    return Array(values.shape, values.chunk_shape, "uint8", zstd=True)


def values_grid(grid: Grid, room: int) -> Grid:
    """The grid of the values: ``room`` for each chunk of ``grid``."""
    return Grid((*grid.counts, room), (*(1 for _ in grid.counts), room))


def raw_values(dtype: DType, grid: Grid, room: int) -> Raw:
    """Values as they are, compressed."""
    own = values_grid(grid, room)
    return Raw(dtype, own.shape, Array(own.shape, own.chunk_shape, dtype.disk, zstd=True))


def _filled(data: np.ndarray, room: int, byte: int) -> np.ndarray:
    return np.concatenate([data, np.full(room - data.size, byte, np.uint8)])


def _pair(numbers: tuple[int, ...], name: str) -> tuple[int, int]:
    if len(numbers) != 2:
        raise ValueError(f"{name!r} is {list(numbers)}, not two integers")
    return numbers[0], numbers[1]


def within(
    positions: np.ndarray, shape: tuple[int, ...], box: tuple[slice, ...]
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """(which of ``positions``, in row-major order of ``shape``, lie in ``box``; the indices that these have in it)."""
    index = np.unravel_index(positions, shape)
    inside = np.ones(positions.size, bool)
    for at, cut in zip(index, box, strict=True):
        inside &= (at >= cut.start) & (at < cut.stop)
    return inside, tuple(at[inside] - cut.start for at, cut in zip(index, box, strict=True))

"""Encoding ``ggml``: blocks of ggml's quantized types, bit for bit, with like bits side by side (FORMAT.md section 8.9).

A chunk holds whole blocks. Its body has the same bits in another order: field by field, and of each field plane by plane, all
blocks one after the other. Codes of types with a minimum are stored relative to the code next to 0, of which the scales tell.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mzstore import kernels
from mzstore.arrays import Array, integers
from mzstore.dtypes import DTYPES, DType
from mzstore.encodings import Coding, Component
from mzstore.encodings.rows import rows_of
from mzstore.ggml import NUMPY_COST, TYPES, BlockType, Field, extract, insert
from mzstore.ggml.values import STEP, centres, scales, shifted, values
from mzstore.grid import MAX_CHUNK_NBYTES, Grid
from mzstore.payload import compress
from mzstore.quantizers.packing import digits, pack
from mzstore.workspace import buffer

# Of a value in between: its code, packed and apart, its entry, and what NumPy makes on the way.
STEP_VALUE_NBYTES = 16


@dataclass(frozen=True, slots=True)
class Ggml:
    """``ggml`` bound to a tensor of float32. One that exists is valid; ValueError otherwise."""

    dtype: DType
    grid: Grid
    kind: BlockType
    array: Array
    components: tuple[Component, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        size = self.kind.size
        if self.dtype is not DTYPES["float32"]:
            raise ValueError(f"values of {self.dtype.name}, where blocks of {self.kind.name} stand for float32")
        if not self.grid.shape or self.grid.shape[-1] % size or self.grid.chunk_shape[-1] % size:
            raise ValueError(
                f"a tensor of {self.grid.shape} in chunks of {self.grid.chunk_shape} cuts blocks of {size} values"
            )
        if self.grid.chunk_size * self.dtype.word.itemsize > MAX_CHUNK_NBYTES:
            raise ValueError(f"chunks of {self.grid.chunk_shape} values have more than {MAX_CHUNK_NBYTES} bytes")
        expected = _array(self.kind, self.grid)
        own = self.array
        if (own.data_type, own.shape, own.chunk_shape) != (expected.data_type, expected.shape, expected.chunk_shape):
            raise ValueError(
                f"an array of {own.data_type} {own.shape} in chunks of {own.chunk_shape}, not of "
                f"{expected.data_type} {expected.shape} of {expected.chunk_shape}"
            )
        object.__setattr__(self, "components", (Component("blocks", own),))

    @property
    def encoding(self) -> str:
        return "ggml"

    @classmethod
    def new(cls, kind: BlockType, grid: Grid) -> "Ggml":
        return cls(DTYPES["float32"], grid, kind, _array(kind, grid))

    def to_json(self) -> dict[str, object]:
        return {"encoding": self.encoding, "type": self.kind.name, "chunk_shape": list(self.grid.chunk_shape)}

    @classmethod
    def from_json(cls, doc: dict[str, Any], dtype: DType, shape: tuple[int, ...], arrays: dict[str, Array]) -> "Ggml":
        """The part of ``doc`` over values of ``shape``; ``arrays`` are the arrays of its components."""
        name = doc.get("type")
        if not isinstance(name, str) or name not in TYPES:
            raise ValueError(f"type {name!r:.100} is none of {', '.join(TYPES)}")
        if arrays.keys() != {"blocks"}:
            raise ValueError(f"the components are {', '.join(arrays)}, not one array")
        return cls(dtype, Grid(shape, integers(doc.get("chunk_shape"))), TYPES[name], arrays["blocks"])

    def component_chunk(self, component: Component, chunk: tuple[int, ...]) -> tuple[int, ...]:
        return (*chunk, 0)

    def into(self, dtype: DType) -> None:
        return None

    @property
    def n_blocks(self) -> int:
        """Blocks of a chunk."""
        return self.grid.chunk_size // self.kind.size

    @property
    def scratch_nbytes(self) -> int:
        values_at_once = max(STEP, self.grid.chunk_shape[-1])
        return (4 + STEP_VALUE_NBYTES) * values_at_once

    def body(self, blocks: np.ndarray) -> list[np.ndarray]:
        """The planes of a chunk, each uint8 of one dimension; ``blocks`` are uint8[n_blocks, bytes of a block]."""
        numbers = {each.name: extract(blocks, each) for each in self.kind.fields}
        centre = centres(self.kind, scales(self.kind, numbers))
        if centre is not None:
            numbers["codes"] = shifted(self.kind, numbers["codes"], centre, -1)
        return [plane for each in self.kind.fields for plane in _planes(each, numbers[each.name])]

    def compressed(self, planes: list[np.ndarray], coding: Coding) -> bytes:
        """What ``body`` gave, as it is stored."""
        return compress(planes, coder=coding.coder, block_nbytes=coding.block_nbytes)

    def numbers(self, body: np.ndarray, rows: slice, blocks: slice, fields: tuple[Field, ...]) -> dict[str, np.ndarray]:
        """The numbers of ``fields`` in some rows of a chunk, and of each row in some of its blocks.

        Codes are those of ggml if all fields are asked for; else they may be relative ones.
        """
        found = {
            each.name: _joined(each, [self._cut(plane, rows, blocks) for plane in planes])
            for each, planes in self._planes_of(body)
            if each in fields
        }
        if fields == self.kind.fields:
            centre = centres(self.kind, scales(self.kind, found))
            if centre is not None:
                found["codes"] = shifted(self.kind, found["codes"], centre, 1)
        return found

    def _planes_of(self, body: np.ndarray) -> Iterator[tuple[Field, list[np.ndarray]]]:
        """Of every field its planes, each uint8[n_blocks, bytes]."""
        at = 0
        for each in self.kind.fields:
            planes = []
            for bits in each.planes:
                nbytes = each.count * bits // 8
                planes.append(body[at : at + self.n_blocks * nbytes].reshape(self.n_blocks, nbytes))
                at += self.n_blocks * nbytes
            yield each, planes

    def _cut(self, plane: np.ndarray, rows: slice, blocks: slice) -> np.ndarray:
        per_row = self.grid.chunk_shape[-1] // self.kind.size
        if blocks == slice(0, per_row):
            return plane[rows.start * per_row : rows.stop * per_row]
        return plane.reshape(-1, per_row, plane.shape[1])[rows, blocks].reshape(-1, plane.shape[1])

    def blocks(self, body: np.ndarray, rows: slice, blocks: slice) -> np.ndarray:
        """uint8[blocks, bytes of a block]: those of ggml, of some rows of a chunk and of some blocks of each row."""
        numbers = self.numbers(body, rows, blocks, self.kind.fields)
        count = (rows.stop - rows.start) * (blocks.stop - blocks.start)
        found = np.zeros((count, self.kind.nbytes), np.uint8)
        for each in self.kind.fields:
            insert(found, each, numbers[each.name])
        return found

    def decode(self, read: Callable[[int], np.ndarray], source: tuple[slice, ...], out: np.ndarray, where: str) -> None:
        if not out.size:
            return
        body, cols, size = read(0), source[-1], self.kind.size
        blocks = slice(cols.start // size, -(-cols.stop // size))
        width = (blocks.stop - blocks.start) * size
        whole = width == cols.stop - cols.start
        high = max(1, STEP // width)
        for rows in rows_of(self.grid.chunk_shape, source, out):
            matrix = rows.matrix.view(np.float32)
            for i in range(0, rows.height, high):
                n = min(high, rows.height - i)
                target = matrix[i : i + n]
                direct = whole and target.flags.c_contiguous
                found = target if direct else buffer("ggml values", 4 * n * width).view(np.float32).reshape(n, width)
                first = rows.first + i
                numbers = self.numbers(body, slice(first, first + n), blocks, self.kind.fields)
                values(self.kind, numbers, scales(self.kind, numbers), found.reshape(-1, size))
                if not direct:
                    start = cols.start - blocks.start * size
                    target[...] = found[:, start : start + target.shape[1]]


@dataclass(frozen=True, slots=True)
class Numbers:
    """A field of ``part``, or its blocks themselves (None), as a tensor of its own. Only readers have these."""

    part: Ggml
    of: Field | None
    grid: Grid = field(init=False)

    def __post_init__(self) -> None:
        of_block = self.of.count if self.of else self.part.kind.nbytes
        shape, chunk_shape = (
            (*extents[:-1], extents[-1] // self.part.kind.size * of_block)
            for extents in (self.part.grid.shape, self.part.grid.chunk_shape)
        )
        object.__setattr__(self, "grid", Grid(shape, chunk_shape))

    @property
    def encoding(self) -> str:
        return "ggml numbers"

    @property
    def components(self) -> tuple[Component, ...]:
        """The same array; under a name of its own, so that nobody takes it for the values."""
        return (Component(f"blocks as {self.of.name if self.of else 'bytes'}", self.part.array),)

    @property
    def dtype(self) -> DType:
        return DTYPES[(self.of.read_as or self.of.dtype.name) if self.of else "uint8"]

    def component_chunk(self, component: Component, chunk: tuple[int, ...]) -> tuple[int, ...]:
        return self.part.component_chunk(component, chunk)

    def into(self, dtype: DType) -> None:
        return None

    @property
    def scratch_nbytes(self) -> int:
        return self.part.scratch_nbytes + 4 * self.grid.chunk_size

    def decode(self, read: Callable[[int], np.ndarray], source: tuple[slice, ...], out: np.ndarray, where: str) -> None:
        """See ``Part.decode``."""
        if not out.size:
            return
        body, cols = read(0), source[-1]
        of_block = self.of.count if self.of else self.part.kind.nbytes
        blocks = slice(cols.start // of_block, -(-cols.stop // of_block))
        width = (blocks.stop - blocks.start) * of_block
        high = max(1, STEP // width)
        start = cols.start - blocks.start * of_block
        for rows in rows_of(self.part.grid.chunk_shape, source, out):
            for i in range(0, rows.height, high):
                n = min(high, rows.height - i)
                some = slice(rows.first + i, rows.first + i + n)
                if self.of is None:
                    found = self.part.blocks(body, some, blocks)
                else:
                    fields = self.part.kind.fields if self.of.name == "codes" else (self.of,)
                    found = self.part.numbers(body, some, blocks, fields)[self.of.name]
                rows.matrix[i : i + n] = found.reshape(n, width)[:, start : start + out.shape[-1]]


def _array(kind: BlockType, grid: Grid) -> Array:
    nbytes = math.prod(grid.chunk_shape) // kind.size * kind.nbytes
    return Array((*grid.counts, nbytes), (*(1 for _ in grid.counts), nbytes), "uint8", zstd=True)


def _planes(each: Field, numbers: np.ndarray) -> Iterator[np.ndarray]:
    """The planes of [n, count] numbers, the most significant first, each of one dimension; the first of several numbers in
    the least significant bits of a byte."""
    left, fast = each.width, kernels.pays(NUMPY_COST * numbers.size)
    for bits in each.planes:
        left -= bits
        if fast:
            plane = np.empty(numbers.size * bits // 8, np.uint8)
            kernels.load_ggml().split(np.ascontiguousarray(numbers).reshape(-1), left, bits, plane)
            yield plane
            continue
        part = (numbers >> each.dtype.type(left) & each.dtype.type((1 << bits) - 1)).astype(np.uint8, copy=False)
        yield pack(np.ascontiguousarray(part).reshape(1, -1), 8 // bits).reshape(-1)


def _joined(each: Field, planes: list[np.ndarray]) -> np.ndarray:
    """The inverse of ``_planes``, of planes of [n, bytes]: unsigned [n, count]."""
    n = planes[0].shape[0]
    if kernels.pays(NUMPY_COST * n * each.count):
        numbers = np.zeros((n, each.count), each.dtype)
        for bits, plane in zip(each.planes, planes, strict=True):
            kernels.load_ggml().join(np.ascontiguousarray(plane).reshape(-1), bits, numbers.reshape(-1))
        return numbers
    found: np.ndarray | None = None
    for bits, plane in zip(each.planes, planes, strict=True):
        part = plane if bits == 8 else digits(8 // bits)[plane].reshape(n, -1)
        found = part if found is None else found.astype(each.dtype, copy=False) << each.dtype.type(bits) | part
    assert found is not None
    return found

"""Encodings: how the words of a tensor become the chunks of Zarr arrays, and back (FORMAT.md section 8).

Each module holds one encoding: its document, ``encode`` and ``decode`` side by side. They know no storage.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mzstore.arrays import Array
from mzstore.dtypes import DType
from mzstore.errors import CorruptError
from mzstore.grid import Grid
from mzstore.payload import decompress, unseal
from mzstore.workspace import buffer


@dataclass(frozen=True, slots=True)
class Component:
    """One array of an encoded tensor."""

    name: str
    array: Array


@dataclass(frozen=True, slots=True)
class Coding:
    """What the writer is free to choose; no reader needs to know it."""

    coder: str = "huffman"  # of payload.CODERS
    block_nbytes: int = 128 << 10  # the longest run under one Huffman table


class Part(Protocol):
    """An encoding, bound to one tensor."""

    @property
    def encoding(self) -> str: ...

    @property
    def dtype(self) -> DType:
        """Of the values that the part gives: the tensor's dtype, or a narrower one that holds them exactly."""

    @property
    def grid(self) -> Grid:
        """Chunks of the words."""

    @property
    def components(self) -> tuple[Component, ...]: ...

    def component_chunk(self, component: Component, chunk: tuple[int, ...]) -> tuple[int, ...]:
        """Position of ``chunk`` of the grid in the grid of the component."""

    def decode(self, read: Callable[[int], np.ndarray], source: tuple[slice, ...], out: np.ndarray, where: str) -> None:
        """Fill ``out`` (words, of the shape that ``source`` cuts from the chunk, last axis contiguous).

        ``read(i)`` gives the bytes of the chunk of component ``i``, decompressed and checked, valid until the
        next call for that component. Raises CorruptError, a single part before anything is written.
        """

    def into(self, dtype: DType) -> "Part | None":
        """The same part, giving values of ``dtype``, or of one that comes nearer to it, with no other rounding between.

        None where the values have to be cast from what ``dtype`` is now.
        """

    @property
    def scratch_nbytes(self) -> int:
        """Memory that ``decode`` takes for a chunk at most, besides ``out``, the components' chunks, and what is small."""


class SinglePart(Part, Protocol):
    """A part that has a document of its own: all but ``Combined``."""

    def to_json(self) -> dict[str, object]: ...


def chunk_path(part: Part, component: Component, chunk: tuple[int, ...]) -> str:
    """Key of the component's chunk for ``chunk`` of the part's grid, below the tensor's node.

    A tensor of one component is that array itself; only several are arrays of their own (FORMAT.md tensor-4).
    """
    key = component.array.chunk_key(part.component_chunk(component, chunk))
    return key if len(part.components) == 1 else f"{component.name}/{key}"


def first_of(part: Part, component: Component, chunk: tuple[int, ...]) -> bool:
    """Whether ``chunk`` is the first in row-major order that has this chunk of the component: the one it is written with."""
    own = part.component_chunk(component, chunk)
    return not any(
        n and part.component_chunk(component, (*chunk[:axis], n - 1, *chunk[axis + 1 :])) == own
        for axis, n in enumerate(chunk)
    )


def read_chunk(component: Component, payload: memoryview, *, where: str) -> np.ndarray:
    """The chunk's bytes (uint8) in ``payload``: the payload's own, or this thread's buffer for the component."""
    body = unseal(payload, where=where)
    nbytes = component.array.chunk_nbytes
    if not component.array.zstd:
        if len(body) != nbytes:
            raise CorruptError(f"the chunk has {nbytes} bytes, {len(body)} are stored", where=where, clause="payload-1")
        return np.frombuffer(body, np.uint8)
    out = buffer(f"chunk {component.name}", nbytes)
    decompress(body, out, where=where)
    return out

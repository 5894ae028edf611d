"""Packed: tensors that come in blocks of ggml. They are stored as these blocks, and are read as the values that they stand for."""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from mzstore.encode import Payload
from mzstore.encodings import Coding, chunk_path
from mzstore.encodings.ggml import Ggml
from mzstore.ggml import BlockType
from mzstore.grid import Grid, choose_chunk_shape
from mzstore.payload import seal
from mzstore.sources import TensorSource
from mzstore.tensors import TensorSpec

# A tensor below this is one chunk, of about a megabyte. Cut as float32 is, which takes six times more, its chunks would be
# so small that their directory and Huffman tables take 1 to 2 parts in a hundred.
SINGLE_CHUNK_VALUES = 2 << 20


@runtime_checkable
class PackedSource(Protocol):
    """A TensorSource whose values are stored as blocks of ``block_type``; None: they are not."""

    @property
    def spec(self) -> TensorSpec: ...

    @property
    def block_type(self) -> BlockType | None: ...

    def read(self, start: int, stop: int) -> np.ndarray: ...

    def read_blocks(self, start: int, stop: int) -> np.ndarray:
        """Blocks ``[start, stop)`` in row-major order: uint8[stop - start, bytes of a block], the caller's."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Chunks of a row block, and the words that they give."""

    payloads: list[Payload]
    words: np.ndarray


def block_type_of(source: TensorSource) -> BlockType | None:
    return source.block_type if isinstance(source, PackedSource) else None


def part_for(kind: BlockType, shape: tuple[int, ...]) -> Ggml:
    """How a tensor of ``shape`` is cut into chunks of whole blocks. Raises ValueError if its rows are no whole blocks."""
    small = math.prod(shape) < SINGLE_CHUNK_VALUES
    *lead, cols = tuple(max(n, 1) for n in shape) if small else choose_chunk_shape(shape, 4)
    return Ggml.new(kind, Grid(shape, (*lead, -(-cols // kind.size) * kind.size)))


def encode(part: Ggml, blocks: np.ndarray, shape: tuple[int, ...], chunks: list[tuple[int, ...]]) -> Encoded:
    """The ``chunks`` of a row block of ``shape`` (of words), which has these ``blocks``."""
    size, nbytes = part.kind.size, part.kind.nbytes
    *lead, cols = part.grid.chunk_shape
    found: list[Payload] = []
    words = np.empty(shape, part.dtype.word)
    own = blocks.reshape(*shape[:-1], shape[-1] // size, nbytes)
    for chunk in chunks:
        box = part.grid.box_in_block(chunk)
        taken = own[(*box[:-1], slice(box[-1].start // size, box[-1].stop // size))]
        missing = [(0, n - m) for n, m in zip((*lead, cols // size, nbytes), taken.shape, strict=True)]
        planes = part.body(np.pad(taken, missing).reshape(-1, nbytes))
        payload = seal(part.compressed(planes, Coding()))
        found.append(Payload(chunk_path(part, part.components[0], chunk), payload, plain=False))
        body, target = np.concatenate(planes), words[box]
        part.decode(lambda _, body=body: body, _all_of(target.shape), target, "")  # type: ignore[misc]
    return Encoded(found, words)


def block_runs(source: PackedSource, part: Ggml) -> Iterator[np.ndarray]:
    """All blocks of ``source``, those of one row block of ``part`` after another."""
    for start, shape, _ in part.grid.row_blocks():
        first = start // part.kind.size
        yield source.read_blocks(first, first + math.prod(shape) // part.kind.size)


def digest_of_blocks(source: PackedSource, part: Ggml) -> str:
    """By which tensors of a type are told to be the same: equal values may be of different blocks."""
    digest = hashlib.sha256()
    for run in block_runs(source, part):
        digest.update(run.data)
    return digest.hexdigest()


def _all_of(shape: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(0, n) for n in shape)

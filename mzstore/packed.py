"""Packed: tensors that come in blocks of ggml. They are stored as these blocks, and are read as the values that they stand for."""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mzstore.encode import Payload
from mzstore.encodings import Coding, chunk_path
from mzstore.encodings.ggml import Ggml
from mzstore.ggml import BlockType
from mzstore.grid import Grid, choose_chunk_shape
from mzstore.payload import seal
from mzstore.sources import PackedSource

# A tensor below this is one chunk, of about a megabyte. Cut as float32 is, which takes six times more, its chunks would be
# so small that their directory and Huffman tables take 1 to 2 parts in a hundred.
SINGLE_CHUNK_VALUES = 2 << 20


@dataclass(frozen=True, slots=True)
class Encoded:
    """Chunks of a row block, and the words that they give."""

    payloads: list[Payload]
    words: np.ndarray


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


def block_runs(source: PackedSource) -> Iterator[np.ndarray]:
    """All blocks of ``source``, those of one row block of chunks after another."""
    kind = source.block_type
    assert kind is not None
    for start, shape, _ in part_for(kind, source.spec.shape).grid.row_blocks():
        first = start // kind.size
        yield source.read_blocks(first, first + math.prod(shape) // kind.size)


def digest_of_blocks(source: PackedSource) -> str:
    """By which tensors of a type are told to be the same: equal values may be of different blocks."""
    digest = hashlib.sha256()
    for run in block_runs(source):
        digest.update(run.data)
    return digest.hexdigest()


def _all_of(shape: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(0, n) for n in shape)

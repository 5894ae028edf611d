"""Sources: what a writer reads. Tensors one after the other, each by runs of words, never whole."""

import hashlib
import math
import os
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from mzstore.frameworks import as_words, count_nbytes
from mzstore.ggml import BlockType
from mzstore.grid import Grid, choose_chunk_shape
from mzstore.storage import BLOCK_NBYTES
from mzstore.tensors import TensorSpec

AHEAD_NBYTES = 128 << 20  # of a tensor that is read whole; there are two of them in memory


class TensorSource(Protocol):
    @property
    def spec(self) -> TensorSpec: ...

    def read(self, start: int, stop: int) -> np.ndarray:
        """Words ``[start, stop)`` in row-major order, one dimension. Always the same for the same range."""


@runtime_checkable
class PackedSource(Protocol):
    """A TensorSource whose values are stored as blocks of ``block_type``, which a writer keeps; None: they are not."""

    @property
    def spec(self) -> TensorSpec: ...

    @property
    def block_type(self) -> BlockType | None: ...

    def read(self, start: int, stop: int) -> np.ndarray: ...

    def read_blocks(self, start: int, stop: int) -> np.ndarray:
        """Blocks ``[start, stop)`` in row-major order: uint8[stop - start, bytes of a block], the caller's."""


def is_changed(source: TensorSource) -> bool:
    """Whether codes, factors or the like stand for the values of ``source``: what its ``changed`` says, if it has that."""
    return bool(getattr(source, "changed", False))


def block_type_of(source: TensorSource) -> BlockType | None:
    """Of ggml, whose blocks ``source`` has; None if it has none."""
    return source.block_type if isinstance(source, PackedSource) else None


@dataclass(frozen=True, slots=True)
class ArraySource:
    """A tensor in memory."""

    spec: TensorSpec
    words: np.ndarray

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.words.reshape(-1)[start:stop]


@dataclass(frozen=True, slots=True)
class LayoutSource:
    """What is kept of a source file besides its tensors, so that the file can be made again.

    raw     the object of the layout
    prefix  stands before the names in it
    format  of the layout, not of the file
    kind    the format of the file, as ``convert`` names it
    """

    path: str
    raw: bytes
    prefix: str = ""
    format: str = "safetensors"
    kind: str = "safetensors"


@dataclass(frozen=True, slots=True)
class FileSource:
    """A file that travels as an asset. ``path`` is relative, with forward slashes; ``blocks`` reads it anew each time."""

    path: str
    blocks: Callable[[], Iterator[bytes | memoryview]]

    def survey(self) -> tuple[int, int, str]:
        """(size, CRC-32, SHA-256) of the content."""
        nbytes, crc, digest = 0, 0, hashlib.sha256()
        for block in self.blocks():
            nbytes, crc = nbytes + len(block), zlib.crc32(block, crc)
            digest.update(block)
        return nbytes, crc, digest.hexdigest()


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model to be written. ``tensors`` is walked front to back; by a recipe that prunes several tensors together, twice."""

    tensors: Iterable[TensorSource]
    nbytes: int  # of all tensors, for the progress
    metadata: Mapping[str, Any] = field(default_factory=dict)
    assets: Sequence[FileSource] = ()
    layouts: Sequence[LayoutSource] = ()
    bases: Sequence[str] = ()  # of tensors that are prepared to refer to them
    notes: Sequence[str] = ()  # what a user should know of what is not kept
    unpacks: bool = False  # whether ``layouts`` and ``assets`` are kept from an earlier conversion
    files: Mapping[str, tuple[int, str]] = field(
        default_factory=dict
    )  # beside the first: bytes and version of those that were opened
    check_unchanged: Callable[[], None] = lambda: None  # raises StorageError if what was read is not one version


@dataclass(frozen=True, slots=True)
class Walked:
    """Tensors that ``walk`` gives, each time anew; some of them may be prepared."""

    walk: Callable[[], Iterator[Any]]

    def __iter__(self) -> Iterator[Any]:
        return self.walk()


def from_arrays(tensors: Mapping[str, Any], metadata: Mapping[str, Any], assets: Mapping[str, Any]) -> ModelSource:
    """A source over arrays of NumPy or tensors of PyTorch, and assets given as bytes or as paths of files."""
    if bad := [name for name in tensors if not isinstance(name, str)]:
        raise TypeError(f"tensor names are strings, {bad[0]!r} is not")

    def sources() -> Iterator[TensorSource]:
        for name in tensors:
            yield ArraySource(*as_words(name, tensors[name]))

    walked = Walked(sources)
    nbytes = sum(count_nbytes(value) for value in tensors.values())
    files = tuple(FileSource(path, partial(_blocks, content)) for path, content in assets.items())
    return ModelSource(walked, nbytes, metadata, files)


@dataclass(frozen=True, slots=True)
class HeldSource:
    """A tensor that was read ahead: its words, and where they can be read again."""

    spec: TensorSpec
    words: np.ndarray
    origin: TensorSource

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.words[start:stop]


@dataclass(frozen=True, slots=True)
class Renamed:
    """``source`` under another name."""

    name: str
    source: TensorSource

    @property
    def spec(self) -> TensorSpec:
        return replace(self.source.spec, name=self.name)

    @property
    def block_type(self) -> BlockType | None:
        return block_type_of(self.source)

    @property
    def changed(self) -> bool:
        return is_changed(self.source)

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.source.read(start, stop)

    def read_blocks(self, start: int, stop: int) -> np.ndarray:
        assert isinstance(self.source, PackedSource)
        return self.source.read_blocks(start, stop)


def held(source: TensorSource) -> TensorSource:
    """``source``, read whole if it is of moderate size: for one that is read more than once."""
    if source.spec.nbytes > AHEAD_NBYTES or isinstance(source, HeldSource):
        return source
    return HeldSource(source.spec, source.read(0, math.prod(source.spec.word_shape)), source)


def origin(source: TensorSource) -> TensorSource:
    """What ``source`` was read ahead from, to be kept where its values must not stay in memory."""
    found: TensorSource = getattr(source, "origin", source)
    return found


def read_ahead(
    tensors: Iterable[TensorSource], prepare: Callable[[TensorSource], TensorSource] = held
) -> Generator[TensorSource]:
    """``tensors``, each prepared while the one before it is at work: read whole, if it is of moderate size.

    For writers, which read more than once. Of those that a recipe has changed they may want the chunks, not the values, and of
    others the blocks.
    """

    def ahead(source: TensorSource) -> TensorSource:
        return source if is_changed(source) or block_type_of(source) else prepare(source)

    pool = ThreadPoolExecutor(1, thread_name_prefix="mzstore-ahead")
    try:
        following: Future[TensorSource] | None = None
        for source in tensors:
            current, following = following, pool.submit(ahead, source)
            if current:
                yield current.result()
        if following:
            yield following.result()
    finally:  # a read that stalls ends when its source is closed; nobody waits for it here
        pool.shutdown(wait=False, cancel_futures=True)


def blocks(source: TensorSource) -> Iterator[np.ndarray]:
    """All words of ``source``, in flat arrays of at most some megabytes: its row blocks."""
    shape, itemsize = source.spec.word_shape, source.spec.dtype.word.itemsize
    for start, block_shape, _ in Grid(shape, choose_chunk_shape(shape, itemsize)).row_blocks():
        yield source.read(start, start + math.prod(block_shape))


def _blocks(content: bytes | str | os.PathLike[str]) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    with Path(content).open("rb") as file:
        while block := file.read(BLOCK_NBYTES):
            yield block

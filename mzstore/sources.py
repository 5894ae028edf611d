"""Sources: what a writer reads. Tensors one after the other, each by runs of words, never whole."""

import hashlib
import io
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from mzstore.frameworks import as_words
from mzstore.tensors import TensorSpec

BLOCK_NBYTES = 1 << 20


class TensorSource(Protocol):
    @property
    def spec(self) -> TensorSpec: ...

    def read(self, start: int, stop: int) -> np.ndarray:
        """Words ``[start, stop)`` in row-major order, one dimension. Always the same for the same range."""


@dataclass(frozen=True, slots=True)
class ArraySource:
    """A tensor in memory."""

    spec: TensorSpec
    words: np.ndarray

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.words.reshape(-1)[start:stop]


@dataclass(frozen=True, slots=True)
class LayoutSource:
    """The bytes in front of the tensors of a source file, kept so that the file can be made again."""

    path: str
    header: bytes
    format: str = "safetensors"


@dataclass(frozen=True, slots=True)
class FileSource:
    """A file that travels as an asset. ``path`` is relative, with forward slashes."""

    path: str
    open: Callable[[], AbstractContextManager[BinaryIO]]

    def survey(self) -> tuple[int, int, str]:
        """(size, CRC-32, SHA-256) of the content."""
        nbytes, crc, digest = 0, 0, hashlib.sha256()
        for block in self.blocks():
            nbytes, crc = nbytes + len(block), zlib.crc32(block, crc)
            digest.update(block)
        return nbytes, crc, digest.hexdigest()

    def blocks(self) -> Iterator[bytes]:
        with self.open() as file:
            while block := file.read(BLOCK_NBYTES):
                yield block


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model to be written. ``tensors`` is walked once."""

    tensors: Sequence[TensorSource] | Iterator[TensorSource]
    nbytes: int  # of all tensors, for the progress
    metadata: Mapping[str, Any] = field(default_factory=dict)
    assets: Sequence[FileSource] = ()
    layouts: Sequence[LayoutSource] = ()


def from_arrays(tensors: Mapping[str, Any], metadata: Mapping[str, Any], assets: Mapping[str, Any]) -> ModelSource:
    """A source over arrays of NumPy or tensors of PyTorch, and assets given as bytes or as paths of files."""
    if bad := [name for name in tensors if not isinstance(name, str)]:
        raise TypeError(f"tensor names are strings, {bad[0]!r} is not")

    def sources() -> Iterator[TensorSource]:
        for name in tensors:
            yield ArraySource(*as_words(name, tensors[name]))

    nbytes = sum(int(getattr(value, "nbytes", 0)) for value in tensors.values())
    files = tuple(FileSource(path, _opener(content)) for path, content in assets.items())
    return ModelSource(sources(), nbytes, metadata, files)


def _opener(content: bytes | str | os.PathLike[str]) -> Callable[[], AbstractContextManager[BinaryIO]]:
    if isinstance(content, bytes):
        return lambda: io.BytesIO(content)
    return lambda: Path(content).open("rb")

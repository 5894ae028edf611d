"""Groups and arrays of Zarr, of version 2 and 3, that are no models of mzstore: read by zarr-python.

A chunk is decoded once, and its values are put in order in a temporary file, because a tensor is read front to back, whatever
its chunks are. What can take memory is one chunk.
"""

import itertools
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mzstore.documents import DOCUMENT, MAX_DOCUMENT_NBYTES
from mzstore.dtypes import BY_NUMPY
from mzstore.errors import CorruptError, FormatError, StorageError, UnsupportedError
from mzstore.formats.base import FolderFormat, Opening
from mzstore.formats.files import Copies, Temporary, write_box
from mzstore.sources import ModelSource, TensorSource
from mzstore.storage import Folder
from mzstore.tensors import TensorSpec

VERSION_2 = (".zgroup", ".zarray")
MAX_CHUNK_NBYTES = 1 << 30
# By what an array may be encoded: everything known that runs nothing. Pickle is a codec of numcodecs, too.
CODECS = frozenset(
    [
        "bytes",
        "crc32c",
        "gzip",
        "zstd",
        "blosc",
        "transpose",
        "sharding_indexed",
        "zlib",
        "bz2",
        "lzma",
        "lz4",
        "shuffle",
        "delta",
        "fixedscaleoffset",
        "quantize",
        "bitround",
        "packbits",
        "astype",
        "crc32",
        "adler32",
        "fletcher32",
        "jenkins_lookup3",
        "pcodec",
        "zfpy",
    ]
)


def is_mzstore(folder: Folder) -> bool:
    """Whether the root document is one of mzstore, or broken: then the reader of models says so."""
    data = folder.read(DOCUMENT, MAX_DOCUMENT_NBYTES)
    try:
        doc = json.loads(bytes(data or b""))
        attributes = doc.get("attributes") or {}
        return "mzstore" in attributes or doc.get("zarr_format") != 3
    except (ValueError, AttributeError, RecursionError):
        return True


def recognizes(folder: Folder) -> bool:
    return any(folder.has(key) for key in (DOCUMENT, *VERSION_2))


def open_folder(folder: Folder, opening: Opening) -> ModelSource:
    """A tensor for each array in the group and those below it, by their paths; or the only array. Attributes of the root are metadata."""
    import zarr  # which takes as long to import as all the rest
    from zarr.errors import BaseZarrError

    try:
        node = zarr.open(_store(folder, opening), mode="r")
        arrays = {node.basename or _stem(folder): node} if isinstance(node, zarr.Array) else dict(_arrays(node))
        attributes = dict(node.attrs)
    except (ValueError, TypeError, KeyError, OSError, BaseZarrError) as error:
        raise FormatError(f"not a group or array of Zarr that can be read: {error}", where=folder.url) from error
    copies = Copies.of(opening.stack)
    sources: list[TensorSource] = []
    notes = ["an array of Zarr comes back with equal values, and not by the same chunks"]
    for name, array in arrays.items():
        found = _source(name, array, copies, folder.url)
        if found is None:
            notes.append(f"{name:.200} is an array of text or dates, and left out")
        else:
            sources.append(found)
    nbytes = sum(source.spec.nbytes for source in sources)
    return ModelSource(sources, nbytes, attributes, notes=notes)


def _stem(folder: Folder) -> str:
    return os.path.splitext(folder.url.rstrip("/").rpartition("/")[2])[0] or "array"


def _store(folder: Folder, opening: Opening) -> Any:
    if folder.local:
        return folder.url
    from zarr.storage import FsspecStore

    return FsspecStore.from_url(folder.url, storage_options=dict(opening.options or {}), read_only=True)


def _arrays(group: Any) -> Iterator[tuple[str, Any]]:
    from zarr import Array

    for path, node in sorted(group.members(max_depth=None)):
        if isinstance(node, Array):
            yield path, node


def _codecs(array: Any) -> Iterator[str]:
    """The names of all codecs, also those inside of shards."""
    metadata = array.metadata.to_dict()
    if metadata["zarr_format"] == 2:
        for codec in (metadata.get("compressor"), *(metadata.get("filters") or ())):
            if codec is not None:
                yield codec["id"] if isinstance(codec, Mapping) else codec.codec_id
        return
    todo = list(metadata["codecs"])
    while todo:
        codec = todo.pop()
        codec = codec if isinstance(codec, Mapping) else codec.to_dict()
        yield codec["name"].removeprefix("numcodecs.")
        inner = codec.get("configuration") or {}
        todo += [*inner.get("codecs", ()), *inner.get("index_codecs", ())]


def _source(name: str, array: Any, copies: Copies, url: str) -> "ZarrTensor | None":
    where = f"{url}, array {name!r:.200}"
    dtype = array.dtype
    if dtype.hasobject:
        raise UnsupportedError(
            "an array of objects, which may be pickled: refused, and nothing of it was run", where=where
        )
    if unknown := sorted(set(_codecs(array)) - CODECS):
        raise UnsupportedError(f"an array with the codec {unknown[0]!r:.100}", where=where)
    if dtype.kind in "SUMmT":
        return None
    found = BY_NUMPY.get(dtype.newbyteorder("<"))
    if found is None:
        raise UnsupportedError(f"an array of {dtype}, which no tensor has", where=where)
    if math.prod(array.chunks) * dtype.itemsize > MAX_CHUNK_NBYTES:
        raise UnsupportedError(
            f"an array with chunks of shape {array.chunks}, more than {MAX_CHUNK_NBYTES} bytes", where=where
        )
    try:
        return ZarrTensor(TensorSpec(name, found, tuple(array.shape)), array, copies, where)
    except ValueError as error:
        raise FormatError(str(error), where=where) from error


@dataclass(frozen=True, slots=True, eq=False)
class ZarrTensor:
    """A TensorSource over an array of zarr-python."""

    spec: TensorSpec
    array: Any
    copies: Copies
    where: str

    def read(self, start: int, stop: int) -> np.ndarray:
        word = self.spec.dtype.word
        data = self.copies.read(self, self._fill, start * word.itemsize, stop * word.itemsize)
        return np.frombuffer(data, word).copy()

    def _fill(self, file: Temporary) -> None:
        shape, chunk = self.spec.shape, self.array.chunks
        if 0 in shape:
            return
        file.write(b"\0", self.spec.nbytes - 1)
        for corner in itertools.product(*(range(0, n, max(c, 1)) for n, c in zip(shape, chunk, strict=True))):
            box = tuple(slice(at, min(at + c, n)) for at, c, n in zip(corner, chunk, shape, strict=True))
            try:
                values = np.asarray(self.array[box])
            except OSError as error:
                raise StorageError(f"cannot read the chunk at {corner} of {self.where}: {error}") from error
            except Exception as error:  # each codec raises errors of its own
                raise CorruptError(f"the chunk at {corner} cannot be decoded: {error}", where=self.where) from error
            words = self.spec.dtype.to_words(values.astype(self.spec.dtype.numpy, copy=False))
            inner = words.shape[len(shape) :]
            write_box(file, (*shape, *inner), (*corner, *(0 for _ in inner)), words)


FORMAT = FolderFormat("zarr", recognizes, open_folder)

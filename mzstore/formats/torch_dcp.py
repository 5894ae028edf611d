"""Directories of ``torch.distributed.checkpoint``: one model of the shards that many ranks wrote, read without PyTorch.

``.metadata`` is a pickle of which tensor lies where, read without running anything of it. Each shard is a file of PyTorch in itself, a part
of a ``.distcp`` file. https://github.com/pytorch/pytorch/blob/main/torch/distributed/checkpoint/metadata.py
"""

import io
import itertools
import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeGuard

import numpy as np

from mzstore.documents import check_relative
from mzstore.errors import CorruptError, FormatError, UnsupportedError
from mzstore.formats import pickles, pytorch, safetensors
from mzstore.formats.base import Candidate, FolderFormat, Opening
from mzstore.formats.files import Copies, Part, Temporary, check_unchanged, write_box
from mzstore.formats.pickles import Global, Instance
from mzstore.sources import ModelSource, TensorSource, blocks
from mzstore.storage import Folder
from mzstore.tensors import TensorSpec

METADATA = ".metadata"
PREFIX = "torch.distributed."
MAX_SHARDS = 4096  # of one tensor
PATHS = tuple(f"pathlib.{local}{kind}" for local in ("", "_local.") for kind in ("PosixPath", "WindowsPath"))
FORMATS = ("torch.contiguous_format", "torch.preserve_format", "torch.channels_last", "torch.channels_last_3d")


def recognizes(folder: Folder) -> bool:
    return folder.has(METADATA)


def open_folder(folder: Folder, opening: Opening) -> ModelSource:
    """All tensors, whole, by their names in the state dict; other values become metadata where JSON has them."""
    where = f"{folder.url}/{METADATA}"
    data = folder.read(METADATA, pickles.MAX_NBYTES)
    about = _state(pickles.load(io.BytesIO(bytes(data or b"")), _find, where=where), where)
    stored = _stored(about.get("storage_data"), where)
    contents = about.get("state_dict_metadata")
    if not isinstance(contents, dict):
        raise FormatError("it does not say what tensors there are", where=where)
    blob_of = cache(lambda path: opening.file(folder.url, path))
    copies = Copies.of(opening.stack)
    sources: list[TensorSource] = []
    metadata: dict[str, Any] = {}
    notes = ["shards of a distributed checkpoint come back as equal tensors, and not byte for byte"]

    def part(name: str, offsets: tuple[int, ...] | None) -> Candidate:
        found = stored.get((name, offsets))
        if found is None:
            raise CorruptError(f"a shard of {name!r:.200} at {offsets} is not said to be anywhere", where=where)
        blob = blob_of(found.path)
        if found.start + found.nbytes > blob.nbytes:
            raise CorruptError(f"a shard of {name!r:.200} ends behind its file {found.path!r}", where=where)
        return Candidate(Part(blob, found.start, found.nbytes))

    for name, entry in contents.items():
        described = _state(entry, where)
        if "chunks" not in described:
            try:
                metadata[name] = pytorch.plain_value(part(name, None))
            except UnsupportedError as error:
                notes.append(f"{name:.200} is not kept as metadata: {error.problem}")
            continue
        sources.append(_tensor(name, described, part, opening, copies, where))

    nbytes, paths = sum(source.spec.nbytes for source in sources), {found.path for found in stored.values()}
    return ModelSource(
        sources, nbytes, metadata, notes=notes, check_unchanged=lambda: check_unchanged(map(blob_of, paths))
    )


def _find(name: str) -> Global | None:
    if name.startswith(PREFIX):
        return Global(name, lambda *_: Instance(name))
    if name in PATHS:
        return Global(name, lambda *parts: "/".join(map(str, parts)))
    if name == "torch.Size":
        return Global(name, tuple)
    if name == "torch.serialization._get_layout":
        return Global(name, str)
    if name == "collections.OrderedDict":
        return Global(name, lambda *_: {})
    return Global(name) if name in pytorch.TORCH_DTYPES or name in FORMATS else None


def _state(value: Any, where: str) -> dict[str, Any]:
    """The attributes of an object in the pickle."""
    if isinstance(value, Instance) and (value.state is None or isinstance(value.state, dict)):
        return value.state or {}
    raise FormatError(f"a pickle of something else: {type(value).__name__}", where=where)


@dataclass(frozen=True, slots=True)
class _Stored:
    path: str
    start: int
    nbytes: int


def _stored(entries: Any, where: str) -> dict[tuple[str, tuple[int, ...] | None], _Stored]:
    """Where each shard is, by its tensor and its offsets."""
    if not isinstance(entries, dict):
        raise FormatError("it does not say where tensors are", where=where)
    found = {}
    for key, value in entries.items():
        index, place = _state(key, where), _state(value, where)
        if place.get("transform_descriptors"):
            raise UnsupportedError(f"a shard that is stored by {place['transform_descriptors']!r:.100}", where=where)
        offsets = index.get("offset")
        match index.get("fqn"), place:
            case str(name), {"relative_path": str(path), "offset": int(start), "length": int(nbytes)} if (
                start >= 0 and nbytes >= 0 and (offsets is None or _are_counts(offsets))
            ):
                check_relative(path, where=where)
                found[name, offsets] = _Stored(path, start, nbytes)
            case _:
                raise FormatError("a shard has no name, or is nowhere", where=where)
    return found


def _are_counts(values: Any) -> TypeGuard[tuple[int, ...]]:
    return isinstance(values, tuple) and all(type(n) is int and 0 <= n < 1 << 62 for n in values)


@dataclass(frozen=True, slots=True)
class _Shard:
    """A box of a tensor: ``open`` gives its values when they are needed."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    open: Callable[[], TensorSource]


def _tensor(
    name: str,
    about: Mapping[str, Any],
    part: Callable[[str, tuple[int, ...] | None], Candidate],
    opening: Opening,
    copies: Copies,
    where: str,
) -> TensorSource:
    properties = about.get("properties")
    kind = properties.state if isinstance(properties, Instance) else None
    dtype = kind[0] if isinstance(kind, tuple) and kind else kind.get("dtype") if isinstance(kind, dict) else None
    shape, chunks = about.get("size"), about["chunks"]
    if not isinstance(dtype, Global) or dtype.name not in pytorch.TORCH_DTYPES:
        raise UnsupportedError(f"tensor {name!r:.200} of {dtype!r:.100}", where=where)
    if not _are_counts(shape) or not isinstance(chunks, list) or not 1 <= len(chunks) <= MAX_SHARDS:
        raise FormatError(f"tensor {name!r:.200} has no shape, or no shards, or more than {MAX_SHARDS}", where=where)
    found = pytorch.TORCH_DTYPES[dtype.name]
    if found.packed:
        raise UnsupportedError(f"tensor {name!r:.200} of {dtype.name} in shards", where=where)
    try:
        spec = TensorSpec(name, found, shape)
    except ValueError as error:
        raise FormatError(str(error), where=where) from error

    def opened(offsets: tuple[int, ...], sizes: tuple[int, ...]) -> TensorSource:
        file = part(name, offsets)
        open_ = safetensors.open_file if safetensors.recognizes(file) else pytorch.open_file
        tensors = list(open_(file, opening).tensors)
        if len(tensors) != 1 or (tensors[0].spec.dtype, tensors[0].spec.shape) != (found, sizes):
            text = f"the shard of {name!r:.200} at {offsets} is not a tensor of {found.name} and shape {sizes}"
            raise CorruptError(text, where=file.blob.url)
        return tensors[0]

    shards = []
    for chunk in chunks:
        box = _state(chunk, where)
        offsets, sizes = box.get("offsets"), box.get("sizes")
        if not _are_counts(offsets) or not _are_counts(sizes) or not len(offsets) == len(sizes) == len(shape):
            raise FormatError(f"a shard of {name!r:.200} is no box", where=where)
        if 0 in sizes:
            continue
        part(name, offsets)
        shards.append(_Shard(offsets, sizes, cache(lambda o=offsets, s=sizes: opened(o, s))))
    shards.sort(key=lambda shard: shard.offsets)
    _check_tiles(name, shape, shards, where)
    if all(shard.sizes[1:] == shape[1:] for shard in shards):
        starts = [math.prod(spec.word_shape) // max(1, shape[0]) * s.offsets[0] if shape else 0 for s in shards]
        return Joined(spec, tuple(shards), tuple(starts))
    return Assembled(spec, tuple(shards), copies)


def _check_tiles(name: str, shape: tuple[int, ...], shards: Sequence[_Shard], where: str) -> None:
    """Raises FormatError unless the boxes fill the tensor, and none lies upon another."""
    inside = all(o + s <= n for shard in shards for o, s, n in zip(shard.offsets, shard.sizes, shape, strict=True))
    whole = sum(math.prod(shard.sizes) for shard in shards) == math.prod(shape)
    low = np.array([shard.offsets for shard in shards], dtype=np.int64).reshape(len(shards), len(shape))
    high = low + np.array([shard.sizes for shard in shards], dtype=np.int64).reshape(len(shards), len(shape))
    apart = all(
        not bool(((low[i] < high[i + 1 :]) & (low[i + 1 :] < high[i])).all(axis=1).any())
        for i in range(len(shards) - 1)
    )
    if not (inside and whole and apart):
        raise FormatError(f"the shards of {name!r:.200} do not make a tensor of shape {shape}", where=where)


@dataclass(frozen=True, slots=True, eq=False)
class Joined:
    """A TensorSource of shards that follow each other: ``starts`` are their first words in the tensor."""

    spec: TensorSpec
    shards: tuple[_Shard, ...]
    starts: tuple[int, ...]

    def read(self, start: int, stop: int) -> np.ndarray:
        found = []
        i = bisect_right(self.starts, start) - 1
        while start < stop:
            last = self.starts[i + 1] if i + 1 < len(self.starts) else stop
            if start < last:
                found.append(self.shards[i].open().read(start - self.starts[i], min(stop, last) - self.starts[i]))
                start = min(stop, last)
            i += 1
        return found[0] if len(found) == 1 else np.concatenate([np.empty(0, self.spec.dtype.word), *found])


@dataclass(frozen=True, slots=True, eq=False)
class Assembled:
    """A TensorSource of any boxes, which are put together in a temporary file when it is first read."""

    spec: TensorSpec
    shards: tuple[_Shard, ...]
    copies: Copies

    def read(self, start: int, stop: int) -> np.ndarray:
        word = self.spec.dtype.word
        return np.frombuffer(
            self.copies.read(self, self._fill, start * word.itemsize, stop * word.itemsize), word
        ).copy()

    def _fill(self, file: Temporary) -> None:
        for shard in self.shards:
            for corner, words in _boxes(shard.open()):
                inner = len(words.shape) - len(shard.offsets)
                at = tuple(o + c for o, c in zip((*shard.offsets, *(0,) * inner), corner, strict=True))
                write_box(file, self.spec.word_shape, at, words)


def _boxes(source: TensorSource) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
    """All words of ``source`` as rows along its last axis, each with its corner."""
    shape = source.spec.word_shape
    rows = itertools.product(*(range(n) for n in shape[:-1]))
    left = np.empty(0, source.spec.dtype.word)
    for block in blocks(source):
        block = np.concatenate([left, block])
        whole = block.size // shape[-1] * shape[-1]
        left = block[whole:]
        for values, corner in zip(block[:whole].reshape(-1, shape[-1]), rows, strict=False):
            yield (*corner, 0), values.reshape((1,) * (len(shape) - 1) + shape[-1:])


FORMAT = FolderFormat("torch.distributed.checkpoint", recognizes, open_folder)

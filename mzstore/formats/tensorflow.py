"""Checkpoints of TensorFlow, and the variables of SavedModels: an index, and data files beside it. TensorFlow is not needed.

https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/util/tensor_bundle/tensor_bundle.h. The index is a table like LevelDB's
(tensorflow/core/lib/io/table_format.txt, format.cc), from names to BundleEntryProto (tensorflow/core/protobuf/tensor_bundle.proto); the data files hold the
words of the tensors as they are.
"""

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType

import numpy as np

from mzstore.dtypes import DTYPES
from mzstore.errors import CorruptError, FormatError, UnsupportedError
from mzstore.formats import spliced
from mzstore.formats.base import Candidate, FileFormat, Opening
from mzstore.formats.files import PlainTensor, check_unchanged
from mzstore.formats.wire import LEN, Wire
from mzstore.payload import crc32c
from mzstore.sources import LayoutSource, ModelSource
from mzstore.storage import BLOCK_NBYTES, Blob, Buffer
from mzstore.tensors import MAX_NAME_BYTES, MAX_NDIM, TensorSpec

KIND = "tensorflow"
SUFFIX = ".index"
MAGIC = 0xDB4775248B80FB57.to_bytes(8, "little")
FOOTER_NBYTES = 48  # two places of blocks, padding, the magic number
TRAILER_NBYTES = 5  # of a block: how it is compressed, and a checksum
MAX_BLOCK_NBYTES = 64 << 20
MAX_ENTRIES = 1 << 20
MAX_SHARDS = 100_000
MASK_DELTA = 0xA282EAD8  # checksums are stored changed, because checksums of what holds checksums say little

NUM_SHARDS, ENDIANNESS = 1, 2  # BundleHeaderProto
DTYPE, SHAPE, SHARD, OFFSET, SIZE, CRC32C, SLICES = 1, 2, 3, 4, 5, 6, 7  # BundleEntryProto
DIM, DIM_SIZE = 2, 1  # TensorShapeProto

# tensorflow/core/framework/types.proto. 4-bit numbers are not packed there as they are here.
TYPES: Mapping[int, str] = MappingProxyType(
    {
        1: "float32", 2: "float64", 3: "int32", 4: "uint8", 5: "int16", 6: "int8", 8: "complex64", 9: "int64", 10: "bool",
        11: "int8", 12: "uint8", 13: "int32", 14: "bfloat16", 15: "int16", 16: "uint16", 17: "uint16", 18: "complex128",
        19: "float16", 22: "uint32", 23: "uint64", 24: "float8_e5m2", 25: "float8_e4m3fn", 26: "float8_e4m3fnuz",
        28: "float8_e5m2fnuz",
    }
)  # fmt: skip
OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"  # which says what Python objects the names are of


@dataclass(frozen=True, slots=True)
class BundleTensor:
    """A tensor in a data file. Of a local one, its checksum is checked when it is first read."""

    plain: PlainTensor
    blob: Blob
    crc: int
    lock: threading.Lock = field(default_factory=threading.Lock, compare=False)
    checked: list[bool] = field(default_factory=list, compare=False)

    @property
    def spec(self) -> TensorSpec:
        return self.plain.spec

    def read(self, start: int, stop: int) -> np.ndarray:
        if self.blob.local:
            with self.lock:
                if not self.checked:
                    self._check()
                    self.checked.append(True)
        return self.plain.read(start, stop)

    def _check(self) -> None:
        crc, end = 0, self.plain.start + self.spec.nbytes
        for at in range(self.plain.start, end, BLOCK_NBYTES):
            crc = crc32c(self.blob.read(at, min(at + BLOCK_NBYTES, end)), crc)
        if masked(crc) != self.crc:
            text = f"the checksum of tensor {self.spec.name!r} does not hold; restore the file from a copy"
            raise CorruptError(text, where=self.blob.url)


def masked(crc: int) -> int:
    return ((crc >> 15 | crc << 17) + MASK_DELTA) & 0xFFFFFFFF


def recognizes(file: Candidate) -> bool:
    nbytes = file.blob.nbytes
    return nbytes >= FOOTER_NBYTES and file.name.endswith(SUFFIX) and file.blob.read(nbytes - 8, nbytes) == MAGIC


def open_file(file: Candidate, opening: Opening) -> ModelSource:
    index = _Index(file.blob)
    base = file.name.removesuffix(SUFFIX)
    shards: dict[str, Blob] = {}
    tensors: list[BundleTensor] = []
    left: dict[str, int] = {}
    n_shards = 1
    for key, value in index.entries():
        wire = Wire(Buffer(value), f"{file.blob.url}, entry {key[:100]!r}")
        if not key:
            n_shards = _shards(wire)
            continue
        entry = _entry(wire)
        if not 0 <= entry.shard < n_shards:
            raise index.refuse(f"entry {key[:200]!r} lies in file {entry.shard} of {n_shards}")
        path = f"{base}.data-{entry.shard:05d}-of-{n_shards:05d}"
        if path not in shards:
            shards[path] = opening.beside(file.blob, path)
        if entry.offset + entry.size > shards[path].nbytes:
            end, nbytes = entry.offset + entry.size, shards[path].nbytes
            raise index.refuse(f"entry {key[:200]!r} ends at byte {end:,} of {path!r}, that at {nbytes:,}")
        if entry.dtype not in TYPES:
            if key != OBJECT_GRAPH.encode():
                what = "strings" if entry.dtype == 7 else f"type {entry.dtype}, which mzstore has not,"
                left[what] = left.get(what, 0) + 1
            continue
        try:
            spec = TensorSpec(key.decode(), DTYPES[TYPES[entry.dtype]], entry.shape)
        except ValueError as error:
            raise index.refuse(str(error)) from error
        if entry.size != spec.nbytes:
            raise index.refuse(f"tensor {spec.name!r} has {entry.size:,} bytes, and should have {spec.nbytes:,}")
        tensors.append(BundleTensor(PlainTensor(spec, shards[path], entry.offset), shards[path], entry.crc))
    layouts, notes = _layouts({file.name: file.blob} | shards, tensors)
    return ModelSource(
        tensors,
        sum(tensor.spec.nbytes for tensor in tensors),
        layouts=layouts,
        notes=[f"{count:,} entries of {what} stay in the data files" for what, count in left.items()] + notes,
        check_unchanged=partial(check_unchanged, (file.blob, *shards.values())),
    )


def _layouts(files: Mapping[str, Blob], tensors: list[BundleTensor]) -> tuple[list[LayoutSource], list[str]]:
    found = []
    for path, blob in files.items():
        inside = [tensor.plain for tensor in tensors if tensor.plain.blob is blob]
        layout = spliced.layout(blob, path, KIND, inside)
        if layout is None:
            return [], [f"more than 100 MB of {path} are not of tensors: the files cannot be made again"]
        found.append(layout)
    return found, []


def _shards(wire: Wire) -> int:
    found = {field.number: field for field in wire.fields(0, wire.blob.nbytes)}
    if ENDIANNESS in found and found[ENDIANNESS].value:
        raise UnsupportedError("a checkpoint of big-endian numbers: write it anew on another machine", where=wire.url)
    count = found[NUM_SHARDS].value if NUM_SHARDS in found else 0
    if not 1 <= count <= MAX_SHARDS:
        raise wire.refuse(f"{count} data files", 0)
    return count


@dataclass(slots=True)
class _Entry:
    dtype: int = 0
    shape: tuple[int, ...] = ()
    shard: int = 0
    offset: int = 0
    size: int = 0
    crc: int = 0


def _entry(wire: Wire) -> _Entry:
    found = _Entry()
    names = {DTYPE: "dtype", SHARD: "shard", OFFSET: "offset", SIZE: "size", CRC32C: "crc"}
    for each in wire.fields(0, wire.blob.nbytes):
        if each.number in names:
            setattr(found, names[each.number], each.value)
        elif each.number == SHAPE and each.wire == LEN:
            shape = []
            for dim in wire.fields(each.start, each.stop):
                if dim.number == DIM and dim.wire == LEN:
                    size = [inner.value for inner in wire.fields(dim.start, dim.stop) if inner.number == DIM_SIZE]
                    shape.append(size[-1] if size else 0)
                    if len(shape) > MAX_NDIM:
                        raise wire.refuse(f"more than {MAX_NDIM} dimensions", dim.start)
            found.shape = tuple(shape)
        elif each.number == SLICES:
            raise UnsupportedError("a variable that was saved in slices: save it whole", where=wire.url)
    return found


class _Index:
    """The table. Every block is checked by its checksum."""

    def __init__(self, blob: Blob) -> None:
        self.blob = blob

    def refuse(self, problem: str) -> FormatError:
        return FormatError(f"not a TensorFlow checkpoint: {problem}", where=self.blob.url)

    def entries(self) -> Iterator[tuple[bytes, bytes]]:
        """All, in the order of their keys."""
        nbytes = self.blob.nbytes
        footer = bytes(self.blob.read(max(0, nbytes - FOOTER_NBYTES), nbytes))
        if len(footer) < FOOTER_NBYTES or footer[-8:] != MAGIC:
            raise self.refuse("its index has no footer")
        at = 0
        for _ in range(2):  # of the meta index
            _, at = self._varint(footer, at)
        place, last, count = self._place(footer, at), None, 0
        for _, handle in self._block(*place):
            for key, value in self._block(*self._place(handle, 0)):
                if last is not None and key <= last:
                    raise self.refuse(f"its keys are not in order at {key[:200]!r}")
                last, count = key, count + 1
                if count > MAX_ENTRIES:
                    raise UnsupportedError(f"it has more than {MAX_ENTRIES:,} entries", where=self.blob.url)
                yield key, value

    def _place(self, data: bytes, at: int) -> tuple[int, int]:
        start, at = self._varint(data, at)
        size, _ = self._varint(data, at)
        if size > MAX_BLOCK_NBYTES or start + size + TRAILER_NBYTES > self.blob.nbytes - FOOTER_NBYTES:
            raise self.refuse(f"a block of {size} bytes from byte {start} on does not lie in its index")
        return start, size

    def _block(self, start: int, size: int) -> Iterator[tuple[bytes, bytes]]:
        data = bytes(self.blob.read(start, start + size + TRAILER_NBYTES))
        stored = int.from_bytes(data[size + 1 :], "little")
        if masked(crc32c(data[: size + 1])) != stored:
            text = f"the checksum of the block at byte {start} does not hold; restore the file from a copy"
            raise CorruptError(text, where=self.blob.url)
        if data[size]:
            raise UnsupportedError("its index is compressed, by Snappy: save it anew", where=self.blob.url)
        restarts = int.from_bytes(data[size - 4 : size], "little") if size >= 4 else 0
        end = size - 4 - 4 * restarts  # behind the entries are places of some of them, to search by
        if size < 4 or end < 0:
            raise self.refuse(f"the block at byte {start} is cut short")
        at, key = 0, b""
        while at < end:
            shared, at = self._varint(data, at)
            own, at = self._varint(data, at)
            length, at = self._varint(data, at)
            if shared > len(key) or at + own + length > end or shared + own > MAX_NAME_BYTES:
                raise self.refuse(f"an entry of the block at byte {start} is malformed")
            key = key[:shared] + data[at : at + own]
            yield key, data[at + own : at + own + length]
            at += own + length

    def _varint(self, data: bytes, at: int) -> tuple[int, int]:
        value = 0
        for i in range(10):
            if at + i >= len(data):
                break
            value |= (data[at + i] & 127) << (7 * i)
            if data[at + i] < 128:
                return value, at + i + 1
        raise self.refuse("a number that does not end")


FORMAT = FileFormat(KIND, (SUFFIX,), recognizes, open_file, sure=False)

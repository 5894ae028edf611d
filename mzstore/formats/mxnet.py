"""Parameter files of MXNet (``.params``), read without it: a list of arrays, and their names behind it.

https://github.com/apache/mxnet/blob/v1.x/src/ndarray/ndarray.cc, NDArray::Save, NDArray::Load and NDArray::LegacyLoad: all versions of an array that they know.
"""

import io
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

from mzstore.dtypes import DTYPES
from mzstore.errors import FormatError, UnsupportedError
from mzstore.formats import spliced
from mzstore.formats.base import Candidate, FileFormat, Opening
from mzstore.formats.files import BlobFile, PlainTensor, check_unchanged
from mzstore.sources import ModelSource
from mzstore.storage import Blob
from mzstore.tensors import MAX_NAME_BYTES, MAX_NBYTES, MAX_NDIM, TensorSpec

KIND = "mxnet"
MAGIC = struct.pack("<2Q", 0x112, 0)
V1, V2, V3 = (
    0xF993FAC8,
    0xF993FAC9,
    0xF993FACA,
)  # of an array; any other number is that of the axes of one without a version
STORAGE = {0: 0, 1: 1, 2: 2}  # dense, row_sparse, csr: how many arrays of positions there are
SPARSE = {1: "row_sparse", 2: "csr"}
MAX_ARRAYS = 1 << 20
# mshadow/base.h, TypeFlag
TYPES: Mapping[int, str] = MappingProxyType(
    dict(
        enumerate(
            [
                "float32",
                "float64",
                "float16",
                "uint8",
                "int32",
                "int8",
                "int64",
                "bool",
                "int16",
                "uint16",
                "uint32",
                "uint64",
                "bfloat16",
            ],
        )
    )
)


@dataclass(frozen=True, slots=True)
class _Array:
    """``type_`` of TYPES. ``sparse`` names what else it is than dense; ``missing``: it has no shape and no values."""

    type_: int
    shape: tuple[int, ...]
    start: int
    sparse: str = ""
    missing: bool = False


class _Reader:
    def __init__(self, blob: Blob) -> None:
        self._blob, self._file = blob, io.BufferedReader(BlobFile(blob))

    def refuse(self, problem: str) -> FormatError:
        return FormatError(f"not an MXNet parameter file: {problem}", where=self._blob.url)

    def bytes(self, count: int) -> bytes:
        data = self._file.read(count)
        if len(data) < count:
            raise self.refuse(f"it ends at byte {self._blob.nbytes:,}, in the middle of something")
        return data

    def number(self, code: str) -> int:
        return int(struct.unpack(f"<{code}", self.bytes(struct.calcsize(code)))[0])

    def shape(self, ndim: int, code: str = "q") -> tuple[int, ...]:
        if ndim > MAX_NDIM:
            raise self.refuse(f"an array of {ndim} axes, at most {MAX_NDIM} are allowed")
        return tuple(struct.unpack(f"<{ndim}{code}", self.bytes(ndim * struct.calcsize(code))))

    def skip(self, type_: int, shape: tuple[int, ...]) -> int:
        """Go behind values, whose place it gives."""
        if type_ not in TYPES:
            raise UnsupportedError(f"an array of type {type_}, which is unknown", where=self._blob.url)
        if min(shape, default=0) < 0 or math.prod(filter(None, shape)) > MAX_NBYTES:
            raise self.refuse(f"an array of shape {shape}")
        start = self._file.tell()
        stop = start + math.prod(shape) * DTYPES[TYPES[type_]].word.itemsize
        if stop > self._blob.nbytes:
            raise self.refuse(f"an array from byte {start:,} on ends at {stop:,}, the file at {self._blob.nbytes:,}")
        self._file.seek(stop)
        return start

    def array(self) -> _Array:
        version, storage = self.number("I"), 0
        inner: tuple[int, ...] = ()
        if version in (V2, V3):
            storage = self.number("i")
            if storage not in STORAGE:
                raise self.refuse(f"an array of the storage type {storage}")
            if STORAGE[storage]:
                inner = self.shape(max(0, self.number("i")))
        ndim = self.number("i") if version in (V1, V2, V3) else version
        shape = self.shape(max(0, ndim), "q" if version in (V1, V2, V3) else "I")
        # What has no values ends here. Without NumPy's shapes (version 3) an array of no axes is none.
        if ndim < 0 or min(shape, default=0) < 0 or (version != V3 and not ndim):
            return _Array(0, (), self._file.tell(), missing=True)
        self.bytes(8)  # on which device it was
        type_ = self.number("i")
        positions = [(self.number("i"), self.shape(max(0, self.number("i")))) for _ in range(STORAGE[storage])]
        start = self.skip(type_, inner if positions else shape)
        for each in positions:
            self.skip(*each)
        return _Array(type_, shape, start, SPARSE.get(storage, ""))

    def arrays(self) -> dict[str, _Array]:
        if self.bytes(len(MAGIC)) != MAGIC:
            raise self.refuse("it does not begin as one")
        count = self.number("Q")
        if count > min(MAX_ARRAYS, self._blob.nbytes // 8):  # an array has 8 bytes and more
            raise self.refuse(f"{count:,} arrays in {self._blob.nbytes:,} bytes")
        arrays = [self.array() for _ in range(count)]
        n_names = self.number("Q")
        if n_names not in (0, count):
            raise self.refuse(f"{n_names:,} names for {count:,} arrays")
        names = [self._name() for _ in range(n_names)] or [str(i) for i in range(count)]
        if self._file.tell() != self._blob.nbytes:
            raise self.refuse(f"it goes on behind byte {self._file.tell():,}, where it should end")
        if twice := len(names) - len(set(names)):
            raise self.refuse(f"{twice:,} names occur twice")
        return dict(zip(names, arrays, strict=True))

    def _name(self) -> str:
        length = self.number("Q")
        if length > MAX_NAME_BYTES:
            raise self.refuse(f"a name of {length:,} bytes")
        try:
            return self.bytes(length).decode()
        except UnicodeDecodeError as error:
            raise self.refuse(f"a name that is not UTF-8: {error}") from error


def recognizes(file: Candidate) -> bool:
    return file.start[: len(MAGIC)] == MAGIC


def open_file(file: Candidate, opening: Opening) -> ModelSource:
    reader, blob = _Reader(file.blob), file.blob
    tensors, missing = [], 0
    for name, array in reader.arrays().items():
        if array.sparse:
            raise UnsupportedError(f"array {name!r} is sparse ({array.sparse}): save it dense", where=blob.url)
        if array.missing:
            missing += 1
            continue
        try:
            spec = TensorSpec(name, DTYPES[TYPES[array.type_]], array.shape)
        except ValueError as error:
            raise reader.refuse(str(error)) from error
        tensors.append(PlainTensor(spec, blob, array.start))
    layout = spliced.layout(blob, file.name, KIND, tensors)
    return ModelSource(
        tensors,
        sum(tensor.spec.nbytes for tensor in tensors),
        layouts=[layout] if layout else (),
        notes=[f"{missing:,} arrays have no values"] if missing else (),
        check_unchanged=partial(check_unchanged, (blob,)),
    )


FORMAT = FileFormat(KIND, (".params",), recognizes, open_file, sure=False)

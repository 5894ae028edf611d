"""Array: a Zarr v3 array as this format uses it, and its ``zarr.json`` (FORMAT.md section 6.5)."""

import functools
import math
from dataclasses import dataclass, field

import numpy as np

from mzstore.errors import FormatError, UnsupportedError
from mzstore.grid import MAX_CHUNK_NBYTES, Grid
from mzstore.payload import LEVEL_IN_DOCUMENTS
from mzstore.tensors import INTEGERS, MAX_NBYTES, MAX_NDIM

ITEMSIZE = {
    **{f"{kind}{8 * size}": size for kind in ("uint", "int") for size in (1, 2, 4, 8)},
    "float16": 2,
    "float32": 4,
    "float64": 8,
}
MAX_ARRAY_NDIM = MAX_NDIM + 2  # a plane axis in front, a complex axis behind

_BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
_ZSTD = {"name": "zstd", "configuration": {"level": LEVEL_IN_DOCUMENTS, "checksum": False}}
_CRC32C = {"name": "crc32c"}
_CHUNK_KEY_ENCODING = {"name": "default"}  # its separator is "/"
_FIXED = {"zarr_format": 3, "node_type": "array", "chunk_key_encoding": _CHUNK_KEY_ENCODING}
_MEMBERS = {*_FIXED, "shape", "data_type", "chunk_grid", "fill_value", "codecs", "attributes"}


@dataclass(frozen=True, slots=True)
class Array:
    """Shape, chunks and codecs of one Zarr array. An Array that exists is valid; ValueError otherwise."""

    shape: tuple[int, ...]
    chunk_shape: tuple[int, ...]
    data_type: str
    zstd: bool
    grid: Grid = field(init=False, repr=False, compare=False)
    chunk_nbytes: int = field(init=False, repr=False, compare=False)  # before compression

    def __post_init__(self) -> None:
        if self.data_type not in ITEMSIZE:
            raise ValueError(f"data type {self.data_type!r} is none of {', '.join(ITEMSIZE)}")
        if len(self.shape) > MAX_ARRAY_NDIM:
            raise ValueError(f"{len(self.shape)} dimensions, at most {MAX_ARRAY_NDIM} are allowed")
        if math.prod(filter(None, self.shape)) * self.itemsize > MAX_NBYTES:
            raise ValueError(f"an array of {self.shape} is larger than 2**62 bytes")
        object.__setattr__(self, "grid", Grid(self.shape, self.chunk_shape))
        object.__setattr__(self, "chunk_nbytes", math.prod(self.chunk_shape) * self.itemsize)
        if self.chunk_nbytes > MAX_CHUNK_NBYTES:
            raise ValueError(f"a chunk of {self.chunk_nbytes} bytes, at most {MAX_CHUNK_NBYTES} are allowed")

    @property
    def itemsize(self) -> int:
        return ITEMSIZE[self.data_type]

    @property
    def word(self) -> np.dtype:
        return np.dtype(f"<u{self.itemsize}")

    @staticmethod
    def chunk_key(chunk: tuple[int, ...]) -> str:
        """Key of a chunk below the key of its array (Zarr's ``default`` encoding)."""
        return "/".join(("c", *map(str, chunk)))

    def to_json(self, attributes: dict[str, object] | None = None) -> dict[str, object]:
        doc: dict[str, object] = {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(self.shape),
            "data_type": self.data_type,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(self.chunk_shape)}},
            "chunk_key_encoding": _CHUNK_KEY_ENCODING,
            "fill_value": 0.0 if self.data_type.startswith("float") else 0,
            "codecs": [_BYTES, *([_ZSTD] if self.zstd else []), _CRC32C],
        }
        if attributes:
            doc["attributes"] = attributes
        return doc

    @classmethod
    def from_json(cls, doc: dict[str, object], *, where: str) -> "Array":
        """The array of a ``zarr.json`` document. Raises FormatError, or UnsupportedError for codecs that we do not know."""
        for key, value in _FIXED.items():
            if doc.get(key) != value:
                raise FormatError(f"{key} is {doc.get(key)!r}, not {value!r}", where=where, clause="array-1")
        if unknown := doc.keys() - _MEMBERS:
            raise UnsupportedError(f"unknown member {min(unknown)!r}; upgrade mzstore", where=where, clause="array-1")
        match doc.get("codecs"):
            case [bytes_, {"name": "zstd", "configuration": {"level": _, "checksum": False}}, crc] if (bytes_, crc) == (
                _BYTES,
                _CRC32C,
            ):
                zstd = True
            case [bytes_, crc] if (bytes_, crc) == (_BYTES, _CRC32C):
                zstd = False
            case codecs:
                raise UnsupportedError(
                    f"codecs {codecs!r:.200} are not bytes, perhaps zstd, and crc32c; upgrade mzstore",
                    where=where,
                    clause="array-3",
                )
        match doc.get("chunk_grid"):
            case {"name": "regular", "configuration": {"chunk_shape": chunk_shape}}:
                pass
            case other:
                raise FormatError(f"chunk_grid is {other!r:.200}, not a regular one", where=where, clause="array-2")
        data_type = doc.get("data_type")
        if not isinstance(data_type, str):
            raise FormatError(f"data_type is {data_type!r:.200}, not a string", where=where, clause="array-2")
        try:
            return _array(integers(doc.get("shape")), integers(chunk_shape), data_type, zstd)
        except ValueError as error:
            raise FormatError(str(error), where=where, clause="array-2") from error


_array = functools.lru_cache(256)(Array)  # most tensors of a model are laid out as another one of it


def integers(value: object) -> tuple[int, ...]:
    """A JSON list of integers >= 0 as a tuple; ValueError for anything else (1.0 and true are no integers here)."""
    if not isinstance(value, list) or not INTEGERS.issuperset(map(type, value)) or (value and min(value) < 0):
        raise ValueError(f"{value!r:.200} is not a list of integers >= 0")
    return tuple(value)

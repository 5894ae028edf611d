"""GGUF files of llama.cpp, versions 2 and 3: read by header and byte ranges, made again byte for byte, and written anew.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md: a magic, pairs of keys and typed values, what each tensor is and
where, and behind that, at multiples of an alignment, the tensors. Of quantized tensors the blocks are kept as they are.
The library of that name maps whole files into memory and believes them; this reads any storage and trusts nothing.
"""

import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn

import numpy as np

from mzstore.dtypes import DTYPES
from mzstore.errors import FormatError, UnsupportedError
from mzstore.formats import spliced
from mzstore.formats.base import Candidate, FileFormat, Opening
from mzstore.formats.files import PlainTensor, check_unchanged
from mzstore.ggml import BY_NUMBER, BlockType
from mzstore.ggml.values import words_of
from mzstore.packed import block_runs
from mzstore.sources import ModelSource, PackedSource, TensorSource, block_type_of, blocks
from mzstore.storage import BLOCK_NBYTES, Blob, Sink
from mzstore.tensors import TensorSpec

MAGIC = b"GGUF"
VERSION = 3
MAX_HEADER_NBYTES = spliced.MAX_LAYOUT_NBYTES  # what opening a file can read; vocabularies take some megabytes
MAX_KEY_NBYTES = 65_535
MAX_NDIM = 4
MAX_NAME_NBYTES = 63  # what ggml has room for
MAX_NESTING = 8
MAX_TEXT_NBYTES = 1 << 20  # of a text in the metadata
MAX_LISTED = 1024  # entries of a list in the metadata; longer ones are tables of the tokenizer, which the layout has
ALIGNMENT = "general.alignment"
DEFAULT_ALIGNMENT = 32
ARCHITECTURE = "general.architecture"
UNKNOWN = "unknown"  # architecture of what has none: llama.cpp then says that it does not know it

STRING, ARRAY, BOOL, UINT32 = 8, 9, 7, 4
SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}  # as struct has them
PLAIN = {0: "float32", 1: "float16", 24: "int8", 25: "int16", 26: "int32", 27: "int64", 28: "float64", 30: "bfloat16"}
NUMBERS = {name: number for number, name in PLAIN.items()}
LEAST_ENTRY_NBYTES = 24  # of what is said of a tensor


@dataclass(frozen=True, slots=True)
class BlockTensor:
    """A TensorSource over blocks of ggml in an open file, from byte ``start`` on."""

    spec: TensorSpec
    blob: Blob
    start: int
    block_type: BlockType

    @property
    def changed(self) -> bool:
        """Codes stand for its values: who wants to store it does better than to read these."""
        return True

    def read(self, start: int, stop: int) -> np.ndarray:
        size = self.block_type.size
        first = start // size
        words = words_of(self.block_type, self.read_blocks(first, -(-stop // size))).reshape(-1)
        return words[start - first * size :][: stop - start]

    def read_blocks(self, start: int, stop: int) -> np.ndarray:
        nbytes = self.block_type.nbytes
        data = self.blob.read(self.start + start * nbytes, self.start + stop * nbytes)
        return np.frombuffer(data, np.uint8).reshape(-1, nbytes).copy()


Tensor = PlainTensor | BlockTensor


@dataclass(frozen=True, slots=True)
class Header:
    """``metadata`` has what JSON can hold of the keys, but for long lists; tensors are in the order of the file's table."""

    version: int
    metadata: Mapping[str, Any]
    tensors: Sequence[Tensor]


@dataclass(slots=True)
class _Cursor:
    """Reads numbers and strings front to back, some blocks of the file at a time. Raises FormatError behind its end."""

    blob: Blob
    at: int = 0
    _start: int = 0
    _held: bytes = field(default=b"", repr=False)
    _end: int = field(init=False)  # of what a header may have

    def __post_init__(self) -> None:
        self._end = min(self.blob.nbytes, MAX_HEADER_NBYTES)

    def refuse(self, problem: str) -> NoReturn:
        raise FormatError(f"not a GGUF file: {problem}", where=self.blob.url)

    def need(self, nbytes: int, what: str) -> None:
        if nbytes > self._end - self.at:
            if nbytes <= self.blob.nbytes - self.at:
                raise UnsupportedError(
                    f"{what} ends behind the first {MAX_HEADER_NBYTES:,} bytes, the longest header that is read",
                    where=self.blob.url,
                )
            self.refuse(f"{what} of {nbytes} bytes at {self.at} ends behind the file, which has {self.blob.nbytes}")

    def take(self, nbytes: int, what: str) -> bytes:
        self.need(nbytes, what)
        begin = self.at - self._start
        if begin + nbytes > len(self._held):
            stop = min(self.blob.nbytes, self.at + max(nbytes, BLOCK_NBYTES))
            self._held, self._start, begin = bytes(self.blob.read(self.at, stop)), self.at, 0
        self.at += nbytes
        return self._held[begin : begin + nbytes]

    def number(self, code: str, what: str) -> Any:
        (value,) = struct.unpack("<" + code, self.take(struct.calcsize("<" + code), what))
        return value

    def string(self, what: str, most: int | None = None) -> bytes:
        length = self.number("Q", what)
        if most is not None and length > most:
            self.refuse(f"{what} has {length} bytes, at most {most} are allowed")
        return self.take(length, what)

    def skip_strings(self, count: int, what: str) -> None:
        """Past so many, of which there may be hundreds of thousands."""
        for _ in range(count):
            begin = self.at - self._start
            if begin + 8 <= len(self._held) and self.at + 8 <= self._end:
                length = int.from_bytes(self._held[begin : begin + 8], "little")
                self.at += 8
            else:
                length = self.number("Q", what)
            if length > self._end - self.at:
                self.need(length, what)
            self.at += length

    def text(self, what: str, most: int) -> str:
        data = self.string(what, most)
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            self.refuse(f"{what} {data[:60]!r} is not UTF-8: {error}")


def read_header(blob: Blob) -> Header:
    """Raises FormatError or UnsupportedError for what the format forbids, or cannot be read."""
    cursor = _Cursor(blob)
    if cursor.take(4, "the magic") != MAGIC:
        cursor.refuse("it does not begin with 'GGUF'")
    version = cursor.number("I", "the version")
    if version not in (2, VERSION):
        why = "is of another byte order" if version and not version & 0xFFFF else f"is of version {version}"
        raise UnsupportedError(f"this GGUF file {why}; little-endian ones of versions 2 and 3 are read", where=blob.url)
    n_tensors, n_keys = cursor.number("Q", "the number of tensors"), cursor.number("Q", "the number of keys")
    # What is there has at least so many bytes: nobody counts further than that.
    cursor.need(n_tensors * LEAST_ENTRY_NBYTES + n_keys * 13, f"the table of {n_tensors} tensors and {n_keys} keys")
    metadata: dict[str, Any] = {}
    names: set[str] = set()
    alignment = DEFAULT_ALIGNMENT
    for _ in range(n_keys):
        key = cursor.text("a key", MAX_KEY_NBYTES)
        if key in names:
            cursor.refuse(f"the key {key[:200]!r} occurs twice")
        names.add(key)
        kind = cursor.number("I", f"the type of {key[:200]!r}")
        value = _value(cursor, kind, f"the value of {key[:200]!r}", 0)
        if key == ALIGNMENT:
            if kind != UINT32 or value < 1 or value & (value - 1):
                cursor.refuse(f"the alignment is {value!r:.100} of type {kind}, not a power of two of type {UINT32}")
            alignment = value
        if value is not _LEFT_OUT:
            metadata[key] = value
    entries = [_entry(cursor, alignment) for _ in range(n_tensors)]
    start = -(-cursor.at // alignment) * alignment
    tensors = [tensor(blob, start) for tensor in entries]
    _check_places(cursor, tensors, start)
    return Header(version, metadata, tensors)


class _LeftOut:
    """Stands for a value that the metadata do not have."""


_LEFT_OUT = _LeftOut()


def _value(cursor: _Cursor, kind: int, what: str, depth: int) -> Any:
    """A value, past which the cursor goes; _LEFT_OUT for one that JSON cannot hold, or that is long."""
    if kind == STRING:
        data = cursor.string(what)
        try:
            return data.decode() if len(data) <= MAX_TEXT_NBYTES else _LEFT_OUT
        except UnicodeDecodeError:
            return _LEFT_OUT
    if kind == ARRAY:
        return _array(cursor, what, depth)
    if kind not in SCALARS:
        cursor.refuse(f"{what} is of type {kind}, which there is not")
    value = cursor.number(SCALARS[kind], what)
    return _LEFT_OUT if isinstance(value, float) and not math.isfinite(value) else value


def _array(cursor: _Cursor, what: str, depth: int) -> Any:
    kind, count = cursor.number("I", what), cursor.number("Q", what)
    if depth == MAX_NESTING:
        cursor.refuse(f"{what} has lists in each other, more than {MAX_NESTING} deep")
    if kind in SCALARS:
        code = SCALARS[kind]
        cursor.need(count * struct.calcsize("<" + code), what)
        if count > MAX_LISTED:
            for skipped in range(0, count, BLOCK_NBYTES):
                cursor.take(min(BLOCK_NBYTES, count - skipped) * struct.calcsize("<" + code), what)
            return _LEFT_OUT
        values = [cursor.number(code, what) for _ in range(count)]
        return _LEFT_OUT if any(isinstance(v, float) and not math.isfinite(v) for v in values) else values
    if kind not in (STRING, ARRAY):
        cursor.refuse(f"{what} is a list of type {kind}, which there is not")
    cursor.need(count * (8 if kind == STRING else 12), what)
    if kind == STRING and count > MAX_LISTED:
        cursor.skip_strings(count, what)
        return _LEFT_OUT
    found: list[Any] = []
    for _ in range(count):
        value = _value(cursor, kind, what, depth + 1)
        if count <= MAX_LISTED:
            found.append(value)
    return _LEFT_OUT if count > MAX_LISTED or _LEFT_OUT in found else found


def _entry(cursor: _Cursor, alignment: int) -> Callable[[Blob, int], Tensor]:
    """What the table says of the next tensor: gives it, if it is told where the data begin."""
    name = cursor.text("a tensor's name", 4096)
    what = f"tensor {name[:200]!r}"
    ndim = cursor.number("I", what)
    if ndim > MAX_NDIM:
        cursor.refuse(f"{what} has {ndim} dimensions, at most {MAX_NDIM} are allowed")
    shape = tuple(reversed([cursor.number("Q", what) for _ in range(ndim)]))
    number, offset = cursor.number("I", what), cursor.number("Q", what)
    kind = BY_NUMBER.get(number)
    if kind is None and number not in PLAIN:
        raise UnsupportedError(
            f"{what} is of type {number} of ggml, which mzstore does not know", where=cursor.blob.url
        )
    try:
        spec = TensorSpec(name, DTYPES["float32" if kind else PLAIN[number]], shape)
    except ValueError as error:
        cursor.refuse(str(error))
    if kind and (not shape or shape[-1] % kind.size):
        cursor.refuse(
            f"{what} of {list(shape)} has rows that are no whole blocks of {kind.name}, of {kind.size} values"
        )
    if offset % alignment:
        cursor.refuse(f"{what} begins at {offset}, no multiple of the alignment {alignment}")
    if kind:
        return lambda blob, start: BlockTensor(spec, blob, start + offset, kind)
    return lambda blob, start: PlainTensor(spec, blob, start + offset)


def nbytes_of(tensor: TensorSource) -> int:
    """Bytes that it takes in a file."""
    kind = block_type_of(tensor)
    return kind.row_nbytes(tensor.spec.size) if kind else tensor.spec.nbytes


def _check_places(cursor: _Cursor, tensors: Sequence[Tensor], start: int) -> None:
    """Raises FormatError unless all tensors have names and bytes of their own in the file, from ``start`` on."""
    names: set[str] = set()
    at = start
    for tensor in sorted(tensors, key=lambda tensor: (tensor.start, nbytes_of(tensor))):
        name, stop = tensor.spec.name, tensor.start + nbytes_of(tensor)
        if name in names:
            cursor.refuse(f"two tensors are called {name[:200]!r}")
        names.add(name)
        if stop > cursor.blob.nbytes:
            cursor.refuse(f"tensor {name[:200]!r} ends at {stop}, the file at {cursor.blob.nbytes}")
        if tensor.start < at and stop > tensor.start:
            cursor.refuse(f"tensor {name[:200]!r} begins at {tensor.start}, another one ends at {at}")
        at = max(at, stop)


def recognizes(file: Candidate) -> bool:
    return file.start[:4] == MAGIC


def open_file(file: Candidate, opening: Opening) -> ModelSource:
    header = read_header(file.blob)
    layout = spliced.layout(file.blob, file.name, FORMAT.name, header.tensors)
    notes = []
    if layout is None:
        notes.append("its header is too long to be kept: the file cannot be made again byte for byte")
    parts = header.metadata.get("split.count")
    if isinstance(parts, int) and parts > 1:
        notes.append(f"one of {parts} files that a model was split into; convert their directory for all of it")
    return ModelSource(
        header.tensors,
        sum(tensor.spec.nbytes for tensor in header.tensors),
        header.metadata,
        layouts=[layout] if layout else [],
        notes=notes,
        check_unchanged=partial(check_unchanged, (file.blob,)),
    )


def write_new(sink: Sink, model: ModelSource, tensors: Mapping[str, TensorSource], done: Callable[[int], None]) -> None:
    """A new file: the metadata as typed values, all tensors in their order. Blocks of ggml are written as they are.

    Raises ValueError, before anything is written, for a tensor or metadata that GGUF cannot hold.
    """
    metadata = {ARCHITECTURE: UNKNOWN} | dict(model.metadata)
    if any(block_type_of(tensor) for tensor in tensors.values()):
        metadata.setdefault("general.quantization_version", 2)
    alignment = metadata.get(ALIGNMENT, DEFAULT_ALIGNMENT)
    if type(alignment) is not int or not 1 <= alignment < 1 << 32 or alignment & (alignment - 1):
        raise ValueError(f"{ALIGNMENT} is {alignment!r:.100}, which is no power of two")
    head = bytearray(MAGIC + struct.pack("<IQQ", VERSION, len(tensors), len(metadata)))
    for key, value in metadata.items():
        head += _string(key, MAX_KEY_NBYTES, "key") + _typed(value, f"metadata {key!r:.200}")
    offset = 0
    for tensor in tensors.values():
        head += _described(tensor, offset)
        offset += _padded(nbytes_of(tensor), alignment)
    head += bytes(_padded(len(head), alignment) - len(head))
    sink.write(bytes(head))
    for tensor in tensors.values():
        for data, nbytes in _data(tensor):
            sink.write(data)
            done(nbytes)
        missing = _padded(nbytes_of(tensor), alignment) - nbytes_of(tensor)
        for at in range(0, missing, BLOCK_NBYTES):
            sink.write(bytes(min(BLOCK_NBYTES, missing - at)))


def _padded(nbytes: int, alignment: int) -> int:
    return -(-nbytes // alignment) * alignment


def _string(text: str, most: int, what: str) -> bytes:
    try:
        data = text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"the {what} {text!a:.200} is not valid Unicode: it holds a lone surrogate") from None
    if len(data) > most:
        raise ValueError(f"the {what} {text[:60]!r}... has {len(data)} bytes; GGUF has room for {most}")
    return struct.pack("<Q", len(data)) + data


def _described(tensor: TensorSource, offset: int) -> bytes:
    """What the table has of a tensor."""
    spec = tensor.spec
    if len(spec.shape) > MAX_NDIM:
        raise ValueError(f"tensor {spec.name!r} has {len(spec.shape)} dimensions; GGUF has at most {MAX_NDIM}")
    kind = block_type_of(tensor)
    if kind is None and spec.dtype.name not in NUMBERS:
        raise ValueError(f"tensor {spec.name!r}: GGUF has no {spec.dtype.name}; it has {', '.join(NUMBERS)}")
    number = kind.number if kind else NUMBERS[spec.dtype.name]
    shape = tuple(reversed(spec.shape or (1,)))  # ggml has no tensor without dimensions
    name = _string(spec.name, MAX_NAME_NBYTES, "tensor name")
    return name + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, number, offset)


def _data(tensor: TensorSource) -> Iterator[tuple[memoryview, int]]:
    """(bytes of the file, how many of values they are), piece by piece."""
    if isinstance(tensor, PackedSource) and (kind := tensor.block_type):
        for run in block_runs(tensor):
            yield run.reshape(-1).data, 4 * kind.size * len(run)
        return
    for block in blocks(tensor):
        yield block.view(np.uint8).data, block.nbytes


def _typed(value: Any, what: str) -> bytes:
    """A value with its type in front: the least that holds it. What GGUF has no type for becomes JSON text."""
    if isinstance(value, (list, tuple)) and value:
        kinds = {kind for kind in map(_kind_of, value) if kind is not None}
        if all(_kind_of(each) is not None for each in value) and (kind := _common(kinds, value)) is not None:
            return struct.pack("<IIQ", ARRAY, kind, len(value)) + b"".join(_packed(kind, each, what) for each in value)
    kind = _kind_of(value)
    if kind is None:
        return struct.pack("<I", STRING) + _packed(STRING, json.dumps(value), what)
    return struct.pack("<I", kind) + _packed(kind, value, what)


def _kind_of(value: Any) -> int | None:
    """The type of GGUF for a scalar or a string; None for others."""
    if isinstance(value, bool):
        return BOOL
    if isinstance(value, str):
        return STRING
    if isinstance(value, int):
        ranges = ((UINT32, 0, 32), (5, -(1 << 31), 31), (10, 0, 64), (11, -(1 << 63), 63))
        return next((kind for kind, low, bits in ranges if low <= value < 1 << bits), None)
    if isinstance(value, float):
        with np.errstate(over="ignore"):
            return 6 if float(np.float32(value)) == value else 12
    return None


def _common(kinds: set[int], values: Sequence[Any]) -> int | None:
    """The type that holds all ``values``, whose own are ``kinds``; None if there is none."""
    if len(kinds) == 1:
        return next(iter(kinds))
    if kinds <= {6, 12}:
        return 12
    if kinds <= {UINT32, 5, 10, 11}:
        low, high = min(values), max(values)
        ranges = ((5, -(1 << 31), 31), (10, 0, 64), (11, -(1 << 63), 63))
        return next((kind for kind, least, bits in ranges if least <= low and high < 1 << bits), None)
    return None


def _packed(kind: int, value: Any, what: str) -> bytes:
    return _string(value, 1 << 62, what) if kind == STRING else struct.pack("<" + SCALARS[kind], value)


FORMAT = FileFormat("gguf", (".gguf",), recognizes, open_file, write=write_new)

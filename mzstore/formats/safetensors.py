"""The safetensors format: read by header and byte ranges, written byte for byte.

https://github.com/huggingface/safetensors#format: 8 bytes with the length of the header, the header (JSON, padded
with spaces), the tensors, side by side with no gap. The library of that name writes whole files from memory and
chooses the header itself; both are ours here so that memory stays bounded and a file comes back as it was.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from mzstore import documents
from mzstore.dtypes import BY_SAFETENSORS, DTYPES
from mzstore.errors import FormatError, UnsupportedError
from mzstore.formats import nibbles
from mzstore.formats.base import Candidate, FileFormat, Opening
from mzstore.formats.files import Nibbles, PlainTensor, check_unchanged, lying
from mzstore.ggml import BlockType
from mzstore.sources import LayoutSource, ModelSource, TensorSource, blocks
from mzstore.storage import Blob, Sink
from mzstore.tensors import TensorSpec

MAX_HEADER_NBYTES = 100_000_000  # the limit of the safetensors library
METADATA = "__metadata__"


@dataclass(frozen=True, slots=True)
class Location:
    """A tensor in a file: its bytes are ``[start, stop)`` of the data behind the header."""

    spec: TensorSpec
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Header:
    """``raw`` is what stands in front of the data: the length, the JSON, the padding."""

    raw: bytes
    tensors: Mapping[str, Location]  # in the order of the JSON
    metadata: Mapping[str, str]

    @property
    def nbytes(self) -> int:
        """Size of the whole file."""
        return len(self.raw) + max((t.stop for t in self.tensors.values()), default=0)

    def by_offset(self) -> list[Location]:
        return sorted(self.tensors.values(), key=lambda t: (t.start, t.stop))


def parse_header(raw: bytes, *, where: str) -> Header:
    """The header in ``raw`` (with its length). Raises FormatError or UnsupportedError for what the format forbids."""

    def refuse(problem: str) -> FormatError:
        return FormatError(f"not a safetensors file: {problem}", where=where)

    if len(raw) < 8 or int.from_bytes(raw[:8], "little") != len(raw) - 8:
        raise refuse(f"its header of {len(raw)} bytes is cut short")
    doc = documents.load(raw[8:], where=where, clause="")
    metadata = doc.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise refuse(f"{METADATA} is not an object of strings")
    tensors = {}
    for name, about in doc.items():
        match about:
            case {"dtype": str(code), "shape": list(shape), "data_offsets": [int(start), int(stop)], **rest} if (
                not rest
            ):
                pass
            case _:
                raise refuse(f"the entry of tensor {name[:200]!r} is malformed")
        if code not in BY_SAFETENSORS:
            raise UnsupportedError(f"tensor {name!r} has dtype {code!r:.40}, which mzstore does not know", where=where)
        try:
            spec = TensorSpec(name, BY_SAFETENSORS[code], tuple(shape))
        except ValueError as error:
            raise refuse(str(error)) from error
        nbytes = packed_nbytes(spec)
        if nbytes is None or type(start) is bool or type(stop) is bool or stop - start != nbytes:
            raise refuse(f"tensor {name!r} of {code} and shape {shape} does not fit its {stop - start} bytes")
        tensors[name] = Location(spec, start, stop)
    header = Header(raw, tensors, metadata)
    at = 0
    for tensor in header.by_offset():
        if tensor.start != at:
            raise refuse(f"tensor {tensor.spec.name!r} begins at {tensor.start}, the data before it end at {at}")
        at = tensor.stop
    return header


def packed_nbytes(spec: TensorSpec) -> int | None:
    """Bytes in the file; None if they are not whole. 4-bit values are packed through, without regard to rows."""
    bits = spec.size * spec.dtype.bits
    return None if bits % 8 else bits // 8


def read_header(blob: Blob) -> Header:
    """The header of an open file, which must end where the header says."""
    start = bytes(blob.read(0, min(8, blob.nbytes)))
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > MAX_HEADER_NBYTES or 8 + length > blob.nbytes:
        raise FormatError(f"not a safetensors file: no header of {length} bytes in {blob.nbytes}", where=blob.url)
    header = parse_header(start + bytes(blob.read(8, 8 + length)), where=blob.url)
    if header.nbytes != blob.nbytes:
        raise FormatError(
            f"not a safetensors file: its header describes {header.nbytes} bytes, it has {blob.nbytes}", where=blob.url
        )
    return header


def sources(blob: Blob, header: Header, prefix: str = "") -> Iterator[PlainTensor | Nibbles]:
    """The tensors of an open file, in the order of its header, ``prefix`` before their names."""
    for name, tensor in header.tensors.items():
        spec = replace(tensor.spec, name=prefix + name) if prefix else tensor.spec
        yield lying(spec, blob, len(header.raw) + tensor.start)


def recognizes(file: Candidate) -> bool:
    length = int.from_bytes(file.start[:8], "little")
    return file.start[8:9] == b"{" and length <= min(MAX_HEADER_NBYTES, file.blob.nbytes - 8)


def open_file(file: Candidate, opening: Opening) -> ModelSource:
    header = read_header(file.blob)
    tensors = list(sources(file.blob, header))
    return ModelSource(
        tensors,
        sum(tensor.spec.nbytes for tensor in tensors),
        header.metadata,
        layouts=[LayoutSource(file.name, header.raw)],
        check_unchanged=partial(check_unchanged, (file.blob,)),
    )


@dataclass(frozen=True, slots=True)
class FileLayout:
    """A file with this header; the model's names have ``prefix`` in front."""

    header: Header
    prefix: str = ""

    @property
    def nbytes(self) -> int:
        return self.header.nbytes

    @property
    def forms(self) -> Mapping[str, BlockType]:
        return {}

    @property
    def tensors(self) -> Mapping[str, TensorSpec]:
        return {self.prefix + name: tensor.spec for name, tensor in self.header.tensors.items()}

    def write(self, sink: Sink, tensors: Mapping[str, TensorSource], done: Callable[[int], None]) -> None:
        write(sink, self.header, lambda spec: blocks(tensors[self.prefix + spec.name]), done)


def write_new(sink: Sink, model: ModelSource, tensors: Mapping[str, TensorSource], done: Callable[[int], None]) -> None:
    """A new file of all ``tensors``, as the safetensors library writes it."""
    specs = [tensor.spec for tensor in tensors.values()]
    check_specs(specs)
    header = new_header(specs, {key: _text(value) for key, value in model.metadata.items()})
    write(sink, header, lambda spec: blocks(tensors[spec.name]), done)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def new_header(specs: Iterable[TensorSpec], metadata: Mapping[str, str]) -> Header:
    """The header that the safetensors library gives these tensors: larger elements first, then by name."""
    order = sorted(specs, key=lambda spec: (-_RANK[spec.dtype.safetensors], spec.name))
    doc: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    at = 0
    for spec in order:
        nbytes = packed_nbytes(spec)
        if nbytes is None:
            raise ValueError(
                f"tensor {spec.name!r}: safetensors cannot hold {spec.size} values of {spec.dtype.bits} bits"
            )
        doc[spec.name] = {"dtype": spec.dtype.safetensors, "shape": list(spec.shape), "data_offsets": [at, at + nbytes]}
        at += nbytes
    text = json.dumps(doc, ensure_ascii=False, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    return parse_header(len(text).to_bytes(8, "little") + text, where="new header")


# The order of the safetensors library's own enumeration, by which it sorts the tensors of a file.
_RANK = {
    code: rank
    for rank, code in enumerate(
        [
            "BOOL",
            "F4",
            "F6_E2M3",
            "F6_E3M2",
            "U8",
            "I8",
            "F8_E5M2",
            "F8_E4M3",
            "F8_E8M0",
            "F8_E4M3FNUZ",
            "F8_E5M2FNUZ",
            "I16",
            "U16",
            "F16",
            "BF16",
            "I32",
            "U32",
            "F32",
            "C64",
            "F64",
            "I64",
            "U64",
        ]
    )
}


def check_specs(specs: Iterable[TensorSpec]) -> None:
    """Raises ValueError for a tensor that no safetensors file can hold."""
    for spec in specs:
        if not spec.dtype.safetensors:
            held = ", ".join(d.name for d in DTYPES.values() if d.safetensors)
            raise ValueError(f"tensor {spec.name!r}: safetensors has no {spec.dtype.name}; it has {held}")
        if spec.name == METADATA:
            raise ValueError(f"safetensors reserves the name {METADATA!r}")


def write(
    sink: Sink, header: Header, read: Callable[[TensorSpec], Iterator[np.ndarray]], done: Callable[[int], None]
) -> None:
    """Write a whole file; ``read`` gives a tensor's words, row after row, in flat arrays of any length."""
    sink.write(header.raw)
    for tensor in header.by_offset():
        spec = tensor.spec
        written = 0
        for data in nibbles.pack(read(spec), spec.shape[-1]) if nibbles.repacked(spec) else read(spec):
            sink.write(data.view(np.uint8).data)
            written += data.nbytes
            done(data.nbytes)
        assert written == tensor.stop - tensor.start, spec.name


FORMAT = FileFormat("safetensors", (".safetensors",), recognizes, open_file, write=write_new)

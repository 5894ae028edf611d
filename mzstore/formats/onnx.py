"""ONNX models: initializers as tensors, the graph as the bytes between them.

https://github.com/onnx/onnx/blob/main/onnx/onnx.proto, read by its wire format: the onnx library reads whole models into memory.
Tensors are the initializers of the graph and of the graphs inside of it (branches, bodies of loops), in the file or in files beside it. What else
has values stays in the graph: constants of nodes, strings, sparse initializers.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np

from mzstore.documents import check_relative
from mzstore.dtypes import DTYPES
from mzstore.errors import FormatError, UnsupportedError
from mzstore.formats import nibbles, spliced
from mzstore.formats.base import Candidate, FileFormat, Opening, folder_of
from mzstore.formats.files import PlainTensor, check_unchanged, lying
from mzstore.formats.wire import LEN, VARINT, Field, Varints, Wire
from mzstore.sources import LayoutSource, ModelSource, TensorSource
from mzstore.storage import Blob, is_local, local_path
from mzstore.tensors import MAX_NAME_BYTES, MAX_NDIM, TensorSpec

KIND = "onnx"
MAX_DEPTH = 50  # of graphs inside of graphs
MAX_TENSORS = 1 << 20
MAX_TEXT_NBYTES = 1 << 20  # of a string that is metadata
MAX_METADATA = 1000  # entries

# Numbers of fields, by message.
IR_VERSION, PRODUCER_NAME, PRODUCER_VERSION, GRAPH, OPSET_IMPORT, METADATA_PROPS = 1, 2, 3, 7, 8, 14  # ModelProto
KEY, VALUE = 1, 2  # StringStringEntryProto; OperatorSetIdProto: domain, version
NODE, GRAPH_NAME, INITIALIZER, SPARSE_INITIALIZER = 1, 2, 5, 15  # GraphProto
OUTPUT, ATTRIBUTE = 2, 5  # NodeProto
ATTRIBUTE_NAME, ATTRIBUTE_GRAPH, ATTRIBUTE_GRAPHS = 1, 6, 11  # AttributeProto
DIMS, DATA_TYPE, NAME, RAW_DATA, EXTERNAL_DATA, DATA_LOCATION = 1, 2, 8, 9, 13, 14  # TensorProto
FLOAT_DATA, INT32_DATA, STRING_DATA, INT64_DATA, DOUBLE_DATA, UINT64_DATA = 4, 5, 6, 7, 10, 11
MODEL_FIELDS = frozenset({1, 2, 3, 4, 5, 6, 7, 8, 14, 20, 25, 26})
STRING = 8

# TensorProto.DataType: the dtype, and the field that has the values where raw_data has not.
TYPES: Mapping[int, tuple[str, int]] = MappingProxyType(
    {
        1: ("float32", FLOAT_DATA), 2: ("uint8", INT32_DATA), 3: ("int8", INT32_DATA), 4: ("uint16", INT32_DATA),
        5: ("int16", INT32_DATA), 6: ("int32", INT32_DATA), 7: ("int64", INT64_DATA), 9: ("bool", INT32_DATA),
        10: ("float16", INT32_DATA), 11: ("float64", DOUBLE_DATA), 12: ("uint32", UINT64_DATA), 13: ("uint64", UINT64_DATA),
        14: ("complex64", FLOAT_DATA), 15: ("complex128", DOUBLE_DATA), 16: ("bfloat16", INT32_DATA),
        17: ("float8_e4m3fn", INT32_DATA), 18: ("float8_e4m3fnuz", INT32_DATA), 19: ("float8_e5m2", INT32_DATA),
        20: ("float8_e5m2fnuz", INT32_DATA), 21: ("uint4", INT32_DATA), 22: ("int4", INT32_DATA),
        23: ("float4_e2m1fn", INT32_DATA), 24: ("float8_e8m0fnu", INT32_DATA),
    }
)  # fmt: skip
VALUES = frozenset({FLOAT_DATA, INT32_DATA, STRING_DATA, INT64_DATA, DOUBLE_DATA, UINT64_DATA, RAW_DATA})


@dataclass(frozen=True, slots=True)
class Encoded:
    """A TensorSource of numbers that are varints; of 4-bit values, a number is two of them."""

    spec: TensorSpec
    numbers: Varints

    def read(self, start: int, stop: int) -> np.ndarray:
        if nibbles.repacked(self.spec):
            return nibbles.unpack(self.spec, start, stop, lambda a, b: self._read(a, b).tobytes())
        return self._read(start, stop)

    def _read(self, start: int, stop: int) -> np.ndarray:
        return self.numbers.read(start, stop).astype(self.spec.dtype.word)  # the low bits


@dataclass(slots=True)
class _Found:
    """What a TensorProto says."""

    at: Field
    name: str = ""
    type_: int = 0
    dims: list[int] = field(default_factory=list)
    values: dict[int, Field] = field(default_factory=dict)
    external: dict[str, str] = field(default_factory=dict)
    is_external: bool = False


def recognizes(file: Candidate) -> bool:
    """Whether all of it is fields of a ModelProto, one of which is the graph. There is nothing else that tells."""
    if file.start[:1] != b"\x08":  # the field that all libraries write first: the version
        return False
    wire, found = Wire(file.blob), set()
    try:
        for each in wire.fields(0, file.blob.nbytes):
            found.add(each.number)
            if not found <= MODEL_FIELDS or (each.number == GRAPH and each.wire != LEN):
                return False
    except FormatError:
        return False
    return {IR_VERSION, GRAPH} <= found


def open_file(file: Candidate, opening: Opening) -> ModelSource:
    return _Model(file, opening).source()


class _Model:
    """A model while it is being opened."""

    def __init__(self, file: Candidate, opening: Opening) -> None:
        self.file, self.wire, self.opening = file, Wire(file.blob), opening
        self.files: dict[str, Blob] = {file.name: file.blob}  # by path; that of the model is the first
        self.tensors: dict[str, TensorSource] = {}
        self.paths: dict[str, str] = {}  # of the file that a tensor lies in
        self.left: dict[str, int] = {}  # what stays in the graph

    def source(self) -> ModelSource:
        metadata, graph = self._header()
        for name, found in self._initializers(graph, "", MAX_DEPTH):
            self._add(name, found)
        layouts = self._layouts()
        notes = [f"{count:,} {what} stay in the graph" for what, count in self.left.items()]
        if layouts is None:
            notes.append("more than 100 MB of its files are not of tensors: the graph is not kept")
        return ModelSource(
            list(self.tensors.values()),
            sum(tensor.spec.nbytes for tensor in self.tensors.values()),
            {KIND: metadata},
            layouts=layouts or (),
            notes=notes,
            check_unchanged=partial(check_unchanged, tuple(self.files.values())),
        )

    def refuse(self, problem: str) -> FormatError:
        return FormatError(f"not an ONNX model: {problem}", where=self.wire.blob.url)

    def _header(self) -> tuple[dict[str, Any], Field]:
        """What is known of the model besides its graph, and the graph."""
        graph = None
        metadata: dict[str, Any] = {}
        opsets: dict[str, int] = {}
        props: dict[str, str] = {}
        names = {PRODUCER_NAME: "producer_name", PRODUCER_VERSION: "producer_version"}
        for each in self.wire.fields(0, self.wire.blob.nbytes):
            if each.number == GRAPH:
                if graph or each.wire != LEN:
                    raise self.refuse("it has several graphs")
                graph = each
            elif each.number == IR_VERSION:
                metadata["ir_version"] = each.value
            elif each.number in names:
                metadata[names[each.number]] = self.wire.text(each, MAX_TEXT_NBYTES, names[each.number])
            elif each.number in (OPSET_IMPORT, METADATA_PROPS) and len(opsets) + len(props) < MAX_METADATA:
                entries = {inner.number: inner for inner in self._inside(each)}
                key = self.wire.text(entries[KEY], MAX_TEXT_NBYTES, "a key") if KEY in entries else ""
                value = entries.get(VALUE)
                if each.number == OPSET_IMPORT:
                    opsets[key] = value.value if value else 0
                elif value and value.stop - value.start <= MAX_TEXT_NBYTES:
                    props[key] = self.wire.text(value, MAX_TEXT_NBYTES, "a value")
        if not graph:
            raise self.refuse("it has no graph")
        return metadata | {"opset_import": opsets} | ({"metadata_props": props} if props else {}), graph

    def _inside(self, outer: Field) -> Iterator[Field]:
        if outer.wire != LEN:
            raise self.refuse(f"field {outer.number} is no message at byte {outer.start}")
        return self.wire.fields(outer.start, outer.stop)

    def _initializers(self, graph: Field, prefix: str, depth: int) -> Iterator[tuple[str, _Found]]:
        """Those of a graph, and of the graphs in its nodes; these have the node's first output and the attribute in front."""
        if not depth:
            raise self.refuse(f"graphs lie inside of each other more than {MAX_DEPTH} deep")
        for each in self._inside(graph):
            if each.number == INITIALIZER:
                found = self._tensor(each)
                yield prefix + found.name, found
            elif each.number == SPARSE_INITIALIZER:
                self._leave("sparse initializers")
            elif each.number == NODE:
                yield from self._of_node(each, prefix, depth)

    def _of_node(self, node: Field, prefix: str, depth: int) -> Iterator[tuple[str, _Found]]:
        output, attributes = None, []
        for each in self._inside(node):
            if each.number == OUTPUT:
                output = output or each
            elif each.number == ATTRIBUTE:
                name, graphs = None, []
                for inner in self._inside(each):
                    if inner.number == ATTRIBUTE_NAME:
                        name = inner
                    elif inner.number in (ATTRIBUTE_GRAPH, ATTRIBUTE_GRAPHS):
                        graphs.append(inner)
                if graphs:
                    attributes.append((name, graphs))
        for name, graphs in attributes:
            path = "/".join(self.wire.text(each, MAX_NAME_BYTES, "a name") if each else "" for each in (output, name))
            for i, graph in enumerate(graphs):
                inner_prefix = f"{prefix}{path}/{i}/" if len(graphs) > 1 else f"{prefix}{path}/"
                yield from self._initializers(graph, inner_prefix, depth - 1)

    def _tensor(self, at: Field) -> _Found:
        found = _Found(at)
        for each in self._inside(at):
            if each.number == DIMS:
                found.dims += self.wire.numbers(each, MAX_NDIM)
                if len(found.dims) > MAX_NDIM:
                    raise self.refuse(f"a tensor of more than {MAX_NDIM} dimensions at byte {at.start}")
            elif each.number == DATA_TYPE:
                found.type_ = each.value
            elif each.number == NAME:
                found.name = self.wire.text(each, MAX_NAME_BYTES, "the name of a tensor")
            elif each.number == DATA_LOCATION:
                found.is_external = each.value == 1
            elif each.number == EXTERNAL_DATA:
                entries = {inner.number: inner for inner in self._inside(each)}
                texts = [
                    self.wire.text(entries[i], MAX_NAME_BYTES, "external_data") if i in entries else ""
                    for i in (KEY, VALUE)
                ]
                found.external[texts[0]] = texts[1]
            elif each.number in VALUES:
                if each.number in found.values and each.number != STRING_DATA:
                    text = f"initializer {found.name!r:.200} has its values in several pieces: write the model anew with the onnx library"
                    raise UnsupportedError(text, where=self.wire.blob.url)
                found.values[each.number] = each
        return found

    def _leave(self, what: str) -> None:
        self.left[what] = self.left.get(what, 0) + 1

    def _add(self, name: str, found: _Found) -> None:
        where = self.wire.blob.url
        if not found.name:
            raise self.refuse(f"an initializer without a name at byte {found.at.start}")
        if name in self.tensors:
            raise self.refuse(f"two initializers are called {name[:200]!r}")
        if len(self.tensors) == MAX_TENSORS:
            raise UnsupportedError(f"it has more than {MAX_TENSORS:,} initializers", where=where)
        if found.type_ not in TYPES:
            what = "of strings" if found.type_ == STRING else f"of data type {found.type_}, which mzstore has not,"
            self._leave(f"initializers {what}")
            return
        dtype, typed = DTYPES[TYPES[found.type_][0]], TYPES[found.type_][1]
        try:
            spec = TensorSpec(name, dtype, tuple(found.dims))
        except ValueError as error:
            raise self.refuse(str(error)) from error
        path = self.file.name
        if found.is_external:
            if found.values:
                raise self.refuse(f"initializer {name!r} is external, and has values")
            path, tensor = self._external(spec, found.external)
        else:
            tensor = self._held(spec, found, typed)
        self.tensors[name], self.paths[name] = tensor, path

    def _held(self, spec: TensorSpec, found: _Found, typed: int) -> TensorSource:
        """A tensor that lies in the model's file."""
        wrong = found.values.keys() - {typed, RAW_DATA}
        if wrong or len(found.values) > 1:
            raise self.refuse(
                f"initializer {spec.name!r} of {spec.dtype.name} has values in fields that are not for it"
            )
        values = found.values.get(typed) or found.values.get(RAW_DATA)
        if values is None:
            if spec.size:
                raise self.refuse(f"initializer {spec.name!r} has no values")
            return PlainTensor(spec, self.wire.blob, found.at.start)
        nbytes = values.stop - values.start
        if values.wire != LEN:
            if spec.size == 1 and values.wire == VARINT:
                raise UnsupportedError(
                    f"initializer {spec.name!r} has values that are not packed: write the model anew with the onnx library",
                    where=self.wire.blob.url,
                )
            raise self.refuse(f"initializer {spec.name!r} has values of another wire type")
        if values.number in (INT32_DATA, INT64_DATA, UINT64_DATA):
            numbers = Varints(self.wire, values.start, values.stop)
            if numbers.count != _count(spec):
                raise self.refuse(f"initializer {spec.name!r} has {numbers.count:,} numbers, and not {_count(spec):,}")
            return Encoded(spec, numbers)
        if nbytes != _nbytes(spec):
            raise self.refuse(f"initializer {spec.name!r} has {nbytes:,} bytes of values, and not {_nbytes(spec):,}")
        return _plain(spec, self.wire.blob, values.start)

    def _external(self, spec: TensorSpec, about: Mapping[str, str]) -> tuple[str, TensorSource]:
        """A tensor in a file beside the model's."""
        path = about.get("location", "").removeprefix("./")
        where = f"{self.wire.blob.url}, initializer {spec.name!r}"
        check_relative(path, where=where)
        offset, length = (_natural(about.get(key), key, where) for key in ("offset", "length"))
        blob = self.files.get(path)
        if blob is None:
            blob = self.files[path] = self._open(path, where)
        start, nbytes = offset or 0, _nbytes(spec)
        if length is not None and length != nbytes:
            raise FormatError(f"{length:,} bytes of {path!r}, where {nbytes:,} are needed", where=where)
        if start + nbytes > blob.nbytes:
            raise FormatError(f"it ends at byte {start + nbytes:,} of {path!r}, that at {blob.nbytes:,}", where=where)
        return path, _plain(spec, blob, start)

    def _open(self, path: str, where: str) -> Blob:
        url = self.wire.blob.url
        if is_local(url):
            # A link may lead to where the model lies, as in a cache all of whose files are links, and nowhere else.
            folder = os.path.realpath(local_path(folder_of(self.wire.blob)))
            inside = [folder, os.path.dirname(os.path.realpath(local_path(url)))]
            real = os.path.realpath(os.path.join(folder, path))
            if not any(os.path.commonpath([real, each]) == each for each in inside):
                raise FormatError(f"{path!r} is a link out of the directory: put the file there itself", where=where)
        return self.opening.beside(self.wire.blob, path)

    def _layouts(self) -> Sequence[LayoutSource] | None:
        found = []
        for path, blob in self.files.items():
            inside = [tensor for name, tensor in self.tensors.items() if self.paths[name] == path]
            plain = [tensor for tensor in inside if isinstance(tensor, PlainTensor)]
            others = [tensor.spec for tensor in inside if not isinstance(tensor, PlainTensor)]
            layout = spliced.layout(blob, path, KIND, plain, others)
            if layout is None:
                return None
            found.append(layout)
        return found


def _natural(text: str | None, what: str, where: str) -> int | None:
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise FormatError(f"{what} of external data is {text!r:.100}", where=where)
    return int(text)


def _nbytes(spec: TensorSpec) -> int:
    """In raw_data; of 4-bit values the last byte may be of one."""
    return (spec.size + 1) // 2 if spec.dtype.packed else spec.nbytes


def _count(spec: TensorSpec) -> int:
    """How many numbers stand for the values."""
    return (spec.size + 1) // 2 if spec.dtype.packed else spec.size


def _plain(spec: TensorSpec, blob: Blob, start: int) -> TensorSource:
    return lying(spec, blob, start)


FORMAT = FileFormat(KIND, (".onnx",), recognizes, open_file)

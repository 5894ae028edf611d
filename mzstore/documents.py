"""Documents: the ``zarr.json`` of a model and its tensors. The one door between JSON and objects.

Behind it everything is typed and checked (FORMAT.md section 6).
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, cast

from mzstore.arrays import Array, integers
from mzstore.dtypes import DTYPES, DType
from mzstore.encodings import Part, SinglePart, chunk_path, first_of
from mzstore.encodings.combined import Combined, component_name
from mzstore.encodings.planes import Planes
from mzstore.encodings.quantized import Quantized
from mzstore.encodings.raw import Raw
from mzstore.encodings.sparse import Sparse
from mzstore.errors import FormatError, UnsupportedError
from mzstore.narrow import NARROWER
from mzstore.nodes import ASSETS, LAYOUTS, RESERVED, is_node_name
from mzstore.tensors import TensorSpec, check_name

FORMAT = 1
FEATURES = frozenset({"planes", "quantized", "sparse"})
DOCUMENT = "zarr.json"
CONVENTION = {
    "uuid": "6f0f3a4e-52d1-4c57-9b0a-1f8c2f6d7e90",
    "name": "mzstore",
    "description": "Model tensors as Zarr arrays, or as groups of component arrays",
}
MAX_DOCUMENT_NBYTES = 1 << 28
MAX_PARTS = 4
# The one array that a tensor of one component is.
ONLY_ARRAY = {"raw": "values", "planes": "planes", "quantized": "codes"}

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a model, as the documents have it: its values are in ``part``, or those of node ``same_as``."""

    spec: TensorSpec
    node: str
    sha256: str  # of the words, little endian, in row-major order
    part: Part | None = None
    same_as: str = ""
    lossy: Mapping[str, Any] | None = None  # of values that were changed: what was asked for, and what was reached

    def documents(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """(key of the node, document) of the tensor's node and all below it."""
        about: dict[str, Any] = {} if self.spec.name == self.node else {"name": self.spec.name}
        about |= {"dtype": self.spec.dtype.name, "shape": list(self.spec.shape), "sha256": self.sha256}
        if self.part is None:
            yield self.node, _group({"mzstore": about | {"same_as": self.same_as}})
            return
        if self.lossy is not None:
            about["lossy"] = dict(self.lossy)
        narrower = {} if self.part.dtype == self.spec.dtype else {"dtype": self.part.dtype.name}
        about["parts"] = [part.to_json() | narrower for part in parts_of(self.part)]
        first, *more = self.part.components
        if not more:
            yield self.node, first.array.to_json({"mzstore": about})
            return
        yield self.node, _group({"mzstore": about})
        for component in self.part.components:
            yield f"{self.node}/{component.name}", component.array.to_json()

    @property
    def n_chunks(self) -> int:
        """Number of chunks that this tensor has in the container."""
        return sum(component.array.grid.n_chunks for component in self.part.components) if self.part else 0

    def chunk_keys(self) -> Iterator[str]:
        """Keys of all chunks that this tensor has in the container, in the order in which they are written."""
        part = self.part
        if part is None:
            return
        constant = isinstance(part, Raw) and part.constant
        for chunk in [(0,) * len(part.grid.shape)] if constant else part.grid.chunks():
            for component in part.components:
                if first_of(part, component, chunk):
                    yield f"{self.node}/{chunk_path(part, component, chunk)}"


@dataclass(frozen=True, slots=True)
class Asset:
    """A small file that travels with the model: ``path`` below the model's directory, ``key`` in the container."""

    path: str
    key: str
    nbytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Layout:
    """How a source file of another format was laid out, so that it can be made again byte for byte.

    ``prefix`` stands before the names that the file has, where several files have tensors of the same name.
    """

    path: str
    key: str
    prefix: str = ""
    format: str = "safetensors"


@dataclass(frozen=True, slots=True)
class ModelDocument:
    """The root document: everything about a model but the values."""

    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    assets: Sequence[Asset] = ()
    layouts: Sequence[Layout] = ()
    writer: str = ""

    def documents(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """(key of the node, document) of every node; the root, whose key is "", is the last."""
        below: dict[str, Any] = {}
        for entry in self.tensors.values():
            for key, doc in entry.documents():
                below[key] = doc
                yield key, doc
        about: dict[str, Any] = {"format": FORMAT, "features": self.features(), "writer": self.writer}
        if self.metadata:
            about["metadata"] = dict(self.metadata)
        if self.assets:
            about["assets"] = [
                {"path": a.path, "key": a.key, "nbytes": a.nbytes, "sha256": a.sha256} for a in self.assets
            ]
        if self.layouts:
            about["layouts"] = [
                {"path": x.path, "key": x.key, "format": x.format} | ({"prefix": x.prefix} if x.prefix else {})
                for x in self.layouts
            ]
        root = _group({"zarr_conventions": [CONVENTION], "mzstore": about})
        root["consolidated_metadata"] = {"kind": "inline", "must_understand": False, "metadata": below}
        yield "", root

    def features(self) -> list[str]:
        """What a reader must know beyond ``raw`` to read all of this model."""
        return sorted(_encodings(self.tensors.values()) - {"raw"})


def parts_of(part: Part) -> tuple[SinglePart, ...]:
    """The parts that ``part`` is made of, in order: itself, or those that it combines."""
    return part.parts if isinstance(part, Combined) else (cast(SinglePart, part),)


def _encodings(entries: Iterable[TensorEntry]) -> set[str]:
    return {part.encoding for entry in entries if entry.part for part in parts_of(entry.part)}


def dump(doc: Mapping[str, Any]) -> bytes:
    """``doc`` as the bytes that are stored: always the same for the same document."""
    return json.dumps(doc, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode()


def load(data: bytes, *, where: str, clause: str = "document-1") -> dict[str, Any]:
    """The JSON object in ``data``. Raises FormatError, which cites ``clause``, for what is not one, or not strict JSON."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise FormatError(f"not UTF-8: {error}", where=where, clause=clause) from error

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        members = dict(pairs)
        if len(members) != len(pairs):
            raise ValueError("a member occurs twice")
        return members

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant[:40]} is no number of JSON")

    def finite(number: str) -> float:
        value = float(number)
        return value if math.isfinite(value) else refuse(number)

    try:
        doc = json.loads(text, object_pairs_hook=unique, parse_constant=refuse, parse_float=finite)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"not JSON: {error}", where=where, clause=clause) from error
    if not isinstance(doc, dict):
        raise FormatError("not a JSON object", where=where, clause=clause)
    return doc


def parse(root: dict[str, Any], *, where: str) -> ModelDocument:
    """The model of a root document. Raises FormatError or UnsupportedError that names the node."""
    about = _about(root, "group", where=where)
    version = about.get("format")
    if type(version) is not int or version < 1:
        raise FormatError(f"the format number is {version!r:.200}, not an integer >= 1", where=where, clause="root-2")
    if version > FORMAT:
        raise UnsupportedError(
            f"written in format {version}, this mzstore reads up to {FORMAT}; upgrade mzstore",
            where=where,
            clause="root-2",
        )
    features = about.get("features")
    if not isinstance(features, list) or not all(isinstance(f, str) for f in features):
        raise FormatError("'features' is not a list of strings", where=where, clause="root-3")
    if unknown := set(features) - FEATURES:
        raise UnsupportedError(
            f"needs {', '.join(sorted(unknown))}, which this mzstore does not know; upgrade mzstore",
            where=where,
            clause="root-3",
        )
    match root.get("consolidated_metadata"):
        case {"kind": "inline", "must_understand": False, "metadata": dict(below)}:
            pass
        case _:
            raise FormatError("no inline consolidated metadata", where=where, clause="root-4")
    metadata = about.get("metadata", {})
    if not isinstance(metadata, dict):
        raise FormatError("'metadata' is not an object", where=where, clause="root-5")
    tensors = _tensors(below, where=where)
    used = _encodings(tensors.values()) - {"raw"}
    if used - set(features):
        raise FormatError(
            f"encoding {min(used - set(features))!r} is used but is not in 'features'", where=where, clause="root-3"
        )
    return ModelDocument(
        tensors,
        metadata,
        tuple(_assets(about.get("assets", []), where=where)),
        tuple(_layouts(about.get("layouts", []), where=where)),
        str(about.get("writer", "")),
    )


def _group(attributes: dict[str, Any]) -> dict[str, Any]:
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def _about(doc: object, node_type: str, *, where: str) -> dict[str, Any]:
    match doc:
        case {"zarr_format": 3, "node_type": kind, "attributes": {"mzstore": dict(about)}} if kind == node_type:
            return about
    raise FormatError(f"not a Zarr v3 {node_type} with attributes.mzstore", where=where, clause="document-2")


def _tensors(below: dict[str, Any], *, where: str) -> dict[str, TensorEntry]:
    children: dict[str, dict[str, Any]] = {}
    for key, doc in below.items():
        node, slash, component = key.partition("/")
        if not is_node_name(node) or node.lower() in RESERVED or (slash and not is_node_name(component)):
            raise FormatError(f"{key[:300]!r} is no key of a node", where=where, clause="node-1")
        if not isinstance(doc, dict):
            raise FormatError(f"the document of {key!r} is not an object", where=where, clause="document-2")
        if slash:
            children.setdefault(node, {})[component] = doc
    folded = {key.lower() for key in below}
    if len(folded) != len(below):
        raise FormatError("two node names differ only in upper and lower case", where=where, clause="node-1")
    tensors: dict[str, TensorEntry] = {}
    for key, doc in below.items():
        if "/" in key:
            if key.partition("/")[0] not in below:
                raise FormatError(f"{key!r} has no parent", where=where, clause="node-2")
            continue
        entry = _tensor(key, doc, children.get(key, {}), where=f"{where}, node {key!r}")
        if entry.spec.name in tensors:
            raise FormatError(f"two nodes hold tensor {entry.spec.name!r}", where=where, clause="tensor-1")
        tensors[entry.spec.name] = entry
    nodes = {entry.node: entry for entry in tensors.values()}
    for entry in tensors.values():
        if entry.part is None:
            base = nodes.get(entry.same_as)
            same = (
                base
                and base.part
                and (base.spec.dtype, base.spec.shape, base.sha256)
                == (entry.spec.dtype, entry.spec.shape, entry.sha256)
            )
            if not same:
                raise FormatError(
                    f"tensor {entry.spec.name!r} refers to {entry.same_as!r}, which is not a stored tensor equal to it",
                    where=where,
                    clause="tensor-5",
                )
    return tensors


def _tensor(node: str, doc: dict[str, Any], children: dict[str, Any], *, where: str) -> TensorEntry:
    kind = doc.get("node_type")
    about = _about(doc, "array" if kind == "array" else "group", where=where)
    name, dtype, sha256 = about.get("name", node), about.get("dtype"), about.get("sha256")
    if not isinstance(name, str) or not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise FormatError(
            "'name' is not a string, or 'sha256' not 64 hexadecimal digits", where=where, clause="tensor-1"
        )
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise UnsupportedError(f"dtype {dtype!r:.200} is unknown; upgrade mzstore", where=where, clause="tensor-2")
    try:
        check_name(name)
    except ValueError as error:
        raise FormatError(str(error), where=where, clause="tensor-1") from error
    try:
        spec = TensorSpec(name, DTYPES[dtype], integers(about.get("shape")))
    except ValueError as error:
        raise FormatError(str(error), where=where, clause="tensor-3") from error
    if "same_as" in about:
        if kind == "array" or children or "parts" in about or not isinstance(about["same_as"], str):
            raise FormatError("a reference has parts or arrays, or is not a string", where=where, clause="tensor-5")
        return TensorEntry(spec, node, sha256, same_as=about["same_as"])
    match about.get("parts"):
        case [{"encoding": "raw" | "planes" | "quantized" as encoding}, *more] as parts if len(
            parts
        ) <= MAX_PARTS and all(isinstance(other, dict) and other.get("encoding") == "sparse" for other in more):
            pass
        case parts:
            raise UnsupportedError(f"parts {parts!r:.200} are unknown; upgrade mzstore", where=where, clause="tensor-4")
    if len(children) == 1 or (kind == "array") == bool(children):
        raise FormatError(
            "an array with arrays below it, or a group with less than two", where=where, clause="tensor-4"
        )
    arrays = {name: Array.from_json(child, where=f"{where}/{name}") for name, child in children.items()}
    if not arrays:
        arrays = {ONLY_ARRAY[encoding]: Array.from_json(doc, where=where)}
    lossy = about.get("lossy")
    if "lossy" in about and not isinstance(lossy, dict):
        raise FormatError("'lossy' is not an object", where=where, clause="tensor-6")
    part = _combined(spec, parts, arrays, where=where)
    return TensorEntry(spec, node, sha256, part, lossy=lossy)


def _combined(spec: TensorSpec, docs: list[dict[str, Any]], arrays: dict[str, Array], *, where: str) -> Part:
    """The part, or the parts combined, of ``docs``; each takes those of ``arrays`` whose names are its own."""
    parts: list[SinglePart] = []
    left = dict(arrays)
    for i, doc in reversed(list(enumerate(docs))):  # the names of the first part have no number in front
        prefix = component_name(i, "")
        own = {name.removeprefix(prefix): left.pop(name) for name in list(left) if name.startswith(prefix)}
        try:
            parts.insert(0, _part(spec, doc, own, where=where))
        except ValueError as error:
            raise FormatError(str(error), where=where, clause=f"{doc['encoding']}-1") from error
    if len(parts) == 1:
        return parts[0]
    if any(part.dtype != spec.dtype for part in parts) or (isinstance(parts[0], Raw) and parts[0].constant):
        raise FormatError("several parts, one of which is constant or of another dtype", where=where, clause="tensor-7")
    try:
        return Combined(tuple(parts))
    except ValueError as error:
        raise FormatError(str(error), where=where, clause="tensor-7") from error


def _part(spec: TensorSpec, doc: dict[str, Any], arrays: dict[str, Array], *, where: str) -> SinglePart:
    stored = _stored(spec, doc.get("dtype", spec.dtype.name), where=where)
    match doc["encoding"]:
        case "planes":
            return Planes.from_json(doc, stored, spec.word_shape, arrays)
        case "quantized":
            return Quantized.from_json(doc, stored, spec.shape, arrays)
        case "sparse":
            return Sparse.from_json(doc, stored, spec.word_shape, arrays)
    if arrays.keys() != {"values"}:
        raise ValueError("'raw' is one array")
    return Raw(stored, spec.word_shape, arrays["values"])


def _stored(spec: TensorSpec, name: object, *, where: str) -> DType:
    if name != spec.dtype.name and name not in NARROWER.get(spec.dtype.name, ()):
        raise FormatError(
            f"values of {spec.dtype.name} cannot be stored as {name!r:.100}", where=where, clause="narrow-1"
        )
    return DTYPES[str(name)]


def _assets(docs: object, *, where: str) -> Iterator[Asset]:
    for doc in _files(docs, ASSETS, where=where):
        match doc:
            case {"nbytes": nbytes, "sha256": str(sha256)} if (
                type(nbytes) is int and nbytes >= 0 and _SHA256.fullmatch(sha256)
            ):
                yield Asset(doc["path"], doc["key"], nbytes, sha256)
            case _:
                raise FormatError(f"asset {doc['path']!r} has no size or no sha256", where=where, clause="asset-1")


def _layouts(docs: object, *, where: str) -> Iterator[Layout]:
    for doc in _files(docs, LAYOUTS, where=where):
        if doc.get("format") != "safetensors":
            raise UnsupportedError(
                f"layout format {doc.get('format')!r:.100} is unknown; upgrade mzstore", where=where, clause="layout-1"
            )
        prefix = doc.get("prefix", "")
        if not isinstance(prefix, str):
            raise FormatError(f"the prefix of layout {doc['path']!r} is not a string", where=where, clause="layout-1")
        yield Layout(doc["path"], doc["key"], prefix)


def _files(docs: object, folder: str, *, where: str) -> Iterator[dict[str, Any]]:
    if not isinstance(docs, list):
        raise FormatError(f"{folder!r} is not a list", where=where, clause="asset-1")
    keys: set[str] = set()
    for doc in docs:
        match doc:
            case {"path": str(), "key": str(key)} if key.startswith(f"{folder}/"):
                pass
            case _:
                raise FormatError(
                    f"an entry of {folder!r} has no path, or no key below {folder}/", where=where, clause="asset-1"
                )
        if not all(is_node_name(segment) for segment in key.split("/")):
            raise FormatError(f"{key[:300]!r} is no key", where=where, clause="asset-1")
        if key.lower() in keys:
            raise FormatError(f"{key!r} occurs twice", where=where, clause="asset-2")
        keys.add(key.lower())
    check_paths([doc["path"] for doc in docs], where=where)
    yield from docs


def check_paths(paths: Sequence[str], *, where: str) -> None:
    """Raises FormatError unless files of all these relative paths can stand beside each other, on every system."""
    folded: set[str] = set()
    for path in paths:
        check_relative(path, where=where)
        if path.casefold() in folded:
            raise FormatError(f"{path!r} occurs twice", where=where, clause="asset-2")
        folded.add(path.casefold())
    for path in folded:
        if any(path[:i] in folded for i, c in enumerate(path) if c == "/"):
            raise FormatError(f"{path!r} lies below a file", where=where, clause="asset-2")


def check_relative(path: str, *, where: str) -> None:
    """Raises FormatError unless ``path`` stays below the directory that it is relative to, on every system."""
    bad = any(part in ("", ".", "..") or part.endswith((" ", ".")) for part in path.split("/"))
    if (
        bad
        or any(c in '\\:*?"<>|' or ord(c) < 32 or 0xD800 <= ord(c) < 0xE000 for c in path)
        or len(path.encode(errors="replace")) > 1024
    ):
        raise FormatError(
            f"{path[:300]!r} is not a relative path that every system can write", where=where, clause="asset-2"
        )

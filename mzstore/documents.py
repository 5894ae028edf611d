"""Documents: the ``zarr.json`` of a model and its tensors. The one door between JSON and objects.

Behind it everything is typed and checked (FORMAT.md section 6).
"""

import json
import marshal
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, cast, get_args

from mzstore.arrays import Array, integers
from mzstore.dtypes import DTYPES, DType
from mzstore.encodings import Part, SinglePart, chunk_path, first_of
from mzstore.encodings.base import Base
from mzstore.encodings.combined import Combine, Combined, component_name
from mzstore.encodings.ggml import Ggml
from mzstore.encodings.lowrank import LowRank
from mzstore.encodings.planes import Planes
from mzstore.encodings.quantized import Quantized
from mzstore.encodings.raw import Raw
from mzstore.encodings.sparse import Sparse
from mzstore.encodings.tucker import Tucker
from mzstore.errors import FormatError, UnsupportedError
from mzstore.ggml import TYPES
from mzstore.grid import Grid, choose_chunk_shape
from mzstore.narrow import NARROWER
from mzstore.nodes import ASSETS, LAYOUTS, RESERVED, is_node_name
from mzstore.tensors import TensorSpec, check_name

FORMAT = 1
FEATURES = frozenset({"base", "ggml", "lowrank", "planes", "quantized", "sparse", "tucker"})
ENCODINGS = (*sorted(FEATURES), "raw")
LAYOUT_FORMATS = ("safetensors", "spliced")
DOCUMENT = "zarr.json"
CONVENTION = {
    "uuid": "6f0f3a4e-52d1-4c57-9b0a-1f8c2f6d7e90",
    "name": "mzstore",
    "description": "Model tensors as Zarr arrays, or as groups of component arrays",
}
MAX_DOCUMENT_NBYTES = 1 << 28
MAX_PARTS = 4
MAX_BASES = 256
MAX_URL_LENGTH = 4096
# The one array that a tensor of one component is.
ONLY_ARRAY = {"raw": "values", "planes": "planes", "quantized": "codes", "ggml": "blocks"}
NESTED = ("raw", "planes", "quantized")

_SHA256 = re.compile(r"[0-9a-f]{64}")
_NOT_IN_URLS = re.compile("[\0\ud800-\udfff]")


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
        about["parts"] = [doc | narrower for doc in _part_documents(self.part)]
        if len(self.part.components) == 1:
            yield self.node, self.part.components[0].array.to_json({"mzstore": about})
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
        if part is None or not part.components:
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

    prefix  stands before the names that the file has, where several files have tensors of the same name
    format  one of LAYOUT_FORMATS
    kind    the format of the file, as ``convert`` names it
    """

    path: str
    key: str
    prefix: str = ""
    format: str = "safetensors"
    kind: str = "safetensors"


@dataclass(frozen=True, slots=True)
class ModelDocument:
    """The root document: everything about a model but the values."""

    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    assets: Sequence[Asset] = ()
    layouts: Sequence[Layout] = ()
    writer: str = ""
    bases: Sequence[str] = ()  # URLs of other models, which parts refer to by their index
    _by_node: Mapping[str, TensorEntry] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_node", {entry.node: entry for entry in self.tensors.values()})

    def stored(self, entry: TensorEntry) -> TensorEntry:
        """The tensor that has the values of ``entry``: itself, or the one that it refers to."""
        return entry if entry.part else self._by_node[entry.same_as]

    def documents(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """(key of the node, document) of every node; the root, whose key is "", is the last."""
        below: dict[str, Any] = {}
        for entry in self.tensors.values():
            for key, doc in entry.documents():
                below[key] = doc
                yield key, doc
        about: dict[str, Any] = {"format": FORMAT, "features": self.features(), "writer": self.writer}
        if self.bases:
            about["bases"] = [{"url": url} for url in self.bases]
        if self.metadata:
            about["metadata"] = dict(self.metadata)
        if self.assets:
            about["assets"] = [asset_json(asset) for asset in self.assets]
        if self.layouts:
            about["layouts"] = [layout_json(layout) for layout in self.layouts]
        root = _group({"zarr_conventions": [CONVENTION], "mzstore": about})
        root["consolidated_metadata"] = {"kind": "inline", "must_understand": False, "metadata": below}
        yield "", root

    def features(self) -> list[str]:
        """What a reader must know beyond ``raw`` to read all of this model."""
        return sorted(encodings_of(self.tensors.values()) - {"raw"})


def parts_of(part: Part) -> tuple[SinglePart, ...]:
    """The parts that ``part`` is made of, in order: itself, or those that it combines."""
    return part.parts if isinstance(part, Combined) else (cast(SinglePart, part),)


def _part_documents(part: Part) -> Iterator[dict[str, object]]:
    """The documents of all parts; how each changes the values is stated where it is not what ``sparse`` does by itself."""
    first, *more = parts_of(part)
    yield first.to_json()
    for other, how in zip(more, part.combines if isinstance(part, Combined) else (), strict=True):
        default = isinstance(other, Sparse) and how == "replace"
        yield other.to_json() if default else other.to_json() | {"combine": how}


def asset_json(asset: Asset) -> dict[str, Any]:
    return {"path": asset.path, "key": asset.key, "nbytes": asset.nbytes, "sha256": asset.sha256}


def layout_json(layout: Layout) -> dict[str, Any]:
    about = {"path": layout.path, "key": layout.key, "format": layout.format}
    about |= {"kind": layout.kind} if layout.kind != layout.format else {}
    return about | ({"prefix": layout.prefix} if layout.prefix else {})


def encodings_of(entries: Iterable[TensorEntry]) -> set[str]:
    """Of all parts, and of those inside of them."""
    return {name for entry in entries if entry.part for part in parts_of(entry.part) for name in _encodings_of(part)}


def _encodings_of(part: SinglePart) -> Iterator[str]:
    yield part.encoding
    if isinstance(part, Sparse):
        yield part.values.part.encoding
    elif isinstance(part, LowRank):
        yield from (part.left.encoding, part.right.encoding)
    elif isinstance(part, Tucker):
        yield from (nested.encoding for nested in part.nested)


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
    bases = _bases(about.get("bases", []), where=where)
    tensors = _tensors(below, len(bases), where=where)
    used = encodings_of(tensors.values()) - {"raw"}
    if used - set(features):
        raise FormatError(
            f"encoding {min(used - set(features))!r} is used but is not in 'features'", where=where, clause="root-3"
        )
    return ModelDocument(
        tensors,
        metadata,
        assets_of(about.get("assets", []), where=where),
        layouts_of(about.get("layouts", []), where=where),
        str(about.get("writer", "")),
        bases,
    )


def _group(attributes: dict[str, Any]) -> dict[str, Any]:
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def _about(doc: object, node_type: str, *, where: str) -> dict[str, Any]:
    if isinstance(doc, dict) and doc.get("zarr_format") == 3 and doc.get("node_type") == node_type:
        attributes = doc.get("attributes")
        about = attributes.get("mzstore") if isinstance(attributes, dict) else None
        if isinstance(about, dict):
            return about
    raise FormatError(f"not a Zarr v3 {node_type} with attributes.mzstore", where=where, clause="document-2")


def _bases(docs: object, *, where: str) -> tuple[str, ...]:
    if not isinstance(docs, list) or len(docs) > MAX_BASES:
        raise FormatError(f"'bases' is not a list of at most {MAX_BASES}", where=where, clause="base-2")
    urls = []
    for doc in docs:
        match doc:
            case {"url": str(url)} if 0 < len(url) <= MAX_URL_LENGTH and not _NOT_IN_URLS.search(url):
                urls.append(url)
            case _:
                text = f"a base has no url, or one of more than {MAX_URL_LENGTH} characters, or of what is none"
                raise FormatError(text, where=where, clause="base-2")
    return tuple(urls)


def _tensors(below: dict[str, Any], n_bases: int, *, where: str) -> dict[str, TensorEntry]:
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
    known: dict[bytes, Part] = {}
    for key, doc in below.items():
        if "/" in key:
            if key.partition("/")[0] not in below:
                raise FormatError(f"{key!r} has no parent", where=where, clause="node-2")
            continue
        entry = _tensor(key, doc, children.get(key, {}), n_bases, known, where=f"{where}, node {key!r}")
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


def _tensor(
    node: str, doc: dict[str, Any], children: dict[str, Any], n_bases: int, known: dict[bytes, Part], *, where: str
) -> TensorEntry:
    """The tensor at ``node``. ``known`` has the parts that were made before, by the documents that they were made of."""
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
    lossy = about.get("lossy")
    if "lossy" in about and not isinstance(lossy, dict):
        raise FormatError("'lossy' is not an object", where=where, clause="tensor-6")
    # Many tensors of a model differ in name and digest only. Version 2 of marshal writes equal values of JSON alike, and
    # no others: 1, 1.0 and true differ.
    try:
        like = marshal.dumps((dtype, about.get("shape"), about.get("parts"), {**doc, "attributes": None}, children), 2)
    except ValueError as error:
        raise FormatError(f"lists and objects in each other: {error}", where=where, clause="document-2") from error
    part = known.get(like)
    if part is None:
        part = _parts(spec, about.get("parts"), doc, children, n_bases, where=where)
        if not any(component.name.endswith("codebook") for component in part.components):
            known[like] = part  # with another a codebook is kept, which is that of one tensor
    return TensorEntry(spec, node, sha256, part, lossy=lossy)


def _parts(
    spec: TensorSpec, docs: Any, doc: dict[str, Any], children: dict[str, Any], n_bases: int, *, where: str
) -> Part:
    """The part, or the parts combined, of ``docs``; ``doc`` is that of the node, ``children`` are those below it."""
    if not isinstance(docs, list) or not 1 <= len(docs) <= MAX_PARTS or not all(map(_is_known, docs)):
        raise UnsupportedError(f"parts {docs!r:.200} are unknown; upgrade mzstore", where=where, clause="tensor-4")
    kind, only_base = doc["node_type"], [part["encoding"] for part in docs] == ["base"]
    if len(children) == 1 or ((kind == "array") == bool(children) and not only_base):
        raise FormatError(
            "an array with arrays below it, or a group with less than two", where=where, clause="tensor-4"
        )
    arrays = {name: Array.from_json(child, where=f"{where}/{name}") for name, child in children.items()}
    if kind == "array":
        arrays = {_only_name(docs): Array.from_json(doc, where=where)}
    return _combined(spec, docs, arrays, n_bases, where=where)


def _is_known(doc: object) -> bool:
    return isinstance(doc, dict) and doc.get("encoding") in ENCODINGS and doc.get("combine", "add") in get_args(Combine)


def _only_name(docs: list[dict[str, Any]]) -> str:
    """The name that the only component of the parts of ``docs`` has where there are several."""
    for i, doc in enumerate(docs):
        if doc["encoding"] in ONLY_ARRAY:
            return component_name(i, ONLY_ARRAY[doc["encoding"]])
    return ""


def _combined(
    spec: TensorSpec, docs: list[dict[str, Any]], arrays: dict[str, Array], n_bases: int, *, where: str
) -> Part:
    """The part, or the parts combined, of ``docs``; each takes those of ``arrays`` whose names are its own."""
    parts: list[SinglePart] = []
    left = dict(arrays)
    for i, doc in reversed(list(enumerate(docs))):  # the names of the first part have no number in front
        prefix = component_name(i, "")
        own = {name.removeprefix(prefix): left.pop(name) for name in list(left) if name.startswith(prefix)}
        # A base has the chunks of what follows it.
        grid = parts[0].grid if parts else None
        try:
            parts.insert(0, _part(spec, doc, own, grid, n_bases, where=where))
        except ValueError as error:
            raise FormatError(str(error), where=where, clause=f"{doc['encoding']}-1") from error
    if len(parts) > 1 and any(isinstance(part, Ggml) for part in parts):
        raise FormatError("blocks of ggml beside another part", where=where, clause="ggml-1")
    try:
        combines = tuple(_combine(doc) for doc in docs[1:])
        if "combine" in docs[0]:
            raise ValueError("the first part has nothing to be combined with")
        if len(parts) > 1 and any(part.dtype is not spec.dtype for part in parts):
            raise ValueError("one of several parts is of another dtype")
        if len(parts) > 1:
            return Combined(tuple(parts), combines)
        if isinstance(parts[0], Sparse):
            parts[0].check_values(adds=False)
    except ValueError as error:
        raise FormatError(str(error), where=where, clause="tensor-7") from error
    return parts[0]


def _combine(doc: dict[str, Any]) -> Combine:
    how: Combine | None = doc.get("combine", "replace" if doc["encoding"] == "sparse" else None)
    if how is None:
        raise ValueError(f"it is not said how {doc['encoding']!r} changes the values before it")
    return how


def _part(
    spec: TensorSpec, doc: dict[str, Any], arrays: dict[str, Array], grid: Grid | None, n_bases: int, *, where: str
) -> SinglePart:
    stored = _stored(spec, doc.get("dtype", spec.dtype.name), where=where)

    def nested(inner: object, dtype: DType, shape: tuple[int, ...], own: dict[str, Array]) -> SinglePart:
        encoding = inner.get("encoding") if isinstance(inner, dict) else None
        if not isinstance(encoding, str) or encoding not in NESTED:
            raise ValueError(f"{inner!r:.200} is no part that can be inside of another one")
        assert isinstance(inner, dict)
        name = inner.get("dtype", dtype.name)
        if not isinstance(name, str) or name not in DTYPES:
            raise ValueError(f"dtype {name!r:.100} is unknown")
        alone = "" in own
        part = _single(inner, DTYPES[name], shape, shape, {ONLY_ARRAY[encoding]: own[""]} if alone else own)
        if alone != (len(part.components) == 1):
            raise ValueError("a part inside of another one has an array that is not named as such a part's only one")
        return part

    match doc["encoding"]:
        case "ggml" if str(doc.get("type")) not in TYPES:
            text = f"blocks of type {doc.get('type')!r:.100} are unknown; upgrade mzstore"
            raise UnsupportedError(text, where=where, clause="ggml-1")
        case "base":
            if arrays:
                raise ValueError(f"array {min(arrays)!r} of a base")
            if stored is not spec.dtype:
                raise ValueError(f"a base of {stored.name} for a tensor of {spec.dtype.name}")
            own = grid or Grid(spec.word_shape, choose_chunk_shape(spec.word_shape, stored.word.itemsize))
            base = Base.from_json(doc, stored, own, n_bases)
            check_name(base.tensor)
            if not _SHA256.fullmatch(base.sha256):
                raise ValueError(f"'sha256' is {base.sha256!r:.100}, not 64 hexadecimal digits")
            return base
        case "lowrank":
            return LowRank.from_json(doc, stored, spec.shape, arrays, nested)
        case "tucker":
            return Tucker.from_json(doc, stored, spec.shape, arrays, nested)
        case "sparse":
            return Sparse.from_json(doc, stored, spec.word_shape, arrays, nested)
    return _single(doc, stored, spec.shape, spec.word_shape, arrays)


def _single(
    doc: dict[str, Any], dtype: DType, shape: tuple[int, ...], word_shape: tuple[int, ...], arrays: dict[str, Array]
) -> SinglePart:
    """A part that has no other inside."""
    match doc["encoding"]:
        case "planes":
            return Planes.from_json(doc, dtype, word_shape, arrays)
        case "quantized":
            return Quantized.from_json(doc, dtype, shape, arrays)
        case "ggml":
            return Ggml.from_json(doc, dtype, shape, arrays)
    if arrays.keys() != {"values"}:
        raise ValueError("'raw' is one array")
    return Raw(dtype, word_shape, arrays["values"])


def _stored(spec: TensorSpec, name: object, *, where: str) -> DType:
    if name != spec.dtype.name and name not in NARROWER.get(spec.dtype.name, ()):
        raise FormatError(
            f"values of {spec.dtype.name} cannot be stored as {name!r:.100}", where=where, clause="narrow-1"
        )
    return DTYPES[str(name)]


def entries_of(nodes: dict[str, Any], *, where: str) -> dict[str, TensorEntry]:
    """The tensors, by name, that documents by key of the node describe. Raises FormatError or UnsupportedError."""
    return _tensors(nodes, 0, where=where)


def assets_of(docs: object, *, where: str) -> tuple[Asset, ...]:
    """The assets that a list of a document describes. Raises FormatError."""
    return tuple(_assets(docs, where=where))


def layouts_of(docs: object, *, where: str, folder: str = LAYOUTS) -> tuple[Layout, ...]:
    """The layouts, whose keys are below ``folder``. Raises FormatError or UnsupportedError."""
    return tuple(_layouts(docs, folder, where=where))


def _assets(docs: object, *, where: str) -> Iterator[Asset]:
    for doc in _files(docs, ASSETS, where=where):
        match doc:
            case {"nbytes": nbytes, "sha256": str(sha256)} if (
                type(nbytes) is int and nbytes >= 0 and _SHA256.fullmatch(sha256)
            ):
                yield Asset(doc["path"], doc["key"], nbytes, sha256)
            case _:
                raise FormatError(f"asset {doc['path']!r} has no size or no sha256", where=where, clause="asset-1")


def _layouts(docs: object, folder: str, *, where: str) -> Iterator[Layout]:
    for doc in _files(docs, folder, where=where):
        format_ = doc.get("format")
        if format_ not in LAYOUT_FORMATS:
            raise UnsupportedError(
                f"layout format {format_!r:.100} is unknown; upgrade mzstore", where=where, clause="layout-1"
            )
        prefix, kind = doc.get("prefix", ""), doc.get("kind", format_)
        if not isinstance(prefix, str) or not isinstance(kind, str):
            text = f"the prefix or kind of layout {doc['path']!r} is not a string"
            raise FormatError(text, where=where, clause="layout-1")
        yield Layout(doc["path"], doc["key"], prefix, format_, kind)


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

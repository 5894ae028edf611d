"""A slow reader of mzstore models that reads like FORMAT.md, in the same order.

It shares no code with mzstore: Python's standard library, NumPy for arrays, ``zstandard`` for decompression. What
stands behind ``# >`` is quoted from FORMAT.md; a test compares. Every error names the clause that is broken.

    model = reference.read(path)          # an archive or a tree; or the bytes of an archive
    model.tensors["name"].words           # NumPy array of unsigned integers
"""

import base64
import hashlib
import itertools
import json
import math
import re
import struct
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zstandard


class Refused(Exception):
    """The model is not read; ``clause`` is the rule of FORMAT.md that it breaks."""

    name = ""

    def __init__(self, clause: str, problem: str) -> None:
        super().__init__(f"{problem} (FORMAT.md {clause})")
        self.clause = clause


# Section 11: the classes of refusals.


class FormatRefused(Refused):
    name = "format"


class UnsupportedRefused(Refused):
    name = "unsupported"


class CorruptRefused(Refused):
    name = "corrupt"


def need(holds: object, clause: str, problem: str, refused: type[Refused] = FormatRefused) -> None:
    if not holds:
        raise refused(clause, problem)


@dataclass(frozen=True)
class Tensor:
    dtype: str
    shape: tuple[int, ...]
    words: np.ndarray
    blocks: tuple[str, bytes] | None = None  # of ggml: their type, and all of them


@dataclass(frozen=True)
class Model:
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, Any]
    assets: Mapping[str, bytes]
    files: Mapping[str, bytes]  # that have a layout, as they were


Source = bytes | str | Path | Mapping[str, bytes]
Find = Callable[[str], Source]


def read(source: Source, find: Find | None = None, depth: int = 0) -> Model:
    """All of the model in an archive (a path, or its bytes) or a tree (a directory, or its objects by key).

    find   where the base with a URL is, in the same terms; without it, URLs are paths
    depth  how many models refer to this one, one behind another
    """
    if isinstance(source, bytes):
        return read_model(open_archive(source), lambda url: read(need_find(find)(url), find, depth + 1), depth)
    if isinstance(source, Mapping):
        objects = {key: Object(data, True) for key, data in source.items()}
        return read_model(objects, lambda url: read(need_find(find)(url), find, depth + 1), depth)
    path = Path(source)
    # > A path that is not absolute begins where the referring model lies: in the directory that holds the archive or tree.
    beside = find or (lambda url: path.absolute().parent / url)
    found = open_tree(path) if path.is_dir() else open_archive(path.read_bytes())
    return read_model(found, lambda url: read(beside(url), find, depth + 1), depth)


def need_find(find: Find | None) -> Find:
    if find is None:
        raise ValueError("a model in memory refers to another one, and it is not said where that is")
    return find


# Section 4: dtypes and words.

DTYPES = {  # dtype -> (bits of a word, raw data type)
    "bool": (8, "uint8"),
    **{f"{kind}{bits}": (bits, f"{kind}{bits}") for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
    **{f"float{bits}": (bits, f"float{bits}") for bits in (16, 32, 64)},
    "bfloat16": (16, "uint16"),
    **{f"float8_{kind}": (8, "uint8") for kind in ("e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz", "e8m0fnu")},
    "float4_e2m1fn": (8, "uint8"),
    "int4": (8, "uint8"),
    "uint4": (8, "uint8"),
    "complex64": (32, "float32"),
    "complex128": (64, "float64"),
}


def word_shape(dtype: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if dtype in ("float4_e2m1fn", "int4", "uint4"):
        # > the word shape is the shape with its last extent `n` replaced by `ceil(n / 2)`; a
        # > tensor of shape `()` is one word.
        return (*shape[:-1], ceil(shape[-1], 2)) if shape else ()
    if dtype.startswith("complex"):
        # > The word shape is the shape followed by 2.
        return (*shape, 2)
    return shape


def ceil(a: int, b: int) -> int:
    return -(-a // b)


# Section 5: container.


@dataclass(frozen=True)
class Object:
    data: bytes
    stored: bool  # else it was deflated


SEGMENT = re.compile(r"[A-Za-z0-9._%~-]{1,200}")


def is_segment(text: str) -> bool:
    # > A segment has 1 to 200 characters out of `A-Z a-z 0-9 . _ % ~ -` and is
    # > not made of dots only.
    return SEGMENT.fullmatch(text) is not None and text.strip(".") != ""


def check_key(key: str, clause: str = "key-1") -> None:
    need(all(is_segment(segment) for segment in key.split("/")), clause, f"{key!r} is no key")


def below_another(paths: set[str]) -> bool:
    """Whether a path is another one followed by ``/`` and more."""
    return any("/".join(path.split("/")[:n]) in paths for path in paths for n in range(1, path.count("/") + 1))


# Section 5.2: archive.

END = struct.Struct("<IHHHHIIH")
END64 = struct.Struct("<IQHHIIQQQQ")
LOCATOR64 = struct.Struct("<IIQI")
CENTRAL = struct.Struct("<IHHHHHHIIIHHHHHII")
LOCAL = struct.Struct("<IHHHHHIIIHH")


def open_archive(data: bytes) -> dict[str, Object]:
    # > The file ends with the end-of-directory record of 22 bytes
    need(len(data) >= END.size, "zip-1", "too short")
    end = len(data) - END.size
    signature, disk, first_disk, count, count2, nbytes, start, comment = END.unpack_from(data, end)
    need((signature, disk, first_disk, comment) == (0x06054B50, 0, 0, 0), "zip-1", "it does not end as an archive")
    need(count == count2, "zip-1", "several volumes")
    # > If the count is `ffff`, or the size or the offset is `ffffffff`, the three are taken from the ZIP64
    # > end record
    if count == 0xFFFF or nbytes == 0xFFFFFFFF or start == 0xFFFFFFFF:
        need(end >= LOCATOR64.size + END64.size, "zip-2", "no ZIP64 end record")
        end -= LOCATOR64.size
        locator = LOCATOR64.unpack_from(data, end)
        end -= END64.size
        need(locator == (0x07064B50, 0, end, 1), "zip-2", "a wrong ZIP64 locator")
        signature, size, _, _, disk, first_disk, count, count2, nbytes, start = END64.unpack_from(data, end)
        need((signature, size, disk, first_disk) == (0x06064B50, 44, 0, 0), "zip-2", "a wrong ZIP64 end record")
        need(count == count2, "zip-2", "several volumes")
    # > The directory ends where the end record, or the ZIP64 end record if there is one,
    # > begins, and holds exactly as many entries as counted. It has at most 2^30 bytes.
    need(start + nbytes == end, "zip-2", "the directory does not end where the end record begins")
    need(nbytes <= 1 << 30, "zip-2", "too large a directory")
    entries = []
    at = start
    while at < end:
        need(at + CENTRAL.size <= end, "zip-2", "the directory is cut short")
        entry = CENTRAL.unpack_from(data, at)
        signature, _, _, flags, method, _, _, crc32, stored, size = entry[:10]
        n_name, n_extra, n_comment, disk, _, _, offset = entry[10:]
        at += CENTRAL.size
        name, extra = data[at : at + n_name], data[at + n_name : at + n_name + n_extra]
        at += n_name + n_extra
        # > An entry of the directory has no flags, no comment, disk number 0, and method 0 (stored) with equal sizes, or 8
        # > (deflated).
        need((signature, flags, n_comment, disk) == (0x02014B50, 0, 0, 0), "zip-3", "a wrong entry of the directory")
        need(at <= end, "zip-3", "a name or extra field beyond the directory")
        need(method == 8 or (method == 0 and stored == size), "zip-3", "a wrong method, or wrong sizes")
        # > If its offset is `ffffffff`, its extra field is one ZIP64 field of 8 bytes (`01 00 08 00`, then the
        # > offset); else its extra field is empty.
        if offset == 0xFFFFFFFF:
            need(len(extra) == 12 and extra[:4] == b"\x01\0\x08\0", "zip-3", "a wrong ZIP64 field")
            offset = int.from_bytes(extra[4:], "little")
        else:
            need(extra == b"", "zip-3", "an extra field")
        need(name.isascii(), "key-1", f"{name!r} is no key")
        check_key(name.decode("ascii"))
        entries.append((name.decode("ascii"), offset, method, crc32, stored, size))
    need(len(entries) == count, "zip-2", "the directory has another number of entries")

    places = []
    for i, (key, offset, _, _, stored, _) in enumerate(entries):
        # > the first local header is at
        # > offset 0, and the content of an entry ends where the next local header begins, or the directory after the last one.
        need(i > 0 or offset == 0, "zip-4", "the first entry is not at offset 0")
        stop = entries[i + 1][1] if i + 1 < len(entries) else start
        begin = stop - stored
        least = offset + LOCAL.size + len(key)
        need(least <= begin <= least + 65535, "zip-4", f"{key!r} does not fill the room between its neighbours")
        places.append((begin, stop))
    objects: dict[str, Object] = {}
    for (key, offset, method, crc32, stored, size), (begin, stop) in zip(entries, places, strict=True):
        check_local_header(data[offset:begin], key, method, crc32, stored, size)
        objects[key] = Object(content(data[begin:stop], key, method, crc32, size), method == 0)
    # > No two keys are equal when upper and lower case of letters are taken as the same, and no key is another key followed by `/`
    # > and more
    folded = {key.lower() for key in objects}
    need(len(folded) == count, "key-2", "a key occurs twice")
    need(not below_another(folded), "key-2", "a key is a folder of another")
    return objects


def check_local_header(header: bytes, key: str, method: int, crc32: int, stored: int, size: int) -> None:
    # > A local header has the signature `50 4b 03 04`, and flags, method, CRC-32, sizes and name as in the directory; its extra
    # > field takes the rest of the room in front of the content, and is unused.
    signature, _, flags, method2, _, _, crc, stored2, size2, n_name, n_extra = LOCAL.unpack_from(header)
    same = (signature, flags, method2, crc, stored2, size2) == (0x04034B50, 0, method, crc32, stored, size)
    same = same and header[LOCAL.size :][:n_name] == key.encode() and LOCAL.size + n_name + n_extra == len(header)
    need(same, "zip-5", f"the local header of {key!r} contradicts the directory", CorruptRefused)


def content(data: bytes, key: str, method: int, crc32: int, size: int) -> bytes:
    if method == 8:
        need(size <= 1 << 28, "document-3", f"{key!r} is too long")
        inflate = zlib.decompressobj(-15)
        try:
            data = inflate.decompress(data, size + 1)
        except zlib.error as error:
            raise CorruptRefused("zip-7", f"{key!r}: {error}") from error
        need(inflate.eof and not inflate.unused_data, "zip-7", f"{key!r} does not end where it should", CorruptRefused)
    # > A
    # > reader checks this for documents, layouts and assets, and refuses as corrupt what does not hold; a chunk has a checksum of its own
    is_chunk = "/c/" in f"{key}/" and not key.startswith(("assets/", "layouts/"))
    need(len(data) == size and (is_chunk or zlib.crc32(data) == crc32), "zip-7", f"{key!r} is damaged", CorruptRefused)
    return data


# Section 5.3: tree.


def open_tree(prefix: Path) -> dict[str, Object]:
    # > The object of key `k` is what
    # > `prefix/k` holds, as it is
    files = (path for path in sorted(prefix.rglob("*")) if path.is_file())
    return {path.relative_to(prefix).as_posix(): Object(path.read_bytes(), True) for path in files}


# Section 6.1: JSON.


def load(data: bytes) -> dict[str, Any]:
    # > A document has at most 2^28 bytes; a reader refuses a longer one as format.
    need(len(data) <= 1 << 28, "document-3", "the document is too long")

    # > No object in it has two members of the same name, and no
    # > number is beyond the range of binary64.
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a member occurs twice")
        return dict(pairs)

    def number(text: str) -> float:
        if not math.isfinite(float(text)):
            raise ValueError(f"the number {text}")
        return float(text)

    try:
        doc = json.loads(data.decode(), object_pairs_hook=unique, parse_constant=number, parse_float=number)
    except (ValueError, RecursionError) as error:
        raise FormatRefused("document-1", str(error)) from error
    need(isinstance(doc, dict), "document-1", "not an object")
    return doc


def attributes(doc: object, node_type: str) -> dict[str, Any]:
    # > The document of a node has the members `zarr_format` (3), `node_type` (`group` or `array`) and, if it is the root or a
    # > tensor, `attributes.mzstore` (an object).
    good = isinstance(doc, dict) and (doc.get("zarr_format"), doc.get("node_type")) == (3, node_type)
    need(good and isinstance(doc.get("attributes"), dict), "document-2", f"not a {node_type} of Zarr v3")
    about = doc["attributes"].get("mzstore")
    need(isinstance(about, dict), "document-2", "no attributes.mzstore")
    return about


def is_integer(value: object) -> bool:
    return type(value) is int


def is_integers(value: object) -> bool:
    return isinstance(value, list) and all(is_integer(n) and n >= 0 for n in value)


# Section 6.2: root.


Bases = Callable[[int], Model]  # by index in `bases`


def read_model(objects: Mapping[str, Object], open_base: Callable[[str], Model], depth: int) -> Model:
    # > A model has a root document. It is a group.
    need("zarr.json" in objects, "root-1", "no root document")
    root = load(objects["zarr.json"].data)
    about = attributes(root, "group")
    # > `format` is an integer >= 1. A reader refuses as unsupported a number that is higher than it knows
    need(is_integer(about.get("format")) and about["format"] >= 1, "root-2", "no format number")
    need(about["format"] == 1, "root-2", f"format {about['format']}", UnsupportedRefused)
    # > `features` is a list of strings. In format 1 the features are `base`, `ggml`, `lowrank`, `planes`, `quantized`, `sparse` and `tucker`.
    features = about.get("features")
    need(isinstance(features, list) and all(isinstance(f, str) for f in features), "root-3", "no list of features")
    known = {"base", "ggml", "lowrank", "planes", "quantized", "sparse", "tucker"}
    need(set(features) <= known, "root-3", f"features {features}", UnsupportedRefused)
    # > `consolidated_metadata` is an object with `kind` equal to `inline`, `must_understand` false, and `metadata`: an object
    # > from the key of every node but the root to its document.
    inline = root.get("consolidated_metadata")
    good = isinstance(inline, dict) and inline.get("kind") == "inline" and inline.get("must_understand") is False
    need(good and isinstance(inline.get("metadata"), dict), "root-4", "no inline metadata")
    # > `metadata`, if present, is an object.
    need(isinstance(about.get("metadata", {}), dict), "root-5", "metadata are no object")

    urls = read_urls(about.get("bases", []))
    nodes = read_nodes(inline["metadata"], len(urls))
    parts = [part for node in nodes.values() for part in node.parts]
    used = {part.doc["encoding"] for outer in parts for part in (outer, *outer.inner.values())} - {"raw"}
    # > Every encoding in use but `raw` is listed, also those inside of another [nested-1].
    need(used <= set(features), "root-3", "an encoding in use is not listed")
    assets = read_files(about.get("assets", []), "assets")
    layouts = read_files(about.get("layouts", []), "layouts")

    # > The document of the node with key `k` is the object `k/zarr.json`
    for key, doc in inline["metadata"].items():
        need(f"{key}/zarr.json" in objects, "document-4", f"the document of {key!r} is missing", CorruptRefused)
        same = canonical(load(objects[f"{key}/zarr.json"].data)) == canonical(doc)
        need(same, "document-4", f"two documents of {key!r}", CorruptRefused)

    def base(index: int) -> Model:
        # > A model may have bases in turn, at most 16 one behind another; a reader refuses more, and a model that is its own base, as format.
        need(depth < 16, "base-3", "bases without end")
        return open_base(urls[index])

    tensors = {}
    for node in nodes.values():
        stored = node
        if node.same_as:
            stored = next(other for other in nodes.values() if other.key == node.same_as)
        words, first = read_words(objects, stored, base), stored.parts[0]
        blocks = (first.doc["type"], all_blocks(objects, first, node.shape)) if first.encoding == "ggml" else None
        tensors[node.name] = Tensor(node.dtype, node.shape, words, blocks)
    files = {doc["path"]: read_layout(objects, doc, tensors) for doc in layouts}
    return Model(tensors, about.get("metadata", {}), read_assets(objects, assets), files)


def canonical(doc: object) -> str:
    return json.dumps(doc, sort_keys=True)


def read_urls(bases: object) -> list[str]:
    # > `bases` in the root document is a list of at most 256 objects with a `url`, a string of 1 to 4,096 Unicode scalar values, none of them U+0000.
    need(isinstance(bases, list) and len(bases) <= 256, "base-2", "no list of bases")
    assert isinstance(bases, list)
    for base in bases:
        url = base.get("url") if isinstance(base, dict) else None
        need(isinstance(url, str) and 1 <= len(url) <= 4096, "base-2", "a base without a url")
        need("\0" not in url and not has_surrogate(url), "base-2", "a wrong url")
    return [base["url"] for base in bases]


# Section 6.3: nodes.


def read_nodes(docs: dict[str, Any], n_bases: int) -> dict[str, "Node"]:
    # > The key of a node is one segment, or two joined by `/` (a component below its tensor), each as in [key-1]. The first is not `zarr.json`,
    # > `assets` or `layouts` in any case of letters.
    for key in docs:
        need(key.count("/") <= 1, "node-1", f"{key!r} is too deep")
        check_key(key, "node-1")
        need(key.split("/")[0].lower() not in ("zarr.json", "assets", "layouts"), "node-1", f"{key!r} is reserved")
    # > No two keys are equal when upper and lower case are taken as the same.
    need(len({key.lower() for key in docs}) == len(docs), "node-1", "two keys are equal but for their case")
    # > Every node of one segment is a tensor. Every node of two segments lies below one.
    nodes: dict[str, Node] = {}
    for key, doc in docs.items():
        node, _, component = key.partition("/")
        need(node in docs, "node-2", f"{key!r} lies below nothing")
        if not component:
            below = {name[len(key) + 1 :]: d for name, d in docs.items() if name.startswith(f"{key}/")}
            tensor = read_node(key, doc, below, n_bases)
            # > No two tensors have the same name.
            need(tensor.name not in nodes, "tensor-1", f"two tensors {tensor.name!r}")
            nodes[tensor.name] = tensor
    stored = {node.key: node for node in nodes.values() if node.parts}
    for node in nodes.values():
        if node.same_as is not None:
            # > has the values of the tensor at
            # > that node, which has `parts` and equal `dtype`, `shape` and `sha256`.
            base = stored.get(node.same_as)
            same = base and (base.dtype, base.shape, base.sha256) == (node.dtype, node.shape, node.sha256)
            need(same, "tensor-5", f"{node.key!r} refers to what is no equal tensor")
    return nodes


# Section 6.4: tensors.


@dataclass(frozen=True)
class Part:
    doc: dict[str, Any]
    dtype: str  # of its words
    arrays: dict[str, "Array"]  # by component
    inner: dict[str, "Part"] = field(default_factory=dict)  # nested parts, by member

    @property
    def encoding(self) -> str:
        return self.doc["encoding"]


@dataclass(frozen=True)
class Node:
    key: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    sha256: str
    parts: tuple[Part, ...] = ()
    same_as: str | None = None


def is_name(name: object) -> bool:
    # > The name is any string of Unicode scalar values of at most 4,096 bytes in UTF-8.
    return isinstance(name, str) and not has_surrogate(name) and len(name.encode()) <= 4096


def is_sha256(sha256: object) -> bool:
    # > `sha256` is 64 digits out of `0-9a-f`.
    return isinstance(sha256, str) and re.fullmatch("[0-9a-f]{64}", sha256) is not None


def read_node(key: str, doc: Any, below: dict[str, Any], n_bases: int) -> Node:
    need(isinstance(doc, dict), "document-2", f"the document of {key!r} is no object")
    is_array = doc.get("node_type") == "array"
    about = attributes(doc, "array" if is_array else "group")
    name, sha256 = about.get("name", key), about.get("sha256")
    need(is_name(name) and is_sha256(sha256), "tensor-1", "a wrong name, or a wrong sha256")
    # > `dtype` is one of [word-1]; a reader refuses another as unsupported.
    dtype = about.get("dtype")
    need(isinstance(dtype, str) and dtype in DTYPES, "tensor-2", f"dtype {dtype!r}", UnsupportedRefused)
    # > A shape has at most 32 extents. With every extent of 0 taken as 1, the words of a tensor take at most 2^62 bytes.
    shape = about.get("shape")
    need(is_integers(shape) and len(shape) <= 32, "tensor-3", "a wrong shape")
    words = word_shape(dtype, tuple(shape))
    need(math.prod(max(n, 1) for n in words) * DTYPES[dtype][0] // 8 <= 2**62, "tensor-3", "too large")
    if "same_as" in about:
        # > A tensor with `same_as` has no `parts`, is a group with nothing below it
        same_as = about["same_as"]
        alone = not is_array and not below and "parts" not in about
        need(alone and isinstance(same_as, str), "tensor-5", "a reference that holds something")
        return Node(key, name, dtype, tuple(shape), sha256, same_as=same_as)
    # > `lossy`, if present, is an object.
    need(isinstance(about.get("lossy", {}), dict), "tensor-6", "'lossy' is no object")
    # > `parts` is a list of 1 to 4 objects. The `encoding` of each is one of section 8, and `combine`, if present, is `replace`, `add`, `xor` or `plus`; a reader refuses anything else as unsupported.
    parts = about.get("parts")
    known = isinstance(parts, list) and 1 <= len(parts) <= 4 and all(isinstance(part, dict) for part in parts)
    encodings, ways = ("raw", "base", *CHECKS), ("replace", "add", "xor", "plus")
    known = known and all(part.get("encoding") in encodings for part in parts)
    known = known and all(part.get("combine", "add") in ways for part in parts)
    need(known, "tensor-4", "unknown parts", UnsupportedRefused)
    # > If the parts make one component, the tensor's node is that array, and nothing lies below it. If they make several, the node is a
    # > group, and the components lie below it under their names. If they make none, which is so for `base` alone, the node is a group with nothing below it.
    if is_array:
        need(not below, "tensor-4", "an array with something below it")
        arrays = {f"{number(i)}{only}": read_array(key, doc) for i, only in only_component(parts)}
    else:
        alone = len(parts) == 1 and parts[0]["encoding"] == "base"
        need(not below if alone else len(below) > 1, "tensor-4", "a group of nothing, or of one array")
        arrays = {component: read_array(f"{key}/{component}", child) for component, child in below.items()}
    return Node(key, name, dtype, tuple(shape), sha256, read_parts(parts, dtype, words, arrays, n_bases))


ONLY_COMPONENT = {"raw": "values", "planes": "planes", "quantized": "codes", "ggml": "blocks"}


def only_component(docs: list[dict[str, Any]]) -> list[tuple[int, str]]:
    """(which part it is of, its name): the component that parts make if they make one."""
    found = [(i, ONLY_COMPONENT[doc["encoding"]]) for i, doc in enumerate(docs) if doc["encoding"] in ONLY_COMPONENT]
    need(len(found) == 1, "tensor-4", "one array for several components")
    return found


def number(i: int) -> str:
    """What stands in front of the components of the part with this index."""
    # > The components of the first part have the names that section 8 gives them; those of the second part have `2.` in front of
    # > them, those of the third `3.`, and so on.
    return f"{i + 1}." if i else ""


def read_parts(
    docs: list[dict[str, Any]], dtype: str, shape: tuple[int, ...], arrays: dict[str, "Array"], n_bases: int
) -> tuple[Part, ...]:
    parts: list[Part] = []
    for i, doc in reversed(list(enumerate(docs))):
        own = {name: arrays.pop(name) for name in list(arrays) if name.startswith(number(i))}
        # > The member
        # > may also repeat the tensor's own dtype. A reader refuses any other as format.
        stored = doc.get("dtype", dtype)
        narrower = dtype == "float32" and stored in ("bfloat16", "float16")
        need(stored == dtype or narrower, "narrow-1", f"{dtype} stored as {stored!r}")
        part = Part(doc, stored, {name.removeprefix(number(i)): array for name, array in own.items()})
        if doc["encoding"] == "base":
            check_base(part, dtype, n_bases)
        else:
            CHECKS[doc["encoding"]](part, shape)
        parts.insert(0, part)
    check_combination(parts, dtype, shape)
    return tuple(parts)


def way_of(part: Part) -> str | None:
    # > For each other part `combine` says how it changes what the parts before it give; without it that is `replace` for `sparse`, and others have it.
    return part.doc.get("combine", "replace" if part.encoding == "sparse" else None)


def check_combination(parts: list[Part], dtype: str, shape: tuple[int, ...]) -> None:
    first, *more = parts
    # > Only the first may be `base`, and the first has no `combine`.
    need("combine" not in first.doc, "tensor-7", "a first part that is combined with nothing")
    need(all(part.encoding != "base" for part in more), "tensor-7", "a base that is not first")
    ways = [way_of(part) for part in more]
    need(None not in ways, "tensor-7", "it is not said how a part is combined")
    for part, way in zip(parts, ["first", *ways], strict=True):
        if part.encoding == "sparse":
            check_values(part, adds=way == "add")
    if not more:
        return
    # > The part is the only one of its tensor
    need(all(part.encoding != "ggml" for part in parts), "ggml-1", "blocks and another part")
    # > Where there are several parts, they have the same chunk shape of the words, none has a dtype other than the tensor's [narrow-1], and none is constant [raw-2].
    need(len({chunk_of(part) for part in parts if part.encoding != "base"}) == 1, "tensor-7", "different chunks")
    need(all(part.dtype == dtype for part in parts), "tensor-7", "another dtype, and several parts")
    constant = any(part.encoding == "raw" and is_constant(part.arrays["values"], shape) for part in parts)
    need(not constant, "tensor-7", "a constant, and several parts")
    if set(ways) & {"xor", "plus"}:
        # > *Words*: two parts, `combine` is `xor` or `plus`, the first is `raw`, `planes` or `base`, the second `raw` or `planes`.
        good = len(parts) == 2 and first.encoding in ("raw", "planes", "base") and more[0].encoding in ("raw", "planes")
        need(good, "tensor-7", "other parts than two of words")
        return
    # > *Values*: parts with `add` come first, then parts with `replace`, which are `sparse`.
    need(ways == sorted(ways), "tensor-7", "a part is added behind one that replaces")  # in the order of their letters
    good = all(part.encoding == "sparse" for part, way in zip(more, ways, strict=True) if way == "replace")
    need(good, "tensor-7", "a part that replaces all")
    if "add" in ways:
        # > *Sums*: where a part has `add`, values are binary32, of which those of a chunk take at most 2^26 bytes.
        need(4 * math.prod(chunk_of(parts[-1])) <= 1 << 26, "tensor-8", "chunks too large to be added")
        for part, way in zip(parts, ["first", *ways], strict=True):
            # > the words of `raw`, `planes` and `base`, and those of `sparse` if it is the first part, are of `float16`, `bfloat16` or `float32`
            exact = part.encoding in ("quantized", "lowrank", "tucker") or (part.encoding, way) == ("sparse", "add")
            exact = exact or way == "replace" or dtype in ("float16", "bfloat16", "float32")
            need(exact, "tensor-8", f"values of {dtype} are not added")


def chunk_of(part: Part) -> tuple[int, ...]:
    """The extents of a chunk of the words."""
    if part.doc["encoding"] == "raw":
        return part.arrays["values"].chunk
    if part.doc["encoding"] == "planes" and "ranks" not in part.doc:
        return part.arrays["planes"].chunk[1:]
    return tuple(part.doc["chunk_shape"])


def has_surrogate(text: str) -> bool:
    return any(0xD800 <= ord(c) < 0xE000 for c in text)


# Section 6.5: arrays.


@dataclass(frozen=True)
class Array:
    key: str  # of its node
    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    data_type: str
    zstd: bool

    @property
    def word(self) -> np.dtype:
        return np.dtype(f"<u{ITEMSIZE[self.data_type]}")

    @property
    def counts(self) -> tuple[int, ...]:
        return tuple(ceil(s, c) for s, c in zip(self.shape, self.chunk, strict=True))


ITEMSIZE = {f"{kind}{8 * n}": n for kind in ("int", "uint") for n in (1, 2, 4, 8)}
ITEMSIZE |= {"float16": 2, "float32": 4, "float64": 8}


def read_array(key: str, doc: Any) -> Array:
    # > An array has the members `zarr_format`: 3, `node_type`: `array`, `chunk_key_encoding`: `{"name": "default"}`, `shape`,
    # > `data_type`, `chunk_grid` and `codecs`. It may have `attributes` and `fill_value`
    need(isinstance(doc, dict), "document-2", "the document is no object")
    need((doc.get("zarr_format"), doc.get("node_type")) == (3, "array"), "array-1", "not an array of Zarr v3")
    need(doc.get("chunk_key_encoding") == {"name": "default"}, "array-1", "another chunk key encoding")
    known = {"zarr_format", "node_type", "chunk_key_encoding", "shape", "data_type", "chunk_grid", "codecs"}
    more = set(doc) - known - {"attributes", "fill_value"}
    # > A reader refuses any other member as unsupported.
    need(not more, "array-1", f"unknown {more}", UnsupportedRefused)
    # > `codecs` is `bytes` with the configuration `{"endian": "little"}`; then, or not, `zstd` with a configuration of a `level`, which is
    # > unused, and `checksum` false; then `crc32c` without configuration.
    codecs = doc.get("codecs")
    need(isinstance(codecs, list) and len(codecs) in (2, 3), "array-3", "other codecs", UnsupportedRefused)
    good = codecs[0] == {"name": "bytes", "configuration": {"endian": "little"}} and codecs[-1] == {"name": "crc32c"}
    for codec in codecs[1:-1]:
        configuration = codec.get("configuration") if isinstance(codec, dict) and codec.get("name") == "zstd" else None
        good = good and isinstance(configuration, dict) and "level" in configuration
        good = good and configuration.get("checksum") is False
    need(good, "array-3", "other codecs", UnsupportedRefused)
    # > Shape and chunk shape are equally long
    # > lists of integers, at most 34, the extents of the shape >= 0 and those of chunks >= 1.
    grid = doc.get("chunk_grid")
    good = isinstance(grid, dict) and grid.get("name") == "regular" and isinstance(grid.get("configuration"), dict)
    need(good, "array-2", "no regular grid")
    shape, chunk, data_type = doc.get("shape"), grid["configuration"].get("chunk_shape"), doc.get("data_type")
    need(is_integers(shape) and is_integers(chunk), "array-2", "no shapes")
    need(len(shape) == len(chunk) <= 34 and all(c >= 1 for c in chunk), "array-2", "shapes that do not fit")
    need(isinstance(data_type, str) and data_type in ITEMSIZE, "array-2", f"data type {data_type!r}")
    # > With every extent of 0 taken as 1, the array
    # > has at most 2^62 bytes. A chunk has at most 2^26 bytes.
    need(math.prod(max(n, 1) for n in shape) * ITEMSIZE[data_type] <= 2**62, "array-2", "too large")
    need(math.prod(chunk) * ITEMSIZE[data_type] <= 2**26, "array-2", "chunks too large")
    return Array(key, tuple(shape), tuple(chunk), data_type, len(codecs) == 3)


# Section 6.6: assets and layouts.


def read_files(docs: object, folder: str, below: str | None = None) -> list[dict[str, Any]]:
    """The entries of ``folder``, whose keys begin with it, or with ``below``."""
    need(isinstance(docs, list), "asset-1", f"{folder} is no list")
    for doc in docs:
        good = isinstance(doc, dict) and isinstance(doc.get("path"), str) and isinstance(doc.get("key"), str)
        # > An entry of `assets` has a `path`, a `key` that begins with `assets/` and is as in [key-1], the size `nbytes` (an integer >= 0) and
        # > the `sha256` of the content, which is the object of that key. An entry of `layouts` has a `path` and a `key` that begins with `layouts/`.
        need(
            good and doc["key"].startswith(f"{below or folder}/"),
            "asset-1",
            f"an entry of {folder} without path or key",
        )
        check_key(doc["key"], "asset-1")
        check_path(doc["path"])
        if folder == "assets":
            need(is_integer(doc.get("nbytes")) and doc["nbytes"] >= 0, "asset-1", "no size")
            sha256 = doc.get("sha256")
            need(isinstance(sha256, str) and re.fullmatch("[0-9a-f]{64}", sha256), "asset-1", "no digest")
        else:
            # > Its `format` is `safetensors` or `spliced`; a reader that meets
            # > another refuses it as unsupported. `prefix` and `kind`, if present, are strings.
            need(doc.get("format") in ("safetensors", "spliced"), "layout-1", "another layout", UnsupportedRefused)
            strings = isinstance(doc.get("prefix", ""), str) and isinstance(doc.get("kind", ""), str)
            need(strings, "layout-1", "a wrong prefix or kind")
    # > Within one list no two paths and no two
    # > keys are equal under Unicode case folding, and no path is another one followed by `/` and more.
    for member in ("path", "key"):
        need(len({doc[member].casefold() for doc in docs}) == len(docs), "asset-2", f"a {member} occurs twice")
    need(not below_another({doc["path"].casefold() for doc in docs}), "asset-2", "a path below a file")
    return docs


def check_path(path: str) -> None:
    # > No segment is empty, `.` or `..`, ends in a space or a dot, or holds a control
    # > character below U+0020, a surrogate, or one of `\ : * ? " < > |`. A path has at most 1,024 bytes in UTF-8.
    need(not has_surrogate(path) and len(path.encode()) <= 1024, "asset-2", "a path too long, or no Unicode")
    for segment in path.split("/"):
        need(segment not in ("", ".", "..") and segment[-1] not in " .", "asset-2", f"a segment {segment!r}")
        need(not any(ord(c) < 0x20 or c in '\\:*?"<>|' for c in segment), "asset-2", f"characters of {segment!r}")


def read_assets(objects: Mapping[str, Object], docs: list[dict[str, Any]]) -> dict[str, bytes]:
    assets = {}
    for doc in docs:
        # > A reader refuses as corrupt an asset that is missing or whose size or digest is not as stated.
        found = objects.get(doc["key"])
        need(found, "asset-3", f"asset {doc['path']!r} is missing", CorruptRefused)
        assert found is not None
        need(found.stored, "zip-6", "an asset that is not stored")
        same = (len(found.data), hashlib.sha256(found.data).hexdigest()) == (doc["nbytes"], doc["sha256"])
        need(same, "asset-3", f"asset {doc['path']!r} is not as stated", CorruptRefused)
        assets[doc["path"]] = found.data
    return assets


def read_layout(objects: Mapping[str, Object], doc: dict[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
    """The file that the layout ``doc`` is of."""
    # > The object of a layout has at most 100,000,008 bytes. A reader that needs the layout and misses the object refuses as format.
    need(doc["key"] in objects, "layout-1", f"the layout of {doc['path']!r} is missing")
    data = objects[doc["key"]].data
    need(len(data) <= 100_000_008, "layout-1", "a layout that is too long")
    length = int.from_bytes(data[:8], "little")
    clause = "layout-3" if doc["format"] == "spliced" else "layout-2"
    need(len(data) >= 8 + length, clause, "a layout that is cut short")
    about, rest = load(data[8 : 8 + length]), data[8 + length :]

    def words(name: str, dtype: object, shape: object, form: object = None) -> bytes:
        # > The values of a tensor `t` in it are those of the model's tensor whose name is `prefix` followed by `t`.
        found = tensors.get(doc.get("prefix", "") + name)
        need(found, clause, f"no tensor {name!r}")
        assert found is not None
        need((found.dtype, list(found.shape)) == (dtype, shape), clause, f"another tensor {name!r}")
        if form in (None, "literal"):
            return found.words.tobytes()
        # > the tensor is one of `float32` with whole blocks of that type in its rows, and these blocks stand in the file from `offset` on, one after the other.
        size = GGML["types"][form]["size"]
        need(dtype == "float32" and shape and shape[-1] % size == 0, "layout-3", f"{name!r} has no whole blocks")  # type: ignore[index]
        # > The file can be made again if the tensor is stored as `ggml` of that type.
        need(found.blocks and found.blocks[0] == form, "layout-3", f"{name!r} is not stored as {form}")
        assert found.blocks is not None
        return found.blocks[1]

    if doc["format"] == "safetensors":
        # > Of `safetensors`, the object is what stood in front of the tensors' data in the source file: 8 bytes of length, and the header.
        return data + safetensors_data(about, rest, words)
    # > The JSON object has the size of the file, `nbytes`, and
    # > `tensors`: an object from names to objects with `dtype` and `shape`, which are those of the model's tensor, and an integer `offset` >= 0.
    need(is_integer(about.get("nbytes")) and isinstance(about.get("tensors"), dict), "layout-3", "no size, no tensors")
    file, taken, last = b"", 0, 0
    for name, entry in about["tensors"].items():
        need(isinstance(entry, dict), "layout-3", f"no entry of {name!r}")
        # > a reader refuses one that it does not know as unsupported.
        known = "form" not in entry or str(entry["form"]) in ("literal", *GGML["types"])
        need(known, "layout-3", f"{name!r} in another form", UnsupportedRefused)
        content = words(name, entry.get("dtype"), entry.get("shape"), entry.get("form"))
        if entry.get("form") == "literal":  # > nothing of the tensor is put into the file, and `offset` is unused.
            continue
        need(is_integer(entry.get("offset")) and entry["offset"] >= 0, "layout-3", f"no offset of {name!r}")
        offset = entry["offset"]
        # > Tensors stand in the order of their offsets, and none ends behind the file. Where several have the same bytes, those of the first stand in the file.
        need(last <= offset and offset + len(content) <= about["nbytes"], "layout-4", f"{name!r} is not in its place")
        gap = max(0, offset - len(file))
        file, taken, last = file + rest[taken : taken + gap], taken + gap, offset
        need(len(file) >= offset, "layout-4", "too few literal bytes")
        file += content[len(file) - offset :]
    # > What no tensor has is filled with the literal bytes in their order: there are
    # > just as many.
    file += rest[taken:]
    need(len(file) == about["nbytes"], "layout-4", "too many literal bytes, or too few")
    return file


# The header of safetensors, which is not of this page: https://github.com/huggingface/safetensors#format
SAFETENSORS = {
    "bool": "BOOL", "bfloat16": "BF16", "float4_e2m1fn": "F4", "complex64": "C64",
    **{f"{kind}{bits}": f"{kind[0].upper()}{bits}" for kind in ("int", "uint", "float") for bits in (8, 16, 32, 64)},
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0",
    "float8_e4m3fnuz": "F8_E4M3FNUZ", "float8_e5m2fnuz": "F8_E5M2FNUZ",
}  # fmt: skip


def safetensors_data(header: dict[str, Any], rest: bytes, words: Callable[[str, object, object], bytes]) -> bytes:
    """What stands behind the header. Tensors of 4-bit values with rows of odd length are left to other readers."""
    names = {code: dtype for dtype, code in SAFETENSORS.items()}
    need(not rest, "layout-2", "more than the header")
    data = b""
    entries = [(name, entry) for name, entry in header.items() if name != "__metadata__"]
    for name, entry in sorted(entries, key=lambda item: item[1]["data_offsets"]):
        found = words(name, names.get(entry["dtype"]), entry["shape"])
        need([len(data), len(data) + len(found)] == entry["data_offsets"], "layout-2", f"{name!r} is not in its place")
        data += found
    return data


# Section 7: chunks.


def chunk_key(array_key: str, position: tuple[int, ...]) -> str:
    # > The key of chunk `(i0, i1, ...)` is the key of the array's node, `/c`, and then `/` and the decimal index for each axis.
    return "/".join((array_key, "c", *map(str, position)))


def positions(counts: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    return itertools.product(*map(range, counts))


def read_chunk(objects: Mapping[str, Object], array: Array, position: tuple[int, ...]) -> np.ndarray:
    """The words of one chunk."""
    key = array.key
    found = objects.get(chunk_key(key, position))
    # > Every chunk of every component is stored. A reader refuses a missing one as corrupt, and never takes a fill value for it.
    need(found, "payload-4", f"chunk {position} of {key!r} is missing", CorruptRefused)
    assert found is not None
    # > Chunks and assets are stored (method 0).
    need(found.stored, "zip-6", f"chunk {position} of {key!r} is not stored")
    body = read_payload(found.data, array.zstd, math.prod(array.chunk) * ITEMSIZE[array.data_type])
    return np.frombuffer(body, array.word).reshape(array.chunk)


def read_payload(payload: bytes, zstd: bool, nbytes: int) -> bytes:
    # > A payload has at most 2^27 bytes. A reader refuses a longer one as format.
    need(len(payload) <= 1 << 27, "payload-5", "the payload is too long")
    # > The checksum is the CRC-32C (Castagnoli, RFC 3720) of the bytes in front of it.
    body, checksum = payload[:-4], payload[-4:]
    good = len(payload) >= 4 and crc32c(body) == int.from_bytes(checksum, "little")
    need(good, "payload-3", "the checksum does not hold", CorruptRefused)
    if zstd:
        return read_frame(body, nbytes)
    # > Without `zstd`, the body has the size of the chunk; a reader refuses another size as corrupt.
    need(len(body) == nbytes, "payload-1", f"{len(body)} bytes for {nbytes}", CorruptRefused)
    return body


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = CRC_TABLE[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _crc_table() -> list[int]:
    table = list(range(256))
    for _ in range(8):
        table = [n >> 1 ^ (0x82F63B78 if n & 1 else 0) for n in table]
    return table


CRC_TABLE = _crc_table()


def read_frame(frame: bytes, nbytes: int) -> bytes:
    """The content of one zstd frame. Its header and the sizes of its blocks are read here (RFC 8878, section 3.1.1)."""

    def check(holds: object, problem: str) -> None:
        need(holds, "payload-2", f"zstd: {problem}", CorruptRefused)

    # > It states its content size, which is the size of the
    # > chunk; it needs no dictionary and a window of at most 2^26 bytes.
    check(frame[:4] == b"\x28\xb5\x2f\xfd" and len(frame) > 5, "no frame")
    descriptor, at = frame[4], 5
    single, checksum, dictionary = descriptor >> 5 & 1, descriptor >> 2 & 1, descriptor & 3
    check(not descriptor >> 3 & 1, "a reserved bit is set")
    window = 0
    if not single:
        exponent, mantissa = frame[at] >> 3, frame[at] & 7
        window = (1 << 10 + exponent) + (1 << 10 + exponent) // 8 * mantissa
        at += 1
    id_size = (0, 1, 2, 4)[dictionary]
    check(int.from_bytes(frame[at : at + id_size], "little") == 0, "a dictionary")
    at += id_size
    size_size = (1 if single else 0, 2, 4, 8)[descriptor >> 6]
    check(size_size and len(frame) >= at + size_size, "no content size")
    size = int.from_bytes(frame[at : at + size_size], "little") + (256 if size_size == 2 else 0)
    at += size_size
    check(size == nbytes, f"{size} bytes for {nbytes}")
    check((size if single else window) <= 1 << 26, "a large window")
    # > Nothing precedes or follows it, skippable
    # > frames neither.
    last = 0
    while not last:
        check(at + 3 <= len(frame), "cut short")
        block = int.from_bytes(frame[at : at + 3], "little")
        last, kind = block & 1, block >> 1 & 3
        at += 3 + (1 if kind == 1 else block >> 3)
    check(at + 4 * checksum == len(frame), "it does not end with the payload")
    try:
        data = zstandard.ZstdDecompressor().decompress(frame)
    except zstandard.ZstdError as error:
        raise CorruptRefused("payload-2", str(error)) from error
    check(len(data) == nbytes, f"{len(data)} bytes for {nbytes}")
    return data


# Section 8: encodings.


def read_words(objects: Mapping[str, Object], node: Node, base: Bases) -> np.ndarray:
    """All words of a tensor that is stored, checked against its digest."""
    shape = word_shape(node.dtype, node.shape)
    # > The first part gives words, and each other one, in order, changes them [tensor-7].
    first, *more = node.parts
    ways = [way_of(part) for part in more]
    if "add" in ways:
        words = to_words(read_sum(objects, node, [first, *more[: ways.count("add")]], base), node.dtype)
    else:
        words = read_part(objects, first, node, base)
    for part, way in zip(more, ways, strict=True):
        if way == "replace":
            taken, found = read_sparse(objects, part, shape)
            words[taken] = found[taken]
        elif way == "xor":
            # > combined with those of the second by exclusive or, or by addition modulo 2 to the power of
            # > the word size.
            words = words ^ read_part(objects, part, node, base)
        elif way == "plus":
            words = words + read_part(objects, part, node, base)
    if first.dtype != node.dtype:
        words = widen(words, first.dtype)
    # > `sha256` of a tensor is the SHA-256 of all its words, of the tensor's own dtype, in row-major order without padding.
    digest = hashlib.sha256(words.tobytes()).hexdigest()
    need(digest == node.sha256, "digest-2", f"the digest of {node.name!r} does not hold", CorruptRefused)
    return words


def word_of(dtype: str) -> np.dtype:
    return np.dtype(f"<u{DTYPES[dtype][0] // 8}")


def read_part(objects: Mapping[str, Object], part: Part, node: Node, base: Bases) -> np.ndarray:
    """The words of a part by itself, of its dtype."""
    shape = word_shape(node.dtype, node.shape)
    if part.encoding == "base":
        return read_base(part, node, base)
    if part.encoding == "sparse":
        taken, found = read_sparse(objects, part, shape)
        # > As the first part it gives words that are 0 at all others
        return np.where(taken, found, 0).astype(found.dtype)
    if part.encoding in PRODUCTS:
        return to_words(PRODUCTS[part.encoding](objects, part, shape), part.dtype)
    return READERS[part.encoding](objects, part, shape, word_of(part.dtype))


def read_sum(objects: Mapping[str, Object], node: Node, parts: list[Part], base: Bases) -> np.ndarray:
    """The sum of parts in binary32, not yet rounded to the dtype of the tensor."""
    shape = word_shape(node.dtype, node.shape)
    total: Any = None
    for part in parts:
        taken: Any = ...
        # > what `quantized`, `lowrank` and `tucker`
        # > compute, also where it is the values of `sparse`, is not rounded to a dtype [quantized-8], [lowrank-2], [tucker-4]. Factors, and the core of `tucker`, are what they are without `add`.
        if part.encoding == "quantized":
            values = quantized_values(objects, part, shape)
        elif part.encoding in PRODUCTS:
            values = PRODUCTS[part.encoding](objects, part, shape)
        elif part.encoding == "sparse":
            taken, values = read_sparse(objects, part, shape, exact=True)
            values = np.where(taken, values, np.float32(0))
        else:
            values = binary32(read_part(objects, part, node, base), part.dtype)
        if total is None:
            total = values
            continue
        # > To the values of the first part those of the second are added, then those of the third, and so on, each sum rounded to binary32, to nearest, ties to even. `sparse` adds at its positions alone.
        with np.errstate(over="ignore", invalid="ignore"):
            total[taken] = total[taken] + values[taken]
    return total


def binary32(words: np.ndarray, dtype: str) -> np.ndarray:
    """Words of ``dtype`` as the values that they are."""
    return (words if dtype == "float32" else widen(words, dtype)).view("<f4").copy()


def check_inner(
    part: Part, name: str, doc: Any, dtype: str, shape: tuple[int, ...], chunk: tuple[int, ...], clause: str
) -> None:
    """The nested part ``name`` of ``part``, whose document is ``doc``, over an array of ``shape`` in chunks of ``chunk``."""
    # > *Nested parts*: some encodings have members that are parts themselves: of `raw`, `planes` or `quantized`, not constant [raw-2]
    good = isinstance(doc, dict) and doc.get("encoding") in ("raw", "planes", "quantized")
    need(good, "nested-1", f"{name!r} is no part that may be inside of another one")
    # > The member's `dtype`, if present, is the dtype of the nested part
    # > in place of that one, where the encoding allows it.
    own = doc.get("dtype", dtype)
    need(isinstance(own, str) and own in DTYPES, "nested-1", f"an unknown dtype of {name!r}")
    # > If a nested part makes one component, that has the name of the member; if it makes several, they have the name of the member, a dot, and their own names.
    front = f"{name}."
    arrays = {key[len(front) :]: part.arrays[key] for key in part.arrays if key.startswith(front) and key != front}
    need(not (arrays and name in part.arrays) and len(arrays) != 1, "nested-1", f"components of {name!r}")
    if name in part.arrays:
        arrays = {ONLY_COMPONENT[doc["encoding"]]: part.arrays[name]}
    inner = Part(doc, own, arrays)
    CHECKS[inner.encoding](inner, shape)
    constant = inner.encoding == "raw" and is_constant(arrays["values"], shape)
    need(not constant, "nested-1", f"{name!r} is constant")
    need(chunk_of(inner) == chunk, clause, f"{name!r} in other chunks")
    part.inner[name] = inner


def check_components(part: Part, own: set[str], clause: str) -> None:
    """There are ``own`` components and those of nested parts, and no other."""
    for name, inner in part.inner.items():
        own |= {name} if len(inner.arrays) == 1 else {f"{name}.{component}" for component in inner.arrays}
    need(set(part.arrays) == own, clause, f"components {sorted(part.arrays)}")


def box(position: tuple[int, ...], chunk: tuple[int, ...], shape: tuple[int, ...]) -> tuple[slice, ...]:
    # > holds the positions from `i * c` to `(i + 1) * c` on each axis.
    return tuple(slice(i * c, min((i + 1) * c, s)) for i, c, s in zip(position, chunk, shape, strict=True))


def put(words: np.ndarray, position: tuple[int, ...], chunk: np.ndarray) -> None:
    """Place a chunk in the tensor; what lies beyond the edges is dropped."""
    where = box(position, chunk.shape, words.shape)
    words[where] = chunk[tuple(slice(0, s.stop - s.start) for s in where)]


# Section 8.1: raw.


def is_constant(array: Array, shape: tuple[int, ...]) -> bool:
    # > If every extent of the array is 1, the word shape is another one of the same length, and no extent of it is 0, then the first word
    # > of the array's only chunk stands at every position.
    return array.shape == (1,) * len(shape) and array.shape != shape and 0 not in shape


def check_raw(part: Part, shape: tuple[int, ...]) -> None:
    # > `raw` has one component, `values`: an array of the raw data type [word-1] and the word shape.
    need(list(part.arrays) == ["values"], "raw-1", "other components")
    array = part.arrays["values"]
    need(array.data_type == DTYPES[part.dtype][1], "raw-1", "another data type")
    need(array.shape == shape or is_constant(array, shape), "raw-1", "another shape")


def read_raw(objects: Mapping[str, Object], part: Part, shape: tuple[int, ...], word: np.dtype) -> np.ndarray:
    array = part.arrays["values"]
    words = np.empty(shape, word)
    if is_constant(array, shape):
        words[...] = read_chunk(objects, array, (0,) * len(shape)).reshape(-1)[0]
        return words
    for position in positions(array.counts):
        put(words, position, read_chunk(objects, array, position))
    return words


# Section 8.2: planes.


def low_planes(w: int, top_bits: int) -> list[int]:
    # > first one of
    # > `(w - top_bits) mod 8` bits, unless that is 0; then planes of 8 bits.
    rest = w - top_bits
    return ([rest % 8] if rest % 8 else []) + [8] * (rest // 8)


def check_planes(part: Part, shape: tuple[int, ...]) -> None:
    doc, w, top_bits = part.doc, DTYPES[part.dtype][0], part.doc.get("top_bits", 8)
    need(is_integer(top_bits) and isinstance(doc.get("rotate"), bool), "planes-1", "no top_bits, or no rotate")
    need(list(part.arrays) == ["planes"], "planes-1", "other components")
    array = part.arrays["planes"]
    # > `top_bits` is at most 16 and at most the word size `w`; it is 8 if there are no `symbols`. There are not both `symbols` and `ranks`.
    need(1 <= top_bits <= min(16, w), "planes-1", "a wrong top_bits")
    need(top_bits == 8 or "symbols" in doc, "planes-1", "a wrong top_bits")
    need("symbols" not in doc or "ranks" not in doc, "planes-1", "both symbols and ranks")
    if "symbols" in doc:
        check_symbols(doc["symbols"], top_bits)
    p = len(low_planes(w, top_bits))
    if "ranks" in doc:
        # > `ranks` is 0 to 240, `chunk_shape` has an extent >= 1 for each axis of the word shape, and a chunk has less than 2^24 words.
        need(is_integer(doc["ranks"]) and 0 <= doc["ranks"] <= 240, "planes-1", "wrong ranks")
        chunk = doc.get("chunk_shape")
        need(is_integers(chunk) and len(chunk) == len(shape) and all(c >= 1 for c in chunk), "planes-1", "no chunks")
        n = math.prod(chunk)
        need(n < 1 << 24, "planes-1", "ranks of large chunks")
        # > `k = ceil(n / 2) + n * p + 4 * m`, where `m >= 0` is the most escapes that a chunk can have.
        k = array.shape[-1] if array.shape else -1
        rest = k - ceil(n, 2) - n * p
        need(rest >= 0 and rest % 4 == 0, "planes-1", "chunks of another size")
        counts = tuple(ceil(s, c) for s, c in zip(shape, chunk, strict=True))
        expected = ("uint8", (*counts, k), (*(1 for _ in counts), k))
    else:
        expected = ("uint8", (1 + p, *shape), (1 + p, *array.chunk[1:]))
    found = (array.data_type, array.shape, array.chunk)
    need(found == expected, "planes-1", "the array does not fit")


def check_symbols(symbols: object, top_bits: int) -> None:
    # > `symbols` is a list of pairs `[first, count]`, with `count >= 1`, in ascending order and without overlap, of top fields below `2^top_bits`; there are
    # > 1 to 256 top fields in all.
    pairs = isinstance(symbols, list) and all(is_integers(pair) and len(pair) == 2 for pair in symbols)
    need(pairs, "planes-4", "symbols are no pairs")
    assert isinstance(symbols, list)
    end = 0
    for first, count in symbols:
        need(first >= end and count >= 1, "planes-4", "symbols do not ascend")
        end = first + count
    need(end <= 1 << top_bits and 1 <= sum(n for _, n in symbols) <= 256, "planes-4", "too many symbols, or none")


def read_planes(objects: Mapping[str, Object], part: Part, shape: tuple[int, ...], word: np.dtype) -> np.ndarray:
    doc, array = part.doc, part.arrays["planes"]
    w, top_bits = 8 * word.itemsize, doc.get("top_bits", 8)
    low_bits = low_planes(w, top_bits)
    ranks = "ranks" in doc
    chunk = chunk_of(part)
    words = np.empty(shape, word)
    for position in positions(tuple(ceil(s, c) for s, c in zip(shape, chunk, strict=True))):
        if ranks:
            body = read_chunk(objects, array, (*position, 0)).reshape(-1)
            top, low = read_ranks(body, doc["ranks"], math.prod(chunk), len(low_bits))
        else:
            planes = read_chunk(objects, array, (0, *position)).astype(np.uint64)
            top, low = planes[0], planes[1:]
        if "symbols" in doc:
            table = symbol_table(doc["symbols"])
            # > A reader refuses as corrupt a symbol that stands for nothing, also beyond the edges of the tensor.
            need(int(top.max()) < len(table), "planes-4", "a symbol stands for nothing", CorruptRefused)
            top = table[top]
        # > The *top field* is the
        # > `top_bits` most significant bits of `r`.
        shift = w - top_bits
        r = top << np.uint64(shift)
        for bits, plane in zip(low_bits, low, strict=True):
            shift -= bits
            # > In a byte of the first low plane, bits beyond its width are unused.
            r |= (plane & np.uint64((1 << bits) - 1)) << np.uint64(shift)
        if doc["rotate"]:
            # > let `r` be the word rotated left by one bit: `(word << 1 | word >> (w - 1))`, kept to `w` bits
            r = r >> np.uint64(1) | (r & np.uint64(1)) << np.uint64(w - 1)
        put(words, position, r.astype(word).reshape(chunk))
    return words


def symbol_table(symbols: list[list[int]]) -> np.ndarray:
    # > Symbol `i` stands for the `i`-th of these top fields, counted from 0.
    return np.array([top for first, count in symbols for top in range(first, first + count)], np.uint64)


def read_ranks(body: np.ndarray, first: int, n: int, p: int) -> tuple[np.ndarray, np.ndarray]:
    """The top fields and the low planes of the words of one chunk."""
    # > The chunk begins with `ceil(n / 2)` bytes of ranks: bits 0 to 3 of byte `i` are the rank of word `2 i`, bits 4 to 7 that
    # > of word `2 i + 1`
    packed, low, rest = np.split(body, [ceil(n, 2), ceil(n, 2) + n * p])
    # > A rank stands for the top field `ranks + rank`.
    top = (np.stack([packed & 15, packed >> 4], axis=-1).reshape(-1)[:n] + first).astype(np.uint64)
    # > The numbers come first, their positions ascending and below `n`; the rest is `ffffffff`.
    numbers = rest.view("<u4").tolist()
    while numbers and numbers[-1] == 0xFFFFFFFF:
        numbers.pop()
    at = [e >> 8 for e in numbers]
    ascending = all(a < b for a, b in itertools.pairwise(at))
    need(ascending and (not at or at[-1] < n), "planes-6", "escapes out of order", CorruptRefused)
    for e in numbers:
        # > A number `e` says that the word at position `e >> 8` of the chunk, counted from 0, has the top field `e & 255`,
        top[e >> 8] = e & 255
    return top, low.reshape(p, n).astype(np.uint64)


# Section 8.3: narrow storage.


def widen(words: np.ndarray, dtype: str) -> np.ndarray:
    # > from bfloat16 the word shifted left by 16; from float16 its exact conversion, with the sign of
    # > zero kept.
    if dtype == "bfloat16":
        return words.astype("<u4") << np.uint32(16)
    return words.view("<f2").astype("<f4").view("<u4")


# Section 8.4: quantized.

BASES = {1: 256, 2: 16, 3: 6, 4: 4, 5: 3, 8: 2}  # codes in a byte -> base


def check_chunk_shape(part: Part, shape: tuple[int, ...], clause: str) -> tuple[int, ...]:
    # > `chunk_shape` has an extent >= 1 for each axis, and the words of a chunk take at most 2^26 bytes.
    chunk = part.doc.get("chunk_shape")
    need(is_integers(chunk) and len(chunk) == len(shape) and all(c >= 1 for c in chunk), clause, "no chunks")
    need(math.prod(chunk) * DTYPES[part.dtype][0] // 8 <= 1 << 26, clause, "chunks too large")
    return tuple(chunk)


def per_byte_of_low_bits(low_bits: int) -> int:
    # > 8 of 1 bit if `l` is 1, 4 of 2 bits if it is 2, 2 of 4 bits if it is 3 or 4, else 1 of 8 bits.
    return {1: 8, 2: 4, 3: 2, 4: 2}.get(low_bits, 1)


def values_for_a_code(part: Part) -> int:
    # > `d` is the number of values for one code: 1, but where `codebook` is an array of two axes
    book = part.arrays.get("codebook")
    return book.shape[1] if book and len(book.shape) == 2 else 1


def is_binary32(number: object) -> bool:
    if type(number) not in (int, float):
        return False
    try:
        return struct.unpack("<f", struct.pack("<f", number))[0] == number
    except (OverflowError, struct.error):  # the latter for integers beyond binary64
        return False


def check_quantized(part: Part, shape: tuple[int, ...]) -> None:
    # > The dtype of the part is `float16`, `bfloat16`, `float32` or `float64`. The tensor has an axis, and no extent of 0.
    doc = part.doc
    need(part.dtype in ("float16", "bfloat16", "float32", "float64"), "quantized-1", "no floats")
    need(shape and 0 not in shape, "quantized-1", "no values")
    # > `levels` is 1 to 65,536, and at most `2^(8 + low_bits)`.
    levels, b, low_bits = doc.get("levels"), doc.get("per_byte", 1), doc.get("low_bits", 0)
    need(is_integers([levels, b, low_bits]) and b in BASES, "quantized-1", "a wrong number")
    need(low_bits <= 8 and 1 <= levels <= min(65536, 1 << 8 + low_bits), "quantized-1", "wrong levels")
    chunk = check_chunk_shape(part, shape, "quantized-1")
    # > On all axes but the last its extent is at most that of the tensor.
    need(all(c <= s for c, s in zip(chunk[:-1], shape[:-1], strict=True)), "quantized-1", "chunks of more rows")
    # > If `per_byte` is not 1, `levels` is the base, `low_bits` is 0 and `d` is 1.
    d = values_for_a_code(part)
    need(b == 1 or (levels, low_bits, d) == (BASES[b], 0, 1), "quantized-2", "they do not share a byte")
    check_codebook(part, levels)
    # > `n` and `k` are multiples of `d`, and `c` is a multiple of `b` and `e` where the tensor has more than one chunk along
    # > the last axis.
    e = per_byte_of_low_bits(low_bits)
    need(shape[-1] % d == 0 and chunk[-1] % d == 0, "quantized-1", "neighbours that are cut")
    q, c = shape[-1] // d, chunk[-1] // d
    need(shape[-1] <= chunk[-1] or c % math.lcm(b, e) == 0, "quantized-1", "bytes that are cut")
    expected = {"codes": ("uint8", (*shape[:-1], ceil(q, b)), (*chunk[:-1], ceil(c, b)))}
    if low_bits:
        expected["low"] = ("uint8", (*shape[:-1], ceil(q, e)), (*chunk[:-1], ceil(c, e)))
    if "codebook" in part.arrays:
        own = (levels, d) if d > 1 else (levels,)
        expected["codebook"] = ("float32", own, own)
    expected |= expected_scales(doc, shape, chunk)
    zero = doc.get("zero_point", 0)
    if isinstance(zero, dict):
        array = part.arrays.get("zero_point")
        kind = array.data_type if array and array.data_type == "uint16" else "uint8"
        expected["zero_point"] = (kind, *blocks(zero.get("block"), shape, chunk))
    else:
        # > `zero_point` is an integer from -65,536 to 65,536, or `{"block": ...}`
        need(is_integer(zero) and abs(zero) <= 65536, "quantized-4", "a wrong zero point")
    # > The components are those of the table, with or without `zstd`.
    found = {name: (array.data_type, array.shape, array.chunk) for name, array in part.arrays.items()}
    need(found == expected, "quantized-1", f"components {found}, not {expected}")


def check_codebook(part: Part, levels: int) -> None:
    if "codebook" in part.doc:
        # > of the member, which has `levels` numbers, at most 256, each of which binary32 holds exactly; or of the component,
        # > if there is no such member.
        book = part.doc["codebook"]
        need(isinstance(book, list) and len(book) == levels <= 256, "quantized-4", "a wrong codebook")
        need(all(map(is_binary32, book)), "quantized-4", "an entry that is no number of binary32")
        need("codebook" not in part.arrays, "quantized-4", "two codebooks")
    elif "codebook" in part.arrays:
        # > If the component has two axes, `d` is 2 to 8
        shape = part.arrays["codebook"].shape
        need(len(shape) == 1 or (len(shape) == 2 and 2 <= shape[1] <= 8), "quantized-4", "a wrong codebook")
    # > With a codebook, `zero_point` is 0
    has_codebook = "codebook" in part.doc or "codebook" in part.arrays
    need(not has_codebook or part.doc.get("zero_point", 0) == 0, "quantized-4", "a codebook and a zero point")


Expected = tuple[str, tuple[int, ...], tuple[int, ...]]  # data type, shape, chunk shape


def expected_scales(doc: dict[str, Any], shape: tuple[int, ...], chunk: tuple[int, ...]) -> dict[str, Expected]:
    # > `scales` has at most 4 entries. An entry is a number that binary32 holds exactly; or `{"block": ..., "dtype": ...}`, where the dtype is `float32`, `float16` or `bfloat16`
    scales = doc.get("scales", [])
    need(isinstance(scales, list) and len(scales) <= 4, "quantized-6", "no list of scales")
    expected = {}
    for i, scale in enumerate(scales):
        if isinstance(scale, dict):
            need(scale.get("dtype") in ("float32", "float16", "bfloat16"), "quantized-6", "a wrong dtype")
            expected[scale_name(i)] = (DTYPES[scale["dtype"]][1], *blocks(scale.get("block"), shape, chunk))
        else:
            need(is_binary32(scale), "quantized-6", "a scale that is no number of binary32")
    return expected


def scale_name(i: int) -> str:
    return f"scale-{i + 1}" if i else "scale"


def blocks(block: Any, shape: tuple[int, ...], chunk: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape and chunk shape of the component that has a number for each block."""
    # > `block` has an extent from 1 to that of the tensor for each axis.
    need(is_integers(block) and len(block) == len(shape), "quantized-6", "a wrong block")
    axes = list(zip(block, shape, chunk, strict=True))
    need(all(1 <= g <= s for g, s, _ in axes), "quantized-6", "a block that is no part of the tensor")
    # > Where `g < s` and `c < s`, `c` is a multiple of `g`. If the tensor has not two axes, the extents of a block
    # > but the last are all 1, or all those of the tensor.
    need(all(g == s or c >= s or c % g == 0 for g, s, c in axes), "quantized-6", "blocks that are cut")
    lead = axes[:-1]
    good = len(shape) == 2 or all(g == 1 for g, _, _ in lead) or all(g == s for g, s, _ in lead)
    need(good, "quantized-6", "blocks over some of the axes")
    # > the component has the extent `ceil(s / g)`, in chunks of 1 where `g` is `s`, else of `ceil(c / g)`.
    return tuple(ceil(s, g) for g, s, _ in axes), tuple(1 if g == s else ceil(c, g) for g, s, c in axes)


def read_quantized(objects: Mapping[str, Object], part: Part, shape: tuple[int, ...], word: np.dtype) -> np.ndarray:
    return to_words(quantized_values(objects, part, shape), part.dtype)


def quantized_values(objects: Mapping[str, Object], part: Part, shape: tuple[int, ...]) -> np.ndarray:
    """In binary32, not yet rounded to the dtype of the part."""
    chunk = chunk_of(part)
    found = np.empty(shape, "<f4")
    for position in positions(tuple(ceil(s, c) for s, c in zip(shape, chunk, strict=True))):
        values = read_entries(objects, part, shape, position)
        for i, scale in enumerate(part.doc.get("scales", [])):
            # > a value is its entry times the first scale, times the second, and so on from left to right. Each product is rounded to binary32
            if isinstance(scale, dict):
                own = read_blocks(objects, part.arrays[scale_name(i)], scale["block"], shape, chunk, position)
                factor = binary32(own, scale["dtype"])
                # > A reader refuses as corrupt a chunk of scales or of a codebook that holds an infinity or a NaN, wherever in it.
                need(np.isfinite(factor).all(), "quantized-7", "a scale that is not finite", CorruptRefused)
            else:
                factor = np.float32(scale)
            with np.errstate(over="ignore", invalid="ignore"):
                values = values * factor
        put(found, position, values)
    return found


def read_entries(
    objects: Mapping[str, Object], part: Part, shape: tuple[int, ...], position: tuple[int, ...]
) -> np.ndarray:
    """What the codes of one chunk stand for, in binary32."""
    doc, chunk = part.doc, chunk_of(part)
    codes = read_codes(objects, part, position)
    if "codebook" in doc:
        return np.array(doc["codebook"], "<f4")[codes]
    if "codebook" in part.arrays:
        book = read_chunk(objects, part.arrays["codebook"], (0,) * len(part.arrays["codebook"].shape)).view("<f4")
        need(np.isfinite(book).all(), "quantized-7", "an entry that is not finite", CorruptRefused)
        # > code `j` of a row has `d` entries: for the values `d * j` to `d * j + d - 1`.
        return book[codes].reshape(chunk)
    # > Without a codebook that is `code - zero_point`
    zero: Any = doc.get("zero_point", 0)
    if isinstance(zero, dict):
        zero = read_blocks(objects, part.arrays["zero_point"], zero["block"], shape, chunk, position).astype(np.int64)
    return (codes - zero).astype("<f4")


def read_codes(objects: Mapping[str, Object], part: Part, position: tuple[int, ...]) -> np.ndarray:
    doc, chunk = part.doc, chunk_of(part)
    levels, b, low_bits = doc["levels"], doc.get("per_byte", 1), doc.get("low_bits", 0)
    packed = read_chunk(objects, part.arrays["codes"], position)
    # > A reader refuses as corrupt a code that is not below `levels`, and, if `per_byte` is not 1, a byte of `codes` that is not below `base^per_byte`; also beyond the edges of the tensor.
    need(b == 1 or packed.max() < BASES[b] ** b, "quantized-5", "a byte that holds no codes", CorruptRefused)
    c = chunk[-1] // values_for_a_code(part)
    codes = digits(packed, BASES[b], b, c)
    if low_bits:
        # > if `low_bits` is `l`, not 0, a code is `high << l | low`
        e = per_byte_of_low_bits(low_bits)
        low = digits(read_chunk(objects, part.arrays["low"], position), 1 << 8 // e, e, c)
        # > Of these bits those beyond `l` are unused.
        codes = codes << low_bits | low % (1 << low_bits)
    need(codes.max() < levels, "quantized-5", "a code that stands for nothing", CorruptRefused)
    return codes


def digits(packed: np.ndarray, base: int, b: int, c: int) -> np.ndarray:
    """The first ``c`` codes of every row."""
    # > A byte holds `b` neighbouring codes as the digits of a number, the first one the least significant: `code 0 + code 1 * base + code 2 * base^2 + ...`; digits behind the
    # > last code of a row are unused.
    codes = np.stack([packed.astype(np.int64) // base**i % base for i in range(b)], axis=-1)
    return codes.reshape(*packed.shape[:-1], -1)[..., :c]


def read_blocks(
    objects: Mapping[str, Object],
    array: Array,
    block: list[int],
    shape: tuple[int, ...],
    chunk: tuple[int, ...],
    position: tuple[int, ...],
) -> np.ndarray:
    """The numbers of the blocks in one chunk of the words, each at all positions of its block."""
    # > of a `scale` and of
    # > `zero_point` it is the chunk with the same index on each axis, or 0 where that array has one chunk.
    own = tuple(0 if n == 1 else i for i, n in zip(position, array.counts, strict=True))
    numbers = read_chunk(objects, array, own)
    for axis, (g, s, c) in enumerate(zip(block, shape, chunk, strict=True)):
        # > The number at `(j0, j1, ...)` belongs to the positions from `j * block` to `(j + 1) * block` on each axis, as far as there are any.
        numbers = np.repeat(numbers, c if g == s else g, axis).take(range(c), axis)
    return numbers


def to_words(values: np.ndarray, dtype: str) -> np.ndarray:
    """Binary32 values, rounded to ``dtype``."""
    # > The last one, or the entry if there are no scales, is rounded to
    # > the dtype of the part in the same way; there, what is too large becomes infinity.
    if dtype == "bfloat16":
        bits = values.view("<u4").astype(np.uint64)
        half = 0x7FFF + (
            bits >> 16 & 1
        )  # just below one half of the last bit that is kept; one half, if that bit is odd
        return (bits + half >> 16).astype("<u2")
    with np.errstate(over="ignore"):
        return values.astype(f"<f{DTYPES[dtype][0] // 8}").view(f"<u{DTYPES[dtype][0] // 8}")


# Section 8.5: sparse.


def check_sparse(part: Part, shape: tuple[int, ...]) -> None:
    # > The word shape has an axis, `chunk_shape` has an extent >= 1 for each axis of it, and the words of a chunk take at most 2^26 bytes.
    need(shape, "sparse-1", "a scalar")
    chunk = check_chunk_shape(part, shape, "sparse-1")
    block = part.doc.get("block", [1, 1])
    need(is_integers(block) and len(block) == 2 and min(block) >= 1, "sparse-1", "a wrong block")
    h, w = block
    # > The last extent of `chunk_shape` is a multiple of `w`, the one before it, or 1 if there is none, a multiple of `h`.
    need(chunk[-1] % w == 0 and (1, *chunk)[-2] % h == 0, "sparse-1", "blocks that are cut")
    counts = tuple(ceil(s, c) for s, c in zip(shape, chunk, strict=True))
    ones, n, v = tuple(1 for _ in counts), math.prod(chunk) // (h * w), room_of(part)
    # > `v` is a multiple of `h * w`, and 1 to `n * h * w`.
    need(1 <= v <= n * h * w and v % (h * w) == 0, "sparse-1", "room for nothing, or too much")
    values = part.doc.get("values", {"encoding": "raw"})
    check_inner(part, "values", values, part.dtype, (*counts, v), (*ones, v), "sparse-1")
    low_bits, m = check_index(part, n, v // (h * w))
    check_components(part, {"positions", "low"} if low_bits else {"positions"}, "sparse-1")
    # > The components are as in the table, with or without `zstd`
    for name, extent in (("positions", m), *([("low", v // (h * w))] if low_bits else [])):
        array = part.arrays[name]
        expected = ("uint8", (*counts, extent), (*ones, extent))
        need((array.data_type, array.shape, array.chunk) == expected, "sparse-1", f"{name!r} does not fit")


def room_of(part: Part) -> int:
    # > `room` may be absent only if the member `values` is.
    need("room" in part.doc or "values" not in part.doc, "sparse-1", "no room")
    if "room" in part.doc:
        need(is_integer(part.doc["room"]), "sparse-1", "a wrong room")
        return part.doc["room"]
    array = part.arrays.get("values")
    need(array and array.shape, "sparse-1", "no values")
    assert array is not None
    return array.shape[-1]


def check_index(part: Part, n: int, elements: int) -> tuple[int, int]:
    """(low bits, bytes of the positions of a chunk)."""
    doc = part.doc
    index, low_bits = doc.get("index", "gaps"), doc.get("low_bits", 0)
    # > `low_bits` is 0 but with `gaps`, and there is a `pattern` with `pattern` only.
    need(index in ("gaps", "bitmap", "pattern"), "sparse-1", "an unknown index")
    need(is_integer(low_bits) and low_bits in (0, 8), "sparse-1", "wrong low bits")
    need(low_bits == 0 or index == "gaps", "sparse-1", "low bits of no gaps")
    need(("pattern" in doc) == (index == "pattern"), "sparse-1", "a pattern, or none")
    if index == "bitmap":
        # > *Bitmap*: `m` is `ceil(n / 8)`
        return 0, ceil(n, 8)
    if index == "pattern":
        # > *Pattern*: `1 <= p < g <= 8`, `n` is a multiple of `g`, and `v` is `n / g * p * h * w`.
        pattern = doc["pattern"]
        need(is_integers(pattern) and len(pattern) == 2, "sparse-5", "a wrong pattern")
        p, g = pattern
        need(1 <= p < g <= 8, "sparse-5", "a wrong pattern")
        need(n % g == 0 and elements == n // g * p, "sparse-5", "a pattern that does not fit")
        return 0, ceil(n // g, ranks_in_a_byte(p, g))
    # > `m` is 1 to `n` with `gaps`, and what the other indexes need [sparse-4], [sparse-5].
    array = part.arrays.get("positions")
    m = array.shape[-1] if array and array.shape else 0
    need(1 <= m <= n, "sparse-1", "room for no position, or for too many")
    return low_bits, m


def ranks_in_a_byte(p: int, g: int) -> int:
    # > There are `c` of them, and `k` ranks share a byte, where `k` is the largest number of 1 to 8 with
    # > `c^k <= 256`
    return max(k for k in range(1, 9) if math.comb(g, p) ** k <= 256)


def check_values(part: Part, adds: bool) -> None:
    # > The values have the dtype of the part, or one
    # > that [narrow-1] allows for it; if the part is added, `float16`, `bfloat16` or `float32`.
    allowed = {part.dtype} | ({"bfloat16", "float16"} if part.dtype == "float32" else set())
    allowed = {"float16", "bfloat16", "float32"} if adds else allowed
    need(part.inner["values"].dtype in allowed, "sparse-1", "values of another dtype")


def read_sparse(
    objects: Mapping[str, Object], part: Part, shape: tuple[int, ...], exact: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """(whether a position is taken; the word there, or if ``exact`` its value in binary32, not rounded): both of ``shape``."""
    chunk, inner = chunk_of(part), part.inner["values"]
    counts = tuple(ceil(s, c) for s, c in zip(shape, chunk, strict=True))
    values = read_values(objects, part, (*counts, room_of(part)), exact)
    taken, found = np.zeros(shape, bool), np.zeros(shape, values.dtype)
    h, w = part.doc.get("block", [1, 1])
    across = chunk[-1] // w  # blocks side by side
    for position in positions(counts):
        places = read_places(objects, part, position, math.prod(chunk) // (h * w))
        # > A reader refuses as corrupt a place that the chunk does not have, more places than there is room for
        need(len(places) * h * w <= values.shape[-1], "sparse-3", "more places than values", CorruptRefused)
        own, here = np.zeros(math.prod(chunk), values.dtype), np.zeros(math.prod(chunk), bool)
        for i, place in enumerate(places):
            # > The first place that is taken holds the first element, the next `h * w` values of the chunk of `values` the second one, and so on; the values of an element are in row-major order.
            for row, col in itertools.product(range(h), range(w)):
                # > A *place* is where an element may be: a block of `h * w` words of the chunk, taken as a matrix whose columns are the last axis and whose rows are all others.
                # > The blocks lie side by side from the first row and column on; their places are counted in row-major order.
                at = (place // across * h + row) * chunk[-1] + place % across * w + col
                own[at], here[at] = values[position][(i * h + row) * w + col], True
        put(taken, position, here.reshape(chunk))
        put(found, position, own.reshape(chunk))
    assert inner.dtype == part.dtype or exact or part.dtype == "float32"
    return taken, found


def read_values(objects: Mapping[str, Object], part: Part, shape: tuple[int, ...], exact: bool) -> np.ndarray:
    inner = part.inner["values"]
    if exact and inner.encoding == "quantized":
        return quantized_values(objects, inner, shape)
    words = READERS[inner.encoding](objects, inner, shape, word_of(inner.dtype))
    if exact:
        return binary32(words, inner.dtype)
    return words if inner.dtype == part.dtype else widen(words, inner.dtype)


def read_places(objects: Mapping[str, Object], part: Part, position: tuple[int, ...], n: int) -> list[int]:
    """The places that are taken in one chunk of ``n`` of them, ascending."""
    # > Chunk `(i0, i1, ...)` of the words is chunk `(i0, i1, ..., 0)` of `positions`, `low` and `values`.
    body = read_chunk(objects, part.arrays["positions"], (*position, 0)).reshape(-1).tolist()
    index, low_bits = part.doc.get("index", "gaps"), part.doc.get("low_bits", 0)
    if index == "bitmap":
        # > place `i` is taken if bit `i % 8` of byte `i / 8`, rounded down, is set. Bits from `n` on are not set; a reader refuses them as corrupt.
        places = [i for i in range(8 * len(body)) if body[i // 8] >> i % 8 & 1]
    elif index == "pattern":
        places = read_ranks_of_places(body, *part.doc["pattern"], n)
    else:
        places, passed = [], 0
        low = read_chunk(objects, part.arrays["low"], (*position, 0)).reshape(-1).tolist() if low_bits else []
        for step in body:
            # > Of the bytes of `positions`, in order, 255 passes `255 << low_bits` places. A smaller one, `b`, passes `(b << low_bits) + l` places, takes the place that comes then, and passes it as well; `l` is 0, or with low bits the next byte of `low`.
            passed += step << low_bits
            if step < 255:
                need(not low_bits or len(places) < len(low), "sparse-3", "more places than room", CorruptRefused)
                passed += low[len(places)] if low_bits else 0
                places.append(passed)
                passed += 1
    need(not places or places[-1] < n, "sparse-3" if index != "bitmap" else "sparse-4", "no such place", CorruptRefused)
    return places


def read_ranks_of_places(body: list[int], p: int, g: int, n: int) -> list[int]:
    # > The combinations of `p` out of `g` places have ranks from 0 on, in ascending order of the numbers that have the bits of these places.
    combinations = [bits for bits in range(1 << g) if bits.bit_count() == p]
    c, k = len(combinations), ranks_in_a_byte(p, g)
    places = []
    for group in range(n // g):
        # > `rank 0 + rank 1 * c + rank 2 * c^2 + ...`. Every `g` places in turn have a rank
        rank = body[group // k] // c ** (group % k) % c
        places += [group * g + i for i in range(g) if combinations[rank] >> i & 1]
    # > A byte is below `c^k`.
    need(max(body) < c**k, "sparse-5", "a byte that holds no combinations", CorruptRefused)
    return places


# Section 8.6: lowrank.


def check_lowrank(part: Part, shape: tuple[int, ...]) -> None:
    # > The dtype of the part is `float16`, `bfloat16`, `float32` or `float64`, those of the factors are one of the first three. The tensor has two axes or more, and no extent of 0.
    need(part.dtype in ("float16", "bfloat16", "float32", "float64"), "lowrank-1", "no floats")
    need(len(shape) >= 2 and 0 not in shape, "lowrank-1", "no matrix")
    chunk = check_chunk_shape(part, shape, "lowrank-1")
    # > `rank` is 1 to 65,536. `scale` is a number that binary32 holds exactly.
    r, scale = part.doc.get("rank"), part.doc.get("scale", 1)
    need(is_integer(r) and 1 <= r <= 65536, "lowrank-1", "a wrong rank")
    need(is_binary32(scale), "lowrank-1", "a scale that is no number of binary32")
    # > the words of a chunk, and as many numbers of 4 bytes, take at most 2^26 bytes, and so do the numbers of a chunk of
    # > each factor.
    for count in (math.prod(chunk), math.prod(chunk[:-1]) * r, r * chunk[-1]):
        need(4 * count <= 1 << 26, "lowrank-1", "chunks too large")
    left, right = part.doc.get("left"), part.doc.get("right")
    check_inner(part, "left", left, "float32", (*shape[:-1], r), (*chunk[:-1], r), "lowrank-1")
    check_inner(part, "right", right, "float32", (r, shape[-1]), (r, chunk[-1]), "lowrank-1")
    for inner in part.inner.values():
        need(inner.dtype in ("float16", "bfloat16", "float32"), "lowrank-1", "a factor of another dtype")
    check_components(part, set(), "lowrank-1")


def multiply(objects: Mapping[str, Object], part: Part, shape: tuple[int, ...]) -> np.ndarray:
    """In binary32, not yet rounded to the dtype of the part."""
    # > where the factors are binary32 of the same values
    rank = part.doc["rank"]
    left = read_numbers(objects, part.inner["left"], (*shape[:-1], rank)).reshape(-1, rank)
    right = read_numbers(objects, part.inner["right"], (rank, shape[-1]))
    with np.errstate(over="ignore", invalid="ignore"):
        return (sum_of_products(left, right) * np.float32(part.doc.get("scale", 1))).reshape(shape)


def read_numbers(objects: Mapping[str, Object], inner: Part, shape: tuple[int, ...]) -> np.ndarray:
    """The values of a nested part, in binary32."""
    return binary32(READERS[inner.encoding](objects, inner, shape, word_of(inner.dtype)), inner.dtype)


def sum_of_products(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    # > products are added from left to right, each product and each sum is rounded to binary32, to nearest, ties to even, with subnormal numbers, and none are
    # > fused.
    with np.errstate(over="ignore", invalid="ignore"):
        total = left[:, :1] * right[:1]
        for k in range(1, left.shape[1]):
            product = left[:, k : k + 1] * right[k : k + 1]
            total = total + product
    return total


# Section 8.7: tucker.


def check_tucker(part: Part, shape: tuple[int, ...]) -> None:
    doc = part.doc
    # > The dtype of the part is `float16`, `bfloat16`, `float32` or `float64`, those of factors and core are one of the first three. The tensor has two axes or more, and no extent of 0.
    need(part.dtype in ("float16", "bfloat16", "float32", "float64"), "tucker-1", "no floats")
    need(len(shape) >= 2 and 0 not in shape, "tucker-1", "too few axes, or no values")
    chunk = check_chunk_shape(part, shape, "tucker-1")
    # > `ranks` has one of 1 to 65,536 for each axis,
    # > `factors` an entry.
    ranks, factors = doc.get("ranks"), doc.get("factors")
    need(is_integers(ranks) and len(ranks) == len(shape), "tucker-1", "wrong ranks")
    need(all(1 <= r <= 65536 for r in ranks), "tucker-1", "wrong ranks")
    need(isinstance(factors, list) and len(factors) == len(shape), "tucker-1", "wrong factors")
    # > Without a core all ranks are the same, and no factor is `null`. Where a factor is `null`, extent, chunk extent and rank of the axis are the same.
    need("core" in doc or (len(set(ranks)) == 1 and None not in factors), "tucker-1", "no core")
    for s, c, r, factor in zip(shape, chunk, ranks, factors, strict=True):
        need(factor is not None or s == c == r, "tucker-1", "an axis without a factor")
    # > One factor at least is not `null`.
    need(any(factor is not None for factor in factors), "tucker-1", "no factor")
    # > A chunk of words, of each factor, of the core, and of what is between them [tucker-2], [tucker-3] has at most 2^24 numbers.
    if "core" in doc:
        # > What is between are the chunk's part of the tensor where the first `k` axes have been multiplied, of the shape `(c0, ..., c(k-1), rk, ...)`.
        between = [(*chunk[:k], *ranks[k:]) for k in range(len(shape) + 1)]
    else:
        # > What is between are the chunk's numbers `p`, for the axes from the second one on, of the shape
        # > `(r, c1, ..., ck)`.
        between = [chunk, *((ranks[0], *chunk[1 : k + 1]) for k in range(1, len(shape)))]
    between += [(c, r) for c, r, factor in zip(chunk, ranks, factors, strict=True) if factor is not None]
    need(all(math.prod(extents) <= 1 << 24 for extents in between), "tucker-1", "chunks too large")
    for k, (s, c, r, factor) in enumerate(zip(shape, chunk, ranks, factors, strict=True)):
        if factor is not None:
            check_inner(part, f"factor-{k + 1}", factor, "float32", (s, r), (c, r), "tucker-1")
    if "core" in doc:
        check_inner(part, "core", doc["core"], "float32", tuple(ranks), tuple(ranks), "tucker-1")
    for inner in part.inner.values():
        need(inner.dtype in ("float16", "bfloat16", "float32"), "tucker-1", "a factor of another dtype")
    check_components(part, set(), "tucker-1")


def expand(objects: Mapping[str, Object], part: Part, shape: tuple[int, ...]) -> np.ndarray:
    """In binary32, not yet rounded to the dtype of the part."""
    ranks = part.doc["ranks"]
    factors = [
        read_numbers(objects, part.inner[f"factor-{k + 1}"], (s, r)) if f"factor-{k + 1}" in part.inner else None
        for k, (s, r) in enumerate(zip(shape, ranks, strict=True))
    ]
    if "core" not in part.doc:
        # > the value at `(i0, i1, i2, ...)` is `f0[i0, 0] * p[0] + f0[i0, 1] * p[1] + ...`, and `p[j]` is `f1[i1, j] * f2[i2, j] * ...`, from left to right
        first, second, *others = [factor for factor in factors if factor is not None]
        products = second.T  # the rank, and then an axis for each factor
        with np.errstate(over="ignore", invalid="ignore"):
            for factor in others:
                products = products[..., None] * factor.T.reshape(ranks[0], *[1] * (products.ndim - 1), -1)
        return sum_of_products(first, products.reshape(ranks[0], -1)).reshape(shape)
    values = read_numbers(objects, part.inner["core"], tuple(ranks))
    for k, own in enumerate(factors):
        # > To multiply axis `k`, of extent `rk`, is to put at the positions `i` of that axis, in place of the numbers `t[0]`, `t[1]`, ... along it, the sums `factor[i, 0] * t[0] + factor[i, 1] * t[1] + ...`. An axis whose factor is `null` stays as it is.
        if own is not None:
            along = np.moveaxis(values, k, 0)
            sums = sum_of_products(own, along.reshape(along.shape[0], -1))
            values = np.moveaxis(sums.reshape(-1, *along.shape[1:]), 0, k)
    return values.copy()


# Section 8.8: base.


def check_base(part: Part, dtype: str, n_bases: int) -> None:
    # > `base` is the index of an entry of `bases`; `tensor` and `sha256` are as a name and a `sha256` in [tensor-1]. The dtype of the part is the tensor's. `base` has no components
    need(is_integer(part.doc.get("base")) and 0 <= part.doc["base"] < n_bases, "base-1", "no such base")
    need(is_name(part.doc.get("tensor")) and is_sha256(part.doc.get("sha256")), "base-1", "no tensor, or no sha256")
    need(part.dtype == dtype and not part.arrays, "base-1", "another dtype, or components")


def read_base(part: Part, node: Node, base: Bases) -> np.ndarray:
    # > The words are those of the tensor of this name in that model, which has the same dtype, shape and `sha256`; a reader that finds another refuses as corrupt
    found = base(part.doc["base"]).tensors.get(part.doc["tensor"])
    need(found and (found.dtype, found.shape) == (node.dtype, node.shape), "base-3", "another tensor", CorruptRefused)
    assert found is not None
    digest = hashlib.sha256(found.words.tobytes()).hexdigest()
    need(digest == part.doc["sha256"], "base-3", "a base with other values", CorruptRefused)
    return found.words


# Section 8.9: ggml.

GGML = json.loads((Path(__file__).parent / "ggml.json").read_text())
Numbers = dict[str, list[int]]  # of a block, by field


def check_ggml(part: Part, shape: tuple[int, ...]) -> None:
    # > A reader refuses a `type` that it does not know as unsupported.
    name = part.doc.get("type")
    need(isinstance(name, str) and name in GGML["types"], "ggml-1", f"type {name!r}", UnsupportedRefused)
    size, nbytes = (GGML["types"][name][key] for key in ("size", "nbytes"))
    # > The part is the only one of its tensor, which is `float32` and has an axis.
    need(part.dtype == "float32" and shape, "ggml-1", "no float32, or no axis")
    # > The last extents of shape and chunk shape are multiples of `size`, and the words of a chunk take at most 2^26 bytes.
    chunk = check_chunk_shape(part, shape, "ggml-1")
    need(shape[-1] % size == 0 == chunk[-1] % size, "ggml-1", "blocks that are cut")
    need(math.prod(chunk) * 4 <= 2**26, "ggml-1", "chunks too large")
    counts = tuple(map(ceil, shape, chunk))
    k = math.prod(chunk) // size * nbytes
    # > of shape `(*counts, k)` in chunks of `(1, ..., 1, k)`, with or without `zstd`
    need(list(part.arrays) == ["blocks"], "ggml-1", "other components")
    array = part.arrays["blocks"]
    expected = ("uint8", (*counts, k), (*(1 for _ in counts), k))
    need((array.data_type, array.shape, array.chunk) == expected, "ggml-1", "another array")


def read_ggml(objects: Mapping[str, Object], part: Part, shape: tuple[int, ...], word: np.dtype) -> np.ndarray:
    chunk = chunk_of(part)
    words = np.empty(shape, word)
    array = part.arrays["blocks"]
    for position in positions(tuple(map(ceil, shape, chunk))):
        body = read_chunk(objects, array, (*position, 0)).tobytes()
        put(words, position, ggml_words(part.doc["type"], body).reshape(chunk))
    return words


def all_blocks(objects: Mapping[str, Object], part: Part, shape: tuple[int, ...]) -> bytes:
    """All blocks of the tensor, as ggml has them."""
    kind, chunk = GGML["types"][part.doc["type"]], chunk_of(part)
    own, of_chunk = ((*extents[:-1], extents[-1] // kind["size"]) for extents in (shape, chunk))
    found = np.empty((*own, kind["nbytes"]), np.uint8)
    for position in positions(tuple(map(ceil, shape, chunk))):
        body = read_chunk(objects, part.arrays["blocks"], (*position, 0)).tobytes()
        blocks = [block_bytes(kind, numbers) for numbers in ggml_numbers(part.doc["type"], body)]
        where = box(position, of_chunk, own)
        data = np.frombuffer(b"".join(blocks), np.uint8).reshape(*of_chunk, -1)
        found[where] = data[tuple(slice(0, s.stop - s.start) for s in where)]
    return found.tobytes()


def block_bytes(kind: dict[str, Any], numbers: Numbers) -> bytes:
    block = bytearray(kind["nbytes"])
    for each in kind["fields"]:
        # > so many bits of the byte at offset `+ i *` stride of the block, from bit shift on, are the bits from target on of the number at first `+ i *` step of the field.
        for first, count, offset, shift, bits, target, step, stride in each["runs"]:
            for i in range(count):
                part = numbers[each["name"]][first + i * step] >> target & (1 << bits) - 1
                block[offset + i * stride] |= part << shift
    return bytes(block)


def ggml_words(name: str, body: bytes) -> np.ndarray:
    return np.concatenate([block_words(name, block) for block in ggml_numbers(name, body)])


def widths(width: int) -> list[int]:
    # > of 1, 2, 4 and 8 bits they are one plane, 3 bits are planes of 2 and 1, 5 bits of 4 and 1, 6 bits of 4 and 2, 16 bits of 8 and 8, 32 bits of four times 8.
    return {3: [2, 1], 5: [4, 1], 6: [4, 2], 16: [8, 8], 32: [8] * 4}.get(width, [width])


def ggml_numbers(name: str, body: bytes) -> list[Numbers]:
    """Of every block the numbers of its fields, codes as in ggml."""
    kind = GGML["types"][name]
    n = len(body) // kind["nbytes"]
    blocks: list[Numbers] = [{} for _ in range(n)]
    at = 0
    for each in kind["fields"]:
        total = [0] * (n * each["count"])
        for bits in widths(each["width"]):
            # > A plane has the numbers of all blocks, one block after the other, packed into bytes, the first number in the least significant bits.
            for i in range(len(total)):
                byte, digit = divmod(i, 8 // bits)
                total[i] = total[i] << bits | body[at + byte] >> bits * digit & (1 << bits) - 1
            at += len(total) * bits // 8
        for i, block in enumerate(blocks):
            block[each["name"]] = total[i * each["count"] : (i + 1) * each["count"]]
    for block in blocks:
        uncentre(name, block)
    return blocks


def uncentre(name: str, block: Numbers) -> None:
    # > of types with an offset [ggml-5] the field `codes` holds `(code - centre) mod 2^width`, with a centre for all codes of a scale.
    if name in WITH_OFFSETS:
        width = next(field["width"] for field in GGML["types"][name]["fields"] if field["name"] == "codes")
        sub, scale, offset = scales_of(name, block)
        for j, centre in enumerate(centres(scale, offset, width)):
            for i in range(j * sub, (j + 1) * sub):
                block["codes"][i] = block["codes"][i] + centre & (1 << width) - 1


def centres(scale: np.ndarray, offset: np.ndarray, width: int) -> list[int]:
    # > Let `q = -offset / scale`, rounded to binary32, to nearest, ties to even. If `q >= 0` the centre is the integer nearest to `q`, the even one of two, at most `2^width - 1`; else, also if `q` is a NaN, it is 0.
    with np.errstate(all="ignore"):
        quotients = (-offset.astype(np.float32) / scale.astype(np.float32)).tolist()
    top = (1 << width) - 1
    return [round(min(q, top)) if q >= 0 else 0 for q in quotients]


WITH_OFFSETS = ("Q4_1", "Q5_1", "Q2_K", "Q4_K", "Q5_K")


def half(number: int) -> float:
    return float(np.uint16(number).view(np.float16))


def signed(number: int) -> int:
    return number - 256 if number >= 128 else number


def fours(numbers: list[int]) -> list[int]:
    """Four bits, the low ones of a byte first."""
    return [number >> shift & 15 for number in numbers for shift in (0, 4)]


def scales_of(name: str, block: Numbers) -> tuple[int, np.ndarray, np.ndarray]:
    """(values that have a scale of their own, scales, offsets), in binary64, which holds them exactly."""
    d, m = (half(block[key][0]) if key in block and name != "Q8_K" else 0.0 for key in ("scale", "minimum"))
    s, t, sub = block.get("scales", []), block.get("minimums", []), 32
    offsets: list[float] | None = None
    if name == "Q4_1" or name == "Q5_1":
        found, offsets = [d], [m]
    elif name == "Q2_K":
        sub, found, offsets = 16, [d * (x & 15) for x in s], [-(m * (x >> 4)) for x in s]
    elif name == "Q3_K":
        sub, found = 16, [d * (x - 32) for x in s]
    elif name in ("Q4_K", "Q5_K"):
        found, offsets = [d * x for x in s], [-(m * x) for x in t]
    elif name == "Q6_K":
        sub, found = 16, [d * signed(x) for x in s]
    elif name == "Q8_K":
        sub, found = 256, [float(np.uint32(block["scale"][0]).view(np.float32))]
    elif name == "IQ4_XS":
        found = [d * (x - 32) for x in s]
    elif name == "MXFP4":
        # > `2^(x - 128)`, where `x` is the number in `scale`
        found = [2.0 ** (block["scale"][0] - 128)]
    elif name == "NVFP4":
        sub, found = 16, [half_e4m3(x) for x in block["scale"]]
    elif name in ("Q1_0", "TQ1_0", "TQ2_0"):
        sub, found = {"Q1_0": 128}.get(name, 256), [d]
    elif name in ("IQ2_XXS", "IQ3_XXS"):
        found = [d * (0.5 + (x >> 28)) / (4 if name == "IQ2_XXS" else 2) for x in block["signs"]]
    elif name in ("IQ2_XS", "IQ2_S"):
        sub, found = 16, [d * (0.5 + u) / 4 for u in fours(s)]
    elif name == "IQ3_S":
        found = [d * (0.5 + u) * 2 for u in fours(s)]
    elif name == "IQ1_S":
        found = [d * (2 * (x >> 12 & 7) + 1) for x in block["high"]]
    elif name == "IQ1_M":
        # > bits 12 to 15 of its four numbers are `d`, the first one's the least significant
        d = half(sum((x >> 12) << 4 * i for i, x in enumerate(s)))
        sub, found = 16, [d * (2 * (s[j // 4] >> 3 * (j % 4) & 7) + 1) for j in range(16)]
    else:
        found = [d]
    return sub, np.array(found, np.float64), np.array(offsets if offsets else [0.0] * len(found), np.float64)


def half_e4m3(number: int) -> float:
    # > half the E4M3 value of bits 0 to 6 of number `j` in `scale`; 0 if that number is `7f`
    exponent, mantissa = number >> 3 & 15, number & 7
    value = mantissa / 512 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    return 0.0 if number == 0x7F else value / 2


def block_words(name: str, block: Numbers) -> np.ndarray:
    """The words of a block's values."""
    sub, scale, offset = scales_of(name, block)
    entries = np.array(entries_of(name, block), np.float64).reshape(-1, sub)
    # > a value is `entry * scale + offset`, or `entry * scale` for types without an offset, rounded to binary32
    with np.errstate(all="ignore"):
        products = entries * scale[:, None]
        values = (products + offset[:, None] if name in WITH_OFFSETS else products).astype(np.float32).reshape(-1)
    words = values.view(np.uint32)
    # > A value that is a NaN is the word `7fc00000`.
    return np.where(np.isnan(values), np.uint32(0x7FC00000), words)


IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
E2M1 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)


def entries_of(name: str, block: Numbers) -> list[float]:
    if name.startswith("IQ") and not name.startswith("IQ4"):
        return grid_entries(name, block)
    codes = trits(block["trits"]) if name == "TQ1_0" else block["codes"]
    if name.startswith("Q8"):
        return [signed(c) for c in codes]
    if name.startswith("IQ4"):
        return [IQ4[c] for c in codes]
    if name in ("MXFP4", "NVFP4"):
        return [E2M1[c] for c in codes]
    if name == "Q1_0":
        return [2 * c - 1 for c in codes]
    zero = {"Q4_0": 8, "Q5_0": 16, "Q3_K": 4, "Q6_K": 32, "TQ1_0": 1, "TQ2_0": 1}.get(name, 0)
    return [c - zero for c in codes]


def trits(numbers: list[int]) -> list[int]:
    # > digit `i` of the byte `b` is `((b * 3^i mod 256) * 3) >> 8`. The block has digit 0 of bytes 0 to 31, then digit 1 of these, and so on to digit 4; in the same way five digits of bytes 32 to 47, and then four of bytes 48 to 51.
    places = ((0, 32, 5), (32, 48, 5), (48, 52, 4))
    return [(b * 3**i % 256) * 3 >> 8 for start, stop, n in places for i in range(n) for b in numbers[start:stop]]


def grid_entries(name: str, block: Numbers) -> list[float]:
    grid = GGML["grids"]["IQ1_S" if name == "IQ1_M" else name]
    packed, bits, group = bytes.fromhex(grid["indices"]), grid["bits"], grid["group"]
    found: list[float] = []
    for i, e in enumerate(block["entries"]):
        entry = e % 512 if name == "IQ2_XS" else e + 256 * high_of(name, block.get("high", []), i)
        for k in range(entry * group, (entry + 1) * group):
            byte, digit = divmod(k, 8 // bits)
            found.append(grid["numbers"][packed[byte] >> bits * digit & (1 << bits) - 1])
    if name in ("IQ1_S", "IQ1_M"):
        # > To the numbers of an entry of `IQ1_S` and `IQ1_M` 1/8 is added, or subtracted if bit 15 of that number of `high`, or the upper of those four bits, is 1.
        high = block["high"]
        down = [high[i // 4] >> 15 if name == "IQ1_S" else fours(high)[i] >> 3 for i in range(len(block["entries"]))]
        return [value + (-1 if down[k // 8] else 1) / 8 for k, value in enumerate(found)]
    return [-value if sign_of(name, block, k) else value for k, value in enumerate(found)]


def high_of(name: str, high: list[int], i: int) -> int:
    # > for `IQ2_S` the `i`-th two bits of `high`, and for `IQ3_S` its `i`-th bit, the low ones of a byte first;
    # > for `IQ1_S` bits `3 * (i mod 4)` to `3 * (i mod 4) + 2` of number `floor(i / 4)` in `high`; for `IQ1_M` the low three of the `i`-th four bits of `high`
    match name:
        case "IQ2_S":
            return high[i // 4] >> 2 * (i % 4) & 3
        case "IQ3_S":
            return high[i // 8] >> i % 8 & 1
        case "IQ1_S":
            return high[i // 4] >> 3 * (i % 4) & 7
        case "IQ1_M":
            return fours(high)[i] & 7
    return 0


def sign_of(name: str, block: Numbers, value: int) -> int:
    k, bit = divmod(value, 8)
    if name in ("IQ2_S", "IQ3_S"):
        return block["signs"][k] >> bit & 1
    # > for the `k`-th eight values of a block the bits from `7 * (k mod 4)` on of number `floor(k / 4)` in `signs`, and for `IQ2_XS` the bits from 9 on of number `k` in `entries`.
    seven = block["entries"][k] >> 9 if name == "IQ2_XS" else block["signs"][k // 4] >> 7 * (k % 4) & 127
    return seven >> bit & 1 if bit < 7 else seven.bit_count() % 2


CHECKS = {
    "ggml": check_ggml,
    "raw": check_raw,
    "planes": check_planes,
    "quantized": check_quantized,
    "sparse": check_sparse,
    "lowrank": check_lowrank,
    "tucker": check_tucker,
}
READERS = {"ggml": read_ggml, "raw": read_raw, "planes": read_planes, "quantized": read_quantized}
PRODUCTS = {"lowrank": multiply, "tucker": expand}


# Section 10.1: manifests.


def read_manifest(data: bytes) -> dict[str, Any]:
    """The document, checked by itself."""
    try:
        doc = load(data)
    except Refused as refused:
        raise FormatRefused("manifest-1", str(refused)) from refused
    # > Its member `mzstore_manifest` is the format of manifests, an integer of at least 1
    version = doc.get("mzstore_manifest")
    need(is_integer(version) and version >= 1, "manifest-1", "no format of manifests")
    need(version == 1, "manifest-1", "a newer manifest", UnsupportedRefused)
    if "digest" in doc:
        # > the document ends with `,"digest":"`, 64 lower-case hexadecimal digits and `"}`
        end = len(b',"digest":""}') + 64
        # > They are the SHA-256 of the document that ends with `}` instead.
        digest = hashlib.sha256(data[:-end] + b"}").hexdigest()
        need(data[-end:] == f',"digest":"{digest}"}}'.encode(), "manifest-7", "another digest", CorruptRefused)
    archives, tensors = doc.get("archives"), doc.get("tensors")
    # > `archives` is a list of at most 65,536 entries, `tensors` is an object, and so are `metadata` and `checkpoint` if they are there
    need(isinstance(archives, list) and len(archives) <= 65536, "manifest-2", "no archives")
    need(isinstance(tensors, dict), "manifest-2", "no tensors")
    need(all(isinstance(doc.get(key, {}), dict) for key in ("metadata", "checkpoint")), "manifest-2", "not an object")
    # > 8 to 64 characters out of `0-9a-z-`
    save_id = doc.get("save_id")
    need(isinstance(save_id, str) and re.fullmatch("[0-9a-z-]{8,64}", save_id), "manifest-3", "no save id")
    for i, archive in enumerate(archives):
        check_archive(archive, i)
    for name, tensor in tensors.items():
        check_tiles(name, tensor, len(archives))
    # > An entry of `assets` or `layouts` is as in the root document [asset-1], [asset-2], [layout-1], but the `key` begins with `assets/` in both
    for folder in ("assets", "layouts"):
        for file in read_files(doc.get(folder, []), folder, "assets"):
            archive = file.get("archive")
            # > and `archive`, counted from 0, says in which of `archives` the object of that key is
            need(is_integer(archive) and 0 <= archive < len(archives), "manifest-3", "a file in no archive")
    return doc


def check_archive(archive: object, index: int) -> None:
    need(isinstance(archive, dict), "manifest-3", "an archive that is no object")
    assert isinstance(archive, dict)
    path, nbytes, bases = archive.get("path"), archive.get("nbytes"), archive.get("bases", [])
    need(isinstance(path, str), "manifest-3", "no path")
    # > segments [key-1] joined by `/`, before them at most two `..`
    segments = path.split("/")
    up = 0
    while up < len(segments) and segments[up] == "..":
        up += 1
    need(up <= 2 and segments[up:] and all(is_segment(part) for part in segments[up:]), "manifest-3", "no such path")
    need(is_integer(nbytes) and nbytes >= 0 and is_sha256(archive.get("sha256")), "manifest-3", "no size or digest")
    # > The entries in `bases` are less than the index of the entry that they are in.
    need(is_integers(bases) and all(base < index for base in bases), "manifest-3", "bases that come later")


def check_tiles(name: str, tensor: object, n_archives: int) -> None:
    need(isinstance(tensor, dict) and is_name(name), "manifest-3", "a tensor that is no object")
    assert isinstance(tensor, dict)
    dtype, shape, pieces = tensor.get("dtype"), tensor.get("shape"), tensor.get("pieces")
    need(dtype in DTYPES and is_integers(shape) and isinstance(pieces, list), "manifest-3", "no dtype, shape or pieces")
    taken = np.zeros(shape, np.uint8)
    for piece in pieces:
        need(isinstance(piece, dict), "manifest-3", "a piece that is no object")
        archive = piece.get("archive")
        need(is_integer(archive) and 0 <= archive < n_archives, "manifest-3", "no such archive")
        need(
            is_name(piece.get("name", name))
            and is_sha256(piece.get("sha256", "0" * 64))
            and is_sha256(piece.get("origin", "0" * 64)),
            "manifest-3",
            "name or digest",
        )
        offsets, extents = box_of(piece, shape)
        # > Pieces lie inside of the tensor, no two have a value in common, and together they have all values.
        need(is_integers(offsets) and is_integers(extents), "manifest-3", "no box")
        need(len(offsets) == len(extents) == len(shape), "manifest-3", "a box of other axes")
        need(
            all(o + n <= total for o, n, total in zip(offsets, extents, shape, strict=True)), "manifest-3", "beyond it"
        )
        # > Of a dtype with two values to a byte, they begin at even places on the last axis.
        packed = dtype in ("float4_e2m1fn", "int4", "uint4")
        need(not packed or not shape or offsets[-1] % 2 == 0, "manifest-3", "a piece that begins inside a byte")
        taken[tuple(slice(o, o + n) for o, n in zip(offsets, extents, strict=True))] += 1
    need((taken == 1).all(), "manifest-3", "values that are in no piece, or in two")


def box_of(piece: Mapping[str, Any], shape: list[int]) -> tuple[list[int], list[int]]:
    # > where the box begins and what its extents are; if they are missing, it is all of the tensor
    return piece.get("offsets", [0] * len(shape)), piece.get("shape", shape)


def open_manifest(path: Path) -> dict[str, Tensor]:
    """The tensors of the manifest at ``path``, with all that they are made of, for dtypes of one word to a value."""
    doc = read_manifest(path.read_bytes())
    models = []
    for archive in doc["archives"]:
        file = path.parent / archive["path"]
        data = file.read_bytes()
        # > At each `path` lies an archive (section 5.2) of `nbytes` bytes with this `sha256`.
        need(len(data) == archive["nbytes"], "manifest-4", "an archive of another size", CorruptRefused)
        need(hashlib.sha256(data).hexdigest() == archive["sha256"], "manifest-4", "another archive", CorruptRefused)
        models.append(read(file))
    found = {}
    for name, tensor in doc["tensors"].items():
        words = np.empty(tensor["shape"], word_of(tensor["dtype"]))
        for piece in tensor["pieces"]:
            offsets, extents = box_of(piece, tensor["shape"])
            # > The values of a piece are those of all of the tensor `name` in its archive, which has the dtype of the tensor and the shape of the piece
            inner = models[piece["archive"]].tensors.get(piece.get("name", name))
            good = inner and (inner.dtype, list(inner.shape)) == (tensor["dtype"], extents)
            need(good, "manifest-5", "another tensor", CorruptRefused)
            assert inner is not None
            digest = hashlib.sha256(inner.words.tobytes()).hexdigest()
            need(digest == piece.get("sha256", digest), "manifest-5", "other values", CorruptRefused)
            words[tuple(slice(o, o + n) for o, n in zip(offsets, extents, strict=True))] = inner.words
        found[name] = Tensor(tensor["dtype"], tuple(tensor["shape"]), words)
    return found


# Section 10.2: checkpoints.


def read_state(doc: Any, tensors: Mapping[str, Tensor], depth: int = 0) -> Any:
    """A value of a state; tensors as their words, whoever they were for."""
    # > of at most 100 lists and objects that stand for containers inside of each other
    need(depth <= 101, "checkpoint-3", "nested too deep")
    if doc is None or type(doc) in (bool, int, float, str):
        return doc
    if isinstance(doc, list):
        return [read_state(each, tensors, depth + 1) for each in doc]
    need(isinstance(doc, dict) and doc, "checkpoint-3", "no value")
    kind, value = next(iter(doc.items()))
    beside = {"tensor": {"parameter", "requires_grad"}, "scalar": {"dtype"}}
    beside |= {"ordered": {"metadata"}, "ordered_items": {"metadata"}}
    need(doc.keys() - {kind} <= beside.get(kind, set()), "checkpoint-3", "members of two kinds")
    try:
        if kind in ("dict", "ordered"):
            return {key: read_state(each, tensors, depth + 1) for key, each in value.items()}
        if kind in ("dict_items", "ordered_items"):
            pairs = [(read_state(key, tensors, depth + 1), read_state(each, tensors, depth + 1)) for key, each in value]
            good = all(type(key) in (str, int) for key, _ in pairs) and len(dict(pairs)) == len(pairs)
            need(good, "checkpoint-3", "a key that is none, or twice there")
            return dict(pairs)
        if kind == "tuple":
            return tuple(read_state(value, tensors, depth))
        if kind in ("array", "tensor"):
            return tensors[value].words
        if kind == "long_bytes":
            return tensors[value].words.tobytes()
        if kind == "bytes":
            return base64.b64decode(value, validate=True)
        if kind == "int":
            need(isinstance(value, str), "checkpoint-3", "no digits")
            return int(value)
        if kind == "float":
            return struct.unpack(">d", bytes.fromhex(value))[0]
        if kind == "complex":
            return complex(*struct.unpack(">dd", bytes.fromhex(value)))
        if kind == "scalar":
            return np.frombuffer(bytes.fromhex(value), word_of(doc["dtype"]))[0]
    except (ValueError, TypeError, KeyError, AttributeError, struct.error) as error:
        raise FormatRefused("checkpoint-3", f"no value of a state: {error}") from error
    raise FormatRefused("checkpoint-3", f"no kind of value: {kind}")


def read_checkpoint(root: Path, step: int) -> Any:
    """The state of the checkpoint of this step."""
    # > The manifest of the checkpoint of step n is `manifests/n.json` below the root of the store
    path = root / f"manifests/{step}.json"
    about = read_manifest(path.read_bytes()).get("checkpoint")
    need(about is not None and about.get("step") == step, "checkpoint-1", "not the manifest of this checkpoint")
    assert about is not None
    return read_state(about.get("state"), open_manifest(path))


def main() -> None:
    """List the tensors of a model, each checked against its digest."""
    for name, tensor in read(sys.argv[1]).tensors.items():
        print(tensor.dtype, list(tensor.shape), name)


if __name__ == "__main__":
    main()

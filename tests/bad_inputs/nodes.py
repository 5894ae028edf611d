"""Faults of the documents of tensors."""

import copy
from collections.abc import Callable
from typing import Any

from forge import Forged

from bad_inputs import Case
from bad_inputs.root import MISSING
from mzstore.errors import CorruptError, FormatError, UnsupportedError


def moved(old: str, new: str) -> Callable[[Forged], None]:
    def spoil(forged: Forged) -> None:
        forged.nodes[new] = forged.nodes.pop(old)

    return spoil


def copied(old: str, new: str) -> Callable[[Forged], None]:
    def spoil(forged: Forged) -> None:
        forged.nodes[new] = forged.nodes[old]

    return spoil


def doc(node: str, name: str, to: Any = MISSING) -> Callable[[Forged], None]:
    """A member of the document of ``node``."""
    return lambda forged: _put(forged.nodes[node], name, to)


def about(node: str, name: str, to: Any = MISSING) -> Callable[[Forged], None]:
    """A member of what mzstore says of the tensor at ``node``."""
    return lambda forged: _put(forged.tensor(node), name, to)


def part(node: str, name: str, to: Any = MISSING) -> Callable[[Forged], None]:
    return lambda forged: _put(forged.part(node), name, to)


def chunks(node: str, shape: Any) -> Callable[[Forged], None]:
    return lambda forged: _put(forged.nodes[node]["chunk_grid"]["configuration"], "chunk_shape", shape)


def shapes(node: str, shape: Any, chunk_shape: Any) -> Callable[[Forged], None]:
    """The tensor and its array of another shape, which agree."""

    def spoil(forged: Forged) -> None:
        forged.tensor(node)["shape"] = forged.nodes[node]["shape"] = shape
        chunks(node, chunk_shape)(forged)

    return spoil


def _put(target: dict[str, Any], name: str, to: Any) -> None:
    if to is MISSING:
        del target[name]
    else:
        target[name] = to


def both(*spoils: Callable[[Forged], None]) -> Callable[[Forged], None]:
    def spoil(forged: Forged) -> None:
        for one in spoils:
            one(forged)

    return spoil


def twin(spoil: Callable[[str], Callable[[Forged], None]], node: str) -> Callable[[Forged], None]:
    """A second tensor like that at ``node``, of which only the second one is spoiled."""

    def copy_and_spoil(forged: Forged) -> None:
        forged.nodes["twin"] = copy.deepcopy(forged.nodes[node])
        spoil("twin")(forged)

    return copy_and_spoil


def refers_to_reference(forged: Forged) -> None:
    forged.nodes["tied2"] = copy.deepcopy(forged.nodes["tied"])
    forged.tensor("tied2")["same_as"] = "tied"


BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
ZSTD = {"name": "zstd", "configuration": {"level": 1, "checksum": False}}
CRC = {"name": "crc32c"}
NO_KEY = "is no key of a node"
NO_NAME = "'name' is not a string, or 'sha256' not 64 hexadecimal digits"
NO_INTEGERS = "is not a list of integers >= 0"
NO_CODECS = "are not bytes, perhaps zstd, and crc32c; upgrade"
NOT_EQUAL = "which is not a stored tensor equal to it"
MISFIT = "an array of"

CASES = [
    # Names of nodes
    Case("node ..", moved("raw", ".."), FormatError, NO_KEY),
    Case("node of no name", moved("raw", ""), FormatError, NO_KEY),
    Case("node absolute", moved("raw", "/raw"), FormatError, NO_KEY),
    Case("node of three levels", moved("raw", "a/b/c"), FormatError, NO_KEY),
    Case("node below ..", copied("raw", "ranked/.."), FormatError, NO_KEY),
    Case("node with NUL", moved("raw", "r\0w"), FormatError, NO_KEY),
    Case("node with a backslash", moved("raw", "..\\raw"), FormatError, NO_KEY),
    Case("node of 201 characters", moved("raw", "r" * 201), FormatError, NO_KEY),
    Case("node of 1 MB", moved("raw", "r" * 1_000_000), FormatError, NO_KEY),
    Case("node not ASCII", moved("raw", "räw"), FormatError, NO_KEY),
    Case("node ends in a line break", moved("raw", "raw\n"), FormatError, NO_KEY),
    Case("node called assets", moved("raw", "assets"), FormatError, NO_KEY),
    Case("node called layouts", moved("raw", "layouts"), FormatError, NO_KEY),
    Case("node called zarr.json", moved("raw", "zarr.json"), FormatError, NO_KEY),
    Case("node called Assets", moved("raw", "Assets"), FormatError, NO_KEY),
    Case("two nodes but for their case", copied("raw", "RAW"), FormatError, "differ only in upper and lower case"),
    Case("component without a parent", copied("raw", "rankled/planes"), FormatError, "has no parent"),
    Case("two nodes of one tensor", both(copied("raw", "more"), about("raw", "name", "raw")), FormatError, "two nodes"),
    Case("document a list", lambda f: f.nodes.update(raw=[]), FormatError, "document of 'raw' is not an object"),
    Case("document null", lambda f: f.nodes.update(raw=None), FormatError, "document of 'raw' is not an object"),
    Case("document empty", lambda f: f.nodes.update(raw={}), FormatError, "not a Zarr v3 group"),
    # Tensors
    Case("no mzstore", doc("raw", "attributes", {}), FormatError, "not a Zarr v3 array with attributes.mzstore"),
    Case("node type", doc("raw", "node_type", "file"), FormatError, "not a Zarr v3 group"),
    Case("node type a list", doc("raw", "node_type", ["array"]), FormatError, "not a Zarr v3 group"),
    Case("name a number", about("raw", "name", 3), FormatError, NO_NAME),
    Case("name a lone surrogate", about("raw", "name", "a\ud800"), FormatError, "lone surrogate"),
    Case("name of 1 MB", about("raw", "name", "n" * 1_000_000), FormatError, "has 1000000 bytes, at most 4096"),
    Case("no digest", about("raw", "sha256"), FormatError, NO_NAME),
    Case("digest short", about("raw", "sha256", "00"), FormatError, NO_NAME),
    Case("digest with a line break", about("raw", "sha256", "0" * 63 + "\n"), FormatError, NO_NAME),
    Case("digest a number", about("raw", "sha256", 3), FormatError, NO_NAME),
    Case("no dtype", about("raw", "dtype"), UnsupportedError, "dtype None is unknown; upgrade"),
    Case("dtype unknown", about("raw", "dtype", "posit8"), UnsupportedError, "dtype 'posit8' is unknown; upgrade"),
    Case("dtype a list", about("raw", "dtype", ["uint8"]), UnsupportedError, "is unknown; upgrade"),
    Case("dtype of other size", about("raw", "dtype", "int16"), FormatError, "stored as int16, not as uint8"),
    Case("dtype of other kind", about("raw", "dtype", "int8"), FormatError, "stored as int8, not as uint8"),
    Case("dtype of planes", about("planes", "dtype", "float32"), FormatError, MISFIT),
    Case("dtype packed", about("raw", "dtype", "uint4"), FormatError, r"does not hold the words of shape \(5,\)"),
    Case("dtype complex", about("raw", "dtype", "complex64"), FormatError, "stored as float32, not as uint8"),
    Case("no shape", about("raw", "shape"), FormatError, NO_INTEGERS),
    Case("shape a number", about("raw", "shape", 10), FormatError, NO_INTEGERS),
    Case("shape negative", about("raw", "shape", [-10]), FormatError, NO_INTEGERS),
    Case("shape 10.0", about("raw", "shape", [10.0]), FormatError, NO_INTEGERS),
    Case("shape true", about("raw", "shape", [True]), FormatError, NO_INTEGERS),
    Case("shape '10'", about("raw", "shape", ["10"]), FormatError, NO_INTEGERS),
    Case("shape null", about("raw", "shape", [None]), FormatError, NO_INTEGERS),
    Case("shape nested", about("raw", "shape", [[10]]), FormatError, NO_INTEGERS),
    Case("shape 2**63", shapes("raw", [2**63], [4]), FormatError, "larger than 2\\*\\*62 bytes"),
    Case("shape overflows", shapes("raw", [2**40, 2**40], [4, 4]), FormatError, "larger than 2\\*\\*62 bytes"),
    Case("empty but overflows", shapes("raw", [0, 2**63], [1, 4]), FormatError, "larger than 2\\*\\*62 bytes"),
    Case("a number of 4,000 digits", shapes("raw", [10**4000], [4]), FormatError, "larger than 2\\*\\*62 bytes"),
    Case("33 dimensions", shapes("raw", [1] * 33, [1] * 33), FormatError, "33 dimensions, at most 32"),
    Case("100,000 dimensions", about("raw", "shape", [1] * 100_000), FormatError, "100000 dimensions, at most 32"),
    Case("tensor larger than its array", about("raw", "shape", [11]), FormatError, "does not hold the words"),
    Case("tensor of other rank", about("raw", "shape", [2, 5]), FormatError, "does not hold the words"),
    Case("empty tensor with an array", about("constant", "shape", [0, 3]), FormatError, "does not hold the words"),
    Case("no parts", about("raw", "parts"), UnsupportedError, "parts None are unknown; upgrade"),
    Case("parts empty", about("raw", "parts", []), UnsupportedError, "are unknown; upgrade"),
    Case("parts an object", about("raw", "parts", {"encoding": "raw"}), UnsupportedError, "are unknown; upgrade"),
    Case("two parts", about("raw", "parts", [{"encoding": "raw"}] * 2), FormatError, "'raw' is one array"),
    Case("part a string", about("raw", "parts", ["raw"]), UnsupportedError, "are unknown; upgrade"),
    Case("another encoding", part("raw", "encoding", "trellis"), UnsupportedError, "are unknown; upgrade"),
    Case("planes as raw", part("planes", "encoding", "raw"), FormatError, "stored as uint16, not as uint8"),
    Case("raw as planes", part("raw", "encoding", "planes"), FormatError, "'top_bits' is not an integer"),
    # Second tensors whose documents Python takes for equal to those of the first
    Case("like another, extent 4.0", twin(lambda node: chunks(node, [4.0]), "raw"), FormatError, NO_INTEGERS),
    Case("like another, extent true", twin(lambda node: chunks(node, [True, 300]), "zstd"), FormatError, NO_INTEGERS),
    Case(
        "like another, rotate 1",
        twin(lambda node: part(node, "rotate", 1), "planes"),
        FormatError,
        "'rotate' is neither",
    ),
    # Narrow
    Case("narrow as wider", part("narrow", "dtype", "float64"), FormatError, "cannot be stored as 'float64'"),
    Case("narrow as integers", part("narrow", "dtype", "uint16"), FormatError, "cannot be stored as 'uint16'"),
    Case("narrow as a list", part("narrow", "dtype", ["bfloat16"]), FormatError, "cannot be stored as"),
    Case("narrow of what is none", part("raw", "dtype", "int8"), FormatError, "cannot be stored as 'int8'"),
    # References
    Case("refers to nothing", about("tied", "same_as", "row"), FormatError, NOT_EQUAL),
    Case("refers to no string", about("tied", "same_as", 3), FormatError, "or is not a string"),
    Case("refers to itself", about("tied", "same_as", "tied"), FormatError, NOT_EQUAL),
    Case("refers to a reference", refers_to_reference, FormatError, NOT_EQUAL),
    Case("refers to a component", about("tied", "same_as", "ranked/values"), FormatError, NOT_EQUAL),
    Case("refers to another shape", about("tied", "shape", [9, 1]), FormatError, NOT_EQUAL),
    Case("refers to another dtype", about("tied", "dtype", "uint32"), FormatError, NOT_EQUAL),
    Case("refers to another digest", about("tied", "sha256", "0" * 64), FormatError, NOT_EQUAL),
    Case("refers and has parts", about("tied", "parts", [{"encoding": "raw"}]), FormatError, "has parts or arrays"),
    Case("refers and is an array", about("raw", "same_as", "zstd"), FormatError, "has parts or arrays"),
    Case("refers and has a child", copied("raw", "tied/values"), FormatError, "has parts or arrays"),
    # Arrays
    Case("array of Zarr v2", doc("ranked", "zarr_format", 2), FormatError, "not a Zarr v3 array"),
    Case("no chunk keys", doc("raw", "chunk_key_encoding"), FormatError, "chunk_key_encoding is None"),
    Case("chunk keys of v2", doc("raw", "chunk_key_encoding", {"name": "v2"}), FormatError, "chunk_key_encoding is"),
    Case(
        "chunk keys with dots",
        doc("raw", "chunk_key_encoding", {"name": "default", "configuration": {"separator": "."}}),
        FormatError,
        "chunk_key_encoding is",
    ),
    Case("a member to be understood", doc("raw", "storage_transformers", [{}]), UnsupportedError, "unknown member"),
    Case("array without shape", doc("raw", "shape"), FormatError, NO_INTEGERS),
    Case("array of negative shape", doc("raw", "shape", [-10]), FormatError, NO_INTEGERS),
    Case("array of 100 dimensions", doc("raw", "shape", [1] * 100), FormatError, "100 dimensions, at most 34"),
    Case("array of 2**63", doc("raw", "shape", [2**63]), FormatError, "larger than 2\\*\\*62 bytes"),
    Case("data type unknown", doc("raw", "data_type", "float8"), FormatError, "data type 'float8' is none of"),
    Case("data type bool", doc("raw", "data_type", "bool"), FormatError, "data type 'bool' is none of"),
    Case("data type an object", doc("raw", "data_type", {"name": "uint8"}), FormatError, "not a string"),
    Case("no chunk grid", doc("raw", "chunk_grid"), FormatError, "chunk_grid is None, not a regular one"),
    Case("rectangular chunks", doc("raw", "chunk_grid", {"name": "rectangular"}), FormatError, "not a regular one"),
    Case("chunks of nothing", chunks("raw", [0]), FormatError, r"chunks of \(0,\) do not fit"),
    Case("chunks negative", chunks("raw", [-4]), FormatError, NO_INTEGERS),
    Case("chunks 4.0", chunks("raw", [4.0]), FormatError, NO_INTEGERS),
    Case("chunks of other rank", chunks("raw", [4, 1]), FormatError, r"chunks of \(4, 1\) do not fit"),
    Case("chunks of 64 MiB and 1", chunks("raw", [(64 << 20) + 1]), FormatError, "a chunk of 67108865 bytes, at most"),
    Case("chunks of 2**62", chunks("raw", [2**62]), FormatError, "a chunk of 4611686018427387904 bytes, at most"),
    Case("chunks that overflow", shapes("raw", [4, 4], [2**32, 2**32]), FormatError, "a chunk of 18446744073709551616"),
    Case("no codecs", doc("raw", "codecs"), UnsupportedError, NO_CODECS),
    Case("codecs empty", doc("raw", "codecs", []), UnsupportedError, NO_CODECS),
    Case("no checksum", doc("raw", "codecs", [BYTES]), UnsupportedError, NO_CODECS),
    Case(
        "big endian",
        doc("raw", "codecs", [{**BYTES, "configuration": {"endian": "big"}}, CRC]),
        UnsupportedError,
        NO_CODECS,
    ),
    Case("checksum first", doc("raw", "codecs", [BYTES, CRC, ZSTD]), UnsupportedError, NO_CODECS),
    Case("zstd twice", doc("zstd", "codecs", [BYTES, ZSTD, ZSTD, CRC]), UnsupportedError, NO_CODECS),
    Case("checksum twice", doc("raw", "codecs", [BYTES, CRC, CRC]), UnsupportedError, NO_CODECS),
    Case("1,000 codecs", doc("zstd", "codecs", [BYTES, *[ZSTD] * 1000, CRC]), UnsupportedError, NO_CODECS),
    Case("zstd without settings", doc("zstd", "codecs", [BYTES, {"name": "zstd"}, CRC]), UnsupportedError, NO_CODECS),
    Case("another codec", doc("raw", "codecs", [BYTES, {"name": "blosc"}, CRC]), UnsupportedError, NO_CODECS),
    Case("shards", doc("raw", "codecs", [{"name": "sharding_indexed"}]), UnsupportedError, NO_CODECS),
    # Planes
    Case("top_bits null", part("planes", "top_bits", None), FormatError, "'top_bits' is not an integer"),
    Case("top_bits 0", part("planes", "top_bits", 0), FormatError, "a top field of 0 bits does not fit"),
    Case("top_bits -1", part("planes", "top_bits", -1), FormatError, "a top field of -1 bits does not fit"),
    Case("top_bits 17", part("symbols", "top_bits", 17), FormatError, "a top field of 17 bits does not fit"),
    Case("top_bits 2**62", part("symbols", "top_bits", 2**62), FormatError, "does not fit a word of 32"),
    Case("top_bits true", part("planes", "top_bits", True), FormatError, "'top_bits' is not an integer"),
    Case("top_bits 8.0", part("planes", "top_bits", 8.0), FormatError, "'top_bits' is not an integer"),
    Case("top_bits 9 without symbols", part("planes", "top_bits", 9), FormatError, "of 9 bits, where only 8 will do"),
    Case("top_bits 7", part("planes", "top_bits", 7), FormatError, "of 7 bits, where only 8 will do"),
    Case("top_bits 9 with ranks", part("ranked", "top_bits", 9), FormatError, "of 9 bits, where only 8 will do"),
    Case("no rotate", part("planes", "rotate"), FormatError, "'rotate' is neither true nor false"),
    Case("rotate 1", part("planes", "rotate", 1), FormatError, "'rotate' is neither true nor false"),
    Case("symbols a string", part("symbols", "symbols", "454"), FormatError, "not a list"),
    Case("symbols numbers", part("symbols", "symbols", [454, 35]), FormatError, NO_INTEGERS),
    Case("symbols triples", part("symbols", "symbols", [[454, 35, 1]]), FormatError, "not a list of pairs"),
    Case("symbols negative", part("symbols", "symbols", [[-1, 35]]), FormatError, NO_INTEGERS),
    Case("no symbols", part("symbols", "symbols", []), FormatError, "0 symbols up to 0"),
    Case("a run of none", part("symbols", "symbols", [[454, 0]]), FormatError, "not ascending and disjoint"),
    Case("runs overlap", part("symbols", "symbols", [[454, 35], [460, 1]]), FormatError, "not ascending and disjoint"),
    Case("runs descend", part("symbols", "symbols", [[454, 35], [1, 1]]), FormatError, "not ascending and disjoint"),
    Case("257 symbols", part("symbols", "symbols", [[0, 257]]), FormatError, "257 symbols up to 257: at most 256"),
    Case("2**62 symbols", part("symbols", "symbols", [[0, 2**62]]), FormatError, "symbols up to .*: at most 256"),
    Case("symbols beyond", part("symbols", "symbols", [[1020, 5]]), FormatError, "5 symbols up to 1025"),
    Case("ranks and symbols", part("ranked", "symbols", [[112, 16]]), FormatError, "both symbols and ranks"),
    Case("ranks from 241", part("ranked", "ranks", 241), FormatError, "ranks from 241 on, where 0 to 240 will do"),
    Case("ranks from -1", part("ranked", "ranks", -1), FormatError, NO_INTEGERS),
    Case("ranks null", part("ranked", "ranks", None), FormatError, NO_INTEGERS),
    Case("ranks a list", part("ranked", "ranks", [112]), FormatError, NO_INTEGERS),
    Case("ranks without chunks", part("ranked", "chunk_shape"), FormatError, NO_INTEGERS),
    Case("ranks of chunks of 0", part("ranked", "chunk_shape", [0, 6]), FormatError, "chunks of"),
    Case("ranks of other chunks", part("ranked", "chunk_shape", [3, 6]), FormatError, "chunks of 22 bytes"),
    Case("ranks of more chunks", part("ranked", "chunk_shape", [1, 6]), FormatError, "chunks of 22 bytes|an array of"),
    Case("ranks of chunks of 3 axes", part("ranked", "chunk_shape", [2, 6, 1]), FormatError, "do not fit"),
    Case("ranks of chunks of 2**62", part("ranked", "chunk_shape", [2**62, 6]), FormatError, "more than 16777215"),
    Case(
        "group without arrays",
        lambda f: f.nodes.update({"planes": _group(f, "planes")}),
        FormatError,
        "a group with less than two",
    ),
    Case("array with a child", copied("raw", "raw/values"), FormatError, "an array with arrays below it"),
    Case("raw in a group", lambda f: _split(f, "raw"), FormatError, "'raw' is one array"),
    Case("planes in a group", lambda f: _split(f, "planes"), FormatError, "not one array"),
    Case(
        "room for 3 bytes of an escape",
        both(doc("ranked", "shape", [2, 1, 21]), chunks("ranked", [1, 1, 21])),
        FormatError,
        "chunks of 21 bytes",
    ),
    Case(
        "room for no low plane",
        both(doc("ranked", "shape", [2, 1, 6]), chunks("ranked", [1, 1, 6])),
        FormatError,
        "chunks of 6 bytes",
    ),
    Case("ranks of other shape", doc("ranked", "shape", [3, 1, 22]), FormatError, "an array of"),
    Case("ranks in pieces", chunks("ranked", [1, 1, 11]), FormatError, "an array of"),
    Case("ranks of other type", doc("ranked", "data_type", "int8"), FormatError, "an array of"),
    Case(
        "ranks of no dimension",
        both(doc("ranked", "shape", []), chunks("ranked", [])),
        FormatError,
        "chunks of 0 bytes",
    ),
    Case("planes of other shape", doc("planes", "shape", [3, 4, 6]), FormatError, MISFIT),
    Case("planes apart", chunks("planes", [1, 2, 6]), FormatError, MISFIT),
    Case("planes of no dimension", both(doc("planes", "shape", []), chunks("planes", [])), FormatError, "do not fit"),
    # What no chunk can be there for
    Case("one chunk more", shapes("raw", [13], [4]), CorruptError, "the chunk 'raw/c/3' is missing"),
    Case("a million chunks", shapes("raw", [10**6], [1]), CorruptError, "has 1000000 chunks|1 bytes, 4 are stored"),
]


def _group(forged: Forged, node: str) -> dict[str, Any]:
    attributes = forged.nodes[node]["attributes"]
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def _split(forged: Forged, node: str) -> None:
    """Two arrays below a group, where one array is wanted."""
    array = {name: value for name, value in forged.nodes[node].items() if name != "attributes"}
    forged.nodes[node] = _group(forged, node)
    forged.nodes.update({f"{node}/one": array, f"{node}/two": array})

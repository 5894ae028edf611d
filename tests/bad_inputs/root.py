"""Faults of the root document that are sound JSON."""

from collections.abc import Callable
from typing import Any

from forge import Forged

from bad_inputs import Case
from mzstore.errors import CorruptError, FormatError, UnsupportedError

MISSING: Any = object()


def put(*path: str, to: Any = MISSING) -> Callable[[Forged], None]:
    """The member of the root document at ``path`` set, or removed."""

    def spoil(forged: Forged) -> None:
        doc = forged.root
        for name in path[:-1]:
            doc = doc[name]
        if to is MISSING:
            del doc[path[-1]]
        else:
            doc[path[-1]] = to

    return spoil


def about(name: str, to: Any = MISSING) -> Callable[[Forged], None]:
    return put("attributes", "mzstore", name, to=to)


def asset(**members: Any) -> Callable[[Forged], None]:
    def spoil(forged: Forged) -> None:
        doc = forged.about["assets"][0]
        doc.update(members)
        for name in [name for name, value in members.items() if value is MISSING]:
            del doc[name]

    return spoil


def second_asset(**members: Any) -> Callable[[Forged], None]:
    def spoil(forged: Forged) -> None:
        forged.about["assets"].append(forged.about["assets"][0] | members)
        forged.payloads["assets/other.json"] = forged.payloads["assets/config.json"]

    return spoil


def content(data: bytes | None) -> Callable[[Forged], None]:
    def spoil(forged: Forged) -> None:
        del forged.payloads["assets/config.json"]
        if data is not None:
            forged.payloads["assets/config.json"] = data

    return spoil


def layout(**members: Any) -> Callable[[Forged], None]:
    def spoil(forged: Forged) -> None:
        forged.about["layouts"] = [{"path": "m.safetensors", "key": "layouts/0", "format": "safetensors"} | members]

    return spoil


NO_GROUP = "not a Zarr v3 group with attributes.mzstore"
NO_NUMBER = "the format number is .*, not an integer >= 1"
NO_PATH = "is not a relative path that every system can write"
NO_ENTRY = "has no path, or no key below"

CASES = [
    Case("Zarr v2", put("zarr_format", to=2), FormatError, NO_GROUP),
    Case("an array as root", put("node_type", to="array"), FormatError, NO_GROUP),
    Case("no node type", put("node_type"), FormatError, NO_GROUP),
    Case("no attributes", put("attributes"), FormatError, NO_GROUP),
    Case("another group", put("attributes", "mzstore"), FormatError, NO_GROUP),
    Case("mzstore a list", put("attributes", "mzstore", to=[]), FormatError, NO_GROUP),
    Case("no format", about("format"), FormatError, NO_NUMBER),
    Case("format 0", about("format", 0), FormatError, NO_NUMBER),
    Case("format -1", about("format", -1), FormatError, NO_NUMBER),
    Case("format true", about("format", True), FormatError, NO_NUMBER),
    Case("format 1.0", about("format", 1.0), FormatError, NO_NUMBER),
    Case("format '1'", about("format", "1"), FormatError, NO_NUMBER),
    Case("format 2", about("format", 2), UnsupportedError, "written in format 2, .*; upgrade mzstore"),
    Case("format 2**70", about("format", 2**70), UnsupportedError, "upgrade mzstore"),
    Case("no features", about("features"), FormatError, "'features' is not a list of strings"),
    Case("features a string", about("features", "planes"), FormatError, "'features' is not a list of strings"),
    Case("features of numbers", about("features", [1]), FormatError, "'features' is not a list of strings"),
    Case("features of lists", about("features", [["planes"]]), FormatError, "'features' is not a list of strings"),
    Case("a new feature", about("features", ["planes", "trellis"]), UnsupportedError, "needs trellis, .*; upgrade"),
    Case(
        "a feature that is not listed", about("features", []), FormatError, "'lowrank' is used but is not in 'features'"
    ),
    Case("metadata a list", about("metadata", [1]), FormatError, "'metadata' is not an object"),
    Case("no consolidated metadata", put("consolidated_metadata"), FormatError, "no inline consolidated metadata"),
    Case("null", put("consolidated_metadata", to=None), FormatError, "no inline consolidated metadata"),
    Case("kind", put("consolidated_metadata", "kind", to="far"), FormatError, "no inline consolidated metadata"),
    Case(
        "must understand",
        put("consolidated_metadata", "must_understand", to=True),
        FormatError,
        "no inline consolidated metadata",
    ),
    Case("nodes a list", put("consolidated_metadata", "metadata", to=[]), FormatError, "no inline consolidated"),
    Case("assets an object", about("assets", {}), FormatError, "'assets' is not a list"),
    Case("an asset a string", about("assets", ["config.json"]), FormatError, NO_ENTRY),
    Case("asset without path", asset(path=MISSING), FormatError, NO_ENTRY),
    Case("asset path a number", asset(path=3), FormatError, NO_ENTRY),
    Case("asset without key", asset(key=MISSING), FormatError, NO_ENTRY),
    Case("asset key elsewhere", asset(key="raw/c/0"), FormatError, NO_ENTRY),
    Case("asset key the folder", asset(key="assets/"), FormatError, "'assets/' is no key"),
    Case("asset key goes up", asset(key="assets/../raw/c/0"), FormatError, "is no key"),
    Case("asset key with a backslash", asset(key="assets/..\\x"), FormatError, "is no key"),
    Case("asset path goes up", asset(path="../config.json"), FormatError, NO_PATH),
    Case("asset path goes up inside", asset(path="a/../../config.json"), FormatError, NO_PATH),
    Case("asset path absolute", asset(path="/etc/passwd"), FormatError, NO_PATH),
    Case("asset path of Windows", asset(path="a\\b"), FormatError, NO_PATH),
    Case("asset path with a drive", asset(path="C:/a"), FormatError, NO_PATH),
    Case("asset path empty", asset(path=""), FormatError, NO_PATH),
    Case("asset path a dot", asset(path="."), FormatError, NO_PATH),
    Case("asset path of two slashes", asset(path="a//b"), FormatError, NO_PATH),
    Case("asset path a folder", asset(path="a/"), FormatError, NO_PATH),
    Case("asset path with NUL", asset(path="a\0b"), FormatError, NO_PATH),
    Case("asset path with a line break", asset(path="a\nb"), FormatError, NO_PATH),
    Case("asset path ends in a space", asset(path="a "), FormatError, NO_PATH),
    Case("asset path ends in a dot", asset(path="a."), FormatError, NO_PATH),
    Case("asset path a lone surrogate", asset(path="a\ud800"), FormatError, NO_PATH),
    Case("asset path of 1 MB", asset(path="a" * 1_000_000), FormatError, NO_PATH),
    Case("two assets of one path", second_asset(key="assets/other.json"), FormatError, "occurs twice"),
    Case(
        "two assets of one path but for its case",
        second_asset(key="assets/other.json", path="CONFIG.json"),
        FormatError,
        "occurs twice",
    ),
    Case("two assets of one key", second_asset(path="other.json"), FormatError, "occurs twice"),
    Case(
        "an asset below another",
        second_asset(key="assets/other.json", path="config.json/more"),
        FormatError,
        "'config.json/more' lies below a file",
    ),
    Case("asset of negative size", asset(nbytes=-1), FormatError, "has no size or no sha256"),
    Case("asset size true", asset(nbytes=True), FormatError, "has no size or no sha256"),
    Case("asset size 13.0", asset(nbytes=13.0), FormatError, "has no size or no sha256"),
    Case("asset without size", asset(nbytes=MISSING), FormatError, "has no size or no sha256"),
    Case("asset without digest", asset(sha256=MISSING), FormatError, "has no size or no sha256"),
    Case("asset digest short", asset(sha256="ab"), FormatError, "has no size or no sha256"),
    Case("asset digest in capitals", asset(sha256="AB" * 32), FormatError, "has no size or no sha256"),
    Case("asset size wrong", asset(nbytes=2**62), CorruptError, r"has 4611686018427387904 bytes, 13 are stored"),
    Case(
        "asset digest wrong", asset(sha256="ab" * 32), CorruptError, "the digest of asset 'config.json' does not hold"
    ),
    Case("asset missing", content(None), CorruptError, "has 13 bytes, 0 are stored"),
    Case("asset empty", content(b""), CorruptError, "has 13 bytes, 0 are stored"),
    Case("asset longer", content(b'{"layers": 1} '), CorruptError, "has 13 bytes, 14 are stored"),
    Case("asset another", content(b'{"layers": 2}'), CorruptError, "the digest of asset 'config.json' does not hold"),
    Case("layouts a string", about("layouts", "x"), FormatError, "'layouts' is not a list"),
    Case("layout of a new format", layout(format="gguf"), UnsupportedError, "layout format 'gguf' is unknown; upgrade"),
    Case("layout format a list", layout(format=[]), UnsupportedError, r"layout format \[\] is unknown; upgrade"),
    Case("layout path goes up", layout(path="../m"), FormatError, NO_PATH),
    Case("layout key elsewhere", layout(key="assets/config.json"), FormatError, NO_ENTRY),
]

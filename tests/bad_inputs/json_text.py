"""Documents that are no JSON, or JSON that two readers would understand differently."""

from collections.abc import Callable

from forge import ROOT, Forged

from bad_inputs import Case
from mzstore.documents import dump
from mzstore.errors import FormatError


def text(data: bytes) -> Callable[[Forged], None]:
    def spoil(forged: Forged) -> None:
        forged.documents[ROOT] = data

    return spoil


def replaced(old: bytes, new: bytes) -> Callable[[Forged], None]:
    def spoil(forged: Forged) -> None:
        data = dump(forged.root)
        assert old in data
        forged.documents[ROOT] = data.replace(old, new, 1)

    return spoil


FORMAT = b'"format":1'
CASES = [
    Case("empty", text(b""), FormatError, "not JSON"),
    Case("a byte order mark", replaced(b"{", b"\xef\xbb\xbf{"), FormatError, "not JSON"),
    Case("UTF-16", text('{"zarr_format": 3}'.encode("utf-16")), FormatError, "not UTF-8"),
    Case("Latin-1", replaced(b'"by forge"', b'"\xe9"'), FormatError, "not UTF-8"),
    Case("cut", text(b'{"zarr_format": 3,'), FormatError, "not JSON"),
    Case("text behind it", replaced(b"{", b"{}{"), FormatError, "not JSON"),
    Case("a list", text(b"[]"), FormatError, "not a JSON object"),
    Case("a number", text(b"3"), FormatError, "not a JSON object"),
    Case("null", text(b"null"), FormatError, "not a JSON object"),
    Case("NaN", replaced(b'"by forge"', b"NaN"), FormatError, "NaN is no number of JSON"),
    Case("Infinity", replaced(b'"by forge"', b"-Infinity"), FormatError, "-Infinity is no number of JSON"),
    Case("1e400", replaced(b'"by forge"', b"1e400"), FormatError, "1e400 is no number of JSON"),
    Case("10,000 digits", replaced(b'"by forge"', b"1" * 10_000), FormatError, "not JSON"),
    Case("a trailing comma", replaced(FORMAT, FORMAT + b",}"), FormatError, "not JSON"),
    Case("a comment", replaced(b"{", b"{/* */"), FormatError, "not JSON"),
    Case("single quotes", replaced(b'"by forge"', b"'by forge'"), FormatError, "not JSON"),
    Case("a control character", replaced(b"by forge", b"by\nforge"), FormatError, "not JSON"),
    Case("10,000 lists deep", replaced(b'"by forge"', b"[" * 10_000 + b"]" * 10_000), FormatError, "not JSON"),
    Case("100,000 lists open", text(b"[" * 100_000), FormatError, "not JSON"),
    Case("100,000 objects deep", text(b'{"a":' * 100_000), FormatError, "not JSON"),
    Case("format twice", replaced(FORMAT, FORMAT + b"," + FORMAT), FormatError, "a member occurs twice"),
    Case("root member twice", replaced(b"{", b'{"zarr_format":3,'), FormatError, "a member occurs twice"),
    Case("a node twice", replaced(b'"raw":{', b'"raw":{},"raw":{'), FormatError, "a member occurs twice"),
    Case("dtype twice", replaced(b'"dtype":', b'"dtype":"int8","dtype":'), FormatError, "a member occurs twice"),
    Case("twice by escapes", replaced(FORMAT, rb'"f\u006frmat":1,' + FORMAT), FormatError, "a member occurs twice"),
    Case("twice in metadata", replaced(b'"made"', b'"made":1,"made"'), FormatError, "a member occurs twice"),
]

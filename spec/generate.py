"""Write spec/vectors: the examples of FORMAT.md, and the cases added here. ``python -m spec.generate`` after a change.

Nothing here comes from mzstore, so that a fault of mzstore cannot be in its own vectors.
"""

import copy
import hashlib
import itertools
import json
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from spec.reference import DTYPES, crc32c

ROOT = Path(__file__).parent.parent
VECTORS = ROOT / "spec" / "vectors"
Json = dict[str, Any]

ONE = "803f 00c0 003f"  # the words 3f80, c000, 3f00: the bfloat16 values 1, -2, 0.5


def unhex(text: str) -> bytes:
    return bytes.fromhex(text)


def seal(body: bytes) -> bytes:
    return body + struct.pack("<I", crc32c(body))


# Documents.


def array(data_type: str, shape: list[int], chunk: list[int], zstd: bool = False, about: Json | None = None) -> Json:
    codecs: list[Json] = [{"name": "bytes", "configuration": {"endian": "little"}}]
    codecs += [{"name": "zstd", "configuration": {"level": 1, "checksum": False}}] if zstd else []
    doc: Json = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": data_type,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
        "chunk_key_encoding": {"name": "default"},
        "fill_value": 0,
        "codecs": [*codecs, {"name": "crc32c"}],
    }
    return doc | ({"attributes": {"mzstore": about}} if about else {})


def group(about: Json) -> Json:
    return {"zarr_format": 3, "node_type": "group", "attributes": {"mzstore": about}}


def root(nodes: Json, **about: Any) -> Json:
    doc = group({"format": 1, "features": ["planes"]} | about)
    doc["consolidated_metadata"] = {"kind": "inline", "must_understand": False, "metadata": nodes}
    return doc


# A vector in short: one tensor "w", as in FORMAT.md.


def short(
    clauses: list[str],
    *,
    dtype: str,
    shape: list[int],
    arrays: dict[str, list[Any]],
    part: Json | None = None,
    parts: list[Json] | None = None,
    bodies: dict[str, str] | None = None,
    payloads: dict[str, str] | None = None,
    words: str = "",
    error: str = "",
) -> Json:
    parts = [part] if part else parts or []
    about = {
        "dtype": dtype,
        "shape": shape,
        "sha256": hashlib.sha256(unhex(words)).hexdigest(),
        "parts": parts,
    }
    if "" in arrays:
        nodes = {"w": array(*arrays[""], about=about)}
    else:
        nodes = {"w": group(about)} | {f"w/{name}": array(*found) for name, found in arrays.items()}
    objects = {f"w/{key}": seal(unhex(body)).hex() for key, body in (bodies or {}).items()}
    objects |= {f"w/{key}": unhex(payload).hex() for key, payload in (payloads or {}).items()}
    features = sorted({"planes", *(str(part.get("encoding")) for part in parts)} - {"raw"})
    vector = {"clauses": clauses, "root": root(nodes, features=features), "objects": objects}
    if error:
        return vector | {"error": error}
    return vector | {"tensors": {"w": {"dtype": dtype, "shape": shape, "words": unhex(words).hex()}}}


def from_page() -> Iterator[tuple[str, Json]]:
    """The examples of FORMAT.md."""
    for name, text in re.findall(r"```vector (\S+)\n(.*?)\n```", (ROOT / "FORMAT.md").read_text(), re.S):
        v = json.loads(text.replace("\n", " "))
        yield name, v | {"archive": unhex(v["archive"]).hex()} if "archive" in v else short(v.pop("clauses"), **v)


# Section 4.


def word_vectors() -> Iterator[tuple[str, Json]]:
    raw = {"encoding": "raw"}
    for dtype, (bits, data_type) in DTYPES.items():
        shape, words = ([2], [2, 2]) if dtype.startswith("complex") else ([2], [2])
        if dtype in ("int4", "uint4", "float4_e2m1fn"):
            shape = [4]
        count = 4 if dtype.startswith("complex") else 2
        data = bytes(17 * i + 1 & 255 for i in range(count * bits // 8)).hex()
        key = "c/0/0" if len(words) == 2 else "c/0"
        yield (
            f"word/{dtype}-raw",
            short(
                ["word-1", "word-2"], dtype=dtype, shape=shape, part=raw, arrays={"": [data_type, words, words]},
                bodies={key: data}, words=data,
            ),
        )  # fmt: skip
    yield (
        "word/packed-scalar",
        short(["word-3"], dtype="uint4", shape=[], part=raw, arrays={"": ["uint8", [], []]}, bodies={"c": "05"}, words="05"),
    )  # fmt: skip
    yield (
        "word/packed-unused-nibble",
        short(["word-3"], dtype="uint4", shape=[1], part=raw, arrays={"": ["uint8", [1], [1]]}, bodies={"c/0": "f5"}, words="f5"),
    )  # fmt: skip
    yield (
        "word/packed-not-halved",
        short(
            ["word-3", "raw-1"], dtype="uint4", shape=[2], part=raw, arrays={"": ["uint8", [2], [2]]}, error="format"
        ),
    )
    yield (
        "word/bool-other-byte",
        short(["word-1"], dtype="bool", shape=[3], part=raw, arrays={"": ["uint8", [3], [3]]}, bodies={"c/0": "00 01 02"}, words="00 01 02"),
    )  # fmt: skip


# Section 7.


def grid_vectors() -> Iterator[tuple[str, Json]]:
    def v(shape: list[int], chunk: list[int], bodies: dict[str, str], words: str) -> Json:
        return short(
            ["grid-1", "grid-2"], dtype="uint8", shape=shape, part={"encoding": "raw"},
            arrays={"": ["uint8", shape, chunk]}, bodies=bodies, words=words,
        )  # fmt: skip

    yield "grid/scalar", v([], [], {"c": "07"}, "07")
    yield "grid/empty", v([0, 3], [1, 3], {}, "")
    yield "grid/chunk-beyond", v([2], [3], {"c/0": "01 02 ff"}, "01 02")
    bodies = {"c/0/0": "01 02 04 05", "c/0/1": "03 ff 06 ff", "c/1/0": "07 08 ff ff", "c/1/1": "09 ff ff ff"}
    yield "grid/two-axes", v([3, 3], [2, 2], bodies, "01 02 03 04 05 06 07 08 09")


def payload_vectors() -> Iterator[tuple[str, Json]]:
    def v(clause: str, payload: bytes | None, *, zstd: bool = False, words: str = "", error: str = "") -> Json:
        payloads = {} if payload is None else {"c/0": payload.hex()}
        return short(
            [clause], dtype="uint8", shape=[40], part={"encoding": "raw"}, arrays={"": ["uint8", [40], [40], zstd]},
            payloads=payloads, words=words, error=error,
        )  # fmt: skip

    body = bytes(range(10)) * 4
    sealed = seal(body)
    good: Json = {"words": body.hex()}
    bad = {"error": "corrupt"}
    yield "payload/plain", v("payload-1", sealed, **good)
    yield "payload/short-body", v("payload-1", seal(body[:-1]), **bad)
    yield "payload/long-body", v("payload-1", seal(body + b"\0"), **bad)
    yield "payload/flipped-bit", v("payload-3", b"\x01" + sealed[1:], **bad)
    yield "payload/flipped-checksum", v("payload-3", sealed[:-1] + bytes([sealed[-1] ^ 128]), **bad)
    yield "payload/no-room-for-a-checksum", v("payload-3", b"\0\0\0", **bad)
    yield "payload/empty", v("payload-3", b"", **bad)
    yield "payload/missing", v("payload-4", None, **bad)

    # What zstd makes of the body, in hexadecimal: its releases do not all make the same.
    coded = unhex("28b52ffd202885000050000102030405060708090100150b12")
    checked = unhex("28b52ffd242885000050000102030405060708090100150b12b5af0e4c")
    raw_block = b"\x41\x01\0" + body  # the last block: stored, 40 bytes
    plain = b"\x28\xb5\x2f\xfd\x20\x28" + raw_block  # single segment, content size in one byte
    half = b"\x28\xb5\x2f\xfd\x20\x14" + b"\xa1\0\0" + body[:20]
    skippable = b"\x50\x2a\x4d\x18\0\0\0\0"
    zstd = {"zstd": True}
    yield "payload/zstd", v("payload-2", seal(coded), **zstd, **good)
    yield "payload/zstd-content-checksum", v("payload-2", seal(checked), **zstd, **good)
    yield "payload/zstd-stored-block", v("payload-2", seal(plain), **zstd, **good)
    run = b"\x28\xb5\x2f\xfd\x20\x28" + b"\x43\x01\0\x07"
    yield "payload/zstd-run-block", v("payload-2", seal(run), **zstd, words="07" * 40)
    two_blocks = b"\x28\xb5\x2f\xfd\x20\x28" + b"\xa0\0\0" + body[:20] + b"\xa1\0\0" + body[20:]
    yield "payload/zstd-two-blocks", v("payload-2", seal(two_blocks), **zstd, **good)
    window = b"\x28\xb5\x2f\xfd\x80\x80" + struct.pack("<I", 40) + raw_block
    yield "payload/zstd-window-of-64-mib", v("payload-2", seal(window), **zstd, **good)
    window = b"\x28\xb5\x2f\xfd\x80\x81" + struct.pack("<I", 40) + raw_block
    bad |= zstd
    for name, data in {
        "no-frame": body,
        "nothing": b"",
        "larger-window": window,
        "cut-short": coded[:-1],
        "only-a-header": plain[:6],
        "byte-behind": coded + b"\0",
        "two-frames": half + half,
        "empty-frame-behind": coded + b"\x28\xb5\x2f\xfd\x20\0\x01\0\0",
        "skippable-in-front": skippable + coded,
        "skippable-behind": coded + skippable,
        "no-content-size": b"\x28\xb5\x2f\xfd\0\x58" + raw_block,
        "other-content-size": b"\x28\xb5\x2f\xfd\x20\x29" + b"\x49\x01\0" + body + b"\0",
        "huge-content-size": b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 1 << 60) + raw_block,
        "content-size-too-large": b"\x28\xb5\x2f\xfd\x20\x28" + b"\x01\0\0",
        "content-size-too-small": b"\x28\xb5\x2f\xfd\x20\x28" + b"\x49\x01\0" + body + b"\0",
        "dictionary": b"\x28\xb5\x2f\xfd\x21\x07\x28" + raw_block,
        "reserved-bit": b"\x28\xb5\x2f\xfd\x28\x28" + raw_block,
        "reserved-block": b"\x28\xb5\x2f\xfd\x20\x28" + b"\x47\x01\0" + body,
        "wrong-content-checksum": checked[:-1] + bytes([checked[-1] ^ 1]),
    }.items():
        yield f"payload/zstd-{name}", v("payload-2", seal(data), **bad)


# Section 8.


def raw_vectors() -> Iterator[tuple[str, Json]]:
    def v(clauses: list[str], shape: list[int], arrays: dict[str, list[Any]], **more: Any) -> Json:
        return short(clauses, dtype="bfloat16", shape=shape, part={"encoding": "raw"}, arrays=arrays, **more)

    yield "raw/data-type", v(["raw-1"], [3], {"": ["float16", [3], [3]]}, error="format")
    yield "raw/other-shape", v(["raw-1"], [3], {"": ["uint16", [4], [4]]}, error="format")
    yield "raw/fewer-axes", v(["raw-1"], [3], {"": ["uint16", [], []]}, error="format")
    children = {"values": ["uint16", [3], [3]], "more": ["uint16", [3], [3]]}
    yield "raw/several-arrays", v(["raw-1"], [3], children, error="format")
    yield (
        "raw/constant-larger-chunk",
        v(["raw-2"], [3], {"": ["uint16", [1], [2]]}, bodies={"c/0": "803f ffff"}, words="803f 803f 803f"),
    )
    yield "raw/one-word", v(["raw-1"], [1], {"": ["uint16", [1], [1]]}, bodies={"c/0": "803f"}, words="803f")
    yield "raw/constant-of-nothing", v(["raw-2", "raw-1"], [0], {"": ["uint16", [1], [1]]}, error="format")
    yield "raw/constant-missing", v(["raw-2", "payload-4"], [3], {"": ["uint16", [1], [1]]}, error="corrupt")


def planes_vectors() -> Iterator[tuple[str, Json]]:
    def v(
        clauses: list[str], part: Json, arrays: dict[str, list[Any]], bodies: dict[str, str] | None = None,
        *, dtype: str = "bfloat16", shape: list[int] | None = None, words: str = "", error: str = "",
    ) -> Json:  # fmt: skip
        return short(
            clauses, dtype=dtype, shape=[3] if shape is None else shape, part={"encoding": "planes"} | part,
            arrays=arrays, bodies=bodies, words=words, error=error,
        )  # fmt: skip

    rotate: Json = {"rotate": True}
    still: Json = {"rotate": False}
    two = {"": ["uint8", [2, 3], [2, 3]]}
    plain = {"c/0/0": "7f 80 7e 00 01 00"}
    yield "planes/top-bits-stated", v(["planes-1"], rotate | {"top_bits": 8}, two, plain, words=ONE)
    yield "planes/not-rotated", v(["planes-2", "planes-3"], still, two, {"c/0/0": "3f c0 3f 80 00 00"}, words=ONE)
    yield (
        "planes/integers",
        v(["planes-2"], still, {"": ["uint8", [2, 2], [2, 2]]}, {"c/0/0": "01 ff 02 fe"}, dtype="int16", shape=[2], words="0201 feff"),
    )  # fmt: skip
    yield (
        "planes/bytes",
        v(["planes-2"], still, {"": ["uint8", [1, 2], [1, 2]]}, {"c/0/0": "01 ff"}, dtype="uint8", shape=[2], words="01 ff"),
    )  # fmt: skip
    yield (
        "planes/float32",
        v(["planes-2"], rotate, {"": ["uint8", [4, 1], [4, 1]]}, {"c/0/0": "80 92 1f b5"}, dtype="float32", shape=[1], words="da0f49c0"),
    )  # fmt: skip
    yield (
        "planes/float64-scalar",
        v(["planes-2"], rotate, {"": ["uint8", [8], [8]]}, {"c/0": "7f e0 00 00 00 00 00 01"}, dtype="float64", shape=[], words="000000000000f0bf"),
    )  # fmt: skip
    yield (
        "planes/complex64",
        v(["planes-2", "word-4"], rotate, {"": ["uint8", [4, 1, 2], [4, 1, 2]]}, {"c/0/0/0": "7f 80 00 00 00 00 00 01"},
          dtype="complex64", shape=[1], words="0000803f 000000c0"),
    )  # fmt: skip
    yield "planes/empty", v(["planes-1"], rotate, {"": ["uint8", [2, 0], [2, 1]]}, {}, shape=[0])
    edges = {"c/0/0": "7f 80 00 01", "c/0/1": "7e aa 00 bb"}
    yield "planes/two-chunks", v(["planes-1", "grid-1"], rotate, {"": ["uint8", [2, 3], [2, 2]]}, edges, words=ONE)

    nine = rotate | {"top_bits": 9, "symbols": [[252, 1], [254, 1], [256, 1]]}
    unused = {"c/0/0": "01 02 00 80 81 80"}
    yield "planes/unused-bits-of-a-low-plane", v(["planes-2"], nine, two, unused, words=ONE)
    run = rotate | {"symbols": [[126, 3]]}
    yield "planes/symbols-in-one-run", v(["planes-4"], run, two, {"c/0/0": "01 02 00 00 01 00"}, words=ONE)
    sixteen = rotate | {"top_bits": 16, "symbols": [[0x7E00, 1], [0x7F00, 1], [0x8001, 1]]}
    one = {"": ["uint8", [1, 3], [1, 3]]}
    yield "planes/whole-words-as-symbols", v(["planes-4"], sixteen, one, {"c/0/0": "01 02 00"}, words=ONE)
    twelve = rotate | {"top_bits": 12, "symbols": [[0x7FA, 1]]}
    yield (
        "planes/low-planes-of-4-and-8-bits",
        v(["planes-2", "planes-4"], twelve, {"": ["uint8", [4, 1], [4, 1]]}, {"c/0/0": "00 0b bc de"}, dtype="float32", shape=[1], words="6fde d53f"),
    )  # fmt: skip
    full = rotate | {"top_bits": 9, "symbols": [[0, 256]]}
    yield (
        "planes/256-symbols",
        v(["planes-4"], full, {"": ["uint8", [2, 1], [2, 1]]}, {"c/0/0": "fe 00"}, shape=[1], words="803f"),
    )
    yield "planes/symbol-of-nothing", v(["planes-4"], run, two, {"c/0/0": "01 03 00 00 01 00"}, error="corrupt")
    edges = {"c/0/0": "01 02 00 01", "c/0/1": "00 03 00 00"}
    yield (
        "planes/symbol-of-nothing-beyond-the-edge",
        v(["planes-4"], run, {"": ["uint8", [2, 3], [2, 2]]}, edges, error="corrupt"),
    )

    for name, clause, part, arrays in (
        ("no-rotate", "planes-1", {}, two),
        ("rotate-is-a-number", "planes-1", {"rotate": 1}, two),
        ("top-bits-0", "planes-1", nine | {"top_bits": 0}, two),
        ("top-bits-17", "planes-1", nine | {"top_bits": 17}, one),
        ("top-bits-is-text", "planes-1", nine | {"top_bits": "9"}, two),
        ("top-bits-is-true", "planes-1", nine | {"top_bits": True}, two),
        ("top-bits-9-without-symbols", "planes-1", rotate | {"top_bits": 9}, two),
        ("top-bits-7-without-symbols", "planes-1", rotate | {"top_bits": 7}, {"": ["uint8", [3, 3], [3, 3]]}),
        ("null-symbols", "planes-4", rotate | {"symbols": None}, two),
        ("no-symbols", "planes-4", nine | {"symbols": []}, two),
        ("symbols-are-no-pairs", "planes-4", nine | {"symbols": [[252]]}, two),
        ("symbols-are-numbers", "planes-4", nine | {"symbols": [252, 254]}, two),
        ("symbols-overlap", "planes-4", nine | {"symbols": [[252, 2], [253, 1]]}, two),
        ("symbols-descend", "planes-4", nine | {"symbols": [[254, 1], [252, 1]]}, two),
        ("symbols-of-count-0", "planes-4", nine | {"symbols": [[252, 0], [254, 1]]}, two),
        ("symbols-negative", "planes-4", nine | {"symbols": [[-1, 2]]}, two),
        ("257-symbols", "planes-4", nine | {"symbols": [[0, 257]]}, two),
        ("symbols-beyond-the-field", "planes-4", nine | {"symbols": [[511, 2]]}, two),
        ("a-plane-too-many", "planes-1", rotate, {"": ["uint8", [3, 3], [3, 3]]}),
        ("a-plane-too-few", "planes-1", rotate, one),
        ("planes-across-chunks", "planes-1", rotate, {"": ["uint8", [2, 3], [1, 3]]}),
        ("other-length", "planes-1", rotate, {"": ["uint8", [2, 4], [2, 4]]}),
        ("no-plane-axis", "planes-1", rotate, {"": ["uint8", [3], [3]]}),
        ("no-axes", "planes-1", rotate, {"": ["uint8", [], []]}),
        ("other-data-type", "planes-1", rotate, {"": ["uint16", [2, 3], [2, 3]]}),
        ("unknown-component", "planes-1", rotate, {"planes": two[""], "more": two[""]}),
    ):
        yield f"planes/{name}", v([clause, "planes-1"], part, arrays, plain, error="format")

    def ranked(first: Any = 126, chunk_shape: Any = (3,), **more: Any) -> Json:
        chunks = list(chunk_shape) if isinstance(chunk_shape, tuple) else chunk_shape
        return rotate | {"ranks": first, "chunk_shape": chunks} | more

    none, two_ = ({"": ["uint8", [1, 5 + 4 * m], [1, 5 + 4 * m]]} for m in (0, 2))
    yield "planes/ranks-alone", v(["planes-5"], ranked(), none, {"c/0/0": "21 00 00 01 00"}, words=ONE)
    yield "planes/ranks-of-15", v(["planes-5"], ranked(113), none, {"c/0/0": "fe 0d 00 01 00"}, words=ONE)
    yield (
        "planes/ranks-from-240",
        v(["planes-5"], ranked(240), none, {"c/0/0": "f0 00 00 01 00"}, words="0078 80ff 0078"),
    )
    yield "planes/ranks-unused-bits", v(["planes-5"], ranked(), none, {"c/0/0": "21 f0 00 01 00"}, words=ONE)
    yield (
        "planes/ranks-across-rows",
        v(["planes-5"], ranked(126, (2, 1)), {"": ["uint8", [1, 1, 3], [1, 1, 3]]}, {"c/0/0/0": "21 00 01"}, shape=[2, 1], words="803f 00c0"),
    )  # fmt: skip
    yield (
        "planes/ranks-of-a-scalar",
        v(["planes-5"], ranked(126, ()), {"": ["uint8", [2], [2]]}, {"c/0": "01 00"}, shape=[], words="803f"),
    )
    yield (
        "planes/ranks-of-no-words",
        v(["planes-5"], ranked(), {"": ["uint8", [0, 5], [1, 5]]}, {}, shape=[0], words=""),
    )
    yield (
        "planes/ranks-of-bytes",
        v(["planes-5"], ranked(2), {"": ["uint8", [1, 2], [1, 2]]}, {"c/0/0": "20 01"}, dtype="uint8", words="010281"),
    )
    yield (
        "planes/ranks-of-32-bits",
        v(["planes-5"], ranked(126, (1,)), {"": ["uint8", [1, 4], [1, 4]]}, {"c/0/0": "01 00 00 01"}, dtype="float32", shape=[1], words="000080bf"),
    )  # fmt: skip
    chunks = {"": ["uint8", [2, 7], [1, 7]]}
    bodies = {"c/0/0": "01 00 01 80 01 00 00", "c/1/0": "00 00 00 ff ff ff ff"}
    yield "planes/ranks-in-two-chunks", v(["planes-1", "planes-6"], ranked(126, (2,)), chunks, bodies, words=ONE)
    fewer = {"c/0/0": "01 00 00 01 00 80 01 00 00 ff ff ff ff"}
    yield "planes/fewer-escapes-than-room", v(["planes-6"], ranked(), two_, fewer, words=ONE)
    all_ = {"c/0/0": "01 00 00 01 00 80 01 00 00 7e 02 00 00"}
    yield "planes/escape-of-a-rank", v(["planes-6"], ranked(), two_, all_, words=ONE)
    for name, escapes in (
        ("escape-beyond-the-chunk", "80 03 00 00 ff ff ff ff"),
        ("escape-far-beyond-the-chunk", "fe ff ff ff ff ff ff ff"),
        ("escape-twice", "80 01 00 00 81 01 00 00"),
        ("escapes-descend", "80 02 00 00 80 01 00 00"),
        ("escape-behind-the-last", "ff ff ff ff 80 01 00 00"),
    ):
        yield f"planes/{name}", v(["planes-6"], ranked(), two_, {"c/0/0": f"01 00 00 01 00 {escapes}"}, error="corrupt")
    for name, part, arrays, more in (
        ("ranks-and-symbols", ranked(symbols=[[126, 3]]), none, {}),
        ("ranks-of-9-bits", ranked(top_bits=9), none, {}),
        ("ranks-of-7-bits", ranked(top_bits=7), none, {}),
        ("ranks-from-241", ranked(241), none, {}),
        ("ranks-negative", ranked(-1), none, {}),
        ("ranks-are-true", ranked(True), none, {}),
        ("ranks-are-null", ranked(None), none, {}),
        ("ranks-are-a-list", ranked([126, 3]), none, {}),
        ("ranks-without-chunk-shape", rotate | {"ranks": 126}, none, {}),
        ("ranks-of-chunks-of-0", ranked(126, (0,)), none, {}),
        ("ranks-of-chunks-of-more-axes", ranked(126, (3, 1)), none, {}),
        ("ranks-of-other-chunks", ranked(126, (2,)), none, {}),
        ("ranks-of-negative-chunks", ranked(126, (-3,)), none, {}),
        ("ranks-of-overflowing-chunks", ranked(126, (2**64 + 3,)), none, {}),
        ("ranks-of-too-large-a-chunk", ranked(126, (1 << 24,)), {"": ["uint8", [1, 3 << 23], [1, 3 << 23]]}, {"shape": [1 << 24]}),
        ("ranks-without-the-low-plane", ranked(), {"": ["uint8", [1, 2], [1, 2]]}, {}),
        ("ranks-in-plain-planes", ranked(), two, {}),
        ("ranks-without-axes", ranked(), {"": ["uint8", [], []]}, {}),
        ("ranks-without-a-last-axis", ranked(), {"": ["uint8", [5], [5]]}, {}),
        ("ranks-of-16-bits", ranked(), {"": ["uint16", [1, 5], [1, 5]]}, {}),
        ("ranks-in-pieces", ranked(), {"": ["uint8", [1, 5], [1, 3]]}, {}),
        ("ranks-of-too-many-chunks", ranked(), {"": ["uint8", [2, 5], [1, 5]]}, {}),
        ("escapes-of-3-bytes", ranked(), {"": ["uint8", [1, 8], [1, 8]]}, {}),
    ):  # fmt: skip
        yield f"planes/{name}", v(["planes-1"], part, arrays, error="format", **more)


def narrow_vectors() -> Iterator[tuple[str, Json]]:
    def v(dtype: str, stored: Any, data_type: str, **more: Any) -> Json:
        part = {"encoding": "raw", "dtype": stored}
        return short(["narrow-1"], dtype=dtype, shape=[1], part=part, arrays={"": [data_type, [1], [1]]}, **more)

    yield "narrow/own-dtype", v("float32", "float32", "float32", bodies={"c/0": "0000803f"}, words="0000803f")
    yield "narrow/of-float64", v("float64", "float32", "float32", error="format")
    yield "narrow/wider", v("float32", "float64", "float64", error="format")
    yield "narrow/of-integers", v("int32", "bfloat16", "uint16", error="format")
    yield "narrow/unknown", v("float32", "float24", "uint32", error="format")
    yield "narrow/no-text", v("float32", None, "float32", error="format")
    yield (
        "narrow/planes",
        short(
            ["narrow-1", "narrow-2"], dtype="float32", shape=[3], arrays={"": ["uint8", [2, 3], [2, 3]]},
            part={"encoding": "planes", "dtype": "bfloat16", "rotate": True},
            bodies={"c/0/0": "7f 80 7e 00 01 00"}, words="0000803f 000000c0 0000003f",
        ),
    )  # fmt: skip


# Sections 6 and 9: faults of documents. Each changes one thing in a good model.


def good_root() -> tuple[Json, dict[str, str]]:
    """A model of a stored tensor, one equal to it, one in planes and ranks, an asset and a layout."""
    about = {"dtype": "uint8", "shape": [3], "sha256": hashlib.sha256(b"\1\2\3").hexdigest()}
    ranks = {"encoding": "planes", "rotate": True, "ranks": 126, "chunk_shape": [3]}
    other = {"dtype": "bfloat16", "shape": [3], "sha256": hashlib.sha256(unhex(ONE)).hexdigest(), "parts": [ranks]}
    nodes = {
        "w": array("uint8", [3], [3], about=about | {"parts": [{"encoding": "raw"}]}),
        "again": group(about | {"name": "w/again", "same_as": "w"}),
        "r": array("uint8", [1, 5], [1, 5], about=other),
    }
    asset = {"path": "sub/a.txt", "key": "assets/sub/a.txt", "nbytes": 2, "sha256": hashlib.sha256(b"hi").hexdigest()}
    layout = {"path": "m.safetensors", "key": "layouts/0", "format": "safetensors"}
    header = b'{"w":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}'
    objects = {
        "w/c/0": seal(b"\1\2\3").hex(),
        "r/c/0/0": seal(unhex("21 00 00 01 00")).hex(),
        "assets/sub/a.txt": b"hi".hex(),
        "layouts/0": (struct.pack("<Q", len(header)) + header).hex(),
    }
    return root(nodes, assets=[asset], layouts=[layout], metadata={"author": "me"}), objects


GOOD_TENSORS = {
    "w": {"dtype": "uint8", "shape": [3], "words": "010203"},
    "w/again": {"dtype": "uint8", "shape": [3], "words": "010203"},
    "r": {"dtype": "bfloat16", "shape": [3], "words": unhex(ONE).hex()},
}


def changed(clauses: list[str], error: str, change: Callable[[Json, Json, dict[str, str]], None]) -> Json:
    """The good model after ``change(root, nodes, objects)``; valid if ``error`` is empty."""
    doc, objects = copy.deepcopy(good_root())
    change(doc, doc["consolidated_metadata"]["metadata"], objects)
    vector = {"clauses": clauses, "root": doc, "objects": objects}
    return vector | ({"error": error} if error else {"tensors": GOOD_TENSORS, "assets": {"sub/a.txt": b"hi".hex()}})


Path_ = tuple[str | int, ...]
ABSENT = object()


def put(path: Path_, value: Any) -> Callable[[Json, Json, dict[str, str]], None]:
    """A change that sets what stands at ``path``: of the root, or of a node if the path begins with ``node``."""

    def change(doc: Json, nodes: Json, objects: dict[str, str]) -> None:
        at: Any = nodes if path[0] == "node" else objects if path[0] == "object" else doc
        steps = path[1:] if path[0] in ("node", "object") else path
        for step in steps[:-1]:
            at = at[step]
        if value is ABSENT:
            del at[steps[-1]]
        else:
            at[steps[-1]] = value

    return change


def document_vectors() -> Iterator[tuple[str, Json]]:
    text = json.dumps(good_root()[0])
    for name, data in {
        "not-utf-8": text.replace("me", "\udcff").encode(errors="surrogateescape"),
        "byte-order-mark": b"\xef\xbb\xbf" + text.encode(),
        "utf-16": text.encode("utf-16"),
        "empty": b"",
        "cut-short": text[:-1].encode(),
        "more-behind": text.encode() + b"{}",
        "nan": text.replace('"me"', "NaN").encode(),
        "infinity": text.replace('"me"', "-Infinity").encode(),
        "number-too-large": text.replace('"me"', "1e999").encode(),
        "member-twice": text.replace('"author"', '"a": 1, "a"').encode(),
        "member-twice-escaped": text.replace('"author"', '"a": 1, "\\u0061"').encode(),
        "a-list": b"[]",
        "null": b"null",
    }.items():
        objects = good_root()[1] | {"zarr.json": data.hex()}
        yield f"document/{name}", {"clauses": ["document-1"], "objects": objects, "error": "format"}
    mz = ("attributes", "mzstore")
    for name, clause, error, path, value in (
        ("zarr-v2", "document-2", "format", ("zarr_format",), 2),
        ("no-zarr-format", "document-2", "format", ("zarr_format",), ABSENT),
        ("root-is-an-array", "root-1", "format", ("node_type",), "array"),
        ("no-attributes", "document-2", "format", ("attributes",), ABSENT),
        ("other-attributes", "document-2", "format", ("attributes",), {"ours": {}}),
        ("mzstore-is-a-list", "document-2", "format", mz, []),
        ("node-is-a-list", "document-2", "format", ("node", "w"), []),
        ("node-of-another-type", "document-2", "format", ("node", "r", "node_type"), "folder"),
        ("node-without-mzstore", "document-2", "format", ("node", "w", "attributes"), {}),
        ("unused-member-of-the-root", "document-2", "", ("more",), {"must_understand": False}),
        ("unused-attribute", "document-2", "", ("attributes", "more"), 1),
        ("unused-member-of-mzstore", "document-2", "", (*mz, "more"), [1]),
        ("unused-member-of-a-tensor", "document-2", "", ("node", "w", "attributes", "mzstore", "more"), 1),
        ("unused-member-of-a-part", "document-2", "", ("node", "r", "attributes", "mzstore", "parts", 0, "more"), 1),
        ("unused-member-of-an-asset", "document-2", "", (*mz, "assets", 0, "more"), 1),
        ("stray-object", "key-3", "", ("object", "stray/thing"), "00"),
        ("copies-differ", "document-4", "corrupt", ("object", "w/zarr.json"), b"{}".hex()),
        (
            "copy-is-damaged",
            "document-4",
            "corrupt",
            ("object", "w/zarr.json"),
            json.dumps(group({"a": 1})).encode().hex(),
        ),
    ):
        yield f"document/{name}", changed([clause, "document-2"], error, put(path, value))
    yield "document/no-change", changed(["document-2", "document-4", "tensor-5", "layout-2"], "", lambda *_: None)


def root_vectors() -> Iterator[tuple[str, Json]]:
    mz = ("attributes", "mzstore")
    inline = "consolidated_metadata"
    for name, clause, error, path, value in (
        ("format-2", "root-2", "unsupported", (*mz, "format"), 2),
        ("format-0", "root-2", "format", (*mz, "format"), 0),
        ("format-negative", "root-2", "format", (*mz, "format"), -1),
        ("format-is-true", "root-2", "format", (*mz, "format"), True),
        ("format-is-text", "root-2", "format", (*mz, "format"), "1"),
        ("format-is-a-fraction", "root-2", "format", (*mz, "format"), 1.0),
        ("no-format", "root-2", "format", (*mz, "format"), ABSENT),
        ("unknown-feature", "root-3", "unsupported", (*mz, "features"), ["planes", "trellis"]),
        ("no-features", "root-3", "format", (*mz, "features"), ABSENT),
        ("features-are-text", "root-3", "format", (*mz, "features"), "planes"),
        ("feature-is-a-number", "root-3", "format", (*mz, "features"), [1]),
        ("feature-not-listed", "root-3", "format", (*mz, "features"), []),
        ("no-inline-metadata", "root-4", "format", (inline,), ABSENT),
        ("inline-metadata-is-a-list", "root-4", "format", (inline, "metadata"), []),
        ("inline-of-another-kind", "root-4", "format", (inline, "kind"), "remote"),
        ("inline-must-be-understood", "root-4", "format", (inline, "must_understand"), True),
        ("metadata-is-a-list", "root-5", "format", (*mz, "metadata"), []),
        ("metadata-is-null", "root-5", "format", (*mz, "metadata"), None),
        ("no-metadata", "root-5", "", (*mz, "metadata"), ABSENT),
        ("no-writer", "root-2", "", (*mz, "writer"), "other 1.0"),
    ):
        yield f"root/{name}", changed([clause], error, put(path, value))
    yield "root/missing", {"clauses": ["root-1"], "objects": good_root()[1], "error": "format"}
    newer = group({"format": 2, "features": 7, "assets": 7})
    yield "root/format-2-comes-first", {"clauses": ["root-2"], "root": newer, "objects": {}, "error": "unsupported"}
    newer = root({"w": {"of": "the future"}}, features=["future"])
    yield "root/unknown-feature-comes-first", {
        "clauses": ["root-3"], "root": newer, "objects": {}, "error": "unsupported"
    }  # fmt: skip
    yield "root/nothing-in-it", {
        "clauses": ["root-1", "root-4"], "root": root({}, features=[]), "objects": {}, "tensors": {}
    }  # fmt: skip


def node_vectors() -> Iterator[tuple[str, Json]]:
    def renamed(new: str) -> Callable[[Json, Json, dict[str, str]], None]:
        def change(doc: Json, nodes: Json, objects: dict[str, str]) -> None:
            nodes[new] = nodes.pop("again")

        return change

    for name, key in {
        "empty": "", "blank": "a b", "not-ascii": "ü", "colon": "a:b", "one-dot": ".", "two-dots": "..", "only-dots": "...",
        "too-long": "a" * 201, "zarr-json": "zarr.json", "zarr-json-in-capitals": "ZARR.json", "assets": "assets",
        "layouts": "Layouts", "three-segments": "w/c/d", "slash-behind": "w/", "slash-in-front": "/w",
    }.items():  # fmt: skip
        yield f"node/{name}", changed(["node-1", "node-2"], "format", renamed(key))
    yield "node/equal-but-for-case", changed(["node-1"], "format", renamed("W"))
    yield "node/below-nothing", changed(["node-2"], "format", renamed("x/planes"))
    yield "node/longest", changed(["node-1"], "", renamed("a" * 200))
    yield "node/all-characters", changed(["node-1"], "", renamed("Az09._%~-"))


def tensor_vectors() -> Iterator[tuple[str, Json]]:
    w, again, r = (("node", key, "attributes", "mzstore") for key in ("w", "again", "r"))
    raw = {"encoding": "raw"}
    for name, clause, error, path, value in (
        ("name-twice", "tensor-1", "format", (*again, "name"), "w"),
        ("name-is-a-number", "tensor-1", "format", (*w, "name"), 1),
        ("name-is-null", "tensor-1", "format", (*w, "name"), None),
        ("name-with-a-surrogate", "tensor-1", "format", (*w, "name"), "\ud800"),
        ("name-too-long", "tensor-1", "format", (*w, "name"), "ü" * 2049),
        ("no-sha256", "tensor-1", "format", (*w, "sha256"), ABSENT),
        ("sha256-in-capitals", "tensor-1", "format", (*w, "sha256"), "A" * 64),
        ("sha256-too-short", "tensor-1", "format", (*w, "sha256"), "a" * 63),
        ("sha256-with-a-line-end", "tensor-1", "format", (*w, "sha256"), "a" * 64 + "\n"),
        ("sha256-of-other-words", "digest-2", "corrupt", (*r, "sha256"), "a" * 64),
        ("unknown-dtype", "tensor-2", "unsupported", (*w, "dtype"), "float7"),
        ("dtype-is-a-number", "tensor-2", "unsupported", (*w, "dtype"), 8),
        ("dtype-is-a-list", "tensor-2", "unsupported", (*w, "dtype"), ["uint8"]),
        ("no-shape", "tensor-3", "format", (*w, "shape"), ABSENT),
        ("shape-is-a-number", "tensor-3", "format", (*w, "shape"), 3),
        ("extent-negative", "tensor-3", "format", (*w, "shape"), [-3]),
        ("extent-is-a-fraction", "tensor-3", "format", (*w, "shape"), [3.0]),
        ("extent-is-true", "tensor-3", "format", (*w, "shape"), [True]),
        ("33-extents", "tensor-3", "format", (*w, "shape"), [1] * 33),
        ("too-large", "tensor-3", "format", (*w, "shape"), [2**62 + 1]),
        ("too-large-product", "tensor-3", "format", (*w, "shape"), [2**32, 2**32]),
        ("too-large-though-empty", "tensor-3", "format", (*w, "shape"), [0, 2**63]),
        ("no-parts", "tensor-4", "unsupported", (*w, "parts"), ABSENT),
        ("parts-are-empty", "tensor-4", "unsupported", (*w, "parts"), []),
        ("two-parts", "tensor-4", "unsupported", (*w, "parts"), [raw, raw]),
        ("part-is-text", "tensor-4", "unsupported", (*w, "parts"), ["raw"]),
        ("parts-are-an-object", "tensor-4", "unsupported", (*w, "parts"), raw),
        ("unknown-encoding", "tensor-4", "unsupported", (*w, "parts"), [{"encoding": "trellis"}]),
        ("sparse-first", "tensor-4", "unsupported", (*w, "parts"), [{"encoding": "sparse", "chunk_shape": [3]}]),
        ("planes-second", "tensor-4", "unsupported", (*w, "parts"), [raw, {"encoding": "planes", "rotate": True}]),
        ("nine-parts", "tensor-4", "unsupported", (*w, "parts"), [raw, *[{"encoding": "sparse", "chunk_shape": [3]}] * 8]),
        ("lossy", "tensor-6", "", (*w, "lossy"), {"asked": {"bits": 4}}),
        ("lossy-is-text", "tensor-6", "format", (*w, "lossy"), "yes"),
        ("lossy-is-null", "tensor-6", "format", (*w, "lossy"), None),
        ("array-below-an-array", "tensor-4", "format", ("node", "w/planes"), array("uint8", [3], [3])),
        ("group-of-nothing", "tensor-4", "format", ("node", "w"), group({"dtype": "uint8", "shape": [3], "sha256": "0" * 64, "parts": [raw]})),
        ("reference-to-nothing", "tensor-5", "format", (*again, "same_as"), "v"),
        ("reference-to-itself", "tensor-5", "format", (*again, "same_as"), "again"),
        ("reference-by-name", "tensor-5", "format", (*again, "same_as"), "w/again"),
        ("reference-is-null", "tensor-5", "format", (*again, "same_as"), None),
        ("reference-to-another-dtype", "tensor-5", "format", (*again, "dtype"), "int8"),
        ("reference-to-another-shape", "tensor-5", "format", (*again, "shape"), [3, 1]),
        ("reference-to-another-digest", "tensor-5", "format", (*again, "sha256"), "a" * 64),
        ("reference-with-parts", "tensor-5", "format", (*again, "parts"), [raw]),
        ("reference-with-arrays", "tensor-5", "format", ("node", "again/planes"), array("uint8", [3], [3])),
        ("reference-in-an-array", "tensor-5", "format", (*w, "same_as"), "r"),
    ):  # fmt: skip
        yield f"tensor/{name}", changed([clause], error, put(path, value))

    def chain(doc: Json, nodes: Json, objects: dict[str, str]) -> None:
        nodes["third"] = copy.deepcopy(nodes["again"])
        nodes["third"]["attributes"]["mzstore"] |= {"name": "third", "same_as": "again"}

    yield "tensor/reference-to-a-reference", changed(["tensor-5"], "format", chain)

    def lone(doc: Json, nodes: Json, objects: dict[str, str]) -> None:
        nodes["r/planes"] = nodes["r"] | {"attributes": {}}
        nodes["r"] = group(nodes["r"]["attributes"]["mzstore"])

    yield "tensor/group-of-one-array", changed(["tensor-4"], "format", lone)


def array_vectors() -> Iterator[tuple[str, Json]]:
    w = ("node", "w")
    bytes_, crc = {"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}
    zstd = {"name": "zstd", "configuration": {"level": 1, "checksum": False}}
    grid = ("chunk_grid", "configuration", "chunk_shape")
    for name, clause, error, path, value in (
        ("other-chunk-keys", "array-1", "format", (*w, "chunk_key_encoding"), {"name": "v2"}),
        ("dotted-chunk-keys", "array-1", "format", (*w, "chunk_key_encoding"), {"name": "default", "configuration": {"separator": "."}}),
        ("unknown-member", "array-1", "unsupported", (*w, "storage_transformers"), []),
        ("no-fill-value", "array-1", "", (*w, "fill_value"), ABSENT),
        ("other-fill-value", "array-1", "", (*w, "fill_value"), 7),
        ("more-attributes", "array-1", "", (*w, "attributes", "more"), 1),
        ("no-shape", "array-2", "format", (*w, "shape"), ABSENT),
        ("negative-shape", "array-2", "format", (*w, "shape"), [-3]),
        ("no-grid", "array-2", "format", (*w, "chunk_grid"), ABSENT),
        ("other-grid", "array-2", "format", (*w, "chunk_grid", "name"), "rectilinear"),
        ("chunk-of-extent-0", "array-2", "format", (*w, *grid), [0]),
        ("chunk-of-more-axes", "array-2", "format", (*w, *grid), [3, 1]),
        ("chunk-of-fractions", "array-2", "format", (*w, *grid), [3.0]),
        ("chunk-too-large", "array-2", "format", (*w, *grid), [2**26 + 1]),
        ("chunk-of-overflow", "array-2", "format", (*w, *grid), [2**64 + 3]),
        ("35-axes", "array-2", "format", ("node", "r", "shape"), [1] * 35),
        ("unknown-data-type", "array-2", "format", (*w, "data_type"), "float8_e5m2"),
        ("data-type-is-an-object", "array-2", "format", (*w, "data_type"), {"name": "uint8"}),
        ("no-codecs", "array-3", "unsupported", (*w, "codecs"), ABSENT),
        ("codecs-are-empty", "array-3", "unsupported", (*w, "codecs"), []),
        ("no-crc32c", "array-3", "unsupported", (*w, "codecs"), [bytes_]),
        ("no-bytes", "array-3", "unsupported", (*w, "codecs"), [zstd, crc]),
        ("gzip", "array-3", "unsupported", (*w, "codecs"), [bytes_, {"name": "gzip", "configuration": {"level": 1}}, crc]),
        ("zstd-twice", "array-3", "unsupported", (*w, "codecs"), [bytes_, zstd, zstd, crc]),
        ("zstd-behind-crc32c", "array-3", "unsupported", (*w, "codecs"), [bytes_, crc, zstd]),
        ("zstd-with-checksum", "array-3", "unsupported", (*w, "codecs"), [bytes_, {"name": "zstd", "configuration": {"level": 1, "checksum": True}}, crc]),
        ("zstd-without-level", "array-3", "unsupported", (*w, "codecs"), [bytes_, {"name": "zstd", "configuration": {"checksum": False}}, crc]),
        ("big-endian", "array-3", "unsupported", (*w, "codecs"), [{"name": "bytes", "configuration": {"endian": "big"}}, crc]),
        ("short-form-of-codecs", "array-3", "unsupported", (*w, "codecs"), ["bytes", "crc32c"]),
    ):  # fmt: skip
        yield f"array/{name}", changed([clause], error, put(path, value))


def asset_vectors() -> Iterator[tuple[str, Json]]:
    assets = ("attributes", "mzstore", "assets")
    layouts = ("attributes", "mzstore", "layouts")
    for name, clause, error, path, value in (
        ("are-an-object", "asset-1", "format", assets, {}),
        ("is-text", "asset-1", "format", assets, ["a"]),
        ("no-path", "asset-1", "format", (*assets, 0, "path"), ABSENT),
        ("no-key", "asset-1", "format", (*assets, 0, "key"), ABSENT),
        ("key-of-a-chunk", "asset-1", "format", (*assets, 0, "key"), "w/c/0"),
        ("key-climbs", "asset-1", "format", (*assets, 0, "key"), "assets/../zarr.json"),
        ("key-of-the-folder", "asset-1", "format", (*assets, 0, "key"), "assets/"),
        ("no-size", "asset-1", "format", (*assets, 0, "nbytes"), ABSENT),
        ("size-is-negative", "asset-1", "format", (*assets, 0, "nbytes"), -1),
        ("size-is-true", "asset-1", "format", (*assets, 0, "nbytes"), True),
        ("size-is-a-fraction", "asset-1", "format", (*assets, 0, "nbytes"), 2.0),
        ("no-sha256", "asset-1", "format", (*assets, 0, "sha256"), ABSENT),
        ("sha256-is-short", "asset-1", "format", (*assets, 0, "sha256"), "ab"),
        ("missing", "asset-3", "corrupt", ("object", "assets/sub/a.txt"), ABSENT),
        ("of-another-size", "asset-3", "corrupt", (*assets, 0, "nbytes"), 3),
        ("with-another-digest", "asset-3", "corrupt", ("object", "assets/sub/a.txt"), "6861"),
    ):
        yield f"asset/{name}", changed([clause], error, put(path, value))
    for name, path in {
        "empty": "", "absolute": "/etc/passwd", "climbs": "../a", "climbs-inside": "a/../../b", "one-dot": "./a", "slash-behind": "a/",
        "backslash": "a\\b", "drive": "c:a", "star": "a*", "zero": "a\0", "line-end": "a\n", "dot-behind": "a.", "blank-behind": "a /b",
        "surrogate": "\ud800", "too-long": "ü" * 513,
    }.items():  # fmt: skip
        yield f"asset/path-{name}", changed(["asset-2"], "format", put((*assets, 0, "path"), path))

    def second(path: str, key: str, where: Path_ = assets) -> Callable[[Json, Json, dict[str, str]], None]:
        def change(doc: Json, nodes: Json, objects: dict[str, str]) -> None:
            files = doc["attributes"]["mzstore"][where[-1]]
            files.append(files[0] | {"path": path, "key": key})

        return change

    yield "asset/path-twice-but-for-case", changed(["asset-2"], "format", second("Sub/A.txt", "assets/b"))
    yield "asset/key-twice", changed(["asset-2"], "format", second("b", "assets/sub/a.txt"))
    yield "asset/path-below-a-file", changed(["asset-2"], "format", second("sub/a.txt/b", "assets/b"))
    yield "layout/unknown-format", changed(["layout-1"], "unsupported", put((*layouts, 0, "format"), "gguf"))
    yield "layout/no-format", changed(["layout-1"], "unsupported", put((*layouts, 0, "format"), ABSENT))
    yield "layout/prefix-is-a-number", changed(["layout-1"], "format", put((*layouts, 0, "prefix"), 1))
    yield "layout/key-of-an-asset", changed(["asset-1"], "format", put((*layouts, 0, "key"), "assets/sub/a.txt"))
    yield "layout/path-twice", changed(["asset-2"], "format", second("m.safetensors", "layouts/1", layouts))
    yield "layout/missing", changed(["layout-2"], "format", put(("object", "layouts/0"), ABSENT))


# Section 5: archives, by a small ZIP writer that can do everything wrong.

LOCAL = struct.Struct("<IHHHHHIIIHH")
CENTRAL = struct.Struct("<IHHHHHHIIIHHHHHII")
END = struct.Struct("<IHHHHIIH")
END64 = struct.Struct("<IQHHIIQQQQ")
LOCATOR64 = struct.Struct("<IIQI")


def entry(key: str, data: bytes, *, deflated: bool | bytes = False, local: Json | None = None, **central: Any) -> Json:
    """An entry; ``local`` and ``central`` replace fields of its two headers."""
    stored = data
    if deflated:  # one stored block: what zlib makes of the data is not the same everywhere
        stored = (
            deflated
            if isinstance(deflated, bytes)
            else b"\1" + struct.pack("<HH", len(data), len(data) ^ 0xFFFF) + data
        )
    said = {
        "signature": 0x02014B50, "flags": 0, "method": 8 if deflated else 0, "crc32": zlib.crc32(data), "stored": len(stored),
        "size": len(data), "name": key.encode(), "extra": b"", "comment": b"", "disk": 0,
    }  # fmt: skip
    return {"stored": stored, "local": said | {"signature": 0x04034B50} | (local or {}), "central": said | central}


def archive(
    entries: list[Json], *, front: bytes = b"", gap: bytes = b"", behind: bytes = b"", zip64: bool = False,
    end: Json | None = None, end64: Json | None = None, locator: Json | None = None, offsets: Json | None = None,
) -> bytes:  # fmt: skip
    data, headers = front, []
    for found in entries:
        headers.append(len(data))
        x = found["local"]
        data += LOCAL.pack(
            x["signature"], 20, x["flags"], x["method"], 0, 33, x["crc32"], x["stored"], x["size"], len(x["name"]), len(x["extra"])
        ) + x["name"] + x["extra"] + found["stored"]  # fmt: skip
    data += gap
    start = len(data)
    for i, found in enumerate(entries):
        x = found["central"]
        offset = (offsets or {}).get(i, headers[i])
        data += CENTRAL.pack(
            x["signature"], 20, 20, x["flags"], x["method"], 0, 33, x["crc32"], x["stored"], x["size"], len(x["name"]),
            len(x["extra"]), len(x["comment"]), x["disk"], 0, 0, offset,
        ) + x["name"] + x["extra"] + x["comment"]  # fmt: skip
    said = {
        "disk": 0,
        "first": 0,
        "here": len(entries),
        "count": len(entries),
        "nbytes": len(data) - start,
        "start": start,
    }
    small = said | {"signature": 0x06054B50, "comment": 0} | (end or {})
    if zip64:
        x = said | {"signature": 0x06064B50, "size": 44} | (end64 or {})
        y = {"signature": 0x07064B50, "disk": 0, "at": len(data), "disks": 1} | (locator or {})
        data += END64.pack(
            x["signature"], x["size"], 45, 45, x["disk"], x["first"], x["here"], x["count"], x["nbytes"], x["start"]
        )
        data += LOCATOR64.pack(y["signature"], y["disk"], y["at"], y["disks"])
        small |= {"here": 0xFFFF, "count": 0xFFFF}
    x = small
    data += END.pack(
        x["signature"], x["disk"], x["first"], x["here"], x["count"], x["nbytes"], x["start"], x["comment"]
    )
    return data + behind


def zip_vectors() -> Iterator[tuple[str, Json]]:
    about = {
        "dtype": "uint8",
        "shape": [3],
        "sha256": hashlib.sha256(b"\1\2\3").hexdigest(),
        "parts": [{"encoding": "raw"}],
    }
    node = array("uint8", [3], [3], about=about)
    asset = {"path": "a", "key": "assets/a", "nbytes": 2, "sha256": hashlib.sha256(b"hi").hexdigest()}
    document = json.dumps(node, separators=(",", ":")).encode()
    top = json.dumps(root({"w": node}, features=[], assets=[asset]), separators=(",", ":")).encode()
    chunk = seal(b"\1\2\3")
    tensors = {"w": {"dtype": "uint8", "shape": [3], "words": "010203"}}

    def v(clauses: list[str], data: bytes, error: str = "") -> Json:
        said: Json = {"error": error} if error else {"tensors": tensors, "assets": {"a": b"hi".hex()}}
        return {"clauses": clauses, "archive": data.hex()} | said

    def entries(**by_place: Json) -> list[Json]:
        good = {
            "chunk": entry("w/c/0", chunk),
            "asset": entry("assets/a", b"hi"),
            "node": entry("w/zarr.json", document, deflated=True),
            "root": entry("zarr.json", top, deflated=True),
        }
        return list((good | by_place).values())

    def one(place: str, key: str, data: bytes, **more: Any) -> bytes:
        return archive(entries(**{place: entry(key, data, **more)}))

    good = entries()
    nothing = archive(good)
    yield "zip/deflated-documents", v(["zip-1", "zip-2", "zip-3", "zip-4", "zip-5", "zip-6", "zip-7"], nothing)
    stored = entries(node=entry("w/zarr.json", document), root=entry("zarr.json", top))
    yield "zip/stored-documents", v(["zip-6"], archive(stored))
    yield "zip/padding", v(["zip-5"], one("chunk", "w/c/0", chunk, local={"extra": b"\x35\xd9\x04\0\x40\0\0\0"}))
    yield "zip/wrong-crc32-of-a-chunk", v(["zip-7"], one("chunk", "w/c/0", chunk, local={"crc32": 7}, crc32=7))
    yield "zip/zip64", v(["zip-2"], archive(good, zip64=True))
    far = struct.pack("<HHQ", 1, 8, 0)
    data = archive(entries(chunk=entry("w/c/0", chunk, extra=far)), offsets={0: 0xFFFFFFFF})
    yield "zip/zip64-offset", v(["zip-3"], data)

    for name, data in {
        "empty-file": b"",
        "only-an-end": nothing[-22:][:21],
        "byte-behind": nothing + b"\0",
        "comment": archive(good, end={"comment": 1}, behind=b"x"),
        "comment-that-lies": archive(good, end={"comment": 1}),
        "other-signature": archive(good, end={"signature": 0x06054B51}),
        "several-disks": archive(good, end={"disk": 1}),
        "directory-on-another-disk": archive(good, end={"first": 1}),
        "two-counts": archive(good, end={"here": 3}),
    }.items():
        yield f"zip/{name}", v(["zip-1"], data, "format")
    for name, data in {
        "byte-in-front": b"\0" + nothing,
        "start-too-small": archive(good, end={"start": 1}),
        "start-beyond": archive(good, end={"start": 1 << 30}),
        "count-too-small": archive(good, end={"here": 3, "count": 3}),
        "count-too-large": archive(good, end={"here": 5, "count": 5}),
        "count-of-many": archive(good, end={"here": 65534, "count": 65534}),
        "zip64-other-signature": archive(good, zip64=True, end64={"signature": 7}),
        "zip64-other-size": archive(good, zip64=True, end64={"size": 45}),
        "zip64-several-disks": archive(good, zip64=True, end64={"disk": 1}),
        "zip64-two-counts": archive(good, zip64=True, end64={"here": 3}),
        "zip64-huge-count": archive(good, zip64=True, end64={"here": 1 << 62, "count": 1 << 62}),
        "zip64-huge-directory": archive(good, zip64=True, end64={"nbytes": 1 << 63}),
        "zip64-locator-elsewhere": archive(good, zip64=True, locator={"at": 0}),
        "zip64-locator-of-two-disks": archive(good, zip64=True, locator={"disks": 2}),
        "zip64-missing": archive(good, end={"here": 65535, "count": 65535}),
        "zip64-no-room": END.pack(0x06054B50, 0, 0, 65535, 65535, 0, 0, 0),
    }.items():
        yield f"zip/{name}", v(["zip-2"], data, "format")
    deflated = {"deflated": True}
    short_asset = {"path": "a", "key": "assets/a", "nbytes": 5, "sha256": hashlib.sha256(b"a" * 5).hexdigest()}
    short_top = json.dumps(root({}, features=[], assets=[short_asset])).encode()  # 5 bytes become 5 bytes
    for name, clause, data in (
        ("encrypted", "zip-3", one("chunk", "w/c/0", chunk, flags=1)),
        ("utf-8-flag", "zip-3", one("chunk", "w/c/0", chunk, flags=1 << 11)),
        ("data-descriptor", "zip-3", one("chunk", "w/c/0", chunk, flags=8)),
        ("bzip2", "zip-3", one("chunk", "w/c/0", chunk, method=12)),
        ("stored-sizes-differ", "zip-3", one("chunk", "w/c/0", chunk, size=8)),
        ("entry-with-a-comment", "zip-3", one("chunk", "w/c/0", chunk, comment=b"x")),
        ("entry-on-another-disk", "zip-3", one("chunk", "w/c/0", chunk, disk=1)),
        ("entry-with-an-extra-field", "zip-3", one("chunk", "w/c/0", chunk, extra=b"\x01\xd9\0\0")),
        ("entry-of-another-signature", "zip-3", one("chunk", "w/c/0", chunk, signature=0x02014B51)),
        ("zip64-offset-missing", "zip-3", archive(good, offsets={0: 0xFFFFFFFF})),
        ("first-entry-not-in-front", "zip-4", archive(good, front=b"\0")),
        ("offsets-overlap", "zip-4", archive(good, offsets={1: 1})),
        ("offset-beyond", "zip-4", archive(good, offsets={1: 1 << 30})),
        ("entries-not-in-order", "zip-4", archive(good, offsets={1: 200, 2: 100})),
        ("size-too-large", "zip-4", one("chunk", "w/c/0", chunk, stored=1 << 20, size=1 << 20)),
        ("key-climbs", "key-1", one("asset", "../a", b"hi")),
        ("key-is-absolute", "key-1", one("asset", "/a", b"hi")),
        ("key-of-a-folder", "key-1", one("asset", "assets/", b"")),
        ("key-not-ascii", "key-1", one("asset", "ü", b"hi")),
        ("key-with-a-zero", "key-1", one("asset", "a\0", b"hi")),
        ("key-empty", "key-1", one("asset", "", b"hi")),
        ("key-too-long", "key-1", one("asset", "a" * 201, b"hi")),
        ("key-twice", "key-2", archive([entry("w/c/0", chunk), *good])),
        ("key-twice-but-for-case", "key-2", archive([entry("W/c/0", chunk), *good])),
        ("key-below-another", "key-2", archive([entry("w/c/0/1", chunk), *good])),
        ("key-above-another", "key-2", archive([entry("W", chunk), *good])),
        ("deflated-chunk", "zip-6", one("chunk", "w/c/0", chunk, **deflated)),
        (
            "deflated-asset",
            "zip-6",
            archive([entry("assets/a", b"a" * 5, deflated=unhex("4b4c040200")), entry("zarr.json", short_top)]),
        ),
        (
            "document-too-long",
            "document-3",
            one("root", "zarr.json", top, **deflated, size=(1 << 28) + 1, local={"size": (1 << 28) + 1}),
        ),
    ):
        yield f"zip/{name}", v([clause], data, "format")
    wrong = {"crc32": 7, "local": {"crc32": 7}}
    for name, clause, data in (
        ("gap-before-the-directory", "zip-7", archive(good, gap=b"\0")),
        ("local-signature", "zip-5", one("chunk", "w/c/0", chunk, local={"signature": 7})),
        ("local-flags", "zip-5", one("chunk", "w/c/0", chunk, local={"flags": 8})),
        ("local-method", "zip-5", one("chunk", "w/c/0", chunk, local={"method": 8})),
        ("local-crc32", "zip-5", one("chunk", "w/c/0", chunk, local={"crc32": 7})),
        ("local-size", "zip-5", one("chunk", "w/c/0", chunk, local={"size": 8})),
        ("local-name", "zip-5", one("chunk", "w/c/0", chunk, local={"name": b"w/c/1"})),
        ("local-name-of-a-document", "zip-5", one("root", "zarr.json", top, **deflated, local={"name": b"zarr.jsom"})),
        ("wrong-crc32-of-a-document", "zip-7", one("root", "zarr.json", top, **deflated, **wrong)),
        ("wrong-crc32-of-a-stored-document", "zip-7", one("root", "zarr.json", top, **wrong)),
        ("wrong-crc32-of-an-asset", "zip-7", one("asset", "assets/a", b"hi", **wrong)),
        ("document-larger-than-stated", "zip-7", one("root", "zarr.json", top, **deflated, size=9, local={"size": 9})),
        ("document-smaller-than-stated", "zip-7", one("root", "zarr.json", top, **deflated, size=9999, local={"size": 9999})),
        ("document-not-deflated", "zip-7", one("root", "zarr.json", b"\xff" * 9, method=8, local={"method": 8})),
        ("chunk-missing", "payload-4", archive(good[1:])),
        ("asset-missing", "asset-3", archive([good[0], *good[2:]])),
        ("node-missing", "document-4", archive([*good[:2], good[3]])),
    ):  # fmt: skip
        yield f"zip/{name}", v([clause, "zip-5"], data, "corrupt")
    yield "zip/root-missing", v(["root-1"], archive(good[:3]), "format")
    yield "zip/nothing-in-it", v(["root-1"], archive([]), "format")


SOURCES = (
    from_page, word_vectors, grid_vectors, payload_vectors, raw_vectors, planes_vectors, narrow_vectors, document_vectors,
    root_vectors, node_vectors, tensor_vectors, array_vectors, asset_vectors, zip_vectors,
)  # fmt: skip


def files() -> dict[str, str]:
    """The content of every file of spec/vectors."""
    families: dict[str, list[Json]] = {}
    for name, vector in itertools.chain.from_iterable(source() for source in SOURCES):
        families.setdefault(name.partition("/")[0], []).append({"id": name} | vector)
    return {
        f"{family}.json": "[\n" + ",\n".join(json.dumps(vector, sort_keys=False) for vector in vectors) + "\n]\n"
        for family, vectors in families.items()
    }


def main() -> None:
    VECTORS.mkdir(exist_ok=True)
    for name, text in files().items():
        (VECTORS / name).write_text(text)


if __name__ == "__main__":
    main()

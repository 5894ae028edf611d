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

from spec.reference import DTYPES, GGML, WITH_OFFSETS, centres, crc32c, scales_of, widths

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
    bases: dict[str, Json] | None = None,
    urls: list[str] | None = None,
) -> Json:
    """``bases`` are vectors by URL, whose models this one refers to by the order in ``urls`` (those of ``bases``)."""
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
    inner = [part.get(name) for part in parts for name in ("values", "left", "right", "core")]
    inner += [factor for part in parts if isinstance(part.get("factors"), list) for factor in part["factors"]]
    used = {str(part.get("encoding")) for part in [*parts, *inner] if isinstance(part, dict)}
    features = sorted({"planes", *(used & {"base", "ggml", "lowrank", "quantized", "sparse", "tucker"})})
    listed = {"bases": [{"url": url} for url in urls or bases]} if bases else {}
    vector = {"clauses": clauses, "root": root(nodes, features=features, **listed), "objects": objects}
    if bases:
        vector["bases"] = {url: {key: base[key] for key in ("root", "objects")} for url, base in bases.items()}
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


# Sections 8.4 and 8.5.


BASES = {1: 256, 2: 16, 3: 6, 4: 4, 5: 3, 8: 2}


def packed(rows: list[list[int]], b: int = 1, base: int = 0) -> str:
    """Rows of codes, ``b`` to a byte."""
    out = b""
    for row in rows:
        for first in range(0, len(row), b):
            digits = row[first : first + b]
            out += bytes([sum(code * (base or BASES[b]) ** i for i, code in enumerate(digits))])
    return out.hex()


def numbers(kind: str, values: list[Any]) -> str:
    """``values`` as an array of Zarr holds them; ``bfloat16`` takes those that it holds exactly."""
    if kind == "bfloat16":
        return b"".join(struct.pack("<f", value)[2:] for value in values).hex()
    return struct.pack(
        f"<{len(values)}{ {'uint8': 'B', 'uint16': 'H', 'float16': 'e', 'float32': 'f'}[kind] }", *values
    ).hex()


def single(value: float) -> float:
    """Rounded to binary32; a product of two numbers of binary32 is exact before that."""
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


def product(entry: float, *scales: float) -> float:
    for scale in scales:
        entry = single(entry * scale)
    return entry


def words_of(dtype: str, values: list[float]) -> str:
    """The words of numbers of binary32, rounded to ``dtype``."""
    out = b""
    for value in values:
        if dtype == "bfloat16":
            bits = struct.unpack("<I", struct.pack("<f", value))[0]
            lower, up = bits & 0xFFFF, bits >> 16
            up += lower > 0x8000 or (lower == 0x8000 and up & 1)
            out += struct.pack("<H", up)
        elif dtype == "float16" and abs(value) >= 65520:
            out += struct.pack("<H", 0x7C00 if value > 0 else 0xFC00)
        else:
            out += struct.pack({"float16": "<e", "float32": "<f", "float64": "<d"}[dtype], value)
    return out.hex()


def quantized_vectors() -> Iterator[tuple[str, Json]]:
    def v(
        clauses: list[str], shape: list[int], part: Json, arrays: dict[str, list[Any]], bodies: dict[str, str] | None = None,
        values: list[float] | None = None, *, dtype: str = "float32", **more: Any,
    ) -> Json:  # fmt: skip
        words = {"words": words_of(dtype, values)} if values is not None else {}
        whole = {"encoding": "quantized", "levels": 256, "chunk_shape": shape} | part
        return short(clauses, dtype=dtype, shape=shape, part=whole, arrays=arrays, bodies=bodies, **words, **more)

    def one(n: int) -> dict[str, list[Any]]:
        return {"": ["uint8", [n], [n]]}

    # Codes.
    for b, base in BASES.items():
        codes = [(7 * i + base - 1) % base for i in range(11)]
        n = -(-11 // b)
        part = {"levels": base, "zero_point": 1, "scales": [0.5]} | ({"per_byte": b} if b > 1 else {})
        values = [0.5 * (code - 1) for code in codes]
        yield (
            f"quantized/{b}-in-a-byte",
            v(["quantized-2"], [11], part, one(n), {"c/0": packed([codes], b)}, values),
        )
        rows = [[(5 * i + 3 * j) % base for i in range(3 * b + 1)] for j in range(2)]
        left, right = ([row[: 2 * b] for row in rows], [[*row[2 * b :], *[1] * (b - 1)] for row in rows])
        yield (
            f"quantized/{b}-in-a-byte-in-two-chunks",
            v(["quantized-1", "quantized-2", "grid-1"], [2, 3 * b + 1], part | {"chunk_shape": [2, 2 * b]},
              {"": ["uint8", [2, 4], [2, 2]]}, {"c/0/0": packed(left, b), "c/0/1": packed(right, b)},
              [0.5 * (code - 1) for row in rows for code in row]),
        )  # fmt: skip
    yield "quantized/unused-digits", v(
        ["quantized-2"], [2], {"levels": 6, "per_byte": 3}, one(1), {"c/0": packed([[1, 5, 4]], 3)}, [1, 5]
    )  # fmt: skip
    yield "quantized/5-levels-in-bytes", v(["quantized-2"], [3], {"levels": 5}, one(3), {"c/0": "00 04 02"}, [0, 4, 2])
    yield (
        "quantized/1-level",
        v(["quantized-1"], [2], {"levels": 1, "zero_point": -3}, one(2), {"c/0": "00 00"}, [3, 3]),
    )
    yield (
        "quantized/chunk-beyond-the-tensor",
        v(["quantized-1"], [2, 3], {"levels": 4, "per_byte": 4, "chunk_shape": [2, 7]}, {"": ["uint8", [2, 1], [2, 2]]},
          {"c/0/0": packed([[1, 2, 3, 0, 3, 3, 3], [3, 2, 1, 0, 3, 3, 3]], 4)}, [1, 2, 3, 3, 2, 1]),
    )  # fmt: skip
    yield "quantized/a-scale-for-each-row-of-a-chunk-beyond-the-tensor", v(
        ["quantized-6"], [2, 3], {"chunk_shape": [2, 5], "scales": [{"block": [1, 3], "dtype": "float16"}]},
        {"codes": ["uint8", [2, 3], [2, 5]], "scale": ["float16", [2, 1], [2, 1]]},
        {"codes/c/0/0": "01 02 03 00 00 04 05 06 00 00", "scale/c/0/0": numbers("float16", [0.5, 2.0])}, [0.5, 1, 1.5, 8, 10, 12],
    )  # fmt: skip
    frame = b"\x28\xb5\x2f\xfd\x20\x03" + b"\x19\0\0" + b"\7\10\11"
    yield (
        "quantized/with-zstd",
        v(
            ["quantized-1"],
            [3],
            {},
            {"": ["uint8", [3], [3], True]},
            values=[7, 8, 9],
            payloads={"c/0": seal(frame).hex()},
        ),
    )
    for low in range(1, 9):
        levels = 1 << 8 + low
        codes = [levels - 1, 0, (1 << low) - 1, levels // 2 + 1, 37, levels - 2]
        e = {1: 8, 2: 4, 3: 2, 4: 2}.get(low, 1)
        lows = [code % (1 << low) | (1 << (8 // e)) - (1 << low) for code in codes]  # unused bits are 1
        yield (
            f"quantized/{low}-low-bits",
            v(["quantized-3"], [6], {"levels": levels, "low_bits": low, "zero_point": 9},
              {"codes": ["uint8", [6], [6]], "low": ["uint8", [-(-6 // e)], [-(-6 // e)]]},
              {"codes/c/0": packed([[code >> low for code in codes]]), "low/c/0": packed([lows], e, 1 << 8 // e)},
              [code - 9 for code in codes]),
        )  # fmt: skip
    codes = [3 * i for i in range(18)]
    two = {"codes": ["uint8", [18], [16]], "low": ["uint8", [3], [2]]}
    halves = [codes[:16], [*codes[16:], *[0] * 14]]
    bodies = {f"codes/c/{i}": packed([[code >> 1 for code in half]]) for i, half in enumerate(halves)}
    bodies |= {f"low/c/{i}": packed([[code & 1 for code in half]], 8) for i, half in enumerate(halves)}
    yield "quantized/low-bits-in-two-chunks", v(
        ["quantized-1", "quantized-3"], [18], {"levels": 512, "low_bits": 1, "chunk_shape": [16]}, two, bodies, codes
    )  # fmt: skip
    pair = {"codes": ["uint8", [2], [2]], "low": ["uint8", [1], [1]]}
    yield "quantized/low-bits-of-few-levels", v(
        ["quantized-3"], [2], {"levels": 6, "low_bits": 1}, pair, {"codes/c/0": "02 01", "low/c/0": "01"}, [5, 2]
    )  # fmt: skip

    # Entries.
    yield "quantized/zero-point-65536", v(
        ["quantized-4"], [2], {"zero_point": 65536}, one(2), {"c/0": "00 ff"}, [-65536, -65281]
    )  # fmt: skip
    yield "quantized/zero-point-negative", v(
        ["quantized-4"], [2], {"zero_point": -65536}, one(2), {"c/0": "00 ff"}, [65536, 65791]
    )  # fmt: skip
    for kind, most in (("uint8", 255), ("uint16", 65535)):
        arrays = {"codes": ["uint8", [2, 4], [2, 4]], "zero_point": [kind, [2, 2], [2, 2]]}
        bodies = {"codes/c/0/0": "00 01 02 03 04 05 06 07", "zero_point/c/0/0": numbers(kind, [0, 1, most, 4])}
        yield (
            f"quantized/zero-points-of-{kind}",
            v(["quantized-4", "quantized-6"], [2, 4], {"zero_point": {"block": [1, 2]}}, arrays, bodies,
              [0, 1, 1, 2, 4 - most, 5 - most, 2, 3]),
        )  # fmt: skip
    arrays = {
        "codes": ["uint8", [2, 2], [2, 2]],
        "scale": ["float32", [1, 2], [1, 2]],
        "zero_point": ["uint8", [2, 1], [2, 1]],
    }
    yield (
        "quantized/zero-points-and-scales-of-other-blocks",
        v(["quantized-4", "quantized-6"], [2, 2],
          {"zero_point": {"block": [1, 2]}, "scales": [{"block": [2, 1], "dtype": "float32"}]}, arrays,
          {"codes/c/0/0": "01 02 03 04", "scale/c/0/0": numbers("float32", [0.5, 2]), "zero_point/c/0/0": "02 03"},
          [-0.5, 0, 0, 2]),
    )  # fmt: skip
    book = [i * i / 8 - 100 for i in range(256)]
    yield "quantized/codebook-of-256", v(
        ["quantized-4"], [4], {"codebook": book}, one(4), {"c/0": "00 ff 80 07"}, [book[i] for i in (0, 255, 128, 7)]
    )  # fmt: skip
    nf4 = [
        single(x)
        for x in (
            -1,
            -0.6962,
            -0.5251,
            -0.3949,
            -0.2844,
            -0.1848,
            -0.0911,
            0,
            0.0796,
            0.1609,
            0.2461,
            0.3379,
            0.4407,
            0.5626,
            0.723,
            1,
        )
    ]
    factors = [0.0625, 3.5]
    codes = [[0, 3, 7, 15], [9, 1, 14, 8]]
    yield (
        "quantized/codebook-of-16-in-groups",
        v(["quantized-4", "quantized-6", "quantized-8"], [2, 4],
          {"levels": 16, "per_byte": 2, "codebook": nf4, "scales": [{"block": [1, 4], "dtype": "bfloat16"}]},
          {"codes": ["uint8", [2, 2], [2, 2]], "scale": ["uint16", [2, 1], [2, 1]]},
          {"codes/c/0/0": packed(codes, 2), "scale/c/0/0": numbers("bfloat16", factors)},
          [product(nf4[code], factors[i]) for i, row in enumerate(codes) for code in row], dtype="bfloat16"),
    )  # fmt: skip
    yield "quantized/codebook-of-integers", v(
        ["quantized-4"], [3], {"levels": 3, "codebook": [-7, 0, 1 << 40]}, one(3), {"c/0": "02 00 01"}, [2.0**40, -7, 0]
    )  # fmt: skip
    yield "quantized/codebook-with-negative-zero", v(
        ["quantized-4"], [2], {"levels": 2, "codebook": [-0.0, 0.0]}, one(2), {"c/0": "00 01"}, [-0.0, 0.0]
    )  # fmt: skip
    large = [i / 4 - 30 for i in range(300)]
    yield (
        "quantized/codebook-as-an-array",
        v(["quantized-3", "quantized-4"], [3], {"levels": 300, "low_bits": 1},
          {"codes": ["uint8", [3], [3]], "low": ["uint8", [1], [1]], "codebook": ["float32", [300], [300]]},
          {"codes/c/0": packed([[149, 0, 3]]), "low/c/0": packed([[1, 0, 1]], 8), "codebook/c/0": numbers("float32", large)},
          [large[299], large[0], large[7]]),
    )  # fmt: skip
    for d in (2, 3, 8):
        vectors = [[float(10 * i + j) for j in range(d)] for i in range(5)]
        codes = [[4, 0, 3], [1, 2, 0]]
        arrays = {
            "codes": ["uint8", [2, 3], [2, 2]],
            "codebook": ["float32", [5, d], [5, d]],
            "scale": ["float16", [1, 3 * d], [1, 2 * d]],
        }
        across = [0.25 + i / 4 for i in range(3 * d)]
        yield (
            f"quantized/codebook-of-{d}-neighbours",
            v(["quantized-1", "quantized-4"], [2, 3 * d],
              {"levels": 5, "chunk_shape": [2, 2 * d], "scales": [{"block": [2, 1], "dtype": "float16"}]}, arrays,
              {"codes/c/0/0": "04 00 01 02", "codes/c/0/1": "03 00 00 04", "codebook/c/0/0": numbers("float32", list(itertools.chain(*vectors))),
               "scale/c/0/0": numbers("float16", across[: 2 * d]), "scale/c/0/1": numbers("float16", [*across[2 * d :], *[1] * d])},
              [x * across[d * i + j] for row in codes for i, code in enumerate(row) for j, x in enumerate(vectors[code])]),
        )  # fmt: skip

    # Scales.
    kinds = {
        "float32": ("float32", single(0.1)),
        "float16": ("float16", 0.0999755859375),
        "bfloat16": ("uint16", 0.10009765625),
    }
    for dtype, (data_type, x) in kinds.items():
        for name, block, count in (("tensor", [3, 4], [1, 1]), ("row", [1, 4], [3, 1]), ("column", [3, 1], [1, 4]), ("group", [1, 2], [3, 2]),
                                   ("short-group", [1, 3], [3, 2]), ("tile", [2, 3], [2, 2])):  # fmt: skip
            factors = [x * 2.0**i for i in range(count[0] * count[1])]
            yield (
                f"quantized/scales-of-a-{name}-in-{dtype}",
                v(["quantized-6"], [3, 4], {"levels": 16, "per_byte": 2, "zero_point": 3, "scales": [{"block": block, "dtype": dtype}]},
                  {"codes": ["uint8", [3, 2], [3, 2]], "scale": [data_type, count, count]},
                  {"codes/c/0/0": packed([[0, 15, 7, 4], [2, 9, 3, 8], [1, 6, 12, 11]], 2), "scale/c/0/0": numbers(dtype, factors)},
                  [product(code - 3, factors[(i // block[0]) * count[1] + j // block[1]])
                   for i, row in enumerate([[0, 15, 7, 4], [2, 9, 3, 8], [1, 6, 12, 11]]) for j, code in enumerate(row)]),
            )  # fmt: skip
    codes = [[(7 * i + 3 * j) % 11 for j in range(6)] for i in range(5)]
    tiles = [[1.5, 0.25, 2.0], [0.75, 3.0, 0.5], [4.0, 1.25, 0.125]]
    bodies = {}
    for i in range(2):
        for j in range(2):
            block = [
                [codes[r][c] if r < 5 and c < 6 else 10 for c in range(4 * j, 4 * j + 4)]
                for r in range(4 * i, 4 * i + 4)
            ]
            bodies[f"codes/c/{i}/{j}"] = packed(block)
            own = [tiles[r][c] if r < 3 and c < 3 else 9.0 for r in (2 * i, 2 * i + 1) for c in (2 * j, 2 * j + 1)]
            bodies[f"scale/c/{i}/{j}"] = numbers("float16", own)
    yield (
        "quantized/tiles-in-four-chunks",
        v(["quantized-1", "quantized-6"], [5, 6], {"levels": 11, "chunk_shape": [4, 4], "scales": [{"block": [2, 2], "dtype": "float16"}]},
          {"codes": ["uint8", [5, 6], [4, 4]], "scale": ["float16", [3, 3], [2, 2]]}, bodies,
          [codes[i][j] * tiles[i // 2][j // 2] for i in range(5) for j in range(6)]),
    )  # fmt: skip
    rows, columns, all_ = [single(x) for x in (0.1, -0.3, 7.7)], [single(x) for x in (1.1, 0.7)], single(1 / 3)
    yield (
        "quantized/row-times-column-times-number",
        v(["quantized-6", "quantized-8"], [3, 2],
          {"chunk_shape": [2, 2], "scales": [{"block": [1, 2], "dtype": "float32"}, {"block": [3, 1], "dtype": "float32"}, all_]},
          {"codes": ["uint8", [3, 2], [2, 2]], "scale": ["float32", [3, 1], [2, 1]], "scale-2": ["float32", [1, 2], [1, 2]]},
          {"codes/c/0/0": "03 05 07 0b", "codes/c/1/0": "0d 11 00 00", "scale/c/0/0": numbers("float32", rows[:2]),
           "scale/c/1/0": numbers("float32", [rows[2], 1]), "scale-2/c/0/0": numbers("float32", columns)},
          [product(code, rows[i // 2], columns[i % 2], all_) for i, code in enumerate((3, 5, 7, 11, 13, 17))]),
    )  # fmt: skip
    scales = [single(x) for x in (1 / 3, 1.7, 1 / 7, 9.1)]
    yield "quantized/four-numbers", v(
        ["quantized-6", "quantized-8"], [3], {"scales": scales}, one(3), {"c/0": "01 0d ff"}, [product(c, *scales) for c in (1, 13, 255)]
    )  # fmt: skip
    yield "quantized/numbers-behind-blocks", v(
        ["quantized-6"], [2], {"scales": [2, {"block": [1], "dtype": "float32"}]},
        {"codes": ["uint8", [2], [2]], "scale-2": ["float32", [2], [2]]},
        {"codes/c/0": "01 02", "scale-2/c/0": numbers("float32", [0.5, -0.5])}, [1, -2],
    )  # fmt: skip
    yield (
        "quantized/scales-are-integers",
        v(["quantized-6"], [2], {"scales": [1 << 24, -3]}, one(2), {"c/0": "01 02"}, [-3.0 * 2**24, -6.0 * 2**24]),
    )
    yield (
        "quantized/scale-0",
        v(["quantized-6"], [2], {"zero_point": 1, "scales": [0.0]}, one(2), {"c/0": "00 02"}, [-0.0, 0.0]),
    )
    yield "quantized/no-scales", v(["quantized-6"], [2], {"scales": []}, one(2), {"c/0": "00 02"}, [0, 2])
    for name, shape, chunk, block, count, own in (
        ("1-axis", [6], [4], [2], [3], [2]),
        ("3-axes", [2, 2, 4], [1, 2, 4], [1, 1, 2], [2, 2, 2], [1, 2, 2]),
        ("3-axes-of-columns", [2, 2, 4], [1, 2, 4], [2, 2, 1], [1, 1, 4], [1, 1, 4]),
        ("3-axes-of-columns-in-chunks", [2, 2, 4], [2, 1, 2], [2, 2, 1], [1, 1, 4], [1, 1, 2]),
        ("4-axes", [2, 1, 2, 3], [1, 1, 1, 3], [1, 1, 1, 3], [2, 1, 2, 1], [1, 1, 1, 1]),
        ("4-axes-of-the-tensor", [2, 1, 2, 3], [1, 1, 2, 2], [2, 1, 2, 3], [1, 1, 1, 1], [1, 1, 1, 1]),
        ("chunks-beyond-the-tensor", [2, 3], [2, 5], [2, 2], [1, 2], [1, 3]),
    ):

        def at(index: tuple[int, ...], shape: list[int]) -> int:
            flat = 0
            for i, n in zip(index, shape, strict=True):
                flat = flat * n + i
            return flat

        def body(
            extents: list[int], own: list[int], position: tuple[int, ...], value: Callable[[int], int]
        ) -> list[int]:
            """A chunk of an array whose number at flat index ``i`` is ``value(i)``."""
            found = []
            for inside in itertools.product(*map(range, own)):
                index = tuple(p * n + i for p, n, i in zip(position, own, inside, strict=True))
                good = all(i < n for i, n in zip(index, extents, strict=True))
                found.append(value(at(index, extents)) if good else 1)
            return found

        bodies = {}
        for position in itertools.product(*(range(-(-s // c)) for s, c in zip(shape, chunk, strict=True))):
            bodies["/".join(("codes/c", *map(str, position)))] = bytes(
                body(shape, chunk, position, lambda i: 10 * i)
            ).hex()
        for position in itertools.product(*(range(-(-s // c)) for s, c in zip(count, own, strict=True))):
            bodies["/".join(("scale/c", *map(str, position)))] = numbers(
                "float16", body(count, own, position, lambda i: 2**i)
            )
        values = [
            10.0 * at(index, shape) * 2 ** at(tuple(i // g for i, g in zip(index, block, strict=True)), count)
            for index in itertools.product(*map(range, shape))
        ]
        yield (
            f"quantized/blocks-of-{name}",
            v(["quantized-1", "quantized-6"], shape, {"chunk_shape": chunk, "scales": [{"block": block, "dtype": "float16"}]},
              {"codes": ["uint8", shape, chunk], "scale": ["float16", count, own]}, bodies, values),
        )  # fmt: skip

    # Values.
    halves = [
        1.0,
        1.00390625,
        1.01171875,
        1.005859375,
        3.3895313892515355e38,
        single(3.4e38),
        single(1e-40),
        -1.00390625,
    ]
    for dtype, book in {
        "bfloat16": halves,
        "float16": [65519.99609375, 65520.0, -1e9, 2.0**-25, 2.0**-24 * 1.5, 1.00048828125, 1.00146484375, 2.0**-26],
        "float32": [single(1e-45), single(0.1), -single(3.4028235e38), -0.0],
        "float64": [single(0.1), single(1e-45), single(3.4028235e38), -single(1 / 3)],
    }.items():
        book = [single(x) for x in book]
        codes = bytes(range(len(book))).hex()
        part = {"levels": len(book), "codebook": book}
        yield f"quantized/rounded-to-{dtype}", v(
            ["quantized-8"], [len(book)], part, one(len(book)), {"c/0": codes}, book, dtype=dtype
        )  # fmt: skip
        scaled = [single(x) for x in (0.1, -1 / 3)]
        yield (
            f"quantized/group-scales-to-{dtype}",
            v(["quantized-8"], [4], {"levels": 8, "zero_point": 3, "scales": [{"block": [2], "dtype": "float32"}, 0.75]},
              {"codes": ["uint8", [4], [4]], "scale": ["float32", [2], [2]]},
              {"codes/c/0": "00 07 01 05", "scale/c/0": numbers("float32", scaled)},
              [product(-3, scaled[0], 0.75), product(4, scaled[0], 0.75), product(-2, scaled[1], 0.75), product(2, scaled[1], 0.75)],
              dtype=dtype),
        )  # fmt: skip
    small = single(1e-30)
    yield "quantized/subnormal-products", v(
        ["quantized-8"], [2], {"scales": [small, single(3e-12)]}, one(2), {"c/0": "01 ff"},
        [product(1, small, single(3e-12)), product(255, small, single(3e-12))],
    )  # fmt: skip
    for dtype, factor, codes in (("float16", 300.0, "01 ff"), ("bfloat16", single(1.3344e36), "01 ff")):
        blocks = {"levels": 256, "scales": [{"block": [1], "dtype": "float32"}]}
        yield f"quantized/too-large-for-{dtype}", v(
            ["quantized-8"], [2], blocks, {"codes": ["uint8", [2], [2]], "scale": ["float32", [2], [2]]},
            {"codes/c/0": codes, "scale/c/0": numbers("float32", [factor, factor])},
            [product(1, factor), product(255, factor)], dtype=dtype,
        )  # fmt: skip
    yield (
        "quantized/narrow",
        short(["narrow-1", "narrow-2", "quantized-8"], dtype="float32", shape=[2], arrays=one(2),
              part={"encoding": "quantized", "levels": 256, "chunk_shape": [2], "dtype": "bfloat16", "scales": [single(0.1)]},
              bodies={"c/0": "01 03"}, words="0000cd3d 00009a3e"),
    )  # fmt: skip

    # Chunks that are refused.
    for name, clause, part, arrays, bodies in (
        ("code-of-nothing", "quantized-5", {"levels": 5}, one(3), {"c/0": "00 05 02"}),
        ("code-255-of-255", "quantized-5", {"levels": 255}, one(3), {"c/0": "00 ff 02"}),
        ("code-of-nothing-beyond-the-edge", "quantized-5", {"levels": 5, "chunk_shape": [4]}, {"": ["uint8", [3], [4]]}, {"c/0": "00 04 02 05"}),
        ("code-of-no-entry", "quantized-5", {"levels": 3, "codebook": [0.5, 1.0, 2.0]}, one(3), {"c/0": "00 03 02"}),
        ("byte-of-no-3-codes", "quantized-5", {"levels": 6, "per_byte": 3}, one(1), {"c/0": "d8"}),
        ("byte-of-no-5-codes", "quantized-5", {"levels": 3, "per_byte": 5}, one(1), {"c/0": "f3"}),
        ("byte-255-of-no-5-codes", "quantized-5", {"levels": 3, "per_byte": 5}, one(1), {"c/0": "ff"}),
        ("byte-of-no-codes-beyond-the-edge", "quantized-5", {"levels": 3, "per_byte": 5, "chunk_shape": [10]}, {"": ["uint8", [1], [2]]}, {"c/0": "00 f3"}),
        ("code-of-nothing-with-low-bits", "quantized-5", {"levels": 1000, "low_bits": 2},
         {"codes": ["uint8", [3], [3]], "low": ["uint8", [1], [1]]}, {"codes/c/0": "fa 00 00", "low/c/0": "00"}),
        ("scale-is-infinite", "quantized-7", {"scales": [{"block": [3], "dtype": "float16"}]},
         {"codes": ["uint8", [3], [3]], "scale": ["float16", [1], [1]]}, {"codes/c/0": "00 00 00", "scale/c/0": "00 7c"}),
        ("scale-is-nan", "quantized-7", {"scales": [{"block": [3], "dtype": "bfloat16"}]},
         {"codes": ["uint8", [3], [3]], "scale": ["uint16", [1], [1]]}, {"codes/c/0": "00 00 00", "scale/c/0": "ff ff"}),
        ("scale-is-nan-beyond-the-edge", "quantized-7", {"chunk_shape": [4], "scales": [1, {"block": [2], "dtype": "float32"}]},
         {"codes": ["uint8", [3], [4]], "scale-2": ["float32", [2], [2]]}, {"codes/c/0": "00 00 00 00", "scale-2/c/0": "0000803f 0000c07f"}),
        ("entry-is-infinite", "quantized-7", {"levels": 2},
         {"codes": ["uint8", [3], [3]], "codebook": ["float32", [2], [2]]}, {"codes/c/0": "00 00 00", "codebook/c/0": "0000803f 000080ff"}),
        ("scale-missing", "payload-4", {"scales": [{"block": [3], "dtype": "float16"}]},
         {"codes": ["uint8", [3], [3]], "scale": ["float16", [1], [1]]}, {"codes/c/0": "00 00 00"}),
    ):  # fmt: skip
        yield f"quantized/{name}", v([clause], [3], part, arrays, bodies, error="corrupt")

    # Documents that are refused: shape (2, 6), if nothing else is said.
    codes_ = ["uint8", [2, 6], [2, 6]]
    plain: dict[str, list[Any]] = {"": codes_}
    half = ["uint8", [2, 3], [2, 3]]

    def scaled_by(
        array: list[Any], block: Any = (1, 2), dtype: Any = "float16", name: str = "scale"
    ) -> tuple[Json, dict[str, list[Any]]]:
        block = list(block) if isinstance(block, tuple) else block
        return {"scales": [{"block": block, "dtype": dtype}]}, {"codes": codes_, name: array}

    def book_of(array: list[Any], levels: int = 4, codes: list[Any] = codes_) -> tuple[Json, dict[str, list[Any]]]:
        return {"levels": levels}, {"codes": codes, "codebook": array}

    def zeros(array: list[Any], block: Any = (1, 2)) -> tuple[Json, dict[str, list[Any]]]:
        return {"zero_point": {"block": list(block)}}, {"codes": codes_, "zero_point": array}

    groups = ["float16", [2, 3], [2, 3]]
    for name, clause, (part, arrays), more in (
        ("of-integers", "quantized-1", ({}, plain), {"dtype": "int32"}),
        ("of-float8", "quantized-1", ({}, plain), {"dtype": "float8_e5m2"}),
        ("of-complex", "quantized-1", ({}, plain), {"dtype": "complex64"}),
        ("of-a-scalar", "quantized-1", ({}, {"": ["uint8", [], []]}), {"shape": []}),
        ("of-nothing", "quantized-1", ({"chunk_shape": [1, 6]}, {"": ["uint8", [0, 6], [1, 6]]}), {"shape": [0, 6]}),
        ("no-levels", "quantized-1", ({"levels": None}, plain), {}),
        ("levels-0", "quantized-1", ({"levels": 0}, plain), {}),
        ("levels-negative", "quantized-1", ({"levels": -1}, plain), {}),
        ("levels-257", "quantized-1", ({"levels": 257}, plain), {}),
        ("levels-of-fractions", "quantized-1", ({"levels": 4.0}, plain), {}),
        ("levels-true", "quantized-1", ({"levels": True}, plain), {}),
        ("levels-of-text", "quantized-1", ({"levels": "4"}, plain), {}),
        ("levels-65537", "quantized-1", ({"levels": 65537, "low_bits": 8}, {"codes": codes_, "low": codes_}), {}),
        ("levels-without-end", "quantized-1", ({"levels": 10**400}, plain), {}),
        ("levels-of-9-bits-and-0-low", "quantized-1", ({"levels": 512, "low_bits": 0}, plain), {}),
        ("chunks-null", "quantized-1", ({"chunk_shape": None}, plain), {}),
        ("chunks-of-0", "quantized-1", ({"chunk_shape": [0, 6]}, plain), {}),
        ("chunks-of-fewer-axes", "quantized-1", ({"chunk_shape": [12]}, plain), {}),
        ("other-chunks", "quantized-1", ({"chunk_shape": [1, 6]}, plain), {}),
        ("chunks-too-large", "quantized-1", ({"levels": 2, "per_byte": 8, "chunk_shape": [2, 1 << 26]}, {"": ["uint8", [2, 1], [2, 1 << 23]]}), {}),
        ("chunks-of-more-rows", "quantized-1", ({"chunk_shape": [3, 6]}, {"": ["uint8", [2, 6], [3, 6]]}), {}),
        ("chunks-of-more-rows-than-scales", "quantized-1",
         ({"chunk_shape": [2, 3, 6], "scales": [{"block": [1, 1, 6], "dtype": "float16"}]},
          {"codes": ["uint8", [2, 1, 6], [2, 3, 6]], "scale": ["float16", [2, 1, 1], [2, 1, 1]]}), {"shape": [2, 1, 6]}),
        ("chunks-without-end", "quantized-1", ({"chunk_shape": [2, 10**400]}, plain), {}),
        ("per-byte-0", "quantized-2", ({"per_byte": 0}, plain), {}),
        ("per-byte-6", "quantized-2", ({"levels": 2, "per_byte": 6}, {"": ["uint8", [2, 1], [2, 1]]}), {}),
        ("per-byte-null", "quantized-2", ({"per_byte": None}, plain), {}),
        ("per-byte-of-other-levels", "quantized-2", ({"levels": 15, "per_byte": 2}, {"": half}), {}),
        ("per-byte-and-low-bits", "quantized-2", ({"levels": 16, "per_byte": 2, "low_bits": 1}, {"codes": half, "low": ["uint8", [2, 1], [2, 1]]}), {}),
        ("per-byte-of-neighbours", "quantized-2", ({"levels": 16, "per_byte": 2}, {"codes": ["uint8", [2, 2], [2, 2]], "codebook": ["float32", [16, 2], [16, 2]]}), {}),
        ("low-bits-9", "quantized-3", ({"levels": 65536, "low_bits": 9}, {"codes": codes_, "low": codes_}), {}),
        ("low-bits-negative", "quantized-3", ({"low_bits": -1}, plain), {}),
        ("low-bits-null", "quantized-3", ({"low_bits": None}, plain), {}),
        ("low-bits-without-array", "quantized-3", ({"levels": 512, "low_bits": 1}, plain), {}),
        ("array-of-no-low-bits", "quantized-3", ({}, {"codes": codes_, "low": codes_}), {}),
        ("low-bits-not-packed", "quantized-3", ({"levels": 512, "low_bits": 1}, {"codes": codes_, "low": codes_}), {}),
        ("codes-of-16-bits", "quantized-1", ({}, {"": ["uint16", [2, 6], [2, 6]]}), {}),
        ("codes-of-another-shape", "quantized-1", ({}, {"": ["uint8", [2, 7], [2, 6]]}), {}),
        ("codes-in-other-chunks", "quantized-1", ({}, {"": ["uint8", [2, 6], [2, 3]]}), {}),
        ("codes-not-packed", "quantized-2", ({"levels": 16, "per_byte": 2}, plain), {}),
        ("codes-without-axes", "quantized-1", ({}, {"": ["uint8", [], []]}), {}),
        ("bytes-cut-by-chunks", "quantized-1", ({"levels": 16, "per_byte": 2, "chunk_shape": [2, 3]}, {"": ["uint8", [2, 3], [2, 2]]}), {}),
        ("low-bits-cut-by-chunks", "quantized-1", ({"levels": 512, "low_bits": 1, "chunk_shape": [2, 4]}, {"codes": ["uint8", [2, 6], [2, 4]], "low": ["uint8", [2, 1], [2, 1]]}), {}),
        ("unknown-component", "quantized-1", ({}, {"codes": codes_, "more": codes_}), {}),
        ("no-codes", "quantized-1", ({}, {"code": codes_, "more": codes_}), {}),
        ("zero-point-65537", "quantized-4", ({"zero_point": 65537}, plain), {}),
        ("zero-point-null", "quantized-4", ({"zero_point": None}, plain), {}),
        ("zero-point-of-fractions", "quantized-4", ({"zero_point": 3.0}, plain), {}),
        ("zero-point-true", "quantized-4", ({"zero_point": True}, plain), {}),
        ("zero-points-without-array", "quantized-4", ({"zero_point": {"block": [1, 2]}}, plain), {}),
        ("zero-point-with-an-array", "quantized-4", ({"zero_point": 3}, zeros(["uint8", [2, 3], [2, 3]])[1]), {}),
        ("zero-points-of-32-bits", "quantized-4", zeros(["uint32", [2, 3], [2, 3]]), {}),
        ("zero-points-of-int8", "quantized-4", zeros(["int8", [2, 3], [2, 3]]), {}),
        ("zero-points-of-too-many-blocks", "quantized-6", zeros(["uint8", [2, 6], [2, 6]]), {}),
        ("zero-points-without-block", "quantized-6", ({"zero_point": {}}, zeros(["uint8", [2, 3], [2, 3]])[1]), {}),
        ("zero-point-and-codebook", "quantized-4", ({"levels": 2, "codebook": [0.0, 1.0], "zero_point": 1}, plain), {}),
        ("codebook-null", "quantized-4", ({"levels": 2, "codebook": None}, plain), {}),
        ("codebook-too-short", "quantized-4", ({"levels": 3, "codebook": [0.0, 1.0]}, plain), {}),
        ("codebook-too-long", "quantized-4", ({"levels": 1, "codebook": [0.0, 1.0]}, plain), {}),
        ("codebook-of-257", "quantized-4", ({"levels": 257, "low_bits": 1, "codebook": [0.5] * 257}, {"codes": codes_, "low": ["uint8", [2, 1], [2, 1]]}), {}),
        ("codebook-of-text", "quantized-4", ({"levels": 2, "codebook": [0.0, "1"]}, plain), {}),
        ("codebook-of-truth", "quantized-4", ({"levels": 2, "codebook": [0.0, True]}, plain), {}),
        ("codebook-of-lists", "quantized-4", ({"levels": 2, "codebook": [[0.0], [1.0]]}, plain), {}),
        ("codebook-of-64-bits", "quantized-4", ({"levels": 2, "codebook": [0.0, 0.1]}, plain), {}),
        ("codebook-too-large-a-number", "quantized-4", ({"levels": 2, "codebook": [0.0, 1e39]}, plain), {}),
        ("codebook-too-large-an-integer", "quantized-4", ({"levels": 2, "codebook": [0, 10**400]}, plain), {}),
        ("codebook-an-integer-of-25-bits", "quantized-4", ({"levels": 2, "codebook": [0, (1 << 24) + 1]}, plain), {}),
        ("codebook-twice", "quantized-4", ({"levels": 2, "codebook": [0.0, 1.0]}, book_of(["float32", [2], [2]])[1]), {}),
        ("codebook-of-other-levels", "quantized-4", book_of(["float32", [5], [5]]), {}),
        ("codebook-in-chunks", "quantized-4", book_of(["float32", [4], [2]]), {}),
        ("codebook-of-float64", "quantized-4", book_of(["float64", [4], [4]]), {}),
        ("codebook-without-axes", "quantized-4", book_of(["float32", [], []]), {}),
        ("codebook-of-0-neighbours", "quantized-4", book_of(["float32", [4, 0], [4, 1]]), {}),
        ("codebook-of-1-neighbour", "quantized-4", book_of(["float32", [4, 1], [4, 1]]), {}),
        ("codebook-of-9-neighbours", "quantized-4", book_of(["float32", [4, 9], [4, 9]], 4, ["uint8", [2, 1], [2, 1]]), {"shape": [2, 9]}),
        ("codebook-of-3-axes", "quantized-4", book_of(["float32", [4, 2, 1], [4, 2, 1]], 4, half), {}),
        ("neighbours-cut-by-the-edge", "quantized-1", book_of(["float32", [4, 4], [4, 4]], 4, ["uint8", [2, 2], [2, 2]]), {}),
        ("neighbours-cut-by-a-wide-chunk", "quantized-1", ({"levels": 4, "chunk_shape": [2, 7]}, {"codes": ["uint8", [2, 3], [2, 4]], "codebook": ["float32", [4, 2], [4, 2]]}), {}),
        ("neighbours-cut-by-chunks", "quantized-1", ({"levels": 4, "chunk_shape": [2, 3]}, {"codes": ["uint8", [2, 3], [2, 2]], "codebook": ["float32", [4, 2], [4, 2]]}), {}),
        ("neighbours-not-together", "quantized-1", book_of(["float32", [4, 2], [4, 2]]), {}),
        ("scales-null", "quantized-6", ({"scales": None}, plain), {}),
        ("scales-a-number", "quantized-6", ({"scales": 0.5}, plain), {}),
        ("five-scales", "quantized-6", ({"scales": [0.5] * 5}, plain), {}),
        ("scale-of-text", "quantized-6", ({"scales": ["0.5"]}, plain), {}),
        ("scale-true", "quantized-6", ({"scales": [True]}, plain), {}),
        ("scale-null", "quantized-6", ({"scales": [None]}, plain), {}),
        ("scale-of-64-bits", "quantized-6", ({"scales": [0.1]}, plain), {}),
        ("scale-too-large", "quantized-6", ({"scales": [1e39]}, plain), {}),
        ("scale-too-large-an-integer", "quantized-6", ({"scales": [10**400]}, plain), {}),
        ("scale-an-integer-of-54-bits", "quantized-6", ({"scales": [(1 << 53) + 1]}, plain), {}),
        ("scales-without-array", "quantized-6", ({"scales": [{"block": [1, 2], "dtype": "float16"}]}, plain), {}),
        ("scale-a-number-with-an-array", "quantized-6", ({"scales": [0.5]}, scaled_by(groups)[1]), {}),
        ("array-of-no-scale", "quantized-6", ({}, scaled_by(groups)[1]), {}),
        ("array-of-another-scale", "quantized-6", scaled_by(groups, name="scale-1"), {}),
        ("scales-of-float64", "quantized-6", scaled_by(["float64", [2, 3], [2, 3]], dtype="float64"), {}),
        ("scales-of-another-data-type", "quantized-6", scaled_by(["float32", [2, 3], [2, 3]]), {}),
        ("bfloat16-scales-as-float16", "quantized-6", scaled_by(groups, dtype="bfloat16"), {}),
        ("scales-without-dtype", "quantized-6", scaled_by(groups, dtype=None), {}),
        ("scales-of-other-chunks", "quantized-6", scaled_by(["float16", [2, 3], [2, 1]]), {}),
        ("scales-of-another-shape", "quantized-6", scaled_by(["float16", [2, 2], [2, 2]]), {}),
        ("block-null", "quantized-6", scaled_by(groups, None), {}),
        ("block-of-fewer-axes", "quantized-6", scaled_by(["float16", [6], [6]], (2,)), {}),
        ("block-of-0", "quantized-6", scaled_by(groups, (1, 0)), {}),
        ("block-larger-than-the-tensor", "quantized-6", scaled_by(["float16", [2, 1], [2, 1]], (1, 7)), {}),
        ("block-cut-by-chunks", "quantized-6", ({"chunk_shape": [2, 3], "scales": [{"block": [1, 2], "dtype": "float16"}]},
                                                {"codes": ["uint8", [2, 6], [2, 3]], "scale": ["float16", [2, 3], [2, 2]]}), {}),
        ("block-larger-than-chunks", "quantized-6", ({"chunk_shape": [2, 2], "scales": [{"block": [1, 4], "dtype": "float16"}]},
                                                     {"codes": ["uint8", [2, 6], [2, 2]], "scale": ["float16", [2, 2], [2, 1]]}), {}),
        ("block-over-some-axes", "quantized-6", ({"scales": [{"block": [2, 1, 2], "dtype": "float16"}]},
                                                 {"codes": ["uint8", [2, 2, 2], [2, 2, 2]], "scale": ["float16", [1, 2, 1], [1, 2, 1]]}), {"shape": [2, 2, 2]}),
        ("tiles-of-3-axes", "quantized-6", ({"scales": [{"block": [1, 2, 2], "dtype": "float16"}]},
                                            {"codes": ["uint8", [2, 4, 2], [2, 4, 2]], "scale": ["float16", [2, 2, 1], [2, 2, 1]]}), {"shape": [2, 4, 2]}),
    ):  # fmt: skip
        shape = more.pop("shape", [2, 6])
        yield f"quantized/{name}", v([clause, "quantized-1"], shape, part, arrays, error="format", **more)
    yield "quantized/unused-member", v(["document-2"], [2], {"more": {"block": 7}}, one(2), {"c/0": "00 02"}, [0, 2])


def sparse_vectors() -> Iterator[tuple[str, Json]]:
    def v(
        clauses: list[str], positions: list[str], values: list[str], words: str = "", *, n: int = 4, shape: list[int] | None = None,
        chunk: list[int] | None = None, part: Json | None = None, arrays: dict[str, list[Any]] | None = None, first: Json | None = None,
        bodies: dict[str, str] | None = None, error: str = "", dtype: str = "uint8", data_type: str = "uint8", **more: Any,
    ) -> Json:  # fmt: skip
        """A tensor of zeros in ``raw``, with a part behind it; a string of positions and of values for each chunk."""
        shape = [n] if shape is None else shape
        chunk = shape if chunk is None else chunk
        counts = [-(-s // c) for s, c in zip(shape, chunk, strict=True)]
        size = DTYPES[dtype][0] // 8
        m, room = len(unhex(positions[0])), len(unhex(values[0])) // size
        said: dict[str, list[Any]] = {
            "values": [data_type, shape, chunk],
            "2.positions": ["uint8", [*counts, m], [*(1 for _ in counts), m]],
            "2.values": [data_type, [*counts, room], [*(1 for _ in counts), room]],
        }
        zeros = "00" * size
        for extent in chunk:
            zeros *= extent
        held = {}
        for i, position in enumerate(itertools.product(*map(range, counts))):
            key = "/".join(map(str, position))
            held |= {f"values/c/{key}": zeros, f"2.positions/c/{key}/0": positions[i], f"2.values/c/{key}/0": values[i]}
        parts = [first or {"encoding": "raw"}, {"encoding": "sparse", "chunk_shape": chunk} | (part or {})]
        return short(
            clauses, dtype=dtype, shape=shape, parts=more.pop("parts", parts), arrays=said if arrays is None else arrays,
            bodies=held if bodies is None else bodies, words=words, error=error, **more,
        )  # fmt: skip

    def zeros(n: int, **at: str) -> str:
        """``n`` bytes 0, but those at given places (``_3="ff"``)."""
        return "".join(at.get(f"_{i}", "00") for i in range(n))

    rule = ["sparse-2"]
    yield "sparse/first-word", v(rule, ["00"], ["07"], "07 00 00 00")
    yield "sparse/last-word", v(rule, ["03"], ["07"], "00 00 00 07")
    yield "sparse/all-words", v(rule, ["00 00 00 00"], ["07 08 09 0a"], "07 08 09 0a")
    yield "sparse/none", v(rule, ["ff"], ["07"], "00 00 00 00")
    yield "sparse/values-left", v(rule, ["01 ff ff"], ["07 08 09"], "00 07 00 00")
    yield "sparse/bytes-left-in-the-middle", v(rule, ["01 ff"], ["07"], "00 07 00 00")
    for gap in (253, 254, 255, 256, 509, 510, 511):
        steps = "ff" * (gap // 255) + f"{gap % 255:02x}"
        yield (
            f"sparse/gap-of-{gap}",
            v(rule, [f"00 {steps}"], ["05 07"], zeros(600, **{"_0": "05", f"_{gap + 1}": "07"}), n=600),
        )
    yield (
        "sparse/two-axes-in-chunks",
        v(["sparse-1", "sparse-2", "grid-1"], ["01 01 ff ff", "00 00 00 00", "02 ff ff ff", "03 ff ff ff"],
          ["01 02 00 00", "03 04 05 06", "07 00 00 00", "08 00 00 00"], "00 01 03 00 02 05 00 00 00", shape=[3, 3], chunk=[2, 2]),
    )  # fmt: skip
    yield "sparse/beyond-the-edge", v(
        rule, ["01 00 02"], ["07 08 09"], "00 07 08", n=3, chunk=[6]
    )  # fmt: skip
    yield "sparse/of-float64", v(
        rule, ["01"], ["000000000000f03f"], "0000000000000000 000000000000f03f", n=2, dtype="float64", data_type="float64"
    )  # fmt: skip
    yield "sparse/of-complex", v(
        ["sparse-1", "word-4"], ["01"], ["0000803f"], "00000000 0000803f 00000000 00000000", shape=[2],
        parts=[{"encoding": "raw"}, {"encoding": "sparse", "chunk_shape": [2, 2]}], dtype="complex64",
        arrays={"values": ["float32", [2, 2], [2, 2]], "2.positions": ["uint8", [1, 1, 1], [1, 1, 1]], "2.values": ["float32", [1, 1, 1], [1, 1, 1]]},
        bodies={"values/c/0/0": "00" * 16, "2.positions/c/0/0/0": "01", "2.values/c/0/0/0": "0000803f"},
    )  # fmt: skip
    yield (
        "sparse/behind-planes",
        v(["tensor-4", "tensor-7"], [""], [""], "803f 00c0 0041", shape=[3], dtype="bfloat16",
          parts=[{"encoding": "planes", "rotate": True}, {"encoding": "sparse", "chunk_shape": [3]}],
          arrays={"planes": ["uint8", [2, 3], [2, 3]], "2.positions": ["uint8", [1, 1], [1, 1]], "2.values": ["uint16", [1, 1], [1, 1]]},
          bodies={"planes/c/0/0": "7f 80 7e 00 01 00", "2.positions/c/0/0": "02", "2.values/c/0/0": "0041"}),
    )  # fmt: skip
    sparse = {"encoding": "sparse", "chunk_shape": [4]}
    array: list[Any] = ["uint8", [1, 2], [1, 2]]
    yield (
        "sparse/one-behind-another",
        v(["tensor-4"], [""], [""], "01 08 09 00", parts=[{"encoding": "raw"}, sparse, sparse],
          arrays={"values": ["uint8", [4], [4]], "2.positions": array, "2.values": array, "3.positions": array, "3.values": array},
          bodies={"values/c/0": "00 00 00 00", "2.positions/c/0/0": "00 00", "2.values/c/0/0": "01 02", "3.positions/c/0/0": "01 00",
                  "3.values/c/0/0": "08 09"}),
    )  # fmt: skip
    yield (
        "sparse/behind-quantized-in-chunks",
        v(["tensor-7"], [""], [""], "0000 803f 0040 00c0 8040", shape=[5], dtype="bfloat16",
          parts=[{"encoding": "quantized", "levels": 16, "per_byte": 2, "chunk_shape": [4]}, sparse],
          arrays={"codes": ["uint8", [3], [2]], "2.positions": ["uint8", [2, 1], [1, 1]], "2.values": ["uint16", [2, 1], [1, 1]]},
          bodies={"codes/c/0": "10 02", "codes/c/1": "04 00", "2.positions/c/0/0": "03", "2.values/c/0/0": "00c0",
                  "2.positions/c/1/0": "ff", "2.values/c/1/0": "0000"}),
    )  # fmt: skip
    yield "sparse/with-zstd", v(
        ["sparse-1"], [""], [""], "00 07 00 00", n=4,
        arrays={"values": ["uint8", [4], [4]], "2.positions": ["uint8", [1, 1], [1, 1], True], "2.values": ["uint8", [1, 1], [1, 1], True]},
        bodies={"values/c/0": "00 00 00 00"},
        payloads={"2.positions/c/0/0": seal(b"\x28\xb5\x2f\xfd\x20\x01\x09\0\0\1").hex(), "2.values/c/0/0": seal(b"\x28\xb5\x2f\xfd\x20\x01\x09\0\0\7").hex()},
    )  # fmt: skip
    for name, positions, values in (
        ("position-beyond", "04", "07"),
        ("second-position-beyond", "00 03", "07 08"),
        ("position-beyond-by-255", "ff 00", "07 08"),
        ("more-positions-than-values", "00 00", "07"),
        ("position-behind-the-rest", "00 ff fe", "07 08"),
    ):
        yield f"sparse/{name}", v(["sparse-3"], [positions], [values], error="corrupt")

    good: dict[str, list[Any]] = {"values": ["uint8", [4], [4]], "2.positions": array, "2.values": array}
    raw: Json = {"encoding": "raw"}

    def without(*names: str, **more: list[Any]) -> dict[str, list[Any]]:
        return {name: value for name, value in good.items() if name not in names} | more

    for name, clause, parts, arrays, more in (
        ("no-values", "sparse-1", [raw, sparse], without("2.values"), {}),
        ("no-values-though-there-is-room", "sparse-1", [raw, sparse | {"room": 2}], without("2.values"), {}),
        ("no-positions", "sparse-1", [raw, sparse], without("2.positions"), {}),
        ("unknown-component", "sparse-1", [raw, sparse], good | {"2.more": array}, {}),
        ("component-without-its-number", "raw-1", [raw, sparse], good | {"positions": array}, {}),
        ("component-of-no-part", "raw-1", [raw, sparse], good | {"3.positions": array}, {}),
        ("component-of-number-1", "raw-1", [raw, sparse], without("values") | {"1.values": ["uint8", [4], [4]]}, {}),
        ("in-one-array", "sparse-1", [raw, sparse], {"": ["uint8", [4], [4]]}, {}),
        ("of-a-scalar", "sparse-1", [raw, {"encoding": "sparse", "chunk_shape": []}], {"values": ["uint8", [], []], "2.positions": ["uint8", [1], [1]], "2.values": ["uint8", [1], [1]]}, {"shape": []}),
        ("no-chunk-shape", "sparse-1", [raw, {"encoding": "sparse"}], good, {}),
        ("chunks-of-0", "sparse-1", [raw, sparse | {"chunk_shape": [0]}], good, {}),
        ("chunks-of-more-axes", "sparse-1", [raw, sparse | {"chunk_shape": [4, 1]}], good, {}),
        ("chunks-too-large", "sparse-1", [raw, sparse | {"chunk_shape": [(1 << 26) + 1]}], good, {}),
        ("other-chunks", "tensor-7", [raw, sparse | {"chunk_shape": [5]}], good, {}),
        ("smaller-chunks", "tensor-7", [raw, sparse | {"chunk_shape": [2]}], {"values": ["uint8", [4], [4]], "2.positions": ["uint8", [2, 1], [1, 1]], "2.values": ["uint8", [2, 1], [1, 1]]}, {}),
        ("room-for-no-position", "sparse-1", [raw, sparse], without("2.positions") | {"2.positions": ["uint8", [1, 0], [1, 1]]}, {}),
        ("room-for-no-value", "sparse-1", [raw, sparse], without("2.values") | {"2.values": ["uint8", [1, 0], [1, 1]]}, {}),
        ("room-for-too-many-positions", "sparse-1", [raw, sparse], without("2.positions") | {"2.positions": ["uint8", [1, 5], [1, 5]]}, {}),
        ("room-for-too-many-values", "sparse-1", [raw, sparse], without("2.values") | {"2.values": ["uint8", [1, 5], [1, 5]]}, {}),
        ("positions-in-pieces", "sparse-1", [raw, sparse], without("2.positions") | {"2.positions": ["uint8", [1, 2], [1, 1]]}, {}),
        ("positions-of-16-bits", "sparse-1", [raw, sparse], without("2.positions") | {"2.positions": ["uint16", [1, 2], [1, 2]]}, {}),
        ("values-of-16-bits", "sparse-1", [raw, sparse], without("2.values") | {"2.values": ["uint16", [1, 2], [1, 2]]}, {}),
        ("values-of-more-chunks", "sparse-1", [raw, sparse], without("2.values") | {"2.values": ["uint8", [2, 2], [1, 2]]}, {}),
        ("positions-without-axes", "sparse-1", [raw, sparse], without("2.positions") | {"2.positions": ["uint8", [], []]}, {}),
        ("behind-a-constant", "tensor-7", [raw, sparse], without("values") | {"values": ["uint8", [1], [1]]}, {}),
        ("behind-narrow", "tensor-7", [raw | {"dtype": "bfloat16"}, sparse],
         {"values": ["uint16", [4], [4]], "2.positions": array, "2.values": ["float32", [1, 2], [1, 2]]}, {"dtype": "float32"}),
        ("narrow", "tensor-7", [raw, sparse | {"dtype": "bfloat16"}],
         {"values": ["float32", [4], [4]], "2.positions": array, "2.values": ["uint16", [1, 2], [1, 2]]}, {"dtype": "float32"}),
        ("of-another-dtype", "narrow-1", [raw, sparse | {"dtype": "int8"}], good, {}),
    ):  # fmt: skip
        more = {"dtype": "uint8", "shape": [4]} | more
        also = {"tensor-4", "tensor-7", "nested-1", "raw-1"} - {clause} if clause == "sparse-1" else set()
        yield f"sparse/{name}", short([clause, *sorted(also)], parts=parts, arrays=arrays, error="format", **more)
    listed = v(rule, ["00"], ["07"], "07 00 00 00")
    listed["root"]["attributes"]["mzstore"]["features"] = ["planes"]
    del listed["tensors"]
    yield "sparse/feature-not-listed", listed | {"clauses": ["root-3"], "error": "format"}


def sparse_alone(
    clauses: list[str], positions: list[str], values: list[str], words: str = "", *, shape: list[int], chunk: list[int] | None = None,
    part: Json | None = None, low: list[str] | None = None, dtype: str = "uint8", data_type: str = "uint8",
    arrays: dict[str, list[Any]] | None = None, bodies: dict[str, str] | None = None, extents: list[int] | None = None, **more: Any,
) -> Json:  # fmt: skip
    """A tensor that ``sparse`` is the only part of; a string of positions and of values for each chunk.

    ``arrays`` and ``bodies`` are those of the values where they are no array of ``data_type``; ``extents`` the word shape.
    """
    extents = extents or shape
    chunk = chunk or extents
    counts = [-(-s // c) for s, c in zip(extents, chunk, strict=True)]
    ones = [1 for _ in counts]
    m = len(unhex(positions[0]))
    said: dict[str, list[Any]] = {"positions": ["uint8", [*counts, m], [*ones, m]]}
    held = {}
    if low:
        n = len(unhex(low[0]))
        said["low"] = ["uint8", [*counts, n], [*ones, n]]
    if arrays is None:
        room = len(unhex(values[0])) // (struct.calcsize(FORMATS[data_type]))
        said["values"] = [data_type, [*counts, room], [*ones, room]]
    for i, position in enumerate(itertools.product(*map(range, counts))):
        key = "/".join(map(str, position))
        held[f"positions/c/{key}/0"] = positions[i]
        if low:
            held[f"low/c/{key}/0"] = low[i]
        if arrays is None:
            held[f"values/c/{key}/0"] = values[i]
    whole = {"encoding": "sparse", "chunk_shape": chunk} | (part or {})
    return short(
        clauses, dtype=dtype, shape=shape, part=whole, arrays=said | (arrays or {}), bodies=held | (bodies or {}), words=words, **more
    )  # fmt: skip


FORMATS = {"uint8": "B", "uint16": "H", "uint64": "Q", "float16": "e", "float32": "f", "float64": "d"}


def dense(n: int, at: dict[int, int]) -> str:
    """``n`` bytes 0, but for those ``at`` places."""
    return bytes(at.get(i, 0) for i in range(n)).hex()


def index_vectors() -> Iterator[tuple[str, Json]]:
    """Positions in every form, in a part that is the first."""
    v = sparse_alone
    yield "sparse/first", v(["tensor-4", "sparse-2"], ["01 00"], ["07 08"], "00 07 08 00", shape=[4])
    yield "sparse/first-with-no-element", v(["sparse-2"], ["ff"], ["07"], "00 00 00 00", shape=[4])
    yield (
        "sparse/first-and-room-stated",
        v(["sparse-1"], ["01 ff"], ["07 08"], "00 07 00 00", shape=[4], part={"room": 2}),
    )
    yield "sparse/first-in-chunks", v(
        ["sparse-1", "grid-1"], ["00 02", "01 00", "01 ff", "ff ff"], ["01 02", "03 09", "05 09", "09 09"],
        "01 00 00 00 02 09 00 05 00", shape=[3, 3], chunk=[2, 2],
    )  # fmt: skip
    yield "sparse/first-of-3-axes", v(
        ["sparse-1"], ["03 05"], ["07 08"], dense(12, {3: 7, 9: 8}), shape=[2, 3, 2]
    )  # fmt: skip
    yield "sparse/first-of-nothing", short(
        ["sparse-1", "grid-1"], dtype="uint8", shape=[0, 3], part={"encoding": "sparse", "chunk_shape": [1, 3]},
        arrays={"positions": ["uint8", [0, 1, 1], [1, 1, 1]], "values": ["uint8", [0, 1, 2], [1, 1, 2]]},
    )  # fmt: skip
    for dtype, data_type, value in (
        ("float64", "float64", "000000000000f03f"), ("bfloat16", "uint16", "803f"), ("float16", "float16", "003c"),
        ("float8_e4m3fn", "uint8", "81"), ("float8_e8m0fnu", "uint8", "7f"), ("bool", "uint8", "02"),
    ):  # fmt: skip
        size = len(unhex(value))
        yield f"sparse/first-of-{dtype}", v(
            ["sparse-1"], ["01"], [value], "00" * size + value + "00" * size, shape=[3], dtype=dtype, data_type=data_type
        )  # fmt: skip
    yield "sparse/first-of-uint4", v(
        ["sparse-1", "word-3"], ["01"], ["5f"], "00 5f", shape=[3], dtype="uint4", extents=[2]
    )  # fmt: skip
    yield "sparse/first-of-complex", v(
        ["sparse-1", "word-4"], ["02"], ["0000803f"], "00000000 00000000 0000803f 00000000", shape=[2], extents=[2, 2],
        dtype="complex64", data_type="float32",
    )  # fmt: skip

    for gap in (0, 255, 256, 300, 511):
        words = dense(600, {0: 5, gap + 1: 7})
        yield f"sparse/low-bits-of-a-gap-of-{gap}", v(
            ["sparse-2"], [f"00 {gap >> 8:02x}"], ["05 07"], words, low=[f"00 {gap & 255:02x}"], part={"low_bits": 8}, shape=[600]
        )  # fmt: skip
    yield "sparse/low-bits-left", v(
        ["sparse-2", "sparse-3"], ["00 ff ff"], ["05 07 09"], dense(600, {3: 5}), low=["03 ff ff"], part={"low_bits": 8}, shape=[600]
    )  # fmt: skip
    yield (
        "sparse/low-bits-0",
        v(["sparse-1"], ["01"], ["07"], "00 07", shape=[2], part={"low_bits": 0, "index": "gaps"}),
    )

    for n, bits, values, words in (
        (8, "81", "07 08", dense(8, {0: 7, 7: 8})), (9, "00 01", "07", dense(9, {8: 7})), (3, "07", "01 02 03", "01 02 03"),
        (11, "00 00", "07", dense(11, {})), (4, "02", "07 08 09", "00 07 00 00"),
    ):  # fmt: skip
        yield f"sparse/bitmap-of-{n}", v(["sparse-4"], [bits], [values], words, shape=[n], part={"index": "bitmap"})
    for name, clause, n, bits, values in (
        ("bit-beyond", "sparse-4", 3, "08", "07"), ("last-bit-beyond", "sparse-4", 15, "01 80", "07 08"),
        ("more-bits-than-room", "sparse-3", 3, "03", "07"),
    ):  # fmt: skip
        yield f"sparse/bitmap-with-{name}", v(
            [clause, "sparse-3"], [bits], [values], shape=[n], part={"index": "bitmap"}, error="corrupt"
        )  # fmt: skip

    for p, g in ((1, 2), (2, 4), (1, 4), (3, 4), (4, 8), (7, 8), (1, 8), (3, 5), (2, 3)):
        every = sorted(sum(1 << i for i in places) for places in itertools.combinations(range(g), p))
        c = len(every)
        k = max(k for k in range(1, 9) if c**k <= 256)
        ranks = [(5 * i + c - 1) % c for i in range(k + 1)]
        taken = [g * group + i for group, rank in enumerate(ranks) for i in range(g) if every[rank] >> i & 1]
        digits = [*ranks, *[c - 1] * (2 * k - len(ranks))]  # what is left of the last byte may be anything
        body = [sum(digits[b * k + i] * c**i for i in range(k)) for b in range(2)]
        yield f"sparse/pattern-{p}-of-{g}", v(
            ["sparse-5"], [bytes(body).hex()], [bytes(range(1, len(taken) + 1)).hex()],
            dense(g * (k + 1), {at: i + 1 for i, at in enumerate(taken)}), shape=[g * (k + 1)], part={"index": "pattern", "pattern": [p, g]},
        )  # fmt: skip
        if c**k < 256:
            yield f"sparse/pattern-{p}-of-{g}-and-a-byte-of-none", v(
                ["sparse-5", "sparse-3"], [bytes([0, c**k]).hex()], [dense(len(taken), {})], shape=[g * (k + 1)],
                part={"index": "pattern", "pattern": [p, g]}, error="corrupt",
            )  # fmt: skip

    for name, block, shape, chunk, positions, values, at in (
        ("1-by-2", [1, 2], [2, 4], [2, 4], ["01 00"], ["01 02 03 04"], {2: 1, 3: 2, 4: 3, 5: 4}),
        ("2-by-1", [2, 1], [2, 4], [2, 4], ["01 01"], ["01 02 03 04"], {1: 1, 5: 2, 3: 3, 7: 4}),
        ("2-by-2", [2, 2], [4, 4], [4, 4], ["01 01"], ["01 02 03 04 05 06 07 08"],
         {2: 1, 3: 2, 6: 3, 7: 4, 10: 5, 11: 6, 14: 7, 15: 8}),
        ("2-by-2-and-room", [2, 2], [4, 4], [4, 4], ["02 ff"], ["01 02 03 04 05 06 07 08"], {8: 1, 9: 2, 12: 3, 13: 4}),
        ("1-by-4-of-1-axis", [1, 4], [12], [12], ["01"], ["01 02 03 04"], {4: 1, 5: 2, 6: 3, 7: 4}),
        ("2-by-2-of-3-axes", [2, 2], [2, 2, 4], [2, 2, 4], ["01 01"], ["01 02 03 04 05 06 07 08"],
         {2: 1, 3: 2, 6: 3, 7: 4, 10: 5, 11: 6, 14: 7, 15: 8}),
        ("2-by-2-at-the-edge", [2, 2], [3, 3], [4, 4], ["03"], ["01 02 03 04"], {8: 1}),
        ("4-by-4-whole", [4, 4], [4, 4], [4, 4], ["00"], [bytes(range(1, 17)).hex()], {i: i + 1 for i in range(16)}),
    ):  # fmt: skip
        size = 1
        for extent in shape:
            size *= extent
        yield f"sparse/block-{name}", v(
            ["sparse-1", "sparse-3"], positions, values, dense(size, at), shape=shape, chunk=chunk, part={"block": block}
        )  # fmt: skip
    yield "sparse/block-in-chunks", v(
        ["sparse-1", "sparse-3"], ["00", "01"], ["01 02", "03 04"], "01 02 00 00 00 00 03 04", shape=[1, 8], chunk=[1, 4], part={"block": [1, 2]}
    )  # fmt: skip
    yield "sparse/block-and-bitmap", v(
        ["sparse-3", "sparse-4"], ["05"], ["01 02 03 04 09 09"], "01 02 00 00 03 04", shape=[1, 6], part={"block": [1, 2], "index": "bitmap"}
    )  # fmt: skip
    yield "sparse/block-and-pattern", v(
        ["sparse-3", "sparse-5"], ["09"], ["01 02 03 04 05 06 07 08"], "01 02 00 00 00 00 03 04" + "05 06 00 00 07 08 00 00", shape=[2, 8],
        part={"block": [1, 2], "index": "pattern", "pattern": [2, 4]},
    )  # fmt: skip
    yield "sparse/block-and-low-bits", v(
        ["sparse-2", "sparse-3"], ["00 01"], ["01 02 03 04"], dense(800, {2: 1, 3: 2, 2 * 302: 3, 2 * 302 + 1: 4}), low=["01 2c"],
        shape=[1, 800], part={"block": [1, 2], "low_bits": 8},
    )  # fmt: skip
    for name, part, positions, values, low in (
        ("place-beyond-in-blocks", {"block": [1, 2]}, "02", "01 02", None),
        ("more-places-than-blocks-of-values", {"block": [1, 2]}, "00 00", "01 02", None),
        ("place-beyond-by-low-bits", {"low_bits": 8}, "00", "07", "04"),
        ("place-beyond-by-a-pass-with-low-bits", {"low_bits": 8}, "ff 00", "07 08", "00 00"),
        ("more-places-than-low-bits", {"low_bits": 8}, "00 00", "07", "00"),
    ):  # fmt: skip
        yield f"sparse/{name}", v(
            ["sparse-3"], [positions], [values], shape=[4], part=part, low=[low] if low else None, error="corrupt"
        )  # fmt: skip

    # Documents that are refused: shape (4), positions of 2 bytes and room for 2, if nothing else is said.
    plain: dict[str, list[Any]] = {"positions": ["uint8", [1, 2], [1, 2]], "values": ["uint8", [1, 2], [1, 2]]}
    one = {"positions": ["uint8", [1, 1], [1, 1]], "values": plain["values"]}
    lows = ["uint8", [1, 2], [1, 2]]
    for name, clause, part, arrays, more in (
        ("index-unknown", "sparse-1", {"index": "runs"}, plain, {}),
        ("index-null", "sparse-1", {"index": None}, plain, {}),
        ("index-a-list", "sparse-1", {"index": ["gaps"]}, plain, {}),
        ("low-bits-4", "sparse-1", {"low_bits": 4}, plain | {"low": lows}, {}),
        ("low-bits-null", "sparse-1", {"low_bits": None}, plain, {}),
        ("low-bits-true", "sparse-1", {"low_bits": False}, plain, {}),
        ("low-bits-negative", "sparse-1", {"low_bits": -8}, plain, {}),
        ("low-bits-of-a-bitmap", "sparse-1", {"index": "bitmap", "low_bits": 8}, one | {"low": lows}, {}),
        ("low-bits-without-array", "sparse-1", {"low_bits": 8}, plain, {}),
        ("array-of-no-low-bits", "sparse-1", {}, plain | {"low": lows}, {}),
        ("low-bits-of-other-elements", "sparse-1", {"low_bits": 8}, plain | {"low": ["uint8", [1, 3], [1, 3]]}, {}),
        ("low-bits-of-16-bits", "sparse-1", {"low_bits": 8}, plain | {"low": ["uint16", [1, 2], [1, 2]]}, {}),
        ("pattern-with-gaps", "sparse-1", {"pattern": [2, 4]}, one, {}),
        ("pattern-null", "sparse-1", {"pattern": None}, plain, {}),
        ("pattern-missing", "sparse-1", {"index": "pattern"}, one, {}),
        ("pattern-of-one-number", "sparse-5", {"index": "pattern", "pattern": [2]}, one, {}),
        ("pattern-of-three-numbers", "sparse-5", {"index": "pattern", "pattern": [2, 4, 1]}, one, {}),
        ("pattern-of-all", "sparse-5", {"index": "pattern", "pattern": [4, 4]}, one, {}),
        ("pattern-of-none", "sparse-5", {"index": "pattern", "pattern": [0, 4]}, one, {}),
        ("pattern-of-9", "sparse-5", {"index": "pattern", "pattern": [1, 9]}, one, {"shape": [18]}),
        ("pattern-of-fractions", "sparse-5", {"index": "pattern", "pattern": [2.0, 4]}, one, {}),
        ("pattern-that-does-not-divide", "sparse-5", {"index": "pattern", "pattern": [2, 3]}, one, {}),
        ("pattern-and-other-room", "sparse-5", {"index": "pattern", "pattern": [1, 4]}, one, {}),
        ("pattern-of-too-many-bytes", "sparse-5", {"index": "pattern", "pattern": [2, 4]}, plain, {}),
        ("bitmap-of-too-many-bytes", "sparse-4", {"index": "bitmap"}, plain, {}),
        ("block-of-0", "sparse-1", {"block": [0, 1]}, plain, {}),
        ("block-of-one-number", "sparse-1", {"block": [2]}, plain, {}),
        ("block-null", "sparse-1", {"block": None}, plain, {}),
        ("block-without-end", "sparse-1", {"block": [1, 1 << 62]}, plain, {}),
        ("block-that-does-not-divide", "sparse-1", {"block": [1, 3]}, plain, {}),
        ("block-of-2-rows-in-1-axis", "sparse-1", {"block": [2, 1]}, plain, {}),
        ("block-over-the-rows-of-two", "sparse-1", {"block": [2, 1], "chunk_shape": [2, 1, 2]},
         {"positions": ["uint8", [1, 1, 1, 1], [1, 1, 1, 1]], "values": ["uint8", [1, 1, 1, 2], [1, 1, 1, 2]]}, {"shape": [2, 1, 2]}),
        ("block-cut-by-room", "sparse-1", {"block": [1, 2], "room": 3}, plain | {"values": ["uint8", [1, 3], [1, 3]]}, {}),
        ("room-0", "sparse-1", {"room": 0}, plain, {}),
        ("room-null", "sparse-1", {"room": None}, plain, {}),
        ("room-of-text", "sparse-1", {"room": "2"}, plain, {}),
        ("room-too-large", "sparse-1", {"room": 5}, plain | {"values": ["uint8", [1, 5], [1, 5]]}, {}),
        ("room-without-end", "sparse-1", {"room": 10**400}, plain, {}),
        ("room-of-another-array", "sparse-1", {"room": 3}, plain, {}),
        ("room-not-said", "sparse-1", {"values": {"encoding": "raw"}}, plain, {}),
        ("values-null", "nested-1", {"room": 2, "values": None}, plain, {}),
        ("values-a-list", "nested-1", {"room": 2, "values": [{"encoding": "raw"}]}, plain, {}),
        ("values-without-encoding", "nested-1", {"room": 2, "values": {}}, plain, {}),
        ("values-of-a-list-of-encodings", "nested-1", {"room": 2, "values": {"encoding": ["raw"]}}, plain, {}),
        ("values-of-an-unknown-encoding", "nested-1", {"room": 2, "values": {"encoding": "trellis"}}, plain, {}),
        ("values-sparse", "nested-1", {"room": 2, "values": {"encoding": "sparse", "chunk_shape": [1, 2]}},
         {"positions": plain["positions"], "values.positions": ["uint8", [1, 1, 1], [1, 1, 1]], "values.values": ["uint8", [1, 1, 1], [1, 1, 1]]}, {}),
        ("values-base", "nested-1", {"room": 2, "values": {"encoding": "base", "base": 0, "tensor": "w", "sha256": "0" * 64}}, plain, {}),
        ("values-constant", "nested-1", {"room": 2}, plain | {"values": ["uint8", [1, 1], [1, 1]]}, {}),
        ("values-of-an-unknown-dtype", "nested-1", {"room": 2, "values": {"encoding": "raw", "dtype": "float7"}}, plain, {}),
        ("values-of-a-dtype-that-is-a-list", "nested-1", {"room": 2, "values": {"encoding": "raw", "dtype": ["uint8"]}}, plain, {}),
        ("values-of-a-wider-dtype", "sparse-1", {"room": 2, "values": {"encoding": "raw", "dtype": "uint16"}}, plain | {"values": ["uint16", [1, 2], [1, 2]]}, {}),
        ("values-of-another-dtype", "sparse-1", {"room": 2, "values": {"encoding": "raw", "dtype": "int8"}}, plain | {"values": ["int8", [1, 2], [1, 2]]}, {}),
        ("values-quantized-in-integers", "sparse-1", {"room": 2, "values": {"encoding": "quantized", "levels": 4, "chunk_shape": [1, 2]}}, plain, {}),
        ("values-in-two-forms", "nested-1", {}, plain | {"values.codes": plain["values"]}, {}),
        ("values-under-the-name-of-a-code", "nested-1",
         {"room": 2, "values": {"encoding": "quantized", "levels": 4, "chunk_shape": [1, 2]}},
         {"positions": plain["positions"], "values.codes": plain["values"]}, {"dtype": "float32"}),
        ("values-under-the-name-of-values", "nested-1", {"room": 2}, {"positions": plain["positions"], "values.values": plain["values"]}, {}),
        ("values-under-a-name-with-a-dot", "nested-1", {"room": 2}, {"positions": plain["positions"], "values.": plain["values"]}, {}),
        ("values-in-pieces", "sparse-1", {}, plain | {"values": ["uint8", [1, 2], [1, 1]]}, {}),
        ("values-quantized-in-pieces", "sparse-1", {"room": 2, "values": {"encoding": "quantized", "levels": 4, "chunk_shape": [1, 1]}},
         plain | {"values": ["uint8", [1, 2], [1, 1]]}, {"dtype": "float32"}),
        ("first-is-combined", "tensor-7", {"combine": "replace"}, plain, {}),
        ("unknown-array", "sparse-1", {}, plain | {"more": lows}, {}),
    ):  # fmt: skip
        whole = {"encoding": "sparse", "chunk_shape": more.get("shape", [4])} | part
        also = {"sparse-1", "nested-1", "raw-1", "quantized-1", "sparse-4", "sparse-5", "tensor-7"} - {clause}
        more = {"dtype": "uint8", "shape": [4]} | more
        yield f"sparse/{name}", short([clause, *sorted(also)], part=whole, arrays=arrays, error="format", **more)


def values_vectors() -> Iterator[tuple[str, Json]]:
    """Values of ``sparse`` in every encoding and narrower dtype."""
    v = sparse_alone
    for dtype, data_type, stored, words in (
        ("bfloat16", "uint16", "c03f 01ff", "00000000 0000c03f 000001ff 00000000"),
        ("float16", "float16", "003c 0080", "00000000 0000803f 00000080 00000000"),
    ):
        yield f"sparse/values-of-{dtype}", v(
            ["sparse-1", "narrow-1", "narrow-2"], ["01 00"], [], words, shape=[4], dtype="float32",
            part={"room": 2, "values": {"encoding": "raw", "dtype": dtype}}, arrays={"values": [data_type, [1, 2], [1, 2]]},
            bodies={"values/c/0/0": stored},
        )  # fmt: skip
    yield "sparse/narrow-as-a-whole", v(
        ["sparse-1", "narrow-1"], ["02"], ["c03f"], "00000000 00000000 0000c03f", shape=[3], dtype="float32", data_type="uint16",
        part={"dtype": "bfloat16"},
    )  # fmt: skip
    yield "sparse/values-in-planes", v(
        ["nested-1", "planes-3"], ["00 01 00"], [], "803f 0000 00c0 003f", shape=[4], dtype="bfloat16",
        part={"room": 3, "values": {"encoding": "planes", "rotate": True}}, arrays={"values": ["uint8", [2, 1, 3], [2, 1, 3]]},
        bodies={"values/c/0/0/0": "7f 80 7e 00 01 00"},
    )  # fmt: skip
    yield "sparse/values-in-planes-with-symbols", v(
        ["nested-1", "planes-4"], ["00 01 00"], [], "803f 0000 00c0 003f", shape=[4], dtype="bfloat16",
        part={"room": 3, "values": {"encoding": "planes", "rotate": True, "top_bits": 9, "symbols": [[252, 1], [254, 1], [256, 1]]}},
        arrays={"values": ["uint8", [2, 1, 3], [2, 1, 3]]}, bodies={"values/c/0/0/0": "01 02 00 00 01 00"},
    )  # fmt: skip
    yield "sparse/values-in-planes-with-ranks", v(
        ["nested-1", "planes-5", "planes-6"], ["00 01 00"], [], "803f 0000 00c0 003f", shape=[4], dtype="bfloat16",
        part={"room": 3, "values": {"encoding": "planes", "rotate": True, "ranks": 126, "chunk_shape": [1, 3]}},
        arrays={"values": ["uint8", [1, 1, 13], [1, 1, 13]]}, bodies={"values/c/0/0/0": "f1 00 00 01 00 80010000 ffffffff"},
    )  # fmt: skip
    codes: Json = {
        "encoding": "quantized",
        "levels": 16,
        "chunk_shape": [1, 3],
        "per_byte": 2,
        "zero_point": 8,
        "scales": [0.5],
    }
    one: dict[str, list[Any]] = {"values": ["uint8", [2, 2], [1, 2]]}
    yield "sparse/values-of-codes-in-chunks", v(
        ["nested-1", "quantized-2"], ["00 01 ff", "01 ff ff"], [], words_of("bfloat16", [1, 0, -0.5, 0, 0, 0.5]), shape=[6], chunk=[4],
        dtype="bfloat16", part={"room": 3, "values": codes}, arrays=one, bodies={"values/c/0/0": "7a 08", "values/c/1/0": "89 08"},
    )  # fmt: skip
    book = codes | {
        "levels": 3,
        "per_byte": 1,
        "zero_point": 0,
        "scales": [{"block": [1, 4], "dtype": "float16"}],
        "chunk_shape": [1, 4],
    }
    three: dict[str, list[Any]] = {
        "values.codes": ["uint8", [1, 4], [1, 4]], "values.scale": ["float16", [1, 1], [1, 1]], "values.codebook": ["float32", [3], [3]],
    }  # fmt: skip
    yield "sparse/values-of-codes-in-several-arrays", v(
        ["nested-1", "quantized-4"], ["00 01"], [], words_of("float32", [-6, 0, 1.5, 0]), shape=[4], chunk=[4], dtype="float32",
        part={"room": 4, "values": book}, arrays=three,
        bodies={"values.codes/c/0/0": "00 02 01 01", "values.scale/c/0/0": numbers("float16", [3.0]),
                "values.codebook/c/0": numbers("float32", [-2, 0, 0.5])},
    )  # fmt: skip
    yield "sparse/values-of-neighbours-in-blocks", v(
        ["nested-1", "quantized-4"], ["01"], [], words_of("float32", [0, 0, 3, 4, 0, 0, 1, 2]), shape=[2, 4], dtype="float32",
        part={"room": 4, "block": [2, 2], "values": {"encoding": "quantized", "levels": 2, "chunk_shape": [1, 1, 4]}},
        arrays={"values.codes": ["uint8", [1, 1, 2], [1, 1, 2]], "values.codebook": ["float32", [2, 2], [2, 2]]},
        bodies={"values.codes/c/0/0/0": "01 00", "values.codebook/c/0/0": numbers("float32", [1, 2, 3, 4])},
    )  # fmt: skip
    # Rounded to bfloat16 first, which binary32 then holds: 1.00390625 lies half way between two numbers.
    halves = [single(x) for x in (1.00390625, 1.01171875)]
    yield "sparse/values-of-codes-rounded-to-a-narrower-dtype", v(
        ["nested-1", "narrow-2", "quantized-8"], ["00 00"], [], words_of("float32", [1.0, 1.015625]), shape=[2], dtype="float32",
        part={"room": 2, "values": {"encoding": "quantized", "levels": 2, "chunk_shape": [1, 2], "codebook": halves, "dtype": "bfloat16"}},
        arrays={"values": ["uint8", [1, 2], [1, 2]]}, bodies={"values/c/0/0": "00 01"},
    )  # fmt: skip
    few: Json = {"encoding": "quantized", "levels": 3, "chunk_shape": [1, 2]}
    for name, clause, positions, values, scale in (
        ("code-of-nothing-behind-the-last-place", "quantized-5", "00 ff", "00 03", None),
        ("code-of-nothing-though-no-place-is-taken", "quantized-5", "ff ff", "00 03", None),
        ("scale-of-values-not-finite", "quantized-7", "00 00", "00 01", "007c"),
    ):
        part = few | ({"scales": [{"block": [1, 2], "dtype": "float16"}]} if scale else {})
        own: dict[str, list[Any]] = {"values": ["uint8", [1, 2], [1, 2]]}
        bodies = {"values/c/0/0": values}
        if scale:
            own = {"values.codes": own["values"], "values.scale": ["float16", [1, 1], [1, 1]]}
            bodies = {"values.codes/c/0/0": values, "values.scale/c/0/0": scale}
        yield f"sparse/{name}", v(
            [clause, "nested-1"], [positions], [], shape=[4], dtype="float32", part={"room": 2, "values": part}, arrays=own, bodies=bodies,
            error="corrupt",
        )  # fmt: skip
    yield "sparse/values-missing", v(
        ["payload-4"], ["ff ff"], [], shape=[4], dtype="float32", part={"room": 2, "values": few},
        arrays={"values": ["uint8", [1, 2], [1, 2]]}, error="corrupt",
    )  # fmt: skip
    yield (
        "sparse/low-bits-missing",
        short(["payload-4"], dtype="uint8", shape=[4], part={"encoding": "sparse", "chunk_shape": [4], "low_bits": 8},
              arrays={name: ["uint8", [1, 2], [1, 2]] for name in ("positions", "low", "values")},
              bodies={"positions/c/0/0": "00 00", "values/c/0/0": "00 00"}, error="corrupt"),
    )  # fmt: skip
    listed = v(["root-3"], ["00 01 00"], [], "803f 0000 00c0 003f", shape=[4], dtype="bfloat16",
               part={"room": 3, "values": {"encoding": "planes", "rotate": True}}, arrays={"values": ["uint8", [2, 1, 3], [2, 1, 3]]},
               bodies={"values/c/0/0/0": "7f 80 7e 00 01 00"})  # fmt: skip
    listed["root"]["attributes"]["mzstore"]["features"] = ["sparse"]
    del listed["tensors"]
    yield "sparse/feature-of-values-not-listed", listed | {"clauses": ["root-3", "nested-1"], "error": "format"}


def multiplied(left: list[list[float]], right: list[list[float]], scale: float = 1.0) -> list[float]:
    """The products of two matrices of binary32, each operation rounded to it; the sum of two such numbers in binary64, rounded
    again, is that of binary32."""
    found = []
    for row in left:
        for column in zip(*right, strict=True):
            total = single(row[0] * column[0])
            for a, b in zip(row[1:], column[1:], strict=True):
                total = single(total + single(a * b))
            found.append(single(total * scale))
    return found


def lowrank_vectors() -> Iterator[tuple[str, Json]]:
    raw: Json = {"encoding": "raw"}

    def v(
        clauses: list[str], left: list[list[float]], right: list[list[float]], *, scale: float | None = None, dtype: str = "float32",
        shape: list[int] | None = None, kinds: tuple[str, str] = ("float32", "float32"), **more: Any,
    ) -> Json:  # fmt: skip
        rows, rank, cols = len(left), len(left[0]), len(right[0])
        shape = shape or [rows, cols]
        part = {"encoding": "lowrank", "chunk_shape": shape, "rank": rank}
        for name, kind in zip(("left", "right"), kinds, strict=True):
            part[name] = raw if kind == "float32" else raw | {"dtype": kind}
        lead = shape[:-1]
        words = words_of(dtype, multiplied(left, right, 1.0 if scale is None else scale))
        disk = {"bfloat16": "uint16"}
        return short(
            clauses, dtype=dtype, shape=shape, part=part | ({} if scale is None else {"scale": scale}) | more.pop("part", {}),
            arrays={"left": [disk.get(kinds[0], kinds[0]), [*lead, rank], [*lead, rank]],
                    "right": [disk.get(kinds[1], kinds[1]), [rank, cols], [rank, cols]]},
            bodies={"/".join(["left/c", *("0" for _ in lead), "0"]): numbers(kinds[0], [x for row in left for x in row]),
                    "right/c/0/0": numbers(kinds[1], [x for row in right for x in row])},
            words=words, **more,
        )  # fmt: skip

    def factor(rows: int, cols: int, by: float) -> list[list[float]]:
        return [[single(((7 * i + 3 * j) % 11 - 5.3) * by) for j in range(cols)] for i in range(rows)]

    rule = ["lowrank-2"]
    left, right = factor(3, 6, 0.1), factor(6, 4, 1 / 3)
    yield "lowrank/rank-6", v(rule, left, right)
    yield "lowrank/rank-6-of-bfloat16", v(rule, left, right, dtype="bfloat16")
    yield "lowrank/rank-6-of-float16", v(rule, left, right, dtype="float16")
    yield "lowrank/rank-6-of-float64", v(rule, left, right, dtype="float64")
    yield "lowrank/scaled", v(rule, left, right, scale=single(-0.7))
    yield "lowrank/scale-an-integer", v(["lowrank-1"], left, right, scale=3)
    yield "lowrank/scale-0", v(rule, [[1.0, -1.0]], [[2.0], [3.0]], scale=0.0)
    yield "lowrank/order-of-sums", v(
        rule, [[single(1e8), 1.0, single(-1e8)], [1.0, single(1e8), single(-1e8)]], [[1.0], [1.0], [1.0]]
    )  # fmt: skip
    # (1 + 2^-12)^2 - (1 + 2^-11): a fused product would leave 2^-24.
    near, below = 1 + 2.0**-12, -(1 + 2.0**-11)
    yield "lowrank/not-fused", v(rule, [[1.0, near]], [[below], [near]])
    yield "lowrank/subnormal", v(rule, [[single(1e-30), single(3e-23)]], [[single(1e-12)], [single(7e-20)]])
    yield "lowrank/too-large-for-float16", v(
        rule, [[300.0], [-300.0]], [[300.0, 218.25]], dtype="float16"
    )  # fmt: skip
    yield "lowrank/rounded-to-even", v(rule, [[1.00390625], [1.01171875]], [[1.0, -1.0]], dtype="bfloat16")
    yield "lowrank/factors-of-16-bits", v(
        ["lowrank-1", "nested-1"], [[1.5, -2.0], [0.25, 3.0]], [[1.0, 0.5, -4.0], [2.0, 0.125, 1.0]], kinds=("bfloat16", "float16")
    )  # fmt: skip
    yield "lowrank/of-3-axes", v(["lowrank-1"], factor(6, 2, 0.5), factor(2, 4, 0.25), shape=[2, 3, 4])
    yield "lowrank/of-4-axes", v(["lowrank-1"], factor(6, 2, 0.5), factor(2, 2, 0.25), shape=[3, 1, 2, 2])
    yield "lowrank/one-row", v(["lowrank-1"], factor(1, 3, 0.5), factor(3, 5, 0.25))
    yield "lowrank/narrow", short(
        ["lowrank-2", "narrow-1", "narrow-2"], dtype="float32", shape=[1, 2],
        part={"encoding": "lowrank", "chunk_shape": [1, 2], "rank": 1, "left": raw, "right": raw, "dtype": "bfloat16"},
        arrays={"left": ["float32", [1, 1], [1, 1]], "right": ["float32", [1, 2], [1, 2]]},
        bodies={"left/c/0/0": numbers("float32", [1.0]), "right/c/0/0": numbers("float32", [1.01171875, -3.0])},
        words=words_of("float32", [1.015625, -3.0]),
    )  # fmt: skip
    left, right = factor(5, 2, 0.5), factor(2, 3, 0.25)
    bodies = {
        f"left/c/{i}/0": numbers(
            "float32", [x for row in left[2 * i : 2 * i + 2] for x in row] + [9.0] * (2 * (i == 2))
        )
        for i in range(3)
    }
    bodies |= {
        "right/c/0/0": numbers("float32", [*right[0][:2], *right[1][:2]]),
        "right/c/0/1": numbers("float32", [right[0][2], 9.0, right[1][2], 9.0]),
    }
    yield "lowrank/in-chunks", short(
        ["lowrank-1", "lowrank-2", "grid-1"], dtype="float32", shape=[5, 3],
        part={"encoding": "lowrank", "chunk_shape": [2, 2], "rank": 2, "left": raw, "right": raw},
        arrays={"left": ["float32", [5, 2], [2, 2]], "right": ["float32", [2, 3], [2, 2]]}, bodies=bodies,
        words=words_of("float32", multiplied(left, right)),
    )  # fmt: skip
    codes = [[3, 0], [1, 2]]
    steps = [single(0.1), single(0.3)]
    across = [[single(1.1), -2.0, 0.5], [single(0.7), 3.0, -1.0]]
    yield (
        "lowrank/factors-of-codes",
        short(["nested-1", "lowrank-2", "quantized-8"], dtype="bfloat16", shape=[2, 3],
              part={"encoding": "lowrank", "chunk_shape": [2, 3], "rank": 2,
                    "left": {"encoding": "quantized", "levels": 4, "per_byte": 4, "chunk_shape": [2, 2], "zero_point": 1,
                             "scales": [{"block": [1, 2], "dtype": "float32"}]},
                    "right": {"encoding": "planes", "rotate": False}},
              arrays={"left.codes": ["uint8", [2, 1], [2, 1]], "left.scale": ["float32", [2, 1], [2, 1]],
                      "right": ["uint8", [4, 2, 3], [4, 2, 3]]},
              bodies={"left.codes/c/0/0": packed(codes, 4), "left.scale/c/0/0": numbers("float32", steps),
                      "right/c/0/0/0": bytes(struct.pack("<f", x)[3 - plane] for plane in range(4) for row in across for x in row).hex()},
              words=words_of("bfloat16", multiplied([[product(code - 1, steps[i]) for code in row] for i, row in enumerate(codes)], across))),
    )  # fmt: skip
    halves = [single(x) for x in (1.00390625, 1.01171875)]
    yield (
        "lowrank/codes-rounded-to-the-dtype-of-the-factor",
        short(["nested-1", "lowrank-2"], dtype="float32", shape=[1, 2],
              part={"encoding": "lowrank", "chunk_shape": [1, 2], "rank": 1, "left": raw,
                    "right": {"encoding": "quantized", "levels": 2, "chunk_shape": [1, 2], "codebook": halves, "dtype": "bfloat16"}},
              arrays={"left": ["float32", [1, 1], [1, 1]], "right": ["uint8", [1, 2], [1, 2]]},
              bodies={"left/c/0/0": numbers("float32", [3.0]), "right/c/0/0": "00 01"}, words=words_of("float32", [3.0, single(3 * 1.015625)])),
    )  # fmt: skip

    # What is refused: shape (2, 3), rank 1.
    arrays: dict[str, list[Any]] = {"left": ["float32", [2, 1], [2, 1]], "right": ["float32", [1, 3], [1, 3]]}
    good: Json = {"encoding": "lowrank", "chunk_shape": [2, 3], "rank": 1, "left": raw, "right": raw}
    codes_: Json = {"encoding": "quantized", "levels": 4, "chunk_shape": [2, 1]}
    for name, clause, part, own, more in (
        ("of-integers", "lowrank-1", {}, {}, {"dtype": "int32"}),
        ("of-float8", "lowrank-1", {}, {}, {"dtype": "float8_e5m2"}),
        ("of-complex", "lowrank-1", {}, {}, {"dtype": "complex64"}),
        ("of-one-axis", "lowrank-1", {"chunk_shape": [3]}, {}, {"shape": [3]}),
        ("of-a-scalar", "lowrank-1", {"chunk_shape": []}, {}, {"shape": []}),
        ("of-nothing", "lowrank-1", {"chunk_shape": [1, 3]}, {"left": ["float32", [0, 1], [1, 1]]}, {"shape": [0, 3]}),
        ("no-chunk-shape", "lowrank-1", {"chunk_shape": None}, {}, {}),
        ("chunks-of-0", "lowrank-1", {"chunk_shape": [2, 0]}, {}, {}),
        ("chunks-of-fewer-axes", "lowrank-1", {"chunk_shape": [2]}, {}, {}),
        ("chunks-too-large", "lowrank-1", {"chunk_shape": [1 << 12, 1 << 13]},
         {"left": ["float32", [2, 1], [1 << 12, 1]], "right": ["float32", [1, 3], [1, 1 << 13]]}, {"dtype": "bfloat16"}),
        ("left-chunks-too-large", "lowrank-1", {"chunk_shape": [1 << 9, 3], "rank": 1 << 16, "left": raw | {"dtype": "float16"}},
         {"left": ["float16", [2, 1 << 16], [1 << 9, 1 << 16]], "right": ["float32", [1 << 16, 3], [1 << 16, 3]]}, {}),
        ("rank-0", "lowrank-1", {"rank": 0}, {}, {}),
        ("rank-null", "lowrank-1", {"rank": None}, {}, {}),
        ("rank-true", "lowrank-1", {"rank": True}, {}, {}),
        ("rank-of-fractions", "lowrank-1", {"rank": 1.0}, {}, {}),
        ("rank-65537", "lowrank-1", {"rank": 65537}, {"left": ["float32", [2, 65537], [2, 65537]], "right": ["float32", [65537, 3], [65537, 3]]}, {}),
        ("rank-without-end", "lowrank-1", {"rank": 10**400}, {}, {}),
        ("rank-of-other-factors", "lowrank-1", {"rank": 2}, {}, {}),
        ("no-left", "nested-1", {"left": None}, {}, {}),
        ("right-a-list", "nested-1", {"right": [raw]}, {}, {}),
        ("left-sparse", "nested-1", {"left": {"encoding": "sparse", "chunk_shape": [2, 1]}}, {}, {}),
        ("left-lowrank", "nested-1", {"left": good}, {}, {}),
        ("left-of-float64", "lowrank-1", {"left": raw | {"dtype": "float64"}}, {"left": ["float64", [2, 1], [2, 1]]}, {}),
        ("left-of-integers", "lowrank-1", {"left": raw | {"dtype": "int32"}}, {"left": ["int32", [2, 1], [2, 1]]}, {}),
        ("left-of-codes-in-float64", "lowrank-1", {"left": codes_ | {"dtype": "float64"}}, {"left": ["uint8", [2, 1], [2, 1]]}, {}),
        ("left-of-another-shape", "lowrank-1", {}, {"left": ["float32", [3, 1], [3, 1]]}, {}),
        ("left-in-other-chunks", "lowrank-1", {}, {"left": ["float32", [2, 1], [1, 1]]}, {}),
        ("right-in-other-chunks", "lowrank-1", {}, {"right": ["float32", [1, 3], [1, 2]]}, {}),
        ("right-constant", "nested-1", {}, {"right": ["float32", [1, 1], [1, 1]]}, {}),
        ("unknown-array", "lowrank-1", {}, {"more": ["float32", [1, 3], [1, 3]]}, {}),
        ("scale-null", "lowrank-1", {"scale": None}, {}, {}),
        ("scale-true", "lowrank-1", {"scale": True}, {}, {}),
        ("scale-of-text", "lowrank-1", {"scale": "1"}, {}, {}),
        ("scale-of-64-bits", "lowrank-1", {"scale": 0.1}, {}, {}),
        ("scale-too-large", "lowrank-1", {"scale": 1e39}, {}, {}),
        ("scale-too-large-an-integer", "lowrank-1", {"scale": 10**400}, {}, {}),
        ("scale-an-integer-of-25-bits", "lowrank-1", {"scale": (1 << 24) + 1}, {}, {}),
        ("scale-an-integer-near-one-of-binary32", "lowrank-1", {"scale": (1 << 60) + 1}, {}, {}),
    ):  # fmt: skip
        also = sorted({"lowrank-1", "nested-1", "raw-1", "quantized-1", "array-2"} - {clause})
        more = {"dtype": "float32", "shape": [2, 3]} | more
        yield f"lowrank/{name}", short([clause, *also], part=good | part, arrays=arrays | own, error="format", **more)
    for name, clause, part, own, bodies in (
        ("left-missing", "payload-4", {}, {}, {"right/c/0/0": numbers("float32", [1, 2, 3])}),
        ("right-missing", "payload-4", {}, {}, {"left/c/0/0": numbers("float32", [1, 2])}),
        ("code-of-nothing", "quantized-5", {"left": codes_}, {"left": ["uint8", [2, 1], [2, 1]]},
         {"left/c/0/0": "00 04", "right/c/0/0": numbers("float32", [1, 2, 3])}),
    ):  # fmt: skip
        yield f"lowrank/{name}", short(
            [clause], dtype="float32", shape=[2, 3], part=good | part, arrays=arrays | own, bodies=bodies, error="corrupt"
        )  # fmt: skip


def tucker_vectors() -> Iterator[tuple[str, Json]]:
    raw: Json = {"encoding": "raw"}

    def factor(rows: int, cols: int, by: float) -> list[list[float]]:
        return [[single(((5 * i + 3 * j) % 7 - 2.3) * by) for j in range(cols)] for i in range(rows)]

    def sums(row: list[float], numbers_: list[float]) -> float:
        total = single(row[0] * numbers_[0])
        for a, b in zip(row[1:], numbers_[1:], strict=True):
            total = single(total + single(a * b))
        return total

    def canonical(factors: list[list[list[float]]]) -> list[float]:
        found = []
        for at in itertools.product(*(range(len(f)) for f in factors)):
            products_ = [
                product(factors[1][at[1]][j], *(f[i][j] for f, i in zip(factors[2:], at[2:], strict=True)))
                for j in range(len(factors[0][0]))
            ]
            found.append(sums(factors[0][at[0]], products_))
        return found

    def of_core(
        core: dict[tuple[int, ...], float], ranks: list[int], factors: list[list[list[float]] | None]
    ) -> list[float]:
        extents = list(ranks)
        for axis, own in enumerate(factors):
            if own is None:
                continue
            new = {}
            others = [range(n) for n in extents]
            others[axis] = range(len(own))
            for at in itertools.product(*others):
                new[at] = sums(own[at[axis]], [core[(*at[:axis], j, *at[axis + 1 :])] for j in range(ranks[axis])])
            core, extents[axis] = new, len(own)
        return [core[at] for at in itertools.product(*map(range, extents))]

    def v(
        clauses: list[str], factors: list[list[list[float]] | None], *, ranks: list[int], core: list[float] | None = None, dtype: str = "float32",
        extents: list[int] | None = None, **more: Any,
    ) -> Json:  # fmt: skip
        shape = [ranks[k] if own is None else len(own) for k, own in enumerate(factors)]
        part = {
            "encoding": "tucker",
            "chunk_shape": shape,
            "ranks": ranks,
            "factors": [None if own is None else raw for own in factors],
        }
        arrays, bodies = {}, {}
        for k, own in enumerate(factors):
            if own is not None:
                arrays[f"factor-{k + 1}"] = ["float32", [len(own), ranks[k]], [len(own), ranks[k]]]
                bodies[f"factor-{k + 1}/c/0/0"] = numbers("float32", [x for row in own for x in row])
        if core is None:
            values = canonical([own for own in factors if own is not None])
        else:
            part["core"] = raw
            arrays["core"] = ["float32", ranks, ranks]
            bodies["/".join(["core/c", *("0" for _ in ranks)])] = numbers("float32", core)
            values = of_core(dict(zip(itertools.product(*map(range, ranks)), core, strict=True)), ranks, factors)
        if len(arrays) == 1:
            raise ValueError("one array: not a group")
        return short(
            clauses,
            dtype=dtype,
            shape=shape,
            part=part,
            arrays=arrays,
            bodies=bodies,
            words=words_of(dtype, values),
            **more,
        )

    for dtype in ("float32", "bfloat16", "float16", "float64"):
        yield f"tucker/canonical-of-3-axes-in-{dtype}", v(
            ["tucker-3", "tucker-4"], [factor(2, 3, 0.3), factor(3, 3, 0.1), factor(2, 3, 0.7)], ranks=[3, 3, 3], dtype=dtype
        )  # fmt: skip
    yield "tucker/canonical-of-2-axes", v(["tucker-3"], [factor(2, 2, 0.3), factor(3, 2, 0.1)], ranks=[2, 2])
    yield "tucker/canonical-of-4-axes", v(
        ["tucker-3"], [factor(2, 2, 0.3), factor(2, 2, 0.1), factor(1, 2, 0.7), factor(3, 2, 0.9)], ranks=[2, 2, 2, 2]
    )  # fmt: skip
    for dtype in ("float32", "bfloat16"):
        core = [single((i % 5 - 1.7) * 0.3) for i in range(12)]
        yield f"tucker/core-of-3-axes-in-{dtype}", v(
            ["tucker-2", "tucker-4"], [factor(3, 2, 0.3), factor(4, 3, 0.1), factor(2, 2, 0.7)], ranks=[2, 3, 2], core=core, dtype=dtype
        )  # fmt: skip
    core = [single((i % 5 - 1.7) * 0.3) for i in range(8)]
    yield (
        "tucker/core-with-an-axis-of-its-own",
        v(["tucker-1", "tucker-2"], [factor(3, 2, 0.3), None, factor(3, 2, 0.9)], ranks=[2, 2, 2], core=core),
    )
    yield (
        "tucker/core-of-2-axes-with-the-last-of-its-own",
        v(["tucker-2"], [factor(3, 2, 0.3), None], ranks=[2, 4], core=core),
    )
    left, right = factor(3, 2, 0.5), factor(3, 2, 0.25)
    yield "tucker/in-chunks", short(
        ["tucker-1", "grid-1"], dtype="float32", shape=[3, 3],
        part={"encoding": "tucker", "chunk_shape": [2, 2], "ranks": [2, 2], "factors": [raw, raw]},
        arrays={"factor-1": ["float32", [3, 2], [2, 2]], "factor-2": ["float32", [3, 2], [2, 2]]},
        bodies={f"factor-{k}/c/{i}/0": numbers("float32", [*own[2 * i], *(own[1] if i == 0 else [9.0, 9.0])])
                for k, own in ((1, left), (2, right)) for i in range(2)},
        words=words_of("float32", canonical([left, right])),
    )  # fmt: skip
    yield (
        "tucker/of-codes",
        short(["nested-1", "tucker-4"], dtype="bfloat16", shape=[2, 2],
              part={"encoding": "tucker", "chunk_shape": [2, 2], "ranks": [1, 2],
                    "factors": [{"encoding": "quantized", "levels": 4, "chunk_shape": [2, 1], "scales": [0.5], "dtype": "float16"}, None],
                    "core": {"encoding": "quantized", "levels": 4, "chunk_shape": [1, 2], "scales": [{"block": [1, 1], "dtype": "float16"}]}},
              arrays={"factor-1": ["uint8", [2, 1], [2, 1]], "core.codes": ["uint8", [1, 2], [1, 2]], "core.scale": ["float16", [1, 2], [1, 2]]},
              bodies={"factor-1/c/0/0": "01 03", "core.codes/c/0/0": "02 01", "core.scale/c/0/0": numbers("float16", [0.25, -3.0])},
              words=words_of("bfloat16", [0.25, -1.5, 0.75, -4.5])),
    )  # fmt: skip

    # What is refused: shape (2, 3), two factors of rank 2.
    arrays: dict[str, list[Any]] = {"factor-1": ["float32", [2, 2], [2, 2]], "factor-2": ["float32", [3, 2], [3, 2]]}
    core_array: dict[str, list[Any]] = {"core": ["float32", [2, 2], [2, 2]]}
    good: Json = {"encoding": "tucker", "chunk_shape": [2, 3], "ranks": [2, 2], "factors": [raw, raw]}
    far = 1 << 13
    for name, clause, part, own, more in (
        ("of-integers", "tucker-1", {}, {}, {"dtype": "int32"}),
        ("of-one-axis", "tucker-1", {"chunk_shape": [3], "ranks": [2], "factors": [raw]}, {}, {"shape": [3]}),
        ("of-nothing", "tucker-1", {"chunk_shape": [1, 3]}, {"factor-1": ["float32", [0, 2], [1, 2]]}, {"shape": [0, 3]}),
        ("no-chunk-shape", "tucker-1", {"chunk_shape": None}, {}, {}),
        ("ranks-null", "tucker-1", {"ranks": None}, {}, {}),
        ("ranks-of-one-axis", "tucker-1", {"ranks": [2]}, {}, {}),
        ("rank-0", "tucker-1", {"ranks": [2, 0]}, {}, {}),
        ("rank-65537", "tucker-1", {"ranks": [65537, 65537]}, {"factor-1": ["float32", [2, 65537], [2, 65537]], "factor-2": ["float32", [3, 65537], [3, 65537]]}, {}),
        ("rank-without-end", "tucker-1", {"ranks": [10**400, 2]}, {}, {}),
        ("ranks-that-differ-without-a-core", "tucker-1", {"ranks": [2, 3]}, {"factor-2": ["float32", [3, 3], [3, 3]]}, {}),
        ("factors-null", "tucker-1", {"factors": None}, {}, {}),
        ("factors-of-one-axis", "tucker-1", {"factors": [raw]}, {}, {}),
        ("factor-null-without-a-core", "tucker-1", {"factors": [None, raw]}, {}, {}),
        ("factor-null-of-another-rank", "tucker-1", {"factors": [raw, None], "core": raw}, core_array, {}),
        ("factor-null-in-chunks", "tucker-1", {"factors": [raw, None], "core": raw, "ranks": [2, 3], "chunk_shape": [2, 2]},
         {"factor-1": arrays["factor-1"], "core": ["float32", [2, 3], [2, 3]]}, {}),
        ("factor-sparse", "nested-1", {"factors": [raw, {"encoding": "sparse", "chunk_shape": [3, 2]}]}, {}, {}),
        ("factor-a-list", "nested-1", {"factors": [raw, [raw]]}, {}, {}),
        ("factor-of-float64", "tucker-1", {"factors": [raw, raw | {"dtype": "float64"}]}, {"factor-2": ["float64", [3, 2], [3, 2]]}, {}),
        ("factor-constant", "nested-1", {}, {"factor-2": ["float32", [1, 1], [1, 1]]}, {}),
        ("factor-in-other-chunks", "tucker-1", {}, {"factor-2": ["float32", [3, 2], [2, 2]]}, {}),
        ("factor-of-another-shape", "tucker-1", {}, {"factor-2": ["float32", [2, 2], [3, 2]]}, {}),
        ("core-null", "nested-1", {"core": None}, core_array, {}),
        ("core-in-chunks", "tucker-1", {"core": raw}, {"core": ["float32", [2, 2], [1, 2]]}, {}),
        ("core-of-another-shape", "tucker-1", {"core": raw}, {"core": ["float32", [2, 3], [2, 3]]}, {}),
        ("core-of-integers", "tucker-1", {"core": raw | {"dtype": "int32"}}, {"core": ["int32", [2, 2], [2, 2]]}, {}),
        ("core-without-member", "tucker-1", {}, core_array, {}),
        ("unknown-array", "tucker-1", {}, {"factor-3": arrays["factor-1"]}, {}),
        ("between-too-large", "tucker-1", {"chunk_shape": [far, 1], "ranks": [1, far], "core": raw},
         {"factor-1": ["float32", [far, 1], [far, 1]], "factor-2": ["float32", [1, far], [1, far]], "core": ["float32", [1, far], [1, far]]}, {"shape": [far, 1]}),
        ("products-too-large", "tucker-1", {"chunk_shape": [1, far, 1], "ranks": [far] * 3, "factors": [raw] * 3},
         {"factor-1": ["float32", [1, far], [1, far]], "factor-2": ["float32", [far, far], [far, far]], "factor-3": ["float32", [1, far], [1, far]]}, {"shape": [1, far, 1]}),
    ):  # fmt: skip
        also = sorted({"tucker-1", "nested-1", "raw-1", "quantized-1", "array-2"} - {clause})
        more = {"dtype": "float32", "shape": [2, 3]} | more
        yield f"tucker/{name}", short([clause, *also], part=good | part, arrays=arrays | own, error="format", **more)
    alone = good | {"factors": [None, None], "core": raw, "ranks": [2, 3]}
    yield "tucker/no-factor", short(
        ["tucker-1", "tensor-4"], dtype="float32", shape=[2, 3], part=alone, arrays={"core": ["float32", [2, 3], [2, 3]]}, error="format"
    )  # fmt: skip
    yield "tucker/factor-missing", short(
        ["payload-4"], dtype="float32", shape=[2, 3], part=good, arrays=arrays, bodies={"factor-1/c/0/0": numbers("float32", [1, 2, 3, 4])}, error="corrupt"
    )  # fmt: skip


def combined_vectors() -> Iterator[tuple[str, Json]]:
    raw: Json = {"encoding": "raw"}

    def words_by(
        how: str,
        dtype: str,
        data_type: str,
        shape: list[int],
        first: str,
        second: str,
        words: str,
        extents: list[int] | None = None,
    ) -> Json:
        extents = extents or shape
        key = "/".join("0" for _ in extents)
        key = f"c/{key}" if key else "c"
        return short(
            ["tensor-7"], dtype=dtype, shape=shape, parts=[raw, raw | {"combine": how}], words=words,
            arrays={"values": [data_type, extents, extents], "2.values": [data_type, extents, extents]},
            bodies={f"values/{key}": first, f"2.values/{key}": second},
        )  # fmt: skip

    yield "combined/xor", words_by("xor", "uint8", "uint8", [3], "0f f0 ff", "01 ff ff", "0e 0f 00")
    yield "combined/plus", words_by("plus", "uint8", "uint8", [3], "0f f0 ff", "01 20 ff", "10 10 fe")
    yield "combined/plus-of-16-bits", words_by("plus", "bfloat16", "uint16", [2], "ffff 803f", "0100 ff00", "0000 7f40")
    yield (
        "combined/plus-of-64-bits",
        words_by("plus", "float64", "float64", [1], "ffffffffffffffff", "0200000000000000", "0100000000000000"),
    )
    yield (
        "combined/xor-of-int64",
        words_by("xor", "int64", "int64", [1], "ffffffffffffffff", "0f00000000000000", "f0ffffffffffffff"),
    )
    yield (
        "combined/xor-of-complex",
        words_by(
            "xor", "complex64", "float32", [1], "0000803f 000000c0", "00000080 ff000000", "000080bf ff0000c0", [1, 2]
        ),
    )
    yield "combined/plus-of-uint4", words_by("plus", "uint4", "uint8", [3], "ff 0f", "01 01", "00 10", [2])
    yield "combined/xor-of-a-scalar", words_by("xor", "float16", "float16", [], "003c", "0080", "00bc")
    yield "combined/xor-of-planes", short(
        ["tensor-7"], dtype="bfloat16", shape=[3], parts=[{"encoding": "planes", "rotate": True}, {"encoding": "planes", "rotate": False, "combine": "xor"}],
        arrays={"planes": ["uint8", [2, 3], [2, 3]], "2.planes": ["uint8", [2, 3], [2, 3]]},
        bodies={"planes/c/0/0": "7f 80 7e 00 01 00", "2.planes/c/0/0": "00 80 ff 01 00 ff"}, words="813f 0040 ffc0",
    )  # fmt: skip
    yield "combined/plus-in-chunks", short(
        ["tensor-7", "grid-1"], dtype="uint8", shape=[3], parts=[raw, raw | {"combine": "plus"}],
        arrays={"values": ["uint8", [3], [2]], "2.values": ["uint8", [3], [2]]},
        bodies={"values/c/0": "01 02", "values/c/1": "03 ff", "2.values/c/0": "ff ff", "2.values/c/1": "01 ff"}, words="00 01 04",
    )  # fmt: skip

    def sums(
        clauses: list[str], dtype: str, shape: list[int], parts: list[tuple[Json, dict[str, tuple[str, list[int], str]]]], values: list[float],
        words: str = "",
    ) -> Json:  # fmt: skip
        """Parts of one chunk, each with its arrays: (data type, shape, body)."""
        docs, arrays, bodies = [], {}, {}
        for i, (doc, own) in enumerate(parts):
            docs.append(doc)
            for name, (data_type, extents, body) in own.items():
                key = f"{i + 1}.{name}" if i else name
                arrays[key] = [data_type, extents, extents]
                bodies["/".join([f"{key}/c", *("0" for _ in extents)])] = body
        return short(
            clauses, dtype=dtype, shape=shape, parts=docs, arrays=arrays, bodies=bodies, words=words or words_of(dtype, values)
        )  # fmt: skip

    add = {"combine": "add"}
    eighth = single(1 / 8)

    def codes(data: str, n: int, **more: Any) -> tuple[Json, dict[str, tuple[str, list[int], str]]]:
        doc = {"encoding": "quantized", "levels": 256, "chunk_shape": [1, n]} | more
        return doc, {"codes": ("uint8", [1, n], data)}

    def sparse(
        positions: str, kind: str, data: str, count: int, **more: Any
    ) -> tuple[Json, dict[str, tuple[str, list[int], str]]]:
        doc = {"encoding": "sparse", "chunk_shape": [1, 3]} | more
        m = len(unhex(positions))
        disk = "uint16" if kind == "bfloat16" else kind
        return doc, {"positions": ("uint8", [1, 1, m], positions), "values": (disk, [1, 1, count], data)}

    rule = ["tensor-7", "tensor-8"]
    # 256 + 1 is no number of bfloat16, 257 + 1 is; each by itself would be rounded to 256.
    yield "combined/sum-is-rounded-once", sums(
        rule, "bfloat16", [1, 2],
        [codes("01 02", 2, scales=[257.0]), codes("01 03", 2, **add), codes("00 01", 2, **add)], [258, 518],
    )  # fmt: skip
    yield "combined/sum-of-raw", sums(
        rule, "bfloat16", [1, 2], [(raw, {"values": ("uint16", [1, 2], "803f 00c0")}), (raw | add, {"values": ("uint16", [1, 2], "803b 0041")})],
        [1 + 2.0**-8, 6.0],
    )  # fmt: skip
    yield "combined/sum-of-planes-and-codes", sums(
        rule, "float16", [1, 2], [({"encoding": "planes", "rotate": False}, {"planes": ("uint8", [2, 1, 2], "3c c0 00 00")}), codes("05 06", 2, scales=[eighth], **add)],
        [1.625, -1.25],
    )  # fmt: skip
    yield "combined/sum-in-the-order-of-parts", sums(
        rule, "float32", [1, 1],
        [(raw, {"values": ("float32", [1, 1], numbers("float32", [single(1e8)]))}), (raw | add, {"values": ("float32", [1, 1], numbers("float32", [3.0]))}),
         (raw | add, {"values": ("float32", [1, 1], numbers("float32", [-single(1e8)]))})], [single(single(1e8 + 3) - 1e8)],
    )  # fmt: skip
    yield "combined/sum-too-large-for-float16", sums(
        rule, "float16", [1, 2],
        [(raw, {"values": ("float16", [1, 2], numbers("float16", [65504.0, -65504.0]))}), (raw | add, {"values": ("float16", [1, 2], numbers("float16", [16.0, -15.0]))})],
        [65520.0, -65504.0], words="007c fffb",
    )  # fmt: skip
    yield "combined/sum-with-sparse", sums(
        [*rule, "sparse-1"], "bfloat16", [1, 3], [codes("01 02 03", 3), sparse("01 00", "bfloat16", "803f 00c0", 2, **add)], [1, 3, 1]
    )  # fmt: skip
    yield "combined/sum-with-sparse-of-another-dtype", sums(
        [*rule, "sparse-1"], "bfloat16", [1, 3],
        [codes("80 02 03", 3), sparse("00 00", "float32", numbers("float32", [0.5 + 2.0**-20, single(0.1)]), 2, room=2, values=raw | {"dtype": "float32"}, **add)],
        [single(128.5 + 2.0**-20), single(2 + single(0.1)), 3],
    )  # fmt: skip
    quantized_values = {"encoding": "quantized", "levels": 4, "chunk_shape": [1, 1, 2], "scales": [257.0]}
    yield "combined/sum-with-sparse-codes-that-are-not-rounded", sums(
        [*rule, "nested-1"], "bfloat16", [1, 3], [codes("01 02 03", 3), sparse("00 00", "uint8", "01 02", 2, room=2, values=quantized_values, **add)], [258, 516, 3]
    )  # fmt: skip
    yield "combined/sum-with-sparse-first", sums(
        rule, "bfloat16", [1, 3], [sparse("01", "uint8", "01", 1, room=1, values=quantized_values | {"chunk_shape": [1, 1, 1]}), codes("01 01 01", 3, **add)], [1, 258, 1]
    )  # fmt: skip
    lowrank = {"encoding": "lowrank", "chunk_shape": [1, 3], "rank": 1, "left": raw, "right": raw}
    factors = {
        "left": ("float32", [1, 1], numbers("float32", [single(0.1)])),
        "right": ("float32", [1, 3], numbers("float32", [3.0, -7.0, 1.0])),
    }
    thirds = [single(single(0.1) * x) for x in (3.0, -7.0, 1.0)]
    yield "combined/lowrank-and-codes", sums(
        rule, "bfloat16", [1, 3], [(lowrank, factors), codes("05 06 07", 3, scales=[single(0.01)], **add)],
        [single(thirds[i] + product(5 + i, single(0.01))) for i in range(3)],
    )  # fmt: skip
    yield "combined/codes-lowrank-and-sparse", sums(
        rule, "float32", [1, 3], [codes("05 06 07", 3, scales=[single(0.01)]), (lowrank | add, factors), sparse("02", "float32", numbers("float32", [100.0]), 1)],
        [*(single(product(5 + i, single(0.01)) + thirds[i]) for i in range(2)), 100.0],
    )  # fmt: skip
    yield "combined/four-parts", sums(
        rule, "float64", [1, 3],
        [codes("05 06 07", 3, scales=[single(0.01)]), (lowrank | add, factors),
         sparse("01", "float32", numbers("float32", [single(0.3)]), 1, room=1, values=raw | {"dtype": "float32"}, **add),
         sparse("02", "float64", struct.pack("<d", 1 / 3).hex(), 1)], [],
        words="".join(struct.pack("<d", x).hex() for x in (
            single(product(5, single(0.01)) + thirds[0]), single(single(product(6, single(0.01)) + thirds[1]) + single(0.3)), 1 / 3)),
    )  # fmt: skip
    outer = {"encoding": "tucker", "chunk_shape": [1, 3], "ranks": [1, 1], "factors": [raw, raw]}
    outers = {
        "factor-1": ("float32", [1, 1], numbers("float32", [257.0])),
        "factor-2": ("float32", [3, 1], numbers("float32", [1.0, 2.0, 0.0])),
    }
    yield (
        "combined/tucker-and-codes",
        sums(rule, "bfloat16", [1, 3], [(outer, outers), codes("01 02 03", 3, **add)], [258, 516, 3]),
    )
    yield "combined/lowrank-replaced-in-places", sums(
        ["tensor-7"], "bfloat16", [1, 3], [(lowrank, factors), sparse("00", "bfloat16", "0041", 1, combine="replace")], [8.0, thirds[1], thirds[2]]
    )  # fmt: skip
    yield "combined/sparse-replaces-sparse", sums(
        ["tensor-7"], "bfloat16", [1, 3], [sparse("00 01", "bfloat16", "803f 0040", 2), sparse("02", "bfloat16", "0041", 1)], [1.0, 0.0, 8.0]
    )  # fmt: skip

    # What is refused: (1, 3) of bfloat16.
    values: dict[str, list[Any]] = {"values": ["uint16", [1, 3], [1, 3]]}
    second: dict[str, list[Any]] = {"2.values": ["uint16", [1, 3], [1, 3]]}
    places: dict[str, list[Any]] = {
        "2.positions": ["uint8", [1, 1, 1], [1, 1, 1]],
        "2.values": ["uint16", [1, 1, 1], [1, 1, 1]],
    }
    thin: Json = {"encoding": "sparse", "chunk_shape": [1, 3]}

    def third(arrays: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {f"3.{name[2:]}": array for name, array in arrays.items()}

    base: Json = {"encoding": "base", "base": 0, "tensor": "w", "sha256": "0" * 64}
    code: Json = {"encoding": "quantized", "levels": 256, "chunk_shape": [1, 3]}
    code_array: list[Any] = ["uint8", [1, 3], [1, 3]]
    narrow = {"dtype": "bfloat16"}
    wide: dict[str, list[Any]] = {"values": ["float32", [1, 3], [1, 3]], "2.values": ["float32", [1, 3], [1, 3]]}
    for name, clause, parts, arrays, more in (
        ("way-not-said", "tensor-7", [raw, raw], values | second, {}),
        ("replaced-by-raw", "tensor-7", [raw, raw | {"combine": "replace"}], values | second, {}),
        ("xor-with-sparse", "tensor-7", [raw, thin | {"combine": "xor"}], values | places, {}),
        ("xor-behind-codes", "tensor-7", [code, raw | {"combine": "xor"}], {"codes": code_array} | second, {}),
        ("xor-with-codes", "tensor-7", [raw, code | {"combine": "xor"}], values | {"2.codes": code_array}, {}),
        ("xor-and-xor", "tensor-7", [raw, raw | {"combine": "xor"}, raw | {"combine": "xor"}], values | second | third(second), {}),
        ("xor-and-replaced", "tensor-7", [raw, raw | {"combine": "xor"}, thin], values | second | third(places), {}),
        ("added-and-xor", "tensor-7", [raw, raw | {"combine": "add"}, raw | {"combine": "xor"}], values | second | third(second), {}),
        ("added-behind-replaced", "tensor-7", [raw, thin, raw | {"combine": "add"}], values | places | third(second), {}),
        ("first-added", "tensor-7", [raw | {"combine": "add"}, thin], values | places, {}),
        ("base-second", "tensor-7", [raw, base | {"combine": "add"}, thin], values | third(places), {"bases": True}),
        ("constant-added", "tensor-7", [raw, raw | {"combine": "add"}], values | {"2.values": ["uint16", [1, 1], [1, 1]]}, {}),
        ("other-chunks", "tensor-7", [raw, raw | {"combine": "add"}], values | {"2.values": ["uint16", [1, 3], [1, 2]]}, {}),
        ("narrow-first", "tensor-7", [raw | narrow, raw | {"combine": "add"}], values | {"2.values": wide["2.values"]}, {"dtype": "float32"}),
        ("narrow-second", "tensor-7", [raw, raw | narrow | {"combine": "xor"}], {"values": wide["values"]} | second, {"dtype": "float32"}),
        ("sum-of-integers", "tensor-8", [raw, raw | {"combine": "add"}], {name: ["int16", *rest] for name, (_, *rest) in (values | second).items()}, {"dtype": "int16"}),
        ("sum-of-float64", "tensor-8", [raw, raw | {"combine": "add"}], {name: ["float64", *rest] for name, (_, *rest) in (values | second).items()}, {"dtype": "float64"}),
        ("sum-of-float64-in-sparse", "tensor-8", [thin, code | {"combine": "add"}],
         {"positions": places["2.positions"], "values": ["float64", [1, 1, 1], [1, 1, 1]], "2.codes": code_array}, {"dtype": "float64"}),
        ("sum-with-float64-in-sparse", "sparse-1", [code, thin | {"combine": "add"}],
         {"codes": code_array, "2.positions": places["2.positions"], "2.values": ["float64", [1, 1, 1], [1, 1, 1]]}, {"dtype": "float64"}),
        ("sum-with-integers-in-sparse", "sparse-1", [raw, thin | {"combine": "add", "room": 1, "values": raw | {"dtype": "int16"}}],
         values | {"2.positions": places["2.positions"], "2.values": ["int16", [1, 1, 1], [1, 1, 1]]}, {}),
        ("sparse-first-of-another-dtype", "sparse-1", [thin | {"room": 1, "values": raw | {"dtype": "float16"}}, thin],
         {"positions": places["2.positions"], "values": ["float16", [1, 1, 1], [1, 1, 1]]} | places, {}),
        ("sum-in-chunks-too-large", "tensor-8", [code | {"chunk_shape": [1, 1 << 25]}, code | {"chunk_shape": [1, 1 << 25], "combine": "add"}],
         {"codes": ["uint8", [1, 3], [1, 1 << 25]], "2.codes": ["uint8", [1, 3], [1, 1 << 25]]}, {}),
        ("component-with-a-dot-only", "raw-1", [raw, raw | {"combine": "add"}], values | {"2.": second["2.values"]}, {}),
    ):  # fmt: skip
        also = sorted({"tensor-7", "tensor-8", "raw-1"} - {clause})
        more = {"dtype": "bfloat16", "shape": [1, 3]} | more
        if more.pop("bases", None):
            more["bases"] = {
                "base": short([], dtype="bfloat16", shape=[1, 3], part=raw, arrays={"": ["uint16", [1, 3], [1, 3]]})
            }
        yield f"combined/{name}", short([clause, *also], parts=parts, arrays=arrays, error="format", **more)
    yield "combined/second-position-beyond", short(
        ["sparse-3"], dtype="bfloat16", shape=[1, 3], parts=[raw, thin], arrays=values | places,
        bodies={"values/c/0/0": "0000 0000 0000", "2.positions/c/0/0/0": "03", "2.values/c/0/0/0": "0000"}, error="corrupt",
    )  # fmt: skip
    yield "combined/second-missing", short(
        ["payload-4"], dtype="bfloat16", shape=[1, 3], parts=[raw, raw | {"combine": "add"}], arrays=values | second,
        bodies={"values/c/0/0": "0000 0000 0000"}, error="corrupt",
    )  # fmt: skip


def base_vectors() -> Iterator[tuple[str, Json]]:
    raw: Json = {"encoding": "raw"}
    digest = hashlib.sha256(unhex(ONE)).hexdigest()
    below = short(
        [],
        dtype="bfloat16",
        shape=[3],
        part=raw,
        arrays={"": ["uint16", [3], [2]]},
        bodies={"c/0": "803f 00c0", "c/1": "003f 0000"},
        words=ONE,
    )
    base: Json = {"encoding": "base", "base": 0, "tensor": "w", "sha256": digest}

    def v(
        clauses: list[str],
        part: Json | None = None,
        more: list[Json] | None = None,
        *,
        bases: dict[str, Json] | None = None,
        **rest: Any,
    ) -> Json:
        rest = {"dtype": "bfloat16", "shape": [3], "arrays": {}} | rest
        parts = [base | (part or {}), *(more or [])]
        return short(clauses, parts=parts, bases={"base": below} if bases is None else bases, **rest)

    yield "base/alone", v(["base-1", "base-2", "base-3", "tensor-4"], words=ONE)
    one: dict[str, list[Any]] = {"": ["uint16", [3], [3]]}
    yield "base/xor", v(
        ["base-1", "tensor-4", "tensor-7"], more=[raw | {"combine": "xor"}], arrays=one, bodies={"c/0": "0100 0080 0000"}, words="813f 0040 003f"
    )  # fmt: skip
    yield "base/plus", v(
        ["base-1", "tensor-7"], more=[{"encoding": "planes", "rotate": False, "combine": "plus"}], arrays={"": ["uint8", [2, 3], [2, 3]]},
        bodies={"c/0/0": "00 40 00 01 00 ff"}, words="813f 0000 ff3f",
    )  # fmt: skip
    yield "base/added", v(
        ["tensor-8"], more=[{"encoding": "quantized", "levels": 4, "chunk_shape": [3], "combine": "add"}], arrays={"": ["uint8", [3], [3]]},
        bodies={"c/0": "00 01 03"}, words=words_of("bfloat16", [1, -1, 3.5]),
    )  # fmt: skip
    yield "base/replaced", v(
        ["tensor-7"], more=[{"encoding": "sparse", "chunk_shape": [3]}], arrays={"2.positions": ["uint8", [1, 1], [1, 1]], "2.values": ["uint16", [1, 1], [1, 1]]},
        bodies={"2.positions/c/0/0": "01", "2.values/c/0/0": "0041"}, words="803f 0041 003f",
    )  # fmt: skip
    matrix = short(
        [],
        dtype="bfloat16",
        shape=[1, 3],
        part=raw,
        arrays={"": ["uint16", [1, 3], [1, 3]]},
        bodies={"c/0/0": ONE},
        words=ONE,
    )
    left, right = [[2.0]], [[1.0, single(0.3), -4.0]]
    yield "base/adapter", v(
        ["tensor-8", "lowrank-2"], shape=[1, 3], bases={"base": matrix},
        more=[{"encoding": "lowrank", "chunk_shape": [1, 2], "rank": 1, "scale": 0.5, "left": raw, "right": raw, "combine": "add"}],
        arrays={"2.left": ["float32", [1, 1], [1, 1]], "2.right": ["float32", [1, 3], [1, 2]]},
        bodies={"2.left/c/0/0": numbers("float32", [2.0]), "2.right/c/0/0": numbers("float32", right[0][:2]), "2.right/c/0/1": numbers("float32", [-4.0, 9.0])},
        words=words_of("bfloat16", [single(a + b) for a, b in zip((1, -2, 0.5), multiplied(left, right, 0.5), strict=True)]),
    )  # fmt: skip
    empty = short([], dtype="uint8", shape=[0, 2], part=raw, arrays={"": ["uint8", [0, 2], [1, 2]]})
    yield (
        "base/of-nothing",
        v(["base-1"], {"sha256": hashlib.sha256(b"").hexdigest()}, bases={"base": empty}, dtype="uint8", shape=[0, 2]),
    )
    scalar = short(
        [], dtype="uint8", shape=[], part=raw, arrays={"": ["uint8", [], []]}, bodies={"c": "07"}, words="07"
    )
    yield (
        "base/scalar",
        v(
            ["base-1"],
            {"sha256": hashlib.sha256(b"\7").hexdigest()},
            bases={"base": scalar},
            dtype="uint8",
            shape=[],
            words="07",
        ),
    )
    narrow = short(
        [],
        dtype="float32",
        shape=[2],
        part=raw | {"dtype": "bfloat16"},
        arrays={"": ["uint16", [2], [2]]},
        bodies={"c/0": "803f 00c0"},
        words="0000803f 000000c0",
    )
    wide = hashlib.sha256(unhex("0000803f 000000c0")).hexdigest()
    yield (
        "base/narrow-there",
        v(["base-3"], {"sha256": wide}, bases={"base": narrow}, dtype="float32", shape=[2], words="0000803f 000000c0"),
    )
    tied = copy.deepcopy(below)
    nodes = tied["root"]["consolidated_metadata"]["metadata"]
    about = nodes["w"]["attributes"]["mzstore"]
    nodes["v"] = group({key: about[key] for key in ("dtype", "shape", "sha256")} | {"name": "an other", "same_as": "w"})
    yield "base/same-there", v(["base-3"], {"tensor": "an other"}, bases={"base": tied}, words=ONE)
    yield "base/second-of-two", v(["base-1"], {"base": 1}, bases={"other": scalar, "base": below}, words=ONE)
    missing = v(["base-3"], {"base": 1}, bases={"base": below}, urls=["nowhere", "base"], words=ONE)
    yield "base/one-that-nothing-needs-is-missing", missing
    yield "base/in-a-folder", v(["base-2"], bases={"folder/base": below}, words=ONE)
    again = v([], words=ONE)
    yield "base/of-a-base", v(["base-3"], bases={"tuned": again} | again["bases"], urls=["tuned"], words=ONE)

    def chain(n: int) -> dict[str, Json]:
        """``n`` models, each but the last with the next one as its base."""
        models = {str(i): v([], bases={str(i + 1): below}, urls=[str(i + 1)], words=ONE) for i in range(1, n)}
        return models | {str(n): below}

    yield "base/16-behind-another", v(["base-3"], bases=chain(16), urls=["1"], words=ONE)
    yield "base/17-behind-another", v(["base-3"], bases=chain(17), urls=["1"], error="format")
    yield "base/its-own", v(["base-3"], bases={"base": v([], bases={"base": below}, words=ONE)}, error="format")

    for name, part, change in (
        ("no-such-tensor", {"tensor": "v"}, {}),
        ("other-values", {"sha256": hashlib.sha256(b"").hexdigest()}, {}),
        ("other-dtype", {}, {"dtype": "float16"}),
        ("other-shape", {}, {"shape": [3, 1]}),
    ):
        yield f"base/{name}", v(["base-3"], part, error="corrupt", **change)
    array_ = {"arrays": one, "more": [raw | {"combine": "xor"}]}
    for name, part, more in (
        ("index-beyond", {"base": 1}, {}), ("index-negative", {"base": -1}, {}), ("index-null", {"base": None}, {}), ("index-true", {"base": True}, {}),
        ("tensor-null", {"tensor": None}, {}), ("tensor-too-long", {"tensor": "a" * 4097}, {}), ("sha256-null", {"sha256": None}, {}),
        ("sha256-too-short", {"sha256": digest[1:]}, {}), ("sha256-in-capitals", {"sha256": digest.upper()}, {}),
        ("dtype-of-the-part", {"dtype": "bfloat16"}, {"dtype": "float32"}), ("components", {}, {"arrays": {"a": one[""], "b": one[""]}}),
    ):  # fmt: skip
        yield f"base/{name}", v(["base-1", "tensor-4"], part, error="format", **more)
    yield (
        "base/narrow-with-a-change",
        v(["tensor-7", "base-1", "raw-1"], {"dtype": "bfloat16"}, dtype="float32", error="format", **array_),
    )
    for name, bases in (
        ("null", None), ("an-object", {}), ("257", [{"url": "base"}] * 257), ("text", ["base"]), ("without-url", [{}]), ("url-null", [{"url": None}]),
        ("url-empty", [{"url": ""}]), ("url-too-long", [{"url": "a" * 4097}]), ("url-with-a-zero", [{"url": "a\0"}]), ("url-with-a-surrogate", [{"url": "\ud800"}]),
    ):  # fmt: skip
        wrong = v(["base-2", "base-1"], words=ONE)
        wrong["root"]["attributes"]["mzstore"]["bases"] = bases
        del wrong["tensors"]
        yield f"base/bases-{name}", wrong | {"error": "format"}
    listed = v([], words=ONE)
    listed["root"]["attributes"]["mzstore"]["features"] = ["planes"]
    del listed["tensors"]
    yield "base/feature-not-listed", listed | {"clauses": ["root-3"], "error": "format"}


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
    yield (
        "document/no-change",
        changed(["document-2", "document-4", "tensor-5", "layout-2", "layout-1"], "", lambda *_: None),
    )


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
        ("two-parts-of-one-array", "tensor-4", "format", (*w, "parts"), [raw, raw]),
        ("part-is-text", "tensor-4", "unsupported", (*w, "parts"), ["raw"]),
        ("parts-are-an-object", "tensor-4", "unsupported", (*w, "parts"), raw),
        ("unknown-encoding", "tensor-4", "unsupported", (*w, "parts"), [{"encoding": "trellis"}]),
        ("sparse-in-one-array", "tensor-4", "format", (*w, "parts"), [{"encoding": "sparse", "chunk_shape": [3]}]),
        ("lowrank-in-one-array", "tensor-4", "format", (*w, "parts"), [{"encoding": "lowrank", "chunk_shape": [3], "rank": 1}]),
        ("base-in-an-array", "tensor-4", "format", (*w, "parts"), [{"encoding": "base", "base": 0, "tensor": "w", "sha256": "0" * 64}]),
        ("planes-second-in-one-array", "tensor-4", "format", (*w, "parts"), [raw, {"encoding": "planes", "rotate": True, "combine": "xor"}]),
        ("combined-in-an-unknown-way", "tensor-4", "unsupported", (*w, "parts"), [raw, raw | {"combine": "times"}]),
        ("combined-in-no-way", "tensor-4", "unsupported", (*w, "parts"), [raw, raw | {"combine": None}]),
        ("combined-in-a-list-of-ways", "tensor-4", "unsupported", (*w, "parts"), [raw, raw | {"combine": ["add"]}]),
        ("first-part-combined", "tensor-7", "format", (*w, "parts"), [raw | {"combine": "add"}]),
        ("encoding-is-a-list", "tensor-4", "unsupported", (*w, "parts"), [{"encoding": ["raw"]}]),
        ("five-parts", "tensor-4", "unsupported", (*w, "parts"), [raw, *[{"encoding": "sparse", "chunk_shape": [3]}] * 4]),
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
        own = {"base-in-an-array": ["base-1"], "two-parts-of-one-array": ["raw-1"], "planes-second-in-one-array": ["planes-1"],
               "sparse-in-one-array": ["sparse-1"], "lowrank-in-one-array": ["lowrank-1"]}  # fmt: skip
        yield f"tensor/{name}", changed([clause, *own.get(name, [])], error, put(path, value))

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
    yield "layout/missing", changed(["layout-2", "layout-1"], "format", put(("object", "layouts/0"), ABSENT))
    more = good_root()[1]["layouts/0"] + "00"
    yield "layout/kind-is-a-number", changed(["layout-1"], "format", put((*layouts, 0, "kind"), 1))
    yield "layout/more-than-the-header", changed(["layout-2"], "format", put(("object", "layouts/0"), more))
    yield from spliced_vectors()


def spliced(entries: Json, literals: str, nbytes: Any) -> str:
    """The object of a layout, in hexadecimal."""
    text = json.dumps({"nbytes": nbytes, "tensors": entries}, separators=(",", ":")).encode()
    return (struct.pack("<Q", len(text)) + text).hex() + literals


def spliced_vectors() -> Iterator[tuple[str, Json]]:
    w = {"dtype": "uint8", "shape": [3]}
    r = {"dtype": "bfloat16", "shape": [3]}

    def vector(clause: str, error: str, file: str, content: str, **more: Any) -> Json:
        def change(doc: Json, nodes: Json, objects: dict[str, str]) -> None:
            layout = doc["attributes"]["mzstore"]["layouts"][0]
            layout |= {"path": "m.pt", "format": "spliced", "kind": "pytorch", **more}
            objects["layouts/0"] = content

        clauses = list(dict.fromkeys(["layout-3", "layout-4", clause]))
        return changed(clauses, error, change) | ({} if error else {"files": {"m.pt": file}})

    words = unhex(ONE).hex()
    both = {"w": w | {"offset": 1}, "r": r | {"offset": 5}}
    for name, clause, file, entries, literals in (
        ("between", "layout-3", f"aa010203bb{words}ccdd", both, "aabbccdd"),
        ("tight", "layout-3", f"010203{words}", {"w": w | {"offset": 0}, "r": r | {"offset": 3}}, ""),
        ("no-tensors", "layout-3", "aabb", {}, "aabb"),
        ("nothing", "layout-3", "", {}, ""),
        ("same-bytes", "layout-4", "aa010203bb", {"w": w | {"offset": 1}, "w/again": w | {"offset": 1}}, "aabb"),
        ("common-bytes", "layout-4", "aa01020303bb", {"w": w | {"offset": 1}, "w/again": w | {"offset": 2}}, "aabb"),
        ("unused-members", "layout-3", "010203", {"w": w | {"offset": 0, "more": 1}}, ""),
        ("literal", "layout-3", f"aabb{words}", {"w": w | {"form": "literal"}, "r": r | {"offset": 2}}, "aabb"),
        ("literal-offset", "layout-3", f"{words}aa", {"r": r | {"offset": 0}, "w": w | {"form": "literal", "offset": -9}}, "aa"),
    ):  # fmt: skip
        yield f"layout/spliced-{name}", vector(clause, "", file, spliced(entries, literals, len(unhex(file))))
    good = spliced({"again": w | {"offset": 0}}, "", 3)
    yield "layout/spliced-prefix", vector("layout-1", "", "010203", good, prefix="w/")
    for name, clause, error, content in (
        ("empty", "layout-3", "format", ""),
        ("cut-short", "layout-3", "format", good[:-2]),
        ("length-too-large", "layout-3", "format", "ff" * 8 + good[16:]),
        ("no-json", "document-1", "format", struct.pack("<Q", 2).hex() + "3c3c"),
        ("name-twice", "document-1", "format", spliced({"w": 1, "x": 1}, "", 0).replace(b'"x"'.hex(), b'"w"'.hex())),
        ("no-size", "layout-3", "format", spliced({}, "", None)),
        ("size-is-true", "layout-3", "format", spliced({}, "aa", True)),
        ("size-is-negative", "layout-3", "format", spliced({}, "", -1)),
        ("tensors-are-a-list", "layout-3", "format", spliced([], "", 0)),
        ("entry-is-an-offset", "layout-3", "format", spliced({"w": 0}, "", 3)),
        ("no-offset", "layout-3", "format", spliced({"w": w}, "", 3)),
        ("offset-is-negative", "layout-3", "format", spliced({"w": w | {"offset": -1}}, "", 2)),
        ("offset-is-a-fraction", "layout-3", "format", spliced({"w": w | {"offset": 0.0}}, "", 3)),
        ("unknown-form", "layout-3", "unsupported", spliced({"w": w | {"offset": 0, "form": "q9"}}, "", 3)),
        ("no-form", "layout-3", "unsupported", spliced({"w": w | {"offset": 0, "form": None}}, "", 3)),
        ("literal-of-another-shape", "layout-3", "format", spliced({"w": r | {"form": "literal"}}, "", 0)),
        ("literal-too-few", "layout-4", "format", spliced({"w": w | {"form": "literal"}}, "", 3)),
        ("unknown-tensor", "layout-3", "format", spliced({"x": w | {"offset": 0}}, "", 3)),
        ("another-shape", "layout-3", "format", spliced({"w": w | {"offset": 0, "shape": [3, 1]}}, "", 3)),
        ("another-dtype", "layout-3", "format", spliced({"w": w | {"offset": 0, "dtype": "int8"}}, "", 3)),
        ("shape-is-a-number", "layout-3", "format", spliced({"w": w | {"offset": 0, "shape": 3}}, "", 3)),
        ("form-of-bytes", "layout-3", "format", spliced({"w": w | {"offset": 0, "form": "Q4_0"}}, "", 3)),
        ("order", "layout-4", "format", spliced({"r": r | {"offset": 5}, "w": w | {"offset": 1}}, "aabb", 11)),
        ("end-behind-the-file", "layout-4", "format", spliced({"w": w | {"offset": 1}}, "aa", 3)),
        ("offset-too-large", "layout-4", "format", spliced({"w": w | {"offset": 1 << 70}}, "aa", 3)),
        ("literals-too-few", "layout-4", "format", spliced(both, "aabbcc", 13)),
        ("literals-too-few-inside", "layout-4", "format", spliced(both, "aa", 11)),
        ("literals-too-many", "layout-4", "format", spliced(both, "aabbccddee", 13)),
        ("size-too-large", "layout-4", "format", spliced({}, "aa", 1 << 62)),
    ):  # fmt: skip
        yield f"layout/spliced-{name}", vector(clause, error, "", content)


def form_vectors() -> Iterator[tuple[str, Json]]:
    """Files with blocks of ggml in them."""
    for name in ("Q4_1", "Q6_K"):
        example = next(each for each in GGML["examples"] if each["type"] == name)
        blocks = unhex(example["blocks"])
        n = len(blocks) // GGML["types"][name]["nbytes"] * GGML["types"][name]["size"]
        part = {"encoding": "ggml", "type": name, "chunk_shape": [1, n]}
        arrays = {"": ["uint8", [1, 1, len(blocks)], [1, 1, len(blocks)]]}
        bodies = {"c/0/0/0": ggml_body(name, blocks).hex()}
        given: Json = {"dtype": "float32", "shape": [1, n], "arrays": arrays, "part": part, "bodies": bodies}
        for what, form, shape, error in (
            ("blocks", name, [1, n], ""),
            ("words", None, [1, n], ""),
            ("cut-blocks", name, [n // 16, 16], "format"),
        ):
            content = blocks if form else unhex(example["words"])
            place = {"dtype": "float32", "shape": shape, "offset": 2} | ({"form": form} if form else {})
            vector = short(["layout-3", "ggml-2"], **given, words=example["words"])
            vector["root"]["attributes"]["mzstore"]["layouts"] = [
                {"path": "m.gguf", "key": "layouts/0", "format": "spliced", "kind": "gguf"}
            ]
            vector["objects"]["layouts/0"] = spliced({"w": place}, "aabbcc", len(content) + 3)
            if error:
                vector = {key: value for key, value in vector.items() if key != "tensors"} | {"error": error}
            else:
                vector["files"] = {"m.gguf": f"aabb{content.hex()}cc"}
            yield f"layout/spliced-{name.lower().replace('_', '-')}-{what}", vector


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


# Section 8.9. The examples are blocks that ggml made or random ones, and the values that ggml gives for them.


def ggml_body(name: str, blocks: bytes) -> bytes:
    """What a chunk of ``blocks`` is stored as."""
    kind = GGML["types"][name]
    found = []
    for at in range(0, len(blocks), kind["nbytes"]):
        block = blocks[at : at + kind["nbytes"]]
        numbers = {field["name"]: [0] * field["count"] for field in kind["fields"]}
        for field in kind["fields"]:
            for first, count, offset, shift, bits, target, step, stride in field["runs"]:
                for i in range(count):
                    part = block[offset + i * stride] >> shift & (1 << bits) - 1
                    numbers[field["name"]][first + i * step] |= part << target
        if name in WITH_OFFSETS:
            width = next(field["width"] for field in kind["fields"] if field["name"] == "codes")
            sub, scale, offset = scales_of(name, numbers)
            for j, centre in enumerate(centres(scale, offset, width)):
                for i in range(j * sub, (j + 1) * sub):
                    numbers["codes"][i] = (numbers["codes"][i] - centre) % (1 << width)
        found.append(numbers)
    out = bytearray()
    for field in kind["fields"]:
        left = field["width"]
        for bits in widths(field["width"]):
            left -= bits
            plane = [number >> left & (1 << bits) - 1 for numbers in found for number in numbers[field["name"]]]
            for i in range(0, len(plane), 8 // bits):
                out.append(sum(part << bits * j for j, part in enumerate(plane[i : i + 8 // bits])))
    return bytes(out)


def ggml_vectors() -> Iterator[tuple[str, Json]]:
    def v(clauses: list[str], name: Any, shape: list[int], chunk: Any, k: int, **more: Any) -> Json:
        counts = [-(-s // c) for s, c in zip(shape, chunk, strict=True)]
        arrays = {"": ["uint8", [*counts, k], [*(1 for _ in counts), k]]}
        part = {"encoding": "ggml", "type": name, "chunk_shape": chunk}
        return short(clauses, **({"dtype": "float32", "shape": shape, "arrays": arrays, "part": part} | more))

    seen: set[str] = set()
    for example in GGML["examples"]:
        name, blocks = example["type"], unhex(example["blocks"])
        size, nbytes = (GGML["types"][name][key] for key in ("size", "nbytes"))
        n = len(blocks) // nbytes * size
        wild = "-wild" if name in seen else ""
        seen.add(name)
        clauses = ["ggml-2", "ggml-3", "ggml-4", "ggml-5", "ggml-6", "ggml-7"]
        body = {"c/0/0/0": ggml_body(name, blocks).hex()}
        yield (
            f"ggml/{name.lower().replace('_', '-')}{wild}",
            v(clauses, name, [1, n], [1, n], len(blocks), bodies=body, words=example["words"]),
        )

    example = next(example for example in GGML["examples"] if example["type"] == "Q4_0")
    blocks, words = unhex(example["blocks"])[:18], unhex(example["words"])[:128].hex()
    body, beyond = ggml_body("Q4_0", blocks).hex(), ggml_body("Q4_0", blocks + bytes(18)).hex()
    for name, shape, chunk, bodies, values in (
        ("one-axis", [32], [32], {"c/0/0": body}, words),
        ("two-chunks", [64], [32], {"c/0/0": body, "c/1/0": body}, words * 2),
        ("three-axes", [1, 2, 32], [1, 1, 32], {"c/0/0/0/0": body, "c/0/1/0/0": body}, words * 2),
        ("beyond-the-edge", [1, 32], [2, 32], {"c/0/0/0": beyond}, words),
        ("beyond-the-row", [1, 32], [1, 64], {"c/0/0/0": beyond}, words),
        ("nothing", [0, 32], [1, 32], {}, ""),
    ):
        k = 18 * (len(unhex(next(iter(bodies.values())))) // 18 if bodies else 1)
        yield f"ggml/{name}", v(["ggml-1", "grid-1"], "Q4_0", shape, chunk, k, bodies=bodies, words=values)
    for name, kind in (
        ("unknown-type", "Q9_Z"),
        ("no-type", None),
        ("type-is-a-number", 2),
        ("type-is-a-list", ["Q4_0"]),
    ):
        yield f"ggml/{name}", v(["ggml-1"], kind, [32], [32], 18, error="unsupported")
    whole = {"encoding": "ggml", "type": "Q4_0", "chunk_shape": [32]}
    one = {"": ["uint8", [1, 18], [1, 18]]}
    for name, clause, more in (
        ("float16", "ggml-1", {"dtype": "float16"}),
        ("narrow", "ggml-1", {"part": whole | {"dtype": "bfloat16"}}),
        ("no-axis", "ggml-1", {"shape": [], "part": whole | {"chunk_shape": []}}),
        ("rows-cut-blocks", "ggml-1", {"shape": [48]}),
        ("chunks-cut-blocks", "ggml-1", {"shape": [64], "part": whole | {"chunk_shape": [16]}}),
        ("no-chunk-shape", "ggml-1", {"part": {"encoding": "ggml", "type": "Q4_0"}}),
        ("chunk-shape-of-more-axes", "ggml-1", {"part": whole | {"chunk_shape": [1, 32]}}),
        ("chunks-too-large", "ggml-1", {"part": whole | {"chunk_shape": [32 << 20]}}),
        ("array-of-other-size", "ggml-1", {"arrays": {"": ["uint8", [1, 20], [1, 20]]}}),
        ("array-of-other-type", "ggml-1", {"arrays": {"": ["int8", [1, 18], [1, 18]]}}),
        ("array-of-fewer-axes", "ggml-1", {"arrays": {"": ["uint8", [18], [18]]}}),
        ("several-arrays", "ggml-1", {"arrays": {"blocks": one[""], "more": one[""]}}),
    ):
        given: Json = {"dtype": "float32", "shape": [32], "part": whole, "arrays": one} | more
        yield f"ggml/{name}", short([clause], **given, error="format")
    again = {"encoding": "sparse", "chunk_shape": [32]}
    arrays = {"blocks": one[""], "2.positions": ["uint8", [1, 1], [1, 1]], "2.values": ["float32", [1, 1], [1, 1]]}
    yield (
        "ggml/and-another-part",
        short(["ggml-1"], dtype="float32", shape=[32], parts=[whole, again], arrays=arrays, error="format"),
    )
    inner = {
        "encoding": "sparse",
        "chunk_shape": [32],
        "room": 1,
        "values": {"encoding": "ggml", "type": "Q4_0", "chunk_shape": [1, 32]},
    }
    arrays = {"positions": ["uint8", [1, 1], [1, 1]], "values": ["uint8", [1, 1, 18], [1, 1, 18]]}
    yield (
        "ggml/inside-of-another",
        short(["nested-1", "sparse-1"], dtype="float32", shape=[32], part=inner, arrays=arrays, error="format"),
    )


SOURCES = (
    from_page, word_vectors, grid_vectors, payload_vectors, raw_vectors, planes_vectors, narrow_vectors, quantized_vectors,
    sparse_vectors, index_vectors, values_vectors, lowrank_vectors, tucker_vectors, combined_vectors, base_vectors, ggml_vectors, form_vectors, document_vectors,
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

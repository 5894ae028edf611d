"""Faults of payloads: their checksums hold unless that is the fault."""

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import zstandard
from forge import Forged, resealed

from bad_inputs import Case
from mzstore.errors import CorruptError
from mzstore.payload import seal

ZSTD_NBYTES = 1200  # of a chunk of "zstd"


def missing(key: str) -> Callable[[Forged], None]:
    return lambda forged: _discard(forged.payloads.pop(key))


def payload(key: str, data: bytes) -> Callable[[Forged], None]:
    return lambda forged: _discard(forged.payloads.update({key: data}))


def body(key: str, change: Callable[[bytearray], Any]) -> Callable[[Forged], None]:
    return lambda forged: _discard(forged.payloads.update({key: resealed(forged.payloads[key], change)}))


def swapped(a: str, b: str) -> Callable[[Forged], None]:
    def spoil(forged: Forged) -> None:
        held = forged.payloads
        held[a], held[b] = held[b], held[a]

    return spoil


def flipped(key: str, at: int) -> Callable[[Forged], None]:
    def spoil(forged: Forged) -> None:
        data = bytearray(forged.payloads[key])
        data[at] ^= 1
        forged.payloads[key] = bytes(data)

    return spoil


def frame(data: bytes) -> Callable[[Forged], None]:
    return payload("zstd/c/0/0", seal(data))


def _discard(_: object) -> None: ...


def compressed(data: bytes, **parameters: Any) -> bytes:
    return zstandard.ZstdCompressor(**parameters).compress(data)


def unknown_size(data: bytes) -> bytes:
    stream = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    return stream.compress(data) + stream.flush()


def with_header(descriptor: int, rest: bytes) -> bytes:
    """A frame of the content of one empty last block, with a header of its own."""
    return b"\x28\xb5\x2f\xfd" + bytes([descriptor]) + rest + b"\1\0\0"


def bomb() -> bytes:
    """1 KB that stands for 4 GiB: blocks of 128 KiB of one repeated byte, in a frame that says ZSTD_NBYTES."""
    header = b"\x28\xb5\x2f\xfd" + bytes([0b01_0_00000]) + b"\x38" + struct.pack("<H", ZSTD_NBYTES - 256)
    block = (0x20000 << 3 | 1 << 1).to_bytes(3, "little") + b"a"
    return header + block * 300 + b"\1\0\0"


def honest_bomb() -> bytes:
    """A frame that says 4 GiB."""
    header = b"\x28\xb5\x2f\xfd" + bytes([0b11_0_00000]) + b"\x38" + struct.pack("<Q", 1 << 32)
    block = (0x20000 << 3 | 1 << 1).to_bytes(3, "little") + b"a"
    return header + block * 300 + b"\1\0\0"


def escapes(*numbers: int) -> Callable[[Forged], None]:
    """The escapes of a chunk: position * 256 + top field."""

    def spoil(forged: Forged) -> None:
        body = zstandard.decompress(forged.payloads["ranked/c/0/0/0"][:-4])
        new = np.array(numbers, "<u4").tobytes()
        forged.payloads["ranked/c/0/0/0"] = seal(compressed(body[: -len(new)] + new))

    return spoil


def symbols(number: int) -> Callable[[Forged], None]:
    """One symbol of the 12 of the only chunk."""

    def spoil(forged: Forged) -> None:
        planes = bytearray(zstandard.decompress(forged.payloads["symbols/c/0/0/0"][:-4]))
        planes[5] = number
        forged.payloads["symbols/c/0/0/0"] = seal(compressed(bytes(planes)))

    return spoil


CONTENT = bytes(ZSTD_NBYTES)
WHOLE = compressed(CONTENT)
SKIPPABLE = b"\x50\x2a\x4d\x18" + struct.pack("<I", 4) + b"skip"
ASCEND = "the positions of the escapes do not ascend below 12"
CHECKSUM = "the checksum \\(crc32c\\) of the chunk does not hold; restore"

CASES = [
    Case("missing", missing("raw/c/1"), CorruptError, "the chunk 'raw/c/1' is missing"),
    Case("constant missing", missing("constant/c/0/0"), CorruptError, "the chunk 'constant/c/0/0' is missing"),
    Case("ranks missing", missing("ranked/c/1/0/0"), CorruptError, "'ranked/c/1/0/0' is missing"),
    Case("empty", payload("raw/c/1", b""), CorruptError, "0 bytes has no room for its checksum"),
    Case("3 bytes", payload("raw/c/1", b"abc"), CorruptError, "3 bytes has no room for its checksum"),
    Case("checksum only", payload("raw/c/1", seal(b"")), CorruptError, "the chunk has 4 bytes, 0 are stored"),
    Case("flipped", flipped("raw/c/1", 0), CorruptError, CHECKSUM),
    Case("flipped in the checksum", flipped("planes/c/0/0/0", -1), CorruptError, CHECKSUM),
    Case("flipped in zstd", flipped("zstd/c/1/0", 6), CorruptError, CHECKSUM),
    Case("one byte less", body("raw/c/1", lambda b: b[:-1]), CorruptError, "the chunk has 4 bytes, 3 are stored"),
    Case("one byte more", body("raw/c/1", lambda b: b + b"\0"), CorruptError, "the chunk has 4 bytes, 5 are stored"),
    Case("constant longer", body("constant/c/0/0", lambda b: b * 9), CorruptError, "4 bytes, 36 are stored"),
    Case("of another tensor", swapped("zstd/c/0/0", "planes/c/0/0/0"), CorruptError, "the chunk has"),
    Case("no frame", frame(b""), CorruptError, "not a zstd frame"),
    Case("magic only", frame(WHOLE[:4]), CorruptError, "not a zstd frame"),
    Case("other magic", frame(b"\x27" + WHOLE[1:]), CorruptError, "not a zstd frame"),
    Case("frame plain", frame(CONTENT), CorruptError, "not a zstd frame"),
    Case("skippable frame", frame(SKIPPABLE), CorruptError, "not a zstd frame"),
    Case("skippable frame in front", frame(SKIPPABLE + WHOLE), CorruptError, "not a zstd frame"),
    Case(
        "skippable frame behind", frame(WHOLE + SKIPPABLE), CorruptError, "bytes are stored, the zstd frame in them has"
    ),
    Case("frame cut", frame(WHOLE[:-1]), CorruptError, "zstd frame"),
    Case("bytes behind the frame", frame(WHOLE + b"\0"), CorruptError, "bytes are stored, the zstd frame in them has"),
    Case("two frames", frame(compressed(CONTENT[:600]) * 2), CorruptError, "the zstd frame holds 600 bytes"),
    Case("two frames of the size", frame(WHOLE * 2), CorruptError, "bytes are stored, the zstd frame in them has"),
    Case("content shorter", frame(compressed(CONTENT[:-1])), CorruptError, "holds 1199 bytes, the chunk has 1200"),
    Case("content longer", frame(compressed(CONTENT + b"\0")), CorruptError, "holds 1201 bytes, the chunk has 1200"),
    Case(
        "size unknown", frame(unknown_size(CONTENT)), CorruptError, "the zstd frame holds .* bytes, the chunk has 1200"
    ),
    Case(
        "size 2**60",
        frame(with_header(0b11_1_00000, struct.pack("<Q", 2**60))),
        CorruptError,
        "holds 1152921504606846976 bytes, the chunk has 1200",
    ),
    Case("less than it says", frame(with_header(0b01_1_00000, struct.pack("<H", 944))), CorruptError, "zstd"),
    Case("more than it says", frame(bomb()), CorruptError, "zstd"),
    Case("a bomb", frame(honest_bomb()), CorruptError, "holds 4294967296 bytes, the chunk has 1200"),
    Case(
        "a dictionary",
        frame(with_header(0b01_1_00001, b"\7" + struct.pack("<H", 944))),
        CorruptError,
        "needs dictionary 7",
    ),
    Case(
        "a window of 2 GiB",
        frame(with_header(0b01_0_00000, bytes([21 << 3]) + struct.pack("<H", 944))),
        CorruptError,
        "a window of 2147483648 bytes",
    ),
    Case(
        "a window of terabytes",
        frame(with_header(0b01_0_00000, b"\xff" + struct.pack("<H", 944))),
        CorruptError,
        "zstd",
    ),
    Case("a reserved bit", frame(with_header(0b01_1_01000, struct.pack("<H", 944))), CorruptError, "zstd"),
    Case("a reserved block", frame(WHOLE[:7] + b"\7\0\0"), CorruptError, "zstd"),
    Case("a block beyond the end", frame(WHOLE[:7] + b"\xfd\xff\xff"), CorruptError, "zstd frame"),
    Case("frame checksum wrong", frame(compressed(CONTENT, write_checksum=True)[:-4] + b"abcd"), CorruptError, "zstd"),
    Case("frame checksum cut", frame(compressed(CONTENT, write_checksum=True)[:-4]), CorruptError, "bytes are stored"),
    Case("symbol 35 of 35", symbols(35), CorruptError, "symbol 35 is not below 35"),
    Case("symbol 255", symbols(255), CorruptError, "symbol 255 is not below 35"),
    Case("escape beyond the chunk", escapes(12 << 8 | 1), CorruptError, ASCEND),
    Case("escape of position 2**24 - 1", escapes(0xFFFFFF00), CorruptError, ASCEND),
    Case("escape far away", escapes(2**24 - 2 << 8 | 1), CorruptError, ASCEND),
]

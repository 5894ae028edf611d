"""Faults of the ZIP file around everything."""

import io
import struct
import zipfile
import zlib
from collections.abc import Callable

from forge import ROOT, Forged, patched_end, patched_entry

from bad_inputs import Case
from mzstore.archive import (
    END,
    END64,
    END64_ID,
    END_ID,
    LOCATOR64,
    LOCATOR64_ID,
    MADE_BY,
    VERSION64,
    ArchiveWriter,
)
from mzstore.errors import CorruptError, FormatError

FAR = 2**63 + 1


def other_zip(forged: Forged) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.txt", b"hello")
    return file.getvalue()


def streamed_zip(forged: Forged) -> bytes:
    """The same model with data descriptors, as a ZIP tool writes it to a pipe."""

    class Pipe(io.RawIOBase):
        def __init__(self) -> None:
            self.data = bytearray()

        def writable(self) -> bool:
            return True

        def write(self, data) -> int:
            self.data += data
            return len(data)

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w") as archive:
        for key, data in forged.contents().items():
            archive.writestr(key, data)
    return bytes(pipe.data)


def end(**fields: int) -> Callable[[Forged], bytes]:
    return lambda forged: patched_end(forged.archive(), **fields)


def moved_end(name: str, change: int) -> Callable[[Forged], bytes]:
    at = {"count": 4, "nbytes": 5, "start": 6}[name]

    def spoil(forged: Forged) -> bytes:
        archive = forged.archive()
        value = END.unpack_from(archive, len(archive) - END.size)[at] + change
        here = {"here": value} if name == "count" else {}
        return patched_end(archive, **{name: value}, **here)

    return spoil


def zip64(
    *, record: dict[str, int] | None = None, locator: dict[str, int] | None = None, cut: int = 0
) -> Callable[[Forged], bytes]:
    """The archive with ZIP64 end records, of which some fields lie."""

    def spoil(forged: Forged) -> bytes:
        archive = forged.archive()
        *_, count, nbytes, start, _ = END.unpack_from(archive, len(archive) - END.size)
        at = len(archive) - END.size
        fields = {
            "signature": END64_ID, "size": END64.size - 12, "made_by": MADE_BY, "version": VERSION64, "disk": 0,
            "first_disk": 0, "here": count, "count": count, "nbytes": nbytes, "start": start,
        } | (record or {})  # fmt: skip
        place = {"signature": LOCATOR64_ID, "disk": 0, "at": at, "disks": 1} | (locator or {})
        tail = END64.pack(*fields.values()) + LOCATOR64.pack(*place.values())
        last = END.pack(END_ID, 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
        return archive[:at] + tail[cut:] + last

    return spoil


def entry(index: int = 0, **fields: int) -> Callable[[Forged], bytes]:
    return lambda forged: patched_entry(forged.archive(), index, **fields)


def renamed(name: bytes) -> Callable[[Forged], bytes]:
    """The first entry, ``raw/c/0``, under another name of the same length."""
    assert len(name) == len("raw/c/0")
    return lambda forged: patched_entry(forged.archive(), 0, name=name)


def far_offset(extra: bytes) -> Callable[[Forged], bytes]:
    """The last entry says that its offset stands in an extra field, which is ``extra``."""

    def spoil(forged: Forged) -> bytes:
        archive = forged.archive()
        *_, count, nbytes, start, _ = END.unpack_from(archive, len(archive) - END.size)
        spoilt = bytearray(
            patched_end(
                patched_entry(archive, count - 1, n_extra=len(extra), header=0xFFFFFFFF), nbytes=nbytes + len(extra)
            )
        )
        spoilt[start + nbytes : start + nbytes] = extra
        return bytes(spoilt)

    return spoil


def rewritten(write: Callable[[ArchiveWriter, Forged], None]) -> Callable[[Forged], bytes]:
    def spoil(forged: Forged) -> bytes:
        file = io.BytesIO()
        writer = ArchiveWriter(file)
        write(writer, forged)
        writer.finish()
        return file.getvalue()

    return spoil


def twice(writer: ArchiveWriter, forged: Forged) -> None:
    for _ in range(2):
        for key, data in forged.contents().items():
            writer.write_document(key, data)


def twice_by_case(writer: ArchiveWriter, forged: Forged) -> None:
    writer.write_document("RAW/c/0", b"")
    for key, data in forged.contents().items():
        writer.write_document(key, data)


def hole(writer: ArchiveWriter, forged: Forged) -> None:
    """70,000 bytes between two entries, of which the directory does not know."""
    for key, data in forged.contents().items():
        writer.write_document(key, data)
        if key == "raw/c/0":
            writer._write(bytes(70_000))


def deflated_chunk(writer: ArchiveWriter, forged: Forged) -> None:
    for key, data in forged.contents().items():
        writer.write_document(key, data)


def root(stored: bytes, data: bytes, *, nbytes: int | None = None, crc32: int | None = None, method: int = 8):
    """The root document with ``stored`` as its deflated form and lies about its size and CRC."""

    def write(writer: ArchiveWriter, forged: Forged) -> None:
        size = len(data) if nbytes is None else nbytes
        crc = zlib.crc32(data) if crc32 is None else crc32
        writer._begin(ROOT, len(stored), size, crc, method, aligned=False)
        writer._write(stored)

    return rewritten(write)


def deflated(data: bytes) -> bytes:
    return zlib.compress(data, 9, -15)


def no_root(forged: Forged) -> None:
    del forged.documents[ROOT]


BOMB = deflated(b" " * (64 << 20))
DOC = b'{"zarr_format":3}'
NO_DIRECTORY = r"the directory of \d+ bytes at \d+ does not end at \d+"
MALFORMED_64 = "the ZIP64 end of the directory is malformed"
DAMAGED = "size or CRC-32 do not hold"

CASES = [
    Case("nothing", lambda _: b"", FormatError, "0 bytes are no mzstore archive"),
    Case("one byte less than an end record", lambda _: bytes(21), FormatError, "21 bytes are no mzstore archive"),
    Case("zeros", lambda _: bytes(1000), FormatError, "does not end as one"),
    Case("safetensors", lambda _: b"\2\0\0\0\0\0\0\0{}" + bytes(50), FormatError, "does not end as one"),
    Case("an empty ZIP", lambda _: END.pack(END_ID, 0, 0, 0, 0, 0, 0, 0), FormatError, "has no zarr.json"),
    Case("another ZIP", other_zip, FormatError, "has no zarr.json"),
    Case("a streamed ZIP", streamed_zip, FormatError, "entry 0 of the directory is malformed"),
    Case("trailing bytes", lambda f: f.archive() + b"\0", FormatError, "does not end as one"),
    Case("trailing gigabyte of zeros claimed", end(comment=0xFFFF), FormatError, "does not end as one"),
    Case("leading bytes", lambda f: b"GIF89a" + f.archive(), FormatError, NO_DIRECTORY),
    Case("leading program", lambda f: b"\x7fELF".ljust(4096, b"\0") + f.archive(), FormatError, NO_DIRECTORY),
    Case("two archives", lambda f: f.archive() * 2, FormatError, NO_DIRECTORY),
    Case("a ZIP comment", lambda f: patched_end(f.archive(), comment=3) + b"abc", FormatError, "does not end as one"),
    Case("second disk", end(disk=1), FormatError, "several volumes"),
    Case("directory on second disk", end(first_disk=1), FormatError, "several volumes"),
    Case("counts that differ", end(here=3), FormatError, "several volumes"),
    Case("one entry more", moved_end("count", 1), FormatError, "the directory is cut short"),
    Case("one entry less", moved_end("count", -1), FormatError, "bytes more than its"),
    Case("no entries", end(here=0, count=0), FormatError, "bytes more than its 0 entries"),
    Case("65,534 entries", end(here=0xFFFE, count=0xFFFE), FormatError, NO_DIRECTORY),
    Case("directory of no bytes", end(nbytes=0), FormatError, NO_DIRECTORY),
    Case("directory of 4 GiB", end(nbytes=0xFFFFFFFE), FormatError, NO_DIRECTORY),
    Case("directory one byte longer", moved_end("nbytes", 1), FormatError, NO_DIRECTORY),
    Case("directory one byte earlier", moved_end("start", -1), FormatError, NO_DIRECTORY),
    Case("directory at 4 GiB", end(start=0xFFFFFFFE), FormatError, NO_DIRECTORY),
    Case("ZIP64 without its records", end(here=0xFFFF, count=0xFFFF), FormatError, MALFORMED_64),
    Case(
        "ZIP64 in a file too small for it",
        lambda _: END.pack(END_ID, 0, 0, 0xFFFF, 0xFFFF, 0, 0, 0),
        FormatError,
        "the ZIP64 end of the directory is missing",
    ),
    Case("ZIP64 locator far away", zip64(locator={"at": FAR}), FormatError, MALFORMED_64),
    Case("ZIP64 locator elsewhere", zip64(locator={"at": 0}), FormatError, MALFORMED_64),
    Case("ZIP64 on two disks", zip64(locator={"disks": 2}), FormatError, MALFORMED_64),
    Case("ZIP64 locator signature", zip64(locator={"signature": 0}), FormatError, MALFORMED_64),
    Case("ZIP64 record signature", zip64(record={"signature": 0}), FormatError, MALFORMED_64),
    Case("ZIP64 record size", zip64(record={"size": 2**64 - 1}), FormatError, MALFORMED_64),
    Case("ZIP64 record disk", zip64(record={"disk": 1}), FormatError, MALFORMED_64),
    Case("ZIP64 counts that differ", zip64(record={"here": 1}), FormatError, MALFORMED_64),
    Case("ZIP64 count", zip64(record={"here": 2**62, "count": 2**62}), FormatError, NO_DIRECTORY),
    Case("ZIP64 directory size", zip64(record={"nbytes": 2**64 - 1}), FormatError, NO_DIRECTORY),
    Case("ZIP64 directory size wraps", zip64(record={"nbytes": 2**64 - 64, "start": 2**63}), FormatError, NO_DIRECTORY),
    Case("ZIP64 directory start", zip64(record={"start": FAR}), FormatError, NO_DIRECTORY),
    Case("ZIP64 record cut", zip64(cut=8), FormatError, MALFORMED_64),
    Case("directory signature", entry(signature=0x04034B50), FormatError, "entry 0 of the directory is malformed"),
    Case("encrypted", entry(flags=1), FormatError, "entry 0 of the directory is malformed"),
    Case("data descriptor", entry(3, flags=8), FormatError, "entry 3 of the directory is malformed"),
    Case("UTF-8 flag", entry(flags=0x800), FormatError, "entry 0 of the directory is malformed"),
    Case("entry on disk 1", entry(disk=1), FormatError, "entry 0 of the directory is malformed"),
    Case("entry comment", entry(n_comment=3), FormatError, "entry 0 of the directory is malformed"),
    Case("method LZMA", entry(method=14), FormatError, "entry 0 of the directory has method 14"),
    Case("method zstd", entry(method=93), FormatError, "entry 0 of the directory has method 93"),
    Case("STORED of two sizes", entry(nbytes=1 << 31), FormatError, "has method 0, 8 and 2147483648 bytes"),
    Case("name too long", entry(n_name=0xFFFF), FormatError, "entry 0 of the directory is malformed"),
    Case("name of no bytes", entry(n_name=0), FormatError, "b'' is no key"),
    Case("extra too long", entry(n_extra=0xFFFF), FormatError, "entry 0 of the directory is malformed"),
    Case("extra field", entry(n_extra=4), FormatError, "entry 0 of the directory has extra fields"),
    Case("far offset without a field", entry(header=0xFFFFFFFF), FormatError, "entry 0 of the directory has no ZIP64"),
    Case("far offset of another field", far_offset(struct.pack("<HHQ", 2, 8, 0)), FormatError, "has no ZIP64 offset"),
    Case("far offset cut", far_offset(struct.pack("<HHI", 1, 4, 0)), FormatError, "has no ZIP64 offset"),
    Case(
        "far offset beyond the file", far_offset(struct.pack("<HHQ", 1, 8, FAR)), FormatError, "between its neighbours"
    ),
    Case("first entry not at 0", entry(header=1), FormatError, "'raw/c/0' does not lie between its neighbours"),
    Case("entries overlap", entry(2, header=0), FormatError, "does not lie between its neighbours"),
    Case("entries out of order", entry(1, header=2000), FormatError, "does not lie between its neighbours"),
    Case(
        "entry beyond the directory", entry(15, header=0xFFFFFFFE), FormatError, "does not lie between its neighbours"
    ),
    Case("content too long", entry(stored=0xFFFFFFFE, nbytes=0xFFFFFFFE), FormatError, "between its neighbours"),
    Case("content longer by one entry", entry(1, stored=200, nbytes=200), FormatError, "between its neighbours"),
    Case("a hole", rewritten(hole), FormatError, "does not lie between its neighbours"),
    Case("a key twice", rewritten(twice), FormatError, "occurs twice"),
    Case("a key twice but for its case", rewritten(twice_by_case), FormatError, "'raw/c/0' occurs twice"),
    Case("key with ..", renamed(b"../../a"), FormatError, "is no key"),
    Case("key with . inside", renamed(b"a/././b"), FormatError, "is no key"),
    Case("absolute key", renamed(b"/etc/ab"), FormatError, "is no key"),
    Case("folder as key", renamed(b"raw/cc/"), FormatError, "is no key"),
    Case("key with a backslash", renamed(b"raw\\c\\0"), FormatError, "is no key"),
    Case("key with a drive", renamed(b"C:/c/00"), FormatError, "is no key"),
    Case("key with NUL", renamed(b"raw/c/\0"), FormatError, "is no key"),
    Case("key with a line break", renamed(b"raw/c/\n"), FormatError, "is no key"),
    Case("key with a space", renamed(b"raw/c/ "), FormatError, "is no key"),
    Case("key not ASCII", renamed("raw/cé".encode()), FormatError, "is no key"),
    Case("chunk DEFLATED", rewritten(deflated_chunk), FormatError, "not STORED"),
    Case("no root", no_root, FormatError, "it has no zarr.json"),
    Case("root CRC", root(deflated(DOC), DOC, crc32=1), CorruptError, DAMAGED),
    Case(
        "root larger than it says", root(deflated(DOC), DOC, nbytes=5), CorruptError, "do not end where the entry does"
    ),
    Case("root smaller than it says", root(deflated(DOC), DOC, nbytes=500), CorruptError, DAMAGED),
    Case("root of 2 GiB", root(deflated(DOC), DOC, nbytes=1 << 31), FormatError, "a document of 2147483648 bytes"),
    Case("root cut", root(deflated(DOC)[:-3], DOC), CorruptError, "do not end where the entry does"),
    Case("root with more behind it", root(deflated(DOC) + b"12", DOC), CorruptError, "do not end where the entry does"),
    Case("root not deflated", root(b"\xff" * 20, DOC), CorruptError, "cannot be inflated"),
    Case("root of no bytes", root(b"", b""), CorruptError, "do not end where the entry does"),
    Case("root a bomb", root(BOMB, DOC), CorruptError, "do not end where the entry does"),
    Case("root STORED and wrong", root(DOC, DOC, method=0, crc32=5), CorruptError, DAMAGED),
]

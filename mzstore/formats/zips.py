"""ZIP files of other formats: where their members lie, all of it checked."""

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any, Self

from mzstore.errors import CorruptError, FormatError, UnsupportedError
from mzstore.formats.files import BlobFile, read_many
from mzstore.storage import BLOCK_NBYTES, Blob, Sink

MAGIC = b"PK\x03\x04"
MAX_DIRECTORY_NBYTES = 1 << 28
MAX_MEMBERS = 1 << 20
STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
LOCAL = struct.Struct("<4s5H3L2H")
ENCRYPTED = 1  # of the flags


@dataclass(frozen=True, slots=True)
class Member:
    """``stored_nbytes`` from byte ``start`` of the file on are its content, of ``nbytes``, stored or deflated."""

    name: str
    start: int
    stored_nbytes: int
    nbytes: int
    deflated: bool
    crc32: int


class _Directory(io.BufferedReader):
    """What ``zipfile`` reads at once is bounded."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size > MAX_DIRECTORY_NBYTES:
            raise zipfile.BadZipFile("its directory is too large")
        return super().read(size)


class _Unseekable(io.RawIOBase):
    """A sink as ``zipfile`` takes it."""

    def __init__(self, sink: Sink) -> None:
        self._sink, self.nbytes = sink, 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._sink.write(data)
        self.nbytes += len(data)
        return len(data)


class Writer:
    """A ZIP file of stored members, written front to back; the content of each begins at a multiple of ``alignment``."""

    def __init__(self, sink: Sink, alignment: int) -> None:
        self._file = _Unseekable(sink)
        self._archive = zipfile.ZipFile(self._file, "w")
        self._alignment = alignment

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._archive.close()

    def open(self, name: str, nbytes: int) -> IO[bytes]:
        """To write the content of a member, of which ``nbytes`` are expected."""
        about = zipfile.ZipInfo(name)  # of 1980: the same input gives the same bytes
        about.file_size = nbytes
        large = nbytes * 1.05 > zipfile.ZIP64_LIMIT
        at = self._file.nbytes + LOCAL.size + len(name.encode()) + (20 if large else 0) + 4
        about.extra = struct.pack("<2sH", b"FB", -at % self._alignment) + bytes(-at % self._alignment)
        member: IO[bytes] = self._archive.open(about, "w", force_zip64=large)
        return member

    def write(self, name: str, content: bytes) -> None:
        with self.open(name, len(content)) as member:
            member.write(content)


def members(blob: Blob) -> dict[str, Member]:
    """By name, in the order of the file. Raises FormatError or UnsupportedError; CorruptError is for what is read later."""

    def refuse(problem: str) -> FormatError:
        return FormatError(f"not a ZIP file that can be read: {problem}", where=blob.url)

    try:
        with zipfile.ZipFile(_Directory(BlobFile(blob), 1 << 16)) as archive:
            entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
            end = archive.start_dir
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, struct.error) as error:
        raise refuse(str(error)) from error
    if len(entries) > MAX_MEMBERS:
        raise refuse(f"{len(entries)} members")
    headers = read_many(blob, [(e.header_offset, min(e.header_offset + LOCAL.size, end)) for e in entries])
    found: dict[str, Member] = {}
    at = 0
    for entry, header, limit in zip(entries, headers, [e.header_offset for e in entries[1:]] + [end], strict=True):
        if len(header) < LOCAL.size or header[:4] != MAGIC:
            raise refuse(f"no header of {entry.filename!r}")
        name_nbytes, extra_nbytes = LOCAL.unpack(header)[-2:]
        start = entry.header_offset + LOCAL.size + name_nbytes + extra_nbytes
        if entry.header_offset < at or start + entry.compress_size > limit:
            raise refuse(f"{entry.filename!r} lies upon another member, or beyond the end")
        at = start + entry.compress_size
        if entry.flag_bits & ENCRYPTED:
            raise UnsupportedError(f"{entry.filename!r} is encrypted", where=blob.url)
        if entry.compress_type not in (STORED, DEFLATED):
            raise UnsupportedError(f"{entry.filename!r} is compressed by method {entry.compress_type}", where=blob.url)
        if entry.compress_type == STORED and entry.file_size != entry.compress_size:
            raise refuse(f"{entry.filename!r} has two sizes")
        if entry.filename in found:
            raise refuse(f"two members are called {entry.filename!r}")
        found[entry.filename] = Member(
            entry.filename, start, entry.compress_size, entry.file_size, entry.compress_type == DEFLATED, entry.CRC
        )
    return found


def content(blob: Blob, member: Member, limit: int) -> bytes:
    """All of a small member. Raises FormatError if it has more than ``limit`` bytes, CorruptError if it is damaged."""
    if member.nbytes > limit:
        raise FormatError(f"{member.name!r} has {member.nbytes} bytes, at most {limit} are allowed", where=blob.url)
    return b"".join(blocks(blob, member))


def start_of(blob: Blob, member: Member, nbytes: int) -> bytes:
    """The first bytes of a member."""
    found = b""
    for block in blocks(blob, member):
        found += block[: nbytes - len(found)]
        if len(found) == nbytes:
            break
    return found


def blocks(blob: Blob, member: Member) -> Iterator[bytes]:
    """The content, in pieces of a bounded size. Raises CorruptError at the end if it is not as the directory says."""
    crc, nbytes = 0, 0
    where = f"{blob.url}, {member.name!r}"
    stored = _stored(blob, member)
    for block in _inflated(stored, where) if member.deflated else stored:
        crc, nbytes = zlib.crc32(block, crc), nbytes + len(block)
        if nbytes > member.nbytes:
            break
        yield block
    if (nbytes, crc) != (member.nbytes, member.crc32):
        raise CorruptError("size or CRC-32 do not hold; restore the file from a copy", where=where)


def _stored(blob: Blob, member: Member) -> Iterator[bytes]:
    stop = member.start + member.stored_nbytes
    for start in range(member.start, stop, BLOCK_NBYTES):
        yield bytes(blob.read(start, min(start + BLOCK_NBYTES, stop)))


def _inflated(stored: Iterator[bytes], where: str) -> Iterator[bytes]:
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    for data in stored:
        block = b""
        while data or block:  # what was not asked for may be in the decompressor still
            try:
                block = inflate.decompress(data, BLOCK_NBYTES)
            except zlib.error as error:
                raise CorruptError(f"cannot be inflated: {error}", where=where) from error
            data = inflate.unconsumed_tail
            yield block

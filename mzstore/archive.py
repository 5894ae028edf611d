"""Archive: a model in one ZIP file (FORMAT.md section 5.2).

``ArchiveWriter`` streams it front to back; ``ArchiveReader`` opens it with one read of its tail. Chunks are STORED,
so that the central directory is the index of exact byte ranges; documents are DEFLATEd, because the documents
of a model repeat each other (on all-MiniLM-L6-v2 they would be 0.5 % of the archive, and are 0.1 %).
"""

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from mzstore import garbage
from mzstore.errors import CorruptError, FormatError
from mzstore.extents import Extent, Request
from mzstore.nodes import is_key
from mzstore.payload import check_payload_nbytes
from mzstore.stats import Stats
from mzstore.storage import Blob, OnBytes, Operation, Sink

METHODS = STORED, DEFLATED = 0, 8
ALIGNMENT = 64
TAIL_NBYTES = 512 << 10  # documents and directory of a model of 1,000 tensors
MAX_DIRECTORY_NBYTES = 1 << 30  # some 10 million entries: what opening an archive can allocate
MAX_ENTRY_NBYTES = (1 << 31) - 1  # beyond that TensorStore takes an entry for missing, silently

LOCAL = struct.Struct("<IHHHHHIIIHH")
CENTRAL = struct.Struct("<IHHHHHHIIIHHHHHII")
# The same without what no reader needs: versions, date, file mode.
CENTRAL_READ = struct.Struct("<I4xHH4xIIIHHHH6xI")
END = struct.Struct("<IHHHHIIH")
END64 = struct.Struct("<IQHHIIQQQQ")
LOCATOR64 = struct.Struct("<IIQI")
LOCAL_ID, CENTRAL_ID, END_ID, END64_ID, LOCATOR64_ID = 0x04034B50, 0x02014B50, 0x06054B50, 0x06064B50, 0x07064B50

PADDING_ID = 0xD935  # the field that zipalign writes: the alignment, then zeros
ZIP64_ID = 0x0001
VERSION, VERSION64 = 20, 45
MADE_BY = 3 << 8 | VERSION64  # Unix, so that the file mode below counts
MODE = 0o100644 << 16
DATE = 0x21  # 1980-01-01: the same input gives the same bytes


class Entry(NamedTuple):
    """One file of the archive. Its content stands at ``[start, start + stored_nbytes)``."""

    key: str
    header: int  # offset of the local header
    start: int
    stored_nbytes: int
    nbytes: int
    crc32: int
    method: int


class ArchiveWriter:
    """Writes entries to ``sink`` one after the other; ``finish`` writes the directory."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._entries: list[Entry] = []
        self._offset = 0

    @property
    def nbytes(self) -> int:
        """Bytes written so far."""
        return self._offset

    def write_chunk(self, key: str, payload: bytes, *, aligned: bool) -> None:
        """An entry that is stored as it is; ``aligned`` if its content may be used where it lies."""
        self._begin(key, len(payload), len(payload), zlib.crc32(payload), STORED, aligned=aligned)
        self._write(payload)

    def write_document(self, key: str, data: bytes) -> None:
        """An entry that is compressed."""
        deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 9)
        stored = deflate.compress(data) + deflate.flush()
        self._begin(key, len(stored), len(data), zlib.crc32(data), DEFLATED, aligned=False)
        self._write(stored)

    def write_file(self, key: str, nbytes: int, crc32: int, blocks: Iterator[bytes | memoryview]) -> None:
        """An entry that is copied as it is, of a size and checksum that are known before."""
        if nbytes > MAX_ENTRY_NBYTES:
            raise ValueError(f"{key!r} has {nbytes} bytes, at most {MAX_ENTRY_NBYTES} can travel in an archive")
        self._begin(key, nbytes, nbytes, crc32, STORED, aligned=True)
        for block in blocks:
            self._write(block)

    def finish(self) -> None:
        start = self._offset
        for entry in self._entries:
            far = entry.header >= 0xFFFF_FFFF
            extra = struct.pack("<HHQ", ZIP64_ID, 8, entry.header) if far else b""
            name = entry.key.encode("ascii")
            version = VERSION64 if far else VERSION
            fields = (
                CENTRAL_ID, MADE_BY, version, 0, entry.method, 0, DATE, entry.crc32, entry.stored_nbytes, entry.nbytes,
                len(name), len(extra), 0, 0, 0, MODE, min(entry.header, 0xFFFF_FFFF),
            )  # fmt: skip
            self._write(CENTRAL.pack(*fields) + name + extra)
        nbytes, count, end = self._offset - start, len(self._entries), self._offset
        if count >= 0xFFFF or start >= 0xFFFF_FFFF or nbytes >= 0xFFFF_FFFF:
            self._write(END64.pack(END64_ID, END64.size - 12, MADE_BY, VERSION64, 0, 0, count, count, nbytes, start))
            self._write(LOCATOR64.pack(LOCATOR64_ID, 0, end, 1))
        small = min(count, 0xFFFF)
        self._write(END.pack(END_ID, 0, 0, small, small, min(nbytes, 0xFFFF_FFFF), min(start, 0xFFFF_FFFF), 0))

    def _begin(self, key: str, stored_nbytes: int, nbytes: int, crc32: int, method: int, *, aligned: bool) -> None:
        name = key.encode("ascii")
        header, body = self._offset, self._offset + LOCAL.size + len(name)
        extra = b""
        if aligned and body % ALIGNMENT:
            length = -body % ALIGNMENT
            if length < 6:  # a field needs 4 bytes for itself and 2 for the alignment
                length += ALIGNMENT
            extra = struct.pack("<HHH", PADDING_ID, length - 4, ALIGNMENT).ljust(length, b"\0")
        self._entries.append(Entry(key, header, body + len(extra), stored_nbytes, nbytes, crc32, method))
        fields = (LOCAL_ID, VERSION, 0, method, 0, DATE, crc32, stored_nbytes, nbytes, len(name), len(extra))
        self._write(LOCAL.pack(*fields) + name + extra)

    def _write(self, data: bytes | memoryview) -> None:
        self._sink.write(data)
        self._offset += len(data)


class ArchiveReader:
    """The entries of an archive, by key. Raises FormatError for a file that is not such an archive."""

    def __init__(self, blob: Blob, stats: Stats | None = None, operation: Operation | None = None) -> None:
        self.blob, self.url, self.local, self.stats = blob, blob.url, blob.local, stats or Stats()
        self._tail_start = max(0, blob.nbytes - TAIL_NBYTES)
        # Of a remote object the memory in which it came, so that it is there once.
        self._tail = blob.fetch(self._tail_start, blob.nbytes, operation or blob.start())
        self.entries = self._directory(operation)

    def nbytes(self, key: str, operation: Operation | None = None) -> int | None:
        """Stored size of the entry; None if there is none."""
        entry = self.entries.get(key)
        return entry.stored_nbytes if entry else None

    def read_chunk(self, key: str, slot: str) -> memoryview | None:
        """The payload stored under ``key``, not yet checked; None if there is none."""
        entry = self._chunk(key)
        return None if entry is None else self.blob.read(entry.start, entry.start + entry.stored_nbytes, slot)

    def _chunk(self, key: str) -> Entry | None:
        entry = self.entries.get(key)
        if entry is None:
            return None
        if entry.method != STORED:
            raise FormatError("a chunk that is not STORED", where=f"{self.url}, {key!r}", clause="zip-6")
        check_payload_nbytes(entry.nbytes, where=f"{self.url}, {key!r}")
        return entry

    def extent(self, key: str, limit: int) -> Extent | None:
        """Where the payload of ``key`` lies, which has at most ``limit`` bytes; None if there is none."""
        entry = self._chunk(key)
        if entry is None:
            return None
        check_payload_nbytes(entry.nbytes, limit, where=f"{self.url}, {key!r}")
        return Extent("", entry.start, entry.start + entry.stored_nbytes, entry.start >= self._tail_start)

    def fetch(self, request: Request, operation: Operation, on_bytes: OnBytes | None = None) -> memoryview:
        assert request.stop is not None
        if request.held:
            return self._tail[request.start - self._tail_start : request.stop - self._tail_start]
        return self.blob.fetch(request.start, request.stop, operation, on_bytes)

    def start(self) -> Operation:
        return self.blob.start()

    def check_unchanged(self, operation: Operation) -> None:
        self.blob.check_unchanged(operation)

    def read_document(self, key: str, limit: int, operation: Operation | None = None) -> bytes | None:
        """The content stored under ``key``, checked against its CRC-32; None if there is none."""
        entry = self.entries.get(key)
        if entry is None:
            return None
        where = f"{self.url}, {key!r}"
        if (longest := max(entry.nbytes, entry.stored_nbytes)) > limit:
            raise FormatError(
                f"a document of {longest} bytes, at most {limit} are allowed", where=where, clause="document-3"
            )
        data = self._read(entry.start, entry.stored_nbytes, operation)
        if entry.method == DEFLATED:
            inflate = zlib.decompressobj(-zlib.MAX_WBITS)
            try:
                data = inflate.decompress(data, entry.nbytes + 1)
            except zlib.error as error:
                raise CorruptError(f"cannot be inflated: {error}", where=where, clause="zip-7") from error
            if not inflate.eof or inflate.unused_data:
                raise CorruptError("the deflated data do not end where the entry does", where=where, clause="zip-7")
        if len(data) != entry.nbytes or zlib.crc32(data) != entry.crc32:
            raise CorruptError("size or CRC-32 do not hold; restore the file from a copy", where=where, clause="zip-7")
        return data

    def read_blocks(self, key: str, block_nbytes: int, operation: Operation) -> Iterator[memoryview]:
        """The content of a STORED entry, piece by piece, checked against its CRC-32 at the end."""
        entry = self.entries[key]
        if entry.method != STORED:
            raise FormatError("a file that is not STORED", where=f"{self.url}, {key!r}", clause="zip-6")
        crc = 0
        for start in range(0, entry.nbytes, block_nbytes):
            stop = min(start + block_nbytes, entry.nbytes)
            block = self.blob.read(entry.start + start, entry.start + stop, operation=operation)
            crc = zlib.crc32(block, crc)
            yield block
        if crc != entry.crc32:
            raise CorruptError(
                "the CRC-32 does not hold; restore the file from a copy", where=f"{self.url}, {key!r}", clause="zip-7"
            )

    def keys(self) -> Iterator[str]:
        return iter(self.entries)

    def sizes(self) -> dict[str, int]:
        return {key: entry.stored_nbytes for key, entry in self.entries.items()}

    def check_local_header(self, entry: Entry, data: bytes) -> None:
        """Raises CorruptError unless ``data``, from the local header to the content, says what the directory says."""
        where = f"{self.url}, {entry.key!r}"
        signature, _, flags, method, _, _, crc32, stored, nbytes, n_name, n_extra = LOCAL.unpack_from(data)
        name = data[LOCAL.size :][:n_name]
        said = (signature, flags, method, crc32, stored, nbytes, name, LOCAL.size + n_name + n_extra)
        expected = (
            LOCAL_ID,
            0,
            entry.method,
            entry.crc32,
            entry.stored_nbytes,
            entry.nbytes,
            entry.key.encode(),
            len(data),
        )
        if said != expected:
            raise CorruptError(
                "local header and directory disagree; restore the file from a copy", where=where, clause="zip-5"
            )

    def close(self) -> None:
        self.blob.close()

    def _read(self, start: int, nbytes: int, operation: Operation | None) -> bytes:
        if start >= self._tail_start:
            return bytes(self._tail[start - self._tail_start :][:nbytes])
        return bytes(self.blob.read(start, start + nbytes, operation=operation))

    def _directory(self, operation: Operation | None) -> dict[str, Entry]:
        refuse = self._refuse
        if len(self._tail) < END.size:
            raise refuse(f"{self.blob.nbytes} bytes are no mzstore archive", "zip-1")
        end = self.blob.nbytes - END.size
        signature, disk, first_disk, here, count, nbytes, start, comment = END.unpack_from(
            self._tail, len(self._tail) - END.size
        )
        if signature != END_ID or comment:
            raise refuse("not an mzstore archive: it does not end as one", "zip-1")
        if here != count or disk or first_disk:
            raise refuse("a ZIP of several volumes", "zip-1")
        if count == 0xFFFF or nbytes == 0xFFFF_FFFF or start == 0xFFFF_FFFF:
            if end < LOCATOR64.size + END64.size:
                raise refuse("the ZIP64 end of the directory is missing", "zip-2")
            end -= LOCATOR64.size
            locator = LOCATOR64.unpack(self._read(end, LOCATOR64.size, operation))
            end -= END64.size
            record = END64.unpack(self._read(end, END64.size, operation))
            if (
                locator != (LOCATOR64_ID, 0, end, 1)
                or record[:2] != (END64_ID, END64.size - 12)
                or record[4:6] != (0, 0)
                or record[6] != record[7]
            ):
                raise refuse("the ZIP64 end of the directory is malformed", "zip-2")
            count, nbytes, start = record[7:]
        if start + nbytes != end or count * CENTRAL.size > nbytes:
            raise refuse(f"the directory of {nbytes} bytes at {start} does not end at {end}", "zip-2")
        if nbytes > MAX_DIRECTORY_NBYTES:
            raise refuse(f"a directory of {nbytes} bytes, at most {MAX_DIRECTORY_NBYTES} are allowed", "zip-2")

        if start < self._tail_start:  # once more, with as much in front of it as the root document may well have
            before = max(0, start - max(nbytes, TAIL_NBYTES))
            more = self.blob.read(before, self._tail_start, operation=operation)
            self._tail = memoryview(b"".join((more, self._tail)))
            self._tail_start = before
        data = self._read(start, nbytes, operation)
        with garbage.ignored():
            return self._entries(data, count, start)

    def _entries(self, data: bytes, count: int, start: int) -> dict[str, Entry]:
        """The ``count`` entries of the directory ``data``, which stands at ``start``, behind all of them."""
        refuse, nbytes, unpack = self._refuse, len(data), CENTRAL_READ.unpack_from
        text = data.decode("latin-1")  # a character for each byte
        keys: list[str] = []
        raw: list[tuple[int, int, int, int, int]] = []
        at = 0
        for i in range(count):
            if at + CENTRAL.size > nbytes:
                raise refuse("the directory is cut short", "zip-2")
            signature, flags, method, crc32, stored, size, n_name, n_extra, n_comment, disk, header = unpack(data, at)
            name_at = at + CENTRAL.size
            extra_at = name_at + n_name
            at = extra_at + n_extra
            if signature != CENTRAL_ID or flags or n_comment or disk or at > nbytes:
                raise refuse(f"entry {i} of the directory is malformed", "zip-3")
            if header == 0xFFFF_FFFF:
                if n_extra != 12 or data[extra_at : extra_at + 4] != struct.pack("<HH", ZIP64_ID, 8):
                    raise refuse(f"entry {i} of the directory has no ZIP64 offset", "zip-3")
                header = int.from_bytes(data[extra_at + 4 : at], "little")
            elif n_extra:
                raise refuse(f"entry {i} of the directory has extra fields", "zip-3")
            if method not in METHODS or (method == STORED and stored != size):
                raise refuse(f"entry {i} of the directory has method {method}, {stored} and {size} bytes", "zip-3")
            key = text[name_at:extra_at]
            if not is_key(key):
                raise refuse(f"{data[name_at:extra_at][:300]!r} is no key", "key-1")
            keys.append(key)
            raw.append((header, stored, size, crc32, method))
        if at != nbytes:
            raise refuse(f"the directory has {nbytes - at} bytes more than its {count} entries", "zip-2")
        self._check_distinct(keys)
        entries: dict[str, Entry] = {}
        stops = [*(header for header, *_ in raw), start][1:]
        for key, (header, stored, size, crc32, method), stop in zip(keys, raw, stops, strict=True):
            content = stop - stored
            least = header + LOCAL.size + len(key)
            if not least <= content <= least + 0xFFFF or (header and not entries):
                raise refuse(f"{key!r} does not lie between its neighbours", "zip-4")
            entries[key] = Entry(key, header, content, stored, size, crc32, method)
        return entries

    def _check_distinct(self, keys: list[str]) -> None:
        """Refuse keys that could not stand beside each other in a tree, on every system."""
        files = {key.lower() for key in keys}
        if len(files) != len(keys):
            seen: set[str] = set()
            for key in keys:
                if key.lower() in seen:
                    raise self._refuse(f"{key!r} occurs twice", "key-2")
                seen.add(key.lower())
        folders: set[str] = set()
        for folder in files:
            while (folder := folder.rpartition("/")[0]) and folder not in folders:
                folders.add(folder)
        if both := files & folders:
            raise self._refuse(f"{min(both)!r} is an entry, and a folder of others", "key-2")

    def _refuse(self, problem: str, clause: str) -> FormatError:
        return FormatError(problem, where=self.url, clause=clause)

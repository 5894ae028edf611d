"""Tree: a model as plain objects under a prefix (FORMAT.md section 5.3). The same keys as in an archive."""

import contextlib
from collections.abc import Iterator

from mzstore.errors import CorruptError, FormatError
from mzstore.extents import Extent, Request
from mzstore.payload import MAX_PAYLOAD_NBYTES, check_payload_nbytes
from mzstore.stats import Stats
from mzstore.storage import Folder, FolderSink, OnBytes, Operation


class TreeWriter:
    """Writes objects below a prefix; the caller writes the root document last."""

    def __init__(self, sink: FolderSink) -> None:
        self._sink = sink
        self.nbytes = 0

    def write_chunk(self, key: str, payload: bytes, *, aligned: bool) -> None:
        self._sink.write(key, payload)
        self.nbytes += len(payload)

    def write_document(self, key: str, data: bytes) -> None:
        self._sink.write(key, data)
        self.nbytes += len(data)

    def write_file(self, key: str, nbytes: int, crc32: int, blocks: Iterator[bytes | memoryview]) -> None:
        with self._sink.open(key) as file:
            for block in blocks:
                file.write(block)
        self.nbytes += nbytes

    def finish(self) -> None: ...


class TreeReader:
    """The objects of a tree, by key; ``root`` is that of the document without which there is no tree."""

    def __init__(self, folder: Folder, stats: Stats, root: str) -> None:
        self._root = root
        self.folder, self.url, self.local, self.stats = folder, folder.url, folder.local, stats

    def nbytes(self, key: str, operation: Operation | None = None) -> int | None:
        blob = self.folder.open(key, operation)
        if blob is None:
            return None
        with contextlib.closing(blob):
            return blob.nbytes

    def read_chunk(self, key: str, slot: str) -> memoryview | None:
        data = self.folder.read(key, MAX_PAYLOAD_NBYTES, slot)
        if data is not None:
            check_payload_nbytes(len(data), where=f"{self.url}/{key}")
        return data

    def extent(self, key: str, limit: int) -> Extent | None:
        """Where the payload of ``key`` lies, if it is there: only asking for it will tell."""
        return Extent(key, limit=limit)

    def fetch(self, request: Request, operation: Operation, on_bytes: OnBytes | None = None) -> memoryview:
        assert request.limit is not None
        data = self.folder.fetch(request.object, request.limit, operation)
        if data is None:
            where = f"{self.url}/{request.object}"
            raise CorruptError("the chunk is missing; restore the tree from a copy", where=where, clause="payload-4")
        return data

    def start(self) -> Operation:
        return self.folder.start()

    def check_unchanged(self, operation: Operation) -> None:
        """Raises StorageError if there is another root document; chunks have nothing that ties them to it."""
        self.folder.check_unchanged(operation)

    def read_document(self, key: str, limit: int, operation: Operation | None = None) -> bytes | None:
        data = self.folder.fetch(key, limit, operation or self.start(), pin=key == self._root)
        if data is not None and len(data) > limit:
            raise FormatError(f"a document of more than {limit} bytes", where=f"{self.url}/{key}", clause="document-3")
        return None if data is None else bytes(data)

    def read_blocks(self, key: str, block_nbytes: int, operation: Operation) -> Iterator[memoryview]:
        blob = self.folder.open(key, operation)
        assert blob is not None, "the caller knows that it is there"
        with contextlib.closing(blob):
            for start in range(0, blob.nbytes, block_nbytes):
                yield blob.read(start, min(start + block_nbytes, blob.nbytes), operation=operation)
            blob.check_unchanged(operation)

    def keys(self) -> Iterator[str]:
        return self.folder.walk()

    def sizes(self) -> dict[str, int]:
        return self.folder.sizes()

    def close(self) -> None: ...

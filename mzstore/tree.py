"""Tree: a model as plain objects under a prefix (FORMAT.md section 5.3). The same keys as in an archive."""

import contextlib
from collections.abc import Iterator

from mzstore.errors import FormatError
from mzstore.payload import MAX_PAYLOAD_NBYTES, check_payload_nbytes
from mzstore.storage import Folder, FolderSink


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
    """The objects of a tree, by key."""

    def __init__(self, folder: Folder) -> None:
        self.folder, self.url = folder, folder.url

    def nbytes(self, key: str) -> int | None:
        blob = self.folder.open(key)
        if blob is None:
            return None
        with contextlib.closing(blob):
            return blob.nbytes

    def read_chunk(self, key: str, slot: str) -> memoryview | None:
        data = self.folder.read(key, MAX_PAYLOAD_NBYTES, slot)
        if data is not None:
            check_payload_nbytes(len(data), where=f"{self.url}/{key}")
        return data

    def read_document(self, key: str, limit: int) -> bytes | None:
        data = self.folder.read(key, limit)
        if data is not None and len(data) > limit:
            raise FormatError(f"a document of more than {limit} bytes", where=f"{self.url}/{key}", clause="document-3")
        return None if data is None else bytes(data)

    def read_blocks(self, key: str, block_nbytes: int) -> Iterator[memoryview]:
        blob = self.folder.open(key)
        assert blob is not None, "the caller knows that it is there"
        with contextlib.closing(blob):
            for start in range(0, blob.nbytes, block_nbytes):
                yield blob.read(start, min(start + block_nbytes, blob.nbytes))

    def keys(self) -> Iterator[str]:
        return self.folder.walk()

    def sizes(self) -> dict[str, int]:
        return self.folder.sizes()

    def close(self) -> None: ...

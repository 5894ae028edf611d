"""Container: where the keys of a model live, an archive or a tree; and how to open or create the right one."""

import contextlib
import os
from collections.abc import Iterator
from typing import Literal, Protocol

from mzstore import garbage
from mzstore.archive import TAIL_NBYTES, ArchiveReader, ArchiveWriter
from mzstore.documents import DOCUMENT, MAX_DOCUMENT_NBYTES, ModelDocument, load, parse
from mzstore.errors import CorruptError, FormatError
from mzstore.extents import Extent, Request
from mzstore.stats import Stats
from mzstore.storage import (
    Folder,
    FolderSink,
    Location,
    OnBytes,
    Operation,
    Options,
    Retry,
    Writable,
    create,
    create_folder,
    open_location,
)
from mzstore.tree import TreeReader, TreeWriter

Kind = Literal["archive", "tree"]


class Objects(Protocol):
    """What a container holds, by key."""

    url: str

    def start(self) -> Operation:
        """A new operation of many requests."""

    def nbytes(self, key: str, operation: Operation | None = None) -> int | None: ...

    def read_chunk(self, key: str, slot: str) -> memoryview | None: ...

    def read_document(self, key: str, limit: int, operation: Operation | None = None) -> bytes | None: ...

    def read_blocks(self, key: str, block_nbytes: int, operation: Operation) -> Iterator[memoryview]: ...

    def keys(self) -> Iterator[str]: ...

    def sizes(self) -> dict[str, int]:
        """Stored size of every key, without reading any."""

    def close(self) -> None: ...


class Reader(Objects, Protocol):
    """An open container, whose chunks can also be read by plan."""

    local: bool  # reading costs no request; then nothing is planned or fetched ahead
    stats: Stats

    def extent(self, key: str, limit: int) -> Extent | None:
        """Where the payload of ``key`` lies, which has at most ``limit`` bytes; None if there is none. Without I/O."""

    def fetch(self, request: Request, operation: Operation, on_bytes: OnBytes | None = None) -> memoryview:
        """What ``request`` asks for, of remote storage; ``on_bytes`` may be told of what has come so far."""

    def check_unchanged(self, operation: Operation) -> None:
        """Raises StorageError if something else lies there now, where the requests themselves cannot tell."""


class Writer(Protocol):
    @property
    def nbytes(self) -> int: ...

    def write_chunk(self, key: str, payload: bytes, *, aligned: bool) -> None: ...

    def write_document(self, key: str, data: bytes) -> None: ...

    def write_file(self, key: str, nbytes: int, crc32: int, blocks: Iterator[bytes | memoryview]) -> None: ...

    def finish(self) -> None: ...


def open_reader(
    location: Location, options: Options = None, operation: Operation | None = None, stats: Stats | None = None
) -> Reader:
    """The container at ``location``. Raises FormatError if there is none, StorageError if it cannot be read."""
    stats, operation = stats or Stats(), operation or Retry().start()
    found = open_location(location, options, operation=operation, stats=stats, ahead=TAIL_NBYTES)
    return TreeReader(found, stats, DOCUMENT) if isinstance(found, Folder) else ArchiveReader(found, stats, operation)


def read_model(reader: Objects, operation: Operation | None = None) -> ModelDocument:
    """The root document, checked."""
    data = reader.read_document(DOCUMENT, MAX_DOCUMENT_NBYTES, operation)
    where = f"{reader.url}, {DOCUMENT!r}"
    if data is None:
        raise FormatError(f"not a model of mzstore: it has no {DOCUMENT}", where=reader.url, clause="root-1")
    with garbage.ignored():
        document = parse(load(data, where=where), where=where)
    if isinstance(reader, ArchiveReader):
        _check_chunk_counts(document, len(reader.entries), where=where)
    return document


def _check_chunk_counts(document: ModelDocument, n_objects: int, *, where: str) -> None:
    """Refuse numbers of chunks that somebody made up, before anything walks them."""
    counts: dict[int, int] = {}  # by part, which tensors of one layout share
    for entry in document.tensors.values():
        count = counts.get(id(entry.part))
        if count is None:
            count = counts[id(entry.part)] = entry.n_chunks
        if count > n_objects:
            raise CorruptError(
                f"tensor {entry.spec.name!r} has {count} chunks, the archive holds only {n_objects} objects",
                where=where,
                clause="payload-4",
            )


def kind_for(location: str | os.PathLike[str] | Writable) -> Kind:
    """What to write at ``location``: a tree if its name ends in ``.zarr`` or in a slash, else an archive."""
    if not isinstance(location, (str, os.PathLike)):
        return "archive"
    name = os.fspath(location)
    return "tree" if name.endswith(("/", ".zarr")) else "archive"


@contextlib.contextmanager
def create_writer(
    location: str | os.PathLike[str] | Writable,
    kind: Kind,
    options: Options = None,
    expected: int = 0,
    retry: Retry | None = None,
    folder: FolderSink | None = None,
) -> Iterator[Writer]:
    """A writer whose work appears at ``location`` when the block ends, and not at all if it raises.

    ``expected``: about how many bytes will come; ``folder``: where a tree is written, if that is open already.
    """
    if kind == "tree":
        if not isinstance(location, (str, os.PathLike)):
            raise TypeError("a tree is written to a path or a URL, not to a file object")
        with folder or create_folder(location, options, DOCUMENT, retry) as sink:
            tree = TreeWriter(sink)
            yield tree
            tree.finish()
    else:
        with create(location, options, expected, retry) as file:
            archive = ArchiveWriter(file)
            yield archive
            archive.finish()

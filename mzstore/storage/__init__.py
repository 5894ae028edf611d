"""Storage: bytes at a URL, on a local disk or over fsspec. Knows nothing of what the bytes mean.

Opening for reading gives a ``Blob`` (one object) or a ``Folder`` (objects under a prefix); writing goes through a
``Sink`` or a ``FolderSink``, which show nothing under the target's name until they are committed.
"""

import os
from pathlib import Path

from mzstore.errors import StorageError
from mzstore.stats import Stats
from mzstore.storage.base import (
    BLOCK_NBYTES,
    Blob,
    Digested,
    Folder,
    FolderSink,
    Location,
    Options,
    Sink,
    Writable,
)
from mzstore.storage.local import Buffer, FileObjectSink, LocalFile, LocalFolder, LocalFolderSink, LocalSink
from mzstore.storage.objects import Found, Objects, open_objects
from mzstore.storage.remote import RemoteFile, RemoteFolder
from mzstore.storage.retry import OnBytes, Operation, Retry, status_of, without_secrets
from mzstore.storage.upload import RemoteFolderSink, RemoteSink, Unfinished

__all__ = [
    "BLOCK_NBYTES", "Blob", "Buffer", "Digested", "FileObjectSink", "Folder", "FolderSink", "Found", "LocalFolder", "Location", "Objects", "OnBytes", "Operation", "Options", "Retry", "Sink", "Unfinished", "Writable",
    "create", "create_folder", "is_local", "local_path", "open_location", "open_objects", "status_of", "without_secrets",
]  # fmt: skip


FOLDER_SUFFIX = ".zarr"  # no object is looked for at such a URL
LEAST_AHEAD = 64 << 10


def is_local(location: str | os.PathLike[str]) -> bool:
    text = os.fspath(location)
    return "://" not in text or text.startswith("file://")


def local_path(location: str | os.PathLike[str]) -> Path:
    return Path(os.fspath(location).removeprefix("file://"))


def open_location(
    location: Location,
    options: Options = None,
    *,
    retry: Retry | None = None,
    operation: Operation | None = None,
    stats: Stats | None = None,
    ahead: int = 0,
) -> Blob | Folder:
    """What lies at ``location``: a Blob, or a Folder if it is a directory (or a URL that ends in a slash).

    Of a remote object, the last ``ahead`` bytes are read at once. A URL at which there is no object is that of a Folder,
    but if it has a query, which may be a signature that is good for one object. ``operation``: of which opening is a part.
    """
    if isinstance(location, (bytes, bytearray, memoryview)):
        return Buffer(location)
    if is_local(location):
        path = local_path(location)
        return LocalFolder(path) if path.is_dir() else LocalFile(path)
    url, stats, operation = os.fspath(location), stats or Stats(), operation or (retry or Retry()).start()
    if not url.endswith(("/", FOLDER_SUFFIX)):
        try:
            return RemoteFile(url, options, stats, max(ahead, LEAST_AHEAD), operation)
        except StorageError as error:
            if "?" in url or not isinstance(error.__cause__, (FileNotFoundError, IsADirectoryError)):
                raise
    return RemoteFolder(url, options, stats, operation)


def create(
    location: "str | os.PathLike[str] | Writable",
    options: Options = None,
    expected: int = 0,
    retry: Retry | None = None,
) -> Sink:
    """A Sink for ``location``: a path, a URL, or a binary file object (which the caller keeps).

    ``expected``: about how many bytes will come; a remote object is then uploaded in parts of one size.
    """
    if not isinstance(location, (str, os.PathLike)):
        return FileObjectSink(location)
    if is_local(location):
        return LocalSink(local_path(location))
    return RemoteSink(os.fspath(location), options, expected, retry)


def create_folder(
    location: str | os.PathLike[str],
    options: Options,
    marker: str,
    retry: Retry | None = None,
    unfinished: Path | None = None,
) -> FolderSink:
    """A FolderSink for ``location``. Where folders cannot be replaced whole, none is written over one that has ``marker``.

    unfinished  where a local folder is until it is whole, and stays if it does not become so; None: nothing stays
    """
    if is_local(location):
        return LocalFolderSink(local_path(location), unfinished)
    return RemoteFolderSink(os.fspath(location), options, marker, retry)

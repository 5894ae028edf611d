"""Storage: bytes at a URL, on a local disk or over fsspec. Knows nothing of what the bytes mean.

Opening for reading gives a ``Blob`` (one object) or a ``Folder`` (objects under a prefix); writing goes through a
``Sink`` or a ``FolderSink``, which show nothing under the target's name until they are committed.
"""

import contextlib
import errno
import io
import os
import secrets
import shutil
import stat
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from mzstore.errors import StorageError
from mzstore.workspace import buffer

Location = str | os.PathLike[str] | bytes | bytearray | memoryview
Options = Mapping[str, Any] | None
WRITE_BUFFER = 1 << 20
BLOCK_NBYTES = 1 << 20  # by which files are copied and digested


class Blob(Protocol):
    """One object that is open for reading, from any number of threads and from forked processes."""

    url: str
    nbytes: int

    def read(self, start: int, stop: int, slot: str = "") -> memoryview:
        """Bytes ``[start, stop)``, valid until this thread's next read with the same ``slot``."""

    def close(self) -> None: ...


class Folder(ABC):
    """Objects under a prefix."""

    url: str

    @abstractmethod
    def read(self, key: str, limit: int, slot: str = "") -> memoryview | None:
        """The whole object, valid until this thread's next read with the same ``slot``; None if there is none.

        Of a local one that is longer than ``limit``, one byte more than that.
        """

    @abstractmethod
    def open(self, key: str) -> Blob | None:
        """The object, to be read in parts; None if there is none."""

    @abstractmethod
    def walk(self) -> Iterator[str]:
        """All objects below the prefix, in order; no read of a model asks for this."""

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """Size of each object below the prefix, in order; nothing is read but the listing."""


@contextlib.contextmanager
def storage_errors(url: str, doing: str) -> Iterator[None]:
    """Turn what the system or fsspec raises into a StorageError that names ``url``."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot {doing} {url!r}: {error.strerror or error or type(error).__name__}") from error


def is_local(location: str | os.PathLike[str]) -> bool:
    text = os.fspath(location)
    return "://" not in text or text.startswith("file://")


def local_path(location: str | os.PathLike[str]) -> Path:
    return Path(os.fspath(location).removeprefix("file://"))


def open_location(location: Location, options: Options = None) -> Blob | Folder:
    """What lies at ``location``: a Blob, or a Folder if it is a directory (or a URL that ends in a slash)."""
    if isinstance(location, (bytes, bytearray, memoryview)):
        return Buffer(location)
    if is_local(location):
        path = local_path(location)
        return LocalFolder(path) if path.is_dir() else LocalFile(path)
    url = os.fspath(location)
    with storage_errors(url, "open"):
        fs, path_in_fs = _filesystem(url, options)
        if url.endswith("/"):
            return RemoteFolder(url, fs, path_in_fs)
        try:
            nbytes = fs.info(path_in_fs)["size"]
        except (FileNotFoundError, IsADirectoryError):
            nbytes = None
        if nbytes is None or fs.info(path_in_fs)["type"] == "directory":
            return RemoteFolder(url, fs, path_in_fs)
        return RemoteFile(url, fs, path_in_fs, nbytes)


def _filesystem(url: str, options: Options) -> tuple[Any, str]:
    import fsspec.core  # 0.1 s, and only URLs need it

    return fsspec.core.url_to_fs(url, **(options or {}))  # type: ignore[no-any-return]


class Buffer:
    """A Blob in memory; reads are views of it."""

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self._data = memoryview(data).cast("B")
        self.url, self.nbytes = "<memory>", len(self._data)

    def read(self, start: int, stop: int, slot: str = "") -> memoryview:
        return self._data[start:stop]

    def close(self) -> None: ...


class LocalFile:
    """A file, read by position: no shared offset that threads or forked processes could move under each other."""

    def __init__(self, path: Path) -> None:
        self.url = str(path)
        with storage_errors(self.url, "open"):
            # Not blocking, because the first to open a FIFO waits for a writer.
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            about = os.fstat(self._fd)
        self.nbytes = about.st_size
        if not stat.S_ISREG(about.st_mode):
            self.close()
            raise StorageError(f"cannot open {self.url!r}: it is not a regular file")

    def read(self, start: int, stop: int, slot: str = "") -> memoryview:
        if self._fd < 0:
            raise ValueError(f"{self.url!r} is closed")
        out = buffer(f"file {slot}", stop - start).data
        done = 0
        with storage_errors(self.url, "read"):
            while done < len(out):
                count = os.preadv(self._fd, [out[done:]], start + done)
                if not count:
                    raise StorageError(
                        f"{self.url!r} ends before byte {start + done}; it had {self.nbytes} bytes when it was opened"
                    )
                done += count
        return out

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            self.close()


class RemoteFile:
    """An object of an fsspec filesystem."""

    def __init__(self, url: str, fs: Any, path: str, nbytes: int) -> None:
        self.url, self.nbytes, self._fs, self._path = url, nbytes, fs, path

    def read(self, start: int, stop: int, slot: str = "") -> memoryview:
        if start == stop:
            return memoryview(b"")
        with storage_errors(self.url, "read"):
            data = self._fs.cat_file(self._path, start=start, end=stop)
        if len(data) != stop - start:
            raise StorageError(f"{self.url!r} gave {len(data)} bytes for the range {start} to {stop}")
        return memoryview(data)

    def close(self) -> None: ...


class LocalFolder(Folder):
    def __init__(self, path: Path) -> None:
        self.url, self._path = str(path), path

    def read(self, key: str, limit: int, slot: str = "") -> memoryview | None:
        file = self.open(key)
        if file is None:
            return None
        with contextlib.closing(file):
            return file.read(0, min(file.nbytes, limit + 1), slot)

    def open(self, key: str) -> "LocalFile | None":
        try:
            return LocalFile(self._path / key)
        except StorageError as error:
            if isinstance(error.__cause__, (FileNotFoundError, NotADirectoryError)):
                return None
            raise

    def walk(self) -> Iterator[str]:
        with storage_errors(self.url, "list"):
            for path in sorted(_files(self._path, ())):
                yield path.relative_to(self._path).as_posix()

    def sizes(self) -> dict[str, int]:
        with storage_errors(self.url, "list"):
            return {key: (self._path / key).lstat().st_size for key in self.walk()}


def _files(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """All below ``folder`` that is no directory; links are followed, but not into a folder that they lie in."""
    real = folder.resolve()
    if real in above:
        raise StorageError(f"cannot list {str(folder)!r}: the link leads to a folder that it lies in")
    for path in folder.iterdir():
        if path.is_dir():
            yield from _files(path, (*above, real))
        else:
            yield path


class RemoteFolder(Folder):
    def __init__(self, url: str, fs: Any, path: str) -> None:
        self.url, self._fs, self._path = url, fs, path.rstrip("/")

    def read(self, key: str, limit: int, slot: str = "") -> memoryview | None:
        with storage_errors(f"{self.url}/{key}", "read"):
            try:
                return memoryview(self._fs.cat_file(f"{self._path}/{key}"))
            except FileNotFoundError:
                return None

    def open(self, key: str) -> "RemoteFile | None":
        with storage_errors(f"{self.url}/{key}", "read"):
            try:
                about = self._fs.info(f"{self._path}/{key}")
            except FileNotFoundError:
                return None
        if about["type"] != "file":
            return None
        return RemoteFile(f"{self.url}/{key}", self._fs, f"{self._path}/{key}", about["size"])

    def walk(self) -> Iterator[str]:
        with storage_errors(self.url, "list"):
            for path in sorted(self._fs.find(self._path)):
                yield path.removeprefix(self._path).lstrip("/")

    def sizes(self) -> dict[str, int]:
        with storage_errors(self.url, "list"):
            found = sorted(self._fs.find(self._path, detail=True).items())
            return {path.removeprefix(self._path).lstrip("/"): about["size"] for path, about in found}


class Sink(Protocol):
    """An object that is being written, front to back. Leaving the ``with`` block commits it, an exception aborts it."""

    def write(self, data: bytes | memoryview) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def create(location: "str | os.PathLike[str] | Writable", options: Options = None) -> Sink:
    """A Sink for ``location``: a path, a URL, or a binary file object (which the caller keeps)."""
    if not isinstance(location, (str, os.PathLike)):
        return FileObjectSink(location)
    return LocalSink(local_path(location)) if is_local(location) else RemoteSink(os.fspath(location), options)


class Writable(Protocol):
    def write(self, data: bytes | memoryview, /) -> int: ...


class FileObjectSink:
    def __init__(self, file: Writable) -> None:
        self._file = file

    def write(self, data: bytes | memoryview) -> None:
        rest = memoryview(data)
        while rest:  # an unbuffered file takes less than it is given
            count = self._file.write(rest)
            if count == 0:
                raise StorageError("the file object takes no more bytes")
            rest = rest[len(rest) if count is None else count :]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class LocalSink:
    """A file written beside its target; synced and renamed over it at the end.

    Whatever happens before, the target stays as it was: an exception removes the new file, and a killed process
    leaves one whose name ends in ``.tmp``.
    """

    def __init__(self, path: Path) -> None:
        self.url = str(path)
        self._target = Path(os.path.realpath(path))
        self._temporary = self._target.with_name(f".{self._target.name[:40]}.{secrets.token_hex(4)}.tmp")
        with storage_errors(self.url, "write"):
            if self._target.is_dir():
                raise IsADirectoryError(21, "it is a directory")
            if self._target.exists() and not self._target.is_file():  # the new file would replace a FIFO or a device
                raise FileExistsError(17, "it is not a regular file")
            self._file = open(self._temporary, "xb", buffering=WRITE_BUFFER)  # noqa: SIM115  closed on exit
            # Who may read the old file may read the new one, and nobody else.
            with contextlib.suppress(FileNotFoundError):
                os.fchmod(self._file.fileno(), stat.S_IMODE(self._target.stat().st_mode))

    def write(self, data: bytes | memoryview) -> None:
        with storage_errors(self.url, "write"):
            self._file.write(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind:
            self._abort()
            return
        try:
            with storage_errors(self.url, "write"):
                self._file.flush()
                os.fsync(self._file.fileno())
                self._file.close()
                os.replace(self._temporary, self._target)
        except BaseException:
            self._abort()
            raise
        with storage_errors(self.url, "write"):
            sync_directory(self._target.parent)

    def _abort(self) -> None:
        with contextlib.suppress(OSError):  # closing flushes, which fails again on a full disk
            self._file.close()
        self._temporary.unlink(missing_ok=True)


class RemoteSink:
    """An object of an fsspec filesystem: collected in a temporary file and put in one piece at the end."""

    def __init__(self, url: str, options: Options) -> None:
        self.url = url
        with storage_errors(url, "write"):
            self._fs, self._path = _filesystem(url, options)
            self._file = tempfile.NamedTemporaryFile(prefix="mzstore-", buffering=WRITE_BUFFER)  # noqa: SIM115

    def write(self, data: bytes | memoryview) -> None:
        with storage_errors(self.url, "write"):
            self._file.write(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file, storage_errors(self.url, "write"):
            if not kind:
                self._file.flush()
                self._fs.put_file(self._file.name, self._path)


class FolderSink(Protocol):
    """A folder that is being written; committed and aborted like a Sink."""

    def write(self, key: str, data: bytes | memoryview) -> None: ...

    def open(self, key: str) -> AbstractContextManager[Writable]:
        """A file to write ``key`` piece by piece."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def create_folder(location: str | os.PathLike[str], options: Options, marker: str) -> FolderSink:
    """A FolderSink for ``location``. Where folders cannot be replaced whole, none is written over one that has ``marker``."""
    if is_local(location):
        return LocalFolderSink(local_path(location))
    return RemoteFolderSink(os.fspath(location), options, marker)


class _NewFile:
    """A file of a LocalFolderSink; its own errors are StorageErrors, those of the code that fills it are not."""

    def __init__(self, path: Path, url: str) -> None:
        self._url = url
        self._file = open(path, "xb", buffering=WRITE_BUFFER)  # noqa: SIM115  closed on exit

    def write(self, data: bytes | memoryview) -> int:
        with storage_errors(self._url, "write"):
            return self._file.write(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind:
            with contextlib.suppress(OSError):  # closing flushes, which fails again on a full disk
                self._file.close()
            return
        with storage_errors(self._url, "write"), self._file:
            self._file.flush()
            os.fsync(self._file.fileno())


class LocalFolderSink:
    """A directory written beside its target and renamed at the end; the target must not exist, or be empty."""

    def __init__(self, path: Path) -> None:
        self.url = str(path)
        self._target = Path(os.path.realpath(path))
        with storage_errors(self.url, "write"):
            if self._target.exists() and (not self._target.is_dir() or any(self._target.iterdir())):
                raise FileExistsError(17, "it exists; remove it first, or choose another name")
            self._temporary = self._target.with_name(f".{self._target.name[:40]}.{secrets.token_hex(4)}.tmp")
            self._temporary.mkdir()
        self._folders = {self._temporary}

    def write(self, key: str, data: bytes | memoryview) -> None:
        with self.open(key) as file:
            file.write(data)

    @contextlib.contextmanager
    def open(self, key: str) -> "Iterator[_NewFile]":
        path = self._temporary / key
        with storage_errors(f"{self.url}/{key}", "write"):
            if path.parent not in self._folders:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._folders |= {p for p in path.parents if p.is_relative_to(self._temporary)}
            file = _NewFile(path, f"{self.url}/{key}")
        with file:
            yield file

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if not kind:
                with storage_errors(self.url, "write"):
                    for folder in self._folders:
                        sync_directory(folder)
                    os.replace(self._temporary, self._target)
                    sync_directory(self._target.parent)
        finally:
            shutil.rmtree(self._temporary, ignore_errors=True)


class RemoteFolderSink:
    """Objects under a prefix, each put whole. The caller writes last what makes the rest count: after a failure there
    are objects below the prefix, but no model.
    """

    def __init__(self, url: str, options: Options, marker: str) -> None:
        self.url = url.rstrip("/")
        with storage_errors(url, "write"):
            self._fs, path = _filesystem(url, options)
            self._path = path.rstrip("/")
            if self._fs.exists(f"{self._path}/{marker}"):  # new chunks would be read by the old documents
                raise FileExistsError(17, "it holds a model; remove it first, or choose another name")

    def write(self, key: str, data: bytes | memoryview) -> None:
        with storage_errors(f"{self.url}/{key}", "write"):
            self._fs.pipe_file(f"{self._path}/{key}", bytes(data))

    @contextlib.contextmanager
    def open(self, key: str) -> Iterator[Writable]:
        with io.BytesIO() as file:
            yield file
            self.write(key, file.getvalue())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def sync_directory(path: Path) -> None:
    """Make renames in ``path`` durable, where the file system can do that for a directory."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)

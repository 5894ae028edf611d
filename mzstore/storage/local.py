"""Local storage: files, directories and memory. What is written shows under its name only when it is whole and durable."""

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from mzstore.errors import StorageError
from mzstore.storage.base import Folder, Transaction, Writable, storage_errors
from mzstore.storage.retry import OnBytes, Operation, Retry
from mzstore.workspace import buffer

WRITE_BUFFER = 1 << 20


class Local:
    """What is asked only of remote storage."""

    local = True

    def start(self) -> Operation:
        return Retry().start()

    def check_unchanged(self, operation: Operation) -> None: ...


class Buffer(Local):
    """A Blob in memory; reads are views of it."""

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self._data = memoryview(data).cast("B")
        self.url, self.nbytes, self.version = "<memory>", len(self._data), ""

    def read(self, start: int, stop: int, slot: str = "", operation: Operation | None = None) -> memoryview:
        return self._data[start:stop]

    def fetch(self, start: int, stop: int, operation: Operation, on_bytes: OnBytes | None = None) -> memoryview:
        return self._data[start:stop]

    def close(self) -> None: ...


class LocalFile(Local):
    """A file, read by position: no shared offset that threads or forked processes could move under each other."""

    def __init__(self, path: Path) -> None:
        self.url = str(path)
        with storage_errors(self.url, "open"):
            # Not blocking, because the first to open a FIFO waits for a writer.
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            about = os.fstat(self._fd)
        self.nbytes, self.version = about.st_size, str(about.st_mtime_ns)
        if not stat.S_ISREG(about.st_mode):
            self.close()
            raise StorageError(f"cannot open {self.url!r}: it is not a regular file")

    def read(self, start: int, stop: int, slot: str = "", operation: Operation | None = None) -> memoryview:
        out = buffer(f"file {slot}", stop - start).data
        self._fill(out, start)
        return out

    def fetch(self, start: int, stop: int, operation: Operation, on_bytes: OnBytes | None = None) -> memoryview:
        out = np.empty(stop - start, np.uint8).data
        self._fill(out, start)
        return out

    def _fill(self, out: memoryview, start: int) -> None:
        if self._fd < 0:
            raise ValueError(f"{self.url!r} is closed")
        done = 0
        with storage_errors(self.url, "read"):
            while done < len(out):
                count = os.preadv(self._fd, [out[done:]], start + done)
                if not count:
                    raise StorageError(
                        f"{self.url!r} ends before byte {start + done}; it had {self.nbytes} bytes when it was opened"
                    )
                done += count

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            self.close()


class LocalFolder(Local, Folder):
    def __init__(self, path: Path) -> None:
        self.url, self._path = str(path), path

    def read(self, key: str, limit: int, slot: str = "") -> memoryview | None:
        file = self.open(key)
        if file is None:
            return None
        with contextlib.closing(file):
            return file.read(0, min(file.nbytes, limit + 1), slot)

    def fetch(self, key: str, limit: int, operation: Operation, *, pin: bool = False) -> memoryview | None:
        data = self.read(key, limit)
        return None if data is None else memoryview(bytes(data))

    def open(self, key: str, operation: Operation | None = None) -> "LocalFile | None":
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


class LocalSink(Transaction):
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

    def _commit(self) -> None:
        with storage_errors(self.url, "write"):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self._temporary, self._target)
            sync_directory(self._target.parent)

    def _abort(self, error: BaseException) -> None:
        with contextlib.suppress(OSError):  # closing flushes, which fails again on a full disk
            self._file.close()
        self._temporary.unlink(missing_ok=True)


class _NewFile(Transaction):
    """A file of a LocalFolderSink; its own errors are StorageErrors, those of the code that fills it are not."""

    def __init__(self, path: Path, url: str, mode: str) -> None:
        self._url = url
        self._file: Any = open(path, mode, buffering=WRITE_BUFFER)  # noqa: SIM115  closed on exit

    def write(self, data: bytes | memoryview) -> int:
        with storage_errors(self._url, "write"):
            written: int = self._file.write(data)
        return written

    def _commit(self) -> None:
        with storage_errors(self._url, "write"), self._file:
            self._file.flush()
            os.fsync(self._file.fileno())

    def _abort(self, error: BaseException) -> None:
        with contextlib.suppress(OSError):  # closing flushes, which fails again on a full disk
            self._file.close()


class LocalFolderSink(Transaction):
    """A directory written beside its target and renamed at the end; the target must not exist, or be empty.

    unfinished  the directory that is renamed. It may be there from an earlier attempt, and stays if this one fails
    """

    def __init__(self, path: Path, unfinished: Path | None = None) -> None:
        self.url, self._unfinished = str(path), unfinished
        self._target = Path(os.path.realpath(path))
        with storage_errors(self.url, "write"):
            if self._target.exists() and (not self._target.is_dir() or any(self._target.iterdir())):
                raise FileExistsError(17, "it exists; remove it first, or choose another name")
            self._temporary = unfinished or self._target.with_name(
                f".{self._target.name[:40]}.{secrets.token_hex(4)}.tmp"
            )
            self._temporary.mkdir(parents=unfinished is not None, exist_ok=unfinished is not None)
            self._folders = {Path(folder) for folder, _, _ in os.walk(self._temporary)}

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
            file = _NewFile(path, f"{self.url}/{key}", "wb" if self._unfinished else "xb")
        with file:
            yield file

    def settle(self) -> None:
        with storage_errors(self.url, "write"):
            for folder in self._folders:
                sync_directory(folder)

    def _commit(self) -> None:
        self.settle()
        with storage_errors(self.url, "write"):
            os.replace(self._temporary, self._target)
            sync_directory(self._target.parent)

    def _abort(self, error: BaseException) -> None:
        if self._unfinished is None:
            shutil.rmtree(self._temporary, ignore_errors=True)


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

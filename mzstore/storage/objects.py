"""Objects under a root, by key: small ones read, put, created if there is none, listed, removed; and sinks for large ones.

Creating decides between writers. A conditional request may be answered late, or not at all, or conflict with its own first
attempt, so what counts is what lies there afterwards: callers put something unique into what they create.
"""

import contextlib
import errno
import os
import secrets
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from mzstore.errors import StorageError
from mzstore.stats import Stats
from mzstore.storage.backends import in_thread
from mzstore.storage.base import Options, Sink, storage_errors
from mzstore.storage.local import LocalFolder, LocalSink, sync_directory
from mzstore.storage.remote import RemoteFolder
from mzstore.storage.retry import MAX_PAUSE, Operation, Retry, TooLarge, is_transient, status_of
from mzstore.storage.upload import RemoteSink, Store, Unfinished, connect

T = TypeVar("T")
NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}  # of a file system without links
CONFLICTS = {"AlreadyExistsError", "PreconditionError", "ResourceExistsError"}  # of obstore and azure


@dataclass(frozen=True, slots=True)
class Found:
    """An object in a listing. ``modified``: in seconds, by the clock of the storage; None where it does not tell."""

    nbytes: int
    modified: float | None


class Objects(ABC):
    """``url`` is as messages show it."""

    url: str
    _exclusive: bool | None = None  # whether the storage creates only what is not there; None: not asked yet

    @abstractmethod
    def get(self, key: str, limit: int) -> bytes | None:
        """The whole object; None if there is none. Raises StorageError beyond ``limit`` bytes."""

    @abstractmethod
    def put(self, key: str, data: bytes) -> None:
        """Whatever was there before."""

    @abstractmethod
    def remove(self, key: str) -> None:
        """It may be gone already."""

    @abstractmethod
    def listing(self, prefix: str) -> dict[str, Found]:
        """All objects whose key begins with ``prefix`` and a slash, by key. Storage that fails is an error, never empty."""

    def unfinished(self, prefix: str) -> list[Unfinished]:
        """Uploads of keys below ``prefix`` that were begun and not ended, with these keys for their paths. Raises NotImplementedError
        where there may be some and the client cannot ask."""
        return []

    def abandon(self, upload: Unfinished) -> None:
        """End an upload without an object; it may be gone already."""
        raise NotImplementedError

    @abstractmethod
    def nbytes(self, key: str) -> int | None:
        """Its size; None if there is none."""

    @abstractmethod
    def sink(self, key: str, expected: int = 0) -> Sink:
        """For a large object; ``expected``: about how many bytes will come."""

    @abstractmethod
    def _create(self, key: str, data: bytes) -> None:
        """One attempt. Raises what the storage does, FileExistsError or another, if there is something, or it cannot know."""

    @abstractmethod
    def _again(self, operation: Operation, number: int) -> bool:
        """Whether another attempt is to follow ``number``; waits before."""

    @abstractmethod
    def start(self) -> Operation:
        """A new operation of many requests."""

    def create(self, key: str, data: bytes) -> bool:
        """Put ``data``, which nobody else puts, if there is no such object. False if there is one with other bytes.

        Whoever puts the same twice gets True twice: that is how a lost answer is settled. Raises StorageError if the
        storage fails for good; then the object may be there all the same.
        """
        if not self.exclusive():
            return self._create_alone(key, data)
        operation = self.start()
        number = 1
        while True:
            try:
                self._create(key, data)
                return True
            except Exception as error:
                problem = error
            found = self._holds(key, data)
            if found is not None:
                return found
            if not _worth_another(problem) or not self._again(operation, number):
                if isinstance(problem, StorageError):
                    raise problem
                raise StorageError(f"cannot create {f'{self.url}/{key}'!r}: {problem}") from problem
            number += 1

    def _create_alone(self, key: str, data: bytes) -> bool:
        """Where the storage cannot decide between writers."""
        found = self._holds(key, data)
        if found is None:
            self.put(key, data)
            found = self._holds(key, data)
        return found is True

    def _holds(self, key: str, data: bytes) -> bool | None:
        """Whether the object has these bytes; None if there is none."""
        try:
            found = self.get(key, len(data))
        except StorageError as error:
            if isinstance(error.__cause__, TooLarge):
                return False
            raise
        return None if found is None else found == data

    def exclusive(self) -> bool:
        """Whether the storage creates only what is not there: tried once, with an object that is removed again.

        Warns if it does not, because then two writers of one object would both be told that they were first.
        """
        if self._exclusive is None:
            key = f".probe-{secrets.token_hex(8)}"
            try:
                self._exclusive = self._probe(key)
            finally:
                with contextlib.suppress(StorageError):
                    self.remove(key)
            if not self._exclusive:
                warnings.warn(
                    f"the storage of {self.url!r} does not know 'create if there is none' (If-None-Match: *): two writers of one "
                    "checkpoint would not notice each other. It is used as if there were one writer; see that there is",
                    RuntimeWarning,
                    stacklevel=2,
                )
        return self._exclusive

    def _probe(self, key: str) -> bool:
        operation = self.start()
        first, second = b"first", b"second"
        number = 1
        while True:
            try:
                for data in (first, second):
                    self._create(key, data)
                return False
            except Exception as error:
                if isinstance(_cause(error), (NotImplementedError, TypeError)):
                    return False
                problem = error
            found = self.get(key, len(second))
            if found == first:
                return True
            if found == second:
                return False
            if not _worth_another(problem) or not self._again(operation, number):
                raise problem
            number += 1


def _cause(error: BaseException) -> BaseException:
    return error.__cause__ if isinstance(error, StorageError) and error.__cause__ else error


def _worth_another(error: BaseException) -> bool:
    """Whether to try to create again what is not there; a conflict may be one with a writer that failed."""
    cause = _cause(error)
    conflict = isinstance(cause, FileExistsError) or type(cause).__name__ in CONFLICTS or status_of(cause) in (409, 412)
    return conflict or is_transient(cause)


def open_objects(url: str | os.PathLike[str], options: Options = None, retry: Retry | None = None) -> Objects:
    """The objects under ``url``, a directory or a prefix, which need not be there."""
    text = os.fspath(url)
    if "://" not in text or text.startswith("file://"):
        return LocalObjects(Path(os.path.abspath(text.removeprefix("file://"))))
    return RemoteObjects(text.rstrip("/"), options, retry or Retry())


class LocalObjects(Objects):
    """Files under a directory. What is created is linked to its name when it is whole and durable."""

    def __init__(self, path: Path) -> None:
        self.url, self._path = str(path), path

    def get(self, key: str, limit: int) -> bytes | None:
        data = LocalFolder(self._path).read(key, limit)
        if data is not None and len(data) > limit:
            problem = TooLarge(f"more than {limit} bytes")
            raise StorageError(f"cannot read {str(self._path / key)!r}: {problem}") from problem
        return None if data is None else bytes(data)

    def put(self, key: str, data: bytes) -> None:
        with self.sink(key) as sink:
            sink.write(data)

    def remove(self, key: str) -> None:
        path = self._path / key
        with storage_errors(str(path), "remove"), contextlib.suppress(FileNotFoundError):
            path.unlink()
        if path.parent.parent != self._path and path.parent != self._path:  # those right below the root are used again
            with contextlib.suppress(OSError):  # it is not empty
                path.parent.rmdir()

    def listing(self, prefix: str) -> dict[str, Found]:
        found = {}
        folder = self._path / prefix
        with storage_errors(str(folder), "list"):
            for parent, _, names in os.walk(folder, onerror=_raise_but_missing):
                for name in names:
                    path = Path(parent) / name
                    with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                        about = path.lstat()
                        found[path.relative_to(self._path).as_posix()] = Found(about.st_size, about.st_mtime)
        return found

    def nbytes(self, key: str) -> int | None:
        try:
            with storage_errors(str(self._path / key), "look at"):
                return (self._path / key).stat().st_size
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise

    def sink(self, key: str, expected: int = 0) -> Sink:
        target = self._path / key
        _make_directory(target.parent)
        return LocalSink(target)

    def _create(self, key: str, data: bytes) -> None:
        target = self._path / key
        _make_directory(target.parent)
        temporary = target.with_name(f".{target.name[:40]}.{secrets.token_hex(4)}.tmp")
        try:
            with storage_errors(str(target), "write"):
                with open(temporary, "xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                try:
                    os.link(temporary, target)
                except OSError as error:
                    if error.errno in NO_LINKS:
                        raise NotImplementedError("the file system has no hard links") from error
                    raise
                sync_directory(target.parent)
        finally:
            temporary.unlink(missing_ok=True)

    def _again(self, operation: Operation, number: int) -> bool:
        return False

    def start(self) -> Operation:
        return Retry().start()


def _raise_but_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _make_directory(path: Path) -> None:
    """``path``, with those above it, for good."""
    with storage_errors(str(path), "write"):
        missing = []
        while not path.is_dir():
            missing.append(path)
            path = path.parent
        for folder in reversed(missing):
            folder.mkdir(exist_ok=True)
            sync_directory(folder.parent)


class RemoteObjects(Objects):
    """Objects under the prefix of any fsspec filesystem."""

    def __init__(self, url: str, options: Options, retry: Retry) -> None:
        self._address, self._options, self._retry = url, options, retry
        operation = retry.start()
        self._folder = RemoteFolder(url, options, Stats(), operation)
        self.url = self._folder.url
        self._store, self._path = self._connect(operation)

    def _connect(self, operation: Operation) -> tuple[Store, str]:
        try:
            return operation.wait_for_client(in_thread(lambda: connect(self._address, self._options, self._retry)))
        except Exception as error:  # whatever kind a filesystem chooses
            raise StorageError(f"cannot write {self.url!r}: {error}") from error

    def get(self, key: str, limit: int) -> bytes | None:
        data = self._folder.fetch(key, limit, self.start())
        return None if data is None else bytes(data)

    def put(self, key: str, data: bytes) -> None:
        self._errors("write", key, lambda: self._store.put(self._at(key), data, self.start()))

    def remove(self, key: str) -> None:
        self._run("remove", key, lambda: self._store.remove(self._at(key)))

    def listing(self, prefix: str) -> dict[str, Found]:
        root = len(self._at(""))
        listed = self._run("list", prefix, lambda: list(self._store.listing(self._at(prefix))))
        inside = self._at(prefix) + "/"
        return {each.path[root:]: Found(each.nbytes, each.modified) for each in listed if each.path.startswith(inside)}

    def unfinished(self, prefix: str) -> list[Unfinished]:
        root = len(self._at(""))
        found = self._errors("list", prefix, lambda: list(self._store.unfinished(self._at(prefix))))
        return [replace(each, path=each.path[root:]) for each in found]

    def abandon(self, upload: Unfinished) -> None:
        self._errors("remove", upload.path, lambda: self._store.abandon(replace(upload, path=self._at(upload.path))))

    def nbytes(self, key: str) -> int | None:
        try:
            return self._errors("look at", key, lambda: self._store.nbytes(self._at(key)))
        except StorageError as error:
            cause = error.__cause__
            if isinstance(cause, FileNotFoundError) or (cause is not None and status_of(cause) == 404):
                return None
            raise

    def sink(self, key: str, expected: int = 0) -> Sink:
        return RemoteSink.of(f"{self.url}/{key}", self._store, self._at(key), self.start(), expected)

    def start(self) -> Operation:
        return self._retry.start()

    def _create(self, key: str, data: bytes) -> None:
        self._store.create(self._at(key), data, replace(self._retry, attempts=1).start())

    def _again(self, operation: Operation, number: int) -> bool:
        if number >= self._retry.attempts:
            return False
        try:
            operation.sleep(min(MAX_PAUSE, self._retry.backoff * 2.0 ** min(number - 1, 100)))
        except TimeoutError:
            return False
        return True

    def _at(self, key: str) -> str:
        return f"{self._path.rstrip('/')}/{key}"

    def _run(self, doing: str, key: str, call: Callable[[], T]) -> T:
        return self.start().run(lambda attempt: in_thread(call), f"{doing} {f'{self.url}/{key}'!r}")

    def _errors(self, doing: str, key: str, call: Callable[[], T]) -> T:
        try:
            return call()
        except (StorageError, NotImplementedError):
            raise
        except Exception as error:
            raise StorageError(f"cannot {doing} {f'{self.url}/{key}'!r}: {error}") from error

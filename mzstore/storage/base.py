"""What all storage has in common: the protocols of objects and folders, and errors that name the place."""

import contextlib
import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Protocol, Self

from mzstore.errors import StorageError
from mzstore.storage.retry import OnBytes, Operation

Location = str | os.PathLike[str] | bytes | bytearray | memoryview
Options = Mapping[str, Any] | None
BLOCK_NBYTES = 1 << 20  # by which files are copied and digested


class Blob(Protocol):
    """One object that is open for reading, from any number of threads and from forked processes."""

    url: str
    nbytes: int
    local: bool  # reading costs no request

    @property
    def version(self) -> str:
        """Changes with the object, as far as the storage tells: a time or an ETag, to be compared for equality only."""

    def read(self, start: int, stop: int, slot: str = "", operation: Operation | None = None) -> memoryview:
        """Bytes ``[start, stop)``, valid until this thread's next read with the same ``slot``.

        ``operation``: of which it is a part; an operation of its own if there is none.
        """

    def start(self) -> Operation:
        """A new operation of many requests."""

    def fetch(self, start: int, stop: int, operation: Operation, on_bytes: OnBytes | None = None) -> memoryview:
        """Bytes ``[start, stop)``, in memory of their own; ``on_bytes`` may be told of what has come so far."""

    def check_unchanged(self, operation: Operation) -> None:
        """Raises StorageError if another object has taken its place, where ``fetch`` cannot tell."""

    def close(self) -> None: ...


class Folder(ABC):
    """Objects under a prefix."""

    url: str
    local: bool

    @abstractmethod
    def read(self, key: str, limit: int, slot: str = "") -> memoryview | None:
        """The whole object, valid until this thread's next read with the same ``slot``; None if there is none.

        Of a local one that is longer than ``limit``, one byte more than that.
        """

    @abstractmethod
    def start(self) -> Operation:
        """A new operation of many requests."""

    @abstractmethod
    def fetch(self, key: str, limit: int, operation: Operation, *, pin: bool = False) -> memoryview | None:
        """As ``read``, in memory of its own. ``pin``: it is to be the same at ``check_unchanged``."""

    @abstractmethod
    def check_unchanged(self, operation: Operation) -> None:
        """Raises StorageError if an object in remote storage that was pinned is not the same any more."""

    @abstractmethod
    def open(self, key: str, operation: Operation | None = None) -> Blob | None:
        """The object, to be read in parts; None if there is none."""

    def has(self, key: str) -> bool:
        """Whether there is such an object; nothing of it is read."""
        file = self.open(key)
        if file:
            file.close()
        return file is not None

    @abstractmethod
    def walk(self) -> Iterator[str]:
        """All objects below the prefix, in order; no read of a model asks for this."""

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """Size of each object below the prefix, in order; nothing is read but the listing."""


class Sink(Protocol):
    """An object that is being written, front to back. Leaving the ``with`` block commits it, an exception aborts it."""

    def write(self, data: bytes | memoryview) -> object: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Writable(Protocol):
    def write(self, data: bytes | memoryview, /) -> int: ...


class FolderSink(Protocol):
    """A folder that is being written; committed and aborted like a Sink."""

    def write(self, key: str, data: bytes | memoryview) -> None: ...

    def open(self, key: str) -> AbstractContextManager[Writable]:
        """A file to write ``key`` piece by piece."""

    def settle(self) -> None:
        """Until all that was written so far is durable. Raises what has failed."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Transaction(ABC):
    """Something that is being written in a ``with`` block: committed at its end, aborted if it, or that, raises."""

    @abstractmethod
    def _commit(self) -> None:
        """Make it appear."""

    @abstractmethod
    def _abort(self, error: BaseException) -> None:
        """Leave nothing; also after a commit that failed at any point. ``error`` is the reason, and may get notes."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error:
            self._abort(error)
            return
        try:
            self._commit()
        except BaseException as problem:
            self._abort(problem)
            raise


@contextlib.contextmanager
def storage_errors(url: str, doing: str) -> Iterator[None]:
    """Turn what the system or fsspec raises into a StorageError that names ``url``."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot {doing} {url!r}: {error.strerror or error or type(error).__name__}") from error


class Digested:
    """A file object in front of a sink, which counts and digests."""

    def __init__(self, sink: Sink) -> None:
        self._sink, self._digest, self.nbytes = sink, hashlib.sha256(), 0

    def write(self, data: bytes | memoryview, /) -> int:
        self._sink.write(data)
        self._digest.update(data)
        self.nbytes += len(data)
        return len(data)

    def hexdigest(self) -> str:
        return self._digest.hexdigest()

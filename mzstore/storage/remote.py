"""Remote storage for reading: objects and prefixes of any fsspec filesystem."""

import contextlib
import os
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from mzstore.errors import StorageError
from mzstore.stats import Stats
from mzstore.storage.backends import Answer, Backend, Range, connect, filesystem, in_thread
from mzstore.storage.base import Folder, Options, storage_errors
from mzstore.storage.retry import Attempt, OnBytes, Operation, TooLarge, reason, without_secrets

T = TypeVar("T")
PART_NBYTES, PARTS_AT_A_TIME = 8 << 20, 8  # of one long read
SMALL_NBYTES = 64 << 10  # so much of an object in a folder is read to learn its size


class Remote:
    """A URL and how to reach it: asks with retries, counts, and connects again in a forked process.

    url   as messages show it
    """

    def __init__(self, url: str, options: Options, stats: Stats, operation: Operation) -> None:
        self.url, self._address = without_secrets(url), url
        self.options, self.retry, self.stats = options, operation.retry, stats
        self._backend: Backend | None = None
        self._pid = 0
        self._connect(operation)

    def _connect(self, operation: Operation) -> tuple[Backend, str]:
        if self._backend is None or self._pid != os.getpid():  # connections and event loops do not survive a fork
            with opening(self.url):
                self._backend, self._path = operation.wait_for_client(
                    in_thread(lambda: connect(self._address, self.options))
                )
            self._pid = os.getpid()
        return self._backend, self._path

    def get(
        self,
        key: str,
        range_: Range,
        version: str | None,
        limit: int | None,
        operation: Operation,
        on_bytes: OnBytes | None = None,
    ) -> Answer:
        """The bytes at ``range_`` of the object ``key`` below the URL, or of the URL itself if that is empty."""
        backend, path = self._connect(operation)
        path, url = self._at(path, key)

        def start(attempt: Attempt) -> Future[Answer]:
            self.stats.add(requests=1)
            return backend.get(path, range_, version, limit, attempt)

        answer = operation.run(start, f"read {url!r}, {range_}", on_bytes)
        self.stats.add(fetched_nbytes=len(answer.data))
        return answer

    def pins(self, operation: Operation) -> bool:
        """Whether ``get`` notices another version by itself."""
        return self._connect(operation)[0].pins

    def look(self, key: str, operation: Operation) -> Answer:
        """What is there now, without its bytes."""
        backend, path = self._connect(operation)
        path, url = self._at(path, key)

        return operation.run(lambda attempt: backend.look(path, attempt), f"look at {url!r} again")

    def _at(self, path: str, key: str) -> tuple[str, str]:
        return (f"{path.rstrip('/')}/{key}", f"{self.url}/{key}") if key else (path, self.url)


@contextlib.contextmanager
def opening(url: str) -> Iterator[None]:
    """Turn whatever a filesystem raises that is made for ``url`` into a StorageError."""
    try:
        yield
    except Exception as error:  # whatever kind a filesystem chooses
        raise StorageError(f"cannot open {url!r}: {reason(error)}") from error


def _or_none(read: Callable[[], T]) -> T | None:
    """What ``read`` gives; None if there is no such object."""
    try:
        return read()
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise


class RemoteFile:
    """An object. Opening it reads its last ``ahead`` bytes, which tells its size; it is one version all the time."""

    local = False

    def __init__(self, url: str, options: Options, stats: Stats, ahead: int, operation: Operation) -> None:
        self._operations: weakref.WeakSet[Operation] = weakref.WeakSet()
        self._remote = Remote(url, options, stats, operation)
        self.url = self._remote.url
        answer = self._remote.get("", Range(-ahead), None, None, operation)
        self.nbytes = len(answer.data) if answer.total is None else answer.total
        self._version = answer.version
        self._tail, self._tail_start = memoryview(answer.data), self.nbytes - len(answer.data)

    @property
    def version(self) -> str:
        return self._version or ""

    def read(self, start: int, stop: int, slot: str = "", operation: Operation | None = None) -> memoryview:
        operation = operation or self.start()
        if stop - start <= PART_NBYTES:
            return self.fetch(start, stop, operation)
        data = memoryview(bytearray(stop - start))

        def fetch(at: int) -> None:
            end = min(at + PART_NBYTES, stop)
            data[at - start : end - start] = self.fetch(at, end, operation)

        with ThreadPoolExecutor(PARTS_AT_A_TIME, "mzstore-fetch") as pool:
            try:
                for _ in pool.map(fetch, range(start, stop, PART_NBYTES)):
                    pass
            except BaseException:
                operation.stop()
                pool.shutdown(cancel_futures=True)
                raise
        return data

    def start(self) -> Operation:
        operation = self._remote.retry.start()
        self._operations.add(operation)
        return operation

    def held(self, start: int) -> bool:
        """Whether what begins at ``start`` came with the opening."""
        return start >= self._tail_start

    def fetch(self, start: int, stop: int, operation: Operation, on_bytes: OnBytes | None = None) -> memoryview:
        """Bytes ``[start, stop)``, in one request of ``operation``; ``on_bytes`` is told of what has come so far."""
        if start == stop:
            return memoryview(b"")
        if self.held(start):
            return self._tail[start - self._tail_start : stop - self._tail_start]
        answer = self._remote.get("", Range(start, stop), self._version, None, operation, on_bytes)
        if answer.total not in (None, self.nbytes):  # there may be no other sign of it
            raise StorageError(
                f"{self.url!r} has changed since it was opened ({answer.total} bytes, not {self.nbytes}, as the answer to "
                f"bytes {start}-{stop} says); open it again"
            )
        return memoryview(answer.data)

    def check_unchanged(self, operation: Operation) -> None:
        """Raises StorageError if another object has taken its place since it was opened."""
        if not self._remote.pins(operation) and self._remote.look("", operation).version != self._version:
            raise StorageError(f"{self.url!r} has changed since it was opened; open it again")

    def close(self) -> None:
        """Ends what other threads still wait for, so that nobody has to wait for them."""
        for operation in list(self._operations):
            operation.stop()


class RemoteFolder(Folder):
    local = False

    def __init__(self, url: str, options: Options, stats: Stats, operation: Operation) -> None:
        self._address = url.rstrip("/")
        self._remote = Remote(self._address, options, stats, operation)
        self.url = self._remote.url
        self._pinned: dict[str, tuple[int, str | None]] = {}

    def read(self, key: str, limit: int, slot: str = "") -> memoryview | None:
        return self.fetch(key, limit, self.start())

    def start(self) -> Operation:
        return self._remote.retry.start()

    def fetch(self, key: str, limit: int, operation: Operation, *, pin: bool = False) -> memoryview | None:
        """As Folder has it, in one request of ``operation``. Raises StorageError beyond ``limit``."""
        answer = _or_none(lambda: self._remote.get(key, Range(), None, limit, operation))
        if answer and pin:
            self._pinned[key] = len(answer.data), answer.version
        return memoryview(answer.data) if answer else None

    def check_unchanged(self, operation: Operation) -> None:
        for key, (nbytes, version) in self._pinned.items():
            now = _or_none(partial(self._remote.look, key, operation))
            if now is None or now.version != version or now.total not in (None, nbytes):
                raise StorageError(f"{f'{self.url}/{key}'!r} has changed since it was read; open {self.url!r} again")

    def has(self, key: str) -> bool:
        try:
            return self.fetch(key, 0, self.start()) is not None
        except StorageError as error:
            if isinstance(error.__cause__, TooLarge):
                return True
            raise

    def open(self, key: str, operation: Operation | None = None) -> "RemoteFile | None":
        remote, operation = self._remote, operation or self.start()
        address = f"{self._address}/{key}"
        return _or_none(lambda: RemoteFile(address, remote.options, remote.stats, SMALL_NBYTES, operation))

    def walk(self) -> Iterator[str]:
        yield from self.sizes()

    def sizes(self) -> dict[str, int]:
        with storage_errors(self.url, "list"):
            with opening(self.url):
                fs, path = self.start().wait_for_client(
                    in_thread(lambda: filesystem(self._address, self._remote.options))
                )
            found = sorted(fs.find(path, detail=True).items())
            return {name.removeprefix(path).lstrip("/"): about["size"] for name, about in found}

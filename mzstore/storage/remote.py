"""Remote storage for reading: objects and prefixes of any fsspec filesystem."""

import os
import weakref
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from mzstore.errors import StorageError
from mzstore.stats import Stats
from mzstore.storage.backends import Answer, Backend, Range, connect, filesystem
from mzstore.storage.base import Folder, Options, storage_errors
from mzstore.storage.retry import Attempt, OnBytes, Operation, Retry, TooLarge, reason

PART_NBYTES, PARTS_AT_A_TIME = 8 << 20, 8  # of one long read
SMALL_NBYTES = 64 << 10  # so much of an object in a folder is read to learn its size


class Remote:
    """A URL and how to reach it: asks with retries, counts, and connects again in a forked process."""

    def __init__(self, url: str, options: Options, retry: Retry, stats: Stats) -> None:
        self.url, self.options, self.retry, self.stats = url, options, retry, stats
        self._backend: Backend | None = None
        self._pid = 0
        self._connect()

    def _connect(self) -> tuple[Backend, str]:
        if self._backend is None or self._pid != os.getpid():  # connections and event loops do not survive a fork
            try:
                self._backend, self._path = connect(self.url, self.options)
            except Exception as error:  # whatever kind a filesystem chooses
                raise StorageError(f"cannot open {self.url!r}: {reason(error)}") from error
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
        backend, path = self._connect()
        path, url = (f"{path.rstrip('/')}/{key}", f"{self.url}/{key}") if key else (path, self.url)

        def start(attempt: Attempt) -> Future[Answer]:
            self.stats.add(requests=1)
            return backend.get(path, range_, version, limit, attempt)

        answer = operation.run(start, f"read {url!r}, {range_}", on_bytes)
        self.stats.add(fetched_nbytes=len(answer.data))
        return answer

    def changed(self, version: str | None, operation: Operation) -> bool:
        """Whether there is another version now, where the requests themselves cannot tell."""
        backend, path = self._connect()
        ask = backend.version(path)
        return ask is not None and operation.run(ask, f"look at {self.url!r} again") != version


class RemoteFile:
    """An object. Opening it reads its last ``ahead`` bytes, which tells its size; it is one version all the time."""

    local = False

    def __init__(self, url: str, options: Options, retry: Retry, stats: Stats, ahead: int) -> None:
        self.url = url
        self._operations: weakref.WeakSet[Operation] = weakref.WeakSet()
        self._remote = Remote(url, options, retry, stats)
        answer = self._remote.get("", Range(-ahead), None, None, retry.start())
        self.nbytes = len(answer.data) if answer.total is None else answer.total
        self._version = answer.version
        self._tail, self._tail_start = memoryview(answer.data), self.nbytes - len(answer.data)

    def read(self, start: int, stop: int, slot: str = "") -> memoryview:
        operation = self.start()
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
        if self._remote.changed(self._version, operation):
            raise StorageError(f"{self.url!r} has changed since it was opened; open it again")

    def close(self) -> None:
        """Ends what other threads still wait for, so that nobody has to wait for them."""
        for operation in list(self._operations):
            operation.stop()


class RemoteFolder(Folder):
    local = False

    def __init__(self, url: str, options: Options, retry: Retry, stats: Stats) -> None:
        self.url = url.rstrip("/")
        self._remote = Remote(self.url, options, retry, stats)

    def read(self, key: str, limit: int, slot: str = "") -> memoryview | None:
        return self.fetch(key, limit, self.start())

    def start(self) -> Operation:
        return self._remote.retry.start()

    def fetch(self, key: str, limit: int, operation: Operation) -> memoryview | None:
        """The whole object, in one request of ``operation``; None if there is none. Raises StorageError beyond ``limit``."""
        try:
            return memoryview(self._remote.get(key, Range(), None, limit, operation).data)
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise

    def has(self, key: str) -> bool:
        try:
            return self.fetch(key, 0, self.start()) is not None
        except StorageError as error:
            if isinstance(error.__cause__, TooLarge):
                return True
            raise

    def open(self, key: str) -> "RemoteFile | None":
        remote = self._remote
        try:
            return RemoteFile(f"{self.url}/{key}", remote.options, remote.retry, remote.stats, SMALL_NBYTES)
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise

    def walk(self) -> Iterator[str]:
        yield from self.sizes()

    def sizes(self) -> dict[str, int]:
        with storage_errors(self.url, "list"):
            fs, path = filesystem(self.url, self._remote.options)
            found = sorted(fs.find(path, detail=True).items())
            return {name.removeprefix(path).lstrip("/"): about["size"] for name, about in found}

"""Backends: one ranged request to an object, by whatever fsspec filesystem serves its URL.

fsspec's own ``cat_file`` hides what a reader has to know: the size of the object and which version of it answered. So
the kinds that people use most are asked directly (s3fs, obstore's adapter, HTTP); all others by ``info`` and ``cat_file``.
No backend retries here, and none lists.
"""

import os
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from mzstore.storage.base import Options
from mzstore.storage.retry import Attempt, Changed, TooLarge, Transient, reason, status_of

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")
PIECE_NBYTES = 1 << 20  # of a body, at most, between two signs of life
LEAST_PIECE_NBYTES, MOST_PIECES = 64 << 10, 32  # where the backend waits for a piece of some size; each costs CPU time
CONNECTIONS = 32
FOREVER = timedelta(days=1)
# What tells one version of an object from another, by the names that filesystems give it in ``info``.
VERSION_KEYS = ("ETag", "etag", "e_tag", "generation", "VersionId", "version", "version_id", "blob_id", "created", "mtime", "LastModified", "last_modified")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Range:
    """Which bytes: ``[start, stop)``; the last ``-start`` if ``start`` is negative; all if ``stop`` is None."""

    start: int = 0
    stop: int | None = None

    @property
    def header(self) -> str | None:
        """For the HTTP header Range."""
        if self.start < 0:
            return f"bytes={self.start}"
        return None if self.stop is None else f"bytes={self.start}-{self.stop - 1}"

    def __str__(self) -> str:
        if self.start < 0:
            return f"the last {-self.start} bytes"
        return "all bytes" if self.stop is None else f"bytes {self.start}-{self.stop}"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came for a range. ``total`` is the size of the object, ``version`` which one it is, where that is told."""

    data: bytes | bytearray | memoryview
    total: int | None
    version: str | None


class Backend(ABC):
    """Asks one filesystem for objects."""

    pins = True  # whether ``get`` notices another version by itself

    def __init__(self, fs: Any) -> None:
        self._fs = fs

    @abstractmethod
    def get(self, path: str, range_: Range, version: str | None, limit: int | None, attempt: Attempt) -> Future[Answer]:
        """Begin one request; the Future gives its Answer, checked against the range.

        Of an object in another ``version`` nothing comes: Changed. FileNotFoundError if there is none, Transient for an
        answer to another range than asked for. ``limit``: more bytes than that are not read, TooLarge.
        """

    @abstractmethod
    def look(self, path: str, attempt: Attempt) -> Future[Answer]:
        """Begin to ask for an Answer without bytes. FileNotFoundError if there is no such object."""


# A forked child keeps those of its parent for ever and uses none of them. If one were collected, its connections would
# be closed, and with that be taken out of the epoll set, which parent and child share: the parent would wait in vain.
_filesystems: "weakref.WeakSet[Any]" = weakref.WeakSet()
_of_parents: list[Any] = []
os.register_at_fork(after_in_child=lambda: _of_parents.extend(_filesystems))


def connect(url: str, options: Options) -> tuple[Backend, str]:
    """The backend for ``url``, and the path of the object in it. Raises whatever the filesystem does."""
    fs, path = filesystem(url, options)
    return backend_of(fs), path


def backend_of(fs: Any) -> Backend:
    module = type(fs).__module__
    if module.startswith("s3fs"):
        return S3(fs)
    if module.startswith("obstore"):
        return Obstore(fs)
    if module.startswith("fsspec.implementations.http"):
        return Http(fs)
    return Other(fs)


def filesystem(url: str, options: Options) -> tuple[Any, str]:
    """The fsspec filesystem of ``url``, and the path in it. What retries by itself is told not to: Retry does it."""
    import fsspec  # 0.1 s, and only URLs need it
    import fsspec.core

    options = dict(options or {})
    options.pop("asynchronous", None)  # such a filesystem would wait for its caller's event loop; there is none here
    protocol = url.partition("://")[0]
    if "::" not in url:
        module = fsspec.get_filesystem_class(protocol).__module__
        if module.startswith("s3fs"):
            own = {"retries": {"total_max_attempts": 1, "mode": "standard"}, "max_pool_connections": CONNECTIONS}
            options["config_kwargs"] = own | dict(options.get("config_kwargs") or {})
        elif module.startswith("obstore"):
            options.setdefault("retry_config", {"max_retries": 0})
            # Its limit for a whole answer is 30 s, however well that comes on; Operation sees to those that do not.
            options["client_options"] = {"timeout": FOREVER} | dict(options.get("client_options") or {})
    fs, path = fsspec.core.url_to_fs(url, **options)
    _filesystems.add(fs)
    return fs, path


def in_thread(call: Callable[[], T]) -> Future[T]:
    """``call()`` in a thread of its own that nobody waits for, because a call that hangs cannot be ended."""
    future: Future[T] = Future()

    def work() -> None:
        if not future.set_running_or_notify_cancel():  # else nobody can cancel it any more, only lose interest
            return
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True, name="mzstore-request").start()
    return future


_turns: "weakref.WeakKeyDictionary[Any, asyncio.Semaphore]" = weakref.WeakKeyDictionary()


def on_loop(fs: Any, ask: Callable[[], Coroutine[Any, Any, T]], attempt: Attempt) -> Future[T]:
    """``ask()`` on the event loop of ``fs``, in another thread, as soon as ``fs`` has a connection for it.

    It would wait for one in the client as well, but there nobody can tell that from a server that does not answer.
    """
    import asyncio  # which fsspec has imported by now, and nobody else needs

    async def in_turn() -> T:
        attempt.wait()
        turns = _turns.get(fs)
        if turns is None:
            most = (getattr(fs, "config_kwargs", None) or {}).get("max_pool_connections", CONNECTIONS)
            turns = _turns[fs] = asyncio.Semaphore(most)
        async with turns:
            attempt.begin()
            return await ask()

    return asyncio.run_coroutine_threadsafe(in_turn(), fs.loop)


class _Body:
    """An answer of ``nbytes`` that arrives in pieces."""

    def __init__(self, nbytes: int, attempt: Attempt) -> None:
        self._array, self._done, self._attempt = np.empty(nbytes, np.uint8), 0, attempt
        self._data = self._array.data

    def add(self, piece: bytes | memoryview) -> None:
        stop = self._done + len(piece)
        if stop > len(self._data):
            raise Transient(f"the answer has more than the {len(self._data)} bytes that it states")
        # Unlike a memoryview, NumPy lets other threads work meanwhile.
        self._array[self._done : stop] = np.frombuffer(piece, np.uint8)
        self._done = stop
        self._attempt.received(self._data, stop)

    async def all(self, read: Callable[[int], Awaitable[bytes]]) -> memoryview:
        while piece := await read(PIECE_NBYTES):
            self.add(piece)
        return self.whole()

    def whole(self) -> memoryview:
        if self._done < len(self._data):
            raise Transient(f"the answer ends after {self._done} of {len(self._data)} bytes")
        return self._data


def _check(
    range_: Range, nbytes: int, content_range: str | None, version: str | None, found: str | None, limit: int | None
) -> int:
    """The size of the object, from the head of an answer of ``nbytes``. Raises what ``Backend.get`` does."""
    if version is not None and found is not None and found != version:
        raise Changed(f"it has changed since it was opened (version {found}, not {version})")
    if limit is not None and nbytes > limit:
        raise TooLarge(f"{nbytes} bytes, at most {limit} are wanted")
    if range_.header is None:
        return nbytes
    if content_range is None:
        if (range_.start, range_.stop) == (0, nbytes) or (range_.start < 0 and nbytes <= -range_.start):
            return nbytes
        raise Transient(
            f"the whole object came ({nbytes} bytes) where a range was asked for; does the server know ranges?"
        )
    try:
        unit, _, rest = content_range.partition(" ")
        span, _, size = rest.partition("/")
        first, _, last = span.partition("-")
        start, stop, total = int(first), int(last) + 1, int(size)
    except ValueError:
        raise Transient(f"the answer is for a range that makes no sense: {content_range!r}") from None
    wanted = (max(0, total + range_.start), total) if range_.start < 0 else (range_.start, range_.stop)
    if unit != "bytes" or (start, stop) != wanted or stop - start != nbytes:
        raise Transient(f"{nbytes} bytes of the range {start} to {stop} came, wanted was {range_}")
    return total


def _refusal(status: int | None, range_: Range, error: Exception) -> Exception:
    """What an answer with an HTTP status means to a reader; ``error`` itself if nothing in particular."""
    match status:
        case 401 | 403:
            return PermissionError(13, f"not allowed ({reason(error)})")
        case 404:
            return FileNotFoundError(2, "there is no such object")
        case 412:
            return Changed("it has changed since it was opened")
        case 416:
            return Changed(f"it has no {range_} any more: it has changed since it was opened")
    return error


class Direct(Backend):
    """A filesystem whose client is called directly, on its event loop; the client raises what servers refuse."""

    def get(self, path: str, range_: Range, version: str | None, limit: int | None, attempt: Attempt) -> Future[Answer]:
        async def ask() -> Answer:
            try:
                return await self._get(path, range_, version, limit, attempt)
            except Exception as error:
                status = status_of(error)
                if status == 416 and range_.start < 0:  # of an empty object; some servers say so of any that is shorter
                    return await self._get(path, Range(), version, -range_.start, attempt)
                refusal = _refusal(status, range_, error)
                if refusal is error:
                    raise
                raise refusal from error

        return on_loop(self._fs, ask, attempt)

    def look(self, path: str, attempt: Attempt) -> Future[Answer]:
        async def ask() -> Answer:
            try:
                return await self._look(path)
            except Exception as error:
                refusal = _refusal(status_of(error), Range(), error)
                if refusal is error:
                    raise
                raise refusal from error

        return on_loop(self._fs, ask, attempt)

    @abstractmethod
    async def _get(
        self, path: str, range_: Range, version: str | None, limit: int | None, attempt: Attempt
    ) -> Answer: ...

    @abstractmethod
    async def _look(self, path: str) -> Answer: ...


class S3(Direct):
    """s3fs: with If-Match, and without the retries inside s3fs."""

    async def _get(self, path: str, range_: Range, version: str | None, limit: int | None, attempt: Attempt) -> Answer:
        head = await self._call("get_object", path, Range=range_.header, IfMatch=version)
        async with head["Body"] as body:
            attempt.received()
            found, nbytes = head.get("ETag"), head["ContentLength"]
            total = _check(range_, nbytes, head.get("ContentRange"), version, found, limit)
            return Answer(await _Body(nbytes, attempt).all(body.read), total, found)

    async def _look(self, path: str) -> Answer:
        head = await self._call("head_object", path)
        return Answer(b"", head["ContentLength"], head.get("ETag"))

    async def _call(self, method: str, path: str, **asked: str | None) -> Any:
        bucket, key, version_id = self._fs.split_path(path)
        await self._fs.set_session()
        client = await self._fs.get_s3(bucket)
        named = {name: value for name, value in {**asked, "VersionId": version_id}.items() if value is not None}
        return await getattr(client, method)(**{**self._fs.req_kw, "Bucket": bucket, "Key": key, **named})


class Http(Direct):
    """fsspec's HTTP filesystem, whose session is used."""

    async def _get(self, path: str, range_: Range, version: str | None, limit: int | None, attempt: Attempt) -> Answer:
        asked = {"Range": range_.header} if range_.header else {}
        if version and version.startswith('"'):  # a weak ETag or a date matches nothing
            asked["If-Match"] = version
        async with await self._ask("GET", path, asked) as head:
            attempt.received()
            head.raise_for_status()
            if head.content_length is None:
                raise Transient("the answer does not say how long it is")
            content_range = head.headers.get("Content-Range", "") if head.status == 206 else None
            found = self._version(head)
            total = _check(range_, head.content_length, content_range, version, found, limit)
            return Answer(await _Body(head.content_length, attempt).all(head.content.read), total, found)

    async def _look(self, path: str) -> Answer:
        async with await self._ask("HEAD", path, {}) as head:
            head.raise_for_status()
            length = head.headers.get("Content-Length")
            return Answer(b"", None if length is None else int(length), self._version(head))

    async def _ask(self, method: str, path: str, headers: dict[str, str]) -> Any:
        import aiohttp

        session = await self._fs.set_session()
        options = dict(self._fs.kwargs)
        if "timeout" not in self._fs.client_kwargs:  # for a whole answer, however well it comes on; see Operation
            options.setdefault("timeout", aiohttp.ClientTimeout(total=None))
        own = options.pop("headers", None) or {}
        return session.request(
            method, self._fs.encode_url(path), headers={**own, "Accept-Encoding": "identity", **headers}, **options
        )

    def _version(self, head: Any) -> str | None:
        found: str | None = head.headers.get("ETag") or head.headers.get("Last-Modified")
        return found


class Obstore(Direct):
    """obstore's adapter, whose stores are used."""

    _pid: int | None = None  # of the process in which it was used first: its threads do not come along into a fork

    def __init__(self, fs: Any) -> None:
        super().__init__(fs)
        Obstore._pid = Obstore._pid or os.getpid()
        if Obstore._pid != os.getpid():
            raise NotImplementedError(
                "obstore does not work in a forked process; start processes by 'spawn' or 'forkserver'"
            )

    async def _get(self, path: str, range_: Range, version: str | None, limit: int | None, attempt: Attempt) -> Answer:
        options: dict[str, Any] = {}
        if range_.start < 0:
            options["range"] = {"suffix": -range_.start}
        elif range_.stop is not None:
            options["range"] = (range_.start, range_.stop)
        if version is not None:
            options["if_match"] = version
        store, key = self._where(path)
        head = await store.get_async(key, options=options)
        attempt.received()
        start, stop = head.range
        total, found = head.meta["size"], head.meta["e_tag"]
        checked = None if range_.header is None else f"bytes {start}-{stop - 1}/{total}"
        _check(range_, stop - start, checked, version, found, limit)
        body = _Body(stop - start, attempt)
        async for piece in head.stream(min_chunk_size=max(LEAST_PIECE_NBYTES, (stop - start) // MOST_PIECES)):
            body.add(memoryview(piece))
        return Answer(body.whole(), total, found)

    async def _look(self, path: str) -> Answer:
        store, key = self._where(path)
        about = await store.head_async(key)
        return Answer(b"", about["size"], about["e_tag"])

    def _where(self, path: str) -> tuple[Any, str]:
        bucket, key = self._fs._split_path(path)
        return self._fs._construct_store(bucket), key


class Other(Backend):
    """Any filesystem: ``info`` tells size and version at the opening, ``cat_file`` gives ranges."""

    pins = False

    def get(self, path: str, range_: Range, version: str | None, limit: int | None, attempt: Attempt) -> Future[Answer]:
        return in_thread(lambda: self._get(path, range_, limit))

    def _get(self, path: str, range_: Range, limit: int | None) -> Answer:
        about = Answer(b"", None, None)
        start, stop = range_.start, range_.stop
        if start < 0 or stop is None:
            about = self._look(path)
            total = about.total
            if total is None:
                raise NotImplementedError("the storage does not say how large the object is")
            start, stop = (max(0, total + start), total) if start < 0 else (0, total)
            if limit is not None and stop - start > limit:
                raise TooLarge(f"{stop - start} bytes, at most {limit} are wanted")
        try:
            data = self._fs.cat_file(path, start=start, end=stop) if stop > start else b""
        except OSError as error:
            if str(error).startswith("Forbidden:"):  # the only sign that gcsfs gives of a 403
                raise PermissionError(13, str(error)) from error
            raise
        if len(data) != stop - start:
            raise Transient(f"{len(data)} bytes came, wanted was {range_}")
        return Answer(data, about.total, about.version)

    def look(self, path: str, attempt: Attempt) -> Future[Answer]:
        return in_thread(lambda: self._look(path))

    def _look(self, path: str) -> Answer:
        self._fs.invalidate_cache(path)
        about: dict[str, Any] = self._fs.info(path)
        if about["type"] != "file":
            raise FileNotFoundError(2, "there is no such object")
        told = ", ".join(f"{key} {about[key]}" for key in ("size", *VERSION_KEYS) if about.get(key) is not None)
        return Answer(b"", about["size"], told)

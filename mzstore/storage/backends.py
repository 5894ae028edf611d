"""Backends: one ranged request to an object, by whatever fsspec filesystem serves its URL.

fsspec's own ``cat_file`` hides what a reader has to know: the size of the object and which version of it answered. So
the kinds that people use most are asked directly (s3fs, obstore's adapter, HTTP); all others by ``info`` and ``cat_file``.
No backend retries here, and none lists.
"""

import os
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import numpy as np

from mzstore.storage.base import Options
from mzstore.storage.retry import Attempt, Changed, TooLarge, Transient, status_of

T = TypeVar("T")
PIECE_NBYTES = 1 << 20  # of a body, at most, between two signs of life
LEAST_PIECE_NBYTES = 64 << 10  # at least, where the backend waits for so much
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


class Backend(Protocol):
    def get(self, path: str, range_: Range, version: str | None, limit: int | None, attempt: Attempt) -> Future[Answer]:
        """Begin one request; the Future gives its Answer, checked against the range.

        Of an object in another ``version`` nothing comes: Changed. FileNotFoundError if there is none, Transient for an
        answer to another range than asked for. ``limit``: more bytes than that are not read, TooLarge.
        """

    def version(self, path: str) -> Callable[[Attempt], Future[str]] | None:
        """What begins to ask which version is there now; None where ``get`` checks it."""


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


def _in_thread(call: Callable[[], T]) -> Future[T]:
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


def on_loop(fs: Any, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
    """``coroutine`` on the event loop of ``fs``, in another thread."""
    import asyncio  # which fsspec has imported by now, and nobody else needs

    return asyncio.run_coroutine_threadsafe(coroutine, fs.loop)


class _Body:
    """An answer of ``nbytes`` that arrives in pieces."""

    def __init__(self, nbytes: int, attempt: Attempt) -> None:
        self._data, self._done, self._attempt = np.empty(nbytes, np.uint8).data, 0, attempt

    def add(self, piece: bytes | memoryview) -> None:
        stop = self._done + len(piece)
        if stop > len(self._data):
            raise Transient(f"the answer has more than the {len(self._data)} bytes that it states")
        self._data[self._done : stop] = piece
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


class S3:
    """s3fs, whose client is called directly: with If-Match, and without the retries inside s3fs."""

    def __init__(self, fs: Any) -> None:
        self._fs = fs

    def get(self, path: str, range_: Range, version: str | None, limit: int | None, attempt: Attempt) -> Future[Answer]:
        return on_loop(self._fs, self._get(path, range_, version, limit, attempt))

    async def _get(self, path: str, range_: Range, version: str | None, limit: int | None, attempt: Attempt) -> Answer:
        from botocore.exceptions import ClientError
        from s3fs.errors import translate_boto_error

        bucket, key, version_id = self._fs.split_path(path)
        asked = {"Range": range_.header, "IfMatch": version, "VersionId": version_id}
        await self._fs.set_session()
        client = await self._fs.get_s3(bucket)
        named = {name: value for name, value in asked.items() if value is not None}
        try:
            head = await client.get_object(**{**self._fs.req_kw, "Bucket": bucket, "Key": key, **named})
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code"))
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if status == 412:
                raise Changed("it has changed since it was opened") from error
            if status == 416:
                if range_.start < 0:  # of an empty object
                    return Answer(b"", 0, None)
                raise Changed(f"it has no {range_} any more: it has changed since it was opened") from error
            if code in ("404", "NoSuchKey") or status == 404:
                raise FileNotFoundError(2, "there is no such object") from error
            if status in (401, 403):
                raise PermissionError(13, f"not allowed ({error})") from error
            raise translate_boto_error(error) from error
        async with head["Body"] as body:
            attempt.received()
            found, nbytes = head.get("ETag"), head["ContentLength"]
            total = _check(range_, nbytes, head.get("ContentRange"), version, found, limit)
            return Answer(await _Body(nbytes, attempt).all(body.read), total, found)

    def version(self, path: str) -> None: ...


class Http:
    """fsspec's HTTP filesystem, whose session is used directly."""

    def __init__(self, fs: Any) -> None:
        self._fs = fs

    def get(self, path: str, range_: Range, version: str | None, limit: int | None, attempt: Attempt) -> Future[Answer]:
        return on_loop(self._fs, self._get(path, range_, version, limit, attempt))

    async def _get(self, path: str, range_: Range, version: str | None, limit: int | None, attempt: Attempt) -> Answer:
        import aiohttp

        session = await self._fs.set_session()
        options = dict(self._fs.kwargs)
        if "timeout" not in self._fs.client_kwargs:  # for a whole answer, however well it comes on; see Operation
            options.setdefault("timeout", aiohttp.ClientTimeout(total=None))
        headers = {**(options.pop("headers", None) or {}), "Accept-Encoding": "identity"}
        if range_.header:
            headers["Range"] = range_.header
        if version and version.startswith('"'):  # a weak ETag or a date matches nothing
            headers["If-Match"] = version
        async with session.get(self._fs.encode_url(path), headers=headers, **options) as head:
            attempt.received()
            if head.status == 404:
                raise FileNotFoundError(2, "there is no such object")
            if head.status in (401, 403):
                raise PermissionError(13, f"not allowed ({head.status} {head.reason})")
            if head.status == 412:
                raise Changed("it has changed since it was opened")
            if head.status == 416:
                if range_.start < 0:
                    return Answer(b"", 0, None)
                raise Changed(f"it has no {range_} any more: it has changed since it was opened")
            head.raise_for_status()
            if head.content_length is None:
                raise Transient("the answer does not say how long it is")
            found = head.headers.get("ETag") or head.headers.get("Last-Modified")
            content_range = head.headers.get("Content-Range", "") if head.status == 206 else None
            total = _check(range_, head.content_length, content_range, version, found, limit)
            return Answer(await _Body(head.content_length, attempt).all(head.content.read), total, found)

    def version(self, path: str) -> None: ...


class Obstore:
    """obstore's adapter, whose stores are asked directly."""

    _pid: int | None = None  # of the process in which it was used first: its threads do not come along into a fork

    def __init__(self, fs: Any) -> None:
        self._fs = fs
        Obstore._pid = Obstore._pid or os.getpid()
        if Obstore._pid != os.getpid():
            raise NotImplementedError(
                "obstore does not work in a forked process; start processes by 'spawn' or 'forkserver'"
            )

    def get(self, path: str, range_: Range, version: str | None, limit: int | None, attempt: Attempt) -> Future[Answer]:
        return on_loop(self._fs, self._get(path, range_, version, limit, attempt))

    async def _get(self, path: str, range_: Range, version: str | None, limit: int | None, attempt: Attempt) -> Answer:
        import obstore.exceptions

        bucket, key = self._fs._split_path(path)
        options: dict[str, Any] = {}
        if range_.start < 0:
            options["range"] = {"suffix": -range_.start}
        elif range_.stop is not None:
            options["range"] = (range_.start, range_.stop)
        if version is not None:
            options["if_match"] = version
        try:
            head = await self._fs._construct_store(bucket).get_async(key, options=options)
            attempt.received()
            start, stop = head.range
            total, found = head.meta["size"], head.meta["e_tag"]
            checked = None if range_.header is None else f"bytes {start}-{stop - 1}/{total}"
            _check(range_, stop - start, checked, version, found, limit)
            body = _Body(stop - start, attempt)
            async for piece in head.stream(min_chunk_size=LEAST_PIECE_NBYTES):
                body.add(memoryview(piece))
        except obstore.exceptions.NotFoundError as error:
            raise FileNotFoundError(2, "there is no such object") from error
        except obstore.exceptions.PreconditionError as error:
            raise Changed("it has changed since it was opened") from error
        except obstore.exceptions.BaseError as error:
            if status_of(error) != 416:
                raise
            if range_.start < 0:
                return Answer(b"", 0, None)
            raise Changed(f"it has no {range_} any more: it has changed since it was opened") from error
        return Answer(body.whole(), total, found)

    def version(self, path: str) -> None: ...


class Other:
    """Any filesystem: ``info`` tells size and version at the opening, ``cat_file`` gives ranges."""

    def __init__(self, fs: Any) -> None:
        self._fs = fs

    def get(self, path: str, range_: Range, version: str | None, limit: int | None, attempt: Attempt) -> Future[Answer]:
        return _in_thread(lambda: self._get(path, range_, limit))

    def _get(self, path: str, range_: Range, limit: int | None) -> Answer:
        total = found = None
        start, stop = range_.start, range_.stop
        if start < 0 or stop is None:
            about = self._info(path)
            total, found = about["size"], _version(about)
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
        return Answer(data, total, found)

    def version(self, path: str) -> Callable[[Attempt], Future[str]]:
        return lambda attempt: _in_thread(lambda: _version(self._info(path)))

    def _info(self, path: str) -> dict[str, Any]:
        self._fs.invalidate_cache(path)
        about: dict[str, Any] = self._fs.info(path)
        if about["type"] != "file":
            raise FileNotFoundError(2, "there is no such object")
        return about


def _version(about: dict[str, Any]) -> str:
    return ", ".join(f"{key} {about[key]}" for key in ("size", *VERSION_KEYS) if about.get(key) is not None)

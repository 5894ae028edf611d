"""Remote storage for writing: objects and prefixes of any fsspec filesystem.

An object is cut into parts, which travel while the next ones are made; nothing shows under its name before all of them
are there. Closing a file of fsspec publishes what it has, also after an exception, so no file is closed here before it
is whole. What a lost process leaves is an unfinished upload, which nobody can read.
"""

import contextlib
import hashlib
import io
import itertools
import math
import posixpath
import secrets
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from mzstore.errors import StorageError
from mzstore.stats import Stats
from mzstore.storage.backends import filesystem, in_thread, on_loop
from mzstore.storage.base import Options, Transaction, Writable
from mzstore.storage.remote import RemoteFolder
from mzstore.storage.retry import MAX_PAUSE, Attempt, Operation, Retry, Transient, reason

MIB = 1 << 20
PART_NBYTES = 16 * MIB
IN_FLIGHT = 4  # parts of one object, or small objects of a folder
MAX_PARTS = 10_000  # of S3, which other stores copy
PARTS_OF_A_SIZE = 1000  # 16 GB; then parts grow, where nobody said how large the object becomes
SLOWEST = 256 << 10  # bytes per second that a part travels at least; that time comes on top of Retry.timeout
# What S3 says to a body that was damaged or late on its way, with a status that elsewhere means not to ask again.
WORTH_ANOTHER = {"BadDigest", "IncompleteBody", "InternalError", "RequestTimeout", "SlowDown", "XAmzContentSHA256Mismatch"}  # fmt: skip
WRITE_BUFFER = MIB
MODIFIED_KEYS = (
    "LastModified",
    "last_modified",
    "mtime",
    "updated",
    "modified",
    "created",
)  # of ``info``, in this order
LEFT = "An unfinished upload may be left, which costs as much as an object"


def part_nbytes(number: int, expected: int, growing: bool) -> int:
    """Size of part ``number`` (from 0) of an object of about ``expected`` bytes, 0 if nobody knows.

    They are of one size where that suffices, because some stores take no others. ``growing`` ones make an object of
    5 TiB, the most that S3 takes, in MAX_PARTS in any case.
    """
    enough = MAX_PARTS * 9 // 10 if expected else PARTS_OF_A_SIZE
    size = max(PART_NBYTES, math.ceil(expected / enough / MIB) * MIB)
    return size * (1 + max(0, number - enough) // 100) if growing else size


@contextlib.contextmanager
def _errors(url: str) -> Iterator[None]:
    """Turn whatever a filesystem raises, which need not be an OSError, into a StorageError that names ``url``."""
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        raise StorageError(f"cannot write {url!r}: {reason(error)}") from error


class Store(ABC):
    """Where objects are put. All methods raise whatever the filesystem does."""

    growing = False  # whether parts may differ in size
    _fs: Any

    @abstractmethod
    def put(self, path: str, data: bytes, operation: Operation) -> None:
        """A small object, whole."""

    @abstractmethod
    def stream(self, path: str, parts: Iterator[bytes], operation: Operation) -> None:
        """An object of ``parts``, which appears when all of them are there.

        If ``parts`` raises, nothing appears, nothing is left, and the same is raised.
        """

    @abstractmethod
    def nbytes(self, path: str) -> int:
        """Size of the object that is there now."""

    def create(self, path: str, data: bytes, operation: Operation) -> None:
        """A small object, if there is none. Raises NotImplementedError where that cannot be asked for."""
        self._fs.pipe_file(path, data, mode="create")

    def listing(self, path: str) -> "Iterator[Listed]":
        """All objects below ``path``, in no order."""
        self._fs.invalidate_cache()
        for name, about in self._fs.find(path, detail=True).items():
            told = next((about[key] for key in MODIFIED_KEYS if about.get(key) is not None), None)
            yield Listed(name, about["size"], _seconds(told))

    def remove(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(path)

    def unfinished(self, path: str) -> "Iterator[Unfinished]":
        """Uploads below ``path`` that were begun and not ended. Raises NotImplementedError where there may be some, and nobody can ask."""
        return iter(())  # other storage drops them by itself

    def abandon(self, upload: "Unfinished") -> None:
        """End one without an object. It may be gone already."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Listed:
    """An object in a listing. ``modified`` is in seconds, by the clock of the storage; None where that is not told."""

    path: str
    nbytes: int
    modified: float | None


@dataclass(frozen=True, slots=True)
class Unfinished:
    """An upload whose parts take room, and that is no object. ``begun`` is as ``Listed.modified``."""

    path: str
    upload: str
    begun: float | None


def _seconds(time: object) -> float | None:
    if isinstance(time, str):
        time = datetime.fromisoformat(time)
    if isinstance(time, datetime):
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    return float(time) if isinstance(time, (int, float)) else None


def connect(url: str, options: Options, retry: Retry) -> tuple[Store, str]:
    """The Store for ``url``, and the path in it. Raises whatever the filesystem does."""
    fs, path = filesystem(url, options)
    module = type(fs).__module__
    if module.startswith("fsspec.implementations.http"):
        raise NotImplementedError("storage of this kind can be read, not written")
    if module.startswith("s3fs"):
        return S3(fs, retry), path
    if module.startswith("obstore"):
        fs, path = filesystem(url, _obstore_options(options, retry))
        return Obstore(fs), path
    if module.startswith("gcsfs"):
        return Google(fs), path
    if module.startswith("adlfs"):
        return Azure(fs, retry), path
    if module.startswith("fsspec.implementations.memory"):
        return Memory(fs), path
    if getattr(fs, "async_impl", False) or module.startswith("huggingface_hub"):
        return Spooled(fs), path
    return Renamed(fs), path


def _obstore_options(options: Options, retry: Retry) -> Options:
    """obstore tries by itself what it uploads; ``filesystem`` has told it not to, and its own timeout is for readers."""
    found = dict(options or {})
    seconds = retry.timeout + PART_NBYTES / SLOWEST
    found["client_options"] = {"timeout": timedelta(seconds=seconds), **(found.get("client_options") or {})}
    pauses = {"init_backoff": timedelta(seconds=retry.backoff), "max_backoff": timedelta(seconds=MAX_PAUSE), "base": 2}
    found.setdefault(
        "retry_config",
        {
            "max_retries": retry.attempts - 1,
            "backoff": pauses,
            "retry_timeout": timedelta(seconds=retry.deadline or seconds * retry.attempts),
        },
    )
    return found


class S3(Store):
    """s3fs: a multipart upload of our own, because neither s3fs's files nor its ``put`` both stream and abort."""

    def __init__(self, fs: Any, retry: Retry) -> None:
        self._fs, self._retry = fs, retry
        self.growing = not getattr(fs, "fixed_upload_size", False)

    def put(self, path: str, data: bytes, operation: Operation) -> None:
        self._run(operation, "put_object", len(data), **self._where(path), Body=data)
        self._fs.invalidate_cache(path)

    def create(self, path: str, data: bytes, operation: Operation) -> None:
        self._run(operation, "put_object", len(data), **self._where(path), Body=data, IfNoneMatch="*")

    def stream(self, path: str, parts: Iterator[bytes], operation: Operation) -> None:
        where = self._where(path)
        # An operation of its own, which nobody stops: without the answer, nobody could remove the upload.
        created = self._run(self._retry.start(), "create_multipart_upload", 0, **where)
        upload = {**where, "UploadId": created["UploadId"]}
        try:
            done = _Parts(self._sender(upload, operation), operation).send(parts)
            self._complete(path, upload, done, operation)
        except BaseException as error:
            self._abort(upload, error)
            raise
        self._fs.invalidate_cache(path)

    def nbytes(self, path: str) -> int:
        return int(self._run(self._retry.start(), "head_object", 0, **self._where(path))["ContentLength"])

    def unfinished(self, path: str) -> Iterator[Unfinished]:
        bucket, prefix, _ = self._fs.split_path(path)
        page: dict[str, str] = {}
        while True:
            operation = self._retry.start()
            answer = self._run(
                operation, "list_multipart_uploads", 0, Bucket=bucket, Prefix=prefix.rstrip("/") + "/", **page
            )
            for found in answer.get("Uploads", []):
                yield Unfinished(f"{bucket}/{found['Key']}", found["UploadId"], _seconds(found.get("Initiated")))
            # Some servers do not say how to go on. The next one who asks finds the rest, when these are gone.
            if not answer.get("IsTruncated") or not answer.get("NextKeyMarker"):
                return
            page = {"KeyMarker": answer["NextKeyMarker"], "UploadIdMarker": answer.get("NextUploadIdMarker", "")}

    def abandon(self, upload: Unfinished) -> None:
        try:
            self._run(
                self._retry.start(), "abort_multipart_upload", 0, **self._where(upload.path), UploadId=upload.upload
            )
        except StorageError as error:
            if _code(error) != "NoSuchUpload":
                raise

    def _where(self, path: str) -> dict[str, str]:
        bucket, key, _ = self._fs.split_path(path)
        return {"Bucket": bucket, "Key": key}

    def _sender(self, upload: dict[str, str], operation: Operation) -> "Callable[[int, bytes], _Part]":
        def send(number: int, data: bytes) -> _Part:
            answer = self._run(operation, "upload_part", len(data), **upload, PartNumber=number, Body=data)
            # Where the server keeps checksums of parts, it wants to see them again.
            sums = {key: value for key, value in answer.items() if key.startswith("Checksum") and key != "ChecksumType"}
            return _Part(len(data), {"PartNumber": number, "ETag": answer["ETag"], **sums})

        return send

    def _complete(self, path: str, upload: dict[str, str], parts: "list[_Part]", operation: Operation) -> None:
        listed = {"Parts": [part.about for part in parts]}
        try:
            self._run(operation, "complete_multipart_upload", 0, **upload, MultipartUpload=listed)
        except StorageError:
            # It may have taken effect although its answer was lost; then a second one finds no such upload.
            if not self._is_there(path, parts):
                raise

    def _is_there(self, path: str, parts: "list[_Part]") -> bool:
        """Whether the object at ``path`` is the one of ``parts``: its ETag is made of theirs where they are MD5 sums."""
        try:
            digests = b"".join(bytes.fromhex(part.about["ETag"].strip('"')) for part in parts)
            found = self._run(self._retry.start(), "head_object", 0, **self._where(path))
        except (StorageError, ValueError):
            return False
        expected = f"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(parts)}"
        nbytes = sum(part.nbytes for part in parts)
        return (found["ETag"].strip('"'), found["ContentLength"]) == (expected, nbytes)

    def _abort(self, upload: dict[str, str], error: BaseException) -> None:
        """Remove what was uploaded; a part that was still on its way may need that twice."""
        operation = replace(self._retry, deadline=None).start()
        try:
            for _ in range(3):
                self._run(operation, "abort_multipart_upload", 0, **upload)
                self._run(operation, "list_parts", 0, **upload)
            error.add_note(f"{LEFT}: parts keep coming")
        except StorageError as problem:
            if _code(problem) != "NoSuchUpload":
                error.add_note(f"{LEFT}: {problem}")

    def _run(self, operation: Operation, method: str, nbytes: int, **arguments: Any) -> dict[str, Any]:
        def start(attempt: Attempt) -> Future[dict[str, Any]]:
            attempt.allowance = nbytes / SLOWEST  # no answer comes before all is sent
            return on_loop(self._fs, lambda: self._ask(method, arguments), attempt)

        place = f"s3://{arguments['Bucket']}/{arguments.get('Key', arguments.get('Prefix'))}"
        return operation.run(start, f"{'list' if 'Prefix' in arguments else 'write'} {place!r} ({method})")

    async def _ask(self, method: str, arguments: dict[str, Any]) -> dict[str, Any]:
        from botocore.exceptions import ClientError

        await self._fs.set_session()
        call = getattr(await self._fs.get_s3(arguments["Bucket"]), method)
        if "Body" in arguments:  # of a file aiohttp sends piece by piece; bytes would hold up the loop
            arguments = {**arguments, "Body": io.BytesIO(arguments["Body"])}
        try:
            # With the user's own settings, such as those of encryption.
            return await call(**self._fs._get_s3_method_kwargs(call, **arguments))  # type: ignore[no-any-return]
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") in WORTH_ANOTHER:
                raise Transient(str(error)) from error
            raise


def _code(error: BaseException | None) -> str:
    """What S3 calls the error behind ``error``; empty if it is none of S3's."""
    while error:
        answer = getattr(error, "response", None)
        if isinstance(answer, dict):
            return str(answer.get("Error", {}).get("Code", ""))
        error = error.__cause__
    return ""


@dataclass(frozen=True, slots=True)
class _Part:
    """A part that the server has; ``about`` is what it wants to be told of it at the end."""

    nbytes: int
    about: dict[str, Any]


class _Parts:
    """Sends parts, some at a time; after the first failure no more."""

    def __init__(self, send: Callable[[int, bytes], _Part], operation: Operation) -> None:
        self._send, self._operation = send, operation
        self._free = threading.Semaphore(IN_FLIGHT)
        self._failures: list[BaseException] = []

    def send(self, parts: Iterator[bytes]) -> list[_Part]:
        sent: list[Future[_Part]] = []
        with ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="mzstore-upload") as pool:
            try:
                for number in itertools.count(1):
                    self._free.acquire()  # before the next part is taken, so that no more of them are in memory
                    part = None if self._failures else next(parts, None)
                    if part is None:
                        break
                    sent.append(pool.submit(self._one, number, part))
            except BaseException:
                self._operation.stop()
                raise
        if self._failures:
            raise self._failures[0]
        return [future.result() for future in sent]

    def _one(self, number: int, part: bytes) -> _Part:
        try:
            return self._send(number, part)
        except BaseException as error:
            self._failures.append(error)
            self._operation.stop()
            raise
        finally:
            self._free.release()


class Obstore(Store):
    """obstore's adapter, whose stores are asked directly: they stream, try again and abort by themselves."""

    def __init__(self, fs: Any) -> None:
        self._fs = fs

    def put(self, path: str, data: bytes, operation: Operation) -> None:
        store, key = self._where(path)
        store.put(key, data, use_multipart=False)
        self._fs.invalidate_cache(path)

    def create(self, path: str, data: bytes, operation: Operation) -> None:
        store, key = self._where(path)
        store.put(key, data, use_multipart=False, mode="create")

    def listing(self, path: str) -> Iterator[Listed]:
        store, key = self._where(path)
        bucket = path[: len(path) - len(key)]
        for batch in store.list(key):
            for about in batch:
                yield Listed(bucket + about["path"], about["size"], about["last_modified"].timestamp())

    def unfinished(self, path: str) -> Iterator[Unfinished]:
        raise NotImplementedError(
            "obstore cannot list unfinished uploads; use s3fs for that, or a lifecycle rule of the bucket"
        )

    def stream(self, path: str, parts: Iterator[bytes], operation: Operation) -> None:
        store, key = self._where(path)
        first = next(parts)
        # What an iterator raises ends the upload; leaving the block of open_writer does so only in newer versions.
        store.put(
            key,
            itertools.chain([first], parts),
            use_multipart=True,
            chunk_size=len(first),
            max_concurrency=IN_FLIGHT,
        )
        self._fs.invalidate_cache(path)

    def nbytes(self, path: str) -> int:
        store, key = self._where(path)
        return int(store.head(key)["size"])

    def _where(self, path: str) -> tuple[Any, str]:
        bucket, key = self._fs._split_path(path)
        return self._fs._construct_store(bucket), key


class Azure(Store):
    """adlfs, whose client is called directly: its files commit what they have when they are closed, whole or not.

    Nobody can read a block that is not yet on a committed list. Azure drops it after a week; nothing else can.
    """

    growing = True

    def __init__(self, fs: Any, retry: Retry) -> None:
        self._fs, self._retry = fs, retry

    def put(self, path: str, data: bytes, operation: Operation) -> None:
        if len(data) > MIB:  # beyond that the client would hold up its loop; of a block it sends piece by piece
            self.stream(path, iter([data]), operation)
            return
        self._run(operation, "upload_blob", path, len(data), data=data, overwrite=True)
        self._fs.invalidate_cache(path)

    def create(self, path: str, data: bytes, operation: Operation) -> None:
        self._run(operation, "upload_blob", path, len(data), data=data, overwrite=False)

    def stream(self, path: str, parts: Iterator[bytes], operation: Operation) -> None:
        upload = secrets.token_hex(8)  # blocks of two uploads of one name at a time do not mix

        def send(number: int, data: bytes) -> _Part:
            block = f"{upload}-{number:05}"
            self._run(operation, "stage_block", path, len(data), block_id=block, data=data, length=len(data))
            return _Part(len(data), {"block": block})

        blocks = [part.about["block"] for part in _Parts(send, operation).send(parts)]
        self._run(operation, "commit_block_list", path, 0, block_list=blocks)
        self._fs.invalidate_cache(path)

    def nbytes(self, path: str) -> int:
        return int(self._run(self._retry.start(), "get_blob_properties", path, 0).size)

    def _run(self, operation: Operation, method: str, path: str, nbytes: int, **arguments: Any) -> Any:
        def start(attempt: Attempt) -> Future[Any]:
            attempt.allowance = nbytes / SLOWEST  # no answer comes before all is sent
            return on_loop(self._fs, lambda: self._ask(method, path, arguments), attempt)

        return operation.run(start, f"write {f'az://{path}'!r} ({method})")

    async def _ask(self, method: str, path: str, arguments: dict[str, Any]) -> Any:
        from azure.storage.blob import BlobBlock

        if "block_list" in arguments:
            arguments = {"block_list": [BlobBlock(block) for block in arguments["block_list"]]}
        elif "data" in arguments:
            arguments = {**arguments, "data": io.BytesIO(arguments["data"])}
        container, name, _ = self._fs.split_path(path)
        async with self._fs.service_client.get_blob_client(container=container, blob=name) as client:
            return await getattr(client, method)(**arguments)


class Spooled(Store):
    """An object store whose own ``put`` shows nothing before the end: parts are collected in a temporary file.

    Hugging Face is one: its client takes whole files, because the first it asks the Hub for is where to send an object
    of this SHA-256 and size, and a commit names them.
    """

    def __init__(self, fs: Any) -> None:
        self._fs = fs

    def put(self, path: str, data: bytes, operation: Operation) -> None:
        self._fs.pipe_file(path, data)

    def stream(self, path: str, parts: Iterator[bytes], operation: Operation) -> None:
        with tempfile.NamedTemporaryFile(prefix="mzstore-", buffering=WRITE_BUFFER) as file:
            for part in parts:
                file.write(part)
            file.flush()
            self._put_file(file.name, path)

    def nbytes(self, path: str) -> int:
        self._fs.invalidate_cache(path)
        return int(self._fs.info(path)["size"])

    def _put_file(self, local: str, path: str) -> None:
        self._fs.put_file(local, path)


class Renamed(Spooled):
    """Any other filesystem. Its files show while they are written, so they get another name until they are whole."""

    def put(self, path: str, data: bytes, operation: Operation) -> None:
        with self._other_name(path) as other:
            self._fs.pipe_file(other, data)

    def create(self, path: str, data: bytes, operation: Operation) -> None:
        raise NotImplementedError(
            "files of this storage show before they are whole, and renaming replaces what is there"
        )

    def _put_file(self, local: str, path: str) -> None:
        with self._other_name(path) as other:
            self._fs.put_file(local, other)

    @contextlib.contextmanager
    def _other_name(self, path: str) -> Iterator[str]:
        folder, name = posixpath.split(path)
        other = posixpath.join(folder, f".{name[:40]}.{secrets.token_hex(4)}.tmp")
        if folder:
            self._fs.makedirs(folder, exist_ok=True)
        try:
            yield other
            self._fs.mv(other, path)
        except BaseException:
            with contextlib.suppress(Exception):  # the first error is the one to report
                self._fs.rm_file(other)
            raise


class Memory(Spooled):
    """fsspec's memory, which is that of this process; ``autocommit`` means nothing to it."""

    _creating = threading.Lock()  # it looks and then writes

    def create(self, path: str, data: bytes, operation: Operation) -> None:
        with Memory._creating:
            super().create(path, data, operation)

    def stream(self, path: str, parts: Iterator[bytes], operation: Operation) -> None:
        self.put(path, b"".join(parts), operation)


class Google(Spooled):
    """gcsfs, whose files are resumable uploads: closed without ``autocommit``, they show when they are committed."""

    def stream(self, path: str, parts: Iterator[bytes], operation: Operation) -> None:
        # Not by ``open``, which would leave the file to the user's next transaction, to be committed again.
        file = self._fs._open(path, "wb", block_size=PART_NBYTES, autocommit=False)
        if type(file).__module__ != "gcsfs.core":  # of a zonal bucket, which cannot discard
            file.closed = True
            super().stream(path, parts, operation)
            return
        try:
            for part in parts:
                file.write(part)
            file.close()
            file.commit()
        except BaseException as error:
            file.closed = True  # so that nobody finishes it
            try:
                file.discard()
            except Exception as problem:
                error.add_note(f"{LEFT}: {reason(problem)}")
            raise


class _Aborted(Exception):
    """No more parts come, and the object is not wanted any more."""


class _Stream:
    """``Store.stream`` in a thread of its own, to which parts are given one by one."""

    def __init__(self, store: Store, path: str, operation: Operation) -> None:
        self._operation = operation
        self._changed = threading.Condition()
        self._part: bytes | None = None
        self._state = "open"  # then "whole" or "aborted"
        self._ended: Future[None] = Future()
        threading.Thread(target=self._run, args=(store, path), daemon=True, name="mzstore-upload").start()

    def give(self, part: bytes) -> None:
        """Wait until the part before is taken. Raises what has ended the upload, if something has."""
        with self._changed:
            self._changed.wait_for(lambda: self._part is None or self._ended.done())
            if self._ended.done():
                self._ended.result()
            self._part = part
            self._changed.notify_all()

    def finish(self) -> None:
        self._change("whole")
        self._ended.result()

    def abort(self) -> list[str]:
        """Returns, when all is undone, what could not be."""
        self._change("aborted")
        self._operation.stop()
        return getattr(self._ended.exception(), "__notes__", [])

    def _change(self, state: str) -> None:
        with self._changed:
            self._state = state
            self._changed.notify_all()

    def _run(self, store: Store, path: str) -> None:
        problem: BaseException | None = None
        try:
            store.stream(path, self._parts(), self._operation)
        except BaseException as error:
            problem = error
        with self._changed:
            if problem:
                self._ended.set_exception(problem)
            else:
                self._ended.set_result(None)
            self._changed.notify_all()

    def _parts(self) -> Iterator[bytes]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._part is not None or self._state != "open")
                if self._state == "aborted":
                    raise _Aborted
                part, self._part = self._part, None
                self._changed.notify_all()
            if part is None:
                return
            yield part
            del part  # while it waits for the next


class RemoteSink(Transaction):
    """An object that is being written; in memory are at most the parts in flight and three more."""

    def __init__(self, url: str, options: Options, expected: int = 0, retry: Retry | None = None) -> None:
        retry = retry or Retry()
        operation = retry.start()
        with _errors(url):
            store, path = operation.wait_for_client(in_thread(lambda: connect(url, options, retry)))
        self._begin(url, store, path, operation, expected)

    @classmethod
    def of(cls, url: str, store: Store, path: str, operation: Operation, expected: int = 0) -> Self:
        """One more object of a store that is connected."""
        sink = cls.__new__(cls)
        sink._begin(url, store, path, operation, expected)
        return sink

    def _begin(self, url: str, store: Store, path: str, operation: Operation, expected: int) -> None:
        self.url, self._store, self._path, self._operation, self._expected = url, store, path, operation, expected
        self._buffer = bytearray()
        self._stream: _Stream | None = None
        self._n_parts = self._nbytes = 0
        self._room = part_nbytes(0, expected, store.growing)

    def write(self, data: bytes | memoryview) -> int:
        rest = memoryview(data).cast("B")
        self._nbytes += len(rest)
        while rest:
            if self._room == len(self._buffer):
                self._give()
            taken = min(len(rest), self._room - len(self._buffer))
            self._buffer += rest[:taken]
            rest = rest[taken:]
        return len(data)

    def _give(self) -> None:
        """The part that is full goes on its way. The last one never comes here: it may be the only one."""
        with _errors(self.url):
            if self._stream is None:
                self._stream = _Stream(self._store, self._path, self._operation)
            self._stream.give(self._take())
        self._n_parts += 1
        self._room = part_nbytes(self._n_parts, self._expected, self._store.growing)

    def _take(self) -> bytes:
        """What was collected, as bytes, which no other attempt has to copy again."""
        taken, self._buffer = bytes(self._buffer), bytearray()
        return taken

    def _commit(self) -> None:
        with _errors(self.url):
            if self._stream is None:
                self._store.put(self._path, self._take(), self._operation)
            else:
                self._stream.give(self._take())
                self._stream.finish()
            found = self._store.nbytes(self._path)
        if found != self._nbytes:
            raise StorageError(
                f"{self.url!r} has {found} bytes, {self._nbytes} were written; somebody else writes it as well, or the storage is at fault"
            )

    def _abort(self, error: BaseException) -> None:
        self._buffer = bytearray()
        if self._stream:
            for note in self._stream.abort():
                if note not in getattr(error, "__notes__", []):  # it may be the very error that ended the upload
                    error.add_note(note)


class RemoteFolderSink(Transaction):
    """Objects under a prefix, some of them on their way at a time. ``marker``, which makes the rest count, is put after
    all that was written before it: after a failure there are objects below the prefix, but no model.
    """

    def __init__(self, url: str, options: Options, marker: str, retry: Retry | None = None) -> None:
        self.url, self._marker = url.rstrip("/"), marker
        retry = retry or Retry()
        self._operation = retry.start()
        with _errors(url):
            self._store, path = self._operation.wait_for_client(in_thread(lambda: connect(self.url, options, retry)))
            self._path = path.rstrip("/")
            # New chunks would be read by the old documents.
            if RemoteFolder(self.url, options, Stats(), self._operation).has(marker):
                raise FileExistsError(17, "it holds a model; remove it first, or choose another name")
        self._free = threading.Semaphore(IN_FLIGHT)
        self._failures: list[BaseException] = []
        self._pool = ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="mzstore-upload")

    def write(self, key: str, data: bytes | memoryview) -> None:
        if key == self._marker:
            self._wait()
        self._free.acquire()
        if self._failures:
            self._free.release()
            raise self._failures[0]
        self._pool.submit(self._put, key, bytes(data))

    @contextlib.contextmanager
    def open(self, key: str) -> Iterator[Writable]:
        with RemoteSink.of(f"{self.url}/{key}", self._store, f"{self._path}/{key}", self._operation) as sink:
            yield sink

    def _put(self, key: str, data: bytes) -> None:
        try:
            with _errors(f"{self.url}/{key}"):
                self._store.put(f"{self._path}/{key}", data, self._operation)
        except BaseException as error:
            self._failures.append(error)
        finally:
            self._free.release()

    def settle(self) -> None:
        self._wait()
        if self._failures:
            raise self._failures[0]

    def _wait(self) -> None:
        """Until nothing is on its way."""
        for _ in range(IN_FLIGHT):
            self._free.acquire()
        self._free.release(IN_FLIGHT)

    def _commit(self) -> None:
        self._pool.shutdown()
        if self._failures:
            raise self._failures[0]

    def _abort(self, error: BaseException) -> None:
        self._operation.stop()
        self._pool.shutdown(cancel_futures=True)

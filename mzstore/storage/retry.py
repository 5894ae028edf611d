"""Retry: how often and how long storage is asked again, and which errors are worth it."""

import concurrent.futures
import contextlib
import random
import re
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, InvalidStateError
from dataclasses import dataclass
from typing import Any, TypeVar

from mzstore.errors import StorageError

T = TypeVar("T")
OnBytes = Callable[[memoryview, int], None]  # (an answer, how many of its bytes are there)
MAX_PAUSE = 10.0
# Asking again does not help: it is not there, not allowed, not possible, or the call itself was wrong.
FINAL = (
    FileNotFoundError,
    PermissionError,
    IsADirectoryError,
    NotImplementedError,
    TypeError,
    AttributeError,
    KeyError,
)
FINAL_NAMES = {
    "InvalidPathError", "InvalidURL", "NoCredentialsError", "NotSupportedError", "ParamValidationError",
    "PartialCredentialsError", "ProfileNotFound", "UnknownConfigurationKeyError",
}  # fmt: skip  # of aiohttp, botocore and obstore, whose errors are of no common kind
OBSTORE_STATUS = {
    "NotFoundError": 404,
    "PermissionDeniedError": 403,
    "PreconditionError": 412,
    "UnauthenticatedError": 401,
}
_PASSWORD = re.compile(r"(https?://)[^\s/?'\"@]*@")
_QUERY = re.compile(r"(https?://[^\s?'\"]*)\?[^\s'\"]*")
TRANSIENT_STATUS = {408, 409, 425, 429}  # and all from 500 on


@dataclass(frozen=True, slots=True)
class Retry:
    """Times are in seconds.

    timeout   without a byte of an answer, until an attempt is given up
    attempts  at one request, the first included
    deadline  of a whole operation: to open a model, to load or read from it, to read an asset, to write an object or a
              tree; None: as long as attempts last
    backoff   the first pause between two attempts; each further one is twice as long, at most 10 s, and shortened
              at random by up to half, so that many readers do not return all at once
    """

    timeout: float = 30.0
    attempts: int = 6
    deadline: float | None = None
    backoff: float = 0.2

    def __post_init__(self) -> None:
        if (
            self.timeout <= 0
            or self.attempts < 1
            or self.backoff < 0
            or (self.deadline is not None and self.deadline <= 0)
        ):
            raise ValueError(f"{self}: times are positive, and one attempt is the least")

    def start(self) -> "Operation":
        return Operation(self)


class Operation:
    """One operation on storage, of one or many requests: when it has to be done, and whether it was given up."""

    def __init__(self, retry: Retry) -> None:
        self.retry = retry
        self._end = None if retry.deadline is None else time.monotonic() + retry.deadline
        self._stopped: Future[None] = Future()

    def stop(self) -> None:
        """Give up: whoever waits for a request or for the next attempt at one raises Stopped."""
        with contextlib.suppress(InvalidStateError):  # another thread was first
            self._stopped.set_result(None)

    def sleep(self, seconds: float) -> None:
        self._wait((), seconds)

    def _wait(self, futures: tuple["Future[Any]", ...], seconds: float) -> None:
        """Until one of ``futures`` is done, or for ``seconds``. Raises Stopped, or TimeoutError at the deadline."""
        left = float("inf") if self._end is None else self._end - time.monotonic()
        concurrent.futures.wait((*futures, self._stopped), max(0.0, min(seconds, left)), FIRST_COMPLETED)
        if any(future.done() for future in futures):
            return
        if self._stopped.done():
            raise Stopped
        if left <= seconds:
            raise TimeoutError(f"the deadline of {self.retry.deadline} s has passed")

    def wait_for_client(self, future: "Future[T]") -> T:
        """What ``future`` makes, a client. Raises TimeoutError if it takes as long as no request may be silent."""
        try:
            return self._result(future, Attempt())
        except TimeoutError as error:
            raise TimeoutError(f"its client is not ready, which may look for credentials: {error}") from error

    def run(self, start: Callable[["Attempt"], "Future[T]"], doing: str, on_bytes: OnBytes | None = None) -> T:
        """What the request that ``start`` begins gives, after as many attempts as it takes.

        ``doing`` says what is done to what, for the StorageError if it fails for good: "read 's3://...', bytes 5-9".
        ``on_bytes`` is told, by another thread, of what has come so far of one attempt, and then perhaps of another.
        """
        for number in range(1, self.retry.attempts + 1):
            attempt = Attempt(on_bytes)
            try:
                return self._result(start(attempt), attempt)
            except TimeoutError as error:
                if self._end is not None and time.monotonic() >= self._end:
                    raise StorageError(f"cannot {doing}: {reason(error)}") from error
                last: Exception = error
            except Stopped:
                raise
            except Exception as error:
                if not is_transient(error):
                    raise StorageError(f"cannot {doing}: {reason(error)}") from error
                last = error
            if number < self.retry.attempts:
                try:
                    self.sleep(
                        min(MAX_PAUSE, self.retry.backoff * 2.0 ** min(number - 1, 100)) * random.uniform(0.5, 1)
                    )
                except TimeoutError as error:
                    raise StorageError(f"cannot {doing}: {error}; before that: {reason(last)}") from last
        raise StorageError(f"cannot {doing}: {reason(last)} ({self.retry.attempts} attempts)") from last

    def _result(self, future: "Future[T]", attempt: "Attempt") -> T:
        try:
            while not future.done():
                left = self.retry.timeout - attempt.quiet()
                if left <= 0:
                    raise TimeoutError(f"no byte for {self.retry.timeout:g} s")
                self._wait((future,), left)
            return future.result()
        finally:
            future.cancel()


class Attempt:
    """Whoever receives bytes says so, so that a slow answer is not taken for none, and what is there can be used."""

    def __init__(self, on_bytes: OnBytes | None = None) -> None:
        self.allowance = 0.0  # seconds in which no answer can be expected, because something is sent
        self._on_bytes = on_bytes
        self._waits = False
        self._last_byte = time.monotonic()

    def wait(self) -> None:
        """It is not its turn yet, so that no time of its own passes."""
        self._waits = True

    def begin(self) -> None:
        self._last_byte, self._waits = time.monotonic(), False

    def quiet(self) -> float:
        """Seconds in which something should have come, and nothing has."""
        return 0.0 if self._waits else time.monotonic() - self._last_byte - self.allowance

    def received(self, data: memoryview | None = None, done: int = 0) -> None:
        """Something came; the first ``done`` bytes of ``data`` are those of the answer."""
        self._last_byte, self.allowance = time.monotonic(), 0.0
        if self._on_bytes and data is not None:
            self._on_bytes(data, done)


class Stopped(BaseException):
    """The operation was given up by another thread, which has the error."""


class Transient(OSError):
    """An answer that is wrong in a way that another attempt may put right."""


class Changed(OSError):
    """The object is not the one that was opened."""


class TooLarge(OSError):
    """The object is larger than anybody wants to read."""


def reason(error: BaseException) -> str:
    """What went wrong, in the words of the system or of the backend; never empty."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    text = without_secrets(text.partition("Debug source:")[0])  # obstore adds all fields of the error
    return " ".join(text.split())[:500] or type(error).__name__


def without_secrets(text: str) -> str:
    """``text`` with neither the password nor the query of a URL of the web in it: that may be a signature."""
    return _QUERY.sub(r"\1?...", _PASSWORD.sub(r"\1", text))


def is_transient(error: BaseException) -> bool:
    """Whether another attempt may succeed."""
    if isinstance(error, (*FINAL, Changed, TooLarge)):
        return False
    status = status_of(error)
    if status is not None:
        return (status >= 500 and status != 501) or status in TRANSIENT_STATUS
    return type(error).__name__ not in FINAL_NAMES


def status_of(error: BaseException) -> int | None:
    """The HTTP status behind an error of aiohttp, botocore, obstore, azure, gcsfs, requests or httpx; None if it has none."""
    module = type(error).__module__
    if module == "aiohttp.http_exceptions":  # of an answer that broke off, which has 400 as its ``code``
        return None
    answer = getattr(error, "response", None)
    found = (
        answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if isinstance(answer, dict)
        else getattr(answer, "status_code", None)
    )
    if module.startswith("obstore"):
        match = re.search(r"status code: (\d{3})", str(error))
        found = int(match[1]) if match else OBSTORE_STATUS.get(type(error).__name__)
    names = ("status",) if module.startswith("aiohttp") else ("status", "status_code", "code")
    for value in (found, *(getattr(error, name, None) for name in names)):
        number = int(value) if isinstance(value, str) and re.fullmatch("[0-9]{3}", value) else value  # gcsfs has both
        if isinstance(number, int) and 100 <= number < 600:
            return number
    return status_of(error.__cause__) if error.__cause__ else None

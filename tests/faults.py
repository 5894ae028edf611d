"""Servers for tests: an HTTP server of ranges whose objects can change, and a proxy that makes faults on demand.

Both are threads of this process. The proxy stands in front of any HTTP server; a rule says which of the requests are
to fail, and how:

    with ObjectServer({"/model.mz": data}) as server, FaultProxy(server.url) as proxy:
        proxy.fail(faults.status(503), method="GET", key="model.mz", skip=1, times=2)
"""

import hashlib
import http.client
import os
import re
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

HOP_BY_HOP = {"connection", "expect", "keep-alive", "transfer-encoding"}


@dataclass(frozen=True, slots=True)
class Request:
    """What a server was asked for. ``key`` is the path, decoded, without the query."""

    method: str
    key: str
    query: str
    range: str  # the header as it is: bytes=0-99, bytes=-500; "" for all
    time: float = field(default_factory=time.monotonic, compare=False)

    @property
    def span(self) -> tuple[int, int] | None:
        """(start, stop) of the bytes asked for; None for all of them, or the last of them."""
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.range)
        return (int(match[1]), int(match[2]) + 1) if match else None

    @property
    def lists(self) -> bool:
        """Whether it asks an S3 server for a listing."""
        return self.method == "GET" and bool(re.search(r"(^|&)(list-type|prefix|delimiter)=", self.query))


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""

    def header(self, name: str) -> str:
        return next((value for key, value in self.headers if key.lower() == name.lower()), "")

    def with_body(self, body: bytes) -> "Answer":
        """The same with another body, and its length as Content-Length."""
        kept = tuple((key, value) for key, value in self.headers if key.lower() != "content-length")
        return Answer(self.status, (*kept, ("Content-Length", str(len(body)))), body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256
    owner: Any

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is nothing to print."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # answers "Expect: 100-continue" by itself
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None: ...  # noqa: A002  the name is that of the base class

    def handle_any(self) -> None:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            raise NotImplementedError("a request body in HTTP chunks")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        url = urlsplit(self.path)
        request = Request(self.command, unquote(url.path), url.query, self.headers.get("Range", ""))
        self.server.owner.answer(Exchange(self, request, body))  # type: ignore[attr-defined]

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any


class Exchange:
    """A request that waits for its answer."""

    def __init__(self, handler: _Handler, request: Request, body: bytes) -> None:
        self._handler, self.request, self.body = handler, request, body
        self.headers: tuple[tuple[str, str], ...] = tuple(handler.headers.items())
        self.target = handler.path
        self.released = threading.Event()  # a stall ends with it

    def header(self, name: str) -> str | None:
        return self._handler.headers.get(name)  # type: ignore[no-any-return]

    def send(self, answer: Answer, most: int | None = None) -> None:
        """The answer; of its body at most ``most`` bytes, whatever the headers say."""
        self._handler.send_response_only(answer.status)
        for name, value in answer.headers:
            self._handler.send_header(name, value)
        self._handler.end_headers()
        if self.request.method != "HEAD":
            self._handler.wfile.write(answer.body[:most])

    def send_more(self, data: bytes) -> None:
        """More of a body that ``send`` did not send to its end."""
        self._handler.wfile.write(data)

    def hang_up(self) -> None:
        """Close the connection in an orderly way."""
        self._handler.close_connection = True

    def reset(self) -> None:
        """Close the connection by a TCP reset."""
        self._handler.close_connection = True
        self._handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self._handler.connection.detach())


class _Running:
    """A server in a thread of its own, between ``__enter__`` and ``__exit__``."""

    def __init__(self) -> None:
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.owner = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._requests: list[Request] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def requests(self, method: str = "", key: str = "") -> list[Request]:
        """Those that arrived since the last ``forget``, of this method, with ``key`` as part of the path."""
        return [request for request in list(self._requests) if method in ("", request.method) and key in request.key]

    def forget(self) -> None:
        self._requests.clear()

    def answer(self, exchange: Exchange) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class ObjectServer(_Running):
    """Objects by path, as a web server gives them: GET and HEAD, one range, ETag and If-Match.

    ``objects`` may be changed at any time. ``tags`` says by what one version is told from the next: a ``strong`` or a
    ``weak`` ETag, or only a ``date``, which here follows from the content; or by nothing, ``none``.
    """

    def __init__(self, objects: Mapping[str, bytes] | None = None, tags: str = "strong") -> None:
        super().__init__()
        self.objects, self._tags = dict(objects or {}), tags
        self.nbytes = 0  # sent in bodies; approximate while requests are under way

    def answer(self, exchange: Exchange) -> None:
        self._requests.append(exchange.request)
        answer = self._answer(exchange)
        self.nbytes += len(answer.body) if exchange.request.method != "HEAD" else 0
        exchange.send(answer)

    def _answer(self, exchange: Exchange) -> Answer:
        request = exchange.request
        if request.method not in ("GET", "HEAD"):
            return plain(405)
        data = self.objects.get(request.key)
        if data is None:
            return plain(404)
        tag = etag(data)
        if exchange.header("If-Match") not in (None, "*", tag if self._tags == "strong" else "*"):
            return plain(412)
        span = _resolve(request.range, len(data))
        version = {
            "strong": ("ETag", tag),
            "weak": ("ETag", f"W/{tag}"),
            "date": ("Last-Modified", formatdate(zlib.crc32(data), usegmt=True)),
            "none": ("Server", "a test"),
        }[self._tags]
        headers = (("Accept-Ranges", "bytes"), version, ("Content-Type", "application/octet-stream"))
        if span is None:
            return Answer(200, headers).with_body(data)
        start, stop = span
        if start >= stop:
            return Answer(416, (("Content-Range", f"bytes */{len(data)}"),)).with_body(b"")
        content_range = ("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        return Answer(206, (*headers, content_range)).with_body(data[start:stop])


def etag(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'


def plain(status: int) -> Answer:
    return Answer(status, (("Content-Type", "text/plain"),)).with_body(http.client.responses[status].encode())


def _resolve(header: str, nbytes: int) -> tuple[int, int] | None:
    """(start, stop) of the one range that ``header`` asks for; None if it asks for none, as far as one understands."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header)
    if match is None or match[0] == "bytes=-":
        return None
    if not match[1]:
        return max(0, nbytes - int(match[2])), nbytes
    return int(match[1]), min(nbytes, int(match[2]) + 1) if match[2] else nbytes


# The proxy

Fault = Callable[[Exchange, "FaultProxy"], None]


@dataclass(slots=True)
class Rule:
    """Which requests meet ``fault``: of those that match, not the first ``skip``, then ``times`` of them, or all."""

    fault: Fault
    method: str
    key: str
    covers: int | None
    skip: int
    times: int | None
    met: int = 0  # how many requests have met the fault

    def matches(self, request: Request) -> bool:
        span = request.span
        return (
            self.method in ("", request.method)
            and re.search(self.key, f"{request.key}?{request.query}") is not None
            and (self.covers is None or (span is not None and span[0] <= self.covers < span[1]))
        )

    def takes(self, request: Request) -> bool:
        """Whether the fault happens to this request; counts it."""
        if not self.matches(request) or (self.times is not None and self.met >= self.times):
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.met += 1
        return True


class FaultProxy(_Running):
    """Passes requests on to the server at ``upstream``, but for those that a rule is about."""

    def __init__(self, upstream: str) -> None:
        super().__init__()
        self._upstream = urlsplit(upstream).netloc
        self._rules: list[Rule] = []
        self._lock = threading.Lock()
        self._released = threading.Event()

    def fail(
        self,
        fault: Fault,
        *,
        method: str = "GET",
        key: str = "",
        covers: int | None = None,
        skip: int = 0,
        times: int | None = None,
    ) -> Rule:
        """Add a rule. Of several that match, the first that is not used up counts.

        method  GET, PUT, ...; "" for any
        key     regular expression, searched for in path?query
        covers  only ranges with this byte
        skip    so many matching requests pass before
        times   how often; None for always
        """
        rule = Rule(fault, method, key, covers, skip, times)
        with self._lock:
            self._rules.append(rule)
        return rule

    def mend(self) -> None:
        """No more faults; what stalls is hung up."""
        with self._lock:
            self._rules.clear()
            self._released.set()
            self._released = threading.Event()

    def answer(self, exchange: Exchange) -> None:
        with self._lock:
            self._requests.append(exchange.request)
            rule = next((rule for rule in self._rules if rule.takes(exchange.request)), None)
            exchange.released = self._released
        if rule:
            rule.fault(exchange, self)
        else:
            exchange.send(self.forward(exchange))

    def forward(self, exchange: Exchange) -> Answer:
        """What the server says to the request."""
        connection = http.client.HTTPConnection(self._upstream, timeout=60)
        try:
            connection.putrequest(exchange.request.method, exchange.target, skip_host=True, skip_accept_encoding=True)
            for name, value in exchange.headers:
                if name.lower() not in HOP_BY_HOP:
                    connection.putheader(name, value)
            connection.putheader("Connection", "close")
            connection.endheaders(exchange.body or None)
            response = connection.getresponse()
            body = response.read()
            headers = tuple((name, value) for name, value in response.getheaders() if name.lower() not in HOP_BY_HOP)
        finally:
            connection.close()
        answer = Answer(response.status, headers, body)
        # Of a HEAD the length is that of the body that a GET would have.
        return answer if exchange.request.method == "HEAD" or response.status == 204 else answer.with_body(body)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.mend()
        super().__exit__(kind, error, trace)


S3_CODES = {
    400: "ExpiredToken",
    403: "AccessDenied",
    404: "NoSuchKey",
    409: "ConditionalRequestConflict",
    412: "PreconditionFailed",
    429: "TooManyRequests",
    500: "InternalError",
    503: "SlowDown",
}


def status(number: int, code: str = "") -> Fault:
    """An error as S3 answers it; the server does not see the request."""
    code = code or S3_CODES[number]
    text = (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>made by a test</Message></Error>'
    )
    answer = Answer(number, (("Content-Type", "application/xml"),)).with_body(text.encode())

    def fault(exchange: Exchange, proxy: FaultProxy) -> None:
        exchange.send(answer)

    return fault


def reset_before(exchange: Exchange, proxy: FaultProxy) -> None:
    """The connection is reset instead of an answer."""
    exchange.reset()


def reset_within(exchange: Exchange, proxy: FaultProxy) -> None:
    """The connection is reset in the middle of the body."""
    answer = proxy.forward(exchange)
    exchange.send(answer, most=len(answer.body) // 2)
    exchange.reset()


def cut_short(exchange: Exchange, proxy: FaultProxy) -> None:
    """The connection ends in the middle of the body; Content-Length gives the cut away."""
    answer = proxy.forward(exchange)
    exchange.send(answer, most=len(answer.body) // 2)
    exchange.hang_up()


def cut_to_fit(exchange: Exchange, proxy: FaultProxy) -> None:
    """Half of the body, with a Content-Length that fits the half."""
    answer = proxy.forward(exchange)
    exchange.send(answer.with_body(answer.body[: len(answer.body) // 2]))


def stall_before(exchange: Exchange, proxy: FaultProxy) -> None:
    """No answer, and the connection stays open."""
    exchange.released.wait()
    exchange.hang_up()


def stall_within(exchange: Exchange, proxy: FaultProxy) -> None:
    """The answer stops in the middle of the body, and the connection stays open."""
    answer = proxy.forward(exchange)
    exchange.send(answer, most=len(answer.body) // 2)
    exchange.released.wait()
    exchange.hang_up()


def flipped(exchange: Exchange, proxy: FaultProxy) -> None:
    """One bit in the middle of the body is another."""
    answer = proxy.forward(exchange)
    body = bytearray(answer.body)
    body[len(body) // 2] ^= 4
    exchange.send(answer.with_body(bytes(body)))


def lost(exchange: Exchange, proxy: FaultProxy) -> None:
    """The request takes effect, the answer is lost."""
    proxy.forward(exchange)
    exchange.reset()


def whole_object(data: bytes) -> Fault:
    """All of the object, which is ``data``, for any range of it."""

    def fault(exchange: Exchange, proxy: FaultProxy) -> None:
        exchange.send(Answer(200, (("ETag", etag(data)),)).with_body(data))

    return fault


def other_range(data: bytes) -> Fault:
    """As many bytes of the object, which is ``data``, as were asked for, but others, as Content-Range says."""

    def fault(exchange: Exchange, proxy: FaultProxy) -> None:
        span = _resolve(exchange.request.range, len(data))
        assert span is not None, "the request asks for a range"
        start = span[0] - 1 if span[0] else 1
        body = data[start:][: span[1] - span[0]]
        content_range = ("Content-Range", f"bytes {start}-{start + len(body) - 1}/{len(data)}")
        exchange.send(Answer(206, (content_range, ("ETag", etag(data)))).with_body(body))

    return fault

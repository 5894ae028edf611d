"""A slow link on loopback: a TCP proxy in a process of its own, with a rate that all connections share and a round trip.

    with Link(port) as link:
        link.set(gbit_per_s=1, rtt_ms=20)
        ... use link.endpoint ...
        counts = link.counts()

What the server sends passes one queue at the link's rate; what the client sends has no limit but the latency. Nothing
arrives earlier than half a round trip after it was sent, on a new connection another round trip later; data on its way
does not wait for other data. A link as TCP sees it has losses, slow start and headers as well: not here.

It is a proxy because network emulation of the kernel (tc netem) is not there on every machine, and needs root.
"""

import collections
import contextlib
import json
import select
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self

HOST = "127.0.0.1"
BLOCK = 1 << 18
# A block takes at most this long on the link, so that connections share it finely.
BLOCK_SECONDS = 0.001
# What the server sent is taken so far ahead of its turn on the link, so that a late wake-up leaves no gap.
AHEAD_SECONDS = 0.004
WINDOW = 16 << 20  # bytes of one connection on their way: above rate times latency
FOREVER = 3600.0
REQUEST = b" HTTP/1.1\r\n"


class Link:
    """The link to ``port`` of loopback; its process runs while the ``with`` block does."""

    def __init__(self, port: int) -> None:
        self._upstream = port

    @property
    def endpoint(self) -> str:
        return f"http://{HOST}:{self.port}"

    def set(self, *, gbit_per_s: float, rtt_ms: float) -> None:
        """For connections that are made from now on, and for the rate of all."""
        self._ask({"rate": gbit_per_s * 1e9 / 8, "rtt": rtt_ms / 1e3})

    def counts(self) -> dict[str, int]:
        """Since the last call: ``connections``, HTTP ``requests``, ``nbytes`` to the client."""
        return self._ask({})

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(self._upstream)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            self.port: int = self._answer()["port"]
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._process:
            self._process.kill()

    def _ask(self, question: dict[str, float]) -> dict[str, int]:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, int]:
        assert self._process.stdout
        return json.loads(self._process.stdout.readline())  # type: ignore[no-any-return]


class End:
    """One socket of a connection, and whether it would block: epoll tells when that changes, not how it is."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket, self.readable, self.writable = sock, True, True


@dataclass(slots=True)
class Way:
    """One direction of a connection."""

    source: End
    target: End
    delay: float
    not_before: float  # of the first arrival
    limited: bool
    queue: "collections.deque[tuple[float, memoryview, bytearray]]"
    queued: int = 0
    sees_end: bool = False  # the source has ended
    ended: bool = False  # and the target knows


class Shaper:
    """The loop. All state is that of one thread."""

    def __init__(self, upstream: int) -> None:
        self._upstream = upstream
        self._rate, self._rtt, self._free_at = 1e9, 0.0, 0.0
        self._counts = {"connections": 0, "requests": 0, "nbytes": 0}
        self._ends: dict[int, End] = {}
        self._ways: collections.deque[tuple[Way, Way]] = collections.deque()
        self._spare: list[bytearray] = []
        self._poll = select.epoll()
        self._listener = socket.create_server((HOST, 0), backlog=512)
        self._listener.setblocking(False)
        self._poll.register(self._listener, select.EPOLLIN)
        self._poll.register(sys.stdin, select.EPOLLIN)
        print(json.dumps({"port": self._listener.getsockname()[1]}), flush=True)

    def run(self) -> None:
        while True:
            self._events(self._move())

    def _events(self, wait: float) -> None:
        for fd, event in self._poll.poll(wait):
            if fd == self._listener.fileno():
                self._accept()
            elif fd == sys.stdin.fileno():
                self._control()
            elif end := self._ends.get(fd):
                end.readable |= bool(event & ~select.EPOLLOUT)
                end.writable |= bool(event & ~select.EPOLLIN)

    def _control(self) -> None:
        line = sys.stdin.readline()
        if not line:
            sys.exit(0)  # whoever started this is gone
        question = json.loads(line)
        self._rate, self._rtt = question.get("rate", self._rate), question.get("rtt", self._rtt)
        print(json.dumps(self._counts), flush=True)
        self._counts = dict.fromkeys(self._counts, 0)

    def _accept(self) -> None:
        client = self._listener.accept()[0]
        server = socket.create_connection((HOST, self._upstream))
        ends = []
        for sock in (client, server):
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            ends.append(End(sock))
            self._ends[sock.fileno()] = ends[-1]
            self._poll.register(sock, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
        half = self._rtt / 2
        begin = time.monotonic() + self._rtt + half  # the handshake took a round trip
        up = Way(ends[0], ends[1], half, begin, False, collections.deque())
        down = Way(ends[1], ends[0], half, begin, True, collections.deque())
        self._ways.append((up, down))
        self._counts["connections"] += 1

    def _move(self) -> float:
        """Take and deliver what can be; the seconds until there is more to do without an event."""
        wake = time.monotonic() + FOREVER
        for pair in list(self._ways):
            try:
                for way in pair:
                    wake = min(wake, self._take(way))
                    wake = min(wake, self._deliver(way))
                closed = pair[0].ended and pair[1].ended
            except OSError:  # a reset: both sides see the end
                closed = True
            if closed:
                self._ways.remove(pair)
                for end in (pair[0].source, pair[0].target):
                    del self._ends[end.socket.fileno()]
                    end.socket.close()
        self._ways.rotate(-1)  # nobody is always the first
        return max(0.0, wake - time.monotonic())

    def _take(self, way: Way) -> float:
        """Read once from the source, if it has something and there is room; when to come again."""
        now = time.monotonic()
        if not way.source.readable or way.sees_end or way.queued > WINDOW:
            return now + FOREVER
        ahead = self._free_at - AHEAD_SECONDS
        if way.limited and ahead > now:
            return ahead
        buffer = self._spare.pop() if self._spare else bytearray(BLOCK)
        most = min(BLOCK, max(4096, int(self._rate * BLOCK_SECONDS))) if way.limited else BLOCK
        try:
            count = way.source.socket.recv_into(buffer, most)
        except BlockingIOError:
            way.source.readable = False
            self._spare.append(buffer)
            return now + FOREVER
        if way.limited:
            self._free_at = max(self._free_at, now) + count / self._rate
            self._counts["nbytes"] += count
            due = self._free_at + way.delay
        else:
            self._counts["requests"] += buffer.count(REQUEST, 0, count)
            due = max(now + way.delay, way.not_before)
        way.sees_end = not count
        way.queue.append((due, memoryview(buffer)[:count], buffer))
        way.queued += count
        return now

    def _deliver(self, way: Way) -> float:
        """Send what is due, as much as the target takes; when the next is due."""
        now = time.monotonic()
        while way.queue and way.target.writable:
            due, data, buffer = way.queue[0]
            if due > now:
                return due
            if data:
                try:
                    count = way.target.socket.send(data)
                except BlockingIOError:
                    way.target.writable = False
                    break
                way.queued -= count
                if count < len(data):
                    way.queue[0] = (due, data[count:], buffer)
                    continue
            else:
                way.ended = True
                with contextlib.suppress(OSError):
                    way.target.socket.shutdown(socket.SHUT_WR)
            way.queue.popleft()
            self._spare.append(buffer)
        return now + FOREVER


if __name__ == "__main__":
    Shaper(int(sys.argv[1])).run()

"""Fetch: carry out the requests of a plan, many at a time, and hand over each batch as soon as its answers are there.

Knows neither encodings nor kernels. What is in flight or waits to be decoded is bounded by bytes.
"""

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from mzstore.extents import Request
from mzstore.plan import IN_FLIGHT_NBYTES, Batch
from mzstore.stats import Stats
from mzstore.storage import Operation

CONNECTIONS = 16  # requests at a time

Answers = dict[Request, memoryview]


def run(
    batches: Iterable[Batch],
    read: Callable[[Request, Operation], memoryview],
    consume: Callable[[Batch, Answers], None],
    operation: Operation,
    threads: int,
    stats: Stats,
) -> None:
    """``consume`` every batch, in ``threads``, with the answers that ``read`` gives. The first error ends the rest."""
    batches = list(batches)
    if len(batches) == 1 and len(batches[0].requests) == 1:  # threads would take longer than they save
        began = time.perf_counter()
        answers = {request: read(request, operation) for request in batches[0].requests}
        stats.add(seconds_waiting=time.perf_counter() - began)
        consume(batches[0], answers)
        return
    _Run(read, consume, operation, stats).all(batches, threads)


class _Run:
    """One run, and what its threads share."""

    def __init__(
        self,
        read: Callable[[Request, Operation], memoryview],
        consume: Callable[[Batch, Answers], None],
        operation: Operation,
        stats: Stats,
    ) -> None:
        self._read, self._consume, self._operation, self._stats = read, consume, operation, stats
        self._changed = threading.Condition()
        self._in_flight = 0  # bytes
        self._arrived: dict[int, Answers] = {}  # of batches that wait for more, by position
        self._fetching = self._decoding = 0
        self._idle_since: float | None = None
        self._error: BaseException | None = None

    def all(self, batches: list[Batch], threads: int) -> None:
        n_requests = sum(len(batch.requests) for batch in batches)
        with (
            ThreadPoolExecutor(min(CONNECTIONS, n_requests), "mzstore-fetch") as fetchers,
            ThreadPoolExecutor(threads, "mzstore-decode") as decoders,
        ):
            try:
                for i, batch in enumerate(batches):
                    self._admit(batch)
                    for request in batch.requests:
                        fetchers.submit(self._fetch, i, batch, request, decoders)
                with self._changed:
                    self._changed.wait_for(lambda: self._error or not (self._fetching or self._decoding))
            except BaseException as error:  # KeyboardInterrupt, for one
                self._fail(error)
            finally:
                if self._error:
                    fetchers.shutdown(wait=True, cancel_futures=True)
                    decoders.shutdown(wait=True, cancel_futures=True)
        if self._error:
            raise self._error

    def _admit(self, batch: Batch) -> None:
        """Wait until ``batch`` may be in flight: always, if it is alone."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._error or not self._in_flight or self._in_flight + batch.nbytes <= IN_FLIGHT_NBYTES
            )
            if self._error:
                raise self._error
            self._in_flight += batch.nbytes
            self._fetching += len(batch.requests)
            self._look_at_the_clock()

    def _fetch(self, i: int, batch: Batch, request: Request, decoders: ThreadPoolExecutor) -> None:
        try:
            answer = self._read(request, self._operation)
            with self._changed:
                answers = self._arrived.setdefault(i, {})
                answers[request] = answer
                self._fetching -= 1
                if len(answers) == len(batch.requests):
                    self._decoding += 1
                    if not self._error:
                        decoders.submit(self._decode, batch, self._arrived.pop(i))
                self._look_at_the_clock()
        except BaseException as error:
            self._fail(error)

    def _decode(self, batch: Batch, answers: Answers) -> None:
        try:
            self._consume(batch, answers)
            answers.clear()
            with self._changed:
                self._decoding -= 1
                self._in_flight -= batch.nbytes
                self._look_at_the_clock()
                self._changed.notify_all()
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            if self._error is None:
                self._error = error
            self._changed.notify_all()
        self._operation.stop()

    def _look_at_the_clock(self) -> None:
        """Count the time in which there is something to wait for and nothing to decode."""
        now, idle = time.perf_counter(), self._fetching > 0 and self._decoding == 0
        if self._idle_since is not None and not idle:
            self._stats.add(seconds_waiting=now - self._idle_since)
        self._idle_since = (self._idle_since or now) if idle else None

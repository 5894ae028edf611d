"""Fetch: carry out the requests of a plan, many at a time, and hand over what they bring while it arrives.

Knows neither encodings nor kernels. What is in flight or waits to be decoded is bounded by bytes.
"""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

from mzstore.extents import Request
from mzstore.plan import IN_FLIGHT_NBYTES, Batch, Unit
from mzstore.stats import Stats
from mzstore.storage import OnBytes, Operation

CONNECTIONS = 16  # requests at a time
STEP_NBYTES = 1 << 20  # of an answer are handed over at once, while the rest is on its way

Answers = dict[Request, memoryview]
Consume = Callable[[Batch, Sequence[Unit], Answers], None]


class Read(Protocol):
    def __call__(self, request: Request, operation: Operation, on_bytes: OnBytes | None = None) -> memoryview: ...


def run(
    batches: Iterable[Batch], read: Read, consume: Consume, operation: Operation, threads: int, stats: Stats
) -> None:
    """``consume`` the units of every batch, in ``threads``, from the answers that ``read`` gives.

    The first error ends the rest.
    """
    batches = list(batches)
    if len(batches) == 1 and len(batches[0].requests) == len(batches[0].units) == 1:  # threads would take longer
        began = time.perf_counter()
        answers = {request: read(request, operation) for request in batches[0].requests}
        stats.add(seconds_waiting=time.perf_counter() - began)
        consume(batches[0], batches[0].units, answers)
        return
    _Run(read, consume, operation, stats).all(batches, threads)


@dataclass(slots=True)
class _Arrival:
    """A batch on its way."""

    batch: Batch
    answers: Answers = field(default_factory=dict)
    begun: int = 0  # units that were handed over
    reached: int = 0  # up to where, in the object
    open: int = 0  # groups of units at work


class _Run:
    """One run, and what its threads share."""

    def __init__(self, read: Read, consume: Consume, operation: Operation, stats: Stats) -> None:
        self._read, self._consume, self._operation, self._stats = read, consume, operation, stats
        self._changed = threading.Condition()
        self._in_flight = 0  # bytes
        self._batches = 0  # in flight
        self._fetching = self._decoding = 0
        self._idle_since: float | None = None
        self._error: BaseException | None = None

    def all(self, batches: list[Batch], threads: int) -> None:
        n_requests = sum(len(batch.requests) for batch in batches)
        with (
            ThreadPoolExecutor(threads, "mzstore-decode") as decoders,
            ThreadPoolExecutor(min(CONNECTIONS, n_requests), "mzstore-fetch") as fetchers,
        ):
            try:
                for batch in batches:
                    self._admit(batch)
                    arrival = _Arrival(batch)
                    for request in batch.requests:
                        fetchers.submit(self._fetch, arrival, request, decoders)
                with self._changed:
                    self._changed.wait_for(lambda: self._error or not self._batches)
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
            self._batches += 1
            self._fetching += len(batch.requests)
            self._look_at_the_clock()

    def _fetch(self, arrival: _Arrival, request: Request, decoders: ThreadPoolExecutor) -> None:
        def partly(data: memoryview, done: int) -> None:
            with self._changed:
                if done < len(data):  # else the answer itself is about to come
                    self._hand_over(arrival, request.start + done, {request: data}, decoders)

        try:
            answer = self._read(request, self._operation, partly if len(arrival.batch.requests) == 1 else None)
            with self._changed:
                arrival.answers[request] = answer
                self._fetching -= 1
                if len(arrival.answers) == len(arrival.batch.requests):
                    self._hand_over(arrival, None, arrival.answers, decoders)
                self._look_at_the_clock()
        except BaseException as error:
            self._fail(error)

    def _hand_over(
        self, arrival: _Arrival, reached: int | None, answers: Answers, decoders: ThreadPoolExecutor
    ) -> None:
        """Have the units decoded that have come whole; ``reached`` is None when all have."""
        units, begun = arrival.batch.units, arrival.begun
        if self._error or (reached is not None and reached - arrival.reached < STEP_NBYTES):
            return
        end = len(units) if reached is None else begun
        while reached is not None and end < len(units) and units[end].stop <= reached:
            end += 1
        if reached is None or end > begun:
            arrival.begun, arrival.reached = end, arrival.reached if reached is None else units[end - 1].stop
            arrival.open += 1
            self._decoding += 1
            self._look_at_the_clock()
            decoders.submit(self._decode, arrival, units[begun:end], answers)

    def _decode(self, arrival: _Arrival, units: Sequence[Unit], answers: Answers) -> None:
        try:
            if not self._error:
                self._consume(arrival.batch, units, answers)
            with self._changed:
                arrival.open -= 1
                self._decoding -= 1
                if not arrival.open and len(arrival.answers) == len(arrival.batch.requests):
                    arrival.answers.clear()
                    self._in_flight -= arrival.batch.nbytes
                    self._batches -= 1
                    self._changed.notify_all()
                self._look_at_the_clock()
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

"""Fetch: everything is read and handed over once, within the budget, and the first error ends it all."""

import _thread
import itertools
import threading

import numpy as np
import pytest

from mzstore import fetch
from mzstore.extents import Request
from mzstore.plan import Batch, Unit
from mzstore.stats import Stats
from mzstore.storage import Operation, Retry
from mzstore.storage.retry import Stopped

NBYTES = 4000  # of a request
DATA = np.random.default_rng(0).integers(0, 256, 64 * NBYTES, dtype=np.uint8).tobytes()
SECONDS = 30  # that a thread waits for another; a test that needs them fails


@pytest.fixture(autouse=True)
def small_steps(monkeypatch):
    monkeypatch.setattr(fetch, "STEP_NBYTES", 1)


def batch(number: int, n_units: int = 1, n_requests: int = 1) -> Batch:
    """Bytes ``[number * NBYTES, (number + 1) * NBYTES)``; the "jobs" of a unit are the bounds of its bytes."""

    def bounds(count: int) -> list[tuple[int, int]]:
        cuts = [number * NBYTES + i * NBYTES // count for i in range(count + 1)]
        return list(itertools.pairwise(cuts))

    requests = tuple(Request("", *cut) for cut in bounds(n_requests))
    units = tuple(Unit(stop, ((start, stop),)) for start, stop in bounds(n_units))
    return Batch(requests, {}, units, NBYTES)


def part(request: Request) -> memoryview:
    return memoryview(DATA)[request.start : request.stop]


class Consumer:
    """Writes down which units came, and that their bytes were there."""

    def __init__(self) -> None:
        self.units: list[tuple[int, int]] = []
        self.changed = threading.Condition()

    def __call__(self, batch, units, answers) -> None:
        for unit in units:
            for start, stop in unit.jobs:
                assert b"".join(piece(answers, start, stop)) == DATA[start:stop]
                with self.changed:
                    self.units.append((start, stop))
                    self.changed.notify_all()

    def wait_for(self, count: int) -> bool:
        with self.changed:
            return self.changed.wait_for(lambda: len(self.units) >= count, SECONDS)


def piece(answers, start, stop):
    for request in sorted(answers, key=lambda request: request.start):
        first, last = max(start, request.start), min(stop, request.stop)
        if first < last:
            yield answers[request][first - request.start : last - request.start]


def all_units(batches) -> list[tuple[int, int]]:
    return [bounds for each in batches for unit in each.units for bounds in unit.jobs]


def run(batches, read, consume, threads=3, stats=None, operation=None) -> None:
    fetch.run(batches, read, consume, operation or Retry().start(), threads, stats or Stats())


def plain(request: Request, operation: Operation, on_bytes=None) -> memoryview:
    return part(request)


def hang(operation: Operation) -> None:
    """As a request that is never answered."""
    operation.sleep(SECONDS)
    raise AssertionError("nobody has stopped it")


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize(("n_units", "n_requests"), [(1, 1), (5, 1), (1, 5), (3, 2)])
@pytest.mark.parametrize("n_batches", [1, 2, 40])
def test_every_unit_is_handed_over_once(n_batches, n_units, n_requests, threads):
    batches = [batch(i, n_units, n_requests) for i in range(n_batches)]
    consumer = Consumer()
    run(batches, plain, consumer, threads)
    assert sorted(consumer.units) == all_units(batches)


def test_one_small_read_needs_no_thread():
    threads = []

    def read(request, operation, on_bytes=None):
        threads.append(threading.current_thread())
        return part(request)

    run([batch(0)], read, lambda *_: threads.append(threading.current_thread()))
    assert threads == [threading.current_thread()] * 2


def test_a_batch_of_no_byte_does_not_stop_the_rest():
    empty = Batch((Request("", 5, 5),), {}, (Unit(5, ((5, 5),)),), 0)
    consumer = Consumer()
    run([batch(0), empty, batch(1)], plain, consumer)
    assert sorted(consumer.units) == [(0, NBYTES), (5, 5), (NBYTES, 2 * NBYTES)]


def test_requests_are_under_way_at_the_same_time():
    together = threading.Barrier(fetch.CONNECTIONS, timeout=SECONDS)

    def read(request, operation, on_bytes=None):
        together.wait()
        return part(request)

    consumer = Consumer()
    run([batch(i) for i in range(2 * fetch.CONNECTIONS)], read, consumer)
    assert len(consumer.units) == 2 * fetch.CONNECTIONS


def test_the_budget(monkeypatch):
    """What is asked for and not yet decoded stays within it; what is larger comes alone."""
    monkeypatch.setattr(fetch, "IN_FLIGHT_NBYTES", 3 * NBYTES)
    large = Batch((Request("", 0, 8 * NBYTES),), {}, (Unit(8 * NBYTES, ((0, 8 * NBYTES),)),), 8 * NBYTES)
    batches = [*(batch(i) for i in range(8, 20)), large, *(batch(i) for i in range(20, 30))]
    lock, held, most, with_large = threading.Lock(), [], 0, []
    consumer = Consumer()

    def read(request, operation, on_bytes=None):
        nonlocal most
        with lock:
            held.append(request)
            most = max(most, len(held))
            if large.requests[0] in held:
                with_large.append(list(held))
        return part(request)

    def consume(batch, units, answers):
        consumer(batch, units, answers)
        with lock:
            held.remove(batch.requests[0])

    run(batches, read, consume)
    assert sorted(consumer.units) == sorted(all_units(batches))
    assert most <= 3
    assert with_large == [[large.requests[0]]]


def test_what_has_come_is_handed_over_before_the_rest():
    consumer = Consumer()

    def read(request, operation, on_bytes=None):
        data = bytearray(NBYTES)
        for done in range(0, NBYTES, NBYTES // 4):
            data[:done] = part(request)[:done]
            on_bytes(memoryview(data), done)
            assert consumer.wait_for(done * 10 // NBYTES)
        data[:] = part(request)
        on_bytes(memoryview(data), NBYTES)
        return memoryview(data)

    run([batch(0, n_units=10)], read, consumer)
    assert sorted(consumer.units) == all_units([batch(0, n_units=10)])


def test_units_are_not_handed_over_in_smaller_steps(monkeypatch):
    monkeypatch.setattr(fetch, "STEP_NBYTES", NBYTES // 2)
    calls = []

    def read(request, operation, on_bytes=None):
        for done in range(0, NBYTES + 1, 10):
            on_bytes(part(request), done)
        return part(request)

    run([batch(0, n_units=100)], read, lambda batch, units, answers: calls.append(len(units)))
    assert sum(calls) == 100
    assert len(calls) <= 3


def test_an_attempt_that_ends_midway_and_another():
    """What was decoded of the first is not decoded again; what was not comes from the second, and late news is no news."""
    consumer = Consumer()

    def read(request, operation, on_bytes=None):
        first = memoryview(bytearray(NBYTES))
        first[: NBYTES // 2] = part(request)[: NBYTES // 2]
        on_bytes(first, NBYTES // 2)
        assert consumer.wait_for(5)
        second = memoryview(bytearray(NBYTES))
        for done in range(0, NBYTES, NBYTES // 8):
            second[:done] = part(request)[:done]
            on_bytes(second, done)
        second[:] = part(request)
        late.append(lambda: on_bytes(first, NBYTES // 2 + 1))
        return second

    late = []
    run([batch(0, n_units=10)], read, consumer)
    for news in late:
        news()
    assert sorted(consumer.units) == all_units([batch(0, n_units=10)])


def test_of_several_requests_nothing_is_handed_over_before_all_are_there():
    def read(request, operation, on_bytes=None):
        assert on_bytes is None
        return part(request)

    consumer = Consumer()
    run([batch(i, n_units=3, n_requests=4) for i in range(3)], read, consumer)
    assert len(consumer.units) == 9


@pytest.mark.parametrize("n_batches", [1, 2, 60])
@pytest.mark.parametrize("n_requests", [1, 3])
def test_an_error_of_a_read_ends_all_others(n_batches, n_requests):
    stopped = []

    def read(request, operation, on_bytes=None):
        if request.start == 0:
            raise LookupError("the first")
        try:
            hang(operation)
        except Stopped as error:
            stopped.append(error)
            raise

    operation = Retry().start()
    with pytest.raises(LookupError, match="the first"):
        run([batch(i, 2, n_requests) for i in range(n_batches)], read, lambda *_: None, operation=operation)
    assert len(stopped) < fetch.CONNECTIONS, "those that had begun; no other begins"
    with pytest.raises(Stopped):
        operation.sleep(SECONDS)


@pytest.mark.parametrize("n_batches", [1, 2, 60])
def test_an_error_of_a_consumer_ends_all_reads(n_batches):
    def read(request, operation, on_bytes=None):
        if request.start:
            hang(operation)
        return part(request)

    def consume(batch, units, answers):
        raise LookupError("cannot be decoded")

    with pytest.raises(LookupError, match="cannot be decoded"):
        run([batch(i, 2) for i in range(n_batches)], read, consume)


def test_an_error_while_others_wait_for_room(monkeypatch):
    monkeypatch.setattr(fetch, "IN_FLIGHT_NBYTES", 2 * NBYTES)
    begun = []

    def read(request, operation, on_bytes=None):
        begun.append(request)
        return part(request)

    def consume(batch, units, answers):
        raise LookupError("cannot be decoded")

    with pytest.raises(LookupError):
        run([batch(i) for i in range(50)], read, consume, threads=1)
    assert len(begun) <= 2


def test_an_error_after_a_part_was_handed_over():
    consumer = Consumer()

    def read(request, operation, on_bytes=None):
        on_bytes(part(request), NBYTES // 2)
        assert consumer.wait_for(1)
        raise LookupError("in the middle")

    with pytest.raises(LookupError, match="in the middle"):
        run([batch(0, n_units=4)], read, consumer)
    assert set(consumer.units) <= set(all_units([batch(0, n_units=4)])[:2])


@pytest.mark.parametrize("n_batches", [1, 60])
def test_an_interrupt_passes(n_batches):
    """Control-C reaches the main thread, which waits; the requests are given up."""
    lock, sent = threading.Lock(), []

    def read(request, operation, on_bytes=None):
        with lock:
            if not sent:
                sent.append(request)
                _thread.interrupt_main()
        hang(operation)

    with pytest.raises(KeyboardInterrupt):
        run([batch(i, n_units=2) for i in range(n_batches)], read, lambda *_: None)


def test_waiting_is_counted(monkeypatch):
    """Only while there is nothing to decode."""
    now = 0.0
    monkeypatch.setattr(fetch.time, "perf_counter", lambda: now)

    def read(request, operation, on_bytes=None):
        nonlocal now
        now += 5
        return part(request)

    def consume(batch, units, answers):
        nonlocal now
        now += 1000

    for n_units in (1, 2):
        stats = Stats()
        run([batch(0, n_units)], read, consume, stats=stats)
        assert stats.seconds_waiting == 5

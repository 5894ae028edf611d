"""Statistics: nothing is lost between threads, and people can read them."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from mzstore.stats import Stats

ZERO = {"requests": 0, "fetched_nbytes": 0, "seconds_waiting": 0.0, "hits": 0, "misses": 0}


def test_counters_begin_at_zero():
    assert Stats().snapshot() == ZERO


@pytest.mark.parametrize("counter", ZERO)
def test_each_counter_is_its_own(counter):
    stats = Stats()
    stats.add(**{counter: 3})
    stats.add(**{counter: 4})
    assert stats.snapshot() == ZERO | {counter: 7}
    assert getattr(stats, counter) == 7


def test_a_snapshot_stays_as_it_was():
    stats = Stats()
    before = stats.snapshot()
    stats.add(requests=1)
    assert before == ZERO


def test_many_threads():
    stats = Stats()

    def work(_):
        for _ in range(2000):
            stats.add(requests=1, fetched_nbytes=7, seconds_waiting=0.5, hits=2, misses=3)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    n = 8 * 2000
    assert stats.snapshot() == {
        "requests": n,
        "fetched_nbytes": 7 * n,
        "seconds_waiting": 0.5 * n,
        "hits": 2 * n,
        "misses": 3 * n,
    }


def test_for_people():
    stats = Stats()
    assert repr(stats) == "<mzstore.Stats: 0 requests, 0 B fetched, 0.00 s waiting, cache: 0 of 0 tensors>"
    stats.add(requests=1, fetched_nbytes=3 << 20, seconds_waiting=1.256, hits=1234, misses=1)
    assert repr(stats) == "<mzstore.Stats: 1 request, 3.0 MiB fetched, 1.26 s waiting, cache: 1,234 of 1,235 tensors>"


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_counts_on_while_the_parent_holds_the_lock():
    stats = Stats()
    stats.add(requests=1)
    with stats._lock:  # as another thread may, in the moment of the fork
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(60)  # instead of waiting forever
            stats.add(requests=1)
            os._exit(0 if stats.snapshot()["requests"] == 2 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert stats.requests == 1

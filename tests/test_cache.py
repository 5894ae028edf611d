"""The cache: a budget that holds, an order of leaving, one maker for many who wait, and forks."""

import os
import signal
import threading
import time
import weakref
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mzstore import forks
from mzstore.cache import TensorCache
from mzstore.stats import Stats

BUDGET = 10
KEYS = st.sampled_from("abcdef")
SIZES = st.integers(0, BUDGET + 2)


def array(nbytes: int, value: int = 0) -> np.ndarray:
    return np.full(nbytes, value, np.uint8)


class AgainstAModel(RuleBasedStateMachine):
    """What a cache has to do, in a few plain lines, beside what it does."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = TensorCache(BUDGET)
        self.held: OrderedDict[str, np.ndarray] = OrderedDict()

    def room_for(self, nbytes: int) -> None:
        while self.held and sum(a.nbytes for a in self.held.values()) + nbytes > BUDGET:
            self.held.popitem(last=False)

    def keep(self, key: str, kept: np.ndarray) -> None:
        self.held.pop(key, None)
        if kept.nbytes <= BUDGET:
            self.room_for(kept.nbytes)
            self.held[key] = kept

    @rule(key=KEYS)
    def get(self, key):
        assert self.cache.get(key) is self.held.get(key)
        if key in self.held:
            self.held.move_to_end(key)

    @rule(key=KEYS, nbytes=SIZES)
    def put(self, key, nbytes):
        made = array(nbytes)
        self.cache.put(key, made)
        self.keep(key, made)

    @rule(key=KEYS, nbytes=SIZES)
    def fetch(self, key, nbytes):
        made = array(nbytes)
        found = self.cache.fetch(key, nbytes, lambda: made)
        if nbytes <= BUDGET and key in self.held:
            assert found is self.held[key]
            self.held.move_to_end(key)
        else:
            assert found is made
            if nbytes <= BUDGET:
                self.keep(key, made)

    @rule(key=KEYS, nbytes=SIZES)
    def fetch_fails(self, key, nbytes):
        if nbytes <= BUDGET and key in self.held:
            self.held.move_to_end(key)
            assert self.cache.fetch(key, nbytes, fail) is self.held[key]
            return
        with pytest.raises(ZeroDivisionError):
            self.cache.fetch(key, nbytes, fail)
        if nbytes <= BUDGET:
            self.room_for(nbytes)

    @invariant()
    def holds_the_same(self):
        assert len(self.cache) == len(self.held)
        assert self.cache.nbytes == sum(a.nbytes for a in self.held.values()) <= BUDGET
        assert not any(a.flags.writeable for a in self.held.values())


TestAgainstAModel = AgainstAModel.TestCase


def fail() -> np.ndarray:
    raise ZeroDivisionError


def test_the_least_recently_used_leaves_first():
    cache = TensorCache(10)
    for key in "abc":
        cache.put(key, array(3))
    cache.get("a")
    cache.put("d", array(3))
    assert [key for key in "abcd" if cache.get(key) is not None] == ["a", "c", "d"]
    cache.put("e", array(7))
    assert [key for key in "abcde" if cache.get(key) is not None] == ["d", "e"]


def test_room_is_made_before_the_array_is():
    cache = TensorCache(10)
    cache.put("a", array(8))

    def make():
        assert (len(cache), cache.nbytes) == (0, 0)
        return array(4)

    cache.fetch("b", 4, make)
    assert cache.nbytes == 4


def test_what_is_larger_than_the_budget_drives_nothing_out():
    cache = TensorCache(10)
    cache.put("a", array(10))
    cache.put("b", array(11))
    assert cache.fetch("c", 11, lambda: array(11)).nbytes == 11
    assert cache.get("a") is not None
    assert (len(cache), cache.nbytes) == (1, 10)


def test_no_budget_keeps_nothing():
    cache = TensorCache(0)
    for value in 1, 2:
        assert cache.fetch("a", 1, lambda value=value: array(1, value))[0] == value
    cache.put("a", array(1))
    assert cache.get("a") is None
    assert (len(cache), cache.nbytes) == (0, 0)
    with pytest.raises(ValueError, match="a cache of -1 bytes"):
        TensorCache(-1)


def test_what_is_kept_is_read_only():
    cache = TensorCache(10)
    made = array(3)
    cache.put("a", made)
    fetched = cache.fetch("b", 3, lambda: array(3))
    for kept in made, cache.get("a"), fetched, cache.get("b"):
        with pytest.raises(ValueError, match="read-only"):
            kept[0] = 1


def test_hits_and_misses():
    stats = Stats()
    cache = TensorCache(10, stats)
    cache.get("a")  # miss
    cache.fetch("a", 3, lambda: array(3))  # miss
    cache.fetch("a", 3, fail)  # hit
    cache.get("a")  # hit
    cache.fetch("b", 11, lambda: array(11))  # miss
    cache.put("c", array(1))  # neither
    assert (stats.hits, stats.misses) == (2, 3)


# Threads


def wait_for(condition) -> None:
    """Let other threads go on until ``condition()`` holds; pytest-timeout ends a test in which it never does."""
    while not condition():
        time.sleep(0.001)


class Slow:
    """A maker that waits until it is told to go on, so that others come meanwhile."""

    def __init__(self) -> None:
        self.calls = 0
        self.began, self.go_on = threading.Event(), threading.Event()

    def __call__(self) -> np.ndarray:
        self.calls += 1
        self.began.set()
        self.go_on.wait()
        return array(3)


def asleep(cache: TensorCache, key: str) -> int:
    """How many threads wait for the one that makes ``key``."""
    return len(cache._flights[key].over._cond._waiters)


def test_one_makes_and_the_others_wait():
    stats = Stats()
    cache, make = TensorCache(10, stats), Slow()
    with ThreadPoolExecutor(8) as pool:
        results = [pool.submit(cache.fetch, "a", 3, make) for _ in range(8)]
        make.began.wait()
        wait_for(lambda: asleep(cache, "a") == 7)
        make.go_on.set()
        arrays = [result.result() for result in results]
    assert make.calls == 1
    assert all(found is arrays[0] for found in arrays)
    assert (stats.hits, stats.misses) == (7, 1)


def test_nobody_waits_for_another_key():
    cache, make = TensorCache(10), Slow()
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(cache.fetch, "a", 3, make)
        make.began.wait()
        assert cache.fetch("b", 4, lambda: array(4)).nbytes == 4
        assert cache.get("a") is None
        make.go_on.set()
        slow.result()
    assert cache.nbytes == 7


def test_an_error_is_for_the_one_who_made_it():
    cache = TensorCache(10)
    first, lock, began, go_on = [True], threading.Lock(), threading.Event(), threading.Event()

    def make():
        with lock:
            fails, first[0] = first[0], False
        if fails:
            began.set()
            go_on.wait()
            raise ZeroDivisionError
        return array(3)

    with ThreadPoolExecutor(5) as pool:
        unlucky = pool.submit(cache.fetch, "a", 3, make)
        began.wait()
        others = [pool.submit(cache.fetch, "a", 3, make) for _ in range(4)]
        wait_for(lambda: asleep(cache, "a") == 4)
        go_on.set()
        with pytest.raises(ZeroDivisionError):
            unlucky.result()
        assert [other.result().nbytes for other in others] == [3] * 4
    assert cache.nbytes == 3


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32))
def test_many_threads(seed):
    stats = Stats()
    cache = TensorCache(50, stats)
    made = [0] * 8

    def work(i):
        rng = np.random.default_rng((seed, i))
        for key in rng.integers(0, 20, 50).tolist():

            def make(key=key):
                made[i] += 1
                return array(key, key)

            found = cache.fetch(key, key, make)
            assert found.size == key
            assert (found == key).all()
            assert cache.nbytes <= 50

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert stats.misses == sum(made)
    assert stats.hits + stats.misses == 8 * 50
    held = [found for key in range(20) if (found := cache.get(key)) is not None]
    assert (len(cache), cache.nbytes) == (len(held), sum(found.nbytes for found in held))


# Forks


def in_child(work) -> int:
    """The exit status of a forked child that ends with ``work()``; one that hangs is ended by a signal."""
    child = os.fork()
    if child == 0:
        end_with(work)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def end_with(work) -> NoReturn:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(60)
    status = 2
    try:
        status = 0 if work() else 1
    finally:
        os._exit(status)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_does_not_wait_for_a_thread_that_is_not_there():
    cache, make = TensorCache(10), Slow()
    cache.put("kept", array(2))
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(cache.fetch, "a", 3, make)
        make.began.wait()
        with cache._lock:  # as yet another thread may, in the moment of the fork
            status = in_child(
                lambda: cache.get("kept") is not None and cache.fetch("a", 3, lambda: array(3)).nbytes == 3
            )
        make.go_on.set()
        slow.result()
    assert status == 0
    assert cache.nbytes == 5


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_counts_what_it_has():
    """The fork may come between keeping an array and counting it."""
    cache = TensorCache(10)
    cache.put("a", array(4))
    cache._arrays["b"] = array(5)

    def full():
        assert cache.nbytes == 9
        cache.put("c", array(6))
        return cache.nbytes == 6 and len(cache) == 1

    assert in_child(full) == 0


def test_a_fork_in_the_midst_of_making():
    cache = TensorCache(10)
    child = -1

    def make():
        nonlocal child
        child = os.fork()
        return array(3, 1 if child == 0 else 2)

    try:
        found = cache.fetch("a", 3, make)
    finally:
        if child == 0:
            end_with(lambda: cache.get("a") is found and found[0] == 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert cache.get("a") is found
    assert found[0] == 2


def test_what_is_renewed_in_children_is_not_kept_alive_for_that():
    cache = TensorCache(10)
    assert cache in forks._all
    gone = weakref.ref(cache)
    del cache
    assert gone() is None

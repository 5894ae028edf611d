"""Cache: decoded tensors, kept within a budget of memory. What was not used for the longest time leaves first."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

import numpy as np

from mzstore.forks import renew_in_children
from mzstore.stats import Stats


class _Flight:
    """An array that one thread makes, and for which others may wait."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.array: np.ndarray | None = None  # stays None if making it failed


class TensorCache:
    """Arrays by key, read-only, of at most ``budget_nbytes`` together; any number of threads may use it.

    ``stats`` is told of each hit and each miss.
    """

    def __init__(self, budget_nbytes: int, stats: Stats | None = None) -> None:
        if budget_nbytes < 0:
            raise ValueError(f"a cache of {budget_nbytes} bytes; 0 keeps nothing")
        self.budget_nbytes = budget_nbytes
        self._stats = stats or Stats()
        self._arrays: OrderedDict[Hashable, np.ndarray] = OrderedDict()  # the least recently used first
        self.renew()
        renew_in_children(self)

    def renew(self) -> None:
        self._lock = threading.Lock()
        self._flights: dict[Hashable, _Flight] = {}
        self._nbytes = sum(array.nbytes for array in self._arrays.values())

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays that are kept."""
        return self._nbytes

    def __len__(self) -> int:
        return len(self._arrays)

    def get(self, key: Hashable) -> np.ndarray | None:
        """The array, which counts as used now; None if it is not here."""
        with self._lock:
            array = self._use(key)
        self._count(hit=array is not None)
        return array

    def put(self, key: Hashable, array: np.ndarray) -> None:
        """Keep ``array`` (all memory behind it, and read-only from now on) if the budget has room for it at all."""
        with self._lock:
            self._keep(key, array)

    def fetch(self, key: Hashable, nbytes: int, make: Callable[[], np.ndarray]) -> np.ndarray:
        """The array of ``key``; ``make()`` makes it if it is not here, and it is kept if the budget has room for it.

        nbytes  its size, for which room is made before ``make`` is called

        Of several threads that want it at the same time one makes it, and the others wait for it. If ``make`` raises,
        only the thread that called it sees that; the others try themselves.
        """
        if nbytes > self.budget_nbytes:
            self._count(hit=False)
            return make()
        while True:
            with self._lock:
                array = self._use(key)
                flight = self._flights.get(key)
                mine = array is None and flight is None
                if mine:
                    flight = self._flights[key] = _Flight()
                    self._make_room(nbytes)
            if array is None and not mine:
                assert flight is not None
                flight.over.wait()
                array = flight.array
            if array is not None:
                self._count(hit=True)
                return array
            if mine:
                assert flight is not None
                self._count(hit=False)
                return self._fly(key, flight, make)

    def _fly(self, key: Hashable, flight: _Flight, make: Callable[[], np.ndarray]) -> np.ndarray:
        array = None
        try:
            array = make()
            array.flags.writeable = False
            flight.array = array
            return array
        finally:
            with self._lock:
                if array is not None:
                    self._keep(key, array)
                if self._flights.get(key) is flight:  # it is not if this thread forked meanwhile, and this is the child
                    del self._flights[key]
            flight.over.set()

    def _use(self, key: Hashable) -> np.ndarray | None:
        array = self._arrays.get(key)
        if array is not None:
            self._arrays.move_to_end(key)
        return array

    def _keep(self, key: Hashable, array: np.ndarray) -> None:
        self._drop(key)
        if array.nbytes > self.budget_nbytes:
            return
        self._make_room(array.nbytes)
        array.flags.writeable = False
        self._arrays[key] = array
        self._nbytes += array.nbytes

    def _make_room(self, nbytes: int) -> None:
        while self._arrays and self._nbytes + nbytes > self.budget_nbytes:
            self._drop(next(iter(self._arrays)))

    def _drop(self, key: Hashable) -> None:
        array = self._arrays.pop(key, None)
        if array is not None:
            self._nbytes -= array.nbytes

    def _count(self, *, hit: bool) -> None:
        self._stats.add(hits=int(hit), misses=int(not hit))

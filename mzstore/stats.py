"""Stats: what reading a model has cost so far."""

import threading

from mzstore.forks import renew_in_children
from mzstore.text import count, size


class Stats:
    """Counters of an open model; any number of threads may add to them."""

    def __init__(self) -> None:
        self.requests = 0  # to the storage for bytes, those that were tried again included
        self.fetched_nbytes = 0
        self.seconds_waiting = (
            0.0  # how long decoding had nothing to do, because storage had not answered; of all threads
        )
        self.hits = 0  # tensors that the cache had
        self.misses = 0  # tensors that it did not have
        self.renew()
        renew_in_children(self)

    def renew(self) -> None:
        self._lock = threading.Lock()

    def add(
        self,
        *,
        requests: int = 0,
        fetched_nbytes: int = 0,
        seconds_waiting: float = 0.0,
        hits: int = 0,
        misses: int = 0,
    ) -> None:
        with self._lock:
            self.requests += requests
            self.fetched_nbytes += fetched_nbytes
            self.seconds_waiting += seconds_waiting
            self.hits += hits
            self.misses += misses

    def snapshot(self) -> dict[str, int | float]:
        """All counters at one moment, by name."""
        with self._lock:
            return {
                "requests": self.requests,
                "fetched_nbytes": self.fetched_nbytes,
                "seconds_waiting": self.seconds_waiting,
                "hits": self.hits,
                "misses": self.misses,
            }

    def __repr__(self) -> str:
        now = self.snapshot()
        fetched = f"{count(int(now['requests']), 'request')}, {size(int(now['fetched_nbytes']))} fetched"
        cached = f"cache: {now['hits']:,} of {now['hits'] + now['misses']:,} tensors"
        return f"<mzstore.Stats: {fetched}, {now['seconds_waiting']:.2f} s waiting, {cached}>"

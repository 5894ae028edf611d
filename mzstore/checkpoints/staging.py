"""Staging: copies of a state in host memory, which training does not change. Memory is used again from save to save."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from mzstore import frameworks
from mzstore.groups import groups
from mzstore.sources import ArraySource

PIECE_NBYTES = 8 << 20  # that one thread copies at a time
MAX_THREADS = 8  # more find the memory busy

Pair = tuple[np.ndarray, np.ndarray]  # bytes: to, from


@dataclass(frozen=True, slots=True)
class Staged:
    """The tensors of one state, by name."""

    tensors: Mapping[str, ArraySource]
    nbytes: int


class Staging:
    """Copies, and the memory of those that are not needed any more. Threads share it.

    New memory costs more than the copy into it, because the system hands it out page by page; so what is released is kept,
    for a state of the same tensors.
    """

    def __init__(self, threads: int) -> None:
        self._lock = threading.Lock()
        self._free: dict[int, list[np.ndarray]] = {}
        self._pool = ThreadPoolExecutor(min(threads, MAX_THREADS), "mzstore-copy") if threads > 1 else None

    def copy(self, tensors: Mapping[str, Any]) -> Staged:
        """Of arrays and tensors. Raises ValueError, naming the tensor, for a dtype or layout that mzstore does not have."""
        found, pairs = {}, []
        for name, value in tensors.items():
            spec, words = frameworks.as_words(name, value)
            if not _is_new(value):
                memory, own = words.reshape(-1).view(np.uint8), self._take(words.nbytes)
                pairs.append((own, memory))
                words = own.view(words.dtype).reshape(words.shape)
            found[name] = ArraySource(spec, words)
        jobs = list(groups(_pieces(pairs), lambda pair: pair[0].nbytes, PIECE_NBYTES))
        if self._pool and len(jobs) > 1:
            list(self._pool.map(_copy, jobs))
        else:
            for job in jobs:
                _copy(job)
        return Staged(found, sum(each.words.nbytes for each in found.values()))

    def release(self, staged: Staged) -> None:
        """Its memory may be used again; nobody may read it any more."""
        with self._lock:
            for each in staged.tensors.values():
                memory = each.words.reshape(-1).view(np.uint8)
                self._free.setdefault(memory.nbytes, []).append(memory)

    def clear(self) -> None:
        """Give the memory back that is free."""
        with self._lock:
            self._free.clear()

    def close(self) -> None:
        self.clear()
        if self._pool:
            self._pool.shutdown()

    def _take(self, nbytes: int) -> np.ndarray:
        with self._lock:
            free = self._free.get(nbytes)
            return free.pop() if free else np.empty(nbytes, np.uint8)


def _pieces(pairs: Sequence[Pair]) -> Iterator[Pair]:
    for to, source in pairs:
        for start in range(0, to.nbytes, PIECE_NBYTES):
            yield to[start : start + PIECE_NBYTES], source[start : start + PIECE_NBYTES]


def _copy(pairs: Sequence[Pair]) -> None:
    for to, source in pairs:
        np.copyto(to, source)


def _is_new(value: Any) -> bool:
    """Whether the words of ``value`` are a copy already: those of a tensor on another device."""
    return frameworks.is_torch(value) and value.device.type != "cpu"

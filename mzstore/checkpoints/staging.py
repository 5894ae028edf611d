"""Staging: copies of a state in host memory, which training does not change. Memory is used again from save to save."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mzstore import frameworks
from mzstore.sources import ArraySource


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

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: dict[int, list[np.ndarray]] = {}

    def copy(self, tensors: Mapping[str, Any]) -> Staged:
        """Of arrays and tensors. Raises ValueError, naming the tensor, for a dtype or layout that mzstore does not have."""
        found = {}
        for name, value in tensors.items():
            spec, words = frameworks.as_words(name, value)
            if not _is_new(value):
                own = self._take(words.nbytes)[: words.nbytes].view(words.dtype).reshape(words.shape)
                np.copyto(own, words)
                words = own
            found[name] = ArraySource(spec, words)
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

    def _take(self, nbytes: int) -> np.ndarray:
        with self._lock:
            free = self._free.get(nbytes)
            return free.pop() if free else np.empty(nbytes, np.uint8)


def _is_new(value: Any) -> bool:
    """Whether the words of ``value`` are a copy already: those of a tensor on another device."""
    return frameworks.is_torch(value) and value.device.type != "cpu"

"""Groups: things side by side, as many as a bound on their bytes allows."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def groups(things: Iterable[T], nbytes: Callable[[T], int], most: int) -> Iterator[list[T]]:
    """``things`` in groups of at most ``most`` bytes, or of one."""
    group: list[T] = []
    held = 0
    for thing in things:
        size = nbytes(thing)
        if group and held + size > most:
            yield group
            group, held = [], 0
        group.append(thing)
        held += size
    if group:
        yield group

"""Forks: what a forked child makes anew, because the threads that held it are not there to let go of it."""

import os
import weakref
from typing import Protocol


class Renewable(Protocol):
    def renew(self) -> None:
        """Make new what another thread may have held, and mend what it may have left half done."""


_all: "weakref.WeakSet[Renewable]" = weakref.WeakSet()


def renew_in_children(thing: Renewable) -> None:
    """Have ``thing.renew()`` called in every process that is forked from this one, as long as ``thing`` lives."""
    _all.add(thing)


def _after_fork() -> None:
    for thing in list(_all):
        thing.renew()


os.register_at_fork(after_in_child=_after_fork)

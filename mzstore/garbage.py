"""Garbage: not looked for while many objects are made that all stay."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def ignored() -> Iterator[None]:
    """For work without waiting. Python looks through all objects again and again while their number grows.

    What was made then counts as old, or the first look afterwards would be at all of it.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        if not gc.get_freeze_count():  # else somebody else's objects would be unfrozen
            gc.freeze()
            gc.unfreeze()
        gc.enable()

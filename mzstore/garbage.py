"""Garbage: not looked for while many objects are made that all stay."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def ignored() -> Iterator[None]:
    """For work without waiting. Python looks through all objects again and again while their number grows."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()

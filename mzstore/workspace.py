"""Workspace: buffers that a thread uses again and again, so that decoding allocates nothing per chunk."""

import threading

import numpy as np

_local = threading.local()


def buffer(slot: str, nbytes: int) -> np.ndarray:
    """``nbytes`` of this thread's memory for ``slot`` (uint8), valid until the next call with the same slot."""
    held = _local.__dict__.get(slot)
    if held is None or held.size < nbytes:
        held = _local.__dict__[slot] = np.empty(nbytes, np.uint8)
    return held[:nbytes]

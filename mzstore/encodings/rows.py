"""Rows: what a read wants of a chunk, as matrices in the caller's memory, which is what kernels take."""

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np


class Rows(NamedTuple):
    """Rows of a chunk, side by side, and where they go: row ``i`` begins at ``start + i * row`` of ``memory``."""

    first: int  # of the chunk, all axes but the last taken as rows
    height: int  # number of rows
    memory: np.ndarray  # one dimension, gaps between rows included
    start: int
    row: int
    part: np.ndarray  # the same, as the caller has it

    @property
    def matrix(self) -> np.ndarray:
        """The same, as [height, columns]."""
        shape = (self.height, self.part.shape[-1])
        if self.part.flags.c_contiguous:
            return self.part.reshape(shape)
        strides = (self.row * self.part.itemsize, self.part.itemsize)
        return np.lib.stride_tricks.as_strided(self.part, shape, strides)


def rows_of(chunk_shape: tuple[int, ...], source: tuple[slice, ...], out: np.ndarray) -> Iterator[Rows]:
    """The rows that ``source`` cuts from a chunk, as few matrices as the memory of ``out`` allows.

    out  of the shape that ``source`` cuts, one axis or more, not empty, words of its last axis side by side
    """
    *lead, _ = chunk_shape
    joined = _joined(chunk_shape, out)
    below = math.prod(lead[joined:])
    cols = out.shape[-1]
    for place in itertools.product(*(range(n) for n in out.shape[:joined])):
        first = 0
        for at, cut, n in zip(place, source, lead, strict=False):
            first = first * n + cut.start + at
        first *= below
        part = out[place]
        if lead:
            first += source[joined].start * math.prod(lead[joined + 1 :])
            stride = part.strides[-2] if part.ndim > 1 else 0
        else:
            stride = out.strides[-1]
        count = math.prod(part.shape[:-1])
        stride //= out.itemsize
        span = (count - 1) * stride + cols
        memory = (
            part.reshape(-1)
            if part.flags.c_contiguous
            else np.lib.stride_tricks.as_strided(part, (span,), (out.itemsize,))
        )
        yield Rows(first, count, memory, 0, stride, part)


def n_matrices(chunk_shape: tuple[int, ...], out: np.ndarray) -> int:
    """How many matrices ``rows_of`` gives."""
    return math.prod(out.shape[: _joined(chunk_shape, out)])


def _joined(chunk_shape: tuple[int, ...], out: np.ndarray) -> int:
    """The axis from which on axes are rows of one matrix: all but the first of them whole, and evenly spaced in ``out``."""
    *lead, _ = chunk_shape
    joined = max(0, len(lead) - 1)
    while (
        joined > 0
        and out.shape[joined] == lead[joined]
        and out.strides[joined - 1] == out.strides[joined] * out.shape[joined]
    ):
        joined -= 1
    return joined

"""Kernels of sparse parts: positions out of their bytes, and values to their places in the caller's memory.

Targets are as in ``mzstore.kernels.planes``: one-dimensional, row ``i`` begins at ``start + i * row``.
"""

import numpy as np

from mzstore.kernels.planes import jit

NO_ELEMENT = 255


@jit
def gap_positions(steps, low, low_bits, out):
    """Fill ``out`` with the positions of gaps; (how many there are, the last one). Stops when ``out`` is full.

    steps     uint8[m]  255 passes 255 << low_bits places, less passes that many and takes the next one
    low       uint8     what is added to each gap; at least as many as ``out`` has, or low_bits is 0
    out       int32     positions that it cannot hold are not below 2^31: the caller refuses by the last one
    """
    at, count, last, room = 0, 0, -1, out.size
    for i in range(steps.size):
        step = np.int64(steps[i])
        at += step << low_bits
        if step != NO_ELEMENT:
            if count == room:
                return count + 1, at
            if low_bits:
                at += low[count]
            out[count] = at
            last = at
            at += 1
            count += 1
    return count, last


@jit
def put(positions, values, first, width, first_row, rows, first_col, cols, out, start, row):
    """out[r - first_row, c - first_col] = value, for the elements in these rows and columns of a chunk.

    positions  int32, ascending; of a chunk of rows of ``width``
    values     the value of each; element 0 is at ``first`` of it
    """
    r = 0
    end = np.int64(width)
    for k in range(positions.size):
        p = np.int64(positions[k])
        while p >= end:
            r += 1
            end += width
        i = r - first_row
        j = p - (end - width) - first_col
        if i >= 0 and i < rows and j >= 0 and j < cols:
            out[start + i * row + j] = values[first + k]


@jit
def add(positions, values, first, width, first_row, rows, first_col, cols, out, start, row):
    """As ``put``, but float32 values are added to what is there."""
    r = 0
    end = np.int64(width)
    for k in range(positions.size):
        p = np.int64(positions[k])
        while p >= end:
            r += 1
            end += width
        i = r - first_row
        j = p - (end - width) - first_col
        if i >= 0 and i < rows and j >= 0 and j < cols:
            out[start + i * row + j] += values[first + k]

"""Ranges: which values of a matrix share a scale, and a row block cut that way."""

from typing import Literal

import numpy as np

from mzstore.quantizers import Shape

# The whole tensor, each row (output channel), each column, groups of so many neighbours in a row, or tiles (rows, columns).
Granularity = Literal["tensor", "row", "column"] | int | tuple[int, int]


def block_shape(granularity: Granularity, shape: Shape) -> Shape:
    """The block of ``granularity`` in a matrix of ``shape``.

    Raises ValueError if a group does not divide the columns. Tiles may be cut short at the edges.
    """
    rows, cols = max(1, shape[0]), max(1, shape[1])
    if granularity == "tensor":
        return rows, cols
    if granularity == "row":
        return 1, cols
    if granularity == "column":
        return rows, 1
    if isinstance(granularity, tuple):
        if len(granularity) != 2 or min(granularity) < 1:
            raise ValueError(f"tiles of {granularity}: two positive integers")
        return min(granularity[0], rows), min(granularity[1], cols)
    if not isinstance(granularity, int):
        raise ValueError(f"granularity {granularity!r}: 'tensor', 'row', 'column', a group size, or (rows, columns)")
    if granularity < 1 or cols % granularity:
        raise ValueError(f"groups of {granularity} do not divide {cols} columns")
    return 1, granularity


def by_block(values: np.ndarray, block: Shape) -> np.ndarray:
    """[blocks down, blocks across, members]: ``values`` [rows, cols] of a row block that begins a block.

    Where the edge cuts blocks short, a row or column at the edge is repeated, which changes no least or greatest value.
    """
    rows, cols = values.shape
    high, wide = min(block[0], max(1, rows)), block[1]
    down, across = -(-rows // high), -(-cols // wide)
    if (down * high, across * wide) != (rows, cols):
        values = np.pad(values, ((0, down * high - rows), (0, across * wide - cols)), mode="edge")
    blocks = values.reshape(down, high, across, wide).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(blocks).reshape(down, across, high * wide)

"""Ranges: which values of a matrix share a scale, and a row block cut that way."""

from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

import numpy as np

from mzstore.quantizers import Importance, Matrix, Shape, weighted_blocks

Choice = TypeVar("Choice")
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


def weights_by_block(weights: np.ndarray | None, shape: tuple[int, ...], block: Shape) -> np.ndarray | None:
    """``by_block`` of ``weights``, which broadcast over values of ``shape``; None for none."""
    return None if weights is None else by_block(np.broadcast_to(weights, shape), block)


def extremes(matrix: Matrix, importance: Importance, block: Shape) -> tuple[np.ndarray, np.ndarray]:
    """The least and the greatest values of blocks that reach over all rows."""
    low: np.ndarray | None = None
    high = np.zeros((1, 1), np.float32)
    for _, values, _ in weighted_blocks(matrix, importance):
        members = by_block(values, block)
        least, most = members.min(axis=-1), members.max(axis=-1)
        low, high = (least, most) if low is None else (np.minimum(low, least), np.maximum(high, most))
    return (np.zeros((1, 1), np.float32), high) if low is None else (low, high)


def greatest_values(matrix: Matrix, importance: Importance, block: Shape) -> np.ndarray:
    """The greatest absolute values of blocks that reach over all rows."""
    low, high = extremes(matrix, importance, block)
    out: np.ndarray = np.maximum(-low, high)
    return out


def summed_losses(
    matrix: Matrix,
    importance: Importance,
    block: Shape,
    choices: Sequence[Choice],
    shape: tuple[int, ...],
    loss: Callable[[np.ndarray, np.ndarray | None, Choice], np.ndarray],
) -> np.ndarray:
    """float64[choices, *shape]: the loss of each choice for blocks that reach over all rows, ``shape`` of them.

    ``loss(members, weights, choice)`` is that of the blocks of one row block.
    """
    losses = np.zeros((len(choices), *shape))
    for _, values, weights in weighted_blocks(matrix, importance):
        members, own = by_block(values, block), weights_by_block(weights, values.shape, block)
        for total, choice in zip(losses, choices, strict=True):
            total += loss(members, own, choice)
    return losses


def of_least(choices: Sequence[np.ndarray], losses: np.ndarray) -> np.ndarray:
    """For each block what the choice with the least of ``losses`` has there; the first one of equals."""
    out: np.ndarray = np.take_along_axis(np.stack(choices), np.argmin(losses, axis=0)[None], axis=0)[0]
    return out


def check_blocks(
    matrix: Matrix, importance: Importance, block: Shape, scale_of: Callable[[np.ndarray, np.ndarray], object]
) -> None:
    """Read ``matrix`` and ``importance`` once, and ask ``scale_of(least values, greatest values)`` for every block of them.

    It raises ValueError where it has no scale. Row blocks need not begin a block.
    """
    carried: tuple[int, np.ndarray, np.ndarray] | None = None  # what has been seen of the last block
    for first, values, _ in weighted_blocks(matrix, importance):
        if not values.size or (block[0] == 1 and _has_scale(values, scale_of)):
            continue
        rows = by_block(values, (1, block[1]))
        at = (first + np.arange(values.shape[0])) // block[0]
        starts = np.flatnonzero(np.diff(at, prepend=-1))
        low = np.minimum.reduceat(rows.min(axis=-1), starts, axis=0)
        high = np.maximum.reduceat(rows.max(axis=-1), starts, axis=0)
        if carried is not None and carried[0] == at[0]:
            low[0], high[0] = np.minimum(low[0], carried[1]), np.maximum(high[0], carried[2])
        scale_of(low, high)
        carried = int(at[-1]), low[-1], high[-1]


def _has_scale(values: np.ndarray, scale_of: Callable[[np.ndarray, np.ndarray], object]) -> bool:
    """Whether all ``values`` could share a scale: then any block of them has one."""
    try:
        scale_of(values.min(keepdims=True), values.max(keepdims=True))
    except ValueError:
        return False
    return True

"""Shards: which part of each tensor a rank of several holds (tensor parallelism). Pure."""

import fnmatch
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import SupportsIndex

# Which axis of a tensor is cut: the same for all; by glob patterns of names; or as a function of (name, shape) says.
# None: the tensor is replicated, every rank holds the whole of it.
Axis = int | Mapping[str, int | None] | Callable[[str, tuple[int, ...]], int | None]

_INTEGER = re.compile(r"[+-]?[0-9]{1,9}")


def bounds(length: int, index: int, count: int) -> tuple[int, int]:
    """The positions ``[start, stop)`` that shard ``index`` of ``count`` holds of an axis of ``length``.

    As ``torch.chunk`` and ``Shard`` of DTensor have it: all shards are ceil(length / count) long, except that the
    last ones may be shorter or empty. Raises ValueError for an index or a count that cannot be.
    """
    check(index, count)
    step = -(-length // count)
    return min(index * step, length), min((index + 1) * step, length)


def check(index: int, count: int) -> None:
    """Raises ValueError for an index or a count that cannot be."""
    if count < 1:
        raise ValueError(f"{count} shards; at least 1 is needed")
    if not 0 <= index < count:
        raise ValueError(f"shard {index} of {count}; shards are counted from 0 to {count - 1}")


def shard_slices(shape: tuple[int, ...], axis: int | None, index: int, count: int) -> tuple[slice, ...]:
    """What shard ``index`` of ``count`` holds of a tensor of ``shape`` that is cut on ``axis``, all of it for None.

    Raises IndexError for an axis that the tensor does not have, ValueError for an index or a count that cannot be.
    """
    check(index, count)
    cut = None if axis is None else _position(axis, shape, "a tensor")
    return tuple(slice(*bounds(n, index, count)) if i == cut else slice(0, n) for i, n in enumerate(shape))


def axis_of(axis: Axis, name: str, shape: tuple[int, ...]) -> int | None:
    """Which axis of the tensor ``name`` is cut, counted from the front; None if it is replicated.

    An integer is for all tensors that have this axis, the others are replicated. Of a mapping the first pattern that
    matches decides; a tensor that none matches is replicated. Raises IndexError, which names the tensor, if a mapping
    or a function gives an axis that it does not have.
    """
    if isinstance(axis, Mapping):
        found = next((axis[pattern] for pattern in axis if fnmatch.fnmatchcase(name, pattern)), None)
    elif callable(axis):
        found = axis(name, shape)
    else:
        number = _integer(axis)
        return number % len(shape) if -len(shape) <= number < len(shape) else None
    return None if found is None else _position(found, shape, f"tensor {name!r}")


def parse_shard(text: str) -> tuple[int, int]:
    """(index, count) of ``3/8``. Raises ValueError for anything else."""
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise ValueError(
            f"{text!r} is no shard: INDEX/COUNT, as 3/8, where the index counts from 0 and is below the count"
        )
    return int(match[1]), int(match[2])


def parse_axis(texts: Sequence[str]) -> Axis:
    """The axis that the values of ``--axis`` mean: one integer, or any number of ``GLOB=AXIS``, where AXIS may be none.

    Raises ValueError for anything else.
    """
    if len(texts) == 1 and _INTEGER.fullmatch(texts[0]):
        return int(texts[0])
    axes: dict[str, int | None] = {}
    for text in texts:
        pattern, _, value = text.rpartition("=")  # a name may hold an equals sign, an axis may not
        if not pattern or not (value == "none" or _INTEGER.fullmatch(value)):
            raise ValueError(
                f"{text!r} is no axis: an integer alone, or GLOB=AXIS for each group, where AXIS may be 'none'"
            )
        if pattern in axes:
            raise ValueError(f"two axes for {pattern!r}; the first pattern that matches a name decides, so give one")
        axes[pattern] = None if value == "none" else int(value)
    if not axes:
        raise ValueError("no axis is given: an integer, or GLOB=AXIS for each group of tensors")
    return axes


def _integer(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        raise TypeError(f"an axis is an integer, a mapping from patterns to integers, or a function, not {value!r}")
    return operator.index(value)


def _position(axis: object, shape: tuple[int, ...], what: str) -> int:
    number = _integer(axis)
    if not -len(shape) <= number < len(shape):
        raise IndexError(f"{what} of shape {shape} has no axis {number}; None means that it is not cut")
    return number % len(shape)

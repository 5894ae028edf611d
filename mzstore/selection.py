"""Selection: NumPy basic indexing (integers, slices, ellipsis), resolved against a shape. Pure."""

import functools
import math
import operator
from dataclasses import dataclass
from types import EllipsisType
from typing import Any, SupportsIndex

Index = SupportsIndex | slice | EllipsisType | tuple[SupportsIndex | slice | EllipsisType, ...]


@dataclass(frozen=True, slots=True)
class Span:
    """``count`` positions ``start, start + step, ...`` on one axis, ascending (``step`` >= 1)."""

    start: int
    count: int
    step: int = 1

    @property
    def stop(self) -> int:
        """One past the last position; ``start`` if there is none."""
        return self.start + (self.count - 1) * self.step + 1 if self.count else self.start


@functools.lru_cache
def all_of(shape: tuple[int, ...]) -> tuple[Span, ...]:
    """All positions of ``shape``."""
    return tuple(Span(0, n) for n in shape)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which elements of a tensor an index takes.

    Read ``spans``, an array of shape ``counts``; apply ``flips`` (the axes that the index walks backwards);
    reshape to ``shape``, which lacks the axes that an integer took.
    """

    spans: tuple[Span, ...]
    backwards: tuple[bool, ...]
    dropped: tuple[bool, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        return tuple(span.count for span in self.spans)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(s.count for s, drop in zip(self.spans, self.dropped, strict=True) if not drop)

    @property
    def size(self) -> int:
        return math.prod(self.counts)

    @property
    def flips(self) -> tuple[slice, ...]:
        return tuple(slice(None, None, -1 if back else 1) for back in self.backwards)


def resolve(index: Index, shape: tuple[int, ...]) -> Selection:
    """``index`` as NumPy reads it on an array of ``shape``.

    Raises IndexError where NumPy does, and TypeError for what is not basic indexing (arrays, lists, masks, None).
    """
    if index is Ellipsis:
        return _whole(shape)
    items: list[Any] = list(index) if isinstance(index, tuple) else [index]
    ellipses = sum(item is Ellipsis for item in items)
    if ellipses > 1:
        raise IndexError("an index can only have a single ellipsis ('...')")
    if len(items) - ellipses > len(shape):
        raise IndexError(
            f"too many indices: the tensor has {len(shape)} dimensions, {len(items) - ellipses} were indexed"
        )
    if not ellipses:
        items.append(Ellipsis)
    at = next(i for i, item in enumerate(items) if item is Ellipsis)
    items[at : at + 1] = [slice(None)] * (len(shape) - len(items) + 1)

    spans, backwards, dropped = [], [], []
    for axis, (item, size) in enumerate(zip(items, shape, strict=True)):
        if isinstance(item, slice):
            start, stop, step = item.indices(size)
            count = len(range(start, stop, step))
            spans.append(
                Span(start, count, step) if step > 0 else Span(start + (count - 1) * step if count else 0, count, -step)
            )
            backwards.append(step < 0)
            dropped.append(False)
        else:
            spans.append(Span(_position(item, axis, size), 1))
            backwards.append(False)
            dropped.append(True)
    return Selection(tuple(spans), tuple(backwards), tuple(dropped))


@functools.lru_cache
def _whole(shape: tuple[int, ...]) -> Selection:
    none = (False,) * len(shape)
    return Selection(all_of(shape), none, none)


def _position(item: object, axis: int, size: int) -> int:
    if isinstance(item, bool) or not hasattr(item, "__index__"):
        raise TypeError(
            f"a tensor is indexed by integers, slices and '...', not {type(item).__name__}; read it first: tensor[...]"
        )
    position = operator.index(item)
    if not -size <= position < size:
        raise IndexError(f"index {position} is out of bounds for axis {axis} with size {size}")
    return position % size

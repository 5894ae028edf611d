"""Combined: several parts of one tensor, one after the other. The first gives values, the others replace some of them."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from mzstore.dtypes import DType
from mzstore.encodings import Component, Part, SinglePart
from mzstore.grid import Grid


@dataclass(frozen=True, slots=True)
class Combined:
    """``parts`` over one grid, two or more. One that exists is valid; ValueError otherwise."""

    parts: tuple[SinglePart, ...]
    components: tuple[Component, ...] = field(init=False, repr=False, compare=False)
    _owners: tuple[tuple[Part, int], ...] = field(init=False, repr=False, compare=False)  # (part, first component)

    def __post_init__(self) -> None:
        first, *more = self.parts
        if any(part.grid != first.grid for part in more):
            raise ValueError("the parts of a tensor have chunks of different shapes")
        components: list[Component] = []
        owners = []
        for i, part in enumerate(self.parts):
            owners.append((part, len(components)))
            components += [Component(component_name(i, c.name), c.array) for c in part.components]
        object.__setattr__(self, "components", tuple(components))
        object.__setattr__(self, "_owners", tuple(owners))

    @property
    def encoding(self) -> str:
        return " + ".join(part.encoding for part in self.parts)

    @property
    def dtype(self) -> DType:
        return self.parts[0].dtype

    @property
    def grid(self) -> Grid:
        return self.parts[0].grid

    def component_chunk(self, component: Component, chunk: tuple[int, ...]) -> tuple[int, ...]:
        at = self.components.index(component)
        part, first = next((part, first) for part, first in reversed(self._owners) if first <= at)
        return part.component_chunk(part.components[at - first], chunk)

    def into(self, dtype: DType) -> "Combined | None":
        first, *more = self.parts
        near = first.into(dtype)
        if near is None:
            return None
        others = [part.into(near.dtype) for part in more]
        return None if None in others else Combined((near, *others))  # type: ignore[arg-type]

    @property
    def scratch_nbytes(self) -> int:
        return sum(part.scratch_nbytes for part in self.parts)

    def decode(self, read: Callable[[int], np.ndarray], source: tuple[slice, ...], out: np.ndarray, where: str) -> None:
        for part, first in self._owners:
            part.decode(lambda i, first=first: read(first + i), source, out, where)  # type: ignore[misc]


def component_name(part: int, name: str) -> str:
    """Name of the component ``name`` of the part with this index: numbered from the second part on."""
    return f"{part + 1}.{name}" if part else name

"""Nested: a part inside of a part, such as the values of a sparse tensor (FORMAT.md section 8.5).

It has the document of a part, under the name of a member of the outer part's document, and its components are components of
the outer part: a single one under that name, several under their own names behind it and a dot.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from mzstore.arrays import Array
from mzstore.dtypes import DType
from mzstore.encodings import Component, SinglePart
from mzstore.encodings.raw import Raw
from mzstore.grid import Grid
from mzstore.narrow import convert
from mzstore.workspace import buffer

# (document, dtype where it states none, shape of the words, arrays by their own names) -> part; ValueError for what is none
Parse = Callable[[object, DType, tuple[int, ...], dict[str, Array]], SinglePart]


@dataclass(frozen=True, slots=True)
class Nested:
    """``part`` as the member ``name`` of another one. One that exists is valid; ValueError otherwise."""

    name: str
    part: SinglePart
    components: tuple[Component, ...] = field(init=False, repr=False, compare=False)  # as the outer part has them

    def __post_init__(self) -> None:
        if isinstance(self.part, Raw) and self.part.constant:
            raise ValueError(f"{self.name!r} is constant")
        own = self.part.components
        components = tuple(Component(self.name if len(own) == 1 else f"{self.name}.{c.name}", c.array) for c in own)
        object.__setattr__(self, "components", components)

    @property
    def encoding(self) -> str:
        return self.part.encoding

    @property
    def dtype(self) -> DType:
        return self.part.dtype

    @property
    def grid(self) -> Grid:
        return self.part.grid

    def check_grid(self, expected: Grid) -> None:
        """Raises ValueError unless the part is over ``expected``."""
        if self.part.grid != expected:
            raise ValueError(
                f"{self.name!r} has the shape {self.part.grid.shape} in chunks of {self.part.grid.chunk_shape}, "
                f"not {expected.shape} of {expected.chunk_shape}"
            )

    def component_chunk(self, component: Component, chunk: tuple[int, ...]) -> tuple[int, ...]:
        """Position, in the grid of ``component`` (one of ``components``), of ``chunk`` of the part's own grid."""
        return self.part.component_chunk(self.part.components[self.components.index(component)], chunk)

    def renamed(self, components: tuple[Component, ...]) -> "Nested":
        """The same, whose ``components`` have other names in the container."""
        other = replace(self)
        object.__setattr__(other, "components", components)
        return other

    def to_json(self, default: DType) -> dict[str, object]:
        """The document; its dtype is stated if it is not ``default``."""
        return self.part.to_json() | ({} if self.dtype is default else {"dtype": self.dtype.name})

    def into(self, dtype: DType) -> "Nested":
        """The same, giving values of ``dtype`` if it can; else as it is."""
        near = self.part.into(dtype)
        return self if near is None else Nested(self.name, near)  # type: ignore[arg-type]

    @property
    def scratch_nbytes(self) -> int:
        return self.part.scratch_nbytes + self.part.grid.chunk_size * self.dtype.word.itemsize

    def decode(self, read: Callable[[int], np.ndarray], source: tuple[slice, ...], out: np.ndarray, where: str) -> None:
        self.part.decode(read, source, out, where)

    def read(
        self, read: Callable[[int], np.ndarray], source: tuple[slice, ...], dtype: DType, where: str
    ) -> np.ndarray:
        """Words of ``dtype``, of the shape that ``source`` cuts from a chunk: this thread's, valid until the next call.

        ``read(i)`` gives the bytes of component ``i``.
        """
        shape = tuple(cut.stop - cut.start for cut in source)
        nbytes = int(np.prod(shape, dtype=np.int64)) * self.dtype.word.itemsize
        out = buffer(f"nested {self.name}", nbytes).view(self.dtype.word).reshape(shape)
        self.decode(read, source, out, where)
        if self.dtype is dtype:
            return out
        words = np.empty(shape, dtype.word)
        convert(out, self.dtype, dtype, words)
        return words


def own_arrays(name: str, arrays: dict[str, Array]) -> dict[str, Array]:
    """Takes those of the member ``name`` out of ``arrays``, under the names that they have in it; a single one is under ""."""
    prefix = f"{name}."
    names = [key for key in arrays if key.startswith(prefix) and key != prefix]
    found = {key.removeprefix(prefix): arrays.pop(key) for key in names}
    if name in arrays:
        if found:
            raise ValueError(f"both {name!r} and {prefix + min(found)!r} are arrays")
        found[""] = arrays.pop(name)
    return found

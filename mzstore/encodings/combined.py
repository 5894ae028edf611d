"""Combined: several parts of one tensor, one after the other. The first gives values, the others change them.

A part replaces some values, or adds to all; or, of words that must not be rounded, it is what ``xor`` or a sum without carry
beyond the word makes of both.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from mzstore.dtypes import DTYPES, DType, cast
from mzstore.encodings import Component, Part, SinglePart
from mzstore.encodings.base import Base
from mzstore.encodings.raw import Raw
from mzstore.encodings.sparse import Sparse
from mzstore.grid import MAX_CHUNK_NBYTES, Grid
from mzstore.narrow import convert
from mzstore.workspace import buffer

Combine = Literal["replace", "add", "xor", "plus"]
SUMMED = ("float16", "bfloat16", "float32")  # float32 holds them exactly
COMPUTED = ("quantized", "lowrank", "tucker")  # in float32, before values are rounded to the dtype


@dataclass(frozen=True, slots=True)
class Combined:
    """``parts`` over one grid, two or more. One that exists is valid; ValueError otherwise.

    combines  how each part but the first changes the values: all that add come before all that replace
    wanted    what a read asks for instead of the dtype of the first part
    """

    parts: tuple[SinglePart, ...]
    combines: tuple[Combine, ...]
    wanted: DType | None = None
    components: tuple[Component, ...] = field(init=False, repr=False, compare=False)
    _owners: tuple[tuple[SinglePart, int], ...] = field(
        init=False, repr=False, compare=False
    )  # (part, first component)
    _summed: tuple[SinglePart, ...] = field(init=False, repr=False, compare=False)  # in float32
    # By the name of a component of this part: whose it is, and what it is there.
    _origins: dict[str, tuple[SinglePart, Component]] = field(init=False, repr=False, compare=False)

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
        origins = [(part, component) for part in self.parts for component in part.components]
        names = [component.name for component in components]
        object.__setattr__(self, "_origins", dict(zip(names, origins, strict=True)))
        if self.wanted is None:
            self._check()
        float32 = DTYPES["float32"]
        summed = [
            part.into(float32) or part
            for part, how in zip(self.parts, ("add", *self.combines), strict=True)
            if how == "add" and self.sums
        ]
        object.__setattr__(self, "_summed", tuple(summed))

    def _check(self) -> None:
        first, *more = self.parts
        if len(more) != len(self.combines) or not more:
            raise ValueError(f"{len(self.parts)} parts with {len(self.combines)} ways to combine them")
        if any(isinstance(part, Base) for part in more):
            raise ValueError("a base that is not the first part")
        if any(isinstance(part, Raw) and part.constant for part in self.parts):
            raise ValueError("one of several parts is constant")
        if any(part.dtype is not first.dtype for part in more):
            raise ValueError("the parts of a tensor have different dtypes")
        if isinstance(first, Sparse):
            first.check_values(adds=False)
        if set(self.combines) & {"xor", "plus"}:
            (how, *others) = self.combines
            if others or more[0].encoding not in ("raw", "planes") or first.encoding not in ("raw", "planes", "base"):
                raise ValueError(f"{how!r} combines two parts of words, 'raw', 'planes' or 'base'")
            return
        if "replace" in self.combines and "add" in self.combines[self.combines.index("replace") :]:
            raise ValueError("a part that adds comes behind one that replaces")
        for part, how in zip(more, self.combines, strict=True):
            if how == "replace" and not isinstance(part, Sparse):
                raise ValueError(f"{part.encoding!r} replaces all values of the parts before it")
            if isinstance(part, Sparse):
                part.check_values(adds=how == "add")
        if self.sums:
            self._check_sums()

    def _check_sums(self) -> None:
        if 4 * self.grid.chunk_size > MAX_CHUNK_NBYTES:
            raise ValueError(f"sums in chunks of {self.grid.chunk_shape} take more than {MAX_CHUNK_NBYTES} bytes")
        for part, how in zip(self.parts, ("first", *self.combines), strict=True):
            exact = part.encoding in COMPUTED or (how == "add" and part.encoding == "sparse")
            if how != "replace" and not exact and part.dtype.name not in SUMMED:
                raise ValueError(f"values of {part.dtype.name} are not added: {', '.join(SUMMED)} are")

    @property
    def sums(self) -> bool:
        """Whether values are added up, in float32."""
        return "add" in self.combines

    @property
    def encoding(self) -> str:
        return " + ".join(part.encoding for part in self.parts)

    @property
    def dtype(self) -> DType:
        return self.wanted or self.parts[0].dtype

    @property
    def grid(self) -> Grid:
        return self.parts[0].grid

    def component_chunk(self, component: Component, chunk: tuple[int, ...]) -> tuple[int, ...]:
        part, own = self._origins[component.name]
        return part.component_chunk(own, chunk)

    def into(self, dtype: DType) -> "Combined | None":
        first, *more = self.parts
        if isinstance(first, Base) or not set(self.combines) <= {"add", "replace"}:
            return None
        if self.sums:
            if not dtype.is_float or dtype.bits < 16:
                return None
            near, parts = dtype, [first]
        else:
            own = first.into(dtype)
            if own is None:
                return None
            near, parts = own.dtype, [own]  # type: ignore[list-item]
        for part, how in zip(more, self.combines, strict=True):
            other = part.into(near) if how == "replace" else part
            if other is None:
                return None
            parts.append(other)  # type: ignore[arg-type]
        return Combined(tuple(parts), self.combines, near)

    @property
    def scratch_nbytes(self) -> int:
        """Of all parts; the sum, a part of it and what that is in float32; or the words that change others."""
        n = self.grid.chunk_size
        added = len(self._summed)
        own = sum(part.scratch_nbytes for part in (*self._summed, *self.parts[added:]))
        return own + (12 * n if self.sums else n * self.dtype.word.itemsize)

    def decode(self, read: Callable[[int], np.ndarray], source: tuple[slice, ...], out: np.ndarray, where: str) -> None:
        def of(first: int) -> Callable[[int], np.ndarray]:
            return lambda i: read(first + i)

        if self.sums:
            with np.errstate(over="ignore", invalid="ignore"):
                self._sum(read, source, out, where)
        else:
            self.parts[0].decode(read, source, out, where)
        for (part, first), how in zip(self._owners[1:], self.combines, strict=True):
            if how == "replace":
                assert isinstance(part, Sparse)
                part.put(of(first), source, out, where)
            elif how != "add":
                change = _words(part.dtype, out.shape)
                part.decode(of(first), source, change, where)
                (np.bitwise_xor if how == "xor" else np.add)(out, change, out=out)

    def _sum(self, read: Callable[[int], np.ndarray], source: tuple[slice, ...], out: np.ndarray, where: str) -> None:
        float32 = DTYPES["float32"]
        total = buffer("sum", 4 * out.size).view(np.uint32).reshape(out.shape)
        for i, (part, (_, first)) in enumerate(zip(self._summed, self._owners, strict=False)):
            own = lambda j, first=first: read(first + j)  # noqa: E731
            if isinstance(part, Sparse) and i:
                part.add(own, source, total, where)
                continue
            if i == 0 and part.dtype is float32 and not isinstance(part, Base):
                part.decode(own, source, total, where)
                continue
            words = out if isinstance(part, Base) else _words(part.dtype, out.shape)
            part.decode(own, source, words, where)
            if i == 0:
                convert(words, part.dtype, float32, total)
            else:
                values = words if part.dtype is float32 else cast(words, part.dtype, float32)
                total.view(np.float32)[...] += values.view(np.float32)
        out.view(self.dtype.numpy)[...] = total.view(np.float32)


def base_of(part: Part) -> Base | None:
    """The base that ``part`` begins with: reading it changes words that are there."""
    first = part.parts[0] if isinstance(part, Combined) else part
    return first if isinstance(first, Base) else None


def _words(dtype: DType, shape: tuple[int, ...]) -> np.ndarray:
    size = int(np.prod(shape, dtype=np.int64))
    return buffer("part", size * dtype.word.itemsize).view(dtype.word).reshape(shape)


def component_name(part: int, name: str) -> str:
    """Name of the component ``name`` of the part with this index: numbered from the second part on."""
    return f"{part + 1}.{name}" if part else name

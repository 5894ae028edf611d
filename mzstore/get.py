"""Get: a tensor or a slice of it, as it is named on a command line, for a ``.npy`` file or for the eye."""

import os
import re
from collections.abc import Mapping
from types import EllipsisType
from typing import BinaryIO, TypeVar

import numpy as np

from mzstore.dtypes import BY_NUMPY
from mzstore.model import Model, Tensor
from mzstore.schemes import Weight
from mzstore.selection import Index, Span, resolve
from mzstore.storage import create

Item = int | slice | EllipsisType
Readable = TypeVar("Readable")

MOST_SHOWN = 200  # values; of more than these, a preview shows the first rows and columns
ROWS, COLUMNS = 4, 6

_INTEGER = r"[+-]?[0-9]{1,18}"
_ITEM = re.compile(rf"(?P<dots>\.\.\.)|(?P<integer>{_INTEGER})|(?P<slice>({_INTEGER})?:({_INTEGER})?(:({_INTEGER})?)?)")


def find(model: Mapping[str, Readable], text: str) -> tuple[Readable, Index]:
    """The tensor and the index that ``NAME`` or ``NAME[SLICE]`` means. A tensor that is called just so comes first.

    Raises KeyError for a name that the model does not have, ValueError for what is no slice.
    """
    name, bracket, rest = text.rpartition("[")
    if text in model or not bracket or not rest.endswith("]"):
        return model[text], ...
    return model[name], parse_index(rest[:-1])


def find_all(model: Model, texts: list[str]) -> Mapping[str, Index] | list[str]:
    """What several of ``NAME``, ``GLOB`` and ``NAME[SLICE]`` mean, as ``Model.load`` takes it. Raises as ``find`` does."""
    if not any(text.endswith("]") and text not in model for text in texts):
        return model.names(texts)
    found: dict[str, Index] = {}
    for text in texts:
        if text in model or not text.endswith("]"):
            found |= dict.fromkeys(model.names(text), ...)
        else:
            tensor, index = find(model, text)
            found[tensor.name] = index
    return found


def parse_index(text: str) -> Index:
    """What stands between the brackets of NumPy's basic indexing: integers, slices and ``...``; ValueError for others."""
    parts = text.split(",")
    if len(parts) > 1 and not parts[-1].strip():  # as in Python, a comma may end the list
        parts.pop()
    items: list[Item] = []
    for part in parts:
        match = _ITEM.fullmatch(re.sub(r"\s*:\s*", ":", part.strip()))
        if match is None:
            raise ValueError(f"[{text}] is no slice: integers, START:STOP:STEP and '...', with commas between them")
        if match["dots"]:
            items.append(...)
        elif match["integer"]:
            items.append(int(match["integer"]))
        else:
            items.append(slice(*(int(n) if n else None for n in match["slice"].split(":"))))
    return tuple(items)


def write_npy(target: str | os.PathLike[str] | BinaryIO, values: np.ndarray) -> str:
    """Write ``values`` as a ``.npy`` file, which appears when it is complete.

    Of types that NumPy does not have, the raw bits are written; returns the name of the unsigned type that
    holds them then, else "".
    """
    plain, name = storable(values)
    with create(target) as sink:
        np.lib.format.write_array(sink, plain, allow_pickle=False)
    return name


def storable(values: np.ndarray) -> tuple[np.ndarray, str]:
    """``values``, or their raw bits as unsigned integers where a ``.npy`` file has no such type; and its name then."""
    dtype = BY_NUMPY[values.dtype.newbyteorder("<")]
    if dtype.numpy.type.__module__ == "numpy":
        return values, ""
    bits = np.ascontiguousarray(values).view(dtype.word)
    if dtype.packed:  # one value to a byte in memory, and the upper half may repeat the sign
        bits = bits & np.uint8(15)
    return bits.reshape(values.shape), dtype.word.name


def preview(tensor: Tensor | Weight, index: Index, width: int) -> list[str]:
    """A few lines that show the values, or the first of them; reads no more than these."""
    selection = resolve(index, tensor.shape)
    head = f"{BY_NUMPY[tensor.dtype].name} {list(selection.shape)}"
    if selection.size <= MOST_SHOWN:
        values, note = np.asarray(tensor[index]), []
    else:
        kept = sum(not dropped for dropped in selection.dropped)
        most = [1] * max(0, kept - 2) + [ROWS, COLUMNS][-kept:]
        cut: list[int | slice] = []
        axes = zip(selection.spans, selection.backwards, selection.dropped, strict=True)
        for span, backwards, dropped in axes:
            cut.append(span.start if dropped else _first(span, backwards, most.pop(0)))
        values = np.asarray(tensor[tuple(cut)])
        shape = " x ".join(map(str, values.shape))
        note = [f"the first {shape} of {selection.size} values; -o FILE.npy saves all"]
    if values.dtype.type.__module__ != "numpy":  # NumPy aligns only what it knows
        values = values.astype(np.int8 if BY_NUMPY[values.dtype].name in ("int4", "uint4") else np.float32)
    text = np.array2string(values, max_line_width=width, threshold=MOST_SHOWN)
    return [head, *text.splitlines(), *note]


def _first(span: Span, backwards: bool, most: int) -> slice:
    positions = range(span.start, span.stop, span.step)
    positions = (positions[::-1] if backwards else positions)[:most]
    return slice(positions.start, positions.stop if positions.stop >= 0 else None, positions.step)

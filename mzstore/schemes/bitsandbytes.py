"""bitsandbytes: 4 bits (NF4, FP4), and 8 bits (LLM.int8).

In 4 bits ``weight`` holds codes of successive values, the upper half of a byte first, in blocks that have one scale each. The values are
those of ``dequantize_4bit`` and ``dequantize_blockwise`` (bitsandbytes, functional.py and backends/default/ops.py), in float32:

    absmax[b] = nested_quant_map[absmax[b]] * nested_absmax[b // nested_blocksize] + nested_offset     if scales are quantized
    weight[i] = quant_map[code[i]] * absmax[i // blocksize]

and then in the dtype that ``quant_state``, JSON in a tensor of bytes, says, with shape, block sizes and offset. In 8 bits the values are
those of ``int8_vectorwise_dequant``, in float32: weight[o, i] * SCB[o] * 7.874015718698502e-3.
"""

import math
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np

from mzstore import documents
from mzstore.dtypes import DTYPES
from mzstore.errors import FormatError, UnsupportedError
from mzstore.schemes import base
from mzstore.schemes.base import (
    FLOATS,
    Box,
    Scheme,
    Tensors,
    Weight,
    check_dtype,
    check_shape,
    matrix,
    member,
    refuse,
)
from mzstore.schemes.configuration import Configuration
from mzstore.schemes.packing import nibbles
from mzstore.tensors import INTEGERS, MAX_NBYTES, MAX_NDIM

STATE = ".quant_state.bitsandbytes__"  # between the name of the weight and its type
TYPES = ("nf4", "fp4")
MAX_STATE_NBYTES = 1 << 16
MAX_BLOCK = 1 << 31
LEVELS, NESTED_LEVELS = 16, 256
PER_STEP = np.float32(7.874015718698502e-3)  # 1 / 127, as bitsandbytes has it
OF_ROWS = 0  # the layout of 8-bit weights that is not made for one kernel


class Bnb4Weight(Weight):
    """Of any shape. What is read are whole positions of the first axis, or of one of these whole positions of the second."""

    def __init__(self, *args: Any, blocksize: int, nested: tuple[int, float] | None) -> None:
        super().__init__(*args)
        self._blocksize, self._nested = blocksize, nested  # of the scales: size of a block, offset

    def compute(self, box: Box) -> np.ndarray:
        rows, *inner = box
        if not inner:
            return self._values(rows.start, rows.stop)
        below = math.prod(self.shape[2:])
        row = self.shape[1] * below
        if rows.stop - rows.start > 1 and row <= base.PIECE:
            whole = self._values(rows.start * row, rows.stop * row)
            return whole.reshape(-1, *self.shape[1:])[(slice(None), *inner)]
        parts = (
            self._values(at * row + inner[0].start * below, at * row + inner[0].stop * below)
            for at in range(rows.start, rows.stop)
        )
        return np.stack([part.reshape(-1, *self.shape[2:])[(slice(None), *inner[1:])] for part in parts])

    def _values(self, start: int, stop: int) -> np.ndarray:
        """Those ``[start, stop)`` in row-major order."""
        first, last = start // self._blocksize, -(-stop // self._blocksize)
        values: np.ndarray = self._levels[self._codes(start, stop)]
        values *= self._scales(first, last)[np.arange(start, stop) // self._blocksize - first]
        return values

    def _codes(self, start: int, stop: int) -> np.ndarray:
        """[start, stop), whatever dtype it is that holds their bytes."""
        stored = self.members[self.name]
        width = 2 * stored.dtype.itemsize  # codes in one element
        first, last = start // width, -(-stop // width)
        packed = np.ascontiguousarray(stored[first:last, 0:1]).reshape(-1).view(np.uint8)
        lower_first = nibbles(packed).reshape(-1, 2)
        skipped = start - first * width
        return lower_first[:, ::-1].reshape(-1)[skipped : skipped + stop - start]

    def _scales(self, first: int, last: int) -> np.ndarray:
        """float32: those of blocks ``[first, last)``."""
        scales: np.ndarray = self.members[f"{self.name}.absmax"][first:last]
        if self._nested is None:
            return scales.astype(np.float32)
        blocksize, offset = self._nested
        outer = self.members[f"{self.name}.nested_absmax"][first // blocksize : -(-last // blocksize)]
        of_each = outer[np.arange(first, last) // blocksize - first // blocksize]
        found: np.ndarray = self._nested_levels[scales] * of_each + np.float32(offset)
        return found

    @cached_property
    def _levels(self) -> np.ndarray:
        found: np.ndarray = self.members[f"{self.name}.quant_map"][...]
        return found

    @cached_property
    def _nested_levels(self) -> np.ndarray:
        found: np.ndarray = self.members[f"{self.name}.nested_quant_map"][...]
        return found


class Bnb8Weight(Weight):
    """[out, in]."""

    def compute(self, box: Box) -> np.ndarray:
        codes, scales = list(self.members.values())[:2]
        values: np.ndarray = codes[box].astype(np.float32)
        values *= scales[box[0]][:, None]
        values *= PER_STEP
        return values


def weights(tensors: Tensors, config: Configuration | None) -> Iterator[Weight]:
    """Those of a checkpoint, which need no configuration. Raises FormatError for tensors that do not fit each other."""
    for name, stored in tensors.items():
        if STATE in name:
            yield _weight4(name, tensors)
        elif config is not None and name.endswith(".SCB") and not name.startswith("."):
            yield _weight8(name, stored, tensors, config)


def _weight4(state: str, tensors: Tensors) -> Bnb4Weight:
    name, _, type_ = state.partition(STATE)
    if type_ not in TYPES:
        raise UnsupportedError(f"tensor {state!r}: quantized as {type_!r:.40}, and only {' and '.join(TYPES)} are read")
    doc = _state(state, tensors)
    blocksize = _positive(state, doc, "blocksize")
    shape = doc.get("shape")
    if (
        not isinstance(shape, list)
        or not 1 <= len(shape) <= MAX_NDIM
        or not INTEGERS.issuperset(map(type, shape))
        or min(shape) < 1
    ):
        raise refuse(state, f"shape is {shape!r:.100}, not positive integers")
    size = 1
    for n in shape:
        size *= n
        if size > MAX_NBYTES:
            raise refuse(state, "its shape is larger than any tensor")
    members = {name: member(tensors, name, name), state: tensors[state]}

    def own(suffix: str, dtype: str, shape: tuple[int, ...]) -> None:
        full = f"{name}.{suffix}"
        members[full] = member(tensors, full, name)
        check_dtype(full, members[full], (dtype,))
        check_shape(full, members[full], shape, state)

    stored = members[name]
    check_dtype(name, stored, ("uint8", "int8", *FLOATS))
    width = 2 * stored.dtype.itemsize
    check_shape(name, stored, (-(-size // width), 1), state)
    n_blocks = -(-size // blocksize)
    nested = None
    if f"{name}.nested_absmax" in tensors:
        inner, offset = _positive(state, doc, "nested_blocksize"), doc.get("nested_offset")
        if isinstance(offset, bool) or not isinstance(offset, (int, float)):
            raise refuse(state, f"nested_offset is {offset!r:.100}, not a number")
        nested = inner, float(offset)
        own("absmax", "uint8", (n_blocks,))
        own("nested_absmax", "float32", (-(-n_blocks // inner),))
        own("nested_quant_map", "float32", (NESTED_LEVELS,))
    else:
        own("absmax", "float32", (n_blocks,))
    own("quant_map", "float32", (LEVELS,))
    if doc.get("dtype") not in FLOATS:
        raise refuse(state, f"dtype is {doc.get('dtype')!r:.40}, not {' or '.join(FLOATS)}")
    kind = "codebook" if type_ == "nf4" else "float"
    scheme = Scheme("bitsandbytes", type_, 4, kind, (blocksize,), nested=nested is not None)
    return Bnb4Weight(name, tuple(shape), DTYPES[doc["dtype"]], scheme, members, blocksize=blocksize, nested=nested)


def _state(name: str, tensors: Tensors) -> dict[str, Any]:
    stored = tensors[name]
    check_dtype(name, stored, ("uint8",))
    if len(stored.shape) != 1 or stored.shape[0] > MAX_STATE_NBYTES:
        raise refuse(name, f"its shape is {list(stored.shape)}, not that of at most {MAX_STATE_NBYTES} bytes of JSON")
    return documents.load(bytes(stored[...]), where=f"tensor {name!r}", clause="")


def _positive(name: str, doc: dict[str, Any], key: str) -> int:
    value = doc.get(key)
    if type(value) is not int or not 0 < value <= MAX_BLOCK:
        raise refuse(name, f"{key} is {value!r:.100}, not a positive integer")
    return value


def _weight8(scales: str, stored: Any, tensors: Tensors, config: Configuration) -> Bnb8Weight:
    above = scales.removesuffix("SCB")
    name = f"{above}weight"
    codes = matrix(name, member(tensors, name, name))
    check_dtype(name, codes, ("int8",))
    check_dtype(scales, stored, ("float32",))
    check_shape(scales, stored, (codes.shape[0],), name)
    members = {name: codes, scales: stored}
    if (layout := f"{above}weight_format") in tensors:
        members[layout] = tensors[layout]
        if tensors[layout].shape not in ((), (1,)) or int(np.asarray(tensors[layout][...]).reshape(())) != OF_ROWS:
            raise FormatError(f"tensor {layout!r}: weights are in the layout of one kernel, and only rows are read")
    scheme = Scheme("bitsandbytes", "int8", 8, "int", (1, None))
    return Bnb8Weight(name, codes.shape, config.dtype, scheme, members)

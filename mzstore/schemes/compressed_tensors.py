"""compressed-tensors, as llm-compressor and vLLM have it.

The values are those of ``decompress`` of the compressors (compressed_tensors, compressors/ and quantization/lifecycle/forward_helpers.py):

    weight[o, i] = (code[o, i] - zero_point[o, i // group]) * scale[o, i // group]

in the dtype of the scales, where one scale is for a group of a row, a row, a block or all. Formats:

    pack-quantized         codes of integers in ``weight_packed``, words of 32 bits, along rows; + 2 ** (bits - 1). Zero points of groups and
                           rows in the same way, along columns. ``weight_shape`` is the shape
    int-quantized, float-quantized, naive-quantized      ``weight`` in int8 or float8
    mxfp8-quantized        the same, with scales of one byte that are powers of 2
    nvfp4-pack-quantized   two 4-bit floats (E2M1) to a byte in ``weight_packed``, the lower half first; scales in float8, divided by
                           ``weight_global_scale`` in float32; in bfloat16
    mxfp4-pack-quantized   the same, with scales of one byte that are powers of 2, and no global one

The configuration has groups of layers, by class and by regular expression; a layer's own tensors say which of these it can be, and no
expression of a file is ever evaluated.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mzstore.dtypes import DTYPES, DType
from mzstore.errors import UnsupportedError
from mzstore.schemes.base import (
    FLOATS,
    Box,
    Scheme,
    Stored,
    Tensors,
    Weight,
    as_float,
    blocks_shape,
    check_dtype,
    check_shape,
    matrix,
    member,
    refuse,
    spread,
)
from mzstore.schemes.configuration import Configuration
from mzstore.schemes.mxfp4 import FP4
from mzstore.schemes.packing import n_words, nibbles, unpack, words_of

PACKED_INT, PACKED_NVFP4, PACKED_MXFP4 = "pack-quantized", "nvfp4-pack-quantized", "mxfp4-pack-quantized"
PACKED_FLOATS = (PACKED_NVFP4, PACKED_MXFP4)
NAIVE, MXFP8 = ("int-quantized", "float-quantized", "naive-quantized"), "mxfp8-quantized"
MIXED, DENSE = "mixed-precision", "dense"
FORMATS = (PACKED_INT, *PACKED_FLOATS, *NAIVE, MXFP8)
CODES = ("int8", "float8_e4m3fn")
OF_ACTIVATIONS = ("input_scale", "input_zero_point", "input_global_scale", "output_scale", "output_zero_point")


@dataclass(frozen=True, slots=True)
class Arguments:
    """What a group of layers is said to have. One that exists is in order."""

    format: str
    bits: int
    kind: str  # int or float
    symmetric: bool
    block: tuple[int | None, int | None]  # of a scale
    act_order: bool

    def __str__(self) -> str:
        return f"{self.format} of {self.bits} bits, {self.kind}, blocks of {list(self.block)}"


class CtWeight(Weight):
    """[out, in]. What all formats have in common: codes, less zero points, times scales."""

    def __init__(self, prefix: str, shape: Sequence[int], dtype: DType, arguments: Arguments, members: Tensors) -> None:
        scheme = Scheme(
            "compressed-tensors",
            arguments.format,
            arguments.bits,
            arguments.kind,
            arguments.block,
            arguments.symmetric,
            arguments.act_order,
        )
        super().__init__(f"{prefix}weight", shape, dtype, scheme, members)
        self._prefix = prefix

    def compute(self, box: Box) -> np.ndarray:
        values = self._codes(box)
        if self._zero_name in self.members and self.scheme.format not in PACKED_FLOATS:
            values -= self._by_block(self._zeros, box)
        values *= self._by_block(self._scales, box)
        return values

    def _codes(self, box: Box) -> np.ndarray:
        rows, columns = box
        if self.scheme.format in PACKED_FLOATS:
            packed = self.members[f"{self._prefix}weight_packed"][rows, columns.start // 2 : -(-columns.stop // 2)]
            floats: np.ndarray = FP4[nibbles(packed)]
            return floats[:, columns.start % 2 :][:, : columns.stop - columns.start]
        if self.scheme.format == PACKED_INT:
            bits = self.scheme.bits
            words = self.members[f"{self._prefix}weight_packed"][rows, words_of(bits, columns.start, columns.stop)]
            codes = unpack(words, bits, columns.start, columns.stop, axis=1).astype(np.float32)
            codes -= np.float32(1 << (bits - 1))
            return codes
        found: np.ndarray = self.members[self.name][box].astype(np.float32)
        return found

    def _by_block(self, read: Any, box: Box) -> np.ndarray:
        """What ``read`` gives for blocks of scales, for each value in ``box``."""
        if self._groups is None:
            return spread(read, self.scheme.block, box)
        rows, columns = box
        groups = self._groups[columns]
        found: np.ndarray = as_float(read[rows, int(groups.min()) : int(groups.max()) + 1])[:, groups - groups.min()]
        return found

    @cached_property
    def _groups(self) -> np.ndarray | None:
        """int64 [in]: the group of each column, where they do not follow each other."""
        name = f"{self._prefix}weight_g_idx"
        if name not in self.members:
            return None
        groups: np.ndarray = self.members[name][...].astype(np.int64)
        n_groups = self._scale.shape[1]
        if (groups == -1).all():  # as if there were none
            return None
        if not 0 <= groups.min() <= groups.max() < n_groups:
            raise refuse(name, f"groups {groups.min()} to {groups.max()} are named, and there are {n_groups}")
        return groups

    @property
    def _zero_name(self) -> str:
        return f"{self._prefix}weight_zero_point"

    @property
    def _scale(self) -> Stored:
        return self.members[f"{self._prefix}weight_scale"]

    @cached_property
    def _scales(self) -> "_Blocks":
        return _Blocks(self._scale, over=self.members.get(f"{self._prefix}weight_global_scale"))

    @cached_property
    def _zeros(self) -> "_Blocks":
        packed = not self.scheme.symmetric and self.scheme.format == PACKED_INT and _packs_zeros(self.scheme.block)
        return _Blocks(self.members[self._zero_name], packed_bits=self.scheme.bits if packed else None)


class _Blocks:
    """Scales or zero points, as an array [rows of blocks, columns of blocks] of float32."""

    def __init__(self, stored: Stored, over: Stored | None = None, packed_bits: int | None = None) -> None:
        self._stored, self._over, self._packed_bits = stored, over, packed_bits

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        rows, columns = index
        if (bits := self._packed_bits) is not None:
            words = self._stored[words_of(bits, rows.start, rows.stop), columns]
            return unpack(words, bits, rows.start, rows.stop, axis=0).astype(np.float32) - np.float32(1 << (bits - 1))
        stored = self._stored[index] if len(self._stored.shape) == 2 else np.reshape(self._stored[...], (1, 1))
        found = as_float(stored)
        if self._over is not None:
            with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
                found = found / np.reshape(self._over[...], ())
        return found


def weights(tensors: Tensors, config: Configuration) -> Iterator[Weight]:
    """Those of a checkpoint. Raises FormatError for tensors that do not fit each other or the configuration, UnsupportedError for formats
    that are not read."""
    choices = _choices(config)
    for name, stored in tensors.items():
        if name.endswith(".weight_packed"):
            yield _packed(name.removesuffix("weight_packed"), tensors, choices, config)
        elif name.endswith(".weight") and str(stored.dtype) in CODES and f"{name}_scale" in tensors:
            yield _plain(name.removesuffix("weight"), tensors, choices, config)


def _choices(config: Configuration) -> list[Arguments]:
    groups = config.doc.get("config_groups")
    if not isinstance(groups, Mapping):
        raise config.refuse("config_groups is no object")
    sparsity = config.doc.get("sparsity_config")
    if isinstance(sparsity, Mapping) and sparsity.get("format") not in (None, DENSE):
        raise UnsupportedError(
            f"compressed-tensors with zeros left out ({sparsity['format']!r:.40}) is not read", where=config.where
        )
    whole = config.text("format")
    found = []
    for name, group in groups.items():
        if not isinstance(group, Mapping):
            raise UnsupportedError(
                f"the group {name!r:.40} of config_groups is a preset, which is not read", where=config.where
            )
        about = group.get("weights")
        if about is None:
            continue
        if not isinstance(about, Mapping):
            raise config.refuse(f"weights of {name!r:.40} is no object")
        format_ = group.get("format") or whole
        if format_ == MIXED or not format_ or not isinstance(format_, str):
            raise config.refuse(f"the group {name!r:.40} does not say in which format it is")
        if format_ != DENSE:
            own = Configuration(config.prefix, config.where, about, config.method, config.dtype)
            found.append(_arguments(format_, own))
    return list(dict.fromkeys(found))


def _arguments(format_: str, about: Configuration) -> Arguments:
    if format_ not in FORMATS:
        raise UnsupportedError(f"compressed-tensors in the format {format_!r:.40} is not read", where=about.where)
    bits, kind = about.integer("num_bits", default=8), about.text("type", default="int")
    group = about.integer("group_size", default=0)
    default = "group" if group > 0 else "channel" if group == -1 else "tensor"
    strategy = about.text("strategy", default=default)
    blocks: dict[str, tuple[int | None, int | None]] = {"tensor": (None, None), "channel": (1, None)}
    block = blocks.get(strategy)
    if strategy in ("group", "tensor_group"):
        block = (1, group)
    elif strategy == "block":
        match about.doc.get("block_structure"):
            case [int(rows), int(columns)]:
                block = (rows, columns)
    if block is None or any(n is not None and (n < 1 or isinstance(n, bool)) for n in block):
        raise about.refuse(f"strategy {strategy!r:.40} with group_size {group} and no blocks that could be")
    symmetric = about.flag("symmetric") if about.doc.get("symmetric") is not None else True
    if kind not in ("int", "float") or not 1 <= bits <= 8 or (kind == "float" and bits not in (4, 8)):
        raise about.refuse(f"codes are {bits} bits of {kind!r:.40}")
    wanted = {PACKED_NVFP4: ("float", 4), PACKED_MXFP4: ("float", 4), MXFP8: ("float", 8)}
    fits = {PACKED_INT: kind == "int", "int-quantized": kind == "int", "float-quantized": (kind, bits) == ("float", 8)}
    if not fits.get(format_, (kind, bits) == wanted.get(format_, (kind, bits))) or (kind == "float" and not symmetric):
        raise about.refuse(f"the format {format_} does not hold {bits} bits of {kind} with zero points or without")
    act_order = about.doc.get("actorder") in ("group", "dynamic", True)
    return Arguments(format_, bits, kind, symmetric, block, act_order)


def _packs_zeros(block: Sequence[int | None]) -> bool:
    """Those of groups and rows are packed, others are as they are."""
    return block[0] == 1


def _packed(prefix: str, tensors: Tensors, choices: list[Arguments], config: Configuration) -> CtWeight:
    name = f"{prefix}weight_packed"
    packed = matrix(name, tensors[name])
    held = check_dtype(name, packed, ("int32", "uint8")).name
    members = {name: packed}
    if held == "uint8":
        shape = (packed.shape[0], 2 * packed.shape[1])
        choices = [each for each in choices if each.format in PACKED_FLOATS]
    else:
        full = f"{prefix}weight_shape"
        members[full] = member(tensors, full, f"{prefix}weight")
        check_dtype(full, members[full], ("int64", "int32"))
        check_shape(full, members[full], (2,), name)
        rows, columns = (int(n) for n in members[full][...])
        if rows != packed.shape[0] or columns < 0 or columns > 32 * packed.shape[1]:
            raise refuse(full, f"it is [{rows}, {columns}], which {list(packed.shape)} words do not hold")
        shape = (rows, columns)
        choices = [e for e in choices if e.format == PACKED_INT and n_words(e.bits, columns) == packed.shape[1]]
    return _chosen(prefix, name, shape, tensors, members, choices, config)


def _plain(prefix: str, tensors: Tensors, choices: list[Arguments], config: Configuration) -> CtWeight:
    name = f"{prefix}weight"
    stored = matrix(name, tensors[name])
    kind = check_dtype(name, stored, CODES)
    formats = (*NAIVE, MXFP8)
    choices = [e for e in choices if e.format in formats and e.kind == ("float" if kind.is_float else "int")]
    return _chosen(prefix, name, stored.shape, tensors, {name: stored}, choices, config)


def _chosen(
    prefix: str,
    name: str,
    shape: tuple[int, ...],
    tensors: Tensors,
    members: dict[str, Stored],
    choices: list[Arguments],
    config: Configuration,
) -> CtWeight:
    """The weight, by the one of ``choices`` that its tensors fit."""
    scale_name, zero_name = f"{prefix}weight_scale", f"{prefix}weight_zero_point"
    scale = member(tensors, scale_name, f"{prefix}weight")
    members[scale_name] = scale
    fitting = [each for each in choices if _fits(each, shape, scale, tensors.get(zero_name))]
    if len(fitting) != 1:
        said = "; ".join(map(str, choices)) or "nothing for such tensors"
        raise refuse(
            name,
            f"of shape {list(shape)}, with scales of {scale.dtype} {list(scale.shape)} and "
            f"{'no zero points' if zero_name not in tensors else 'zero points'}, is "
            f"{'none' if not fitting else 'more than one'} of what {config.where} says: {said}",
        )
    arguments = fitting[0]
    if zero_name in tensors:
        members[zero_name] = tensors[zero_name]
    if (g_idx := f"{prefix}weight_g_idx") in tensors:
        check_dtype(g_idx, tensors[g_idx], ("int32", "int64"))
        check_shape(g_idx, tensors[g_idx], (shape[1],), name)
        if arguments.block[0] != 1 or arguments.block[1] is None:
            raise refuse(g_idx, "there are no groups")
        members[g_idx] = tensors[g_idx]
    dtype = DTYPES["bfloat16"]  # to which small scales are converted
    if arguments.format not in (*PACKED_FLOATS, MXFP8):
        dtype = check_dtype(scale_name, scale, FLOATS)
    if arguments.format == PACKED_NVFP4:
        over = f"{prefix}weight_global_scale"
        members[over] = member(tensors, over, f"{prefix}weight")
        check_dtype(over, members[over], ("float32",))
        check_shape(over, members[over], (1,), arguments.format)
    members |= {prefix + each: tensors[prefix + each] for each in OF_ACTIVATIONS if prefix + each in tensors}
    return CtWeight(prefix, shape, dtype, arguments, members)


def _fits(arguments: Arguments, shape: tuple[int, ...], scale: Stored, zeros: Stored | None) -> bool:
    block, dtype = arguments.block, str(scale.dtype)
    grid = blocks_shape(shape, block)
    if block[0] == 1 and block[1] is not None and shape[1] % block[1]:
        return False  # groups are whole
    scales = {PACKED_NVFP4: ("float8_e4m3fn",), PACKED_MXFP4: ("uint8",), MXFP8: ("uint8",)}.get(
        arguments.format, FLOATS
    )
    if dtype not in scales or (scale.shape != grid and not (block == (None, None) and scale.shape in ((), (1,)))):
        return False
    if arguments.symmetric:  # early versions have zero points then as well, which are 0
        return zeros is None or (str(zeros.dtype) in (*CODES, *FLOATS) and zeros.shape == scale.shape)
    if zeros is None:
        return False
    if arguments.format == PACKED_INT and _packs_zeros(block):
        return str(zeros.dtype) == "int32" and zeros.shape == (n_words(arguments.bits, shape[0]), grid[1])
    return str(zeros.dtype) == "int8" and zeros.shape == scale.shape

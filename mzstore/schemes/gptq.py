"""GPTQ, as AutoGPTQ and GPTQModel store it: of each linear layer ``qweight``, ``qzeros``, ``scales`` and ``g_idx``.

The values are those of ``dequantize_weight`` (GPTQModel, nn_modules/qlinear/__init__.py; the same in AutoGPTQ's qlinear_cuda_old.py),
transposed, as a plain linear layer has its weight:

    weight[o, i] = scales[g_idx[i], o] * (qweight[i, o] - qzeros[g_idx[i], o])

``qweight`` has codes of one column in words of 32 bits, from the lowest bit on, ``qzeros`` those of one row; what ``checkpoint_format``
calls ``gptq`` has zero points less 1, modulo 2 ** bits, ``gptq_v2`` has them as they are.
"""

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np

from mzstore.errors import UnsupportedError
from mzstore.schemes.base import (
    FLOATS,
    Box,
    Scheme,
    Stored,
    Tensors,
    Weight,
    check_dtype,
    check_shape,
    matrix,
    member,
    refuse,
)
from mzstore.schemes.configuration import Configuration
from mzstore.schemes.packing import n_words, unpack, words_of

BITS = (2, 3, 4, 8)
FORMATS = ("gptq", "gptq_v2")


class GptqWeight(Weight):
    """[out, in]. Groups are found when values are read: that is when ``g_idx`` is checked."""

    split_axis = 1  # as it is stored

    def compute(self, box: Box) -> np.ndarray:
        rows, columns = box
        bits = self.scheme.bits
        codes = unpack(
            self._member("qweight")[words_of(bits, columns.start, columns.stop), rows],
            bits,
            columns.start,
            columns.stop,
            axis=0,
        )
        groups = self._groups(columns)
        first, last = int(groups.min()), int(groups.max()) + 1
        zeros = unpack(
            self._member("qzeros")[first:last, words_of(bits, rows.start, rows.stop)],
            bits,
            rows.start,
            rows.stop,
            axis=1,
        )
        if self.scheme.format == "gptq":
            zeros = (zeros + np.uint8(1)) & np.uint8(2**bits - 1)
        scales = self._member("scales")[first:last, rows].astype(np.float32)
        values = codes.astype(np.float32)
        values -= zeros.astype(np.float32)[groups - first]
        values *= scales[groups - first]
        return values.T

    def _groups(self, columns: slice) -> np.ndarray:
        """int64: the row of scales and zero points of each of ``columns``."""
        if self._order is not None:
            return self._order[columns]
        return np.arange(columns.start, columns.stop) // (self.scheme.block[1] or self.shape[1])

    @cached_property
    def _order(self) -> np.ndarray | None:
        """int64 [in]: the groups that ``g_idx`` names."""
        name = self._name("g_idx")
        if name not in self.members:
            return None
        groups: np.ndarray = self.members[name][...].astype(np.int64)
        n_groups = self._member("scales").shape[0]
        if not 0 <= groups.min() <= groups.max() < n_groups:
            raise refuse(name, f"groups {groups.min()} to {groups.max()} are named, and there are {n_groups}")
        return groups

    def _name(self, which: str) -> str:
        return f"{self.name.removesuffix('weight')}{which}"

    def _member(self, which: str) -> Stored:
        return self.members[self._name(which)]


def weights(tensors: Tensors, config: Configuration) -> Iterator[Weight]:
    """Those of a checkpoint. Raises FormatError for tensors that do not fit each other or the configuration, UnsupportedError for
    layouts of single kernels."""
    format_ = config.text("checkpoint_format", "format", default="gptq")
    if format_ not in FORMATS:
        raise UnsupportedError(
            f"GPTQ in the layout {format_!r:.40} is not read, only {' and '.join(FORMATS)}", where=config.where
        )
    choices = _choices(config)
    for name in tensors:
        if name.endswith(".qweight"):
            yield _weight(name.removesuffix("qweight"), tensors, format_, choices, config)


def _choices(config: Configuration) -> list[tuple[int, int]]:
    """(bits, group size or -1), of the model and of the layers for which ``dynamic`` says something else."""
    found = [(config.integer("bits"), config.integer("group_size", default=-1))]
    dynamic = config.doc.get("dynamic") or {}
    if not isinstance(dynamic, Mapping):
        raise config.refuse(f"dynamic is {dynamic!r:.100}, not an object")
    for override in dynamic.values():
        if isinstance(override, Mapping) and override:
            own: Mapping[str, Any] = {**config.doc, **override}
            layer = Configuration(config.prefix, config.where, own, config.method, config.dtype)
            found.append((layer.integer("bits"), layer.integer("group_size", default=-1)))
    for bits, group in found:
        if bits not in BITS:
            raise UnsupportedError(
                f"GPTQ of {bits} bits is not read, only of {', '.join(map(str, BITS))}", where=config.where
            )
        if group != -1 and group < 1:
            raise config.refuse(f"group_size is {group}, not a positive number, nor -1")
    return list(dict.fromkeys(found))


def _weight(
    prefix: str, tensors: Tensors, format_: str, choices: list[tuple[int, int]], config: Configuration
) -> GptqWeight:
    name = f"{prefix}weight"
    members = {f"{prefix}{each}": member(tensors, f"{prefix}{each}", name) for each in ("qweight", "qzeros", "scales")}
    if (g_idx := f"{prefix}g_idx") in tensors:
        members[g_idx] = tensors[g_idx]
        check_dtype(g_idx, tensors[g_idx], ("int32", "int64"))
    qweight, qzeros, scales = (
        matrix(f"{prefix}{each}", members[f"{prefix}{each}"]) for each in ("qweight", "qzeros", "scales")
    )
    for each in ("qweight", "qzeros"):
        check_dtype(f"{prefix}{each}", members[f"{prefix}{each}"], ("int32",))
    dtype = check_dtype(f"{prefix}scales", scales, FLOATS)
    n_groups, rows = scales.shape
    columns = tensors[g_idx].shape[0] if g_idx in members and len(tensors[g_idx].shape) == 1 else None
    fitting = []
    for bits, group in choices:
        size = qweight.shape[0] * 32 // bits if columns is None else columns
        lengths = {n_words(bits, size)}
        if 32 % bits:  # 32 values are packed together
            lengths.add(n_words(bits, -(-size // 32) * 32))
        if qweight.shape[0] in lengths and n_groups == (1 if group == -1 else -(-size // group)) and size:
            fitting.append((bits, group, size))
    if len(fitting) != 1:
        said = " or ".join(f"{bits} bits in groups of {group}" for bits, group in choices)
        raise refuse(
            f"{prefix}qweight",
            f"its shape is {list(qweight.shape)}, with {n_groups} groups"
            + (f" of {columns} columns" if columns is not None else "")
            + f"; that is {'no' if not fitting else 'more than one'} layer of {said}, which {config.where} says",
        )
    bits, group, size = fitting[0]
    check_shape(f"{prefix}qweight", qweight, (qweight.shape[0], rows), f"{prefix}scales")
    check_shape(f"{prefix}qzeros", qzeros, (n_groups, n_words(bits, rows)), f"{prefix}scales")
    if g_idx in members:
        check_shape(g_idx, members[g_idx], (size,), f"{prefix}qweight")
    scheme = Scheme(
        "gptq",
        format_,
        bits,
        "int",
        (1, None if group == -1 else group),
        symmetric=config.flag("sym"),
        act_order=config.flag("desc_act"),
    )
    return GptqWeight(name, (rows, size), dtype, scheme, members)

"""AWQ, as AutoAWQ stores it (version ``gemm``): of each linear layer ``qweight``, ``qzeros`` and ``scales``.

The values are those of ``dequantize_gemm`` (AutoAWQ, awq/utils/packing_utils.py), transposed, as a plain linear layer has its weight:

    weight[o, i] = (qweight[i, o] - qzeros[i // group, o]) * scales[i // group, o]

Eight codes of one row, for successive outputs, are in each word of 32 bits; the one at bit ``4 * k`` is that of output ORDER[k].
"""

from collections.abc import Iterator

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
    spread,
)
from mzstore.schemes.configuration import Configuration

BITS, PER_WORD = 4, 8
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


class AwqWeight(Weight):
    """[out, in]."""

    split_axis = 1  # as it is stored

    def compute(self, box: Box) -> np.ndarray:
        rows, columns = box
        group = self.scheme.block[1] or self.shape[1]
        first, last = columns.start // group, -(-columns.stop // group)
        words = slice(rows.start // PER_WORD, -(-rows.stop // PER_WORD))
        skipped = rows.start % PER_WORD
        codes = _unpack(self._member("qweight")[columns, words])[:, skipped : skipped + rows.stop - rows.start]
        zeros = _unpack(self._member("qzeros")[first:last, words])[:, skipped : skipped + rows.stop - rows.start]
        groups = np.arange(columns.start, columns.stop) // group - first
        values = codes.astype(np.float32)
        values -= zeros.astype(np.float32)[groups]
        values *= spread(self._member("scales"), (group, 1), (columns, rows))
        return values.T

    def _member(self, which: str) -> Stored:
        return self.members[f"{self.name.removesuffix('weight')}{which}"]


def weights(tensors: Tensors, config: Configuration) -> Iterator[Weight]:
    """Those of a checkpoint. Raises FormatError for tensors that do not fit each other or the configuration, UnsupportedError for
    layouts of single kernels."""
    format_ = config.text("version", "checkpoint_format", "format", default="gemm")
    if format_ != "gemm":
        raise UnsupportedError(f"AWQ in the layout {format_!r:.40} is not read, only gemm", where=config.where)
    bits = config.integer("bits", "w_bit")
    if bits != BITS:
        raise UnsupportedError(f"AWQ of {bits} bits is not read, only of {BITS}", where=config.where)
    group = config.integer("group_size", "q_group_size", default=-1)
    if group != -1 and group < 1:
        raise config.refuse(f"group_size is {group}, not a positive number, nor -1")
    for name in tensors:
        if name.endswith(".qweight"):
            yield _weight(name.removesuffix("qweight"), tensors, group, config)


def _weight(prefix: str, tensors: Tensors, group: int, config: Configuration) -> AwqWeight:
    name = f"{prefix}weight"
    names = [f"{prefix}{each}" for each in ("qweight", "qzeros", "scales")]
    members = {each: member(tensors, each, name) for each in names}
    qweight, _, scales = (matrix(*item) for item in members.items())
    for each in names[:2]:
        check_dtype(each, members[each], ("int32",))
    dtype = check_dtype(names[2], scales, FLOATS)
    columns, rows = qweight.shape[0], scales.shape[1]
    if rows % PER_WORD:
        raise refuse(names[2], f"it is for {rows} outputs, not a multiple of {PER_WORD}")
    if not columns or (group != -1 and columns % group):
        raise refuse(names[0], f"its {columns} rows are not in whole groups of {group}, which {config.where} says")
    n_groups = 1 if group == -1 else columns // group
    check_shape(names[0], qweight, (columns, rows // PER_WORD), f"{BITS} bits, which {config.where} says,")
    check_shape(names[1], members[names[1]], (n_groups, rows // PER_WORD), f"group_size of {config.where}")
    check_shape(names[2], scales, (n_groups, rows), f"group_size of {config.where}")
    scheme = Scheme("awq", "gemm", BITS, "int", (1, None if group == -1 else group), symmetric=False)
    return AwqWeight(name, (rows, columns), dtype, scheme, members)


def _unpack(words: np.ndarray) -> np.ndarray:
    """uint8 [rows, 8 * words], in the order of outputs."""
    codes = np.empty((*words.shape, PER_WORD), np.uint8)
    unsigned = words.view("<u4")
    for k, output in enumerate(ORDER):
        codes[..., output] = (unsigned >> np.uint32(BITS * k)) & np.uint32(15)
    return codes.reshape(words.shape[0], -1)

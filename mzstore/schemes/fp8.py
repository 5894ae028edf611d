"""Fine-grained float8, as DeepSeek-V3 has it (``quant_method`` fp8): a weight in float8 and one scale for each block, or one for all.

The values are those of ``weight_dequant`` (DeepSeek-V3, inference/kernel.py) and of ``Fp8Dequantize`` and ``_dequantize_fp8_weight``
(transformers, integrations/finegrained_fp8.py):

    weight[..., i, j] = float32(weight[..., i, j]) * float32(weight_scale_inv[..., i // rows, j // columns])

in float32, and then in the dtype of the model. ``weight_block_size`` has rows and columns. Scales of one byte are powers of 2 (E8M0).
"""

from collections.abc import Iterator

import numpy as np

from mzstore.schemes.base import (
    FLOATS,
    Box,
    Scheme,
    Tensors,
    Weight,
    as_float,
    blocks_shape,
    check_dtype,
    check_shape,
    refuse,
    spread,
)
from mzstore.schemes.configuration import Configuration

SUFFIXES = ("_scale_inv", "_scale")  # behind the name of the weight; both are multiplied with
FLOAT8 = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
SCALES = (*FLOATS, "float8_e8m0fnu", "uint8")
OF_ACTIVATIONS = ("input_scale", "activation_scale", "input_scale_inv", "activation_scale_inv")


class Fp8Weight(Weight):
    """[..., rows, columns]."""

    def compute(self, box: Box) -> np.ndarray:
        weight, scale = list(self.members.values())[:2]
        values: np.ndarray = weight[box].astype(np.float32)
        if self.scheme.block == (None, None):
            values *= as_float(np.asarray(scale[...]).reshape(()))
        else:
            values *= spread(scale, (*(1,) * (len(box) - 2), *self.scheme.block), box)
        return values


def weights(tensors: Tensors, config: Configuration) -> Iterator[Weight]:
    """Those of a checkpoint; a tensor of float8 that has no scale is none. Raises FormatError for scales that do not fit."""
    block = _block(config)
    for name, stored in tensors.items():
        if str(stored.dtype) not in FLOAT8:
            continue
        scale = next((name + suffix for suffix in SUFFIXES if name + suffix in tensors), None)
        if scale is not None:
            yield _weight(name, scale, tensors, block, config)


def _block(config: Configuration) -> tuple[int, int] | None:
    match config.doc.get("weight_block_size"):
        case None:
            return None
        case [int(rows), int(columns)] if rows > 0 and columns > 0:
            return rows, columns
        case other:
            raise config.refuse(f"weight_block_size is {other!r:.100}, not two positive integers")


def _weight(name: str, scale: str, tensors: Tensors, block: tuple[int, int] | None, config: Configuration) -> Fp8Weight:
    stored, scales = tensors[name], tensors[scale]
    check_dtype(scale, scales, SCALES)
    if not stored.shape:
        raise refuse(name, "it is one number, and no weight")
    found: tuple[int | None, ...] = (None, None)
    if scales.shape not in ((), (1,)):
        if block is None or len(stored.shape) < 2:
            raise refuse(scale, f"its shape is {list(scales.shape)}, and {config.where} does not say for which blocks")
        found = block
        shape = (*stored.shape[:-2], *blocks_shape(stored.shape[-2:], block))
        check_shape(scale, scales, shape, f"weight_block_size of {config.where}")
    members = {name: stored, scale: scales}
    above = name.removesuffix("weight")
    members |= {above + each: tensors[above + each] for each in OF_ACTIVATIONS if above + each in tensors}
    scheme = Scheme("fp8", str(stored.dtype).removeprefix("float8_"), 8, "float", found)
    return Fp8Weight(name, stored.shape, config.dtype, scheme, members)

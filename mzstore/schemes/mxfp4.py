"""MXFP4, as gpt-oss has it: of each stack of experts ``NAME_blocks``, two 4-bit floats (E2M1) to a byte, and ``NAME_scales``.

The values are those of ``convert_moe_packed_tensors`` (transformers, integrations/mxfp4.py), in its order of axes:

    NAME[e, 32 * g + k, o] = FP4[code k of blocks[e, o, g]] * 2 ** (scales[e, o, g] - 127)

The lower half of a byte comes first. The scale 255 is 2 ** 128, as there, and no NaN.
"""

from collections.abc import Iterator

import numpy as np

from mzstore.schemes.base import Box, Scheme, Tensors, Weight, check_dtype, check_shape, member, refuse
from mzstore.schemes.configuration import Configuration
from mzstore.schemes.packing import nibbles

GROUP, BIAS = 32, 127
BLOCKS, SCALES = "_blocks", "_scales"
FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)  # E2M1


class Mxfp4Weight(Weight):
    """[experts, in, out]."""

    def compute(self, box: Box) -> np.ndarray:
        experts, inputs, outputs = box
        groups = slice(inputs.start // GROUP, -(-inputs.stop // GROUP))
        blocks, scales = self.members.values()
        values: np.ndarray = FP4[nibbles(blocks[experts, outputs, groups, 0 : GROUP // 2])]
        exponents = scales[experts, outputs, groups].astype(np.float32)
        with np.errstate(over="ignore"):  # in two steps: 2 ** 128 is no float32, half of it is a value
            values *= np.exp2(exponents - np.float32(BIAS + 1))[..., None]
            values *= np.float32(2)
        skipped = inputs.start % GROUP
        lines = values.reshape(*values.shape[:2], -1)[..., skipped : skipped + inputs.stop - inputs.start]
        found: np.ndarray = lines.transpose(0, 2, 1)
        return found


def weights(tensors: Tensors, config: Configuration) -> Iterator[Weight]:
    """Those of a checkpoint. Raises FormatError for blocks and scales that do not fit each other."""
    for blocks in tensors:
        if not blocks.endswith(BLOCKS):
            continue
        name = blocks.removesuffix(BLOCKS)
        members = {blocks: tensors[blocks], name + SCALES: member(tensors, name + SCALES, name)}
        for each in members:
            check_dtype(each, members[each], ("uint8",))
        shape = tensors[blocks].shape
        if len(shape) != 4 or shape[-1] != GROUP // 2:
            raise refuse(blocks, f"its shape is {list(shape)}, not [experts, outputs, groups, {GROUP // 2}]")
        check_shape(name + SCALES, members[name + SCALES], shape[:-1], blocks)
        experts, outputs, groups, _ = shape
        scheme = Scheme("mxfp4", "mxfp4", 4, "float", (GROUP, 1))
        yield Mxfp4Weight(name, (experts, groups * GROUP, outputs), config.dtype, scheme, members)

"""Blocks of ggml in memory, and tensors that are made of them."""

from dataclasses import dataclass

import numpy as np

from mzstore.dtypes import DTYPES
from mzstore.ggml import BlockType
from mzstore.ggml.values import words_of
from mzstore.tensors import TensorSpec


def random_blocks(kind: BlockType, count: int, *, finite: bool = False, seed: int = 0) -> np.ndarray:
    """Blocks of any bits; ``finite``: scales are such that no value is infinite or a NaN."""
    blocks = np.random.default_rng(seed).integers(0, 256, (count, kind.nbytes), dtype=np.uint8)
    if finite:
        for field in kind.fields:
            if field.read_as == "float16":
                for run in field.runs[1:]:
                    blocks[:, run.bytes] &= 0xBF  # the exponent is below 16
        if kind.name == "MXFP4":
            blocks[:, 0] &= 0x7F
        if kind.name == "IQ1_M":
            blocks[:, 55] &= 0xBF
        if kind.name == "Q8_K":
            blocks[:, 3] &= 0xBF
    return blocks


@dataclass(frozen=True)
class Packed:
    """Blocks in memory."""

    spec: TensorSpec
    block_type: BlockType
    blocks: np.ndarray

    @classmethod
    def new(cls, name: str, kind: BlockType, shape: tuple[int, ...], seed: int = 0) -> "Packed":
        count = int(np.prod(shape)) // kind.size
        return cls(TensorSpec(name, DTYPES["float32"], shape), kind, random_blocks(kind, count, finite=True, seed=seed))

    @property
    def words(self) -> np.ndarray:
        return words_of(self.block_type, self.blocks).reshape(self.spec.shape)

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.words.reshape(-1)[start:stop]

    def read_blocks(self, start: int, stop: int) -> np.ndarray:
        return self.blocks[start:stop]

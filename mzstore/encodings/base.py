"""Encoding ``base``: the values of a tensor of another model, which later parts may change (FORMAT.md section 8.8)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mzstore.arrays import integers
from mzstore.dtypes import DType
from mzstore.encodings import Component
from mzstore.grid import Grid


@dataclass(frozen=True, slots=True)
class Base:
    """``base`` bound to a tensor of words.

    base    which of the model's bases
    tensor  its name there
    sha256  the digest of its values, which pins them
    """

    dtype: DType
    grid: Grid
    base: int
    tensor: str
    sha256: str
    components: tuple[Component, ...] = ()

    @property
    def encoding(self) -> str:
        return "base"

    def component_chunk(self, component: Component, chunk: tuple[int, ...]) -> tuple[int, ...]:
        raise ValueError("a base has no components")

    def to_json(self) -> dict[str, object]:
        return {"encoding": self.encoding, "base": self.base, "tensor": self.tensor, "sha256": self.sha256}

    @classmethod
    def from_json(cls, doc: dict[str, Any], dtype: DType, grid: Grid, n_bases: int) -> "Base":
        (base,) = integers([doc.get("base")])
        tensor, sha256 = doc.get("tensor"), doc.get("sha256")
        if base >= n_bases:
            raise ValueError(f"base {base}, where there are {n_bases}")
        if not isinstance(tensor, str) or not isinstance(sha256, str):
            raise ValueError("'tensor' or 'sha256' is not a string")
        return cls(dtype, grid, base, tensor, sha256)

    def into(self, dtype: DType) -> None:
        return None

    @property
    def scratch_nbytes(self) -> int:
        return 0

    def decode(self, read: Callable[[int], np.ndarray], source: tuple[slice, ...], out: np.ndarray, where: str) -> None:
        """``out`` holds the words already: who reads a chunk has filled it from the base."""

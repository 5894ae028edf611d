"""TensorSpec: what a tensor is, without its values."""

import math
from dataclasses import dataclass

from mzstore.dtypes import DType

MAX_NDIM = 32
MAX_NBYTES = 2**62  # so that every offset and count of a tensor fits an int64
MAX_NAME_BYTES = 4096
INTEGERS = frozenset({int})  # the types of extents: bool is none of them


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, element type and shape of one tensor. A TensorSpec that exists is valid; ValueError otherwise."""

    name: str
    dtype: DType
    shape: tuple[int, ...]  # row-major; () is a scalar, a 0 an empty tensor

    def __post_init__(self) -> None:
        check_name(self.name)
        if len(self.shape) > MAX_NDIM:
            raise ValueError(f"tensor {self.name!r}: {len(self.shape)} dimensions, at most {MAX_NDIM} are allowed")
        if not INTEGERS.issuperset(map(type, self.shape)) or (self.shape and min(self.shape) < 0):
            raise ValueError(f"tensor {self.name!r}: shape {self.shape} is not a tuple of integers >= 0")
        # Bounded without the 0s, so that no partial product overflows either.
        if math.prod(filter(None, self.word_shape)) * self.dtype.word.itemsize > MAX_NBYTES:
            raise ValueError(
                f"tensor {self.name!r}: shape {self.shape} of {self.dtype.name} is larger than 2**62 bytes"
            )

    @property
    def word_shape(self) -> tuple[int, ...]:
        return self.dtype.word_shape(self.shape)

    @property
    def nbytes(self) -> int:
        """Size of the words, in bytes: what the values need in a safetensors file or in memory."""
        return math.prod(self.word_shape) * self.dtype.word.itemsize

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def check_name(name: str) -> None:
    """Raises ValueError if no tensor can have this name."""
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        raise ValueError(f"tensor name {name!a} is not valid Unicode: it holds a lone surrogate") from None
    if length > MAX_NAME_BYTES:
        raise ValueError(f"tensor name {name[:40]!r}... has {length} bytes, at most {MAX_NAME_BYTES} are allowed")

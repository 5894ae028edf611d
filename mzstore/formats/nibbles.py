"""Values of 4 bits as other formats pack them: one after the other, the first in the low bits, without regard to rows."""

from collections.abc import Callable, Iterator

import numpy as np

from mzstore.tensors import TensorSpec


def repacked(spec: TensorSpec) -> bool:
    """Whether the words of a tensor are not the bytes of such a file: rows of an odd number of values."""
    return spec.dtype.packed and bool(spec.shape) and spec.shape[-1] % 2 == 1


def unpack(spec: TensorSpec, start: int, stop: int, read: Callable[[int, int], bytes | memoryview]) -> np.ndarray:
    """Words ``[start, stop)`` of a tensor for which ``repacked`` holds; ``read`` gives bytes of its values, by range."""
    columns = spec.shape[-1]
    per_row = (columns + 1) // 2
    first, last = start // per_row, -(-stop // per_row)
    low, high = first * columns, last * columns  # values
    pairs = np.frombuffer(read(low // 2, (high + 1) // 2), np.uint8)
    values = np.stack([pairs & 15, pairs >> 4], axis=-1).reshape(-1)[low % 2 :][: high - low].reshape(-1, columns)
    rows = np.pad(values, ((0, 0), (0, 1)))
    words: np.ndarray = rows[:, 0::2] | (rows[:, 1::2] << 4)
    return words.reshape(-1)[start - first * per_row :][: stop - start]


def pack(words: Iterator[np.ndarray], columns: int) -> Iterator[np.ndarray]:
    """The inverse, of all words: bytes without the padding of their rows. An even number of values is taken."""
    cut, left = np.empty(0, np.uint8), np.empty(0, np.uint8)  # words of a row, a value of a pair
    per_row = (columns + 1) // 2
    for block in words:
        block = np.concatenate([cut, block])
        whole = block.size // per_row * per_row
        block, cut = block[:whole], block[whole:]
        pairs = np.stack([block & 15, block >> 4], axis=-1).reshape(-1, columns + 1)
        values = np.concatenate([left, pairs[:, :columns].reshape(-1)])
        even = values.size // 2 * 2
        left = values[even:]
        yield values[0:even:2] | (values[1:even:2] << 4)

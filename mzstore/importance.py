"""Importance: how much errors of values matter, as files have it."""

import math
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np

from mzstore.formats import open_source
from mzstore.sources import TensorSource, blocks


@dataclass(frozen=True, slots=True, eq=False)
class StoredImportance:
    """The importance of one tensor in a file, read whenever it is made an array: a model's may not fit in memory."""

    read: Callable[[], np.ndarray]

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("what is in a file cannot become an array without a copy")
        values = self.read()
        return values if dtype is None else values.astype(dtype, copy=False)


@contextmanager
def open_importance(path: str | os.PathLike[str]) -> Iterator[dict[str, StoredImportance]]:
    """What ``convert`` takes as ``importance``, from an .npz file or a model in any supported format.

    It can be read as long as the block lasts.
    """
    if not os.fspath(path).endswith(".npz"):
        with open_source(path) as model:
            yield {tensor.spec.name: StoredImportance(partial(_values, tensor)) for tensor in model.tensors}
        return
    with ExitStack() as stack:
        try:
            arrays = stack.enter_context(np.load(path, allow_pickle=False))
        except (ValueError, zipfile.BadZipFile) as error:
            raise ValueError(f"{os.fspath(path)}: no .npz file of arrays: {error}") from error
        yield {name: StoredImportance(partial(_member, arrays, name, path)) for name in arrays}


def _values(tensor: TensorSource) -> np.ndarray:
    spec, start = tensor.spec, 0
    words = np.empty(math.prod(spec.word_shape), spec.dtype.word)
    for block in blocks(tensor):
        words[start : start + block.size] = block
        start += block.size
    return spec.dtype.from_words(words.reshape(spec.word_shape), spec.shape)


def _member(arrays: Mapping[str, np.ndarray], name: str, path: str | os.PathLike[str]) -> np.ndarray:
    try:
        return arrays[name]
    except (ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{os.fspath(path)}: {name!r} is no array: {error}") from error

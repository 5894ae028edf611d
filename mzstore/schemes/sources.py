"""A quantized checkpoint as a source of plain weights, for a conversion."""

import json
import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import numpy as np

from mzstore import documents, dtypes
from mzstore.errors import FormatError
from mzstore.model import Model, StoredTensor, Tensor
from mzstore.schemes import Held, Weight, configuration, is_small, missing, plain_names, recognize
from mzstore.schemes.base import Stored
from mzstore.selection import Index, resolve
from mzstore.sources import FileSource, ModelSource, TensorSource
from mzstore.tensors import TensorSpec
from mzstore.text import count

PANEL_NBYTES = (
    32 << 20
)  # of a weight, computed at a time: some schemes store it by columns, which are read again for every panel
ALIGNMENT = 128  # rows: that blocks of scales are not cut by panels
BLOCK_NBYTES = 8 << 20  # of a file, read at a time
INDEX_SUFFIX = ".index.json"


def dequantize(source: ModelSource) -> tuple[ModelSource, list[str]]:
    """(``source`` with plain weights instead of quantized ones, what there is to say of it).

    What says that it is quantized is taken out of its configuration, and its layouts go. Raises as ``schemes.dequantized`` does.
    """
    tensors = {tensor.spec.name: tensor for tensor in source.tensors}
    assets = {asset.path: asset for asset in source.assets}
    configurations = configuration.find(assets, lambda path: _content(assets[path]))
    stored: dict[str, Stored] = {name: _Read(tensor) for name, tensor in tensors.items()}
    stored |= {name: Held(each[...]) for name, each in stored.items() if is_small(name, each)}
    weights = recognize(stored, configurations)
    if not weights:
        raise ValueError(f"nothing to dequantize: this model is not quantized by another tool: {missing(assets)}")
    panels = Panels()
    plain: list[TensorSource] = [
        WeightSource.of(weights[name], panels) if name in weights else tensors[name]
        for name in plain_names(tensors, weights)
    ]
    schemes = dict.fromkeys(str(weight.scheme) for weight in weights.values())
    notes = [f"{count(len(weights), 'weight')} dequantized ({'; '.join(schemes)}), and config.json says so no more"]
    if source.layouts:
        notes.append("its layout is not kept: the files that it came from cannot be made again byte for byte")
    changed = replace(
        source,
        tensors=plain,
        nbytes=sum(tensor.spec.nbytes for tensor in plain),
        assets=[asset for path in assets for asset in _plain(assets[path])],
        layouts=(),
        unpacks=False,
    )
    return changed, notes


class Panels(threading.local):
    """The panel that a thread has computed last: rows are asked for one after the other, and in small parts."""

    def __init__(self) -> None:
        self.key: tuple[str, int, int] | None = None
        self.words = np.empty(0, np.uint8)


@dataclass(frozen=True, slots=True)
class WeightSource:
    """The values of a quantized weight, computed by panels: as many whole rows of a matrix as PANEL_NBYTES hold."""

    spec: TensorSpec
    weight: Weight
    panels: Panels

    @classmethod
    def of(cls, weight: Weight, panels: Panels) -> Self:
        return cls(
            TensorSpec(weight.name, dtypes.BY_NUMPY[weight.dtype.newbyteorder("<")], weight.shape), weight, panels
        )

    def read(self, start: int, stop: int) -> np.ndarray:
        if not self.spec.size:
            return np.empty(0, self.spec.dtype.word)
        rows, columns = (*self.spec.shape, 1)[:2] if len(self.spec.shape) == 1 else self.spec.shape[-2:]
        most = max(1, PANEL_NBYTES // (columns * self.spec.dtype.word.itemsize))
        most = min(rows, most - most % ALIGNMENT or most)
        out, at = np.empty(stop - start, self.spec.dtype.word), start
        while at < stop:
            matrix, inside = divmod(at, rows * columns)
            panel, skipped = divmod(inside, most * columns)
            words = self._panel(matrix, panel * most, min(rows, (panel + 1) * most))[skipped:][: stop - at]
            out[at - start :][: words.size] = words
            at += words.size
        return out

    def _panel(self, matrix: int, first: int, last: int) -> np.ndarray:
        """The words of rows ``[first, last)`` of one of the matrices that are in the last axes."""
        key = (self.spec.name, matrix, first)
        if self.panels.key != key:
            self.panels.key = None  # of two panels in memory one is enough
            self.panels.words = np.empty(0, np.uint8)
            outer = map(int, np.unravel_index(matrix, self.spec.shape[:-2])) if self.spec.shape[:-2] else ()
            index: Index = (*outer, slice(first, last))
            values = self.weight.read(index=index)
            self.panels.key, self.panels.words = key, self.spec.dtype.to_words(values).reshape(-1)
        return self.panels.words


class _Read:
    """A tensor of any source, of which boxes are read."""

    def __init__(self, source: TensorSource) -> None:
        self._source, self._spec = source, source.spec

    @property
    def dtype(self) -> np.dtype:
        return self._spec.dtype.numpy

    @property
    def shape(self) -> tuple[int, ...]:
        return self._spec.shape

    def __getitem__(self, index: Any) -> np.ndarray:
        source, shape = self._source, self.shape
        if isinstance(source, StoredTensor) and isinstance(source.model, Model):  # reads the chunks that it needs
            return np.asarray(Tensor(source.model, source.entry, source.stored)[index])
        if not shape:
            return self._spec.dtype.from_words(source.read(0, 1), ())
        spans = resolve(index, shape).spans
        counts = tuple(span.count for span in spans)
        # Words of a file are read from the first axis on that is longer than one position in the box, and cut on those behind it.
        axis = next((i for i, count in enumerate(counts) if count != 1), len(shape) - 1)
        row = math.prod(shape[axis + 1 :])
        origin = sum(span.start * math.prod(shape[i + 1 :]) for i, span in enumerate(spans[:axis]))
        inner = tuple(slice(span.start, span.stop) for span in spans[axis + 1 :])
        most = max(1, BLOCK_NBYTES // max(1, row * self.dtype.itemsize))
        out = np.empty(counts[axis:], self.dtype)
        for first in range(0, counts[axis], most):
            n = min(most, counts[axis] - first)
            begin = origin + (spans[axis].start + first) * row
            values = self._spec.dtype.from_words(source.read(begin, begin + n * row), (n, *shape[axis + 1 :]))
            out[first : first + n] = values[(slice(None), *inner)]
        return out.reshape(counts)


def _plain(asset: FileSource) -> Iterator[FileSource]:
    """What is left of an asset: nothing of those that say how tensors are quantized, or in which files they are."""
    name = asset.path.rpartition("/")[2]
    if name in configuration.OWN_FILES or name.endswith(INDEX_SUFFIX):
        return
    if name == configuration.CONFIG:
        config = documents.load(_content(asset), where=asset.path, clause="")
        if configuration.in_config(config) is not None:
            text = json.dumps(configuration.without(config), indent=2, ensure_ascii=False) + "\n"
            yield FileSource(asset.path, partial(iter, [text.encode()]))
            return
    yield asset


def _content(asset: FileSource) -> bytes:
    found = b""
    for block in asset.blocks():
        found += bytes(block)
        if len(found) > configuration.MAX_NBYTES:
            raise FormatError(f"it has more than {configuration.MAX_NBYTES} bytes", where=asset.path)
    return found

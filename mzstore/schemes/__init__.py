"""Schemes: checkpoints that other tools have quantized. Their tensors stay as they are; here they are recognized, and read as values.

``dequantized`` is for models of mzstore, ``schemes.sources`` for what is converted. One module for each scheme: ``weights(tensors, configuration)``
finds the weights of a checkpoint by names, dtypes, shapes and what the configuration says, and refuses what does not fit together.
"""

import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mzstore.errors import FormatError, UnsupportedError
from mzstore.model import Model, Tensor
from mzstore.schemes import awq, bitsandbytes, compressed_tensors, configuration, fp8, gptq, mxfp4
from mzstore.schemes.base import Scheme, Stored, Tensors, Weight
from mzstore.schemes.configuration import Configuration

__all__ = ["Dequantized", "Scheme", "Weight", "dequantized", "recognize"]

METHODS: Mapping[str, Callable[[Tensors, Configuration], Iterator[Weight]]] = {
    "gptq": gptq.weights,
    "awq": awq.weights,
    "compressed-tensors": compressed_tensors.weights,
    "bitsandbytes": bitsandbytes.weights,
    "fp8": fp8.weights,
    "mxfp4": mxfp4.weights,
}
SUFFIXES = (
    ".qweight",
    ".weight_packed",
    "_scale",
    "_scale_inv",
    "_blocks",
    ".SCB",
)  # one at least is in every quantized checkpoint
SMALL_SUFFIXES = (".weight_shape", ".weight_format")  # of tensors that say what others are; also quantization states
MAX_SMALL_NBYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Held:
    """A tensor that was read."""

    values: np.ndarray

    @property
    def dtype(self) -> np.dtype:
        return self.values.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def __getitem__(self, index: Any) -> Any:
        return self.values[index]


class Dequantized(Mapping[str, Tensor | Weight]):
    """The tensors that a model would have if it were not quantized, by name: a ``Weight`` for each that is, and all others as they are.

    weights  those that are quantized
    """

    def __init__(self, model: Model, weights: Mapping[str, Weight]) -> None:
        self._model, self.weights = model, weights
        self._names = dict.fromkeys(plain_names(model, weights))

    def __getitem__(self, name: str) -> Tensor | Weight:
        if name not in self._names:
            near = difflib.get_close_matches(name, self._names, n=3, cutoff=0.4)
            raise KeyError(
                f"no tensor {name!r} in {self._model.url!r}, dequantized"
                + (f"; nearest: {', '.join(map(repr, near))}" if near else "")
            )
        return self.weights[name] if name in self.weights else self._model[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    __eq__ = object.__eq__  # not that of Mapping, which would read and compare all values
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"<mzstore.schemes.Dequantized {self._model.url!r}: {len(self)} tensors, {len(self.weights)} of them quantized>"


def dequantized(model: Model, config: Mapping[str, Any] | None = None) -> Dequantized:
    """A model whose checkpoint is quantized by GPTQ, AWQ, compressed-tensors, bitsandbytes, in fine-grained float8 or in MXFP4, as values.

    config  what config.json says, if it is not with the model: ``quantization_config`` is in it

    The values are those of the scheme's own code, in float32 and then rounded once; each module of ``mzstore.schemes`` says which. Only
    the parts that a slice needs are read. Reads the configuration, and what says the shapes of weights. Raises ValueError for a model that
    is not quantized so, FormatError for tensors that do not fit the configuration, UnsupportedError for a scheme that is not known.
    """
    weights = weights_of(model, config)
    if not weights:
        raise ValueError(f"{model.url!r} is not quantized by another tool: {missing(model.assets)}")
    return Dequantized(model, weights)


def weights_of(model: Model, config: Mapping[str, Any] | None = None) -> dict[str, Weight]:
    """The quantized weights of a model, by name; none if there are none. Raises as ``dequantized`` does."""
    if config is not None:
        found = configuration.of_config(config, "", "config")
        configurations = [] if found is None else [found]
    else:
        sizes = {asset.path: asset.nbytes for asset in model.document.assets}
        configurations = configuration.find(sizes, lambda path: _content(model, path, sizes[path]))
    small = [name for name, tensor in model.items() if is_small(name, tensor)]
    held = {name: Held(values) for name, values in model.load(small).items()} if small else {}
    return recognize({name: held.get(name, tensor) for name, tensor in model.items()}, configurations)


def _content(model: Model, path: str, nbytes: int) -> bytes:
    if nbytes > configuration.MAX_NBYTES:
        raise FormatError(f"it has {nbytes} bytes, at most {configuration.MAX_NBYTES} are read", where=path)
    return model.assets[path]


def recognize(tensors: Tensors, configurations: Sequence[Configuration]) -> dict[str, Weight]:
    """The quantized weights among ``tensors``, by the names that the plain ones have. Raises FormatError and UnsupportedError."""
    prefixes = sorted((each.prefix for each in configurations), key=len, reverse=True)
    below: dict[str | None, dict[str, Stored]] = {prefix: {} for prefix in (*prefixes, None)}
    for name, tensor in tensors.items():
        below[next((prefix for prefix in prefixes if name.startswith(prefix)), None)][name] = tensor
    weights: dict[str, Weight] = {}
    owners: dict[str, str] = {}
    for config in (*configurations, None):
        for weight in _weights(below[config.prefix if config else None], config):
            if weight.name in weights or (weight.name in tensors and weight.name not in weight.members):
                raise FormatError(
                    f"weight {weight.name!r} is there twice: plain and quantized, or quantized in two ways"
                )
            for name in weight.members:
                if owners.setdefault(name, weight.name) != weight.name:
                    raise FormatError(f"tensor {name!r} is part of two weights: {owners[name]!r} and {weight.name!r}")
            weights[weight.name] = weight
    return weights


def plain_names(names: Iterable[str], weights: Mapping[str, Weight]) -> list[str]:
    """``names`` of tensors, with that of a weight where the first of its members stands."""
    owners = {name: weight.name for weight in weights.values() for name in weight.members}
    return list(dict.fromkeys(owners.get(name, name) for name in names))


def _weights(tensors: Tensors, config: Configuration | None) -> Iterator[Weight]:
    if config is None:
        return bitsandbytes.weights(tensors, None)  # which say themselves what they are
    if config.method not in METHODS:
        raise UnsupportedError(
            f"quantized by the method {config.method!r:.40}, and only {', '.join(METHODS)} are read as values",
            where=config.where,
        )
    return METHODS[config.method](tensors, config)


def may_be_quantized(names: Iterable[str]) -> bool:
    """Whether names of tensors allow it: without reading anything."""
    return any(name.endswith(SUFFIXES) or bitsandbytes.STATE in name for name in names)


def missing(paths: Iterable[str]) -> str:
    """Why nothing is found."""
    if not any(path.rpartition("/")[2] in (configuration.CONFIG, *configuration.OWN_FILES) for path in paths):
        return f"there is no {configuration.CONFIG} with it that would say so"
    return f"neither {configuration.CONFIG} nor the names of tensors say so"


def is_small(name: str, tensor: Stored) -> bool:
    """Whether ``tensor`` says what other tensors are."""
    named = name.endswith(SMALL_SUFFIXES) or bitsandbytes.STATE in name
    return named and math.prod(tensor.shape) * tensor.dtype.itemsize <= MAX_SMALL_NBYTES

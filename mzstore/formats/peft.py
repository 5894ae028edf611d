"""LoRA adapters as PEFT saves them: ``adapter_config.json`` beside ``adapter_model.safetensors``.

An adapter changes a weight by the product of two narrow matrices: B [out, rank] times A [rank, in], times a scale. Weights that
lie transposed, as those of Conv1D and of embeddings do, are changed by the transposed product.
https://huggingface.co/docs/peft/main/en/developer_guides/checkpoint
"""

import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from mzstore import documents
from mzstore.errors import FormatError, StorageError
from mzstore.formats import safetensors
from mzstore.formats.files import check_unchanged
from mzstore.sources import TensorSource
from mzstore.storage import Blob, Folder, Options, Retry, open_location

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # before the names of the base, in all of PEFT's adapters
MAX_CONFIG_NBYTES = 1 << 24
# What an adapter can have besides A and B, which makes something else of them than a product that is added.
OTHER_MEMBERS = {"use_dora": "DoRA", "lora_bias": "a bias of its own", "layer_replication": "layers that are repeated"}
# Starts that change the weights of the base: what was saved is relative to those.
CHANGED_BASES = ("corda", "loftq", "lora_ga", "olora", "pissa")

# Perhaps with the name of an adapter behind: <module>.lora_A[.default].weight, <module>.lora_embedding_A[.default]
_FACTOR = re.compile(r"(.+)\.lora_(?:([AB])(?:\.[^.]+)?\.weight|embedding_([AB])(?:\.[^.]+)?)")
_SAVED = re.compile(r"(?:modules_to_save(?:\.[^.]+)?|base_layer|original_module)\.(?=[^.]+$)")


@dataclass(frozen=True, slots=True)
class Product:
    """What is added to one weight.

    a, b       [rank, in] and [out, rank]; of an embedding [rank, entries] and [dim, rank]
    embedding  the weight is [entries, dim], and the transposed product is added
    transposed  whether the configuration says that weights are [in, out]
    """

    a: TensorSource
    b: TensorSource
    scale: float
    embedding: bool = False
    transposed: bool = False

    @property
    def rank(self) -> int:
        return self.a.spec.shape[0]


@dataclass(frozen=True, slots=True)
class Adapter:
    """An open adapter. Names are those of the base.

    products  by the name of the weight
    saved     tensors that take the place of others
    new       names of modules of which ``saved`` may have what the base has not
    """

    url: str
    products: Mapping[str, Product]
    saved: Mapping[str, TensorSource]
    new: tuple[str, ...]
    blobs: tuple[Blob, ...] = ()

    def check_unchanged(self) -> None:
        check_unchanged(self.blobs)


@dataclass(frozen=True, slots=True)
class _Config:
    """What an adapter's configuration says of scales; alone, that all have one ``alpha``."""

    alpha: float
    rank: int | None = None
    root: bool = False  # whether alpha is divided by the square root of the rank
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)
    transposed: bool = False
    new: tuple[str, ...] = ()

    def scale(self, module: str, rank: int) -> float:
        """Raises ValueError if that is not the rank that the module has by the configuration."""
        said = _of_pattern(self.ranks, module, self.rank)
        if said is not None and said != rank:
            raise ValueError(f"{module!r} has rank {rank}, and {said} by {CONFIG}")
        alpha = _of_pattern(self.alphas, module, self.alpha)
        return float(alpha) / (math.sqrt(rank) if self.root else rank)


@contextmanager
def open_adapter(
    location: str | os.PathLike[str],
    *,
    alpha: float | None = None,
    prefix: str | None = None,
    options: Options = None,
    retry: Retry | None = None,
) -> Iterator[Adapter]:
    """The adapter in a directory; or in a safetensors file, which needs ``alpha``. To be read as long as the block lasts.

    prefix  what stands before the base's names; None: PEFT's, if the first tensor has it

    Raises FormatError for what is no LoRA adapter, and ValueError for one that does something else than to add products.
    """
    name = os.fspath(location)
    with ExitStack() as stack:
        if name.endswith(".safetensors"):
            if alpha is None:
                raise ValueError(f"{name!r} says nothing of its scale: give alpha, or the adapter's directory")
            config = _Config(alpha)
        else:
            config = _config(stack.enter_context(_file(f"{name.rstrip('/')}/{CONFIG}", options, retry)))
            if alpha is not None:
                raise ValueError(f"{name!r} says what alpha is in its {CONFIG}; leave alpha out")
            name = f"{name.rstrip('/')}/{WEIGHTS}"
        blob = stack.enter_context(_file(name, options, retry))
        tensors = {tensor.spec.name: tensor for tensor in safetensors.sources(blob, safetensors.read_header(blob))}
        yield _adapter(blob, tensors, config, prefix)


@contextmanager
def _file(location: str, options: Options, retry: Retry | None) -> Iterator[Blob]:
    blob = open_location(location, options, retry=retry)
    if isinstance(blob, Folder):
        raise StorageError(f"{location!r} is missing: an adapter has {CONFIG} and {WEIGHTS}, as PEFT saves them")
    try:
        yield blob
    finally:
        blob.close()


def _config(blob: Blob) -> _Config:
    if blob.nbytes > MAX_CONFIG_NBYTES:
        raise FormatError(f"a configuration of {blob.nbytes} bytes", where=blob.url)
    doc = documents.load(bytes(blob.read(0, blob.nbytes)), where=blob.url, clause="")
    if doc.get("peft_type") != "LORA":
        raise ValueError(
            f"{blob.url}: an adapter of type {doc.get('peft_type')!r:.40}, where only LORA can be attached"
        )
    for member, what in OTHER_MEMBERS.items():
        if doc.get(member):
            raise ValueError(f"{blob.url}: the adapter has {what} ({member!r}); merge it with PEFT, and store that")
    start = doc.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(CHANGED_BASES):
        raise ValueError(
            f"{blob.url}: the adapter began with {start!r:.40}, which changes the base as well; save it with PEFT's "
            "path_initial_model_for_weight_conversion, or merge it with PEFT"
        )
    rank: Any
    alpha: Any
    rank, alpha, new = doc.get("r"), doc.get("lora_alpha"), doc.get("modules_to_save") or []
    ranks, alphas = doc.get("rank_pattern") or {}, doc.get("alpha_pattern") or {}
    if (
        type(rank) is not int
        or not _is_number(alpha)
        or not isinstance(ranks, dict)
        or not isinstance(alphas, dict)
        or not all(type(n) is int for n in ranks.values())
        or not all(map(_is_number, alphas.values()))
        or not isinstance(new, list)
        or not all(isinstance(name, str) for name in new)
    ):
        raise FormatError("'r', 'lora_alpha', their patterns or 'modules_to_save' are malformed", where=blob.url)
    root, transposed = bool(doc.get("use_rslora")), bool(doc.get("fan_in_fan_out"))
    return _Config(float(alpha), rank, root, ranks, alphas, transposed, tuple(new))


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _of_pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """As PEFT has it: the first pattern, a regular expression, that the end of the name matches."""
    for pattern, value in patterns.items():
        try:
            if re.fullmatch(rf"(?:.*\.)?(?:{pattern})", module):
                return value
        except re.error as error:
            raise ValueError(f"{CONFIG}: {pattern!r:.100} is no regular expression: {error}") from None
    return default


def _adapter(blob: Blob, tensors: Mapping[str, TensorSource], config: _Config, prefix: str | None) -> Adapter:
    if prefix is None:
        prefix = PREFIX if next(iter(tensors), "").startswith(PREFIX) else ""
    pairs: dict[tuple[str, bool], dict[str, TensorSource]] = {}
    saved: dict[str, TensorSource] = {}
    for full, tensor in tensors.items():
        name = full.removeprefix(prefix)
        if not full.startswith(prefix):
            raise ValueError(f"{blob.url}: tensor {full!r} does not begin with {prefix!r}, as the others do")
        if match := _FACTOR.fullmatch(name):
            which = match[2] or match[3]
            pair = pairs.setdefault((match[1], bool(match[3])), {})
            if which in pair:
                raise ValueError(f"{blob.url}: {match[1]!r} has two factors {which}: one adapter at a time")
            pair[which] = tensor
        elif "lora_" in name:
            what = "DoRA" if "magnitude" in name else "not of a product"
            raise ValueError(f"{blob.url}: tensor {full!r} is {what}; merge the adapter with PEFT, and store that")
        else:
            saved[_SAVED.sub("", name)] = tensor
    products: dict[str, Product] = {}
    for (module, embedding), pair in pairs.items():
        if missing := {"A", "B"} - pair.keys():
            raise ValueError(f"{blob.url}: {module!r} has no factor {missing.pop()}")
        a, b = pair["A"], pair["B"]
        if len(a.spec.shape) != 2 or len(b.spec.shape) != 2 or a.spec.shape[0] != b.spec.shape[1]:
            shapes = f"{list(b.spec.shape)} and {list(a.spec.shape)}"
            raise ValueError(f"{blob.url}: the factors of {module!r} are {shapes}: only matrices can be attached")
        if not a.spec.shape[0]:
            raise ValueError(f"{blob.url}: the factors of {module!r} have rank 0")
        name = f"{module}.weight"
        if name in products:
            raise ValueError(f"{blob.url}: {name!r} has two products")
        scale = config.scale(module, a.spec.shape[0])
        products[name] = Product(a, b, scale, embedding, config.transposed)
    if not products and not saved:
        raise FormatError("an adapter without tensors", where=blob.url)
    return Adapter(blob.url, products, saved, config.new, (blob,))

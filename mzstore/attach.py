"""Attach: a LoRA adapter to a model, which is not copied: weights that it changes are those of the base, plus a product."""

import difflib
import hashlib
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from mzstore import kernels
from mzstore.arrays import Array
from mzstore.bases import MAX_DEPTH, BaseLocations, Place, check_unchanged, depth, refer
from mzstore.container import Kind
from mzstore.decode import decode
from mzstore.documents import TensorEntry
from mzstore.encode import Choice, Level, Payload, payloads
from mzstore.encodings import Coding, chunk_path, first_of
from mzstore.encodings.base import Base
from mzstore.encodings.combined import SUMMED, Combined
from mzstore.encodings.lowrank import FLOATS, MAX_RANK, LowRank, left_grid, right_grid
from mzstore.encodings.nested import Nested
from mzstore.encodings.planes import Planes
from mzstore.encodings.raw import Raw
from mzstore.formats import of_model
from mzstore.formats.peft import Adapter, Product, open_adapter
from mzstore.grid import MAX_CHUNK_NBYTES, Grid, choose_chunk_shape, whole_piece
from mzstore.interleave import Fields
from mzstore.model import Model, StoredTensor, check_threads
from mzstore.model import open as open_model
from mzstore.plan import Job
from mzstore.prepared import Prepared
from mzstore.sources import Renamed, TensorSource, Walked, held
from mzstore.storage import Options, Retry
from mzstore.tensors import TensorSpec
from mzstore.writer import write

NODE = "w"  # of a tensor while it is nowhere yet
CODING = Coding()


def attach(
    base: str | os.PathLike[str],
    adapter: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    alpha: float | None = None,
    prefix: str | None = None,
    base_url: str | None = None,
    level: Level = "balanced",
    kind: Kind | None = None,
    threads: int | None = None,
    show_progress: bool | None = None,
    storage_options: Options = None,
    adapter_options: Options = None,
    target_options: Options = None,
    retry: Retry | None = None,
    bases: BaseLocations | None = None,
) -> None:
    """Write to ``target`` a model of the weights of ``base``, an archive or a tree, with a LoRA ``adapter``.

    A weight W becomes W + (B @ A) * scale, in float32, rounded once to its dtype. The factors are stored as they are; of the base
    nothing is copied but metadata and assets, which make the model usable: it is referred to by its URL, or by the path from
    ``target`` to it.

    adapter   a directory with ``adapter_config.json`` and ``adapter_model.safetensors`` of PEFT; or a safetensors file
    alpha     of a safetensors file, which does not say it: the scale is alpha / rank
    prefix    what stands before the base's names in the adapter; None: ``base_model.model.`` if it is there
    base_url  what the model is to have for its base, instead of the path or URL at which it is found now
    bases     where to find the bases of ``base``, see ``open``

    Tensors that the adapter has whole (``modules_to_save``) take the place of the base's. Raises ValueError for an adapter that
    changes anything the base has not, or in another way than by a product that is added.
    """
    threads = check_threads(threads)
    url = refer(base, target, base_url)
    with (
        open_model(base, storage_options=storage_options, retry=retry, bases=bases) as model,
        open_adapter(adapter, alpha=alpha, prefix=prefix, options=adapter_options, retry=retry) as found,
    ):
        _check(found, model)
        check_depth(model, target)
        kernels.expect(model.nbytes)
        source = of_model(model, threads)
        specs = {name: entry.spec for name, entry in model.document.tensors.items()}
        after = specs | {name: replace(tensor.spec, name=name) for name, tensor in found.saved.items()}

        def unchanged() -> None:
            check_unchanged(model)
            found.check_unchanged()

        write(
            target,
            replace(
                source,
                tensors=Walked(lambda: _tensors(model, found, threads)),
                nbytes=sum(spec.nbytes for spec in after.values()),
                layouts=source.layouts if after == specs else (),  # else no file can be laid out as it was
                bases=[url],
                check_unchanged=unchanged,
            ),
            level=level,
            kind=kind,
            threads=threads,
            show_progress=show_progress,
            options=target_options,
            retry=retry,
        )


def base_part(spec: TensorSpec, sha256: str, name: str) -> Prepared:
    """The tensor ``spec`` as it is in the first base, where it is called ``name``."""
    grid = Grid(spec.word_shape, choose_chunk_shape(spec.word_shape, spec.dtype.word.itemsize))
    return Prepared(spec, Base(spec.dtype, grid, 0, name, sha256), sha256)


def check_depth(model: Model, target: str | os.PathLike[str]) -> None:
    """Raises ValueError if no model at ``target`` can refer to ``model``: it is a manifest, too many models would stand one
    behind another, or it refers to ``target`` itself. Opens the bases of ``model``, and raises what ``open`` does for them."""
    if model.archives:
        raise ValueError(f"{model.url!r} is a manifest, which is no base: convert it to an archive, and refer to that")
    deepest = max((depth(model, model.document.stored(entry)) for entry in model.document.tensors.values()), default=0)
    if deepest >= MAX_DEPTH:
        raise ValueError(f"{model.url!r} has {deepest} models behind it already: merge it, and refer to that")
    if model.bases.family.has(Place.of(target)):
        raise ValueError(f"{model.url!r} refers to {os.fspath(target)!r}: write to another place")


def _check(adapter: Adapter, model: Model) -> None:
    """Raises ValueError for what ``model`` has not, or cannot have changed like that."""
    for name in (*adapter.products, *adapter.saved):
        declared = name in adapter.saved and any(f".{module}." in f".{name}" for module in adapter.new)
        if name not in model and not declared:
            near = difflib.get_close_matches(name, list(model), n=3, cutoff=0.4)
            also = f"; nearest: {', '.join(map(repr, near))}" if near else ""
            raise ValueError(
                f"{adapter.url}: it changes {name!r}, which {model.url!r} has not{also}; prefix (--prefix) says what stands "
                "before the base's names"
            )
    for name, product in adapter.products.items():
        if name in adapter.saved:
            raise ValueError(f"{adapter.url}: {name!r} is there as a product and as a whole")
        entry = model.document.tensors[name]
        if entry.spec.dtype.name not in SUMMED:
            held = ", ".join(SUMMED)
            raise ValueError(f"tensor {name!r} is {entry.spec.dtype.name}: only {held} can have a product added")
        for factor in (product.a, product.b):
            if factor.spec.dtype.name not in FLOATS:
                raise ValueError(f"{adapter.url}: {factor.spec.name!r} is {factor.spec.dtype.name}, not {FLOATS}")
        if product.rank > MAX_RANK:
            raise ValueError(f"{adapter.url}: {name!r} has rank {product.rank}, at most {MAX_RANK} are allowed")
        if not abs(product.scale) <= float(np.finfo(np.float32).max):
            raise ValueError(f"{adapter.url}: {name!r} has the scale {product.scale}, which float32 does not hold")
        _is_swapped(product, entry.spec, adapter.url)


def _is_swapped(product: Product, spec: TensorSpec, url: str) -> bool:
    """Whether the transposed product is added. As PEFT does, by the shape where only one of the two fits."""
    rows, cols = product.b.spec.shape[0], product.a.spec.shape[1]
    ways = [swapped for swapped, shape in ((False, (rows, cols)), (True, (cols, rows))) if shape == spec.shape]
    if product.embedding:
        ways = [swapped for swapped in ways if swapped]
    if not ways:
        raise ValueError(f"{url}: the product for {spec.name!r} is {rows} x {cols}, the tensor {list(spec.shape)}")
    return product.transposed if len(ways) == 2 else ways[0]


def _tensors(model: Model, adapter: Adapter, threads: int) -> Iterator[TensorSource | Prepared]:
    for source in model.sources(threads):
        name = source.spec.name
        if name in adapter.saved:
            yield Renamed(name, adapter.saved[name])
        elif name in adapter.products:
            yield _changed(source, adapter.products[name], adapter.url, threads)
        else:
            yield base_part(source.spec, source.sha256, name)
    for name, tensor in adapter.saved.items():
        if name not in model:
            yield Renamed(name, tensor)


def _changed(source: StoredTensor, product: Product, url: str, threads: int) -> Prepared:
    """``source`` with ``product`` added."""
    spec = source.spec
    grid = _grid(source, product.rank)
    factors = (product.b, product.a) if not _is_swapped(product, spec, url) else (product.a, product.b)
    swapped = factors[0] is product.a
    nested: list[Nested] = []
    encoded: dict[tuple[str, tuple[int, ...]], Payload] = {}
    for name, factor, own in (
        ("left", factors[0], left_grid(grid, product.rank)),
        ("right", factors[1], right_grid(grid, product.rank)),
    ):
        words = factor.read(0, math.prod(factor.spec.shape)).reshape(factor.spec.shape)
        inner, found = _lossless(np.ascontiguousarray(words.T if swapped else words), factor.spec, own)
        nested.append(Nested(name, inner))
        encoded |= {(name, chunk): payload for chunk, payload in found.items()}
    left, right = nested
    base = Base(spec.dtype, grid, 0, spec.name, source.sha256)
    part = Combined((base, LowRank(spec.dtype, grid, left, right, float(np.float32(product.scale)))), ("add",))
    stored = [
        replace(
            encoded[component.name.rpartition(".")[2], part.component_chunk(component, chunk)],
            path=chunk_path(part, component, chunk),
        )
        for chunk in grid.chunks()
        for component in part.components
        if first_of(part, component, chunk)
    ]
    entry = TensorEntry(spec, NODE, "", part)
    return Prepared(spec, part, _digest(entry, source, stored, threads), payloads=stored)


def _grid(source: StoredTensor, rank: int) -> Grid:
    """The base's own chunks, so that one of them is read with each, if they and those of the factors are not too large."""
    assert source.stored.part is not None
    spec = source.spec
    for chunk_shape in (source.stored.part.grid.chunk_shape, choose_chunk_shape(spec.word_shape, 4)):
        chunk = list(chunk_shape)
        if max(math.prod(chunk), chunk[0] * rank, rank * chunk[1]) * 4 <= MAX_CHUNK_NBYTES:
            return Grid(spec.word_shape, tuple(chunk))
    for axis in (0, 1):
        chunk[axis] = min(chunk[axis], MAX_CHUNK_NBYTES // 4 // rank)
    return Grid(spec.word_shape, tuple(chunk))


def _lossless(words: np.ndarray, spec: TensorSpec, grid: Grid) -> tuple[Raw | Planes, dict[tuple[int, ...], Payload]]:
    """(the part of a factor's ``words`` over ``grid``, the payloads by chunk): planes, if that is smaller."""
    dtype = spec.dtype
    parts: tuple[Raw | Planes, ...] = (
        Raw(dtype, grid.shape, Array(grid.shape, grid.chunk_shape, dtype.disk, zstd=False)),
        Planes.new(dtype, grid, Fields(dtype.word_bits, 8, rotate=True)),
    )
    made = []
    for part in parts:
        found: dict[tuple[int, ...], Payload] = {}
        for start, shape, chunks in grid.row_blocks():
            block = words.reshape(-1)[start : start + math.prod(shape)].reshape(shape)
            for chunk in chunks:
                (payload,) = payloads(Choice(part, CODING), block, chunk, dtype)
                found[part.component_chunk(part.components[0], chunk)] = payload
        made.append((part, found))
    return min(made, key=lambda each: sum(len(payload.data) for payload in each[1].values()))


def _digest(entry: TensorEntry, base: TensorSource, stored: list[Payload], threads: int) -> str:
    """Of the values that ``entry`` gives, decoded as a reader does."""
    assert entry.part is not None
    by_key = {f"{NODE}/{payload.path}": memoryview(payload.data) for payload in stored}
    words, digest = held(base), hashlib.sha256()
    grid = entry.part.grid
    with ThreadPoolExecutor(threads, thread_name_prefix="mzstore-attach") as pool:
        for start, shape, chunks in grid.row_blocks():
            block = np.array(words.read(start, start + math.prod(shape))).reshape(shape)

            def change(chunk: tuple[int, ...], block: np.ndarray = block) -> None:
                decode(Job(entry, whole_piece(grid, chunk), block), lambda key, _: by_key[key], entry.spec.name)

            for _ in pool.map(change, chunks):
                pass
            digest.update(block.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()

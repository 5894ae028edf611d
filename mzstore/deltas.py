"""Deltas: a fine-tuned model as what it is different by from its base, which is not copied; and such a model made whole."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from mzstore import kernels
from mzstore.attach import base_part, check_depth
from mzstore.bases import BaseLocations, check_unchanged, refer
from mzstore.container import Kind, kind_for
from mzstore.convert import convert
from mzstore.differences import choose_difference
from mzstore.documents import TensorEntry
from mzstore.encode import Level, check_level
from mzstore.encodings.base import Base
from mzstore.encodings.combined import Combined
from mzstore.formats import open_source
from mzstore.grid import Grid
from mzstore.model import Model, StoredTensor, check_threads
from mzstore.model import open as open_model
from mzstore.prepared import Fitted, Prepared
from mzstore.recipe import Recipe, Rule
from mzstore.sources import TensorSource, Walked, blocks, held, origin, read_ahead
from mzstore.storage import Options, Retry, is_local
from mzstore.writer import write


def delta(
    base: str | os.PathLike[str],
    tuned: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    base_url: str | None = None,
    recipe: Recipe | None = None,
    level: Level = "balanced",
    kind: Kind | None = None,
    threads: int | None = None,
    show_progress: bool | None = None,
    storage_options: Options = None,
    tuned_options: Options = None,
    target_options: Options = None,
    retry: Retry | None = None,
    bases: BaseLocations | None = None,
) -> None:
    """Write to ``target`` the model ``tuned`` (in any format that ``convert`` reads), bit for bit if there is no recipe, as
    changes of ``base``, an archive or a tree.

    Of tensors that ``base`` has as well, under any name, nothing is stored. Others of the same name, dtype and shape are
    stored as the difference from it, by exclusive or or as integers, or whole, whichever is smallest. What is new is stored
    whole, and what only ``base`` has is left out. Metadata, assets and the layout of files are those of ``tuned``.

    recipe    how the differences of tensors are approximated, see ``save``: errors are relative to the difference. Parts of a rule
              come behind the base. A rule that says no more than ``nmse`` or ``snr_db`` takes what is smallest of quantized
              differences, low-rank ones, and low-rank ones with a sparse or quantized rest
    base_url  what the model is to have for its base, instead of the path or URL at which it is found now
    bases     where to find the bases of ``base``, see ``open``
    """
    check_level(level)
    threads = check_threads(threads)
    url = refer(base, target, base_url)
    with (
        open_model(base, storage_options=storage_options, retry=retry, bases=bases) as model,
        open_source(tuned, tuned_options, retry=retry, threads=threads) as source,
    ):
        check_depth(model, target)
        kernels.expect(source.nbytes)
        ahead = not is_local(tuned)

        def unchanged() -> None:
            check_unchanged(model)
            source.check_unchanged()

        def tensors() -> Iterator[TensorSource | Prepared | Fitted]:
            return _tensors(
                model, read_ahead(source.tensors) if ahead else iter(source.tensors), recipe, level, threads
            )

        write(
            target,
            replace(source, tensors=Walked(tensors), bases=[url], check_unchanged=unchanged),
            level=level,
            kind=kind,
            threads=threads,
            show_progress=show_progress,
            options=target_options,
            retry=retry,
        )


def _tensors(
    model: Model, tuned: Iterator[TensorSource], recipe: Recipe | None, level: Level, threads: int
) -> Iterator[TensorSource | Prepared | Fitted]:
    entries = model.document.tensors
    kinds = {(entry.spec.dtype, entry.spec.shape) for entry in entries.values()}
    by_digest = {_key(entry): name for name, entry in reversed(list(entries.items()))}
    for source in tuned:
        spec, entry = source.spec, entries.get(source.spec.name)
        if (spec.dtype, spec.shape) not in kinds:
            yield source
            continue
        stored = origin(source)
        known = stored.sha256 if isinstance(stored, StoredTensor) else None
        words = source if known else held(source)
        sha256 = known or _digest(words)
        if entry and entry.sha256 == sha256 and _key(entry)[:2] == (spec.dtype, spec.shape):
            yield base_part(entry.spec, sha256, spec.name)
        elif same := by_digest.get((spec.dtype, spec.shape, sha256)):
            yield base_part(spec, sha256, same)
        elif (
            entry is None
            or (entry.spec.dtype, entry.spec.shape) != (spec.dtype, spec.shape)
            or (isinstance(stored, StoredTensor) and stored.changed)
        ):
            yield source
        else:
            under = StoredTensor(model, entry, model.document.stored(entry), threads)
            rule = recipe.rule_for(spec) if recipe else None
            fitted = _fitted(held(words), held(under), entry, rule, level) if rule else None
            yield fitted or _changed(held(words), held(under), entry, sha256, level)


def _key(entry: TensorEntry) -> tuple[object, ...]:
    return entry.spec.dtype, entry.spec.shape, entry.sha256


def _changed(tuned: TensorSource, base: TensorSource, entry: TensorEntry, sha256: str, level: Level) -> Prepared:
    """``tuned`` as a change of the tensor ``entry`` of the base, or whole."""
    found = choose_difference(tuned, base, level)
    part = found.choice.part
    if found.how is None:
        return Prepared(tuned.spec, part, sha256, found.words, found.choice)
    under = Base(tuned.spec.dtype, part.grid, 0, entry.spec.name, entry.sha256)
    return Prepared(tuned.spec, Combined((under, part), (found.how,)), sha256, found.words, found.choice)


def _fitted(tuned: TensorSource, base: TensorSource, entry: TensorEntry, rule: Rule, level: Level) -> Fitted | None:
    """``tuned`` as the base and what ``rule`` makes of the difference; None if the rule lets it stay lossless."""
    from mzstore import approximate, changes

    spec = tuned.spec
    grid = Grid(spec.word_shape, tuple(max(n, 1) for n in spec.word_shape))
    under = approximate.Under(Base(spec.dtype, grid, 0, entry.spec.name, entry.sha256), base)
    try:
        return Fitted(spec, tuned, changes.approximation(tuned, under, rule, level))
    except ValueError:
        if rule.on_error == "lossless":
            return None
        raise


def _digest(source: TensorSource) -> str:
    digest = hashlib.sha256()
    for block in blocks(source):
        digest.update(block.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def merge(
    location: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    level: Level = "balanced",
    kind: Kind | None = None,
    threads: int | None = None,
    show_progress: bool | None = None,
    storage_options: Options = None,
    target_options: Options = None,
    retry: Retry | None = None,
    bases: BaseLocations | None = None,
) -> None:
    """Write to ``target``, as an archive or a tree, the model at ``location`` with the values of all that it refers to.

    Values that are read are compared with their digests. ``bases``: where to find the bases, see ``open``. Raises FormatError
    for what is no archive or tree, and what ``open`` does for bases.
    """
    convert(
        location,
        target,
        level=level,
        to=kind or kind_for(target),
        threads=threads,
        show_progress=show_progress,
        storage_options=storage_options,
        target_options=target_options,
        retry=retry,
        bases=bases,
    )

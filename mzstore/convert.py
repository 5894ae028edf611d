"""Convert: any supported format into an archive or a tree, and back into the files that it came from."""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal, get_args

import numpy as np

from mzstore import kernels, report
from mzstore.bases import BaseLocations
from mzstore.check import check as check_target
from mzstore.documents import DOCUMENT, check_relative
from mzstore.edits import Casts, Edits, Patterns, Renames
from mzstore.encode import Level
from mzstore.errors import CorruptError
from mzstore.estimate import estimate
from mzstore.formats import open_source, safetensors
from mzstore.model import check_threads
from mzstore.progress import progress
from mzstore.recipe import Recipe
from mzstore.report import Report
from mzstore.sources import LayoutSource, ModelSource, TensorSource, Walked, blocks, read_ahead
from mzstore.storage import FileObjectSink, Options, Retry, Sink, create, create_folder, is_local, without_secrets
from mzstore.tensors import TensorSpec
from mzstore.writer import Importances, write

To = Literal["archive", "tree", "safetensors", "directory"]
BY_SUFFIX: Mapping[str, To] = {".mz": "archive", ".zip": "archive", ".zarr": "tree", ".safetensors": "safetensors"}
MAIN_FILE = "model.safetensors"


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    include: Patterns = None,
    exclude: Patterns = None,
    dtype: Casts = None,
    rename: Renames = None,
    recipe: Recipe | None = None,
    importance: Importances | None = None,
    level: Level = "balanced",
    to: To | None = None,
    check: bool = False,
    dry_run: bool = False,
    threads: int | None = None,
    show_progress: bool | None = None,
    storage_options: Options = None,
    target_options: Options = None,
    retry: Retry | None = None,
    bases: BaseLocations | None = None,
) -> Report:
    """Write the model at ``source`` (see ``formats.open_source``) to ``target``, bit for bit if nothing else is asked for.

    include, exclude  a glob pattern of names, or several: which tensors are taken. The others, their layout and the index of their
        files are left out
    dtype   what tensors of float16, bfloat16, float32 and float64 are cast to, by rounding to the nearest, ties to even: a dtype, or a
        mapping of glob patterns to dtypes, of which the first decides that matches. What they were is in the metadata
        (``mzstore.cast``). Values that would become infinite or NaN are an error. Tensors that are quantized stay so in archives
        and trees, and are not cast
    rename  a mapping of patterns to replacements, or strings ``PATTERN=>REPLACEMENT``, each applied to what the one before it gives: a
        glob pattern of the whole name, whose stars stand for those of the replacement, or a regular expression between slashes,
        as ``re.sub`` has it. All other patterns, and the names of ``recipe`` and ``importance``, are of names in the source
    recipe, importance  which tensors are quantized, and how: see ``save``. Tensors that are quantized already and that no
        rule is for stay as they are; only in files of other formats their values stand
    to  ``archive``, ``tree``; ``safetensors``, one file; ``directory``, the files that the model was converted from,
        byte for byte the same, with its assets. None: by the suffix of ``target`` (.mz, .zarr, .safetensors); if it has
        none of these, a directory for a model that was converted from one, else an archive.
    check    open the target then, and compare it with the source, see ``check``; CorruptError if they do not agree
    dry_run  write nothing: the report is what is expected, from a part of each tensor

    storage_options  for the fsspec filesystem of a ``source`` that is a URL; ``target_options``: of ``target``
    retry            how long remote storage is waited for, and how often it is asked, at either end; None: ``Retry()``
    bases            where to find the models that ``source`` refers to, see ``open``: what is written has their values

    Raises ValueError for what the target cannot hold, for patterns that match nothing and for two tensors of one name, and the errors
    of ``open`` and ``save``.
    """
    if to is not None and to not in get_args(To):
        raise ValueError(f"target kind {to!r} is none of {', '.join(get_args(To))}")
    start, threads, edits = time.monotonic(), check_threads(threads), Edits.of(include, exclude, dtype, rename)
    with open_source(source, storage_options, retry=retry, threads=threads, bases=bases) as model:
        kernels.expect(model.nbytes)
        to = to or _kind(target, model)
        kept = to in ("archive", "tree")
        if not kept and (recipe is not None or importance):
            raise ValueError(f"a recipe is for archives and trees, not for {to}: quantize to one of these first")
        edited = edits.apply(model, codes=kept)
        rules, weights = edited.rules(recipe), edited.by_name(importance)
        _check_importance(importance, model)
        model = edited.source
        sources = {tensor.spec.name: tensor for tensor in model.tensors}
        if dry_run and kept:
            tensors = estimate(edited, rules, weights or {}, level, threads)
        elif kept:
            kind: Literal["archive", "tree"] = "tree" if to == "tree" else "archive"
            if not is_local(source):
                model = replace(model, tensors=Walked(partial(read_ahead, model.tensors)))
            written = write(
                target,
                model,
                recipe=rules,
                importance=weights,
                level=level,
                kind=kind,
                threads=threads,
                show_progress=show_progress,
                options=target_options,
                retry=retry,
            )
            tensors = report.of_written(written, sources, edited.was)
        else:
            specs = [tensor.spec for tensor in sources.values()]
            tensors = tuple(report.TensorReport(spec, edited.was(spec), spec.nbytes, to) for spec in specs)
            if not dry_run:
                put = _write_file if to == "safetensors" else _write_directory
                with progress("write", model.nbytes, show_progress) as done:
                    put(target, model, target_options, retry, done)
    places = without_secrets(os.fspath(source)), without_secrets(os.fspath(target))
    found = report.Report(*places, to, tensors, time.monotonic() - start, edited.notes, dry_run=dry_run)
    if check and not dry_run:
        found = found.with_check(
            check_target(
                source,
                target,
                include=include,
                exclude=exclude,
                dtype=dtype,
                rename=rename,
                threads=threads,
                show_progress=show_progress,
                storage_options=storage_options,
                target_options=target_options,
                retry=retry,
                bases=bases,
            )
        )
        if not found.ok:
            first, *others = found.all_problems()
            also = f"; and {len(others)} problems more" if others else ""
            raise CorruptError(f"what was written is not the source: {first}{also}; convert again", where=found.target)
    return found


def _check_importance(importance: Importances | None, model: ModelSource) -> None:
    if importance:
        names = {tensor.spec.name for tensor in model.tensors}
        if unknown := [name for name in importance if name not in names]:
            raise ValueError(f"importance for {unknown[0]!r}, and there is no tensor of this name: leave it out")


def _kind(target: str | os.PathLike[str], model: ModelSource) -> To:
    name = os.fspath(target)
    suffix = os.path.splitext(name)[1]
    if suffix in BY_SUFFIX:
        return BY_SUFFIX[suffix]
    # A source in files of its own has layouts as well; only a model of ours is to be unpacked again.
    return "directory" if model.unpacks else "archive"


def _write_file(
    target: str | os.PathLike[str],
    model: ModelSource,
    options: Options,
    retry: Retry | None,
    done: Callable[[int], None],
) -> None:
    tensors = {tensor.spec.name: tensor for tensor in model.tensors}
    header = _own_header(model, tensors) or _new_header(model, tensors)
    with create(target, options, model.nbytes, retry) as sink:
        _write_tensors(sink, header, "", tensors, done)
        model.check_unchanged()


def _write_directory(
    target: str | os.PathLike[str],
    model: ModelSource,
    options: Options,
    retry: Retry | None,
    done: Callable[[int], None],
) -> None:
    tensors = {tensor.spec.name: tensor for tensor in model.tensors}
    files = [(layout.path, _checked(layout, tensors), layout.prefix) for layout in model.layouts]
    covered = {prefix + name for _, header, prefix in files for name in header.tensors}
    if files and (left := tensors.keys() - covered):
        raise ValueError(f"no layout has tensor {min(left)!r}; convert to an archive or a safetensors file instead")
    if not files and tensors:
        files = [(MAIN_FILE, _new_header(model, tensors), "")]
    with create_folder(target, options, DOCUMENT, retry) as folder:
        for asset in model.assets:
            check_relative(asset.path, where=os.fspath(target))
            with folder.open(asset.path) as file:
                for block in asset.blocks():
                    file.write(block)
        for path, header, prefix in files:
            check_relative(path, where=os.fspath(target))
            with folder.open(path) as file:
                _write_tensors(FileObjectSink(file), header, prefix, tensors, done)
        model.check_unchanged()


def _own_header(model: ModelSource, tensors: Mapping[str, TensorSource]) -> safetensors.Header | None:
    """The header of the one file that the model came from; None if it came from several, or from none."""
    if len(model.layouts) != 1 or model.layouts[0].prefix:
        return None
    header = _checked(model.layouts[0], tensors)
    return header if header.tensors.keys() == tensors.keys() else None


def _checked(layout: LayoutSource, tensors: Mapping[str, TensorSource]) -> safetensors.Header:
    """The header of ``layout``. Raises ValueError if its tensors are not those of the model."""
    header = safetensors.parse_header(layout.header, where=f"layout of {layout.path!r}")
    for name, tensor in header.tensors.items():
        found = tensors.get(layout.prefix + name)
        if found is None or (found.spec.dtype, found.spec.shape) != (tensor.spec.dtype, tensor.spec.shape):
            raise ValueError(f"the layout of {layout.path!r} has a tensor {name!r} that the model has not, or not so")
    return header


def _new_header(model: ModelSource, tensors: Mapping[str, TensorSource]) -> safetensors.Header:
    specs = [tensor.spec for tensor in tensors.values()]
    safetensors.check_specs(specs)
    return safetensors.new_header(specs, {key: _text(value) for key, value in model.metadata.items()})


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _write_tensors(
    sink: Sink,
    header: safetensors.Header,
    prefix: str,
    tensors: Mapping[str, TensorSource],
    done: Callable[[int], None],
) -> None:
    def read(spec: TensorSpec) -> Iterator[np.ndarray]:
        return blocks(tensors[prefix + spec.name])

    safetensors.write(sink, header, read, done)

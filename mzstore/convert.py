"""Convert: any supported format into an archive or a tree, and back into the files that it came from."""

import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal, Self

from mzstore import kernels, report
from mzstore.bases import BaseLocations
from mzstore.check import check as check_target
from mzstore.documents import DOCUMENT, check_relative
from mzstore.edits import Casts, Edits, Patterns, Renames, is_coded
from mzstore.encode import Level
from mzstore.errors import CorruptError
from mzstore.estimate import estimate
from mzstore.formats import FILE_FORMATS, layouts, open_source, safetensors
from mzstore.formats.base import NewFile
from mzstore.journal import resume
from mzstore.model import check_threads
from mzstore.pins import digest, pin
from mzstore.progress import progress
from mzstore.recipe import Recipe
from mzstore.report import Report
from mzstore.sources import LayoutSource, ModelSource, TensorSource, block_type_of
from mzstore.split import write_split
from mzstore.storage import FileObjectSink, Options, Retry, Sink, create, create_folder, is_local, without_secrets
from mzstore.writer import Importances, write

KINDS = ("archive", "tree", "manifest", "directory", *(format_.name for format_ in FILE_FORMATS))
BY_SUFFIX: Mapping[str, str] = {suffix: f.name for f in reversed(FILE_FORMATS) for suffix in f.suffixes} | {
    ".mz": "archive", ".zip": "archive", ".zarr": "tree", ".json": "manifest",
}  # fmt: skip
MAIN_FILE = "model.safetensors"  # of a directory that is made of a model without layouts


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    include: Patterns = None,
    exclude: Patterns = None,
    dtype: Casts = None,
    rename: Renames = None,
    dequantize: bool = False,
    recipe: Recipe | None = None,
    importance: Importances | None = None,
    level: Level = "balanced",
    to: str | None = None,
    check: bool = False,
    dry_run: bool = False,
    shard_nbytes: int | None = None,
    executor: Any = None,
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
    dequantize  plain weights instead of those that GPTQ, AWQ and so on have quantized: the values of ``dequantized``, which all other
        arguments are then about. What says that they are quantized is taken out of config.json
    recipe, importance  which tensors are quantized, and how: see ``save``. Tensors that are quantized already and that no
        rule is for stay as they are; only in files of other formats their values stand
    to  ``archive``, ``tree``; ``manifest``, several archives and a manifest of them; ``directory``, the files that the model was converted from, byte for byte the same, with its
        assets; or the name of a format of single files (``formats.FILE_FORMATS``): the file that the model was converted
        from, byte for byte the same, if it was one of this format and has a layout, else a new one of the same tensors; the
        report's notes say which. None: by the suffix of ``target`` (.mz, .zarr, .json, .safetensors, ...); if it has none that is known, a
        directory for a model that has layouts, else an archive.
    check    open the target then, and compare it with the source, see ``check``; CorruptError if they do not agree
    dry_run  write nothing: the report is what is expected, from a part of each tensor
    shard_nbytes  of a manifest: how many bytes of values come into an archive, but for a larger tensor; None: ``split.SHARD_NBYTES``
    executor      of a manifest: what carries out a task for each archive: anything with ``submit``, or ``map``, as the executors of
        concurrent.futures, clients of Dask and pools of Ray have them. Its processes must reach both ends. None: one after the other,
        here.

    A conversion to a tree or to several archives that was interrupted, or whose tasks failed, is gone on with by the same call: what is
    complete, of the same source by the same options, is not encoded again.

    storage_options  for the fsspec filesystem of a ``source`` that is a URL; ``target_options``: of ``target``
    retry            how long remote storage is waited for, and how often it is asked, at either end; None: ``Retry()``
    bases            where to find the models that ``source`` refers to, see ``open``: what is written has their values

    Raises ValueError for what the target cannot hold, for patterns that match nothing and for two tensors of one name; ConflictError
    for a manifest that is there, from another conversion; and the errors of ``open`` and ``save``.
    """
    if to is not None and to not in KINDS:
        raise ValueError(f"target kind {to!r} is none of {', '.join(KINDS)}")
    start, edits = time.monotonic(), Edits.of(include, exclude, dtype, rename, dequantize)
    own_threads, threads = threads is not None, check_threads(threads)
    with open_source(source, storage_options, retry=retry, threads=threads, bases=bases) as model:
        kernels.expect(model.nbytes)
        to = to or _kind(target, model)
        kept = to in ("archive", "tree", "manifest")
        if to != "manifest" and (shard_nbytes is not None or executor is not None):
            raise ValueError(
                f"shards and executors are for several archives, not for {to}: give the target a name that ends in .json"
            )
        if not kept and (recipe is not None or importance):
            raise ValueError(f"a recipe is for archives and trees, not for {to}: quantize to one of these first")
        edited = edits.apply(model, codes=kept)
        rules, weights = edited.rules(recipe), edited.by_name(importance)
        _check_importance(importance, model)
        model = edited.source
        notes = (*edited.notes, *model.notes)
        sources = {tensor.spec.name: tensor for tensor in model.tensors}
        if dry_run and kept:
            tensors = estimate(edited, rules, weights or {}, level, threads)
        elif to == "manifest":
            with progress("encode", model.nbytes, show_progress) as done:
                tensors, more = write_split(
                    source,
                    target,
                    edited,
                    edits=edits,
                    recipe=recipe,
                    importance=weights,
                    level=level,
                    shard_nbytes=shard_nbytes,
                    executor=executor,
                    threads=threads if own_threads or executor is None else 1,
                    done=done,
                    options=storage_options,
                    target_options=target_options,
                    retry=retry,
                    bases=bases,
                )
            notes = (*notes, *more)
        elif kept:
            kind: Literal["archive", "tree"] = "tree" if to == "tree" else "archive"
            with ExitStack() as stack:
                resumed = None
                if kind == "tree":
                    where = os.path.abspath(source) if is_local(source) else os.fspath(source)
                    pinned = {**pin(source, storage_options, retry), **model.files}
                    conversion = digest(where, pinned, importance, edits=edits.to_json(), recipe=recipe, level=level)
                    resumed = stack.enter_context(resume(target, conversion, target_options, retry))
                    left = (f"what another conversion has left lies in {each}: remove it" for each in resumed.others)
                    notes = (*notes, *left)
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
                    ahead="hold" if not is_local(source) else "choose" if threads > 1 else None,
                    resumed=resumed,
                )
            tensors = report.of_written(written, sources, edited.was)
        else:
            specs = [tensor.spec for tensor in sources.values()]
            tensors = tuple(report.TensorReport(spec, edited.was(spec), spec.nbytes, to) for spec in specs)
            files = _Files.of_directory(model) if to == "directory" else _Files.of_one(model, to)
            notes = (*notes, *files.notes)
            if not dry_run:
                with progress("write", model.nbytes, show_progress) as done:
                    files.write(target, target_options, retry, done)
    places = without_secrets(os.fspath(source)), without_secrets(os.fspath(target))
    found = report.Report(*places, to, tensors, time.monotonic() - start, notes, dry_run=dry_run)
    if check and not dry_run:
        found = found.with_check(
            check_target(
                source,
                target,
                include=include,
                exclude=exclude,
                dtype=dtype,
                rename=rename,
                dequantize=dequantize,
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


def _kind(target: str | os.PathLike[str], model: ModelSource) -> str:
    name = os.fspath(target)
    suffix = os.path.splitext(name)[1].lower()
    if suffix in BY_SUFFIX:
        return BY_SUFFIX[suffix]
    # A source in files of its own has layouts as well; only a model of ours is to be unpacked again.
    return "directory" if model.unpacks else "archive"


@dataclass(frozen=True, slots=True)
class _Files:
    """What is written in formats of others. One that exists can be written.

    laid_out  by path, files that are made as they were; of a single file the path does not matter
    new       by path, what writes a new file
    """

    model: ModelSource
    tensors: Mapping[str, TensorSource]
    laid_out: Mapping[str, layouts.FileLayout]
    new: Mapping[str, NewFile]
    notes: tuple[str, ...] = ()
    single: bool = False

    @classmethod
    def of_one(cls, model: ModelSource, kind: str) -> Self:
        """One file of the format ``kind``."""
        tensors = {tensor.spec.name: tensor for tensor in model.tensors}
        if len(model.layouts) == 1 and model.layouts[0].kind == kind and not model.layouts[0].prefix:
            layout = _checked(model.layouts[0], tensors)
            if layout.tensors.keys() == tensors.keys():
                name = model.layouts[0].path
                note = f"byte for byte the file {name} that the model was converted from"
                if any(is_coded(tensor) and not block_type_of(tensor) for tensor in tensors.values()):
                    note = f"laid out as the file {name}, with values of tensors that were changed"
                return cls(model, tensors, {"": layout}, {}, (note,), single=True)
        write_new = next(format_.write for format_ in FILE_FORMATS if format_.name == kind)
        if write_new is None:
            if [layout for layout in model.layouts if layout.kind == kind]:
                raise ValueError(
                    f"no new {kind} file can be written; the files that the model came from are made again in a directory"
                )
            raise ValueError(
                f"no new {kind} file can be written, and the model was not converted from one that has a layout; "
                "convert to an archive, a tree or a safetensors file instead"
            )
        note = f"a new {kind} file: equal tensors, and not the bytes of a file that they came from"
        return cls(model, tensors, {}, {"": write_new}, (note,), single=True)

    @classmethod
    def of_directory(cls, model: ModelSource) -> Self:
        """The files that a model was converted from; where there were none that have layouts, a safetensors file."""
        tensors = {tensor.spec.name: tensor for tensor in model.tensors}
        files = {layout.path: _checked(layout, tensors) for layout in model.layouts}
        if files and (left := tensors.keys() - {name for layout in files.values() for name in layout.tensors}):
            raise ValueError(f"no layout has tensor {min(left)!r}; convert to an archive or a safetensors file instead")
        for path in [*files, *(asset.path for asset in model.assets)]:
            check_relative(path, where="the model")
        if files or not tensors:
            return cls(model, tensors, files, {})
        note = f"{MAIN_FILE} is a new file: equal tensors, and not the bytes of a file that they came from"
        return cls(model, tensors, {}, {MAIN_FILE: safetensors.write_new}, (note,))

    def write(
        self,
        target: str | os.PathLike[str],
        options: Options,
        retry: Retry | None,
        done: Callable[[int], None],
    ) -> None:
        if self.single:
            nbytes = sum(layout.nbytes for layout in self.laid_out.values()) or self.model.nbytes
            with create(target, options, nbytes, retry) as sink:
                self._write(sink, "", done)
                self.model.check_unchanged()
            return
        with create_folder(target, options, DOCUMENT, retry) as folder:
            for asset in self.model.assets:
                with folder.open(asset.path) as file:
                    for block in asset.blocks():
                        file.write(block)
            for path in (*self.laid_out, *self.new):
                with folder.open(path) as file:
                    self._write(FileObjectSink(file), path, done)
            self.model.check_unchanged()

    def _write(self, sink: Sink, path: str, done: Callable[[int], None]) -> None:
        if path in self.laid_out:
            self.laid_out[path].write(sink, self.tensors, done)
        else:
            self.new[path](sink, self.model, self.tensors, done)


def _checked(source: LayoutSource, tensors: Mapping[str, TensorSource]) -> layouts.FileLayout:
    """The layout in ``source``. Raises ValueError if its tensors are not those of the model."""
    layout = layouts.parse(source, where=f"layout of {source.path!r}")
    name = layouts.mismatch(layout, {name: tensor.spec for name, tensor in tensors.items()})
    if name is not None:
        raise ValueError(f"the layout of {source.path!r} has a tensor {name!r} that the model has not, or not so")
    for name, form in layout.forms.items():
        if block_type_of(tensors[name]) is not form:
            raise ValueError(
                f"{source.path!r} cannot be made again: it has tensor {name!r} as {form.name}, and the model has other values "
                "for it; convert to an archive or a safetensors file instead"
            )
    return layout

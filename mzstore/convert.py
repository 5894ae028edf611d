"""Convert: any supported format into an archive or a tree, and back into the files that it came from."""

import json
import math
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import numpy as np

from mzstore import kernels
from mzstore.bases import BaseLocations
from mzstore.documents import DOCUMENT, check_relative
from mzstore.encode import Level
from mzstore.formats import open_source, safetensors
from mzstore.model import check_threads
from mzstore.progress import progress
from mzstore.recipe import Recipe
from mzstore.sources import LayoutSource, ModelSource, TensorSource, Walked, blocks, read_ahead
from mzstore.storage import FileObjectSink, Options, Retry, Sink, create, create_folder, is_local
from mzstore.tensors import TensorSpec
from mzstore.writer import Importances, write

To = Literal["archive", "tree", "safetensors", "directory"]
BY_SUFFIX: Mapping[str, To] = {".mz": "archive", ".zip": "archive", ".zarr": "tree", ".safetensors": "safetensors"}
MAIN_FILE = "model.safetensors"


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    recipe: Recipe | None = None,
    importance: Importances | None = None,
    level: Level = "balanced",
    to: To | None = None,
    threads: int | None = None,
    show_progress: bool | None = None,
    storage_options: Options = None,
    target_options: Options = None,
    retry: Retry | None = None,
    bases: BaseLocations | None = None,
) -> None:
    """Write the model at ``source`` (see ``formats.open_source``) to ``target``, bit for bit if there is no recipe.

    recipe, importance  which tensors are quantized, and how: see ``save``. Tensors that are quantized already and that no
        rule is for stay as they are; only in files of other formats their values stand
    to  ``archive``, ``tree``; ``safetensors``, one file; ``directory``, the files that the model was converted from,
        byte for byte the same, with its assets. None: by the suffix of ``target`` (.mz, .zarr, .safetensors); if it has
        none of these, a directory for a model that was converted from one, else an archive.

    storage_options  for the fsspec filesystem of a ``source`` that is a URL; ``target_options``: of ``target``
    retry            how long remote storage is waited for, and how often it is asked, at either end; None: ``Retry()``
    bases            where to find the models that ``source`` refers to, see ``open``: what is written has their values

    Raises ValueError for what the target cannot hold, and the errors of ``open`` and ``save``.
    """
    if to is not None and to not in get_args(To):
        raise ValueError(f"target kind {to!r} is none of {', '.join(get_args(To))}")
    threads = check_threads(threads)
    with open_source(source, storage_options, retry=retry, threads=threads, bases=bases) as model:
        kernels.expect(model.nbytes)
        to = to or _kind(target, model)
        if to not in ("archive", "tree") and (recipe is not None or importance):
            raise ValueError(f"a recipe is for archives and trees, not for {to}: quantize to one of these first")
        if to in ("archive", "tree"):
            kind: Literal["archive", "tree"] = "tree" if to == "tree" else "archive"
            if isinstance(source, (str, os.PathLike)) and not is_local(source):
                model = replace(model, tensors=Walked(partial(read_ahead, model.tensors)))
            write(
                target,
                model,
                recipe=recipe,
                importance=importance,
                level=level,
                kind=kind,
                threads=threads,
                show_progress=show_progress,
                options=target_options,
                retry=retry,
            )
        elif to == "safetensors":
            with progress("write", model.nbytes, show_progress) as done:
                _write_file(target, model, target_options, retry, done)
        else:
            with progress("write", model.nbytes, show_progress) as done:
                _write_directory(target, model, target_options, retry, done)


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

"""Formats that models come in and go to. ``open_source`` finds out which one by content."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial

from mzstore import composite, model, storage
from mzstore.bases import BaseLocations, check_unchanged
from mzstore.documents import DOCUMENT
from mzstore.errors import FormatError
from mzstore.formats import (
    gguf,
    hdf5,
    huggingface,
    mxnet,
    npy,
    onnx,
    pytorch,
    safetensors,
    tensorflow,
    torch_dcp,
    zarr_groups,
    zips,
)
from mzstore.formats.base import Candidate, FileFormat, FolderFormat, Opening
from mzstore.formats.layouts import MAX_LAYOUT_NBYTES
from mzstore.manifest import MANIFESTS, manifest_key, steps_in
from mzstore.sources import FileSource, LayoutSource, ModelSource

# In the order in which they are tried. Of the weights in a directory, those of the first format are read.
FILE_FORMATS: tuple[FileFormat, ...] = (
    safetensors.FORMAT,
    pytorch.FORMAT,
    gguf.FORMAT,
    onnx.FORMAT,
    hdf5.KERAS_FORMAT,
    hdf5.FORMAT,
    tensorflow.FORMAT,
    mxnet.FORMAT,
    npy.NPY,
    npy.NPZ,
)
BESIDE = (*onnx.FORMAT.suffixes, *tensorflow.FORMAT.suffixes)  # of files beside which values may lie
FOLDER_FORMATS: tuple[FolderFormat, ...] = (
    torch_dcp.FORMAT,
    zarr_groups.FORMAT,
)


@contextmanager
def open_source(
    location: storage.Location,
    options: storage.Options = None,
    *,
    retry: storage.Retry | None = None,
    threads: int = 1,
    bases: BaseLocations | None = None,
) -> Iterator[ModelSource]:
    """A model in any supported format, to be read as long as the block lasts.

    An mzstore archive, tree or manifest, a store of checkpoints, of which the last is read, a file of one of FILE_FORMATS, a
    directory of one of FOLDER_FORMATS, the index of a sharded model (``*.index.json``), or a Hugging Face directory. Raises
    FormatError for anything else.
    ``bases``: see ``model.open``.
    """
    with ExitStack() as stack:
        opening = Opening(options, retry, stack)

        def own(location: storage.Location = location) -> ModelSource:
            opened = model.open(location, storage_options=options, retry=retry, bases=bases)
            return of_model(stack.enter_context(opened), threads)

        if isinstance(location, (str, os.PathLike)) and os.fspath(location).endswith(huggingface.INDEX_SUFFIX):
            yield replace(_index(location, opening), files=opening.files)
        elif composite.is_manifest(location):
            yield own()
        else:
            found = storage.open_location(location, options, retry=retry)
            if isinstance(found, storage.Folder):
                if found.has(DOCUMENT) and zarr_groups.is_mzstore(found):
                    yield own()
                elif isinstance(location, (str, os.PathLike)) and (last := _last_manifest(location, opening)):
                    yield own(last)
                else:
                    yield replace(_directory(found, opening), files=opening.files)
                return
            stack.callback(found.close)
            file = Candidate(found)
            format_ = _format(file)
            yield replace(format_.open(file, opening), files=opening.files) if format_ else own()


def _index(location: str | os.PathLike[str], opening: Opening) -> ModelSource:
    path, _, name = os.fspath(location).replace(os.sep, "/").rpartition("/")
    if "://" not in path:
        path = os.path.dirname(os.fspath(location)) or "."
    folder = storage.open_location(f"{path}/", opening.options, retry=opening.retry)
    if not isinstance(folder, storage.Folder):
        raise FormatError("not a directory", where=path)
    return huggingface.open_index(folder, name, opening, FILE_FORMATS)


def _last_manifest(location: str | os.PathLike[str], opening: Opening) -> str | None:
    """That of the last checkpoint of a store; None if it is no store."""
    address = os.fspath(location).rstrip("/")
    steps = steps_in(storage.open_objects(address, opening.options, opening.retry).listing(MANIFESTS))
    return f"{address}/{manifest_key(steps[-1])}" if steps else None


def _directory(folder: storage.Folder, opening: Opening) -> ModelSource:
    for format_ in FOLDER_FORMATS:
        if format_.recognizes(folder):
            return format_.open(folder, opening)
    return huggingface.open_directory(folder, opening, FILE_FORMATS)


def _format(file: Candidate) -> FileFormat | None:
    """The format of ``file``; None for what only an archive of mzstore can be, perhaps a broken one."""
    for format_ in FILE_FORMATS:
        if format_.recognizes(file):
            return format_
    if DOCUMENT in file.members:
        return None
    for format_ in FILE_FORMATS:
        if file.name.lower().endswith(format_.suffixes):
            return format_  # which says what is wrong with it
    if file.start[: len(zips.MAGIC)] == zips.MAGIC:
        return None
    known = ", ".join([f.name for f in FILE_FORMATS] + [f.name for f in FOLDER_FORMATS])
    raise FormatError(
        f"not a model: its content is of no format that can be read, which are mzstore, {known}, and Hugging Face directories",
        where=file.blob.url,
    )


def of_model(opened: model.Model, threads: int = 1) -> ModelSource:
    """An open model as a source."""
    reader, document = opened.reader, opened.document
    layouts = []
    for layout in document.layouts:
        raw = reader.read_document(layout.key, MAX_LAYOUT_NBYTES)
        if raw is None:
            raise FormatError(f"the layout {layout.key!r} is missing", where=reader.url, clause="layout-1")
        layouts.append(LayoutSource(layout.path, raw, layout.prefix, layout.format, layout.kind))
    assets = [FileSource(asset.path, partial(model.asset_blocks, reader, asset)) for asset in document.assets]
    return ModelSource(
        opened.sources(threads),
        opened.nbytes,
        document.metadata,
        assets,
        layouts,
        unpacks=bool(layouts),
        check_unchanged=partial(check_unchanged, opened),
    )

"""Formats that models come in and go to. ``open_source`` finds out which one by content."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from mzstore import composite, model, storage
from mzstore.bases import BaseLocations, check_unchanged
from mzstore.documents import DOCUMENT
from mzstore.errors import FormatError
from mzstore.formats import huggingface, safetensors
from mzstore.sources import FileSource, LayoutSource, ModelSource

ZIP_MAGIC = b"PK\x03\x04"
MAX_LAYOUT_NBYTES = safetensors.MAX_HEADER_NBYTES + 8


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

    An mzstore archive, tree or manifest, a safetensors file, the index of a sharded one (``*.safetensors.index.json``), or a
    Hugging Face directory. Raises FormatError for anything else. ``bases``: see ``model.open``.
    """
    with ExitStack() as stack:
        if isinstance(location, (str, os.PathLike)) and os.fspath(location).endswith(huggingface.INDEX_SUFFIX):
            path, _, name = os.fspath(location).replace(os.sep, "/").rpartition("/")
            if "://" not in path:
                path = os.path.dirname(os.fspath(location)) or "."
            folder = storage.open_location(f"{path}/", options, retry=retry)
            if not isinstance(folder, storage.Folder):
                raise FormatError("not a directory", where=path)
            yield huggingface.open_index(folder, name, options, retry, stack)
            return
        if composite.is_manifest(location):
            opened = model.open(location, storage_options=options, retry=retry, bases=bases)
            yield of_model(stack.enter_context(opened), threads)
            return
        found = storage.open_location(location, options, retry=retry)
        if isinstance(found, storage.Folder):
            if not found.has(DOCUMENT):
                yield huggingface.open_directory(found, options, retry, stack)
                return
        else:
            stack.callback(found.close)
            if bytes(found.read(0, min(4, found.nbytes))) != ZIP_MAGIC:
                header = safetensors.read_header(found)
                tensors = list(safetensors.sources(found, header))
                name = found.url.rpartition("/")[2]
                yield ModelSource(
                    tensors,
                    sum(t.spec.nbytes for t in tensors),
                    header.metadata,
                    (),
                    [LayoutSource(name, header.raw)],
                    check_unchanged=partial(safetensors.check_unchanged, (found,)),
                )
                return
        yield of_model(
            stack.enter_context(model.open(location, storage_options=options, retry=retry, bases=bases)), threads
        )


def of_model(opened: model.Model, threads: int = 1) -> ModelSource:
    """An open model as a source."""
    reader, document = opened.reader, opened.document
    layouts = []
    for layout in document.layouts:
        raw = reader.read_document(layout.key, MAX_LAYOUT_NBYTES)
        if raw is None:
            raise FormatError(f"the layout {layout.key!r} is missing", where=reader.url, clause="layout-2")
        layouts.append(LayoutSource(layout.path, raw, layout.prefix))
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

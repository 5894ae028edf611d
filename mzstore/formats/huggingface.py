"""Hugging Face models: a directory, or an index of safetensors shards, as one model.

The tensors of all safetensors files become tensors of the model; every other file travels as an asset.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial

from mzstore import documents
from mzstore.errors import FormatError, StorageError
from mzstore.formats import safetensors
from mzstore.sources import FileSource, LayoutSource, ModelSource, TensorSource
from mzstore.storage import BLOCK_NBYTES, Blob, Folder, Options, Retry, open_location

INDEX_SUFFIX = ".safetensors.index.json"
SUFFIX = ".safetensors"
LEFT_OUT = (".git/", ".cache/")  # what a clone or a download keeps for itself


def open_directory(folder: Folder, options: Options, retry: Retry | None, stack: ExitStack) -> ModelSource:
    """All of a directory. ``stack`` closes what is opened."""
    paths = [path for path in folder.walk() if not path.startswith(LEFT_OUT)]
    weights = [path for path in paths if path.endswith(SUFFIX)]
    if not weights:
        raise FormatError("no safetensors file in this directory, and no mzstore tree", where=folder.url)
    blobs = {path: _open(folder.url, path, options, retry, stack) for path in weights}
    for path in paths:
        if path.endswith(INDEX_SUFFIX):
            _check_index(folder, path, blobs)
    assets = [path for path in paths if not path.endswith(SUFFIX)]
    return _model(blobs, [FileSource(path, partial(_blocks, folder.url, path, options, retry)) for path in assets])


def open_index(folder: Folder, path: str, options: Options, retry: Retry | None, stack: ExitStack) -> ModelSource:
    """The shards that the index file ``path`` of ``folder`` names, and the index itself."""
    names = sorted(set(_weight_map(folder, path).values()))
    for name in names:
        documents.check_relative(name, where=f"{folder.url}/{path}")
    blobs = {name: _open(folder.url, name, options, retry, stack) for name in names}
    _check_index(folder, path, blobs)
    return _model(blobs, [FileSource(path, partial(_blocks, folder.url, path, options, retry))])


def _model(blobs: dict[str, Blob], assets: list[FileSource]) -> ModelSource:
    tensors: list[TensorSource] = []
    layouts: list[LayoutSource] = []
    metadata: dict[str, str] = {}
    taken: set[str] = set()
    for path, blob in blobs.items():
        header = safetensors.read_header(blob)
        folder, slash, _ = path.rpartition("/")
        prefix = folder + slash
        if any(prefix + name in taken for name in header.tensors):
            prefix = f"{path}/"
        for tensor in safetensors.sources(blob, header, prefix):
            taken.add(tensor.spec.name)
            tensors.append(tensor)
        layouts.append(LayoutSource(path, header.raw, prefix))
        metadata = metadata or dict(header.metadata)
    return ModelSource(
        tensors,
        sum(t.spec.nbytes for t in tensors),
        metadata,
        assets,
        layouts,
        check_unchanged=partial(safetensors.check_unchanged, tuple(blobs.values())),
    )


def _open(folder_url: str, path: str, options: Options, retry: Retry | None, stack: ExitStack) -> Blob:
    blob = open_location(f"{folder_url.rstrip('/')}/{path}", options, retry=retry)
    if isinstance(blob, Folder):
        raise StorageError(f"{path!r} in {folder_url!r} is a directory, not a file")
    stack.callback(blob.close)
    return blob


def _blocks(folder_url: str, path: str, options: Options, retry: Retry | None) -> Iterator[bytes]:
    with ExitStack() as stack:
        blob = _open(folder_url, path, options, retry, stack)
        for start in range(0, blob.nbytes, BLOCK_NBYTES):
            yield bytes(blob.read(start, min(start + BLOCK_NBYTES, blob.nbytes)))
        blob.check_unchanged(blob.start())


def _weight_map(folder: Folder, path: str) -> dict[str, str]:
    where = f"{folder.url}/{path}"
    data = folder.read(path, documents.MAX_DOCUMENT_NBYTES)
    if data is None:
        raise StorageError(f"cannot open {where!r}: no such file")
    match documents.load(bytes(data), where=where, clause="").get("weight_map"):
        case dict(found) if all(isinstance(file, str) for file in found.values()):
            return found
    raise FormatError("no 'weight_map' from tensor names to files", where=where)


def _check_index(folder: Folder, path: str, blobs: dict[str, Blob]) -> None:
    """Raises FormatError unless the files hold just the tensors that the index says."""
    where = f"{folder.url}/{path}"
    base = path.rpartition("/")[0]
    beside: Callable[[str], str] = lambda file: f"{base}/{file}" if base else file  # noqa: E731
    expected: dict[str, set[str]] = {}
    for name, file in _weight_map(folder, path).items():
        expected.setdefault(beside(file), set()).add(name)
    for file, names in expected.items():
        if file not in blobs:
            raise FormatError(f"the shard {file!r} is missing", where=where)
        found = set(safetensors.read_header(blobs[file]).tensors)
        if found != names:
            raise FormatError(f"shard {file!r} and index disagree about tensor {min(found ^ names)!r}", where=where)

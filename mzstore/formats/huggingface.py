"""Hugging Face models: a directory, or an index of shards, as one model.

The tensors of all files with weights become tensors of the model; every other file travels as an asset.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

from mzstore import documents
from mzstore.errors import FormatError, StorageError, UnsupportedError
from mzstore.formats.base import Candidate, FileFormat, Opening
from mzstore.sources import FileSource, LayoutSource, ModelSource, Renamed, TensorSource
from mzstore.storage import BLOCK_NBYTES, Folder, Options, Retry

INDEX_SUFFIX = ".index.json"  # behind the suffix of the shards
LEFT_OUT = (".git/", ".cache/")  # what a clone or a download keeps for itself


def open_directory(folder: Folder, opening: Opening, formats: Sequence[FileFormat]) -> ModelSource:
    """All of a directory. Of several formats of weights in it, the first of ``formats`` is read, and the others are assets."""
    paths = [path for path in folder.walk() if not path.startswith(LEFT_OUT)]
    for format_ in formats:
        files, notes = _weights(folder, paths, opening, format_)
        if files:
            break
    else:
        held = ", ".join(suffix for format_ in formats for suffix in format_.suffixes)
        raise FormatError(f"no weights in this directory ({held}), and no other model", where=folder.url)
    for path in paths:
        if path.endswith(tuple(suffix + INDEX_SUFFIX for suffix in format_.suffixes)):
            _check_index(folder, path, files)
    laid_out = {_beside(path, layout.path) for path, file in files.items() for layout in file.layouts}
    assets = [path for path in paths if path not in files and path not in laid_out]
    return _joined(
        files,
        [FileSource(path, partial(_blocks, folder.url, path, opening.options, opening.retry)) for path in assets],
        notes,
    )


def open_index(folder: Folder, path: str, opening: Opening, formats: Sequence[FileFormat]) -> ModelSource:
    """The shards that the index file ``path`` of ``folder`` names, and the index itself."""
    where = f"{folder.url}/{path}"
    names = sorted(set(_weight_map(folder, path).values()))
    for name in names:
        documents.check_relative(name, where=where)
    files = {}
    for name in names:
        file = Candidate(opening.file(folder.url, name))
        matching = [each for each in formats if name.endswith(each.suffixes)]
        if not matching:
            raise FormatError(f"the shard {name!r} is of no format that has shards", where=where)
        files[name] = matching[0].open(file, opening)
    _check_index(folder, path, files)
    return _joined(files, [FileSource(path, partial(_blocks, folder.url, path, opening.options, opening.retry))], [])


def _weights(
    folder: Folder, paths: Sequence[str], opening: Opening, format_: FileFormat
) -> tuple[dict[str, ModelSource], list[str]]:
    """The files of ``format_``; and why others that seem to be are none."""
    files: dict[str, ModelSource] = {}
    notes = []
    for path in paths:
        if not path.lower().endswith(format_.suffixes):
            continue
        file = Candidate(opening.file(folder.url, path))
        if format_.sure:
            files[path] = format_.open(file, opening)
        elif format_.recognizes(file):
            try:
                files[path] = format_.open(file, opening)
            except UnsupportedError as error:
                notes.append(f"{path} travels as it is: {error.problem}")
    return files, notes


def _beside(path: str, name: str) -> str:
    """The path of the file ``name`` in the directory that ``path`` lies in."""
    folder, slash, _ = path.rpartition("/")
    return folder + slash + name


def _joined(files: Mapping[str, ModelSource], assets: list[FileSource], notes: list[str]) -> ModelSource:
    tensors: list[TensorSource] = []
    layouts: list[LayoutSource] = []
    metadata: Mapping[str, object] = {}
    taken: set[str] = set()
    for path, file in files.items():
        folder, slash, _ = path.rpartition("/")
        prefix, found = folder + slash, list(file.tensors)
        if any(prefix + tensor.spec.name in taken for tensor in found):
            prefix = f"{path}/"
        tensors += [Renamed(prefix + tensor.spec.name, tensor) if prefix else tensor for tensor in found]
        taken |= {prefix + tensor.spec.name for tensor in found}
        layouts += [replace(layout, path=_beside(path, layout.path), prefix=prefix) for layout in file.layouts]
        metadata = metadata or dict(file.metadata)
        notes += [f"{path}: {note}" for note in file.notes]

    paths = [layout.path for layout in layouts]
    if twice := [path for path in paths if paths.count(path) > 1]:
        raise UnsupportedError(f"several models have their weights in {twice[0]!r}: convert them one at a time")

    def check_unchanged() -> None:
        for file in files.values():
            file.check_unchanged()

    nbytes = sum(file.nbytes for file in files.values())
    return ModelSource(tensors, nbytes, metadata, assets, layouts, notes=notes, check_unchanged=check_unchanged)


def _blocks(folder_url: str, path: str, options: Options, retry: Retry | None) -> Iterator[bytes]:
    with ExitStack() as stack:
        blob = Opening(options, retry, stack).file(folder_url, path)
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


def _check_index(folder: Folder, path: str, files: Mapping[str, ModelSource]) -> None:
    """Raises FormatError unless the files hold just the tensors that the index says."""
    where = f"{folder.url}/{path}"
    base, slash, _ = path.rpartition("/")
    expected: dict[str, set[str]] = {}
    for name, file in _weight_map(folder, path).items():
        expected.setdefault(base + slash + file, set()).add(name)
    for file, names in expected.items():
        if file not in files:
            raise FormatError(f"the shard {file!r} is missing", where=where)
        found = {tensor.spec.name for tensor in files[file].tensors}
        if found != names:
            raise FormatError(f"shard {file!r} and index disagree about tensor {min(found ^ names)!r}", where=where)

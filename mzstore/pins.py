"""Pins: which version of a source was read, so that nobody goes on with another one."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mzstore.documents import DOCUMENT
from mzstore.errors import StorageError
from mzstore.storage import Blob, Folder, Options, Retry, open_location
from mzstore.version import __version__

INDEX_SUFFIX = ".index.json"
INDEX_NBYTES = 1 << 28

Pin = Mapping[str, tuple[int, str]]  # file -> (bytes, version as the storage has it: a time, or an ETag)


def pin(
    location: str | os.PathLike[str], options: Options = None, retry: Retry | None = None
) -> dict[str, tuple[int, str]]:
    """The files that the model at ``location`` consists of, as they are now. Of a tree and of a manifest the document, which has the
    digests of all else; of an index the files that it names as well. What other files name is in ``ModelSource.files``. Values are not read.

    Raises StorageError.
    """
    found: dict[str, tuple[int, str]] = {}
    with contextlib.ExitStack() as stack:
        opened = open_location(location, options, retry=retry)
        if isinstance(opened, Folder):
            keys = [DOCUMENT] if opened.has(DOCUMENT) else list(opened.walk())
            for key in keys:
                blob = opened.open(key)
                if blob is None:
                    raise StorageError(f"{key!r} in {opened.url!r} was removed meanwhile")
                with contextlib.closing(blob):
                    found[key] = blob.nbytes, blob.version
            return found
        stack.callback(opened.close)
        found[""] = opened.nbytes, opened.version
        for name in _beside(opened):
            folder = os.fspath(location).replace(os.sep, "/").rpartition("/")[0] or "."
            other = open_location(f"{folder}/{name}", options, retry=retry)
            if isinstance(other, Folder):
                raise StorageError(f"{name!r} beside {opened.url!r} is a directory, not a file")
            with contextlib.closing(other):
                found[name] = other.nbytes, other.version
    return found


def digest(source: str, pinned: Pin, importance: Mapping[str, Any] | None, **options: Any) -> str:
    """Of all that decides what a conversion writes: those with the same go on with each other's work."""
    found = hashlib.sha256()
    found.update(repr((__version__, source, sorted(pinned.items()), sorted(options.items()))).encode())
    for name in sorted(importance or {}):
        values = np.ascontiguousarray((importance or {})[name])
        found.update(repr((name, str(values.dtype), values.shape)).encode())
        found.update(values.reshape(-1).view(np.uint8).data)
    return found.hexdigest()[:32]


def _beside(index: Blob) -> Iterator[str]:
    """The files that an index names; what is wrong with it is said by what reads it."""
    if not index.url.endswith(INDEX_SUFFIX) or index.nbytes > INDEX_NBYTES:
        return
    with contextlib.suppress(ValueError):
        doc = json.loads(bytes(index.read(0, index.nbytes)))
        names = doc.get("weight_map") if isinstance(doc, dict) else None
        if isinstance(names, dict):
            yield from sorted({name for name in names.values() if isinstance(name, str)})

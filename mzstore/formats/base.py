"""What formats have in common: how one is told by its content, how it is opened, and how a new file of it is written."""

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property

from mzstore.errors import MzError, StorageError, UnsupportedError
from mzstore.formats import zips
from mzstore.sources import ModelSource, TensorSource
from mzstore.storage import Blob, Buffer, Folder, Options, Retry, Sink, is_local, open_location

START_NBYTES = 1024  # of a file, by which formats are told apart


# Writes a new file of all tensors, which are given by name; the last argument is told of bytes as they are written.
NewFile = Callable[[Sink, ModelSource, Mapping[str, TensorSource], Callable[[int], None]], None]


@dataclass(frozen=True, slots=True)
class Opening:
    """How what belongs to a source is opened, and ``stack``, which closes it when nobody reads any more.

    files  what was opened so far, see ``ModelSource.files``
    """

    options: Options
    retry: Retry | None
    stack: ExitStack
    files: dict[str, tuple[int, str]] = field(default_factory=dict)

    def file(self, folder_url: str, path: str) -> Blob:
        """The file ``path`` of a folder. Raises StorageError if there is none."""
        blob = open_location(f"{folder_url.rstrip('/')}/{path}", self.options, retry=self.retry)
        if isinstance(blob, Folder):
            raise StorageError(f"{path!r} in {folder_url!r} is a directory, not a file")
        self.stack.callback(blob.close)
        # By a name that it has in every process, whatever directory that works in.
        name = os.path.abspath(blob.url) if is_local(blob.url) else blob.url
        self.files[name] = blob.nbytes, blob.version
        return blob

    def beside(self, blob: Blob, path: str) -> Blob:
        """The file ``path`` of the directory in which ``blob`` lies, which may name it: it is checked by the caller.

        Raises StorageError if there is none, UnsupportedError if ``blob`` lies in memory.
        """
        if isinstance(blob, Buffer):
            raise UnsupportedError(f"it needs the file {path!r}, and lies in memory: give a path", where=blob.url)
        return self.file(folder_of(blob), path)


def folder_of(blob: Blob) -> str:
    """Path or URL of the directory in which an open file lies."""
    return blob.url.partition("?")[0].rpartition("/")[0] or ("/" if blob.url.startswith("/") else ".")


@dataclass(frozen=True)
class Candidate:
    """A file of which the format is to be found."""

    blob: Blob

    @cached_property
    def start(self) -> bytes:
        """The first bytes."""
        return bytes(self.blob.read(0, min(START_NBYTES, self.blob.nbytes)))

    @cached_property
    def members(self) -> Mapping[str, zips.Member]:
        """Of a ZIP file; none if it is no such file, or broken."""
        if self.start[: len(zips.MAGIC)] != zips.MAGIC:
            return {}
        try:
            return zips.members(self.blob)
        except MzError:
            return {}

    def need_members(self) -> Mapping[str, zips.Member]:
        """The same, for what has to be a ZIP file: raises what is wrong with it."""
        return self.members or zips.members(self.blob)

    @property
    def name(self) -> str:
        """The last segment of the path or URL, without a query."""
        return self.blob.url.partition("?")[0].rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class FileFormat:
    """A format of single files.

    name        as options, layouts and messages have it
    suffixes    of file names, in lower case: the first that has one names the format of a target
    recognizes  by content
    open        a model, to be read as long as the Opening's stack. Raises FormatError, UnsupportedError, CorruptError
    sure        whether a file with such a suffix is of it, or else broken; other formats share suffixes with what is none
    write       a new file from tensors, by name; None: files of this format are only made as they were
    """

    name: str
    suffixes: tuple[str, ...]
    recognizes: Callable[[Candidate], bool]
    open: Callable[[Candidate, Opening], ModelSource]
    sure: bool = True
    write: NewFile | None = None


@dataclass(frozen=True, slots=True)
class FolderFormat:
    """A format of directories."""

    name: str
    recognizes: Callable[[Folder], bool]
    open: Callable[[Folder, Opening], ModelSource]

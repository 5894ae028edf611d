"""Remote storage for writing: objects and prefixes of any fsspec filesystem."""

import contextlib
import io
import tempfile
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from mzstore.storage.backends import filesystem
from mzstore.storage.base import Options, Writable, storage_errors

WRITE_BUFFER = 1 << 20


class RemoteSink:
    """An object of an fsspec filesystem: collected in a temporary file and put in one piece at the end."""

    def __init__(self, url: str, options: Options) -> None:
        self.url = url
        with storage_errors(url, "write"):
            self._fs, self._path = filesystem(url, options)
            self._file = tempfile.NamedTemporaryFile(prefix="mzstore-", buffering=WRITE_BUFFER)  # noqa: SIM115

    def write(self, data: bytes | memoryview) -> None:
        with storage_errors(self.url, "write"):
            self._file.write(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file, storage_errors(self.url, "write"):
            if not kind:
                self._file.flush()
                self._fs.put_file(self._file.name, self._path)


class RemoteFolderSink:
    """Objects under a prefix, each put whole. The caller writes last what makes the rest count: after a failure there
    are objects below the prefix, but no model.
    """

    def __init__(self, url: str, options: Options, marker: str) -> None:
        self.url = url.rstrip("/")
        with storage_errors(url, "write"):
            self._fs, path = filesystem(url, options)
            self._path = path.rstrip("/")
            if self._fs.exists(f"{self._path}/{marker}"):  # new chunks would be read by the old documents
                raise FileExistsError(17, "it holds a model; remove it first, or choose another name")

    def write(self, key: str, data: bytes | memoryview) -> None:
        with storage_errors(f"{self.url}/{key}", "write"):
            self._fs.pipe_file(f"{self._path}/{key}", bytes(data))

    @contextlib.contextmanager
    def open(self, key: str) -> Iterator[Writable]:
        with io.BytesIO() as file:
            yield file
            self.write(key, file.getvalue())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

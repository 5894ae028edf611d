"""Remote storage for reading: objects and prefixes of any fsspec filesystem."""

from collections.abc import Iterator
from typing import Any

from mzstore.errors import StorageError
from mzstore.storage.base import Folder, Options, storage_errors


def filesystem(url: str, options: Options) -> tuple[Any, str]:
    import fsspec.core  # 0.1 s, and only URLs need it

    return fsspec.core.url_to_fs(url, **(options or {}))  # type: ignore[no-any-return]


class RemoteFile:
    """An object of an fsspec filesystem."""

    def __init__(self, url: str, fs: Any, path: str, nbytes: int) -> None:
        self.url, self.nbytes, self._fs, self._path = url, nbytes, fs, path

    def read(self, start: int, stop: int, slot: str = "") -> memoryview:
        if start == stop:
            return memoryview(b"")
        with storage_errors(self.url, "read"):
            data = self._fs.cat_file(self._path, start=start, end=stop)
        if len(data) != stop - start:
            raise StorageError(f"{self.url!r} gave {len(data)} bytes for the range {start} to {stop}")
        return memoryview(data)

    def close(self) -> None: ...


class RemoteFolder(Folder):
    def __init__(self, url: str, fs: Any, path: str) -> None:
        self.url, self._fs, self._path = url, fs, path.rstrip("/")

    def read(self, key: str, limit: int, slot: str = "") -> memoryview | None:
        with storage_errors(f"{self.url}/{key}", "read"):
            try:
                return memoryview(self._fs.cat_file(f"{self._path}/{key}"))
            except FileNotFoundError:
                return None

    def open(self, key: str) -> "RemoteFile | None":
        with storage_errors(f"{self.url}/{key}", "read"):
            try:
                about = self._fs.info(f"{self._path}/{key}")
            except FileNotFoundError:
                return None
        if about["type"] != "file":
            return None
        return RemoteFile(f"{self.url}/{key}", self._fs, f"{self._path}/{key}", about["size"])

    def walk(self) -> Iterator[str]:
        with storage_errors(self.url, "list"):
            for path in sorted(self._fs.find(self._path)):
                yield path.removeprefix(self._path).lstrip("/")

    def sizes(self) -> dict[str, int]:
        with storage_errors(self.url, "list"):
            found = sorted(self._fs.find(self._path, detail=True).items())
            return {path.removeprefix(self._path).lstrip("/"): about["size"] for path, about in found}

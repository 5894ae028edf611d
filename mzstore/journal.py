"""Journal: which tensors of a tree that is being written are complete, so that the next attempt goes on behind them.

    model.zarr                                  the tree; in a local folder it shows when it is whole
    model.zarr.unfinished/<conversion>/journal/ records of complete tensors; <conversion> is the digest of source and options
    model.zarr.unfinished/<conversion>/tree/    what there is of a local tree

Objects of a remote tree are where they will be, without the document that makes them one, and records are in ``.unfinished`` there.
"""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mzstore.documents import DOCUMENT, TensorEntry, dump, entries_of, load
from mzstore.errors import FormatError, StorageError
from mzstore.storage import FolderSink, Objects, Options, Retry, create_folder, is_local, local_path, open_objects
from mzstore.tensors import TensorSpec

JOURNAL_NBYTES = 64 << 20  # of values, for a record: so much is done again at most
MAX_RECORD_NBYTES = 1 << 28
UNFINISHED = ".unfinished"


class Journal:
    """The records below ``folder``. What one of them tells of is there, durable, under the keys that follow from it."""

    def __init__(self, objects: Objects, folder: str) -> None:
        self._objects, self._folder = objects, folder
        self.n_records = 0
        nodes: dict[str, Any] = {}
        self._stored: dict[str, int] = {}
        while (data := objects.get(self._key(self.n_records), MAX_RECORD_NBYTES)) is not None:
            where = f"{objects.url}/{self._key(self.n_records)}"
            match load(data, where=where):
                case {"nodes": dict(more), "stored": dict(stored)} if all(type(n) is int for n in stored.values()):
                    nodes |= more
                    self._stored |= stored
                case _:
                    raise FormatError("not a record of complete tensors; remove its folder", where=where)
            self.n_records += 1
        self._entries = entries_of(nodes, where=f"{objects.url}/{folder}")

    def _key(self, number: int) -> str:
        return f"{self._folder}/{number:06}.json"

    def has(self, spec: TensorSpec) -> bool:
        """Whether the tensor was complete when this attempt began."""
        entry = self._entries.get(spec.name)
        return entry is not None and entry.spec == spec

    def find(self, spec: TensorSpec, node: str) -> tuple[TensorEntry, int] | None:
        """The tensor if it is complete, and what is stored of it; None if it is not."""
        entry = self._entries.get(spec.name)
        if entry is None or (entry.spec, entry.node) != (spec, node):
            return None
        return entry, self._stored.get(node, 0)

    def add(self, entries: Iterable[tuple[TensorEntry, int]]) -> None:
        """Tensors that are complete now, and what is stored of each."""
        nodes: dict[str, Any] = {}
        stored = {}
        for entry, nbytes in entries:
            nodes |= dict(entry.documents())
            stored[entry.node] = nbytes
        self._objects.put(self._key(self.n_records), dump({"nodes": nodes, "stored": stored}))
        self.n_records += 1


@dataclass(frozen=True, slots=True)
class Resumed:
    """A tree that is being written. ``others``: folders with what other conversions have left."""

    journal: Journal
    folder: FolderSink
    others: tuple[str, ...] = ()


@contextlib.contextmanager
def resume(
    target: str | os.PathLike[str], conversion: str, options: Options = None, retry: Retry | None = None
) -> Iterator[Resumed]:
    """The tree at ``target``, gone on with if an attempt at the same ``conversion`` was interrupted.

    If the block raises, what is complete stays; if nothing is, nothing does. Raises StorageError, also if another process is at the
    same conversion.
    """
    with (
        _local(target, conversion, retry) if is_local(target) else _remote(target, conversion, options, retry) as found
    ):
        yield found


@contextlib.contextmanager
def _local(target: str | os.PathLike[str], conversion: str, retry: Retry | None) -> Iterator[Resumed]:
    place = Path(os.path.realpath(local_path(target)))
    above = place.with_name(f"{place.name}{UNFINISHED}")
    own = above / conversion
    with contextlib.ExitStack() as stack:
        try:
            folder = create_folder(target, None, DOCUMENT, retry, own / "tree")  # which looks whether there is a tree
        except StorageError:
            with contextlib.suppress(OSError):
                above.rmdir()
            raise
        stack.enter_context(_alone(own))
        journal = Journal(open_objects(above), f"{conversion}/journal")
        others = tuple(str(other) for other in sorted(above.iterdir()) if other != own)
        try:
            yield Resumed(journal, folder, others)
        except BaseException as error:
            if journal.n_records:
                error.add_note(f"what was done is kept in {str(own)!r}: the same command goes on with it")
            else:
                _remove(own)
            raise
        _remove(own)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Nobody else is in such a block of the same folder. The lock of a process that was killed is free."""
    with open(folder / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StorageError(
                f"another process is writing {str(folder / 'tree')!r}, by the same conversion"
            ) from error
        yield


def _remove(own: Path) -> None:
    shutil.rmtree(own, ignore_errors=True)
    with contextlib.suppress(OSError):  # there are others
        own.parent.rmdir()


@contextlib.contextmanager
def _remote(
    target: str | os.PathLike[str], conversion: str, options: Options, retry: Retry | None
) -> Iterator[Resumed]:
    folder = create_folder(target, options, DOCUMENT, retry)
    objects = open_objects(target, options, retry)
    own = f"{UNFINISHED}/{conversion}"
    for key in objects.listing(UNFINISHED):
        if not key.startswith(f"{own}/"):  # objects of this conversion take the place of those that it tells of
            objects.remove(key)
    journal = Journal(objects, own)
    try:
        yield Resumed(journal, folder)
    except BaseException as error:
        if journal.n_records:
            error.add_note(f"what was done is noted in {objects.url}/{UNFINISHED}: the same command goes on with it")
        raise
    for key in objects.listing(UNFINISHED):
        with contextlib.suppress(StorageError):  # there is a tree, and nobody goes on with it
            objects.remove(key)

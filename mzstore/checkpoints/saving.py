"""Saving: a staged state into archives, what is known of it already by reference, and the manifest that makes it exist.

The order is what makes it safe: archives of new names first, each whole and durable; then a look whether all that is referred to is
still there; then the manifest, if there is none. Whatever happens before, there is no checkpoint.
"""

import contextlib
import hashlib
import posixpath
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mzstore import kernels
from mzstore.bases import refer
from mzstore.checkpoints.repository import (
    Repository,
    archive_key,
    behind,
    checkpoint_json,
    from_manifest,
    key_of,
    new_save_id,
)
from mzstore.checkpoints.staging import Staged
from mzstore.differences import Difference, choose_difference
from mzstore.documents import dump
from mzstore.encode import Choice, Level, choose
from mzstore.encodings.base import Base
from mzstore.encodings.combined import Combined
from mzstore.errors import ConflictError, StorageError
from mzstore.grid import Grid, choose_chunk_shape
from mzstore.groups import groups
from mzstore.manifest import ArchiveRef, Manifest, ManifestTensor, Piece
from mzstore.model import Model, StoredTensor
from mzstore.prepared import Prepared
from mzstore.recipe import Recipe
from mzstore.sources import ArraySource, ModelSource, TensorSource, Walked
from mzstore.storage import Sink
from mzstore.tensors import TensorSpec
from mzstore.version import __version__
from mzstore.writer import write

ARCHIVE_NBYTES = 256 << 20  # of values: an archive stays as long as one tensor of it is needed
LEAST_NBYTES = 4096  # of a tensor, to be stored as a difference; of smaller ones the documents weigh more
MAX_BASES = 256  # of one archive


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be saved. ``structure``: the state without its tensors."""

    step: int
    structure: Any
    staged: Staged
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Settings:
    """How it is saved; see ``CheckpointStore``."""

    recipe: Recipe | None = None
    base: Model | None = None
    base_url: str | None = None  # by which archives refer to it; None: by where it was opened
    chain: int = 0
    level: Level = "balanced"
    threads: int = 1
    grace: float = 3600.0


@dataclass(slots=True)
class Previous:
    """The checkpoint that was saved last, as far as this process knows it.

    values   by name, of what is in memory still: for differences
    digests  by name, of what was saved, also where it was stored with another value
    """

    step: int
    manifest: Manifest
    values: Mapping[str, ArraySource] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)

    def pieces(self) -> Iterator[tuple[TensorSpec, Piece, str]]:
        """Of all tensors in one piece whose values are known: (spec, piece, digest of what was saved)."""
        for name, tensor in self.manifest.tensors.items():
            digest = self.digests.get(name) or (tensor.pieces[0].sha256 if len(tensor.pieces) == 1 else "")
            if digest:
                yield tensor.spec, tensor.pieces[0], digest


def save(repository: Repository, job: Job, previous: Previous | None, settings: Settings) -> Previous:
    """Raises ConflictError if the step is there, from another save; StorageError if the storage fails."""
    return _Save(repository, job, previous, settings).run()


class _Save:
    def __init__(self, repository: Repository, job: Job, previous: Previous | None, settings: Settings) -> None:
        self._repository, self._job, self._settings = repository, job, settings
        self._started = time.monotonic()
        self._save_id = new_save_id()
        self._written: list[str] = []  # keys
        self._archives: list[ArchiveRef] = []  # of the manifest
        self._index: dict[str, int] = {}  # by path
        self._previous = previous if previous and self._is_live(previous) else None
        self._digests: dict[str, str] = {}
        self._depths: dict[str, int] = {}  # of archives, by path
        if self._previous:
            archives = self._previous.manifest.archives
            self._depths = dict(zip((each.path for each in archives), behind(archives), strict=True))

    def _is_live(self, previous: Previous) -> bool:
        """Whether it is still there: what it holds then stays for the grace period, whatever becomes of it."""
        manifest = self._repository.manifest(previous.step)
        return manifest is not None and manifest.save_id == previous.manifest.save_id

    def run(self) -> Previous:
        job, repository = self._job, self._repository
        if repository.manifest(job.step) is not None:  # before anything is uploaded for nothing
            raise repository.conflict(job.step)
        repository.objects.exclusive()
        settled = True
        try:
            tensors = self._tensors()
            manifest = Manifest(
                self._save_id,
                tuple(self._archives),
                tensors,
                checkpoint=checkpoint_json(job.step, job.structure, job.metrics, time.time()),
                writer=f"mzstore {__version__}",
            )
            self._check_referred()
            try:
                repository.commit(job.step, manifest)
            except (ConflictError, ValueError):
                raise
            except BaseException:
                settled = False  # the manifest may be there, and with it the checkpoint
                raise
        except BaseException:
            if settled:
                with contextlib.suppress(
                    StorageError
                ):  # the first error is the one to report; ``collect`` finds the rest
                    repository.remove(self._written)
            raise
        return Previous(job.step, manifest, job.staged.tensors, self._digests)

    def _tensors(self) -> dict[str, ManifestTensor]:
        """All of the state: referred to where that is known already, else written."""
        sources = self._job.staged.tensors
        kernels.expect(self._job.staged.nbytes)
        with ThreadPoolExecutor(self._settings.threads, "mzstore-digest") as pool:
            self._digests = dict(zip(sources, pool.map(_digest, sources.values()), strict=True))
        known = self._known()
        found: dict[str, ManifestTensor | None] = {}
        new: list[ArraySource] = []
        for name, source in sources.items():
            same = known.get((*_kind(source.spec), self._digests[name], self._lossy(source.spec)))
            if same is None:
                new.append(source)
                found[name] = None
            else:
                found[name] = self._referred(source.spec, same)
        for number, group in enumerate(groups(new, lambda source: source.spec.nbytes, ARCHIVE_NBYTES)):
            for spec, piece in self._write(number, group):
                found[spec.name] = ManifestTensor(spec, (piece,))
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def _lossy(self, spec: TensorSpec) -> bytes | None:
        """What a recipe makes of it: values of the same digest are not the same stored under another rule."""
        rule = self._settings.recipe.rule_for(spec) if self._settings.recipe else None
        return dump(rule.asked) if rule else None

    def _known(self) -> dict[object, Piece]:
        if self._previous is None:
            return {}
        return {(*_kind(spec), digest, self._lossy(spec)): piece for spec, piece, digest in self._previous.pieces()}

    def _referred(self, spec: TensorSpec, piece: Piece) -> ManifestTensor:
        """A piece of the checkpoint before."""
        archive = self._keep(piece.archive)
        return ManifestTensor(spec, (Piece(archive, piece.name, piece.offsets, piece.shape, piece.sha256),))

    def _keep(self, index: int) -> int:
        """The archive ``index`` of the checkpoint before, and all behind it, in the new manifest."""
        assert self._previous is not None
        archive = self._previous.manifest.archives[index]
        if archive.path not in self._index:
            bases = tuple(self._keep(base) for base in archive.bases)
            self._add(ArchiveRef(archive.path, archive.nbytes, archive.sha256, tuple(sorted(bases))))
        return self._index[archive.path]

    def _add(self, archive: ArchiveRef) -> int:
        self._index[archive.path] = len(self._archives)
        self._archives.append(archive)
        return self._index[archive.path]

    def _write(self, number: int, group: Sequence[ArraySource]) -> Iterator[tuple[TensorSpec, Piece]]:
        key = archive_key(self._save_id, 0, number)
        changes = _Changes(self, key)
        nbytes = sum(source.spec.nbytes for source in group)
        source = ModelSource(Walked(lambda: changes.prepared(group)), nbytes, bases=changes.urls)
        with self._repository.objects.sink(key, nbytes) as sink:
            target = Digested(sink)
            self._written.append(key)
            settings = self._settings
            write(
                target,
                source,
                recipe=settings.recipe,
                level=settings.level,
                kind="archive",
                threads=settings.threads,
                show_progress=False,
            )
        bases = tuple(sorted(self._keep(index) for index in changes.archives))
        index = self._add(ArchiveRef(from_manifest(key), target.nbytes, target.hexdigest(), bases))
        for each in group:
            spec = each.spec
            stored = "" if self._lossy(spec) else self._digests[spec.name]
            yield spec, Piece(index, spec.name, (0,) * len(spec.shape), spec.shape, stored)

    def _check_referred(self) -> None:
        """Raises StorageError if what the manifest will name is not there, or if it took so long that it may be removed."""
        grace = self._settings.grace
        if time.monotonic() - self._started > grace:
            raise StorageError(
                f"saving checkpoint {self._job.step} took more than the grace period of {grace:g} s, after which what it has written "
                "may be removed as garbage; give the store, and whoever collects garbage, a longer one",
                where=self._repository.url,
            )
        for archive in self._archives:
            key = key_of(archive.path)
            found = self._repository.objects.nbytes(key)
            if found != archive.nbytes:
                raise StorageError(
                    f"archive {key!r} of checkpoint {self._job.step} has {archive.nbytes} bytes, {found or 0} are there; was it "
                    "removed meanwhile?",
                    where=self._repository.url,
                )


@dataclass(frozen=True, slots=True)
class _Under:
    """What a tensor may be stored as a change of. ``archive``: its index in the checkpoint before; None: in the store's base."""

    values: TensorSource
    archive: int | None
    name: str
    sha256: str


# Of a tensor: itself, for a recipe to change; the name of one of the base that is equal; what it changes; or how it is stored whole.
_Found = ArraySource | str | tuple[_Under, Difference] | Choice


class _Changes:
    """Tensors of one archive, as what changes those that are stored already, where that is smaller.

    urls      what the archive has for its bases; more come while tensors are prepared
    archives  those of the checkpoint before that are bases, by index
    """

    def __init__(self, save: _Save, key: str) -> None:
        self._save, self._key = save, key
        self.urls: list[str] = []
        self.archives: set[int] = set()
        self._index: dict[str, int] = {}

    def prepared(self, sources: Iterable[ArraySource]) -> Iterator[TensorSource | Prepared]:
        """In order. How they are stored is found out in threads, some tensors ahead."""
        threads = self._save._settings.threads
        with ThreadPoolExecutor(threads, "mzstore-choose") as pool:
            ahead: deque[tuple[ArraySource, Future[_Found]]] = deque()
            for source in sources:
                ahead.append((source, pool.submit(self._find, source)))
                if len(ahead) > 2 * threads:
                    first, future = ahead.popleft()
                    yield self._settled(first, future.result())
            for source, future in ahead:
                yield self._settled(source, future.result())

    def _find(self, source: ArraySource) -> _Found:
        save, settings, spec = self._save, self._save._settings, source.spec
        if save._lossy(spec):
            return source
        if settings.base and (same := _same(settings.base, spec, save._digests[spec.name])):
            return same
        under = self._under(spec)
        if under is None:
            return choose(source, settings.level)
        difference = choose_difference(source, under.values, settings.level)
        return difference.choice if difference.how is None else (under, difference)

    def _settled(self, source: ArraySource, found: _Found) -> TensorSource | Prepared:
        save, settings, spec = self._save, self._save._settings, source.spec
        if isinstance(found, ArraySource):
            return found
        digest = save._digests[spec.name]
        if isinstance(found, str) and (number := self._number(None)) is not None:
            grid = Grid(spec.word_shape, choose_chunk_shape(spec.word_shape, spec.dtype.word.itemsize))
            return Prepared(spec, Base(spec.dtype, grid, number, found, digest), digest)
        if isinstance(found, tuple) and (number := self._number(found[0].archive)) is not None:
            under, difference = found
            assert difference.how is not None
            part = difference.choice.part
            behind = Base(spec.dtype, part.grid, number, under.name, under.sha256)
            changed = Combined((behind, part), (difference.how,))
            return Prepared(spec, changed, digest, difference.words, difference.choice)
        choice = found if isinstance(found, Choice) else choose(source, settings.level)
        return Prepared(spec, choice.part, digest, source, choice)

    def _under(self, spec: TensorSpec) -> _Under | None:
        save, settings = self._save, self._save._settings
        if spec.nbytes < LEAST_NBYTES or not settings.chain:
            return None
        previous = save._previous
        if previous and spec.name in previous.values and spec.name in previous.manifest.tensors:
            values, piece = previous.values[spec.name], previous.manifest.tensors[spec.name].pieces[0]
            depth = save._depths[previous.manifest.archives[piece.archive].path]
            if _kind(values.spec) == _kind(spec) and piece.sha256 and depth < settings.chain:
                return _Under(values, piece.archive, piece.name, piece.sha256)
        if settings.base and (name := _named(settings.base, spec)):
            base, entry = settings.base, settings.base.document.tensors[name]
            stored = StoredTensor(base, entry, base.document.stored(entry), settings.threads)
            return _Under(stored, None, name, entry.sha256)
        return None

    def _url(self, archive: int | None) -> str:
        """Of an archive of the checkpoint before, relative, so that a store can be moved; None: of the store's base."""
        save = self._save
        if archive is None:
            base = save._settings.base
            assert base is not None
            here = save._repository.location(self._key)
            return refer(base.bases.place.location or base.url, here, save._settings.base_url)
        assert save._previous is not None
        path = save._previous.manifest.archives[archive].path
        return posixpath.relpath(key_of(path), posixpath.dirname(self._key))

    def _number(self, archive: int | None) -> int | None:
        """Of this archive among the bases; None if they are too many."""
        url = self._url(archive)
        if url not in self._index:
            if len(self.urls) >= MAX_BASES:
                return None
            self._index[url] = len(self.urls)
            self.urls.append(url)
        if archive is not None:
            self.archives.add(archive)
        return self._index[url]


class Digested:
    """A file object in front of a sink, which counts and digests."""

    def __init__(self, sink: Sink) -> None:
        self._sink, self._digest, self.nbytes = sink, hashlib.sha256(), 0

    def write(self, data: bytes | memoryview, /) -> int:
        self._sink.write(data)
        self._digest.update(data)
        self.nbytes += len(data)
        return len(data)

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def _same(base: Model, spec: TensorSpec, digest: str) -> str | None:
    """The name of a tensor of ``base`` that is equal to ``spec``, first of all of the same name."""
    named = base.document.tensors.get(spec.name)
    if named and (*_kind(named.spec), named.sha256) == (*_kind(spec), digest):
        return spec.name
    for name, entry in base.document.tensors.items():
        if entry.sha256 == digest and _kind(entry.spec) == _kind(spec):
            return name
    return None


def _named(base: Model, spec: TensorSpec) -> str | None:
    """The tensor of ``base`` that ``spec`` may have come from: of its name, or of the end of it, as states have "model." before names."""
    name, tensors = spec.name, base.document.tensors
    while name not in tensors:
        _, dot, name = name.partition(".")
        if not dot:
            return None
    entry = tensors[name]
    return name if _kind(entry.spec) == _kind(spec) and entry.sha256 else None


def _kind(spec: TensorSpec) -> tuple[str, tuple[int, ...]]:
    return spec.dtype.name, spec.shape


def _digest(source: ArraySource) -> str:
    return hashlib.sha256(source.words.reshape(-1).view(np.uint8).data).hexdigest()

"""Archives: what of a state is stored anew, as it is or as what changed, and what is referred to in the checkpoint before.

A save gives boxes, which are tensors or parts of them; of many ranks, each gives its own. One whose values the checkpoint before has
is not stored again, wherever it lies there. One that lies there in the same place with other values is stored as its difference from
those, if that is smaller. Values of the checkpoint before are taken from memory where they are, else read back.
"""

import hashlib
import posixpath
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np

from mzstore.bases import MAX_DEPTH, BaseLocations, Wanted, fill, refer
from mzstore.checkpoints.repository import Repository, archive_key, from_manifest, key_of
from mzstore.composite import word_box
from mzstore.differences import Difference, choose_difference
from mzstore.documents import dump
from mzstore.encode import Choice, ChunkShape, Level, choose
from mzstore.encodings.base import Base
from mzstore.encodings.combined import Combined
from mzstore.errors import MzError
from mzstore.grid import Grid, choose_chunk_shape
from mzstore.groups import groups
from mzstore.manifest import ArchiveRef, Manifest, Piece, manifest_key
from mzstore.model import Model, StoredTensor, open_manifest
from mzstore.prepared import Prepared
from mzstore.recipe import Recipe
from mzstore.selection import Span
from mzstore.sources import ArraySource, ModelSource, TensorSource, Walked
from mzstore.storage import Digested
from mzstore.tensors import TensorSpec
from mzstore.writer import write

ARCHIVE_NBYTES = 256 << 20  # of values: an archive stays as long as one tensor of it is needed
LEAST_NBYTES = 4096  # of a tensor, to be stored as a difference; of smaller ones the documents weigh more
MAX_BASES = 256  # of one archive
READ_NBYTES = 128 << 20  # of values that are read back at a time
CHAIN = 9  # archives that stand one behind another, at most, if nobody says how many: every tenth save is whole


def check_chain(chain: int) -> int:
    """Raises ValueError for more than readers follow."""
    if not 0 <= chain < MAX_DEPTH:
        raise ValueError(f"a chain of {chain} checkpoints; 0 to {MAX_DEPTH - 1} are allowed")
    return chain


@dataclass(frozen=True, slots=True)
class Settings:
    """How tensors are stored; see ``CheckpointStore``.

    base_url  by which archives refer to ``base``; None: by where it was opened
    chunks    how tensors are cut
    """

    recipe: Recipe | None = None
    base: Model | None = None
    base_url: str | None = None
    chain: int = CHAIN
    level: Level = "balanced"
    threads: int = 1
    chunks: ChunkShape = choose_chunk_shape

    @property
    def moved(self) -> BaseLocations:
        """Where the base is that archives refer to by ``base_url``."""
        return {self.base_url: self.base} if self.base and self.base_url else {}


@dataclass(frozen=True, slots=True, eq=False)
class Archive:
    """An archive of a store, and those behind it. Ranks send it to each other.

    depth  how many stand one behind another below it
    """

    path: str  # as a manifest has it
    nbytes: int
    sha256: str
    bases: tuple["Archive", ...] = ()
    depth: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "depth", 1 + max((base.depth for base in self.bases), default=-1))


class ArchiveList:
    """The archives of a manifest that is being made: each once, those behind it before it."""

    def __init__(self) -> None:
        self.refs: list[ArchiveRef] = []
        self._index: dict[str, int] = {}

    def index(self, archive: Archive) -> int:
        """Of ``archive`` in the manifest, which has it from now on."""
        if archive.path not in self._index:
            bases = tuple(sorted(self.index(base) for base in archive.bases))
            self._index[archive.path] = len(self.refs)
            self.refs.append(ArchiveRef(archive.path, archive.nbytes, archive.sha256, bases))
        return self._index[archive.path]


@dataclass(frozen=True, slots=True)
class Box:
    """A tensor or a part of one, under the name that it gets in an archive.

    tensor, offsets  whose part it is, and where it begins there
    """

    source: ArraySource
    tensor: str
    offsets: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return self.source.spec.nbytes


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a box is stored; ``piece.archive`` is for the manifest to say."""

    archive: Archive
    piece: Piece


class Before:
    """The checkpoint to which a save refers.

    values  of its tensors, by name, as far as they are in memory. Others are read from storage
    moved   where to find bases of its archives that are not where these say
    """

    def __init__(
        self,
        repository: Repository,
        manifest: Manifest,
        values: Mapping[str, ArraySource] | None = None,
        *,
        threads: int = 1,
        moved: BaseLocations | None = None,
    ) -> None:
        assert manifest.checkpoint is not None
        self._repository, self._manifest, self._values = repository, manifest, values or {}
        self._threads, self._moved = threads, moved
        self._step = int(manifest.checkpoint["step"])
        self._model: Model | None = None
        self._unreadable = False
        archives = archives_of(manifest)
        self._same: dict[object, Stored] = {}
        self._at: dict[object, Stored] = {}
        for tensor in manifest.tensors.values():
            for piece in tensor.pieces:
                stored = Stored(archives[piece.archive], piece)
                self._at[tensor.spec.name, tensor.spec.dtype.name, piece.offsets, piece.shape] = stored
                if key := piece.sha256 or piece.origin:
                    self._same[tensor.spec.dtype.name, piece.shape, key] = stored

    def same(self, spec: TensorSpec, key: str) -> Stored | None:
        """What has the values of digest or origin ``key``, which may be those of another tensor."""
        return self._same.get((spec.dtype.name, spec.shape, key))

    def at(self, box: Box) -> Stored | None:
        """What has the box, with whatever values."""
        spec = box.source.spec
        return self._at.get((box.tensor, spec.dtype.name, box.offsets, spec.shape))

    def read(self, boxes: Sequence[Box]) -> dict[str, ArraySource]:
        """The values it has at ``boxes``, by their names. Without any, and with a warning, if they cannot be read."""
        found: dict[str, ArraySource] = {}
        wanted = []
        for box in boxes:
            spec = box.source.spec
            held = self._values.get(box.tensor)
            if held and (held.spec.dtype, held.spec.shape) == (spec.dtype, spec.shape):
                found[spec.name] = held
            elif not self._unreadable:
                found[spec.name] = ArraySource(spec, np.empty(spec.word_shape, spec.dtype.word))
                wanted.append((box, found[spec.name].words))
        if wanted:
            try:
                self._fill(wanted)
            except MzError as error:
                self._unreadable = True
                warnings.warn(
                    f"the values of checkpoint {self._step} cannot be read; tensors are stored whole: {error}",
                    RuntimeWarning,
                    stacklevel=1,
                )
                for box, _ in wanted:
                    del found[box.source.spec.name]
        return found

    def _fill(self, wanted: Sequence[tuple[Box, np.ndarray]]) -> None:
        if self._model is None:
            self._model = open_manifest(
                self._manifest,
                self._repository.location(manifest_key(self._step)),
                storage_options=self._repository.options,
                retry=self._repository.retry,
                bases=self._moved,
            )
        entries = []
        for box, words in wanted:
            entry = self._model.document.tensors[box.tensor]
            spec = box.source.spec
            place = word_box(box.offsets, spec.shape, spec.dtype)
            spans = tuple(Span(start, stop - start) for start, stop in place)
            entries.append(Wanted(self._model.document.stored(entry), spans, words))
        fill(self._model, entries, self._threads)

    def close(self) -> None:
        if self._model:
            self._model.close()


class Archiving:
    """The archives of one save, or of one rank of it.

    written  keys of those that were begun
    """

    def __init__(
        self, repository: Repository, save_id: str, rank: int, before: Before | None, settings: Settings
    ) -> None:
        self.repository, self.before, self.settings = repository, before, settings
        self._save_id, self._rank = save_id, rank
        self.written: list[str] = []

    def store(self, boxes: Iterable[Box]) -> Iterator[tuple[Box, Stored]]:
        """All of ``boxes``, which are taken some at a time: in any order, where they are stored from now on."""
        new: list[Box] = []
        digests: dict[str, str] = {}
        with ThreadPoolExecutor(self.settings.threads, "mzstore-digest") as pool:
            for batch in groups(boxes, lambda box: box.nbytes, ARCHIVE_NBYTES):
                for box, digest in zip(batch, pool.map(_digest, batch), strict=True):
                    spec = box.source.spec
                    if self.before and (same := self.before.same(spec, self._key(spec, digest))):
                        yield box, _moved(same, box)
                        continue
                    if new and sum(each.nbytes for each in new) + box.nbytes > ARCHIVE_NBYTES:
                        yield from self._write(new, digests)
                        new, digests = [], {}
                    new.append(box)
                    digests[spec.name] = digest
        if new:
            yield from self._write(new, digests)

    def lossy(self, spec: TensorSpec) -> bool:
        return self.settings.recipe is not None and self.settings.recipe.rule_for(spec) is not None

    def _key(self, spec: TensorSpec, digest: str) -> str:
        """What is the same for two tensors of which the same is stored; empty where that depends on other tensors as well."""
        rule = self.settings.recipe.rule_for(spec) if self.settings.recipe else None
        if rule is None:
            return digest
        return "" if rule.scope == "global" else hashlib.sha256(digest.encode() + dump(rule.asked)).hexdigest()

    def _write(self, boxes: Sequence[Box], digests: Mapping[str, str]) -> Iterator[tuple[Box, Stored]]:
        key = archive_key(self._save_id, self._rank, len(self.written))
        changes = _Changes(self, key, digests)
        nbytes = sum(box.nbytes for box in boxes)
        source = ModelSource(Walked(lambda: changes.prepared(boxes)), nbytes, bases=changes.urls)
        with self.repository.objects.sink(key, nbytes) as sink:
            target = Digested(sink)
            self.written.append(key)
            write(
                target,
                source,
                recipe=self.settings.recipe,
                level=self.settings.level,
                kind="archive",
                threads=self.settings.threads,
                show_progress=False,
                chunks=self.settings.chunks,
            )
        archive = Archive(from_manifest(key), target.nbytes, target.hexdigest(), tuple(changes.archives.values()))
        for box in boxes:
            spec = box.source.spec
            known = self._key(spec, digests[spec.name])
            sha256, origin = ("", known) if self.lossy(spec) else (known, "")
            yield box, Stored(archive, Piece(0, spec.name, box.offsets, spec.shape, sha256, origin))


@dataclass(frozen=True, slots=True)
class _Under:
    """What a tensor may be stored as a change of. ``archive``: of the checkpoint before; None: the store's base."""

    values: TensorSource
    archive: Archive | None
    name: str
    sha256: str


# Of a tensor: itself, for a recipe to change; the name of one of the base that is equal; what it changes; or how it is stored whole.
_Found = ArraySource | str | tuple[_Under, Difference] | Choice


class _Changes:
    """Boxes of one archive, as what changes those that are stored already, where that is smaller.

    urls      what the archive has for its bases; more come while tensors are prepared
    archives  those of the checkpoint before that are bases, by path
    """

    def __init__(self, archiving: Archiving, key: str, digests: Mapping[str, str]) -> None:
        self._archiving, self._settings, self._key, self._digests = archiving, archiving.settings, key, digests
        self.urls: list[str] = []
        self.archives: dict[str, Archive] = {}
        self._index: dict[str, int] = {}

    def prepared(self, boxes: Sequence[Box]) -> Iterator[TensorSource | Prepared]:
        """In order. How they are stored is found out in threads, some tensors ahead."""
        threads = self._settings.threads
        with ThreadPoolExecutor(threads, "mzstore-choose") as pool:
            ahead: deque[tuple[ArraySource, Future[_Found]]] = deque()
            for source, before in self._with_before(boxes):
                ahead.append((source, pool.submit(self._find, source, before)))
                if len(ahead) > 2 * threads:
                    first, future = ahead.popleft()
                    yield self._settled(first, future.result())
            for source, future in ahead:
                yield self._settled(source, future.result())

    def _with_before(self, boxes: Sequence[Box]) -> Iterator[tuple[ArraySource, _Under | None]]:
        """Each of ``boxes``, and what it may change of the checkpoint before, whose values are read some at a time."""
        before = self._archiving.before
        for batch in groups(boxes, lambda box: box.nbytes, READ_NBYTES):
            below = {box.source.spec.name: stored for box in batch if (stored := self._below(box))}
            values = before.read([box for box in batch if box.source.spec.name in below]) if before and below else {}
            for box in batch:
                name = box.source.spec.name
                under = None
                if name in values:
                    stored = below[name]
                    under = _Under(values[name], stored.archive, stored.piece.name, stored.piece.sha256)
                yield box.source, under

    def _below(self, box: Box) -> Stored | None:
        """What of the checkpoint before ``box`` may be stored as a change of."""
        before, spec, settings = self._archiving.before, box.source.spec, self._settings
        if before is None or spec.nbytes < LEAST_NBYTES or self._archiving.lossy(spec) or self._same(spec):
            return None
        found = before.at(box)
        return found if found and found.piece.sha256 and found.archive.depth < settings.chain else None

    def _find(self, source: ArraySource, before: _Under | None) -> _Found:
        settings, spec = self._settings, source.spec
        if self._archiving.lossy(spec):
            return source
        if same := self._same(spec):
            return same
        under = before or self._near(spec)
        if under is None:
            return choose(source, settings.level, settings.chunks)
        difference = choose_difference(source, under.values, settings.level, settings.chunks)
        return difference.choice if difference.how is None else (under, difference)

    def _settled(self, source: ArraySource, found: _Found) -> TensorSource | Prepared:
        settings, spec = self._settings, source.spec
        if isinstance(found, ArraySource):
            return found
        digest = self._digests[spec.name]
        if isinstance(found, str) and (number := self._number(None)) is not None:
            grid = Grid(spec.word_shape, settings.chunks(spec.word_shape, spec.dtype.word.itemsize))
            return Prepared(spec, Base(spec.dtype, grid, number, found, digest), digest)
        if isinstance(found, tuple) and (number := self._number(found[0].archive)) is not None:
            under, difference = found
            assert difference.how is not None
            part = difference.choice.part
            behind = Base(spec.dtype, part.grid, number, under.name, under.sha256)
            changed = Combined((behind, part), (difference.how,))
            return Prepared(spec, changed, digest, difference.words, difference.choice)
        choice = found if isinstance(found, Choice) else choose(source, settings.level, settings.chunks)
        return Prepared(spec, choice.part, digest, source, choice)

    def _same(self, spec: TensorSpec) -> str | None:
        """The name of a tensor of the base that is equal to ``spec``, first of all of the same name."""
        base, digest = self._settings.base, self._digests[spec.name]
        if base is None:
            return None
        named = base.document.tensors.get(spec.name)
        if named and (*_kind(named.spec), named.sha256) == (*_kind(spec), digest):
            return spec.name
        for name, entry in base.document.tensors.items():
            if entry.sha256 == digest and _kind(entry.spec) == _kind(spec):
                return name
        return None

    def _near(self, spec: TensorSpec) -> _Under | None:
        """The tensor of the base that ``spec`` may have come from."""
        base, settings = self._settings.base, self._settings
        if base is None or not settings.chain or spec.nbytes < LEAST_NBYTES or not (name := _named(base, spec)):
            return None
        entry = base.document.tensors[name]
        stored = StoredTensor(base, entry, base.document.stored(entry), settings.threads)
        return _Under(stored, None, name, entry.sha256)

    def _url(self, archive: Archive | None) -> str:
        """Of an archive of the checkpoint before, relative, so that a store can be moved; None: of the store's base."""
        if archive is None:
            base = self._settings.base
            assert base is not None
            here = self._archiving.repository.location(self._key)
            return refer(base.bases.place.location or base.url, here, self._settings.base_url)
        return posixpath.relpath(key_of(archive.path), posixpath.dirname(self._key))

    def _number(self, archive: Archive | None) -> int | None:
        """Of this archive among the bases; None if they are too many."""
        url = self._url(archive)
        if url not in self._index:
            if len(self.urls) >= MAX_BASES:
                return None
            self._index[url] = len(self.urls)
            self.urls.append(url)
        if archive is not None:
            self.archives[archive.path] = archive
        return self._index[url]


def archives_of(manifest: Manifest) -> list[Archive]:
    """Those of a manifest, in its order."""
    found: list[Archive] = []
    for ref in manifest.archives:
        found.append(Archive(ref.path, ref.nbytes, ref.sha256, tuple(found[base] for base in ref.bases)))
    return found


def _moved(stored: Stored, box: Box) -> Stored:
    """The same values, as those of ``box``."""
    return Stored(stored.archive, replace(stored.piece, offsets=box.offsets))


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


def _digest(box: Box) -> str:
    return hashlib.sha256(box.source.words.reshape(-1).view(np.uint8).data).hexdigest()

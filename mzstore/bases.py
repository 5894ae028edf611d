"""Bases: the models whose values another one changes (FORMAT.md section 8.8), and what fills words from all of them.

A base is opened when words of it are needed, once, and closed with the model that was opened first. Its location comes out of a
file, which may be hostile: see ``locate`` for where it can lead.
"""

import itertools
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from mzstore.container import Reader, open_reader, read_model
from mzstore.decode import run
from mzstore.documents import MAX_URL_LENGTH, ModelDocument, TensorEntry
from mzstore.encodings.base import Base
from mzstore.encodings.combined import base_of
from mzstore.encodings.raw import Raw
from mzstore.errors import CorruptError, FormatError, MzError, StorageError
from mzstore.forks import renew_in_children
from mzstore.groups import groups
from mzstore.narrow import convert
from mzstore.plan import Job, Plan, jobs, make
from mzstore.selection import Span
from mzstore.stats import Stats
from mzstore.storage import Location, Options, Retry, is_local, local_path, without_secrets

MAX_DEPTH = 16  # bases, one behind another
CAST_NBYTES = 256 << 20  # of words that are read in their own dtype first, to be cast: at a time
# Where a file may lead without being asked for: object storage and the web. fsspec knows others, which run commands,
# read local files, or put one filesystem into another.
PROTOCOLS = ("abfs", "abfss", "adl", "az", "gcs", "gs", "hf", "http", "https", "oci", "oss", "r2", "s3", "s3a")
_URL = re.compile(r"([a-z][a-z0-9+.-]*)://([^/?#]*)")


class Opened(Protocol):
    """An open model, as much of it as reading takes."""

    @property
    def reader(self) -> Reader: ...

    @property
    def document(self) -> ModelDocument: ...

    @property
    def bases(self) -> "Bases": ...

    @property
    def archives(self) -> "Pieces | None": ...


class Pieces(Protocol):
    """What knows, of a model whose values lie in several archives, which of them has which words."""

    def spread(self, wanted: "Sequence[Wanted]") -> "list[Wanted]": ...


BaseLocations = Mapping[str, Location | Opened]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Words of one tensor, which go to ``out`` (one axis for each of ``spans``).

    entry  a stored tensor, never a reference; its dtype is that of the read, see ``decode.bound``
    owner  the archive that it is in, if the model is made of several
    """

    entry: TensorEntry
    spans: tuple[Span, ...]
    out: np.ndarray
    owner: "Opened | None" = None

    @property
    def base(self) -> Base | None:
        """What its values begin with, if they are those of another model."""
        return base_of(self.entry.part) if self.entry.part else None

    @property
    def whole(self) -> bool:
        """Whether there is nothing but the base."""
        return isinstance(self.entry.part, Base)

    def jobs(self) -> Iterator[Job]:
        """What there is to do but to fill in the base."""
        return iter(()) if self.whole else jobs(self.entry, self.spans, self.out)


def fill(
    model: Opened,
    wanted: Sequence[Wanted],
    threads: int = 1,
    done: Callable[[int], None] | None = None,
    behind: tuple[Opened, ...] = (),
) -> None:
    """Fill all that is ``wanted`` of ``model``; ``done`` is told the bytes of what is filled. The first error ends the rest.

    Words of bases come first, those of each base by one plan; then, in place, what changes them.

    behind  the models that refer to this one, from the first on
    """
    wanted = _spread(model, wanted)
    cast = [each for each in wanted if _is_cast(each)]
    _fill([each for each in wanted if not _is_cast(each)] if cast else wanted, model, threads, done, behind)
    for group in groups(cast, lambda each: each.out.nbytes, CAST_NBYTES):
        own = [_in_own_dtype(each, np.empty) for each in group]
        _fill(own, model, threads, None, behind)
        for each, read in zip(group, own, strict=True):
            convert(read.out, read.entry.spec.dtype, each.entry.spec.dtype, each.out)
            if done:
                done(each.out.nbytes)


def fill_bases(model: Opened, wanted: Sequence[Wanted], threads: int = 1, behind: tuple[Opened, ...] = ()) -> None:
    """Only the words of bases, of tensors in their own dtype."""
    for of in _by_base(model, wanted, behind):
        fill(of.base, of.wanted, threads, None, of.behind)


def plan(model: Opened, wanted: Sequence[Wanted], result_nbytes: int = 0, behind: tuple[Opened, ...] = ()) -> Plan:
    """What ``fill`` would ask remote storage for. Opens bases and archives, and reads no chunk. ``out`` may be one word,
    broadcast."""
    wanted = _spread(model, wanted)
    own = [_in_own_dtype(each, _nowhere) if _is_cast(each) else each for each in wanted]
    cast = [mine.out.nbytes for mine, each in zip(own, wanted, strict=True) if mine is not each]
    bases = [(of.base.reader.url, plan(of.base, of.wanted, 0, of.behind)) for of in _by_base(model, own, behind)]

    def todo() -> Iterator[Job]:
        for each in own:
            one = (
                isinstance(each.entry.part, Raw) and each.entry.part.constant
            )  # one payload, however many pieces it fills
            yield from itertools.islice(each.jobs(), 1 if one else None)

    mine = make(todo(), model.reader.extent, result_nbytes, model.reader.url)
    return replace(mine, bases=tuple(bases), held_nbytes=min(sum(cast), max([CAST_NBYTES, *cast]))) if bases else mine


def check_unchanged(model: Opened) -> None:
    """Raises StorageError if what was read, of ``model`` and its bases, is not one version of each."""
    model.reader.check_unchanged(model.reader.start())
    model.bases.family.check_unchanged()


def _fill(
    wanted: Sequence[Wanted],
    model: Opened,
    threads: int,
    done: Callable[[int], None] | None,
    behind: tuple[Opened, ...],
) -> None:
    for of in _by_base(model, wanted, behind):
        fill(of.base, of.wanted, threads, done and _share(done, of), of.behind)
    run(model.reader, (job for each in wanted for job in each.jobs()), threads, done)


@dataclass(slots=True)
class _OfBase:
    """What is wanted of one base, as tensors of that model; ``behind``: the models that refer to it."""

    base: Opened
    behind: tuple[Opened, ...]
    wanted: list[Wanted] = field(default_factory=list)
    nbytes: int = 0
    whole_nbytes: int = 0  # of tensors that are nothing else


def _share(done: Callable[[int], None], of: _OfBase) -> Callable[[int], None]:
    """``done`` for reading a base: words that are changed afterwards count then."""
    at = 0

    def share(nbytes: int) -> None:
        nonlocal at
        before, at = at, at + nbytes
        done(at * of.whole_nbytes // of.nbytes - before * of.whole_nbytes // of.nbytes)

    return share


def _by_base(model: Opened, wanted: Sequence[Wanted], behind: tuple[Opened, ...]) -> list[_OfBase]:
    """By base, all checked against what the model says of it."""
    found: dict[tuple[int, int], _OfBase] = {}
    for each in wanted:
        part = each.base
        if part is None:
            continue
        owner = each.owner or model
        chain = (*behind, owner)
        if (id(owner), part.base) not in found:
            found[id(owner), part.base] = _OfBase(owner.bases.open(part.base, chain), chain)
        of = found[id(owner), part.base]
        of.wanted.append(replace(each, entry=pinned(owner, of.base, each.entry, part), owner=None))
        of.nbytes += each.out.nbytes
        of.whole_nbytes += each.out.nbytes if each.whole else 0
    return list(found.values())


def pinned(model: Opened, base: Opened, entry: TensorEntry, part: Base) -> TensorEntry:
    """The stored tensor of ``base`` that ``entry`` of ``model`` begins with. Raises CorruptError if it is not the one that
    was meant."""
    spec, where = entry.spec, f"{model.reader.url}, tensor {entry.spec.name!r}"
    found = base.document.tensors.get(part.tensor)
    if found is None:
        problem = f"there is no tensor {part.tensor!r}"
    elif (found.spec.dtype, found.spec.shape) != (spec.dtype, spec.shape):
        kinds = [f"{s.dtype.name} {list(s.shape)}" for s in (found.spec, spec)]
        problem = f"tensor {part.tensor!r} is {kinds[0]}, and was {kinds[1]}"
    elif found.sha256 != part.sha256:
        problem = f"tensor {part.tensor!r} has other values ({found.sha256[:12]}..., not {part.sha256[:12]}...)"
    else:
        return base.document.stored(found)
    raise CorruptError(
        f"its base {base.reader.url!r} is not the model that it was made for: {problem}; "
        f"give the right one: {_moved(model.document.bases[part.base])}",
        where=where,
        clause="base-3",
    )


def _is_cast(wanted: Wanted) -> bool:
    """Whether what is read is of another dtype than the base: words are then changed as they are, and cast at the end."""
    return wanted.base is not None and wanted.base.dtype is not wanted.entry.spec.dtype


def _in_own_dtype(wanted: Wanted, allocate: Callable[[tuple[int, ...], np.dtype], np.ndarray]) -> Wanted:
    assert wanted.base is not None
    dtype = wanted.base.dtype
    entry = replace(wanted.entry, spec=replace(wanted.entry.spec, dtype=dtype))
    return replace(wanted, entry=entry, out=allocate(wanted.out.shape, dtype.word))


def _spread(model: Opened, wanted: Sequence[Wanted]) -> Sequence[Wanted]:
    return model.archives.spread(wanted) if model.archives else wanted


def _nowhere(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    return np.broadcast_to(np.zeros((), dtype), shape)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a model was opened: a path (absolute) or a URL, None in memory; and the options of its filesystem."""

    location: str | None
    options: Options = None

    @classmethod
    def of(cls, location: Location, options: Options = None) -> "Place":
        if isinstance(location, (bytes, bytearray, memoryview)):
            return cls(None)
        if is_local(location):
            return cls(os.path.abspath(local_path(location)))
        return cls(os.fspath(location), options)

    @property
    def local(self) -> bool:
        return self.location is not None and is_local(self.location)

    @property
    def identity(self) -> str | None:
        """The same for two ways to write one path."""
        return os.path.realpath(local_path(self.location)) if self.local and self.location else self.location


def locate(url: str, beside: Place) -> Place:
    """The place of the base ``url`` that a model at ``beside`` refers to. Raises ValueError for where no file may lead.

    A path that is not absolute begins in the directory, or at the prefix, where the model lies; of remote storage it does not
    leave the bucket or host. Local files, absolute paths among them, are for models that are local files themselves. A URL is
    of one of PROTOCOLS and has no other filesystem inside. The storage options of the model are for a base of the same
    protocol and the same bucket or host; every other one is opened without.
    """
    if match := _URL.match(url):
        if match[1] == "file":
            if not beside.local:
                raise ValueError("only a local model can refer to a local file")
            return Place.of(url)
        if match[1] not in PROTOCOLS:
            raise ValueError(f"{match[1]!r} is none of {', '.join(PROTOCOLS)}")
        if "::" in url or any(ord(c) <= 32 for c in url):
            raise ValueError("it has one filesystem inside of another, or blanks")
        own = _URL.match(beside.location or "")
        return Place(url, beside.options if own and own.groups() == match.groups() else None)
    if "://" in url:
        raise ValueError("it is neither a path nor a URL")
    if beside.location is None:
        raise ValueError("a model in memory has no files beside it")
    if beside.local:
        return Place(os.path.normpath(os.path.join(os.path.dirname(beside.location), url)))
    if url.startswith("/"):
        raise ValueError("only a local model can refer to a local file")
    if "::" in url or any(ord(c) < 32 for c in url):
        raise ValueError("it is no path")
    scheme, _, path = beside.location.partition("://")
    if scheme in ("http", "https"):  # where what follows is a signature, for one object
        path = re.split("[?#]", path, maxsplit=1)[0]
    segments = path.rstrip("/").split("/")[:-1]
    for segment in url.split("/"):
        if segment == "..":
            if len(segments) < 2:  # the first is the bucket or host
                raise ValueError("it leaves the bucket or host")
            segments.pop()
        elif segment not in ("", "."):
            segments.append(segment)
    return Place(f"{scheme}://{'/'.join(segments)}", beside.options)


@dataclass(frozen=True, slots=True, eq=False)
class OpenModel:
    """What is open of a model that nobody looks at but to read words."""

    reader: Reader
    document: ModelDocument
    bases: "Bases"
    archives: Pieces | None = None


class Family:
    """An open model and those that it refers to, directly or through others, each open once. Threads share it.

    moved  where to find bases, by the URL that files have for them, instead of there; those that are open already are not
           closed with the others
    """

    def __init__(self, retry: Retry | None, stats: Stats, moved: BaseLocations | None) -> None:
        self._retry, self._stats, self.moved = retry or Retry(), stats, dict(moved or {})
        self._open: dict[str, Opened] = {}
        self._mine: list[Reader] = []
        self.renew()
        renew_in_children(self)

    def renew(self) -> None:
        self._lock = threading.Lock()
        self._opening: dict[str, threading.Lock] = {}

    def add(self, model: Opened) -> None:
        """The model that all begins with, which is not closed with the others."""
        if identity := model.bases.place.identity:
            self._open[identity] = model

    def has(self, place: Place) -> bool:
        """Whether the model at ``place`` is one that is open."""
        return place.identity in self._open

    def get(self, place: Place, data: Location | None) -> Opened:
        """The model at ``place``; in memory, that of ``data``."""
        identity = place.identity or f"<memory {id(data)}>"
        with self._lock:
            opening = self._opening.setdefault(identity, threading.Lock())
        with opening:  # others may be opened meanwhile
            if identity not in self._open:
                operation = self._retry.start()
                location = data if place.location is None else place.location
                assert location is not None
                reader = open_reader(location, place.options, operation, self._stats)
                try:
                    self._open[identity] = OpenModel(reader, read_model(reader, operation), Bases(place, self))
                except BaseException:
                    reader.close()
                    raise
                self._mine.append(reader)
            return self._open[identity]

    def check_unchanged(self) -> None:
        """Raises StorageError if a base is another one by now, where reading it cannot tell."""
        for reader in list(self._mine):
            reader.check_unchanged(reader.start())

    def close(self) -> None:
        while self._mine:
            self._mine.pop().close()
        self._open.clear()


class Bases:
    """Those of one model; ``place`` is where it lies."""

    def __init__(self, place: Place, family: Family) -> None:
        self.place, self.family = place, family

    def open(self, index: int, chain: tuple[Opened, ...]) -> Opened:
        """The base of this index. ``chain``: the models from the first to this one, which is the last.

        Raises FormatError for a model that is its own base, and for a chain that is too long; StorageError for a base that is
        not there, or that no file may refer to.
        """
        model = chain[-1]
        url = model.document.bases[index]
        try:
            if len(chain) > MAX_DEPTH:
                raise FormatError(f"more than {MAX_DEPTH} models, one the base of another", clause="base-3")
            base = self._found(url)
            if any(base is model for model in chain):
                raise FormatError("a model is its own base", clause="base-3")
            return base
        except (MzError, ValueError) as error:
            # Where there is nothing at a URL, there is a folder without documents.
            kind: type[MzError] = StorageError
            if isinstance(error, MzError) and error.clause != "root-1":
                kind = type(error)
            shown = without_secrets(url)
            advice = f"; if it lies elsewhere, say where: {_moved(url)}" if kind is StorageError else ""
            raise kind(
                f"cannot read the base {shown!r}: {error}{advice}",
                where=model.reader.url,
                clause=getattr(error, "clause", ""),
            ) from error.__cause__ or error

    def _found(self, url: str) -> Opened:
        moved = self.family.moved.get(url)
        if moved is None:
            return self.family.get(locate(url, self.place), None)
        if isinstance(moved, (str, os.PathLike, bytes, bytearray, memoryview)):
            place = Place.of(moved)
            own = _URL.match(self.place.location or "")
            there = _URL.match(place.location or "")
            same = own and there and own.groups() == there.groups()
            return self.family.get(replace(place, options=self.place.options) if same else place, moved)
        return moved


def _moved(url: str) -> str:
    """How to say where a base lies, in Python and on the command line."""
    return f"bases={{{without_secrets(url)!r}: ...}} (--base URL=LOCATION)"


def depth(model: Opened, entry: TensorEntry, behind: tuple[Opened, ...] = ()) -> int:
    """How many models stand one behind another for the values of a stored tensor of ``model``: 0 if it has them itself.

    Opens them, and raises what reading the tensor would for bases that are missing or others.
    """
    part = base_of(entry.part) if entry.part else None
    if part is None:
        return 0
    chain = (*behind, model)
    base = model.bases.open(part.base, chain)
    return 1 + depth(base, pinned(model, base, entry, part), chain)


def refer(base: str | os.PathLike[str], referrer: str | os.PathLike[str], url: str | None = None) -> str:
    """What a model at ``referrer`` has for its base at ``base``: the path from one to the other, or the base's URL.

    url  to be taken instead

    Raises ValueError where a reader would not be led from one to the other.
    """
    there, here = Place.of(base), Place.of(referrer)
    assert there.location is not None
    assert here.location is not None
    if there.identity == here.identity:
        raise ValueError(f"{os.fspath(referrer)!r} would be its own base: write it to another place")
    if url is None and there.local and not here.local:
        raise ValueError(
            f"a model at {without_secrets(here.location)!r} cannot refer to a local file: say by base_url (--base-url) "
            "where its base will lie"
        )
    if url is None and there.local:
        url = os.path.relpath(there.location, os.path.dirname(here.location)).replace(os.sep, "/")
    elif url is None:
        folder, _, name = there.location.rstrip("/").rpartition("/")
        url = name if folder == here.location.rstrip("/").rpartition("/")[0] else there.location
    if without_secrets(url) != url:
        raise ValueError(
            f"{without_secrets(url)!r} has a password or a query, which would stand in the model: say by base_url "
            "(--base-url) where the base lies for all"
        )
    try:
        locate(url, here)
    except ValueError as error:
        raise ValueError(
            f"no reader would follow {url!r}: {error}; say by base_url (--base-url) where the base lies"
        ) from error
    if not 0 < len(url) <= MAX_URL_LENGTH or "\0" in url:
        raise ValueError(f"the base's URL has {len(url)} characters, 1 to {MAX_URL_LENGTH} are allowed")
    return url

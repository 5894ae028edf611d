"""Writer: a source of tensors into a container, in one pass, by as much memory as a few chunks take.

The way of a tensor: is it equal to one before? choose how to store it; then row block by row block: read, digest,
encode the chunks in threads, write the payloads in order. The documents follow at the end, the root last.
"""

import functools
import hashlib
import math
import os
import zlib
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, get_args

import numpy as np

from mzstore.container import Kind, Writer, create_writer, kind_for
from mzstore.documents import (
    DOCUMENT,
    MAX_DOCUMENT_NBYTES,
    Asset,
    Layout,
    ModelDocument,
    TensorEntry,
    check_paths,
    dump,
    load,
)
from mzstore.dtypes import DType
from mzstore.encode import Choice, ChunkShape, Level, Payload, check_level, choose, is_constant, payloads
from mzstore.encodings.raw import Raw
from mzstore.errors import CorruptError, FormatError
from mzstore.ggml import BlockType
from mzstore.grid import choose_chunk_shape
from mzstore.journal import JOURNAL_NBYTES, Resumed
from mzstore.model import StoredTensor, check_threads
from mzstore.nodes import LAYOUTS, Namer
from mzstore.packed import Encoded, digest_of_blocks, encode, part_for
from mzstore.prepared import Fitted, Prepared
from mzstore.progress import progress
from mzstore.recipe import Recipe, Rule, Rules
from mzstore.sources import (
    FileSource,
    ModelSource,
    PackedSource,
    TensorSource,
    block_type_of,
    blocks,
    from_arrays,
    held,
    origin,
    read_ahead,
)
from mzstore.storage import Options, Retry, Writable
from mzstore.tensors import TensorSpec
from mzstore.version import __version__

if TYPE_CHECKING:  # what changes values is imported only where that is asked for
    from mzstore.approximate import Approximation
    from mzstore.quantize import Lossy

PREFIX_NBYTES = 64 << 10  # two tensors that differ at all mostly differ here
PENDING_NBYTES = 128 << 20  # of words, which row blocks that are being quantized hold: each some four times more
MAX_METADATA_DEPTH = 400  # FORMAT.md lets a reader refuse 500, and the root document adds some

Target = str | os.PathLike[str] | BinaryIO | Writable
Importances = Mapping[str, Any]  # name -> array, see ``save``


def save(
    location: Target,
    tensors: Mapping[str, Any],
    *,
    metadata: Mapping[str, Any] | None = None,
    assets: Mapping[str, bytes | str | os.PathLike[str]] | None = None,
    recipe: Recipe | None = None,
    importance: Importances | None = None,
    level: Level = "balanced",
    kind: Kind | None = None,
    threads: int | None = None,
    show_progress: bool | None = None,
    storage_options: Options = None,
    retry: Retry | None = None,
) -> None:
    """Write ``tensors`` (name -> array of NumPy or tensor of PyTorch) to a path, URL or binary file object.

    metadata  anything JSON can hold
    recipe    which tensors are quantized, and how; None: all stay lossless
    importance  for quantized tensors, by name: how much the squared error of each column (one number for each index of
              the last axis, such as an activation's second moment) or of each value (an array like the tensor) matters
    assets    small files that travel along: relative path -> content, or the path of a file
    level     ``fast`` (to decode), ``balanced``, ``max`` (smallest)
    kind      ``archive`` or ``tree``; None: a tree if the name ends in ``.zarr`` or a slash, else an archive
    threads   None: one for each processor
    retry     how long remote storage is waited for, and how often it is asked; its deadline is that of the whole save

    The arrays must not change meanwhile. Nothing appears at ``location``, and what was there stays, until all is
    written (a remote tree must not be there before). Raises ValueError or TypeError
    for what cannot be stored, naming the tensor; StorageError if writing fails.
    """
    if importance and recipe is None:
        raise ValueError("importance without a recipe: nothing is quantized; give both, or leave it out")
    _check_names(importance, tensors)
    source = from_arrays(tensors, metadata or {}, assets or {})
    write(
        location,
        source,
        recipe=recipe,
        importance=importance,
        level=level,
        kind=kind,
        threads=threads,
        show_progress=show_progress,
        options=storage_options,
        retry=retry,
    )


@dataclass(frozen=True, slots=True)
class WrittenTensor:
    """What became of a tensor. ``stored_nbytes``: of its chunks; 0 if its values are those of another one."""

    spec: TensorSpec
    encoding: str
    stored_nbytes: int
    sha256: str
    lossy: Mapping[str, Any] | None


def write(
    location: Target,
    source: ModelSource,
    *,
    recipe: Rules | None = None,
    importance: Importances | None = None,
    level: Level = "balanced",
    kind: Kind | None = None,
    threads: int | None = None,
    show_progress: bool | None = None,
    options: Options = None,
    retry: Retry | None = None,
    chunks: ChunkShape = choose_chunk_shape,
    ahead: Literal["hold", "choose"] | None = None,
    resumed: Resumed | None = None,
) -> tuple[WrittenTensor, ...]:
    """Write any source; see ``save``. ``chunks``: how tensors are cut that are stored lossless and dense.

    ahead    of the next tensor, while one is at work: "hold" it in memory, which is for remote sources, or only "choose" how it is
             stored; None: nothing
    resumed  of a tree, what is complete already, and where more is noted down; then ``location`` and ``options`` are those of ``resume``
    """
    check_level(level)
    threads = check_threads(threads)
    kind = kind or kind_for(location)
    if kind not in get_args(Kind):
        raise ValueError(f"kind {kind!r} is none of {', '.join(get_args(Kind))}")
    _check_readable(source)
    if isinstance(source.tensors, Sequence):
        _check_names(importance, {tensor.spec.name for tensor in source.tensors})
    with (
        create_writer(location, kind, options, source.nbytes, retry, resumed.folder if resumed else None) as writer,
        progress("encode", source.nbytes, show_progress) as done,
        ExitStack() as stack,
    ):
        workers = stack.enter_context(_threads(threads)) if threads > 1 else None
        hasher = stack.enter_context(_threads(1)) if threads > 1 else None
        thresholds = _thresholds(source, recipe, importance or {})
        model = _ModelWriter(
            writer, level, workers, hasher, 2 * threads, done, recipe, importance or {}, thresholds, chunks, resumed
        )
        try:
            tensors: Iterable[Any] = source.tensors
            if ahead is not None:
                prepare = _Ahead(ahead == "hold", threads > 1, recipe, level, chunks, resumed)
                tensors = stack.enter_context(closing(read_ahead(tensors, prepare)))
            for tensor in tensors:
                model.add(tensor)
                model.note(tensor.spec.nbytes)
            written = model.finish(source)
            source.check_unchanged()
        except BaseException:
            for pool in (workers, hasher):
                if pool:
                    pool.shutdown(wait=False, cancel_futures=True)
            raise
    return written


@dataclass(frozen=True, slots=True)
class _Chosen:
    """A tensor of which is known already how it is to be stored if it is lossless."""

    source: TensorSource
    choice: Choice

    @property
    def spec(self) -> TensorSpec:
        return self.source.spec

    @property
    def origin(self) -> TensorSource:
        return origin(self.source)

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.source.read(start, stop)


@dataclass(frozen=True, slots=True)
class _Ahead:
    """What is done with a tensor while the one before it is at work.

    hold    read it whole, if it is of moderate size: what is near costs less to read twice, by blocks that stay in the cache
    choose  how it is stored
    """

    hold: bool
    choose: bool
    recipe: Rules | None
    level: Level
    chunks: ChunkShape
    resumed: Resumed | None

    def __call__(self, source: TensorSource) -> TensorSource:
        if isinstance(source, Prepared | Fitted) or (self.resumed and self.resumed.journal.has(source.spec)):
            return source
        found = held(source) if self.hold else source
        if not self.choose or (self.recipe and self.recipe.rule_for(source.spec)):
            return found
        return _Chosen(found, choose(found, self.level, self.chunks))


def _thresholds(source: ModelSource, recipe: Rules | None, importance: Importances) -> Mapping[int, float]:
    """For rules that prune several tensors together: the score from which on values are kept. Reads those tensors once."""
    if recipe is None or not any(rule.scope == "global" for rule in recipe.rules):
        return {}
    from mzstore import approximate, prune

    counted = prune.Thresholds()
    for tensor in source.tensors:
        rule = recipe.rule_for(tensor.spec)
        if rule is None or rule.scope != "global" or is_constant(tensor):
            continue
        try:
            counted.add(rule, *approximate.matrix_of(tensor, importance.get(tensor.spec.name)))
        except ValueError as error:
            if rule.on_error != "lossless":
                raise ValueError(f"tensor {tensor.spec.name!r}: {error}") from error
    return counted.found()


def _check_names(importance: Importances | None, names: Container[str]) -> None:
    for name in importance or {}:
        if name not in names:
            raise ValueError(f"importance for {name!r}, and there is no tensor of this name: leave it out")


def _check_readable(source: ModelSource) -> None:
    """Raises ValueError or TypeError, before anything is written, for what no reader would take."""
    if not isinstance(source.metadata, Mapping):
        raise TypeError(f"metadata is a mapping, not {type(source.metadata).__name__}")
    try:
        _check_json(source.metadata, MAX_METADATA_DEPTH)
        load(dump(dict(source.metadata)), where="the metadata")
        check_paths([file.path for file in source.assets], where="the assets")
        check_paths([layout.path for layout in source.layouts], where="the layouts")
    except FormatError as error:
        raise ValueError(str(error)) from error


def _check_json(value: object, depth: int) -> None:
    """Raises what ``_check_readable`` raises for nesting beyond ``depth``, and for what JSON would turn into something else."""
    if depth == 0:
        raise ValueError(f"the metadata are nested deeper than {MAX_METADATA_DEPTH}")
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise TypeError(f"a key in the metadata is {key!r:.100}, not a string")
            _check_json(inner, depth - 1)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            _check_json(inner, depth - 1)


def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="mzstore-encode")


@dataclass(slots=True)
class _Written:
    """A tensor whose digest may still be at work."""

    entry: TensorEntry
    digest: Callable[[], str]
    source_digest: Callable[[], str]  # the same, but for values that were changed
    rule: Rule | None = None  # which was asked for, kept or not
    importance: Any = None
    quality: Callable[[TensorEntry], Mapping[str, Any]] | None = None

    def settle(self) -> TensorEntry:
        self.entry = replace(self.entry, sha256=self.digest())
        if self.quality:
            self.entry = replace(self.entry, lossy=self.quality(self.entry))
        return self.entry


class _ModelWriter:
    def __init__(
        self,
        writer: Writer,
        level: Level,
        workers: Executor | None,
        hasher: Executor | None,
        most: int,
        done: Callable[[int], None],
        recipe: Rules | None,
        importance: Importances,
        thresholds: Mapping[int, float],
        chunks: ChunkShape,
        resumed: Resumed | None,
    ) -> None:
        self._resumed = resumed
        self._noted = 0  # of the tensors that were written
        self._since = 0  # bytes of values
        self._writer, self._level, self._workers, self._hasher = writer, level, workers, hasher
        self._most, self._done, self._recipe, self._importance = most, done, recipe, importance
        self._chunks = chunks
        self._thresholds = thresholds  # of rules for several tensors together, by id
        self._pending: deque[tuple[Future[Any], Callable[[Any], None], int]] = deque()
        self._hashing: deque[Future[None]] = deque()
        self._namer = Namer()
        self._stored_nbytes: dict[str, int] = {}  # by node
        self._written: dict[str, _Written] = {}
        self._by_prefix: dict[object, list[_Written]] = {}
        self._by_digest: dict[object, str] = {}  # nodes of tensors that came prepared

    def add(self, source: TensorSource) -> None:
        spec = source.spec
        if spec.name in self._written:
            raise ValueError(f"two tensors are called {spec.name!r}")
        node = self._namer.node(spec.name)
        if isinstance(source, Prepared):
            self._keep(self._complete(source, node) or self._prepared(source, node))
            return
        if isinstance(source, Fitted):
            self._keep(self._laid_down(source.approximation, source.values, node, source.approximation.kept))
            return
        size = math.prod(spec.word_shape)
        kind = block_type_of(source)
        prefix = (
            spec.dtype.name,
            spec.shape,
            kind,
            hashlib.sha256(_bytes(source.read(0, min(size, PREFIX_NBYTES // spec.dtype.word.itemsize)))).digest(),
        )
        rule = self._recipe.rule_for(spec) if self._recipe else None
        importance = self._importance.get(spec.name) if rule else None
        if (complete := self._complete(source, node)) is not None:
            complete.rule, complete.importance = rule, importance
            self._keep(complete)
            self._by_prefix.setdefault(prefix, []).append(complete)
            return
        alike = [
            other
            for other in self._by_prefix.setdefault(prefix, [])
            if self._asked(other.rule) == self._asked(rule) and other.importance is importance
        ]
        if alike and spec.nbytes:
            digest = _digest_of_stored(source)
            for other in alike:
                if other.source_digest() == digest:
                    self._keep(
                        _Written(TensorEntry(spec, node, "", same_as=other.entry.node), other.digest, lambda: digest)
                    )
                    self._done(spec.nbytes)
                    return
        written = self._approximated(source, node, rule, importance) if rule and not is_constant(source) else None
        if written is None:
            if isinstance(source, StoredTensor) and source.changed:
                written = self._copied(source, node)
            elif kind is not None:
                assert isinstance(source, PackedSource)
                written = self._packed(source, node, kind)
            else:
                written = self._lossless(source, node)
        written.rule, written.importance = rule, importance
        self._keep(written)
        self._by_prefix[prefix].append(written)

    def _complete(self, source: TensorSource, node: str) -> _Written | None:
        """A tensor that an earlier attempt has written; None if none has."""
        found = self._resumed.journal.find(source.spec, node) if self._resumed else None
        if found is None:
            return None
        entry, nbytes = found
        again = origin(source)
        self._stored_nbytes[node] = nbytes
        self._done(source.spec.nbytes)
        own = entry.lossy is None and block_type_of(source) is None
        digest = (lambda: entry.sha256) if own else functools.cache(lambda: _digest_of_stored(again))
        return _Written(entry, lambda: entry.sha256, digest)

    def note(self, nbytes: int) -> None:
        """After a tensor of ``nbytes``: note down what is complete, if there is enough of it."""
        self._since += nbytes
        if self._resumed is None or self._since < JOURNAL_NBYTES:
            return
        self._drain(0)
        self._resumed.folder.settle()
        new = [
            (written.settle(), self._stored_nbytes.get(written.entry.node, 0))
            for written in list(self._written.values())[self._noted :]
            if not self._resumed.journal.has(written.entry.spec)
        ]
        if new:
            self._resumed.journal.add(new)
        self._noted, self._since = len(self._written), 0

    def _asked(self, rule: Rule | None) -> object:
        """What tells apart rules that make different things of equal values."""
        return rule and (rule.asked, self._thresholds.get(id(rule)))

    def _lossless(self, source: TensorSource, node: str) -> _Written:
        choice = source.choice if isinstance(source, _Chosen) else choose(source, self._level, self._chunks)
        digest = _checked(source, self._store(source, node, choice))
        return _Written(TensorEntry(source.spec, node, "", choice.part), digest, digest)

    def _prepared(self, source: Prepared, node: str) -> _Written:
        spec, sha256 = source.spec, source.sha256
        key = spec.dtype.name, spec.shape, sha256
        if source.part.components and key in self._by_digest:
            self._done(spec.nbytes)
            return _Written(TensorEntry(spec, node, "", same_as=self._by_digest[key]), lambda: sha256, lambda: sha256)
        if source.words and source.choice:
            self._store(source.words, node, source.choice, digested=True)
        else:
            self._drain(0)
            self._write(node, list(source.payloads))
            self._done(spec.nbytes)
        if source.part.components:
            self._by_digest[key] = node
        return _Written(TensorEntry(spec, node, "", source.part), lambda: sha256, lambda: sha256)

    def _copied(self, source: StoredTensor, node: str) -> _Written:
        """A tensor that a recipe has changed already, as it is."""
        self._drain(0)
        for payload in source.payloads():
            self._write(node, [Payload(*payload)])
        self._done(source.spec.nbytes)
        entry = TensorEntry(source.spec, node, source.sha256, source.stored.part, lossy=source.stored.lossy)
        return _Written(entry, lambda: source.sha256, functools.cache(lambda: _digest_of_stored(source)))

    def _packed(self, source: PackedSource, node: str, kind: BlockType) -> _Written:
        part, digest = part_for(kind, source.spec.shape), hashlib.sha256()
        last: Callable[[], None] = lambda: None  # noqa: E731

        def keep(encoded: Encoded) -> None:
            nonlocal last
            self._write(node, encoded.payloads)
            last = self._hash(digest, encoded.words)
            self._done(encoded.words.nbytes)

        for start, shape, chunks in part.grid.row_blocks():
            first = start // kind.size
            run = source.read_blocks(first, first + math.prod(shape) // kind.size)
            self._work(keep, encode, part, run, shape, chunks, nbytes=math.prod(shape) * 4)

        def finished() -> str:
            self._drain(0)
            last()
            return digest.hexdigest()

        return _Written(
            TensorEntry(source.spec, node, "", part), finished, functools.cache(lambda: digest_of_blocks(source))
        )

    def _approximated(self, source: TensorSource, node: str, rule: Rule, importance: Any) -> _Written | None:
        """None if the rule lets this tensor stay lossless because it cannot be what is asked for."""
        from mzstore import approximate, targets

        spread = self._workers.map if self._workers else map
        kept: list[dict[str, Any]] | None = None
        lossy: Approximation | Lossy
        try:
            if rule.encoding == "quantized":
                lossy = targets.prepare(source, rule, importance, self._level, spread)
            else:
                least = self._thresholds.get(id(rule))
                lossy = approximate.prepare(source, rule, importance, self._level, spread, least)
                kept = lossy.kept
        except ValueError:
            if rule.on_error == "lossless":
                return None
            raise
        return self._laid_down(lossy, source, node, kept)

    def _laid_down(
        self,
        lossy: "Approximation | Lossy",
        source: TensorSource,
        node: str,
        kept: list[dict[str, Any]] | None,
    ) -> _Written:
        """``source`` as ``lossy`` has it; ``kept``: see ``quality_of``."""
        from mzstore.quality import Errors, quality_of
        from mzstore.quantize import Encoded

        # What is kept until the end must not hold values: neither those that were tried, nor those of a source read ahead.
        part, asked, again = lossy.part, lossy.asked, origin(source)
        errors, digest = Errors(), hashlib.sha256()
        last: Callable[[], None] = lambda: None  # noqa: E731

        def keep(encoded: Encoded) -> None:
            nonlocal errors, last
            self._write(node, encoded.payloads)
            errors += encoded.errors
            last = self._hash(digest, encoded.words)
            self._done(encoded.words.nbytes)

        for start, shape, chunks in part.grid.row_blocks():
            block = source.read(start, start + math.prod(shape)).reshape(shape)
            self._work(keep, lossy.encode, block, start, chunks, nbytes=block.nbytes)

        def finished() -> str:
            self._drain(0)
            last()
            return digest.hexdigest()

        def quality(entry: TensorEntry) -> Mapping[str, Any]:
            return quality_of(entry, asked, errors, kept)

        entry = TensorEntry(source.spec, node, "", part)
        return _Written(entry, finished, functools.cache(lambda: _digest_of_stored(again)), quality=quality)

    def _keep(self, written: _Written) -> None:
        self._written[written.entry.spec.name] = written

    def _store(self, source: TensorSource, node: str, choice: Choice, *, digested: bool = False) -> Callable[[], str]:
        """Encode and write the chunks of ``source``; returns what gives its digest, unless that is known."""
        dtype, part = source.spec.dtype, choice.part
        digest = hashlib.sha256()
        constant = isinstance(part, Raw) and part.constant
        hashed: Callable[[], None] = lambda: None  # noqa: E731  of a tensor without words
        for i, (start, shape, chunks) in enumerate(part.grid.row_blocks()):
            block = source.read(start, start + math.prod(shape)).reshape(shape)
            if not digested:
                hashed = self._hash(digest, block)
            if constant:
                if i == 0:
                    self._encode(
                        node, choice, block.reshape(-1)[:1].reshape((1,) * len(shape)), (0,) * len(shape), dtype
                    )
            else:
                for chunk in chunks:
                    self._encode(node, choice, block, chunk, dtype)
            self._done(block.nbytes)

        def finished() -> str:
            hashed()  # the hasher works in order: the last block is done after all others
            return digest.hexdigest()

        return finished

    def _hash(self, digest: "hashlib._Hash", block: np.ndarray) -> Callable[[], None]:
        """Add ``block`` to ``digest``, in the background; returns what waits for it."""
        if self._hasher is None:
            digest.update(_bytes(block))
            return lambda: None
        while len(self._hashing) > 1:  # each holds a row block in memory
            self._hashing.popleft().result()
        future = self._hasher.submit(digest.update, _bytes(block))
        self._hashing.append(future)
        return future.result

    def _encode(self, node: str, choice: Choice, block: np.ndarray, chunk: tuple[int, ...], dtype: DType) -> None:
        self._work(lambda found: self._write(node, found), payloads, choice, block, chunk, dtype)

    def _work(self, keep: Callable[[Any], None], function: Callable[..., Any], *args: Any, nbytes: int = 0) -> None:
        """``keep(function(*args))``: the function in a thread, if there are some, and ``keep`` here, in the order of calls.

        nbytes  of the words that it holds alone; so many jobs are waited for that these do not become too many
        """
        if self._workers is None:
            keep(function(*args))
            return
        while self._pending and sum(held for _, _, held in self._pending) + nbytes > PENDING_NBYTES:
            self._drain(len(self._pending) - 1)
        self._pending.append((self._workers.submit(function, *args), keep, nbytes))
        self._drain(self._most)

    def _drain(self, most: int) -> None:
        while len(self._pending) > most:
            future, keep, _ = self._pending.popleft()
            keep(future.result())

    def _write(self, node: str, found: list[Payload]) -> None:
        self._stored_nbytes[node] = self._stored_nbytes.get(node, 0) + sum(len(payload.data) for payload in found)
        for payload in found:
            self._writer.write_chunk(f"{node}/{payload.path}", payload.data, aligned=payload.plain)

    def finish(self, source: ModelSource) -> tuple[WrittenTensor, ...]:
        self._drain(0)
        assets, namer = [], Namer()
        for file in source.assets:
            key = namer.path(file.path)
            nbytes, crc, sha256 = file.survey()
            self._writer.write_file(key, nbytes, crc, _as_surveyed(file, nbytes, crc))
            assets.append(Asset(file.path, key, nbytes, sha256))
        layouts = []
        for i, layout in enumerate(source.layouts):
            key = f"{LAYOUTS}/{i}"
            self._writer.write_document(key, layout.raw)
            layouts.append(Layout(layout.path, key, layout.prefix, layout.format, layout.kind))
        tensors = {name: written.settle() for name, written in self._written.items()}
        model = ModelDocument(
            tensors, source.metadata, tuple(assets), tuple(layouts), f"mzstore {__version__}", tuple(source.bases)
        )
        for key, doc in model.documents():
            data = dump(doc)
            if len(data) > MAX_DOCUMENT_NBYTES:
                raise ValueError(f"the documents take {len(data)} bytes, at most {MAX_DOCUMENT_NBYTES} are allowed")
            self._writer.write_document(f"{key}/{DOCUMENT}" if key else DOCUMENT, data)
        return tuple(map(self._about, tensors.values()))

    def _about(self, entry: TensorEntry) -> WrittenTensor:
        encoding = entry.part.encoding if entry.part else "same"
        return WrittenTensor(entry.spec, encoding, self._stored_nbytes.get(entry.node, 0), entry.sha256, entry.lossy)


def _bytes(words: np.ndarray) -> memoryview:
    return words.reshape(-1).view(np.uint8).data


def _digest(source: TensorSource) -> str:
    digest = hashlib.sha256()
    for block in blocks(source):
        digest.update(_bytes(block))
    return digest.hexdigest()


def _digest_of_stored(source: TensorSource) -> str:
    """By which tensors are told to be the same, whose values are of one dtype and shape, in blocks of one type or in none."""
    if isinstance(source, PackedSource) and source.block_type:
        return digest_of_blocks(source)
    return _digest(source)


def _checked(source: TensorSource, digest: Callable[[], str]) -> Callable[[], str]:
    """``digest``, which raises CorruptError if the values of a model were not what its documents say."""
    stored = origin(source)
    if not isinstance(stored, StoredTensor) or not stored.sha256:
        return digest

    def checked() -> str:
        found = digest()
        if found != stored.sha256:
            raise CorruptError(
                "the values do not have the digest (sha256) that the document states; restore the file from a copy",
                where=f"{stored.model.reader.url}, tensor {stored.spec.name!r}",
                clause="digest-2",
            )
        return found

    return checked


def _as_surveyed(file: FileSource, nbytes: int, crc32: int) -> Iterator[bytes | memoryview]:
    """The blocks of ``file``. Raises ValueError if they are not what they were when it was surveyed."""
    count, crc = 0, 0
    for block in file.blocks():
        count, crc = count + len(block), zlib.crc32(block, crc)
        yield block
    if (count, crc) != (nbytes, crc32):
        raise ValueError(f"asset {file.path!r} changed while it was read")

"""Checkpoints of many ranks, by torch.distributed.checkpoint.

    dcp.save(state, storage_writer=MzWriter("s3://bucket/run/1000"), planner=MzSavePlanner())
    dcp.load(state, storage_reader=MzReader("s3://bucket/run/1000"), planner=MzLoadPlanner())

Each rank writes archives of its own, once. The coordinator checks that all of the state was written, and creates the manifest, which
makes the checkpoint exist (FORMAT.md section 10): ``mzstore.open`` has it as one model, ``CheckpointStore`` as one of its
checkpoints. Values that are no tensors are JSON; nothing is pickled.
"""

import contextlib
import io
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.distributed.checkpoint import (
    DefaultLoadPlanner,
    DefaultSavePlanner,
    LoadPlan,
    LoadPlanner,
    Metadata,
    SavePlan,
    SavePlanner,
    StorageReader,
    StorageWriter,
)
from torch.distributed.checkpoint._nested_dict import set_element
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, ReadItem, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from mzstore import frameworks
from mzstore.bases import BaseLocations, Wanted, fill
from mzstore.checkpoints.archives import ArchiveList, Archiving, Before, Box, Settings, Stored, check_chain
from mzstore.checkpoints.repository import (
    Repository,
    check_step,
    checkpoint_json,
    new_save_id,
    save_id_of,
)
from mzstore.checkpoints.state import decode, encode
from mzstore.composite import read_manifest
from mzstore.documents import TensorEntry
from mzstore.dtypes import DTYPES, DType
from mzstore.encode import Level, check_level
from mzstore.errors import CorruptError, FormatError
from mzstore.grid import choose_resharded_chunk_shape
from mzstore.groups import groups
from mzstore.manifest import Manifest, ManifestTensor, Piece, manifest_key
from mzstore.model import Model, check_threads
from mzstore.model import open as open_model
from mzstore.recipe import Recipe
from mzstore.selection import Span
from mzstore.sources import ArraySource
from mzstore.stats import Stats
from mzstore.storage import Options, Retry
from mzstore.tensors import TensorSpec
from mzstore.torch.flat import Leaf, Path, flatten, nest
from mzstore.version import __version__

GRACE = 3600.0
COPY_NBYTES = 256 << 20  # of tensors that cannot be read into: at a time

Id = str | os.PathLike[str]


class PlainValue(io.BytesIO):
    """A value that is no tensor, on its way between a planner and MzWriter or MzReader, which know what it is in storage."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value


class MzSavePlanner(DefaultSavePlanner):
    """The default one, but that it leaves values that are no tensors to MzWriter, and pickles none."""

    def transform_object(self, write_item: WriteItem, object: Any) -> Any:  # noqa: A002  its name there
        return PlainValue(object) if write_item.type == WriteItemType.BYTE_IO else object


class MzLoadPlanner(DefaultLoadPlanner):
    """The default one, but that it takes values that are no tensors from MzReader, and unpickles none."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        if not isinstance(value, PlainValue):
            raise TypeError("MzLoadPlanner reads what MzReader gives: use storage_reader=MzReader(...)")
        name = read_item.dest_index.fqn
        if self.flatten_state_dict:
            set_element(self.original_state_dict, self.mappings[name], value.value)
        else:
            self.state_dict[name] = value.value


@dataclass(frozen=True, slots=True)
class CheckpointId:
    """``store``: URL of the store of checkpoints."""

    store: str
    step: int

    @classmethod
    def parse(cls, checkpoint_id: Id) -> "CheckpointId":
        store, slash, step = os.fspath(checkpoint_id).rstrip("/").rpartition("/")
        if not slash or not (step.isascii() and step.isdigit()):
            raise ValueError(
                f"checkpoint id {os.fspath(checkpoint_id)!r} is not the URL of a store, a slash and the step, such as 's3://bucket/run/1000'"
            )
        return cls(store, check_step(int(step)))


class _Checkpoint:
    """What writer and reader have in common: which checkpoint it is. Holds no connection, and can be pickled."""

    def __init__(self, checkpoint_id: Id | None, options: Options, retry: Retry | None) -> None:
        self.checkpoint_id: Id | None = None  # torch looks for an attribute of this name, for its log
        self._options, self._retry = options, retry
        self._reset(checkpoint_id)

    def _reset(self, checkpoint_id: Id | None) -> None:
        if checkpoint_id is not None:
            CheckpointId.parse(checkpoint_id)
            self.checkpoint_id = checkpoint_id

    @property
    def _id(self) -> CheckpointId:
        if self.checkpoint_id is None:
            raise ValueError(f"which checkpoint? Give {type(self).__name__}, or dcp, a checkpoint id")
        return CheckpointId.parse(self.checkpoint_id)

    def _repository(self) -> Repository:
        return Repository(self._id.store, self._options, self._retry)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Id) -> bool:
        try:
            CheckpointId.parse(checkpoint_id)
        except ValueError:
            return False
        return True


def _refuse_no_collectives(use_collectives: object) -> None:
    if not use_collectives:
        raise ValueError(
            "use_collectives=False: nobody would know whether all ranks have written; mzstore commits a checkpoint as a whole"
        )


@dataclass(frozen=True, slots=True)
class _Item:
    """What became of a write item, as its rank tells the coordinator: pieces of tensors (of a value, the arrays inside of it), each with
    the whole tensor; and of a value its document. ``save_id``: of the archives that the rank has written."""

    save_id: str
    stored: tuple[tuple[TensorSpec, Stored], ...] = ()
    doc: Any = None


@dataclass(frozen=True, slots=True)
class _Task:
    """A tensor that is to be written. ``spec`` is that of the box, under its name in the archive.

    index  of the write item
    name   of the whole tensor, of ``shape``
    """

    index: int
    spec: TensorSpec
    name: str
    offsets: tuple[int, ...]
    shape: tuple[int, ...]
    values: Callable[[], Any]


class MzWriter(_Checkpoint, StorageWriter):
    """Writes one checkpoint: the id is the URL of a store, a slash and the step. ``dcp.save`` and ``dcp.async_save`` may give another.

    metrics  numbers by which checkpoints are compared
    recipe   which tensors are stored lossy, see ``mzstore.save``; all others are exact
    chain    so many checkpoints, at most, stand one behind another for what is stored as changes, for which each rank reads back
             what it saved before: that takes twice the time of a save, and more with each checkpoint behind another. 0: nothing
             is. What did not change at all is referred to in any case
    grace    seconds that what is written counts as no garbage (see ``CheckpointStore``); a save that takes longer fails

    Each rank compares its boxes with those of the checkpoint that was committed last. Use it with MzSavePlanner. Raises ConflictError if there is a checkpoint of this step.
    """

    def __init__(
        self,
        checkpoint_id: Id | None = None,
        *,
        metrics: Mapping[str, float] | None = None,
        recipe: Recipe | None = None,
        chain: int = 0,
        level: Level = "balanced",
        threads: int | None = None,
        grace: float = GRACE,
        storage_options: Options = None,
        retry: Retry | None = None,
    ) -> None:
        super().__init__(checkpoint_id, storage_options, retry)
        check_level(level)
        self._metrics = {str(name): encode(float(value))[0] for name, value in (metrics or {}).items()}
        self._settings = Settings(
            recipe=recipe,
            chain=check_chain(chain),
            level=level,
            threads=check_threads(threads),
            chunks=choose_resharded_chunk_shape,
        )
        self._grace = grace
        self._rank, self._started = 0, 0.0

    def reset(self, checkpoint_id: Id | None = None) -> None:
        self._reset(checkpoint_id)

    def storage_meta(self) -> StorageMeta | None:
        return None

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        _refuse_no_collectives(kwargs.get("use_collectives", True))
        self._rank, self._started = int(kwargs.get("rank") or 0), time.monotonic()
        if is_coordinator:  # before anything is uploaded for nothing
            repository = self._repository()
            if repository.manifest(self._id.step) is not None:
                raise repository.conflict(self._id.step)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        # Nothing is agreed on here: a rank whose plan is cached would see what was agreed on for an earlier save.
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Archives of names that nobody else uses: each rank chooses an id for each save."""
        items = list(plan.items)
        docs: dict[int, Any] = {}
        tasks: list[_Task] = []
        for index, item in enumerate(items):
            if item.type == WriteItemType.BYTE_IO:
                docs[index], inside = _encoded(item, planner)
                tasks += [_of_value(index, name, value) for name, value in inside.items()]
            elif (task := _of_box(index, item, planner)).spec.size:
                tasks.append(task)
        stored: dict[int, list[tuple[TensorSpec, Stored]]] = {}
        nbytes = dict.fromkeys(range(len(items)), 0)
        save_id = new_save_id()
        for task, found in self._store(_named(tasks), save_id):
            stored.setdefault(task.index, []).append((replace(task.spec, name=task.name, shape=task.shape), found))
            nbytes[task.index] += task.spec.nbytes
        results = [
            WriteResult(item.index, nbytes[index], _Item(save_id, tuple(stored.get(index, ())), docs.get(index)))
            for index, item in enumerate(items)
        ]
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future

    def _store(self, tasks: Sequence[_Task], save_id: str) -> Iterator[tuple[_Task, Stored]]:
        repository = self._repository()
        by_name = {task.spec.name: task for task in tasks}
        with contextlib.ExitStack() as stack:
            before = None
            if found := _before(repository):
                before = Before(repository, found, threads=self._settings.threads)
                stack.callback(before.close)
            archiving = Archiving(repository, save_id, self._rank, before, self._settings)
            for box, stored in archiving.store(map(_box, tasks)):
                yield by_name[box.source.spec.name], stored

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """The commit. Raises ValueError if what was written is not all of what was planned, ConflictError or StorageError."""
        written = [result for of_rank in results for result in of_rank]
        _check_coverage(metadata, written)
        leaves: dict[Path, Any] = {}
        paths = metadata.planner_data or {}
        for name, about in metadata.state_dict_metadata.items():
            if isinstance(about, TensorStorageMetadata):
                leaves[tuple(paths.get(name, (name,)))] = {"tensor": name}
        for result in written:
            if result.storage_data.doc is not None:
                name = result.index.fqn
                (leaves[tuple(paths.get(name, (name,)))],) = result.storage_data.doc
        structure = nest(leaves)
        if {leaf.path for leaf in flatten(structure, where="the state").values()} != leaves.keys():
            raise ValueError("values that are dicts: let the planner flatten the state (flatten_state_dict=True)")
        archives = ArchiveList()
        tensors = _tensors(metadata, written, archives)
        own = {result.storage_data.save_id for result in written} & {save_id_of(ref.path) for ref in archives.refs}
        manifest = Manifest(
            new_save_id(),
            tuple(archives.refs),
            tensors,
            checkpoint=checkpoint_json(self._id.step, structure, self._metrics, time.time())
            | {"save_ids": sorted(own)},
            writer=f"mzstore {__version__}",
        )
        repository = self._repository()
        repository.check_in_time(self._id.step, time.monotonic() - self._started, self._grace)
        repository.check_there(self._id.step, manifest)
        repository.commit(self._id.step, manifest)


def _before(repository: Repository) -> Manifest | None:
    """The checkpoint to which a rank may refer: the one that was committed last, as far as the hint knows, because a listing for each
    rank would be too many. Ranks need not agree."""
    step = repository.hint()
    try:
        return None if step is None else repository.manifest(step)
    except (FormatError, CorruptError):
        return None  # whatever is wrong with it, this save does not need it


def _encoded(item: WriteItem, planner: SavePlanner) -> tuple[Any, dict[str, Any]]:
    """([document], arrays inside) of a value; a list, because None is a document as well. Raises TypeError, naming it, for a
    value that cannot be saved."""
    value = planner.resolve_data(item)
    if not isinstance(value, PlainValue):
        raise TypeError(f"{item.index.fqn!r} comes pickled, which MzWriter does not store: use planner=MzSavePlanner()")
    structure, inside = encode({item.index.fqn: value.value})
    return [structure["dict"][item.index.fqn]], inside


def _of_value(index: int, name: str, value: Any) -> _Task:
    spec, _ = frameworks.as_words(name, value)
    return _Task(index, spec, name, (0,) * len(spec.shape), spec.shape, lambda: value)


def _of_box(index: int, item: WriteItem, planner: SavePlanner) -> _Task:
    data, name = item.tensor_data, item.index.fqn
    assert data is not None, "it is a tensor"
    dtype = _dtype(name, data.properties.dtype)
    offsets, sizes, size = (_in_values(each, dtype) for each in (data.chunk.offsets, data.chunk.sizes, data.size))
    return _Task(index, TensorSpec(name, dtype, sizes), name, offsets, size, lambda: planner.resolve_data(item))


def _named(tasks: Sequence[_Task]) -> list[_Task]:
    """Under names of their own: several boxes of one tensor may be one rank's."""
    found: dict[str, _Task] = {}
    for task in tasks:
        name, number = task.name, 2
        while name in found:
            name, number = f"{task.name}~{number}", number + 1
        found[name] = replace(task, spec=replace(task.spec, name=name))
    return list(found.values())


def _box(task: _Task) -> Box:
    """The values, which are copied to the host now, if they are elsewhere. Raises ValueError if they are not what was planned."""
    spec, words = frameworks.as_words(task.spec.name, task.values())
    if spec != task.spec:
        raise ValueError(
            f"tensor {task.name!r}: {task.spec.dtype.name} {list(task.spec.shape)} was planned, and it is {spec.dtype.name} {list(spec.shape)}"
        )
    return Box(ArraySource(spec, words), task.name, task.offsets)


def _check_coverage(metadata: Metadata, written: Sequence[WriteResult]) -> None:
    """Raises ValueError unless each item that was planned was written, once. That boxes tile a tensor is checked by
    ManifestTensor."""
    planned: dict[Any, int] = {}
    for name, about in metadata.state_dict_metadata.items():
        boxes = [tuple(chunk.offsets) for chunk in about.chunks] if isinstance(about, TensorStorageMetadata) else [()]
        for offsets in boxes:
            planned[name, offsets] = planned.get((name, offsets), 0) + 1
    for result in written:
        key = result.index.fqn, tuple(result.index.offset or ())
        if isinstance(about := metadata.state_dict_metadata.get(result.index.fqn), TensorStorageMetadata) and (
            result.index.offset is None
        ):
            key = result.index.fqn, (0,) * len(about.size)
        planned[key] = planned.get(key, 0) - 1
    for (name, offsets), missing in planned.items():
        if missing:
            how = "was not written" if missing > 0 else "was written, and not planned"
            raise ValueError(f"{name!r}{f' at {list(offsets)}' if offsets else ''} {how}: nothing is committed")


def _tensors(metadata: Metadata, written: Sequence[WriteResult], archives: ArchiveList) -> dict[str, ManifestTensor]:
    specs: dict[str, TensorSpec] = {}
    pieces: dict[str, list[Piece]] = {}
    for name, about in metadata.state_dict_metadata.items():
        if isinstance(about, TensorStorageMetadata):
            dtype = _dtype(name, about.properties.dtype)
            specs[name], pieces[name] = TensorSpec(name, dtype, _in_values(about.size, dtype)), []
    for result in written:
        for spec, stored in result.storage_data.stored:
            name = spec.name
            if result.storage_data.doc is not None and pieces.setdefault(name, []):
                raise ValueError(f"an array inside of {result.index.fqn!r} and another tensor are both called {name!r}")
            specs.setdefault(name, spec)
            pieces[name].append(replace(stored.piece, archive=archives.index(stored.archive)))
    tensors = {}
    for name, spec in specs.items():
        try:
            tensors[name] = ManifestTensor(spec, tuple(sorted(pieces[name], key=lambda piece: piece.offsets)))
        except ValueError as error:
            raise ValueError(f"tensor {name!r}: {error}; nothing is committed") from error
    return tensors


def _dtype(name: str, dtype: torch.dtype) -> DType:
    found = next(
        (d for d in DTYPES.values() if f"torch.{d.torch}" == str(dtype) and d.name not in ("int4", "uint4")), None
    )
    if found is None:
        raise ValueError(f"tensor {name!r}: no tensor can have dtype {dtype}")
    return found


def _in_values(extents: Sequence[int], dtype: DType) -> tuple[int, ...]:
    """A shape or offsets, of values; PyTorch counts pairs of packed ones."""
    own = tuple(int(n) for n in extents)
    return (*own[:-1], 2 * own[-1]) if dtype.packed and own else own


class MzReader(_Checkpoint, StorageReader):
    """Reads one checkpoint, which MzWriter or CheckpointStore wrote: of all archives only the chunks that this rank needs.

    bases  where to find models that archives refer to, see ``mzstore.open``
    stats  what reading has cost this rank so far

    Use it with MzLoadPlanner.
    """

    def __init__(
        self,
        checkpoint_id: Id | None = None,
        *,
        threads: int | None = None,
        bases: BaseLocations | None = None,
        storage_options: Options = None,
        retry: Retry | None = None,
    ) -> None:
        super().__init__(checkpoint_id, storage_options, retry)
        self._threads, self._bases, self.stats = check_threads(threads), bases, Stats()

    def reset(self, checkpoint_id: Id | None = None) -> None:
        self._reset(checkpoint_id)

    @property
    def _location(self) -> str:
        return f"{self._id.store}/{manifest_key(self._id.step)}"

    def read_metadata(self) -> Metadata:
        """Each tensor as one chunk: which archives have what of it is nobody's business but the reader's."""
        manifest = read_manifest(self._location, self._options, (self._retry or Retry()).start(), self.stats)
        found: dict[str, Any] = {}
        leaves = _leaves(manifest, self._location)
        for name, leaf in leaves.items():
            if leaf.tensor is None:
                found[name] = BytesStorageMetadata()
                continue
            tensor = manifest.tensors.get(leaf.tensor)
            if tensor is None:
                raise FormatError(
                    f"there is no tensor {leaf.tensor!r:.200}", where=self._location, clause="checkpoint-3"
                )
            size = _torch_size(tensor.spec)
            properties = TensorProperties(dtype=_torch_dtype(tensor.spec.dtype))
            whole = ChunkStorageMetadata(torch.Size([0] * len(size)), size)
            found[name] = TensorStorageMetadata(properties, size, [whole])
        return Metadata(found, planner_data={name: leaf.path for name, leaf in leaves.items()})

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        _refuse_no_collectives(kwargs.get("use_collectives", True))

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        with open_model(self._location, storage_options=self._options, retry=self._retry, bases=self._bases) as model:
            assert model.archives is not None
            leaves = _leaves(model.archives.manifest, self._location)
            self._read_tensors(
                [item for item in plan.items if item.type == LoadItemType.TENSOR], leaves, model, planner
            )
            for item in plan.items:
                if item.type == LoadItemType.BYTE_IO:
                    if not isinstance(planner, MzLoadPlanner):
                        raise TypeError(
                            f"{item.storage_index.fqn!r} is JSON, and no pickle: use planner=MzLoadPlanner()"
                        )
                    leaf = leaves[item.storage_index.fqn]
                    planner.load_bytes(item, PlainValue(_value(leaf, model, self._location)))
            now = model.stats.snapshot()
            self.stats.add(**now)  # type: ignore[arg-type]
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def _read_tensors(
        self, items: Sequence[ReadItem], leaves: Mapping[str, Leaf], model: Model, planner: LoadPlanner
    ) -> None:
        """Into the tensors of the planner; those that are on a device, or of another dtype, by way of memory, some at a time."""
        direct: list[Wanted] = []
        copies: list[_Copy] = []
        resolved = []
        for item in items:
            target = planner.resolve_tensor(item)
            resolved.append((item, target))
            entry = model.document.tensors[leaves[item.storage_index.fqn].tensor or ""]
            spans = tuple(Span(int(start), int(n)) for start, n in zip(item.storage_offsets, item.lengths, strict=True))
            if entry.spec.dtype.parts == 2:
                spans = (*spans, Span(0, 2))
            words = frameworks.words_in(target.detach(), entry.spec.dtype)
            if words is not None:
                direct.append(Wanted(entry, spans, words))
            else:
                box = replace(entry.spec, shape=_in_values(item.lengths, entry.spec.dtype))
                copies.append(_Copy(target, box, entry, spans))
        fill(model, direct, self._threads)
        for group in groups(copies, lambda each: each.box.nbytes, COPY_NBYTES):
            made = [frameworks.allocate(each.box, "torch") for each in group]
            wanted = [Wanted(each.entry, each.spans, words) for each, (words, _) in zip(group, made, strict=True)]
            fill(model, wanted, self._threads)
            for each, (_, finish) in zip(group, made, strict=True):
                each.target.detach().copy_(finish())
        for item, target in resolved:
            planner.commit_tensor(item, target)


@dataclass(frozen=True, slots=True)
class _Copy:
    """A box of a tensor that is read into memory of its own, and then copied to ``target``."""

    target: torch.Tensor
    box: TensorSpec
    entry: TensorEntry
    spans: tuple[Span, ...]


def _leaves(manifest: Manifest, where: str) -> dict[str, Leaf]:
    """Raises FormatError for a manifest that is none of a checkpoint."""
    if manifest.checkpoint is None:
        raise FormatError("the manifest of a model, and of no checkpoint", where=where, clause="checkpoint-1")
    return flatten(manifest.checkpoint.get("state"), where=where)


def _value(leaf: Leaf, model: Model, where: str) -> Any:
    def tensor(name: str, framework: str) -> Any:
        kind: frameworks.Framework = "torch" if framework == "torch" else "numpy"
        return model.load({name: ...}, framework=kind)[name]

    return decode(leaf.doc, tensor, where=where)


def _torch_dtype(dtype: DType) -> torch.dtype:
    """Raises ValueError for types of which PyTorch has no values."""
    if dtype.name in ("int4", "uint4"):
        raise ValueError(f"PyTorch has no tensors of {dtype.name}")
    found: torch.dtype = getattr(torch, dtype.torch)
    return found


def _torch_size(spec: TensorSpec) -> torch.Size:
    return torch.Size(spec.word_shape if spec.dtype.packed else spec.shape)

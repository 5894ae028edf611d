"""Split: a conversion into several archives and one manifest, a task for each archive, by whatever carries out tasks.

A task writes an archive of a name that nobody else uses, and then its record, which is created only if there is none: so of several
attempts at a task, at different times or at once, one counts, and the others leave at most an archive that nobody refers to. The
manifest is created last, if there is none. Whatever ends before that is gone on with by the next run, which finds the records.

    model.json                                   the manifest
    model.archives/<conversion>/plan.json        what is converted; <conversion> is the digest of source and options
    model.archives/<conversion>/00000-<attempt>.mz    the archives
    model.archives/<conversion>/00000.json       the records, removed when the manifest is there
"""

import contextlib
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from mzstore import documents, kernels, model
from mzstore.bases import BaseLocations
from mzstore.container import open_reader, read_model
from mzstore.documents import Asset, Layout, dump, load
from mzstore.dtypes import DTYPES
from mzstore.edits import Edited, Edits
from mzstore.encode import Level
from mzstore.errors import ConflictError, FormatError, StorageError
from mzstore.formats import open_source
from mzstore.groups import groups
from mzstore.manifest import MAX_ARCHIVES, MAX_NBYTES, SUFFIX, ArchiveRef, Manifest, ManifestTensor, Piece
from mzstore.nodes import ASSETS, encode
from mzstore.pins import INDEX_SUFFIX, Pin, digest, pin
from mzstore.recipe import Recipe
from mzstore.report import TensorReport, of_written
from mzstore.sources import FileSource, ModelSource
from mzstore.storage import Digested, Objects, Options, Retry, is_local, open_objects
from mzstore.tensors import TensorSpec
from mzstore.text import count
from mzstore.version import __version__
from mzstore.writer import Importances, WrittenTensor, write

SHARD_NBYTES = 1_000_000_000  # of values, for an archive
PLAN = "plan.json"
PLAN_NBYTES, RECORD_NBYTES = 1 << 20, MAX_NBYTES


@dataclass(frozen=True, slots=True)
class Task:
    """An archive to be written: of tensors by their new names; or, if there are none, of the assets and layouts."""

    number: int
    names: tuple[str, ...]
    nbytes: int
    importance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Job:
    """What all tasks have in common. It travels to the processes that carry them out."""

    source: str
    options: Options
    retry: Retry | None
    bases: BaseLocations | None
    pinned: Pin
    root: str  # the folder of the manifest
    folder: str  # below that, of the archives
    root_options: Options
    edits: Edits
    recipe: Recipe | None
    level: Level
    threads: int

    def objects(self) -> Objects:
        return open_objects(self.root, self.root_options, self.retry)

    def record(self, task: Task) -> str:
        """The key of the record of ``task``."""
        return f"{self.folder}/{task.number:05}.json"


@dataclass(frozen=True, slots=True)
class Written:
    """What a task has left: its record. ``key``: of the archive, in the folder of the conversion."""

    key: str
    nbytes: int
    sha256: str
    tensors: tuple[WrittenTensor, ...]
    assets: tuple[Asset, ...] = ()
    layouts: tuple[Layout, ...] = ()

    def to_bytes(self) -> bytes:
        return dump(
            {
                "key": self.key,
                "nbytes": self.nbytes,
                "sha256": self.sha256,
                "tensors": [_tensor_json(each) for each in self.tensors],
                "assets": [documents.asset_json(each) for each in self.assets],
                "layouts": [documents.layout_json(each) for each in self.layouts],
            }
        )

    @classmethod
    def parse(cls, data: bytes, *, where: str) -> "Written":
        """Raises FormatError."""
        match load(data, where=where):
            case {
                "key": str(key), "nbytes": int(nbytes), "sha256": str(sha256), "tensors": list(tensors),
                "assets": assets, "layouts": layouts,
            }:  # fmt: skip
                try:
                    return cls(
                        key,
                        nbytes,
                        sha256,
                        tuple(map(_tensor, tensors)),
                        documents.assets_of(assets, where=where),
                        documents.layouts_of(layouts, where=where, folder=ASSETS),
                    )
                except (KeyError, TypeError, ValueError) as error:
                    raise FormatError(f"not the record of a task: {error}", where=where) from error
        raise FormatError("not the record of a task", where=where)


def _tensor_json(tensor: WrittenTensor) -> dict[str, Any]:
    return {
        "name": tensor.spec.name,
        "dtype": tensor.spec.dtype.name,
        "shape": list(tensor.spec.shape),
        "encoding": tensor.encoding,
        "stored_nbytes": tensor.stored_nbytes,
        "sha256": tensor.sha256,
        "lossy": None if tensor.lossy is None else dict(tensor.lossy),
    }


def _tensor(doc: dict[str, Any]) -> WrittenTensor:
    spec = TensorSpec(doc["name"], DTYPES[doc["dtype"]], tuple(doc["shape"]))
    return WrittenTensor(spec, doc["encoding"], doc["stored_nbytes"], doc["sha256"], doc["lossy"])


def write_split(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    edited: Edited,
    *,
    edits: Edits,
    recipe: Recipe | None,
    importance: Importances | None,
    level: Level,
    shard_nbytes: int | None,
    executor: Any,
    threads: int,
    done: Callable[[int], None],
    options: Options,
    target_options: Options,
    retry: Retry | None,
    bases: BaseLocations | None,
) -> tuple[tuple[TensorReport, ...], tuple[str, ...]]:
    """Write ``edited`` as archives of about ``shard_nbytes`` of values, and a manifest of them at ``target``.

    executor    has ``submit``, as concurrent.futures and Dask clients have it, or ``map``; None: one after the other, here
    importance  by name of what is written

    Returns what became of each tensor, and what there is to say. Raises ConflictError if there is a manifest, from another conversion;
    StorageError if the storage fails or tasks were not carried out; and what they raise.
    """
    if recipe is not None and any(rule.scope == "global" for rule in recipe.rules):
        raise ValueError(
            'scope = "global" prunes all tensors together, and these become several archives: convert to one'
        )
    nbytes = SHARD_NBYTES if shard_nbytes is None else shard_nbytes
    if nbytes < 1:
        raise ValueError(f"shards of {nbytes} bytes; at least 1 is needed")
    place = os.fspath(target)
    if is_local(place):
        place = os.path.abspath(place.removeprefix("file://"))
    root, _, name = place.rpartition("/")
    if not name.endswith(SUFFIX) or name.endswith(INDEX_SUFFIX):
        raise ValueError(f"{place!r}: the name of a manifest ends in {SUFFIX}, and not in {INDEX_SUFFIX}")
    if root.endswith(":/"):
        raise ValueError(f"{place!r}: a manifest needs a bucket or a folder, for archives beside it")
    _check_outside(source, place)
    where = os.path.abspath(source) if is_local(source) else os.fspath(source)
    tasks = _tasks(edited, importance or {}, nbytes)
    pinned = {**pin(source, options, retry), **edited.source.files}
    above = f"{encode(name.removesuffix(SUFFIX))}.archives"
    conversion = digest(where, pinned, importance, shards=nbytes, edits=edits.to_json(), recipe=recipe, level=level)
    folder = f"{above}/{conversion}"
    job = Job(where, options, retry, bases, pinned, root, folder, target_options, edits, recipe, level, threads)
    objects = job.objects()
    if (there := objects.get(name, MAX_NBYTES)) is not None:
        if Manifest.parse(there, where=place).save_id != _save_id(objects, job):
            raise ConflictError(
                "there is a model already, from another conversion; nothing of it was changed. Remove it, or choose another name",
                where=f"{objects.url}/{name}",
            )
        written = _finished(place, target_options, retry)
    else:
        save_id = _begin(objects, job, name)
        _carry_out(job, tasks, executor, done)
        found = [_written(objects, job, task) for task in tasks]
        data = _manifest(save_id, job, edited, found).to_bytes()
        if len(data) > MAX_NBYTES:
            raise ValueError(
                f"the manifest takes {len(data)} bytes, at most {MAX_NBYTES} are allowed: take larger shards"
            )
        if not objects.create(name, data):
            raise ConflictError(
                "another conversion was first; nothing of it was changed", where=f"{objects.url}/{name}"
            )
        written = [tensor for each in found for tensor in each.tensors]
        _clean(objects, job, {f"{folder}/{each.key}" for each in found})
    sources = {tensor.spec.name: tensor for tensor in edited.source.tensors}
    notes = [f"{count(len(tasks), 'archive')} in {folder}"]
    for other in sorted({"/".join(key.split("/")[:2]) for key in objects.listing(above)} - {folder}):
        notes.append(f"work of another conversion lies in {other}: remove it, if nobody goes on with it")
    return of_written(written, sources, edited.was), tuple(notes)


def carry_out(job: Job, task: Task) -> None:
    """Write the archive of ``task``, if that was not done yet. In any process that has the code and reaches the storage."""
    objects = job.objects()
    if _done(objects, job, task):
        return
    pinned = pin(job.source, job.options, job.retry)
    key = f"{task.number:05}-{secrets.token_hex(8)}.mz"
    with open_source(job.source, job.options, retry=job.retry, threads=job.threads, bases=job.bases) as opened:
        edited = job.edits.apply(opened, codes=True)
        source = _part(task, edited.source)
        if {**pinned, **opened.files} != job.pinned:
            raise StorageError(f"{job.source!r} is not what it was when its conversion began: begin again")
        kernels.expect(source.nbytes)
        with objects.sink(f"{job.folder}/{key}", source.nbytes) as sink:
            target = Digested(sink)
            tensors = write(
                target,
                source,
                recipe=edited.rules(job.recipe),
                importance=task.importance,
                level=job.level,
                kind="archive",
                threads=job.threads,
                show_progress=False,
                ahead="hold" if not is_local(job.source) else "choose" if job.threads > 1 else None,
            )
    found = Written(key, target.nbytes, target.hexdigest(), tensors)
    if not task.names:
        found = _with_files(job, found, edited.source)
    if not objects.create(job.record(task), found.to_bytes()):
        objects.remove(f"{job.folder}/{key}")  # another attempt was first


def _part(task: Task, source: ModelSource) -> ModelSource:
    """What belongs into the archive of ``task``."""
    if not task.names:
        files = [replace(asset, path=f"assets/{asset.path}") for asset in source.assets]
        files += [FileSource(f"layouts/{i}", partial(_once, each)) for i, each in enumerate(_raw_layouts(source))]
        return ModelSource((), 0, assets=files, check_unchanged=source.check_unchanged)
    by_name = {tensor.spec.name: tensor for tensor in source.tensors}
    tensors = [by_name[name] for name in task.names]
    return ModelSource(tensors, task.nbytes, bases=source.bases, check_unchanged=source.check_unchanged)


def _raw_layouts(source: ModelSource) -> Iterator[bytes]:
    return (layout.raw for layout in source.layouts)


def _once(data: bytes) -> Iterator[bytes]:
    yield data


def _with_files(job: Job, found: Written, source: ModelSource) -> Written:
    """``found``, with where in the archive assets and layouts lie."""
    with contextlib.closing(open_reader(f"{job.root}/{job.folder}/{found.key}", job.root_options)) as reader:
        stored = {asset.path: asset for asset in read_model(reader).assets}
    assets = [replace(stored[f"assets/{asset.path}"], path=asset.path) for asset in source.assets]
    layouts = [
        Layout(layout.path, stored[f"layouts/{i}"].key, layout.prefix, layout.format, layout.kind)
        for i, layout in enumerate(source.layouts)
    ]
    return replace(found, assets=tuple(assets), layouts=tuple(layouts))


def _tasks(edited: Edited, importance: Mapping[str, Any], nbytes: int) -> list[Task]:
    specs = [tensor.spec for tensor in edited.source.tensors]
    tasks = []
    for number, group in enumerate(groups(specs, lambda spec: spec.nbytes, nbytes)):
        names = tuple(spec.name for spec in group)
        own = {name: importance[name] for name in names if name in importance}
        tasks.append(Task(number, names, sum(spec.nbytes for spec in group), own))
    if edited.source.assets or edited.source.layouts:
        tasks.append(Task(len(tasks), (), 0))
    if len(tasks) > MAX_ARCHIVES:
        raise ValueError(f"{len(tasks)} archives, at most {MAX_ARCHIVES} are allowed: take larger shards")
    return tasks


def _carry_out(job: Job, tasks: Sequence[Task], executor: Any, done: Callable[[int], None]) -> None:
    if executor is None:
        for task in tasks:
            carry_out(job, task)
            done(task.nbytes)
        return
    packed = [replace(task, importance={k: np.asarray(v) for k, v in task.importance.items()}) for task in tasks]
    if hasattr(executor, "submit"):
        futures: list[Any] = [executor.submit(carry_out, job, task) for task in packed]
    elif hasattr(executor, "map"):
        futures = executor.map(partial(carry_out, job), packed)
    else:
        raise TypeError(f"executor {executor!r:.100} has neither 'submit' nor 'map'")
    waiting = iter(futures)
    try:
        for task in tasks:
            found: Any = next(waiting, None)
            if hasattr(found, "result"):  # map may give futures as well, and what tasks return is nothing that counts
                found.result()
            done(task.nbytes)
    except BaseException:
        for future in futures if isinstance(futures, list) else ():
            if hasattr(future, "cancel"):
                future.cancel()
        raise


def _done(objects: Objects, job: Job, task: Task) -> bool:
    """Whether there is a record, and the archive that it is of. A record without its archive is removed."""
    data = objects.get(job.record(task), RECORD_NBYTES)
    if data is None:
        return False
    with contextlib.suppress(FormatError):
        found = Written.parse(data, where=f"{objects.url}/{job.record(task)}")
        if objects.nbytes(f"{job.folder}/{found.key}") == found.nbytes:
            return True
    objects.remove(job.record(task))
    return False


def _written(objects: Objects, job: Job, task: Task) -> Written:
    """What the record of ``task`` says, which is true: its archive is there."""
    data = objects.get(job.record(task), RECORD_NBYTES)
    where = f"{objects.url}/{job.record(task)}"
    if data is None:
        raise StorageError(
            f"archive {task.number} was not written, though its task has ended: does the executor carry out what it is given, and do "
            "its processes reach the same storage?",
            where=where,
        )
    found = Written.parse(data, where=where)
    nbytes = objects.nbytes(f"{job.folder}/{found.key}")
    if nbytes != found.nbytes:
        raise StorageError(f"{found.key!r} has {nbytes or 0} bytes, and was written with {found.nbytes}", where=where)
    if tuple(each.spec.name for each in found.tensors) != task.names:
        raise StorageError(f"archive {task.number} has other tensors than its task", where=where)
    return found


def _finished(target: str, options: Options, retry: Retry | None) -> list[WrittenTensor]:
    """Of a conversion whose manifest is there."""
    with model.open(target, storage_options=options, retry=retry) as found:
        return [
            WrittenTensor(source.spec, tensor.encoding, tensor.stored_nbytes, source.sha256, source.stored.lossy)
            for tensor, source in zip(found.values(), found.sources(), strict=True)
        ]


def _manifest(save_id: str, job: Job, edited: Edited, found: Sequence[Written]) -> Manifest:
    tensors = {
        each.spec.name: ManifestTensor(
            each.spec, (Piece(i, each.spec.name, (0,) * len(each.spec.shape), each.spec.shape, each.sha256),)
        )
        for i, written in enumerate(found)
        for each in written.tensors
    }
    return Manifest(
        save_id,
        tuple(ArchiveRef(f"{job.folder}/{each.key}", each.nbytes, each.sha256) for each in found),
        tensors,
        edited.source.metadata,
        writer=f"mzstore {__version__}",
        assets=tuple((i, asset) for i, each in enumerate(found) for asset in each.assets),
        layouts=tuple((i, layout) for i, each in enumerate(found) for layout in each.layouts),
    )


def _begin(objects: Objects, job: Job, name: str) -> str:
    """The save id of this conversion, which whoever goes on with it finds."""
    own = secrets.token_hex(16)
    plan = {"save_id": own, "source": job.source, "target": name, "edits": job.edits.to_json(), "level": job.level}
    if objects.create(f"{job.folder}/{PLAN}", dump(plan)):
        return own
    found = _save_id(objects, job)
    if found is None:
        raise StorageError(f"the plan was removed meanwhile: begin again (in {objects.url}/{job.folder})")
    return found


def _save_id(objects: Objects, job: Job) -> str | None:
    """That of this conversion, if it has begun."""
    data = objects.get(f"{job.folder}/{PLAN}", PLAN_NBYTES)
    if data is None:
        return None
    where = f"{objects.url}/{job.folder}/{PLAN}"
    found = load(data, where=where).get("save_id")
    if not isinstance(found, str):
        raise FormatError("not the plan of a conversion; remove its folder", where=where)
    return found


def _clean(objects: Objects, job: Job, keep: set[str]) -> None:
    """Remove records, and archives of attempts that do not count. The plan stays: by it a run knows that all is done."""
    for key in objects.listing(job.folder).keys() - keep - {f"{job.folder}/{PLAN}"}:
        with contextlib.suppress(StorageError):  # what is left over harms nobody
            objects.remove(key)


def _check_outside(source: str | os.PathLike[str], target: str) -> None:
    if is_local(source) and is_local(target):
        inside = os.path.realpath(os.fspath(source).removeprefix("file://"))
        if os.path.isdir(inside) and os.path.realpath(target).startswith(f"{inside}{os.sep}"):
            raise ValueError(f"{target!r} lies in the source, which would change with it: choose another place")

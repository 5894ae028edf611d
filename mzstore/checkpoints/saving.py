"""Saving: a staged state into archives, what is known of it already by reference, and the manifest that makes it exist.

The order is what makes it safe: archives of new names first, each whole and durable; then a look whether all that is referred to is
still there; then the manifest, if there is none. Whatever happens before, there is no checkpoint.
"""

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mzstore import kernels
from mzstore.checkpoints.archives import ArchiveList, Archiving, Before, Box, Settings
from mzstore.checkpoints.repository import Repository, checkpoint_json, new_save_id
from mzstore.checkpoints.staging import Staged
from mzstore.errors import ConflictError, StorageError
from mzstore.manifest import Manifest, ManifestTensor
from mzstore.sources import ArraySource
from mzstore.version import __version__


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be saved. ``structure``: the state without its tensors."""

    step: int
    structure: Any
    staged: Staged
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Previous:
    """The checkpoint that was saved last, as far as this process knows it.

    values  by name, of what is in memory still: for differences
    """

    step: int
    manifest: Manifest
    values: Mapping[str, ArraySource] = field(default_factory=dict)


def save(repository: Repository, job: Job, previous: Previous | None, settings: Settings, grace: float) -> Previous:
    """Raises ConflictError if the step is there, from another save; StorageError if the storage fails, or the save takes longer
    than ``grace`` seconds."""
    started = time.monotonic()
    if repository.manifest(job.step) is not None:  # before anything is uploaded for nothing
        raise repository.conflict(job.step)
    repository.objects.exclusive()
    kernels.expect(job.staged.nbytes)
    save_id = new_save_id()
    settled = True
    with contextlib.ExitStack() as stack:
        before = None
        if previous and _is_live(repository, previous):
            before = Before(
                repository, previous.manifest, previous.values, threads=settings.threads, moved=settings.moved
            )
            stack.callback(before.close)
        archiving = Archiving(repository, save_id, 0, before, settings)
        try:
            archives = ArchiveList()
            tensors = _tensors(archiving, job.staged, archives)
            manifest = Manifest(
                save_id,
                tuple(archives.refs),
                tensors,
                checkpoint=checkpoint_json(job.step, job.structure, job.metrics, time.time()),
                writer=f"mzstore {__version__}",
            )
            repository.check_in_time(job.step, time.monotonic() - started, grace)
            repository.check_there(job.step, manifest)
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
                    repository.remove(archiving.written)
            raise
    return Previous(job.step, manifest, job.staged.tensors)


def _is_live(repository: Repository, previous: Previous) -> bool:
    """Whether it is still there: what it holds then stays for the grace period, whatever becomes of it."""
    manifest = repository.manifest(previous.step)
    return manifest is not None and manifest.save_id == previous.manifest.save_id


def _tensors(archiving: Archiving, staged: Staged, archives: ArchiveList) -> dict[str, ManifestTensor]:
    """All of the state: stored, and named in ``archives``."""
    boxes = (Box(source, name, (0,) * len(source.spec.shape)) for name, source in staged.tensors.items())
    pieces = {
        box.tensor: replace(stored.piece, archive=archives.index(stored.archive))
        for box, stored in archiving.store(boxes)
    }
    return {name: ManifestTensor(source.spec, (pieces[name],)) for name, source in staged.tensors.items()}

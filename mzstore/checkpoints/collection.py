"""Collection of garbage: what no checkpoint needs any more, and nobody who reads or saves may need still.

An archive is kept while a manifest names it. It is kept as well for the grace period after it was written, because the save that
it belongs to may not have committed yet; and for the grace period after the last checkpoint with it was deleted, because it may
be read, or a save may be under way that refers to it. Saves that take longer do not commit (see saving.py). Ages are differences of times that
the storage itself states, so no other clock matters; and a listing may be as old as the grace period. Multipart uploads that a save has begun
and not ended are no objects, and cost as much; those that are older than the grace period are ended.
"""

import secrets
from dataclasses import dataclass

from mzstore.checkpoints.repository import DATA, DELETED, Repository, key_of
from mzstore.errors import StorageError
from mzstore.manifest import MANIFESTS, steps_in
from mzstore.storage import Found, Unfinished, status_of

REFUSED = (401, 403, 405, 501)  # to list uploads: not allowed, or not known
ATTEMPTS = 5  # checkpoints may be deleted while they are looked at


@dataclass(frozen=True, slots=True)
class Collected:
    """What was removed, or would be.

    keys, nbytes  of objects
    uploads       the keys of multipart uploads that were begun and not ended
    unlisted      why such uploads could not be looked for; empty if they were
    """

    keys: tuple[str, ...]
    nbytes: int
    uploads: tuple[str, ...] = ()
    unlisted: str = ""


def collect(repository: Repository, grace: float, *, dry_run: bool = False) -> Collected:
    """Remove what has been garbage for ``grace`` seconds. Raises StorageError if the storage fails; then nothing is removed that
    is not garbage.

    With a ``grace`` shorter than the longest save or load, that save or load fails.
    """
    if grace < 0:
        raise ValueError(f"a grace period of {grace} seconds")
    now = _now(repository)
    for _ in range(ATTEMPTS):
        found = _garbage(repository, now, grace)
        if found is not None:
            break
    else:
        raise StorageError("checkpoints come and go too fast to be looked at; try again", where=repository.url)
    abandoned, unlisted = _abandoned(repository, now, grace)
    if not dry_run:
        for upload in abandoned:
            repository.objects.abandon(upload)
        repository.remove(key for key in found if not key.startswith(f"{DELETED}/"))
        repository.remove(key for key in found if key.startswith(f"{DELETED}/"))  # last: they say what was there
    uploads = tuple(sorted(upload.path for upload in abandoned))
    return Collected(tuple(found), sum(each.nbytes for each in found.values()), uploads, unlisted)


def _abandoned(repository: Repository, now: float, grace: float) -> tuple[list[Unfinished], str]:
    """Uploads that no save can finish any more, and why there may be others."""
    try:
        begun = repository.objects.unfinished(DATA)
    except NotImplementedError as error:
        return [], str(error)
    except StorageError as error:
        if status_of(error) not in REFUSED:
            raise
        return [], str(error)
    return [each for each in begun if each.begun is not None and now - each.begun >= grace], ""


def _garbage(repository: Repository, now: float, grace: float) -> dict[str, Found] | None:
    """None if something was deleted meanwhile.

    Archives are listed before manifests: what a manifest names was written before it. Manifests are listed before the notes
    on deleted ones: a note is written before its manifest is removed.
    """
    archives = repository.listing(DATA)
    manifests = repository.listing(MANIFESTS)
    notes = repository.listing(DELETED)
    needed: set[str] = set()
    for step in steps_in(manifests):
        manifest = repository.manifest(step)
        if manifest is None:
            return None
        needed |= {key_of(archive.path) for archive in manifest.archives}
    old = {}
    for key, found in notes.items():
        if _is_old(key, found, now, grace):
            old[key] = found
        elif key.endswith(".json"):
            needed |= set(repository.deleted(key) or [])
    garbage = {key: found for key, found in archives.items() if key not in needed and _is_old(key, found, now, grace)}
    left = {key: found for key, found in manifests.items() if key.endswith(".tmp") and _is_old(key, found, now, grace)}
    return garbage | left | old


def _is_old(key: str, found: Found, now: float, grace: float) -> bool:
    if found.modified is None:
        raise StorageError(f"the storage does not say when {key!r} was written, so nothing can be removed safely")
    return now - found.modified >= grace


def _now(repository: Repository) -> float:
    """The time by the clock of the storage."""
    key = f"{DELETED}/.now-{secrets.token_hex(8)}"
    repository.objects.put(key, b"now")
    try:
        found = repository.listing(DELETED).get(key)
        if found is None or found.modified is None:
            raise StorageError("the storage does not say when an object was written", where=repository.url)
        return found.modified
    finally:
        repository.remove([key])

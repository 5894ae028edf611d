"""Repository: the objects of a store of checkpoints, their names, and the order in which they are written and removed.

    manifests/<step>.json        makes the checkpoint exist; created once, last
    data/<save id>/<rank>-<n>.mz archives, of names that nobody uses again; of many ranks, each has a save id of its own
    deleted/<step>-<save id>.json  which archives a checkpoint had that is deleted; until the grace period has passed, they stay
    latest.json                  a hint: the step that was committed last

Nothing is ever changed, but for the hint (FORMAT.md section 10.2).
"""

import os
import posixpath
import secrets
import warnings
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mzstore.documents import dump, load
from mzstore.errors import ConflictError, FormatError, StorageError
from mzstore.manifest import MANIFESTS, MAX_NBYTES, Manifest, manifest_key, steps_in
from mzstore.storage import Found, Objects, Options, Retry, open_objects

DATA, DELETED, LATEST = "data", "deleted", "latest.json"
MAX_STEP = 2**63 - 1
HINT_NBYTES = 1 << 16
AT_A_TIME = 16  # archives that are looked for


def new_save_id() -> str:
    return secrets.token_hex(16)


def archive_key(save_id: str, rank: int, number: int) -> str:
    return f"{DATA}/{save_id}/{rank}-{number}.mz"


def from_manifest(key: str) -> str:
    """The path of the object ``key`` as a manifest has it."""
    return f"../{key}"


def save_id_of(path: str) -> str:
    """Of the save that has written the archive at ``path`` of a manifest."""
    return path.rpartition("/")[0].rpartition("/")[2]


def key_of(path: str) -> str:
    """The object at ``path`` of a manifest. Raises FormatError for one outside of the store."""
    key = posixpath.normpath(f"{MANIFESTS}/{path}")
    if not key.startswith(f"{DATA}/"):
        raise FormatError(f"an archive at {path!r:.200}, outside of the store", clause="checkpoint-2")
    return key


def check_step(step: object) -> int:
    if type(step) is not int or not 0 <= step <= MAX_STEP:
        raise ValueError(f"step {step!r:.100} is not an integer from 0 to 2**63 - 1")
    return step


class Repository:
    """One store, at ``url``, which need not be there yet."""

    def __init__(self, url: str | os.PathLike[str], options: Options = None, retry: Retry | None = None) -> None:
        self._address, self.options, self.retry = os.fspath(url).rstrip("/"), options, retry
        self.objects: Objects = open_objects(self._address, options, retry)

    @property
    def url(self) -> str:
        """As messages show it."""
        return self.objects.url

    def location(self, key: str) -> str:
        """Where the object ``key`` is opened."""
        return f"{self._address}/{key}"

    def manifest(self, step: int) -> Manifest | None:
        """None if there is no such checkpoint. Raises FormatError, UnsupportedError, CorruptError or StorageError."""
        data = self.objects.get(manifest_key(step), MAX_NBYTES)
        return None if data is None else self._parse(step, data)

    def _parse(self, step: int, data: bytes) -> Manifest:
        where = f"{self.url}/{manifest_key(step)}"
        manifest = Manifest.parse(data, where=where)
        if manifest.checkpoint is None or manifest.checkpoint.get("step") != step:
            raise FormatError(f"not the manifest of checkpoint {step}", where=where, clause="checkpoint-1")
        return manifest

    def steps(self) -> list[int]:
        """In order; by a listing."""
        return steps_in(self.objects.listing(MANIFESTS))

    def hint(self) -> int | None:
        """The step that was committed last, as far as the hint knows."""
        data = self.objects.get(LATEST, HINT_NBYTES)
        try:
            return None if data is None else check_step(load(data, where=LATEST).get("step"))
        except (FormatError, ValueError):
            return None  # it is never needed

    def commit(self, step: int, manifest: Manifest) -> None:
        """Make the checkpoint exist. Raises ConflictError if another save of this step was first, ValueError for a manifest that nobody
        could read, and StorageError if the storage fails; then it may exist all the same."""
        data = manifest.to_bytes()
        if len(data) > MAX_NBYTES:
            raise ValueError(
                f"the state of checkpoint {step} takes {len(data)} bytes without its tensors, at most {MAX_NBYTES} are allowed"
            )
        if not self.objects.create(manifest_key(step), data):
            raise self.conflict(step)
        try:
            self.objects.put(LATEST, dump({"step": step, "save_id": manifest.save_id}))
        except StorageError as error:
            warnings.warn(
                f"checkpoint {step} is committed; the hint at it is not: {error}", RuntimeWarning, stacklevel=2
            )

    def check_in_time(self, step: int, seconds: float, grace: float) -> None:
        """Raises StorageError for a save of ``seconds``, if what it has written may be removed by now."""
        if seconds > grace:
            raise StorageError(
                f"saving checkpoint {step} took more than the grace period of {grace:g} s, after which what it has written "
                "may be removed as garbage; give the store, and whoever collects garbage, a longer one",
                where=self.url,
            )

    def check_there(self, step: int, manifest: Manifest) -> None:
        """Raises StorageError if an archive is not there that the manifest of checkpoint ``step`` will name."""
        keys = [key_of(archive.path) for archive in manifest.archives]
        with ThreadPoolExecutor(AT_A_TIME, "mzstore-look") as pool:
            for key, archive, found in zip(keys, manifest.archives, pool.map(self.objects.nbytes, keys), strict=True):
                if found != archive.nbytes:
                    raise StorageError(
                        f"archive {key!r} of checkpoint {step} has {archive.nbytes} bytes, {found or 0} are there; was it "
                        "removed meanwhile?",
                        where=self.url,
                    )

    def conflict(self, step: int) -> ConflictError:
        return ConflictError(
            f"checkpoint {step} exists already, from another save; nothing of it was changed", where=self.url
        )

    def delete(self, step: int) -> bool:
        """False if there is none. What it holds is kept for those who read it, until ``collection.collect`` finds it long gone."""
        manifest = self.manifest(step)
        if manifest is None:
            return False
        paths = [archive.path for archive in manifest.archives]
        self.objects.put(f"{DELETED}/{step}-{manifest.save_id}.json", dump({"archives": paths}))
        self.objects.remove(manifest_key(step))
        return True

    def deleted(self, key: str) -> list[str] | None:
        """The keys of the archives that a deleted checkpoint had; None if nothing is known of it any more."""
        data = self.objects.get(key, MAX_NBYTES)
        if data is None:
            return None
        paths = load(data, where=f"{self.url}/{key}").get("archives")
        if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
            raise FormatError("'archives' is no list of paths", where=f"{self.url}/{key}", clause="checkpoint-5")
        return [key_of(path) for path in paths]

    def listing(self, prefix: str) -> dict[str, Found]:
        return self.objects.listing(prefix)

    def remove(self, keys: Iterable[str]) -> None:
        for key in keys:
            self.objects.remove(key)


def checkpoint_json(step: int, structure: Any, metrics: Mapping[str, float], time: float) -> dict[str, Any]:
    """What makes a checkpoint of a manifest. ``time``: seconds since 1970, for people only."""
    return {"step": step, "state": structure, "metrics": dict(metrics), "time": time}

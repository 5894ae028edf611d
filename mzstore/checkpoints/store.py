"""CheckpointStore: what a training loop saves to and loads from."""

import os
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self

from mzstore import frameworks, kernels
from mzstore.bases import Wanted, fill
from mzstore.checkpoints import collection, saving
from mzstore.checkpoints.archives import CHAIN, Settings, check_chain
from mzstore.checkpoints.collection import Collected
from mzstore.checkpoints.repository import Repository, check_step, save_id_of
from mzstore.checkpoints.retention import Mode, Retention, ranked
from mzstore.checkpoints.saving import Job, Previous
from mzstore.checkpoints.staging import Staged, Staging
from mzstore.checkpoints.state import decode, encode, tensors_of
from mzstore.encode import Level, check_level
from mzstore.errors import CorruptError, FormatError, MzError
from mzstore.manifest import Manifest, manifest_key
from mzstore.model import Model, check_threads, open_manifest
from mzstore.model import open as open_model
from mzstore.recipe import Recipe
from mzstore.selection import all_of
from mzstore.storage import Options, Retry
from mzstore.tensors import TensorSpec
from mzstore.verify import Report, verify_manifests

Step = int | Literal["latest", "best"]
GRACE = 3600.0


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One that exists.

    time           when it was saved, in seconds since 1970, by the clock of who saved it: for people
    nbytes         of the values of all tensors
    stored_nbytes  of all archives that it needs
    new_nbytes     of those that were written for it
    """

    step: int
    save_id: str
    metrics: Mapping[str, float]
    time: float
    tensors: int
    nbytes: int
    stored_nbytes: int
    new_nbytes: int

    @classmethod
    def of(cls, manifest: Manifest, where: str) -> "Checkpoint":
        """Raises FormatError."""
        doc = manifest.checkpoint or {}
        metrics, step, time = doc.get("metrics", {}), doc.get("step"), doc.get("time", 0.0)
        if not isinstance(metrics, dict) or type(step) is not int or type(time) not in (int, float):
            raise FormatError("a checkpoint without step, metrics or time", where=where, clause="checkpoint-1")
        values = {name: decode(value, lambda *_: None, where=where) for name, value in metrics.items()}
        if any(type(value) not in (int, float) for value in values.values()):
            raise FormatError("a metric is no number", where=where, clause="checkpoint-1")
        save_ids = doc.get("save_ids", [manifest.save_id])  # of many ranks, each has its own
        if not isinstance(save_ids, list):
            raise FormatError("'save_ids' is no list", where=where, clause="checkpoint-1")
        own = [archive for archive in manifest.archives if save_id_of(archive.path) in save_ids]
        return cls(
            step,
            manifest.save_id,
            values,
            float(time),
            len(manifest.tensors),
            sum(tensor.spec.nbytes for tensor in manifest.tensors.values()),
            sum(archive.nbytes for archive in manifest.archives),
            sum(archive.nbytes for archive in own),
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "save_id": self.save_id,
            "metrics": dict(self.metrics),
            "time": self.time,
            "tensors": self.tensors,
            "nbytes": self.nbytes,
            "stored_nbytes": self.stored_nbytes,
            "new_nbytes": self.new_nbytes,
        }


class Saving:
    """A save that is under way. Its error is raised by ``result``; if nobody asks, by the next call of the store."""

    def __init__(self, step: int, future: "Future[Checkpoint]") -> None:
        self.step, self._future = step, future
        self.seen = False  # whether somebody knows its error

    def done(self) -> bool:
        return self._future.done()

    def result(self, timeout: float | None = None) -> Checkpoint:
        """Wait for it. TimeoutError after ``timeout`` seconds; else whatever it failed by."""
        self.exception(timeout)
        return self._future.result()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What it failed by, when it is done; None if it did not."""
        error = self._future.exception(timeout)
        self.seen = True
        return error


class CheckpointStore:
    """Checkpoints under ``url``: a directory, or a prefix of any fsspec filesystem.

    A checkpoint is there as a whole or not at all, whatever happens to who saves it. Tensors that are equal to those of the
    checkpoint before are stored once; others, if that is smaller, as what changed. Safe to use from several threads, and several
    stores of one ``url`` at a time. Close it, or use it in a ``with`` block: that waits for saves that are under way.

    keep, every  after a save, all checkpoints are deleted but the last ``keep``, and those whose step is a multiple of
                 ``every``; both None: none is deleted
    best         the metric by which one is best, ``mode`` says of which kind: "min" or "max"; the best is never deleted
    base         an archive of which tensors are not copied: a state's tensors that are equal to its, under any name, are referred to, and
                 those whose name is or ends with one of its may be stored as what changed; ``base_url``: by another URL than the one
                 at which it is found now
    recipe       which tensors are stored lossy, see ``save``; all others are exact
    chain        so many checkpoints, at most, stand one behind another for what is stored as changes; 0: nothing is
    memory       bytes of states that may be copied at a time; None: one that is being saved, and the one before if ``chain``
    grace        seconds that what is deleted stays for those who read it or refer to it. A save that takes longer fails. It has to be
                 the same, or longer, for whoever calls ``gc``
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        *,
        keep: int | None = None,
        every: int | None = None,
        best: str | None = None,
        mode: Mode = "min",
        base: str | os.PathLike[str] | None = None,
        base_url: str | None = None,
        recipe: Recipe | None = None,
        chain: int = CHAIN,
        level: Level = "balanced",
        memory: int | None = None,
        grace: float = GRACE,
        threads: int | None = None,
        storage_options: Options = None,
        retry: Retry | None = None,
    ) -> None:
        check_level(level)
        if grace <= 0 or (memory is not None and memory < 1):
            raise ValueError(f"grace {grace}, memory {memory}: more than 0")
        self._retention = Retention(keep, every, (best, mode, 1) if best else None)
        self._threads, self._grace, self._memory = check_threads(threads), grace, memory
        self._settings = partial(
            Settings,
            recipe=recipe,
            base_url=base_url,
            chain=check_chain(chain),
            level=level,
            threads=self._threads,
        )
        self._chain = chain
        self._repository = Repository(url, storage_options, retry)
        self._base_location = None if base is None else os.fspath(base)
        self._base: Model | None = None
        self._staging = Staging(self._threads)
        self._changed = threading.Condition()
        self._held = 0  # bytes of states that are copied and not given back
        self._running: list[Saving] = []  # or failed, and nobody knows
        self._previous: Previous | None = None
        self._previous_staged: Staged | None = None
        self._started = False  # whether ``_previous`` was looked for
        self._worker: ThreadPoolExecutor | None = ThreadPoolExecutor(1, "mzstore-checkpoint")

    @property
    def url(self) -> str:
        return self._repository.url

    def save(self, step: int, state: object, metrics: Mapping[str, float] | None = None) -> Checkpoint:
        """As ``save_async``, and wait for it."""
        return self.save_async(step, state, metrics).result()

    def save_async(
        self, step: int, state: object, metrics: Mapping[str, float] | None = None, *, wait: bool = True
    ) -> Saving:
        """Copy ``state`` to memory, and save it in the background; it may be changed as soon as this returns.

        state    dicts (of string or integer keys), lists and tuples of NumPy arrays, tensors of PyTorch, numbers, strings, bytes,
                 booleans, None
        metrics  numbers by which checkpoints are compared
        wait     where there is no memory for another copy: until there is, else MemoryError

        Raises first what a save before has failed by, if nobody knows that yet; TypeError or ValueError for a state that cannot be
        saved, naming the path of what is in the way; MemoryError for a state that is larger than the budget.
        """
        self._raise_failed()
        worker = self._worker
        if worker is None:
            raise ValueError("the store is closed")
        check_step(step)
        structure, tensors = encode(state)
        numbers = {str(name): encode(_number(name, value))[0] for name, value in (metrics or {}).items()}
        nbytes = sum(frameworks.count_nbytes(value) for value in tensors.values())
        self._admit(nbytes, wait)
        try:
            staged = self._staging.copy(tensors)
            self._staging.clear()  # of tensors that the state has not any more
        except BaseException:
            self._give_back(nbytes)
            raise
        job = Job(step, structure, staged, numbers)
        with self._changed:  # nobody may take it for idle in between, and with that the values before for free
            self._held += staged.nbytes - nbytes  # pairs of 4-bit values take half
            future = worker.submit(self._save, job)
            handle = Saving(step, future)
            self._running.append(handle)
        future.add_done_callback(lambda _: self._notify())
        return handle

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _admit(self, nbytes: int, wait: bool) -> None:
        """Count ``nbytes`` as held. Waits, or raises MemoryError, if they are too many."""
        if self._memory is not None and nbytes > self._memory:
            raise MemoryError(f"the state takes {nbytes} bytes, memory={self._memory} are allowed")
        with self._changed:
            while not self._fits(nbytes):
                busy = any(not handle.done() for handle in self._running)
                if not busy and self._previous_staged:
                    self._forget_values()
                elif not wait:
                    raise MemoryError(
                        f"the state takes {nbytes} bytes, and {self._held} are held by a save that is under way; wait for it"
                    )
                else:
                    self._changed.wait()
            self._held += nbytes

    def _fits(self, nbytes: int) -> bool:
        if self._memory is not None:
            return self._held + nbytes <= self._memory
        return all(handle.done() for handle in self._running)

    def _give_back(self, nbytes: int) -> None:
        with self._changed:
            self._held -= nbytes
        self._notify()

    def _forget_values(self) -> None:
        """There is no memory for the state before: what will be stored as a change of it has to read it back."""
        staged, self._previous_staged = self._previous_staged, None
        if staged and self._previous:
            self._previous = Previous(self._previous.step, self._previous.manifest)
            self._staging.release(staged)
            self._held -= staged.nbytes

    def _save(self, job: Job) -> Checkpoint:
        """In the background, one at a time."""
        kept = False
        try:
            settings = self._settings(base=self._open_base())
            previous = saving.save(self._repository, job, self._find_previous(), settings, self._grace)
            made = Checkpoint.of(previous.manifest, self.url)
            with self._changed:
                self._forget_values()
                if self._chain:
                    self._previous, self._previous_staged, kept = previous, job.staged, True
                else:
                    self._previous = Previous(previous.step, previous.manifest)
        finally:
            if not kept:
                self._staging.release(job.staged)
                self._give_back(job.staged.nbytes)
        if not self._retention.unlimited:
            try:
                if self.prune():
                    self.gc()
            except MzError as error:  # the checkpoint is there
                warnings.warn(f"old checkpoints could not be removed: {error}", RuntimeWarning, stacklevel=1)
        return made

    def _open_base(self) -> Model | None:
        if self._base is None and self._base_location is not None:
            self._base = open_model(
                self._base_location, storage_options=self._repository.options, retry=self._repository.retry
            )
        return self._base

    def _find_previous(self) -> Previous | None:
        """The checkpoint to which a save may refer: the one before, or in a new process the last one."""
        with self._changed:
            if self._started:
                return self._previous
        found = None
        try:
            manifest = self._latest()
        except (FormatError, CorruptError, LookupError):
            manifest = None  # whatever is wrong with it, this save does not need it
        if manifest and manifest.checkpoint:
            found = Previous(manifest.checkpoint["step"], manifest)
        with self._changed:
            self._previous, self._started = found, True
        return found

    def _raise_failed(self) -> None:
        with self._changed:
            failed = [handle for handle in self._running if handle.done() and not handle.seen]
            self._running = [handle for handle in self._running if not handle.done()]
        for handle in failed:
            if error := handle.exception():
                raise error

    def wait(self) -> None:
        """Until no save is under way. Raises what one has failed by, if nobody knows that yet."""
        with self._changed:
            running = list(self._running)
        for handle in running:
            handle._future.exception()
        self._raise_failed()

    def steps(self) -> list[int]:
        """Of all checkpoints, in order."""
        return self._repository.steps()

    def checkpoints(self) -> list[Checkpoint]:
        """All of them, in order."""
        return [self._about(manifest) for _, manifest in self._manifests()]

    def checkpoint(self, step: Step = "latest") -> Checkpoint:
        return self._about(self._manifest(step))

    def tensors(self, step: Step = "latest") -> list[TensorSpec]:
        """What tensors a checkpoint has."""
        return [tensor.spec for tensor in self._manifest(step).tensors.values()]

    def location(self, step: Step = "latest") -> str:
        """Where ``mzstore.open`` finds its tensors, as one model."""
        return self._repository.location(manifest_key(self.checkpoint(step).step))

    def load(
        self,
        step: Step = "latest",
        *,
        names: str | Sequence[str] | None = None,
        out: object = None,
        threads: int | None = None,
    ) -> Any:
        """The state of a checkpoint, as it was saved; tensors of PyTorch on the CPU.

        names  names or glob patterns of tensors, such as "model.*": only these, as a dict by name. A name is the path in the state,
               joined by dots
        out    a state (with ``names``: a dict by name) whose arrays and tensors are filled instead of new ones; it has all that are
               loaded, of the same dtypes and shapes

        LookupError if there is no such checkpoint.
        """
        manifest = self._manifest(step)
        about = self._about(manifest)
        assert manifest.checkpoint is not None
        structure, where = manifest.checkpoint.get("state"), f"{self.url}, checkpoint {about.step}"
        kinds = dict(tensors_of(structure))
        places = None if out is None else (encode(out)[1] if names is None else dict(out))  # type: ignore[call-overload]
        with open_manifest(  # which may be deleted by now; its archives stay
            manifest,
            self._repository.location(manifest_key(about.step)),
            storage_options=self._repository.options,
            retry=self._repository.retry,
        ) as model:
            chosen = list(kinds) if names is None else model.names(names)
            loaded = _read(model, {name: kinds.get(name, "numpy") for name in chosen}, places, check_threads(threads))
        if names is not None:
            return loaded
        return decode(structure, lambda name, _: loaded[name], where=where)

    def delete(self, step: int) -> None:
        """LookupError if there is none. What it was made of stays for the grace period, for those who read it."""
        if not self._repository.delete(check_step(step)):
            raise self._missing(step)

    def prune(self, *, dry_run: bool = False) -> list[int]:
        """Delete what ``keep``, ``every`` and ``best`` do not keep; the steps of what was deleted."""
        steps = self._repository.steps()
        metrics = {}
        if self._retention.best:
            metrics = {step: self._about(manifest).metrics for step, manifest in self._manifests(steps)}
        gone = sorted(set(steps) - self._retention.kept(steps, metrics))
        if not dry_run:
            for step in gone:
                self._repository.delete(step)
        return gone

    def gc(self, grace: float | None = None, *, dry_run: bool = False) -> Collected:
        """Remove what no checkpoint needs and nobody can be using, see ``collection``. ``grace``: None for that of the store."""
        return collection.collect(self._repository, self._grace if grace is None else grace, dry_run=dry_run)

    def verify(self, step: int | None = None, *, threads: int | None = None) -> dict[int, Report]:
        """Read everything of one checkpoint, or of all, and compare it with its digests; by step. An archive that several
        checkpoints have is checked once. LookupError if there is no such checkpoint. See ``mzstore.verify``."""
        if step is not None and self._repository.objects.nbytes(manifest_key(check_step(step))) is None:
            raise self._missing(step)
        steps = self.steps() if step is None else [step]
        reports = verify_manifests(
            [self._repository.location(manifest_key(each)) for each in steps],
            threads=threads,
            show_progress=False,
            storage_options=self._repository.options,
        )
        return dict(zip(steps, reports, strict=True))

    def _manifests(self, steps: Sequence[int] | None = None) -> list[tuple[int, Manifest]]:
        found = [(step, self._repository.manifest(step)) for step in (self.steps() if steps is None else steps)]
        return [(step, manifest) for step, manifest in found if manifest is not None]  # deleted meanwhile

    def _about(self, manifest: Manifest) -> Checkpoint:
        return Checkpoint.of(manifest, self.url)

    def _manifest(self, step: Step) -> Manifest:
        manifest: Manifest | None
        if step == "latest":
            manifest = self._latest()
        elif step == "best":
            manifest = self._best()
        else:
            manifest = self._repository.manifest(check_step(step))
        if manifest is None:
            raise self._missing(step)
        return manifest

    def _latest(self) -> Manifest | None:
        """By the listing and the hint, of which each may be behind."""
        for _ in range(collection.ATTEMPTS):
            hint = self._repository.hint()
            steps = {*self._repository.steps(), *([] if hint is None else [hint])}
            for step in sorted(steps, reverse=True):
                manifest = self._repository.manifest(step)
                if manifest is not None:
                    return manifest
            if not steps:
                break  # else all may have been deleted meanwhile, and there are later ones
        return None

    def _best(self) -> Manifest | None:
        if self._retention.best is None:
            raise ValueError("which one is best? give the store best=, the name of a metric")
        name, mode, _ = self._retention.best
        manifests = dict(self._manifests())
        order = ranked({step: self._about(manifest).metrics for step, manifest in manifests.items()}, name, mode)
        return manifests[order[0]] if order else None

    def _missing(self, step: object) -> LookupError:
        steps = self.steps()
        there = f"there are {', '.join(map(str, steps[-10:]))}" if steps else "there is none"
        return LookupError(
            f"no checkpoint {step} in {self.url!r}; {there}{' and earlier ones' if len(steps) > 10 else ''}"
        )

    def close(self) -> None:
        """Wait for saves that are under way. Raises what one has failed by, if nobody knows that yet."""
        worker, self._worker = self._worker, None
        if worker:
            worker.shutdown()
            if self._base:
                self._base.close()
            with self._changed:
                self._forget_values()
            self._staging.close()
            self._raise_failed()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except Exception as problem:
            if error is None:
                raise
            error.add_note(f"a checkpoint was not saved either: {problem}")


def _number(name: object, value: object) -> int | float:
    try:
        number = value if type(value) in (int, float) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise TypeError(f"metric {name!r} is {value!r:.100}, not a number") from None
    return number  # type: ignore[return-value]


def _read(model: Model, kinds: Mapping[str, str], places: Mapping[str, Any] | None, threads: int) -> dict[str, Any]:
    """Tensors by name, in one read; ``kinds`` says for which framework, ``places`` where they go."""
    finishers: dict[str, Callable[[], Any]] = {}
    wanted: list[Wanted] = []
    entries = {}
    for name in kinds:
        if name not in model.document.tensors:
            raise FormatError(
                f"the state names tensor {name!r}, which is not there", where=model.url, clause="checkpoint-3"
            )
        entries[name] = model.document.tensors[name]
    nbytes = sum(entry.spec.nbytes for entry in entries.values())
    if places is None:
        frameworks.check_memory(nbytes)
    kernels.expect(nbytes)
    for name, kind in kinds.items():
        spec = entries[name].spec
        if places is not None and kind != "bytes":
            if name not in places:
                raise KeyError(f"'out' has no tensor {name!r}")
            place = places[name]
            words = frameworks.check_out(spec, place)
            finishers[name] = partial(_same, place)
        else:
            words, finishers[name] = frameworks.allocate(spec, "torch" if kind == "torch" else "numpy")
        wanted.append(Wanted(model.document.stored(entries[name]), all_of(spec.word_shape), words))
    fill(model, wanted, threads)
    return {name: finish() for name, finish in finishers.items()}


def _same(value: Any) -> Any:
    return value

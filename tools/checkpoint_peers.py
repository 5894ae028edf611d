"""Peers of the benchmark ``checkpoint``: ways to save the state of a training run, to a directory or to an S3 server.

A state is nested dicts and lists of tensors and plain values, as training.py has it. ``begin`` returns when training may go on and the
state change; what it returns is called to wait until the checkpoint is where it belongs.
"""

import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import torch
from measure import lacking
from servers import SeaweedFS

State = dict[str, Any]


class Place:
    """Where checkpoints go: a directory that is not there yet, or a prefix of a bucket."""

    def __init__(self, folder: Path, name: str, server: SeaweedFS | None) -> None:
        self.folder, self.name, self.server = folder / name, name, server
        self.options = server.storage_options() if server else {}
        self.path = f"{server.bucket}/{name}" if server else str(self.folder)
        self.url = f"s3://{self.path}" if server else self.path

    def filesystem(self) -> Any:
        import fsspec

        return fsspec.filesystem("s3" if self.server else "file", **self.options, use_listings_cache=False)

    def beside(self, file: Path) -> str:
        """Where ``file`` is for those who look from here: on S3 a copy."""
        if not self.server:
            return str(file)
        self.filesystem().put_file(str(file), f"{self.server.bucket}/{file.name}")
        return f"s3://{self.server.bucket}/{file.name}"

    def sizes(self) -> dict[str, int]:
        """Bytes of all that lies there, by path."""
        found = self.filesystem().find(self.path, detail=True)
        return {path: about["size"] for path, about in found.items()}

    def remove(self) -> None:
        self.filesystem().rm(self.path, recursive=True)


class Peer(ABC):
    """
    needs  modules
    waits  whether training stands still until all is written
    whole  whether a checkpoint needs none of those before
    """

    needs: tuple[str, ...] = ()
    waits, whole = True, True

    def __init__(self, place: Place, base: Path | None) -> None:
        """``base``: the model that is fine-tuned, as an archive of mzstore."""
        self.place = place

    @abstractmethod
    def begin(self, step: int, state: State) -> Callable[[], object]: ...

    @abstractmethod
    def load(self, step: int, like: State) -> dict[str, torch.Tensor]:
        """The tensors by their path; ``like`` is a state of the same structure, whose tensors may be overwritten."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:  # noqa: B027  most have nothing to close
        """Nothing is saved or loaded any more."""


class Mzstore(Peer):
    """CheckpointStore.save_async; the fine-tuned model is its base."""

    waits, whole = False, False
    chain: int | None = None  # the default

    def __init__(self, place: Place, base: Path | None) -> None:
        from mzstore.checkpoints import CheckpointStore

        self.place = place
        more: dict[str, Any] = {} if self.chain is None else {"chain": self.chain}
        if base:
            more["base"] = place.beside(base)
        self.store = CheckpointStore(place.url, storage_options=place.options or None, **more)

    def begin(self, step: int, state: State) -> Callable[[], object]:
        return self.store.save_async(step, state).result

    def load(self, step: int, like: State) -> dict[str, torch.Tensor]:
        return flat(self.store.load(step))

    def __exit__(self, *_: object) -> None:
        self.store.close()


class MzstoreWhole(Mzstore):
    """The same without changes of the checkpoint before: what did not change is still stored once."""

    chain = 0


class TorchSave(Peer):
    """torch.save; on S3 the file is made in memory and put by s3fs."""

    def begin(self, step: int, state: State) -> Callable[[], object]:
        if self.place.server:
            file = io.BytesIO()
            torch.save(state, file)
            self.place.filesystem().pipe_file(f"{self.place.path}/{step}.pt", file.getvalue())
        else:
            self.place.folder.mkdir(exist_ok=True)
            torch.save(state, self.place.folder / f"{step}.pt")
        return _nothing

    def load(self, step: int, like: State) -> dict[str, torch.Tensor]:
        if self.place.server:
            return flat(torch.load(io.BytesIO(self.place.filesystem().cat_file(f"{self.place.path}/{step}.pt"))))
        return flat(torch.load(self.place.folder / f"{step}.pt"))


class Safetensors(Peer):
    """safetensors, of the tensors alone; on S3 as torch.save."""

    needs = ("safetensors",)

    def begin(self, step: int, state: State) -> Callable[[], object]:
        from safetensors.torch import save, save_file

        if self.place.server:
            self.place.filesystem().pipe_file(f"{self.place.path}/{step}.safetensors", save(flat(state)))
        else:
            self.place.folder.mkdir(exist_ok=True)
            save_file(flat(state), self.place.folder / f"{step}.safetensors")
        return _nothing

    def load(self, step: int, like: State) -> dict[str, torch.Tensor]:
        from safetensors.torch import load, load_file

        if self.place.server:
            return load(self.place.filesystem().cat_file(f"{self.place.path}/{step}.safetensors"))
        return load_file(self.place.folder / f"{step}.safetensors")


class Dcp(Peer):
    """torch.distributed.checkpoint.save with its own FileSystemWriter, of one process; on S3 its FsspecWriter."""

    def writer(self, step: int) -> Any:
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint._fsspec_filesystem import FsspecWriter

        if self.place.server:
            return FsspecWriter(f"{self.place.url}/{step}", **self.place.options)
        return dcp.FileSystemWriter(f"{self.place.path}/{step}")

    def reader(self, step: int) -> Any:
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader

        if self.place.server:
            return FsspecReader(f"{self.place.url}/{step}", **self.place.options)
        return dcp.FileSystemReader(f"{self.place.path}/{step}")

    def begin(self, step: int, state: State) -> Callable[[], object]:
        import torch.distributed.checkpoint as dcp

        dcp.save(state, storage_writer=self.writer(step), no_dist=True)
        return _nothing

    def load(self, step: int, like: State) -> dict[str, torch.Tensor]:
        import torch.distributed.checkpoint as dcp

        dcp.load(like, storage_reader=self.reader(step), no_dist=True)
        return flat(like)


class DcpAsync(Dcp):
    """The same by async_save, in a thread."""

    waits = False

    def begin(self, step: int, state: State) -> Callable[[], object]:
        import torch.distributed.checkpoint as dcp

        return dcp.async_save(state, storage_writer=self.writer(step), no_dist=True).result


class MzstoreDcp(Dcp):
    """torch.distributed.checkpoint.async_save with mzstore's writer and planners, made anew for each checkpoint."""

    waits, whole = False, False

    def begin(self, step: int, state: State) -> Callable[[], object]:
        import torch.distributed.checkpoint as dcp

        from mzstore.torch.dcp import MzSavePlanner, MzWriter

        writer = MzWriter(f"{self.place.url}/{step}", storage_options=self.place.options or None)
        return dcp.async_save(state, storage_writer=writer, planner=MzSavePlanner(), no_dist=True).result

    def load(self, step: int, like: State) -> dict[str, torch.Tensor]:
        import torch.distributed.checkpoint as dcp

        from mzstore.torch.dcp import MzLoadPlanner, MzReader

        reader = MzReader(f"{self.place.url}/{step}", storage_options=self.place.options or None)
        dcp.load(like, storage_reader=reader, planner=MzLoadPlanner(), no_dist=True)
        return flat(like)


class Moonclip(Peer):
    """moonclip's CheckpointManager, in the background, exact, all else as it is by default. On S3 it saves to a directory first."""

    needs = ("moonclip",)
    waits, whole = False, False

    def __init__(self, place: Place, base: Path | None) -> None:
        from moonclip import CheckpointManager

        self.place = place
        remote: dict[str, Any] = {}
        if server := place.server:
            remote = {
                "s3_bucket": server.bucket,
                "s3_prefix": place.name,
                "s3_endpoint": server.endpoint,
                "s3_access_key": server.key,
                "s3_secret_key": server.secret,
                "s3_path_style": True,
                "sync_every_n_saves": 1000,
            }
        self._open: Callable[[Path], Any] = lambda folder: CheckpointManager(
            str(folder), world_size=1, rank=0, **remote
        )
        self._folder = place.folder.with_name(f"{place.folder.name}-local") if place.server else place.folder
        self._manager = self._open(self._folder)

    def begin(self, step: int, state: State) -> Callable[[], object]:
        from moonclip.pytorch import flatten_state_dict

        tensors, _ = flatten_state_dict(state, "state", as_tensors=True)
        self._manager.save_raw(step=step, tensors=tensors)
        return self._finish

    def _finish(self) -> None:
        self._manager.flush()
        if self.place.server:
            self._manager.sync_now()

    def load(self, step: int, like: State) -> dict[str, torch.Tensor]:
        from moonclip.pytorch import unflatten_state_dict

        manager = self._manager
        if self.place.server:  # as a machine that has lost its disk
            manager = self._open(self._folder.with_name(f"{self._folder.name}-{step}"))
            manager.restore_from_remote()
        found = next(each for each in manager.list_snapshots() if each["step"] == step)
        return flat(unflatten_state_dict(manager._mgr.load(found["id"]))["state"])


PEERS: dict[str, type[Peer]] = {
    "mzstore": Mzstore,
    "mzstore, chain=0": MzstoreWhole,
    "mzstore.torch.dcp, async_save": MzstoreDcp,
    "torch.save": TorchSave,
    "safetensors": Safetensors,
    "torch dcp.save": Dcp,
    "torch dcp.async_save": DcpAsync,
    "moonclip": Moonclip,
}


def missing() -> dict[str, str]:
    """Why a peer cannot run here, by name."""
    return lacking({name: peer.needs for name, peer in PEERS.items()})


def flat(state: object) -> dict[str, torch.Tensor]:
    """The tensors of a state by their path in it, joined by dots."""
    return dict(_tensors(state, ""))


def _tensors(value: object, path: str) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, dict | list | tuple):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _tensors(each, f"{path}.{key}" if path else str(key))


def _nothing() -> None:
    pass

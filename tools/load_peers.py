"""Peers of the benchmark ``load``: ways to get all weights of a model out of an S3 server, each for a process of its own.

A peer imports what it needs when it is made, and connects when it loads, because making one is not timed. It gives a
dict of arrays (of NumPy or of PyTorch), by name. ``Place`` says where the objects are.
"""

import contextlib
import hashlib
import json
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import ml_dtypes  # noqa: F401  registers bfloat16
import numpy as np
from measure import lacking

RANGE_NBYTES = 16 << 20  # of a ranged read of a plain file
SAFETENSORS_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64", "I64": "int64",
                      "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Place:
    """A model on an S3 server: ``{prefix}.safetensors``, ``{prefix}.mz`` and the tree ``{prefix}.zarr/``."""

    endpoint: str
    key: str
    secret: str
    region: str
    bucket: str
    prefix: str

    @classmethod
    def parse(cls, text: str) -> "Place":
        return cls(**json.loads(text))

    def dump(self) -> str:
        return json.dumps(asdict(self))

    def url(self, end: str) -> str:
        return f"s3://{self.path(end)}"

    def path(self, end: str) -> str:
        return f"{self.bucket}/{self.prefix}.{end}"

    @property
    def s3fs(self) -> dict[str, Any]:
        return {"key": self.key, "secret": self.secret, "endpoint_url": self.endpoint}

    @property
    def obstore(self) -> dict[str, Any]:
        return {
            "access_key_id": self.key,
            "secret_access_key": self.secret,
            "endpoint": self.endpoint,
            "region": self.region,
            "client_options": {"allow_http": True},
        }


class Peer(Protocol):
    needs: tuple[str, ...]  # modules
    compressed: bool  # whether the weights that it reads are

    def __init__(self, place: Place) -> None: ...

    def load(self) -> Mapping[str, Any]: ...


class Mzstore:
    needs: tuple[str, ...] = ("s3fs",)
    compressed = True

    def __init__(self, place: Place) -> None:
        import s3fs  # noqa: F401

        import mzstore

        self.mzstore, self.url, self.options = mzstore, place.url("mz"), place.s3fs

    def load(self) -> Mapping[str, Any]:
        with self.mzstore.open(self.url, storage_options=self.options) as model:
            return model.load(show_progress=False)

    def open(self) -> int:
        """Open the model; the number of its tensors."""
        with self.mzstore.open(self.url, storage_options=self.options) as model:
            return len(model)


class MzstoreObstore(Mzstore):
    needs = ("obstore",)

    def __init__(self, place: Place) -> None:
        import obstore.fsspec

        import mzstore

        obstore.fsspec.register("s3")
        self.mzstore, self.url, self.options = mzstore, place.url("mz"), place.obstore


class S3fsWhole:
    """The safetensors file in one request, its tensors views of what came."""

    needs = ("s3fs",)
    compressed = False

    def __init__(self, place: Place) -> None:
        import s3fs

        self.fs, self.place = s3fs.S3FileSystem, place

    def load(self) -> Mapping[str, Any]:
        return views(self.fs(**self.place.s3fs).cat_file(self.place.path("safetensors")))


class S3fsRanges(S3fsWhole):
    """The safetensors file in ranges, all asked for at once."""

    def load(self) -> Mapping[str, Any]:
        fs, path = self.fs(**self.place.s3fs), self.place.path("safetensors")
        starts = range(0, fs.info(path)["size"], RANGE_NBYTES)
        stops = [start + RANGE_NBYTES for start in starts]
        return views(b"".join(fs.cat_ranges([path] * len(starts), list(starts), stops, on_error="raise")))


class ObstoreWhole:
    """The safetensors file in one request of obstore."""

    needs = ("obstore",)
    compressed = False

    def __init__(self, place: Place) -> None:
        import obstore
        import obstore.store

        self.obstore, self.place = obstore, place

    def store(self) -> Any:
        # Half a minute for a request, body included, would cut a large one on a slow link.
        options = {"allow_http": True, "timeout": "1 hour"}
        return self.obstore.store.S3Store(self.place.bucket, **self.place.obstore | {"client_options": options})

    def load(self) -> Mapping[str, Any]:
        return views(self.obstore.get(self.store(), f"{self.place.prefix}.safetensors").bytes())


class ObstoreRanges(ObstoreWhole):
    """The safetensors file in ranges, several threads at work, straight into one buffer."""

    def load(self) -> Mapping[str, Any]:
        store, path = self.store(), f"{self.place.prefix}.safetensors"
        nbytes = self.obstore.head(store, path)["size"]
        data = np.empty(nbytes, np.uint8)

        def fetch(start: int) -> None:
            stop = min(start + RANGE_NBYTES, nbytes)
            data[start:stop] = np.frombuffer(self.obstore.get_range(store, path, start=start, end=stop), np.uint8)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(fetch, range(0, nbytes, RANGE_NBYTES)))
        return views(data)


class RunaiModelStreamer:
    needs = ("runai_model_streamer", "runai_model_streamer_s3")
    compressed = False

    def __init__(self, place: Place) -> None:
        from runai_model_streamer import SafetensorsStreamer
        from runai_model_streamer.s3_utils.s3_utils import S3Credentials

        self.streamer, self.url = SafetensorsStreamer, place.url("safetensors")
        self.credentials = S3Credentials(place.key, place.secret, None, place.region, place.endpoint)

    def load(self) -> Mapping[str, Any]:
        with self.streamer() as streamer:
            streamer.stream_file(self.url, s3_credentials=self.credentials)
            return dict(streamer.get_tensors())


class ZarrPython:
    """The tree's components by zarr-python, over obstore, made tensors with NumPy; arrays side by side in threads."""

    needs = ("zarr", "obstore")
    compressed = True

    def __init__(self, place: Place) -> None:
        import obstore.store
        import zarr
        import zarr.storage

        self.zarr, self.obstore, self.place = zarr, obstore, place

    def load(self) -> Mapping[str, Any]:
        store = self.obstore.store.S3Store(self.place.bucket, prefix=f"{self.place.prefix}.zarr/", **self.place.obstore)
        group = self.zarr.open_group(self.zarr.storage.ObjectStore(store, read_only=True), mode="r")
        with ThreadPoolExecutor(8) as pool:
            return dict(pool.map(lambda found: (found[0], tensor(found[1].attrs, found[1][...])), group.arrays()))


class TensorStore:
    """The tree's components by TensorStore, all asked for at once, made tensors with NumPy as they come."""

    needs = ("tensorstore",)
    compressed = True

    def __init__(self, place: Place) -> None:
        import tensorstore

        self.ts, self.place = tensorstore, place

    def load(self) -> Mapping[str, Any]:
        # Its one way to be given credentials is the environment, which the benchmark has set.
        store = {
            "driver": "s3",
            "bucket": self.place.bucket,
            "endpoint": self.place.endpoint,
            "aws_region": self.place.region,
            "aws_credentials": {"type": "environment"},
        }
        root = self.ts.KvStore.open({**store, "path": f"{self.place.prefix}.zarr/"}).result()
        nodes = json.loads(root.read("zarr.json").result().value)["consolidated_metadata"]["metadata"]
        known = (
            "shape",
            "data_type",
            "chunk_grid",
            "chunk_key_encoding",
            "fill_value",
            "codecs",
            "zarr_format",
            "node_type",
        )
        opening = {
            name: self.ts.open(
                {
                    "driver": "zarr3",
                    "kvstore": {**store, "path": f"{self.place.prefix}.zarr/{name}/"},
                    "metadata": {key: node[key] for key in known},
                },
                open=True,
                assume_metadata=True,  # the root has told it
            )
            for name, node in nodes.items()
        }
        reads = {name: array.result().read() for name, array in opening.items()}
        return {name: tensor(nodes[name]["attributes"], read.result()) for name, read in reads.items()}


PEERS: dict[str, type[Peer]] = {
    "mzstore, s3fs": Mzstore,
    "mzstore, obstore": MzstoreObstore,
    "safetensors, s3fs": S3fsWhole,
    "safetensors, s3fs ranges": S3fsRanges,
    "safetensors, obstore": ObstoreWhole,
    "safetensors, obstore ranges": ObstoreRanges,
    "runai-model-streamer": RunaiModelStreamer,
    "zarr-python + NumPy": ZarrPython,
    "TensorStore + NumPy": TensorStore,
}


def missing() -> dict[str, str]:
    """Why a peer cannot run here, by name."""
    return lacking({name: peer.needs for name, peer in PEERS.items()})


def make(name: str, place: str) -> Peer:
    return PEERS[name](Place.parse(place))


def digests(tensors: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of the values of each tensor."""
    found = {}
    for name, values in tensors.items():
        with contextlib.suppress(ImportError):
            import torch

            if isinstance(values, torch.Tensor):
                values = values.contiguous().reshape(-1).view(torch.uint8).numpy()
        found[name] = hashlib.sha256(np.ascontiguousarray(values).reshape(-1).view(np.uint8)).hexdigest()
    return found


def views(file: Any) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file in memory, without a copy: quicker than the library, which makes one."""
    data = np.frombuffer(file, np.uint8)
    begin = 8 + int(data[:8].view("<u8")[0])
    header = json.loads(data[8:begin].tobytes())
    header.pop("__metadata__", None)
    return {
        name: data[begin + about["data_offsets"][0] : begin + about["data_offsets"][1]]
        .view(SAFETENSORS_DTYPES[about["dtype"]])
        .reshape(about["shape"])
        for name, about in header.items()
    }


def tensor(attributes: Mapping[str, Any], body: np.ndarray) -> np.ndarray:
    """The tensor whose one component is ``body``, as FORMAT.md's appendix B makes it with NumPy."""
    about: Any = attributes["mzstore"]
    (part,) = about["parts"]
    dtype, shape = np.dtype(about["dtype"]), tuple(about["shape"])
    stored = np.dtype(part.get("dtype", about["dtype"]))
    if part["encoding"] == "raw":
        words = np.broadcast_to(body, shape).copy()
    elif "ranks" in part:
        words = _of_ranks(part, body, shape, stored.itemsize)
    else:
        words = _of_planes(part, body, stored.itemsize)
    values = words.view(stored).reshape(shape)
    return values if stored == dtype else values.astype(dtype)


def _of_planes(part: Mapping[str, Any], body: np.ndarray, itemsize: int) -> np.ndarray:
    top, low = body[0], body[1:]
    if "symbols" in part:
        top = np.concatenate([np.arange(a, a + n, dtype=f"u{itemsize}") for a, n in part["symbols"]])[top]
    return _joined(part, top, low, itemsize)


def _of_ranks(part: Mapping[str, Any], body: np.ndarray, shape: tuple[int, ...], itemsize: int) -> np.ndarray:
    chunk = tuple(part["chunk_shape"])
    n, counts = math.prod(chunk), body.shape[:-1]
    words = np.empty(shape, f"u{itemsize}")
    for index in np.ndindex(counts):
        packed, low, escapes = np.split(body[index], np.cumsum([-(-n // 2), n * (itemsize - 1)]))
        top = np.stack([packed & 15, packed >> 4], -1).ravel()[:n] + np.uint8(part["ranks"])
        escapes = escapes.view("<u4")
        escapes = escapes[escapes != 0xFFFFFFFF]
        top.put(escapes >> 8, escapes & 255)
        whole = _joined(part, top, low.reshape(itemsize - 1, n), itemsize).reshape(chunk)
        box = tuple(slice(i * c, min((i + 1) * c, s)) for i, c, s in zip(index, chunk, shape, strict=True))
        words[box] = whole[tuple(slice(0, cut.stop - cut.start) for cut in box)]
    return words


def _joined(part: Mapping[str, Any], top: np.ndarray, low: np.ndarray, itemsize: int) -> np.ndarray:
    bits = 8 * itemsize
    r, rest = top.astype(f"u{itemsize}"), bits - part.get("top_bits", 8)
    for plane in low:
        width = rest % 8 or 8
        r, rest = r << width | plane, rest - width
    return r >> 1 | r << (bits - 1) if part["rotate"] else r

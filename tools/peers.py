"""Peers: mzstore and what it is compared with, each with the operations that can be timed.

All work from memory to memory, on the same weights. A peer that takes files gets them in a file system that is memory.
"""

import io
import shutil
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np
import safetensors.numpy
import zstandard
from measure import Operation, n_threads

import mzstore
from mzstore.encode import choose, payloads
from mzstore.encodings.raw import Raw
from mzstore.sources import from_arrays

ZARR_CHUNK_NBYTES = 1 << 20
DTYPES = {"bf16": np.dtype(ml_dtypes.bfloat16), "fp16": np.dtype(np.float16), "fp32": np.dtype(np.float32)}


@dataclass(frozen=True)
class Weights:
    """A model in memory, and as the safetensors file that every ratio refers to."""

    name: str
    dtype: str  # bf16, fp16, fp32: of most of the bytes
    tensors: dict[str, np.ndarray]
    path: Path
    file: bytes = field(repr=False)

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.tensors.values())


def read_weights(source: Path, dtype: str | None, work: Path) -> Weights:
    """The weights of a safetensors file or a directory of such, its floats cast to ``dtype`` (None: as they are)."""
    files = sorted(source.glob("*.safetensors")) if source.is_dir() else [source]
    if not files:
        raise ValueError(f"no safetensors file in {str(source)!r}")
    tensors: dict[str, np.ndarray] = {}
    for file in files:
        tensors |= safetensors.numpy.load_file(file)
    if dtype:
        floats = DTYPES.values()
        tensors = {name: a.astype(DTYPES[dtype]) if a.dtype in floats else a for name, a in tensors.items()}
    share = {key: sum(a.nbytes for a in tensors.values() if a.dtype == of) for key, of in DTYPES.items()}
    most = max(share, key=lambda key: share[key])
    path = work / f"{most}.safetensors"
    safetensors.numpy.save_file(tensors, path)
    return Weights(source.name, most, tensors, path, path.read_bytes())


class Peer(Protocol):
    """One way to store weights. ``prepare`` has been called before anything else."""

    name: str

    def prepare(self) -> None:
        """Encode once, so that there is something to decode."""

    def stored_nbytes(self) -> int:
        """All that it stores, what corresponds to the header of the safetensors file included."""

    def holds(self) -> bool:
        """Whether decoding gives back every bit."""

    def operations(self) -> dict[str, Operation]:
        """By name: ``encode``, ``decode``, and what only some have."""

    def one_thread_only(self) -> frozenset[str]:
        """Operations that no number of threads makes faster."""


def equal(found: dict[str, Any], tensors: dict[str, np.ndarray]) -> bool:
    return found.keys() == tensors.keys() and all(
        found[name].dtype == a.dtype and found[name].shape == a.shape and found[name].tobytes() == a.tobytes()
        for name, a in tensors.items()
    )


class Mzstore:
    def __init__(self, weights: Weights, level: str) -> None:
        self.name, self.level = f"mzstore {level}", level
        self._weights = weights
        self._out = {name: np.zeros(a.shape, a.dtype) for name, a in weights.tensors.items()}

    def prepare(self) -> None:
        self.archive = self._save(n_threads())
        self._model = mzstore.open(self.archive)

    def stored_nbytes(self) -> int:
        return len(self.archive)

    def container_nbytes(self) -> int:
        """What is neither payload nor asset: documents, entries, directory, padding."""
        return len(self.archive) - sum(tensor.stored_nbytes for tensor in self._model.values())

    def holds(self) -> bool:
        self._decode(1)
        return equal(self._out, self._weights.tensors) and equal(self._model.load(), self._weights.tensors)

    def operations(self) -> dict[str, Operation]:
        return {
            "encode": Operation(self._encode),
            "save": Operation(self._save),
            "decode": Operation(self._decode),
            "load": Operation(self._load),
            "open": Operation(lambda _: mzstore.open(self.archive)),
        }

    def one_thread_only(self) -> frozenset[str]:
        return frozenset({"open"})

    def _save(self, threads: int) -> bytes:
        target = io.BytesIO()
        mzstore.save(target, self._weights.tensors, level=self.level, threads=threads, show_progress=False)
        return target.getvalue()

    def _encode(self, threads: int) -> None:
        """The chunk encoder alone: choices and payloads, neither digests nor container."""
        with ThreadPoolExecutor(threads) as pool:
            run = pool.map if threads > 1 else map
            for _ in run(lambda task: payloads(*task), self._chunks()):
                pass

    def _chunks(self) -> Iterator[tuple[Any, ...]]:
        for source in from_arrays(self._weights.tensors, {}, {}).tensors:
            choice = choose(source, self.level)
            if isinstance(choice.part, Raw) and choice.part.constant:
                continue
            for start, shape, chunks in choice.part.grid.row_blocks():
                block = source.read(start, start + int(np.prod(shape))).reshape(shape)
                for chunk in chunks:
                    yield choice, block, chunk, source.spec.dtype

    def _decode(self, threads: int) -> None:
        for name, tensor in self._model.items():
            tensor.read(out=self._out[name], threads=threads)

    def _load(self, threads: int) -> None:
        with mzstore.open(self.archive) as model:
            model.load(threads=threads, show_progress=False)


class Safetensors:
    name = "safetensors"

    def __init__(self, weights: Weights) -> None:
        self._weights = weights

    def prepare(self) -> None:
        pass

    def stored_nbytes(self) -> int:
        return len(self._weights.file)

    def holds(self) -> bool:
        return equal(self._decode(1), self._weights.tensors)

    def operations(self) -> dict[str, Operation]:
        return {
            "encode": Operation(lambda _: safetensors.numpy.save(self._weights.tensors)),
            "decode": Operation(self._decode),
        }

    def one_thread_only(self) -> frozenset[str]:
        return frozenset({"encode", "decode"})

    def _decode(self, _: int) -> dict[str, Any]:
        # safetensors.numpy.load is the same, but knows no bfloat16.
        return {
            name: np.frombuffer(found["data"], self._weights.tensors[name].dtype).reshape(found["shape"])
            for name, found in safetensors.deserialize(self._weights.file)
        }


class Zstd:
    """zstd as most people use it: at its default level, on the file."""

    name = "zstd 3"

    def __init__(self, weights: Weights) -> None:
        self._file = weights.file
        self._out = np.zeros(len(weights.file), np.uint8)

    def prepare(self) -> None:
        self._blob = self._encode(1)

    def stored_nbytes(self) -> int:
        return len(self._blob)

    def holds(self) -> bool:
        self._decode(1)
        return self._out.tobytes() == self._file

    def operations(self) -> dict[str, Operation]:
        return {"encode": Operation(self._encode), "decode": Operation(self._decode)}

    def one_thread_only(self) -> frozenset[str]:
        return frozenset({"decode"})

    def _encode(self, threads: int) -> bytes:
        return zstandard.ZstdCompressor(level=3, threads=threads if threads > 1 else 0).compress(self._file)

    def _decode(self, threads: int) -> None:
        zstandard.ZstdDecompressor().stream_reader(self._blob).readinto(self._out)


class ZarrPython:
    """zarr-python with the best of the standard codecs, chosen by size; bfloat16 as the uint16 of its bits."""

    name = "zarr-python"

    def __init__(self, weights: Weights) -> None:
        from zarr.codecs import BloscCodec, ZstdCodec

        bits = DTYPES["bf16"]
        self._tensors = {k: a.view(np.uint16) if a.dtype == bits else a for k, a in weights.tensors.items()}
        self._codecs = {
            "zstd 3": ZstdCodec(level=3),
            "blosc zstd 5 shuffle": BloscCodec(cname="zstd", clevel=5, shuffle="shuffle"),
            "blosc zstd 5 bitshuffle": BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle"),
        }

    def prepare(self) -> None:
        sizes = {}
        for codec in self._codecs:
            self._codec = codec
            self._encode(n_threads())
            sizes[codec] = self.stored_nbytes()
        self._codec = min(sizes, key=lambda codec: sizes[codec])
        self.name = f"zarr-python ({self._codec})"
        self._encode(n_threads())

    def stored_nbytes(self) -> int:
        return sum(len(value) for value in self._store._store_dict.values())

    def holds(self) -> bool:
        return equal(self._decode(1), self._tensors)

    def operations(self) -> dict[str, Operation]:
        return {"encode": Operation(self._encode), "decode": Operation(self._decode)}

    def one_thread_only(self) -> frozenset[str]:
        return frozenset()

    def _encode(self, threads: int) -> None:
        import numcodecs.blosc
        import zarr

        numcodecs.blosc.use_threads = False  # the threads are zarr-python's
        self._store = zarr.storage.MemoryStore()
        with zarr.config.set({"async.concurrency": threads}):
            group = zarr.create_group(self._store)
            for i, a in enumerate(self._tensors.values()):
                array = group.create_array(
                    str(i), shape=a.shape, dtype=a.dtype, chunks=_rows(a), compressors=self._codecs[self._codec]
                )
                array[...] = a

    def _decode(self, threads: int) -> dict[str, Any]:
        import zarr

        with zarr.config.set({"async.concurrency": threads}):
            group = zarr.open_group(self._store, mode="r")
            return {name: np.asarray(group[str(i)][...]) for i, name in enumerate(self._tensors)}


def _rows(array: np.ndarray) -> tuple[int, ...]:
    """Chunks of whole rows, about 1 MiB each."""
    if not array.ndim:
        return ()
    row = max(1, array.nbytes // max(1, array.shape[0]))
    return (max(1, min(array.shape[0], ZARR_CHUNK_NBYTES // row)), *(max(1, n) for n in array.shape[1:]))


class ZipNN:
    """On the values of the safetensors file, end to end, without its header. It overwrites what it compresses."""

    name = "zipnn"

    def __init__(self, weights: Weights) -> None:
        import zipnn

        begin = 8 + struct.unpack("<Q", weights.file[:8])[0]
        self._header_nbytes, self._values = begin, weights.file[begin:]
        dtype = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}[weights.dtype]
        self._new = lambda threads: zipnn.ZipNN(input_format="byte", bytearray_dtype=dtype, threads=threads)

    def prepare(self) -> None:
        self._copy()
        self._blob = self._encode(1)

    def stored_nbytes(self) -> int:
        return self._header_nbytes + len(self._blob)

    def holds(self) -> bool:
        return bytes(self._decode(1)) == self._values

    def operations(self) -> dict[str, Operation]:
        return {"encode": Operation(self._encode, before=self._copy), "decode": Operation(self._decode)}

    def one_thread_only(self) -> frozenset[str]:
        return frozenset()

    def _copy(self) -> None:
        self._input = bytearray(self._values)

    def _encode(self, threads: int) -> bytes:
        return self._new(threads).compress(self._input)

    def _decode(self, threads: int) -> Any:
        return self._new(threads).decompress(self._blob)


class Lmz:
    """On files that lie in memory."""

    def __init__(self, weights: Weights, memory: Path, level: int) -> None:
        import lmz

        self.name, self._level, self._lmz = f"lmz {level}", level, lmz
        self._source, self._archive, self._copy = (memory / f"{level}.{end}" for end in ("safetensors", "lmz", "copy"))
        shutil.copyfile(weights.path, self._source)

    def prepare(self) -> None:
        self._encode(1)

    def stored_nbytes(self) -> int:
        return self._archive.stat().st_size

    def holds(self) -> bool:
        self._decode(1)
        return self._copy.read_bytes() == self._source.read_bytes()

    def operations(self) -> dict[str, Operation]:
        return {"encode": Operation(self._encode), "decode": Operation(self._decode)}

    def one_thread_only(self) -> frozenset[str]:
        return frozenset()

    def _encode(self, threads: int) -> None:
        self._lmz.compress(str(self._source), str(self._archive), level=self._level, workers=threads)

    def _decode(self, threads: int) -> None:
        self._lmz.decompress(str(self._archive), str(self._copy), workers=threads, overwrite=True)


def peers(weights: Weights, memory: Path) -> tuple[list[Peer], dict[str, str]]:
    """All that can run here, and why the others cannot, by name. ``memory`` is a folder in memory."""
    makers: dict[str, Callable[[], Peer]] = {
        **{f"mzstore {level}": lambda level=level: Mzstore(weights, level) for level in ("fast", "balanced", "max")},
        "zipnn": lambda: ZipNN(weights),
        "lmz 1": lambda: Lmz(weights, memory, 1),
        "lmz 9": lambda: Lmz(weights, memory, 9),
        "zarr-python": lambda: ZarrPython(weights),
        "zstd 3": lambda: Zstd(weights),
        "safetensors": lambda: Safetensors(weights),
    }
    found, missing = [], {}
    for name, make in makers.items():
        try:
            found.append(make())
        except ImportError as error:
            missing[name] = str(error)
    return found, missing

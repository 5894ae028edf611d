"""Peers of the benchmark ``sparse``: SciPy's CSR, coordinates in safetensors, a bitmap with zstd, and PyTorch's sparse tensors."""

import io
from typing import Any, Protocol

import numpy as np
import safetensors.numpy
import zstandard

LEVEL = 3


class Peer(Protocol):
    """One way to store a sparse matrix, of words of 16 bits."""

    name: str
    decodes: bool

    def stored_nbytes(self) -> int | None:
        """None for what is only decoded."""

    def decode(self) -> Any:
        """The dense matrix."""


def peers(values: np.ndarray) -> tuple[list[Peer], dict[str, str]]:
    """(those that can be had, why others cannot) for ``values``, bfloat16 of two axes."""
    found: list[Peer] = [Coordinates(values), Bitmap(values)]
    missing = {}
    try:
        found = [Csr(values, compressed=False), Csr(values, compressed=True), *found]
    except ImportError as error:
        missing["scipy"] = f"{error}; pip install 'mzstore[bench]'"
    try:
        found += [Torch(values, "coo"), Torch(values, "csr")]
    except ImportError as error:
        missing["torch"] = f"{error}; pip install 'mzstore[bench]'"
    return found, missing


class Csr:
    """scipy.sparse.csr_array in an npz, of words: SciPy has no bfloat16."""

    def __init__(self, values: np.ndarray, *, compressed: bool) -> None:
        import scipy.sparse

        self._sparse, self._compressed = scipy.sparse, compressed
        self.name, self.decodes = f"scipy csr, npz{' compressed' if compressed else ''}", not compressed
        self._csr = scipy.sparse.csr_array(values.view(np.uint16))
        self._out = np.empty(values.shape, np.uint16)

    def stored_nbytes(self) -> int:
        file = io.BytesIO()
        self._sparse.save_npz(file, self._csr, compressed=self._compressed)
        return file.getbuffer().nbytes

    def decode(self) -> np.ndarray:
        found: np.ndarray = self._csr.toarray(out=self._out)
        return found


class Coordinates:
    """int32 rows and columns and the values, in a safetensors file."""

    name, decodes = "int32 coo, safetensors", False

    def __init__(self, values: np.ndarray) -> None:
        words = values.view(np.uint16)
        self._indices = np.array(np.nonzero(words), np.int32)
        self._values = words[tuple(self._indices)]

    def stored_nbytes(self) -> int:
        return len(safetensors.numpy.save({"indices": self._indices, "values": self._values}))

    def decode(self) -> None:
        raise NotImplementedError


class Bitmap:
    """A bit for each weight, and the values, each in a zstd frame."""

    name, decodes = f"bitmap + zstd {LEVEL}", True

    def __init__(self, values: np.ndarray) -> None:
        words = values.view(np.uint16)
        present = words != 0
        coder = zstandard.ZstdCompressor(LEVEL)
        self._bitmap = coder.compress(np.packbits(present, bitorder="little").tobytes())
        self._values = coder.compress(words[present].tobytes())
        self._out = np.empty(values.shape, np.uint16)

    def stored_nbytes(self) -> int:
        return len(self._bitmap) + len(self._values)

    def decode(self) -> np.ndarray:
        decoder = zstandard.ZstdDecompressor()
        bits = np.frombuffer(decoder.decompress(self._bitmap), np.uint8)
        present = np.unpackbits(bits, count=self._out.size, bitorder="little").view(bool)
        self._out.fill(0)
        self._out.reshape(-1)[present] = np.frombuffer(decoder.decompress(self._values), np.uint16)
        return self._out


class Torch:
    """A sparse tensor of PyTorch, in memory."""

    decodes = True

    def __init__(self, values: np.ndarray, layout: str) -> None:
        import torch

        self._torch = torch
        self.name = f"torch {layout}, to_dense"
        dense = torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
        self._sparse = dense.to_sparse().coalesce() if layout == "coo" else dense.to_sparse_csr()

    def stored_nbytes(self) -> None:
        return None

    def decode(self) -> Any:
        before = self._torch.get_num_threads()
        self._torch.set_num_threads(1)
        try:
            return self._sparse.to_dense()
        finally:
            self._torch.set_num_threads(before)

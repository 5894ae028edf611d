"""Write spec/golden/<format>-<what>: a model that every later release has to read. ``python tools/freeze.py lossless``

What is frozen stays: the tool refuses to write over it. A new format, or a new encoding, gets a name of its own.
"""

import argparse
import hashlib
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

import mzstore
from mzstore import grid
from mzstore.archive import ArchiveWriter
from mzstore.arrays import Array
from mzstore.documents import DOCUMENT, FORMAT, Asset, Layout, ModelDocument, TensorEntry, dump
from mzstore.dtypes import DTYPES
from mzstore.encode import Choice, payloads
from mzstore.encodings import Coding, Part
from mzstore.encodings.planes import N_RANKS, Planes
from mzstore.encodings.raw import Raw, constant_array
from mzstore.grid import Grid
from mzstore.interleave import Fields, tops
from mzstore.nodes import Namer
from mzstore.recipe import Rule
from mzstore.tensors import TensorSpec

GOLDEN = Path(__file__).parent.parent / "spec" / "golden"


class _Sink:
    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: bytes | memoryview) -> None:
        self.data += data


class Lossless:
    """A model with every dtype and every form of ``raw`` and ``planes``, whether a writer would choose it or not."""

    def __init__(self) -> None:
        self._sink = _Sink()
        self._writer = ArchiveWriter(self._sink)
        self._namer = Namer()
        self._tensors: dict[str, TensorEntry] = {}
        self._random = np.random.default_rng(1)

    def write(self) -> bytes:
        for name, array, part in self._cases():
            self._add(name, array, part)
        self._same("planes/plain", "tied: planes/plain")
        content = b"A small file that travels with the model.\n"
        key = self._namer.path("notes/read me.txt")
        self._writer.write_file(key, len(content), zlib.crc32(content), iter([content]))
        asset = Asset("notes/read me.txt", key, len(content), hashlib.sha256(content).hexdigest())
        values = self._tensors["dtype/uint8"].spec
        header = json.dumps({values.name: {"dtype": "U8", "shape": [6], "data_offsets": [0, 6]}}).encode()
        self._writer.write_document("layouts/0", len(header).to_bytes(8, "little") + header)
        layout = Layout("model.safetensors", "layouts/0")
        metadata = {"about": "a frozen model", "nested": {"list": [1, 2.5, None, True, "ü"]}}
        model = ModelDocument(self._tensors, metadata, (asset,), (layout,), "tools/freeze.py")
        for node, doc in model.documents():
            self._writer.write_document(f"{node}/{DOCUMENT}" if node else DOCUMENT, dump(doc))
        self._writer.finish()
        return bytes(self._sink.data)

    def expected(self) -> dict[str, dict[str, object]]:
        return {
            name: {"dtype": entry.spec.dtype.name, "shape": list(entry.spec.shape), "sha256": entry.sha256}
            for name, entry in self._tensors.items()
        }

    def _cases(self) -> Iterator[tuple[str, np.ndarray, Part]]:
        """(name, array of any type of DTYPES, how to store its words)."""
        for name, dtype in DTYPES.items():
            shape = (3, 5) if dtype.packed else (6,)
            bits = self._random.integers(0, 256, (*shape, dtype.numpy.itemsize), dtype=np.uint8)
            if dtype.packed:
                bits &= 15
            array = bits.reshape(-1).view(dtype.numpy).reshape(shape)
            yield f"dtype/{name}", array, self._raw(name, array.shape)
        weights = self._random.normal(size=(40, 50)).astype(np.float32) * np.float32(0.02)
        half, brain = weights.astype(np.float16), weights.astype(ml_dtypes.bfloat16)

        yield "raw/chunks", weights, self._raw("float32", (40, 50), (16, 20))
        yield "raw/zstd", half, self._raw("float16", (40, 50), (16, 50), zstd=True)
        yield "raw/constant", np.full((7, 9), -0.5, np.float64), self._constant("float64", (7, 9))
        yield "raw/scalar", np.array(3.5, np.float32), self._raw("float32", ())
        yield "raw/empty", np.zeros((0, 4), np.int16), self._raw("int16", (0, 4), (1, 4))
        special = np.array([0x0000, 0x8000, 0x7F80, 0xFF80, 0x7FC1, 0xFFFF, 0x0001], np.uint16).view(ml_dtypes.bfloat16)
        yield "raw/zeros, infinities and NaNs", special, self._raw("bfloat16", (7,))

        yield "planes/plain", brain, self._planes("bfloat16", brain, (16, 20), 8)
        yield "planes/plain float32", weights, self._planes("float32", weights, (40, 50), 8)
        yield "planes/plain float64", weights.astype(np.float64), self._planes("float64", weights, (8, 50), 8)
        yield "planes/plain integers", np.arange(300, dtype=np.int64), self._planes("int64", weights, (128,), 8, (300,))
        yield "planes/symbols", brain, self._planes("bfloat16", brain, (16, 20), 10, symbols=True)
        yield "planes/symbols float32", weights, self._planes("float32", weights, (16, 20), 11, symbols=True)
        yield "planes/ranks", brain, self._planes("bfloat16", brain, (40, 50), 8, ranks=0)
        yield "planes/ranks and escapes", brain, self._planes("bfloat16", brain, (16, 20), 8, ranks=6)
        odd = brain[:, :49]
        yield "planes/ranks of odd rows", odd, self._planes("bfloat16", odd, (15, 49), 8, ranks=6)
        yield "planes/ranks float32", weights, self._planes("float32", weights, (16, 20), 8, ranks=6)
        complex_ = (weights + 1j * weights[::-1]).astype(np.complex64)
        yield (
            "planes/complex",
            complex_,
            self._planes("complex64", complex_.view(np.float32), (40, 50, 2), 8, (40, 50, 2)),
        )
        yield "planes/empty", brain[:0], self._planes("bfloat16", brain, (1, 50), 8, (0, 50))

        narrow = brain.astype(np.float32)
        yield "narrow/bfloat16 raw", narrow, self._raw("bfloat16", (40, 50))
        yield "narrow/bfloat16 planes", narrow, self._planes("bfloat16", brain, (16, 20), 8)
        yield "narrow/float16", half.astype(np.float32), self._raw("float16", (40, 50), zstd=True)

        for name in (
            "",
            ".",
            "zarr.json",
            "Assets",
            "assets",
            "CON.weight",
            "a.b.c",
            "a/b:c*d",
            "模型.ünï.weight",
            "n" * 300,
            "A",
            "a",
        ):
            array = np.frombuffer(f"name {len(self._tensors)}".encode(), np.uint8)
            yield name, array, self._raw("uint8", array.shape)

    def _add(self, name: str, array: np.ndarray, part: Part) -> None:
        dtype = next(d for d in DTYPES.values() if d.numpy == array.dtype)
        spec = TensorSpec(name, dtype, array.shape)
        words = dtype.to_words(array)
        node = self._namer.node(name)
        choice = Choice(part, Coding())
        if isinstance(part, Raw) and part.constant:
            blocks = [(words.reshape(-1)[:1].reshape((1,) * words.ndim), [(0,) * words.ndim])]
        else:
            flat = words.reshape(-1)
            blocks = [
                (flat[start : start + int(np.prod(shape, dtype=int))].reshape(shape), chunks)
                for start, shape, chunks in part.grid.row_blocks()
            ]
        for block, chunks in blocks:
            for chunk in chunks:
                for payload in payloads(choice, block, chunk, dtype):
                    self._writer.write_chunk(f"{node}/{payload.path}", payload.data, aligned=payload.plain)
        self._tensors[name] = TensorEntry(spec, node, hashlib.sha256(words.tobytes()).hexdigest(), part)

    def _same(self, of: str, name: str) -> None:
        base = self._tensors[of]
        spec = TensorSpec(name, base.spec.dtype, base.spec.shape)
        self._tensors[name] = TensorEntry(spec, self._namer.node(name), base.sha256, same_as=base.node)

    def _raw(self, dtype: str, shape: tuple[int, ...], chunk: tuple[int, ...] | None = None, zstd: bool = False) -> Raw:
        words = DTYPES[dtype].word_shape(shape)
        return Raw(DTYPES[dtype], words, Array(words, chunk or words, DTYPES[dtype].disk, zstd))

    def _constant(self, dtype: str, shape: tuple[int, ...]) -> Raw:
        return Raw(DTYPES[dtype], shape, constant_array(DTYPES[dtype], shape))

    def _planes(
        self, dtype: str, values: np.ndarray, chunk: tuple[int, ...], top_bits: int, shape: tuple[int, ...] | None = None,
        *, symbols: bool = False, ranks: int | None = None,
    ) -> Planes:  # fmt: skip
        """``symbols``: for all top fields that occur; ``ranks``: for the largest that occurs, less so many, and below."""
        grid = Grid(values.shape if shape is None else shape, chunk)
        fields = Fields(DTYPES[dtype].word_bits, top_bits, rotate=DTYPES[dtype].exponent_bits > 0)
        if not symbols and ranks is None:
            return Planes.new(DTYPES[dtype], grid, fields)
        top = tops(DTYPES[dtype].to_words(values).reshape(-1), fields)
        counts = np.bincount(top, minlength=1 << top_bits)
        if symbols:
            return Planes.new(DTYPES[dtype], grid, fields, present=counts > 0)
        assert ranks is not None
        first = int(top.max()) - ranks - N_RANKS + 1
        others = counts.sum() - counts[first : first + N_RANKS].sum()
        return Planes.new(DTYPES[dtype], grid, fields, ranks=first, escapes=min(int(others), grid.chunk_size))


class Quantized:
    """A model with a tensor for every quantizer, packing and kind of scales, made by the writer of its day."""

    def __init__(self) -> None:
        self._random = np.random.default_rng(2)
        self._tensors: dict[str, np.ndarray] = {}
        self._rules: list[Rule] = []
        self._data = b""

    def write(self) -> bytes:
        self._cases()
        self._tensors["lossless"] = self._weights(10, 20)
        self._tensors["tied: uniform/3 levels"] = self._tensors["uniform/3 levels"]
        file = io.BytesIO()
        grid.SINGLE_CHUNK_NBYTES, grid.RANKS = 12 << 10, 2  # so that some of the tensors have several chunks
        recipe = mzstore.Recipe([*self._rules, Rule(encoding="lossless")], defaults=False)
        mzstore.save(file, self._tensors, recipe=recipe, threads=1)
        self._data = file.getvalue()
        return self._data

    def expected(self) -> dict[str, dict[str, object]]:
        with mzstore.open(self._data) as model:
            return {
                name: {"dtype": entry.spec.dtype.name, "shape": list(entry.spec.shape), "sha256": entry.sha256}
                for name, entry in model.document.tensors.items()
            }

    def _cases(self) -> None:
        small, chunked = (24, 64), (48, 64)
        for levels in (2, 3, 4, 6, 16, 40, 256, 1000):
            self._add(f"uniform/{levels} levels", small, step=0.12 / levels, levels=levels)
        self._add("uniform/bits", small, bits=9.0)
        self._add("uniform/nmse", chunked, "float64", nmse=1e-3)
        self._add("uniform/max error", small, "float16", max_error=0.002)
        self._add("uniform/outliers in chunks", chunked, step=0.01, levels=8)
        for scales in ("tensor", "row", "column"):
            self._add(f"symmetric/{scales}", small, quantizer="symmetric", bits=4, scales=scales)
        self._add("symmetric/rows in chunks", chunked, quantizer="symmetric", bits=4, scales="row")
        self._add("symmetric/columns in chunks", chunked, quantizer="symmetric", bits=8, scales="column")
        for dtype in ("float32", "float16", "bfloat16"):
            self._add(f"affine/group in {dtype}", small, dtype, quantizer="affine", bits=3, group=16, scale_dtype=dtype)
        self._add("affine/groups in chunks", chunked, quantizer="affine", bits=4, group=8)
        self._add("affine/tiles", (20, 40), quantizer="affine", bits=8, tile=(8, 16))
        self._add("affine/tiles in chunks", chunked, quantizer="affine", bits=4, tile=(6, 8))
        for bits in (9, 10, 11, 12, 13, 14, 15, 16):
            self._add(f"symmetric/{bits} bits", (8, 20), quantizer="symmetric", bits=bits, scales="tensor")
        self._add("affine/10 bits in chunks", chunked, quantizer="affine", bits=10, scales="row")
        self._add("codebook/nf4", small, quantizer="nf4")
        self._add("codebook/fp4", small, "bfloat16", quantizer="fp4")
        self._add("codebook/6 levels", small, quantizer="codebook", levels=6)
        self._add("codebook/300 levels in chunks", chunked, quantizer="codebook", levels=300)
        for dimension in (2, 4, 8):
            self._add(f"codebook/{dimension} neighbours", small, quantizer="codebook", levels=40, dimension=dimension)
        self._add("codebook/neighbours in chunks", chunked, quantizer="codebook", levels=40, dimension=2)
        self._add("float8/e4m3fn", small, quantizer="float8")
        self._add("float8/e5m2", small, "float16", quantizer="float8", scales="tensor", format="e5m2")
        for quantizer in ("mxfp8", "mxfp4", "nvfp4"):
            self._add(quantizer, small, "bfloat16", quantizer=quantizer)
        self._add("axes/1", (96,), quantizer="symmetric", bits=4, group=8)
        self._add("axes/3", (3, 7, 16), quantizer="affine", bits=4, group=8)
        self._add("axes/3 in chunks", (6, 16, 40), quantizer="affine", bits=4, group=8)
        self._add("axes/4", (3, 2, 5, 8), quantizer="symmetric", bits=4, scales="column")

    def _add(self, name: str, shape: tuple[int, ...], dtype: str = "float32", **rule: Any) -> None:
        self._tensors[name] = self._weights(*shape).astype(DTYPES[dtype].numpy)
        self._rules.append(Rule(name=[name, f"tied: {name}"], **rule))

    def _weights(self, *shape: int) -> np.ndarray:
        """With a few that are far from the others."""
        values = self._random.normal(size=shape).astype(np.float32) * np.float32(0.02)
        values.reshape(-1)[:: max(1, values.size // 3)] *= 5
        return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["lossless", "quantized"])
    what = parser.parse_args().what
    folder = GOLDEN / f"{FORMAT}-{what}"
    model = Lossless() if what == "lossless" else Quantized()
    data = model.write()
    folder.mkdir(parents=True)  # FileExistsError is the point: history is not rewritten
    (folder / "model.mz").write_bytes(data)
    (folder / "expected.json").write_text(json.dumps(model.expected(), indent=1) + "\n")


if __name__ == "__main__":
    main()

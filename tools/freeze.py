"""Write spec/golden/<format>-<what>: a model that every later release has to read. ``PYTHONPATH=. python tools/freeze.py lossless``

What is frozen stays: the tool refuses to write over it. A new format, or a new encoding, gets a name of its own.
"""

import argparse
import hashlib
import io
import json
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
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
from mzstore.encodings.base import Base
from mzstore.encodings.ggml import Ggml as Ggml_
from mzstore.encodings.planes import N_RANKS, Planes
from mzstore.encodings.positions import Index
from mzstore.encodings.raw import Raw, constant_array
from mzstore.ggml import TYPES, BlockType
from mzstore.grid import Grid
from mzstore.interleave import Fields, tops
from mzstore.nodes import Namer
from mzstore.packed import encode
from mzstore.payload import compress, seal
from mzstore.recipe import Rule
from mzstore.tensors import TensorSpec
from tests.parts import Made, Random, combined

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


class Parts:
    """A model with every form of the other encodings, alone and combined; and the model that some of it is based on."""

    BASE = "base.mz"

    def __init__(self) -> None:
        self._tensors: dict[str, TensorEntry] = {}

    def write(self) -> bytes:
        base = Random(1).raw(DTYPES["bfloat16"], Grid((16, 24), (8, 24)))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / self.BASE
            for _ in range(2):  # digests are those of what a reader reads
                path.write_bytes(self._archive({"w": base}, self._digests(path)))
            self.base = path.read_bytes()
            cases, path = dict(self._cases(self._digests(path)["w"])), Path(folder) / "model.mz"
            for _ in range(2):
                path.write_bytes(self._archive(cases, self._digests(path), (self.BASE,)))
            return path.read_bytes()

    def expected(self) -> dict[str, dict[str, object]]:
        return {
            name: {"dtype": entry.spec.dtype.name, "shape": list(entry.spec.shape), "sha256": entry.sha256}
            for name, entry in self._tensors.items()
        }

    def _digests(self, path: Path) -> dict[str, str]:
        """Of the tensors of the model that is there, if there is one."""
        if not path.exists():
            return {}
        with mzstore.open(path) as model:
            words = {
                name: entry.spec.dtype.to_words(model[name].read()) for name, entry in model.document.tensors.items()
            }
        return {name: hashlib.sha256(own.tobytes()).hexdigest() for name, own in words.items()}

    def _archive(self, made: dict[str, Made], digests: dict[str, str], bases: tuple[str, ...] = ()) -> bytes:
        sink, namer = _Sink(), Namer()
        writer = ArchiveWriter(sink)
        self._tensors = {}
        for name, each in made.items():
            part, node = each.part, namer.node(name)
            self._tensors[name] = TensorEntry(
                TensorSpec(name, part.dtype, part.grid.shape), node, digests.get(name, "0" * 64), part, lossy={}
            )
            for component in part.components:
                front = node if len(part.components) == 1 else f"{node}/{component.name}"
                for chunk, body in each.bodies[component.name].items():
                    data = compress([np.frombuffer(body, np.uint8)], coder="huffman", block_nbytes=128 << 10)
                    payload = seal(bytes(data)) if component.array.zstd else seal(body)
                    writer.write_chunk(f"{front}/{component.array.chunk_key(chunk)}", payload, aligned=False)
        for node, doc in ModelDocument(self._tensors, writer="tools/freeze.py", bases=bases).documents():
            writer.write_document(f"{node}/{DOCUMENT}" if node else DOCUMENT, dump(doc))
        writer.finish()
        return bytes(sink.data)

    def _cases(self, base_sha256: str) -> Iterator[tuple[str, Made]]:
        random, f16, bf16, f32, f64 = (
            Random(2),
            *(DTYPES[name] for name in ("float16", "bfloat16", "float32", "float64")),
        )
        grid, cube = Grid((16, 24), (8, 24)), Grid((4, 6, 8), (2, 6, 8))
        wild = Random(3, wild=True)
        for name in ("bool", "int16", "uint64", "float8_e4m3fn", "float16", "bfloat16", "float32", "float64"):
            yield f"sparse/{name}", wild.sparse(DTYPES[name], grid, Index())
        yield "sparse/far apart", wild.sparse(bf16, Grid((4, 3000), (2, 3000)), Index("gaps", 8), density=0.002)
        yield "sparse/bitmap", wild.sparse(bf16, grid, Index("bitmap"), density=0.6)
        for pattern in ((1, 2), (2, 4), (4, 8), (3, 4)):
            yield f"sparse/{pattern[0]} of {pattern[1]}", wild.sparse(bf16, grid, Index("pattern", 0, pattern))
        for block in ((1, 4), (4, 1), (4, 4), (8, 24)):
            yield f"sparse/blocks of {block[0]} x {block[1]}", wild.sparse(bf16, grid, Index(), block)
        yield "sparse/blocks in a bitmap", wild.sparse(bf16, cube, Index("bitmap"), (2, 4))
        yield "sparse/blocks in a pattern", random.sparse(f32, grid, Index("pattern", 0, (2, 4)), (1, 2), "codes")
        yield (
            "sparse/blocks far apart",
            random.sparse(f32, Grid((8, 4800), (8, 2400)), Index("gaps", 8), (1, 8), density=0.01),
        )
        yield "sparse/empty", wild.sparse(bf16, grid, Index(), density=0.0)
        yield "sparse/full", wild.sparse(bf16, grid, Index(), density=1.0)
        for values in ("planes", "codes", "groups"):
            yield f"sparse/values in {values}", random.sparse(bf16, grid, Index(), (1, 1), values)
        for kind in (f16, bf16):
            yield f"sparse/values of {kind.name}", random.sparse(f32, grid, Index(), values_dtype=kind)

        for dtype in (f16, bf16, f32, f64):
            yield f"lowrank/{dtype.name}", random.lowrank(dtype, grid, 5)
        yield "lowrank/quantized", random.lowrank(bf16, grid, 3, "groups", "codes", ("float32", "bfloat16"), 0.5)
        yield "lowrank/planes", random.lowrank(bf16, cube, 4, "planes", "raw", ("bfloat16", "float16"), -2.0)
        yield "tucker/core", random.tucker(bf16, cube, [2, 3, 4], ["raw", "groups", "planes"], "codes")
        yield (
            "tucker/core with an axis of its own",
            random.tucker(f32, cube, [3, 6, 2], ["raw", None, "raw"], "raw", "float16"),
        )
        yield "tucker/outer products", random.tucker(f32, cube, [4, 4, 4], ["raw", "codes", "raw"], None)

        def product() -> Made:
            return random.lowrank(bf16, grid, 2, kinds=("float16", "float16"))

        thin, codes = random.sparse(bf16, grid, Index(), density=0.05), random.codes(bf16, grid)
        added = random.sparse(bf16, grid, Index(), (1, 1), "codes", density=0.1)
        yield "combined/codes, replaced", combined([codes, thin], ["replace"])
        yield "combined/product and codes", combined([product(), codes], ["add"])
        yield "combined/product and sparse", combined([product(), added], ["add"])
        yield "combined/four", combined([random.groups(bf16, grid), product(), added, thin], ["add", "add", "replace"])
        double = random.sparse(f64, grid, Index("bitmap"), values_dtype=f32)
        yield (
            "combined/float64",
            combined([random.codes(f64, grid), random.lowrank(f64, grid, 2), double], ["add", "add"]),
        )
        yield "combined/sparse and codes", combined([thin, codes], ["add"])
        yield "combined/sparse, replaced", combined([thin, random.sparse(bf16, grid, Index("bitmap"))], ["replace"])
        yield "combined/raw and planes", combined([random.raw(bf16, grid), random.planes(bf16, grid)], ["add"])
        yield "combined/xor", combined([wild.planes(bf16, grid), wild.raw(bf16, grid)], ["xor"])
        yield "combined/plus", combined([wild.raw(DTYPES["int64"], grid), wild.planes(DTYPES["int64"], grid)], ["plus"])

        below = Made(Base(bf16, grid, 0, "w", base_sha256), {})
        yield "base/alone", below
        yield "base/xor", combined([below, wild.planes(bf16, grid)], ["xor"])
        yield "base/plus", combined([below, wild.raw(bf16, grid)], ["plus"])
        yield "base/adapter", combined([below, product()], ["add"])
        yield "base/adapter and sparse", combined([below, product(), thin], ["add", "replace"])


class Ggml:
    """Blocks of any bits of every type of ggml, in one chunk and in several; and a GGUF file with these, as it was laid out."""

    FILE = "blocks.gguf"

    def __init__(self) -> None:
        self._random = np.random.default_rng(8)
        self._tensors: dict[str, TensorEntry] = {}
        self.file = b""

    def write(self) -> bytes:
        sink, namer = _Sink(), Namer()
        writer = ArchiveWriter(sink)
        for name, kind, shape, chunk in self._cases():
            part, node = Ggml_.new(kind, Grid(shape, chunk)), namer.node(name)
            n = int(np.prod(shape)) // kind.size
            blocks = self._random.integers(0, 256, (n, kind.nbytes), dtype=np.uint8)
            digest = hashlib.sha256()
            for start, of, chunks in part.grid.row_blocks():
                first = start // kind.size
                encoded = encode(part, blocks[first : first + int(np.prod(of)) // kind.size], of, chunks)
                digest.update(encoded.words.tobytes())
                for payload in encoded.payloads:
                    writer.write_chunk(f"{node}/{payload.path}", payload.data, aligned=payload.plain)
            spec = TensorSpec(name, part.dtype, shape)
            self._tensors[name] = TensorEntry(spec, node, digest.hexdigest(), part)
            self.file += bytes(-len(self.file) % 32) + blocks.tobytes()
        first = self._tensors["Q4_0"]
        self._tensors["again"] = TensorEntry(
            replace(first.spec, name="again"), namer.node("again"), first.sha256, same_as=first.node
        )
        writer.write_document("layouts/0", self._layout())
        layouts = (Layout(self.FILE, "layouts/0", format="spliced", kind="gguf"),)
        model = ModelDocument(self._tensors, {"general.architecture": "none"}, (), layouts, "tools/freeze.py")
        for node, doc in model.documents():
            writer.write_document(f"{node}/{DOCUMENT}" if node else DOCUMENT, dump(doc))
        writer.finish()
        return bytes(sink.data)

    def expected(self) -> dict[str, dict[str, object]]:
        return {
            name: {"dtype": entry.spec.dtype.name, "shape": list(entry.spec.shape), "sha256": entry.sha256}
            for name, entry in self._tensors.items()
        }

    def _cases(self) -> Iterator[tuple[str, BlockType, tuple[int, ...], tuple[int, ...]]]:
        """(name, type, shape, chunk shape)"""
        for kind in TYPES.values():
            yield kind.name, kind, (2, kind.size), (2, kind.size)
        yield "chunks", TYPES["Q4_1"], (5, 160), (2, 64)
        yield "chunks of blocks of blocks", TYPES["Q3_K"], (3, 768), (2, 512)
        yield "one axis", TYPES["Q8_0"], (96,), (64,)
        yield "three axes", TYPES["Q5_K"], (2, 3, 256), (1, 2, 256)
        yield "nothing", TYPES["Q6_K"], (0, 256), (1, 256)

    def _layout(self) -> bytes:
        """Of a file that is a short text, and then all blocks."""
        entries, literals, at = {}, b"not a header", 12
        for name, entry in self._tensors.items():
            if isinstance(entry.part, Ggml_):
                gap = -(at - 12) % 32
                literals, at = literals + bytes(gap), at + gap
                about = {
                    "dtype": "float32",
                    "shape": list(entry.spec.shape),
                    "offset": at,
                    "form": entry.part.kind.name,
                }
                entries[name] = about
                if name == "Q4_0":
                    entries["again"] = about
                at += entry.part.kind.row_nbytes(entry.spec.size)
        self.file = b"not a header" + self.file
        assert at == len(self.file)
        doc = json.dumps({"nbytes": at, "tensors": entries}).encode()
        return len(doc).to_bytes(8, "little") + doc + literals


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["lossless", "quantized", "parts", "ggml"])
    what = parser.parse_args().what
    folder = GOLDEN / f"{FORMAT}-{what}"
    model = {"lossless": Lossless, "quantized": Quantized, "parts": Parts, "ggml": Ggml}[what]()
    data = model.write()
    folder.mkdir(parents=True)  # FileExistsError is the point: history is not rewritten
    (folder / "model.mz").write_bytes(data)
    if isinstance(model, Parts):
        (folder / Parts.BASE).write_bytes(model.base)
    if isinstance(model, Ggml):
        (folder / Ggml.FILE).write_bytes(model.file)
    (folder / "expected.json").write_text(json.dumps(model.expected(), indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Forging: a valid model, taken apart into documents and payloads, to be put together again with a fault in it.

Everything that the fault does not concern stays right, checksums included, so that a test meets the check it is about.
"""

import hashlib
import io
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import zstandard
from parts import Made, Random, combined
from samples import weights

import mzstore
from mzstore.archive import CENTRAL, END, ArchiveWriter
from mzstore.arrays import Array
from mzstore.documents import Asset, ModelDocument, TensorEntry, dump
from mzstore.dtypes import DTYPES, DType
from mzstore.encode import Choice, payloads
from mzstore.encodings import Coding, Part
from mzstore.encodings.combined import Combined
from mzstore.encodings.planes import N_RANKS, Planes
from mzstore.encodings.positions import Index
from mzstore.encodings.quantized import Blocked, Quantized, blocked_array, packed_array
from mzstore.encodings.raw import Raw, constant_array
from mzstore.encodings.sparse import Sparse, raw_values
from mzstore.frameworks import as_words
from mzstore.grid import Grid
from mzstore.interleave import Fields, tops
from mzstore.payload import seal
from mzstore.selection import resolve
from spec import reference

ROOT = "zarr.json"


@dataclass
class Forged:
    """The keys of a container and their contents; documents as JSON objects, or as bytes that may be no JSON."""

    documents: dict[str, Any] = field(default_factory=dict)
    payloads: dict[str, bytes] = field(default_factory=dict)
    values: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def root(self) -> dict[str, Any]:
        return self.documents[ROOT]

    @property
    def about(self) -> dict[str, Any]:
        """What the root says about the model."""
        return self.root["attributes"]["mzstore"]

    @property
    def nodes(self) -> dict[str, Any]:
        """The documents of all nodes, which is what a reader reads."""
        return self.root["consolidated_metadata"]["metadata"]

    def tensor(self, node: str) -> dict[str, Any]:
        return self.nodes[node]["attributes"]["mzstore"]

    def part(self, node: str) -> dict[str, Any]:
        return self.tensor(node)["parts"][0]

    def contents(self) -> dict[str, bytes]:
        docs = {key: doc if isinstance(doc, bytes) else dump(doc) for key, doc in self.documents.items()}
        return self.payloads | docs

    def archive(self) -> bytes:
        file = io.BytesIO()
        writer = ArchiveWriter(file)
        for key, data in self.contents().items():
            if key.endswith(ROOT):
                writer.write_document(key, data)
            else:
                writer.write_chunk(key, data, aligned=False)
        writer.finish()
        return file.getvalue()

    def tree(self, folder: Path) -> Path:
        for key, data in self.contents().items():
            path = folder / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return folder


def forge(
    tensors: dict[str, tuple[np.ndarray, Callable[[Any, np.ndarray], Part]]],
    assets: dict[str, bytes] | None = None,
    lossy: dict[str, tuple[np.ndarray, Part, dict[str, bytes]]] | None = None,
) -> Forged:
    """Each tensor stored by the part that its function makes of (spec, words); ``lossy``: by this part and these bodies."""
    made, entries = Forged(), {}
    for name, (array, part_of) in tensors.items():
        spec, words = as_words(name, array)
        part = part_of(spec, words)
        digest = hashlib.sha256(words.tobytes()).hexdigest()
        entry = TensorEntry(spec, name, digest, part)
        entries[name] = entry
        made.values[name] = array
        constant = isinstance(part, Raw) and part.constant
        blocks = [(0, (1,) * words.ndim, [(0,) * words.ndim])] if constant else part.grid.row_blocks()
        for start, shape, chunks in blocks:
            block = words.reshape(-1)[start : start + int(np.prod(shape))].reshape(shape)
            for chunk in chunks:
                for payload in payloads(Choice(part, Coding()), block, chunk, spec.dtype):
                    made.payloads[f"{name}/{payload.path}"] = payload.data
    for name, (array, lossy_part, bodies) in (lossy or {}).items():
        spec, words = as_words(name, array)
        entries[name] = TensorEntry(spec, name, hashlib.sha256(words.tobytes()).hexdigest(), lossy_part, lossy={})
        made.values[name] = array
        made.payloads |= {f"{name}/{key}": seal(zstandard.compress(body)) for key, body in bodies.items()}
    listed = []
    for path, content in (assets or {}).items():
        key = f"assets/{path}"
        listed.append(Asset(path, key, len(content), hashlib.sha256(content).hexdigest()))
        made.payloads[key] = content
    for key, doc in ModelDocument(entries, {"made": "by forge"}, tuple(listed)).documents():
        # Through JSON, so that no two places of the documents share an object that a test will edit.
        made.documents[f"{key}/{ROOT}" if key else ROOT] = json.loads(dump(doc))
    return made


def planes(chunk_shape: tuple[int, ...], top_bits: int = 8, **options: Any) -> Callable[[Any, np.ndarray], Part]:
    """``planes`` in chunks of ``chunk_shape``; with ``symbols=True`` or ``ranks=top field of rank 0``."""

    def part(spec: Any, words: np.ndarray) -> Planes:
        fields = Fields(spec.dtype.word_bits, top_bits, spec.dtype.exponent_bits > 0)
        grid = Grid(spec.word_shape, chunk_shape)
        if not options:
            return Planes.new(spec.dtype, grid, fields)
        count = np.bincount(tops(words.reshape(-1), fields), minlength=1 << top_bits)
        if "ranks" in options:
            first = options["ranks"]
            escapes = int(count[:first].sum() + count[first + N_RANKS :].sum())
            return Planes.new(spec.dtype, grid, fields, ranks=first, escapes=escapes)
        return Planes.new(spec.dtype, grid, fields, present=count > 0)

    return part


def raw(chunk_shape: tuple[int, ...], *, zstd: bool = False) -> Callable[[Any, np.ndarray], Part]:
    return lambda spec, words: Raw(
        spec.dtype, spec.word_shape, Array(spec.word_shape, chunk_shape, spec.dtype.disk, zstd)
    )


def constant(spec: Any, words: np.ndarray) -> Part:
    return Raw(spec.dtype, spec.word_shape, constant_array(spec.dtype, spec.word_shape))


def narrow(chunk_shape: tuple[int, ...], name: str) -> Callable[[Any, np.ndarray], Part]:
    dtype = DTYPES[name]
    return lambda spec, words: Raw(dtype, spec.word_shape, Array(spec.word_shape, chunk_shape, dtype.disk, False))


def quantized() -> dict[str, tuple[np.ndarray, Part, dict[str, bytes]]]:
    """Tensors of quantized and sparse parts that have every component between them, by name: values, part, bodies."""
    codes = np.arange(24).reshape(4, 6) % 16
    grid = Grid((4, 6), (2, 6))
    part = Quantized(DTYPES["bfloat16"], grid, 16, packed_array(grid, 1, 2), 2, zero_point=8, scales=(0.5,))
    packed = (codes[:, ::2] | codes[:, 1::2] << 4).astype(np.uint8)
    bodies = {"c/0/0": packed[:2].tobytes(), "c/1/0": packed[2:].tobytes()}
    made = {"codes": (((codes - 8) * 0.5).astype(DTYPES["bfloat16"].numpy), part, bodies)}

    codes, grid, block = np.arange(32).reshape(4, 8), Grid((4, 8), (4, 4)), (1, 2)
    scales, zeros = np.arange(1, 17, dtype=np.float16).reshape(4, 4), np.arange(16, dtype=np.uint8).reshape(4, 4)
    blocked = [Blocked(block, dtype, blocked_array(grid, block, dtype)) for dtype in ("float16", "uint8")]
    dtype = DTYPES["float32"]
    part = Quantized(dtype, grid, 100, packed_array(grid, 1, 1), zero_point=blocked[1], scales=(blocked[0],))
    values = (codes - zeros.repeat(2, 1)).astype(np.float32) * scales.astype(np.float32).repeat(2, 1)
    values[1, 2], values[3, 0], values[0, 5] = 1e9, -1e9, 0.3
    bodies = {
        "2.positions/c/0/0/0": bytes([6, 5, 255]), "2.positions/c/0/1/0": bytes([1, 255, 255]),
        "2.values/c/0/0/0": np.array([1e9, -1e9], np.float32).tobytes(),
        "2.values/c/0/1/0": np.array([0.3, 0], np.float32).tobytes(),
    }  # fmt: skip
    for i in (0, 1):
        bodies[f"codes/c/0/{i}"] = codes[:, 4 * i : 4 * i + 4].astype(np.uint8).tobytes()
        bodies[f"scale/c/0/{i}"] = scales[:, 2 * i : 2 * i + 2].tobytes()
        bodies[f"zero_point/c/0/{i}"] = zeros[:, 2 * i : 2 * i + 2].tobytes()
    made["grouped"] = (
        values,
        Combined((part, Sparse.new(dtype, grid, Index(), 3, raw_values(dtype, grid, 2))), ("replace",)),
        bodies,
    )

    codes, grid, book = np.array([[0, 299, 7], [150, 2, 2]]), Grid((2, 6), (2, 6)), np.arange(600, dtype=np.float32)
    part = Quantized(
        dtype, grid, 300, packed_array(grid, 2, 1), 1, 1, packed_array(grid, 2, 8),
        codebook=Array((300, 2), (300, 2), "float32", zstd=True),
    )  # fmt: skip
    low = np.packbits((codes & 1).astype(np.uint8), axis=1, bitorder="little")
    bodies = {
        "codes/c/0/0": (codes >> 1).astype(np.uint8).tobytes(), "low/c/0/0": low.tobytes(),
        "codebook/c/0/0": book.tobytes(),
    }  # fmt: skip
    made["pairs"] = (book.reshape(300, 2)[codes].reshape(2, 6), part, bodies)
    return made


def bodies_of(made: Made) -> dict[str, bytes]:
    """By their keys below the tensor's node."""
    part, keys = made.part, {}
    for component in part.components:
        front = "" if len(part.components) == 1 else f"{component.name}/"
        for chunk, body in made.bodies[component.name].items():
            keys[front + component.array.chunk_key(chunk)] = body
    return keys


def _lossy(made: Made) -> tuple[np.ndarray, Part, dict[str, bytes]]:
    """(values, part, bodies), which ``forge`` takes."""
    part = made.part
    _, words = written(made, part.grid.shape)
    return words.view(part.dtype.numpy), part, bodies_of(made)


def written(made: Made, shape: tuple[int, ...]) -> tuple[Forged, np.ndarray]:
    """(a model of one tensor ``w``, which the part gives, but for its digest; its words as mzstore reads them)."""
    part = made.part
    found = forge({}, lossy={"w": (np.zeros(shape, part.dtype.numpy), part, bodies_of(made))})
    return found, read_words(found)


def forged(made: Made, dtype: DType, shape: tuple[int, ...]) -> tuple[Forged, np.ndarray]:
    """As ``written``; the reference reader reads the same, or this fails."""
    assert made.part.dtype is dtype
    found, words = written(made, shape)
    digest = hashlib.sha256(words.tobytes()).hexdigest()
    for doc in (found.tensor("w"), found.documents["w/zarr.json"]["attributes"]["mzstore"]):
        doc["sha256"] = digest
    expected = reference.read(found.archive()).tensors["w"].words  # which compares the digest as well
    assert expected.tobytes() == words.tobytes()
    return found, words


def read_words(model: Forged, dtype: Any = None) -> np.ndarray:
    with mzstore.open(model.archive()) as opened:
        tensor = opened["w"]._in(dtype)
        spec = tensor._entry.spec
        words = np.empty(spec.word_shape, spec.dtype.word)
        tensor._fill(tensor._word_spans(resolve(..., spec.shape)), words, 1)
        return words


def parts() -> dict[str, tuple[np.ndarray, Part, dict[str, bytes]]]:
    """Tensors of parts with others inside, and of parts that are combined, by name: values, part, bodies."""
    bf16, f32, random = DTYPES["bfloat16"], DTYPES["float32"], Random(5)
    grid, row, cube = Grid((4, 8), (2, 8)), Grid((1, 600), (1, 600)), Grid((2, 3, 4), (2, 3, 4))
    product = random.lowrank(bf16, grid, 2, "groups", "raw", scale=0.5)
    outliers = random.sparse(bf16, grid, Index(), density=0.2)
    made = {
        "gaps": random.sparse(bf16, grid, Index(), density=0.3),
        "far": random.sparse(f32, row, Index("gaps", 8), density=0.01),
        "bitmap": random.sparse(f32, grid, Index("bitmap"), values="codes", density=0.5),
        "pattern": random.sparse(bf16, grid, Index("pattern", 0, (2, 4)), values="planes"),
        "blocks": random.sparse(f32, grid, Index(), (2, 2), "groups"),
        "product": product,
        "core": random.tucker(f32, cube, [2, 3, 2], ["raw", None, "codes"], "raw"),
        "outer": random.tucker(bf16, cube, [2, 2, 2], ["raw"] * 3, None, "float16"),
        "sum": combined([random.codes(bf16, grid), product, outliers], ["add", "replace"]),
        "xor": combined([random.planes(bf16, grid), random.raw(bf16, grid)], ["xor"]),
    }
    return {name: _lossy(each) for name, each in made.items()}


def every_kind() -> Forged:
    """A model with a tensor of every kind of part, in more than one chunk where that is possible."""
    ranked = weights((4, 6), 2, "bfloat16")
    ranked.view(np.uint16)[1, 2] = 0x7F12  # far from all others: an escape
    made = forge(
        {
            "raw": (np.arange(10, dtype=np.uint8), raw((4,))),
            "zstd": (np.zeros((2, 300), np.int32) + np.arange(2, dtype=np.int32)[:, None], raw((1, 300), zstd=True)),
            "constant": (np.full((3, 3), 7, np.int32), constant),
            "narrow": (weights((3, 4), 1, "bfloat16").astype(np.float32), narrow((3, 4), "bfloat16")),
            "planes": (weights((4, 6), 3, "bfloat16"), planes((2, 6))),
            "symbols": (weights((3, 4), 4), planes((3, 4), 10, symbols=True)),
            "ranked": (ranked, planes((2, 6), ranks=112)),
            "four": (np.arange(7, dtype=np.uint8).view(ml_dtypes.uint4), raw((4,))),
        },
        {"config.json": b'{"layers": 1}'},
        quantized() | parts(),
    )
    about = made.tensor("constant")
    tied = {"dtype": about["dtype"], "shape": about["shape"], "sha256": about["sha256"], "same_as": "constant"}
    made.nodes["tied"] = {"zarr_format": 3, "node_type": "group", "attributes": {"mzstore": tied}}
    made.values["tied"] = made.values["constant"]
    return made


def resealed(payload: bytes, change: Callable[[bytearray], Any]) -> bytes:
    """``payload`` with its body changed and its checksum right again."""
    body = bytearray(payload[:-4])
    new = change(body)
    return seal(bytes(body if new is None else new))


def patched_end(archive: bytes, **fields: int) -> bytes:
    """``archive`` with other values in its last record: disk, first_disk, here, count, nbytes, start, comment."""
    names = ("signature", "disk", "first_disk", "here", "count", "nbytes", "start", "comment")
    at = len(archive) - END.size
    values = dict(zip(names, END.unpack_from(archive, at), strict=True)) | fields
    return archive[:at] + END.pack(*values.values())


def patched_entry(archive: bytes, index: int, *, name: bytes | None = None, **fields: int) -> bytes:
    """``archive`` with other values in an entry of its directory; a new name must have the length of the old."""
    names = (
        "signature", "made_by", "version", "flags", "method", "time", "date", "crc32", "stored", "nbytes",
        "n_name", "n_extra", "n_comment", "disk", "internal", "external", "header",
    )  # fmt: skip
    *_, start, _ = END.unpack_from(archive, len(archive) - END.size)
    at = start
    for _ in range(index):
        n_name, n_extra, n_comment = struct.unpack_from("<HHH", archive, at + 28)
        at += CENTRAL.size + n_name + n_extra + n_comment
    values = dict(zip(names, CENTRAL.unpack_from(archive, at), strict=True)) | fields
    data = bytearray(archive)
    CENTRAL.pack_into(data, at, *values.values())
    if name is not None:
        data[at + CENTRAL.size :][: len(name)] = name
        data[at + CENTRAL.size : at + CENTRAL.size + len(name)] = name
    return bytes(data)

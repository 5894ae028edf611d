"""Manifest: several archives as one model, and a checkpoint that is made of them. The door between its JSON and objects.

A manifest names archives, which are immutable, and for every tensor the pieces that it is made of: boxes, each the whole of a
tensor in one of the archives. It is written last, once, and only if there is none: then the model exists (FORMAT.md section 10).
"""

import hashlib
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from mzstore.arrays import integers
from mzstore.documents import Asset, Layout, asset_json, assets_of, dump, layout_json, layouts_of, load
from mzstore.dtypes import DTYPES
from mzstore.errors import CorruptError, FormatError, UnsupportedError
from mzstore.nodes import ASSETS, is_node_name
from mzstore.tensors import TensorSpec, check_name

File = TypeVar("File", Asset, Layout)

FORMAT = 1
SUFFIX = ".json"
MANIFESTS = "manifests"  # the folder of those of a store of checkpoints
MAX_NBYTES = 1 << 28
MAX_ARCHIVES = 1 << 16
MAX_PIECES = 1 << 22  # of all tensors
MAX_UP = 2  # folders: checkpoints share archives that lie beside their manifests

LEAST_STEPS, STEPS = 1 << 20, 100  # of the search for overlaps; these for each piece

_MANIFEST = re.compile(rf"{MANIFESTS}/(0|[1-9][0-9]{{0,18}})\.json")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SAVE_ID = re.compile(r"[0-9a-z-]{8,64}")


def manifest_key(step: int) -> str:
    """Where a store of checkpoints has the manifest of ``step``."""
    return f"{MANIFESTS}/{step}.json"


def steps_in(keys: Iterable[str]) -> list[int]:
    """The steps that keys of a store are the manifests of, in order."""
    found = (_MANIFEST.fullmatch(key) for key in keys)
    return sorted(int(match[1]) for match in found if match)


@dataclass(frozen=True, slots=True)
class ArchiveRef:
    """One archive: where it lies, relative to the manifest, and what it is. ValueError for a path that leads elsewhere.

    bases  which of the manifest's archives it refers to for values; they stand before it
    """

    path: str
    nbytes: int
    sha256: str
    bases: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        *folders, name = self.path.split("/")
        up = next((i for i, folder in enumerate(folders) if folder != ".."), len(folders))
        if up > MAX_UP or not all(is_node_name(part) for part in (*folders[up:], name)):
            raise ValueError(f"the path of an archive is {self.path!r:.200}, which is none below the manifest's folder")


@dataclass(frozen=True, slots=True)
class Piece:
    """A box of a tensor: from ``offsets`` on, of ``shape``. It is the whole of tensor ``name`` in archive ``archive``.

    sha256  the digest of its values there; empty if the manifest does not tell
    origin  the same for pieces that were made of the same values in the same way, by a recipe; empty if nobody knows
    """

    archive: int
    name: str
    offsets: tuple[int, ...]
    shape: tuple[int, ...]
    sha256: str = ""
    origin: str = ""


@dataclass(frozen=True, slots=True)
class ManifestTensor:
    """A tensor and its pieces, which tile it. One that exists is valid; ValueError otherwise."""

    spec: TensorSpec
    pieces: tuple[Piece, ...]

    def __post_init__(self) -> None:
        shape = self.spec.shape
        if self.spec.dtype.packed and any(piece.offsets[-1] % 2 for piece in self.pieces if piece.offsets):
            raise ValueError("a piece begins at the second value of a byte")
        for piece in self.pieces:
            if len(piece.offsets) != len(shape) or len(piece.shape) != len(shape):
                raise ValueError(f"a piece at {piece.offsets} of {piece.shape} in a tensor of {shape}")
            if any(o + n > extent for o, n, extent in zip(piece.offsets, piece.shape, shape, strict=True)):
                raise ValueError(f"a piece at {piece.offsets} of {piece.shape} reaches beyond a tensor of {shape}")
        held = sum(math.prod(piece.shape) for piece in self.pieces)
        if held != self.spec.size:
            raise ValueError(f"the pieces have {held} values of {self.spec.size}")
        if self.spec.size and (twice := overlap(self.pieces)):
            raise ValueError(f"the pieces at {twice[0].offsets} and {twice[1].offsets} overlap")


@dataclass(frozen=True, slots=True)
class Manifest:
    """One that exists is valid; ValueError otherwise.

    checkpoint  what makes a checkpoint of the model: step, state, metrics; see mzstore.checkpoints
    assets, layouts  of the model, each with the index of the archive that it lies in, as an asset there
    """

    save_id: str
    archives: tuple[ArchiveRef, ...]
    tensors: Mapping[str, ManifestTensor]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: Mapping[str, Any] | None = None
    writer: str = ""
    assets: tuple[tuple[int, Asset], ...] = ()
    layouts: tuple[tuple[int, Layout], ...] = ()

    def __post_init__(self) -> None:
        if not _SAVE_ID.fullmatch(self.save_id):
            raise ValueError(f"save id {self.save_id!r:.100}")
        for i, archive in enumerate(self.archives):
            if any(base >= i for base in archive.bases):
                raise ValueError(f"archive {i} refers to {max(archive.bases)}, which does not stand before it")
        used = {piece.archive for tensor in self.tensors.values() for piece in tensor.pieces}
        used |= {archive for archive, _ in (*self.assets, *self.layouts)}
        if used and max(used) >= len(self.archives):
            raise ValueError(f"archive {max(used)}, where there are {len(self.archives)}")

    def to_bytes(self) -> bytes:
        """The document, always the same for the same manifest."""
        doc: dict[str, Any] = {
            "mzstore_manifest": FORMAT,
            "save_id": self.save_id,
            "writer": self.writer,
            "archives": [_archive_json(each) for each in self.archives],
            "tensors": {name: _tensor_json(name, tensor) for name, tensor in self.tensors.items()},
        }
        if self.metadata:
            doc["metadata"] = dict(self.metadata)
        if self.checkpoint is not None:
            doc["checkpoint"] = dict(self.checkpoint)
        if self.assets:
            doc["assets"] = [asset_json(asset) | {"archive": archive} for archive, asset in self.assets]
        if self.layouts:
            doc["layouts"] = [layout_json(layout) | {"archive": archive} for archive, layout in self.layouts]
        data = dump(doc)
        return data[:-1] + _ending(data)

    @classmethod
    def parse(cls, data: bytes, *, where: str) -> "Manifest":
        """Raises FormatError, UnsupportedError or CorruptError."""
        doc = load(data, where=where, clause="manifest-1")
        version = doc.get("mzstore_manifest")
        if type(version) is not int or version < 1:
            raise FormatError(
                f"'mzstore_manifest' is {version!r:.100}, not an integer >= 1", where=where, clause="manifest-1"
            )
        if version > FORMAT:
            raise UnsupportedError(
                f"a manifest of format {version}, this mzstore reads up to {FORMAT}; upgrade mzstore",
                where=where,
                clause="manifest-1",
            )
        if "digest" in doc:
            size = len(_ending(b""))
            if data[-size:] != _ending(data[:-size] + b"}"):
                raise CorruptError(
                    "the manifest does not have the digest that it states; restore it from a copy, or, if it was edited, take the "
                    "member 'digest' out of it",
                    where=where,
                    clause="manifest-7",
                )
        archives, tensors = doc.get("archives"), doc.get("tensors")
        metadata, checkpoint = doc.get("metadata", {}), doc.get("checkpoint")
        assets, layouts = doc.get("assets", []), doc.get("layouts", [])
        if not isinstance(archives, list) or len(archives) > MAX_ARCHIVES or not isinstance(tensors, dict):
            raise FormatError("'archives' is no list, or 'tensors' no object", where=where, clause="manifest-2")
        if not isinstance(metadata, dict) or not isinstance(checkpoint, dict | None):
            raise FormatError("'metadata' or 'checkpoint' is no object", where=where, clause="manifest-2")
        if (
            sum(len(t["pieces"]) for t in tensors.values() if isinstance(t, dict) and isinstance(t.get("pieces"), list))
            > MAX_PIECES
        ):
            raise FormatError(f"more than {MAX_PIECES} pieces", where=where, clause="manifest-2")
        try:
            return cls(
                str(doc.get("save_id")),
                tuple(_archive(each) for each in archives),
                {name: _tensor(name, each) for name, each in tensors.items()},
                metadata,
                checkpoint,
                str(doc.get("writer", "")),
                _placed(assets_of(assets, where=where), assets),
                _placed(layouts_of(layouts, where=where, folder=ASSETS), layouts),
            )
        except ValueError as error:
            raise FormatError(str(error), where=where, clause="manifest-3") from error


def _placed(files: Sequence[File], docs: Sequence[Mapping[str, Any]]) -> tuple[tuple[int, File], ...]:
    """``files``, which ``docs`` describe, each with the archive that it lies in."""
    return tuple(zip(integers([doc.get("archive") for doc in docs]), files, strict=True))


def _ending(data: bytes) -> bytes:
    """What the document ``data`` ends with instead of its bracket, when its digest is added."""
    return b',"digest":"' + hashlib.sha256(data).hexdigest().encode() + b'"}'


def overlap(pieces: Sequence[Piece]) -> tuple[Piece, Piece] | None:
    """Two of ``pieces`` that have a value in common, if there are such.

    Boxes are swept along one axis after the other, so that a grid of n pieces takes some n steps. ValueError for boxes that lie so
    irregularly that it takes many times more.
    """
    boxes = [piece for piece in pieces if 0 not in piece.shape]
    return _Sweep(LEAST_STEPS + STEPS * len(boxes)).along(boxes, 0)


class _Sweep:
    def __init__(self, steps: int) -> None:
        self._steps = steps  # left

    def along(self, boxes: Sequence[Piece], axis: int) -> tuple[Piece, Piece] | None:
        """Of ``boxes``, which have values in common on all axes before ``axis``."""
        if len(boxes) < 2:
            return None
        if axis == len(boxes[0].shape):
            return boxes[0], boxes[1]
        active: list[Piece] = []
        for low, group in itertools.groupby(
            sorted(boxes, key=lambda box: box.offsets[axis]), lambda box: box.offsets[axis]
        ):
            active = [box for box in active if box.offsets[axis] + box.shape[axis] > low]
            active += group
            self._steps -= len(active)
            if self._steps < 0:
                raise ValueError(f"{len(boxes)} pieces that lie on no grid")
            if found := self.along(active, axis + 1):
                return found
        return None


def _archive_json(archive: ArchiveRef) -> dict[str, Any]:
    doc: dict[str, Any] = {"path": archive.path, "nbytes": archive.nbytes, "sha256": archive.sha256}
    return doc | {"bases": list(archive.bases)} if archive.bases else doc


def _tensor_json(name: str, tensor: ManifestTensor) -> dict[str, Any]:
    return {
        "dtype": tensor.spec.dtype.name,
        "shape": list(tensor.spec.shape),
        "pieces": [_piece_json(name, tensor.spec.shape, piece) for piece in tensor.pieces],
    }


def _piece_json(name: str, shape: tuple[int, ...], piece: Piece) -> dict[str, Any]:
    """What goes without saying is left out: the tensor's own name, and that a piece is all of it."""
    doc: dict[str, Any] = {"archive": piece.archive}
    if piece.name != name:
        doc["name"] = piece.name
    if piece.shape != shape:
        doc |= {"offsets": list(piece.offsets), "shape": list(piece.shape)}
    if piece.sha256:
        doc["sha256"] = piece.sha256
    if piece.origin:
        doc["origin"] = piece.origin
    return doc


def _archive(doc: object) -> ArchiveRef:
    match doc:
        case {"path": str(path), "nbytes": int(nbytes), "sha256": str(sha256), **rest} if (
            type(nbytes) is int and nbytes >= 0 and _DIGEST.fullmatch(sha256) and path
        ):
            return ArchiveRef(path, nbytes, sha256, integers(rest.get("bases", [])))
    raise ValueError(f"archive {doc!r:.200} has no path, size or digest")


def _tensor(name: str, doc: object) -> ManifestTensor:
    match doc:
        case {"dtype": str(dtype), "shape": shape, "pieces": list(pieces)} if dtype in DTYPES:
            check_name(name)
            spec = TensorSpec(name, DTYPES[dtype], integers(shape))
            return ManifestTensor(spec, tuple(_pieces(name, spec.shape, pieces)))
    raise ValueError(f"tensor {name!r:.200} has no known dtype, no shape or no pieces")


def _pieces(name: str, shape: tuple[int, ...], docs: Sequence[object]) -> Iterator[Piece]:
    for doc in docs:
        match doc:
            case {"archive": int(archive), **rest} if type(archive) is int and archive >= 0:
                own, sha256, origin = rest.get("name", name), rest.get("sha256", ""), rest.get("origin", "")
                if not isinstance(own, str):
                    raise ValueError(f"the name of a piece of {name!r:.200} is not a string")
                if not isinstance(sha256, str) or (sha256 and not _DIGEST.fullmatch(sha256)):
                    raise ValueError(f"the digest of a piece of {name!r:.200} is {sha256!r:.100}")
                if not isinstance(origin, str) or (origin and not _DIGEST.fullmatch(origin)):
                    raise ValueError(f"the origin of a piece of {name!r:.200} is {origin!r:.100}")
                offsets = integers(rest.get("offsets", [0] * len(shape)))
                yield Piece(archive, own, offsets, integers(rest.get("shape", list(shape))), sha256, origin)
            case _:
                raise ValueError(f"a piece of {name!r:.200} is {doc!r:.200}, which has no archive")

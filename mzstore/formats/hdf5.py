"""HDF5 files, as Keras writes weights and models; and Keras archives, ZIP files of such a file and a configuration.

They are opened by h5py. Tensors are the datasets of numbers, by their paths. What lies in the file as its words do is read from there, and the file
comes back byte for byte; h5py reads the rest: chunks, compressed ones, big-endian numbers. Nothing outside of the file is read: external links and soft links
are not followed, external and virtual datasets are refused.
"""

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, cast

import numpy as np

from mzstore import documents, dtypes
from mzstore.dtypes import DTYPES, DType
from mzstore.errors import CorruptError, FormatError, MzError, UnsupportedError
from mzstore.formats import spliced, zips
from mzstore.formats.base import Candidate, FileFormat, Opening
from mzstore.formats.files import BlobFile, Copied, Copies, PlainTensor, Readable, check_unchanged
from mzstore.sources import ModelSource, TensorSource
from mzstore.storage import Blob
from mzstore.tensors import TensorSpec

KIND, KERAS = "hdf5", "keras"
MAGIC = b"\x89HDF\r\n\x1a\n"
WEIGHTS, CONFIG, METADATA = "model.weights.h5", "config.json", "metadata.json"  # of a Keras archive
MAX_OBJECTS = 1 << 20
MAX_CONFIG_NBYTES = 16 << 20
MAX_CHUNK_NBYTES = 256 << 20  # which is decompressed whole
MOST_COMPRESSED = 1100  # deflate reaches 1032
NEVER_TOO_LARGE = 64 << 20
MAX_STORED_TWICE = (
    16 << 20
)  # of datasets whose bytes are not their words, and are kept so that the file can be made again
REMOTE_BUFFER = 64 << 10
CONFIGURATION = ("model_config", "training_config", "keras_version", "backend")  # attributes of the root
BFLOAT16 = np.dtype("V2")  # as Keras before version 3 names it: not at all


class _Section(Protocol):
    """What h5py reads: a Blob, or a part of one."""

    @property
    def url(self) -> str: ...

    @property
    def nbytes(self) -> int: ...

    @property
    def local(self) -> bool: ...

    def read(self, start: int, stop: int, /) -> memoryview: ...


@dataclass(frozen=True, slots=True)
class _Part:
    """A file that lies in ``data`` from byte ``start`` on."""

    url: str
    nbytes: int
    local: bool
    data: Readable
    start: int = 0

    def read(self, start: int, stop: int, /) -> memoryview:
        return self.data.read(self.start + start, self.start + stop)


class _File(BlobFile):
    """Remembers what went wrong, of which HDF5 tells no more than that a read failed."""

    error: MzError | None = None

    def readinto(self, out: Any) -> int:
        try:
            return super().readinto(out)
        except MzError as error:
            self.error = error
            raise OSError(str(error)) from error


@dataclass(frozen=True, slots=True)
class Hdf5:
    """An open file. ``base`` is where in the blob of the source it begins, None if that holds it compressed."""

    file: Any  # h5py.File
    read_from: _File
    url: str
    blob: Blob
    base: int | None

    @contextmanager
    def errors(self, error: type[MzError], doing: str) -> Iterator[None]:
        """What HDF5 raises becomes ``error``; what the storage raised, that again."""
        try:
            yield
        except (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, MemoryError) as problem:
            if self.read_from.error:
                raise self.read_from.error from None
            text = str(problem).strip("'\"") or type(problem).__name__
            raise error(f"cannot {doing}: {text[:300]}", where=self.url) from problem


@dataclass(frozen=True, slots=True)
class Dataset:
    """A TensorSource of values that h5py reads."""

    spec: TensorSpec
    opened: Hdf5
    path: str

    def read(self, start: int, stop: int) -> np.ndarray:
        dtype, parts = self.spec.dtype, self.spec.dtype.parts
        first, last = start // parts, -(-stop // parts)
        out = np.empty(last - first, dtype.numpy)
        at = 0
        with self.opened.errors(CorruptError, f"read dataset {self.path!r}"):
            dataset = self.opened.file[self.path]
            for slab in slabs(self.spec.shape, first, last):
                values = np.asarray(dataset[slab])
                if values.dtype.kind == "V":
                    values = values.view(dtype.numpy)
                out[at : at + values.size] = values.reshape(-1)
                at += values.size
        return out.view(dtype.word)[start - first * parts :][: stop - start]


def slabs(shape: Sequence[int], start: int, stop: int) -> Iterator[tuple[int | slice, ...]]:
    """Elements ``[start, stop)`` in row-major order as boxes: those before whole rows, whole rows, those behind."""
    if start >= stop:
        return
    if len(shape) < 2:
        yield (slice(start, stop),) if shape else ()
        return
    row = math.prod(shape[1:])
    first, last = -(-start // row), stop // row
    if start // row == stop // row:
        for rest in slabs(shape[1:], start % row, stop % row):
            yield (start // row, *rest)
        return
    if start % row:
        for rest in slabs(shape[1:], start % row, row):
            yield (start // row, *rest)
    if first < last:
        yield (slice(first, last),)
    for rest in slabs(shape[1:], 0, stop % row):
        yield (last, *rest)


def recognizes(file: Candidate) -> bool:
    return MAGIC in (file.start[:8], file.start[512:520])


def recognizes_keras(file: Candidate) -> bool:
    return WEIGHTS in file.members and CONFIG in file.members


def open_file(file: Candidate, opening: Opening) -> ModelSource:
    return _source(file, KIND, _open(file.blob, file.blob, 0, opening), {})


def open_keras(file: Candidate, opening: Opening) -> ModelSource:
    blob, members = file.blob, file.need_members()
    if not recognizes_keras(file):
        raise FormatError(f"not a Keras archive: it has no {CONFIG}, or no {WEIGHTS}", where=blob.url)
    metadata = {}
    for key, name in (("config", CONFIG), ("metadata", METADATA)):
        if name in members:
            metadata[key] = _json(zips.content(blob, members[name], MAX_CONFIG_NBYTES))
    member, url = members[WEIGHTS], f"{blob.url}, {WEIGHTS!r}"
    if not member.deflated:
        part = _Part(url, member.nbytes, blob.local, blob, member.start)
        return _source(file, KERAS, _open(part, blob, member.start, opening), metadata)

    inflated = _Part(url, member.nbytes, True, Copied(Copies.of(opening.stack), partial(zips.blocks, blob, member)))
    return _source(file, KERAS, _open(inflated, blob, None, opening), metadata, member.stored_nbytes)


def _open(section: _Section, blob: Blob, base: int | None, opening: Opening) -> Hdf5:
    try:
        import h5py
    except ImportError as error:
        raise UnsupportedError(
            "HDF5 files are read by h5py: pip install 'mzstore[keras]'", where=section.url
        ) from error
    raw = _File(cast(Blob, section))
    buffered = raw if section.local else io.BufferedReader(raw, REMOTE_BUFFER)
    opened = Hdf5(None, raw, section.url, blob, base)
    with opened.errors(FormatError, "open it as an HDF5 file"):
        file = h5py.File(buffered, "r")
    opening.stack.callback(file.close)
    return Hdf5(file, raw, section.url, blob, base)


def _source(
    file: Candidate, kind: str, opened: Hdf5, metadata: Mapping[str, Any], stored_twice: int = 0
) -> ModelSource:
    found = _Datasets(opened)
    found.walk()
    metadata = dict(metadata) | found.configuration()
    plain = [tensor for tensor in found.tensors if isinstance(tensor, PlainTensor)]
    others = [tensor.spec for tensor in found.tensors if not isinstance(tensor, PlainTensor)]
    notes = found.notes()
    stored_twice += found.stored_twice
    layout = None
    if stored_twice <= MAX_STORED_TWICE:
        layout = spliced.layout(file.blob, file.name, kind, plain, others)
    if layout is None:
        what = "compressed, or stored in another order," if stored_twice > MAX_STORED_TWICE else "not of tensors"
        notes.append(f"too much of the file is {what} to keep it beside the tensors: it cannot be made again")
    return ModelSource(
        found.tensors,
        sum(tensor.spec.nbytes for tensor in found.tensors),
        {KERAS: metadata} if metadata else {},
        layouts=[layout] if layout else (),
        notes=notes,
        check_unchanged=partial(check_unchanged, (file.blob,)),
    )


class _Datasets:
    """What an open file holds."""

    def __init__(self, opened: Hdf5) -> None:
        self.opened = opened
        self.tensors: list[TensorSource] = []
        self.stored_twice = 0
        self.not_numbers: list[str] = []
        self.links: list[str] = []

    def walk(self) -> None:
        import h5py

        file = self.opened.file
        names: list[str] = []

        def visit(name: str) -> None:
            if len(names) == MAX_OBJECTS:
                raise RuntimeError(f"it has more than {MAX_OBJECTS:,} objects")
            names.append(name)

        with self.opened.errors(FormatError, "list its objects"):
            file.visit(visit)  # each object once; it follows no links
            for name in ["/", *names]:
                try:
                    found = file[name]
                except TypeError:  # a named type, or of a type that h5py has not
                    self.not_numbers.append(name)
                    continue
                if isinstance(found, h5py.Dataset):
                    self._add(name, found)
                elif isinstance(found, h5py.Group):
                    self.links += [
                        f"{name}/{key}".lstrip("/")
                        for key in found
                        if isinstance(found.get(key, getlink=True), (h5py.SoftLink, h5py.ExternalLink))
                    ]

    def _add(self, name: str, dataset: Any) -> None:
        import h5py

        about, where = dataset.id.get_create_plist(), self.opened.url
        dtype = self._dtype(dataset)
        if dtype is None or dataset.shape is None:
            self.not_numbers.append(name)
            return
        if about.get_external_count() or about.get_layout() == h5py.h5d.VIRTUAL:
            text = f"dataset {name!r} has its values in other files, which are not read: copy it into this one"
            raise UnsupportedError(text, where=where)
        try:
            spec = TensorSpec(name, dtype, tuple(int(extent) for extent in dataset.shape))
        except ValueError as error:
            raise FormatError(str(error), where=where) from error
        stored, offset = dataset.id.get_storage_size(), dataset.id.get_offset()
        base = self.opened.base
        if base is not None and offset is not None and stored == spec.nbytes and _as_words(dataset, h5py):
            if base + offset + stored > self.opened.blob.nbytes:
                raise FormatError(f"dataset {name!r} ends behind the file", where=where)
            self.tensors.append(PlainTensor(spec, self.opened.blob, base + offset))
            return
        if spec.nbytes > MOST_COMPRESSED * stored + NEVER_TOO_LARGE:
            raise FormatError(
                f"dataset {name!r} would have {spec.nbytes:,} bytes, of which {stored:,} are in the file", where=where
            )
        if about.get_layout() == h5py.h5d.CHUNKED:
            if math.prod(about.get_chunk()) * dtype.numpy.itemsize > MAX_CHUNK_NBYTES:
                text = f"dataset {name!r} has chunks of more than {MAX_CHUNK_NBYTES:,} bytes: write it in smaller ones"
                raise UnsupportedError(text, where=where)
            for i in range(about.get_nfilters()):
                code, _, _, label = about.get_filter(i)
                if not h5py.h5z.filter_avail(code):
                    text = f"dataset {name!r} is compressed by filter {code} ({label.decode(errors='replace')[:50]}), which h5py has not"
                    raise UnsupportedError(text, where=where)
        self.tensors.append(Dataset(spec, self.opened, name))
        self.stored_twice += stored

    def _dtype(self, dataset: Any) -> DType | None:
        """None for what is no number: text, references, compounds."""
        try:
            numpy = dataset.dtype
        except TypeError:
            return None
        if numpy.kind == "V" and not numpy.fields and numpy.subdtype is None:  # opaque bytes; Keras says what they are
            label = dataset.attrs.get("dtype", "bfloat16" if numpy == BFLOAT16 and self._is_keras() else None)
            found = DTYPES.get(label) if isinstance(label, str) else None
            return found if found and not found.packed and found.numpy.itemsize == numpy.itemsize else None
        if numpy.kind not in "biufc":
            return None
        try:
            return dtypes.of(numpy.newbyteorder("<"))
        except ValueError:
            return None

    def _is_keras(self) -> bool:
        return "keras_version" in self.opened.file.attrs

    def configuration(self) -> dict[str, Any]:
        """What Keras says of the model in attributes."""
        found: dict[str, Any] = {}
        with self.opened.errors(FormatError, "read its attributes"):
            attributes = self.opened.file.attrs
            for name in CONFIGURATION:
                value = attributes.get(name) if name in attributes else None
                if isinstance(value, bytes):
                    value = value.decode(errors="replace")
                if isinstance(value, str) and len(value) <= MAX_CONFIG_NBYTES:
                    found[name] = _json(value.encode(errors="replace")) if name.endswith("_config") else value
        return found

    def notes(self) -> list[str]:
        return [
            f"{len(names):,} {what}: {', '.join(map(repr, names[:5]))}{', ...' if len(names) > 5 else ''}"
            for what, names in (
                ("objects that are no tensors of numbers are not read", self.not_numbers),
                ("links are not followed", self.links),
            )
            if names
        ]


def _as_words(dataset: Any, h5py: Any) -> bool:
    """Whether the bytes are those of the type in memory, little endian, and nothing has been done to them."""
    numpy = dataset.dtype
    if numpy.kind == "V":
        return bool(dataset.id.get_type().get_class() == h5py.h5t.OPAQUE)
    return bool(dataset.id.get_type().equal(h5py.h5t.py_create(numpy.newbyteorder("<"), logical=True)))


def _json(data: bytes) -> Any:
    """A configuration; as text where it is not strict JSON, such as with NaN."""
    try:
        return documents.load(data, where="", clause="")
    except MzError:
        return data.decode(errors="replace")


FORMAT = FileFormat(KIND, (".h5", ".hdf5"), recognizes, open_file)
KERAS_FORMAT = FileFormat(KERAS, (".keras",), recognizes_keras, open_keras)

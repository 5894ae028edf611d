"""PyTorch's own files, read without PyTorch and without executing anything in them.

A file is a pickle that refers to storages: since PyTorch 1.6 members of a ZIP file, uncompressed and aligned; before that they
follow the pickle. Of the pickle only plain values are taken, and the few functions by which tensors are rebuilt stand for functions
of this module. https://github.com/pytorch/pytorch/blob/main/torch/serialization.py, torch/csrc/jit/docs/serialization.md
"""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from reprlib import repr as short  # a pickle's list may hold itself many times over
from types import MappingProxyType
from typing import Any

from mzstore.dtypes import DTYPES, DType
from mzstore.errors import CorruptError, FormatError, UnsupportedError
from mzstore.formats import pickles, spliced, zips
from mzstore.formats.base import Candidate, FileFormat, Opening
from mzstore.formats.files import BlobFile, Copied, Copies, PlainTensor, Strided, Swapped, check_unchanged, is_row_major
from mzstore.formats.pickles import Global, Instance
from mzstore.formats.state_dict import STORAGES, element_nbytes, write_new
from mzstore.sources import ModelSource, TensorSource
from mzstore.storage import Blob
from mzstore.tensors import MAX_NDIM, TensorSpec

KIND = "pytorch"
MAGIC = 0x1950A86A20F9469CFC6C  # of files before PyTorch 1.6, pickled in front
PROTOCOL = 1001
START = b"\x8a\x0a" + MAGIC.to_bytes(10, "little")
MAX_DEPTH = 64  # of containers in each other
MAX_LEAVES = 1 << 23
MAX_METADATA_NBYTES = 1 << 20
MAX_SPAN_NBYTES = 1 << 28  # that is read at once of a tensor that does not lie in order

DTYPES_OF_STORAGES: Mapping[str, str] = MappingProxyType(
    {storage: dtype for dtype, storage in STORAGES.items()}
    | {"QInt8Storage": "int8", "QUInt8Storage": "uint8", "QInt32Storage": "int32"}
)
STORAGE_MODULES = ("torch.", "torch.cuda.", "torch.storage.")
UNTYPED = "UntypedStorage"
TORCH_DTYPES = MappingProxyType({f"torch.{d.torch}": d for d in DTYPES.values() if d.torch} | {
    "torch.qint8": DTYPES["int8"], "torch.quint8": DTYPES["uint8"], "torch.qint32": DTYPES["int32"],
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Storage:
    """What a pickle says of a storage: ``dtype`` is None if it holds bytes; ``count`` of elements, ``first`` is where a view begins."""

    key: str
    dtype: DType | None
    count: int
    first: int = 0


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor in a pickle: all counts are of elements."""

    storage: Storage
    dtype: DType
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Where the bytes of a storage are: ``nbytes`` from ``start`` on. ``plain``: they are those of the file."""

    data: Blob | Copied
    start: int
    nbytes: int
    plain: bool


def recognizes(file: Candidate) -> bool:
    return _root(file.members) is not None or START in file.start[:32]


def _root(members: Mapping[str, object]) -> str | None:
    """What stands before the names of all members; None if it is no file of PyTorch."""
    for name in members:
        if name == "data.pkl" or (name.endswith("/data.pkl") and name.count("/") == 1):
            return name.removesuffix("data.pkl")
    return None


def open_file(file: Candidate, opening: Opening) -> ModelSource:
    """Tensors of nested dicts, lists and objects; their names are the keys on the way, joined by dots."""
    reader = _Pickle(file.blob.url)
    copies = Copies.of(opening.stack)
    if START in file.start[:32]:
        value, places, big = _read_legacy(file.blob, reader)
    elif file.start[: len(zips.MAGIC)] == zips.MAGIC and (root := _root(file.need_members())) is not None:
        value, places, big = _read_zip(file, root, reader, copies)
    else:
        raise FormatError(
            "not a file of PyTorch: neither a ZIP file with a data.pkl nor an older one", where=file.blob.url
        )
    found = _Found(file.blob.url, file.name.rpartition(".")[0] or "tensor")
    found.walk(value)
    sources = [_source(name, tensor, places, copies, big, file.blob.url) for name, tensor in found.tensors.items()]
    layouts, more = spliced.keep(file.blob, file.name, KIND, sources)
    return ModelSource(
        sources,
        sum(source.spec.nbytes for source in sources),
        found.metadata,
        layouts=layouts,
        notes=[*found.notes, *more],
        check_unchanged=partial(check_unchanged, (file.blob,)),
    )


def plain_value(file: Candidate) -> Any:
    """A value without tensors, as JSON has it. Raises UnsupportedError for one that it has not."""
    where = file.blob.url
    root = _root(file.need_members())
    if root is None:
        raise FormatError("not a file of PyTorch: it has no data.pkl", where=where)
    data = zips.content(file.blob, file.members[f"{root}data.pkl"], pickles.MAX_NBYTES)
    value = _Pickle(where).load(io.BytesIO(data), where, "data")
    try:
        return _Budget(MAX_METADATA_NBYTES).plain(value, MAX_DEPTH)
    except ValueError as error:
        raise UnsupportedError(str(error), where=where) from error


def _read_zip(
    file: Candidate, root: str, reader: "_Pickle", copies: Copies
) -> tuple[Any, Callable[[Storage], Place], bool]:
    blob, members = file.blob, file.members

    def small(name: str) -> bytes | None:
        member = members.get(root + name)
        return zips.content(blob, member, pickles.MAX_NBYTES) if member else None

    def value_of(name: str) -> Any:
        data = small(name)
        return None if data is None else reader.load(io.BytesIO(data), f"{blob.url}, {name}", name.removesuffix(".pkl"))

    big = (small("byteorder") or b"little").strip() == b"big"
    value = value_of("data.pkl")
    # TorchScript keeps tensors that its code refers to beside the module's own.
    if constants := value_of("constants.pkl"):
        value = _Module(value, list(constants) if isinstance(constants, (list, tuple)) else [])

    def place(storage: Storage) -> Place:
        member = members.get(root + storage.key)
        if member is None:
            raise CorruptError(f"the storage {storage.key!r} is missing", where=blob.url)
        if member.deflated:
            return Place(Copied(copies, partial(zips.blocks, blob, member)), 0, member.nbytes, False)
        return Place(blob, member.start, member.nbytes, True)

    return value, place, big


def _read_legacy(blob: Blob, reader: "_Pickle") -> tuple[Any, Callable[[Storage], Place], bool]:
    file = io.BufferedReader(BlobFile(blob), 1 << 16)
    where = blob.url
    head = [pickles.load(file, lambda name: None, where=where) for _ in range(3)]
    if head[0] != MAGIC or head[1] != PROTOCOL:
        raise UnsupportedError(
            f"a file of PyTorch with protocol {short(head[1])}, where {PROTOCOL} is known", where=where
        )
    big = isinstance(head[2], dict) and head[2].get("little_endian") is False
    value = reader.load(file, where, "")
    keys = pickles.load(file, lambda name: None, where=where)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise FormatError("no list of storages behind the pickle", where=where)
    places: dict[str, Place] = {}
    for key in keys:
        root = reader.roots.get(key)
        head_ = file.read(8)
        count = int.from_bytes(head_, "big" if big else "little")
        if root is None or root.dtype is None or len(head_) < 8 or count != root.count:
            raise FormatError(f"the storage {key!r:.100} is not as the pickle says", where=where)
        start, nbytes = file.tell(), count * element_nbytes(root.dtype)
        if start + nbytes > blob.nbytes:
            raise FormatError(f"the storage {key!r:.100} ends behind the file", where=where)
        places[key] = Place(blob, start, nbytes, True)
        file.seek(nbytes, io.SEEK_CUR)

    def place(storage: Storage) -> Place:
        if storage.key not in places:
            raise CorruptError(f"the storage {storage.key!r:.100} is missing", where=where)
        return places[storage.key]

    return value, place, big


@dataclass
class _Pickle:
    """What the names in pickles of PyTorch stand for."""

    url: str
    roots: dict[str, Storage] = field(default_factory=dict)
    _folder: str = ""
    _names: dict[str, pickles.Make] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from_type = self._from_type
        self._names = {
            "collections.OrderedDict": _pairs,
            "collections.defaultdict": lambda *_: {},
            "__builtin__.set": list, "builtins.set": list, "__builtin__.frozenset": list, "builtins.frozenset": list,
            "argparse.Namespace": lambda *_: Instance("argparse.Namespace"),
            "_codecs.encode": _bytes,
            "torch.Size": tuple,
            "torch.device": lambda *args: ":".join(map(str, args)),
            "torch.serialization._get_layout": str,
            "torch._utils._rebuild_tensor": self._tensor,
            "torch._utils._rebuild_tensor_v2": self._tensor_v2,
            "torch._utils._rebuild_tensor_v3": self._tensor_v3,
            "torch._utils._rebuild_parameter": lambda data, *_: data,
            "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
            "torch._utils._rebuild_qtensor": self._quantized,
            "torch._utils._rebuild_sparse_tensor": self._sparse,
            "torch._tensor._rebuild_from_type": from_type,
            "torch._tensor._rebuild_from_type_v2": from_type,
            "torch.jit._pickle.restore_type_tag": lambda value, *_: value,
            **{f"torch.jit._pickle.build_{kind}list": lambda value: value for kind in ("int", "double", "bool", "tensor")},
        }  # fmt: skip

    def load(self, file: pickles.Stream, where: str, folder: str) -> Any:
        """A pickle whose storages are members of ``folder``."""
        self._folder = f"{folder}/" if folder else ""
        return pickles.load(file, self._find, self._persistent, where=where)

    def _find(self, name: str) -> Global | None:
        if name in self._names:
            return Global(name, self._names[name])
        if name.startswith("__torch__."):
            return Global(name, lambda *_: Instance(name))
        kind = name.rpartition(".")[2]
        if (kind in DTYPES_OF_STORAGES or kind == UNTYPED) and name[: -len(kind)] in STORAGE_MODULES:
            return Global(name)
        types = ("torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer")
        named = ("torch.per_tensor_affine", "torch.per_channel_affine", "torch.per_channel_affine_float_qparams")
        if name in TORCH_DTYPES or name in types or name in named:
            return Global(name)
        return None

    def _persistent(self, about: Any) -> Storage:
        match about:
            case ("storage", Global(name=name), str(key), _, int(count), *view):
                pass
            case _:
                raise FormatError(f"a storage is said to be {short(about)}", where=self.url)
        kind = name.rpartition(".")[2]
        if kind not in DTYPES_OF_STORAGES and kind != UNTYPED:
            raise UnsupportedError(f"a storage of {name!r:.100}", where=self.url)
        if type(count) is not int or not 0 <= count < 1 << 62:
            raise FormatError(f"a storage of {count!r:.40} elements", where=self.url)
        dtype = DTYPES[DTYPES_OF_STORAGES[kind]] if kind in DTYPES_OF_STORAGES else None
        key = self._folder + key
        known = self.roots.setdefault(key, Storage(key, dtype, count))
        if (known.dtype, known.count) != (dtype, count):
            raise FormatError(f"the storage {key!r:.100} is said to be of two kinds", where=self.url)
        match view:
            case [(str(), int(first), int(size))] if first >= 0 and size >= 0 and first + size <= count:
                return Storage(key, dtype, size, first)
            case [] | [None]:
                return known
        raise FormatError(f"a view of a storage is said to be {short(view)}", where=self.url)

    def _tensor(self, storage: Any, offset: Any, shape: Any, strides: Any, dtype: DType | None = None) -> Tensor:
        good = (
            isinstance(storage, Storage)
            and all(isinstance(axes, (tuple, list)) for axes in (shape, strides))
            and all(type(n) is int and 0 <= n < 1 << 62 for n in (offset, *shape, *strides))
            and len(shape) == len(strides) <= MAX_NDIM
        )
        if not good:
            text = "a tensor is rebuilt of something else than a storage, and an offset, shape and strides that are integers >= 0"
            raise FormatError(text, where=self.url)
        dtype = dtype or storage.dtype
        if dtype is None:
            raise FormatError("a tensor of bytes has no dtype", where=self.url)
        count = storage.count if storage.dtype else storage.count // element_nbytes(dtype)
        end = offset + 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        if storage.dtype not in (None, dtype) or (0 not in shape and end > count):
            raise FormatError(
                f"a tensor of shape {shape!r:.100} ends at element {end} of a storage of {count}", where=self.url
            )
        return Tensor(storage, dtype, offset, tuple(shape), tuple(strides))

    def _tensor_v2(
        self, storage: Any, offset: Any, shape: Any, strides: Any, _grad: Any, _hooks: Any, bits: Any = None
    ) -> Tensor:
        if bits:
            raise UnsupportedError(
                f"a tensor that is kept as {short(bits)}: save what tensor.resolve_conj() gives", where=self.url
            )
        return self._tensor(storage, offset, shape, strides)

    def _tensor_v3(
        self, storage: Any, offset: Any, shape: Any, strides: Any, _grad: Any, _hooks: Any, dtype: Any, bits: Any = None
    ) -> Tensor:
        if bits or not isinstance(dtype, Global) or dtype.name not in TORCH_DTYPES:
            raise UnsupportedError(f"a tensor of {short(dtype)}, kept as {short(bits)}", where=self.url)
        return self._tensor(storage, offset, shape, strides, TORCH_DTYPES[dtype.name])

    def _quantized(self, storage: Any, offset: Any, shape: Any, strides: Any, how: Any, *_: Any) -> dict[str, Any]:
        """Codes, and what belongs to them: quantized tensors of PyTorch have few readers beside it."""
        codes = self._tensor(storage, offset, shape, strides)
        match how:
            case (Global(name=scheme), scale, zero_point, *axis):
                about: dict[str, Any] = {"int_repr": codes, "qscheme": scheme, "scale": scale, "zero_point": zero_point}
                return about | ({"axis": axis[0]} if axis else {})
        raise UnsupportedError(f"a quantized tensor with {short(how)}", where=self.url)

    def _sparse(self, layout: Any, data: Any) -> dict[str, Any]:
        match layout, data:
            case "torch.sparse_coo", (Tensor() as indices, Tensor() as values, (tuple() | list()) as shape, *_):
                return {"layout": layout, "indices": indices, "values": values, "shape": list(shape)}
        raise UnsupportedError(
            f"a sparse tensor of layout {short(layout)}; only torch.sparse_coo is read", where=self.url
        )

    def _from_type(self, function: Any, _type: Any, arguments: Any, *_: Any) -> Any:
        if not isinstance(function, Global) or function.make is None or not isinstance(arguments, tuple):
            raise UnsupportedError(f"a tensor that {short(function)} makes", where=self.url)
        return function.make(*arguments)


def _bytes(text: Any, encoding: Any) -> bytes:
    """Bytes, as pickles of protocol 2 have them."""
    if encoding != "latin1" or not isinstance(text, str):
        raise TypeError("bytes that are no text of latin1")
    return text.encode("latin1")


def _pairs(items: Any = ()) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for key, value in items:
        if not isinstance(key, pickles.SCALARS):
            raise TypeError("a key is no scalar")
        found[key] = value
    return found


@dataclass(frozen=True, slots=True)
class _Module:
    """A module of TorchScript, and the tensors that its code refers to."""

    value: Any
    constants: Sequence[Any]


@dataclass
class _Found:
    """What there is in a value: tensors by name, metadata, and notes of what is neither."""

    url: str
    alone: str  # the name of a tensor that is all of the value
    tensors: dict[str, Tensor] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    _leaves: int = 0
    _metadata_left: int = MAX_METADATA_NBYTES

    def walk(self, value: Any) -> None:
        if isinstance(value, _Module):
            self._walk("", value.value, 0, keep=False)
            for i, constant in enumerate(value.constants):
                self._walk(f"CONSTANTS.c{i}", constant, 0, keep=False)
        else:
            self._walk("", value, 0, keep=not (isinstance(value, Instance) and value.name.startswith("__torch__.")))

    def _walk(self, name: str, value: Any, depth: int, *, keep: bool) -> None:
        self._leaves += 1
        if depth > MAX_DEPTH or self._leaves > MAX_LEAVES:
            text = f"more than {MAX_DEPTH} containers in each other, or more than {MAX_LEAVES} values"
            raise FormatError(text, where=self.url)
        if isinstance(value, Tensor):
            name = name or self.alone
            if name in self.tensors:
                raise UnsupportedError(f"two tensors would be called {name!r:.200}", where=self.url)
            self.tensors[name] = value
            return
        inner = _inner(value)
        if inner is not None and _has_tensor(inner, depth, self):
            for key, each in inner:
                self._walk(f"{name}.{key}" if name else str(key), each, depth + 1, keep=keep)
        elif keep:
            self._keep(name, value)

    def _keep(self, name: str, value: Any) -> None:
        if not name and not value:
            return
        try:
            budget = _Budget(self._metadata_left)
            plain = budget.plain(value, MAX_DEPTH)
        except ValueError as error:
            self.notes.append(f"{name or 'what is beside the tensors'!s:.200} is not kept as metadata: {error}")
            return
        self._metadata_left = budget.left
        if name:
            self.metadata[name] = plain
        else:
            self.metadata |= plain if isinstance(plain, dict) else {"value": plain}

    def count(self) -> None:
        self._leaves += 1
        if self._leaves > MAX_LEAVES:
            raise FormatError(f"more than {MAX_LEAVES} values", where=self.url)


def _inner(value: Any) -> list[tuple[Any, Any]] | None:
    if isinstance(value, Instance):
        value = value.state
    if isinstance(value, dict):
        return list(value.items())
    return list(enumerate(value)) if isinstance(value, (list, tuple)) else None


def _has_tensor(items: list[tuple[Any, Any]], depth: int, found: _Found) -> bool:
    if depth > MAX_DEPTH:
        raise FormatError(f"more than {MAX_DEPTH} containers in each other", where=found.url)
    for _, value in items:
        found.count()
        if isinstance(value, Tensor):
            return True
        inner = _inner(value)
        if inner is not None and _has_tensor(inner, depth + 1, found):
            return True
    return False


@dataclass
class _Budget:
    """How many bytes of metadata there may be yet: a pickle can refer to a value as often as it likes."""

    left: int

    def plain(self, value: Any, depth: int) -> Any:
        """``value`` as JSON has it. Raises ValueError for what it has not."""
        self.left -= 8 + (len(value) if isinstance(value, (str, bytes)) else 0)
        if depth == 0 or self.left < 0:
            raise ValueError("it is nested too deep, or too long")
        if isinstance(value, Global):
            return value.name
        if isinstance(value, str):
            value.encode()
            return value
        if value is None or isinstance(value, (bool, int, float)):
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{value} is no number of JSON")
            if isinstance(value, int) and value.bit_length() > 1024:
                raise ValueError("a number that is too large")
            return value
        if isinstance(value, Instance):
            return self.plain(value.state, depth - 1)
        if isinstance(value, (list, tuple)):
            return [self.plain(each, depth - 1) for each in value]
        if isinstance(value, dict):
            found = {self.plain(str(key), depth): self.plain(each, depth - 1) for key, each in value.items()}
            if len(found) != len(value):
                raise ValueError("two keys are the same as text")
            return found
        raise ValueError(f"it is of type {type(value).__name__}")


def _source(
    name: str, tensor: Tensor, find: Callable[[Storage], Place], copies: Copies, big: bool, url: str
) -> TensorSource:
    dtype, size = tensor.dtype, element_nbytes(tensor.dtype)
    shape = tensor.shape
    if dtype.packed:  # PyTorch counts pairs
        if not shape:
            raise UnsupportedError(f"tensor {name!r:.200} of {dtype.name} has no axis", where=url)
        shape = (*shape[:-1], 2 * shape[-1])
    try:
        spec = TensorSpec(name, dtype, shape)
    except ValueError as error:
        raise FormatError(str(error), where=url) from error
    place = find(tensor.storage)
    if place.nbytes < (tensor.storage.first + tensor.storage.count) * (
        element_nbytes(tensor.storage.dtype) if tensor.storage.dtype else 1
    ):
        raise FormatError(f"tensor {name!r:.200} has a storage that is shorter than it should be", where=url)
    start = place.start + (tensor.storage.first + tensor.offset) * size
    swapped = big and dtype.word.itemsize > 1
    if spec.nbytes == 0:
        start = place.start
    if is_row_major(tensor.shape, tensor.strides):
        return Swapped(spec, place.data, start) if swapped else PlainTensor(spec, place.data, start)
    if spec.nbytes > (1 << 26) + 2 * place.nbytes:
        raise UnsupportedError(
            f"tensor {name!r:.200} repeats few values {spec.size:,} times: save a copy of it", where=url
        )
    parts = dtype.parts
    strides = (*(s * parts for s in tensor.strides), *([1] if parts > 1 else []))
    largest = max(zip(strides, spec.word_shape, strict=True), key=lambda each: each[0] if each[1] > 1 else -1)[0]
    span = sum((n - 1) * s for n, s in zip(spec.word_shape, strides, strict=True) if s != largest)
    if span * dtype.word.itemsize > MAX_SPAN_NBYTES:
        raise UnsupportedError(f"tensor {name!r:.200} lies scattered over its storage: save a copy of it", where=url)
    return Strided(spec, place.data, start, strides, copies, swapped)


FORMAT = FileFormat(KIND, (".pt", ".pth", ".bin"), recognizes, open_file, sure=False, write=write_new)

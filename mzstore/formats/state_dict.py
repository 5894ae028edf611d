"""New files of PyTorch: a state dict, front to back, written without PyTorch.

It is what ``torch.save`` writes: a ZIP file of a pickle and of storages that begin at multiples of 64 bytes, so that
``torch.load(weights_only=True, mmap=True)`` takes them from the file. Bytes are checked by CRC-32, which stand behind each member and in the
directory, because they are known only when it has been written.
"""

import struct
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from mzstore.dtypes import DType
from mzstore.formats import zips
from mzstore.formats.files import row_major
from mzstore.sources import ModelSource, TensorSource, blocks
from mzstore.storage import Sink
from mzstore.tensors import TensorSpec

# What PyTorch calls storages of a dtype. Others are of bytes, and the tensor states the dtype.
STORAGES: Mapping[str, str] = MappingProxyType(
    {
        "float32": "FloatStorage", "float64": "DoubleStorage", "float16": "HalfStorage", "bfloat16": "BFloat16Storage",
        "int64": "LongStorage", "int32": "IntStorage", "int16": "ShortStorage", "int8": "CharStorage", "uint8": "ByteStorage",
        "bool": "BoolStorage", "complex64": "ComplexFloatStorage", "complex128": "ComplexDoubleStorage",
    }
)  # fmt: skip
NOT_IN_TORCH = ("int4", "uint4")
ALIGNMENT = 64
VERSION = b"3\n"  # of the container, as PyTorch has it
ROOT = "archive"


def element_nbytes(dtype: DType) -> int:
    """Bytes of an element as PyTorch counts them: two 4-bit values are one."""
    return max(dtype.bits, 8) // 8


def write_new(sink: Sink, model: ModelSource, tensors: Mapping[str, TensorSource], done: Callable[[int], None]) -> None:
    """``torch.load`` gives a dict of all ``tensors``. Metadata has no place there."""
    specs = [tensor.spec for tensor in tensors.values()]
    for spec in specs:
        if spec.dtype.name in NOT_IN_TORCH or (spec.dtype.packed and (not spec.shape or spec.shape[-1] % 2)):
            raise ValueError(f"tensor {spec.name!r}: PyTorch has no {spec.dtype.name} of shape {list(spec.shape)}")
    with zips.Writer(sink, ALIGNMENT) as archive:
        archive.write(f"{ROOT}/data.pkl", pickled(specs))
        archive.write(f"{ROOT}/byteorder", b"little")
        for i, tensor in enumerate(tensors.values()):
            with archive.open(f"{ROOT}/data/{i}", tensor.spec.nbytes) as member:
                for block in blocks(tensor):
                    member.write(block.view(np.uint8).data)
                    done(block.nbytes)
        archive.write(f"{ROOT}/version", VERSION)


def pickled(specs: list[TensorSpec]) -> bytes:
    """An OrderedDict of tensors; tensor i lies in storage i."""
    items = b"".join(_string(spec.name) + _tensor(spec, str(i)) for i, spec in enumerate(specs))
    return b"\x80\x02" + EMPTY + b"(" + items + b"u" + b"."


def _global(name: str) -> bytes:
    module, _, inner = name.rpartition(".")
    return b"c" + f"{module}\n{inner}\n".encode()


EMPTY = _global("collections.OrderedDict") + b")R"


def _tensor(spec: TensorSpec, key: str) -> bytes:
    dtype = spec.dtype
    shape = (*spec.shape[:-1], spec.shape[-1] // 2) if dtype.packed else spec.shape
    known = dtype.name in STORAGES
    storage = _global(f"torch.{STORAGES[dtype.name]}" if known else "torch.storage.UntypedStorage")
    count = spec.nbytes // element_nbytes(dtype) if known else spec.nbytes
    persistent = b"(" + _string("storage") + storage + _string(key) + _string("cpu") + _integer(count) + b"tQ"
    about = _integer(0) + _integers(shape) + _integers(row_major(shape)) + b"\x89" + EMPTY
    if known:
        return _global("torch._utils._rebuild_tensor_v2") + b"(" + persistent + about + b"tR"
    kind = _global(f"torch.{dtype.torch}")
    return _global("torch._utils._rebuild_tensor_v3") + b"(" + persistent + about + kind + b"tR"


def _string(text: str) -> bytes:
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _integer(value: int) -> bytes:
    if value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(9, "little")
    return b"\x8a" + bytes([len(data)]) + data


def _integers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(_integer, values)) + b"t"

"""Frameworks: memory of NumPy and PyTorch that decoders can write words into. Imports PyTorch only when asked for it."""

import functools
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from mzstore.dtypes import DTYPES, DType, of_array
from mzstore.tensors import TensorSpec

if TYPE_CHECKING:
    import torch

Framework = Literal["numpy", "torch"]
_WORDS = {1: "uint8", 2: "int16", 4: "int32", 8: "int64"}  # of PyTorch, which has few operations on unsigned ones


def check_framework(framework: str) -> None:
    if framework not in get_args(Framework):
        raise ValueError(f"framework {framework!r} is none of {', '.join(get_args(Framework))}")


def allocate(spec: TensorSpec, framework: Framework) -> tuple[np.ndarray, Callable[[], Any]]:
    """(words to fill, what gives the finished array or tensor) for one tensor."""
    if framework == "numpy":
        words = np.empty(spec.word_shape, spec.dtype.word)
        return words, lambda: spec.dtype.from_words(words, spec.shape)
    import torch

    memory = torch.empty(spec.nbytes, dtype=torch.uint8)
    words = memory.numpy().view(spec.dtype.word).reshape(spec.word_shape)

    def finish() -> "torch.Tensor":
        if spec.dtype.name in ("int4", "uint4"):  # torch has names for these types, but no values of them
            values = spec.dtype.from_words(words, spec.shape).view(np.int8 if spec.dtype.name == "int4" else np.uint8)
            return torch.from_numpy(values)
        shape = spec.word_shape if spec.dtype.packed else spec.shape
        return memory.view(getattr(torch, spec.dtype.torch)).reshape(shape)

    return words, finish


def to_torch(array: np.ndarray) -> "torch.Tensor":
    """A tensor of PyTorch with the values of ``array``, in its memory where that is possible."""
    import torch

    dtype = of_array(array)
    words = np.require(array, requirements=("C", "W")).view(dtype.word)
    return torch.from_numpy(words).view(getattr(torch, dtype.torch))


def torch_coo(index: np.ndarray, values: np.ndarray, shape: tuple[int, ...]) -> "torch.Tensor":
    """``values`` at ``index`` (int64 [axes, n], ascending in row-major order) of a sparse tensor of PyTorch."""
    import torch

    return torch.sparse_coo_tensor(
        torch.from_numpy(index), to_torch(values), shape, is_coalesced=True, check_invariants=False
    )


def torch_compressed(
    begins: np.ndarray, columns: np.ndarray, values: np.ndarray, shape: tuple[int, ...]
) -> "torch.Tensor":
    """A matrix of PyTorch by rows: ``values`` [n] in csr, [n, rows, columns] in bsr."""
    import torch

    make = torch.sparse_csr_tensor if values.ndim == 1 else torch.sparse_bsr_tensor
    return make(torch.from_numpy(begins), torch.from_numpy(columns), to_torch(values), shape, check_invariants=False)


def parameter(tensor: "torch.Tensor", requires_grad: bool) -> "torch.nn.Parameter":
    import torch

    return torch.nn.Parameter(tensor, requires_grad=requires_grad)


def is_torch(value: object) -> bool:
    return _is_of_torch(type(value))  # type: ignore[arg-type]  # a class has a hash, whatever its objects have


@functools.cache
def _is_of_torch(kind: type) -> bool:
    return any(c.__module__.partition(".")[0] == "torch" for c in kind.__mro__)


def count_nbytes(value: Any) -> int:
    """Bytes of an array or tensor; 0 for what has not become one yet."""
    if is_torch(value):  # whose ``nbytes`` raises for sparse tensors
        return int(value.numel() * value.element_size())
    return int(getattr(value, "nbytes", 0))


def as_words(name: str, value: Any) -> tuple[TensorSpec, np.ndarray]:
    """The spec and the words (C-contiguous, little endian) of an array or tensor; its own memory where possible.

    Raises ValueError, naming the tensor, for a dtype that mzstore does not have.
    """
    try:
        if is_torch(value):
            return _torch_words(name, value)
        if isinstance(value, np.ma.MaskedArray):
            raise ValueError("a masked array; fill it first: array.filled()")
        array = np.asarray(value)
        dtype = of_array(array)
        if array.dtype.byteorder == ">":
            array = array.astype(array.dtype.newbyteorder("<"))
        return TensorSpec(name, dtype, array.shape), dtype.to_words(array)
    except ValueError as error:
        raise ValueError(f"tensor {name!r}: {error}" if f"{name!r}" not in str(error) else str(error)) from error


def _torch_words(name: str, tensor: "torch.Tensor") -> tuple[TensorSpec, np.ndarray]:
    import torch

    if tensor.layout is not torch.strided:
        raise ValueError(f"its layout is {tensor.layout}; make it dense first: tensor.to_dense()")
    torch_name = str(tensor.dtype).removeprefix("torch.")
    dtype = next((d for d in DTYPES.values() if d.torch == torch_name), None)
    if dtype is None or dtype.name in ("int4", "uint4"):
        raise ValueError(f"no tensor can have dtype {tensor.dtype}")
    dense = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    shape = tuple(dense.shape)
    if dtype.packed:  # torch counts pairs
        if not shape:
            raise ValueError("a scalar of two packed values")
        shape = (*shape[:-1], 2 * shape[-1])
    spec = TensorSpec(name, dtype, shape)
    memory = dense.reshape(-1).view(torch.uint8).numpy()
    return spec, memory.view(dtype.word).reshape(spec.word_shape)


def check_out(spec: TensorSpec, out: Any) -> np.ndarray:
    """The words of the caller's ``out`` (NumPy array or CPU tensor), as a view. ValueError if it does not fit."""
    if not isinstance(out, np.ndarray) and is_torch(out):
        if not out.is_contiguous() or out.device.type != "cpu" or out.is_conj() or out.is_neg():
            raise ValueError(f"tensor {spec.name!r}: 'out' must be contiguous, on the CPU, and no lazy conjugate")
        found, words = _torch_words(spec.name, out)
        if (found.dtype, found.shape) != (spec.dtype, spec.shape):
            raise _unlike(spec, found.dtype.name, found.shape)
        return words
    if not isinstance(out, np.ndarray) or not out.flags.writeable:
        raise ValueError(f"tensor {spec.name!r}: 'out' is not a writable array")
    if out.dtype != spec.dtype.numpy or out.shape != spec.shape:
        raise _unlike(spec, str(out.dtype), out.shape)
    return _viewed(out, spec.dtype)


def words_in(tensor: "torch.Tensor", dtype: DType) -> np.ndarray | None:
    """The words of a tensor of any strides, as a view; None if there is none: of another dtype, on a device, or lazy."""
    import torch

    if tensor.device.type != "cpu" or tensor.layout is not torch.strided or tensor.is_conj() or tensor.is_neg():
        return None
    if str(tensor.dtype) != f"torch.{dtype.torch}" or dtype.name in ("int4", "uint4"):
        return None
    parts = torch.view_as_real(tensor) if dtype.parts == 2 else tensor
    words: np.ndarray = parts.view(getattr(torch, _WORDS[dtype.word.itemsize])).numpy().view(dtype.word)
    return words


def _unlike(spec: TensorSpec, dtype: str, shape: tuple[int, ...]) -> ValueError:
    advice = f"; dtype={dtype!r} converts" if shape == spec.shape else ""
    return ValueError(f"tensor {spec.name!r} is {spec.dtype.name} of {spec.shape}, 'out' is {dtype} of {shape}{advice}")


def _viewed(out: np.ndarray, dtype: DType) -> np.ndarray:
    if dtype.parts == 1:
        return out.view(dtype.word)
    # Real and imaginary words as a last axis, whatever the strides are.
    return np.lib.stride_tricks.as_strided(
        out.real.view(dtype.word), (*out.shape, 2), (*out.strides, dtype.word.itemsize)
    )


def check_memory(nbytes: int) -> None:
    """Raises MemoryError for more than this machine has, before the system would kill the process for it."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if nbytes > physical:
        raise MemoryError(f"the values take {nbytes} bytes, this machine has {physical}")

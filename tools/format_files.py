"""Files of the formats that ``convert`` reads, made by their own libraries, of any size: tensors may lie in files that are mapped."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

Tensors = Mapping[str, np.ndarray]
BF16 = np.dtype(ml_dtypes.bfloat16)
BLOCK_WORDS = 1 << 23


def random_tensors(path: Path, nbytes: int, columns: int = 4096) -> dict[str, np.ndarray]:
    """About ``nbytes`` of random normal bfloat16, in matrices of some 64 MB, in a file at ``path`` that is mapped."""
    rows = max(1, min(nbytes, 64_000_000) // (2 * columns))
    count = max(1, nbytes // (2 * columns * rows))
    rng = np.random.default_rng(1)
    with path.open("wb") as file:
        left = count * rows * columns
        while left:
            n = min(BLOCK_WORDS, left)
            values = rng.standard_normal(n, np.float32) * np.float32(0.02)
            file.write((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())
            left -= n
    words = np.memmap(path, np.uint16, "r", shape=(count, rows, columns))
    return {f"layers.{i}.weight": words[i].view(BF16) for i in range(count)}


def make_safetensors(tensors: Tensors, path: Path) -> None:
    """By hand: its library has whole files in memory."""
    codes = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "int64": "I64"}
    header, at = {}, 0
    for name, array in tensors.items():
        offsets = [at, at + array.nbytes]
        header[name] = {"dtype": codes[array.dtype.name], "shape": list(array.shape), "data_offsets": offsets}
        at += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in tensors.values():
            file.write(_bytes(array))


def make_pytorch(tensors: Tensors, path: Path) -> None:
    import torch

    torch.save({name: _torch(torch, array) for name, array in tensors.items()}, path)


def make_gguf(tensors: Tensors, path: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    for name, array in tensors.items():
        if array.dtype == BF16:
            writer.add_tensor(name, array.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make_onnx(tensors: Tensors, path: Path) -> None:
    """A graph of initializers alone, whose values lie in a file beside it."""
    import onnx

    kinds = {"bfloat16": onnx.TensorProto.BFLOAT16, "float16": onnx.TensorProto.FLOAT16, "float32": onnx.TensorProto.FLOAT, "int64": onnx.TensorProto.INT64}  # fmt: skip
    data = path.with_name(f"{path.name}_data")
    initializers, at = [], 0
    with data.open("wb") as file:
        for name, array in tensors.items():
            found = onnx.TensorProto(name=name, data_type=kinds[array.dtype.name], dims=array.shape)
            found.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", data.name), ("offset", at), ("length", array.nbytes)):
                found.external_data.add(key=key, value=str(value))
            file.write(_bytes(array))
            at += array.nbytes
            initializers.append(found)
    graph = onnx.helper.make_graph([], "weights", [], [], initializers)
    path.write_bytes(onnx.helper.make_model(graph).SerializeToString())


def make_hdf5(tensors: Tensors, path: Path) -> None:
    """As Keras does it, which stores bfloat16 as opaque bytes and says so beside them."""
    import h5py

    with h5py.File(path, "w") as file:
        for name, array in tensors.items():
            dataset = file.create_dataset(name, data=array.view("V2") if array.dtype == BF16 else array)
            if array.dtype == BF16:
                dataset.attrs["dtype"] = "bfloat16"


def make_npz(tensors: Tensors, path: Path) -> None:
    np.savez(path, **{name: _numpy(array) for name, array in tensors.items()})


def make_npy(tensors: Tensors, path: Path) -> None:
    np.save(path, _numpy(max(tensors.values(), key=lambda array: array.nbytes)))


# By the first suffix of the format.
MAKERS: dict[str, Callable[[Tensors, Path], None]] = {
    ".safetensors": make_safetensors,
    ".pt": make_pytorch,
    ".gguf": make_gguf,
    ".onnx": make_onnx,
    ".h5": make_hdf5,
    ".npz": make_npz,
    ".npy": make_npy,
}


def _bytes(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _torch(torch, array: np.ndarray):
    array = array if array.flags.writeable else np.lib.stride_tricks.as_strided(array, array.shape, array.strides)
    if array.dtype == BF16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _numpy(array: np.ndarray) -> np.ndarray:
    """NumPy's files have no bfloat16: as float32, of whose bits half are zero, that would be another benchmark."""
    return array.view(np.float16) if array.dtype == BF16 else array

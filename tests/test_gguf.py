"""GGUF files: read, kept byte for byte, written anew; and files that lie."""

import random
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, dequantize
from packed import random_blocks

import mzstore
from mzstore import kernels
from mzstore.convert import convert
from mzstore.errors import FormatError, MzError, UnsupportedError
from mzstore.formats import gguf, open_source
from mzstore.ggml import TYPES
from mzstore.storage import open_location
from mzstore.verify import verify

# Of Q8_1 the gguf library has another size than ggml, and no file has it.
BLOCK_TYPES = [kind for kind in TYPES.values() if kind.name != "Q8_1"]
PLAIN = {"F32": "f4", "F16": "f2", "F64": "f8", "I8": "i1", "I16": "i2", "I32": "i4", "I64": "i8", "BF16": "u2"}
METADATA = {
    "general.architecture": "llama", "general.name": "A model", "llama.block_count": 3, "llama.rope.freq_base": 10000.0,
    "some.flag": True, "some.small": -5, "some.list": [1, 2, 3], "some.names": ["a", "b"],
}  # fmt: skip


def rows_of_blocks(kind, rows: int, per_row: int, seed: int = 0) -> np.ndarray:
    """uint8[rows, bytes of a row], whose values are numbers: GGUF's own reader computes them too."""
    return random_blocks(kind, rows * per_row, finite=True, seed=seed).reshape(rows, -1)


def plain_values(name: str) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 60, (3, 5)).astype(PLAIN[name])


def write_file(path: Path, kinds=BLOCK_TYPES, *, alignment: int = 32) -> Path:
    writer = GGUFWriter(path, "llama")
    writer.data_alignment = alignment
    if alignment != 32:
        writer.add_custom_alignment(alignment)
    writer.add_name("A model")
    writer.add_block_count(3)
    writer.add_float32("llama.rope.freq_base", 10000.0)
    writer.add_bool("some.flag", True)
    writer.add_key_value("some.small", -5, GGUFValueType.INT16)
    writer.add_array("some.list", [1, 2, 3])
    writer.add_array("some.names", ["a", "b"])
    writer.add_float32("some.nan", float("nan"))
    writer.add_array("tokenizer.ggml.tokens", [f"token {i}" for i in range(3000)])
    writer.add_array("tokenizer.ggml.scores", [float(i) for i in range(3000)])
    writer.add_array("some.bytes", [b"\xff\xfe", b"fine"])
    for kind in kinds:
        writer.add_tensor(kind.name, rows_of_blocks(kind, 4, 3), raw_dtype=GGMLQuantizationType(kind.number))
    for name in PLAIN:
        raw = GGMLQuantizationType.BF16 if name == "BF16" else None
        values = plain_values(name)
        writer.add_tensor(f"plain.{name}", values.view(np.uint8) if raw else values, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return write_file(tmp_path_factory.mktemp("gguf") / "all.gguf")


@pytest.mark.parametrize("fast", [False, True])
def test_values_are_those_of_gguf(path, tmp_path, fast, monkeypatch):
    monkeypatch.setattr(kernels, "pays", lambda nbytes: fast)
    convert(path, tmp_path / "m.mz", threads=2)
    assert verify(tmp_path / "m.mz", threads=1).ok
    with mzstore.open(tmp_path / "m.mz") as model:
        loaded = model.load()
        for tensor in GGUFReader(path).tensors:
            found = loaded[tensor.name]
            assert found.shape == tuple(reversed(tensor.shape.tolist()))
            if tensor.tensor_type.name in PLAIN:
                name = tensor.tensor_type.name
                assert found.dtype.name == ("bfloat16" if name == "BF16" else np.dtype(PLAIN[name]).name)
                assert found.tobytes() == plain_values(name).tobytes()
                continue
            assert model[tensor.name].encoding == "ggml"
            assert model[tensor.name].components()["blocks"][...].tobytes() == tensor.data.tobytes()
            if tensor.tensor_type.name not in ("Q8_K", "Q1_0"):  # which it does not compute; see test_ggml
                expected = dequantize(tensor.data, tensor.tensor_type)
                np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))
                np.testing.assert_array_equal(model[tensor.name][1:3, 20:70], expected[1:3, 20:70])


def test_metadata(path, tmp_path):
    convert(path, tmp_path / "m.mz")
    with mzstore.open(tmp_path / "m.mz") as model:
        assert dict(model.metadata) == METADATA


@pytest.mark.parametrize("by_way_of", ["m.mz", "m.zarr", None])
def test_the_same_file_again(path, tmp_path, by_way_of):
    source = path
    if by_way_of:
        source = tmp_path / by_way_of
        convert(path, source)
    found = convert(source, tmp_path / "again.gguf")
    assert (tmp_path / "again.gguf").read_bytes() == path.read_bytes()
    assert "byte for byte the file all.gguf that the model was converted from" in found.notes
    if by_way_of:
        convert(source, tmp_path / "folder")
        assert (tmp_path / "folder" / "all.gguf").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_alignments(tmp_path, alignment):
    path = write_file(tmp_path / "m.gguf", [TYPES["Q4_0"], TYPES["Q6_K"]], alignment=alignment)
    convert(path, tmp_path / "m.mz")
    convert(tmp_path / "m.mz", tmp_path / "again.gguf")
    assert (tmp_path / "again.gguf").read_bytes() == path.read_bytes()


def test_version_2(path, tmp_path):
    data = bytearray(path.read_bytes())
    data[4] = 2
    (tmp_path / "v2.gguf").write_bytes(data)
    convert(tmp_path / "v2.gguf", tmp_path / "m.mz")
    convert(tmp_path / "m.mz", tmp_path / "again.gguf")
    assert (tmp_path / "again.gguf").read_bytes() == data


def test_padding_need_not_be_zeros(path, tmp_path):
    """Nor need the bytes behind the last tensor: all of them come back."""
    data = bytearray(path.read_bytes()) + b"behind"
    last = max(GGUFReader(path).tensors, key=lambda tensor: tensor.data_offset)
    first = min(GGUFReader(path).tensors, key=lambda tensor: tensor.data_offset)
    data[first.data_offset - 1] = 7
    assert last.data_offset + last.n_bytes < len(data)
    (tmp_path / "odd.gguf").write_bytes(data)
    convert(tmp_path / "odd.gguf", tmp_path / "m.mz")
    convert(tmp_path / "m.mz", tmp_path / "again.gguf")
    assert (tmp_path / "again.gguf").read_bytes() == data


def test_a_file_is_found_by_content(path, tmp_path):
    (tmp_path / "model.bin").write_bytes(path.read_bytes())
    convert(tmp_path / "model.bin", tmp_path / "m.mz")
    with mzstore.open(tmp_path / "m.mz") as model:
        assert "Q4_K" in model


def test_values_in_other_files(path, tmp_path):
    convert(path, tmp_path / "m.safetensors")
    from safetensors.numpy import load_file

    found = load_file(tmp_path / "m.safetensors")
    expected = next(tensor for tensor in GGUFReader(path).tensors if tensor.name == "Q5_K")
    np.testing.assert_array_equal(found["Q5_K"], dequantize(expected.data, expected.tensor_type))


def test_from_a_url(path, tmp_path):
    import fsspec

    with fsspec.open("memory://gguf/m.gguf", "wb") as file:
        file.write(path.read_bytes())
    convert("memory://gguf/m.gguf", "memory://gguf/m.mz")
    convert("memory://gguf/m.mz", tmp_path / "again.gguf")
    assert (tmp_path / "again.gguf").read_bytes() == path.read_bytes()


def test_files_that_a_model_is_split_into(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for i, kind in enumerate(("Q4_0", "Q5_K"), 1):
        writer = GGUFWriter(source / f"m-{i:05}-of-00002.gguf", "llama")
        writer.add_uint16("split.count", 2)
        writer.add_tensor(kind, rows_of_blocks(TYPES[kind], 2, 2), raw_dtype=GGMLQuantizationType[kind])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    (source / "config.json").write_text("{}")
    convert(source, tmp_path / "m.mz")
    with mzstore.open(tmp_path / "m.mz") as model:
        assert list(model) == ["Q4_0", "Q5_K"]
        assert list(model.assets) == ["config.json"]
    convert(tmp_path / "m.mz", tmp_path / "again")
    for file in source.iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()
    found = convert(next(source.glob("*1-of*")), tmp_path / "one.mz")
    assert "one of 2 files that a model was split into; convert their directory for all of it" in found.notes


def test_a_recipe_changes_only_what_it_names(tmp_path):
    writer = GGUFWriter(tmp_path / "m.gguf", "llama")
    for seed, name in enumerate(("here", "there")):
        blocks = rows_of_blocks(TYPES["Q4_K"], 128, 1, seed)
        writer.add_tensor(name, blocks, raw_dtype=GGMLQuantizationType.Q4_K)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    recipe = mzstore.Recipe.parse('[[rule]]\nname = "here"\nbits = 3')
    convert(tmp_path / "m.gguf", tmp_path / "m.mz", recipe=recipe)
    with mzstore.open(tmp_path / "m.mz") as model:
        assert (model["here"].encoding.split()[0], model["there"].encoding) == ("quantized", "ggml")
    with pytest.raises(ValueError, match=r"'m.gguf' cannot be made again: it has tensor 'here' as Q4_K"):
        convert(tmp_path / "m.mz", tmp_path / "again.gguf")
    assert not (tmp_path / "again.gguf").exists()


# New files


def test_a_new_file(tmp_path):
    rng = np.random.default_rng(5)
    import ml_dtypes

    tensors = {
        "a.weight": rng.normal(size=(6, 40)).astype(np.float32),
        "b.weight": rng.normal(size=(3, 2, 8)).astype(np.float16),
        "c.weight": rng.normal(size=(17,)).astype(ml_dtypes.bfloat16),
        "scalar": np.float32(2.5),
        "ids": np.arange(7, dtype=np.int32),
        "empty": np.zeros((0, 4), np.float32),
    }
    metadata = {
        "general.architecture": "llama", "int": 7, "negative": -7, "large": 1 << 40, "very negative": -(1 << 40), "float": 0.5,
        "double": 0.1, "flag": False, "text": "gr\u00fc\u00df", "ints": [1, -2], "floats": [0.5, 0.1], "texts": ["a", "b"], "flags": [True, False],
        "none": None, "mixed": [1, "a"], "object": {"a": 1}, "nothing": [],
    }  # fmt: skip
    mzstore.save(tmp_path / "m.mz", tensors, metadata=metadata)
    convert(tmp_path / "m.mz", tmp_path / "m.gguf")
    reader = GGUFReader(tmp_path / "m.gguf")
    assert [tensor.name for tensor in reader.tensors] == list(tensors)
    for tensor in reader.tensors:
        expected = tensors[tensor.name]
        assert tuple(reversed(tensor.shape.tolist())) == (np.shape(expected) or (1,))
        assert tensor.data.tobytes() == np.asarray(expected).tobytes()
        assert tensor.data_offset % 32 == 0
    assert {tensor.name: tensor.tensor_type.name for tensor in reader.tensors} == {
        "a.weight": "F32", "b.weight": "F16", "c.weight": "BF16", "scalar": "F32", "ids": "I32", "empty": "F32",
    }  # fmt: skip
    found = {key: value for key, value in reader.fields.items() if not key.startswith("GGUF.")}
    assert {key: [kind.name for kind in value.types] for key, value in found.items()} == {
        "general.architecture": ["STRING"], "int": ["UINT32"], "negative": ["INT32"], "large": ["UINT64"], "very negative": ["INT64"],
        "float": ["FLOAT32"], "double": ["FLOAT64"], "flag": ["BOOL"], "text": ["STRING"], "ints": ["ARRAY", "INT32"],
        "floats": ["ARRAY", "FLOAT64"], "texts": ["ARRAY", "STRING"], "flags": ["ARRAY", "BOOL"], "none": ["STRING"], "mixed": ["STRING"],
        "object": ["STRING"], "nothing": ["STRING"],
    }  # fmt: skip
    texts = {"none": "null", "mixed": '[1, "a"]', "object": '{"a": 1}', "nothing": "[]"}
    assert {key: value.contents() for key, value in found.items()} == metadata | texts
    convert(tmp_path / "m.gguf", tmp_path / "again.mz")
    with mzstore.open(tmp_path / "again.mz") as model:
        for name, values in tensors.items():
            assert model[name][...].tobytes() == np.asarray(values).tobytes()
        assert dict(model.metadata) == metadata | texts


def test_a_new_file_of_some_tensors(path, tmp_path):
    """What is left of a file keeps its blocks, under other names too, and its metadata that are no tables."""
    convert(path, tmp_path / "m.gguf", include=["Q*_K", "plain.F16"], exclude="Q8_K", rename={"Q6_K": "six"})
    before = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    reader = GGUFReader(tmp_path / "m.gguf")
    assert [tensor.name for tensor in reader.tensors] == ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "six", "plain.F16"]
    for tensor in reader.tensors:
        old = before[tensor.name.replace("six", "Q6_K")]
        assert (tensor.tensor_type, tensor.shape.tolist()) == (old.tensor_type, old.shape.tolist())
        assert tensor.data.tobytes() == old.data.tobytes()
    assert reader.fields["general.name"].contents() == "A model"
    assert reader.fields["general.quantization_version"].contents() == 2


def test_an_architecture_that_nobody_knows(tmp_path):
    mzstore.save(tmp_path / "m.mz", {"w": np.ones(4, np.float32)}, metadata={"general.alignment": 128})
    convert(tmp_path / "m.mz", tmp_path / "m.gguf")
    reader = GGUFReader(tmp_path / "m.gguf")
    assert reader.fields["general.architecture"].contents() == "unknown"
    assert reader.alignment == 128
    assert reader.tensors[0].data_offset % 128 == 0


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"w": np.ones(4, np.uint8)}, {}, "tensor 'w': GGUF has no uint8; it has float32"),
        ({"w": np.ones((1, 1, 1, 1, 2), np.float32)}, {}, "tensor 'w' has 5 dimensions; GGUF has at most 4"),
        ({"w" * 64: np.ones(4, np.float32)}, {}, "the tensor name 'w+'... has 64 bytes; GGUF has room for 63"),
        ({}, {"general.alignment": 3}, "general.alignment is 3, which is no power of two"),
        ({}, {"k" * 65536: 3}, "the key 'k+'... has 65536 bytes; GGUF has room for 65535"),
    ],
)  # fmt: skip
def test_what_gguf_cannot_hold(tmp_path, tensors, metadata, message):
    mzstore.save(tmp_path / "m.mz", tensors, metadata=metadata)
    with pytest.raises(ValueError, match=message):
        convert(tmp_path / "m.mz", tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


# Files that lie


def text(data: bytes | str) -> bytes:
    data = data.encode() if isinstance(data, str) else data
    return struct.pack("<Q", len(data)) + data


def entry(name="w", shape=(32,), kind=0, offset=0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def pair(key="k", kind=4, value=b"\1\0\0\0") -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def file(entries=(), pairs=(), *, magic=b"GGUF", version=3, n_tensors=None, n_pairs=None, data=b"\0" * 256) -> bytes:
    counts = (len(entries) if n_tensors is None else n_tensors, len(pairs) if n_pairs is None else n_pairs)
    head = magic + struct.pack("<IQQ", version, *counts) + b"".join(pairs) + b"".join(entries)
    return head + bytes(-len(head) % 32) + data


def array(kind: int, count: int, content: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + content


HUGE = (1 << 64) - 1
REFUSED = {
    "nothing behind the magic": (b"GGUF", FormatError, "the version of 4 bytes at 4 ends behind the file"),
    "version 1": (file(version=1), UnsupportedError, "is of version 1"),
    "version 4": (file(version=4), UnsupportedError, "is of version 4"),
    "big endian": (b"GGUF" + bytes(3) + b"\3" + bytes(40), UnsupportedError, "another byte order"),
    "tensors without end": (file(n_tensors=HUGE), FormatError, "table of"),
    "keys without end": (file(n_pairs=HUGE), FormatError, "table of"),
    "many tensors": (file(n_tensors=1 << 40), FormatError, "table of"),
    "a long key": (file(pairs=[struct.pack("<Q", HUGE)]), FormatError, "at most 65535"),
    "a key of no Unicode": (file(pairs=[pair(b"\xff")]), FormatError, "not UTF-8"),
    "a key twice": (file(pairs=[pair(), pair()]), FormatError, "occurs twice"),
    "an unknown type": (file(pairs=[pair(kind=13)]), FormatError, "of type 13"),
    "a long string": (file(pairs=[pair(kind=8, value=struct.pack("<Q", HUGE))]), FormatError, "ends behind the file"),
    "a long list": (file(pairs=[pair(kind=9, value=array(4, HUGE))]), FormatError, "ends behind the file"),
    "a long list of strings": (file(pairs=[pair(kind=9, value=array(8, HUGE))]), FormatError, "ends behind the file"),
    "a long string among many": (
        file(pairs=[pair(kind=9, value=array(8, 2000, text("x") * 1999 + struct.pack("<Q", HUGE)))]), FormatError, "ends behind the file",
    ),
    "many strings that end with the file": (
        file(pairs=[pair(kind=9, value=array(8, 2000, text("x" * 20) * 1000))], data=b""), FormatError, "ends behind the file",
    ),
    "a long list of lists": (file(pairs=[pair(kind=9, value=array(9, HUGE))]), FormatError, "ends behind the file"),
    "a list of an unknown type": (file(pairs=[pair(kind=9, value=array(99, 1))]), FormatError, "list of type 99"),
    "lists in lists": (file(pairs=[pair(kind=9, value=array(9, 1) * 20 + array(0, 0))]), FormatError, "more than 8 deep"),
    "an alignment of 0": (file(pairs=[pair(gguf.ALIGNMENT, 4, struct.pack("<I", 0))]), FormatError, "alignment is 0"),
    "an alignment of 24": (file(pairs=[pair(gguf.ALIGNMENT, 4, struct.pack("<I", 24))]), FormatError, "alignment is 24"),
    "an alignment of text": (file(pairs=[pair(gguf.ALIGNMENT, 8, text("32"))]), FormatError, "alignment is '32'"),
    "an alignment beyond the file": (
        file([entry()], [pair(gguf.ALIGNMENT, 4, struct.pack("<I", 1 << 31))]), FormatError, "ends at",
    ),
    "5 dimensions": (file([entry(shape=(1,) * 5)]), FormatError, "5 dimensions"),
    "2 ** 32 dimensions": (file([text("w") + struct.pack("<I", HUGE >> 32) + bytes(64)]), FormatError, "4294967295 dimensions"),
    "a shape that overflows": (file([entry(shape=(1 << 32, 1 << 32))]), FormatError, "larger than 2..62 bytes"),
    "a negative extent": (file([entry(shape=(HUGE,))]), FormatError, "larger than 2..62 bytes"),
    "no such type": (file([entry(kind=77)]), UnsupportedError, "type 77 of ggml"),
    "a type that is gone": (file([entry(kind=4)]), UnsupportedError, "type 4 of ggml"),
    "a row of half a block": (file([entry(shape=(16, 2), kind=2)]), FormatError, "no whole blocks of Q4_0"),
    "a block without a row": (file([entry(shape=(), kind=2)]), FormatError, "no whole blocks of Q4_0"),
    "an offset between": (file([entry(offset=16)]), FormatError, "no multiple of the alignment 32"),
    "an offset beyond the file": (file([entry(offset=1 << 40)]), FormatError, "the file at"),
    "an offset that overflows": (file([entry(offset=HUGE - 31)]), FormatError, "the file at"),
    "a tensor cut short": (file([entry(shape=(65,))]), FormatError, "the file at"),
    "tensors upon each other": (file([entry("a"), entry("b", offset=96)]), FormatError, "another one ends at"),
    "blocks upon each other": (file([entry("a", kind=8, shape=(64,)), entry("b", offset=64)]), FormatError, "another one ends at"),
    "the same place": (file([entry("a"), entry("b")]), FormatError, "another one ends at"),
    "a name twice": (file([entry("a"), entry("a", offset=128)]), FormatError, "two tensors are called 'a'"),
    "a name of no Unicode": (file([entry(b"\xff")]), FormatError, "not UTF-8"),
    "a name that is too long": (file([entry("w" * 5000)]), FormatError, "at most 4096"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_lies(name, tmp_path):
    data, error, message = REFUSED[name]
    (tmp_path / "m.gguf").write_bytes(data)
    with pytest.raises(error, match=message) as refused:
        convert(tmp_path / "m.gguf", tmp_path / "m.mz")
    assert "m.gguf" in str(refused.value)
    assert not (tmp_path / "m.mz").exists()


def test_what_may_be_strange(tmp_path):
    """Tensors of nothing, in one place, without dimensions, with names that are empty or paths; lists of lists."""
    entries = [entry("", (), 0, 0), entry("../up", (0, 4), 0, 32), entry("none", (0,), 2, 32), entry("w", (8,), 0, 32)]
    pairs = [pair("", 9, array(9, 2, array(0, 1, b"\7") + array(8, 1, text("x")))), pair("k" * 65535)]
    (tmp_path / "m.gguf").write_bytes(file(entries, pairs))
    convert(tmp_path / "m.gguf", tmp_path / "m.mz")
    with mzstore.open(tmp_path / "m.mz") as model:
        assert {name: tensor.shape for name, tensor in model.items()} == {
            "": (),
            "../up": (4, 0),
            "none": (0,),
            "w": (8,),
        }
        assert model.metadata[""] == [[7], ["x"]]
    convert(tmp_path / "m.mz", tmp_path / "again.gguf")
    assert (tmp_path / "again.gguf").read_bytes() == (tmp_path / "m.gguf").read_bytes()


def test_a_long_header_is_read_once_and_in_pieces(tmp_path):
    """Values that lie across the pieces in which a file is read."""
    pairs = [pair(f"k{i}", 9, array(8, 2000, text("x" * (i % 61)) * 2000)) for i in range(60)]
    (tmp_path / "m.gguf").write_bytes(file([entry()], pairs))
    blob = open_location(tmp_path / "m.gguf")
    header = gguf.read_header(blob)
    assert not header.metadata
    assert len(header.tensors) == 1


def test_a_header_that_is_too_long(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf, "MAX_HEADER_NBYTES", 1000)
    (tmp_path / "m.gguf").write_bytes(file([entry()], [pair("k", 8, text("x" * 2000))]))
    with pytest.raises(UnsupportedError, match="the first 1,000 bytes, the longest header"):
        convert(tmp_path / "m.gguf", tmp_path / "m.mz")


def test_broken_bytes_are_refused_or_read(path, tmp_path):
    """No byte of a header makes another error than that of a file that cannot be read."""
    data, rng = path.read_bytes(), random.Random(4)
    start = min(tensor.data_offset for tensor in GGUFReader(path).tensors)
    table = data.index(b"Q4_0")
    target, refused = tmp_path / "m.gguf", 0
    for i in range(300):
        broken = bytearray(data)
        at = rng.randrange(start) if i % 2 else rng.randrange(table - 8, start)
        broken[at] ^= 1 << rng.randrange(8)
        target.write_bytes(broken)
        try:
            with open_source(target) as source:
                assert source.nbytes < 1 << 62
        except MzError:
            refused += 1
    assert 50 < refused < 250
    for cut in range(0, start, 97):
        target.write_bytes(data[:cut])
        with pytest.raises(MzError), open_source(target):
            pass


# Real files, and large ones

PEAK = """
import resource, sys
import mzstore
mzstore.convert(sys.argv[1], sys.argv[2], threads=2, show_progress=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_does_not_grow(tmp_path):
    """A tensor of Q4_0 of 2 GiB of values, whose file is a hole but for its header, takes no more than one of 128 MiB."""
    peaks = []
    for gibi in (1 / 8, 2):
        rows = int(gibi * (1 << 18))
        with (tmp_path / "m.gguf").open("wb") as opened:
            opened.write(file([entry("w", (1024, rows), 2)], data=b""))
            opened.truncate(opened.tell() + rows * 1024 // 32 * 18)
        args = [sys.executable, "-c", PEAK]
        for source, target in (("m.gguf", "m.mz"), ("m.mz", "again.gguf")):
            done = subprocess.run(
                [*args, tmp_path / source, tmp_path / target], capture_output=True, check=True, text=True
            )
            peaks.append(int(done.stdout) >> 10)
        assert (tmp_path / "again.gguf").stat().st_size == (tmp_path / "m.gguf").stat().st_size
    assert peaks[2] < peaks[0] + 200, peaks
    assert peaks[3] < peaks[1] + 200, peaks


@pytest.mark.slow
def test_a_real_model(tmp_path):
    from tools.real_models import smollm2

    path = smollm2()
    convert(path, tmp_path / "m.mz")
    assert verify(tmp_path / "m.mz").ok
    convert(tmp_path / "m.mz", tmp_path / "again.gguf")
    assert (tmp_path / "again.gguf").read_bytes() == path.read_bytes()
    assert (tmp_path / "m.mz").stat().st_size < 86_548_518, "what lmz makes of it at its highest level"
    with mzstore.open(tmp_path / "m.mz") as model:
        for tensor in GGUFReader(path).tensors[:40:3]:
            expected = dequantize(tensor.data, tensor.tensor_type).view(np.uint32)
            np.testing.assert_array_equal(model[tensor.name][...].view(np.uint32), expected)

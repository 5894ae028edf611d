"""ONNX models, written and read by the onnx library: initializers as tensors, and the same files back."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import ml_dtypes
import numpy as np
import onnx
import pytest
from foreign import read
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from samples import bits

import mzstore
from mzstore.errors import FormatError, MzError, StorageError, UnsupportedError
from mzstore.formats import spliced, wire
from mzstore.formats.onnx import TYPES
from mzstore.storage import open_location
from mzstore.text import size

RNG = np.random.default_rng(7)


def graph(initializers=(), nodes=(), sparse=(), name="g") -> onnx.GraphProto:
    return helper.make_graph(list(nodes), name, [], [], list(initializers), sparse_initializer=list(sparse))


def model(*initializers: TensorProto, **more) -> onnx.ModelProto:
    return helper.make_model(graph(initializers, **more), producer_name="a test")


def raw(name: str, array: np.ndarray) -> TensorProto:
    return numpy_helper.from_array(array, name)


def every_type() -> Iterator[TensorProto]:
    """Each data type in raw bytes and in numbers, with rows of even and of odd length, and empty."""
    for code, (name, _) in TYPES.items():
        numpy = np.dtype(getattr(ml_dtypes, name, name))
        for shape in ((3, 4), (3, 5), (7,), (), (2, 0)):
            values = RNG.integers(0, 2, shape) if name == "bool" else RNG.integers(0, 7, shape)
            values = np.asarray(values).astype(numpy)
            if numpy.kind in "iu" and name not in ("int4", "uint4"):
                values = RNG.integers(np.iinfo(numpy).min, np.iinfo(numpy).max, shape, numpy, endpoint=True)
            label = f"{name}{list(shape)}"
            yield raw(f"{label} raw", np.asarray(values))
            yield helper.make_tensor(f"{label} numbers", code, shape, np.asarray(values).reshape(-1))


def test_every_type_there_and_back(tmp_path):
    """Values are those that the onnx library reads; the file comes back byte for byte, out of an archive and a tree."""
    proto = model(*every_type())
    onnx.save(proto, tmp_path / "m.onnx")
    mzstore.convert(tmp_path / "m.onnx", tmp_path / "m.mz", check=True)
    assert mzstore.verify(tmp_path / "m.mz").ok
    with mzstore.open(tmp_path / "m.mz") as opened:
        found = opened.load()
        assert opened.metadata["onnx"]["producer_name"] == "a test"
        assert opened.metadata["onnx"]["opset_import"] == {"": proto.opset_import[0].version}
    assert len(found) == 2 * 5 * len(TYPES)
    for tensor in proto.graph.initializer:
        expected = numpy_helper.to_array(tensor)
        assert (found[tensor.name].dtype, found[tensor.name].shape) == (expected.dtype, expected.shape)
        assert bits(found[tensor.name]) == bits(expected), tensor.name
    report = mzstore.convert(tmp_path / "m.mz", tmp_path / "back.onnx", check=True)
    assert report.notes == ("byte for byte the file m.onnx that the model was converted from",)
    assert (tmp_path / "back.onnx").read_bytes() == (tmp_path / "m.onnx").read_bytes()
    mzstore.convert(tmp_path / "m.mz", tmp_path / "m.zarr")
    mzstore.convert(tmp_path / "m.zarr", tmp_path / "dir")
    assert (tmp_path / "dir" / "m.onnx").read_bytes() == (tmp_path / "m.onnx").read_bytes()


def large_values() -> dict[str, np.ndarray]:
    return {f"layer.{i}.weight": RNG.standard_normal((100, 30 + i)).astype(np.float32) for i in range(3)}


@pytest.mark.parametrize("one_file", [True, False])
def test_external_data(tmp_path, one_file):
    proto = model(*(raw(name, value) for name, value in large_values().items()), raw("inside", np.arange(4.0)))
    (tmp_path / "in").mkdir()
    onnx.save(
        proto, tmp_path / "in" / "m.onnx", save_as_external_data=True, all_tensors_to_one_file=one_file,
        location="weights.bin" if one_file else None,
    )  # fmt: skip
    (tmp_path / "in" / "config.json").write_text("{}")
    before = {path.name: path.read_bytes() for path in (tmp_path / "in").iterdir()}
    assert len(before) == (3 if one_file else 5)
    expected = {t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "in" / "m.onnx").graph.initializer}
    mzstore.convert(tmp_path / "in" / "m.onnx", tmp_path / "m.mz", check=True)
    with mzstore.open(tmp_path / "m.mz") as opened:
        assert {name: bits(value) for name, value in opened.load().items()} == {n: bits(v) for n, v in expected.items()}
    mzstore.convert(tmp_path / "m.mz", tmp_path / "back")
    assert {path.name: path.read_bytes() for path in (tmp_path / "back").iterdir()} == {
        name: content for name, content in before.items() if name != "config.json"
    }
    # A directory takes what lies beside the model along, once.
    mzstore.convert(tmp_path / "in", tmp_path / "all.mz")
    with mzstore.open(tmp_path / "all.mz") as opened:
        assert list(opened.assets) == ["config.json"]
    mzstore.convert(tmp_path / "all.mz", tmp_path / "all")
    assert {path.name: path.read_bytes() for path in (tmp_path / "all").iterdir()} == before
    with pytest.raises(ValueError, match="no new onnx file can be written; the files that the model came from"):
        mzstore.convert(tmp_path / "m.mz", tmp_path / "back.onnx")
    done = subprocess.run(
        [sys.executable, "-m", "mzstore", "convert", tmp_path / "in" / "m.onnx", tmp_path / "again.mz"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert f"% of {size(sum(value.nbytes for value in expected.values()))}" in done.stdout, "not of the graph alone"


def test_external_data_on_object_storage(tmp_path):
    proto = model(*(raw(name, value) for name, value in large_values().items()))
    (tmp_path / "w").mkdir()
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="w/weights.bin", size_threshold=0)
    url = f"memory://{tmp_path.name}"
    for path in ("m.onnx", "w/weights.bin"):
        fsspec.filesystem("memory").pipe(f"/{tmp_path.name}/{path}", (tmp_path / path).read_bytes())
    mzstore.convert(f"{url}/m.onnx", f"{url}/m.mz", check=True)
    mzstore.convert(f"{url}/m.mz", tmp_path / "back")
    for path in ("m.onnx", "w/weights.bin"):
        assert (tmp_path / "back" / path).read_bytes() == (tmp_path / path).read_bytes()


def with_branches(depth: int = 1) -> onnx.GraphProto:
    inner = graph([raw("w", np.full(3, depth, np.float32))], name=f"at {depth}")
    if depth > 1:
        inner.node.append(helper.make_node("If", ["c"], [f"y{depth}"], then_branch=with_branches(depth - 1)))
    return inner


def test_graphs_inside_of_graphs(tmp_path):
    node = helper.make_node(
        "If", ["c"], ["out"], then_branch=with_branches(2), else_branch=graph([raw("w", np.ones(2))])
    )
    proto = model(raw("w", np.zeros(5)), nodes=[node])
    onnx.save(proto, tmp_path / "m.onnx")
    found = read(tmp_path / "m.onnx")
    assert {name: value.tolist() for name, value in found.items()} == {
        "w": [0.0] * 5,
        "out/then_branch/w": [2.0] * 3,
        "out/then_branch/y2/then_branch/w": [1.0] * 3,
        "out/else_branch/w": [1.0] * 2,
    }
    mzstore.convert(tmp_path / "m.onnx", tmp_path / "m.mz")
    mzstore.convert(tmp_path / "m.mz", tmp_path / "back.onnx")
    assert (tmp_path / "back.onnx").read_bytes() == (tmp_path / "m.onnx").read_bytes()


def test_what_stays_in_the_graph(tmp_path):
    """Strings, sparse initializers, types that mzstore has not, and constants of nodes."""
    sparse = helper.make_sparse_tensor(raw("s", np.ones(2, np.float32)), raw("i", np.arange(2)), [10])
    constant = helper.make_node("Constant", [], ["c"], value=raw("value", np.arange(9.0)))
    two_bits = TensorProto(name="two bits", dims=[4], data_type=TensorProto.INT2, raw_data=b"\x1b")
    text = helper.make_tensor("names", TensorProto.STRING, [2], [b"a", b"b"])
    onnx.save(model(text, two_bits, raw("w", np.ones(3)), sparse=[sparse], nodes=[constant]), tmp_path / "m.onnx")
    report = mzstore.convert(tmp_path / "m.onnx", tmp_path / "m.mz")
    assert sorted(report.notes) == [
        "1 initializers of data type 26, which mzstore has not, stay in the graph",
        "1 initializers of strings stay in the graph",
        "1 sparse initializers stay in the graph",
    ]
    with mzstore.open(tmp_path / "m.mz") as opened:
        assert list(opened) == ["w"]
    mzstore.convert(tmp_path / "m.mz", tmp_path / "back.onnx")
    assert (tmp_path / "back.onnx").read_bytes() == (tmp_path / "m.onnx").read_bytes()


def test_the_same_graph_with_values_that_were_changed(tmp_path):
    """A quantized model runs as before: its graph has the dequantized values."""
    values = RNG.standard_normal((256, 256)).astype(np.float32)
    onnx.save(model(raw("w", values), raw("b", np.arange(3))), tmp_path / "m.onnx")
    mzstore.convert(tmp_path / "m.onnx", tmp_path / "m.mz", recipe=mzstore.Recipe(bits=4))
    report = mzstore.convert(tmp_path / "m.mz", tmp_path / "back.onnx")
    assert report.notes == ("laid out as the file m.onnx, with values of tensors that were changed",)
    back = onnx.load(tmp_path / "back.onnx")
    with mzstore.open(tmp_path / "m.mz") as opened:
        for tensor in back.graph.initializer:
            assert bits(numpy_helper.to_array(tensor)) == bits(opened[tensor.name].read())
    assert not np.array_equal(numpy_helper.to_array(back.graph.initializer[0]), values)


def test_a_graph_that_is_too_large_is_left_out(tmp_path, monkeypatch):
    onnx.save(model(raw("w", np.arange(1000))), tmp_path / "m.onnx")
    monkeypatch.setattr(spliced, "MAX_LAYOUT_NBYTES", 100)
    report = mzstore.convert(tmp_path / "m.onnx", tmp_path / "m.mz", check=True)
    assert report.notes == ("more than 100 MB of its files are not of tensors: the graph is not kept",)
    with pytest.raises(ValueError, match="no new onnx file can be written"):
        mzstore.convert(tmp_path / "m.mz", tmp_path / "back.onnx")


def test_numbers_by_range():
    """Varints of all lengths, over the borders of what is read at once, and in any range."""
    values = [RNG.integers(0, 2 ** int(n), dtype=np.uint64) for n in RNG.integers(0, 64, 60_000)] + [2**64 - 1] * 5000
    proto = TensorProto(uint64_data=[int(value) for value in values])
    blob = open_location(proto.SerializeToString())
    (field,) = wire.Wire(blob).fields(0, blob.nbytes)
    numbers = wire.Varints(wire.Wire(blob), field.start, field.stop)
    assert blob.nbytes > 4 * wire.RUN
    assert numbers.count == len(values)
    expected = np.array(values, np.uint64)
    assert (numbers.read(0, len(values)) == expected).all()
    for start, stop in RNG.integers(0, len(values) + 1, (200, 2)):
        assert (numbers.read(start, stop) == expected[start:stop]).all()
    content = np.frombuffer(blob.read(field.start, field.stop), np.uint8)
    for border in range(wire.RUN, len(content), wire.RUN):
        across = int((content[:border] < 128).sum())  # ends behind the border, and may begin before it
        for i in range(across - 2, across + 3):
            assert numbers.read(i, i + 1) == expected[i]


def message(*fields: tuple[int, bytes | int]) -> bytes:
    """A message by hand."""

    def varint(value: int) -> bytes:
        return bytes([value & 127 | 128]) + varint(value >> 7) if value > 127 else bytes([value])

    return b"".join(
        varint(number << 3) + varint(value) if isinstance(value, int)
        else varint(number << 3 | 2) + varint(len(value)) + value
        for number, value in fields
    )  # fmt: skip


def with_tensor(*fields: tuple[int, bytes | int]) -> bytes:
    return message((1, 8), (7, message((5, message(*fields)))))


def nested(depth: int) -> bytes:
    found = message((2, b"inner"))
    for _ in range(depth):
        found = message((1, message((2, b"y"), (5, message((1, b"body"), (6, found))))))
    return message((1, 8), (7, found))


NAME, FLOAT3, DATA = (8, b"w"), ((1, 3), (2, 1)), (9, bytes(12))
HOSTILE = {
    "huge dimension": (with_tensor(NAME, (2, 1), (1, 2**62), (1, 2**62), DATA), FormatError, "larger than"),
    "negative dimension": (with_tensor(NAME, (2, 1), (1, 2**64 - 1), DATA), FormatError, "larger than|bytes of values"),
    "overflowing count": (with_tensor(NAME, (2, 1), (1, 2**32), (1, 2**32), DATA), FormatError, "larger than"),
    "count to large": (with_tensor(NAME, (2, 1), (1, 2**40), DATA), FormatError, "12 bytes of values, and not"),
    "many dimensions": (with_tensor(NAME, (2, 1), *[(1, 1)] * 40, DATA), FormatError, "more than 32 dimensions"),
    "many packed dimensions": (with_tensor(NAME, (2, 1), (1, b"\1" * 1000)), FormatError, "more than 32 integers"),
    "values too short": (with_tensor(NAME, *FLOAT3, (9, bytes(11))), FormatError, "11 bytes of values, and not 12"),
    "numbers too few": (with_tensor(NAME, (1, 3), (2, 7), (7, b"\1\1")), FormatError, "has 2 numbers, and not 3"),
    "number without end": (with_tensor(NAME, (1, 1), (2, 7), (7, b"\x80" * 11)), FormatError, "does not end"),
    "number of 11 bytes": (with_tensor(NAME, (1, 1), (2, 7), (7, b"\x80" * 10 + b"\1")), FormatError, "does not end"),
    "no values": (with_tensor(NAME, *FLOAT3), FormatError, "has no values"),
    "values twice": (with_tensor(NAME, *FLOAT3, DATA, (4, bytes(12))), FormatError, "fields that are not for it"),
    "values of another type": (with_tensor(NAME, *FLOAT3, (7, b"\0\0\0")), FormatError, "fields that are not for it"),
    "pieces": (with_tensor(NAME, *FLOAT3, (4, bytes(4)), (4, bytes(8))), UnsupportedError, "several pieces"),
    "no name": (with_tensor(*FLOAT3, DATA), FormatError, "without a name"),
    "long name": (with_tensor((8, b"x" * 5000), *FLOAT3, DATA), FormatError, "no string of at most"),
    "name of no text": (with_tensor((8, b"\xff"), *FLOAT3, DATA), FormatError, "not UTF-8"),
    "two of a name": (
        message((1, 8), (7, message(*[(5, message(NAME, *FLOAT3, DATA))] * 2))), FormatError, "two initializers",
    ),
    "two graphs": (message((1, 8), (7, b""), (7, b"")), FormatError, "several graphs"),
    "tensor of another wire type": (message((1, 8), (7, message((5, 7)))), FormatError, "no message"),
    "deep graphs": (nested(60), FormatError, "more than 50 deep"),
    "very deep graphs": (nested(3000), FormatError, "more than 50 deep"),
    "group": (message((1, 8), (7, b"\x2b\x2c")), FormatError, "wire type 3"),
    "field 0": (message((1, 8), (7, b"\x00\x01")), FormatError, "number 0"),
    "length beyond the end": (message((1, 8), (7, b"\x2a\x7f\x00")), FormatError, "ends behind"),
    "length of 2**63": (message((1, 8), (7, b"\x2a" + b"\xff" * 8 + b"\x7f")), FormatError, "ends behind"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_messages(case, tmp_path):
    content, error, text = HOSTILE[case]
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(error, match=text) as caught:
        mzstore.convert(tmp_path / "m.onnx", tmp_path / "m.mz")
    assert caught.value.where
    assert not (tmp_path / "m.mz").exists()


def external(**entries: str) -> bytes:
    pairs = [(13, message((1, key.encode()), (2, value.encode()))) for key, value in entries.items()]
    return with_tensor(NAME, *FLOAT3, (14, 1), *pairs)


@pytest.mark.parametrize(
    ("entries", "error", "text"),
    [
        ({"location": "../secret"}, FormatError, "not a relative path"),
        ({"location": "sub/../../secret"}, FormatError, "not a relative path"),
        ({"location": "/etc/passwd"}, FormatError, "not a relative path"),
        ({"location": "file:///etc/passwd"}, FormatError, "not a relative path"),
        ({"location": "..\\secret"}, FormatError, "not a relative path"),
        ({"location": "s3://bucket/x"}, FormatError, "not a relative path"),
        ({}, FormatError, "not a relative path"),
        ({"location": "link"}, FormatError, "a link out of the directory"),
        ({"location": "folder/secret"}, FormatError, "a link out of the directory"),
        ({"location": "absent"}, StorageError, "absent"),
        ({"location": "sub"}, StorageError, "is a directory"),
        ({"location": "fifo"}, StorageError, "not a regular file"),
        ({"location": "data", "offset": "8"}, FormatError, "ends at byte 20 of 'data', that at 16"),
        ({"location": "data", "offset": "-4"}, FormatError, "offset of external data is '-4'"),
        ({"location": "data", "offset": "9" * 30}, FormatError, "offset of external data"),
        ({"location": "data", "offset": "\u0663"}, FormatError, "offset of external data"),
        ({"location": "data", "length": "16"}, FormatError, "16 bytes of 'data', where 12 are needed"),
    ],
)
def test_hostile_external_data(tmp_path, entries, error, text):
    (tmp_path / "secret").write_bytes(bytes(16))
    here = tmp_path / "in"
    (here / "sub").mkdir(parents=True)
    (here / "data").write_bytes(bytes(16))
    (here / "link").symlink_to("../secret")
    (here / "folder").symlink_to("..")
    os.mkfifo(here / "fifo")
    (here / "m.onnx").write_bytes(external(**entries))
    with pytest.raises(error, match=text):
        mzstore.convert(here / "m.onnx", tmp_path / "m.mz")
    assert not (tmp_path / "m.mz").exists()


def test_links_to_where_the_model_lies(tmp_path):
    """As in the cache of huggingface_hub, where every file is a link into one directory."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "blobs" / "1").write_bytes(external(location="data"))
    (tmp_path / "blobs" / "2").write_bytes(np.arange(3, dtype="<f4").tobytes())
    (tmp_path / "snapshot" / "m.onnx").symlink_to("../blobs/1")
    (tmp_path / "snapshot" / "data").symlink_to("../blobs/2")
    assert read(tmp_path / "snapshot" / "m.onnx")["w"].tolist() == [0, 1, 2]


def test_external_data_in_the_model_itself(tmp_path):
    """The file that it names is that of the model: one file, one layout."""
    content = external(location="m.onnx", offset="0")
    (tmp_path / "m.onnx").write_bytes(content)
    mzstore.convert(tmp_path / "m.onnx", tmp_path / "m.mz")
    mzstore.convert(tmp_path / "m.mz", tmp_path / "back.onnx")
    assert (tmp_path / "back.onnx").read_bytes() == content


def small() -> bytes:
    node = helper.make_node("If", ["c"], ["y"], then_branch=graph([raw("v", np.arange(2, dtype=np.float32))]))
    numbers = helper.make_tensor("n", TensorProto.INT64, [2], [300, -1])
    return model(raw("w", np.ones(2, np.float32)), numbers, nodes=[node]).SerializeToString()


def test_cut_short_at_every_byte(tmp_path):
    """Where the graph is whole, so is the model; otherwise it is refused."""
    content = small()
    whole = {name: bits(value) for name, value in read(put(tmp_path, content)).items()}
    refused = 0
    for n in range(len(content)):
        try:
            found = read(put(tmp_path, content[:n]))
        except MzError:
            refused += 1
            continue
        assert {name: bits(value) for name, value in found.items()} == whole
    assert refused > len(content) // 2


def put(folder: Path, content: bytes) -> Path:
    (folder / "m.onnx").write_bytes(content)
    return folder / "m.onnx"


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_byte_changed(tmp_path_factory, data):
    content = bytearray(small())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    folder = tmp_path_factory.getbasetemp() / "changed"
    folder.mkdir(exist_ok=True)
    with contextlib.suppress(MzError):
        read(put(folder, bytes(content)))

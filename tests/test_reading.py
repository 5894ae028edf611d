"""Reading: lazily, by slices, into the caller's memory, from many threads and processes, from everywhere."""

import concurrent.futures
import gc
import multiprocessing
import os
import pickle
import re
import subprocess
import sys
import threading
import uuid

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from samples import bits, random_bits, saved, small_model, weights

import mzstore
from mzstore.dtypes import DTYPES

BIG = weights((1600, 2400), 5, "bfloat16")  # 8 by 8 chunks
ODD = weights((3, 500, 701), 6)  # chunks that the edges cut


@pytest.fixture(scope="module")
def archive() -> bytes:
    return saved({**small_model(), "big": BIG, "odd": ODD}, assets={"a.txt": b"hello", "b/c.bin": bytes(3 << 20)})


@pytest.fixture
def model(archive):
    with mzstore.open(archive) as model:
        yield model


class Counting:
    """A reader that writes down the chunks that are read of it."""

    def __init__(self, reader) -> None:
        self._reader = reader
        self.chunks: list[str] = []

    def __getattr__(self, name):
        return getattr(self._reader, name)

    def read_chunk(self, key, slot):
        self.chunks.append(key)
        return self._reader.read_chunk(key, slot)


@pytest.fixture
def counted(model):
    model.reader = Counting(model.reader)
    return model


# Lazily


def test_opening_reads_no_chunk(counted):
    tensor = counted["big"]
    about = (tensor.name, tensor.dtype, tensor.shape, tensor.ndim, tensor.size, tensor.nbytes, tensor.encoding)
    assert about == ("big", ml_dtypes.bfloat16, (1600, 2400), 2, 3_840_000, 7_680_000, "planes")
    assert len(tensor) == 1600
    assert 0.5 < tensor.stored_nbytes / tensor.nbytes < 0.9
    assert repr(tensor) == "<mzstore.Tensor 'big': bfloat16 [1600, 2400], planes>"
    assert "15 tensors" in repr(counted)
    assert counted.nbytes == sum(tensor.nbytes for tensor in counted.values())
    assert counted.reader.chunks == []


@pytest.mark.parametrize(
    ("index", "chunks"),
    [
        (np.s_[0, 0], ["c/0/0/0"]),
        (np.s_[-1, -1], ["c/7/7/0"]),
        (np.s_[199:201, 299], ["c/0/0/0", "c/1/0/0"]),
        (np.s_[200], [f"c/1/{j}/0" for j in range(8)]),
        (np.s_[:, 300:600], [f"c/{i}/1/0" for i in range(8)]),
        (np.s_[::1000, ::-2399], ["c/0/0/0", "c/0/7/0", "c/5/0/0", "c/5/7/0"]),
        (np.s_[3:3], []),
        (np.s_[5, 9:0], []),
        (np.s_[..., 2400:], []),
    ],
    ids=str,
)
def test_reads_the_chunks_that_are_touched(index, chunks, counted):
    assert bits(counted["big"][index]) == bits(BIG[index])
    assert counted.reader.chunks == [f"big/{chunk}" for chunk in chunks]


def test_a_constant_is_one_chunk(counted):
    assert not counted["zeros"][3:7, 9].any()
    assert counted.reader.chunks == ["zeros/c/0/0"]


def test_an_empty_tensor_is_no_chunk(counted):
    assert counted["empty"][...].shape == (0, 5)
    assert counted["empty"][:, 1].shape == (0,)
    assert counted.reader.chunks == []


def test_loading_reads_only_what_is_named(counted):
    counted.load(["ids", "layers.0.*"], threads=1)
    assert {key.partition("/")[0] for key in counted.reader.chunks} == {"ids", "layers.0.weight", "layers.0.bias"}


# Values


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_index_of_any_tensor(archive, data):
    with mzstore.open(archive) as model:
        arrays = {**small_model(), "odd": ODD}
        name = data.draw(st.sampled_from(list(arrays)))
        array = arrays[name]
        index = data.draw(npst.basic_indices(array.shape, allow_newaxis=False))
        found, expected = model[name][index], array[index]
        assert type(found) is type(expected)
        assert bits(found) == bits(expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_slices_of_every_dtype(dtype):
    array = random_bits(dtype, (9, 11), 1)
    with mzstore.open(saved({"w": array})) as model:
        for index in np.s_[4, 5], np.s_[:, 3], np.s_[::-2, 1:9:3], np.s_[2:2], np.s_[-1, ::-1], np.s_[..., 1::2]:
            assert bits(model["w"][index]) == bits(array[index])


def test_an_array_of_numpy(model):
    values = np.asarray(model["layers.0.weight"])
    assert bits(values) == bits(small_model()["layers.0.weight"])
    assert np.asarray(model["ids"], np.float64).dtype == np.float64
    assert np.array(model["step"]).shape == ()
    with pytest.raises(ValueError, match="without a copy"):
        np.array(model["ids"], copy=False)
    assert (model["mask"][...] | np.asarray(model["mask"])).shape == (20, 30)


def test_len_of_a_scalar(model):
    with pytest.raises(TypeError, match="len"):
        len(model["step"])


def test_what_is_read_is_the_callers(model):
    """No two reads share memory, and what was read stays when the model is closed."""
    a, b = model["big"][:100], model["big"][:100]
    a[...] = 0
    assert bits(b) == bits(BIG[:100])
    loaded = model.load(["embed.weight", "lm_head.weight"])
    loaded["embed.weight"][...] = 0
    assert bits(loaded["lm_head.weight"]) == bits(small_model()["lm_head.weight"])
    assert a.flags.writeable
    assert b.flags.writeable


# Into the caller's memory


OUTS = {
    "contiguous": lambda shape, dtype: np.empty(shape, dtype),
    "fortran": lambda shape, dtype: np.empty(shape, dtype, order="F"),
    "transposed": lambda shape, dtype: np.empty(shape[::-1], dtype).T,
    "columns of a wider one": lambda shape, dtype: np.empty((*shape[:-1], shape[-1] + 9), dtype)[..., 4:-5],
    "every third row": lambda shape, dtype: np.empty((3 * shape[0], *shape[1:]), dtype)[::3],
    "every second value": lambda shape, dtype: np.empty((*shape[:-1], 2 * shape[-1]), dtype)[..., ::2],
    "backwards": lambda shape, dtype: np.empty(shape, dtype)[::-1],
    "each row backwards": lambda shape, dtype: np.empty(shape, dtype)[..., ::-1],
    "a field of records": lambda shape, dtype: np.empty(shape, [("a", "u1"), ("b", dtype)])["b"],
}


@pytest.mark.parametrize("kind", OUTS)
@pytest.mark.parametrize("name", ["big", "odd", "layers.1.weight", "zeros", "ids", "noise", "phase", "mask", "four"])
def test_read_into(name, kind, model):
    expected = model[name][...]
    out = OUTS[kind](expected.shape, expected.dtype)
    base = out if out.base is None else out.base
    mark = np.zeros((), base.dtype)
    base[...] = mark
    assert model[name].read(out) is out
    assert bits(out) == bits(expected)
    out[...] = np.zeros((), expected.dtype)
    assert bits(base) == bits(np.full_like(base, mark)), "what lies between the values is not touched"


@pytest.mark.parametrize("strides", [(5, 5), (1, 5), (5, 1), (7, 9)])
@pytest.mark.parametrize("shape", [(4000, 1), (1, 4000), (1, 1), (4000, 1, 1), (1, 4000, 1), (80, 1, 50)])
def test_read_into_axes_of_length_1(shape, strides):
    """The stride of an axis of length 1 means nothing, and can be anything."""
    values = weights(shape, 1, "bfloat16")
    with mzstore.open(saved({"w": values})) as model:
        big = np.zeros([n * s for n, s in zip(shape, (*strides, 3), strict=False)], values.dtype)
        out = big[tuple(slice(None, None, s) for s in (*strides, 3)[: len(shape)])]
        assert out.shape == shape
        model["w"].read(out)
        assert bits(out) == bits(values)
        assert np.count_nonzero(big.view(np.uint16)) == np.count_nonzero(values.view(np.uint16))


@pytest.mark.parametrize(
    ("out", "text"),
    [
        (np.empty((1600, 2401), ml_dtypes.bfloat16), "'out' is bfloat16 of (1600, 2401)"),
        (np.empty(1600 * 2400, ml_dtypes.bfloat16), "'out' is bfloat16 of (3840000,)"),
        (np.empty((1600, 2400), np.float16), "'out' is float16 of (1600, 2400)"),
        (np.empty((1600, 2400), np.uint16), "'out' is uint16 of (1600, 2400)"),
        (np.empty((2400, 1600), np.float64)[::2].T[:, ::2], "'out' is float64"),
        (np.broadcast_to(np.zeros((1, 2400), ml_dtypes.bfloat16), (1600, 2400)), "not a writable array"),
        ([[0.0] * 2400] * 1600, "not a writable array"),
        (bytearray(7_680_000), "not a writable array"),
        (np.empty((1600, 2400), "U3"), "<U3"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_out_that_does_not_fit(out, text, model):
    with pytest.raises(ValueError, match=re.escape(text)) as refused:
        model["big"].read(out)
    assert "'big'" in str(refused.value)


def test_out_of_the_other_byte_order(model):
    with pytest.raises(ValueError, match="'ids'"):
        model["ids"].read(np.empty((17, 3), ">i8"))


def test_read_into_torch(model):
    out = torch.empty(1600, 2400, dtype=torch.bfloat16)
    assert model["big"].read(out) is out
    assert out.view(torch.int16).numpy().tobytes() == BIG.tobytes()
    whole = torch.zeros(3, 64, 96, dtype=torch.bfloat16)
    model["embed.weight"].read(whole[1])
    assert bits(whole[1].view(torch.int16).numpy())[2] == small_model()["embed.weight"].tobytes()
    assert not whole[0].any()
    assert not whole[2].any()
    parameter = torch.nn.Parameter(torch.zeros(50, 70))
    model["layers.0.weight"].read(parameter)
    assert bits(parameter.detach().numpy()) == bits(small_model()["layers.0.weight"])


def test_torch_out_that_does_not_fit(model):
    for out, text in (
        (torch.empty(2400, 1600, dtype=torch.bfloat16).T, "contiguous"),
        (torch.empty(1600, 2400, dtype=torch.float16), "'out' is float16"),
        (torch.empty(2, 2, dtype=torch.bfloat16), "of (2, 2)"),
        (torch.empty(1600, 2400, dtype=torch.bfloat16, device="meta"), "on the CPU"),
    ):
        with pytest.raises(ValueError, match=re.escape(text)):
            model["big"].read(out)


def test_out_must_not_be_a_lazy_conjugate(model):
    """Its memory holds other values than it shows."""
    out = torch.zeros(8, 9, dtype=torch.complex64).conj()
    with pytest.raises(ValueError, match="'phase'"):
        model["phase"].read(out)


# Names


def test_a_model_is_a_mapping(model):
    assert list(model) == [*small_model(), "big", "odd"]
    assert "big" in model
    assert "bug" not in model
    assert 3 not in model
    assert dict(model).keys() == model.keys()
    assert model.get("bug") is None


def test_an_unknown_name_names_the_nearest(model):
    with pytest.raises(KeyError, match=r"no tensor 'layer.0.weight' in '<memory>'; nearest: 'layers\.0\.weight'"):
        model["layer.0.weight"]
    with pytest.raises(KeyError, match=r"nearest: 'embed\.weight'"):
        model.load(["ids", "embed.wieght"])
    with pytest.raises(KeyError, match=r"no tensor matches 'encoder\.\*'"):
        model.load("encoder.*")
    with pytest.raises(KeyError):
        model[3]


def test_names_and_patterns(model):
    assert model.names("layers.*") == ["layers.0.weight", "layers.0.bias", "layers.1.weight"]
    assert model.names(["*.bias", "layers.0.*"]) == ["layers.0.bias", "layers.0.weight"]
    assert model.names("layers.[01].weight") == ["layers.0.weight", "layers.1.weight"]
    assert model.names([]) == []
    assert list(model.load("ids")) == ["ids"]
    assert list(model.load([])) == []


def test_a_name_that_is_a_pattern():
    with mzstore.open(saved({"a[0]": np.array(1), "a0": np.array(2), "*": np.array(3)})) as model:
        assert model.names("a[0]") == ["a[0]"]
        assert model.names("*") == ["*"]


def test_an_unknown_framework(model):
    with pytest.raises(ValueError, match="framework 'jax' is none of numpy, torch"):
        model.load(framework="jax")


# Threads and processes


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_threads_of_a_load(threads, model):
    found = model.load(threads=threads)
    assert {name: bits(array) for name, array in found.items()} == {
        name: bits(array) for name, array in {**small_model(), "big": BIG, "odd": ODD}.items()
    }
    assert bits(model["odd"].read(threads=threads)) == bits(ODD)


@pytest.mark.parametrize("threads", [1, 4])
def test_the_first_error_ends_a_load(threads, archive, tmp_path):
    data = bytearray(archive)
    at = data.index(b"big/c/3/3/0") + 500
    data[at] ^= 255
    with mzstore.open(bytes(data)) as model:
        with pytest.raises(mzstore.CorruptError, match=r"crc32c.*tensor 'big', chunk \(3, 3\)"):
            model.load(threads=threads)
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("mzstore")]
        assert bits(model["odd"][...]) == bits(ODD), "what is whole can still be read"


@pytest.mark.parametrize("kind", ["archive", "tree"])
def test_many_threads_of_the_caller(kind, tmp_path):
    tensors = {**small_model(), "odd": ODD}
    mzstore.save(tmp_path / "model", tensors, kind=kind)
    with mzstore.open(tmp_path / "model") as model, concurrent.futures.ThreadPoolExecutor(8) as pool:
        names = list(tensors) * 6
        for name, found in zip(names, pool.map(lambda name: model[name][...], names), strict=True):
            assert bits(found) == bits(tensors[name])


def _in_child(model, queue):
    try:
        queue.put([bits(model["odd"][1]), bits(model.load("big", threads=3)["big"])])
    except BaseException as error:
        queue.put(repr(error))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes(method, tmp_path):
    mzstore.save(tmp_path / "model.mz", {"big": BIG, "odd": ODD})
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    with mzstore.open(tmp_path / "model.mz") as model:
        model.load(threads=2)
        children = [context.Process(target=_in_child, args=(model, queue)) for _ in range(2)]
        for child in children:
            child.start()
        for _ in children:
            assert queue.get(timeout=60) == [bits(ODD[1]), bits(BIG)]
        assert bits(model["odd"][...]) == bits(ODD), "the parent's model still works"
        for child in children:
            child.join()


def test_pickling(archive, tmp_path):
    (tmp_path / "model.mz").write_bytes(archive)
    for location in (archive, tmp_path / "model.mz", f"file://{tmp_path}/model.mz"):
        with mzstore.open(location) as model, pickle.loads(pickle.dumps(model)) as again:
            assert bits(again["odd"][...]) == bits(ODD)


def test_pickling_of_errors():
    with pytest.raises(mzstore.FormatError) as refused:
        mzstore.open(b"not a model")
    again = pickle.loads(pickle.dumps(refused.value))
    assert (type(again), str(again), again.where, again.clause) == (
        mzstore.FormatError, str(refused.value), refused.value.where, refused.value.clause,
    )  # fmt: skip


# Closing


def test_a_closed_model(tmp_path, archive):
    (tmp_path / "model.mz").write_bytes(archive)
    model = mzstore.open(tmp_path / "model.mz")
    tensor = model["big"]
    model.close()
    model.close()
    assert model["odd"].shape == ODD.shape, "what the documents say is still known"
    for read in (lambda: tensor[0], lambda: model["odd"][...], model.load, lambda: model.assets["a.txt"]):
        with pytest.raises(ValueError, match=r"model\.mz' is closed"):
            read()


def test_files_are_closed(tmp_path, archive):
    (tmp_path / "model.mz").write_bytes(archive)
    before = os.listdir("/proc/self/fd")
    model = mzstore.open(tmp_path / "model.mz")
    model["ids"][...]
    del model
    gc.collect()
    with mzstore.open(tmp_path / "model.mz"), pytest.raises(mzstore.FormatError):
        mzstore.open(__file__)
    assert os.listdir("/proc/self/fd") == before


# Assets


def test_assets(model):
    assert list(model.assets) == ["a.txt", "b/c.bin"]
    assert model.assets["a.txt"] == b"hello"
    assert model.assets["b/c.bin"] == bytes(3 << 20)
    assert len(model.assets) == 2
    with pytest.raises(KeyError):
        model.assets["b"]


# Locations


@pytest.mark.parametrize("kind", ["archive", "tree"])
@pytest.mark.parametrize("place", ["path", "str", "file", "memory"])
def test_locations(kind, place, tmp_path):
    location = {
        "path": tmp_path / "model",
        "str": str(tmp_path / "model"),
        "file": f"file://{tmp_path}/model",
        "memory": f"memory://{uuid.uuid4()}/model",
    }[place]
    tensors = small_model()
    mzstore.save(location, tensors, kind=kind, assets={"a/b.txt": b"hello"})
    with mzstore.open(location) as model:
        assert {name: bits(a) for name, a in model.load().items()} == {name: bits(a) for name, a in tensors.items()}
        assert dict(model.assets) == {"a/b.txt": b"hello"}
        assert model["embed.weight"].stored_nbytes > 1000


def test_bytes_of_any_kind(archive):
    for data in (archive, bytearray(archive), memoryview(archive)):
        with mzstore.open(data) as model:
            assert bits(model["odd"][2]) == bits(ODD[2])


@pytest.mark.parametrize("location", ["missing.mz", "memory://missing/model.mz", "memory://missing/"])
def test_nothing_there(location, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(mzstore.MzError, match="missing"):
        mzstore.open(location)


def test_an_unknown_protocol():
    with pytest.raises((mzstore.MzError, ValueError), match="gopher"):
        mzstore.open("gopher://host/model.mz")


def test_an_empty_directory(tmp_path):
    with pytest.raises(mzstore.FormatError, match=re.escape(f"has no zarr.json (in {tmp_path}")):
        mzstore.open(tmp_path)


def test_a_fifo_is_no_model(tmp_path):
    """Opening one waits for a writer, for ever."""
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(mzstore.StorageError, match="fifo"):
        mzstore.open(tmp_path / "fifo")


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null"])
def test_a_device_is_no_model(device):
    with pytest.raises(mzstore.MzError, match=device):
        mzstore.open(device)


@pytest.mark.parametrize("what", ["fifo", "/dev/zero", "directory", "sparse"])
def test_a_tree_of_strange_files(what, tmp_path):
    mzstore.save(tmp_path / "model", {"w": np.arange(50)}, kind="tree")
    chunk = next(path for path in (tmp_path / "model" / "w").rglob("*") if path.is_file() and path.name != "zarr.json")
    chunk.unlink()
    if what == "fifo":
        os.mkfifo(chunk)
    elif what == "directory":
        chunk.mkdir()
    elif what == "sparse":
        with chunk.open("wb") as file:
            file.truncate(1 << 42)
    else:
        chunk.symlink_to(what)
    with mzstore.open(tmp_path / "model") as model, pytest.raises(mzstore.MzError):
        model["w"][...]


def test_a_file_that_shrinks_while_it_is_open(tmp_path):
    mzstore.save(tmp_path / "model.mz", {"odd": ODD, "big": BIG})
    with mzstore.open(tmp_path / "model.mz") as model:
        os.truncate(tmp_path / "model.mz", 1000)
        with pytest.raises(mzstore.StorageError, match=r"ends before byte \d+; it had \d+ bytes when it was opened"):
            model["big"][...]


def test_a_file_that_is_replaced_while_it_is_open(tmp_path):
    """A reader goes on with the file that it opened."""
    mzstore.save(tmp_path / "model.mz", {"w": ODD})
    with mzstore.open(tmp_path / "model.mz") as model:
        mzstore.save(tmp_path / "model.mz", {"w": ODD + 1})
        assert bits(model["w"][...]) == bits(ODD)


def test_zarr_sees_the_components(tmp_path):
    for kind in ("archive", "tree"):
        mzstore.save(tmp_path / kind, {"ids": np.arange(12).reshape(3, 4), "w": weights((90, 80))}, kind=kind)
        with mzstore.open(tmp_path / kind) as model:
            group = model.zarr()
            assert group["w"].shape == (4, 90, 80)
            assert group["w"].dtype == np.uint8


def test_a_model_is_equal_only_to_itself(model, archive):
    with mzstore.open(archive) as other:
        assert model == model
        assert model != other
        assert {model: 1}[model] == 1


def test_a_scalar_cannot_be_walked():
    with mzstore.open(saved({"s": np.float32(1), "v": np.arange(3)})) as model:
        with pytest.raises(TypeError):
            list(model["s"])
        assert list(model["v"]) == [0, 1, 2]


def test_a_pickled_tensor_reads_into_torch(tmp_path):
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    mzstore.save(tmp_path / "m.mz", {"w": values})
    with mzstore.open(tmp_path / "m.mz") as model:
        tensor = pickle.loads(pickle.dumps(model["w"]))
        out = torch.empty(3, 4)
        assert tensor.read(out=out) is out
    assert (out.numpy() == values).all()


def test_a_subclass_of_a_torch_tensor_is_one():
    class Mine(torch.Tensor):
        pass

    held = torch.ones(3, dtype=torch.bfloat16).as_subclass(Mine)
    with mzstore.open(saved({"w": held})) as model:
        assert torch.equal(model.load(framework="torch")["w"], torch.ones(3, dtype=torch.bfloat16))


@pytest.mark.parametrize(
    ("load", "module", "first"),
    [
        ("load", "numba", "pass"),
        ("load_quantized", "numba", "pass"),
        ("load_quantized", "mzstore.kernels.quantized", "kernels.load()"),
    ],
)
def test_a_process_forked_while_the_kernels_are_imported(load, module, first):
    """The import lock that the parent held is never released in the child, which must do without the kernels."""
    code = (
        f"""
LOAD, MODULE, FIRST = {load!r}, {module!r}, {first!r}
"""
        + """
import os, sys, threading, time
import numpy as np
import mzstore
from mzstore import kernels
class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == MODULE:
            started.set()
            time.sleep(1)
kernels.machine_code.load = lambda module: None
started = threading.Event()
sys.meta_path.insert(0, Slow())
import io
file = io.BytesIO()
mzstore.save(file, {"w": np.arange(100000, dtype=np.float32)}, threads=1)
quantized = io.BytesIO()
rules = mzstore.Recipe(bits=4.0)
mzstore.save(quantized, {"w": np.arange(100000, dtype=np.float32).reshape(100, -1)}, recipe=rules, threads=1)
exec(FIRST)
thread = threading.Thread(target=getattr(kernels, LOAD))
thread.start()
started.wait()
child = os.fork()
if child == 0:
    with mzstore.open(file.getvalue()) as model:
        kernels.expect(1 << 40)
        right = model["w"][5] == 5
    kernels._done_by_numpy = kernels.PAYS_FROM_NBYTES
    with mzstore.open(quantized.getvalue()) as model:
        os._exit(0 if right and np.isfinite(model["w"][...]).all() else 1)
thread.join()
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    )
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], timeout=60).returncode == 0

"""What is saved comes back, bit for bit: every dtype, shape, level, order of memory and framework."""

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from samples import bits, random_bits, saved, small_model, weights

import mzstore
from mzstore.dtypes import DTYPES

LEVELS = ["fast", "balanced", "max"]
SHAPES = [(), (1,), (0,), (0, 5), (3, 0, 2), (1, 1, 1), (7,), (5, 33), (33, 5), (2, 3, 4, 5), (257, 65)]


def loaded(archive: bytes, **options) -> dict[str, np.ndarray]:
    with mzstore.open(archive) as model:
        return model.load(**options)


def assert_round_trips(tensors: dict[str, np.ndarray], **options) -> bytes:
    archive = saved(tensors, **options)
    found = loaded(archive)
    assert list(found) == list(tensors)
    for name, array in tensors.items():
        assert bits(found[name]) == bits(array), name
    return archive


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_bits_of_every_dtype(dtype, level):
    assert_round_trips({str(shape): random_bits(dtype, shape, 7) for shape in SHAPES}, level=level)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [d.name for d in DTYPES.values() if d.exponent_bits and d.parts == 1])
def test_weights_with_every_special_value(dtype, level):
    values = weights((100, 130), 3, dtype)
    words = values.view(DTYPES[dtype].word)
    words[:40, 7] = random_bits(dtype, (40,), 1).view(words.dtype)
    words[5, :8] = [
        0,
        1,
        *(1 << (8 * words.itemsize - k) for k in (1, 2, 3)),
        *(int(~words.dtype.type(k)) for k in (0, 1, 2)),
    ]
    assert_round_trips({"w": values}, level=level)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e4m3fn", "int16", "uint8"])
def test_every_value_there_is(dtype):
    word = DTYPES[dtype].word
    every = np.arange(1 << (8 * word.itemsize), dtype=np.uint32).astype(word)
    values = np.concatenate([every, np.random.default_rng(0).permutation(every)]).view(DTYPES[dtype].numpy)
    for level in LEVELS:
        assert_round_trips({"w": values.reshape(2, -1)}, level=level)


@settings(max_examples=40, deadline=None)
@given(
    npst.arrays(
        st.sampled_from([np.dtype(t) for t in ("?", "u1", "<i2", "<f2", "<f4", "<f8", "<c8", "<u8")]),
        npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=12),
    ),
    st.sampled_from(LEVELS),
)
def test_whatever_hypothesis_finds(array, level):
    assert_round_trips({"w": array}, level=level)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    ("dtype", "shape"),
    [("bfloat16", (1500, 2100)), ("float32", (3, 700, 801)), ("float16", (4_000_001,)), ("float64", (1, 900_000))],
)
def test_several_chunks(dtype, shape, level):
    values = weights(shape, 1, dtype)
    archive = assert_round_trips({"w": values}, level=level)
    with mzstore.open(archive) as model:
        assert model["w"].encoding == "planes"
        assert model["w"]._entry.n_chunks > 1
        assert model["w"].stored_nbytes < 0.95 * values.nbytes


@pytest.mark.parametrize("shape", [(1000, 1100), (701, 999), (4200, 4160)])
@pytest.mark.parametrize("spoilt", [0, 1, 500])
def test_ranks(shape, spoilt):
    """Words with rare exponents are escapes."""
    values = weights(shape, 8, "bfloat16")
    at = np.random.default_rng(1).integers(0, values.size, spoilt)
    values.view(np.uint16).reshape(-1)[at] = np.arange(spoilt) * 131 + 0x7F00
    archive = assert_round_trips({"w": values})
    with mzstore.open(archive) as model:
        part = model["w"]._entry.part
        assert part.ranks is not None
        assert part.n_escapes >= spoilt / 100
        for index in np.s_[5:9, ::-3], np.s_[-1], np.s_[:, 7]:
            assert bits(model["w"][index]) == bits(values[index])


@pytest.mark.parametrize("kind", ["archive", "tree"])
@pytest.mark.parametrize("level", LEVELS)
def test_a_small_model(kind, level, tmp_path):
    tensors = small_model()
    mzstore.save(tmp_path / "model", tensors, level=level, kind=kind, metadata={"step": 3, "π": [None, 1.5]})
    with mzstore.open(tmp_path / "model") as model:
        found = model.load()
        assert model.metadata == {"step": 3, "π": [None, 1.5]}
    assert {name: bits(array) for name, array in found.items()} == {name: bits(a) for name, a in tensors.items()}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "int64", "complex64", "uint4", "bool"])
def test_any_order_of_memory(dtype):
    whole = random_bits(dtype, (24, 36), 2)
    views = {
        "fortran": np.asfortranarray(whole),
        "transposed": whole.T,
        "stepped": whole[::3, 1::5],
        "backwards": whole[::-1, ::-2],
        "repeated": np.broadcast_to(whole[:1], (9, 36)),
        "newaxis": whole[:, None, ::7],
    }
    assert_round_trips(views)


@pytest.mark.parametrize("dtype", [">f4", ">i8", ">u2", ">c16", ">f8"])
def test_big_endian_comes_back_little_endian(dtype):
    values = np.arange(-20, 20).reshape(5, 8).astype(dtype)
    found = loaded(saved({"w": values}))["w"]
    assert found.dtype == np.dtype(dtype).newbyteorder("<")
    assert bits(found) == bits(values.astype(found.dtype))


def test_bytes_of_bools():
    """NumPy calls every byte but 0 true; what byte it was must not get lost."""
    values = np.arange(256, dtype=np.uint8).view(bool)
    assert_round_trips({"w": values})


def test_python_numbers_and_lists():
    found = loaded(saved({"a": 3, "b": 2.5, "c": [[1, 2], [3, 4]], "d": True}))
    assert (found["a"], found["b"], found["d"]) == (3, 2.5, True)
    np.testing.assert_array_equal(found["c"], [[1, 2], [3, 4]])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", ["float32", "int64", "bool", "uint4", "float8_e8m0fnu"])
def test_constants_cost_a_few_bytes(name, level):
    values = np.broadcast_to(random_bits(name, (4,), 5)[2], (300, 500))
    archive = assert_round_trips({"w": values}, level=level)
    with mzstore.open(archive) as model:
        assert model["w"].stored_nbytes <= 8 + 4
        assert bits(model["w"][7:9, ::100]) == bits(values[7:9, ::100])


def test_a_constant_of_nan():
    values = np.full((100, 100), 0x7FC12345, np.uint32).view(np.float32)
    archive = assert_round_trips({"w": values})
    assert len(archive) < 2000


def test_almost_a_constant():
    values = np.zeros((500, 500), np.float32)
    values[-1, -1] = -0.0
    assert_round_trips({"w": values})


@pytest.mark.parametrize("shape", [(0, 10_000_000), (10_000_000, 0), (3, 0, 1 << 40), (1 << 30, 0, 5)])
@pytest.mark.parametrize("name", ["float32", "uint4", "complex64"])
def test_empty_tensors_with_long_axes(shape, name):
    assert_round_trips({"w": np.empty(shape, DTYPES[name].numpy)})


def test_tied_tensors_are_stored_once():
    values = weights((200, 300), 1, "bfloat16")
    archive = assert_round_trips({"a": values, "b": values.copy(), "c": values.reshape(300, 200), "d": values})
    with mzstore.open(archive) as model:
        assert [model[name].encoding for name in model] == ["planes", "same", "planes", "same"]
        assert model["b"].stored_nbytes == 0
        assert model["b"].sha256 == model["a"].sha256


def test_equal_bits_of_other_dtypes_are_not_tied():
    words = np.arange(3000, dtype=np.uint16)
    assert_round_trips({"a": words, "b": words.view(np.float16), "c": words.view(ml_dtypes.bfloat16)})


def test_tensors_that_differ_after_the_first_megabyte():
    a = np.arange(600_000, dtype=np.uint32)
    b = a.copy()
    b[-1] = 0
    archive = assert_round_trips({"a": a, "b": b})
    with mzstore.open(archive) as model:
        assert model["b"].encoding != "same"


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_float32_that_is_narrower_costs_the_narrower(name, level):
    narrow = weights((300, 400), 2, name)
    wide = narrow.astype(np.float32)
    assert_round_trips({"w": wide}, level=level)
    assert abs(len(saved({"w": wide}, level=level)) - len(saved({"w": narrow}, level=level))) < 300


@pytest.mark.parametrize("bits_of_nan", [0x7FC00000, 0x7FC00001, 0xFFC10000, 0x7F800001, 0xFFFFFFFF])
@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_nan_among_narrow_values(name, bits_of_nan):
    wide = weights((100, 100), 2, name).astype(np.float32)
    wide.view(np.uint32)[50, 50] = bits_of_nan
    assert_round_trips({"w": wide})


def test_one_value_that_is_not_narrow():
    wide = weights((1000, 1200), 2, "bfloat16").astype(np.float32)
    wide[999, 1199] = 0.1
    assert_round_trips({"w": wide})


@pytest.mark.parametrize("level", LEVELS)
def test_noise_stays_raw(level):
    noise = np.random.default_rng(0).integers(0, 256, 500_000, dtype=np.uint8)
    archive = assert_round_trips({"w": noise}, level=level)
    with mzstore.open(archive) as model:
        assert model["w"].encoding == "raw"
        assert model["w"].stored_nbytes <= noise.nbytes + 4 * math.ceil(noise.nbytes / (64 << 10))
    assert len(archive) < noise.nbytes + 1500


@pytest.mark.parametrize("level", LEVELS)
def test_the_same_input_gives_the_same_bytes(level):
    tensors = small_model() | {"large": weights((1500, 1600), 9, "bfloat16")}
    assets = {"b.json": b"{}", "a/b.txt": b"x" * 5000}
    archives = {saved(tensors, level=level, threads=threads, assets=assets, metadata={"a": 1}) for threads in (1, 4, 4)}
    assert len(archives) == 1


@pytest.mark.parametrize(
    "name",
    ["", " ", ".", "..", "/", "a/b", "a\\b", "zarr.json", "assets", "layouts", "c", "CON", "nul.weight", "a.", "日本語",
     "a\0b", "\n", "%41", "~", "__x", "x" * 4096, "é" * 2048, "e\u0301", "\U0001f600", "C:", "a" * 200 + "b"],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["archive", "tree"])
def test_any_name(name, kind, tmp_path):
    mzstore.save(tmp_path / "model", {name: np.arange(6)}, kind=kind)
    with mzstore.open(tmp_path / "model") as model:
        assert list(model) == [name]
        assert model[name][...].tolist() == [0, 1, 2, 3, 4, 5]
    assert [path.name for path in tmp_path.iterdir()] == ["model"], "nothing outside the model's own place"


def test_names_that_fold_together():
    names = ["weight", "Weight", "WEIGHT", "é", "e\u0301", "É", "weight~2", "ß", "ss", "x" * 300, "x" * 301, "X" * 300]
    assert_round_trips({name: np.array([i]) for i, name in enumerate(names)})


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=40), unique=True, max_size=12))
def test_any_names(names):
    names = [name for name in names if not any("\ud800" <= c <= "\udfff" for c in name)]
    assert_round_trips({name: np.array(i) for i, name in enumerate(names)})


def test_a_model_of_nothing():
    assert_round_trips({})


# PyTorch


def torch_model():
    import torch

    generator = torch.Generator().manual_seed(0)
    made = {}
    for name in (
        "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32",
        "float64", "bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz",
        "float8_e8m0fnu", "float4_e2m1fn_x2", "complex64", "complex128",
    ):  # fmt: skip
        dtype = getattr(torch, name)
        for shape in ((), (7,), (5, 12), (0, 3)):
            if name == "float4_e2m1fn_x2" and not shape:
                continue
            nbytes = math.prod(shape) * dtype.itemsize
            memory = torch.randint(0, 256, (nbytes,), dtype=torch.uint8, generator=generator)
            made[f"{name} {shape}"] = memory.view(dtype).reshape(shape)
    return made


def torch_bits(tensor):
    import torch

    return str(tensor.dtype), tuple(tensor.shape), tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("level", LEVELS)
def test_torch_in_and_out(level):
    tensors = torch_model()
    found = loaded(saved(tensors, level=level), framework="torch")
    assert {name: torch_bits(t) for name, t in found.items()} == {name: torch_bits(t) for name, t in tensors.items()}


def test_torch_in_any_order_of_memory():
    import torch

    base = torch.arange(240, dtype=torch.float32).reshape(12, 20).requires_grad_()
    views = {
        "transposed": base.T,
        "stepped": base[::2, ::3],
        "expanded": base[:1].expand(4, 20),
        "conj": torch.tensor([1 + 2j, 3 - 1j]).conj(),
        "neg": torch.tensor([1 + 2j, 3 - 1j]).conj().imag,
        "parameter": torch.nn.Parameter(base.detach()),
    }
    found = loaded(saved(views), framework="torch")
    for name, tensor in views.items():
        assert torch_bits(found[name]) == torch_bits(tensor.detach().resolve_conj().resolve_neg()), name


def test_torch_and_numpy_give_the_same_bytes():
    import torch

    values = weights((60, 80))
    assert saved({"w": values}) == saved({"w": torch.from_numpy(values)})


def test_four_bits_between_torch_and_numpy():
    import torch

    pairs = torch.arange(256, dtype=torch.uint8).reshape(8, 32)
    archive = saved({"w": pairs.view(torch.float4_e2m1fn_x2)})
    values = loaded(archive)["w"]
    assert values.shape == (8, 64)
    assert (values.view(np.uint8)[0, :4] == [0, 0, 1, 0]).all(), "the low half is the first value"
    assert torch_bits(loaded(archive, framework="torch")["w"])[2] == pairs.numpy().tobytes()


def test_int4_in_torch_comes_as_int8():
    values = np.arange(-8, 7, dtype=np.int8).reshape(3, 5).astype(ml_dtypes.int4)
    found = loaded(saved({"w": values}), framework="torch")["w"]
    assert found.tolist() == values.astype(np.int8).tolist()


def test_sparse_tensors_of_torch_cannot_be_stored():
    import torch

    with pytest.raises(ValueError, match=r"tensor 'w': its layout is torch\.sparse_coo; make it dense first"):
        saved({"w": torch.eye(3).to_sparse()})


@pytest.mark.parametrize(
    "value",
    [np.array(["a"]), np.array([b"a"]), np.array([None]), np.zeros(3, "datetime64[s]"), np.zeros(2, [("a", "i4")])],
    ids=lambda value: str(value.dtype),
)
def test_arrays_that_cannot_be_stored(value):
    with pytest.raises(ValueError, match="tensor 'w': no tensor can have dtype"):
        saved({"w": value})

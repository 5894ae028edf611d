"""Quantized tensors as users meet them: saved by a rule, read whole, by slices, in any dtype, and by their components."""

import hashlib
import io
import math
import uuid
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from samples import bits, saved, weights

import mzstore
from mzstore import Recipe, Rule
from mzstore.archive import ArchiveReader
from mzstore.dtypes import BY_NUMPY, DTYPES, cast
from mzstore.payload import compress, seal

BF16 = DTYPES["bfloat16"].numpy

RULES: dict[str, dict[str, Any]] = {
    "4 bits": {"bits": 4.0},
    "2 bits": {"bits": 2.0},
    "1.3 bits": {"bits": 1.3},
    "9 bits": {"bits": 9.0},
    "nmse": {"nmse": 1e-3},
    "snr_db": {"snr_db": 25},
    "max_error": {"max_error": 0.005},
    "step": {"step": 0.01},
    "few levels": {"step": 0.004, "levels": 6},
    "rounded to the nearest": {"step": 0.02, "lagrangian": 0},
    "symmetric": {"quantizer": "symmetric", "bits": 4, "group": 32},
    "symmetric 12": {"quantizer": "symmetric", "bits": 12, "scales": "column"},
    "symmetric 16": {"quantizer": "symmetric", "bits": 16, "scales": "row"},
    "symmetric tensor": {"quantizer": "symmetric", "bits": 2, "scales": "tensor"},
    "affine": {"quantizer": "affine", "bits": 3, "group": 32, "scale_dtype": "bfloat16"},
    "affine 12": {"quantizer": "affine", "bits": 12, "scales": "row", "search": True},
    "affine range": {"quantizer": "affine", "bits": 5, "low": -0.04, "high": 0.06},
    "affine 1": {"quantizer": "affine", "bits": 1, "scales": "row"},
    "kmeans": {"quantizer": "codebook", "bits": 3},
    "kmeans 300": {"quantizer": "codebook", "levels": 300},
    "vectors": {"quantizer": "codebook", "bits": 2, "dimension": 4},
    "wide vectors": {"quantizer": "codebook", "bits": 1, "dimension": 8},
    "nf4": {"quantizer": "nf4"},
    "fp4": {"quantizer": "fp4", "group": 32},
    "float8": {"quantizer": "float8"},
    "float8 e5m2": {"quantizer": "float8", "format": "e5m2", "scales": "tensor"},
    "mxfp8": {"quantizer": "mxfp8"},
    "mxfp4": {"quantizer": "mxfp4", "search": True},
    "nvfp4": {"quantizer": "nvfp4"},
}
FOR_MATRICES = {"tiles": {"quantizer": "symmetric", "bits": 6, "tile": [16, 32]}}
TENSORS = {
    # Large enough that documents leave room for codes.
    "line": weights((20480,), 1),
    "matrix": weights((190, 192), 2, "bfloat16"),
    "cube": weights((3, 200, 64), 3, "float16"),
    "kernel": weights((4, 3, 70, 64), 4, "bfloat16"),
    "cut": weights((521, 1088), 5, "float64"),  # the only one of several chunks, those at the edges beyond it
}
TENSORS["matrix"][3, 7] = 0.5  # an outlier


def recipe(**rule: Any) -> Recipe:
    return Recipe([Rule(**rule)], defaults=False)


def quantized(rule: dict[str, Any], tensors: dict[str, np.ndarray], **options: Any) -> bytes:
    return saved(tensors, recipe=recipe(**rule), **options)


def spread(component: Any, shape: tuple[int, ...]) -> np.ndarray:
    """An entry for each value."""
    values = np.asarray(component)
    for axis, (n, length) in enumerate(zip(component.block, shape, strict=True)):
        values = np.repeat(values, n, axis).take(range(length), axis)
    return values


def rebuilt(tensor: mzstore.Tensor, dtype: np.dtype) -> np.ndarray:
    """The values of a quantized tensor out of its components, as the documentation has it."""
    parts = tensor.components()
    codes = np.asarray(parts["codes"])
    if "codebook" in parts:
        values = np.asarray(parts["codebook"])[codes].reshape(tensor.shape)
    else:
        zero = spread(parts["zero_point"], tensor.shape).astype(np.int64)
        values = (codes.astype(np.int64) - zero).astype(np.float32)
    for name in (name for name in parts if name.startswith("scale")):
        values = values * spread(parts[name], tensor.shape).astype(np.float32)
    values = values.astype(dtype)
    if "2.positions" in parts:
        kept = np.asarray(parts["2.values"])
        source, target = BY_NUMPY[kept.dtype], BY_NUMPY[dtype]
        values.reshape(-1)[parts["2.positions"][...]] = cast(kept.view(source.word), source, target).view(dtype)
    return values


@pytest.fixture(scope="module", params=[*RULES, *FOR_MATRICES])
def case(request):
    """(rule, tensors, archive) of one rule."""
    if request.param in RULES:
        rule, tensors = RULES[request.param], TENSORS
    else:
        rule, tensors = FOR_MATRICES[request.param], {name: TENSORS[name] for name in ("matrix", "cut")}
    return rule, tensors, quantized(rule, tensors)


def test_every_quantizer(case):
    """What was saved is lossy as its documents say, and all ways of reading give the same bits."""
    rule, tensors, data = case
    assert mzstore.verify(data).problems == ()
    with mzstore.open(data) as model:
        loaded = model.load(threads=3)
        for name, tensor in model.items():
            assert tensor.encoding in ("quantized", "quantized + sparse")
            values = tensor[...]
            assert hashlib.sha256(values.tobytes()).hexdigest() == tensor.sha256
            assert (
                bits(loaded[name])
                == bits(values)
                == bits(rebuilt(tensor, tensor.dtype))
                == bits(tensor.read(threads=2))
            )
            check_quality(rule, tensor, tensors[name].astype(np.float64), values.astype(np.float64))


def check_quality(rule: dict[str, Any], tensor: mzstore.Tensor, before: np.ndarray, after: np.ndarray) -> None:
    assert tensor.quality.keys() == {"asked", "reached"}
    asked, reached = tensor.quality["asked"], tensor.quality["reached"]
    assert asked == recipe(**rule).rules[0].asked
    error = after - before
    nmse = (error**2).sum() / (before**2).sum()
    assert reached["nmse"] == pytest.approx(nmse, 1e-4)
    assert reached["snr_db"] == pytest.approx(-10 * math.log10(nmse), abs=1e-3)
    assert reached["rmse"] == pytest.approx(math.sqrt((error**2).mean()), rel=1e-4)
    assert reached["max_error"] == pytest.approx(abs(error).max(), rel=1e-4)
    assert reached["bits"] * reached["ratio"] == pytest.approx(8 * tensor.dtype.itemsize, rel=1e-4)
    assert 8 * tensor.stored_nbytes / tensor.size < reached["bits"]
    if "nmse" in rule:
        assert nmse == pytest.approx(rule["nmse"], rel=0.01)
    if "snr_db" in rule:
        assert -10 * math.log10(nmse) == pytest.approx(rule["snr_db"], abs=0.04)
    if "max_error" in rule:
        assert abs(error).max() <= rule["max_error"] * (1 + 2**-7)  # rounded to the dtype
    if rule.keys() == {"bits"}:
        assert reached["bits"] == pytest.approx(rule["bits"], rel=0.1)


def test_the_same_input_gives_the_same_bytes(case):
    rule, tensors, data = case
    assert quantized(rule, tensors, threads=1) == data
    assert quantized(rule, tensors, threads=5) == data


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64", "float8_e4m3fn"])
def test_every_dtype(case, dtype):
    """From float32 straight to the dtype, whatever the tensor's own is."""
    _, _, data = case
    wanted = DTYPES[dtype].numpy
    with mzstore.open(data) as model:
        for name, values in model.load(dtype=dtype).items():
            tensor = model[name]
            assert bits(values) == bits(
                rebuilt(tensor, np.dtype(np.float32) if dtype == "float8_e4m3fn" else wanted).astype(wanted)
            )
            out = np.empty(tensor.shape[::-1], wanted).T
            assert tensor.read(out, dtype=wanted) is out
            assert bits(np.ascontiguousarray(out)) == bits(values)


def test_codes_of_decoded_values_are_the_same():
    """Where the rule gives all parameters, and where scales are those of the largest value."""
    for name in (
        "step",
        "rounded to the nearest",
        "affine range",
        "symmetric",
        "nf4",
        "fp4",
        "mxfp4",
        "nvfp4",
        "float8",
    ):
        rule = RULES[name] | ({"lagrangian": 0} if name == "step" else {})
        tensors = {"w": weights((90, 192), 2)}
        with mzstore.open(quantized(rule, tensors)) as once:
            codes, values = np.asarray(once["w"].components()["codes"]), once["w"][...]
            with mzstore.open(quantized(rule, {"w": values})) as twice:
                assert bits(twice["w"].components()["codes"][...]) == bits(codes), name
                np.testing.assert_allclose(twice["w"][...], values, rtol=1e-3, err_msg=name)


# Slices, remote storage, the cache

MIXED = {f"{rule}/{name}": (rule, array) for rule in RULES for name, array in TENSORS.items() if name != "cut"}
MIXED |= {f"{rule}/cut": (rule, TENSORS["cut"]) for rule in ("2 bits", "affine", "vectors", "symmetric 12", "nvfp4")}


@pytest.fixture(scope="module")
def mixed():
    rules = [Rule(name=f"{rule}/*", **keys) for rule, keys in RULES.items()]
    return saved({name: array for name, (_, array) in MIXED.items()}, recipe=Recipe(rules, defaults=False))


@pytest.fixture(scope="module")
def whole(mixed):
    with mzstore.open(mixed) as model:
        return model.load()


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_slices(mixed, whole, data):
    name = data.draw(st.sampled_from(list(MIXED)))
    index = data.draw(npst.basic_indices(MIXED[name][1].shape, allow_newaxis=False))
    with mzstore.open(mixed, cache_bytes=data.draw(st.sampled_from([0, 1 << 20]))) as model:
        tensor = model[name]
        expected = whole[name][index]
        assert bits(tensor[index]) == bits(expected)
        out = np.empty(expected.shape, tensor.dtype)
        tensor.read(out, index=index)
        assert bits(out) == bits(np.asarray(expected))
        dtype = data.draw(st.sampled_from(["float32", "bfloat16", "float64"]))
        exact = tensor.read(dtype=dtype)
        assert bits(tensor.read(index=index, dtype=dtype)) == bits(np.asarray(exact[index]))
        assert bits(model.load({name: index}, dtype=dtype)[name]) == bits(np.asarray(exact[index]))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_slices_of_components(mixed, data):
    name = data.draw(st.sampled_from(list(MIXED)))
    with mzstore.open(mixed) as model:
        component = data.draw(st.sampled_from(list(model[name].components().values())))
        values = np.asarray(component)
        index = data.draw(npst.basic_indices(values.shape, allow_newaxis=False))
        assert (values.shape, values.dtype) == (component.shape, component.dtype)
        assert bits(component[index]) == bits(values[index])


@pytest.mark.parametrize("suffix", ["mz", "zarr"])
def test_remote_storage(mixed, whole, suffix):
    base = f"memory://{uuid.uuid4().hex}"
    url = f"{base}/m.{suffix}"
    rules = [Rule(name=f"{rule}/*", **keys) for rule, keys in RULES.items()]
    mzstore.save(url, {name: array for name, (_, array) in MIXED.items()}, recipe=Recipe(rules, defaults=False))
    try:
        with mzstore.open(url) as model:
            assert {name: bits(values) for name, values in model.load().items()} == {
                n: bits(v) for n, v in whole.items()
            }
            tensor = model["affine/cut"]
            assert bits(tensor[100:103, ::-5]) == bits(whole["affine/cut"][100:103, ::-5])
            assert bits(rebuilt(tensor, tensor.dtype)) == bits(whole["affine/cut"])
    finally:
        fsspec.filesystem("memory").rm(base, recursive=True)


def test_the_cache_keeps_dtypes_apart(mixed):
    name = "4 bits/matrix"
    with mzstore.open(mixed) as model:
        exact, own = model[name].read(dtype="float32"), model[name].read()
    assert bits(own.astype(np.float32)) != bits(exact)
    with mzstore.open(mixed, cache_bytes=1 << 30) as model:
        for _ in range(2):
            for dtype, values in ((None, own), ("float32", exact)):
                assert bits(model[name].read(dtype=dtype)) == bits(values)
                assert bits(model.load(name, dtype=dtype)[name]) == bits(values)
                assert bits(model[name].read(index=np.s_[3:5], dtype=dtype)) == bits(values[3:5])
        assert model.stats.hits == 10


def test_a_slice_reads_the_chunks_that_it_touches(monkeypatch):
    data = quantized(RULES["affine"], {"w": TENSORS["cut"]})
    touched: list[str] = []
    read_chunk = ArchiveReader.read_chunk
    monkeypatch.setattr(ArchiveReader, "read_chunk", lambda self, key, slot: (touched.append(key), read_chunk(self, key, slot))[1])  # fmt: skip
    with mzstore.open(data) as model:
        parts = model["w"].components()
        assert parts["codes"].shape == (521, 1088)
        assert touched == []
        assert parts["codes"][0, 0].shape == ()
        assert touched == ["w/codes/c/0/0"]
        touched.clear()
        assert parts["scale"][520, -1:].shape == (1,)
        assert touched == ["w/scale/c/7/6"]
        touched.clear()
        model["w"][66:, :1]
        assert {key.split("/")[1] for key in touched} == {"codes", "scale", "zero_point"}
        assert {key.split("/", 2)[2] for key in touched} == {f"c/{i}/0" for i in range(1, 8)}


# Components


def layout(tensor: mzstore.Tensor) -> dict[str, tuple[str, tuple[int, ...], tuple[int, ...] | None]]:
    return {name: (c.dtype.name, c.shape, c.block) for name, c in tensor.components().items()}


def test_what_components_there_are(mixed):
    with mzstore.open(mixed) as model:
        assert layout(model["step/line"]) == {
            "codes": ("uint8", (20480,), (1,)),
            "scale": ("float32", (1,), (20480,)),
            "zero_point": ("int32", (1,), (20480,)),
        }
        assert layout(model["affine/cube"]) == {
            "codes": ("uint8", (3, 200, 64), (1, 1, 1)),
            "scale": ("bfloat16", (3, 200, 2), (1, 1, 32)),
            "zero_point": ("uint8", (3, 200, 2), (1, 1, 32)),
        }
        assert layout(model["symmetric 12/kernel"]) == {
            "codes": ("uint16", (4, 3, 70, 64), (1, 1, 1, 1)),
            "scale": ("float32", (1, 1, 1, 64), (4, 3, 70, 1)),
            "zero_point": ("int32", (1, 1, 1, 1), (4, 3, 70, 64)),
        }
        assert layout(model["wide vectors/cube"]) == {
            "codes": ("uint8", (3, 200, 8), (1, 1, 8)),
            "codebook": ("float32", (256, 8), None),
        }
        assert layout(model["nvfp4/matrix"]) == {
            "codes": ("uint8", (190, 192), (1, 1)),
            "scale": ("float16", (190, 12), (1, 16)),
            "scale-2": ("float32", (1, 1), (190, 192)),
            "codebook": ("float32", (16,), None),
        }


def test_outliers():
    values = weights((400, 64), 7)
    found = np.array([[3, 7], [3, 8], [250, 0], [399, 63]])
    values[tuple(found.T)] = [9, -8, 7, 6]
    with mzstore.open(quantized({"step": 0.01, "levels": 30}, {"w": values})) as model:
        parts = model["w"].components()
        positions, exact = parts["2.positions"], parts["2.values"]
        assert set(found @ [64, 1]) <= set(positions[...].tolist())
        assert (np.diff(positions[...]) > 0).all()
        assert len(positions) == len(exact)
        np.testing.assert_array_equal(exact[...], values.reshape(-1)[positions[...]])
        np.testing.assert_array_equal(model["w"][250], model["w"][...][250])
        assert model["w"][399, 63] == 6


def test_outliers_of_several_chunks():
    values = TENSORS["cut"].copy()
    rng = np.random.default_rng(1)
    values.reshape(-1)[rng.choice(values.size, 3000, replace=False)] = 1 + rng.random(3000)
    with mzstore.open(quantized({"step": 0.01, "levels": 30}, {"w": values})) as model:
        tensor = model["w"]
        assert tensor.encoding == "quantized + sparse"
        positions = tensor.components()["2.positions"][...]
        assert (np.diff(positions) > 0).all()
        assert set(np.flatnonzero(values > 0.9)) <= set(positions.tolist())
        assert bits(rebuilt(tensor, tensor.dtype)) == bits(tensor[...])
        assert bits(tensor.read(dtype="bfloat16")) == bits(rebuilt(tensor, BF16))


def test_components_of_torch(mixed):
    with mzstore.open(mixed) as model:
        parts = model["affine/matrix"].components(framework="torch")
        assert {name: part[...].dtype for name, part in parts.items()} == {
            "codes": torch.uint8, "scale": torch.bfloat16, "zero_point": torch.uint8
        }  # fmt: skip
        codes = parts["codes"][10:12]
        assert torch.equal(codes, torch.from_numpy(np.asarray(parts["codes"])[10:12]))
        assert model["symmetric 12/line"].components("torch")["codes"][5].dtype == torch.uint16
        with pytest.raises(ValueError, match="framework 'jax' is none of numpy, torch"):
            model["affine/matrix"].components("jax")


def test_components_of_lossless_tensors():
    noise = np.random.default_rng(0).integers(0, 256, (30, 40), dtype=np.uint8)
    tensors = {"raw": noise.view(BF16), "planes": weights((300, 40)), "constant": np.ones((40, 50))}
    with mzstore.open(saved(tensors)) as model:
        assert {name: tensor.encoding for name, tensor in model.items()} == {
            "raw": "raw", "planes": "planes", "constant": "raw"
        }  # fmt: skip
        assert bits(model["raw"].components()["values"][3:]) == bits(tensors["raw"][3:])
        assert model["constant"].components()["values"][...].tolist() == [[1.0]]
        planes = model["planes"].components()["planes"]
        assert planes.dtype == np.uint8
        assert np.asarray(planes).nbytes >= 3 * 300 * 40
        assert model["planes"].quality is None


# Codes that no writer makes


@pytest.mark.parametrize("name", ["few levels", "kmeans 300", "affine range"])
def test_what_a_read_refuses_components_refuse(name, tmp_path):
    mzstore.save(tmp_path / "m.zarr", {"w": weights((90, 192), 2)}, recipe=recipe(**RULES[name]))
    (chunk,) = (path for path in tmp_path.rglob("c/0/0") if path.parents[2].name in ("codes", "w"))
    with mzstore.open(tmp_path / "m.zarr") as model:
        nbytes = model["w"]._entry.part.components[0].array.chunk_nbytes
    body = np.zeros(nbytes, np.uint8)
    body[nbytes // 2] = 255
    chunk.write_bytes(seal(compress([body], coder="huffman", block_nbytes=1 << 17)))
    with mzstore.open(tmp_path / "m.zarr") as model:
        for read in (lambda: model["w"][:1], lambda: model["w"].components()["codes"][:1]):
            with pytest.raises(mzstore.CorruptError, match=r"tensor 'w', chunk \(0, 0\)") as caught:
                read()
            assert caught.value.clause == "quantized-5"


def test_scales_that_are_not_finite(tmp_path):
    mzstore.save(tmp_path / "m.zarr", {"w": weights((90, 192), 2)}, recipe=recipe(**RULES["symmetric"]))
    scales = np.ones((90, 6), np.float16)
    scales[80, 5] = np.nan
    data = seal(compress([scales.reshape(-1).view(np.uint8)], coder="huffman", block_nbytes=1 << 17))
    (tmp_path / "m.zarr" / "w" / "scale" / "c" / "0" / "0").write_bytes(data)
    with mzstore.open(tmp_path / "m.zarr") as model:
        assert model["w"].components()["codes"][...].shape == (90, 192)
        for read in (lambda: model["w"][:1], lambda: model["w"].components()["scale"][:1]):
            with pytest.raises(mzstore.CorruptError, match="NaN or infinity") as caught:
                read()
            assert caught.value.clause == "quantized-7"


def test_a_missing_chunk(tmp_path):
    mzstore.save(tmp_path / "m.zarr", {"w": weights((90, 192), 2)}, recipe=recipe(**RULES["symmetric"]))
    (tmp_path / "m.zarr" / "w" / "codes" / "c" / "0" / "0").unlink()
    with mzstore.open(tmp_path / "m.zarr") as model:
        assert model["w"].components()["scale"][...].shape == (90, 6)
        for read in (lambda: model["w"][:1], lambda: model["w"].components()["codes"][:1]):
            with pytest.raises(mzstore.CorruptError, match="is missing"):
                read()


# Reading in a dtype


def test_lossless_tensors_are_cast():
    tensors = {
        "f4": weights((50, 70)),
        "bf16": weights((50, 70), 1, "bfloat16"),
        "narrow": weights((50, 70), 2, "bfloat16").astype(np.float32),
        "f8": weights((8, 8), 3).astype(DTYPES["float8_e4m3fn"].numpy),
        "ids": np.arange(300),
        "mask": np.arange(9) % 2 == 0,
        "phase": np.ones(3, np.complex64),
        "four": np.zeros(4, DTYPES["int4"].numpy),
    }
    with mzstore.open(saved(tensors)) as model:
        for dtype in ("float32", "float16", "bfloat16", "float64", torch.bfloat16, np.float32, BF16):
            name = str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype) else np.dtype(dtype).name
            wanted = DTYPES[name].numpy
            for found in (model.load(dtype=dtype), model.load(dtype=dtype, framework="torch")):
                for key in ("f4", "bf16", "narrow", "f8"):
                    if isinstance(found[key], torch.Tensor):
                        assert found[key].dtype == getattr(torch, name)
                        found[key] = (
                            found[key].view(torch.uint8).numpy().reshape(-1).view(wanted).reshape(tensors[key].shape)
                        )
                    assert bits(found[key]) == bits(tensors[key].astype(wanted)), (key, dtype)
            found = model.load(dtype=dtype)
            assert all(found[key].dtype == tensors[key].dtype for key in ("ids", "mask", "phase", "four"))
        assert bits(model["f4"].read(index=np.s_[3, ::-2], dtype="float16")) == bits(
            tensors["f4"][3, ::-2].astype("f2")
        )
        assert bits(model["ids"].read(dtype="float32")) == bits(tensors["ids"].astype("f4"))
        assert bits(model["mask"].read(dtype=np.uint8)) == bits(tensors["mask"].astype("u1"))
        assert model.plan(dtype="float64").result_nbytes > model.plan().result_nbytes


def test_dtypes_that_will_not_do():
    with mzstore.open(saved({"w": weights((5, 7)), "c": np.ones(3, np.complex64)})) as model:
        with pytest.raises(ValueError, match="tensor 'w': values of float32 are not read as int8"):
            model["w"].read(dtype="int8")
        with pytest.raises(ValueError, match="tensor 'c': values of complex64 are not read as float32"):
            model["c"].read(dtype="float32")
        with pytest.raises(ValueError, match="dtype 'float33' is none of bool, "):
            model["w"].read(dtype="float33")
        with pytest.raises(ValueError, match="a model is not loaded as int8"):
            model.load(dtype="int8")
        with pytest.raises(ValueError, match=r"'out' is float64 .*; dtype='float64' converts"):
            model["w"].read(np.empty((5, 7)))
        with pytest.raises(ValueError, match=r"tensor 'w' is float64 of .*'out' is float32"):
            model["w"].read(np.empty((5, 7), np.float32), dtype="float64")
        with pytest.raises(ValueError, match=r"is float32 of \(7,\), 'out' is float32 of \(5, 7\)"):
            model["w"].read(np.empty((5, 7), np.float32), index=0)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_an_index_into_memory_of_the_caller(data):
    name = data.draw(st.sampled_from(["float32", "complex64", "uint4", "bool"]))
    array = np.arange(7 * 11).reshape(7, 11).astype(np.int8) % 2
    array = array.astype(DTYPES[name].numpy)
    index = data.draw(npst.basic_indices(array.shape, allow_newaxis=False))
    with mzstore.open(saved({"w": array})) as model:
        expected = np.asarray(array[index])
        out = np.empty((*expected.shape, 2), array.dtype)[..., 0]
        model["w"].read(out, index=index)
        assert bits(out) == bits(expected)


# What is quantized, and what is not


def test_values_that_cannot_be_quantized():
    spoilt = {"nan": weights((90, 192)), "inf": weights((90, 192), 1), "fine": weights((90, 192), 2)}
    spoilt["nan"][5, 6], spoilt["inf"][7, 8] = np.nan, -np.inf
    for name in ("4 bits", "affine", "kmeans", "nf4", "nvfp4"):
        for bad in ("nan", "inf"):
            with pytest.raises(ValueError, match=rf"tensor '{bad}': .*(NaN|infinity)"):
                quantized(RULES[name], {bad: spoilt[bad]})
        with mzstore.open(quantized(RULES[name] | {"on_error": "lossless"}, spoilt)) as model:
            assert {n: t.encoding for n, t in model.items()} == {"nan": "planes", "inf": "planes", "fine": "quantized"}
            assert bits(model["nan"][...]) == bits(spoilt["nan"])
            assert model["nan"].quality is None


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ({"bits": 0.001}, r"tensor 'w': "),
        ({"max_error": 1e-30}, r"tensor 'w': "),
        (
            {"quantizer": "nf4", "group": 50},
            r"tensor 'w': 192 values along the last axis are no multiple of groups of 50",
        ),
        (
            {"quantizer": "codebook", "bits": 1, "dimension": 5},
            r"tensor 'w': 192 values .* no multiple of dimension = 5",
        ),
    ],
)
def test_what_is_out_of_reach(rule, text):
    tensors = {"w": weights((90, 192))}
    with pytest.raises(ValueError, match=text):
        quantized(rule, tensors)
    with mzstore.open(quantized(rule | {"on_error": "lossless"}, tensors)) as model:
        assert bits(model["w"][...]) == bits(tensors["w"])


def test_nothing_is_written_where_a_tensor_is_refused(tmp_path):
    bad = weights((5, 64))
    bad[3, 3] = np.nan
    with pytest.raises(ValueError, match="tensor 'w'"):
        mzstore.save(tmp_path / "m.mz", {"a": weights((90, 192)), "w": bad}, recipe=recipe(bits=4))
    assert list(tmp_path.iterdir()) == []


def test_defaults_keep_small_things_lossless():
    tensors = {
        "w": weights((200, 100)),
        "w.bias": weights((20000,)),
        "norm.weight": weights((200, 100), 1),
        "small": weights((20, 20)),
        "ids": np.arange(40000).reshape(200, 200),
    }
    with mzstore.open(saved(tensors, recipe=Recipe(bits=4))) as model:
        assert [name for name, tensor in model.items() if tensor.quality] == ["w"]
        for name in tensors.keys() - {"w"}:
            assert bits(model[name][...]) == bits(tensors[name])


def test_equal_tensors():
    """Stored once where their rules are the same, and each by its own where they are not."""
    w = weights((90, 192))
    rules = Recipe([Rule(name="a*", bits=4), Rule(name="b*", quantizer="nf4")], defaults=False)
    with mzstore.open(saved({"a": w, "b": w, "a2": w, "b2": w, "c": w, "c2": w}, recipe=rules)) as model:
        assert [tensor.encoding for tensor in model.values()] == [
            "quantized",
            "quantized",
            "same",
            "same",
            "planes",
            "same",
        ]
        assert bits(model["a"][...]) == bits(model["a2"][...]) != bits(model["b"][...])
        assert bits(model["b"][...]) == bits(model["b2"][...])
        assert bits(model["c"][...]) == bits(model["c2"][...]) == bits(w)
        assert model["a2"].quality == model["a"].quality != model["b2"].quality
        assert bits(model["a2"].components()["codes"][3]) == bits(model["a"].components()["codes"][3])
        assert bits(model["a2"].read(dtype="float16")) == bits(model["a"].read(dtype="float16"))


@pytest.mark.parametrize("shape", [(0, 64), (4, 0), (), (1,), (1, 1), (3, 1), (2, 1, 1, 1)])
def test_hardly_any_values(shape):
    tensors = {"w": weights(shape, 1), "zeros": np.zeros((1, *shape), np.float32)}
    for name in ("4 bits", "2 bits", "nmse", "step", "affine 1", "symmetric 12", "kmeans", "float8"):
        data = quantized(RULES[name] | {"on_error": "lossless"}, tensors)
        assert mzstore.verify(data).problems == ()
        with mzstore.open(data) as model:
            for tensor in model.values():
                assert tensor[...].shape == tensor.shape
                assert tensor.read(dtype="bfloat16").dtype == BF16
                for component in tensor.components().values():
                    assert np.asarray(component).shape == component.shape


@pytest.mark.parametrize("name", ["4 bits", "affine", "kmeans", "nf4", "float8"])
def test_constants(name):
    tensors = {"zeros": np.zeros((20, 64), np.float32), "threes": np.full((20, 64), 3, BF16)}
    data = quantized(RULES[name] | {"on_error": "lossless"}, tensors)
    assert mzstore.verify(data).problems == ()
    with mzstore.open(data) as model:
        np.testing.assert_array_equal(model["zeros"][...], 0)
        np.testing.assert_allclose(model["threes"].read(dtype="float32"), 3, rtol=0.01)


@pytest.mark.parametrize("size", [1e30, 1e20, 1e-25])
def test_values_far_from_one_are_measured_right(size):
    w = weights((200, 192)) * np.float32(size / 0.02)
    with mzstore.open(quantized({"nmse": 1e-3}, {"w": w})) as model:
        reached = model["w"].quality["reached"]
        error = model["w"][...].astype(np.float64) - w
        assert reached["nmse"] == pytest.approx((error**2).sum() / (w.astype(np.float64) ** 2).sum(), rel=1e-4)
        assert reached["nmse"] == pytest.approx(1e-3, rel=0.02)
        assert reached["bits"] < 7


def test_the_bits_that_are_reached_are_all_that_is_stored():
    data = quantized({"bits": 4}, {"w": weights((400, 512))})
    with mzstore.open(data) as model:
        assert model["w"].quality["reached"]["bits"] == pytest.approx(
            8 * len(data) / (400 * 512), rel=0.006
        )  # the root document


def test_bits_that_are_out_of_reach():
    w = weights((200, 192))
    with pytest.raises(ValueError, match=r"tensor 'w': 0.05 bits per weight cannot be reached"):
        quantized({"bits": 0.05}, {"w": w})
    with mzstore.open(quantized({"bits": 0.05, "on_error": "lossless"}, {"w": w, "again": w})) as model:
        assert [tensor.encoding for tensor in model.values()] == ["planes", "same"]
        assert bits(model["w"][...]) == bits(w)


@pytest.mark.parametrize(
    ("shape", "rule"),
    [
        ((16, 70000), {"quantizer": "symmetric", "bits": 4, "tile": [128, 128]}),
        ((1000, 1536), {"quantizer": "float8", "tile": [4096, 128]}),
        ((16, 70016), {"quantizer": "symmetric", "bits": 4, "group": 32}),
    ],
)
def test_tiles_and_groups_of_matrices_that_are_cut(shape, rule):
    w = weights(shape)
    with mzstore.open(quantized(rule, {"w": w})) as model:
        assert model["w"].quality["reached"]["snr_db"] > 15
        assert bits(model["w"][3:9, 100:300]) == bits(model["w"][...][3:9, 100:300])


def test_what_cannot_be_quantized_again_stays_as_it_is(tmp_path):
    mzstore.save(tmp_path / "a.mz", {"w": weights((200, 192))}, recipe=recipe(bits=4))
    rule = Rule(max_error=1e-9, on_error="lossless")
    mzstore.convert(tmp_path / "a.mz", tmp_path / "b.mz", recipe=Recipe([rule], defaults=False))
    with mzstore.open(tmp_path / "a.mz") as model, mzstore.open(tmp_path / "b.mz") as copied:
        assert copied["w"].quality == model["w"].quality
        assert copied["w"].sha256 == model["w"].sha256


# Importance


def test_equal_tensors_of_different_importance():
    w = weights((200, 192))
    importance = {"a": np.linspace(0.1, 3, 192), "b": np.linspace(3, 0.1, 192)}
    with mzstore.open(quantized({"bits": 3}, {"a": w, "b": w}, importance=importance)) as model:
        assert model["b"].encoding != "same"


def test_importance_without_a_recipe():
    with pytest.raises(ValueError, match="importance without a recipe"):
        saved({"w": weights((20, 64))}, importance={"w": np.ones(64)})


@pytest.mark.parametrize(
    "rule",
    [
        {"bits": 3},
        {"quantizer": "codebook", "bits": 3},
        {"quantizer": "symmetric", "bits": 3, "group": 64, "search": True},
    ],
)
@pytest.mark.parametrize("each", ["column", "value"])
def test_importance_lowers_the_error_that_matters(rule, each):
    w = weights((200, 192), 1) * np.linspace(0.2, 3, 192, dtype=np.float32)
    importance = np.linspace(3, 0, 192) if each == "column" else w.astype(np.float64) ** 2
    errors = {}
    for key, given_ in (("with", {"w": importance}), ("without", None)):
        with mzstore.open(quantized(rule, {"w": w}, importance=given_)) as model:
            errors[key] = float((importance * (model["w"][...].astype(np.float64) - w) ** 2).sum())
    assert errors["with"] < errors["without"]


def test_importance_that_will_not_do():
    w = {"w": weights((200, 192), 1)}
    with pytest.raises(ValueError, match=r"tensor 'w': importance of shape \(200,\): one for each column"):
        quantized({"bits": 3}, w, importance={"w": np.ones(200)})
    with pytest.raises(ValueError, match="tensor 'w': importance must be finite and not negative"):
        quantized({"bits": 3}, w, importance={"w": np.full(192, -1.0)})
    with pytest.raises(ValueError, match="importance for 'v', and there is no tensor of this name"):
        quantized({"bits": 3}, w, importance={"v": np.ones(192)})


def test_torch_tensors_are_quantized_too():
    w = torch.from_numpy(weights((90, 192), 2)).to(torch.bfloat16)
    file = io.BytesIO()
    mzstore.save(file, {"w": w}, recipe=recipe(bits=4))
    with mzstore.open(file.getvalue()) as model:
        out = torch.empty(90, 192, dtype=torch.float32)
        assert model["w"].read(out, dtype=torch.float32) is out
        assert (out - w.float()).abs().max() < 0.02

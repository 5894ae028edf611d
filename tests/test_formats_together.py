"""What convert, check and diff do between formats: quantized and not, of several dtypes, under other names."""

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from samples import weights

import mzstore

gguf = pytest.importorskip("gguf")
torch = pytest.importorskip("torch")

DENSE = {"blk.0.w": weights((64, 96)), "blk.1.w": weights((64, 96), 1, "float16"), "norm": weights((96,), 2)}


@pytest.fixture
def files(tmp_path):
    """The same model as GGUF (one tensor in Q8_0), as PyTorch and as safetensors (the values of that)."""
    quantized = gguf.quants.quantize(DENSE["blk.0.w"], gguf.GGMLQuantizationType.Q8_0)
    values = gguf.quants.dequantize(quantized, gguf.GGMLQuantizationType.Q8_0)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("blk.0.w", quantized, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    for name in ("blk.1.w", "norm"):
        writer.add_tensor(name, DENSE[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    torch.save({name: torch.from_numpy(array) for name, array in DENSE.items()}, tmp_path / "m.pt")
    safetensors.numpy.save_file(DENSE | {"blk.0.w": values}, tmp_path / "m.safetensors")
    return tmp_path


def measures(found) -> dict[str, object]:
    return {tensor.name: tensor.measure for tensor in found.tensors}


def test_quantized_values_are_compared_by_the_numbers_that_they_are(files):
    assert mzstore.diff(files / "m.gguf", files / "m.safetensors").tensors == ()
    found = mzstore.diff(files / "m.gguf", files / "m.pt")
    assert measures(found).keys() == {"blk.0.w"}
    assert 0 < measures(found)["blk.0.w"].nmse < 1e-4
    assert found.equal_tensors == 2


def test_dtypes_and_names_may_differ(files):
    options = {"dtype": "bfloat16", "rename": {"blk.*": "layers.*"}}
    mzstore.convert(files / "m.pt", files / "b.safetensors", **options, check=True)
    found = mzstore.diff(files / "m.pt", files / "b.safetensors", rename=options["rename"])
    assert (found.only_a, found.only_b) == ((), ())
    assert measures(found).keys() == {"layers.0.w", "layers.1.w", "norm"}
    for name, measure in measures(found).items():
        values = DENSE[name.replace("layers", "blk")].astype(np.float64)
        error = np.abs(values.astype(ml_dtypes.bfloat16).astype(np.float64) - values)
        assert measure.max_abs_error == error.max()


@pytest.mark.parametrize("source", ["m.gguf", "m.pt", "m.safetensors"])
@pytest.mark.parametrize("target", ["t.mz", "t.zarr", "t.json"])
def test_from_each_to_each_and_back(files, source, target):
    report = mzstore.convert(files / source, files / target, check=True)
    assert all(tensor.exact and tensor.checked for tensor in report.tensors)
    back = files / f"back{(files / source).suffix}"
    mzstore.convert(files / target, back, check=True)
    assert back.read_bytes() == (files / source).read_bytes()


def test_quantized_tensors_stay_so_under_other_names_and_become_floats_elsewhere(files):
    options = {"rename": {"blk.*": "h.*"}, "exclude": "norm", "dtype": "float32"}
    report = mzstore.convert(files / "m.gguf", files / "t.json", shard_nbytes=30_000, check=True, **options)
    assert {t.spec.name: t.encoding for t in report.tensors} == {"h.0.w": "ggml", "h.1.w": "planes"}
    assert any("1 quantized as they are" in note for note in report.notes)
    mzstore.convert(files / "m.gguf", files / "t.safetensors", check=True, **options)
    found = safetensors.numpy.load_file(files / "t.safetensors")
    assert found.keys() == {"h.0.w", "h.1.w"}
    assert {array.dtype for array in found.values()} == {np.dtype("float32")}
    dry = mzstore.convert(files / "m.gguf", files / "n.mz", dry_run=True, **options)
    assert [(t.spec, t.encoding) for t in dry.tensors] == [(t.spec, t.encoding) for t in report.tensors]
    assert not (files / "n.mz").exists()

"""Checks of what was converted, reports, and runs that write nothing."""

import json
import re
import sys

import numpy as np
import pytest
import safetensors.numpy
from samples import small_model, weights

import mzstore
from mzstore.check import check

TENSORS = {
    "a": weights((300, 128)),
    "b": weights((300, 128), 1, "bfloat16"),
    "c": np.arange(50),
    "bias": weights((128,), 2),
}


@pytest.fixture
def source(tmp_path):
    safetensors.numpy.save_file(TENSORS, tmp_path / "in.safetensors")
    return tmp_path / "in.safetensors"


def spoil(path, name: str, change) -> None:
    """Write the archive at ``path`` again with another value of one tensor, and the record of its quality as it was."""
    with mzstore.open(path) as model:
        tensors = model.load()
    tensors[name] = change(tensors[name])
    mzstore.save(path, tensors)


@pytest.mark.parametrize("target", ["m.mz", "m.zarr", "m.safetensors"])
def test_a_good_target(source, tmp_path, target):
    report = mzstore.convert(source, tmp_path / target, check=True)
    assert (report.ok, report.checked) == (True, True)
    assert {t.spec.name: (t.exact, t.checked, t.problem) for t in report.tensors} == dict.fromkeys(
        TENSORS, (True, True, "")
    )
    assert report.nbytes == sum(values.nbytes for values in TENSORS.values())
    if target == "m.mz":
        with mzstore.open(tmp_path / target) as model:
            for tensor in report.tensors:
                stored = model[tensor.spec.name]
                assert (tensor.stored_nbytes, tensor.encoding) == (stored.stored_nbytes, stored.encoding)


def test_every_kind_of_tensor(tmp_path):
    mzstore.save(tmp_path / "a.mz", small_model(), assets={"config.json": b"{}"})
    mzstore.convert(tmp_path / "a.mz", tmp_path / "b.zarr", check=True)


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("a", lambda v: np.where(np.arange(128) == 5, -v, v), "300 of 38,400 values differ, and none should"),
        ("a", lambda v: v[:-1], r"it is float32 \[299, 128\] in the target, and should be float32 \[300, 128\]"),
        ("c", lambda v: v.astype(np.int32), r"it is int32 \[50\] in the target, and should be int64 \[50\]"),
    ],
)
def test_a_tensor_that_is_another_one(source, tmp_path, name, change, problem):
    mzstore.convert(source, tmp_path / "m.mz")
    spoil(tmp_path / "m.mz", name, change)
    found = check(source, tmp_path / "m.mz")
    assert not found.ok
    (wrong,) = found.all_problems()
    assert wrong.startswith(f"tensor {name!r}: ")
    assert re.search(problem, wrong)


def test_tensors_and_assets_that_are_missing_or_too_many(tmp_path):
    mzstore.save(tmp_path / "a.mz", {"x": np.ones(3), "y": np.ones(4)}, assets={"a.txt": b"1", "b.txt": b"2"})
    mzstore.save(tmp_path / "b.mz", {"x": np.ones(3), "z": np.ones(4)}, assets={"a.txt": b"3"})
    assert sorted(check(tmp_path / "a.mz", tmp_path / "b.mz").all_problems()) == [
        "asset 'a.txt' is another one in the target",
        "asset 'b.txt' is not in the target",
        "tensor 'y': it is not in the target",
        "tensor 'z' is in the target only",
    ]


def test_values_that_were_changed_are_compared_with_the_error_on_record(source, tmp_path):
    recipe = mzstore.Recipe(bits=4)
    report = mzstore.convert(source, tmp_path / "q.mz", recipe=recipe, check=True)
    with mzstore.open(tmp_path / "q.mz") as model:
        for tensor in report.tensors:
            quality = model[tensor.spec.name].quality
            assert tensor.exact == (quality is None)
            if quality:
                assert tensor.error["nmse"] == pytest.approx(quality["reached"]["nmse"], rel=1e-4)
                assert tensor.error["max_error"] == pytest.approx(quality["reached"]["max_error"], rel=1e-4)
    changed = {"a": TENSORS["a"] * 1.01} | {k: v for k, v in TENSORS.items() if k != "a"}
    safetensors.numpy.save_file(changed, tmp_path / "other.safetensors")
    found = check(tmp_path / "other.safetensors", tmp_path / "q.mz")
    (wrong,) = found.all_problems()
    assert "tensor 'a': its nmse is" in wrong


def test_what_is_broken_is_a_problem_and_not_the_end(source, tmp_path):
    mzstore.convert(source, tmp_path / "m.zarr")
    chunk = next(path for path in (tmp_path / "m.zarr" / "a").rglob("*") if path.is_file() and path.name != "zarr.json")
    data = bytearray(chunk.read_bytes())
    data[7] ^= 1
    chunk.write_bytes(data)
    found = check(source, tmp_path / "m.zarr")
    assert [t.spec.name for t in found.tensors if t.problem] == ["a"]
    assert "checksum" in found.all_problems()[0]


def test_convert_raises_if_the_target_is_not_the_source(source, tmp_path, monkeypatch):
    module = sys.modules["mzstore.convert"]  # its name in the package is that of the function

    def write(target, *args, **options):
        written = genuine(target, *args, **options)
        spoil(target, "a", lambda v: -v)
        return written

    genuine = module.write
    monkeypatch.setattr(module, "write", write)
    with pytest.raises(mzstore.CorruptError, match=r"what was written is not the source: tensor 'a': 38,400 of"):
        mzstore.convert(source, tmp_path / "m.mz", check=True)


def test_a_report_is_json(source, tmp_path):
    report = mzstore.convert(
        source, tmp_path / "q.mz", recipe=mzstore.Recipe(bits=4), rename={"a": "z"}, dtype="bfloat16"
    )
    found = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert found["totals"] == {
        "tensors": 4, "exact": 1, "checked": 0, "wrong": 0, "source_nbytes": report.nbytes, "stored_nbytes": report.stored_nbytes,
    }  # fmt: skip
    (tensor,) = [each for each in found["tensors"] if each["name"] == "z"]
    assert tensor["nmse"] > 0
    assert tensor == tensor | {
        "source_name": "a", "dtype": "bfloat16", "source_dtype": "float32", "shape": [300, 128], "source_nbytes": 153600,
        "encoding": "quantized", "exact": False, "checked": False, "problem": None,
    }  # fmt: skip
    assert found["versions"]["mzstore"] == mzstore.__version__


@pytest.mark.parametrize(
    "options", [{}, {"bits": 4}, {"sparsity": 0.9}, {"rank": 8}, {"quantizer": "nf4", "group": 50}]
)
def test_an_estimate_is_near_and_writes_nothing(tmp_path, options):
    rows = 300 if "rank" in options else 6000
    tensors = {
        "w": weights((rows, 700)),
        "again": weights((rows, 700)),
        "h": weights((rows, 300), 1, "bfloat16"),
        "bias": weights((700,), 2),
    }
    safetensors.numpy.save_file(tensors, tmp_path / "in.safetensors")
    recipe = mzstore.Recipe(**options) if options else None
    importance = {"w": np.ones((rows, 700)), "h": np.ones(300)} if "bits" in options else None
    arguments = {"recipe": recipe, "importance": importance}
    before = sorted(tmp_path.iterdir())
    expected = mzstore.convert(tmp_path / "in.safetensors", tmp_path / "m.mz", dry_run=True, **arguments)
    assert sorted(tmp_path.iterdir()) == before
    found = mzstore.convert(tmp_path / "in.safetensors", tmp_path / "m.mz", **arguments)
    assert expected.dry_run
    assert expected.stored_nbytes == pytest.approx(found.stored_nbytes, rel=0.03)
    for a, b in zip(expected.tensors, found.tensors, strict=True):
        assert (a.spec, a.source, a.encoding) == (b.spec, b.source, b.encoding)
        assert (a.error is None) == (b.error is None)


def test_an_estimate_of_files_is_their_size(source, tmp_path):
    found = mzstore.convert(source, tmp_path / "out.safetensors", dry_run=True, dtype="float16")
    assert found.stored_nbytes == 300 * 128 * 4 + 128 * 2 + 50 * 8
    assert not (tmp_path / "out.safetensors").exists()

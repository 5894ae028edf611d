"""Selection, casts and new names on the way from a source to a target."""

import json
import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from samples import weights

import mzstore
from mzstore import dtypes
from mzstore.dtypes import DTYPES
from mzstore.edits import CAST_KEY, Edits
from mzstore.sources import from_arrays

TENSORS = {
    "model.embed.weight": weights((40, 30)),
    "model.layers.0.mlp.weight": weights((30, 20), 1),
    "model.layers.0.norm.weight": weights((30,), 2),
    "model.layers.1.mlp.weight": weights((30, 20), 3, "float16"),
    "lm_head.weight": weights((40, 30), 4, "bfloat16"),
    "ids": np.arange(9),
}


@pytest.fixture
def source(tmp_path):
    safetensors.numpy.save_file(TENSORS, tmp_path / "in.safetensors", metadata={"format": "pt"})
    return tmp_path / "in.safetensors"


def names(path) -> list[str]:
    with mzstore.open(path) as model:
        return sorted(model)


@pytest.mark.parametrize(
    ("include", "exclude", "left"),
    [
        ("model.layers.*", None, [n for n in TENSORS if "layers" in n]),
        (["ids", "*.norm.*"], None, ["ids", "model.layers.0.norm.weight"]),
        (None, "model.*", ["ids", "lm_head.weight"]),
        ("model.*", ["*.0.*", "*embed*"], ["model.layers.1.mlp.weight"]),
    ],
)
def test_some_tensors(source, tmp_path, include, exclude, left):
    report = mzstore.convert(source, tmp_path / "m.mz", include=include, exclude=exclude)
    assert names(tmp_path / "m.mz") == sorted(left)
    assert report.notes[0] == f"{len(TENSORS) - len(left)} of {len(TENSORS)} tensors left out"
    assert "cannot be made again byte for byte" in report.notes[-1]
    mzstore.convert(tmp_path / "m.mz", tmp_path / "out.safetensors")
    found = safetensors.numpy.load_file(tmp_path / "out.safetensors")
    assert {k: v.tobytes() for k, v in found.items()} == {k: TENSORS[k].tobytes() for k in left}


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"include": "nothing*"}, r"include: no tensor matches 'nothing\*'"),
        ({"exclude": ["ids", "x"]}, "exclude: no tensor matches 'x'"),
        ({"exclude": "*"}, "no tensor is left"),
        ({"dtype": {"ids": "float16"}}, "dtype: no tensor of float16, .* matches 'ids'"),
        ({"dtype": "int8"}, "dtype int8: tensors are cast to floats only"),
        ({"dtype": "float9"}, "dtype 'float9' is none of"),
        ({"rename": {"x": "y"}}, "rename: no tensor matches 'x'"),
        ({"rename": {"*": "same"}}, "tensors '.*' and '.*' would both be called 'same'"),
        ({"rename": {"ids": "lm_head.weight"}}, "tensors '(ids|lm_head.weight)' and '.*' would both be"),
        ({"rename": "ids"}, "PATTERN=>REPLACEMENT will do"),
        ({"rename": {"ids": "*"}}, "more stars than its pattern"),
        ({"rename": {"/(/": "x"}}, "unterminated"),
        ({"rename": {"/a/": r"\1"}}, "invalid group reference"),
        ({"rename": {"/a/": r"\g<b>"}}, "unknown group name"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_written(source, tmp_path, options, problem):
    with pytest.raises(ValueError, match=problem):
        mzstore.convert(source, tmp_path / "m.mz", **options)
    assert not (tmp_path / "m.mz").exists()


@pytest.mark.parametrize(
    ("rules", "name", "becomes"),
    [
        ({"model.*": "*"}, "model.layers.0.mlp.weight", "layers.0.mlp.weight"),
        ({"model.layers.*.mlp.*": "h.*.ffn.*"}, "model.layers.0.mlp.weight", "h.0.ffn.weight"),
        ({"model.layers.?.mlp.*": "mlp.*"}, "model.layers.0.mlp.weight", None),  # two of them
        (["model.layers.[1].*=>one.*"], "model.layers.1.mlp.weight", "one.mlp.weight"),
        ("embed=>x\\1", "embed", None),  # a glob is for whole names
        ({"/embed/": "x"}, "model.embed.weight", "model.x.weight"),
        ({r"/^model\.layers\.(\d+)\.(.*)/": r"\2.\1"}, "model.layers.0.mlp.weight", "mlp.weight.0"),
        ({"ids": r"a\1b"}, "ids", r"a\1b"),
        ([r"ids=>b", r"b=>c"], "ids", "c"),
    ],
)
def test_names(source, tmp_path, rules, name, becomes):
    if becomes is None:
        with pytest.raises(ValueError, match="rename"):
            mzstore.convert(source, tmp_path / "m.mz", rename=rules)
        return
    mzstore.convert(source, tmp_path / "m.mz", rename=rules)
    with mzstore.open(tmp_path / "m.mz") as model:
        assert name not in model
        assert model[becomes][...].tobytes() == TENSORS[name].tobytes()
    assert not mzstore.diff(source, tmp_path / "m.mz").equal
    found = mzstore.diff(source, tmp_path / "m.mz", rename=rules)
    assert (found.only_a, found.only_b, found.tensors) == ((), (), ())


def test_casts(source, tmp_path):
    report = mzstore.convert(source, tmp_path / "m.mz", dtype={"*norm*": "float32", "*": "bfloat16"}, check=True)
    with mzstore.open(tmp_path / "m.mz") as model:
        for name, values in TENSORS.items():
            kept = name in ("ids", "model.layers.0.norm.weight")
            expected = values if kept else values.astype(ml_dtypes.bfloat16)
            assert (model[name].dtype, model[name][...].tobytes()) == (expected.dtype, expected.tobytes())
        cast = {name: str(values.dtype) for name, values in TENSORS.items()}
        for name in ("ids", "model.layers.0.norm.weight", "lm_head.weight"):
            del cast[name]
        assert model.metadata == {"format": "pt", CAST_KEY: cast}
    assert {t.spec.name for t in report.tensors if not t.exact} == cast.keys()
    # What they once were stays, through other files, other names and another cast.
    mzstore.convert(tmp_path / "m.mz", tmp_path / "n.safetensors")
    mzstore.convert(
        tmp_path / "n.safetensors", tmp_path / "n.mz", dtype="float16", rename={"model.*": "*"}, exclude="*.1.*"
    )
    with mzstore.open(tmp_path / "n.mz") as model:
        assert model.metadata[CAST_KEY] == {
            "embed.weight": "float32",
            "layers.0.mlp.weight": "float32",
            "layers.0.norm.weight": "float32",
            "lm_head.weight": "bfloat16",
        }


def nearest(value: float, dtype: np.dtype) -> float:
    """By exact arithmetic, over all finite values of a 16-bit type or a smaller one."""
    every = np.arange(1 << 8 * dtype.itemsize, dtype=f"u{dtype.itemsize}").view(dtype).astype(np.float64)
    bits = np.flatnonzero(np.isfinite(every))
    at = np.argsort(np.abs(every[bits] - value), kind="stable")[:8]
    exact = [(abs(Fraction(float(every[i])) - Fraction(value)), int(i) % 2, float(every[i])) for i in bits[at]]
    return min(exact)[2]


def test_float64_to_what_numpy_has_is_as_numpy_casts():
    values = np.random.default_rng(0).standard_normal(10000)
    for name in ("float32", "float16"):
        words = dtypes.cast(values.view(np.uint64), DTYPES["float64"], DTYPES[name])
        assert words.tobytes() == values.astype(name).tobytes()


@given(st.floats(-400, 400), st.sampled_from(["bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"]), st.data())
def test_casts_round_once(value, name, data):
    """From float64 as well, also beside the middle of two neighbours, where rounding to float32 first would go wrong."""
    dtype = DTYPES[name].numpy
    with np.errstate(all="ignore"):
        low = np.float64(np.array([value]).astype(dtype)[0])
        word = np.array([low]).astype(dtype).view(f"u{dtype.itemsize}") + np.array([1], f"u{dtype.itemsize}")
        high = float(word.view(dtype)[0])
    if math.isfinite(high) and data.draw(st.booleans()):
        middle = (float(low) + high) / 2
        value = data.draw(st.sampled_from([middle, np.nextafter(middle, np.inf), np.nextafter(middle, -np.inf)]))
    words = dtypes.cast(np.array([value]).view(np.uint64), DTYPES["float64"], DTYPES[name])
    assert float(words.view(dtype)[0]) == nearest(float(value), dtype)


def test_a_cast_does_not_make_infinities(tmp_path):
    values = np.array([1, np.inf, np.nan, 70000], np.float32)
    safetensors.numpy.save_file({"w": values}, tmp_path / "in.safetensors")
    with pytest.raises(ValueError, match="tensor 'w' has 1 values or more that are beyond float16"):
        mzstore.convert(tmp_path / "in.safetensors", tmp_path / "m.mz", dtype="float16")
    safetensors.numpy.save_file({"w": values[:3]}, tmp_path / "in.safetensors")
    mzstore.convert(tmp_path / "in.safetensors", tmp_path / "m.mz", dtype="float16")
    with mzstore.open(tmp_path / "m.mz") as model:
        assert str(model["w"][...]) == "[ 1. inf nan]"


def test_quantized_tensors_are_copied_under_new_names(source, tmp_path):
    recipe = mzstore.Recipe([mzstore.Rule(name="*.mlp.*", snr_db=30)], defaults=False)
    mzstore.convert(source, tmp_path / "q.mz", recipe=recipe)
    report = mzstore.convert(tmp_path / "q.mz", tmp_path / "r.mz", rename={"model.*": "*"}, dtype="float32", check=True)
    assert any("2 quantized as they are, and not cast" in note for note in report.notes)
    with mzstore.open(tmp_path / "q.mz") as model, mzstore.open(tmp_path / "r.mz") as again:
        for name in ("layers.0.mlp.weight", "layers.1.mlp.weight"):
            was = model[f"model.{name}"]
            assert (again[name].quality, again[name].sha256, again[name].dtype) == (was.quality, was.sha256, was.dtype)
    # Where there are no codes their values are cast.
    mzstore.convert(tmp_path / "q.mz", tmp_path / "r.safetensors", dtype="float32", check=True)
    found = safetensors.numpy.load_file(tmp_path / "r.safetensors")
    assert {v.dtype for k, v in found.items() if k != "ids"} == {np.dtype("float32")}


def test_recipes_and_importance_go_by_the_names_of_the_source(source, tmp_path):
    recipe = mzstore.Recipe([mzstore.Rule(name="model.layers.0.mlp.weight", snr_db=30)], defaults=False)
    importance = {"model.layers.0.mlp.weight": np.linspace(1, 2, 20), "model.embed.weight": np.ones(30)}
    options = {"recipe": recipe, "importance": importance}
    mzstore.convert(source, tmp_path / "a.mz", **options)
    mzstore.convert(source, tmp_path / "b.mz", rename={"model.*": "*"}, exclude="*embed*", **options)
    with mzstore.open(tmp_path / "a.mz") as a, mzstore.open(tmp_path / "b.mz") as b:
        assert a["model.layers.0.mlp.weight"].quality
        assert b["layers.0.mlp.weight"].sha256 == a["model.layers.0.mlp.weight"].sha256
    with pytest.raises(ValueError, match="importance for 'typo'"):
        mzstore.convert(source, tmp_path / "c.mz", recipe=recipe, importance={"typo": np.ones(3)}, exclude="ids")


def test_a_directory_has_no_index_that_lies(source, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    safetensors.numpy.save_file(TENSORS, folder / "model-00001-of-00001.safetensors")
    index = {"weight_map": dict.fromkeys(TENSORS, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text("{}")
    mzstore.convert(folder, tmp_path / "m.mz", exclude="ids")
    mzstore.convert(tmp_path / "m.mz", tmp_path / "out", to="directory")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]
    mzstore.convert(folder, tmp_path / "whole.mz")
    mzstore.convert(tmp_path / "whole.mz", tmp_path / "half", exclude="ids")
    assert sorted(path.name for path in (tmp_path / "half").iterdir()) == ["config.json", "model.safetensors"]


def test_edits_that_change_nothing_leave_the_source_as_it_is():
    source = from_arrays(TENSORS, {}, {})
    for edits in (
        Edits(),
        Edits.of(include="*"),
        Edits.of(dtype={"lm_head*": "bfloat16"}),
        Edits.of(rename={"ids": "ids"}),
    ):
        assert edits.apply(source, codes=True).source is source

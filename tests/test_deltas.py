"""Adapters and fine-tuned models, stored as changes of another model; and such models made whole."""

import json
import math
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from samples import bits, random_bits, small_model, weights
from test_cli import fails, ok

import mzstore
from mzstore import Recipe, Rule
from mzstore.differences import DifferenceSource, choose_difference
from mzstore.dtypes import DTYPES
from mzstore.encode import payloads
from mzstore.frameworks import as_words
from mzstore.sources import ArraySource

BF16 = ml_dtypes.bfloat16


def float32(array: np.ndarray) -> np.ndarray:
    return np.asarray(array, np.float32)


def noisy(array: np.ndarray, size: float, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal(array.shape).astype(np.float32) * size
    return (float32(array) + noise).astype(array.dtype)


# Differences


@pytest.mark.parametrize("dtype", [name for name in DTYPES if name != "complex128"])
@pytest.mark.parametrize("size", [0.0, 0.02, 1.0])
def test_any_words_come_back(tmp_path, dtype, size):
    """NaN payloads, all integers, pairs in a byte; a few changed, or all of them."""
    shape = (9, 11) if DTYPES[dtype].packed else (90, 130)
    base, other = random_bits(dtype, shape, 1), random_bits(dtype, shape, 2)
    changed = np.random.default_rng(3).random(shape) < size
    tuned = np.where(changed, other.view(base.dtype), base) if base.dtype.kind != "V" else base.copy()
    if base.dtype.kind == "V" or base.dtype.name in ("int4", "uint4"):
        tuned = base.copy()
        tuned[changed] = other[changed]
    mzstore.save(tmp_path / "base.mz", {"w": base, "s": base[0, 0]})
    mzstore.save(tmp_path / "tuned.mz", {"w": tuned, "s": tuned[0, 0]})
    mzstore.delta(tmp_path / "base.mz", tmp_path / "tuned.mz", tmp_path / "out.mz")
    with mzstore.open(tmp_path / "out.mz") as model:
        assert bits(model["w"][...]) == bits(tuned)
        assert bits(model["w"][3:7, 1::2]) == bits(tuned[3:7, 1::2])
        assert bits(model["s"][...]) == bits(tuned[0, 0])
        assert model["w"].encoding == "base" or size
    assert mzstore.verify(tmp_path / "out.mz").ok


def choice_of(base: np.ndarray, tuned: np.ndarray, level="balanced"):
    return choose_difference(*(ArraySource(*as_words("w", array)) for array in (tuned, base)), level)


def test_the_smallest_is_taken():
    base = weights((1000, 1200), 1, "bfloat16")
    steps = np.random.default_rng(0).integers(-3, 4, base.shape).astype(np.uint16)
    by_steps = (base.view(np.uint16) + steps).view(BF16)
    masks = np.random.default_rng(0).integers(0, 4, base.shape).astype(np.uint16)
    by_bits = (base.view(np.uint16) ^ masks).view(BF16)
    assert choice_of(base, by_steps).how == "plus"
    assert choice_of(base, by_bits).how == "xor"
    assert choice_of(base, weights((1000, 1200), 2, "bfloat16")).how is None
    assert choice_of(base, np.ones_like(base)).how is None  # one word is less than any difference


@pytest.mark.parametrize(("how", "entropy"), [("plus", math.log2(7)), ("xor", 2)])
def test_differences_take_about_their_entropy(how, entropy):
    """Of integers of -3 to 3, and of the two lowest bits: per weight, in bits."""
    base = weights((1000, 1200), 1, "bfloat16").view(np.uint16)
    rng = np.random.default_rng(0)
    tuned = base + rng.integers(-3, 4, base.shape).astype(np.uint16)
    if how == "xor":
        tuned = base ^ rng.integers(0, 4, base.shape).astype(np.uint16)
    found = choice_of(base.view(BF16), tuned.view(BF16))
    assert found.how == how
    source = DifferenceSource(*(ArraySource(*as_words("w", a.view(BF16))) for a in (tuned, base)), how)
    block = source.read(0, base.size).reshape(base.shape)
    stored = 0
    for start, shape, chunks in found.choice.part.grid.row_blocks():
        rows = block.reshape(-1)[start : start + math.prod(shape)].reshape(shape)
        for chunk in chunks:
            stored += sum(len(p.data) for p in payloads(found.choice, rows, chunk, DTYPES["bfloat16"]))
    assert entropy <= 8 * stored / base.size < 1.05 * entropy + 0.02


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("deltas")
    base = small_model() | {"large": weights((1200, 1100), 5, "bfloat16"), "more": weights((500, 400), 6)}
    tuned = dict(base) | {"large": noisy(base["large"], 3e-5), "more": noisy(base["more"], 1e-5)}
    tuned["tied"] = tuned["large"]
    tuned["layers.0.weight"] = base["layers.0.weight"].T.copy()
    tuned["ids"] = base["ids"].astype(np.int32)
    tuned["zeros"] = base["zeros"] + 1
    tuned["renamed"] = base["layers.0.bias"]
    del tuned["noise"], tuned["layers.0.bias"]
    mzstore.save(folder / "base.mz", base)
    mzstore.save(folder / "tuned.mz", tuned, metadata={"a": 1}, assets={"config.json": b"[]"})
    return folder, base, tuned


def test_what_became_of_each_tensor(models, tmp_path):
    folder, _, tuned = models
    out = tmp_path / "out.mz"
    mzstore.delta(folder / "base.mz", folder / "tuned.mz", out, threads=2)
    with mzstore.open(out) as model:
        assert list(model) == list(tuned)
        for name, array in tuned.items():
            assert bits(model[name][...]) == bits(array), name
        how = {name: tensor.encoding for name, tensor in model.items()}
        assert how["embed.weight"] == how["lm_head.weight"] == how["renamed"] == how["empty"] == "base"
        assert model["renamed"].base[1] == "layers.0.bias"
        assert how["large"] == how["more"] == "base + planes"
        assert how["tied"] == "planes"  # there is no such tensor in the base
        assert "base" not in how["layers.0.weight"] + how["ids"]  # of another shape, of another dtype
        assert how["zeros"] == "raw"  # constant
        assert model.metadata == {"a": 1}
        assert model.assets["config.json"] == b"[]"
        assert model.document.features() == sorted(model.document.features())
    assert mzstore.verify(out).ok


def test_what_is_equal_is_stored_once(models, tmp_path):
    _, base, _ = models
    changed = noisy(base["large"], 3e-5)
    mzstore.save(tmp_path / "base.mz", {"a": base["large"], "b": base["large"]})
    mzstore.save(tmp_path / "tuned.mz", {"a": changed, "b": changed})
    mzstore.delta(tmp_path / "base.mz", tmp_path / "tuned.mz", tmp_path / "out.mz")
    with mzstore.open(tmp_path / "out.mz") as model:
        assert model["b"].encoding == "same"
        assert bits(model["b"][5]) == bits(changed[5])


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("level", ["fast", "max"])
def test_the_same_input_gives_the_same_bytes(models, tmp_path, threads, level):
    folder = models[0]
    for name in ("a.mz", "b.mz"):
        mzstore.delta(
            folder / "base.mz",
            folder / "tuned.mz",
            tmp_path / name,
            threads=threads if name == "a.mz" else 2,
            level=level,
            base_url="base.mz",
        )
    assert (tmp_path / "a.mz").read_bytes() == (tmp_path / "b.mz").read_bytes()


def test_files_of_other_formats_come_back_byte_for_byte(models, tmp_path):
    """A fine-tuned model in a directory of Hugging Face, to a delta, and to a directory again."""
    _, base, _ = models
    tensors = {name: base[name] for name in ("layers.0.weight", "ids", "large", "more")}
    folder = tmp_path / "tuned"
    folder.mkdir()
    save_file({**tensors, "large": noisy(tensors["large"], 3e-5)}, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text("{}")
    mzstore.save(tmp_path / "base.mz", tensors)
    mzstore.delta(tmp_path / "base.mz", folder, tmp_path / "out.mz")
    assert (tmp_path / "out.mz").stat().st_size < 0.5 * (folder / "model.safetensors").stat().st_size
    mzstore.convert(tmp_path / "out.mz", tmp_path / "back")
    for path in folder.iterdir():
        assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes()
    mzstore.convert(tmp_path / "out.mz", tmp_path / "back.safetensors")
    assert (tmp_path / "back.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_a_quantized_model_stays_quantized(models, tmp_path):
    folder, base, _ = models
    mzstore.save(tmp_path / "q.mz", base, recipe=Recipe(bits=4.0))
    mzstore.delta(folder / "base.mz", tmp_path / "q.mz", tmp_path / "out.mz")
    mzstore.delta(tmp_path / "q.mz", folder / "base.mz", tmp_path / "in.mz")  # differences from quantized values
    with mzstore.open(tmp_path / "q.mz") as q, mzstore.open(tmp_path / "out.mz") as out:
        assert out["large"].encoding == q["large"].encoding == "quantized"
        assert out["embed.weight"].encoding == "base" or "quantized" in out["embed.weight"].encoding
        assert out["large"].quality == q["large"].quality
    assert mzstore.diff(tmp_path / "q.mz", tmp_path / "out.mz").equal
    assert mzstore.diff(tmp_path / "in.mz", folder / "base.mz").equal


def test_merge(models, tmp_path):
    folder = models[0]
    mzstore.delta(folder / "base.mz", folder / "tuned.mz", tmp_path / "out.mz")
    for target in ("merged.mz", "merged.zarr"):
        mzstore.merge(tmp_path / "out.mz", tmp_path / target)
        assert mzstore.diff(tmp_path / target, folder / "tuned.mz").equal
        with mzstore.open(tmp_path / target) as model:
            assert model.base_urls == ()
            assert "base" not in model.document.features()
    whole = (folder / "tuned.mz").stat().st_size
    assert abs((tmp_path / "merged.mz").stat().st_size - whole) < 0.02 * whole


def test_a_base_that_is_no_archive(models, tmp_path):
    folder, base, _ = models
    save_file({"large": base["large"]}, tmp_path / "base.safetensors")
    with pytest.raises(mzstore.FormatError, match=r"base\.safetensors"):
        mzstore.delta(tmp_path / "base.safetensors", folder / "tuned.mz", tmp_path / "out.mz")
    with pytest.raises(mzstore.StorageError):
        mzstore.delta(tmp_path / "none.mz", folder / "tuned.mz", tmp_path / "out.mz")
    with pytest.raises(mzstore.StorageError):
        mzstore.delta(folder / "base.mz", tmp_path / "none.mz", tmp_path / "out.mz")
    assert not (tmp_path / "out.mz").exists()


def test_no_model_is_written_over_what_it_refers_to(models, tmp_path):
    folder = models[0]
    for name in ("base.mz", "tuned.mz"):
        shutil.copy(folder / name, tmp_path)
    mzstore.delta(tmp_path / "base.mz", tmp_path / "tuned.mz", tmp_path / "one.mz")
    before = (tmp_path / "base.mz").read_bytes()
    with pytest.raises(ValueError, match="its own base"):
        mzstore.delta(tmp_path / "base.mz", tmp_path / "tuned.mz", tmp_path / "base.mz")
    with pytest.raises(ValueError, match=r"refers to .*base\.mz"):
        mzstore.delta(tmp_path / "one.mz", tmp_path / "tuned.mz", tmp_path / "base.mz")
    assert (tmp_path / "base.mz").read_bytes() == before


def test_a_source_that_changes_meanwhile_is_refused(models, tmp_path, monkeypatch):
    folder = models[0]
    from mzstore import deltas

    monkeypatch.setattr(deltas, "check_unchanged", lambda model: (_ for _ in ()).throw(mzstore.StorageError("changed")))
    with pytest.raises(mzstore.StorageError, match="changed"):
        mzstore.delta(folder / "base.mz", folder / "tuned.mz", tmp_path / "out.mz")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_killed_at_any_moment(models, tmp_path):
    """Nothing shows under the name of the target, or all of it."""
    folder, _, tuned = models
    script = textwrap.dedent(
        """
        import sys, mzstore
        while True:
            mzstore.delta(sys.argv[1], sys.argv[2], sys.argv[3], base_url=sys.argv[1])
            print("done", flush=True)
        """
    )
    out = tmp_path / "out.mz"
    for i in range(6):
        arguments = [folder / "base.mz", folder / "tuned.mz", out]
        child = subprocess.Popen(
            [sys.executable, "-c", script, *map(str, arguments)], stdout=subprocess.PIPE, text=True
        )
        try:
            if i % 2:
                assert child.stdout.readline() == "done\n"
            time.sleep(0.05 + 0.07 * i)
            child.send_signal(signal.SIGKILL)
        finally:
            child.wait()
            child.stdout.close()
        if out.exists():
            with mzstore.open(out) as model:
                assert bits(model["large"][...]) == bits(tuned["large"])
            out.unlink()
        else:
            assert not i % 2


# Approximated differences


@pytest.fixture(scope="module")
def approximable(tmp_path_factory):
    """A change that is a product and some outliers, and noise."""
    folder = tmp_path_factory.mktemp("lossy")
    rng = np.random.default_rng(0)
    base = (rng.standard_normal((500, 600)) * 0.02).astype(np.float32)
    change = rng.standard_normal((500, 5)) @ rng.standard_normal((5, 600)) * 3e-4
    change += rng.standard_normal(base.shape) * 1e-5
    change[rng.random(base.shape) < 0.002] += 0.01
    tuned = (base + change).astype(np.float32)
    mzstore.save(folder / "base.mz", {"w": base, "b": base[0]})
    mzstore.save(folder / "tuned.mz", {"w": tuned, "b": tuned[0]})
    return folder, base, tuned


def error_of(tensor, base, tuned) -> float:
    """Squared error / squared difference."""
    change = tuned.astype(np.float64) - base
    return float(np.square(tensor.read().astype(np.float64) - tuned).sum() / np.square(change).sum())


@pytest.mark.parametrize(
    ("rule", "encoding", "most"),
    [
        (Rule(snr_db=20), "base + lowrank + sparse", 0.01005),
        (Rule(nmse=0.05), "base + lowrank + sparse", 0.05025),
        (Rule(bits=2.0), "base + quantized", 0.12),
        (Rule(max_error=1e-4), "base + quantized", 0.1),
        (Rule(parts=["lowrank rank=5", "sparse top=0.3%"], rounds=2), "base + lowrank + sparse", 0.01),
        (Rule(parts=["lowrank rank=5", "quantized nmse=0.3"]), "base + lowrank + quantized", 0.2),
        (Rule(top=0.01), "base + sparse", 0.8),
        (Rule(rank=5), "base + lowrank", 0.8),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_differences_are_approximated(approximable, tmp_path, rule, encoding, most):
    folder, base, tuned = approximable
    mzstore.delta(folder / "base.mz", folder / "tuned.mz", tmp_path / "out.mz", recipe=Recipe([rule]))
    with mzstore.open(tmp_path / "out.mz") as model:
        assert model["w"].encoding.startswith("base + ")
        assert encoding in (None, model["w"].encoding)
        assert 0 < error_of(model["w"], base, tuned) <= most
        if rule.max_error:
            assert abs(model["w"].read() - tuned).max() <= rule.max_error * 1.001
        assert model["w"].quality["reached"]["parts"][0]["encoding"] == "base"
        assert bits(model["b"][...]) == bits(tuned[0])  # default rules leave it lossless
        assert bits(model["w"][3:400:7, 5]) == bits(model["w"].read()[3:400:7, 5])
        assert model["w"].stored_nbytes < 0.25 * base.nbytes
    assert mzstore.verify(tmp_path / "out.mz").ok
    mzstore.merge(tmp_path / "out.mz", tmp_path / "merged.mz")
    assert mzstore.diff(tmp_path / "merged.mz", tmp_path / "out.mz").equal


def test_values_that_a_sparse_part_replaces_are_exact(approximable, tmp_path):
    folder, _, tuned = approximable
    rule = Rule(parts=["lowrank rank=5", "sparse top=1%"])
    mzstore.delta(folder / "base.mz", folder / "tuned.mz", tmp_path / "out.mz", recipe=Recipe([rule]))
    with mzstore.open(tmp_path / "out.mz") as model:
        at = model["w"].components()["3.positions"][...]
        assert at.size == round(0.01 * tuned.size)
        assert bits(model["w"].read().reshape(-1)[at]) == bits(tuned.reshape(-1)[at])


# Adapters


def adapter(folder: Path, factors: dict[str, np.ndarray], prefix="base_model.model.", **config) -> Path:
    """The directory of an adapter of PEFT. ``factors``: tensors, by name behind the prefix."""
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8} | config
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "README.md").write_text("")
    save_file({prefix + name: array for name, array in factors.items()}, folder / "adapter_model.safetensors")
    return folder


def pair(
    module: str, rows: int, cols: int, rank: int = 4, name: str = "float32", seed: int = 0
) -> dict[str, np.ndarray]:
    a, b = weights((rank, cols), seed, name), weights((rows, rank), seed + 1, name)
    return {f"{module}.lora_A.weight": a * 5, f"{module}.lora_B.weight": b * 5}


def changed(weight: np.ndarray, left: np.ndarray, right: np.ndarray, scale: float) -> np.ndarray:
    """W + (left @ right) * scale, in float32, rounded once; products added from left to right (FORMAT.md lowrank-2)."""
    left, right = np.ascontiguousarray(float32(left)), np.ascontiguousarray(float32(right))
    product = np.zeros(weight.shape, np.float32)
    for k in range(left.shape[1]):
        product += left[:, k : k + 1] * right[k : k + 1]
    return (float32(weight) + product * np.float32(scale)).astype(weight.dtype)


@pytest.fixture
def base(tmp_path):
    tensors = {
        "m.q.weight": weights((60, 40), 1, "bfloat16"),
        "m.k.weight": weights((60, 40), 2, "float16"),
        "m.v.weight": weights((60, 40), 3),
        "m.q.bias": weights((60,), 4, "bfloat16"),
        "m.embed.weight": weights((50, 40), 5, "bfloat16"),
        "m.conv.weight": weights((6, 5, 3, 3), 6),
        "m.ids": np.arange(6).reshape(2, 3),
        "m.double.weight": weights((60, 40), 7).astype(np.float64),
        "m.large.weight": weights((1500, 1400), 8, "bfloat16"),
    }
    assets = {"config.json": b"{}", "tokenizer.json": b"[]"}
    mzstore.save(tmp_path / "base.mz", tensors, assets=assets, metadata={"kind": "base"})
    return tensors


def test_an_adapter_is_attached(base, tmp_path):
    factors = pair("m.q", 60, 40) | pair("m.k", 60, 40, 4, "float16", 3) | pair("m.large", 1500, 1400, 4, "bfloat16", 5)
    mzstore.attach(tmp_path / "base.mz", adapter(tmp_path / "lora", factors), tmp_path / "out.mz")
    with mzstore.open(tmp_path / "out.mz") as model:
        assert list(model) == list(base)
        for name, array in base.items():
            stem = name.removesuffix(".weight")
            if f"{stem}.lora_A.weight" in factors:
                a, b = factors[f"{stem}.lora_A.weight"], factors[f"{stem}.lora_B.weight"]
                wanted = changed(array, b, a, 2.0)
                assert bits(model[name][...]) == bits(wanted)
                assert bits(model[name][7:50:3, ::-2]) == bits(wanted[7:50:3, ::-2])
                assert model[name].encoding == "base + lowrank"
                assert {"2.left", "2.right"} <= set(model[name].components())
            else:
                assert bits(model[name][...]) == bits(array)
                assert model[name].encoding == "base"
        assert model.base_urls == ("base.mz",)
        assert model.metadata == {"kind": "base"}
        assert dict(model.assets) == {"config.json": b"{}", "tokenizer.json": b"[]"}
    report = mzstore.verify(tmp_path / "out.mz")
    assert report.ok, report.problems
    assert (tmp_path / "out.mz").stat().st_size < 60_000
    mzstore.merge(tmp_path / "out.mz", tmp_path / "merged.mz")
    assert mzstore.diff(tmp_path / "merged.mz", tmp_path / "out.mz").equal


def test_beside_pytorch(base, tmp_path):
    torch = pytest.importorskip("torch")
    factors = pair("m.large", 1500, 1400, 16, "bfloat16")
    mzstore.attach(tmp_path / "base.mz", adapter(tmp_path / "lora", factors, r=16, lora_alpha=32), tmp_path / "out.mz")
    a, b, w = (
        torch.from_numpy(float32(array))
        for array in (factors["m.large.lora_A.weight"], factors["m.large.lora_B.weight"], base["m.large.weight"])
    )
    wanted = (w + (b @ a) * 2.0).to(torch.bfloat16)
    with mzstore.open(tmp_path / "out.mz") as model:
        found = model.load("m.large.weight", framework="torch")["m.large.weight"]
    differ = (found != wanted).float().mean()
    assert differ < 0.01  # sums in another order, where the result is rounded to another neighbour
    assert torch.allclose(found.float(), wanted.float(), rtol=2**-7, atol=0)


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, 2.0),
        ({"use_rslora": True}, 4.0),
        ({"lora_alpha": 6}, 1.5),
        ({"lora_alpha": 1, "r": 4}, 0.25),
        ({"r": 7, "rank_pattern": {"q": 4}}, 2.0),
        ({"r": 7, "rank_pattern": {r"m\.[qk]": 4}}, 2.0),
        ({"alpha_pattern": {"m.q": 12}}, 3.0),
        ({"alpha_pattern": {"k": 12}}, 2.0),
        ({"alpha_pattern": {"q": 1}}, 0.25),
        ({"lora_alpha": 0.3}, float(np.float32(0.3 / 4))),
    ],
    ids=str,
)
def test_scales(base, tmp_path, config, scale):
    factors = pair("m.q", 60, 40)
    mzstore.attach(tmp_path / "base.mz", adapter(tmp_path / "lora", factors, **config), tmp_path / "out.mz")
    with mzstore.open(tmp_path / "out.mz") as model:
        wanted = changed(base["m.q.weight"], factors["m.q.lora_B.weight"], factors["m.q.lora_A.weight"], scale)
        assert bits(model["m.q.weight"][...]) == bits(wanted)


def test_transposed_weights(base, tmp_path):
    """Conv1D of GPT-2 has [in, out]: by the configuration, or because only that fits."""
    factors = pair("m.q", 40, 60)
    for i, flag in enumerate((True, False)):
        folder = adapter(tmp_path / f"lora{i}", factors, fan_in_fan_out=flag)
        mzstore.attach(tmp_path / "base.mz", folder, tmp_path / "out.mz")
        with mzstore.open(tmp_path / "out.mz") as model:
            a, b = factors["m.q.lora_A.weight"], factors["m.q.lora_B.weight"]
            assert bits(model["m.q.weight"][...]) == bits(changed(base["m.q.weight"], a.T, b.T, 2.0))


def test_a_square_weight_is_transposed_if_the_configuration_says_so(tmp_path):
    weight, factors = weights((30, 30), 1), pair("w", 30, 30)
    mzstore.save(tmp_path / "base.mz", {"w.weight": weight})
    a, b = factors["w.lora_A.weight"], factors["w.lora_B.weight"]
    for flag, wanted in ((False, changed(weight, b, a, 2.0)), (True, changed(weight, a.T, b.T, 2.0))):
        folder = adapter(tmp_path / f"lora{flag}", factors, fan_in_fan_out=flag)
        mzstore.attach(tmp_path / "base.mz", folder, tmp_path / "out.mz")
        with mzstore.open(tmp_path / "out.mz") as model:
            assert bits(model["w.weight"][...]) == bits(wanted)


def test_embeddings(base, tmp_path):
    a, b = weights((4, 50), 1), weights((40, 4), 2)
    factors = {"m.embed.lora_embedding_A": a, "m.embed.lora_embedding_B": b}
    mzstore.attach(tmp_path / "base.mz", adapter(tmp_path / "lora", factors), tmp_path / "out.mz")
    with mzstore.open(tmp_path / "out.mz") as model:
        assert bits(model["m.embed.weight"][...]) == bits(changed(base["m.embed.weight"], a.T, b.T, 2.0))


def test_tensors_that_are_saved_whole(base, tmp_path):
    saved = {
        "m.embed.base_layer.weight": weights((70, 40), 9, "bfloat16"),  # with more tokens
        "m.q.bias": weights((60,), 10, "bfloat16"),
        "m.v.modules_to_save.default.weight": weights((60, 40), 11),
        "score.weight": weights((2, 40), 12),
    }
    folder = adapter(tmp_path / "lora", pair("m.q", 60, 40) | saved, modules_to_save=["score", "v"])
    mzstore.attach(tmp_path / "base.mz", folder, tmp_path / "out.mz")
    with mzstore.open(tmp_path / "out.mz") as model:
        assert list(model) == [*base, "score.weight"]
        for name, key in (
            ("m.embed.weight", "m.embed.base_layer.weight"),
            ("m.q.bias", "m.q.bias"),
            ("m.v.weight", "m.v.modules_to_save.default.weight"),
            ("score.weight", "score.weight"),
        ):
            assert bits(model[name][...]) == bits(saved[key])
            assert model[name].base is None
    assert mzstore.verify(tmp_path / "out.mz").ok


def test_a_file_and_its_alpha(base, tmp_path):
    factors = pair("m.q", 60, 40)
    save_file(factors, tmp_path / "lora.safetensors")
    mzstore.attach(tmp_path / "base.mz", tmp_path / "lora.safetensors", tmp_path / "out.mz", alpha=12)
    save_file({f"x.y.{name}": array for name, array in factors.items()}, tmp_path / "other.safetensors")
    mzstore.attach(tmp_path / "base.mz", tmp_path / "other.safetensors", tmp_path / "other.mz", alpha=12, prefix="x.y.")
    wanted = changed(base["m.q.weight"], factors["m.q.lora_B.weight"], factors["m.q.lora_A.weight"], 3.0)
    for name in ("out.mz", "other.mz"):
        with mzstore.open(tmp_path / name) as model:
            assert bits(model["m.q.weight"][...]) == bits(wanted)
    with pytest.raises(ValueError, match="give alpha"):
        mzstore.attach(tmp_path / "base.mz", tmp_path / "lora.safetensors", tmp_path / "no.mz")
    with pytest.raises(ValueError, match="leave alpha out"):
        mzstore.attach(tmp_path / "base.mz", adapter(tmp_path / "lora", factors), tmp_path / "no.mz", alpha=1)


def without(factors: dict[str, np.ndarray], end: str) -> dict[str, np.ndarray]:
    return {name: array for name, array in factors.items() if not name.endswith(end)}


@pytest.mark.parametrize(
    ("factors", "config", "text"),
    [
        (pair("m.x", 60, 40), {}, r"changes 'm.x.weight', which .*base.mz' has not; nearest: .*--prefix"),
        (pair("m.q", 40, 40), {}, r"product for 'm.q.weight' is 40 x 40, the tensor \[60, 40\]"),
        (pair("m.conv", 6, 5), {}, r"product for 'm.conv.weight'"),
        (pair("m.double", 60, 40), {}, "float64: only float16, bfloat16, float32"),
        (pair("m.q", 60, 40), {"r": 8}, "has rank 4, and 8 by adapter_config.json"),
        (pair("m.q", 60, 40), {"peft_type": "IA3"}, "type 'IA3', where only LORA"),
        (pair("m.q", 60, 40), {"use_dora": True}, "DoRA"),
        (pair("m.q", 60, 40), {"lora_bias": True}, "a bias of its own"),
        (pair("m.q", 60, 40), {"layer_replication": [[0, 4]]}, "repeated"),
        (pair("m.q", 60, 40), {"init_lora_weights": "pissa_niter_4"}, "changes the base as well"),
        (pair("m.q", 60, 40), {"rank_pattern": {"(": 4}}, "no regular expression"),
        (pair("m.q", 60, 40) | {"m.q.lora_magnitude_vector": np.ones(60, np.float32)}, {}, "DoRA"),
        (pair("m.q", 60, 40) | {"m.q.lora_B.bias": np.ones(60, np.float32)}, {}, "not of a product"),
        (without(pair("m.q", 60, 40), "lora_B.weight"), {}, "'m.q' has no factor B"),
        (pair("m.q", 60, 40) | {"m.q.lora_A.other.weight": np.ones((4, 40), np.float32)}, {}, "two factors A"),
        ({"m.q.lora_A.weight": np.ones((4, 40, 1, 1), np.float32), "m.q.lora_B.weight": np.ones((60, 4, 1, 1), np.float32)}, {}, "only matrices"),
        ({"m.q.lora_A.weight": np.ones((4, 40)), "m.q.lora_B.weight": np.ones((60, 4))}, {}, "is float64"),
        (pair("m.q", 60, 40) | {"unknown.weight": np.ones(3, np.float32)}, {}, "changes 'unknown.weight'"),
        ({"m.q.lora_A.weight": np.ones((0, 40), np.float32), "m.q.lora_B.weight": np.ones((60, 0), np.float32)}, {"r": 0}, "rank 0"),
        (pair("m.q", 60, 40), {"lora_alpha": 1e300}, "float32"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_adapters_that_do_something_else(base, tmp_path, factors, config, text):
    with pytest.raises(ValueError, match=text):
        mzstore.attach(tmp_path / "base.mz", adapter(tmp_path / "lora", factors, **config), tmp_path / "out.mz")
    assert not (tmp_path / "out.mz").exists()


@pytest.mark.parametrize(
    "config", [{"r": "4"}, {"lora_alpha": None}, {"rank_pattern": [1]}, {"alpha_pattern": {"q": "x"}}, {"r": True}]
)
def test_configurations_that_are_malformed(base, tmp_path, config):
    with pytest.raises(mzstore.FormatError, match="malformed"):
        mzstore.attach(
            tmp_path / "base.mz", adapter(tmp_path / "lora", pair("m.q", 60, 40), **config), tmp_path / "out.mz"
        )


def test_what_is_no_adapter(base, tmp_path):
    with pytest.raises(mzstore.StorageError):
        mzstore.attach(tmp_path / "base.mz", tmp_path / "none", tmp_path / "out.mz")
    folder = adapter(tmp_path / "lora", pair("m.q", 60, 40))
    (folder / "adapter_config.json").write_text("[]")
    with pytest.raises(mzstore.FormatError):
        mzstore.attach(tmp_path / "base.mz", folder, tmp_path / "out.mz")
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8}))
    with pytest.raises(mzstore.StorageError, match=r"adapter_model\.safetensors"):
        mzstore.attach(tmp_path / "base.mz", folder, tmp_path / "out.mz")


def test_an_adapter_on_a_fine_tuned_model(base, tmp_path):
    """base -> delta -> adapter -> delta."""
    tuned = base | {"m.q.weight": noisy(base["m.q.weight"], 1e-4)}
    mzstore.save(tmp_path / "tuned.mz", tuned)
    mzstore.delta(tmp_path / "base.mz", tmp_path / "tuned.mz", tmp_path / "delta.mz")
    factors = pair("m.q", 60, 40)
    mzstore.attach(tmp_path / "delta.mz", adapter(tmp_path / "lora", factors), tmp_path / "lora.mz")
    wanted = changed(tuned["m.q.weight"], factors["m.q.lora_B.weight"], factors["m.q.lora_A.weight"], 2.0)
    last = tuned | {"m.q.weight": wanted, "m.large.weight": noisy(base["m.large.weight"], 1e-4)}
    mzstore.save(tmp_path / "last.mz", last)
    mzstore.delta(tmp_path / "lora.mz", tmp_path / "last.mz", tmp_path / "out.mz")
    with mzstore.open(tmp_path / "out.mz") as model:
        assert model["m.q.weight"].encoding == "base"
        for name, array in model.load(threads=2).items():
            assert bits(array) == bits(last[name]), name
    assert mzstore.verify(tmp_path / "out.mz").ok


def test_a_quantized_base(base, tmp_path):
    mzstore.save(tmp_path / "q.mz", base, recipe=Recipe([Rule(bits=4.0, min_size=2000)]))
    factors = pair("m.large", 1500, 1400)
    mzstore.attach(tmp_path / "q.mz", adapter(tmp_path / "lora", factors), tmp_path / "out.mz")
    with mzstore.open(tmp_path / "q.mz") as q, mzstore.open(tmp_path / "out.mz") as model:
        a, b = factors["m.large.lora_A.weight"], factors["m.large.lora_B.weight"]
        wanted = changed(q["m.large.weight"].read(), b, a, 2.0)
        assert bits(model["m.large.weight"][...]) == bits(wanted)


# The commands


def test_commands(base, tmp_path):
    adapter(tmp_path / "lora", pair("m.q", 60, 40))
    mzstore.save(tmp_path / "tuned.mz", base | {"m.large.weight": noisy(base["m.large.weight"], 3e-5)})
    assert "1 others" in ok("attach", "base.mz", "lora", "a.mz", cwd=tmp_path)
    assert "8 tensors as in base.mz, 1 others" in ok("delta", "base.mz", "tuned.mz", "d.mz", cwd=tmp_path)
    assert ok("delta", "base.mz", "tuned.mz", "l.mz", "--max-error", "1e-4", "-q", cwd=tmp_path) == ""
    assert ok("verify", "a.mz", "-q", cwd=tmp_path) == ""
    assert "bases:\n  base.mz" in ok("inspect", "d.mz", cwd=tmp_path)
    assert "base + planes" in ok("inspect", "d.mz", cwd=tmp_path)
    assert "base" in ok("plan", "d.mz", cwd=tmp_path)
    ok("get", "d.mz", "m.v.weight[3]", "-o", "row.npy", cwd=tmp_path)
    assert bits(np.load(tmp_path / "row.npy")) == bits(base["m.v.weight"][3])
    assert "merged.mz: " in ok("merge", "d.mz", "merged.mz", cwd=tmp_path)
    ok("diff", "merged.mz", "tuned.mz", cwd=tmp_path)
    ok("convert", "d.mz", "d.safetensors", "-q", cwd=tmp_path)


def test_commands_with_a_base_that_lies_elsewhere(base, tmp_path):
    mzstore.save(tmp_path / "tuned.mz", base | {"m.large.weight": noisy(base["m.large.weight"], 3e-5)})
    ok("delta", "base.mz", "tuned.mz", "d.mz", "-q", "--base-url", "s3://models/base.mz", cwd=tmp_path)
    moved = ("--base", "s3://models/base.mz=base.mz")
    ok("verify", "d.mz", *moved, cwd=tmp_path)
    ok("diff", "d.mz", "tuned.mz", *moved, cwd=tmp_path)
    ok("merge", "d.mz", "m.mz", *moved, cwd=tmp_path)
    ok("convert", "d.mz", "c.mz", *moved, cwd=tmp_path)
    ok("get", "d.mz", "m.q.bias", *moved, cwd=tmp_path)
    ok("plan", "d.mz", *moved, cwd=tmp_path)
    assert "URL=LOCATION" in fails("get", "d.mz", "m.q.bias", "--base", "base.mz", cwd=tmp_path)


def test_commands_that_fail(base, tmp_path):
    adapter(tmp_path / "lora", pair("m.x", 60, 40))
    assert "which 'base.mz' has not" in fails("attach", "base.mz", "lora", "a.mz", cwd=tmp_path)
    assert "its own base" in fails("delta", "base.mz", "base.mz", "base.mz", cwd=tmp_path)
    mzstore.delta(tmp_path / "base.mz", tmp_path / "base.mz", tmp_path / "d.mz")
    (tmp_path / "base.mz").unlink()
    for command in (("get", "d.mz", "m.q.bias"), ("merge", "d.mz", "m.mz"), ("convert", "d.mz", "m.mz")):
        assert "cannot read the base 'base.mz'" in fails(*command, cwd=tmp_path)
    assert not (tmp_path / "m.mz").exists()


# A real model


@pytest.mark.slow
def test_a_real_model(tmp_path):
    from tools.real_models import minilm

    torch = pytest.importorskip("torch")
    mzstore.convert(minilm(), tmp_path / "base.mz")
    with mzstore.open(tmp_path / "base.mz") as model:
        base = model.load()
    tuned = dict(base)
    for name in base:
        if name.endswith("query.weight"):
            tuned[name] = noisy(base[name], 1e-4)
    save_file(tuned, tmp_path / "tuned.safetensors")
    mzstore.delta(tmp_path / "base.mz", tmp_path / "tuned.safetensors", tmp_path / "out.mz")
    mzstore.convert(tmp_path / "out.mz", tmp_path / "back.safetensors")
    assert (tmp_path / "back.safetensors").read_bytes() == (tmp_path / "tuned.safetensors").read_bytes()
    assert (tmp_path / "out.mz").stat().st_size < 6 * 384 * 384 * 4

    targets = [name.removesuffix(".weight") for name in base if name.endswith(("query.weight", "value.weight"))]
    factors = {}
    for i, module in enumerate(targets):
        factors |= pair(module, 384, 384, 8, seed=i)
    folder = adapter(tmp_path / "lora", factors, r=8, lora_alpha=16)
    mzstore.attach(tmp_path / "base.mz", folder, tmp_path / "lora.mz")
    with mzstore.open(tmp_path / "lora.mz") as model:
        found = model.load(framework="torch", threads=2)
        stored = sum(tensor.stored_nbytes for tensor in model.values())
        assert stored < (folder / "adapter_model.safetensors").stat().st_size
        for module in targets:
            a, b = (torch.from_numpy(factors[f"{module}.lora_{which}.weight"]) for which in "AB")
            wanted = torch.from_numpy(base[f"{module}.weight"]) + (b @ a) * 2.0
            assert torch.allclose(found[f"{module}.weight"], wanted, rtol=1e-5, atol=1e-7)
    assert mzstore.verify(tmp_path / "lora.mz").ok

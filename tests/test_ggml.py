"""Blocks of ggml: the table of their types, values, and tensors that are stored as them. GGUF files are in test_gguf.py."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, dequantize
from packed import Packed, random_blocks

import mzstore
from mzstore import kernels
from mzstore.convert import convert
from mzstore.encodings.ggml import Ggml, Numbers
from mzstore.ggml import BY_NUMBER, TYPES, extract, insert
from mzstore.ggml.grids import GRIDS, grid
from mzstore.ggml.values import centres, scales, shifted, words_of
from mzstore.grid import Grid
from mzstore.inspect import summarize
from mzstore.sources import ModelSource
from mzstore.verify import verify
from mzstore.writer import write

TABLE = json.loads((Path(__file__).parents[1] / "spec" / "ggml.json").read_text())
NAN = np.uint32(0x7FC00000)


@pytest.fixture(params=[False, True], ids=["numpy", "kernels"])
def fast(request, monkeypatch):
    monkeypatch.setattr(kernels, "pays", lambda nbytes: request.param)
    return request.param


@pytest.mark.parametrize("kind", TYPES.values(), ids=TYPES)
def test_every_bit_of_a_block_has_one_place(kind):
    taken = np.zeros((kind.nbytes, 8), int)
    for field in kind.fields:
        found = np.zeros((field.count, field.width), int)
        for run in field.runs:
            taken[run.bytes, run.shift : run.shift + run.bits] += 1
            found[run.numbers, run.target : run.target + run.bits] += 1
        assert (found == 1).all(), field.name
        assert sum(field.planes) == field.width
        assert field.count * min(field.planes) % 8 == 0
    assert (taken == 1).all()
    assert BY_NUMBER[kind.number] is kind


def test_the_table_of_the_page():
    assert {
        kind.name: {
            "number": kind.number,
            "size": kind.size,
            "nbytes": kind.nbytes,
            "fields": [
                {"name": f.name, "count": f.count, "width": f.width, "runs": [list(run) for run in f.runs]}
                for f in kind.fields
            ],
        }
        for kind in TYPES.values()
    } == TABLE["types"]
    assert {
        name: {"indices": indices, "bits": bits, "group": group, "numbers": list(numbers)}
        for name, (indices, numbers, bits, group) in GRIDS.items()
    } == TABLE["grids"]


def test_sizes_are_those_of_gguf():
    from gguf import GGML_QUANT_SIZES

    for kind in TYPES.values():
        number = GGMLQuantizationType(kind.number)
        if (
            kind.name == "Q8_1"
        ):  # there it has two scales of 4 bytes, which ggml has not any more; no file has this type
            continue
        assert (number.name, GGML_QUANT_SIZES[number]) == (kind.name, (kind.size, kind.nbytes))


@pytest.mark.parametrize("kind", TYPES.values(), ids=TYPES)
def test_fields_and_blocks(kind, fast):
    blocks = random_blocks(kind, 50)
    again = np.zeros_like(blocks)
    for field in kind.fields:
        insert(again, field, extract(blocks, field))
    np.testing.assert_array_equal(again, blocks)


@pytest.mark.parametrize("example", TABLE["examples"], ids=lambda example: example["type"])
def test_values_are_those_of_ggml_in_c(example, fast):
    """The examples were made with ggml's own library; a NaN is there whatever its processor makes."""
    kind = TYPES[example["type"]]
    blocks = np.frombuffer(bytes.fromhex(example["blocks"]), np.uint8).reshape(-1, kind.nbytes)
    assert words_of(kind, blocks).tobytes().hex() == example["words"]


@pytest.mark.parametrize(
    "kind", [kind for kind in TYPES.values() if kind.name not in ("Q8_1", "Q8_K", "Q1_0")], ids=lambda k: k.name
)
@pytest.mark.filterwarnings("ignore:.*encountered in.*:RuntimeWarning")
def test_values_are_those_of_gguf(kind, fast):
    """Of blocks of any bits: infinities, NaNs, subnormal scales and all codes are among them."""
    blocks = random_blocks(kind, 600)
    expected = dequantize(blocks, GGMLQuantizationType(kind.number)).view(np.uint32)
    expected = np.where(np.isnan(expected.view(np.float32)), NAN, expected)
    np.testing.assert_array_equal(words_of(kind, blocks), expected)


@pytest.mark.parametrize("kind", TYPES.values(), ids=TYPES)
def test_relative_codes(kind, fast):
    blocks = random_blocks(kind, 300)
    numbers = {field.name: extract(blocks, field) for field in kind.fields}
    centre = centres(kind, scales(kind, numbers))
    assert (centre is not None) == (kind.name in ("Q4_1", "Q5_1", "Q2_K", "Q4_K", "Q5_K"))
    if centre is None:
        return
    codes = numbers["codes"]
    relative = shifted(kind, codes, centre, -1)
    assert centre.min() == 0
    assert len(np.unique(centre)) > 2
    np.testing.assert_array_equal(shifted(kind, relative, centre, 1), codes)
    spread = np.repeat(centre, kind.size // centre.shape[1], axis=1)
    np.testing.assert_array_equal(relative, (codes.astype(int) - spread) % 2 ** kind.field("codes").width)


@pytest.mark.parametrize("kind", TYPES.values(), ids=TYPES)
def test_a_body_is_the_blocks_in_another_order(kind, fast):
    rows, per_row = 5, 3
    shape = (rows, per_row * kind.size)
    part = Ggml.new(kind, Grid(shape, shape))
    blocks = random_blocks(kind, rows * per_row)
    planes = part.body(blocks)
    body = np.concatenate(planes)
    assert body.size == blocks.size == part.array.chunk_nbytes
    np.testing.assert_array_equal(part.blocks(body, slice(0, rows), slice(0, per_row)), blocks)
    np.testing.assert_array_equal(
        part.blocks(body, slice(1, 4), slice(1, 2)), blocks.reshape(rows, per_row, -1)[1:4, 1]
    )


@pytest.mark.parametrize("kind", TYPES.values(), ids=TYPES)
def test_any_part_of_a_chunk(kind, fast):
    shape = (2, 4, 3 * kind.size)
    part = Ggml.new(kind, Grid(shape, shape))
    blocks = random_blocks(kind, 24)
    body = np.concatenate(part.body(blocks))
    whole = words_of(kind, blocks).reshape(shape)
    field_values = {f.name: extract(blocks, f).reshape(2, 4, -1) for f in kind.fields}
    size = kind.size
    for source in (
        (slice(0, 2), slice(0, 4), slice(0, 3 * size)),
        (slice(1, 2), slice(1, 3), slice(size, 2 * size)),
        (slice(0, 2), slice(2, 3), slice(size - 1, 2 * size + 5)),
        (slice(0, 1), slice(0, 4), slice(3, 4)),
    ):
        out = np.empty(tuple(s.stop - s.start for s in source), np.uint32)
        part.decode(lambda i: body, source, out, "")
        np.testing.assert_array_equal(out, whole[source])
        wide = np.zeros((*out.shape[:-1], out.shape[-1] + 3), np.uint32)
        part.decode(lambda i: body, source, wide[..., 2:-1], "")
        np.testing.assert_array_equal(wide[..., 2:-1], whole[source])
    for field in kind.fields:
        view = Numbers(part, field)
        cut = (slice(0, 2), slice(1, 4), slice(1, view.grid.shape[-1]))
        out = np.empty(tuple(s.stop - s.start for s in cut), view.dtype.word)
        view.decode(lambda i: body, cut, out, "")
        np.testing.assert_array_equal(out, field_values[field.name][cut])


def test_a_grid_is_kept():
    assert grid("IQ1_S") is grid("IQ1_S")
    assert {name: grid(name).shape for name in GRIDS} == {
        "IQ2_XXS": (256, 8), "IQ2_XS": (512, 8), "IQ2_S": (1024, 8), "IQ3_XXS": (256, 4), "IQ3_S": (512, 4), "IQ1_S": (2048, 8),
    }  # fmt: skip


def saved(path: Path, tensors: list[Packed], threads: int = 1) -> Path:
    write(path, ModelSource(tensors, sum(t.spec.nbytes for t in tensors)), threads=threads)
    return path


@pytest.mark.parametrize("threads", [1, 3])
def test_tensors(threads, fast, tmp_path):
    tensors = [Packed.new(kind.name, kind, (3, 2 * kind.size)) for kind in TYPES.values()]
    tensors.append(Packed.new("one axis", TYPES["Q4_0"], (96,)))
    tensors.append(Packed.new("three axes", TYPES["Q6_K"], (2, 3, 512)))
    tensors.append(Packed.new("nothing", TYPES["Q4_0"], (0, 64)))
    path = saved(tmp_path / "m.mz", tensors, threads)
    assert verify(path, threads=threads).ok
    with mzstore.open(path) as model:
        for tensor in tensors:
            found = model[tensor.spec.name]
            assert found.encoding == "ggml"
            np.testing.assert_array_equal(found[...].view(np.uint32), tensor.words)
            assert found.sha256 == hashlib.sha256(tensor.words.tobytes()).hexdigest()
            parts = found.components()
            np.testing.assert_array_equal(parts["blocks"][...].reshape(-1), tensor.blocks.reshape(-1))
        summary = {tensor.name: tensor for tensor in summarize(model).tensors}
    assert summary["Q4_K"].details == {"chunk_shape": [3, 512], "type": "Q4_K", "bits": 4.5, "group": 256}
    assert summary["Q4_K"].how() == "ggml, Q4_K, 4.5 bits"


def test_components_make_the_values(tmp_path):
    path = saved(tmp_path / "m.mz", [Packed.new("k", TYPES["Q4_K"], (6, 512)), Packed.new("q", TYPES["Q8_0"], (6, 64))])
    with mzstore.open(path) as model:
        parts = model["k"].components()
        assert {name: (each.shape, each.dtype.name, each.block) for name, each in parts.items()} == {
            "scale": ((6, 2), "float16", (1, 256)),
            "minimum": ((6, 2), "float16", (1, 256)),
            "scales": ((6, 16), "uint8", (1, 32)),
            "minimums": ((6, 16), "uint8", (1, 32)),
            "codes": ((6, 512), "uint8", (1, 1)),
            "blocks": ((6, 288), "uint8", None),
        }
        d, m, s, t = (
            np.repeat(parts[name][2:4].astype(np.float32), parts[name].block[1], axis=1)
            for name in ("scale", "minimum", "scales", "minimums")
        )
        np.testing.assert_array_equal(parts["codes"][2:4] * (d * s) - m * t, model["k"][2:4])
        parts = model["q"].components()
        assert parts["codes"].dtype == np.int8
        scale = np.repeat(parts["scale"][...].astype(np.float32), 32, axis=1)
        np.testing.assert_array_equal(parts["codes"][...] * scale, model["q"][...])


def test_several_chunks(tmp_path):
    """Rows beyond the last chunk, and columns that ranks cut."""
    tensor = Packed.new("w", TYPES["Q4_1"], (1900, 1184))
    path = saved(tmp_path / "m.mz", [tensor], threads=2)
    assert verify(path, threads=2).ok
    with mzstore.open(path) as model:
        part = model.document.tensors["w"].part
        assert part.grid.n_chunks > 4
        assert part.grid.chunk_shape[1] % 32 == 0
        assert 1184 % part.grid.chunk_shape[1]
        np.testing.assert_array_equal(model["w"][...].view(np.uint32), tensor.words)
        np.testing.assert_array_equal(
            model["w"][137:1700:3, 100:1101:7].view(np.uint32), tensor.words[137:1700:3, 100:1101:7]
        )
        np.testing.assert_array_equal(
            model.load(shard=(2, 3), axis=1, dtype="bfloat16")["w"], model["w"].shard(1, 2, 3).astype("bfloat16")
        )
        blocks = model["w"].components()["blocks"]
        np.testing.assert_array_equal(blocks[400:600], tensor.blocks.reshape(1900, -1)[400:600])


def test_equal_blocks_are_stored_once_and_equal_values_are_not(tmp_path):
    """A scale of 0 gives zeros whatever the codes are: to make a file again, these count."""
    kind = TYPES["Q4_0"]
    tensors = [Packed.new(name, kind, (2, 64)) for name in "abc"]
    for i, tensor in enumerate(tensors):
        tensor.blocks[:, :2] = 0
        tensor.blocks[0, 2] ^= i == 2
        tensor.blocks[:, 2:] |= 0x88  # no code is below 8, so that no zero is negative
    tensors.append(Packed.new("d", TYPES["IQ4_NL"], (2, 64)))
    path = saved(tmp_path / "m.mz", tensors)
    convert(path, tmp_path / "again.mz")
    for each in (path, tmp_path / "again.mz"):
        with mzstore.open(each) as model:
            assert (model["a"][...] == model["c"][...]).all()
            assert model["a"].sha256 == model["c"].sha256
            assert [model[name].encoding for name in "abcd"] == ["ggml", "same", "ggml", "ggml"]
            for tensor in tensors:
                found = model[tensor.spec.name].components()["blocks"][...]
                np.testing.assert_array_equal(found.reshape(-1), tensor.blocks.reshape(-1))


def test_a_recipe_changes_only_what_it_names(tmp_path):
    path = saved(
        tmp_path / "m.mz",
        [Packed.new(name, TYPES["Q5_1"], (128, 256), seed) for seed, name in enumerate(("here", "there"))],
    )
    recipe = mzstore.Recipe.parse('[[rule]]\nname = "here"\nbits = 3')
    convert(path, tmp_path / "out.mz", recipe=recipe)
    with mzstore.open(tmp_path / "out.mz") as model:
        assert (model["here"].encoding, model["there"].encoding) == ("quantized", "ggml")


def test_values_in_other_files(tmp_path):
    tensor = Packed.new("w", TYPES["Q3_K"], (3, 256))
    convert(saved(tmp_path / "m.mz", [tensor]), tmp_path / "m.safetensors")
    from safetensors.numpy import load_file

    np.testing.assert_array_equal(load_file(tmp_path / "m.safetensors")["w"].view(np.uint32), tensor.words)

"""Checkpoints that other tools have quantized: what is recognized, values bit for bit those of the tools' own code, bad input."""

import json
import math
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

import mzstore
from mzstore import dtypes
from mzstore.inspect import summarize
from mzstore.schemes import Held, configuration, recognize
from mzstore.schemes.packing import n_words, nibbles, unpack, words_of

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")


def bits_of(values) -> np.ndarray:
    """The words of NumPy's or PyTorch's values."""
    if isinstance(values, torch.Tensor):
        width = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[values.element_size()]
        values = values.contiguous().view(width).numpy()
    return np.ascontiguousarray(values).view(f"<u{values.dtype.itemsize}")


def folder_of(tmp_path, tensors, quantization=None, **config):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    safetensors_torch.save_file({k: v.clone().contiguous() for k, v in tensors.items()}, folder / "model.safetensors")
    if quantization is not None:
        config["quantization_config"] = quantization
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def opened(tmp_path, tensors, quantization=None, **config):
    folder = folder_of(tmp_path, tensors, quantization, **config)
    mzstore.convert(folder, tmp_path / "model.mz", show_progress=False)
    return mzstore.open(tmp_path / "model.mz")


def check_weight(weight, expected: torch.Tensor):
    """All of it, parts of it, and other dtypes, against what the tool's own code gives."""
    assert weight.shape == tuple(expected.shape)
    assert str(weight.dtype) == str(expected.dtype).removeprefix("torch.")
    assert (bits_of(weight[...]) == bits_of(expected)).all()
    rows, columns = expected.shape[-2:] if expected.ndim > 1 else (expected.shape[0], 1)
    everything = expected.float()
    for index in (
        np.s_[..., 1:3],
        np.s_[..., -1],
        np.s_[..., 3 : columns - 1 : 5],
        np.s_[..., rows // 3 : rows // 2 + 1, columns // 4 : columns // 2] if expected.ndim > 1 else np.s_[2:7],
        np.s_[..., rows - 1 : 2 : -3, ::-1] if expected.ndim > 1 else np.s_[::-1],
        (0,) * expected.ndim,
        np.s_[0:0],
    ):
        found = weight[index]
        wanted = everything.numpy()[index]
        assert np.shape(found) == np.shape(wanted)
        assert np.array_equal(np.asarray(found).astype(np.float32), wanted, equal_nan=True), index
    out = np.empty(weight.shape, np.float32)
    assert weight.read(out) is out
    again = out.astype(weight.dtype)
    assert np.array_equal(bits_of(again), bits_of(expected))
    assert np.array_equal(weight.read(dtype="float32"), out, equal_nan=True)
    with pytest.raises(ValueError, match="not as int8"):
        weight.read(dtype="int8")


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes on the first axis as words of 32 bits, from the lowest bit on. Slow."""
    lines = np.zeros((n_words(bits, codes.shape[0]), *codes.shape[1:]), np.uint32)
    for i, line in enumerate(codes):
        for bit in range(bits):
            at = i * bits + bit
            lines[at // 32] |= ((line.astype(np.uint32) >> bit) & 1) << np.uint32(at % 32)
    return lines.view(np.int32)


@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_of_any_width_and_range(bits):
    codes = np.random.default_rng(bits).integers(0, 2**bits, (77, 3), dtype=np.uint8)
    words = pack(codes, bits)
    for start, stop in ((0, 77), (0, 1), (31, 33), (10, 11), (21, 22), (76, 77), (5, 70)):
        part = words[words_of(bits, start, stop)]
        assert (unpack(part, bits, start, stop, axis=0) == codes[start:stop]).all()
        assert (unpack(np.ascontiguousarray(part.T), bits, start, stop, axis=1) == codes[start:stop].T).all()
    assert nibbles(np.array([0x21, 0x43], np.uint8)).tolist() == [1, 2, 3, 4]


# GPTQ: the code of AutoGPTQ 0.7.1 (nn_modules/qlinear/qlinear_cuda_old.py, forward) and GPTQModel 7.7
# (nn_modules/qlinear/__init__.py, dequantize_weight), as it is there but for names.


def gptq_reference(qweight, qzeros, scales, g_idx, bits, v1):
    wf = torch.tensor(list(range(0, 32, bits)), dtype=torch.int32).unsqueeze(0)
    if bits == 3:
        wf = torch.tensor(
            [
                [0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 0],
                [0, 1, 4, 7, 10, 13, 16, 19, 22, 25, 28, 31],
                [0, 2, 5, 8, 11, 14, 17, 20, 23, 26, 29, 0],
            ],
            dtype=torch.int32,
        ).reshape(1, 3, 12)
        zeros = qzeros.reshape(qzeros.shape[0], qzeros.shape[1] // 3, 3, 1).expand(-1, -1, -1, 12)
        zeros = zeros >> wf.unsqueeze(0)
        zeros[:, :, 0, 10] = (zeros[:, :, 0, 10] & 0x3) | ((zeros[:, :, 1, 0] << 2) & 0x4)
        zeros[:, :, 1, 11] = (zeros[:, :, 1, 11] & 0x1) | ((zeros[:, :, 2, 0] << 1) & 0x6)
        zeros = zeros & 0x7
        zeros = torch.cat([zeros[:, :, 0, :11], zeros[:, :, 1, 1:12], zeros[:, :, 2, 1:11]], dim=2)
        zeros = zeros.reshape(scales.shape)
        weight = qweight.reshape(qweight.shape[0] // 3, 3, 1, qweight.shape[1]).expand(-1, -1, 12, -1)
        weight = (weight >> wf.unsqueeze(-1)) & 0x7
        weight[:, 0, 10] = (weight[:, 0, 10] & 0x3) | ((weight[:, 1, 0] << 2) & 0x4)
        weight[:, 1, 11] = (weight[:, 1, 11] & 0x1) | ((weight[:, 2, 0] << 1) & 0x6)
        weight = weight & 0x7
        weight = torch.cat([weight[:, 0, :11], weight[:, 1, 1:12], weight[:, 2, 1:11]], dim=1)
    else:
        zeros = torch.bitwise_right_shift(qzeros.unsqueeze(2).expand(-1, -1, 32 // bits), wf.unsqueeze(0))
        zeros = torch.bitwise_and(zeros, 2**bits - 1).reshape(scales.shape)
        weight = torch.bitwise_right_shift(qweight.unsqueeze(1).expand(-1, 32 // bits, -1), wf.unsqueeze(-1))
        weight = torch.bitwise_and(weight, 2**bits - 1)
    weight = weight.reshape(weight.shape[0] * weight.shape[1], weight.shape[2])
    if v1:
        zeros = torch.bitwise_and(zeros + 1, 2**bits - 1)
    return scales[g_idx.long()] * (weight - zeros[g_idx.long()])


def gptq_layer(
    bits, group, *, act_order=False, dtype=torch.float16, inputs=128, outputs=96, prefix="model.layers.0.mlp.up_proj."
):
    rng = np.random.default_rng(bits)
    n_groups = 1 if group == -1 else -(-inputs // group)
    g_idx = np.arange(inputs) // (inputs if group == -1 else group)
    if act_order:
        g_idx = rng.permutation(g_idx)
    qweight = pack(rng.integers(0, 2**bits, (inputs, outputs)), bits)
    qzeros = np.ascontiguousarray(pack(rng.integers(0, 2**bits, (outputs, n_groups)), bits).T)
    return {
        f"{prefix}qweight": torch.from_numpy(qweight),
        f"{prefix}qzeros": torch.from_numpy(qzeros),
        f"{prefix}scales": torch.from_numpy(rng.uniform(0.001, 0.02, (n_groups, outputs))).to(dtype),
        f"{prefix}g_idx": torch.from_numpy(g_idx.astype(np.int32)),
        f"{prefix}bias": torch.zeros(outputs, dtype=dtype),
        "model.norm.weight": torch.ones(inputs, dtype=dtype),
    }


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": False}
UP = "model.layers.0.mlp.up_proj."


@pytest.mark.parametrize(
    ("bits", "group", "act_order", "format_", "dtype"),
    [
        (4, 32, False, "gptq", torch.float16),
        (4, 32, True, "gptq", torch.float16),
        (4, -1, False, "gptq_v2", torch.bfloat16),
        (2, 64, True, "gptq", torch.float16),
        (3, 32, False, "gptq", torch.float16),
        (3, 64, True, "gptq_v2", torch.float32),
        (8, 128, False, "gptq", torch.bfloat16),
    ],
)
def test_gptq(tmp_path, bits, group, act_order, format_, dtype):
    tensors = gptq_layer(bits, group, act_order=act_order, dtype=dtype)
    config = GPTQ | {"bits": bits, "group_size": group, "desc_act": act_order, "checkpoint_format": format_}
    with opened(tmp_path, tensors, config) as model:
        found = mzstore.dequantized(model)
        assert set(found) == {f"{UP}weight", f"{UP}bias", "model.norm.weight"}
        assert list(found.weights) == [f"{UP}weight"]
        weight = found[f"{UP}weight"]
        assert (weight.scheme.bits, weight.scheme.block) == (bits, (1, None if group == -1 else group))
        assert (weight.scheme.symmetric, weight.scheme.act_order) == (True, act_order)
        each = [tensors[f"{UP}{name}"] for name in ("qweight", "qzeros", "scales", "g_idx")]
        check_weight(weight, gptq_reference(*each, bits, format_ == "gptq").T)
        assert found["model.norm.weight"][0] == 1


def test_gptq_without_g_idx_and_with_layers_of_other_bits(tmp_path):
    tensors = gptq_layer(4, 32) | gptq_layer(8, 64, prefix="b.")
    del tensors["b.g_idx"]
    dynamic = {"+:b": {"bits": 8, "group_size": 64}, "-:lm_head": {}}
    with opened(tmp_path, tensors, GPTQ | {"dynamic": dynamic}) as model:
        found = mzstore.dequantized(model)
        each = [tensors[f"b.{name}"] for name in ("qweight", "qzeros", "scales")]
        check_weight(found["b.weight"], gptq_reference(*each, torch.arange(128) // 64, 8, True).T)
        assert found[f"{UP}weight"].scheme.bits == 4


# AWQ: the code of AutoAWQ 0.2.9 (awq/utils/packing_utils.py), as it is there.

AWQ_REVERSE_ORDER = [0, 4, 1, 5, 2, 6, 3, 7]


def awq_reference(qweight, qzeros, scales, bits, group_size):
    shifts = torch.arange(0, 32, bits)
    iweights = torch.bitwise_right_shift(qweight[:, :, None], shifts[None, None, :]).to(torch.int8)
    iweights = iweights.view(iweights.shape[0], -1)
    izeros = torch.bitwise_right_shift(qzeros[:, :, None], shifts[None, None, :]).to(torch.int8)
    izeros = izeros.view(izeros.shape[0], -1)
    order = torch.arange(iweights.shape[-1], dtype=torch.int32).view(-1, 32 // bits)[:, AWQ_REVERSE_ORDER].view(-1)
    izeros, iweights = izeros[:, order], iweights[:, order]
    iweights = torch.bitwise_and(iweights, (2**bits) - 1)
    izeros = torch.bitwise_and(izeros, (2**bits) - 1)
    scales = scales.repeat_interleave(group_size, dim=0)
    izeros = izeros.repeat_interleave(group_size, dim=0)
    return (iweights - izeros) * scales


AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}


def awq_layer(group, inputs=128, outputs=96, prefix=UP):
    rng = np.random.default_rng(3)
    n_groups = 1 if group == -1 else inputs // group

    def words(*shape):
        return torch.from_numpy(rng.integers(-(2**31), 2**31, shape).astype(np.int32))

    return {
        f"{prefix}qweight": words(inputs, outputs // 8),
        f"{prefix}qzeros": words(n_groups, outputs // 8),
        f"{prefix}scales": torch.from_numpy(rng.uniform(0.001, 0.02, (n_groups, outputs)).astype(np.float16)),
    }


@pytest.mark.parametrize("group", [32, 64, -1])
def test_awq(tmp_path, group):
    tensors = awq_layer(group)
    with opened(tmp_path, tensors, AWQ | {"group_size": group}) as model:
        found = mzstore.dequantized(model)
        assert list(found) == [f"{UP}weight"]
        check_weight(found[f"{UP}weight"], awq_reference(*tensors.values(), 4, 128 if group == -1 else group).T)


# Fine-grained float8.


@pytest.mark.parametrize(
    ("shape", "scale_dtype"),
    [((256, 384), torch.float32), ((200, 300), torch.float32), ((3, 128, 256), torch.bfloat16)],
)
def test_float8_in_blocks(tmp_path, shape, scale_dtype):
    reference = pytest.importorskip("transformers.integrations.finegrained_fp8")
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(shape, generator=generator).to(torch.float8_e4m3fn)
    grid = (*shape[:-2], -(-shape[-2] // 128), -(-shape[-1] // 128))
    scales = (torch.rand(grid, generator=generator) * 0.1).to(scale_dtype)
    tensors = {"a.weight": weight, "a.weight_scale_inv": scales, "b.weight": torch.ones(3)}
    config = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    with opened(tmp_path, tensors, config, torch_dtype="bfloat16") as model:
        found = mzstore.dequantized(model)
        assert sorted(found) == ["a.weight", "b.weight"]
        check_weight(
            found["a.weight"], reference._dequantize_fp8_weight(weight, scales, [128, 128], torch.float32).bfloat16()
        )
        if not shape[-1] % 128 and not shape[-2] % 128:
            whole = reference.Fp8Dequantize(None)._dequantize_one(weight, scales, torch.bfloat16)
            assert (bits_of(found["a.weight"][...]) == bits_of(whole)).all()


def test_float8_of_one_scale_and_of_powers_of_two(tmp_path):
    reference = pytest.importorskip("transformers.integrations.finegrained_fp8").Fp8Dequantize(None)
    weight = torch.randn(64, 128).to(torch.float8_e4m3fn)
    one, powers = torch.tensor(0.013), torch.randint(100, 140, (2, 4), dtype=torch.uint8)
    tensors = {"a.weight": weight, "a.weight_scale": one, "a.input_scale": torch.tensor(2.0)}
    tensors |= {"b.weight": weight, "b.weight_scale_inv": powers, "c.weight": weight}
    with opened(tmp_path, tensors, {"quant_method": "fp8", "weight_block_size": [32, 32]}, dtype="float16") as model:
        found = mzstore.dequantized(model)
        assert sorted(found) == ["a.weight", "b.weight", "c.weight"]
        assert sorted(found.weights) == ["a.weight", "b.weight"]
        assert str(found["a.weight"].scheme) == "fp8 e4m3fn: float of 8 bits, one scale"
        check_weight(found["a.weight"], reference._dequantize_one(weight, one.reshape(1, 1), torch.float16))
        check_weight(found["b.weight"], reference._dequantize_one(weight, powers, torch.float16))


def test_mxfp4(tmp_path):
    reference = pytest.importorskip("transformers.integrations.mxfp4")
    generator = torch.Generator().manual_seed(2)
    blocks = torch.randint(0, 256, (2, 64, 4, 16), dtype=torch.uint8, generator=generator)
    scales = (
        torch.arange(2 * 64 * 4, dtype=torch.int64).remainder(256).to(torch.uint8).reshape(2, 64, 4)
    )  # every exponent
    name = "model.layers.0.mlp.experts.gate_up_proj"
    with opened(tmp_path, {f"{name}_blocks": blocks, f"{name}_scales": scales}, {"quant_method": "mxfp4"}) as model:
        found = mzstore.dequantized(model)
        assert list(found) == [name]
        check_weight(found[name], reference.convert_moe_packed_tensors(blocks, scales, dtype=torch.bfloat16))


# compressed-tensors: its own compressors write, and its own code reads.


def ct_scheme(**weights):
    quantization = pytest.importorskip("compressed_tensors.quantization")
    return quantization.QuantizationScheme(targets=["Linear"], weights=quantization.QuantizationArgs(**weights))


def ct_layer(format_, shape=(96, 128), dtype=torch.bfloat16, **weights):
    """(tensors of a layer, its plain weight, the configuration), as compressed-tensors makes them."""
    compressors = pytest.importorskip("compressed_tensors.compressors")
    scheme = ct_scheme(**weights)
    args, generator = scheme.weights, torch.Generator().manual_seed(3)
    weight = torch.randn(shape, generator=generator).to(dtype)
    grid = {
        "tensor": (1,),
        "channel": (shape[0], 1),
        "group": (shape[0], shape[1] // (args.group_size or 1)),
        "tensor_group": (shape[0], shape[1] // (args.group_size or 1)),
        "block": tuple(-(-n // b) for n, b in zip(shape, args.block_structure or shape, strict=True)),
    }[args.strategy]
    scale = (torch.rand(grid, generator=generator) * 0.5 + 0.1).to(dtype)
    state = {"weight": weight, "weight_scale": scale}
    if not args.symmetric:
        state["weight_zero_point"] = torch.randint(-4, 4, grid, generator=generator, dtype=torch.int8)
    if format_ == "nvfp4-pack-quantized":
        state["weight_global_scale"] = torch.tensor([37.3])
    if format_.startswith("mx"):
        state["weight_scale"] = torch.randint(-6, 2, grid, generator=generator).float().exp2().to(dtype)
    compressor = compressors.BaseCompressor.get_value_from_registry(format_)
    packed = compressor.compress(state, scheme)
    plain = compressor.decompress(packed, scheme)["weight"]
    config = {
        "quant_method": "compressed-tensors",
        "format": format_,
        "config_groups": {"group_0": json.loads(scheme.model_dump_json())},
        "ignore": ["lm_head"],
    }
    return {f"{UP}{name}": torch.as_tensor(tensor) for name, tensor in packed.items()}, plain, config


INT4 = {"num_bits": 4, "type": "int"}
FLOAT8 = {"num_bits": 8, "type": "float"}


@pytest.mark.parametrize(
    ("format_", "more"),
    [
        ("pack-quantized", INT4 | {"strategy": "group", "group_size": 32}),
        ("pack-quantized", INT4 | {"strategy": "group", "group_size": 64, "symmetric": False}),
        ("pack-quantized", INT4 | {"strategy": "channel", "symmetric": False, "dtype": torch.float16}),
        ("pack-quantized", INT4 | {"strategy": "tensor", "dtype": torch.float32, "shape": (33, 77)}),
        ("pack-quantized", {"num_bits": 3, "strategy": "group", "group_size": 32, "symmetric": False, "shape": (40, 160)}),
        ("pack-quantized", {"num_bits": 8, "strategy": "channel", "shape": (40, 51)}),
        ("int-quantized", {"num_bits": 8, "strategy": "channel"}),
        ("int-quantized", {"num_bits": 8, "strategy": "group", "group_size": 32, "symmetric": False}),
        ("int-quantized", {"num_bits": 8, "strategy": "tensor", "symmetric": False}),
        ("float-quantized", FLOAT8 | {"strategy": "tensor"}),
        ("float-quantized", FLOAT8 | {"strategy": "channel", "dtype": torch.float16}),
        ("float-quantized", FLOAT8 | {"strategy": "block", "block_structure": [32, 64], "shape": (100, 150)}),
        ("naive-quantized", FLOAT8 | {"strategy": "group", "group_size": 64, "dtype": torch.float32}),
        ("mxfp8-quantized", FLOAT8 | {"strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"}),
        ("nvfp4-pack-quantized", {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}),
        ("mxfp4-pack-quantized", {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"}),
    ],
)  # fmt: skip
def test_compressed_tensors(tmp_path, format_, more):
    tensors, plain, config = ct_layer(format_, **more)
    tensors |= {f"{UP}input_scale": torch.ones(1), "model.norm.weight": torch.ones(4)}
    with opened(tmp_path, tensors, config) as model:
        found = mzstore.dequantized(model)
        assert sorted(found) == [f"{UP}weight", "model.norm.weight"]
        weight = found[f"{UP}weight"]
        assert (weight.scheme.format, weight.scheme.bits) == (format_, more["num_bits"])
        assert weight.scheme.symmetric == more.get("symmetric", True)
        check_weight(weight, plain)


def test_compressed_tensors_of_several_groups(tmp_path):
    """Which layers a group is for is said by regular expressions; the tensors say it as well."""
    first, plain_first, config = ct_layer("pack-quantized", **INT4, strategy="group", group_size=32)
    second, plain_second, other = ct_layer("float-quantized", **FLOAT8, strategy="channel")
    groups = {"a": config["config_groups"]["group_0"], "b": other["config_groups"]["group_0"]}
    groups["a"] |= {"targets": ["re:.*(a+)+$"], "format": "pack-quantized"}
    groups["b"] |= {"format": "float-quantized"}
    config |= {"format": "mixed-precision", "config_groups": groups}
    tensors = first | {name.replace("up_proj", "down_proj"): tensor for name, tensor in second.items()}
    with opened(tmp_path, tensors, config) as model:
        found = mzstore.dequantized(model)
        check_weight(found[f"{UP}weight"], plain_first)
        check_weight(found["model.layers.0.mlp.down_proj.weight"], plain_second)


# bitsandbytes: the library writes and reads.


def bnb_layer(shape, type_, dtype, *, nested, blocksize=64, storage=torch.uint8):
    functional = pytest.importorskip("bitsandbytes").functional
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(4)).to(dtype)
    packed, state = functional.quantize_4bit(
        weight, blocksize=blocksize, compress_statistics=nested, quant_type=type_, quant_storage=storage
    )
    tensors = {"a.weight": packed} | {f"a.weight.{name}": value for name, value in state.as_dict(packed=True).items()}
    # The library's code in NumPy's order of steps; its kernels for CPUs round in other places.
    from bitsandbytes.backends.default.ops import _dequantize_4bit_compute

    absmax = state.absmax
    if nested:
        absmax = functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
    codes = packed.view(torch.uint8).reshape(-1)
    plain = _dequantize_4bit_compute(codes, absmax.float(), state.code, blocksize, shape, dtype)
    return tensors, plain, functional.dequantize_4bit(packed, state)


@pytest.mark.parametrize(
    ("shape", "type_", "dtype", "more"),
    [
        ((96, 128), "nf4", torch.bfloat16, {"nested": True}),
        ((96, 128), "nf4", torch.float16, {"nested": False}),
        ((96, 128), "fp4", torch.float32, {"nested": True, "blocksize": 128}),
        ((32, 100), "nf4", torch.bfloat16, {"nested": True, "blocksize": 256}),
        ((96, 128), "nf4", torch.bfloat16, {"nested": True, "storage": torch.bfloat16}),
        ((3, 40, 64), "fp4", torch.float16, {"nested": True}),
    ],
)
def test_bitsandbytes_in_4_bits(tmp_path, monkeypatch, shape, type_, dtype, more):
    tensors, plain, by_kernel = bnb_layer(shape, type_, dtype, **more)
    with opened(tmp_path, tensors) as model:
        found = mzstore.dequantized(model)
        assert list(found) == ["a.weight"]
        assert (found["a.weight"].scheme.format, found["a.weight"].scheme.nested) == (type_, more["nested"])
        check_weight(found["a.weight"], plain)
        assert (bits_of(by_kernel) == bits_of(plain)).all()
        monkeypatch.setattr("mzstore.schemes.base.PIECE", 64)  # less than a row
        check_weight(found["a.weight"], plain)


def test_bitsandbytes_in_8_bits(tmp_path):
    functional = pytest.importorskip("bitsandbytes").functional
    codes, scales, _ = functional.int8_vectorwise_quant(torch.randn(96, 128).half())
    tensors = {"a.weight": codes, "a.SCB": scales, "a.weight_format": torch.tensor(0, dtype=torch.uint8)}
    config = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    with opened(tmp_path, tensors, config, torch_dtype="float16") as model:
        found = mzstore.dequantized(model)
        assert list(found) == ["a.weight"]
        plain = functional.int8_vectorwise_dequant(codes, scales)
        assert (bits_of(found["a.weight"].read(dtype="float32")) == bits_of(plain)).all()
        check_weight(found["a.weight"], plain.half())


# What is done with them.


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def every_scheme():
    """(tensors, configuration, plain weights) of a checkpoint of each scheme that needs no other library."""
    gptq, awq = gptq_layer(4, 32, act_order=True), awq_layer(32)
    plain = gptq_reference(*[gptq[f"{UP}{name}"] for name in ("qweight", "qzeros", "scales", "g_idx")], 4, True).T
    yield "gptq", gptq, GPTQ | {"desc_act": True}, {f"{UP}weight": plain}
    yield "awq", awq, AWQ, {f"{UP}weight": awq_reference(*awq.values(), 4, 32).T}
    weight = torch.randn(200, 300).to(torch.float8_e4m3fn)
    scales = torch.rand(2, 3)
    spread = scales.repeat_interleave(128, 0)[:200].repeat_interleave(128, 1)[:, :300]
    fp8 = {"a.weight": weight, "a.weight_scale_inv": scales, "a.bias": torch.ones(3)}
    config = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    yield "fp8", fp8, config, {"a.weight": (weight.float() * spread).bfloat16()}
    blocks = torch.randint(0, 256, (3, 64, 2, 16), dtype=torch.uint8)
    scales = torch.randint(110, 140, (3, 64, 2), dtype=torch.uint8)
    levels = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
    codes = torch.stack([blocks & 15, blocks >> 4], -1).flatten(-2).long()
    plain = torch.ldexp(levels[codes], scales[..., None].int() - 127).flatten(-2).transpose(1, 2)
    yield (
        "mxfp4",
        {"e.down_blocks": blocks, "e.down_scales": scales},
        {"quant_method": "mxfp4"},
        {"e.down": plain.bfloat16()},
    )


SCHEMES = {name: rest for name, *rest in every_scheme()}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_checkpoint_comes_back_byte_for_byte(tmp_path, scheme):
    tensors, config, _ = SCHEMES[scheme]
    folder = folder_of(tmp_path, tensors, config)
    mzstore.convert(folder, tmp_path / "m.mz", check=True, show_progress=False)
    mzstore.convert(tmp_path / "m.mz", tmp_path / "back", show_progress=False)
    assert contents(tmp_path / "back") == contents(folder)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("by_way_of_an_archive", [False, True])
def test_conversion_to_plain_weights(tmp_path, monkeypatch, scheme, by_way_of_an_archive):
    """In small pieces, so that their edges are met."""
    monkeypatch.setattr("mzstore.schemes.sources.PANEL_NBYTES", 40_000)
    monkeypatch.setattr("mzstore.schemes.sources.BLOCK_NBYTES", 3_000)
    monkeypatch.setattr("mzstore.schemes.base.PIECE", 5_000)
    tensors, config, plain = SCHEMES[scheme]
    source = folder_of(tmp_path, tensors, config, model_type="llama")
    (source / "quantize_config.json").write_text("{}")
    if by_way_of_an_archive:
        mzstore.convert(source, source := tmp_path / "packed.mz", show_progress=False)
    report = mzstore.convert(source, tmp_path / "plain.mz", dequantize=True, check=True, show_progress=False)
    assert report.ok
    assert any(f"1 weight dequantized ({scheme}" in note for note in report.notes)
    with mzstore.open(tmp_path / "plain.mz") as model:
        assert json.loads(model.assets["config.json"]) == {"model_type": "llama"}
        assert list(model.assets) == ["config.json"]
        for name, expected in plain.items():
            assert (bits_of(model[name][...]) == bits_of(expected)).all()
        others = {name for name in tensors if name.endswith(("bias", "norm.weight"))}
        assert set(model) == {*plain, *others}
    mzstore.convert(
        source,
        tmp_path / "plain",
        to="directory",
        dequantize=True,
        include=list(plain),
        dtype="float32",
        show_progress=False,
    )
    written = safetensors_torch.load_file(tmp_path / "plain" / "model.safetensors")
    for name, expected in plain.items():
        assert torch.equal(written[name], expected.float())


def test_other_edits_are_for_the_plain_weights(tmp_path):
    source = folder_of(tmp_path, gptq_layer(4, 32, outputs=160), GPTQ)
    report = mzstore.convert(
        source, tmp_path / "m.mz", dequantize=True, include="*.weight", rename={"model.layers.*": "h.*"}, show_progress=False,
        recipe=mzstore.Recipe.parse('[[rule]]\nname = ["*up_proj*"]\nbits = 3'), check=True,
    )  # fmt: skip
    assert report.ok
    with mzstore.open(tmp_path / "m.mz") as model:
        assert set(model) == {"h.0.mlp.up_proj.weight", "model.norm.weight"}
        assert model["h.0.mlp.up_proj.weight"].encoding == "quantized"
        assert mzstore.convert(source, tmp_path / "n.mz", dequantize=True, dry_run=True).tensors[0].spec.shape


def test_what_is_not_quantized_so_is_no_source_of_plain_weights(tmp_path):
    folder = folder_of(tmp_path, {"a.qweight": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"nothing to dequantize.*neither config.json nor the names"):
        mzstore.convert(folder, tmp_path / "m.mz", dequantize=True)
    with pytest.raises(ValueError, match=r"nothing to dequantize.*no config.json with it"):
        mzstore.convert(folder / "model.safetensors", tmp_path / "m.mz", dequantize=True)
    assert not (tmp_path / "m.mz").exists()


def test_several_archives(tmp_path):
    """Of a checkpoint as it is, and of its plain weights: each task recognizes the checkpoint for itself."""
    tensors, config, plain = SCHEMES["gptq"]
    source = folder_of(tmp_path, tensors, config)
    mzstore.convert(source, tmp_path / "packed.json", shard_nbytes=2000, show_progress=False)
    with mzstore.open(tmp_path / "packed.json") as model:
        weight = mzstore.dequantized(model)[f"{UP}weight"]
        assert (bits_of(weight[5:9, 3:]) == bits_of(plain[f"{UP}weight"])[5:9, 3:]).all()
        assert summarize(model).schemes[0].scheme == weight.scheme
    for start in (source, tmp_path / "packed.json"):
        target = tmp_path / f"{start.name}.plain.json"
        assert mzstore.convert(start, target, shard_nbytes=2000, dequantize=True, check=True, show_progress=False).ok
        with mzstore.open(target) as model:
            assert (bits_of(model[f"{UP}weight"][...]) == bits_of(plain[f"{UP}weight"])).all()


def test_empty_weights(tmp_path):
    tensors = {"a.weight": torch.zeros(0, 130), "b.weight": torch.zeros(3, 0)}
    tensors = {name: each.to(torch.float8_e4m3fn) for name, each in tensors.items()}
    tensors |= {"a.weight_scale_inv": torch.ones(0, 2), "b.weight_scale_inv": torch.ones(1, 0)}
    folder = folder_of(tmp_path, tensors, {"quant_method": "fp8", "weight_block_size": [128, 128]})
    assert mzstore.convert(folder, tmp_path / "m.mz", dequantize=True, check=True, show_progress=False).ok
    with mzstore.open(tmp_path / "m.mz") as model:
        assert {name: model[name].shape for name in model} == {"a.weight": (0, 130), "b.weight": (3, 0)}


def test_a_configuration_without_end_is_not_read(tmp_path, monkeypatch):
    folder = folder_of(tmp_path, SCHEMES["awq"][0], AWQ)
    mzstore.convert(folder, tmp_path / "m.mz", show_progress=False)
    monkeypatch.setattr(configuration, "MAX_NBYTES", 50)
    with mzstore.open(tmp_path / "m.mz") as model, pytest.raises(mzstore.FormatError, match="at most 50 are read"):
        mzstore.dequantized(model)
    with pytest.raises(mzstore.FormatError, match="more than 50 bytes"):
        mzstore.convert(folder, tmp_path / "n.mz", dequantize=True)


def test_a_configuration_from_elsewhere_and_one_in_a_file_of_its_own(tmp_path):
    tensors, config, plain = SCHEMES["gptq"]
    folder = folder_of(tmp_path, tensors)
    (folder / "quantize_config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "quant_method"}))
    mzstore.convert(folder / "model.safetensors", tmp_path / "bare.mz", show_progress=False)
    mzstore.convert(folder, tmp_path / "whole.mz", show_progress=False)
    with mzstore.open(tmp_path / "bare.mz") as bare, mzstore.open(tmp_path / "whole.mz") as whole:
        with pytest.raises(ValueError, match=r"there is no config.json"):
            mzstore.dequantized(bare)
        for found in (
            mzstore.dequantized(bare, {"text_config": {"quantization_config": config}}),
            mzstore.dequantized(whole),
        ):
            assert (bits_of(found[f"{UP}weight"][...]) == bits_of(plain[f"{UP}weight"])).all()
        with pytest.raises(KeyError, match=r"no tensor .*g_idx.*nearest"):
            found[f"{UP}g_idx"]


def test_configurations_of_folders(tmp_path):
    """Of a pipeline, each folder has its own."""
    for part, scheme in (("unet", "awq"), ("text", "fp8")):
        tensors, config, _ = SCHEMES[scheme]
        (tmp_path / "m" / part).mkdir(parents=True)
        safetensors_torch.save_file(
            {k: v.clone() for k, v in tensors.items()}, tmp_path / "m" / part / "model.safetensors"
        )
        (tmp_path / "m" / part / "config.json").write_text(json.dumps({"quantization_config": config}))
    mzstore.convert(tmp_path / "m", tmp_path / "m.mz", show_progress=False)
    with mzstore.open(tmp_path / "m.mz") as model:
        found = mzstore.dequantized(model)
        assert {name: weight.scheme.method for name, weight in found.weights.items()} == {
            f"unet/{UP}weight": "awq",
            "text/a.weight": "fp8",
        }
        assert (bits_of(found["text/a.weight"][...]) == bits_of(SCHEMES["fp8"][2]["a.weight"])).all()


class Counted:
    """A tensor in memory that counts what is read of it."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.dtype, self.shape, self.nbytes = values, values.dtype, values.shape, 0

    def __getitem__(self, index):
        found = self.values[index]
        self.nbytes += found.nbytes
        return found


def as_numpy(tensors):
    by_torch = {torch.float8_e4m3fn: "float8_e4m3fn", torch.bfloat16: "bfloat16"}
    return {
        name: bits_of(tensor).view(dtypes.of(by_torch[tensor.dtype]).numpy)
        if tensor.dtype in by_torch
        else tensor.numpy()
        for name, tensor in tensors.items()
    }


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_slice_reads_what_it_needs(scheme):
    """Of members and columns, and no more than a word or a group around them."""
    tensors, config, plain = SCHEMES[scheme]
    counted = {name: Counted(values) for name, values in as_numpy(tensors).items()}
    (weight,) = recognize(
        counted, [configuration.of_config({"quantization_config": config}, "", "config.json")]
    ).values()
    for each in counted.values():
        each.nbytes = 0
    index = np.s_[..., 32:48, 40:56]
    assert (bits_of(weight[index]) == bits_of(plain[weight.name])[index]).all()
    values = math.prod(plain[weight.name][index].shape)
    in_order = sum(each.nbytes for name, each in counted.items() if not name.endswith("g_idx"))
    assert 0 < in_order <= values * weight.members_nbytes / weight.size * 4


MISSING = "missing"


def read_all(model):
    for weight in mzstore.dequantized(model).weights.values():
        weight[...]


def broken(scheme, changes, config=None):
    """A checkpoint with some tensors and words of its configuration replaced."""
    tensors, doc, _ = SCHEMES[scheme]
    tensors = {name: value for name, value in (tensors | changes).items() if value is not MISSING}
    return tensors, doc | (config or {})


G_IDX = SCHEMES["gptq"][0][f"{UP}g_idx"]


@pytest.mark.parametrize(
    ("scheme", "changes", "config", "message"),
    [
        ("gptq", {f"{UP}qzeros": MISSING}, {}, rf"'{UP}weight' cannot be read without tensor '{UP}qzeros'"),
        ("gptq", {f"{UP}g_idx": G_IDX.clone().fill_(4)}, {}, rf"'{UP}g_idx': groups 4 to 4 are named, and there are 4"),
        ("gptq", {f"{UP}g_idx": G_IDX - 1}, {}, "groups -1 to 2 are named"),
        ("gptq", {f"{UP}g_idx": G_IDX[:100]}, {}, rf"'{UP}qweight': its shape is \[16, 96\], with 4 groups of 100 columns"),
        ("gptq", {f"{UP}g_idx": G_IDX.float()}, {}, "its dtype is float32, not int32 or int64"),
        ("gptq", {f"{UP}g_idx": G_IDX.reshape(2, 64)}, {}, "its shape is .2, 64., and .* makes it"),
        ("gptq", {}, {"bits": 8}, "that is no layer of 8 bits in groups of 32, which config.json says"),
        ("gptq", {}, {"group_size": 64}, "with 4 groups of 128 columns; that is no layer of 4 bits in groups of 64"),
        ("gptq", {}, {"group_size": 0}, "group_size is 0, not a positive number"),
        ("gptq", {}, {"group_size": "32"}, "group_size is '32', not an integer"),
        ("gptq", {}, {"bits": True}, "bits is True, not an integer"),
        ("gptq", {}, {"bits": None}, "it does not say bits"),
        ("gptq", {}, {"sym": "yes"}, "sym is 'yes', not true or false"),
        ("gptq", {}, {"dynamic": [1]}, "dynamic is .1., not an object"),
        ("gptq", {}, {"bits": 5}, "GPTQ of 5 bits is not read"),
        ("gptq", {}, {"checkpoint_format": "marlin"}, "GPTQ in the layout 'marlin' is not read"),
        ("gptq", {f"{UP}qzeros": torch.zeros(4, 13, dtype=torch.int32)}, {}, rf"'{UP}qzeros': its shape is .4, 13."),
        ("gptq", {f"{UP}scales": torch.zeros(4, dtype=torch.float16)}, {}, "its shape is .4., not that of a matrix"),
        ("gptq", {f"{UP}scales": torch.zeros(4, 95, dtype=torch.float16)}, {}, rf"'{UP}qweight': its shape is .16, 96."),
        ("gptq", {f"{UP}qweight": torch.zeros(0, 96, dtype=torch.int32)}, {}, rf"'{UP}qweight': its shape is .0, 96."),
        ("gptq", {f"{UP}weight": torch.zeros(96, 128)}, {}, "is there twice"),
        ("gptq", {}, {"quant_method": "hqq"}, "method 'hqq', and only gptq, awq"),
        ("gptq", {}, {"quant_method": 4}, "quant_method is 4, not a name"),
        ("awq", {}, {"bits": 8}, "AWQ of 8 bits is not read"),
        ("awq", {}, {"version": "gemv"}, "AWQ in the layout 'gemv' is not read"),
        ("awq", {}, {"group_size": 48}, "its 128 rows are not in whole groups of 48"),
        ("awq", {}, {"group_size": -2}, "group_size is -2"),
        ("awq", {f"{UP}qzeros": torch.zeros(4, 11, dtype=torch.int32)}, {}, rf"'{UP}qzeros': its shape is .4, 11."),
        ("awq", {f"{UP}scales": torch.zeros(4, 99).half()}, {}, "for 99 outputs, not a multiple of 8"),
        ("awq", {f"{UP}scales": torch.zeros(4, 96, dtype=torch.int64)}, {}, "its dtype is int64, not float16 or"),
        ("fp8", {}, {"weight_block_size": [128, 0]}, "weight_block_size is .128, 0., not two positive integers"),
        ("fp8", {}, {"weight_block_size": [64, 128]}, "'a.weight_scale_inv': its shape is .2, 3., and .* makes it .4, 3."),
        ("fp8", {}, {"weight_block_size": None}, "config.json does not say for which blocks"),
        ("fp8", {"a.weight_scale_inv": torch.ones(2, 3, dtype=torch.int32)}, {}, "its dtype is int32, not float16 or"),
        ("fp8", {"a.weight": torch.tensor(1.0).to(torch.float8_e4m3fn), "a.weight_scale_inv": torch.tensor(1.0)}, {}, "it is one number"),
        ("mxfp4", {"e.down_scales": MISSING}, {}, "'e.down' cannot be read without tensor 'e.down_scales'"),
        ("mxfp4", {"e.down_scales": torch.ones(3, 64, 3, dtype=torch.uint8)}, {}, "'e.down_scales': its shape is"),
        ("mxfp4", {"e.down_blocks": torch.ones(3, 64, 32, dtype=torch.uint8)}, {}, r"not \[experts, outputs, groups, 16\]"),
        ("mxfp4", {"e.down_blocks": torch.ones(3, 64, 2, 16)}, {}, "its dtype is float32, not uint8"),
    ],
)  # fmt: skip
def test_what_contradicts_itself_is_refused(tmp_path, scheme, changes, config, message):
    with opened(tmp_path, *broken(scheme, changes, config)) as model:
        with pytest.raises((mzstore.FormatError, mzstore.UnsupportedError), match=message):
            read_all(model)
        shown = summarize(model)  # which tells it, and all else
        assert len(shown.tensors) == len(model)
        assert "g_idx" in message or "are named" in message or shown.scheme_problem


STATE = "a.weight.quant_state.bitsandbytes__nf4"


def bnb4(changes, **state):
    """NF4 of 64 x 32 values, as bitsandbytes lays them out, with some things replaced."""
    doc = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [64, 32], "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.1}  # fmt: skip
    doc = {key: value for key, value in (doc | state).items() if value is not MISSING}
    tensors = {
        "a.weight": torch.randint(0, 256, (1024, 1), dtype=torch.uint8),
        "a.weight.absmax": torch.randint(0, 256, (32,), dtype=torch.uint8),
        "a.weight.quant_map": torch.linspace(-1, 1, 16),
        "a.weight.nested_absmax": torch.ones(1),
        "a.weight.nested_quant_map": torch.linspace(-1, 1, 256),
        STATE: torch.tensor(list(json.dumps(doc).encode()), dtype=torch.uint8),
    } | changes
    return {name: value for name, value in tensors.items() if value is not MISSING}


@pytest.mark.parametrize(
    ("changes", "state", "message"),
    [
        ({"a.weight": MISSING}, {}, "'a.weight' cannot be read without tensor 'a.weight'"),
        (
            {"a.weight": torch.zeros(1023, 1, dtype=torch.uint8)},
            {},
            "'a.weight': its shape is .1023, 1., and .* makes it .1024, 1.",
        ),
        ({"a.weight.absmax": torch.zeros(31, dtype=torch.uint8)}, {}, "'a.weight.absmax': its shape is .31."),
        ({"a.weight.absmax": torch.zeros(32)}, {}, "'a.weight.absmax': its dtype is float32, not uint8"),
        ({"a.weight.nested_absmax": torch.zeros(2)}, {}, "'a.weight.nested_absmax': its shape is .2."),
        ({"a.weight.nested_quant_map": torch.zeros(255)}, {}, "'a.weight.nested_quant_map': its shape is .255."),
        ({"a.weight.quant_map": torch.zeros(15)}, {}, "'a.weight.quant_map': its shape is .15."),
        ({STATE: torch.zeros(8, dtype=torch.uint8)}, {}, "not JSON"),
        ({STATE: torch.tensor(list(b"[" * 60000), dtype=torch.uint8)}, {}, "not JSON"),
        ({STATE: torch.zeros(70000, dtype=torch.uint8)}, {}, "not that of at most 65536 bytes"),
        ({STATE: MISSING, STATE.replace("nf4", "nf5"): torch.zeros(8, dtype=torch.uint8)}, {}, "quantized as 'nf5'"),
        ({}, {"blocksize": 0}, "blocksize is 0, not a positive integer"),
        ({}, {"blocksize": 2**62}, "blocksize is 4611686018427387904"),
        ({}, {"nested_blocksize": -1}, "nested_blocksize is -1"),
        ({}, {"nested_offset": "x"}, "nested_offset is 'x', not a number"),
        ({}, {"shape": [64, -32]}, "shape is .64, -32., not positive integers"),
        ({}, {"shape": [2**40, 2**40]}, "its shape is larger than any tensor"),
        ({}, {"shape": MISSING}, "shape is None"),
        ({}, {"dtype": "int8"}, "dtype is 'int8', not float16 or"),
    ],
)
def test_a_quantization_state_is_not_believed(tmp_path, changes, state, message):
    with (
        opened(tmp_path, bnb4(changes, **state)) as model,
        pytest.raises((mzstore.FormatError, mzstore.UnsupportedError), match=message),
    ):
        mzstore.dequantized(model)


def test_blocks_without_end_take_no_memory():
    """A block may be said to be longer than the tensor: what is computed is no longer than what is asked for."""
    tensors = bnb4({"a.weight.absmax": torch.zeros(1, dtype=torch.uint8)}, blocksize=2**31, nested_blocksize=2**31)
    (weight,) = recognize({name: Held(values) for name, values in as_numpy(tensors).items()}, []).values()
    tracemalloc.start()
    assert weight[3, 5:9].shape == (4,)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


CT_INT4 = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "group_size": 32, "strategy": "group", "symmetric": False}}},
}  # fmt: skip


def ct_int4(changes):
    tensors = {
        "a.weight_packed": torch.zeros(48, 16, dtype=torch.int32),
        "a.weight_scale": torch.ones(48, 4, dtype=torch.bfloat16),
        "a.weight_zero_point": torch.zeros(6, 4, dtype=torch.int32),
        "a.weight_shape": torch.tensor([48, 128]),
    } | changes
    return {name: value for name, value in tensors.items() if value is not MISSING}


def ct_with(**weights):
    group = CT_INT4["config_groups"]["group_0"]
    return CT_INT4 | {"config_groups": {"group_0": group | {"weights": group["weights"] | weights}}}


def test_compressed_tensors_with_groups_of_their_own_order(tmp_path):
    """As early versions have it: ``weight_g_idx`` names the group of each column (forward.py of 0.9, _process_quantization)."""
    groups = torch.arange(128).remainder(4).int()
    packed = torch.randint(-(2**31), 2**31 - 1, (48, 16)).int()
    tensors = ct_int4({"a.weight_g_idx": groups, "a.weight_packed": packed, "a.weight_scale": torch.rand(48, 4).half()})
    codes = torch.stack([(packed >> (4 * i)) & 15 for i in range(8)], -1).flatten(1) - 8
    plain = (codes + 8) * tensors["a.weight_scale"][:, groups]  # zero points are 0 - 8
    with opened(tmp_path, tensors, CT_INT4) as model:
        check_weight(mzstore.dequantized(model)["a.weight"], plain)


@pytest.mark.parametrize(
    ("changes", "config", "message"),
    [
        ({"a.weight_scale": MISSING}, CT_INT4, "'a.weight' cannot be read without tensor 'a.weight_scale'"),
        ({"a.weight_shape": MISSING}, CT_INT4, "'a.weight' cannot be read without tensor 'a.weight_shape'"),
        ({"a.weight_shape": torch.tensor([48, 2**60])}, CT_INT4, "which .48, 16. words do not hold"),
        ({"a.weight_shape": torch.tensor([48, -1])}, CT_INT4, "which .48, 16. words do not hold"),
        ({"a.weight_shape": torch.tensor([49, 128])}, CT_INT4, "which .48, 16. words do not hold"),
        ({"a.weight_shape": torch.tensor([48, 128, 1])}, CT_INT4, "'a.weight_shape': its shape is .3."),
        ({"a.weight_shape": torch.tensor([48, 100])}, CT_INT4, "is none of what config.json says: nothing for such"),
        ({"a.weight_zero_point": MISSING}, CT_INT4, "no zero points, is none of what"),
        ({"a.weight_zero_point": torch.zeros(48, 4, dtype=torch.int8)}, CT_INT4, "is none of what"),
        ({"a.weight_scale": torch.ones(48, 5)}, CT_INT4, r"scales of float32 \[48, 5\]"),
        ({"a.weight_packed": torch.zeros(48, 16)}, CT_INT4, "its dtype is float32, not int32 or uint8"),
        ({"a.weight_packed": torch.zeros(2, 48, 16, dtype=torch.int32)}, CT_INT4, "not that of a matrix"),
        (
            {"a.weight_g_idx": torch.full((128,), 7)},
            CT_INT4,
            "'a.weight_g_idx': groups 7 to 7 are named, and there are 4",
        ),
        ({"a.weight_g_idx": torch.zeros(7, dtype=torch.int32)}, CT_INT4, "'a.weight_g_idx': its shape is .7."),
        ({}, ct_with(num_bits=8), "is none of what"),
        ({}, ct_with(num_bits=16), "codes are 16 bits"),
        ({}, ct_with(type="float"), "does not hold 4 bits of float"),
        ({}, ct_with(group_size=0), "strategy 'group' with group_size 0"),
        ({}, ct_with(group_size=-7), "strategy 'group' with group_size -7"),
        ({}, ct_with(strategy="block"), "strategy 'block' .* no blocks"),
        ({}, ct_with(strategy="block", block_structure=[0, 2]), "strategy 'block' .* no blocks"),
        ({}, CT_INT4 | {"config_groups": [1]}, "config_groups is no object"),
        ({}, CT_INT4 | {"config_groups": {"W4A16": ["Linear"]}}, "'W4A16' of config_groups is a preset"),
        ({}, CT_INT4 | {"format": "marlin-24"}, "format 'marlin-24' is not read"),
        ({}, CT_INT4 | {"format": None}, "does not say in which format"),
        ({}, CT_INT4 | {"sparsity_config": {"format": "sparse-24-bitmask"}}, "with zeros left out"),
    ],
)
def test_compressed_tensors_that_do_not_fit_are_refused(tmp_path, changes, config, message):
    with (
        opened(tmp_path, ct_int4(changes), config) as model,
        pytest.raises((mzstore.FormatError, mzstore.UnsupportedError), match=message),
    ):
        read_all(model)


def test_inspect_tells_schemes(tmp_path):
    tensors, config, _ = SCHEMES["gptq"]
    with opened(tmp_path, tensors, config) as model:
        summary = summarize(model)
        (scheme,) = summary.to_json()["schemes"]
        assert scheme["weights"] == [f"{UP}weight"]
        assert (scheme["method"], scheme["bits"], scheme["block"], scheme["act_order"]) == ("gptq", 4, [1, 32], True)
        nbytes = sum(tensors[f"{UP}{name}"].nbytes for name in ("qweight", "qzeros", "scales", "g_idx"))
        assert scheme["bits_per_weight"] == 8 * nbytes / (96 * 128)
        assert 0 < scheme["stored_bits_per_weight"] < 6
    shown = subprocess.run([sys.executable, "-m", "mzstore", "inspect", tmp_path / "model.mz"], capture_output=True, text=True, check=True).stdout  # fmt: skip
    assert "gptq: int of 4 bits, groups of 32, act-order; 1 weight, 4.96 bits per weight, " in shown


def test_commands(tmp_path):
    tensors, config, plain = SCHEMES["awq"]
    folder = folder_of(tmp_path, tensors, config)

    def mz(*args, failed=0):
        done = subprocess.run(
            [sys.executable, "-m", "mzstore", *map(str, args)], capture_output=True, text=True, check=False
        )
        assert done.returncode == failed, done.stderr
        return done.stdout + done.stderr

    mzstore.convert(folder, tmp_path / "m.mz", show_progress=False)
    mz("get", tmp_path / "m.mz", f"{UP}weight[3:5, ::2]", "--dequantize", "-o", tmp_path / "part.npy")
    assert (np.load(tmp_path / "part.npy") == plain[f"{UP}weight"][3:5, ::2].numpy()).all()
    assert "float16 [96, 128]" in mz("get", tmp_path / "m.mz", f"{UP}weight", "--dequantize")
    said = mz("convert", tmp_path / "m.mz", tmp_path / "plain.mz", "--dequantize", "--dtype", "bfloat16", "--check")
    assert "1 weight dequantized (awq gemm: int of 4 bits, groups of 32, zero points)" in said
    with mzstore.open(tmp_path / "plain.mz") as model:
        assert (bits_of(model[f"{UP}weight"][...]) == bits_of(plain[f"{UP}weight"].bfloat16())).all()
    assert "is not quantized by another tool" in mz("get", tmp_path / "plain.mz", "x", "--dequantize", failed=1)

"""Sparse tensors without their zeros: components, SciPy, PyTorch; and their values, in the kernels and in NumPy."""

import builtins
import io
import sys
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
import scipy.sparse
import torch
import zstandard
from forge import Forged, forge

import mzstore
from mzstore import Rule, kernels
from mzstore.dtypes import DTYPES
from mzstore.encodings import Coding
from mzstore.encodings.positions import Index, gaps
from mzstore.encodings.quantized import Quantized, packed_array
from mzstore.encodings.sparse import Sparse, blocks_of, raw_values, taken_places, values_grid
from mzstore.grid import Grid
from mzstore.payload import seal

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")  # PyTorch says so once

BF16 = np.dtype(ml_dtypes.bfloat16)
SHAPES = {  # shape: chunk shape
    (50, 64): (50, 64),
    (45, 70): (16, 32),  # ends inside of chunks on both axes
    (700,): (128,),
    (3, 20, 24): (2, 8, 8),
    (0, 16): (8, 8),
}
INDEXES = {
    "gaps": Index(),
    "low bits": Index("gaps", 8),
    "bitmap": Index("bitmap"),
    "2:4": Index("pattern", 0, (2, 4)),
    "3:8": Index("pattern", 0, (3, 8)),
}
BLOCKS = [(1, 1), (1, 4), (4, 1), (8, 8), (2, 4)]
DTYPE_NAMES = ("float32", "bfloat16", "float16", "float64", "int8", "int64", "bool", "float8_e4m3fn")


def sparse_values(shape, dtype="float32", index=INDEXES["gaps"], block=(1, 1), chunk_shape=None, density=0.2, seed=0):
    """Values with zeros such that an index with these blocks has room for them."""
    rng = np.random.default_rng(seed)
    grid = Grid(shape, chunk_shape or SHAPES[shape])
    values = np.zeros([n * c for n, c in zip(grid.counts, grid.chunk_shape, strict=True)], np.float32)
    whole = Grid(values.shape, grid.chunk_shape)
    for chunk in whole.chunks():
        n = grid.chunk_size // (block[0] * block[1])
        if index.pattern is None:
            taken = rng.random(n) < density
        else:
            count, group = index.pattern
            taken = np.argsort(rng.random((n // group, group)), axis=1).reshape(-1) < count
            taken &= rng.random(n) < 0.9  # some groups have fewer
        if chunk == (0,) * len(shape):
            taken[:] = False  # a chunk without anything
        own = np.zeros((n, *block), np.float32)
        own[taken] = 1 + rng.integers(0, 100, (int(taken.sum()), *block)) / 4
        box = whole.box(chunk)
        values[box] = unblocked(own, grid.chunk_shape)
    return values[tuple(slice(0, n) for n in shape)].astype(DTYPES[dtype].numpy)


def unblocked(blocks, shape):
    """The inverse of ``blocks_of``."""
    _, height, width = blocks.shape
    rows, cols = int(np.prod(shape[:-1])), shape[-1]
    return blocks.reshape(rows // height, cols // width, height, width).swapaxes(1, 2).reshape(shape)


def sparse_part(values, index=INDEXES["gaps"], block=(1, 1), chunk_shape=None):
    """(part, bodies) of ``values`` stored as they are."""
    dtype = next(d for d in DTYPES.values() if d.numpy == values.dtype)
    words = np.ascontiguousarray(values).view(dtype.word)
    grid = Grid(values.shape, chunk_shape or SHAPES[values.shape])
    found = {}
    for chunk in grid.chunks():
        whole = np.zeros(grid.chunk_shape, dtype.word)
        inside = words[grid.box(chunk)]
        whole[tuple(slice(0, n) for n in inside.shape)] = inside
        places = taken_places(whole != 0, block, index.pattern)
        found[chunk] = places, blocks_of(whole, block)[places]
    most = max([places.size for places, _ in found.values()], default=1) or 1
    n = grid.chunk_size // (block[0] * block[1])
    n_bytes = max([1, *(gaps(places, index.low_bits)[0].size for places, _ in found.values())])
    n_bytes = n_bytes if index.kind == "gaps" else index.exact_nbytes(n)
    if index.pattern:
        most = n // index.pattern[1] * index.pattern[0]
    room = most * block[0] * block[1]
    part = Sparse.new(dtype, grid, index, n_bytes, raw_values(dtype, grid, room), block)
    made = Forged()
    for chunk, (places, blocks) in found.items():
        bodies = part.encode_elements(places, blocks, Coding())
        for component, body in zip(part.components, bodies, strict=True):
            key = component.array.chunk_key(part.component_chunk(component, chunk))
            made.payloads[f"{component.name}/{key}"] = seal(body)
    return part, made.payloads


def model_of(values, *arguments, name="w", **options):
    """An archive with one tensor, stored sparse."""
    part, payloads = sparse_part(values, *arguments, **options)
    made = forge({}, lossy={name: (values, part, {})})
    made.payloads |= {f"{name}/{key}": data for key, data in payloads.items()}
    return made


def fits(shape, block, index, chunk_shape=None):
    """Whether the chunks of a tensor have such blocks and groups."""
    *_, rows, cols = (1, *(chunk_shape or SHAPES[shape]))
    n = int(np.prod(chunk_shape or SHAPES[shape])) // (block[0] * block[1])
    return not (rows % block[0] or cols % block[1] or (index.pattern and n % index.pattern[1]))


CASES = [
    (shape, block, name)
    for shape in SHAPES
    for block in BLOCKS
    for name, index in INDEXES.items()
    if fits(shape, block, index)
]


def slices_of(shape):
    """Some of what a reader may ask for."""
    yield ...
    yield (*(slice(n // 3, n // 2 + 1) for n in shape),)
    yield (*(slice(None, None, 3) for _ in shape),)
    yield (slice(None, None, -1), *(slice(1, n) for n in shape[1:]))
    if 0 not in shape:
        yield (shape[0] // 2, ...)
        yield (..., slice(shape[-1] - 3, None))


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize(("shape", "block", "index"), CASES)
def test_values(shape, block, index, fast, monkeypatch):
    monkeypatch.setattr(kernels, "pays", lambda nbytes: fast)
    for dtype in ("bfloat16", "float32", "int8"):
        values = sparse_values(shape, dtype, INDEXES[index], block)
        with mzstore.open(model_of(values, INDEXES[index], block).archive()) as model:
            tensor = model["w"]
            for cut in slices_of(shape):
                assert tensor[cut].tobytes() == values[cut].tobytes()
            out = np.full((*shape[:-1], shape[-1] + 3), 7, values.dtype)
            tensor.read(out[..., 1:-2])
            assert out[..., 1:-2].tobytes() == values.tobytes()
            assert (out[..., :1] == 7).all()
            assert (out[..., -2:] == 7).all()
            if shape[-1] % 2 == 0:
                swapped = np.empty(shape[::-1], values.dtype).T  # no rows side by side
                assert tensor.read(swapped).tobytes() == values.tobytes()


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("width", [8191, 8192, 20_000, 1 << 17])
def test_rows_longer_than_a_line(width, fast, monkeypatch):
    """A line that the kernel makes holds 8192 words of 16 bits; chunks of 256 KiB go past the cache, from any address on."""
    monkeypatch.setattr(kernels, "pays", lambda nbytes: fast)
    shape = (3, width)
    values = sparse_values(shape, "bfloat16", chunk_shape=shape, density=0.05)
    values[0, 0], values[2, -1] = 3, 4
    with mzstore.open(model_of(values, chunk_shape=shape).archive()) as model:
        for begin in (0, 1, 31, 33):
            memory = np.full(begin + values.size + 40, 7, BF16)
            out = memory[begin : begin + values.size].reshape(shape)
            model["w"].read(out)
            assert out.tobytes() == values.tobytes()
            assert (memory[:begin] == 7).all()
            assert (memory[begin + values.size :] == 7).all()
        unaligned = np.zeros(2 * values.size + 1, np.uint8)[1:].view(BF16).reshape(shape)
        assert model["w"].read(unaligned).tobytes() == values.tobytes()
        assert model["w"][:, width // 2 : -5].tobytes() == values[:, width // 2 : -5].tobytes()


@pytest.mark.parametrize("steps", [1, 127, 128, 129, 1000])
@pytest.mark.parametrize("low_bits", [0, 8])
def test_gaps_are_decoded_alike(steps, low_bits, monkeypatch):
    """Runs of 128 bytes without an escape are a case of their own, and the last ones may have room for less."""
    rng = np.random.default_rng(steps)
    for escapes in (0, 0.01, 0.5):
        body = rng.integers(0, 255, steps).astype(np.uint8)
        body[rng.random(steps) < escapes] = 255
        low = rng.integers(0, 256, steps).astype(np.uint8)
        count = int((body != 255).sum())
        for room in {max(1, count - 1), max(1, count), steps}:
            found = []
            for fast in (False, True):
                monkeypatch.setattr(kernels, "pays", lambda nbytes, fast=fast: fast)
                try:
                    found.append(Index("gaps", low_bits).decode(body, low, 1 << 26, room, "").tolist())
                except mzstore.CorruptError as error:
                    found.append(str(error)[:12])
            assert found[0] == found[1]


@pytest.mark.parametrize("fast", [False, True])
def test_a_bitmap_with_more_bits_than_room(fast, monkeypatch):
    monkeypatch.setattr(kernels, "pays", lambda nbytes: fast)
    body = np.full(100, 255, np.uint8)
    assert Index("bitmap").decode(body, body, 800, 800, "").tolist() == list(range(800))
    for n, room in ((800, 799), (800, 1), (799, 800)):
        with pytest.raises(mzstore.CorruptError, match="positions up to"):
            Index("bitmap").decode(body, body, n, room, "")


@pytest.mark.parametrize(("shape", "block", "index"), CASES)
def test_components(shape, block, index):
    values = sparse_values(shape, "bfloat16", INDEXES[index], block)
    with mzstore.open(model_of(values, INDEXES[index], block).archive()) as model:
        parts = model["w"].components()
        assert parts.keys() == {"positions", "values"}
        positions, found = parts["positions"][...], parts["values"][...]
        assert positions.dtype == np.int64
        assert found.dtype == BF16
        assert (np.diff(positions) > 0).all()
        dense = np.zeros(values.size, BF16)
        dense[positions] = found
        assert dense.tobytes() == values.tobytes()
        assert positions.size >= np.count_nonzero(values)
        assert parts["values"].shape == positions.shape
        assert model["w"].components("torch")["values"][...].dtype == torch.bfloat16


@pytest.mark.parametrize(("shape", "block", "index"), CASES)
def test_scipy(shape, block, index):
    values = sparse_values(shape, "float32", INDEXES[index], block)
    with mzstore.open(model_of(values, INDEXES[index], block).archive()) as model:
        tensor = model["w"]
        found = tensor.to_scipy("coo")
        assert found.shape == shape
        assert (found.toarray() == values).all()
        if len(shape) != 2:
            for kind in ("csr", "csc", "bsr"):
                with pytest.raises(ValueError, match="axes"):
                    tensor.to_scipy(kind)
            return
        for kind in ("csr", "csc"):
            found = tensor.to_scipy(kind)
            assert found.format == kind
            assert found.indices.dtype == found.indptr.dtype == np.int32
            assert found.has_sorted_indices
            assert found.has_canonical_format
            found.check_format()
            assert (found.toarray() == values).all()
        if shape[0] % block[0] or shape[1] % block[1]:
            with pytest.raises(ValueError, match="no whole number of its blocks"):
                tensor.to_scipy("bsr")
        else:
            found = tensor.to_scipy("bsr")
            found.check_format()
            assert found.blocksize == block or not found.nnz
            assert (found.toarray() == values).all()


@pytest.mark.parametrize(("shape", "block", "index"), CASES)
def test_torch(shape, block, index):
    values = sparse_values(shape, "bfloat16", INDEXES[index], block)
    dense = torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    with mzstore.open(model_of(values, INDEXES[index], block).archive()) as model:
        tensor = model["w"]
        found = tensor.to_torch()
        assert found.is_coalesced()
        assert found.dtype == torch.bfloat16
        assert torch.equal(found.to_dense(), dense)
        assert torch.equal(found.coalesce().to_dense(), dense)
        assert torch.equal(tensor.to_torch("strided"), dense)
        if len(shape) != 2:
            with pytest.raises(ValueError, match="axes"):
                tensor.to_torch("csr")
            return
        found = tensor.to_torch("csr")
        assert found.layout == torch.sparse_csr
        assert found.crow_indices().dtype == torch.int64
        assert torch.equal(found.to_dense(), dense)
        if shape[0] % block[0] == 0 == shape[1] % block[1] and values.size:
            found = tensor.to_torch("bsr")
            assert found.layout == torch.sparse_bsr
            assert tuple(found.values().shape[1:]) == block
            assert torch.equal(found.to_dense(), dense)


@pytest.mark.parametrize("dtype", DTYPE_NAMES)
def test_dtypes(dtype):
    """SciPy has none of the narrow floats."""
    values = sparse_values((45, 70), dtype)
    with mzstore.open(model_of(values).archive()) as model:
        found = model["w"].to_scipy()
        narrow = DTYPES[dtype].is_float and DTYPES[dtype].bits < 32
        assert found.dtype == (np.float32 if narrow else values.dtype)
        assert (found.toarray() == values.astype(found.dtype)).all()
        assert model["w"].components()["values"].dtype == values.dtype


def test_nothing_dense_is_made():
    """A matrix of 256 MiB with ten thousand values."""
    shape, chunk_shape, count = (8192, 16384), (1024, 16384), 10_000
    grid, rng = Grid(shape, chunk_shape), np.random.default_rng(1)
    flat = np.sort(rng.choice(shape[0] * shape[1], count, replace=False))
    dtype = DTYPES["bfloat16"]
    per_chunk = [flat[flat // grid.chunk_size == i] % grid.chunk_size for i in range(8)]
    room = max(places.size for places in per_chunk)
    n_bytes = max(gaps(places)[0].size for places in per_chunk)
    part = Sparse.new(dtype, grid, Index(), n_bytes, raw_values(dtype, grid, room))
    made = forge({}, lossy={"w": (np.zeros((1,), BF16), part, {})})
    made.tensor("w")["shape"] = list(shape)
    for i, places in enumerate(per_chunk):
        words = np.full((places.size, 1, 1), 0x3F80, np.uint16)
        for component, body in zip(part.components, part.encode_elements(places, words, Coding()), strict=True):
            made.payloads[f"w/{component.name}/{component.array.chunk_key((i, 0, 0))}"] = seal(body)
    with mzstore.open(made.archive()) as model:
        tensor = model["w"]
        for act in (
            lambda: tensor.to_scipy("csr").nnz,
            lambda: tensor.to_scipy("coo").nnz,
            lambda: tensor.to_torch("coo")._nnz(),
            lambda: tensor.to_torch("csr")._nnz(),
            lambda: len(tensor.components()["values"][...]),
        ):
            act()  # imports
            tracemalloc.start()
            try:
                assert act() == count
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
            assert peak < 200 * count + 8 * shape[0] * 4 + n_bytes * 8 + (1 << 20)
        assert (np.asarray(tensor.components()["positions"]) == flat).all()


def quantized_inside(name="w"):
    """A sparse tensor whose values are codes: 3, 1 and 2 of a step of 0.5 at places 0, 3 and 8, and none in a second chunk."""
    grid = Grid((20,), (10,))
    inner = Quantized(
        DTYPES["float32"], values_grid(grid, 4), 4, packed_array(values_grid(grid, 4), 1, 4), 4, scales=(0.5,)
    )
    part = Sparse.new(DTYPES["float32"], grid, Index("bitmap"), 2, inner)
    bodies = {
        "positions/c/0/0": bytes([9, 1]), "positions/c/1/0": bytes([0, 0]),
        "values/c/0/0": bytes([3 + 1 * 4 + 2 * 16]), "values/c/1/0": bytes([0]),
    }  # fmt: skip
    values = np.zeros(20, np.float32)
    values[[0, 3, 8]] = 1.5, 0.5, 1
    return {name: (values, part, bodies)}


def test_values_that_are_codes():
    made = forge({}, lossy=quantized_inside())
    with mzstore.open(made.archive()) as model:
        tensor = model["w"]
        assert tensor[...].tobytes() == made.values["w"].tobytes()
        parts = tensor.components()
        assert parts["positions"][...].tolist() == [0, 3, 8]
        assert parts["values"][...].tolist() == [1.5, 0.5, 1]
        assert parts["values.codes"][...].tolist() == [[3, 1, 2, 0], [0, 0, 0, 0]]
        assert parts["values.codes"].dtype == np.uint8
        assert parts["values.scale"][...].tolist() == [[0.5]]
        assert parts.keys() == {"positions", "values", "values.codes", "values.scale", "values.zero_point"}
        assert tensor.to_torch().to_dense().tolist() == made.values["w"].tolist()
        assert tensor.to_scipy("coo").toarray().tolist() == made.values["w"].tolist()


@pytest.mark.parametrize("bits", [None, 6])
def test_factors(bits):
    rng = np.random.default_rng(2)
    values = (rng.standard_normal((1200, 4)) @ rng.standard_normal((4, 1500))).astype(np.float32)
    archive = saved(
        {"w": values}, [Rule(rank=4) if bits is None else Rule(rank=4, quantizer="symmetric", bits=bits, group=4)]
    )
    with mzstore.open(archive, cache_bytes=1 << 24) as model:
        tensor = model["w"]
        assert tensor.encoding == "lowrank"
        parts = tensor.components()
        left, right, scale = (parts[name] for name in ("left", "right", "scale"))
        assert (left.shape, right.shape, scale.shape) == ((1200, 4), (4, 1500), (1, 1))
        whole = np.asarray(left)
        assert (left[10:20, 1] == whole[10:20, 1]).all()
        product = np.zeros((1200, 1500), np.float32)
        for k in range(4):
            product += whole[:, k : k + 1].astype(np.float32) * np.asarray(right)[k].astype(np.float32)
        assert (product * np.asarray(scale) == tensor[...]).all()
        assert (np.asarray(left) == whole).all()  # the cache tells factors from values
        assert ("left.codes" in parts) == (bits is not None)
        if bits:
            assert parts["left.codes"][5:9].shape == (4, 4)
            assert parts["right.scale"].dtype.kind == "f" or parts["right.scale"].dtype == BF16


def saved(tensors, rules):
    file = io.BytesIO()
    mzstore.save(file, tensors, recipe=mzstore.Recipe(rules, defaults=False), show_progress=False)
    return file.getvalue()


def test_several_parts():
    rng = np.random.default_rng(3)
    values = rng.standard_normal((256, 320), np.float32)
    rule = Rule(parts=["quantized bits=3", "sparse top=0.5%"])
    with mzstore.open(saved({"w": values}, [rule])) as model:
        tensor = model["w"]
        parts = tensor.components()
        assert {"codes", "2.positions", "2.values"} <= parts.keys()
        assert not {"positions", "values"} & parts.keys()
        read = tensor[...]
        positions = parts["2.positions"][...]
        assert positions.size == pytest.approx(0.005 * values.size, rel=0.05)
        for call in (tensor.to_scipy, tensor.to_torch):
            with pytest.raises(ValueError, match=r"not as 'sparse' alone: read its values, tensor\[...\]"):
                call()
        assert torch.equal(tensor.to_torch("strided"), torch.from_numpy(read))


def test_what_has_no_sparse_form():
    with mzstore.open(saved({"w": np.arange(6.0)}, [])) as model:
        with pytest.raises(ValueError, match="tensor 'w' is stored as 'raw', not as 'sparse' alone"):
            model["w"].to_scipy()
        with pytest.raises(ValueError, match="format 'dia' is none of csr, coo, csc, bsr"):
            model["w"].to_scipy("dia")
        with pytest.raises(ValueError, match="layout 'csc' is none of coo, csr, bsr, strided"):
            model["w"].to_torch("csc")
    eights = np.zeros((16, 16), ml_dtypes.float8_e8m0fnu)
    eights.view(np.uint8)[3, 4] = 9
    with (
        mzstore.open(model_of(eights, chunk_shape=(16, 16)).archive()) as model,
        pytest.raises(ValueError, match="a word of zeros is no zero"),
    ):
        model["w"].to_torch()


def test_values_that_are_the_same_as_those_of_another():
    values = np.zeros((300, 300), np.float32)
    values[::7, ::5] = 2
    with mzstore.open(saved({"a": values, "b": values.copy()}, [])) as model:
        assert model["b"].encoding == "same"
        assert model["a"].encoding == "sparse"
        assert (model["b"].to_scipy().toarray() == values).all()


def test_without_scipy(monkeypatch):
    values = sparse_values((50, 64))
    real = builtins.__import__

    def missing(name, *arguments, **options):
        if name.partition(".")[0] == "scipy":
            raise ImportError(f"No module named {name!r}")
        return real(name, *arguments, **options)

    for name in [name for name in sys.modules if name.partition(".")[0] == "scipy"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", missing)
    with (
        mzstore.open(model_of(values).archive()) as model,
        pytest.raises(ImportError, match=r"needs SciPy: pip install 'mzstore\[sparse\]'"),
    ):
        model["w"].to_scipy()


def test_hostile_positions_are_refused():
    made = model_of(sparse_values((45, 70)))
    n_bytes = made.nodes["w/positions"]["shape"][-1]
    made.payloads["w/positions/c/1/1/0"] = seal(zstandard.compress(b"\xfe" * n_bytes))  # far beyond the chunk
    with mzstore.open(made.archive()) as model:
        for act in (
            lambda tensor: tensor.to_scipy(),
            lambda tensor: tensor.to_torch("csr"),
            lambda tensor: tensor.components()["positions"][...],
            lambda tensor: tensor.components()["values"][...],
            lambda tensor: tensor[...],
        ):
            with pytest.raises(mzstore.CorruptError, match="sparse-3"):
                act(model["w"])


def test_scipy_arrays_are_of_scipy():
    values = sparse_values((50, 64))
    with mzstore.open(model_of(values).archive()) as model:
        assert isinstance(model["w"].to_scipy("csc"), scipy.sparse.csc_array)

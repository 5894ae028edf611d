"""Parts: what they keep, what memory they take, and what they give in another dtype."""

import threading
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from forge import every_kind, forge, written
from parts import Made, Random, combined

import mzstore
from mzstore import Rule, kernels, workspace
from mzstore.arrays import Array
from mzstore.dtypes import DTYPES
from mzstore.encodings import quantized
from mzstore.encodings.combined import Combined
from mzstore.encodings.positions import Index
from mzstore.encodings.quantized import Blocked, Quantized, blocked_array, packed_array
from mzstore.encodings.sparse import Sparse, raw_values
from mzstore.grid import Grid

FLOAT32 = DTYPES["float32"]
LEVELS, D = 4096, 8


def with_codebook(book: np.ndarray, codes: np.ndarray):
    """(values, part, bodies): a chunk for each row of ``codes``, of which one stands for 8 values."""
    shape = (codes.shape[0], codes.shape[1] * D)
    grid = Grid(shape, (1, shape[1]))
    array = Array(book.shape, book.shape, "float32", zstd=True)
    part = Quantized(
        FLOAT32, grid, LEVELS, packed_array(grid, D, 1), 1, 4, packed_array(grid, D, 2), codebook=array
    )  # fmt: skip
    bodies = {"codebook/c/0/0": book.tobytes()}
    for i, row in enumerate(codes):
        bodies[f"codes/c/{i}/0"] = (row >> 4).astype(np.uint8).tobytes()
        low = (row & 15).astype(np.uint8)
        bodies[f"low/c/{i}/0"] = (low[::2] | low[1::2] << 4).tobytes()
    return book[codes].reshape(shape), part, bodies


@pytest.fixture
def books():
    """Tensors that differ in nothing but their codebooks; more of them than decoders are kept."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, LEVELS, (6, 4))
    made = {}
    for i in range(quantized.KEPT + 2):
        made[f"t{i}"] = with_codebook(rng.standard_normal((LEVELS, D)).astype(np.float32), codes)
    return forge({}, lossy=made)


def test_a_codebook_is_read_once_for_all_chunks(books, monkeypatch):
    made = []
    new = Quantized._new_decoder
    monkeypatch.setattr(Quantized, "_new_decoder", lambda self, book: made.append(1) or new(self, book))
    with mzstore.open(books.archive()) as model:
        for i in range(6):
            assert (model["t0"][i] == books.values["t0"][i]).all()
        assert len(made) == 1
        for i in range(6):
            model["t0"].read(index=i, dtype="float16")
        assert len(made) == 2


@pytest.mark.parametrize("threads", [1, 4])
def test_codebooks_are_not_confused_and_few_are_kept(books, threads):
    with mzstore.open(books.archive()) as model, mzstore.open(books.archive()) as again:
        for _ in range(2):
            for which in (model, again):
                for name, values in which.load(threads=threads).items():
                    assert (values == books.values[name]).all()
                    wanted = which[name].read(dtype="bfloat16")
                    assert (wanted == books.values[name].astype(ml_dtypes.bfloat16)).all()
    assert len(quantized._kept) == quantized.KEPT


def test_a_codebook_that_is_refused_is_not_kept(books):
    from zstandard import compress

    from mzstore.payload import seal

    books.payloads["t0/codebook/c/0/0"] = seal(compress(np.full((LEVELS, D), np.nan, np.float32).tobytes()))
    with mzstore.open(books.archive()) as model:
        for _ in range(2):
            with pytest.raises(mzstore.CorruptError, match="'codebook' holds NaN"):
                model["t0"][0]


SHAPE = (6, 40, 1500)  # a slice of the second axis is no run of rows


def values_of(dtype: str) -> np.ndarray:
    found = np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)
    found[0, 0, :3] = 1e4, -1e4, 3e3
    return found.astype(DTYPES[dtype].numpy)


MODELS = {
    "lossless": (None, "bfloat16"),
    "raw": (None, "int32"),
    "2 bits": (Rule(quantizer="codebook", bits=2), "bfloat16"),
    "1 bit": (Rule(quantizer="codebook", bits=1), "float32"),
    "groups": (Rule(quantizer="affine", bits=4, group=50), "float32"),
    "low bits": (Rule(bits=11.0), "float32"),
    "ecsq": (Rule(bits=3.0), "bfloat16"),
}


def in_a_thread(act):
    """What ``act`` gives in a thread that has no buffers yet."""
    found = []
    thread = threading.Thread(target=lambda: found.append(act()))
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("dtype", [None, "float32", "float16"])
@pytest.mark.parametrize("kind", MODELS)
def test_a_plan_counts_what_decoding_takes(kind, dtype, fast, tmp_path, monkeypatch):
    """All that NumPy allocates while one thread reads, buffers that it keeps included, is in the plan's bound."""
    rule, own = MODELS[kind]
    if own == "int32" and dtype:
        pytest.skip("integers are not read as floats by load")
    monkeypatch.setattr(kernels, "pays", lambda nbytes: fast)
    if fast:
        kernels.load_quantized()
    recipe = mzstore.Recipe([rule]) if rule else None
    mzstore.save(tmp_path / "m.mz", {"w": values_of(own)}, recipe=recipe)

    def peak() -> tuple[int, int]:
        with mzstore.open(tmp_path / "m.mz") as model:
            cut = np.s_[:, :20] if own != "int32" else np.s_[:, ::2]
            result = model["w"].read(index=cut, dtype=dtype, threads=1)  # imports and tables are there from now on
            workspace._local.__dict__.clear()
            bound = model.plan({"w": cut}, dtype=dtype).memory_nbytes
            held = sum(component.array.chunk_nbytes for component in model["w"]._stored.part.components)
            tracemalloc.start()
            try:
                again = model["w"].read(index=cut, dtype=dtype, threads=1)
                taken = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
            assert again.tobytes() == result.tobytes()
            buffers = sum(x.nbytes for x in workspace._local.__dict__.values() if isinstance(x, np.ndarray))
            assert buffers + result.nbytes <= bound, held
            return taken, bound

    taken, bound = in_a_thread(peak)
    assert taken <= bound + (1 << 20)  # what is small: of Python, and of steps over blocks


# Parts with random contents: one chunk for each position of the first axis, with more places than NumPy takes at a time.
GRID = Grid((2, 40, 3000), (1, 40, 3000))
BF16, F16 = DTYPES["bfloat16"], DTYPES["float16"]


def made_parts() -> dict[str, Made]:
    random = Random(0)
    low = random.lowrank(BF16, GRID, 20, "groups", "raw", ("float16", "bfloat16"))
    core = random.tucker(BF16, GRID, [2, 20, 30], ["raw", "groups", "raw"], "raw", "float16")
    thin = random.sparse(BF16, GRID, Index(), density=0.1)
    codes = random.groups(BF16, GRID)
    return {
        "gaps": thin,
        "full gaps": random.sparse(FLOAT32, GRID, Index(), density=1.0),
        "low bits": random.sparse(FLOAT32, GRID, Index("gaps", 8), density=0.01),
        "bitmap": random.sparse(BF16, GRID, Index("bitmap"), density=0.9),
        "bitmap of one": random.sparse(DTYPES["float64"], GRID, Index("bitmap"), density=0.0),
        "pattern": random.sparse(BF16, GRID, Index("pattern", 0, (7, 8)), values="planes"),
        "blocks": random.sparse(BF16, GRID, Index(), (1, 8), density=0.9),
        "square blocks": random.sparse(FLOAT32, GRID, Index("bitmap"), (8, 8), "groups", density=1.0),
        "narrow values": random.sparse(FLOAT32, GRID, Index("bitmap"), (1, 1), "raw", F16, 1.0),
        "low rank": low,
        "low rank of codes": random.lowrank(F16, GRID, 3, "codes", "planes", ("float32", "bfloat16")),
        "core": core,
        "outer products": random.tucker(BF16, GRID, [9, 9, 9], ["raw"] * 3, None, "float16"),
        "xor": combined([random.planes(BF16, GRID), random.raw(BF16, GRID)], ["xor"]),
        "sum": combined([codes, random.raw(BF16, GRID)], ["add"]),
        "sum with a product": combined([codes, low, thin], ["add", "add"]),
        "sum, replaced": combined([core, codes, random.sparse(BF16, GRID, Index("bitmap"), density=1.0)], ["add", "replace"]),
        "replaced": combined([random.planes(BF16, GRID), random.sparse(BF16, GRID, Index(), (2, 4), density=1.0)], ["replace"]),
    }  # fmt: skip


MADE = made_parts()


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("cut", [np.s_[...], np.s_[:, 3:30:2, 5:], np.s_[1, 7]], ids=str)
@pytest.mark.parametrize("dtype", [None, "float32", "float16"])
@pytest.mark.parametrize("kind", MADE)
def test_a_plan_counts_what_decoding_of_any_part_takes(kind, dtype, cut, fast, monkeypatch):
    monkeypatch.setattr(kernels, "pays", lambda nbytes: fast)
    model, _ = written(MADE[kind], GRID.shape)
    archive = model.archive()
    for name in ("load_sparse", "load_quantized", "load_lowrank", "load"):
        getattr(kernels, name)()

    def peak() -> tuple[int, int]:
        with mzstore.open(archive) as opened:
            result = opened["w"].read(index=cut, dtype=dtype, threads=1)
            workspace._local.__dict__.clear()
            quantized._kept = ()
            bound = opened.plan({"w": cut}, dtype=dtype).memory_nbytes
            tracemalloc.start()
            try:
                again = opened["w"].read(index=cut, dtype=dtype, threads=1)
                taken = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
            assert again.tobytes() == result.tobytes()
            return taken, bound

    taken, bound = in_a_thread(peak)
    assert taken <= bound + (1 << 20)


def test_parts_that_can_give_another_dtype():
    def into(name, dtype):
        return parts[name].into(DTYPES[dtype])

    with mzstore.open(every_kind().archive()) as model:
        parts = {name: entry.part for name, entry in model.document.tensors.items() if entry.part}
    assert into("raw", "float32") is None
    assert into("planes", "float32") is None
    assert into("codes", "float32").dtype == FLOAT32
    assert into("pairs", "int32").dtype == FLOAT32  # from which it is cast
    both = into("grouped", "float16")
    assert isinstance(both, Combined)
    assert [each.dtype.name for each in (both, *both.parts)] == ["float16"] * 3
    dtype, grid = parts["planes"].dtype, parts["planes"].grid
    sparse = Sparse.new(dtype, grid, Index(), 1, raw_values(dtype, grid, 1))
    assert Combined((parts["planes"], sparse), ("replace",)).into(FLOAT32) is None


def test_a_chunk_that_would_be_too_large_in_another_dtype_is_cast():
    grid = Grid((1, 1 << 24), (1, 1 << 24))
    block = (1, 1 << 10)
    scale = Blocked(block, "bfloat16", blocked_array(grid, block, "uint16"))
    part = Quantized(DTYPES["bfloat16"], grid, 2, packed_array(grid, 1, 8), 8, scales=(scale,))
    assert part.into(FLOAT32).dtype == FLOAT32
    assert part.into(DTYPES["float64"]) is None

"""Kernels as machine code: the same results as Numba's own, in processes that do not import it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mzstore.ggml import TYPES
from mzstore.kernels import ggml, lowrank, machine_code, planes, quantized, sparse
from mzstore.quantizers.decoding import word_tables

MODULES = (ggml, lowrank, planes, quantized, sparse)
WORDS = {"uint8": 8, "uint16": 16, "uint32": 32, "uint64": 64}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A folder with the machine code of all modules."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NUMBA_CACHE_DIR", str(folder))
        for module in MODULES:
            machine_code.write(module)
        assert len(list(folder.glob("*.code"))) == len(MODULES)
        yield folder


@pytest.fixture
def code(cache, monkeypatch):
    """Fails where another function than that of the machine code is called."""
    monkeypatch.setattr(machine_code, "import_module", None)
    return lambda module: machine_code.load(module.__name__)


def both(code, module, name, make):
    """What a kernel gives: Numba's, and the machine code's. ``make`` gives fresh arguments, and which of them is filled."""
    results = []
    for kernels in (module, code(module)):
        arguments, filled = make()
        results.append((getattr(kernels, name)(*arguments), filled))
    (expected, filled), (found, filled_too) = results
    assert found == expected
    np.testing.assert_array_equal(filled_too, filled)
    assert filled.any()


@pytest.mark.parametrize("word", WORDS)
def test_joins(code, word):
    rng = np.random.default_rng(1)
    top, low = rng.integers(0, 256, 1000, np.uint8), rng.integers(0, 256, 8000, np.uint8)
    table = rng.integers(0, 200, 256).astype(word)
    n_low = WORDS[word] // 8 - 1
    factors, masks = np.array([1 << 8 * i for i in range(n_low)], word), np.full(n_low, 255, np.uint8)

    def make(*more):
        out = np.zeros(1200, word)
        return (top, 10, 300, low, 10, 300, 1000, out, 7, 400, 3, 290, *more), out

    both(code, planes, "join_any", lambda: make(table, factors, masks, WORDS[word] - 1))
    if word in ("uint16", "uint32"):
        both(code, planes, f"join{WORDS[word] // 8}", make)


@pytest.mark.parametrize(
    ("kind", "name"),
    [("Q8_0", "codes"), ("Q3_K", "scales"), ("Q5_0", "codes"), ("IQ1_S", "high"), ("IQ2_XXS", "signs")],
)
def test_blocks_of_ggml(code, kind, name):
    field, blocks = (
        TYPES[kind].field(name),
        np.random.default_rng(7).integers(0, 256, (20, TYPES[kind].nbytes), np.uint8),
    )
    numbers = np.zeros((20, field.count), field.dtype)

    def make_numbers():
        numbers[...] = 0
        return (blocks, field.table, numbers), numbers

    def make_blocks():
        out = np.zeros_like(blocks)
        return (numbers, field.table, out), out

    both(code, ggml, "extract", make_numbers)
    both(code, ggml, "insert", make_blocks)
    left = field.width
    for bits in field.planes:
        left -= bits
        plane = np.zeros(numbers.size * bits // 8, np.uint8)
        both(code, ggml, "split", lambda: ((numbers.reshape(-1), left, bits, plane), plane))  # noqa: B023

        def make_joined():
            out = np.ones(numbers.size, field.dtype)
            return (plane, bits, out), out  # noqa: B023

        both(code, ggml, "join", make_joined)


def test_values_of_ggml(code):
    rng = np.random.default_rng(8)
    codes, centres = rng.integers(0, 16, 640, np.uint8), rng.integers(0, 16, 20, np.uint8)
    scales, offsets, table = (rng.normal(size=n).astype(np.float32) for n in (20, 20, 16))
    for name, more in (("uniform", np.int32(8)), ("look_up", table), ("affine", offsets)):

        def make(more=more):
            out = np.zeros(640, np.float32)
            return (codes, scales, 32, more, out), out

        both(code, ggml, name, make)

    def make_codes():
        out = np.zeros(640, np.uint8)
        return (codes, centres, 32, np.uint8(15), out), out

    both(code, ggml, "shift_codes", make_codes)


@pytest.mark.parametrize("bad", [False, True])
def test_ranks(code, bad):
    packed = np.random.default_rng(2).integers(0, 256, 500, np.uint8)
    escapes = np.array([3 << 8 | 77, (2 if bad else 900) << 8 | 78, 0xFFFFFFFF], np.uint32)

    def make():
        out = np.zeros(1000, np.uint8)
        return (packed, 100, escapes, 0xFFFFFFFF, out), out

    both(code, planes, "expand_ranks", make)


@pytest.mark.parametrize(("n", "word"), [(2, "uint16"), (3, "uint16"), (5, "uint16"), (2, "uint32"), (3, "uint32")])
def test_packed_codes(code, n, word):
    rng = np.random.default_rng(3)
    levels = {2: 16, 3: 6, 5: 3}[n]
    packed = rng.integers(0, levels**n, 400, np.uint8)
    table, head, tail, *sizes = word_tables(rng.integers(1, 1 << 16, levels).astype(word), n)

    def make():
        out = np.zeros(400 * n, word)
        return (
            packed,
            1,
            100,
            3,
            99 * n,
            n,
            1,
            table,
            head,
            tail,
            *sizes,
            out.view(np.uint8),
            0,
            100 * n * out.itemsize,
        ), out

    both(code, quantized, "expand", make)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("name", ["scale_codes", "scale_codes_bf16"])
def test_scaled_codes(code, dtype, name):
    codes = np.random.default_rng(4).integers(0, 200, 500).astype(dtype)

    def make():
        out = np.zeros(500, np.float32 if name == "scale_codes" else np.uint16)
        return (codes, 5, 100, 4, 90, np.int32(100), np.float32(0.37), out, 3, 110), out

    both(code, quantized, name, make)


@pytest.mark.parametrize("word", ["uint16", "uint32", "float32"])
def test_tables(code, word):
    rng = np.random.default_rng(5)
    codes, table = rng.integers(0, 250, 500, np.uint8), rng.integers(1, 1000, 256).astype(word)

    def make():
        out = np.zeros(500, word)
        return (codes, 5, 100, 4, 90, table, out, 3, 110), out

    both(code, quantized, "look_up", make)


def test_scales_and_rounding(code):
    rng = np.random.default_rng(6)
    values, scales = rng.standard_normal((4, 64), np.float32), rng.standard_normal((2, 4), np.float32)

    def scaled(*scaling):
        out = values.reshape(-1).copy()
        return (out, 0, 64, 4, 64, *scaling), out

    def rounded():
        out = np.zeros(256, np.uint16)
        return (values.view(np.uint32), 4, 64, out, 0, 64), out

    both(code, quantized, "multiply", lambda: scaled(scales, 1, 3, 0, 16))
    both(code, quantized, "multiply_columns", lambda: scaled(scales.repeat(8)))
    both(code, quantized, "round_bf16", rounded)


@pytest.mark.parametrize("room", [400, 100])
def test_gaps(code, room):
    rng = np.random.default_rng(7)
    steps, low = rng.integers(0, 9, 400, np.uint8), rng.integers(0, 4, 400, np.uint8)
    for low_bits in (0, 2):

        def make(low_bits=low_bits):
            memory = np.zeros(202, np.int64)  # found, and then the positions
            return (steps, low, low_bits, memory[2:].view(np.int32)[:room], memory[:2]), memory

        both(code, sparse, "gap_positions", make)


def test_positions(code):
    rng = np.random.default_rng(8)
    body, table = rng.integers(0, 16, 100, np.uint8), rng.integers(0, 8, (256, 8), np.uint8)
    counts = rng.integers(0, 8, 256, np.uint8)

    def make(*before):
        out = np.zeros(790, np.int32)
        return (*before, out), out

    both(code, sparse, "bitmap_positions", lambda: make(body, table, counts, 780))
    both(code, sparse, "pattern_positions", lambda: make(body, table, 8))


@pytest.mark.parametrize("word", ["uint16", "uint32", "float32"])
def test_places(code, word):
    rng = np.random.default_rng(9)
    positions = np.flatnonzero(rng.random(40 * 50) < 0.2).astype(np.int32)
    values = rng.integers(1, 1000, positions.size).astype(word)
    window = (50, 3, 30, 7, 35)

    def make(*more):
        out = np.ones(40 * 60, word)
        return (positions, values, *window, *more, out, 11, 60), out

    both(code, sparse, "put", make)
    both(code, sparse, "fill", lambda: make(np.zeros(512, word), True))
    if word == "float32":
        both(code, sparse, "add", make)


def test_products(code):
    rng = np.random.default_rng(10)
    left, right = rng.standard_normal((20, 7), np.float32), rng.standard_normal((7, 600), np.float32)

    def make():
        out = np.zeros((20, 600), np.float32)
        return (left, right, np.float32(0.3), out), out

    both(code, lowrank, "multiply", make)


def test_every_listed_kernel_is_compared():
    source = Path(__file__).read_text()
    for module in MODULES:
        for name in module.SIGNATURES:
            assert f'"{name}"' in source or name in ("join2", "join4")


@pytest.mark.parametrize("strided", [False, True])
def test_other_arguments_are_left_to_numba(cache, strided):
    kernels = machine_code.load(planes.__name__)
    out = np.zeros(20, np.uint16)[:: 2 if strided else 1][:10]
    top = np.arange(10, dtype=np.uint8 if strided else np.int64).astype(np.uint8 if strided else np.uint32)
    kernels.join2(top, 0, 0, top, 0, 0, 10, out, 0, 0, 1, 10)
    np.testing.assert_array_equal(out, np.arange(10) * 257 >> 1 | (np.arange(10) & 1) << 15)
    assert kernels.count_beyond is planes.count_beyond


PROCESS = """
import io, sys
import numpy as np
import mzstore
from mzstore import kernels
kernels.CODE_PAYS_FROM_NBYTES = kernels.PAYS_FROM_NBYTES = 1
values = (np.random.default_rng(0).standard_normal((400, 500)) * 0.02).astype("f4")
model = mzstore.open(open(sys.argv[1], "rb").read())
found = model.load()
assert np.array_equal(found["w"], values)
assert np.isfinite(found["q"]).all() and found["q"].any()
print(type(kernels.load()).__name__, type(kernels.load_quantized()).__name__, "numba" in sys.modules)
"""


def decode(path: Path, cache: Path) -> list[str]:
    environment = {key: value for key, value in os.environ.items() if key != "NUMBA_DISABLE_JIT"}
    run = subprocess.run(
        [sys.executable, "-c", PROCESS, str(path)],
        env=environment | {"NUMBA_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.split()


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    import mzstore

    path = tmp_path_factory.mktemp("model") / "model.mz"
    values = (np.random.default_rng(0).standard_normal((400, 500)) * 0.02).astype("f4")
    recipe = mzstore.Recipe.parse('[[rule]]\nname = "q"\nbits = 3.5')
    mzstore.save(path, {"w": values, "q": values.astype("f4")[::-1]}, recipe=recipe)
    return path


def test_a_process_decodes_without_numba(archive, cache):
    assert decode(archive, cache) == ["Kernels", "Kernels", "False"]


def damaged(head: dict, code: bytes, how: str) -> bytes:
    if how == "cut":
        code = code[:-100]
    elif how == "changed":
        code = code[:500] + bytes([code[500] ^ 1]) + code[501:]
    text = b"no JSON" if how == "head" else json.dumps(head).encode()
    return b"" if how == "empty" else text + b"\n" + code


@pytest.mark.parametrize("how", ["cut", "changed", "head", "empty", "other processor"])
def test_code_that_is_not_what_was_written_is_not_run(cache, how, tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    for path in cache.glob("lowrank-*.code"):
        head, _, code = path.read_bytes().partition(b"\n")
        name = f"{'-'.join(path.name.split('-')[:2])}-other.code" if how == "other processor" else path.name
        (tmp_path / name).write_bytes(damaged(json.loads(head), code, how))
    assert machine_code.exists(lowrank.__name__)
    assert machine_code.load(lowrank.__name__) is None
    machine_code.write(lowrank)
    assert machine_code.load(lowrank.__name__) is not None


@pytest.mark.slow
def test_the_first_process_writes_and_the_second_reads(archive, tmp_path):
    assert decode(archive, tmp_path) == ["module", "module", "True"]
    assert decode(archive, tmp_path)[0] == "Kernels"


def test_nowhere_to_write(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file" / "below"))
    machine_code.write(planes)
    assert not machine_code.exists(planes.__name__)
    assert machine_code.load(planes.__name__) is None


def test_a_kernel_that_calls_python_is_refused():
    import numba

    @numba.njit
    def less(a, b):
        if a < b:
            raise ValueError("negative")
        return a - b

    with pytest.raises(RuntimeError, match=r"less.* needs .*PyErr"):
        machine_code._compile_one(less, "int64 int64 int64", "less")

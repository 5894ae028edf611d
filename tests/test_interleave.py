"""Words to planes and back: slow Python, NumPy and the Numba kernels say the same."""

import importlib
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mzstore import kernels
from mzstore.interleave import NO_ESCAPE, Fields, count_beyond, expand_ranks, join, pack_ranks, split, tops

ALL_FIELDS = [
    Fields(bits, top, rotate)
    for bits in (8, 16, 32, 64)
    for top in (1, 3, 4, 7, 8, 9, 11, 15, 16)
    if top <= bits
    for rotate in (False, True)
]
WAYS = ["numpy", "numba"]


@pytest.fixture
def way(request, monkeypatch):
    monkeypatch.setattr(kernels, "pays", lambda nbytes: request.param == "numba")
    return request.param


def cut_by_hand(word: int, fields: Fields) -> list[int]:
    """[planes-2] of FORMAT.md, bit by bit: the top field, then the low planes."""
    bits = f"{word:0{fields.word_bits}b}"
    if fields.rotate:
        bits = bits[1:] + bits[0]
    lengths = [fields.top_bits]
    rest = fields.word_bits - fields.top_bits
    if rest % 8:
        lengths.append(rest % 8)
    lengths += [8] * (rest // 8)
    pieces = []
    for length in lengths:
        pieces.append(int(bits[:length], 2))
        bits = bits[length:]
    assert not bits
    return pieces


def random_words(fields: Fields, count: int, seed: int = 0) -> np.ndarray:
    words = np.random.default_rng(seed).integers(0, 2**fields.word_bits, count, fields.word, endpoint=False)
    words[:2] = 0, 2**fields.word_bits - 1
    return words


def symbols_for(words: np.ndarray, fields: Fields) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray]:
    """(symbol of each top field, table of top fields, words whose top fields all have a symbol)."""
    if fields.top_bits == 8:
        return None, None, words
    table = np.unique(tops(words, fields))[:256]
    words = words[np.isin(tops(words, fields), table)]
    symbols = np.zeros(1 << fields.top_bits, np.uint8)
    symbols[table] = np.arange(table.size)
    return symbols, table, words


@pytest.mark.parametrize("fields", ALL_FIELDS, ids=str)
def test_fields_are_those_of_the_format(fields):
    for word in random_words(fields, 50).tolist():
        top, *low = cut_by_hand(word, fields)
        assert tops(np.array([word], fields.word), fields).tolist() == [top]
        assert len(low) == len(fields.low_bits)
        symbols, _, _ = symbols_for(np.array([word], fields.word), fields)
        planes = np.empty((1 + len(low), 1), np.uint8)
        split(np.array([word], fields.word), fields, symbols, planes)
        assert planes[1:, 0].tolist() == low
        assert planes[0, 0] == (top if symbols is None else 0)


@pytest.mark.parametrize("way", WAYS, indirect=True)
@pytest.mark.parametrize("fields", ALL_FIELDS, ids=str)
def test_join_undoes_split(fields, way):
    symbols, table, words = symbols_for(random_words(fields, 5000), fields)
    planes = np.empty((1 + len(fields.low_bits), words.size), np.uint8)
    split(words, fields, symbols, planes)
    out = np.empty_like(words)
    join(planes[0], planes[1:], (slice(0, words.size),), fields, table, out)
    np.testing.assert_array_equal(out, words)


@pytest.mark.parametrize("way", WAYS, indirect=True)
@pytest.mark.parametrize("bits", [16, 32])
def test_more_than_a_block(bits, way):
    """The loops work by blocks of some thousand words."""
    fields = Fields(bits, 8, True)
    words = random_words(fields, (1 << 16) * 2 + 77)
    planes = np.empty((1 + len(fields.low_bits), words.size), np.uint8)
    split(words, fields, None, planes)
    out = np.empty_like(words)
    join(planes[0], planes[1:], (slice(0, words.size),), fields, None, out)
    np.testing.assert_array_equal(out, words)


@st.composite
def boxes(draw):
    shape = tuple(draw(st.lists(st.integers(1, 7), min_size=1, max_size=4)))
    box = []
    for n in shape:
        start = draw(st.integers(0, n - 1))
        box.append(slice(start, draw(st.integers(start + 1, n))))
    margins = [draw(st.integers(0, 2)) for _ in shape]
    steps = [draw(st.integers(1, 3)) for _ in shape[:-1]] + [1]
    order = draw(st.permutations(range(len(shape) - 1)))
    return shape, tuple(box), margins, steps, (*order, len(shape) - 1)


@pytest.mark.parametrize("way", WAYS, indirect=True)
@pytest.mark.parametrize("box", [np.s_[:, 30:61], np.s_[3:40:2], np.s_[:, :1], np.s_[::2, 5:9, 3:8]])
@pytest.mark.parametrize("bits", [16, 32])
def test_split_of_a_part_of_an_array(box, bits, way):
    fields = Fields(bits, 8, True)
    shape = (40, 10, 12) if isinstance(box, tuple) and len(box) == 3 else (50, 96)
    words = random_words(fields, int(np.prod(shape))).reshape(shape)[box]
    planes, whole = (np.empty((1 + len(fields.low_bits), words.size), np.uint8) for _ in range(2))
    split(words, fields, None, planes)
    split(words.copy(), fields, None, whole)
    np.testing.assert_array_equal(planes, whole)
    assert count_beyond(words, fields, 30) == count_beyond(words.copy(), fields, 30)


@settings(max_examples=150, deadline=None)
@given(boxes(), st.sampled_from([Fields(8, 4, True), Fields(16, 8, True), Fields(32, 8, True), Fields(64, 11, False)]))
def test_any_box_into_any_memory(case, fields):
    """``join`` writes the box, and nothing beside it, by NumPy and by Numba."""
    shape, box, margins, steps, order = case
    symbols, table, words = symbols_for(random_words(fields, 40), fields)
    words = np.resize(words, shape)
    planes = np.empty((1 + len(fields.low_bits), words.size), np.uint8)
    split(words.reshape(-1), fields, symbols, planes)
    expected = words[box]
    for compiled in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kernels, "pays", lambda nbytes, compiled=compiled: compiled)
            whole = np.zeros([(n + m) * s for n, m, s in zip(expected.shape, margins, steps, strict=True)], fields.word)
            # Axes in another order of memory, the last one always side by side.
            memory = np.zeros([whole.shape[axis] for axis in order], fields.word)
            whole = memory.transpose(np.argsort(order))
            out = whole[tuple(slice(0, n * s, s) for n, s in zip(expected.shape, steps, strict=True))]
            assert out.shape == expected.shape
            join(planes[0].reshape(shape), planes[1:].reshape(-1, *shape), box, fields, table, out)
            np.testing.assert_array_equal(out, expected)
            out[...] = 0
            assert not memory.any(), "something beside the box was written"


def test_a_scalar():
    fields = Fields(16, 8, True)
    planes = np.array([[0x7F], [0x01]], np.uint8)
    out = np.zeros((), np.uint16)
    join(planes[0].reshape(()), planes[1:].reshape(1), (), fields, None, out)
    assert out == 0xBF80


@pytest.mark.parametrize("way", WAYS, indirect=True)
@pytest.mark.parametrize("n", [1, 2, 7, 100, 131_071, 131_072, 200_001])
@pytest.mark.parametrize("first", [0, 100, 240])
@pytest.mark.parametrize("spare", [0, 5])
def test_ranks(n, first, spare, way):
    rng = np.random.default_rng(1)
    top = rng.integers(first, first + 16, n, dtype=np.uint8)
    others = np.unique(rng.integers(0, n, n // 50))
    top[others] = (first + 16 + rng.integers(0, 240, others.size)) % 256
    packed, escapes = pack_ranks(top, first)
    assert packed.dtype == np.uint8
    assert packed.shape == ((n + 1) // 2,)
    assert escapes.tolist() == [at * 256 + int(top[at]) for at in others]
    if n % 2:
        assert packed[-1] < 16, "what is left over is 0"
    if not others.size:
        assert ((packed & 15) == (top[::2] - first)).all(), "the low half is the first"
    escapes = np.append(escapes, np.full(spare, NO_ESCAPE, np.uint32))
    out = np.full(n, 99, np.uint8)
    assert expand_ranks(packed, first, escapes, out)
    np.testing.assert_array_equal(out, top)


@pytest.mark.parametrize("way", WAYS, indirect=True)
@pytest.mark.parametrize(
    "escapes",
    [
        [5 * 256 + 1, 5 * 256 + 2],
        [6 * 256 + 1, 5 * 256 + 1],
        [NO_ESCAPE, 5 * 256 + 1],
        [5 * 256, NO_ESCAPE, 6 * 256],
        [1200 * 256],
        [NO_ESCAPE - 1],
        [NO_ESCAPE - 255],
    ],
    ids=["twice", "descending", "behind the end", "behind the end of some", "beyond", "far away", "last position"],
)
def test_escapes_out_of_order(escapes, way):
    out = np.zeros(1200, np.uint8)
    assert not expand_ranks(np.zeros(600, np.uint8), 100, np.array(escapes, np.uint32), out)


@pytest.mark.parametrize("way", WAYS, indirect=True)
@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.parametrize("rotate", [True, False])
@pytest.mark.parametrize("first", [0, 17, 240])
def test_count_beyond(bits, rotate, first, way):
    fields = Fields(bits, 8, rotate)
    words = random_words(fields, (1 << 16) + 99)
    top = tops(words, fields)
    assert count_beyond(words, fields, first) == int(((top < first) | (top >= first + 16)).sum())


@pytest.mark.parametrize(("word_bits", "top_bits"), [(16, 0), (16, 17), (8, 9), (16, -1), (24, 8), (128, 8), (32, 17)])
def test_fields_that_do_not_fit(word_bits, top_bits):
    with pytest.raises(ValueError, match=f"a top field of {top_bits} bits does not fit a word of {word_bits}"):
        Fields(word_bits, top_bits, True)


@pytest.mark.parametrize("fields", [Fields(16, 8, True), Fields(32, 9, True), Fields(64, 12, False)], ids=str)
def test_count_of_top_fields(fields):
    words = random_words(fields, 3000)
    counts = np.zeros(1 << fields.top_bits, np.int64)
    kernels.load().count_tops(words, fields.rotate, fields.word_bits, fields.top_shift, counts)
    np.testing.assert_array_equal(counts, np.bincount(tops(words, fields), minlength=1 << fields.top_bits))


@pytest.mark.parametrize("code", [False, True])
def test_numpy_until_kernels_pay(code, monkeypatch):
    """Which is sooner where there is machine code."""
    monkeypatch.setattr(kernels, "_has_code", lambda: code)
    monkeypatch.setattr(kernels, "_never", False)
    monkeypatch.setattr(kernels, "_done_by_numpy", 0)
    monkeypatch.setattr(kernels, "_kernels", {})
    assert not kernels.pays((kernels.CODE_PAYS_FROM_NBYTES if code else kernels.PAYS_FROM_NBYTES) - 1)
    assert kernels.pays(1)


@pytest.mark.parametrize(
    ("load", "there"), [("load", ()), ("load_quantized", ()), ("load_quantized", ("mzstore.kernels.planes",))]
)
def test_nobody_waits_for_the_kernels(load, there, monkeypatch):
    """While one thread imports them and calls them first, the others go on with NumPy."""
    found = []

    def ask():
        asks = threading.Thread(target=lambda: found.append(kernels.pays(kernels.PAYS_FROM_NBYTES)), daemon=True)
        asks.start()
        asks.join(10)

    def import_module(name):
        ask()
        return kernels

    monkeypatch.setattr(kernels, "first_calls", ask, raising=False)
    monkeypatch.setattr(kernels, "_never", False)
    monkeypatch.setattr(kernels, "_kernels", dict.fromkeys(there, kernels))
    monkeypatch.setattr(importlib, "import_module", import_module)
    monkeypatch.setattr(kernels.machine_code, "load", lambda module: None)
    monkeypatch.setattr(kernels.machine_code, "write", lambda module: None)
    assert getattr(kernels, load)() is kernels
    assert found == [False] * (2 if load == "load" else 1)


DECODING = """
import numpy as np
from mzstore import kernels
from mzstore.interleave import Fields, expand_ranks, join
from mzstore.kernels import machine_code
kernels.PAYS_FROM_NBYTES = 1
machine_code.load = lambda module: None  # as in the first process of an installation
planes = kernels.load()
used = (planes.join2, planes.join4, planes.expand_ranks)
there = [kernel.signatures for kernel in used]
whole = (slice(0, 4), slice(0, 6))
for bits in (16, 32):
    fields = Fields(bits, 8, True)
    top, low = np.zeros((4, 6), np.uint8), np.zeros((bits // 8 - 1, 4, 6), np.uint8)
    join(top, low, whole, fields, None, np.empty((8, 12), fields.word)[2:6, 3:9])
    join(top, low, whole, fields, None, np.empty((4, 6), fields.word))
assert expand_ranks(np.zeros(12, np.uint8), 100, np.full(2, 0xFFFFFFFF, "<u4"), np.empty(24, np.uint8))
assert [len(each) for each in there] == [1, 1, 1]
assert [kernel.signatures for kernel in used] == there
"""


def test_a_kernel_is_there_when_it_decodes():
    """Its first call, for which Numba takes long, was made before."""
    environment = {key: value for key, value in os.environ.items() if key != "NUMBA_DISABLE_JIT"}
    run = subprocess.run([sys.executable, "-c", DECODING], env=environment, capture_output=True, check=False)
    assert run.returncode == 0, run.stderr.decode()


MODEL = """
import io, sys
import numpy as np
import mzstore
rng = np.random.default_rng(0)
tensors = {
    "w": (rng.standard_normal((900, 1100)) * 0.02).astype(np.float32),
    "h": (rng.standard_normal((900, 1100)) * 0.02).astype(np.float16),
    "i": rng.integers(-9, 9, (77, 5)),
}
for level in ("fast", "max"):
    file = io.BytesIO()
    mzstore.save(file, tensors, level=level)
    with mzstore.open(file.getvalue()) as model:
        for name, array in model.load().items():
            assert array.tobytes() == tensors[name].tobytes()
    sys.stdout.buffer.write(file.getvalue())
assert ("mzstore.kernels.planes" in sys.modules) == (sys.argv[1] == "numba")
"""


def test_the_same_bytes_with_and_without_numba():
    """With NUMBA_DISABLE_JIT, as in a debugger, NumPy does everything, however much there is."""
    made = []
    for way, environment in (("numpy", {}), ("numba", {}), ("disabled", {"NUMBA_DISABLE_JIT": "1"})):
        threshold = "" if way == "numpy" else "from mzstore import kernels\nkernels.PAYS_FROM_NBYTES = 1\n"
        run = subprocess.run(
            [sys.executable, "-c", threshold + MODEL, way],
            env=os.environ | environment,
            capture_output=True,
            check=False,
        )
        assert run.returncode == 0, run.stderr.decode()
        made.append(run.stdout)
    assert made[0] == made[1] == made[2]

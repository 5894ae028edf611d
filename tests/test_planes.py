"""The encoding ``planes``: decode undoes encode in all its forms, for any part of a chunk."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mzstore.dtypes import DTYPES
from mzstore.encodings import Coding, read_chunk
from mzstore.encodings.planes import N_RANKS, Planes
from mzstore.errors import CorruptError
from mzstore.grid import Grid
from mzstore.interleave import Fields, tops
from mzstore.payload import CODERS, seal

FLOATS = ["bfloat16", "float16", "float32", "float64"]


def weights(dtype: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Normal values of many sizes, so that there are more exponents than ranks."""
    rng = np.random.default_rng(seed)
    values = (rng.standard_normal(shape) * np.exp(3 * rng.standard_normal(shape))).astype(DTYPES[dtype].numpy)
    return values.view(DTYPES[dtype].word)


def part_for(form: str, dtype: str, words: np.ndarray) -> Planes:
    """The part of one chunk that holds ``words``; ``ranks`` with room for exactly the escapes that there are."""
    grid = Grid(words.shape, words.shape)
    rotate = DTYPES[dtype].exponent_bits > 0
    if form == "plain":
        return Planes.new(DTYPES[dtype], grid, Fields(DTYPES[dtype].word_bits, 8, rotate))
    bits = DTYPES[dtype].exponent_bits + 2 if form == "symbols" else 8
    fields = Fields(DTYPES[dtype].word_bits, bits, rotate)
    count = np.bincount(tops(words.reshape(-1), fields), minlength=1 << bits)
    if form == "symbols":
        return Planes.new(DTYPES[dtype], grid, fields, present=count > 0)
    first = int(np.convolve(count, np.ones(N_RANKS, int), mode="valid").argmax())
    others = int(count[:first].sum() + count[first + N_RANKS :].sum())
    return Planes.new(DTYPES[dtype], grid, fields, ranks=first, escapes=others)


def decode(part: Planes, bodies: list, source: tuple[slice, ...], out: np.ndarray) -> None:
    chunks = [
        read_chunk(component, memoryview(seal(body)), where="t")
        for component, body in zip(part.components, bodies, strict=True)
    ]
    part.decode(lambda i: chunks[i], source, out, "t")


@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize("form", ["plain", "symbols", "ranks"])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(1,), (5,), (64, 33), (3, 4, 6), (1, 1, 7)])
def test_decode_undoes_encode(dtype, form, coder, shape):
    words = weights(dtype, shape)
    part = part_for(form, dtype, words)
    out = np.zeros(shape, words.dtype)
    decode(part, part.encode(words, Coding(coder)), tuple(slice(0, n) for n in shape), out)
    np.testing.assert_array_equal(out, words)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(["plain", "symbols", "ranks"]), st.sampled_from(FLOATS))
def test_any_part_of_a_chunk(data, form, dtype):
    shape = (9, 4, 10)
    words = weights(dtype, shape, 3)
    part = part_for(form, dtype, words)
    source = []
    for n in shape:
        start = data.draw(st.integers(0, n - 1))
        source.append(slice(start, data.draw(st.integers(start + 1, n))))
    expected = words[tuple(source)]
    out = np.zeros(expected.shape, words.dtype)
    decode(part, part.encode(words, Coding()), tuple(source), out)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("dtype", ["int16", "int32", "uint64", "float8_e5m2"])
def test_words_of_other_kinds(dtype):
    words = np.random.default_rng(0).integers(0, 200, (50, 6)).astype(DTYPES[dtype].word)
    part = part_for("plain", dtype, words)
    out = np.zeros_like(words)
    decode(part, part.encode(words, Coding("matches")), (slice(0, 50), slice(0, 6)), out)
    np.testing.assert_array_equal(out, words)


def test_ranks_put_most_into_half_a_byte():
    values = np.random.default_rng(0).standard_normal((200, 300)).astype(DTYPES["bfloat16"].numpy)
    words = values.view(np.uint16)
    part = part_for("ranks", "bfloat16", words)
    (body,) = part.encode(words, Coding())
    assert 0 < part.n_escapes < words.size // 100
    assert part.array.chunk_nbytes == words.size // 2 + words.size + 4 * part.n_escapes
    assert len(body) < words.size * 1.37 + 4 * part.n_escapes, "the ranks, in turn, are coded"


@pytest.mark.parametrize("spare", [0, 1, 9, 100_000])
def test_escapes_of_a_chunk_that_has_fewer(spare):
    """All chunks have room for those of the fullest one, which costs next to nothing."""
    words = weights("bfloat16", (30, 40))
    whole = part_for("ranks", "bfloat16", words)
    part = Planes.new(whole.dtype, whole.grid, whole.fields, ranks=whole.ranks, escapes=whole.n_escapes + spare)
    out = np.zeros_like(words)
    bodies = part.encode(words, Coding())
    assert len(bodies[0]) <= len(whole.encode(words, Coding())[0]) + 24
    decode(part, bodies, (slice(0, 30), slice(0, 40)), out)
    np.testing.assert_array_equal(out, words)


def test_escapes_are_checked_before_anything_is_written():
    words = weights("bfloat16", (30, 40))
    part = part_for("ranks", "bfloat16", words)
    chunk = read_chunk(part.components[0], memoryview(seal(part.encode(words, Coding())[0])), where="t").copy()
    chunk[-4:].view("<u4")[:] = 1200 * 256
    out = np.full_like(words, 0xEEEE)
    with pytest.raises(CorruptError, match="escapes do not ascend below 1200"):
        part.decode(lambda _: chunk, (slice(0, 30), slice(0, 40)), out, "t")
    assert (out == 0xEEEE).all()


def test_more_escapes_than_room_is_a_fault_of_the_caller():
    words = weights("bfloat16", (30, 40))
    whole = part_for("ranks", "bfloat16", words)
    part = Planes.new(whole.dtype, whole.grid, whole.fields, ranks=whole.ranks, escapes=whole.n_escapes - 1)
    with pytest.raises(ValueError, match="negative dimensions"):
        part.encode(words, Coding())


def test_symbols_take_in_the_shortest_gaps():
    present = np.zeros(1 << 9, bool)
    present[[3, 5, 100, 101, 400]] = True
    part = Planes.new(DTYPES["bfloat16"], Grid((4,), (4,)), Fields(16, 9, True), present=present)
    assert part.symbols is not None
    covered = {first + i for first, count in part.symbols for i in range(count)}
    assert {3, 5, 100, 101, 400} <= covered
    assert len(covered) <= 256
    assert len(part.symbols) < 4


def test_as_many_symbols_as_a_byte_has():
    present = np.zeros(1 << 16, bool)
    present[::257] = True
    part = Planes.new(DTYPES["float64"], Grid((4,), (4,)), Fields(64, 16, True), present=present)
    assert len(part.symbols) == 256
    assert part.table.tolist() == list(range(0, 1 << 16, 257))

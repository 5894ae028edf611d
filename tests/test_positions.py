"""Positions: what is encoded comes back, and what is no position is refused by NumPy and by the kernel alike."""

import itertools
import math
import tracemalloc
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mzstore import kernels
from mzstore.encodings import positions
from mzstore.encodings.positions import MAX_GROUP, Index, combinations, gaps, per_byte
from mzstore.errors import CorruptError

NONE = np.empty(0, np.uint8)
PATTERNS = [(taken, group) for group in range(2, MAX_GROUP + 1) for taken in range(1, group)]
quickly = settings(deadline=None, max_examples=200)


def decode(index: Index, body: np.ndarray, low: np.ndarray, n: int, room: int, *, fast: bool) -> list[int] | None:
    """The positions; None for what is refused."""
    with patch.object(kernels, "pays", lambda nbytes: fast):
        try:
            return index.decode(body, low, n, room, "here").tolist()
        except CorruptError:
            return None


def by_the_page(index: Index, body: list[int], low: list[int], n: int, room: int) -> list[int] | None:
    """As FORMAT.md 8.5 says it, byte by byte; None for what it refuses."""
    found = []
    if index.kind == "bitmap":
        found = [i for i in range(8 * len(body)) if body[i // 8] >> i % 8 & 1]
    elif index.pattern:
        taken, group = index.pattern
        masks = [m for m in range(1 << group) if m.bit_count() == taken]
        k = max(k for k in range(1, 9) if len(masks) ** k <= 256)
        if any(byte >= len(masks) ** k for byte in body):
            return None
        for i in range(n // group):
            mask = masks[body[i // k] // len(masks) ** (i % k) % len(masks)]
            found += [i * group + j for j in range(group) if mask >> j & 1]
    else:
        at = 0
        for byte in body:
            at += byte << index.low_bits
            if byte < 255:
                if len(found) == room:
                    return None
                at += low[len(found)] if index.low_bits else 0
                found.append(at)
                at += 1
    return found if len(found) <= room and (not found or found[-1] < n) else None


@st.composite
def chosen(draw) -> tuple[int, np.ndarray]:
    """(number of places, those that are taken), of any density."""
    n = draw(st.integers(1, 3000))
    density = draw(st.sampled_from([0.0, 0.001, 0.01, 0.1, 0.5, 0.9, 1.0]))
    taken = np.flatnonzero(np.random.default_rng(draw(st.integers(0, 1 << 32))).random(n) < density)
    return n, taken


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("index", [Index(), Index("gaps", 8), Index("bitmap")], ids=str)
@quickly
@given(st.data())
def test_what_is_encoded_comes_back(index, fast, data):
    n, taken = data.draw(chosen())
    block = data.draw(st.sampled_from([8, 64, positions.BLOCK]))
    with patch.object(positions, "BLOCK", block):
        body, low = index.encode(taken, n)
        assert body.size <= max(n, 1)
        assert low.size == (taken.size if index.low_bits else 0)
        left = np.full(n - body.size, 255, np.uint8) if index.kind == "gaps" else NONE
        room = min(n, taken.size + data.draw(st.integers(0, 2)))
        low = np.concatenate([low, np.full(room - low.size, 9, np.uint8)]) if index.low_bits else NONE
        body = np.concatenate([body, left])
        assert decode(index, body, low, n, max(1, room), fast=fast) == taken.tolist()


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_patterns_come_back(pattern, fast, monkeypatch):
    taken, group = pattern
    index, n = Index("pattern", 0, pattern), 997 * group
    rows = np.argsort(np.random.default_rng(0).random((997, group)), axis=1)[:, :taken]
    places = np.sort((rows + np.arange(0, n, group)[:, None]).reshape(-1))
    for block in (64, positions.BLOCK):
        monkeypatch.setattr(positions, "BLOCK", block)
        body, low = index.encode(places, n)
        assert (body.size, low.size) == (index.exact_nbytes(n), 0)
        assert decode(index, body, NONE, n, places.size, fast=fast) == places.tolist()


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_combinations_ascend_and_share_bytes(pattern):
    taken, group = pattern
    table = combinations(pattern)
    masks = (1 << table).sum(axis=1)
    assert table.shape == (math.comb(group, taken), taken)
    assert (np.diff(masks) > 0).all()
    base, k = table.shape[0], per_byte(pattern)
    assert base**k <= 256
    assert k == 8 or base ** (k + 1) > 256


@pytest.mark.parametrize(
    "index", [Index(), Index("gaps", 8), Index("bitmap"), *(Index("pattern", 0, p) for p in PATTERNS[::3])], ids=str
)
@quickly
@given(st.data())
def test_any_bytes_are_positions_of_the_page_or_refused(index, data):
    """By NumPy, whatever it takes at a time, and by the kernel."""
    n = data.draw(st.integers(1, 60)) * (index.pattern[1] if index.pattern else 1)
    if index.kind == "gaps":
        size = data.draw(st.integers(1, n))
        room = data.draw(st.integers(1, n))
        byte = st.sampled_from([0, 0, 1, 2, 254, 255]) | st.integers(0, 255)
    else:
        size = index.exact_nbytes(n)
        room = n // index.pattern[1] * index.pattern[0] if index.pattern else data.draw(st.integers(1, n))
        byte = st.sampled_from([0, 1, 255]) | st.integers(0, 255)
    body = data.draw(st.lists(byte, min_size=size, max_size=size))
    low = data.draw(st.lists(st.integers(0, 255), min_size=room, max_size=room)) if index.low_bits else []
    index.check_room(n, size, room)
    expected = by_the_page(index, body, low, n, room)
    for block, fast in itertools.product((8 * 8 * 8, positions.BLOCK), (False, True)):
        with patch.object(positions, "BLOCK", block):
            found = decode(index, np.array(body, np.uint8), np.array(low, np.uint8), n, room, fast=fast)
        assert found == expected, (block, fast)


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("low_bits", [0, 8])
@pytest.mark.parametrize("ending", [[], [0], [0, 0, 0]])
def test_gaps_beyond_32_bits(low_bits, ending, fast):
    """A chunk of 2^26 bytes passes 4 * 10^12 places: no number on the way may wrap around."""
    body = np.full(1 << 26, 255, np.uint8)
    body[body.size - len(ending) :] = ending
    low = np.zeros(3 if low_bits else 0, np.uint8)
    found = decode(Index("gaps", low_bits), body, low, 1 << 26, 3, fast=fast)
    assert found == (None if ending else [])


@pytest.mark.parametrize("fast", [False, True])
def test_one_gap_that_wraps_around_32_bits_to_a_place(fast):
    """2^32 places and some more are passed: the last position is small again in 32 bits."""
    passed = 255 << 8
    count = -(-(1 << 32) // passed)
    body = np.array([*[255] * count, 0], np.uint8)
    assert decode(Index("gaps", 8), body, np.zeros(1, np.uint8), 1 << 26, 1, fast=fast) is None
    body = np.array([0, *[255] * count, 0], np.uint8)
    assert decode(Index("gaps", 8), body, np.zeros(2, np.uint8), 1 << 26, 2, fast=fast) is None


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("index", [Index(), Index("gaps", 8), Index("bitmap"), Index("pattern", 0, (7, 8))], ids=str)
def test_decoding_takes_no_more_memory_than_its_positions(index, fast):
    """The worst chunk of each kind: all places taken; room for one, and the same bytes."""
    n = 1 << 23
    body, low = (np.zeros(n, np.uint8), np.zeros(n if index.low_bits else 0, np.uint8))
    room = n
    if index.kind != "gaps":
        body = np.full(index.exact_nbytes(n), 255 if index.kind == "bitmap" else 63, np.uint8)
        room = n // 8 * 7 if index.pattern else n
    decode(index, body[: index.exact_nbytes(64) if index.kind != "gaps" else 64], low[:64], 64, 56 if index.pattern else 64, fast=fast)  # fmt: skip
    for own in {room, room if index.pattern else 1}:
        tracemalloc.start()
        try:
            with patch.object(kernels, "pays", lambda nbytes: fast):
                try:
                    found = index.decode(body, low, n, own, "here")
                    assert found.size == own
                except CorruptError:
                    assert own == 1
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak <= 4 * own + 64 * positions.BLOCK + 10_000


@quickly
@given(chosen())
def test_gaps_are_a_byte_for_each_place_that_is_taken(both):
    _, taken = both
    steps, _ = gaps(taken)
    assert np.count_nonzero(steps < 255) == taken.size
    assert (np.cumsum(steps.astype(np.int64) + (steps < 255))[steps < 255] - 1).tolist() == taken.tolist()


@pytest.mark.parametrize(
    ("kind", "low_bits", "pattern", "match"),
    [
        ("runs", 0, None, "index 'runs' is none of gaps, bitmap, pattern"),
        ("gaps", 4, None, "4 low bits of gaps"),
        ("bitmap", 8, None, "8 low bits of bitmap"),
        ("gaps", 0, (2, 4), r"pattern \(2, 4\) with index 'gaps'"),
        ("pattern", 0, None, "pattern None with index 'pattern'"),
        ("pattern", 0, (4, 4), r"pattern \[4, 4\]: n of m places"),
        ("pattern", 0, (0, 4), r"pattern \[0, 4\]"),
        ("pattern", 0, (1, 9), r"pattern \[1, 9\]"),
    ],
)
def test_what_is_no_index_is_refused(kind, low_bits, pattern, match):
    with pytest.raises(ValueError, match=match):
        Index(kind, low_bits, pattern)


@pytest.mark.parametrize(
    ("index", "n", "n_bytes", "n_elements", "match"),
    [
        (Index(), 9, 10, 1, "10 bytes of positions for 9 places"),
        (Index(), 9, 0, 1, "0 bytes of positions"),
        (Index(), 9, 1, 10, "room for 10 elements in each chunk of 9 places"),
        (Index(), 9, 1, 0, "room for 0 elements"),
        (Index("bitmap"), 9, 1, 1, "1 bytes of positions for 9 places, where 2 are needed"),
        (Index("pattern", 0, (2, 4)), 9, 1, 4, r"4 elements in 9 places with the pattern \[2, 4\]"),
        (Index("pattern", 0, (2, 4)), 8, 1, 3, r"3 elements in 8 places with the pattern \[2, 4\]"),
        (Index("pattern", 0, (2, 4)), 16, 1, 8, "1 bytes of positions for 16 places, where 2 are needed"),
    ],
)
def test_room_that_does_not_fit_is_refused(index, n, n_bytes, n_elements, match):
    with pytest.raises(ValueError, match=match):
        index.check_room(n, n_bytes, n_elements)

"""Payloads: one zstd frame of a stated size, and a checksum that finds every flipped bit."""

import contextlib

import google_crc32c
import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from numcodecs.zstd import Zstd

from mzstore.errors import CorruptError, FormatError
from mzstore.payload import (
    CODERS,
    MAX_BLOCK_NBYTES,
    MAX_PAYLOAD_NBYTES,
    check_frame,
    check_payload_nbytes,
    compress,
    crc32c,
    decompress,
    seal,
    unseal,
)

PLANES = st.lists(st.binary(min_size=1, max_size=3000), min_size=1, max_size=5)


@settings(max_examples=100, deadline=None)
@given(PLANES, st.sampled_from(list(CODERS)), st.sampled_from([1, 100, 1 << 17]))
def test_what_is_compressed_comes_back(planes, coder, block_nbytes):
    arrays = [np.frombuffer(plane, np.uint8) for plane in planes]
    frame = compress(arrays, coder=coder, block_nbytes=block_nbytes)
    content = b"".join(planes)
    out = np.empty(len(content), np.uint8)
    decompress(memoryview(frame), out, where="t")
    assert out.tobytes() == content
    assert Zstd().decode(frame) == content, "another reader agrees"
    assert zstandard.get_frame_parameters(frame).content_size == len(content)


@pytest.mark.parametrize("coder", CODERS)
def test_a_frame_longer_than_a_block_of_zstd(coder):
    content = np.random.default_rng(0).normal(0, 9, 700_000).astype(np.int8).view(np.uint8)
    frame = compress([content[:400_001], content[400_001:]], coder=coder, block_nbytes=1 << 17)
    out = np.empty(content.size, np.uint8)
    decompress(memoryview(frame), out, where="t")
    assert (out == content).all()
    assert len(frame) < 0.75 * content.size


@pytest.mark.parametrize("size", [0, 1, 8192, 8193, 300_001])
def test_planes_of_noise_at_the_end_are_stored_as_they_are(size):
    rng = np.random.default_rng(0)
    first, noise = rng.integers(0, 20, size).astype(np.uint8), [rng.bytes(size), rng.bytes(size)]
    planes = [first, *(np.frombuffer(plane, np.uint8) for plane in noise)]
    frame = compress(planes, coder="huffman", block_nbytes=1 << 17)
    out = np.empty(3 * size, np.uint8)
    decompress(memoryview(frame), out, where="t")
    assert (out == np.concatenate(planes)).all()
    assert size < 8192 or all(plane[:MAX_BLOCK_NBYTES] in frame for plane in noise)


def test_a_plane_that_is_noise_only_in_parts_is_compressed():
    plane = np.random.default_rng(0).integers(0, 256, 1 << 18).astype(np.uint8)
    plane[1 << 17 :] = 0
    assert len(compress([plane, plane], coder="huffman", block_nbytes=1 << 17)) < 0.6 * 2 * plane.size


def test_the_same_plane_gives_the_same_frame_in_every_order():
    """A thread uses one compressor again and again; what it did before must not show."""
    rng = np.random.default_rng(0)
    planes = [rng.integers(0, 20, 5000).astype(np.uint8) for _ in range(4)]
    first = [compress([plane], coder="huffman", block_nbytes=1 << 17) for plane in planes]
    again = [compress([plane], coder="huffman", block_nbytes=1 << 17) for plane in reversed(planes)]
    assert first == again[::-1]


def test_crc32c_is_that_of_castagnoli():
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(memoryview(b"")) == 0
    assert crc32c(memoryview(bytes(1000))) == google_crc32c.value(bytes(1000))


def test_every_flipped_bit_of_a_payload_is_found():
    payload = seal(b"forty-two bytes of a chunk, more or less..")
    assert bytes(unseal(memoryview(payload), where="t")) == payload[:-4]
    for bit in range(8 * len(payload)):
        spoilt = bytearray(payload)
        spoilt[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptError, match="crc32c"):
            unseal(memoryview(spoilt), where="t")


def test_every_truncation_of_a_payload_is_found():
    payload = seal(b"some bytes")
    for length in range(len(payload)):
        with pytest.raises(CorruptError):
            unseal(memoryview(payload[:length]), where="t")


@pytest.mark.parametrize("coder", CODERS)
def test_every_truncation_of_a_frame_is_found_before_anything_is_written(coder):
    content = np.random.default_rng(0).integers(0, 9, 4000, dtype=np.uint8)
    frame = compress([content], coder=coder, block_nbytes=1000)
    out = np.full(4000, 0xEE, np.uint8)
    for length in range(len(frame)):
        with pytest.raises(CorruptError, match="zstd"):
            decompress(memoryview(frame[:length]), out, where="t")
        assert (out == 0xEE).all()


@pytest.mark.parametrize("size", [0, 3999, 4001, 1 << 26])
def test_a_frame_of_another_size_is_refused_before_anything_is_written(size):
    frame = compress([np.zeros(4000, np.uint8)], coder="huffman", block_nbytes=1 << 17)
    out = np.full(size, 0xEE, np.uint8)
    with pytest.raises(CorruptError, match=f"the zstd frame holds 4000 bytes, the chunk has {size} \\(in t; FORMAT.md"):
        decompress(memoryview(frame), out, where="t")
    assert (out == 0xEE).all()


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_spoilt_frame_is_refused_or_has_its_size(data):
    """Behind a checksum that holds anything may stand. A frame is never read past its end, nor written past ``out``."""
    content = np.arange(600, dtype=np.uint16).view(np.uint8)
    frame = bytearray(compress([content], coder="matches", block_nbytes=300))
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    room = np.full(1400, 0xEE, np.uint8)
    with contextlib.suppress(CorruptError):
        decompress(memoryview(frame), room[100:1300], where="t")
    assert (room[:100] == 0xEE).all()
    assert (room[1300:] == 0xEE).all()


def test_frames_that_the_format_allows():
    content = bytes(range(256)) * 8
    for parameters in ({"write_checksum": True}, {"level": 19}, {"level": -5}, {"write_dict_id": False}):
        frame = zstandard.ZstdCompressor(**parameters).compress(content)
        check_frame(memoryview(frame), len(content), where="t")
        out = np.empty(len(content), np.uint8)
        decompress(memoryview(frame), out, where="t")
        assert out.tobytes() == content


def test_the_longest_payload():
    check_payload_nbytes(MAX_PAYLOAD_NBYTES, where="t")
    with pytest.raises(FormatError, match=f"a chunk of {MAX_PAYLOAD_NBYTES + 1} bytes is stored"):
        check_payload_nbytes(MAX_PAYLOAD_NBYTES + 1, where="t")

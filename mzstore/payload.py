"""Payload: the bytes of one chunk as they are stored, and the chunk's own bytes (FORMAT.md section 7.2).

A payload is what the Zarr codecs ``bytes``, ``zstd`` (where the array has it) and ``crc32c`` make of a chunk.
"""

import math
import threading
from collections.abc import Sequence

import google_crc32c
import numpy as np
import zstandard

from mzstore.errors import CorruptError, FormatError
from mzstore.grid import MAX_CHUNK_NBYTES

CRC_NBYTES = 4
MAX_BLOCK_NBYTES = 128 << 10  # the content of a zstd block
MAX_PAYLOAD_NBYTES = 2 * MAX_CHUNK_NBYTES  # zstd adds far less to what it cannot compress
NOISE_SAMPLE_NBYTES = 1 << 13
NOISE_ENTROPY = 7.9  # bits in a byte; in a sample that small, even of pure noise, no more than 7.98 can be seen
LEVEL_IN_DOCUMENTS = 1  # the zstd level that documents state; it binds neither writer nor reader


def _literals(strategy: int) -> zstandard.ZstdCompressionParameters:
    return zstandard.ZstdCompressionParameters(
        strategy=strategy, window_log=17, hash_log=6, chain_log=6, search_log=1, min_match=7, target_length=0
    )


# zstd as a Huffman coder: chance matches of 3 to 6 bytes, which the ordinary levels take, cost more than the
# literals that they replace; a match of 7 is rare enough to mean something. zstd codes a block only if that
# saves 1 part in 64 of it, with its last strategy 1 in 256, which is slow. Integers, masks and the like have
# matches that matter.
CODERS = {
    "huffman": _literals(zstandard.STRATEGY_FAST),
    "huffman-all": _literals(zstandard.STRATEGY_BTULTRA2),
    "matches": zstandard.ZstdCompressionParameters.from_level(3),
    "matches-all": zstandard.ZstdCompressionParameters.from_level(19),
}

_local = threading.local()


def compress(
    planes: Sequence[np.ndarray], *, coder: str, block_nbytes: int, stored: Sequence[np.ndarray] = ()
) -> bytes:
    """One zstd frame over ``planes`` (uint8, contiguous), one after the other, by one of CODERS.

    A zstd block is ended behind every plane, because a block has one Huffman table and two planes have little
    in common, and within a plane after ``block_nbytes`` at the latest (zstd itself stops at 128 KiB).
    ``stored`` follows without compression: what is known not to shrink, or to be one byte again and again.
    """
    if coder == "huffman":
        kept = len(planes)
        while kept > 1 and _is_noise(planes[kept - 1]):
            kept -= 1
        planes, stored = planes[:kept], (*planes[kept:], *stored)
    held = _local.__dict__  # a thread's coders and decoder are made once
    if coder not in held:
        held[coder] = zstandard.ZstdCompressor(compression_params=CODERS[coder])
    stream = held[coder].compressobj(size=sum(plane.size for plane in (*planes, *stored)))
    pieces = []
    for plane in planes:
        blocks = max(1, -(-plane.size // block_nbytes))
        step = max(1, -(-plane.size // blocks))  # of equal size: a short one at the end hardly pays for its table
        pieces += [plane[start : start + step] for start in range(0, plane.size, step)]
    raw = [plane[i : i + MAX_BLOCK_NBYTES] for plane in stored for i in range(0, plane.size, MAX_BLOCK_NBYTES)]
    out: list[bytes | memoryview] = []
    for i, piece in enumerate(pieces):
        out.append(stream.compress(piece))
        if raw or i + 1 < len(pieces):
            out.append(stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK))
    if not raw:
        out.append(stream.flush())
    for i, piece in enumerate(raw):  # blocks as in RFC 8878, section 3.1.1.2
        last = int(i + 1 == len(raw))
        repeated = int(piece[0] == piece[-1] and (piece == piece[0]).all())
        out.append((last | repeated << 1 | piece.size << 3).to_bytes(3, "little"))
        out.append(piece[:1].data if repeated else piece.data)
    return b"".join(out)


def _is_noise(plane: np.ndarray) -> bool:
    """Whether a sample of ``plane`` shows that zstd would try it in vain: it wants to save 1 part in 64."""
    if plane.size < NOISE_SAMPLE_NBYTES:
        return False
    counts = np.bincount(plane[:: plane.size // NOISE_SAMPLE_NBYTES], minlength=256)
    counts = counts[counts > 0]
    total = counts.sum()
    return bool(math.log2(total) - counts @ np.log2(counts) / total > NOISE_ENTROPY)


def payload_limit(chunk_nbytes: int) -> int:
    """The most bytes that the payload of a chunk of ``chunk_nbytes`` may have."""
    return min(MAX_PAYLOAD_NBYTES, 2 * chunk_nbytes + 1024)


def check_payload_nbytes(nbytes: int, limit: int = MAX_PAYLOAD_NBYTES, *, where: str) -> None:
    """Raises FormatError for what is too long to be a payload, so that nobody fetches it."""
    if nbytes > limit:
        raise FormatError(
            f"a chunk of {nbytes} bytes is stored, at most {limit} are allowed",
            where=where,
            clause="payload-5",
        )


def crc32c(body: bytes | memoryview, before: int = 0) -> int:
    """The CRC-32C of ``body``; ``before``: that of what stands in front of it."""
    # google_crc32c takes no memoryview, but an array over it, without a copy.
    return int(google_crc32c.extend(before, np.frombuffer(body, np.uint8)))


def seal(body: bytes | memoryview) -> bytes:
    """The payload for ``body``: the body and its crc32c."""
    return b"".join((body, crc32c(body).to_bytes(CRC_NBYTES, "little")))


def unseal(payload: memoryview, *, where: str) -> memoryview:
    """The body of ``payload``. Raises CorruptError if the checksum does not hold."""
    if len(payload) < CRC_NBYTES:
        raise CorruptError(
            f"a chunk of {len(payload)} bytes has no room for its checksum", where=where, clause="payload-3"
        )
    body = payload[:-CRC_NBYTES]
    if crc32c(body) != int.from_bytes(payload[-CRC_NBYTES:], "little"):
        raise CorruptError(
            "the checksum (crc32c) of the chunk does not hold; restore the file from a copy",
            where=where,
            clause="payload-3",
        )
    return body


def decompress(frame: memoryview, out: np.ndarray, *, where: str) -> None:
    """Fill ``out`` (uint8, one dimension, contiguous) with the content of ``frame``.

    Raises CorruptError, before anything is written, if the frame is not one that states this very size.
    """
    check_frame(frame, out.size, where=where)
    held = _local.__dict__
    if "decoder" not in held:
        held["decoder"] = zstandard.ZstdDecompressor()
    try:
        # With the whole frame and room for all its content, zstd decodes in one pass, straight into ``out``.
        done = held["decoder"].stream_reader(frame).readinto(out)
    except zstandard.ZstdError as error:
        raise CorruptError(f"zstd: {error}", where=where, clause="payload-2") from error
    if done != out.size:
        raise CorruptError(f"the zstd frame ends after {done} of {out.size} bytes", where=where, clause="payload-2")


def check_frame(frame: memoryview, nbytes: int, *, where: str) -> None:
    """Raises CorruptError unless ``frame`` is exactly one zstd frame, with ``nbytes`` of content, as the format allows."""

    def refuse(problem: str) -> CorruptError:
        return CorruptError(problem, where=where, clause="payload-2")

    if bytes(frame[:4]) != b"\x28\xb5\x2f\xfd":
        raise refuse("not a zstd frame")
    try:
        header = zstandard.get_frame_parameters(frame)
        end = zstandard.frame_header_size(frame)
    except zstandard.ZstdError as error:
        raise refuse(f"not a zstd frame: {error}") from error
    if header.content_size != nbytes:
        raise refuse(f"the zstd frame holds {header.content_size} bytes, the chunk has {nbytes}")
    if header.dict_id or header.window_size > MAX_CHUNK_NBYTES:
        raise refuse(f"the zstd frame needs dictionary {header.dict_id} and a window of {header.window_size} bytes")
    last = False
    while not last:
        if end + 3 > len(frame):
            raise refuse("the zstd frame is cut short")
        block = int.from_bytes(frame[end : end + 3], "little")
        last, kind, size = bool(block & 1), block >> 1 & 3, block >> 3
        end += 3 + (1 if kind == 1 else size)  # kind 1 is one byte, repeated
    if end + 4 * header.has_checksum != len(frame):
        raise refuse(f"{len(frame)} bytes are stored, the zstd frame in them has {end + 4 * header.has_checksum}")

"""What the numbers of ggml's blocks stand for: float32 values, those of ggml bit for bit.

    value = entry * scale + offset            in float32

A code stands for an entry. A scale and an offset are those of ``sub`` values, and products of what a block has; with so
few bits each of these products is exact, and so is entry * scale: only the sum is rounded, in whatever way it is computed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from mzstore import kernels
from mzstore.ggml import NUMPY_COST, BlockType, extract
from mzstore.ggml.grids import grid

Numbers = Mapping[str, np.ndarray]  # by the name of the field: unsigned [blocks, numbers of a block]
Scales = tuple[np.ndarray, np.ndarray | None]  # scales and offsets: float32[blocks, values of a block / sub]

STEP = (
    1 << 18
)  # values that are computed at once: with fewer, calls of kernels and of NumPy take as long as what they do
NAN = np.uint32(0x7FC00000)  # processors disagree about the sign and the payload of one that they make
DELTA = np.float32(0.125)
IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
E2M1 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)  # twice its values; a negative zero is none


@dataclass(frozen=True, slots=True)
class Meaning:
    """Of the numbers of a type.

    sub      values that have a scale of their own
    scales   of the fields but the codes: gives scales and offsets
    entries  what each code stands for, float32[2 ** bits]; or of a type without codes a function of the fields, float32
             [blocks, values of a block]
    uniform  where entries are code - uniform
    """

    sub: int
    scales: Callable[[Numbers], Scales]
    entries: np.ndarray | Callable[[Numbers], np.ndarray]
    uniform: int | None = None


def scales(kind: BlockType, numbers: Numbers) -> Scales:
    """Scales and offsets (None: the type has none) of blocks."""
    with np.errstate(all="ignore"):
        return MEANINGS[kind.name].scales(numbers)


def centres(kind: BlockType, found: Scales) -> np.ndarray | None:
    """The code next to 0 where a type has offsets, uint8[blocks, values of a block / sub]; 0 where there is none; else None."""
    scale, offset = found
    if offset is None:
        return None
    top = np.float32((1 << kind.field("codes").width) - 1)
    with np.errstate(all="ignore"):
        centre = -offset / scale
        nearest: np.ndarray = np.where(centre >= 0, np.rint(np.minimum(centre, top)), np.float32(0))
        return nearest.astype(np.uint8)


def shifted(kind: BlockType, codes: np.ndarray, centre: np.ndarray, sign: int) -> np.ndarray:
    """``codes`` + ``sign`` * ``centre`` of their ``sub``, modulo the number of codes; uint8 [blocks, values of a block]."""
    sub, mask = MEANINGS[kind.name].sub, np.uint8((1 << kind.field("codes").width) - 1)
    steps = centre if sign > 0 else np.uint8(0) - centre
    if kernels.pays(NUMPY_COST * codes.size):
        moved = np.empty(codes.shape, np.uint8)
        kernels.load_ggml().shift_codes(codes.reshape(-1), steps.reshape(-1), sub, mask, moved.reshape(-1))
        return moved
    wrapped: np.ndarray = codes.reshape(-1, sub) + steps.reshape(-1, 1) & mask
    return wrapped.reshape(codes.shape)


def words_of(kind: BlockType, blocks: np.ndarray) -> np.ndarray:
    """The words of float32 (uint32[n, values of a block]) that blocks (uint8[n, bytes of a block]) stand for."""
    out = np.empty((blocks.shape[0], kind.size), np.float32)
    step = max(1, STEP // kind.size)
    for i in range(0, blocks.shape[0], step):
        some = blocks[i : i + step]
        numbers = {field.name: extract(some, field) for field in kind.fields}
        values(kind, numbers, scales(kind, numbers), out[i : i + step])
    return out.view(np.uint32)


def values(kind: BlockType, numbers: Numbers, found: Scales, out: np.ndarray) -> None:
    """Fill ``out``, float32[blocks, values of a block], contiguous. ``found``: see ``scales``."""
    meaning = MEANINGS[kind.name]
    scale, offset = found
    if isinstance(meaning.entries, np.ndarray) and kernels.pays(NUMPY_COST * out.size):
        _by_kernel(meaning, numbers["codes"], scale, offset, out)
    else:
        entries = (
            meaning.entries[numbers["codes"]] if isinstance(meaning.entries, np.ndarray) else meaning.entries(numbers)
        )
        parts = out.reshape(-1, meaning.sub)
        with np.errstate(all="ignore"):
            np.multiply(entries.reshape(parts.shape), scale.reshape(-1, 1), out=parts)
            if offset is not None:
                parts += offset.reshape(-1, 1)
    if not np.isfinite(scale).all() or (offset is not None and not np.isfinite(offset).all()):
        out.view(np.uint32)[np.isnan(out)] = NAN


def _by_kernel(
    meaning: Meaning, codes: np.ndarray, scale: np.ndarray, offset: np.ndarray | None, out: np.ndarray
) -> None:
    kernel = kernels.load_ggml()
    flat = np.ascontiguousarray(codes).reshape(-1), np.ascontiguousarray(scale).reshape(-1), meaning.sub
    if offset is not None:
        kernel.affine(*flat, np.ascontiguousarray(offset).reshape(-1), out.reshape(-1))
    elif meaning.uniform is not None:
        kernel.uniform(*flat, np.int32(meaning.uniform), out.reshape(-1))
    else:
        kernel.look_up(*flat, meaning.entries, out.reshape(-1))


def _half(number: np.ndarray) -> np.ndarray:
    return number.view(np.float16).astype(np.float32)


def _plain(numbers: Numbers) -> Scales:
    return _half(numbers["scale"]), None


def _with_minimum(numbers: Numbers) -> Scales:
    return _half(numbers["scale"]), _half(numbers["minimum"])


def _less_32(numbers: Numbers) -> Scales:
    return _half(numbers["scale"]) * (numbers["scales"].astype(np.float32) - np.float32(32)), None


def _signed(numbers: Numbers) -> Scales:
    return _half(numbers["scale"]) * numbers["scales"].view(np.int8).astype(np.float32), None


def _q2_k(numbers: Numbers) -> Scales:
    pairs = numbers["scales"]
    scale = _half(numbers["scale"]) * (pairs & 15).astype(np.float32)
    return scale, -(_half(numbers["minimum"]) * (pairs >> 4).astype(np.float32))


def _k(numbers: Numbers) -> Scales:
    scale = _half(numbers["scale"]) * numbers["scales"].astype(np.float32)
    return scale, -(_half(numbers["minimum"]) * numbers["minimums"].astype(np.float32))


def _q8_k(numbers: Numbers) -> Scales:
    return numbers["scale"].view(np.float32), None


def _mxfp4(numbers: Numbers) -> Scales:
    return _E8M0_HALVES[numbers["scale"]], None


def _nvfp4(numbers: Numbers) -> Scales:
    return _E4M3_HALVES[numbers["scale"]], None


def _eighths(step: float, number: np.ndarray, numbers: Numbers) -> Scales:
    """scale * (0.5 + number) * step"""
    return _half(numbers["scale"]) * ((np.float32(0.5) + number.astype(np.float32)) * np.float32(step)), None


def _nibbles(numbers: np.ndarray) -> np.ndarray:
    """Two numbers of 4 bits for each byte, the low one first."""
    return np.stack([numbers & 15, numbers >> 4], axis=-1).reshape(numbers.shape[0], -1)


def _iq1_s(numbers: Numbers) -> Scales:
    return _half(numbers["scale"]) * (2 * (numbers["high"] >> 12 & 7) + 1).astype(np.float32), None


def _iq1_m(numbers: Numbers) -> Scales:
    words = numbers["scales"]
    scale = words[:, 0:1] >> 12 | words[:, 1:2] >> 8 & 0xF0 | words[:, 2:3] >> 4 & 0xF00 | words[:, 3:4] & 0xF000
    three = (words[:, :, None] >> np.array([0, 3, 6, 9], np.uint16) & 7).reshape(words.shape[0], -1)
    return _half(np.ascontiguousarray(scale)) * (2 * three + 1).astype(np.float32), None


def _signs(bits: np.ndarray) -> np.ndarray:
    """uint32 [blocks, 8 for each byte]: the sign bit of a binary32 for each bit, the least significant first."""
    found = np.unpackbits(bits.reshape(-1, 1), axis=1, bitorder="little").astype(np.uint32)
    return (found << np.uint32(31)).reshape(bits.shape[0], -1)


def _signs_of_7(words: np.ndarray, first: tuple[int, ...]) -> np.ndarray:
    """As ``_signs``, of 7 bits from each of ``first`` on; an eighth makes their number even."""
    shifts = np.array(first, words.dtype)
    return _signs(_EVEN[(words[:, :, None] >> shifts & words.dtype.type(127)).reshape(words.shape[0], -1)])


def _gridded(name: str, entries: np.ndarray, signs: np.ndarray | None) -> np.ndarray:
    found: np.ndarray = grid(name)[entries].reshape(entries.shape[0], -1)
    if signs is not None:
        found.view(np.uint32)[...] ^= signs
    return found


def _iq2_xxs(numbers: Numbers) -> np.ndarray:
    return _gridded("IQ2_XXS", numbers["entries"], _signs_of_7(numbers["signs"], (0, 7, 14, 21)))


def _iq2_xs(numbers: Numbers) -> np.ndarray:
    return _gridded("IQ2_XS", numbers["entries"] & 511, _signs_of_7(numbers["entries"], (9,)))


def _with_high(numbers: Numbers, high: np.ndarray) -> np.ndarray:
    """Entries of which the bits above the eighth are ``high``."""
    entries = numbers["entries"]
    found: np.ndarray = entries | high.astype(np.uint16).reshape(entries.shape) << 8
    return found


def _iq2_s(numbers: Numbers) -> np.ndarray:
    high = numbers["high"][:, :, None] >> np.array([0, 2, 4, 6], np.uint8) & 3
    return _gridded("IQ2_S", _with_high(numbers, high), _signs(numbers["signs"]))


def _iq3_xxs(numbers: Numbers) -> np.ndarray:
    return _gridded("IQ3_XXS", numbers["entries"], _signs_of_7(numbers["signs"], (0, 7, 14, 21)))


def _iq3_s(numbers: Numbers) -> np.ndarray:
    high = numbers["high"][:, :, None] >> np.arange(8, dtype=np.uint8) & 1
    return _gridded("IQ3_S", _with_high(numbers, high), _signs(numbers["signs"]))


def _beside(found: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """``found`` + DELTA, or - DELTA where ``negative``, of which there is one for a group of values."""
    groups = found.reshape(found.shape[0], negative.shape[1], -1)
    return groups + np.where(negative, -DELTA, DELTA)[:, :, None]


def _iq1_s_entries(numbers: Numbers) -> np.ndarray:
    words = numbers["high"]
    high = words[:, :, None] >> np.array([0, 3, 6, 9], np.uint16) & 7
    return _beside(_gridded("IQ1_S", _with_high(numbers, high), None), words & 0x8000 != 0)


def _iq1_m_entries(numbers: Numbers) -> np.ndarray:
    nibbles = _nibbles(numbers["high"])
    return _beside(_gridded("IQ1_S", _with_high(numbers, nibbles & 7), None), nibbles & 8 != 0)


def _tq1_0(numbers: Numbers) -> np.ndarray:
    """Digits in base 3: of 32 bytes five times 32, of 16 bytes five times 16, of 4 bytes four times 4."""
    trits = numbers["trits"]
    powers = np.array([1, 3, 9, 27, 81], np.uint8)
    found = [
        (trits[:, None, start:stop] * powers[:n, None]).reshape(trits.shape[0], -1)
        for start, stop, n in ((0, 32, 5), (32, 48, 5), (48, 52, 4))
    ]
    digits: np.ndarray = np.concatenate(found, axis=1).astype(np.uint16) * np.uint16(3) >> np.uint16(8)
    return digits.astype(np.float32) - np.float32(1)


def _table(*entries: float) -> np.ndarray:
    found = np.array(entries, np.float32)
    found.setflags(write=False)
    return found


def _uniform(sub: int, found: Callable[[Numbers], Scales], bits: int, zero: int) -> Meaning:
    return Meaning(sub, found, _table(*range(-zero, (1 << bits) - zero)), zero)


def _bytes(sub: int, found: Callable[[Numbers], Scales]) -> Meaning:
    return Meaning(sub, found, _table(*range(128), *range(-128, 0)))


def _e4m3_halves() -> np.ndarray:
    """Half of an E4M3 without regard to bit 7; 0 for 7f, which is no number."""
    bits = np.arange(256)
    exponent, mantissa = bits >> 3 & 15, (bits & 7).astype(np.float64)
    found = np.where(exponent == 0, mantissa / 512, (1 + mantissa / 8) * 2.0 ** (exponent - 7)) / 2
    return _table(*np.where(bits == 0x7F, 0, found))


_EVEN = np.array([i | (i.bit_count() & 1) << 7 for i in range(128)], np.uint8)
_E4M3_HALVES = _e4m3_halves()
_E8M0_HALVES = _table(*(2.0 ** (i - 128) for i in range(256)))

MEANINGS: Mapping[str, Meaning] = MappingProxyType(
    {
        "Q4_0": _uniform(32, _plain, 4, 8),
        "Q4_1": _uniform(32, _with_minimum, 4, 0),
        "Q5_0": _uniform(32, _plain, 5, 16),
        "Q5_1": _uniform(32, _with_minimum, 5, 0),
        "Q8_0": _bytes(32, _plain),
        "Q8_1": _bytes(32, _plain),
        "Q2_K": _uniform(16, _q2_k, 2, 0),
        "Q3_K": _uniform(16, _less_32, 3, 4),
        "Q4_K": _uniform(32, _k, 4, 0),
        "Q5_K": _uniform(32, _k, 5, 0),
        "Q6_K": _uniform(16, _signed, 6, 32),
        "Q8_K": _bytes(256, _q8_k),
        "IQ2_XXS": Meaning(32, lambda n: _eighths(0.25, n["signs"] >> 28, n), _iq2_xxs),
        "IQ2_XS": Meaning(16, lambda n: _eighths(0.25, _nibbles(n["scales"]), n), _iq2_xs),
        "IQ3_XXS": Meaning(32, lambda n: _eighths(0.5, n["signs"] >> 28, n), _iq3_xxs),
        "IQ1_S": Meaning(32, _iq1_s, _iq1_s_entries),
        "IQ4_NL": Meaning(32, _plain, _table(*IQ4)),
        "IQ3_S": Meaning(32, lambda n: _eighths(2, _nibbles(n["scales"]), n), _iq3_s),
        "IQ2_S": Meaning(16, lambda n: _eighths(0.25, _nibbles(n["scales"]), n), _iq2_s),
        "IQ4_XS": Meaning(32, _less_32, _table(*IQ4)),
        "IQ1_M": Meaning(16, _iq1_m, _iq1_m_entries),
        "TQ1_0": Meaning(256, _plain, _tq1_0),
        "TQ2_0": _uniform(256, _plain, 2, 1),
        "MXFP4": Meaning(32, _mxfp4, _table(*E2M1)),
        "NVFP4": Meaning(16, _nvfp4, _table(*E2M1)),
        "Q1_0": Meaning(128, _plain, _table(-1, 1)),
    }
)

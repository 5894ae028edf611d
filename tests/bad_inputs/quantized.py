"""Faults of quantized and sparse parts: of their documents, and of payloads whose checksums hold."""

from collections.abc import Callable
from typing import Any

import numpy as np
import zstandard
from forge import Forged

from bad_inputs import Case
from bad_inputs.nodes import about, both, chunks, doc, part
from bad_inputs.root import MISSING
from mzstore.errors import CorruptError, FormatError, UnsupportedError
from mzstore.payload import seal

HUGE = 1 << 26


def sparse(name: str, to: Any = MISSING) -> Callable[[Forged], None]:
    """A member of the second part of "grouped"."""

    def spoil(forged: Forged) -> None:
        second = forged.tensor("grouped")["parts"][1]
        if to is MISSING:
            del second[name]
        else:
            second[name] = to

    return spoil


def array(node: str, shape: list[int], chunk_shape: list[int]) -> Callable[[Forged], None]:
    """The array at ``node`` of another shape, in other chunks."""
    return both(doc(node, "shape", shape), chunks(node, chunk_shape))


def body(key: str, data: bytes) -> Callable[[Forged], None]:
    def spoil(forged: Forged) -> None:
        forged.payloads[key] = seal(zstandard.compress(data))

    return spoil


def gone(node: str) -> Callable[[Forged], None]:
    def spoil(forged: Forged) -> None:
        del forged.nodes[node]

    return spoil


def parts(change: Callable[[list[Any]], Any], node: str = "grouped") -> Callable[[Forged], None]:
    def spoil(forged: Forged) -> None:
        forged.tensor(node)["parts"] = change(forged.tensor(node)["parts"])

    return spoil


def wide(forged: Forged) -> None:
    """A document of a few bytes that claims a chunk of 2^32 values: 2^26 bytes of codes stand for them."""
    forged.tensor("codes")["shape"] = [1, 64 * HUGE]
    forged.part("codes").update(levels=2, per_byte=8, chunk_shape=[1, 8 * HUGE])
    array("codes", [1, 8 * HUGE], [1, HUGE])(forged)


def tall(forged: Forged) -> None:
    """Chunks of more rows on an axis than the tensor has, and so than there are scales: 2016 beyond the last one."""
    forged.tensor("grouped")["shape"] = [64, 1, 64]
    forged.part("grouped").update(chunk_shape=[64, 32, 64], scales=[{"block": [1, 1, 64], "dtype": "float16"}])
    forged.part("grouped").pop("zero_point")
    forged.tensor("grouped")["parts"].pop()
    for name in ("zero_point", "2.positions", "2.values"):
        del forged.nodes[f"grouped/{name}"]
    for key in [key for key in forged.payloads if key.startswith("grouped/")]:
        del forged.payloads[key]
    array("grouped/codes", [64, 1, 64], [64, 32, 64])(forged)
    array("grouped/scale", [64, 1, 1], [64, 1, 1])(forged)
    body("grouped/codes/c/0/0/0", bytes(64 * 32 * 64))(forged)
    body("grouped/scale/c/0/0/0", np.ones(64, np.float16).tobytes())(forged)


def dense(forged: Forged) -> None:
    """Room for 2^26 positions, each of which takes eight bytes once it is unpacked, in a chunk of 16 values."""
    array("grouped/2.positions", [1, 2, HUGE], [1, 1, HUGE])(forged)


NO_FLOAT32 = "is not a number of float32"
NO_INTEGERS = "is not a list of integers >= 0"
UNKNOWN = "are unknown; upgrade"
BLOCK = "blocks of"

CASES = [
    # Codes
    Case("levels 0", part("codes", "levels", 0), FormatError, "0 levels"),
    Case("no levels", part("codes", "levels"), FormatError, NO_INTEGERS),
    Case("levels 2**62", part("codes", "levels", 2**62), FormatError, "4611686018427387904 levels"),
    Case("levels of 4,000 digits", part("codes", "levels", 10**4000), FormatError, "levels"),
    Case("levels 15 of 16", part("codes", "levels", 15), FormatError, "2 codes in a byte have 16 levels"),
    Case("per_byte 7", part("codes", "per_byte", 7), FormatError, "7 codes in a byte"),
    Case("per_byte 2**62", part("codes", "per_byte", 2**62), FormatError, "codes in a byte"),
    Case("per_byte left out", part("codes", "per_byte"), FormatError, "'codes' is uint8"),
    Case(
        "per_byte and neighbours",
        both(part("pairs", "per_byte", 2), part("pairs", "levels", 16)),
        FormatError,
        "2 codes",
    ),
    Case("low_bits 9", part("pairs", "low_bits", 9), FormatError, "9 low bits"),
    Case("low_bits of others", part("codes", "low_bits", 1), FormatError, "no low bits"),
    Case("no array of low bits", gone("pairs/low"), FormatError, "no array 'low'"),
    Case("no array of codes", gone("pairs/codes"), FormatError, "no array 'codes' among"),
    Case("chunks of 0", part("codes", "chunk_shape", [0, 6]), FormatError, "do not fit"),
    Case("chunks of one axis", part("codes", "chunk_shape", [12]), FormatError, "do not fit"),
    Case("chunks of 2**62", part("codes", "chunk_shape", [2**62, 6]), FormatError, "have more than 67108864 bytes"),
    Case("chunks that stand for too much", wide, FormatError, "have more than 67108864 bytes"),
    Case("chunks of more rows than the tensor", tall, FormatError, "have more rows than the tensor of"),
    Case("codes of 2**62 bytes", doc("codes", "shape", [2**62, 3]), FormatError, "larger than|'codes' is uint8"),
    Case(
        "code of nothing",
        body("grouped/codes/c/0/1", bytes([*range(15), 100])),
        CorruptError,
        "code 100, where there are 100",
    ),
    Case(
        "code of nothing with low bits",
        body("pairs/codes/c/0/0", bytes([0, 150, 3, 75, 1, 1])),
        CorruptError,
        "code 30[01]",
    ),
    Case(
        "bytes of other codes",
        both(
            part("codes", "levels", 6),
            part("codes", "per_byte", 3),
            array("codes", [4, 2], [2, 2]),
            body("codes/c/0/0", bytes([216] * 4)),
        ),
        CorruptError,
        "byte 216 holds no 3 codes",
    ),
    Case("integers are quantized", about("codes", "dtype", "int16"), FormatError, "a tensor of int16"),
    Case(
        "nothing is quantized",
        both(about("codes", "shape", [0, 6]), array("codes", [0, 3], [2, 3])),
        FormatError,
        "is not quantized",
    ),
    # Entries
    Case("zero point 2**62", part("codes", "zero_point", 2**62), FormatError, "zero point 4611686018427387904"),
    Case(
        "zero point a list", part("codes", "zero_point", [8]), FormatError, "not an integer, and there is no such array"
    ),
    Case("zero points without an array", gone("grouped/zero_point"), FormatError, "there is no such array"),
    Case(
        "zero points of floats",
        doc("grouped/zero_point", "data_type", "float32"),
        FormatError,
        "numbers of float32 for blocks",
    ),
    Case(
        "zero points of one block", part("grouped", "zero_point", {"block": [4, 8]}), FormatError, "'blocks' is uint8"
    ),
    Case("codebook twice", part("pairs", "codebook", [0.5] * 300), FormatError, "or there is an array as well"),
    Case("codebook of 10,000", part("codes", "codebook", [0.5] * 10_000), FormatError, "not a list of at most 256"),
    Case(
        "codebook of 4,000 digits",
        both(part("codes", "zero_point"), part("codes", "codebook", [10**4000] * 16)),
        FormatError,
        NO_FLOAT32,
    ),
    Case(
        "codebook of doubles",
        both(part("codes", "zero_point"), part("codes", "codebook", [0.1] * 16)),
        FormatError,
        NO_FLOAT32,
    ),
    Case(
        "codebook and zero point",
        part("codes", "codebook", [0.5] * 16),
        FormatError,
        "both a codebook and a zero point",
    ),
    Case("codebook of few", array("pairs/codebook", [299, 2], [299, 2]), FormatError, "a codebook of float32"),
    Case(
        "codebook of 2**24 neighbours",
        array("pairs/codebook", [1, 1 << 24], [1, 1 << 24]),
        FormatError,
        "a codebook of float32",
    ),
    Case(
        "codebook with NaN",
        body("pairs/codebook/c/0/0", np.full(600, np.nan, np.float32).tobytes()),
        CorruptError,
        "'codebook' holds NaN",
    ),
    # Scales
    Case("scales an object", part("grouped", "scales", {"block": [1, 2]}), FormatError, "not a list of at most 4"),
    Case("10,000 scales", part("codes", "scales", [0.5] * 10_000), FormatError, "not a list of at most 4"),
    Case("scale 1e39", part("codes", "scales", [1e39]), FormatError, NO_FLOAT32),
    Case("scale of 4,000 digits", part("codes", "scales", [10**4000]), FormatError, NO_FLOAT32),
    Case("scale true", part("codes", "scales", [True]), FormatError, NO_FLOAT32),
    Case(
        "scale of no array",
        part("codes", "scales", [{"block": [1, 2], "dtype": "float16"}]),
        FormatError,
        "no block with an array",
    ),
    Case(
        "scale of another dtype",
        part("grouped", "scales", [{"block": [1, 2], "dtype": "float64"}]),
        FormatError,
        "numbers of float64",
    ),
    Case("blocks of 0", part("grouped", "scales", [{"block": [1, 0], "dtype": "float16"}]), FormatError, BLOCK),
    Case("blocks of 3 axes", part("grouped", "scales", [{"block": [1, 2, 1], "dtype": "float16"}]), FormatError, BLOCK),
    Case("blocks of 2**62", part("grouped", "scales", [{"block": [1, 2**62], "dtype": "float16"}]), FormatError, BLOCK),
    Case(
        "blocks that chunks cut", part("grouped", "scales", [{"block": [1, 3], "dtype": "float16"}]), FormatError, BLOCK
    ),
    Case("scales of another shape", array("grouped/scale", [4, 5], [4, 2]), FormatError, "'blocks' is float16"),
    Case(
        "scale infinite",
        body("grouped/scale/c/0/1", np.full(8, np.inf, np.float16).tobytes()),
        CorruptError,
        "'scale' holds NaN or inf",
    ),
    Case("scale missing", lambda f: f.payloads.pop("grouped/scale/c/0/1") and None, CorruptError, "is missing"),
    Case(
        "scales of too few bytes", body("grouped/scale/c/0/1", b"ab"), CorruptError, "holds 2 bytes, the chunk has 16"
    ),
    Case(
        "a component of nothing",
        lambda f: f.nodes.update({"grouped/more": f.nodes["grouped/scale"]}),
        FormatError,
        "'more' is none of its",
    ),
    # Several parts
    Case("parts in another order", parts(lambda p: p[::-1]), FormatError, "no array 'codes' among"),
    Case("quantized twice", parts(lambda p: [p[0], p[0]]), FormatError, "no array 'codes' among"),
    Case("5 parts", parts(lambda p: [p[0], *[p[1]] * 4]), UnsupportedError, UNKNOWN),
    Case(
        "4 parts of the arrays of 2",
        parts(lambda p: [p[0], *[p[1]] * 3]),
        FormatError,
        "no array 'positions' among",
    ),
    Case("sparse left out", parts(lambda p: p[:1]), FormatError, "'2.positions' is none of its components"),
    Case(
        "sparse in one array",
        parts(lambda p: [*p, {"encoding": "sparse", "chunk_shape": [2, 6]}], "codes"),
        FormatError,
        "no array 'positions' among",
    ),
    Case("parts of other chunks", sparse("chunk_shape", [4, 5]), FormatError, "chunks of different shapes"),
    Case(
        "sparse of another dtype",
        both(sparse("dtype", "bfloat16"), doc("grouped/2.values", "data_type", "uint16")),
        FormatError,
        "one of several parts is of another dtype",
    ),
    Case("sparse of chunks of 0", sparse("chunk_shape", [4, 0]), FormatError, "do not fit"),
    Case(
        "sparse of chunks of 2**62", sparse("chunk_shape", [4, 2**62]), FormatError, "does not hold the words of shape"
    ),
    Case("sparse without chunks", sparse("chunk_shape"), FormatError, NO_INTEGERS),
    Case(
        "room for no position",
        array("grouped/2.positions", [1, 2, 0], [1, 1, 1]),
        FormatError,
        "0 bytes of positions for 16 places",
    ),
    Case("room for 2**26 positions", dense, FormatError, "67108864 bytes of positions for 16 places"),
    Case("room for 17 values", array("grouped/2.values", [1, 2, 17], [1, 1, 17]), FormatError, "room for 17"),
    Case(
        "positions in pieces", array("grouped/2.positions", [1, 2, 3], [1, 1, 2]), FormatError, "'positions' is uint8"
    ),
    Case(
        "position beyond",
        body("grouped/2.positions/c/0/0/0", bytes([6, 9, 255])),
        CorruptError,
        r"2 positions up to 16",
    ),
    Case(
        "position far beyond",
        body("grouped/2.positions/c/0/0/0", bytes([255, 255, 0])),
        CorruptError,
        "1 positions up to 510",
    ),
    Case(
        "more positions than values",
        body("grouped/2.positions/c/0/0/0", bytes([0, 0, 0])),
        CorruptError,
        "3 positions up to -?[0-9]+, in a chunk of 16 places with room for 2",
    ),
    Case("lossy a list", about("codes", "lossy", []), FormatError, "'lossy' is not an object"),
]

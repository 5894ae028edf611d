"""Faults of sparse parts, of factors, of parts inside of others, and of parts that are combined."""

from collections.abc import Callable
from typing import Any

import numpy as np
from forge import Forged

from bad_inputs import Case
from bad_inputs.nodes import about, both, doc, part
from bad_inputs.quantized import HUGE, UNKNOWN, array, body, gone, parts
from bad_inputs.root import MISSING
from bad_inputs.root import about as root
from mzstore.errors import CorruptError, FormatError, UnsupportedError


def nested(node: str, member: str, name: str, to: Any = MISSING) -> Callable[[Forged], None]:
    """A member of the part inside of the first part of ``node``."""

    def spoil(forged: Forged) -> None:
        inner = forged.part(node)[member]
        if to is MISSING:
            del inner[name]
        else:
            inner[name] = to

    return spoil


def named(old: str, new: str) -> Callable[[Forged], None]:
    """An array, and all its chunks, under another name."""

    def spoil(forged: Forged) -> None:
        forged.nodes[new] = forged.nodes.pop(old)
        for key in [key for key in forged.payloads if key.startswith(f"{old}/")]:
            forged.payloads[new + key[len(old) :]] = forged.payloads.pop(key)

    return spoil


def base(**more: Any) -> Callable[[Forged], None]:
    """The tensor "xor", whose first part is in another model instead."""

    def spoil(forged: Forged) -> None:
        forged.about["bases"] = [{"url": "elsewhere.mz"}]
        about_ = forged.tensor("xor")
        about_["parts"] = [{"encoding": "base", "base": 0, "tensor": "w", "sha256": "0" * 64} | more]
        for name in ("planes", "2.values"):
            del forged.nodes[f"xor/{name}"]
        for key in [key for key in forged.payloads if key.startswith("xor/")]:
            del forged.payloads[key]

    return spoil


MANY = 1 << 22


def large(forged: Forged) -> None:
    """A bitmap of 2^22 places, all taken, in a chunk with room for one value: all positions would take 2^25 bytes."""
    forged.tensor("bitmap").update(dtype="uint8", shape=[1, MANY])
    forged.tensor("bitmap")["parts"] = [{"encoding": "sparse", "chunk_shape": [1, MANY], "index": "bitmap"}]
    for node, extent in (("bitmap/positions", MANY // 8), ("bitmap/values", 1)):
        array(node, [1, 1, extent], [1, 1, extent])(forged)
        doc(node, "data_type", "uint8")(forged)
    for key in [key for key in forged.payloads if key.startswith("bitmap/")]:
        del forged.payloads[key]
    body("bitmap/positions/c/0/0/0", b"\xff" * (MANY // 8))(forged)
    body("bitmap/values/c/0/0/0", b"\7")(forged)


def far(forged: Forged) -> None:
    """2^32 places are passed, which 32 bits do not tell from none."""
    passed = 255 << 8
    forged.tensor("far").update(shape=[1, 1 << 20])
    forged.part("far")["chunk_shape"] = [1, 1 << 20]
    count = -(-(1 << 32) // passed) + 1
    array("far/positions", [1, 1, count], [1, 1, count])(forged)
    room = forged.nodes["far/values"]["shape"][-1]
    body("far/positions/c/0/0/0", b"\xff" * (count - 1) + b"\0")(forged)
    body("far/low/c/0/0/0", bytes(room))(forged)


NO_PART = "is no part that can be inside of another one"
NO_INTEGERS = "is not a list of integers >= 0"

CASES = [
    # Positions
    Case("place beyond in blocks", body("blocks/positions/c/0/0/0", b"\4\xff\xff\xff"), CorruptError, "positions up to 4|the chunk has"),
    Case("place beyond by low bits", body("far/positions/c/0/0/0", bytes([3] * 6)), CorruptError, "positions up to|the chunk has"),
    Case("places beyond 32 bits", far, CorruptError, "1 positions up to 4295"),
    Case("bitmap of other chunks", part("bitmap", "chunk_shape", [2, 7]), FormatError, "'codes' is uint8"),
    Case("bitmap of more bits than room", body("bitmap/positions/c/0/0/0", b"\xff\xff"), CorruptError, "positions up to 15, in a chunk of 16"),
    Case("bitmap of 2**22 places", large, CorruptError, "positions up to .*, in a chunk of 4194304 places with room for 1"),
    Case("pattern's byte too large", body("pattern/positions/c/0/0/0", b"\xd8\0"), CorruptError, "216 in the chunk is no 3 combinations"),
    Case("index a list", part("bitmap", "index", ["bitmap"]), FormatError, "index .* is not a string"),
    Case("index unknown", part("bitmap", "index", "runs"), FormatError, "index 'runs' is none of"),
    Case("bitmap taken for gaps", part("bitmap", "index"), CorruptError, "in a chunk of 16 places"),
    Case("low bits 2**62", part("far", "low_bits", 2**62), FormatError, "low bits of gaps"),
    Case("low bits left out", part("far", "low_bits"), FormatError, "array of low bits, of which there are none"),
    Case("no array of low bits", gone("far/low"), FormatError, "no array 'low'"),
    Case("low bits of 2**26 elements", array("far/low", [1, 1, HUGE], [1, 1, HUGE]), FormatError, "'low' is uint8"),
    Case("pattern of 2**62", part("pattern", "pattern", [2, 2**62]), FormatError, "m is at most 8"),
    Case("pattern of fractions", part("pattern", "pattern", [2.0, 4]), FormatError, NO_INTEGERS),
    Case("pattern null", part("gaps", "pattern", None), FormatError, NO_INTEGERS),
    Case("pattern of another room", part("pattern", "pattern", [1, 4]), FormatError, "with the pattern"),
    Case("block of 2**62", part("blocks", "block", [2, 2**62]), FormatError, "do not fit chunks"),
    Case("block of 0", part("blocks", "block", [0, 2]), FormatError, "do not fit chunks"),
    Case("block of one number", part("blocks", "block", [2]), FormatError, "not two integers"),
    Case("chunks of 2**40", part("gaps", "chunk_shape", [2**40, 8]), FormatError, "does not hold the words of shape"),
    Case("chunks of 4,000 digits", part("gaps", "chunk_shape", [10**4000, 8]), FormatError, "does not hold the words of shape"),
    Case("room 2**40", part("gaps", "room", 2**40), FormatError, "does not hold the words"),
    Case("room 2**40 in the array", both(part("blocks", "room", 2**40), doc("blocks/values.codes", "shape", [2, 1, 2**40])), FormatError, "FORMAT.md (sparse|lowrank|tucker|tensor|array)-"),
    Case("room 0", part("blocks", "room", 0), FormatError, "FORMAT.md (sparse|lowrank|tucker|tensor|array)-"),
    Case("room of 4,000 digits", part("blocks", "room", 10**4000), FormatError, "FORMAT.md (sparse|lowrank|tucker|tensor|array)-"),
    Case("room left out", part("blocks", "room"), FormatError, "does not say how many values"),
    Case("positions of 2**60 chunks", doc("gaps/positions", "shape", [2**60, 1, 1]), FormatError, "'positions' is|larger than"),
    Case("tensor of 2**60 rows", about("gaps", "shape", [2**58, 8]), FormatError, "does not hold the words"),
    Case("sparse in one array", parts(lambda p: [{"encoding": "sparse", "chunk_shape": [2, 6]}], "codes"), FormatError, "no array 'positions'"),
    Case("one chunk of 2**40", both(about("gaps", "shape", [2, 8]), part("gaps", "chunk_shape", [2**40, 8]), *(doc(f"gaps/{n}", "shape", [1, 1, m]) for n, m in (("positions", 7), ("values", 9)))), FormatError, "at most 67108864 bytes"),
    # Inside
    Case("values null", part("blocks", "values", None), FormatError, NO_PART),
    Case("values of a list", nested("blocks", "values", "encoding", ["raw"]), FormatError, NO_PART),
    Case("values sparse", nested("blocks", "values", "encoding", "sparse"), FormatError, NO_PART),
    Case("values of lists of dtypes", nested("blocks", "values", "dtype", ["float32"]), FormatError, "is unknown"),
    Case("values of another dtype", both(part("gaps", "values", {"encoding": "raw", "dtype": "int16"}), part("gaps", "room", 2), doc("gaps/values", "data_type", "int16")), FormatError, "FORMAT.md (sparse|lowrank|tucker|tensor|array)-"),
    Case("values constant", array("gaps/values", [1, 1, 1], [1, 1, 1]), FormatError, "FORMAT.md (sparse|lowrank|tucker|tensor|array)-"),
    Case("values under another name", named("bitmap/values", "bitmap/values.codes"), FormatError, "not named as such"),
    Case("values under an empty name", named("bitmap/values", "bitmap/values."), FormatError, "'values.' is none of its components"),
    Case("values in two forms", lambda f: f.nodes.update({"bitmap/values.codes": f.nodes["bitmap/values"]}), FormatError, "both 'values' and 'values.codes' are arrays"),
    Case("code of nothing inside", body("blocks/values.codes/c/0/0/0", b"\x09" * 100), CorruptError, "the chunk has|code 9"),
    Case("scale with NaN inside", body("blocks/values.scale/c/0/0/0", np.full(1, np.nan, np.float16).tobytes()), CorruptError, "'scale' holds NaN"),
    Case("chunks of values of 2**62", nested("blocks", "values", "chunk_shape", [1, 1, 2**62]), FormatError, "have more than 67108864 bytes"),
    # Factors
    Case("rank 0", part("product", "rank", 0), FormatError, "do not fit"),
    Case("rank 2**60", part("product", "rank", 2**60), FormatError, "FORMAT.md (sparse|lowrank|tucker|tensor|array)-"),
    Case("rank of 4,000 digits", part("product", "rank", 10**4000), FormatError, "FORMAT.md (sparse|lowrank|tucker|tensor|array)-"),
    Case("no rank", part("product", "rank"), FormatError, NO_INTEGERS),
    Case("no right", part("product", "right"), FormatError, NO_PART),
    Case("right of the left", part("product", "right", {"encoding": "lowrank"}), FormatError, NO_PART),
    Case("scale of 4,000 digits", part("product", "scale", 10**4000), FormatError, "is not a number of float32"),
    Case("scale 1e300", part("product", "scale", 1e300), FormatError, "is not a number of float32"),
    Case("scale null", part("product", "scale", None), FormatError, "is no number"),
    Case("product in chunks of 2**40", part("product", "chunk_shape", [2**40, 8]), FormatError, "FORMAT.md (sparse|lowrank|tucker|tensor|array)-"),
    Case("product of 2**60 rows", about("product", "shape", [2**58, 8]), FormatError, "FORMAT.md (sparse|lowrank|tucker|tensor|array)-"),
    Case("product of integers", about("product", "dtype", "int16"), FormatError, "is no product of floats"),
    Case("left in other chunks", array("product/right", [2, 8], [2, 4]), FormatError, "'right' has the shape"),
    Case("right missing", lambda f: f.payloads.pop("product/right/c/0/0") and None, CorruptError, "is missing"),
    Case("ranks of 2**60", part("core", "ranks", [2**60, 3, 2]), FormatError, "FORMAT.md (sparse|lowrank|tucker|tensor|array)-"),
    Case("ranks of text", part("core", "ranks", "222"), FormatError, NO_INTEGERS),
    Case("factors an object", part("core", "factors", {}), FormatError, "no list with one for each"),
    Case("core null", part("core", "core", None), FormatError, NO_PART),
    Case("no core", part("core", "core"), FormatError, "'core' is none of its components"),
    Case("outer products of 2**60", part("outer", "ranks", [2**60] * 3), FormatError, "FORMAT.md (sparse|lowrank|tucker|tensor|array)-"),
    # Combined
    Case("5 parts", parts(lambda p: [*p, *p][:5], "sum"), UnsupportedError, UNKNOWN),
    Case("combined in an unknown way", parts(lambda p: [p[0], p[1] | {"combine": "times"}], "xor"), UnsupportedError, UNKNOWN),
    Case("combined in a list of ways", parts(lambda p: [p[0], p[1] | {"combine": ["xor"]}], "xor"), UnsupportedError, UNKNOWN),
    Case("combined in no way", parts(lambda p: [p[0], {"encoding": "raw"}], "xor"), FormatError, "not said how 'raw' changes"),
    Case("replaced by raw", parts(lambda p: [p[0], p[1] | {"combine": "replace"}], "xor"), FormatError, "replaces all values"),
    Case("xor of a sum", parts(lambda p: [p[0], p[1] | {"combine": "xor"}, p[2]], "sum"), FormatError, "'xor' combines two parts"),
    Case("first combined", parts(lambda p: [p[0] | {"combine": "add"}, *p[1:]], "sum"), FormatError, "nothing to be combined with"),
    Case("sum of integers", both(about("xor", "dtype", "int16"), parts(lambda p: [p[0], p[1] | {"combine": "add"}], "xor"), doc("xor/2.values", "data_type", "int16")), FormatError, "values of int16 are not added"),
    Case("array with a dot only", named("xor/2.values", "xor/2."), FormatError, "is one array|values"),
    Case("second part missing", lambda f: f.payloads.pop("xor/2.values/c/0/0") and None, CorruptError, "is missing"),
    # Bases
    Case("base beyond", base(base=1), FormatError, "base 1, where there are 1"),
    Case("base 2**62", base(base=2**62), FormatError, "where there are 1"),
    Case("base true", base(base=True), FormatError, NO_INTEGERS),
    Case("base of no digest", base(sha256="0"), FormatError, "not 64 hexadecimal digits"),
    Case("base of a list", base(tensor=["w"]), FormatError, "is not a string"),
    Case("base of a long name", base(tensor="ü" * 2049), FormatError, "bytes"),
    Case("bases an object", root("bases", {}), FormatError, "'bases' is not a list of at most 256"),
    Case("10,000 bases", root("bases", [{"url": "a"}] * 10_000), FormatError, "'bases' is not a list of at most 256"),
    Case("base without url", root("bases", [{}]), FormatError, "a base has no url"),
    Case("base with a zero", root("bases", [{"url": "a\0b"}]), FormatError, "a base has no url"),
    Case("base with half a character", root("bases", [{"url": "\ud800"}]), FormatError, "a base has no url"),
    Case("base with a long url", root("bases", [{"url": "a" * 4097}]), FormatError, "more than 4096 characters"),
]  # fmt: skip

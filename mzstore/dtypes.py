"""DType: the element types of tensors, and how their bits stand in storage.

Everything behind this module sees a tensor as an array of *words*: unsigned integers of 8 to 64 bits, of the
``word_shape`` that belongs to the tensor's shape (FORMAT.md section 4). Only here do names of NumPy, PyTorch and
safetensors occur.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import ml_dtypes
import numpy as np


@dataclass(frozen=True, slots=True, eq=False)  # there is one object for each type: DTYPES
class DType:
    """One element type. ``bits`` is the size of an element, ``numpy`` its type in memory.

    An element is one word, except that two 4-bit elements share a word (``packed``, low nibble first, every
    row begins a word) and a complex element is two words (``parts``: real, imaginary).
    """

    name: str
    bits: int
    numpy: np.dtype
    exponent_bits: int = 0  # of a float: how many bits follow the sign
    disk: str = ""  # Zarr data type of an array that holds the words as they are
    safetensors: str = ""
    torch: str = ""

    packed: bool = field(init=False, repr=False)
    parts: int = field(init=False, repr=False)  # words of one element
    word_bits: int = field(init=False, repr=False)
    word: np.dtype = field(init=False, repr=False)

    def __post_init__(self) -> None:
        parts = 2 if self.numpy.kind == "c" else 1
        word_bits = max(8, self.bits // parts)
        word = np.dtype(f"<u{word_bits // 8}")
        for name, value in (("packed", self.bits == 4), ("parts", parts), ("word_bits", word_bits), ("word", word)):
            object.__setattr__(self, name, value)

    @property
    def is_float(self) -> bool:
        """Whether it is a real float, a value to a word."""
        return "float" in self.name and not self.packed

    def __reduce__(self) -> tuple[object, ...]:
        return (_by_name, (self.name,))

    def word_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the words of a tensor of ``shape``."""
        if self.parts == 2:
            return (*shape, 2)
        if self.packed and shape:
            return (*shape[:-1], (shape[-1] + 1) // 2)
        return shape

    def to_words(self, array: np.ndarray) -> np.ndarray:
        """The words of ``array`` (of type ``numpy``, any strides), C-contiguous; a view where that is possible."""
        flat = np.ascontiguousarray(array).reshape(-1)
        if not self.packed:
            return flat.view(self.word).reshape(self.word_shape(array.shape))
        nibbles: np.ndarray = (flat.view(np.uint8) & 15).reshape(array.shape or (1,))
        *rows, last = array.shape or (1,)
        if last % 2:
            nibbles = np.concatenate([nibbles, np.zeros((*rows, 1), np.uint8)], axis=-1)
        words: np.ndarray = nibbles[..., 0::2] | (nibbles[..., 1::2] << 4)
        return words.reshape(self.word_shape(array.shape))

    def from_words(self, words: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """The array of ``shape`` whose C-contiguous words are given; a view, except of packed types."""
        if not self.packed:
            return words.reshape(-1).view(self.numpy).reshape(shape)
        pairs = np.stack([words & 15, words >> 4], axis=-1)
        nibbles = pairs.reshape(*words.shape[:-1], 2 * words.shape[-1])[..., : shape[-1]] if shape else pairs[:1]
        if self.name == "int4":  # ml_dtypes keeps an int4 sign-extended in its byte
            nibbles = (nibbles ^ 8) - 8
        return np.ascontiguousarray(nibbles).reshape(-1).view(self.numpy).reshape(shape)


def _table() -> Mapping[str, DType]:
    def plain(name: str, safetensors: str, torch: str = "") -> DType:
        numpy = np.dtype(name).newbyteorder("<")
        exponent = {"float16": 5, "float32": 8, "float64": 11}.get(name, 0)
        return DType(name, numpy.itemsize * 8, numpy, exponent, name, safetensors, torch or name)

    def small(name: str, bits: int, exponent: int, safetensors: str, torch: str) -> DType:
        numpy = np.dtype(getattr(ml_dtypes, name))
        return DType(name, bits, numpy, exponent, f"uint{max(8, bits)}", safetensors, torch)

    rows = [
        # A bool byte other than 0 and 1 must survive, so its words are uint8 on disk as well.
        DType("bool", 8, np.dtype(bool), 0, "uint8", "BOOL", "bool"),
        *(plain(f"int{n}", f"I{n}") for n in (8, 16, 32, 64)),
        *(plain(f"uint{n}", f"U{n}") for n in (8, 16, 32, 64)),
        *(plain(f"float{n}", f"F{n}") for n in (16, 32, 64)),
        small("bfloat16", 16, 8, "BF16", "bfloat16"),
        small("float8_e4m3fn", 8, 4, "F8_E4M3", "float8_e4m3fn"),
        small("float8_e4m3fnuz", 8, 4, "F8_E4M3FNUZ", "float8_e4m3fnuz"),
        small("float8_e5m2", 8, 5, "F8_E5M2", "float8_e5m2"),
        small("float8_e5m2fnuz", 8, 5, "F8_E5M2FNUZ", "float8_e5m2fnuz"),
        small("float8_e8m0fnu", 8, 0, "F8_E8M0", "float8_e8m0fnu"),  # no sign: nothing to rotate
        small("float4_e2m1fn", 4, 0, "F4", "float4_e2m1fn_x2"),
        small("int4", 4, 0, "", "int4"),
        small("uint4", 4, 0, "", "uint4"),
        DType("complex64", 64, np.dtype("<c8"), 8, "float32", "C64", "complex64"),
        DType("complex128", 128, np.dtype("<c16"), 11, "float64", "", "complex128"),
    ]
    return MappingProxyType({row.name: row for row in rows})


DTYPES = _table()
NUMPY_FLOATS = ("float16", "float32", "float64")
BY_SAFETENSORS = MappingProxyType({d.safetensors: d for d in DTYPES.values() if d.safetensors})
_BY_ANY_NAME = {d.torch: d for d in DTYPES.values() if d.torch} | dict(DTYPES)
BY_NUMPY = MappingProxyType({d.numpy: d for d in DTYPES.values()})


def cast(words: np.ndarray, source: DType, target: DType) -> np.ndarray:
    """The words of ``target`` for ``words`` of ``source``, as NumPy converts values: floats to the nearest, ties to even."""
    with np.errstate(over="ignore", invalid="ignore"):
        values = words.view(source.numpy)
        if source.name == "float64" and target.is_float and target.name not in NUMPY_FLOATS:
            values = _rounded_to_odd(values)
        return values.astype(target.numpy).view(target.word)


def _rounded_to_odd(values: np.ndarray) -> np.ndarray:
    """float64 as float32: what lies between two of them becomes the odd one.

    The types of ml_dtypes are made from float64 by way of float32. Rounding to the nearest there could make a tie of what is none;
    from the odd one all narrower types (2 bits and more) round as from the value itself (Boldo, Melquiond 2008).
    """
    found: np.ndarray = values.astype(np.float32)
    bits = found.view(np.uint32)
    bits -= (np.abs(found) > np.abs(values)).astype(np.uint32)  # towards zero
    bits |= (found != values) & ~np.isnan(values)
    return found


def check_cast(source: DType, target: DType) -> None:
    """Raises ValueError if values of ``source`` are not read as ``target``."""
    if source is target:
        return
    if source.packed or target.packed or source.parts > 1 or target.parts > 1:
        raise ValueError(
            f"values of {source.name} are not read as {target.name}; read them as they are, and convert then"
        )
    if (source.is_float and not target.is_float) or (target.name == "bool"):
        raise ValueError(f"values of {source.name} are not read as {target.name}, which cannot hold them")


def of(value: object) -> DType:
    """The DType that a user means: a name, a dtype of NumPy, ml_dtypes or PyTorch, or what NumPy takes for one."""
    if isinstance(value, DType):
        return value
    name = str(value).removeprefix("torch.") if type(value).__module__.partition(".")[0] == "torch" else value
    if isinstance(name, str) and name in _BY_ANY_NAME:
        return _BY_ANY_NAME[name]
    try:
        return BY_NUMPY[np.dtype(name).newbyteorder("<")]  # type: ignore[call-overload]
    except (TypeError, KeyError):
        raise ValueError(f"dtype {value!r} is none of {', '.join(DTYPES)}") from None


def _by_name(name: str) -> DType:
    return DTYPES[name]


def of_array(array: np.ndarray) -> DType:
    """The DType of a NumPy array, of either byte order. Raises ValueError for types that no tensor has."""
    try:
        return BY_NUMPY[array.dtype.newbyteorder("<")]
    except KeyError:
        raise ValueError(f"no tensor can have dtype {array.dtype}; one of {', '.join(DTYPES)}") from None

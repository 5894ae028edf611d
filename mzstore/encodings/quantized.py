"""Encoding ``quantized``: codes that stand for values, and what these are multiplied with (FORMAT.md section 8.4).

    value = table(code) * scale_1 * scale_2 ...        in float32, from left to right, then rounded to the dtype

where table(code) is code - zero_point, or codebook[code]. Codes of a small alphabet share a byte; of codes beyond 8 bits the
low bits, which hardly shrink, stand in an array of their own.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mzstore.arrays import Array, integers
from mzstore.dtypes import DTYPES, DType
from mzstore.encodings import Component
from mzstore.errors import CorruptError
from mzstore.grid import MAX_CHUNK_NBYTES, Grid
from mzstore.quantizers import MAX_DIMENSION, MAX_LEVELS, SCALE_DTYPES, Scale, Scheme, ZeroPoint
from mzstore.quantizers.decoding import BLOCK, DTYPES_OUT, Decoder, Local
from mzstore.quantizers.packing import BASES, packed_cols, per_byte, with_low
from mzstore.workspace import buffer

MAX_SCALES = 4
MAX_FLOAT32 = float(np.finfo(np.float32).max)
MAX_LISTED = 256  # numbers of a codebook that stand in the document
ZERO_POINT_DTYPES = ("uint8", "uint16")
STEP_VALUE_NBYTES = 24  # of a value in one step of the decoder: its code, and float32 before and after each product
_NO_LOCAL = Local()
KEPT = 8  # decoders with a codebook of their own, of 2 MB at most


@dataclass(frozen=True, slots=True)
class Blocked:
    """Numbers, one for each block of ``block`` values; blocks at the far edges are smaller."""

    block: tuple[int, ...]
    dtype: str  # of SCALE_DTYPES or ZERO_POINT_DTYPES
    array: Array


def blocked_array(grid: Grid, block: tuple[int, ...], data_type: str) -> Array:
    """The array of a Blocked over ``grid``. Raises ValueError if no chunk could find its own numbers in it."""
    lead = tuple(zip(block[:-1], grid.shape[:-1], strict=False))
    if len(block) != len(grid.shape) or not (
        len(block) == 2 or all(b == 1 for b, _ in lead) or all(b == n for b, n in lead)
    ):
        raise ValueError(f"blocks of {block} in a tensor of {grid.shape}")
    chunks = []
    for extent, n, c in zip(block, grid.shape, grid.chunk_shape, strict=True):
        if not 1 <= extent <= n or (extent < n and c < n and c % extent):
            raise ValueError(f"blocks of {block} do not fit chunks of {grid.chunk_shape} in a tensor of {grid.shape}")
        chunks.append(1 if extent >= n else -(-c // extent))
    shape = tuple(-(-n // extent) for n, extent in zip(grid.shape, block, strict=True))
    return Array(shape, tuple(chunks), data_type, zstd=True)


_kept: tuple[tuple[tuple[Component, ...], DType, Decoder], ...] = ()  # the last first


@dataclass(frozen=True, slots=True)
class Quantized:
    """``quantized`` bound to a tensor of floats. One that exists is valid; ValueError otherwise.

    levels      codes are 0 .. levels - 1
    per_byte    codes in a byte of ``codes``: a key of BASES, whose value the levels are where it is more than 1
    low_bits    bits of a code that stand in ``low``; those above them stand in ``codes``
    zero_point  of all codes, or of blocks; 0 where there is a codebook
    codebook    what the codes stand for: float32[levels], or [levels, d] for d neighbours on the last axis; None: uniform
    scales      numbers of float32, or blocks of them
    """

    dtype: DType
    grid: Grid
    levels: int
    codes: Array
    per_byte: int = 1
    low_bits: int = 0
    low: Array | None = None
    zero_point: int | Blocked = 0
    codebook: np.ndarray | Array | None = field(default=None, compare=False)
    scales: tuple[float | Blocked, ...] = ()
    components: tuple[Component, ...] = field(init=False, repr=False, compare=False)
    # By dtype, made when they are needed; shared with what ``into`` gives.
    _decoders: dict[str, Decoder] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        ndim = len(self.grid.shape)
        if self.dtype.name not in DTYPES_OUT or not ndim or 0 in self.grid.shape:
            raise ValueError(f"a tensor of {self.dtype.name} and shape {self.grid.shape} is not quantized")
        if self.grid.chunk_size * self.dtype.word.itemsize > MAX_CHUNK_NBYTES:
            raise ValueError(f"chunks of {self.grid.chunk_shape} values have more than {MAX_CHUNK_NBYTES} bytes")
        # The kernels look for the scale of a row by its place in the chunk; scales there have as many rows as the tensor.
        if any(c > n for c, n in zip(self.grid.chunk_shape[:-1], self.grid.shape[:-1], strict=True)):
            raise ValueError(f"chunks of {self.grid.chunk_shape} have more rows than the tensor of {self.grid.shape}")
        if not 1 <= self.levels <= MAX_LEVELS or not 0 <= self.low_bits <= 8 or self.per_byte not in BASES:
            raise ValueError(f"{self.levels} levels, {self.low_bits} low bits, {self.per_byte} codes in a byte")
        if self.per_byte > 1 and (self.low_bits or self.levels != BASES[self.per_byte]):
            raise ValueError(f"{self.per_byte} codes in a byte have {BASES[self.per_byte]} levels and no low bits")
        if self.levels > 256 << self.low_bits:
            raise ValueError(f"{self.levels} levels do not fit a byte and {self.low_bits} bits")
        if self.codebook is not None:
            self._check_codebook(self.codebook)
        d = self.dimension
        unit = d * self._codes_unit if self.grid.counts[-1] > 1 else d
        if self.grid.shape[-1] % d or self.grid.chunk_shape[-1] % unit:
            raise ValueError(
                f"chunks of {self.grid.chunk_shape} in {self.grid.shape} cut bytes or groups of {d} values"
            )
        if d > 1 and self.per_byte > 1:
            raise ValueError(f"{self.per_byte} codes in a byte, each of which stands for {d} values")
        self._check_array("codes", self.codes, packed_array(self.grid, d, self.per_byte))
        if self.low_bits:
            self._check_array("low", self.low, packed_array(self.grid, d, per_byte(1 << self.low_bits)))
        elif self.low is not None:
            raise ValueError("an array of low bits, of which there are none")
        components = [Component("codes", self.codes), *([Component("low", self.low)] if self.low else [])]
        for i, scale in enumerate(self.scales):
            if isinstance(scale, Blocked):
                self._check_blocked(scale, SCALE_DTYPES)
                components.append(Component(scale_name(i), scale.array))
            elif not math.isfinite(scale):
                raise ValueError(f"scale {scale!r} is not finite")
        if isinstance(self.zero_point, Blocked):
            self._check_blocked(self.zero_point, ZERO_POINT_DTYPES)
            components.append(Component("zero_point", self.zero_point.array))
        elif not -MAX_LEVELS <= self.zero_point <= MAX_LEVELS:
            raise ValueError(f"zero point {self.zero_point}")
        if isinstance(self.codebook, Array):
            components.append(Component("codebook", self.codebook))
        object.__setattr__(self, "components", tuple(components))
        object.__setattr__(self, "_decoders", {})

    @property
    def encoding(self) -> str:
        return "quantized"

    @property
    def dimension(self) -> int:
        """Values for one code."""
        return self.codebook.shape[1] if self.codebook is not None and len(self.codebook.shape) == 2 else 1

    @property
    def _codes_unit(self) -> int:
        """Chunks that are not alone on the last axis have a multiple of so many codes there."""
        return math.lcm(self.per_byte, per_byte(1 << self.low_bits) if self.low_bits else 1)

    def into(self, dtype: DType) -> "Quantized | None":
        near = dtype if dtype.name in DTYPES_OUT else DTYPES["float32"]
        if self.grid.chunk_size * near.word.itemsize > MAX_CHUNK_NBYTES:
            return None
        other = object.__new__(Quantized)  # as copy.copy would in ten times the time: nothing has to be checked again
        for name in Quantized.__slots__:
            object.__setattr__(other, name, getattr(self, name))
        object.__setattr__(other, "dtype", near)
        return other

    @property
    def scratch_nbytes(self) -> int:
        """Codes with their low bits, the rows between those that are wanted, and what one step of the decoder has."""
        values, cols = self.grid.chunk_size, self.grid.chunk_shape[-1]
        total = values * self.dtype.word.itemsize + STEP_VALUE_NBYTES * max(BLOCK, cols)
        if self.low_bits:  # in 16 bits; the low ones in a byte, twice, before they are there
            total += 4 * (values // self.dimension)
        for blocked in (*self.scales, self.zero_point):
            if isinstance(blocked, Blocked):  # in 32 bits, and spread over the chunk
                total += 5 * blocked.array.grid.chunk_size + 4 * values
        if isinstance(self.codebook, Array):
            total += 3 * self.codebook.chunk_nbytes
        return total

    def _check_codebook(self, codebook: np.ndarray | Array) -> None:
        if self.zero_point != 0:
            raise ValueError("both a codebook and a zero point")
        if isinstance(codebook, Array):
            one_chunk = codebook.chunk_shape == codebook.shape
            fits = codebook.data_type == "float32" and codebook.shape[:1] == (self.levels,) and one_chunk
            if not fits or any(not 2 <= n <= MAX_DIMENSION for n in codebook.shape[1:]) or len(codebook.shape) > 2:
                raise ValueError(f"a codebook of {codebook.data_type} {codebook.shape} for {self.levels} levels")
        elif codebook.shape != (self.levels,) or self.levels > MAX_LISTED or not np.isfinite(codebook).all():
            raise ValueError(f"a codebook of {codebook.shape} finite numbers for {self.levels} levels")

    def _check_array(self, name: str, array: Array | None, expected: Array) -> None:
        if array is None:
            raise ValueError(f"no array {name!r}")
        if (array.data_type, array.shape, array.chunk_shape) != (
            expected.data_type,
            expected.shape,
            expected.chunk_shape,
        ):
            raise ValueError(
                f"{name!r} is {array.data_type} {array.shape} in chunks of {array.chunk_shape}, "
                f"not {expected.data_type} {expected.shape} of {expected.chunk_shape}"
            )

    def _check_blocked(self, blocked: Blocked, dtypes: tuple[str, ...]) -> None:
        if blocked.dtype not in dtypes:
            raise ValueError(f"numbers of {blocked.dtype} for blocks: {', '.join(dtypes)} will do")
        self._check_array("blocks", blocked.array, blocked_array(self.grid, blocked.block, DTYPES[blocked.dtype].disk))

    def component_chunk(self, component: Component, chunk: tuple[int, ...]) -> tuple[int, ...]:
        if component.name in ("codes", "low"):
            return chunk
        if component.name == "codebook":
            return (0,) * len(component.array.shape)
        return tuple(0 if n == 1 else i for i, n in zip(chunk, component.array.grid.counts, strict=True))

    def to_json(self) -> dict[str, object]:
        doc: dict[str, object] = {
            "encoding": self.encoding,
            "levels": self.levels,
            "chunk_shape": list(self.grid.chunk_shape),
        }
        if self.per_byte > 1:
            doc["per_byte"] = self.per_byte
        if self.low_bits:
            doc["low_bits"] = self.low_bits
        if isinstance(self.zero_point, Blocked):
            doc["zero_point"] = {"block": list(self.zero_point.block)}
        elif self.zero_point:
            doc["zero_point"] = self.zero_point
        if isinstance(self.codebook, np.ndarray):
            doc["codebook"] = [float(value) for value in self.codebook]
        if self.scales:
            doc["scales"] = [
                {"block": list(scale.block), "dtype": scale.dtype} if isinstance(scale, Blocked) else scale
                for scale in self.scales
            ]
        return doc

    @classmethod
    def from_json(
        cls, doc: dict[str, Any], dtype: DType, shape: tuple[int, ...], arrays: dict[str, Array]
    ) -> "Quantized":
        """The part of ``doc`` over values of ``shape``; ``arrays`` are the arrays of its components."""
        (levels, per, low_bits) = integers([doc.get("levels"), doc.get("per_byte", 1), doc.get("low_bits", 0)])
        rest = dict(arrays)
        codes = rest.pop("codes", None)
        if codes is None:
            raise ValueError(f"no array 'codes' among {', '.join(arrays)}")
        scales = doc.get("scales", [])
        if not isinstance(scales, list) or len(scales) > MAX_SCALES:
            raise ValueError(f"'scales' is {scales!r:.200}, not a list of at most {MAX_SCALES}")
        book: np.ndarray | Array | None = rest.pop("codebook", None)
        if "codebook" in doc:
            listed = doc["codebook"]
            if book is not None or not isinstance(listed, list) or len(listed) > MAX_LISTED:
                raise ValueError(
                    f"'codebook' is {listed!r:.200}, not a list of at most {MAX_LISTED}, or there is an array as well"
                )
            book = np.array([_float32(number) for number in listed], np.float32)
        found = cls(
            dtype,
            Grid(shape, integers(doc.get("chunk_shape"))),
            levels,
            codes,
            per,
            low_bits,
            rest.pop("low", None),
            _zero_point(doc.get("zero_point", 0), rest),
            book,
            tuple(_scale(scale, scale_name(i), rest) for i, scale in enumerate(scales)),
        )
        if rest:
            raise ValueError(f"array {min(rest)!r} is none of its components")
        return found

    def decode(self, read: Callable[[int], np.ndarray], source: tuple[slice, ...], out: np.ndarray, where: str) -> None:
        def matrix(i: int) -> np.ndarray:
            """The chunk of component ``i``."""
            array = self.components[i].array
            return read(i).view(array.word).reshape(-1, array.chunk_shape[-1])

        codes = matrix(0)
        self._check_bytes(codes, where)
        if self.low_bits:
            codes = with_low(codes, matrix(1), self.low_bits)
        decoder, local = self._decoder_of(matrix, where), self._local(matrix, where)
        try:
            self._fill(decoder, codes, local, source, out)
        except ValueError as error:
            raise CorruptError(str(error), where=where, clause="quantized-5") from error

    def _local(self, matrix: Callable[[int], np.ndarray], where: str) -> Local:
        """The scales and zero points of a chunk, by ``matrix`` of each component."""
        first = 2 if self.low_bits else 1  # the component of the first scale that is one
        if len(self.components) == first:
            return _NO_LOCAL
        numbers = (
            matrix(i).view(DTYPES[blocked.dtype].numpy)
            for i, blocked in enumerate((b for b in (*self.scales, self.zero_point) if isinstance(b, Blocked)), first)
        )
        scales = tuple(
            _finite(scale_name(i), next(numbers).astype(np.float32), where)
            if isinstance(scale, Blocked)
            else _scheme_scale(scale)
            for i, scale in enumerate(self.scales)
        )
        return Local(scales, next(numbers).astype(np.int32) if isinstance(self.zero_point, Blocked) else None)

    def _decoder_of(self, matrix: Callable[[int], np.ndarray], where: str) -> Decoder:
        """The decoder of a chunk: one for all of them, unless the codebook has to be read."""
        if isinstance(self.codebook, Array):
            return self._decoder_with_array(self.codebook, matrix, where)
        found = self._decoders.get(self.dtype.name)
        if found is None:
            found = self._decoders[self.dtype.name] = self._new_decoder(self.codebook)
        return found

    def _decoder_with_array(self, codebook: Array, matrix: Callable[[int], np.ndarray], where: str) -> Decoder:
        """As ``_decoder_of``: some are kept, whatever number of tensors there is, so that not each chunk reads a codebook.

        They are those of ``components``, which only this part and what ``into`` makes of it have. The tuple that holds
        them is never changed but replaced: threads that do so at once lose a decoder, no more.
        """
        global _kept
        for components, dtype, decoder in _kept:
            if components is self.components and dtype is self.dtype:
                return decoder
        book = matrix(len(self.components) - 1).view(np.float32).reshape(codebook.shape).copy()
        decoder = self._new_decoder(_finite("codebook", book, where))
        _kept = ((self.components, self.dtype, decoder), *_kept[: KEPT - 1])
        return decoder

    def _fill(
        self, decoder: Decoder, codes: np.ndarray, local: Local, source: tuple[slice, ...], out: np.ndarray
    ) -> None:
        rows, steps = _rows(self.grid.chunk_shape, source)
        target = _as_matrix(out)
        if target is not None and rows.stop - rows.start == target.shape[0]:
            decoder.decode(codes, rows, source[-1], local, target)
            return
        # What is cut from several axes is no run of rows: decode those between as well, and leave them out.
        width = out.shape[-1]
        nbytes = (rows.stop - rows.start) * width * out.itemsize
        run = buffer("quantized rows", nbytes).view(out.dtype).reshape(-1, width)
        decoder.decode(codes, rows, source[-1], local, run)
        strides = (*(step * run.strides[0] for step in steps), out.itemsize)
        out[...] = np.lib.stride_tricks.as_strided(run, out.shape, strides)

    def _check_bytes(self, codes: np.ndarray, where: str) -> None:
        most = self.levels**self.per_byte if self.per_byte > 1 else 256
        if most < 256 and int(codes.max()) >= most:
            raise CorruptError(
                f"byte {int(codes.max())} holds no {self.per_byte} codes of {self.levels} levels",
                where=where,
                clause="quantized-5",
            )

    def _new_decoder(self, codebook: np.ndarray | None) -> Decoder:
        """For a chunk, which is a matrix of its own."""
        *lead, cols = self.grid.chunk_shape
        shape = (math.prod(lead), cols)

        def block(blocked: Blocked) -> tuple[int, int]:
            *heights, width = blocked.block
            height = 1 if all(n == 1 for n in heights) else heights[0] if len(heights) == 1 else shape[0]
            # A number for all of a row is the only one, also of a chunk that is wider than the tensor.
            return (min(height, shape[0]), cols if width == self.grid.shape[-1] else min(width, cols))

        scales = tuple(
            Scale(block(scale), scale.dtype)
            if isinstance(scale, Blocked)
            else Scale(shape, "float32", _scheme_scale(scale))
            for scale in self.scales
        )
        zero = (
            ZeroPoint(block(self.zero_point), self.zero_point.dtype)
            if isinstance(self.zero_point, Blocked)
            else self.zero_point
        )
        return Decoder(Scheme(shape, self.levels, zero, codebook, scales), self.per_byte, self.dtype.name)


def _scheme_scale(scale: float) -> np.ndarray:
    return np.array([[scale]], np.float32)


def _rows(chunk_shape: tuple[int, ...], source: tuple[slice, ...]) -> tuple[slice, list[int]]:
    """Of a chunk as a matrix, the rows from the first to the last one that ``source`` cuts; and the rows between two
    positions of each axis but the last one."""
    first = last = 0
    steps: list[int] = []
    for cut, n in zip(source[:-1], chunk_shape[:-1], strict=True):
        first, last = first * n + cut.start, last * n + cut.stop - 1
        steps = [*(step * n for step in steps), 1]
    return slice(first, last + 1), steps


def _as_matrix(out: np.ndarray) -> np.ndarray | None:
    """``out`` with all axes but the last one as rows; None where its memory does not allow that."""
    if out.flags.c_contiguous:
        return out.reshape(-1, out.shape[-1])
    if all(n == 1 for n in out.shape[:-2]):
        return out[(0,) * (out.ndim - 2)] if out.ndim > 1 else out[None]
    return None


def _finite(name: str, values: np.ndarray, where: str) -> np.ndarray:
    """``values``, none of which is NaN or infinity. Raises CorruptError otherwise."""
    if not np.isfinite(values).all():
        raise CorruptError(f"{name!r} holds NaN or infinity", where=where, clause="quantized-7")
    return values


@functools.lru_cache(256)  # most tensors of a model are laid out as another one of it
def packed_array(grid: Grid, dimension: int, n: int) -> Array:
    """The array of the codes of ``grid``, one for ``dimension`` values of the last axis, ``n`` to a byte."""
    *lead, cols = grid.shape
    *chunk_lead, chunk_cols = grid.chunk_shape
    width = packed_cols(-(-chunk_cols // dimension), n)
    # Chunks that are alone on the last axis are as wide as it, or wider.
    total = packed_cols(cols // dimension, n)
    return Array((*lead, total), (*chunk_lead, width), "uint8", zstd=True)


def scale_name(i: int) -> str:
    """Name of the component of the scale with this index."""
    return f"scale-{i + 1}" if i else "scale"


def _zero_point(doc: object, arrays: dict[str, Array]) -> int | Blocked:
    array = arrays.pop("zero_point", None)
    if array is None:
        if type(doc) is not int:
            raise ValueError(f"'zero_point' is {doc!r:.100}, not an integer, and there is no such array")
        return doc
    match doc:
        case {"block": block}:
            return Blocked(integers(block), array.data_type, array)
    raise ValueError(f"'zero_point' is {doc!r:.100}, which has no block")


def _scale(doc: object, name: str, arrays: dict[str, Array]) -> float | Blocked:
    array = arrays.pop(name, None)
    match doc:
        case {"block": block, "dtype": str(dtype)} if array is not None:
            return Blocked(integers(block), dtype, array)
        case float() | int() if array is None:
            return _float32(doc)
    raise ValueError(f"scale {doc!r:.100} is no number, and no block with an array {name!r}")


def _float32(number: object) -> float:
    """A number of a document as it is in float32. Raises ValueError for what is none, or would be rounded."""
    if type(number) in (int, float) and abs(number) <= MAX_FLOAT32:  # type: ignore[arg-type]
        value = float(np.float32(number))  # type: ignore[arg-type]
        if value == number:
            return value
    raise ValueError(f"{number!r:.100} is not a number of float32")

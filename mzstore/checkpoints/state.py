"""State: nested containers of tensors and plain values, as JSON and a list of tensors, and back. Never pickle.

What comes back has the same types and the same order. JSON stands for itself where it can: null, booleans, strings, integers below
2^53, finite numbers, lists. Everything else is an object with one member that says what it is (FORMAT.md checkpoint-3).
"""

import base64
import math
import struct
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mzstore import frameworks
from mzstore.dtypes import DTYPES, of_array
from mzstore.errors import FormatError
from mzstore.tensors import check_name

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_DEPTH = 100  # containers in each other; each takes up to three levels of JSON
SAFE_INTEGER = 2**53  # larger ones are not the same number in every reader of JSON
SMALL_NBYTES = 4096  # longer bytes are tensors
MAX_DIGITS = 4000
TENSOR, PARAMETER = "torch.Tensor", "torch.nn.parameter.Parameter"
WHERE = "the state of a checkpoint"


def encode(state: object) -> tuple[Any, dict[str, Any]]:
    """(structure, tensors): ``state`` as JSON, and the arrays and tensors that it names, in their order.

    Raises TypeError or ValueError, naming the path in the state, for what is none of: dict with keys that are strings or integers,
    OrderedDict, list, tuple, NumPy array or scalar, tensor of PyTorch, bool, int, float, complex, str, bytes, None.
    """
    encoder = _Encoder()
    return encoder.encode(state, (), 0), encoder.tensors


def decode(structure: object, tensor: Callable[[str, str], Any], *, where: str = WHERE) -> Any:
    """The state again. ``tensor(name, framework)`` gives the tensors. Raises FormatError for what ``encode`` never makes."""
    try:
        return _Decoder(tensor).decode(structure, 0)
    except (ValueError, TypeError, KeyError, AttributeError, struct.error) as error:
        raise FormatError(f"a state that makes no sense: {error}", where=where, clause="checkpoint-3") from error


def tensors_of(structure: object) -> list[tuple[str, str]]:
    """(name, framework) of each tensor that ``structure`` names, in order."""
    found: list[tuple[str, str]] = []

    def note(name: str, framework: str) -> Any:
        found.append((name, framework))
        return np.zeros(0, np.uint8) if framework == "bytes" else None

    decode(structure, note)
    return found


class _Encoder:
    def __init__(self) -> None:
        self.tensors: dict[str, Any] = {}

    def encode(self, value: Any, path: tuple[Any, ...], depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise ValueError(f"{_shown(path)[:200]}...: containers are nested deeper than {MAX_DEPTH}, or in a circle")
        kind = type(value)
        if value is None or kind in (bool, str):
            return self._text(value, path) if kind is str else value
        if kind is int:
            return value if abs(value) < SAFE_INTEGER else {"int": _digits(value, path)}
        if kind is float:
            return value if math.isfinite(value) else {"float": struct.pack(">d", value).hex()}
        if kind is complex:
            return {"complex": struct.pack(">dd", value.real, value.imag).hex()}
        if kind is bytes:
            if len(value) <= SMALL_NBYTES:
                return {"bytes": base64.b64encode(value).decode()}
            return {"long_bytes": self._tensor(np.frombuffer(value, np.uint8), path)}
        if kind is list:
            return [self.encode(each, (*path, i), depth + 1) for i, each in enumerate(value)]
        if kind is tuple:
            return {"tuple": [self.encode(each, (*path, i), depth + 1) for i, each in enumerate(value)]}
        if kind is dict:
            return self._mapping("dict", value, path, depth)
        if kind is OrderedDict:
            return self._ordered(value, path, depth)
        if isinstance(value, np.generic):
            return self._scalar(value, path)
        if kind is np.ndarray:
            if not value.dtype.isnative:
                raise ValueError(f"{_shown(path)}: an array in the byte order of other machines; use array.astype")
            return {"array": self._tensor(value, path)}
        if frameworks.is_torch(value):
            return self._torch(value, path)
        raise TypeError(
            f"{_shown(path)}: an object of type {kind.__module__}.{kind.__qualname__} cannot be saved; a state is made of dicts, lists, "
            "tuples, tensors, numbers, strings, bytes, booleans and None"
        )

    def _text(self, value: str, path: tuple[Any, ...]) -> str:
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{_shown(path)}: a string that is not valid Unicode") from None
        return value

    def _mapping(self, kind: str, value: Mapping[Any, Any], path: tuple[Any, ...], depth: int) -> dict[str, Any]:
        """Keys that are all strings make an object, others a list of pairs, because JSON knows no other keys."""
        for key in value:
            if type(key) not in (str, int):
                raise TypeError(f"{_shown(path)}: the key {key!r:.100} is neither a string nor an integer")
        inner = [
            (self.encode(key, path, depth), self.encode(each, (*path, key), depth + 1)) for key, each in value.items()
        ]
        if all(type(key) is str for key in value):
            return {kind: dict(inner)}
        return {f"{kind}_items": [list(pair) for pair in inner]}

    def _ordered(self, value: "OrderedDict[Any, Any]", path: tuple[Any, ...], depth: int) -> dict[str, Any]:
        doc = self._mapping("ordered", value, path, depth)
        # ``state_dict`` of PyTorch's modules has the versions of its modules in an attribute, which loading asks for.
        attributes = vars(value)
        if attributes.keys() - {"_metadata"}:
            raise TypeError(f"{_shown(path)}: an OrderedDict with attributes: {', '.join(sorted(attributes))}")
        if attributes:
            doc["metadata"] = self.encode(attributes["_metadata"], (*path, "_metadata"), depth + 1)
        return doc

    def _scalar(self, value: np.generic, path: tuple[Any, ...]) -> dict[str, Any]:
        try:
            dtype = of_array(np.asarray(value))
        except ValueError:
            raise TypeError(f"{_shown(path)}: a scalar of {value.dtype} cannot be saved") from None
        return {"scalar": value.tobytes().hex(), "dtype": dtype.name}

    def _torch(self, value: Any, path: tuple[Any, ...]) -> dict[str, Any]:
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        if kind not in (TENSOR, PARAMETER):
            raise TypeError(f"{_shown(path)}: an object of type {kind} cannot be saved; make it a plain tensor first")
        doc: dict[str, Any] = {"tensor": self._tensor(value, path)}
        if kind == PARAMETER:
            doc["parameter"] = True
        if value.requires_grad:
            doc["requires_grad"] = True
        return doc

    def _tensor(self, value: Any, path: tuple[Any, ...]) -> str:
        stem = name = ".".join(map(str, path)) or "state"
        number = 2
        while name in self.tensors:  # {"a.b": x, "a": {"b": y}}
            name, number = f"{stem}~{number}", number + 1
        try:
            check_name(name)
            if not frameworks.is_torch(value):
                of_array(value)
        except ValueError as error:
            raise ValueError(f"{_shown(path)}: {error}") from error
        self.tensors[name] = value
        return name


def _digits(value: int, path: tuple[Any, ...]) -> str:
    if abs(value) >= 10**MAX_DIGITS:
        raise ValueError(f"{_shown(path)}: an integer of more than {MAX_DIGITS} digits")
    return str(value)


def _shown(path: tuple[Any, ...]) -> str:
    """As one would write it: optimizer.state[3].exp_avg."""
    text = ""
    for key in path:
        text += f"[{key}]" if isinstance(key, int) else f".{key}"
    return text.lstrip(".") or "the state itself"


class _Decoder:
    def __init__(self, tensor: Callable[[str, str], Any]) -> None:
        self._tensor = tensor

    def decode(self, doc: Any, depth: int) -> Any:
        if depth > MAX_DEPTH + 1:
            raise ValueError(f"containers are nested deeper than {MAX_DEPTH}")
        if doc is None or type(doc) in (bool, int, float, str):
            return doc
        if type(doc) is list:
            return [self.decode(each, depth + 1) for each in doc]
        match doc:
            case {"int": str(digits), **rest} if not rest and len(digits) <= MAX_DIGITS + 1:
                return int(digits)
            case {"float": str(bits), **rest} if not rest:
                return struct.unpack(">d", bytes.fromhex(bits))[0]
            case {"complex": str(bits), **rest} if not rest:
                return complex(*struct.unpack(">dd", bytes.fromhex(bits)))
            case {"bytes": str(text), **rest} if not rest:
                return base64.b64decode(text, validate=True)
            case {"long_bytes": str(name), **rest} if not rest:
                return np.asarray(self._tensor(name, "bytes")).tobytes()
            case {"tuple": list(items), **rest} if not rest:
                return tuple(self.decode(each, depth + 1) for each in items)
            case {"scalar": str(data), "dtype": str(name), **rest} if not rest:
                return _scalar(bytes.fromhex(data), name)
            case {"array": str(name), **rest} if not rest:
                return self._tensor(name, "numpy")
            case {"tensor": str(name), **rest} if rest.keys() <= {"parameter", "requires_grad"}:
                return _as_torch(self._tensor(name, "torch"), "parameter" in rest, "requires_grad" in rest)
            case {"dict": dict(members), **rest} if not rest:
                return {key: self.decode(each, depth + 1) for key, each in members.items()}
            case {"dict_items": list(pairs), **rest} if not rest:
                return dict(self._pairs(pairs, depth))
            case {"ordered": dict(members), **rest} if rest.keys() <= {"metadata"}:
                return self._ordered([(k, self.decode(v, depth + 1)) for k, v in members.items()], doc, depth)
            case {"ordered_items": list(pairs), **rest} if rest.keys() <= {"metadata"}:
                return self._ordered(self._pairs(pairs, depth), doc, depth)
        raise ValueError(f"{doc!r:.200} is no value of a state")

    def _pairs(self, pairs: "Sequence[Any]", depth: int) -> list[tuple[Any, Any]]:
        found = []
        for key, value in pairs:
            decoded = self.decode(key, depth + 1)
            if type(decoded) not in (str, int):
                raise ValueError(f"a key is {decoded!r:.100}")
            found.append((decoded, self.decode(value, depth + 1)))
        if len(dict(found)) != len(found):
            raise ValueError("a key occurs twice")
        return found

    def _ordered(self, pairs: list[tuple[Any, Any]], doc: Mapping[str, Any], depth: int) -> "OrderedDict[Any, Any]":
        made: OrderedDict[Any, Any] = OrderedDict(pairs)
        if "metadata" in doc:
            vars(made)["_metadata"] = self.decode(doc["metadata"], depth + 1)
        return made


def _scalar(data: bytes, name: str) -> np.generic:
    dtype = DTYPES[name].numpy
    if len(data) != dtype.itemsize:
        raise ValueError(f"{len(data)} bytes of a scalar of {name}")
    value: np.generic = np.frombuffer(data, dtype)[0]
    return value


def _as_torch(tensor: Any, parameter: bool, requires_grad: bool) -> Any:
    if tensor is None or not (parameter or requires_grad):
        return tensor
    return frameworks.parameter(tensor, requires_grad) if parameter else tensor.requires_grad_()

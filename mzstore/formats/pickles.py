"""Pickles, read without executing anything.

``pickletools`` of the standard library takes a pickle apart into its operations; here they are carried out on plain values only.
A name that a pickle asks for is looked up in the reader's own table, and what is not in it is refused. No module is imported, no
attribute is set, and no object of a class that the pickle names is made.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from mzstore.errors import FormatError, UnsupportedError

MAX_NBYTES = 64 << 20  # of a pickle: a hundred bytes or two for a tensor
MAX_OPERATIONS = 5_000_000  # each makes at most some tens of bytes

Make = Callable[..., Any]
SCALARS = (str, int, float, bytes, bool, type(None))


@dataclass(frozen=True, slots=True)
class Global:
    """What a name in a pickle stands for: ``make`` is called with the arguments that follow; None: it only stands for itself."""

    name: str
    make: Make | None = None


@dataclass(slots=True, eq=False)
class Instance:
    """An object of a class that is known by name only. Nobody runs anything of that class."""

    name: str
    state: Any = field(default=None)


class Stream(Protocol):
    def read(self, n: int, /) -> bytes: ...

    def readline(self, n: int, /) -> bytes: ...


class _Bounded:
    """A stream that gives no more than MAX_NBYTES, whatever a pickle says of its strings."""

    def __init__(self, file: Stream, where: str) -> None:
        self._file, self._left, self._where = file, MAX_NBYTES, where

    def read(self, n: int) -> bytes:
        self._left -= n
        if self._left < 0:
            raise self._too_long()
        return self._file.read(n)

    def readline(self) -> bytes:
        line = self._file.readline(self._left + 1)
        self._left -= len(line)
        if self._left < 0:
            raise self._too_long()
        return line

    def _too_long(self) -> FormatError:
        return FormatError(
            f"a pickle of more than {MAX_NBYTES} bytes, or with a string that it cuts short", where=self._where
        )


def load(
    file: Stream, find: Callable[[str], Global | None], persistent: Callable[[Any], Any] | None = None, *, where: str
) -> Any:
    """The value of the pickle that begins here; ``file`` is left behind its end.

    find        what ``module.name`` stands for; None: refused
    persistent  what an object stands for that is kept outside of the pickle

    Raises UnsupportedError for what is refused, FormatError for what is no pickle or too large.
    """
    import pickletools

    reader = _Reader(find, persistent, where)
    try:
        # A file without ``tell`` is no hindrance: positions are for people.
        for count, (operation, argument, _) in enumerate(pickletools.genops(_Bounded(file, where))):  # type: ignore[arg-type]
            if count == MAX_OPERATIONS:
                raise FormatError(f"a pickle of more than {MAX_OPERATIONS} operations", where=where)
            reader.run(operation.name, argument)
        return reader.pop()
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, AssertionError) as error:
        raise FormatError(f"not a pickle: {error or type(error).__name__}", where=where) from error


PUSHES = frozenset(
    [
        "BININT",
        "BININT1",
        "BININT2",
        "LONG",
        "LONG1",
        "LONG4",
        "FLOAT",
        "BINFLOAT",
        "STRING",
        "BINSTRING",
        "SHORT_BINSTRING",
        "BINBYTES",
        "SHORT_BINBYTES",
        "BINBYTES8",
        "UNICODE",
        "BINUNICODE",
        "SHORT_BINUNICODE",
        "BINUNICODE8",
        "INT",
    ]
)
CONSTANTS: Mapping[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Reader:
    def __init__(
        self, find: Callable[[str], Global | None], persistent: Callable[[Any], Any] | None, where: str
    ) -> None:
        self._find, self._persistent, self._where = find, persistent, where
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def pop(self) -> Any:
        return self._stack.pop()

    def _above(self) -> list[Any]:
        """What is above the last mark."""
        mark = self._marks.pop()
        items, self._stack[mark:] = self._stack[mark:], []
        return items

    def run(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in PUSHES:
            stack.append(argument)
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(self._memo[argument])
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self._memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name == "MARK":
            self._marks.append(len(stack))
        elif name == "TUPLE":
            stack.append(tuple(self._above()))
        elif name in TUPLES:
            items, stack[-TUPLES[name] :] = stack[-TUPLES[name] :], []
            if len(items) != TUPLES[name]:
                raise IndexError("the stack is too short")
            stack.append(tuple(items))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(self._call(function, arguments))
        elif name == "GLOBAL":
            stack.append(self._global(argument.replace(" ", ".")))
        elif name == "STACK_GLOBAL":
            inner, module = stack.pop(), stack.pop()
            stack.append(self._global(f"{module}.{inner}"))
        elif name == "BINPERSID":
            if self._persistent is None:
                raise UnsupportedError("a pickle that refers to what is not in it", where=self._where)
            stack.append(self._persistent(stack.pop()))
        elif name in ("SETITEM", "SETITEMS"):
            items = self._above() if name == "SETITEMS" else [stack.pop() for _ in range(2)][::-1]
            self._set(stack[-1], items)
        elif name in ("APPEND", "APPENDS", "ADDITEMS"):
            items = [stack.pop()] if name == "APPEND" else self._above()
            if not isinstance(stack[-1], list):
                raise TypeError("items are added to what is no list")
            stack[-1].extend(items)
        elif name in ("EMPTY_LIST", "EMPTY_SET"):  # a set is a list here: nobody looks anything up in it
            stack.append([])
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name in ("LIST", "FROZENSET"):
            stack.append(self._above())
        elif name == "DICT":
            items = self._above()
            stack.append({})
            self._set(stack[-1], items)
        elif name == "BUILD":
            state, value = stack.pop(), stack[-1]
            if isinstance(value, Instance):
                value.state = state
            elif not isinstance(value, dict):  # attributes of a dict, such as _metadata, are let go
                raise UnsupportedError(f"a pickle that changes a {type(value).__name__}", where=self._where)
        elif name == "NEWOBJ":
            arguments, function = stack.pop(), stack.pop()
            stack.append(self._call(function, arguments))
        elif name == "POP":
            stack.pop()
        elif name == "POP_MARK":
            self._above()
        elif name == "DUP":
            stack.append(stack[-1])
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise UnsupportedError(f"a pickle with the operation {name}", where=self._where)

    def _set(self, target: Any, items: list[Any]) -> None:
        if not isinstance(target, dict) or len(items) % 2:
            raise TypeError("items are set in what is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Hashing nested tuples recurses without a limit.
            plain = isinstance(key, (*SCALARS, Instance)) or (
                isinstance(key, tuple) and all(isinstance(k, SCALARS) for k in key)
            )
            if not plain:
                raise TypeError(f"a key is a {type(key).__name__}")
            target[key] = value

    def _global(self, name: str) -> Global:
        found = self._find(name)
        if found is None:
            raise UnsupportedError(
                f"its pickle asks for {name[:200]!r}, which is not of the few names that stand for tensors: refused, and nothing of it was run",
                where=self._where,
            )
        return found

    def _call(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, Global) or function.make is None:
            what = function.name if isinstance(function, Global) else type(function).__name__
            raise UnsupportedError(
                f"a pickle that calls {what!r:.200}: refused, and nothing of it was run", where=self._where
            )
        return function.make(*arguments)

"""Every error mzstore raises on purpose: one class for each thing a caller would do next.

A wrong argument is a ValueError or TypeError, a wrong tensor name a KeyError, as everywhere in Python.
"""


class MzError(Exception):
    """Base of all mzstore errors.

    ``problem`` says what is wrong, ``where`` names the file or key (and tensor and chunk where there is one),
    ``clause`` the rule of FORMAT.md that is broken; the last two may be empty.
    """

    def __init__(self, problem: str, *, where: str = "", clause: str = "") -> None:
        place = "; ".join(
            part for part in (f"in {where}" if where else "", f"FORMAT.md {clause}" if clause else "") if part
        )
        super().__init__(f"{problem} ({place})" if place else problem)
        self.problem, self.where, self.clause = problem, where, clause

    def __reduce__(self) -> tuple[object, ...]:  # keyword arguments do not survive the default pickling of exceptions
        return (_rebuild, (type(self), self.problem, self.where, self.clause))


def _rebuild(cls: type[MzError], problem: str, where: str, clause: str) -> MzError:
    return cls(problem, where=where, clause=clause)


class FormatError(MzError):
    """Not a file of this format, or malformed in its structure: use another file, or another tool."""


class UnsupportedError(MzError):
    """The file is fine; this mzstore is too old for it, or does not handle this kind: upgrade."""


class CorruptError(MzError):
    """The file was whole once and is damaged: restore it from a copy."""


class StorageError(MzError):
    """The storage failed: look at its cause (``__cause__``), then try again."""


class ConflictError(StorageError):
    """Somebody else was first: what was to be created is there, with another content, which stays as it is."""

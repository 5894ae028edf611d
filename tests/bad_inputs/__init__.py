"""The corpus of bad inputs: small faults in a valid model, by theme. Every file has a list CASES."""

from collections.abc import Callable
from dataclasses import dataclass

from forge import Forged

from mzstore.errors import MzError


@dataclass(frozen=True)
class Case:
    """One fault, and the error that must tell of it.

    spoil  changes a forged model in place, or returns the bytes of a whole archive
    match  a regular expression for the error's sentence
    """

    name: str
    spoil: Callable[[Forged], bytes | None]
    error: type[MzError]
    match: str

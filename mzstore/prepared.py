"""Prepared: a tensor of which is decided how it is stored before a writer sees it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mzstore.encode import Choice, Payload
from mzstore.encodings import Part
from mzstore.sources import TensorSource
from mzstore.tensors import TensorSpec

if TYPE_CHECKING:
    from mzstore.approximate import Approximation


@dataclass(frozen=True, slots=True)
class Prepared:
    """``part`` is that of the tensor, and ``sha256`` of the values that it gives.

    words, choice  what is encoded, chunk by chunk, and how; of a part that changes a base these are no values
    payloads       what is stored; or instead of words, where that is made already
    """

    spec: TensorSpec
    part: Part
    sha256: str
    words: TensorSource | None = None
    choice: Choice | None = None
    payloads: Sequence[Payload] = ()


@dataclass(frozen=True, slots=True)
class Fitted:
    """A tensor of which an approximation is made; ``values`` are its own."""

    spec: TensorSpec
    values: TensorSource
    approximation: "Approximation"

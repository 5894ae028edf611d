"""Extents: where in a container the bytes of a payload lie, and what is asked for to get them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Extent:
    """Bytes ``[start, stop)`` of an object of the container; all of it if ``stop`` is None."""

    object: str  # its key in a tree; "" is the archive
    start: int = 0
    stop: int | None = None
    held: bool = False  # read already, with the documents
    limit: int | None = None  # the most bytes that an object has of which all is read


@dataclass(frozen=True, slots=True)
class Request:
    """Extents side by side that are read at once; of the same meaning."""

    object: str
    start: int
    stop: int | None
    held: bool = False
    limit: int | None = None

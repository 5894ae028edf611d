"""Layouts: how source files are made again, byte for byte, from the tensors of a model."""

from collections.abc import Callable, Mapping
from typing import Protocol

from mzstore.errors import UnsupportedError
from mzstore.formats import safetensors, spliced
from mzstore.ggml import BlockType
from mzstore.sources import LayoutSource, TensorSource
from mzstore.storage import Sink
from mzstore.tensors import TensorSpec

MAX_LAYOUT_NBYTES = spliced.MAX_LAYOUT_NBYTES


class FileLayout(Protocol):
    """One file, laid out."""

    @property
    def nbytes(self) -> int:
        """Size of the file."""

    @property
    def tensors(self) -> Mapping[str, TensorSpec]:
        """What the file is made of, by the names that the model has."""

    @property
    def forms(self) -> Mapping[str, BlockType]:
        """Of tensors whose blocks of ggml stand in the file, by the same names: their type."""

    def write(self, sink: Sink, tensors: Mapping[str, TensorSource], done: Callable[[int], None]) -> None:
        """Write the whole file, front to back. ``done`` is told the bytes of values as they are read."""


def parse(layout: LayoutSource, *, where: str) -> FileLayout:
    """Raises FormatError or UnsupportedError for what FORMAT.md forbids."""
    if layout.format == "safetensors":
        return safetensors.FileLayout(safetensors.parse_header(layout.raw, where=where), layout.prefix)
    if layout.format == spliced.FORMAT:
        return spliced.parse(layout.raw, layout.prefix, where=where)
    raise UnsupportedError(f"layout format {layout.format!r:.100} is unknown; upgrade mzstore", where=where)


def mismatch(layout: FileLayout, specs: Mapping[str, TensorSpec]) -> str | None:
    """The name of a tensor of ``layout`` that is not among ``specs``, or of another dtype or shape there; None if all are."""
    for name, spec in layout.tensors.items():
        found = specs.get(name)
        if found is None or (found.dtype, found.shape) != (spec.dtype, spec.shape):
            return name
    return None

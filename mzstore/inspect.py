"""Inspect: what a model holds and how it is stored, from the documents and the index alone. No chunk is read."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mzstore.archive import ArchiveReader
from mzstore.documents import DOCUMENT, FORMAT, TensorEntry
from mzstore.encodings.planes import Planes
from mzstore.encodings.raw import Raw
from mzstore.model import Model
from mzstore.text import count, ratio, shown, size

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

SIZES = ("size", "stored", "ratio")
LONGEST_VALUE = 500  # of metadata; --json has all of it


@dataclass(frozen=True, slots=True)
class TensorSummary:
    """One tensor. ``details`` is what the encoding adds: see ``_details``."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    encoding: str  # raw, planes, ...; same: the values are those of tensor ``same_as``
    details: Mapping[str, Any]
    nbytes: int
    stored_nbytes: int
    chunks: int
    sha256: str
    same_as: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "dtype": self.dtype,
            "shape": list(self.shape),
            "encoding": self.encoding,
            "same_as": self.same_as,
            "details": dict(self.details),
            "nbytes": self.nbytes,
            "stored_nbytes": self.stored_nbytes,
            "chunks": self.chunks,
            "sha256": self.sha256,
        }

    def how(self) -> str:
        """The encoding in a few words."""
        if self.same_as is not None:
            return f"same as {shown(self.same_as)}"
        words = ["constant" if self.details.get("constant") else self.encoding]
        if self.details.get("zstd"):
            words.append("zstd")
        if self.details.get("ranks"):
            words.append("ranks")
        if symbols := self.details.get("symbols"):
            words.append(f"{symbols} symbols")
        if stored := self.details.get("stored_dtype"):
            words.append(f"as {stored}")
        return ", ".join(words)


@dataclass(frozen=True, slots=True)
class Summary:
    """One model. Sizes are in bytes."""

    location: str
    container: str  # archive or tree
    writer: str
    tensors: tuple[TensorSummary, ...]
    metadata: Mapping[str, Any]
    assets: tuple[tuple[str, int], ...]  # path, size
    layouts: tuple[str, ...]  # paths of the files that the model was converted from
    container_nbytes: int

    @property
    def nbytes(self) -> int:
        """Of all values."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def stored_nbytes(self) -> int:
        """Of all chunks."""
        return sum(tensor.stored_nbytes for tensor in self.tensors)

    @property
    def overhead_nbytes(self) -> int:
        """Of what is neither chunk nor asset: documents, layouts, headers, directory, padding."""
        return self.container_nbytes - self.stored_nbytes - sum(nbytes for _, nbytes in self.assets)

    def to_json(self) -> dict[str, Any]:
        """What ``mzstore inspect --json`` prints. Members may be added, and none changes its meaning."""
        return {
            "location": self.location,
            "container": self.container,
            "format": FORMAT,
            "writer": self.writer,
            "nbytes": self.nbytes,
            "stored_nbytes": self.stored_nbytes,
            "container_nbytes": self.container_nbytes,
            "overhead_nbytes": self.overhead_nbytes,
            "metadata": dict(self.metadata),
            "assets": [{"path": path, "nbytes": nbytes} for path, nbytes in self.assets],
            "layouts": list(self.layouts),
            "tensors": [tensor.to_json() for tensor in self.tensors],
        }


def summarize(model: Model) -> Summary:
    """The summary of an open model. Reads nothing of an archive, and the listing of a tree."""
    reader, document = model.reader, model.document
    sizes = reader.sizes()
    names = {entry.node: entry.spec.name for entry in document.tensors.values()}
    stored = dict.fromkeys(names, 0)
    for key, nbytes in sizes.items():  # of what is there: a grid may claim more chunks than anyone could list
        node, _, rest = key.partition("/")
        if node in stored and not rest.endswith(DOCUMENT):
            stored[node] += nbytes

    def tensor(entry: TensorEntry) -> TensorSummary:
        spec, part = entry.spec, entry.part
        return TensorSummary(
            spec.name,
            spec.dtype.name,
            spec.shape,
            part.encoding if part else "same",
            _details(entry),
            spec.nbytes,
            stored[entry.node],
            entry.n_chunks,
            entry.sha256,
            None if part else names[entry.same_as],
        )

    archive = reader if isinstance(reader, ArchiveReader) else None
    return Summary(
        model.url,
        "archive" if archive else "tree",
        document.writer,
        tuple(tensor(entry) for entry in document.tensors.values()),
        model.metadata,
        tuple((asset.path, asset.nbytes) for asset in document.assets),
        tuple(layout.path for layout in document.layouts),
        archive.blob.nbytes if archive else sum(sizes.values()),
    )


def _details(entry: TensorEntry) -> dict[str, Any]:
    """
    chunk_shape   of the words: two 4-bit values to a word, and a last axis of 2 behind a complex tensor
    stored_dtype  the narrower dtype that holds all values exactly; absent if it is the tensor's own
    zstd          raw: whether the chunks are compressed
    constant      raw: whether one word stands for all
    top_bits      planes: bits of a word that are coded together, its exponent and perhaps more
    symbols       planes: how many values of these occur; absent if they are coded as they are
    ranks         planes: whether these values are packed in pairs, as ranks
    escapes       planes, with ranks: how many others a chunk can have
    """
    part = entry.part
    if part is None:
        return {}
    details: dict[str, Any] = {"chunk_shape": list(part.grid.chunk_shape)}
    if part.dtype != entry.spec.dtype:
        details["stored_dtype"] = part.dtype.name
    if isinstance(part, Raw):
        details |= {"zstd": part.array.zstd, "constant": part.constant}
    elif isinstance(part, Planes):
        details |= {"top_bits": part.fields.top_bits, "ranks": part.ranks is not None}
        if part.symbols is not None:
            details["symbols"] = sum(count for _, count in part.symbols)
        if part.ranks is not None:
            details["escapes"] = part.n_escapes
    return details


def render(summary: Summary, width: int | None) -> "Iterator[RenderableType]":
    """The summary for people, in lines of at most ``width`` columns; None: as long as they come."""
    from rich.console import Console
    from rich.measure import Measurement
    from rich.text import Text

    by = f", by {shown(summary.writer)}" if summary.writer else ""
    yield Text(f"{shown(summary.location)}: {summary.container}, format {FORMAT}{by}", overflow="fold")
    yield ""
    table = _table(summary)
    console = Console(width=1 << 16)
    if width and Measurement.get(console, console.options, table).maximum > width:
        yield from _lines(summary)
    else:
        yield table
    yield ""
    yield Text(_container(summary))
    for label, lines in (
        ("metadata", [f"{shown(str(key))}: {_brief(value)}" for key, value in summary.metadata.items()]),
        ("assets", [f"{shown(path)}  {size(nbytes)}" for path, nbytes in summary.assets]),
        ("converted from", [shown(path) for path in summary.layouts]),
    ):
        if lines:
            yield Text(f"{label}:", style="bold")
            yield from (Text(f"  {line}", overflow="fold") for line in lines)


def _table(summary: Summary) -> "Table":
    """One line for a tensor."""
    from rich.box import SIMPLE
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), show_footer=True)
    table.add_column("tensor", count(len(summary.tensors), "tensor"), no_wrap=True)
    for header in ("dtype", "shape", "encoding"):
        table.add_column(header, no_wrap=True)
    for header, footer in zip(SIZES, _sizes(summary), strict=True):
        table.add_column(header, footer, justify="right", no_wrap=True)
    for tensor in summary.tensors:
        cells = (shown(tensor.name), tensor.dtype, str(list(tensor.shape)), tensor.how(), *_sizes(tensor))
        table.add_row(*map(Text, cells))
    return table


def _lines(summary: Summary) -> "Iterator[Text]":
    """Two lines for a tensor, the first of which is its name: for narrow terminals and long names."""
    from rich.text import Text

    heads = ("dtype, shape", "encoding", *SIZES)
    rows = [(f"{t.dtype} {list(t.shape)}", t.how(), *_sizes(t)) for t in summary.tensors]
    total = ("", "", *_sizes(summary))
    short = [row for row, tensor in zip(rows, summary.tensors, strict=True) if tensor.same_as is None]
    widths = [max(map(len, column)) for column in zip(heads, total, *short, strict=True)]

    def line(cells: tuple[str, ...]) -> str:
        padded = [cell.ljust(width) for cell, width in zip(cells[:2], widths[:2], strict=True)]
        padded += [cell.rjust(width) for cell, width in zip(cells[2:], widths[2:], strict=True)]
        return f"  {'  '.join(padded)}"

    yield Text("tensor", style="bold")
    yield Text(line(heads), style="bold", overflow="fold")
    for tensor, row in zip(summary.tensors, rows, strict=True):
        yield Text(shown(tensor.name), overflow="fold")
        yield Text(line(row) if tensor.same_as is None else f"  {row[0]}  {row[1]}", style="dim", overflow="fold")
    yield Text(count(len(summary.tensors), "tensor"), style="bold")
    yield Text(line(total), style="bold", overflow="fold")


def _sizes(of: Summary | TensorSummary) -> tuple[str, str, str]:
    return size(of.nbytes), size(of.stored_nbytes), ratio(of.stored_nbytes, of.nbytes)


def _container(summary: Summary) -> str:
    total = summary.container_nbytes
    share = f", {100 * summary.overhead_nbytes / total:.2g} %" if total else ""
    return f"{summary.container} {size(total)}; of this, documents and index {size(summary.overhead_nbytes)}{share}"


def _brief(value: Any) -> str:
    text = shown(value if isinstance(value, str) else json.dumps(value))
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 1]}…"

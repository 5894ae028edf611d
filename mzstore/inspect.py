"""Inspect: what a model holds and how it is stored, from the documents and the index alone. No chunk is read."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mzstore.archive import ArchiveReader
from mzstore.composite import Archives, Tiled
from mzstore.documents import DOCUMENT, FORMAT, ModelDocument, TensorEntry, parts_of
from mzstore.encodings import Part
from mzstore.encodings.base import Base
from mzstore.encodings.combined import Combined
from mzstore.encodings.ggml import Ggml
from mzstore.encodings.lowrank import LowRank
from mzstore.encodings.nested import Nested
from mzstore.encodings.planes import Planes
from mzstore.encodings.quantized import Blocked, Quantized
from mzstore.encodings.raw import Raw
from mzstore.encodings.sparse import Sparse
from mzstore.encodings.tucker import Tucker
from mzstore.errors import FormatError, UnsupportedError
from mzstore.model import Model
from mzstore.schemes import Scheme, Weight, may_be_quantized, weights_of
from mzstore.text import count, ratio, shown, size

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

SIZES = ("size", "stored", "ratio")
ERRORS = ("bits", "SNR")  # where there is a tensor whose values were changed
LONGEST_VALUE = 500  # of metadata; --json has all of it
LONGEST_QUANTIZER = 20


@dataclass(frozen=True, slots=True)
class Reached:
    """What quantizing has made of some values. Means over several tensors are weighted by their sizes.

    size       number of values
    bits       stored for a value, with all overhead
    nmse       squared error / squared values
    max_error  of any value
    """

    size: int
    bits: float
    nmse: float
    max_error: float

    @property
    def snr_db(self) -> float | None:
        """None where there is no error."""
        return -10 * math.log10(self.nmse) if self.nmse else None

    @classmethod
    def of(cls, size: int, lossy: Mapping[str, Any] | None) -> "Reached | None":
        """What a document says of ``size`` values; None if it says nothing that can be understood."""
        reached = (lossy or {}).get("reached")
        found = [reached.get(name) for name in ("bits", "nmse", "max_error")] if isinstance(reached, dict) else []
        numbers = [float(n) for n in found if isinstance(n, (int, float)) and 0 <= n < 1e300]
        return cls(size, *numbers) if size and len(numbers) == 3 else None

    @classmethod
    def all(cls, members: "Sequence[Reached]") -> "Reached | None":
        """Of several tensors together; None of none."""
        size = sum(each.size for each in members)
        if not size:
            return None
        bits, nmse = (sum(getattr(each, name) * (each.size / size) for each in members) for name in ("bits", "nmse"))
        return cls(size, bits, nmse, max(each.max_error for each in members))

    def to_json(self) -> dict[str, Any]:
        numbers = {"bits": self.bits, "nmse": self.nmse, "snr_db": self.snr_db, "max_error": self.max_error}
        return {"size": self.size, **numbers}

    def __str__(self) -> str:
        return f"{self.bits:.2f} bits per weight, {'no error' if self.snr_db is None else f'SNR {self._snr()}'}"

    def cells(self) -> tuple[str, str]:
        """As ERRORS heads them."""
        return f"{self.bits:.2f}", self._snr()

    def _snr(self) -> str:
        return "-" if self.snr_db is None else f"{self.snr_db:.1f} dB"


@dataclass(frozen=True, slots=True)
class TensorSummary:
    """One tensor. ``details`` is what the encoding adds: see ``_details``."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    encoding: str  # raw, planes, ...; same: the values are those of tensor ``same_as``; pieces: of several in archives
    details: Mapping[str, Any]
    nbytes: int
    stored_nbytes: int
    chunks: int
    sha256: str  # empty of several pieces
    same_as: str | None = None
    lossy: Mapping[str, Any] | None = None  # of values that were changed: what ``Tensor.quality`` has

    @property
    def reached(self) -> Reached | None:
        return Reached.of(math.prod(self.shape), self.lossy)

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
            "quality": None if self.lossy is None else dict(self.lossy),
        }

    def how(self) -> str:
        """The encoding in a few words."""
        if self.same_as is not None:
            return f"same as {shown(self.same_as)}"
        words = ["constant" if self.details.get("constant") else self.encoding, *_words(self.details, self.shape)]
        if self.encoding == "pieces":
            words = [count(self.details["pieces"], "piece")]
        for part in self.details.get("parts", ()):
            if part["combine"] != "replace":  # those are few, and lines are short
                words += _words(part, self.shape)
        if stored := self.details.get("stored_dtype"):
            words.append(f"as {stored}")
        return ", ".join(words)


@dataclass(frozen=True, slots=True)
class SchemeSummary:
    """Weights that another tool has quantized in one way.

    names           of the plain weights
    size            number of their values
    members_nbytes  of the tensors that they are made of
    stored_nbytes   of these in the container
    """

    scheme: Scheme
    names: tuple[str, ...]
    size: int
    members_nbytes: int
    stored_nbytes: int

    def to_json(self) -> dict[str, Any]:
        return {
            **self.scheme.to_json(),
            "size": self.size,
            "bits_per_weight": 8 * self.members_nbytes / self.size,
            "stored_bits_per_weight": 8 * self.stored_nbytes / self.size,
            "weights": list(self.names),
        }

    def __str__(self) -> str:
        bits, stored = (8 * nbytes / self.size for nbytes in (self.members_nbytes, self.stored_nbytes))
        return f"{self.scheme}; {count(len(self.names), 'weight')}, {bits:.2f} bits per weight, {stored:.2f} stored"


@dataclass(frozen=True, slots=True)
class Summary:
    """One model. Sizes are in bytes."""

    location: str
    container: str  # archive, tree or manifest
    writer: str
    tensors: tuple[TensorSummary, ...]
    metadata: Mapping[str, Any]
    assets: tuple[tuple[str, int], ...]  # path, size
    layouts: tuple[str, ...]  # paths of the files that the model was converted from
    bases: tuple[str, ...]  # models that it refers to, as it has them
    container_nbytes: int
    schemes: tuple[SchemeSummary, ...] = ()
    scheme_problem: str = ""  # why it cannot be said how the checkpoint is quantized, if it is

    @property
    def nbytes(self) -> int:
        """Of all values."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def stored_nbytes(self) -> int:
        """Of all chunks."""
        return sum(tensor.stored_nbytes for tensor in self.tensors)

    @property
    def reached(self) -> Reached | None:
        """Of all tensors whose values were changed; None if there are none."""
        return Reached.all([tensor.reached for tensor in self.tensors if tensor.reached])

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
            "quantized": self.reached.to_json() if self.reached else None,
            "schemes": [scheme.to_json() for scheme in self.schemes],
            "scheme_problem": self.scheme_problem or None,
            "metadata": dict(self.metadata),
            "assets": [{"path": path, "nbytes": nbytes} for path, nbytes in self.assets],
            "layouts": list(self.layouts),
            "bases": list(self.bases),
            "tensors": [tensor.to_json() for tensor in self.tensors],
        }


def _words(details: Mapping[str, Any], shape: tuple[int, ...]) -> list[str]:
    """Of one part; of a sparse one, how many values it has."""
    words = [name for name in ("zstd", "ranks") if details.get(name) is True]
    if symbols := details.get("symbols"):
        words.append(f"{symbols} symbols")
    if quantizer := details.get("quantizer"):
        words.append(shown(quantizer[:LONGEST_QUANTIZER]))
    if kind := details.get("type"):
        words += [kind, f"{details['bits']:g} bits"]
    if levels := details.get("levels"):
        words.append(f"{levels} levels")
    blocks = [scale["block"] for scale in details.get("scales", ()) if scale["block"] != list(shape)]
    words += [f"scales of {'x'.join(map(str, block))}" for block in blocks]
    if "rank" in details:
        factors = dict.fromkeys(details[side]["encoding"] for side in ("left", "right"))
        words += [f"rank {details['rank']}", f"factors {' and '.join(factors)}"]
    if "modes" in details:
        modes = details["modes"]
        words.append(f"ranks {'x'.join(map(str, modes))}" if details["core"] else f"{modes[0]} outer products")
    if "index" in details:
        if details["block"] != [1, 1]:
            words.append(f"blocks of {'x'.join(map(str, details['block']))}")
        if details["index"] != "gaps":
            words.append(":".join(map(str, details["pattern"])) if "pattern" in details else details["index"])
        if details["values"]["encoding"] == "quantized":
            words.append("quantized")
        kept, room = details.get("kept"), details["room"]
        words.append(f"{100 * (room if kept is None else kept):.3g} %")
    return words


def summarize(model: Model) -> Summary:
    """The summary of an open model. Reads nothing of an archive but, of a checkpoint that another tool has quantized, what says how it
    is; the listing of a tree; and opens all archives of a manifest."""
    summary = _of_archives(model, model.archives) if model.archives else _of_one(model)
    if not may_be_quantized(model):
        return summary
    try:
        weights = weights_of(model)
    except (FormatError, UnsupportedError) as problem:
        return replace(summary, scheme_problem=str(problem))
    stored = {tensor.name: tensor.stored_nbytes for tensor in summary.tensors}
    groups: dict[Scheme, list[Weight]] = {}
    for weight in weights.values():
        groups.setdefault(weight.scheme, []).append(weight)
    schemes = (
        SchemeSummary(
            scheme,
            tuple(weight.name for weight in group),
            sum(weight.size for weight in group),
            sum(weight.members_nbytes for weight in group),
            sum(stored[name] for weight in group for name in weight.members),
        )
        for scheme, group in groups.items()
    )
    return replace(summary, schemes=tuple(each for each in schemes if each.size))


def _of_one(model: Model) -> Summary:
    reader, document = model.reader, model.document
    sizes = reader.sizes()
    names = {entry.node: entry.spec.name for entry in document.tensors.values()}
    stored = _stored_nbytes(sizes, document)

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
            entry.lossy,
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
        tuple(document.bases),
        archive.blob.nbytes if archive else sum(sizes.values()),
    )


def _stored_nbytes(sizes: Mapping[str, int], document: ModelDocument) -> dict[str, int]:
    """Of the chunks at each node."""
    stored = {entry.node: 0 for entry in document.tensors.values()}
    for key, nbytes in sizes.items():  # of what is there: a grid may claim more chunks than anyone could list
        node, _, rest = key.partition("/")
        if node in stored and not rest.endswith(DOCUMENT):
            stored[node] += nbytes
    return stored


def _of_archives(model: Model, archives: Archives) -> Summary:
    """What is stored once counts where it occurs first."""
    indices = range(len(archives.manifest.archives))
    archives.open_all(set(indices))
    opened = [archives.open(index) for index in indices]
    stored = [_stored_nbytes(each.reader.sizes(), each.document) for each in opened]

    def tensor(entry: TensorEntry) -> TensorSummary:
        spec, tiled = entry.spec, entry.part
        assert isinstance(tiled, Tiled)
        found = [(piece, archives.stored(piece, spec.dtype)[1]) for piece in tiled.pieces]
        whole = found[0][1] if tiled.whole else None
        return TensorSummary(
            spec.name,
            spec.dtype.name,
            spec.shape,
            whole.part.encoding if whole and whole.part else tiled.encoding,
            _details(whole) if whole else {"pieces": len(tiled.pieces)},
            spec.nbytes,
            sum(stored[piece.archive].pop(inner.node, 0) for piece, inner in found),
            sum(inner.n_chunks for _, inner in found),
            whole.sha256 if whole else "",
            None,
            whole.lossy if whole else None,
        )

    return Summary(
        model.url,
        "manifest",
        model.document.writer,
        tuple(tensor(entry) for entry in model.document.tensors.values()),
        model.metadata,
        (),
        (),
        tuple(dict.fromkeys(url for each in opened for url in each.document.bases)),
        sum(archive.nbytes for archive in archives.manifest.archives),
    )


def _details(entry: TensorEntry) -> dict[str, Any]:
    """
    pieces        of a manifest: in how many tensors of archives the values lie; then nothing else
    chunk_shape   of the words: two 4-bit values to a word, and a last axis of 2 behind a complex tensor
    stored_dtype  the narrower dtype that holds all values exactly; absent if it is the tensor's own
    zstd          raw: whether the chunks are compressed
    constant      raw: whether one word stands for all
    base, tensor  base: which of the model's bases, and the tensor there
    top_bits      planes: bits of a word that are coded together, its exponent and perhaps more
    symbols       planes: how many values of these occur; absent if they are coded as they are
    ranks         planes: whether these values are packed in pairs, as ranks
    escapes       planes, with ranks: how many others a chunk can have
    type          ggml: of its blocks
    bits          ggml: that a value takes in these
    group         ggml: values of a block
    quantizer     quantized: what the writer calls it; absent if it does not say
    levels        quantized: how many codes there are
    per_byte      quantized: how many of them share a byte
    scales        quantized: dtype and block of each; the block is the tensor's shape if there is one for all values
    zero_point    quantized: the integer, or the block of many; absent if there is a codebook
    codebook      quantized: its shape; absent if codes are uniform
    outliers      quantized: whether some values are replaced by others
    index         sparse: gaps, bitmap or pattern
    low_bits      sparse, with gaps: how many bits of them stand apart
    pattern       sparse, with pattern: [n, m], n of m places
    block         sparse: rows and columns of an element
    room          sparse: of which part of a chunk's values there is room
    kept          sparse: which part of the values is stored; absent if the writer does not say
    values        sparse: encoding and dtype of the values, and what their encoding adds
    rank          lowrank: columns of the left factor
    left, right   lowrank: as values
    scale         lowrank: what products are multiplied with
    modes         tucker: the ranks of its axes
    core          tucker: whether there is one, or it is a sum of outer products
    parts         of several parts: for each but the first encoding, combine (replace, add, xor, plus), and what the encoding adds
    """
    if entry.part is None:
        return {}
    part, *more = parts_of(entry.part)
    said, *others = _said(entry.lossy or {}, 1 + len(more))
    details: dict[str, Any] = {"chunk_shape": list(part.grid.chunk_shape)}
    if part.dtype != entry.spec.dtype:
        details["stored_dtype"] = part.dtype.name
    details |= _part_details(part, said)
    if isinstance(part, Quantized):
        details["outliers"] = any(isinstance(other, Sparse) for other in more)
    if isinstance(entry.part, Combined):
        details["parts"] = [
            {"encoding": other.encoding, "combine": how} | _part_details(other, own)
            for other, how, own in zip(more, entry.part.combines, others, strict=True)
        ]
    return details


def _said(lossy: Mapping[str, Any], n: int) -> list[dict[str, Any]]:
    """For each of ``n`` parts what a document says was asked for and kept of it; nothing where it cannot be understood."""
    asked, reached = ({} if not isinstance(doc := lossy.get(name), dict) else doc for name in ("asked", "reached"))
    found: list[dict[str, Any]] = []
    for own in ([asked] if n == 1 or "parts" not in asked else asked["parts"], reached.get("parts")):
        parts = own if isinstance(own, list) else []
        parts = [part if isinstance(part, dict) else {} for part in parts]
        for i, part in enumerate((parts + [{}] * n)[:n]):
            if i < len(found):
                found[i] |= part
            else:
                found.append(dict(part))
    return found


def _part_details(part: Part, said: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(part, Raw):
        return {"zstd": part.array.zstd, "constant": part.constant}
    if isinstance(part, Base):
        return {"base": part.base, "tensor": part.tensor}
    if isinstance(part, Planes):
        details: dict[str, Any] = {"top_bits": part.fields.top_bits, "ranks": part.ranks is not None}
        if part.symbols is not None:
            details["symbols"] = sum(count for _, count in part.symbols)
        if part.ranks is not None:
            details["escapes"] = part.n_escapes
        return details
    if isinstance(part, Quantized):
        return _quantized_details(part, said)
    if isinstance(part, Ggml):
        return {"type": part.kind.name, "bits": part.kind.bits, "group": part.kind.size}
    if isinstance(part, Sparse):
        return _sparse_details(part, said)
    if isinstance(part, LowRank):
        factors = {nested.name: _nested_details(nested) for nested in (part.left, part.right)}
        return {"rank": part.rank, **factors, "scale": part.scale}
    assert isinstance(part, Tucker)
    return {"modes": list(part.ranks), "core": part.core is not None}


def _nested_details(nested: Nested) -> dict[str, Any]:
    return {"encoding": nested.encoding, "dtype": nested.dtype.name} | _part_details(nested.part, {})


def _sparse_details(part: Sparse, said: Mapping[str, Any]) -> dict[str, Any]:
    index = part.index
    details: dict[str, Any] = {"index": index.kind, "block": list(part.block), "room": part.n_elements / part.n_places}
    if index.low_bits:
        details["low_bits"] = index.low_bits
    if index.pattern is not None:
        details["pattern"] = list(index.pattern)
    kept = said.get("kept")
    if isinstance(kept, (int, float)) and 0 <= kept <= 1:
        details["kept"] = float(kept)
    return details | {"values": _nested_details(part.values)}


def _quantized_details(part: Quantized, asked: Mapping[str, Any]) -> dict[str, Any]:
    whole = list(part.grid.shape)
    details: dict[str, Any] = {"levels": part.levels, "per_byte": part.per_byte}
    # Codebooks have names of their own.
    name = asked.get("codebook") if asked.get("quantizer") == "codebook" else asked.get("quantizer")
    if isinstance(name, str):
        details["quantizer"] = name
    details["scales"] = [
        {"block": list(scale.block), "dtype": scale.dtype}
        if isinstance(scale, Blocked)
        else {"block": whole, "dtype": "float32"}
        for scale in part.scales
    ]
    if part.codebook is not None:
        details["codebook"] = list(part.codebook.shape)
    else:
        zero = part.zero_point
        details["zero_point"] = {"block": list(zero.block)} if isinstance(zero, Blocked) else zero
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
    if summary.reached:
        yield Text(_quantized(summary, summary.reached))
    yield from (Text(shown(str(scheme)), overflow="fold") for scheme in summary.schemes)
    if summary.scheme_problem:
        yield Text(shown(f"how the checkpoint is quantized cannot be said: {summary.scheme_problem}"), overflow="fold")
    for label, lines in (
        ("metadata", [f"{shown(str(key))}: {_brief(value)}" for key, value in summary.metadata.items()]),
        ("assets", [f"{shown(path)}  {size(nbytes)}" for path, nbytes in summary.assets]),
        ("converted from", [shown(path) for path in summary.layouts]),
        ("bases", [shown(url) for url in summary.bases]),
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
    lossy = summary.reached is not None
    for header, footer in zip(_heads(lossy), _numbers(summary, lossy), strict=True):
        table.add_column(header, footer, justify="right", no_wrap=True)
    for tensor in summary.tensors:
        cells = (shown(tensor.name), tensor.dtype, str(list(tensor.shape)), tensor.how(), *_numbers(tensor, lossy))
        table.add_row(*map(Text, cells))
    return table


def _lines(summary: Summary) -> "Iterator[Text]":
    """Two lines for a tensor, the first of which is its name: for narrow terminals and long names."""
    from rich.text import Text

    lossy = summary.reached is not None
    heads = ("dtype, shape", "encoding", *_heads(lossy))
    rows = [(f"{t.dtype} {list(t.shape)}", t.how(), *_numbers(t, lossy)) for t in summary.tensors]
    total = ("", "", *_numbers(summary, lossy))
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


def _heads(lossy: bool) -> tuple[str, ...]:
    return (*SIZES, *ERRORS) if lossy else SIZES


def _numbers(of: Summary | TensorSummary, lossy: bool) -> tuple[str, ...]:
    """As ``_heads`` has them; of a summary, bits and SNR are those of what was changed."""
    sizes = size(of.nbytes), size(of.stored_nbytes), ratio(of.stored_nbytes, of.nbytes)
    if not lossy:
        return sizes
    return (*sizes, *(of.reached.cells() if of.reached else ("", "")))


def _quantized(summary: Summary, reached: Reached) -> str:
    n = sum(tensor.reached is not None for tensor in summary.tensors)
    size = sum(math.prod(tensor.shape) for tensor in summary.tensors if tensor.same_as is None)
    return f"quantized {count(n, 'tensor')}, {100 * reached.size / size:.3g} % of all values: {reached}"


def _container(summary: Summary) -> str:
    total = summary.container_nbytes
    share = f", {100 * summary.overhead_nbytes / total:.2g} %" if total else ""
    return f"{summary.container} {size(total)}; of this, documents and index {size(summary.overhead_nbytes)}{share}"


def _brief(value: Any) -> str:
    text = shown(value if isinstance(value, str) else json.dumps(value))
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 1]}…"

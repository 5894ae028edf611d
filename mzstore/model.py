"""Model and Tensor: what a user opens and reads."""

import copy
import difflib
import fnmatch
import math
import os
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from mzstore import composite, dtypes, frameworks, kernels
from mzstore.bases import BaseLocations, Bases, Family, Opened, Place, Wanted, fill, plan
from mzstore.cache import TensorCache
from mzstore.components import ComponentView, components
from mzstore.container import Objects, Reader, open_reader, read_model
from mzstore.decode import bound
from mzstore.documents import Asset, ModelDocument, TensorEntry, encodings_of
from mzstore.encodings import chunk_path, first_of
from mzstore.encodings.combined import base_of
from mzstore.encodings.ggml import Ggml, Numbers
from mzstore.errors import CorruptError
from mzstore.frameworks import Framework
from mzstore.ggml import BlockType
from mzstore.manifest import Manifest
from mzstore.payload import unseal
from mzstore.plan import Plan, missing_chunk
from mzstore.progress import progress
from mzstore.selection import Index, Selection, Span, all_of, resolve
from mzstore.shards import Axis, axis_of, shard_slices
from mzstore.sparse_views import ScipyFormat, TorchLayout, check_layout, to_scipy, to_torch
from mzstore.stats import Stats
from mzstore.storage import BLOCK_NBYTES, Location, Options, Retry
from mzstore.tensors import TensorSpec

if TYPE_CHECKING:
    import zarr

LOSSLESS = {"raw", "planes", "sparse"}  # encodings that give any values


def open(  # noqa: A001  what a user types is mzstore.open
    location: Location,
    *,
    storage_options: Options = None,
    retry: Retry | None = None,
    cache_bytes: int = 0,
    bases: BaseLocations | None = None,
) -> "Model":
    """Open a model for reading: an archive or a tree, at a path or any fsspec URL, or an archive's bytes; or the archives of
    a manifest, whose name ends in ``.json``, as one model.

    storage_options  for the fsspec filesystem of a URL: credentials, endpoint
    retry            how long remote storage is waited for, and how often it is asked; None: ``Retry()``
    cache_bytes      tensors that are read whole are kept in so much memory, decoded, and leave when it is full, the least
                     recently used first; parts of them are then taken from there
    bases            where to find the models that this one refers to, if not where it says: by the URL that it has for one
                     (see ``Model.base_urls``), a location, or an open model, which its owner closes. Without: what
                     ``bases.locate`` allows a file to say

    Reads the documents only: of a remote archive its tail, in one request; of a manifest nothing of its archives, each of
    which is opened when something of it is read. Raises FormatError, UnsupportedError,
    CorruptError or StorageError.
    """
    operation, stats = (retry or Retry()).start(), Stats()  # one deadline for all of it
    opening = _Opening(location, storage_options, retry, cache_bytes, bases)
    links = Bases(Place.of(location, storage_options), Family(retry, stats, bases))
    if composite.is_manifest(location):
        manifest = composite.read_manifest(location, storage_options, operation, stats)
        return _composed(manifest, opening, links, stats)
    reader = open_reader(location, storage_options, operation, stats)
    try:
        return Model(reader, read_model(reader, operation), opening, links)
    except BaseException:
        reader.close()
        raise


def open_manifest(
    manifest: Manifest,
    location: str,
    *,
    storage_options: Options = None,
    retry: Retry | None = None,
    bases: BaseLocations | None = None,
) -> "Model":
    """The model of a manifest that was read at ``location``, and need not be there any more. See ``open``."""
    opening, stats = _Opening(location, storage_options, retry, 0, bases), Stats()
    links = Bases(Place.of(location, storage_options), Family(retry, stats, bases))
    return _composed(manifest, opening, links, stats)


def _composed(manifest: Manifest, opening: "_Opening", links: Bases, stats: Stats) -> "Model":
    archives = composite.Archives(manifest, links.place, links.family)
    whole = composite.CompositeReader(links.place, stats, opening.retry or Retry(), archives.reader)
    return Model(whole, composite.document(manifest), opening, links, archives)


@dataclass(frozen=True, slots=True)
class _Opening:
    """How a model was opened, so that a copy of it in another process can be opened in the same way."""

    location: Location
    options: Options
    retry: Retry | None
    cache_nbytes: int
    bases: BaseLocations | None


def default_threads() -> int:
    """As many as this process may use processors, up to 16."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(16, usable or 1)


def check_threads(threads: int | None) -> int:
    """The number of threads to use. Raises ValueError for less than one."""
    if threads is not None and threads < 1:
        raise ValueError(f"{threads} threads; at least 1 is needed")
    return threads or default_threads()


# What to load: a name or glob pattern, several, or a mapping from names to what to take of each.
Names = str | Sequence[str] | Mapping[str, Index] | None


class Tensor:
    """One tensor of an open model. Nothing of it is read before it is indexed, read or converted."""

    def __init__(self, model: "Model", entry: TensorEntry, stored: TensorEntry) -> None:
        self._model, self._entry, self._stored = model, entry, stored

    @property
    def name(self) -> str:
        return self._entry.spec.name

    @property
    def dtype(self) -> np.dtype:
        """Of the values in NumPy; of ``ml_dtypes`` where NumPy has none."""
        return self._entry.spec.dtype.numpy

    @property
    def shape(self) -> tuple[int, ...]:
        return self._entry.spec.shape

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of values."""
        return self._entry.spec.size

    @property
    def nbytes(self) -> int:
        """Bytes that the values take, two 4-bit values to a byte."""
        return self._entry.spec.nbytes

    @property
    def encoding(self) -> str:
        """How the values are stored: ``raw``, ``planes``, ``quantized``, ``quantized + sparse``; ``same`` if they are those
        of another tensor, ``pieces`` if they lie in several tensors of archives."""
        if self._entry.part is None:
            return "same"
        return self._laid_down()[1].part.encoding  # type: ignore[union-attr]  # it has one

    @property
    def quality(self) -> Mapping[str, Any] | None:
        """What was asked for and what was reached, of values that were changed to be stored; None of all others.

        ``asked`` is the rule of the recipe, with its defaults. ``reached`` has ``bits`` (per weight, with all overhead),
        ``ratio`` (size of the values / stored), ``nmse`` (squared error / squared values), ``snr_db`` (the same as
        -10 log10; absent if there is no error), ``rmse`` and ``max_error``.
        """
        lossy = self._laid_down()[1].lossy
        return None if lossy is None else copy.deepcopy(dict(lossy))

    @property
    def base(self) -> tuple[str, str] | None:
        """(URL of the model, as ``Model.base_urls`` has it; name there) of the tensor whose values it begins with, if they are
        not its own."""
        owner, stored = self._laid_down()
        part = base_of(stored.part) if stored.part else None
        return (owner.document.bases[part.base], part.tensor) if part else None

    @property
    def sha256(self) -> str:
        """Digest of the values, little endian, in row-major order; empty if they lie in several tensors of archives, each of
        which has its own."""
        return self._entry.sha256 or self._laid_down()[1].sha256

    @property
    def stored_nbytes(self) -> int:
        """Bytes of the tensor's chunks in the container, or in all archives; 0 if the values are stored with another tensor.

        Raises CorruptError if a chunk is missing.
        """
        if self._model.archives and isinstance(self._entry.part, composite.Tiled):
            pieces = [self._model.archives.stored(each, self._entry.spec.dtype) for each in self._entry.part.pieces]
        else:
            pieces = [(self._model, self._entry)]
        return sum(self._chunk_nbytes(owner, key) for owner, entry in pieces for key in entry.chunk_keys())

    def read(self, out: Any = None, *, index: Index = ..., dtype: Any = None, threads: int = 1) -> Any:
        """The values: a new array, or ``out`` filled (an array of the same shape and dtype with any strides, or a
        contiguous CPU tensor of PyTorch), which is returned.

        index  what to take, as ``tensor[index]`` has it; all if not given
        dtype  of what is returned, of NumPy, ``ml_dtypes`` or PyTorch, or its name; None: the tensor's own. Quantized
               values are computed in float32 and rounded to it once, whatever the tensor's own dtype (but where a
               chunk would have more than 64 MiB in it: then they are rounded to the own one first); others are cast.
               Floats do not become integers, and complex and 4-bit values nothing else.

        Raises ValueError if ``out`` or ``dtype`` does not fit, CorruptError or StorageError.
        """
        tensor, selection = self._in(dtype), resolve(index, self.shape)
        if out is None:
            return tensor._select(selection, threads)
        spec = TensorSpec(self.name, tensor._entry.spec.dtype, selection.shape)
        words = frameworks.check_out(spec, out)
        if spec.dtype.packed:  # two values to a word, and a slice may begin at the second one
            values = tensor._select(selection, threads)
            if isinstance(out, np.ndarray):
                out[...] = values
            else:
                words[...] = spec.dtype.to_words(values)
            return out
        axes = [
            None if dropped else slice(None, None, -1 if back else 1)
            for dropped, back in zip(selection.dropped, selection.backwards, strict=True)
        ]
        tensor._fill(tensor._word_spans(selection), words[(*axes, ...)], threads)
        return out

    def components(self, framework: Framework = "numpy") -> Mapping[str, ComponentView]:
        """The arrays that the tensor is stored as, by name, for kernels that need no values: read where they are indexed.

        Each has ``shape``, ``dtype``, ``block`` (how many values an entry stands for on each axis) and NumPy's basic
        indexing, which reads only the chunks that it touches, and gives arrays, or tensors of PyTorch. What a read of the
        values would refuse is refused. A quantized tensor has

        codes       uint8, or uint16 for more than 256 levels, in the tensor's shape, one to an entry however they are
                    packed; where the codebook has ``d`` numbers for a code, the last axis is as many times shorter
        scale, scale-2, ...  float32, float16 or bfloat16, one for each block; no array or several, in order
        zero_point  int32 of one block, or uint8 or uint16 of several; absent if there is a codebook
        codebook    float32 [levels] or [levels, d]; absent if codes are uniform

        and its values are (codes - zero_point) or codebook[codes], times each scale, from left to right in float32, rounded
        to the dtype. Blocks at the far edges may be smaller. A sparse tensor has

        positions   int64 [n], ascending: where values are stored, in row-major order of the tensor; all others are 0
        values      [n]: those values, zeros among them where blocks or patterns are stored

        Both are read whole, and take memory for what is stored and not for zeros. A product of factors has

        left, right  [..., rank] and [rank, columns] in the dtype that they are stored in, however they are encoded
        scale        float32, one: what products are multiplied with

        or, if it is stored by axes, its factors and core by the names of FORMAT.md. Where factors or the values of a sparse tensor are not stored as they are, what they are made of has their name, a dot
        and its own name: ``left.codes``, ``values.scale`` (in the order of storage: chunk by chunk). A tensor that is stored
        ``raw`` has ``values``, in the dtype that they are stored in (one value if all are the same), ``planes`` has
        ``planes``: bytes, as FORMAT.md says. A tensor of ``ggml`` has the fields of its blocks, such as ``codes``, ``scale``,
        ``minimum`` and ``scales`` (see FORMAT.md), and ``blocks``: uint8, the rows as a GGUF file has them.

        Where a tensor has several parts (``encoding`` has a ``+``), the components of the second one begin with ``2.``, those
        of the third with ``3.``: ``2.positions`` and ``2.values`` of outliers, which replace what the first part gives. The
        values of another model that a tensor begins with are no array of this one: see ``base``.
        """
        frameworks.check_framework(framework)
        self._check_own()
        return components(self._stored, self._open, framework)

    def to_scipy(self, format: ScipyFormat = "csr") -> Any:  # noqa: A002  SciPy's name for it
        """A sparse tensor as a sparse array of SciPy (``pip install 'mzstore[sparse]'``): ``csr``, ``coo``, ``csc`` or ``bsr``.

        Takes memory for what is stored and not for zeros. ``bsr`` has the blocks that are stored. Zeros that are stored (in
        blocks, in patterns) are entries. Indices are int32 where they fit. Floats of 8 and 16 bits, which SciPy does not
        have, become float32. Raises ValueError for a tensor that is not stored as ``sparse`` alone or that is no matrix
        (but ``coo`` takes any), ImportError without SciPy, CorruptError or StorageError.
        """
        self._check_own()
        return to_scipy(self.name, self._stored, self._open, format)

    def to_torch(self, layout: TorchLayout = "coo") -> Any:
        """The tensor in PyTorch: ``coo``, ``csr`` or ``bsr`` without the zeros of a sparse one, as ``to_scipy`` has it, but in
        its own dtype and with indices of int64; or ``strided``: all values, of any tensor.

        Raises ValueError, ImportError without PyTorch, CorruptError or StorageError.
        """
        check_layout(layout)
        if layout == "strided":
            return self._model.load([self.name], framework="torch", threads=1)[self.name]
        self._check_own()
        return to_torch(self.name, self._stored, self._open, layout)

    def _open(self, entry: TensorEntry) -> "Tensor":
        return Tensor(self._model, entry, entry)

    def _check_own(self) -> None:
        """Raises ValueError for a tensor whose arrays are those of archives."""
        if self._model.archives and isinstance(self._entry.part, composite.Tiled):
            places = dict.fromkeys(self._model.archives.path(piece) for piece in self._entry.part.pieces)
            raise ValueError(
                f"tensor {self.name!r} is made of pieces of archives, which have the arrays: open {' or '.join(places)}"
            )

    def shard(self, axis: int | None, index: int, count: int) -> np.ndarray:
        """The part that rank ``index`` of ``count`` holds if the tensor is cut on ``axis``; all of it for None.

        As ``torch.chunk`` cuts: all parts are as long as the first, but the last ones may be shorter or empty.
        Raises ValueError for an index or a count that cannot be, IndexError for an axis that is not there.
        """
        values: np.ndarray = self._select(resolve(shard_slices(self.shape, axis, index, count), self.shape), 1)
        return values

    def __getitem__(self, index: Index) -> Any:
        """The values that ``index`` takes, as NumPy's basic indexing does: integers, slices with any step, ``...``.

        Only the chunks that hold such values are read. Gives an array, or a scalar where NumPy gives one.
        """
        return self._select(resolve(index, self.shape), 1, scalar=not _has_ellipsis(index))

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("a stored tensor cannot become an array without a copy")
        values: np.ndarray = self._select(resolve(..., self.shape), 1)
        return values if dtype is None else values.astype(dtype, copy=False)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of a tensor without dimensions")
        return self.shape[0]

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        how = self._entry.part.encoding if self._entry.part else "same"  # nothing is opened to show a tensor
        return f"<mzstore.Tensor {self.name!r}: {self._entry.spec.dtype.name} {list(self.shape)}, {how}>"

    def _in(self, dtype: Any) -> "Tensor":
        """This tensor as a read in ``dtype`` sees it."""
        if dtype is None:
            return self
        wanted = dtypes.of(dtype)
        try:
            dtypes.check_cast(self._entry.spec.dtype, wanted)
        except ValueError as error:
            raise ValueError(f"tensor {self.name!r}: {error}") from None
        entry = bound(self._entry, wanted)
        return Tensor(self._model, entry, entry if self._stored is self._entry else bound(self._stored, wanted))

    def _laid_down(self) -> tuple[Opened, TensorEntry]:
        """The model that has the values, and its tensor: of a tensor that is one piece, its archive, which is opened."""
        part = self._stored.part
        piece = part.whole if isinstance(part, composite.Tiled) else None
        if piece is None or self._model.archives is None:
            return self._model, self._stored
        return self._model.archives.stored(piece, self._stored.spec.dtype)

    def _chunk_nbytes(self, owner: Opened, key: str) -> int:
        nbytes = owner.reader.nbytes(key)
        if nbytes is None:
            raise missing_chunk(key, where=f"{owner.reader.url}, tensor {self.name!r}")
        return nbytes

    def _fill(self, spans: tuple[Span, ...], words: np.ndarray, threads: int) -> None:
        whole = words.shape == self._entry.spec.word_shape
        cached = self._model._cached(self, threads, make=whole)
        if cached is None:
            fill(self._model, [Wanted(self._stored, spans, words)], threads)
        else:
            words[...] = cached[_cut(spans)]

    def _select(self, selection: Selection, threads: int, scalar: bool = False) -> Any:
        frameworks.check_memory(math.prod(selection.counts) * self.dtype.itemsize)
        spans, words, finish = self._prepare(selection, "numpy")
        self._fill(spans, words, threads)
        values = finish()
        return values[()] if scalar and not selection.shape else values

    def _word_spans(self, selection: Selection) -> tuple[Span, ...]:
        """The words in which the values of ``selection`` lie."""
        dtype, spans = self._entry.spec.dtype, selection.spans
        if dtype.parts == 2:
            return (*spans, Span(0, 2))
        if not dtype.packed or not spans:
            return spans
        last = spans[-1]
        first = last.start // 2
        return (*spans[:-1], Span(first, (last.stop + 1) // 2 - first if last.count else 0))

    def _prepare(
        self, selection: Selection, framework: Framework
    ) -> tuple[tuple[Span, ...], np.ndarray, Callable[[], Any]]:
        """For the values that ``selection`` takes: which words to read, into what, and what gives the result then."""
        dtype, spans = self._entry.spec.dtype, self._word_spans(selection)
        as_they_lie = not any(selection.backwards)
        if dtype.packed and self.shape:
            last = selection.spans[-1]
            whole_words = last.start % 2 == 0 and (last.stop % 2 == 0 or last.stop == self.shape[-1])
            as_they_lie &= whole_words and last.step == 1 and not selection.dropped[-1]
        if as_they_lie:
            words, finish = frameworks.allocate(TensorSpec(self.name, dtype, selection.counts), framework)
            kept = (*(0 if dropped else slice(None) for dropped in selection.dropped), ...)
            return spans, words, lambda: finish()[kept] if any(selection.dropped) else finish()

        words = np.empty(tuple(span.count for span in spans), dtype.word)

        def pick() -> Any:
            counts = (*selection.counts[:-1], 2 * spans[-1].count) if dtype.packed else selection.counts
            values = dtype.from_words(words, counts)
            if dtype.packed:
                last = selection.spans[-1]
                values = values[..., last.start % 2 :][..., : last.stop - last.start : last.step]
            values = np.ascontiguousarray(values[selection.flips]).reshape(selection.shape)
            if framework == "numpy":
                return values
            own, finish = frameworks.allocate(TensorSpec(self.name, dtype, selection.shape), framework)
            own[...] = dtype.to_words(values)
            return finish()

        return spans, words, pick


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor of an open model as a source for writing, verifying and comparing: words by ranges."""

    model: Opened
    entry: TensorEntry  # whose spec and digest it is
    stored: TensorEntry  # which has the values
    threads: int = 1

    @property
    def spec(self) -> TensorSpec:
        return self.entry.spec

    @property
    def sha256(self) -> str:
        """Empty if nobody has stated it: of all that lies in several archives."""
        return self.entry.sha256

    @property
    def changed(self) -> bool:
        """Whether codes or factors stand for its values, or others were made 0: as words these would take more, or what was
        reached would be forgotten."""
        assert self.stored.part is not None
        if base_of(self.stored.part) or isinstance(self.stored.part, composite.Tiled):
            return False
        return self.stored.lossy is not None or not encodings_of([self.stored]) <= LOSSLESS

    @property
    def block_type(self) -> BlockType | None:
        """Of ggml, as whose blocks the values are stored; None if they are not."""
        return self.stored.part.kind if isinstance(self.stored.part, Ggml) else None

    def read_blocks(self, start: int, stop: int) -> np.ndarray:
        """Blocks ``[start, stop)`` in row-major order, uint8 [stop - start, bytes of a block]."""
        part = self.stored.part
        assert isinstance(part, Ggml)
        view = Numbers(part, None)
        spec = TensorSpec(self.spec.name, view.dtype, view.grid.shape)
        entry = replace(self.stored, spec=spec, part=view)
        nbytes = part.kind.nbytes
        data = StoredTensor(self.model, entry, entry, self.threads).read(start * nbytes, stop * nbytes)
        return data.reshape(-1, nbytes)

    def payloads(self) -> Iterator[tuple[str, bytes, bool]]:
        """(path below the node, payload, whether it is uncompressed) of all chunks, each checked against its checksum."""
        part = self.stored.part
        assert part is not None
        for chunk in part.grid.chunks():
            for component in part.components:
                if not first_of(part, component, chunk):
                    continue
                path = chunk_path(part, component, chunk)
                key, where = (
                    f"{self.stored.node}/{path}",
                    f"{self.model.reader.url}, tensor {self.spec.name!r}, chunk {chunk}",
                )
                data = self.model.reader.read_chunk(key, "copy")
                if data is None:
                    raise missing_chunk(key, where=where)
                unseal(data, where=where)
                yield path, bytes(data), not component.array.zstd

    def read(self, start: int, stop: int) -> np.ndarray:
        """Words ``[start, stop)`` in row-major order; decodes the whole rows of chunks that they lie in."""
        shape = self.spec.word_shape
        assert self.stored.part is not None
        axis = self.stored.part.grid.block_axis if shape else 0
        row = math.prod(shape[axis + 1 :])  # words below one position of that axis
        length = shape[axis] if shape else 1
        first, last = start // row if row else 0, -(-stop // row) if row else 0
        frameworks.check_memory((last - first) * row * self.spec.dtype.word.itemsize)
        words = np.empty((last - first, *shape[axis + 1 :]), self.spec.dtype.word)
        at = first
        while at < last:
            outer, begin = divmod(at, length)
            count = min(length - begin, last - at)
            index = np.unravel_index(outer, shape[:axis]) if axis > 0 else ()
            spans = (
                *(Span(int(i), 1) for i in index),
                *([Span(begin, count)] if shape else []),
                *(Span(0, n) for n in shape[axis + 1 :]),
            )
            part = words[at - first :][:count].reshape(tuple(span.count for span in spans))
            fill(self.model, [Wanted(self.stored, spans, part)], self.threads)
            at += count
        return words.reshape(-1)[start - first * row :][: stop - start]


class Model(Mapping[str, Tensor]):
    """An open model: a mapping from tensor names to tensors, in the order in which they were saved.

    Safe to use from several threads, and in processes forked from this one. Close it, or use it in a ``with`` block.
    """

    def __init__(
        self,
        reader: Reader,
        document: ModelDocument,
        opening: _Opening,
        bases: Bases,
        archives: composite.Archives | None = None,
    ) -> None:
        self.reader, self.document, self._opening = reader, document, opening
        self.bases, self.archives = bases, archives
        self._cache = TensorCache(opening.cache_nbytes, reader.stats)
        bases.family.add(self)

    @property
    def url(self) -> str:
        return self.reader.url

    @property
    def base_urls(self) -> Sequence[str]:
        """The models that this one refers to, as it has them: URLs, or paths beside it."""
        return self.document.bases

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What was saved with the model under ``metadata``."""
        return self.document.metadata

    @property
    def nbytes(self) -> int:
        """Bytes of all values."""
        return sum(entry.spec.nbytes for entry in self.document.tensors.values())

    @property
    def stats(self) -> Stats:
        """What reading has cost so far: requests to remote storage, bytes, seconds of waiting; hits of the cache."""
        return self.reader.stats

    @property
    def assets(self) -> Mapping[str, bytes]:
        """The files that travel with the model, by path; read when they are asked for."""
        return _Assets(self)

    def __getitem__(self, name: str) -> Tensor:
        entry = self.document.tensors.get(name)
        if entry is None:
            raise KeyError(f"no tensor {name!r} in {self.url!r}{self._nearest(name)}")
        return Tensor(self, entry, self.document.stored(entry))

    def __iter__(self) -> Iterator[str]:
        return iter(self.document.tensors)

    def __len__(self) -> int:
        return len(self.document.tensors)

    def __contains__(self, name: object) -> bool:
        return name in self.document.tensors

    __eq__ = object.__eq__  # not that of Mapping, which would read and compare all values
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"<mzstore.Model {self.url!r}: {len(self)} tensors, {self.nbytes} bytes>"

    def names(self, patterns: str | Sequence[str] | None = None) -> list[str]:
        """The names that match: a name or glob pattern, or several; all for None. KeyError if one matches nothing."""
        if patterns is None:
            return list(self)
        wanted: dict[str, None] = {}
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            matches = [pattern] if pattern in self else [n for n in self if fnmatch.fnmatchcase(n, pattern)]
            if not matches:
                raise KeyError(f"no tensor matches {pattern!r} in {self.url!r}{self._nearest(pattern)}")
            wanted.update(dict.fromkeys(matches))
        return list(wanted)

    def load(
        self,
        names: Names = None,
        *,
        shard: tuple[int, int] | None = None,
        axis: Axis = 0,
        dtype: Any = None,
        framework: Framework = "numpy",
        threads: int | None = None,
        show_progress: bool | None = None,
    ) -> dict[str, Any]:
        """Tensors as arrays of NumPy, or tensors of PyTorch (which needs to be installed) on the CPU.

        names          names or glob patterns; or a mapping from names to what to take of them, as ``tensor[...]``
                       has it; None for all
        shard          (index, count): of each tensor only the part of one of ``count`` ranks; see ``Tensor.shard``
        axis           on which axis tensors are cut for ``shard``: an integer, where a tensor without this axis is loaded
                       whole; or a mapping from glob patterns to axes, the first that matches; or a function of (name,
                       shape). None among the latter, or no match, means whole
        dtype          of all that have floats of 8 bits or more, see ``Tensor.read``; others stay as they are
        threads        that decode; None: one for each processor
        show_progress  None: if it takes long and stderr is a terminal

        From remote storage all is read by one plan, see ``plan``. Every array has memory of its own, also where values
        are stored once for several tensors. In PyTorch, float4_e2m1fn comes as ``float4_e2m1fn_x2`` (two values each),
        int4 and uint4 as int8 and uint8. Raises KeyError for a name that matches nothing, MemoryError for more than this
        machine has.
        """
        frameworks.check_framework(framework)
        chosen = self._chosen(names, shard, axis, dtype)
        total = sum(_nbytes(tensor, selection) for tensor, selection in chosen)
        frameworks.check_memory(total)
        if self.reader.local:
            kernels.expect(total)
        else:  # there is time for it while the first bytes are on their way
            threading.Thread(target=kernels.expect, args=(total,), name="mzstore-kernels").start()
        finishers, todo, fresh = {}, [], []
        for tensor, selection in chosen:
            spans, words, finishers[tensor.name] = tensor._prepare(selection, framework)
            cached = self._cached(tensor, 1, make=False)
            if cached is not None:
                words[...] = cached[_cut(spans)]
                continue
            todo.append(Wanted(tensor._stored, spans, words))
            if words.shape == tensor._entry.spec.word_shape and 0 < words.nbytes <= self._cache.budget_nbytes:
                fresh.append((_cache_key(tensor), words))
        with progress("load", total, show_progress) as done:
            fill(self, todo, check_threads(threads), done)
        for key, words in fresh:
            self._cache.put(key, words.copy())  # the caller may change what he gets
        return {name: finish() for name, finish in finishers.items()}

    def plan(
        self, names: Names = None, *, shard: tuple[int, int] | None = None, axis: Axis = 0, dtype: Any = None
    ) -> Plan:
        """What ``load`` with the same arguments would ask remote storage for. Without I/O, but that bases are opened."""
        chosen = self._chosen(names, shard, axis, dtype)

        def wanted(tensor: Tensor, selection: Selection) -> Wanted:
            spans = tensor._word_spans(selection)
            nowhere = np.broadcast_to(np.zeros((), tensor._entry.spec.dtype.word), [span.count for span in spans])
            return Wanted(tensor._stored, spans, nowhere)

        return plan(self, [wanted(*each) for each in chosen], sum(_nbytes(*each) for each in chosen))

    def _chosen(
        self, names: Names, shard: tuple[int, int] | None, axis: Axis, dtype: Any
    ) -> list[tuple[Tensor, Selection]]:
        wanted = None if dtype is None else dtypes.of(dtype)
        if wanted and not wanted.is_float:
            raise ValueError(f"a model is not loaded as {wanted.name}: only its floats are converted, to other floats")

        def find(name: str) -> Tensor:
            tensor = self[name]
            return tensor._in(wanted) if wanted and tensor._entry.spec.dtype.is_float else tensor

        if isinstance(names, Mapping):
            if shard is not None:
                raise ValueError("either say what to take of each tensor, or give a shard")
            return [(tensor := find(name), _resolved(index, tensor)) for name, index in names.items()]
        found = []
        for tensor in (find(name) for name in self.names(names)):
            index: Index = ...
            if shard is not None:
                index = shard_slices(tensor.shape, axis_of(axis, tensor.name, tensor.shape), *shard)
            found.append((tensor, resolve(index, tensor.shape)))
        return found

    def _cached(self, tensor: Tensor, threads: int, *, make: bool) -> np.ndarray | None:
        """All words of ``tensor`` out of the cache (not to be changed); None if they are not there, or do not fit.

        make  whether to read them if they are not there: a part of a tensor is not worth that
        """
        spec, stored = tensor._entry.spec, tensor._stored
        if not 0 < spec.nbytes <= self._cache.budget_nbytes:
            return None
        if not make:
            return self._cache.get(_cache_key(tensor))

        def make_words() -> np.ndarray:
            words = np.empty(spec.word_shape, spec.dtype.word)
            fill(self, [Wanted(stored, all_of(spec.word_shape), words)], threads)
            return words

        return self._cache.fetch(_cache_key(tensor), spec.nbytes, make_words)

    def sources(self, threads: int = 1) -> list[StoredTensor]:
        """All tensors, to be read by ranges of words; one that is all of a tensor of an archive, as that. Opens archives."""
        return [self._source(tensor, threads) for tensor in self.values()]

    def _source(self, tensor: Tensor, threads: int) -> StoredTensor:
        owner, stored = tensor._laid_down()
        entry = tensor._entry
        if owner is not self:
            entry = replace(entry, sha256=stored.sha256)
        return StoredTensor(owner, entry, stored, threads)

    def zarr(self) -> "zarr.Group":
        """The hierarchy as zarr-python sees it: encoded components, not values. For local archives and trees.

        Raises ValueError for a model of several archives, each of which has its own.
        """
        import zarr
        from zarr.storage import LocalStore, ZipStore

        if self.archives:
            raise ValueError(f"{self.url!r} is a manifest: each of its archives is a hierarchy of its own")
        store = LocalStore(self.url, read_only=True) if os.path.isdir(self.url) else ZipStore(self.url, mode="r")
        return zarr.open_group(store, mode="r")

    def close(self) -> None:
        self.bases.family.close()
        self.reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[object, ...]:
        return (_reopen, (self._opening,))

    def _nearest(self, name: object) -> str:
        if not isinstance(name, str):
            return ""
        near = difflib.get_close_matches(name, self.document.tensors, n=3, cutoff=0.4)
        return f"; nearest: {', '.join(map(repr, near))}" if near else ""


class _Assets(Mapping[str, bytes]):
    def __init__(self, model: Model) -> None:
        self._model = model
        self._by_path = {asset.path: asset for asset in model.document.assets}

    def __getitem__(self, path: str) -> bytes:
        return b"".join(bytes(block) for block in asset_blocks(self._model.reader, self._by_path[path]))

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_path)

    def __len__(self) -> int:
        return len(self._by_path)


def asset_blocks(reader: Objects, asset: Asset) -> Iterator[memoryview]:
    """The content of an asset, piece by piece, checked against its digest at the end."""
    import hashlib

    where = f"{reader.url}, {asset.key!r}"
    operation = reader.start()
    stored = reader.nbytes(asset.key, operation)
    if stored != asset.nbytes:
        raise CorruptError(
            f"asset {asset.path!r} has {asset.nbytes} bytes, {stored or 0} are stored", where=where, clause="asset-3"
        )
    digest = hashlib.sha256()
    for block in reader.read_blocks(asset.key, BLOCK_NBYTES, operation):
        digest.update(block)
        yield block
    if digest.hexdigest() != asset.sha256:
        raise CorruptError(
            f"the digest of asset {asset.path!r} does not hold; restore the file from a copy",
            where=where,
            clause="asset-3",
        )


def _reopen(opening: _Opening) -> Model:
    return open(
        opening.location,
        storage_options=opening.options,
        retry=opening.retry,
        cache_bytes=opening.cache_nbytes,
        bases=opening.bases,
    )


def _resolved(index: Index, tensor: Tensor) -> Selection:
    """``index`` of ``tensor``; what is wrong with it is said with the name, because it is one of several."""
    try:
        return resolve(index, tensor.shape)
    except (IndexError, TypeError) as error:
        raise type(error)(f"tensor {tensor.name!r}: {error}") from error


def _cut(spans: tuple[Span, ...]) -> tuple[slice, ...]:
    return tuple(slice(span.start, span.stop, span.step) for span in spans)


def _cache_key(tensor: Tensor) -> Hashable:
    """What is read in another dtype, and codes and factors at a tensor's node, are not its own values."""
    part = tensor._stored.part
    assert part is not None
    names = tuple(component.name for component in part.components)
    return tensor._stored.node, tensor._entry.spec.dtype.name, names


def _nbytes(tensor: Tensor, selection: Selection) -> int:
    dtype = tensor._entry.spec.dtype
    return math.prod(dtype.word_shape(selection.counts)) * dtype.word.itemsize


def _has_ellipsis(index: Index) -> bool:
    return index is Ellipsis or (isinstance(index, tuple) and any(item is Ellipsis for item in index))

"""Model and Tensor: what a user opens and reads."""

import difflib
import fnmatch
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from mzstore import frameworks, kernels
from mzstore.container import Reader, open_reader, read_model
from mzstore.decode import jobs, missing_chunk, run
from mzstore.documents import Asset, ModelDocument, TensorEntry
from mzstore.errors import CorruptError
from mzstore.frameworks import Framework
from mzstore.progress import progress
from mzstore.selection import Index, Selection, Span, resolve
from mzstore.storage import BLOCK_NBYTES, Location, Options
from mzstore.tensors import TensorSpec

if TYPE_CHECKING:
    import zarr


def open(location: Location, *, storage_options: Options = None) -> "Model":  # noqa: A001  what a user types is mzstore.open
    """Open a model for reading: an archive or a tree, at a path or any fsspec URL, or an archive's bytes.

    Reads the documents only. Raises FormatError, UnsupportedError, CorruptError or StorageError.
    """
    reader = open_reader(location, storage_options)
    try:
        return Model(reader, read_model(reader), location, storage_options)
    except BaseException:
        reader.close()
        raise


def default_threads() -> int:
    """As many as this process may use processors, up to 16."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(16, usable or 1)


def check_threads(threads: int | None) -> int:
    """The number of threads to use. Raises ValueError for less than one."""
    if threads is not None and threads < 1:
        raise ValueError(f"{threads} threads; at least 1 is needed")
    return threads or default_threads()


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
        """How the values are stored: ``raw``, ``planes``; ``same`` if they are those of another tensor."""
        return self._entry.part.encoding if self._entry.part else "same"

    @property
    def sha256(self) -> str:
        """Digest of the values, little endian, in row-major order."""
        return self._entry.sha256

    @property
    def stored_nbytes(self) -> int:
        """Bytes of the tensor's chunks in the container; 0 if the values are stored with another tensor.

        Raises CorruptError if a chunk is missing.
        """
        return sum(self._chunk_nbytes(key) for key in self._entry.chunk_keys())

    def read(self, out: Any = None, *, threads: int = 1) -> Any:
        """All values: a new array, or ``out`` filled (an array of this shape and dtype with any strides, or a
        contiguous CPU tensor of PyTorch), which is returned.

        Raises ValueError if ``out`` does not fit, CorruptError or StorageError.
        """
        if out is None:
            return self._select(resolve(..., self.shape), threads)
        words = frameworks.check_out(self._entry.spec, out)
        if self._entry.spec.dtype.packed and isinstance(out, np.ndarray):  # a value to a byte, words have two
            out[...] = self._select(resolve(..., self.shape), threads)
        else:
            self._fill(words, threads)
        return out

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
        return f"<mzstore.Tensor {self.name!r}: {self._entry.spec.dtype.name} {list(self.shape)}, {self.encoding}>"

    def _chunk_nbytes(self, key: str) -> int:
        nbytes = self._model.reader.nbytes(key)
        if nbytes is None:
            raise missing_chunk(key, where=f"{self._model.url}, tensor {self.name!r}")
        return nbytes

    def _fill(self, words: np.ndarray, threads: int) -> None:
        spans = tuple(Span(0, n) for n in self._entry.spec.word_shape)
        run(self._model.reader, jobs(self._stored, spans, words), threads)

    def _select(self, selection: Selection, threads: int, scalar: bool = False) -> Any:
        dtype = self._entry.spec.dtype
        spans, counts = selection.spans, selection.counts
        if dtype.packed and spans:  # two values share a word: read whole words, then take values
            last = spans[-1]
            first = last.start // 2
            words_span = Span(first, (last.stop + 1) // 2 - first if last.count else 0)
            spans, counts = (*spans[:-1], words_span), (*counts[:-1], 2 * words_span.count)
        elif dtype.parts == 2:
            spans = (*spans, Span(0, 2))
        frameworks.check_memory(math.prod(counts) * dtype.numpy.itemsize)
        words = np.empty(tuple(span.count for span in spans), dtype.word)
        run(self._model.reader, jobs(self._stored, spans, words), threads)
        values = dtype.from_words(words, counts)
        if dtype.packed and selection.spans:
            last = selection.spans[-1]
            values = np.ascontiguousarray(values[..., last.start % 2 :][..., : last.stop - last.start : last.step])
        if any(selection.backwards):
            values = values[selection.flips]
        values = values.reshape(selection.shape)
        return values[()] if scalar and not selection.shape else values


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor of an open model as a source for writing, verifying and comparing: words by ranges."""

    reader: Reader
    entry: TensorEntry  # whose spec and digest it is
    stored: TensorEntry  # which has the values
    threads: int = 1

    @property
    def spec(self) -> TensorSpec:
        return self.entry.spec

    @property
    def sha256(self) -> str:
        return self.entry.sha256

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
            run(self.reader, jobs(self.stored, spans, part), self.threads)
            at += count
        return words.reshape(-1)[start - first * row :][: stop - start]


class Model(Mapping[str, Tensor]):
    """An open model: a mapping from tensor names to tensors, in the order in which they were saved.

    Safe to use from several threads, and in processes forked from this one. Close it, or use it in a ``with`` block.
    """

    def __init__(self, reader: Reader, document: ModelDocument, location: Location, options: Options) -> None:
        self.reader, self.document = reader, document
        self._location, self._options = location, options
        self._by_node = {entry.node: entry for entry in document.tensors.values()}

    @property
    def url(self) -> str:
        return self.reader.url

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What was saved with the model under ``metadata``."""
        return self.document.metadata

    @property
    def nbytes(self) -> int:
        """Bytes of all values."""
        return sum(entry.spec.nbytes for entry in self.document.tensors.values())

    @property
    def assets(self) -> Mapping[str, bytes]:
        """The files that travel with the model, by path; read when they are asked for."""
        return _Assets(self)

    def __getitem__(self, name: str) -> Tensor:
        entry = self.document.tensors.get(name)
        if entry is None:
            raise KeyError(f"no tensor {name!r} in {self.url!r}{self._nearest(name)}")
        return Tensor(self, entry, entry if entry.part else self._by_node[entry.same_as])

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

    def names(self, patterns: str | list[str] | tuple[str, ...] | None = None) -> list[str]:
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
        names: str | list[str] | tuple[str, ...] | None = None,
        *,
        framework: Framework = "numpy",
        threads: int | None = None,
        show_progress: bool | None = None,
    ) -> dict[str, Any]:
        """Tensors as arrays of NumPy, or tensors of PyTorch (which needs to be installed) on the CPU.

        names          names or glob patterns; None for all
        threads        None: one for each processor
        show_progress  None: if it takes long and stderr is a terminal

        Every array has memory of its own, also where values are stored once for several tensors. In PyTorch,
        float4_e2m1fn comes as ``float4_e2m1fn_x2`` (two values each), int4 and uint4 as int8 and uint8.
        Raises KeyError for a name that matches nothing, MemoryError for more than this machine has.
        """
        frameworks.check_framework(framework)
        chosen = [self[name] for name in self.names(names)]
        total = sum(tensor.nbytes for tensor in chosen)
        frameworks.check_memory(total)
        kernels.expect(total)
        finishers, todo = {}, []
        for tensor in chosen:
            spec = tensor._entry.spec
            words, finishers[tensor.name] = frameworks.allocate(spec, framework)
            todo.append(jobs(tensor._stored, tuple(Span(0, n) for n in spec.word_shape), words))
        with progress("load", total, show_progress) as done:
            run(self.reader, (job for group in todo for job in group), check_threads(threads), done)
        return {name: finish() for name, finish in finishers.items()}

    def sources(self, threads: int = 1) -> list[StoredTensor]:
        """All tensors, to be read by ranges of words."""
        return [StoredTensor(self.reader, t._entry, t._stored, threads) for t in self.values()]

    def zarr(self) -> "zarr.Group":
        """The hierarchy as zarr-python sees it: encoded components, not values. For local archives and trees."""
        import zarr
        from zarr.storage import LocalStore, ZipStore

        store = LocalStore(self.url, read_only=True) if os.path.isdir(self.url) else ZipStore(self.url, mode="r")
        return zarr.open_group(store, mode="r")

    def close(self) -> None:
        self.reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[object, ...]:
        return (_reopen, (self._location, self._options))

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


def asset_blocks(reader: Reader, asset: Asset) -> Iterator[memoryview]:
    """The content of an asset, piece by piece, checked against its digest at the end."""
    import hashlib

    where = f"{reader.url}, {asset.key!r}"
    stored = reader.nbytes(asset.key)
    if stored != asset.nbytes:
        raise CorruptError(
            f"asset {asset.path!r} has {asset.nbytes} bytes, {stored or 0} are stored", where=where, clause="asset-3"
        )
    digest = hashlib.sha256()
    for block in reader.read_blocks(asset.key, BLOCK_NBYTES):
        digest.update(block)
        yield block
    if digest.hexdigest() != asset.sha256:
        raise CorruptError(
            f"the digest of asset {asset.path!r} does not hold; restore the file from a copy",
            where=where,
            clause="asset-3",
        )


def _reopen(location: Location, options: Options) -> Model:
    return open(location, storage_options=options)


def _has_ellipsis(index: Index) -> bool:
    return index is Ellipsis or (isinstance(index, tuple) and any(item is Ellipsis for item in index))

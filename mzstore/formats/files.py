"""Files as their formats' readers want them: as file objects, by many ranges, and as copies where bytes lie in another order."""

import io
import os
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from mzstore.errors import StorageError
from mzstore.formats import nibbles
from mzstore.storage import Blob, OnBytes, Operation
from mzstore.tensors import TensorSpec

AT_A_TIME = 16  # ranges of a remote file that are being read
MAX_COPIES = 3  # a writer reads one tensor, reads ahead another, and comes back to a third
SLAB_NBYTES = 16 << 20


class BlobFile(io.RawIOBase):
    """A blob as a binary file to read and seek in."""

    def __init__(self, blob: Blob) -> None:
        self._blob, self._at = blob, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, out: Any) -> int:
        out = memoryview(out).cast("B")
        stop = min(self._at + len(out), self._blob.nbytes)
        count = max(0, stop - self._at)
        out[:count] = self._blob.read(self._at, stop) if count else b""
        self._at += count
        return count

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        at = offset + (0, self._at, self._blob.nbytes)[whence]
        if at < 0:
            raise ValueError(f"position {at} is before the start of the file")
        self._at = at
        return at

    def tell(self) -> int:
        return self._at


class Part:
    """``nbytes`` of a blob from ``first`` on, as a Blob. Who opened the blob closes it."""

    def __init__(self, blob: Blob, first: int, nbytes: int) -> None:
        self.blob, self.first, self.nbytes = blob, first, nbytes
        self.url, self.local, self.version = blob.url, blob.local, blob.version

    def read(self, start: int, stop: int, slot: str = "", operation: Operation | None = None) -> memoryview:
        return self.blob.read(self.first + start, self.first + stop, slot, operation)

    def start(self) -> Operation:
        return self.blob.start()

    def fetch(self, start: int, stop: int, operation: Operation, on_bytes: OnBytes | None = None) -> memoryview:
        return self.blob.fetch(self.first + start, self.first + stop, operation, on_bytes)

    def check_unchanged(self, operation: Operation) -> None:
        self.blob.check_unchanged(operation)

    def close(self) -> None: ...


def read_many(blob: Blob, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """The bytes of many short ranges; of a remote file several at a time."""

    def read(start_stop: tuple[int, int]) -> bytes:
        start, stop = start_stop
        return bytes(blob.read(start, stop)) if stop > start else b""

    if blob.local or len(ranges) < 2:
        return [read(each) for each in ranges]
    with ThreadPoolExecutor(AT_A_TIME, thread_name_prefix="mzstore-read") as pool:
        return list(pool.map(read, ranges))


class Readable(Protocol):
    """What tensors lie in: a Blob, or what stands for a part of one."""

    def read(self, start: int, stop: int, /) -> memoryview: ...


class Temporary:
    """A file without a name, closed when nobody refers to it any more."""

    def __init__(self) -> None:
        self._fd, path = tempfile.mkstemp(prefix="mzstore-")
        os.unlink(path)

    def write(self, data: bytes | memoryview, at: int) -> None:
        view = memoryview(data).cast("B")
        while view:
            count = os.pwrite(self._fd, view, at)
            view, at = view[count:], at + count

    def read(self, start: int, stop: int) -> bytes:
        out = bytearray(stop - start)
        view = memoryview(out)
        while view:
            count = os.preadv(self._fd, [view], start)
            if not count:
                raise EOFError("a temporary file is shorter than what was written to it")
            view, start = view[count:], start + count
        return bytes(out)

    def __del__(self) -> None:
        os.close(self._fd)


@dataclass
class Copies:
    """Temporary files (in TMPDIR), one for each thing that can only be read from its beginning; the last few are kept.

    So reads are by range, in any order and as often as one likes, for constant memory.
    """

    _files: OrderedDict[object, Temporary] = field(default_factory=OrderedDict)
    _lock: threading.RLock = field(default_factory=threading.RLock)  # a copy may be made of another one

    @classmethod
    def of(cls, stack: ExitStack) -> "Copies":
        copies = cls()
        stack.callback(copies._files.clear)
        return copies

    def read(self, key: object, fill: Callable[[Temporary], None], start: int, stop: int) -> bytes:
        """Bytes of the file that ``fill`` writes."""
        with self._lock:
            file = self._files.get(key)
            if file is None:
                try:
                    file = Temporary()
                    fill(file)
                except OSError as error:
                    raise StorageError(
                        f"cannot make a temporary copy in {tempfile.gettempdir()!r}: {error.strerror or error}; let TMPDIR name a "
                        "directory with more room"
                    ) from error
                self._files[key] = file
            self._files.move_to_end(key)
            while len(self._files) > MAX_COPIES:
                self._files.popitem(last=False)  # closed when the last read of it is done
        return file.read(start, stop)


@dataclass(frozen=True, slots=True, eq=False)
class Copied:
    """A Readable that ``blocks`` gives from its beginning."""

    copies: Copies
    blocks: Callable[[], Iterator[bytes]]

    def read(self, start: int, stop: int, /) -> memoryview:
        return memoryview(self.copies.read(self, self._fill, start, stop))

    def _fill(self, file: Temporary) -> None:
        at = 0
        for block in self.blocks():
            file.write(block, at)
            at += len(block)


def owned(data: "Blob | Copied", start: int, stop: int) -> bytes | memoryview:
    """Bytes ``[start, stop)`` in memory of their own: words go to other threads. Remote storage is read by several requests at once."""
    if isinstance(data, Copied):
        return data.read(start, stop)
    return data.fetch(start, stop, data.start()) if data.local else bytes(data.read(start, stop))


@dataclass(frozen=True, slots=True)
class PlainTensor:
    """A TensorSource whose words lie in ``blob`` as they are: little endian, row-major, from byte ``start`` on."""

    spec: TensorSpec
    blob: Blob | Copied
    start: int

    def read(self, start: int, stop: int) -> np.ndarray:
        size = self.spec.dtype.word.itemsize
        return np.frombuffer(
            owned(self.blob, self.start + start * size, self.start + stop * size), self.spec.dtype.word
        )


@dataclass(frozen=True, slots=True)
class Nibbles:
    """A TensorSource of 4-bit values, in rows of an odd number, that lie in an open file without padding."""

    spec: TensorSpec
    blob: Blob
    start: int

    def read(self, start: int, stop: int) -> np.ndarray:
        return nibbles.unpack(self.spec, start, stop, lambda a, b: self.blob.read(self.start + a, self.start + b))


def lying(spec: TensorSpec, blob: Blob, start: int) -> PlainTensor | Nibbles:
    """The tensor whose values lie in an open file, little endian and side by side, from byte ``start`` on."""
    return Nibbles(spec, blob, start) if nibbles.repacked(spec) else PlainTensor(spec, blob, start)


def check_unchanged(blobs: Iterable[Blob]) -> None:
    """Raises StorageError if one of the open files is another by now: tensors have no checksums that would tell."""
    for blob in blobs:
        blob.check_unchanged(blob.start())


@dataclass(frozen=True, slots=True)
class Swapped:
    """A TensorSource of words that lie in ``data`` in row-major order from byte ``start`` on, but big endian."""

    spec: TensorSpec
    data: Readable
    start: int

    def read(self, start: int, stop: int) -> np.ndarray:
        size = self.spec.dtype.word.itemsize
        data = self.data.read(self.start + start * size, self.start + stop * size)
        return np.frombuffer(data, self.spec.dtype.word.newbyteorder(">")).astype(self.spec.dtype.word)


@dataclass(frozen=True, slots=True, eq=False)
class Strided:
    """A TensorSource of words that lie in ``data`` with other strides, which are in words and not negative.

    It is copied in row-major order when it is first read, by slabs across the axis with the largest stride: each reads one
    run of ``data`` that holds it.
    """

    spec: TensorSpec
    data: Readable
    start: int  # in bytes, of the first word
    strides: tuple[int, ...]
    copies: Copies
    big: bool = False

    def read(self, start: int, stop: int) -> np.ndarray:
        size = self.spec.dtype.word.itemsize
        return np.frombuffer(
            self.copies.read(self, self._write, start * size, stop * size), self.spec.dtype.word
        ).copy()

    def _write(self, file: Temporary) -> None:
        shape, word = self.spec.word_shape, self.spec.dtype.word
        stored = word.newbyteorder(">") if self.big else word
        if 0 in shape:
            return
        axis = max(range(len(shape)), key=lambda i: (shape[i] > 1, self.strides[i]), default=0)
        outer = int(np.prod(shape[:axis], dtype=np.int64))
        inner = int(np.prod(shape[axis + 1 :], dtype=np.int64)) * word.itemsize
        # Both what is read for a slab and what is written of it are bounded.
        step = max(1, SLAB_NBYTES // max(self.strides[axis] * word.itemsize, outer * inner, 1))
        steps = [stride * word.itemsize for stride in self.strides]
        for first in range(0, shape[axis], step):
            part = (*shape[:axis], min(step, shape[axis] - first), *shape[axis + 1 :])
            span = sum((n - 1) * s for n, s in zip(part, steps, strict=True)) + word.itemsize
            at = self.start + first * steps[axis]
            data = np.frombuffer(self.data.read(at, at + span), stored)
            slab = np.ascontiguousarray(np.lib.stride_tricks.as_strided(data, part, steps), word)
            write_box(file, shape, (*(0 for _ in shape[:axis]), first, *(0 for _ in shape[axis + 1 :])), slab)


def write_box(file: Temporary, shape: Sequence[int], corner: Sequence[int], box: np.ndarray) -> None:
    """Put ``box``, which is C-contiguous, into a row-major array of ``shape`` that ``file`` holds, its first element at ``corner``."""
    # The axes from ``axis`` on are one run in the file.
    axis = len(shape) - 1
    while axis > 0 and box.shape[axis] == shape[axis]:
        axis -= 1
    strides = row_major(shape)
    at = sum(n * s for n, s in zip(corner, strides, strict=True))
    if not shape:
        file.write(box.reshape(1).view(np.uint8).data, 0)
        return
    for outer in np.ndindex(*box.shape[:axis]):
        first = at + sum(n * s for n, s in zip(outer, strides, strict=False))
        file.write(box[outer].reshape(-1).view(np.uint8).data, first * box.itemsize)


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    """Of row-major order, in elements."""
    strides, at = [], 1
    for extent in reversed(shape):
        strides.append(at)
        at *= max(1, extent)
    return tuple(reversed(strides))


def is_row_major(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether the elements lie side by side in order; strides of extents of 1 say nothing."""
    return 0 in shape or all(n == 1 or s == t for n, s, t in zip(shape, strides, row_major(shape), strict=True))

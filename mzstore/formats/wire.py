"""Messages of Protocol Buffers, field by field: no schema, and nothing is read of what is skipped.

https://protobuf.dev/programming-guides/encoding/. The library of that name reads whole messages, of at most 2 GiB, into memory.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mzstore.errors import FormatError
from mzstore.storage import Blob

VARINT, I64, LEN, I32 = 0, 1, 2, 5  # wire types; groups (3, 4) are of no message that is read here
MAX_VARINT = 10  # bytes
BLOCK = 16 << 10  # that is read around a field
RUN = 64 << 10  # of packed numbers, which are read together


@dataclass(frozen=True, slots=True)
class Field:
    """``[start, stop)`` is its content in the file; ``value`` the number that it is, of another wire type than LEN."""

    number: int
    wire: int
    start: int
    stop: int
    value: int = 0


class Wire:
    """An open file of messages; ``url`` is what errors call it, if not by its own."""

    def __init__(self, blob: Blob, url: str = "") -> None:
        self.blob, self.url = blob, url or blob.url
        self._start, self._held = 0, b""

    def refuse(self, problem: str, at: int) -> FormatError:
        return FormatError(f"not a Protocol Buffers message: {problem} at byte {at}", where=self.url)

    def fields(self, start: int, stop: int) -> Iterator[Field]:
        """The fields of the message in bytes ``[start, stop)``. Raises FormatError where there is none."""
        at = start
        while at < stop:
            tag, content = self._varint(at, stop)
            number, wire = tag >> 3, tag & 7
            if not 1 <= number < 1 << 29:
                raise self.refuse(f"no field has the number {number}, as", at)
            value = 0
            if wire == VARINT:
                value, end = self._varint(content, stop)
            elif wire == LEN:
                length, content = self._varint(content, stop)
                end = content + length
            elif wire in (I32, I64):
                end = content + (4 if wire == I32 else 8)
            else:
                raise self.refuse(f"a field of wire type {wire}", at)
            if end > stop:
                raise self.refuse(f"field {number} ends behind what it is in, it begins", at)
            if wire in (I32, I64):
                value = int.from_bytes(self.bytes(content, end), "little")
            yield Field(number, wire, content, end, value)
            at = end

    def bytes(self, start: int, stop: int) -> bytes:
        """What lies there; of short content most is held already."""
        if start < self._start or stop > self._start + len(self._held):
            if stop - start > BLOCK:
                return bytes(self.blob.read(start, stop))
            self._held = bytes(self.blob.read(start, min(start + BLOCK, self.blob.nbytes)))
            self._start = start
        return self._held[start - self._start : stop - self._start]

    def text(self, field: Field, limit: int, what: str) -> str:
        """A string of at most ``limit`` bytes."""
        if field.wire != LEN or field.stop - field.start > limit:
            raise self.refuse(f"{what} is no string of at most {limit:,} bytes", field.start)
        try:
            return self.bytes(field.start, field.stop).decode()
        except UnicodeDecodeError as error:
            raise self.refuse(f"{what} is not UTF-8", field.start) from error

    def numbers(self, field: Field, limit: int) -> list[int]:
        """Of a repeated integer, packed or not; not more than ``limit``."""
        if field.wire == VARINT:
            return [field.value]
        if field.wire != LEN:
            raise self.refuse("integers of a fixed size", field.start)
        found, at = [], field.start
        while at < field.stop:
            value, at = self._varint(at, field.stop)
            found.append(value)
            if len(found) > limit:
                raise self.refuse(f"more than {limit:,} integers", field.start)
        return found

    def _varint(self, at: int, stop: int) -> tuple[int, int]:
        """A number, and where it ends."""
        i = at - self._start
        if at < stop and 0 <= i < len(self._held) and (first := self._held[i]) < 128:  # most are short, and held
            return first, at + 1
        data = self.bytes(at, min(at + MAX_VARINT, stop))
        value = 0
        for i, byte in enumerate(data):
            value |= (byte & 127) << (7 * i)
            if byte < 128:
                return value & (2**64 - 1), at + i + 1
        raise self.refuse("a number that does not end", at)


class Varints:
    """Packed varints, to be read by range: ``[start, stop)`` of a file holds ``count`` of them."""

    def __init__(self, wire: Wire, start: int, stop: int) -> None:
        self._blob, self._start, self._stop = wire.blob, start, stop
        self._ended = [0]  # how many ended before each run
        ends_at = -1  # the last one
        for at in range(start, stop, RUN):
            data = np.frombuffer(self._blob.read(at, min(at + RUN, stop)), np.uint8)
            ends = np.flatnonzero(data < 128) + (at - start)
            if np.diff(ends, prepend=ends_at, append=at + len(data) - start - 1).max(initial=0) > MAX_VARINT:
                raise wire.refuse("a number that does not end", at)
            ends_at = int(ends[-1]) if len(ends) else ends_at
            self._ended.append(self._ended[-1] + len(ends))
        if ends_at != stop - start - 1:
            raise wire.refuse("a number that does not end", stop)

    @property
    def count(self) -> int:
        return self._ended[-1]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Numbers ``[start, stop)``, uint64."""
        if start >= stop:
            return np.empty(0, np.uint64)
        run, last = bisect_right(self._ended, start) - 1, bisect_right(self._ended, stop - 1)
        at = self._start + run * RUN
        low = max(self._start, at - MAX_VARINT + 1)  # where the first to end in the run may begin
        data = np.frombuffer(self._blob.read(low, min(self._start + last * RUN, self._stop)), np.uint8)
        ends = np.flatnonzero(data < 128)
        skip = int(np.searchsorted(ends, at - low)) - self._ended[run]  # from their number in all to that in ``ends``
        stops = ends[start + skip : stop + skip]
        starts = (
            ends[start + skip - 1 : stop + skip - 1] + 1 if start + skip else np.append(0, ends[: stop - start - 1] + 1)
        )
        values = np.zeros(stop - start, np.uint64)
        for i in range(int((stops - starts).max()) + 1):
            inside = starts + i <= stops
            part = data[np.minimum(starts + i, stops)].astype(np.uint64) & np.uint64(127)
            values |= np.where(inside, part << np.uint64(7 * i), np.uint64(0))
        return values

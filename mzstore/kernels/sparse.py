"""Kernels of sparse parts: positions out of their bytes, and values to their places in the caller's memory.

Targets are as in ``mzstore.kernels.planes``: one-dimensional, row ``i`` begins at ``start + i * row``.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from mzstore.kernels.planes import jit

NO_ELEMENT = 255
RUN = 128  # bytes of gaps that are looked at together: in shorter runs, the look takes as long as the work


LINE = 64  # bytes of a line of the cache


def _pointer(context, builder, array_type, array, at):
    data = cgutils.create_struct_proxy(array_type)(context, builder, array).data
    return builder.gep(data, [at])


@intrinsic
def address(typingctx, array, at):
    """Where array[at] lies in memory. ``array`` is one-dimensional and contiguous."""

    def generate(context, builder, signature, arguments):
        return builder.ptrtoint(_pointer(context, builder, signature.args[0], *arguments), ir.IntType(64))

    return types.uint64(array, at), generate


@intrinsic
def stream(typingctx, target, at, source, source_at):
    """Copy LINE bytes to target[at], which begins a line of the cache, past the cache. Both are contiguous.

    What is written once and not looked at soon then costs half: no line is fetched before it is written. Other threads see it
    after any lock (on x86, a locked instruction drains such stores).
    """

    def generate(context, builder, signature, arguments):
        vector = ir.VectorType(ir.IntType(64), LINE // 8)
        to, from_ = (
            builder.bitcast(_pointer(context, builder, signature.args[i], *arguments[i : i + 2]), vector.as_pointer())
            for i in (0, 2)
        )
        store = builder.store(builder.load(from_, align=1), to, align=LINE)
        store.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
        return context.get_dummy_value()

    return types.void(target, at, source, source_at), generate


@jit
def copy(source, source_at, out, at, n, streams):
    """out[at : at + n] = source[source_at : source_at + n], past the cache if ``streams``. All numbers but the last are uint64."""
    done = np.uint64(0)
    if streams:
        size, where = np.uint64(out.itemsize), address(out, at)
        step = np.uint64(LINE) // size
        if where % size == 0:
            lead = min(n, (np.uint64(0) - where) % np.uint64(LINE) // size)
            for j in range(lead):
                out[at + j] = source[source_at + j]
            done = lead
            for _ in range((n - lead) // step):
                stream(out, at + done, source, source_at + done)
                done += step
    for j in range(done, n):
        out[at + j] = source[source_at + j]


@jit
def gap_positions(steps, low, low_bits, out, found):
    """Fill ``out`` with the positions of gaps, and ``found`` with how many there are and the last one. Stops when ``out`` is full.

    steps     uint8[m]  255 passes 255 << low_bits places, less passes that many and takes the next one
    low       uint8     what is added to each gap; at least as many as ``out`` has, or low_bits is 0
    out       int32     positions that it cannot hold are not below 2^31: the caller refuses by the last one
    found     int64[2]
    """
    at, count, last, room, size = 0, 0, -1, out.size, steps.size
    i = 0
    while i < size:
        most = np.uint8(0)
        if not low_bits and i + RUN <= size and count + RUN <= room:
            a, o = np.uint64(i), np.uint64(count)
            for j in range(np.uint64(RUN)):
                most = max(most, steps[a + j])
            if most != NO_ELEMENT:  # every byte is an element: no test in the loop, which takes half the time
                for j in range(np.uint64(RUN)):
                    at += np.int64(steps[a + j])
                    out[o + j] = at
                    at += 1
                i += RUN
                count += RUN
                last = at - 1
                continue
        stop = min(i + RUN, size)
        while i < stop:
            step = np.int64(steps[i])
            at += step << low_bits
            if step != NO_ELEMENT:
                if count == room:
                    found[0], found[1] = count + 1, at
                    return
                if low_bits:
                    at += low[count]
                out[count] = at
                last = at
                at += 1
                count += 1
            i += 1
    found[0], found[1] = count, last


@jit
def bitmap_positions(body, table, counts, room, out):
    """Fill ``out`` with the positions of set bits, bit ``i % 8`` of byte ``i // 8`` being ``i``; how many there are.

    Stops where there are more than ``room``.

    body    uint8[m], 8 * m < 2^31
    table   uint8[256, 8]: the bits that are set in each byte, ascending; then anything
    counts  uint8[256]: how many
    out     int32[room + 8]
    """
    o, most = np.uint64(0), np.uint64(room)
    for i in range(np.uint64(body.size)):
        byte, first = body[i], np.int32(i * np.uint64(8))
        for j in range(np.uint64(8)):  # all 8, which is one vector
            out[o + j] = first + table[byte, j]
        o += counts[byte]
        if o > most:
            break
    return o


@jit
def pattern_positions(body, table, step, out):
    """out[i * p + j] = i * step + table[body[i], j], as far as it has room.

    body   uint8[m], each below the rows of ``table``; m * p >= len(out)
    table  uint8[bytes, p]
    step   places that a byte tells of
    out    int32
    """
    taken = table.shape[1]
    whole = out.size // taken
    for i in range(whole):
        for j in range(taken):
            out[i * taken + j] = i * step + table[body[i], j]
    for j in range(out.size - whole * taken):
        out[whole * taken + j] = whole * step + table[body[whole], j]


@jit
def below(positions, first, limit):
    """The first index from ``first`` on where ``positions``, which ascend, are not below ``limit``."""
    last = positions.size
    while first < last:
        middle = (first + last) >> 1
        if positions[middle] < limit:
            first = middle + 1
        else:
            last = middle
    return first


@jit
def fill(positions, values, width, first_row, rows, first_col, cols, line, streams, out, start, row):
    """out[r - first_row, c - first_col] = the value at row r and column c of a chunk, or 0, for all of these rows and columns.

    positions  int32, ascending; of a chunk of rows of ``width``
    values     the value of each
    line       of the dtype of ``values``: some rows, or part of one, are made in it, because it stays in the first-level
               cache, and are then copied
    streams    whether past the cache
    """
    size, k = max(1, line.size), 0  # never 0, a step at which Python's range raises, which machine code cannot
    at_once = max(1, size // width)
    wide = width > size
    n = np.uint64(min(cols, size) if wide else cols)
    for r in range(first_row, first_row + rows, at_once):
        height = min(at_once, first_row + rows - r)
        for c in range(first_col, first_col + cols if wide else first_col + 1, size):
            if wide:
                base, length = r * width + c, min(size, first_col + cols - c)
                n = np.uint64(length)
                skipped, o = np.uint64(0), np.uint64(start + (r - first_row) * row + c - first_col)
            else:
                base, length = r * width, height * width
                skipped, o = np.uint64(first_col), np.uint64(start + (r - first_row) * row)
            for j in range(np.uint64(length)):
                line[j] = 0
            k = below(positions, k, base)
            stop = below(positions, k, base + length)
            less = np.uint32(base)
            for i in range(np.uint64(k), np.uint64(stop)):
                line[np.uint64(np.uint32(positions[i]) - less)] = values[i]
            k = stop
            for _ in range(height):
                copy(line, skipped, out, o, n, streams)
                o += np.uint64(row)
                skipped += np.uint64(width)


@jit
def put(positions, values, width, first_row, rows, first_col, cols, out, start, row):
    """out[r - first_row, c - first_col] = value, for the elements in these rows and columns of a chunk.

    positions  int32, ascending; of a chunk of rows of ``width``
    values     the value of each
    """
    r = 0
    end = np.int64(width)
    for k in range(positions.size):
        p = np.int64(positions[k])
        while p >= end:
            r += 1
            end += width
        i = r - first_row
        j = p - (end - width) - first_col
        if i >= 0 and i < rows and j >= 0 and j < cols:
            out[start + i * row + j] = values[k]


@jit
def add(positions, values, width, first_row, rows, first_col, cols, out, start, row):
    """As ``put``, but float32 values are added to what is there."""
    r = 0
    end = np.int64(width)
    for k in range(positions.size):
        p = np.int64(positions[k])
        while p >= end:
            r += 1
            end += width
        i = r - first_row
        j = p - (end - width) - first_col
        if i >= 0 and i < rows and j >= 0 and j < cols:
            out[start + i * row + j] += values[k]


@jit
def put_blocks(places, values, width, first_row, rows, first_col, cols, out, start, row):
    """As ``put``, for elements of several values.

    places  int32: of blocks side by side, in row-major order
    values  [places, height, columns of a block]
    """
    _, height, across = values.shape
    per_row = width // across
    for k in range(places.size):
        r = np.int64(places[k]) // per_row
        c = (np.int64(places[k]) - r * per_row) * across - first_col
        r = r * height - first_row
        first, last = max(0, -c), min(across, cols - c)
        for i in range(max(0, -r), min(height, rows - r)):
            at = start + (r + i) * row + c
            for j in range(first, last):
                out[at + j] = values[k, i, j]


@jit
def add_blocks(places, values, width, first_row, rows, first_col, cols, out, start, row):
    """As ``put_blocks``, but float32 values are added to what is there."""
    _, height, across = values.shape
    per_row = width // across
    for k in range(places.size):
        r = np.int64(places[k]) // per_row
        c = (np.int64(places[k]) - r * per_row) * across - first_col
        r = r * height - first_row
        first, last = max(0, -c), min(across, cols - c)
        for i in range(max(0, -r), min(height, rows - r)):
            at = start + (r + i) * row + c
            for j in range(first, last):
                out[at + j] += values[k, i, j]


_PLACES = "void int32[] {} int64 int64 int64 int64 int64"

# See mzstore.kernels.machine_code: for elements of one value, of 16 or 32 bits.
SIGNATURES = {
    "gap_positions": ["void uint8[] uint8[] int64 int32[] int64[]"],
    "bitmap_positions": ["int64 uint8[] uint8[,] uint8[] int64 int32[]"],
    "pattern_positions": ["void uint8[] uint8[,] int64 int32[]"],
    "fill": [
        f"{_PLACES.format(word)} {word} bool {word} int64 int64" for word in ("uint16[]", "uint32[]", "float32[]")
    ],
    "put": [f"{_PLACES.format(word)} {word} int64 int64" for word in ("uint16[]", "uint32[]", "float32[]")],
    "add": [f"{_PLACES.format('float32[]')} float32[] int64 int64"],
}

"""Sparse parts: where values go in the caller's memory, and what is refused before anything is written there."""

import itertools
from unittest.mock import patch

import numpy as np
import pytest
from forge import written
from hypothesis import given, settings
from hypothesis import strategies as st
from parts import Random

import mzstore
from mzstore import kernels
from mzstore.arrays import Array
from mzstore.dtypes import DTYPES
from mzstore.encodings import rows, sparse
from mzstore.encodings.nested import Nested, own_arrays
from mzstore.encodings.positions import Index
from mzstore.encodings.rows import n_matrices, rows_of
from mzstore.encodings.sparse import Sparse, raw_values
from mzstore.errors import CorruptError
from mzstore.grid import Grid

BF16, F32 = DTYPES["bfloat16"], DTYPES["float32"]


@st.composite
def boxes(draw) -> tuple[tuple[int, ...], tuple[slice, ...], np.ndarray]:
    """(shape of a chunk, a box in it, memory for the box: with gaps on any axis but the last)."""
    shape = tuple(draw(st.integers(1, 5)) for _ in range(draw(st.integers(1, 4))))
    cuts = []
    for n in shape:
        start = draw(st.integers(0, n - 1)) if draw(st.booleans()) else 0
        cuts.append(slice(start, draw(st.integers(start + 1, n)) if draw(st.booleans()) else n))
    extents = [cut.stop - cut.start for cut in cuts]
    steps = [draw(st.sampled_from([1, 1, 2])) for _ in extents[:-1]]
    memory = np.full([n * step for n, step in zip(extents[:-1], steps, strict=True)] + [extents[-1] + draw(st.integers(0, 2))], 9, np.uint32)  # fmt: skip
    out = memory[(*(slice(None, None, step) for step in steps), slice(0, extents[-1]))]
    return shape, tuple(cuts), out


@settings(deadline=None, max_examples=300)
@given(boxes())
def test_rows_are_the_box_in_order(box):
    shape, source, out = box
    chunk = np.arange(np.prod(shape), dtype=np.uint32).reshape(shape)
    found = list(rows_of(shape, source, out))
    assert len(found) == n_matrices(shape, out)
    cols = source[-1]
    for each in found:
        assert each.matrix.shape == (each.height, cols.stop - cols.start)
        own = chunk.reshape(-1, shape[-1])[each.first : each.first + each.height, cols]
        each.matrix[...] = own
        for i in range(each.height):
            at = each.start + i * each.row
            assert (each.memory[at : at + own.shape[1]] == own[i]).all()
    assert (out == chunk[source]).all()
    base = out.base if out.base is not None else out
    assert np.count_nonzero(base != 9) <= out.size  # and nothing between


@settings(deadline=None, max_examples=300)
@given(boxes(), st.data())
def test_values_are_placed_in_any_memory(box, data):
    """By rows with the kernels, whatever line they make and how they copy it, and with NumPy; by indices where there are more
    matrices than ``MATRICES``."""
    shape, source, out = box
    random = np.random.default_rng(data.draw(st.integers(0, 1 << 32)))
    rows_, cols = (1, *shape)[-2:]
    height = data.draw(st.sampled_from([h for h in range(1, rows_ + 1) if rows_ % h == 0]))
    width = data.draw(st.sampled_from([w for w in range(1, cols + 1) if cols % w == 0]))
    part = Random(0).sparse(F32, Grid(shape, shape), Index(), (height, width)).part
    places = np.flatnonzero(random.random(np.prod(shape) // (height * width)) < 0.5).astype(np.int32)
    values = random.normal(size=(places.size, height, width)).astype(np.float32)
    how = data.draw(st.sampled_from(["fill", "put", "add"]))
    memory = out.base if out.base is not None else out
    base = memory.copy()
    expected = np.full((np.prod(shape) // cols, cols), 9, np.uint32).view(np.float32)
    if how == "fill":
        expected[...] = 0
    for place, own in zip(places.tolist(), values, strict=True):
        row, col = divmod(place, cols // width)
        where = np.s_[row * height : (row + 1) * height, col * width : (col + 1) * width]
        expected[where] = own + (expected[where] if how == "add" else 0)
    words, target = (values, out.view(np.float32)) if how == "add" else (values.view(np.uint32), out)
    fast, matrices = data.draw(st.booleans()), data.draw(st.sampled_from([0, 3, 64]))
    line, streamed = data.draw(st.sampled_from([4, 8, 20, 64, 1 << 14])), data.draw(st.sampled_from([0, 1 << 18]))
    with (
        patch.object(kernels, "pays", lambda nbytes: fast),
        patch.multiple(sparse, MATRICES=matrices, LINE_NBYTES=line, STREAMED_NBYTES=streamed, BLOCK=data.draw(st.sampled_from([1, 1 << 16]))),
    ):  # fmt: skip
        part._place(places, words, source, target, how)
    assert out.tobytes() == expected.view(np.uint32).reshape(shape)[source].tobytes()
    out[...] = 9
    assert (memory == base).all()


@pytest.mark.parametrize("dtype", ["uint8", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("width", [300, 70_001])
def test_long_rows_are_copied_past_the_cache(dtype, width, monkeypatch):
    """Of more values than a line; into memory that begins at any value, and at no line of the cache."""
    monkeypatch.setattr(kernels, "pays", lambda nbytes: True)
    own, grid = DTYPES[dtype], Grid((300_000 // width + 1, width), (300_000 // width + 1, width))
    model, _ = written(Random(0).sparse(own, grid, Index(), density=0.2), grid.shape)
    with mzstore.open(model.archive()) as opened:
        monkeypatch.setattr(kernels, "pays", lambda nbytes: False)
        values = opened["w"][...]
        monkeypatch.setattr(kernels, "pays", lambda nbytes: True)
        for index, offset in itertools.product((np.s_[...], np.s_[:, 3:-2], np.s_[1:4, 17_000 % width :]), range(3)):
            cut = values[index]
            wide = np.full((cut.shape[0], cut.shape[1] + 70), 7, np.uint8).astype(own.word).view(own.numpy)
            expected = wide.copy()
            expected[:, offset : offset + cut.shape[1]] = cut
            opened["w"].read(index=index, out=wide[:, offset : offset + cut.shape[1]])
            assert wide.tobytes() == expected.tobytes()


def test_a_slice_of_many_axes_is_not_taken_row_by_row(monkeypatch):
    """[..., 1, :] of a chunk of 10,000 matrices of 3 rows: as many pieces as matrices would take seconds."""
    grid = Grid((10_000, 3, 3), (10_000, 3, 3))
    model, words = written(Random(0).sparse(F32, grid, Index()), grid.shape)
    made = []
    monkeypatch.setattr(sparse, "rows_of", lambda *args: made.append(1) or rows.rows_of(*args))
    with mzstore.open(model.archive()) as opened:
        assert opened["w"][:, 1].tobytes() == words.view(np.float32)[:, 1].tobytes()
        assert not made
        assert opened["w"][5:9].tobytes() == words.view(np.float32)[5:9].tobytes()
        assert made


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("index", [Index(), Index("gaps", 8), Index("bitmap"), Index("pattern", 0, (2, 4))], ids=str)
def test_nothing_is_written_of_a_chunk_that_is_refused(index, fast, monkeypatch):
    monkeypatch.setattr(kernels, "pays", lambda nbytes: fast)
    grid = Grid((8, 12), (8, 12))
    part = Random(0).sparse(BF16, grid, index, values="codes").part
    sizes = [component.array.chunk_nbytes for component in part.components]
    bodies = [np.full(size, 255 if index.kind == "pattern" or (index.kind == "bitmap" and i == 0) else 0, np.uint8) for i, size in enumerate(sizes)]  # fmt: skip
    if index.kind == "gaps":
        bodies[0][:] = 254
    out = np.full((8, 12), 7, np.uint16)
    source = (slice(0, 8), slice(0, 12))
    with pytest.raises(CorruptError, match="here"):
        part.decode(bodies.__getitem__, source, out, "here")
    with pytest.raises(CorruptError, match="here"):
        part.put(bodies.__getitem__, source, out, "here")
    assert (out == 7).all()


def test_kernels_write_nowhere_else():
    """Positions before, in and behind the rows and columns that are wanted; the kernels look at no place twice."""
    kernel = kernels.load_sparse()
    positions = np.arange(60, dtype=np.int32)
    values = np.arange(60, dtype=np.float32) + 1
    for first_row, rows_, first_col, cols in itertools.product(range(6), range(1, 4), range(10), range(1, 5)):
        out = np.zeros(100, np.float32)
        kernel.put(positions, values, 10, first_row, rows_, first_col, cols, out, 30, 10)
        expected = np.zeros(100, np.float32)
        inside = values.reshape(6, 10)[first_row : first_row + rows_, first_col : first_col + cols]
        expected[30:][: 10 * rows_].reshape(rows_, 10)[: inside.shape[0], : inside.shape[1]] = inside
        assert (out == expected).all()
        kernel.add(positions, values, 10, first_row, rows_, first_col, cols, out, 30, 10)
        assert (out == 2 * expected).all()


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize(("dtype", "values"), [("float32", "bfloat16"), ("float32", "float16"), ("bfloat16", "bfloat16"), ("float16", "float16"), ("int16", "int16"), ("float8_e8m0fnu", "float8_e8m0fnu")])  # fmt: skip
def test_values_are_read_in_another_dtype(dtype, values, fast, monkeypatch):
    """Also where a word of zeros is no 0: of float8_e8m0fnu it is 2**-127."""
    monkeypatch.setattr(kernels, "pays", lambda nbytes: fast)
    own, grid = DTYPES[dtype], Grid((6, 20), (3, 20))
    model, words = written(Random(1).sparse(own, grid, Index(), values_dtype=DTYPES[values]), grid.shape)
    with mzstore.open(model.archive()) as opened:
        for wanted in ("float32", "float16", "bfloat16", "float64"):
            with np.errstate(over="ignore", invalid="ignore"):
                expected = words.view(own.numpy).astype(DTYPES[wanted].numpy)
            assert opened["w"].read(dtype=wanted).tobytes() == expected.tobytes()
            assert opened["w"].read(dtype=wanted, index=np.s_[1:5, ::-3]).tobytes() == expected[1:5, ::-3].tobytes()


def test_parts_that_can_give_another_dtype_say_so():
    grid = Grid((4, 8), (4, 8))
    for dtype, wanted, can in (("bfloat16", "float32", True), ("float32", "float64", True), ("int16", "float32", False),
                               ("float8_e8m0fnu", "float32", False), ("bfloat16", "float8_e5m2", False)):  # fmt: skip
        part = Random(0).sparse(DTYPES[dtype], grid, Index()).part
        near = part.into(DTYPES[wanted])
        assert (near is not None) == can
        assert near is None or near.dtype is DTYPES[wanted]
    wide = Grid((1, 1 << 25), (1, 1 << 25))
    assert Sparse.new(BF16, wide, Index(), 1, raw_values(BF16, wide, 1)).into(F32) is None  # chunks of 2^27 bytes


@pytest.mark.parametrize(
    ("shape", "chunk", "block", "match"),
    [
        ((), (), (1, 1), "one axis or more"),
        ((1, 1 << 26), (1, 1 << 26), (1, 1), "at most 67108864 bytes"),
        ((4, 8), (4, 8), (1, 3), "do not fit chunks"),
        ((4, 8), (4, 8), (3, 1), "do not fit chunks"),
        ((8,), (8,), (2, 1), "do not fit chunks"),
        ((2, 1, 8), (2, 1, 8), (2, 1), "do not fit chunks"),
        ((4, 8), (4, 8), (4, 8), "room for 1 values, in blocks"),
    ],
)
def test_what_is_no_sparse_part_is_refused(shape, chunk, block, match):
    grid = Grid(shape, chunk)
    with pytest.raises(ValueError, match=match):
        Sparse.new(BF16, grid, Index(), 1, raw_values(BF16, grid, 1), block)


def test_names_of_the_arrays_of_a_part_inside_of_another():
    array = Array((1,), (1,), "uint8", zstd=False)
    arrays = {"positions": array, "values": array, "value": array, "values.": array}
    assert own_arrays("values", arrays) == {"": array}
    assert arrays.keys() == {"positions", "value", "values."}
    several = {"values.codes": array, "values.scale": array}
    assert own_arrays("values", several).keys() == {"codes", "scale"}
    assert not several
    with pytest.raises(ValueError, match=r"both 'values' and 'values.codes' are arrays"):
        own_arrays("values", {"values": array, "values.codes": array})
    own = Grid((2, 3), (1, 3))
    made = Random(0).groups(F32, own)
    assert [c.name for c in Nested("values", made.part).components] == [
        "values.codes",
        "values.scale",
        "values.codebook",
    ]
    assert [c.name for c in Nested("values", Random(0).codes(F32, own).part).components] == ["values"]

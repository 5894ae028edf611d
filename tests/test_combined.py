"""Parts of every kind, by themselves and combined: each read is what the reference reader makes of the format."""

import itertools
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
from forge import forged, read_words
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from parts import VALUES, Made, Random, combined

import mzstore
from mzstore import kernels
from mzstore.dtypes import DTYPES, DType
from mzstore.encodings.base import Base
from mzstore.encodings.combined import Combined
from mzstore.encodings.positions import Index
from mzstore.encodings.quantized import packed_array
from mzstore.grid import Grid

FLOATS = ("float16", "bfloat16", "float32")
INDEXES = [
    Index(), Index("gaps", 8), Index("bitmap"),
    *(Index("pattern", 0, pattern) for pattern in ((1, 2), (2, 4), (3, 5), (4, 8))),
]  # fmt: skip
slowly = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def grids(draw, least_axes: int = 1) -> Grid:
    """Of one to four axes, in chunks that may reach beyond the edge of the last axis."""
    axes = draw(st.integers(least_axes, 4))
    shape = [draw(st.integers(1, 5)) for _ in range(axes - 1)] + [draw(st.integers(1, 40))]
    chunk = [draw(st.integers(1, n)) for n in shape[:-1]] + [draw(st.integers(1, 2 * shape[-1]))]
    return Grid(tuple(shape), tuple(chunk))


def fits(index: Index, grid: Grid, block: tuple[int, int]) -> bool:
    *_, rows, cols = (1, *grid.chunk_shape)
    if rows % block[0] or cols % block[1]:
        return False
    return index.pattern is None or (grid.chunk_size // (block[0] * block[1])) % index.pattern[1] == 0


@st.composite
def sparse_parts(draw, random: Random, dtype: DType, grid: Grid, allowed: tuple[str, ...] | None = None) -> Made:
    """``allowed``: the dtypes of the values; without it what ``dtype`` allows."""
    rows, cols = (1, *grid.chunk_shape)[-2:]
    blocks = [(h, w) for h in range(1, rows + 1) for w in range(1, cols + 1) if rows % h == cols % w == 0]
    block = draw(st.sampled_from(blocks) | st.just((1, 1)))
    index = draw(st.sampled_from([index for index in INDEXES if fits(index, grid, block)]))
    narrower = ("float16", "bfloat16") if dtype.name == "float32" else ()
    own = DTYPES[draw(st.sampled_from(allowed or (dtype.name, *narrower)))]
    kinds = [kind for kind in VALUES if kind in ("raw", "planes") or (own.is_float and own.bits >= 16)]
    kind = draw(st.sampled_from(kinds))
    return random.sparse(dtype, grid, index, block, kind, own, draw(st.sampled_from([0.0, 0.05, 0.5, 1.0])))


@st.composite
def quantized_parts(draw, random: Random, dtype: DType, grid: Grid) -> Made:
    return random.values(draw(st.sampled_from(["codes", "groups"])), dtype, grid)


@st.composite
def lowrank_parts(draw, random: Random, dtype: DType, grid: Grid) -> Made:
    kinds = [draw(st.sampled_from(FLOATS)) for _ in range(2)]
    left, right = (draw(st.sampled_from(VALUES)) for _ in range(2))
    scale = draw(st.sampled_from([1.0, -0.5, float(np.float32(1 / 3))]))
    return random.lowrank(dtype, grid, draw(st.integers(1, 9)), left, right, kinds, scale)


@st.composite
def tucker_parts(draw, random: Random, dtype: DType, grid: Grid) -> Made:
    # Codes are not in chunks of more rows than there are.
    fits = all(c <= n for n, c in zip(grid.shape, grid.chunk_shape, strict=True))
    kind = st.sampled_from(VALUES if fits else ("raw", "planes"))
    axes, numbers = len(grid.shape), draw(st.sampled_from(FLOATS))
    if draw(st.booleans()):
        rank = draw(st.integers(1, 5))
        return random.tucker(dtype, grid, [rank] * axes, [draw(kind) for _ in range(axes)], None, numbers)
    ranks = [draw(st.integers(1, 4)) for _ in range(axes)]
    own = [n == c and draw(st.booleans()) for n, c in zip(grid.shape, grid.chunk_shape, strict=True)]
    ranks = [n if alone else rank for n, alone, rank in zip(grid.shape, own, ranks, strict=True)]
    kinds = [None if alone else draw(kind) for alone in own]
    if all(alone for alone in own):
        kinds[0] = "raw"  # one array would not be a group
    return random.tucker(dtype, grid, ranks, kinds, draw(kind), numbers)


@st.composite
def any_words(draw) -> tuple[Made, DType, tuple[int, ...]]:
    """Words of any bits: a first part whose words some places of later ones replace, or that another part changes."""
    dtype, grid = DTYPES[draw(st.sampled_from([name for name, d in DTYPES.items() if not d.packed and d.parts == 1]))], draw(grids())  # fmt: skip
    random = Random(draw(st.integers(0, 1 << 32)), wild=True)
    how = draw(st.sampled_from(["replace", "xor", "plus"]))
    first = random.values(draw(st.sampled_from(["raw", "planes"])), dtype, grid)
    if how != "replace":
        return combined([first, random.values(draw(st.sampled_from(["raw", "planes"])), dtype, grid)], [how]), dtype, grid.shape  # fmt: skip
    if draw(st.booleans()):
        first = draw(sparse_parts(random, dtype, grid))
    more = [draw(sparse_parts(random, dtype, grid)) for _ in range(draw(st.integers(0, 3)))]
    return combined([first, *more], ["replace"] * len(more)), dtype, grid.shape


@st.composite
def any_values(draw) -> tuple[Made, DType, tuple[int, ...]]:
    """Values of floats: parts that are added, and then parts that replace some."""
    dtype = DTYPES[draw(st.sampled_from((*FLOATS, "float64")))]
    grid = draw(grids(least_axes=2))
    grid = Grid(grid.shape, tuple(min(c, n) if axis < len(grid.shape) - 1 else c for axis, (c, n) in enumerate(zip(grid.chunk_shape, grid.shape, strict=True))))  # fmt: skip
    random = Random(draw(st.integers(0, 1 << 32)))

    def one(first: bool) -> Made:
        kinds = ["quantized", "lowrank", "tucker", "sparse", "raw", "planes"]
        if dtype.name == "float64":  # whose words are no binary32
            kinds = kinds[:3] if first else kinds[:4]
        match draw(st.sampled_from(kinds)):
            case "quantized":
                return draw(quantized_parts(random, dtype, grid))
            case "lowrank":
                return draw(lowrank_parts(random, dtype, grid))
            case "tucker":
                return draw(tucker_parts(random, dtype, grid))
            case "sparse":
                return draw(sparse_parts(random, dtype, grid, None if first else FLOATS))
            case kind:
                return random.values(kind, dtype, grid)

    added = [one(i == 0) for i in range(draw(st.integers(1, 3)))]
    replaced = [draw(sparse_parts(random, dtype, grid)) for _ in range(draw(st.integers(0, 4 - len(added))))]
    ways = ["add"] * (len(added) - 1) + ["replace"] * len(replaced)
    return combined([*added, *replaced], ways), dtype, grid.shape


@st.composite
def indices(draw, shape: tuple[int, ...]) -> tuple[slice | int, ...]:
    found: list[slice | int] = []
    for n in shape:
        start, stop = sorted((draw(st.integers(0, n)), draw(st.integers(0, n))))
        step = draw(st.sampled_from([1, 1, 2, 3]))
        whole = draw(st.booleans())
        cut = slice(None, None, step) if whole else slice(start, stop, step)
        if draw(st.integers(0, 5)) == 0:
            found.append(draw(st.integers(-n, n - 1)))
        elif draw(st.integers(0, 4)) == 0:
            found.append(slice(None, None, -step))
        else:
            found.append(cut)
    return tuple(found)


def check(draw, made: Made, dtype: DType, shape: tuple[int, ...]) -> None:
    with patch.object(kernels, "pays", lambda nbytes: False):
        model, words = forged(made, dtype, shape)
        values = words.view(dtype.numpy)
    fast = draw(st.booleans())
    with patch.object(kernels, "pays", lambda nbytes: fast), mzstore.open(model.archive()) as opened:
        tensor = opened["w"]
        assert read_words(model).tobytes() == words.tobytes()
        for _ in range(3):
            index = draw(indices(shape))
            expected = values[(*index, ...)]
            assert tensor[(*index, ...)].tobytes() == expected.tobytes(), index
            # Memory with gaps between rows and values, which stay as they are.
            wide = np.full([*(2 * n for n in expected.shape[:-1]), *(n + 3 for n in expected.shape[-1:])], 7, np.uint8)
            wide = wide.astype(dtype.word).view(dtype.numpy)
            before = wide.copy()
            cut = (
                *(slice(0, 2 * n, 2) for n in expected.shape[:-1]),
                *(slice(1, n + 1) for n in expected.shape[-1:]),
                ...,
            )
            before[cut] = expected
            tensor.read(out=wide[cut], index=index)
            assert wide.tobytes() == before.tobytes(), index
            turned = np.empty(expected.shape[::-1], dtype.numpy).T
            tensor.read(out=turned, index=index)
            assert turned.tobytes() == expected.tobytes(), index


@slowly
@given(st.data())
def test_words_of_any_parts(data):
    check(data.draw, *data.draw(any_words()))


@slowly
@given(st.data())
def test_values_of_any_parts(data):
    check(data.draw, *data.draw(any_values()))


@slowly
@given(st.data())
def test_values_of_any_parts_in_another_dtype(data):
    """What is computed is rounded once, so that what is read in binary32 becomes the tensor's own values."""
    made, dtype, shape = data.draw(any_values())
    with patch.object(kernels, "pays", lambda nbytes: False):
        model, words = forged(made, dtype, shape)
    fast = data.draw(st.booleans())
    with (
        patch.object(kernels, "pays", lambda nbytes: fast),
        mzstore.open(model.archive()) as opened,
        np.errstate(over="ignore"),
    ):
        tensor = opened["w"]
        for name in (*FLOATS, "float64"):
            whole = tensor.read(dtype=name)
            index = data.draw(indices(shape))
            assert tensor.read(index=index, dtype=name).tobytes() == whole[(*index, ...)].tobytes()
            assert whole.dtype == DTYPES[name].numpy
        if dtype.name in ("float16", "bfloat16"):
            near = tensor.read(dtype="float32").astype(dtype.numpy)
            assert near.tobytes() == words.tobytes()


# Each pair of a kind of index and values, and each way to combine, once: what is drawn above may miss one.


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("block", [(1, 1), (1, 4), (2, 2), (4, 8)])
@pytest.mark.parametrize("index", INDEXES, ids=str)
def test_sparse_of_every_kind(index, block, values, fast, monkeypatch):
    grid = Grid((2, 16, 117), (1, 16, 80))
    monkeypatch.setattr(kernels, "pays", lambda nbytes: fast)
    made = Random(1).sparse(DTYPES["bfloat16"], grid, index, block, values)
    model, words = forged(made, DTYPES["bfloat16"], grid.shape)
    with mzstore.open(model.archive()) as opened:
        for index_ in np.s_[:, 3:9, 5:90], np.s_[1, ::3, ::-2], np.s_[0, 15, 79:81]:
            assert opened["w"][index_].tobytes() == words.view(DTYPES["bfloat16"].numpy)[index_].tobytes()


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("dtype", FLOATS)
def test_sums_are_rounded_as_the_format_says(dtype, fast, monkeypatch):
    """Ties to even, subnormal numbers, and what is too large for the dtype."""
    monkeypatch.setattr(kernels, "pays", lambda nbytes: fast)
    kind = DTYPES[dtype]
    largest = {"float16": 65504.0, "bfloat16": 3.3895313892515355e38, "float32": 1e38}[dtype]
    eps = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24}[dtype]
    tiny = {"float16": 2.0**-24, "bfloat16": 2.0**-133, "float32": 2.0**-149}[dtype]
    first = np.array([1, 1 + 2 * eps, -1, largest, -largest, tiny, tiny, 3 * tiny, 0, -0.0, 1], np.float32)
    second = np.array(
        [eps, eps, -eps, largest * eps, -largest * eps * 0.9, tiny / 2, -tiny, tiny / 2, tiny / 2, -0.0, -1], np.float32
    )
    grid = Grid((1, first.size), (1, first.size))
    random = Random(0)
    one, two = (
        random.raw(kind, grid),
        random.sparse(kind, grid, Index("bitmap"), values_dtype=DTYPES["float32"], density=1.0),
    )
    one.bodies["values"][0, 0] = first.astype(kind.numpy).tobytes()
    room = two.part.values.grid.shape[-1]
    assert room == first.size
    two.bodies["values"][0, 0, 0] = second.tobytes()
    _, words = forged(combined([one, two], ["add"]), kind, grid.shape)
    with np.errstate(over="ignore"):
        expected = (first.astype(kind.numpy).astype(np.float32) + second).astype(kind.numpy)
    assert words.view(kind.numpy).tobytes() == expected.tobytes()


def test_what_is_combined_otherwise_is_refused():
    grid, dtype = Grid((2, 8), (2, 8)), DTYPES["bfloat16"]
    random = Random(0)
    raw, codes, thin = (
        random.raw(dtype, grid).part,
        random.codes(dtype, grid).part,
        random.sparse(dtype, grid, Index()).part,
    )
    product = random.lowrank(dtype, grid, 2).part
    base = Base(dtype, grid, 0, "w", "0" * 64)
    good = {
        ((raw, raw), ("xor",)), ((base, raw), ("plus",)), ((raw, thin), ("replace",)), ((base, product), ("add",)),
        ((thin, codes, product, thin), ("add", "add", "replace")), ((codes, thin, thin, thin), ("add", "add", "replace")),
    }  # fmt: skip
    singles, ways = (raw, codes, thin, product, base), ("replace", "add", "xor", "plus")
    for n in (1, 2):
        for more in itertools.product(singles, repeat=n):
            for how in itertools.product(ways, repeat=n):
                for first in singles:
                    try:
                        Combined((first, *more), how)
                    except ValueError:
                        assert ((first, *more), how) not in good
                        continue
                    assert base not in more
                    if set(how) & {"xor", "plus"}:
                        assert n == 1
                        assert first in (raw, base)
                        assert more == (raw,)
                    assert list(how) == sorted(how)
                    assert all(part is thin for part, way in zip(more, how, strict=True) if way == "replace")
    for parts, how in good:
        Combined(parts, how)
    with pytest.raises(ValueError, match="1 parts with 0 ways"):
        Combined((raw,), ())
    other = Grid((2, 8), (2, 4))
    with pytest.raises(ValueError, match="chunks of different shapes"):
        Combined((raw, random.raw(dtype, other).part), ("add",))
    with pytest.raises(ValueError, match="different dtypes"):
        Combined((raw, random.raw(DTYPES["float16"], grid).part), ("add",))
    for name in ("int16", "float64"):
        own = random.raw(DTYPES[name], grid).part
        with pytest.raises(ValueError, match=f"values of {name} are not added"):
            Combined((own, own), ("add",))
    wide = Grid((1, 8), (1, 1 << 25))
    codes = random.values("codes", dtype, Grid((1, 8), (1, 8))).part
    large = replace(codes, grid=wide, codes=packed_array(wide, 1, 2))
    with pytest.raises(ValueError, match="take more than 67108864 bytes"):
        Combined((large, large), ("add",))

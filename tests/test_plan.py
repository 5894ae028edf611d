"""The plan: what is wanted becomes few requests of bounded size, and every payload is found in their answers."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mzstore
from mzstore import plan
from mzstore.arrays import Array
from mzstore.documents import TensorEntry
from mzstore.dtypes import DTYPES
from mzstore.encodings import Component
from mzstore.encodings.raw import Raw, constant_array
from mzstore.extents import Extent, Request
from mzstore.grid import Piece
from mzstore.plan import Job, Plan, jobs, make
from mzstore.selection import Span
from mzstore.tensors import TensorSpec

REQUEST, GAP = 1000, 50
DATA = np.random.default_rng(0).integers(0, 256, 50_000, dtype=np.uint8).tobytes()
U8 = DTYPES["uint8"]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(plan, "REQUEST_NBYTES", REQUEST)
    monkeypatch.setattr(plan, "GAP_NBYTES", GAP)


class Components:
    """A part of several arrays, of one chunk each."""

    def __init__(self, count: int, chunk_nbytes: int) -> None:
        array = Array((chunk_nbytes,), (chunk_nbytes,), "uint8", zstd=False)
        self.components = tuple(Component(str(i), array) for i in range(count))
        self.grid, self.dtype, self.scratch_nbytes = array.grid, U8, 7

    def component_chunk(self, component, chunk):
        return chunk


def job(node: str, count: int = 1, chunk_nbytes: int = 10) -> Job:
    entry = TensorEntry(TensorSpec(node, U8, (chunk_nbytes,)), node, "", Components(count, chunk_nbytes))
    whole = (slice(0, chunk_nbytes),)
    return Job(entry, Piece((0,), whole, whole), np.empty(chunk_nbytes, np.uint8))


def at(extents: dict[str, Extent]):
    """Where the payload of a key lies, as ``Reader.extent`` says it."""
    return lambda key, limit: extents.get(key)


def planned(*units: tuple[Extent, ...]) -> tuple[Plan, list[Job]]:
    """The plan for one job for each of ``units``, whose payloads lie there; they are given in any order."""
    todo = [job(f"t{i}", len(extents)) for i, extents in enumerate(units)]
    keys = [key for one_job in todo for key in one_job.keys]
    where = dict(zip(keys, itertools.chain(*units), strict=True))
    return make(todo, at(where), 0, "url"), todo


def spans(found: Plan) -> list[list[tuple[int, int | None]]]:
    return [[(request.start, request.stop) for request in batch.requests] for batch in found.batches]


def answers(batch) -> dict[Request, memoryview]:
    return {request: memoryview(DATA)[request.start : request.stop] for request in batch.requests}


def one(*ranges: tuple[int, int]) -> list[tuple[Extent]]:
    return [(Extent("", start, stop),) for start, stop in ranges]


def test_nothing():
    found = make([], at({}), 7, "url")
    assert found.batches == ()
    assert found.to_json() == {
        "result_nbytes": 7, "wanted_nbytes": 0, "fetched_nbytes": 0, "requests": 0, "memory_nbytes": 7,
    }  # fmt: skip


def test_small_gaps_are_read_over():
    found, _ = planned(*one((0, 100), (100, 200), (250, 300), (351, 400)))
    assert spans(found) == [[(0, 300)], [(351, 400)]]
    assert (found.wanted_nbytes, found.fetched_nbytes, found.n_requests) == (299, 349, 2)


def test_the_order_of_jobs_does_not_matter():
    ranges = [(0, 100), (120, 400), (400, 990), (2000, 2100), (990, 1500)]
    expected = spans(planned(*one(*sorted(ranges)))[0])
    assert all(spans(planned(*one(*order))[0]) == expected for order in itertools.permutations(ranges))


def test_requests_end_between_payloads():
    found, _ = planned(*one((0, 600), (600, 1000), (1000, 1001), (1001, 1900)))
    assert spans(found) == [[(0, 1000)], [(1000, 1900)]]


def test_a_payload_larger_than_a_request_is_cut_in_equal_parts():
    found, todo = planned(*one((0, 10), (10, 2511), (2511, 2520)))
    assert spans(found) == [[(0, 10)], [(10, 844), (844, 1678), (1678, 2511)], [(2511, 2520)]]
    batch = found.batches[1]
    assert bytes(batch.payload(todo[1].keys[0], answers(batch))) == DATA[10:2511]


def test_components_side_by_side_and_apart():
    near = (Extent("", 100, 200), Extent("", 210, 300))
    apart = (Extent("", 9000, 9100), Extent("", 310, 400), Extent("", 4000, 6000))
    found, todo = planned(*one((0, 100)), near, apart, *one((9100, 9200)))
    assert spans(found) == [[(0, 300)], [(310, 400), (4000, 5000), (5000, 6000), (9000, 9100)], [(9100, 9200)]]
    batch = found.batches[1]
    for key, extent in zip(todo[2].keys, apart, strict=True):
        assert bytes(batch.payload(key, answers(batch))) == DATA[extent.start : extent.stop]


def test_a_payload_of_no_byte():
    """Only a damaged container has one; who fetched nothing for it would wait for ever."""
    found, todo = planned(*one((5, 5), (3000, 3000)))
    assert spans(found) == [[(5, 5)], [(3000, 3000)]]
    assert found.fetched_nbytes == 0
    for batch, one_job in zip(found.batches, todo, strict=True):
        assert bytes(batch.payload(one_job.keys[0], answers(batch))) == b""


def test_what_came_with_the_documents_is_no_request():
    found, _ = planned((Extent("", 0, 100),), (Extent("", 100, 200, held=True),), (Extent("", 200, 250, held=True),))
    assert spans(found) == [[(0, 100)], [(100, 250)]]
    assert [request.held for batch in found.batches for request in batch.requests] == [False, True]
    assert (found.wanted_nbytes, found.fetched_nbytes, found.n_requests) == (250, 100, 1)
    assert any("came with the documents" in line for line in found.lines())


def test_whole_objects_are_a_batch_each():
    found, todo = planned((Extent("b"), Extent("a")), (Extent("c"),))
    assert [[request.object for request in batch.requests] for batch in found.batches] == [["a", "b"], ["c"]]
    assert (found.wanted_nbytes, found.fetched_nbytes, found.n_requests) == (None, None, 3)
    came = {request: memoryview(request.object.encode()) for batch in found.batches for request in batch.requests}
    assert bytes(found.batches[0].payload(todo[0].keys[0], came)) == b"b"


def test_different_objects_are_never_joined():
    found, _ = planned((Extent("a", 0, 10),), (Extent("b", 10, 20),))
    assert [request.object for batch in found.batches for request in batch.requests] == ["a", "b"]


def test_a_chunk_that_several_jobs_want_is_fetched_once():
    first, second = job("t"), job("t")
    found = make([first, job("u"), second], at({first.keys[0]: Extent("", 0, 10), "u/c/0": Extent("", 10, 20)}), 0, "u")
    assert found.batches[0].units[0].jobs == (first, second)
    assert found.wanted_nbytes == 20


def test_a_constant_is_fetched_once():
    shape = (3000, 3000)
    entry = TensorEntry(TensorSpec("t", U8, shape), "t", "", Raw(U8, shape, constant_array(U8, shape)))
    todo = list(jobs(entry, tuple(Span(0, n) for n in shape), np.broadcast_to(np.uint8(0), shape)))
    assert len(todo) > 1
    found = make(todo, lambda key, limit: Extent("", 40, 45), 0, "url")
    assert (spans(found), len(found.batches[0].units)) == ([[(40, 45)]], 1)


def test_an_object_is_asked_for_no_more_than_its_chunk_can_have():
    found = make([job("t", 2, chunk_nbytes=5000)], lambda key, limit: Extent(key, limit=limit), 0, "url")
    assert [request.limit for request in found.batches[0].requests] == [11_024] * 2
    assert found.memory_nbytes == 2 * 11_024 + 3 * 5000 + 7


def test_a_tree_that_claims_too_many_objects(monkeypatch):
    """It is refused while they are counted, not when all of them have been."""
    monkeypatch.setattr(plan, "MAX_OBJECTS", 4)
    asked = []
    entry = job("t").entry

    def endless():
        for i in itertools.count():
            yield Job(entry, Piece((i,), (), ()), np.empty(0, np.uint8))

    def locate(key, limit):
        asked.append(key)
        return Extent(key, limit=limit)

    with pytest.raises(ValueError, match="'url' is a tree, of which at most 4 objects"):
        make(endless(), locate, 0, "url")
    assert len(asked) == 5


def test_an_archive_that_claims_too_many_chunks():
    """The first that is not there ends it."""
    entry = job("t").entry
    endless = (Job(entry, Piece((i,), (), ()), np.empty(0, np.uint8)) for i in itertools.count())
    with pytest.raises(mzstore.CorruptError, match="missing"):
        make(endless, at({f"t/c/{i}": Extent("", i, i + 1) for i in range(3)}), 0, "url")


def test_a_chunk_that_is_missing():
    with pytest.raises(mzstore.CorruptError, match=r"'t/c/0' is missing.*url, tensor 't'"):
        make([job("t")], at({}), 0, "url")


def test_memory_counts_the_largest_chunk_wherever_it_stands():
    todo = [job("a", chunk_nbytes=10), job("b", chunk_nbytes=5000)]
    where = {todo[0].keys[0]: Extent("", 0, 10), todo[1].keys[0]: Extent("", 10, 20)}
    assert make(todo, at(where), 100, "url").memory_nbytes == 100 + 20 + 2 * 5000 + 7


def test_memory_in_flight_is_bounded(monkeypatch):
    monkeypatch.setattr(plan, "IN_FLIGHT_NBYTES", 3000)
    found, _ = planned(*one(*((1000 * i, 1000 * (i + 1)) for i in range(10))))
    assert (found.fetched_nbytes, found.memory_nbytes) == (10_000, 3000 + 2 * 10 + 7)


@given(
    st.lists(st.tuples(st.integers(0, 120), st.integers(0, 2500)), min_size=1, max_size=14),
    st.lists(st.integers(1, 3), min_size=14, max_size=14),
    st.randoms(use_true_random=False),
    st.integers(0, 50_000),
)
def test_every_payload_comes_once_in_requests_of_bounded_size(steps, sizes, random, held_from):
    extents, at = [], 0
    for gap, nbytes in steps:
        start = at + gap
        at = start + nbytes
        extents.append(Extent("", start, at, start >= held_from))
    random.shuffle(extents)
    units = []
    while extents:
        size = sizes[len(units)]
        units.append(tuple(extents[:size]))
        del extents[:size]
    found, todo = planned(*units)
    assert sorted(j.keys for batch in found.batches for unit in batch.units for j in unit.jobs) == sorted(
        j.keys for j in todo
    )
    payloads = {}
    for batch in found.batches:
        assert batch.requests
        assert len(set(batch.requests)) == len(batch.requests)
        assert all(request.stop - request.start <= REQUEST for request in batch.requests)
        for unit in batch.units:
            ends = [batch.extents[key].stop for one_job in unit.jobs for key in one_job.keys]
            assert unit.stop == max(ends)
        payloads |= {key: bytes(batch.payload(key, answers(batch))) for key in batch.extents}
    for one_job, unit in zip(todo, units, strict=True):
        for key, extent in zip(one_job.keys, unit, strict=True):
            assert payloads[key] == DATA[extent.start : extent.stop]
    single = sorted((r.start, r.stop) for b in found.batches if len(b.units) > 1 for r in b.requests)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(single)), "no byte is asked for twice"
    assert found.wanted_nbytes == sum(e.stop - e.start for unit in units for e in unit)
    not_held = [r for b in found.batches for r in b.requests if not r.held]
    assert (found.n_requests, found.fetched_nbytes) == (len(not_held), sum(r.stop - r.start for r in not_held))


def test_a_constant_of_any_size_is_one_payload(forged):
    """However many pieces of the tensor it fills, and whether or not anybody could load them."""
    for node in "constant", "tied":
        forged.tensor(node)["shape"] = [1 << 30, 1 << 25]
    with mzstore.open(forged.archive()) as model:
        found = model.plan("constant")
    assert (found.n_requests, len(found.batches)) == (0, 1), "it came with the documents"
    assert found.result_nbytes == 4 << 55

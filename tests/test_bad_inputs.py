"""No bad input crashes, hangs, takes much memory or gives data: each raises the one error that tells of it."""

import tracemalloc

import pytest
import zstandard
from bad_inputs import Case, chunks, envelope, json_text, nodes, parts, quantized, root
from forge import Forged, every_kind
from samples import bits

import mzstore
from mzstore.errors import MzError
from mzstore.payload import seal
from mzstore.storage import Location

MOST_NBYTES = 32 << 20  # of memory that a fault in a model of some kilobytes may cost
IN_DOCUMENTS_AND_PAYLOADS = [
    (theme, case)
    for theme, cases in (
        ("json", json_text.CASES),
        ("root", root.CASES),
        ("nodes", nodes.CASES),
        ("chunks", chunks.CASES),
        ("quantized", quantized.CASES),
        ("parts", parts.CASES),
    )
    for case in cases
]


def read_all(location: Location) -> None:
    with mzstore.open(location) as model:
        model.load()
        dict(model.assets)


def expect(case: Case, location: Location) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(MzError, match=case.match) as refused:
            read_all(location)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert type(refused.value) is case.error
    assert refused.value.where or "mzstore archive" in str(refused.value), "an error says where"
    assert peak < MOST_NBYTES


def test_the_model_that_the_cases_spoil_is_valid(forged, tmp_path):
    for location in (forged.archive(), forged.tree(tmp_path)):
        with mzstore.open(location) as model:
            assert {name: bits(array) for name, array in model.load().items()} == {
                name: bits(array) for name, array in forged.values.items()
            }


@pytest.mark.parametrize("case", envelope.CASES, ids=lambda case: case.name)
def test_envelope(case, forged):
    spoilt = case.spoil(forged)
    expect(case, forged.archive() if spoilt is None else spoilt)


@pytest.mark.parametrize(
    ("theme", "case"), IN_DOCUMENTS_AND_PAYLOADS, ids=lambda x: x if isinstance(x, str) else x.name
)
@pytest.mark.parametrize("kind", ["archive", "tree"])
def test_documents_and_payloads(theme, case, kind, forged, tmp_path):
    case.spoil(forged)
    expect(case, forged.archive() if kind == "archive" else forged.tree(tmp_path))


@pytest.mark.parametrize("kind", ["archive", "tree"])
@pytest.mark.parametrize("threads", [1, 4])
def test_chunks_without_number(kind, threads, forged, tmp_path):
    """The memory for the values is there; a list of their chunks would not be. The first missing one ends the read."""
    nodes.shapes("raw", [1 << 30], [1])(forged)
    del forged.payloads["raw/c/0"]
    with (
        pytest.raises(mzstore.CorruptError, match=r"has 1073741824 chunks|'raw/c/\d+' is missing"),
        mzstore.open(forged.archive() if kind == "archive" else forged.tree(tmp_path)) as model,
    ):
        model.load("raw", threads=threads)


def test_the_size_of_chunks_without_number(forged, tmp_path):
    nodes.shapes("raw", [1 << 60], [1])(forged)
    with (
        mzstore.open(forged.tree(tmp_path)) as model,
        pytest.raises(mzstore.CorruptError, match="the chunk 'raw/c/3' is missing"),
    ):
        _ = model["raw"].stored_nbytes


def test_more_values_than_memory(forged, tmp_path):
    nodes.shapes("raw", [1 << 61], [1 << 26])(forged)
    with mzstore.open(forged.tree(tmp_path)) as model, pytest.raises(MemoryError, match="2305843009213693952 bytes"):
        model.load("raw")


def test_every_truncation():
    archive = every_kind().archive()
    for length in range(len(archive)):
        with pytest.raises(mzstore.FormatError):
            mzstore.open(archive[:length])


def test_a_tree_without_a_root(tmp_path):
    with pytest.raises(mzstore.FormatError, match=r"it has no zarr\.json"):
        mzstore.open(tmp_path)


def test_bits_beyond_a_low_plane_are_ignored(forged):
    """The first low plane of "symbols" has 6 bits of the 8 of its bytes."""
    key = "symbols/c/0/0/0"
    planes = bytearray(zstandard.decompress(forged.payloads[key][:-4]))
    for i in range(12, 24):
        planes[i] |= 0xC0
    forged.payloads[key] = seal(zstandard.compress(bytes(planes)))
    with mzstore.open(forged.archive()) as model:
        assert bits(model["symbols"][...]) == bits(forged.values["symbols"])


@pytest.mark.parametrize("where", ["root", "node", "tensor", "part", "asset"])
def test_what_is_unknown_but_optional_is_ignored(where, forged: Forged):
    """A later minor version may say more in our own members; only 'features' and 'format' say that it matters."""
    target = {
        "root": forged.about,
        "node": forged.nodes["planes"]["attributes"],
        "tensor": forged.tensor("planes"),
        "part": forged.part("planes"),
        "asset": forged.about["assets"][0],
    }[where]
    target["remark"] = {"of": ["a", "later", "version"]}
    read_all(forged.archive())

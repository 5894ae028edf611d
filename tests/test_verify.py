"""``verify`` finds all that is broken, says where, and passes nothing that does not read back as it was saved."""

import json
import random
import shutil
import tracemalloc
import zlib

import numpy as np
import pytest
from bad_inputs import chunks, envelope, json_text, nodes, parts, quantized, root
from forge import ROOT, Forged, patched_entry
from samples import bits, saved, small_model, weights

import mzstore
from mzstore import storage
from mzstore.archive import ArchiveReader
from mzstore.storage import Buffer
from mzstore.verify import Problem

CASES = [case for theme in (envelope, json_text, root, nodes, chunks, quantized, parts) for case in theme.CASES]


@pytest.fixture
def whole(forged) -> Forged:
    """The forged model with the one document that it lacks."""
    forged.documents["tied/zarr.json"] = json.loads(json.dumps(forged.nodes["tied"]))
    return forged


def problems(location, **options) -> list[Problem]:
    report = mzstore.verify(location, **options)
    assert report.ok == (not report.problems)
    for problem in report.problems:
        assert "\n" not in str(problem)
    return list(report.problems)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_sound_model_has_no_problem(whole, tmp_path, threads):
    for location in (whole.archive(), whole.tree(tmp_path)):
        report = mzstore.verify(location, threads=threads)
        assert report.problems == ()
        assert report.tensors == len(whole.values) == 22
        assert report.chunks == sum("/c/" in key for key in whole.payloads)
        stored = [array for name, array in whole.values.items() if name not in ("tied", "four")]
        assert report.nbytes == sum(array.nbytes for array in stored) + 4  # seven 4-bit values
        assert report.assets == 1


@pytest.mark.parametrize("level", ["fast", "balanced", "max"])
def test_what_save_writes_has_no_problem(level, tmp_path):
    mzstore.save(tmp_path / "m.zarr", small_model(), level=level, assets={"a/b.txt": b"text", "empty": b""})
    assert problems(tmp_path / "m.zarr") == []
    assert problems(saved(small_model(), level=level, assets={"a/b.txt": b"text", "empty": b""})) == []


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_all_that_a_reader_refuses_is_reported(case, whole):
    spoilt = case.spoil(whole)
    archive = whole.archive() if spoilt is None else spoilt
    if case.error is mzstore.UnsupportedError:
        with pytest.raises(mzstore.UnsupportedError, match=case.match):
            mzstore.verify(archive)
    else:
        assert problems(archive)


def test_every_flipped_bit_is_found_or_harmless():
    """What no check covers (dates, versions, padding) changes nothing that a user gets."""
    tensors = {"a": weights((3, 5)), "b": np.arange(6, dtype=np.int16)}
    archive = saved(tensors, metadata={"k": 1}, assets={"f": b"content"})
    rng = random.Random(0)
    harmless = 0
    for at in range(len(archive)):
        spoilt = bytearray(archive)
        spoilt[at] ^= 1 << rng.randrange(8)
        try:
            if problems(bytes(spoilt), threads=1):
                continue
        except mzstore.UnsupportedError:
            continue
        harmless += 1
        with mzstore.open(bytes(spoilt)) as model:
            assert {name: bits(model[name][...]) for name in model} == {n: bits(a) for n, a in tensors.items()}
            assert model.metadata == {"k": 1}
            assert dict(model.assets) == {"f": b"content"}
    entries = len(ArchiveReader(Buffer(archive)).entries)
    unused_local, unused_central = 6, 16  # bytes: version, time, date; made by, versions, time, date, attributes
    padding = 64 * 4  # of uncompressed chunks and assets
    assert harmless <= entries * (unused_local + unused_central) + padding


def test_all_problems_are_reported_at_once(whole, tmp_path):
    """Each in its own place, and none hides another."""
    del whole.payloads["raw/c/1"]
    whole.payloads["planes/c/0/0/0"] = whole.payloads["planes/c/0/0/0"][:-1] + b"!"
    whole.payloads["ranked/c/0/0/0"] = b"12345678"
    whole.payloads["assets/config.json"] = b"other"
    whole.payloads["left/over"] = b"x"
    whole.documents["symbols/zarr.json"] = {"zarr_format": 3}
    whole.documents["four/zarr.json"] = b"{"
    del whole.documents["constant/zarr.json"]
    for location in (whole.archive(), whole.tree(tmp_path)):
        found = {(p.kind, p.key, p.tensor, p.chunk, p.clause) for p in problems(location)}
        assert found == {
            ("missing", "raw/c/1", "raw", (1,), "payload-4"),
            ("chunk", "planes/c/0/0/0", "planes", (0, 0), "payload-3"),
            ("chunk", "ranked/c/0/0/0", "ranked", (0, 0), "payload-3"),
            ("asset", "assets/config.json", None, None, "asset-3"),
            ("stray", "left/over", None, None, "key-3"),
            ("document", "symbols/zarr.json", None, None, "document-4"),
            ("document", "four/zarr.json", None, None, "document-1"),
            ("document", "constant/zarr.json", None, None, "document-4"),
        }


def test_the_lines_say_what_and_where(whole):
    del whole.payloads["raw/c/1"]
    whole.payloads["left/over"] = b"x"
    assert [str(problem) for problem in problems(whole.archive())] == [
        "tensor 'raw', chunk [1]: the chunk 'raw/c/1' is missing (FORMAT.md payload-4)",
        "'left/over': nothing in the model asks for it (FORMAT.md key-3)",
    ]


def test_a_wrong_digest(whole):
    for docs in (whole.nodes["planes"], whole.documents["planes/zarr.json"]):
        docs["attributes"]["mzstore"]["sha256"] = "0" * 64
    (problem,) = problems(whole.archive())
    assert (problem.kind, problem.tensor, problem.clause) == ("tensor", "planes", "digest-2")


def test_documents_are_compared_as_json(whole):
    """The order of members does not count, the type of a number does."""
    doc = whole.documents["planes/zarr.json"]
    whole.documents["planes/zarr.json"] = dict(reversed(doc.items()))
    assert problems(whole.archive()) == []
    doc["fill_value"] = False
    whole.documents["planes/zarr.json"] = doc
    (problem,) = problems(whole.archive())
    assert problem.kind == "document"


def test_a_local_header_that_disagrees():
    archive = bytearray(saved({"a": weights((3, 5))}))
    entry = next(iter(ArchiveReader(Buffer(bytes(archive))).entries.values()))
    archive[entry.header + 30] ^= 1  # the first letter of the name
    (problem,) = problems(bytes(archive))
    assert (problem.kind, problem.key, problem.clause) == ("container", entry.key, "zip-5")


def test_the_crc_of_an_entry(whole):
    """Readers of chunks do not look at it, but unzip does."""
    archive = whole.archive()
    first = next(iter(ArchiveReader(Buffer(archive)).entries))
    found = problems(patched_entry(archive, 0, crc32=zlib.crc32(b"something else")))
    assert {(p.kind, p.key, p.clause) for p in found} == {
        ("container", first, "zip-5"),
        ("chunk", first, "zip-7"),
    }


def test_the_rest_is_checked_when_the_root_cannot_be_read(whole, tmp_path):
    whole.documents[ROOT] = b"no JSON"
    del whole.payloads["raw/c/1"]  # nobody can know of it now
    (problem,) = problems(whole.archive())
    assert (problem.kind, problem.key) == ("document", ROOT)
    spoilt = bytearray(whole.archive())
    entry = ArchiveReader(Buffer(bytes(spoilt))).entries["raw/c/0"]
    spoilt[entry.start] ^= 1
    assert {(p.kind, p.key) for p in problems(bytes(spoilt))} == {("document", ROOT), ("container", "raw/c/0")}
    assert [p.key for p in problems(whole.tree(tmp_path))] == [ROOT]


def test_what_is_no_model_at_all(tmp_path, monkeypatch):
    def never(*_):
        raise AssertionError("a directory may be a whole disk")

    monkeypatch.setattr(storage.LocalFolder, "walk", never)
    (tmp_path / "notes.txt").write_text("shopping list")
    (problem,) = problems(tmp_path / "notes.txt")
    assert problem.kind == "container"
    (problem,) = problems(tmp_path)
    assert "not a model of mzstore" in str(problem)
    with pytest.raises(mzstore.StorageError, match="No such file"):
        mzstore.verify(tmp_path / "nothing.mz")


def test_layouts(tmp_path):
    from safetensors.numpy import save_file

    save_file({"a": weights((3, 5)), "b": weights((7,))}, tmp_path / "m.safetensors")
    mzstore.convert(tmp_path / "m.safetensors", tmp_path / "m.zarr")
    assert problems(tmp_path / "m.zarr") == []
    layout = tmp_path / "m.zarr" / "layouts" / "0"
    good = layout.read_bytes()
    layout.write_bytes(good.replace(b"[7]", b"[8]").replace(b"[60,88]", b"[60,92]"))
    (problem,) = problems(tmp_path / "m.zarr")
    assert (problem.kind, problem.key, problem.clause) == ("layout", "layouts/0", "layout-2")
    layout.write_bytes(good[:-1])
    (problem,) = problems(tmp_path / "m.zarr")
    assert problem.kind == "layout"
    layout.unlink()
    (problem,) = problems(tmp_path / "m.zarr")
    assert "missing" in problem.text


def test_chunks_that_somebody_made_up(whole):
    """A grid of 2 ** 30 chunks is not walked."""
    nodes.shapes("raw", [1 << 30], [1])(whole)
    found = [problem for problem in problems(whole.archive()) if problem.tensor]
    assert [(p.kind, p.tensor) for p in found] == [("missing", "raw")]
    assert "1073741824 chunks" in found[0].text


def test_memory_is_bounded_by_row_blocks(tmp_path):
    """A tensor of many row blocks is never in memory whole."""
    values = np.random.default_rng(0).integers(0, 256, (32, 1 << 20), np.uint8)
    mzstore.save(tmp_path / "m.mz", {"w": values})
    tracemalloc.start()
    try:
        assert mzstore.verify(tmp_path / "m.mz", threads=1).ok
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < values.nbytes / 2


def test_a_tree_with_a_file_too_many(tmp_path):
    mzstore.save(tmp_path / "m.zarr", small_model())
    shutil.copy(tmp_path / "m.zarr" / ROOT, tmp_path / "m.zarr" / "copy of zarr.json")
    (problem,) = problems(tmp_path / "m.zarr")
    assert (problem.kind, problem.key) == ("stray", "copy of zarr.json")


def test_it_goes_to_json(whole):
    del whole.payloads["raw/c/1"]
    report = json.loads(json.dumps(mzstore.verify(whole.archive()).to_json()))
    assert report["ok"] is False
    assert report["problems"] == [
        {
            "kind": "missing",
            "text": "the chunk 'raw/c/1' is missing",
            "key": "raw/c/1",
            "tensor": "raw",
            "chunk": [1],
            "clause": "payload-4",
        }
    ]

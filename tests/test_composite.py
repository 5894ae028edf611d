"""Several archives as one model."""

import hashlib
import io
import json
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import mzstore
from mzstore import CorruptError, FormatError, Recipe, Rule, StorageError, UnsupportedError
from mzstore.dtypes import of_array
from mzstore.inspect import summarize
from mzstore.manifest import ArchiveRef, Manifest, ManifestTensor, Piece, overlap
from mzstore.tensors import TensorSpec

Boxes = list[tuple[str, tuple[int, ...], tuple[int, ...]]]  # archive, offsets, shape

rng = np.random.default_rng(0)
VALUES: dict[str, np.ndarray] = {
    "rows": rng.standard_normal((40, 33)).astype(np.float32),
    "grid": rng.standard_normal((41, 30)).astype(ml_dtypes.bfloat16),
    "one": rng.standard_normal(19).astype(np.float64),
    "complex": (rng.standard_normal((6, 5)) + 1j * rng.standard_normal((6, 5))).astype(np.complex64),
    "packed": rng.integers(-8, 8, (4, 11)).astype(ml_dtypes.int4),
    "scalar": np.float32(2.5).reshape(()),
    "empty": np.zeros((0, 4), np.int8),
}
BOXES: dict[str, Boxes] = {
    "rows": [("a", (0, 0), (15, 33)), ("b", (15, 0), (25, 33))],
    "grid": [("a", (0, 0), (41, 10)), ("b", (0, 10), (20, 20)), ("c", (20, 10), (21, 20))],
    "one": [("c", (0,), (19,))],
    "complex": [("a", (0, 0), (6, 2)), ("b", (0, 2), (6, 3))],
    "packed": [("a", (0, 0), (4, 6)), ("c", (0, 6), (4, 5))],
    "scalar": [("b", (), ())],
    "empty": [],
}
SAVE_ID = "0123456789abcdef"


def parts(values: dict[str, np.ndarray], boxes: dict[str, Boxes], **settings: Any) -> dict[str, bytes]:
    """An archive for each name of one, and ``m.json``."""
    inside: dict[str, dict[str, np.ndarray]] = {}
    pieces: dict[str, list[tuple[str, str, tuple[int, ...], tuple[int, ...]]]] = {}
    for name, places in boxes.items():
        pieces[name] = []
        for archive, offsets, shape in places:
            own = f"{name}@{archive}"
            box = tuple(slice(o, o + n) for o, n in zip(offsets, shape, strict=True))
            inside.setdefault(archive, {})[own] = values[name][box].copy()
            pieces[name].append((archive, own, offsets, shape))
    files = {}
    for archive, tensors in inside.items():
        file = io.BytesIO()
        mzstore.save(file, tensors, **settings)
        files[f"{archive}.mz"] = file.getvalue()
    refs = [ArchiveRef(path, len(data), hashlib.sha256(data).hexdigest()) for path, data in files.items()]
    index = {ref.path: i for i, ref in enumerate(refs)}
    tensors_ = {
        name: ManifestTensor(
            TensorSpec(name, of_array(values[name]), values[name].shape),
            tuple(Piece(index[f"{archive}.mz"], own, offsets, shape) for archive, own, offsets, shape in places),
        )
        for name, places in pieces.items()
    }
    files["m.json"] = Manifest(SAVE_ID, tuple(refs), tensors_, {"title": "x"}).to_bytes()
    return files


def put(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder / "m.json"


@pytest.fixture
def location(tmp_path) -> Path:
    return put(tmp_path, parts(VALUES, BOXES))


@pytest.fixture
def model(location):
    with mzstore.open(location) as model:
        yield model


def same(a: Any, b: Any) -> bool:
    a, b = np.asarray(a), np.asarray(b)
    return a.dtype == b.dtype and np.array_equal(a, b)  # none is NaN


INDICES = [
    ...,
    0,
    -1,
    (slice(3, 37, 5), slice(None, None, -2)),
    (slice(14, 16), slice(9, 11)),
    (slice(5, 5), ...),
    (..., slice(4, None, 3)),
    (slice(None, None, -1), 3),
]


@pytest.mark.parametrize("index", INDICES, ids=str)
@pytest.mark.parametrize("name", ["rows", "grid"])
def test_indices(model, name, index):
    assert same(model[name][index], VALUES[name][index])


@pytest.mark.parametrize("name", VALUES)
def test_all_of_each(model, name):
    assert same(model[name][...], VALUES[name])
    assert same(model[name].read(threads=2), VALUES[name])
    out = np.zeros_like(VALUES[name])
    assert model[name].read(out) is out
    assert same(out, VALUES[name])


def test_packed_values_at_odd_places(model):
    for index in [(slice(None), slice(1, 9)), (2, 5), (slice(None), slice(5, 7)), (..., slice(None, None, -3))]:
        assert same(model["packed"][index], VALUES["packed"][index])
    assert same(model["complex"][2:5, 1:4], VALUES["complex"][2:5, 1:4])


def test_as_a_mapping(model):
    assert list(model) == list(VALUES)
    assert model.metadata == {"title": "x"}
    assert model.nbytes == sum(model[name].nbytes for name in model)
    assert model["grid"].shape == (41, 30)
    assert repr(model["grid"]).endswith("bfloat16 [41, 30], pieces>")
    with pytest.raises(KeyError, match="nearest: 'rows'"):
        model["row"]


def test_load(model):
    for threads in (1, 3):
        loaded = model.load(threads=threads)
        assert all(same(loaded[name], value) for name, value in VALUES.items())
    shard = model.load(["rows", "grid"], shard=(1, 3), axis=1)
    assert same(shard["rows"], VALUES["rows"][:, 11:22])
    assert same(model["grid"].shard(0, 2, 4), VALUES["grid"][22:33])


def test_other_dtypes_and_frameworks(model):
    torch = pytest.importorskip("torch")
    wide = model.load(["grid", "one"], dtype="float32")
    assert same(wide["grid"], VALUES["grid"].astype(np.float32))
    assert same(wide["one"], VALUES["one"].astype(np.float32))
    out = torch.zeros(40, 33)
    model["rows"].read(out)
    assert same(out.numpy(), VALUES["rows"])
    assert model.load("grid", framework="torch")["grid"].dtype == torch.bfloat16


def test_only_what_is_read_is_opened(tmp_path, location):
    (tmp_path / "b.mz").unlink()
    with mzstore.open(location) as model:
        assert same(model["grid"][:, :10], VALUES["grid"][:, :10])
        assert same(model["rows"][:15], VALUES["rows"][:15])
        assert same(model["empty"][...], VALUES["empty"])
        with pytest.raises(StorageError, match=r"b\.mz"):
            model["rows"][14:16]


def test_plan(model):
    plan = model.plan({"rows": slice(0, 3)})
    assert len(plan.batches) == 1
    assert plan.wanted_nbytes < model["rows"].stored_nbytes
    assert model.plan().wanted_nbytes >= sum(model[name].stored_nbytes for name in model)


def test_cache(location):
    with mzstore.open(location, cache_bytes=1 << 20) as model:
        for _ in range(2):
            assert same(model["rows"][...], VALUES["rows"])
        assert (model.stats.hits, model.stats.misses) == (1, 1)


def test_what_one_piece_is(model):
    with mzstore.open(Path(model.url).parent / "c.mz") as archive:
        own = archive["one@c"]
        assert model["one"].encoding == own.encoding
        assert model["one"].sha256 == own.sha256
        assert model["one"].stored_nbytes == own.stored_nbytes
    assert model["rows"].sha256 == ""
    assert model["rows"].quality is None
    assert model["rows"].base is None
    with pytest.raises(ValueError, match=r"'rows' is made of pieces.*open a\.mz or b\.mz"):
        model["rows"].components()
    with pytest.raises(ValueError, match="each of its archives is a hierarchy"):
        model.zarr()


def test_quantized_pieces(tmp_path):
    values = {name: rng.standard_normal((64, 48)).astype(np.float32) for name in ("w", "one")}
    boxes: dict[str, Boxes] = {
        "w": [("a", (0, 0), (32, 48)), ("b", (32, 0), (32, 48))],
        "one": [("b", (0, 0), (64, 48))],
    }
    recipe = Recipe((Rule(quantizer="symmetric", bits=4, group=8),), defaults=False)
    location = put(tmp_path, parts(values, boxes, recipe=recipe))
    with mzstore.open(location) as model, mzstore.open(tmp_path / "a.mz") as a, mzstore.open(tmp_path / "b.mz") as b:
        assert model["one"].quality == b["one@b"].quality
        for dtype in (None, "float16"):
            expected = np.concatenate([a["w@a"].read(dtype=dtype), b["w@b"].read(dtype=dtype)])
            assert same(model["w"].read(dtype=dtype), expected)
        mzstore.convert(location, tmp_path / "whole.mz")
        with mzstore.open(tmp_path / "whole.mz") as whole:
            assert whole["one"].encoding.startswith("quantized")
            assert same(whole["w"][...], model["w"][...])


def test_pieces_that_are_changes_of_other_archives(tmp_path):
    mzstore.save(tmp_path / "base.mz", {"w": VALUES["rows"]})
    tuned = VALUES["rows"].copy()
    tuned[3] += np.float32(0.01)
    mzstore.save(tmp_path / "tuned.mz", {"w": tuned})
    mzstore.delta(tmp_path / "base.mz", tmp_path / "tuned.mz", tmp_path / "a.mz")
    data = (tmp_path / "a.mz").read_bytes()
    spec = TensorSpec("w", of_array(tuned), tuned.shape)
    manifest = Manifest(
        SAVE_ID,
        (ArchiveRef("a.mz", len(data), hashlib.sha256(data).hexdigest()),),
        {"w": ManifestTensor(spec, (Piece(0, "w", (0, 0), tuned.shape),))},
    )
    (tmp_path / "m.json").write_bytes(manifest.to_bytes())
    with mzstore.open(tmp_path / "m.json") as model:
        assert same(model["w"][...], tuned)
        assert same(model["w"].read(dtype="float16"), tuned.astype(np.float16))
        assert model["w"].base == ("base.mz", "w")
        assert model.plan().bases[0][0].endswith("base.mz")
    assert mzstore.verify(tmp_path / "m.json").ok


def test_many_readers(location):
    with mzstore.open(location) as model, ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda i: model[["rows", "grid"][i % 2]][...], range(40)):
            assert same(found, VALUES["rows"]) or same(found, VALUES["grid"])


def test_another_process(model):
    with pickle.loads(pickle.dumps(model)) as copied:
        assert same(copied["rows"][...], VALUES["rows"])
    child = os.fork()
    if child == 0:
        os._exit(0 if same(model["rows"][...], VALUES["rows"]) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_convert_and_diff(tmp_path, location):
    mzstore.convert(location, tmp_path / "whole.mz")
    assert mzstore.diff(location, tmp_path / "whole.mz").equal
    assert mzstore.diff(location, location).equal
    other = {**VALUES, "rows": VALUES["rows"] + 1}
    (tmp_path / "other").mkdir()
    different = mzstore.diff(location, put(tmp_path / "other", parts(other, BOXES)))
    assert [tensor.name for tensor in different.tensors] == ["rows"]
    assert mzstore.verify(tmp_path / "whole.mz").ok


def test_no_base_of_another_model(tmp_path, location):
    mzstore.save(tmp_path / "tuned.mz", {"rows": VALUES["rows"]})
    with pytest.raises(ValueError, match="is a manifest, which is no base"):
        mzstore.delta(location, tmp_path / "tuned.mz", tmp_path / "delta.mz")


def test_inspect(model):
    summary = summarize(model)
    found = {tensor.name: tensor for tensor in summary.tensors}
    assert summary.container == "manifest"
    assert found["grid"].how() == "3 pieces"
    assert found["one"].encoding == model["one"].encoding
    assert found["rows"].stored_nbytes == model["rows"].stored_nbytes
    assert summary.container_nbytes == sum(a.nbytes for a in model.archives.manifest.archives)
    json.dumps(summary.to_json())


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def test_verify(tmp_path, location):
    report = mzstore.verify(location)
    assert report.ok
    assert report.tensors == len(VALUES)
    whole = {name: (tmp_path / name).read_bytes() for name in ("a.mz", "b.mz", "c.mz")}
    damage = {
        "a.mz": flipped(whole["a.mz"], len(whole["a.mz"]) // 3),
        "b.mz": whole["b.mz"] + b"\0",
        "c.mz": whole["a.mz"],
    }
    for name, data in damage.items():
        (tmp_path / name).write_bytes(data)
        problems = mzstore.verify(location).problems
        assert problems
        assert {problem.key.partition("/")[0] for problem in problems} == {name}
        (tmp_path / name).write_bytes(whole[name])
    (tmp_path / "c.mz").unlink()
    assert [problem.kind for problem in mzstore.verify(location).problems] == ["missing"]


def test_archives_that_are_others(tmp_path, location):
    changed = parts({**VALUES, "rows": VALUES["rows"] * 3}, BOXES)["a.mz"]
    (tmp_path / "a.mz").write_bytes(changed)
    with mzstore.open(location) as model, pytest.raises(CorruptError, match=r"manifest-4"):
        model["rows"][0]


def edited(location: Path, edit: Any) -> Path:
    doc = json.loads(location.read_text())
    doc.pop("digest", None)
    edit(doc)
    location.write_text(json.dumps(doc))
    return location


def test_tensors_of_archives_that_are_others(location):
    def edit(doc):
        doc["tensors"]["rows"]["pieces"][0]["name"] = "grid@a"
        doc["tensors"]["one"]["dtype"] = "float32"
        doc["tensors"]["scalar"]["pieces"][0]["name"] = "nothing"
        doc["tensors"]["packed"]["pieces"][-1]["sha256"] = "0" * 64

    with mzstore.open(edited(location, edit)) as model:
        assert same(model["rows"][20:], VALUES["rows"][20:])
        for name, now in (
            ("rows", r"bfloat16 \[41, 10\]"),
            ("one", r"float64 \[19\]"),
            ("scalar", "not there"),
            ("packed", "has other values"),
        ):
            with pytest.raises(CorruptError, match=f"{now}.*manifest-5"):
                model[name][...]
    assert {problem.clause for problem in mzstore.verify(location).problems} == {"manifest-5"}


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd", "../../../x.mz", "a/../b.mz", "./a.mz", "a//b.mz", "", "..", ".", "s3://bucket/a.mz", "file:///a.mz",
        "a\\b.mz", "a\0.mz", "zip::a.mz", "a.mz/", "x" * 201, "a b.mz",
    ],
)  # fmt: skip
def test_paths_that_lead_elsewhere(location, path):
    def edit(doc):
        doc["archives"][0]["path"] = path

    with pytest.raises(FormatError, match=r"manifest-3"):
        mzstore.open(edited(location, edit))


def test_archives_in_folders(tmp_path):
    (tmp_path / "manifests").mkdir()
    (tmp_path / "data" / "x").mkdir(parents=True)
    files = parts(VALUES, BOXES)
    doc = json.loads(files.pop("m.json"))
    doc.pop("digest")
    put(tmp_path / "data" / "x", files)
    for archive in doc["archives"]:
        archive["path"] = f"../data/x/{archive['path']}"
    (tmp_path / "manifests" / "7.json").write_text(json.dumps(doc))
    with mzstore.open(tmp_path / "manifests" / "7.json") as model:
        assert same(model["grid"][...], VALUES["grid"])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda doc: doc.pop("mzstore_manifest"), "manifest-1"),
        (lambda doc: doc.update(mzstore_manifest=True), "manifest-1"),
        (lambda doc: doc.update(archives={}), "manifest-2"),
        (lambda doc: doc.update(tensors=[]), "manifest-2"),
        (lambda doc: doc["tensors"]["rows"].update(pieces=[{}] * ((1 << 22) + 1)), "more than 4194304 pieces"),
        (lambda doc: doc["tensors"]["rows"]["pieces"].pop(), "495 values of 1320"),
        (lambda doc: doc["tensors"]["rows"]["pieces"][1].update(offsets=[14, 0]), "overlap"),
        (lambda doc: doc["tensors"]["rows"]["pieces"][1].update(offsets=[16, 0]), "reaches beyond"),
        (lambda doc: doc["tensors"]["rows"]["pieces"][1].update(offsets=[-1, 0]), "integers >= 0"),
        (lambda doc: doc["tensors"]["rows"]["pieces"][1].update(shape=[25, 33.0]), "integers >= 0"),
        (lambda doc: doc["tensors"]["rows"]["pieces"][1].update(shape=[25]), "manifest-3"),
        (lambda doc: doc["tensors"]["rows"]["pieces"][1].update(archive=3), "archive 3, where there are 3"),
        (lambda doc: doc["tensors"]["rows"].update(shape=[2**40, 2**40]), "manifest-3"),
        (lambda doc: doc["tensors"]["rows"].update(dtype="float31"), "no known dtype"),
        (lambda doc: doc["tensors"]["packed"]["pieces"][1].update(offsets=[0, 5]), "second value of a byte"),
        (lambda doc: doc["archives"][0].update(nbytes=-1), "manifest-3"),
        (lambda doc: doc["archives"][0].update(sha256="0"), "manifest-3"),
        (lambda doc: doc.update(save_id="../x"), "save id"),
    ],
)
def test_manifests_that_make_no_sense(location, edit, message):
    with pytest.raises(FormatError, match=message):
        mzstore.open(edited(location, edit))
    assert [problem.kind for problem in mzstore.verify(location).problems] == ["document"]


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b"PK\3\4", b"[" * 100_000])
def test_files_that_are_none(tmp_path, data):
    (tmp_path / "m.json").write_bytes(data)
    with pytest.raises(FormatError, match="manifest-1"):
        mzstore.open(tmp_path / "m.json")


def test_manifests_of_later_formats(location):
    with pytest.raises(UnsupportedError, match="upgrade mzstore"):
        mzstore.open(edited(location, lambda doc: doc.update(mzstore_manifest=2)))
    (location.parent / "folder.json").mkdir()
    with pytest.raises(FormatError, match="not a manifest"):
        mzstore.open(location.parent / "folder.json")
    with pytest.raises(StorageError, match="No such file"):
        mzstore.open(location.parent / "other.json")


def test_many_pieces_are_checked_in_time():
    """A grid of 250,000 boxes, which no pairwise comparison would get through."""
    n = 500
    pieces = tuple(Piece(0, "x", (i, j), (1, 1)) for i in range(n) for j in range(n))
    ManifestTensor(TensorSpec("x", of_array(np.zeros(1)), (n, n)), pieces)
    with pytest.raises(ValueError, match="overlap"):
        ManifestTensor(TensorSpec("x", of_array(np.zeros(1)), (n, n)), (*pieces[:-1], pieces[0]))
    stairs = [Piece(0, "x", (i, 0), (5000, 1)) for i in range(5000)]
    with pytest.raises(ValueError, match="on no grid"):
        overlap([replace(box, offsets=(box.offsets[0], i)) for i, box in enumerate(stairs)])


def test_remote(place):
    files = parts(VALUES, BOXES)
    place.put_all(files)
    with mzstore.open(place.url("m.json"), storage_options=place.options) as model:
        assert not place.requests("a.mz")
        assert same(model["rows"][20:30], VALUES["rows"][20:30])
        assert not place.requests("a.mz")
        assert len(place.requests("b.mz", "GET")) == 1, "its tail, which has all"
        assert model.stats.fetched_nbytes == len(files["m.json"]) + len(files["b.mz"])
        loaded = model.load(threads=2)
        assert all(same(loaded[name], value) for name, value in VALUES.items())
        assert len(place.requests("b.mz", "GET")) == 1
        assert not place.listings()
    place.remove("c.mz")
    with (
        mzstore.open(place.url("m.json"), storage_options=place.options) as model,
        pytest.raises(StorageError, match=r"c\.mz"),
    ):
        model["one"][...]
    problems = mzstore.verify(place.url("m.json"), storage_options=place.options).problems
    assert [problem.kind for problem in problems] == ["missing"]


def test_ranges_of_several_archives_by_one_plan(place):
    values = {"x": rng.standard_normal((1024, 2048)).astype(np.float32)}
    boxes: dict[str, Boxes] = {"x": [("a", (0, 0), (512, 2048)), ("b", (512, 0), (512, 2048))]}
    place.put_all(parts(values, boxes))
    with mzstore.open(place.url("m.json"), storage_options=place.options) as model:
        plan = model.plan({"x": (slice(None), slice(0, 256))})
        assert plan.wanted_nbytes <= 1.01 * model["x"].stored_nbytes / 8
        assert {request.object for batch in plan.batches for request in batch.requests} == {"0", "1"}
        assert same(model["x"][:, :256], values["x"][:, :256])

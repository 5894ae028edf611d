"""FORMAT.md, its vectors, its schemas, the reference reader and mzstore all say the same."""

import ast
import hashlib
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

import mzstore
from mzstore import kernels
from mzstore.archive import ArchiveWriter
from mzstore.checkpoints import CheckpointStore
from mzstore.checkpoints.state import decode
from mzstore.documents import FEATURES, FORMAT
from mzstore.dtypes import DTYPES
from mzstore.errors import CorruptError, FormatError, MzError, UnsupportedError
from mzstore.formats import layouts, open_source
from mzstore.manifest import Manifest
from mzstore.recipe import Rule
from mzstore.selection import Span
from mzstore.storage import FileObjectSink
from mzstore.storage.objects import LocalObjects
from mzstore.verify import verify
from spec import generate, reference

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "FORMAT.md").read_text()
CLAUSES = re.findall(r"\*\*\[([a-z]+-\d+)\]\*\*", PAGE)
FAMILIES = {clause.partition("-")[0] for clause in CLAUSES}
VECTORS = {
    vector["id"]: vector for path in sorted((ROOT / "spec/vectors").glob("*.json")) for vector in json.loads(path.read_text())
}  # fmt: skip
ERRORS = {"format": FormatError, "unsupported": UnsupportedError, "corrupt": CorruptError}
# What mzstore checks only in ``verify``, as FORMAT.md allows: a load would take too long, or does not need it.
ONLY_VERIFIED = {"zip-5", "document-4", "digest-2", "layout-2", "layout-3"}


def tree_objects(vector: dict[str, Any]) -> dict[str, bytes]:
    """The objects of a vector's tree, by key (see spec/README.md)."""
    objects = {}
    if "root" in vector:
        nodes = vector["root"].get("consolidated_metadata", {}).get("metadata", {})
        docs = {f"{key}/zarr.json": doc for key, doc in nodes.items()} if isinstance(nodes, dict) else {}
        objects = {key: json.dumps(doc).encode() for key, doc in (docs | {"zarr.json": vector["root"]}).items()}
    return objects | {key: bytes.fromhex(data) for key, data in vector["objects"].items()}


def written(vector: dict[str, Any], folder: Path) -> Path:
    """The vector as an archive or a tree on disk."""
    if "archive" in vector:
        path = folder / "model.mz"
        path.write_bytes(bytes.fromhex(vector["archive"]))
        return path
    for url, base in vector.get("bases", {}).items():
        _write_tree(base, folder / url)
    return _write_tree(vector, folder / "tree")


def _write_tree(vector: dict[str, Any], tree: Path) -> Path:
    tree.mkdir(parents=True)
    for key, data in sorted(tree_objects(vector).items(), key=lambda item: item[0] != "zarr.json"):
        path = tree / key
        # Keys that no disk can hold stand only in a root document that is refused.
        if path.resolve().is_relative_to(tree) and not any(p.is_file() for p in (path, *path.parents)):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return tree


def test_clauses_are_named_once():
    assert len(CLAUSES) == len(set(CLAUSES))


def test_vectors_have_their_names_once():
    found = [v["id"] for path in (ROOT / "spec/vectors").glob("*.json") for v in json.loads(path.read_text())]
    assert len(found) == len(set(found)) > 300


def test_vectors_are_those_of_the_page():
    files = generate.files()
    assert {path.name: path.read_text() for path in (ROOT / "spec/vectors").glob("*.json")} == files, (
        "run: python -m spec.generate"
    )


@pytest.mark.parametrize("name", VECTORS)
def test_reference_reader(name):
    vector = VECTORS[name]
    source = bytes.fromhex(vector["archive"]) if "archive" in vector else tree_objects(vector)
    bases = {url: tree_objects(base) for url, base in vector.get("bases", {}).items()}
    if "error" in vector:
        with pytest.raises(reference.Refused) as refused:
            reference.read(source, bases.__getitem__)
        assert (refused.value.name, refused.value.clause in vector["clauses"]) == (vector["error"], True), refused.value
        return
    model = reference.read(source, bases.__getitem__)
    found = {
        key: {"dtype": t.dtype, "shape": list(t.shape), "words": t.words.tobytes().hex()} for key, t in model.tensors.items()
    }  # fmt: skip
    assert found == vector["tensors"]
    assert {path: data.hex() for path, data in model.assets.items()} == vector.get("assets", {})
    files = {path: data.hex() for path, data in model.files.items()}
    assert files == vector.get("files", files)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", VECTORS)
def test_mzstore(name, tmp_path):
    vector = VECTORS[name]
    path = written(vector, tmp_path)
    if "error" not in vector:
        tensors, assets = _load(path)
        assert tensors == vector["tensors"]
        assert assets == vector.get("assets", {})
        # ``verify`` may be stricter than a reader has to be; then the vector is about that.
        assert {problem.clause for problem in verify(path, threads=1).problems} <= set(vector["clauses"])
        if "files" in vector:
            assert _files(path) == vector["files"]
        return
    error = _refusal(path)
    if error:
        assert (type(error), error.clause in vector["clauses"]) == (ERRORS[vector["error"]], True), error
    else:
        assert vector["clauses"][0] in ONLY_VERIFIED, "accepted"
        if vector["error"] == "unsupported":
            with pytest.raises(UnsupportedError) as refused:
                verify(path, threads=1)
            assert refused.value.clause in vector["clauses"]
        else:
            assert {problem.clause for problem in verify(path, threads=1).problems} & set(vector["clauses"])


PARTS = ("ggml/", "quantized/", "sparse/", "lowrank/", "tucker/", "combined/", "base/")
IN_PARTS = [name for name, v in VECTORS.items() if name.startswith(PARTS) and "error" not in v]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", IN_PARTS)
def test_kernels_give_the_same(name, tmp_path, monkeypatch):
    """Vectors are too small for kernels to pay."""
    monkeypatch.setattr(kernels, "pays", lambda nbytes: True)
    assert _load(written(VECTORS[name], tmp_path))[0] == VECTORS[name]["tensors"]


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("name", [name for name in IN_PARTS if VECTORS[name]["tensors"]["w"]["words"]])
def test_slices_are_those_of_the_whole(name, fast, tmp_path, monkeypatch):
    monkeypatch.setattr(kernels, "pays", lambda nbytes: fast)
    with mzstore.open(written(VECTORS[name], tmp_path)) as model:
        entry = model.document.tensors["w"]
        dtype, shape = entry.spec.dtype, entry.spec.word_shape
        whole = np.frombuffer(bytes.fromhex(VECTORS[name]["tensors"]["w"]["words"]), dtype.word).reshape(shape)
        for axis in range(len(shape)):
            for first, last in ((shape[axis] // 3, shape[-1] // 2), (0, shape[-1] - 1)):
                spans = [Span(0, n) for n in shape]
                spans[axis] = Span(first, max(1, shape[axis] // 2))
                spans[-1] = Span(last, shape[-1] - last)
                found = np.empty([span.count for span in spans], dtype.word)
                model["w"]._fill(tuple(spans), found, 1)
                assert np.array_equal(found, whole[tuple(slice(s.start, s.start + s.count) for s in spans)])


def _files(path: Path) -> dict[str, str]:
    """The files that have layouts, as a vector states them."""
    found = {}
    with open_source(path) as model:
        tensors = {tensor.spec.name: tensor for tensor in model.tensors}
        for source in model.layouts:
            file = io.BytesIO()
            layout = layouts.parse(source, where=source.path)
            layout.write(FileObjectSink(file), tensors, lambda nbytes: None)
            assert layout.nbytes == len(file.getvalue())
            found[source.path] = file.getvalue().hex()
    return found


def _refusal(path: Path) -> MzError | None:
    try:
        _load(path)
    except MzError as error:
        return error
    return None


def _load(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """All tensors (dtype, shape, words) and assets, as a vector states them."""
    with mzstore.open(path) as model:
        tensors = {}
        for name, tensor in model.items():
            spec = model.document.tensors[name].spec
            words = np.empty(spec.word_shape, spec.dtype.word)
            tensor._fill(tuple(Span(0, n) for n in spec.word_shape), words, 1)
            tensors[name] = {"dtype": spec.dtype.name, "shape": list(spec.shape), "words": words.tobytes().hex()}
        return tensors, {asset: data.hex() for asset, data in model.assets.items()}


def test_every_clause_has_a_vector_or_a_test():
    cited = {clause for vector in VECTORS.values() for clause in vector["clauses"]}
    tests = "".join((ROOT / "tests" / f"test_{name}.py").read_text() for name in ("format", "golden", "other_readers"))
    cited |= set(re.findall(r"\[([a-z]+-\d+)\]", tests))
    assert cited == set(CLAUSES)


def test_every_clause_that_the_code_names_exists():
    for path in (ROOT / "mzstore").rglob("*.py"):
        text = path.read_text()
        cited = set(re.findall(r"FORMAT\.md ([a-z]+-\d+)", text))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.keyword) and node.arg == "clause" and isinstance(node.value, ast.JoinedStr):
                assert ast.unparse(node.value) == """f"{doc['encoding']}-1\""""
                cited |= {f"{encoding}-1" for encoding in ("raw", *FEATURES)}
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                family, dash, number = node.value.partition("-")
                cited |= {node.value} if dash and number.isdigit() and family in FAMILIES else set()
        assert cited <= set(CLAUSES), path
        sections = set(re.findall(r"FORMAT\.md section (\d+(?:\.\d+)?)", text))
        assert sections <= set(re.findall(r"^#+ (\d+(?:\.\d+)?)\.? ", PAGE, re.M)), path


def test_every_clause_that_the_page_refers_to_exists():
    assert set(re.findall(r"\[([a-z]+-\d+)\]", PAGE)) == set(CLAUSES)


def test_quotations_of_the_reference_reader_stand_in_the_page():
    page = " ".join(PAGE.split())
    quotations, current = [], []
    for line in (ROOT / "spec/reference.py").read_text().splitlines():
        if line.strip().startswith("# > "):
            current.append(line.strip()[4:])
        elif current:
            quotations.append(" ".join(current))
            current = []
    assert len(quotations) > 60
    assert [q for q in quotations if q not in page] == []


def test_the_reference_reader_shares_nothing_with_mzstore():
    for name in ("reference", "generate"):
        imported = set()
        for node in ast.walk(ast.parse((ROOT / "spec" / f"{name}.py").read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add((node.module or "").partition(".")[0])
        assert not imported & {"mzstore", "zarr", "tensorstore", "google_crc32c"}


def test_the_table_of_dtypes_is_that_of_mzstore():
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| (\d+) \| ([\w ]+) \| `(\w+)` \|", PAGE, re.M)
    kind = {(False, 1): "shape", (True, 1): "packed", (False, 2): "two parts"}
    found = [(d.name, str(d.bits), str(d.word_bits), kind[d.packed, d.parts], d.disk) for d in DTYPES.values()]
    # A raw array of a packed or 8-bit type is an array of bytes.
    assert sorted(rows) == sorted(found)
    assert {name: (int(bits), raw) for name, _, bits, _, raw in rows} == reference.DTYPES


def test_format_number_and_features_are_those_of_mzstore():
    """[root-2] [root-3]"""
    assert f"| {FORMAT} | mzstore 0.1.0 |" in PAGE
    (listed,) = re.findall(r"In format 1 the features are (.*?)\.", PAGE)
    assert re.findall(r"`(\w+)`", listed) == sorted(FEATURES)


SCHEMAS = {path.name: json.loads(path.read_text()) for path in (ROOT / "spec").glob("*.schema.json")}
REGISTRY = Registry().with_resources((name, Resource.from_contents(schema)) for name, schema in SCHEMAS.items())
# Faults that concern several members, or what a schema cannot count; to JSON schemas, 1.0 is an integer.
BEYOND_SCHEMAS = {
    "array/chunk-of-fractions", "array/chunk-of-more-axes", "asset/size-is-a-fraction", "layout/missing", "layout/more-than-the-header",
    "node/equal-but-for-case", "root/feature-not-listed", "root/format-is-a-fraction", "tensor/array-below-an-array",
    "tensor/base-in-an-array", "tensor/planes-second-in-one-array", "tensor/sparse-in-one-array",
    "tensor/extent-is-a-fraction", "tensor/group-of-nothing", "tensor/group-of-one-array", "tensor/name-too-long",
    "tensor/name-twice", "tensor/name-with-a-surrogate", "tensor/too-large", "tensor/too-large-product",
    "tensor/too-large-though-empty",
}  # fmt: skip


def allows(schema: str, doc: object) -> bool:
    return Draft202012Validator(SCHEMAS[schema], registry=REGISTRY).is_valid(doc)


def test_schemas_are_schemas():
    for schema in SCHEMAS.values():
        Draft202012Validator.check_schema(schema)


def test_vectors_follow_their_schema():
    for path in (ROOT / "spec/vectors").glob("*.json"):
        vectors = json.loads(path.read_text())
        assert allows("vectors.schema.json", vectors), path
        assert not allows("vectors.schema.json", [vectors[0] | {"error": "other"}])
        assert not allows("vectors.schema.json", [{k: v for k, v in vectors[0].items() if k != "clauses"}])


def test_schemas_allow_what_is_valid_and_no_fault_of_documents():
    families = ("root/", "node/", "tensor/", "array/", "asset/", "layout/")
    related = {"asset-2", "tensor-5", "layout-3"}  # between entries, between nodes; paths; and what is no document
    allowed = {name for name, v in VECTORS.items() if "root" in v and allows("root.schema.json", v["root"])}
    assert {name for name, v in VECTORS.items() if "root" in v and "tensors" in v} <= allowed
    wrong = {name for name, v in VECTORS.items() if v.get("error") in ("format", "unsupported") and "root" in v}
    found = {name for name in allowed & wrong if name.startswith(families)}
    assert {name for name in found if not related & set(VECTORS[name]["clauses"])} == BEYOND_SCHEMAS
    assert len(wrong - allowed) > 120


def test_payload_that_is_too_long_is_not_read(tmp_path):
    """[payload-5]"""
    about = {
        "dtype": "uint8",
        "shape": [1],
        "sha256": hashlib.sha256(b"\0").hexdigest(),
        "parts": [{"encoding": "raw"}],
    }
    nodes = {"w": generate.array("uint8", [1], [1], about=about)}
    objects = {"root": generate.root(nodes, features=[]), "objects": {}}
    tree = written(objects, tmp_path)
    (tree / "w/c").mkdir()
    with (tree / "w/c/0").open("wb") as file:
        file.truncate((1 << 27) + 1)
    with mzstore.open(tree) as model, pytest.raises(FormatError, match="at most 134217728 are allowed") as refused:
        model["w"].read()
    assert refused.value.clause == "payload-5"
    with pytest.raises(reference.FormatRefused, match="payload-5"):
        reference.read(tree)


class _Sink:
    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: bytes) -> None:
        self.data += data


def test_archive_of_more_entries_than_zip_counts():
    """[zip-2]"""
    sink = _Sink()
    writer = ArchiveWriter(sink)
    for i in range(66_000):
        writer.write_chunk(f"c/{i}", b"", aligned=False)
    writer.finish()
    assert len(reference.open_archive(bytes(sink.data))) == 66_000


# What mzstore writes.


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A tree of a tensor of every encoding."""
    path = tmp_path_factory.mktemp("model") / "model.zarr"
    random = np.random.default_rng(0)
    normal = random.normal(size=(96, 64)).astype(np.float32)
    tensors = {
        "raw": random.integers(0, 256, 1000).astype(np.uint8),
        "planes": normal,
        "same": normal.copy(),
        "narrow": normal.astype(np.float16).astype(np.float32),
        "constant": np.ones((3, 4)),
        "sorted": np.arange(5000),
        "a/ü name": np.array(1, np.complex64),
        "quantized": normal,
        "groups": normal,
        "neighbours": normal,
    }
    rules = [
        Rule(name="quantized", step=0.3, levels=6),
        Rule(name="groups", quantizer="affine", bits=4, group=16),
        Rule(name="neighbours", quantizer="codebook", levels=300, dimension=2),
        Rule(encoding="lossless"),
    ]
    recipe = mzstore.Recipe(rules, defaults=False)
    assets, metadata = {"config.json": b"{}"}, {"a": [1]}
    mzstore.save(path, tensors, assets=assets, metadata=metadata, level="max", threads=1, recipe=recipe)
    return path


def test_documents_that_mzstore_writes_follow_the_schemas(model):
    root = json.loads((model / "zarr.json").read_text())
    assert allows("root.schema.json", root)
    nodes = root["consolidated_metadata"]["metadata"]
    assert sum("/" not in key for key in nodes) == 10
    parts = [part for doc in nodes.values() for part in doc.get("attributes", {}).get("mzstore", {}).get("parts", [])]
    assert {part["encoding"] for part in parts} == {"raw", "planes", "quantized", "sparse"}
    assert all(allows("tensor.schema.json", doc) for key, doc in nodes.items() if "/" not in key)
    assert not any(allows("root.schema.json", doc) for doc in nodes.values())


def test_the_reference_reader_reads_what_mzstore_writes(model):
    """[tensor-5] [narrow-2] [digest-1]"""
    found = reference.read(model)
    with mzstore.open(model) as opened:
        for name, values in opened.load().items():
            spec = opened.document.tensors[name].spec
            assert found.tensors[name].words.tobytes() == spec.dtype.to_words(values).tobytes(), name
        assert list(found.tensors) == list(opened)
        assert (found.metadata, found.assets) == (opened.metadata, opened.assets)


def test_documents_of_nodes_are_those_of_the_root(model):
    """[document-4]"""
    root = json.loads((model / "zarr.json").read_text())
    nodes = root["consolidated_metadata"]["metadata"]
    stored = {p.parent.relative_to(model).as_posix(): json.loads(p.read_text()) for p in model.glob("*/**/zarr.json")}
    assert stored == nodes


def test_a_reader_takes_names_from_documents_and_a_writer_stores_no_stray_object(model):
    """[node-1] [tensor-1] [key-3]"""
    assert (model / "a%2F%C3%BC%20name" / "zarr.json").exists()
    assert "a/ü name" in reference.read(model).tensors
    assert verify(model, threads=1).problems == ()


# Manifests and checkpoints

MANIFESTS = {vector["id"]: vector for vector in json.loads((ROOT / "spec/manifests.json").read_text())}


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests(name):
    """[manifest-1] [manifest-2] [manifest-3] [manifest-6]"""
    vector = MANIFESTS[name]
    data = json.dumps(vector["manifest"]).encode()
    if "error" not in vector:
        manifest = Manifest.parse(data, where=name)
        assert reference.read_manifest(data) == vector["manifest"]
        assert Manifest.parse(manifest.to_bytes(), where=name) == manifest
        return
    with pytest.raises(reference.Refused) as refused:
        reference.read_manifest(data)
    assert (refused.value.name, refused.value.clause) == (vector["error"], vector["clauses"][0])
    with pytest.raises(ERRORS[vector["error"]]) as error:
        Manifest.parse(data, where=name)
    assert error.value.clause == vector["clauses"][0]


@pytest.mark.parametrize("data", [b"", b"[]", b'{"mzstore_manifest": 1, "mzstore_manifest": 1}', b"\xff"])
def test_what_is_no_document_is_no_manifest(data):
    """[manifest-1]"""
    for read in (reference.read_manifest, lambda data: Manifest.parse(data, where="")):
        with pytest.raises((reference.FormatRefused, FormatError)) as refused:
            read(data)
        assert refused.value.clause == "manifest-1"


def training_state(step: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((64, 64)).astype(np.float32)
    changes = np.random.default_rng(step).standard_normal((64, 64)).astype(np.float32)
    return {
        "w": weights + np.float32(1e-4) * changes if step else weights,
        "frozen": weights[:8] * 2,
        "plain": [1, -1.5, 2**70, float("inf"), None, True, "text", b"bytes", b"long" * 2000, 1j, np.int16(-2)],
        "pairs": {1: (2, 3), "a": {}},
    }


def plain(value: Any) -> Any:
    """As the reference reader gives it: tensors and scalars as words."""
    if isinstance(value, (np.ndarray, np.generic)):
        return value.view(f"<u{value.dtype.itemsize}").tolist()
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return type(value)(map(plain, value)) if isinstance(value, (list, tuple)) else value


def test_checkpoints_are_read_by_the_page(tmp_path):
    """[checkpoint-1] [checkpoint-2] [checkpoint-3], with values that are changes of those of the checkpoint before."""
    with CheckpointStore(tmp_path) as store:
        for step in range(3):
            store.save(step, training_state(step))
    manifest = json.loads((tmp_path / "manifests/2.json").read_text())
    assert [archive.get("bases", []) for archive in manifest["archives"]] == [[], [0], [1]]
    for step in range(3):
        assert plain(reference.read_checkpoint(tmp_path, step)) == plain(training_state(step))
    (tmp_path / "manifests/2.json").rename(tmp_path / "manifests/3.json")
    with pytest.raises(reference.FormatRefused, match="checkpoint-1"):
        reference.read_checkpoint(tmp_path, 3)
    with CheckpointStore(tmp_path) as store, pytest.raises(FormatError, match="checkpoint-1"):
        store.load(3)


def test_archives_are_those_of_the_manifest(tmp_path):
    """[manifest-4] [manifest-5]"""
    with CheckpointStore(tmp_path) as store:
        store.save(0, training_state(0))
    path = tmp_path / "manifests/0.json"
    text = re.sub(r',"digest":"[0-9a-f]{64}"}$', "}", path.read_text())
    (archive,) = (tmp_path / "data").rglob("*.mz")
    for change, clause in (
        ('"w":{"dtype":"float32","shape":[64,64]', "manifest-5"),
        (hashlib.sha256(training_state(0)["w"].tobytes()).hexdigest(), "manifest-5"),
        (f'"nbytes":{archive.stat().st_size}', "manifest-4"),
        (hashlib.sha256(archive.read_bytes()).hexdigest(), "manifest-4"),
    ):
        assert change in text
        other = {"w": '"w":{"dtype":"int32","shape":[64,64]', "n": '"nbytes":7'}.get(change[1:2], "0" * 64)
        path.write_text(text.replace(change, other))
        with pytest.raises(reference.CorruptRefused, match=clause):
            reference.open_manifest(path)
        assert clause in {problem.clause for problem in verify(path, threads=1).problems}


def test_a_manifest_is_as_it_was_written(tmp_path):
    """[manifest-7] Whatever bit of it is another."""
    with CheckpointStore(tmp_path) as store:
        store.save(0, {"step": 12, "w": np.zeros(3)})
    data = (tmp_path / "manifests/0.json").read_bytes()
    reference.read_manifest(data)
    name = data.rindex(b"digest")  # without it there is no digest, and all else is as it was
    for i in range(8 * len(data)):
        if name <= i // 8 < name + len("digest"):
            continue
        other = bytearray(data)
        other[i // 8] ^= 1 << i % 8
        with pytest.raises(reference.Refused):
            reference.read_manifest(bytes(other))
        with pytest.raises((FormatError, UnsupportedError, CorruptError)):
            Manifest.parse(bytes(other), where="")
    with pytest.raises(CorruptError, match="manifest-7"):
        Manifest.parse(data.replace(b'"step":12', b'"step":13'), where="")
    assert Manifest.parse(re.sub(rb',"digest".*', b"}", data), where="").save_id, "a digest may be missing"


@pytest.mark.parametrize(
    "state",
    [{}, {"x": 1}, {"int": 1}, {"int": "x"}, {"float": "00"}, {"complex": "00" * 8}, {"bytes": "?"}, {"tuple": 1},
     {"tuple": [{}]}, {"dict": []}, {"dict_items": [[1, 2], [1, 3]]}, {"dict_items": [[None, 2]]}, {"dict_items": [1]},
     {"scalar": "00", "dtype": "int16"}, {"scalar": "00"}, {"array": 1}, {"int": "1", "x": 2}, {"dict": {}, "metadata": 1}],
)  # fmt: skip
def test_states_that_are_none(state):
    """[checkpoint-3]"""
    with pytest.raises(reference.FormatRefused, match="checkpoint-3"):
        reference.read_state(state, {})
    with pytest.raises(FormatError, match="checkpoint-3"):
        decode(state, {}.__getitem__)


def test_manifests_are_written_last_and_once_and_notes_before_they_go(tmp_path, monkeypatch):
    """[checkpoint-4] [checkpoint-5]"""
    order: list[tuple[str, str]] = []
    for name in ("create", "put", "remove", "sink"):
        whole = getattr(LocalObjects, name)
        monkeypatch.setattr(
            LocalObjects,
            name,
            lambda self, key, *rest, name=name, whole=whole: (order.append((name, key.partition("/")[0])), whole(self, key, *rest))[1],
        )  # fmt: skip
    with CheckpointStore(tmp_path) as store:
        store.save(1, training_state(1))
        store.delete(1)
    kept = [each for each in order if not each[1].startswith(".probe")]
    assert kept == [
        ("sink", "data"),
        ("create", "manifests"),
        ("put", "latest.json"), ("sink", "latest.json"),
        ("put", "deleted"), ("sink", "deleted"),
        ("remove", "manifests"),
    ]  # fmt: skip
    (note,) = (tmp_path / "deleted").iterdir()
    paths = json.loads(note.read_text())["archives"]
    assert [(tmp_path / "manifests" / path).resolve() for path in paths] == list((tmp_path / "data").rglob("*.mz"))

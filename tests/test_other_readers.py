"""zarr-python and TensorStore read every component with no plugin, and NumPy makes tensors of them as FORMAT.md shows."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tensorstore
import zarr
from forge import forge, forged, parts
from packed import Packed
from parts import Random

import mzstore
from mzstore.archive import ArchiveWriter
from mzstore.container import create_writer
from mzstore.documents import DOCUMENT, ModelDocument, TensorEntry, dump
from mzstore.dtypes import DTYPES, of_array
from mzstore.encode import Choice, payloads
from mzstore.encodings import Coding, read_chunk
from mzstore.encodings.planes import N_RANKS, Planes
from mzstore.ggml import TYPES
from mzstore.grid import Grid
from mzstore.interleave import Fields, tops
from mzstore.model import Model
from mzstore.recipe import Rule
from mzstore.sources import ModelSource
from mzstore.tensors import TensorSpec
from mzstore.verify import verify
from mzstore.writer import write

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "FORMAT.md").read_text()


def bfloat16(*shape: int) -> np.ndarray:
    return (np.random.default_rng(3).normal(size=shape) * 0.02).astype(ml_dtypes.bfloat16)


NORMAL = bfloat16(48, 64).astype(np.float32)
LOSSY: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
    **{f"{levels} levels": (NORMAL, {"step": 0.12 / levels, "levels": levels}) for levels in (2, 3, 4, 6, 16, 200)},
    "outliers": (NORMAL, {"step": 0.005, "levels": 6}),
    "low bits": (NORMAL, {"quantizer": "symmetric", "bits": 11, "scales": "column"}),
    "groups": (NORMAL.astype(ml_dtypes.bfloat16), {"quantizer": "affine", "bits": 4, "group": 16}),
    "tiles": (NORMAL.astype(np.float16), {"quantizer": "affine", "bits": 8, "tile": (20, 24)}),
    "nf4": (NORMAL.astype(np.float64), {"quantizer": "nf4", "scale_dtype": "bfloat16"}),
    "k-means": (NORMAL, {"quantizer": "codebook", "levels": 300}),
    "neighbours": (NORMAL, {"quantizer": "codebook", "levels": 40, "dimension": 4}),
    "nvfp4": (NORMAL.reshape(3, 16, 64), {"quantizer": "nvfp4"}),
    "odd": (NORMAL[:, :61].copy(), {"quantizer": "affine", "bits": 3, "scales": "row"}),
}


@pytest.fixture(scope="module", params=["archive", "tree", "archive of parts", "tree of parts"])
def model(request, tmp_path_factory):
    """A model whose tensors have many encodings, names and shapes; some of several chunks."""
    path = tmp_path_factory.mktemp("model") / ("model.mz" if "archive" in request.param else "model.zarr")
    if "parts" in request.param:
        made = forge({}, lossy=parts())
        if "archive" in request.param:
            path.write_bytes(made.archive())
        else:
            made.tree(path)
        with mzstore.open(path) as opened:
            yield opened
        return
    normal = bfloat16(300, 70)
    tensors = {
        "w": normal,
        "as float32": normal.astype(np.float32),
        "large": np.random.default_rng(4).normal(size=(1100, 1024)).astype(np.float32),
        "sorted/ints": np.arange(4000).reshape(40, 100),
        "bytes": np.random.default_rng(5).integers(0, 256, 999).astype(np.uint8),
        "constant": np.full((3, 4), 2.5, np.float16),
        "scalar": np.array(-0.0),
        "empty": np.zeros((0, 3), np.int8),
        "complex": np.array([1 + 2j, -0.5j]),
        "模型.ünï": np.array([True, False]),
        "fp8": np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn),
        **{name: values for name, (values, _) in LOSSY.items()},
        "large lossy": np.random.default_rng(6).normal(size=(1100, 1024)).astype(np.float32),
    }
    rules = [
        *(Rule(name=name, **rule) for name, (_, rule) in LOSSY.items()),
        Rule(name="large lossy", quantizer="affine", bits=4, group=32),
        Rule(encoding="lossless"),
    ]
    recipe = mzstore.Recipe(rules, defaults=False)
    mzstore.save(path, tensors, level="max", threads=1, assets={"config.json": b"{}"}, recipe=recipe)
    with mzstore.open(path) as opened:
        yield opened


def components(model: Model):
    """(key of the array, its words as mzstore has them) of every component of every tensor that is stored."""
    for entry in model.document.tensors.values():
        part = entry.part
        for component in part.components if part else ():
            array = component.array
            words = np.zeros(array.shape, array.word)
            for chunk in array.grid.chunks():
                path = (
                    array.chunk_key(chunk)
                    if len(part.components) == 1
                    else f"{component.name}/{array.chunk_key(chunk)}"
                )
                body = read_chunk(component, model.reader.read_chunk(f"{entry.node}/{path}", ""), where=path)
                box = array.grid.box(chunk)
                full = body.view(array.word).reshape(array.chunk_shape)
                words[box] = full[tuple(slice(0, cut.stop - cut.start) for cut in box)]
            several = len(part.components) > 1
            yield f"{entry.node}/{component.name}" if several else entry.node, words


def test_zarr_python_reads_every_component(model):
    """[array-1] [array-2] [array-3]"""
    group = model.zarr()
    found = 0
    for key, words in components(model):
        assert group[key][...].tobytes() == words.tobytes(), key
        assert group[key].shape == words.shape
        found += 1
    assert found == sum(len(entry.part.components) for entry in model.document.tensors.values() if entry.part) > 25
    assert sorted(group) == sorted(entry.node for entry in model.document.tensors.values())


def test_tensorstore_reads_every_component(model):
    for key, words in components(model):
        if model.url.endswith(".mz"):
            store = {"driver": "zip", "base": {"driver": "file", "path": model.url}, "path": f"{key}/"}
        else:
            store = {"driver": "file", "path": f"{model.url}/{key}/"}
        # What is missing must be an error, not a fill value: then nothing is missing.
        spec = {"driver": "zarr3", "kvstore": store, "fill_missing_data_reads": False}
        array = tensorstore.open(spec, read=True).result()
        assert array.read().result().tobytes() == words.tobytes(), key


def snippet(title: str) -> str:
    """The code that follows the line of FORMAT.md that begins with ``title``."""
    found = re.search(rf"^{re.escape(title)}[^\n]*:\n\n```python\n(.*?)\n```", PAGE, re.M | re.S)
    assert found, title
    return found[1]


def run(title: str, group: zarr.Group) -> np.ndarray:
    names = {"np": np, "zarr": zarr, "group": group}
    exec(snippet(title), names)
    return names["words"]


def stored(path: Path, array: np.ndarray, chunk: tuple[int, ...], top_bits: int, ranks: int | None) -> zarr.Group:
    """``array`` in ``planes`` with ranks or symbols, which a writer would not choose for so little, as zarr-python opens it."""
    spec = TensorSpec("w", of_array(array), array.shape)
    words = spec.dtype.to_words(array)
    grid, fields = Grid(spec.word_shape, chunk), Fields(16, top_bits, rotate=True)
    counts = np.bincount(tops(words.reshape(-1), fields), minlength=1 << top_bits)
    if ranks is None:
        part = Planes.new(spec.dtype, grid, fields, present=counts > 0)
    else:
        others = int(counts[:ranks].sum() + counts[ranks + N_RANKS :].sum())
        part = Planes.new(spec.dtype, grid, fields, ranks=ranks, escapes=others + 3)
    with create_writer(path, "archive") as writer:
        assert isinstance(writer, ArchiveWriter)
        for start, shape, chunks in grid.row_blocks():
            block = words.reshape(-1)[start : start + int(np.prod(shape))].reshape(shape)
            for position in chunks:
                for payload in payloads(Choice(part, Coding()), block, position, spec.dtype):
                    writer.write_chunk(f"w/{payload.path}", payload.data, aligned=False)
        digest = hashlib.sha256(words.tobytes()).hexdigest()
        for key, doc in ModelDocument({"w": TensorEntry(spec, "w", digest, part)}).documents():
            writer.write_document(f"{key}/{DOCUMENT}" if key else DOCUMENT, dump(doc))
    assert verify(path, threads=1).ok
    return zarr.open_group(zarr.storage.ZipStore(path, mode="r"), mode="r")


@pytest.mark.parametrize(
    "array", [np.arange(6, dtype=np.uint16).reshape(2, 3), np.full((2, 3), 7, np.uint16)], ids=["raw", "constant"]
)
def test_raw_in_numpy(array, tmp_path):
    """[raw-1] [raw-2]"""
    mzstore.save(tmp_path / "model.mz", {"w": array}, threads=1)
    names = {}
    code = snippet("Every Zarr v3 reader opens").replace("model.mz", str(tmp_path / "model.mz"))
    exec(code, names)
    assert run("`raw`", names["group"]).tobytes() == array.tobytes()


def test_plain_planes_in_numpy(tmp_path):
    """[planes-3]"""
    array = bfloat16(100, 60)
    mzstore.save(tmp_path / "model.mz", {"w": array}, threads=1)
    with mzstore.open(tmp_path / "model.mz") as model:
        part = model.document.tensors["w"].part
        assert isinstance(part, Planes)
        assert part.symbols is None
        assert run("`planes`, plain", model.zarr()).tobytes() == array.tobytes()


@pytest.mark.parametrize("top_bits", [9, 10, 11])
def test_planes_with_symbols_in_numpy(tmp_path, top_bits):
    """[planes-4]"""
    array = bfloat16(100, 60)
    group = stored(tmp_path / "model.mz", array, (30, 60), top_bits, None)
    assert run("`planes` with symbols", group).tobytes() == array.tobytes()


@pytest.mark.parametrize("columns", [60, 61])
def test_planes_with_ranks_in_numpy(tmp_path, columns):
    """[planes-5] [planes-6]"""
    array = bfloat16(99, columns)
    top = (array.view(np.uint16) << 1 >> 8).max()
    group = stored(tmp_path / "model.mz", array, array.shape, 8, int(top) - N_RANKS - 1)
    escapes = group["w"][...].ravel()[-(99 * columns + 1) // 2 - 99 * columns :]
    assert (escapes != 0xFF).any()
    assert run("`planes` with ranks", group).tobytes() == array.tobytes()


@pytest.mark.parametrize("name", LOSSY)
def test_quantized_in_numpy(name, tmp_path):
    """[quantized-2] [quantized-3] [quantized-4] [quantized-6] [quantized-8] [sparse-2]"""
    array, rule = LOSSY[name]
    recipe = mzstore.Recipe([Rule(**rule)], defaults=False)
    mzstore.save(tmp_path / "model.mz", {"w": array}, threads=1, recipe=recipe)
    with mzstore.open(tmp_path / "model.mz") as model:
        group, expected = model.zarr(), model["w"].read()
        several = model["w"].encoding == "quantized + sparse"
        assert several or name != "outliers"
        names = {"np": np, "zarr": zarr, "group": group}
        exec(snippet("`quantized`, as binary32"), names)
        if several:
            names["words"] = names["values"].view("<u4")
            exec(snippet("`sparse` as the second part"), names)
            names["values"] = names["words"].view("<f4")
        assert names["values"].astype(array.dtype).tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", ["Q4_0", "Q5_0", "Q6_K", "IQ4_XS", "IQ2_XXS", "Q8_K", "MXFP4"])
def test_blocks_of_ggml_in_numpy(name, tmp_path):
    """[ggml-2], [ggml-3]"""
    blocks = np.random.default_rng(6).integers(0, 256, (6, TYPES[name].nbytes), np.uint8)
    spec = TensorSpec("w", DTYPES["float32"], (3, 2 * TYPES[name].size))
    write(tmp_path / "model.mz", ModelSource([Packed(spec, TYPES[name], blocks)], spec.nbytes))
    table = json.loads((ROOT / "spec/ggml.json").read_text())
    with mzstore.open(tmp_path / "model.mz") as opened:
        names = {"np": np, "group": opened.zarr(), "types": table["types"]}
        exec(snippet("`ggml`, as the blocks"), names)
    np.testing.assert_array_equal(names["blocks"], blocks)


def test_lowrank_in_numpy(tmp_path):
    """[lowrank-2]"""
    grid = Grid((9, 20), (4, 20))
    model, words = forged(Random(0).lowrank(DTYPES["float32"], grid, 6, scale=0.5), DTYPES["float32"], grid.shape)
    (tmp_path / "model.mz").write_bytes(model.archive())
    with mzstore.open(tmp_path / "model.mz") as opened:
        names = {"np": np, "zarr": zarr, "group": opened.zarr()}
        exec(snippet("`lowrank` with factors"), names)
        assert names["values"].tobytes() == words.tobytes()

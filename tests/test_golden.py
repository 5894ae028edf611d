"""Frozen models of every format stay readable, by mzstore and by the reference reader. If one does not, the code is wrong."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import mzstore
from mzstore.convert import convert
from mzstore.documents import parts_of
from mzstore.dtypes import DTYPES
from mzstore.encodings.combined import Combined
from mzstore.encodings.lowrank import LowRank
from mzstore.encodings.planes import Planes
from mzstore.encodings.positions import Index
from mzstore.encodings.quantized import Blocked, Quantized
from mzstore.encodings.raw import Raw
from mzstore.encodings.sparse import Sparse
from mzstore.encodings.tucker import Tucker
from mzstore.ggml import TYPES
from mzstore.verify import verify
from spec import reference

ROOT = Path(__file__).parent.parent
GOLDEN = sorted((ROOT / "spec/golden").iterdir())
each = pytest.mark.parametrize("folder", GOLDEN, ids=lambda folder: folder.name)


def test_there_is_one_of_every_format():
    assert [folder.name for folder in GOLDEN] == ["1-ggml", "1-lossless", "1-parts", "1-quantized"]


@each
@pytest.mark.parametrize("threads", [1, 4])
def test_mzstore_reads_it(folder, threads):
    expected = json.loads((folder / "expected.json").read_text())
    with mzstore.open(folder / "model.mz") as model:
        assert list(model) == list(expected)
        for name, array in model.load(threads=threads).items():
            dtype = DTYPES[expected[name]["dtype"]]
            assert (array.dtype, list(array.shape)) == (dtype.numpy, expected[name]["shape"]), name
            assert hashlib.sha256(dtype.to_words(array).tobytes()).hexdigest() == expected[name]["sha256"], name


@each
def test_reference_reader_reads_it(folder):
    expected = json.loads((folder / "expected.json").read_text())
    model = reference.read(folder / "model.mz")
    found = {
        name: {"dtype": t.dtype, "shape": list(t.shape), "sha256": hashlib.sha256(t.words.tobytes()).hexdigest()}
        for name, t in model.tensors.items()
    }
    assert found == expected


@each
def test_it_is_whole(folder):
    report = verify(folder / "model.mz", threads=1)
    assert report.problems == ()
    assert report.tensors == len(json.loads((folder / "expected.json").read_text()))


def test_lossless_holds_every_dtype_and_every_form():
    with mzstore.open(ROOT / "spec/golden/1-lossless/model.mz") as model:
        entries = model.document.tensors.values()
        assert {entry.spec.dtype.name for entry in entries} == set(DTYPES)
        forms = set()
        for entry in entries:
            part = entry.part
            if isinstance(part, Raw):
                forms.add(("raw", part.constant, part.array.zstd, part.dtype == entry.spec.dtype))
            elif isinstance(part, Planes):
                forms.add(("planes", part.symbols is not None, part.ranks is not None, part.n_escapes > 0))
                forms.add(("chunks", part.grid.n_chunks > 1))
            else:
                forms.add(("same",))
        assert forms >= {
            ("raw", False, False, True), ("raw", False, True, True), ("raw", True, False, True),
            ("raw", False, False, False), ("raw", False, True, False),
            ("planes", False, False, False), ("planes", True, False, False), ("planes", False, True, False),
            ("planes", False, True, True), ("chunks", True), ("chunks", False), ("same",),
        }  # fmt: skip
        assert np.array_equal(model["tied: planes/plain"].read(), model["planes/plain"].read())
        assert model.assets["notes/read me.txt"].startswith(b"A small file")
        assert model.metadata["nested"] == {"list": [1, 2.5, None, True, "ü"]}
        assert len(model.document.layouts) == 1


def test_quantized_holds_every_packing_and_every_kind_of_scales():
    with mzstore.open(ROOT / "spec/golden/1-quantized/model.mz") as model:
        forms = set()
        for entry in model.document.tensors.values():
            if entry.part is None or entry.part.encoding in ("raw", "planes"):
                continue
            part = parts_of(entry.part)[0]
            assert isinstance(part, Quantized)
            forms |= {part.encoding, entry.part.encoding, entry.spec.dtype.name, f"{len(entry.spec.shape)} axes"}
            forms |= {f"{part.per_byte} in a byte", f"{part.low_bits} low bits", f"{part.dimension} neighbours"}
            forms |= {f"codebook {type(part.codebook).__name__}", f"zero point {type(part.zero_point).__name__}"}
            forms |= {f"scale in {scale.dtype}" for scale in part.scales if isinstance(scale, Blocked)}
            if part.grid.n_chunks > 1:
                forms |= {f"chunks of {component.name}" for component in entry.part.components}
        assert forms >= {
            "quantized", "quantized + sparse", "float16", "bfloat16", "float32", "float64", "1 axes", "2 axes", "3 axes",
            "4 axes", "codebook ndarray", "codebook Array", "zero point int", "zero point Blocked", "scale in float32",
            "scale in float16", "scale in bfloat16", "chunks of codes", "chunks of low", "chunks of scale",
            "chunks of zero_point", "chunks of codebook", "chunks of 2.positions", "chunks of 2.values",
            *(f"{n} in a byte" for n in (1, 2, 3, 4, 5, 8)), *(f"{n} low bits" for n in range(9)),
            *(f"{n} neighbours" for n in (1, 2, 4, 8)),
        }  # fmt: skip
        assert model.document.tensors["tied: uniform/3 levels"].same_as


def test_parts_hold_every_index_every_encoding_inside_and_every_way_to_combine():
    with mzstore.open(ROOT / "spec/golden/1-parts/model.mz") as model:
        forms = set()
        for entry in model.document.tensors.values():
            assert entry.part
            forms |= set(entry.part.combines if isinstance(entry.part, Combined) else ())
            for part in parts_of(entry.part):
                forms |= {part.encoding, f"{part.encoding} of {entry.spec.dtype.name}"}
                forms |= {f"chunks of {part.encoding}"} if part.grid.n_chunks > 1 else set()
                if isinstance(part, Sparse):
                    forms |= {
                        part.index,
                        "blocks" if part.block != (1, 1) else "single",
                        f"{part.values.encoding} in sparse",
                    }
                    forms |= {f"{part.values.dtype.name} in {part.dtype.name}"}
                elif isinstance(part, LowRank | Tucker):
                    nested = (part.left, part.right) if isinstance(part, LowRank) else part.nested
                    forms |= {f"{each.encoding} in {part.encoding}" for each in nested}
                    forms |= {f"{each.dtype.name} in {part.encoding}" for each in nested}
                    forms |= {"core" if part.core else "no core"} if isinstance(part, Tucker) else {part.scale}
    assert forms >= {
        "sparse", "lowrank", "tucker", "base", "replace", "add", "xor", "plus", "blocks", "single", "core", "no core", 1.0, 0.5, -2.0,
        Index(), Index("gaps", 8), Index("bitmap"), *(Index("pattern", 0, p) for p in ((1, 2), (2, 4), (4, 8), (3, 4))),
        *(f"{inside} in {outer}" for inside in ("raw", "planes", "quantized") for outer in ("sparse", "lowrank", "tucker")),
        *(f"{dtype} in lowrank" for dtype in ("float16", "bfloat16", "float32")), "float16 in float32", "bfloat16 in float32",
        *(f"lowrank of {dtype}" for dtype in ("float16", "bfloat16", "float32", "float64")), "sparse of bool", "sparse of float64",
        *(f"chunks of {encoding}" for encoding in ("sparse", "lowrank", "tucker", "base")),
    }  # fmt: skip


def test_ggml_holds_every_type(tmp_path):
    folder = ROOT / "spec/golden/1-ggml"
    with mzstore.open(folder / "model.mz") as model:
        parts = [entry.part for entry in model.document.tensors.values() if entry.part]
        assert {part.kind.name for part in parts} == set(TYPES)
        assert {len(part.grid.shape) for part in parts} == {1, 2, 3}
        assert any(part.grid.n_chunks > 4 for part in parts)
        assert model.document.tensors["again"].same_as
    file = (folder / "blocks.gguf").read_bytes()
    assert reference.read(folder / "model.mz").files["blocks.gguf"] == file
    convert(folder / "model.mz", tmp_path / "back", to="directory")
    assert (tmp_path / "back/blocks.gguf").read_bytes() == file


@pytest.mark.parametrize("what", ["lossless", "quantized", "parts", "ggml"])
def test_what_is_frozen_is_not_written_again(what):
    before = {path: path.read_bytes() for path in (ROOT / "spec/golden").rglob("*") if path.is_file()}
    command = [sys.executable, "tools/freeze.py", what]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "FileExistsError" in done.stderr
    assert {path: path.read_bytes() for path in (ROOT / "spec/golden").rglob("*") if path.is_file()} == before


def test_it_is_small():
    assert all(path.stat().st_size < 200_000 for path in (ROOT / "spec/golden").rglob("*"))

"""The architecture, as a table: a module may import only what its row lists."""

import ast
from pathlib import Path

import pytest

ALLOWED = {
    "__init__": "attach check convert deltas diff errors model recipe schemes storage verify version writer",
    "__main__": "cli",
    "approximate": "documents dtypes encode encodings encodings.base encodings.combined encodings.lowrank encodings.nested encodings.planes encodings.quantized encodings.sparse encodings.tucker factorize grid interleave payload prune quality quantize quantizers recipe sources sparsity targets tensors",
    "archive": "errors extents garbage nodes payload stats storage",
    "arrays": "errors grid payload tensors",
    "attach": "arrays bases container decode documents encode encodings encodings.base encodings.combined encodings.lowrank encodings.nested encodings.planes encodings.raw formats formats.peft grid interleave kernels model plan prepared sources storage tensors writer",
    "bases": "container decode documents encodings.base encodings.combined encodings.raw errors forks groups narrow plan selection stats storage",
    "deltas": "approximate attach bases changes container convert differences documents encode encodings.base encodings.combined formats grid kernels model prepared recipe sources storage writer",
    "differences": "arrays dtypes encode encodings encodings.planes encodings.raw encodings.sparse grid interleave narrow sources sparsity tensors",
    "prepared": "approximate encode encodings sources tensors",
    "formats/peft": "documents errors formats.files formats.safetensors sources storage",
    "changes": "approximate encode recipe sources",
    "cache": "forks stats",
    "cli": "attach check checkpoints cluster composite convert deltas diff errors formats formats.huggingface get importance inspect model recipe shards storage text verify version",
    "components": "arrays documents dtypes encodings encodings.codes encodings.combined encodings.ggml encodings.lowrank encodings.nested encodings.quantized encodings.raw encodings.sparse encodings.tucker frameworks grid selection tensors",
    "container": "archive documents errors extents garbage stats storage tree",
    "convert": "bases check documents edits encode errors estimate formats formats.base formats.layouts formats.safetensors journal kernels model pins progress recipe report sources split storage writer",
    "decode": "container documents dtypes encodings encodings.combined errors fetch narrow plan workspace",
    "diff": "bases compare edits formats kernels model progress sources storage tensors text",
    "documents": "arrays dtypes encodings encodings.base encodings.combined encodings.ggml encodings.lowrank encodings.planes encodings.quantized encodings.raw encodings.sparse encodings.tucker errors ggml grid narrow nodes tensors",
    "dtypes": "",
    "encode": "arrays documents dtypes encodings encodings.planes encodings.raw encodings.sparse grid interleave kernels narrow payload sources sparsity",
    "encodings/__init__": "arrays dtypes errors grid payload workspace",
    "encodings/codes": "dtypes encodings encodings.quantized encodings.raw errors grid quantizers.packing text",
    "encodings/combined": "dtypes encodings encodings.base encodings.raw encodings.sparse grid narrow workspace",
    "encodings/base": "arrays dtypes encodings grid",
    "encodings/lowrank": "arrays dtypes encodings encodings.nested grid kernels workspace",
    "encodings/nested": "arrays dtypes encodings encodings.raw grid narrow workspace",
    "encodings/positions": "errors kernels workspace",
    "encodings/rows": "",
    "kernels/sparse": "kernels.planes",
    "kernels/lowrank": "kernels.planes",
    "encodings/planes": "arrays dtypes encodings errors grid interleave payload workspace",
    "encodings/quantized": "arrays dtypes encodings errors grid quantizers quantizers.decoding quantizers.packing workspace",
    "encodings/raw": "arrays dtypes encodings grid payload",
    "encodings/sparse": "arrays dtypes encodings encodings.nested encodings.planes encodings.positions encodings.raw encodings.rows grid kernels narrow payload workspace",
    "encodings/tucker": "arrays dtypes encodings encodings.lowrank encodings.nested grid",
    "errors": "",
    "factorize": "recipe",
    "forks": "",
    "extents": "",
    "fetch": "extents plan stats storage",
    "plan": "documents encodings errors extents garbage grid payload selection text",
    "formats/__init__": "bases composite documents errors formats.base formats.gguf formats.hdf5 formats.huggingface formats.layouts formats.mxnet formats.npy formats.onnx formats.pytorch formats.safetensors formats.tensorflow formats.torch_dcp formats.zarr_groups formats.zips manifest model sources storage",
    "formats/npy": "dtypes errors formats.base formats.files formats.spliced formats.zips sources storage tensors",
    "formats/torch_dcp": "documents errors formats.base formats.files formats.pickles formats.pytorch formats.safetensors sources storage tensors",
    "formats/zarr_groups": "documents dtypes errors formats.base formats.files sources storage tensors",
    "formats/base": "errors formats.zips sources storage",
    "formats/files": "errors formats.nibbles storage tensors",
    "formats/pickles": "errors",
    "formats/pytorch": "dtypes errors formats.base formats.files formats.pickles formats.spliced formats.state_dict formats.zips sources storage tensors",
    "formats/state_dict": "dtypes formats.files formats.zips sources storage tensors",
    "formats/zips": "errors formats.files storage",
    "formats/huggingface": "documents errors formats.base sources storage",
    "formats/layouts": "errors formats.safetensors formats.spliced ggml sources storage tensors",
    "formats/safetensors": "documents dtypes errors formats.base formats.files formats.nibbles ggml sources storage tensors",
    "formats/spliced": "arrays documents dtypes errors formats.files ggml packed sources storage tensors",
    "formats/nibbles": "tensors",
    "formats/wire": "errors storage",
    "formats/hdf5": "documents dtypes errors formats.base formats.files formats.spliced formats.zips sources storage tensors",
    "formats/tensorflow": "dtypes errors formats.base formats.files formats.spliced formats.wire payload sources storage tensors",
    "formats/mxnet": "dtypes errors formats.base formats.files formats.spliced sources storage tensors",
    "formats/onnx": "documents dtypes errors formats.base formats.files formats.nibbles formats.spliced formats.wire sources storage tensors",
    "frameworks": "dtypes tensors",
    "garbage": "",
    "get": "dtypes model schemes selection storage",
    "groups": "",
    "grid": "selection",
    "inspect": "archive composite documents encodings encodings.base encodings.combined encodings.ggml encodings.lowrank encodings.nested encodings.planes encodings.quantized encodings.raw encodings.sparse encodings.tucker errors model schemes text",
    "interleave": "kernels workspace",
    "kernels/__init__": "kernels.machine_code",
    "kernels/machine_code": "",
    "kernels/planes": "",
    "kernels/quantized": "kernels.planes",
    "model": "bases cache components composite container decode documents dtypes encodings encodings.combined encodings.ggml errors frameworks ggml kernels manifest payload plan progress selection shards sparse_views stats storage tensors",
    "narrow": "dtypes",
    "nodes": "",
    "payload": "errors grid",
    "progress": "",
    "prune": "recipe",
    "quality": "documents dtypes grid kernels tensors",
    "quantize": "arrays documents dtypes encode encodings encodings.combined encodings.positions encodings.quantized encodings.sparse grid payload quality quantizers quantizers.decoding quantizers.packing sources tensors",
    "quantizers/__init__": "dtypes",
    "quantizers/codebooks": "quantizers quantizers.integers quantizers.ranges quantizers.sample",
    "quantizers/columns": "quantizers quantizers.integers",
    "quantizers/decoding": "dtypes kernels quantizers quantizers.packing workspace",
    "quantizers/ecsq": "kernels quantizers quantizers.packing quantizers.sample",
    "quantizers/floats": "dtypes quantizers quantizers.integers quantizers.ranges",
    "quantizers/integers": "dtypes quantizers quantizers.ranges",
    "quantizers/lengths": "",
    "quantizers/packing": "kernels quantizers.lengths",
    "quantizers/ranges": "quantizers",
    "quantizers/sample": "quantizers",
    "recipe": "dtypes quantizers tensors",
    "rules": "quality quantizers quantizers.codebooks quantizers.columns quantizers.ecsq quantizers.floats quantizers.integers recipe tensors",
    "selection": "",
    "shards": "",
    "sources": "frameworks ggml grid storage tensors",
    "sparsity": "dtypes encodings.planes encodings.positions encodings.raw encodings.sparse grid interleave quantizers.lengths",
    "sparse_views": "components documents dtypes encodings.sparse frameworks",
    "stats": "forks text",
    "storage/__init__": "errors stats storage.base storage.local storage.objects storage.remote storage.retry storage.upload",
    "storage/backends": "storage.base storage.retry",
    "storage/base": "errors storage.retry",
    "storage/local": "errors storage.base storage.retry workspace",
    "storage/remote": "errors stats storage.backends storage.base storage.retry",
    "storage/retry": "errors",
    "storage/upload": "errors stats storage.backends storage.base storage.remote storage.retry",
    "targets": "documents encode quality quantize quantizers.ecsq recipe rules sources",
    "tensors": "dtypes",
    "text": "",
    "tree": "errors extents payload stats storage",
    "verify": "archive bases composite container decode documents encodings encodings.combined encodings.raw errors formats.layouts formats.spliced frameworks grid kernels manifest model payload plan progress selection sources stats storage",
    "version": "",
    "workspace": "",
    "writer": "approximate container documents dtypes encode encodings.raw errors ggml grid journal model nodes packed prepared progress prune quality quantize recipe sources storage targets tensors version",
    "checkpoints/__init__": "checkpoints.collection checkpoints.store",
    "checkpoints/archives": "bases checkpoints.repository composite differences documents encode encodings.base encodings.combined errors grid groups manifest model prepared recipe selection sources storage tensors writer",
    "checkpoints/collection": "checkpoints.repository errors manifest storage",
    "checkpoints/repository": "documents errors manifest storage",
    "checkpoints/retention": "",
    "checkpoints/saving": "checkpoints.archives checkpoints.repository checkpoints.staging errors kernels manifest sources version",
    "checkpoints/staging": "frameworks groups sources",
    "checkpoints/state": "dtypes errors frameworks tensors",
    "checkpoints/store": "bases checkpoints.archives checkpoints.collection checkpoints.repository checkpoints.retention checkpoints.saving checkpoints.staging checkpoints.state encode errors frameworks kernels manifest model recipe selection storage tensors verify",
    "composite": "archive bases decode documents dtypes encodings errors extents grid manifest selection stats storage tensors",
    "manifest": "arrays documents dtypes errors nodes tensors",
    "storage/objects": "errors stats storage.backends storage.base storage.local storage.remote storage.retry storage.upload",
    "torch/__init__": "",
    "torch/dcp": "bases checkpoints.archives checkpoints.repository checkpoints.state composite documents dtypes encode errors frameworks grid groups manifest model recipe selection sources stats storage tensors torch.flat version",
    "encodings/ggml": "arrays dtypes encodings encodings.rows ggml ggml.values grid kernels payload quantizers.packing workspace",
    "ggml/__init__": "kernels",
    "ggml/grids": "",
    "ggml/values": "ggml ggml.grids kernels",
    "kernels/ggml": "kernels.planes",
    "packed": "encode encodings encodings.ggml ggml grid payload sources",
    "formats/gguf": "dtypes errors formats.base formats.files formats.spliced ggml ggml.values packed sources storage tensors",
    "torch/flat": "checkpoints.state errors",
    "check": "bases compare edits errors formats kernels model progress report sources storage tensors",
    "compare": "grid model sources tensors",
    "edits": "dtypes model prepared recipe schemes.sources sources tensors",
    "estimate": "edits encode importance recipe report sources tensors writer",
    "importance": "formats sources",
    "report": "model sources tensors text version writer",
    "cluster": "",
    "pins": "documents errors storage version",
    "split": "bases container documents dtypes edits encode errors formats groups kernels manifest model nodes pins recipe report sources storage tensors text version writer",
    "journal": "documents errors storage tensors",
    "schemes/__init__": "errors model schemes.awq schemes.base schemes.bitsandbytes schemes.compressed_tensors schemes.configuration schemes.fp8 schemes.gptq schemes.mxfp4",
    "schemes/awq": "errors schemes.base schemes.configuration",
    "schemes/base": "dtypes errors frameworks selection",
    "schemes/bitsandbytes": "documents dtypes errors schemes.base schemes.configuration schemes.packing tensors",
    "schemes/compressed_tensors": "dtypes errors schemes.base schemes.configuration schemes.mxfp4 schemes.packing",
    "schemes/configuration": "documents dtypes errors",
    "schemes/fp8": "schemes.base schemes.configuration",
    "schemes/gptq": "errors schemes.base schemes.configuration schemes.packing",
    "schemes/mxfp4": "schemes.base schemes.configuration schemes.packing",
    "schemes/packing": "",
    "schemes/sources": "documents dtypes errors model schemes schemes.base schemes.configuration selection sources tensors text",
}
THE_ONLY_DOORS = {
    "numba": {"kernels/machine_code", "kernels/planes", "kernels/quantized", "kernels/sparse"},
    "llvmlite": {"kernels/machine_code", "kernels/quantized", "kernels/sparse"},
    "torch": {"frameworks", "torch/dcp"},
    "scipy": {"sparse_views"},
    "fsspec": {"storage/backends"},
    "zarr": {"formats/zarr_groups", "model"},
    "zstandard": {"payload"},
    "google_crc32c": {"payload"},
    "ml_dtypes": {"dtypes"},
    "typer": {"cli"},
    "h5py": {"formats/hdf5"},
    "rich": {"cli", "inspect", "progress"},
}
PACKAGE = Path(__file__).parent.parent / "mzstore"


def imports(path: Path) -> set[str]:
    """What ``path`` imports of the package; what only type checkers see counts as well."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "mzstore":
            base = node.module.removeprefix("mzstore").lstrip(".")
            for name in node.names:
                inner = f"{base}.{name.name}".lstrip(".")
                here = PACKAGE / inner.replace(".", "/")
                found.add(inner if here.with_suffix(".py").exists() or here.is_dir() else base or "__init__")
        elif isinstance(node, ast.Import):
            found |= {name.name.removeprefix("mzstore.") for name in node.names if name.name.startswith("mzstore.")}
    return found


def others(path: Path) -> set[str]:
    """What ``path`` imports of other projects, at any place in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found


MODULES = {path.relative_to(PACKAGE).with_suffix("").as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}


@pytest.mark.parametrize("module", MODULES)
def test_imports_only_what_its_row_allows(module):
    assert imports(MODULES[module]) <= set(ALLOWED[module].split()), "add to its row, or turn the import around"


def test_the_table_has_no_row_too_many():
    assert ALLOWED.keys() == MODULES.keys()
    for module, row in ALLOWED.items():
        assert set(row.split()) <= imports(MODULES[module]), "it imports less than its row says: shorten the row"


def test_no_module_imports_itself_by_way_of_others():
    below = {module.removesuffix("/__init__").replace("/", "."): set(row.split()) for module, row in ALLOWED.items()}
    below |= {module: below[module] for module in ("formats", "encodings", "kernels", "quantizers", "storage")}
    order: list[str] = []
    while len(order) < len(below):
        free = [module for module, row in below.items() if module not in order and row <= set(order)]
        assert free, f"a circle among {sorted(below.keys() - set(order))}"
        order += free


@pytest.mark.parametrize("project", THE_ONLY_DOORS)
def test_each_outside_thing_has_one_door(project):
    assert {module for module, path in MODULES.items() if project in others(path)} == THE_ONLY_DOORS[project]

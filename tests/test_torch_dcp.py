"""Directories of torch.distributed.checkpoint, read without PyTorch, and without running anything that is in them."""

import io
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from foreign import Runs, words
from torch.distributed.checkpoint import metadata as described
from torch.distributed.checkpoint.filesystem import _StorageInfo

import mzstore
from mzstore.checkpoints import CheckpointStore
from mzstore.formats import open_source


@pytest.fixture
def saved(tmp_path) -> dict[str, Any]:
    state = {
        "model": {"w": torch.randn(40, 60).bfloat16(), "b": torch.ones(3), "t": torch.randn(3, 5).T, "s": torch.tensor(2.0)},
        "step": 7, "opt": {"lr": 0.1, "betas": [0.9, 0.99]}, "odd": {1, 2}, "name": "run", "c": torch.randn(4, 2, dtype=torch.complex64),
    }  # fmt: skip
    dcp.save(state, checkpoint_id=tmp_path / "in")
    return state


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def test_what_torch_saved(tmp_path, saved):
    code = """
import sys
sys.modules["torch"] = None  # importing it fails
import mzstore
print(*mzstore.convert(sys.argv[1], sys.argv[2], check=True).notes, sep="\\n")
"""
    command = [sys.executable, "-c", code, tmp_path / "in", tmp_path / "m.mz"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.startswith(
        "shards of a distributed checkpoint come back as equal tensors, and not byte for byte\n"
    )
    with mzstore.open(tmp_path / "m.mz") as model:
        assert set(model) == {"model.w", "model.b", "model.t", "model.s", "c"}
        found = model.load(framework="torch")
        for name, tensor in saved["model"].items():
            assert torch.equal(found[f"model.{name}"], tensor)
        assert torch.equal(found["c"], saved["c"])
        assert {k: model.metadata[k] for k in ("step", "opt.lr", "name")} == {"step": 7, "opt.lr": 0.1, "name": "run"}


def write(
    folder: Path, shape: tuple[int, ...], boxes: list[tuple[tuple[int, ...], torch.Tensor]], **changes: Any
) -> None:
    """A checkpoint of one tensor in shards, in two files, as torch lays them out."""
    folder.mkdir()
    files = {f"__{i}_0.distcp": b"" for i in range(2)}
    stored, chunks = {}, []
    for i, (offsets, tensor) in enumerate(boxes):
        file = io.BytesIO()
        torch.save(tensor, file)
        path = f"__{i % 2}_0.distcp"
        index = described.MetadataIndex("w", torch.Size(offsets))
        if tensor.numel():
            stored[index] = _StorageInfo(
                changes.get("path", path), len(files[path]), len(file.getvalue()) + changes.get("more", 0)
            )
        files[path] += file.getvalue()
        chunks.append(described.ChunkStorageMetadata(torch.Size(offsets), changes.get("sizes", tensor.shape)))
    properties = described.TensorProperties(dtype=changes.get("dtype", boxes[0][1].dtype))
    contents = {"w": described.TensorStorageMetadata(properties, torch.Size(shape), chunks)}
    about = described.Metadata(contents, changes.get("planner", {}), stored)
    (folder / ".metadata").write_bytes(pickle.dumps(about))
    for path, data in files.items():
        (folder / path).write_bytes(data)


def cut(value: torch.Tensor, rows: list[int], columns: list[int]) -> list[tuple[tuple[int, ...], torch.Tensor]]:
    parts = []
    for a, b in zip([0, *rows], [*rows, value.shape[0]], strict=True):
        for c, d in zip([0, *columns], [*columns, value.shape[1]], strict=True):
            parts.append(((a, c), value[a:b, c:d].clone()))
    return parts


@pytest.mark.parametrize(("rows", "columns"), [([], []), ([7], []), ([3, 3, 9], []), ([], [5]), ([2, 11], [4, 5])])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
def test_shards_become_one_tensor(tmp_path, rows, columns, dtype):
    value = torch.randn(13, 9).to(dtype)
    write(tmp_path / "in", (13, 9), cut(value, rows, columns)[::-1])
    with open_source(tmp_path / "in") as model:
        (tensor,) = model.tensors
        assert words(model) == {"w": bits(value)}
        n = int(np.prod(tensor.spec.word_shape))
        whole = tensor.read(0, n)
        for start, stop in ((0, 1), (n - 1, n), (n // 3, n // 2), (5, 5), (n // 4, n)):
            assert (tensor.read(start, stop) == whole[start:stop]).all()


@pytest.mark.parametrize(
    ("shape", "boxes", "changes", "match"),
    [
        ((4, 4), [((0, 0), torch.ones(3, 4))], {}, "do not make a tensor"),
        ((4, 4), [((0, 0), torch.ones(3, 4)), ((2, 0), torch.ones(1, 4))], {}, "do not make a tensor"),
        ((4, 4), [((0, 0), torch.ones(4, 2)), ((0, 1), torch.ones(4, 2))], {}, "do not make a tensor"),
        ((4, 4), [((0, 0), torch.ones(2, 4)), ((3, 0), torch.ones(2, 4))], {}, "do not make a tensor"),
        ((4, 4), [((0, 0), torch.ones(4, 4))], {"more": 1}, "ends behind its file"),
        ((4, 4), [((0, 0), torch.ones(4, 4))], {"more": -9}, "not a ZIP file"),
        ((4, 4), [((0, 0), torch.ones(4, 4))], {"path": "../x.distcp"}, "relative path"),
        ((4, 4), [((0, 0), torch.ones(4, 4))], {"path": "/etc/passwd"}, "relative path"),
        ((4, 4), [((0, 0), torch.ones(4, 4))], {"path": "gone"}, "No such file"),
        ((4, 4), [((0, 0), torch.ones(4, 4))], {"dtype": torch.int32}, "not a tensor of int32"),
        ((4, 4), [((0, 0), torch.ones(4, 3))], {"sizes": torch.Size((4, 4))}, r"not a tensor of float32 and shape \(4, 4\)"),
        ((1 << 40, 1 << 40), [((0, 0), torch.ones(4, 4))], {"sizes": torch.Size((1 << 40, 1 << 40))}, "larger than"),
    ],
)  # fmt: skip
def test_shards_that_do_not_fit(tmp_path, shape, boxes, changes, match):
    write(tmp_path / "in", shape, boxes, **changes)
    with pytest.raises(mzstore.MzError, match=match), open_source(tmp_path / "in") as model:
        words(model)
    with pytest.raises(mzstore.MzError):
        mzstore.convert(tmp_path / "in", tmp_path / "x.mz")
    assert not (tmp_path / "x.mz").exists()


def test_nothing_in_the_metadata_or_a_shard_is_run(tmp_path):
    mark = tmp_path / "was here"
    write(tmp_path / "in", (2, 2), [((0, 0), torch.ones(2, 2))], planner=Runs(os.system, f"touch '{mark}'"))
    with (
        pytest.raises(mzstore.UnsupportedError, match="refused, and nothing of it was run"),
        open_source(tmp_path / "in"),
    ):
        pass
    write(tmp_path / "in2", (2, 2), [((0, 0), torch.ones(2, 2))], planner=[Runs(eval, f"open({str(mark)!r}, 'w')")])
    with pytest.raises(mzstore.UnsupportedError, match="refused"), open_source(tmp_path / "in2"):
        pass
    assert not mark.exists()


@pytest.mark.parametrize("data", [b"", b"junk", pickle.dumps({}), pickle.dumps([1])])
def test_metadata_that_is_none(tmp_path, data):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / ".metadata").write_bytes(data)
    with pytest.raises(mzstore.FormatError), open_source(tmp_path / "in"):
        pass


@pytest.mark.parametrize("remote", [False, True])
def test_a_store_of_checkpoints(tmp_path, remote):
    """The last one is read."""
    url = f"memory://{tmp_path.name}/run" if remote else str(tmp_path / "run")
    with CheckpointStore(url) as store:
        for step in (9, 10):
            store.save(step, {"w": np.full((30, 40), step, np.float32), "step": step})
    mzstore.convert(url, tmp_path / "m.mz", check=True)
    with mzstore.open(tmp_path / "m.mz") as model:
        assert [tensor[0, 0] for tensor in model.values()] == [10.0]

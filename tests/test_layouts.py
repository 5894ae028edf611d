"""Spliced layouts: a file of any format from the tensors in it and the bytes between them."""

import io
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mzstore
from mzstore.dtypes import DTYPES
from mzstore.formats import layouts, open_source, spliced
from mzstore.formats.files import PlainTensor
from mzstore.sources import ModelSource
from mzstore.storage import FileObjectSink, open_location
from mzstore.tensors import TensorSpec
from mzstore.writer import write


def plain(blob, *places: tuple[str, str, tuple[int, ...], int]) -> list[PlainTensor]:
    return [PlainTensor(TensorSpec(name, DTYPES[dtype], shape), blob, start) for name, dtype, shape, start in places]


def restored(source: ModelSource) -> bytes:
    file = io.BytesIO()
    tensors = {tensor.spec.name: tensor for tensor in source.tensors}
    layouts.parse(source.layouts[0], where="").write(FileObjectSink(file), tensors, lambda nbytes: None)
    return file.getvalue()


@given(st.data())
def test_any_places_in_any_file(data):
    content = data.draw(st.binary(max_size=200))
    blob = open_location(content)
    places = []
    for i in range(data.draw(st.integers(0, 5))):
        itemsize = data.draw(st.sampled_from([1, 2, 4, 8]))
        count = data.draw(st.integers(0, len(content) // itemsize))
        start = data.draw(st.integers(0, len(content) - count * itemsize))
        places.append((f"t{i}", f"uint{8 * itemsize}", (count,), start))
    tensors = plain(blob, *places)
    found = spliced.layout(blob, "m.bin", "any", tensors)
    model = ModelSource(tensors, 0, layouts=[found])
    assert restored(model) == content
    common = sum(len(tensor.read(0, tensor.spec.size).tobytes()) for tensor in tensors)
    assert len(found.raw) >= 8 + len(content) - common


def test_a_file_through_an_archive(tmp_path):
    """Large tensors, and two that share their bytes."""
    rng = np.random.default_rng(0)
    content = rng.bytes(4_000_003) + b"end"
    blob = open_location(content)
    tensors = plain(
        blob,
        ("b", "float32", (250, 4, 500), 3),
        ("a", "float32", (250, 2000), 3),
        ("c", "uint8", (2_000_000,), 2_000_003),
    )
    layout = spliced.layout(blob, "some.weights", "some", tensors)
    assert len(layout.raw) < 500
    write(tmp_path / "m.mz", ModelSource(tensors, 8_000_000, layouts=[layout]))
    assert mzstore.verify(tmp_path / "m.mz").ok
    assert (tmp_path / "m.mz").stat().st_size < 6_010_000
    mzstore.convert(tmp_path / "m.mz", tmp_path / "back")
    assert (tmp_path / "back" / "some.weights").read_bytes() == content
    url = f"memory://{tmp_path.name}/"
    mzstore.convert(tmp_path / "m.mz", f"{url}m.zarr")
    mzstore.convert(f"{url}m.zarr", f"{url}back")
    with open_source(f"{url}m.zarr") as model:
        assert restored(model) == content
        assert [(layout.path, layout.format, layout.kind) for layout in model.layouts] == [
            ("some.weights", "spliced", "some")
        ]


def test_too_much_beside_the_tensors(monkeypatch):
    blob = open_location(bytes(1000))
    monkeypatch.setattr(spliced, "MAX_LAYOUT_NBYTES", 500)
    assert spliced.layout(blob, "m", "any", []) is None
    assert spliced.layout(blob, "m", "any", plain(blob, ("w", "uint8", (900,), 50))) is not None


def test_tensors_that_changed_are_not_put_into_the_file(tmp_path):
    blob = open_location(bytes(12))
    tensors = plain(blob, ("w", "float32", (3,), 0))
    layout = spliced.layout(blob, "m.any", "any", tensors)
    cast = [replace(tensors[0], spec=TensorSpec("w", DTYPES["int32"], (3,)))]
    write(tmp_path / "m.mz", ModelSource(cast, 12, layouts=[layout]))
    with pytest.raises(ValueError, match=r"the layout of 'm\.any' has a tensor 'w' that the model has not, or not so"):
        mzstore.convert(tmp_path / "m.mz", tmp_path / "back")
    (problem,) = mzstore.verify(tmp_path / "m.mz").problems
    assert problem.clause == "layout-3"


def test_content_of_no_format(tmp_path):
    (tmp_path / "notes.txt").write_text("shopping list")
    with pytest.raises(
        mzstore.FormatError, match=r"no format that can be read, which are mzstore, safetensors.*notes\.txt"
    ):
        mzstore.convert(tmp_path / "notes.txt", tmp_path / "m.mz")

"""Trees whose conversion was interrupted, and gone on with."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from samples import weights

import mzstore
from mzstore import writer
from mzstore.errors import FormatError
from mzstore.journal import Journal, resume
from mzstore.storage import open_objects

RECIPE = mzstore.Recipe([mzstore.Rule(name="layer.3.*", snr_db=30)], defaults=False)
TENSORS = {f"layer.{i}.weight": weights((300, 200), i) for i in range(6)} | {
    "layer.7.weight": weights((300, 200), 1),  # equal to another one
    "layer.8.weight": np.zeros((40, 30), np.float32),
    "layer.9.weight": np.arange(7000),
}


@pytest.fixture
def source(tmp_path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    safetensors.numpy.save_file(TENSORS, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture(autouse=True)
def small_records(monkeypatch):
    monkeypatch.setattr(writer, "JOURNAL_NBYTES", 400_000)  # two of the matrices


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


class Stops:
    """Ends the work at a tensor, which is the ``n``-th that is stored."""

    def __init__(self, n: int, monkeypatch) -> None:
        self.left, self.stored = n, 0
        self.genuine = writer._ModelWriter._store
        monkeypatch.setattr(writer._ModelWriter, "_store", lambda *args: self.store(*args))

    def store(self, *args):
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        self.stored += 1
        return self.genuine(*args)


def complete(tmp_path: Path) -> set[str]:
    """The names of the tensors that were noted down."""
    if not (tmp_path / "m.zarr.unfinished").exists():
        return set()
    (own,) = (tmp_path / "m.zarr.unfinished").iterdir()
    return set(Journal(open_objects(own), "journal")._entries)


def convert(source: Path, tmp_path: Path, **options):
    return mzstore.convert(source, tmp_path / "m.zarr", **({"recipe": RECIPE, "threads": 2} | options))


@pytest.mark.parametrize(("n", "n_complete"), [(1, 0), (3, 3), (5, 5), (6, 7)])
def test_a_tree_is_gone_on_with(source, tmp_path, monkeypatch, n, n_complete):
    mzstore.convert(source, tmp_path / "straight.zarr", recipe=RECIPE)
    stops = Stops(n, monkeypatch)
    with pytest.raises(KeyboardInterrupt) as stopped:
        convert(source, tmp_path)
    kept, known = tmp_path / "m.zarr.unfinished", complete(tmp_path)
    assert len(known) == n_complete
    assert not (tmp_path / "m.zarr").exists()
    assert kept.exists() == (n > 1)  # there is no record yet, and then nothing stays
    assert ("what was done is kept in" in "".join(getattr(stopped.value, "__notes__", ()))) == (n > 1)
    stops.left, stops.stored = 100, 0
    report = convert(source, tmp_path, check=True)
    others = {"layer.3.weight", "layer.7.weight"}  # one is quantized, one equal to another
    assert stops.stored == len(TENSORS.keys() - others - known)
    assert files(tmp_path / "m.zarr") == files(tmp_path / "straight.zarr")
    assert not kept.exists()
    with mzstore.open(tmp_path / "m.zarr") as model:
        assert {t.spec.name: t.stored_nbytes for t in report.tensors} == {n: t.stored_nbytes for n, t in model.items()}
        assert model["layer.3.weight"].quality
        assert model["layer.7.weight"].encoding == "same"


@pytest.mark.parametrize("change", ["source", "level", "recipe", "edits"])
def test_what_another_conversion_has_left_is_not_mixed_in(source, tmp_path, monkeypatch, change):
    stops = Stops(4, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path)
    before = files(tmp_path / "m.zarr.unfinished")
    stops.left = 100
    options = {"level": {"level": "max"}, "recipe": {"recipe": None}, "edits": {"exclude": "layer.0.*"}, "source": {}}
    if change == "source":
        time.sleep(0.01)
        safetensors.numpy.save_file(TENSORS | {"layer.0.weight": weights((300, 200), 77)}, source / "model.safetensors")
    report = convert(source, tmp_path, check=True, **options[change])
    assert "what another conversion has left lies in" in report.notes[-1]
    assert files(tmp_path / "m.zarr.unfinished") == before


def test_two_at_a_time(source, tmp_path, monkeypatch):
    stops = Stops(4, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path)
    stops.left = 100
    (own,) = (tmp_path / "m.zarr.unfinished").iterdir()
    with open(own / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(mzstore.StorageError, match="another process is writing"):
            convert(source, tmp_path)
    convert(source, tmp_path, check=True)


def test_a_tree_that_is_there_is_left_alone(source, tmp_path):
    convert(source, tmp_path)
    before = files(tmp_path)
    with pytest.raises(mzstore.StorageError, match="it exists"):
        convert(source, tmp_path)
    assert files(tmp_path) == before


KILLED = """
import os, sys
import mzstore
from mzstore import writer
from mzstore.storage.local import LocalFolderSink
writer.JOURNAL_NBYTES = 400_000
left = int(sys.argv[3])
genuine = LocalFolderSink.write
def write(self, key, data):
    global left
    left -= 1
    if left < 0:  # in the middle of a file
        with self.open(key) as file:
            file.write(data[:10])
            file._file.flush()
            os.kill(os.getpid(), 9)
    genuine(self, key, data)
LocalFolderSink.write = write
mzstore.convert(sys.argv[1], sys.argv[2], threads=2)
"""


@pytest.mark.parametrize(("after", "n_complete"), [(0, 0), (3, 3), (5, 5), (9, 7)])
def test_a_process_that_is_killed(source, tmp_path, monkeypatch, after, n_complete):
    mzstore.convert(source, tmp_path / "straight.zarr")
    command = [sys.executable, "-c", KILLED, source, tmp_path / "m.zarr", after]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "m.zarr").exists()
    known = complete(tmp_path)
    assert len(known) == n_complete
    stops = Stops(100, monkeypatch)
    mzstore.convert(source, tmp_path / "m.zarr", check=True)
    assert files(tmp_path / "m.zarr") == files(tmp_path / "straight.zarr")
    assert not (tmp_path / "m.zarr.unfinished").exists()
    assert stops.stored == len(TENSORS.keys() - {"layer.7.weight"} - known)  # what was noted down is not encoded again


@pytest.mark.parametrize("place", ["s3fs", "obstore"], indirect=True)
def test_object_storage(source, tmp_path, place, monkeypatch):
    options = {"recipe": RECIPE, "target_options": place.options}
    stops = Stops(4, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        mzstore.convert(source, place.url("m.zarr"), **options)
    assert any(".unfinished" in name for name in place.names())
    stops.left, stops.stored = 100, 0
    mzstore.convert(source, place.url("m.zarr"), check=True, **options)
    assert stops.stored < 5
    mzstore.convert(source, tmp_path / "straight.zarr", recipe=RECIPE)
    assert sorted(place.names()) == [f"m.zarr/{name}" for name in sorted(files(tmp_path / "straight.zarr"))]


@pytest.mark.parametrize("place", ["s3fs"], indirect=True)
def test_records_of_another_conversion_go_before_its_objects_are_replaced(source, place, monkeypatch):
    stops = Stops(4, monkeypatch)
    options = {"target_options": place.options}
    for level in ("balanced", "max"):
        stops.left = 4
        with pytest.raises(KeyboardInterrupt):
            mzstore.convert(source, place.url("m.zarr"), level=level, **options)
    assert len({name.split("/")[2] for name in place.names() if ".unfinished" in name}) == 1
    stops.left, stops.stored = 100, 0
    mzstore.convert(source, place.url("m.zarr"), check=True, **options)
    assert stops.stored == 8


def test_records_that_are_none(tmp_path):
    objects = open_objects(tmp_path)
    for data in (b"{}", b"[]", b'{"nodes": {}, "stored": {"a": 1.5}}', b'{"nodes": {"a": 3}, "stored": {}}'):
        objects.put("j/000000.json", data)
        with pytest.raises(FormatError):
            Journal(objects, "j")


def test_an_attempt_that_completes_nothing_leaves_nothing(tmp_path):
    def attempt() -> None:
        with resume(tmp_path / "m.zarr", "a" * 32) as found:
            assert found.journal.n_records == 0
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        attempt()
    assert list(tmp_path.iterdir()) == []

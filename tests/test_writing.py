"""Writing: all or nothing, whatever happens on the way, and in little memory."""

import errno
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import MappingProxyType

import fsspec
import numpy as np
import pytest
from samples import WITHOUT_PRIVILEGES, bits, saved, small_model, weights

import mzstore
from mzstore.dtypes import DTYPES
from mzstore.sources import FileSource, ModelSource
from mzstore.tensors import TensorSpec
from mzstore.writer import write

OLD = {"w": np.arange(1000), "v": weights((40, 50))}
KINDS = ["archive", "tree"]


class Failing:
    """A tensor whose values cannot be read to their end."""

    def __init__(self, error: BaseException) -> None:
        self.spec = TensorSpec("failing", DTYPES["float32"], (4000, 3000))
        self._error = error

    def read(self, start: int, stop: int) -> np.ndarray:
        if stop > 11_000_000:
            raise self._error
        return np.arange(start, stop, dtype=np.uint32) % 1000


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


# Exceptions


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("error", [OSError(5, "the source failed"), KeyboardInterrupt(), ValueError("bad")], ids=repr)
@pytest.mark.parametrize("kind", KINDS)
def test_an_exception_leaves_everything_as_it_was(kind, error, threads, tmp_path):
    target = tmp_path / "model"
    if kind == "archive":
        mzstore.save(target, OLD)
    before = snapshot(tmp_path)
    with pytest.raises(type(error)):
        write(target, ModelSource([Failing(error)], 48_000_000), kind=kind, threads=threads)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"tensors": {"a": np.arange(5), "b": np.array(["x"])}}, "tensor 'b': no tensor can have dtype"),
        ({"tensors": {3: np.arange(5)}}, "tensor names are strings, 3 is not"),
        ({"tensors": {"a\ud800": np.arange(5)}}, "lone surrogate"),
        ({"tensors": {"n" * 4097: np.arange(5)}}, "has 4097 bytes, at most 4096"),
        ({"tensors": {}, "metadata": {"a": float("nan")}}, "JSON"),
        ({"tensors": {}, "metadata": {"a": {1, 2}}}, "JSON"),
        ({"tensors": {}, "metadata": {"a": b"x"}}, "JSON"),
        ({"tensors": {}, "metadata": {1: "a", "1": "b"}}, "a key in the metadata is 1, not a string"),
        ({"tensors": {}, "metadata": {"a": 10**5000}}, "digits"),
        ({"tensors": {}, "metadata": [1]}, "metadata"),
        ({"tensors": {}, "assets": {"../a": b""}}, "'../a' is not a relative path"),
        ({"tensors": {}, "assets": {"/a": b""}}, "'/a' is not a relative path"),
        ({"tensors": {}, "assets": {"": b""}}, "'' is not a relative path"),
        ({"tensors": {}, "assets": {"a": b"", "A": b""}}, "'A' occurs twice"),
        ({"tensors": {}, "assets": {"a": b"", "a/b": b""}}, "below a file"),
        ({"tensors": {}, "assets": {"a": "/nowhere/at/all"}}, "/nowhere/at/all"),
        ({"tensors": {}, "level": "best"}, "level 'best' is none of fast, balanced, max"),
        ({"tensors": {}, "kind": "zip"}, "kind 'zip' is none of archive, tree"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_stored(arguments, error, kind, tmp_path):
    """Each of these once could not be stored, or could not be opened again."""
    with pytest.raises((ValueError, TypeError, OSError, mzstore.StorageError), match=error):
        mzstore.save(tmp_path / "model", **({"kind": kind} | arguments))
    assert files_below(tmp_path) == set()


def test_deep_metadata(tmp_path):
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises((ValueError, RecursionError)):
        mzstore.save(tmp_path / "model.mz", {}, metadata={"a": deep})
    assert files_below(tmp_path) == set()


@pytest.mark.parametrize("depth", [100, 390, 410, 490, 600, 900, 990])
def test_what_is_saved_can_be_opened(depth):
    """Or it is not saved: JSON readers and writers differ in how deep they go."""
    deep: list = []
    for _ in range(depth):
        deep = [deep]
    try:
        archive = saved({}, metadata={"a": deep})
    except (ValueError, RecursionError):
        assert depth > 400
        return
    with mzstore.open(archive) as model:
        assert model.metadata == {"a": deep}


# Places


@pytest.mark.parametrize("kind", KINDS)
def test_no_such_directory(kind, tmp_path):
    with pytest.raises(mzstore.StorageError, match=r"cannot write '.*nowhere/model': No such file or directory"):
        mzstore.save(tmp_path / "nowhere" / "model", OLD, kind=kind)


def test_over_a_directory(tmp_path):
    (tmp_path / "model.mz").mkdir()
    with pytest.raises(mzstore.StorageError, match="it is a directory"):
        mzstore.save(tmp_path / "model.mz", OLD)
    assert files_below(tmp_path) == {"model.mz"}


def test_a_tree_over_what_is_there(tmp_path):
    (tmp_path / "empty").mkdir()
    mzstore.save(tmp_path / "empty", OLD, kind="tree")
    for name in ("empty", "file"):
        (tmp_path / "file").write_bytes(b"x")
        with pytest.raises(mzstore.StorageError, match="it exists; remove it first"):
            mzstore.save(tmp_path / name, OLD, kind="tree")
    with mzstore.open(tmp_path / "empty") as model:
        assert bits(model["w"][...]) == bits(OLD["w"])


def test_over_what_is_no_file(tmp_path):
    """Renaming over a device, say /dev/null, would replace it, for every program on the machine."""
    target = tmp_path / "target"
    os.mkfifo(target)
    with pytest.raises(mzstore.StorageError, match="not a regular file"):
        mzstore.save(target, OLD)
    assert target.is_fifo()
    assert files_below(tmp_path) == {"target"}


@pytest.mark.parametrize("kind", KINDS)
def test_an_unwritable_directory(kind, tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o500)
    code = WITHOUT_PRIVILEGES + textwrap.dedent(f"""
        import sys
        import numpy as np, mzstore
        try:
            mzstore.save({str(folder / "model")!r}, {{"w": np.arange(3)}}, kind={kind!r})
        except mzstore.StorageError as error:
            sys.exit(0 if "Permission denied" in str(error) else str(error))
        sys.exit("it was saved")
    """)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert files_below(folder) == set()


def test_a_symbolic_link_stays_one(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "model.mz").symlink_to("far/real.mz")
    for tensors in (OLD, small_model()):
        mzstore.save(tmp_path / "model.mz", tensors)
        assert (tmp_path / "model.mz").is_symlink()
        with mzstore.open(tmp_path / "far" / "real.mz") as model:
            assert list(model) == list(tensors)
    assert files_below(tmp_path) == {"far", "far/real.mz", "model.mz"}


@pytest.mark.parametrize("name", ["m" * 252 + ".mz", "模" * 84 + ".mz"], ids=["ascii", "utf-8"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_name_may_be_as_long_as_the_system_allows(name, kind, tmp_path):
    mzstore.save(tmp_path / name, OLD, kind=kind)
    assert {path.name for path in tmp_path.iterdir()} == {name}


def test_kind_by_name(tmp_path):
    mzstore.save(tmp_path / "a.zarr", OLD)
    mzstore.save(f"{tmp_path}/b/", OLD)
    mzstore.save(tmp_path / "c.mz", OLD)
    assert (tmp_path / "a.zarr" / "zarr.json").is_file()
    assert (tmp_path / "b" / "zarr.json").is_file()
    assert (tmp_path / "c.mz").is_file()


def test_a_file_object(tmp_path):
    """Also one that writes less than it is given, as a pipe does."""

    class Sipping:
        def __init__(self) -> None:
            self.data = bytearray()

        def write(self, data) -> int:
            piece = bytes(data[:1000])
            self.data += piece
            return len(piece)

    sipping = Sipping()
    mzstore.save(sipping, small_model())
    assert bytes(sipping.data) == saved(small_model())
    with open(tmp_path / "model.mz", "wb", buffering=0) as file:
        mzstore.save(file, small_model())
    assert (tmp_path / "model.mz").read_bytes() == saved(small_model())
    with pytest.raises(TypeError, match="not to a file object"):
        mzstore.save(sipping, OLD, kind="tree")


def test_a_remote_that_fails(monkeypatch):
    fs = fsspec.filesystem("memory")
    mzstore.save("memory://remote/model.mz", OLD)

    def refuse(*args, **kwargs):
        raise OSError(errno.EIO, "no route to host")

    monkeypatch.setattr(type(fs), "pipe_file", refuse)
    with pytest.raises(mzstore.StorageError, match=r"cannot write 'memory://remote/model\.mz': no route to host"):
        mzstore.save("memory://remote/model.mz", small_model())
    monkeypatch.undo()
    with mzstore.open("memory://remote/model.mz") as model:
        assert bits(model["v"][...]) == bits(OLD["v"])


def test_saving_over_the_model_that_is_read(tmp_path):
    mzstore.save(tmp_path / "model.mz", OLD)
    with mzstore.open(tmp_path / "model.mz") as model:
        mzstore.save(tmp_path / "model.mz", {name: model[name] for name in model} | {"more": np.ones(3)})
    with mzstore.open(tmp_path / "model.mz") as model:
        assert bits(model["v"][...]) == bits(OLD["v"])
        assert list(model) == ["w", "v", "more"]


def test_assets_from_files(tmp_path):
    (tmp_path / "big.bin").write_bytes(bytes(range(256)) * 20_000)
    archive = saved({}, assets={"a/big.bin": tmp_path / "big.bin", "str": str(tmp_path / "big.bin"), "b": b"x"})
    with mzstore.open(archive) as model:
        assert model.assets["a/big.bin"] == model.assets["str"] == (tmp_path / "big.bin").read_bytes()
        assert model.assets["b"] == b"x"


# A full disk


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk(kind, threads, small_disk):
    mzstore.save(small_disk / "old.mz", OLD)
    before = snapshot(small_disk)
    target = small_disk / ("old.mz" if kind == "archive" else "new.zarr")
    with pytest.raises(mzstore.StorageError, match="No space left on device"):
        mzstore.save(target, {"w": weights((2000, 2000))}, threads=threads)
    assert snapshot(small_disk) == before


# A killed process

SAVE_AGAIN = """
import sys
import numpy as np
import mzstore
rng = np.random.default_rng(1)
tensors = {f"t{i}": rng.standard_normal((300, 400)).astype(np.float32) for i in range(30)}
print("ready", flush=True)
while True:
    mzstore.save(sys.argv[1], tensors, threads=2)
    print("saved", flush=True)
"""


def test_killed_at_any_moment(tmp_path):
    """What stands under the name is always a whole model: the old one, or the new one."""
    rng = np.random.default_rng(1)
    new = {f"t{i}": rng.standard_normal((300, 400)).astype(np.float32) for i in range(30)}
    old_bytes, new_bytes = saved(OLD), saved(new)
    target = tmp_path / "model.mz"
    found = set()
    for turn in range(12):
        target.write_bytes(old_bytes)
        with subprocess.Popen([sys.executable, "-c", SAVE_AGAIN, target], stdout=subprocess.PIPE) as child:
            child.stdout.readline()
            if turn % 3 == 2:
                child.stdout.readline()  # one model is saved: kill it while it saves the next
            time.sleep(0.03 * turn)  # another moment in every turn
            child.send_signal(signal.SIGKILL)
            child.wait()
        data = target.read_bytes()
        assert data in (old_bytes, new_bytes)
        found.add(data == new_bytes)
        assert mzstore.verify(target).ok
        for name in files_below(tmp_path) - {"model.mz"}:
            assert name.endswith(".tmp")
            (tmp_path / name).unlink()
    assert found == {True, False}, "both have been seen"


# Memory

SAVE_MUCH = """
import resource, sys
import numpy as np
from mzstore.dtypes import DTYPES
from mzstore.sources import ModelSource
from mzstore.tensors import TensorSpec
from mzstore.writer import write

class Generated:
    spec = TensorSpec("w", DTYPES["bfloat16"], (32 << 10, 16 << 10))
    def read(self, start, stop):
        rng = np.random.default_rng(start)
        return (rng.standard_normal(stop - start, np.float32) * 0.02).view(np.uint32)[:].astype(np.uint32).__rshift__(16).astype(np.uint16)

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write(sys.argv[1], ModelSource([Generated()], 1 << 30), level="fast", threads=2)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(resource.getpagesize() != 4096, reason="ru_maxrss is in kibibytes on Linux")
def test_a_tensor_of_1_gib_in_little_memory(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", SAVE_MUCH, tmp_path / "model.mz"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 600 << 10, "KiB beyond what the imports took"


def test_a_remote_tree_is_not_written_over():
    """New chunks below old documents would be read as the old model's, with checksums that hold."""
    url = "memory://written-over.zarr"
    mzstore.save(url, OLD)
    with pytest.raises(mzstore.StorageError, match="holds a model"):
        mzstore.save(url, {"w": np.arange(1000) + 1})
    with mzstore.open(url) as model:
        assert bits(model["w"][...]) == bits(OLD["w"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", [-100, 0, 100])
def test_an_asset_that_changes_while_it_is_read(kind, change, tmp_path):
    contents = iter([b"a" * 1000, b"b" * (1000 + change)])
    asset = FileSource("log.txt", lambda: iter([next(contents)]))
    with pytest.raises(ValueError, match=r"asset 'log.txt' changed while it was read"):
        write(tmp_path / "m", ModelSource([], 0, assets=[asset]), kind=kind)
    assert not files_below(tmp_path)


def test_row_blocks_do_not_pile_up_before_the_digest(tmp_path, monkeypatch):
    """However slow SHA-256 is, only a few blocks are in memory: counts those that are read but not yet digested."""
    waiting, most = 0, 0

    class Slow:
        def __init__(self, data: bytes = b"") -> None:
            self._real = real(data)

        def update(self, data: memoryview) -> None:
            nonlocal waiting
            time.sleep(0.01)
            self._real.update(data)
            waiting -= 1

        def digest(self) -> bytes:
            return self._real.digest()

        def hexdigest(self) -> str:
            return self._real.hexdigest()

    class Counted:
        spec = TensorSpec("w", DTYPES["uint8"], (40, 1 << 22))

        def read(self, start: int, stop: int) -> np.ndarray:
            nonlocal waiting, most
            if stop - start > 1 << 20:
                waiting += 1
                most = max(most, waiting)
            return np.full(stop - start, start >> 22, np.uint8)

    real = hashlib.sha256
    write(tmp_path / "warm.mz", ModelSource([Counted()], 0), threads=2)  # what choosing reads is not digested
    surveyed, waiting, most = waiting, 0, 0
    monkeypatch.setattr(hashlib, "sha256", Slow)
    write(tmp_path / "m.mz", ModelSource([Counted()], 0), threads=2)
    assert most <= surveyed + 4


def test_the_mode_of_a_file_stays(tmp_path):
    path = tmp_path / "m.mz"
    mzstore.save(path, OLD)
    path.chmod(0o600)
    mzstore.save(path, OLD)
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("metadata", "error", "text"),
    [
        ({1: "a"}, TypeError, "a key in the metadata is 1, not a string"),
        ({"a": [{"b": {None: 2}}]}, TypeError, "a key in the metadata is None"),
        (json.loads('{"a":' + "[" * 450 + "]" * 450 + "}"), ValueError, "nested deeper than 400"),
    ],
)
def test_metadata_that_json_would_change(metadata, error, text, tmp_path):
    with pytest.raises(error, match=text):
        mzstore.save(tmp_path / "m.mz", OLD, metadata=metadata)
    assert not files_below(tmp_path)


def test_any_mapping_is_metadata(tmp_path):
    mzstore.save(tmp_path / "m.mz", OLD, metadata=MappingProxyType({"a": 1}))
    with mzstore.open(tmp_path / "m.mz") as model:
        assert model.metadata == {"a": 1}


@pytest.mark.parametrize("threads", [0, -3])
def test_no_threads(threads, tmp_path):
    with pytest.raises(ValueError, match="at least 1 is needed"):
        mzstore.save(tmp_path / "m.mz", OLD, threads=threads)


def test_a_masked_array_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"tensor 'w': a masked array; fill it first"):
        mzstore.save(tmp_path / "m.mz", {"w": np.ma.masked_array([1, 2], [True, False])})

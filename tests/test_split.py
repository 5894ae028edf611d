"""Conversions into several archives: here, by executors, by processes that are killed."""

import concurrent.futures
import json
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
from mzstore import split
from mzstore.manifest import Manifest
from mzstore.pins import pin

TENSORS = {f"layer.{i}.weight": weights((200 + i, 300), i) for i in range(6)} | {"bias": weights((300,), 9)}
SHARD = 500_000  # bytes: two of the matrices


@pytest.fixture
def source(tmp_path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    safetensors.numpy.save_file(TENSORS, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text('{"a": 1}')
    (folder / "vocab.bin").write_bytes(bytes(range(256)) * 5000)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def archives(tmp_path: Path) -> list[Path]:
    """What is below the folder of archives besides plans."""
    return [p for p in sorted((tmp_path / "m.archives").rglob("*")) if p.is_file() and p.name != "plan.json"]


def named(tmp_path: Path) -> list[Path]:
    """The archives that the manifest names."""
    manifest = Manifest.parse((tmp_path / "m.json").read_bytes(), where="")
    return sorted(tmp_path / archive.path for archive in manifest.archives)


def is_whole(source: Path, tmp_path: Path) -> None:
    """The model is what it should be, and nothing lies beside it that it does not need."""
    assert named(tmp_path) == archives(tmp_path)
    assert mzstore.verify(tmp_path / "m.json").ok
    assert mzstore.diff(source, tmp_path / "m.json").equal
    assert mzstore.check(source, tmp_path / "m.json").ok


def test_several_archives_are_one_model(source, tmp_path):
    report = mzstore.convert(source, tmp_path / "m.json", shard_nbytes=SHARD, check=True)
    is_whole(source, tmp_path)
    assert len(named(tmp_path)) == 4  # three of tensors, one of files
    assert report.to == "manifest"
    assert f"4 archives in m.archives/{named(tmp_path)[0].parent.name}" in report.notes
    with mzstore.open(tmp_path / "m.json") as model:
        assert list(model) == [tensor.spec.name for tensor in report.tensors]
        assert (model.metadata, dict(model.assets)["config.json"]) == ({"format": "pt"}, b'{"a": 1}')
        for tensor in report.tensors:
            assert model[tensor.spec.name].stored_nbytes == tensor.stored_nbytes
    mzstore.convert(tmp_path / "m.json", tmp_path / "back")  # a directory, as of any model that was converted from one
    assert files(tmp_path / "back") == files(source)
    mzstore.convert(tmp_path / "m.json", tmp_path / "m.mz", check=True)
    mzstore.convert(source, tmp_path / "direct.mz")
    assert (tmp_path / "m.mz").read_bytes() == (tmp_path / "direct.mz").read_bytes()


def test_edits_and_recipes(source, tmp_path):
    options = {"rename": {"layer.*": "h.*"}, "exclude": "bias", "recipe": mzstore.Recipe(nmse=1e-3), "importance": {"layer.0.weight": np.linspace(1, 2, 300)}}  # fmt: skip
    mzstore.convert(source, tmp_path / "m.json", shard_nbytes=SHARD, **options)
    mzstore.convert(source, tmp_path / "m.mz", **options)
    with mzstore.open(tmp_path / "m.json") as several, mzstore.open(tmp_path / "m.mz") as one:
        assert list(several) == list(one) == [f"h.{i}.weight" for i in range(6)]
        for name, tensor in one.items():
            assert (several[name].quality, several[name].encoding) == (tensor.quality, tensor.encoding)
            assert several[name][...].tobytes() == tensor[...].tobytes()
    with pytest.raises(ValueError, match='scope = "global" prunes all tensors together'):
        mzstore.convert(source, tmp_path / "g.json", recipe=mzstore.Recipe(sparsity=0.5, scope="global"))


@pytest.mark.parametrize("options", [{"shard_nbytes": SHARD}, {"executor": object()}])
def test_only_a_manifest_has_several_archives(source, tmp_path, options):
    with pytest.raises(ValueError, match=r"not for archive: give the target a name that ends in \.json"):
        mzstore.convert(source, tmp_path / "m.mz", **options)


def test_what_is_done_already_is_not_done_again(source, tmp_path, monkeypatch):
    def interrupted(job, task):
        if task.number == 2:
            raise KeyboardInterrupt
        genuine(job, task)

    genuine = split.carry_out
    monkeypatch.setattr(split, "carry_out", interrupted)
    with pytest.raises(KeyboardInterrupt):
        mzstore.convert(source, tmp_path / "m.json", shard_nbytes=SHARD)
    assert not (tmp_path / "m.json").exists()
    done = {path: path.stat().st_ino for path in archives(tmp_path) if path.suffix == ".mz"}
    assert len(done) == 2
    written = []
    monkeypatch.setattr(split, "carry_out", genuine)
    monkeypatch.setattr(
        split, "write", lambda *args, genuine=split.write, **kwargs: written.append(1) or genuine(*args, **kwargs)
    )
    mzstore.convert(source, tmp_path / "m.json", shard_nbytes=SHARD)
    is_whole(source, tmp_path)
    assert len(written) == 2
    assert {path: path.stat().st_ino for path in done} == done
    # Once more: nothing is to be done, and that is said the same way.
    report = mzstore.convert(source, tmp_path / "m.json", shard_nbytes=SHARD)
    assert len(written) == 2
    assert [(t.spec.name, t.encoding) for t in report.tensors] == [(name, "planes") for name in sorted(TENSORS)]


@pytest.mark.parametrize("change", ["source", "level", "edits", "shards", "recipe"])
def test_what_another_conversion_has_left_is_not_mixed_in(source, tmp_path, monkeypatch, change):
    genuine = split.carry_out
    monkeypatch.setattr(split, "carry_out", lambda job, task: genuine(job, task) if task.number < 2 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        mzstore.convert(source, tmp_path / "m.json", shard_nbytes=SHARD)
    before = {path: path.read_bytes() for path in archives(tmp_path)}
    monkeypatch.setattr(split, "carry_out", genuine)
    options = {"shard_nbytes": SHARD}
    if change == "source":
        time.sleep(0.01)
        safetensors.numpy.save_file(TENSORS | {"bias": weights((300,), 10)}, source / "model.safetensors")
    options |= {
        "source": {}, "level": {"level": "fast"}, "edits": {"exclude": "bias"}, "shards": {"shard_nbytes": SHARD + 1},
        "recipe": {"recipe": mzstore.Recipe(nmse=1e-3)},
    }[change]  # fmt: skip
    report = mzstore.convert(source, tmp_path / "m.json", **options)
    assert not set(named(tmp_path)) & before.keys()
    (note,) = [note for note in report.notes if "another conversion" in note]
    left = next(iter(before)).parent
    assert note == f"work of another conversion lies in m.archives/{left.name}: remove it, if nobody goes on with it"
    assert {path: path.read_bytes() for path in before} == before
    edits = {"exclude": "bias"} if change == "edits" else {}
    assert mzstore.check(source, tmp_path / "m.json", **edits).ok


def test_there_is_one_model_of_a_name(source, tmp_path):
    mzstore.convert(source, tmp_path / "m.json", shard_nbytes=SHARD)
    before = files(tmp_path)
    with pytest.raises(mzstore.ConflictError, match="there is a model already, from another conversion"):
        mzstore.convert(source, tmp_path / "m.json", shard_nbytes=SHARD, level="max")
    assert files(tmp_path) == before
    with pytest.raises(ValueError, match="lies in the source"):
        mzstore.convert(source, source / "m.json")


def test_a_source_that_changes_meanwhile(source, tmp_path, monkeypatch):
    def changed(job, task):
        if task.number == 2:
            time.sleep(0.01)
            safetensors.numpy.save_file(TENSORS, source / "model.safetensors", metadata={"format": "pt"})
        genuine(job, task)

    genuine = split.carry_out
    monkeypatch.setattr(split, "carry_out", changed)
    with pytest.raises(mzstore.StorageError, match="is not what it was when its conversion began"):
        mzstore.convert(source, tmp_path / "m.json", shard_nbytes=SHARD)
    assert not (tmp_path / "m.json").exists()


def test_pins(source, tmp_path):
    assert pin(source).keys() == {"model.safetensors", "config.json", "vocab.bin"}
    assert pin(source / "model.safetensors").keys() == {""}
    index = {"weight_map": dict.fromkeys(TENSORS, "model.safetensors")}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    assert pin(source / "model.safetensors.index.json").keys() == {"", "model.safetensors"}
    mzstore.convert(source / "model.safetensors", tmp_path / "m.zarr")
    assert pin(tmp_path / "m.zarr").keys() == {"zarr.json"}
    before = pin(source)
    os.utime(source / "config.json", ns=(1, 1))
    assert pin(source) != before


def test_files_that_a_file_names_are_pinned_as_well(tmp_path, monkeypatch):
    onnx = pytest.importorskip("onnx")
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in TENSORS.items()]
    model = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], tensors))
    onnx.save_model(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    genuine = split.carry_out
    monkeypatch.setattr(split, "carry_out", lambda job, task: genuine(job, task) if task.number < 1 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        mzstore.convert(tmp_path / "m.onnx", tmp_path / "m.json", shard_nbytes=SHARD)
    monkeypatch.setattr(split, "carry_out", genuine)
    first = archives(tmp_path)
    os.utime(tmp_path / "m.data", ns=(1, 1))
    mzstore.convert(tmp_path / "m.onnx", tmp_path / "m.json", shard_nbytes=SHARD, check=True)
    assert not set(first) & set(named(tmp_path))


# Executors


class Maps:
    """An executor that has nothing but ``map``."""

    def map(self, function, tasks):
        return [function(task) for task in tasks]


class MapsToFutures:
    def map(self, function, tasks):
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            return [pool.submit(function, task) for task in tasks]


class Forgets:
    """Carries out nothing, and returns what is asked for."""

    def submit(self, function, *arguments):
        future = concurrent.futures.Future()
        future.set_result(None)
        return future


class MapsNothing:
    def map(self, function, tasks):
        return ()


class Twice:
    """Every task at the same time in two threads, as if a worker were thought dead that is alive."""

    def __init__(self) -> None:
        self.pool = concurrent.futures.ThreadPoolExecutor(2)

    def submit(self, function, *arguments):
        first, second = (self.pool.submit(function, *arguments) for _ in range(2))
        first.result()
        return second


@pytest.mark.parametrize("executor", [Maps, MapsToFutures, Twice])
def test_executors(source, tmp_path, executor):
    mzstore.convert(source, tmp_path / "m.json", shard_nbytes=SHARD, executor=executor())
    is_whole(source, tmp_path)


@pytest.mark.parametrize("executor", [Forgets, MapsNothing])
def test_executors_that_do_nothing(source, tmp_path, executor):
    with pytest.raises(mzstore.StorageError, match="archive 0 was not written, though its task has ended"):
        mzstore.convert(source, tmp_path / "m.json", shard_nbytes=SHARD, executor=executor())
    assert not (tmp_path / "m.json").exists()
    with pytest.raises(TypeError, match="neither 'submit' nor 'map'"):
        mzstore.convert(source, tmp_path / "m.json", executor=3)
    mzstore.convert(source, tmp_path / "m.json", shard_nbytes=SHARD)
    is_whole(source, tmp_path)


def test_processes(source, tmp_path):
    importance = {"layer.0.weight": np.linspace(1, 2, 300)}
    with concurrent.futures.ProcessPoolExecutor(2) as pool:
        mzstore.convert(
            source,
            tmp_path / "m.json",
            shard_nbytes=SHARD,
            executor=pool,
            recipe=mzstore.Recipe(nmse=1e-3),
            importance=importance,
        )
    with mzstore.open(tmp_path / "m.json") as model:
        assert model["layer.0.weight"].quality
    assert named(tmp_path) == archives(tmp_path)


def test_a_task_that_fails_is_the_error(source, tmp_path):
    values = TENSORS | {"layer.3.weight": TENSORS["layer.3.weight"] * np.float32(1e30)}
    safetensors.numpy.save_file(values, source / "model.safetensors")
    with (
        concurrent.futures.ProcessPoolExecutor(2) as pool,
        pytest.raises(ValueError, match=r"tensor 'layer\.3\.weight' has .* beyond float16"),
    ):
        mzstore.convert(source, tmp_path / "m.json", shard_nbytes=SHARD, executor=pool, dtype="float16")
    assert not (tmp_path / "m.json").exists()


# Processes that are killed

KILLED = """
import os, sys
import mzstore
from mzstore import split

class Dying:
    '''A sink that ends the process, as kill -9 does, when so many bytes have been written of all archives.'''
    def __init__(self, sink):
        self.sink = sink
    def __enter__(self):
        self.sink.__enter__()
        return self
    def __exit__(self, *error):
        return self.sink.__exit__(*error)
    def write(self, data):
        global left
        left -= len(data)
        if left < 0:
            os.kill(os.getpid(), 9)
        return self.sink.write(data)

left = int(sys.argv[3])
genuine = split.open_objects
def open_objects(*arguments):
    objects = genuine(*arguments)
    sink = objects.sink
    objects.sink = lambda *args: Dying(sink(*args))
    return objects
split.open_objects = open_objects
mzstore.convert(sys.argv[1], sys.argv[2], shard_nbytes=int(sys.argv[4]), threads=1)
"""


@pytest.mark.parametrize(("after", "n_whole"), [(0, 0), (350_000, 0), (1_000_000, 2)])
def test_a_process_that_is_killed(source, tmp_path, after, n_whole):
    command = [sys.executable, "-c", KILLED, source, tmp_path / "m.json", str(after), str(SHARD)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "m.json").exists()
    whole = {path: path.stat().st_ino for path in archives(tmp_path) if path.suffix == ".mz"}
    assert len(whole) == n_whole
    mzstore.convert(source, tmp_path / "m.json", shard_nbytes=SHARD)
    is_whole(source, tmp_path)
    assert {path: path.stat().st_ino for path in named(tmp_path) if path in whole} == whole


def test_an_archive_that_has_gone_is_written_again(source, tmp_path, monkeypatch):
    genuine = split.carry_out
    monkeypatch.setattr(split, "carry_out", lambda job, task: genuine(job, task) if task.number < 2 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        mzstore.convert(source, tmp_path / "m.json", shard_nbytes=SHARD)
    monkeypatch.setattr(split, "carry_out", genuine)
    first, second = (path for path in archives(tmp_path) if path.suffix == ".mz")
    first.unlink()
    second.write_bytes(second.read_bytes()[:-1])
    mzstore.convert(source, tmp_path / "m.json", shard_nbytes=SHARD)
    is_whole(source, tmp_path)


@pytest.mark.parametrize("place", ["s3fs", "obstore"], indirect=True)
def test_object_storage(source, tmp_path, place, monkeypatch):
    """Archives and manifest at a URL, and what is done already found there again."""
    options = {"shard_nbytes": SHARD, "target_options": place.options}
    genuine = split.carry_out
    monkeypatch.setattr(split, "carry_out", lambda job, task: genuine(job, task) if task.number < 2 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        mzstore.convert(source, place.url("m.json"), **options)
    done = {name for name in place.names() if name.endswith(".mz")}
    assert len(done) == 2
    monkeypatch.setattr(split, "carry_out", genuine)
    mzstore.convert(source, place.url("m.json"), check=True, **options)
    assert done < set(place.names())
    assert (
        sum(name.endswith(".mz") for name in place.names()) == len(place.names()) - 2 == 4
    )  # beside plan and manifest
    with pytest.raises(mzstore.ConflictError):
        mzstore.convert(source, place.url("m.json"), level="fast", **options)
    # And from there, where the version of an object is its ETag.
    mzstore.convert(place.url("m.json"), tmp_path / "m.json", storage_options=place.options, shard_nbytes=SHARD)
    assert mzstore.check(source, tmp_path / "m.json").ok


# Dask


@pytest.fixture(scope="module")
def cluster():
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0", silence_logs=50
        ) as found,
        distributed.Client(found) as client,
    ):
        yield client


def test_a_client_of_dask(source, tmp_path, cluster):
    mzstore.convert(source, tmp_path / "m.json", shard_nbytes=SHARD, executor=cluster, check=True)
    is_whole(source, tmp_path)


class Interrupted:
    """Tasks whose first attempt begins to write, says so, and waits: to be killed, or to be late."""

    def __init__(self, folder: Path, number: int) -> None:
        self.folder, self.number = folder, number

    def __call__(self, job, task) -> None:
        if task.number == self.number:
            try:
                (self.folder / "begun").touch(exist_ok=False)
            except FileExistsError:
                pass
            else:
                (self.folder / "pid").write_text(str(os.getpid()))
                with job.objects().sink(f"{job.folder}/half.mz") as sink:
                    sink.write(bytes(1000))
                    time.sleep(60)
        split.carry_out(job, task)


class Through:
    """A client whose tasks go through ``function``."""

    def __init__(self, client, function) -> None:
        self.client, self.function = client, function

    def submit(self, _, *arguments):
        return self.client.submit(self.function, *arguments, pure=False)


def test_a_worker_that_is_killed(source, tmp_path, cluster):
    """In the middle of an archive: the scheduler gives its task to another one, and nothing of the first attempt stays."""
    function = Interrupted(tmp_path, 1)

    def kill() -> None:
        deadline = time.monotonic() + 60
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        killed = pool.submit(kill)
        mzstore.convert(source, tmp_path / "m.json", shard_nbytes=SHARD, executor=Through(cluster, function))
        killed.result()
    is_whole(source, tmp_path)


def test_tasks_that_fail_are_tried_again(source, tmp_path, cluster):
    executor = cluster.get_executor(pure=False, retries=2)
    mzstore.convert(source, tmp_path / "m.json", shard_nbytes=SHARD, executor=FailsOnce(executor, tmp_path))
    is_whole(source, tmp_path)


class FailsOnce:
    def __init__(self, executor, folder: Path) -> None:
        self.executor, self.folder = executor, folder

    def submit(self, function, job, task):
        return self.executor.submit(fail_once, str(self.folder), job, task)


def fail_once(folder: str, job, task) -> None:
    with open(f"{folder}/failed-{task.number}", "a") as file:
        file.write(".")
    if os.path.getsize(f"{folder}/failed-{task.number}") == 1:
        raise OSError("the storage was away")
    split.carry_out(job, task)


@pytest.mark.slow
def test_the_command(source, tmp_path):
    command = [sys.executable, "-m", "mzstore", "convert", source, tmp_path / "m.json", "--shard-size", "0.5MB", "--dask", "local:2", "--check"]  # fmt: skip
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=240, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "compared with the source: 7 the same bit for bit" in done.stdout
    is_whole(source, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["m.json", "--dask", "local:x"], "local:N with a number of processes"),
        (["m.json", "--shard-size", "many"], "--shard-size 'many': a number of bytes will do"),
        (["m.mz", "--shard-size", "1GB"], "give the target a name that ends in .json"),
    ],
)
def test_options_that_are_none(source, tmp_path, arguments, problem):
    command = [sys.executable, "-m", "mzstore", "convert", str(source), str(tmp_path / arguments[0]), *arguments[1:]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert problem in done.stderr
    assert done.stderr.count("\n") == 1

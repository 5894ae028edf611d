"""A checkpoint is there as a whole or not at all, whatever happens to who saves it; and it costs what changed."""

import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import faults
import ml_dtypes
import numpy as np
import pytest
from places import S3Place

import mzstore
from mzstore.checkpoints import CheckpointStore, archives, repository, saving, staging
from mzstore.checkpoints.archives import archives_of
from mzstore.checkpoints.repository import Repository
from mzstore.errors import ConflictError, CorruptError, FormatError, StorageError
from mzstore.storage import Retry

KILLS = int(os.environ.get("MZSTORE_KILLS", "60"))  # 200 take some ten minutes
SHORT = Retry(timeout=5, attempts=4, backoff=0.01)
RNG = np.random.default_rng(7)
RULE = '[[rule]]\nname = ["model.*"]\nbits = 4\n'
FROZEN = RNG.standard_normal((64, 128)).astype(np.float32)


def state_at(step: int) -> dict[str, Any]:
    """Weights that move a little, some that never do, and what is not a tensor."""
    rng = np.random.default_rng(3)
    weights = rng.standard_normal((64, 64)).astype(np.float32)
    for _ in range(step):
        weights += 1e-4 * rng.standard_normal((64, 64)).astype(np.float32)
    return {"model": {"w": weights, "frozen": FROZEN, "b": np.float32(step)}, "step": step, "rng": [(1, None), b"\0"]}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    return type(a) is type(b) and a == b


def s3(request, kind: str) -> S3Place:
    proxy = request.getfixturevalue("s3_proxy")
    proxy.forget()
    request.addfinalizer(proxy.mend)
    return S3Place(proxy, uuid.uuid4().hex, "s3" if kind == "s3fs" else "s3a", request.getfixturevalue("s3_server"))


def at(place: S3Place, **options: Any) -> CheckpointStore:
    return CheckpointStore(place.url("run"), storage_options=place.options, retry=SHORT, threads=1, **options)


@pytest.fixture(params=["s3fs", "obstore"])
def place(request) -> S3Place:
    return s3(request, request.param)


@pytest.fixture(params=["local", "memory", "s3fs", "obstore"])
def opened(request, tmp_path):
    """What opens a store, each time the same place."""
    if request.param in ("s3fs", "obstore"):
        place = s3(request, request.param)
        return lambda **options: at(place, **options)
    url = tmp_path / "run" if request.param == "local" else f"memory://{uuid.uuid4().hex}/run"
    return lambda **options: CheckpointStore(url, threads=1, **options)


def files(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


# Saving and loading


def test_states_come_back(opened):
    with opened() as store:
        for step in (3, 20, 100):
            made = store.save(step, state_at(step), {"loss": 1 / step})
            assert (made.step, made.metrics) == (step, {"loss": 1 / step})
        assert store.steps() == [3, 20, 100]
    with opened(best="loss", mode="max") as store:
        assert same(store.load(), state_at(100))
        assert same(store.load(20), state_at(20))
        assert same(store.load("best"), state_at(3))
        assert list(store.load(names="*.w")) == ["model.w"]
        assert all(report.ok for report in store.verify().values())
        with pytest.raises(LookupError, match="no checkpoint 4"):
            store.load(4)


def test_a_store_without_checkpoints(opened):
    with opened(best="loss") as store:
        assert store.steps() == []
        assert store.prune() == []
        assert store.gc().keys == ()
        for step in ("latest", "best", 0):
            with pytest.raises(LookupError, match="there is none"):
                store.load(step)


def test_what_is_there_is_filled(tmp_path):
    with CheckpointStore(tmp_path) as store:
        store.save(1, state_at(1))
        out = state_at(5)
        weights = out["model"]["w"]
        loaded = store.load(out=out)
        assert loaded["model"]["w"] is weights
        assert np.array_equal(weights, state_at(1)["model"]["w"])
        other = np.zeros((64, 64), np.float32)
        store.load(names="model.w", out={"model.w": other})
        assert np.array_equal(other, weights)
        with pytest.raises(KeyError, match=r"model\.w"):
            store.load(out={"model": {"frozen": FROZEN.copy()}})
        with pytest.raises(ValueError, match=r"model\.w"):
            store.load(names="model.w", out={"model.w": np.zeros(3)})


def test_a_checkpoint_is_one_model(tmp_path):
    with CheckpointStore(tmp_path) as store:
        store.save(1, state_at(1))
        store.save(2, state_at(2))
        with mzstore.open(store.location(2)) as model:
            assert np.array_equal(model["model.w"][:], state_at(2)["model"]["w"])


def test_neither_the_hint_nor_an_old_listing_is_needed(tmp_path, monkeypatch):
    with CheckpointStore(tmp_path) as store:
        store.save(1, state_at(1))
        store.save(2, state_at(2))
        (tmp_path / "latest.json").unlink()
        assert same(store.load(), state_at(2))
        (tmp_path / "latest.json").write_bytes(b"\xff{")
        assert same(store.load(), state_at(2))
        store.save(3, state_at(3))
        monkeypatch.setattr(Repository, "steps", lambda _: [1])
        assert same(store.load(), state_at(3))
        assert same(store.load(2), state_at(2))


@pytest.mark.parametrize("step", [-1, 2**63, "1", 1.0, True, None])
def test_steps_are_integers(tmp_path, step):
    with CheckpointStore(tmp_path) as store, pytest.raises(ValueError, match="step"):
        store.save(step, {})


def test_metrics_are_numbers(tmp_path):
    with CheckpointStore(tmp_path) as store:
        with pytest.raises(TypeError, match="loss"):
            store.save(1, {}, {"loss": "low"})
        made = store.save(1, {}, {"loss": float("nan"), "n": 3, "x": np.float32(0.5)})
        assert made.metrics["n"] == 3
        assert store.checkpoint().metrics["loss"] != made.metrics["n"]


# What changed


def test_equal_tensors_are_stored_once(opened):
    state = {"a": FROZEN, "n": 0}
    with opened() as store:
        first = store.save(1, state)
        assert store.save(2, state | {"n": 1}).new_nbytes == 0
    with opened() as store:  # nothing is in memory
        assert store.save(3, {"other": {"name": FROZEN}}).new_nbytes == 0
        assert store.checkpoint(3).stored_nbytes == first.new_nbytes
        store.delete(1)
        store.delete(2)
        store.gc(0)
        assert same(store.load(), {"other": {"name": FROZEN}})


def test_equal_tensors_of_another_dtype_or_shape_are_others(tmp_path):
    with CheckpointStore(tmp_path) as store:
        store.save(1, {"a": np.zeros((2, 3), np.float32)})
        state = {"a": np.zeros((3, 2), np.float32), "b": np.zeros((2, 3), np.int32)}
        store.save(2, state)
        assert same(store.load(), state)


@pytest.mark.parametrize("chain", [0, 1, 3])
def test_changes_are_smaller_and_their_chains_are_bounded(opened, chain):
    with opened(chain=chain) as store:
        made = [store.save(step, state_at(step)) for step in range(8)]
        depths = []
        for step in range(8):
            manifest = store._repository.manifest(step)
            depths.append(max(archive.depth for archive in archives_of(manifest)))
            assert same(store.load(step), state_at(step))
    assert max(depths) == chain
    if chain:
        assert made[1].new_nbytes < 0.75 * made[0].new_nbytes
        frozen = made[1 + chain].new_nbytes
        assert frozen > made[1].new_nbytes, "after a whole chain the next one is stored whole"


def test_chains_go_on_after_a_restart(opened):
    made = []
    for step in range(5):
        with opened(chain=3) as store:
            made.append(store.save(step, state_at(step)).new_nbytes)
            assert same(store.load(step), state_at(step))
    with opened() as store:
        depths = [max(archive.depth for archive in archives_of(store._repository.manifest(step))) for step in range(5)]
        assert all(report.ok for report in store.verify().values())
    assert depths == [0, 1, 2, 3, 0]
    assert max(made[1:4]) < 0.75 * made[0]


def test_without_memory_for_the_values_before_they_are_read_back(tmp_path):
    nbytes = sum(value.nbytes for value in state_at(0)["model"].values())
    with CheckpointStore(tmp_path, memory=nbytes) as store:
        made = [store.save(step, state_at(step)).new_nbytes for step in range(3)]
        assert max(made[1:]) < 0.75 * made[0]
        assert same(store.load(), state_at(2))


def test_values_that_cannot_be_read_back_are_said_and_no_failure(tmp_path):
    with CheckpointStore(tmp_path) as store:
        store.save(1, state_at(1))
        (archive,) = (tmp_path / "data").rglob("*.mz")
    data = bytearray(archive.read_bytes())
    data[100:-2000] = bytes(len(data) - 2100)
    archive.write_bytes(data)
    with CheckpointStore(tmp_path) as store:
        with pytest.warns(RuntimeWarning, match="the values of checkpoint 1 cannot be read; tensors are stored whole"):
            store.save(2, state_at(2))
        assert np.array_equal(store.load(names="model.w")["model.w"], state_at(2)["model"]["w"])


def test_chains_survive_that_what_they_began_with_is_deleted(opened):
    with opened(chain=3, keep=1) as store:
        for step in range(7):
            store.save(step, state_at(step))
            store.gc(0)
            assert store.steps() == [step]
            assert same(store.load(), state_at(step))
        assert all(report.ok for report in store.verify().values())


def test_a_store_can_be_moved(tmp_path):
    with CheckpointStore(tmp_path / "a") as store:
        for step in range(3):
            store.save(step, state_at(step))
    (tmp_path / "a").rename(tmp_path / "b")
    with CheckpointStore(tmp_path / "b") as store:
        assert same(store.load(), state_at(2))


def test_a_base_is_not_copied(tmp_path):
    mzstore.save(tmp_path / "base.mz", {"w": FROZEN})
    with CheckpointStore(tmp_path / "run", base=tmp_path / "base.mz") as store:
        made = store.save(1, {"model": {"w": FROZEN}})
        assert made.new_nbytes < FROZEN.nbytes / 4
        assert same(store.load(), {"model": {"w": FROZEN}})


def test_what_is_fine_tuned_is_stored_as_a_change_of_the_base(tmp_path):
    """Whatever the state has in front of the name; a tensor of another shape has nothing to do with it."""
    rng = np.random.default_rng(8)
    tuned = FROZEN + 1e-5 * rng.standard_normal(FROZEN.shape).astype(np.float32)
    state = {
        "model": {"layer.w": tuned, "layer.v": tuned.T.copy()},
        "optimizer": {"w": rng.random((64, 128), np.float32)},
    }
    mzstore.save(tmp_path / "base.mz", {"layer.w": FROZEN, "layer.v": FROZEN})
    with CheckpointStore(tmp_path / "run", base=tmp_path / "base.mz") as store:
        store.save(1, state)
        assert same(store.load(), state)
        with mzstore.open(store.location()) as model:
            assert model["model.layer.w"].stored_nbytes < 0.7 * tuned.nbytes < model["model.layer.v"].stored_nbytes


def test_an_archive_has_no_more_bases_than_may_be(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_BASES", 0)
    with CheckpointStore(tmp_path) as store:
        for step in range(2):
            store.save(step, state_at(step))
            assert same(store.load(), state_at(step))
        assert not any(archive.bases for archive in store._repository.manifest(1).archives)


@pytest.mark.parametrize("threads", [1, 3])
def test_states_are_copied_in_pieces(tmp_path, monkeypatch, threads):
    monkeypatch.setattr(staging, "PIECE_NBYTES", 1000)
    state = state_at(2) | {"empty": np.empty((0, 3)), "turned": FROZEN.T}
    with CheckpointStore(tmp_path, threads=threads) as store:
        for step in range(3):
            store.save(step, state)
            assert same(store.load(), state)


def test_weights_may_be_lossy_and_all_else_stays_exact(tmp_path):
    recipe = mzstore.Recipe.parse(RULE)
    weights = RNG.standard_normal((256, 256)).astype(np.float32)
    state = {"model": {"w": weights}, "optimizer": {"w": weights + 1}}
    with CheckpointStore(tmp_path, recipe=recipe) as store:
        store.save(1, state)
        assert store.save(2, state).new_nbytes == 0
    with CheckpointStore(tmp_path, recipe=recipe) as store:
        assert store.save(3, state).new_nbytes == 0, "nor after a restart"
        loaded = store.load()
    with CheckpointStore(tmp_path, recipe=mzstore.Recipe.parse(RULE.replace("4", "6"))) as store:
        assert store.save(4, state).new_nbytes > 0, "another rule makes something else of it"
    assert not np.array_equal(loaded["model"]["w"], weights)
    assert np.allclose(loaded["model"]["w"], weights, atol=0.5)
    assert np.array_equal(loaded["optimizer"]["w"], weights + 1)


def test_what_depends_on_other_tensors_is_not_taken_for_the_same(tmp_path):
    recipe = mzstore.Recipe(sparsity=0.5, scope="global")
    a, b = (RNG.standard_normal((256, 256)).astype(np.float32) for _ in range(2))
    with CheckpointStore(tmp_path, recipe=recipe) as store:
        store.save(1, {"a": a, "b": b})
        store.save(2, {"a": a, "b": 100 * b})
        assert np.count_nonzero(store.load(2)["a"]) < np.count_nonzero(store.load(1)["a"]) / 4


def test_what_is_saved_in_several_archives(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "ARCHIVE_NBYTES", 20_000)
    with CheckpointStore(tmp_path) as store:
        for step in range(3):
            store.save(step, state_at(step))
            assert same(store.load(), state_at(step))
        assert len(store._repository.manifest(2).archives) > 3


# In the background


def test_a_state_may_change_while_it_is_saved(tmp_path, monkeypatch):
    go = threading.Event()
    whole = saving.save
    monkeypatch.setattr(saving, "save", lambda *each: (go.wait(30), whole(*each))[1])
    with CheckpointStore(tmp_path) as store:
        state = state_at(1)
        handle = store.save_async(1, state)
        state["model"]["w"][:] = 0
        assert not handle.done()
        go.set()
        assert handle.result(60).step == 1
        assert handle.exception() is None
        assert same(store.load(), state_at(1))


def failing(*_: object) -> None:
    raise StorageError("no more room")


def test_errors_surface_where_one_asks(tmp_path, monkeypatch):
    with CheckpointStore(tmp_path) as store:
        with monkeypatch.context() as patch:
            patch.setattr(saving, "save", failing)
            handle = store.save_async(1, state_at(1))
            assert isinstance(handle.exception(60), StorageError)
            with pytest.raises(StorageError, match="no more room"):
                handle.result()
        store.save(2, state_at(2))  # somebody knows it
        assert store.steps() == [2]


def test_errors_that_nobody_asks_for_surface_with_the_next_call(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(saving, "save", failing)
        handle = store.save_async(1, state_at(1))
        while not handle.done():
            time.sleep(0.01)
        with pytest.raises(StorageError, match="no more room"):
            store.save_async(2, state_at(2))
        store.save_async(3, state_at(3))
        with pytest.raises(StorageError, match="no more room"):
            store.close()
    with pytest.raises(ValueError, match="closed"):
        store.save(4, {})


def test_memory_has_a_budget(tmp_path, monkeypatch):
    nbytes = 64 * 64 * 4
    go = threading.Event()
    whole = saving.save
    monkeypatch.setattr(saving, "save", lambda *each: (go.wait(30), whole(*each))[1])
    with CheckpointStore(tmp_path, memory=2 * nbytes) as store:
        with pytest.raises(MemoryError, match="memory="):
            store.save_async(0, {"w": np.zeros(2 * nbytes + 1, np.uint8)})
        state = {"w": np.zeros(nbytes, np.uint8)}
        store.save_async(1, state)
        store.save_async(2, state)
        with pytest.raises(MemoryError, match="under way"):
            store.save_async(3, state, wait=False)
        waiting = threading.Thread(target=store.save_async, args=(4, state))
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive(), "the third one waits for the first"
        go.set()
        waiting.join(30)
        store.wait()
        assert store.steps() == [1, 2, 4]
        assert store._held <= 2 * nbytes


def test_without_a_budget_one_is_saved_at_a_time(tmp_path, monkeypatch):
    go = threading.Event()
    whole = saving.save
    monkeypatch.setattr(saving, "save", lambda *each: (go.wait(30), whole(*each))[1])
    with CheckpointStore(tmp_path) as store:
        store.save_async(1, {"w": np.zeros(3)})
        with pytest.raises(MemoryError):
            store.save_async(2, {"w": np.zeros(3)}, wait=False)
        go.set()
        store.save(2, {"w": np.zeros(3)})


def test_several_threads_save_to_one_store(tmp_path):
    with CheckpointStore(tmp_path, memory=3 * 64 * 64 * 4 + 3 * FROZEN.nbytes) as store:
        threads = [threading.Thread(target=store.save_async, args=(step, state_at(step))) for step in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        store.wait()
        for step in range(12):
            assert same(store.load(step), state_at(step))


def test_what_is_held_is_counted_by_what_it_takes(tmp_path):
    with CheckpointStore(tmp_path) as store:
        for step in range(3):
            store.save(step, {"w": np.zeros(1000, ml_dtypes.int4)})
        assert store._held == 500
    assert store._held == 0


def test_a_state_that_no_reader_would_take_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(repository, "MAX_NBYTES", 1000)
    with CheckpointStore(tmp_path) as store:
        with pytest.raises(ValueError, match="without its tensors"):
            store.save(1, {"w": FROZEN, "x": list(range(1000))})
        assert files(tmp_path) == set()


# Who is first


def test_a_step_is_saved_once(opened):
    with opened() as store:
        store.save(1, state_at(1))
        with pytest.raises(ConflictError, match="checkpoint 1 exists already"):
            store.save(1, state_at(2))
        assert same(store.load(1), state_at(1))


def test_of_two_that_save_one_step_one_wins(opened, monkeypatch):
    barrier = threading.Barrier(2)
    whole = Repository.commit
    monkeypatch.setattr(Repository, "commit", lambda *each: (barrier.wait(30), whole(*each))[1])
    results: dict[int, Any] = {}

    def save(who: int) -> None:
        with opened() as store:
            handle = store.save_async(5, state_at(who))
            results[who] = handle.exception() or handle.result()

    threads = [threading.Thread(target=save, args=(who,)) for who in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (loser,) = (who for who in results if isinstance(results[who], ConflictError))
    winner = 3 - loser
    with opened() as store:
        assert store.checkpoint(5).save_id == results[winner].save_id
        assert same(store.load(5), state_at(winner))
        assert all(report.ok for report in store.verify().values())
        archives = set(store._repository.listing("data"))
        assert archives == {f"data/{results[winner].save_id}/0-0.mz"}, "the loser has cleaned up"


@pytest.mark.parametrize("times", [1, None])
def test_a_lost_answer_to_the_manifest_is_no_failure(place, times):
    with at(place) as store:
        store.save(1, state_at(1))
        rule = place.proxy.fail(faults.lost, method="PUT", key=r"manifests/2\.json", times=times)
        store.save(2, state_at(2))
        assert rule.met >= 1
        place.proxy.mend()
        assert same(store.load(), state_at(2))


def test_a_manifest_that_is_never_answered_is_written_again(request):
    place = s3(request, "s3fs")
    with CheckpointStore(
        place.url("run"), storage_options=place.options, retry=Retry(timeout=0.5, attempts=4, backoff=0.01)
    ) as store:
        rule = place.proxy.fail(faults.stall_before, method="PUT", key=r"manifests/1\.json", times=1)
        store.save(1, {"n": 1})
        assert rule.met == 1
        assert store.load() == {"n": 1}


@pytest.mark.parametrize("number", [403, 409, 412, 503])
def test_a_manifest_that_cannot_be_written_makes_no_checkpoint(place, number):
    with at(place) as store:
        store.save(1, state_at(1))
        place.proxy.fail(faults.status(number), method="PUT", key=r"manifests/2\.json")
        with pytest.raises(StorageError):
            store.save(2, state_at(2))
        place.proxy.mend()
        assert store.steps() == [1]
        assert same(store.load(), state_at(1))
        store.save(2, state_at(2))
        assert same(store.load(), state_at(2))


def test_where_nobody_knows_whether_it_was_written_nothing_is_removed(place):
    """The manifest is there, and neither the answer nor anything after it comes through."""
    with at(place) as store:
        place.proxy.fail(faults.lost, method="PUT", key=r"manifests/1\.json")
        place.proxy.fail(faults.status(503), method="GET", key=r"manifests/1\.json", skip=1)
        with pytest.raises(StorageError):
            store.save(1, state_at(1))
        place.proxy.mend()
        assert same(store.load(), state_at(1))
        assert all(report.ok for report in store.verify().values())


def test_an_archive_that_cannot_be_written_leaves_nothing(place):
    with at(place) as store:
        place.proxy.fail(faults.status(403), method="PUT", key="data/")
        with pytest.raises(StorageError):
            store.save(1, state_at(1))
        place.proxy.mend()
        assert store.steps() == []
        assert store._repository.listing("data") == {}


def test_a_hint_that_cannot_be_written_is_said_and_no_failure(place):
    with at(place) as store:
        place.proxy.fail(faults.status(403), method="PUT", key=r"latest\.json")
        with pytest.warns(RuntimeWarning, match="the hint"):
            store.save(1, state_at(1))
        place.proxy.mend()
        assert same(store.load(), state_at(1))


def test_a_save_that_takes_too_long_makes_no_checkpoint(tmp_path, monkeypatch):
    whole = archives.write
    monkeypatch.setattr(archives, "write", lambda *a, **k: (whole(*a, **k), time.sleep(0.3)))
    with CheckpointStore(tmp_path, grace=0.2) as store:
        with pytest.raises(StorageError, match="grace period"):
            store.save(1, state_at(1))
        assert store.steps() == []


def test_a_save_that_loses_what_it_refers_to_makes_no_checkpoint(tmp_path, monkeypatch):
    with CheckpointStore(tmp_path) as store:
        store.save(1, state_at(1))
        (first,) = store._repository.listing("data")
        whole = archives.write

        def lose(*each: Any, **options: Any) -> None:
            whole(*each, **options)
            (tmp_path / first).unlink()

        monkeypatch.setattr(archives, "write", lose)
        with pytest.raises(StorageError, match="was it removed meanwhile"):
            store.save(2, state_at(2))
        assert store.steps() == [1]


# Garbage


def test_what_is_deleted_stays_for_those_who_read_it(opened):
    with opened() as store:
        store.save(1, state_at(1))
        store.save(2, {"n": 2})
        with mzstore.open(store.location(1), storage_options=store._repository.options) as model:
            store.delete(1)
            assert store.gc().keys == ()
            assert np.array_equal(model["model.w"][:], state_at(1)["model"]["w"])
        with pytest.raises(LookupError):
            store.load(1)
        assert store.gc(0, dry_run=True).nbytes > 0
        assert len(store.gc(0).keys) == 2
        assert store._repository.listing("data") == {}
        assert store._repository.listing("deleted") == {}
        assert store.load() == {"n": 2}


def test_a_save_that_is_under_way_is_left_alone(opened, monkeypatch):
    whole = Repository.commit
    with opened() as collector, opened() as store:

        def commit(*each: Any) -> None:
            assert collector.gc().keys == ()
            whole(*each)

        monkeypatch.setattr(Repository, "commit", commit)
        for step in range(3):
            store.save(step, state_at(step))
            if step:
                collector.delete(step - 1)
        assert all(report.ok for report in store.verify().values())


def test_garbage_is_what_no_manifest_names(tmp_path):
    with CheckpointStore(tmp_path) as store:
        store.save(1, state_at(1))
        before = files(tmp_path)
        for stray in ("data/aaaaaaaaaa/0-0.mz", "data/aaaaaaaaaa/.0-1.mz.1234.tmp", "manifests/.2.json.1234.tmp"):
            (tmp_path / stray).parent.mkdir(exist_ok=True)
            (tmp_path / stray).write_bytes(b"x")
        assert store.gc().keys == ()
        for path in tmp_path.rglob("*"):
            os.utime(path, (time.time() - 7200,) * 2)
        assert len(store.gc().keys) == 3
        assert files(tmp_path) == before
        assert not (tmp_path / "data/aaaaaaaaaa").exists()


def abandoned(place: S3Place, name: str) -> None:
    """An upload with one part, as a process that was killed leaves it."""
    where = {"Key": f"{place.prefix}/{name}"}
    upload = where | {"UploadId": place._call("create_multipart_upload", **where)["UploadId"]}
    place._call("upload_part", **upload, PartNumber=1, Body=b"x" * 100)


def test_uploads_that_nobody_finished_are_removed(request):
    place = s3(request, "s3fs")
    with at(place) as store:
        store.save(1, state_at(1))
        for name in ("run/data/aaaaaaaaaa/0-0.mz", "run/data/aaaaaaaaaa/0-1.mz", "runner/data/bbbbbbbbbb/0-0.mz"):
            abandoned(place, name)
        assert store.gc().uploads == ()
        assert len(place.uploads()) == 3
        gone = ("data/aaaaaaaaaa/0-0.mz", "data/aaaaaaaaaa/0-1.mz")
        assert store.gc(0, dry_run=True).uploads == gone
        assert len(place.uploads()) == 3
        assert store.gc(0).uploads == gone
        assert place.uploads() == ["runner/data/bbbbbbbbbb/0-0.mz"]
        assert store.gc(0).uploads == ()
        assert all(report.ok for report in store.verify().values())


def test_many_uploads_are_listed_in_pages(request):
    place = s3(request, "s3fs")
    keys = [f"{place.prefix}/run/data/aaaaaaaaaa/0-{number}.mz" for number in range(3)]

    def page(exchange, proxy):
        number = (
            keys.index(unquote(found[1])) + 1
            if (found := re.search("key-marker=([^&]+)", exchange.request.query))
            else 0
        )
        more = number + 1 < len(keys)
        text = (
            f"<ListMultipartUploadsResult><IsTruncated>{str(more).lower()}</IsTruncated>"
            f"<Upload><Key>{keys[number]}</Key><UploadId>u{number}</UploadId><Initiated>2020-01-01T00:00:00.000Z</Initiated></Upload>"
            + (
                f"<NextKeyMarker>{keys[number]}</NextKeyMarker><NextUploadIdMarker>u{number}</NextUploadIdMarker>"
                if more
                else ""
            )
            + "</ListMultipartUploadsResult>"
        )
        exchange.send(faults.Answer(200, (("Content-Type", "application/xml"),)).with_body(text.encode()))

    place.proxy.fail(page, key=r"\?uploads")
    with at(place) as store:
        assert store.gc(0).uploads == tuple(f"data/aaaaaaaaaa/0-{number}.mz" for number in range(3))
    assert len(place.requests(method="DELETE", name="run/data")) == 3, "uploads that are gone are no error"


def test_uploads_that_cannot_be_looked_for_are_said(request):
    with at(s3(request, "obstore")) as store:
        store.save(1, state_at(1))
        assert "lifecycle rule" in store.gc().unlisted
    place = s3(request, "s3fs")
    with at(place) as store:
        store.save(1, state_at(1))
        store.delete(1)
        place.proxy.fail(faults.status(403), key=r"\?uploads")
        found = store.gc(0)
        assert "AccessDenied" in found.unlisted
        assert found.uploads == ()
        assert store._repository.listing("data") == {}, "all else is removed"


def test_a_listing_that_is_behind_loses_nothing(opened, monkeypatch):
    with opened() as store:
        for step in range(3):
            store.save(step, state_at(step))
        whole = Repository.listing
        with monkeypatch.context() as patch:
            patch.setattr(
                Repository, "listing", lambda self, prefix: {} if prefix == "manifests" else whole(self, prefix)
            )
            assert store.gc().keys == ()
        assert all(report.ok for report in store.verify().values())


def test_no_clock_of_ours_matters(tmp_path, monkeypatch):
    with CheckpointStore(tmp_path, keep=2) as store:
        for step, now in enumerate((4e9, 0.0, 2e9)):
            monkeypatch.setattr(time, "time", lambda now=now: now)
            store.save(step, state_at(step))
            assert store.gc().keys == ()
        assert store.steps() == [1, 2]
        assert store.checkpoint().step == 2
        assert all(report.ok for report in store.verify().values())


def test_a_manifest_that_cannot_be_read_stops_the_collection(tmp_path):
    with CheckpointStore(tmp_path) as store:
        store.save(1, state_at(1))
        (tmp_path / "manifests/2.json").write_bytes(b"{")
        before = files(tmp_path)
        with pytest.raises(FormatError):
            store.gc(0)
        assert files(tmp_path) == before


def test_no_manifest_leads_out_of_the_store(tmp_path):
    with CheckpointStore(tmp_path / "run") as store:
        store.save(1, state_at(1))
        path = tmp_path / "run/manifests/1.json"
        text = re.sub(r',"digest":"[0-9a-f]{64}"}$', "}", path.read_text())
        for other in ("../../data/x.mz", "../latest.json", "x.mz"):
            path.write_text(
                text.replace("../data/", f"{other}/../data/")
                if other == "x"
                else text.replace(text[text.index("../data/") : text.index(".mz") + 3], other)
            )
            with pytest.raises(FormatError):
                store.gc(0)


def test_retention_follows_each_save(opened):
    with opened(keep=2, every=4, best="loss") as store:
        for step in range(1, 8):
            store.save(step, state_at(step), {"loss": abs(step - 3)})
        assert store.steps() == [3, 4, 6, 7]
        assert store.prune(dry_run=True) == []
        assert all(report.ok for report in store.verify().values())


# Damage and death


def test_damage_is_found(tmp_path):
    with CheckpointStore(tmp_path) as store:
        store.save(1, state_at(1))
        store.save(2, state_at(2))
        manifest = store._repository.manifest(2)
        path = tmp_path / "manifests" / manifest.archives[-1].path
        data = bytearray(path.read_bytes())
        data[len(data) // 3] ^= 1
        path.write_bytes(data)
        reports = store.verify()
        assert reports[1].ok
        assert not reports[2].ok
        path.write_bytes(data[:-1])
        with pytest.raises((CorruptError, FormatError)):
            store.load(2)
        assert same(store.load(1), state_at(1))


def test_what_checkpoints_share_is_checked_once(place):
    with at(place, chain=0) as store:
        store.save(1, state_at(1))
        (shared,) = store._repository.listing("data")
        for step in (2, 3, 4):
            store.save(step, {"model": {"frozen": FROZEN}, "step": step})
        place.proxy.forget()
        one = store.verify(1)[1]
        asked = len(place.requests(f"run/{shared}"))
        place.proxy.forget()
        assert store.verify()[1] == one
        assert len(place.requests(f"run/{shared}")) == asked
        place.remove(f"run/{shared}")
        assert all(report.problems[0].kind == "missing" for report in store.verify().values())


SAVE = """
import sys
sys.path.insert(0, {tests!r})
from test_checkpoints import state_at
from mzstore.checkpoints import CheckpointStore
with CheckpointStore({root!r}, storage_options={options!r}, threads=1, keep=4, every=50, grace=60) as store:
    start = max(store.steps(), default=-1) + 1
    print("ready", flush=True)
    for step in range(start, start + 10_000):
        store.save_async(step, state_at(step % 7))
"""


def killed(root: str, options: dict[str, Any] | None, seconds: float) -> None:
    """A process that saves, killed so many seconds after it began."""
    code = SAVE.format(tests=str(Path(__file__).parent), root=root, options=options)
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=Path(__file__).parents[1]
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)


def check_after_death(root: str, options: dict[str, Any] | None) -> int:
    with CheckpointStore(root, storage_options=options) as store:
        steps = store.steps()
        for step, report in store.verify(threads=1).items():
            assert report.ok, report.problems
            assert same(store.load(step), state_at(step % 7))
        assert len(steps) >= min(4, max(steps, default=0)), "none of those that were kept is gone"
        return max(steps, default=-1)


def deaths(root: str, count: int, options: dict[str, Any] | None = None) -> None:
    chance = random.Random(count)
    last = -1
    for _ in range(count):
        killed(root, options, chance.uniform(0, 0.3))
        now = check_after_death(root, options)
        assert now >= last
        last = now
    assert last > 0


def test_a_killed_process_leaves_whole_checkpoints(tmp_path):
    deaths(str(tmp_path / "run"), 3)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_many_killed_processes_leave_whole_checkpoints(tmp_path):
    deaths(str(tmp_path / "run"), KILLS)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_processes_leave_whole_checkpoints_on_object_storage(request):
    place = s3(request, "s3fs")
    deaths(place.url("run"), 20, place.options)


def test_a_full_disk_leaves_the_checkpoints_before(small_disk):
    with CheckpointStore(small_disk) as store:
        store.save(1, state_at(1))
        with pytest.raises(StorageError, match="No space left on device"):
            store.save(2, {"w": RNG.standard_normal((1100, 1100))})
        assert len(files(small_disk / "data")) == 1
        (small_disk / "filler").write_bytes(bytes(os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize))
        with pytest.raises(StorageError, match="No space left on device"):
            store.save(3, {"n": 3})  # a manifest, and nothing else
        (small_disk / "filler").unlink()
        assert store.steps() == [1]
        store.save(4, state_at(4))
        assert same(store.load(1), state_at(1))
        assert same(store.load(4), state_at(4))


def test_files_that_may_not_become_large_leave_the_checkpoints_before(tmp_path):
    """A limit on the size of files, which fails in the same place."""
    with CheckpointStore(tmp_path) as store:
        store.save(1, state_at(1))
    code = (
        "import resource, signal, sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_checkpoints import state_at\n"
        "from mzstore.checkpoints import CheckpointStore\n"
        "from mzstore import StorageError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        f"with CheckpointStore({str(tmp_path)!r}, chain=0) as store:\n"
        "    try:\n"
        "        store.save(2, state_at(2))\n"
        "    except StorageError as error:\n"
        "        print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True, cwd=Path(__file__).parents[1])  # fmt: skip
    assert "File too large" in done.stdout
    with CheckpointStore(tmp_path) as store:
        assert store.steps() == [1]
        assert same(store.load(), state_at(1))
        assert len(files(tmp_path / "data")) == 1

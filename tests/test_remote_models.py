"""Models in remote storage: what is read is right or an error, by few requests and no listing, whatever fails."""

import contextlib
import io
import itertools
import multiprocessing
import os
import pickle
import re
import signal
import threading
import time
import uuid

import faults
import fsspec
import numpy as np
import pytest
import safetensors.numpy
from faults import ObjectServer
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from samples import bits, saved, small_model, weights

import mzstore
from mzstore import Retry, container, plan
from mzstore import archive as archives
from mzstore import model as models
from mzstore.archive import ArchiveWriter
from mzstore.container import open_reader
from mzstore.extents import Request
from mzstore.formats.files import PlainTensor

INDEX = "model.safetensors.index.json"
PATIENT = Retry(timeout=20, attempts=4, backoff=0.001)
TENSORS = {
    "big": weights((1024, 2048), 1, "bfloat16"),
    "noise": np.random.default_rng(2).integers(0, 256, 1 << 20, dtype=np.uint8),
    **small_model(3),
    "odd": weights((3, 250, 301), 4),
}
OTHERS = {name: np.roll(tensor, 1) for name, tensor in TENSORS.items()}  # of the same names, shapes and dtypes
ASSETS = {"config.json": b"{}", "vocabulary": os.urandom(200_000)}


@pytest.fixture(scope="module")
def archive() -> bytes:
    return saved(TENSORS, assets=ASSETS, level="fast")


@pytest.fixture(scope="module")
def other_archive() -> bytes:
    return saved(OTHERS, assets=ASSETS, level="fast")


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> dict[str, bytes]:
    """The objects of the same model as a tree, by key."""
    root = tmp_path_factory.mktemp("tree") / "model.zarr"
    mzstore.save(root, TENSORS, assets=ASSETS, level="fast")
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def small_requests(monkeypatch):
    """Many requests for a small model."""
    monkeypatch.setattr(plan, "REQUEST_NBYTES", 256 << 10)


@pytest.fixture
def open_archive(place, archive, small_requests):
    place.put("model.mz", archive)

    def opened(retry: Retry = PATIENT) -> mzstore.Model:
        return mzstore.open(place.url("model.mz"), storage_options=place.options, retry=retry)

    return opened


@pytest.fixture
def open_tree(place, tree):
    place.put_all({f"model.zarr/{key}": data for key, data in tree.items()})

    def opened(retry: Retry = PATIENT) -> mzstore.Model:
        return mzstore.open(place.url("model.zarr"), storage_options=place.options, retry=retry)

    return opened


def assert_right(loaded, tensors=TENSORS):
    assert list(loaded) == list(tensors)
    for name, tensor in tensors.items():
        assert bits(loaded[name]) == bits(tensor), name


def by_range(requests) -> dict[str, int]:
    """How often each range was asked for."""
    counts: dict[str, int] = {}
    for request in requests:
        counts[f"{request.key} {request.range}"] = counts.get(f"{request.key} {request.range}", 0) + 1
    return counts


# Without faults


def test_an_archive(place, open_archive, archive):
    with open_archive() as model:
        assert [(r.method, r.span) for r in place.requests()] == [("GET", None)]
        place.proxy.forget()
        assert_right(model.load(threads=4))
        asked = sorted(request.span for request in place.requests(method="GET"))
        assert len(asked) == len(place.proxy.requests()) > 5
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(asked)), "no byte is asked for twice"
        assert sum(stop - start for start, stop in asked) < len(archive)
        assert dict(model.assets) == ASSETS


def test_a_tree(place, open_tree):
    with open_tree() as model:
        assert len(place.requests()) == 1
        assert_right(model.load(threads=4))
        assert set(by_range(place.requests(method="GET")).values()) == {1}
        (last,) = [request for request in place.requests() if request.method != "GET"]
        assert (last.method, last.key.rpartition("/")[2]) == ("HEAD", "zarr.json"), "whether it is the same tree"
        assert bits(model["odd"][1, 5:9, ::3]) == bits(TENSORS["odd"][1, 5:9, ::3])
        assert dict(model.assets) == ASSETS
    assert place.listings() == []


def test_slices_read_what_they_need(place, open_archive):
    with open_archive() as model:
        place.proxy.forget()
        for index in (np.s_[0, 0], np.s_[-1], np.s_[5:9, ::-7], np.s_[..., 3]):
            assert bits(model["big"][index]) == bits(TENSORS["big"][index])
        place.proxy.forget()
        row = model.load({"big": np.s_[:10, :10]})["big"]
        assert bits(row) == bits(TENSORS["big"][:10, :10])
        assert sum(r.span[1] - r.span[0] for r in place.requests()) <= model["big"].stored_nbytes / 2
        shards = [model["noise"].shard(0, i, 3) for i in range(3)]
        assert bits(np.concatenate(shards)) == bits(TENSORS["noise"])


def test_a_copy_by_pickle(place, open_archive):
    with open_archive() as model, pickle.loads(pickle.dumps(model)) as copy:
        assert bits(copy["odd"][1]) == bits(TENSORS["odd"][1])


@pytest.mark.parametrize("place", ["http", "s3fs"], indirect=True)
def test_a_forked_process_reads_on(place, open_archive):
    with open_archive() as model:
        assert bits(model["noise"][:9]) == bits(TENSORS["noise"][:9])
        child = multiprocessing.get_context("fork").Process(target=read_all, args=(model,))
        child.start()
        child.join(60)
        child.kill()
        assert child.exitcode == 0
        place.proxy.forget()
        assert_right(model.load(threads=2))
        assert set(by_range(place.requests()).values()) == {1}, "the child has not harmed the connections of its parent"


@pytest.mark.parametrize("place", ["obstore"], indirect=True)
def test_a_forked_process_is_told_that_obstore_cannot_be_forked(place, open_archive):
    with open_archive() as model:
        child = multiprocessing.get_context("fork").Process(target=read_nothing, args=(model,))
        child.start()
        child.join(60)
        child.kill()
        assert child.exitcode == 0
        assert_right(model.load(threads=2))


def read_all(model) -> None:
    assert_right(model.load(threads=2))


def read_nothing(model) -> None:
    with pytest.raises(mzstore.StorageError, match="obstore does not work in a forked process"):
        model.load(threads=2)


@pytest.fixture(scope="module")
def thousand() -> dict[str, np.ndarray]:
    return {f"model.layers.{i // 10}.part.{i % 10}.weight": weights((30, 40), i % 7) + i for i in range(1000)}


@pytest.fixture(scope="module")
def thousand_archive(thousand) -> bytes:
    return saved(thousand, level="fast")


def test_opening_a_thousand_tensors(place, thousand, thousand_archive):
    place.put("many.mz", thousand_archive)
    with mzstore.open(place.url("many.mz"), storage_options=place.options, retry=PATIENT) as model:
        assert len(model) == 1000
        assert list(model) == list(thousand)
        assert 1 <= len(place.requests()) <= 2
        assert len(place.proxy.requests()) == len(place.requests()), "nothing but the archive is asked for"
        place.proxy.forget()
        assert bits(model["model.layers.50.part.3.weight"][...]) == bits(thousand["model.layers.50.part.3.weight"])
        assert len(place.proxy.requests()) <= 1


def test_what_came_with_a_large_directory_is_not_asked_for_again():
    file, payloads = io.BytesIO(), {f"{'x' * 150}/c/{i}": b"%020d" % i for i in range(6000)}
    writer = ArchiveWriter(file)
    for key, payload in payloads.items():
        writer.write_chunk(key, payload, aligned=False)
    writer.finish()
    with ObjectServer({"/many.mz": file.getvalue()}) as server:
        reader = open_reader(f"{server.url}/many.mz")
        assert len(server.requests()) == 2, "tail and directory"
        held = {key: extent for key in payloads if (extent := reader.extent(key, 100)).held}
        assert 1000 < len(held) < len(payloads)
        server.forget()
        for key, extent in held.items():
            request = Request("", extent.start, extent.stop, held=True)
            assert bytes(reader.fetch(request, reader.start())) == payloads[key]
        assert server.requests() == []


def test_the_tail_is_in_memory_once():
    data = saved({"a": np.zeros(3)}, assets={"big": bytes(1 << 20)})
    with ObjectServer({"/model.mz": data}) as server:
        reader = open_reader(f"{server.url}/model.mz")
        assert np.shares_memory(np.frombuffer(reader._tail), np.frombuffer(reader.blob._tail))


def test_a_document_that_takes_more_than_it_holds():
    """Deflated data may be longer than what they hold; no reader fetches more than a document may have."""
    file = io.BytesIO()
    writer = ArchiveWriter(file)
    writer.write_document("zarr.json", os.urandom(1000))
    writer.finish()
    reader = open_reader(file.getvalue())
    assert reader.nbytes("zarr.json") > 1000
    with pytest.raises(mzstore.FormatError, match=r"document-3"):
        reader.read_document("zarr.json", 1000)


@pytest.mark.parametrize("name", ["missing.mz", "missing.zarr", "missing/"])
def test_nothing_there(place, name):
    url = place.url(name)
    with pytest.raises((mzstore.FormatError, mzstore.StorageError), match=re.escape(url.rstrip("/"))):
        mzstore.open(url, storage_options=place.options, retry=PATIENT)
    assert place.listings() == []
    assert len(place.proxy.requests()) <= 2


def test_what_is_no_model(place):
    place.put("note.mz", b"This is no model." * 10_000)
    with pytest.raises(mzstore.FormatError, match="not an mzstore archive"):
        mzstore.open(place.url("note.mz"), storage_options=place.options, retry=PATIENT)
    assert len(place.proxy.requests()) == 1


@pytest.mark.parametrize("place", ["s3fs"], indirect=True)
def test_verify(place, open_archive, open_tree):
    for name in ("model.mz", "model.zarr"):
        mzstore.verify(place.url(name), storage_options=place.options)


# With faults


@pytest.mark.parametrize("fault", ["503", "reset within", "cut short"])
def test_faults_that_pass(place, open_archive, open_tree, fault):
    for opened in (open_archive, open_tree):
        opening = place.proxy.fail(FAULTS[fault], times=2)
        with opened() as model:
            reading = place.proxy.fail(FAULTS[fault], times=3)
            assert_right(model.load(threads=4))
        assert (opening.met, reading.met) == (2, 3)
        place.proxy.mend()


FAULTS = {
    "503": faults.status(503),
    "500": faults.status(500),
    "reset before": faults.reset_before,
    "reset within": faults.reset_within,
    "cut short": faults.cut_short,
    "cut to fit": faults.cut_to_fit,
}


@pytest.mark.parametrize("fault", ["503", "cut short"])
def test_a_fault_that_stays_in_one_range(place, open_archive, archive, fault):
    """All else may be read; that range is tried as often as was said, and named."""
    with open_archive() as model:
        place.proxy.forget()
        rule = place.proxy.fail(FAULTS[fault], covers=700_000)
        with pytest.raises(mzstore.StorageError, match=re.escape(place.url("model.mz"))) as raised:
            model.load(threads=4)
        assert rule.met == 4
        start, stop = (int(n) for n in re.search(r"bytes (\d+)-(\d+)", str(raised.value)).groups())
        assert start <= 700_000 < stop
        assert max(by_range(place.requests()).values()) == 4
        place.proxy.mend()
        assert_right(model.load(threads=4))


def test_a_fault_that_stays_in_one_object_of_a_tree(place, open_tree):
    with open_tree() as model:
        rule = place.proxy.fail(FAULTS["503"], key=r"/odd/")
        with pytest.raises(mzstore.StorageError, match=re.escape(place.url("model.zarr/odd/"))):
            model.load(threads=4)
        assert rule.met >= 4
        assert bits(model["big"][3:5]) == bits(TENSORS["big"][3:5])


def test_a_stall_that_stays(place, open_archive):
    with open_archive(Retry(timeout=1, attempts=2, backoff=0.001)) as model:
        rule = place.proxy.fail(faults.stall_within, covers=700_000)
        with pytest.raises(mzstore.StorageError, match=r"bytes \d+-\d+"):
            model.load(threads=4)
        assert rule.met <= 2


def test_a_stall_that_passes(place, open_archive):
    with open_archive(Retry(timeout=0.5, attempts=8, backoff=0.001)) as model:
        rules = [
            place.proxy.fail(fault, covers=700_000, times=1) for fault in (faults.stall_before, faults.stall_within)
        ]
        assert_right(model.load(threads=4))
        assert [rule.met for rule in rules] == [1, 1]


@pytest.mark.parametrize("place", ["s3fs"], indirect=True)
def test_a_deadline_holds_for_all_of_a_load(place, open_archive):
    open_archive().close()  # the first use of a client takes its time
    with open_archive(Retry(timeout=60, attempts=1_000_000, deadline=2, backoff=0.001)) as model:
        place.proxy.fail(faults.stall_before, covers=700_000)
        with pytest.raises(mzstore.StorageError, match="deadline"):
            model.load(threads=4)


@pytest.mark.parametrize("error", [faults.status(403, "ExpiredToken"), faults.status(403), faults.status(404)])
def test_credentials_that_expire_midway(place, open_archive, error):
    with open_archive() as model:
        place.proxy.forget()
        place.proxy.fail(error, skip=3)
        with pytest.raises(mzstore.StorageError, match=re.escape(place.url("model.mz"))):
            model.load(threads=2)
        assert set(by_range(place.requests()).values()) == {1}, "nothing is asked for twice"


@pytest.mark.parametrize("place", ["s3fs", "obstore"], indirect=True)
def test_wrong_credentials(place, open_archive):
    wrong = {"secret", "secret_access_key"} & place.options.keys()
    options = place.options | dict.fromkeys(wrong, "wrong")
    with pytest.raises(mzstore.StorageError, match=re.escape(place.url("model.mz"))):
        mzstore.open(place.url("model.mz"), storage_options=options, retry=PATIENT)
    assert len(place.requests()) == 1


def test_replaced_between_opening_and_loading(place, open_archive, other_archive, archive):
    for replacement in (other_archive, archive + b"more", archive[:500_000]):
        place.put("model.mz", archive)
        with open_archive() as model:
            place.put("model.mz", replacement)
            with pytest.raises(mzstore.StorageError, match="changed") as raised:
                model.load(threads=4)
            assert place.url("model.mz") in str(raised.value)
            with pytest.raises(mzstore.StorageError, match="changed"):
                model["big"][:3]


def test_a_tree_that_was_replaced(place, open_tree, tree):
    """Chunks have no version; the root document stands for all."""
    with open_tree() as model:
        assert_right(model.load(threads=4))
        place.put("model.zarr/zarr.json", tree["zarr.json"] + b" ")
        for read in (lambda: model.load(threads=4), lambda: model["big"][:3]):
            with pytest.raises(mzstore.StorageError, match=r"model\.zarr/zarr\.json' has changed since it was read"):
                read()
        place.remove("model.zarr/zarr.json")
        with pytest.raises(mzstore.StorageError, match="has changed"):
            model["big"].read()


def test_an_object_of_a_tree_that_is_larger_than_its_chunk_can_be(place, open_tree, tree):
    """It is refused by its head: nothing of it is read."""
    key = next(key for key in tree if key.startswith("odd/c/"))
    place.put(f"model.zarr/{key}", bytes(8 << 20))
    with open_tree() as model:
        before = model.stats.fetched_nbytes
        with pytest.raises(mzstore.StorageError, match=rf"{key}.*8388608 bytes, at most \d+ are wanted"):
            model["odd"].read()
        assert model.stats.fetched_nbytes - before < 1 << 20


def test_an_archive_whose_chunk_is_longer_than_it_can_be(place, forged):
    forged.payloads["raw/c/0"] = bytes(1 << 20)
    place.put("model.mz", forged.archive())
    with (
        mzstore.open(place.url("model.mz"), storage_options=place.options, retry=PATIENT) as model,
        pytest.raises(mzstore.FormatError, match="payload-5"),
    ):
        model["raw"].read()


def test_a_tree_that_claims_any_number_of_chunks(place, open_tree, tree, monkeypatch):
    monkeypatch.setattr(plan, "MAX_OBJECTS", 5)
    with open_tree() as model:
        with pytest.raises(ValueError, match=r"model\.zarr' is a tree, of which at most 5 objects"):
            model.load()
        assert len(place.requests()) == 1


def waits(seconds):
    """An answer that comes late."""

    def fault(exchange, proxy):
        time.sleep(seconds)
        exchange.send(proxy.forward(exchange))

    return fault


@pytest.mark.parametrize("place", ["s3fs"], indirect=True)
def test_opening_has_one_deadline(place, thousand_archive, open_archive, monkeypatch):
    """Each of the two requests comes in time, both together do not."""
    open_archive().close()  # the first use of a client takes its time
    monkeypatch.setattr(container, "TAIL_NBYTES", 70_000)
    monkeypatch.setattr(archives, "TAIL_NBYTES", 70_000)
    place.put("many.mz", thousand_archive)
    place.proxy.fail(waits(0.8), key="many.mz")
    url = place.url("many.mz")
    with mzstore.open(url, storage_options=place.options, retry=Retry(deadline=20)):
        assert len(place.requests("many.mz")) == 2
    with pytest.raises(mzstore.StorageError, match="deadline"):
        mzstore.open(url, storage_options=place.options, retry=Retry(deadline=1.2))


@pytest.mark.parametrize("place", ["s3fs"], indirect=True)
def test_an_asset_has_one_deadline(place, tree, monkeypatch):
    monkeypatch.setattr(models, "BLOCK_NBYTES", 50_000)
    place.put_all({f"model.zarr/{key}": data for key, data in tree.items()})
    with mzstore.open(place.url("model.zarr"), storage_options=place.options, retry=Retry(deadline=1.2)) as model:
        assert dict(model.assets) == ASSETS
        place.proxy.fail(waits(0.5), key="vocabulary")
        with pytest.raises(mzstore.StorageError, match="deadline"):
            model.assets["vocabulary"]


def test_replaced_in_the_middle_of_a_load(place, open_archive, other_archive):
    def replace(exchange, proxy):
        place.put("model.mz", other_archive)
        exchange.send(proxy.forward(exchange))

    with open_archive() as model:
        place.proxy.fail(replace, skip=4, times=1)
        with pytest.raises(mzstore.StorageError, match="changed"):
            model.load(threads=4)
    with open_archive() as model:
        assert_right(model.load(threads=4), OTHERS)


def test_an_interrupt_ends_a_load(place, open_archive):
    main = threading.get_ident()

    def interrupt(exchange, proxy):
        signal.pthread_kill(main, signal.SIGINT)
        faults.stall_before(exchange, proxy)

    with open_archive() as model:
        place.proxy.fail(interrupt, covers=700_000)
        with pytest.raises(KeyboardInterrupt):
            model.load(threads=4)
        place.proxy.mend()
        assert_right(model.load(threads=4))


def test_an_interrupt_ends_a_conversion(place, tmp_path):
    """Also while the tensor after next is read ahead by another thread, which nothing answers."""
    place.put("model.safetensors", safetensors.numpy.save({f"t{i}": TENSORS["odd"] + i for i in range(4)}))
    main = threading.get_ident()

    def interrupt(exchange, proxy):
        signal.pthread_kill(main, signal.SIGINT)
        faults.stall_before(exchange, proxy)

    place.proxy.fail(interrupt, skip=3)
    with pytest.raises(KeyboardInterrupt):
        mzstore.convert(place.url("model.safetensors"), tmp_path / "model.mz", storage_options=place.options)
    place.proxy.mend()
    assert not list(tmp_path.iterdir())


def test_converting_from_remote(place, tmp_path):
    original = safetensors.numpy.save(dict.fromkeys("ab", TENSORS["odd"]), {"made": "by a test"})
    place.put("model.safetensors", original)
    place.proxy.fail(FAULTS["503"], skip=2, times=1)
    place.proxy.fail(FAULTS["reset within"], skip=2, times=1)
    url, target = place.url("model.safetensors"), tmp_path / "model.mz"
    mzstore.convert(url, target, storage_options=place.options)
    mzstore.convert(target, tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors").read_bytes() == original

    def replace(exchange, proxy):
        place.put("model.safetensors", original[::-1])
        exchange.send(proxy.forward(exchange))

    place.proxy.fail(replace, skip=2, times=1)
    with pytest.raises(mzstore.StorageError, match="changed"):
        mzstore.convert(url, target, storage_options=place.options)
    with mzstore.open(target) as model:
        assert bits(model["a"][...]) == bits(TENSORS["odd"])
    assert sorted(os.listdir(tmp_path)) == ["model.mz", "model.safetensors"]


def test_a_flipped_bit_is_found(place, open_archive, open_tree):
    for opened in (open_archive, open_tree):
        with opened() as model:
            place.proxy.fail(faults.flipped, method="GET")
            with pytest.raises(mzstore.MzError):
                model.load(threads=4)
            place.proxy.mend()
    place.proxy.fail(faults.flipped)
    with pytest.raises(mzstore.MzError):
        open_tree()


KINDS = {
    **FAULTS,
    "flipped": faults.flipped,
    "404": faults.status(404),
    "403": faults.status(403, "ExpiredToken"),
    "429": faults.status(429),
    "stall before": faults.stall_before,
    "stall within": faults.stall_within,
}


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.sampled_from(sorted(KINDS)), st.integers(0, 20), st.integers(1, 5)), max_size=4),
    st.sampled_from(["archive", "tree"]),
)
def test_the_right_data_or_an_error(place, open_archive, open_tree, chosen, kind):
    place.proxy.mend()
    for name, skip, times in chosen:
        place.proxy.fail(KINDS[name], skip=skip, times=times)
    stalls = any("stall" in name for name, _, _ in chosen)
    retry = Retry(timeout=0.2, attempts=3, backoff=0.001) if stalls else PATIENT
    loaded = None
    with contextlib.suppress(mzstore.MzError), open_archive(retry) if kind == "archive" else open_tree(retry) as model:
        loaded = model.load(threads=3)
    assert chosen or loaded
    if loaded:
        assert_right(loaded)


# Other filesystems


def test_the_memory_filesystem():
    for suffix in (".mz", ".zarr"):
        url = f"memory://{uuid.uuid4()}/model{suffix}"
        mzstore.save(url, TENSORS, assets=ASSETS, level="fast")
        with mzstore.open(url) as model:
            assert_right(model.load(threads=4))
            assert bits(model["odd"][1, ::9, 3]) == bits(TENSORS["odd"][1, ::9, 3])
            assert dict(model.assets) == ASSETS


@pytest.mark.parametrize("suffix", [".mz", ".zarr", ".safetensors", "", "-unpacked"])
@pytest.mark.parametrize("source", ["file", "directory", "index"])
def test_a_source_that_changes_while_it_is_converted(source, suffix, tmp_path, monkeypatch):
    """Also where requests cannot be bound to a version: the end of the conversion looks at all files again."""
    fs, folder = MemoryFileSystem(), f"/{uuid.uuid4()}"
    weights_file = safetensors.numpy.save({"a": TENSORS["odd"]})
    fs.pipe_file(f"{folder}/model.safetensors", weights_file)
    fs.pipe_file(f"{folder}/config.json", b"{}")
    fs.pipe_file(f"{folder}/{INDEX}", b'{"weight_map": {"a": "model.safetensors"}}')
    url = f"memory:/{folder}/" + {"file": "model.safetensors", "directory": "", "index": INDEX}[source]
    to = "directory" if suffix == "-unpacked" else None
    target = tmp_path / f"model{suffix}"
    mzstore.convert(url, tmp_path / f"good{suffix}", to=to)
    read = PlainTensor.read

    def changed(self, start, stop):
        found = read(self, start, stop)
        fs.pipe_file(f"{folder}/model.safetensors", weights_file)  # the same bytes at another time are another version
        return found

    monkeypatch.setattr(PlainTensor, "read", changed)
    with pytest.raises(mzstore.StorageError, match=r"model\.safetensors' has changed since it was opened"):
        mzstore.convert(url, target, to=to)
    assert not target.exists()


def test_a_retry_for_save_and_convert(flaky, tmp_path):
    """It is that of the reading end as of the writing one."""
    retry = Retry(timeout=20, attempts=2, backoff=0.001)
    flaky.faults += [TimeoutError(), TimeoutError()]
    with pytest.raises(mzstore.StorageError, match=r"\(2 attempts\)"):
        mzstore.convert("flaky://x/model.mz", tmp_path / "copy.mz", retry=retry)
    flaky.hanging = {"info"}
    retry = Retry(timeout=0.2, attempts=1)
    for write in (
        lambda: mzstore.save("flaky://x/tree.zarr", {"a": np.zeros(3)}, retry=retry),
        lambda: mzstore.convert(safetensors_file(tmp_path), "flaky://x/tree.zarr", retry=retry),
    ):
        with pytest.raises(mzstore.StorageError, match=r"no byte for 0\.2 s \(1 attempts\)"):
            write()


def safetensors_file(folder):
    safetensors.numpy.save_file({"a": np.zeros(3)}, folder / "a.safetensors")
    return folder / "a.safetensors"


class FlakyFileSystem(MemoryFileSystem):
    """A filesystem that is not async and knows no ETag: of what it is asked for ranges, it fails at ``faults``."""

    protocol = "flaky"
    store: dict = {}  # noqa: RUF012  as its parent's, of the class
    pseudo_dirs: list = [""]  # noqa: RUF012
    cachable = False
    faults: list = []  # noqa: RUF012
    info_faults: list = []  # noqa: RUF012
    hanging: set[str] = set()  # noqa: RUF012  calls that do not return
    calls: list[str] = []  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(path.removeprefix("flaky://"))

    def cat_file(self, path, start=None, end=None, **kwargs):
        self.calls.append("cat_file")
        self.hang("cat_file")
        data = super().cat_file(path, start=start, end=end)
        fault = self.faults.pop(0) if self.faults else None
        if isinstance(fault, Exception):
            raise fault
        return data[:fault]

    def info(self, path, **kwargs):
        self.calls.append("info")
        self.hang("info")
        if self.info_faults:
            raise self.info_faults.pop(0)
        return super().info(path, **kwargs)

    def hang(self, what):
        while what in self.hanging:
            time.sleep(0.01)

    def find(self, *args, **kwargs):
        raise AssertionError("a listing")

    ls = glob = walk = find


@pytest.fixture
def flaky(archive):
    fsspec.register_implementation("flaky", FlakyFileSystem, clobber=True)
    FlakyFileSystem.store.clear()
    FlakyFileSystem.faults.clear()
    FlakyFileSystem.info_faults.clear()
    FlakyFileSystem.hanging = set()
    FlakyFileSystem.calls.clear()
    with fsspec.open("flaky://x/model.mz", "wb") as file:
        file.write(archive)
    return FlakyFileSystem


def test_another_filesystem_with_faults(flaky, small_requests):
    flaky.faults += [TimeoutError(), None, ConnectionResetError(), 100, OSError("no route")]
    with mzstore.open("flaky://x/model.mz", retry=PATIENT) as model:
        assert_right(model.load(threads=4))
        assert not flaky.faults


@pytest.mark.parametrize("fault", [100, 0, OSError("no route to host"), TimeoutError(), RuntimeError("strange")])
def test_another_filesystem_with_a_fault_that_stays(flaky, fault):
    with mzstore.open("flaky://x/model.mz", retry=PATIENT) as model:
        flaky.faults += [fault] * 1000
        flaky.calls.clear()
        with pytest.raises(mzstore.StorageError, match=r"'flaky://x/model\.mz', bytes \d+-\d+.*\(4 attempts\)"):
            model["big"].read()
        assert flaky.calls.count("cat_file") == 4


def test_another_filesystem_with_a_fault_for_good(flaky):
    with mzstore.open("flaky://x/model.mz", retry=PATIENT) as model:
        flaky.faults.append(PermissionError("not you"))
        flaky.calls.clear()
        with pytest.raises(mzstore.StorageError, match=r"flaky://x/model\.mz.*not you"):
            model["big"].read()
        assert flaky.calls.count("cat_file") == 1


def test_another_filesystem_whose_object_is_replaced(flaky, other_archive):
    with mzstore.open("flaky://x/model.mz", retry=PATIENT) as model:
        with fsspec.open("flaky://x/model.mz", "wb") as file:
            file.write(other_archive)
        with pytest.raises(mzstore.StorageError, match=r"flaky://x/model\.mz' has changed"):
            model.load(threads=4)
        with pytest.raises(mzstore.StorageError, match="has changed"):  # also if what was read is right by chance
            model["zeros"].read()


def test_another_filesystem_that_hangs(flaky):
    """Also when it is asked, at the end, which object is there now."""
    with mzstore.open("flaky://x/model.mz", retry=Retry(timeout=0.2, attempts=2, backoff=0.001)) as model:
        expected = bits(model["big"].read())
        flaky.hanging = {"cat_file"}
        with pytest.raises(mzstore.StorageError, match=r"read 'flaky://x/model\.mz', bytes.*no byte for 0\.2 s"):
            model["big"].read()
        flaky.hanging = {"info"}
        with pytest.raises(mzstore.StorageError, match=r"look at 'flaky://x/model\.mz' again: no byte for 0\.2 s"):
            model["big"].read()
        flaky.hanging = set()
        assert bits(model["big"].read()) == expected


def test_another_filesystem_that_fails_at_the_last_question(flaky):
    with mzstore.open("flaky://x/model.mz", retry=PATIENT) as model:
        flaky.info_faults.append(ConnectionResetError())
        assert_right(model.load(threads=4))
        assert not flaky.info_faults


def test_gcsfs_is_forbidden(flaky):
    """It has no kind of error for that."""
    with mzstore.open("flaky://x/model.mz", retry=PATIENT) as model:
        flaky.faults.append(OSError("Forbidden: https://storage.googleapis.com/x\nno access"))
        flaky.calls.clear()
        with pytest.raises(mzstore.StorageError, match="no access"):
            model["big"].read()
        assert flaky.calls.count("cat_file") == 1

"""Uploads: what is written to object storage comes whole or not at all, by parts, within bounded memory."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qs

import faults
import fsspec
import numpy as np
import pytest
from places import S3Place

import mzstore
from mzstore.storage import Retry, upload
from mzstore.storage.upload import RemoteFolderSink, RemoteSink, part_nbytes

OBSTORE = "s3a"
PART = 5 << 20  # the least that S3 takes; the tests would be slow with 16 MiB
QUICK = Retry(timeout=5, attempts=3, backoff=0.01)
COMPLETION = {"method": "POST", "key": r"\?uploadId="}


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(upload, "PART_NBYTES", PART)


@pytest.fixture(params=["s3fs", "obstore"])
def s3(request, s3_proxy, s3_server):
    """A place on S3, written to by each client."""
    place = S3Place(s3_proxy, uuid.uuid4().hex, "s3" if request.param == "s3fs" else OBSTORE, s3_server)
    s3_proxy.forget()
    yield place
    s3_proxy.mend()


@pytest.fixture
def s3fs_only(s3_proxy, s3_server):
    place = S3Place(s3_proxy, uuid.uuid4().hex, "s3", s3_server)
    s3_proxy.forget()
    yield place
    s3_proxy.mend()


def content(nbytes):
    """No two parts of it are alike."""
    return np.random.default_rng(nbytes).bytes(nbytes)


def put(place, name, data, retry=QUICK, piece=1 << 20):
    with RemoteSink(place.url(name), place.options, retry=retry) as sink:
        for start in range(0, len(data), piece):
            sink.write(memoryview(data)[start : start + piece])


def get(place, name):
    return place._direct.cat_file(f"{place._bucket}/{place.prefix}/{name}")


def methods(place, name=""):
    return [request.method for request in place.requests(name)]


@pytest.mark.parametrize("nbytes", [0, 1, PART - 1, PART, PART + 1, 2 * PART, 3 * PART + 7])
def test_every_size(s3, nbytes):
    data = content(nbytes)
    put(s3, "object", data, piece=PART // 3 + 1)
    assert get(s3, "object") == data
    assert s3.names() == ["object"]
    n_parts = 0 if nbytes <= PART else -(-nbytes // PART)
    assert methods(s3).count("PUT") == (n_parts or 1), "one request for each part, or for all"
    assert methods(s3).count("POST") == (2 if n_parts else 0)
    assert methods(s3).count("HEAD") == 1, "the size is looked at once"
    assert s3.listings() == []
    assert s3.uploads() == []


@pytest.mark.parametrize("nbytes", [0, 1, PART, 3 * PART + 7])
@pytest.mark.parametrize("protocol", ["memory", "local"])
def test_every_size_elsewhere(protocol, nbytes, tmp_path):
    url = f"{protocol}://{tmp_path}/{uuid.uuid4()}/object"
    fs, path = fsspec.core.url_to_fs(url)
    data = content(nbytes)
    with RemoteSink(url, None) as sink:
        sink.write(data)
        assert not fs.exists(path)
    assert fs.cat_file(path) == data
    assert fs.ls(fs._parent(path), detail=False) == [path], "nothing but the object"


def test_a_large_write_is_cut(s3):
    data = content(2 * PART + 11)
    put(s3, "object", data, piece=len(data))
    assert get(s3, "object") == data


def test_nothing_shows_before_the_end(s3):
    data = content(3 * PART)
    with RemoteSink(s3.url("object"), s3.options, retry=QUICK) as sink:
        sink.write(data)
        until(lambda: s3.requests(method="PUT"))
        assert s3.names() == []
    assert s3.names() == ["object"]


def until(condition):
    """Wait for what another thread or process is about to do."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.01)


class Midway(Exception): ...


def fail_midway(place, name, data, then=lambda: None):
    with RemoteSink(place.url(name), place.options, retry=QUICK) as sink:
        sink.write(data)
        then()
        raise Midway


@pytest.mark.parametrize("nbytes", [0, 100, PART + 1, 4 * PART])
def test_an_exception_leaves_what_was_there(s3, nbytes):
    s3.put("object", b"old")
    with pytest.raises(Midway):
        fail_midway(s3, "object", content(nbytes))
    assert get(s3, "object") == b"old"
    assert s3.uploads() == []


@pytest.mark.parametrize("protocol", ["memory", "local"])
@pytest.mark.parametrize("nbytes", [0, 100, 2 * PART])
def test_an_exception_elsewhere(protocol, nbytes, tmp_path):
    place = SimpleNamespace(url=lambda name: f"{protocol}://{tmp_path}/{unique}/{name}", options=None)
    unique = uuid.uuid4()
    with pytest.raises(Midway):
        fail_midway(place, "object", content(nbytes))
    fs, path = fsspec.core.url_to_fs(place.url(""))
    assert not fs.exists(path) or fs.ls(path) == []


def test_a_put_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    """fsspec writes a file of a local disk in place."""
    url = f"local://{tmp_path}/object"
    (tmp_path / "object").write_bytes(b"old")

    def half(self, local, remote, **kwargs):
        Path(remote).write_bytes(b"ne")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(fsspec.filesystem("local")), "put_file", half)
    with pytest.raises(mzstore.StorageError, match="No space left"), RemoteSink(url, None) as sink:
        sink.write(content(2 * PART))
    assert (tmp_path / "object").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["object"]


def test_a_part_that_fails_once_is_sent_again(s3):
    data = content(3 * PART)
    rules = [
        s3.proxy.fail(faults.status(503), method="PUT", key=r"partNumber=1\b", times=1),
        s3.proxy.fail(faults.reset_before, method="PUT", key=r"partNumber=2\b", times=1),
        s3.proxy.fail(faults.lost, method="PUT", key=r"partNumber=3\b", times=1),
        s3.proxy.fail(faults.status(500), method="POST", key="uploads", times=1),
        s3.proxy.fail(faults.status(503), **COMPLETION, times=1),
    ]
    put(s3, "object", data)
    assert [rule.met for rule in rules] == [1] * 5
    assert get(s3, "object") == data


@pytest.mark.parametrize("number", [403, 503])
@pytest.mark.parametrize("request_", ["create", "part", "completion", "put", "head"])
def test_a_request_that_fails_for_good(s3, request_, number):
    s3.put("object", b"old")
    which = {
        "create": {"method": "POST", "key": "uploads"},
        "part": {"method": "PUT", "key": "partNumber=2"},
        "completion": COMPLETION,
        "put": {"method": "PUT"},
        "head": {"method": "HEAD"},
    }[request_]
    rule = s3.proxy.fail(faults.status(number), **which)
    with pytest.raises(mzstore.StorageError, match=f"cannot write .*{s3.prefix}/object"):
        put(s3, "object", content(100 if request_ == "put" else 3 * PART))
    assert rule.met >= 1
    if number == 403:
        assert rule.met == 1, "not allowed once is not allowed"
    s3.proxy.mend()
    if request_ != "head":
        assert get(s3, "object") == b"old"
    assert s3.uploads() == []


@pytest.mark.parametrize("times", [1, 2])
def test_the_answer_to_the_completion_is_lost(s3, times):
    data = content(2 * PART)
    rule = s3.proxy.fail(faults.lost, **COMPLETION, times=times)
    put(s3, "object", data)
    assert rule.met == times
    assert get(s3, "object") == data


def test_the_completion_took_effect_and_the_server_has_forgotten(s3fs_only):
    """Other servers than SeaweedFS know nothing of an upload that is complete, AWS not after a while."""
    data = content(2 * PART)
    s3fs_only.proxy.fail(faults.lost, **COMPLETION, times=1)
    again = s3fs_only.proxy.fail(faults.status(404, "NoSuchUpload"), **COMPLETION)
    put(s3fs_only, "object", data)
    assert again.met == 1
    assert get(s3fs_only, "object") == data


@pytest.mark.parametrize("change", [0, 1])
def test_the_completion_did_not_take_effect_and_there_is_an_object(s3fs_only, change):
    data = content(2 * PART)
    s3fs_only.put("object", data[change:])  # of the same size, but not in parts, or of another
    s3fs_only.proxy.fail(faults.status(404, "NoSuchUpload"), **COMPLETION)
    with pytest.raises(mzstore.StorageError, match="made by a test"):
        put(s3fs_only, "object", data)
    assert s3fs_only.uploads() == []


def test_an_upload_that_cannot_be_aborted(s3fs_only):
    s3fs_only.proxy.fail(faults.status(403), method="DELETE")
    s3fs_only.proxy.fail(faults.status(403), **COMPLETION)
    for fail in (fail_midway, put):
        with pytest.raises((Midway, mzstore.StorageError)) as caught:
            fail(s3fs_only, "object", content(2 * PART))
        (note,) = caught.value.__notes__
        assert re.match(r"An unfinished upload may be left.*: cannot write .*\(abort_multipart_upload\)", note)
    assert s3fs_only.names() == []
    assert s3fs_only.uploads() == ["object", "object"]


def test_an_abort_is_tried_again(s3):
    rule = s3.proxy.fail(faults.status(503), method="DELETE", times=1)
    with pytest.raises(Midway):
        fail_midway(s3, "object", content(2 * PART), lambda: until(lambda: s3.requests(method="PUT")))
    assert rule.met == 1
    assert s3.uploads() == []


def test_writing_ends_with_the_first_error(s3):
    s3.proxy.fail(faults.status(403), method="PUT", key=r"partNumber=1\b")
    taken = 0

    def write():
        nonlocal taken
        with RemoteSink(s3.url("object"), s3.options, retry=QUICK) as sink:
            for _ in range(60):
                sink.write(bytes(PART))
                taken += 1

    with pytest.raises(mzstore.StorageError):
        write()
    assert taken < 30
    assert s3.names() == s3.uploads() == []


def test_parts_travel_side_by_side(s3):
    together = threading.Barrier(upload.IN_FLIGHT)
    lock, now, most = threading.Lock(), 0, 0

    def count(exchange, proxy):
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        if "partNumber=5" not in exchange.request.query:
            together.wait(30)
        answer = proxy.forward(exchange)
        with lock:
            now -= 1
        exchange.send(answer)

    s3.proxy.fail(count, method="PUT")
    data = content(5 * PART)
    put(s3, "object", data, retry=Retry(timeout=60))
    assert get(s3, "object") == data
    assert most == upload.IN_FLIGHT


def test_memory_is_bounded(s3, s3_server):
    """The proxy holds bodies in memory of this process; so this goes around it."""
    key = "endpoint_url" if "endpoint_url" in s3.options else "endpoint"
    options = s3.options | {key: s3_server.endpoint}
    block = bytes(1 << 20)

    def used():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    with RemoteSink(s3.url("first"), options) as sink:  # whatever is loaded by the first
        sink.write(bytes(2 * PART))
    before, most = used(), 0
    with RemoteSink(s3.url("object"), options) as sink:
        for _ in range(160):
            sink.write(block)
            most = max(most, used())
    assert most - before < 20 * PART < 160 << 20


def test_another_object_at_the_end_is_noticed(s3):
    def replaced(exchange, proxy):
        s3.put("object", b"somebody else's")
        exchange.send(proxy.forward(exchange))

    s3.proxy.fail(replaced, method="HEAD")
    with pytest.raises(mzstore.StorageError, match=r"has 15 bytes, 100 were written"):
        put(s3, "object", content(100))


def test_a_process_that_is_killed(s3):
    """It leaves an unfinished upload; and the object that was there, if there was one."""
    s3.put("model.mz", b"old")
    rule = s3.proxy.fail(faults.stall_before, method="PUT", key=r"partNumber=3\b")
    program = f"""
import numpy as np, mzstore
from mzstore.storage import upload
import obstore.fsspec; obstore.fsspec.register({OBSTORE!r})
upload.PART_NBYTES = {PART}
words = np.random.default_rng(0).integers(0, 2**32, {PART}, dtype=np.uint32)
mzstore.save({s3.url("model.mz")!r}, {{"w": words}}, storage_options={s3.options!r}, show_progress=False)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE)
    with process:
        until(lambda: rule.met or process.poll() is not None)
        assert process.poll() is None, process.stderr.read()
        process.send_signal(signal.SIGKILL)
    s3.proxy.mend()
    assert get(s3, "model.mz") == b"old"
    assert s3.uploads() == ["model.mz"]


@pytest.mark.parametrize("kind", ["archive", "tree"])
def test_save_and_open(s3, kind):
    tensors = {f"layer.{i}": np.random.default_rng(i).standard_normal((256, 512), np.float32) for i in range(8)}
    mzstore.save(s3.url("model"), tensors, kind=kind, storage_options=s3.options, assets={"a.txt": b"asset"})
    with mzstore.open(s3.url("model"), storage_options=s3.options) as model:
        assert model.keys() == tensors.keys()
        for name, array in tensors.items():
            assert model[name][...].tobytes() == array.tobytes()
    assert s3.listings() == []
    assert s3.uploads() == []


def test_a_model_that_cannot_be_encoded_leaves_nothing(s3):
    good = np.random.default_rng(0).integers(0, 2**32, 3 * PART // 4, dtype=np.uint32)
    with pytest.raises((TypeError, ValueError)):
        mzstore.save(s3.url("model.mz"), {"good": good, "bad": np.array(["text"])}, storage_options=s3.options)
    assert s3.names() == s3.uploads() == []


def test_convert_from_remote_to_remote(s3):
    """A file of its own, and back byte for byte; the target of the one is the source of the other."""
    from safetensors.numpy import save

    tensors = {name: np.random.default_rng(ord(name)).standard_normal((1000, 700), np.float32) for name in "abc"}
    s3.put("in.safetensors", save(tensors, {"made": "by a test"}))

    def convert(source, target):
        options = {"storage_options": s3.options, "target_options": s3.options}
        mzstore.convert(s3.url(source), s3.url(target), **options, show_progress=False)

    convert("in.safetensors", "model.mz")
    convert("model.mz", "out.safetensors")
    convert("in.safetensors", "model.zarr")
    convert("model.zarr", "directory/")
    assert get(s3, "out.safetensors") == get(s3, "in.safetensors")
    with mzstore.open(s3.url("model.zarr"), storage_options=s3.options) as model:
        assert model["b"][...].tobytes() == tensors["b"].tobytes()
    assert s3.uploads() == []


# Folders


MARKER = "zarr.json"


def folder(place, name="tree"):
    return RemoteFolderSink(place.url(name), place.options, MARKER, QUICK)


def test_a_folder_has_all_its_objects(s3):
    objects = {f"c/{i}": content(1000 + i) for i in range(20)} | {"empty": b""}
    large = content(2 * PART + 1)
    with folder(s3) as sink:
        for key, data in objects.items():
            sink.write(key, memoryview(data))
        with sink.open("large") as file:
            file.write(large[:100])
            file.write(large[100:])
        sink.write(MARKER, b"{}")
    assert {key: get(s3, f"tree/{key}") for key in objects} == objects
    assert get(s3, "tree/large") == large
    assert methods(s3, "tree/large").count("PUT") == 3
    assert sorted(s3.names()) == sorted(f"tree/{key}" for key in [*objects, "large", MARKER])
    assert s3.listings() == []


def test_the_marker_comes_last(s3):
    seen = []

    def slow(exchange, proxy):
        seen.append([request.key for request in s3.requests(f"tree/{MARKER}", "PUT")])
        answer = proxy.forward(exchange)
        time.sleep(0.1)
        seen.append([request.key for request in s3.requests(f"tree/{MARKER}", "PUT")])
        exchange.send(answer)  # from here on the marker may come

    s3.proxy.fail(slow, method="PUT", key="/c/")
    with folder(s3) as sink:
        for i in range(6):
            sink.write(f"c/{i}", b"chunk")
        sink.write(MARKER, b"{}")
    assert seen == [[]] * 12
    assert get(s3, f"tree/{MARKER}") == b"{}"


@pytest.mark.parametrize("how", ["write", "open"])
def test_an_object_that_fails_leaves_no_marker(s3, how):
    s3.proxy.fail(faults.status(403), method="PUT", key="/c/3")

    def write():
        with folder(s3) as sink:
            for i in range(6):
                if how == "write":
                    sink.write(f"c/{i}", b"chunk")
                else:
                    with sink.open(f"c/{i}") as file:
                        file.write(b"chunk")
            sink.write(MARKER, b"{}")

    with pytest.raises(mzstore.StorageError, match=r"cannot write .*/tree/c/3"):
        write()
    assert f"tree/{MARKER}" not in s3.names()


def test_the_last_object_that_fails(s3):
    s3.proxy.fail(faults.status(403), method="PUT", key="/c/0")
    with pytest.raises(mzstore.StorageError, match=r"cannot write .*/tree/c/0"), folder(s3) as sink:
        sink.write("c/0", b"chunk")


def test_an_exception_in_a_folder(s3):

    def write():
        with folder(s3) as sink:
            sink.write("c/0", b"chunk")
            with sink.open("large") as file:
                file.write(content(3 * PART))
                raise Midway

    with pytest.raises(Midway):
        write()
    assert "tree/large" not in s3.names()
    assert s3.uploads() == []


@pytest.mark.parametrize("marker", [b"", b"{}"])
def test_a_model_is_not_written_over(s3, marker):
    s3.put(f"tree/{MARKER}", marker)
    with pytest.raises(mzstore.StorageError, match="it holds a model"):
        folder(s3)
    assert methods(s3) == ["GET"]


def test_no_telling_whether_there_is_a_model(s3):
    s3.proxy.fail(faults.status(403))
    with pytest.raises(mzstore.StorageError, match=r"cannot read .*zarr.json"):
        folder(s3)


# Azure


class AzureBlobs(faults._Running):
    """As much of Azure's Blob service as an upload needs, for any account: blocks count when a list of them is put."""

    def __init__(self):
        super().__init__()
        self.blobs, self.blocks = {}, {}
        self.most = 0  # bytes of one request

    def answer(self, exchange):
        self._requests.append(exchange.request)
        key, query = exchange.request.key, parse_qs(exchange.request.query)
        self.most = max(self.most, len(exchange.body))
        if exchange.request.method in ("GET", "HEAD"):
            exchange.send(self.found(key))
            return
        if query.get("comp") == ["block"]:
            self.blocks[key, query["blockid"][0]] = exchange.body
        elif query.get("comp") == ["blocklist"]:
            named = re.findall(r"<Latest>(.*?)</Latest>", exchange.body.decode())
            self.blobs[key] = b"".join(self.blocks[key, name] for name in named)
        else:
            self.blobs[key] = exchange.body
        exchange.send(self.head(201, self.blobs.get(key, b"")).with_body(b""))

    def found(self, key):
        data = self.blobs.get(key)
        if data is None:
            return faults.Answer(404, (("x-ms-error-code", "BlobNotFound"),)).with_body(b"")
        return self.head(200, data).with_body(data)

    def head(self, status, data):
        tags = (("ETag", faults.etag(data)), ("Last-Modified", "Sun, 22 Nov 2026 10:00:00 GMT"))
        return faults.Answer(status, (*tags, ("x-ms-blob-type", "BlockBlob"), ("x-ms-creation-time", tags[1][1])))


@pytest.fixture
def azure():
    pytest.importorskip("adlfs")
    with AzureBlobs() as server, faults.FaultProxy(server.url) as proxy:
        endpoint = f"BlobEndpoint={proxy.url}/account"
        options = {
            "connection_string": f"DefaultEndpointsProtocol=http;AccountName=account;AccountKey=a2V5;{endpoint};"
        }
        yield SimpleNamespace(
            server=server,
            proxy=proxy,
            options=options | {"skip_instance_cache": True},
            url="az://container/object".format,
        )


@pytest.mark.parametrize("nbytes", [0, 100, PART, PART + 1, 3 * PART + 7])
def test_azure_of_every_size(azure, nbytes):
    data = content(nbytes)
    put(azure, "object", data)
    assert azure.server.blobs == {"/account/container/object": data}
    assert azure.server.most <= PART, "it is cut"
    assert len(azure.server.blocks) == (-(-nbytes // PART) if nbytes > 1 << 20 else 0)


def test_azure_shows_nothing_before_the_end_and_nothing_after_an_exception(azure):
    azure.server.blobs["/account/container/object"] = b"old"
    with pytest.raises(Midway):
        fail_midway(azure, "object", content(3 * PART), lambda: until(lambda: azure.server.blocks))
    assert azure.server.blobs == {"/account/container/object": b"old"}


@pytest.mark.parametrize("which", [{"key": "comp=block&"}, {"key": "comp=blocklist"}, {"method": "HEAD"}])
def test_azure_refuses(azure, which):
    azure.server.blobs["/account/container/object"] = b"old"
    rule = azure.proxy.fail(faults.status(403), **{"method": "PUT", **which})
    with pytest.raises(mzstore.StorageError, match="cannot write 'az://container/object'"):
        put(azure, "object", content(2 * PART))
    assert rule.met >= 1
    if which.get("method") != "HEAD":
        assert azure.server.blobs == {"/account/container/object": b"old"}


def test_azure_loses_the_answer_to_the_commit(azure):
    rule = azure.proxy.fail(faults.lost, method="PUT", key="comp=blocklist", times=1)
    data = content(2 * PART)
    put(azure, "object", data, retry=Retry(timeout=2, attempts=3, backoff=0.01))
    assert rule.met == 1
    assert azure.server.blobs == {"/account/container/object": data}


# Where nothing can be written


@pytest.mark.parametrize("kind", ["archive", "tree"])
def test_the_web_is_read_only(http_server, kind):
    http_server.forget()
    url = f"{http_server.url}/model"
    with pytest.raises(mzstore.StorageError, match=f"cannot write '{url}': .*not written"):
        mzstore.save(url, {"w": np.zeros(3)}, kind=kind)
    assert http_server.requests() == []


@pytest.mark.parametrize("nbytes", [100, 3 * PART])
@pytest.mark.parametrize("wrong", ["secret", "endpoint"])
def test_a_storage_that_is_not_there(s3, wrong, nbytes):
    url, options = s3.url("object"), dict(s3.options)
    if wrong == "secret":
        options |= {key: "wrong" for key in options if "secret" in key}
    else:
        options |= {key: "http://127.0.0.1:9" for key in options if key.startswith("endpoint")}
    with pytest.raises(mzstore.StorageError, match="cannot write"), RemoteSink(url, options, retry=QUICK) as sink:
        sink.write(content(nbytes))


def test_a_scheme_that_nobody_knows():
    with pytest.raises(mzstore.StorageError, match="cannot write 'nowhere://a/b'"):
        RemoteSink("nowhere://a/b", None)


# Sizes of parts


def test_enough_parts_for_the_largest_object(monkeypatch):
    monkeypatch.setattr(upload, "PART_NBYTES", 16 << 20)
    sizes = [part_nbytes(number, 0, growing=True) for number in range(upload.MAX_PARTS)]
    assert sum(sizes) >= 5 << 40, "the most that S3 takes"
    assert max(sizes) <= 5 << 30, "the largest part that S3 takes"
    assert sizes == sorted(sizes)


@pytest.mark.parametrize("growing", [False, True])
@pytest.mark.parametrize("expected", [1, 16 << 20, 140_000_000_000, 1_400_000_000_001, 5 << 40])
def test_parts_are_of_one_size_where_the_size_is_known(monkeypatch, expected, growing):
    monkeypatch.setattr(upload, "PART_NBYTES", 16 << 20)
    size = part_nbytes(0, expected, growing)
    enough = 9000
    assert size * enough >= expected
    assert {part_nbytes(number, expected, growing) for number in range(enough)} == {size}
    assert size % (256 << 10) == 0, "GCS takes no others"
    assert size <= max(16 << 20, expected // enough + (1 << 20)), "and no larger than it has to be"

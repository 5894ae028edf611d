"""Uploads: what is written to object storage comes whole or not at all, by parts, within bounded memory."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import faults
import fsspec
import numpy as np
import pytest
from places import S3Place

import mzstore
from mzstore.storage import Retry, create_folder, upload
from mzstore.storage.upload import RemoteFolderSink, RemoteSink, part_nbytes

OBSTORE = "s3a"
PART = 5 << 20  # the least that S3 takes; the tests would be slow with 16 MiB
QUICK = Retry(timeout=5, attempts=3, backoff=0.01)
COMPLETION = dict(method="POST", key=r"\?uploadId=")


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


@pytest.mark.parametrize("nbytes", [0, 100, PART + 1, 4 * PART])
def test_an_exception_leaves_what_was_there(s3, nbytes):
    s3.put("object", b"old")
    with pytest.raises(Midway), RemoteSink(s3.url("object"), s3.options, retry=QUICK) as sink:
        sink.write(content(nbytes))
        raise Midway
    assert get(s3, "object") == b"old"
    assert s3.uploads() == []


@pytest.mark.parametrize("protocol", ["memory", "local"])
@pytest.mark.parametrize("nbytes", [0, 100, 2 * PART])
def test_an_exception_elsewhere(protocol, nbytes, tmp_path):
    folder = f"{protocol}://{tmp_path}/{uuid.uuid4()}"
    with pytest.raises(Midway), RemoteSink(f"{folder}/object", None) as sink:
        sink.write(content(nbytes))
        raise Midway
    fs, path = fsspec.core.url_to_fs(folder)
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
        "create": dict(method="POST", key="uploads"),
        "part": dict(method="PUT", key="partNumber=2"),
        "completion": COMPLETION,
        "put": dict(method="PUT"),
        "head": dict(method="HEAD"),
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

"""Objects under a root: what decides between writers, and what becomes of answers that are lost, late or wrong."""

import threading
import uuid
import warnings

import faults
import pytest
from faults import Answer, etag
from places import S3Place

from mzstore.errors import StorageError
from mzstore.storage import Objects, Retry, open_objects

SHORT = Retry(timeout=2, attempts=4, backoff=0.01)


@pytest.fixture(params=["local", "memory", "s3fs", "obstore"])
def objects(request, tmp_path) -> Objects:
    if request.param == "local":
        return open_objects(tmp_path / "root")
    if request.param == "memory":
        return open_objects(f"memory://{uuid.uuid4().hex}/root")
    return at(s3(request, request.param))


def s3(request, kind: str) -> S3Place:
    proxy = request.getfixturevalue("s3_proxy")
    proxy.forget()
    request.addfinalizer(proxy.mend)
    return S3Place(
        proxy, uuid.uuid4().hex, "s3" if kind == "s3fs" else "s3a", request.getfixturevalue("s3_server")
    )  # s3a: of conftest.OBSTORE


def at(place: S3Place) -> Objects:
    return open_objects(place.url("root"), place.options, SHORT)


@pytest.fixture(params=["s3fs", "obstore"])
def place(request) -> S3Place:
    return s3(request, request.param)


def test_what_is_put_is_there_and_what_is_removed_is_not(objects):
    assert objects.get("a/b", 10) is None
    assert objects.nbytes("a/b") is None
    assert objects.listing("a") == {}
    objects.put("a/b", b"one")
    objects.put("a/b", b"three")
    objects.put("ab/c", b"")
    assert objects.get("a/b", 10) == b"three"
    assert objects.nbytes("a/b") == 5
    assert {key: found.nbytes for key, found in objects.listing("a").items()} == {"a/b": 5}
    assert objects.listing("a")["a/b"].modified > 1e9
    objects.remove("a/b")
    objects.remove("a/b")
    assert objects.get("a/b", 10) is None
    assert objects.listing("a") == {}


def test_more_than_is_wanted_is_not_read(objects):
    objects.put("a/b", b"12345")
    with pytest.raises(StorageError):
        objects.get("a/b", 4)


def test_only_the_first_creates(objects):
    assert objects.exclusive()
    assert objects.create("m/1", b"first")
    for other in (b"second", b"2", b"", b"f1rst"):
        assert not objects.create("m/1", other)
    assert objects.get("m/1", 10) == b"first"
    assert objects.create("m/1", b"first"), "the same again is a lost answer"


def test_of_many_that_create_one_wins(objects):
    objects.exclusive()
    won: list[bytes] = []
    barrier = threading.Barrier(8)

    def create(data: bytes) -> None:
        barrier.wait()
        if objects.create("m/1", data):
            won.append(data)

    threads = [threading.Thread(target=create, args=(f"writer {i}".encode(),)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert won == [objects.get("m/1", 100)]


def test_the_probe_leaves_nothing(objects):
    objects.exclusive()
    assert objects.listing("") == {}


def test_an_answer_that_is_lost_is_settled_by_reading(place):
    objects = at(place)
    assert objects.exclusive()
    rule = place.proxy.fail(faults.lost, method="PUT", key="m/1", times=1)
    assert objects.create("m/1", b"mine")
    assert rule.met == 1
    assert objects.get("m/1", 10) == b"mine"


def test_answers_that_are_always_lost_are_settled_as_well(place):
    objects = at(place)
    assert objects.exclusive()
    place.proxy.fail(faults.lost, method="PUT", key="m/1")
    assert objects.create("m/1", b"mine")


@pytest.mark.parametrize("number", [409, 503])
def test_what_may_pass_is_tried_again(place, number):
    objects = at(place)
    assert objects.exclusive()
    rule = place.proxy.fail(faults.status(number), method="PUT", key="m/1", times=2)
    assert objects.create("m/1", b"mine")
    assert rule.met == 2


@pytest.mark.parametrize("number", [403, 409, 412])
def test_what_never_passes_is_an_error_and_nothing_is_there(place, number):
    objects = at(place)
    assert objects.exclusive()
    place.proxy.fail(faults.status(number), method="PUT", key="m/1")
    with pytest.raises(StorageError):
        objects.create("m/1", b"mine")
    place.proxy.mend()
    assert objects.get("m/1", 10) is None


def test_a_listing_that_fails_is_not_empty(place):
    objects = at(place)
    objects.put("a/b", b"1")
    place.proxy.fail(faults.status(403), method="GET", key="list-type")
    with pytest.raises(StorageError):
        objects.listing("a")


def test_a_server_that_knows_no_conditions_is_noticed(place):
    """It takes every PUT, as one that ignores If-None-Match does."""

    def take(exchange, proxy):
        place.put(exchange.request.key.partition(f"{place.prefix}/")[2], exchange.body)
        exchange.send(Answer(200, (("ETag", etag(exchange.body)),)).with_body(b""))

    place.proxy.fail(take, method="PUT")
    objects = at(place)
    with pytest.warns(RuntimeWarning, match="two writers of one checkpoint would not notice"):
        assert not objects.exclusive()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is said once
        assert objects.create("m/1", b"first")
        assert not objects.create("m/1", b"second")
    assert objects.get("m/1", 10) == b"first"


def test_a_file_system_without_links_is_noticed(tmp_path, monkeypatch):
    import errno
    import os

    def refuse(*_):
        raise OSError(errno.EPERM, "no links")

    monkeypatch.setattr(os, "link", refuse)
    objects = open_objects(tmp_path)
    with pytest.warns(RuntimeWarning, match="create if there is none"):
        assert objects.create("m/1", b"first")
    assert not objects.create("m/1", b"second")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["1"]

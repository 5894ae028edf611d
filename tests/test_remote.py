"""Remote objects: a fault that passes is survived, one that stays ends in a StorageError, and data are never wrong.

Here are ranges of objects; tests/test_remote_models.py reads models.
"""

import re
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta

import faults
import fsspec
import numpy as np
import pytest
from faults import FaultProxy, ObjectServer

import mzstore
from mzstore.storage import Retry, backends, open_location
from mzstore.storage.base import Blob
from mzstore.storage.upload import RemoteSink

DATA = np.random.default_rng(0).integers(0, 256, 200_000, dtype=np.uint8).tobytes()
OTHER = bytes(255 - byte for byte in DATA)
PATIENT = Retry(timeout=20, attempts=4, backoff=0.001)
IMPATIENT = Retry(timeout=0.3, attempts=2, backoff=0.001)

PASSING = {
    "503": faults.status(503),
    "500": faults.status(500),
    "429": faults.status(429),
    "reset before": faults.reset_before,
    "reset within": faults.reset_within,
    "cut short": faults.cut_short,
    "cut to fit": faults.cut_to_fit,
    "whole object": faults.whole_object(DATA),
    "other range": faults.other_range(DATA),
}
STALLS = {"stall before": faults.stall_before, "stall within": faults.stall_within}
FINAL = {
    "403": faults.status(403),
    "expired, as S3 says it": faults.status(400, "ExpiredToken"),
    "expired, as others say it": faults.status(403, "ExpiredToken"),
    "404": faults.status(404),
}


@pytest.fixture
def opened(place):
    """Opens the object of the place."""
    place.put("object", DATA)

    def opened(retry: Retry = PATIENT) -> Blob:
        blob = open_location(place.url("object"), place.options, retry=retry)
        assert not hasattr(blob, "walk"), "an object, not a folder"
        return blob

    return opened


def ranges(requests) -> list[str]:
    return [request.range for request in requests]


def test_opening_is_one_request(place, opened):
    blob = opened()
    assert (blob.url, blob.nbytes) == (place.url("object"), len(DATA))
    assert ranges(place.requests()) == ["bytes=-65536"]
    assert bytes(blob.read(len(DATA) - 65536, len(DATA))) == DATA[-65536:]
    assert bytes(blob.read(5, 5)) == b""
    assert len(place.requests()) == 1


def test_a_range_is_one_request(place, opened):
    blob = opened()
    place.proxy.forget()
    assert bytes(blob.read(1000, 3000)) == DATA[1000:3000]
    assert ranges(place.requests()) == ["bytes=1000-2999"]


def test_a_small_object_and_an_empty_one(place):
    for data in (b"", b"x", DATA[:65536]):
        place.put("small", data)
        blob = open_location(place.url("small"), place.options, retry=PATIENT)
        assert (blob.nbytes, bytes(blob.read(0, len(data)))) == (len(data), data)


@pytest.mark.parametrize("fault", PASSING)
def test_a_fault_that_passes(place, opened, fault):
    opening = place.proxy.fail(PASSING[fault], times=2)
    blob = opened()
    assert blob.nbytes == len(DATA)
    reading = place.proxy.fail(PASSING[fault], times=3)
    assert bytes(blob.read(1000, 3000)) == DATA[1000:3000]
    assert (opening.met, reading.met) == (2, 3)
    assert ranges(place.requests()) == 3 * ["bytes=-65536"] + 4 * ["bytes=1000-2999"]


@pytest.mark.parametrize("fault", PASSING)
def test_a_fault_that_stays(place, opened, fault):
    blob = opened()
    place.proxy.forget()
    place.proxy.fail(PASSING[fault])
    with pytest.raises(mzstore.StorageError, match=re.escape(blob.url)) as raised:
        blob.read(1000, 3000)
    assert "bytes 1000-3000" in str(raised.value)
    assert "(4 attempts)" in str(raised.value)
    # When a connection ends instead of an answer, aiohttp tries once more by itself.
    most = 2 if fault == "reset before" else 1
    assert set(ranges(place.requests())) == {"bytes=1000-2999"}
    assert 4 <= len(place.requests()) <= 4 * most
    place.proxy.forget()
    with pytest.raises(mzstore.StorageError, match=re.escape(blob.url)):
        opened()
    assert 4 <= len(place.requests()) <= 4 * most


@pytest.mark.parametrize("fault", STALLS)
def test_a_stall(place, opened, fault):
    opened()  # a slow start of the client is no stall
    place.proxy.fail(STALLS[fault], times=1)
    blob = opened(Retry(timeout=0.5, attempts=8, backoff=0.001))
    assert bytes(blob.read(1000, 3000)) == DATA[1000:3000]
    assert len(place.requests()) >= 4

    place.proxy.forget()
    place.proxy.fail(STALLS[fault])
    with pytest.raises(mzstore.StorageError, match=rf"{re.escape(blob.url)}.*no byte for 0\.3 s \(2 attempts\)"):
        opened(IMPATIENT)
    assert ranges(place.requests()) == 2 * ["bytes=-65536"]


@pytest.mark.parametrize("fault", FINAL)
def test_what_does_not_pass_is_not_tried_again(place, opened, fault):
    blob = opened()
    place.proxy.forget()
    place.proxy.fail(FINAL[fault])
    with pytest.raises(mzstore.StorageError, match=re.escape(blob.url)) as raised:
        blob.read(1000, 3000)
    assert "bytes 1000-3000" in str(raised.value)
    assert "attempts" not in str(raised.value)
    assert len(place.requests()) == 1


@pytest.mark.parametrize("other", [OTHER, OTHER[:100_000], OTHER + b"more", OTHER[:500], b""], ids=len)
def test_an_object_that_was_replaced(place, opened, other):
    blob = opened()
    place.put("object", other)
    place.proxy.forget()
    with pytest.raises(mzstore.StorageError, match="changed") as raised:
        blob.read(1000, 3000)
    assert blob.url in str(raised.value)
    assert len(place.requests()) == 1


def test_an_object_that_was_removed(place, opened):
    blob = opened()
    place.remove("object")
    with pytest.raises(mzstore.StorageError, match=re.escape(blob.url)):
        blob.read(1000, 3000)


def test_what_has_come_is_told_before_the_rest_comes(place, opened):
    """So a slow answer is not taken for none."""
    blob, came = opened(), threading.Event()

    def in_two_pieces(exchange, proxy):
        answer = proxy.forward(exchange)
        exchange.send(answer, most=len(answer.body) // 2)
        assert came.wait(10)
        exchange.send_more(answer.body[len(answer.body) // 2 :])

    def on_bytes(data, done):
        if done >= 60_000:
            assert bytes(data[:done]) == DATA[:done]
            came.set()

    place.proxy.fail(in_two_pieces)
    assert bytes(blob.fetch(0, 150_000, blob.start(), on_bytes)) == DATA[:150_000]


def test_an_answer_may_take_any_time_as_long_as_it_comes_on(monkeypatch):
    """aiohttp's own limit for a whole answer, 5 minutes, is lifted; a user's is not."""
    aiohttp = pytest.importorskip("aiohttp")
    short = aiohttp.ClientTimeout(total=0.2)
    monkeypatch.setattr(aiohttp.client, "DEFAULT_TIMEOUT", short)

    def slow(exchange, proxy):
        time.sleep(0.5)
        exchange.send(proxy.forward(exchange))

    with ObjectServer({"/object": DATA}) as server, FaultProxy(server.url) as proxy:
        proxy.fail(slow)
        options = {"skip_instance_cache": True}
        assert open_location(f"{proxy.url}/object", options, retry=PATIENT).nbytes == len(DATA)
        options["client_kwargs"] = {"timeout": short}
        with pytest.raises(mzstore.StorageError):
            open_location(f"{proxy.url}/object", options, retry=IMPATIENT)


def test_obstore_has_no_limit_for_a_whole_answer_but_the_users():
    pytest.importorskip("obstore.fsspec").register("s3a")
    for options, seconds in (({}, 86400), ({"client_options": {"timeout": timedelta(seconds=5)}}, 5)):
        fs, _ = backends.filesystem("s3a://bucket/key", options)
        assert fs.storage_options["client_options"]["timeout"].total_seconds() == seconds
        assert fs.storage_options["retry_config"]["max_retries"] == 0


def test_a_deadline_ends_the_attempts(place, opened):
    place.proxy.fail(faults.status(503))
    with pytest.raises(mzstore.StorageError, match="deadline"):
        opened(Retry(timeout=20, attempts=1_000_000, deadline=0.5, backoff=0.01))
    place.proxy.fail(faults.stall_before)
    with pytest.raises(mzstore.StorageError, match="deadline"):
        opened(Retry(timeout=20, attempts=1_000_000, deadline=0.5, backoff=0.01))


def test_reads_of_one_operation_have_one_deadline(place, opened):
    blob = opened(Retry(timeout=20, attempts=1_000_000, deadline=1, backoff=0.01))
    operation = blob.start()
    with pytest.raises(mzstore.StorageError, match="deadline"):
        operation.run(lambda attempt: Future(), "wait")
    place.proxy.fail(faults.stall_before)
    with pytest.raises(mzstore.StorageError, match="deadline"):
        blob.read(1000, 3000, operation=operation)


@pytest.mark.parametrize("place", ["s3fs"], indirect=True)
def test_waiting_for_a_connection_is_no_silence(place):
    """Two loads share a client that has one connection; the answer to the first takes longer than the timeout."""
    place.put("object", DATA)
    options = place.options | {"config_kwargs": {"max_pool_connections": 1}}
    blob = open_location(place.url("object"), options, retry=Retry(timeout=0.8, attempts=1))
    begun = threading.Event()

    def slow(exchange, proxy):
        answer = proxy.forward(exchange)
        exchange.send(answer, most=10)
        begun.set()
        for start in range(10, 60, 10):
            time.sleep(0.3)
            exchange.send_more(answer.body[start : start + 10])

    place.proxy.fail(slow, covers=1000)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(blob.read, 1000, 1060)
        assert begun.wait(10)
        second = pool.submit(blob.read, 2000, 3000)
        assert bytes(first.result()) == DATA[1000:1060]
        assert bytes(second.result()) == DATA[2000:3000]


def test_a_client_that_is_never_ready(monkeypatch):
    """As one that looks for credentials where nobody answers."""

    class Hanging(fsspec.AbstractFileSystem):
        cachable = False

        def __init__(self, **options):
            ready.wait(30)

    ready = threading.Event()
    fsspec.register_implementation("hanging", Hanging, clobber=True)
    try:
        for retry in (Retry(timeout=0.2), Retry(timeout=20, deadline=0.2)):
            with pytest.raises(mzstore.StorageError, match="cannot open 'hanging://x/y': its client is not ready"):
                open_location("hanging://x/y", retry=retry)
        with pytest.raises(mzstore.StorageError, match="cannot write 'hanging://x/y': its client is not ready"):
            RemoteSink("hanging://x/y", None, retry=Retry(timeout=0.2))
    finally:
        ready.set()


def test_a_signed_url_is_no_folder():
    with ObjectServer({"/object": DATA}) as server:
        assert open_location(f"{server.url}/object?signature=1").nbytes == len(DATA)
        server.forget()
        for name in ("missing.mz", "missing.zarr"):
            with pytest.raises(mzstore.StorageError, match=r"missing.*\?\.\.\.'.*no such object"):
                mzstore.open(f"{server.url}/{name}?signature=1", retry=PATIENT)
        assert len(server.requests()) == 2


def test_no_message_shows_a_signature_or_a_password():
    with ObjectServer({"/object": DATA}) as server:
        blob = open_location(f"{server.url}/object?signature=abc", retry=PATIENT)
        assert blob.url == f"{server.url}/object?..."
        with pytest.raises(mzstore.StorageError) as found:
            open_location(f"{server.url}/missing?signature=abc", retry=PATIENT)
    secret = server.url.replace("://", "://me:abc@")
    with pytest.raises(mzstore.StorageError) as also:
        open_location(f"{secret}/folder.zarr?signature=abc", retry=PATIENT).read("key", 100)
    assert "/missing?..." in str(found.value)
    assert "abc" not in str(found.value) + str(also.value)


def test_names_as_they_come(place):
    for name in ("a b.mz", "ümlaut.mz", "plus+and=.mz"):
        place.put(name, DATA[:10])
        blob = open_location(place.url(name), place.options, retry=PATIENT)
        assert bytes(blob.read(2, 5)) == DATA[2:5]


def test_options_of_an_async_program(place):
    place.put("object", DATA)
    blob = open_location(place.url("object"), place.options | {"asynchronous": True}, retry=PATIENT)
    assert bytes(blob.read(1000, 3000)) == DATA[1000:3000]


@pytest.mark.parametrize("tags", ["weak", "date"])
def test_a_web_server_whose_versions_cannot_be_asked_for(tags):
    with ObjectServer({"/object": DATA}, tags) as server:
        blob = open_location(f"{server.url}/object", retry=PATIENT)
        assert bytes(blob.read(1000, 3000)) == DATA[1000:3000]
        server.objects["/object"] = OTHER
        with pytest.raises(mzstore.StorageError, match="changed"):
            blob.read(1000, 3000)


def test_a_web_server_that_tells_no_version():
    """Then the size is the only sign."""
    with ObjectServer({"/object": DATA}, "none") as server:
        blob = open_location(f"{server.url}/object", retry=PATIENT)
        assert bytes(blob.read(1000, 3000)) == DATA[1000:3000]
        server.objects["/object"] = OTHER + b"more"
        with pytest.raises(mzstore.StorageError, match=r"changed.*200004 bytes, not 200000.*bytes 1000-3000"):
            blob.read(1000, 3000)


def test_a_small_object_that_comes_whole():
    """From a server that knows no ranges: it is what was asked for."""
    with ObjectServer({"/object": DATA[:1000]}) as server, FaultProxy(server.url) as proxy:
        proxy.fail(faults.whole_object(DATA[:1000]))
        blob = open_location(f"{proxy.url}/object", retry=PATIENT)
        assert (blob.nbytes, bytes(blob.read(5, 9))) == (1000, DATA[5:9])


def test_a_part_that_does_not_say_which():
    """A 206 without Content-Range; it must not be taken for a whole object."""

    def unsaid(exchange, proxy):
        answer = proxy.forward(exchange)
        headers = tuple(header for header in answer.headers if header[0] != "Content-Range")
        exchange.send(faults.Answer(answer.status, headers, answer.body))

    with ObjectServer({"/object": DATA}) as server, FaultProxy(server.url) as proxy:
        proxy.fail(unsaid, times=2)
        blob = open_location(f"{proxy.url}/object", retry=PATIENT)
        assert blob.nbytes == len(DATA)


def test_a_web_server_that_knows_no_ranges():
    with ObjectServer({"/object": DATA}) as server, FaultProxy(server.url) as proxy:
        proxy.fail(faults.whole_object(DATA), key="object")
        with pytest.raises(mzstore.StorageError, match="does the server know ranges"):
            open_location(f"{proxy.url}/object", retry=PATIENT)


def test_nobody_listens():
    with ObjectServer() as server:
        url = f"{server.url}/object"
    with pytest.raises(mzstore.StorageError, match=re.escape(url)):
        open_location(url, retry=PATIENT)

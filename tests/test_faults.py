"""The servers that the tests of remote storage rely on do what they say."""

import http.client
import socket
from urllib.parse import urlsplit

import faults
import pytest
from faults import FaultProxy, ObjectServer

DATA = bytes(range(256)) * 40
TAG = faults.etag(DATA)


@pytest.fixture
def server():
    with ObjectServer({"/a/model.mz": DATA}) as server:
        yield server


@pytest.fixture
def proxy(server):
    with FaultProxy(server.url) as proxy:
        yield proxy


def ask(server, method="GET", path="/a/model.mz", body=None, **headers):
    """(status, headers, body) of one request; headers are given with underscores."""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=10)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


# The server of ranges


@pytest.mark.parametrize(
    ("header", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=10-99", 10, 100),
        ("bytes=10200-", 10200, 10240),
        ("bytes=10200-99999", 10200, 10240),
        ("bytes=-7", 10233, 10240),
        ("bytes=-99999", 0, 10240),
    ],
)
def test_a_range(server, header, start, stop):
    status, headers, body = ask(server, Range=header)
    assert (status, body, headers["ETag"]) == (206, DATA[start:stop], TAG)
    assert headers["Content-Range"] == f"bytes {start}-{stop - 1}/10240"
    assert server.nbytes == stop - start


def test_the_whole_object_and_its_head(server):
    status, headers, body = ask(server)
    assert (status, body, headers["Content-Length"]) == (200, DATA, "10240")
    status, headers, body = ask(server, "HEAD")
    assert (status, body, headers["Content-Length"], headers["ETag"]) == (200, b"", "10240", TAG)
    assert server.nbytes == len(DATA)


def test_refusals(server):
    assert ask(server, path="/a/other.mz")[0] == 404
    assert ask(server, "PUT", body=b"new")[0] == 405
    status, headers, _ = ask(server, Range="bytes=10240-10250")
    assert (status, headers["Content-Range"]) == (416, "bytes */10240")


def test_objects_change_while_it_runs(server):
    assert ask(server, Range="bytes=0-3", If_Match=TAG)[0] == 206
    server.objects["/a/model.mz"] = b"new data"
    assert ask(server, Range="bytes=0-3", If_Match=TAG)[0] == 412
    assert ask(server, Range="bytes=0-3", If_Match="*")[2] == b"new "
    del server.objects["/a/model.mz"]
    assert ask(server)[0] == 404


@pytest.mark.parametrize(("tags", "header"), [("weak", "ETag"), ("date", "Last-Modified")])
def test_versions_that_cannot_be_asked_for(tags, header):
    with ObjectServer({"/a/model.mz": DATA}, tags) as server:
        first = ask(server)[1][header]
        assert ask(server)[1][header] == first
        assert ask(server, If_Match=first)[0] == 412
        server.objects["/a/model.mz"] = b"new data"
        assert ask(server)[1][header] != first


def test_requests_are_written_down(proxy, server):
    ask(proxy, Range="bytes=10-99")
    ask(proxy, "HEAD")
    ask(proxy, path="/b?list-type=2&prefix=a%2F")
    for side in (proxy, server):
        first, second, third = side.requests()
        assert (first.method, first.key, first.range, first.span) == ("GET", "/a/model.mz", "bytes=10-99", (10, 100))
        assert (second.method, second.range, second.span) == ("HEAD", "", None)
        assert (third.key, third.query, third.lists) == ("/b", "list-type=2&prefix=a%2F", True)
        assert not first.lists
        assert first.time <= second.time <= third.time
        assert side.requests("GET", "model") == [first]
        side.forget()
        assert side.requests() == []


# The proxy


def test_without_rules_nothing_changes(proxy):
    status, headers, body = ask(proxy, Range="bytes=10-99")
    assert (status, headers["Content-Range"], headers["ETag"], body) == (206, "bytes 10-99/10240", TAG, DATA[10:100])
    status, headers, body = ask(proxy, "HEAD")
    assert (status, headers["Content-Length"], body) == (200, "10240", b"")


def test_a_connection_is_kept(proxy):
    connection = http.client.HTTPConnection(urlsplit(proxy.url).netloc, timeout=10)
    for _ in range(3):
        connection.request("GET", "/a/model.mz")
        assert connection.getresponse().read() == DATA
        sock = connection.sock
        assert sock is not None
    assert connection.sock is sock
    connection.close()


def test_continue_is_answered_before_the_body_is_sent(proxy):
    with socket.create_connection(("127.0.0.1", urlsplit(proxy.url).port), timeout=10) as sock:
        sock.sendall(b"PUT /a/model.mz HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
        assert sock.recv(1000).startswith(b"HTTP/1.1 100 ")
        sock.sendall(b"new")
        assert sock.recv(1000).startswith(b"HTTP/1.1 405 ")  # the server of ranges takes no PUT


def test_which_requests_fail(proxy):
    rule = proxy.fail(faults.status(503), key=r"model\.mz", skip=1, times=2)
    assert ask(proxy, "HEAD")[0] == 200
    assert ask(proxy, path="/other")[0] == 404
    assert [ask(proxy)[0] for _ in range(5)] == [200, 503, 503, 200, 200]
    assert rule.met == 2
    proxy.fail(faults.status(500), covers=100)
    assert [ask(proxy, Range=f"bytes={r}")[0] for r in ("0-99", "0-100", "100-101", "101-102")] == [206, 500, 500, 206]
    proxy.mend()
    assert ask(proxy, Range="bytes=0-100")[0] == 206


def test_rules_are_used_up_one_after_the_other(proxy):
    proxy.fail(faults.status(503), times=1)
    proxy.fail(faults.status(429), times=1)
    assert [ask(proxy)[0] for _ in range(3)] == [503, 429, 200]


def test_an_error_is_told_as_s3_does(proxy, server):
    proxy.fail(faults.status(403, "ExpiredToken"), times=1)
    status, headers, body = ask(proxy)
    assert (status, headers["Content-Type"]) == (403, "application/xml")
    assert b"<Code>ExpiredToken</Code>" in body
    proxy.fail(faults.status(503))
    assert ask(proxy, "HEAD")[0] == 200  # a rule is about GET if it says nothing else
    assert b"<Code>SlowDown</Code>" in ask(proxy)[2]
    assert [request.method for request in server.requests()] == ["HEAD"]


def test_resets(proxy, server):
    proxy.fail(faults.reset_before, times=1)
    with pytest.raises(ConnectionResetError):
        ask(proxy)
    assert server.requests() == []
    proxy.fail(faults.reset_within)
    with pytest.raises((ConnectionResetError, http.client.IncompleteRead)):
        ask(proxy)


def test_cut_bodies(proxy):
    proxy.fail(faults.cut_short, times=1)
    with pytest.raises(http.client.IncompleteRead) as raised:
        ask(proxy, Range="bytes=0-99")
    assert raised.value.partial == DATA[:50]
    proxy.fail(faults.cut_to_fit)
    status, headers, body = ask(proxy, Range="bytes=0-99")
    assert (status, headers["Content-Length"], body) == (206, "50", DATA[:50])


@pytest.mark.parametrize(("fault", "count"), [(faults.stall_before, 0), (faults.stall_within, 50)])
def test_stalls_end_when_the_proxy_is_mended(proxy, fault, count):
    proxy.fail(fault)
    with socket.create_connection(("127.0.0.1", urlsplit(proxy.url).port), timeout=10) as sock:
        sock.sendall(b"GET /a/model.mz HTTP/1.1\r\nHost: x\r\nRange: bytes=0-99\r\n\r\n")
        received = b""
        while received.partition(b"\r\n\r\n")[2] != DATA[:count]:
            received += sock.recv(1000)
        sock.settimeout(0.1)
        with pytest.raises(TimeoutError):
            sock.recv(1000)
        sock.settimeout(10)
        proxy.mend()
        assert sock.recv(1000) == b""


def test_wrong_answers(proxy):
    proxy.fail(faults.whole_object(DATA), times=1)
    status, _, body = ask(proxy, Range="bytes=0-99")
    assert (status, body) == (200, DATA)
    proxy.fail(faults.other_range(DATA), times=1)
    status, headers, body = ask(proxy, Range="bytes=10-99")
    assert (status, headers["Content-Range"], body) == (206, "bytes 9-98/10240", DATA[9:99])
    proxy.fail(faults.flipped)
    status, _, body = ask(proxy, Range="bytes=0-99")
    assert sum((a ^ b).bit_count() for a, b in zip(body, DATA[:100], strict=True)) == 1


def test_a_lost_answer_is_one_to_a_request_that_took_effect(proxy, server):
    proxy.fail(faults.lost, method="PUT")
    with pytest.raises(ConnectionResetError):
        ask(proxy, "PUT", body=b"new")
    assert [request.method for request in server.requests()] == ["PUT"]

"""The S3 server and the slow link that tests and benchmarks use do what they say."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

s3fs = pytest.importorskip("s3fs")
from servers import SeaweedFS, weed  # noqa: E402
from shaper import Link  # noqa: E402

try:
    weed()
except FileNotFoundError as error:
    pytest.skip(str(error), allow_module_level=True)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with SeaweedFS(tmp_path_factory.mktemp("weed")) as running:
        yield running


def filesystem(server, endpoint=None):
    return s3fs.S3FileSystem(**server.storage_options(endpoint), skip_instance_cache=True, use_listings_cache=False)


def test_objects_come_back(server):
    fs, data = filesystem(server), os.urandom(5_000_011)
    fs.pipe_file(f"{server.bucket}/a/b", data)
    assert fs.cat_file(f"{server.bucket}/a/b", start=4_194_301, end=4_194_311) == data[4_194_301:4_194_311]
    assert fs.cat_file(f"{server.bucket}/a/b") == data


def test_wrong_credentials_are_refused(server):
    fs = s3fs.S3FileSystem(**server.storage_options() | {"secret": "wrong"}, skip_instance_cache=True)
    with pytest.raises(PermissionError):
        fs.cat_file(f"{server.bucket}/ready")


def test_nothing_is_left_after_an_exception(tmp_path):
    groups = []

    def fail():
        with SeaweedFS(tmp_path) as server:
            groups.append(os.getpgid(server._process.pid))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with pytest.raises(ProcessLookupError):
        os.killpg(groups[0], 0)


def test_the_link_carries_what_the_server_has_and_counts(server):
    data = os.urandom(3_000_017)
    filesystem(server).pipe_file(f"{server.bucket}/through/link", data)
    with Link(server.port) as link:
        link.set(gbit_per_s=8, rtt_ms=2)
        fs = filesystem(server, link.endpoint)
        assert fs.cat_file(f"{server.bucket}/through/link") == data
        first = link.counts()
        assert fs.cat_file(f"{server.bucket}/through/link", start=7, end=2_000_018) == data[7:2_000_018]
        second = link.counts()
    assert first["connections"] >= 1
    assert first["requests"] >= 1
    assert first["nbytes"] > len(data)
    assert second["requests"] == 1
    assert 2_000_011 < second["nbytes"] < 2_000_011 + 2000  # and a header

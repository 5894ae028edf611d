"""Fixtures that several test files share."""

import subprocess
import uuid

import pytest
from faults import FaultProxy, ObjectServer
from forge import Forged, every_kind
from places import HttpPlace, Place, S3Place

from tools.servers import SeaweedFS, weed

OBSTORE = "s3a"  # registered for it; s3 stays that of s3fs


@pytest.fixture
def forged() -> Forged:
    """A valid model of a tensor of every kind, as editable documents and payloads."""
    return every_kind()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory):
    """SeaweedFS on loopback; one for all tests, which is why they choose prefixes of their own."""
    pytest.importorskip("s3fs")
    pytest.importorskip("obstore.fsspec").register(OBSTORE)
    try:
        weed()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    with SeaweedFS(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server


@pytest.fixture(scope="session")
def s3_proxy(s3_server):
    with FaultProxy(s3_server.endpoint) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def http_server():
    with ObjectServer() as server:
        yield server


@pytest.fixture(scope="session")
def http_proxy(http_server):
    with FaultProxy(http_server.url) as proxy:
        yield proxy


@pytest.fixture(params=["http", "s3fs", "obstore"])
def place(request) -> Place:
    """Each kind of remote storage, behind a proxy that has no rules and has written nothing down."""
    prefix = uuid.uuid4().hex
    pytest.importorskip("aiohttp")
    if request.param == "http":
        proxy = request.getfixturevalue("http_proxy")
        place = HttpPlace(proxy, prefix, request.getfixturevalue("http_server"))
    else:
        proxy = request.getfixturevalue("s3_proxy")
        protocol = "s3" if request.param == "s3fs" else OBSTORE
        place = S3Place(proxy, prefix, protocol, request.getfixturevalue("s3_server"))
    proxy.forget()
    yield place
    proxy.mend()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], capture_output=True, check=False)
    if made.returncode:
        pytest.skip(f"needs the right to mount a tmpfs: {made.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)

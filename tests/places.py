"""Places of objects for tests: S3 by s3fs and by obstore, and HTTP, each behind a fault proxy; put to and asked directly."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from faults import FaultProxy, ObjectServer, Request

from tools.servers import SeaweedFS


class Place(ABC):
    """A prefix of its own, so that tests share servers and not objects."""

    def __init__(self, proxy: FaultProxy, prefix: str) -> None:
        self.proxy, self.prefix = proxy, prefix
        self.options: dict[str, Any] = {}

    @abstractmethod
    def url(self, name: str) -> str:
        """What a user of the proxy opens."""

    def put(self, name: str, data: bytes) -> None:
        """Put an object there, not by way of the proxy."""
        self.put_all({name: data})

    @abstractmethod
    def put_all(self, objects: Mapping[str, bytes]) -> None: ...

    @abstractmethod
    def remove(self, name: str) -> None: ...

    def requests(self, name: str = "", method: str = "") -> list[Request]:
        """Those that came by way of the proxy for objects of this place."""
        return self.proxy.requests(method, f"{self.prefix}/{name}")

    def listings(self) -> list[Request]:
        return [request for request in self.proxy.requests() if request.lists]


class HttpPlace(Place):
    def __init__(self, proxy: FaultProxy, prefix: str, server: ObjectServer) -> None:
        super().__init__(proxy, prefix)
        self._server = server

    def url(self, name: str) -> str:
        return f"{self.proxy.url}/{self.prefix}/{name}"

    def put_all(self, objects: Mapping[str, bytes]) -> None:
        self._server.objects.update({f"/{self.prefix}/{name}": data for name, data in objects.items()})

    def remove(self, name: str) -> None:
        del self._server.objects[f"/{self.prefix}/{name}"]


class S3Place(Place):
    """``protocol`` s3 is served by s3fs, s3a by obstore."""

    def __init__(self, proxy: FaultProxy, prefix: str, protocol: str, server: SeaweedFS) -> None:
        import s3fs

        super().__init__(proxy, prefix)
        self._protocol, self._bucket = protocol, server.bucket
        self._direct = s3fs.S3FileSystem(**server.storage_options(), use_listings_cache=False)
        self.options = server.storage_options(proxy.url)
        if protocol != "s3":
            self.options = {
                "access_key_id": server.key,
                "secret_access_key": server.secret,
                "endpoint": proxy.url,
                "region": server.region,
                "client_options": {"allow_http": True},
            }

    def url(self, name: str) -> str:
        return f"{self._protocol}://{self._bucket}/{self.prefix}/{name}"

    def put_all(self, objects: Mapping[str, bytes]) -> None:
        self._direct.pipe({f"{self._bucket}/{self.prefix}/{name}": data for name, data in objects.items()})

    def remove(self, name: str) -> None:
        self._direct.rm_file(f"{self._bucket}/{self.prefix}/{name}")

    def names(self) -> list[str]:
        """All objects of this place."""
        answer = self._call("list_objects_v2", Prefix=f"{self.prefix}/")
        return [entry["Key"].removeprefix(f"{self.prefix}/") for entry in answer.get("Contents", [])]

    def uploads(self) -> list[str]:
        """The objects of this place that have multipart uploads under way."""
        answer = self._call("list_multipart_uploads")
        keys = [entry["Key"] for entry in answer.get("Uploads", [])]
        return [key.removeprefix(f"{self.prefix}/") for key in keys if key.startswith(f"{self.prefix}/")]

    def _call(self, method: str, **arguments: Any) -> dict[str, Any]:
        return self._direct.call_s3(method, Bucket=self._bucket, **arguments)

"""Node names: what a tensor or an asset is called inside the container (FORMAT.md section 6.3).

A node name is safe in Zarr, ZIP, S3 and on the disks of Linux, macOS and Windows. It is only a key: the true
name stands in the documents, and no reader has to decode it.
"""

import hashlib
import re

MAX_NODE_LENGTH = 200  # with the longest key below it, under the 255 bytes of a file name and the 1,024 of an S3 key
ASSETS = "assets"
LAYOUTS = "layouts"
RESERVED = frozenset({"zarr.json", ASSETS, LAYOUTS})  # in any case: disks may fold it

SAFE = re.compile(r"[A-Za-z0-9._%~-]{1,200}")
_SEGMENT = rf"(?!\.+(?:/|\Z)){SAFE.pattern}"
_KEY = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT})*")
_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
_WINDOWS = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\.|$)", re.IGNORECASE)


def is_node_name(text: str) -> bool:
    """Whether ``text`` may be a path segment of the container."""
    return SAFE.fullmatch(text) is not None and text.strip(".") != ""


def is_key(text: str) -> bool:
    """Whether ``text`` is node names with slashes between them. One match, because an archive has a key for each chunk."""
    return _KEY.fullmatch(text) is not None


def encode(name: str) -> str:
    """A node name for ``name``; two names may share one (see ``Namer``)."""
    data = name.encode()
    text = "".join(chr(b) if b in _PLAIN else f"%{b:02X}" for b in data) or "%"
    if text.startswith(("__", ".")) or text.lower() in RESERVED or _WINDOWS.match(text):
        text = f"%{ord(text[0]):02X}{text[1:]}"
    if text.endswith("."):
        text = f"{text[:-1]}%2E"
    if len(text) > MAX_NODE_LENGTH:
        text = f"{text[: MAX_NODE_LENGTH - 17]}~{hashlib.sha256(data).hexdigest()[:16]}"
    return text


class Namer:
    """Gives out keys that stay distinct where upper and lower case fold together."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def node(self, name: str) -> str:
        """A node name for a tensor."""
        return self._distinct(encode(name))

    def path(self, path: str) -> str:
        """A key below ASSETS for a file: the same folders, each segment encoded."""
        *folders, name = path.split("/")
        return self._distinct("/".join((ASSETS, *map(encode, folders), encode(name))))

    def _distinct(self, key: str) -> str:
        base, count = key, 1
        while key.casefold() in self._taken:
            count += 1
            suffix = f"~{count}"
            folder, slash, last = base.rpartition("/")
            key = f"{folder}{slash}{last[: MAX_NODE_LENGTH - len(suffix)]}{suffix}"
        self._taken.add(key.casefold())
        return key

"""Adapter files in one directory, named by their sha256.

`put`, `remove` and `sweep` are called only by the holder of the database's write lock. So one name
suffices for the file being written, and no file can be taken away while another process adds it.
"""

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path

from registry.errors import BlobCorrupt, BlobNotFound
from registry.files import make_directory, sync_directory

INCOMING = "incoming"

_DIGEST = re.compile(r"[0-9a-f]{64}")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def is_digest(text: str) -> bool:
    return _DIGEST.fullmatch(text) is not None


class BlobStore:
    """Files are complete and on disk before they get their name. May raise OSError."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def put(self, digest: str, data: bytes) -> None:
        """Make the bytes durable under their digest; mends a file whose content is wrong."""
        make_directory(self._directory)
        path = self._directory / digest
        if not _holds(path, data):
            self._write(path, data)
        sync_directory(self._directory)

    def read(self, digest: str) -> bytes:
        """Return the bytes.

        Raises:
            BlobNotFound
            BlobCorrupt: If they have another digest.
        """
        try:
            data = (self._directory / digest).read_bytes()
        except FileNotFoundError:
            raise BlobNotFound(digest) from None
        if sha256(data) != digest:
            raise BlobCorrupt(digest)
        return data

    def remove(self, digest: str) -> None:
        (self._directory / digest).unlink(missing_ok=True)

    def sweep(self, is_used: Callable[[str], bool], before: float) -> int:
        """Remove what crashes left before a time, and nothing whose name is not ours. Return how many."""
        paths = list(self._directory.iterdir()) if self._directory.is_dir() else []
        left = [
            path
            for path in paths
            if (path.name == INCOMING or (is_digest(path.name) and not is_used(path.name)))
            and path.stat().st_mtime <= before
        ]
        for path in left:
            path.unlink()
        return len(left)

    def _write(self, path: Path, data: bytes) -> None:
        incoming = self._directory / INCOMING
        try:
            with incoming.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            incoming.replace(path)
        except OSError:
            incoming.unlink(missing_ok=True)
            raise


def _holds(path: Path, data: bytes) -> bool:
    try:
        return path.stat().st_size == len(data) and path.read_bytes() == data
    except FileNotFoundError:
        return False

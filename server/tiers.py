"""The tiers behind the device: folded adapters in host memory, adapter files on the local disk."""

import hashlib
import logging
import os
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from server.contracts import FoldedAdapter

logger = logging.getLogger(__name__)

TEMPORARY = ".tmp-"
STALE_SECONDS = 3600.0  # a temporary file this old belongs to a process that died
PAUSE_SECONDS = 60.0  # after a failed write the disk is left alone for so long


class _Held(NamedTuple):
    adapter: FoldedAdapter
    used_at: float


class HostCache:
    """Folded adapters in host memory, at most `max_bytes`; the least recently used leave first."""

    def __init__(self, max_bytes: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_bytes = max_bytes
        self._clock = clock
        self._held: OrderedDict[str, _Held] = OrderedDict()
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, digest: str) -> bool:
        return digest in self._held

    def get(self, digest: str) -> FoldedAdapter | None:
        held = self._held.get(digest)
        if held is None:
            return None
        self._held[digest] = _Held(held.adapter, self._clock())
        self._held.move_to_end(digest)
        return held.adapter

    def put(self, digest: str, adapter: FoldedAdapter) -> list[float]:
        """Keep an adapter, unless it is larger than the whole cache.

        Return for each that had to leave how long nobody had used it.
        """
        if digest in self._held or adapter.nbytes > self._max_bytes:
            return []
        self._held[digest] = _Held(adapter, self._clock())
        self.nbytes += adapter.nbytes
        evicted = []
        while self.nbytes > self._max_bytes:
            oldest = next(iter(self._held))
            evicted.append(self._clock() - self._held[oldest].used_at)
            self.drop(oldest)
        return evicted

    def drop(self, digest: str) -> None:
        held = self._held.pop(digest, None)
        if held is not None:
            self.nbytes -= held.adapter.nbytes


class DiskCache:
    """Adapter files by digest in a directory, about `max_bytes` in all; the least recently used leave first.

    Processes of one host share the directory: files appear by rename, and every read checks the digest, so
    neither a crash nor a damaged disk can give wrong bytes. Each process looks at the whole directory after
    writing a sixteenth of `max_bytes`, so n processes exceed it by n sixteenths at most. Nothing here raises:
    a disk that is full or gone only means misses, a warning, and another try a minute later. Methods block
    and may be called from any thread. `nbytes` and `len` are as of the last look at the directory.
    """

    def __init__(
        self, directory: Path, max_bytes: int, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._paused_until = float("-inf")
        self._unseen = 0  # bytes written since the last look
        self._files = 0
        self.nbytes = 0
        with suppress(OSError):
            self._trim()

    def __len__(self) -> int:
        return self._files

    def __contains__(self, digest: str) -> bool:
        with suppress(OSError):
            return self._path(digest).exists()
        return False

    def read(self, digest: str) -> bytes | None:
        """Return the file's bytes, None if it is not here or damaged; a damaged one is deleted."""
        path = self._path(digest)
        try:
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() != digest:
                logger.warning("the cached file of adapter %s is damaged; fetching it again", digest)
                path.unlink(missing_ok=True)
                return None
            os.utime(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            logger.warning("cannot read the disk cache: %s", error)
            return None
        return data

    def write(self, digest: str, data: bytes) -> list[float]:
        """Store a file, then make room. Return for each that had to leave how long nobody had used it."""
        if len(data) > self._max_bytes or self._clock() < self._paused_until:
            return []
        try:
            with self._lock:
                self._store(digest, data)
                return self._trim() if self._unseen > self._max_bytes // 16 else []
        except OSError as error:
            self._paused_until = self._clock() + PAUSE_SECONDS
            logger.warning("no disk cache for %.0f s: %s", PAUSE_SECONDS, error)
            return []

    def drop(self, digest: str) -> None:
        with suppress(OSError):
            self._path(digest).unlink(missing_ok=True)

    def _store(self, digest: str, data: bytes) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=TEMPORARY, dir=self._directory)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            Path(name).replace(self._path(digest))
        except OSError:
            Path(name).unlink(missing_ok=True)
            raise
        self._unseen += len(data)
        self.nbytes += len(data)
        self._files += 1

    def _trim(self) -> list[float]:
        files = sorted(self._list(), key=lambda file: file.used_at)
        nbytes, evicted = sum(file.nbytes for file in files), []
        for file in files:
            if nbytes <= self._max_bytes:
                break
            file.path.unlink(missing_ok=True)
            nbytes -= file.nbytes
            evicted.append(max(0.0, time.time() - file.used_at))
        self.nbytes, self._files, self._unseen = nbytes, len(files) - len(evicted), 0
        return evicted

    def _list(self) -> list["_File"]:
        files = []
        with os.scandir(self._directory) as entries:
            for entry in entries:
                # another process may delete it between listing and looking
                with suppress(FileNotFoundError):
                    stat = entry.stat()
                    files.append(_File(Path(entry.path), stat.st_size, stat.st_mtime))
        return [file for file in files if not self._is_temporary(file)]

    def _is_temporary(self, file: "_File") -> bool:
        if not file.path.name.startswith(TEMPORARY):
            return False
        if time.time() - file.used_at > STALE_SECONDS:
            file.path.unlink(missing_ok=True)
        return True

    def _path(self, digest: str) -> Path:
        return self._directory / digest


class _File(NamedTuple):
    path: Path
    nbytes: int
    used_at: float

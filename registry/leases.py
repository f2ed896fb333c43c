"""Leases as small files beside the database, so that telling one waits for no upload.

They are not synced: a crash of the host ends the replicas too.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from registry.errors import RegistryUnavailable
from registry.models import Lease

SUFFIX = ".json"


class LeaseDirectory:
    """One file for each replica, under a lock that dies with its process. All methods block."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def put(self, lease: Lease) -> None:
        with self._locked():
            fresh = self._directory / ".fresh"
            fresh.write_text(lease.model_dump_json(), encoding="utf-8")
            fresh.replace(self._path(lease))

    def list(self) -> tuple[Lease, ...]:
        with self._locked():
            texts = [path.read_text(encoding="utf-8") for path in self._directory.glob(f"[!.]*{SUFFIX}")]
        return tuple(sorted(map(Lease.model_validate_json, texts), key=lambda lease: lease.replica))

    def drop(self, lease: Lease) -> bool:
        with self._locked():
            path = self._path(lease)
            if not path.exists() or Lease.model_validate_json(path.read_bytes()) != lease:
                return False
            path.unlink()
            return True

    def _path(self, lease: Lease) -> Path:
        return self._directory / f"{lease.replica}{SUFFIX}"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Be alone among all processes; turn what the file system raises into what the contract allows."""
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            with (self._directory / ".lock").open("w") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                yield
        except (OSError, ValueError) as error:
            raise RegistryUnavailable("embedded", f"{self._directory}: {error}") from error

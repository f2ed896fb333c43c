"""Registry in one directory: a SQLite file for what exists, and a directory for the bytes. The default.

    registry.sqlite3 (-wal, -shm)   the tables of schema.sql and audit.sql
    registry.lock                   orders the processes that create the file
    blobs/<sha256>                  adapter files; a file is shared by all versions with these bytes
    blobs/incoming                  the file being written
    leases/<replica>.json           what each replica told last; not part of a backup

Tables: `numbers` (last number given out, by task; outlives the task), `tasks`, `versions` (unique by task
and number, and by task and digest), `aliases` (foreign key to a version, so that none can dangle), `moves`
(history of the aliases; `undo` links each move to the one that a rollback leads to), `events` (AUTOINCREMENT:
one writer at a time makes the order of ids the order of commits, so a reader that has seen id n has seen
everything before it), `keys`, `audit` (who made each change, in the same transaction).

Why it is atomic. Every change is one transaction with its events in it, begun with BEGIN IMMEDIATE: SQLite
lets one writer in among all threads and processes, and readers see the state before or after it and wait
for nobody (WAL). `synchronous=FULL` syncs the log before COMMIT returns. The blob directory changes only
under the same write lock: an upload writes `incoming`, syncs it, renames it, syncs the directory and only
then inserts its row and commits, so there is no row without bytes. A delete commits first and then, in a
second transaction, removes the bytes if still no row has them: so it cannot take away what another process
has just uploaded. A crash can leave only bytes without a row; they harm nothing, and `reclaim` removes them.
The lock dies with its process.

Cost: an upload holds the write lock while its bytes are synced. The directory must be on a local disk:
SQLite's WAL mode does not work over network file systems.
"""

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from adapters.manifest import Manifest
from registry import auditing, changes, records, restoring
from registry.base import Added
from registry.blobs import BlobStore, is_digest, sha256
from registry.changes import Expectation, Upload
from registry.database import Database
from registry.errors import BlobNotFound, RegistryUnavailable
from registry.leases import LeaseDirectory
from registry.models import (
    MAX_AUDIT,
    UNKNOWN,
    Actor,
    AliasMove,
    ApiKey,
    AuditEntry,
    Event,
    Lease,
    Page,
    Task,
    Version,
    check_limit,
    check_name,
)
from registry.upkeep import KeptRegistry, TaskPast

T = TypeVar("T")

_log = logging.getLogger(__name__)


class EmbeddedRegistry(KeptRegistry):
    """Touches nothing on disk, and starts no thread, before the first call.

    Args:
        directory: Created if missing.
        busy_seconds: How long a write waits for the writes of other processes before RegistryUnavailable.
        readers: How many reads, blobs included, may run at a time in this process.
        max_audit: How many entries of the audit log are kept.
    """

    def __init__(
        self,
        directory: Path,
        *,
        busy_seconds: float = 30.0,
        readers: int = 4,
        max_audit: int = MAX_AUDIT,
    ) -> None:
        self.directory = directory
        self._database = Database(directory / "registry.sqlite3", busy_seconds=busy_seconds)
        self._blobs = BlobStore(directory / "blobs")
        self._leases = LeaseDirectory(directory / "leases")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="registry-write")
        self._readers = ThreadPoolExecutor(readers, thread_name_prefix="registry-read")
        self._max_audit = max_audit
        self._closed = False

    async def add_version(
        self, task: str, data: bytes, manifest: Manifest, *, promote: bool = False, by: Actor = UNKNOWN
    ) -> Added:
        check_name("task", task)
        digest = await self._run(self._readers, lambda: sha256(data))
        upload = Upload(task, data, digest, manifest, by)
        return await self._run(self._writer, lambda: self._add_version(upload, promote))

    async def get_version(self, task: str, version: int) -> Version:
        check_name("task", task)
        return await self._read(lambda db: records.get_version(db, task, version))

    async def get_task(self, task: str) -> Task:
        check_name("task", task)
        return await self._read(lambda db: records.get_task(db, task))

    async def list_tasks(self, *, after: str | None = None, limit: int = 100) -> Page[Task]:
        if after is not None:
            check_name("task", after)
        limit = check_limit(limit)
        return await self._read(lambda db: records.list_tasks(db, after, limit))

    async def list_versions(self, task: str, *, after: int = 0, limit: int = 100) -> tuple[Version, ...]:
        check_name("task", task)
        limit = check_limit(limit)
        return await self._read(lambda db: records.list_versions(db, task, after, limit))

    async def delete_version(self, task: str, version: int, *, by: Actor = UNKNOWN) -> None:
        check_name("task", task)
        await self._delete(lambda db: changes.delete_version(db, task, version, by))

    async def delete_task(self, task: str, *, by: Actor = UNKNOWN) -> None:
        check_name("task", task)
        await self._delete(lambda db: changes.delete_task(db, task, by))

    async def set_alias(
        self,
        task: str,
        alias: str,
        version: int,
        *,
        expected: int | None = None,
        check: bool = False,
        by: Actor = UNKNOWN,
    ) -> AliasMove:
        check_name("task", task)
        check_name("alias", alias)
        expectation = Expectation(expected) if check else None
        return await self._write(
            lambda db: changes.set_alias(db, task, alias, version, expectation=expectation, by=by)
        )

    async def rollback_alias(self, task: str, alias: str, *, by: Actor = UNKNOWN) -> AliasMove:
        check_name("task", task)
        check_name("alias", alias)
        return await self._write(lambda db: changes.rollback_alias(db, task, alias, by))

    async def alias_history(self, task: str, alias: str, *, limit: int = 100) -> tuple[AliasMove, ...]:
        check_name("task", task)
        check_name("alias", alias)
        limit = check_limit(limit)
        return await self._read(lambda db: records.alias_history(db, task, alias, limit))

    async def fetch(self, digest: str) -> bytes:
        return await self._read(lambda db: self._fetch(db, digest))

    async def cursor(self) -> str:
        return await self._read(lambda db: str(records.last_event(db)))

    async def events(self, after: str, *, limit: int = 1000) -> tuple[Event, ...]:
        limit = check_limit(limit)
        return await self._read(lambda db: records.events(db, after, limit))

    async def put_lease(self, lease: Lease) -> None:
        check_name("replica", lease.replica)
        await self._run(self._readers, lambda: self._leases.put(lease))

    async def leases(self) -> tuple[Lease, ...]:
        return await self._run(self._readers, self._leases.list)

    async def drop_lease(self, lease: Lease) -> bool:
        check_name("replica", lease.replica)
        return await self._run(self._readers, lambda: self._leases.drop(lease))

    async def add_key(self, key: ApiKey, *, by: Actor = UNKNOWN) -> None:
        check_name("key", key.name)
        await self._write(lambda db: changes.add_key(db, key, by))

    async def list_keys(self) -> tuple[ApiKey, ...]:
        return await self._read(records.list_keys)

    async def delete_key(self, name: str, *, by: Actor = UNKNOWN) -> None:
        check_name("key", name)
        await self._write(lambda db: changes.delete_key(db, name, by))

    async def audit(
        self, *, task: str | None = None, after: int | None = None, limit: int = 100
    ) -> tuple[AuditEntry, ...]:
        if task is not None:
            check_name("task", task)
        before = None if after is None else min(after, records.MAX_INTEGER)
        limit = check_limit(limit)
        return await self._read(lambda db: auditing.read(db, task, before, limit))

    async def numbers(self) -> Mapping[str, int]:
        return await self._read(restoring.numbers)

    async def past(self, task: str) -> TaskPast:
        check_name("task", task)
        return await self._read(lambda db: restoring.past(db, task))

    async def restore_version(self, version: Version, data: bytes, *, by: Actor = UNKNOWN) -> None:
        await self._write(lambda db: restoring.restore_version(db, self._blobs, version, data, by))

    async def restore_past(self, past: TaskPast, *, by: Actor = UNKNOWN) -> None:
        await self._write(lambda db: restoring.restore_past(db, past, by))

    async def restore_numbers(self, numbers: Mapping[str, int]) -> None:
        await self._write(lambda db: restoring.restore_numbers(db, numbers))

    async def reclaim(self, *, older_than: float = 0.0) -> int:
        """Remove bytes without a version, as the contract says; the write lock is held meanwhile."""
        before = time.time() - older_than
        return await self._write(lambda db: self._blobs.sweep(partial(records.is_used, db), before))

    async def faults(self) -> tuple[str, ...]:
        return await self._read(restoring.faults)

    async def risks(self) -> tuple[str, ...]:
        return ()

    async def close(self) -> None:
        """Wait for the calls that have begun, then release files and threads."""
        if not self._closed:
            self._closed = True
            await asyncio.to_thread(self._shut_down)

    async def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def job() -> T:
            with self._database.reading() as db:
                return work(db)

        return await self._run(self._readers, job)

    async def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def job() -> T:
            with self._writing() as db:
                return work(db)

        return await self._run(self._writer, job)

    async def _delete(self, work: Callable[[sqlite3.Connection], list[str]]) -> None:
        def job() -> None:
            with self._writing() as db:
                digests = work(db)
            self._remove_unused(digests)

        await self._run(self._writer, job)

    async def _run(self, executor: Executor, job: Callable[[], T]) -> T:
        if self._closed:
            raise RegistryUnavailable("embedded", "it was closed")
        return await asyncio.get_running_loop().run_in_executor(executor, job)

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._database.writing() as db:
            yield db
            auditing.trim(db, self._max_audit)

    def _add_version(self, upload: Upload, promote: bool) -> Added:
        try:
            with self._writing() as db:
                return changes.add_version(db, self._blobs, upload, promote)
        except Exception:
            self._remove_unused([upload.digest])
            raise

    def _remove_unused(self, digests: list[str]) -> None:
        """Free space if that is possible now; what counts has been decided before."""
        try:
            with self._database.writing() as db:
                changes.remove_unused(db, self._blobs, digests)
        except RegistryUnavailable as error:
            _log.warning("unused bytes stay until they are reclaimed: %s", error)

    def _fetch(self, db: sqlite3.Connection, digest: str) -> bytes:
        # what a crash left without a version does not exist
        if not (is_digest(digest) and records.is_used(db, digest)):
            raise BlobNotFound(digest)
        return self._blobs.read(digest)

    def _shut_down(self) -> None:
        self._writer.shutdown()
        self._readers.shutdown()
        self._database.close()

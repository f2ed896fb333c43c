"""The contract of every registry backend."""

from abc import ABC, abstractmethod
from typing import NamedTuple

from adapters.manifest import Manifest
from registry.models import (
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
)


class Added(NamedTuple):
    """The result of `add_version`; `created` is False where the task already had these bytes."""

    version: Version
    created: bool


class Registry(ABC):
    """Which tasks, versions and aliases exist, and their bytes.

    Safe for concurrent use by many processes. What a method has returned is durable. Every method raises
    RegistryUnavailable, and nothing of the backend's own, when the backend does not answer or was closed;
    names are checked first (InvalidName). A `limit` below 1 is a ValueError. Every change is written to the
    audit log together with `by`, who makes it, or not made at all; what changes nothing is not written there.
    """

    @abstractmethod
    async def add_version(
        self, task: str, data: bytes, manifest: Manifest, *, promote: bool = False, by: Actor = UNKNOWN
    ) -> Added:
        """Store an adapter file as the task's next version; create the task if needed.

        Idempotent by digest within a task: the same bytes give the version they already have, and mend
        its stored bytes if those were lost or damaged. The first version of a task becomes `production`;
        a later one, new or not, only with `promote`. Numbers are never reused, not after a version nor
        after its whole task was deleted.
        """

    @abstractmethod
    async def get_version(self, task: str, version: int) -> Version:
        """Return one version.

        Raises:
            TaskNotFound, VersionNotFound
        """

    @abstractmethod
    async def get_task(self, task: str) -> Task:
        """Return the task and its aliases.

        Raises:
            TaskNotFound
        """

    @abstractmethod
    async def list_tasks(self, *, after: str | None = None, limit: int = 100) -> Page[Task]:
        """Return tasks in name order, beginning behind the name `after`."""

    @abstractmethod
    async def list_versions(self, task: str, *, after: int = 0, limit: int = 100) -> tuple[Version, ...]:
        """Return versions in rising order, beginning behind number `after`.

        Raises:
            TaskNotFound
        """

    @abstractmethod
    async def delete_version(self, task: str, version: int, *, by: Actor = UNKNOWN) -> None:
        """Delete a version; its bytes go when no other version of any task has them.

        Raises:
            TaskNotFound, VersionNotFound
            VersionInUse: If an alias points to it.
        """

    @abstractmethod
    async def delete_task(self, task: str, *, by: Actor = UNKNOWN) -> None:
        """Delete a task with its versions, its aliases and their history.

        Raises:
            TaskNotFound
        """

    @abstractmethod
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
        """Point an alias at a version.

        Where it points there already, nothing moves: no history, no event, and the move that brought it
        there is returned. So a call may be repeated.

        Args:
            task: The task.
            alias: The alias; made if it does not exist.
            version: The version it is to name.
            expected: With `check`, the version it must name now; None means that it must not exist.
            check: Compare before setting.
            by: Who moves it.

        Raises:
            TaskNotFound, VersionNotFound
            AliasConflict: If `check` is set and the alias is elsewhere.
        """

    @abstractmethod
    async def rollback_alias(self, task: str, alias: str, *, by: Actor = UNKNOWN) -> AliasMove:
        """Point an alias at what it named before its last `set`; repeated calls go further back.

        It works as undo does in an editor: after sets to 1, 2, 3 the calls lead to 2, then 1; a set to 4
        after the first of them starts a new line, 1, 2, 4, and 3 is not reached again. Versions deleted
        meanwhile are passed over.

        Raises:
            TaskNotFound
            AliasNotFound: If the alias does not exist or has nothing before it.
        """

    @abstractmethod
    async def alias_history(self, task: str, alias: str, *, limit: int = 100) -> tuple[AliasMove, ...]:
        """Return the moves of an alias, latest first.

        Raises:
            TaskNotFound
            AliasNotFound: If the alias never existed.
        """

    @abstractmethod
    async def fetch(self, digest: str) -> bytes:
        """Return an adapter file that a version has, verified against its digest.

        Raises:
            BlobNotFound
            BlobCorrupt: If what is stored has another digest.
        """

    @abstractmethod
    async def cursor(self) -> str:
        """Return the cursor of the latest event, START before the first.

        To mirror the registry, read this before a full listing, then follow from it.
        """

    @abstractmethod
    async def events(self, after: str, *, limit: int = 1000) -> tuple[Event, ...]:
        """Return events behind a cursor, in order, none lost (at least once).

        Each change and its events appear together. A deleted task gives one event, its versions none.

        Raises:
            CursorInvalid: If it was not given out by this registry, as after a restore from a backup.
        """

    @abstractmethod
    async def put_lease(self, lease: Lease) -> None:
        """Keep what a replica tells, instead of what it told before. Not an event, and need not be durable.

        Who lists leases after this returned finds it. Clocks play no part: it stays until it is dropped.
        """

    @abstractmethod
    async def leases(self) -> tuple[Lease, ...]:
        """Return what each replica told last, in the order of their names."""

    @abstractmethod
    async def drop_lease(self, lease: Lease) -> bool:
        """Forget a replica that has told nothing since; return False, and keep it, if it has."""

    @abstractmethod
    async def add_key(self, key: ApiKey, *, by: Actor = UNKNOWN) -> None:
        """Store an API key.

        Raises:
            KeyConflict: If one of this name exists.
        """

    @abstractmethod
    async def list_keys(self) -> tuple[ApiKey, ...]:
        """Return all API keys in name order."""

    @abstractmethod
    async def delete_key(self, name: str, *, by: Actor = UNKNOWN) -> None:
        """Delete an API key.

        Raises:
            KeyNotFound
        """

    @abstractmethod
    async def audit(
        self, *, task: str | None = None, after: int | None = None, limit: int = 100
    ) -> tuple[AuditEntry, ...]:
        """Return the changes that are kept, latest first, of one task or of all.

        The last MAX_AUDIT are kept, also those of tasks and keys that are gone.

        Args:
            task: The only task to tell of.
            after: Begin behind the entry of this number, that is with older ones.
            limit: The most that are returned.
        """

    @abstractmethod
    async def close(self) -> None:
        """Release connections. The registry is not usable afterwards."""

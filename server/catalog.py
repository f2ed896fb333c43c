"""What a replica knows of the registry, in memory, so that a request never waits for it.

All tasks and aliases are here from the start and follow the registry's events. Versions are immutable, so
they are fetched when first needed and cached. While the registry is away, everything that was met keeps
being served; `staleness_seconds` tells how old the view is.
"""

import asyncio
import contextlib
import logging
import time
from bisect import bisect_right, insort
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from registry.base import Registry
from registry.errors import (
    AliasNotFound,
    CursorInvalid,
    RegistryError,
    RegistryUnavailable,
    TaskNotFound,
    VersionNotFound,
)
from registry.models import PRODUCTION, START, ApiKey, Event, EventKind, Page, Task, Version, position
from server.errors import NotConfirmed
from server.membership import Membership
from server.version_cache import VersionCache

T = TypeVar("T")

EVENTS_AT_ONCE = 1000
TASKS_AT_ONCE = 1000
LOOK_SECONDS = 0.5  # that a request may wait for the registry, once this process was frozen

logger = logging.getLogger(__name__)


class Catalog:
    """The tasks, aliases, versions and keys of a registry. All methods run on one event loop.

    Args:
        registry: The registry to follow.
        forget: Called with each digest that no known version has any more.
        poll_seconds: How often events are read.
        max_versions: How many versions are cached, at about 2.5 kB each.
        membership: This replica among those that follow the registry; closed with the catalog.
        refuse_when_cut_off: Resolve no alias while nobody need wait for this replica.
        read_ahead: Read what `production` names after each listing, in the background, so that tasks whose
            bytes are on this host can be served while the registry is away, asked for before or not.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        forget: Callable[[str], None] = lambda _: None,
        poll_seconds: float = 0.2,
        max_versions: int = 16_384,
        membership: Membership | None = None,
        refuse_when_cut_off: bool = False,
        read_ahead: bool = False,
    ) -> None:
        self._registry = registry
        self.membership = membership or Membership(registry)
        self._refuses = refuse_when_cut_off
        self._forget = forget
        self._poll_seconds = poll_seconds
        self._cursor = START
        self._tasks: dict[str, Task] = {}
        self._names: list[str] = []
        self._keys: dict[str, ApiKey] = {}
        self._max_versions = max_versions
        self._read_ahead = read_ahead
        self._versions = VersionCache(max_versions)
        self._fetches: dict[tuple[str, int], asyncio.Task[Version]] = {}
        self._removals = 0
        self._fresh_at = float("-inf")
        self._away = False
        self._reading = asyncio.Lock()
        self._follower: asyncio.Task[None] | None = None
        self._queued: asyncio.Task[None] | None = None
        self._under_way: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        """List everything, then follow in the background.

        Raises:
            RegistryUnavailable
        """
        async with self._reading:
            await self.membership.begin()
            await self._list_everything()
            await self.membership.applied(self._cursor)
        self._follower = self._begin(self._follow())

    async def close(self) -> None:
        """Stop following, and be waited for no longer: nothing may be resolved after this."""
        if self._follower is not None:
            self._follower.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)
        await self.membership.leave()

    @property
    def staleness_seconds(self) -> float:
        """How long ago the registry last answered; infinite before it ever did."""
        return time.monotonic() - self._fresh_at

    @property
    def keys(self) -> Mapping[str, ApiKey]:
        """All API keys by the hash of their secret."""
        return self._keys

    @property
    def events_applied(self) -> int:
        """The number of the last event of the registry that is known here."""
        return position(self._cursor)

    @property
    def is_cut_off(self) -> bool:
        """True while nobody waits for this replica when an alias moves."""
        return self.membership.is_cut_off

    def __len__(self) -> int:
        """How many tasks there are."""
        return len(self._names)

    def task(self, name: str) -> Task:
        """Return a task as last seen.

        Raises:
            TaskNotFound
        """
        if name not in self._tasks:
            raise TaskNotFound(name)
        return self._tasks[name]

    def tasks(self, *, after: str | None, limit: int, allowed: Callable[[str], bool]) -> Page[Task]:
        """Return the tasks that `allowed` lets through, in name order, behind the name `after`."""
        items: list[Task] = []
        for name in self._names[bisect_right(self._names, after) if after is not None else 0 :]:
            if not allowed(name):
                continue
            if len(items) == limit:
                return Page(items=tuple(items), next_after=items[-1].task)
            items.append(self._tasks[name])
        return Page(items=tuple(items), next_after=None)

    def find_alias(self, task: str, alias: str) -> int | None:
        """Return the version an alias names, None if there is no such alias or task."""
        known = self._tasks.get(task)
        return known.aliases.get(alias) if known else None

    def lookup(self, task: str, version: int | None = None, alias: str | None = None) -> Version | None:
        """Return a version by number, else by alias (`production`); None if memory does not have it."""
        if version is None:
            version = self.find_alias(task, alias or PRODUCTION)
        return None if version is None else self._versions.get(task, version)

    async def resolve(self, task: str, version: int | None = None, alias: str | None = None) -> Version:
        """Return a version as `lookup` does, asking the registry only where memory does not have it.

        Raises:
            TaskNotFound, VersionNotFound, AliasNotFound
            RegistryUnavailable: If it had to be asked and did not answer.
        """
        if version is None and self.membership.is_cut_off:
            await self._be_sure()
        found = self.lookup(task, version, alias)
        if found is not None:
            return found
        try:
            number = self._number(task, version, alias)
        except (TaskNotFound, AliasNotFound):
            await self.refresh()
            number = self._number(task, version, alias)
        return await self._fetch(task, number)

    def refresh(self) -> Awaitable[None]:
        """Return when everything written before the call is known here. Callers at one time share a read.

        Raises:
            RegistryUnavailable
        """
        if self._queued is None:
            self._queued = self._begin(self._read_next())
        return asyncio.shield(self._queued)

    async def confirm(self, seconds: float) -> tuple[str, ...]:
        """Wait until every replica knows what was written before the call; return their names.

        Raises:
            NotConfirmed
        """
        started = time.monotonic()
        try:
            cursor = await self._registry.cursor()
        except RegistryError:
            raise NotConfirmed(()) from None
        return await self.membership.confirm(cursor, seconds - (time.monotonic() - started))

    async def catch_up(self) -> None:
        """Show what this process has just written; the write stands even if the registry is away now."""
        try:
            await self.refresh()
        except RegistryError as error:
            logger.warning("a change will be seen once the registry is back: %s", error)

    async def _be_sure(self) -> None:
        """Look at the registry after a time in which this process could not, as when it was frozen.

        Raises:
            RegistryUnavailable: If aliases are not to be resolved from what is known.
        """
        if self._refuses:
            await self.refresh()
            if self.membership.is_cut_off:
                raise RegistryUnavailable("followed", "this replica's lease was not renewed")
        elif not self._away and self.staleness_seconds > 2 * self._poll_seconds:
            with contextlib.suppress(RegistryError, TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self.refresh()

    def _number(self, task: str, version: int | None, alias: str | None) -> int:
        aliases = self.task(task).aliases
        if version is not None:
            return version
        name = alias or PRODUCTION
        if name not in aliases:
            raise AliasNotFound(task, name)
        return aliases[name]

    async def _fetch(self, task: str, number: int) -> Version:
        """Return a version, reading it from the registry at most once at a time."""
        key = (task, number)
        if (found := self._versions.get(*key)) is not None:
            return found
        if key not in self._fetches:
            self._fetches[key] = self._begin(self._read_version(key))
        return await asyncio.shield(self._fetches[key])

    async def _read_version(self, key: tuple[str, int]) -> Version:
        removals = self._removals
        try:
            version = await self._registry.get_version(*key)
        finally:
            del self._fetches[key]
        # a removal that was applied meanwhile may have been this one's: answer, but do not keep it
        return self._versions.add(version) if removals == self._removals else version

    async def _follow(self) -> None:
        away = False
        while True:
            await asyncio.sleep(self._poll_seconds)
            try:
                await self.refresh()
            except RegistryError as error:
                if not away:
                    logger.warning("the registry is away, serving what is known: %s", error)
                away = True
            except Exception:  # a bug here must not end the following
                logger.exception("reading the registry's events failed")
            else:
                if away:
                    logger.info("the registry is back")
                away = False

    async def _read_next(self) -> None:
        async with self._reading:
            self._queued = None  # whoever asks from here on needs a later read
            started = time.monotonic()
            await self.membership.begin()
            try:
                await self._read_events()
            except CursorInvalid:
                await self._list_everything()
            except RegistryError:
                self._away = True
                raise
            await self.membership.applied(self._cursor)
            self._fresh_at, self._away = started, False

    async def _read_events(self) -> None:
        while True:
            events = await self._registry.events(self._cursor, limit=EVENTS_AT_ONCE)
            if not events:
                return
            await self._apply(events)
            self._cursor = events[-1].cursor

    async def _apply(self, events: Sequence[Event]) -> None:
        """Apply events; harmless to repeat, so that a failure half-way only means another read."""
        self._remove_deleted(events)
        if any(event.kind is EventKind.KEYS_CHANGED for event in events):
            await self._read_keys()
        for name in dict.fromkeys(event.task for event in events if event.task):
            await self._read_task(name)

    def _remove_deleted(self, events: Sequence[Event]) -> None:
        gone: set[str] = set()
        for event in events:
            if event.kind is EventKind.TASK_DELETED and event.task:
                gone |= self._versions.drop_task(event.task)
            elif event.kind is EventKind.VERSION_DELETED and event.task and event.version and event.digest:
                self._versions.drop(event.task, event.version)
                gone.add(event.digest)
            else:
                continue
            self._removals += 1
        if gone:
            for digest in gone - self._versions.digests():
                self._forget(digest)

    async def _read_task(self, name: str) -> None:
        try:
            task = await self._registry.get_task(name)
        except TaskNotFound:
            if self._tasks.pop(name, None) is not None:
                self._names.remove(name)
            return
        if self._versions.has_task(name):  # it has traffic: no request shall wait for where an alias went
            for number in set(task.aliases.values()):
                await self._fetch_if_there(name, number)
        if name not in self._tasks:
            insort(self._names, name)
        self._tasks[name] = task

    async def _fetch_if_there(self, task: str, number: int) -> None:
        try:
            await self._fetch(task, number)
        except (TaskNotFound, VersionNotFound):
            return  # deleted since; its event follows

    async def _read_what_serves(self, names: Sequence[str]) -> None:
        for name in names:
            number = self.find_alias(name, PRODUCTION)
            if number is not None:
                await self._fetch_if_there(name, number)

    async def _read_keys(self) -> None:
        self._keys = {key.secret_hash: key for key in await self._registry.list_keys()}

    async def _list_everything(self) -> None:
        started = time.monotonic()
        cursor = await self._registry.cursor()
        await self._read_keys()
        tasks: dict[str, Task] = {}
        after: str | None = None
        while True:
            page = await self._registry.list_tasks(after=after, limit=TASKS_AT_ONCE)
            tasks.update((task.task, task) for task in page.items)
            after = page.next_after
            if after is None:
                break
        self._removals += 1
        self._versions.clear()
        self._tasks, self._names, self._cursor = tasks, sorted(tasks), cursor
        self._fresh_at = started
        if self._read_ahead:
            self._begin(self._read_what_serves(self._names[: self._max_versions]))

    def _begin(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start a task that outlives whoever waits for it; its failure is theirs, even if all have left."""
        task = asyncio.create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()

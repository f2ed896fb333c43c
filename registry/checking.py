"""Look at everything that is in a registry: every file against its digest, every alias, every event."""

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field

from registry.base import Registry
from registry.copying import all_tasks, all_versions
from registry.errors import (
    AliasNotFound,
    BlobCorrupt,
    BlobNotFound,
    CursorInvalid,
    TaskNotFound,
    VersionNotFound,
)
from registry.models import START, Event, EventKind, Task, Version
from registry.upkeep import KeptRegistry

EVENTS_AT_ONCE = 1000


@dataclass(slots=True)
class Report:
    """What was looked at, and what is wrong.

    `events` is None where the first are gone, so that they cannot be replayed; that is no fault. Tasks that
    were written to meanwhile (`moving`) are not compared with the events.
    """

    tasks: int = 0
    versions: int = 0
    aliases: int = 0
    keys: int = 0
    bytes: int = 0
    events: int | None = None
    moving: set[str] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)
    risks: tuple[str, ...] = ()


@dataclass(slots=True)
class Replayed:
    """A task as its events tell."""

    versions: dict[int, str] = field(default_factory=dict)
    aliases: dict[str, int] = field(default_factory=dict)


async def check(registry: KeptRegistry, done: Callable[[Version], None] = lambda _: None) -> Report:
    """Read everything once, all adapter files included; `done` is called for each version.

    May run beside anything else. Raises RegistryUnavailable.
    """
    report = Report(faults=list(await registry.faults()), risks=await registry.risks())
    begun = await registry.cursor()
    replayed = await _replay(registry, begun, report)
    found: dict[str, Replayed] = {}
    async for task in all_tasks(registry):
        found[task.task] = await _look(registry, task, report, done)
    report.keys = len(await registry.list_keys())
    report.moving = {event.task async for event in _events(registry, begun) if event.task}
    if replayed is not None:
        _compare(found, replayed, report)
    return report


async def _look(registry: Registry, task: Task, report: Report, done: Callable[[Version], None]) -> Replayed:
    report.tasks += 1
    seen = Replayed(aliases=dict(task.aliases))
    try:
        async for version in all_versions(registry, task.task):
            seen.versions[version.version] = version.digest
            await _look_at_bytes(registry, version, report)
            done(version)
        for alias, number in task.aliases.items():
            await _look_at_alias(registry, task.task, alias, number, report)
    except TaskNotFound:
        pass  # deleted meanwhile
    return seen


async def _look_at_bytes(registry: Registry, version: Version, report: Report) -> None:
    report.versions += 1
    try:
        size = len(await registry.fetch(version.digest))
    except (BlobNotFound, BlobCorrupt) as error:
        if await _exists(registry, version):
            report.faults.append(f"task `{version.task}` version {version.version}: {error}")
        return
    report.bytes += size
    if size != version.size:
        report.faults.append(f"task `{version.task}` version {version.version} is recorded with another size")


async def _look_at_alias(registry: Registry, task: str, alias: str, number: int, report: Report) -> None:
    report.aliases += 1
    try:
        await registry.get_version(task, number)
        last = (await registry.alias_history(task, alias, limit=1))[0]
    except (VersionNotFound, AliasNotFound) as error:
        now = (await registry.get_task(task)).aliases.get(alias)
        if now == number:
            report.faults.append(f"alias `{alias}` of task `{task}`: {error}")
        return
    if last.version != number and (await registry.get_task(task)).aliases.get(alias) == number:
        report.faults.append(f"alias `{alias}` of task `{task}` is elsewhere than its last move led")


async def _exists(registry: Registry, version: Version) -> bool:
    try:
        return (await registry.get_version(version.task, version.version)).digest == version.digest
    except (TaskNotFound, VersionNotFound):
        return False


async def _replay(registry: Registry, until: str, report: Report) -> Mapping[str, Replayed] | None:
    """Return the tasks as the events up to a cursor tell; None if the first events are gone."""
    tasks: dict[str, Replayed] = {}
    count = 0
    try:
        async for event in _events(registry, START, until):
            count += 1
            _apply(tasks, event)
    except CursorInvalid:
        return None
    report.events = count
    return tasks


def _apply(tasks: dict[str, Replayed], event: Event) -> None:
    if event.task is None:
        return
    if event.kind is EventKind.TASK_DELETED:
        tasks.pop(event.task, None)
        return
    task = tasks.setdefault(event.task, Replayed())
    if event.kind is EventKind.VERSION_ADDED and event.version and event.digest:
        task.versions[event.version] = event.digest
    elif event.kind is EventKind.VERSION_DELETED and event.version:
        task.versions.pop(event.version, None)
    elif event.kind is EventKind.ALIAS_SET and event.alias and event.version:
        task.aliases[event.alias] = event.version


def _compare(found: Mapping[str, Replayed], told: Mapping[str, Replayed], report: Report) -> None:
    for task in sorted((found.keys() | told.keys()) - report.moving):
        if found.get(task) != told.get(task):
            report.faults.append(f"task `{task}` is not what its events tell")


async def _events(registry: Registry, after: str, until: str | None = None) -> AsyncIterator[Event]:
    """Yield events behind a cursor, up to another or to the end.

    Raises:
        CursorInvalid
    """
    while after != until:
        events = await registry.events(after, limit=EVENTS_AT_ONCE)
        if not events:
            return
        for event in events:
            yield event
            after = event.cursor
            if after == until:
                return

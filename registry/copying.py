"""Copy all of a registry into another, of any backend: numbers, times, histories and keys stay."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from registry.base import Registry
from registry.errors import KeyConflict
from registry.models import UNKNOWN, Actor, Task, Version
from registry.upkeep import KeptRegistry

PAGE = 100

Progress = Callable[[Version], None]


@dataclass(frozen=True, slots=True)
class Copied:
    """What was copied, or was there already. `changed`: the source was written to meanwhile; copy again."""

    tasks: int
    versions: int
    keys: int
    changed: bool


async def copy(
    source: KeptRegistry, target: KeptRegistry, done: Progress = lambda _: None, *, by: Actor = UNKNOWN
) -> Copied:
    """Copy everything; each file is verified on its way. May be repeated after it was cut off.

    The events and the audit log of the target begin anew: they tell what the copy did, and that `by` made it.
    The log of the source stays where it is: nobody can write a log of what others did. `done` is called for
    each version.

    Raises:
        RestoreConflict, KeyConflict: If the target has something else under the same name.
        BlobNotFound, BlobCorrupt: If the source has lost an adapter file.
    """
    begun = await source.cursor()
    tasks = versions = 0
    async for task in all_tasks(source):
        tasks += 1
        async for version in all_versions(source, task.task):
            await target.restore_version(version, await source.fetch(version.digest), by=by)
            versions += 1
            done(version)
        await target.restore_past(await source.past(task.task), by=by)
    await target.restore_numbers(await source.numbers())
    keys = await _copy_keys(source, target, by)
    return Copied(tasks, versions, keys, changed=await source.cursor() != begun)


async def all_tasks(registry: Registry) -> AsyncIterator[Task]:
    after: str | None = None
    while True:
        page = await registry.list_tasks(after=after, limit=PAGE)
        for task in page.items:
            yield task
        after = page.next_after
        if after is None:
            return


async def all_versions(registry: Registry, task: str) -> AsyncIterator[Version]:
    after = 0
    while versions := await registry.list_versions(task, after=after, limit=PAGE):
        for version in versions:
            yield version
        after = versions[-1].version


async def _copy_keys(source: Registry, target: Registry, by: Actor) -> int:
    known = {key.name: key for key in await target.list_keys()}
    keys = await source.list_keys()
    for key in keys:
        if key.name not in known:
            await target.add_key(key, by=by)
        elif known[key.name] != key:
            raise KeyConflict(key.name)
    return len(keys)

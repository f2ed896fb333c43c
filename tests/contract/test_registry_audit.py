"""The audit log: every change with who made it, in one piece with the change, over every backend."""

import asyncio
import sqlite3
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from registry import (
    Actor,
    AliasConflict,
    AuditAction,
    AuditEntry,
    EmbeddedRegistry,
    KeptRegistry,
    KeyConflict,
    KeyNotFound,
    Registry,
    RegistryError,
    TaskNotFound,
    VersionInUse,
)
from registry.copying import copy
from tests.builders import make_blob, make_manifest
from tests.contract.backends import BACKENDS, add, in_process
from tests.contract.test_registry import make_key

ALICE = Actor(kind="key", name="alice", id="0a1b2c", request_id="r-1")
BOB = Actor(kind="local", name="bob")


async def put(registry: Registry, task: str, seed: int, by: Actor, *, promote: bool = False) -> str:
    added = await registry.add_version(task, make_blob(seed), make_manifest(), promote=promote, by=by)
    return added.version.digest


def told(entry: AuditEntry) -> tuple[object, ...]:
    return (
        entry.action,
        entry.actor.name,
        entry.task,
        entry.version,
        entry.alias,
        entry.previous,
        entry.digest,
        entry.key,
    )


async def test_every_change_is_told_with_who_made_it(registry: Registry) -> None:
    started = time.time()
    one = await put(registry, "pets", 1, ALICE)
    two = await put(registry, "pets", 2, BOB, promote=True)
    await registry.rollback_alias("pets", "production", by=ALICE)
    await registry.set_alias("pets", "canary", 2, by=BOB)
    await registry.set_alias("pets", "canary", 1, by=ALICE)
    await registry.delete_version("pets", 2, by=BOB)
    await registry.add_key(make_key("ci"), by=ALICE)
    await registry.delete_key("ci", by=BOB)
    await registry.delete_task("pets", by=ALICE)
    entries = (await registry.audit())[::-1]
    assert [told(entry) for entry in entries] == [
        ("version_added", "alice", "pets", 1, None, None, one, None),
        ("alias_set", "alice", "pets", 1, "production", None, one, None),
        ("version_added", "bob", "pets", 2, None, None, two, None),
        ("alias_set", "bob", "pets", 2, "production", 1, two, None),
        ("alias_rolled_back", "alice", "pets", 1, "production", 2, one, None),
        ("alias_set", "bob", "pets", 2, "canary", None, two, None),
        ("alias_set", "alice", "pets", 1, "canary", 2, one, None),
        ("version_deleted", "bob", "pets", 2, None, None, two, None),
        ("key_added", "alice", None, None, None, None, None, "ci"),
        ("key_deleted", "bob", None, None, None, None, None, "ci"),
        ("task_deleted", "alice", "pets", None, None, None, None, None),
    ]
    assert [entry.number for entry in entries] == list(range(1, 12))
    assert entries[0].actor == ALICE
    assert started <= entries[0].at <= entries[-1].at <= time.time()
    assert {entry.action for entry in entries} == set(AuditAction), "an action without a test"


async def test_what_changes_nothing_is_not_told(registry: Registry) -> None:
    await put(registry, "pets", 1, ALICE)
    await registry.add_key(make_key("ci"), by=ALICE)
    before = await registry.audit()
    await put(registry, "pets", 1, BOB)
    await registry.set_alias("pets", "production", 1, by=BOB)
    refused = (
        (VersionInUse, registry.delete_version("pets", 1, by=BOB)),
        (AliasConflict, registry.set_alias("pets", "production", 1, expected=9, check=True, by=BOB)),
        (RegistryError, registry.rollback_alias("pets", "production", by=BOB)),
        (TaskNotFound, registry.delete_task("cars", by=BOB)),
        (KeyConflict, registry.add_key(make_key("ci"), by=BOB)),
        (KeyNotFound, registry.delete_key("cd", by=BOB)),
    )
    for error, call in refused:
        with pytest.raises(error):
            await call
    assert await registry.audit() == before


async def test_pages_lead_to_older_changes(registry: Registry) -> None:
    for seed in range(6):
        await put(registry, ("pets", "cars")[seed % 2], seed, ALICE)
    whole = await registry.audit()
    assert [entry.number for entry in whole] == list(range(8, 0, -1))
    pages, after = [], None
    while page := await registry.audit(after=after, limit=3):
        pages.append(len(page))
        assert page == tuple(entry for entry in whole if after is None or entry.number < after)[:3]
        after = page[-1].number
    assert pages == [3, 3, 2]
    for after in (-1, 0, 1):
        assert await registry.audit(after=after) == ()
    assert await registry.audit(after=10**30) == whole
    with pytest.raises(ValueError, match="limit"):
        await registry.audit(limit=0)


async def test_one_task_is_told_of_alone_and_beyond_its_end(registry: Registry) -> None:
    for seed in range(5):
        await put(registry, "cars", seed, ALICE)
    await put(registry, "pets", 9, BOB)
    await registry.delete_task("pets", by=ALICE)
    await add(registry, "cars", 7)
    found = await registry.audit(task="pets")
    assert [entry.action for entry in found] == ["task_deleted", "alias_set", "version_added"]
    assert await registry.audit(task="pets", after=found[0].number, limit=1) == found[1:2]
    assert await registry.audit(task="boats") == ()


async def test_concurrent_changes_of_several_processes_are_all_told(
    registry: Registry, backend: str, tmp_path: Path, pool: ProcessPoolExecutor
) -> None:
    await add(registry, "zero", 0)
    loop, names = asyncio.get_running_loop(), ("pets", "cars", "boats")
    jobs = [loop.run_in_executor(pool, in_process, backend, tmp_path, add, name, 1, 2, 3) for name in names]
    await asyncio.gather(*jobs)
    found = await registry.audit()
    assert [entry.number for entry in found] == list(range(len(found), 0, -1))
    for name in names:
        actions = [entry.action for entry in found if entry.task == name]
        assert sorted(actions) == ["alias_set", "version_added", "version_added", "version_added"]


async def test_only_the_latest_are_kept(registry: Registry) -> None:
    registry._max_audit = 4  # type: ignore[attr-defined]  # both backends; 100 000 would take minutes
    await add(registry, "pets", *range(8))
    assert [entry.version for entry in await registry.audit()] == [8, 7, 6, 5]
    assert [entry.number for entry in await registry.audit()] == [9, 8, 7, 6]
    await registry.set_alias("pets", "production", 3)
    assert [entry.number for entry in await registry.audit()] == [10, 9, 8, 7]


async def test_a_copy_is_told_as_what_it_is(registry: KeptRegistry, tmp_path: Path) -> None:
    source = EmbeddedRegistry(tmp_path / "source")
    await add(source, "pets", 1, 2, 3)
    await source.set_alias("pets", "production", 3, by=ALICE)
    await source.set_alias("pets", "production", 1, by=ALICE)
    await source.rollback_alias("pets", "production", by=ALICE)
    await source.add_key(make_key("ci"), by=ALICE)
    for _ in range(2):  # the second finds everything there and changes nothing
        await copy(source, registry, by=BOB)
    await source.close()
    found = await registry.audit()
    assert {entry.actor for entry in found} == {BOB}
    assert [(entry.action, entry.version, entry.key) for entry in found][::-1] == [
        ("version_added", 1, None),
        ("version_added", 2, None),
        ("version_added", 3, None),
        ("alias_rolled_back", 3, None),
        ("key_added", None, "ci"),
    ]


async def test_a_registry_made_before_there_was_a_log_gets_one(tmp_path: Path) -> None:
    before = EmbeddedRegistry(tmp_path)
    await add(before, "pets", 1)
    await before.close()
    with sqlite3.connect(tmp_path / "registry.sqlite3") as db:
        db.execute("DROP TABLE audit")
    db.close()
    after = BACKENDS["embedded"](tmp_path)
    assert await after.audit() == ()
    await put(after, "pets", 2, ALICE)
    assert [entry.actor for entry in await after.audit()] == [ALICE]
    await after.close()

"""Every sentence of registry/base.py, over every backend; aliases and processes have files of their own."""

import random
from typing import Any

import pytest

from registry import (
    START,
    AliasConflict,
    AliasNotFound,
    ApiKey,
    BlobNotFound,
    CursorInvalid,
    EventKind,
    InvalidName,
    KeyConflict,
    KeyNotFound,
    Registry,
    RegistryUnavailable,
    Task,
    TaskNotFound,
    VersionInUse,
    VersionNotFound,
)
from tests.builders import make_blob, make_manifest
from tests.contract.backends import add, production
from tests.contract.model import Model, assert_agrees, changes_since, perform

HUGE = 10**30


def make_key(name: str = "ci", **fields: Any) -> ApiKey:
    return ApiKey(name=name, secret_hash="a" * 64, scopes=frozenset({"predict"}), created=1.5, **fields)


class TestVersions:
    async def test_are_numbered_from_one_by_task(self, registry: Registry) -> None:
        assert await add(registry, "pets", 1, 2, 3) == [1, 2, 3]
        assert await add(registry, "cars", 9) == [1]

    async def test_keep_what_was_given(self, registry: Registry) -> None:
        manifest = make_manifest(labels=("Katze", "猫", "🐈"))
        added = await registry.add_version("pets", make_blob(1, 5000), manifest)
        got = await registry.get_version("pets", 1)
        assert got == added.version
        assert got.manifest == manifest
        assert (got.task, got.version, got.size, len(got.digest)) == ("pets", 1, 5000, 64)
        assert await registry.fetch(got.digest) == make_blob(1, 5000)

    async def test_same_bytes_give_the_version_they_have(self, registry: Registry) -> None:
        await add(registry, "pets", 1, 2)
        again = await registry.add_version("pets", make_blob(1), make_manifest())
        assert (again.version.version, again.created) == (1, False)
        assert (await registry.get_task("pets")).versions == 2

    async def test_same_bytes_in_two_tasks_are_two_versions(self, registry: Registry) -> None:
        first = await registry.add_version("pets", make_blob(1), make_manifest())
        second = await registry.add_version("cars", make_blob(1), make_manifest())
        assert second.created
        assert second.version.digest == first.version.digest

    async def test_the_first_becomes_production_and_later_ones_do_not(self, registry: Registry) -> None:
        await add(registry, "pets", 1, 2)
        assert await production(registry) == 1

    async def test_promote_moves_production_to_a_new_and_to_a_known_version(self, registry: Registry) -> None:
        await add(registry, "pets", 1)
        await registry.add_version("pets", make_blob(2), make_manifest(), promote=True)
        assert await production(registry) == 2
        await registry.add_version("pets", make_blob(1), make_manifest(), promote=True)
        assert await production(registry) == 1

    async def test_numbers_are_not_reused_after_a_version_was_deleted(self, registry: Registry) -> None:
        await add(registry, "pets", 1, 2)
        await registry.delete_version("pets", 2)
        assert await add(registry, "pets", 2, 3) == [3, 4]

    async def test_numbers_are_not_reused_after_the_task_was_deleted(self, registry: Registry) -> None:
        await add(registry, "pets", 1, 2)
        await registry.delete_task("pets")
        assert await add(registry, "pets", 1) == [3]
        assert await production(registry) == 3

    async def test_are_listed_in_rising_order_by_pages(self, registry: Registry) -> None:
        await add(registry, "pets", *range(12))
        first = await registry.list_versions("pets", limit=5)
        rest = await registry.list_versions("pets", after=first[-1].version)
        assert [item.version for item in first + rest] == list(range(1, 13))
        assert await registry.list_versions("pets", after=12) == ()
        assert await registry.list_versions("pets", after=HUGE, limit=HUGE) == ()

    async def test_unknown_ones_are_named(self, registry: Registry) -> None:
        with pytest.raises(TaskNotFound, match="`pets`"):
            await registry.get_version("pets", 1)
        with pytest.raises(TaskNotFound):
            await registry.list_versions("pets")
        await add(registry, "pets", 1)
        for number in (0, -1, 2, HUGE):
            with pytest.raises(VersionNotFound, match=f"`pets` has no version {number}"):
                await registry.get_version("pets", number)


class TestTasks:
    async def test_show_their_state(self, registry: Registry) -> None:
        await add(registry, "pets", 1, 2, 3)
        await registry.set_alias("pets", "canary", 2)
        await registry.delete_version("pets", 3)
        task = await registry.get_task("pets")
        expected = {"production": 1, "canary": 2}
        assert task == Task(task="pets", created=task.created, latest=2, versions=2, aliases=expected)

    async def test_are_listed_in_name_order_by_pages(self, registry: Registry) -> None:
        names = ["a", "a-b", "a.b", "a0", "a_b", "b", "z9"]
        for name in reversed(names):
            await add(registry, name, 1)
        pages, after = [], None
        while not pages or after:
            page = await registry.list_tasks(after=after, limit=3)
            pages.append([item.task for item in page.items])
            assert list(page.items) == [await registry.get_task(name) for name in pages[-1]]
            after = page.next_after
        assert pages == [sorted(names)[:3], sorted(names)[3:6], sorted(names)[6:]]

    async def test_a_page_that_ends_exactly_is_the_last(self, registry: Registry) -> None:
        assert await registry.list_tasks() == await registry.list_tasks(after="zebra")
        await add(registry, "a", 1)
        await add(registry, "b", 1)
        assert (await registry.list_tasks(limit=2)).next_after is None
        assert (await registry.list_tasks(limit=1)).next_after == "a"

    async def test_unknown_ones_are_named(self, registry: Registry) -> None:
        with pytest.raises(TaskNotFound):
            await registry.get_task("pets")


class TestDeletion:
    async def test_removes_version_and_bytes(self, registry: Registry) -> None:
        await add(registry, "pets", 1, 2)
        digest = (await registry.get_version("pets", 2)).digest
        await registry.delete_version("pets", 2)
        with pytest.raises(VersionNotFound):
            await registry.get_version("pets", 2)
        with pytest.raises(BlobNotFound, match=digest):
            await registry.fetch(digest)

    async def test_bytes_stay_while_another_task_has_them(self, registry: Registry) -> None:
        await add(registry, "pets", 1)
        await add(registry, "cars", 1)
        digest = (await registry.get_version("pets", 1)).digest
        await registry.delete_task("pets")
        assert await registry.fetch(digest) == make_blob(1)
        await registry.delete_task("cars")
        with pytest.raises(BlobNotFound):
            await registry.fetch(digest)

    async def test_is_refused_while_aliases_point_there(self, registry: Registry) -> None:
        await add(registry, "pets", 1, 2)
        await registry.set_alias("pets", "canary", 1)
        with pytest.raises(VersionInUse) as caught:
            await registry.delete_version("pets", 1)
        assert caught.value.aliases == ("canary", "production")
        for alias in caught.value.aliases:
            await registry.set_alias("pets", alias, 2)
        await registry.delete_version("pets", 1)

    async def test_of_a_task_takes_everything(self, registry: Registry) -> None:
        await add(registry, "pets", 1, 2)
        await registry.set_alias("pets", "production", 2)
        await registry.delete_task("pets")
        with pytest.raises(TaskNotFound):
            await registry.get_task("pets")
        assert (await registry.list_tasks()).items == ()
        await add(registry, "pets", 3)
        assert [move.version for move in await registry.alias_history("pets", "production")] == [3]

    async def test_of_what_does_not_exist(self, registry: Registry) -> None:
        for call in (registry.delete_task("pets"), registry.delete_version("pets", 1)):
            with pytest.raises(TaskNotFound):
                await call
        await add(registry, "pets", 1)
        for number in (2, HUGE):
            with pytest.raises(VersionNotFound):
                await registry.delete_version("pets", number)


class TestEvents:
    async def test_say_what_changed_in_order(self, registry: Registry) -> None:
        await add(registry, "pets", 1, 2)
        one, two = [item.digest for item in await registry.list_versions("pets")]
        await registry.set_alias("pets", "canary", 2)
        await registry.set_alias("pets", "canary", 1)
        await registry.rollback_alias("pets", "canary")
        await registry.set_alias("pets", "canary", 1)
        await registry.delete_version("pets", 2)
        await registry.add_key(make_key())
        await registry.delete_key("ci")
        await registry.delete_task("pets")
        kinds = EventKind
        assert [(e.kind, e.task, e.version, e.alias, e.digest) for e in await registry.events(START)] == [
            (kinds.VERSION_ADDED, "pets", 1, None, one),
            (kinds.ALIAS_SET, "pets", 1, "production", one),
            (kinds.VERSION_ADDED, "pets", 2, None, two),
            (kinds.ALIAS_SET, "pets", 2, "canary", two),
            (kinds.ALIAS_SET, "pets", 1, "canary", one),
            (kinds.ALIAS_SET, "pets", 2, "canary", two),
            (kinds.ALIAS_SET, "pets", 1, "canary", one),
            (kinds.VERSION_DELETED, "pets", 2, None, two),
            (kinds.KEYS_CHANGED, None, None, None, None),
            (kinds.KEYS_CHANGED, None, None, None, None),
            (kinds.TASK_DELETED, "pets", None, None, None),
        ]

    async def test_follow_a_cursor(self, registry: Registry) -> None:
        assert await registry.cursor() == START
        assert await registry.events(START) == ()
        await add(registry, "pets", 1, 2)
        events = await registry.events(START)
        assert await registry.cursor() == events[-1].cursor
        assert await registry.events(events[-1].cursor) == ()
        assert await registry.events(START, limit=2) == events[:2]
        assert await registry.events(events[1].cursor) == events[2:]

    async def test_failed_changes_leave_none(self, registry: Registry) -> None:
        await add(registry, "pets", 1, 2)
        cursor = await registry.cursor()
        for call in (
            registry.set_alias("pets", "production", 2, expected=2, check=True),
            registry.delete_version("pets", 1),
            registry.rollback_alias("pets", "production"),
        ):
            with pytest.raises((AliasConflict, VersionInUse, AliasNotFound)):
                await call
        await add(registry, "pets", 1)
        assert await registry.cursor() == cursor

    async def test_foreign_cursors_are_refused(self, registry: Registry) -> None:
        await add(registry, "pets", 1)
        for cursor in ("", "x", "-1", "1e3", "\ud800", "٣", "99", str(HUGE)):
            with pytest.raises(CursorInvalid):
                await registry.events(cursor)


class TestNamesAndLimits:
    @pytest.mark.parametrize(
        "name", ["", "A", "-a", ".a", "a/b", "../x", "a b", "a\n", "ä", "a" * 64, "\ud800"]
    )
    async def test_bad_names_are_refused_before_anything_else(self, registry: Registry, name: str) -> None:
        calls = [
            registry.add_version(name, b"x", make_manifest()),
            registry.get_version(name, 1),
            registry.get_task(name),
            registry.list_tasks(after=name),
            registry.list_versions(name),
            registry.delete_version(name, 1),
            registry.delete_task(name),
            registry.set_alias(name, "production", 1),
            registry.set_alias("pets", name, 1),
            registry.rollback_alias(name, "production"),
            registry.rollback_alias("pets", name),
            registry.alias_history(name, "production"),
            registry.alias_history("pets", name),
            registry.add_key(make_key(name)),
            registry.delete_key(name),
        ]
        for call in calls:
            with pytest.raises(InvalidName):
                await call

    async def test_longest_and_oddest_good_names(self, registry: Registry) -> None:
        for name in ("0", "a" * 63, "a..-__.z"):
            assert await add(registry, name, 1) == [1]

    async def test_limits_below_one_are_mistakes(self, registry: Registry) -> None:
        await add(registry, "pets", 1)
        for call in (
            registry.list_tasks(limit=0),
            registry.list_versions("pets", limit=-1),
            registry.alias_history("pets", "production", limit=0),
            registry.events(START, limit=0),
        ):
            with pytest.raises(ValueError, match="at least 1"):
                await call

    @pytest.mark.parametrize("digest", ["", "x", "0" * 64, "../registry.sqlite3", "\ud800", "A" * 64])
    async def test_unknown_and_foreign_digests(self, registry: Registry, digest: str) -> None:
        await add(registry, "pets", 1)
        with pytest.raises(BlobNotFound):
            await registry.fetch(digest)


class TestKeys:
    async def test_are_kept_in_name_order(self, registry: Registry) -> None:
        keys = [make_key("b", tasks=("pets", "cars-*")), make_key("a")]
        for key in keys:
            await registry.add_key(key)
        assert await registry.list_keys() == (keys[1], keys[0])
        await registry.delete_key("a")
        assert await registry.list_keys() == (keys[0],)

    async def test_conflicts_and_absences_are_named(self, registry: Registry) -> None:
        await registry.add_key(make_key())
        with pytest.raises(KeyConflict, match="`ci`"):
            await registry.add_key(make_key(tasks=("other",)))
        assert await registry.list_keys() == (make_key(),)
        with pytest.raises(KeyNotFound, match="`other`"):
            await registry.delete_key("other")


async def test_nothing_works_after_close(registry: Registry) -> None:
    await add(registry, "pets", 1)
    await registry.close()
    await registry.close()
    for call in (registry.get_task("pets"), registry.add_key(make_key()), registry.cursor()):
        with pytest.raises(RegistryUnavailable, match="closed"):
            await call


@pytest.mark.parametrize("seed", range(4))
async def test_random_histories_agree_with_the_model(registry: Registry, seed: int) -> None:
    reference, rng, expected = Model(), random.Random(seed), []
    for _ in range(120):
        operation = reference.propose(rng)
        await perform(registry, operation)
        expected += reference.apply(operation)
    assert await changes_since(registry, START) == expected
    await assert_agrees(registry, reference)

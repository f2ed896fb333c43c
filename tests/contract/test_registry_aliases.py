"""Aliases, their history and rollback, over every backend."""

import pytest

from registry import (
    AliasConflict,
    AliasNotFound,
    Registry,
    TaskNotFound,
    VersionNotFound,
)
from tests.contract.backends import add, production

HUGE = 10**30


class TestAliases:
    async def test_set_reports_the_move(self, registry: Registry) -> None:
        await add(registry, "pets", 1, 2)
        move = await registry.set_alias("pets", "production", 2)
        assert (move.alias, move.version, move.previous, move.kind) == ("production", 2, 1, "set")
        first = await registry.set_alias("pets", "canary", 1)
        assert (first.alias, first.version, first.previous) == ("canary", 1, None)

    async def test_a_set_to_where_it_points_changes_nothing(self, registry: Registry) -> None:
        await add(registry, "pets", 1, 2)
        move = await registry.set_alias("pets", "production", 2)
        cursor = await registry.cursor()
        assert await registry.set_alias("pets", "production", 2, expected=2, check=True) == move
        assert await registry.cursor() == cursor
        assert (await registry.rollback_alias("pets", "production")).version == 1

    async def test_compare_and_set(self, registry: Registry) -> None:
        await add(registry, "pets", 1, 2)
        await registry.set_alias("pets", "production", 2, expected=1, check=True)
        with pytest.raises(
            AliasConflict, match="points to version 2, not to version 1 as expected"
        ) as caught:
            await registry.set_alias("pets", "production", 1, expected=1, check=True)
        assert (caught.value.expected, caught.value.actual) == (1, 2)
        assert await production(registry) == 2

    async def test_compare_with_nothing_means_must_not_exist(self, registry: Registry) -> None:
        await add(registry, "pets", 1)
        await registry.set_alias("pets", "canary", 1, expected=None, check=True)
        with pytest.raises(AliasConflict, match="points to version 1, not to no version"):
            await registry.set_alias("pets", "canary", 1, expected=None, check=True)
        with pytest.raises(AliasConflict, match="points to no version, not to version 1"):
            await registry.set_alias("pets", "beta", 1, expected=1, check=True)

    async def test_unknown_targets_are_named(self, registry: Registry) -> None:
        with pytest.raises(TaskNotFound):
            await registry.set_alias("pets", "production", 1)
        await add(registry, "pets", 1)
        for number in (2, HUGE):
            with pytest.raises(VersionNotFound):
                await registry.set_alias("pets", "production", number)

    async def test_history_is_latest_first(self, registry: Registry) -> None:
        await add(registry, "pets", 1, 2)
        await registry.set_alias("pets", "production", 2)
        back = await registry.rollback_alias("pets", "production")
        history = await registry.alias_history("pets", "production")
        assert [(m.version, m.previous, m.kind) for m in history] == [
            (1, 2, "rollback"),
            (2, 1, "set"),
            (1, None, "set"),
        ]
        assert await registry.alias_history("pets", "production", limit=1) == (back,)

    async def test_history_of_what_never_existed(self, registry: Registry) -> None:
        with pytest.raises(TaskNotFound):
            await registry.alias_history("pets", "production")
        await add(registry, "pets", 1)
        with pytest.raises(AliasNotFound):
            await registry.alias_history("pets", "canary")


class TestRollback:
    async def walk(self, registry: Registry, *steps: int | str) -> list[int]:
        """Set (a number) or roll back ("back"); return where each step led."""
        led = []
        for step in steps:
            if isinstance(step, int):
                led.append((await registry.set_alias("pets", "production", step)).version)
            else:
                led.append((await registry.rollback_alias("pets", "production")).version)
        assert await production(registry) == led[-1]
        return led

    async def test_repeated_goes_further_back(self, registry: Registry) -> None:
        await add(registry, "pets", 1, 2, 3)
        assert await self.walk(registry, 2, 3, "back", "back") == [2, 3, 2, 1]
        with pytest.raises(AliasNotFound, match="nothing it could be rolled back to"):
            await registry.rollback_alias("pets", "production")
        assert await production(registry) == 1

    async def test_a_set_after_it_starts_a_new_line(self, registry: Registry) -> None:
        await add(registry, "pets", 1, 2, 3, 4)
        assert await self.walk(registry, 2, 3, "back", 4, "back", "back") == [2, 3, 2, 4, 2, 1]

    async def test_goes_back_through_a_version_set_twice(self, registry: Registry) -> None:
        await add(registry, "pets", 1, 2, 3)
        assert await self.walk(registry, 2, 1, 3, "back", "back", "back") == [2, 1, 3, 1, 2, 1]

    async def test_passes_over_deleted_versions(self, registry: Registry) -> None:
        await add(registry, "pets", 1, 2, 3)
        await self.walk(registry, 2, 3)
        await registry.delete_version("pets", 2)
        assert await self.walk(registry, "back") == [1]

    async def test_does_not_lead_to_where_it_is(self, registry: Registry) -> None:
        await add(registry, "pets", 1, 2)
        await self.walk(registry, 2, 1)
        await registry.delete_version("pets", 2)
        with pytest.raises(AliasNotFound):
            await registry.rollback_alias("pets", "production")

    async def test_without_task_alias_or_past(self, registry: Registry) -> None:
        with pytest.raises(TaskNotFound):
            await registry.rollback_alias("pets", "production")
        await add(registry, "pets", 1)
        for alias in ("production", "canary"):
            with pytest.raises(AliasNotFound, match=alias):
                await registry.rollback_alias("pets", alias)

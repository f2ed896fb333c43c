"""What a registry must do, in a few lists: the reference that real ones are compared with."""

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from registry import PRODUCTION, EventKind, Registry, RegistryError, RegistryUnavailable
from tests.builders import make_blob, make_manifest

TASKS = ("cars", "pets", "toys")
ALIASES = (PRODUCTION, "canary")
SEEDS = 40
SIZE = 50_000


class Operation(NamedTuple):
    name: str
    args: tuple[Any, ...]


Change = tuple[EventKind, str, int | None, str | None]  # kind, task, version, alias


@dataclass
class Model:
    """`lines` holds, by task and alias, the versions that a rollback walks through; the last is current."""

    last: dict[str, int] = field(default_factory=dict)
    versions: dict[str, dict[int, str]] = field(default_factory=dict)
    lines: dict[tuple[str, str], list[int]] = field(default_factory=dict)

    def apply(self, operation: Operation) -> list[Change]:
        """Change the model; return the events. An operation that a registry must refuse has none."""
        changed: list[Change] = getattr(self, operation.name)(*operation.args)
        return changed

    def add(self, task: str, seed: int, promote: bool) -> list[Change]:
        digest = hashlib.sha256(make_blob(seed, SIZE)).hexdigest()
        versions, changes = self.versions.setdefault(task, {}), []
        number = next((number for number, known in versions.items() if known == digest), None)
        if number is None:
            number = self.last[task] = self.last.get(task, 0) + 1
            versions[number] = digest
            changes.append((EventKind.VERSION_ADDED, task, number, None))
        if promote or len(versions) == 1:
            changes += self.set(task, PRODUCTION, number)
        return changes

    def set(self, task: str, alias: str, version: int) -> list[Change]:
        line = self.lines.setdefault((task, alias), [])
        if version not in self.versions.get(task, {}) or line[-1:] == [version]:
            return []
        line.append(version)
        return [(EventKind.ALIAS_SET, task, version, alias)]

    def rollback(self, task: str, alias: str) -> list[Change]:
        line = self.lines.get((task, alias), [])
        for length in range(len(line) - 1, 0, -1):
            if line[length - 1] in self.versions[task] and line[length - 1] != line[-1]:
                self.lines[task, alias] = line[:length]
                return [(EventKind.ALIAS_SET, task, line[length - 1], alias)]
        return []

    def delete_version(self, task: str, version: int) -> list[Change]:
        if version not in self.versions.get(task, {}) or version in self.aliases(task).values():
            return []
        del self.versions[task][version]
        return [(EventKind.VERSION_DELETED, task, version, None)]

    def delete_task(self, task: str) -> list[Change]:
        if task not in self.versions:
            return []
        del self.versions[task]
        self.lines = {key: line for key, line in self.lines.items() if key[0] != task}
        return [(EventKind.TASK_DELETED, task, None, None)]

    def aliases(self, task: str) -> dict[str, int]:
        return {alias: line[-1] for (name, alias), line in self.lines.items() if name == task and line}

    def propose(self, rng: random.Random) -> Operation:
        """Return something to do, most often something that succeeds."""
        task, alias = rng.choice(TASKS), rng.choice(ALIASES)
        version = rng.choice([*self.versions.get(task, {}), self.last.get(task, 0) + 1])
        kinds: list[tuple[int, Callable[[], Operation]]] = [
            (8, lambda: Operation("add", (task, rng.randrange(SEEDS), rng.random() < 0.3))),
            (5, lambda: Operation("set", (task, alias, version))),
            (3, lambda: Operation("rollback", (task, alias))),
            (5, lambda: Operation("delete_version", (task, version))),
            (1, lambda: Operation("delete_task", (task,))),
        ]
        weights = [weight for weight, _ in kinds]
        return rng.choices(kinds, weights)[0][1]()


async def perform(registry: Registry, operation: Operation) -> None:
    """Do the operation for real; what a registry must refuse, it may refuse."""
    calls: dict[str, Callable[..., Any]] = {
        "add": lambda task, seed, promote: registry.add_version(
            task, make_blob(seed, SIZE), make_manifest(), promote=promote
        ),
        "set": registry.set_alias,
        "rollback": registry.rollback_alias,
        "delete_version": registry.delete_version,
        "delete_task": registry.delete_task,
    }
    try:
        await calls[operation.name](*operation.args)
    except RegistryUnavailable:
        raise
    except RegistryError:
        pass


async def changes_since(registry: Registry, cursor: str) -> list[Change]:
    return [(e.kind, e.task or "", e.version, e.alias) for e in await registry.events(cursor, limit=10_000)]


async def assert_agrees(registry: Registry, model: Model) -> None:
    """Compare everything that can be seen, and every byte."""
    page = await registry.list_tasks()
    assert {task.task: task.aliases for task in page.items} == {
        task: model.aliases(task) for task in model.versions
    }
    for task, expected in model.versions.items():
        versions = await registry.list_versions(task, limit=1000)
        assert {item.version: item.digest for item in versions} == expected
        for digest in expected.values():
            assert hashlib.sha256(await registry.fetch(digest)).hexdigest() == digest

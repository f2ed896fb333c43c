"""What a registry offers to the tools that move, check and clean it, beside what serving needs."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

from registry.base import Registry
from registry.models import UNKNOWN, Actor, AliasMove, Record, Version


class Step(AliasMove):
    """A move, and the place in its alias' history (from 1) that a rollback from it leads to."""

    undo: int | None

    def move(self) -> AliasMove:
        return AliasMove(**self.model_dump(exclude={"undo"}))


class TaskPast(Record):
    """What a task is beside its versions.

    `last` is the last number given out, `histories` are the moves by alias, oldest first.
    """

    task: str
    created: float
    last: int
    histories: dict[str, tuple[Step, ...]]


class KeptRegistry(Registry, ABC):
    """A registry that can be moved, checked and cleaned. All methods raise RegistryUnavailable too."""

    @abstractmethod
    async def numbers(self) -> Mapping[str, int]:
        """Return the last version number given out by task, for deleted tasks too."""

    @abstractmethod
    async def past(self, task: str) -> TaskPast:
        """Return what a task is beside its versions.

        Raises:
            TaskNotFound
        """

    @abstractmethod
    async def restore_version(self, version: Version, data: bytes, *, by: Actor = UNKNOWN) -> None:
        """Store a version as it is, with its number; no alias moves. Nothing happens if it is there.

        Raises:
            RestoreConflict: If the number or the bytes belong to another version of the task.
        """

    @abstractmethod
    async def restore_past(self, past: TaskPast, *, by: Actor = UNKNOWN) -> None:
        """Give a task, whose versions are there, its aliases and their history.

        Raises:
            TaskNotFound
            RestoreConflict: If an alias has another history.
        """

    @abstractmethod
    async def restore_numbers(self, numbers: Mapping[str, int]) -> None:
        """Let no version number up to these be given out again."""

    @abstractmethod
    async def reclaim(self, *, older_than: float = 0.0) -> int:
        """Remove bytes that no version has, as crashes leave them; return how many objects went.

        Safe beside uploads: one that is under way keeps its bytes, or stores them again before it returns.

        Args:
            older_than: Spare what was begun in the last so many seconds, to save uploads the repetition.
        """

    @abstractmethod
    async def faults(self) -> tuple[str, ...]:
        """Return what is wrong inside the backend; what can be seen from outside is not looked at."""

    @abstractmethod
    async def risks(self) -> tuple[str, ...]:
        """Return settings of the backend under which acknowledged writes may be lost."""

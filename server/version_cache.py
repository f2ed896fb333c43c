"""The versions a replica has met, kept small."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import TypeVar, cast

from registry.models import Version

T = TypeVar("T", bound=Hashable)

MAX_SHARED = 1024


class VersionCache:
    """Least recently used versions by task and number, about 2.5 kB each instead of 44.

    Adapters of one backbone mostly name the same sites and preprocessing: equal ones are held once. The
    training record is left out, because nothing that serves needs it; the registry has it.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._versions: OrderedDict[tuple[str, int], Version] = OrderedDict()
        self._numbers: dict[str, set[int]] = {}
        self._shared: dict[Hashable, Hashable] = {}

    def __len__(self) -> int:
        return len(self._versions)

    def get(self, task: str, number: int) -> Version | None:
        key = (task, number)
        found = self._versions.get(key)
        if found is not None:
            self._versions.move_to_end(key)
        return found

    def add(self, version: Version) -> Version:
        """Keep a version, without its training record, and return what is kept."""
        key = (version.task, version.version)
        slim = self._versions[key] = self._slim(version)
        self._versions.move_to_end(key)
        self._numbers.setdefault(version.task, set()).add(version.version)
        while len(self._versions) > self._capacity:
            self.drop(*next(iter(self._versions)))
        return slim

    def has_task(self, task: str) -> bool:
        return task in self._numbers

    def drop(self, task: str, number: int) -> str | None:
        """Remove a version; return its digest, None if it was not here."""
        version = self._versions.pop((task, number), None)
        if version is None:
            return None
        self._numbers[task].remove(number)
        if not self._numbers[task]:
            del self._numbers[task]
        return version.digest

    def drop_task(self, task: str) -> set[str]:
        """Remove all versions of a task; return their digests."""
        numbers = self._numbers.pop(task, set())
        return {self._versions.pop((task, number)).digest for number in numbers}

    def clear(self) -> None:
        self._versions.clear()
        self._numbers.clear()

    def digests(self) -> set[str]:
        return {version.digest for version in self._versions.values()}

    def _slim(self, version: Version) -> Version:
        manifest = version.manifest
        shared = {
            "backbone": self._share(manifest.backbone),
            "sites": self._share(manifest.sites),
            "preprocessing": self._share(manifest.preprocessing),
            "training": None,
        }
        return version.model_copy(update={"manifest": manifest.model_copy(update=shared)})

    def _share(self, value: T) -> T:
        if len(self._shared) >= MAX_SHARED:
            self._shared.clear()
        return cast(T, self._shared.setdefault(value, value))

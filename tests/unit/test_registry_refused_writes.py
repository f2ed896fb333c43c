"""Disks that take no more, and directories that take nothing: in processes of their own, with real limits."""

import asyncio
import multiprocessing
import os
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from registry import START, ApiKey, EmbeddedRegistry, Event, EventKind, RegistryUnavailable, Task
from tests.builders import make_blob, make_manifest

NOBODY = 65534
KEY = ApiKey(name="ci", secret_hash="a" * 64, scopes=frozenset({"manage"}), created=0.0)


def in_child(work: Callable[..., Any], *args: Any) -> Any:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *args).result()


def upload(place: Path, seed: int, size: int) -> None:
    async def main() -> None:
        registry = EmbeddedRegistry(place)
        await registry.add_version("pets", make_blob(seed, size), make_manifest())
        await registry.close()

    asyncio.run(main())


class State(NamedTuple):
    task: Task
    events: tuple[Event, ...]
    blobs: list[str]


def state(place: Path) -> State:
    async def main() -> tuple[Task, tuple[Event, ...]]:
        registry = EmbeddedRegistry(place)
        found = await registry.get_task("pets"), await registry.events(START)
        await registry.close()
        return found

    return State(*asyncio.run(main()), sorted(path.name for path in (place / "blobs").iterdir()))


def write_beyond(place: Path, limit: int, size: int) -> list[str]:
    """Let no file grow beyond `limit` bytes and write; then lift the limit and write again."""
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)

    async def main() -> list[str]:
        registry, errors = EmbeddedRegistry(place), []
        await registry.add_key(KEY)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, unlimited[1]))
        for task in ("pets", "cars"):
            try:
                await registry.add_version(task, make_blob(2, size), make_manifest())
            except RegistryUnavailable as error:
                errors.append(str(error))
        assert (await registry.get_task("pets")).versions == 1
        assert len(list((place / "blobs").iterdir())) == 1
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        await registry.add_version("pets", make_blob(2, size), make_manifest())
        await registry.close()
        return errors

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("limit", "size", "named"),
    [(5000, 9000, ": File too large"), (3000, 2000, "sqlite3: the disk is full or failing")],
    ids=["the bytes do not fit", "the log does not fit"],
)
def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, limit: int, size: int, named: str) -> None:
    upload(tmp_path, 1, 100)
    before = state(tmp_path)
    errors = in_child(write_beyond, tmp_path, limit, size)
    assert len(errors) == 2
    assert all(named in error for error in errors)
    after = state(tmp_path)
    assert (after.task.versions, after.task.latest) == (2, 2)
    assert after.events[: len(before.events)] == before.events
    new = [event.kind for event in after.events[len(before.events) :]]
    assert new == [EventKind.KEYS_CHANGED, EventKind.VERSION_ADDED]
    assert len(after.blobs) == 2


@pytest.fixture
def sealed() -> Iterator[Path]:
    """A registry that others may read but not write."""
    place = Path(tempfile.mkdtemp())
    upload(place, 1, 100)
    place.chmod(0o555)
    (place / "blobs").chmod(0o555)
    yield place
    place.chmod(0o755)
    shutil.rmtree(place)


def try_as_nobody(place: Path) -> list[str]:
    if os.geteuid() == 0:
        os.setuid(NOBODY)  # permissions do not bind root

    async def main() -> list[str]:
        registry, errors = EmbeddedRegistry(place), []
        for call in (registry.add_key(KEY), registry.delete_task("pets"), registry.get_task("pets")):
            try:
                await call
            except RegistryUnavailable as error:
                errors.append(str(error))
        await registry.close()
        return errors

    return asyncio.run(main())


def test_a_directory_without_permission_is_named(sealed: Path) -> None:
    errors = in_child(try_as_nobody, sealed)
    assert len(errors) == 3
    assert all("Permission denied" in error and str(sealed) in error for error in errors)

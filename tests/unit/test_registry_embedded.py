"""What only the embedded backend can do wrong: files, locks, damage."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from registry import (
    START,
    BlobCorrupt,
    BlobNotFound,
    EmbeddedRegistry,
    RegistryUnavailable,
    VersionNotFound,
)
from registry.blobs import INCOMING, BlobStore
from tests.builders import make_blob, make_manifest

PAGE = 4096


async def test_a_file_that_was_removed_or_replaced_takes_no_writes(
    registry: EmbeddedRegistry, tmp_path: Path
) -> None:
    await registry.add_version("pets", make_blob(), make_manifest())
    (tmp_path / "registry.sqlite3").rename(tmp_path / "away")
    with pytest.raises(RegistryUnavailable, match="removed or replaced"):
        await registry.add_version("lost", make_blob(1), make_manifest())
    with pytest.raises(RegistryUnavailable, match="removed or replaced"):
        await registry.cursor()
    (tmp_path / "away").rename(tmp_path / "registry.sqlite3")
    assert (await registry.get_task("pets")).versions == 1


@pytest_asyncio.fixture
async def registry(tmp_path: Path) -> AsyncIterator[EmbeddedRegistry]:
    made = EmbeddedRegistry(tmp_path, busy_seconds=0.05)
    yield made
    await made.close()


@pytest.fixture
def raw(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """Another program's connection to the same file."""
    connection = sqlite3.connect(tmp_path / "registry.sqlite3", isolation_level=None)
    yield connection
    connection.close()


async def add(registry: EmbeddedRegistry, seed: int = 1) -> Path:
    """Add a version; return where its bytes are."""
    added = await registry.add_version("pets", make_blob(seed), make_manifest())
    return Path(registry.directory / "blobs" / added.version.digest)


def test_making_one_touches_nothing(tmp_path: Path) -> None:
    asyncio.run(EmbeddedRegistry(tmp_path / "data").close())
    assert list(tmp_path.iterdir()) == []


async def test_another_opening_finds_everything(tmp_path: Path, registry: EmbeddedRegistry) -> None:
    await add(registry)
    version, events = await registry.get_version("pets", 1), await registry.events(START)
    await registry.close()
    again = EmbeddedRegistry(tmp_path)
    assert await again.get_version("pets", 1) == version
    assert await again.events(START) == events
    await again.close()


@pytest.mark.parametrize("damage", [b"", b"x", make_blob(1)[:-1], make_blob(1) + b"x", make_blob(2)])
async def test_damaged_bytes_are_refused_until_they_are_uploaded_again(
    registry: EmbeddedRegistry, damage: bytes
) -> None:
    path = await add(registry)
    path.write_bytes(damage)
    with pytest.raises(BlobCorrupt, match=path.name):
        await registry.fetch(path.name)
    await add(registry)
    assert await registry.fetch(path.name) == make_blob(1)


async def test_lost_bytes_are_named_until_they_are_uploaded_again(registry: EmbeddedRegistry) -> None:
    path = await add(registry)
    path.unlink()
    with pytest.raises(BlobNotFound):
        await registry.fetch(path.name)
    await add(registry)
    assert await registry.fetch(path.name) == make_blob(1)


async def test_reclaim_removes_only_what_a_crash_left(registry: EmbeddedRegistry) -> None:
    path = await add(registry)
    left = [path.with_name("a" * 64), path.with_name(INCOMING)]
    for file in left:
        file.write_bytes(b"12345")
    foreign = path.with_name("notes.txt")
    foreign.write_text("not ours")
    with pytest.raises(BlobNotFound):
        await registry.fetch("a" * 64)
    assert await registry.reclaim() == 2
    assert [file.exists() for file in (*left, path, foreign)] == [False, False, True, True]
    assert await registry.reclaim() == 0


async def test_reclaim_before_anything_was_stored(registry: EmbeddedRegistry) -> None:
    assert await registry.reclaim() == 0


async def test_reads_wait_for_no_writer(registry: EmbeddedRegistry, raw: sqlite3.Connection) -> None:
    path = await add(registry)
    raw.execute("BEGIN IMMEDIATE")
    raw.execute("DELETE FROM aliases")
    assert (await registry.get_task("pets")).aliases == {"production": 1}
    assert await registry.fetch(path.name) == make_blob(1)


async def test_a_write_gives_up_on_a_lock_that_stays(
    registry: EmbeddedRegistry, raw: sqlite3.Connection
) -> None:
    await add(registry)
    raw.execute("BEGIN IMMEDIATE")
    with pytest.raises(RegistryUnavailable, match=r"registry\.sqlite3: another process holds its lock"):
        await add(registry, 2)
    raw.execute("ROLLBACK")
    await add(registry, 2)


async def test_a_write_waits_for_a_lock_that_goes(tmp_path: Path, raw: sqlite3.Connection) -> None:
    registry = EmbeddedRegistry(tmp_path)
    await add(registry)
    raw.execute("BEGIN IMMEDIATE")
    write = asyncio.create_task(add(registry, 2))
    assert (await registry.get_task("pets")).versions == 1
    assert not write.done()
    raw.execute("ROLLBACK")
    await write
    assert (await registry.get_task("pets")).versions == 2
    await registry.close()


async def test_a_damaged_database_is_named(tmp_path: Path, registry: EmbeddedRegistry) -> None:
    (tmp_path / "registry.sqlite3").write_bytes(b"no database at all, " * 100)
    for call in (registry.get_task("pets"), registry.events(START), registry.list_keys()):
        with pytest.raises(RegistryUnavailable, match="damaged or no registry"):
            await call


async def test_it_comes_back_when_the_damage_is_repaired(tmp_path: Path) -> None:
    before = EmbeddedRegistry(tmp_path)
    await add(before)
    await before.close()
    file, registry = tmp_path / "registry.sqlite3", EmbeddedRegistry(tmp_path, readers=1)
    good = file.read_bytes()
    assert await registry.list_keys() == ()
    with file.open("r+b") as damaged:
        damaged.seek(PAGE)
        damaged.write(b"\xff" * (len(good) - PAGE))
    with pytest.raises(RegistryUnavailable, match="damaged"):
        await registry.get_version("pets", 1)
    with file.open("r+b") as repaired:
        repaired.write(good)
    assert (await registry.get_version("pets", 1)).version == 1
    await registry.close()


async def test_files_change_only_under_the_write_lock(
    registry: EmbeddedRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = []

    def guard(name: str) -> None:
        original = getattr(BlobStore, name)

        def guarded(*args: Any) -> Any:
            other = sqlite3.connect(tmp_path / "registry.sqlite3", timeout=0, isolation_level=None)
            with closing(other), pytest.raises(sqlite3.OperationalError, match="locked"):
                other.execute("BEGIN IMMEDIATE")
            checked.append(name)
            return original(*args)

        monkeypatch.setattr(BlobStore, name, guarded)

    for name in ("put", "remove", "sweep"):
        guard(name)
    await add(registry)
    await registry.delete_task("pets")
    await registry.reclaim()
    assert checked == ["put", "remove", "sweep"]


async def test_a_newer_schema_is_refused(registry: EmbeddedRegistry, raw: sqlite3.Connection) -> None:
    raw.execute("PRAGMA user_version = 2")
    with pytest.raises(RegistryUnavailable, match="has schema 2, this program knows 1; upgrade ssfserve"):
        await registry.list_keys()


async def test_a_file_where_the_directory_should_be(tmp_path: Path) -> None:
    place = tmp_path / "data"
    place.write_text("a file")
    registry = EmbeddedRegistry(place)
    with pytest.raises(RegistryUnavailable, match=str(place)):
        await registry.list_tasks()
    await registry.close()


async def test_an_unreadable_manifest_is_named(registry: EmbeddedRegistry, raw: sqlite3.Connection) -> None:
    await add(registry)
    raw.execute("UPDATE versions SET manifest = '{}'")
    with pytest.raises(RegistryUnavailable, match="manifest of pets version 1"):
        await registry.get_version("pets", 1)
    with pytest.raises(VersionNotFound):
        await registry.get_version("pets", 2)


async def test_no_alias_can_point_to_nothing(registry: EmbeddedRegistry, raw: sqlite3.Connection) -> None:
    await add(registry)
    raw.execute("PRAGMA foreign_keys = ON")
    with pytest.raises(sqlite3.IntegrityError):
        raw.execute("UPDATE aliases SET version = 2")


async def test_a_failed_upload_leaves_no_bytes(registry: EmbeddedRegistry, raw: sqlite3.Connection) -> None:
    path = await add(registry)
    raw.execute("CREATE TRIGGER refuse BEFORE INSERT ON versions BEGIN SELECT RAISE(ABORT, 'no'); END")
    with pytest.raises(RegistryUnavailable):
        await add(registry, 2)
    assert list(path.parent.iterdir()) == [path]
    raw.execute("DROP TRIGGER refuse")
    await add(registry, 2)
    assert (await registry.get_task("pets")).latest == 2

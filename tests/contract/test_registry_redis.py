"""What only the Redis backend can do wrong: stored text, streams, scripts, uploads that meet a sweep."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from registry import (
    START,
    BlobCorrupt,
    BlobNotFound,
    CursorInvalid,
    EventKind,
    RegistryUnavailable,
    open_registry,
)
from registry.checking import check
from registry.places import Directory, StoredOutside
from registry.redis_backend import Connection
from registry.redis_blobs import CHUNK, InRedis
from registry.redis_keys import Keys
from registry.redis_registry import RedisRegistry
from registry.redis_url import RedisTarget
from tests.builders import make_blob, make_manifest
from tests.contract.backends import add
from tests.redis_servers import RedisServer


class Raw:
    """Another program's view of one registry's keys."""

    def __init__(self, server: RedisServer, url: str) -> None:
        self._server = server
        self._prefix = RedisTarget.parse(url).options.prefix

    def key(self, name: str) -> str:
        return f"{{{self._prefix}}}:{name}"

    def do(self, command: str, key: str, *rest: str) -> bytes:
        return self._server.command(command, self.key(key), *rest)

    def object(self, digest: str) -> str:
        return self.do("HGET", "blobs", digest).split(b"\r\n")[1].decode()


@pytest_asyncio.fixture
async def registry(redis_url: str, tmp_path: Path) -> AsyncIterator[RedisRegistry]:
    made = open_registry(redis_url, tmp_path)
    assert isinstance(made, RedisRegistry)
    yield made
    await made.close()


@pytest.fixture
def raw(redis: RedisServer, redis_url: str) -> Raw:
    return Raw(redis, redis_url)


async def test_all_keys_are_in_one_slot_and_named_as_documented(
    registry: RedisRegistry, redis: RedisServer, raw: Raw
) -> None:
    await add(registry, "pets", 1, 2)
    await registry.delete_version("pets", 2)
    found = redis.command("KEYS", raw.key("*")).split(b"\r\n")[2::2]
    names = {key.decode().removeprefix(raw.key("")) for key in found}
    object_ = raw.object((await registry.get_version("pets", 1)).digest)
    assert names == {
        *("meta", "names", "numbers", "tasks", "events", "uses", "blobs", "audit"),
        *("versions:pets", "order:pets", "digests:pets", "moves:pets"),
        f"object:{object_}",
    }
    await registry.delete_task("pets")
    left = redis.command("KEYS", raw.key("*")).split(b"\r\n")[2::2]
    assert {key.decode().removeprefix(raw.key("")) for key in left} == {"meta", "numbers", "events", "audit"}


class TestBytes:
    @pytest.mark.parametrize("size", [1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
    async def test_of_any_size_come_back(self, registry: RedisRegistry, size: int) -> None:
        data = make_blob(size, size)
        added = await registry.add_version("pets", data, make_manifest())
        assert await registry.fetch(added.version.digest) == data

    async def test_damaged_ones_are_refused_until_they_are_uploaded_again(
        self, registry: RedisRegistry, raw: Raw
    ) -> None:
        await add(registry, "pets", 1)
        digest = (await registry.get_version("pets", 1)).digest
        raw.do("SETRANGE", f"object:{raw.object(digest)}", "7", "x!")
        with pytest.raises(BlobCorrupt, match=digest):
            await registry.fetch(digest)
        assert len((await check(registry)).faults) == 1
        await add(registry, "pets", 1)
        assert await registry.fetch(digest) == make_blob(1)
        assert (await check(registry)).faults == []

    async def test_lost_ones_are_named_until_they_are_uploaded_again(
        self, registry: RedisRegistry, raw: Raw
    ) -> None:
        await add(registry, "pets", 1)
        digest = (await registry.get_version("pets", 1)).digest
        raw.do("DEL", f"object:{raw.object(digest)}")
        with pytest.raises(BlobNotFound, match=digest):
            await registry.fetch(digest)
        await add(registry, "pets", 1)
        assert await registry.fetch(digest) == make_blob(1)


class Meddler:
    """A connection on which something happens just before a script is run."""

    def __init__(self, url: str) -> None:
        self.connection = Connection(RedisTarget.parse(url))
        self.before: dict[str, Any] = {}
        self.times = 1
        self.refused: set[str] = set()

    async def ask(self, *command: Any) -> Any:
        if command[0] in self.refused:
            raise RegistryUnavailable("redis", "away for this command")
        return await self.connection.ask(*command)

    async def run(self, script: str, keys: Sequence[str], *arguments: Any) -> list[Any]:
        if script in self.before and self.times > 0:
            self.times -= 1
            await self.before[script]()
        return await self.connection.run(script, keys, *arguments)

    async def close(self) -> None:
        await self.connection.close()


@pytest.fixture(params=["redis", "files"])
async def meddled(
    request: pytest.FixtureRequest, redis_url: str, tmp_path: Path
) -> AsyncIterator[tuple[RedisRegistry, Meddler]]:
    meddler, prefix = Meddler(redis_url), RedisTarget.parse(redis_url).options.prefix
    outside = request.param == "files"
    place = StoredOutside(f"file://{tmp_path}") if outside else InRedis(meddler, Keys(prefix))
    made = RedisRegistry(meddler, prefix=prefix, place=place, outside=outside)
    yield made, meddler
    await made.close()


class TestSweeps:
    async def test_an_upload_that_lost_its_object_stores_it_again(
        self, meddled: tuple[RedisRegistry, Meddler]
    ) -> None:
        registry, meddler = meddled
        meddler.before["add_version"] = registry.reclaim
        assert await add(registry, "pets", 1) == [1]
        assert meddler.times == 0
        assert await registry.fetch((await registry.get_version("pets", 1)).digest) == make_blob(1)
        assert await registry.reclaim() == 0

    async def test_an_upload_that_always_loses_gives_up_and_leaves_nothing(
        self, meddled: tuple[RedisRegistry, Meddler]
    ) -> None:
        registry, meddler = meddled
        meddler.before["add_version"], meddler.times = registry.reclaim, 100
        with pytest.raises(RegistryUnavailable, match="swept away"):
            await add(registry, "pets", 1)
        assert (await registry.list_tasks()).items == ()
        meddler.times = 0
        assert await add(registry, "pets", 1) == [1]

    async def test_recent_uploads_are_spared_on_request(self, meddled: tuple[RedisRegistry, Meddler]) -> None:
        registry, meddler = meddled
        removed = []

        async def sweep() -> None:
            removed.append(await registry.reclaim(older_than=60))

        meddler.before["add_version"] = sweep
        await add(registry, "pets", 1)
        assert removed == [0]

    async def test_what_a_crash_during_an_upload_left_is_removed(
        self, meddled: tuple[RedisRegistry, Meddler]
    ) -> None:
        registry, meddler = meddled

        async def crash() -> None:
            raise ConnectionResetError

        meddler.before["add_version"] = crash
        with pytest.raises(ConnectionResetError):
            await add(registry, "pets", 1)
        assert await registry.reclaim(older_than=60) == 0
        assert await registry.reclaim() == 1
        assert await registry.reclaim() == 0

    async def test_a_sweep_that_stops_before_it_removes_has_already_decided(
        self, meddled: tuple[RedisRegistry, Meddler], redis_url: str
    ) -> None:
        """It goes on when the upload is over, and takes the first object: the version must have another."""
        registry, meddler = meddled
        keys = Keys(RedisTarget.parse(redis_url).options.prefix)
        decided: list[bytes] = []

        async def decide() -> None:
            decided.extend(await meddler.connection.run("sweep", keys.all(), "1e12"))

        meddler.before["add_version"] = decide
        await add(registry, "pets", 1)
        digest = (await registry.get_version("pets", 1)).digest
        held = await meddler.ask("HGET", keys("blobs"), digest)
        assert len(decided) == 1 and held not in decided

    async def test_bytes_that_came_back_while_they_were_let_go_of_stay(
        self, meddled: tuple[RedisRegistry, Meddler]
    ) -> None:
        """The uploader saw that the bytes are there; then their last version was deleted."""
        registry, meddler = meddled
        await add(registry, "cars", 1)

        async def delete() -> None:
            await registry.delete_task("cars")

        meddler.before["add_version"] = delete
        await add(registry, "pets", 1)
        assert await registry.fetch((await registry.get_version("pets", 1)).digest) == make_blob(1)


async def test_what_could_not_be_removed_at_once_is_removed_by_a_sweep(
    redis_url: str, redis: RedisServer, raw: Raw
) -> None:
    meddler, prefix = Meddler(redis_url), RedisTarget.parse(redis_url).options.prefix
    place = InRedis(meddler, Keys(prefix))
    registry = RedisRegistry(meddler, prefix=prefix, place=place, outside=False)
    await add(registry, "pets", 1, 2, 3)
    meddler.refused = {"UNLINK"}
    await registry.delete_version("pets", 2)
    raw.do("SETRANGE", f"object:{raw.object((await registry.get_version('pets', 1)).digest)}", "0", "x")
    await add(registry, "pets", 1)  # mended: in another object
    meddler.refused = set()
    assert await registry.reclaim(older_than=3600) == 2
    assert len(redis.command("KEYS", raw.key("object:*")).split(b"\r\n")[2::2]) == 2
    await registry.close()


async def test_strays_in_a_directory_are_removed_and_foreign_files_left(
    redis_url: str, tmp_path: Path
) -> None:
    """Redis may have been restored from a backup that knows nothing of some files."""
    blobs = tmp_path / "blobs"
    registry = open_registry(f"{redis_url}&blobs=file://{blobs}", tmp_path)
    await add(registry, "pets", 1)
    kept = {path.name for path in blobs.iterdir()}
    assert len(kept) == 2 and "registry" in kept
    (blobs / f"{'a' * 64}.0123456789abcdef").write_bytes(b"stray")
    (blobs / "README").write_text("not ours")
    assert await registry.reclaim() == 1
    assert {path.name for path in blobs.iterdir()} == kept | {"README"}
    await registry.close()


class TestEvents:
    async def test_behind_a_trimmed_stream_the_reader_is_told(self, redis_url: str, tmp_path: Path) -> None:
        registry = open_registry(f"{redis_url}&max_events=5", tmp_path)
        await add(registry, "pets", 1)
        early = await registry.cursor()
        await add(registry, "pets", *range(2, 6))
        assert len(await registry.events(early)) == 4  # event 2 is the oldest of five
        await add(registry, "pets", 6)
        for cursor in (START, early):
            with pytest.raises(CursorInvalid):
                await registry.events(cursor)
        report = await check(registry)
        assert (report.events, report.faults) == (None, [])
        await registry.close()

    async def test_a_cursor_of_a_lost_future_is_refused_although_its_number_is_there_again(
        self, registry: RedisRegistry, redis: RedisServer, raw: Raw
    ) -> None:
        """A failover may lose the last events; others get their numbers."""
        await add(registry, "pets", 1, 2)
        ahead = await registry.cursor()
        redis.command("XDEL", raw.key("events"), ahead)
        before = (await registry.events(START))[-1].cursor
        redis.command("XSETID", raw.key("events"), before)
        redis.command("HSET", raw.key("meta"), "last", before, "events", "2")
        with pytest.raises(CursorInvalid):
            await registry.events(ahead)
        await add(registry, "pets", 3)
        await add(registry, "cars", 1)
        assert (await registry.cursor()).split("-")[0] > ahead.split("-")[0]
        with pytest.raises(CursorInvalid):
            await registry.events(ahead)
        first, *_ = await registry.events(before)
        assert (first.kind, first.version) == (EventKind.VERSION_ADDED, 3)

    async def test_an_older_state_restored_from_a_backup_is_read_anew(
        self, registry: RedisRegistry, redis: RedisServer, raw: Raw
    ) -> None:
        await add(registry, "pets", 1)
        cursor = await registry.cursor()
        for name in ("names", "tasks", "events"):
            raw.do("DEL", name)
        redis.command("HDEL", raw.key("meta"), "last", "events")
        with pytest.raises(CursorInvalid):
            await registry.events(cursor)
        assert await registry.events(await registry.cursor()) == ()

    async def test_an_emptied_server_is_not_taken_for_a_registry_without_tasks(
        self, registry: RedisRegistry, redis: RedisServer, raw: Raw, redis_url: str, tmp_path: Path
    ) -> None:
        await add(registry, "pets", 1)
        cursor = await registry.cursor()
        redis.command("DEL", *redis.command("KEYS", raw.key("*")).decode().split("\r\n")[2::2])
        with pytest.raises(RegistryUnavailable, match="another registry"):
            await registry.events(cursor)
        again = open_registry(redis_url, tmp_path)
        assert await add(again, "cars", 1) == [1]
        with pytest.raises(RegistryUnavailable, match="another registry"):
            await registry.events(cursor)
        await again.close()


class TestDamage:
    @pytest.mark.parametrize(
        ("key", "field", "value"),
        [
            ("versions:pets", "1", "{}"),
            ("versions:pets", "1", "not json"),
            ("tasks", "pets", '{"created": "x"}'),
            ("keys", "ci", "[]"),
        ],
    )
    async def test_is_named_and_raises_nothing_else(
        self, registry: RedisRegistry, raw: Raw, key: str, field: str, value: str
    ) -> None:
        await add(registry, "pets", 1)
        raw.do("HSET", key, field, value)
        calls = [registry.get_version("pets", 1), registry.get_task("pets"), registry.list_keys()]
        results = await asyncio.gather(*calls, return_exceptions=True)
        failures = [result for result in results if isinstance(result, BaseException)]
        assert len(failures) == 1
        assert isinstance(failures[0], RegistryUnavailable) and "cannot be read" in str(failures[0])

    async def test_a_key_of_another_type_raises_nothing_else(self, registry: RedisRegistry, raw: Raw) -> None:
        raw.do("SET", "tasks", "x")
        for call in (registry.get_task("pets"), add(registry, "pets", 1)):
            with pytest.raises(RegistryUnavailable, match="WRONGTYPE"):
                await call

    async def test_between_indexes_is_found_by_a_check(self, registry: RedisRegistry, raw: Raw) -> None:
        await add(registry, "pets", 1, 2, 3)
        await add(registry, "cars", 1)
        raw.do("ZREM", "order:pets", "2")
        raw.do("ZREM", "names", "cars")
        faults = "\n".join((await check(registry)).faults)
        assert "task `pets`: its indexes do not agree" in faults
        assert "task `cars`: it is deleted half-way" in faults

    async def test_of_an_alias_is_found_by_a_check(self, registry: RedisRegistry, raw: Raw) -> None:
        await add(registry, "pets", 1, 2)
        state = {"created": "1.0", "versions": 2, "latest": 2, "aliases": {"production": 2, "beta": 9}}
        raw.do("HSET", "tasks", "pets", json.dumps(state))
        faults = "\n".join((await check(registry)).faults)
        assert "alias `production` of task `pets` is elsewhere than its last move led" in faults
        assert "alias `beta` of task `pets`: task `pets` has no version 9" in faults
        assert "task `pets` is not what its events tell" in faults


class TestFirstUse:
    async def test_a_newer_schema_is_refused(self, registry: RedisRegistry, raw: Raw) -> None:
        raw.do("HSET", "meta", "schema", "2")
        with pytest.raises(RegistryUnavailable, match="schema 2, this program knows 1; upgrade"):
            await registry.list_keys()

    async def test_all_must_agree_on_where_bytes_are(
        self, registry: RedisRegistry, redis_url: str, tmp_path: Path
    ) -> None:
        await add(registry, "pets", 1)
        other = open_registry(f"{redis_url}&blobs=file://{tmp_path}", tmp_path)
        with pytest.raises(RegistryUnavailable, match="its blobs are in Redis itself"):
            await other.get_task("pets")
        await other.close()

    async def test_a_directory_that_is_not_mounted_is_noticed(self, redis_url: str, tmp_path: Path) -> None:
        url = f"{redis_url}&blobs=file://{tmp_path}/blobs"
        first = open_registry(url, tmp_path)
        await add(first, "pets", 1)
        await first.close()
        (tmp_path / "blobs").rename(tmp_path / "elsewhere")
        second = open_registry(url, tmp_path)
        with pytest.raises(RegistryUnavailable, match="is it mounted"):
            await second.list_tasks()
        (tmp_path / "elsewhere").rename(tmp_path / "blobs")
        assert len((await second.list_tasks()).items) == 1
        await second.close()

    async def test_a_directory_of_another_registry_is_noticed(self, redis_url: str, tmp_path: Path) -> None:
        first, second = (open_registry(f"{redis_url}{n}&blobs=file://{tmp_path}", tmp_path) for n in "ab")
        await first.list_tasks()
        with pytest.raises(RegistryUnavailable, match="another registry's"):
            await second.list_tasks()
        await first.close()
        await second.close()


async def test_scripts_that_the_server_forgot_are_sent_again(
    registry: RedisRegistry, redis: RedisServer
) -> None:
    await add(registry, "pets", 1)
    redis.command("SCRIPT", "FLUSH")
    await add(registry, "pets", 2)
    assert (await registry.get_task("pets")).versions == 2


async def test_calls_given_up_midway_disturb_no_other(registry: RedisRegistry) -> None:
    await add(registry, "pets", *range(5))
    for round_ in range(30):
        calls = [asyncio.ensure_future(registry.get_version("pets", n % 5 + 1)) for n in range(20)]
        for _ in range(round_ % 7):
            await asyncio.sleep(0)
        for call in calls[::2]:
            call.cancel()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [getattr(result, "version", None) for result in results[1::2]] == [2, 4, 1, 3, 5] * 2


async def test_an_object_store_by_fsspec_holds_the_bytes(redis_url: str, tmp_path: Path) -> None:
    import fsspec

    registry = open_registry(f"{redis_url}&blobs=memory://bucket/adapters", tmp_path)
    await add(registry, "pets", 1, 2)
    digest = (await registry.get_version("pets", 1)).digest
    assert await registry.fetch(digest) == make_blob(1)
    store = fsspec.filesystem("memory")
    (path,) = store.glob(f"/bucket/adapters/{digest}.*")
    store.pipe_file(path, b"damaged")
    with pytest.raises(BlobCorrupt):
        await registry.fetch(digest)
    store.rm_file(path)
    with pytest.raises(BlobNotFound):
        await registry.fetch(digest)
    await registry.delete_task("pets")
    assert [path.rpartition("/")[2] for path in store.find("/bucket/adapters")] == ["registry"]
    await registry.close()


async def test_a_store_that_hangs_is_unavailable_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    gone_on = threading.Event()

    class Hanging(Directory):
        def get(self, name: str) -> bytes:
            gone_on.wait(30)
            return b""

    monkeypatch.setattr("registry.places.open_store", lambda _: Hanging(Path("/nonexistent")))
    place = StoredOutside("file:///mnt/share", seconds=0.05)
    with pytest.raises(RegistryUnavailable, match=r"blobs at file:///mnt/share: no answer within 0.05 s"):
        await place.get("x")
    gone_on.set()
    await place.close()


async def test_a_store_that_fails_or_is_not_known_is_unavailable(redis_url: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("in the way")
    for url, match in [(f"file://{file}/blobs", "NotADirectory"), ("nosuch://x/y", "nosuch")]:
        registry = open_registry(f"{redis_url}{match}&blobs={url}", tmp_path)
        with pytest.raises(RegistryUnavailable, match=match):
            await add(registry, "pets", 1)
        await registry.close()

"""A replica on a fake device and a real Redis that is killed and paused: what serves, fails, recovers."""

import asyncio
import io
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from registry import RegistryUnavailable, open_registry
from server import replica as replicas
from server.contracts import Device
from server.replica import Replica
from server.settings import Settings
from tests.fakes import FakeDevice, make_adapter_file
from tests.redis_servers import RedisServer
from tests.unit.app_parts import add_version

TIMEOUT, SLACK = 0.5, 2.0
TASKS = [f"task{n}" for n in range(8)]  # more than slots and host memory hold


class Rig(NamedTuple):
    redis: RedisServer
    client: httpx.AsyncClient


@pytest.fixture
async def rig(own_redis: RedisServer, tmp_path: Path) -> AsyncIterator[Rig]:
    """A replica that serves eight tasks, each asked for once."""
    registry = open_registry(own_redis.url, tmp_path)
    for task in TASKS:
        await add_version(registry, task)
        await add_version(registry, task, b"another")
    await registry.close()
    async with running(own_redis, tmp_path) as client:
        for task in TASKS:
            assert (await predict(client, task)).status_code == 200
        yield Rig(own_redis, client)


@asynccontextmanager
async def running(redis: RedisServer, data_dir: Path) -> AsyncIterator[httpx.AsyncClient]:
    def open_device(_: Settings) -> Device:
        return FakeDevice(slots=2)

    settings = Settings(
        data_dir=data_dir,
        registry=f"{redis.url}?timeout={TIMEOUT}",
        registry_poll_ms=20,
        host_cache_bytes=1024,  # one adapter
    )
    replica = await Replica.open(settings, open_device=open_device)
    transport = httpx.ASGITransport(replica.app, raise_app_exceptions=False)
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            yield client
    finally:
        await replica.close()


async def predict(client: httpx.AsyncClient, task: str) -> httpx.Response:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), (200, 10, 10)).save(buffer, "PNG")
    return await client.post(
        f"/v1/tasks/{task}/predict", content=buffer.getvalue(), headers={"content-type": "image/png"}
    )


async def staleness(client: httpx.AsyncClient) -> float:
    response = await client.get("/readyz")
    assert (response.status_code, response.json()["status"]) == (200, "ready")
    seconds: float = response.json()["registry_staleness_seconds"]
    return seconds


async def samples(client: httpx.AsyncClient) -> dict[tuple[str, ...], float]:
    families = text_string_to_metric_families((await client.get("/metrics")).text)
    return {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}


async def until(done: Callable[[], Awaitable[bool]]) -> None:
    while not await done():  # noqa: ASYNC110  (the test's timeout bounds it)
        await asyncio.sleep(0.01)


async def until_stale(client: httpx.AsyncClient, seconds: float) -> None:
    async def is_stale() -> bool:
        return await staleness(client) >= seconds

    await until(is_stale)


async def until_answered_by(client: httpx.AsyncClient, task: str, version: int) -> None:
    async def is_it() -> bool:
        found: int = (await predict(client, task)).json()["version"]
        return found == version

    await until(is_it)


async def assert_known_tasks_are_served(client: httpx.AsyncClient) -> None:
    answers = await asyncio.gather(*(predict(client, task) for task in TASKS * 3))
    assert {(a.status_code, a.json()["version"]) for a in answers} == {(200, 1)}
    assert (await client.get("/healthz")).status_code == 200


async def assert_what_needs_it_fails_clearly(client: httpx.AsyncClient) -> None:
    alias, rollback = "/v1/tasks/task1/aliases/production", "/v1/tasks/task1/aliases/production/rollback"
    started = time.monotonic()
    answers = await asyncio.gather(
        client.put(alias, json={"version": 2}),
        client.post(rollback),
        client.post("/v1/tasks/new/versions", content=make_adapter_file(b"new")),
        client.delete("/v1/tasks/task1/versions/2"),
        client.delete("/v1/tasks/task1"),
        client.get("/v1/tasks/task1"),
        client.get("/v1/tasks/task1/versions/1/adapter"),
        predict(client, "unheard-of"),
    )
    assert time.monotonic() - started < 2 * TIMEOUT + SLACK
    for answer in answers:
        assert (answer.status_code, answer.json()["error_type"]) == (503, "registry_unavailable"), answer.url
        assert answer.headers["retry-after"] == "1"
        assert "redis" not in answer.text


async def assert_recovered(rig: Rig, data_dir: Path) -> None:
    async def is_fresh() -> bool:
        return await staleness(rig.client) < 0.2

    await until(is_fresh)
    elsewhere = open_registry(rig.redis.url, data_dir)
    await elsewhere.set_alias("task1", "production", 2)
    await elsewhere.close()
    await until_answered_by(rig.client, "task1", 2)
    moved = await rig.client.put("/v1/tasks/task2/aliases/production", json={"version": 2})
    assert moved.status_code == 200
    assert (await predict(rig.client, "task2")).json()["version"] == 2


async def test_while_redis_is_dead_known_tasks_are_served_and_it_recovers(rig: Rig, tmp_path: Path) -> None:
    rig.redis.kill()
    await until_stale(rig.client, 0.3)
    await assert_known_tasks_are_served(rig.client)
    await assert_what_needs_it_fails_clearly(rig.client)
    shown = await samples(rig.client)
    assert shown["ssfserve_registry_staleness_seconds",] >= 0.3
    assert shown["ssfserve_registry_errors_total", "events", "RegistryUnavailable"] >= 1
    assert shown["ssfserve_registry_errors_total", "set_alias", "RegistryUnavailable"] == 1
    await asyncio.to_thread(rig.redis.start)
    await assert_recovered(rig, tmp_path)


async def test_while_redis_hangs_known_tasks_are_served_and_it_recovers(rig: Rig, tmp_path: Path) -> None:
    with rig.redis.paused():
        await until_stale(rig.client, 0.3)
        await assert_known_tasks_are_served(rig.client)
        await assert_what_needs_it_fails_clearly(rig.client)
    await assert_recovered(rig, tmp_path)


async def test_an_emptied_redis_does_not_empty_the_replica(rig: Rig) -> None:
    rig.redis.command("FLUSHALL")
    await until_stale(rig.client, 0.3)
    await assert_known_tasks_are_served(rig.client)


async def test_a_new_replica_serves_from_the_disk_cache_what_nobody_asked_it_for(
    rig: Rig, tmp_path: Path
) -> None:
    async with running(rig.redis, tmp_path) as client:
        await until_read_ahead(client)
        rig.redis.kill()
        await assert_known_tasks_are_served(client)


async def until_read_ahead(client: httpx.AsyncClient) -> None:
    async def is_read() -> bool:
        reads = (await samples(client)).get(("ssfserve_registry_seconds_count", "get_version"), 0)
        return reads >= len(TASKS)

    await until(is_read)


async def test_a_replica_that_starts_while_redis_is_away_waits_for_it(
    own_redis: RedisServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own_redis.kill()
    starting = asyncio.ensure_future(started_and_ready(own_redis, tmp_path))

    async def is_waiting() -> bool:
        return "waiting for the registry" in caplog.text

    await until(is_waiting)
    assert not starting.done()
    await asyncio.to_thread(own_redis.start)
    assert await starting


async def started_and_ready(redis: RedisServer, data_dir: Path) -> bool:
    async with running(redis, data_dir) as client:
        return (await client.get("/readyz")).status_code == 200


async def test_it_does_not_wait_forever(
    own_redis: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replicas, "PATIENCE_SECONDS", 0.1)
    own_redis.kill()
    with pytest.raises(RegistryUnavailable):
        await started_and_ready(own_redis, tmp_path)

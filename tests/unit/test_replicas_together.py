"""Two servers' replicas on one real Redis: what a confirmed move means, also while Redis is away."""

import asyncio
import io
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from PIL import Image

from server.contracts import Device
from server.replica import Replica
from server.settings import Settings
from tests.fakes import FakeDevice, make_adapter_file
from tests.redis_servers import RedisServer

URL = "/v1/tasks/pets/aliases/production"
POLL_MS, LEASE_MS, TIMEOUT = 40, 600, 0.2


@dataclass
class Pair:
    replicas: list[Replica]
    clients: list[httpx.AsyncClient]
    redis: RedisServer

    async def move(self, version: int, *, at: int = 0) -> httpx.Response:
        return await self.clients[at].put(f"{URL}?wait=true", json={"version": version})

    async def predict(self, at: int) -> httpx.Response:
        buffer = io.BytesIO()
        Image.new("RGB", (40, 40), (200, 10, 10)).save(buffer, "PNG")
        content, headers = buffer.getvalue(), {"content-type": "image/png"}
        return await self.clients[at].post("/v1/tasks/pets/predict", content=content, headers=headers)

    async def versions(self) -> list[int]:
        return [(await self.predict(at)).json()["version"] for at in range(len(self.clients))]

    async def until_cut_off(self) -> None:
        while not all(replica.catalog.is_cut_off for replica in self.replicas):  # noqa: ASYNC110  (a clock's)
            await asyncio.sleep(0.02)


@pytest.fixture
def when_cut_off() -> str:
    return "serve"


@pytest.fixture
async def pair(own_redis: RedisServer, tmp_path: Path, when_cut_off: str) -> AsyncIterator[Pair]:
    """Two replicas, as of two servers on different hosts; `pets` has two versions."""
    async with AsyncExitStack() as stack:
        made = Pair([], [], own_redis)
        for host in ("one", "two"):
            settings = Settings(
                data_dir=tmp_path / host,
                registry=f"{own_redis.url}?timeout={TIMEOUT}",
                registry_poll_ms=POLL_MS,
                lease_ms=LEASE_MS,
                when_cut_off=when_cut_off,
            )
            replica = await Replica.open(settings, open_device=open_device)
            stack.push_async_callback(replica.close)
            transport = httpx.ASGITransport(replica.app, raise_app_exceptions=False)
            client = httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60)
            made.replicas.append(replica)
            made.clients.append(await stack.enter_async_context(client))
        for payload in (b"one", b"two"):
            await made.clients[0].post("/v1/tasks/pets/versions", content=make_adapter_file(payload))
        yield made


def open_device(_: Settings) -> Device:
    return FakeDevice(slots=2)


async def test_after_each_confirmed_move_nobody_answers_as_before(pair: Pair) -> None:
    names = sorted(replica.name for replica in pair.replicas)
    for turn in range(20):
        version = 2 - turn % 2
        moved = await pair.move(version, at=turn % 2)
        assert (moved.status_code, moved.json()["confirmed_by"]) == (200, names)
        assert await pair.versions() == [version, version]


async def test_without_waiting_the_others_see_a_move_within_a_second(pair: Pair) -> None:
    assert await pair.versions() == [1, 1]
    await pair.clients[0].put(URL, json={"version": 2})
    moved = time.monotonic()
    while (await pair.predict(1)).json()["version"] != 2:
        pass
    assert time.monotonic() - moved < 1


async def test_a_version_uploaded_at_one_is_served_by_the_other_at_once(pair: Pair) -> None:
    await pair.clients[0].post("/v1/tasks/new/versions", content=make_adapter_file(b"new"))
    shown = await pair.clients[1].post("/v1/tasks/new/prefetch")
    assert (shown.status_code, shown.json()["version"]) == (200, 1)


async def test_a_replica_that_died_is_waited_for_no_longer_than_its_lease(pair: Pair) -> None:
    dead = pair.replicas[1]
    assert dead.catalog._follower is not None
    dead.catalog._follower.cancel()
    moved = await pair.move(2)
    assert (moved.status_code, moved.json()["confirmed_by"]) == (200, [pair.replicas[0].name])
    listed = (await pair.clients[0].get("/v1/replicas")).json()["replicas"]
    assert [replica["replica"] for replica in listed] == [pair.replicas[0].name]


async def test_after_a_pause_longer_than_the_lease_all_are_waited_for(pair: Pair) -> None:
    """Nobody renewed, because nobody could: that makes nobody lapse."""
    assert await pair.versions() == [1, 1]
    with pair.redis.paused():
        await pair.until_cut_off()
        assert await pair.versions() == [1, 1]
    while (moved := await pair.move(2)).status_code != 200:
        assert moved.json()["error_type"] in {"registry_unavailable", "not_confirmed"}
    assert len(moved.json()["confirmed_by"]) == 2
    assert await pair.versions() == [2, 2]


@pytest.mark.parametrize("when_cut_off", ["refuse"])
async def test_replicas_that_are_told_to_refuse_do_so_and_recover(pair: Pair) -> None:
    assert await pair.versions() == [1, 1]
    pair.redis.kill()
    await pair.until_cut_off()
    answer = await pair.predict(0)
    assert (answer.status_code, answer.json()["error_type"]) == (503, "registry_unavailable")
    await asyncio.to_thread(pair.redis.start)
    while (answer := await pair.predict(0)).status_code == 503:
        pass
    assert answer.json()["version"] == 1

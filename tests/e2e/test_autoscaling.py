"""Load brings a second replica, idleness takes it away, and neither is felt."""

import asyncio
from pathlib import Path

import httpx
import pytest

from tests.e2e.adapters import Known, make_png
from tests.e2e.calls import check_answer, load, predict
from tests.e2e.servers import START_SECONDS, Server, eventually, started

pytestmark = pytest.mark.e2e

QUICK = {"replicas": 1, "max_replicas": 2, "target_ongoing": 2, "scale_up_delay_ms": 100}


async def test_replicas_follow_the_load(tmp_path: Path, seed_dir: Path, cats: Known) -> None:
    image = make_png(1)
    with started(tmp_path, seed_dir=seed_dir, scale_down_delay_ms=1000, **QUICK) as server:
        limits = httpx.Limits(max_keepalive_connections=0)
        async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits) as client:
            assert replicas(server) == 1
            async with load(lambda _: predict(client, "cats", image), width=8) as under_way:
                await until_answering(server, client, 2)
                await under_way.more(20)
            async with load(lambda _: predict(client, "cats", image), width=1) as trickle:
                await until_answering(server, client, 1)
                await trickle.more(5)
    for answer in under_way.results + trickle.results:
        check_answer(answer, cats, image)


def replicas(server: Server) -> int:
    return len(server.pids("ray::ServeReplica"))


async def until_answering(server: Server, client: httpx.AsyncClient, count: int) -> None:
    """Wait until so many replicas run, and each says that it does."""
    await asyncio.to_thread(
        eventually, lambda: replicas(server) == count, START_SECONDS, f"scaling to {count} replicas"
    )
    found: set[str] = set()
    while len(found) < count:
        listed = (await client.get("/v1/replicas")).json()["replicas"]
        found |= {replica["replica"] for replica in listed if replica["answers"]}

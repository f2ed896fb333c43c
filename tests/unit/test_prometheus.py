"""A real Prometheus scrapes a replica under load, and every panel of every dashboard shows something."""

import asyncio
import contextlib
import io
import math
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
import uvicorn
from PIL import Image

from server.exposition import CONTENT_TYPE, merge
from server.replica import Replica
from server.settings import Settings
from tests.fakes import FakeDevice, make_adapter_file
from tests.prometheus_servers import BINARY, MISSING, configuration, prometheus
from tests.promql import Asked, asked
from tests.unit.app_parts import add_key

pytestmark = pytest.mark.skipif(BINARY is None, reason=MISSING)

TASKS = [f"task{number}" for number in range(4)]
SLOTS = 2  # fewer than tasks: adapters are evicted
SECONDS = 120.0
USER, WATCHER = "user-token", "watcher-token"


class OneReplica:
    """The fleet that `server.ray_app.RayFleet` asks, of a single replica."""

    replica: Replica

    async def exposition(self) -> tuple[bytes, str]:
        return merge({"0": self.replica.metrics.text()}).encode(), CONTENT_TYPE


def make_png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


@asynccontextmanager
async def serving(directory: Path) -> AsyncIterator[str]:
    """Serve a replica on a fake device through a socket; keys are on."""
    (directory / "seeds").mkdir()
    for task in TASKS:
        (directory / "seeds" / f"{task}.safetensors").write_bytes(make_adapter_file(task.encode()))
    settings = Settings.load(
        {"data_dir": directory / "data", "seed_dir": directory / "seeds", "decoding": "pillow"}
        | {"decode_threads": 1, "threads": 1, "access_log": False}
    )
    fleet = OneReplica()
    replica = await Replica.open(settings, fleet=fleet, open_device=lambda _: FakeDevice(slots=SLOTS))
    fleet.replica = replica
    await add_key(replica.registry, USER, "predict")
    await add_key(replica.registry, WATCHER, "predict", tasks=("-",))  # as deploy/README.md makes it
    await replica.catalog.refresh()
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(replica.app, log_config=None, lifespan="off", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    async with asyncio.TaskGroup() as group:
        group.create_task(server._serve([listening]))  # `serve` would take over the signals of the test run
        try:
            yield f"127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
    await replica.close()


async def send_load(client: httpx.AsyncClient) -> None:
    """Ask every task once, and make mistakes of both kinds that a client can make."""
    image = make_png(time.monotonic_ns() % 2**32)
    answers = await asyncio.gather(
        *(client.post(f"/v1/tasks/{task}/predict", content=image, headers={"content-type": "image/png"})
          for task in TASKS)
    )  # fmt: skip
    assert {answer.status_code for answer in answers} == {200}
    assert (await client.post(f"/v1/tasks/{TASKS[0]}/predict", content=b"x")).status_code == 415
    assert (await client.post("/v1/tasks/unknown/predict", content=image)).status_code == 404


def filled_in(expr: str) -> str:
    """Put in what Grafana does."""
    return expr.replace("$__rate_interval", "30s").replace("$task", TASKS[0])


async def values(client: httpx.AsyncClient, expr: str) -> list[float]:
    """Return the finite values of an instant query."""
    answer = await client.get("/api/v1/query", params={"query": filled_in(expr)})
    assert answer.status_code == 200, answer.text
    found = [float(series["value"][1]) for series in answer.json()["data"]["result"]]
    return [value for value in found if math.isfinite(value)]


async def empty_after(load: httpx.AsyncClient, watcher: httpx.AsyncClient) -> set[Asked]:
    """Send load until no query is without a value, or for `SECONDS`; return those that are."""
    left, deadline = set(asked()), time.monotonic() + SECONDS
    while left and time.monotonic() < deadline:
        await send_load(load)
        left = {query for query in left if not await values(watcher, query.expr)}
    return left


@asynccontextmanager
async def watched(directory: Path) -> AsyncIterator[tuple[httpx.AsyncClient, httpx.AsyncClient]]:
    """Return clients of a server and of the Prometheus that scrapes it with the watcher's key."""
    key = directory / "key"
    key.write_text(f"{WATCHER}\n")  # as a shell's redirection leaves it
    async with contextlib.AsyncExitStack() as stack:
        address = await stack.enter_async_context(serving(directory))
        config = configuration(address, key)
        url = stack.enter_context(prometheus(directory, config))
        headers = {"authorization": f"Bearer {USER}"}
        server = httpx.AsyncClient(base_url=f"http://{address}", headers=headers, timeout=60)
        watcher = httpx.AsyncClient(base_url=url, timeout=60)
        yield await stack.enter_async_context(server), await stack.enter_async_context(watcher)


async def test_every_panel_has_data_after_a_load_run(tmp_path: Path) -> None:
    async with watched(tmp_path) as (server, watcher):
        assert await empty_after(server, watcher) == set()
        assert await values(watcher, "sum(ssfserve_task_requests_total)") > [0]
        assert await values(watcher, 'min(up{job="ssfserve"})') == [1]
        assert await values(watcher, 'sum(ssfserve_eviction_idle_seconds_count{tier="device"})') > [0]
        answer = await server.get("/v1/tasks", headers={"authorization": f"Bearer {WATCHER}"})
        assert answer.json()["tasks"] == []

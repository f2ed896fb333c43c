"""A server with two replicas and room for a third: crash, rolling restart, scaling, stop, and its data."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import httpx
import pytest

from server.run_dir import RESTART
from tests.e2e.adapters import Known, make_png
from tests.e2e.calls import Json, check_answer, in_parallel, load, predict, samples, upload
from tests.e2e.servers import START_SECONDS, STOP_SECONDS, Server, eventually, started

pytestmark = pytest.mark.e2e

SCALING = {
    "max_replicas": 3,
    "target_ongoing": 4,
    "scale_up_delay_ms": 100,
    "scale_down_delay_ms": 500,
    "body_timeout_ms": 200_000,
}
LOST = {(502, "replica_lost"), (503, "no_replica")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def pair(folder: Path) -> Iterator[Server]:
    with started(folder, replicas=2, registry_poll_ms=50, **SCALING) as running:
        yield running


@pytest.fixture
async def fresh(pair: Server) -> AsyncIterator[httpx.AsyncClient]:
    """Return a client that opens a connection for each request, so that both replicas are met."""
    limits = httpx.Limits(max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=pair.url, timeout=60, limits=limits) as opened:
        yield opened


async def test_upload_at_one_replica_is_served_by_both_and_metrics_are_exact(
    fresh: httpx.AsyncClient, cats: Known
) -> None:
    await upload(fresh, "cats", cats.data)
    image = make_png(1)
    before: dict[str, float] = {}
    while len(before) != 2:  # HAProxy learns of the second a moment after the first
        await in_parallel([lambda: predict(fresh, "cats", image)] * 3, width=3)
        before = await _answered(fresh)
    answers = await in_parallel([lambda: predict(fresh, "cats", image)] * 40, width=8)
    for answer in answers:
        check_answer(answer, cats, image)
    after = await _answered(fresh)
    gained = {replica: count - before[replica] for replica, count in after.items()}
    assert sum(gained.values()) == 40
    assert min(gained.values()) > 0, "one replica got no request"


async def test_replica_that_is_killed_comes_back(pair: Server, fresh: httpx.AsyncClient, cats: Known) -> None:
    image = make_png(2)
    replicas = pair.pids("ray::ServeReplica")
    assert len(replicas) == 2

    async def call(_: int) -> httpx.Response | None:
        try:
            return await predict(fresh, "cats", image)
        except httpx.TransportError:
            return None

    async with load(call, width=4) as under_way:
        await under_way.more(20)
        os.kill(replicas[0], signal.SIGKILL)
        await under_way.more(50)
    failed = [answer for answer in under_way.results if answer is None or answer.status_code != 200]
    assert len(failed) <= 8, "more than what was under way failed"
    for answer in failed:
        assert answer is None or (answer.status_code, answer.json()["error_type"]) in LOST
    await asyncio.to_thread(
        eventually, lambda: len(pair.pids("ray::ServeReplica")) == 2, STOP_SECONDS, "the new replica"
    )


async def test_rolling_restart_fails_no_request_and_counts_each_once(
    pair: Server, fresh: httpx.AsyncClient, cats: Known
) -> None:
    image = make_png(4)
    before = set(pair.pids("ray::ServeReplica"))

    async with load(lambda _: predict(fresh, "cats", image), width=4) as under_way:
        await under_way.more(10)
        pair.process.send_signal(RESTART)
        await asyncio.to_thread(
            eventually, lambda: "all replicas were replaced" in pair.output, STOP_SECONDS, "the restart"
        )
        await under_way.more(10)
    for answer in under_way.results:
        check_answer(answer, cats, image)
    after = set(pair.pids("ray::ServeReplica"))
    assert len(after - before) == 2

    counted = await _answered(fresh)
    await in_parallel([lambda: predict(fresh, "cats", image)] * 20, width=4)
    again = await _answered(fresh)
    assert again.keys() == counted.keys(), "a counter belongs to one process"
    assert sum(again.values()) - sum(counted.values()) == 20


async def test_load_brings_a_third_replica_and_its_end_takes_it_away(
    pair: Server, fresh: httpx.AsyncClient, cats: Known
) -> None:
    image = make_png(5)
    held = [await RawRequest.begin(pair, image) for _ in range(12)]
    await until_answering(pair, fresh, 3)
    for request in held:
        status, body = await request.finish()
        assert (status, body["digest"]) == (200, cats.digest)
    async with load(lambda _: predict(fresh, "cats", image), width=1) as trickle:
        await until_answering(pair, fresh, 2)
        await trickle.more(5)
    for answer in trickle.results:
        check_answer(answer, cats, image)


async def until_answering(server: Server, client: httpx.AsyncClient, count: int) -> None:
    """Wait until so many replicas run, and each says that it does."""
    await asyncio.to_thread(
        eventually, lambda: len(server.pids("ray::ServeReplica")) == count, START_SECONDS, "scaling"
    )
    found: set[str] = set()
    while len(found) < count:
        listed = (await client.get("/v1/replicas")).json()["replicas"]
        found |= {replica["replica"] for replica in listed if replica["answers"]}


async def test_stop_answers_what_is_in_flight_and_the_data_survives(
    folder: Path, pair: Server, cats: Known
) -> None:
    image = make_png(3)
    requests = [await RawRequest.begin(pair, image) for _ in range(4)]
    async with httpx.AsyncClient(base_url=pair.url, timeout=60) as client:
        assert (await client.get("/readyz")).status_code == 200
        pair.look()
        pair.process.send_signal(signal.SIGTERM)
        while await _is_ready(client):  # each look takes some time of the server
            pass
    for request in requests:
        status, body = await request.finish()
        assert (status, body["digest"]) == (200, cats.digest)
    await asyncio.to_thread(pair.wait_gone)
    assert pair.process.returncode == 0, pair.output
    assert "Traceback" not in pair.output

    with started(folder) as again:
        async with httpx.AsyncClient(base_url=again.url, timeout=60) as client:
            check_answer(await predict(client, "cats", image), cats, image)
        # its driver is killed: the launcher ends all the rest
        os.kill(again.pids("server.ray_driver")[0], signal.SIGKILL)
        await asyncio.to_thread(again.wait_gone)
    assert again.process.returncode == 1
    # what the replicas had logged may come out after it
    assert "ssfserve: the serving process was ended by SIGKILL" in again.output.splitlines()


@dataclass
class RawRequest:
    """A prediction of which the server has the head and half of the body."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    rest: bytes

    @classmethod
    async def begin(cls, server: Server, image: bytes) -> Self:
        host, port = server.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = ("POST /v1/tasks/cats/predict HTTP/1.1", f"Host: {host}", "Content-Type: image/png")
        sent = (*head, f"Content-Length: {len(image)}", "Connection: close", "", "")
        half = len(image) // 2
        writer.write("\r\n".join(sent).encode() + image[:half])
        await writer.drain()
        return cls(reader, writer, image[half:])

    async def finish(self) -> tuple[int, Json]:
        self.writer.write(self.rest)
        head, _, body = (await self.reader.read()).partition(b"\r\n\r\n")
        self.writer.close()
        return int(head.split()[1]), json.loads(body)


async def _is_ready(client: httpx.AsyncClient) -> bool:
    return (await client.get("/readyz")).status_code == 200


async def _answered(client: httpx.AsyncClient) -> dict[str, float]:
    """Return how many predictions each replica has answered."""
    counts: dict[str, float] = {}
    for (name, labels), value in (await samples(client)).items():
        of = dict(labels)
        if name == "ssfserve_requests_total" and of["route"].endswith("/{task}/predict"):
            counts[of["replica"]] = counts.get(of["replica"], 0) + value
    return counts

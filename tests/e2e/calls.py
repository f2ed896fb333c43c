"""What the end-to-end tests send and read."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.adapters import Known

Json = dict[str, Any]
PNG = {"content-type": "image/png"}

# float32 on both sides; batches of another size may take another path through the CPU's matrix products
TOLERANCE = 2e-4


async def predict(client: httpx.AsyncClient, task: str, image: bytes, **query: str | int) -> httpx.Response:
    return await client.post(
        f"/v1/tasks/{task}/predict", params={"logits": "true", **query}, content=image, headers=PNG
    )


async def upload(client: httpx.AsyncClient, task: str, data: bytes) -> Json:
    answer = await client.post(f"/v1/tasks/{task}/versions", content=data)
    assert answer.status_code in {200, 201}, answer.text
    body: Json = answer.json()
    return body


async def promote(client: httpx.AsyncClient, task: str, version: int) -> None:
    answer = await client.put(f"/v1/tasks/{task}/aliases/production", json={"version": version})
    assert answer.status_code == 200, answer.text


def check_answer(answer: httpx.Response, expected: Known, image: bytes) -> None:
    """Assert that an answer is right in all its parts."""
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["digest"] == expected.digest
    logits = expected.logits(image)
    np.testing.assert_allclose(body["logits"], logits, rtol=TOLERANCE, atol=TOLERANCE * np.abs(logits).max())
    best = body["predictions"][0]
    assert best["index"] == int(np.argmax(logits))
    assert best["label"] == expected.adapter.manifest.labels[best["index"]]


async def in_parallel(calls: Sequence[Callable[[], Awaitable[Any]]], width: int) -> list[Any]:
    """Make all calls, at most `width` at a time; return the results in order."""
    gate = asyncio.Semaphore(width)

    async def one(call: Callable[[], Awaitable[Any]]) -> Any:
        async with gate:
            return await call()

    return await asyncio.gather(*(one(call) for call in calls))


class Load:
    """Calls that are kept under way; `results` grows as they end."""

    def __init__(self) -> None:
        self.results: list[Any] = []
        self._ended = asyncio.Condition()

    async def add(self, result: Any) -> None:
        async with self._ended:
            self.results.append(result)
            self._ended.notify_all()

    async def more(self, count: int) -> None:
        """Wait until so many more calls have ended."""
        target = len(self.results) + count
        async with self._ended:
            await self._ended.wait_for(lambda: len(self.results) >= target)


@asynccontextmanager
async def load(call: Callable[[int], Awaitable[Any]], width: int) -> AsyncIterator[Load]:
    """Keep `width` numbered calls under way while the block runs."""
    under_way, over = Load(), asyncio.Event()

    async def worker(first: int) -> None:
        number = first
        while not over.is_set():
            await under_way.add(await call(number))
            number += width

    async with asyncio.TaskGroup() as workers:
        for first in range(width):
            workers.create_task(worker(first))
        try:
            yield under_way
        finally:
            over.set()


async def samples(client: httpx.AsyncClient) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Return what `/metrics` shows: value by name and sorted labels."""
    answer = await client.get("/metrics")
    assert answer.status_code == 200, answer.text
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


async def total(client: httpx.AsyncClient, name: str, **labels: str) -> float:
    """Return the sum of a metric over all series that have these labels."""
    found = await samples(client)
    wanted = set(labels.items())
    return sum(value for (sample, having), value in found.items() if sample == name and wanted <= set(having))

"""Bodies that are too long, too slow or never end, and clients that leave: spoken in plain ASGI."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message

from tests.unit.app_parts import JPEG, World, running, until_left

CHUNK = bytes(1024)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with running(tmp_path, max_body_bytes=4096, max_adapter_bytes=4096, body_timeout_ms=30) as world:
        await world.add("pets")
        yield world


class Client:
    """A client at the level of ASGI: `chunks` are its body; then it waits, or leaves if `leaves` is set."""

    def __init__(self, *chunks: bytes, ends: bool = True, headers: dict[str, str] | None = None) -> None:
        self.chunks = list(chunks)
        self.ends = ends
        self.headers = headers or {}
        self.leaves = asyncio.Event()
        self.received = 0
        self.answer: list[Message] = []

    async def receive(self) -> Message:
        if self.received < len(self.chunks):
            self.received += 1
            last = self.ends and self.received == len(self.chunks)
            return {"type": "http.request", "body": self.chunks[self.received - 1], "more_body": not last}
        await self.leaves.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.answer.append(message)

    async def post(self, world: World, path: str) -> int | None:
        """Return the status of the answer, None if there was none."""
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(name.encode(), value.encode()) for name, value in self.headers.items()],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8000),
        }
        await world.app(scope, self.receive, self.send)
        return self.answer[0]["status"] if self.answer else None


PATHS = ["/v1/tasks/pets/predict", "/v1/tasks/pets/versions", "/v1/predict"]
DECLARED = {"content-type": "application/json"}


def declared(path: str) -> dict[str, str]:
    return {"content-type": "application/json" if path == "/v1/predict" else "application/octet-stream"}


@pytest.mark.parametrize("path", PATHS)
async def test_a_body_that_never_ends_is_cut_off_at_the_limit(world: World, path: str) -> None:
    client = Client(*[CHUNK] * 1000, ends=False, headers=declared(path))
    assert await client.post(world, path) == 413
    assert client.received == 5


@pytest.mark.parametrize("path", PATHS)
async def test_an_announced_length_is_believed_only_if_it_is_too_much(world: World, path: str) -> None:
    client = Client(CHUNK, headers=declared(path) | {"content-length": "5000"})
    assert await client.post(world, path) == 413
    assert client.received == 0
    liar = Client(*[CHUNK] * 1000, headers=declared(path) | {"content-length": "10"})
    assert await liar.post(world, path) == 413
    assert liar.received == 5


@pytest.mark.parametrize("path", PATHS)
async def test_a_body_that_does_not_come_in_time_is_given_up(world: World, path: str) -> None:
    client = Client(CHUNK, ends=False, headers=declared(path))
    assert await client.post(world, path) == 408


@pytest.mark.parametrize("path", PATHS)
async def test_a_client_that_leaves_while_sending_gets_no_answer(world: World, path: str) -> None:
    client = Client(CHUNK, ends=False, headers=declared(path))
    client.leaves.set()
    assert await client.post(world, path) is None
    assert world.metrics.requests[-1][2] == 499


async def test_a_body_in_many_small_pieces_is_put_together(world: World) -> None:
    client = Client(*[bytes([byte]) for byte in JPEG + b"a cat"])
    assert await client.post(world, PATHS[0]) == 200
    assert world.decoder.decoded == [JPEG + b"a cat"]


async def test_the_job_of_a_client_that_leaves_is_dropped(world: World) -> None:
    world.engine.gate.clear()
    client = Client(JPEG)
    before = asyncio.all_tasks()
    posting = asyncio.create_task(client.post(world, PATHS[0]))
    await _until_asked(world)
    client.leaves.set()
    assert await posting is None
    assert world.metrics.requests[-1][2] == 499
    assert not world.metrics.predictions
    await until_left(before)


async def test_a_client_that_leaves_does_not_leave_its_task_cancelled(world: World) -> None:
    """The server's task may go on to another request of the same connection."""
    world.engine.gate.clear()
    client = Client(JPEG)

    async def serve() -> int:
        await client.post(world, PATHS[0])
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling()

    serving = asyncio.create_task(serve())
    await _until_asked(world)
    client.leaves.set()
    assert await serving == 0


async def test_rows_of_a_client_that_leaves_are_dropped(world: World) -> None:
    world.engine.gate.clear()
    body = b'{"images": ["/9j/"], "tasks": ["pets", "pets:1"]}'
    client = Client(body, headers=DECLARED)
    before = asyncio.all_tasks()
    posting = asyncio.create_task(client.post(world, "/v1/predict"))
    await _until_asked(world, 2)
    client.leaves.set()
    assert await posting is None
    await until_left(before)


async def test_a_cancelled_request_stays_cancelled(world: World) -> None:
    """Only a client that leaves is swallowed; whoever cancels the request itself must see it end so."""
    world.engine.gate.clear()
    posting = asyncio.create_task(Client(JPEG).post(world, PATHS[0]))
    await _until_asked(world)
    posting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await posting


async def test_after_an_answer_nothing_of_the_request_is_left(world: World) -> None:
    before = asyncio.all_tasks()
    client = Client(JPEG)
    assert await client.post(world, PATHS[0]) == 200
    await until_left(before)


async def test_a_failure_after_the_head_is_out_cuts_the_answer_off(world: World) -> None:
    client = Client(JPEG)
    send = client.send

    async def breaks(message: Message) -> None:
        await send(message)
        if message["type"] == "http.response.start":
            raise RuntimeError("the connection broke")

    client.send = breaks  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="the connection broke"):
        await client.post(world, PATHS[0])
    assert len(client.answer) == 1


async def _until_asked(world: World, jobs: int = 1) -> None:
    async with asyncio.timeout(30):
        while len(world.engine.jobs) < jobs:  # noqa: ASYNC110  (the fake engine has no event for it)
            await asyncio.sleep(0)

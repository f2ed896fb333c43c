"""The other end of a request: what it sends, within bounds, and whether it still waits."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Request
from starlette.types import Receive

from server.errors import BodyTooLarge, BodyTooSlow, DeadlineExceeded


class ClientGone(Exception):
    """The client has closed its connection."""


async def read_body(request: Request, *, limit: int, timeout_ms: int) -> bytes:
    """Return the body; counted as it comes, whatever its declared length.

    Raises:
        BodyTooLarge: At once if a larger body is announced, else as soon as the limit is passed.
        BodyTooSlow
        ClientGone
    """
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:18]) > limit:
        raise BodyTooLarge(limit)
    try:
        async with asyncio.timeout(timeout_ms / 1000):
            return await _collect(request.receive, limit)
    except TimeoutError:
        raise BodyTooSlow(timeout_ms / 1000) from None


async def _collect(receive: Receive, limit: int) -> bytes:
    whole = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunk: bytes = message.get("body", b"")
        if len(whole) + len(chunk) > limit:
            raise BodyTooLarge(limit)
        more = message.get("more_body", False)
        if not more and not whole:
            return chunk  # the usual case of a small body: no copy
        whole += chunk
        if not more:
            return bytes(whole)


@asynccontextmanager
async def patience(request: Request, seconds: float | None) -> AsyncIterator[None]:
    """Run the block only as long as the client waits, and no longer than `seconds`. The body is read before.

    Raises:
        ClientGone
        DeadlineExceeded
    """
    task = asyncio.current_task()
    assert task is not None
    cancelling = task.cancelling()
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone = True
        task.cancel()

    watcher = asyncio.create_task(watch())
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            yield
    except TimeoutError:
        if limit.expired():
            raise DeadlineExceeded from None
        raise
    except asyncio.CancelledError:
        if gone and task.uncancel() <= cancelling:
            raise ClientGone from None
        raise
    finally:
        watcher.cancel()

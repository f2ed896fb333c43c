"""The application behind a real socket, in a thread of its own, for clients that block."""

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import uvicorn

from tests.unit.app_parts import World, running

T = TypeVar("T")


@dataclass
class Served:
    """`address` is host:port; `call` runs a coroutine on the application's loop."""

    address: str
    world: World
    loop: asyncio.AbstractEventLoop

    def call(self, work: Callable[[World], Awaitable[T]]) -> T:
        async def run() -> T:
            return await work(self.world)

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(30)


class _Starting:
    def __init__(self) -> None:
        self.served: Served | None = None
        self.done = threading.Event()
        self.stop: Callable[[], None] = lambda: None


@contextmanager
def served(directory: Path) -> Iterator[Served]:
    """Serve an application with one task, `pets`, of three classes."""
    starting = _Starting()
    thread = threading.Thread(target=lambda: asyncio.run(_serve(directory, starting)), daemon=True)
    thread.start()
    assert starting.done.wait(30)
    assert starting.served is not None
    try:
        yield starting.served
    finally:
        starting.stop()
        thread.join(30)
        assert not thread.is_alive()


async def _serve(directory: Path, starting: _Starting) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with running(directory) as world:
            await world.add("pets")
            server = uvicorn.Server(uvicorn.Config(world.app, log_config=None, lifespan="off"))
            loop = asyncio.get_running_loop()
            starting.stop = lambda: setattr(server, "should_exit", True)
            address = f"127.0.0.1:{listener.getsockname()[1]}"
            starting.served = Served(address, world, loop)
            starting.done.set()
            await server.serve(sockets=[listener])

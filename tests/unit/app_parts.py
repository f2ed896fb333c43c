"""An application with real registry and catalog, and fakes for what needs a model."""

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from fastapi import FastAPI
from numpy.typing import NDArray

from registry.base import Registry
from registry.embedded import EmbeddedRegistry
from registry.errors import RegistryUnavailable
from registry.models import ApiKey, Event, Task, Version
from server.app import create_app
from server.auth import Scope, hash_token
from server.catalog import Catalog
from server.contracts import Image
from server.errors import ImageInvalid, ImageTooLarge, ImageTypeUnsupported
from server.events import Refused
from server.image_types import ImageType, declared_type, sniff
from server.parts import Phase, Readiness
from server.settings import Settings
from tests.builders import make_manifest
from tests.fakes import FakeEngine, make_adapter_file, make_image

JPEG = b"\xff\xd8\xff"


class SwitchableRegistry(EmbeddedRegistry):
    """A registry that can be away, and counts the reads that the catalog makes."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.away = False
        self.reads: Counter[str] = Counter()
        self._asked = asyncio.Event()

    async def until_read(self, name: str, times: int = 1) -> None:
        """Return once a kind of read was asked for so often."""
        async with asyncio.timeout(30):
            while self.reads[name] < times:
                self._asked.clear()
                await self._asked.wait()

    def _count(self, name: str) -> None:
        self.reads[name] += 1
        self._asked.set()
        if self.away:
            raise RegistryUnavailable("embedded", "secret path")

    async def get_version(self, task: str, version: int) -> Version:
        self._count("get_version")
        return await super().get_version(task, version)

    async def get_task(self, task: str) -> Task:
        self._count("get_task")
        return await super().get_task(task)

    async def events(self, after: str, *, limit: int = 1000) -> tuple[Event, ...]:
        self._count("events")
        return await super().events(after, limit=limit)

    async def list_keys(self) -> tuple[ApiKey, ...]:
        self._count("list_keys")
        return await super().list_keys()


@dataclass
class FakeDecoder:
    """Decodes what begins as an image does to pixels that depend on the bytes; `broken` and `huge` fail."""

    decoded: list[bytes] = field(default_factory=list)

    async def decode(self, data: bytes, content_type: str | None) -> Image:
        self.decoded.append(data)
        kind = declared_type(content_type)
        if kind and kind not in set(ImageType):
            raise ImageTypeUnsupported(kind)
        if sniff(data) is None:
            raise ImageTypeUnsupported("this file")
        if data.endswith(b"broken"):
            raise ImageInvalid("it is cut off")
        if data.endswith(b"huge"):
            raise ImageTooLarge("10**9 pixels")
        return pixels(data)

    async def fit(self, pixels_in: NDArray[np.uint8]) -> Image:
        if pixels_in.shape[0] > 100:
            raise ImageTooLarge("more than 100 rows")
        return pixels(pixels_in.tobytes())


def pixels(data: bytes) -> Image:
    return make_image(int.from_bytes(hashlib.sha256(data).digest()[:4]))


@dataclass
class FakeMetrics:
    requests: list[tuple[str, str, int]] = field(default_factory=list)
    predictions: list[tuple[str, float]] = field(default_factory=list)
    failures: list[tuple[str, int]] = field(default_factory=list)
    refusals: Counter[str] = field(default_factory=Counter)

    def observe_request(self, route: str, method: str, status: int, seconds: float) -> None:
        assert seconds >= 0
        self.requests.append((route, method, status))

    def observe_prediction(self, task: str, top1: float, seconds: float) -> None:
        assert seconds >= 0
        self.predictions.append((task, top1))

    def observe_failure(self, task: str, status: int) -> None:
        self.failures.append((task, status))

    def observe_refused(self, reason: Refused, images: int) -> None:
        self.refusals[reason] += images

    def render(self) -> tuple[bytes, str]:
        return b"ssfserve_up 1\n", "text/plain; version=1.0.0"


@dataclass
class World:
    """A running application and everything behind it."""

    registry: SwitchableRegistry
    engine: FakeEngine
    catalog: Catalog
    decoder: FakeDecoder
    metrics: FakeMetrics
    readiness: Readiness
    app: FastAPI
    client: httpx.AsyncClient

    async def add(
        self, task: str, payload: bytes = b"", *, classes: int = 3, promote: bool = False
    ) -> Version:
        version = await add_version(self.registry, task, payload, classes=classes, promote=promote)
        await self.catalog.refresh()
        return version

    async def add_key(self, token: str, *scopes: Scope, tasks: tuple[str, ...] = ("*",)) -> None:
        await add_key(self.registry, token, *scopes, tasks=tasks)
        await self.catalog.refresh()


DOCUMENT: dict[str, Any] = {}  # the same for every application, and slow to make


def documented(app: FastAPI, request: httpx.Request) -> dict[str, Any]:
    """Return what the OpenAPI document says of a request's route; empty for an unknown one."""
    if not DOCUMENT:
        DOCUMENT.update(app.openapi())
    for path, operations in DOCUMENT["paths"].items():
        if _matches(request.url.path, path):
            operation: dict[str, Any] = operations.get(request.method.lower(), {})
            return operation
    return {}


def _matches(path: str, pattern: str) -> bool:
    got, wanted = path.split("/"), pattern.split("/")
    return len(got) == len(wanted) and all(
        w == g or w.startswith("{") for g, w in zip(got, wanted, strict=True)
    )


async def add_version(
    registry: Registry, task: str, payload: bytes = b"", *, classes: int = 3, promote: bool = False
) -> Version:
    manifest = make_manifest(labels=[f"{task} {i}" for i in range(classes)])
    added = await registry.add_version(
        task, make_adapter_file(payload or task.encode(), manifest), manifest, promote=promote
    )
    return added.version


async def add_key(registry: Registry, token: str, *scopes: Scope, tasks: tuple[str, ...] = ("*",)) -> None:
    key = ApiKey(
        name=token, secret_hash=hash_token(token), scopes=frozenset(scopes), tasks=tasks, created=1.0
    )
    await registry.add_key(key)


@asynccontextmanager
async def running(directory: Path, **settings: Any) -> AsyncIterator[World]:
    """Run an application on a new registry; every response is checked against its OpenAPI document."""
    registry, engine = SwitchableRegistry(directory), FakeEngine()
    catalog = Catalog(registry, forget=engine.forget, poll_seconds=3600)
    await catalog.start()
    decoder, metrics, readiness = FakeDecoder(), FakeMetrics(), Readiness(Phase.READY)
    app = create_app(
        settings=Settings(**settings),
        engine=engine,
        registry=registry,
        catalog=catalog,
        decoder=decoder,
        metrics=metrics,
        readiness=readiness,
    )
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        world = World(registry, engine, catalog, decoder, metrics, readiness, app, client)

        async def is_documented(response: httpx.Response) -> None:
            operation = documented(app, response.request)
            if operation:
                assert str(response.status_code) in operation["responses"], response

        client.event_hooks = {"response": [is_documented]}
        yield world
    await catalog.close()
    await registry.close()


async def until_left(before: set[asyncio.Task[Any]]) -> None:
    """Return once every task begun since has ended."""
    async with asyncio.timeout(30):
        while asyncio.all_tasks() - before:  # noqa: ASYNC110  (tasks of the application, not ours to await)
            await asyncio.sleep(0)

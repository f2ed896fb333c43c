"""One replica, without Ray: everything that answers requests in this process, assembled from the settings.

Ray Serve wraps it (`server.ray_app`); under plain uvicorn it is a complete server of its own.
"""

import asyncio
import contextlib
import importlib.util
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

from fastapi import FastAPI

from adapters.errors import AdapterError, AdapterIncompatible
from adapters.fits import check_fits
from registry.base import Registry
from registry.errors import RegistryError, RegistryUnavailable
from registry.models import PRODUCTION
from registry.open import open_registry
from server.app import create_app
from server.catalog import Catalog
from server.contracts import Device
from server.cores import with_threads
from server.engine import LocalEngine
from server.images import ImageDecoder, Reader, read_with_pillow
from server.limits import EngineLimits
from server.membership import Membership
from server.metrics import Metrics
from server.observed_registry import ObservedRegistry
from server.parts import Fleet, Phase, Readiness
from server.seed import seed
from server.settings import Settings

if TYPE_CHECKING:  # OpenVINO may not be installed
    from backbone.executors.openvino_ahead import Ahead

WARM_UP_TRIES = 32  # tasks
PATIENCE_SECONDS = 60.0  # for a registry that is away while a replica starts

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Replica:
    """Everything one process needs to answer requests. `close` it once."""

    settings: Settings
    app: FastAPI
    engine: LocalEngine
    registry: Registry
    catalog: Catalog
    decoder: ImageDecoder
    metrics: Metrics
    readiness: Readiness

    @classmethod
    async def open(
        cls,
        settings: Settings,
        *,
        fleet: Fleet | None = None,
        open_device: Callable[[Settings], Device] | None = None,
        mark: Callable[[str], None] = lambda _: None,
    ) -> Self:
        """Load the backbone, register seeds, read the registry and warm up: seconds. Ready afterwards.

        Args:
            settings: As checked by `server.preflight`.
            fleet: All replicas, if there may be others.
            open_device: Makes the device, in a thread; by default the real one, which loads torch.
            mark: Called when a part of this is done, with its name.

        Raises:
            BackboneError: If the backbone cannot be loaded.
            RegistryError: If the registry does not answer for a minute.
            SettingsInvalid: If a seed is broken.
        """
        settings = with_threads(settings)
        device = await asyncio.to_thread(open_device or partial(_open_device, mark=mark), settings)
        mark("backbone")
        read = await asyncio.to_thread(_reader_of, settings)
        async with contextlib.AsyncExitStack() as on_failure:
            metrics = Metrics.create(settings)
            registry = ObservedRegistry(
                open_registry(settings.registry, settings.data_dir), metrics.observe_registry
            )
            on_failure.push_async_callback(registry.close)
            await _until_it_answers(registry, settings.registry_poll_ms / 1000)
            engine = LocalEngine(
                device, registry.fetch, limits=limits_of(settings), disk=disk_of(settings), events=metrics
            )
            on_failure.push_async_callback(engine.drain)
            if settings.seed_dir is not None:
                await seed(settings.seed_dir, registry, engine)
            catalog = _catalog_of(settings, registry, engine)
            on_failure.push_async_callback(catalog.close)
            await catalog.start()
            await _warm_up(engine, registry, catalog)
            on_failure.pop_all()
        mark("registry and warm-up")
        metrics.watch(engine, catalog, device.memory)
        decoder = _decoder_of(settings, device, read, metrics)
        readiness = Readiness(Phase.READY)
        app = create_app(
            settings=settings,
            engine=engine,
            registry=registry,
            catalog=catalog,
            decoder=decoder,
            metrics=metrics,
            readiness=readiness,
            fleet=fleet,
        )
        return cls(settings, app, engine, registry, catalog, decoder, metrics, readiness)

    @property
    def name(self) -> str:
        """What tells this replica from all others, also from those before it."""
        return self.catalog.membership.name

    def tasks(self, limit: int = 100) -> list[str]:
        """Return the names of the first tasks."""
        page = self.catalog.tasks(after=None, limit=limit, allowed=lambda _: True)
        return [task.task for task in page.items]

    def answers(self, task: str) -> bool:
        """Whether what serves a task fits this backbone, as far as is known without asking the registry."""
        version, info = self.catalog.lookup(task), self.engine.backbone
        try:
            if version is not None:
                check_fits(
                    version.manifest,
                    backbone_name=info.name,
                    fingerprint=info.fingerprint,
                    widths=info.sites,
                    head_width=info.head_width,
                    preprocessing=info.preprocessing,
                )
        except AdapterIncompatible:
            return False
        return True

    async def close(self) -> None:
        """Want no more traffic, answer what was accepted, and let go of everything."""
        self.readiness.phase = Phase.DRAINING
        try:
            async with asyncio.timeout(self.settings.drain_timeout_ms / 1000):
                await self.engine.drain()
        except TimeoutError:
            logger.warning("accepted requests were not all answered in time")
        await self.catalog.close()
        await self.registry.close()
        self.decoder.close()


def _catalog_of(settings: Settings, registry: Registry, engine: LocalEngine) -> Catalog:
    return Catalog(
        registry,
        forget=engine.forget,
        poll_seconds=settings.registry_poll_ms / 1000,
        membership=Membership(registry, lease_seconds=settings.lease_seconds),
        refuse_when_cut_off=settings.when_cut_off == "refuse",
        read_ahead=disk_of(settings) is not None,
    )


def limits_of(settings: Settings) -> EngineLimits:
    return EngineLimits(
        max_batch=settings.max_batch,
        max_queue=settings.max_queue,
        max_queue_per_task=settings.max_queue_per_task,
        max_pinned=settings.pin_limit,
        host_bytes=settings.host_cache_bytes,
        disk_bytes=settings.disk_cache_bytes,
    )


def disk_of(settings: Settings) -> Path | None:
    """Return the directory of the disk cache; the embedded registry is on this host's disk already."""
    return None if settings.registry.startswith("embedded:") else settings.data_dir / "cache"


def _open_device(settings: Settings, *, mark: Callable[[str], None]) -> Device:
    ahead = _ahead(settings)
    from server.device import BackboneDevice  # loads torch

    mark("PyTorch and timm")
    return BackboneDevice.open(settings, ahead=ahead)


def _ahead(settings: Settings) -> "Ahead | None":
    """Begin to compile what the last start with these settings needed."""
    if settings.executor not in {"auto", "openvino"} or importlib.util.find_spec("openvino") is None:
        return None
    from backbone.executors.openvino_ahead import Ahead

    decisive = {"backbone", "backbone_source", "input_size", "dtype", "device", "executor", "threads"}
    return Ahead(settings.graph_cache, settings.model_dump_json(include=decisive))


def _decoder_of(settings: Settings, device: Device, read: Reader, metrics: Metrics) -> ImageDecoder:
    return ImageDecoder(
        device.info.preprocessing,
        max_pixels=settings.max_pixels,
        read=read,
        threads=settings.decode_threads,
        max_waiting=settings.max_queue,
        observe=metrics.observe_decode,
    )


def _reader_of(settings: Settings) -> Reader:
    if settings.decoding == "pillow":
        return read_with_pillow
    from server import fast_images  # loads torch

    return fast_images.read_scaled if settings.decoding == "scaled" else fast_images.read_fast


async def _until_it_answers(registry: Registry, poll_seconds: float) -> None:
    """Wait for a registry that is away: a replica that gave up here would have to be started again.

    Raises:
        RegistryUnavailable: After `PATIENCE_SECONDS`.
    """
    deadline, told = time.monotonic() + PATIENCE_SECONDS, False
    while True:
        try:
            await registry.cursor()
        except RegistryUnavailable as error:
            if time.monotonic() > deadline:
                raise
            if not told:
                logger.warning("waiting for the registry: %s", error)
            told = True
            await asyncio.sleep(poll_seconds)
        else:
            return


async def _warm_up(engine: LocalEngine, registry: Registry, catalog: Catalog) -> None:
    """Run a forward before the first request has to, by checking the probe of the first adapter that fits."""
    page = catalog.tasks(after=None, limit=WARM_UP_TRIES, allowed=lambda _: True)
    for task in page.items:
        if PRODUCTION not in task.aliases:
            continue
        try:
            version = await catalog.resolve(task.task)
            await engine.validate(await registry.fetch(version.digest), new=False)
        except (AdapterError, RegistryError) as error:
            logger.warning("task %s cannot be served: %s", task.task, error)
        else:
            return

"""Register the adapters of a directory, `<task>.safetensors` each, where the task does not exist yet."""

import asyncio
import logging
from pathlib import Path

from adapters.errors import AdapterError
from registry.base import Registry
from registry.errors import InvalidName, TaskNotFound
from registry.models import Actor, Version
from server.contracts import Engine
from server.errors import SettingsInvalid

SUFFIX = ".safetensors"

SEEDER = Actor(kind="server", name="seeds")

logger = logging.getLogger(__name__)


async def seed(folder: Path, registry: Registry, engine: Engine) -> list[Version]:
    """Register what is missing; return the versions made by this call.

    Several replicas may do this at the same time: a version is identified by its bytes, so the registry
    takes each file once.

    Raises:
        SettingsInvalid: If a file is no adapter for this backbone, or has no name for a task.
        RegistryError
    """
    added = []
    for path in await asyncio.to_thread(lambda: sorted(folder.glob(f"*{SUFFIX}"))):
        version = await _seed_one(path, registry, engine)
        added += [version] if version else []
    return added


async def _seed_one(path: Path, registry: Registry, engine: Engine) -> Version | None:
    task = path.name.removesuffix(SUFFIX)
    try:
        if await _exists(registry, task):
            return None
        data = await asyncio.to_thread(path.read_bytes)
        manifest = await engine.validate(data)
        result = await registry.add_version(task, data, manifest, by=SEEDER)
    except (AdapterError, InvalidName, OSError) as error:
        raise SettingsInvalid(f"SSFSERVE_SEED_DIR: {path}: {error}") from error
    if not result.created:
        return None
    logger.info("task %s registered from %s", task, path, extra={"fields": {"digest": result.version.digest}})
    return result.version


async def _exists(registry: Registry, task: str) -> bool:
    try:
        await registry.get_task(task)
    except TaskNotFound:
        return False
    return True

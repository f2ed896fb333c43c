"""What is on the device of the replica that answers: warm up, keep, let go."""

from fastapi import APIRouter, Request

from server import openapi
from server.access import MANAGE
from server.errors import PinLimit
from server.middleware import exchange_of
from server.parts import parts_of
from server.queries import Selector, parameters, query_of
from server.schemas import Pinned, Prefetched, TaskName

WHICH = {"parameters": parameters(Selector)}

router = APIRouter(prefix="/v1/tasks/{task}", tags=["residency"])


@router.post(
    "/prefetch",
    dependencies=[MANAGE],
    responses=openapi.problems(*openapi.COMMON, *openapi.SELECT, *openapi.LOAD),
    openapi_extra=WHICH,
)
async def prefetch(request: Request, task: TaskName) -> Prefetched:
    """Bring a version to the device now, so that its first request need not wait."""
    parts, query = parts_of(request), query_of(request, Selector)
    version = await parts.catalog.resolve(task, query.version, query.alias)
    exchange_of(request).version = version.version
    tier = await parts.engine.prefetch(version)
    return Prefetched(task=task, version=version.version, digest=version.digest, tier_before=tier)


@router.put(
    "/pin",
    dependencies=[MANAGE],
    responses=openapi.problems(*openapi.COMMON, *openapi.SELECT, *openapi.LOAD, PinLimit(32)),
    openapi_extra=WHICH,
)
async def pin(request: Request, task: TaskName) -> Pinned:
    """Keep a version on the device. The pin stays with the version when an alias moves on."""
    parts, query = parts_of(request), query_of(request, Selector)
    version = await parts.catalog.resolve(task, query.version, query.alias)
    exchange_of(request).version = version.version
    await parts.engine.pin(version)
    return Pinned(task=task, version=version.version, digest=version.digest, pinned=True)


@router.delete(
    "/pin",
    dependencies=[MANAGE],
    responses=openapi.problems(*openapi.COMMON, *openapi.SELECT),
    openapi_extra=WHICH,
)
async def unpin(request: Request, task: TaskName) -> Pinned:
    """Let a version be evicted again; fine if it was not pinned."""
    parts, query = parts_of(request), query_of(request, Selector)
    version = await parts.catalog.resolve(task, query.version, query.alias)
    exchange_of(request).version = version.version
    await parts.engine.unpin(version)
    return Pinned(task=task, version=version.version, digest=version.digest, pinned=False)

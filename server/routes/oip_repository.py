"""Open Inference Protocol v2: the model repository extension. Models come and go by `/v1`."""

from collections.abc import Iterator

from fastapi import APIRouter, Request, Response

from registry.copying import all_versions
from registry.errors import AliasNotFound, RegistryUnavailable, TaskNotFound
from registry.models import PRODUCTION, Task
from server import openapi
from server.access import ANY, MANAGE
from server.bodies import read_optional_json
from server.errors import RequestInvalid
from server.middleware import exchange_of
from server.oip.schemas import IndexEntry, IndexRequest, LoadRequest
from server.parts import parts_of
from server.schemas import TaskName

REGISTERED = (*openapi.COMMON, TaskNotFound("pets"), RegistryUnavailable("embedded", ""))

router = APIRouter(prefix="/v2/repository", tags=["open inference protocol"])


@router.post(
    "/index",
    dependencies=[ANY],
    responses=openapi.problems(*openapi.COMMON, *openapi.BODY, *openapi.FORM),
    openapi_extra=openapi.body_of(openapi.json_body(IndexRequest), required=False),
)
async def index(request: Request) -> list[IndexEntry]:
    """List the models that the key covers, with each version that an alias names. Answered from memory."""
    parts = parts_of(request)
    wanted = await read_optional_json(request, IndexRequest, parts.settings)
    allowed = exchange_of(request).caller.may_use
    tasks = parts.catalog.tasks(after=None, limit=max(1, len(parts.catalog)), allowed=allowed).items
    entries = [entry for task in tasks for entry in _entries(task)]
    return [entry for entry in entries if entry.state == "READY" or not wanted.ready]


@router.post(
    "/models/{task}/load",
    dependencies=[MANAGE],
    response_class=Response,
    responses=openapi.problems(
        *REGISTERED, *openapi.BODY, *openapi.FORM, *openapi.LOAD, AliasNotFound("pets", "production")
    ),
    openapi_extra=openapi.body_of(openapi.json_body(LoadRequest), required=False),
)
async def load(request: Request, task: TaskName) -> Response:
    """Bring `production` to the device of the replica that answers, as `POST /v1/tasks/{task}/prefetch`."""
    parts = parts_of(request)
    wanted = await read_optional_json(request, LoadRequest, parts.settings)
    if wanted.parameters:
        raise RequestInvalid("models are not loaded from a request; upload to /v1/tasks/{task}/versions")
    version = await parts.catalog.resolve(task)
    exchange_of(request).version = version.version
    await parts.engine.prefetch(version)
    return Response()


@router.post(
    "/models/{task}/unload",
    dependencies=[MANAGE],
    response_class=Response,
    responses=openapi.problems(*REGISTERED),
)
async def unload(request: Request, task: TaskName) -> Response:
    """Drop what the replica that answers keeps of the model's adapters: on the device, pinned, in caches.

    Accepted requests are still answered. The model stays available: its next request loads it again.
    """
    parts = parts_of(request)
    async for version in all_versions(parts.registry, task):
        parts.engine.forget(version.digest)
    return Response()


def _entries(task: Task) -> Iterator[IndexEntry]:
    for number in sorted(set(task.aliases.values())):
        yield IndexEntry(name=task.task, version=str(number), state="READY", reason="")
    if PRODUCTION not in task.aliases:
        reason = "no version is `production`; name a version to ask it"
        yield IndexEntry(name=task.task, version="", state="UNAVAILABLE", reason=reason)

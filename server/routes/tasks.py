"""Tasks: which exist, what is in them, and their end."""

from fastapi import APIRouter, Request, Response

from registry.errors import RegistryUnavailable, TaskNotFound
from registry.models import PRODUCTION, Task
from server import openapi
from server.access import ANY, MANAGE
from server.middleware import exchange_of
from server.parts import Parts, parts_of
from server.queries import Names, Numbers, parameters, query_of
from server.schemas import TaskDetail, TaskName, TaskPage
from server.showing import summary

router = APIRouter(prefix="/v1/tasks", tags=["tasks"])

REGISTERED = (*openapi.COMMON, TaskNotFound("pets"), RegistryUnavailable("embedded", ""))


@router.get(
    "",
    dependencies=[ANY],
    responses=openapi.problems(*openapi.COMMON),
    openapi_extra={"parameters": parameters(Names)},
)
async def list_tasks(request: Request) -> TaskPage:
    """List the tasks that the key covers, in name order. Answered from memory."""
    query = query_of(request, Names)
    allowed = exchange_of(request).caller.may_use
    page = parts_of(request).catalog.tasks(after=query.after, limit=query.limit, allowed=allowed)
    return TaskPage(tasks=page.items, next_after=page.next_after)


@router.get(
    "/{task}",
    dependencies=[ANY],
    responses=openapi.problems(*REGISTERED),
    openapi_extra={"parameters": parameters(Numbers)},
)
async def get_task(request: Request, task: TaskName) -> TaskDetail:
    """Show a task, and a page of its versions in rising order, with where each is in this replica."""
    parts, query = parts_of(request), query_of(request, Numbers)
    known = await parts.registry.get_task(task)
    versions = await parts.registry.list_versions(task, after=query.after, limit=query.limit + 1)
    shown = versions[: query.limit]
    return TaskDetail(
        task=task,
        created=known.created,
        latest=known.latest,
        aliases=known.aliases,
        labels=await _labels(parts, known),
        versions=tuple(summary(version, known.aliases, parts.engine) for version in shown),
        next_after=shown[-1].version if len(versions) > len(shown) else None,
    )


@router.delete("/{task}", dependencies=[MANAGE], status_code=204, responses=openapi.problems(*REGISTERED))
async def delete_task(request: Request, task: TaskName) -> Response:
    """Delete a task with all its versions and aliases. Accepted requests are still answered."""
    parts = parts_of(request)
    await parts.registry.delete_task(task, by=exchange_of(request).actor)
    await parts.catalog.catch_up()
    return Response(status_code=204)


async def _labels(parts: Parts, task: Task) -> tuple[str, ...] | None:
    served = task.aliases.get(PRODUCTION)
    if served is None:
        return None
    return (await parts.catalog.resolve(task.task, served)).manifest.labels

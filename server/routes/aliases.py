"""Aliases of a task: where they point, where they pointed, and moving them."""

from fastapi import APIRouter, Request

from registry.errors import (
    AliasConflict,
    AliasNotFound,
    RegistryUnavailable,
    TaskNotFound,
    VersionNotFound,
)
from registry.models import AliasMove
from server import openapi
from server.access import ANY, MANAGE
from server.bodies import read_json
from server.errors import NotConfirmed
from server.middleware import exchange_of
from server.parts import Parts, parts_of
from server.queries import Recent, Waited, parameters, query_of
from server.routes.predict import MAX_WAIT, patience_seconds
from server.schemas import Alias, AliasHistory, AliasName, AliasRequest, TaskName

NAMED = (*openapi.COMMON, TaskNotFound("pets"), RegistryUnavailable("embedded", ""))

MOVING = {"parameters": [*parameters(Waited), MAX_WAIT]}

router = APIRouter(prefix="/v1/tasks/{task}/aliases/{alias}", tags=["aliases"])


@router.get(
    "",
    dependencies=[ANY],
    responses=openapi.problems(*NAMED, AliasNotFound("pets", "canary")),
    openapi_extra={"parameters": parameters(Recent)},
)
async def get_alias(request: Request, task: TaskName, alias: AliasName) -> AliasHistory:
    """Show what an alias names, and its moves."""
    parts, query = parts_of(request), query_of(request, Recent)
    moves = await parts.registry.alias_history(task, alias, limit=query.limit)
    named = (await parts.registry.get_task(task)).aliases.get(alias)
    return AliasHistory(task=task, alias=alias, version=named, moves=moves)


@router.put(
    "",
    dependencies=[MANAGE],
    responses=openapi.problems(
        *NAMED,
        *openapi.BODY,
        *openapi.FORM,
        VersionNotFound("pets", 9),
        AliasConflict("pets", "production", 1, 2),
        NotConfirmed(()),
    ),
    openapi_extra=openapi.body_of(openapi.json_body(AliasRequest)) | MOVING,
)
async def put_alias(request: Request, task: TaskName, alias: AliasName) -> Alias:
    """Point an alias at a version. With `expected`, only if it names that version now (null: none)."""
    parts, wait = parts_of(request), _wait_of(request)
    wanted = await read_json(request, AliasRequest, parts.settings)
    move = await parts.registry.set_alias(
        task,
        alias,
        wanted.version,
        expected=wanted.expected,
        check="expected" in wanted.model_fields_set,
        by=exchange_of(request).actor,
    )
    return await _moved(parts, task, move, wait)


@router.post(
    "/rollback",
    dependencies=[MANAGE],
    responses=openapi.problems(*NAMED, AliasNotFound("pets", "canary"), NotConfirmed(())),
    openapi_extra=MOVING,
)
async def roll_back(request: Request, task: TaskName, alias: AliasName) -> Alias:
    """Point an alias at what it named before; again, and it goes further back."""
    parts, wait = parts_of(request), _wait_of(request)
    move = await parts.registry.rollback_alias(task, alias, by=exchange_of(request).actor)
    return await _moved(parts, task, move, wait)


def _wait_of(request: Request) -> float | None:
    """Return for how many seconds the caller waits for all replicas; None without `wait`."""
    seconds = patience_seconds(request, parts_of(request))
    return seconds if query_of(request, Waited).wait else None


async def _moved(parts: Parts, task: str, move: AliasMove, wait_seconds: float | None) -> Alias:
    await parts.catalog.catch_up()
    confirmed = None if wait_seconds is None else await parts.catalog.confirm(wait_seconds)
    return Alias(task=task, confirmed_by=confirmed, **move.model_dump())

"""The service itself: its backbone, its health, its metrics."""

import math

from fastapi import APIRouter, Request, Response

from server import openapi
from server.access import ANY
from server.answering import json_response
from server.answers import problem
from server.errors import Draining, EngineBroken, NotReady
from server.parts import Phase, parts_of
from server.schemas import Backbone, Health, NotReadyYet, Ready

router = APIRouter(tags=["service"])


@router.get("/v1/backbone", dependencies=[ANY], responses=openapi.problems(*openapi.COMMON))
async def get_backbone(request: Request) -> Backbone:
    """Show the frozen model that all tasks share."""
    return Backbone.of(parts_of(request).engine.backbone)


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz", responses=openapi.problems(EngineBroken("")), openapi_extra={"security": []})
async def healthz(request: Request) -> Health:
    """Tell whether this process can still answer; if not, it should be replaced."""
    parts_of(request).engine.check()
    return Health()


@router.head("/readyz", include_in_schema=False)
@router.get(
    "/readyz",
    response_model=Ready,
    responses={503: {"model": NotReadyYet, "description": "starting, draining"}},
    openapi_extra={"security": []},
)
async def readyz(request: Request) -> Response:
    """Tell whether this replica wants traffic. A registry that is away does not take that away."""
    parts = parts_of(request)
    phase, staleness = parts.readiness.phase, parts.catalog.staleness_seconds
    known = {"registry_staleness_seconds": round(staleness, 3) if math.isfinite(staleness) else None}
    if phase is Phase.READY:
        return json_response({"status": phase, **known})
    status, body, headers = problem(NotReady() if phase is Phase.STARTING else Draining())
    return json_response({**body, "status": phase, **known}, status=status, headers=headers)


@router.get(
    "/metrics",
    dependencies=[ANY],
    response_class=Response,
    responses=openapi.problems(*openapi.AUTH, *openapi.INTERNAL)
    | {200: {"content": {"text/plain": {}}, "description": "Prometheus exposition."}},
)
async def metrics(request: Request) -> Response:
    """Expose the metrics of all replicas, to any key whatever its tasks: they name the most active ones."""
    parts = parts_of(request)
    content, media_type = await parts.fleet.exposition() if parts.fleet else parts.metrics.render()
    return Response(content, headers={"content-type": media_type})

"""Open Inference Protocol v2: the statistics extension."""

from fastapi import APIRouter, Request

from registry.errors import AliasNotFound, RegistryUnavailable, TaskNotFound, VersionNotFound
from server import openapi
from server.access import ANY
from server.middleware import exchange_of
from server.oip.schemas import AllStatistics, ModelStatistics
from server.parts import parts_of
from server.schemas import TaskName, VersionNumber

FOUND = (*openapi.COMMON, TaskNotFound("pets"), RegistryUnavailable("embedded", ""))

router = APIRouter(prefix="/v2/models", tags=["open inference protocol"])


@router.get("/stats", dependencies=[ANY], responses=openapi.problems(*openapi.COMMON))
async def all_statistics(request: Request) -> AllStatistics:
    """Count the inferences over `/v2` of this replica, of every version asked that the key covers."""
    reports = parts_of(request).statistics.report(exchange_of(request).caller.may_use)
    return AllStatistics(model_stats=tuple(ModelStatistics(**report) for report in reports))


@router.get(
    "/{task}/stats",
    dependencies=[ANY],
    responses=openapi.problems(*FOUND, AliasNotFound("pets", "production")),
)
async def model_statistics(request: Request, task: TaskName) -> AllStatistics:
    """Count the inferences of a model: those of `production`, and of other versions that were asked."""
    parts = parts_of(request)
    production = (await parts.catalog.resolve(task)).version
    reports = parts.statistics.report(lambda name: name == task)
    if not any(report["version"] == str(production) for report in reports):
        reports.append(parts.statistics.report_one(task, production))
    return AllStatistics(model_stats=tuple(ModelStatistics(**report) for report in reports))


@router.get(
    "/{task}/versions/{version}/stats",
    dependencies=[ANY],
    responses=openapi.problems(*FOUND, VersionNotFound("pets", 9)),
)
async def version_statistics(request: Request, task: TaskName, version: VersionNumber) -> AllStatistics:
    """Count the inferences of one version."""
    parts = parts_of(request)
    await parts.catalog.resolve(task, version)
    return AllStatistics(model_stats=(ModelStatistics(**parts.statistics.report_one(task, version)),))

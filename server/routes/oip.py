"""Open Inference Protocol v2: the server and its models."""

from fastapi import APIRouter, Request

from registry.copying import all_versions
from registry.errors import AliasNotFound, RegistryUnavailable, TaskNotFound, VersionNotFound
from registry.models import Version
from server import openapi
from server.access import ANY
from server.errors import Draining, EngineBroken, NotReady
from server.oip.answering import OUTPUTS
from server.oip.images import INPUT
from server.oip.schemas import Live, ModelMetadata, ModelReady, ServerMetadata, ServerReady, TensorMetadata
from server.parts import Parts, Phase, parts_of
from server.schemas import TaskName, VersionNumber

EXTENSIONS = ("binary_tensor_data", "classification", "model_repository", "statistics")
PLATFORM = "ssfserve_safetensors"  # <project>_<format>, as the protocol names platforms

FOUND = (*openapi.COMMON, TaskNotFound("pets"), RegistryUnavailable("embedded", ""))
PRODUCTION = (*FOUND, AliasNotFound("pets", "production"))
NUMBERED = (*FOUND, VersionNotFound("pets", 9))
UNREADY = (NotReady(), Draining(), EngineBroken(""))

router = APIRouter(prefix="/v2", tags=["open inference protocol"])


@router.get("", dependencies=[ANY], responses=openapi.problems(*openapi.COMMON))
async def server_metadata(request: Request) -> ServerMetadata:
    """Name the server and the extensions of the protocol that it has."""
    return ServerMetadata(name="ssfserve", version=request.app.version, extensions=EXTENSIONS)


@router.get("/health/live", responses=openapi.problems(EngineBroken("")), openapi_extra={"security": []})
async def server_live(request: Request) -> Live:
    """Tell whether this process can still answer, as `/healthz`."""
    parts_of(request).engine.check()
    return Live()


@router.get("/health/ready", responses=openapi.problems(*UNREADY), openapi_extra={"security": []})
async def server_ready(request: Request) -> ServerReady:
    """Tell whether this replica wants traffic, as `/readyz`."""
    _check_ready(parts_of(request))
    return ServerReady()


@router.get("/models/{task}", dependencies=[ANY], responses=openapi.problems(*PRODUCTION))
async def model_metadata(request: Request, task: TaskName) -> ModelMetadata:
    """Describe a model: its versions, its input, and its outputs as `production` has them."""
    parts = parts_of(request)
    return await _metadata(parts, await parts.catalog.resolve(task))


@router.get("/models/{task}/versions/{version}", dependencies=[ANY], responses=openapi.problems(*NUMBERED))
async def version_metadata(request: Request, task: TaskName, version: VersionNumber) -> ModelMetadata:
    """Describe a model as one version has it."""
    parts = parts_of(request)
    return await _metadata(parts, await parts.catalog.resolve(task, version))


@router.get("/models/{task}/ready", dependencies=[ANY], responses=openapi.problems(*PRODUCTION, *UNREADY))
async def model_ready(request: Request, task: TaskName) -> ModelReady:
    """Tell whether a model can be asked. Its adapter may be elsewhere: the first request loads it."""
    parts = parts_of(request)
    _check_ready(parts)
    await parts.catalog.resolve(task)
    return ModelReady(name=task)


@router.get(
    "/models/{task}/versions/{version}/ready",
    dependencies=[ANY],
    responses=openapi.problems(*NUMBERED, *UNREADY),
)
async def version_ready(request: Request, task: TaskName, version: VersionNumber) -> ModelReady:
    """Tell whether a version can be asked."""
    parts = parts_of(request)
    _check_ready(parts)
    await parts.catalog.resolve(task, version)
    return ModelReady(name=task)


def _check_ready(parts: Parts) -> None:
    """Pass if this replica wants traffic.

    Raises:
        NotReady, Draining, EngineBroken
    """
    if parts.readiness.phase is not Phase.READY:
        raise NotReady if parts.readiness.phase is Phase.STARTING else Draining
    parts.engine.check()


async def _metadata(parts: Parts, version: Version) -> ModelMetadata:
    numbers = [str(known.version) async for known in all_versions(parts.registry, version.task)]
    classes = version.manifest.num_classes
    return ModelMetadata(
        name=version.task,
        versions=tuple(numbers),
        platform=PLATFORM,
        inputs=(TensorMetadata(name=INPUT, datatype="BYTES", shape=[-1]),),
        outputs=tuple(TensorMetadata(name=name, datatype="FP32", shape=[-1, classes]) for name in OUTPUTS),
    )

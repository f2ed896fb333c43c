"""Open Inference Protocol v2: inference."""

from typing import Any

from fastapi import APIRouter, Request, Response

from registry.errors import AliasNotFound, RegistryUnavailable, TaskNotFound, VersionNotFound
from server import openapi
from server.access import PREDICT
from server.oip import inference
from server.oip.schemas import InferRequest, InferResponse
from server.routes.predict import MAX_WAIT
from server.schemas import TaskName, VersionNumber

OCTETS = {"application/octet-stream": openapi.FILE}
JSON_LENGTH = {
    "name": "Inference-Header-Content-Length",
    "in": "header",
    "description": "Bytes of the body that are JSON; binary tensors follow. Left out, all of it is.",
    "schema": {"type": "integer", "minimum": 0},
}
DOCUMENTED = openapi.body_of(openapi.json_body(InferRequest) | OCTETS) | {
    "parameters": [JSON_LENGTH, MAX_WAIT]
}

SELECTED = (TaskNotFound("pets"), RegistryUnavailable("embedded", ""))
FAILURES = (
    *openapi.COMMON,
    *openapi.BODY,
    *openapi.FORM,
    *openapi.BATCH,
    *openapi.IMAGE,
    *openapi.COMPUTE,
    *SELECTED,
)
ANSWER: dict[int | str, dict[str, Any]] = {
    200: {"content": OCTETS, "description": "JSON, then binary tensors."}
}

router = APIRouter(prefix="/v2/models/{task}", tags=["open inference protocol"])


@router.post(
    "/infer",
    dependencies=[PREDICT],
    response_model=InferResponse,
    responses=openapi.problems(*FAILURES, AliasNotFound("pets", "production")) | ANSWER,
    openapi_extra=DOCUMENTED,
)
async def infer(request: Request, task: TaskName) -> Response:
    """Classify images by the version that is `production`."""
    return await inference.infer(request, task)


@router.post(
    "/versions/{version}/infer",
    dependencies=[PREDICT],
    response_model=InferResponse,
    responses=openapi.problems(*FAILURES, VersionNotFound("pets", 9)) | ANSWER,
    openapi_extra=DOCUMENTED,
)
async def infer_by_version(request: Request, task: TaskName, version: VersionNumber) -> Response:
    """Classify images by one version."""
    return await inference.infer(request, task, version)

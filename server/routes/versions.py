"""Versions of a task: upload, look, download, delete."""

from fastapi import APIRouter, Request, Response

from adapters.errors import AdapterFileInvalid, AdapterIncompatible, ManifestInvalid, ProbeMismatch
from registry.errors import (
    BlobCorrupt,
    BlobNotFound,
    RegistryUnavailable,
    TaskNotFound,
    VersionInUse,
    VersionNotFound,
)
from registry.models import PRODUCTION
from server import openapi
from server.access import ANY, MANAGE
from server.answering import json_response
from server.client import read_body
from server.errors import RequestInvalid
from server.middleware import exchange_of
from server.multipart import is_multipart, parse
from server.parts import Parts, parts_of
from server.queries import Upload, parameters, query_of
from server.schemas import TaskName, Uploaded, VersionDetail, VersionNumber
from server.showing import detail

MAX_PARTS = 16
FORM_OVERHEAD = 2**16
OCTETS = "application/octet-stream"

EXISTING = (
    *openapi.COMMON,
    TaskNotFound("pets"),
    VersionNotFound("pets", 9),
    RegistryUnavailable("embedded", ""),
)
REFUSED = (
    AdapterFileInvalid("header", "the header is longer than the file"),
    ManifestInvalid("labels: Field required"),
    AdapterIncompatible("fingerprint", "1f0c…", "9a41…"),
    ProbeMismatch(1.5, 0.01),
)
UPLOAD = openapi.body_of({OCTETS: openapi.FILE} | openapi.file_field("adapter"))
UPLOAD["parameters"] = parameters(Upload)

router = APIRouter(prefix="/v1/tasks/{task}/versions", tags=["versions"])


@router.post(
    "",
    dependencies=[MANAGE],
    status_code=201,
    response_model=Uploaded,
    responses=openapi.problems(
        *openapi.COMMON, *openapi.BODY, *openapi.FORM, *REFUSED, RegistryUnavailable("embedded", "")
    )
    | {200: {"model": Uploaded, "description": "The task had these bytes already."}},
    openapi_extra=UPLOAD,
)
async def upload(request: Request, task: TaskName) -> Response:
    """Check an adapter file in full, probe included, and store it as the task's next version."""
    parts, query = parts_of(request), query_of(request, Upload)
    data = await _read_adapter(request, parts)
    manifest = await parts.engine.validate(data)
    version, created = await parts.registry.add_version(
        task, data, manifest, promote=query.promote, by=exchange_of(request).actor
    )
    await parts.catalog.catch_up()
    exchange_of(request).version = version.version
    served = parts.catalog.find_alias(task, PRODUCTION)
    content = Uploaded(
        task=task,
        version=version.version,
        digest=version.digest,
        size=version.size,
        production=served == version.version,
    )
    headers = {"location": f"/v1/tasks/{task}/versions/{version.version}"}
    return json_response(content, status=201 if created else 200, headers=headers)


@router.get("/{version}", dependencies=[ANY], responses=openapi.problems(*EXISTING))
async def get_version(request: Request, task: TaskName, version: VersionNumber) -> VersionDetail:
    """Show one version with its whole manifest."""
    parts = parts_of(request)
    found = await parts.registry.get_version(task, version)
    aliases = (await parts.registry.get_task(task)).aliases
    return detail(found, aliases, parts.engine)


@router.get(
    "/{version}/adapter",
    dependencies=[MANAGE],
    response_class=Response,
    responses=openapi.problems(*EXISTING, BlobNotFound("1f0c…"), BlobCorrupt("1f0c…"))
    | {
        200: {"content": {OCTETS: openapi.FILE}, "description": "The adapter file."},
        304: {"description": "`If-None-Match` names these bytes."},
    },
)
async def download(request: Request, task: TaskName, version: VersionNumber) -> Response:
    """Download the file as it was uploaded. The entity tag is its digest."""
    parts = parts_of(request)
    found = await parts.registry.get_version(task, version)
    headers = {"etag": f'"{found.digest}"', "cache-control": "private, no-cache"}
    if headers["etag"] in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    headers["content-disposition"] = f'attachment; filename="{task}-{version}.safetensors"'
    return Response(await parts.registry.fetch(found.digest), headers=headers, media_type=OCTETS)


@router.delete(
    "/{version}",
    dependencies=[MANAGE],
    status_code=204,
    responses=openapi.problems(*EXISTING, VersionInUse("pets", 9, ("production",))),
)
async def delete_version(request: Request, task: TaskName, version: VersionNumber) -> Response:
    """Delete a version that no alias names. Accepted requests are still answered."""
    parts = parts_of(request)
    await parts.registry.delete_version(task, version, by=exchange_of(request).actor)
    await parts.catalog.catch_up()
    return Response(status_code=204)


async def _read_adapter(request: Request, parts: Parts) -> bytes:
    settings = parts.settings
    content_type = request.headers.get("content-type", "")
    form = is_multipart(content_type)
    limit = settings.max_adapter_bytes + (FORM_OVERHEAD if form else 0)
    body = await read_body(request, limit=limit, timeout_ms=settings.body_timeout_ms)
    if not form:
        return body
    files = [part for part in parse(body, content_type, max_parts=MAX_PARTS) if part.name == "adapter"]
    if len(files) != 1:
        raise RequestInvalid(f"the form must have one field `adapter`, it has {len(files)}")
    return files[0].data

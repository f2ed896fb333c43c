"""What `/docs` says of errors and bodies: taken from the table of answers, so that it stays true."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from adapters.errors import AdapterIncompatible
from registry.errors import (
    AliasNotFound,
    RegistryUnavailable,
    TaskNotFound,
    VersionNotFound,
)
from server.answers import problem
from server.errors import (
    AdapterMisfit,
    AdapterUnavailable,
    BatchTooLarge,
    BodyTooLarge,
    BodyTooSlow,
    ConcurrencyLimited,
    DeadlineExceeded,
    Draining,
    EngineBroken,
    Forbidden,
    ForeignPage,
    ImageInvalid,
    ImageTooLarge,
    ImageTypeUnsupported,
    OutputInvalid,
    QueueFull,
    RateLimited,
    RequestInvalid,
    Unauthorized,
    ValueInvalid,
)
from server.oip.schemas import IndexRequest, InferRequest, LoadRequest
from server.schemas import AliasRequest, BatchRequest, Error

Responses = dict[int | str, dict[str, Any]]

INTERNAL: tuple[Exception, ...] = (RuntimeError(),)
AUTH: tuple[Exception, ...] = (
    Unauthorized(),
    Forbidden("scope manage"),
    Forbidden("task `pets`"),
    ForeignPage("evil.example"),
)
COMMON = (*AUTH, *INTERNAL, ValueInvalid("query.limit", "Input should be greater than or equal to 1"))
RESOLVE = (
    TaskNotFound("pets"),
    VersionNotFound("pets", 9),
    AliasNotFound("pets", "canary"),
    RegistryUnavailable("embedded", ""),
)
SELECT = (*RESOLVE, RequestInvalid("`version` and `alias` exclude each other"))
BODY = (BodyTooLarge(2**25), BodyTooSlow(30))
FORM = (RequestInvalid("the multipart body ends before its last boundary"),)
IMAGE = (
    ImageInvalid("truncated"),
    ImageTooLarge("90000x90000 pixels, at most 64000000"),
    ImageTypeUnsupported("text/html"),
)
LOAD = (
    AdapterUnavailable("pets", 2, ""),
    AdapterMisfit("pets", 2, str(AdapterIncompatible("fingerprint", "1f0c…", "9a41…"))),
    Draining(),
)
LIMITS = (RateLimited("key", "ci", 50, 1), ConcurrencyLimited("task", "pets", 8))
COMPUTE = (
    *LOAD,
    *LIMITS,
    QueueFull(1024, 1),
    DeadlineExceeded(),
    OutputInvalid("pets", 2),
    EngineBroken(""),
)
BATCH = (BatchTooLarge("images", 64),)

FILE = {"schema": {"type": "string", "format": "binary"}}
# what routes read themselves, so FastAPI does not know of it
BODY_MODELS = (BatchRequest, AliasRequest, InferRequest, IndexRequest, LoadRequest)
REF = "#/components/schemas/{model}"
SECURITY = {"key": {"type": "http", "scheme": "bearer", "description": "Needed as soon as any key exists."}}


def problems(*errors: Exception) -> Responses:
    """Document errors as the responses they become, each with the body that a client reads."""
    responses: Responses = {}
    for status, body, headers in map(problem, errors):
        response = responses.setdefault(status, {"model": Error, "description": ""})
        named = (
            response.setdefault("content", {}).setdefault("application/json", {}).setdefault("examples", {})
        )
        named.setdefault(body["error_type"], {"value": body})
        response["description"] = ", ".join(named)
        if "retry-after" in headers:
            seconds = {"description": "Seconds to wait.", "schema": {"type": "integer"}}
            response["headers"] = {"Retry-After": seconds}
    return responses


def body_of(content: dict[str, Any], *, required: bool = True) -> dict[str, Any]:
    """Document a body that the route reads itself."""
    return {"requestBody": {"required": required, "content": content}}


def json_body(model: type[BaseModel]) -> dict[str, Any]:
    """Document a JSON body that is one of BODY_MODELS."""
    return {"application/json": {"schema": {"$ref": REF.format(model=model.__name__)}}}


def file_field(name: str) -> dict[str, Any]:
    """Document a multipart form with one file."""
    schema = {"type": "object", "required": [name], "properties": {name: FILE["schema"]}}
    return {"multipart/form-data": {"schema": schema}}


def document(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document with the key as its security scheme; the open routes need none."""
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        _, bodies = models_json_schema([(model, "validation") for model in BODY_MODELS], ref_template=REF)
        components = schema.setdefault("components", {})
        components.setdefault("schemas", {}).update(bodies["$defs"])
        components["securitySchemes"] = SECURITY
        schema["security"] = [{"key": []}]
        app.openapi_schema = schema
    return app.openapi_schema

"""The HTTP application of a replica. Importing it loads neither torch nor Ray."""

from importlib.metadata import version

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from registry.base import Registry
from server import openapi
from server.answering import json_response
from server.answers import ROOTS, report
from server.auth import Gate
from server.catalog import Catalog
from server.contracts import Engine
from server.errors import ValueInvalid
from server.middleware import Exchanges, exchange_of
from server.parts import Decoder, Fleet, Metrics, Parts, Readiness
from server.quotas import Quotas
from server.routes import (
    aliases,
    audit,
    docs,
    oip,
    oip_infer,
    oip_repository,
    oip_statistics,
    predict,
    predict_many,
    replicas,
    residency,
    service,
    tasks,
    versions,
)
from server.settings import Settings

DESCRIPTION = "Classifies images for many tasks with one frozen vision backbone."
ROUTES = (
    predict,
    predict_many,
    tasks,
    versions,
    aliases,
    residency,
    audit,
    docs,
    replicas,
    service,
    oip_statistics,  # before `oip`: /v2/models/stats is not the model `stats`
    oip_repository,
    oip_infer,
    oip,
)
HTTP_TYPES = {404: "not_found", 405: "method_not_allowed"}


def create_app(
    *,
    settings: Settings,
    engine: Engine,
    registry: Registry,
    catalog: Catalog,
    decoder: Decoder,
    metrics: Metrics,
    readiness: Readiness,
    fleet: Fleet | None = None,
) -> FastAPI:
    """Build the application from its parts. Their life is the caller's: it starts and stops them."""
    app = FastAPI(
        title="ssfserve",
        version=version("ssfserve"),
        description=DESCRIPTION,
        docs_url=None,  # `routes.docs` needs no CDN
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.parts = Parts(
        settings=settings,
        engine=engine,
        registry=registry,
        catalog=catalog,
        decoder=decoder,
        metrics=metrics,
        readiness=readiness,
        gate=Gate(settings, catalog),
        quotas=Quotas(settings, metrics.observe_refused),
        fleet=fleet,
    )
    app.add_middleware(Exchanges, metrics=metrics, access_log=settings.access_log)
    for root in ROOTS:
        app.add_exception_handler(root, answer_error)
    app.add_exception_handler(RequestValidationError, answer_invalid)
    app.add_exception_handler(HTTPException, answer_http)
    for module in ROUTES:
        app.include_router(module.router)
    app.openapi = lambda: openapi.document(app)  # type: ignore[method-assign]
    return app


async def answer_error(request: Request, error: Exception) -> Response:
    """Answer an error of ours by the table."""
    status, body, headers = report(error)
    exchange_of(request).error_type = body["error_type"]
    return json_response(body, status=status, headers=headers)


async def answer_invalid(request: Request, error: Exception) -> Response:
    """Answer FastAPI's findings in the one shape; the first of them suffices."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return await answer_error(request, ValueInvalid(where, first["msg"]))


async def answer_http(request: Request, error: Exception) -> Response:
    """Answer what the router refuses: an unknown path or method."""
    assert isinstance(error, HTTPException)
    kind = HTTP_TYPES.get(error.status_code, "http_error")
    exchange_of(request).error_type = kind
    body = {"error": error.detail, "error_type": kind}
    return json_response(body, status=error.status_code, headers=error.headers)

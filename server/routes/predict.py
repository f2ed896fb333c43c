"""POST /v1/tasks/{task}/predict: one image, one task."""

import time

from fastapi import APIRouter, Request, Response

from server import openapi
from server.access import PREDICT
from server.answering import answer, json_response, server_timing
from server.client import patience, read_body
from server.contracts import Job
from server.errors import ImageTypeUnsupported, RequestInvalid, ValueInvalid
from server.image_types import ImageType, declared_type
from server.middleware import exchange_of
from server.multipart import is_multipart, parse
from server.parts import Parts, parts_of
from server.queries import PredictQuery, parameters, query_of
from server.schemas import Predictions, TaskName

MAX_PARTS = 16
CURL_DEFAULT = "application/x-www-form-urlencoded"  # what curl --data-binary declares of anything
MAX_WAIT = {
    "name": "X-Request-Timeout-Ms",
    "in": "header",
    "description": "Deadline in milliseconds; the server's own if that is sooner.",
    "schema": {"type": "integer", "minimum": 1},
}

DOCUMENTED = openapi.body_of({kind.value: openapi.FILE for kind in ImageType} | openapi.file_field("image"))
DOCUMENTED["parameters"] = [*parameters(PredictQuery), MAX_WAIT]

router = APIRouter(prefix="/v1", tags=["predict"])


@router.post(
    "/tasks/{task}/predict",
    dependencies=[PREDICT],
    response_model=Predictions,
    response_model_exclude_none=True,
    responses=openapi.problems(
        *openapi.COMMON, *openapi.SELECT, *openapi.BODY, *openapi.FORM, *openapi.IMAGE, *openapi.COMPUTE
    ),
    openapi_extra=DOCUMENTED,
)
async def predict(request: Request, task: TaskName) -> Response:
    """Classify one image: the raw file as body, or as the field `image` of a form."""
    parts = parts_of(request)
    exchange = exchange_of(request)
    query = query_of(request, PredictQuery)
    seconds = patience_seconds(request, parts)
    with parts.quotas.key(exchange.caller):
        chosen = await parts.catalog.resolve(task, query.version, query.alias)
        exchange.task, exchange.version = task, chosen.version
        with parts.quotas.task(task):
            data, content_type = await read_image(request, parts)
            received = time.monotonic()
            async with patience(request, seconds):
                image = await parts.decoder.decode(data, content_type)
                decoded = time.monotonic()
                outcome = await parts.engine.predict(Job(chosen, image, received + seconds))
    content = answer(chosen, outcome.logits, top_k=query.top_k, with_logits=query.logits)
    parts.metrics.observe_prediction(task, content["predictions"][0]["probability"], exchange.seconds)
    return json_response(content, headers={"server-timing": server_timing(decoded - received, outcome)})


def patience_seconds(request: Request, parts: Parts) -> float:
    """Return how long the answer may take: what the client asks for, at most what the settings allow.

    Raises:
        ValueInvalid
    """
    limit = parts.settings.request_timeout_ms
    asked = request.headers.get("x-request-timeout-ms")
    if asked is None:
        return limit / 1000
    if not (asked.isascii() and asked.isdigit() and len(asked) < 16 and int(asked) > 0):
        raise ValueInvalid("header.X-Request-Timeout-Ms", "must be a whole number of milliseconds")
    return min(int(asked), limit) / 1000


async def read_image(request: Request, parts: Parts) -> tuple[bytes, str | None]:
    """Return the image's bytes and declared type, from a raw body or a form; a wrong type before the body.

    Raises:
        ImageTypeUnsupported, BodyTooLarge, BodyTooSlow, RequestInvalid, ClientGone
    """
    settings = parts.settings
    content_type = request.headers.get("content-type")
    form = is_multipart(content_type)
    if not form and (content_type := declared_type(content_type)) == CURL_DEFAULT:
        content_type = None
    if not form and content_type and content_type not in set(ImageType):
        raise ImageTypeUnsupported(content_type)
    body = await read_body(request, limit=settings.max_body_bytes, timeout_ms=settings.body_timeout_ms)
    if not form or content_type is None:
        return body, content_type
    images = [part for part in parse(body, content_type, max_parts=MAX_PARTS) if part.name == "image"]
    if len(images) != 1:
        raise RequestInvalid(f"the form must have one field `image`, it has {len(images)}")
    return images[0].data, images[0].content_type

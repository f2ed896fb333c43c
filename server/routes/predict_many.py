"""POST /v1/predict: several images, several tasks, one row per pair."""

import time

from fastapi import APIRouter, Request, Response

from server import openapi
from server.access import PREDICT
from server.answering import json_response
from server.batch_body import read_batch
from server.client import patience
from server.middleware import exchange_of
from server.parts import parts_of
from server.queries import Shown, parameters, query_of
from server.routes.predict import MAX_WAIT, patience_seconds
from server.rows import Rows
from server.schemas import BatchRequest, Row, RowError

FORM = {
    "type": "object",
    "required": ["images", "tasks"],
    "properties": {
        "images": {"type": "array", "items": openapi.FILE["schema"]},
        "tasks": {"type": "array", "items": {"type": "string", "examples": ["pets@canary"]}},
    },
}
DOCUMENTED = openapi.body_of(openapi.json_body(BatchRequest) | {"multipart/form-data": {"schema": FORM}})
DOCUMENTED["parameters"] = [*parameters(Shown), MAX_WAIT]

router = APIRouter(prefix="/v1", tags=["predict"])


@router.post(
    "/predict",
    dependencies=[PREDICT],
    response_model=list[Row | RowError],
    responses=openapi.problems(
        *openapi.COMMON, *openapi.BODY, *openapi.FORM, *openapi.BATCH, *openapi.LIMITS
    ),
    openapi_extra=DOCUMENTED,
)
async def predict_many(request: Request) -> Response:
    """Classify images by tasks: each image is decoded once, and the rows share forwards.

    A form has fields `images` and `tasks`, each as often as wanted; every image meets every task, images
    first. A row that fails says so in its place, with the status it would have had alone; the others are
    answered. A limit of the key refuses the whole request, one of a task the task's rows. `task@alias` and
    `task:version` choose a version.
    """
    parts, exchange = parts_of(request), exchange_of(request)
    query = query_of(request, Shown)
    seconds = patience_seconds(request, parts)
    parts.quotas.refuse_spent(exchange.caller)
    batch = await read_batch(request, parts.settings)
    rows = Rows(parts, exchange, query, time.monotonic() + seconds)
    with parts.quotas.key(exchange.caller, len(batch.pairs)):
        async with patience(request, None):  # each row keeps the deadline itself
            return json_response(await rows.answer(batch))

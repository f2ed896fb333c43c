"""JSON bodies, read within bounds and into a model."""

import asyncio
from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from server.client import read_body
from server.errors import RequestInvalid, ValueInvalid
from server.settings import Settings

OFF_LOOP_BYTES = 2**18  # parsing more than this takes milliseconds: other requests need not wait for it

M = TypeVar("M", bound=BaseModel)


async def read_json(request: Request, model: type[M], settings: Settings) -> M:
    """Return the body as a model.

    Raises:
        RequestInvalid: If it is not JSON.
        ValueInvalid: If it is not what the model says; the message names the field.
        BodyTooLarge, BodyTooSlow, ClientGone
    """
    body = await read_body(request, limit=settings.max_body_bytes, timeout_ms=settings.body_timeout_ms)
    return await parse_json(body, model)


async def read_optional_json(request: Request, model: type[M], settings: Settings) -> M:
    """As `read_json`; an empty body is an empty object."""
    body = await read_body(request, limit=settings.max_body_bytes, timeout_ms=settings.body_timeout_ms)
    return await parse_json(body or b"{}", model)


async def parse_json(body: bytes, model: type[M]) -> M:
    """Return JSON as a model, parsed off the event loop where that takes long.

    Raises:
        RequestInvalid, ValueInvalid: As `read_json`.
    """
    if len(body) > OFF_LOOP_BYTES:
        return await asyncio.to_thread(_parse, model, body)
    return _parse(model, body)


def _parse(model: type[M], body: bytes) -> M:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        if first["type"] == "json_invalid":
            raise RequestInvalid(f"the body must be JSON: {first['msg']}") from None
        where = ".".join(map(str, ("body", *first["loc"])))
        raise ValueInvalid(where, first["msg"]) from None

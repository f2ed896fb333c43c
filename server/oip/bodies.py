"""The body of an inference: JSON, then maybe the bytes of tensors, maybe compressed as a whole."""

import asyncio
import zlib
from dataclasses import dataclass

from fastapi import Request

from server.bodies import parse_json
from server.client import read_body
from server.errors import BodyTooLarge, RequestInvalid
from server.oip.schemas import InferRequest
from server.settings import Settings

JSON_LENGTH = "inference-header-content-length"
WINDOW_BITS = {"gzip": 31, "deflate": 15}  # as zlib names the two headers


@dataclass(frozen=True, slots=True)
class Call:
    """What was sent: the JSON, and the bytes behind it."""

    json: InferRequest
    binary: memoryview


async def read_call(request: Request, settings: Settings) -> Call:
    """Read the body of an inference.

    Raises:
        RequestInvalid, ValueInvalid, BodyTooLarge, BodyTooSlow, ClientGone
    """
    body = await read_body(request, limit=settings.max_body_bytes, timeout_ms=settings.body_timeout_ms)
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        body = await asyncio.to_thread(inflate, body, encoding, settings.max_body_bytes)
    length = _json_length(request, len(body))
    return Call(await parse_json(body[:length], InferRequest), memoryview(body)[length:])


def inflate(body: bytes, encoding: str, limit: int) -> bytes:
    """Decompress a body, to no more than `limit` bytes.

    Raises:
        RequestInvalid, BodyTooLarge
    """
    if encoding not in WINDOW_BITS:
        raise RequestInvalid(f"Content-Encoding may be gzip or deflate, not {encoding[:40]!r}")
    inflater = zlib.decompressobj(WINDOW_BITS[encoding])
    try:
        inflated = inflater.decompress(body, limit + 1)
    except zlib.error:
        raise RequestInvalid(f"the body is not {encoding}") from None
    if len(inflated) > limit:
        raise BodyTooLarge(limit)
    if not inflater.eof or inflater.unused_data:
        raise RequestInvalid(f"the body does not end where its {encoding} data does")
    return inflated


def _json_length(request: Request, size: int) -> int:
    """Return how many bytes of the body are JSON: all of them, where no header says else."""
    told = request.headers.get(JSON_LENGTH)
    if told is None:
        return size
    if not (told.isascii() and told.isdigit() and len(told) < 16 and int(told) <= size):
        raise RequestInvalid("Inference-Header-Content-Length must be at most the length of the body")
    return int(told)

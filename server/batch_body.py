"""The body of `/v1/predict`: a form of files and task names, or JSON with base64."""

import asyncio
import binascii
from collections.abc import Sequence
from dataclasses import dataclass

from fastapi import Request

from server.bodies import OFF_LOOP_BYTES, read_json
from server.client import read_body
from server.errors import BatchTooLarge, ImageInvalid, RequestInvalid, ValueInvalid
from server.multipart import is_multipart, parse
from server.schemas import BatchRequest
from server.settings import Settings


@dataclass(frozen=True, slots=True)
class Upload:
    """An image as it came: a file, or base64 that is yet to be decoded."""

    data: bytes = b""
    base64: str | None = None
    content_type: str | None = None

    async def read(self) -> bytes:
        """Return the file.

        Raises:
            ImageInvalid: If it is not base64.
        """
        if self.base64 is None:
            return self.data
        if len(self.base64) > OFF_LOOP_BYTES:
            return await asyncio.to_thread(_from_base64, self.base64)
        return _from_base64(self.base64)


@dataclass(frozen=True, slots=True)
class Batch:
    """Images, and the pairs (index of image, task as named) to answer."""

    uploads: tuple[Upload, ...]
    pairs: tuple[tuple[int, str], ...]


async def read_batch(request: Request, settings: Settings) -> Batch:
    """Read the body in either form and check its counts.

    Raises:
        RequestInvalid, ValueInvalid, BatchTooLarge, BodyTooLarge, BodyTooSlow, ClientGone
    """
    content_type = request.headers.get("content-type", "")
    if is_multipart(content_type):
        return await _read_form(request, content_type, settings)
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "application/json":
        return _from_json(await read_json(request, BatchRequest, settings), settings)
    raise RequestInvalid("the body must be multipart/form-data or application/json")


async def _read_form(request: Request, content_type: str, settings: Settings) -> Batch:
    body = await read_body(request, limit=settings.max_body_bytes, timeout_ms=settings.body_timeout_ms)
    most = settings.max_images_per_request + settings.max_rows_per_request
    fields = parse(body, content_type, max_parts=most)
    for field in fields:
        if field.name not in {"images", "tasks"}:
            raise ValueInvalid("form", f"unknown field {field.name[:80]!r}; known are `images` and `tasks`")
    uploads = [
        Upload(data=field.data, content_type=field.content_type) for field in fields if field.name == "images"
    ]
    tasks = [field.data.decode("utf-8", "replace") for field in fields if field.name == "tasks"]
    if not uploads or not tasks:
        raise RequestInvalid("the form must have at least one field `images` and one field `tasks`")
    return _bounded(uploads, _product(len(uploads), tasks, settings), settings)


def _from_json(body: BatchRequest, settings: Settings) -> Batch:
    uploads = [Upload(base64=text) for text in body.images]
    if body.rows is None:
        return _bounded(uploads, _product(len(uploads), body.tasks or [], settings), settings)
    for row in body.rows:
        if row.image >= len(uploads):
            raise ValueInvalid("body.rows", f"image {row.image} does not exist: there are {len(uploads)}")
    return _bounded(uploads, [(row.image, row.task) for row in body.rows], settings)


def _product(images: int, tasks: Sequence[str], settings: Settings) -> list[tuple[int, str]]:
    if images * len(tasks) > settings.max_rows_per_request:
        raise BatchTooLarge("rows", settings.max_rows_per_request)
    return [(index, task) for index in range(images) for task in tasks]


def _bounded(uploads: Sequence[Upload], pairs: Sequence[tuple[int, str]], settings: Settings) -> Batch:
    if len(uploads) > settings.max_images_per_request:
        raise BatchTooLarge("images", settings.max_images_per_request)
    if len(pairs) > settings.max_rows_per_request:
        raise BatchTooLarge("rows", settings.max_rows_per_request)
    return Batch(tuple(uploads), tuple(pairs))


def _from_base64(text: str) -> bytes:
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError as error:
        raise ImageInvalid(f"not base64: {error}") from None

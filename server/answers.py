"""What each error of ours means in HTTP: the only table that knows both."""

import logging
import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import NamedTuple

from adapters import errors as adapters
from adapters.errors import AdapterError
from registry import errors as registry
from registry.errors import RegistryError
from server import errors as server
from server.errors import ServerError

logger = logging.getLogger(__name__)

ROOTS: tuple[type[Exception], ...] = (AdapterError, RegistryError, ServerError)


class Answer(NamedTuple):
    """How an error is answered. Above 499 the client reads `message`, never the error's own text."""

    status: int
    error_type: str
    message: str | None = None
    retry: bool = False


INTERNAL = Answer(500, "internal", "internal error; the log has the story under this request's id")

ANSWERS: Mapping[type[Exception], Answer] = {
    adapters.AdapterFileInvalid: Answer(422, "adapter_file_invalid"),
    adapters.ManifestInvalid: Answer(422, "manifest_invalid"),
    adapters.AdapterIncompatible: Answer(422, "adapter_incompatible"),
    adapters.ProbeMismatch: Answer(422, "probe_mismatch"),
    adapters.NotMergeable: INTERNAL,
    adapters.CheckpointInvalid: INTERNAL,
    adapters.BookmarkInvalid: INTERNAL,
    adapters.DataInvalid: INTERNAL,
    registry.InvalidName: Answer(422, "invalid_name"),
    registry.TaskNotFound: Answer(404, "task_not_found"),
    registry.VersionNotFound: Answer(404, "version_not_found"),
    registry.AliasNotFound: Answer(404, "alias_not_found"),
    registry.BlobNotFound: Answer(404, "adapter_bytes_not_found"),
    registry.BlobCorrupt: Answer(500, "adapter_bytes_corrupt", "the stored adapter is damaged"),
    registry.AliasConflict: Answer(409, "alias_conflict"),
    registry.VersionInUse: Answer(409, "version_in_use"),
    registry.KeyConflict: Answer(409, "key_conflict"),
    registry.KeyNotFound: Answer(404, "key_not_found"),
    registry.RestoreConflict: INTERNAL,
    registry.CursorInvalid: INTERNAL,
    registry.RegistryUrlInvalid: INTERNAL,
    registry.RegistryUnavailable: Answer(
        503, "registry_unavailable", "the registry does not answer; retry", retry=True
    ),
    server.QueueFull: Answer(429, "queue_full", retry=True),
    server.RateLimited: Answer(429, "rate_limited", retry=True),
    server.ConcurrencyLimited: Answer(429, "concurrency_limited", retry=True),
    server.DeadlineExceeded: Answer(
        504, "deadline_exceeded", "the deadline passed before the answer was ready"
    ),
    server.NotConfirmed: Answer(
        504,
        "not_confirmed",
        "the alias has moved, but not every replica has confirmed it in time: GET /v1/replicas tells which; "
        "repeat the call to wait on",
    ),
    server.Draining: Answer(503, "draining", "the server is shutting down; retry", retry=True),
    server.NotReady: Answer(503, "not_ready", "the server is starting; retry", retry=True),
    server.AdapterUnavailable: Answer(
        503, "adapter_unavailable", "the adapter cannot be loaded now; retry", retry=True
    ),
    server.AdapterMisfit: Answer(409, "adapter_misfit"),
    server.PinLimit: Answer(409, "pin_limit"),
    server.EngineBroken: Answer(500, "engine_broken", "the engine cannot answer"),
    server.OutputInvalid: Answer(500, "output_invalid", "the adapter gave logits that are not finite"),
    server.ComputeFailed: Answer(500, "compute_failed", "the forward failed for this image and adapter"),
    server.SettingsInvalid: INTERNAL,
    server.ImageInvalid: Answer(422, "image_invalid"),
    server.ImageTooLarge: Answer(413, "image_too_large"),
    server.ImageTypeUnsupported: Answer(415, "image_type_unsupported"),
    server.BodyTooLarge: Answer(413, "body_too_large"),
    server.BodyTooSlow: Answer(408, "body_too_slow"),
    server.BatchTooLarge: Answer(413, "batch_too_large"),
    server.RequestInvalid: Answer(400, "request_invalid"),
    server.ValueInvalid: Answer(422, "value_invalid"),
    server.Unauthorized: Answer(401, "unauthorized"),
    server.Forbidden: Answer(403, "forbidden"),
    server.ForeignPage: Answer(403, "foreign_page"),
}


class Problem(NamedTuple):
    """An error as the client reads it: `body` is the one JSON shape of every error."""

    status: int
    body: dict[str, str]
    headers: dict[str, str]


def answer_for(error: BaseException) -> Answer:
    """Look up the error's class, then its bases: a subclass answers as its parent does."""
    return next((ANSWERS[cls] for cls in type(error).__mro__ if cls in ANSWERS), INTERNAL)


def problem(error: BaseException) -> Problem:
    """Turn any exception into what its client may know of it."""
    answer = answer_for(error)
    message = str(error) if answer.status < 500 else answer.message or HTTPStatus(answer.status).phrase
    headers = {}
    if answer.retry:
        headers["retry-after"] = str(max(1, math.ceil(getattr(error, "retry_after_seconds", 1.0))))
    if answer.status == HTTPStatus.UNAUTHORIZED:
        headers["www-authenticate"] = "Bearer"
    return Problem(answer.status, {"error": message, "error_type": answer.error_type}, headers)


def report(error: Exception) -> Problem:
    """As `problem`, and tell the log what a 5xx keeps from the client."""
    found = problem(error)
    if found.status == 500:
        logger.error("request failed: %s", error, exc_info=error)
    elif found.status > 500:
        logger.warning("request failed: %s", error)
    return found

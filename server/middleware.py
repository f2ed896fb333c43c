"""What surrounds every request: its id, its line in the log, its metrics, and an answer whatever happens.

Plain ASGI: Starlette's BaseHTTPMiddleware would add a task and two streams to each request.
"""

import json
import logging
import re
import secrets
import time
from dataclasses import dataclass, field
from typing import Literal

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from registry.models import Actor
from server import logs
from server.answers import INTERNAL, problem
from server.auth import ANYBODY, Caller
from server.client import ClientGone
from server.parts import Metrics
from server.response_headers import completed

CLIENT_GONE = 499  # as nginx logs it; nobody receives it
EXCHANGE = "ssfserve.exchange"
SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")

logger = logging.getLogger("server.access")


@dataclass(slots=True)
class Exchange:
    """A request while it is answered: who asked, and what the routes tell the log."""

    request_id: str
    started: float = field(default_factory=time.perf_counter)
    status: int = 0
    caller: Caller = ANYBODY
    task: str | None = None
    version: int | None = None
    error_type: str | None = None

    @property
    def actor(self) -> Actor:
        """Who makes a change by this request, for the audit log."""
        kind: Literal["key", "anybody"] = "anybody" if self.caller.name is None else "key"
        caller = self.caller
        return Actor(kind=kind, name=caller.name, id=caller.key_id, request_id=self.request_id)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started


def exchange_of(request: Request) -> Exchange:
    exchange: Exchange = request.scope[EXCHANGE]
    return exchange


class Exchanges:
    def __init__(self, app: ASGIApp, *, metrics: Metrics, access_log: bool) -> None:
        self._app = app
        self._metrics = metrics
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = scope[EXCHANGE] = Exchange(_request_id(scope))
        token = logs.request_id.set(exchange.request_id)
        try:
            await self._answer(exchange, scope, receive, send)
        finally:
            self._tell(exchange, scope)
            logs.request_id.reset(token)

    async def _answer(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                identity = (b"x-request-id", exchange.request_id.encode())
                headers = completed([*message.get("headers", ()), identity])
                message = {**message, "headers": headers}
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except ClientGone:
            exchange.status = CLIENT_GONE
        except Exception as error:
            logger.exception("unhandled error")
            exchange.error_type = INTERNAL.error_type
            if exchange.status:  # the head of an answer is out: all that is left is to cut it off
                raise
            await _send_problem(error, send_with_id)

    def _tell(self, exchange: Exchange, scope: Scope) -> None:
        status = exchange.status or CLIENT_GONE  # no answer and no error: the server cancelled the request
        seconds = exchange.seconds
        self._metrics.observe_request(_route(scope), scope["method"], status, seconds)
        if exchange.task is not None and status >= 400:  # only predictions of one task name it
            self._metrics.observe_failure(exchange.task, status)
        if self._access_log:
            logger.info("request", extra={"fields": _fields(exchange, scope, status, seconds)})


def _request_id(scope: Scope) -> str:
    """Take the client's id if it is short and harmless, else make one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and SANE_ID.fullmatch(text := value.decode("latin-1")):
            return str(text)
    return secrets.token_hex(8)


def _route(scope: Scope) -> str:
    return getattr(scope.get("route"), "path", "unmatched")


def _fields(exchange: Exchange, scope: Scope, status: int, seconds: float) -> dict[str, object]:
    fields = {
        "request_id": exchange.request_id,
        "method": scope["method"],
        "path": scope["path"],
        "status": status,
        "ms": round(seconds * 1000, 2),
        "task": exchange.task or scope.get("path_params", {}).get("task"),
        "version": exchange.version,
        "key": exchange.caller.name,
        "error_type": exchange.error_type,
    }
    return {name: value for name, value in fields.items() if value is not None}


async def _send_problem(error: Exception, send: Send) -> None:
    status, body, headers = problem(error)
    content = json.dumps(body).encode()
    headers = {"content-type": "application/json", "content-length": str(len(content)), **headers}
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": content})

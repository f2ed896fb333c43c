"""The guard in front of routes. It runs before any parameter or body is read."""

from typing import Any

from fastapi import Depends, Request

from server.auth import Scope
from server.middleware import exchange_of
from server.parts import parts_of


def needs(*any_of: Scope) -> Any:
    """Return a dependency that lets a caller pass whose key has one of the scopes and covers the task."""
    scopes = frozenset(any_of)

    async def admit(request: Request) -> None:
        sent = request.headers
        caller = parts_of(request).gate.admit(
            sent.get("authorization"), host=sent.get("host"), origin=sent.get("origin")
        )
        exchange_of(request).caller = caller
        caller.check_scopes(scopes)
        if (task := request.path_params.get("task")) is not None:
            caller.check_task(task)

    return Depends(admit)


PREDICT = needs("predict")
MANAGE = needs("manage")
ANY = needs("predict", "manage")

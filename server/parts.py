"""What the HTTP layer is made of, and what it asks of parts that others implement."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

import numpy as np
from fastapi import Request
from numpy.typing import NDArray

from registry.base import Registry
from server.auth import Gate
from server.catalog import Catalog
from server.contracts import Engine, Image
from server.events import Refused
from server.oip.statistics import Statistics
from server.quotas import Quotas
from server.settings import Settings


class Decoder(Protocol):
    async def decode(self, data: bytes, content_type: str | None) -> Image:
        """Turn a file into what the backbone sees, off the event loop.

        Raises:
            ImageInvalid, ImageTooLarge, ImageTypeUnsupported
        """
        ...

    async def fit(self, pixels: NDArray[np.uint8]) -> Image:
        """Turn RGB pixels [height, width, 3] into what the backbone sees, as if decoded from a file.

        Raises:
            ImageTooLarge
        """
        ...


class Metrics(Protocol):
    """Called on the event loop; each must be quick and must not raise."""

    def observe_request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count a request. `route` is the path's template, so that its values are few."""
        ...

    def observe_prediction(self, task: str, top1: float, seconds: float) -> None:
        """Count an answer for a task: the highest probability, and how long it took."""
        ...

    def observe_failure(self, task: str, status: int) -> None:
        """Count a prediction that failed for a task that exists, by the status it was answered with."""
        ...

    def observe_refused(self, reason: Refused, images: int) -> None:
        """Count images that a limit of a key or task refused."""
        ...

    def render(self) -> tuple[bytes, str]:
        """Return the exposition and its content type."""
        ...


class Fleet(Protocol):
    """All replicas of this server, this one among them."""

    async def exposition(self) -> tuple[bytes, str]:
        """Return the metrics of all replicas, told apart by a label, and the content type."""
        ...


class Phase(StrEnum):
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


@dataclass(slots=True)
class Readiness:
    """Whether this replica wants traffic. Whoever starts and stops the replica sets it."""

    phase: Phase = Phase.STARTING


@dataclass(frozen=True, slots=True)
class Parts:
    settings: Settings
    engine: Engine
    registry: Registry
    catalog: Catalog
    decoder: Decoder
    metrics: Metrics
    readiness: Readiness
    gate: Gate
    quotas: Quotas
    fleet: Fleet | None = None
    statistics: Statistics = field(default_factory=Statistics)


def parts_of(request: Request) -> Parts:
    parts: Parts = request.app.state.parts
    return parts

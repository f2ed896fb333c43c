"""What an engine tells who watches it; the server turns these into metrics."""

from collections.abc import Sequence
from enum import StrEnum
from typing import Protocol

from server.contracts import Tier


class Refused(StrEnum):
    """Why an image was not accepted: the last four by `server.quotas`, the others by the engine."""

    QUEUE_FULL = "queue_full"
    TASK_QUEUE_FULL = "task_queue_full"
    DRAINING = "draining"
    ADAPTER_UNAVAILABLE = "adapter_unavailable"
    ADAPTER_MISFIT = "adapter_misfit"
    BROKEN = "broken"
    KEY_RATE = "key_rate"
    KEY_CONCURRENT = "key_concurrent"
    TASK_RATE = "task_rate"
    TASK_CONCURRENT = "task_concurrent"


class Dropped(StrEnum):
    """Why an accepted job got no answer."""

    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    ADAPTER_UNAVAILABLE = "adapter_unavailable"
    ADAPTER_MISFIT = "adapter_misfit"
    OUTPUT_INVALID = "output_invalid"
    COMPUTE_FAILED = "compute_failed"
    BROKEN = "broken"


class EngineEvents(Protocol):
    """Called on the engine's event loop; each must be quick and must not raise."""

    def batch_done(
        self, size: int, distinct_tasks: int, queue_seconds: Sequence[float], compute_seconds: float
    ) -> None: ...

    def refused(self, reason: Refused) -> None: ...

    def dropped(self, reason: Dropped) -> None: ...

    def looked_up(self, tier: Tier, hit: bool) -> None:
        """Tell of a look for an adapter: each job looks on the device, each load in the tiers behind it."""
        ...

    def loaded(self, tier: Tier, seconds: float) -> None:
        """Tell of an adapter that came to the device from `tier`, waiting for a slot included."""
        ...

    def load_failed(self) -> None: ...

    def evicted(self, tier: Tier, idle_seconds: float) -> None:
        """Tell of an adapter that left a tier for want of room, and how long nobody had used it there."""
        ...


class NoEvents:
    """Watches nothing."""

    def batch_done(
        self, size: int, distinct_tasks: int, queue_seconds: Sequence[float], compute_seconds: float
    ) -> None:
        pass

    def refused(self, reason: Refused) -> None:
        pass

    def dropped(self, reason: Dropped) -> None:
        pass

    def looked_up(self, tier: Tier, hit: bool) -> None:
        pass

    def loaded(self, tier: Tier, seconds: float) -> None:
        pass

    def load_failed(self) -> None:
        pass

    def evicted(self, tier: Tier, idle_seconds: float) -> None:
        pass

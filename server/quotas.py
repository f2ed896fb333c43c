"""How many images a key, and a task, may have answered: by second, and at a time. Counted in this replica.

A shared count would cost each request a round trip to Redis, and predictions would end with it; so every
replica allows the whole limit. `docs/access.md` tells what that means.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from server.auth import Caller
from server.errors import ConcurrencyLimited, RateLimited
from server.events import Refused
from server.settings import Settings

SWEEP_AT = 1024

Observe = Callable[[Refused, int], None]  # the reason, and how many images


@dataclass(frozen=True, slots=True)
class Limit:
    """What one key or task may use; 0 is no limit. `burst_seconds` of the rate may come at once."""

    images_per_second: float = 0.0
    max_concurrent: int = 0
    burst_seconds: float = 1.0

    @property
    def is_none(self) -> bool:
        return not self.images_per_second and not self.max_concurrent

    @property
    def burst(self) -> float:
        """Images that may come at once; never less than one, or nothing would ever be let in."""
        return max(1.0, self.images_per_second * self.burst_seconds)


@dataclass(slots=True)
class Meter:
    """What one key or task has used: a token bucket, and the images under way.

    More images than the bucket ever holds are let in when it is full, and leave a debt: so over any time t no
    more than `burst + rate * t` are let in, and the rest of one request.
    """

    limit: Limit
    tokens: float
    at: float
    in_flight: int = 0

    @classmethod
    def full(cls, limit: Limit, now: float) -> "Meter":
        return cls(limit, limit.burst, now)

    def seconds_until(self, images: int, now: float) -> float:
        """Return when the rate lets so many images in, 0 for now."""
        if not self.limit.images_per_second:
            return 0.0
        self._refill(now)
        lacking = min(float(images), self.limit.burst) - self.tokens
        return max(0.0, lacking / self.limit.images_per_second)

    def has_room(self, images: int) -> bool:
        """Tell whether so many may be under way; more than ever fit are let in alone."""
        most = self.limit.max_concurrent
        return not most or self.in_flight + min(images, most) <= most

    def take(self, images: int) -> None:
        if self.limit.images_per_second:
            self.tokens -= images
        self.in_flight += images

    def is_at_rest(self, now: float) -> bool:
        """Tell whether a new meter would say the same."""
        self._refill(now)
        return not self.in_flight and self.tokens >= self.limit.burst

    def _refill(self, now: float) -> None:
        gained = (now - self.at) * self.limit.images_per_second
        self.tokens = min(self.limit.burst, self.tokens + gained)
        self.at = now


class Meters:
    """The meters of all keys, or of all tasks. Those at rest are forgotten, so only what is used is kept."""

    def __init__(
        self, kind: str, rate: Refused, concurrent: Refused, observe: Observe, clock: Callable[[], float]
    ) -> None:
        self._kind = kind
        self._rate, self._concurrent = rate, concurrent
        self._observe = observe
        self._clock = clock
        self._meters: dict[str, Meter] = {}
        self._sweep_at = SWEEP_AT

    def __len__(self) -> int:
        return len(self._meters)

    @contextmanager
    def hold(self, name: str, images: int, limit: Limit) -> Iterator[None]:
        """Count images as asked for, and as under way while the block runs.

        Raises:
            RateLimited, ConcurrencyLimited
        """
        if limit.is_none:
            yield
            return
        meter = self.check(name, images, limit)
        meter.take(images)
        try:
            yield
        finally:
            meter.in_flight -= images

    def check(self, name: str, images: int, limit: Limit) -> Meter:
        """Return the meter if it lets so many images in; nothing is taken.

        Raises:
            RateLimited, ConcurrencyLimited
        """
        now = self._clock()
        meter = self._meter(name, limit, now)
        if seconds := meter.seconds_until(images, now):
            self._observe(self._rate, images)
            raise RateLimited(self._kind, name, limit.images_per_second, seconds)
        if not meter.has_room(images):
            self._observe(self._concurrent, images)
            raise ConcurrencyLimited(self._kind, name, limit.max_concurrent)
        return meter

    def _meter(self, name: str, limit: Limit, now: float) -> Meter:
        meter = self._meters.get(name)
        if meter is None:
            self._sweep(now)
            meter = self._meters[name] = Meter.full(limit, now)
        elif meter.limit != limit:  # a key that was made anew: what is under way still counts
            meter.limit = limit
            meter.tokens = min(meter.tokens, limit.burst)
        return meter

    def _sweep(self, now: float) -> None:
        if len(self._meters) < self._sweep_at:
            return
        self._meters = {name: meter for name, meter in self._meters.items() if not meter.is_at_rest(now)}
        self._sweep_at = max(SWEEP_AT, 2 * len(self._meters))


class Quotas:
    """The limits of the settings and of the keys. All methods run on the event loop.

    Args:
        settings: The limits of keys that have none of their own, and of tasks.
        observe: Told why images were refused, and how many.
        clock: Seconds that never go back.
    """

    def __init__(
        self, settings: Settings, observe: Observe, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        burst = settings.rate_burst_ms / 1000
        self._key_limit = Limit(settings.key_images_per_second, settings.key_max_concurrent, burst)
        self._task_limit = Limit(settings.task_images_per_second, settings.task_max_concurrent, burst)
        self._keys = Meters("key", Refused.KEY_RATE, Refused.KEY_CONCURRENT, observe, clock)
        self._tasks = Meters("task", Refused.TASK_RATE, Refused.TASK_CONCURRENT, observe, clock)

    @contextmanager
    def key(self, caller: Caller, images: int = 1) -> Iterator[None]:
        """Count a caller's images while the block runs. Without keys there is nobody to count for.

        Raises:
            RateLimited, ConcurrencyLimited
        """
        if caller.name is None:
            yield
            return
        with self._keys.hold(caller.name, images, self._limit_of(caller)):
            yield

    @contextmanager
    def task(self, task: str, images: int = 1) -> Iterator[None]:
        """Count the images of a task, which must exist, while the block runs.

        Raises:
            RateLimited, ConcurrencyLimited
        """
        with self._tasks.hold(task, images, self._task_limit):
            yield

    def refuse_spent(self, caller: Caller) -> None:
        """Pass if the caller may have an image answered: asked before a body that tells how many.

        Raises:
            RateLimited, ConcurrencyLimited
        """
        limit = self._limit_of(caller)
        if caller.name is not None and not limit.is_none:
            self._keys.check(caller.name, 1, limit)

    def _limit_of(self, caller: Caller) -> Limit:
        own, rate, most = self._key_limit, caller.images_per_second, caller.max_concurrent
        return Limit(
            own.images_per_second if rate is None else rate,
            own.max_concurrent if most is None else most,
            own.burst_seconds,
        )

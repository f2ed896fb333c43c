"""The metrics of a replica. Everything else reports facts here and knows nothing of Prometheus."""

import platform
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Self

from prometheus_client import CollectorRegistry, ProcessCollector

from server import metric_families as families
from server.contracts import Tier
from server.events import Dropped, Refused
from server.exposition import CONTENT_TYPE, exposition
from server.metric_families import size_buckets, time_buckets
from server.settings import Settings
from server.state_metrics import StateMetrics, WatchedCatalog, WatchedEngine
from server.task_metrics import TaskMetrics

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})
OTHER_METHOD = "other"  # a client may send any word
LONGEST_IDLE = 86_400.0
LONGEST_REGISTRY = 30.0


class Metrics:
    """Counts and measures; everything but the gauges, which `watch` adds. Is the EngineEvents of the engine.

    All methods run on the event loop, are quick, and raise nothing.

    Args:
        registry: Where the metrics are registered: one per process, a new one per test.
        max_batch: Largest batch.
        longest_seconds: Longest time for an answer.
        named_tasks: Tasks that have series of their own.
    """

    def __init__(
        self, registry: CollectorRegistry, *, max_batch: int, longest_seconds: float, named_tasks: int
    ) -> None:
        self._registry = registry
        times, sizes = time_buckets(longest_seconds), size_buckets(max_batch)
        self._requests = families.REQUESTS.counter(registry)
        self._request_seconds = families.REQUEST_SECONDS.histogram(registry, times)
        self._decode_seconds = families.DECODE_SECONDS.histogram(registry, times)
        self._queue_seconds = families.QUEUE_SECONDS.histogram(registry, times)
        self._compute_seconds = families.COMPUTE_SECONDS.histogram(registry, times)
        self._batch_size = families.BATCH_SIZE.histogram(registry, sizes)
        self._batch_tasks = families.BATCH_TASKS.histogram(registry, sizes)
        self._refused = families.REFUSED.counter(registry)
        self._dropped = families.DROPPED.counter(registry)
        self._lookups = families.LOOKUPS.counter(registry)
        self._load_seconds = families.LOAD_SECONDS.histogram(registry, times)
        self._load_failures = families.LOAD_FAILURES.counter(registry)
        self._eviction_idle = families.EVICTION_IDLE.histogram(registry, time_buckets(LONGEST_IDLE, 1.0))
        registry_times = time_buckets(LONGEST_REGISTRY)
        self._registry_seconds = families.REGISTRY_SECONDS.histogram(registry, registry_times)
        self._registry_errors = families.REGISTRY_ERRORS.counter(registry)
        self._tasks = TaskMetrics(named=named_tasks, bounds=times)
        registry.register(self._tasks)
        self._tell_build()
        ProcessCollector(registry=registry)

    @classmethod
    def create(cls, settings: Settings) -> Self:
        """Return metrics with a registry of their own and buckets that follow from the settings."""
        return cls(
            CollectorRegistry(),
            max_batch=settings.max_batch,
            longest_seconds=settings.request_timeout_ms / 1000,
            named_tasks=settings.metrics_tasks,
        )

    def watch(
        self,
        engine: WatchedEngine,
        catalog: WatchedCatalog,
        device_memory: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        """Add the gauges; call it once. `device_memory` returns bytes by state, `used` and `total`."""
        self._registry.register(StateMetrics(engine, catalog, device_memory))

    def observe_request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count a request. `route` is the path's template, so that its values are few."""
        known = method if method in METHODS else OTHER_METHOD
        self._requests.labels(route, known, status).inc()
        self._request_seconds.labels(route).observe(seconds)

    def observe_prediction(self, task: str, top1: float, seconds: float) -> None:
        """Count an answer for a task: the highest probability, and how long it took."""
        self._tasks.answered(task, top1, seconds)

    def observe_failure(self, task: str, status: int) -> None:
        """Count a prediction that failed, for a task that exists, by the status it was answered with."""
        self._tasks.failed(task, "server" if status >= 500 else "client")

    def observe_refused(self, reason: Refused, images: int) -> None:
        """Count images that a limit of a key or task refused."""
        self._refused.labels(reason).inc(images)

    def observe_decode(self, seconds: float) -> None:
        """Count an image that was decoded, without its wait for a thread."""
        self._decode_seconds.observe(seconds)

    def observe_registry(self, operation: str, seconds: float, error: str | None) -> None:
        """Count an operation of the registry, and the name of the error it ended with."""
        self._registry_seconds.labels(operation).observe(seconds)
        if error is not None:
            self._registry_errors.labels(operation, error).inc()

    def batch_done(
        self, size: int, distinct_tasks: int, queue_seconds: Sequence[float], compute_seconds: float
    ) -> None:
        self._batch_size.observe(size)
        self._batch_tasks.observe(distinct_tasks)
        self._compute_seconds.observe(compute_seconds)
        for seconds in queue_seconds:
            self._queue_seconds.observe(seconds)

    def refused(self, reason: Refused) -> None:
        self._refused.labels(reason).inc()

    def dropped(self, reason: Dropped) -> None:
        self._dropped.labels(reason).inc()

    def looked_up(self, tier: Tier, hit: bool) -> None:
        self._lookups.labels(tier, "hit" if hit else "miss").inc()

    def loaded(self, tier: Tier, seconds: float) -> None:
        self._load_seconds.labels(tier).observe(seconds)

    def load_failed(self) -> None:
        self._load_failures.inc()

    def evicted(self, tier: Tier, idle_seconds: float) -> None:
        self._eviction_idle.labels(tier).observe(idle_seconds)

    def text(self) -> str:
        """Return the exposition, for `server.exposition.merge`."""
        return exposition(self._registry)

    def render(self) -> tuple[bytes, str]:
        """Return the exposition and its content type."""
        return self.text().encode(), CONTENT_TYPE

    def _tell_build(self) -> None:
        gauge = families.BUILD_INFO.gauge(self._registry)
        gauge.labels(version("ssfserve"), platform.python_version()).set(1)

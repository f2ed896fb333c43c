"""Every metric of the server: names, labels, meaning. `docs/metrics.md` is made from this table."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

MILLISECOND = 0.001


@dataclass(frozen=True, slots=True)
class Family:
    """One metric. A series of it has one value for each label."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    text: str
    labels: tuple[str, ...] = ()

    def counter(self, registry: CollectorRegistry) -> Counter:
        return Counter(self.name, self.text, self.labels, registry=registry)

    def gauge(self, registry: CollectorRegistry) -> Gauge:
        return Gauge(self.name, self.text, self.labels, registry=registry)

    def histogram(self, registry: CollectorRegistry, buckets: Sequence[float]) -> Histogram:
        return Histogram(self.name, self.text, self.labels, registry=registry, buckets=buckets)

    def counters(self) -> CounterMetricFamily:
        return CounterMetricFamily(self.name, self.text, labels=self.labels)

    def gauges(self) -> GaugeMetricFamily:
        return GaugeMetricFamily(self.name, self.text, labels=self.labels)

    def histograms(self) -> HistogramMetricFamily:
        return HistogramMetricFamily(self.name, self.text, labels=self.labels)


def _counter(name: str, text: str, *labels: str) -> Family:
    return Family(f"ssfserve_{name}_total", "counter", text, labels)


def _gauge(name: str, text: str, *labels: str) -> Family:
    return Family(f"ssfserve_{name}", "gauge", text, labels)


def _histogram(name: str, text: str, *labels: str) -> Family:
    return Family(f"ssfserve_{name}", "histogram", text, labels)


REQUESTS = _counter("requests", "HTTP requests, by route and status.", "route", "method", "status")
REQUEST_SECONDS = _histogram("request_seconds", "From a request's head to the end of its answer.", "route")
DECODE_SECONDS = _histogram("decode_seconds", "Decoding, resizing and cropping one image, without the wait.")

QUEUE_SECONDS = _histogram("queue_seconds", "From an image's acceptance to the start of its batch.")
COMPUTE_SECONDS = _histogram("compute_seconds", "One forward, with its heads.")
BATCH_SIZE = _histogram("batch_size", "Images in one forward.")
BATCH_TASKS = _histogram("batch_distinct_tasks", "Distinct tasks in one forward.")
REFUSED = _counter("refused", "Images that were not accepted.", "reason")
DROPPED = _counter("dropped", "Accepted images that got no answer.", "reason")
QUEUE_LENGTH = _gauge("queue_length", "Images that wait for a batch.")
IN_FLIGHT = _gauge("in_flight", "Images in the batch that is being computed.")

LOOKUPS = _counter("adapter_lookups", "Looks for an adapter: hit or miss.", "tier", "result")
LOAD_SECONDS = _histogram("load_seconds", "Bringing an adapter to the device, by where it was.", "tier")
LOAD_FAILURES = _counter("load_failures", "Adapters that could not be loaded.")
EVICTION_IDLE = _histogram("eviction_idle_seconds", "How long an evicted adapter had not been used.", "tier")
ADAPTERS = _gauge("adapters", "Adapters that are here.", "tier")
PINNED = _gauge("pinned_adapters", "Adapters that stay on the device until they are unpinned.")
SLOTS = _gauge("slots", "Places for adapters on the device.")
SLOTS_USED = _gauge("slots_used", "Places that hold an adapter.")
CACHE_BYTES = _gauge("cache_bytes", "Bytes of adapters in the caches of this host.", "tier")
DEVICE_MEMORY = _gauge("device_memory_bytes", "Memory of a GPU: used by this process, and in all.", "state")

TASK_REQUESTS = _counter("task_requests", "Predictions, by task: the most active by name.", "task")
TASK_ERRORS = _counter(
    "task_errors", "Predictions that failed, through the client (4xx) or the server (5xx).", "task", "fault"
)
TASK_SECONDS = _histogram("task_seconds", "From a request's head to a prediction, by task.", "task")
TASK_TOP1 = _histogram("task_top1_confidence", "Probability of the most probable class, by task.", "task")

REGISTRY_SECONDS = _histogram("registry_seconds", "Operations of the registry.", "operation")
REGISTRY_ERRORS = _counter(
    "registry_errors",
    "Operations that ended so; TaskNotFound and its like are answers.",
    "operation",
    "error",
)
STALENESS = _gauge("registry_staleness_seconds", "Age of what is known of the registry; +Inf before it is.")
EVENTS_APPLIED = _gauge(
    "registry_events_applied", "Number of the last event known; replicas that differ lag."
)
CUT_OFF = _gauge("registry_cut_off", "1 while nobody waits for this replica when an alias moves.")
TASKS = _gauge("tasks", "Registered tasks.")

BUILD_INFO = _gauge("build_info", "Always 1.", "version", "python")
BACKBONE_INFO = _gauge(
    "backbone_info", "Always 1.", "name", "fingerprint", "family", "executor", "device", "dtype"
)

FAMILIES = tuple(value for value in globals().values() if isinstance(value, Family))

HEAD = """# Metrics

`GET /metrics` on any replica returns the series of all replicas, each with a label `replica`, whose value no
other process ever has. Sum over it, after `rate()`: see [operations.md](operations.md#watch).
Names of tasks are limited to the most active (`SSFSERVE_METRICS_TASKS`); the rest are counted together as
`other`. A task that loses its name to a more active one loses its series, and counts in `other` from then on;
totals are in `ssfserve_requests_total`. Histograms of time reach to the configured time limits, those of
batches to the largest batch. `process_*` are prometheus_client's own.

This table is made by `python -m server.metric_families`.

| name | kind | labels | meaning |
|---|---|---|---|
"""


def as_markdown(families: Iterable[Family] = FAMILIES) -> str:
    """Return the content of `docs/metrics.md`."""
    rows = (
        f"| `{family.name}` | {family.kind} | {' '.join(f'`{label}`' for label in family.labels)} "
        f"| {family.text} |\n"
        for family in families
    )
    return HEAD + "".join(rows)


def time_buckets(longest: float, shortest: float = MILLISECOND) -> tuple[float, ...]:
    """Return bounds 1, 2.5, 5, 10, … times `shortest`, the last of them at least `longest`; in seconds."""
    bounds: list[float] = []
    decade = shortest
    while not bounds or bounds[-1] < longest:
        bounds += [round(decade * step, 9) for step in (1, 2.5, 5)]
        decade *= 10
    enough = next(i for i, bound in enumerate(bounds) if bound >= longest)
    return tuple(bounds[: enough + 1])


def size_buckets(largest: int) -> tuple[int, ...]:
    """Return the powers of two below `largest`, and `largest`."""
    return (*(2**i for i in range(largest.bit_length()) if 2**i < largest), largest)


if __name__ == "__main__":
    import sys

    sys.stdout.write(as_markdown())

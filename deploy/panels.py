"""What Grafana shows: four dashboards, their panels and queries. `deploy.dashboards` makes the JSON.

A counter with labels has no series before its first event, and neither has what is computed from it; such a
query goes through `or_none`, so that nothing wrong reads as 0 and not as a broken panel.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

PREDICTIONS = 'route=~".*/(predict|infer)"'
RATE = "[$__rate_interval]"
REPLICA = "{{instance}} {{replica}}"
QUANTILES = (0.5, 0.9, 0.99)


class Query(NamedTuple):
    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    title: str
    unit: str  # Grafana's name of it
    queries: tuple[Query, ...]
    text: str = ""
    kind: Literal["timeseries", "stat", "table", "heatmap"] = "timeseries"
    width: int = 8
    height: int = 8


@dataclass(frozen=True, slots=True)
class Dashboard:
    name: str
    title: str
    text: str
    panels: tuple[Panel, ...]
    variables: Mapping[str, str] = field(default_factory=dict)  # Grafana's query for the values, by name


def rate(counter: str, *by: str, where: str = "") -> str:
    kept = f" by ({', '.join(by)}) " if by else ""
    matching = f"{{{where}}}" if where else ""
    return f"sum{kept}(rate({counter}{matching}{RATE}))"


def or_none(expr: str, label: str) -> str:
    """Return 0 under the name `none` where nothing has ever happened."""
    return f'{expr} or on () label_replace(vector(0), "{label}", "none", "", "")'


def mean(histogram: str, *by: str, where: str = "") -> str:
    return f"{rate(f'{histogram}_sum', *by, where=where)} / {rate(f'{histogram}_count', *by, where=where)}"


def quantile(q: float, histogram: str, *by: str, where: str = "") -> str:
    return f"histogram_quantile({q}, {rate(f'{histogram}_bucket', *by, 'le', where=where)})"


def quantiles(histogram: str, where: str = "") -> tuple[Query, ...]:
    return tuple(Query(quantile(q, histogram, where=where), f"p{q * 100:g}") for q in QUANTILES)


def share(part: str, whole: str, *by: str, where: str = "") -> str:
    """Return the share of a counter's events that have the labels `part`; 0 where there are others only."""
    everything = rate(whole, *by, where=where)
    these = rate(whole, *by, where=",".join(filter(None, (where, part))))
    return f"({these} or 0 * {everything}) / {everything}"


def stat(title: str, unit: str, expr: str, text: str = "") -> Panel:
    return Panel(title, unit, (Query(expr),), text, kind="stat", width=4, height=4)


FLEET = Dashboard(
    "fleet",
    "ssfserve: fleet",
    "All replicas: traffic, errors, time and load.",
    (
        stat("Replicas", "none", "count(ssfserve_build_info)", "That answered the last scrape."),
        stat("Targets down", "none", 'count(up{job="ssfserve"} == 0) or vector(0)'),
        stat(
            "Predictions",
            "reqps",
            "sum(job:ssfserve_predictions:rate5m)",
            "Requests; one may hold several images.",
        ),
        stat("Images", "ops", "sum(job:ssfserve_images:rate5m)", "Answered by a forward."),
        stat("Failures", "percentunit", "max(job:ssfserve_failures:ratio_rate5m)", "5xx among predictions."),
        stat("p99", "s", "max(job:ssfserve_prediction_seconds:p99_5m)", "Of predictions, over five minutes."),
        Panel(
            "Requests by status", "reqps", (Query(rate("ssfserve_requests_total", "status"), "{{status}}"),)
        ),
        Panel(
            "Time of predictions",
            "s",
            quantiles("ssfserve_request_seconds", PREDICTIONS),
            "From the request's head to the end of the answer, its body's upload included.",
        ),
        Panel(
            "Where the time goes",
            "s",
            (
                Query(mean("ssfserve_decode_seconds"), "decode"),
                Query(mean("ssfserve_queue_seconds"), "queue"),
                Query(mean("ssfserve_compute_seconds"), "compute"),
            ),
            "Means. `queue` grows when the device is full.",
        ),
        Panel(
            "Images by replica",
            "ops",
            (Query(rate("ssfserve_batch_size_sum", "instance", "replica"), REPLICA),),
        ),
        Panel(
            "Batches",
            "none",
            (
                Query(mean("ssfserve_batch_size"), "images"),
                Query(mean("ssfserve_batch_distinct_tasks"), "distinct tasks"),
            ),
            "Means of one forward.",
        ),
        Panel(
            "Device busy",
            "percentunit",
            (Query(rate("ssfserve_compute_seconds_sum", "instance", "replica"), REPLICA),),
            "Share of the time in which a forward ran.",
        ),
        Panel(
            "Waiting",
            "none",
            (
                Query("ssfserve_queue_length", f"{REPLICA} waiting"),
                Query("ssfserve_in_flight", f"{REPLICA} computed"),
            ),
            "Images.",
        ),
        Panel(
            "Refused and dropped",
            "ops",
            (
                Query(or_none(rate("ssfserve_refused_total", "reason"), "reason"), "refused: {{reason}}"),
                Query(or_none(rate("ssfserve_dropped_total", "reason"), "reason"), "dropped: {{reason}}"),
            ),
            "Refused: not accepted, 429 or 503. Dropped: accepted, then cancelled, late or failed.",
        ),
        Panel(
            "Memory",
            "bytes",
            (Query('process_resident_memory_bytes{job="ssfserve"}', REPLICA),),
            "Resident, of each replica's process.",
        ),
        Panel(
            "Processor",
            "none",
            (Query(f'rate(process_cpu_seconds_total{{job="ssfserve"}}{RATE})', REPLICA),),
            "Cores that a replica's process keeps busy.",
        ),
        Panel(
            "Backbones",
            "none",
            (Query("count by (name, fingerprint, executor, device, dtype) (ssfserve_backbone_info)"),),
            "One line, or replicas answer differently.",
            kind="table",
        ),
        Panel(
            "Versions",
            "none",
            (Query("count by (version, python) (ssfserve_build_info)"),),
            "Two lines only while an update rolls.",
            kind="table",
        ),
    ),
)

ONE = 'task="$task"'
TASK = Dashboard(
    "task",
    "ssfserve: one task",
    "One task, among those busy enough to be named; the rest are counted together as `other`.",
    (
        stat("Predictions", "reqps", rate("ssfserve_task_requests_total", where=ONE)),
        stat(
            "Share of all",
            "percentunit",
            f"{rate('ssfserve_task_requests_total', where=ONE)} / {rate('ssfserve_task_requests_total')}",
        ),
        stat(
            "Failures",
            "percentunit",
            f'(sum(rate(ssfserve_task_errors_total{{{ONE},fault="server"}}{RATE})) or vector(0))'
            f" / {rate('ssfserve_task_requests_total', where=ONE)}",
            "The server's fault, not the client's.",
        ),
        stat("p99", "s", quantile(0.99, "ssfserve_task_seconds", where=ONE)),
        stat(
            "Confidence",
            "percentunit",
            mean("ssfserve_task_top1_confidence", where=ONE),
            "Mean of the first answer's.",
        ),
        stat(
            "Confidence, hour",
            "percentunit",
            f"job_task:ssfserve_task_top1_confidence:mean1h{{{ONE}}}",
            "As the alert SsfserveTaskUnsure sees it.",
        ),
        Panel(
            "Predictions",
            "reqps",
            (Query(rate("ssfserve_task_requests_total", "task", where=ONE), "{{task}}"),),
        ),
        Panel(
            "Failures by fault",
            "reqps",
            (Query(or_none(rate("ssfserve_task_errors_total", "fault", where=ONE), "fault"), "{{fault}}"),),
            "`client`: 4xx, `server`: 5xx.",
        ),
        Panel("Time", "s", quantiles("ssfserve_task_seconds", ONE), "From a request's head to a prediction."),
        Panel(
            "Confidence",
            "percentunit",
            quantiles("ssfserve_task_top1_confidence", ONE),
            "Of the most probable class. A fall is worth a look, after a new version or without one.",
        ),
        Panel(
            "Confidence, spread",
            "percentunit",
            (Query(rate("ssfserve_task_top1_confidence_bucket", "le", where=ONE), "{{le}}"),),
            kind="heatmap",
        ),
        Panel(
            "Busiest tasks",
            "reqps",
            (Query(f"topk(10, {rate('ssfserve_task_requests_total', 'task')})"),),
            kind="table",
        ),
    ),
    {"task": "label_values(ssfserve_task_requests_total, task)"},
)

RESIDENCY = Dashboard(
    "residency",
    "ssfserve: residency",
    "Which adapters are where, what moving them costs, and whether there is room enough.",
    (
        Panel(
            "Slots",
            "none",
            (
                Query("ssfserve_slots_used", f"{REPLICA} used"),
                Query("ssfserve_slots", f"{REPLICA} in all"),
                Query("ssfserve_pinned_adapters", f"{REPLICA} pinned"),
            ),
            "Full is normal; full and evicting all the time is not.",
        ),
        Panel("Adapters by tier", "none", (Query("sum by (tier) (ssfserve_adapters)", "{{tier}}"),)),
        Panel("Caches", "bytes", (Query("sum by (tier) (ssfserve_cache_bytes)", "{{tier}}"),)),
        Panel(
            "Hits by tier",
            "percentunit",
            (Query(share('result="hit"', "ssfserve_adapter_lookups_total", "tier"), "{{tier}}"),),
            "Each image looks on the device; each load looks in the tiers behind it.",
        ),
        Panel(
            "Images that waited for their adapter",
            "percentunit",
            (Query("job_instance_replica:ssfserve_device_misses:ratio_rate15m", REPLICA),),
            "Over 15 minutes; the alert SsfserveTooFewSlots begins at 20 %.",
        ),
        Panel("Loads by tier", "ops", (Query(rate("ssfserve_load_seconds_count", "tier"), "from {{tier}}"),)),
        Panel(
            "Time of a load, p99",
            "s",
            (Query(quantile(0.99, "ssfserve_load_seconds", "tier"), "from {{tier}}"),),
            "Waiting for a slot included.",
        ),
        Panel(
            "Evictions by tier",
            "ops",
            (Query(or_none(rate("ssfserve_eviction_idle_seconds_count", "tier"), "tier"), "{{tier}}"),),
        ),
        Panel(
            "Idle before eviction, median",
            "s",
            (Query(or_none(quantile(0.5, "ssfserve_eviction_idle_seconds", "tier"), "tier"), "{{tier}}"),),
            "Short: adapters are thrown out that are about to be used again.",
        ),
        Panel(
            "Failed loads",
            "ops",
            (Query(rate("ssfserve_load_failures_total", "instance", "replica"), REPLICA),),
        ),
    ),
)

REGISTRY = Dashboard(
    "registry",
    "ssfserve: registry",
    "Tasks, and how the registry answers.",
    (
        stat("Tasks", "none", "max(ssfserve_tasks)"),
        stat(
            "Staleness",
            "s",
            "max(ssfserve_registry_staleness_seconds)",
            "Age of what the stalest replica knows.",
        ),
        stat("Operations", "ops", rate("ssfserve_registry_seconds_count")),
        stat(
            "No answer",
            "ops",
            f'sum(rate(ssfserve_registry_errors_total{{error="RegistryUnavailable"}}{RATE})) or vector(0)',
        ),
        Panel(
            "Staleness",
            "s",
            (Query("ssfserve_registry_staleness_seconds", REPLICA),),
            "Grows while the registry is away; what is loaded serves on.",
        ),
        Panel(
            "Operations",
            "ops",
            (Query(rate("ssfserve_registry_seconds_count", "operation"), "{{operation}}"),),
        ),
        Panel(
            "Time of operations, p99",
            "s",
            (Query(quantile(0.99, "ssfserve_registry_seconds", "operation"), "{{operation}}"),),
        ),
        Panel(
            "Errors",
            "ops",
            (
                Query(
                    or_none(rate("ssfserve_registry_errors_total", "operation", "error"), "operation"),
                    "{{operation}} {{error}}",
                ),
            ),
            "TaskNotFound and its like are answers; RegistryUnavailable and Blob… are not.",
        ),
        Panel("Tasks known", "none", (Query("ssfserve_tasks", REPLICA),), "Replicas agree within a second."),
    ),
)

DASHBOARDS = (FLEET, TASK, RESIDENCY, REGISTRY)

import inspect
import math
import shutil
import subprocess
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from registry.base import Registry
from registry.embedded import EmbeddedRegistry
from registry.errors import RegistryUnavailable, TaskNotFound
from server.active_names import HALF_LIFE_SECONDS, MAX_COUNTED, PERIOD_SECONDS, SPARE, ActiveNames
from server.contracts import BackboneInfo, Tier
from server.engine import EngineGauges
from server.events import Dropped, EngineEvents, Refused
from server.exposition import merge
from server.metric_families import FAMILIES, as_markdown, size_buckets, time_buckets
from server.metrics import Metrics
from server.observed_registry import ObservedRegistry
from server.parts import Metrics as MetricsOfRoutes
from server.settings import Settings
from server.task_metrics import TaskMetrics
from tests.fakes import make_info

ROOT = Path(__file__).parents[2]

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class FixedEngine:
    backbone: BackboneInfo

    def gauges(self) -> EngineGauges:
        adapters = {Tier.DEVICE: 3, Tier.HOST: 7, Tier.DISK: 11}
        return EngineGauges(5, 2, adapters, pinned=1, slots=4, host_bytes=700, disk_bytes=1100)


class FixedCatalog:
    staleness_seconds = 0.25
    events_applied = 12
    is_cut_off = True

    def __len__(self) -> int:
        return 42


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(CollectorRegistry(), max_batch=12, longest_seconds=2.0, named_tasks=3)


def parse(text: str) -> Samples:
    """Return every sample by name and labels; the same series twice is an error."""
    samples: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in samples, key
            samples[key] = sample.value
    return samples


def value(source: Metrics | str, name: str, **labels: str) -> float:
    text = source if isinstance(source, str) else source.text()
    return parse(text)[f"ssfserve_{name}", tuple(sorted(labels.items()))]


def buckets(text: str, name: str) -> list[float]:
    return [
        float(dict(labels)["le"]) for (sample, labels) in parse(text) if sample == f"ssfserve_{name}_bucket"
    ]


def exercise(metrics: Metrics) -> None:
    """Do everything once that makes a series."""
    metrics.watch(FixedEngine(make_info()), FixedCatalog(), lambda: {"used": 1, "total": 2})
    metrics.observe_request("/v1/tasks/{task}/predict", "POST", 200, 0.02)
    metrics.observe_prediction("pets", 0.93, 0.02)
    metrics.observe_failure("pets", 504)
    metrics.observe_decode(0.004)
    metrics.observe_registry("get_task", 0.001, "RegistryUnavailable")
    metrics.batch_done(8, 3, [0.001] * 8, 0.05)
    metrics.refused(Refused.QUEUE_FULL)
    metrics.dropped(Dropped.DEADLINE)
    metrics.looked_up(Tier.HOST, False)
    metrics.loaded(Tier.DISK, 0.2)
    metrics.load_failed()
    metrics.evicted(Tier.DEVICE, 30.0)


def test_requests_are_counted_by_route_method_and_status(metrics: Metrics) -> None:
    for status in (200, 200, 429):
        metrics.observe_request("/v1/predict", "POST", status, 0.2)
    assert value(metrics, "requests_total", route="/v1/predict", method="POST", status="200") == 2
    assert value(metrics, "requests_total", route="/v1/predict", method="POST", status="429") == 1
    assert value(metrics, "request_seconds_sum", route="/v1/predict") == pytest.approx(0.6)


def test_clients_cannot_invent_methods(metrics: Metrics) -> None:
    for method in ("BREW", "WHEN"):
        metrics.observe_request("unmatched", method, 405, 0.1)
    assert value(metrics, "requests_total", route="unmatched", method="other", status="405") == 2


def test_a_batch_is_counted_once_and_its_images_each(metrics: Metrics) -> None:
    metrics.batch_done(3, 2, [0.1, 0.2, 0.3], 0.05)
    assert value(metrics, "batch_size_sum") == 3
    assert value(metrics, "batch_distinct_tasks_sum") == 2
    assert value(metrics, "compute_seconds_count") == 1
    assert value(metrics, "queue_seconds_count") == 3
    assert value(metrics, "queue_seconds_sum") == pytest.approx(0.6)


def test_what_the_engine_tells_is_counted(metrics: Metrics) -> None:
    exercise(metrics)
    text = metrics.text()
    assert value(text, "refused_total", reason="queue_full") == 1
    assert value(text, "dropped_total", reason="deadline") == 1
    assert value(text, "adapter_lookups_total", tier="host", result="miss") == 1
    assert value(text, "load_seconds_count", tier="disk") == 1
    assert value(text, "load_failures_total") == 1
    assert value(text, "eviction_idle_seconds_sum", tier="device") == 30
    assert value(text, "decode_seconds_count") == 1


def test_gauges_show_the_state_at_the_scrape(metrics: Metrics) -> None:
    memory = {"used": 10, "total": 100}
    metrics.watch(FixedEngine(make_info(slots=4)), FixedCatalog(), lambda: memory)
    memory["used"] = 20
    text = metrics.text()
    assert value(text, "queue_length") == 5
    assert value(text, "in_flight") == 2
    assert [value(text, "adapters", tier=tier) for tier in ("device", "host", "disk")] == [3, 7, 11]
    assert (value(text, "slots"), value(text, "slots_used"), value(text, "pinned_adapters")) == (4, 3, 1)
    assert (value(text, "cache_bytes", tier="host"), value(text, "cache_bytes", tier="disk")) == (700, 1100)
    assert value(text, "device_memory_bytes", state="used") == 20
    assert value(text, "registry_staleness_seconds") == 0.25
    assert value(text, "registry_events_applied") == 12
    assert value(text, "registry_cut_off") == 1
    assert value(text, "tasks") == 42
    (info,) = [dict(labels) for name, labels in parse(text) if name == "ssfserve_backbone_info"]
    assert info["name"] == "vit_tiny_patch16_224"
    assert info["dtype"] == "float32"


def test_buckets_follow_from_the_limits(metrics: Metrics) -> None:
    exercise(metrics)
    text = metrics.text()
    assert buckets(text, "batch_size") == [1, 2, 4, 8, 12, float("inf")]
    assert buckets(text, "batch_distinct_tasks") == [1, 2, 4, 8, 12, float("inf")]
    assert buckets(text, "request_seconds")[-2] == 2.5
    assert buckets(text, "task_seconds") == buckets(text, "request_seconds")
    assert size_buckets(1) == (1,)
    assert size_buckets(16) == (1, 2, 4, 8, 16)
    assert time_buckets(0.005) == (0.001, 0.0025, 0.005)
    assert time_buckets(0.0051)[-1] == 0.01
    assert len(time_buckets(3600)) < 25


def test_created_from_the_settings() -> None:
    made = Metrics.create(Settings(max_batch=4, request_timeout_ms=500, metrics_tasks=0))
    made.observe_prediction("pets", 0.5, 0.1)
    assert buckets(made.text(), "batch_size") == [1, 2, 4, float("inf")]
    assert buckets(made.text(), "queue_seconds")[-2] == 0.5
    assert value(made, "task_requests_total", task="other") == 1


def test_two_replicas_of_one_process_do_not_meet() -> None:
    first, second = (Metrics.create(Settings()) for _ in range(2))
    first.load_failed()
    assert value(second, "load_failures_total") == 0


def test_serves_the_engine_and_the_routes(metrics: Metrics) -> None:
    for protocol in (EngineEvents, MetricsOfRoutes):
        for name, member in inspect.getmembers(protocol, inspect.isfunction):
            if not name.startswith("_"):
                asked = list(inspect.signature(member).parameters)
                assert list(inspect.signature(getattr(Metrics, name)).parameters) == asked, name


# --- tasks


def test_a_task_is_measured_by_name(metrics: Metrics) -> None:
    metrics.observe_prediction("pets", 0.93, 0.02)
    metrics.observe_prediction("pets", 0.4, 0.03)
    metrics.observe_failure("pets", 504)
    metrics.observe_failure("pets", 422)
    text = metrics.text()
    assert value(text, "task_requests_total", task="pets") == 4
    assert value(text, "task_errors_total", task="pets", fault="server") == 1
    assert value(text, "task_errors_total", task="pets", fault="client") == 1
    assert value(text, "task_seconds_count", task="pets") == 2
    assert value(text, "task_seconds_sum", task="pets") == pytest.approx(0.05)
    assert value(text, "task_top1_confidence_bucket", task="pets", le="0.4") == 1
    assert value(text, "task_top1_confidence_bucket", task="pets", le="0.95") == 2


def test_more_tasks_than_names_count_as_other(metrics: Metrics) -> None:
    for number in range(1000):
        metrics.observe_prediction(f"task{number}", 0.5, 0.01)
    assert value(metrics, "task_requests_total", task="task2") == 1
    assert value(metrics, "task_requests_total", task="other") == 997
    assert sum(name == "ssfserve_task_requests_total" for name, _ in parse(metrics.text())) == 4


def test_a_task_named_other_is_no_special_case(metrics: Metrics) -> None:
    for task in ("other", "a", "b", "c", "d"):
        metrics.observe_prediction(task, 0.5, 0.01)
    assert value(metrics, "task_requests_total", task="other") == 2
    assert value(metrics, "task_requests_total", task="c") == 1


def task_counts(tasks: TaskMetrics) -> dict[str, float]:
    family = next(iter(tasks.collect()))
    return {sample.labels["task"]: sample.value for sample in family.samples}


def test_a_more_active_task_takes_the_name_of_the_least_active() -> None:
    clock = Clock()
    tasks = TaskMetrics(named=2, bounds=(1.0,), clock=clock)
    for task, times in (("busy", 50), ("quiet", 3), ("new", 20)):
        for _ in range(times):
            tasks.answered(task, 0.9, 0.1)
    assert task_counts(tasks) == {"busy": 50, "quiet": 3, "other": 20}
    clock.now = PERIOD_SECONDS
    tasks.answered("new", 0.9, 0.1)
    assert task_counts(tasks) == {"busy": 50, "new": 1, "other": 20}
    tasks.answered("quiet", 0.9, 0.1)
    assert task_counts(tasks) == {"busy": 50, "new": 1, "other": 21}


def test_no_counter_goes_back_while_its_series_lives_and_nothing_is_lost() -> None:
    """Thousands of predictions of drifting tasks: what is seen between scrapes adds up to what was done."""
    clock = Clock()
    tasks = TaskMetrics(named=5, bounds=(1.0,), clock=clock)
    before: dict[str, float] = {}
    seen, done, lost = 0.0, 0, 0
    for step in range(3000):
        clock.now = step / 10
        tasks.answered(f"task{step // 500 * 3 + step % 3}", 0.5, 0.1)
        done += 1
        now = task_counts(tasks)
        gone = set(before) - set(now)
        lost += len(gone)
        assert "other" not in gone
        assert all(now[task] >= before[task] for task in set(before) & set(now))
        seen += sum(now[task] - before.get(task, 0) for task in now)
        before = now
        assert len(now) <= 6
    assert seen == done
    assert lost >= 5


def test_equally_active_tasks_do_not_take_turns() -> None:
    clock, dropped = Clock(), list[str]()
    names = ActiveNames(2, dropped=dropped.append, clock=clock)
    for step in range(5000):
        clock.now = step
        names.note("abcd"[step % 4])
    assert not dropped
    assert "a" in names
    assert "c" not in names


def test_a_name_fades() -> None:
    clock, dropped = Clock(), list[str]()
    names = ActiveNames(1, dropped=dropped.append, clock=clock)
    for _ in range(1000):
        names.note("once")
    clock.now = 12 * HALF_LIFE_SECONDS
    names.note("now")
    clock.now += PERIOD_SECONDS
    assert names.note("now")
    assert dropped == ["once"]


def test_memory_of_names_is_bounded() -> None:
    clock = Clock()
    names = ActiveNames(3, dropped=lambda name: None, clock=clock)
    for period in range(3):
        clock.now = period * PERIOD_SECONDS
        for number in range(3 * MAX_COUNTED):
            names.note(f"{period}-{number}")
        assert len(names._counted) <= MAX_COUNTED
        assert len(names._activity) <= (SPARE + 1) * 3


# --- several replicas


def test_merged_series_are_those_of_each_replica(metrics: Metrics) -> None:
    exercise(metrics)
    alone = metrics.text()
    merged = parse(merge({"a": alone, "b": alone}))
    expected = {
        (name, tuple(sorted([*labels, ("replica", replica)]))): sample
        for (name, labels), sample in parse(alone).items()
        for replica in "ab"
    }
    assert merged == expected


def test_merged_families_appear_once_and_in_one_piece() -> None:
    first, second = (Metrics.create(Settings()) for _ in range(2))
    exercise(first)
    second.observe_request("/healthz", "GET", 200, 0.1)
    text = merge({"a": first.text(), "b": second.text()})
    types = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(types) == len(set(types))
    assert set(types) >= {line.split()[2] for line in first.text().splitlines() if line.startswith("# TYPE")}
    families = [family_of(line, types) for line in text.splitlines() if not line.startswith("#")]
    changes = sum(a != b for a, b in pairwise(families))
    assert changes + 1 == len(set(families))


def family_of(line: str, types: list[str]) -> str:
    name = line.partition("{")[0]
    stem = next((name.removesuffix(end) for end in ("_bucket", "_count", "_sum") if name.endswith(end)), name)
    return stem if stem in types else name


def test_odd_labels_survive_the_merge() -> None:
    odd = '} x="1", y \\ "q" \u2028\x85\n# HELP z'
    made = Metrics.create(Settings())
    made.observe_registry(odd, 0.1, None)
    merged = parse(merge({'pod "1"\n\\': made.text()}))
    (labels,) = [dict(labels) for name, labels in merged if name == "ssfserve_registry_seconds_count"]
    assert labels == {"operation": odd, "replica": 'pod "1"\n\\'}


def test_merging_nothing_is_empty() -> None:
    assert merge({}) == ""


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_finds_no_fault(metrics: Metrics) -> None:
    exercise(metrics)
    for text in (metrics.text(), merge({"a": metrics.text(), "b": metrics.text()})):
        own = "".join(line for line in text.splitlines(keepends=True) if "ssfserve_" in line)
        found = subprocess.run(
            ["promtool", "check", "metrics"], input=own, text=True, capture_output=True, check=False
        )
        assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


def test_the_text_is_what_the_client_library_writes() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry, max_batch=4, longest_seconds=1.0, named_tasks=2)
    exercise(metrics)
    metrics.observe_registry('odd "op"\\\n', math.inf, "\u2028")
    metrics.observe_registry("none", math.nan, None)
    theirs = parse(generate_latest(registry).decode())
    expected = {key: number for key, number in theirs.items() if not key[0].endswith("_created")}
    ours = parse(metrics.text())
    own = [key for key in expected if key[0].startswith("ssfserve_")]  # the process moves on meanwhile
    assert set(ours) == set(expected)
    assert [ours[key] for key in own] == pytest.approx([expected[key] for key in own], rel=0, nan_ok=True)
    heads = [line for line in generate_latest(registry).decode().split("\n") if line.startswith("#")]
    assert [line for line in metrics.text().split("\n") if line.startswith("#")] == [
        line for line in heads if "_created " not in line
    ]


def test_content_type_names_the_format(metrics: Metrics) -> None:
    content, kind = metrics.render()
    assert kind.startswith("text/plain; version=0.0.4")
    assert _own(content.decode()) == _own(metrics.text())
    assert "_created" not in metrics.text()


def _own(text: str) -> list[str]:
    return [line for line in text.split("\n") if not line.startswith("process_")]  # those move on meanwhile


# --- registry


def test_every_operation_of_the_registry_is_observed() -> None:
    assert not inspect.isabstract(ObservedRegistry)
    for name in Registry.__abstractmethods__:
        assert inspect.unwrap(getattr(ObservedRegistry, name)) is getattr(Registry, name)


async def test_operations_and_their_errors_are_counted(metrics: Metrics, tmp_path: Path) -> None:
    registry = ObservedRegistry(EmbeddedRegistry(tmp_path), metrics.observe_registry)
    assert (await registry.list_tasks(limit=5)).items == ()
    with pytest.raises(TaskNotFound):
        await registry.get_task("pets")
    await registry.close()
    with pytest.raises(RegistryUnavailable):
        await registry.list_keys()
    text = metrics.text()
    assert value(text, "registry_seconds_count", operation="list_tasks") == 1
    assert value(text, "registry_seconds_count", operation="get_task") == 1
    assert value(text, "registry_errors_total", operation="get_task", error="TaskNotFound") == 1
    assert value(text, "registry_errors_total", operation="list_keys", error="RegistryUnavailable") == 1


# --- the table


def test_the_table_is_what_is_exposed(metrics: Metrics) -> None:
    exercise(metrics)
    labels: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(metrics.text()):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        if name.startswith("ssfserve_"):
            labels[f"{name} {family.type} {family.documentation}"] = {
                label for sample in family.samples for label in sample.labels if label != "le"
            }
    table = {f"{family.name} {family.kind} {family.text}": set(family.labels) for family in FAMILIES}
    assert labels == table


def test_the_documentation_is_the_table() -> None:
    assert (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8") == as_markdown(), (
        "run `python -m server.metric_families > docs/metrics.md`"
    )

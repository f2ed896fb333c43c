"""Gauges: the state of a replica, read when it is scraped."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from server import metric_families as families
from server.contracts import BackboneInfo, Tier
from server.engine import EngineGauges
from server.metric_families import Family


class WatchedEngine(Protocol):
    @property
    def backbone(self) -> BackboneInfo: ...

    def gauges(self) -> EngineGauges: ...


class WatchedCatalog(Protocol):
    @property
    def staleness_seconds(self) -> float: ...

    @property
    def events_applied(self) -> int: ...

    @property
    def is_cut_off(self) -> bool: ...

    def __len__(self) -> int: ...


class StateMetrics(Collector):
    """Reads an engine, a catalog and the device's memory, by state (`used`, `total`) in bytes."""

    def __init__(
        self,
        engine: WatchedEngine,
        catalog: WatchedCatalog,
        device_memory: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        self._engine = engine
        self._catalog = catalog
        self._device_memory = device_memory

    def describe(self) -> Iterable[Metric]:
        return [families.QUEUE_LENGTH.gauges()]

    def collect(self) -> Iterator[Metric]:
        state = self._engine.gauges()
        yield _one(families.QUEUE_LENGTH, state.queued)
        yield _one(families.IN_FLIGHT, state.in_flight)
        yield _by(families.ADAPTERS, state.adapters)
        yield _one(families.PINNED, state.pinned)
        yield _one(families.SLOTS, state.slots)
        yield _one(families.SLOTS_USED, state.adapters[Tier.DEVICE])
        yield _by(families.CACHE_BYTES, {Tier.HOST: state.host_bytes, Tier.DISK: state.disk_bytes})
        yield _by(families.DEVICE_MEMORY, self._device_memory())
        yield _one(families.STALENESS, self._catalog.staleness_seconds)
        yield _one(families.EVENTS_APPLIED, self._catalog.events_applied)
        yield _one(families.CUT_OFF, int(self._catalog.is_cut_off))
        yield _one(families.TASKS, len(self._catalog))
        yield self._backbone()

    def _backbone(self) -> Metric:
        family = families.BACKBONE_INFO
        info = self._engine.backbone
        gauges = family.gauges()
        gauges.add_metric([str(getattr(info, label)) for label in family.labels], 1)
        return gauges


def _one(family: Family, value: float) -> GaugeMetricFamily:
    gauges = family.gauges()
    gauges.add_metric([], value)
    return gauges


def _by(family: Family, values: Mapping[str, int] | Mapping[Tier, int]) -> GaugeMetricFamily:
    gauges = family.gauges()
    for label, value in values.items():
        gauges.add_metric([str(label)], value)
    return gauges

"""Metrics by task: the most active tasks by name, the rest as `other`."""

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate

from prometheus_client import Metric
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

from server.active_names import ActiveNames
from server.metric_families import TASK_ERRORS, TASK_REQUESTS, TASK_SECONDS, TASK_TOP1

OTHER = "other"  # a task of this name counts here too
CONFIDENCES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)


class Distribution:
    """A histogram of its own: the client's cannot let go of a label set and begin it anew at zero."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def write(self, family: HistogramMetricFamily, labels: Sequence[str]) -> None:
        bounds = [*(str(bound) for bound in self._bounds), "+Inf"]
        family.add_metric(labels, list(zip(bounds, accumulate(self._counts), strict=True)), self._sum)


class _Series:
    def __init__(self, bounds: Sequence[float]) -> None:
        self.requests = 0
        self.errors: Counter[str] = Counter()
        self.seconds = Distribution(bounds)
        self.top1 = Distribution(CONFIDENCES)


class TaskMetrics(Collector):
    """Counts by task.

    A series begins at zero when a task gets a name and ends when it loses it; `other` only grows, by what is
    counted while a task has no name. So every rate is right at any time.

    Args:
        named: Tasks that have a name.
        bounds: Buckets of the answer's time in seconds.
        clock: Seconds that never go back.
    """

    def __init__(
        self, *, named: int, bounds: Sequence[float], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._bounds = bounds
        self._series: dict[str, _Series] = {}
        self._active = ActiveNames(named, dropped=self._series.pop, clock=clock)

    def answered(self, task: str, top1: float, seconds: float) -> None:
        series = self._of(task)
        series.requests += 1
        series.seconds.add(seconds)
        series.top1.add(top1)

    def failed(self, task: str, fault: str) -> None:
        series = self._of(task)
        series.requests += 1
        series.errors[fault] += 1

    def describe(self) -> Iterable[Metric]:
        return [TASK_REQUESTS.counters(), TASK_ERRORS.counters(), TASK_SECONDS.histograms()]

    def collect(self) -> Iterator[Metric]:
        requests, errors = TASK_REQUESTS.counters(), TASK_ERRORS.counters()
        seconds, top1 = TASK_SECONDS.histograms(), TASK_TOP1.histograms()
        for task, series in self._series.items():
            requests.add_metric([task], series.requests)
            for fault, count in series.errors.items():
                errors.add_metric([task, fault], count)
            series.seconds.write(seconds, [task])
            series.top1.write(top1, [task])
        yield from (requests, errors, seconds, top1)

    def _of(self, task: str) -> _Series:
        name = task if task != OTHER and self._active.note(task) else OTHER
        found = self._series.get(name)
        if found is None:
            found = self._series[name] = _Series(self._bounds)
        return found

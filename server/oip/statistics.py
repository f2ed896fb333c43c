"""What the protocol's statistics tell: counts and times of inferences over `/v2`, by version."""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from registry.models import Version
from server.contracts import Outcome

MAX_VERSIONS = 4096  # the longest unused is forgotten: about 1 kB each


@dataclass(slots=True)
class Inference:
    """One request while it is answered: the seconds of its stages, and its share of forwards."""

    images: int = 0
    forwards: float = 0.0
    queue: float = 0.0
    compute_input: float = 0.0
    compute_infer: float = 0.0
    compute_output: float = 0.0

    def computed(self, outcomes: list[Outcome]) -> None:
        """Take over what the engine tells. Images of a request may be in several forwards at a time."""
        self.images = len(outcomes)
        self.forwards = sum(1 / outcome.batch_size for outcome in outcomes)
        self.queue = max(outcome.queue_seconds for outcome in outcomes)
        self.compute_infer = max(outcome.compute_seconds for outcome in outcomes)


STAGES = ("queue", "compute_input", "compute_infer", "compute_output")


@dataclass(slots=True)
class Duration:
    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.seconds += seconds


@dataclass(slots=True)
class _Series:
    last: float = 0.0
    images: int = 0
    forwards: float = 0.0
    durations: dict[str, Duration] = field(
        default_factory=lambda: {name: Duration() for name in ("success", "fail", *STAGES)}
    )

    def add(self, inference: Inference, seconds: float) -> None:
        self.images += inference.images
        self.forwards += inference.forwards
        self.durations["success"].add(seconds)
        for stage in STAGES:
            self.durations[stage].add(getattr(inference, stage))


class Statistics:
    """Counts since the replica started.

    Args:
        max_versions: How many versions are counted; the one unused for longest is forgotten first.
        now: Seconds since 1970.
        clock: Seconds that never go back.
    """

    def __init__(
        self,
        *,
        max_versions: int = MAX_VERSIONS,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._max_versions = max_versions
        self._now = now
        self._clock = clock
        self._series: OrderedDict[tuple[str, int], _Series] = OrderedDict()

    @contextmanager
    def counting(self, version: Version) -> Iterator[Inference]:
        """Count the block as a request of a version: as failed if it raises, else with what it noted."""
        started, inference = self._clock(), Inference()
        try:
            yield inference
        except Exception:
            self._of(version).durations["fail"].add(self._clock() - started)
            raise
        self._of(version).add(inference, self._clock() - started)

    def report(self, allowed: Callable[[str], bool]) -> list[dict[str, Any]]:
        """Return the content of `schemas.ModelStatistics` of every version counted, by name and number."""
        return [_shown(key, self._series[key]) for key in sorted(self._series) if allowed(key[0])]

    def report_one(self, task: str, number: int) -> dict[str, Any]:
        """Return that of one version; zeros if it was not asked for yet."""
        return _shown((task, number), self._series.get((task, number), _Series()))

    def _of(self, version: Version) -> _Series:
        key = version.task, version.version
        series = self._series.setdefault(key, _Series())
        self._series.move_to_end(key)
        while len(self._series) > self._max_versions:
            self._series.popitem(last=False)
        series.last = self._now()
        return series


def _shown(key: tuple[str, int], series: _Series) -> dict[str, Any]:
    return {
        "name": key[0],
        "version": str(key[1]),
        "last_inference": int(series.last * 1e3),
        "inference_count": series.images,
        "execution_count": round(series.forwards),
        "inference_stats": {
            name: {"count": duration.count, "ns": int(duration.seconds * 1e9)}
            for name, duration in series.durations.items()
        },
        "batch_stats": [],
    }

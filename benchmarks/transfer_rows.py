"""What the rows of the transfer benchmark say in numbers: accuracies in %, ratios, which runs are missing."""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from benchmarks.transfer_plan import SEEDS, SETS

Row = dict[str, Any]

METHODS = ("linear", "bias", "norm", "ssf", "vpt-deep", "adapter", "full")
NO_TOKENS = "puts tokens between those of a transformer; this backbone is convolutional and has none"


@dataclass(frozen=True, slots=True)
class Cell:
    """Test accuracies of one method on one set, one a seed."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def std(self) -> float | None:
        """Of the sample, n - 1."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


def of_each_backbone(rows: Iterable[Row]) -> list[tuple[str, int]]:
    """Return the backbones and their sizes, in the order of the rows."""
    return list(dict.fromkeys((row["backbone"], row["pixels"]) for row in rows))


def impossible(method: str, backbone: str) -> str | None:
    """Return why a method has no meaning on a backbone, None where it has."""
    return NO_TOKENS if method == "vpt-deep" and not backbone.startswith("vit") else None


class Transfer:
    """The rows of one backbone at one size. Of two runs of the same method, set and seed the later counts."""

    def __init__(self, rows: Iterable[Row], backbone: str, pixels: int) -> None:
        self.backbone, self.pixels = backbone, pixels
        mine = [row for row in rows if (row["backbone"], row["pixels"]) == (backbone, pixels)]
        self._final = {(r["method"], r["set"], r["seed"]): r for r in mine if _is_final(r)}
        self._search = [row for row in mine if row["stage"] == "search"]

    def runs(self, method: str, name: str | None = None) -> list[Row]:
        """Return the final runs of a method, on one set or all."""
        return [row for (of, on, _), row in self._final.items() if of == method and name in {None, on}]

    def cell(self, method: str, name: str) -> Cell | None:
        values = tuple(100 * row["test_accuracy"] for row in self.runs(method, name))
        return Cell(values) if values else None

    def mean(self, method: str) -> float | None:
        """Return the mean over the sets; None unless every set has a run."""
        cells = [self.cell(method, name) for name in SETS]
        return statistics.fmean(cell.mean for cell in cells if cell) if all(cells) else None

    def by_seed(self, method: str) -> dict[int, float]:
        """Return the mean over the sets by seed, of the seeds that every set has."""
        seeds = sorted({row["seed"] for row in self.runs(method)})
        found = {seed: [self._final.get((method, name, seed)) for name in SETS] for seed in seeds}
        return {
            seed: 100 * statistics.fmean(row["test_accuracy"] for row in rows if row)
            for seed, rows in found.items()
            if all(rows)
        }

    def missing(self) -> dict[str, dict[str, int]]:
        """Return how many seeds there are, by method and set, where one of SEEDS is missing."""
        counts = {
            method: {name: len(self.runs(method, name)) for name in SETS}
            for method in METHODS
            if impossible(method, self.backbone) is None
        }
        short = {method: {k: n for k, n in of.items() if n < len(SEEDS)} for method, of in counts.items()}
        return {method: of for method, of in short.items() if of}

    def values(self, method: str, key: str) -> list[int]:
        return [row[key] for row in self.runs(method)]

    def trained(self, method: str) -> float:
        """Return how many parameters a method trains, its head included: the mean over runs."""
        return statistics.fmean(row["trainable"] + row["head"] for row in self.runs(method))

    def rates(self, method: str, name: str) -> list[float]:
        """Return the learning rates of the final runs, each once."""
        return sorted({row["lr"] for row in self.runs(method, name)})

    def searched(self, method: str, name: str) -> list[float]:
        """Return the learning rates that validation chose from."""
        return sorted({row["lr"] for row in self._search if (row["method"], row["set"]) == (method, name)})

    def epochs(self, method: str) -> list[int]:
        """Return how long a search and a final training last, of those that ran."""
        found = [*self._search, *self._final.values()]
        return sorted({row["epochs"] for row in found if row["method"] == method})


def of_full(steps: Iterable[Row], backbone: str, key: str) -> dict[str, float]:
    """Return a measure of a training step ÷ that of full training, by method."""
    found = {row["method"]: row[key] for row in steps if row["backbone"] == backbone and not row["compile"]}
    return {method: value / found["full"] for method, value in found.items() if "full" in found}


def _is_final(row: Row) -> bool:
    return row["stage"] == "final" and row["test_accuracy"] is not None


class Robustness:
    """Accuracy under corruption, of one backbone at one size.

    A mean is over the same sets and severities for every method: all that any method has. A method that lacks
    one of them has no mean.
    """

    def __init__(self, rows: Iterable[Row], backbone: str, pixels: int) -> None:
        self.backbone = backbone
        mine = [row for row in rows if (row["backbone"], row["pixels"]) == (backbone, pixels)]
        self._runs: dict[tuple[str, str, str, int], list[Row]] = defaultdict(list)
        for row in mine:
            self._runs[row["method"], row["set"], row["corruption"], row["severity"]].append(row)
        self.methods = [method for method in METHODS if method in {row["method"] for row in mine}]
        self.corruptions = list(dict.fromkeys(row["corruption"] for row in mine))
        self.sets = [name for name in SETS if name in {row["set"] for row in mine}]
        self.severities = sorted({row["severity"] for row in mine})
        self.seeds = sorted({row["seed"] for row in mine})
        self.images = [row["test_images"] for row in mine]

    def lacks(self, method: str) -> str:
        """Return how many combinations of set, corruption and severity have no run; empty if none."""
        places = list(product([method], self.sets, self.corruptions, self.severities))
        count = sum(place not in self._runs for place in places)
        return f"{count} of {len(places)} combinations" if count else ""

    def accuracy(self, method: str, corruption: str) -> float | None:
        return self._mean(method, [corruption], self.severities, "test_accuracy")

    def over_all(self, method: str) -> float | None:
        return self._mean(method, self.corruptions, self.severities, "test_accuracy")

    def at(self, method: str, severity: int) -> float | None:
        """Return the mean over corruptions at a severity; 0 is clean."""
        if severity == 0:
            return self._mean(method, self.corruptions, self.severities, "clean_accuracy")
        return self._mean(method, self.corruptions, [severity], "test_accuracy")

    def _mean(
        self, method: str, corruptions: Sequence[str], severities: Sequence[int], key: str
    ) -> float | None:
        places = product([method], self.sets, corruptions, severities)
        found = [[row[key] for row in self._runs.get(place, [])] for place in places]
        return 100 * statistics.fmean(map(statistics.fmean, found)) if found and all(found) else None

"""What `benchmarks.transfer` runs, in which order, and which rows of it are still missing."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]

DINOV2, LITE0 = "vit_small_patch14_dinov2", "tf_efficientnet_lite0"
PIXELS = {DINOV2: 56, LITE0: 64}  # small, for a CPU
SETS = ("mnist", "faces", "optdigits", "photos")  # the textile's defects vanish at these sizes
CORE, OTHERS = ("linear", "ssf", "full"), ("bias", "norm", "adapter", "vpt-deep")
GRID = (2e-5, 1e-4, 5e-4, 3e-3, 1.5e-2, 7.5e-2)  # of learning rates, the same for every method
FIRST = GRID[1:-1]  # the others where the best of these is at their edge
SEARCH_EPOCHS, EPOCHS = 3, 8
LINEAR_EPOCHS = 100  # over a table of features: no forward
SEEDS = (0, 1, 2)


@dataclass(frozen=True, slots=True)
class Case:
    """One method on one set with one backbone at one input size."""

    backbone: str
    pixels: int
    set: str
    method: str

    @property
    def key(self) -> Row:
        return {"backbone": self.backbone, "pixels": self.pixels, "set": self.set, "method": self.method}


def cases() -> list[Case]:
    """Return all cases, what the claim is about first."""
    return [
        Case(backbone, PIXELS[backbone], name, method)
        for methods in (CORE, OTHERS)
        for backbone in (DINOV2, LITE0)
        for name in SETS
        for method in methods
        if not (method == "vpt-deep" and backbone == LITE0)  # prompts are tokens
    ]


@dataclass(frozen=True, slots=True)
class Run:
    """One training."""

    stage: str
    lr: float
    seed: int


def missing(case: Case, rows: Sequence[Row]) -> Run | None:
    """Return the next training of a case: those that choose the learning rate, then those that count."""
    own = list(rows_of(case, rows))
    searched = {row["lr"]: row for row in own if row["stage"] == "search"}
    for lr in FIRST:
        if lr not in searched:
            return Run("search", lr, SEEDS[0])
    best = chosen_rate(own)
    beyond = {FIRST[0]: GRID[0], FIRST[-1]: GRID[-1]}.get(best)
    if beyond is not None and beyond not in searched:
        return Run("search", beyond, SEEDS[0])
    done = {row["seed"] for row in own if row["stage"] == "final" and row["lr"] == best}
    return next((Run("final", best, seed) for seed in SEEDS if seed not in done), None)


def chosen_rate(own: Sequence[Row]) -> float:
    """Return the learning rate that was best on validation, of the rows of one case."""
    found = [row for row in own if row["stage"] == "search"]
    best = max(found, key=lambda row: (row["val_accuracy"], -row["val_loss"]))
    return float(best["lr"])


def rows_of(case: Case, rows: Sequence[Row]) -> Iterator[Row]:
    return (row for row in rows if case.key.items() <= row.items())

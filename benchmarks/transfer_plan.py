"""What `benchmarks.transfer` runs, in which order, and which rows of it are still missing."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]

DINOV2, LITE0 = "vit_small_patch14_dinov2", "tf_efficientnet_lite0"
SETS = ("mnist", "faces", "optdigits", "photos", "textile")
CORE, OTHERS = ("linear", "ssf", "full"), ("bias", "norm", "adapter", "vpt-deep")
GRID = (1e-4, 5e-4, 3e-3, 1.5e-2)  # of learning rates, the same for every method
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


def pixels_of(backbone: str, name: str) -> int:
    """Return the input size: small, for a CPU; the textile's defects need more."""
    small, large = (56, 84) if backbone == DINOV2 else (64, 96)
    return large if name == "textile" else small


def cases() -> list[Case]:
    """Return all cases, what the claim is about first."""
    return [
        Case(backbone, pixels_of(backbone, name), name, method)
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


def searches() -> list[Run]:
    """Return the runs that choose the learning rate."""
    return [Run("search", lr, SEEDS[0]) for lr in GRID]


def finals(case: Case, rows: Sequence[Row]) -> list[Run]:
    """Return the runs that count, at the learning rate that was best on validation."""
    found = [row for row in rows_of(case, rows) if row["stage"] == "search"]
    best = max(found, key=lambda row: (row["val_accuracy"], -row["val_loss"]))
    return [Run("final", best["lr"], seed) for seed in SEEDS]


def rows_of(case: Case, rows: Sequence[Row]) -> Iterator[Row]:
    return (row for row in rows if case.key.items() <= row.items())


def is_done(case: Case, run: Run, rows: Sequence[Row]) -> bool:
    return any(
        (row["stage"], row["seed"]) == (run.stage, run.seed) and (run.stage == "final" or row["lr"] == run.lr)
        for row in rows_of(case, rows)
    )

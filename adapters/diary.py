"""The record of a training: what went in, how it went, what it cost."""

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata

import torch

from adapters.data import Dataset, split
from adapters.loop import Outcome
from adapters.manifest import Training
from adapters.recipe import Recipe
from adapters.usage import PeakMemory

PACKAGES = ("torch", "timm", "numpy", "pillow", "safetensors")


def versions() -> dict[str, str]:
    """Return the versions of the packages that a training's numbers depend on."""
    return {name: metadata.version(name) for name in PACKAGES}


class Diary:
    """Begun before a training and closed behind it. Divides the data and sets PyTorch's threads."""

    def __init__(self, dataset: Dataset, recipe: Recipe, command: str | None) -> None:
        """Begin.

        Raises:
            DataInvalid: If a class is too small to be split.
        """
        self._dataset, self._recipe, self._command = dataset, recipe, command
        self._started, self._clock = datetime.now(UTC), time.monotonic()
        self._memory = PeakMemory(recipe.device)
        torch.set_num_threads(recipe.threads)
        seed = recipe.seed if recipe.split_seed is None else recipe.split_seed
        self.parted = split(dataset, recipe.val_fraction, seed)

    def close(self, outcome: Outcome, more: Mapping[str, float]) -> Training:
        """Return the record; `more` are further metrics."""
        return Training(
            dataset=self._dataset.source.name,
            dataset_digest=self._dataset.digest,
            train_images=len(self.parted.train),
            val_images=len(self.parted.val),
            seed=self._recipe.seed,
            recipe=self._recipe.model_dump(exclude={"seed"}),
            metrics=self._metrics(outcome) | dict(more),
            packages=versions(),
            command=self._command,
            started=self._started.isoformat(timespec="seconds"),
            seconds=round(time.monotonic() - self._clock, 1),
        )

    def _metrics(self, outcome: Outcome) -> dict[str, float]:
        metrics = {
            "best_epoch": float(outcome.epoch),
            "epochs": float(outcome.epochs),
            "train_accuracy": outcome.train.accuracy,
            "train_loss": outcome.train.loss,
            "val_accuracy": outcome.val.accuracy,
            "val_loss": outcome.val.loss,
        }
        return metrics | self._cost(outcome)

    def _cost(self, outcome: Outcome) -> dict[str, float]:
        """Return images/s, which mean nothing where steps saw no images, and memory where it is known."""
        probe = self._recipe.method == "linear" and self._recipe.is_still
        rate = {} if probe else {"images_per_s": round(outcome.images_per_s, 1)}
        peak = self._memory.peak()
        return rate if peak is None else {**rate, "peak_memory_bytes": float(peak)}

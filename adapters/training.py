"""Training an adapter: from a decoded data set and a recipe to an adapter that the server would accept."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata

import torch
from torch import Tensor

from adapters.data import Dataset, Split, split
from adapters.evaluation import evaluate, served
from adapters.file import Adapter
from adapters.fitting import Fitted, fit_method
from adapters.folding import preprocessing_of
from adapters.loop import EpochReport, Outcome
from adapters.manifest import BackboneRef, Manifest, SiteWidth, Training
from adapters.probe import compute_probe
from adapters.recipe import Recipe
from adapters.seeding import own_random_numbers
from backbone.executors.torch_executor import TorchExecutor
from backbone.load import Backbone
from backbone.tuned import TunedModel

PACKAGES = ("torch", "timm", "numpy", "pillow", "safetensors")


@dataclass(frozen=True, slots=True)
class Parts:
    """The numbers of an adapter, on the CPU."""

    scale: Mapping[str, Tensor]
    shift: Mapping[str, Tensor]
    head_weight: Tensor
    head_bias: Tensor

    def rounded(self, dtype: torch.dtype) -> "Parts":
        return Parts(
            {name: vector.to(dtype) for name, vector in self.scale.items()},
            {name: vector.to(dtype) for name, vector in self.shift.items()},
            self.head_weight.to(dtype),
            self.head_bias.to(dtype),
        )


def train(
    backbone: Backbone,
    dataset: Dataset,
    recipe: Recipe,
    *,
    store: torch.dtype = torch.float32,
    command: str | None = None,
    progress: bool = False,
    report: EpochReport | None = None,
) -> Adapter:
    """Train an adapter.

    The same backbone, data, recipe, thread count and package versions give the same bits on a CPU. The
    backbone is not changed.

    Args:
        backbone: Whose preprocessing the data set was decoded with.
        dataset: All images; the recipe's share of each class is held out and chooses the epoch.
        recipe: The numbers.
        store: What the adapter's tensors are rounded to.
        command: Goes into the training record.
        progress: Whether to draw bars.
        report: Called after each epoch.

    Raises:
        DataInvalid: If a class is too small to be split.
        ValueError: If the recipe names sites the backbone has not, or its method makes no adapter.
        UnsupportedModel: If the recipe asks for patch dropout and the backbone has no patches.
    """
    if not recipe.is_servable:
        raise ValueError(f"{recipe.method} makes no adapter: it is there for comparison")
    started, clock = datetime.now(UTC), time.monotonic()
    torch.set_num_threads(recipe.threads)
    parted = split(dataset, recipe.val_fraction, recipe.seed)
    with own_random_numbers(recipe.seed):
        fitted = fit_method(backbone, dataset, parted, recipe, progress=progress, report=report)
        parts = _parts(fitted, store)
        manifest = _manifest(backbone, dataset, recipe, parts)
    draft = Adapter(manifest, parts.scale, parts.shift, parts.head_weight, parts.head_bias)
    metrics = _metrics(fitted.outcome) | _served_metrics(backbone, draft, dataset, parted, recipe)
    record = Training(
        dataset=dataset.source.name,
        dataset_digest=dataset.digest,
        train_images=len(parted.train),
        val_images=len(parted.val),
        seed=recipe.seed,
        recipe=recipe.model_dump(exclude={"seed"}),
        metrics=metrics,
        packages={name: metadata.version(name) for name in PACKAGES},
        command=command,
        started=started.isoformat(timespec="seconds"),
        seconds=round(time.monotonic() - clock, 1),
    )
    return replace(draft, manifest=manifest.model_copy(update={"training": record}))


def _parts(fitted: Fitted, store: torch.dtype) -> Parts:
    """Return what was trained, rounded as it will be stored."""
    tuned, head = fitted.inputs.tuned, fitted.head
    assert isinstance(tuned, TunedModel)  # of every method that makes an adapter
    scale = {name: vector.cpu() for name, vector in tuned.scale().items()}
    shift = {name: vector.cpu() for name, vector in tuned.shift().items()}
    return Parts(scale, shift, head.weight.detach().cpu(), head.bias.detach().cpu()).rounded(store)


def _manifest(backbone: Backbone, dataset: Dataset, recipe: Recipe, parts: Parts) -> Manifest:
    return Manifest(
        method=recipe.method,
        backbone=BackboneRef(name=backbone.name, fingerprint=backbone.fingerprint),
        sites=tuple(
            SiteWidth(name=site.name, width=site.width)
            for site in backbone.sites
            if site.name in parts.scale or site.name in parts.shift
        ),
        head_width=backbone.head_width,
        labels=dataset.labels,
        preprocessing=preprocessing_of(backbone),
        probe=compute_probe(
            backbone,
            scale=parts.scale,
            shift=parts.shift,
            head_weight=parts.head_weight,
            head_bias=parts.head_bias,
        ),
    )


def _metrics(outcome: Outcome) -> dict[str, float]:
    return {
        "best_epoch": float(outcome.epoch),
        "epochs": float(outcome.epochs),
        "images_per_s": round(outcome.images_per_s, 1),
        "train_accuracy": outcome.train.accuracy,
        "train_loss": outcome.train.loss,
        "val_accuracy": outcome.val.accuracy,
        "val_loss": outcome.val.loss,
    }


def _served_metrics(
    backbone: Backbone, adapter: Adapter, dataset: Dataset, parted: Split, recipe: Recipe
) -> dict[str, float]:
    """Score the finished, rounded adapter folded in a bank, as a server runs it."""
    executor = TorchExecutor(backbone, device=recipe.device, dtype=recipe.dtype, slots=1)
    classify = served(executor, adapter)
    held = parted.val
    found = evaluate(classify, dataset.pixels[held], dataset.targets[held], dataset.labels)
    return {"val_accuracy_served": found.accuracy, "val_loss_served": found.loss}

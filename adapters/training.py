"""Training an adapter: from a decoded data set and a recipe to an adapter that the server would accept."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib import metadata

import torch
from torch import Tensor, nn

from adapters.data import Dataset, Split, split
from adapters.evaluation import evaluate, served
from adapters.file import Adapter
from adapters.folding import preprocessing_of
from adapters.inputs import FrozenInputs, Standard, TunedInputs, compute_features
from adapters.loop import EpochReport, Outcome, fit
from adapters.manifest import BackboneRef, Manifest, SiteWidth, Training
from adapters.probe import compute_probe
from adapters.recipe import Recipe
from backbone.executors.torch_executor import TorchExecutor
from backbone.load import Backbone

PACKAGES = ("torch", "timm", "numpy", "pillow", "safetensors")
HEAD_STD = 0.01
SPREAD_IMAGES = 32


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
        ValueError: If the recipe names sites the backbone has not.
        UnsupportedModel: If the recipe asks for patch dropout and the backbone has no patches.
    """
    started, clock = datetime.now(UTC), time.monotonic()
    torch.set_num_threads(recipe.threads)
    parted = split(dataset, recipe.val_fraction, recipe.seed)
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)  # patch dropout draws from the global generator
        outcome, parts = _fit(backbone, dataset, parted, recipe, progress=progress, report=report)
        parts = parts.rounded(store)
        manifest = _manifest(backbone, dataset, recipe, parts)
    draft = Adapter(manifest, parts.scale, parts.shift, parts.head_weight, parts.head_bias)
    metrics = _metrics(outcome) | _served_metrics(backbone, draft, dataset, parted, recipe)
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


def _fit(
    backbone: Backbone,
    dataset: Dataset,
    parted: Split,
    recipe: Recipe,
    *,
    progress: bool,
    report: EpochReport | None,
) -> tuple[Outcome, Parts]:
    generator = torch.Generator().manual_seed(recipe.seed)
    tuned = TunedInputs(backbone, dataset.pixels, recipe, generator)
    head = _make_head(backbone.head_width, len(dataset.labels), generator).to(recipe.device)
    fit_head = partial(
        fit, head=head, targets=dataset.targets, parted=parted, generator=generator, progress=progress
    )
    features = compute_features(tuned, parted, progress=progress)
    tuned.standard = Standard.of(features[parted.train])
    table = FrozenInputs(tuned.standard.apply(features))
    if recipe.method == "linear":
        outcome = fit_head(table, recipe=recipe, report=report)
    else:
        if recipe.warm_start:
            fit_head(table, recipe=recipe.for_head())
        if recipe.scale_steps:
            tuned.scale_steps(parted.train[:: max(1, len(parted.train) // SPREAD_IMAGES)][:SPREAD_IMAGES])
        outcome = fit_head(tuned, recipe=recipe, report=report)
    tuned.standard.absorb(head)
    scale = {name: vector.cpu() for name, vector in tuned.tuned.scale().items()}
    shift = {name: vector.cpu() for name, vector in tuned.tuned.shift().items()}
    return outcome, Parts(scale, shift, head.weight.detach().cpu(), head.bias.detach().cpu())


def _make_head(width: int, classes: int, generator: torch.Generator) -> nn.Linear:
    head = nn.Linear(width, classes)
    nn.init.trunc_normal_(head.weight, std=HEAD_STD, generator=generator)
    nn.init.zeros_(head.bias)
    return head


def _manifest(backbone: Backbone, dataset: Dataset, recipe: Recipe, parts: Parts) -> Manifest:
    return Manifest(
        method=recipe.method,
        backbone=BackboneRef(name=backbone.name, fingerprint=backbone.fingerprint),
        sites=tuple(SiteWidth(name=name, width=len(vector)) for name, vector in parts.scale.items()),
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

"""Fitting a tuned model and its head to a data set, by any method."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from adapters.data import Dataset, Split
from adapters.inputs import FrozenInputs, Standard, TunedInputs, compute_features
from adapters.loop import EpochReport, Outcome, fit
from adapters.recipe import Recipe
from adapters.views import Views
from backbone.load import Backbone

SPREAD_IMAGES = 32
EVAL_BATCH = 32


@dataclass(frozen=True)
class Fitted:
    """A trained model: what gives features, the head for them as they come, and how it went."""

    inputs: TunedInputs
    head: nn.Linear
    outcome: Outcome

    @torch.inference_mode()
    def logits(self, pixels: Tensor) -> Tensor:
        """Return the logits [n, K], on the CPU, of images, uint8 [n, 3, H, W], in the training's dtype."""
        parts = [self.head(self.inputs.features(part)).cpu() for part in pixels.split(EVAL_BATCH)]
        return torch.cat(parts)

    def accuracy(self, pixels: Tensor, targets: Tensor) -> float:
        """Return top-1 on images."""
        return float((self.logits(pixels).argmax(1) == targets).float().mean())


def fit_method(
    backbone: Backbone,
    dataset: Dataset,
    parted: Split,
    recipe: Recipe,
    *,
    views: Views | None = None,
    progress: bool = False,
    report: EpochReport | None = None,
) -> Fitted:
    """Train a head, and what the recipe's method trains beside it. The backbone is not changed.

    Raises:
        UnsupportedModel: If the recipe does not take this backbone.
        ValueError: If the recipe names sites the backbone has not.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    classes = len(dataset.labels)
    tuned = TunedInputs(backbone, dataset.pixels, recipe, generator, classes=classes, views=views)
    head = make_head(backbone.head_width, classes, recipe, generator)
    fit_head = partial(
        fit, head=head, targets=dataset.targets, parted=parted, generator=generator, progress=progress
    )
    if recipe.method == "linear" or recipe.warm_start or recipe.standardise:
        features = compute_features(tuned, parted, progress=progress)
        if recipe.standardise:
            tuned.standard = Standard.of(features[parted.train])
            features = tuned.standard.apply(features)
    if recipe.method == "linear":
        outcome = fit_head(FrozenInputs(features), recipe=recipe, report=report)
    else:
        if recipe.warm_start:
            fit_head(FrozenInputs(features), recipe=recipe.for_head())
        if recipe.scale_steps:
            tuned.scale_steps(parted.train[:: max(1, len(parted.train) // SPREAD_IMAGES)][:SPREAD_IMAGES])
        outcome = fit_head(tuned, recipe=recipe, report=report)
    if tuned.standard is not None:
        tuned.standard.absorb(head)
        tuned.standard = None
    return Fitted(tuned, head, outcome)


def make_head(width: int, classes: int, recipe: Recipe, generator: torch.Generator) -> nn.Linear:
    """Return a head as training starts it, on the recipe's device."""
    head = nn.Linear(width, classes)
    nn.init.trunc_normal_(head.weight, std=recipe.head_std, generator=generator)
    nn.init.zeros_(head.bias)
    return head.to(recipe.device)

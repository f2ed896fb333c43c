"""Training an adapter: from a decoded data set and a recipe to an adapter that the server would accept."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from adapters.data import Dataset, Split
from adapters.diary import Diary
from adapters.evaluation import evaluate, served
from adapters.file import Adapter
from adapters.fitting import NO_AIDS, Aids, Fitted, fit_method
from adapters.folding import preprocessing_of
from adapters.manifest import BackboneRef, Manifest, SiteWidth
from adapters.probe import compute_probe
from adapters.recipe import Recipe
from adapters.seeding import own_random_numbers
from backbone.executors.torch_executor import TorchExecutor
from backbone.load import Backbone
from backbone.tuned import TunedModel


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
    aids: Aids = NO_AIDS,
) -> Adapter:
    """Train an adapter.

    The same backbone, data, recipe, thread count and package versions give the same bits on a CPU, also where
    a bookmark let it be stopped in between. The backbone is not changed.

    Args:
        backbone: Whose preprocessing the data set was decoded with.
        dataset: All images; its own split, or the recipe's share of each class, is held out and chooses the
            epoch.
        recipe: The numbers.
        store: What the adapter's tensors are rounded to.
        command: Goes into the training record.
        aids: What may be used and told meanwhile.

    Raises:
        DataInvalid: If a class is too small to be split.
        ValueError: If the recipe names sites the backbone has not, or its method makes no adapter.
        UnsupportedModel: If the recipe does not take this backbone.
        BookmarkInvalid: If the bookmark is damaged, or another training's.
    """
    if not recipe.is_servable:
        raise ValueError(f"{recipe.method} makes no adapter: it is there for comparison")
    diary = Diary(dataset, recipe, command)
    with own_random_numbers(recipe.seed):
        fitted = fit_method(backbone, dataset, diary.parted, recipe, aids)
        parts = _parts(fitted, store)
        manifest = _manifest(backbone, dataset, recipe, parts)
    draft = Adapter(manifest, parts.scale, parts.shift, parts.head_weight, parts.head_bias)
    served = _served_metrics(backbone, draft, dataset, diary.parted, recipe)
    record = diary.close(fitted.outcome, served)
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


def _served_metrics(
    backbone: Backbone, adapter: Adapter, dataset: Dataset, parted: Split, recipe: Recipe
) -> dict[str, float]:
    """Score the finished, rounded adapter folded in a bank, as a server runs it."""
    executor = TorchExecutor(backbone, device=recipe.device, dtype=recipe.dtype, slots=1)
    classify = served(executor, adapter)
    held = parted.val
    found = evaluate(classify, dataset.pixels[held], dataset.targets[held], dataset.labels)
    return {"val_accuracy_served": found.accuracy, "val_loss_served": found.loss}

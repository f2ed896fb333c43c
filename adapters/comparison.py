"""Models that are trained to be compared with adapters: full fine-tuning, prompts, bottlenecks.

No server takes them. Their file is safetensors, like an adapter's, under another metadata key: of `full` all
weights under timm's names, head included; of the others what was trained, and the head.
"""

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from adapters.data import Dataset
from adapters.diary import Diary
from adapters.fitting import NO_AIDS, Aids, Fitted, fit_method
from adapters.header import COMPARISON_KEY
from adapters.manifest import Training
from adapters.recipe import Recipe
from adapters.seeding import own_random_numbers
from backbone.load import Backbone


@dataclass(frozen=True)
class Comparison:
    """A trained model, what its file holds, and the record of its training."""

    fitted: Fitted
    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]
    training: Training

    def to_bytes(self, record: Training | None = None) -> bytes:
        """Return the file, with the training's own record or one to which something was added."""
        facts = {**self.facts, "training": (record or self.training).model_dump(mode="json")}
        data: bytes = save(dict(self.tensors), {COMPARISON_KEY: json.dumps(facts, sort_keys=True)})
        return data


def train_comparison(
    backbone: Backbone,
    dataset: Dataset,
    recipe: Recipe,
    *,
    command: str | None = None,
    aids: Aids = NO_AIDS,
) -> Comparison:
    """Train as `adapters.training.train` does, by a method that makes no adapter.

    Raises:
        DataInvalid, UnsupportedModel, BookmarkInvalid: As there.
    """
    diary = Diary(dataset, recipe, command)
    with own_random_numbers(recipe.seed):
        fitted = fit_method(backbone, dataset, diary.parted, recipe, aids)
    facts = {
        "method": recipe.method,
        "backbone": {"name": backbone.name, "fingerprint": backbone.fingerprint},
        "labels": dataset.labels,
    }
    return Comparison(fitted, _tensors(fitted, recipe), facts, diary.close(fitted.outcome, {}))


@torch.no_grad()
def _tensors(fitted: Fitted, recipe: Recipe) -> dict[str, Tensor]:
    tuned, head = fitted.inputs.tuned, fitted.head
    if recipe.method == "full":
        model = copy.deepcopy(tuned.model)
        model.reset_classifier(len(head.bias))
        for classifier in _classifiers(model.get_classifier()):
            classifier.load_state_dict(head.state_dict())
        found = model.state_dict()
    else:
        found = {name: p for name, p in tuned.named_parameters() if p.requires_grad}
        found |= {f"head.{name}": tensor for name, tensor in head.state_dict().items()}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in found.items()}


def _classifiers(found: Any) -> tuple[Any, ...]:
    return found if isinstance(found, tuple) else (found,)

"""Where a training's features come from: a tuned model, or a table of the frozen model's."""

from dataclasses import dataclass
from typing import Self

import torch
from timm.layers import PatchDropout
from torch import Tensor, nn
from tqdm import tqdm

from adapters.augment import augment
from adapters.data import Split
from adapters.optim import Tunable
from adapters.recipe import Recipe
from adapters.spread import measure_spreads
from backbone.errors import UnsupportedModel
from backbone.executors.torch_executor import DTYPES
from backbone.load import Backbone
from backbone.preprocess import ImageSpec
from backbone.tuned import TunedModel

FEATURES_BATCH = 32
MIN_DEVIATION = 1e-6


@dataclass(frozen=True, slots=True)
class Standard:
    """Mean and deviation [D] of features.

    A head learns on standardised features: pooled features of a transformer vary little around a large mean,
    which hides what is in them from any optimiser. Afterwards `absorb` folds both into the head.
    """

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Self:
        """Measure features [n, D]."""
        return cls(features.mean(0), features.std(0, correction=0).clamp_min(MIN_DEVIATION))

    def apply(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.deviation

    @torch.no_grad()
    def absorb(self, head: nn.Linear) -> None:
        """Turn a head for standardised features into one for plain ones, in place."""
        head.weight.div_(self.deviation)
        head.bias.sub_(head.weight @ self.mean)


class TunedInputs:
    """Images through the backbone with trainable γ/β.

    The frozen weights are in the recipe's dtype, γ/β and the head in fp32. Features are standardised once
    `standard` is set.
    """

    def __init__(
        self, backbone: Backbone, pixels: Tensor, recipe: Recipe, generator: torch.Generator
    ) -> None:
        self._pixels, self._recipe, self._generator = pixels, recipe, generator
        self._dtype, self._device = DTYPES[recipe.dtype], torch.device(recipe.device)
        self.tuned = TunedModel(
            backbone.model, backbone.sites, only=recipe.chosen_sites(backbone.sites), generator=generator
        )
        self.tuned.model.to(self._dtype)
        self.tuned.to(self._device)
        if self._device.type == "cpu":
            _unfuse_attention(self.tuned.model)
        self.standard: Standard | None = None
        self._scale, self._shift = _pixel_affine(backbone.spec, self._device)
        self._tunables = [Tunable(parameter) for parameter in self.tuned.vectors.parameters()]
        self._dropout = _patch_dropout(self.tuned.model, backbone.name, recipe.patch_drop)

    def tunables(self) -> list[Tunable]:
        return self._tunables

    def scale_steps(self, indices: Tensor) -> None:
        """Scale each site's steps by its spread over some images."""
        spreads = measure_spreads(self.tuned, lambda: self.eval(indices))
        self._tunables = [
            tunable
            for vectors, spread in zip(self.tuned.vectors, spreads, strict=True)
            for tunable in (
                Tunable(vectors.scale, spread.scale_share),
                Tunable(vectors.shift, spread.shift_share),
            )
        ]

    def train(self, indices: Tensor) -> Tensor:
        self._dropout.train()
        return self._features(augment(self._pixels[indices], self._recipe.augmentations, self._generator))

    def eval(self, indices: Tensor) -> Tensor:
        self._dropout.eval()
        return self._features(self._pixels[indices])

    def _features(self, pixels: Tensor) -> Tensor:
        images = pixels.to(self._device, torch.float32)
        normalised = torch.addcmul(self._shift, images, self._scale).to(self._dtype)
        features: Tensor = self.tuned(normalised)
        return features.float() if self.standard is None else self.standard.apply(features.float())


class FrozenInputs:
    """A table of features [n, D] that were computed once."""

    def __init__(self, table: Tensor) -> None:
        self._table = table

    def tunables(self) -> list[Tunable]:
        return []

    def train(self, indices: Tensor) -> Tensor:
        return self._table[indices]

    def eval(self, indices: Tensor) -> Tensor:
        return self._table[indices]


def compute_features(inputs: TunedInputs, parted: Split, *, progress: bool = False) -> Tensor:
    """Return the features [n, D], fp32, of all images as they are now: one forward each.

    Images to train on are seen as training sees them: a head fitted to unchanged images is lost on others.
    """
    table: Tensor | None = None
    views = [(inputs.train, batch) for batch in parted.train.split(FEATURES_BATCH)]
    views += [(inputs.eval, batch) for batch in parted.val.split(FEATURES_BATCH)]
    with torch.no_grad():
        for view, batch in tqdm(views, desc="features", unit="batch", disable=not progress):
            features = view(batch)
            if table is None:
                table = features.new_zeros(len(parted.train) + len(parted.val), features.shape[1])
            table[batch] = features
    assert table is not None
    return table


def _pixel_affine(spec: ImageSpec, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return scale and shift [3, 1, 1] that take uint8 values to normalised ones."""
    mean, std = (torch.tensor(v, device=device).view(3, 1, 1) * 255 for v in (spec.mean, spec.std))
    return 1 / std, -mean / std


def _unfuse_attention(model: nn.Module) -> None:
    """Let timm compute attention in steps: the CPU's fused kernel is slow backwards (a quarter of a step)."""
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False


def _patch_dropout(model: nn.Module, name: str, share: float) -> nn.Module:
    if share == 0:
        return nn.Identity()
    if not isinstance(getattr(model, "patch_drop", None), nn.Module):
        raise UnsupportedModel(name, "patch_drop", "is missing: this model has no patches to leave out")
    model.patch_drop = PatchDropout(share, num_prefix_tokens=model.num_prefix_tokens)
    return model.patch_drop

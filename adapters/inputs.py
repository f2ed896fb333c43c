"""Where a training's features come from: a tuned model, or a table of the frozen model's."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Self

import torch
from torch import Tensor, nn
from tqdm import tqdm

from adapters.data import Split
from adapters.loop import Batch
from adapters.methods import build, tunables
from adapters.mixing import Mixing
from adapters.optim import Tunable
from adapters.recipe import Recipe
from adapters.spread import measure_spreads
from adapters.stochastic import set_drop_path, set_patch_drop
from adapters.views import PixelViews, Views
from backbone.executors.torch_executor import DTYPES
from backbone.load import Backbone
from backbone.preprocess import ImageSpec
from backbone.tuned import TunedModel

FEATURES_BATCH = 32
MIN_SHARE = 0.1  # of the mean deviation
FLOOR = 1e-6


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
        """Measure features [n, D].

        A channel that hardly varies keeps a deviation that others have: it may vary once the model trains.
        """
        deviation = features.std(0, correction=0)
        return cls(features.mean(0), deviation.clamp_min(max(MIN_SHARE * float(deviation.mean()), FLOOR)))

    def apply(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.deviation

    @torch.no_grad()
    def absorb(self, head: nn.Linear) -> None:
        """Turn a head for standardised features into one for plain ones, in place."""
        head.weight.div_(self.deviation)
        head.bias.sub_(head.weight @ self.mean)


class TunedInputs:
    """Images through the backbone, tuned as the recipe's method does.

    Frozen weights are in the recipe's dtype, what trains and the head in fp32. Features are standardised once
    `standard` is set.
    """

    def __init__(
        self,
        backbone: Backbone,
        pixels: Tensor,
        recipe: Recipe,
        generator: torch.Generator,
        *,
        classes: int = 2,
        views: Views | None = None,
    ) -> None:
        """Put a tuned copy of the backbone on the recipe's device.

        Args:
            backbone: What is tuned.
            pixels: All images, uint8 [n, 3, H, W], as serving would see them.
            recipe: The numbers.
            generator: Draws first values and augmentations.
            classes: K, for soft targets.
            views: What training sees; the pixels with the recipe's augmentations if None.
        """
        self._pixels, self._device = pixels, torch.device(recipe.device)
        self._dtype = torch.float32 if recipe.method == "full" else DTYPES[recipe.dtype]
        self._views = views or PixelViews(pixels, recipe.augmentations, generator)
        self._mixing = Mixing(recipe, classes)
        layout = torch.channels_last if backbone.family.channels_last else torch.contiguous_format
        self._layout = layout
        self.tuned = build(backbone, recipe, generator)
        self._dropping = set_patch_drop(self.tuned.model, backbone.name, recipe.patch_drop)
        self._dropping += set_drop_path(self.tuned.model, recipe.drop_path)
        self.tuned.to(self._device)
        self.tuned.model.to(memory_format=layout)
        if self._device.type == "cpu":
            _unfuse_attention(self.tuned.model)
        self._whole = recipe.batch_size
        self._compiled = torch.compile(self.tuned, dynamic=False) if recipe.compile else self.tuned
        self.standard: Standard | None = None
        self._scale, self._shift = _pixel_affine(backbone.spec, self._device)
        self._tunables = tunables(self.tuned.parameters())

    def tunables(self) -> list[Tunable]:
        return self._tunables

    def scale_steps(self, indices: Tensor) -> None:
        """Scale each site's steps by its spread over some images."""
        if not isinstance(self.tuned, TunedModel):
            return
        spreads = measure_spreads(self.tuned, lambda: self.eval(indices))
        self._tunables = [
            Tunable(parameter, part)
            for vectors, spread in zip(self.tuned.vectors, spreads, strict=True)
            for parameter, part in ((vectors.scale, spread.scale_share), (vectors.shift, spread.shift_share))
            if parameter is not None
        ]

    def set_shares(self, shares: Sequence[float]) -> None:
        """Scale the steps of what trains by what was measured before."""
        self._tunables = [replace(t, share=s) for t, s in zip(self._tunables, shares, strict=True)]

    def epoch(self, batches: Sequence[Tensor], targets: Tensor) -> Iterator[Batch]:
        for indices, pixels in zip(batches, self._views.epoch(batches), strict=True):
            images, wanted = self._mixing(self._normalised(pixels), targets[indices].to(self._device))
            yield self._forward(images, dropping=True, by=self._compiled), wanted

    def seen(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield features [B, D] of images as training sees them, unmixed."""
        for pixels in self._views.epoch(batches):
            yield self._forward(self._normalised(pixels), dropping=True)

    def eval(self, indices: Tensor) -> Tensor:
        return self.features(self._pixels[indices])

    def features(self, pixels: Tensor) -> Tensor:
        """Return features [B, D] of images, uint8 [B, 3, H, W], as serving would compute them."""
        return self._forward(self._normalised(pixels), dropping=False)

    def _normalised(self, pixels: Tensor) -> Tensor:
        images = pixels.to(self._device, torch.float32, memory_format=self._layout)
        return torch.addcmul(self._shift, images, self._scale)

    def _forward(self, images: Tensor, *, dropping: bool, by: nn.Module | None = None) -> Tensor:
        """Return features; only whole batches go through what was compiled for them."""
        for module in self._dropping:
            module.train(dropping)
        model = by if by is not None and len(images) == self._whole else self.tuned
        features: Tensor = model(images.to(self._dtype)).float()
        return features if self.standard is None else self.standard.apply(features)


class FrozenInputs:
    """A table of features [n, D] that were computed once."""

    def __init__(self, table: Tensor) -> None:
        self._table = table

    def tunables(self) -> list[Tunable]:
        return []

    def epoch(self, batches: Sequence[Tensor], targets: Tensor) -> Iterator[Batch]:
        for indices in batches:
            yield self._table[indices], targets[indices].to(self._table.device)

    def eval(self, indices: Tensor) -> Tensor:
        return self._table[indices]


def compute_features(inputs: TunedInputs, parted: Split, *, progress: bool = False) -> Tensor:
    """Return the features [n, D], fp32, of all images as they are now: one forward each.

    Images to train on are seen as training sees them: a head fitted to unchanged images is lost on others.
    """
    trained, held = parted.train.split(FEATURES_BATCH), parted.val.split(FEATURES_BATCH)
    views = chain(inputs.seen(trained), map(inputs.eval, held))
    table: Tensor | None = None
    bar = tqdm(desc="features", total=len(trained) + len(held), unit="batch", disable=not progress)
    with torch.no_grad(), bar:
        for batch, features in zip([*trained, *held], views, strict=True):
            if table is None:
                size = 1 + int(torch.cat([parted.train, parted.val]).max())
                table = features.new_zeros(size, features.shape[1])
            table[batch] = features
            bar.update()
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

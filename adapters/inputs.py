"""Where a training's features come from: a tuned model, or a table of the frozen model's."""

import torch
from timm.layers import PatchDropout
from torch import Tensor, nn
from tqdm import tqdm

from adapters.augment import augment
from adapters.optim import Tunable
from adapters.recipe import Recipe
from adapters.spread import measure_spreads
from backbone.errors import UnsupportedModel
from backbone.executor import DTYPES
from backbone.load import Backbone
from backbone.preprocess import ImageSpec
from backbone.tuned import TunedModel


class TunedInputs:
    """Images through the backbone with trainable γ/β.

    The frozen weights are in the recipe's dtype, γ/β and the head in fp32.
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
        return features.float()


class FrozenInputs:
    """A table of features [n, D] of the plain backbone, each channel brought to mean 0 and deviation 1.

    The head is trained on the normalised features; `absorb` turns it into one for the plain features.
    """

    def __init__(self, features: Tensor, train: Tensor) -> None:
        self._mean = features[train].mean(0)
        self._deviation = features[train].std(0, correction=0).clamp_min(1e-6)
        self._table = (features - self._mean) / self._deviation

    @classmethod
    def compute(
        cls, tuned: TunedInputs, count: int, train: Tensor, *, batch_size: int = 32, progress: bool = False
    ) -> "FrozenInputs":
        """Run the backbone once over all images."""
        batches = torch.arange(count).split(batch_size)
        with torch.inference_mode():
            found = [
                tuned.eval(b) for b in tqdm(batches, desc="features", unit="batch", disable=not progress)
            ]
        return cls(torch.cat(found).clone(), train)

    def tunables(self) -> list[Tunable]:
        return []

    def train(self, indices: Tensor) -> Tensor:
        return self._table[indices]

    def eval(self, indices: Tensor) -> Tensor:
        return self._table[indices]

    @torch.no_grad()
    def absorb(self, head: nn.Linear) -> None:
        """Fold the normalisation into the head, in place."""
        head.weight.div_(self._deviation)
        head.bias.sub_(head.weight @ self._mean)


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

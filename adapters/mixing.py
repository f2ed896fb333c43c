"""Changes to normalised batches, by timm: mixup or cutmix with their soft targets, then random erasing."""

from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from adapters.recipe import Recipe


class Mixing:
    """What a recipe asks for. Draws from the global generators of torch, NumPy and Python."""

    def __init__(self, recipe: Recipe, classes: int) -> None:
        self._erase = (
            RandomErasing(recipe.erase, mode="pixel", device=recipe.device) if recipe.erase else None
        )
        self._mixup = (
            Mixup(
                mixup_alpha=recipe.mixup,
                cutmix_alpha=recipe.cutmix,
                label_smoothing=recipe.label_smoothing,
                num_classes=classes,
            )
            if recipe.mixes
            else None
        )

    def __call__(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return images [B, 3, H, W], changed in place, and targets: classes [B], or shares [B, K].

        The last batch of an epoch may be odd, which mixup does not take: there one image is left out.
        """
        if self._mixup is not None and len(images) > 1:
            even = len(images) - len(images) % 2
            images, targets = self._mixup(images[:even], targets[:even])
        return images if self._erase is None else self._erase(images), targets

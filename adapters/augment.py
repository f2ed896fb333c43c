"""Random changes to training images, on uint8 batches [B, 3, H, W]: see `adapters.augment_names`."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.augment_names import NAMES

Augmentation = Callable[[Tensor, torch.Generator], Tensor]

SHIFT_SHARE = 14
CROP_AREA = (0.6, 1.0)


def flip(images: Tensor, generator: torch.Generator) -> Tensor:
    return _half_of_the_time(images, images.flip(3), generator)


def rotate180(images: Tensor, generator: torch.Generator) -> Tensor:
    return _half_of_the_time(images, images.flip(2, 3), generator)


def dihedral(images: Tensor, generator: torch.Generator) -> Tensor:
    images = _half_of_the_time(images, images.flip(2), generator)
    images = _half_of_the_time(images, images.flip(3), generator)
    return _half_of_the_time(images, images.transpose(2, 3), generator)


def shift(images: Tensor, generator: torch.Generator) -> Tensor:
    height, width = images.shape[2:]
    reach = (height // SHIFT_SHARE, width // SHIFT_SHARE)
    padded = F.pad(images.float(), (reach[1], reach[1], reach[0], reach[0]), mode="reflect").to(torch.uint8)
    tops = torch.randint(0, 2 * reach[0] + 1, (len(images),), generator=generator).tolist()
    lefts = torch.randint(0, 2 * reach[1] + 1, (len(images),), generator=generator).tolist()
    return torch.stack(
        [
            image[:, top : top + height, left : left + width]
            for image, top, left in zip(padded, tops, lefts, strict=True)
        ]
    )


def crop(images: Tensor, generator: torch.Generator) -> Tensor:
    low, high = CROP_AREA
    areas, downs, rights = torch.rand(3, len(images), generator=generator).tolist()
    return torch.cat(
        [
            _crop_one(image, (low + (high - low) * area) ** 0.5, down, right)
            for image, area, down, right in zip(images.split(1), areas, downs, rights, strict=True)
        ]
    )


def _crop_one(image: Tensor, side: float, down: float, right: float) -> Tensor:
    """Cut a part with `side` of each side, at these shares of the slack; resize it to the whole."""
    height, width = image.shape[2:]
    rows, columns = round(side * height), round(side * width)
    top, left = round(down * (height - rows)), round(right * (width - columns))
    part = image[:, :, top : top + rows, left : left + columns].float()
    whole = F.interpolate(part, (height, width), mode="bilinear", antialias=True)
    return whole.round().clamp(0, 255).to(torch.uint8)


def _half_of_the_time(images: Tensor, changed: Tensor, generator: torch.Generator) -> Tensor:
    chosen = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(chosen.view(-1, 1, 1, 1), changed, images)


AUGMENTATIONS: dict[str, Augmentation] = dict(
    zip(NAMES, (flip, rotate180, dihedral, shift, crop), strict=True)
)


def augment(images: Tensor, names: Sequence[str], generator: torch.Generator) -> Tensor:
    """Apply augmentations in the given order."""
    for name in names:
        images = AUGMENTATIONS[name](images, generator)
    return images

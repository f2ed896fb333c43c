"""Corrupted images as in ImageNet-C (arXiv:1903.12261), of severity 1 to 5, on uint8 [n, 3, H, W].

The severities are ImageNet-C's, made for 224 px, and below SMALL those of Tiny ImageNet-C by the same
authors, made for 64 px: in a small picture noise averages out over fewer pixels of an object, and a JPEG
block hides more of it. Blur grows with the side, so that it hides the same share of a picture of any size.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

SMALL = 112  # pixels of the shorter side
AT_ONCE = 64  # images; bounds the memory of fp32 copies


@dataclass(frozen=True, slots=True)
class Severities:
    """Constants of severity 1 to 5 for pictures of `side` pixels.

    Attributes:
        noise: Standard deviation, of a range of 1.
        blur: Standard deviation, pixels of a picture of `side`.
        jpeg: Pillow's quality.
        contrast: What remains of the distance to the mean of an image's channel.
    """

    side: int
    noise: tuple[float, ...]
    blur: tuple[float, ...]
    jpeg: tuple[int, ...]
    contrast: tuple[float, ...]


IMAGENET = Severities(
    side=224,
    noise=(0.08, 0.12, 0.18, 0.26, 0.38),
    blur=(1, 2, 3, 4, 6),
    jpeg=(25, 18, 15, 10, 7),
    contrast=(0.4, 0.3, 0.2, 0.1, 0.05),
)
TINY_IMAGENET = Severities(
    side=64,
    noise=(0.04, 0.08, 0.12, 0.15, 0.18),
    blur=(0.5, 0.75, 1, 1.25, 1.5),
    jpeg=(65, 58, 50, 40, 25),
    contrast=(0.4, 0.3, 0.2, 0.1, 0.05),
)


def severities(pixels: Tensor) -> Severities:
    return TINY_IMAGENET if min(pixels.shape[2:]) < SMALL else IMAGENET


def noise(pixels: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    std = 255 * severities(pixels).noise[severity - 1]

    def add(images: Tensor) -> Tensor:
        return images + std * torch.randn(images.shape, generator=generator)

    return _in_pieces(add, pixels)


def blur(pixels: Tensor, severity: int, _: torch.Generator) -> Tensor:
    constants = severities(pixels)
    kernel = _gaussian(constants.blur[severity - 1] * min(pixels.shape[2:]) / constants.side)
    reach = len(kernel) // 2

    def smooth(images: Tensor) -> Tensor:
        wide = functional.pad(images, (reach, reach, reach, reach), mode="replicate").flatten(0, 1)[:, None]
        rows = functional.conv2d(wide, kernel.view(1, 1, 1, -1))
        return functional.conv2d(rows, kernel.view(1, 1, -1, 1)).view_as(images)

    return _in_pieces(smooth, pixels)


def jpeg(pixels: Tensor, severity: int, _: torch.Generator) -> Tensor:
    quality = severities(pixels).jpeg[severity - 1]
    return torch.stack([_through_jpeg(image, quality) for image in pixels])


def contrast(pixels: Tensor, severity: int, _: torch.Generator) -> Tensor:
    rest = severities(pixels).contrast[severity - 1]

    def fade(images: Tensor) -> Tensor:
        mean = images.mean((2, 3), keepdim=True)
        return mean + rest * (images - mean)

    return _in_pieces(fade, pixels)


CORRUPTIONS: Mapping[str, Callable[[Tensor, int, torch.Generator], Tensor]] = {
    "noise": noise,
    "blur": blur,
    "jpeg": jpeg,
    "contrast": contrast,
}


def _in_pieces(corrupt: Callable[[Tensor], Tensor], pixels: Tensor) -> Tensor:
    """Corrupt fp32 images of 0 to 255 a few at a time; back to uint8, rounded."""
    pieces = (corrupt(piece.float()) for piece in pixels.split(AT_ONCE))
    return torch.cat([piece.round().clamp(0, 255).to(torch.uint8) for piece in pieces])


def _gaussian(sigma: float) -> Tensor:
    reach = max(1, round(4 * sigma))
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    return kernel / kernel.sum()


def _through_jpeg(image: Tensor, quality: int) -> Tensor:
    encoded = BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(encoded, "JPEG", quality=quality)
    with Image.open(encoded) as decoded:
        return torch.from_numpy(np.array(decoded)).permute(2, 0, 1)

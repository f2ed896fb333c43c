"""The images of an epoch, as training sees them: changed at random, uint8, batch by batch."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from PIL import ImageOps
from PIL.Image import Image, new
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from adapters.augment import augment
from adapters.originals import Original, open_original
from backbone.preprocess import ImageSpec, to_rgb

RAND_AUGMENT = "rand-m9-mstd0.5-inc1"


class Views(Protocol):
    """Where a training's images come from."""

    def epoch(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield uint8 [B, 3, H, W] for each tensor of indices."""


class PixelViews:
    """Decoded images [n, 3, H, W], as serving would see them, with `adapters.augment` on top."""

    def __init__(self, pixels: Tensor, names: Sequence[str], generator: torch.Generator) -> None:
        self._pixels, self._names, self._generator = pixels, names, generator

    def epoch(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        for indices in batches:
            yield augment(self._pixels[indices], self._names, self._generator)


class OriginalViews:
    """Original images, cropped and changed by timm's training transforms, in worker processes.

    Each epoch's workers draw from seeds of their own, made from PyTorch's global generator: the same seed and
    number of workers give the same images.
    """

    def __init__(self, originals: Sequence[Original], spec: ImageSpec, policy: str, *, workers: int) -> None:
        self._images = _Transformed(tuple(originals), training_transform(spec, policy))
        self._workers = workers

    def epoch(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        return iter(
            DataLoader(
                self._images,
                batch_sampler=[batch.tolist() for batch in batches],
                num_workers=self._workers,
                collate_fn=_stack,
            )
        )


class _Transformed(Dataset[Tensor]):
    """Images by index, for a loader's workers."""

    def __init__(self, originals: tuple[Original, ...], transform: Callable[[Image], Tensor]) -> None:
        self._originals, self._transform = originals, transform

    def __len__(self) -> int:
        return len(self._originals)

    def __getitem__(self, index: int) -> Tensor:
        return self._transform(to_rgb(open_original(self._originals[index])))


def training_transform(spec: ImageSpec, policy: str) -> Callable[[Image], Tensor]:
    """Return timm's training transform: crops of 8 to 100 % of the area, flips, and with `rand` RandAugment.

    It takes a PIL image in RGB and returns uint8 [3, H, W].
    """
    transform = create_transform(
        (3, spec.height, spec.width),
        is_training=True,
        use_prefetcher=True,
        auto_augment=RAND_AUGMENT if policy == "rand" else None,
        color_jitter=None,
        interpolation="random",
        mean=spec.mean,
        std=spec.std,
    )
    for step in transform.transforms:
        for op in getattr(step, "ops", ()):
            if op.name.startswith("Posterize"):
                op.aug_fn = posterize
    made: Callable[[Image], Tensor] = transform
    return made


def posterize(image: Image, bits: int, **_kwargs: object) -> Image:
    """Keep so many bits of each value. timm's RandAugment asks for none at times, which Pillow 13 refuses."""
    return ImageOps.posterize(image, bits) if bits else new(image.mode, image.size)


def _stack(images: list[Tensor]) -> Tensor:
    return torch.stack(images)

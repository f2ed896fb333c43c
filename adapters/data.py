"""A data set in memory: every image decoded once to the uint8 pixels that serving would feed the backbone."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from adapters.errors import DataInvalid
from adapters.listing import Listing, list_images
from adapters.originals import File, Original, content_digest, open_original, unreadable
from backbone.preprocess import ImageSpec, Pixels, preprocess


@dataclass(frozen=True, slots=True)
class Split:
    """Indices into a data set, int64."""

    train: Tensor
    val: Tensor


@dataclass(frozen=True, slots=True)
class Examples:
    """Images and their classes, not yet read; class k is `labels[k]`. `fixed` is a split that is given."""

    source: Path
    labels: tuple[str, ...]
    originals: tuple[Original, ...]
    targets: tuple[int, ...]
    fixed: Split | None = None

    @classmethod
    def of_listing(cls, listing: Listing) -> Self:
        paths, targets = zip(*listing.images, strict=True)
        return cls(listing.source, listing.labels, tuple(File(path) for path in paths), targets)

    def __len__(self) -> int:
        return len(self.originals)

    def at(self, places: Sequence[int]) -> Self:
        """Return some of them, in the order of the places; a split is lost."""
        originals = tuple(self.originals[place] for place in places)
        targets = tuple(self.targets[place] for place in places)
        return replace(self, originals=originals, targets=targets, fixed=None)

    def joined(self, other: Self) -> Self:
        """Return these, then others of the same classes; a split is lost."""
        originals, targets = self.originals + other.originals, self.targets + other.targets
        return replace(self, originals=originals, targets=targets, fixed=None)


@dataclass(frozen=True)
class Dataset:
    """Images and their classes.

    Attributes:
        source: Folder or CSV it was read from, or `torchvision:NAME`; its `name` names the data set.
        labels: Name of each class.
        originals: Where each image came from. They pickle small: workers take these, not the data set.
        pixels: uint8 [n, 3, H, W], preprocessed.
        targets: int64 [n], places in `labels`.
        digest: sha256 over labels and contents in order; file names do not matter beyond the order.
        copies: How many images are byte for byte the same as an earlier one.
        fixed: The split the data come with, which `split` then returns.
    """

    source: Path
    labels: tuple[str, ...]
    originals: tuple[Original, ...]
    pixels: Tensor
    targets: Tensor
    digest: str
    copies: int
    fixed: Split | None = None

    def __len__(self) -> int:
        return len(self.originals)

    def original(self, index: int) -> Image.Image:
        """Return an image at full size, as its file or set holds it.

        Raises:
            DataInvalid: If it cannot be read any more.
        """
        return open_original(self.originals[index])


def load_dataset(source: Path, spec: ImageSpec, *, threads: int = 2, progress: bool = False) -> Dataset:
    """List, read and decode a data set. Takes 3·H·W bytes of memory an image.

    Raises:
        DataInvalid: If the list is at fault or an image cannot be read; it is named.
    """
    return decode(Examples.of_listing(list_images(source)), spec, threads=threads, progress=progress)


def decode(examples: Examples, spec: ImageSpec, *, threads: int = 2, progress: bool = False) -> Dataset:
    """Read and decode images.

    Raises:
        DataInvalid: Naming the first image that cannot be read.
    """
    count = len(examples)
    pixels = np.empty((count, 3, spec.height, spec.width), np.uint8)
    hashes: list[str] = []
    with ThreadPoolExecutor(threads) as pool:
        decoded = pool.map(lambda original: _read(original, spec), examples.originals)
        bar = tqdm(decoded, desc="decode", total=count, unit="image", disable=not progress)
        for place, (image, content) in enumerate(bar):
            pixels[place] = image
            hashes.append(content)
    return Dataset(
        source=examples.source,
        labels=examples.labels,
        originals=examples.originals,
        pixels=torch.from_numpy(pixels),
        targets=torch.tensor(examples.targets),
        digest=_digest(examples.labels, examples.targets, hashes),
        copies=len(hashes) - len(set(hashes)),
        fixed=examples.fixed,
    )


def split(dataset: Dataset, val_fraction: float, seed: int) -> Split:
    """Return the data's own split; without one, divide every class at random, each side getting its share.

    Of each class at least one image goes to each side.

    Raises:
        DataInvalid: If a class has fewer than two images, and the data have no split.
    """
    if dataset.fixed is not None:
        return dataset.fixed
    generator = torch.Generator().manual_seed(seed)
    train, val = [], []
    for target, label in enumerate(dataset.labels):
        members = torch.nonzero(dataset.targets == target).flatten()
        if len(members) < 2:
            found = "one image; validation needs another beside it" if len(members) else "no image"
            raise DataInvalid(str(dataset.source), f"class {label} has {found}")
        members = members[torch.randperm(len(members), generator=generator)]
        held = min(max(round(val_fraction * len(members)), 1), len(members) - 1)
        val.append(members[:held])
        train.append(members[held:])
    return Split(torch.cat(train), torch.cat(val))


def _read(original: Original, spec: ImageSpec) -> tuple[Pixels, str]:
    try:
        content = original.read()
        return preprocess(content, spec), content_digest(content)
    except Exception as error:  # Pillow raises anything on a damaged file
        raise unreadable(original, error) from error


def _digest(labels: Sequence[str], targets: Sequence[int], hashes: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for target, content in zip(targets, hashes, strict=True):
        digest.update(f"{labels[target]}\0{content}\n".encode())
    return digest.hexdigest()

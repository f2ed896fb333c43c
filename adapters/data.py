"""A data set in memory: every image decoded once to the uint8 pixels that serving would feed the backbone."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from adapters.errors import DataInvalid
from adapters.listing import Listing, list_images
from backbone.preprocess import ImageSpec, Pixels, preprocess


@dataclass(frozen=True)
class Dataset:
    """Images and their classes.

    Attributes:
        source: Folder or CSV it was read from.
        labels: Name of each class.
        paths: File of each image.
        pixels: uint8 [n, 3, H, W], preprocessed.
        targets: int64 [n], places in `labels`.
        digest: sha256 over labels and file contents in order; file names do not matter beyond the order.
        copies: How many images are byte for byte the same as an earlier one.
    """

    source: Path
    labels: tuple[str, ...]
    paths: tuple[Path, ...]
    pixels: Tensor
    targets: Tensor
    digest: str
    copies: int

    def __len__(self) -> int:
        return len(self.paths)


@dataclass(frozen=True, slots=True)
class Split:
    """Indices into a data set, int64."""

    train: Tensor
    val: Tensor


def load_dataset(source: Path, spec: ImageSpec, *, threads: int = 2, progress: bool = False) -> Dataset:
    """List, read and decode a data set. Takes 3·H·W bytes of memory an image.

    Raises:
        DataInvalid: If the list is at fault or an image cannot be read; it is named.
    """
    return decode(list_images(source), spec, threads=threads, progress=progress)


def decode(listing: Listing, spec: ImageSpec, *, threads: int = 2, progress: bool = False) -> Dataset:
    """Read and decode the images of a listing.

    Raises:
        DataInvalid: Naming the first image that cannot be read.
    """
    count = len(listing.images)
    pixels = np.empty((count, 3, spec.height, spec.width), np.uint8)
    hashes: list[str] = []
    paths = [path for path, _ in listing.images]
    with ThreadPoolExecutor(threads) as pool:
        decoded = pool.map(lambda path: _read(path, spec), paths)
        bar = tqdm(decoded, desc="decode", total=count, unit="image", disable=not progress)
        for place, (image, content) in enumerate(bar):
            pixels[place] = image
            hashes.append(content)
    targets = [target for _, target in listing.images]
    return Dataset(
        source=listing.source,
        labels=listing.labels,
        paths=tuple(paths),
        pixels=torch.from_numpy(pixels),
        targets=torch.tensor(targets),
        digest=_digest(listing.labels, targets, hashes),
        copies=len(hashes) - len(set(hashes)),
    )


def split(dataset: Dataset, val_fraction: float, seed: int) -> Split:
    """Divide every class at random; each side gets at least one image of each class.

    Raises:
        DataInvalid: If a class has fewer than two images.
    """
    generator = torch.Generator().manual_seed(seed)
    train, val = [], []
    for target, label in enumerate(dataset.labels):
        members = torch.nonzero(dataset.targets == target).flatten()
        if len(members) < 2:
            raise DataInvalid(
                str(dataset.source), f"class {label} has one image; validation needs another beside it"
            )
        members = members[torch.randperm(len(members), generator=generator)]
        held = min(max(round(val_fraction * len(members)), 1), len(members) - 1)
        val.append(members[:held])
        train.append(members[held:])
    return Split(torch.cat(train), torch.cat(val))


def _read(path: Path, spec: ImageSpec) -> tuple[Pixels, str]:
    try:
        content = path.read_bytes()
        return preprocess(content, spec), hashlib.sha256(content).hexdigest()
    except Exception as error:  # Pillow raises anything on a damaged file
        raise DataInvalid(str(path), f"cannot be read as an image ({error})") from error


def _digest(labels: Sequence[str], targets: Sequence[int], hashes: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for target, content in zip(targets, hashes, strict=True):
        digest.update(f"{labels[target]}\0{content}\n".encode())
    return digest.hexdigest()

"""The data sets of the transfer benchmark, all from packages that install offline.

A set is divided once, by seed 0, class by class in proportion: 1000 images to fit (80 % training, 20 %
validation) and at most 1000 of the rest to test, as in VTAB-1k; a set of fewer than 1500 images in halves.
No image is in two parts. `photos` brings its own: what a patch is for follows from where it was cut.

    textile    simulated fabric, nominal or with a local or global defect    3 classes  800 + 200, test 1000
    mnist      handwritten digits of 28x28                                   10         800 + 200, test 1000
    optdigits  handwritten digits of 8x8 with 17 levels                      10         800 + 200, test 797
    faces      faces and other patches of 25x25                              2          80 + 20, test 100
    photos     grey patches of photographs and micrographs                   16         800 + 192, test 992
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from backbone.preprocess import ImageSpec, preprocess
from benchmarks import transfer_photos
from demo import make_data

SEED = 0
FIT, TEST, VAL_SHARE = 1000, 1000, 0.2
DIVIDED_IN_HALVES = 1500  # images below which a set is too small for 1000 to fit
PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class Source:
    """Images in a fixed order, read when called; `parts`, one of PARTS an image, where they are not free."""

    labels: tuple[str, ...]
    images: Sequence[Callable[[], Image.Image]]
    targets: Sequence[int]
    parts: Sequence[str] | None = None


@dataclass(frozen=True)
class TransferSet:
    """One data set, decoded and divided.

    Attributes:
        name: Key of SETS.
        labels: Name of each class.
        pixels: uint8 [n, 3, H, W]: training images, then validation, then test.
        targets: int64 [n], places in `labels`.
        train: int64, places in `pixels`; `val` and `test` likewise, all three disjoint.
        digest: sha256 over pixels, targets and parts.
    """

    name: str
    labels: tuple[str, ...]
    pixels: Tensor
    targets: Tensor
    train: Tensor
    val: Tensor
    test: Tensor
    digest: str


def textile() -> Source:
    return _of_classes(make_data.textile())


def mnist() -> Source:
    return _of_classes(make_data.digits())


def faces() -> Source:
    return _of_classes(make_data.faces())


def optdigits() -> Source:
    from sklearn.datasets import load_digits

    images, targets = load_digits(return_X_y=True)
    grey = (images.reshape(-1, 8, 8) * (255 / 16)).round().astype(np.uint8)
    read = [lambda row=row: Image.fromarray(grey[row]) for row in range(len(grey))]
    return Source(tuple(map(str, range(10))), read, targets.tolist())


def photos() -> Source:
    found = transfer_photos.patches()
    names = transfer_photos.PHOTOGRAPHS
    return Source(
        labels=tuple(name.partition(".")[0] for name in names),
        images=[patch.image for patch in found],
        targets=[names.index(patch.photograph) for patch in found],
        parts=[patch.part for patch in found],
    )


SETS: Mapping[str, Callable[[], Source]] = {
    "textile": textile,
    "mnist": mnist,
    "optdigits": optdigits,
    "faces": faces,
    "photos": photos,
}


def load_set(name: str, spec: ImageSpec) -> TransferSet:
    """Decode a set at a spec. The spec's crop applies: `crop_pct=1` keeps whole images, as VTAB does."""
    source = SETS[name]()
    places = divide(source)
    chosen = [place for part in PARTS for place in places[part]]
    pixels = torch.from_numpy(np.stack([preprocess(source.images[place](), spec) for place in chosen]))
    targets = torch.tensor([source.targets[place] for place in chosen])
    sizes = [len(places[part]) for part in PARTS]
    train, val, test = torch.arange(len(chosen)).split(sizes)
    return TransferSet(
        name=name,
        labels=source.labels,
        pixels=pixels,
        targets=targets,
        train=train,
        val=val,
        test=test,
        digest=_digest(pixels, targets, sizes),
    )


def divide(source: Source) -> dict[str, list[int]]:
    """Return the places of each part's images in the source; part of them may be in none."""
    if source.parts is not None:
        return {part: [i for i, of in enumerate(source.parts) if of == part] for part in PARTS}
    total = len(source.targets)
    fit = FIT if total >= DIVIDED_IN_HALVES else total // 2
    val = round(VAL_SHARE * fit)
    free = torch.randperm(total, generator=torch.Generator().manual_seed(SEED)).tolist()
    places = {}
    for part, count in (("val", val), ("train", fit - val), ("test", min(TEST, total - fit))):
        places[part] = _take(free, source.targets, count)
        taken = set(places[part])
        free = [place for place in free if place not in taken]
    return places


def apportion(count: int, sizes: Sequence[int]) -> list[int]:
    """Share a count among classes in proportion to their sizes; the largest remainders get what is left."""
    exact = [count * size / sum(sizes) for size in sizes]
    shares = [int(share) for share in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda place: shares[place] - exact[place])
    for place in by_remainder[: count - sum(shares)]:
        shares[place] += 1
    return shares


def _take(free: Sequence[int], targets: Sequence[int], count: int) -> list[int]:
    classes = sorted(set(targets))
    members = [[place for place in free if targets[place] == target] for target in classes]
    shares = apportion(count, [len(of_class) for of_class in members])
    return [place for of_class, share in zip(members, shares, strict=True) for place in of_class[:share]]


def _of_classes(classes: make_data.Classes) -> Source:
    members = [(target, make) for target, made in enumerate(classes.values()) for make in made]
    return Source(
        labels=tuple(classes),
        images=[lambda make=make: make()[1] for _, make in members],
        targets=[target for target, _ in members],
    )


def _digest(pixels: Tensor, targets: Tensor, sizes: Sequence[int]) -> str:
    digest = hashlib.sha256(f"{list(pixels.shape)} {list(sizes)}\n".encode())
    digest.update(pixels.numpy().tobytes())
    digest.update(targets.numpy().tobytes())
    return digest.hexdigest()

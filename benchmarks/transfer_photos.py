"""Patches of real photographs and micrographs: one class a photograph, grey, from regions that never touch.

A photograph falls into three upright stripes with gaps between them: training patches come from the left one,
validation patches from the middle one, test patches from the right one. Patches overlap only inside a stripe.
"""

import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

PHOTOGRAPHS = (
    "astronaut.png", "brick.png", "chelsea.png", "china.jpg", "coffee.png", "coins.png", "grass.png",
    "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "page.png",
    "retina.jpg", "rocket.jpg", "text.png",
)  # fmt: skip
FOLDERS = (("skimage", "data"), ("sklearn", "datasets/images"))
LONGEST = 768  # larger photographs are shrunk: a patch of the retina would show no vessel
SIDE = 64
STRIPES: Mapping[str, tuple[float, float]] = {"train": (0, 0.45), "val": (0.47, 0.69), "test": (0.71, 1)}
PATCHES: Mapping[str, int] = {"train": 50, "val": 12, "test": 62}  # of each class
LEAST_STD = 2.0  # grey levels; below lie clear sky and the black around the retina, alike in every class
SEED = 0


@dataclass(frozen=True, slots=True)
class Patch:
    """A square of a photograph; left, top in its pixels after shrinking."""

    photograph: str
    part: str
    left: int
    top: int

    def image(self) -> Image.Image:
        return grey(self.photograph).crop((self.left, self.top, self.left + SIDE, self.top + SIDE))


def patches() -> list[Patch]:
    """Return the patches of every photograph and part, the same ones each time."""
    return [
        patch
        for place, photograph in enumerate(PHOTOGRAPHS)
        for number, part in enumerate(STRIPES)
        for patch in _draw(photograph, part, np.random.default_rng((SEED, place, number)))
    ]


def region(photograph: str, part: str) -> tuple[int, int]:
    """Return the columns [from, to) that a part's patches lie in."""
    low, high = STRIPES[part]
    width = grey(photograph).width
    return int(low * width), int(high * width)


@cache
def grey(photograph: str) -> Image.Image:
    with Image.open(_path(photograph)) as image:
        photo = image.convert("L")
    photo.thumbnail((LONGEST, LONGEST))
    return photo


def _draw(photograph: str, part: str, random: np.random.Generator) -> Iterator[Patch]:
    start, end = region(photograph, part)
    lefts, tops = end - start - SIDE + 1, grey(photograph).height - SIDE + 1
    places = (
        Patch(photograph, part, start + int(p % lefts), int(p // lefts))
        for p in random.permutation(lefts * tops)
    )
    shown = (patch for patch in places if np.asarray(patch.image()).std() >= LEAST_STD)
    yield from (patch for _, patch in zip(range(PATCHES[part]), shown, strict=False))


def _path(name: str) -> Path:
    for package, folder in FOLDERS:
        spec = importlib.util.find_spec(package)
        if spec and spec.submodule_search_locations:
            path = Path(spec.submodule_search_locations[0]) / folder / name
            if path.exists():
                return path
    raise FileNotFoundError(f"{name}: install scikit-image and scikit-learn")

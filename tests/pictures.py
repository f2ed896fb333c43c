"""Small image folders whose classes a model can learn."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Draw = Callable[[int, np.random.Generator], NDArray[np.uint8]]

SIDE = 32


def tint(target: int, random: np.random.Generator) -> NDArray[np.uint8]:
    """Class k is strong in colour channel k: easy."""
    image = random.integers(0, 90, (SIDE, SIDE, 3))
    image[..., target] += 120
    return image.astype(np.uint8)


def stripes(target: int, random: np.random.Generator) -> NDArray[np.uint8]:
    """Stripes across (class 0) or down (class 1), at a random phase and strength: no pixel tells anything."""
    phase, strength = random.uniform(0, 2 * np.pi), random.uniform(10, 25)
    wave = 128 + strength * np.sin(2 * np.pi * np.arange(SIDE) / 5 + phase)
    image = np.broadcast_to(wave[:, None] if target == 0 else wave[None, :], (SIDE, SIDE))
    noisy = image[..., None] + random.normal(0, 40, (SIDE, SIDE, 3))
    return noisy.clip(0, 255).astype(np.uint8)


def write_folder(
    root: Path,
    *,
    labels: tuple[str, ...] = ("blue", "green", "red"),
    each: int = 12,
    draw: Draw = tint,
    seed: int = 0,
) -> Path:
    """Write `each` PNG files into one folder a label; class k is drawn as `draw(k, …)`."""
    random = np.random.default_rng(seed)
    for target, label in enumerate(labels):
        (root / label).mkdir(parents=True)
        for number in range(each):
            Image.fromarray(draw(target, random)).save(root / label / f"{number:03d}.png")
    return root

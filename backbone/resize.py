"""`resize_and_crop` and the turn upright of `backbone.preprocess`, about seven times faster, by torch.

Numerics: torch's antialiased uint8 kernels were written after Pillow's: two passes, each rounded to uint8,
with weights of 16 bits for Pillow's 22. What differs is which way a value near .5 is rounded: one value in
some hundred differs by one grey level, and some in a million by two, where several such fall together. The
passes must come in Pillow's order, or high contrast differs by tens of levels; and since a turn swaps the
axes, turning the small result instead of the large image swaps the passes.
Ground truth: `backbone.preprocess`. Tests: tests/unit/test_resize.py.
"""

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from backbone.preprocess import UPRIGHT, ImageSpec, Pixels, resize_and_crop, resized_size, to_pixels

INTERPOLATIONS = frozenset({"bilinear", "bicubic"})  # what torch does as Pillow does
MIN_SIDE = 8  # torch mistakes the layout of an image one pixel wide; small ones gain nothing anyway
TALL_FIRST = int(PIL.__version__.partition(".")[0]) >= 13  # see `_vertical_first`

Size = tuple[int, int]  # width, height

# orientation: whether the axes swap, then which axes of [1, 3, H, W] run backwards
TURNS: dict[int, tuple[bool, tuple[int, ...]]] = {
    2: (False, (3,)),
    3: (False, (2, 3)),
    4: (False, (2,)),
    5: (True, ()),
    6: (True, (3,)),
    7: (True, (2, 3)),
    8: (True, (2,)),
}
UNTURNED: tuple[bool, tuple[int, ...]] = (False, ())


def upright_size(size: Size, orientation: int) -> Size:
    """Return the width and height of an image once it is turned upright; and back, being its own inverse."""
    swapped, _ = TURNS.get(orientation, UNTURNED)
    return (size[1], size[0]) if swapped else size


def fit(
    pixels: NDArray[np.uint8], spec: ImageSpec, *, orientation: int = 1, size: Size | None = None
) -> Pixels:
    """Resize, turn upright and crop.

    Args:
        pixels: RGB [height, width, 3], as the file holds them; writeable, though nothing is written.
        spec: What the backbone sees.
        orientation: As in EXIF.
        size: Width and height as the file states them, where the pixels are a reduced version of it.

    Returns:
        Pixels [3, spec.height, spec.width], contiguous.
    """
    stored = pixels.shape[1], pixels.shape[0]
    target = resized_size(upright_size(size or stored, orientation), spec)
    if not _is_for_torch((*stored, *target), spec):
        return _fit_with_pillow(pixels, spec, orientation)
    image = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)  # [1, 3, H, W], channels last in memory
    image = _turned(_resized_and_cropped(image, target, orientation, spec), orientation)
    return np.ascontiguousarray(image[0].numpy())


def _is_for_torch(sides: tuple[int, ...], spec: ImageSpec) -> bool:
    is_padded = spec.crop_pct > 1  # the crop is larger than the resized image
    return spec.interpolation in INTERPOLATIONS and min(sides) >= MIN_SIDE and not is_padded


def _fit_with_pillow(pixels: NDArray[np.uint8], spec: ImageSpec, orientation: int) -> Pixels:
    image, turn = Image.fromarray(pixels), UPRIGHT.get(orientation)
    return to_pixels(resize_and_crop(image if turn is None else image.transpose(turn), spec))


def _resized_and_cropped(image: Tensor, target: Size, orientation: int, spec: ImageSpec) -> Tensor:
    """Resize [1, 3, H, W], which lies as in the file, to the target size, which is upright, and crop it.

    The crop comes as early as it changes nothing: each pass leaves the rows or columns of the other alone.
    """
    height, width = image.shape[2:]
    new_width, new_height = upright_size(target, orientation)
    rows, columns = _window(target, orientation, spec)
    swapped, _ = TURNS.get(orientation, UNTURNED)
    if _vertical_first(upright_size((width, height), orientation), target) is not swapped:
        image = _pass(image, (new_height, width), spec)[:, :, rows]
        return _pass(image, (image.shape[2], new_width), spec)[..., columns]
    image = _pass(image, (height, new_width), spec)[..., columns]
    return _pass(image, (new_height, image.shape[3]), spec)[:, :, rows]


def _pass(image: Tensor, size: tuple[int, int], spec: ImageSpec) -> Tensor:
    if image.shape[2:] == size:
        return image
    return functional.interpolate(image, size=size, mode=spec.interpolation, antialias=True)


def _window(target: Size, orientation: int, spec: ImageSpec) -> tuple[slice, slice]:
    """Return the rows and columns of the crop in the resized image that is not yet turned."""
    swapped, backwards = TURNS.get(orientation, UNTURNED)
    starts, counts = [], (spec.height, spec.width)
    for axis, length, count in zip((2, 3), reversed(target), counts, strict=True):
        start = round((length - count) / 2)
        starts.append(length - count - start if axis in backwards else start)
    rows, columns = (slice(start, start + count) for start, count in zip(starts, counts, strict=True))
    return (columns, rows) if swapped else (rows, columns)


def _vertical_first(size: Size, target: Size) -> bool:
    """Tell the order of Pillow's passes: since 13, what loses much more height than width is done so."""
    less_width, less_height = size[0] - target[0], size[1] - target[1]
    return TALL_FIRST and less_height > max(0, 2 * less_width)


def _turned(image: Tensor, orientation: int) -> Tensor:
    swapped, backwards = TURNS.get(orientation, UNTURNED)
    return (image.transpose(2, 3) if swapped else image).flip(backwards)

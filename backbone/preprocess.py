"""From an encoded image to the uint8 pixels a backbone sees. This module loads no torch.

Training comes through here; serving too, or through its fast twin, `backbone.resize`. The result equals, bit
for bit, `timm.data.create_transform(..., is_training=False)` before its normalisation, on an image made
upright and RGB by `to_rgb`:

    orientation   EXIF and XMP orientation is applied; unreadable or huge metadata counts as none
    alpha         is dropped, not composited: what `Image.convert("RGB")` does in torchvision's ImageFolder
                  and in timm's readers, and so what converted checkpoints were trained on
    16-bit grey   keeps its upper 8 bits (`convert` would clip nearly all of it to white)
    32-bit, float have no known range and are refused
    the rest      as `Image.convert("RGB")`: palette, grey, CMYK (Adobe's inverted too), YCbCr, LAB
"""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from backbone.errors import PixelsUnsupported

Pixels = NDArray[np.uint8]  # [3, H, W]

INTERPOLATION = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
ORIENTATION_TAG = 0x0112
MAX_EXIF_BYTES = 2**20  # parsed into Python objects; real ones are below 64 KiB
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
GREY_16 = {"I;16": "<u2", "I;16L": "<u2", "I;16B": ">u2", "I;16N": "=u2"}


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """What a backbone sees: timm's evaluation transform. Same fields as a manifest's preprocessing."""

    height: int
    width: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    crop_pct: float = 0.875
    crop_mode: Literal["center", "squash"] = "center"


def preprocess(source: Image.Image | bytes | Path, spec: ImageSpec) -> Pixels:
    """Return the pixels [3, height, width] of an image, an encoded image or a file.

    Raises:
        PixelsUnsupported: If its pixel format has no known range.
        OSError, and what else Pillow raises: If it cannot be decoded.
    """
    if isinstance(source, Image.Image):
        return to_pixels(resize_and_crop(to_rgb(source), spec))
    with Image.open(BytesIO(source) if isinstance(source, bytes) else source) as image:
        return to_pixels(resize_and_crop(to_rgb(image), spec))


def to_rgb(image: Image.Image) -> Image.Image:
    """Return the image upright and in RGB; the same object where it is so already.

    Raises:
        PixelsUnsupported: If its pixel format has no known range.
    """
    image.load()
    turn = UPRIGHT.get(orientation_of(image))
    return as_rgb(image if turn is None else image.transpose(turn))


def as_rgb(image: Image.Image) -> Image.Image:
    """Return the image in RGB, as it lies; the same object where it is RGB already.

    Raises:
        PixelsUnsupported: If its pixel format has no known range.
    """
    image.load()
    if image.mode == "RGB":
        return image
    if image.mode in GREY_16:
        return _grey_16_to_8(image).convert("RGB")
    if image.mode in {"I", "F", "La"}:
        raise PixelsUnsupported(image.mode)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB, Pillow warns about the alpha it drops
    return image.convert("RGB")


def orientation_of(image: Image.Image) -> int:
    """Return how a loaded image lies, as in EXIF: 1 upright, 2 to 8 turned, others mean nothing."""
    if len(image.info.get("exif", b"")) > MAX_EXIF_BYTES:
        return 1
    try:
        value = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # noqa: BLE001 Pillow's metadata parsers raise anything; pixels matter, metadata helps
        return 1
    return value if isinstance(value, int) else 1


def resize_and_crop(image: Image.Image, spec: ImageSpec) -> Image.Image:
    """Return an RGB image of the spec's size, resized and cropped as timm does."""
    width, height = resized_size(image.size, spec)
    if (width, height) != image.size:
        image = image.resize((width, height), INTERPOLATION[spec.interpolation])
    top, left = round((height - spec.height) / 2), round((width - spec.width) / 2)
    if (width, height) == (spec.width, spec.height):
        return image
    return image.crop((left, top, left + spec.width, top + spec.height))


def resized_size(size: tuple[int, int], spec: ImageSpec) -> tuple[int, int]:
    """Return the width and height to which timm resizes an image of a width and height before the crop."""
    width, height = size
    target_width, target_height = int(spec.width / spec.crop_pct), int(spec.height / spec.crop_pct)
    if spec.crop_mode == "squash":
        return target_width, target_height
    if target_width != target_height:
        ratio = min(height / target_height, width / target_width)
        return round(width / ratio), round(height / ratio)
    if width <= height:
        return target_width, int(target_width * height / width)
    return int(target_height * width / height), target_height


def to_pixels(image: Image.Image) -> Pixels:
    """Return an RGB image's pixels [3, H, W], contiguous."""
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def normalise(pixels: Pixels, spec: ImageSpec) -> NDArray[np.float32]:
    """Return (pixels / 255 - mean) / std, in fp32: the reference for what devices fuse into the forward."""
    mean = np.asarray(spec.mean, np.float32)[:, None, None]
    std = np.asarray(spec.std, np.float32)[:, None, None]
    return (pixels.astype(np.float32) / np.float32(255) - mean) / std


def _grey_16_to_8(image: Image.Image) -> Image.Image:
    values = np.frombuffer(image.tobytes(), dtype=GREY_16[image.mode])
    return Image.fromarray((values >> 8).astype(np.uint8).reshape(image.height, image.width))

"""Reading images several times faster than Pillow alone, for `server.images`. Loads torch.

JPEGs are decoded by libjpeg-turbo straight into an array, to the same bits as by Pillow; what it does not
take without complaint (damaged files, CMYK) and every other format is decoded by Pillow, so that neither what
is accepted nor what is said of the rest depends on the reader. Resizing is torch's: see `backbone.resize`.
"""

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from backbone.preprocess import ImageSpec, Pixels, as_rgb, orientation_of, resized_size
from backbone.resize import Size, fit, upright_size

JPEG_MODES = frozenset({"RGB", "L"})
REDUCTIONS = (8, 4, 2)  # of width and height; the sizes for which libjpeg-turbo has vector code
MARGIN = 1.5  # what is decoded is at least so much larger than the resized image: see docs/benchmarks.md


def read_fast(image: Image.Image, data: bytes, spec: ImageSpec) -> Pixels:
    """Return what training sees, but for single grey levels: see `backbone.resize`."""
    return _read(image, data, spec, reduction=1)


def read_scaled(image: Image.Image, data: bytes, spec: ImageSpec) -> Pixels:
    """Return about what training sees: a large JPEG is decoded at 1/2, 1/4 or 1/8 of its width and height.

    Its inverse cosine transform is cut short, which is a low-pass filter of its own: some grey levels off on
    average where a photograph has much detail, tens at sharp edges.
    """
    reduction = _reduction(image, spec) if isinstance(image, JpegImageFile) else 1
    return _read(image, data, spec, reduction=reduction)


def _read(image: Image.Image, data: bytes, spec: ImageSpec, *, reduction: int) -> Pixels:
    pixels = _decode_jpeg(image, data, reduction) if isinstance(image, JpegImageFile) else None
    if pixels is not None:
        return fit(pixels, spec, orientation=orientation_of(image), size=image.size)
    pixels = np.array(as_rgb(image))  # before the orientation: a PNG may state it after its pixels
    return fit(pixels, spec, orientation=orientation_of(image))


def _decode_jpeg(image: JpegImageFile, data: bytes, reduction: int) -> NDArray[np.uint8] | None:
    """Return the pixels [height, width, 3], or None where Pillow should look at the file."""
    if image.mode not in JPEG_MODES:
        return None
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
        if (width, height) != image.size:  # only this size was checked
            return None
        smaller = {"min_width": -(-width // reduction), "min_height": -(-height // reduction)}
        decoded: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, **smaller)
    except ValueError:
        return None
    return decoded


def _reduction(image: JpegImageFile, spec: ImageSpec) -> int:
    orientation = orientation_of(image)
    target: Size = upright_size(resized_size(upright_size(image.size, orientation), spec), orientation)
    slack = min(have / need for have, need in zip(image.size, target, strict=True))
    return next((reduction for reduction in REDUCTIONS if slack >= MARGIN * reduction), 1)

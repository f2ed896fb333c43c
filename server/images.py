"""Decoding what clients send, which may be hostile: every limit is checked before pixels are touched.

The first frame of an animation and the first page of a TIFF count; others are neither decoded nor counted.
Pillow parses headers in Python, under the interpreter lock, so besides the pixels this bounds what a small
file can make that parser do: see `image_guards`.
"""

import asyncio
import logging
import os
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from adapters.manifest import Preprocessing
from backbone.errors import PixelsUnsupported
from backbone.preprocess import ImageSpec, Pixels, preprocess
from server.contracts import Image
from server.errors import ImageInvalid, ImageTooLarge, ImageTypeUnsupported, QueueFull, ServerError
from server.image_guards import BoundedReader, FirstPage, check_bytes, check_header, check_size
from server.image_types import ImageType, declared_type, sniff
from server.pixel_budget import PixelBudget

# an image whose size was checked, and the bytes of its file, where it is one
Reader = Callable[[PillowImage.Image, bytes, ImageSpec], Pixels]

P = ParamSpec("P")

# Built directly, not through `Image.open`: that would try every format, parse embedded previews, and warn
# about sizes by a process-wide limit.
READERS: dict[ImageType, type[ImageFile]] = {
    ImageType.JPEG: JpegImageFile,
    ImageType.PNG: PngImageFile,
    ImageType.WEBP: WebPImageFile,
    ImageType.BMP: BmpImageFile,
    ImageType.GIF: GifImageFile,
    ImageType.TIFF: FirstPage,
}


def read_with_pillow(image: PillowImage.Image, _: bytes, spec: ImageSpec) -> Pixels:
    """Return what training sees, bit for bit. `server.fast_images` has faster readers, which need torch."""
    return preprocess(image, spec)


class ImageDecoder:
    """Turns files into what the backbone sees, in a pool of threads.

    Args:
        preprocessing: What the backbone sees.
        max_pixels: Largest image, and what the threads decode at a time, which takes up to 20 bytes of
            memory per pixel: a large image waits for others, in its thread, and small ones share.
        read: Makes pixels of a file; it may raise anything.
        threads: Size of the pool; 0 for one per core.
        max_waiting: Files that may wait for a thread.
        observe: Told on the event loop how many seconds each good image took its thread.
    """

    def __init__(
        self,
        preprocessing: Preprocessing,
        *,
        max_pixels: int,
        read: Reader = read_with_pillow,
        threads: int = 0,
        max_waiting: int = 1024,
        observe: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        # Pillow warns about odd files: clients must not write to the server's log that way
        warnings.filterwarnings("ignore", module=r"PIL\.")
        logging.getLogger("PIL").setLevel(logging.CRITICAL)
        self._spec = ImageSpec(**preprocessing.model_dump())
        self._read = read
        self._max_pixels = max_pixels
        self._budget = PixelBudget(max_pixels)
        self._threads = threads or os.cpu_count() or 1
        self._max_open = self._threads + max_waiting
        self._observe = observe
        self._open = 0
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="decode")

    async def decode(self, data: bytes, content_type: str | None) -> Image:
        """Decode off the event loop. Cancelling the call drops a file that still waits.

        Raises:
            ImageInvalid, ImageTooLarge, ImageTypeUnsupported
            QueueFull: If too many files wait already.
        """
        return await self._in_pool(self._decode, data, content_type)

    async def fit(self, pixels: NDArray[np.uint8]) -> Image:
        """Turn RGB pixels [height, width, 3] into what the backbone sees, as if decoded from a file.

        Raises:
            ImageTooLarge
            QueueFull: If too many images wait already.
        """
        return await self._in_pool(self._fit, pixels)

    async def _in_pool(
        self, work: Callable[P, tuple[Image, float]], *args: P.args, **kwargs: P.kwargs
    ) -> Image:
        if self._open >= self._max_open:
            raise QueueFull(self._max_open, retry_after_seconds=1)
        self._open += 1
        try:
            loop = asyncio.get_running_loop()
            image, seconds = await loop.run_in_executor(self._pool, partial(work, *args, **kwargs))
        finally:
            self._open -= 1
        self._observe(seconds)
        return image

    def decode_here(self, data: bytes, content_type: str | None) -> Image:
        """Decode in the calling thread.

        Raises:
            ImageInvalid, ImageTooLarge, ImageTypeUnsupported
        """
        return self._decode(data, content_type)[0]

    def _decode(self, data: bytes, content_type: str | None) -> tuple[Image, float]:
        """Return the image and the seconds that it took, without what it waited for others' pixels."""
        started = time.perf_counter()
        kind = _type_of(data, content_type)
        try:
            check_bytes(kind, data)
            with READERS[kind](BoundedReader(data)) as image:
                check_header(image, self._max_pixels)
                with self._budget.hold(image.width * image.height) as waited:
                    pixels = self._read(image, data, self._spec)
        except (ServerError, MemoryError):
            raise
        except PillowImage.DecompressionBombError as error:
            raise ImageTooLarge(f"more than {self._max_pixels} pixels") from error
        except PixelsUnsupported as error:
            raise ImageInvalid(str(error)) from error
        except Exception as error:  # Pillow raises anything on hostile bytes
            raise ImageInvalid(_reason(kind, error)) from error
        return pixels, time.perf_counter() - started - waited

    def _fit(self, pixels: NDArray[np.uint8]) -> tuple[Image, float]:
        started = time.perf_counter()
        height, width, _ = pixels.shape
        check_size(width, height, self._max_pixels)
        with self._budget.hold(width * height) as waited:
            fitted = self._read(PillowImage.fromarray(pixels), b"", self._spec)
        return fitted, time.perf_counter() - started - waited

    def close(self) -> None:
        """Drop what waits; what is being decoded is finished by its thread."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _type_of(data: bytes, content_type: str | None) -> ImageType:
    """Return the type of the bytes, which must be the declared one where one is declared."""
    if not data:
        raise ImageInvalid("it is empty")
    found, declared = sniff(data), declared_type(content_type)
    if found is None:
        if declared in set(ImageType):
            raise ImageInvalid(f"it does not begin as {declared} does")
        raise ImageTypeUnsupported(declared or "what was sent")
    if declared not in {"", found}:
        raise ImageTypeUnsupported(f"{found} declared as {declared}")
    return found


def _reason(kind: ImageType, error: Exception) -> str:
    """Return what may be told to a client: Pillow's own words on a file, nothing of its insides."""
    damaged = f"its {kind.name} data is damaged"
    told = str(error) if isinstance(error, OSError | SyntaxError) else ""
    return f"{damaged} ({told[:120]})" if told.isascii() and told.isprintable() and told else damaged

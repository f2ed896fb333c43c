"""What a file may not ask of Pillow: in each format, what costs most work or memory per byte sent."""

import struct
from io import BytesIO

from PIL.ImageFile import ImageFile

from server.errors import ImageInvalid, ImageTooLarge, ImageTypeUnsupported
from server.image_types import ImageType

MAX_ASPECT = 200  # one side over the other: the resized image grows with it
MAX_READS = 1_000_000  # of the header parser, which reads segment by segment; about a second
MAX_JPEG_SCANS = 100  # each scan of a progressive JPEG goes over all pixels; encoders write about 10
MAX_TIFF_VALUES = 100_000  # of one tag: they become Python objects, and strips become decoder calls
TIFF_RAW_TYPES = frozenset({1, 2, 7})  # BYTE, ASCII, UNDEFINED stay bytes


class BoundedReader(BytesIO):
    """A file in memory that may be read only so often."""

    _left = MAX_READS

    def read(self, size: int | None = -1, /) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise ImageInvalid("it has too many parts")
        return super().read(size)


def check_bytes(kind: ImageType, data: bytes) -> None:
    """Refuse what the header parser must not even see.

    Raises:
        ImageInvalid, ImageTooLarge
    """
    if kind is ImageType.JPEG and data.count(b"\xff\xda") > MAX_JPEG_SCANS:
        raise ImageTooLarge(f"more than {MAX_JPEG_SCANS} scans")
    if kind is ImageType.TIFF:
        _check_tiff(data)


def check_header(image: ImageFile, max_pixels: int) -> None:
    """Refuse what a parsed header says is too much to decode.

    Raises:
        ImageTooLarge, ImageTypeUnsupported
    """
    width, height = image.size
    if width * height > max_pixels:
        raise ImageTooLarge(f"{width}x{height} is more than {max_pixels} pixels")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageTooLarge(f"{width}x{height}: one side may be {MAX_ASPECT} times the other")
    if any(tile[0] == "bmp_rle" for tile in image.tile):  # decoded in Python: seconds per megabyte
        raise ImageTypeUnsupported("run-length encoded image/bmp")


def _check_tiff(data: bytes) -> None:
    """Check the number of values of each tag in the first directory, where the image is described."""
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in {b"+\0", b"\0+"}
    head, count, entry = ("8xQ", "Q", "HHQ8x") if big else ("4xI", "H", "HHI4x")
    try:
        (start,) = struct.unpack_from(order + head, data)
        (entries,) = struct.unpack_from(order + count, data, start)
        table = data[start + struct.calcsize(order + count) :][: entries * struct.calcsize(order + entry)]
        for _, kind, values in struct.iter_unpack(order + entry, table):
            if values > MAX_TIFF_VALUES and kind not in TIFF_RAW_TYPES:
                raise ImageTooLarge(f"a TIFF tag of {values} values")
    except struct.error as error:
        raise ImageInvalid("its TIFF directory is damaged") from error

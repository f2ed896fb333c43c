"""What a file may not ask of Pillow: in each format, what costs most work or memory per byte sent."""

import re
import struct
from io import BytesIO

from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from server.errors import ImageInvalid, ImageTooLarge, ImageTypeUnsupported
from server.image_types import ImageType

MAX_ASPECT = 200  # one side over the other: the resized image grows with it
MAX_READS = 100_000  # parsers read part by part, in Python; up to 10 microseconds each
MAX_JPEG_SEGMENTS = 10_000
MAX_JPEG_SCANS = 50  # each goes over all pixels; encoders write about 10
MAX_TIFF_VALUES = 50_000  # of one tag: they become Python objects, and strips become decoder calls
MAX_LAYERS = 8  # times that all pixels are covered: planes of colour, extra channels
TIFF_RAW_TYPES = frozenset({1, 2, 7})  # BYTE, ASCII, UNDEFINED stay bytes
START_OF_SCAN, END_OF_IMAGE = 0xDA, 0xD9

_JPEG_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")  # what ends entropy-coded data


class BoundedReader(BytesIO):
    """A file in memory that may be read only so often."""

    _left = MAX_READS

    def read(self, size: int | None = -1, /) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise ImageInvalid("it has too many parts")
        return super().read(size)


class FirstPage(TiffImageFile):
    """A TIFF whose other directories, metadata among them, are not read: they may cost seconds."""

    def load_end(self) -> None:
        self.getexif()  # of the page's own directory, while the file is open
        # as stored, like the pixels: Pillow states it upright, and would turn the pixels here
        self._size = self.im.size


def check_bytes(kind: ImageType, data: bytes) -> None:
    """Refuse what the header parser must not even see.

    Raises:
        ImageInvalid, ImageTooLarge
    """
    if kind is ImageType.JPEG:
        _check_jpeg(data)
    if kind is ImageType.TIFF:
        _check_tiff(data)


def check_header(image: ImageFile, max_pixels: int) -> None:
    """Refuse what a parsed header says is too much to decode.

    Raises:
        ImageTooLarge, ImageTypeUnsupported
    """
    width, height = image.size
    check_size(width, height, max_pixels)
    if sum(_area(tile.extents) for tile in image.tile) > MAX_LAYERS * width * height:
        raise ImageTooLarge("its strips cover the image many times")
    if any(tile[0] == "bmp_rle" for tile in image.tile):  # decoded in Python: seconds per megabyte
        raise ImageTypeUnsupported("run-length encoded image/bmp")


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Refuse what is too large to resize.

    Raises:
        ImageTooLarge
    """
    if width * height > max_pixels:
        raise ImageTooLarge(f"{width}x{height} is more than {max_pixels} pixels")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageTooLarge(f"{width}x{height}: one side may be {MAX_ASPECT} times the other")


def _area(box: tuple[int, int, int, int] | None) -> int:
    return 0 if box is None else (box[2] - box[0]) * (box[3] - box[1])


def _check_jpeg(data: bytes) -> None:
    """Count segments and scans up to the end of the image; phones append videos behind it."""
    at, scans = 2, 0
    for _ in range(MAX_JPEG_SEGMENTS):
        found = _JPEG_MARKER.search(data, at)
        if found is None or found[1][0] == END_OF_IMAGE:
            return
        scans += found[1][0] == START_OF_SCAN
        if scans > MAX_JPEG_SCANS:
            raise ImageTooLarge(f"more than {MAX_JPEG_SCANS} scans")
        at = found.end() + max(2, int.from_bytes(data[found.end() : found.end() + 2]))
    raise ImageInvalid("it has too many parts")


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

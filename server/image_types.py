"""Which image formats the server takes, by their first bytes and by content type. Loads no Pillow."""

from enum import StrEnum


class ImageType(StrEnum):
    """A format the server takes, by its content type."""

    JPEG = "image/jpeg"
    PNG = "image/png"
    WEBP = "image/webp"
    BMP = "image/bmp"
    GIF = "image/gif"
    TIFF = "image/tiff"


MAGIC = (
    (b"\xff\xd8\xff", ImageType.JPEG),
    (b"\x89PNG\r\n\x1a\n", ImageType.PNG),
    (b"GIF87a", ImageType.GIF),
    (b"GIF89a", ImageType.GIF),
    (b"II*\0", ImageType.TIFF),
    (b"MM\0*", ImageType.TIFF),
    (b"II+\0", ImageType.TIFF),
    (b"MM\0+", ImageType.TIFF),
    (b"BM", ImageType.BMP),
)
ALIASES = {
    "image/jpg": ImageType.JPEG,
    "image/pjpeg": ImageType.JPEG,
    "image/apng": ImageType.PNG,
    "image/x-png": ImageType.PNG,
    "image/x-bmp": ImageType.BMP,
    "image/x-ms-bmp": ImageType.BMP,
    "image/tif": ImageType.TIFF,
}
UNDECLARED = frozenset({"", "application/octet-stream", "image/*"})  # the bytes alone decide


def sniff(data: bytes) -> ImageType | None:
    """Return the format that the first bytes name."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return ImageType.WEBP
    return next((kind for magic, kind in MAGIC if data.startswith(magic)), None)


def declared_type(content_type: str | None) -> str:
    """Return a content type without its parameters, in its canonical spelling; empty if it says nothing."""
    name = (content_type or "").partition(";")[0].strip().lower()
    return "" if name in UNDECLARED else ALIASES.get(name, name)

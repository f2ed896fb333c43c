"""Images as their data set keeps them, read one at a time. Loads no torch; what is here pickles small."""

import hashlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Protocol

from PIL import Image

from adapters.errors import DataInvalid


class Original(Protocol):
    """One image of a data set. Travels to worker processes by pickle."""

    @property
    def name(self) -> str:
        """How errors name it."""

    def read(self) -> bytes | Image.Image:
        """Return its encoded bytes, or the image where its set opens files itself or keeps plain pixels."""


@dataclass(frozen=True, slots=True)
class File:
    """An image in a file of its own."""

    path: Path

    @property
    def name(self) -> str:
        return str(self.path)

    def read(self) -> bytes:
        return self.path.read_bytes()


def open_original(original: Original) -> Image.Image:
    """Return an image at full size, loaded; `backbone.preprocess.to_rgb` makes it upright and RGB.

    Raises:
        DataInvalid: If it cannot be read.
    """
    try:
        content = original.read()
        image = Image.open(BytesIO(content)) if isinstance(content, bytes) else content
        image.load()
    except Exception as error:
        raise unreadable(original, error) from error
    return image


def content_digest(content: bytes | Image.Image) -> str:
    """Return the sha256 of what `read` returned: of the bytes, or of mode, size and pixels."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    form = f"{content.mode} {content.width}x{content.height}\n"
    return hashlib.sha256(form.encode() + content.tobytes()).hexdigest()


def unreadable(original: Original, error: Exception) -> DataInvalid:
    return DataInvalid(original.name, f"cannot be read as an image ({error})")

"""One part of a set that torchvision reads, and its images one at a time."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from adapters.data import Examples
from adapters.errors import DataInvalid
from adapters.originals import File, Original
from adapters.torchvision_sets import SETS, Arguments, TorchvisionSet

PREFIX = "torchvision:"


class Part:
    """A part of a set, opened on first use. Pickles as where it is, without its images."""

    def __init__(self, key: str, arguments: Arguments, root: Path, *, download: bool = False) -> None:
        self.name, self.root = PREFIX + key, root
        self._key, self._arguments, self._download = key, arguments, download

    @property
    def known(self) -> TorchvisionSet:
        return SETS[self._key]

    @cached_property
    def images(self) -> Any:
        """Torchvision's object. Where it takes a loader, it gives paths in place of images."""
        from torchvision import datasets

        loader = {} if self.known.targets else {"loader": Path}
        kind = getattr(datasets, self.known.kind)
        return kind(self.root, download=self._download, **loader, **self._arguments)

    def __getstate__(self) -> dict[str, object]:
        kept = {name: value for name, value in self.__dict__.items() if name != "images"}
        return kept | {"_download": False}

    def explain(self, error: Exception) -> str:
        kind = f"torchvision's {self.known.kind}"
        if self._download:
            return f"cannot be downloaded to {self.root} by {kind} ({error})"
        if isinstance(error, RuntimeError):  # what its classes raise where they find nothing or a wrong sum
            return (
                f"is not in {self.root} as {kind} lays it out, or is damaged; "
                "put it there, or let it be downloaded"
            )
        return f"cannot be read from {self.root} by {kind} ({error})"


@dataclass(frozen=True, slots=True)
class SetImage:
    """An image of a set whose class opens its files itself, or keeps pixels in few large files."""

    part: Part
    index: int

    @property
    def name(self) -> str:
        return f"{self.part.name}, image {self.index}"

    def read(self) -> Image.Image:
        image: Image.Image = self.part.images[self.index][0]
        return image


def list_part(part: Part) -> Examples:
    """List a part; its files in the order of their paths.

    Raises:
        DataInvalid: If it is not there, incomplete or damaged.
    """
    with _explained(part):
        originals, targets = _from_files(part) if part.known.targets is None else _from_class(part)
        labels = _labels(part)
    _check(part, labels, targets)
    first = part.known.first
    return Examples(Path(part.name), labels, originals, tuple(target - first for target in targets))


@contextmanager
def _explained(part: Part) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # torchvision lets through whatever a missing or damaged file causes
        raise DataInvalid(part.name, part.explain(error)) from error


def _from_files(part: Part) -> tuple[tuple[Original, ...], list[int]]:
    pairs = sorted(part.images[index] for index in range(len(part.images)))
    return tuple(File(path) for path, _ in pairs), [int(target) for _, target in pairs]


def _from_class(part: Part) -> tuple[tuple[Original, ...], list[int]]:
    assert part.known.targets is not None
    targets = [int(target) for target in part.known.targets(part.images)]
    return tuple(SetImage(part, index) for index in range(len(targets))), targets


def _labels(part: Part) -> tuple[str, ...]:
    """Return the names the class has for its classes, or their numbers."""
    known, images = part.known, part.images
    names: Sequence[Any] = range(known.first, known.first + known.classes)
    names = getattr(images, "classes", None) or getattr(images, "categories", None) or names
    labels = [name[0] if isinstance(name, tuple) else str(name) for name in names]
    times = Counter(labels)
    return tuple(f"{label} ({k})" if times[label] > 1 else label for k, label in enumerate(labels))


def _check(part: Part, labels: Sequence[str], targets: Sequence[int]) -> None:
    known = part.known
    found = len(set(targets))
    if len(labels) != known.classes or found != known.classes:
        few = min(len(labels), found)
        raise DataInvalid(part.name, f"is incomplete: {part.root} has {few} of its {known.classes} classes")
    last = known.first + known.classes - 1
    if min(targets) != known.first or max(targets) != last:
        raise DataInvalid(
            part.name, f"has targets from {min(targets)} to {max(targets)}, not {known.first} to {last}"
        )

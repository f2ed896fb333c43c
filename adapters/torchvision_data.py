"""Data sets that torchvision reads, by name: what they need, and which part of them is which."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from adapters.data import Examples
from adapters.division import divide
from adapters.errors import DataInvalid
from adapters.protocol import ProtocolName, draw_thousand
from adapters.torchvision_part import PREFIX, Part, list_part
from adapters.torchvision_sets import SETS, Arguments, TorchvisionSet

PartName = Literal["train", "test"]
ListPart = Callable[[Arguments], Examples]


def list_torchvision(
    name: str, *, root: Path | None, protocol: ProtocolName, part: PartName, download: bool
) -> Examples:
    """List the images of `torchvision:NAME`.

    Args:
        name: A name in `SETS`, behind the prefix.
        root: The folder that torchvision's class is given.
        protocol: What to train on: all that is not for testing, or 800 images and 200 to validate.
        part: What to list. The test part is always whole.
        download: Whether the class may fetch what it does not find.

    Raises:
        DataInvalid: If the data are not there, incomplete or damaged; it says what to do.
    """
    key = name.removeprefix(PREFIX)
    if key not in SETS:
        raise DataInvalid(name, f"is not known; there are {', '.join(SETS)}")
    known = SETS[key]
    folder = _checked(name, root, known, download=download)

    def listed(arguments: Arguments) -> Examples:
        return list_part(Part(key, arguments, folder, download=download))

    if part == "test":
        return _test(known, listed)
    train, val = _train(known, listed)
    if protocol == "1k":
        return draw_thousand(train, val)
    return train if val is None else train.joined(val)


def _checked(name: str, root: Path | None, known: TorchvisionSet, *, download: bool) -> Path:
    """Return the root if something can be read there."""
    if root is None:
        raise DataInvalid(name, f"needs a root: the folder that torchvision's {known.kind} is given")
    if not download and not root.expanduser().is_dir():
        raise DataInvalid(name, f"cannot be read: its root {root} is no folder")
    missing = [package for package in known.needs if find_spec(package) is None]
    if missing:
        raise DataInvalid(name, f"needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    return root.expanduser()


def _train(known: TorchvisionSet, listed: ListPart) -> tuple[Examples, Examples | None]:
    """Return what may be trained on, and what the set itself sets aside to validate."""
    train = listed(known.train)
    if known.division is not None:
        return train.at(divide(train.targets, known.division)[0]), None
    val = None if known.val is None else listed(known.val)
    if val is not None and val.labels != train.labels:
        raise DataInvalid(str(train.source), "names its classes differently in its parts")
    return train, val


def _test(known: TorchvisionSet, listed: ListPart) -> Examples:
    if known.division is not None:
        whole = listed(known.train)
        return whole.at(divide(whole.targets, known.division)[1])
    assert known.test is not None
    return listed(known.test)

"""One door to all data sets: class folders, CSV files, and those that torchvision reads."""

from pathlib import Path
from typing import get_args

from adapters.data import Dataset, Examples, decode
from adapters.listing import list_images
from adapters.protocol import ProtocolName, draw_thousand
from adapters.torchvision_data import PartName, list_torchvision
from adapters.torchvision_part import PREFIX
from backbone.preprocess import ImageSpec


def open_data(
    name: str,
    spec: ImageSpec,
    *,
    root: Path | None = None,
    protocol: ProtocolName = "full",
    part: PartName = "train",
    threads: int = 2,
    progress: bool = False,
    download: bool = False,
) -> Dataset:
    """List, read and decode a data set. Takes 3·H·W bytes of memory an image.

    Args:
        name: A folder of class folders, a CSV file, or `torchvision:NAME` of a set in `SETS`.
        spec: What the backbone sees.
        root: Folder that holds torchvision's sets, laid out as it does; folders and CSV files have none.
        protocol: `full`, all images; or `1k`, 800 of them to train on and 200 to validate, always the same.
        part: What to train on, or to test on, which is always whole. A folder or a CSV file is one part: it
            is taken as the part that is asked for.
        threads: Decode at a time.
        progress: Whether to draw a bar.
        download: Whether torchvision may fetch what is not in the root.

    Raises:
        DataInvalid: If the data are not there, incomplete or damaged; it says what to do.
        ValueError: If there is no such protocol or part.
    """
    for value, choices in ((protocol, get_args(ProtocolName)), (part, get_args(PartName))):
        if value not in choices:
            raise ValueError(f"{value} is none of {', '.join(choices)}")
    if name.startswith(PREFIX):
        examples = list_torchvision(name, root=root, protocol=protocol, part=part, download=download)
    else:
        examples = Examples.of_listing(list_images(Path(name)))
        if part == "train" and protocol == "1k":
            examples = draw_thousand(examples)
    return decode(examples, spec, threads=threads, progress=progress)

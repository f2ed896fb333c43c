"""Options that name images and their classes."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from server.cli.output import warn

if TYPE_CHECKING:
    from adapters.data import Dataset
    from adapters.protocol import ProtocolName
    from adapters.torchvision_data import PartName
    from backbone.preprocess import ImageSpec

Data = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="Folder of class folders, CSV `path,label`, or `torchvision:NAME`.",
        show_default=False,
    ),
]
DataRoot = Annotated[
    Path | None, typer.Option(file_okay=False, help="Folder of torchvision's sets, laid out as it does.")
]
Protocol = Annotated[str, typer.Option(help="full, or 1k: 800 images to train on, 200 to validate.")]
Download = Annotated[bool, typer.Option("--download", help="Let torchvision fetch what is not there.")]


def open_named(
    name: str,
    spec: "ImageSpec",
    *,
    where: Mapping[str, Any],
    root: Path | None = None,
    protocol: str = "full",
    part: str = "train",
    download: bool = False,
) -> "Dataset":
    """Read and decode a data set; warn of copies. `where` holds the threads."""
    from adapters.sources import open_data

    try:
        dataset = open_data(
            name,
            spec,
            root=root,
            protocol=cast("ProtocolName", protocol),
            part=cast("PartName", part),
            threads=where["threads"],
            progress=sys.stderr.isatty(),
            download=download,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--protocol") from None
    if dataset.copies and part == "train":
        warn(f"{dataset.copies} images are copies of others: validation may look better than it is")
    return dataset

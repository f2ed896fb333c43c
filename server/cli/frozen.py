"""The frozen backbone that an adapter names, for verbs that need no server."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from adapters.manifest import Manifest
    from backbone.load import Backbone

AdapterFile = Annotated[
    Path,
    typer.Argument(metavar="ADAPTER", exists=True, dir_okay=False, help="Adapter file.", show_default=False),
]
Source = Annotated[
    str | None, typer.Option(help="Where the backbone's weights come from; else the server's setting.")
]
Out = Annotated[Path, typer.Option(help="File to write.", show_default=False)]
Force = Annotated[bool, typer.Option("--force", help="Overwrite the file.")]


def load_for(manifest: "Manifest", source: str | None) -> "Backbone":
    """Load the backbone an adapter was trained for, at its input size."""
    from backbone.load import load_backbone
    from server.settings import Settings

    return load_backbone(
        manifest.backbone.name,
        source=source or Settings.load().backbone_source,
        input_size=manifest.preprocessing.height,
    )


def refuse_existing(path: Path, *, force: bool, option: str = "--out", inputs: Sequence[Path] = ()) -> None:
    """Stop before any work if a file would be overwritten without being told to, or is one of the inputs."""
    if any(path.exists() and path.samefile(source) for source in inputs):
        raise typer.BadParameter(f"{path} is what it is made from", param_hint=option)
    if path.is_dir():
        raise typer.BadParameter(f"{path} is a folder", param_hint=option)
    if path.exists() and not force:
        raise typer.BadParameter(f"{path} exists; --force overwrites it", param_hint=option)

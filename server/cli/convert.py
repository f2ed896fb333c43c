"""The verb `convert`: what other tools have trained becomes an adapter. It needs no server."""

import sys
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.cli.frozen import Force, Out, Source, refuse_existing
from server.cli.output import printable, warn

if TYPE_CHECKING:
    from adapters.file import Adapter
    from adapters.official import OfficialCheckpoint
    from backbone.load import Backbone

app = typer.Typer()
convert = typer.Typer(no_args_is_help=True, help="Make an adapter of what another tool has trained.")
app.add_typer(convert, name="convert")


class Weights(StrEnum):
    EMA = "ema"
    RAW = "raw"


Checkpoint = Annotated[
    Path,
    typer.Argument(
        metavar="CHECKPOINT", exists=True, dir_okay=False, help="Its `.pth.tar`.", show_default=False
    ),
]
StateFile = Annotated[
    Path,
    typer.Argument(
        metavar="FILE", exists=True, dir_okay=False, help="`.safetensors` or `.pth`.", show_default=False
    ),
]
Folder = Annotated[
    Path,
    typer.Argument(
        metavar="DIR", exists=True, file_okay=False, help="Its folder of an adapter.", show_default=False
    ),
]
BackboneName = Annotated[str, typer.Option(help="timm model it was trained on.", show_default=False)]
ChosenWeights = Annotated[
    Weights | None, typer.Option(help="ema where the checkpoint has them, else raw.", show_default=False)
]
BackboneOut = Annotated[
    Path | None,
    typer.Option(
        help="Write the checkpoint's own frozen weights to this file, and convert for those, rather than "
        "compare them with the weights of --backbone-source.",
    ),
]
InputSize = Annotated[
    int | None, typer.Option(min=8, help="Pixels a side in training; else the model's own.")
]
Labels = Annotated[
    Path | None,
    typer.Option(
        exists=True, dir_okay=False, help="Names of the classes in order, a line each; else numbers."
    ),
]
TrueLayerNorm = Annotated[
    bool,
    typer.Option(
        "--true-layer-norm", help="A ConvNeXt was trained with norms that divide by C, not by C - 1."
    ),
]


@convert.command()
def official(
    *,
    checkpoint: Checkpoint,
    backbone: BackboneName,
    out: Out,
    weights: ChosenWeights = None,
    backbone_source: Source = None,
    backbone_out: BackboneOut = None,
    input_size: InputSize = None,
    labels: Labels = None,
    true_layer_norm: TrueLayerNorm = False,
    force: Force = False,
) -> None:
    """Make an adapter of a checkpoint of the SSF reference code."""
    from adapters.conversion import convert as run
    from adapters.conversion import differences, write_backbone
    from adapters.official import read_official
    from adapters.saving import replace_file, save_checked

    refuse_existing(out, force=force, inputs=[checkpoint])
    if backbone_out is not None:
        refuse_existing(backbone_out, force=force, option="--backbone-out", inputs=[checkpoint])
    read = read_official(checkpoint, weights.value if weights else None)
    model = _load(read, backbone, backbone_source, input_size, rebuild=backbone_out is not None)
    adapter = run(
        read, model, labels=_names(labels), true_layer_norm=true_layer_norm, command=_command_line()
    )
    for difference in differences(read, model):
        warn(difference)
    written = save_checked(adapter, model, out, device="cpu", dtype="float32")
    if backbone_out is not None:
        replace_file(backbone_out, write_backbone(read))
        typer.echo(f"{backbone_out} (the backbone, fingerprint {model.fingerprint[:12]})")
    typer.echo(
        f"{read.names.family}, {read.weights} weights, {len(adapter.manifest.sites)} sites, "
        f"{adapter.manifest.num_classes} classes; the probe agrees with the served arithmetic"
    )
    typer.echo(f"{out} ({out.stat().st_size / 1000:.0f} kB, {written[:12]})")


@convert.command(name="state-dict")
def state_dict(
    *,
    file: StateFile,
    backbone: BackboneName,
    out: Out,
    backbone_source: Source = None,
    input_size: InputSize = None,
    labels: Labels = None,
    force: Force = False,
) -> None:
    """Make an adapter of a timm model of which biases, norms or only the head were fine-tuned."""
    from adapters.state_dict import convert_state_dict, read_state_dict

    refuse_existing(out, force=force, inputs=[file])
    read = read_state_dict(file)
    if read.averaged is not None:
        warn(f"{file.name} has averaged weights too ({read.averaged}); the raw ones are converted")
    model = _load_frozen(backbone, backbone_source, input_size)
    adapter = convert_state_dict(read, model, labels=_names(labels), command=_command_line())
    _save(adapter, model, out)


@convert.command()
def peft(
    *,
    folder: Folder,
    backbone: BackboneName,
    out: Out,
    backbone_source: Source = None,
    input_size: InputSize = None,
    labels: Labels = None,
    force: Force = False,
) -> None:
    """Make an adapter of one of Hugging Face PEFT: (IA)³ or LN tuning of a ViT."""
    from adapters.peft.conversion import convert_peft
    from adapters.peft.folder import read_peft

    refuse_existing(out, force=force, inputs=[*folder.iterdir()])
    read = read_peft(folder)
    model = _load_frozen(backbone, backbone_source, input_size)
    adapter = convert_peft(read, model, labels=_names(labels), command=_command_line())
    _save(adapter, model, out)
    base = read.config.base_model_name_or_path or "a model it does not name"
    typer.echo(f"trained on {printable(base)}, whose weights must be those of {model.source}")


def _save(adapter: "Adapter", backbone: "Backbone", out: Path) -> None:
    from adapters.saving import save_checked

    manifest = adapter.manifest
    written = save_checked(adapter, backbone, out, device="cpu", dtype="float32")
    typer.echo(
        f"{backbone.family.name}, method {manifest.method}, {len(manifest.sites)} sites, "
        f"{manifest.num_classes} classes; the probe agrees with the tuned model and the served arithmetic"
    )
    typer.echo(f"{out} ({out.stat().st_size / 1000:.0f} kB, {written[:12]})")


def _names(labels: Path | None) -> list[str] | None:
    """Read the classes' names, a line each."""
    if labels is None:
        return None
    try:
        names = labels.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise typer.BadParameter(f"{labels} is not UTF-8 text", param_hint="--labels") from None
    if not all(name.strip() for name in names):
        raise typer.BadParameter(f"{labels} has an empty line", param_hint="--labels")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise typer.BadParameter(f"{labels} names {printable(twice)} twice", param_hint="--labels")
    return names


def _load_frozen(name: str, source: str | None, input_size: int | None) -> "Backbone":
    from backbone.load import load_backbone
    from server.settings import Settings

    return load_backbone(name, source=source or Settings.load().backbone_source, input_size=input_size)


def _load(
    read: "OfficialCheckpoint", name: str, source: str | None, input_size: int | None, *, rebuild: bool
) -> "Backbone":
    from adapters.conversion import write_backbone
    from backbone.load import load_backbone

    if not rebuild:
        return _load_frozen(name, source, input_size)
    with tempfile.TemporaryDirectory() as made:
        file = Path(made) / f"{read.source}.safetensors"
        file.write_bytes(write_backbone(read))
        return load_backbone(name, source=str(file), input_size=input_size)


def _command_line() -> str:
    import shlex

    return shlex.join(["ssfserve", *sys.argv[1:]])

"""The verb `train`: it needs no server."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli.data_options import Data, DataRoot, Download, Protocol, open_named
from server.cli.frozen import refuse_existing
from server.cli.output import warn
from server.cli.recipe_options import METHODS, make_recipe, with_recipe_options
from server.cli.where import BackboneName, Device, Dtype, InputSize, Source, Threads, load_named, place

if TYPE_CHECKING:
    from adapters.recipe import Recipe
    from backbone.load import Backbone

app = typer.Typer()


@app.command()
@with_recipe_options
def train(
    *,
    data: Data,
    task: Annotated[str | None, typer.Option(help="Its name; else DATA's.")] = None,
    out: Annotated[Path | None, typer.Option(help="File to write; else <task>.safetensors.")] = None,
    backbone: BackboneName = None,
    backbone_source: Source = None,
    input_size: InputSize = None,
    method: Annotated[str, typer.Option(help=METHODS)] = "ssf",
    preset: Annotated[
        str | None,
        typer.Option("--recipe", help="An official recipe: vtab/TASK, fgvc/SET, cifar100 or imagenet."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Train so often; the best by validation counts.")] = 1,
    test: Annotated[str | None, typer.Option(help="Images to measure on in the end, as DATA.")] = None,
    data_root: DataRoot = None,
    protocol: Protocol = "full",
    download: Download = False,
    store: Annotated[str, typer.Option(help="Numbers in the file: float32, float16, bfloat16.")] = "float32",
    dtype: Dtype = "auto",
    device: Device = "auto",
    threads: Threads = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from where a training of the same file was stopped.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file, and begin anew.")] = False,
    **values: Any,
) -> None:
    """Train an adapter for a data set and write it to one file."""
    from server.cli.tuning import Job, run

    target = out or Path(f"{task or Path(data.removeprefix('torchvision:')).stem}.safetensors")
    _refuse_finished(target, force=force, resume=resume)
    frozen = load_named(backbone, backbone_source, input_size)
    where = place(dtype, device, threads)
    recipe = make_recipe(method, preset, values, family=frozen.family.name, where=where)
    _check(recipe, frozen, store)
    opened = open_named(data, frozen.spec, root=data_root, protocol=protocol, download=download, where=where)
    if opened.fixed is not None and recipe.val_fraction != type(recipe).model_fields["val_fraction"].default:
        warn("the data come with their own split: --val-fraction has no effect")
    tested = None
    if test is not None:
        tested = open_named(test, frozen.spec, root=data_root, download=download, where=where, part="test")
    typer.echo(f"{len(opened)} images of {len(opened.labels)} classes, {frozen.source}, {recipe.dtype}")
    run(Job(frozen, opened, recipe, target, store, seeds, resume, force, _features(), tested))


def _refuse_finished(target: Path, *, force: bool, resume: bool) -> None:
    """Stop before any work if a file, or an unfinished training, would be lost without a word."""
    refuse_existing(target, force=force)
    unfinished = target.with_name(f".{target.name}.training")
    if unfinished.exists() and not (force or resume):
        raise typer.BadParameter(
            f"{target} was begun and not finished; --resume goes on, --force begins anew", param_hint="--out"
        )


def _check(recipe: "Recipe", backbone: "Backbone", store: str) -> None:
    from adapters.methods import trained_sites
    from backbone.executors.torch_executor import DTYPES

    if store not in DTYPES:
        raise typer.BadParameter(f"is none of {', '.join(DTYPES)}", param_hint="--store")
    try:
        trained_sites(backbone, recipe)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--sites") from None
    if (recipe.preset or "").startswith("vtab/") and backbone.spec.crop_mode != "squash":
        warn("the official run resized images without keeping their aspect; here they are fed as served")


def _features() -> Path:
    from server.settings import Settings

    return Settings.load().data_dir / "features"

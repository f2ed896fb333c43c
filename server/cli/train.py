"""The verbs `train` and `eval`: they need no server."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli.output import printable, show_json, warn

if TYPE_CHECKING:
    from adapters.recipe import Recipe
    from adapters.score import Score
    from backbone.executors.base import Executor
    from backbone.load import Backbone

app = typer.Typer()

Data = Annotated[
    Path,
    typer.Argument(
        metavar="DATA", exists=True, help="Folder of class folders, or CSV `path,label`.", show_default=False
    ),
]
BackboneName = Annotated[str | None, typer.Option(help="timm model name; else the server's setting.")]
Source = Annotated[str | None, typer.Option(help="Where its weights come from; else the server's setting.")]
InputSize = Annotated[int | None, typer.Option(min=8, help="Pixels a side; else the server's setting.")]
Dtype = Annotated[str, typer.Option(help="auto, bfloat16 or float32.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Threads = Annotated[int, typer.Option(min=0, help="Threads on the CPU; 0: one per core.")]


@app.command()
def train(
    *,
    data: Data,
    task: Annotated[str | None, typer.Option(help="Its name; else DATA's.")] = None,
    out: Annotated[Path | None, typer.Option(help="File to write; else <task>.safetensors.")] = None,
    backbone: BackboneName = None,
    backbone_source: Source = None,
    input_size: InputSize = None,
    method: Annotated[str, typer.Option(help="ssf, or linear: a head on frozen features.")] = "ssf",
    epochs: Annotated[int | None, typer.Option(help="12 for ssf, 200 for linear.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="16 for ssf, 256 for linear.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate of scale and shift.")] = None,
    head_lr: Annotated[float | None, typer.Option(help="Learning rate of the head.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="On the head's weight alone.")] = None,
    warmup: Annotated[float | None, typer.Option(help="Epochs until the full learning rate.")] = None,
    clip: Annotated[float | None, typer.Option(help="Largest norm of a gradient.")] = None,
    label_smoothing: Annotated[float | None, typer.Option(help="Share given to the other classes.")] = None,
    augment: Annotated[
        str | None,
        typer.Option(help="none, or some of flip,rotate180,dihedral,shift,crop; shift for ssf."),
    ] = None,
    patch_drop: Annotated[float | None, typer.Option(help="Share of patches left out in training.")] = None,
    balance: Annotated[bool, typer.Option("--balance", help="Draw every class equally often.")] = False,
    sites: Annotated[str | None, typer.Option(help="Patterns of sites to train: `blocks.0.*,norm`.")] = None,
    val_fraction: Annotated[float | None, typer.Option(help="Share of each class held out.")] = None,
    seed: Annotated[int, typer.Option(help="Of the split, the start, the order and the changes.")] = 0,
    store: Annotated[str, typer.Option(help="Numbers in the file: float32, float16, bfloat16.")] = "float32",
    dtype: Dtype = "auto",
    device: Device = "auto",
    threads: Threads = 0,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> None:
    """Train an adapter for a data set and write it to one file."""
    given = {
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "head_lr": head_lr,
        "weight_decay": weight_decay,
        "warmup": warmup,
        "clip": clip,
        "label_smoothing": label_smoothing,
        "augment": augment,
        "patch_drop": patch_drop,
        "balance": balance,
        "sites": sites,
        "val_fraction": val_fraction,
        "seed": seed,
    }
    target = out or Path(f"{task or data.stem}.safetensors")
    if target.exists() and not force:
        raise typer.BadParameter(f"{target} exists; --force overwrites it", param_hint="--out")
    recipe = _recipe(method, given, dtype=dtype, device=device, threads=threads)
    _train(data, _load(backbone, backbone_source, input_size), recipe, target, store)


@app.command("eval")
def evaluate(
    *,
    file: Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, show_default=False)],
    data: Data,
    backbone: BackboneName = None,
    backbone_source: Source = None,
    input_size: InputSize = None,
    reference: Annotated[
        bool,
        typer.Option("--reference", help="Use the plain definition in fp32, not the server's arithmetic."),
    ] = False,
    png: Annotated[Path | None, typer.Option(help="Draw the confusion matrix to this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
    dtype: Dtype = "auto",
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Measure an adapter on a data set, as the server would answer."""
    from adapters.report import as_dict, as_text, draw

    if png is not None and not png.absolute().parent.is_dir():
        raise typer.BadParameter(f"{png.absolute().parent} is no folder", param_hint="--png")
    result, how = _evaluate(
        file,
        data,
        _load(backbone, backbone_source, input_size),
        dtype="reference" if reference else dtype,
        device=device,
        threads=threads,
    )
    if png is not None:
        draw(result, png, title=f"{file.name} on {data.name}")
    if as_json:
        show_json(as_dict(result) | how)
    else:
        typer.echo(printable_lines(as_text(result)))
        typer.echo(f"\n{how['arithmetic']} on {how['device']}, {how['backbone']}")


def printable_lines(text: str) -> str:
    return "\n".join(printable(line) for line in text.split("\n"))


def _recipe(method: str, given: dict[str, Any], *, dtype: str, device: str, threads: int) -> "Recipe":
    from pydantic import ValidationError

    from adapters.recipe import Recipe
    from backbone.executors.choose import choose_device, choose_dtype

    chosen = choose_device(device)
    values = Recipe.defaults(method) | {name: value for name, value in given.items() if value is not None}
    where = {"device": chosen, "dtype": choose_dtype(dtype, chosen), "threads": _threads(threads)}
    try:
        return Recipe(method=method, **values, **where)  # type: ignore[arg-type]  # pydantic checks them
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        option = "--" + str(first["loc"][0]).replace("_", "-") if first["loc"] else "options"
        raise typer.BadParameter(first["msg"], param_hint=option) from None


def _load(name: str | None, source: str | None, input_size: int | None) -> "Backbone":
    """Load the backbone that the options name, or the one that the server would load."""
    from backbone.cpu_memory import keep_large_buffers
    from backbone.load import load_backbone
    from server.settings import Settings

    keep_large_buffers()
    settings = Settings.load()
    return load_backbone(
        name or settings.backbone,
        source=source or settings.backbone_source,
        input_size=input_size or settings.input_size,
    )


def _train(data: Path, backbone: "Backbone", recipe: "Recipe", target: Path, store: str) -> None:
    from adapters.data import load_dataset
    from adapters.saving import save_checked
    from adapters.training import train as run
    from backbone.executors.torch_executor import DTYPES

    if store not in DTYPES:
        raise typer.BadParameter(f"is none of {', '.join(DTYPES)}", param_hint="--store")
    try:
        recipe.chosen_sites(backbone.sites)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--sites") from None
    interactive = sys.stderr.isatty()
    dataset = load_dataset(data, backbone.spec, threads=recipe.threads, progress=interactive)
    if dataset.copies:
        warn(f"{dataset.copies} images are copies of others: validation may look better than it is")
    typer.echo(f"{len(dataset)} images of {len(dataset.labels)} classes, {backbone.source}, {recipe.dtype}")
    adapter = run(
        backbone,
        dataset,
        recipe,
        store=DTYPES[store],
        command=_command_line(),
        progress=interactive,
        report=None if interactive or recipe.method == "linear" else _print_epoch,
    )
    written = save_checked(adapter, backbone, target, device=recipe.device, dtype=recipe.dtype)
    _show_result(adapter.manifest.training.metrics if adapter.manifest.training else {})
    typer.echo(f"{target} ({target.stat().st_size / 1000:.0f} kB, {written[:12]})")


def _evaluate(
    file: Path, data: Path, backbone: "Backbone", *, dtype: str, device: str, threads: int
) -> tuple[Any, dict[str, str]]:
    import torch

    from adapters import evaluation
    from adapters.data import load_dataset
    from adapters.file import digest, read_adapter
    from backbone.executors.choose import choose_device, choose_dtype

    torch.set_num_threads(_threads(threads))
    content = file.read_bytes()
    adapter = read_adapter(content)
    if dtype == "reference":
        chosen, arithmetic = "cpu", "plain reference, float32"
        classify = evaluation.reference(backbone, adapter)
    else:
        chosen = choose_device(device)
        arithmetic = choose_dtype(dtype, chosen)
        executor = _open_executor(backbone, chosen, arithmetic, _threads(threads))
        arithmetic = f"{executor.name}, {arithmetic}"
        classify = evaluation.served(executor, adapter)
    interactive = sys.stderr.isatty()
    dataset = load_dataset(data, backbone.spec, threads=_threads(threads), progress=interactive)
    targets = evaluation.align_targets(dataset, adapter.manifest.labels)
    result = evaluation.evaluate(
        classify, dataset.pixels, targets, adapter.manifest.labels, progress=interactive
    )
    return result, {
        "digest": digest(content),
        "backbone": backbone.source,
        "arithmetic": arithmetic,
        "device": chosen,
    }


def _open_executor(backbone: "Backbone", device: str, dtype: str, threads: int) -> "Executor":
    """Return the executor that the server would choose."""
    from backbone.executors.choose import open_executor
    from backbone.executors.device_memory import CudaLimits
    from server.settings import Settings

    settings = Settings.load()
    return open_executor(
        backbone,
        name=settings.executor,
        device=device,
        dtype=dtype,
        slots=1,
        threads=threads,
        cache=settings.graph_cache,
        limits=CudaLimits(max_classes=settings.max_classes),
    )


def _threads(asked: int) -> int:
    from server.cores import available_cores

    return asked or available_cores()


def _command_line() -> str:
    import shlex

    return shlex.join(["ssfserve", *sys.argv[1:]])


def _print_epoch(epoch: int, seen: "Score", held: "Score") -> None:
    typer.echo(
        f"epoch {epoch}: train loss {seen.loss:.3f}, accuracy {seen.accuracy:.3f}; "
        f"validation loss {held.loss:.3f}, accuracy {held.accuracy:.3f}"
    )


def _show_result(metrics: dict[str, float]) -> None:
    typer.echo(
        f"best epoch {metrics['best_epoch']:.0f}: validation accuracy {metrics['val_accuracy']:.4f}, "
        f"as served {metrics['val_accuracy_served']:.4f}"
    )

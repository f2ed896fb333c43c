"""The verb `eval`: it needs no server."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli.data_options import Data, DataRoot, Download, open_named
from server.cli.output import printable, show_json
from server.cli.where import (
    SERVED,
    BackboneName,
    Device,
    InputSize,
    ServedDtype,
    Source,
    Threads,
    check_place,
    load_named,
    threads_of,
)  # fmt: skip

if TYPE_CHECKING:
    from backbone.executors.base import Executor
    from backbone.load import Backbone

app = typer.Typer()


@app.command("eval")
def evaluate(
    *,
    file: Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, show_default=False)],
    data: Data,
    backbone: BackboneName = None,
    backbone_source: Source = None,
    input_size: InputSize = None,
    data_root: DataRoot = None,
    download: Download = False,
    reference: Annotated[
        bool,
        typer.Option("--reference", help="Use the plain definition in fp32, not the server's arithmetic."),
    ] = False,
    png: Annotated[Path | None, typer.Option(help="Draw the confusion matrix to this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
    dtype: ServedDtype = "auto",
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Measure an adapter on a data set, as the server would answer."""
    from adapters import evaluation
    from adapters.report import as_dict, as_text, draw

    if png is not None and not png.absolute().parent.is_dir():
        raise typer.BadParameter(f"{png.absolute().parent} is no folder", param_hint="--png")
    check_place(dtype, device, SERVED)
    frozen = load_named(backbone, backbone_source, input_size)
    cores = threads_of(threads)
    adapter, classify, how = _classifier(
        file, frozen, dtype="reference" if reference else dtype, device=device, threads=cores
    )
    where = {"threads": cores}
    dataset = open_named(data, frozen.spec, root=data_root, part="test", download=download, where=where)
    labels = adapter.manifest.labels
    targets = evaluation.align_targets(dataset, labels)
    result = evaluation.evaluate(classify, dataset.pixels, targets, labels, progress=sys.stderr.isatty())
    if png is not None:
        draw(result, png, title=f"{file.name} on {dataset.source.name}")
    if as_json:
        show_json(as_dict(result) | how)
    else:
        typer.echo(_printable_lines(as_text(result)))
        typer.echo(f"\n{how['arithmetic']} on {how['device']}, {how['backbone']}")


def _printable_lines(text: str) -> str:
    return "\n".join(printable(line) for line in text.split("\n"))


def _classifier(
    file: Path, backbone: "Backbone", *, dtype: str, device: str, threads: int
) -> tuple[Any, Any, dict[str, str]]:
    """Return an adapter, what classifies by it, and what that runs on."""
    import torch

    from adapters import evaluation
    from adapters.file import digest, read_adapter
    from backbone.executors.choose import choose_device, choose_dtype

    torch.set_num_threads(threads)
    content = file.read_bytes()
    adapter = read_adapter(content)
    if dtype == "reference":
        chosen, arithmetic = "cpu", "plain reference, float32"
        classify = evaluation.reference(backbone, adapter)
    else:
        chosen = choose_device(device)
        arithmetic = choose_dtype(dtype, chosen)
        executor = _open_executor(backbone, chosen, arithmetic, threads)
        arithmetic = f"{executor.name}, {arithmetic}"
        classify = evaluation.served(executor, adapter)
    how = {"digest": digest(content), "backbone": backbone.source, "arithmetic": arithmetic, "device": chosen}
    return adapter, classify, how


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

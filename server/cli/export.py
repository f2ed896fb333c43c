"""The verb `export`: ONNX graphs that run without ssfserve. It needs no server."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.cli.frozen import Force, Out, Source, load_for, refuse_existing

if TYPE_CHECKING:
    from adapters.file import Adapter

app = typer.Typer()

AdapterFiles = Annotated[
    list[Path],
    typer.Argument(
        metavar="ADAPTER...", exists=True, dir_okay=False, help="Adapter files.", show_default=False
    ),
]


@app.command()
def export(
    *,
    files: AdapterFiles,
    out: Out,
    multi_task: Annotated[
        bool,
        typer.Option(
            "--multi-task",
            help="One graph for all tasks, which takes each image's scales and shifts as an input; those of "
            "the adapters go to a .tasks.safetensors beside it.",
        ),
    ] = False,
    tasks_only: Annotated[
        bool, typer.Option("--tasks-only", help="With --multi-task: write only the file of tasks, to --out.")
    ] = False,
    backbone_source: Source = None,
    force: Force = False,
) -> None:
    """Write an ONNX graph: an adapter merged into its backbone, or all tasks in one graph."""
    if tasks_only and not multi_task:
        raise typer.BadParameter("only with --multi-task", param_hint="--tasks-only")
    if len(files) > 1 and not multi_task:
        raise typer.BadParameter("several share a graph only with --multi-task", param_hint="ADAPTER")
    names = [file.stem for file in files]
    if len(set(names)) < len(names):
        raise typer.BadParameter("two files have the same name, which names a task", param_hint="ADAPTER")
    tasks = out if tasks_only else out.with_suffix(".tasks.safetensors")
    for target in {out, tasks} if multi_task else {out}:
        refuse_existing(target, force=force, inputs=files)
    if multi_task:
        _multi_task(files, None if tasks_only else out, tasks, backbone_source)
    else:
        _merged(files[0], out, backbone_source)


def _merged(file: Path, out: Path, source: str | None) -> None:
    from adapters.merged_file import merge_checked
    from adapters.onnx_export import export_merged

    adapter, digest = _read(file)
    backbone = load_for(adapter.manifest, source)
    merged = merge_checked(backbone, adapter)
    with tempfile.TemporaryDirectory() as made:
        export_merged(merged, backbone, adapter, digest, Path(made) / "graph.onnx")
        _put(out, (Path(made) / "graph.onnx").read_bytes())


def _multi_task(files: Sequence[Path], out: Path | None, tasks: Path, source: str | None) -> None:
    from adapters.onnx_export import export_multi_task, write_tasks

    read = {file.stem: _read(file) for file in files}
    first, _ = read[files[0].stem]
    backbone = load_for(first.manifest, source)
    data = write_tasks(backbone, read)
    if out is not None:
        with tempfile.TemporaryDirectory() as made:
            export_multi_task(backbone, Path(made) / "graph.onnx")
            _put(out, (Path(made) / "graph.onnx").read_bytes())
    _put(tasks, data)


def _read(file: Path) -> "tuple[Adapter, str]":
    from adapters.file import digest, read_adapter

    content = file.read_bytes()
    return read_adapter(content), digest(content)


def _put(path: Path, data: bytes) -> None:
    from adapters.file import digest
    from adapters.saving import replace_file

    replace_file(path, data)
    typer.echo(f"{path} ({len(data) / 1e6:.1f} MB, {digest(data)[:12]})")

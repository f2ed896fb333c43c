"""Options that say what a verb runs on: backbone, device, dtype, threads."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from backbone.load import Backbone

DTYPES = ("auto", "bfloat16", "float32")  # in which a model is trained
SERVED = (*DTYPES, "int8")

BackboneName = Annotated[str | None, typer.Option(help="timm model name; else the server's setting.")]
Source = Annotated[str | None, typer.Option(help="Where its weights come from; else the server's setting.")]
InputSize = Annotated[int | None, typer.Option(min=8, help="Pixels a side; else the server's setting.")]
Dtype = Annotated[str, typer.Option(help="auto, bfloat16 or float32.")]
ServedDtype = Annotated[str, typer.Option(help="auto, bfloat16, float32 or int8.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Threads = Annotated[int, typer.Option(min=0, help="Threads on the CPU; 0: one per core.")]


def load_named(name: str | None, source: str | None, input_size: int | None) -> "Backbone":
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


def place(dtype: str, device: str, threads: int) -> dict[str, Any]:
    """Return device, dtype and threads, chosen where the options leave it open."""
    from backbone.executors.choose import choose_device, choose_dtype

    check_place(dtype, device)
    chosen = choose_device(device)
    return {"device": chosen, "dtype": choose_dtype(dtype, chosen), "threads": threads_of(threads)}


def check_place(dtype: str, device: str, dtypes: Sequence[str] = DTYPES) -> None:
    """Refuse a dtype or device that does not exist."""
    if dtype not in dtypes:
        raise typer.BadParameter(f"is none of {', '.join(dtypes)}", param_hint="--dtype")
    if re.fullmatch(r"auto|cpu|cuda(:\d+)?", device) is None:
        raise typer.BadParameter("is none of auto, cpu, cuda, cuda:N", param_hint="--device")


def threads_of(asked: int) -> int:
    from server.cores import available_cores

    return asked or available_cores()

"""The verb `inspect`: what an adapter file holds. It needs no server and no backbone."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.cli.options import AsJson
from server.cli.output import printable, show_json

if TYPE_CHECKING:
    from adapters.manifest import Training
    from adapters.summary import Moved, Summary

app = typer.Typer()

BAR = 16
SHOWN_LABELS = 12
EIGHTHS = " ▏▎▍▌▋▊▉"


@app.command()
def inspect(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="Adapter file.", show_default=False),
    ],
    as_json: AsJson = False,
) -> None:
    """Show what an adapter file holds, how it was trained, and how far it moved by depth."""
    from adapters.summary import summarise

    summary = summarise(file.read_bytes())
    if as_json:
        show_json(summary.as_dict())
        return
    for line in _lines(file.name, summary):
        typer.echo(printable(line))


def _lines(name: str, summary: "Summary") -> Iterator[str]:
    for title, value in _facts(name, summary):
        yield f"{title:<12}{value}"
    if summary.manifest.training is not None:
        for title, value in _training(summary.manifest.training):
            yield f"{title:<12}{value}"
    if summary.sites:
        yield from _bars("moved, by depth", summary.blocks)
        yield from _bars("moved, by op", summary.kinds)


def _facts(name: str, summary: "Summary") -> Iterator[tuple[str, str]]:
    manifest, see = summary.manifest, summary.manifest.preprocessing
    yield "file", f"{name}, {summary.size:,} bytes, {', '.join(summary.dtypes)}"
    yield "digest", summary.digest
    yield "method", manifest.method
    yield "backbone", f"{manifest.backbone.name}, fingerprint {manifest.backbone.fingerprint}"
    yield "input", f"{see.height}×{see.width}, {see.interpolation}, crop {see.crop_pct:g} {see.crop_mode}"
    yield "", f"mean {_numbers(see.mean)}, std {_numbers(see.std)}"
    yield "sites", f"{len(summary.sites)}, {summary.ssf_parameters:,} parameters in scales and shifts"
    yield "head", f"{manifest.num_classes}×{manifest.head_width}, {summary.head_parameters:,} parameters"
    yield "", f"norm {summary.head_weight_norm:.4g} of the weight, {summary.head_bias_norm:.4g} of the bias"
    yield "labels", _shortened(manifest.labels)
    yield (
        "probe",
        f"{_shortened([f'{value:.4g}' for value in manifest.probe.logits])} ({manifest.probe.dtype})",
    )


def _training(training: "Training") -> Iterator[tuple[str, str]]:
    images = f"{training.train_images} images, {training.val_images} to validate"
    yield "trained on", f"{training.dataset}, {images if training.train_images else 'images not recorded'}"
    when = [f"started {training.started}"] if training.started else []
    took = [f"{training.seconds:.0f} s"] if training.seconds is not None else []
    yield "run", ", ".join([f"seed {training.seed}", *when, *took])
    if training.command:
        yield "command", training.command
    yield "metrics", _pairs(training.metrics.items())
    yield "recipe", _pairs(training.recipe.items())
    yield "packages", _pairs(training.packages.items())


def _bars(title: str, rows: Sequence["Moved"]) -> Iterator[str]:
    """Draw |γ - 1| and |β|, each against the largest in its own column."""
    width = max(len(title), *(len(row.name) for row in rows))
    yield ""
    yield f"{title:<{width}}  {'scale - 1, rms':<{BAR + 8}}  shift, rms"
    most_scale, most_shift = max(row.scale for row in rows), max(row.shift for row in rows)
    for row in rows:
        scale = f"{row.scale:7.4f} {_bar(row.scale, most_scale):<{BAR}}"
        yield f"{row.name:<{width}}  {scale}  {row.shift:7.4f} {_bar(row.shift, most_shift)}".rstrip()


def _bar(value: float, most: float) -> str:
    whole, eighths = divmod(round(8 * BAR * value / most) if most else 0, 8)
    return "█" * whole + EIGHTHS[eighths].strip()


def _numbers(values: Iterable[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


def _pairs(items: Iterable[tuple[str, object]]) -> str:
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in items
    )


def _shortened(values: Sequence[str]) -> str:
    more = [f"… {len(values) - SHOWN_LABELS} more"] if len(values) > SHOWN_LABELS else []
    return ", ".join([*values[:SHOWN_LABELS], *more])

"""The charts of docs/transfer.md: accuracy against what is trained, and against corruption."""

import math
from collections.abc import Iterable, Sequence

from benchmarks.charts import Chart
from benchmarks.transfer_rows import METHODS, Robustness, Row, Transfer, of_each_backbone

COMPARED = ("ssf", "linear", "full")
Lines = dict[str, list[tuple[float, float]]]


def pictures(transfer: Sequence[Row], robustness: Sequence[Row]) -> dict[str, str]:
    """Return the charts of every backbone, as SVG by file name."""
    made = {}
    for backbone, pixels in of_each_backbone([*transfer, *robustness]):
        shown = charts(Transfer(transfer, backbone, pixels), Robustness(robustness, backbone, pixels))
        made |= {f"{name}.svg": chart.svg() for name, chart in shown.items()}
    return made


def charts(transfer: Transfer, robustness: Robustness) -> dict[str, Chart]:
    """Return a backbone's charts by name; one that has no point is left out."""
    place = f"{transfer.backbone}-{transfer.pixels}"
    made = {
        f"transfer-{place}": _against_parameters(transfer),
        f"transfer-corrupted-{place}": _against_severity(robustness),
    }
    return {name: chart for name, chart in made.items() if chart}


def _against_parameters(transfer: Transfer) -> Chart | None:
    lines: Lines = {}
    for method in METHODS:
        if (mean := transfer.mean(method)) is not None:
            lines[method] = [(transfer.trained(method), mean)]
    return lines and Chart(
        f"{transfer.backbone}: mean accuracy over the sets",
        "test accuracy, %",
        lines,
        x_label="trained parameters, head included",
        x_ticks=_decades(x for points in lines.values() for x, _ in points),
        y_from=_floor(lines),
    )


def _against_severity(robustness: Robustness) -> Chart | None:
    severities = [0, *robustness.severities]
    lines: Lines = {}
    for method in COMPARED:
        found = [(severity, robustness.at(method, severity)) for severity in severities]
        if points := [(float(severity), mean) for severity, mean in found if mean is not None]:
            lines[method] = points
    return lines and Chart(
        f"{robustness.backbone}: mean accuracy under corruption",
        "test accuracy, %",
        lines,
        x_label="severity; 0 is clean",
        x_ticks=severities,
        logarithmic=False,
        y_from=_floor(lines),
    )


def _decades(values: Iterable[float]) -> list[float]:
    exponents = [math.log10(value) for value in values]
    return [10.0**power for power in range(math.floor(min(exponents)), math.ceil(max(exponents)) + 1)]


def _floor(lines: Lines) -> float:
    """Return the multiple of ten below all points: differences of a point or two should be seen."""
    lowest = min(y for points in lines.values() for _, y in points)
    return max(0.0, math.ceil(lowest / 10 - 1) * 10.0)

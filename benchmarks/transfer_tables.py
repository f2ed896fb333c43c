"""The tables of docs/transfer.md, each with its heading, for one backbone."""

from collections.abc import Iterable, Mapping, Sequence

from benchmarks.markdown import table
from benchmarks.transfer_plan import SEEDS, SETS
from benchmarks.transfer_rows import METHODS, Robustness, Row, Transfer, impossible, of_full

NONE = "–"
COST = """
### Cost of training

Images/s and memory are those of `python -m benchmarks.step_cost` at {pixels} px, one run a method; on a CPU
memory is what the process grew by at its peak. `linear` trains over kept features and has no such step.
"""
RATES = """
### Learning rates chosen

↓ and ↑: the smallest and the largest that was tried, so that a better one may lie beyond. Of two numbers of
epochs the smaller one is that of a search.
"""
CORRUPTED = """
### Under corruption

Test images corrupted as in ImageNet-C by `benchmarks/corruptions.py`; small pictures have the severities of
Tiny ImageNet-C. Accuracy in %; in brackets, against the same models on clean images, in points. Means are
over:

- severities {severities}
- {images} test images of a set
- sets {sets}
- seeds {seeds}
"""


def accuracy(trained: Transfer) -> str:
    def cell(method: str, name: str) -> str:
        found = trained.cell(method, name)
        if found is None:
            return NONE
        spread = "" if found.std is None else f" ± {found.std:.1f}"
        return f"{found.mean:.1f}{spread}" + (
            "" if len(found.values) >= len(SEEDS) else f" ({len(found.values)})"
        )

    return "\n### Accuracy\n" + table(
        ["method", *SETS, "mean"],
        [
            [f"`{method}`", *(cell(method, name) for name in SETS), _number(trained.mean(method), ".1f")]
            for method in METHODS
        ],
    )


def alike(trained: Transfer) -> str:
    """Say so where `norm` and `ssf` train the same numbers: every site is a norm layer."""
    norm, ssf = (
        {(row["set"], row["seed"]): (row["trainable"], row["test_accuracy"]) for row in trained.runs(method)}
        for method in ("norm", "ssf")
    )
    same = norm and norm == ssf
    return "\n`norm` and `ssf` are one and the same here: every site is a norm layer.\n" if same else ""


def missing(trained: Transfer) -> str:
    reasons = {method: impossible(method, trained.backbone) for method in METHODS}
    text = "".join(f"\n`{method}` {reason}.\n" for method, reason in reasons.items() if reason)
    methods: dict[str, list[str]] = {}
    for method, counts in trained.missing().items():
        methods.setdefault(_places(counts), []).append(f"`{method}`")
    found = [f"{_listed(of)} on {places}" for places, of in methods.items()]
    return text + (f"\n**Missing**: {'; '.join(found)}.\n" if found else "")


def _places(counts: Mapping[str, int]) -> str:
    if len(counts) == len(SETS) and not any(counts.values()):
        return "every set"
    return _listed(f"{name} ({n} of {len(SEEDS)} seeds)" if n else name for name, n in counts.items())


def cost(trained: Transfer, steps: Sequence[Row]) -> str:
    measures = [of_full(steps, trained.backbone, key) for key in ("images_per_s", "peak_memory")]

    def line(method: str) -> list[str]:
        own, heads = trained.values(method, "trainable"), trained.values(method, "head")
        ratios = [_number(measure.get(method), ".2f") for measure in measures]
        return [f"`{method}`", _span(own), _span(heads), *ratios]

    heads = ["method", "parameters beside the head", "of the head", "images/s ÷ full", "peak memory ÷ full"]
    text = COST.format(pixels=_span([row["pixels"] for row in steps])) + table(heads, map(line, METHODS))
    return text if measures[0] else text + "\n**Missing**: steps of `full`.\n"


def rates(trained: Transfer) -> str:
    def cell(method: str, name: str) -> str:
        tried = trained.searched(method, name)
        marks = {tried[0]: "↓", tried[-1]: "↑"} if len(tried) > 1 else {}
        return ", ".join(f"{rate:g}{marks.get(rate, '')}" for rate in trained.rates(method, name)) or NONE

    def line(method: str) -> list[str]:
        tried = sorted({rate for name in SETS for rate in trained.searched(method, name)})
        cells = [cell(method, name) for name in SETS]
        epochs = _span(trained.epochs(method))
        return [f"`{method}`", *cells, ", ".join(f"{rate:g}" for rate in tried) or NONE, epochs]

    return RATES + table(["method", *SETS, "tried", "epochs"], map(line, METHODS))


def corrupted(found: Robustness) -> str:
    if not found.methods:
        return "\n### Under corruption\n\nNot run yet.\n"

    def line(method: str) -> list[str]:
        clean = found.at(method, 0)
        means = [*(found.accuracy(method, name) for name in found.corruptions), found.over_all(method)]
        cells = [NONE if None in {mean, clean} else f"{mean:.1f} ({_signed(mean - clean)})" for mean in means]
        return [f"`{method}`", _number(clean, ".1f"), *cells]

    intro = CORRUPTED.format(
        severities=_listed(found.severities),
        images=_span(found.images),
        sets=_listed(found.sets),
        seeds=_listed(found.seeds),
    )
    return (
        intro
        + table(["method", "clean", *found.corruptions, "all"], map(line, found.methods))
        + _lacking(found)
    )


def _lacking(found: Robustness) -> str:
    methods = [f"`{m}`" for m in METHODS if m not in found.methods and not impossible(m, found.backbone)]
    sets = [name for name in SETS if name not in found.sets]
    text = f"\nNot corrupted: methods {_listed(methods)}.\n" if methods else ""
    text += f"\nNot corrupted: sets {_listed(sets)}.\n" if sets else ""
    for method in found.methods:
        if lacking := found.lacks(method):
            text += f"\n**Missing**: `{method}`, {lacking} of set, corruption and severity.\n"
    return text


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))


def _number(value: float | None, form: str) -> str:
    return NONE if value is None else format(value, form)


def _signed(value: float) -> str:
    return f"{round(value, 1) + 0.0:+.1f}"  # no -0.0


def _span(values: Sequence[int]) -> str:
    if not values:
        return NONE
    return " to ".join(f"{value:,}" for value in sorted({min(values), max(values)}))

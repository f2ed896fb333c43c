"""Make docs/benchmarks.md, docs/transfer.md and their charts from benchmarks/results/: `python -m benchmarks.report`."""

import sys
from collections.abc import Callable
from operator import itemgetter
from typing import Any

from benchmarks import transfer_charts, transfer_page
from benchmarks.common import ROOT, dtype_and_host, load
from benchmarks.markdown import table
from benchmarks.matrix_page import cases, charts, unsupported

DOCS = ROOT / "docs"
CHARTS = DOCS / "charts"
Row = dict[str, Any]

INTRO = """# Benchmarks

Made by `python -m benchmarks.report` from the rows in [benchmarks/results/](../benchmarks/results/); `make bench` makes
the rows anew on any host. Ratios are medians of rounds in which the contenders take turns, so that what disturbs the
host disturbs all alike. The hosts are virtual machines that share their cores with others: absolute rates say little.

**Not yet run on a GPU**, neither the PyTorch executor nor the kernels ([kernels.md](kernels.md)).
"""
TRANSFER = """
How accurate adapters are, against full training and a linear probe: [transfer.md](transfer.md).
"""

TAX = """
## Adapter tax and flatness

`python -m benchmarks.tax`: a mixed batch, from uint8 pixels to logits, against the plain timm model with one head on
normalised images. `÷ PyTorch` and `÷ OpenVINO` are against the best way found to run the plain model in each: PyTorch
in both memory layouts; OpenVINO with the batch as one request, and cut into pieces of 4 and 8 on streams as our executor
does. As on a busy server there always is a next batch, for the plain model too. `÷ identical` is against the same executor with one task; identical tasks are no special case, so it shows noise and
the cost of reading other rows of the bank. The rows of the plain model are its own ways against each other.

OpenVINO computes γ'·x + β' per image in a pass of its own, where the plain model adds a bias inside the product. In
EfficientNet these passes go over wide, thin maps: what is left of the tax there ([ADR 3](adr/0003-openvino-in-pieces.md)).
They weigh most where AMX does the products. Each table is of one CPU, named below it by what it multiplies with: AMX,
AVX-512 bf16, or AVX-512 VNNI alone, which computes in fp32.
"""
INT8 = """
## int8 on a CPU

`python -m benchmarks.int8`: `SSFSERVE_DTYPE=int8` against the dtype that the server takes by itself on the same host, the first of
each two rows. `÷ other` is against the same mixed batch of all-distinct tasks in that dtype; `÷ PyTorch` and `÷ OpenVINO`
against the best way found to run the plain model in that dtype, which is what the tax is measured by. Why int8 works this way: [ADR 9](adr/0009-int8-as-it-comes.md).

Where a second table follows, it is the demo tasks on every image of their second halves. *changed*: answers that differ
from those in fp32. *probe*: how far the probe is off in units of its spread.
"""
MATRIX = """
## Families, batches and mixes

`python -m benchmarks.matrix`: models with random weights at 224 px, one line a case. All but the last two columns are
images/s against the fastest way to run the plain model in the same rounds: the plain model eager in two memory
layouts, compiled, on OpenVINO as one request and in pieces of 4 and 8; then ours by mix on the server's default executor. *of the
floor*: the least time for the products' operations and the bytes that fusing cannot save, at the rates a square matrix
product and a copy reach on this host in the same run, ÷ the time of the distinct tasks. A depthwise convolution cannot
reach that rate. A default run leaves out what would take longer than `--case-seconds`; `--full` runs batches 1 to 256.
"""
TODAY = """
## Against what people do today

`python -m benchmarks.today`: requests for several tasks, the ways they are served without a mixed forward. `÷ mixed`
is against our mixed batch on the server's default executor.

The threads of PyTorch wait for one another after every op, those of OpenVINO's streams do not: on a host whose cores are
busy with something else PyTorch loses more, most with the many short ops of EfficientNet. On such a host (load average
15 on 2 cores, 16 requests, one task) its mixed way reached 0.11 of ours and its merged models 0.12 with two threads; with
one thread for each contender, 0.51 and 0.57.
"""
SCALE = """
## Ten thousand tasks

`python -m benchmarks.scale`: a small model, so that what surrounds it shows; a closed loop of clients on an engine over
an embedded registry on disk; every answer compared with its own adapter's.
"""
HTTP = """
## Serving

`python -m benchmarks.http`: a closed loop of connections that send a JPEG of 320 × 240 for several tasks, against the
same engine called in-process on decoded images; client, server and engine share the host and take turns.
"""
DECODE = """
## Decoding

`python -m benchmarks.decode`: one thread, from the bytes of a file to the uint8 pixels of the backbone. `pillow` is the
training transform alone; `fast` (the default) and `scaled` include every check of the server.
"""
DRILL = """
## The drill

`python -m benchmarks.drill`: servers on one real Redis that syncs each write, a small model, eight tasks; clients predict,
upload, and move an alias forth and back with `wait=true`, while replicas and Redis are killed, paused and restarted. Each
answer is compared with the logits of the version it names. *Stale*: an answer by a version that a confirmed move had ended
before it was asked for. *Undocumented*: a failure that [operations.md](operations.md) and [registry.md](registry.md) do not
announce. `recovery` is from the end of the fault (of a kill: the kill itself) to the last failure; `replaced`, to when the new
replica answered. A move takes as long as all replicas need to see it; after a kill one waits for the dead replica's lease.
"""


def number(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def conditions(rows: list[Row]) -> str:
    first = rows[0]
    commits = ", ".join(dict.fromkeys(row["commit"] for row in rows))
    dates = sorted({row["date"] for row in rows})
    return (
        f"\n{first['host']}, {first['cores']} cores, torch {first['torch']}, commit {commits}, "
        f"{dates[0]}{f' to {dates[-1]}' if len(dates) > 1 else ''}.\n"
    )


def columns(**named: str) -> Callable[[list[Row]], str]:
    """Make a table of chosen columns, `heading=key`; underscores in headings are spaces."""
    heads = [name.rstrip("_").replace("_", " ").replace("over ", "÷ ") for name in named]

    def make(rows: list[Row]) -> str:
        return table(heads, ([number(row.get(key, "")) for key in named.values()] for row in rows))

    return make


def ran(rows: list[Row]) -> str:
    show = columns(
        model="model", pixels="pixels", dtype="dtype", batch="batch", executor="executor", mix="mix",
        tasks="tasks", over_PyTorch="vs_torch", over_OpenVINO="vs_openvino", over_identical="vs_identical",
    )  # fmt: skip
    return show(rows)


def parts(rows: list[Row], by: Callable[[Row], object] = dtype_and_host) -> list[list[Row]]:
    """Return the rows of each dtype and host, which say nothing of one another."""
    found: dict[object, list[Row]] = {}
    for row in rows:
        found.setdefault(by(row), []).append(row)
    return list(found.values())


def each_part(
    show: Callable[[list[Row]], str], by: Callable[[Row], object] = dtype_and_host
) -> Callable[[list[Row]], str]:
    """Make a table for each dtype and host, with its conditions."""
    return lambda rows: "".join(show(part) + conditions(part) for part in parts(rows, by))


def int8(rows: list[Row]) -> str:
    speed = columns(
        model="model", pixels="pixels", batch="batch", tasks="tasks", dtype="dtype", over_other="vs_other",
        over_PyTorch="vs_torch", over_OpenVINO="vs_openvino",
    )  # fmt: skip
    accuracy = columns(
        task="task", images="images", dtype="dtype", top1="top1", changed="changed", probe="probe"
    )
    judged = [
        row | {key: f"{row[key]:.4f}" for key in ("top1", "changed", "probe")}
        for row in rows
        if "top1" in row
    ]
    text = speed([row for row in rows if "vs_other" in row])
    return text + (accuracy(judged) if judged else "")


def rates(rows: list[Row]) -> str:
    """Say what the floor of a dtype's rows is made of, and how busy the host was."""
    least_most = [
        f"{f(row[key] for row in rows):.3g}" for key in ("tflop_per_s", "gb_per_s") for f in (min, max)
    ]
    loads = [row["load"] for row in rows]
    return (
        f"\n{rows[0]['dtype']}: load average {min(loads):.1f} to {max(loads):.1f}, the benchmark included; rates of the floor "
        f"{least_most[0]} to {least_most[1]} TFLOP/s, {least_most[2]} to {least_most[3]} GB/s.\n{conditions(rows)}"
    )


def matrix(rows: list[Row]) -> str:
    text = "".join(matrix_part(part) for part in parts([row for row in rows if "unsupported" not in row]))
    if missing := unsupported(rows):
        text += f"\nNot yet supported: {', '.join(missing)}.\n"
    return text


def matrix_part(rows: list[Row]) -> str:
    lines = [case.cells() for case in cases(rows)]
    text = "".join(f"\n![{chart.title}](charts/{name}.svg)\n" for name, chart in charts(rows).items())
    text += table(list(lines[0]), ([number("" if v is None else v) for v in line.values()] for line in lines))
    return text + rates(rows)


def scale(rows: list[Row]) -> str:
    mixes = [row for row in rows if row["mix"] != "cycles"]
    show = columns(
        mix="mix", tasks="tasks", slots="slots", images_per_s_over_identical="vs_identical",
        loads_per_s="loads_per_s", p50_ms="p50_ms", p99_ms="p99_ms", max_ms="max_ms", wrong="wrong",
    )  # fmt: skip
    text = show(mixes)
    for row in rows:
        if row["mix"] == "cycles":
            text += (
                f"\n{row['cycles']} loads and evictions, commit {row['commit']}: {row['resident_mb_after_fifth']:.0f} MB resident after "
                f"a fifth of them, {row['resident_mb_end']:.0f} MB at the end.\n"
            )
    return text


def decode(rows: list[Row]) -> str:
    show = columns(
        photograph="photograph", format="format", size="size", contender="contender", ms="ms",
        times_as_fast_as_pillow="vs_pillow", grey_levels_off_mean="off_mean", most="off_max",
    )  # fmt: skip
    return show([row for row in rows if row["part"] == "whole"])


def drill(rows: list[Row]) -> str:
    show = columns(
        phase="phase", seconds="seconds", predictions="predictions", failed="predictions_failed", moves="moves",
        failed_="moves_failed", p50_ms="move_p50_ms", max_ms="move_max_ms", uploads="uploads",
        failed__="uploads_failed", recovery_s="recovery_s", replaced_s="replaced_s", failures="errors",
    )  # fmt: skip
    text = ""
    for run in sorted({(row["servers"], row["replicas"]) for row in rows}):
        mine = [row for row in rows if (row["servers"], row["replicas"]) == run]
        total = mine[-1]
        text += (
            f"\nServers: {run[0]}, replicas each: {run[1]}. {total['predictions']} predictions, {total['moves']} moves, "
            f"{total['uploads']} uploads: {total['wrong']} wrong, {total['stale']} stale, {total['lost_uploads']} uploads "
            f"lost, {total['undocumented']} undocumented failures.\n"
        )
        text += show(mine[:-1])
    return text


SECTIONS: dict[str, tuple[str, Callable[[list[Row]], str]]] = {
    "tax": (TAX, each_part(ran)),
    "int8": (INT8, each_part(int8, itemgetter("host"))),
    "matrix": (MATRIX, matrix),
    "today": (
        TODAY,
        columns(
            model="model",
            pixels="pixels",
            executor="executor",
            way="way",
            requests="requests",
            tasks="tasks",
            over_mixed="vs_mixed",
        ),
    ),
    "scale": (SCALE, scale),
    "http": (
        HTTP,
        each_part(
            columns(
                model="model",
                pixels="pixels",
                dtype="dtype",
                connections="connections",
                tasks="tasks",
                HTTP_over_engine="efficiency",
                mean_batch="mean_batch",
                distinct_tasks_a_batch="mean_distinct_tasks",
            )
        ),
    ),
    "decode": (DECODE, decode),
    "drill": (DRILL, drill),
}


SEVERAL_HOSTS = {"tax", "int8", "matrix", "http"}  # they say the conditions of each


def page() -> str:
    """Return the page of the benchmarks; one without rows is left out."""
    text = INTRO + (TRANSFER if load("transfer") else "")
    for name, (intro, make) in SECTIONS.items():
        if rows := load(name):
            text += intro + make(rows) + ("" if name in SEVERAL_HOSTS else conditions(rows))
    return text


def pages() -> dict[str, str]:
    """Return the pages by file name; one that no row is of is left out."""
    made = {"benchmarks.md": page()}
    transfer, robustness = load("transfer"), load("robustness")
    if transfer or robustness:
        made["transfer.md"] = transfer_page.page(transfer, robustness, load("step_cost"))
    return made


def pictures() -> dict[str, str]:
    """Return the charts of all pages, as SVG by file name."""
    made = {f"{name}.svg": chart.svg() for name, chart in charts(load("matrix")).items()}
    return made | transfer_charts.pictures(load("transfer"), load("robustness"))


if __name__ == "__main__":
    CHARTS.mkdir(exist_ok=True)
    for name, picture in pictures().items():
        (CHARTS / name).write_text(picture)
    for name, text in pages().items():
        (DOCS / name).write_text(text)
        sys.stdout.write(f"{DOCS / name}\n")

"""Every family over batches and mixes, beside every way to run the plain model: one command on any host.

    python -m benchmarks.matrix [--full] [--models ...] [--batches ...] [--minutes 15]

Each case is one model and batch. Its contenders take turns: the plain timm model eager in both memory
layouts, compiled, and (on a CPU) on OpenVINO as one request and in pieces; our executors with every mix.
Weights are random. Rows are kept as each case ends, and a case that has rows of this commit and host is not
run again, so what was cut off is continued. By default a case that would take longer than `--case-seconds` is
left out, and none is started after `--minutes`; `--full` lifts both, and compiles for every batch.

vs_plain_best   images/s against the fastest way to run the plain model in the same rounds
vs_identical    images/s against the same executor with one task: flatness
of_floor        the floor of benchmarks/roofline.py ÷ the time taken
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from backbone.cpu_memory import keep_large_buffers
from backbone.errors import UnsupportedModel
from backbone.executors.base import Executor, FoldedAdapter
from backbone.executors.choose import choose_device, choose_dtype, open_executor
from backbone.executors.torch_executor import DTYPES
from backbone.heads import Head
from backbone.load import Backbone, load_backbone
from benchmarks.common import RESULTS, Row, conditions, interleave, load, paired_ratio, table
from benchmarks.plain import CLASSES, compiled_run, openvino_runs, plain_model, torch_runs
from benchmarks.roofline import Rates, Work, measure_rates, measure_work
from benchmarks.tax import mixes

MODELS = (
    "vit_small_patch16_224",
    "vit_base_patch16_224",
    "swin_tiny_patch4_window7_224",
    "convnext_tiny",
    "tf_efficientnet_lite0",
)
SIZE = 224
BATCHES = (1, 4, 16, 64)
ALL_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
COMPILED_BATCHES = (16,)  # each compilation takes up to a minute
ROUNDS = (3, 15)  # at least, at most
UNBOUNDED = 1e9  # seconds
PATH = RESULTS / "matrix.json"
COLUMNS = ["model", "dtype", "batch", "executor", "mix", "tasks", "images_per_s", "vs_plain_best",
           "vs_identical", "of_floor"]  # fmt: skip
Name = tuple[str, str]  # executor, and mix or way


@dataclass(frozen=True)
class Host:
    """Where the cases run."""

    device: str
    dtype: str
    rates: Rates

    @property
    def kinds(self) -> tuple[str, ...]:
        """Return the executors measured; the server's default comes first."""
        return ("openvino", "torch") if self.device == "cpu" else ("auto",)


@dataclass(frozen=True)
class Plan:
    """Which batches are run, which of them compiled, and for how long; `until` is monotonic."""

    batches: tuple[int, ...]
    compiled: tuple[int, ...]
    case_seconds: float
    until: float


def random_adapters(backbone: Backbone, count: int) -> Iterator[FoldedAdapter]:
    generator = torch.Generator().manual_seed(0)
    widths = backbone.sites.widths

    def vectors(centre: float) -> dict[str, torch.Tensor]:
        return {name: centre + 0.02 * torch.randn(c, generator=generator) for name, c in widths.items()}

    for _ in range(count):
        head = Head(torch.randn(CLASSES, backbone.head_width, generator=generator), torch.zeros(CLASSES))
        yield FoldedAdapter(backbone.fold.row(vectors(1.0), vectors(0.0)), head)


def check(executor: Executor, images: list[NDArray[np.uint8]], adapters: list[FoldedAdapter]) -> None:
    """Refuse to time a wrong answer: a mixed batch must equal one image at a time."""
    together = executor.run(images, list(range(1, len(images) + 1)))
    for place in {0, len(images) // 2, len(images) - 1}:
        alone = executor.run_beside_bank(images[place], adapters[place])
        np.testing.assert_allclose(together[place], alone, rtol=0.05, atol=0.05 * float(np.abs(alone).max()))


def contenders(
    backbone: Backbone, batch: int, host: Host, *, compiled: bool
) -> dict[Name, Callable[[], object]]:
    """Return everything that takes turns in a case, ready to run."""
    threads, dtype = torch.get_num_threads(), DTYPES[host.dtype]
    plain = torch_runs(backbone, batch, host.device, dtype)
    if compiled:
        plain["torch compiled"] = compiled_run(backbone, batch, host.device, dtype)
    if host.device == "cpu":
        plain |= openvino_runs(backbone, batch, host.dtype, threads)
    found: dict[Name, Callable[[], object]] = {("plain", way): run for way, run in plain.items()}
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (3, SIZE, SIZE), dtype=np.uint8) for _ in range(batch)]
    adapters = list(random_adapters(backbone, batch))
    for kind in host.kinds:
        executor = open_executor(
            backbone, name=kind, device=host.device, dtype=host.dtype, slots=batch, threads=threads
        )
        for slot, adapter in enumerate(adapters, start=1):
            executor.load(slot, adapter)
        check(executor, images, adapters)
        for mix, slots in mixes(batch).items():
            if kind == host.kinds[0] or mix == "distinct":
                found[executor.name, mix] = lambda e=executor, s=slots: e.run(images, s)
    return found


def seconds_of_a_round(runs: Mapping[Name, Callable[[], object]]) -> float:
    """Warm all up, then time one round."""
    for run in runs.values():
        run()
    start = time.perf_counter()
    for run in runs.values():
        run()
    return time.perf_counter() - start


def measure(backbone: Backbone, work: Work, batch: int, host: Host, plan: Plan) -> list[Row]:
    """Run one case; `case_seconds` bounds the rounds, not the preparation."""
    runs = contenders(backbone, batch, host, compiled=batch in plan.compiled)
    round_seconds = seconds_of_a_round(runs)
    rounds = min(max(int(plan.case_seconds / round_seconds), ROUNDS[0]), ROUNDS[1])
    times = interleave(runs, rounds=rounds, warmup=0)
    best = min((times[name] for name in times if name[0] == "plain"), key=statistics.median)
    floor = work.floor(batch, host.rates)
    common = {
        "bench": "matrix", "model": backbone.name, "pixels": SIZE, "device": host.device, "dtype": host.dtype,
        "batch": batch, "rounds": rounds, "round_seconds": round_seconds, "floor_ms": floor * 1e3,
        "gflop_per_image": work.operations / 1e9, "tflop_per_s": host.rates.operations / 1e12,
        "gb_per_s": host.rates.bytes / 1e9,
    }  # fmt: skip
    return [
        common
        | {
            "executor": kind,
            "mix": mix,
            "tasks": 1 if kind == "plain" else len(set(mixes(batch)[mix])),
            "images_per_s": batch / statistics.median(seconds),
            "vs_plain_best": paired_ratio(seconds, best),
            "vs_identical": paired_ratio(seconds, same) if (same := times.get((kind, "identical"))) else "",
            "of_floor": floor / statistics.median(seconds),
        }
        for (kind, mix), seconds in times.items()
    ]


class Kept:
    """The rows on disk; those of this commit count as done, others of this host and dtype give way."""

    def __init__(self, dtype: str) -> None:
        self._dtype = dtype
        self._conditions = conditions()
        self.rows = load("matrix")

    def done(self, model: str, batch: int) -> list[Row]:
        return [row for row in self.rows if self._is(row, model, batch) and self._is_here(row)]

    def put(self, model: str, batch: int, rows: list[Row]) -> None:
        """Replace what is known of a case; what the table says of it is measured in one run."""
        others = [row for row in self.rows if not self._is(row, model, batch)]
        order = {name: place for place, name in enumerate(MODELS)}
        new = [row | self._conditions | {"load": conditions()["load"]} for row in rows]
        self.rows = sorted(others + new, key=lambda row: (order.get(row["model"], len(order)), row["batch"]))
        RESULTS.mkdir(exist_ok=True)
        PATH.write_text(json.dumps(self.rows, indent=1) + "\n")

    def _is(self, row: Row, model: str, batch: int) -> bool:
        if row["model"] != model or row.get("dtype", self._dtype) != self._dtype:
            return False
        return row["host"] == self._conditions["host"] and row["batch"] in {batch, 0}

    def _is_here(self, row: Row) -> bool:
        return all(row[key] == self._conditions[key] for key in ("commit", "cores", "torch"))


def run_model(name: str, host: Host, plan: Plan, kept: Kept) -> None:
    """Run what is missing of a model, the smallest batches first."""
    if all(kept.done(name, batch) for batch in plan.batches):
        return
    try:
        backbone = load_backbone(name, source="random", input_size=SIZE)
    except UnsupportedModel as error:
        print(f"{name}: not supported: {error}")
        kept.put(name, 0, [{"bench": "matrix", "model": name, "batch": 0, "unsupported": str(error)}])
        return
    work = measure_work(plain_model(backbone), SIZE, DTYPES[host.dtype])
    per_image = 0.0
    for batch in plan.batches:
        if done := kept.done(name, batch):
            per_image = done[0]["round_seconds"] / batch
            continue
        if per_image * batch * (ROUNDS[0] + 2) > plan.case_seconds or time.monotonic() > plan.until:
            print(f"{name}, batch {batch}: left out for time; --full runs it")
            continue
        rows = measure(backbone, work, batch, host, plan)
        per_image = rows[0]["round_seconds"] / batch
        kept.put(name, batch, rows)
        print(table(rows, COLUMNS), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--batches", type=int, nargs="+")
    parser.add_argument("--full", action="store_true", help="every batch, however long it takes")
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--case-seconds", type=float, default=100)
    arguments = parser.parse_args()
    keep_large_buffers()
    device = choose_device("auto")
    dtype = choose_dtype("auto", device)
    host = Host(device, dtype, measure_rates(device, DTYPES[dtype]))
    full = arguments.full
    batches = tuple(sorted(arguments.batches or (ALL_BATCHES if full else BATCHES)))
    plan = Plan(
        batches,
        compiled=batches if full else COMPILED_BATCHES,
        case_seconds=UNBOUNDED if full else arguments.case_seconds,
        until=time.monotonic() + (UNBOUNDED if full else arguments.minutes * 60),
    )
    kept = Kept(dtype)
    for name in arguments.models:
        run_model(name, host, plan, kept)
    print(f"rows: {PATH}")


if __name__ == "__main__":
    main()

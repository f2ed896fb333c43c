"""SSF against what else tunes a backbone, in the VTAB-1k protocol: `python -m benchmarks.transfer`.

At most 1000 images a set to train on, a fifth of them to choose the learning rate and the epoch, three seeds.
Every row is written when its training ends, and none that is there is trained again: the program goes on
where it was cut off. `--limit SECONDS` stops it before a training that would begin later. On a CPU two
processes of one thread each (`OMP_NUM_THREADS=1`, `--part 1/2` and `--part 2/2`) are faster than one of two:
small models wait for their threads.
"""

import argparse
import fcntl
import json
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import torch

from adapters.data import Dataset, Split
from adapters.fitting import Fitted, fit_method
from adapters.recipe import Recipe
from adapters.saving import replace_file
from adapters.seeding import own_random_numbers
from backbone.cpu_memory import keep_large_buffers
from backbone.executors.choose import choose_device, choose_dtype
from backbone.load import Backbone, load_backbone
from benchmarks.common import RESULTS, conditions, load
from benchmarks.corruptions import CORRUPTIONS
from benchmarks.transfer_plan import (
    CORE,
    EPOCHS,
    LINEAR_EPOCHS,
    SEARCH_EPOCHS,
    Case,
    Row,
    Run,
    cases,
    missing,
)  # fmt: skip
from benchmarks.transfer_sets import TransferSet, load_set

BATCH = 32
SEVERITIES = range(1, 6)
CORRUPTED_IMAGES = 250


def recipe(case: Case, run: Run, device: str) -> Recipe:
    """Return a training's recipe: the same for all methods but for what trains, and its learning rate."""
    linear = case.method == "linear"
    return Recipe(
        method=case.method,
        epochs=LINEAR_EPOCHS if linear else SEARCH_EPOCHS if run.stage == "search" else EPOCHS,
        batch_size=256 if linear else BATCH,
        warmup=5 if linear else 0.5,
        **({"head_lr": run.lr} if linear else {"lr": run.lr}),
        dtype=choose_dtype("auto", device),
        device=device,
        threads=torch.get_num_threads(),
        seed=run.seed,
    )


@lru_cache(maxsize=2)
def backbone_of(name: str, pixels: int) -> Backbone:
    return load_backbone(name, source="offline", input_size=pixels)


@lru_cache(maxsize=2)
def set_of(name: str, backbone: str, pixels: int) -> TransferSet:
    return load_set(name, backbone_of(backbone, pixels).spec)


def train(case: Case, run: Run, device: str) -> tuple[Fitted, Row]:
    """Run one training; return the model and its row."""
    data, frozen = set_of(case.set, case.backbone, case.pixels), backbone_of(case.backbone, case.pixels)
    dataset = Dataset(Path(data.name), data.labels, (), data.pixels, data.targets, data.digest, 0)
    chosen, clock = recipe(case, run, device), time.monotonic()
    with own_random_numbers(run.seed):
        fitted = fit_method(frozen, dataset, Split(data.train, data.val), chosen)
    seconds = time.monotonic() - clock
    final = run.stage == "final"
    return fitted, {
        "bench": "transfer",
        **case.key,
        "stage": run.stage,
        "lr": run.lr,
        "seed": run.seed,
        "epochs": chosen.epochs,
        "train_images": len(data.train),
        "val_images": len(data.val),
        "test_images": len(data.test),
        "set_digest": data.digest,
        "val_accuracy": fitted.outcome.val.accuracy,
        "val_loss": fitted.outcome.val.loss,
        "test_accuracy": fitted.accuracy(data.pixels[data.test], data.targets[data.test]) if final else None,
        "best_epoch": fitted.outcome.epoch,
        "trainable": _trainable(case, fitted),
        "head": sum(p.numel() for p in fitted.head.parameters()),
        "seconds": round(seconds, 1),
        "dtype": chosen.dtype,
        "device": device,
    }


def corrupted(case: Case, fitted: Fitted, row: Row) -> Iterator[Row]:
    """Yield a model's accuracy on corrupted test images, the same images for every model."""
    data = set_of(case.set, case.backbone, case.pixels)
    chosen = data.test[:: max(1, len(data.test) // CORRUPTED_IMAGES)][:CORRUPTED_IMAGES]
    pixels, targets = data.pixels[chosen], data.targets[chosen]
    facts = {"bench": "robustness", **case.key, "seed": row["seed"], "test_images": len(chosen)}
    facts["clean_accuracy"] = fitted.accuracy(pixels, targets)
    for name, corrupt in CORRUPTIONS.items():
        for severity in SEVERITIES:
            changed = corrupt(pixels, severity, torch.Generator().manual_seed(severity))
            yield {
                **facts,
                "corruption": name,
                "severity": severity,
                "test_accuracy": fitted.accuracy(changed, targets),
            }


def append(name: str, rows: list[Row]) -> None:
    """Add rows, with their conditions, to a file of results, whole or not at all.

    Rows of the same training that were made before, at a learning rate that is not the best any more, go.
    """
    here = conditions()
    replaced = [_training(row) for row in rows if row.get("stage") != "search"]
    with (RESULTS / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        kept = [row for row in load(name) if row.get("stage") == "search" or _training(row) not in replaced]
        text = json.dumps([*kept, *(row | here for row in rows)], indent=1) + "\n"
        replace_file(RESULTS / f"{name}.json", text.encode())


def _training(row: Row) -> tuple[object, ...]:
    return tuple(row[name] for name in ("backbone", "pixels", "set", "method", "seed"))


def run_case(case: Case, device: str, deadline: float) -> bool:
    """Run what is missing of a case; return whether there was time for all of it."""
    while (run := missing(case, load("transfer"))) is not None:
        if time.monotonic() > deadline:
            return False
        fitted, row = train(case, run, device)
        if run.stage == "final" and case.method in CORE and run.seed == 0:
            append("robustness", list(corrupted(case, fitted, row)))
        append("transfer", [row])
        print(_line(row), flush=True)
    return True


def _trainable(case: Case, fitted: Fitted) -> int:
    tunables = [] if case.method == "linear" else fitted.inputs.tunables()
    return sum(tunable.parameter.numel() for tunable in tunables)


def _line(row: Row) -> str:
    test = "" if row["test_accuracy"] is None else f", test {row['test_accuracy']:.3f}"
    what = f"{row['backbone']} {row['pixels']} px, {row['set']}, {row['method']}, {row['stage']}"
    run = f"lr {row['lr']:g}, seed {row['seed']}"
    return f"{what}, {run}: validation {row['val_accuracy']:.3f}{test}, {row['seconds']:.0f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--limit", type=float, default=float("inf"), help="seconds; then no training begins")
    parser.add_argument("--part", default="1/1", help="which of how many processes this one is")
    arguments = parser.parse_args()
    keep_large_buffers()
    device, deadline = choose_device("auto"), time.monotonic() + arguments.limit
    part, _, parts = arguments.part.partition("/")
    todo = cases()[int(part) - 1 :: int(parts)]
    for place, case in enumerate(todo):
        if not run_case(case, device, deadline):
            print(f"out of time: {place} of {len(todo)} cases are done; run it again to go on")
            return
    print("all cases are done; `python -m benchmarks.report` makes docs/transfer.md")


if __name__ == "__main__":
    main()

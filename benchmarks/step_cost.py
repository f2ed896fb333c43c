"""What a training step costs by each method: `python -m benchmarks.step_cost`.

Images/s are those of the median step, peak memory is that of training: on a GPU what PyTorch allocated, on
a CPU by how much the process grew. Each case has a process of its own, since memory that an earlier one left
behind would hide the next one's need. `--one` runs a case, given as JSON, and prints its numbers likewise.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from typing import Any

import torch

from adapters.fitting import make_head
from adapters.inputs import TunedInputs
from adapters.loop import Steps
from adapters.optim import Course, make_optimizer
from adapters.recipe import Recipe
from adapters.usage import PeakMemory
from backbone.cpu_memory import keep_large_buffers
from backbone.executors.choose import choose_device, choose_dtype
from backbone.load import load_backbone
from benchmarks.common import ROOT, Row, save, table
from benchmarks.transfer_plan import CORE, DINOV2, LITE0, OTHERS

STEPS, WARMUP, CLASSES, BATCH = 14, 3, 10, 16
PIXELS = 112


def cases() -> list[Row]:
    """Return every method on both backbones, and the transformer's ssf and full once more compiled."""
    methods = [name for name in (*CORE, *OTHERS) if name != "linear"]
    found = [
        {"backbone": backbone, "pixels": PIXELS, "method": method, "compile": False}
        for backbone in (DINOV2, LITE0)
        for method in methods
        if not (method == "vpt-deep" and backbone == LITE0)
    ]
    compiled = [case for case in found if case["method"] in CORE and case["backbone"] == DINOV2]
    return found + [{**case, "compile": True} for case in compiled]


def measure(case: Row) -> Row:
    """Run a case in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.step_cost", "--one", json.dumps(case)]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    found: Row = json.loads(done.stdout)
    return {"bench": "step_cost", **case, **found}


def run(case: Row) -> Row:
    """Train for some steps on random images."""
    keep_large_buffers()
    pixels, device = case["pixels"], choose_device("auto")
    backbone = load_backbone(case["backbone"], source="offline", input_size=pixels)
    recipe = Recipe(
        method=case["method"],
        compile=case["compile"],
        epochs=1,
        batch_size=BATCH,
        device=device,
        dtype=choose_dtype("auto", device),
        threads=torch.get_num_threads(),
    )
    generator, count = torch.Generator().manual_seed(0), STEPS * BATCH
    images = torch.randint(0, 256, (count, 3, pixels, pixels), dtype=torch.uint8, generator=generator)
    targets = torch.randint(0, CLASSES, (count,), generator=generator)
    memory = PeakMemory(device)
    inputs = TunedInputs(backbone, images, recipe, generator, classes=CLASSES)
    head = make_head(backbone.head_width, CLASSES, recipe, generator)
    optimizer = make_optimizer(inputs.tunables(), head, recipe)
    steps = Steps(inputs, head, optimizer, Course(recipe, STEPS), recipe)
    times = _times(steps.epoch(torch.arange(count), targets, 0))
    return {
        "images_per_s": round(BATCH / statistics.median(times[WARMUP:]), 1),
        "first_step_s": round(times[0], 1),
        "peak_memory": memory.peak(),
        "trainable": sum(tunable.parameter.numel() for tunable in inputs.tunables()),
        "batch": BATCH,
        "dtype": recipe.dtype,
        "device": device,
    }


def _times(steps: Any) -> list[float]:
    times, began = [], time.perf_counter()
    for _ in steps:
        times.append(time.perf_counter() - began)
        began = time.perf_counter()
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--one", type=json.loads, metavar="CASE")
    arguments = parser.parse_args()
    if arguments.one is not None:
        print(json.dumps(run(arguments.one)))
        return
    rows = [measure(case) for case in cases()]
    save("step_cost", rows)
    print(table(rows, ["backbone", "method", "compile", "images_per_s", "first_step_s", "peak_memory"]))


if __name__ == "__main__":
    main()

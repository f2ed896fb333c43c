"""What a training step costs: `python -m benchmarks.step_cost BACKBONE PIXELS METHOD DEVICE BATCH`.

Prints JSON: images/s (the median step), and the peak memory of training, in bytes: on a GPU what PyTorch
allocated, on a CPU by how much the process grew. `measure` runs it in a process of its own, since memory that
an earlier training left behind would hide the next one's need.
"""

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
from backbone.executors.choose import choose_dtype
from backbone.load import load_backbone
from benchmarks.common import ROOT

STEPS, WARMUP, CLASSES = 12, 2, 10


def measure(backbone: str, pixels: int, method: str, device: str, *, batch: int) -> dict[str, Any]:
    """Return `images_per_s` and `peak_memory` of a method's steps."""
    arguments = [backbone, str(pixels), method, device, str(batch)]
    command = [sys.executable, "-m", "benchmarks.step_cost", *arguments]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def run(name: str, pixels: int, method: str, device: str, batch: int) -> dict[str, Any]:
    backbone = load_backbone(name, source="offline", input_size=pixels)
    recipe = Recipe(
        method=method, epochs=1, batch_size=batch, device=device, dtype=choose_dtype("auto", device),
        threads=torch.get_num_threads(),
    )  # fmt: skip
    generator, count = torch.Generator().manual_seed(0), STEPS * batch
    images = torch.randint(0, 256, (count, 3, pixels, pixels), dtype=torch.uint8, generator=generator)
    targets = torch.randint(0, CLASSES, (count,), generator=generator)
    memory = PeakMemory(device)
    inputs = TunedInputs(backbone, images, recipe, generator, classes=CLASSES)
    head = make_head(backbone.head_width, CLASSES, recipe, generator)
    tunables = [] if method == "linear" else inputs.tunables()
    optimizer = make_optimizer(tunables, head, recipe)
    steps = Steps(inputs, head, optimizer, Course(recipe, STEPS), recipe)
    times, began = [], time.perf_counter()
    for _ in steps.epoch(torch.arange(count), targets, 0):
        times.append(time.perf_counter() - began)
        began = time.perf_counter()
    return {
        "images_per_s": round(batch / statistics.median(times[WARMUP:]), 1),
        "peak_memory": memory.peak(),
    }


if __name__ == "__main__":
    name, pixels, method, device, batch = sys.argv[1:]
    print(json.dumps(run(name, int(pixels), method, device, int(batch))))

"""Adapter tax and flatness on a GPU: the cuda executor against the best way to run the plain model there.

    python -m benchmarks.gpu_tax [--models ...] [--batches 64 256] [--dtype bfloat16] [--rounds 15]

plain     the plain timm model with one head, normalised images on the device: eager, in both layouts, and
          torch.compile(mode="max-autotune")
device    the captured forward, from uint8 pixels on the device to the logits of all heads there
host      `CudaExecutor.run` from two threads: uint8 pixels in host memory to logits in host memory
vs_plain_best  images/s ÷ those of the fastest plain way; vs_identical ÷ those with one task (flatness)

A measurement runs several batches and waits once. Contenders run in turn; ratios are medians over rounds.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from backbone.executors.cuda_executor import CudaExecutor
from backbone.executors.device_memory import CudaLimits
from backbone.executors.gpu import CudaGpu
from backbone.executors.torch_executor import DTYPES
from backbone.load import Backbone, load_backbone
from benchmarks.common import Row, paired_ratio, save, table
from benchmarks.plain import Run, plain_model, torch_runs
from benchmarks.tax import check, fill, mixes

MODELS = {"vit_base_patch16_224": 224, "vit_small_patch14_dinov2": 224, "tf_efficientnet_lite0": 224}
BATCHES = (64, 256)
REPEATS = 10  # batches a measurement
COLUMNS = ["model", "dtype", "batch", "way", "mix", "tasks", "images_per_s", "vs_plain_best", "vs_identical"]

Key = tuple[str, str]  # way, mix


@dataclass(frozen=True)
class Contender:
    """Something to time: `several` queues or runs so many batches, after `prepare`."""

    several: Callable[[int], object]
    prepare: Run = lambda: None

    def seconds(self) -> float:
        """Return seconds a batch."""
        self.prepare()
        torch.cuda.synchronize()
        start = time.perf_counter()
        self.several(REPEATS)
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / REPEATS


def one_by_one(run: Run) -> Callable[[int], object]:
    return lambda count: [run() for _ in range(count)]


def compiled(backbone: Backbone, batch: int, dtype: torch.dtype) -> Run:
    """Return the plain model under torch.compile; minutes the first time."""
    size = backbone.spec.height
    model = torch.compile(plain_model(backbone).to("cuda", dtype), mode="max-autotune")
    images = torch.randn(batch, 3, size, size, device="cuda", dtype=dtype)
    run: Run = torch.inference_mode()(lambda: model(images))
    return run


def contenders_of(
    backbone: Backbone, executor: CudaExecutor, images: list[NDArray[np.uint8]], dtype: torch.dtype
) -> dict[Key, Contender]:
    batch = len(images)
    plain = torch_runs(backbone, batch, "cuda", dtype) | {"compiled": compiled(backbone, batch, dtype)}
    made: dict[Key, Contender] = {
        (f"plain {way}", ""): Contender(one_by_one(run)) for way, run in plain.items()
    }
    threads = ThreadPoolExecutor(executor.lanes)
    for mix, slots in mixes(batch).items():

        def answer(_: object = None, slots: list[int] = slots) -> object:
            return executor.run(images, slots)

        def fill_lanes(answer: Run = answer) -> None:
            one_by_one(answer)(executor.lanes)

        made["host", mix] = Contender(lambda count, answer=answer: list(threads.map(answer, range(count))))
        made["device", mix] = Contender(one_by_one(lambda: executor.replay(batch)), fill_lanes)
    return made


def measure(name: str, size: int, batch: int, dtype: str, rounds: int) -> Iterator[Row]:
    backbone = load_backbone(name, source="random", input_size=size)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (3, size, size), dtype=np.uint8) for _ in range(batch)]
    limits = CudaLimits(max_batch=batch, max_classes=16)
    executor = CudaExecutor(backbone, CudaGpu(), dtype=dtype, slots=batch, limits=limits)
    check(executor, fill(executor, batch), images)
    contenders = contenders_of(backbone, executor, images, DTYPES[dtype])
    for contender in contenders.values():
        contender.seconds()
    times: dict[Key, list[float]] = {key: [] for key in contenders}
    for _ in range(rounds):
        for key, contender in contenders.items():
            times[key].append(contender.seconds())
    best = min((times[key] for key in times if key[0].startswith("plain")), key=statistics.median)
    for (way, mix), seconds in times.items():
        yield {
            "bench": "gpu_tax",
            "model": name,
            "pixels": size,
            "dtype": dtype,
            "batch": batch,
            "executor": "torch" if way.startswith("plain") else executor.name,
            "way": way,
            "mix": mix,
            "tasks": len(set(mixes(batch)[mix])) if mix else 1,
            "images_per_s": batch / statistics.median(seconds),
            "vs_plain_best": paired_ratio(seconds, best),
            "vs_identical": paired_ratio(seconds, times[way, "identical"]) if mix else "",
            "rounds": rounds,
            "gpu": torch.cuda.get_device_name(),
            "cuda": torch.version.cuda,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu_tax: this host has no CUDA device; nothing was measured")
        return
    rows = [
        row
        for name in arguments.models
        for batch in arguments.batches
        for row in measure(name, MODELS[name], batch, arguments.dtype, arguments.rounds)
    ]
    print(table(rows, COLUMNS))
    print(f"rows: {save('gpu_tax', rows)}")


if __name__ == "__main__":
    main()

"""Adapter tax and flatness on this host's CPU: the mixed-task batch against the plain timm model.

    python -m benchmarks.tax [--models ...] [--batch 16] [--rounds 15]

tax       images/s of the mixed-task batch ÷ images/s of the plain model with one head, same dtype and batch:
          against the best way to run it in PyTorch (`vs_torch`) and in OpenVINO (`vs_openvino`)
flatness  images/s with all-distinct tasks ÷ all-identical

The plain model is given normalised images; ours starts from uint8 and includes normalising, gathering the
rows and the ragged heads. As on a busy server, there always is a next batch: a turn is a few of them, and
what can take one in while it computes does. Contenders run in turn; ratios are medians over rounds. Rows in
another dtype or of another host are kept.
"""

import argparse
import statistics
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray

from backbone.cpu_memory import keep_large_buffers
from backbone.executors.base import Executor, FoldedAdapter
from backbone.executors.choose import choose_device, choose_dtype, open_executor
from backbone.executors.torch_executor import DTYPES
from backbone.heads import Head
from backbone.load import load_backbone
from backbone.tuned import TunedModel
from benchmarks.common import Row, interleave, paired_ratio, save_beside_others, table
from benchmarks.plain import CLASSES, Run, openvino_runs, torch_runs

MODELS = {"vit_small_patch14_dinov2": (112, 224), "tf_efficientnet_lite0": (224,)}
BATCHES = 3  # of a turn
COLUMNS = ["model", "pixels", "dtype", "batch", "executor", "mix", "tasks", "images_per_s", "vs_torch",
           "vs_openvino", "vs_identical"]  # fmt: skip


def mixes(batch: int) -> dict[str, list[int]]:
    """Return the slot of each image by mix; slots 1 to `batch` hold adapters."""
    rng = np.random.default_rng(0)
    return {
        "identical": [1] * batch,
        "uniform": rng.integers(1, batch + 1, batch).tolist(),
        "skewed": np.minimum(rng.zipf(1.5, batch), batch).tolist(),
        "distinct": list(range(1, batch + 1)),
    }


def fill(executor: Executor, slots: int) -> list[FoldedAdapter]:
    """Load random adapters into slots 1 to `slots`."""
    backbone, generator = executor.backbone, torch.Generator().manual_seed(0)
    adapters = []
    for slot in range(1, slots + 1):
        tuned = TunedModel(backbone.model, backbone.sites, generator=generator)
        head = Head(torch.randn(CLASSES, backbone.head_width, generator=generator), torch.zeros(CLASSES))
        adapters.append(FoldedAdapter(backbone.fold.row(tuned.scale(), tuned.shift()), head))
        executor.load(slot, adapters[-1])
    return adapters


def check(executor: Executor, adapters: list[FoldedAdapter], images: list[NDArray[np.uint8]]) -> None:
    """Refuse to time a wrong answer: a mixed batch must equal one image at a time."""
    together = executor.run(images, list(range(1, len(images) + 1)))
    for image, adapter, logits in zip(images, adapters, together, strict=True):
        alone = executor.run_beside_bank(image, adapter)
        np.testing.assert_allclose(logits, alone, rtol=0.05, atol=0.05 * float(np.abs(alone).max()))


def measure(name: str, size: int, batch: int, rounds: int) -> list[Row]:
    device = choose_device("cpu")  # a GPU's times need its own clock: benchmarks.gpu_tax
    dtype = choose_dtype("auto", device)
    backbone = load_backbone(name, source="offline" if device == "cpu" else "random", input_size=size)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (3, size, size), dtype=np.uint8) for _ in range(batch)]
    one_by_one = torch_runs(backbone, batch, device, DTYPES[dtype])
    plain = {"torch": {way: repeated(run) for way, run in one_by_one.items()}}
    if device == "cpu":
        plain["openvino"] = openvino_runs(backbone, batch, dtype, torch.get_num_threads(), BATCHES)
    contenders = {("plain", way): run for runs in plain.values() for way, run in runs.items()}
    for kind in plain:
        executor = open_executor(
            backbone, name=kind, device=device, dtype=dtype, slots=batch, threads=torch.get_num_threads()
        )
        check(executor, fill(executor, batch), images)
        contenders |= {(kind, mix): bind(executor, images, slots) for mix, slots in mixes(batch).items()}
    times = interleave(contenders, rounds=rounds)
    best = {
        kind: min((times["plain", way] for way in runs), key=statistics.median)
        for kind, runs in plain.items()
    }
    conditions = {
        "bench": "tax",
        "model": name,
        "pixels": size,
        "device": device,
        "dtype": dtype,
        "batch": batch,
    }
    return [
        conditions
        | {
            "executor": kind,
            "mix": mix,
            "tasks": 1 if kind == "plain" else len(set(mixes(batch)[mix])),
            "images_per_s": BATCHES * batch / statistics.median(seconds),
            "vs_identical": "" if kind == "plain" else paired_ratio(seconds, times[kind, "identical"]),
            "rounds": rounds,
        }
        | {f"vs_{way}": paired_ratio(seconds, best[way]) for way in best}
        for (kind, mix), seconds in times.items()
    ]


def repeated(run: Run) -> Run:
    return lambda: [run() for _ in range(BATCHES)]


def bind(executor: Executor, images: list[NDArray[np.uint8]], slots: list[int]) -> Run:
    """Return what runs `BATCHES` of these, as many at a time as the executor takes."""
    pool = ThreadPoolExecutor(executor.lanes)

    def run() -> None:
        for batch in [pool.submit(executor.run, images, slots) for _ in range(BATCHES)]:
            batch.result()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    keep_large_buffers()
    rows = [
        row
        for name in arguments.models
        for size in MODELS[name]
        for row in measure(name, size, arguments.batch, arguments.rounds)
    ]
    print(table(rows, COLUMNS))
    print(f"rows: {save_beside_others('tax', rows)}")


if __name__ == "__main__":
    main()

"""What int8 gains and costs on this CPU: `SSFSERVE_DTYPE=int8` against what the server takes by itself.

    python -m benchmarks.int8 [--models ...] [--batch 16] [--rounds 9] [--no-accuracy]

Speed: a mixed batch of all-distinct tasks in both, the plain timm model in the other dtype beside them.
`vs_other`: images/s ÷ those of the mixed batch in the other dtype; `vs_torch`, `vs_openvino`: ÷ the plain
model's best way. Contenders take turns; ratios are medians over rounds.
Accuracy: the demo tasks on all images of their second halves, `changed` the share of answers that differ from
fp32's, `probe` the probe's difference in units of its spread, of which adapters/probe.py allows a share.
Rows of other hosts are kept.
"""

import argparse
import statistics
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from adapters.file import Adapter, read_adapter
from adapters.folding import fold_adapter
from adapters.probe import probe_difference, probe_image
from backbone.cpu_memory import keep_large_buffers
from backbone.executors.base import Executor
from backbone.executors.choose import choose_dtype, open_executor
from backbone.executors.torch_executor import DTYPES
from backbone.load import Backbone, load_backbone
from backbone.preprocess import preprocess
from benchmarks.common import ROOT, Row, interleave, paired_ratio, save_beside_others, table
from benchmarks.plain import openvino_runs, torch_runs
from benchmarks.tax import BATCHES, bind, fill, repeated
from demo import make_data

MODELS = {  # name: source, sizes
    "vit_small_patch14_dinov2": ("offline", (112, 224)),
    "vit_base_patch16_224": ("random", (224,)),
    "swin_tiny_patch4_window7_224": ("random", (224,)),
    "convnext_tiny": ("random", (224,)),
}
TASKS = ("textile", "digits")
SHOWN = ["model", "pixels", "dtype", "images_per_s", "vs_other", "vs_torch", "vs_openvino"]
JUDGED = ["task", "dtype", "images", "top1", "changed", "probe"]


def opened(backbone: Backbone, dtype: str, slots: int) -> Executor:
    return open_executor(
        backbone, name="openvino", device="cpu", dtype=dtype, slots=slots, threads=torch.get_num_threads()
    )


def speed(name: str, size: int, batch: int, rounds: int) -> list[Row]:
    other = choose_dtype("auto", "cpu")
    backbone = load_backbone(name, source=MODELS[name][0], input_size=size)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (3, size, size), dtype=np.uint8) for _ in range(batch)]
    plain = {
        "torch": {
            way: repeated(run) for way, run in torch_runs(backbone, batch, "cpu", DTYPES[other]).items()
        },
        "openvino": openvino_runs(backbone, batch, other, torch.get_num_threads(), BATCHES),
    }
    contenders = {(way, other): run for runs in plain.values() for way, run in runs.items()}
    for dtype in (other, "int8"):
        executor = opened(backbone, dtype, batch)
        fill(executor, batch)
        contenders["mixed", dtype] = bind(executor, images, list(range(1, batch + 1)))
    times = interleave(contenders, rounds=rounds)
    best = {
        kind: min((times[way, other] for way in runs), key=statistics.median) for kind, runs in plain.items()
    }
    common = {
        "bench": "int8",
        "model": name,
        "pixels": size,
        "batch": batch,
        "tasks": batch,
        "rounds": rounds,
    }
    return [
        common
        | {
            "dtype": dtype,
            "images_per_s": BATCHES * batch / statistics.median(times["mixed", dtype]),
            "vs_other": paired_ratio(times["mixed", dtype], times["mixed", other]),
        }
        | {f"vs_{kind}": paired_ratio(times["mixed", dtype], best[kind]) for kind in best}
        for dtype in (other, "int8")
    ]


def accuracy(tasks: Sequence[str] = TASKS) -> list[Row]:
    backbone = load_backbone("vit_small_patch14_dinov2", source="offline", input_size=224)
    executors = {dtype: opened(backbone, dtype, 1) for dtype in ("float32", "int8")}
    rows: list[Row] = []
    for task in tasks:
        adapter = read_adapter((ROOT / "demo" / f"{task}.safetensors").read_bytes())
        images, targets = second_half(task, adapter, backbone)
        answers = {dtype: classify(executor, adapter, images) for dtype, executor in executors.items()}
        rows += [
            {
                "bench": "int8 accuracy",
                "task": task,
                "dtype": dtype,
                "images": len(images),
                "top1": float((answers[dtype] == targets).mean()),
                "changed": float((answers[dtype] != answers["float32"]).mean()),
                "probe": probe(executor, adapter),
            }
            for dtype, executor in executors.items()
        ]
    return rows


def second_half(
    task: str, adapter: Adapter, backbone: Backbone
) -> tuple[list[NDArray[np.uint8]], NDArray[np.int64]]:
    """Return the images that training did not see, as the server would decode them, and their classes."""
    images, targets = [], []
    for name, members in make_data.halve(make_data.SETS[task](), "second").items():
        for make in members:
            images.append(preprocess(make()[1], backbone.spec))
            targets.append(adapter.manifest.labels.index(name))
    return images, np.array(targets, np.int64)


def classify(executor: Executor, adapter: Adapter, images: list[NDArray[np.uint8]]) -> NDArray[np.int64]:
    executor.load(1, fold_adapter(executor.backbone, adapter))
    starts = range(0, len(images), 32)
    logits = [executor.run(images[i : i + 32], [1] * len(images[i : i + 32])) for i in starts]
    answers: NDArray[np.int64] = np.array([each.argmax() for part in logits for each in part], np.int64)
    return answers


def probe(executor: Executor, adapter: Adapter) -> float:
    """Return how far the probe is off, in units of its spread."""
    spec = executor.backbone.spec
    image = probe_image(spec.height, spec.width)
    logits = executor.run_beside_bank(image, fold_adapter(executor.backbone, adapter))
    there = adapter.manifest.probe
    return probe_difference(there, logits) / there.spread


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--no-accuracy", action="store_true", help="leave out the demo tasks")
    arguments = parser.parse_args()
    keep_large_buffers()
    rows = [
        row
        for name in arguments.models
        for size in MODELS[name][1]
        for row in speed(name, size, arguments.batch, arguments.rounds)
    ]
    print(table(rows, SHOWN))
    judged = [] if arguments.no_accuracy else accuracy()
    print(table(judged, JUDGED))
    path: Path = save_beside_others("int8", rows + judged, part=itemgetter("host"))
    print(f"rows: {path}")


if __name__ == "__main__":
    main()

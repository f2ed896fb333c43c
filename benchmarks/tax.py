"""Adapter tax and flatness on this host: the mixed-task batch against the plain timm model.

    python -m benchmarks.tax [--models ...] [--batch 16] [--rounds 21]

tax       images/s of the mixed-task batch ÷ images/s of the plain model with one head, same dtype and batch,
          against the faster of its two memory layouts
flatness  images/s with all-distinct tasks ÷ all-identical

The plain model is given normalised images in its own dtype; ours starts from uint8 and includes normalising,
gathering the rows and the ragged heads. Contenders run in turn; ratios are medians over rounds.
"""

import argparse
import statistics
from collections.abc import Callable

import numpy as np
import timm
import torch
from numpy.typing import NDArray

from backbone.cpu_memory import keep_large_buffers
from backbone.executor import FoldedAdapter, TorchExecutor, choose_device, choose_dtype
from backbone.heads import Head
from backbone.load import Backbone, load_backbone
from backbone.tuned import TunedModel
from benchmarks.common import Row, interleave, paired_ratio, save, table

MODELS = {"vit_small_patch14_dinov2": (112, 224), "tf_efficientnet_lite0": (224,)}
CLASSES = 10
COLUMNS = ["model", "pixels", "dtype", "batch", "mix", "tasks", "images_per_s", "vs_plain", "vs_identical"]


def mixes(batch: int) -> dict[str, list[int]]:
    """Return the slot of each image by mix; slots 1 to `batch` hold adapters."""
    rng = np.random.default_rng(0)
    return {
        "identical": [1] * batch,
        "uniform": rng.integers(1, batch + 1, batch).tolist(),
        "skewed": np.minimum(rng.zipf(1.5, batch), batch).tolist(),
        "distinct": list(range(1, batch + 1)),
    }


def fill(executor: TorchExecutor, slots: int) -> list[FoldedAdapter]:
    """Load random adapters into slots 1 to `slots`."""
    backbone, generator = executor.backbone, torch.Generator().manual_seed(0)
    adapters = []
    for slot in range(1, slots + 1):
        tuned = TunedModel(backbone.model, backbone.sites, generator=generator)
        head = Head(torch.randn(CLASSES, backbone.head_width, generator=generator), torch.zeros(CLASSES))
        adapters.append(FoldedAdapter(backbone.fold.row(tuned.scale(), tuned.shift()), head))
        executor.load(slot, adapters[-1])
    return adapters


def check(executor: TorchExecutor, adapters: list[FoldedAdapter], images: list[NDArray[np.uint8]]) -> None:
    """Refuse to time a wrong answer: a mixed batch must equal one image at a time."""
    together = executor.run(images, list(range(1, len(images) + 1)))
    for image, adapter, logits in zip(images, adapters, together, strict=True):
        alone = executor.run_beside_bank(image, adapter)
        np.testing.assert_allclose(logits, alone, rtol=0.05, atol=0.05 * float(np.abs(alone).max()))


def plain_contenders(
    backbone: Backbone, batch: int, device: str, dtype: torch.dtype
) -> dict[str, Callable[[], object]]:
    size = backbone.spec.height
    runs: dict[str, Callable[[], object]] = {}
    for name, layout in (("plain", torch.contiguous_format), ("plain channels_last", torch.channels_last)):
        sized = {"img_size": size} if backbone.family.name == "vit" else {}
        model = timm.create_model(backbone.name, num_classes=CLASSES, **sized).eval()
        model = model.to(device, dtype, memory_format=layout)
        images = torch.randn(batch, 3, size, size).to(device, dtype, memory_format=layout)
        runs[name] = torch.inference_mode()(lambda model=model, images=images: model(images))
    return runs


def measure(name: str, size: int, batch: int, rounds: int) -> list[Row]:
    device = choose_device("auto")
    dtype = choose_dtype("auto", device)
    source = "offline" if device == "cpu" else "random"
    backbone = load_backbone(name, source=source, input_size=size)
    executor = TorchExecutor(backbone, device=device, dtype=dtype, slots=batch)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (3, size, size), dtype=np.uint8) for _ in range(batch)]
    check(executor, fill(executor, batch), images)
    contenders = plain_contenders(backbone, batch, device, executor.dtype)
    slots = mixes(batch)
    contenders |= {mix: (lambda s=s: executor.run(images, s)) for mix, s in slots.items()}
    times = interleave(contenders, rounds=rounds)
    best = min(("plain", "plain channels_last"), key=lambda plain: statistics.median(times[plain]))
    common = {"bench": "tax", "model": name, "executor": executor.name, "device": device, "dtype": dtype}
    return [
        common
        | {
            "pixels": size,
            "batch": batch,
            "mix": mix,
            "tasks": len(set(slots[mix])) if mix in slots else 1,
            "images_per_s": batch / statistics.median(seconds),
            "vs_plain": paired_ratio(seconds, times[best]),
            "vs_identical": paired_ratio(seconds, times["identical"]) if mix in slots else "",
            "plain_best": best,
            "rounds": rounds,
        }
        for mix, seconds in times.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=21)
    arguments = parser.parse_args()
    keep_large_buffers()
    rows = [
        row
        for name in arguments.models
        for size in MODELS[name]
        for row in measure(name, size, arguments.batch, arguments.rounds)
    ]
    print(table(rows, COLUMNS))
    print(f"rows: {save('tax', rows)}")


if __name__ == "__main__":
    main()

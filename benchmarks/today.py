"""Many tasks on one device, the ways people serve them today, against one mixed batch.

    python -m benchmarks.today [--models ...] [--requests 32] [--tasks 1 8 32] [--rounds 7]

mixed            the requests in batches of any mix, as the server runs them
group by task    the same executor, one batch per task
merged models    one plain model per task, its adapter merged in, all in memory; one batch per task
swap weights     one plain model; a task's merged weights are copied in before its batch
unmerged modules one model whose scale and shift modules are set to a task's vectors before its batch (as PEFT
                 libraries switch adapters)

Each takes the same uint8 images for the same tasks. Contenders run in turn; ratios are medians over rounds.
"""

import argparse
import statistics
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from adapters.merge import merge_sites
from backbone.cpu_memory import keep_large_buffers
from backbone.executors.base import Executor, FoldedAdapter, Image
from backbone.executors.choose import choose_device, choose_dtype, open_executor
from backbone.executors.torch_executor import DTYPES
from backbone.heads import Head
from backbone.load import Backbone, load_backbone
from backbone.tuned import TunedModel
from benchmarks.common import Row, interleave, paired_ratio, save, table

MODELS = {"vit_small_patch14_dinov2": 112, "tf_efficientnet_lite0": 224}
CLASSES = 10
LARGEST = 16  # images in one batch, for all
COLUMNS = ["model", "pixels", "executor", "dtype", "way", "requests", "tasks", "images_per_s", "vs_mixed"]
Vectors = tuple[dict[str, Tensor], dict[str, Tensor]]
Groups = dict[int, list[int]]  # task → places of its requests


class Plain:
    """The three ways without a bank, in PyTorch."""

    def __init__(self, backbone: Backbone, vectors: list[Vectors], device: str, dtype: torch.dtype) -> None:
        self._vectors, self._device, self._dtype = vectors, device, dtype
        layout = torch.channels_last if backbone.family.channels_last else torch.contiguous_format
        self._merged = [
            merge_sites(backbone, *v).to(device, dtype, memory_format=layout).eval() for v in vectors
        ]
        self._swapped = merge_sites(backbone, {}, {}).to(device, dtype, memory_format=layout).eval()
        self._tuned = TunedModel(backbone.model, backbone.sites).to(device, dtype, memory_format=layout)
        mean, std = (torch.tensor(v, device=device).view(3, 1, 1) * 255 for v in statistics_of(backbone))
        self._scale, self._shift = 1 / std, -mean / std

    def inputs(self, images: list[Image]) -> Tensor:
        pixels = torch.from_numpy(np.stack(images)).to(self._device, torch.float32)
        return torch.addcmul(self._shift, pixels, self._scale).to(self._dtype)

    @torch.inference_mode()
    def merged_models(self, task: int, images: list[Image]) -> Tensor:
        return self._merged[task](self.inputs(images))

    @torch.inference_mode()
    def swap_weights(self, task: int, images: list[Image]) -> Tensor:
        self._swapped.load_state_dict(self._merged[task].state_dict())
        return self._swapped(self.inputs(images))

    @torch.inference_mode()
    def unmerged_modules(self, task: int, images: list[Image]) -> Tensor:
        self._tuned.set_vectors(*self._vectors[task])
        return self._tuned(self.inputs(images))


def statistics_of(backbone: Backbone) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return backbone.spec.mean, backbone.spec.std


def make_vectors(backbone: Backbone, tasks: int) -> list[Vectors]:
    generator = torch.Generator().manual_seed(0)
    tuned = [TunedModel(backbone.model, backbone.sites, generator=generator) for _ in range(tasks)]
    return [(model.scale(), model.shift()) for model in tuned]


def make_heads(backbone: Backbone, count: int) -> list[Head]:
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(count, CLASSES, backbone.head_width, generator=generator)
    return [Head(weight, torch.zeros(CLASSES)) for weight in weights]


def fill(executor: Executor, vectors: list[Vectors], heads: list[Head]) -> None:
    for slot, ((scale, shift), head) in enumerate(zip(vectors, heads, strict=True), start=1):
        executor.load(slot, FoldedAdapter(executor.backbone.fold.row(scale, shift), head))


def check(executor: Executor, plain: Plain, head: Head, task: int) -> None:
    """Refuse to time different answers: every way must give the same logits."""
    spec = executor.backbone.spec
    image = np.random.default_rng(1).integers(0, 256, (3, spec.height, spec.width), dtype=np.uint8)
    expected = torch.from_numpy(executor.run([image], [task + 1])[0])
    for way in (plain.merged_models, plain.swap_weights, plain.unmerged_modules):
        found = head.weight @ way(task, [image])[0].float().cpu()
        torch.testing.assert_close(found, expected, rtol=0.1, atol=0.1 * float(expected.abs().max()))


def batches(places: list[int]) -> list[list[int]]:
    return [places[i : i + LARGEST] for i in range(0, len(places), LARGEST)]


def by_task(
    groups: Groups, images: list[Image], run: Callable[[int, list[Image]], object]
) -> Callable[[], None]:
    def all_groups() -> None:
        for task, places in groups.items():
            for batch in batches(places):
                run(task, [images[place] for place in batch])

    return all_groups


def mixed(executor: Executor, images: list[Image], slots: list[int]) -> Callable[[], None]:
    def all_batches() -> None:
        for batch in batches(list(range(len(images)))):
            executor.run([images[place] for place in batch], [slots[place] for place in batch])

    return all_batches


def measure(name: str, size: int, requests: int, tasks: list[int], rounds: int) -> list[Row]:
    device = choose_device("auto")
    dtype = choose_dtype("auto", device)
    backbone = load_backbone(name, source="offline" if device == "cpu" else "random", input_size=size)
    vectors = make_vectors(backbone, max(tasks))
    executors = [
        open_executor(
            backbone,
            name=kind,
            device=device,
            dtype=dtype,
            slots=len(vectors),
            threads=torch.get_num_threads(),
        )
        for kind in (("openvino", "torch") if device == "cpu" else ("auto",))
    ]
    heads = make_heads(backbone, len(vectors))
    plain = Plain(backbone, vectors, device, DTYPES[dtype])
    for executor in executors:
        fill(executor, vectors, heads)
        check(executor, plain, heads[-1], len(vectors) - 1)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (3, size, size), dtype=np.uint8) for _ in range(requests)]
    rows: list[Row] = []
    for count in tasks:
        order = [place % count for place in range(requests)]
        groups: Groups = {t: [i for i, other in enumerate(order) if other == t] for t in range(count)}
        contenders: dict[tuple[str, str], Callable[[], None]] = {}
        for executor in executors:
            contenders[executor.name, "mixed"] = mixed(executor, images, [task + 1 for task in order])
            contenders[executor.name, "group by task"] = by_task(
                groups, images, lambda task, some, e=executor: e.run(some, [task + 1] * len(some))
            )
        for way in ("merged models", "swap weights", "unmerged modules"):
            contenders["plain torch", way] = by_task(groups, images, getattr(plain, way.replace(" ", "_")))
        times = interleave(contenders, rounds=rounds, warmup=1)
        ours = times[executors[0].name, "mixed"]
        rows += [
            {
                "bench": "today", "model": name, "pixels": size, "device": device, "dtype": dtype,
                "executor": executor, "way": way, "requests": requests, "tasks": count,
                "images_per_s": requests / statistics.median(seconds),
                "vs_mixed": paired_ratio(seconds, ours), "largest_batch": LARGEST,
                "rounds": rounds,
            }
            for (executor, way), seconds in times.items()
        ]  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--tasks", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    keep_large_buffers()
    rows = [
        row
        for name in arguments.models
        for row in measure(name, MODELS[name], arguments.requests, arguments.tasks, arguments.rounds)
    ]
    print(table(rows, COLUMNS))
    print(f"rows: {save('today', rows)}")


if __name__ == "__main__":
    main()

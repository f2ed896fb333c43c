"""Every executor on a small model of every family: the definition, neighbours, places and poison."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from adapters.file import Adapter
from adapters.folding import fold_adapter
from backbone.executors.base import Executor, FoldedAdapter, Logits
from backbone.executors.choose import open_executor
from backbone.load import Backbone
from backbone.tuned import TunedModel
from tests.models import make_adapter, make_backbone

pytestmark = pytest.mark.usefixtures("one_thread")

FAMILIES = (
    "swin",
    "swin_v2",
    "convnext",
    "convnext_v2",
    "resnet",
    "mobilenet",
    "eva",
    "dinov3",
    "vit_distilled",
    "mixer",
    "res_mlp",
    "g_mlp",
    "as_mlp",
)
TASKS = 3
# fp32 in another order; bfloat16 rounds every activation to 8 bits, in units of the largest logit
TOLERANCE = {"float32": 2e-5, "bfloat16": 4e-2}
# between batch sizes some fp32 kernels sum in another order; all else is the same to the bit
ORDER = 2e-6
BY_SIZE = {
    **{(kind, "torch"): ORDER for kind in ("swin", "swin_v2", "convnext", "convnext_v2", "resnet", "as_mlp")},
    ("as_mlp", "openvino"): ORDER,
}


class Filled:
    """An executor with three tasks in slots 1 to 3, and one image a task."""

    def __init__(self, kind: str, name: str, dtype: str, graphs: Path) -> None:
        self.kind = kind
        self.backbone: Backbone = make_backbone(kind)
        self.adapters: list[Adapter] = [make_adapter(self.backbone, seed=seed) for seed in range(TASKS)]
        self.executor: Executor = open_executor(
            self.backbone, name=name, device="cpu", dtype=dtype, slots=TASKS, threads=1, cache=graphs
        )
        for slot, adapter in enumerate(self.adapters, start=1):
            self.executor.load(slot, fold_adapter(self.backbone, adapter))
        size = self.backbone.spec.height
        rng = np.random.default_rng(0)
        self.images = [rng.integers(0, 256, (3, size, size), dtype=np.uint8) for _ in range(2 * TASKS)]

    def run(self, images: list[NDArray[np.uint8]], slots: list[int]) -> list[Logits]:
        return self.executor.run(images, slots)

    @torch.no_grad()
    def defined(self, index: int) -> NDArray[np.float32]:
        """Return what task `index` answers to image `index` by the method's definition."""
        adapter, spec = self.adapters[index], self.backbone.spec
        tuned = TunedModel(self.backbone.model, self.backbone.sites)
        tuned.set_vectors(adapter.scale, adapter.shift)
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (spec.mean, spec.std))
        image = (torch.from_numpy(self.images[index]).float() / 255 - mean) / std
        logits: Logits = (tuned(image[None])[0] @ adapter.head_weight.T + adapter.head_bias).numpy()
        return logits


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("graphs")


@pytest.fixture(
    scope="module",
    params=[
        (kind, name, dtype) for kind in FAMILIES for name in ("torch", "openvino") for dtype in TOLERANCE
    ],
    ids="-".join,
)
def filled(request: pytest.FixtureRequest, graphs: Path, one_thread: None) -> Filled:
    kind, name, dtype = request.param
    return Filled(kind, name, dtype, graphs)


def test_distinct_tasks_answer_as_defined(filled: Filled) -> None:
    tolerance = TOLERANCE[filled.executor.dtype]
    for index, logits in enumerate(filled.run(filled.images[:TASKS], [1, 2, 3])):
        expected = filled.defined(index)
        np.testing.assert_allclose(logits, expected, rtol=0, atol=tolerance * float(np.abs(expected).max()))


def test_answer_depends_on_neither_neighbours_nor_place(filled: Filled) -> None:
    images = filled.images
    first = filled.run(images[:TASKS], [1, 2, 3])
    moved = filled.run(images[TASKS - 1 :: -1], [3, 2, 1])
    beside_others = filled.run([images[0], *images[TASKS : TASKS + 2]], [1, 3, 3])
    for one, other in zip([*first, first[0]], [*moved[::-1], beside_others[0]], strict=True):
        np.testing.assert_array_equal(one, other)


def test_answer_does_not_depend_on_the_number_of_images(filled: Filled) -> None:
    slots = [1, 2, 3, 1, 2, 3]
    together = filled.run(filled.images, slots)
    in_fp32 = filled.executor.dtype == "float32"
    bound = BY_SIZE.get((filled.kind, filled.executor.name), 0.0) if in_fp32 else 0.0
    for image, slot, expected in zip(filled.images, slots, together, strict=True):
        np.testing.assert_allclose(filled.run([image], [slot])[0], expected, rtol=0, atol=bound)


def test_poisoned_adapter_changes_no_other_answer(filled: Filled) -> None:
    clean = filled.run(filled.images[:TASKS], [1, 2, 3])
    second = fold_adapter(filled.backbone, filled.adapters[1])
    filled.executor.load(2, FoldedAdapter(torch.full_like(second.row, float("nan")), second.head))
    poisoned = filled.run(filled.images[:TASKS], [1, 2, 3])
    filled.executor.load(2, second)
    assert np.array_equal(poisoned[0], clean[0])
    assert np.array_equal(poisoned[2], clean[2])
    assert not np.array_equal(poisoned[1], clean[1])

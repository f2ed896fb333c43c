"""The reference executor on a CUDA device, against itself on the CPU. Run with `make test-gpu`."""

import numpy as np
import pytest
import torch

from adapters.folding import fold_adapter
from backbone.executors.torch_executor import TorchExecutor
from tests.models import SIZE, make_adapter, make_backbone

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this host has no CUDA device"),
]

# fp32 sums in another order; bfloat16 rounds every activation to 8 bits
TOLERANCE = {"float32": 1e-3, "bfloat16": 1e-1}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kind", ["vit", "vit_layer_scale", "vit_registers", "efficientnet"])
def test_mixed_batch_equals_the_cpu(kind: str, dtype: str) -> None:
    backbone = make_backbone(kind)
    images = list(np.random.default_rng(0).integers(0, 256, (6, 3, SIZE, SIZE), dtype=np.uint8))
    answers = {}
    for device, arithmetic in (("cpu", "float32"), ("cuda", dtype)):
        executor = TorchExecutor(backbone, device=device, dtype=arithmetic, slots=3)
        for slot in (1, 2, 3):
            executor.load(slot, fold_adapter(backbone, make_adapter(backbone, seed=slot)))
        answers[device] = np.stack(executor.run(images, [1, 2, 3, 3, 1, 2]))
    np.testing.assert_allclose(
        answers["cuda"],
        answers["cpu"],
        rtol=TOLERANCE[dtype],
        atol=TOLERANCE[dtype] * np.abs(answers["cpu"]).max(),
    )


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_result_depends_on_neither_neighbours_nor_place(dtype: str) -> None:
    backbone = make_backbone("vit_layer_scale")
    executor = TorchExecutor(backbone, device="cuda", dtype=dtype, slots=3)
    for slot in (1, 2, 3):
        executor.load(slot, fold_adapter(backbone, make_adapter(backbone, seed=slot)))
    images = list(np.random.default_rng(0).integers(0, 256, (4, 3, SIZE, SIZE), dtype=np.uint8))
    first = executor.run(images, [1, 2, 3, 1])
    moved = executor.run(images[::-1], [1, 3, 2, 1])
    assert all(np.array_equal(a, b) for a, b in zip(first, moved[::-1], strict=True))

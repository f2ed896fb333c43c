"""A whole forward with distinct tasks, every op on its Triton kernel, against the torch executor's model."""

from functools import partial
from importlib import import_module

import pytest
import torch
from torch import Tensor

from backbone.bank import Bank
from backbone.executors.kernel_model import KernelModel
from backbone.heads import Head
from backbone.kernels.heads import HeadPool, heads
from backbone.kernels.linear_affine.tuning import Tile
from backbone.load import Backbone
from backbone.mixed import MixedModel
from tests.models import make_backbone, make_vectors

TASKS = 3
FP32_TOLERANCE = 1e-4
KINDS = ("vit_layer_scale", "efficientnet")
BACKBONES = {kind: make_backbone(kind) for kind in KINDS}  # here, where `torch.empty` is still PyTorch's


@pytest.fixture(autouse=True)
def triton_everywhere(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the interpreter the tensors are on the CPU, where the ops take their references."""
    if device.type == "cuda":
        return
    for op in ("affine", "heads", "normalize"):
        kernel = getattr(import_module(f"backbone.kernels.{op}.triton_impl"), f"{op}_triton")
        monkeypatch.setattr(f"backbone.kernels.{op}.{op}_reference", kernel)
    norm = import_module("backbone.kernels.norm_affine.triton_impl").norm_affine_triton
    monkeypatch.setattr(
        "backbone.kernels.norm_affine.norm_affine_reference",
        lambda x, *bank, **options: norm(x, None, *bank, **options)[1],
    )
    product = import_module("backbone.kernels.linear_affine.triton_impl").linear_affine_triton
    tile = Tile(32, 32, 16, num_warps=4, num_stages=2)
    monkeypatch.setattr(
        "backbone.kernels.linear_affine.linear_affine_reference", partial(product, tile=tile, programs=3)
    )


@pytest.fixture(params=KINDS)
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return BACKBONES[request.param]


@torch.inference_mode()
def test_a_batch_of_distinct_tasks(backbone: Backbone, device: torch.device) -> None:
    spec, slots = backbone.spec, torch.arange(1, TASKS + 1)
    model = KernelModel(backbone, dtype=torch.float32, device=device)
    reference = MixedModel(backbone.model, backbone.sites)
    bank, kernels_bank = Bank(backbone.fold, TASKS), Bank(backbone.fold, TASKS, device)
    pool = HeadPool(backbone.head_width, slots=TASKS + 1, max_classes=20, pages=6, device=device)
    generator, expected_heads = torch.Generator().manual_seed(0), []
    for slot in slots.tolist():
        row = backbone.fold.row(*make_vectors(backbone, slot, std=0.1))
        bank.write(slot, row)
        kernels_bank.write(slot, model.prepared(row))
        head = Head(
            torch.randn(4 + 5 * slot, backbone.head_width, generator=generator), torch.ones(4 + 5 * slot)
        )
        pool.write(slot, head)
        expected_heads.append(head)
    model.attach(kernels_bank)
    pixels = torch.randint(256, (TASKS, 3, spec.height, spec.width), dtype=torch.uint8, generator=generator)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (spec.mean, spec.std))
    features = reference((pixels / 255 - mean) / std, bank.gather(slots))

    on_device = slots.int().to(device)
    logits = heads(model(pixels.to(device), on_device), pool, on_device, top_k=1)[0].cpu()
    for index, head in enumerate(expected_heads):
        expected = torch.addmv(head.bias, head.weight, features[index])
        assert_near(logits[index, : len(expected)], expected)
        assert logits[index, len(expected) :].isneginf().all()


def assert_near(actual: Tensor, expected: Tensor) -> None:
    """Compare to within fp32 sums in another order."""
    scale = float(expected.abs().max())
    torch.testing.assert_close(actual, expected, rtol=FP32_TOLERANCE, atol=FP32_TOLERANCE * scale)

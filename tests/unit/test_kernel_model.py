"""The forward on the kernels: the reference's answers, and what it launches on a GPU that is not there."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from timm.layers.pos_embed_sincos import RotaryEmbeddingDinoV3
from timm.models._efficientnet_blocks import InvertedResidual
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from backbone.bank import IDENTITY, Bank
from backbone.executors.kernel_fusion import SkipBlock, pointwise_before, remember_positions
from backbone.executors.kernel_model import KernelModel
from backbone.executors.kernel_sites import ScaledLinear
from backbone.kernels.heads import HeadPool, heads
from backbone.load import Backbone, load_backbone
from backbone.mixed import MixedModel
from tests.models import KINDS, SIZE, make_backbone, make_vectors

SLOTS = [3, 1, IDENTITY, 2, 3]
FP32_TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def load(name: str) -> Backbone:
    if name == "lite0":  # has skip connections, and ReLU6
        return load_backbone("tf_efficientnet_lite0", source="random:0", input_size=64)
    return make_backbone(name)


def banks(backbone: Backbone, model: KernelModel) -> tuple[Bank, Bank]:
    """Return a bank with three adapters as the reference takes it, and as the kernels do."""
    plain, prepared = Bank(backbone.fold, 3), Bank(backbone.fold, 3)
    for slot in range(4):
        scale, shift = make_vectors(backbone, slot, std=0.1) if slot else ({}, {})
        row = backbone.fold.row(scale, shift)
        plain.write(slot, row)
        prepared.write(slot, model.prepared(row))
    return plain, prepared


def make_pixels(backbone: Backbone, count: int = len(SLOTS)) -> Tensor:
    shape = (count, 3, backbone.spec.height, backbone.spec.width)
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def reference(backbone: Backbone, bank: Bank, pixels: Tensor) -> Tensor:
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (backbone.spec.mean, backbone.spec.std))
    return MixedModel(backbone.model, backbone.sites)(
        (pixels / 255 - mean) / std, bank.gather(torch.tensor(SLOTS))
    )


@pytest.mark.parametrize("name", [*KINDS, "lite0"])
def test_mixed_batch_equals_the_reference(name: str) -> None:
    backbone = load(name)
    model = KernelModel(backbone, dtype=torch.float32, device="cpu")
    plain, prepared = banks(backbone, model)
    model.attach(prepared)
    pixels = make_pixels(backbone)
    expected = reference(backbone, plain, pixels)
    with torch.inference_mode():
        features = model(pixels, torch.tensor(SLOTS, dtype=torch.int32))
    scale = float(expected.abs().max())
    torch.testing.assert_close(features, expected, rtol=FP32_TOLERANCE, atol=FP32_TOLERANCE * scale)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["vit_registers", "efficientnet"])
def test_half_precision_is_no_further_off_than_plain_pytorch(name: str, dtype: torch.dtype) -> None:
    backbone = load(name)
    model = KernelModel(backbone, dtype=dtype, device="cpu")
    plain, prepared = banks(backbone, model)
    model.attach(prepared)
    pixels = make_pixels(backbone)
    expected = reference(backbone, plain, pixels)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (backbone.spec.mean, backbone.spec.std))
    half = MixedModel(backbone.model, backbone.sites).to(dtype)
    with torch.inference_mode():
        features = model(pixels, torch.tensor(SLOTS, dtype=torch.int32)).float()
        rows = plain.gather(torch.tensor(SLOTS)).to(dtype)
        torchs = half(((pixels / 255 - mean) / std).to(dtype), rows).float()
    assert (features - expected).norm() <= 1.1 * (torchs - expected).norm()


@pytest.mark.parametrize("name", ["vit_registers", "vit_layer_scale"])
def test_fp8_products_cost_what_three_bits_cost(name: str) -> None:
    backbone = load(name)
    model = KernelModel(backbone, dtype=torch.bfloat16, device="cpu", fp8=True)
    plain, prepared = banks(backbone, model)
    model.attach(prepared)
    pixels = make_pixels(backbone)
    expected = reference(backbone, plain, pixels)
    with torch.inference_mode():
        features = model(pixels, torch.tensor(SLOTS, dtype=torch.int32)).float()
    products = [module for module in model.modules() if isinstance(module, ScaledLinear)]
    assert len(products) == 4 * len(backbone.model.blocks)
    assert {product.weight.dtype for product in products} == {torch.float8_e4m3fn}
    error = (features - expected).norm() / expected.norm()
    assert 1e-2 < error < 2**-3  # each product is off by a 27th; there are eight


def test_original_is_untouched_and_shares_nothing() -> None:
    backbone = make_backbone("vit")
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    model = KernelModel(backbone, dtype=torch.bfloat16, device="cpu")
    theirs = {tensor.untyped_storage().data_ptr() for tensor in backbone.model.state_dict().values()}
    assert not theirs & {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    assert all(torch.equal(before[name], tensor) for name, tensor in backbone.model.state_dict().items())


def test_residuals_of_skip_connections_are_fused_once() -> None:
    model = KernelModel(load("lite0"), dtype=torch.float32, device="cpu").model
    skips = [module for module in model.modules() if isinstance(module, SkipBlock)]
    assert len(skips) == 9
    assert not [m for m in model.modules() if isinstance(m, InvertedResidual) and m.has_skip]


class Unknown(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.tanh()


def test_activation_without_a_kernel_runs_behind_the_site() -> None:
    backbone = make_backbone("efficientnet")
    backbone.model.bn1.act = Unknown()  # behind a 3×3 convolution
    backbone.model.bn2.act = Unknown()  # behind a 1×1 convolution
    model = KernelModel(backbone, dtype=torch.float32, device="cpu")
    plain, prepared = banks(backbone, model)
    model.attach(prepared)
    pixels = make_pixels(backbone)
    with torch.inference_mode():
        features = model(pixels, torch.tensor(SLOTS, dtype=torch.int32))
    torch.testing.assert_close(features, reference(backbone, plain, pixels), rtol=1e-5, atol=1e-5)


def test_only_a_plain_1x1_convolution_becomes_a_product() -> None:
    backbone = make_backbone("efficientnet")
    found = pointwise_before(backbone.model, SIZE, SIZE)
    assert found["bn2"] == "conv_head"
    assert "bn1" not in found and "blocks.3.0.bn2" not in found  # 3×3, and depthwise
    assert found["blocks.3.0.bn3"] == "blocks.3.0.conv_pwl"  # behind squeeze-excitation


def test_positions_are_made_once_a_shape() -> None:
    model = nn.Sequential(RotaryEmbeddingDinoV3(16))
    expected = model[0].get_embed(shape=[2, 3])
    remember_positions(model)
    first = model[0].get_embed(shape=[2, 3])
    assert torch.equal(first, expected)
    assert model[0].get_embed(shape=[2, 3]) is first
    assert model[0].get_embed(shape=[3, 3]).shape != first.shape


class Launches(TorchDispatchMode):
    """Counts the ops that make or change tensors, and refuses results elsewhere than on the GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            assert not isinstance(tensor, Tensor) or tensor.device.type == "cuda", func
        if not func.is_view:
            self.ops[func.name()] += 1
        return out


class OnFakeGpu:
    """A model, its bank and heads as tensors without data on a GPU that is not there."""

    def __init__(self, backbone: Backbone, dtype: torch.dtype, *, fp8: bool = False) -> None:
        self.mode = FakeTensorMode()
        self.model = KernelModel(backbone, dtype=dtype, device="cpu", fp8=fp8)
        self.pool = HeadPool(backbone.head_width, slots=4, max_classes=16, pages=4)
        bank = Bank(backbone.fold, 3)
        for module in self.model.modules():
            for tensors in (module._parameters, module._buffers):
                tensors.update({name: self.move(t) for name, t in tensors.items() if t is not None})
        self.model.pixel_scale = self.move(self.model.pixel_scale)
        self.model.pixel_shift = self.move(self.model.pixel_shift)
        for name in ("weight", "bias", "table", "classes"):
            setattr(self.pool, name, self.move(getattr(self.pool, name)))
        bank.rows = self.move(bank.rows)
        self.model.attach(bank)
        self.images = self.move(make_pixels(backbone))
        self.slots = self.move(torch.tensor(SLOTS, dtype=torch.int32))

    def move(self, tensor: Tensor) -> Tensor:
        size, stride, dtype = tensor.size(), tensor.stride(), tensor.dtype
        with self.mode:
            return torch.empty_strided(size, stride, dtype=dtype, device="cuda")

    def forward(self) -> Counter[str]:
        """Run as the warm-up does, then as a capture; return how often each op ran."""
        with self.mode, torch.inference_mode():
            self.model(self.images, self.slots)
            with Launches() as launches:
                heads(self.model(self.images, self.slots), self.pool, self.slots, top_k=1)
        return launches.ops


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_forward_stays_on_the_device_and_never_asks_for_a_value(kind: str, dtype: torch.dtype) -> None:
    assert OnFakeGpu(make_backbone(kind), dtype).forward()["ssfserve::heads"] == 1


def test_fp8_forward_stays_on_the_device_too() -> None:
    backbone = make_backbone("vit")
    ops = OnFakeGpu(backbone, torch.bfloat16, fp8=True).forward()
    assert (
        ops["ssfserve::scaled_linear_affine"] == ops["ssfserve::quantize"] == 4 * len(backbone.model.blocks)
    )
    assert ops["ssfserve::linear_affine"] == 1  # the patches


def test_a_sync_would_be_noticed() -> None:
    fake = OnFakeGpu(make_backbone("vit"), torch.bfloat16)
    with fake.mode, pytest.raises(DataDependentOutputException):
        int(fake.slots[0])
    with pytest.raises(AssertionError), fake.mode, Launches():
        fake.slots.cpu()


def test_a_transformer_launches_one_kernel_for_each_site() -> None:
    backbone = make_backbone("vit_layer_scale")
    ops = OnFakeGpu(backbone, torch.bfloat16).forward()
    depth = len(backbone.model.blocks)
    assert ops["ssfserve::linear_affine"] == 4 * depth + 1  # with GELU and the residual adds
    assert ops["ssfserve::norm_affine"] == 2 * depth + 1
    assert ops["ssfserve::affine"] == ops["ssfserve::normalize"] == 0
    assert ops["aten::add.Tensor"] == 1  # of the position table
    assert not {"aten::gelu", "aten::mul.Tensor", "aten::linear", "aten::conv2d", "aten::layer_norm"} & set(
        ops
    )


def test_a_convolutional_model_launches_no_pass_of_its_own_for_a_norm() -> None:
    backbone = load("lite0")
    ops = OnFakeGpu(backbone, torch.bfloat16).forward()
    assert ops["ssfserve::linear_affine"] + ops["ssfserve::affine"] == len(backbone.sites)
    assert ops["ssfserve::affine"] == ops["aten::conv2d"]  # 3×3, 5×5 and the stem
    assert ops["ssfserve::normalize"] == 1
    assert not {"aten::add.Tensor", "aten::hardtanh_", "aten::relu6", "aten::batch_norm"} & set(ops)

"""A merged model is a plain timm model that computes what the tuned one does."""

import pytest
import torch
from torch import Tensor, nn

from adapters.errors import NotMergeable
from adapters.file import Adapter
from adapters.merge import merge, merge_sites
from backbone.errors import ShapeMismatch
from backbone.load import Backbone
from backbone.tuned import TunedModel
from tests.models import (
    KINDS,
    SIZE,
    create_plain,
    freeze,
    make_adapter,
    make_backbone,
    make_vectors,
    unmergeable,
)

pytestmark = pytest.mark.usefixtures("one_thread")

# float64 leaves only its own rounding; fp32 the rounding of the weights and of another order of operations
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def tuned_logits(backbone: Backbone, adapter: Adapter, images: Tensor) -> Tensor:
    tuned = TunedModel(backbone.model, backbone.sites)
    tuned.set_vectors(adapter.scale, adapter.shift)
    with torch.no_grad():
        return tuned(images) @ adapter.head_weight.to(images.dtype).T + adapter.head_bias


def make_images(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(7)).to(dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_merged_model_computes_what_the_tuned_one_does(kind: str, dtype: torch.dtype) -> None:
    backbone = make_backbone(kind, dtype=dtype)
    adapter = make_adapter(make_backbone(kind), without=unmergeable(kind, backbone))
    expected = tuned_logits(backbone, adapter, make_images(dtype))
    got = merge(backbone, adapter)(make_images(dtype))
    assert got.dtype is dtype
    torch.testing.assert_close(got, expected, rtol=0, atol=TOLERANCE[dtype] * float(expected.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
def test_state_dict_loads_into_the_plain_timm_model(kind: str) -> None:
    backbone = make_backbone(kind)
    merged = merge(backbone, make_adapter(backbone, without=unmergeable(kind, backbone)))
    plain = create_plain(kind, num_classes=5)
    plain.load_state_dict(merged.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(plain(make_images()), merged(make_images()))


def test_backbone_is_left_as_it_was() -> None:
    backbone = make_backbone("vit_layer_scale")
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    merge(backbone, make_adapter(backbone))
    after = backbone.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_site_left_out_keeps_its_weights() -> None:
    backbone = make_backbone("vit")
    adapter = make_adapter(backbone, without=["blocks.1.attn.qkv"])
    merged = merge(backbone, adapter).get_submodule("blocks.1.attn.qkv")
    assert torch.equal(merged.weight, backbone.model.get_submodule("blocks.1.attn.qkv").weight)


def test_site_on_the_residual_stream_is_refused() -> None:
    backbone = make_backbone("vit_average_pool")
    with pytest.raises(NotMergeable) as caught:
        merge(backbone, make_adapter(backbone))
    assert caught.value.site == "norm"


def test_a_residual_stream_cannot_be_scaled_by_zero() -> None:
    backbone = make_backbone("convnext")
    scale = {"norm_pre": torch.ones(32).index_fill(0, torch.tensor([3]), 0.0)}
    with pytest.raises(NotMergeable, match="norm_pre has a scale of zero"):
        merge_sites(backbone, scale, {})


@pytest.mark.parametrize("kind", ["convnext", "convnext_v2"])
def test_a_residual_stream_takes_any_other_scale(kind: str) -> None:
    backbone = make_backbone(kind)
    scale = {"norm_pre": torch.logspace(-6, 3, 32) * (-1) ** torch.arange(32)}
    shift = {"norm_pre": torch.linspace(-2, 2, 32)}
    tuned = TunedModel(backbone.model, backbone.sites)
    tuned.set_vectors(scale, shift)
    expected = tuned(make_images())
    torch.testing.assert_close(
        merge_sites(backbone, scale, shift)(make_images()), expected, rtol=0, atol=1e-5
    )


def test_shift_of_keys_that_have_no_bias_is_refused() -> None:
    backbone = make_backbone("swin_v2")
    with pytest.raises(NotMergeable, match="keys") as caught:
        merge(backbone, make_adapter(backbone))
    assert caught.value.site == "layers.0.blocks.0.attn.qkv"


def test_queries_and_values_alone_merge_into_a_split_bias() -> None:
    backbone = make_backbone("swin_v2")
    adapter = make_adapter(backbone)
    for name, shift in adapter.shift.items():
        if name.endswith(".qkv"):
            shift.chunk(3)[1].zero_()
    expected = tuned_logits(backbone, adapter, make_images())
    torch.testing.assert_close(merge(backbone, adapter)(make_images()), expected, rtol=1e-5, atol=1e-5)


def make_without_bias() -> Backbone:
    model = create_plain("vit")
    qkv = model.get_submodule("blocks.0.attn")
    qkv.qkv = nn.Linear(32, 96, bias=False)
    return freeze(model, "vit_tiny_patch16_224")


def test_shift_without_a_bias_to_take_it_is_refused() -> None:
    backbone = make_without_bias()
    scale, shift = make_vectors(backbone, seed=0)
    with pytest.raises(NotMergeable, match=r"blocks\.0\.attn\.qkv has no bias"):
        merge_sites(backbone, scale, shift)


def test_scale_alone_needs_no_bias() -> None:
    backbone = make_without_bias()
    scale, _ = make_vectors(backbone, seed=0)
    tuned = TunedModel(backbone.model, backbone.sites)
    tuned.set_vectors(scale, {})
    merged = merge_sites(backbone, scale, {})
    torch.testing.assert_close(merged(make_images()), tuned(make_images()), rtol=1e-5, atol=1e-5)


def test_unknown_site_is_named() -> None:
    backbone = make_backbone("vit")
    with pytest.raises(ShapeMismatch, match=r"blocks\.9\.norm1"):
        merge_sites(backbone, {"blocks.9.norm1": torch.ones(32)}, {})

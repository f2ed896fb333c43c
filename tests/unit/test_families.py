"""Which sites a model has, found without weights."""

import pytest
import timm
import torch

from backbone.errors import UnsupportedModel
from backbone.families import find_sites
from backbone.sites import Op, SiteList


def sites_of(name: str, **arguments: object) -> SiteList:
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0, **arguments)
    return find_sites(model, name)[1]


@pytest.mark.parametrize(
    ("name", "sites", "parameters", "extra"),
    [
        ("vit_base_patch16_224", 74, 205_824, 0),
        ("vit_small_patch14_dinov2", 74, 102_912, 0),
        ("swin_base_patch4_window7_224", 147, 267_264, 7_168),
        ("convnext_base", 147, 255_232, 5_376),
        ("asmlp_base_patch4_shift5_224", 193, 266_752, 7_168 + 512),
    ],
)
def test_counts_are_those_of_the_method(name: str, sites: int, parameters: int, extra: int) -> None:
    found = sites_of(name)
    assert (len(found.official), 2 * found.official.total_width) == (sites, parameters)
    assert 2 * (found.total_width - found.official.total_width) == extra


def test_sites_follow_the_forward_order() -> None:
    names = list(sites_of("vit_tiny_patch16_224").widths)
    assert names[:4] == ["patch_embed.proj", "blocks.0.norm1", "blocks.0.attn.qkv", "blocks.0.attn.proj"]
    assert names[-2:] == ["blocks.11.mlp.fc2", "norm"]


def test_norms_of_swin_v2_stand_behind_their_branches() -> None:
    names = list(sites_of("swinv2_tiny_window8_256").widths)
    assert [name.removeprefix("layers.0.blocks.0.") for name in names[2:8]] == [
        "attn.qkv", "attn.proj", "norm1", "mlp.fc1", "mlp.fc2", "norm2",
    ]  # fmt: skip


def test_patch_merging_stands_at_the_start_of_a_stage() -> None:
    found = sites_of("swin_tiny_patch4_window7_224")
    names = list(found.widths)
    assert [site.name for site in found if site.extra] == [
        f"layers.{stage}.downsample.norm" for stage in (1, 2, 3)
    ]
    assert names[names.index("layers.1.downsample.norm") + 1] == "layers.1.blocks.0.norm1"


@pytest.mark.parametrize("name", ["resnet50", "mobilenetv3_large_100"])
def test_a_site_is_a_batch_norm_or_the_convolution_behind_the_pooling(name: str) -> None:
    ops = [(site.op, site.axis) for site in sites_of(name)]
    alone = [(Op.CONV, 1)] if name.startswith("mobilenet") else []
    assert ops == [(Op.BATCH_NORM, 1)] * (len(ops) - len(alone)) + alone
    assert len(ops) == {"resnet50": 53, "mobilenetv3_large_100": 47}[name]


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("edgenext_xx_small", "EdgeNeXt"),
        ("skresnet18", r"layer1\.0\.conv1\.attn\.fc_select` is a convolution without a BatchNorm"),
        ("resnet50_gn", r"`bn1` is a GroupNorm"),
        ("convnext_zepto_rms", r"`stem\.1` is a SimpleNorm2d"),
        ("vit_small_patch16_18x2_224", r"blocks\.0` is a ParallelThingsBlock"),
    ],
)
def test_module_that_stands_in_the_way_is_named(name: str, module: str) -> None:
    with pytest.raises(UnsupportedModel, match=module):
        sites_of(name)

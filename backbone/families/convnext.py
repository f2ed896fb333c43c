"""ConvNeXt of timm, v1 (LayerScale) and v2 (global response norm).

Sites of a block: conv_dw (NCHW), norm, mlp.fc1, mlp.fc2 (NHWC; NCHW where the MLP is made of 1x1
convolutions); before them the stem's ops, after them norm_pre. That one is an Identity, so its site acts on
the residual stream of the last stage; where timm puts a norm there, on that. Norm and convolution between
the stages are extra sites. `head.norm` stands after the pooling, directly before the head, and needs none.
"""

from collections.abc import Iterator

from timm.layers import Mlp
from timm.layers.mlp import GlobalResponseNormMlp
from timm.models.convnext import ConvNeXt, ConvNeXtBlock, ConvNeXtStage
from torch import nn

from backbone.families.inspect import CONVOLUTIONS, Inspector
from backbone.sites import Op, Site

ACTIVATIONS = (nn.GELU, nn.SiLU, nn.ReLU)


def matches(model: nn.Module) -> bool:
    return type(model) is ConvNeXt


def sites(model: nn.Module, name: str) -> tuple[Site, ...]:
    return tuple(_sites(Inspector(model, name)))


def _sites(look: Inspector) -> Iterator[Site]:
    for index, op in enumerate(look.model.stem):
        if not isinstance(op, ACTIVATIONS):
            yield _conv_or_norm(look, f"stem.{index}")
    for stage, layer in enumerate(look.model.stages):
        look.expect(f"stages.{stage}", ConvNeXtStage)
        if look.has(f"stages.{stage}.downsample"):
            for index in range(len(layer.downsample)):
                yield _conv_or_norm(look, f"stages.{stage}.downsample.{index}", extra=True)
        for index in range(len(layer.blocks)):
            yield from _block(look, f"stages.{stage}.blocks.{index}")
    if look.has("norm_pre"):
        yield look.norm("norm_pre")
    else:
        yield Site("norm_pre", int(look.model.num_features), Op.IDENTITY, axis=1)


def _block(look: Inspector, path: str) -> Iterator[Site]:
    look.expect(path, ConvNeXtBlock)
    look.expect(f"{path}.mlp", Mlp, GlobalResponseNormMlp)
    op = look.conv if look.at(path).use_conv_mlp else look.linear
    yield look.conv(f"{path}.conv_dw")
    yield look.norm(f"{path}.norm")
    yield op(f"{path}.mlp.fc1")
    yield op(f"{path}.mlp.fc2", layer_scale=look.layer_scale(f"{path}.gamma"))


def _conv_or_norm(look: Inspector, path: str, *, extra: bool = False) -> Site:
    if isinstance(look.at(path), CONVOLUTIONS):
        return look.conv(path, extra=extra)
    return look.norm(path, extra=extra)

"""Convolutional models whose convolutions are followed by BatchNorms: timm's ResNet, EfficientNet, MobileNet.

Convolution and BatchNorm are one frozen op at inference, so there is one site per pair: the BatchNorm's
output before its activation. MobileNetV3's `conv_head`, behind the pooling, has a bias in place of a
BatchNorm and is a site itself. Squeeze-excitation and its kind stay frozen as they are: what they compute
is a gate, not a feature. The reference code has no such family; the placement follows its rule.
"""

from collections.abc import Iterator

from timm.layers import BatchNormAct2d, EcaModule, LayerScale2d, SEModule
from timm.models._efficientnet_blocks import SqueezeExcite
from timm.models.efficientnet import EfficientNet
from timm.models.mobilenetv3 import MobileNetV3
from timm.models.resnet import ResNet
from torch import nn

from backbone.errors import UnsupportedModel
from backbone.families.inspect import Inspector
from backbone.sites import Op, Site

BATCH_NORMS = (nn.BatchNorm2d, BatchNormAct2d)
FROZEN_AS_THEY_ARE = (SqueezeExcite, SEModule, EcaModule, LayerScale2d)
ALONE = "conv_head"


def matches(model: nn.Module) -> bool:
    return type(model) in (EfficientNet, MobileNetV3, ResNet)


def sites(model: nn.Module, name: str) -> tuple[Site, ...]:
    return tuple(_sites(Inspector(model, name)))


def _sites(look: Inspector) -> Iterator[Site]:
    """Pair convolutions with the BatchNorms behind them; modules are registered in forward order."""
    waiting = ""
    for path, module in _ops(look.model):
        if isinstance(module, nn.Conv2d):
            yield from _alone(look, waiting)
            waiting = path
        elif type(module) in BATCH_NORMS:
            if not waiting or look.at(waiting).out_channels != module.num_features:
                raise UnsupportedModel(look.name, path, "is a BatchNorm behind no convolution of its width")
            yield Site(path, int(module.num_features), Op.BATCH_NORM, axis=1)
            waiting = ""
        else:
            raise UnsupportedModel(
                look.name, path, f"is a {type(module).__name__}, neither convolution nor BatchNorm"
            )
    yield from _alone(look, waiting)


def _ops(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that have parameters of their own, but not what stays frozen as it is."""
    frozen = ""
    for path, module in model.named_modules():
        if frozen and path.startswith(frozen):
            continue
        if isinstance(module, FROZEN_AS_THEY_ARE):
            frozen = f"{path}."
        elif next(module.parameters(recurse=False), None) is not None:
            yield path, module


def _alone(look: Inspector, path: str) -> Iterator[Site]:
    """Yield the site of a convolution that no BatchNorm follows, if there is one."""
    if path == ALONE:
        yield look.conv(path)
    elif path:
        raise UnsupportedModel(look.name, path, "is a convolution without a BatchNorm")

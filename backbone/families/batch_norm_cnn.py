"""Convolutional models whose every convolution is followed by a BatchNorm: timm's EfficientNet family.

Convolution and BatchNorm are one frozen op at inference, so there is one site per pair: the BatchNorm's
output before its activation. The official code has no such family; the placement follows its rule.
"""

from collections.abc import Iterator

from timm.layers import BatchNormAct2d
from timm.models.efficientnet import EfficientNet
from torch import nn

from backbone.errors import UnsupportedModel
from backbone.sites import Op, Site

FROZEN_AS_THEY_ARE = ("se",)  # squeeze-excitation: its convolutions carry no site


def matches(model: nn.Module) -> bool:
    return isinstance(model, EfficientNet)


def sites(model: nn.Module, name: str) -> tuple[Site, ...]:
    found = tuple(_sites(model))
    if not found:
        raise UnsupportedModel(name, type(model).__name__, "has no BatchNorm")
    _check_every_convolution_has_a_site(model, name, len(found))
    return found


def _sites(model: nn.Module) -> Iterator[Site]:
    for path, module in model.named_modules():
        if isinstance(module, BatchNormAct2d):
            yield Site(path, module.num_features, Op.BATCH_NORM, axis=1)


def _check_every_convolution_has_a_site(model: nn.Module, name: str, n_sites: int) -> None:
    convolutions = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and not set(path.split(".")) & set(FROZEN_AS_THEY_ARE)
    ]
    if len(convolutions) != n_sites:
        raise UnsupportedModel(
            name, convolutions[0], f"and {len(convolutions) - 1} more for {n_sites} BatchNorms"
        )

"""Bottleneck adapters (Houlsby et al., arXiv:1902.00751): y + up(GELU(down(y))) behind attention and MLP.

For comparison only: it is no scale and no shift, so it makes no adapter of ours.
"""

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbone.sites import Op, Site
from backbone.split_bias import join_biases
from backbone.tuned import behind

DOWN_STD = 0.01


class BottleneckModel(nn.Module):
    """A frozen backbone with a trained bottleneck at the end of each part: attention, MLP, residual block."""

    def __init__(
        self, model: nn.Module, sites: Sequence[Site], *, width: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        join_biases(self.model)
        self.sites = ends_of_parts(sites)
        self.bottlenecks = nn.ModuleList(_Bottleneck(site, width, generator) for site in self.sites)
        for site, bottleneck in zip(self.sites, self.bottlenecks, strict=True):
            behind(self.model, site).register_forward_hook(
                lambda _module, _args, y, bottleneck=bottleneck: bottleneck(y)
            )

    def forward(self, images: Tensor) -> Tensor:
        """Return pooled features [B, D] of normalised images [B, 3, H, W]."""
        features: Tensor = self.model(images)
        return features

    def train(self, mode: bool = True) -> "BottleneckModel":
        super().train(mode)
        self.model.eval()
        return self


def ends_of_parts(sites: Sequence[Site]) -> tuple[Site, ...]:
    """Return the last linear op, or the last BatchNorm, of every module that holds several sites."""
    parts = [site.name.rpartition(".")[0] for site in sites]
    return tuple(
        site
        for site, part, following in zip(sites, parts, [*parts[1:], ""], strict=True)
        if part and part != following and parts.count(part) > 1 and site.op in {Op.LINEAR, Op.BATCH_NORM}
    )


class _Bottleneck(nn.Module):
    """The identity at first: `up` starts at zero."""

    def __init__(self, site: Site, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self._axis = site.axis
        self.down = nn.Parameter(DOWN_STD * torch.randn(width, site.width, generator=generator))
        self.down_bias = nn.Parameter(torch.zeros(width))
        self.up = nn.Parameter(torch.zeros(site.width, width))
        self.up_bias = nn.Parameter(torch.zeros(site.width))

    def forward(self, y: Tensor) -> Tensor:
        rows = y.movedim(self._axis, -1)
        hidden = F.gelu(F.linear(rows, self.down.to(y.dtype), self.down_bias.to(y.dtype)))
        change = F.linear(hidden, self.up.to(y.dtype), self.up_bias.to(y.dtype))
        return y + change.movedim(-1, self._axis)

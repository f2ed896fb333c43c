"""Merging a scale and shift of ConvNeXt's last residual stream into the ops that write and read it.

The stream itself has no weights. But if the last stage carries S·x in place of x, then what writes it
(`downsample` and every `mlp.fc2`) writes S times as much, and what reads it (`conv_dw`, depthwise) divides
each channel by S again: what leaves the stage is S·x, to which the last `fc2` adds T. Exact, for S without a
zero.
"""

import torch
from torch import Tensor, nn

from adapters.errors import NotMergeable


@torch.no_grad()
def carry_through_last_stage(model: nn.Module, site: str, scale: Tensor, shift: Tensor) -> None:
    """Let a ConvNeXt's last stage end in `scale * x + shift`, in place; both are [C], float64.

    Raises:
        NotMergeable: If a scale is zero, or the stage has no convolution of its own at its start.
    """
    if bool((scale == 0).any()):
        raise NotMergeable(site, "has a scale of zero, which the residual stream cannot be divided by")
    stage = model.stages[-1]
    if isinstance(stage.downsample, nn.Identity):
        raise NotMergeable(site, "acts on a residual stream that the last stage does not begin")
    _multiply(stage.downsample[-1], scale)
    for block in stage.blocks:
        block.conv_dw.weight.copy_(block.conv_dw.weight.double() / scale.view(-1, 1, 1, 1))
        _multiply(block.mlp.fc2, scale)
    _add_behind(stage.blocks[-1], shift)


def _multiply(op: nn.Module, factor: Tensor) -> None:
    op.weight.copy_(op.weight.double() * factor.view(-1, *(1,) * (op.weight.ndim - 1)))
    if op.bias is not None:
        op.bias.copy_(op.bias.double() * factor)


def _add_behind(block: nn.Module, shift: Tensor) -> None:
    """Add to what a block adds to the stream; its LayerScale, which would scale that, becomes fc2's."""
    if block.gamma is not None:
        _multiply(block.mlp.fc2, block.gamma.double())
        block.gamma.fill_(1)
    block.mlp.fc2.bias.copy_(block.mlp.fc2.bias.double() + shift)

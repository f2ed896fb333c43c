"""What a frozen model drops at random while something else trains: whole branches, or patches."""

import torch
from timm.layers import DropPath, PatchDropout
from torch import nn

from backbone.errors import UnsupportedModel

DROP_PATHS = ("drop_path", "drop_path1", "drop_path2")


def set_drop_path(model: nn.Module, rate: float) -> list[nn.Module]:
    """Let residual branches be dropped, at a rate that rises linearly over the blocks from 0; in place.

    Returns:
        The modules that drop, for whoever switches them on and off; none at rate 0.
    """
    blocks = [module for module in model.modules() if any(hasattr(module, name) for name in DROP_PATHS)]
    dropping: list[nn.Module] = []
    for block, share in zip(blocks, torch.linspace(0, rate, len(blocks)).tolist(), strict=True):
        for name in DROP_PATHS:
            if hasattr(block, name):
                branch = DropPath(share) if share else nn.Identity()
                setattr(block, name, branch)
                dropping += [branch] if share else []
    return dropping


def set_patch_drop(model: nn.Module, name: str, share: float) -> list[nn.Module]:
    """Let a share of the patches be left out of a transformer, in place; returns as `set_drop_path` does.

    Raises:
        UnsupportedModel: If the model has no patches to leave out.
    """
    if share == 0:
        return []
    if not isinstance(getattr(model, "patch_drop", None), nn.Module):
        raise UnsupportedModel(name, "patch_drop", "is missing: this model has no patches to leave out")
    model.patch_drop = PatchDropout(share, num_prefix_tokens=model.num_prefix_tokens)
    return [model.patch_drop]

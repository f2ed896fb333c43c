"""Attention whose qkv bias lies in parts beside its `qkv`: `q_bias`, `k_bias` (always zero), `v_bias`.

timm's Swin v2, EVA and BEiT do so, and multiply by `qkv.weight` themselves: neither a hook nor a replacement
of the module `qkv` would ever run. Joined, the same bias is the Linear's own and the module is called.
"""

import torch
from torch import Tensor, nn


def bias_of(model: nn.Module, path: str) -> Tensor | None:
    """Return the bias [C] of the op at a path, joined if it lies in parts; None if it has none."""
    holder = model.get_submodule(path.rpartition(".")[0])
    if path.endswith(".qkv") and is_split(holder):
        return _joined(holder)
    own: Tensor | None = model.get_submodule(path).bias
    return own


def join_biases(model: nn.Module) -> None:
    """Give every such `qkv` its whole bias, in place. The model computes what it did."""
    for holder in model.modules():
        if is_split(holder):
            holder.qkv.bias = nn.Parameter(_joined(holder), requires_grad=False)
            holder.q_bias = holder.k_bias = holder.v_bias = None


@torch.no_grad()
def split_biases(model: nn.Module, like: nn.Module) -> str | None:
    """Undo `join_biases`, in place, wherever the model `like` has the bias in parts.

    Returns:
        The path of a `qkv` whose keys have got a bias, which the parts cannot hold; None if all went well.
    """
    for path, original in like.named_modules():
        if not is_split(original):
            continue
        holder = model.get_submodule(path)
        query, key, value = holder.qkv.bias.detach().chunk(3)
        if bool((key != 0).any()):
            return f"{path}.qkv"
        holder.q_bias, holder.v_bias = nn.Parameter(query.clone()), nn.Parameter(value.clone())
        holder.k_bias, holder.qkv.bias = torch.zeros_like(key), None
    return None


def is_split(holder: nn.Module) -> bool:
    """Whether a module keeps its qkv bias in parts."""
    return isinstance(getattr(holder, "qkv", None), nn.Linear) and getattr(holder, "q_bias", None) is not None


def _joined(holder: nn.Module) -> Tensor:
    return torch.cat([holder.q_bias, holder.k_bias, holder.v_bias]).detach()

"""Where a scale of a module's input can move: (IA)³ scales feedforward modules before, not behind them.

It moves to the output that the input is, if every module that reads it is scaled alike:

    attn.qkv, mlp.fc1   read a norm's output                               γ at the norm
    attn.proj           reads averages over tokens of the values           γ at the values' rows of attn.qkv
    mlp.fc2             reads act(gate) times the other half in a SwiGLU   γ at that half of mlp.fc1
    mlp.fc2             reads an activation's output otherwise             nowhere

where a norm stands between (`attn.norm`, `mlp.norm`), γ is there. Norms behind their branch, patches and
other families: nowhere.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from timm.layers import GluMlp, SwiGLU
from torch import nn

from backbone.families.vit import LAYER_SCALES
from backbone.load import Backbone

QKV = ("qkv", "q_proj", "k_proj", "v_proj")
FC1 = ("fc1", "fc1_g", "fc1_x")


@dataclass(frozen=True, slots=True)
class Source:
    """An output that modules read, unchanged but for what commutes with a scale of each channel.

    Attributes:
        site: Where γ may act on it.
        readers: All modules that read it.
        part: Which of `of` equal parts of the site's channels it is.
        of: Of how many.
    """

    site: str
    readers: tuple[str, ...]
    part: int = 0
    of: int = 1


def sources(backbone: Backbone) -> Iterator[Source]:
    """Yield the outputs to which scales of inputs can move."""
    if backbone.family.name != "vit":
        return
    for index, block in enumerate(backbone.model.blocks):
        path = f"blocks.{index}"
        if type(block) in LAYER_SCALES:  # norms before the branches
            if getattr(block.attn, "gate", None) is None:  # which would read norm1 as well
                yield Source(f"{path}.norm1", _there(backbone, f"{path}.attn", QKV))
            yield Source(f"{path}.norm2", _there(backbone, f"{path}.mlp", FC1))
        yield from _before_proj(backbone, f"{path}.attn")
        yield from _before_fc2(backbone, f"{path}.mlp", block.mlp)


def _before_proj(backbone: Backbone, path: str) -> Iterator[Source]:
    widths, readers = backbone.sites.widths, (f"{path}.proj",)
    if f"{path}.norm" in widths:
        yield Source(f"{path}.norm", readers)
    elif f"{path}.qkv" in widths:
        yield Source(f"{path}.qkv", readers, 2, 3)
    elif widths[f"{path}.v_proj"] == widths[f"{path}.q_proj"]:  # else heads share values
        yield Source(f"{path}.v_proj", readers)


def _before_fc2(backbone: Backbone, path: str, mlp: nn.Module) -> Iterator[Source]:
    readers = (f"{path}.fc2",)
    if f"{path}.norm" in backbone.sites.widths:
        yield Source(f"{path}.norm", readers)
    elif isinstance(mlp, GluMlp):
        yield Source(f"{path}.fc1", readers, 0 if mlp.gate_last else 1, 2)
    elif isinstance(mlp, SwiGLU):
        yield Source(f"{path}.fc1_x", readers)


def _there(backbone: Backbone, path: str, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{path}.{name}" for name in names if f"{path}.{name}" in backbone.sites.widths)

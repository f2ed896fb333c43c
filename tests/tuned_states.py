"""Fine-tuned timm models with the weights of the tests' backbones, and what became of them."""

from functools import cache
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from adapters.file import Adapter
from adapters.folding import fold_adapter
from adapters.state_dict import convert_state_dict, read_state_dict
from backbone.load import Backbone
from backbone.mixed import MixedModel
from tests.models import SIZE, make_backbone

DIRECT = {"mobilenet": "classifier", "mixer": "head", "g_mixer": "head", "res_mlp": "head", "g_mlp": "head"}


@cache
def frozen(kind: str) -> Backbone:
    backbone = make_backbone(kind)
    if kind in DIRECT:  # built by their classes, without what timm writes beside a model
        backbone.model.pretrained_cfg = {"classifier": DIRECT[kind]}
    return backbone


@cache
def images() -> Tensor:
    return torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(7))


def tune(model: nn.Module, names: set[str]) -> None:
    """Move some tensors of a model, in place."""
    g = torch.Generator().manual_seed(8)
    for name, tensor in model.state_dict().items():
        if name in names:
            tensor.add_(0.2 * torch.rand(tensor.shape, generator=g))  # variances stay positive


def logits_of(backbone: Backbone, adapter: Adapter, pixels: Tensor | None = None) -> Tensor:
    """Return what a server answers to the images [B, 3, H, W], or to `images()`."""
    pixels = images() if pixels is None else pixels
    folded = fold_adapter(backbone, adapter)
    with torch.no_grad():
        features = MixedModel(backbone.model, backbone.sites)(pixels, folded.row.expand(len(pixels), -1, -1))
    return features @ folded.head.weight.T + folded.head.bias


def converted(tmp_path: Path, kind: str, state: dict[str, Tensor]) -> Adapter:
    file = tmp_path / "tuned.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, file)
    return convert_state_dict(read_state_dict(file), frozen(kind))

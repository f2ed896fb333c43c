"""Visual prompt tuning, deep (VPT-deep, arXiv:2203.12119): learnt tokens beside the image's in every block.

For comparison only: a prompt is no scale and no shift, so it makes no adapter.
"""

import copy
import math
from typing import Any

import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from backbone.errors import UnsupportedModel
from backbone.split_bias import join_biases


class PromptedModel(nn.Module):
    """A frozen vision transformer whose blocks each see their own prompts, behind the class token."""

    def __init__(self, model: nn.Module, name: str, *, prompts: int, generator: torch.Generator) -> None:
        """Copy the model.

        Raises:
            UnsupportedModel: If it is no ViT whose tokens are a plain sequence.
        """
        super().__init__()
        if type(model) not in (VisionTransformer, VisionTransformerDistilled):
            raise UnsupportedModel(name, type(model).__name__, "has no token sequence that takes prompts")
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        join_biases(self.model)
        self._prefix, self._count = int(model.num_prefix_tokens), prompts
        shape = (len(self.model.blocks), prompts, int(model.embed_dim))
        bound = math.sqrt(6 / (self.model.patch_embed.proj.weight[0].numel() + shape[2]))
        self.prompts = nn.Parameter((2 * torch.rand(shape, generator=generator) - 1) * bound)  # [L, n, C]
        for index, block in enumerate(self.model.blocks):
            block.register_forward_pre_hook(self._before(index))
        self.model.blocks[-1].register_forward_hook(self._after_last)

    def forward(self, images: Tensor) -> Tensor:
        """Return pooled features [B, D] of normalised images [B, 3, H, W]."""
        features: Tensor = self.model(images)
        return features

    def train(self, mode: bool = True) -> "PromptedModel":
        super().train(mode)
        self.model.eval()
        return self

    def _before(self, index: int) -> Any:
        def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            tokens, *others = args
            rest = tokens[:, self._prefix + (self._count if index else 0) :]
            prompts = self.prompts[index].to(tokens.dtype).expand(len(tokens), -1, -1)
            return torch.cat([tokens[:, : self._prefix], prompts, rest], dim=1), *others

        return hook

    def _after_last(self, _module: nn.Module, _args: Any, tokens: Tensor) -> Tensor:
        return torch.cat([tokens[:, : self._prefix], tokens[:, self._prefix + self._count :]], dim=1)

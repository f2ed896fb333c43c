"""Full fine-tuning: every weight trains. For comparison only: it makes a model, not an adapter."""

import copy

import torch
from torch import Tensor, nn


class FullModel(nn.Module):
    """A copy of a backbone that trains whole: fp32 weights, products in the dtype of autocast.

    Statistics of BatchNorm stay those of pretraining, as for every other method: what a few small batches
    make of them is worse.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).eval().requires_grad_(True)
        self._dtype = dtype

    def forward(self, images: Tensor) -> Tensor:
        """Return pooled features [B, D] of normalised images [B, 3, H, W]."""
        mixed = self._dtype is not torch.float32
        with torch.autocast(images.device.type, self._dtype, enabled=mixed):
            features: Tensor = self.model(images.float())
        return features

    def train(self, mode: bool = True) -> "FullModel":
        super().train(mode)
        self.model.eval()
        return self

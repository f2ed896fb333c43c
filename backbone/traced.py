"""The mixed-task model as graphs are traced from it: from uint8 pixels on, and without writing in place."""

import torch
from torch import Tensor, nn

from backbone.load import Backbone
from backbone.mixed import BatchRows, MixedModel
from backbone.preprocess import ImageSpec


class TracedRows(BatchRows):
    """Scales and shifts by ops that a graph compiler fuses, without writing in place."""

    def affine(self, index: int, x: Tensor, axis: int) -> Tensor:
        scale, shift = self.scale[index], self.shift[index]
        width = scale.shape[1]
        if axis == 1:
            shape = (-1, width, *(1,) * (x.ndim - 2))
            return x * scale.reshape(shape) + shift.reshape(shape)
        if x.shape[0] == self.batch:
            shape = (-1, *(1,) * (x.ndim - 2), width)
            return x * scale.reshape(shape) + shift.reshape(shape)
        rows = x.reshape(self.batch, -1, width)
        return (rows * scale.unsqueeze(1) + shift.unsqueeze(1)).reshape(x.shape)


class Normalise(nn.Module):
    """uint8 pixels [B, 3, H, W] to what the backbone sees, fp32."""

    def __init__(self, spec: ImageSpec) -> None:
        super().__init__()
        mean, std = (torch.tensor(v).view(3, 1, 1) * 255 for v in (spec.mean, spec.std))
        self.register_buffer("scale", 1 / std)
        self.register_buffer("shift", -mean / std)

    def forward(self, images: Tensor) -> Tensor:
        normalised: Tensor = images.to(torch.float32) * self.scale + self.shift
        return normalised


class FromPixels(nn.Module):
    """The mixed-task model from uint8 pixels on."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.normalise = Normalise(backbone.spec)
        self.mixed = MixedModel(backbone.model, backbone.sites, TracedRows(backbone.sites))

    def forward(self, images: Tensor, rows: Tensor) -> Tensor:
        features: Tensor = self.mixed(self.normalise(images), rows)
        return features

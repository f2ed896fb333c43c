"""The rows of a piece as the graph takes them: γ' and β' of every site are inputs of their own.

OpenVINO reads such an input in fp32 where it is used; cut from one tensor for all sites, each vector is
copied and rounded in every forward. The buffers lie behind one another, so that one call fills them: γ' of
the first site [B, C], γ' of the second, …, then β' likewise.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from backbone.executors.quiet_openvino import openvino
from backbone.load import Backbone
from backbone.mixed import MixedModel
from backbone.sites import SiteList
from backbone.traced import FromPixels, Normalise, TracedRows

Shape = tuple[int, ...]  # of a vector, without the images


class Vectors(TracedRows):
    """Takes vectors in the shapes in which they meet the outputs of their sites."""

    def take(self, vectors: Sequence[Tensor]) -> None:
        """Take γ' of all sites, then β' of all sites; views of them are read until the next call."""
        sites = len(vectors) // 2
        self.batch = vectors[0].shape[0]
        self.scale, self.shift = vectors[:sites], vectors[sites:]

    def affine(self, index: int, x: Tensor, axis: int) -> Tensor:
        scale, shift = self.scale[index], self.shift[index]
        if axis == 1 or x.shape[0] == self.batch:
            return x * scale + shift
        rows = x.reshape(self.batch, -1, x.shape[-1])
        return (rows * scale + shift).reshape(x.shape)


class PixelsAndVectors(nn.Module):
    """The mixed-task model: images [B, 3, H, W] uint8 and `Vectors` → features [B, D]."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.normalise = Normalise(backbone.spec)
        self.vectors = Vectors(backbone.sites)
        self.mixed = MixedModel(backbone.model, backbone.sites, self.vectors)

    def forward(self, images: Tensor, *vectors: Tensor) -> Tensor:
        self.vectors.take(vectors)
        features: Tensor = self.mixed.model(self.normalise(images))
        return features


class _Shapes(TracedRows):
    """Notes the shapes of vectors that `Vectors` wants."""

    def __init__(self, sites: SiteList) -> None:
        super().__init__(sites)
        self.found: dict[int, Shape] = {}

    def affine(self, index: int, x: Tensor, axis: int) -> Tensor:
        width = self._widths[index]
        if axis == 1:
            self.found[index] = (width, *(1,) * (x.ndim - 2))
        else:  # windows are joined first: [B, tokens, C]
            self.found[index] = (*(1,) * ((x.ndim if x.shape[0] == self.batch else 3) - 2), width)
        return super().affine(index, x, axis)


def vector_shapes(backbone: Backbone, images: Tensor) -> list[Shape]:
    """Return the shape of each site's vector, without the images, from one forward of [B, 3, H, W] uint8."""
    shapes = _Shapes(backbone.sites)
    model = FromPixels(backbone)
    model.mixed = MixedModel(backbone.model, backbone.sites, shapes)
    with torch.inference_mode():
        model(images, torch.zeros(images.shape[0], 2, backbone.sites.total_width))
    return [shapes.found[index] for index in range(len(backbone.sites.widths))]


class PieceRows:
    """Buffers for the rows of one piece: `values`, and the `tensors` through which the graph reads them.

    One call gathers them, in blocks as wide as all widths allow: behind a forward, which leaves nothing of
    the host's own code and data in the caches, a call for each vector takes milliseconds.
    """

    def __init__(self, shapes: Sequence[Shape], size: int) -> None:
        """Make buffers for `size` images and vectors of these shapes: γ' of all sites, then β' of all."""
        widths = [math.prod(shape) for shape in shapes]
        self._block = math.gcd(*widths)
        self._in_a_row = sum(widths) // self._block
        self._images, self._places = _order([width // self._block for width in widths], size)
        self.values = np.zeros(size * sum(widths), np.float32)
        self._blocks = self.values.reshape(-1, self._block)
        parts = np.split(self.values, np.cumsum(widths)[:-1] * size)
        self.tensors = [
            openvino.Tensor(part.reshape(size, *shape), shared_memory=True)
            for part, shape in zip(parts, shapes, strict=True)
        ]

    def gather(self, bank: NDArray[np.float32], slots: Sequence[int]) -> None:
        """Copy the rows of slots, one an image, from a bank [S, 2, P]."""
        first = np.array(slots, np.intp) * self._in_a_row
        # modes that check make a copy first
        np.take(
            bank.reshape(-1, self._block),
            first[self._images] + self._places,
            axis=0,
            out=self._blocks,
            mode="clip",
        )

    def put(self, row: NDArray[np.float32]) -> None:
        """Copy one row [2, P], for a piece of one image."""
        self.values[:] = row.reshape(-1)


def _order(blocks: Sequence[int], size: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return, for each block of a piece, whose image it is and its place in that image's row.

    Args:
        blocks: How many each vector of a row has.
        size: Images of the piece.
    """
    places = np.split(np.arange(sum(blocks)), np.cumsum(blocks)[:-1])
    images = [np.repeat(np.arange(size), count) for count in blocks]
    return np.concatenate(images), np.concatenate([np.tile(vector, size) for vector in places])

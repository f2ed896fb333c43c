"""Adapters for the backbone of the end-to-end servers, and what they must answer."""

import io
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from PIL import Image

from adapters.file import Adapter, digest, write_adapter
from adapters.folding import preprocessing_of
from adapters.manifest import BackboneRef, Manifest, SiteWidth
from adapters.probe import compute_probe
from backbone.load import Backbone
from backbone.preprocess import normalise
from backbone.tuned import TunedModel
from server.contracts import Logits
from server.fast_images import read_fast  # as the servers do by default
from server.images import ImageDecoder


@dataclass(frozen=True)
class Known:
    """An adapter whose answers the plain reference gives, in this process, once for each image."""

    backbone: Backbone
    adapter: Adapter
    data: bytes
    _answers: dict[bytes, Logits] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        return digest(self.data)

    @cached_property
    def _tuned(self) -> TunedModel:
        tuned = TunedModel(self.backbone.model, self.backbone.sites, only=self.adapter.scale)
        tuned.set_vectors(self.adapter.scale, self.adapter.shift)
        return tuned

    def logits(self, image: bytes) -> Logits:
        """Return the logits [K] for an image file."""
        if image not in self._answers:
            self._answers[image] = self._compute(image)
        return self._answers[image]

    def _compute(self, image: bytes) -> Logits:
        decoder = ImageDecoder(preprocessing_of(self.backbone), max_pixels=10**6, read=read_fast, threads=1)
        pixels = normalise(decoder.decode_here(image, None), self.backbone.spec)
        decoder.close()
        with torch.inference_mode():
            features = self._tuned(torch.from_numpy(pixels)[None])[0]
            logits: Logits = (self.adapter.head_weight @ features + self.adapter.head_bias).numpy()
        return logits


def make_known(backbone: Backbone, seed: int, classes: int = 5) -> Known:
    """Return an adapter at every site; different seeds answer clearly differently."""
    g = torch.Generator().manual_seed(seed)
    widths = backbone.sites.widths
    scale = {site: 1 + 0.1 * torch.randn(width, generator=g) for site, width in widths.items()}
    shift = {site: 0.1 * torch.randn(width, generator=g) for site, width in widths.items()}
    weight = torch.randn(classes, backbone.head_width, generator=g)
    bias = torch.randn(classes, generator=g)
    manifest = Manifest(
        method="ssf",
        backbone=BackboneRef(name=backbone.name, fingerprint=backbone.fingerprint),
        sites=tuple(SiteWidth(name=name, width=width) for name, width in widths.items()),
        head_width=backbone.head_width,
        labels=tuple(f"seed{seed}-class{k}" for k in range(classes)),
        preprocessing=preprocessing_of(backbone),
        probe=compute_probe(backbone, scale=scale, shift=shift, head_weight=weight, head_bias=bias),
    )
    adapter = Adapter(manifest, scale, shift, weight, bias)
    return Known(backbone, adapter, write_adapter(adapter))


def make_png(seed: int, size: int = 40) -> bytes:
    """Return an image with structure at several scales, so that adapters tell images apart."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize((size, size))
    noise = rng.integers(-20, 21, (size, size, 3))
    pixels = np.clip(np.asarray(coarse, dtype=np.int64) + noise, 0, 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()

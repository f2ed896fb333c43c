"""Test data that needs no torch: manifests and blobs with sensible values."""

import random
from collections.abc import Sequence

from adapters.manifest import BackboneRef, Manifest, Preprocessing, Probe, SiteWidth

FINGERPRINT = "f" * 64
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def make_manifest(
    *,
    labels: Sequence[str] = ("cat", "dog"),
    method: str = "ssf",
    backbone: str = "vit_tiny_patch16_224",
    fingerprint: str = FINGERPRINT,
    sites: Sequence[tuple[str, int]] = (("blocks.0.attn.qkv", 96),),
    head_width: int = 32,
    size: int = 32,
    logits: Sequence[float] | None = None,
) -> Manifest:
    """Return a valid manifest; `logits` default to 0, 1, 2, … so that they tell classes apart."""
    return Manifest(
        method=method,
        backbone=BackboneRef(name=backbone, fingerprint=fingerprint),
        sites=tuple(SiteWidth(name=name, width=width) for name, width in sites),
        head_width=head_width,
        labels=tuple(labels),
        preprocessing=Preprocessing(height=size, width=size, mean=IMAGENET_MEAN, std=IMAGENET_STD),
        probe=Probe(
            dtype="float32", logits=tuple(range(len(labels)) if logits is None else logits), spread=1.0
        ),
    )


def make_blob(seed: int = 0, size: int = 1024) -> bytes:
    """Return `size` bytes that depend on the seed only; different seeds give different bytes."""
    return random.Random(seed).randbytes(size)

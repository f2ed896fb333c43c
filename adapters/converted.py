"""From converted numbers to an adapter with its manifest, and the proof that it computes what they did."""

from collections.abc import Mapping, Sequence

import torch
from pydantic import JsonValue
from torch import Tensor, nn

from adapters.diary import versions
from adapters.errors import CheckpointInvalid
from adapters.file import Adapter
from adapters.folding import preprocessing_of
from adapters.manifest import BackboneRef, Manifest, SiteWidth, Training
from adapters.probe import check_probe, compute_probe, probe_image
from adapters.training import Parts
from backbone.load import Backbone
from backbone.preprocess import normalise

UNKNOWN = "not recorded"


def assemble(
    source: str,
    backbone: Backbone,
    parts: Parts,
    *,
    method: str,
    labels: Sequence[str] | None,
    training: Training,
) -> Adapter:
    """Return the adapter of some numbers, its probe computed.

    Args:
        source: What errors call the checkpoint.
        backbone: What it was trained on, at the input size of training.
        parts: The numbers, fp32; at each site there may be a scale, a shift or both.
        method: How they were trained.
        labels: Names of the classes in order; their numbers if None.
        training: What is known of the run.

    Raises:
        CheckpointInvalid: If there are not as many labels as classes.
        ShapeMismatch: If a vector does not fit its site.
    """
    classes = len(parts.head_bias)
    if labels is not None and len(labels) != classes:
        raise CheckpointInvalid(source, f"has {classes} classes, not {len(labels)}")
    covered = [site for site in backbone.sites if site.name in parts.scale or site.name in parts.shift]
    scale = {site.name: parts.scale[site.name].contiguous() for site in covered if site.name in parts.scale}
    shift = {site.name: parts.shift[site.name].contiguous() for site in covered if site.name in parts.shift}
    weight, bias = parts.head_weight.contiguous(), parts.head_bias.contiguous()
    manifest = Manifest(
        method=method,
        backbone=BackboneRef(name=backbone.name, fingerprint=backbone.fingerprint),
        sites=tuple(SiteWidth(name=site.name, width=site.width) for site in covered),
        head_width=backbone.head_width,
        labels=tuple(labels or map(str, range(classes))),
        preprocessing=preprocessing_of(backbone),
        probe=compute_probe(backbone, scale=scale, shift=shift, head_weight=weight, head_bias=bias),
        training=training,
    )
    return Adapter(manifest, scale, shift, weight, bias)


def unknown_run(recipe: Mapping[str, JsonValue], command: str | None) -> Training:
    """Return the record of a run of which the file tells next to nothing."""
    return Training(
        dataset=UNKNOWN,
        train_images=0,
        val_images=0,
        seed=0,
        recipe=dict(recipe),
        metrics={},
        packages=versions(),
        command=command,
    )


@torch.inference_mode()
def check_against(
    adapter: Adapter, backbone: Backbone, tuned: nn.Module, head: tuple[Tensor, Tensor]
) -> None:
    """Compare the adapter's probe with what the tuned model itself computes.

    Args:
        adapter: With the probe of `assemble`.
        backbone: Its backbone.
        tuned: A model without a head: pooled features [B, D] of normalised images.
        head: Weight [K, D] and bias [K], as trained.

    Raises:
        ProbeMismatch: If the adapter computes something else.
    """
    image = normalise(probe_image(backbone.spec.height, backbone.spec.width), backbone.spec)
    weight, bias = head
    logits = torch.addmv(bias, weight, tuned(torch.from_numpy(image)[None])[0])
    check_probe(adapter.manifest.probe, logits.tolist(), "float32")

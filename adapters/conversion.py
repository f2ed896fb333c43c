"""From a checkpoint of the method's reference code to an adapter of a frozen backbone.

Where that code differs from its own pretrained models, the adapter takes it up, so that the backbone stays
the pretrained one and is shared by all tasks:

    ConvNeXt's norms between the stages divide the variance by C - 1, timm's by C: γ = √((C-1)/C) there
    ConvNeXt's `head.norm` is trained with the head, directly behind it: the head absorbs it
"""

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import JsonValue
from safetensors.torch import save
from torch import Tensor, nn

from adapters.converted import UNKNOWN, assemble
from adapters.diary import versions
from adapters.errors import AdapterIncompatible, CheckpointInvalid
from adapters.file import Adapter
from adapters.head_norm import absorb
from adapters.manifest import Training
from adapters.official import OfficialCheckpoint, State
from adapters.training import Parts
from backbone.checkpoint import fitted
from backbone.load import Backbone
from backbone.sites import Op, Site

HEAD_NORM = "head.norm"
ON_MAPS = ("convnext", "as_mlp")  # families whose maps the reference code keeps in NCHW
RECIPE = (
    "model", "tuning_mode", "opt", "lr", "weight_decay", "epochs", "warmup_epochs", "warmup_lr", "min_lr",
    "batch_size", "drop_path", "smoothing", "mixup", "cutmix", "reprob", "aa", "no_aug", "simple_aug",
    "direct_resize", "model_ema", "model_ema_decay", "amp",
)  # fmt: skip


def convert(
    checkpoint: OfficialCheckpoint,
    backbone: Backbone,
    *,
    labels: Sequence[str] | None = None,
    true_layer_norm: bool = False,
    command: str | None = None,
) -> Adapter:
    """Return the adapter of a checkpoint.

    Args:
        checkpoint: From `read_official`.
        backbone: What it was trained on, at the input size of training.
        labels: Names of its classes in order; their numbers if None.
        true_layer_norm: Whether a ConvNeXt was trained with norms that divide by C.
        command: Goes into the training record.

    Raises:
        AdapterIncompatible: If the backbone is another one.
        CheckpointInvalid: If the checkpoint computes what no adapter does, or has not as many classes.
    """
    if checkpoint.names.family != backbone.family.name:
        raise AdapterIncompatible("family", backbone.family.name, checkpoint.names.family)
    _check_backbone(checkpoint, backbone)
    _check_sites(checkpoint, backbone)
    scale, shift = dict(checkpoint.scale), dict(checkpoint.shift)
    if backbone.family.name == "convnext" and not true_layer_norm:
        _add_smaller_gains(scale, shift, backbone)
    weight, bias = checkpoint.head
    if f"{HEAD_NORM}.weight" in checkpoint.frozen:
        weight, bias = _absorb_head_norm(checkpoint, backbone)
    return assemble(
        checkpoint.source,
        backbone,
        Parts(scale, shift, weight, bias),
        method="ssf" if checkpoint.scale or checkpoint.shift else "linear",
        labels=labels,
        training=_record(checkpoint, command),
    )


def write_backbone(checkpoint: OfficialCheckpoint) -> bytes:
    """Return the frozen weights of a checkpoint as a safetensors file that loads as a backbone.

    Checkpoints trained from the same weights give the same bytes: a ConvNeXt's `head.norm`, which each has
    trained, becomes the identity.
    """
    state = {key: tensor.clone().contiguous() for key, tensor in checkpoint.frozen.items()}
    if f"{HEAD_NORM}.weight" in state:
        state[f"{HEAD_NORM}.weight"].fill_(1)
        state[f"{HEAD_NORM}.bias"].zero_()
    data: bytes = save(state, {"format": "pt"})
    return data


def differences(checkpoint: OfficialCheckpoint, backbone: Backbone) -> list[str]:
    """Say where the run's preprocessing differs from the backbone's, which is what a server does."""
    run, spec = checkpoint.arguments, backbone.spec
    out = []
    if run.get("direct_resize") and spec.crop_mode != "squash":
        out.append("the run resized images without keeping their aspect; the server keeps it and crops")
    ours = {
        "mean": spec.mean,
        "std": spec.std,
        "crop_pct": spec.crop_pct,
        "interpolation": spec.interpolation,
    }
    for name, value in ours.items():
        given = run.get(name)
        if given and given != value and tuple(_sequence(given)) != _sequence(value):
            out.append(f"the run had {name} {given}, the backbone has {value}")
    return out


def _sequence(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _check_backbone(checkpoint: OfficialCheckpoint, backbone: Backbone) -> None:
    """Compare the frozen weights; they are the pretrained ones, to the bit."""
    stored = fitted(checkpoint.frozen, backbone.model)
    own = backbone.model.state_dict()
    for key in sorted(own.keys() | stored.keys()):
        if key not in own or key not in stored or own[key].shape != stored[key].shape:
            what = "the backbone lacks" if key not in own else "the checkpoint lacks or has in another shape"
            raise AdapterIncompatible("the architecture", backbone.name, f"a model where {what} {key}")
    away = {key: float((own[key] - stored[key]).abs().max()) for key in own if own[key].is_floating_point()}
    worst = max((key for key in away if not key.startswith(f"{HEAD_NORM}.")), key=lambda key: away[key])
    if not away[worst] == 0:
        raise AdapterIncompatible(
            "the frozen weights",
            f"those of {backbone.source}",
            f"others ({worst} differs by up to {away[worst]:.3g}); --backbone-out writes them to a file",
        )


def _check_sites(checkpoint: OfficialCheckpoint, backbone: Backbone) -> None:
    for name, vector in (*checkpoint.scale.items(), *checkpoint.shift.items()):
        width = backbone.sites.widths.get(name)
        if vector.shape != (width,):
            raise AdapterIncompatible(f"site `{name}`", str(width), str(list(vector.shape)))
    if backbone.family.name not in ON_MAPS:
        return
    for site in _as_wide_as_their_map(backbone):
        if site.name in checkpoint.scale or site.name in checkpoint.shift:
            raise CheckpointInvalid(
                checkpoint.source,
                f"acts on columns, not on channels, at {site.name}: at {backbone.spec.width} px its map has "
                f"{site.width} columns and channels, and the reference code takes the last axis that fits",
            )


@torch.inference_mode()
def _as_wide_as_their_map(backbone: Backbone) -> list[Site]:
    """Return the sites whose NCHW map has as many columns as channels. Costs one forward."""
    widths: dict[str, int] = {}

    def note(name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, y: Tensor) -> None:
            widths[name] = y.shape[-1]

        return hook

    on_maps = [site for site in backbone.sites if site.axis == 1]
    hooks = [backbone.model.get_submodule(s.name).register_forward_hook(note(s.name)) for s in on_maps]
    try:
        backbone.model(torch.zeros(1, 3, backbone.spec.height, backbone.spec.width))
    finally:
        for hook in hooks:
            hook.remove()
    return [site for site in on_maps if widths[site.name] == site.width]


def _add_smaller_gains(scale: State, shift: State, backbone: Backbone) -> None:
    """Let γ and β make of the norms between the stages those that divide by C - 1.

    f·w·x̂ + b, with γ and β of the checkpoint itself behind it if it has any there.
    """
    for site in backbone.sites:
        if not (site.extra and site.op is Op.LAYER_NORM):
            continue
        bias = backbone.model.get_submodule(site.name).bias.double()
        gamma = scale.get(site.name, torch.ones(site.width)).double()
        beta = shift.get(site.name, torch.zeros(site.width)).double()
        factor = ((site.width - 1) / site.width) ** 0.5
        scale[site.name] = (gamma * factor).float()
        shift[site.name] = (gamma * (1 - factor) * bias + beta).float()


def _absorb_head_norm(checkpoint: OfficialCheckpoint, backbone: Backbone) -> tuple[Tensor, Tensor]:
    own = backbone.model.get_submodule(HEAD_NORM)
    gain, shift = (checkpoint.frozen[f"{HEAD_NORM}.{kind}"] for kind in ("weight", "bias"))
    return absorb(checkpoint.source, own, gain, shift, checkpoint.head)


def _record(checkpoint: OfficialCheckpoint, command: str | None) -> Training:
    run = checkpoint.arguments
    recipe: dict[str, JsonValue] = {name: run[name] for name in RECIPE if name in run}
    return Training(
        dataset=str(run.get("dataset") or UNKNOWN),
        train_images=0,
        val_images=0,
        seed=int(run.get("seed", 0)),
        recipe=recipe | {"converted_from": checkpoint.source, "weights": checkpoint.weights},
        metrics={} if checkpoint.metric is None else {"top1_of_the_trainer": checkpoint.metric},
        packages=versions(),
        command=command,
    )

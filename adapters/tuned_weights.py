"""Scales and shifts from weights that were tuned in place: biases, norms, LayerScales.

Every frozen op ends per output channel in l·(w·x + b), with a gain w and bias b of its own and maybe a
LayerScale l behind it (backbone/fold.py). With w', b', l' in their place it is the frozen op under

    γ = (w'·l') / (w·l)        β = b'·l'/l - γ·b

so w and l may be zero only where w' and l' are, and not so small that fp32 cannot hold β. What else was
changed cannot be had by a scale and shift, and is refused.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adapters.errors import CheckpointInvalid
from adapters.head_norm import absorb, find_head_norm
from backbone.checkpoint import BIAS_TABLE
from backbone.fold import Fold
from backbone.load import Backbone
from backbone.sites import Op, Site, SiteList
from backbone.split_bias import is_split

State = dict[str, Tensor]

NORMS = {Op.LAYER_NORM, Op.GROUP_NORM, Op.BATCH_NORM, Op.AFFINE}
PARTS: Mapping[Op, tuple[str, ...]] = {
    Op.LINEAR: ("bias",),
    Op.CONV: ("bias",),
    Op.LAYER_NORM: ("weight", "bias"),
    Op.GROUP_NORM: ("weight", "bias"),
    Op.BATCH_NORM: ("weight", "bias", "running_mean", "running_var"),
    Op.AFFINE: ("alpha", "beta"),
    Op.IDENTITY: (),
}
RESAMPLED = ("pos_embed", BIAS_TABLE)  # to the input size, by arithmetic that differs between CPUs
RESAMPLING = 1e-6  # of the largest entry
ROUNDING = 1e-5  # of the largest gain or bias of a site


@dataclass(frozen=True)
class Tuned:
    """What became of tuned weights.

    Attributes:
        scale: γ [C] by site, where it is not 1.
        shift: β [C] by site, where it is not 0.
        model: The backbone with the tuned weights in place, which the vectors stand for.
        head_norm: A tuned norm directly before the head, for which they do not: the head has to absorb it.
    """

    scale: State
    shift: State
    model: nn.Module
    head_norm: str | None


def tuned_vectors(source: str, state: Mapping[str, Tensor], backbone: Backbone) -> Tuned:
    """Return the vectors that make of a backbone what some of its weights were tuned to.

    Args:
        source: What errors call the state.
        state: Tensors by timm's names, in any float dtype; what is left out was not tuned.
        backbone: What they were tuned from. It is not changed.

    Raises:
        CheckpointInvalid: If a tensor is none of the backbone's, or was changed in a way no vectors can be.
    """
    changed = _changed(source, state, backbone.model)
    owners = dict(_owners(backbone))
    norm = find_head_norm(backbone)
    of_head_norm = {f"{norm}.weight", f"{norm}.bias"} & changed.keys()
    _refuse_others(source, changed, backbone.model, owners.keys() | of_head_norm)
    model = copy.deepcopy(backbone.model)
    model.load_state_dict(changed, strict=False)
    touched = {owners[name].name: name for name in changed if name in owners}
    scale, shift = _vectors(source, backbone, Fold.of(model, backbone.sites), touched)
    return Tuned(scale, shift, model, norm if of_head_norm else None)


def frozen_head(
    source: str, backbone: Backbone, tuned: Tuned, head: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the head [K, D], [K] that does behind a frozen norm what the given one does behind a tuned one.

    Raises:
        CheckpointInvalid: If the frozen norm has a gain of zero.
    """
    if tuned.head_norm is None:
        return head
    own, new = (model.get_submodule(tuned.head_norm) for model in (backbone.model, tuned.model))
    return absorb(source, own, new.weight, new.bias, head)


def tunable(backbone: Backbone) -> set[str]:
    """Return the names of the tensors that may have been tuned."""
    norm = find_head_norm(backbone)
    return dict(_owners(backbone)).keys() | ({f"{norm}.weight", f"{norm}.bias"} if norm else set())


def method_of(scale: Mapping[str, Tensor], shift: Mapping[str, Tensor], sites: SiteList) -> str:
    """Return what a manifest calls the tuning that gave these vectors."""
    if not scale:
        return "bias" if shift else "linear"
    ops = {site.op for site in sites if site.name in scale or site.name in shift}
    return "norm" if ops <= NORMS else "ssf"


def _changed(source: str, state: Mapping[str, Tensor], model: nn.Module) -> State:
    own = model.state_dict()
    changed = {}
    for name, tensor in state.items():
        if name not in own:
            raise CheckpointInvalid(source, f"holds {name}, which the backbone has not")
        if tensor.shape != own[name].shape:
            hint = "; --input-size tells it the size of training" if name.endswith(RESAMPLED) else ""
            sizes = f"{name} as {list(tensor.shape)}, the backbone as {list(own[name].shape)}"
            raise CheckpointInvalid(source, f"holds {sizes}{hint}")
        if not own[name].is_floating_point():
            continue  # BatchNorm counts its batches
        if not tensor.isfinite().all():
            raise CheckpointInvalid(source, f"holds NaN or an infinity in {name}")
        if not _same(name, own[name], tensor):
            changed[name] = tensor.float()
    return changed


def _same(name: str, own: Tensor, stored: Tensor) -> bool:
    """Whether a tensor is the frozen one, which the file may hold in half precision."""
    if torch.equal(own.to(stored.dtype), stored):
        return True
    allowed = RESAMPLING * float(own.abs().max())
    return name.endswith(RESAMPLED) and float((own - stored.float()).abs().max()) <= allowed


def _owners(backbone: Backbone) -> Iterator[tuple[str, Site]]:
    """Yield the names of the tensors that act per output channel at a site, with the site."""
    for site in backbone.sites:
        yield from ((f"{site.name}.{part}", site) for part in PARTS[site.op])
        holder, _, leaf = site.name.rpartition(".")
        if leaf == "qkv" and is_split(backbone.model.get_submodule(holder)):
            yield from ((f"{holder}.{part}", site) for part in ("q_bias", "v_bias"))
        if site.layer_scale is not None:
            yield site.layer_scale, site
            yield f"{site.layer_scale}.gamma", site


def _refuse_others(source: str, changed: State, model: nn.Module, allowed: set[str]) -> None:
    own = model.state_dict()
    away = {
        name: float((tensor - own[name]).abs().max())
        for name, tensor in changed.items()
        if name not in allowed
    }
    if away:
        worst = max(away, key=lambda name: away[name])
        more = f" and {len(away) - 1} other such tensors" if len(away) > 1 else ""
        raise CheckpointInvalid(
            source,
            f"changes {worst} by up to {away[worst]:.3g}{more}: only biases, norms and LayerScales that act "
            "at a site become scales and shifts; if it did not train that, it began from another backbone",
        )


def _vectors(source: str, backbone: Backbone, tuned: Fold, touched: Mapping[str, str]) -> tuple[State, State]:
    """Return γ and β at the sites that are named with the tensor that was tuned there."""
    frozen = backbone.fold
    scale, shift = {}, {}
    gamma = _ratio(tuned.gain * tuned.after, frozen.gain * frozen.after).float()
    beta = (tuned.bias * _ratio(tuned.after, frozen.after) - gamma.double() * frozen.bias).float()
    wrong = (frozen.after * (gamma.double() * frozen.bias + beta) - tuned.after * tuned.bias).abs()
    size = tuned.after.abs() * torch.maximum(tuned.gain.abs(), tuned.bias.abs())
    for name, tensor in touched.items():
        at = frozen.sites.slices[name]
        if not wrong[at].max() <= ROUNDING * size[at].max():
            raise CheckpointInvalid(
                source, f"changes {tensor} where {name} is frozen at zero, or too near to it to be scaled"
            )
        if bool((gamma[at] != 1).any()):
            scale[name] = gamma[at].clone()
        if bool((beta[at] != 0).any()):
            shift[name] = beta[at].clone()
    return scale, shift


def _ratio(tuned: Tensor, frozen: Tensor) -> Tensor:
    """Return tuned / frozen, and 1 where they are equal, be it zero."""
    return torch.where(tuned == frozen, 1.0, tuned / frozen)

"""From an adapter of PEFT, of (IA)³ or LN tuning, to one of ours."""

from collections.abc import Sequence

from pydantic import JsonValue
from torch import Tensor, nn

from adapters.converted import assemble, check_against, unknown_run
from adapters.errors import CheckpointInvalid
from adapters.file import Adapter
from adapters.linear_head import Head, one_head
from adapters.peft.folder import ALL_LINEAR, IA3, PeftAdapter
from adapters.peft.names import DINOV2, Layout, find_layout, in_timm
from adapters.peft.vectors import hook_in, ia3_of, scales_of
from adapters.training import Parts
from adapters.tuned_weights import Tuned, frozen_head, method_of, tuned_vectors
from backbone.load import Backbone

State = dict[str, Tensor]


def convert_peft(
    read: PeftAdapter, backbone: Backbone, *, labels: Sequence[str] | None = None, command: str | None = None
) -> Adapter:
    """Return our adapter for one of PEFT's.

    The folder holds no frozen weights: that the backbone is the one it was trained on cannot be checked.

    Args:
        read: From `read_peft`.
        backbone: What it was trained on, at the input size of training.
        labels: Names of its classes in order; their numbers if None.
        command: Goes into the training record.

    Raises:
        AdapterIncompatible: If the backbone is built otherwise.
        CheckpointInvalid: If it does what no scale and shift can, is not whole, or has no classifier.
        ProbeMismatch: If our adapter does not compute what PEFT's does.
    """
    layout, trained, state = _taken_apart(read, backbone)
    tuned = tuned_vectors(read.source, state, backbone)
    ia3 = ia3_of(read, layout, backbone)
    scale, shift = _behind(tuned, scales_of(read.source, ia3, backbone))
    head = frozen_head(read.source, backbone, tuned, trained)
    only_ia3 = read.config.peft_type == IA3 and scale and not (tuned.scale or tuned.shift)
    adapter = assemble(
        read.source,
        backbone,
        Parts(scale, shift, *head),
        method="ia3" if only_ia3 else method_of(scale, shift, backbone.sites),
        labels=labels,
        training=unknown_run(_recipe(read), command),
    )
    check_against(adapter, backbone, hook_in(tuned.model, ia3), trained)
    return adapter


def _taken_apart(read: PeftAdapter, backbone: Backbone) -> tuple[Layout, Head, State]:
    """Return whose names it has, the classifier, and the other parameters by timm's names."""
    parameters = read.norms | read.saved
    layout = find_layout(read.source, {*map(_module, parameters), *read.vectors}, backbone)
    _check_whole(read, layout, backbone)
    body = {name: tensor for name, tensor in parameters.items() if _module(name) not in layout.heads}
    return layout, _head(read, layout, backbone), in_timm(layout, body, read.source, backbone)


def _check_whole(read: PeftAdapter, layout: Layout, backbone: Backbone) -> None:
    """Look for what the config says was trained and the file lacks."""
    if read.config.target_modules in (None, ALL_LINEAR):
        return
    found = read.vectors.keys() | set(map(_module, read.norms))
    for name, place in layout.places.items():
        if name in found or read.config.saves(name) or not read.config.targets(name):
            continue
        module = backbone.model.get_submodule(place.path)
        if read.config.peft_type != IA3 or isinstance(module, nn.Linear | nn.Conv2d):
            raise CheckpointInvalid(read.source, f"lacks {name}, which its target_modules name")


def _head(read: PeftAdapter, layout: Layout, backbone: Backbone) -> Head:
    saved, width = dict(read.saved), backbone.head_width
    name = f"{layout.heads[0]}.weight" if layout.heads else ""
    if layout.owner == DINOV2 and name in saved and saved[name].shape[1:] == (2 * width,):
        class_token, patches = saved[name].chunk(2, dim=1)
        if bool((patches != 0).any()):
            raise CheckpointInvalid(
                read.source,
                f"has a classifier of [K, {2 * width}], which reads the mean of the patch tokens too; a head "
                f"here reads the class token alone: train one that is zero from column {width} on",
            )
        saved[name] = class_token
    advice = f"; train one with modules_to_save={list(layout.heads)}"
    return one_head(read.source, saved, layout.heads, width, advice)


def _behind(tuned: Tuned, scale: State) -> tuple[State, State]:
    """Return γ and β of the tuned weights with another γ behind them."""
    gamma, beta = dict(tuned.scale), dict(tuned.shift)
    for name, vector in scale.items():
        gamma[name] = gamma[name] * vector if name in gamma else vector
        if name in beta:
            beta[name] = beta[name] * vector
    return gamma, beta


def _recipe(read: PeftAdapter) -> dict[str, JsonValue]:
    known = read.config.model_dump(exclude_none=True)
    return {"converted_from": read.source, **known}


def _module(name: str) -> str:
    return name.rpartition(".")[0]

"""Whose modules a PEFT adapter names: timm's, or those of transformers' ViT and Dinov2, as in 4.57 and 5.24.

There query, key and value are three modules (timm's `attn.qkv` has their rows in this order), and in 5.24 the
halves of a SwiGLU are two.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from timm.layers import GluMlp
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from adapters.errors import AdapterIncompatible, CheckpointInvalid
from backbone.checkpoint import classifier_paths
from backbone.load import Backbone

TIMM, VIT, DINOV2 = "timm", "transformers' ViT", "transformers' Dinov2"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a module is in timm: at a path, as one of several equal parts of its output rows."""

    path: str
    part: int = 0
    of: int = 1

    def within(self, whole: Tensor) -> Tensor:
        """Return the module's own rows, a view."""
        return whole.chunk(self.of)[self.part]


@dataclass(frozen=True, slots=True)
class Layout:
    """How a model that PEFT wrapped names its modules.

    Attributes:
        owner: Whose names they are.
        places: Where a backbone has them, for every module with parameters.
        heads: The linear classifiers; answers of two are averaged.
    """

    owner: str
    places: Mapping[str, Place]
    heads: tuple[str, ...]

    @property
    def of_transformers(self) -> bool:
        return self.owner != TIMM


_ATTENTION_4 = {
    "attention.attention.query": Place("attn.qkv", 0, 3),
    "attention.attention.key": Place("attn.qkv", 1, 3),
    "attention.attention.value": Place("attn.qkv", 2, 3),
    "attention.output.dense": Place("attn.proj"),
}
_ATTENTION_5 = {
    "attention.q_proj": Place("attn.qkv", 0, 3),
    "attention.k_proj": Place("attn.qkv", 1, 3),
    "attention.v_proj": Place("attn.qkv", 2, 3),
    "attention.o_proj": Place("attn.proj"),
}
_VIT_NORMS = {"layernorm_before": Place("norm1"), "layernorm_after": Place("norm2")}
_DINOV2_NORMS = {"norm1": Place("norm1"), "norm2": Place("norm2")}
_MLP = {"mlp.fc1": Place("mlp.fc1"), "mlp.fc2": Place("mlp.fc2")}
_MLP_4 = {"intermediate.dense": Place("mlp.fc1"), "output.dense": Place("mlp.fc2")}
_SWIGLU_4 = {"mlp.weights_in": Place("mlp.fc1"), "mlp.weights_out": Place("mlp.fc2")}
_SWIGLU_5 = {
    "mlp.gate_proj": Place("mlp.fc1", 0, 2),
    "mlp.up_proj": Place("mlp.fc1", 1, 2),
    "mlp.down_proj": Place("mlp.fc2"),
}
_STEM = {
    "embeddings.patch_embeddings.projection": Place("patch_embed.proj"),
    "layernorm": Place("norm"),
}


def find_layout(source: str, modules: Iterable[str], backbone: Backbone) -> Layout:
    """Return the layout that knows the modules an adapter names.

    Raises:
        CheckpointInvalid: If no layout knows them all; one it does not know is named.
        AdapterIncompatible: If the backbone is not built as the layout's models are.
    """
    named = set(modules)
    layouts = list(_layouts(backbone))
    best = max(layouts, key=lambda layout: len(named & layout.places.keys()))
    unknown = sorted(named - best.places.keys() - set(best.heads))
    if not named & best.places.keys():
        owners = ", ".join(dict.fromkeys(layout.owner for layout in layouts))
        raise CheckpointInvalid(source, f"names {min(named)}, which is no module of {owners}")
    if unknown:
        raise CheckpointInvalid(source, f"names {unknown[0]}, which {backbone.name} has not")
    if best.of_transformers:
        _check_built_alike(best, backbone)
    return best


def in_timm(
    layout: Layout, tensors: Mapping[str, Tensor], source: str, backbone: Backbone
) -> dict[str, Tensor]:
    """Return parameters by timm's names; parts of a tensor that are not given are frozen.

    Raises:
        CheckpointInvalid: If a part has not its shape.
    """
    own = backbone.model.state_dict()
    out: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        module, _, parameter = key.rpartition(".")
        place = layout.places[module]
        name = f"{place.path}.{parameter}"
        if place.of == 1 or name not in own:
            out[name] = tensor
            continue
        rows = place.within(out.setdefault(name, own[name].clone()))
        if rows.shape != tensor.shape:
            raise CheckpointInvalid(source, f"holds {key} as {list(tensor.shape)}, not {list(rows.shape)}")
        with torch.no_grad():
            rows.copy_(tensor)
    return out


def _layouts(backbone: Backbone) -> Iterator[Layout]:
    own = {name.rpartition(".")[0] for name in backbone.model.state_dict()} - {""}
    for prefix in ("", "timm_model."):
        heads = tuple(f"{prefix}{path}" for path in classifier_paths(backbone.model))
        yield Layout(TIMM, {f"{prefix}{path}": Place(path) for path in own}, heads)
    if type(backbone.model) is not VisionTransformer:
        return
    depth = len(backbone.model.blocks)
    gated = isinstance(backbone.model.blocks[0].mlp, GluMlp)
    old, new = (_SWIGLU_4, _SWIGLU_5) if gated else (_MLP, _MLP)
    blocks = "encoder.layer."
    yield _of_transformers(VIT, "vit.", blocks, _VIT_NORMS | _ATTENTION_4 | _MLP_4, depth)
    yield _of_transformers(VIT, "vit.", "layers.", _VIT_NORMS | _ATTENTION_5 | _MLP, depth)
    yield _of_transformers(DINOV2, "dinov2.", blocks, _DINOV2_NORMS | _ATTENTION_4 | old, depth)
    yield _of_transformers(DINOV2, "dinov2.", blocks, _DINOV2_NORMS | _ATTENTION_5 | new, depth)


def _of_transformers(owner: str, prefix: str, blocks: str, block: Mapping[str, Place], depth: int) -> Layout:
    places = {f"{prefix}{name}": place for name, place in _STEM.items()}
    for index in range(depth):
        for name, place in block.items():
            at = Place(f"blocks.{index}.{place.path}", place.part, place.of)
            places[f"{prefix}{blocks}{index}.{name}"] = at
    return Layout(owner, places, ("classifier",))


def _check_built_alike(layout: Layout, backbone: Backbone) -> None:
    """Compare what the names alone tell: Dinov2 has LayerScales and ViT none, both see the class token."""
    scaled = any(site.layer_scale for site in backbone.sites)
    if scaled != (layout.owner == DINOV2):
        with_or_without = "with" if scaled else "without"
        raise AdapterIncompatible("the adapter's model", f"one {with_or_without} LayerScales", layout.owner)
    if backbone.model.global_pool != "token":
        raise AdapterIncompatible(
            "what its head sees",
            f"what {backbone.name} pools ({backbone.model.global_pool})",
            "the class token",
        )

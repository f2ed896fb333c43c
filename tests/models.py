"""Small frozen backbones and adapters with real tensors, built in milliseconds."""

import copy
from collections.abc import Iterable, Mapping
from functools import partial

import timm
import torch
from timm.layers import GatedMlp, GluMlp
from timm.models._efficientnet_blocks import SqueezeExcite
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.mlp_mixer import Affine, MixerBlock, MlpMixer, ResBlock, SpatialGatingBlock
from timm.models.mobilenetv3 import MobileNetV3
from timm.models.vision_transformer import ResPostBlock
from torch import Tensor, nn

from adapters.file import Adapter
from adapters.folding import preprocessing_of
from adapters.manifest import BackboneRef, Manifest, Probe, SiteWidth
from adapters.probe import compute_probe
from backbone.families import find_sites
from backbone.fingerprint import fingerprint
from backbone.fold import Fold
from backbone.load import Backbone
from backbone.preprocess import ImageSpec
from tests.builders import IMAGENET_MEAN, IMAGENET_STD

_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
_SWIN = {"img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 16, "depths": (2, 1)}
_SWIN_HEADS = {"num_heads": (2, 4)}  # the first stage shifts and masks
_CONVNEXT = {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 2), "patch_size": 2}
_MOBILENET = {
    "block_args": decode_arch_def([["ds_r1_k3_s2_e1_c16_se0.25_nre"], ["ir_r2_k5_s2_e3_c24_se0.25"]]),
    "stem_size": 8,
    "num_features": 48,
    "act_layer": nn.Hardswish,
    "se_layer": partial(SqueezeExcite, gate_layer="hard_sigmoid"),
}
_MLP = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "num_blocks": 2, "block_layer": MixerBlock}
KINDS: Mapping[str, tuple[str, dict[str, object]]] = {
    "vit": ("vit_tiny_patch16_224", _VIT),
    "vit_layer_scale": ("vit_tiny_patch16_224", {**_VIT, "init_values": 0.5}),
    "vit_registers": ("vit_tiny_patch16_224", {**_VIT, "reg_tokens": 4, "init_values": 0.5}),
    "vit_average_pool": ("vit_tiny_patch16_224", {**_VIT, "global_pool": "avg"}),
    "vit_distilled": ("deit_tiny_distilled_patch16_224", _VIT),
    "vit_norm_before": ("vit_base_patch16_clip_224", _VIT),
    "vit_norms_behind": ("vit_tiny_patch16_224", {**_VIT, "block_fn": ResPostBlock}),
    "vit_swiglu": ("vit_giant_patch14_dinov2", {**_VIT, "mlp_ratio": 2.0}),
    "eva": ("eva02_tiny_patch14_224", _VIT),
    "dinov3": ("vit_small_patch16_dinov3", {**_VIT, "embed_dim": 64}),
    "swin": ("swin_tiny_patch4_window7_224", {**_SWIN, **_SWIN_HEADS}),
    "swin_v2": ("swinv2_tiny_window8_256", {**_SWIN, **_SWIN_HEADS}),
    "convnext": ("convnext_tiny", _CONVNEXT),
    "convnext_v2": ("convnextv2_atto", _CONVNEXT),
    "convnext_1x1": ("convnext_atto", {**_CONVNEXT, "head_norm_first": True}),
    "mixer": ("mixer_s32_224", {**_MLP, "embed_dim": 32}),
    "g_mixer": ("gmixer_24_224", {**_MLP, "mlp_ratio": (1.0, 4.0), "mlp_layer": GluMlp}),
    "res_mlp": ("resmlp_24_224", {**_MLP, "mlp_ratio": 4, "block_layer": ResBlock, "norm_layer": Affine}),
    "g_mlp": (
        "gmlp_s16_224",
        {**_MLP, "mlp_ratio": 6, "block_layer": SpatialGatingBlock, "mlp_layer": GatedMlp},
    ),
    "as_mlp": (
        "asmlp_tiny_patch4_shift5_224",
        {"patch_size": 2, "embed_dim": 12, "depths": (1, 1), "shift_size": 5},
    ),
    "efficientnet": ("test_efficientnet", {}),
    "resnet": ("test_resnet", {}),
    "mobilenet": ("mobilenetv3_small_100", _MOBILENET),
}
# ends of the sites where a shift or scale acts that no weight of the plain model can take up
UNMERGEABLE: Mapping[str, tuple[str, ...]] = {
    "vit_average_pool": ("norm",),
    "vit_norm_before": ("patch_embed.proj",),  # CLIP's has no bias
    "eva": (".attn.qkv",),
    "dinov3": (".attn.qkv",),
    "swin_v2": (".attn.qkv",),
}
SIZE = 32


def create_plain(kind: str, num_classes: int = 0) -> nn.Module:
    """Return timm's own model of a kind, without SSF, in eval mode."""
    name, arguments = KINDS[kind]
    # timm's own functions fix the sizes of these
    classes = {"block_layer": MlpMixer, "block_args": MobileNetV3}
    fixed = next((classes[key] for key in arguments if key in classes), None)
    make = fixed or partial(timm.create_model, name)
    return make(num_classes=num_classes, **copy.deepcopy(arguments)).eval()  # timm uses block_args up


def make_backbone(kind: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> Backbone:
    """Return a backbone with random weights in which every part matters, down to BatchNorm statistics."""
    model = create_plain(kind)
    g = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=g)
            matrix = tensor.numel() > tensor.shape[-1]
            tensor.copy_(noise / tensor[0].numel() ** 0.5 if matrix else _vector(name, noise))
    return freeze(model, KINDS[kind][0], dtype)


def with_head(kind: str, classes: int = 5) -> nn.Module:
    """Return timm's own model of a kind with the weights of its backbone, and a random head."""
    model = create_plain(kind, classes)
    model.load_state_dict(make_backbone(kind).model.state_dict(), strict=False)
    return with_random_head(model)


def with_random_head(model: nn.Module) -> nn.Module:
    """Fill a timm model's head, or the two equal heads of a distilled one, in place."""
    g = torch.Generator().manual_seed(4)
    heads = model.get_classifier()
    first, *others = heads if isinstance(heads, tuple) else (heads,)
    with torch.no_grad():
        first.weight.copy_(torch.randn(first.weight.shape, generator=g) / first.in_features**0.5)
        first.bias.copy_(torch.randn(first.bias.shape, generator=g))
    for other in others:
        other.load_state_dict(first.state_dict())
    return model.eval().requires_grad_(False)


def _vector(name: str, noise: Tensor) -> Tensor:
    centre = 0.0 if name.endswith(("bias", "beta", "token", "running_mean")) else 1.0
    return centre + 0.2 * noise.clamp(-2, 2)


def freeze(model: nn.Module, name: str, dtype: torch.dtype = torch.float32, size: int = SIZE) -> Backbone:
    """Return the backbone of a model that is already built."""
    model = model.eval().requires_grad_(False).to(dtype)
    family, sites = find_sites(model, name)
    return Backbone(
        name=name,
        source="random weights of a test",
        family=family,
        model=model,
        sites=sites,
        fold=Fold.of(model, sites),
        spec=ImageSpec(size, size, IMAGENET_MEAN, IMAGENET_STD),
        fingerprint=fingerprint(model.state_dict()),
    )


def make_vectors(
    backbone: Backbone, seed: int, std: float = 0.3
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return γ and β by site, far from the identity."""
    g = torch.Generator().manual_seed(seed)
    widths = backbone.sites.widths
    scale = {name: 1 + std * torch.randn(width, generator=g) for name, width in widths.items()}
    shift = {name: std * torch.randn(width, generator=g) for name, width in widths.items()}
    return scale, shift


def unmergeable(kind: str, backbone: Backbone) -> list[str]:
    """Return the sites that an adapter must leave alone to be merged."""
    return [site.name for site in backbone.sites if site.name.endswith(UNMERGEABLE.get(kind, ()))]


def make_adapter(
    backbone: Backbone,
    *,
    seed: int = 0,
    classes: int = 5,
    std: float = 0.3,
    without: Iterable[str] = (),
    probe: Probe | None = None,
) -> Adapter:
    """Return a random adapter at every site but those named in `without`; its probe is true unless given."""
    scale, shift = make_vectors(backbone, seed, std)
    for name in without:
        del scale[name], shift[name]
    g = torch.Generator().manual_seed(seed + 1)
    weight = torch.randn(classes, backbone.head_width, generator=g) / backbone.head_width**0.5
    bias = torch.randn(classes, generator=g)
    manifest = Manifest(
        method="ssf",
        backbone=BackboneRef(name=backbone.name, fingerprint=backbone.fingerprint),
        sites=tuple(SiteWidth(name=name, width=len(vector)) for name, vector in scale.items()),
        head_width=backbone.head_width,
        labels=tuple(f"class {index}" for index in range(classes)),
        preprocessing=preprocessing_of(backbone),
        probe=probe or compute_probe(backbone, scale=scale, shift=shift, head_weight=weight, head_bias=bias),
    )
    return Adapter(manifest, scale, shift, weight, bias)

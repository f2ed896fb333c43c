"""A merged model as a file: the weights of a plain timm model, and in the metadata what they are.

One safetensors file with timm's own names, head included, which `timm.create_model` loads strictly with
`checkpoint_path=FILE`. The metadata key `ssfserve-merged` holds JSON: the arguments for `create_model`, the
labels in the order of the logits, the preprocessing, the adapter's digest, the backbone, and the version of
this tool.
"""

import inspect
import json
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from adapters.file import Adapter
from adapters.folding import check_adapter
from adapters.header import MERGED_KEY
from adapters.merge import merge
from adapters.probe import check_probe, probe_image
from backbone.load import Backbone
from backbone.preprocess import normalise


@dataclass(frozen=True, slots=True)
class Merged:
    """A merged model, checked, and the arguments that `timm.create_model` builds its like from."""

    model: nn.Module
    create: dict[str, Any]

    @property
    def call(self) -> str:
        """The call of `timm.create_model` as text."""
        name, *others = self.create.items()
        arguments = [repr(name[1]), *(f"{key}={value!r}" for key, value in others)]
        return f"timm.create_model({', '.join(arguments)})"


def merge_checked(backbone: Backbone, adapter: Adapter) -> Merged:
    """Merge an adapter into its backbone's weights and compare the result with the adapter's probe.

    Raises:
        AdapterIncompatible: If the adapter belongs to another backbone or preprocessing.
        NotMergeable: If a vector acts where no weight can take it up.
        ProbeMismatch: If the merged model computes other logits than training did.
    """
    check_adapter(backbone, adapter)
    model = merge(backbone, adapter)
    image = normalise(probe_image(backbone.spec.height, backbone.spec.width), backbone.spec)
    with torch.inference_mode():
        logits = model(torch.from_numpy(image)[None])[0]
    check_probe(adapter.manifest.probe, logits.tolist(), "float32")
    return Merged(model, create_arguments(backbone, adapter.manifest.num_classes))


def create_arguments(backbone: Backbone, num_classes: int) -> dict[str, Any]:
    """Return what `timm.create_model` takes to build the backbone's architecture with a head."""
    arguments: dict[str, Any] = {"model_name": backbone.name, "num_classes": num_classes}
    own = getattr(backbone.model, "pretrained_cfg", {}).get("input_size")
    if own != (3, backbone.spec.height, backbone.spec.width) and _takes_size(type(backbone.model)):
        arguments["img_size"] = backbone.spec.height
    return arguments


def write_merged(merged: Merged, backbone: Backbone, adapter: Adapter, digest: str) -> bytes:
    """Return the file of a merged model; `digest` is the adapter file's."""
    manifest = adapter.manifest
    facts = {
        "create_model": merged.create,
        "labels": manifest.labels,
        "preprocessing": manifest.preprocessing.model_dump(mode="json"),
        "adapter": digest,
        "backbone": manifest.backbone.model_dump(mode="json"),
        "ssfserve": metadata.version("ssfserve"),
    }
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    data: bytes = save(_storable(merged.model.state_dict()), {"format": "pt", MERGED_KEY: text})
    return data


def _storable(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors that share no memory, as the format wants them."""
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}


def _takes_size(kind: type[nn.Module]) -> bool:
    return any(
        "img_size" in inspect.signature(base).parameters for base in kind.__mro__ if base is not object
    )

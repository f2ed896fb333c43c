"""ONNX graphs that run without ssfserve: one adapter merged, or every task of the backbone in one graph.

Both take uint8 images [B, 3, H, W], resized and cropped as the metadata say, and normalise inside; B is free.

    merged      images -> logits [B, K]
    multi-task  images, rows [B, 2, P] -> features [B, D]; row i is the folded adapter of image i, and the
                logits of image i are head.weight @ features[i] + head.bias of its task

A task's row and head are made by `write_tasks`, for as many tasks as one likes, also later on. Graphs come
from the tracing exporter: it traces what OpenVINO's graph is traced from, ten times faster than torch.export,
and wants no further package.
"""

import json
import warnings
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from adapters.file import Adapter
from adapters.folding import fold_adapter, preprocessing_of
from adapters.merged_file import Merged
from backbone.errors import DeviceUnavailable
from backbone.load import Backbone
from backbone.traced import FromPixels, Normalise

METADATA_KEY = "ssfserve-export"
IMAGES, ROWS, FEATURES, LOGITS = "images", "rows", "features", "logits"
OPSET = 18
_EXAMPLE_BATCH = 2


class _Classifier(nn.Module):
    def __init__(self, model: nn.Module, backbone: Backbone) -> None:
        super().__init__()
        self.normalise, self.model = Normalise(backbone.spec), model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(self.normalise(images))
        return logits


def export_merged(merged: Merged, backbone: Backbone, adapter: Adapter, digest: str, path: Path) -> None:
    """Write the graph of a merged model; `digest` is the adapter file's.

    Raises:
        DeviceUnavailable: If the package onnx is not installed.
    """
    _export(_Classifier(merged.model, backbone), (_example(backbone),), (IMAGES,), LOGITS, path)
    _describe(path, _about(backbone) | {"adapter": digest, "labels": adapter.manifest.labels})


def export_multi_task(backbone: Backbone, path: Path) -> None:
    """Write the graph that takes each image's row beside it; nothing of any adapter is in it."""
    rows = torch.zeros(_EXAMPLE_BATCH, 2, backbone.sites.total_width)
    _export(FromPixels(backbone), (_example(backbone), rows), (IMAGES, ROWS), FEATURES, path)
    _describe(path, _about(backbone))


def write_tasks(backbone: Backbone, tasks: Mapping[str, tuple[Adapter, str]]) -> bytes:
    """Return a safetensors file of tasks for the multi-task graph: adapter and digest by task.

    It holds `TASK/row` [2, P], `TASK/head.weight` [K, D] and `TASK/head.bias` [K], all fp32, and each task's
    labels and digest in the metadata.

    Raises:
        AdapterIncompatible: If an adapter belongs to another backbone or preprocessing.
    """
    tensors: dict[str, Tensor] = {}
    about: dict[str, dict[str, Any]] = {}
    for task, (adapter, digest) in tasks.items():
        folded = fold_adapter(backbone, adapter)
        tensors |= {f"{task}/row": folded.row, f"{task}/head.weight": folded.head.weight}
        tensors[f"{task}/head.bias"] = folded.head.bias
        about[task] = {"labels": adapter.manifest.labels, "adapter": digest}
    data: bytes = save(tensors, {METADATA_KEY: _json(_about(backbone) | {"tasks": about})})
    return data


def _example(backbone: Backbone) -> Tensor:
    return torch.zeros(_EXAMPLE_BATCH, 3, backbone.spec.height, backbone.spec.width, dtype=torch.uint8)


def _export(
    module: nn.Module, example: tuple[Tensor, ...], inputs: tuple[str, ...], output: str, path: Path
) -> None:
    _onnx()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns of every Python branch, and of itself
        torch.onnx.export(
            module.eval(),
            example,
            path,
            dynamo=False,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=[output],
            dynamic_axes={name: {0: "batch"} for name in (*inputs, output)},
        )


def _onnx() -> Any:
    try:
        import onnx
    except ImportError as error:
        raise DeviceUnavailable("the ONNX export", "run `pip install onnx`") from error
    return onnx


def _describe(path: Path, facts: Mapping[str, Any]) -> None:
    onnx = _onnx()
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {METADATA_KEY: _json(facts)})
    onnx.save(model, path)


def _about(backbone: Backbone) -> dict[str, Any]:
    return {
        "backbone": {"name": backbone.name, "fingerprint": backbone.fingerprint},
        "preprocessing": preprocessing_of(backbone).model_dump(mode="json"),
        "ssfserve": metadata.version("ssfserve"),
    }


def _json(facts: Mapping[str, Any]) -> str:
    return json.dumps(facts, sort_keys=True, separators=(",", ":"))

"""Reading files of other tools: tensors and plain values, and no code of theirs.

Of all classes beyond tensors only `argparse.Namespace` is let through, in which trainers keep their options.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from adapters.errors import CheckpointInvalid
from adapters.strict_json import shown

PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Return what a `.safetensors` file, or a file of `torch.save`, holds.

    Raises:
        CheckpointInvalid: If it cannot be read safely, or holds anything but a dict.
    """
    try:
        content = _load(path)
    except Exception as error:  # a damaged pickle fails in many ways
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointInvalid(path.name, f"cannot be read safely: {reason}") from error
    if not isinstance(content, dict):
        raise CheckpointInvalid(path.name, f"holds a {type(content).__name__}, not a checkpoint")
    return content


def tensors_of(source: str, content: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Return the tensors of a state dict without the prefixes of wrappers.

    Raises:
        CheckpointInvalid: If something in it is no tensor, or two names become one.
    """
    out: dict[str, Tensor] = {}
    for key, tensor in content.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            raise CheckpointInvalid(source, f"holds {shown(key)}, which is a {type(tensor).__name__}")
        name = without_prefixes(key)
        if name in out:
            raise CheckpointInvalid(source, f"holds {name} twice, once within a wrapper")
        out[name] = tensor
    return out


def without_prefixes(key: str) -> str:
    while key.startswith(PREFIXES):
        key = key.partition(".")[2]  # a wrapper may wrap another
    return key


def _load(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return load_file(path)
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True)

"""The identity of a backbone: sha256 over its weights in canonical order."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """Hash every floating-point entry of a state dict, by name, shape and fp32 value.

    Entries are taken in name order, so that the order in a file does not matter. The weights are hashed as
    they run: a position table resampled to another input size gives another fingerprint. Costs one pass over
    the weights, about 0.1 s per 100 MB.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name]
        if tensor.is_floating_point():
            digest.update(f"{name}{list(tensor.shape)}".encode())
            digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().data)
    return digest.hexdigest()

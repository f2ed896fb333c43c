"""Ground truth for `heads`, in plain PyTorch, one image after the other. Clear first, fast never."""

import torch
from torch import Tensor


def heads_reference(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    table: Tensor,
    classes: Tensor,
    slots: Tensor,
    *,
    top_k: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute in fp32, or in fp64 for fp64 features."""
    wide = torch.promote_types(features.dtype, torch.float32)
    width = table.shape[1] * weight.shape[1]
    logits = features.new_full((len(slots), width), -torch.inf, dtype=wide)
    probabilities = features.new_zeros((len(slots), top_k), dtype=wide)
    indices = features.new_full((len(slots), top_k), -1, dtype=torch.int32)
    for i, slot in enumerate(slots.tolist()):
        count = int(classes[slot])
        if not count:
            continue
        pages = table[slot, : -(-count // weight.shape[1])].long()
        rows = weight[pages].flatten(0, 1)[:count].to(wide)  # [K, D]
        own = torch.mv(rows, features[i].to(wide)) + bias[pages].flatten()[:count].to(wide)
        # NaN ranks last, so that the order stays defined; its probability is still NaN
        order = own.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
        order = order.sort(descending=True, stable=True).indices[:top_k]
        logits[i, :count] = own
        probabilities[i, : len(order)] = own.softmax(0)[order]
        indices[i, : len(order)] = order.int()
    return logits, probabilities, indices

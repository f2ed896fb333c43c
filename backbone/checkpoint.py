"""Fitting a checkpoint in timm's own names to a model without a head, at another input size maybe."""

import warnings
from collections.abc import Mapping

from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table
from torch import Tensor, nn

# what models compute themselves and older versions of them stored
COMPUTED = ("relative_position_index", "relative_coords_table", "attn_mask", "k_bias")
BIAS_TABLE = "relative_position_bias_table"


def fitted(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return a state dict without classifier and computed entries, its position tables resampled.

    Nothing else is changed: what does not fit is for a strict load to name.
    """
    own = model.state_dict()
    kept = {
        name: tensor
        for name, tensor in state.items()
        if name in own or not (_is_of_classifier(name, model) or name.endswith(COMPUTED))
    }
    for name, tensor in kept.items():
        if name in own and tensor.shape != own[name].shape:
            kept[name] = _resampled(name, tensor, model)
    return kept


def classifier_paths(model: nn.Module) -> tuple[str, ...]:
    """Return where a timm model has its classifiers, whether or not it was built with them; DeiT has two."""
    found = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    return (found,) if isinstance(found, str) else tuple(found)


def _is_of_classifier(name: str, model: nn.Module) -> bool:
    return name.startswith(tuple(f"{path}." for path in classifier_paths(model)))


def _resampled(name: str, tensor: Tensor, model: nn.Module) -> Tensor:
    """Return a position table of another grid or window on the model's; any other tensor as it is."""
    if name == "pos_embed":
        prefix = 0 if getattr(model, "no_embed_class", False) else getattr(model, "num_prefix_tokens", 0)
        grid = list(model.patch_embed.grid_size)
        resampled: Tensor = resample_abs_pos_embed(tensor, new_size=grid, num_prefix_tokens=prefix)
        return resampled
    if name.endswith(BIAS_TABLE):
        attention = model.get_submodule(name.removesuffix(f".{BIAS_TABLE}"))
        shape = tuple(attention.relative_position_bias_table.shape)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of timm's interpolation, about its own indexing
            resized: Tensor = resize_rel_pos_bias_table(tensor, attention.window_size, shape)
        return resized
    return tensor

"""A norm between pooling and head, which is no site: the head behind it can hold whatever it was tuned to."""

from torch import Tensor, nn

from adapters.errors import CheckpointInvalid
from backbone.load import Backbone

PLACES = ("head.norm", "fc_norm")  # ConvNeXt's, and that of a ViT with average pooling


def find_head_norm(backbone: Backbone) -> str | None:
    """Return the path of such a norm, if the backbone has one that is not a site."""
    modules = dict(backbone.model.named_modules())
    for path in PLACES:
        if path not in backbone.sites.widths and getattr(modules.get(path), "weight", None) is not None:
            return path
    return None


def absorb(
    source: str, own: nn.Module, gain: Tensor, shift: Tensor, head: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the head that gives behind the frozen norm what the given one gives behind the tuned norm.

    W·(w'·x̂ + b') + c = (W·w'/w)·(w·x̂ + b) + W·(b' - w'/w·b) + c

    Args:
        source: What errors call the checkpoint.
        own: The frozen norm, with gain w and bias b.
        gain: w' [D].
        shift: b' [D].
        head: W [K, D] and c [K].

    Raises:
        CheckpointInvalid: If the frozen norm has a gain of zero.
    """
    if bool((own.weight == 0).any()):
        raise CheckpointInvalid(
            source, "trained the norm before the head, which the backbone has with a zero"
        )
    weight, bias = (tensor.double() for tensor in head)
    ratio = gain.double() / own.weight.double()
    moved = shift.double() - ratio * own.bias.double()
    return (weight * ratio).float(), (bias + weight @ moved).float()

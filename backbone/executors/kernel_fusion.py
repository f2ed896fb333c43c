"""What follows a site and moves into its kernel: activations, residual adds, the 1×1 convolution before it.

Each is done only where timm's own classes leave no doubt, by handing tensors to the sites; a model of which
nothing is known here runs all the same, unfused.
"""

import copy
from collections.abc import Callable, Mapping

import torch
from timm.layers import Mlp
from timm.models._efficientnet_blocks import ConvBnAct, DepthwiseSeparableConv, EdgeResidual, InvertedResidual
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from backbone.executors.kernel_sites import KernelBatchNorm, KernelLinear, KernelPointwise, KernelSite
from backbone.executors.kernel_sites import fuse_activation as fuse

# the last norm of a block with a skip connection; its input is added to what the norm gives
LAST_NORM: Mapping[type[nn.Module], str] = {
    ConvBnAct: "bn1",
    DepthwiseSeparableConv: "bn2",
    EdgeResidual: "bn2",
    InvertedResidual: "bn3",
}


def fuse_activations(model: nn.Module) -> None:
    """Move the activation of each MLP into its first product."""
    for module in model.modules():
        if type(module) is Mlp and isinstance(module.fc1, KernelLinear):
            module.act = fuse(module.fc1, module.act)


def fuse_residuals(model: nn.Module) -> None:
    """Move residual adds into the last op of their branch."""
    for path, module in list(model.named_modules()):
        if type(module) is Block and _ends_in_products(module):
            model.set_submodule(path, PreNormBlock(module))
        elif getattr(module, "has_skip", False) and (last := _last_norm(module)) is not None:
            module.has_skip = False
            model.set_submodule(path, SkipBlock(module, last))


def remember_positions(model: nn.Module) -> None:
    """Let rotary positions be made once a shape, by the first forward.

    timm makes some anew for each batch, on the CPU, and a graph can hold no copy from there.
    """
    for module in model.modules():
        if hasattr(module, "get_embed"):
            module.get_embed = _once(module.get_embed)


def pointwise_before(model: nn.Module, height: int, width: int) -> dict[str, str]:
    """Return, by BatchNorm, the plain 1×1 convolution whose output is its input.

    Seen on a shadow of the model without data, in milliseconds.
    """
    shadow = copy.deepcopy(model).to("meta")
    made: dict[int, tuple[str, Tensor]] = {}
    found: dict[str, str] = {}

    def note(path: str, out: Tensor) -> None:
        made[id(out)] = (path, out)  # the tensor is kept: its id must not be another's

    def look(path: str, x: Tensor) -> None:
        if id(x) in made:
            found[path] = made[id(x)][0]

    for path, module in shadow.named_modules():
        if _is_pointwise(module):
            module.register_forward_hook(lambda _module, _args, out, path=path: note(path, out))
        elif isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(lambda _module, args, path=path: look(path, args[0]))
    with torch.no_grad():
        shadow(torch.zeros(1, 3, height, width, device="meta"))
    return found


class PreNormBlock(nn.Module):
    """A transformer block of timm's parts whose residual adds happen in the products that end its branches.

    LayerScale is folded into these products, stochastic depth does nothing at inference.
    """

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2, self.mlp = block.norm1, block.attn, block.norm2, block.mlp

    def forward(self, x: Tensor) -> Tensor:
        self.attn.proj.residual = x
        x = self.attn(self.norm1(x))
        self.mlp.fc2.residual = x
        out: Tensor = self.mlp(self.norm2(x))
        return out


class SkipBlock(nn.Module):
    """A convolutional block whose last norm adds the block's input."""

    def __init__(self, block: nn.Module, last: KernelSite) -> None:
        super().__init__()
        self.block = block
        self._last = [last]  # in a list: it is the block's submodule already

    def forward(self, x: Tensor) -> Tensor:
        self._last[0].residual = x
        out: Tensor = self.block(x)
        return out


def _once(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    made: dict[str, Tensor] = {}

    def remembered(*args: object, **options: object) -> Tensor:
        key = repr((args, options))
        if key not in made:
            made[key] = make(*args, **options)
        return made[key]

    return remembered


def _is_pointwise(module: nn.Module) -> bool:
    return (
        type(module) is nn.Conv2d
        and module.bias is None
        and module.kernel_size == (1, 1)
        and module.stride == (1, 1)
        and module.padding in {(0, 0), "same", "valid"}
        and module.groups == 1
    )


def _ends_in_products(block: Block) -> bool:
    ends = (getattr(block.attn, "proj", None), getattr(block.mlp, "fc2", None))
    folded = all(isinstance(scale, nn.Identity) for scale in (block.ls1, block.ls2))
    return folded and all(isinstance(end, KernelLinear) for end in ends)


def _last_norm(block: nn.Module) -> KernelSite | None:
    """Return the norm that may take the add: nothing may come between it and the add."""
    last = getattr(block, LAST_NORM.get(type(block), ""), None)
    between = block.aa if type(block) is ConvBnAct else nn.Identity()
    if not isinstance(between, nn.Identity):
        return None
    if isinstance(last, KernelBatchNorm | KernelPointwise) and isinstance(last.behind, nn.Identity):
        return last
    return None

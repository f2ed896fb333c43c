"""The sites of a backbone on the kernels: each frozen op with the bank's affine, and what else fits, in one.

What a module here replaces it takes over with timm's own shapes and layouts, so that all code between the
sites stays timm's. Where an activation or a residual add follows, `kernel_fusion` moves it in.
"""

import copy

import torch
from timm.layers import GELU, GELUTanh, Swish
from torch import Tensor, nn

from backbone.bank import Bank
from backbone.kernels.affine import affine
from backbone.kernels.linear_affine import linear_affine
from backbone.kernels.norm_affine import norm_affine
from backbone.kernels.quantize import quantize
from backbone.kernels.scaled_linear_affine import scaled_linear_affine
from backbone.mixed import BatchRows
from backbone.preprocess import ImageSpec
from backbone.sites import Site, SiteList


class BankRows(BatchRows):
    """The bank in place, and the slot of each image of the batch under way: what every site reads."""

    def __init__(self, sites: SiteList) -> None:
        super().__init__(sites)
        self._names = [site.name for site in sites]
        self.slots = torch.zeros(0, dtype=torch.int32)

    def attach(self, bank: Bank) -> None:
        """Read this bank from now on."""
        views = [bank.site(name) for name in self._names]  # each [S, 2, C]
        self.scale = [view[:, 0] for view in views]
        self.shift = [view[:, 1] for view in views]

    def of(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return scale [S, C], shift [S, C] and slots [B] for site `index`."""
        return self.scale[index], self.shift[index], self.slots

    def affine(self, index: int, x: Tensor, axis: int) -> Tensor:
        if axis == 1:
            return channels_first(affine(channels_last(x), *self.of(index)))
        return affine(x, *self.of(index))


def channels_last(x: Tensor) -> Tensor:
    """See [B, C, …] as [B, …, C]; no copy."""
    return x.movedim(1, -1)


def channels_first(x: Tensor) -> Tensor:
    """See [B, …, C] as [B, C, …]; no copy."""
    return x.movedim(-1, 1)


class KernelSite(nn.Module):
    """A site on a kernel.

    Attributes:
        act: The activation behind it, by the kernels' name for it.
        residual: What the next forward adds last, as timm lays it out; used once.
    """

    def __init__(self, rows: BankRows, index: int, site: Site) -> None:
        super().__init__()
        self.rows, self.index, self.axis = rows, index, site.axis
        self.act = "none"
        self.residual: Tensor | None = None

    def prepared(self, pair: Tensor) -> Tensor:
        """Return γ' and β' [2, C], float64, with what else this site folds into them."""
        return pair

    def take_residual(self) -> Tensor | None:
        """Return the residual, channels last."""
        residual, self.residual = self.residual, None
        return channels_last(residual) if residual is not None and self.axis == 1 else residual


class KernelLinear(KernelSite):
    """A product that ends in the affine."""

    def __init__(self, rows: BankRows, index: int, site: Site, frozen: nn.Linear) -> None:
        super().__init__(rows, index, site)
        self.weight = copy.deepcopy(frozen.weight)

    def forward(self, x: Tensor) -> Tensor:
        return linear_affine(
            x, self.weight, *self.rows.of(self.index), act=self.act, residual=self.take_residual()
        )


class ScaledLinear(KernelSite):
    """A product in fp8 that ends in the affine: the weight by output channel, activations by row.

    What a channel's values are worth folds into γ' of every row of the bank.
    """

    def __init__(self, linear: KernelLinear, site: Site) -> None:
        super().__init__(linear.rows, linear.index, site)
        self.act, self.dtype = linear.act, linear.weight.dtype
        weight, worth = quantize(linear.weight.detach())
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.worth = worth.double().cpu()  # [C_out]

    def prepared(self, pair: Tensor) -> Tensor:
        scale, shift = pair
        return torch.stack([scale * self.worth, shift])

    def forward(self, x: Tensor) -> Tensor:
        return scaled_linear_affine(
            *quantize(x), self.weight, *self.rows.of(self.index),
            act=self.act, residual=self.take_residual(), dtype=self.dtype,
        )  # fmt: skip


class KernelPointwise(KernelSite):
    """A 1×1 convolution and the BatchNorm behind it: a product over channels that ends in the affine."""

    def __init__(self, rows: BankRows, index: int, site: Site, product: nn.Module, frozen: nn.Module) -> None:
        super().__init__(rows, index, site)
        weight = product.get_parameter("weight").detach()
        self.weight = nn.Parameter(weight.flatten(1).clone(), requires_grad=False)
        self.behind = fuse_activation(self, copy.copy(getattr(frozen, "act", nn.Identity())))

    def forward(self, x: Tensor) -> Tensor:
        out = linear_affine(
            channels_last(x), self.weight, *self.rows.of(self.index),
            act=self.act, residual=self.take_residual(),
        )  # fmt: skip
        activated: Tensor = self.behind(channels_first(out))
        return activated


class KernelBatchNorm(KernelSite):
    """BatchNorm in eval mode is folded into the affine whole; its activation comes with it."""

    def __init__(self, rows: BankRows, index: int, site: Site, frozen: nn.Module) -> None:
        super().__init__(rows, index, site)
        self.behind = fuse_activation(self, copy.copy(getattr(frozen, "act", nn.Identity())))

    def forward(self, x: Tensor) -> Tensor:
        out = affine(channels_last(x), *self.rows.of(self.index), act=self.act, residual=self.take_residual())
        activated: Tensor = self.behind(channels_first(out))
        return activated


class KernelLayerNorm(KernelSite):
    """LayerNorm over the channel axis whose gain and bias are the bank's."""

    def __init__(self, rows: BankRows, index: int, site: Site, frozen: nn.LayerNorm) -> None:
        super().__init__(rows, index, site)
        self.eps = frozen.eps

    def forward(self, x: Tensor) -> Tensor:
        if self.axis == 1:
            return channels_first(norm_affine(channels_last(x), *self.rows.of(self.index), eps=self.eps))
        return norm_affine(x, *self.rows.of(self.index), eps=self.eps)


class KernelPatches(KernelSite):
    """A patch embedding from uint8 pixels: the normalisation is in its weight and its row of the bank.

        W · ((x / 255 - mean) / std) = (W / 255 std) · (x - 128) + (W / 255 std) · (128 - 255 mean)

    x - 128 is a whole number of 8 bits: exact in every dtype. The weight is rounded to `dtype` first and the
    constant computed from what it became, so its rounding meets pixels less the mean, as in the plain model.
    """

    COLUMNS = 16  # a multiple of it, so that rows of a matrix start where the widest loads may

    def __init__(
        self,
        rows: BankRows,
        index: int,
        site: Site,
        frozen: nn.Conv2d,
        *,
        spec: ImageSpec,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(rows, index, site)
        self.height, self.width = frozen.kernel_size
        mean, std = (torch.tensor(values).double().view(-1, 1, 1) for values in (spec.mean, spec.std))
        weight = (frozen.weight.detach().double() / (255 * std)).to(dtype)  # [C, 3, height, width]
        self.columns = weight[0].numel()
        padded = nn.functional.pad(weight.flatten(1), (0, -self.columns % self.COLUMNS))
        self.weight = nn.Parameter(padded, requires_grad=False)
        self.constant = (weight.double() * (128 - 255 * mean)).sum((1, 2, 3))  # [C], on the CPU

    def prepared(self, pair: Tensor) -> Tensor:
        scale, shift = pair
        return torch.stack([scale, shift + scale * self.constant])

    def forward(self, images: Tensor) -> Tensor:
        """Return [B, C, H / height, W / width], channels last in memory, of uint8 images [B, 3, H, W]."""
        batch, channels, height, width = images.shape
        down, across = height // self.height, width // self.width
        centred = (images ^ 128).view(torch.int8)  # x - 128, with no wider type in between
        tiles = centred.view(batch, channels, down, self.height, across, self.width).permute(0, 2, 4, 1, 3, 5)
        patches = images.new_empty(batch, down, across, self.weight.shape[1], dtype=self.weight.dtype)
        patches[..., : self.columns].unflatten(-1, tiles.shape[3:]).copy_(tiles)
        patches[..., self.columns :].zero_()
        return channels_first(linear_affine(patches, self.weight, *self.rows.of(self.index)))


_NAMES: dict[type[nn.Module], str] = {
    nn.Identity: "none", nn.SiLU: "silu", Swish: "silu", nn.ReLU: "relu", nn.ReLU6: "relu6",
    GELU: "gelu", GELUTanh: "gelu_tanh",
}  # fmt: skip


def fuse_activation(site: KernelSite, act: nn.Module) -> nn.Module:
    """Move an activation into the site before it if the kernels have it; return what is left to run."""
    name = _NAMES.get(type(act))
    if type(act) is nn.GELU:
        name = "gelu_tanh" if act.approximate == "tanh" else "gelu"
    if name is None:
        return act
    site.act = name
    return nn.Identity()

"""The mixed-task forward on the kernels: uint8 images and slots to pooled features, the bank read in place.

Numerics: products and activations in the model's dtype, each site's affine, activation and residual in fp32
with one rounding. On a CPU the same model runs on the kernels' references.
"""

import torch
from timm.layers import PatchEmbed
from torch import Tensor, nn

from backbone.bank import Bank
from backbone.executors.kernel_fusion import (
    fuse_activations,
    fuse_residuals,
    pointwise_before,
    remember_positions,
)
from backbone.executors.kernel_sites import (
    BankRows,
    KernelBatchNorm,
    KernelLayerNorm,
    KernelLinear,
    KernelPatches,
    KernelPointwise,
    ScaledLinear,
)
from backbone.kernels.norm_affine import MAX_CHANNELS
from backbone.kernels.normalize import normalize, pixel_affine
from backbone.load import Backbone
from backbone.mixed import MixedModel
from backbone.sites import Op, Site


class KernelModel(nn.Module):
    """A copy of a backbone whose sites read a bank by slot. Shares no parameter storage with the original.

    One forward at a time: the sites read the slots of one batch.
    """

    def __init__(
        self, backbone: Backbone, *, dtype: torch.dtype, device: torch.device | str, fp8: bool = False
    ) -> None:
        """Copy the weights to the device in `dtype`; with `fp8`, those of the linear layers in e4m3."""
        super().__init__()
        self._backbone, self._dtype = backbone, dtype
        self._channels_last = backbone.family.channels_last
        self.rows = BankRows(backbone.sites)
        self.model = MixedModel(backbone.model, backbone.sites, self.rows).model
        self.patches: KernelPatches | None = None
        self._replace_sites()
        fuse_activations(self.model)
        fuse_residuals(self.model)
        remember_positions(self.model)
        scale, shift = pixel_affine(backbone.spec.mean, backbone.spec.std)
        layout = torch.channels_last if self._channels_last else torch.contiguous_format
        self.to(device, dtype, memory_format=layout).eval()
        self.pixel_scale, self.pixel_shift = scale.to(device), shift.to(device)
        if fp8:
            self._quantise_products()
        self._prepare = [site for site in self.modules() if isinstance(site, KernelPatches | ScaledLinear)]

    def attach(self, bank: Bank) -> None:
        """Read this bank, whose rows went through `prepared`, from now on."""
        self.rows.attach(bank)

    def prepared(self, row: Tensor) -> Tensor:
        """Return a folded row [2, P] as these sites take it: with what else folds into it."""
        row, sites = row.clone(), self._backbone.sites
        for site in self._prepare:
            place = sites.slices[sites.sites[site.index].name]
            row[:, place] = site.prepared(row[:, place].double()).float()
        return row

    def forward(self, images: Tensor, slots: Tensor) -> Tensor:
        """Return pooled features [B, D] of uint8 images [B, 3, H, W] with the bank's rows `slots` [B]."""
        self.rows.slots = slots
        pixels = images
        if self.patches is None:
            pixels = normalize(
                images, self.pixel_scale, self.pixel_shift,
                dtype=self._dtype, channels_last=self._channels_last,
            )  # fmt: skip
        features: Tensor = self.model(pixels)
        return features

    def _replace_sites(self) -> None:
        """Put kernels where `MixedModel` put its general ops; an op that is not known here keeps those."""
        spec, plain = self._backbone.spec, self._backbone.model
        pointwise = {}
        if any(site.op is Op.BATCH_NORM for site in self._backbone.sites):
            pointwise = pointwise_before(plain, spec.height, spec.width)
        for index, site in enumerate(self._backbone.sites):
            frozen = plain.get_submodule(site.name)
            module = self._site(index, site, frozen)
            if site.name in pointwise:
                product = plain.get_submodule(pointwise[site.name])
                module = KernelPointwise(self.rows, index, site, product, frozen)
                self.model.set_submodule(pointwise[site.name], nn.Identity())
            if module is not None:
                self.model.set_submodule(site.name, module)

    def _quantise_products(self) -> None:
        sites = list(self._backbone.sites)
        for path, module in list(self.model.named_modules()):  # not by site: fusing moved some
            if isinstance(module, KernelLinear):
                self.model.set_submodule(path, ScaledLinear(module, sites[module.index]))

    def _site(self, index: int, site: Site, frozen: nn.Module) -> nn.Module | None:
        match site.op:
            case Op.LINEAR if type(frozen) is nn.Linear and site.axis == -1:
                return KernelLinear(self.rows, index, site, frozen)
            case Op.LAYER_NORM if isinstance(frozen, nn.LayerNorm) and site.width <= MAX_CHANNELS:
                return KernelLayerNorm(self.rows, index, site, frozen)
            case Op.BATCH_NORM:
                return KernelBatchNorm(self.rows, index, site, frozen)
            case Op.CONV if self._is_patch_embedding(site, frozen):
                spec, dtype = self._backbone.spec, self._dtype
                self.patches = KernelPatches(self.rows, index, site, frozen, spec=spec, dtype=dtype)
                return self.patches
        return None

    def _is_patch_embedding(self, site: Site, conv: nn.Module) -> bool:
        """Tell whether the model begins with this convolution, over patches that neither overlap nor pad."""
        stem = self._backbone.model.get_submodule(site.name.rpartition(".")[0])
        spec = self._backbone.spec
        return (
            site.name == "patch_embed.proj"
            and type(stem) is PatchEmbed
            and type(conv) is nn.Conv2d
            and not stem.dynamic_img_pad
            and conv.stride == conv.kernel_size
            and conv.padding == (0, 0)
            and conv.dilation == (1, 1)
            and conv.groups == 1
            and spec.height % conv.kernel_size[0] == spec.width % conv.kernel_size[1] == 0
        )

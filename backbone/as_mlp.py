"""AS-MLP, which timm lacks: a pyramid of MLPs whose channels are shifted along both axes to see around them.

Source: AS-MLP, arXiv:2107.08391. Module names are those of published checkpoints. All maps are [B, C, H, W]
and every norm is a GroupNorm of one group. Importing this module registers the models with timm.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import DropPath, Mlp, calculate_drop_path_rates
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

ROWS, COLUMNS = 2, 3  # axes of a map


def norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(1, width)


def shifted(x: Tensor, axis: int, groups: int) -> Tensor:
    """Cut the channels into groups and move group g by g - groups // 2 places; zeros come in at the edge."""
    reach = groups // 2
    padded = F.pad(x, (reach, reach, 0, 0) if axis == COLUMNS else (0, 0, reach, reach))
    moved = [
        part.narrow(axis, 2 * reach - group, x.shape[axis])
        for group, part in enumerate(padded.chunk(groups, dim=1))
    ]
    return torch.cat(moved, dim=1)


class AxialShift(nn.Module):
    """Mix channels, shift them along both axes apart, mix each, add, mix again."""

    def __init__(self, width: int, shift_size: int) -> None:
        super().__init__()
        self.shift_size = shift_size
        self.conv1 = nn.Conv2d(width, width, 1)
        self.norm1 = norm(width)
        self.conv2_1 = nn.Conv2d(width, width, 1)
        self.conv2_2 = nn.Conv2d(width, width, 1)
        self.norm2 = norm(width)
        self.conv3 = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm1(self.conv1(x)))
        along_rows = F.gelu(self.conv2_1(shifted(x, COLUMNS, self.shift_size)))
        along_columns = F.gelu(self.conv2_2(shifted(x, ROWS, self.shift_size)))
        mixed: Tensor = self.conv3(self.norm2(along_rows + along_columns))
        return mixed


class Block(nn.Module):
    def __init__(self, width: int, shift_size: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = norm(width)
        self.axial_shift = AxialShift(width, shift_size)
        self.norm2 = norm(width)
        self.mlp = Mlp(width, int(width * mlp_ratio), use_conv=True)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.axial_shift(self.norm1(x)))
        out: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return out


class PatchMerging(nn.Module):
    """Halve a map: the four neighbours' channels, columns first, become two times the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = norm(4 * width)
        self.reduction = nn.Conv2d(4 * width, 2 * width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, x.shape[COLUMNS] % 2, 0, x.shape[ROWS] % 2))
        neighbours = [x[:, :, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        halved: Tensor = self.reduction(self.norm(torch.cat(neighbours, dim=1)))
        return halved


class Stage(nn.Module):
    def __init__(
        self, width: int, shift_size: int, mlp_ratio: float, drop_paths: Sequence[float], *, last: bool
    ) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block(width, shift_size, mlp_ratio, rate) for rate in drop_paths))
        self.downsample = nn.Identity() if last else PatchMerging(width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.downsample(self.blocks(x))
        return out


class PatchEmbed(nn.Module):
    def __init__(self, in_chans: int, width: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, width, patch_size, stride=patch_size)
        self.norm = norm(width)

    def forward(self, x: Tensor) -> Tensor:
        embedded: Tensor = self.norm(self.proj(x))
        return embedded


class AsMlp(nn.Module):
    """The whole model; takes images of any size."""

    def __init__(
        self,
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        patch_size: int = 4,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        shift_size: int = 5,
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        global_pool: str = "avg",
    ) -> None:
        super().__init__()
        if global_pool != "avg":
            raise ValueError(f"AS-MLP averages over the map; it has no pooling `{global_pool}`")
        widths = [embed_dim * 2**stage for stage in range(len(depths))]
        rates = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = widths[-1]
        self.patch_embed = PatchEmbed(in_chans, embed_dim, patch_size)
        self.layers = nn.Sequential(
            *(
                Stage(width, shift_size, mlp_ratio, stage_rates, last=width == widths[-1])
                for width, stage_rates in zip(widths, rates, strict=True)
            )
        )
        self.norm = norm(widths[-1])
        self.head_drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes)

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new head in place; there is no other pooling than the average."""
        if global_pool not in (None, "avg"):
            raise ValueError(f"AS-MLP averages over the map; it has no pooling `{global_pool}`")
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes) if num_classes > 0 else nn.Identity()

    def forward_features(self, x: Tensor) -> Tensor:
        features: Tensor = self.norm(self.layers(self.patch_embed(x)))
        return features

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        pooled: Tensor = self.head_drop(x.mean((ROWS, COLUMNS)))
        logits: Tensor = pooled if pre_logits else self.head(pooled)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


_CONFIG = {
    "num_classes": 1000,
    "input_size": (3, 224, 224),
    "pool_size": (7, 7),
    "crop_pct": 0.9,
    "interpolation": "bicubic",
    "mean": IMAGENET_DEFAULT_MEAN,
    "std": IMAGENET_DEFAULT_STD,
    "first_conv": "patch_embed.proj",
    "classifier": "head",
}
SIZES = {
    "asmlp_tiny_patch4_shift5_224": {"embed_dim": 96, "depths": (2, 2, 6, 2)},
    "asmlp_small_patch4_shift5_224": {"embed_dim": 96, "depths": (2, 2, 18, 2)},
    "asmlp_base_patch4_shift5_224": {"embed_dim": 128, "depths": (2, 2, 18, 2)},
}
default_cfgs = generate_default_cfgs(dict.fromkeys(SIZES, _CONFIG))


def _create(name: str, pretrained: bool, **arguments: object) -> AsMlp:
    model: AsMlp = build_model_with_cfg(AsMlp, name, pretrained, **{**SIZES[name], **arguments})
    return model


@register_model
def asmlp_tiny_patch4_shift5_224(pretrained: bool = False, **arguments: object) -> AsMlp:
    return _create("asmlp_tiny_patch4_shift5_224", pretrained, **arguments)


@register_model
def asmlp_small_patch4_shift5_224(pretrained: bool = False, **arguments: object) -> AsMlp:
    return _create("asmlp_small_patch4_shift5_224", pretrained, **arguments)


@register_model
def asmlp_base_patch4_shift5_224(pretrained: bool = False, **arguments: object) -> AsMlp:
    return _create("asmlp_base_patch4_shift5_224", pretrained, **arguments)

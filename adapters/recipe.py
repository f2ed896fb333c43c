"""How an adapter is trained: every number that decides the result, checked at the door."""

from fnmatch import fnmatchcase
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from adapters.augment import parse_augment
from backbone.sites import SiteList

Rate = Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]
Method = Literal["ssf", "linear", "bias", "norm", "full", "vpt-deep", "adapter"]

COMPARED = frozenset({"full", "vpt-deep", "adapter"})  # they make no adapter
WHOLE = frozenset({"linear", *COMPARED})  # they know no sites
HEAD = {"epochs": 200, "batch_size": 256, "head_lr": 2e-3}


class Recipe(BaseModel):
    """A training recipe. Goes into the manifest as it is; with the data and the seed it fixes the result.

    `linear` trains a head alone, on features that are computed once: so it takes nothing that changes images
    or the model. Images are changed by `augment`, on the pixels that serving sees, or by `policy`, timm's own
    transforms on the original files.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Method = "ssf"
    preset: str | None = None
    epochs: Annotated[int, Field(ge=1, le=100_000)]
    cooldown: Annotated[int, Field(ge=0, description="epochs at min_lr behind them")] = 0
    patience: Annotated[int | None, Field(ge=1, description="epochs without a better one")] = None
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 16
    lr: Rate = 2e-3
    head_lr: Rate = 1e-3
    by_epoch: bool = Field(False, description="the learning rate changes between epochs, see Course")
    warmup: Annotated[float, Field(ge=0, description="epochs")] = 1.0
    warmup_lr: Annotated[float, Field(ge=0, le=10)] = 0.0
    min_lr: Annotated[float, Field(ge=0, le=10)] = 0.0
    weight_decay: Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)] = 0.05
    clip: Annotated[float, Field(ge=0, description="largest norm of a step's gradient; 0: any")] = 1.0
    ema: Annotated[float, Field(ge=0, lt=1, description="decay of averaged weights; 0: none")] = 0.0
    label_smoothing: Share = 0.0
    augment: str = "none"
    policy: Literal["none", "simple", "rand"] = "none"
    erase: Share = 0.0
    mixup: Annotated[float, Field(ge=0)] = 0.0
    cutmix: Annotated[float, Field(ge=0)] = 0.0
    patch_drop: Annotated[float, Field(ge=0, lt=1, description="share of patches left out")] = 0.0
    drop_path: Share = 0.0
    balance: bool = False
    sites: str = "*"
    prompts: Annotated[int, Field(ge=1, le=1024, description="of vpt-deep, in each block")] = 10
    bottleneck: Annotated[int, Field(ge=1, le=4096, description="width, of adapter")] = 8
    scale_steps: bool = Field(True, description="scale each site's learning rate by its spread")
    standardise: bool = Field(True, description="the head learns on features of mean 0, deviation 1")
    warm_start: bool = Field(True, description="fit the head on the first features, then train everything")
    head_std: Annotated[float, Field(ge=0, le=1)] = 0.01
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"
    threads: Annotated[int, Field(ge=1)] = 1
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.15
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    @classmethod
    def defaults(cls, method: str) -> dict[str, float | str]:
        """Return the values that differ by method."""
        if method == "linear":
            return dict(HEAD)
        own = {"full": {"lr": 1e-4}, "bias": {"lr": 5e-3}, "norm": {"lr": 5e-3}}
        return {"epochs": 12, "augment": "shift", **own.get(method, {})}

    @property
    def augmentations(self) -> tuple[str, ...]:
        return parse_augment(self.augment)

    @property
    def is_servable(self) -> bool:
        """Whether the method makes an adapter."""
        return self.method not in COMPARED

    @property
    def mixes(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0

    @field_validator("augment")
    @classmethod
    def _augmentations_exist(cls, value: str) -> str:
        return ",".join(parse_augment(value)) or "none"

    @model_validator(mode="after")
    def _fits_its_method(self) -> Self:
        if self.method == "linear" and self._changes():
            raise ValueError(f"linear computes features once: it takes no {', '.join(self._changes())}")
        if self.method in COMPARED and self.sites != "*":
            raise ValueError(f"{self.method} knows no sites")
        if self.policy != "none" and self.augmentations:
            raise ValueError("augment and policy exclude each other: pixels are changed, or original images")
        if self.mixes and self.batch_size % 2:
            raise ValueError("mixup and cutmix need an even batch_size")
        return self

    def _changes(self) -> list[str]:
        """Return what changes images or the model from step to step, or picks sites."""
        plain = type(self).model_construct(epochs=1)
        names = ("augment", "policy", "erase", "mixup", "cutmix", "patch_drop", "drop_path", "sites")
        return [name for name in names if getattr(self, name) != getattr(plain, name)]

    def for_head(self) -> Self:
        """Return the recipe that fits the head first, on features of unit deviation."""
        plain = {"by_epoch": False, "cooldown": 0, "patience": None, "ema": 0.0, "mixup": 0.0, "cutmix": 0.0}
        return self.model_copy(update=HEAD | plain)

    def chosen_sites(self, sites: SiteList) -> tuple[str, ...]:
        """Return the names of the sites that train, in forward order.

        `sites` is a comma-separated list of patterns (`blocks.0.*,norm`).

        Raises:
            ValueError: If a pattern matches no site.
        """
        if self.method in WHOLE:
            return ()
        patterns = [pattern.strip() for pattern in self.sites.split(",") if pattern.strip()]
        names = [site.name for site in sites]
        idle = [p for p in patterns if not any(fnmatchcase(name, p) for name in names)]
        if idle or not patterns:
            wanted = ", ".join(idle) or "an empty list"
            raise ValueError(f"no site matches {wanted}; they go from {names[0]} to {names[-1]}")
        return tuple(name for name in names if any(fnmatchcase(name, p) for p in patterns))

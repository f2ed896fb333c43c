"""How an adapter is trained: every number that decides the result, checked at the door. Loads no torch."""

from fnmatch import fnmatchcase
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from adapters.augment_names import parse_augment
from backbone.sites import SiteList

Finite = Annotated[float, Field(allow_inf_nan=False)]
Method = Literal["ssf", "linear", "bias", "norm", "full", "vpt-deep", "adapter"]

COMPARED = frozenset({"full", "vpt-deep", "adapter"})  # they make no adapter
WHOLE = frozenset({"linear", *COMPARED})  # they know no sites
HEAD: dict[str, float | str] = {"epochs": 200, "batch_size": 256, "head_lr": 2e-3}


class Recipe(BaseModel):
    """A training recipe. Goes into the manifest as it is; with the data and the seed it fixes the result.

    Images are changed by `augment`, on the pixels that serving sees, or by `policy`, timm's own transforms on
    the original images. `linear` computes features once, unless something changes images or the model.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Method = Field("ssf", description="What trains beside the head.")
    preset: str | None = Field(None, description="Official recipe that the values come from.")
    epochs: Annotated[int, Field(ge=1, le=100_000, description="Epochs; 12, or 200 for linear.")]
    cooldown: Annotated[int, Field(ge=0, description="Epochs at --min-lr behind them.")] = 0
    patience: Annotated[
        int | None, Field(ge=1, description="Stop after so many epochs without a better one.")
    ] = None
    batch_size: Annotated[int, Field(ge=1, le=65_536, description="Images a step; 256 for linear.")] = 16
    lr: Annotated[Finite, Field(gt=0, le=10, description="Learning rate of what trains beside the head.")] = (
        2e-3
    )
    head_lr: Annotated[Finite, Field(gt=0, le=10, description="Learning rate of the head.")] = 1e-3
    by_epoch: bool = Field(False, description="Change the learning rate between epochs, not steps.")
    warmup: Annotated[Finite, Field(ge=0, le=100_000, description="Epochs until the full learning rate.")] = (
        1.0
    )
    warmup_lr: Annotated[Finite, Field(ge=0, le=10, description="Where --by-epoch starts.")] = 0.0
    min_lr: Annotated[Finite, Field(ge=0, le=10, description="Where --by-epoch ends.")] = 0.0
    weight_decay: Annotated[
        Finite, Field(ge=0, le=10, description="On the head's weight; in full and adapter on all matrices.")
    ] = 0.05
    clip: Annotated[Finite, Field(ge=0, description="Largest norm of a step's gradient; 0: any.")] = 1.0
    ema: Annotated[Finite, Field(ge=0, lt=1, description="Decay of averaged weights; 0: none.")] = 0.0
    label_smoothing: Annotated[Finite, Field(ge=0, lt=1, description="Share given to other classes.")] = 0.0
    augment: str = Field(
        "none", description="none, or some of flip,rotate180,dihedral,shift,crop; shift but for linear."
    )
    policy: Literal["none", "simple", "rand"] = Field(
        "none",
        description="timm's transforms on the original images: simple crops and flips, rand adds more.",
    )
    erase: Annotated[Finite, Field(ge=0, lt=1, description="Share of images with a part erased.")] = 0.0
    mixup: Annotated[Finite, Field(ge=0, description="α of mixup; 0: none.")] = 0.0
    cutmix: Annotated[Finite, Field(ge=0, description="α of cutmix; 0: none.")] = 0.0
    patch_drop: Annotated[Finite, Field(ge=0, lt=1, description="Share of patches left out.")] = 0.0
    drop_path: Annotated[Finite, Field(ge=0, lt=1, description="Share of branches left out, at the end.")] = (
        0.0
    )
    balance: bool = Field(False, description="Draw every class equally often.")
    sites: str = Field("*", description="Patterns of sites to train: `blocks.0.*,norm`.")
    init_std: Annotated[
        Finite, Field(ge=0, le=1, description="Deviation of ssf's first vectors from the identity.")
    ] = 0.0
    prompts: Annotated[int, Field(ge=1, le=1024, description="Of vpt-deep, in each block.")] = 10
    bottleneck: Annotated[int, Field(ge=1, le=4096, description="Width, of adapter.")] = 8
    scale_steps: bool = Field(True, description="Scale each site's learning rate by its spread.")
    standardise: bool = Field(True, description="Let the head learn on features of deviation 1.")
    warm_start: bool = Field(True, description="Fit the head first, then train everything.")
    head_std: Annotated[Finite, Field(ge=0, le=1, description="Deviation of the head's first weights.")] = (
        0.01
    )
    compile: bool = Field(False, description="Compile the step first: a minute, then faster ones.")
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"
    threads: Annotated[int, Field(ge=1)] = 1
    val_fraction: Annotated[Finite, Field(gt=0, lt=1, description="Share of each class held out.")] = 0.15
    split_seed: Annotated[
        int | None, Field(ge=0, lt=2**63, description="Of the split alone; else --seed.")
    ] = None
    seed: Annotated[
        int, Field(ge=0, lt=2**63, description="Of the split, the start, the order and the changes.")
    ] = 0

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
        if self.method in WHOLE and self.sites != "*":
            raise ValueError(f"{self.method} trains no sites")
        if self.policy != "none" and self.augmentations:
            raise ValueError("augment and policy exclude each other: pixels are changed, or original images")
        if self.mixes and self.batch_size % 2:
            raise ValueError("mixup and cutmix need an even batch_size")
        return self

    @property
    def is_still(self) -> bool:
        """Whether images and the frozen model are the same in every step."""
        changes = (self.erase, self.mixup, self.cutmix, self.patch_drop, self.drop_path)
        return not any(changes) and not self.augmentations and self.policy == "none"

    def for_head(self) -> Self:
        """Return the recipe that fits the head first, on features of unit deviation."""
        plain = {"by_epoch": False, "cooldown": 0, "patience": None, "ema": 0.0, "warmup": 1.0}
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

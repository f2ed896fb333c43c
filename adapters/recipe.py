"""How an adapter is trained: every number that decides the result, checked at the door."""

from fnmatch import fnmatchcase
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from adapters.augment import parse_augment
from backbone.sites import SiteList

Rate = Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)]


class Recipe(BaseModel):
    """A training recipe. Goes into the manifest as it is; with the data and the seed it fixes the result.

    `linear` trains a head alone, on features that are computed once: so it takes no augmentation, patch
    dropout or sites.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Literal["ssf", "linear"] = "ssf"
    epochs: Annotated[int, Field(ge=1, le=100_000)]
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 16
    lr: Rate = 2e-3
    head_lr: Rate = 1e-3
    weight_decay: Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)] = 0.05
    warmup: Annotated[float, Field(ge=0, description="epochs")] = 1.0
    clip: Annotated[float, Field(gt=0, description="largest norm of a step's gradient")] = 1.0
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    augment: str = "none"
    patch_drop: Annotated[float, Field(ge=0, lt=1, description="share of patches left out")] = 0.0
    balance: bool = False
    sites: str = "*"
    scale_steps: bool = Field(True, description="scale each site's learning rate by its spread")
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"
    threads: Annotated[int, Field(ge=1)] = 1
    warm_start: bool = Field(True, description="fit the head on the first features, then train everything")
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.15
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    @classmethod
    def defaults(cls, method: str) -> dict[str, float | str]:
        """Return the values that differ by method."""
        return (
            {"epochs": 200, "batch_size": 256, "head_lr": 2e-3}
            if method == "linear"
            else {"epochs": 12, "augment": "shift"}
        )

    @property
    def augmentations(self) -> tuple[str, ...]:
        return parse_augment(self.augment)

    @field_validator("augment")
    @classmethod
    def _augmentations_exist(cls, value: str) -> str:
        return ",".join(parse_augment(value)) or "none"

    @model_validator(mode="after")
    def _linear_is_frozen(self) -> Self:
        if self.method == "linear" and (self.augmentations or self.patch_drop or self.sites != "*"):
            raise ValueError("linear computes features once: it takes no augment, patch_drop or sites")
        return self

    def for_head(self) -> Self:
        """Return the recipe that fits the head first, on features of unit deviation."""
        return self.model_copy(update=self.defaults("linear"))

    def chosen_sites(self, sites: SiteList) -> tuple[str, ...]:
        """Return the names of the sites that train, in forward order.

        `sites` is a comma-separated list of patterns (`blocks.0.*,norm`).

        Raises:
            ValueError: If a pattern matches no site.
        """
        if self.method == "linear":
            return ()
        patterns = [pattern.strip() for pattern in self.sites.split(",") if pattern.strip()]
        names = [site.name for site in sites]
        idle = [p for p in patterns if not any(fnmatchcase(name, p) for name in names)]
        if idle or not patterns:
            wanted = ", ".join(idle) or "an empty list"
            raise ValueError(f"no site matches {wanted}; they go from {names[0]} to {names[-1]}")
        return tuple(name for name in names if any(fnmatchcase(name, p) for p in patterns))

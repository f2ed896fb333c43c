"""What an adapter is, without its tensors. This module loads no torch."""

import json
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from adapters import strict_json
from adapters.errors import ManifestInvalid

MAX_CLASSES = 100_000

Finite = Annotated[float, Field(allow_inf_nan=False)]
Label = Annotated[str, Field(min_length=1, max_length=256)]
Fingerprint = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BackboneRef(_Frozen):
    """The frozen model an adapter belongs to: its timm name, and sha256 over its weights."""

    name: Annotated[str, Field(min_length=1, max_length=256)]
    fingerprint: Fingerprint


class SiteWidth(_Frozen):
    """A site the adapter covers (timm module path) and its number of channels C."""

    name: Annotated[str, Field(min_length=1, max_length=256)]
    width: Annotated[int, Field(ge=1, le=1_000_000)]


class Preprocessing(_Frozen):
    """timm's evaluation transform: resize the short side, centre-crop, scale to [0, 1], normalise."""

    height: Annotated[int, Field(ge=8, le=4096)]
    width: Annotated[int, Field(ge=8, le=4096)]
    mean: tuple[Finite, Finite, Finite]
    std: tuple[Finite, Finite, Finite]
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    crop_pct: Annotated[float, Field(gt=0, le=1)] = 0.875
    crop_mode: Literal["center", "squash"] = "center"

    @model_validator(mode="after")
    def _std_is_positive(self) -> Self:
        if min(self.std) <= 0:
            raise ValueError("std must be positive")
        return self


class Training(_Frozen):
    """How the adapter came to be. Free-form values are JSON scalars, lists or objects."""

    dataset: str
    dataset_digest: str | None = None
    train_images: Annotated[int, Field(ge=0)]
    val_images: Annotated[int, Field(ge=0)]
    seed: int
    recipe: dict[str, JsonValue]
    metrics: dict[str, Finite]
    packages: dict[str, str]
    command: str | None = None
    started: str | None = None
    seconds: Finite | None = None

    @model_validator(mode="after")
    def _recipe_is_json(self) -> Self:
        json.dumps(self.recipe, allow_nan=False)
        return self


class Probe(_Frozen):
    """The logits [K] this adapter gives on a fixed synthetic image, made by `generator`, never stored.

    `spread` is how far logits of such a head lie apart as a rule, root mean square over classes of
    ‖weight‖·‖features‖/√D: the unit of tolerances, since the logits themselves may happen to be close.
    """

    generator: Literal["ssfserve-probe-1"] = "ssfserve-probe-1"
    dtype: Literal["float32", "bfloat16", "float16"]
    logits: tuple[Finite, ...]
    spread: Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Manifest(_Frozen):
    """Everything about an adapter except its numbers. Stored as JSON in the adapter file's metadata."""

    format_version: Literal[1] = 1
    method: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
    backbone: BackboneRef
    sites: tuple[SiteWidth, ...]
    head_width: Annotated[int, Field(ge=1, le=1_000_000)]
    labels: Annotated[tuple[Label, ...], Field(min_length=1, max_length=MAX_CLASSES)]
    preprocessing: Preprocessing
    probe: Probe
    training: Training | None = None

    @property
    def num_classes(self) -> int:
        return len(self.labels)

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        names = [site.name for site in self.sites]
        if len(set(names)) != len(names):
            raise ValueError("a site is named twice")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("a label is named twice")
        if len(self.probe.logits) != len(self.labels):
            raise ValueError(f"{len(self.probe.logits)} probe logits for {len(self.labels)} labels")
        return self

    def to_json(self) -> str:
        """Return canonical JSON: equal manifests give equal text, and `from_json` gives an equal manifest."""
        return json.dumps(
            self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), allow_nan=False
        )

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Parse strictly: no key twice, no number written as text.

        Raises:
            ManifestInvalid: If the text is not JSON or breaks a rule; the message names the field.
        """
        try:
            data = text.encode() if isinstance(text, str) else text
            strict_json.loads(data)
            return cls.model_validate_json(data, strict=True)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "manifest"
            raise ManifestInvalid(f"{where[:120]}: {first['msg'][:200]}") from error
        except ValueError as error:
            raise ManifestInvalid(f"it cannot be read as JSON: {error}") from error

"""Bodies of requests and answers, as `/docs` shows them. Answers of predictions are built in `answering`."""

from typing import Annotated, Literal, Self

from fastapi import Path
from pydantic import BaseModel, ConfigDict, Field, model_validator

from adapters.manifest import Manifest, Preprocessing
from registry.models import NAME_PATTERN, AliasMove, AuditEntry, Task
from server.contracts import BackboneInfo, Tier
from server.queries import MAX_NUMBER

DIGEST = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"

TaskName = Annotated[str, Path(pattern=NAME_PATTERN, examples=["pets"])]
AliasName = Annotated[str, Path(pattern=NAME_PATTERN, examples=["production"])]
VersionNumber = Annotated[int, Path(ge=1, le=MAX_NUMBER)]


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Error(_Body):
    """Every error of this server. `error` is for people, `error_type` for programs."""

    error: str
    error_type: str


class Prediction(_Body):
    label: Annotated[str, Field(examples=["tabby"])]
    index: Annotated[int, Field(examples=[3])]
    probability: Annotated[float, Field(ge=0, le=1, examples=[0.93])]


class Predictions(_Body):
    """The classes of one image by one version of one task, most probable first."""

    task: Annotated[str, Field(examples=["pets"])]
    version: Annotated[int, Field(examples=[2])]
    digest: Annotated[str, Field(description="sha256 of the adapter file.", examples=[DIGEST])]
    predictions: tuple[Prediction, ...]
    logits: Annotated[tuple[float, ...] | None, Field(description="By class index, with `logits=true`.")] = (
        None
    )


class Row(Predictions):
    image: Annotated[int, Field(description="Index of the image in the request.", examples=[0])]


class RowError(Error):
    """A row that failed, with the status it would have had alone."""

    image: Annotated[int, Field(examples=[1])]
    task: Annotated[str, Field(description="As the request named it.", examples=["pets@canary"])]
    status: Annotated[int, Field(examples=[422])]


class RowRequest(_Body):
    image: Annotated[int, Field(ge=0, description="Index into `images`.")]
    task: Annotated[str, Field(max_length=150, description="`task`, `task@alias` or `task:version`.")]


class BatchRequest(_Body):
    """Images in base64, and either `tasks` (every image for every task) or `rows` (chosen pairs)."""

    images: Annotated[list[str], Field(min_length=1)]
    tasks: Annotated[list[Annotated[str, Field(max_length=150)]] | None, Field(min_length=1)] = None
    rows: Annotated[list[RowRequest] | None, Field(min_length=1)] = None

    @model_validator(mode="after")
    def _has_one_form(self) -> Self:
        if (self.tasks is None) == (self.rows is None):
            raise ValueError("give either `tasks` or `rows`")
        return self


class AliasRequest(_Body):
    """`expected`: the version the alias must name now, null for none; left out, nothing is checked."""

    version: Annotated[int, Field(strict=True, ge=1, le=MAX_NUMBER)]
    expected: Annotated[int | None, Field(strict=True, ge=1, le=MAX_NUMBER)] = None


class Alias(AliasMove):
    task: str
    confirmed_by: Annotated[
        tuple[str, ...] | None,
        Field(description="With `wait`: the replicas that have applied the move, all that can be reached."),
    ] = None


class AliasHistory(_Body):
    task: str
    alias: str
    version: Annotated[int | None, Field(description="What it names now; null if it is gone.")]
    moves: Annotated[tuple[AliasMove, ...], Field(description="Latest first.")]


class Uploaded(_Body):
    task: str
    version: int
    digest: Annotated[str, Field(examples=[DIGEST])]
    size: int
    production: Annotated[bool, Field(description="Whether `production` names this version now.")]


class VersionSummary(_Body):
    """A version; `tier`, `pinned` and `last_used` (UTC seconds) tell of the replica that answers."""

    version: int
    digest: Annotated[str, Field(examples=[DIGEST])]
    size: int
    created: float
    method: Annotated[str, Field(examples=["ssf"])]
    num_classes: int
    aliases: tuple[str, ...]
    tier: Tier
    pinned: bool
    last_used: float | None


class VersionDetail(VersionSummary):
    task: str
    manifest: Manifest


class TaskDetail(_Body):
    task: str
    created: float
    latest: int | None
    aliases: dict[str, int]
    labels: Annotated[tuple[str, ...] | None, Field(description="Of `production`.")]
    versions: tuple[VersionSummary, ...]
    next_after: Annotated[int | None, Field(description="`after` of the next page; null at the end.")]


class TaskPage(_Body):
    tasks: tuple[Task, ...]
    next_after: Annotated[str | None, Field(description="`after` of the next page; null at the end.")]


class AuditPage(_Body):
    entries: Annotated[tuple[AuditEntry, ...], Field(description="Latest first.")]
    next_after: Annotated[int | None, Field(description="`after` of the next page; null at the end.")]


class Prefetched(_Body):
    task: str
    version: int
    digest: Annotated[str, Field(examples=[DIGEST])]
    tier_before: Tier


class Pinned(_Body):
    task: str
    version: int
    digest: Annotated[str, Field(examples=[DIGEST])]
    pinned: bool


class ReplicaStatus(_Body):
    """A replica that follows the registry, on any host. `behind`: events it has not told to have applied."""

    replica: Annotated[str, Field(examples=["node7-4242-9f86d081"])]
    answers: Annotated[bool, Field(description="Whether it is the one that answers this call.")]
    behind: Annotated[int, Field(ge=0, examples=[0])]
    silent_seconds: Annotated[
        float, Field(description="For how long it has told nothing; it is gone after `lease_seconds`.")
    ]
    lease_seconds: float


class Replicas(_Body):
    replicas: tuple[ReplicaStatus, ...]


class Backbone(_Body):
    """The frozen model that all tasks share.

    `sites` maps each site to its channels, in forward order. `memory` tells what a GPU's memory was set aside
    for at start, in bytes; on a CPU it is empty.
    """

    name: str
    fingerprint: str
    source: str
    family: str
    executor: str
    device: str
    dtype: str
    parameters: int
    head_width: int
    preprocessing: Preprocessing
    sites: dict[str, int]
    slots: int
    memory: dict[str, int]

    @classmethod
    def of(cls, info: BackboneInfo) -> "Backbone":
        shown = {name: getattr(info, name) for name in cls.model_fields}
        return cls(**shown | {"sites": dict(info.sites), "memory": dict(info.memory)})


class Health(_Body):
    status: Literal["ok"] = "ok"


class Ready(_Body):
    status: Literal["ready"] = "ready"
    registry_staleness_seconds: Annotated[float, Field(examples=[0.1])]


class NotReadyYet(Error):
    status: Literal["starting", "draining"]
    registry_staleness_seconds: Annotated[float | None, Field(description="Null before it first answered.")]

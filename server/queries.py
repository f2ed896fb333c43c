"""Query parameters of the routes that must be quick, read and documented from one model.

FastAPI's own reading costs about 30 µs for each parameter of each request; this costs 5 for all of them, and
refuses names it does not know instead of passing over a misspelt one.
"""

from typing import Annotated, Any, TypeVar
from urllib.parse import parse_qsl

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from registry.models import NAME_PATTERN
from server.errors import RequestInvalid, ValueInvalid

MAX_NUMBER = 2**31 - 1
MAX_FIELDS = 32

Q = TypeVar("Q", bound="Query")


class Query(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Selector(Query):
    """Which version of the task; `production` if nothing is said."""

    version: Annotated[int | None, Field(ge=1, le=MAX_NUMBER, description="A version by number.")] = None
    alias: Annotated[
        str | None,
        Field(pattern=NAME_PATTERN, description="An alias; `production` if neither is given."),
    ] = None

    @model_validator(mode="after")
    def _names_one(self) -> "Selector":
        if self.version is not None and self.alias is not None:
            raise RequestInvalid("`version` and `alias` exclude each other")
        return self


class Names(Query):
    """A page of names."""

    after: Annotated[str | None, Field(max_length=64, description="Begin behind this name.")] = None
    limit: Annotated[int, Field(ge=1, le=1000, description="Length of the page.")] = 100


class Numbers(Query):
    """A page of version numbers."""

    after: Annotated[int, Field(ge=0, le=MAX_NUMBER, description="Begin behind this version.")] = 0
    limit: Annotated[int, Field(ge=1, le=1000, description="Length of the page.")] = 100


class AuditQuery(Query):
    """A page of the audit log."""

    task: Annotated[str | None, Field(pattern=NAME_PATTERN, description="Only changes of this task.")] = None
    after: Annotated[
        int | None, Field(ge=1, le=2**53, description="Begin behind this number, with older changes.")
    ] = None
    limit: Annotated[int, Field(ge=1, le=1000, description="Length of the page.")] = 100


class Recent(Query):
    limit: Annotated[int, Field(ge=1, le=1000, description="How many, latest first.")] = 100


class Upload(Query):
    promote: Annotated[bool, Field(description="Make it `production` even if the task has one.")] = False


class Waited(Query):
    wait: Annotated[
        bool,
        Field(
            description="Answer only when no replica will answer a later request with the old version; 504 "
            "if one has not confirmed that before the deadline."
        ),
    ] = False


class Shown(Query):
    """What of a prediction is shown."""

    top_k: Annotated[
        int, Field(ge=1, le=MAX_NUMBER, description="How many classes, at most all of them.")
    ] = 5
    logits: Annotated[bool, Field(description="Add the raw logits of all classes.")] = False


class PredictQuery(Selector, Shown):
    pass


def query_of(request: Request, model: type[Q]) -> Q:
    """Read the query string.

    Raises:
        ValueInvalid: Naming the parameter.
        RequestInvalid: If two parameters contradict each other.
    """
    raw: bytes = request.scope["query_string"]
    if not raw:
        return model()
    try:
        pairs = parse_qsl(raw.decode("latin-1"), keep_blank_values=True, max_num_fields=MAX_FIELDS)
        return model.model_validate(dict(pairs))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        raise ValueInvalid("query." + ".".join(map(str, first["loc"])), first["msg"]) from None
    except ValueError:
        raise ValueInvalid("query", f"more than {MAX_FIELDS} parameters") from None


def parameters(model: type[Query]) -> list[dict[str, Any]]:
    """Document a model's fields as OpenAPI parameters."""
    return [_parameter(name, schema) for name, schema in model.model_json_schema()["properties"].items()]


def _parameter(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    shown = {key: value for key, value in schema.items() if key not in {"title", "description"}}
    return {
        "name": name,
        "in": "query",
        "required": False,
        "description": schema["description"],
        "schema": shown,
    }

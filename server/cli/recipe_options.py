"""The options of `train` that make a recipe: one for each of its fields, with the field's own description."""

import inspect
from collections.abc import Callable, Mapping
from types import NoneType
from typing import Annotated, Any, TypeVar, get_args

import typer
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from adapters.presets import preset as values_of
from adapters.recipe import Recipe

Command = TypeVar("Command", bound=Callable[..., Any])

METHODS = "ssf, bias, norm or linear; for comparison full, vpt-deep or adapter."
NOT_HERE = frozenset({"method", "preset", "dtype", "device", "threads"})  # `train` names them itself


def with_recipe_options(command: Command) -> Command:
    """Give a command that ends in `**values` an option for each field; those that were given are not None."""
    own = inspect.signature(command)
    kept = [p for p in own.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    options = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                _kind(field) | None, typer.Option(help=field.description, show_default=False)
            ],
        )
        for name, field in Recipe.model_fields.items()
        if name not in NOT_HERE
    ]
    command.__signature__ = own.replace(parameters=[*kept, *options])  # type: ignore[attr-defined]
    command.__annotations__ |= {option.name: option.annotation for option in options}
    return command


def _kind(field: FieldInfo) -> Any:
    """Return what a field's option takes: int, float, str or bool."""
    hints = [hint for hint in get_args(field.annotation) or (field.annotation,) if hint is not NoneType]
    return hints[0] if isinstance(hints[0], type) else type(hints[0])  # of a Literal, the type of its words


def make_recipe(
    method: str, preset: str | None, given: Mapping[str, Any], *, family: str, where: Mapping[str, Any]
) -> Recipe:
    """Return the recipe of a method and a preset, changed by what was given.

    Raises:
        typer.BadParameter: Naming the option that is at fault.
    """
    values: dict[str, Any] = Recipe.defaults(method)
    if preset is not None:
        try:
            values |= values_of(preset, family=family, method=method)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--recipe") from None
    values |= {name: value for name, value in given.items() if value is not None}
    try:
        return Recipe(method=method, **values, **where)  # type: ignore[arg-type]  # pydantic checks them
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        option = "--" + str(first["loc"][0]).replace("_", "-") if first["loc"] else "options"
        raise typer.BadParameter(first["msg"], param_hint=option) from None

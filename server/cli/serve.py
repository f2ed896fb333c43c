"""The verb `serve`. Its options are the settings, one each, made from `Settings`."""

import inspect
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic import ByteSize
from pydantic.fields import FieldInfo

from server.settings import PREFIX, Settings

METAVARS: dict[Any, str] = {int: "N", ByteSize: "SIZE", Path: "PATH"}

app = typer.Typer()


def serve(**given: str | bool | None) -> None:
    """Start a server on this host and run it until Ctrl-C or SIGTERM.

    Every option is also a setting, in the environment or in the YAML or TOML file that SSFSERVE_CONFIG names:
    --max-batch is SSFSERVE_MAX_BATCH. Options win over the environment, which wins over the file.
    """
    from server import preflight
    from server.ray_launcher import launch

    settings = Settings.load({name: value for name, value in given.items() if value is not None})
    preflight.check(settings)
    sys.exit(launch(settings))


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    kind = bool if field.annotation is bool else str
    option = typer.Option(
        help=f"{field.description}{_default(field)}",
        metavar=None if kind is bool else _metavar(field),
        show_default=False,
    )
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _default(field: FieldInfo) -> str:
    if field.default is None or isinstance(field.default, bool):
        return ""
    value = field.default.human_readable() if isinstance(field.default, ByteSize) else field.default
    return f" (default: {value})"


def _metavar(field: FieldInfo) -> str:
    if get_origin(field.annotation) is Literal:
        return "|".join(get_args(field.annotation))
    kinds = (field.annotation, *get_args(field.annotation))
    return next((METAVARS[kind] for kind in kinds if kind in METAVARS), "TEXT")


_parameters = [_parameter(name, field) for name, field in Settings.model_fields.items()]
serve.__signature__ = inspect.Signature(_parameters)  # type: ignore[attr-defined]
serve.__annotations__ = {parameter.name: parameter.annotation for parameter in _parameters}
app.command(epilog=f"Sizes take units, as in 64MiB. Example: {PREFIX}PORT=9000 ssfserve serve")(serve)

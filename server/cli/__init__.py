"""The command `ssfserve`. One verb imports one module, and no module loads torch or Ray when imported.

A verb's module holds `app`, a `typer.Typer` with the verb registered; what is heavy is imported inside the
verb. To add a verb, name its module in MODULES.
"""

import sys
from collections.abc import Sequence
from importlib import import_module, metadata
from typing import Annotated

import typer

CLIENT = "server.cli.client"
TRAIN = "server.cli.train"
MODULES = {
    "serve": "server.cli.serve",
    "doctor": "server.cli.doctor",
    "train": TRAIN,
    "eval": TRAIN,
    "backbones": TRAIN,
    "push": CLIENT,
    "tasks": CLIENT,
    "promote": CLIENT,
    "rollback": CLIENT,
    "delete": CLIENT,
    "predict": "server.cli.predict",
    "keys": "server.cli.keys",
}  # in the order of `--help`


def main() -> None:
    """Run the command; an error made on purpose is one line on stderr and exit code 1."""
    arguments = sys.argv[1:]
    try:
        build(arguments)(arguments, prog_name="ssfserve")
    except Exception as error:
        if not _is_ours(error):
            raise
        typer.echo(f"ssfserve: {error}", err=True)
        sys.exit(1)


def build(arguments: Sequence[str] = ()) -> typer.Typer:
    """Return the app for some arguments: with the module of the verb they begin with, or with all."""
    verb = next(iter(arguments), "")
    app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, callback=_top)
    for module in [MODULES[verb]] if verb in MODULES else dict.fromkeys(MODULES.values()):
        app.add_typer(import_module(module).app)
    return app


def _is_ours(error: Exception) -> bool:
    from adapters.errors import AdapterError
    from backbone.errors import BackboneError
    from registry.errors import RegistryError
    from server.errors import ServerError
    from server.http_client import ClientError

    return isinstance(error, AdapterError | BackboneError | ClientError | RegistryError | ServerError)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ssfserve {metadata.version('ssfserve')}")
        raise typer.Exit


def _top(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Serve thousands of image classifiers from one frozen vision backbone."""

"""The command `ssfserve`. One verb imports one module, and no module loads torch or Ray when imported.

A verb's module holds `app`, a `typer.Typer` with the verb registered; what is heavy is imported inside the
verb. To add a verb, put it into VERBS.
"""

import sys
from collections.abc import Sequence
from importlib import import_module, metadata
from typing import Annotated, NamedTuple

import typer


class Verb(NamedTuple):
    """Where a verb is, and its line in `--help`: the first of its docstring, so that nothing is imported."""

    module: str
    help: str


CLIENT, TRAIN = "server.cli.client", "server.cli.train"
VERBS = {
    "serve": Verb("server.cli.serve", "Start a server on this host and run it until Ctrl-C or SIGTERM."),
    "doctor": Verb(
        "server.cli.doctor",
        "Check this host and the settings, and say what to do; exit code 1 if a server could not run.",
    ),
    "train": Verb(TRAIN, "Train an adapter for a data set and write it to one file."),
    "eval": Verb("server.cli.evaluate", "Measure an adapter on a data set, as the server would answer."),
    "inspect": Verb(
        "server.cli.inspect",
        "Show what an adapter file holds, how it was trained, and how far it moved by depth.",
    ),
    "merge": Verb(
        "server.cli.merge",
        "Fold an adapter into its backbone: plain timm weights with no SSF left.",
    ),
    "export": Verb(
        "server.cli.export",
        "Write an ONNX graph: an adapter merged into its backbone, or all tasks in one graph.",
    ),
    "convert": Verb("server.cli.convert", "Make an adapter of what another tool has trained."),
    "backbones": Verb(
        "server.cli.backbones", "List models that are known to work, or tell where SSF acts in one."
    ),
    "push": Verb(CLIENT, "Upload an adapter file as the next version of a task."),
    "tasks": Verb(CLIENT, "List the tasks, or the versions of one."),
    "promote": Verb(CLIENT, "Point an alias at a version; `production` is the one that serves by default."),
    "rollback": Verb(CLIENT, "Point an alias at the version it named before."),
    "delete": Verb(CLIENT, "Delete a version, or a task with all its versions."),
    "predict": Verb("server.cli.predict", "Classify images."),
    "audit": Verb("server.cli.audit", "Show who changed what: versions, aliases, tasks and keys."),
    "keys": Verb("server.cli.keys", "Make, list and delete API keys."),
    "registry": Verb("server.cli.registry", "Copy, check and clean a registry."),
}  # in the order of `--help`


def main() -> None:
    """Run the command; an error made on purpose, or of a file, is one line on stderr and exit code 1."""
    arguments = sys.argv[1:]
    try:
        build(arguments)(arguments, prog_name="ssfserve")
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:
            typer.echo(f"ssfserve: {error.filename}: {error.strerror}", err=True)
        elif _is_ours(error):
            typer.echo(f"ssfserve: {error}", err=True)
        else:
            raise
        sys.exit(1)


def build(arguments: Sequence[str] = ()) -> typer.Typer:
    """Return the app for some arguments: with the verb they name, or with names and help of all."""
    verb = VERBS.get(next((word for word in arguments if not word.startswith("-")), ""))
    app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, callback=_top)
    if verb is not None:
        app.add_typer(import_module(verb.module).app)
        return app
    for name, listed in VERBS.items():
        app.command(name, help=listed.help)(_not_imported)
    return app


def _not_imported() -> None:
    raise AssertionError("a verb that is named is imported")


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

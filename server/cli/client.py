"""Verbs that speak to a running server: push, tasks, promote, rollback, delete."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from server.cli.options import (
    DEFAULT_ALIAS,
    Alias,
    AsJson,
    Key,
    TaskName,
    Url,
    VersionNumber,
    connect,
)
from server.cli.output import show_json, show_table

app = typer.Typer()

Wait = Annotated[
    bool, typer.Option("--wait", help="Return only when no replica will answer with the old version.")
]

AdapterFile = Annotated[
    Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, readable=True, show_default=False)
]


@app.command()
def push(
    *,
    file: AdapterFile,
    task: Annotated[str, typer.Option(help="The task that gets the new version.", show_default=False)],
    promote: Annotated[bool, typer.Option("--promote", help="Serve it at once.")] = False,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Upload an adapter file as the next version of a task."""
    content = file.read_bytes()
    _refuse_models(content)
    with connect(url, key) as client:
        answer = client.push(task, content, promote=promote)
    if as_json:
        show_json(answer)
    else:
        typer.echo(f"{task} version {answer['version']} ({answer['digest']})")
        if not answer["production"]:
            typer.echo(
                f"another version serves; to serve this one: ssfserve promote {task} {answer['version']}"
            )


def _refuse_models(content: bytes) -> None:
    """Say of a whole model what it is; a server would only say that it is too large."""
    from adapters.errors import AdapterFileInvalid
    from adapters.header import OTHER_KEYS, read_header

    try:
        read_header(content)
    except AdapterFileInvalid as error:
        if error.detail in OTHER_KEYS.values():
            raise


@app.command()
def tasks(
    task: Annotated[str | None, typer.Argument(metavar="[TASK]", help="Show one task's versions.")] = None,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """List the tasks, or the versions of one."""
    with connect(url, key) as client:
        if task is not None:
            detail = client.task(task)
            show_json(detail) if as_json else _show_versions(detail)
            return
        found = list(client.tasks())
    if as_json:
        show_json(found)
    else:
        rows = ((t["task"], t["versions"], _aliases(t["aliases"])) for t in found)
        show_table(("TASK", "VERSIONS", "ALIASES"), rows)


@app.command()
def promote(
    *,
    task: TaskName,
    version: VersionNumber,
    alias: Alias = DEFAULT_ALIAS,
    expected: Annotated[
        int | None, typer.Option(min=1, help="Move it only if it names this version now.")
    ] = None,
    wait: Wait = False,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Point an alias at a version; `production` is the one that serves by default."""
    with connect(url, key) as client:
        _show_move(task, client.promote(task, version, alias, expected=expected, wait=wait), as_json)


@app.command()
def rollback(
    *,
    task: TaskName,
    alias: Alias = DEFAULT_ALIAS,
    wait: Wait = False,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Point an alias at the version it named before."""
    with connect(url, key) as client:
        _show_move(task, client.rollback(task, alias, wait=wait), as_json)


@app.command()
def delete(
    task: TaskName,
    version: Annotated[int | None, typer.Argument(metavar="[VERSION]", min=1)] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """Delete a version, or a task with all its versions."""
    what = f"task {task} with all its versions" if version is None else f"version {version} of task {task}"
    if not yes:
        typer.confirm(f"Delete {what}?", abort=True, err=True)
    with connect(url, key) as client:
        client.delete(task, version)
    typer.echo(f"deleted {what}")


def _show_versions(detail: dict[str, Any]) -> None:
    rows = (
        (v["version"], v["digest"][:12], _when(v["created"]), v["tier"], " ".join(v["aliases"]))
        for v in detail["versions"]
    )
    show_table(("VERSION", "DIGEST", "CREATED", "TIER", "ALIASES"), rows)


def _show_move(task: str, move: dict[str, Any], as_json: bool) -> None:
    if as_json:
        show_json(move)
        return
    before = "" if move.get("previous") is None else f" (was version {move['previous']})"
    typer.echo(f"{task}: {move['alias']} is version {move['version']}{before}")


def _aliases(aliases: dict[str, int]) -> str:
    return " ".join(f"{name}={number}" for name, number in sorted(aliases.items()))


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")

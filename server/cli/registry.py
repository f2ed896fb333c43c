"""The verb `registry`: copy, check and clean a registry, without a server."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from server.cli.opened import DataDir, RegistryUrl, local_actor, opened, with_registry
from server.cli.output import printable, warn

if TYPE_CHECKING:
    from registry.checking import Report
    from registry.copying import Copied
    from registry.models import Version
    from registry.upkeep import KeptRegistry

SPARED_SECONDS = 3600.0

app = typer.Typer()
registry = typer.Typer(no_args_is_help=True, help="Copy, check and clean a registry.")
app.add_typer(registry, name="registry")


@registry.command()
def copy(
    source: Annotated[str, typer.Argument(metavar="FROM", help="Registry URL.", show_default=False)],
    target: Annotated[str, typer.Argument(metavar="TO", help="Registry URL.", show_default=False)],
    data_dir: DataDir = None,
) -> None:
    """Copy files, versions with their numbers, aliases with their past, and API keys; not the audit log.

    Write nothing to FROM meanwhile. It may be repeated after it was cut off.
    """

    async def run(from_: "KeptRegistry") -> "Copied":
        from registry.copying import copy

        async with opened(target, data_dir) as to:
            with _progress() as done:
                return await copy(from_, to, done, by=local_actor())

    copied = with_registry(source, data_dir, run)
    typer.echo(f"{copied.tasks} tasks, {copied.versions} versions and {copied.keys} keys are there now")
    if copied.changed:
        warn("the source was written to during the copy; run it again")
        raise typer.Exit(1)


@registry.command()
def check(registry: RegistryUrl = None, data_dir: DataDir = None) -> None:
    """Read every file against its digest, every alias and every event; exit code 1 if something is wrong."""

    async def run(looked_at: "KeptRegistry") -> "Report":
        from registry.checking import check

        with _progress() as done:
            return await check(looked_at, done)

    report = with_registry(registry, data_dir, run)
    for line in _lines(report):
        typer.echo(printable(line))
    if report.faults:
        raise typer.Exit(1)


@registry.command()
def gc(
    registry: RegistryUrl = None,
    data_dir: DataDir = None,
    older_than: Annotated[
        float, typer.Option(min=0, help="Spare what was begun in the last so many seconds.")
    ] = SPARED_SECONDS,
) -> None:
    """Remove files that no version has, as crashes leave them. Safe beside uploads."""
    removed = with_registry(registry, data_dir, lambda cleaned: cleaned.reclaim(older_than=older_than))
    typer.echo(f"removed {removed} files")


def _lines(report: "Report") -> Iterator[str]:
    events = "events trimmed" if report.events is None else f"{report.events} events"
    yield (
        f"{report.tasks} tasks, {report.versions} versions ({report.bytes:,} bytes), "
        f"{report.aliases} aliases, {report.keys} keys, {events}"
    )
    if report.moving:
        yield f"written to meanwhile, so not compared with their events: {len(report.moving)} tasks"
    yield from (f"risk   {risk}" for risk in report.risks)
    yield from (f"FAULT  {fault}" for fault in report.faults)
    yield f"{len(report.faults)} faults" if report.faults else "all is well"


@contextmanager
def _progress() -> "Iterator[Callable[[Version], None]]":
    """Count versions on a terminal's stderr."""
    from tqdm import tqdm

    with tqdm(unit=" versions", disable=None, leave=False) as bar:

        def done(_: "Version") -> None:
            bar.update()

        yield done

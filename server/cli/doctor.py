"""The verb `doctor`: is this host fit for a server?"""

from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def doctor(
    quick: Annotated[bool, typer.Option("--quick", help="Do not load the backbone.")] = False,
) -> None:
    """Check this host and the settings, and say what to do; exit code 1 if a server could not run."""
    from server.cli.output import printable
    from server.doctor import Level, examine
    from server.settings import Settings

    worst_is_fail = False
    for finding in examine(Settings.load(), load=not quick):
        worst_is_fail |= finding.level is Level.FAIL
        typer.echo(f"{finding.level:<5} {finding.subject:<9} {printable(finding.found)}")
        if finding.advice:
            typer.echo(f"{'':<15} {finding.advice}")
    if worst_is_fail:
        raise typer.Exit(1)

"""Options that several verbs share, and what they lead to."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from server.http_client import Client

DEFAULT_ALIAS = "production"  # registry.models.PRODUCTION; importing that costs 0.2 s

Url = Annotated[
    str | None,
    typer.Option(
        envvar="SSFSERVE_URL",
        help="Where the server listens; else this machine, at SSFSERVE_PORT.",
        show_default=False,
    ),
]
Key = Annotated[
    str | None,
    typer.Option(envvar="SSFSERVE_KEY", help="API key; none is needed on loopback.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Alias = Annotated[str, typer.Option(help="The alias that is moved.")]
TaskName = Annotated[str, typer.Argument(metavar="TASK", help="Name of the task.", show_default=False)]
VersionNumber = Annotated[int, typer.Argument(metavar="VERSION", min=1, show_default=False)]


def connect(url: str | None, key: str | None) -> "Client":
    """Return a client; use it as a context manager. Without a URL it asks the server on this machine."""
    from server.http_client import Client  # httpx costs 0.2 s: not for `--help`
    from server.settings import Settings

    return Client(url or f"http://127.0.0.1:{Settings.load().port}", key)

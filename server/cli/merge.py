"""The verb `merge`: an adapter folded into plain timm weights. It needs no server."""

import typer

from server.cli.frozen import AdapterFile, Force, Out, Source, load_for, refuse_existing

app = typer.Typer()


@app.command()
def merge(*, file: AdapterFile, out: Out, backbone_source: Source = None, force: Force = False) -> None:
    """Fold an adapter into its backbone: plain timm weights with no SSF left."""
    from adapters.file import digest, read_adapter
    from adapters.merged_file import merge_checked, write_merged
    from adapters.saving import replace_file

    refuse_existing(out, force=force, inputs=[file])
    content = file.read_bytes()
    adapter = read_adapter(content)
    backbone = load_for(adapter.manifest, backbone_source)
    merged = merge_checked(backbone, adapter)
    data = write_merged(merged, backbone, adapter, digest(content))
    replace_file(out, data)
    typer.echo(f"{out} ({len(data) / 1e6:.1f} MB, {digest(data)[:12]})")
    typer.echo(f"{merged.call[:-1]}, checkpoint_path={str(out)!r})")

"""The commands ``loopwise report`` and ``loopwise serve``: the page of a run as a file, or live."""

from __future__ import annotations

import click

from loopwise.errors import LoopwiseError

from .page import report
from .server import Server, Source

OPEN = (
    "warning: everybody who reaches this machine over the network can read the page, without a password and unencrypted; "
    "leave --host out, and forward the port over SSH, to be the only one"
)


@click.command("report")
@click.argument("run")
@click.option("-o", "--out", help="File or fsspec URL. Default: report.html in the run's folder.")
@click.option("--compare", metavar="OTHER", help="Another run to compare with.")
def write(run: str, out: str | None, compare: str | None) -> None:
    """Write the page of RUN as one HTML file that works offline."""
    try:
        click.echo(report(run, out, compare))
    except (LoopwiseError, OSError) as error:
        raise click.ClickException(f"\n{error}") from error


@click.command("serve")
@click.argument("run")
@click.option("--port", default=0, show_default=True, help="Port to listen on; 0 takes a free one.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--name", "names", multiple=True, help="Name by which requests may name this machine; may be repeated."
)
@click.option("--compare", metavar="OTHER", help="Another run to compare with.")
def serve(run: str, port: int, host: str, names: tuple[str, ...], compare: str | None) -> None:
    """Serve the page of RUN and update it during training, until Ctrl-C."""
    try:
        server = Server(Source(run, compare), host, port, names)
    except (LoopwiseError, OSError, OverflowError) as error:
        raise click.ClickException(f"\n{error}") from error
    with server:
        if not server.guarded:
            click.echo(OPEN, err=True)
        click.echo(f"{server.url} (press Ctrl-C to stop)")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            click.echo("stopped")

"""The commands ``loopwise report`` and ``loopwise serve``: the page of a run as a file, or live."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence

import click
import fsspec

from loopwise.errors import LoopwiseError
from loopwise.run import is_local

from .listing import Folder
from .page import report
from .server import Server
from .source import Page, Source

OPEN = (
    "warning: everybody who reaches this machine over the network can read the page, without a password and unencrypted; "
    "leave --host out, and forward the port over SSH, to be the only one"
)


@click.command("report")
@click.argument("run")
@click.option("-o", "--out", help="File or fsspec URL. Default: report.html in the run's folder.")
@click.option(
    "--compare", metavar="OTHER", multiple=True, help="Another run to compare with; may be repeated."
)
def write(run: str, out: str | None, compare: tuple[str, ...]) -> None:
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
@click.option(
    "--compare", metavar="OTHER", multiple=True, help="Another run to compare with; may be repeated."
)
def serve(run: str, port: int, host: str, names: tuple[str, ...], compare: tuple[str, ...]) -> None:
    """Serve the page of RUN, or a list of the runs in the folder RUN, and update it during training, until Ctrl-C."""
    try:
        server = Server(source(run, compare), host, port, names)
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


def source(run: str, compare: Sequence[str] = ()) -> Page:
    """Return the page of a run, or the list of the runs in a folder."""
    fs, path = fsspec.core.url_to_fs(run)
    path = path.rstrip("/") if not is_local(fs) else os.path.normpath(path)
    if compare or fs.exists(f"{path}/run.json") or not fs.glob(f"{glob.escape(path)}/*/run.json"):
        return Source(run, compare)
    return Folder(run)

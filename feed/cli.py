"""Commands ``loopwise feed ...``."""

from __future__ import annotations

import sys

import click

from loopwise.cli import Commands

from .launcher.group import Group, parse
from .launcher.start import launch as run_groups


@click.group("feed", cls=Commands)
def command() -> None:
    """Load batches where the processors are, and train where the accelerator is."""


@command.command(
    "launch", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}
)
@click.option(
    "--group", "groups", multiple=True, required=True, metavar="NAME=NODES", help="A group; give one or more."
)
@click.option("--train", metavar="NAME", help="The group that trains; default: the first one.")
@click.option(
    "--processes", type=int, default=1, help="Processes of the script on each host that trains, by torchrun."
)
@click.option("--folder", help="Folder of the job; default: runs/ and the name of the script.")
@click.option("--port", type=int, help="Port by which the processes that train find each other.")
@click.option(
    "--ready", type=int, help="Training starts when all hosts of the other groups listen on this port."
)
@click.option(
    "--ready-seconds", type=float, default=60.0, show_default=True, help="Time limit for --ready, in seconds."
)
@click.argument("script")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def launch(
    groups: tuple[str, ...],
    train: str | None,
    processes: int,
    folder: str | None,
    port: int | None,
    ready: int | None,
    ready_seconds: float,
    script: str,
    args: tuple[str, ...],
) -> None:
    """Run SCRIPT with ARGS on all hosts of all groups; exit with the status of training."""
    given = [parse(text) for text in groups]
    training = train or given[0].name
    given = [Group(one.name, one.nodes, processes) if one.name == training else one for one in given]
    status = run_groups(
        given,
        script,
        args,
        train=train,
        folder=folder,
        port=port,
        ready=ready,
        ready_seconds=ready_seconds,
    )
    sys.exit(status)

"""Commands ``loopwise feed ...``."""

from __future__ import annotations

import sys

import click

from loopwise.cli import Commands
from loopwise.errors import InputError
from loopwise.validate import one_of

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
    "--load",
    multiple=True,
    metavar="NAME",
    help="A group whose hosts load batches for RemoteDataLoader(..., group=NAME) instead of running SCRIPT.",
)
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
@click.option(
    "--cluster",
    metavar="ADDRESS",
    help="A running Ray cluster, whose nodes are the hosts: HOST:PORT, or auto; default: this machine.",
)
@click.argument("script")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def launch(
    groups: tuple[str, ...],
    train: str | None,
    load: tuple[str, ...],
    processes: int,
    folder: str | None,
    port: int | None,
    ready: int | None,
    ready_seconds: float,
    cluster: str | None,
    script: str,
    args: tuple[str, ...],
) -> None:
    """Run SCRIPT with ARGS on the hosts of all groups, but for --load; exit with the status of training."""
    given = [parse(text) for text in groups]
    training = train or given[0].name
    for name in load:
        one_of("--load", name, [one.name for one in given], fix=f"add --group {name}=1, or correct the name")
    given = [
        Group(one.name, one.nodes, processes if one.name == training else 1, one.name in load)
        for one in given
    ]
    status = run_groups(
        given,
        script,
        args,
        train=train,
        folder=folder,
        port=port,
        ready=ready,
        ready_seconds=ready_seconds,
        cluster=cluster,
    )
    sys.exit(status)


@command.command(
    "diagnose", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}
)
@click.option("--batches", type=int, default=20, show_default=True, help="Batches of each measurement.")
@click.option("--price", type=float, help="Price of this machine for an hour, in any currency.")
@click.option(
    "--larger", metavar="CPUS@PRICE", help="A machine with the same accelerators and more processors."
)
@click.option(
    "--host", default="36", show_default=True, metavar="CPUS[@PRICE]", help="A machine for the data group."
)
@click.option("--bandwidth", type=float, default=10.0, show_default=True, help="Between machines, in Gbit/s.")
@click.option("--run", help="Run folder in which the diagnosis is recorded, for its page.")
@click.argument("script")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def diagnose(
    batches: int,
    price: float | None,
    larger: str | None,
    host: str,
    bandwidth: float,
    run: str | None,
    script: str,
    args: tuple[str, ...],
) -> None:
    """Run SCRIPT with ARGS for some steps, and say whether loading its batches elsewhere pays."""
    from .diagnosis.script import diagnose_script  # imports torch, which launch does not need

    machine = None if larger is None else _machine("--larger", larger)
    if machine is not None and machine[1] is None:
        raise _wrong_machine("--larger", str(larger))
    result = diagnose_script(
        script,
        args,
        batches=batches,
        price=price,
        larger=None if machine is None else (machine[0], float(machine[1] or 0)),
        host=_machine("--host", host),
        bandwidth=bandwidth,
        run=run,
    )
    click.echo(result)


def _machine(option: str, value: str) -> tuple[int, float | None]:
    processors, at, price = value.partition("@")
    try:
        return int(processors), float(price) if at else None
    except ValueError:
        raise _wrong_machine(option, value) from None


def _wrong_machine(option: str, value: str) -> InputError:
    return InputError(
        f"{option} {value}",
        "CPUS@PRICE, a number of processors and a price for an hour",
        "the name of a machine, or a missing price",
        f"write for instance {option} 36@1.836",
    )

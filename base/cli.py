"""The ``loopwise`` command, which imports a subcommand only if it is called."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

from loopwise.errors import LoopwiseError

COMMANDS = {
    "debug": ("loopwise.debug.cli:command", "Read a saved run: findings, ls, show, diff, export, verify."),
    "demo": (
        "loopwise.examples.digits:command",
        "Compare a plain loop and Loopwise on real handwritten digits.",
    ),
    "doctor": ("loopwise.doctor:command", "Print versions, devices, and features that are missing or slow."),
    "feed": ("loopwise.feed.cli:command", "Run one script on groups of hosts that load and train."),
    "report": (
        "loopwise.report.command:write",
        "Write the page of a run as one HTML file that works offline.",
    ),
    "serve": ("loopwise.report.command:serve", "Serve the page of a run and update it during training."),
    "tune": ("loopwise.tune.cli:command", "Tune the hyperparameters of any program, from what it prints."),
}
"""Name -> (module:attribute of a click command, help)."""
INTERRUPTED = 130  # by which shells tell that Ctrl-C ended a program


class Commands(click.Group):
    """Group of a part's commands, which prints errors of Loopwise without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except LoopwiseError as error:
            raise click.ClickException(f"\n{error}") from error


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, attribute = COMMANDS[name][0].split(":")
        try:
            command: click.Command = getattr(importlib.import_module(module), attribute)
        except LoopwiseError as error:  # an extra is not installed
            raise click.ClickException(f"\n{error}") from error
        except KeyboardInterrupt:  # the imports take seconds
            told = f"interrupted while loopwise {name} was loading; nothing was begun or changed: call the same command again"
            click.echo(told, err=True)
            sys.exit(INTERRUPTED)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.command(cls=_Lazy)
@click.version_option(package_name="loopwise")
def main() -> None:
    """Drop-in parts for an ordinary PyTorch training loop."""

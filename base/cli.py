"""The ``loopwise`` command.  Subcommands are imported when they are called, not before."""

from __future__ import annotations

import importlib

import click

COMMANDS = {
    "debug": (
        "loopwise.debug.cli:command",
        "Read what a Watch saved: ls, show, diff, export, check.",
    ),
    "demo": (
        "loopwise.examples.digits:command",
        "Train on real handwritten digits, plain and sifted, and compare.",
    ),
    "doctor": (
        "loopwise.doctor:command",
        "Print versions, devices, what is installed and what will fall back.",
    ),
    "report": ("loopwise.report.command:write", "Render a run as one HTML page that works offline."),
    "watch": ("loopwise.report.command:watch", "Serve that page of a run live, while it goes on."),
}
"""Name -> (module:attribute of a click command, help).  A new part adds a row."""


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, attribute = COMMANDS[name][0].split(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.command(cls=_Lazy)
@click.version_option(package_name="loopwise")
def main() -> None:
    """Drop-in parts for an ordinary PyTorch training loop."""

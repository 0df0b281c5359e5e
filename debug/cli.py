"""Commands ``loopwise debug ...``, which inspect runs from the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from loopwise.cli import Commands
from loopwise.errors import InputError

from .read.compare import compare, only
from .read.export import WRITERS, export
from .read.query import fix_of_errors
from .read.saved_run import open_run
from .rules import RULES, at_least
from .rules.healthy_run import NAME as LIKE

LISTED = 1000
"""Largest number of listed tensors: ten thousand lines take seconds, and nobody reads them."""
WIDE = 250
"""Characters in a line if the output is no terminal, so that names stay whole."""


@click.group("debug", cls=Commands)
def command() -> None:
    """Inspect what a run saved, also while its training goes on."""


@command.command("ls")
@click.argument("run")
@click.option("--collection", help="List only this collection.")
@click.option("--regex", help="List only names that this regular expression is found in.")
@click.option("--step", type=int, help="List only names saved at this step.")
def list_tensors(run: str, collection: str | None, regex: str | None, step: int | None) -> None:
    """List state, steps and tensors of RUN."""
    saved = open_run(run)
    _console().print(str(saved), soft_wrap=True)
    with fix_of_errors("pass --step with a saved step, and --regex with brackets and dots escaped"):
        rows = [
            (name, tensor)
            for name in (saved.collections() if collection is None else [collection])
            for tensor in saved.names(regex, collection=name, step=step)
        ]
    _table(("collection", "tensor"), rows[:LISTED])
    if len(rows) > LISTED:
        click.echo(f"{len(rows) - LISTED:,} more: narrow it with --collection or --regex")


@command.command()
@click.argument("run")
@click.argument("name")
@click.option("--step", type=int, help="Step to show.  Default: the last one that has NAME.")
@click.option("--mode", help="Count steps within this mode.")
@click.option("--rank", type=int, help="Show what this rank saved.")
def show(run: str, name: str, step: int | None, mode: str | None, rank: int | None) -> None:
    """Show the tensor or scalar NAME of RUN at one step."""
    saved = open_run(run)
    fix = f"`loopwise debug ls {run}` lists steps and names; --step, --mode and --rank select what is shown"
    with fix_of_errors(fix):
        if step is None:
            steps = saved.steps(mode)
            has = (number for number in reversed(steps) if saved.has(name, number, mode=mode, rank=rank))
            step = next(has, steps[-1] if steps else 0)
        statistics = saved.statistics(name, step, mode=mode, rank=rank)
        try:
            value = saved.value(name, step, mode=mode, rank=rank)
        except InputError:  # only statistics were saved
            value = None
        record = saved.record(step, mode=mode, rank=rank)
    kind = [] if value is None else [("dtype", value.dtype), ("shape", tuple(value.shape))]
    head = [("step", f"{record['step']} ({record['mode']} {record['mode_step']})"), *record["marks"].items()]
    rows = [(key, f"{number:.6g}") for key, number in statistics.items()]
    _table((name, ""), [*head, *kind, *rows])
    if value is not None:
        click.echo(str(value))


@command.command()
@click.argument("run")
@click.argument("other")
@click.option("--rtol", default=0.0, help="Allowed difference, as a fraction of the value in OTHER.")
@click.option("--atol", default=0.0, help="Allowed absolute difference besides.")
@click.option("--collection", help="Compare only this collection.")
@click.option("--regex", help="Compare only names that this regular expression is found in.")
def diff(run: str, other: str, rtol: float, atol: float, collection: str | None, regex: str | None) -> None:
    """Show the first step, and the first tensor in it, at which RUN and OTHER differ.  Exit status 1 if they do."""
    first, second = open_run(run), open_run(other)
    with fix_of_errors(
        "`loopwise debug verify` lists damaged steps; --collection and --regex leave tensors out"
    ):
        difference = compare(first, second, rtol=rtol, atol=atol, collection=collection, regex=regex)
    for which, count, what, names in only(first, second, collection=collection, regex=regex).rows():
        click.echo(f"only in {(first, second)[which].path}: {count} {what}: {names}")
    if difference is None:
        click.echo("no difference in steps and tensors that both runs have")
        return
    click.echo(
        f"first difference at step {difference.step} in {difference.name}: "
        f"largest difference {difference.largest:.6g}, root mean square {difference.rms:.6g}"
    )
    raise SystemExit(1)


@command.command("export")
@click.argument("run")
@click.argument("out")
@click.option("--to", type=click.Choice(list(WRITERS)), required=True, help="Format of the files.")
def write(run: str, out: str, to: str) -> None:
    """Write RUN into the folder OUT for other tools."""
    click.echo(f"{export(open_run(run), out, to):,} values written to {out}")


@command.command()
@click.argument("run")
def verify(run: str) -> None:
    """Read all of RUN and compare its checksums.  Exit status 1 if something is damaged."""
    saved = open_run(run)
    faults = saved.verify()
    _table(("step", "rank", "what"), faults)
    click.echo(f"{len(saved.steps())} steps, {len(faults)} damaged blocks, {saved.torn} lost records")
    if faults:
        raise SystemExit(1)


@command.command()
@click.argument("run")
@click.option("--rule", "rules", multiple=True, help="Apply only this rule; may be repeated.")
@click.option("--like", help="Compare RUN with this earlier, healthy run.")
def findings(run: str, rules: tuple[str, ...], like: str | None) -> None:
    """Apply rules to RUN, and list their findings and others of its training.  Exit status 1 if one is critical."""
    saved = open_run(run)
    listed = saved.judge(rules or True, like=like)
    if not rules:
        applied = {name for name, rule in RULES.items() if rule.source == "saved step"}
        applied -= set() if like else {LIKE}
        listed += [finding for finding in saved.findings() if finding.rule not in applied]
        listed.sort(key=lambda finding: finding.step)
    heads = ("step", "severity", "rule", "what", "advice")
    _table(heads, [[getattr(finding, head) for head in heads] for finding in listed])
    critical = at_least(listed, "critical")
    click.echo(f"{len(listed)} finding{'s' * (len(listed) != 1)}, {len(critical)} critical")
    if critical:
        raise SystemExit(1)


def _console() -> Console:
    console = Console(markup=False, highlight=False)
    return console if console.is_terminal else Console(markup=False, highlight=False, width=WIDE)


def _table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    if rows:
        table = Table(box=None)
        for head in heads:
            table.add_column(head, overflow="fold")
        for row in rows:
            table.add_row(*map(str, row))
        _console().print(table)

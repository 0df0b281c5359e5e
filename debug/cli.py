"""``loopwise debug``: look into runs from the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from loopwise.errors import InputError, LoopwiseError

from .read.compare import compare, only
from .read.export import WRITERS, export
from .read.saved_run import open_run
from .rules import RULES, at_least

LISTED = 1000
"""Tensors listed at most: ten thousand lines take seconds, and nobody reads them."""
NAMED = 8
"""Steps or tensors named of what only one run has."""
WIDE = 250
"""Characters a line where the output is no terminal, so that names stay whole."""


class _Group(click.Group):
    """Prints our errors without their trace."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except LoopwiseError as error:
            raise click.ClickException(f"\n{error}") from error


@click.group("debug", cls=_Group)
def command() -> None:
    """Look into what a run saved, also while it goes on."""


@command.command("ls")
@click.argument("run")
@click.option("--collection", help="Only this collection.")
@click.option("--regex", help="Only names that it is found in.")
@click.option("--step", type=int, help="Only what this step has.")
def list_tensors(run: str, collection: str | None, regex: str | None, step: int | None) -> None:
    """State, steps and tensors of RUN."""
    saved = open_run(run)
    _console().print(str(saved), soft_wrap=True)
    rows = [
        (each, name)
        for each in (saved.collections() if collection is None else [collection])
        for name in saved.names(regex, collection=each, step=step)
    ]
    _table(("collection", "tensor"), rows[:LISTED])
    if len(rows) > LISTED:
        click.echo(f"{len(rows) - LISTED:,} more: narrow it with --collection or --regex")


@command.command()
@click.argument("run")
@click.argument("name")
@click.option("--step", type=int, help="Default: the last one that has it.")
@click.option("--mode", help="Count steps in this mode.")
@click.option("--rank", type=int, help="What this rank has.")
def show(run: str, name: str, step: int | None, mode: str | None, rank: int | None) -> None:
    """Tensor or scalar NAME of RUN at one step."""
    saved = open_run(run)
    if step is None:
        steps = saved.steps(mode)
        has = (each for each in reversed(steps) if saved.has(name, each, mode=mode, rank=rank))
        step = next(has, steps[-1] if steps else 0)
    rows = [
        (key, f"{value:.6g}") for key, value in saved.statistics(name, step, mode=mode, rank=rank).items()
    ]
    try:
        value = saved.value(name, step, mode=mode, rank=rank)
    except InputError:  # statistics are all that there is
        value = None
    kind = [] if value is None else [("dtype", str(value.dtype)), ("shape", str(tuple(value.shape)))]
    record = saved.record(step, mode=mode, rank=rank)
    head = [("step", f"{record['step']} ({record['mode']} {record['mode_step']})"), *record["marks"].items()]
    _table((name, ""), [(key, str(text)) for key, text in [*head, *kind, *rows]])
    if value is not None:
        click.echo(str(value))


@command.command()
@click.argument("run")
@click.argument("other")
@click.option("--rtol", default=0.0, help="Difference allowed, a fraction of the value in OTHER.")
@click.option("--atol", default=0.0, help="Difference allowed besides.")
@click.option("--collection", help="Only this collection.")
@click.option("--regex", help="Only names that it is found in.")
def diff(run: str, other: str, rtol: float, atol: float, collection: str | None, regex: str | None) -> None:
    """First step, and there the first tensor, where RUN and OTHER part.  Exit status 1 if they do."""
    first, second = open_run(run), open_run(other)
    found = compare(first, second, rtol=rtol, atol=atol, collection=collection, regex=regex)
    apart = only(first, second, collection=collection, regex=regex)
    for which, saved in enumerate((first, second)):
        for what, several in (("steps", apart.steps[which]), ("tensors", apart.names[which])):
            if several:
                texts = ", ".join(map(str, several[:NAMED])) + (", ..." if len(several) > NAMED else "")
                click.echo(f"only in {saved.path}: {len(several)} {what}: {texts}")
    if found is None:
        click.echo("no difference in what both have")
        return
    click.echo(
        f"they part at step {found.step} in {found.name}: largest difference {found.largest:.6g}, "
        f"root mean square {found.rms:.6g}"
    )
    raise SystemExit(1)


@command.command("export")
@click.argument("run")
@click.argument("out")
@click.option("--to", type=click.Choice(list(WRITERS)), required=True, help="The format.")
def write(run: str, out: str, to: str) -> None:
    """Write RUN into the folder OUT for other tools."""
    click.echo(f"{export(open_run(run), out, to):,} values written to {out}")


@command.command()
@click.argument("run")
def verify(run: str) -> None:
    """Read all of RUN and compare checksums.  Exit status 1 if something is damaged."""
    saved = open_run(run)
    found = saved.verify()
    _table(("step", "rank", "what"), [(str(fault.step), str(fault.rank), fault.what) for fault in found])
    click.echo(f"{len(saved.steps())} steps, {len(found)} damaged blocks, {saved.torn} lost records")
    if found:
        raise SystemExit(1)


@command.command()
@click.argument("run")
@click.option("--rule", "rules", multiple=True, help="Only this rule; may be given several times.")
def findings(run: str, rules: tuple[str, ...]) -> None:
    """What rules find in RUN, and what was found in it while it ran.  Exit status 1 if something critical."""
    saved = open_run(run)
    found = saved.judge(rules or True)
    if not rules:
        beside = [
            each
            for each in saved.findings()
            if each.rule not in RULES or RULES[each.rule].source != "saved step"
        ]
        found = sorted([*found, *beside], key=lambda each: each.step)
    _table(
        ("step", "severity", "rule", "what", "advice"),
        [(str(each.step), each.severity, each.rule, each.what, each.advice) for each in found],
    )
    critical = at_least(found, "critical")
    click.echo(f"{len(found)} findings, {len(critical)} critical")
    if critical:
        raise SystemExit(1)


def _console() -> Console:
    console = Console(markup=False, highlight=False)
    return console if console.is_terminal else Console(markup=False, highlight=False, width=WIDE)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if rows:
        table = Table(box=None)
        for head in heads:
            table.add_column(head, overflow="fold")
        for row in rows:
            table.add_row(*row)
        _console().print(table)

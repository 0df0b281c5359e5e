"""Commands ``loopwise tune ...``."""

from __future__ import annotations

import csv
import itertools
import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click
from rich.console import Console
from rich.live import Live
from rich.text import Text

from loopwise.cli import INTERRUPTED, Commands
from loopwise.errors import InputError, StateError

from .job.files import read_job
from .job.job import Job
from .log.curves import Reader
from .log.hints import hint
from .log.splitting import Lines
from .sagemaker.request import folder_of, read_request
from .search.warm_start import comparable, inherited, stored_job
from .table import live, number, trials_table
from .trials import Trial, front_of, recorded
from .tuner import Tuner

REPORTED = "without a regex: printed by report()"
EXAMPLES = 3
"""Number of lines that ``try`` shows for each metric."""


class _Group(Commands):
    """Group of commands that prints errors of storage without a traceback, too."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except OSError as error:  # a full disk, missing rights
            raise click.ClickException(f"{error}; a job that was begun goes on with --resume") from error


@click.group("tune", cls=_Group)
def command() -> None:
    """Tune the hyperparameters of any program, from what it prints."""


SAGEMAKER = click.option(
    "--sagemaker", is_flag=True, help="JOB_FILE is a request of SageMaker's API in JSON."
)
PROGRAM = click.option(
    "--command", "program", help="With --sagemaker: the program, in place of sagemaker_program."
)


@command.command("try")
@click.argument("job_file")
@click.option(
    "--log", required=True, type=click.Path(exists=True, dir_okay=False), help="Log of an earlier run."
)
@SAGEMAKER
@PROGRAM
def try_log(job_file: str, log: str, sagemaker: bool, program: str | None) -> None:
    """Show what the metrics of JOB_FILE capture in a log, before anything is run."""
    job, console = _read(job_file, sagemaker, program), Console()
    reader = Reader(job.metrics)
    data = Path(log).read_bytes()
    reader.feed(data)
    reader.end()
    splitter = Lines()
    lines = [line.text for line in (*splitter.feed(data), *splitter.rest())]
    patterns = dict(zip(reader.names, reader.patterns.patterns, strict=True))
    goals = {goal.metric for goal in job.goals}
    for metric in job.metrics:
        curve, pattern = reader.curves[metric.name], patterns.get(metric.name)
        objective = " (objective)" if metric.name in goals else ""
        console.print(Text(metric.name, "bold"), Text(objective), Text(f" {metric.regex or REPORTED}", "dim"))
        if pattern is not None and not pattern.bounded:
            console.print(
                "  not in RE2's syntax: searched with a limit of time for each line", style="yellow"
            )
        if not curve.count:
            told = f"{curve.rejected} matches, and no number" if curve.rejected else "no line matches"
            console.print(f"  {told}", style="red")
            found = hint(metric.name, metric.regex or "", (line.decode() for line in lines))
            if found is not None:
                console.print(Text(f"  almost: {found.line.strip()}"))
                console.print(Text(f"  this regex would match it: {found.regex}", "green"))
            continue
        console.print(
            f"  {curve.count} values in {len(curve.reports)} reports, {curve.rejected} no numbers; "
            f"{metric.value}: [bold]{number(curve.value())}[/bold]"
        )
        if pattern is None:
            continue
        number_of = reader.names.index(metric.name)
        hits = (line for line in reversed(lines) if number_of in reader.patterns.found(line))
        matched = (line for line in hits if any(True for _ in pattern.values(line)))
        for line in reversed(list(itertools.islice(matched, EXAMPLES))):
            text = Text(f"  {line.decode()}")
            for start, stop in pattern.spans(line):
                if start >= 0:  # the group took part
                    text.stylize("bold green", start + 2, stop + 2)
            console.print(text, soft_wrap=True)
    if not all(reader.curves[goal].count for goal in goals):
        sys.exit(1)


@command.command("run")
@click.argument("job_file")
@click.option(
    "--folder", help="Run folder; default: runs/ and the name of the job file, or of the request's job."
)
@click.option("--resume", is_flag=True, help="Go on with the job in that folder.")
@SAGEMAKER
@PROGRAM
def run_job(job_file: str, folder: str | None, resume: bool, sagemaker: bool, program: str | None) -> None:
    """Run the job of JOB_FILE.  Ctrl-C ends its trials and leaves a folder that --resume goes on with."""
    named = folder_of(job_file) if sagemaker and folder is None else None
    folder = folder or named or f"runs/{Path(job_file).stem}"
    _validate_free(folder, resume)
    console = Console()
    last = [0.0]
    with Live(console=console, refresh_per_second=4, transient=console.is_terminal) as screen:

        def show(tuner: Tuner) -> None:
            if time.monotonic() - last[0] > 0.5 and console.is_terminal:
                last[0] = time.monotonic()
                screen.update(live(tuner))

        tuner: Tuner | None = None
        best, interrupted = None, False
        try:
            tuner = Tuner(_read(job_file, sagemaker, program), folder, resume, show)
            best = tuner.run()
        except KeyboardInterrupt:
            interrupted = True
    if tuner is None:
        _exit_interrupted(job_file, folder, sagemaker, program)
    names, front = [goal.metric for goal in tuner.job.goals], tuner.front()
    parents = [trial for trial in front if trial.job]
    console.print(trials_table([*parents, *tuner.trials.values()], names, front))
    if interrupted:
        _exit_interrupted(job_file, folder, sagemaker, program)
    if best is None:
        raise click.ClickException(
            "no trial finished; the reasons are in the table, and in loopwise tune show"
        )
    for trial in front:
        _print_best(trial, names)


@command.command("show")
@click.argument("folder")
def show_job(folder: str) -> None:
    """List the ended trials of FOLDER, the best ones marked, with the whole reasons of failures."""
    job, trials, front = _ended(folder)
    parents = [trial for trial in front if trial.job]
    Console().print(trials_table([*parents, *trials], [goal.metric for goal in job.goals], front))
    for trial in trials:
        if trial.state == "failed":
            click.echo(f"\ntrial {trial.number} failed: {trial.reason}")


@command.command("best")
@click.argument("folder")
def best_trial(folder: str) -> None:
    """Print the best trial of FOLDER and its values, as JSON.

    With several objectives, print a line for each trial of which no other one is better.
    """
    job, _, front = _ended(folder)
    if not front:
        raise click.ClickException("no trial has finished")
    for trial in front:
        goals = {goal.metric: trial.metrics[goal.metric] for goal in job.goals}
        parent = {"job": trial.job} if trial.job else {}
        click.echo(json.dumps({"trial": trial.number, **parent, **goals, "values": trial.values}))


@command.command("logs")
@click.argument("folder")
@click.argument("trial", type=int)
@click.option("-f", "--follow", is_flag=True, help="Go on printing while the trial runs.")
@click.option("--stderr", is_flag=True, help="Print stderr in place of stdout.")
def logs(folder: str, trial: int, follow: bool, stderr: bool) -> None:
    """Print what the last attempt of TRIAL in FOLDER printed."""
    attempts = Path(folder) / "tune" / "trials" / f"{trial:05d}"
    numbers = sorted(int(path.name) for path in attempts.iterdir()) if attempts.is_dir() else []
    if not numbers:
        raise InputError(
            f"trial {trial} of {folder!r}", "a trial that was started", "a typo", "see loopwise tune show"
        )
    attempt = attempts / str(numbers[-1])
    path = attempt / ("stderr" if stderr else "stdout")
    while follow and not path.exists() and not (attempt / "exit").exists():
        time.sleep(0.2)
    if not path.exists():
        return  # it has not begun
    with open(path, "rb") as file:
        while True:
            repeated = (
                attempts / str(numbers[-1] + 1)
            ).exists()  # an attempt whose node has died leaves no exit
            over = not follow or repeated or (attempt / "exit").exists()  # asked before reading
            while data := file.read(2**20):
                click.echo(data, nl=False)
            if over:
                return
            time.sleep(0.2)


@command.command("export")
@click.argument("folder")
@click.argument("file", type=click.Path(dir_okay=False))
def export(folder: str, file: str) -> None:
    """Write the ended trials of FOLDER, and those that it started from, to FILE, by its ending .csv or .json."""
    _, trials, front = _ended(folder)
    marked = {trial.name for trial in front}
    rows = [_row(trial, folder, trial.name in marked) for trial in [*inherited(folder), *trials]]
    if file.endswith(".json"):
        Path(file).write_text(json.dumps(rows, indent=1))
    elif file.endswith(".csv"):
        names = list(dict.fromkeys(name for row in rows for name in row))
        with open(file, "w", newline="") as stream:
            writer = csv.DictWriter(stream, names)
            writer.writeheader()
            writer.writerows(rows)
    else:
        raise InputError(
            f"the file {file!r}", "an ending of .csv or .json", "another format", "name such a file"
        )


def _row(trial: Trial, folder: str, best: bool) -> dict[str, Any]:
    """Return the columns of a trial; names that are taken, such as ``seconds``, stand behind what they name."""
    row: dict[str, Any] = {
        "trial": trial.number,
        "job": trial.job or folder,
        "state": trial.state,
        "best": best,
        "objective": trial.objective,
        "seconds": trial.seconds,
    }
    for kind, part in (("parameter", trial.values), ("metric", trial.metrics)):
        taken = set(row)
        row |= {f"{kind}.{name}" if name in taken else name: value for name, value in part.items()}
    return row


def _read(job_file: str, sagemaker: bool, program: str | None) -> Job:
    if sagemaker:
        return read_request(job_file, program)
    if program is not None:
        raise InputError(
            "--command without --sagemaker", "the field command of the job", "a forgotten flag", "drop it"
        )
    return read_job(job_file)


def _validate_free(folder: str, resume: bool) -> None:
    if not resume and (Path(folder) / "run.json").exists():
        raise StateError(
            f"the folder {folder!r} already holds a run",
            "a new folder, or --resume",
            "this job was run before, perhaps up to Ctrl-C",
            "pass --resume to go on with it, or --folder with the name of another folder",
        )


def _exit_interrupted(job_file: str, folder: str, sagemaker: bool, program: str | None) -> NoReturn:
    """Say whether the job was begun, and how to go on with it, and end the program."""
    begun = (Path(folder) / "run.json").exists()
    given = [job_file, "--folder", folder] + ["--resume"] * begun
    given += ["--sagemaker"] * sagemaker + (["--command", program] if program else [])
    told = "interrupted; go on with" if begun else "interrupted before the job was begun; start it with"
    click.echo(f"{told}: loopwise tune run {shlex.join(given)}", err=True)
    sys.exit(INTERRUPTED)


def _ended(folder: str) -> tuple[Job, list[Trial], list[Trial]]:
    """Return the job of a folder, its ended trials, and the best ones of them and of its parents."""
    job, trials = stored_job(folder), sorted(recorded(folder), key=lambda trial: trial.number)
    return job, trials, front_of(comparable(job, trials, inherited(folder)), job.goals)


def _print_best(best: Trial, objectives: Sequence[str]) -> None:
    goals = ", ".join(f"{name} {number(best.metrics[name])}" for name in objectives)
    values = ", ".join(f"{name}={value}" for name, value in best.values.items())
    click.echo(f"best: trial {best.name}, {goals}: {values}")

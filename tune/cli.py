"""Commands ``loopwise tune ...``."""

from __future__ import annotations

import csv
import itertools
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.live import Live
from rich.text import Text

from loopwise.cli import Commands
from loopwise.errors import InputError, StateError

from .job.files import job_of, read_job
from .job.job import Job
from .log.curves import Reader
from .log.hints import hint
from .log.splitting import Lines
from .sagemaker.request import read_request
from .table import live, number, trials_table
from .trials import Trial, best_of, recorded
from .tuner import Tuner

REPORTED = "without a regex: printed by report()"
INTERRUPTED = 130
"""Code by which shells tell that Ctrl-C ended a program."""
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
    for metric in job.metrics:
        curve, pattern = reader.curves[metric.name], patterns.get(metric.name)
        objective = " (objective)" if metric.name == job.objective.metric else ""
        console.print(Text(metric.name, "bold"), Text(objective), Text(f" {metric.regex or REPORTED}", "dim"))
        if pattern is not None and not pattern.bounded:
            console.print(
                "  not in RE2's syntax: searched with a limit of time for each line", style="yellow"
            )
        if not curve.count:
            console.print("  no line matches", style="red")
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
    if not reader.curves[job.objective.metric].count:
        sys.exit(1)


@command.command("run")
@click.argument("job_file")
@click.option("--folder", help="Run folder; default: runs/ and the name of the job file.")
@click.option("--resume", is_flag=True, help="Go on with the job in that folder.")
@SAGEMAKER
@PROGRAM
def run_job(job_file: str, folder: str | None, resume: bool, sagemaker: bool, program: str | None) -> None:
    """Run the job of JOB_FILE.  Ctrl-C ends its trials and leaves a folder that --resume goes on with."""
    folder = folder or f"runs/{Path(job_file).stem}"
    _validate_free(folder, resume)
    console = Console()
    last = [0.0]
    with Live(console=console, refresh_per_second=4, transient=console.is_terminal) as screen:

        def show(tuner: Tuner) -> None:
            if time.monotonic() - last[0] > 0.5 and console.is_terminal:
                last[0] = time.monotonic()
                screen.update(live(tuner))

        tuner = Tuner(_read(job_file, sagemaker, program), folder, resume, show)
        try:
            best, interrupted = tuner.run(), False
        except KeyboardInterrupt:
            best, interrupted = tuner.best(), True
    console.print(
        trials_table(tuner.trials.values(), tuner.job.objective.metric, None if best is None else best.number)
    )
    if interrupted:
        given = [job_file, "--folder", folder, "--resume"]
        given += ["--sagemaker"] * sagemaker + (["--command", program] if program else [])
        click.echo(f"interrupted; go on with: loopwise tune run {shlex.join(given)}", err=True)
        sys.exit(INTERRUPTED)
    if best is None:
        raise click.ClickException(
            "no trial finished; the reasons are in the table, and in loopwise tune show"
        )
    _print_best(best, tuner.job.objective.metric)


@command.command("show")
@click.argument("folder")
def show_job(folder: str) -> None:
    """List the ended trials of FOLDER, with the whole reasons of failures."""
    job, trials = _job(folder), sorted(recorded(folder), key=lambda trial: trial.number)
    best = best_of(trials, job.objective)
    Console().print(trials_table(trials, job.objective.metric, None if best is None else best.number))
    for trial in trials:
        if trial.state == "failed":
            click.echo(f"\ntrial {trial.number} failed: {trial.reason}")


@command.command("best")
@click.argument("folder")
def best_trial(folder: str) -> None:
    """Print the best trial of FOLDER and its values, as JSON."""
    job = _job(folder)
    best = best_of(recorded(folder), job.objective)
    if best is None:
        raise click.ClickException("no trial has finished")
    click.echo(
        json.dumps({"trial": best.number, job.objective.metric: best.objective, "values": best.values})
    )


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
    """Write the ended trials of FOLDER to FILE, by its ending .csv or .json."""
    rows = [
        {
            "trial": t.number,
            "state": t.state,
            "objective": t.objective,
            "seconds": t.seconds,
            **t.values,
            **t.metrics,
        }
        for t in sorted(recorded(folder), key=lambda trial: trial.number)
    ]
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


def _job(folder: str) -> Job:
    path = Path(folder) / "tune" / "job.json"
    if not path.exists():
        raise InputError(
            f"the folder {folder!r}, without a tuning job",
            "the folder of loopwise tune run",
            "a typo",
            "check the path",
        )
    return job_of(json.loads(path.read_text())["job"], str(path))


def _print_best(best: Trial, objective: str) -> None:
    values = ", ".join(f"{name}={value}" for name, value in best.values.items())
    click.echo(f"best: trial {best.number}, {objective} {number(best.objective)}: {values}")

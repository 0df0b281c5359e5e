"""Run the cases of a benchmark in turns, each run in its own process, and go on after an interruption.

A benchmark is a module with ``CLAIM``, ``cases(device) -> {name: function(seed) -> {quantity: value}}`` and
``rows(runs) -> [Row]``; ``runs[case][quantity]`` lists the values over the seeds.  The cases A and B of one comparison are
neighbours and run A B A B ..., so that both suffer if the machine slows down.  The quantities of a finished run are stored
in ``.cache/`` under the claim, the device and a digest of the code; an interrupted benchmark goes on from there.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import re
import subprocess
import time
from collections import defaultdict
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console
from rich.table import Table

from . import record
from .peers import python_of

CACHE = Path(__file__).parent / ".cache"
Runs = dict[str, dict[str, list[float]]]
_MARK = "result: "


class CaseError(RuntimeError):
    """Error of a run, with the output of its process."""


def cache_file(claim: str, case: str, seed: int, quick: bool) -> Path:
    """Return the file for the quantities of one run of the present code."""
    name = f"{case}-{seed}{'-quick' * quick}.json"
    return CACHE / claim / record.device() / record.sources() / name


def module_name(module: ModuleType) -> str:
    """Return the dotted name of a benchmark, also if it runs as ``__main__``."""
    assert module.__spec__ is not None
    return module.__spec__.name


def measure(module: ModuleType, case: str, seed: int, quick: bool, fresh: bool) -> dict[str, float]:
    """Return the quantities of one run, from the cache or from a new process."""
    claim = module.CLAIM
    cached = cache_file(claim, case, seed, quick)
    if cached.exists() and not fresh:
        return json.loads(cached.read_text())
    command = [python_of(case), "-m", "benchmarks.harness", module_name(module), case, str(seed)]
    done = subprocess.run(command + ["--quick"] * quick, capture_output=True, text=True, cwd=record.ROOT)
    results = [line for line in done.stdout.splitlines() if line.startswith(_MARK)]
    if done.returncode or not results:
        raise CaseError(
            f"{claim}, case {case}, seed {seed} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
        )
    cached.parent.mkdir(parents=True, exist_ok=True)
    cached.write_text(results[-1].removeprefix(_MARK))
    return json.loads(cached.read_text())


def run(
    module: ModuleType,
    seeds: int,
    quick: bool,
    fresh: bool = False,
    until: float | None = None,
    only: list[str] | None = None,
    match: str = "",
    earlier: Path | None = None,
) -> bool:
    """Run all cases over ``seeds`` and write the record.

    Args:
        module: the benchmark.
        seeds: runs of every case.
        quick: make short runs, and mark the record.
        fresh: run again what the cache has.
        until: start no run after this time, in seconds of ``time.monotonic``.
        only: run the cases whose names begin with one of these words.  The record also has the other cases, with the
            seeds that the cache has.
        match: of those, run the cases in whose name this regular expression matches.
        earlier: a record of the same claim and versions, perhaps of an earlier commit, whose runs are not run again.

    Returns:
        False if the time ran out before all cases had run; no record is written then.

    Raises:
        CaseError: some runs failed.  The others have run and are in the cache; no record is written.
    """
    console = terminal()
    failures: list[str] = []
    runs: Runs = defaultdict(lambda: defaultdict(list))
    known = _known(earlier, module.CLAIM, quick)
    raw: dict[str, dict[str, dict[str, float]]] = defaultdict(dict)
    left_out = functools.partial(_left_out, module, quick, only, match)
    for seed in range(max(seeds, _seeds(known))):
        for case in module.cases(record.device()):
            found = known["raw"].get(case, {}).get(str(seed))
            if found is None and (seed >= seeds or left_out(case, seed)):
                continue
            if until is not None and time.monotonic() > until:
                console.print(
                    f"{module.CLAIM}: left at case {case}, seed {seed}; the next call goes on there"
                )
                return False
            start = time.monotonic()
            anew = fresh and (not only or case.partition(".")[0] in only)
            try:
                quantities = found or measure(module, case, seed, quick, anew)
            except CaseError as error:
                failures.append(str(error))
                console.print(f"{module.CLAIM}: seed {seed}, {case}: failed", highlight=False)
                continue
            raw[case][str(seed)] = quantities
            for quantity, value in quantities.items():
                runs[case][quantity].append(value)
            console.print(
                f"{module.CLAIM}: seed {seed}, {case}: {time.monotonic() - start:.1f} s", highlight=False
            )
    if failures:
        raise CaseError("\n".join(failures))
    path = record.write(module.CLAIM, module.rows(runs), quick, raw, known["commits"])
    show(json.loads(path.read_text()), console)
    return True


def _known(earlier: Path | None, claim: str, quick: bool) -> dict[str, Any]:
    """Return a record whose runs are not run again; an error if other software or another processor made it."""
    if earlier is None:
        return {"raw": {}, "commits": []}
    found: dict[str, Any] = json.loads(earlier.read_text())
    now = record.header()
    for name, there, here in (
        ("claim", found["claim"], claim),
        ("length", found["quick"], quick),
        ("versions", found["versions"], now["versions"]),
        ("instruction set", found["machine"]["capability"], now["machine"]["capability"]),
    ):
        if there != here:
            raise SystemExit(
                f"{earlier}: its {name} is {there}, here it is {here}: its runs cannot be taken over"
            )
    return {"raw": found.get("raw", {}), "commits": found.get("commits", [])}


def _seeds(known: dict[str, Any]) -> int:
    """Return the number of seeds of a record."""
    return max((int(seed) + 1 for found in known["raw"].values() for seed in found), default=0)


def _left_out(
    module: ModuleType, quick: bool, only: list[str] | None, match: str, case: str, seed: int
) -> bool:
    """Return whether ``only`` and ``match`` leave the case out and the cache lacks its run."""
    named = not only or case.partition(".")[0] in only
    return not (named and re.search(match, case)) and not cache_file(module.CLAIM, case, seed, quick).exists()


def terminal() -> Console:
    """Return the terminal; output into a file is wide enough for a record's table."""
    console = Console()
    return console if console.is_terminal else Console(width=180)


def show(result: dict, console: Console) -> None:
    """Print a record as a table."""
    machine = result["machine"]
    title = f"{result['claim']}, commit {result['commit']}, {machine['cpu']}, {machine['cores']} cores, {machine['device']}"
    table = Table(*record.HEADINGS, title=title)
    for row in result["rows"]:
        table.add_row(*record.cells(row), style="red" if row["met"] is False else None)
    console.print(table)


def main(module: ModuleType) -> None:
    """Run the command line of a benchmark."""
    parser = argparse.ArgumentParser(description=module.__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="runs of every case (default: 5)")
    parser.add_argument("--quick", action="store_true", help="two seeds, shorter runs; its record is marked")
    parser.add_argument("--fresh", action="store_true", help="run again what an earlier call has measured")
    groups = list(dict.fromkeys(case.partition(".")[0] for case in module.cases(record.device())))
    parser.add_argument(
        "--only", metavar="NAMES", help=f"run these cases, with commas between: {', '.join(groups)}"
    )
    parser.add_argument(
        "--cases", metavar="REGEX", default="", help="of those, run the cases in whose name this matches"
    )
    parser.add_argument(
        "--from", type=Path, dest="earlier", metavar="RECORD", help="take the runs of this record over"
    )
    args = parser.parse_args()
    only = args.only.split(",") if args.only else None
    if unknown := set(only or ()) - set(groups):
        parser.error(f"--only {','.join(sorted(unknown))}: no such cases; there are {', '.join(groups)}")
    seeds = 2 if args.quick else args.seeds
    run(module, seeds, args.quick, args.fresh, only=only, match=args.cases, earlier=args.earlier)


def _child() -> None:
    """Run one case in this process and print its quantities."""
    parser = argparse.ArgumentParser(description="one run of one case")
    parser.add_argument("module")
    parser.add_argument("case")
    parser.add_argument("seed", type=int)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    module = importlib.import_module(args.module)
    module.QUICK = args.quick
    print(_MARK + json.dumps(module.cases(record.device())[args.case](args.seed)))


if __name__ == "__main__":
    _child()

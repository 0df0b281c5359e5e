"""Runs the cases of a claim: each in a process of its own, interleaved, resumable.

A benchmark is a module with ``CLAIM``, ``cases(device) -> {name: function(seed) -> {quantity: value}}``
and ``rows(runs) -> [Row]``, where ``runs[case][quantity]`` lists the values over the seeds.  Case A
and case B of one comparison stand beside each other and run A B A B ..., so that a machine that
drifts drifts for both.  A finished run is kept in ``.cache/`` under the claim, the device and a
digest of the code, so an interrupted benchmark goes on where it stopped.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import time
from collections import defaultdict
from pathlib import Path
from types import ModuleType

from rich.console import Console
from rich.table import Table

from . import record
from .peers import python_of

CACHE = Path(__file__).parent / ".cache"
Runs = dict[str, dict[str, list[float]]]
_MARK = "result: "


def kept_at(claim: str, case: str, seed: int, quick: bool) -> Path:
    """Where the quantities of one run of the present code are kept."""
    name = f"{case}-{seed}{'-quick' * quick}.json"
    return CACHE / claim / record.device() / record.sources() / name


def module_name(module: ModuleType) -> str:
    """Return the dotted name of a benchmark, also if it runs as ``__main__``."""
    assert module.__spec__ is not None
    return module.__spec__.name


def measure(module: ModuleType, case: str, seed: int, quick: bool, fresh: bool) -> dict[str, float]:
    """The quantities of one run, from the cache or from a process of its own."""
    claim = module.CLAIM
    kept = kept_at(claim, case, seed, quick)
    if kept.exists() and not fresh:
        return json.loads(kept.read_text())
    command = [python_of(case), "-m", "benchmarks.harness", module_name(module), case, str(seed)]
    done = subprocess.run(command + ["--quick"] * quick, capture_output=True, text=True, cwd=record.ROOT)
    found = [line for line in done.stdout.splitlines() if line.startswith(_MARK)]
    if done.returncode or not found:
        raise RuntimeError(
            f"{claim}, case {case}, seed {seed} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
        )
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(found[-1].removeprefix(_MARK))
    return json.loads(kept.read_text())


def run(
    module: ModuleType,
    seeds: int,
    quick: bool,
    fresh: bool = False,
    until: float | None = None,
    only: list[str] | None = None,
) -> bool:
    """Run all cases over ``seeds`` and write the record; False when ``until`` (monotonic seconds) came first.

    With ``only`` run cases whose name, up to its first dot, is listed; the record has also those of
    the others that earlier calls ran over all ``seeds`` with the same code.
    """
    console = terminal()
    runs: Runs = defaultdict(lambda: defaultdict(list))
    cases = [case for case in module.cases(record.device()) if _wanted(module, case, seeds, quick, only)]
    for seed in range(seeds):
        for case in cases:
            if until is not None and time.monotonic() > until:
                console.print(
                    f"{module.CLAIM}: left at case {case}, seed {seed}; the next call goes on there"
                )
                return False
            start = time.monotonic()
            anew = fresh and (not only or case.partition(".")[0] in only)
            for quantity, value in measure(module, case, seed, quick, anew).items():
                runs[case][quantity].append(value)
            console.print(
                f"{module.CLAIM}: seed {seed}, {case}: {time.monotonic() - start:.1f} s", highlight=False
            )
    path = record.write(module.CLAIM, module.rows(runs), quick)
    show(json.loads(path.read_text()), console)
    return True


def _wanted(module: ModuleType, case: str, seeds: int, quick: bool, only: list[str] | None) -> bool:
    return (
        not only
        or case.partition(".")[0] in only
        or all(kept_at(module.CLAIM, case, seed, quick).exists() for seed in range(seeds))
    )


def terminal() -> Console:
    """The terminal; output into a file is wide enough for a record's table."""
    console = Console()
    return console if console.is_terminal else Console(width=180)


def show(found: dict, console: Console) -> None:
    """Print a record as a table."""
    machine = found["machine"]
    title = f"{found['claim']}, commit {found['commit']}, {machine['cpu']}, {machine['cores']} cores, {machine['device']}"
    table = Table(*record.HEADINGS, title=title)
    for row in found["rows"]:
        table.add_row(*record.cells(row), style="red" if row["met"] is False else None)
    console.print(table)


def main(module: ModuleType) -> None:
    """The command line of a benchmark module."""
    parser = argparse.ArgumentParser(description=module.__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="runs of every case (default: 5)")
    parser.add_argument("--quick", action="store_true", help="two seeds, shorter runs; its record is marked")
    parser.add_argument(
        "--fresh", action="store_true", help="measure again what is kept from an earlier call"
    )
    groups = list(dict.fromkeys(case.partition(".")[0] for case in module.cases(record.device())))
    parser.add_argument(
        "--only", metavar="NAMES", help=f"run these cases, with commas between: {', '.join(groups)}"
    )
    args = parser.parse_args()
    only = args.only.split(",") if args.only else None
    if unknown := set(only or ()) - set(groups):
        parser.error(f"--only {','.join(sorted(unknown))}: no such cases; there are {', '.join(groups)}")
    run(module, 2 if args.quick else args.seeds, args.quick, args.fresh, only=only)


def _child() -> None:
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

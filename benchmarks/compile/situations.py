"""Training situations that our step trains as the usual loop does, of those in ``benchmarks.situations``.

Each situation trains for 20 steps or so by the usual loop, three times by that loop with weights moved by a few last
places, and by our step.  The step trains as the usual loop does if every weight, buffer and loss is at most four times as
far from the usual loop's as the furthest of the moved runs is, plus 16 last places.  A step that refuses the situation by
an ``InputError`` before it trains, or that trains it eagerly and says so, is right as well.

``python -m benchmarks.compile.situations`` judges all of them, each family in a process of its own, prints a table and
writes a record.  With names of situations or families it judges these in its own process and writes none.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from rich.table import Table

from .. import harness, record
from ..harness import terminal
from ..record import Row
from ..situations import GOOD, SITUATIONS, VERDICTS, Verdict, judge, judge_on_ranks

CLAIM = "compile_situations"
QUICK = False
"""``True``: the slow situations are left out."""


def judged(names: list[str]) -> list[Verdict]:
    """Return the verdicts about situations, those of two ranks in processes of their own."""
    torch.set_num_threads(1)
    alone = [name for name in names if SITUATIONS[name].ranks == 1]
    together = [name for name in names if name not in alone]
    return [*map(judge, alone), *(judge_on_ranks(together) if together else [])]


def family(name: str, seed: int) -> dict[str, Any]:
    """Return the verdicts about the situations of a family."""
    names = [key for key, case in SITUATIONS.items() if case.family == name and not (QUICK and case.slow)]
    return {verdict.name: asdict(verdict) for verdict in judged(names)}


def cases(device: str) -> dict[str, Callable[[int], dict[str, Any]]]:
    families = dict.fromkeys(case.family for case in SITUATIONS.values())
    return {name: functools.partial(family, name) for name in families}


def rows(verdicts: list[Verdict]) -> list[Row]:
    """Return the rows of the record: how many situations have each verdict."""
    total = len(verdicts)
    counts = {name: [float(sum(v.verdict == name for v in verdicts))] for name in VERDICTS}
    labels = {
        "equal": ("trained by a compiled step as by the usual loop", None),
        "eager": ("trained eagerly, with a message", None),
        "refused": ("refused by an InputError before training", None),
        "SILENT": ("trained eagerly, without a message", "ours <= 0"),
        "WRONG": ("trained otherwise than by the usual loop", "ours <= 0"),
        "CRASH": ("other errors", "ours <= 0"),
    }
    good = [float(sum(v.good for v in verdicts))]
    head = Row("situations trained as by the usual loop, or refused", good, None, "", "count", "ours >= 80")
    kinds = [
        Row(f"of {total} situations: {text}", counts[name], None, "", "count", bar)
        for name, (text, bar) in labels.items()
    ]
    return [head, *kinds]


def table(verdicts: list[Verdict]) -> Table:
    """Return the table of situations."""
    shown = Table("situation", "distance", "budget", "plan", "result", "message")
    for v in verdicts:
        measured = [f"{v.distance:.1e}", f"{v.budget:.1e}"] if v.plan else ["", ""]
        message = "" if v.verdict == "equal" else v.message
        shown.add_row(
            v.name, *measured, v.plan, v.verdict, message, style=None if v.verdict in GOOD else "red"
        )
    return shown


def page(verdicts: list[Verdict]) -> str:
    """Return the table of situations as Markdown."""
    lines = [f"# {CLAIM}: each situation, with its worst tensor\n\ntorch {torch.__version__}\n"]
    lines += ["| family | situation | distance | budget | plan | result |", "|---" * 6 + "|"]
    for v in verdicts:
        case = SITUATIONS[v.name]
        measured = f"{v.distance:.1e} | {v.budget:.1e}" if v.plan else " | "
        result = v.verdict if v.verdict == "equal" else f"{v.verdict}: {v.message}".replace("|", "/")
        lines.append(f"| {case.family} | {case.description} | {measured} | {v.plan} | {result} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Judge the situations of the command line, or all of them."""
    module, console = sys.modules[__name__], terminal()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="situations or families; default: all, with a record")
    parser.add_argument(
        "--quick", action="store_true", help="leave out what Inductor compiles; the record is marked"
    )
    parser.add_argument("--fresh", action="store_true", help="judge again what an earlier call has judged")
    args = parser.parse_args()
    if unknown := set(args.names) - set(SITUATIONS) - set(cases("cpu")):
        parser.error(f"no such situations or families: {', '.join(sorted(unknown))}")
    if args.names:
        chosen = [key for key, case in SITUATIONS.items() if {key, case.family} & set(args.names)]
        console.print(table(judged(chosen)))
        return
    verdicts: list[Verdict] = []
    for case in cases("cpu"):
        found = harness.measure(module, case, 0, args.quick, args.fresh)
        verdicts += [Verdict(**verdict) for verdict in found.values()]  # type: ignore[arg-type]
        console.print(
            f"{CLAIM}: {case}: {sum(Verdict(**v).good for v in found.values())} of {len(found)} are right"
        )
    console.print(table(verdicts))
    path = record.write(CLAIM, rows(verdicts), args.quick)
    if not args.quick:
        (record.RESULTS / f"{CLAIM}.md").write_text(page(verdicts))
    harness.show(json.loads(path.read_text()), console)


if __name__ == "__main__":
    main()

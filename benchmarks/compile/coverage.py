"""Count the places that each graph pass rewrites in models of other authors, with the reasons of refusals.

``python -m benchmarks.compile.coverage`` prints the table and writes it to ``results/``.  Each graph is captured,
rewritten and compared with the eager step (loss and gradients against float64); nothing is timed.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter

import torch
from rich.console import Console
from rich.table import Table

from .. import record
from ..models import MODELS, OTHERS

EVERY = {**MODELS, **OTHERS}


def look(name: str) -> tuple[dict[str, list[int]], list[str], str, int]:
    """Return pass -> [places rewritten, places looked at], reasons of refusals, the verdict and the number of graphs."""
    from loopwise.compile import Plan, TrainStep
    from loopwise.compile.graph.passes import USUAL

    torch.manual_seed(0)
    model, loss, batch = EVERY[name]()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    step = TrainStep(model, loss, optimizer, plan=Plan(graph="captured", passes=USUAL))
    step.prepare(batch)
    candidate = step._search.candidates[-1]  # type: ignore[union-attr]
    places = {key: [0, 0] for key in USUAL}
    reasons: Counter[str] = Counter()
    for outcome in candidate.log.outcomes:
        counts = places[outcome.name]
        counts[0] += outcome.rewritten
        counts[1] += 1
        if not outcome.rewritten:
            reasons[f"{outcome.name.replace('_', ' ')}: {outcome.reason.partition(', at ')[0]}"] += 1
    return (
        places,
        [f"{why} ({n} x)" for why, n in reasons.items()],
        candidate.refused or "right",
        candidate.log.graphs,
    )


def main() -> None:
    from loopwise.compile.graph.passes import USUAL

    torch.set_num_threads(1)
    names = [key.replace("_", " ") for key in USUAL]
    lines = [
        f"| model | {' | '.join(names)} | graphs | compared with eager | refused |",
        "|---" * (len(names) + 4) + "|",
    ]
    table = Table("model", *names, "graphs", "compared with eager", "refused")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LOOPWISE_CACHE"] = folder
        for name in EVERY:
            places, reasons, verdict, graphs = look(name)
            cells = [f"{a} of {b}" if b else "-" for a, b in places.values()]
            row = [name, *cells, str(graphs), verdict, "; ".join(reasons)]
            table.add_row(*row)
            lines.append(f"| {' | '.join(row)} |")
    Console(width=180).print(table)
    head = f"# compile_coverage: places that each pass rewrote, of those that it looked at\n\ntorch {torch.__version__}\n\n"
    path = record.RESULTS / "compile_coverage.md"
    path.write_text(head + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

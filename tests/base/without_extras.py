"""A small training with the parts that need no extra, and the errors of those that do.

``python without_extras.py [EXTRA | --all]``: the packages of the extra are not installed; without an argument those of all.
"""

import importlib
import sys
import tempfile
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from loopwise import SiftingDataLoader, TrainStep, Watch
from loopwise.errors import MissingExtra

NEEDED = {
    "lightning": "loopwise.sift.lightning",
    "transformers": "loopwise.compile.transformers",
    "tune": "loopwise.tune",
    "feed": "loopwise.feed.remote",
}
"""Extra -> module that cannot be imported without it."""
PARTS = (
    "loopwise.sift",
    "loopwise.compile",
    "loopwise.debug",
    "loopwise.feed",
    "loopwise.report",
    "loopwise.tune",
)


def train(folder):
    """Train with sift, compile and debug in one run."""
    data = TensorDataset(torch.randn(64, 4), torch.randint(0, 3, (64,)))
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    criterion = nn.CrossEntropyLoss(reduction="none")
    loader = SiftingDataLoader(DataLoader(data, batch_size=8), model, criterion, keep=0.5, run=folder)
    step = TrainStep(model, criterion, optimizer, autotune="off", run=folder)
    with Watch(model, optimizer, run=folder) as watch:
        for _ in range(2):
            for batch in loader:
                watch.step(loss=step(batch))
    loader.close()
    step.close()
    assert loader.report().trained < loader.report().seen


def page(folder):
    """Write the page of a run."""
    from loopwise.report import report

    return report(folder)


def refused(call, *arguments):
    """Return the error of a call that misses an extra, as text; empty if it misses none."""
    try:
        call(*arguments)
    except MissingExtra as error:
        return str(error)
    return ""


def main(missing):
    """Train, and use what the missing extras are for."""
    for part in PARTS:
        error = refused(importlib.import_module, part)
        assert not error or missing in (None, "tune", "feed"), error
    with tempfile.TemporaryDirectory() as folder:
        run = str(Path(folder) / "run")
        train(run)
        error = refused(page, run)
        assert bool(error) == (missing in (None, "report")), error
        assert not error or "report" in error, error
    for extra, module in NEEDED.items():
        if missing in (None, extra):
            error = refused(importlib.import_module, module)
            assert extra in error or not error, error
            print(f"without {extra}: {error.splitlines()[0] if error else module + ' can be imported'}")
    print(f"without {'any extra' if missing is None else missing or 'nothing'}: the training ran")


if __name__ == "__main__":
    given = sys.argv[1] if len(sys.argv) > 1 else None
    main("" if given == "--all" else given)

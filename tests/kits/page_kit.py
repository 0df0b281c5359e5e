"""A browser, and runs that have something to show in every section of their page."""

import contextlib
import copy
import shutil
import warnings

import pytest
import torch
from torch import nn

from loopwise.debug import Collection, Watch, every
from loopwise.run import Run

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextlib.contextmanager
def launched():
    """Launch a browser without a window, and skip the test if there is none."""
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        pytest.skip("no browser: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable)
        yield browser
        browser.close()


class Training:
    """Small training under a ``Watch``; the ReLU after the third layer is dead."""

    def __init__(self, run, seed=0, lr=0.05):
        torch.manual_seed(seed)
        self.model = nn.Sequential(
            nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)
        )
        self.model[2].bias.data.fill_(-9.0)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=lr)
        collections = (
            "losses",
            "metrics",
            "health",
            Collection("gradients", statistics=("quantiles", "histogram")),
        )
        self.watch = Watch(self.model, self.optimizer, run=run, save=every(1), collections=collections)
        self.inputs = torch.randn(256, 8)
        self.targets = self.inputs[:, :3].argmax(dim=1)

    def loss(self):
        rows = torch.randint(0, 256, (32,))
        return nn.functional.cross_entropy(self.model(self.inputs[rows]), self.targets[rows])

    def train(self, steps):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for _ in range(steps):
                self.optimizer.zero_grad()
                loss = self.loss()
                loss.backward()
                self.optimizer.step()
                self.watch.step(loss=loss, accuracy=0.5)

    def evaluate(self, steps):
        self.model.eval()
        with self.watch.mode("eval"):
            for _ in range(steps):
                self.watch.step(loss=self.loss())
        self.model.train()


def deep_run(path, layers=60, steps=8):
    """Write a run of many layers with long names, most of them in groups, and return its path."""
    torch.manual_seed(0)
    blocks = nn.ModuleDict({"attention_output": nn.Linear(4, 4), "feed_forward": nn.Linear(4, 4)})
    model = nn.ModuleDict(
        {"encoder_of_the_model": nn.ModuleList(copy.deepcopy(blocks) for _ in range(layers // 2))}
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Watch(model, optimizer, run=str(path), save=every(1), rules=False) as watch:
        for _ in range(steps):
            x = torch.randn(8, 4)
            for block in model["encoder_of_the_model"]:
                x = x + 0.1 * block["feed_forward"](block["attention_output"](x))
            loss = x.square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            watch.step(loss=loss)
    return str(path)


def sifted(run):
    """Write the records of sift and compile into a run."""
    counts = {"seen": 100, "skipped": 0, "scored": 90, "kept": 40, "dropped": 60, "cut": 0, "not_finite": 0}
    seconds = {f"{phase}_seconds": 1.5 for phase in ("loading", "scoring", "selecting", "training")}
    for epoch in range(3):
        record = {"epoch": epoch, "complete": True, "batches": 5, "trained": 40, **counts, **seconds}
        run.append("sift", "epochs", record)
    form = {
        "form": "eager",
        "ms": 12.5,
        "least": 12.0,
        "most": 14.0,
        "MiB": 210.0,
        "compile s": 0.0,
        "verdict": "",
    }
    better = form | {"form": "inductor", "ms": 8.0, "least": 7.5, "most": 9.0, "verdict": "chosen"}
    refused = form | {
        "form": "captured",
        "ms": None,
        "least": None,
        "most": None,
        "verdict": "its loss differs",
    }
    plan = {"graph": "inductor", "passes": ["loss_head"], "regions": False, "max_autotune": True}
    record = {"batch": 2, "plan": plan, "forms": [form, better, refused], "remarks": ["found in 20 s"]}
    run.append("compile", "plans", record)
    run.append("compile", "events", {"batch": 9, "text": "a batch of another shape"})


def full_run(path, seed=0):
    """Write a finished run of all parts and return its path."""
    with Run(str(path)) as run:
        training = Training(run, seed)
        training.train(30)
        training.evaluate(4)
        training.watch.close()
        sifted(run)
    return str(path)

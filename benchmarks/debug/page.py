"""Size and speed of the page of a long run: 10,000 saved steps of a network of 200 layers.

A ``Watch`` saves a loss, two metrics and the health of every layer at each of its first steps.  The writer then writes
the last of these steps again and again, with drifting numbers, as a real training would take hours.  The page is opened
from disk in headless Chromium at a desktop's and a phone's width: ``open`` is the time from navigation until the first
section is there and every plot within the window is drawn, the median of several loads by one browser.  ``zoom`` is the
time from the end of a drag across a heat map of all layers until it is drawn again, with its labels; ``search`` from a
key to the list of the layers that match, and ``select`` from Enter until all plots of layers in the window show the
layer, each the median of several.
"""

from __future__ import annotations

import functools
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .. import harness
from ..harness import Runs
from ..record import Row

CLAIM = "page"
QUICK = False
LAYERS = 200
STEPS = 10_000
BEGUN = 5
"""Steps that are trained."""
FOUND = 10
"""Findings."""
LOADS = 7
WINDOWS = {"desktop": (1280, 900), "phone": (375, 800)}
"""Width and height in CSS pixels."""
READY = """() => {
  const near = [...document.querySelectorAll(".plot")].filter((box) => {
    const { top, bottom } = box.getBoundingClientRect();
    return bottom > 0 && top < innerHeight;
  });
  const drawn = near.every((box) => box.dataset.drawn && box.querySelector(".main-svg"));
  return document.querySelector("section") && near.length && drawn && performance.now();
}"""


MAP = "[data-plot=layers-plot-gradients]"
ZOOM = """(box) => {
  let start = 0, end = 0;
  addEventListener("mouseup", () => (start = performance.now()), { capture: true, once: true });
  box.on("plotly_afterplot", () => requestAnimationFrame(() => setTimeout(() => (end = performance.now()))));
  window.zoomed = () => end - start;
}"""
"""JavaScript that measures a zoom by dragging."""
WHOLE = """(box) => {
  box.removeAllListeners("plotly_afterplot");
  return Plotly.relayout(box, { "xaxis.autorange": true, "yaxis.autorange": "reversed" });
}"""
"""JavaScript that ends the measurement of a zoom and shows the whole plot again."""
SEARCH = """async (text) => {
  const input = document.querySelector(".picker input");
  const frames = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  await frames();
  const start = performance.now();
  input.value = text;
  input.dispatchEvent(new Event("input", { bubbles: true }));
  await frames();
  const listed = performance.now();
  input.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", bubbles: true }));
  await frames();
  return [listed - start, performance.now() - listed];
}"""
"""JavaScript that measures a search and the selection of what it finds."""
SETTLED = 2000
"""Milliseconds after which all drawing has ended."""


class Deep(nn.Module):
    """Network of residual layers of width 8."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(LAYERS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + 0.05 * torch.relu(layer(x))
        return x


def begun(folder: str, seed: int) -> None:
    """Train the first steps under a ``Watch`` that saves every one of them."""
    from loopwise.debug import Watch, every

    torch.manual_seed(seed)
    torch.set_num_threads(1)
    model = Deep()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    inputs = torch.randn(4096, 8)
    targets = inputs[:, :4].argmax(dim=1)
    with Watch(model, optimizer, run=folder, save=every(1)) as watch:
        for _ in range(BEGUN):
            rows = torch.randint(0, len(inputs), (16,))
            outputs = model(inputs[rows])
            loss = nn.functional.cross_entropy(outputs, targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            right = (outputs.argmax(dim=1) == targets[rows]).float()
            watch.step(loss=loss, accuracy=right, spread=outputs.std())


@dataclass(frozen=True, eq=False)
class Copied:
    """Group of tables that is written as another run has it."""

    group: dict[str, Any]

    def record(self) -> dict[str, Any]:
        """Return the group as the index has it."""
        return self.group


def make(folder: str, steps: int, seed: int) -> None:
    """Make a run with so many saved steps: the last trained step again and again, with drifting numbers."""
    from loopwise.debug.rules import Finding
    from loopwise.debug.store.blocks import Blocks
    from loopwise.debug.store.index import Index
    from loopwise.debug.store.segments import Segments
    from loopwise.run import Run

    begun(f"{folder}.begun", seed)
    old = Run.existing(f"{folder}.begun")
    index = Index(old.fs, f"{old.path}/debug", True)
    index.refresh()
    block = index.blocks[BEGUN - 1][0]
    groups = [Copied(group) for group in block.layout.groups]
    numbers = np.frombuffer(Blocks(old.fs, f"{old.path}/debug", True).read(block, 0, block.length), "<f8")
    random = np.random.default_rng(seed)
    pace, phase = random.uniform(1e-4, 1e-2, numbers.size), random.uniform(0, 6, numbers.size)
    with Run(folder) as run:
        segments = Segments(run)
        for step in range(steps):
            noise = random.normal(0, 0.05, numbers.size)
            now = numbers * np.exp(np.sin(pace * step + phase) + noise)
            record = {"step": step, "mode": "train", "mode_step": step, "time": time.time(), "marks": {}}
            segments.write(groups, [now.tobytes()], record)
        segments.close()
        for number in range(FOUND):
            points = [(step, random.random()) for step in range(steps - 20, steps)]
            text = "its gradients are thousands of times smaller than those of the layers behind it"
            names = (f"layers.{number}.weight",)
            finding = Finding(
                "vanishing_gradient",
                "warning",
                steps - 1,
                "train",
                text,
                names,
                {names[0]: points},
                "add norms",
            )
            run.append("debug", "findings", finding.record())


def opened(path: Path) -> dict[str, float]:
    """Return the median seconds until a page can be seen, for each window."""
    from playwright.sync_api import sync_playwright

    quantities: dict[str, float] = {}
    with sync_playwright() as playwright:
        browser: Any = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        for name, (width, height) in WINDOWS.items():
            times = []
            for _ in range(LOADS):
                page = browser.new_page(viewport={"width": width, "height": height})
                page.goto(path.as_uri(), wait_until="commit")
                times.append(page.wait_for_function(READY).json_value() / 1e3)
                page.close()
            quantities[f"open, {name}"] = statistics.median(times)
        quantities |= used(browser, path)
        browser.close()
    return quantities


def used(browser: Any, path: Path) -> dict[str, float]:
    """Return the median milliseconds of zooming, searching and selecting."""
    width, height = WINDOWS["desktop"]
    page = browser.new_page(viewport={"width": width, "height": height})
    page.goto(path.as_uri())
    zooms, searches = [], []
    for number in range(LOADS):
        page.locator(MAP).scroll_into_view_if_needed()
        page.wait_for_selector(f"{MAP}[data-drawn] .main-svg", state="attached")
        page.wait_for_timeout(SETTLED)
        page.eval_on_selector(MAP, ZOOM)
        box = page.locator(f"{MAP} .nsewdrag").first.bounding_box()
        x, y = box["x"] + 0.2 * box["width"], box["y"] + 0.2 * box["height"]
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x + (0.3 + 0.05 * number) * box["width"], y + 0.5 * box["height"], steps=3)
        page.mouse.up()
        page.wait_for_timeout(SETTLED)
        zooms.append(page.evaluate("() => window.zoomed()"))
        page.eval_on_selector(MAP, WHOLE)
    page.locator(".picker").scroll_into_view_if_needed()
    for number in range(LOADS):
        page.wait_for_timeout(SETTLED)
        searches.append(page.evaluate(SEARCH, f"layers.{11 * number + 10}"))
    page.close()
    found, selected = zip(*searches, strict=True)
    medians = {"zoom": zooms, "search": found, "select": selected}
    return {name: statistics.median(values) for name, values in medians.items()}


def measured(seed: int) -> dict[str, float]:
    """Measure the bytes and seconds of one run's page."""
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        run = f"{folder}/run"
        make(run, STEPS // 10 if QUICK else STEPS, seed)
        from loopwise.report import report

        report(run)  # imports what it needs
        start = time.perf_counter()
        path = Path(report(run))
        seconds = time.perf_counter() - start
        size = path.stat().st_size / 1e6
        return {"size": size, "make": seconds, **opened(path)}


def cases(device: str) -> dict[str, Callable[[int], dict[str, float]]]:
    return {"long": functools.partial(measured)}


def rows(runs: Runs) -> list[Row]:
    quantities = runs["long"]
    steps = STEPS // 10 if QUICK else STEPS
    of = f"page of {steps:,} steps x {LAYERS} layers"
    shown = [
        Row(f"{of}: size", quantities["size"], None, "", "MB", "ours <= 15"),
        Row(f"{of}: time to make it", quantities["make"], None, "", "s", None),
    ]
    for name in WINDOWS:
        key = f"open, {name}"
        shown.append(Row(f"{of}: time to open it, {name}", quantities[key], None, "", "s", "ours <= 3"))
    for name, words in {"zoom": "zoom into a heat map of all layers", "search": "search a layer"}.items():
        shown.append(Row(f"{of}: {words}", quantities[name], None, "", "ms", "ours <= 200"))
    shown.append(Row(f"{of}: select a layer for all plots", quantities["select"], None, "", "ms", None))
    return shown


if __name__ == "__main__":
    harness.main(sys.modules[__name__])

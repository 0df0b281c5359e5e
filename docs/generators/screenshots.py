"""Take the pictures of pages for the documents: ``python -m docs.generators.screenshots``.

The runs are those of the blocks of ``docs/tutorial.md`` and of a small tuning job.  They take some minutes, and times and
pixels differ from one machine to another, so ``make docs`` leaves the pictures as they are.  Chromium is needed.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

DOCS = Path(__file__).parents[1]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MOST = 200_000
"""Most bytes of a picture."""
PICTURES = {
    "findings": ("runs/mistake", None, 660),
    "layers": ("runs/digits", "layers", 780),
    "tune": ("runs/job", None, 670),
}
"""Picture -> run, section that it begins with (the top of the page if there is none), and height."""
PROGRAM = """\
import sys
import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier

alpha, eta0, loss = float(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
images, labels = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(labels))
images, labels = images[order] / 16, labels[order]
model = SGDClassifier(loss, alpha=alpha, learning_rate="constant", eta0=eta0, random_state=0)
for epoch in range(12):
    model.partial_fit(images[:1400], labels[:1400], classes=range(10))
    print(f"accuracy={model.score(images[1400:], labels[1400:]):.4f}", flush=True)
"""


def train() -> None:
    """Run the blocks of the tutorial in the present folder."""
    text = (DOCS / "tutorial.md").read_text()
    names = {"__name__": "tutorial"}
    for block in re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        exec(compile(block, "tutorial.md", "exec"), names)


def tune() -> None:
    """Run a tuning job in the present folder."""
    from loopwise.tune import Categorical, Continuous, Job, Limits, Metric, Objective, run

    Path("train.py").write_text(PROGRAM)
    job = Job(
        command=f"{sys.executable} train.py {{alpha}} {{eta0}} {{loss}}",
        parameters={
            "alpha": Continuous(low=1e-6, high=1e-1, scale="log"),
            "eta0": Continuous(low=1e-3, high=1.0, scale="log"),
            "loss": Categorical(values=("hinge", "log_loss")),
        },
        metrics=[Metric(name="validation:accuracy", regex=r"accuracy=(\S+)")],
        objective=Objective(metric="validation:accuracy", goal="maximize"),
        limits=Limits(trials=24, parallel=2),
        seed=0,
    )
    run(job, "runs/job")


def take(page: Page, run: str, section: str | None, height: int, to: Path) -> None:
    """Take one picture of the page of a run, of at most 256 colours.

    Raises:
        ValueError: the picture is too large.
    """
    from loopwise.report import report

    page.set_viewport_size({"width": 1200, "height": height})
    page.goto(Path(report(run, str(to.with_suffix(".html").name))).resolve().as_uri())
    if section is not None:
        page.evaluate("id => document.getElementById(id).scrollIntoView()", section)
    page.wait_for_timeout(1500)  # plots are drawn when they can be seen
    page.screenshot(path=to)
    Image.open(to).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(to, optimize=True)
    if to.stat().st_size > MOST:
        raise ValueError(f"{to} has {to.stat().st_size:,} bytes, more than {MOST:,}")
    print(f"written: {to.relative_to(DOCS.parent)}, {to.stat().st_size:,} bytes")


def main() -> None:
    """Train, tune, and take all pictures."""
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        raise SystemExit("no browser: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        train()
        tune()
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=executable)
            page = browser.new_page(color_scheme="light", reduced_motion="reduce")
            for name, (run, section, height) in PICTURES.items():
                take(page, run, section, height, DOCS / "assets" / f"{name}.png")
            browser.close()
        os.chdir(DOCS.parent)


if __name__ == "__main__":
    main()

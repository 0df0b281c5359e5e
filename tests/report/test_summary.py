"""The first paragraph of a page: sentences of all parts, in plain words."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from loopwise.debug import Watch
from loopwise.debug.page.in_short import sentences
from loopwise.report.facts import Facts
from loopwise.report.page import coded, state
from loopwise.report.sections import Section
from loopwise.report.summary import in_words, summarized
from loopwise.run import Run
from loopwise.sift import SiftingDataLoader


def paragraph(run):
    """Return the first section's title and its words."""
    first = state(str(run))["sections"][0]
    return first["title"], " ".join(re.sub("<[^>]*>", " ", first["blocks"][0]["html"]).split())


def test_a_run_of_all_parts_in_short(tmp_path):
    torch.manual_seed(0)
    net = nn.Linear(8, 3)
    data = TensorDataset(torch.randn(128, 8), torch.randint(0, 3, (128,)))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    criterion = nn.CrossEntropyLoss(reduction="none")
    with Run(tmp_path / "run") as run:
        loader = SiftingDataLoader(DataLoader(data, batch_size=8), net, criterion, keep=0.5, run=run)
        with Watch(net, optimizer, run=run) as watch:
            for _ in range(3):
                for x, y in loader:
                    loss = criterion(net(x), y).mean()
                    loss.backward()
                    optimizer.step()
                    optimizer.zero_grad()
                    watch.step(loss=loss, accuracy=0.5)
        loader.close()
        run.append("compile", "plans", compiled(40.0, 20.0))
    title, words = paragraph(tmp_path / "run")
    assert title == "In short"
    assert re.match(r"The training finished after [\d.]+ s\. In \d+ steps loss went from \d", words)
    assert "accuracy went from 0.5 to 0.5." in words
    assert re.search(r"Sifting left out \d+ of \d+ samples \(\d+%\)\. Scoring and selecting took", words)
    assert "The compiled step takes 20.0 ms for forward and backward instead of 40.0 ms (0.50)." in words
    assert words.endswith("No fault was found.")


def compiled(eager, chosen):
    """Return a record of a plan that was chosen, with the milliseconds of both variants."""
    row = {"least": 1.0, "most": 99.0, "MiB": None, "compile s": 1.0}
    forms = [
        row | {"form": "eager", "ms": eager, "verdict": "chosen" if eager <= chosen else "not faster"},
        row | {"form": "inductor", "ms": chosen, "verdict": "not faster" if eager <= chosen else "chosen"},
    ]
    return {"batch": 0, "plan": None, "source": "measured now", "forms": forms, "remarks": []}


def test_a_step_that_stays_eager(tmp_path):
    with Run(tmp_path / "run") as run:
        run.append("compile", "plans", compiled(20.0, 30.0))
    assert paragraph(tmp_path / "run")[1].endswith(
        "No compiled variant of the step was faster than the eager one."
    )


def test_the_worst_finding_is_the_one_to_look_at(tmp_path):
    net = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with Watch(net, optimizer, run=tmp_path / "run", trap=True) as watch:
        for _ in range(3):
            loss = net(torch.full((2, 4), torch.nan)).sum()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            watch.step(loss=loss)
    words = paragraph(tmp_path / "run")[1]
    assert re.search(r"There are \d critical findings", words)
    assert "look first at non_finite at step 0: " in words


@pytest.mark.parametrize(
    ("of", "words"),
    [
        ("finished", "The training finished after 1 min 5 s."),
        ("failed", "The training failed after 1 min 5 s."),
        ("ended", "The training was killed, or its machine was, after about 1 min 5 s."),
    ],
)
def test_the_end_of_a_run_in_words(of, words):
    info = {"start": 1000.0, "end": None if of == "ended" else 1065.0}
    assert in_words(Facts("runs/a", info, of, 1065.0)) == words
    assert in_words(Facts("runs/a", {}, of, 1065.0)) == ""


def test_a_page_without_sentences_has_no_such_section():
    facts = Facts("runs/a", {}, "finished", 0.0)
    sections = [Section("a", "A", 1.0, [{"kind": "text", "text": "x"}])]
    assert summarized(facts, sections) == sections
    only = [Section("a", "A", 1.0, [{"kind": "summary", "text": "Two.", "order": 2}])]
    [first] = summarized(
        facts, [*only, Section("b", "B", 2.0, [{"kind": "summary", "text": "One.", "order": 1}])]
    )
    assert json.dumps(first.blocks) == '[{"kind": "text", "text": "One. Two."}]'


def test_backticks_are_code_and_nothing_else_is_html():
    assert coded("<b> `a <i>` & `") == "&lt;b&gt; <code>a &lt;i&gt;</code> &amp; `"


@pytest.mark.parametrize(
    ("mode", "steps", "said"),
    [
        ("train", [0, 1], "In 2 steps loss went"),
        ("train", [30, 40], "From step 30 to step 40 loss went"),
        ("train", [7], "At step 7 loss was"),
        ("eval", [0, 1], "In 2 steps loss of eval went"),
    ],
)
def test_a_resumed_training_does_not_begin_at_step_0(mode, steps, said):
    saved = SimpleNamespace(
        modes=[mode],
        steps=lambda asked=None: steps if asked in (None, mode) else [],
        names=lambda collection: ["loss"] if collection == "losses" else [],
        series_by_mode=lambda name: {mode: (np.array(steps), np.array([2.0, 1.0][: len(steps)]))},
    )
    assert next(sentences(saved, [], saved.series_by_mode))["text"].startswith(said)

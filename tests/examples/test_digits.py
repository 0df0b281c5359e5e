"""The digits example: three short trainings, their table, and the page of the last one."""

import functools
import re

import pytest
from click.testing import CliRunner

from loopwise.cli import main
from loopwise.compile.explain import Explanation
from loopwise.compile.plan import Plan
from loopwise.examples import digits
from loopwise.run import Run


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """Shrink the data and pin a plan that needs no compiler; the search has tests of its own."""
    dataset, images, labels = digits.data()
    small = digits.Digits(*(tensor[:64] for tensor in dataset.tensors))
    monkeypatch.setattr(digits, "data", lambda: (small, images[:50], labels[:50]))
    pinned = functools.partial(digits.TrainStep, plan=Plan(graph="captured"))
    monkeypatch.setattr(digits, "TrainStep", pinned)
    monkeypatch.chdir(tmp_path)


def test_the_demo_trains_compares_and_writes_a_page(quick, tmp_path):
    done = CliRunner().invoke(main, ["demo", "--epochs", "1"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    for text in (
        "plain loop",
        "+ sift",
        "+ compile, debug",
        "correct on test digits",
        "digits through backward",
    ):
        assert text in done.output
    assert re.search(r"digits seen\W+64\W+64\W+64\W", done.output)
    assert "compile: " in done.output
    assert re.search(r"page of the last training: \S*runs/digits/report.html\n", done.output)
    page = (tmp_path / "runs" / "digits" / "report.html").read_text()
    for section in ("findings", "sift", "compile", "phases"):
        assert f'id="{section}"' in page
    assert Run.existing(tmp_path / "runs" / "digits").info()["state"] == "finished"


def test_one_loop_is_trained_alone_into_a_new_folder(quick, tmp_path):
    (tmp_path / "runs" / "digits").mkdir(parents=True)
    assert digits.arguments([]).run == "runs/digits-2"
    done = CliRunner().invoke(main, ["demo", "--epochs", "1", "--only", "plain"], catch_exceptions=False)
    assert "plain loop" in done.output
    assert "+ sift" not in done.output
    assert not (tmp_path / "runs" / "digits-2").exists()


class Step:
    """Training step of which only the explanation is asked for."""

    def __init__(self, *rows):
        self.rows = rows

    def explain(self):
        keys = ("form", "ms", "verdict")
        return Explanation(Plan(), [dict(zip(keys, row, strict=True)) for row in self.rows], [])


def test_the_choice_of_the_step_is_said_in_words():
    stays = "compile: no other variant of the step was faster on this machine, so it stays as it is."
    assert digits.outcome(Step(("eager", 12.0, "chosen"), ("inductor", 13.0, "not faster"))) == stays
    assert digits.outcome(Step()) == stays
    reason = "was chosen, left later: after 8 batches: gradient/x is off"
    assert digits.outcome(Step(("eager", 12.0, "in use"), ("captured", 8.0, reason))) == (
        "compile: the variant 'captured' was chosen, and left later for the usual step: after 8 batches: gradient/x is off."
    )
    again = Step(("eager", None, "not timed"), ("inductor", None, "chosen"))
    assert digits.outcome(again) == (
        "compile: the variant 'inductor' of the step was the fastest in an earlier run, and is used again."
    )
    left = digits.outcome(Step(("eager", None, "in use"), ("inductor", None, reason)))
    assert left.startswith("compile: the variant 'inductor' was chosen, and left later")
    assert digits.outcome(
        Step(("eager", 12.0, "not faster"), ("x", None, "failed"), ("inductor", 8.2, "chosen"))
    ) == (
        "compile: the fastest variant of the step is 'inductor', with 8 ms for forward and backward of a batch "
        "instead of 12 ms."
    )

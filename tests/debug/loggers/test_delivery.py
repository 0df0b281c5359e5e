"""Delivery to loggers: in order, live, without training waiting, and without a word of theirs reaching it."""

import threading
import time

import pytest
import torch
from torch import nn

from loopwise.debug import Finding, Watch, every
from loopwise.debug.loggers import delivery
from loopwise.errors import InputError
from loopwise.warnings import LoopwiseWarning


class Kept:
    """Logger that keeps what it is given."""

    statistics = ("std", "ratio")

    def __init__(self):
        self.steps, self.findings, self.closed = [], [], 0

    def log_steps(self, steps):
        self.steps += steps

    def log_finding(self, finding):
        self.findings.append(finding)

    def close(self):
        self.closed += 1


class Slow(Kept):
    """Logger that takes nothing until the gate opens."""

    def __init__(self):
        super().__init__()
        self.gate, self.waits = threading.Event(), threading.Event()

    def log_steps(self, steps):
        self.waits.set()
        assert self.gate.wait(600)
        super().log_steps(steps)


class Failing(Kept):
    def log_steps(self, steps):
        raise ConnectionError("no route to the server")


def train(folder, *loggers, steps=6, softmax=False, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3), *[nn.Softmax(1)] * softmax)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    with Watch(
        model, optimizer, run=folder / "run", loggers=loggers, **({"profile": False} | options)
    ) as watch:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(torch.randn(16, 4)), torch.randint(0, 3, (16,)))
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            watch.step(loss=loss)
    return losses, watch


def test_loggers_get_scalars_of_every_step_and_statistics_of_saved_ones(tmp_path):
    kept = Kept()
    losses, watch = train(tmp_path, kept)
    assert [step.step for step in kept.steps] == list(range(6))
    assert [step.scalars["train/loss"] for step in kept.steps] == losses
    assert all({"train/learning_rate", "train/gradient_norm"} <= set(step.scalars) for step in kept.steps)
    with_statistics = [step.step for step in kept.steps if "std/gradient/0.weight" in step.scalars]
    assert with_statistics == [0, 1, 2, 5]
    assert {"std/0.weight", "ratio/update/0.weight"} <= set(kept.steps[0].scalars)
    assert not [name for step in kept.steps for name in step.scalars if name.startswith(("mean/", "min/"))]
    assert kept.closed == 1
    assert not watch.counts["unlogged"]


def test_loggers_get_evaluations_and_findings(tmp_path):
    kept = Kept()
    model = nn.Linear(4, 3)
    with Watch(model, run=tmp_path / "run", loggers=[kept], save=every(1), trap=False) as watch:
        with watch.mode("eval"):
            watch.step(loss=2.0)
        watch.step(loss=float("nan"))
    assert [(step.mode, step.scalars.get("eval/loss")) for step in kept.steps] == [
        ("eval", 2.0),
        ("train", None),
    ]
    assert [finding.rule for finding in kept.findings] == ["exploding_tensor"]


def test_findings_reach_the_functions_of_the_user_as_well(tmp_path):
    kept, told = Kept(), []
    train(tmp_path, kept, softmax=True, on_finding=told.append)
    assert kept.findings
    assert kept.findings == told


def test_a_logger_is_live(tmp_path):
    """The first steps are delivered while training goes on."""
    kept = Slow()
    kept.gate.set()
    model = nn.Linear(4, 3)
    with Watch(model, run=tmp_path / "run", loggers=[kept], profile=False) as watch:
        watch.step(loss=1.0)
        assert kept.waits.wait(600)
        assert not kept.closed


def test_training_does_not_wait_for_a_logger_and_drops_are_counted_and_said_once(tmp_path, monkeypatch):
    monkeypatch.setattr(delivery, "CAPACITY", 5)
    slow, kept, model = Slow(), Kept(), nn.Linear(4, 3)
    said = pytest.warns(LoopwiseWarning, match="Slow is slower than training: steps are left out")
    options = {"loggers": [slow, kept], "save": every(1), "profile": False}
    with said as caught, Watch(model, run=tmp_path / "run", **options) as watch:
        watch.step(loss=0.0)
        assert slow.waits.wait(600)
        for number in range(1, 40):
            watch.step(loss=float(number))
            while (
                len(kept.steps) <= number
            ):  # the other logger has taken the step, as nothing waits for the slow one
                time.sleep(0.001)
        slow.gate.set()
    assert len(caught) == 1
    assert watch.counts["unlogged"] == 40 - len(slow.steps) >= 30
    assert [step.step for step in slow.steps] == list(range(len(slow.steps)))


def test_a_logger_that_never_answers_is_left_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(delivery, "PATIENCE", 0.3)
    slow = Slow()
    with pytest.warns(LoopwiseWarning, match=r"Slow has not ended after 0.3 seconds: \d+ or more steps"):
        train(tmp_path, slow)
    slow.gate.set()


def test_a_failing_logger_is_reported_once_and_steps_aside(tmp_path):
    failing, kept = Failing(), Kept()
    with pytest.warns(LoopwiseWarning, match="Failing is switched off: ConnectionError") as caught:
        losses, _ = train(tmp_path, failing, kept, steps=8)
    assert len(caught) == 1
    assert failing.closed == 1
    assert len(kept.steps) == 8
    assert losses == train(tmp_path / "plain", steps=8)[0]


def test_an_error_for_a_finding_or_at_the_end_is_reported(tmp_path):
    class Closing(Kept):
        def close(self):
            raise OSError("disk full")

    with pytest.warns(LoopwiseWarning, match=r"Closing is switched off: OSError\('disk full'\)"):
        train(tmp_path, Closing())


def test_no_thread_for_a_logger_is_said(tmp_path, monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(delivery.threading.Thread, "start", refuse)
    one = delivery.Deliveries([Kept()])
    one.add_finding(Finding("loss_spike", "warning", 0, "train", "", (), {}, ""))
    one.close()
    assert one.problems() == ["""Kept is switched off: RuntimeError("can't start new thread")"""]


@pytest.mark.parametrize("wrong", ["tensorboard", Kept, object(), [3]])
def test_what_is_no_logger_is_refused(tmp_path, wrong):
    with pytest.raises(InputError, match="expected: objects with the methods log_steps, log_finding, close"):
        Watch(nn.Linear(2, 2), run=tmp_path / "run", loggers=wrong)
    assert not (tmp_path / "run").exists()

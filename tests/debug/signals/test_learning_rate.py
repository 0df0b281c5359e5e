"""Schedules with a fault have findings, real ones have none."""

import contextlib

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from benchmarks.zoo import Job
from benchmarks.zoo.job import accumulated, scheduled
from loopwise.debug.rules import RULES
from loopwise.debug.rules.thresholds import select
from loopwise.debug.signals.learning_rate import Rates


def rates(optimizer):
    return Rates({"": optimizer}, contextlib.nullcontext(), lambda _: None)


def stepped(make, steps, order="ss", every=1, unit=1):
    """Return the facts of a training with a scheduler, whose calls in a step have an ``order``.

    Args:
        make: from an optimizer to a scheduler.
        every: steps for one update.
        unit: steps for one of the scheduler.
    """
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    optimizer.param_groups[0]["params"][0].grad = torch.ones(1)
    schedule = make(optimizer)
    found = rates(optimizer)
    found.begin()
    for step in range(steps):
        if order == "before" and step % unit == unit - 1:
            schedule.step()
        if step % every == every - 1:
            optimizer.step()
        if order != "before" and step % unit == unit - 1:
            schedule.step()
        found.begin()
    found.close()
    return found.facts()


class Past:
    """Return a history with facts only."""

    def __init__(self, facts):
        self.now, self.number = self, 1
        self.facts = {"rates": facts}

    def steps(self):
        return [self]


def said(*args, **more):
    return [seen.what for seen in RULES["scheduler_order"].detect(Past(stepped(*args, **more)))]


@pytest.mark.parametrize(
    ("make", "steps", "more", "what"),
    [
        (
            lambda o: lr_scheduler.ExponentialLR(o, 0.9),
            2,
            {"order": "before"},
            "before the optimizer's first",
        ),
        (lambda o: lr_scheduler.ExponentialLR(o, 0.999), 80, {"every": 4}, "several times before one update"),
        (lambda o: lr_scheduler.StepLR(o, 10), 100, {}, "60 more updates followed"),
        (lambda o: lr_scheduler.PolynomialLR(o, 50), 100, {}, "50 more updates followed"),
        (lambda o: lr_scheduler.ExponentialLR(o, 0.9), 140, {}, "fell from 0.1 to"),
        (lambda o: lr_scheduler.CosineAnnealingLR(o, 10), 80, {}, "rose again"),
    ],
)
@pytest.mark.filterwarnings("ignore:Detected call of")
def test_a_schedule_that_does_not_fit(make, steps, more, what):
    (found,) = said(make, steps, **more)
    assert what in found


def warm(step):
    return min(1.0, step / 10) * max(0.0, 1 - step / 200)


@pytest.mark.parametrize(
    ("make", "steps", "more"),
    [
        (lambda o: lr_scheduler.CosineAnnealingLR(o, 200), 200, {}),
        (lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=201), 200, {}),
        (lambda o: lr_scheduler.LambdaLR(o, warm), 200, {}),
        (lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 20), 200, {}),
        (lambda o: lr_scheduler.CyclicLR(o, 1e-3, 0.1, step_size_up=20), 200, {}),
        (lambda o: lr_scheduler.StepLR(o, 60), 200, {}),
        (lambda o: lr_scheduler.CosineAnnealingLR(o, 10), 200, {"unit": 20}),
        (lambda o: lr_scheduler.CosineAnnealingLR(o, 50), 200, {"every": 4, "unit": 4}),
        (lambda o: lr_scheduler.ExponentialLR(o, 0.99), 200, {"every": 2, "unit": 2}),
    ],
)
def test_schedules_that_fit(make, steps, more):
    assert said(make, steps, **more) == []


@pytest.mark.parametrize("rate", [None, torch.tensor(0.1), "adaptive"])
def test_optimizers_that_find_their_own_rate(rate):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    optimizer.param_groups[0]["lr"] = rate
    found = rates(optimizer)
    found.begin()
    del optimizer.param_groups[0]["lr"]
    found.begin()
    found.close()


def test_rates_that_are_set_by_hand_before_the_first_update():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    found = rates(optimizer)
    found.begin()
    optimizer.param_groups[0]["lr"] = 0.01
    optimizer.step()
    found.close()
    assert not found.facts()[""]["early"]


def test_updates_that_grad_scaler_skips_at_first():
    """The schedule goes on, the optimizer does not."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule = lr_scheduler.ExponentialLR(optimizer, 0.99)
    found = rates(optimizer)
    for step in range(40):
        found.begin()
        if step >= 12:
            optimizer.step()
        optimizer._opt_called = True  # or torch warns
        schedule.step()
    found.close()
    assert [*RULES["scheduler_order"].detect(Past(found.facts()))] == []


def test_there_is_nothing_to_say_of_a_constant_rate():
    assert stepped(lambda o: lr_scheduler.ConstantLR(o, 1.0), 40) == {}
    assert [*RULES["scheduler_order"].detect(Past({}))] == []


def test_hooks_are_taken_off():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    rates(optimizer).close()
    assert not optimizer._optimizer_step_pre_hooks


def test_a_training_with_a_schedule_and_accumulation(tmp_path):
    job = Job("mlp", 0, steps=120)
    accumulated(job, 4)
    update = job.update

    def both(optimizer, schedule, step):
        update(optimizer, step)
        if step % 4 == 3:
            schedule.step()

    scheduled(job, lambda o: lr_scheduler.CosineAnnealingLR(o, 30), both)
    assert job.run(str(tmp_path / "run")).findings == []


def test_the_rule_is_chosen_by_name():
    assert "scheduler_order" in select(["scheduler_order"], "saved step")

"""A step that cannot be recorded stays ordinary, and ``explain()`` says why."""

import random

import numpy as np
import pytest
import torch
from cuda_graph_kit import DEVICE, OPTIMIZERS, PLAN, batches, net, said, same, trained
from torch import nn

from loopwise.compile import TrainStep


class Waiting(nn.Module):
    def forward(self, x, y):
        return nn.functional.cross_entropy(x, y) * (2 if x.sum().item() > -1e9 else 1)


class Drawing(nn.Module):
    def forward(self, x, y):
        return nn.functional.cross_entropy(x, y) * random.random()


class DrawingItsOwn(nn.Module):
    def __init__(self):
        super().__init__()
        self.draws = [np.random.default_rng(0)]

    def forward(self, x, y):
        return nn.functional.cross_entropy(x, y) * self.draws[0].random()


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.seen = 0

    def forward(self, x, y):
        self.seen += 1
        return nn.functional.cross_entropy(x, y) / self.seen


class Replacing(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(3, device=DEVICE))

    def forward(self, x, y):
        self.mean = 0.5 * self.mean + 0.5 * x.detach().mean(0)
        return nn.functional.cross_entropy(x - self.mean, y)


def hooked(number, step, optimizer):
    if number == 0:
        step.spec.model[0].register_forward_hook(lambda *_: None)


def stepped(number, step, optimizer):
    if number == 0:
        optimizer.register_step_post_hook(lambda *_: None)


def graded(number, step, optimizer):
    if number == 0:
        step.spec.model[0].weight.register_hook(lambda grad: grad * 1.5)


def unfused(number, step, optimizer):
    if number == 0:
        for group in optimizer.param_groups:
            group["fused"], group["foreach"] = False, True


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"criterion": Waiting}, "RuntimeError: "),
        ({"criterion": Drawing}, "RuntimeError: the step draws random numbers that are not the GPU's"),
        (
            {"criterion": Counting},
            "RuntimeError: numbers that are attributes of the model change at each step",
        ),
        ({"criterion": Replacing}, "wrong: its losses are off by"),
        ({"change": hooked}, "hooks of the model or the optimizer would not be called"),
        ({"change": stepped}, "hooks of the model or the optimizer would not be called"),
        ({"change": graded}, "hooks of the model or the optimizer would not be called"),
        ({"change": unfused, "make": "sgd"}, "the optimizer is neither fused nor capturable"),
    ],
    ids=lambda value: next(iter(value.values())).__name__ if isinstance(value, dict) else "",
)
def test_what_cannot_be_recorded_stays_ordinary_and_says_why(recorder, options, why):
    runs = []
    for on in (True, False):
        random.seed(0)
        runs.append(trained(on, batches(8), **options))
    same(*runs)
    assert not runs[0][3].plan.cuda_graph
    assert said(runs[0][3])[-1].startswith(f"CUDA graph: left off, {why}")
    if DEVICE == "cpu" and options.get("criterion") is Waiting:
        assert recorder.settled == 1


def test_steps_that_do_not_repeat_themselves_tell_nothing(recorder):
    *_, step = trained(True, batches(8), criterion=DrawingItsOwn)
    assert not step.plan.cuda_graph
    assert said(step)[-1].startswith("CUDA graph: left off, two runs of the ordinary steps give different")


def test_a_hook_that_comes_later_ends_it(recorder):
    called = []

    def watch(number, step, optimizer):
        if number == 7:
            optimizer.register_step_pre_hook(lambda *_: called.append(number))

    whole = trained(True, batches(12), change=watch)
    same(whole, trained(False, batches(12), change=watch))
    assert len(called) == 10  # five steps each
    assert not whole[3].plan.cuda_graph


def test_a_batch_with_other_things_than_tensors_stays_ordinary(recorder):
    model = net()

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch["x"]), batch["y"]) * batch["factor"]

    step = TrainStep(model, loss, OPTIMIZERS["adamw"](model), plan=PLAN)
    for number, (x, y) in enumerate(batches(8)):
        step({"x": x, "y": y, "factor": 1.0 + number})
    assert said(step)[-1].startswith("CUDA graph: left off, the batch holds other things than tensors")


def test_a_parameter_that_no_optimizer_has_stays_as_in_the_usual_loop(recorder):
    model = net()
    step = TrainStep(
        model, nn.CrossEntropyLoss(), torch.optim.AdamW(model[4].parameters(), lr=0.1, fused=True), plan=PLAN
    )
    for batch in batches(6):
        step(batch)
    assert "does not have all parameters" in said(step)[-1]

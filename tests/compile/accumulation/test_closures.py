"""Optimizers whose step takes a closure train eagerly, as in the usual loop."""

import copy

import pytest
import torch
from torch import nn

from loopwise.compile import Plan, TrainStep
from loopwise.errors import InputError

CRITERION = nn.CrossEntropyLoss()


class Twice(torch.optim.Optimizer):
    """Gradient descent that needs the gradient at a second point; it counts its steps in an attribute."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, {"lr": lr})
        self.steps = 0

    @torch.no_grad()
    def step(self, closure):
        self.steps += 1
        closure = torch.enable_grad()(closure)
        loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_(parameter.grad, alpha=group["lr"])
        closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_(parameter.grad, alpha=group["lr"])
        return loss


OPTIMIZERS = {
    "LBFGS": lambda parameters: torch.optim.LBFGS(
        parameters, lr=0.5, max_iter=4, line_search_fn="strong_wolfe"
    ),
    "Twice": lambda parameters: Twice(parameters, lr=0.1),
}


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.GELU(), nn.Linear(8, 3))


def batches(count=4):
    draws = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 6, generator=draws), torch.arange(8) % 3) for _ in range(count)]


def plain(optimizer, model, data):
    losses = []
    for x, y in data:

        def closure(x=x, y=y):
            optimizer.zero_grad()
            loss = CRITERION(model(x), y)
            loss.backward()
            return loss

        losses.append(optimizer.step(closure).item())
    return losses


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("autotune", ["off", "default"])
def test_they_train_as_the_usual_loop(name, autotune):
    ours, theirs = net(), net()
    optimizers = [OPTIMIZERS[name](model.parameters()) for model in (ours, theirs)]
    step = TrainStep(ours, CRITERION, optimizers[0], autotune=autotune)
    schedules = [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9) for optimizer in optimizers]
    for batch in batches():
        assert step(batch).item() == plain(optimizers[1], theirs, [batch])[0]
        for schedule in schedules:
            schedule.step()
    for one, other in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert step.plan == Plan()
    text = f"eager: {name} computes losses and gradients several times in an update, by calls of a closure"
    assert text in str(step.explain())
    before = copy.deepcopy(ours.state_dict())
    assert step.verify(batches()[0], steps=3) is None
    assert not step.flush()
    step.replan(batches()[0])
    assert step.plan == Plan()
    assert all(torch.equal(value, before[key]) for key, value in ours.state_dict().items())


def test_losses_of_samples_are_those_of_the_first_call():
    model = net().eval()
    each = nn.CrossEntropyLoss(reduction="none")
    step = TrainStep(model, each, OPTIMIZERS["LBFGS"](model.parameters()))
    x, y = batches()[0]
    expected = each(model(x), y)
    loss = step((x, y))
    torch.testing.assert_close(step.losses, expected.detach())
    torch.testing.assert_close(loss, expected.mean().detach())


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"accumulate": 2}, "accumulate"),
        ({"clip": 1.0}, "clip"),
        ({"scaler": torch.amp.GradScaler("cpu"), "accumulate": 2}, "accumulate, scaler"),
    ],
)
def test_what_wraps_the_update_is_refused(options, names):
    model = net()
    with pytest.raises(InputError) as error:
        TrainStep(model, CRITERION, OPTIMIZERS["LBFGS"](model.parameters()), **options)
    assert error.value.args == (
        f"{names} with LBFGS, whose step takes a closure",
        "LBFGS alone",
        "LBFGS computes losses and gradients several times in an update, by calls of the closure",
        f"drop {names}, or take an optimizer without a closure",
    )


def test_another_plan_is_not_used_and_counts_are_refused():
    model = net()
    optimizer = OPTIMIZERS["Twice"](model.parameters())
    step = TrainStep(model, CRITERION, optimizer, plan=Plan(graph="captured"))
    assert step(batches()[0]).isfinite()
    assert step.plan == Plan()
    assert str(step.explain()).endswith("by calls of a closure; the plan captured is not used")
    with pytest.raises(InputError, match="seen: count=3 with Twice, whose step takes a closure"):
        step(batches()[0], count=3)


def test_a_closure_that_may_be_left_out_is_none():
    model = net()
    step = TrainStep(model, CRITERION, torch.optim.SGD(model.parameters(), lr=0.1), clip=1.0, plan=Plan())
    assert not step.spec.needs_closure

"""Origins that a replay names: the operation, module, line and samples of the first value that is not finite."""

import contextlib
import inspect

import pytest
import torch
from torch import nn

from loopwise.debug.nan import replay
from loopwise.debug.nan.calls import Calls


class Odd(nn.Module):
    """Apply one function between two layers."""

    def __init__(self, does):
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(4, 4), Middle(does), nn.Linear(4, 3)

    def forward(self, x):
        return self.last(self.middle(self.first(x)))


class Middle(nn.Module):
    def __init__(self, does):
        super().__init__()
        self.does = does

    def forward(self, x):
        return self.does(x)


def one(fn):
    """Apply ``fn`` to row 2 alone."""

    def does(x):
        return torch.cat([x[:2], fn(x[2:3]), x[3:]])

    return does


class BadBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("nan")


def traced(model, *args, loss=lambda out: out.square().mean(), **kwargs):
    """Return the origin of a replay after one forward and backward pass."""
    calls = Calls({"": model}, 3, contextlib.nullcontext())
    calls.open = True
    calls.begin(0)
    loss(model(*args, **kwargs)).backward()
    (call,) = calls
    calls.close()
    return replay(model, call)


@pytest.mark.parametrize(
    ("fn", "operation"),
    [
        (lambda x: torch.log(-x.abs() - 1), "log"),
        (lambda x: x / torch.zeros_like(x), "div"),
        (lambda x: torch.exp(x * 0 + 1000), "exp"),
        (lambda x: x * float("nan"), "mul"),
        (lambda x: x.clone().sub_(float("inf")), "sub_"),
    ],
)
def test_forward(fn, operation):
    found = traced(Odd(one(fn)), torch.randn(6, 4))
    assert (found.where, found.module, found.kind, found.operation) == (
        "forward",
        "middle",
        "Middle",
        operation,
    )
    assert found.line.rpartition(":")[0].endswith("test_replay.py")
    assert "4 values" in found.tensor


def test_samples_of_a_whole_batch():
    def does(x):
        keep = torch.ones(6, 1)
        keep[4] = 0
        return x / keep

    found = traced(Odd(does), torch.randn(6, 4))
    assert found.samples == (4,)
    assert "in samples 4" in str(found)


@pytest.mark.parametrize(
    ("does", "operation"),
    [
        (BadBackward.apply, "BadBackward"),
        (lambda x: torch.sqrt(torch.relu(x) * 0), "Sqrt"),
        (lambda x: torch.where(x > 100, torch.log(x * 0), x), "Log"),
    ],
)
def test_backward(does, operation):
    model = Odd(does)
    found = traced(model, torch.randn(6, 4))
    assert (found.where, found.module, found.operation) == ("backward", "middle", operation)
    assert found.line.rpartition(":")[0].endswith("test_replay.py")


def test_the_line_is_in_the_users_code():
    class Here(nn.Module):
        def forward(self, x):
            return torch.log(x * 0 - 1)

    found = traced(nn.Sequential(nn.Linear(4, 4), Here()), torch.randn(2, 4))
    assert found.line.rpartition(":")[2] == str(inspect.getsourcelines(Here.forward)[1] + 1)
    assert found.module == "1"


def test_the_first_operation_is_named_and_not_the_following_ones():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = Middle(lambda x: x * 1e38 * 1e38), Middle(lambda x: x - x)

        def forward(self, x):
            return self.b(self.a(x))

    found = traced(Two(), torch.ones(2, 4, requires_grad=True))
    assert (found.module, found.operation) == ("a", "mul")


class Masked(nn.Module):
    """Attention with a mask of minus infinity."""

    def forward(self, x, mask):
        return (x @ x.mT).masked_fill(mask, -torch.inf).softmax(-1)


def test_a_mask_is_not_to_blame():
    x = torch.randn(3, 5, 4, requires_grad=True)
    assert traced(Masked(), x, torch.triu(torch.ones(5, 5, dtype=torch.bool), 1)) is None


def test_a_row_that_is_masked_as_a_whole_is_to_blame():
    mask = torch.zeros(3, 5, 5, dtype=torch.bool)
    mask[1, 2] = True
    found = traced(Masked(), torch.randn(3, 5, 4, requires_grad=True), mask)
    assert (found.operation, found.samples) == ("_softmax", (1,))
    assert "masked as a whole" in found.advice


def test_input_and_weight():
    x = torch.randn(6, 4)
    x[3, 1] = torch.nan
    found = traced(nn.Linear(4, 3), x)
    assert (found.where, found.samples) == ("input", (3,))
    model = Odd(torch.relu)
    with torch.no_grad():
        model.last.bias[0] = torch.inf
    found = traced(model, torch.randn(6, 4))
    assert (found.where, found.operation) == ("weight", "last.bias")
    assert "learning rate" in found.advice


def test_the_loss_outside_the_model():
    found = traced(nn.Linear(4, 3), torch.randn(6, 4), loss=lambda out: torch.log(out * 0).sum())
    assert found.where == "loss"


def test_a_loss_inside_the_model():
    class WithLoss(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(4, 3)

        def forward(self, x, scale=1.0):
            logits = self.net(x)
            return {"loss": (logits / scale).logsumexp(-1).mean(), "logits": logits}

    model = WithLoss()
    found = traced(model, torch.randn(6, 4), loss=lambda out: out["loss"], scale=0.0)
    assert (found.where, found.operation) == ("forward", "div")
    assert traced(model, torch.randn(6, 4), loss=lambda out: out["loss"]) is None


def test_nothing_is_changed():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), Middle(BadBackward.apply))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    calls = Calls({"": model}, 3, contextlib.nullcontext())
    calls.open = True
    calls.begin(0)
    loss = model(torch.randn(6, 4)).sum()
    loss.backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    after = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    (call,) = calls
    assert replay(model, call).operation == "BadBackward"
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in model.state_dict().items():
        assert torch.equal(value, after[name])
    assert not torch.equal(before["1.running_mean"], after["1.running_mean"])
    for p, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=0, atol=0, equal_nan=True)


def test_dropout_is_drawn_again():
    """The operation fails for the elements that dropout drops."""

    def does(x):
        return torch.where(x[:1] == 0, torch.log(x * 0 - 1), x)

    torch.manual_seed(3)
    model = nn.Sequential(nn.Dropout(0.5), Middle(does))
    x = torch.ones(4, 8, requires_grad=True)
    for _ in range(3):
        torch.rand(7)
        found = traced(model, x)
        assert (found.module, found.operation) == ("1", "log")


def test_under_autocast():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(4, 4, bias=False)

        def forward(self, x):
            return self.net(x)

    model = Half()
    with torch.no_grad():
        model.net.weight.fill_(100.0)
    calls = Calls({"": model}, 3, contextlib.nullcontext())
    calls.open = True
    calls.begin(0)
    with torch.autocast("cpu", dtype=torch.float16):
        model(torch.full((2, 4), 1000.0)).float().mean().backward()
    (call,) = calls
    found = replay(model, call)
    assert (found.module, "float16" in found.tensor) == ("net", True)

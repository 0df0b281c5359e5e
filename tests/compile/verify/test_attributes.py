"""Attributes of tensors and ordered dicts come through trial passes as they were."""

import collections
import copy

import torch
from torch import nn

from loopwise.compile import Plan, TrainStep

CAPTURED = Plan(graph="captured")


def trained(model, steps=2):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    step = TrainStep(model, nn.CrossEntropyLoss(), optimizer, plan=CAPTURED)
    for _ in range(steps):
        step((torch.randn(4, 3), torch.arange(4)))
    return step


def test_dynamos_mark_on_a_buffer_is_no_change_of_its_attributes():
    """``nn.Buffer`` has an attribute of its own, so that its attributes are compared."""
    torch._dynamo.reset()
    model = nn.Linear(3, 5)
    model.offset = nn.Buffer(torch.zeros(3))
    model.offset.unit = "m"
    model.register_forward_pre_hook(lambda module, inputs: (inputs[0] + module.offset,))
    step = trained(model)
    assert step.plan == CAPTURED, step.explain()
    assert model.offset.unit == "m"


class Lazy(nn.Module):
    """Model that registers hooks in its first forward pass, as models of Hugging Face do, and keeps an ordered dict."""

    def __init__(self):
        super().__init__()
        self.layer, self.calls, self.hooked = nn.Linear(3, 5), collections.OrderedDict(a=0), False

    def forward(self, x):
        if not self.hooked:
            self.hooked = True
            for _ in range(3):
                self.layer.register_forward_hook(lambda module, inputs, output: output)
        self.calls["last"] = len(self.calls)
        return self.layer(x)


def test_ordered_dicts_are_whole_after_a_trial():
    torch._dynamo.reset()
    model = Lazy()
    trained(model)
    hooks = model.layer._forward_hooks
    assert list(hooks) == list(dict(hooks.items())) == list(dict.keys(hooks))
    assert list(model.calls.items()) == [("a", 0), ("last", 2)]


class Teacher(nn.Module):
    """Model with a slow copy of its layer, which each pass moves towards the layer; at first both are equal."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 5)
        self.slow = copy.deepcopy(self.layer).requires_grad_(False)

    def forward(self, x):
        with torch.no_grad():
            for slow, fast in zip(self.slow.parameters(), self.layer.parameters(), strict=True):
                slow.lerp_(fast, 0.1)
        return self.layer(x) + self.slow(x)


def test_values_that_are_written_but_equal_are_no_change():
    torch._dynamo.reset()
    step = trained(Teacher(), 12)
    assert step.plan == CAPTURED, step.explain()

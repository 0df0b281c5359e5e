"""Comparisons at nudged weights, and again after some batches."""

import operator

import pytest
import torch
from torch import nn

from loopwise.compile import Plan, TrainStep
from loopwise.compile.graph.passes import PASSES
from loopwise.warnings import LoopwiseWarning

CRITERION = nn.CrossEntropyLoss()
CAPTURED = Plan(graph="captured", passes=("loss_head",))


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 3))


def batch(size=16):
    return torch.randn(size, 6), torch.arange(size) % 3


def step_of(net):
    return TrainStep(net, CRITERION, torch.optim.SGD(net.parameters(), lr=0.1), plan=CAPTURED)


def plant(monkeypatch, change):
    """Replace a pass by one that applies ``change(graph, node)`` to the first node for which it returns true."""

    def wrong(gm):
        any(change(gm.graph, node) for node in list(gm.graph.nodes) if node.op == "call_function")
        gm.recompile()
        return []

    monkeypatch.setitem(PASSES, "loss_head", wrong)


class ReZero(nn.Module):
    """Model with a branch that begins at zero."""

    def __init__(self):
        super().__init__()
        self.first, self.branch, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.alpha = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        h = self.first(x)
        return self.last(h + self.alpha * self.branch(nn.functional.gelu(h)))


def doubled_gradient(graph, node):
    if "gelu" not in str(node.target):
        return False
    with graph.inserting_after(node):
        fixed = graph.call_method("detach", (node,))
    with graph.inserting_after(fixed):
        double = graph.call_function(operator.mul, (node, 2.0))
    with graph.inserting_after(double):
        new = graph.call_function(operator.sub, (double, fixed))
    node.replace_all_uses_with(new, delete_user_cb=lambda user: user not in (fixed, double, new))
    return True


def test_a_wrong_backward_pass_behind_a_weight_of_zero_is_caught(monkeypatch):
    plant(monkeypatch, doubled_gradient)
    net = ReZero()
    step = step_of(net)
    step.prepare(batch())
    assert step.plan.graph == "eager"
    assert "at nudged weights" in str(step.explain())
    assert net.alpha == 0


def test_a_step_is_compared_again_before_it_trains_on_a_batch(monkeypatch):
    net = model()
    step = step_of(net)
    step(batch())
    right = step._forward_pass.compute
    step._forward_pass.supervisor._compute = step._forward_pass.compute = lambda data: right(data) * 1.01
    data, eager = batch(), [p.detach().clone() for p in net.parameters()]
    with pytest.warns(LoopwiseWarning, match="back to the eager step: after 8 batches: loss is off"):
        for _ in range(8):
            eager = [p.detach().clone() for p in net.parameters()]
            step(data)
    twin = model()
    for p, value in zip(twin.parameters(), eager, strict=True):
        p.data.copy_(value)
    CRITERION(twin(data[0]), data[1]).backward()
    with torch.no_grad():
        for p in twin.parameters():
            p.sub_(p.grad, alpha=0.1)
    assert all(map(torch.equal, twin.parameters(), net.parameters()))

"""Comparison of fifty steps of the plan with fifty eager ones, on copies."""

import operator

import torch
from torch import nn

from loopwise.compile import Plan, TrainStep
from loopwise.compile.graph.passes import PASSES


def step_and_batch():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 3))
    plan = Plan(graph="captured", passes=("loss_head",), optimizer="fused")
    step = TrainStep(net, nn.CrossEntropyLoss(), torch.optim.AdamW(net.parameters(), lr=1e-2), plan=plan)
    return step, (torch.randn(16, 6), torch.arange(16) % 3)


def test_the_same_curve_and_nothing_trained():
    step, batch = step_and_batch()
    step(batch)
    before, random = [p.clone() for p in step.spec.model.parameters()], torch.get_rng_state()
    assert step.verify(batch, steps=50) is None
    assert all(map(torch.equal, before, step.spec.model.parameters()))
    assert torch.equal(random, torch.get_rng_state())


def test_an_error_below_the_budget_of_one_pass_that_adds_up(monkeypatch):
    step, batch = step_and_batch()
    step(batch)

    def wrong(gm):
        """Spoil later compilations only: the comparison of one pass sees the correct graph."""
        node = next(n for n in gm.graph.nodes if "gelu" in str(n.target))
        with gm.graph.inserting_after(node):
            new = gm.graph.call_function(operator.mul, (node, 1.001))
        node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
        gm.recompile()
        return []

    monkeypatch.setitem(PASSES, "loss_head", wrong)
    difference = step.verify(batch, steps=50)
    assert difference is not None
    assert difference.tensor.startswith("the loss of step ")

"""Comparison of fifty steps of the plan with fifty eager ones."""

import torch
from torch import nn

from loopwise.compile import Plan, TrainStep
from loopwise.compile.verify.loss_curve import compare_loss_curves


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


def test_an_error_below_the_budget_of_one_pass_that_adds_up():
    step, batch = step_and_batch()
    step(batch)
    spec = step.spec

    def wrong(batch):
        x = spec.model[0](batch[0])
        return spec.loss(spec.model[2](spec.model[1](x) * 1.001), batch[1])

    before = [p.clone() for p in spec.model.parameters()]
    difference = compare_loss_curves(spec, wrong, batch, 50)
    assert difference is not None
    assert difference.tensor.startswith("the loss of step ")
    assert all(map(torch.equal, before, spec.model.parameters()))


def test_a_broken_optimizer_shows_although_the_eager_steps_use_the_same_object():
    """Both curves were once trained by copies of the optimizer that the plan had switched, so they broke alike."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 3))

    class Broken(torch.optim.AdamW):
        """Stands for a fused update that walks over state of another layout."""

        def step(self, closure=None):
            before = [p.detach().clone() for p in net.parameters()]
            super().step(closure)
            if self.param_groups[0]["fused"]:
                with torch.no_grad():
                    for p, old in zip(net.parameters(), before, strict=True):
                        p.lerp_(old, 0.5)

    optimizer = Broken(net.parameters(), lr=1e-2, fused=True)
    step = TrainStep(net, nn.CrossEntropyLoss(), optimizer, plan=Plan(graph="captured"))
    assert step.verify((torch.randn(16, 6), torch.arange(16) % 3), steps=5) is not None

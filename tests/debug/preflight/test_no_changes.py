"""``preflight`` changes nothing: model, optimizer, gradients, modes, hooks, statistics and random states."""

import copy
import random

import numpy as np
import torch
from torch import nn
from watch_kit import outcome, rules

from loopwise.debug import preflight

CROSS = nn.CrossEntropyLoss()


def digits():
    torch.manual_seed(0)
    return torch.randn(12, 6), torch.arange(12) % 3


def state(model, optimizer):
    return copy.deepcopy(
        (
            {name: tensor.detach() for name, tensor in model.state_dict().items()},
            [p.grad for p in model.parameters()],
            [module.training for module in model.modules()],
            optimizer.state_dict(),
            torch.get_rng_state(),
            random.getstate(),
            str(np.random.get_state()),
        )
    )


def test_nothing_is_changed():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 3))
    model[1].eval()
    optimizer = torch.optim.Adam(model.parameters(), 3e-2)
    x, y = digits()
    CROSS(model(x), y).backward()
    optimizer.step()
    grads = [p.grad for p in model.parameters()]

    def loss(model_, batch):  # which uses the original beside the copy
        batch[0].mul_(1.0)
        random.random(), np.random.rand()
        return CROSS(model_(batch[0]), batch[1]) + 0.01 * model(batch[0]).square().mean()

    loss.__signature__ = __import__("inspect").signature(lambda model, batch: None)
    before, kept = state(model, optimizer), x.clone()
    assert "the loss fell" in outcome(preflight(model, (x, y), loss, optimizer), "one batch").text
    assert str(state(model, optimizer)) == str(before)
    assert all(p.grad is grad for p, grad in zip(model.parameters(), grads, strict=True))
    assert torch.equal(x, kept)
    with torch.no_grad():
        assert preflight(model, (x, y), CROSS, optimizer) == preflight(model, (x, y), CROSS, optimizer)
    assert str(state(model, optimizer)) == str(before)
    assert not any(hooks(module) for module in model.modules())


def hooks(module):
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {kind: [*getattr(module, kind)] for kind in kinds if getattr(module, kind)}


def test_nothing_is_changed_by_further_looks_and_failed_trainings():
    """A zero head, a learning rate that is far too large and all arguments lead through all checks."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 3))
    nn.init.zeros_(model[3].weight)
    model[0].requires_grad_(False)
    model.eval()
    model[2].train()
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    optimizer = torch.optim.SGD(model[1:].parameters(), 1e4, momentum=0.9)
    x, y = digits()
    before, hooked = state(model, optimizer), [hooks(module) for module in model.modules()]
    how = {"gradcheck": True, "frozen": "0", "output_shape": (None, 3), "output_range": (-1e9, 1e9)}
    report = preflight(model, (x, y), CROSS, optimizer, **how)
    assert "unsuitable_learning_rate" in rules(report)
    assert str(state(model, optimizer)) == str(before)
    assert [hooks(module) for module in model.modules()] == hooked
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[0][name]), name

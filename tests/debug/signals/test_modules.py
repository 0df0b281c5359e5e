"""Modes of modules are those of the last forward pass."""

import pytest
import torch
from torch import nn

from loopwise.debug import Watch, every


def evaluate(net):
    net.eval()
    with torch.no_grad():
        loss = net(torch.randn(8, 4)).square().mean()
    net.train()
    return loss


def train(net, optimizer):
    optimizer.zero_grad()
    loss = net(torch.randn(8, 4)).square().mean()
    loss.backward()
    return loss


@pytest.mark.parametrize("when", ["inside", "before"])
@pytest.mark.parametrize("right", [True, False], ids=["eval", "train"])
def test_an_evaluation_is_judged_by_the_modes_of_its_forward_pass(tmp_path, when, right):
    net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    helper = evaluate if right else lambda net: net(torch.randn(8, 4)).square().mean().detach()
    with Watch(net, optimizer, run=tmp_path / "run", save=every(1), profile=False) as watch:
        for _ in range(4):
            loss = train(net, optimizer)
            optimizer.step()
            watch.step(loss=loss)
            with torch.no_grad():
                early = helper(net) if when == "before" else None
                with watch.mode("eval"):
                    watch.step(loss=helper(net) if early is None else early)
    assert ("active_in_evaluation" in {finding.rule for finding in watch.findings}) is not right


@pytest.mark.parametrize("right", [True, False], ids=["train", "eval"])
def test_training_is_judged_by_the_modes_of_its_forward_pass(tmp_path, right):
    net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    with Watch(net, optimizer, run=tmp_path / "run", save=every(1), profile=False) as watch:
        for _ in range(4):
            net.train(right)
            loss = train(net, optimizer)
            net.train(not right)
            optimizer.step()
            watch.step(loss=loss)
    assert ("wrong_mode" in {finding.rule for finding in watch.findings}) is not right

"""A small training under a ``Watch``, and what a report of ``preflight`` holds."""

import torch
from torch import nn

from loopwise.debug import Watch


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def steps(net, optimizer, watched, count, **scalars):
    for _ in range(count):
        optimizer.zero_grad()
        loss = net(torch.ones(2, 4)).sum()
        loss.backward()
        optimizer.step()
        watched.step(loss=loss, **scalars)


def watched(tmp_path, **options):
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    return net, optimizer, Watch(net, optimizer, run=tmp_path / "run", **options)


def rules(report):
    return {finding.rule for finding in report.findings}


def outcome(report, name):
    (found,) = [result for result in report.results if result.name == name]
    return found

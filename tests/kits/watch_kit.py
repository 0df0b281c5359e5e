"""Small trainings under a ``Watch``, and what a report of ``preflight`` holds."""

import torch
from torch import nn

from loopwise.debug import Watch, every, open_run


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


def train(folder, model, batch, criterion, steps=30, make=None, **options):
    """Train, and return the findings by rule; those of the saved run are the same."""
    optimizer = (make or (lambda p: torch.optim.Adam(p, lr=1e-3)))(model.parameters())
    settings = {"save": every(1), "profile": False, "trap": False, "on_finding": []}
    with Watch(model, optimizer, run=folder / "run", **(settings | options)) as watch:
        for step in range(steps):
            x, y = batch(step)
            optimizer.zero_grad()
            loss = criterion(model(x), y)
            loss.backward()
            optimizer.step()
            watch.step(loss=loss)
    assert not watch.counts["failed"]
    assert [str(f) for f in open_run(folder / "run").judge()] == [str(f) for f in watch.findings]
    return {finding.rule: finding for finding in watch.findings}


def net(outputs=3, *more, inputs=10):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, 32), nn.ReLU(), nn.Linear(32, outputs), *more)


def classes(step, size=32):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(size, 10, generator=generator)
    return x, (x @ torch.eye(10)[:, :3]).argmax(1)


def numbers(scale):
    def batch(step):
        x, _ = classes(step)
        return x, scale * x[:, :1]

    return batch

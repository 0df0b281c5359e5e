"""Loops that make a new optimizer for each epoch, phase or step."""

import gc
import weakref

import pytest
import torch
from torch import nn

from loopwise.debug import Watch, every, open_run

pytestmark = pytest.mark.filterwarnings("ignore:.*another optimizer updates the model")


def train(net, optimizer, watched, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        loss = net(torch.randn(4, 8)).square().mean()
        loss.backward()
        optimizer.step()
        watched.step(loss=loss)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("options", [{}, {"save": every(1)}], ids=["default", "every step"])
def test_optimizers_that_the_script_has_replaced_are_freed(tmp_path, steps, options):
    net = nn.Linear(8, 8)
    optimizer, freed = torch.optim.AdamW(net.parameters(), lr=1.0), []
    with Watch(net, optimizer, run=tmp_path / "run", on_finding=[], **options) as watched:
        for epoch in range(5):
            optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3 * (epoch + 1))
            freed.append(weakref.ref(optimizer))
            train(net, optimizer, watched, steps)
        gc.collect()
        assert [reference() is not None for reference in freed] == [False] * 4 + [True]
        assert not watched.counts["failed"]


def test_the_rates_and_norms_of_a_replaced_optimizer_go_on(tmp_path):
    net = nn.Linear(8, 8)
    with Watch(
        net, torch.optim.SGD(net.parameters(), lr=0.1), run=tmp_path / "run", on_finding=[]
    ) as watched:
        for rate in (0.1, 0.2, 0.3):
            train(net, torch.optim.SGD(net.parameters(), lr=rate), watched, 3)
    steps, rates = open_run(tmp_path / "run").series("learning_rate")
    assert list(steps) == list(range(9))
    assert list(rates) == pytest.approx([0.1] * 3 + [0.2] * 3 + [0.3] * 3)
    assert len(open_run(tmp_path / "run").series("gradient_norm")[0]) == 9


def test_a_replaced_optimizer_counts_as_one(tmp_path):
    net = nn.Linear(8, 8)
    watching = Watch(net, torch.optim.SGD(net.parameters(), lr=0.1), run=tmp_path / "run", on_finding=[])
    x = torch.randn(4, 8)
    with watching as watched:
        for _ in range(6):
            optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
            for _ in range(10):
                optimizer.zero_grad()
                loss = net(x).square().mean()
                loss.backward()
                optimizer.step()
                watched.step(loss=loss)
    assert "loss_not_decreasing" in {finding.rule for finding in watched.findings}


def test_an_optimizer_for_a_part_of_the_parameters_joins_the_others(tmp_path):
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    first = torch.optim.SGD(net.parameters(), lr=0.1)
    with Watch(net, first, run=tmp_path / "run", on_finding=[]) as watched:
        train(net, first, watched, 2)
        second = torch.optim.SGD(net[1].parameters(), lr=0.2)
        train(net, second, watched, 2)
    found = open_run(tmp_path / "run")
    assert list(found.series("learning_rate")[1]) == pytest.approx([0.1, 0.1])
    assert list(found.series("learning_rate/optimizer 2")[1]) == pytest.approx([0.2, 0.2])


@pytest.mark.parametrize(
    ("make", "steps", "found"),
    [
        (torch.optim.AdamW, 1, True),
        (torch.optim.RMSprop, 1, True),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), 2, True),
        (lambda p: torch.optim.SGD(p, lr=0.1), 1, False),
        (torch.optim.AdamW, 10, False),
    ],
)
def test_an_optimizer_made_anew_for_each_update_is_a_finding(tmp_path, make, steps, found):
    net = nn.Linear(8, 8)
    with Watch(net, make(net.parameters()), run=tmp_path / "run", on_finding=[], save=every(1)) as watched:
        for _ in range(20):
            train(net, make(net.parameters()), watched, steps)
    assert ("new_optimizers" in {finding.rule for finding in watched.findings}) == found

"""Draws of the samples to keep, and classes of planned epochs."""

import itertools

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from loopwise.errors import InputError
from loopwise.sift import (
    ClassFloor,
    Indexed,
    SiftingDataLoader,
    TopLoss,
    Uniform,
)
from loopwise.sift.loss_history import LossHistory
from loopwise.sift.report import Report
from loopwise.sift.selection import Selector

CRITERION = nn.CrossEntropyLoss(reduction="none")


def selector(policy=None, **options):
    draws = torch.Generator().manual_seed(0)
    return Selector(policy or Uniform(), None, LossHistory(), draws, Report(), True, **options)


# -- draws ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "probabilities", [[0.5, 0.5, 0.25, 0.75], [1.0, 0.3, 0.0, 0.2, 0.9], [0.1] * 5, [1.0, 1.0]]
)
def test_each_sample_is_drawn_with_its_probability(probabilities):
    """By enumeration of all orders, and of enough starts in each that their mean is exact."""
    choose, counts, starts = selector(), torch.zeros(len(probabilities)), [(k + 0.5) / 20 for k in range(20)]
    between = [i for i, chance in enumerate(probabilities) if 0 < chance < 1]
    orders = list(itertools.permutations(range(len(between))))
    expected = sum(probabilities)
    for order, start in itertools.product(orders, starts):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                torch, "randperm", lambda n, generator, order=order: torch.tensor(order, dtype=torch.int64)
            )
            patch.setattr(
                torch, "rand", lambda *n, start=start, **options: torch.tensor([start], dtype=torch.float64)
            )
            kept = choose._draw(torch.tensor(probabilities))
        assert abs(len(kept) - expected) < 1 + 1e-6
        assert kept.tolist() == sorted(set(kept.tolist()))
        counts[kept] += 1
    assert (counts / (len(orders) * len(starts))).tolist() == pytest.approx(probabilities, abs=1e-6)


def test_pairs_of_samples_are_drawn_together():
    """No pair is excluded for good, as it would be by systematic sampling in the order of the data."""
    choose, together = selector(), torch.zeros(6, 6)
    for _ in range(500):
        kept = choose._draw(torch.full((6,), 0.5))
        assert len(kept) == 3
        together[kept[:, None], kept] += 1
    apart = ~torch.eye(6, dtype=torch.bool)
    assert (together[apart] / 500).tolist() == pytest.approx([0.2] * 30, abs=0.08)


@pytest.mark.parametrize("keep", [0.5, 0.3])
def test_the_share_of_remembered_losses_holds_on_small_data(keep):
    torch.manual_seed(0)
    x = torch.randn(100, 8)
    data = TensorDataset(x, (x @ torch.randn(8, 3)).argmax(1))
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    loader = SiftingDataLoader(DataLoader(data, 10, shuffle=True), model, CRITERION, keep=keep)
    kept = []
    for _ in range(12):
        for inputs, targets in loader:
            optimizer.zero_grad()
            CRITERION(model(inputs), targets).mean().backward()
            optimizer.step()
        kept.append(loader.report().kept - sum(kept))
    assert kept == [100] + [keep * 100] * 11


# -- classes ----------------------------------------------------------------------------------------


def class_floor(score_every="auto", wrap=lambda data: DataLoader(data, 20, shuffle=True), **options):
    """Return a loader of a rare, easy class of which a plain selection keeps nothing, and its model."""
    torch.manual_seed(0)
    x, y = torch.randn(300, 8), torch.zeros(300, dtype=torch.long)
    y[:30] = 1
    x[:30] += 6
    y[30:][torch.rand(270) < 0.3] = 2
    model = nn.Linear(8, 3)
    policy = ClassFloor(TopLoss(0.3), share=0.5)
    loader = wrap(TensorDataset(x, y))
    return SiftingDataLoader(
        loader, model, CRITERION, policy=policy, score_every=score_every, **options
    ), model


def shares(loader, model, epochs=6):
    optimizer, counts, totals = (
        torch.optim.SGD(model.parameters(), lr=0.1),
        torch.zeros(3),
        torch.tensor([0, 30, 0]),
    )
    for epoch in range(epochs):
        for inputs, targets, *_ in loader:
            optimizer.zero_grad()
            CRITERION(model(inputs), targets).mean().backward()
            optimizer.step()
            if epoch:
                counts += torch.bincount(targets, minlength=3)
            else:
                totals = totals.maximum(torch.bincount(targets, minlength=3))
    return (counts / (epochs - 1))[1] / 30


@pytest.mark.parametrize("score_every", ["auto", 1, 2])
def test_classes_are_known_in_every_mode(score_every):
    assert shares(*class_floor(score_every)) == pytest.approx(0.5, abs=0.1)


def test_classes_are_known_by_a_function():
    assert shares(*class_floor(classes=lambda batch: batch[1])) == pytest.approx(0.5, abs=0.1)


def test_classes_are_known_where_a_loader_hides_its_indices():
    class Hiding:
        def __init__(self, loader):
            self.loader = loader

        def __iter__(self):
            return iter(self.loader)

    wrap = lambda data: Hiding(DataLoader(Indexed(data), 20, shuffle=True))  # noqa: E731
    assert shares(*class_floor(0, wrap, batch_size=20)) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("targets", [torch.rand(40), torch.zeros(40, 2, dtype=torch.long)])
def test_classes_that_cannot_be_known_are_refused_at_the_first_batch(targets):
    data = DataLoader(TensorDataset(torch.randn(40, 3), targets), 8)
    policy = ClassFloor(Uniform(0.5), share=0.5)
    loader = SiftingDataLoader(data, nn.Linear(3, 2), nn.MSELoss(reduction="none"), policy=policy)
    with pytest.raises(InputError) as error:
        next(iter(loader))
    assert str(error.value) == (
        f"seen: policy {policy!r} without classes of the samples\n"
        "expected: classes of every sample\n"
        "likely cause: the batches are not (input, target) pairs with integer targets of shape (batch,)\n"
        "fix: pass classes=function to the loader, from a batch to an int64 Tensor of shape (batch,)"
    )

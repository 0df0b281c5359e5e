"""Importance weights: the expected gradient is that of the full data, in whatever order they come."""

import itertools

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, SubsetRandomSampler, TensorDataset

from loopwise.errors import InputError
from loopwise.sift import (
    ClassFloor,
    Diverse,
    GradNorm,
    Mixture,
    NoiseCap,
    PrunedHistory,
    RelativeLoss,
    SiftingDataLoader,
    Threshold,
    TopLoss,
    Uniform,
)
from loopwise.sift.selection import Selector

CRITERION = nn.CrossEntropyLoss(reduction="none")


@pytest.fixture
def chances(monkeypatch):
    """Keep every sample that has a chance, and return the list of the probabilities of all draws."""
    seen = []

    def draw(self, probabilities):
        kept = (probabilities > 0).nonzero().flatten()
        seen.append(probabilities[kept])
        return kept

    monkeypatch.setattr(Selector, "_draw", draw)
    return seen


def epoch_of(loader, chances):
    """Run an epoch; return probabilities and weights of its samples."""
    chances.clear()
    weights = []
    for batch in loader:
        weights.append(batch[-1])
        if not loader.score_every:
            loader.record_losses(loss_of(batch[0]))
    weights = torch.cat(weights)
    return torch.cat(chances) if chances else torch.ones(len(weights)), weights


def loss_of(inputs):
    return inputs[:, 0].exp()


def given(order, policy, *, score_every=0, sampler=None, batch_size=1, loss=None, **options):
    """Return a loader of samples with the losses ``order``, exactly as recorded and as scored."""
    data = TensorDataset(torch.tensor(order, dtype=torch.float32).log()[:, None], torch.zeros(len(order)))
    loss = loss or (lambda model, batch: loss_of(batch[0]))
    loader = DataLoader(data, batch_size, sampler=sampler)
    return SiftingDataLoader(
        loader,
        nn.Linear(1, 1),
        loss,
        policy=policy,
        weights=True,
        score_every=score_every,
        seed=0,
        **options,
    )


POLICIES = {
    "relative": lambda: RelativeLoss(0.5, floor=0.2),
    "pruned": lambda: PrunedHistory(0.4),
    "threshold": lambda: Threshold(3.0, floor=0.25),
    "mixture": lambda: Mixture((1, TopLoss(0.5)), (1, Uniform(0.6))),
    "function": lambda: lambda losses: 0.2 + 0.8 * losses / losses.max(),
}
LOSSES = (1.0, 2.0, 4.0, 8.0)


@pytest.mark.parametrize("policy", POLICIES)
def test_expected_weights_are_equal_in_planned_epochs_for_every_order(policy, chances):
    for order in itertools.permutations(LOSSES):
        loader = given(order, POLICIES[policy]())
        assert epoch_of(loader, chances)[1].tolist() == [1] * 4
        for _ in range(2):
            probabilities, weights = epoch_of(loader, chances)
            expected = probabilities * weights
            assert expected.tolist() == pytest.approx([float(probabilities.mean())] * 4)


@pytest.mark.parametrize("pool", [1, 2, 4])
@pytest.mark.parametrize("policy", POLICIES)
def test_expected_weights_are_equal_in_scored_epochs_for_every_order(policy, pool, chances):
    """In each epoch they are the same for all samples: the share of the epoch before."""
    for order in itertools.permutations(LOSSES):
        loader = given(order, POLICIES[policy](), score_every=1, pool=pool)
        share = None
        for _ in range(3):
            probabilities, weights = epoch_of(loader, chances)
            share = float(probabilities[:pool].mean()) if share is None else share
            assert (probabilities * weights).tolist() == pytest.approx([share] * 4, rel=1e-5)
            share = float(probabilities.mean())


def test_samples_outside_the_epoch_do_not_count(chances):
    """A sampler of a few of many indices; the history has room for the others."""
    loader = given([1.0] * 90 + [4.0] * 10, PrunedHistory(0.5), sampler=range(85, 100), batch_size=5)
    epoch_of(loader, chances)
    probabilities, weights = epoch_of(loader, chances)
    assert probabilities.tolist() == [0.5] * 5 + [1] * 10
    assert weights.tolist() == pytest.approx([(12.5 / 15) / 0.5] * 5 + [12.5 / 15] * 10)


def test_delayed_samples_have_the_weight_of_certain_ones(chances):
    loader = given([1.0, 1, 1, 1, 9, 9], PrunedHistory(0.5), delay=2, delay_every_epoch=True)
    epoch_of(loader, chances)
    probabilities, weights = epoch_of(loader, chances)
    assert probabilities.tolist() == [1, 1, 0.5, 0.5, 1, 1]
    assert (probabilities * weights).tolist() == pytest.approx([5 / 6] * 6)


def test_a_stream_measures_its_share_anew(chances):
    class Stream(IterableDataset):
        def __iter__(self):
            for number in range(900):
                yield torch.tensor([0.1 if number % 2 or number > 300 else 9.0]).log(), 0

    loader = SiftingDataLoader(
        DataLoader(Stream(), 2),
        nn.Linear(1, 1),
        lambda model, batch: loss_of(batch[0]),
        policy=Threshold(1.0, floor=0.25),
        weights=True,
        pool=1,
    )
    probabilities, weights = epoch_of(loader, chances)
    assert (probabilities * weights)[:200].tolist() == pytest.approx([0.625] * 200)
    assert (probabilities * weights)[-200:].tolist() == pytest.approx([0.25] * 200)


class Fetched(TensorDataset):
    """Dataset that gives a whole batch at once, which is faster than one sample after the other."""

    def __getitems__(self, indices):
        return [values[indices] for values in self.tensors]


@pytest.mark.parametrize(
    ("policy", "score_every"),
    [
        (RelativeLoss(0.3, floor=0.1), 0),
        (RelativeLoss(0.3, floor=0.1), 1),
        (lambda losses: 0.1 + 0.9 * losses / losses.max(), 0),
        (lambda losses: 0.1 + 0.9 * losses / losses.max(), 1),
        (GradNorm(0.3), 1),
    ],
)
@pytest.mark.parametrize("ordered", [False, True])
def test_weights_make_the_expected_gradient_that_of_all_data(score_every, policy, ordered):
    """The mean over 54,000 draws: ten epochs of many equal samples take less time than many epochs of few."""
    torch.manual_seed(0)
    x, y = torch.randn(90, 6), torch.arange(90) % 3
    model = nn.Sequential(nn.Embedding.from_pretrained(x), nn.Linear(6, 3))
    weight, everything = model[1].weight, torch.arange(90)
    full = torch.autograd.grad(CRITERION(model(everything), y).mean(), weight)[0]
    with torch.no_grad():
        order = CRITERION(model(everything), y).argsort() if ordered else everything
    copies = order.repeat_interleave(60) if ordered else order.repeat(60)
    loader = SiftingDataLoader(
        DataLoader(Fetched(copies, y[copies]), 1350, collate_fn=tuple),
        model,
        CRITERION,
        policy=policy,
        weights=True,
        score_every=score_every,
        pool=1,
        seed=0,
    )
    for _ in range(2):  # the share is known after the first epoch
        for inputs, targets, _ in loader:
            if not score_every:
                loader.record_losses(CRITERION(model(inputs), targets))
    total, kept, of_kept = torch.zeros_like(full), 0, 0.0
    for _ in range(10):
        for inputs, targets, weights in loader:
            total += torch.autograd.grad((CRITERION(model(inputs), targets) * weights).sum(), weight)[0]
            kept, of_kept = kept + len(targets), of_kept + float(weights.sum())
    assert of_kept / kept == pytest.approx(1, abs=0.03)
    torch.testing.assert_close(total / kept, full, rtol=0.1, atol=0.1 * full.abs().max().item())
    losses = CRITERION(model(everything), y)
    biased = torch.autograd.grad((losses * losses.detach()).mean(), weight)[0]
    assert (total / kept - full).norm() < 0.2 * (biased - full).norm()


def test_the_weights_of_a_subset_are_1_on_average():
    torch.manual_seed(0)
    model, x = nn.Linear(6, 3), torch.randn(1000, 6)
    sampler = SubsetRandomSampler(range(0, 1000, 5))
    data = DataLoader(TensorDataset(x, torch.arange(1000) % 3), 32, sampler=sampler)
    loader = SiftingDataLoader(data, model, CRITERION, keep=0.5, weights=True)
    weights = []
    for epoch in range(9):
        for inputs, targets, of_batch in loader:
            CRITERION(model(inputs), targets)
            weights += of_batch.tolist() if epoch else []
    assert sum(weights) / len(weights) == pytest.approx(1, abs=0.1)


def test_weights_ride_along_in_every_structure():
    data = [({"x": torch.ones(4, 6), "y": torch.arange(4) % 3}) for _ in range(4)]
    loss = lambda model, batch: batch["x"].sum(1)  # noqa: E731
    batch = next(iter(SiftingDataLoader(data, nn.Linear(6, 3), loss=loss, keep=0.5, weights=True, seed=1)))
    assert batch["weights"].shape == (4,)
    pairs = [(torch.ones(4, 6), torch.arange(4) % 3)] * 4
    batch = next(iter(SiftingDataLoader(pairs, nn.Linear(6, 3), loss=CRITERION, keep=1.0, weights=True)))
    assert batch[2].tolist() == [1.0] * 4


REFUSAL = (
    "expected: a policy that gives every sample a keep probability above 0\n"
    "likely cause: no weight of the others makes up for samples that are never kept: the gradient stays biased\n"
    "fix: give the policy a floor if it takes one, mix it: Mixture((0.8, policy), (0.2, Uniform(0.5))), or drop weights"
)


@pytest.mark.parametrize(
    "policy",
    [
        TopLoss(0.5),
        Threshold(1.0),
        Diverse(),
        NoiseCap(Uniform()),
        RelativeLoss(),
        ClassFloor(TopLoss(), 0.1),
    ],
    ids=repr,
)
def test_weights_are_refused_at_once_for_policies_that_never_keep_some_samples(policy):
    with pytest.raises(InputError) as error:
        given(LOSSES, policy, score_every=1, loss=CRITERION)
    assert str(error.value) == f"seen: weights=True with policy {policy!r}\n{REFUSAL}"


@pytest.mark.parametrize("score_every", [0, 1])
def test_weights_are_refused_where_a_function_leaves_a_sample_no_chance(score_every):
    def half(losses):
        return (losses > losses.median()).float()

    loader = given(LOSSES, half, score_every=score_every, pool=4)
    with pytest.raises(InputError) as error:
        for _ in range(2):
            for inputs, *_ in loader:
                loader.record_losses(loss_of(inputs))
    name = (
        "policy Function(test_weights_are_refused_where_a_function_leaves_a_sample_no_chance.<locals>.half)"
    )
    seen = f"seen: weights=True, and 2 of 4 samples with keep probability 0 by {name}\n"
    assert str(error.value) == seen + REFUSAL


def test_samples_without_gradient_need_no_weight(chances):
    """``GradNorm`` never keeps them, and the gradient stays unbiased."""
    model, data = nn.Linear(1, 2), TensorDataset(torch.ones(4, 1), torch.tensor([0, 0, -100, 0]))
    loader = SiftingDataLoader(
        DataLoader(data, 4), model, CRITERION, policy=GradNorm(0.5), weights=True, pool=1
    )
    probabilities, weights = epoch_of(loader, chances)
    assert probabilities.tolist() == pytest.approx([2 / 3] * 3)
    assert weights.tolist() == pytest.approx([0.75] * 3)

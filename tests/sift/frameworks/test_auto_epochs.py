"""Epochs with ``auto``: as many batches as a plain loader's, over the passes that a policy makes shorter."""

import copy
import itertools
from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from loopwise.errors import StateError
from loopwise.sift import ProportionalLoss, PrunedHistory, SiftingDataLoader

CRITERION = nn.CrossEntropyLoss(reduction="none")


def dataset(n=103):
    """Return three classes that differ in the first features; the last feature is the index."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 3
    inputs = torch.randn(n, 5, generator=generator) / 4
    inputs[:, :3] += nn.functional.one_hot(labels, 3)
    return TensorDataset(torch.cat([inputs, torch.arange(n)[:, None] / 1e4], 1), labels)


def sift(loader=None, **options):
    torch.manual_seed(0)
    loader = DataLoader(dataset(), 10, shuffle=True) if loader is None else loader
    return SiftingDataLoader(loader, nn.Linear(6, 3), CRITERION, **{"seed": 0, "auto": True} | options)


def steps(loader, rate=0.5):
    """Train, and yield the indices of each batch."""
    for x, y, *_ in loader:
        loader.model.zero_grad()
        CRITERION(loader.model(x), y).mean().backward()
        with torch.no_grad():
            for parameter in loader.model.parameters():
                parameter -= rate * parameter.grad
        yield (x[:, -1] * 1e4).round().int().tolist()


def test_an_epoch_has_the_batches_of_a_plain_one_and_more_passes():
    loader = sift()
    for number in range(8):
        assert len(loader) == 11
        batches = list(steps(loader))
        assert len(batches) == 11
        assert all(len(batch) == 10 for batch in batches[:-1])
        if number == 0:  # no losses are known yet
            assert sorted(itertools.chain(*batches)) == list(range(103))
            assert loader.epoch == 1
    assert loader.epoch > 9
    report = loader.report()
    assert report.epochs == loader.epoch
    assert report.kept < 0.9 * report.seen


def test_no_sample_comes_twice_in_a_pass():
    loader, of_pass = sift(), {}
    for _ in range(8):
        for batch in steps(loader):
            of_pass.setdefault(loader.epoch, Counter()).update(batch)
    assert len(of_pass) > 8
    waited = [sum(count > 1 for count in seen.values()) for seen in of_pass.values()]
    assert max(waited) <= 9  # those that filled no batch of the pass before come first


def test_a_policy_of_another_rule_is_filled_and_a_set_share_is_not():
    assert [len(list(steps(sift(policy=PrunedHistory())))) for _ in range(2)] == [11, 11]
    halved = sift(keep=0.5)
    assert [len(list(steps(halved))) for _ in range(2)][1] == 5


def test_the_learning_rate_and_the_anneal_go_by_plain_epochs():
    """Of four epochs the last one trains on all data, though it is a later pass."""
    loader, last = sift(epochs=4, anneal=0.25), []
    for _ in range(4):
        last = list(itertools.chain(*steps(loader)))
    assert loader.epoch >= 4
    passes = Counter(last)
    assert len(passes) >= 93  # a pass of all data begins within the epoch, after the rest of an older one
    assert loader.report().batches == 44


def test_after_a_break_an_epoch_is_whole_and_goes_on_in_the_pass():
    loader = sift()
    list(steps(loader))
    first = list(itertools.islice(steps(loader), 3))
    rest = list(steps(loader))
    assert len(rest) == 11
    assert not set(itertools.chain(*first)) & set(itertools.chain(*rest[:3]))


def test_two_iterations_at_once_are_refused():
    loader = sift()
    list(steps(loader))
    with pytest.raises(StateError, match="one iteration at a time"):
        list(zip(loader, loader, strict=True))


@pytest.mark.filterwarnings("ignore::loopwise.warnings.LoopwiseWarning")
def test_losses_that_cannot_be_read_make_an_epoch_a_pass():
    """Scoring passes cost time, so that as many steps would take longer than a plain loop."""
    loader = sift(policy=ProportionalLoss())
    for _ in range(3):
        for x, _ in loader:
            assert len(x)  # trains on nothing that the loader could read
    assert loader.score_every == 1
    assert loader.epoch == 3


def test_a_loop_that_sets_epochs_does_not_turn_the_passes_back():
    data = dataset()
    loader = sift(DataLoader(data, 10, sampler=DistributedSampler(data, 1, 0)))
    orders = []
    for number in range(6):
        loader.set_epoch(number)
        batches = list(steps(loader))
        assert len(batches) == 11
        orders.append(batches)
    assert loader.epoch > 6
    assert len({str(order) for order in orders}) == 6


def test_a_state_in_the_middle_of_a_later_pass():
    loader = sift()
    for _ in range(5):
        list(steps(loader))
    iterator = steps(loader)
    list(itertools.islice(iterator, 4))
    state, model = loader.state_dict(), copy.deepcopy(loader.model)
    rest, following = list(iterator), list(steps(loader))
    torch.manual_seed(9)
    again = sift()
    again.model.load_state_dict(model.state_dict())
    again.load_state_dict(state)
    assert len(again) == 11
    assert list(steps(again)) == rest
    assert list(steps(again)) == following


def test_ranks_fill_their_epochs_alike(two):
    """Rank 1 has fewer samples than rank 0; both have the batches of the shorter loader, epoch by epoch."""
    counts = two("filled", file=__file__)
    assert counts[0] == counts[1]
    assert len(set(counts[0][:-1])) == 1
    assert counts[0][-1] > 6


def filled():
    import torch.distributed as dist

    data = dataset(103 if dist.get_rank() == 0 else 80)
    loader = sift(DataLoader(data, 10, shuffle=True))
    counts = [len(list(steps(loader))) for _ in range(6)]
    return [*counts, loader.epoch]


def test_auto_without_selection_is_a_plain_loop():
    """A policy that would keep nearly all keeps all: the same batches as the plain loader's, bit for bit."""
    loader = sift(DataLoader(dataset(), 10))
    for _ in range(3):
        for (x, y), (a, b) in zip(loader, DataLoader(dataset(), 10), strict=True):
            assert torch.equal(x, a)
            assert torch.equal(y, b)
            CRITERION(loader.model(x), y)

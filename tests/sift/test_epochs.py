"""Epochs of the sifting loader: their length, the samples that wait for the next one, and epochs that end early."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from loopwise.errors import InputError, StateError
from loopwise.sift import RelativeLoss, SiftingDataLoader, TopLoss
from loopwise.warnings import LoopwiseWarning

CRITERION = nn.CrossEntropyLoss(reduction="none")


def dataset(n=100):
    """Return samples whose features are a hundredth of their index."""
    return TensorDataset(torch.stack([torch.arange(n) / 100] * 4, 1), torch.arange(n) % 3)


def sift(loader, **options):
    torch.manual_seed(0)
    return SiftingDataLoader(loader, nn.Linear(4, 3), CRITERION, **{"seed": 0} | options)


def steps(loader):
    """Train, and yield the indices and the weights of each batch."""
    for x, y, *weights in loader:
        loader.model.zero_grad()
        CRITERION(loader.model(x), y).mean().backward()
        with torch.no_grad():
            loader.model.weight -= loader.model.weight.grad
        yield (x[:, 0] * 100).round().int().tolist(), *(column.tolist() for column in weights)


def epoch(loader):
    """Train for an epoch and return the indices of each batch."""
    return [indices for indices, *_ in steps(loader)]


SAMPLERS = {
    "shuffled": lambda data: RandomSampler(data),
    "in order": lambda data: None,
    "subset": lambda data: SubsetRandomSampler(range(0, len(data), 2)),
    "distributed": lambda data: DistributedSampler(data, num_replicas=2, rank=1),
    "own generator": lambda data: RandomSampler(data, generator=torch.Generator().manual_seed(1)),
}


@pytest.mark.filterwarnings("ignore:loopwise.sift. epoch . gave no batch")
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("drop_last", [False, True])
def test_the_length_of_planned_epochs_is_exact(sampler, drop_last):
    for size, policy in ((8, RelativeLoss(0.4)), (7, TopLoss(0.9)), (101, TopLoss(0.5)), (40, TopLoss(0.3))):
        data = dataset(101)
        wrapped = DataLoader(data, size, sampler=SAMPLERS[sampler](data), drop_last=drop_last)
        loader = sift(wrapped, policy=policy)
        for _ in range(4):
            before = len(loader)
            during = [len(loader) for _ in steps(loader)]
            assert set(during) | {before} == {len(during)}


def test_asking_for_the_length_changes_no_batch():
    def batches(asks):
        torch.manual_seed(3)
        loader = sift(DataLoader(dataset(), 8, shuffle=True), keep=0.5)
        result = []
        for _ in range(3):
            for indices in steps(loader):
                result.append(indices)
                if asks:
                    len(loader)
            if asks:
                len(loader)
        return result

    assert batches(False) == batches(True)


@pytest.mark.parametrize("sampler", [WeightedRandomSampler([0.2, 0.8] * 50, 100), None])
@pytest.mark.parametrize("score_every", [0, 1, 2])
def test_no_epoch_is_longer_than_the_length_said_before_training(sampler, score_every):
    for n, size, drop_last in ((100, 16, False), (96, 16, True), (33, 8, False), (17, 16, False)):
        sampler = sampler and WeightedRandomSampler([0.2, 0.8] * 50, n)
        loader = sift(
            DataLoader(dataset(100), size, sampler=sampler or range(n), drop_last=drop_last),
            policy=RelativeLoss(0.9),
            score_every=score_every,
        )
        first = len(loader)
        for _ in range(4):
            said = len(loader)
            assert len(epoch(loader)) <= said <= first


def test_a_one_cycle_schedule_outlasts_the_training():
    loader = sift(DataLoader(dataset(), 8, shuffle=True), keep=0.7)
    optimizer = torch.optim.SGD(loader.model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, epochs=3, steps_per_epoch=len(loader))
    for _ in range(3):
        for _ in steps(loader):
            optimizer.step()
            schedule.step()


@pytest.mark.parametrize("score_every", [0, 1, 2])
@pytest.mark.parametrize("drop_last", [False, True])
def test_left_over_samples_come_first_in_the_next_epoch(score_every, drop_last):
    loader = sift(
        DataLoader(dataset(), 16, drop_last=drop_last), policy=RelativeLoss(0.6), score_every=score_every
    )
    left = loader._pipeline.left_over
    epoch(loader)
    for number in range(1, 6):
        planned = score_every == 0 or (score_every == 2 and number % 2)
        loaded = [] if left.loaded is None else left.loaded.columns["index"].tolist()
        waiting = left.indices.tolist() if planned else loaded
        batches = epoch(loader)
        assert {len(batch) for batch in batches} == {16}
        assert list(itertools.chain(*batches))[: len(waiting)] == waiting
    report = loader.report()
    assert report.kept == report.trained + (0 if left.loaded is None else left.loaded.size)
    assert len(left.indices) < 16
    assert report.cut == 0


def test_planned_samples_that_wait_keep_their_importance_weights():
    loader = sift(DataLoader(dataset(100), 16), policy=RelativeLoss(0.6, floor=0.1), weights=True)
    waiting = []
    for number in range(6):
        weights = {}
        for indices, column in steps(loader):
            for index, weight in zip(indices, column, strict=True):
                weights.setdefault(index, []).append(weight)
        for index, weight in waiting:
            assert weights[index][0] == weight, number
        left = loader._pipeline.left_over
        waiting = list(zip(left.indices.tolist(), left.weights.tolist(), strict=True))


@pytest.mark.parametrize("score_every", [0, 1])
def test_no_batch_of_a_single_sample_comes_where_plain_batches_are_full(score_every):
    """BatchNorm cannot train on one sample; seeds 0 to 3 ended on one in some epoch."""
    for seed in range(4):
        loader = sift(
            DataLoader(dataset(128), 16, shuffle=True), keep=0.5, seed=seed, score_every=score_every
        )
        for _ in range(6):
            assert all(len(batch) == 16 for batch in epoch(loader))


def test_chosen_samples_that_drop_last_would_drop_train_later():
    loader = sift(DataLoader(dataset(64), 32, shuffle=True, drop_last=True), policy=TopLoss(0.3))
    with pytest.warns(
        LoopwiseWarning, match="epoch 1 gave no batch: the chosen samples are fewer than batch_s"
    ) as seen:
        counts = [len(epoch(loader)) for _ in range(7)]
    assert counts == [2, 0, 1, 0, 1, 1, 0]  # 20 of 64 samples an epoch
    assert len(seen) == 1


def test_too_few_samples_for_a_batch_come_as_a_short_one():
    loader = sift(DataLoader(dataset(20), 32), policy=TopLoss(0.5))
    assert [[len(batch) for batch in epoch(loader)] for _ in range(3)] == [[20], [10], [10]]
    loader = sift(DataLoader(dataset(20), 32), policy=TopLoss(0.05), score_every=1)
    with pytest.warns(LoopwiseWarning, match="epoch 0 gave no batch"):
        assert [len(epoch(loader)) for _ in range(2)] == [0, 1]  # one sample is no batch, two are


def test_the_last_short_batch_of_an_epoch_that_keeps_everything_comes_as_in_a_plain_loop():
    for score_every in (0, 1):
        loader = sift(DataLoader(dataset(), 16), policy=torch.ones_like, score_every=score_every)
        for _ in range(2):
            assert [len(batch) for batch in epoch(loader)] == [16] * 6 + [4]


@pytest.mark.parametrize("score_every", [0, 1])
def test_break_ends_the_epoch(score_every):
    loader = sift(DataLoader(dataset(), 8), keep=0.9, score_every=score_every, epochs=4, anneal=0.25)
    for number in range(3):
        assert loader.epoch == number
        for count, _ in enumerate(steps(loader), 1):
            if count == 3:
                break
    assert loader.epoch == 3
    assert loader.report().epochs == 0
    assert len(epoch(loader)) == 13  # the last quarter of training takes all data
    assert loader.report().epochs == 1


def test_a_look_at_the_first_batch_is_no_epoch():
    loader = sift(DataLoader(dataset(), 8), keep=0.5)
    next(iter(loader))
    assert loader.epoch == 0
    assert len(epoch(loader)) == 13


def test_a_state_saved_after_break_begins_the_next_epoch():
    def make():
        return sift(DataLoader(dataset(), 8, shuffle=True), keep=0.6, weights=True)

    loader = make()
    list(itertools.islice(steps(loader), 4))
    state, model = loader.state_dict(), copy.deepcopy(loader.model.state_dict())
    expected = list(steps(loader))
    again = make()
    again.load_state_dict(state)
    again.model.load_state_dict(model)
    assert again.epoch == 1
    assert list(steps(again)) == expected


def test_two_iterations_at_once_are_refused():
    loader = sift(DataLoader(dataset(), 8), keep=0.5)
    pairs = zip(loader, loader, strict=False)
    next(pairs)
    with pytest.raises(StateError) as error:
        next(pairs)
    assert str(error.value) == (
        "seen: an iteration over a SiftingDataLoader that goes on after another one was begun\n"
        "expected: one iteration at a time: each sample is chosen once an epoch\n"
        "likely cause: zip(loader, loader), a loop inside a loop over the same loader, or an old iterator that was kept\n"
        "fix: make a second SiftingDataLoader of the same data, or end the first loop before the second begins"
    )
    with pytest.raises(StateError):
        for _ in steps(loader):
            epoch(loader)


def test_a_new_iteration_takes_the_place_of_an_abandoned_one():
    loader = sift(DataLoader(dataset(), 8), keep=0.5)
    kept = steps(loader)
    for _ in range(3):
        next(kept)
    assert len(epoch(loader)) > 6
    assert loader.epoch == 2
    del kept
    assert loader.epoch == 2


def test_a_state_loaded_in_the_middle_of_a_pass_ends_it():
    loader = sift(DataLoader(dataset(), 8), keep=0.5)
    state = loader.state_dict()
    batches = steps(loader)
    for _ in range(4):
        next(batches)
    loader.load_state_dict(state)
    with pytest.raises(StateError):
        next(batches)
    assert loader.epoch == 0
    assert len(epoch(loader)) == 13


class Endless(Sampler):
    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def __iter__(self):
        while True:
            yield from torch.randperm(self.n).tolist()


def test_a_sampler_that_never_ends_is_refused_where_epochs_are_planned():
    loader = sift(DataLoader(dataset(), 8, sampler=Endless(100)), keep=0.5)
    with pytest.raises(InputError) as error:
        next(iter(loader))
    assert str(error.value) == (
        "seen: a sampler Endless of length 100 that goes on after 1400 samples\n"
        "expected: a sampler that ends, as each epoch is planned ahead by remembered losses\n"
        "likely cause: a sampler that never ends, for training by steps instead of epochs\n"
        "fix: pass score_every=1, which scores the samples as they come, or a sampler that ends"
    )


class Counting(IterableDataset):
    def __iter__(self):
        yield from ((torch.full((4,), float(i % 50)), i % 3) for i in itertools.count())


@pytest.mark.parametrize("options", [{"score_every": 1}, {"keep": 1.0}])
@pytest.mark.parametrize(
    "loader",
    [DataLoader(dataset(), 8, sampler=Endless(100)), DataLoader(Counting(), 8)],
    ids=["sampler", "stream"],
)
def test_what_never_ends_is_sifted_as_it_comes(loader, options):
    loader = sift(loader, **options)
    batches = list(itertools.islice(loader, 300))
    assert len(batches) == 300
    assert all(len(y) == 8 for _, y in batches)
    state = loader.state_dict()
    assert state["epoch"] == 1


def test_a_resumed_endless_sampler_goes_on_where_it_was():
    def make(seed):
        loader = sift(DataLoader(dataset(), 8, sampler=Endless(100)), keep=0.5, score_every=1)
        torch.manual_seed(seed)
        return loader

    loader = make(1)
    batches = iter(loader)
    for _ in range(200):
        next(batches)
    state = loader.state_dict()
    expected = [next(batches)[0] for _ in range(20)]
    again = make(2)
    again.load_state_dict(state)
    assert all(map(torch.equal, expected, [x for x, _ in itertools.islice(again, 20)]))


class Views(Sampler):
    """Sampler that tells the dataset which view of a sample to take."""

    def __len__(self):
        return 40

    def __iter__(self):
        yield from ((i, i % 2) for i in range(40))


class Viewed(torch.utils.data.Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, index):
        sample, view = index
        return torch.full((4,), float(sample)) + view, sample % 3


def test_a_sampler_of_more_than_indices_is_scored_or_refused():
    assert sum(
        len(y) for _, y in sift(DataLoader(Viewed(), 8, sampler=Views()), policy=TopLoss(0.5), score_every=1)
    )
    with pytest.raises(InputError, match=r"a sampler Views that yields \(0, 0\)"):
        next(iter(sift(DataLoader(Viewed(), 8, sampler=Views()), keep=0.5)))

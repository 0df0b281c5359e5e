"""In place of a plain loader: its attributes, batch samplers, trainings of one epoch, and a pilot without traces."""

import copy
import pickle
import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    TensorDataset,
)

from loopwise.errors import InputError
from loopwise.sift import Padded, SiftingDataLoader, TopLoss, pilot
from loopwise.warnings import LoopwiseWarning

CRITERION = nn.CrossEntropyLoss(reduction="none")
NAMES = (
    "dataset",
    "sampler",
    "batch_sampler",
    "collate_fn",
    "generator",
    "num_workers",
    "worker_init_fn",
    "pin_memory",
)
NAMES += ("timeout", "prefetch_factor", "persistent_workers", "multiprocessing_context", "in_order")


def dataset(n=64):
    return TensorDataset(torch.arange(n * 4.0).reshape(n, 4) / n, torch.arange(n) % 3)


def sift(loader, **options):
    return SiftingDataLoader(loader, nn.Linear(4, 3), CRITERION, **{"seed": 0} | options)


def test_attributes_of_the_wrapped_loader_are_there():
    wrapped = DataLoader(dataset(), 8, shuffle=True, generator=torch.Generator(), num_workers=2)
    loader = sift(wrapped)
    for name in NAMES:
        assert getattr(loader, name) is getattr(wrapped, name), name
    assert (loader.batch_size, loader.drop_last) == (8, False)
    assert len(loader.dataset) == 64


def test_attributes_that_the_wrapped_loader_lacks_are_missing():
    loader = sift([(torch.zeros(8, 4), torch.zeros(8, dtype=torch.int64))])
    for name in NAMES:
        assert not hasattr(loader, name)
    assert getattr(loader, "sampler", None) is None
    assert not hasattr(loader, "something")


def test_attributes_of_the_wrapped_loader_cannot_be_replaced_here():
    loader = sift(DataLoader(dataset(), 8))
    with pytest.raises(
        AttributeError, match="dataset of a SiftingDataLoader cannot be set: set it on the wrapped"
    ):
        loader.dataset = dataset(8)
    empty = object.__new__(SiftingDataLoader)  # as copy and pickle make it
    assert not hasattr(empty, "dataset")


@pytest.mark.parametrize("name", ["keep", "policy", "model", "batch_size", "drop_last"])
def test_arguments_that_would_have_no_effect_later_cannot_be_set(name):
    loader = sift(DataLoader(dataset(), 8))
    before = getattr(loader, name)
    with pytest.raises(
        AttributeError, match=f"{name} of a SiftingDataLoader cannot be set: it would have no"
    ):
        setattr(loader, name, 0.25)
    assert getattr(loader, name) == before


def test_set_epoch_of_the_sampler_reaches_the_order():
    sampler = DistributedSampler(dataset(), num_replicas=2, rank=0)
    loader = sift(DataLoader(dataset(), 8, sampler=sampler), keep=1.0)
    first = next(iter(loader))[0]
    loader.sampler.set_epoch(1)
    assert not torch.equal(next(iter(loader))[0], first)


class Sizes(Sampler):
    """Batch sampler that makes batches of given sizes."""

    def __init__(self, sizes):
        self.sizes = sizes

    def __len__(self):
        return len(self.sizes)

    def __iter__(self):
        ends = np.cumsum(self.sizes).tolist()
        yield from (list(range(end - size, end)) for end, size in zip(ends, self.sizes, strict=True))


@pytest.mark.filterwarnings("ignore:loopwise.sift. the kept samples of several batches")
@pytest.mark.parametrize("sizes", [[3, 9, 5, 16, 8, 23], [23, 9, 5, 16, 8, 3], [8, 8, 4, 8], [8, 8, 9]])
def test_batch_samplers_of_varying_size_are_refused(sizes):
    with pytest.raises(
        InputError, match="a batch sampler that makes buckets by length, or keeps a budget of tokens"
    ):
        list(sift(DataLoader(dataset(), batch_sampler=Sizes(sizes)), keep=0.5))
    batches = list(sift(DataLoader(dataset(), batch_sampler=Sizes(sizes)), keep=1.0))
    assert [len(y) for _, y in batches] == sizes  # nothing is joined
    batches = list(sift(DataLoader(dataset(), batch_sampler=Sizes(sizes)), policy=TopLoss(0.5), batch_size=4))
    assert {len(y) for _, y in batches} == {4}


@pytest.mark.filterwarnings("ignore:loopwise.sift. the kept samples of several batches")
def test_the_refusal_of_varying_sizes_says_what_to_do():
    with pytest.raises(InputError) as error:
        list(sift(DataLoader(dataset(), batch_sampler=Sizes([3, 9, 5])), keep=0.5))
    assert str(error.value) == (
        "seen: batches of 3 samples and of 9 samples\n"
        "expected: batches of one size, except the last one of an epoch\n"
        "likely cause: a batch sampler that makes buckets by length, or keeps a budget of tokens\n"
        "fix: pass batch_size=, the number of samples in the batches to train on (and concatenate=Padded(...) if their "
        "lengths differ)"
    )


def test_a_token_budget_is_joined_by_a_size_and_padding():
    def collate(samples):
        width = 60 // len(samples)
        return {"ids": torch.stack([torch.full((width,), int(y)) for _, y in samples])}

    loader = SiftingDataLoader(
        DataLoader(dataset(), batch_sampler=Sizes([3, 10, 5, 15, 6]), collate_fn=collate),
        nn.Linear(4, 3),
        lambda model, batch: batch["ids"].float().mean(1),
        policy=TopLoss(0.5),
        batch_size=4,
        concatenate=Padded({"ids": -1}),
    )
    assert {len(batch["ids"]) for batch in loader} == {4}


class OfEachClass(BatchSampler):
    """Batches of 4 samples of each of 3 classes, as a triplet loss needs them."""

    def __iter__(self):
        classes = [iter([i for i in range(60) if i % 3 == label]) for label in range(3)]
        for _ in range(5):
            yield [next(indices) for indices in classes for _ in range(4)]

    def __len__(self):
        return 5


def test_groups_of_a_batch_sampler_are_taken_apart_with_a_warning():
    loader = lambda **options: sift(  # noqa: E731
        DataLoader(dataset(60), batch_sampler=OfEachClass(RandomSampler(dataset(60)), 12, False)), **options
    )
    with pytest.warns(LoopwiseWarning) as warned:
        list(loader(policy=TopLoss(0.5)))
    assert [str(one.message) for one in warned] == [
        "loopwise.sift: the kept samples of several batches of OfEachClass are joined into new batches; a loss that compares "
        "the samples of a batch (triplets, contrastive pairs) then meets other ones than the batch sampler put together; "
        "keep=1.0 leaves the batches as they are"
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [len(y) for _, y in loader(keep=1.0)] == [12] * 5


@pytest.mark.filterwarnings("ignore:loopwise.sift. the kept samples of several batches")
def test_batch_samplers_of_one_size_and_a_short_last_batch_are_sifted():
    class Own(BatchSampler):
        pass

    for sampler in (Own(RandomSampler(dataset(60)), 8, False), Sizes([8] * 7 + [4])):
        loader = sift(DataLoader(dataset(60), batch_sampler=sampler), policy=TopLoss(0.5))
        for _ in range(2):
            assert {len(y) for _, y in loader} == {8}


def test_short_batches_of_several_workers_are_joined():
    """Streams that are batched by each worker end in several short batches."""
    batches = [(torch.zeros(n, 4), torch.arange(n) % 3) for n in (8, 8, 5, 8, 3)]
    assert {len(y) for _, y in sift(batches, policy=TopLoss(0.5))} == {8}


def test_a_training_of_one_epoch_scores_its_samples():
    loader = sift(DataLoader(dataset(), 8), policy=TopLoss(0.5), epochs=1)
    assert sum(len(y) for _, y in loader) == 32
    assert loader.report().scored == 64
    assert sift(DataLoader(dataset(), 8), keep=0.5, epochs=2).score_every == 0
    assert sift(DataLoader(dataset(), 8), keep=0.5, epochs=1, score_every=0).score_every == 0


class Augmented(Dataset):
    """Dataset that draws from every global random state."""

    def __len__(self):
        return 64

    def __getitem__(self, i):
        return torch.randn(4) + random.random() + np.random.rand(), i % 3


LOADERS = {
    "own generator": lambda: DataLoader(
        Augmented(), 8, shuffle=True, generator=torch.Generator().manual_seed(4)
    ),
    "generator of the sampler": lambda: DataLoader(
        Augmented(), 8, sampler=RandomSampler(Augmented(), generator=torch.Generator().manual_seed(4))
    ),
    "global state": lambda: DataLoader(Augmented(), 8, shuffle=True),
    "own batch sampler": lambda: DataLoader(
        Augmented(),
        batch_sampler=type("Own", (BatchSampler,), {})(
            RandomSampler(range(64), generator=torch.Generator().manual_seed(4)), 8, False
        ),
    ),
    "workers that stay": lambda: DataLoader(
        Augmented(), 8, shuffle=True, num_workers=1, persistent_workers=True
    ),
}


@pytest.mark.parametrize("name", LOADERS)
def test_pilot_leaves_the_data_as_they_were(name):
    def batches(piloted):
        torch.manual_seed(7)
        random.seed(7)
        np.random.seed(7)
        loader, model = LOADERS[name](), nn.Linear(4, 3)
        if piloted:
            pilot(loader, model, CRITERION, steps=5)
        return [x for _ in range(2) for x, _ in loader] + list(model.parameters())

    assert all(map(torch.equal, batches(False), batches(True)))


class Once:
    def __init__(self):
        self.batches = iter([(torch.zeros(8, 4), torch.zeros(8, dtype=torch.int64))] * 16)

    def __iter__(self):
        return self.batches


class SelfDataset(IterableDataset):
    def __iter__(self):
        return self

    def __next__(self):
        return torch.zeros(4), 0


@pytest.mark.parametrize(
    "make",
    [
        Once,
        lambda: iter(list(Once())),
        lambda: (batch for batch in Once()),
        lambda: DataLoader(SelfDataset(), 8),
    ],
)
def test_pilot_refuses_data_that_it_would_use_up(make):
    loader = make()
    with pytest.raises(
        InputError, match="returns the same iterator every time\nexpected: data that can be iterated again"
    ):
        pilot(loader, nn.Linear(4, 3), CRITERION, steps=8)
    if not isinstance(loader, DataLoader):
        assert len(list(loader)) == 16


def test_pilot_says_what_to_do_about_batches_of_three_fields():
    loader = DataLoader(TensorDataset(*dataset().tensors, torch.zeros(64)), 8)
    with pytest.raises(
        InputError, match=r"no pair \(input, target\): list\(Tensor\(8, 4\), .*\n.*\n.*\nfix: .*model, batch"
    ):
        pilot(loader, nn.Linear(4, 3), CRITERION)


def test_a_wrapped_dataset_can_be_pickled_beside_its_loader():
    loader = sift(DataLoader(dataset(), 8))
    assert len(pickle.loads(pickle.dumps(loader.dataset))) == 64
    assert copy.copy(loader).dataset is loader.dataset

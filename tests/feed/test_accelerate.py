"""The loader in Accelerate: the batches of a DataLoader that it has prepared, and a warning if it is thrown away."""

import gc
import os

import accelerate
import feed_kit
import pytest
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.state import AcceleratorState, GradientState
from feed_kit import Augmented, Stream, equal
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from loopwise.errors import InputError
from loopwise.feed import RemoteDataLoader, rebuilt
from loopwise.feed.accelerate import prepare_loader, skip_first_batches
from loopwise.feed.torch_internals import BaseIterator
from loopwise.warnings import LoopwiseWarning


@pytest.fixture(autouse=True)
def _fresh_state():
    yield
    fresh()


def fresh():
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


def accelerator(**options):
    return Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(**options))


MAKE = BaseIterator.__init__


@pytest.fixture(autouse=True)
def _without_loaders_of_other_tests():
    """Forget loaders that another test of this process made and never iterated, as wrapped ones are."""
    gc.collect()
    for unused in list(rebuilt._unused):
        rebuilt._remove(unused)


KINDS = {
    "shuffled": lambda make, **own: make(Augmented(), 4, shuffle=True, num_workers=2, **own),
    "batches": lambda make, **own: make(
        Augmented(), batch_sampler=BatchSampler(RandomSampler(range(12)), 3, False), num_workers=1, **own
    ),
    "stream": lambda make, **own: make(Stream((5, 2)), 2, num_workers=2, **own),
}


def epochs(prepare, make, kind, config, **own):
    """Return two epochs, and then one without its first two batches."""
    torch.manual_seed(3)
    loader = KINDS[kind](make, **own)
    loader = prepare(accelerator(**config), loader)
    batches = [list(loader), list(loader)]
    skip = skip_first_batches if make is RemoteDataLoader else accelerate.skip_first_batches
    batches.append(list(skip(loader, 2)))
    fresh()
    return batches, loader


def by_accelerate(accelerator, loader):
    return accelerator.prepare(loader)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "config", [{}, {"use_seedable_sampler": False, "use_stateful_dataloader": True}], ids=str
)
def test_batches_are_those_of_a_dataloader_that_accelerate_has_prepared(kind, config):
    theirs, _ = epochs(by_accelerate, DataLoader, kind, config | {"use_stateful_dataloader": False})
    ours, loader = epochs(prepare_loader, RemoteDataLoader, kind, config, prefetch_bytes=1 << 20)
    assert equal(theirs, ours)
    assert loader.report()["batches"] == len(ours[1])
    assert (loader.prefetch_bytes, loader.use_stateful_dataloader) == (1 << 20, len(config) > 0)
    assert BaseIterator.__init__ is MAKE


def test_a_state_of_the_accelerator_goes_on_in_the_middle_of_an_epoch(tmp_path):
    def prepared():
        torch.manual_seed(3)
        ours = accelerator(use_stateful_dataloader=True, use_seedable_sampler=True)
        return ours, prepare_loader(ours, RemoteDataLoader(Augmented(), 4, shuffle=True, num_workers=2))

    ours, loader = prepared()
    batches = []
    for number, batch in enumerate(loader):
        batches.append(batch)
        if number == 2:
            ours.save_state(tmp_path)
    fresh()
    ours, loader = prepared()
    ours.load_state(tmp_path)
    assert equal(list(loader), batches[3:])
    assert len(list(loader)) == len(batches)


def test_a_loader_that_accelerate_throws_away_is_told_of_once():
    prepared = accelerator().prepare(RemoteDataLoader(Augmented(8), 4, shuffle=True, num_workers=1))
    with pytest.warns(LoopwiseWarning) as caught:
        assert len(list(prepared)) == len(list(prepared)) == 2
    assert [str(warning.message) for warning in caught] == [
        "a DataLoader that was made from the attributes of a RemoteDataLoader is iterated in its place, so that its batches "
        "are loaded without Loopwise; Accelerate's prepare does this: use "
        "loopwise.feed.accelerate.prepare_loader(accelerator, loader), or FeedingTrainerMixin in a Hugging Face Trainer, or "
        "else a plain DataLoader"
    ]
    assert caught[0].filename == __file__
    assert BaseIterator.__init__ is MAKE


def test_a_stream_that_accelerate_reads_itself_is_told_of():
    loader = accelerator().prepare(RemoteDataLoader(Stream((5, 2)), 2, num_workers=2))
    with pytest.warns(LoopwiseWarning, match="made from the attributes of a RemoteDataLoader"):
        list(loader)


@pytest.mark.filterwarnings("ignore:.set_vital. is deprecated")  # of torchdata
@pytest.mark.parametrize("workers", [0, 1])
def test_a_stateful_loader_that_accelerate_makes_is_told_of(workers):
    """It makes its iterator while it is prepared."""
    ours = accelerator(use_stateful_dataloader=True)
    loader = RemoteDataLoader(Augmented(8), 4, shuffle=True, num_workers=workers)
    with pytest.warns(
        LoopwiseWarning, match="^a StatefulDataLoader that was made from the attributes"
    ) as caught:
        prepared = ours.prepare(loader)
    told = [warning for warning in caught if warning.category is LoopwiseWarning]
    assert [warning.filename for warning in told] == [__file__]
    assert len(list(prepared)) == 2
    assert BaseIterator.__init__ is MAKE


def test_other_loaders_of_the_dataset_are_not_told_of():
    data = Augmented(8)
    loader = RemoteDataLoader(data, 4, num_workers=1)
    assert len(list(DataLoader(data, 4))) == 2
    assert len(list(loader)) == 2
    assert len(list(DataLoader(data, 4, sampler=loader.sampler))) == 2


def test_a_replacement_by_other_code_remains():
    loader = RemoteDataLoader(Augmented(8), 4, num_workers=1)
    observed, calls = BaseIterator.__init__, []
    assert observed is not MAKE

    def counted(iterator, loader):
        calls.append(loader)
        observed(iterator, loader)

    BaseIterator.__init__ = counted
    try:
        list(loader)
        assert BaseIterator.__init__ is counted
        assert len(list(DataLoader(Augmented(8), 4))) == 2
        assert len(calls) == 2
    finally:
        BaseIterator.__init__ = MAKE


def test_other_loaders_are_refused():
    ours = accelerator()
    prepared = prepare_loader(ours, RemoteDataLoader(Augmented(8), 4, num_workers=1))
    for loader, name in ((DataLoader(Augmented(8)), "DataLoader"), (prepared, "DataLoaderShard")):
        with pytest.raises(InputError) as error:
            prepare_loader(ours, loader)
        assert str(error.value) == (
            f"seen: a loader of type {name}\n"
            "expected: a RemoteDataLoader that Accelerate has not prepared\n"
            "likely cause: another loader, or one that accelerator.prepare has returned\n"
            "fix: pass the RemoteDataLoader itself, and other loaders to accelerator.prepare"
        )


TWO = """
import sys
sys.path.insert(0, {folder!r})
from feed_kit import Augmented, Stream, equal
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler
from accelerate import Accelerator, DataLoaderConfiguration
from loopwise.feed import RemoteDataLoader
from loopwise.feed.accelerate import prepare_loader
rank = int(os.environ["RANK"])
os.environ |= {{"LOCAL_RANK": str(rank), "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}}
ours = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(dispatch_batches=False))

def epochs(make, prepare, data, **options):
    torch.manual_seed(3)
    loader = prepare(make(data, 2, num_workers=2, **options))
    return [batch for _ in range(2) for batch in loader]

def both(data, **options):
    theirs = epochs(DataLoader, ours.prepare, data, **options)
    mine = epochs(RemoteDataLoader, lambda loader: prepare_loader(ours, loader), data, **options)
    return equal(theirs, mine), mine

same, batches = both(Augmented(10), shuffle=True)
streams, _ = both(Stream((5, 2)))
seen = [batch["index"].tolist() for batch in batches]

def sampled(make):
    torch.manual_seed(3)
    sampler = DistributedSampler(range(10), shuffle=True)
    loader, got = make(Augmented(10), 2, sampler=sampler, num_workers=2), []
    for epoch in range(2):
        (getattr(loader, "set_epoch", None) or sampler.set_epoch)(epoch)
        got += list(loader)
    return got

with_sampler = sampled(RemoteDataLoader)
again = equal(sampled(DataLoader), with_sampler)
resumed = RemoteDataLoader(Augmented(10), 2, sampler=DistributedSampler(range(10), shuffle=True), num_workers=2)
resumed.set_epoch(1)
torch.manual_seed(3)
iterator = iter(resumed)
head = [next(iterator), next(iterator)]
state = resumed.state_dict()
fresh = RemoteDataLoader(Augmented(10), 2, sampler=DistributedSampler(range(10), shuffle=True), num_workers=2)
torch.manual_seed(3)
fresh.load_state_dict(state)
print(json.dumps([same, streams, seen, again, equal(list(fresh), list(iterator)),
                  [batch["index"].tolist() for batch in with_sampler]]))
"""


def test_ranks_have_the_batches_of_dataloader(ranks):
    code = TWO.format(folder=os.path.dirname(feed_kit.__file__))
    two = ranks(code)
    for same, streams, _, sampled, resumed, _ in two:
        assert same
        assert streams
        assert sampled
        assert resumed
    for part in (2, 5):
        batches = [two[0][part], two[1][part]]
        assert {index for rank in batches for batch in rank[: len(rank) // 2] for index in batch} == set(
            range(10)
        )

"""A sifting loader around a loader that Accelerate has prepared: synchronisation, nested loaders, resume, ranks."""

import os
from itertools import pairwise

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from loopwise.errors import InputError
from loopwise.sift import SiftingDataLoader, TopLoss

CRITERION = nn.CrossEntropyLoss(reduction="none")


@pytest.fixture(autouse=True)
def _fresh_state():
    yield
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


def prepared(accumulate, samples=72, **options):
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    model = nn.Linear(6, 3)
    data = TensorDataset(torch.randn(samples, 6), torch.arange(samples) % 3)
    model, optimizer, loader = accelerator.prepare(
        model, torch.optim.SGD(model.parameters(), lr=0.1), DataLoader(data, 8, shuffle=True)
    )
    loader = SiftingDataLoader(loader, model, CRITERION, **({"policy": TopLoss(0.5), "seed": 0} | options))
    return accelerator, model, optimizer, loader


def train(accelerator, model, optimizer, batches):
    """Return for each batch whether its gradients were synchronised."""
    synchronised = []
    for x, y in batches:
        with accelerator.accumulate(model):
            accelerator.backward(CRITERION(model(x), y).mean())
            optimizer.step()
            optimizer.zero_grad()
        synchronised.append(accelerator.sync_gradients)
    return synchronised


def as_prepared(accumulate, batches):
    """Return the synchronised steps of an epoch of a loader that Accelerate has prepared."""
    return [step % accumulate == 0 or step == batches for step in range(1, batches + 1)]


@pytest.mark.parametrize("accumulate", [1, 2, 3, 8])
def test_the_last_batches_of_an_epoch_are_synchronised(accumulate):
    accelerator, model, optimizer, loader = prepared(accumulate)
    lengths = set()
    for _ in range(3):
        synchronised = train(accelerator, model, optimizer, loader)
        lengths.add(len(synchronised))
        assert synchronised == as_prepared(accumulate, len(synchronised))
        assert not any(p.grad is not None and p.grad.any() for p in model.parameters())
    assert lengths == {4, 5}  # 36 samples an epoch, and those that waited
    assert not accelerator.gradient_state.in_dataloader


def test_pools_that_are_read_ahead_do_not_end_the_epoch_early():
    accelerator, model, optimizer, loader = prepared(3, pool=9)
    assert train(accelerator, model, optimizer, loader) == [False, False, True, True]


def test_loaders_inside_of_the_loop():
    accelerator, model, optimizer, loader = prepared(3)
    inner = accelerator.prepare(DataLoader(TensorDataset(torch.zeros(4, 6)), 2))
    synchronised, ends = [], []
    for batch in loader:
        list(inner)
        synchronised += train(accelerator, model, optimizer, [batch])
        ends.append(accelerator.gradient_state.end_of_dataloader)
    assert synchronised == [False, False, True, True]
    assert ends == [False] * 3 + [True]


def test_leaving_an_epoch_leaves_accelerates_list():
    accelerator, _, _, loader = prepared(2)
    for _ in loader:
        break
    assert not accelerator.gradient_state.in_dataloader


def test_metrics_gather_all_samples_of_the_last_batch():
    accelerator, _, _, loader = prepared(2, samples=70)
    sizes = [len(accelerator.gather_for_metrics(y)) for _, y in loader]
    assert sum(sizes) == loader.report().trained


@pytest.mark.parametrize("step", [0, 2, 4])
def test_resume_under_accumulation(step):
    def labels(loader):
        return [y.tolist() for _, y in loader]

    *_, whole = prepared(4)
    expected = labels(whole) + labels(whole)
    *_, first = prepared(4)
    batches = iter(first)
    seen = [next(batches)[1].tolist() for _ in range(step)]
    state = first.state_dict()
    *_, again = prepared(4)
    again.load_state_dict(state)
    assert seen + labels(again) + labels(again) == expected


def synchronised_on_two_ranks():
    """Return the synchronised steps of two epochs, on ranks that keep different shares."""
    rank = int(os.environ["RANK"])
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    share = 0.3 + 0.4 * rank
    accelerator, model, optimizer, loader = prepared(
        3, samples=160, policy=lambda losses: torch.full((len(losses),), share)
    )
    epochs = [train(accelerator, model, optimizer, loader) for _ in range(2)]
    weights = [float(parameter.sum()) for parameter in model.parameters()]
    AcceleratorState._reset_state(True)  # other cases run in this process
    GradientState._reset_state()
    return [epochs, weights]


def dispatched_on_two_ranks():
    """Return the error about a stream that one rank reads for all."""
    os.environ |= {"LOCAL_RANK": os.environ["RANK"], "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}

    class Stream(IterableDataset):
        def __iter__(self):
            return iter([torch.zeros(6)] * 8)

    accelerator, model, *_ = prepared(1)
    loader = accelerator.prepare(DataLoader(Stream(), 4))
    try:
        next(iter(SiftingDataLoader(loader, model, lambda model, batch: model(batch)[:, 0])))
    except InputError as error:
        return str(error)
    finally:
        AcceleratorState._reset_state(True)
        GradientState._reset_state()


def test_a_loader_that_one_rank_reads_for_all_is_refused(two):
    for error in two("dispatched_on_two_ranks", file=__file__):
        assert "sends each batch to the others" in error
        assert "dispatch_batches=False" in error


def test_ranks_synchronise_together(two):
    first, second = two("synchronised_on_two_ranks", file=__file__)
    assert first == second
    for epoch in first[0]:
        assert epoch[-1]
        steps = [number for number, synchronised in enumerate(epoch) if synchronised]
        assert all(b - a <= 3 for a, b in pairwise([-1, *steps]))

"""Timing of loaders replaces two methods of torch while it is used, and puts them back."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from loopwise.debug import Profile, Watch, open_run, torch_internals
from loopwise.debug.profiler import loaders
from loopwise.debug.profiler.phases import DATA, Phases

ITERATOR = torch_internals.loader_iterator()


@pytest.fixture
def data():
    return TensorDataset(torch.randn(24, 4))


def methods():
    """The classes' own attributes, in order."""
    return [list(vars(owner).items()) for owner in (DataLoader, ITERATOR)]


class Recorder:
    """Subscriber that keeps the number of workers of each call, and whether a batch came."""

    def __init__(self):
        self.calls = []

    def loads(self):
        return 0.0

    def loaded(self, start, workers, arrived=True):
        self.calls.append((workers, arrived))


def test_the_last_subscriber_that_leaves_puts_the_methods_back(data):
    before = methods()
    first, second = Phases(lambda: 0.0), Phases(lambda: 0.0)
    loaders.subscribe(first)
    replaced = methods()
    assert replaced != before
    loaders.subscribe(second)
    assert methods() == replaced
    for phases in (first, second):
        phases.begin()
    next(iter(DataLoader(data)))
    assert first._seconds[DATA] > 0
    assert second._seconds[DATA] > 0
    loaders.unsubscribe(first)
    assert methods() == replaced
    loaders.unsubscribe(second)
    assert methods() == before
    loaders.unsubscribe(second)
    assert methods() == before


@pytest.mark.parametrize("fails", [False, True])
def test_a_closed_watch_leaves_the_classes_of_torch_as_they_were(data, tmp_path, fails):
    before = methods()
    net = nn.Linear(4, 1)
    watch = Watch(net, run=tmp_path / "run", save=None, rules=False, profile=Profile(rules=False))
    assert methods() != before
    with pytest.raises(ZeroDivisionError) if fails else watch:
        for (x,) in DataLoader(data, batch_size=12):
            watch.step(loss=net(x).sum())
        if fails:
            with watch:
                raise ZeroDivisionError
    assert methods() == before
    assert open_run(tmp_path / "run").ended


def test_a_watch_without_a_profile_changes_nothing(tmp_path):
    before = methods()
    with Watch(nn.Linear(4, 1), run=tmp_path / "run", save=None, rules=False, profile=False):
        assert methods() == before


def test_a_method_that_somebody_else_replaced_stays(data):
    before, subscriber = ITERATOR.__next__, Phases(lambda: 0.0)
    loaders.subscribe(subscriber)
    ours = ITERATOR.__next__
    theirs = lambda self: ours(self)  # noqa: E731
    ITERATOR.__next__ = theirs
    loaders.unsubscribe(subscriber)
    assert ITERATOR.__next__ is theirs
    assert len(list(DataLoader(data))) == 24
    ITERATOR.__next__ = ours  # the other one leaves after us
    loaders.subscribe(subscriber)
    loaders.unsubscribe(subscriber)
    assert ITERATOR.__next__ is before


@pytest.mark.parametrize("workers", [0, 1])
def test_start_and_end_of_an_epoch_are_calls_without_a_batch(data, workers):
    loaders.subscribe(recorder := Recorder())
    list(DataLoader(data, batch_size=12, num_workers=workers))
    loaders.unsubscribe(recorder)
    assert recorder.calls == [(workers, arrived) for arrived in (False, True, True, False)]


def test_the_documents_name_the_methods():
    for name in ("DataLoader.__iter__", "__next__", "whole process"):
        assert name in loaders.GLOBAL_CHANGE

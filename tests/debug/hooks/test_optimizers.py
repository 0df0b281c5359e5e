"""Subscribers to the updates of an optimizer share one pair of hooks, in order, with and without closures."""

import copy
import gc
import pickle
import weakref

import pytest
import torch

from loopwise.debug.hooks import optimizers
from loopwise.debug.hooks.optimizers import UpdateSubscriber


class Noting(UpdateSubscriber):
    def __init__(self, name, calls):
        self.name, self.calls = name, calls

    def step_called(self, optimizer):
        self.calls.append(f"{self.name} called")

    def before_update(self, optimizer):
        self.calls.append(f"{self.name} before")

    def after_update(self, optimizer):
        self.calls.append(f"{self.name} after")


@pytest.fixture
def optimizer():
    weight = torch.ones(2, requires_grad=True)
    weight.grad = torch.ones(2)
    return torch.optim.SGD([weight], 0.1)


def hooks(optimizer):
    return len(optimizer._optimizer_step_pre_hooks), len(optimizer._optimizer_step_post_hooks)


def test_one_pair_of_hooks_serves_all_subscribers_in_order(optimizer):
    calls = []
    subscribers = [Noting("a", calls), Noting("b", calls)]
    for subscriber in subscribers:
        optimizers.subscribe(optimizer, subscriber)
    assert hooks(optimizer) == (1, 1)
    optimizer.step()
    assert calls == ["a called", "a before", "b called", "b before", "a after", "b after"]
    optimizers.unsubscribe(optimizer, subscribers[0])
    optimizers.unsubscribe(optimizer, subscribers[0])
    calls.clear()
    optimizer.step()
    assert calls == ["b called", "b before", "b after"]
    optimizers.unsubscribe(optimizer, subscribers[1])
    assert hooks(optimizer) == (0, 0)


@pytest.mark.parametrize("by_name", [False, True])
def test_gradients_of_a_closure_are_there_before_the_update(optimizer, by_name):
    calls = []
    optimizers.subscribe(optimizer, Noting("a", calls))

    def closure():
        calls.append("closure")
        return torch.tensor(3.0)

    loss = optimizer.step(closure=closure) if by_name else optimizer.step(closure)
    assert loss == 3
    assert calls == ["a called", "closure", "a before", "a after"]


def test_copies_have_no_subscribers(optimizer):
    calls = []
    optimizers.subscribe(optimizer, Noting("a", calls))
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        other.step()
    assert calls == []


def test_an_optimizer_is_freed_with_its_subscribers():
    optimizer, subscriber = torch.optim.SGD([torch.ones(1, requires_grad=True)]), Noting("a", [])
    subscriber.optimizer = optimizer
    optimizers.subscribe(optimizer, subscriber)
    freed = weakref.ref(optimizer)
    del optimizer, subscriber
    gc.collect()
    assert freed() is None


class Weights(UpdateSubscriber):
    """Subscriber whose own code must not become part of a compiled update."""

    def __init__(self):
        self.seen = []

    def before_update(self, optimizer):
        assert not torch.compiler.is_compiling()
        self._add("before", optimizer)

    def after_update(self, optimizer):
        self._add("after", optimizer)

    def _add(self, when, optimizer):
        (weight,) = optimizer.param_groups[0]["params"]
        self.seen.append((when, weight.tolist(), weight.grad.tolist()))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("late", [False, True], ids=["subscribed first", "compiled first"])
def test_a_compiled_update_calls_subscribers_with_the_values_before_and_after_it(optimizer, backend, late):
    torch._dynamo.reset()
    subscriber, step = Weights(), torch.compile(optimizer.step, backend=backend)
    if late:
        step()
        with torch.no_grad():
            optimizer.param_groups[0]["params"][0].fill_(1.0)
    optimizers.subscribe(optimizer, subscriber)
    step()
    ones, change = [1.0, 1.0], pytest.approx([0.9, 0.9])
    assert subscriber.seen == [("before", ones, ones), ("after", change, ones)]
    optimizers.unsubscribe(optimizer, subscriber)
    step()
    assert len(subscriber.seen) == 2
    torch._dynamo.reset()


def test_an_optimizer_that_takes_the_place_of_another_one_is_joined(optimizer):
    calls, joined = [], []
    subscriber = Noting("a", calls)
    subscriber.joined = joined.append
    optimizers.subscribe(optimizer, subscriber)
    (weight,) = optimizer.param_groups[0]["params"]
    other, stranger = torch.optim.Adam([weight]), torch.optim.SGD([torch.ones(1, requires_grad=True)])
    stranger.step()
    assert (calls, joined) == ([], [])
    other.step()
    other.step()
    assert joined == [other]
    assert calls == ["a called", "a before", "a after"] * 2
    optimizers.unsubscribe_all(subscriber)
    assert hooks(optimizer) == hooks(other) == (0, 0)
    other.step()
    assert len(calls) == 6

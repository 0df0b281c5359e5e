"""Rounding of a step: how far another order of additions moves a sum that cancels."""

import functools
import operator

import numpy as np
import torch
from torch import nn

from loopwise.compile import Plan, TrainStep
from loopwise.compile.verify import reference as references
from loopwise.compile.verify.errors import relative_error
from loopwise.compile.verify.numerics import compare
from loopwise.compile.verify.rounding import WITH_SUMS, Rounded, seldom
from loopwise.compile.verify.sandbox import Sandbox
from loopwise.compile.verify.torch_internals import decompositions

CAPTURED = Plan(graph="captured")


def reference(net, loss, batch):
    """Return the eager step's tensors."""
    step = TrainStep(net, loss, torch.optim.SGD(net.parameters(), lr=0.1), plan=CAPTURED)
    return references.reference(Sandbox(step.spec, batch))


def classifier(*layers):
    """Return the eager step's tensors of a classifier of 64 samples."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), *layers, nn.Linear(16, 3))
    return reference(net, nn.CrossEntropyLoss(), (torch.randn(64, 6), torch.arange(64) % 3))


def one_by_one(terms):
    """Return the sum of float32 numbers that are added one after the other."""
    return functools.reduce(operator.add, terms.numpy(), np.float32(0)).item()


def test_a_sum_that_cancels_may_be_added_in_another_order():
    """The demo's step was given up after 8 batches in three of five trainings: a kernel adds terms one by one that cancel."""
    torch.manual_seed(1)
    net, x, y = nn.Linear(4, 1), torch.randn(4096, 4), torch.randn(4096, 1)
    y += 1e-4 - y.mean()  # the sum is 0.4
    expected = reference(net, lambda out, y: (out * y).sum(), (x, y))
    serial = torch.tensor([one_by_one(y[:, 0])])
    assert relative_error(serial, y.double().sum().reshape(1), 0.0) > 5e-5
    assert compare(expected.eager | {"gradient/bias": serial}, expected) is None
    for wrong in (1.01 * serial, serial - y[0]):
        assert compare(expected.eager | {"gradient/bias": wrong}, expected).tensor == "gradient/bias"


def test_rounded_results_of_a_step_without_cancellation_are_near():
    """The rounding of sums inside of norms and losses excuses no error that a wrong factor makes."""
    expected = classifier(nn.BatchNorm1d(16), nn.LayerNorm(16))
    changes = [expected.perturb(seed) for seed in range(4)]
    assert 1e-7 < max(change["gradient/3.weight"] for change in changes) < 1e-5
    assert changes[0] != changes[1]
    assert expected.perturb(0) == changes[0]


def test_a_share_of_the_elements_moves_up_and_as_many_down():
    draw = torch.Generator().manual_seed(0)
    moves = seldom(torch.empty(3, 99_999, dtype=torch.float64), draw, 1 / 8)
    assert moves.shape == (3, 99_999)
    assert moves.unique().tolist() == [-1, 0, 1]
    for direction in (-1, 1):
        assert abs((moves == direction).double().mean() - 1 / 16) < 0.002
    assert abs((moves[0] * moves[1]).mean()) < 0.002  # neighbours have nothing to do with each other
    assert abs((moves[0, 1:] * moves[0, :-1]).mean()) < 0.002


def test_operations_with_sums_inside_are_computed_by_simpler_ones():
    """A name that a new release of torch gave up would leave rounding out without a word."""
    found = {overload.overloadpacket.__name__ for overload in decompositions(WITH_SUMS)}
    assert found == {*WITH_SUMS}


def test_an_operation_that_passes_no_mode_is_perturbed_by_its_weights(monkeypatch):
    def refuse(*args):
        raise NotImplementedError("no rule for this mode")

    monkeypatch.setattr(Rounded, "__torch_dispatch__", refuse)
    assert classifier().perturb(0)["gradient/0.weight"] > 0

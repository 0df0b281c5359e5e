"""Preservation: nothing a forward pass can change stays changed."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from loopwise.preserve import preserve


class Noisy(nn.Module):
    """Changes everything that a forward pass can change."""

    def __init__(self):
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(4), nn.Dropout()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("nothing", None)

    def forward(self, x):
        self.count = self.count + random.random() + np.random.rand()
        return self.drop(self.norm(x))


def state(model):
    buffers = {name: (id(b), b.clone()) for name, b in model.named_buffers()}
    modes = [m.training for m in model.modules()]
    return buffers, modes, torch.get_rng_state(), random.getstate(), np.random.get_state()[1]


def equal(a, b):
    same = all(a[0][n][0] == b[0][n][0] and torch.equal(a[0][n][1], b[0][n][1]) for n in a[0])
    return same and a[1] == b[1] and torch.equal(a[2], b[2]) and a[3] == b[3] and (a[4] == b[4]).all()


@pytest.mark.parametrize("training", [None, True, False])
def test_everything_is_restored(training):
    model = Noisy()
    model.norm.eval()  # a frozen BatchNorm inside a training model must stay frozen
    before = state(model)
    with preserve(model, training=training):
        model(torch.randn(8, 4))
    assert equal(before, state(model))


def test_without_it_everything_changes():
    model = Noisy()
    before = state(model)
    model(torch.randn(8, 4))
    assert not equal(before, state(model))


def test_restored_when_the_body_raises():
    model = Noisy()
    before = state(model)
    with pytest.raises(KeyError), preserve(model, training=True):
        model(torch.randn(8, 4))
        raise KeyError
    assert equal(before, state(model))


def test_a_graph_that_saved_a_buffer_can_still_go_backward():
    model = Noisy().eval()
    x = torch.randn(8, 4, requires_grad=True)
    out = model.norm(x)
    with preserve(model, training=True):
        model(torch.randn(8, 4))
    out.sum().backward()
    assert x.grad.isfinite().all()

"""The parts of gradients that the trap reads."""

import math

import pytest
import torch
from torch import nn

from loopwise.debug.nan.finite_check import edges, finite_by_kernel, products
from loopwise.debug.statistics import native


@pytest.mark.parametrize("where", ["input", "gradient"])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(512, 256, bias=False), (4, 512)),
        (nn.Conv2d(64, 128, 3, padding=1, bias=False), (2, 64, 5, 5)),
        (nn.Linear(512, 256), (4, 512)),
        (nn.Conv2d(64, 128, 3, padding=1), (2, 64, 5, 5)),
    ],
)
def test_a_row_and_a_column_of_a_product_show_each_factor(layer, shape, where):
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        x = torch.randn(shape, generator=generator)
        y = layer(x.requires_grad_())
        back = torch.randn(y.shape, generator=generator)
        spoilt = x.data if where == "input" else back
        spoilt.view(-1)[torch.randint(spoilt.numel(), (1,), generator=generator)] = torch.nan
        layer.zero_grad()
        layer(x.detach()).backward(back)
        assert finite_by_kernel([layer.weight], products([layer])) is False
        found = edges(layer.weight.grad, layer.bias)
        assert not all(bool(edge.isfinite().all()) for edge in found)
        assert sum(edge.numel() for edge in found) < layer.weight.numel() / 40


def test_a_frozen_bias_is_not_read():
    layer = nn.Linear(512, 256)
    layer.bias.requires_grad_(False)
    layer(torch.ones(4, 512)).sum().backward()
    assert [edge.shape for edge in edges(layer.weight.grad, layer.bias)] == [(512,), (256,)]


def test_a_weight_of_two_layers_has_no_bias():
    net = nn.ModuleList([nn.Linear(300, 300), nn.Linear(300, 300)])
    net[1].weight = net[0].weight
    assert products([net]) == {id(net[0].weight): None}


def test_a_weight_with_another_use_is_read_as_a_whole():
    net = nn.ModuleDict({"embed": nn.Embedding(300, 300), "head": nn.Linear(300, 300)})
    assert products([net]) == {id(net["head"].weight): net["head"].bias}
    net["head"].weight = net["embed"].weight
    assert products([net]) == {}


def test_a_layer_whose_bias_was_removed():
    layer = nn.Linear(300, 300)
    del layer.bias
    assert products([layer]) == {id(layer.weight): None}


def with_gradient(gradient):
    parameter = nn.Parameter(torch.empty_like(gradient))
    parameter.grad = gradient
    return parameter


@pytest.mark.parametrize("dtype", native.FLOATS)
@pytest.mark.parametrize("spoilt", [math.nan, math.inf, -math.inf])
def test_the_kernel_finds_a_spoilt_number_wherever_it_is(dtype, spoilt):
    for size in (1, 7, 300):
        parameters = [with_gradient(torch.full((3, size), torch.finfo(dtype).max, dtype=dtype)) for _ in "ab"]
        assert finite_by_kernel(parameters, {}) is True
        for place in (0, size - 1, 3 * size - 1):
            parameters[1].grad.view(-1)[place] = spoilt
            assert finite_by_kernel(parameters, {}) is False
            parameters[1].grad.view(-1)[place] = 0.0
        assert finite_by_kernel(parameters, {}) is True


def test_the_kernel_leaves_to_torch_what_is_no_plain_tensor():
    whole = torch.ones(4, 6)
    others = [whole.t(), whole.to_sparse(), whole.to(torch.complex64), whole.to("meta"), nn.Parameter(whole)]
    for gradient in others:
        assert finite_by_kernel([with_gradient(whole), with_gradient(gradient)], {}) is None
    assert finite_by_kernel([], {}) is True
    assert finite_by_kernel([nn.Parameter(whole)], {}) is True


def test_without_a_compiler_the_kernel_says_nothing(monkeypatch):
    monkeypatch.setattr(native, "kernel", lambda: None)
    assert finite_by_kernel([with_gradient(torch.ones(4))], {}) is None

"""The parts of gradients that the trap reads."""

import pytest
import torch
from torch import nn

from loopwise.debug.nan.finite_check import edges, products


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
